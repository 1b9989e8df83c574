//! What is wrong with a web configuration file, or with a file that it names.

use std::path::PathBuf;

use crate::outputs::disk_class;
use crate::text_file::TextFileError;

/// Why a web configuration cannot be used. No secret is in it.
#[derive(Debug, thiserror::Error)]
pub enum WebConfigError {
    /// A file cannot be read.
    #[error("{key}: cannot read {path}", path = .path.display())]
    Read {
        /// The key that names the file.
        key: &'static str,
        /// Path of the file.
        path: PathBuf,
        /// Why not.
        source: TextFileError,
    },
    /// The file is no YAML, or its YAML is no web configuration.
    #[error("{path}: {problem}", path = .path.display())]
    Syntax {
        /// Path of the file.
        path: PathBuf,
        /// What is wrong, and where.
        problem: String,
    },
    /// A value cannot be used.
    #[error("{key}: {problem}")]
    Value {
        /// The key, with the keys above it.
        key: String,
        /// What was found and what is expected.
        problem: String,
    },
    /// A certificate or a key cannot be used.
    #[error("{key}: {problem}")]
    Certificate {
        /// The key of the web configuration file.
        key: &'static str,
        /// What was found and what is expected.
        problem: String,
    },
    /// A changed file would leave `/metrics` without protection.
    #[error(
        "{what} would no longer be asked for; a running agent does not give that up: restart it, if this is meant"
    )]
    Unprotected {
        /// What protects `/metrics` now.
        what: &'static str,
    },
}

impl WebConfigError {
    /// The class of the fault, as a label value.
    #[must_use]
    pub fn class(&self) -> &'static str {
        match self {
            Self::Read {
                source: TextFileError::System(error),
                ..
            } => disk_class(error.kind()),
            Self::Read { .. } => "io",
            Self::Syntax { .. } | Self::Value { .. } => "web_config",
            Self::Certificate { .. } => "certificate",
            Self::Unprotected { .. } => "unprotected",
        }
    }

    pub(super) fn value(key: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Value {
            key: key.into(),
            problem: problem.into(),
        }
    }
}
