//! `cargo xtask VERB`: everything about gpuacct that cargo alone does not do.
//!
//! Each verb is a file. Each installs what it needs, so no verb has to be run before another.

mod archive;
mod bench;
mod build;
mod codegen;
mod command;
mod cross;
mod demo;
mod deploy;
mod dist;
mod fuzz;
mod gpu_record;
mod image;
mod kubernetes;
mod lint;
mod package;
mod pypi;
mod run;
mod setup;
mod test;
mod toolchain;
mod workspace;

use std::process::ExitCode;

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
    Lint(lint::Options),
    Codegen(codegen::Options),
    Demo(demo::Options),
    Deploy(deploy::Options),
    Fuzz(fuzz::Options),
    Bench(bench::Options),
    Test(test::Options),
    Run(run::Options),
    GpuRecord(gpu_record::Options),
    Package(package::Options),
    Image(image::Options),
}

fn main() -> ExitCode {
    match run(Cli::parse().verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> anyhow::Result<()> {
    match verb {
        Verb::Setup(options) => setup::run(&options),
        Verb::Build(options) => build::run(&options),
        Verb::Lint(options) => lint::run(&options),
        Verb::Codegen(options) => codegen::run(&options),
        Verb::Demo(options) => demo::run(&options),
        Verb::Deploy(options) => deploy::run(&options),
        Verb::Fuzz(options) => fuzz::run(&options),
        Verb::Bench(options) => bench::run(&options),
        Verb::Test(options) => test::run(&options),
        Verb::Run(options) => run::run(&options),
        Verb::GpuRecord(options) => gpu_record::run(&options),
        Verb::Package(options) => package::run(&options),
        Verb::Image(options) => image::run(&options),
    }
}
