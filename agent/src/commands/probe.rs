//! `gpuacct probe`: the kubelet's probes, as a command that it runs in the container.
//!
//! It asks the agent's local socket, which only root on the node can open. Every pod can reach the
//! port of `/metrics`, and a flood of connections to it must not make the kubelet restart the
//! agent. Exit codes: 0 for yes; 1 for no, with the reason; 2 if no agent answers.

use std::path::PathBuf;
use std::process::ExitCode;

use super::ask::{AskError, fail, get};
use super::output::print;
use crate::outputs::socket::DEFAULT_PATH;

/// Say by the exit code whether the agent on this node is well enough for a kubelet
///
/// Exits with 0 if it is, with 1 and the reason if it is not, with 2 if no agent answers.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// What is asked.
    #[arg(value_enum)]
    pub question: Question,
    /// The agent's socket.
    #[arg(long, env = "GPUACCT_SOCKET", default_value = DEFAULT_PATH, value_name = "PATH")]
    pub socket: PathBuf,
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
    match get(&options.socket, request).await {
        Ok(text) => print(&String::from_utf8_lossy(&text), ExitCode::SUCCESS),
        Err(error @ AskError::Refused { .. }) => fail(&error, 1),
        Err(error) => fail(&error, 2),
    }
}
