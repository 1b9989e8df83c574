//! The command line: parse, call, print. Exit codes are in each command's help; a wrong flag or a
//! wrong configuration is 2, before anything is attached or bound.

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};
use gpuacct::commands::{
    agent, block_on, bundle, check, config, explain, log_level, probe, report, status,
};

/// Which container used how much of which GPU
///
/// Without a command it shows the status if an agent listens on this node's socket, and this help if
/// none does. Every command's --help lists its exit codes.
#[derive(Debug, Parser)]
#[command(name = "gpuacct", version, propagate_version = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
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
    match Arguments::parse().command.or_else(status_of_this_node) {
        Some(Command::Agent(options)) => agent::run(options),
        Some(Command::Status(options)) => block_on(status::run(options)),
        Some(Command::Explain(options)) => block_on(explain::run(options)),
        Some(Command::Report(options)) => report::run(&options),
        Some(Command::Check(options)) => block_on(check::run(options)),
        Some(Command::Bundle(options)) => block_on(bundle::run(options)),
        Some(Command::LogLevel(options)) => block_on(log_level::run(options)),
        Some(Command::Config(options)) => config::run(&options),
        Some(Command::Probe(options)) => block_on(probe::run(options)),
        None => {
            eprint!("{}", Arguments::command().render_help());
            ExitCode::from(2)
        }
    }
}

/// `gpuacct status` with its defaults and its environment, if anything listens on the agent's socket.
fn status_of_this_node() -> Option<Command> {
    let command = Arguments::parse_from(["gpuacct", "status"]).command;
    command.filter(
        |command| matches!(command, Command::Status(options) if status::is_served(&options.socket)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_commands_help_lists_its_exit_codes() {
        let mut root = Arguments::command();
        root.build();
        for command in root.get_subcommands_mut() {
            if command.get_name() == "help" {
                continue;
            }
            let help = command.render_long_help().to_string();
            let words: Vec<&str> = help.split_whitespace().collect();
            let help = words.join(" ");
            assert!(help.contains("with 0"), "{}: {help}", command.get_name());
        }
    }
}
