//! Where the values of a configuration come from.

use std::collections::BTreeMap;

/// What stands for the file.
const FILE: &str = "the file";

/// By key with its table (`otlp.endpoint`): the file, the environment variable or the flag that has
/// set its value. A key that is not in here has its default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origins(BTreeMap<String, String>);

impl Origins {
    /// Keys that the file sets.
    pub(super) fn of_file(keys: impl IntoIterator<Item = String>) -> Self {
        Self(keys.into_iter().map(|key| (key, FILE.to_owned())).collect())
    }

    /// Whether the file sets a key, or one below it.
    pub(super) fn is_of_file(&self, key: &str) -> bool {
        self.0
            .iter()
            .any(|(set, origin)| origin == FILE && is_in(set, key))
    }

    /// Notes what has set a key, in place of what had set it before.
    pub fn set(&mut self, key: String, origin: String) {
        self.0.retain(|set, _| !is_in(set, &key));
        self.0.insert(key, origin);
    }

    /// What has set a key, or the table that it is in.
    #[must_use]
    pub fn of(&self, key: &str) -> Option<&str> {
        let found = self.0.iter().find(|(set, _)| is_in(key, set));
        found.map(|(_, origin)| origin.as_str())
    }
}

/// Whether a key is another one or below it.
fn is_in(key: &str, other: &str) -> bool {
    let rest = key.strip_prefix(other);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}
