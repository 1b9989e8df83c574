//! `cargo xtask demo`: the main job on this machine, from nothing.

use std::time::Duration;

use anyhow::Result;

use crate::build::{self, Profile};
use crate::command::Cmd;
use crate::fuzz::span;
use crate::setup::{self, Group};
use crate::workspace;

/// Show the main job: real eBPF, real containers, a simulated GPU if there is none
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// How long the containers work: a number of seconds, minutes or hours, such as 90s, 1m, 1h
    #[arg(long = "for", value_name = "TIME", default_value = "30s", value_parser = span)]
    time: Duration,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    setup::ensure(&[Group::Ebpf, Group::Runtimes])?;
    let agent = build::agent(Profile::Dev)?;
    Cmd::new(workspace::cargo())
        .env(build::OBJECT_VARIABLE, build::built_object())
        .args(["build", "--package", "gpuacct-tests", "--bin", "demo"])
        .run()?;
    Cmd::new(workspace::target().join("debug/demo"))
        .env("GPUACCT_BIN", agent)
        .arg("--seconds")
        .arg(options.time.as_secs().to_string())
        .run()
}
