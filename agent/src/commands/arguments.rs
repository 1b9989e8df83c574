//! The command line as a whole.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use super::{
    agent, block_on, bundle, check, config, environment, explain, log_level, probe, report, status,
};

/// Which container used how much of which GPU
#[derive(Debug, Parser)]
#[command(name = "gpuacct", version, propagate_version = true, after_help = environment::help())]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Agent(agent::Options),
    Status(status::Options),
    Explain(explain::Options),
    Report(report::Options),
    Check(check::Options),
    Bundle(bundle::Options),
    LogLevel(log_level::Options),
    Config(config::Options),
    Probe(probe::Options),
}

impl Arguments {
    /// Runs what was typed.
    #[must_use]
    pub fn run(self) -> ExitCode {
        match self.command {
            Command::Agent(options) => agent::run(options),
            Command::Status(options) => block_on(status::run(options)),
            Command::Explain(options) => block_on(explain::run(options)),
            Command::Report(options) => block_on(report::run(options)),
            Command::Check(options) => block_on(check::run(options)),
            Command::Bundle(options) => block_on(bundle::run(options)),
            Command::LogLevel(options) => block_on(log_level::run(options)),
            Command::Config(options) => block_on(config::run(options)),
            Command::Probe(options) => block_on(probe::run(options)),
        }
    }
}
