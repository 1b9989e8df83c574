//! The program. Exit codes are in each command's help; a wrong flag or a wrong configuration is 2,
//! before anything is attached or bound.

use std::process::ExitCode;

use gpuacct::commands::arguments;

fn main() -> ExitCode {
    arguments::run()
}
