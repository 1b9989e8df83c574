//! `gpuacct log-level`: what the running agent logs, from now until it ends.

use std::path::PathBuf;
use std::process::ExitCode;

use super::ask::{AskError, fail, parse, post};
use super::output::print;
use crate::outputs::log::LevelChange;
use crate::outputs::socket::DEFAULT_PATH;

/// Change what the running agent logs, until it ends
///
/// Exits with 0 if it is changed, with 1 if that is no level, with 2 if no agent answers.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// off, error, warn, info, debug, trace, or directives such as gpuacct=debug
    #[arg(value_name = "LEVEL")]
    level: String,
    /// The agent's socket
    #[arg(long, env = "GPUACCT_SOCKET", default_value = DEFAULT_PATH, value_name = "PATH")]
    socket: PathBuf,
}

/// Asks and says what has changed.
pub async fn run(options: Options) -> ExitCode {
    let request = "/v1/log-level";
    let answer = post(&options.socket, request, options.level.into()).await;
    match answer.and_then(|json| parse::<LevelChange>(request, &json)) {
        Ok(LevelChange { before, now }) => {
            print(&format!("{before} -> {now}\n"), ExitCode::SUCCESS)
        }
        Err(AskError::Refused {
            status: 400,
            reason,
            ..
        }) => {
            eprintln!("error: {reason}");
            ExitCode::from(1)
        }
        Err(error) => fail(&error, 2),
    }
}
