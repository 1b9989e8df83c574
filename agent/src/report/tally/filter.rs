//! To which accounts a report is limited.
//!
//! A value is compared with what `--by` would print for the account: `(none)` and `(unresolved)` can
//! be asked for like any name, and a label without a value is `(empty)`. Several values of the same
//! thing are alternatives; different things must all hold.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::Arc;

use super::dimension::Dimension;
use super::keys::{AccountValues, EMPTY};

/// A label and the value that it must have, as they are typed: `team=vision`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    key: Arc<str>,
    value: String,
}

impl FromStr for Label {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('=').filter(|(key, _)| !key.is_empty());
        let (key, value) = parts.ok_or_else(|| {
            format!("found {text:?}, expected KEY=VALUE, such as \"team=vision\"")
        })?;
        let value = if value.is_empty() { EMPTY } else { value };
        Ok(Self {
            key: key.into(),
            value: value.to_owned(),
        })
    }
}

/// The values that an account must have. Without any, every account is in the report.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    wanted: BTreeMap<Dimension, Vec<String>>,
}

impl Filter {
    /// A filter by namespaces and labels.
    #[must_use]
    pub fn new(namespaces: &[String], labels: &[Label]) -> Self {
        let namespaces = namespaces
            .iter()
            .map(|name| (Dimension::Namespace, name.clone()));
        let labels = labels.iter().map(|label| {
            (
                Dimension::Label(Arc::clone(&label.key)),
                label.value.clone(),
            )
        });
        let mut wanted: BTreeMap<Dimension, Vec<String>> = BTreeMap::new();
        for (dimension, value) in namespaces.chain(labels) {
            wanted.entry(dimension).or_default().push(value);
        }
        Self { wanted }
    }

    /// Whether every account passes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.wanted.is_empty()
    }

    /// The keys of the labels that it asks for.
    pub fn label_keys(&self) -> impl Iterator<Item = Arc<str>> {
        self.wanted.keys().filter_map(|of| match of {
            Dimension::Label(key) => Some(Arc::clone(key)),
            _ => None,
        })
    }

    /// Whether the account is in the report.
    pub(super) fn admits(&self, account: &AccountValues<'_>) -> bool {
        self.wanted.iter().all(|(dimension, values)| {
            let found = account.get(dimension);
            values.iter().any(|value| **value == *found)
        })
    }

    /// What must hold, in words: `namespace research or serving`.
    #[must_use]
    pub fn words(&self) -> Vec<String> {
        let words = |(dimension, values): (&Dimension, &Vec<String>)| {
            format!("{dimension} {}", values.join(" or "))
        };
        self.wanted.iter().map(words).collect()
    }
}
