//! What can be wrong with a configuration.

use std::path::PathBuf;

use thiserror::Error;

/// What can be wrong with a configuration.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {}", path.display())]
    Read {
        /// The configuration file.
        path: PathBuf,
        /// What the system answered.
        #[source]
        source: std::io::Error,
    },
    /// The file is not TOML, has an unknown key, or a value of the wrong type.
    #[error("{origin}: {message}")]
    Syntax {
        /// The file, or `configuration`.
        origin: String,
        /// Where in it, which key, what was found and what was expected.
        message: String,
    },
    /// A value that cannot work.
    #[error("{key} is {found}, allowed is {allowed}")]
    Value {
        /// The key, with its table.
        key: &'static str,
        /// Value that was found.
        found: String,
        /// Description of the allowed values.
        allowed: &'static str,
    },
}
