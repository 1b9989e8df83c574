//! The agent's configuration: read whole, checked once, before anything is attached or bound.
//!
//! One TOML file, every key of it optional. Durations are text (`"10s"`, `"1m 30s"`), sizes are
//! bytes. A key that does not exist, a value of the wrong type and a value that cannot work are
//! errors that name the key, what was found and what is allowed. `gpuacct config` prints what is in
//! force.

mod check;
mod error;
mod sections;
mod span;
#[cfg(test)]
mod tests;

use std::path::Path;

pub use self::error::ConfigError;
pub use self::sections::*;
pub use self::span::Span;
use crate::secrets::{self, STRUCK, Secrets};

/// Keys whose values may be secrets.
const SECRET: [&str; 2] = ["otlp.endpoint", "otlp.headers"];

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// It cannot be read, is not TOML, has unknown keys, or values that cannot work.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&text, &path.display().to_string())
    }

    /// Reads text that came from `origin`.
    ///
    /// # Errors
    ///
    /// As [`Config::read`].
    pub fn parse(text: &str, origin: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|error| ConfigError::Syntax {
            origin: origin.to_owned(),
            message: complaint(text, error),
        })?;
        config.check()?;
        Ok(config)
    }

    /// The configuration as it may be shown: it can be read back, and has no secrets.
    #[must_use]
    pub fn redacted(mut self) -> Self {
        for value in self.otlp.headers.values_mut() {
            *value = STRUCK.to_owned();
        }
        if let Some(endpoint) = &mut self.otlp.endpoint {
            *endpoint = secrets::shown(endpoint);
        }
        self
    }

    /// What is in it and must not leave the node.
    #[must_use]
    pub fn secrets(&self) -> Secrets {
        let headers = self.otlp.headers.values().map(String::as_str);
        Secrets::of(headers, self.otlp.endpoint.as_deref())
    }

    /// Refuses values that cannot work.
    ///
    /// # Errors
    ///
    /// The first such value.
    pub fn check(&self) -> Result<(), ConfigError> {
        check::check(self)
    }

    /// The configuration as a file.
    ///
    /// # Errors
    ///
    /// A path in it is not UTF-8.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string(self)
    }
}

/// Message for a text that is not a valid configuration: where, what, and at which key. It never
/// has the line itself, nor a value that may be a secret, because it ends up in logs and in bug
/// reports.
fn complaint(text: &str, mut error: toml::de::Error) -> String {
    let place = error.span().map(|span| {
        let before = text.get(..span.start).unwrap_or(text);
        let line = before.rsplit('\n').next().unwrap_or_default();
        let number = before.matches('\n').count() + 1;
        format!(" at line {number}, column {}", line.chars().count() + 1)
    });
    let place = place.unwrap_or_default();
    let message = error.message().to_owned();
    // Without the text it says the keys in the line's place.
    error.set_input(None);
    let shown = error.to_string();
    let key = shown.trim_end().rsplit_once("\nin `");
    let key = key.and_then(|(_, key)| key.strip_suffix('`'));
    let secret = key.is_some_and(|key| SECRET.iter().any(|secret| key.starts_with(secret)));
    let message = match message.rsplit_once(", expected ") {
        Some((_, expected)) if secret => format!("invalid value, expected {expected}"),
        None if secret => "invalid value".to_owned(),
        _ => message,
    };
    let key = key.map(|key| format!(" in `{key}`")).unwrap_or_default();
    format!("TOML parse error{place}: {message}{key}")
}
