//! The program. Exit codes are in each command's help; a wrong flag or a wrong configuration is 2,
//! before anything is attached or bound.

use std::process::ExitCode;

use clap::Parser as _;
use gpuacct::commands::arguments::Arguments;

fn main() -> ExitCode {
    Arguments::parse().run()
}
