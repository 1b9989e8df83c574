//! Which agent is asked, and whose configuration is used: the same flags and the same rule for every
//! subcommand beside `agent`.

use std::path::{Path, PathBuf};

use super::ask::{AskError, get, parse};
use super::environment::path;
use crate::config::{Config, ConfigError, Environment, LoadedConfig, Origins};
use crate::outputs::socket::{ConfigReport, DEFAULT_PATH};

/// The flags that choose an agent and a configuration.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct AgentChoice {
    /// Configuration file, which also names the agent's socket [default: the configuration of the
    /// running agent; if none answers, the defaults]
    #[arg(long, value_name = "FILE", env = "GPUACCT_CONFIG", value_parser = path())]
    pub config: Option<PathBuf>,
    /// The agent's socket [default: socket.path of the configuration file]
    #[arg(long, value_name = "PATH", env = "GPUACCT_SOCKET", value_parser = path())]
    pub socket: Option<PathBuf>,
}

/// A configuration, and where it is from.
#[derive(Clone, Debug, PartialEq)]
pub struct ChosenConfig {
    /// The configuration.
    pub config: Config,
    /// What has set which key. Empty for a running agent's: its text says so.
    pub origins: Origins,
    /// Environment variables that are set and not used, with the reason.
    pub unused: Vec<String>,
    /// The running agent's own text, if the configuration is one.
    pub text: Option<String>,
    /// Its origin in words, in one line: it becomes a comment of a configuration file.
    pub origin: String,
}

impl ChosenConfig {
    pub(super) fn new(loaded: LoadedConfig, origin: &str) -> Self {
        let LoadedConfig {
            config,
            origins,
            unused,
        } = loaded;
        Self {
            config,
            origins,
            unused,
            text: None,
            origin: origin.replace(char::is_control, " "),
        }
    }
}

impl ChosenConfig {
    /// The configuration as a file, without its secrets, with comments that say where values are from.
    ///
    /// # Errors
    /// A path in it is not UTF-8.
    pub(super) fn page(&self) -> Result<String, toml::ser::Error> {
        let text = match &self.text {
            Some(text) => text.clone(),
            None => self.config.shown(&self.origins)?,
        };
        let unused = self.unused.iter();
        let unused: String = unused
            .map(|line| format!("# not used: {}\n", line.replace(char::is_control, " ")))
            .collect();
        let origin = &self.origin;
        Ok(format!(
            "# {origin}\n# A value is the default unless a comment says where it is from.\n{unused}{text}"
        ))
    }
}

impl AgentChoice {
    /// The agent that answers on a socket.
    #[must_use]
    pub fn at(socket: PathBuf) -> Self {
        Self {
            config: None,
            socket: Some(socket),
        }
    }

    /// The file that is named. An empty environment variable counts as not set.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        self.config.as_deref().filter(|file| is_named(file))
    }

    /// The socket of the agent.
    ///
    /// # Errors
    /// If a file is named from which the path cannot be read. Other mistakes in it do not matter.
    pub fn socket(&self) -> Result<PathBuf, ConfigError> {
        match (self.named_socket(), self.file()) {
            (Some(socket), _) => Ok(socket),
            (None, Some(file)) => Config::read_socket_path(file),
            (None, None) => Ok(DEFAULT_PATH.into()),
        }
    }

    /// The socket that is named by itself.
    #[must_use]
    pub fn named_socket(&self) -> Option<PathBuf> {
        self.socket.clone().filter(|socket| is_named(socket))
    }

    /// The same choice, with the socket read from the file.
    ///
    /// # Errors
    /// As [`AgentChoice::socket`].
    pub fn resolved(self) -> Result<Self, ConfigError> {
        let socket = Some(self.socket()?);
        Ok(Self { socket, ..self })
    }

    /// The configuration of the file that is named, otherwise that of the running agent, otherwise
    /// the defaults.
    ///
    /// # Errors
    /// If a file is named that cannot be used.
    pub async fn configuration(&self) -> Result<ChosenConfig, ConfigError> {
        if let Some(file) = self.file() {
            let origin = file.display().to_string();
            let loaded = LoadedConfig::load(Some(file), &Environment::of_process())?;
            return Ok(ChosenConfig::new(loaded, &origin));
        }
        let agents = of_the_agent(&self.socket()?).await;
        Ok(without_a_file(agents.as_ref().ok()))
    }
}

