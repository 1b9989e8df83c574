//! What can be wrong with a configuration.

use std::fmt;
use std::path::PathBuf;

use thiserror::Error;

use crate::text_file::TextFileError;

/// What can be wrong with a configuration.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {}", path.display())]
    Read {
        /// The configuration file.
        path: PathBuf,
        /// Why it cannot be read.
        #[source]
        source: TextFileError,
    },
    /// The file is read and cannot be used.
    #[error("cannot use the configuration{}", listed(.0))]
    Wrong(Vec<Mistake>),
}

/// One thing that is wrong. It has neither the line nor a value that may be a secret, because it ends
/// up in logs and in bug reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The file, or the flag.
    pub origin: String,
    /// Line and column, both from 1; absent if the origin has none.
    pub place: Option<(usize, usize)>,
    /// The key with its table; empty if there is none, as in text that is not TOML, or if the origin
    /// says it.
    pub key: String,
    /// What was found and what is expected.
    pub problem: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.origin)?;
        if let Some((line, column)) = self.place {
            write!(f, ":{line}:{column}")?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        write!(f, ": {}", self.problem)
    }
}

/// One mistake in the line of the error, several in lines of their own.
pub(crate) fn listed(mistakes: &[Mistake]) -> String {
    match mistakes {
        [mistake] => format!(": {mistake}"),
        mistakes => {
            let lines = mistakes.iter().map(|mistake| format!("\n  {mistake}"));
            format!(
                ", {} mistakes:{}",
                mistakes.len(),
                lines.collect::<String>()
            )
        }
    }
}
