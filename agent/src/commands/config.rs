//! `gpuacct config`: prints the configuration that is in force, or what is wrong with it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use super::complain;
use crate::config::{Config, ConfigError};

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
