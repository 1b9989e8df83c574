//! `gpuacct config`: prints the configuration that is in force, or what is wrong with it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use super::ask::{AskError, get, parse};
use super::complain;
use crate::config::{Config, ConfigError};
use crate::outputs::socket::ConfigReport;

/// Check a configuration and print it whole, defaults included
///
/// Exits with 0 if it can be used, with 2 and the reason if not.
#[derive(Debug, Args)]
pub struct Options {
    /// The configuration file; the defaults if there is none
    #[arg(long, value_name = "FILE", env = "GPUACCT_CONFIG")]
    config: Option<PathBuf>,
}

/// The configuration of a file, or the defaults.
pub(super) fn read(path: Option<&Path>) -> Result<Config, ConfigError> {
    path.map_or_else(|| Ok(Config::default()), Config::read)
}

/// The running agent's configuration, without its secrets.
pub(super) async fn of_the_agent(socket: &Path) -> Result<ConfigReport, AskError> {
    let request = "/v1/config";
    parse(request, &get(socket, request).await?)
}

/// What is looked at where no file is named: what the agent on this node goes by, else the defaults;
/// and in words which of the two.
pub(super) fn without_a_file(agents: Option<&ConfigReport>) -> (Config, String) {
    let defaults = |why: &str| (Config::default(), format!("the defaults: {why}"));
    let Some(agents) = agents else {
        return defaults("no file is named and no agent answers");
    };
    match Config::parse(&agents.toml, "the agent") {
        Ok(config) => {
            let file = agents.file.as_ref();
            let file = file.map_or("no file".into(), |file| file.display().to_string());
            (config, format!("the running agent's, from {file}"))
        }
        // It is another version's.
        Err(error) => defaults(&format!("the agent's cannot be read: {error}")),
    }
}

/// Checks and prints.
#[must_use]
pub fn run(options: &Options) -> ExitCode {
    let config = match read(options.config.as_deref()) {
        Ok(config) => config,
        Err(error) => return complain(&error, 2),
    };
    match config.to_toml() {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => complain(&error, 2),
    }
}
