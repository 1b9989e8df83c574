//! The place of a value in the configuration: `docker.sockets[1]`.

use std::borrow::Cow;
use std::fmt;

/// The most that is shown of a text of the file, in characters.
const MOST_SHOWN: usize = 120;

/// A text of the file, cut where it is longer than anybody reads.
pub(super) fn cut(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(MOST_SHOWN) {
        Some((end, _)) => Cow::Owned(format!("{}…", &text[..end])),
        None => Cow::Borrowed(text),
    }
}

/// A key with its tables and, in a list, its index.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key(Vec<Step>);

/// A step of a key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Step {
    /// The name of a value in a table.
    Name(String),
    /// The index of a value in a list.
    At(usize),
}

impl Key {
    /// The key of a name with dots, such as `gpu.interval`.
    pub(super) fn of(dotted: &str) -> Self {
        let names = dotted.split('.').map(|name| Step::Name(name.to_owned()));
        Self(names.collect())
    }

    /// The key one step below.
    #[must_use]
    pub(super) fn with(&self, step: Step) -> Self {
        let mut key = self.clone();
        key.0.push(step);
        key
    }

    /// The key of the whole value that this is, or that this is an element of.
    #[must_use]
    pub(super) fn of_value(&self) -> Self {
        let names = self
            .0
            .iter()
            .take_while(|step| matches!(step, Step::Name(_)));
        Self(names.cloned().collect())
    }

    /// Whether it is this key or below it.
    pub(super) fn is_in(&self, other: &Self) -> bool {
        self.0.starts_with(&other.0)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, step) in self.0.iter().enumerate() {
            let is_bare = |name: &str| {
                let mut bytes = name.bytes();
                !name.is_empty() && bytes.all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b))
            };
            match step {
                Step::At(index) => write!(f, "[{index}]")?,
                Step::Name(name) => {
                    if number > 0 {
                        f.write_str(".")?;
                    }
                    let name = &*cut(name);
                    if is_bare(name) {
                        f.write_str(name)?;
                    } else {
                        write!(f, "{name:?}")?;
                    }
                }
            }
        }
        Ok(())
    }
}
