//! The command line: parse, call, print. Exit codes are in each command's help; a wrong flag or a
//! wrong configuration is 2, before anything is attached or bound.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use gpuacct::commands::{
    agent, block_on, bundle, check, config, explain, log_level, probe, report, status,
};

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
    Report(report::Options),
    Check(check::Options),
    Bundle(bundle::Options),
    LogLevel(log_level::Options),
    Config(config::Options),
    Probe(probe::Options),
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Agent(options) => agent::run(options),
        Command::Status(options) => block_on(status::run(options)),
        Command::Explain(options) => block_on(explain::run(options)),
        Command::Report(options) => report::run(&options),
        Command::Check(options) => block_on(check::run(options)),
        Command::Bundle(options) => block_on(bundle::run(options)),
        Command::LogLevel(options) => block_on(log_level::run(options)),
        Command::Config(options) => config::run(&options),
        Command::Probe(options) => block_on(probe::run(options)),
    }
}