fn is_named(path: &Path) -> bool {
    !path.as_os_str().is_empty()
}

/// The running agent's configuration, without its secrets.
pub(super) async fn of_the_agent(socket: &Path) -> Result<ConfigReport, AskError> {
    let request = "/v1/config";
    parse(request, &get(socket, request).await?)
}

/// What is used where no file is named: the configuration of the agent on this node, otherwise the
/// defaults.
pub(super) fn without_a_file(agents: Option<&ConfigReport>) -> ChosenConfig {
    let defaults = |why: &str| {
        let loaded = LoadedConfig::of_environment(&Environment::of_process());
        ChosenConfig::new(loaded, &format!("the defaults: {why}"))
    };
    let Some(agents) = agents else {
        return defaults("no file is named and no agent answers");
    };
    match Config::parse(&agents.toml, "the agent") {
        Ok(config) => {
            let file = agents.file.as_ref();
            let file = file.map_or("no file".into(), |file| file.display().to_string());
            let loaded = LoadedConfig {
                config,
                ..LoadedConfig::default()
            };
            ChosenConfig {
                text: Some(agents.toml.clone()),
                ..ChosenConfig::new(loaded, &format!("the running agent's, from {file}"))
            }
        }
        // It is another version's.
        Err(error) => defaults(&format!("the agent's cannot be read: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_of_another_version_is_said_in_one_line() {
        let report = ConfigReport {
            file: Some("/etc/a\nb.toml".into()),
            toml: "[newer]\n[newest]\n".to_owned(),
        };
        let chosen = without_a_file(Some(&report));
        assert_eq!(chosen.config, Config::default());
        assert!(chosen.origin.contains("2 mistakes"), "{}", chosen.origin);
        assert!(!chosen.origin.contains('\n'), "{}", chosen.origin);
        let toml = String::new();
        let chosen = without_a_file(Some(&ConfigReport { toml, ..report }));
        assert_eq!(chosen.origin, "the running agent's, from /etc/a b.toml");
    }

    #[tokio::test]
    async fn a_file_names_the_socket_whatever_else_is_wrong_in_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("gpuacct.toml");
        let named = |text: &str| {
            std::fs::write(&file, text).unwrap();
            AgentChoice {
                config: Some(file.clone()),
                socket: None,
            }
        };
        let socket = "[socket]\npath = \"/run/other.sock\"\n";
        let found = named(socket).socket().unwrap();
        assert_eq!(found, Path::new("/run/other.sock"));
        // The agent runs with what the file was at its start; probes must find it.
        let broken = named(&format!("{socket}[gpu]\ninterval = 1\n"));
        assert_eq!(broken.socket().unwrap(), Path::new("/run/other.sock"));
        assert!(broken.configuration().await.is_err());
        assert!(named("[socket]\npath = 5\n").socket().is_err());
        let choice = AgentChoice {
            socket: Some("/a.sock".into()),
            ..named("[socket]\npath = 5\n")
        };
        assert_eq!(choice.socket().unwrap(), Path::new("/a.sock"));
        // As `env GPUACCT_CONFIG= GPUACCT_SOCKET= gpuacct status`.
        let empty = AgentChoice {
            config: Some(PathBuf::new()),
            socket: Some(PathBuf::new()),
        };
        assert_eq!(empty.socket().unwrap(), Path::new(DEFAULT_PATH));
    }
}
