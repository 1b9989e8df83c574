//! The agent's configuration: read whole, checked once, before anything is attached or bound.
//!
//! One TOML file, every key of it optional. Durations are text (`"10s"`, `"1m 30s"`), sizes are
//! bytes. A key that does not exist, a value of the wrong type and a value that cannot work are
//! errors that name the place, the key, what was found and what is expected. All of them are reported
//! at once. What passes never keeps the agent from starting. `gpuacct config` prints what is in
//! force.

mod check;
mod device_health;
mod error;
mod key;
mod otlp;
mod sections;
mod span;
#[cfg(test)]
mod tests;
mod text;
mod value;

use std::path::{Path, PathBuf};

pub use self::device_health::{Dcgm, GpuHealth, KernelLog};
pub use self::error::{ConfigError, Mistake};
pub use self::otlp::{Otlp, OtlpProtocol, OtlpTemporality};
pub use self::sections::*;
pub use self::span::Span;
use crate::receiver::Receiver;
use crate::secrets::{self, STRUCK, Secrets};
use crate::text_file;

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// It cannot be read, is not TOML, has unknown keys, or values that cannot work.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        Self::parse(&text_of(path)?, &path.display().to_string())
    }

    /// Reads text that came from `origin`.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with the text.
    pub fn parse(text: &str, origin: &str) -> Result<Self, ConfigError> {
        let read = text::read(text, origin);
        if read.mistakes.is_empty() {
            Ok(read.config)
        } else {
            Err(ConfigError::Wrong(read.mistakes))
        }
    }

    /// Reads nothing but where the agent's socket is. Mistakes elsewhere in the file do not matter: a
    /// running agent can be asked although its file has been broken since its start.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or the path of the socket cannot be used.
    pub fn read_socket_path(path: &Path) -> Result<PathBuf, ConfigError> {
        let read = text::read(&text_of(path)?, &path.display().to_string());
        if read.is_sound("socket.path") {
            Ok(read.config.socket.path)
        } else {
            Err(ConfigError::Wrong(read.mistakes))
        }
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

    /// Checks values that flags have put in place of those of the file. `origins` say which flag has
    /// set which key.
    ///
    /// # Errors
    ///
    /// Every value that cannot work.
    pub fn check_flags(&self, origins: &[(&str, &str)]) -> Result<(), ConfigError> {
        let mut mistakes = Vec::new();
        check::check(self, &mut |wrong| {
            let flag = origins.iter().find(|(key, _)| *key == wrong.key);
            mistakes.push(Mistake {
                origin: flag.map_or("configuration", |(_, flag)| flag).to_owned(),
                place: None,
                key: flag.map_or(wrong.key, |_| "").to_owned(),
                problem: wrong.problem,
            });
        });
        if mistakes.is_empty() {
            Ok(())
        } else {
            Err(ConfigError::Wrong(mistakes))
        }
    }

    /// The receiver of OTLP, if one is configured.
    #[must_use]
    pub fn receiver(&self) -> Option<Receiver> {
        self.otlp.receiver()
    }

    /// The configuration as a file. It can be read back.
    ///
    /// # Errors
    ///
    /// A path in it is not UTF-8.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string(self)
    }

    /// The configuration as it is shown to people: as a file without secrets, in which each key has
    /// its value or a comment that says that it has none.
    ///
    /// # Errors
    ///
    /// As [`Config::to_toml`].
    pub fn shown(&self) -> Result<String, toml::ser::Error> {
        let text = self.clone().redacted().to_toml()?;
        let unset = self.unset();
        let mut shown = String::with_capacity(text.len());
        for line in text.lines() {
            shown.push_str(line);
            shown.push('\n');
            let section = line
                .strip_prefix('[')
                .and_then(|name| name.strip_suffix(']'));
            for (_, key) in unset.iter().filter(|(of, _)| section == Some(of)) {
                shown.push_str(&format!("# {key} is not set\n"));
            }
        }
        Ok(shown)
    }

    /// Section and name of each key that has no value.
    fn unset(&self) -> Vec<(&'static str, &'static str)> {
        let Self { gpu, otlp, .. } = self;
        [
            ("gpu", "library", gpu.library.is_none()),
            ("otlp", "endpoint", otlp.endpoint.is_none()),
            ("otlp", "node_name", otlp.node_name.is_none()),
        ]
        .into_iter()
        .filter_map(|(section, key, is_unset)| is_unset.then_some((section, key)))
        .collect()
    }
}

fn text_of(path: &Path) -> Result<String, ConfigError> {
    text_file::read(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })
}
