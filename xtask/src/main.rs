//! `cargo xtask VERB`: everything about gpuacct that cargo alone does not do.
//!
//! A verb is a file. Each sees to what it needs by itself, so none has to be run before another.

mod build;
mod command;
mod demo;
mod run;
mod setup;
mod test;
mod toolchain;
mod workspace;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about = "Builds, tests and shows gpuacct"
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Setup(setup::Options),
    Build(build::Options),
    Demo(demo::Options),
    Test(test::Options),
    Run(run::Options),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().verb {
        Verb::Setup(options) => setup::run(&options),
        Verb::Build(options) => build::run(&options),
        Verb::Demo(options) => demo::run(&options),
        Verb::Test(options) => test::run(&options),
        Verb::Run(options) => run::run(&options),
    }
}
