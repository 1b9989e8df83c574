//! `gpuacct status`: what the agent on this node knows now, for people and for programs.
//!
//! It asks the agent's local socket and prints. Exit code 0: healthy; 1: degraded, with the reasons
//! in the first lines; 2: no agent answers. The table fits 80 columns whatever the names; the JSON
//! is the agent's own answer, whole, in the units of the books (nanoseconds, bytes).

mod figures;
mod page;
mod question;
#[cfg(test)]
mod tests;
pub mod watch;

use std::process::ExitCode;

pub(super) use self::figures::{bytes, duration, share, unknown};
pub use self::question::{Options, Output, answer};
use super::ask::fail;
use super::output::print;

/// Asks the agent and prints its answer: 0 healthy, 1 degraded, 2 no agent.
pub async fn run(options: Options) -> ExitCode {
    if let Some(interval) = options.watch {
        return watch::run(&options, interval.0).await;
    }
    match answer(&options).await {
        Ok((text, healthy)) => print(&text, ExitCode::from(u8::from(!healthy))),
        Err(error) => fail(&error, 2),
    }
}
