//! `gpuacct status`: what the agent on this node knows now, for people and for programs.
//!
//! It asks the agent's local socket and prints. Exit code 0: healthy; 1: degraded, with the reasons
//! in the first lines, or the answer could not be written; 2: no agent answers, or a wrong flag. The
//! table fits 80 columns whatever the names; JSON and YAML are the agent's own answer, whole unless
//! a part is asked for, in the units of the books (nanoseconds, bytes).

mod page;
mod question;
mod selection;
#[cfg(test)]
mod tests;
pub mod watch;
mod words;

use std::io::ErrorKind;
use std::path::Path;
use std::process::ExitCode;

use self::question::fail;
pub use self::question::{Format, Options, StatusError, answer};
pub use self::selection::{Selection, SelectionError, Sort};
use super::complaint::complain;
use super::output::{print, print_page};
use crate::outputs::socket::has_listener;

/// Asks the agent and prints its answer: 0 healthy, 1 degraded, 2 no agent.
pub async fn run(options: Options) -> ExitCode {
    let agent = match options.agent.resolved() {
        Ok(agent) => agent,
        Err(error) => return complain(&error, 2),
    };
    let options = Options { agent, ..options };
    if let Some(interval) = options.watch {
        return watch::run(&options, interval.0).await;
    }
    match answer(&options).await {
        Ok((page, is_healthy)) if options.output.is_for_people() => {
            print_page(page, u8::from(!is_healthy))
        }
        Ok((text, is_healthy)) => print(text, u8::from(!is_healthy)),
        Err(error) => fail(&error),
    }
}

/// Whether a program listens on the socket, which this user may not be allowed to ask.
#[must_use]
pub fn is_served(socket: &Path) -> bool {
    match has_listener(socket) {
        Ok(listens) => listens,
        Err(error) => error.kind() == ErrorKind::PermissionDenied,
    }
}
