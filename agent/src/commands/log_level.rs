//! `gpuacct log-level`: what the running agent logs, from now until it ends.

use std::process::ExitCode;

use super::agent_choice::AgentChoice;
use super::ask::{AskError, parse, post};
use super::complaint::{complain, say};
use super::output::print;
use crate::outputs::log::LevelChange;

/// Change what the running agent logs, until it ends
///
/// Exits with 0 if it is changed, with 1 if that is no level, with 2 if no agent answers or a flag is
/// wrong.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// off, error, warn, info, debug, trace, or directives such as gpuacct=debug
    #[arg(value_name = "LEVEL")]
    level: String,
    #[command(flatten)]
    agent: AgentChoice,
}

/// Asks and says what has changed.
pub async fn run(options: Options) -> ExitCode {
    match change(&options).await {
        Ok(LevelChange { before, now }) => print(format!("{before} -> {now}\n").as_bytes(), 0),
        Err(AskError::Refused {
            status: 400,
            reason,
            ..
        }) => say(
            &reason,
            Some("name a level that is allowed; the default is info"),
            1,
        ),
        Err(error) => complain(&error, 2),
    }
}

async fn change(options: &Options) -> Result<LevelChange, AskError> {
    let request = "/v1/log-level";
    let socket = options.agent.socket()?;
    let json = post(&socket, request, options.level.clone().into()).await?;
    parse(request, &json)
}
