//! `cargo xtask bench`: what the agent costs on this machine, as one reads it in
//! `docs/PERFORMANCE.md`.

mod guard;

use anyhow::Result;

use crate::archive;
use crate::build::{self, Profile};
use crate::command::Cmd;
use crate::setup::{self, Group};
use crate::test;
use crate::workspace;

/// Measure what the agent costs on this machine; three quarters of an hour for everything
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Which: forks, opens, storm, footprint, health, metrics, identity, accuracy, crashes, store,
    /// report, fleet; all if not given
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Count instructions instead, and compare them with the recorded ones: needs no quiet machine
    #[arg(long, conflicts_with = "names")]
    guard: bool,
    /// Record what is counted
    #[arg(long, requires = "guard")]
    record: bool,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    if options.guard {
        return guard::run(options.record);
    }
    let mut groups = vec![Group::Ebpf];
    let wants = |name: &str| options.names.is_empty() || options.names.iter().any(|it| it == name);
    if wants("identity") || wants("crashes") {
        groups.push(Group::Runtimes);
    }
    if wants("crashes") {
        groups.extend([Group::Receivers, Group::Python]);
    }
    setup::ensure(&groups)?;
    let mut variables = Vec::new();
    if wants("fleet") {
        variables.push((test::NEWEST_PROMETHEUS, archive::newest_prometheus()?));
    }
    let agent = build::agent(Profile::Release)?;
    Cmd::new(workspace::cargo())
        .env(build::OBJECT_VARIABLE, build::built_object())
        .args(["build", "--release", "--package", "gpuacct-tests"])
        .args(["--bin", "bench", "--bin", "naive-poller"])
        .run()?;
    let bench = Cmd::new(workspace::target().join("release/bench")).env("GPUACCT_BIN", agent);
    test::with(bench, &variables).args(&options.names).run()
}
