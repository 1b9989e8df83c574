//! The agent's configuration: read whole, checked once, before anything is attached or bound.
//!
//! One TOML file, every key of it optional. Durations are text (`"10s"`, `"1m 30s"`), sizes are
//! bytes. A key that does not exist, a value of the wrong type and a value that cannot work are
//! errors that name the place, the key, what was found and what is expected. All of them are reported
//! at once. What passes never keeps the agent from starting. `gpuacct config` prints what is in
//! force.

mod change;
mod check;
mod check_otlp;
mod device_health;
mod environment;
#[cfg(test)]
mod environment_tests;
mod error;
mod key;
mod origins;
mod otlp;
mod otlp_signal;
mod records;
mod sections;
mod span;
#[cfg(test)]
mod tests;
mod text;
mod value;

use std::path::{Path, PathBuf};

pub use self::change::ConfigChange;
pub use self::device_health::{Dcgm, GpuHealth, KernelLog};
pub use self::environment::{Environment, VARIABLES};
pub(crate) use self::error::listed;
pub use self::error::{ConfigError, Mistake};
pub use self::origins::Origins;
pub use self::otlp::{Otlp, OtlpAttributes, OtlpKind, OtlpLayout, OtlpTemporality};
pub use self::otlp_signal::{OtlpCompression, OtlpProtocol, OtlpSignal, OtlpTls};
pub use self::records::Records;
pub use self::sections::*;
pub use self::span::Span;
pub(crate) use self::text::Lines;
use crate::receiver::Receiver;
use crate::secrets::Secrets;
use crate::text_file;

/// A configuration, and where its values come from.
#[derive(Clone, Debug, Default)]
pub struct LoadedConfig {
    /// The configuration.
    pub config: Config,
    /// What has set which key.
    pub origins: Origins,
    /// Environment variables that are set and not used, with the reason.
    pub unused: Vec<String>,
}

impl LoadedConfig {
    /// The configuration of a file and, where that sets nothing, of the environment.
    ///
    /// # Errors
    ///
    /// As [`Config::read`]. A variable that cannot be used is no error.
    pub fn load(file: Option<&Path>, environment: &Environment) -> Result<Self, ConfigError> {
        let (mut config, mut origins) = match file {
            None => (Config::default(), Origins::default()),
            Some(path) => {
                let read = text::read(&text_of(path)?, &path.display().to_string());
                if !read.mistakes.is_empty() {
                    return Err(ConfigError::Wrong(read.mistakes));
                }
                (read.config, Origins::of_file(read.set))
            }
        };
        let unused = environment::merge(&mut config, &mut origins, environment);
        Ok(Self {
            config,
            origins,
            unused,
        })
    }

    /// The defaults and what the environment sets.
    #[must_use]
    pub fn of_environment(environment: &Environment) -> Self {
        let mut loaded = Self::default();
        let Self {
            config, origins, ..
        } = &mut loaded;
        loaded.unused = environment::merge(config, origins, environment);
        loaded
    }
}

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
        self.otlp.redact();
        self.records.redact();
        self
    }

    /// What is in it and must not leave the node.
    #[must_use]
    pub fn secrets(&self) -> Secrets {
        self.otlp.secrets(self.records.endpoint.as_deref())
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

    /// The receiver of the books over OTLP, if one is configured.
    #[must_use]
    pub fn receiver(&self) -> Option<Receiver> {
        self.otlp.receiver(OtlpKind::Metrics)
    }

    /// The receiver of the usage records, if they are sent and one is configured.
    #[must_use]
    pub fn records_receiver(&self) -> Option<Receiver> {
        let receiver = self.records.receiver(&self.otlp);
        receiver.filter(|_| self.records.enabled)
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
    /// its value or a comment that says that it has none. Another comment says where a value comes
    /// from that is not the default.
    ///
    /// # Errors
    ///
    /// As [`Config::to_toml`].
    pub fn shown(&self, origins: &Origins) -> Result<String, toml::ser::Error> {
        let text = self.clone().redacted().to_toml()?;
        let shown = self.commented(&text, origins);
        // A text with line breaks can have a line that looks like a key or like a section. What is in it
        // counts for more than the comments.
        let table = |text: &str| toml::from_str::<toml::Table>(text);
        match (table(&shown), table(&text)) {
            (Ok(found), Ok(expected)) if found == expected => Ok(shown),
            _ => Ok(text),
        }
    }

    /// A configuration as a file, with comments.
    fn commented(&self, text: &str, origins: &Origins) -> String {
        let unset = self.unset();
        let mut shown = String::with_capacity(text.len());
        let mut section = "";
        for line in text.lines() {
            shown.push_str(line);
            let begins = line
                .strip_prefix('[')
                .and_then(|name| name.strip_suffix(']'));
            if let Some((key, _)) = line.split_once(" = ").filter(|_| begins.is_none())
                && let Some(origin) = origins.of(&format!("{section}.{key}"))
            {
                shown.push_str(&format!(" # from {origin}"));
            }
            shown.push('\n');
            section = begins.unwrap_or(section);
            for (_, key) in unset.iter().filter(|(of, _)| begins == Some(of)) {
                shown.push_str(&format!("# {key} is not set\n"));
            }
        }
        shown
    }

    /// Section and name of each key that has no value.
    fn unset(&self) -> Vec<(&'static str, &'static str)> {
        let Self {
            gpu,
            socket,
            otlp,
            prometheus,
            records,
            ..
        } = self;
        let OtlpTls {
            ca_file,
            cert_file,
            key_file,
            server_name,
        } = &otlp.tls;
        let own = [
            ("gpu", "library", gpu.library.is_none()),
            ("socket", "group", socket.group.is_none()),
            (
                "prometheus",
                "web_config_file",
                prometheus.web_config_file.is_none(),
            ),
            (
                "prometheus",
                "bearer_token_file",
                prometheus.bearer_token_file.is_none(),
            ),
            (
                "prometheus",
                "probe_listen",
                prometheus.probe_listen.is_none(),
            ),
            ("records", "endpoint", records.endpoint.is_none()),
            ("otlp", "endpoint", otlp.endpoint.is_none()),
            ("otlp", "node_name", otlp.node_name.is_none()),
            ("otlp", "service_name", otlp.service_name.is_none()),
            ("otlp.tls", "ca_file", ca_file.is_none()),
            ("otlp.tls", "cert_file", cert_file.is_none()),
            ("otlp.tls", "key_file", key_file.is_none()),
            ("otlp.tls", "server_name", server_name.is_none()),
        ];
        let signals = [("otlp.metrics", &otlp.metrics), ("otlp.logs", &otlp.logs)];
        let signals = signals.map(|(section, of_it)| {
            [
                (section, "endpoint", of_it.endpoint.is_none()),
                (section, "protocol", of_it.protocol.is_none()),
                (section, "timeout", of_it.timeout.is_none()),
                (section, "compression", of_it.compression.is_none()),
                (section, "headers", of_it.headers.is_none()),
                (section, "header_files", of_it.header_files.is_none()),
                (section, "tls", of_it.tls.is_none()),
            ]
        });
        own.into_iter()
            .chain(signals.into_iter().flatten())
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
