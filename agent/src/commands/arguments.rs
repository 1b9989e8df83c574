//! The command line as a whole.

use std::io::{self, ErrorKind, Write as _};
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

use super::output::{OutputError, not_written, note};
use super::{
    agent, block_on, budgets, bundle, check, completions, config, environment, explain, log_level,
    man, probe, release, report, status,
};

/// Which container used how much of which GPU
///
/// Without a command it shows the status if an agent listens on this node's socket, and this help if
/// none does. Every command's --help lists its exit codes.
#[derive(Debug, Parser)]
#[command(name = "gpuacct", version, propagate_version = true, after_help = environment::help())]
#[command(color = environment::help_colours())]
pub struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    Agent(agent::Options),
    Status(status::Options),
    Explain(explain::Options),
    // Its flags take far more room than those of the others.
    Report(Box<report::Options>),
    Budgets(budgets::Options),
    Check(check::Options),
    Bundle(bundle::Options),
    LogLevel(log_level::Options),
    Release(release::Options),
    Config(config::Options),
    Probe(probe::Options),
    Completions(completions::Options),
    Man(man::Options),
}

/// Runs the command line of this process.
#[must_use]
pub fn run() -> ExitCode {
    match Arguments::try_parse() {
        Ok(arguments) => arguments.run(),
        // A help text or a version that was asked for, or what is wrong with the arguments.
        Err(said) => {
            let code = u8::try_from(said.exit_code()).unwrap_or(2);
            let written = said.print().and_then(|()| io::stdout().flush());
            match written {
                Err(error) if !said.use_stderr() && error.kind() != ErrorKind::BrokenPipe => {
                    not_written(&OutputError::from(error))
                }
                // If standard error is closed, the exit code still says it.
                _ => ExitCode::from(code),
            }
        }
    }
}

impl Arguments {
    /// Runs what was typed.
    #[must_use]
    pub fn run(self) -> ExitCode {
        match self.command.or_else(status_of_this_node) {
            Some(Command::Agent(options)) => agent::run(options),
            Some(Command::Status(options)) => block_on(status::run(options)),
            Some(Command::Explain(options)) => block_on(explain::run(options)),
            Some(Command::Report(options)) => block_on(report::run(*options)),
            Some(Command::Budgets(options)) => budgets::run(&options),
            Some(Command::Check(options)) => block_on(check::run(options)),
            Some(Command::Bundle(options)) => block_on(bundle::run(options)),
            Some(Command::LogLevel(options)) => block_on(log_level::run(options)),
            Some(Command::Release(options)) => block_on(release::run(options)),
            Some(Command::Config(options)) => block_on(config::run(options)),
            Some(Command::Probe(options)) => block_on(probe::run(options)),
            Some(Command::Completions(options)) => completions::run(&options, Self::command()),
            Some(Command::Man(options)) => man::run(&options, Self::command()),
            None => {
                note(Self::command().render_help().to_string().trim_end());
                ExitCode::from(2)
            }
        }
    }
}

/// `gpuacct status` with its defaults and its environment, if anything listens on the agent's socket.
fn status_of_this_node() -> Option<Command> {
    let command = Arguments::parse_from(["gpuacct", "status"]).command;
    command.filter(|command| match command {
        Command::Status(options) => options
            .agent
            .socket()
            .is_ok_and(|at| status::is_served(&at)),
        _ => false,
    })
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
            let has = |code: u8| {
                let (_, table) = help.split_once("Exit codes:").unwrap_or_default();
                help.contains(&format!("with {code}")) || table.contains(&format!(" {code} "))
            };
            for code in 0..=2 {
                assert!(has(code), "{code} of {}: {help}", command.get_name());
            }
        }
    }
}
