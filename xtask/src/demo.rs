//! `cargo xtask demo`: the main job on this machine, from nothing.

use std::time::Duration;

use anyhow::Result;

use crate::archive;
use crate::build::{self, Profile};
use crate::command::Cmd;
use crate::fuzz::span;
use crate::setup::{self, Group};
use crate::test;
use crate::workspace;

/// Show the main job: real eBPF, real containers, a simulated GPU if there is none
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// How long the containers work: a number of seconds, minutes or hours, such as 90s, 1m, 1h
    #[arg(long = "for", value_name = "TIME", default_value = "30s", value_parser = span)]
    time: Duration,
    /// Show a fleet: three nodes, two clusters, two stores of metrics, and the same bill by each road
    #[arg(long, conflicts_with = "time")]
    fleet: bool,
    /// Wait for the end of the hour, and run a job of 12 s over it
    #[arg(long, requires = "fleet")]
    over_the_hour: bool,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    setup::ensure(&[Group::Ebpf, Group::Runtimes])?;
    if options.fleet {
        setup::ensure(&[Group::Python])?;
        let parts = [
            (test::NEWEST_PROMETHEUS, archive::newest_prometheus()?),
            (test::VICTORIA_METRICS, archive::victoria_metrics()?),
        ];
        let demo = test::with(program("fleet-demo")?, &parts);
        return match options.over_the_hour {
            true => demo.arg("--over-the-hour").run(),
            false => demo.run(),
        };
    }
    program("demo")?
        .arg("--seconds")
        .arg(options.time.as_secs().to_string())
        .run()
}

/// A demonstration, built, with the agent that it shows.
fn program(name: &str) -> Result<Cmd> {
    let agent = build::agent(Profile::Dev)?;
    Cmd::new(workspace::cargo())
        .env(build::OBJECT_VARIABLE, build::built_object())
        .args(["build", "--package", "gpuacct-tests", "--bin", name])
        .run()?;
    let program = workspace::target().join("debug").join(name);
    Ok(Cmd::new(program).env("GPUACCT_BIN", agent))
}
