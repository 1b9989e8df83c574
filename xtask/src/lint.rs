//! `cargo xtask lint`: clippy with warnings denied, in two passes.
//!
//! The eBPF object is built for another target by another compiler, from a `common` of its own.
//! Linted together with the agent, the two would share features that neither has alone.

use anyhow::Result;

use crate::build;
use crate::command::Cmd;
use crate::setup::{self, Group};
use crate::workspace;

/// Run clippy over everything, warnings denied
#[derive(Debug, clap::Args)]
pub(crate) struct Options {}

pub(crate) fn run(Options {}: &Options) -> Result<()> {
    setup::ensure(&[Group::Ebpf])?;
    Cmd::new(workspace::cargo())
        .args(["clippy", "--workspace", "--exclude", "gpuacct-ebpf"])
        .args(["--all-targets", "--", "--deny", "warnings"])
        .run()?;
    build::lint_object()
}
