//! `gpuacct budgets`: rules and alerts for Prometheus, made of a file of budgets.

use std::path::PathBuf;
use std::process::ExitCode;

use super::complaint::{complain, say};
use super::environment::path;
use super::output::print;
use crate::budgets::{self, BudgetsError, rules};
use crate::errors::chain;

/// What stands below the help.
const AFTER_HELP: &str = "\
Exit codes:
  0  printed
  1  the rules cannot be written
  2  wrong flags, or the budgets or their prices cannot be read or used: everything that is wrong is listed

Example:
  gpuacct budgets render budgets.toml > gpuacct.budgets.yaml";

/// Make rules and alerts for Prometheus from a file of budgets
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Print recording rules (used, limit, forecast) and alerts for each budget
    ///
    /// Exits with 0 if they are printed, with 1 if they cannot be written, and with 2 for wrong flags or if
    /// the budgets or their prices cannot be read or used. All that is wrong with the budgets is listed.
    Render {
        /// The file of budgets, TOML
        #[arg(value_name = "FILE", value_parser = path())]
        file: PathBuf,
    },
}

/// Reads, and prints the rules. The exit codes are those of the help.
#[must_use]
pub fn run(options: &Options) -> ExitCode {
    let Command::Render { file } = &options.command;
    let (budgets, prices) = match budgets::read(file) {
        Ok(read) => read,
        Err(error @ BudgetsError::Money(_)) => return complain(&error, 2),
        Err(error @ BudgetsError::UnusablePrices { .. }) => {
            return say(&chain(&error), Some("name another file of prices"), 2);
        }
        Err(error) => return say(&chain(&error), Some("correct the file of budgets"), 2),
    };
    match rules::render(&budgets, prices.as_ref()) {
        Ok(text) => print(text, 0),
        Err(error) => complain(&error, 1),
    }
}
