//! `gpuacct completions`: what a shell offers when Tab is typed, for the shell to load.
//!
//! It is made from the command line that this program has, so it cannot be another version's.

use std::process::ExitCode;

use clap_complete::Shell;

use super::output::print;

/// Print the completions of a shell, for the shell to load
///
/// Packages install them. Without a package, for example: `gpuacct completions bash >
/// /etc/bash_completion.d/gpuacct`. Exits with 0 if they are printed, with 1 if they cannot be, with 2
/// if there is no such shell.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Options {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Prints the completions of the command line `root`.
pub fn run(options: &Options, root: clap::Command) -> ExitCode {
    print(of(options.shell, root), 0)
}

fn of(shell: Shell, mut root: clap::Command) -> Vec<u8> {
    let name = root.get_name().to_owned();
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut root, name, &mut text);
    text
}
