//! `cargo xtask demo`: the main job on this machine, from nothing.

use anyhow::Result;

use crate::build::{self, Profile};
use crate::command::Cmd;
use crate::setup::{self, Group};
use crate::workspace;

/// Show the main job: real eBPF, real containers, a simulated GPU if there is none
#[derive(Debug, clap::Args)]
pub(crate) struct Options {}

pub(crate) fn run(Options {}: &Options) -> Result<()> {
    setup::ensure(&[Group::Ebpf, Group::Runtimes])?;
    let agent = build::agent(Profile::Dev)?;
    Cmd::new(workspace::cargo())
        .env(build::OBJECT_VARIABLE, build::built_object())
        .args(["build", "--package", "gpuacct-tests", "--bin", "demo"])
        .run()?;
    Cmd::new(workspace::target().join("debug/demo"))
        .env("GPUACCT_BIN", agent)
        .run()
}
