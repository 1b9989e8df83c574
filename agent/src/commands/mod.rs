//! What is typed: a file per subcommand. Each is thin: parse, call, print.

use std::process::ExitCode;

pub mod agent;
pub mod config;
pub mod status;
mod table;

/// Prints an error with its causes in one line, and says how to exit.
fn complain(error: &dyn std::error::Error, code: u8) -> ExitCode {
    let mut line = format!("error: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        line = format!("{line}: {error}");
        cause = error.source();
    }
    eprintln!("{line}");
    ExitCode::from(code)
}
