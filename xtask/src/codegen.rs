//! `cargo xtask codegen`: the Rust code of the gRPC interfaces, from their `.proto` files.

use anyhow::Result;

use crate::command::Cmd;
use crate::workspace;

/// Generate the code of the gRPC interfaces again, after a `.proto` file was changed
#[derive(Debug, clap::Args)]
pub(crate) struct Options {}

pub(crate) fn run(Options {}: &Options) -> Result<()> {
    Cmd::new(workspace::cargo())
        .args(["run", "--quiet", "--package", "gpuacct-codegen"])
        .run()
}
