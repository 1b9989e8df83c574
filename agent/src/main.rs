//! The command line: parse, call, print. Exit codes are in each command's help; a wrong flag or a
//! wrong configuration is 2, before anything is attached or bound.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use gpuacct::commands::{agent, block_on, check, config, explain, status};

/// Which container used how much of which GPU
#[derive(Debug, Parser)]
#[command(name = "gpuacct", version, propagate_version = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Agent(agent::Options),
    Status(status::Options),
    Explain(explain::Options),
    Check(check::Options),
    Config(config::Options),
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Agent(options) => agent::run(options),
        Command::Status(options) => block_on(status::run(options)),
        Command::Explain(options) => block_on(explain::run(options)),
        Command::Check(options) => block_on(check::run(options)),
        Command::Config(options) => config::run(&options),
    }
}
