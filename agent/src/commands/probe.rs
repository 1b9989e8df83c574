//! `gpuacct probe`: the kubelet's probes, as a command that it runs in the container.
//!
//! It asks the agent's local socket, which only root on the node can open. Every pod can reach the
//! port of `/metrics`, and a flood of connections to it must not make the kubelet restart the
//! agent. Exit codes: 0 for yes; 1 for no, with the reason; 2 if no agent answers.

use std::process::ExitCode;

use super::agent_choice::AgentChoice;
use super::ask::{AskError, get};
use super::complaint::complain;
use super::output::{note, print};
use crate::errors::chain;
use crate::outputs::socket::DEFAULT_PATH;

/// Say by the exit code whether the agent on this node is well enough for a kubelet
///
/// Exits with 0 if it is, with 1 and the reason if it is not, with 2 if no agent answers or an
/// argument is wrong.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// What is asked.
    #[arg(value_enum)]
    pub question: Question,
    /// Where the agent is.
    #[command(flatten)]
    pub agent: AgentChoice,
}

/// What a kubelet wants to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Question {
    /// Whether the agent is alive: its books go on.
    Live,
    /// Whether it is ready: it has something to publish.
    Ready,
}

/// Asks the agent and prints its answer: 0 yes, 1 no, 2 no agent.
pub async fn run(options: Options) -> ExitCode {
    let request = match options.question {
        Question::Live => "/v1/live",
        Question::Ready => "/v1/ready",
    };
    // A file that was broken after the agent's start must not have the kubelet restart the agent.
    let socket = options.agent.socket().unwrap_or_else(|error| {
        let asked = "asking the agent on the default socket instead";
        note(format_args!("warning: {}; {asked}", chain(&error)));
        DEFAULT_PATH.into()
    });
    match get(&socket, request).await {
        Ok(text) => print(&text, 0),
        Err(error @ AskError::Refused { .. }) => complain(&error, 1),
        Err(error) => complain(&error, 2),
    }
}
