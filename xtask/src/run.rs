//! `cargo xtask run`: the agent, for real, in the foreground.

use std::ffi::OsString;

use anyhow::Result;

use crate::build::{self, Profile};
use crate::command::Cmd;

/// Build the agent and run it in the foreground
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// With optimisations
    #[arg(long)]
    release: bool,
    /// What `gpuacct agent` is given
    #[arg(last = true, value_name = "ARGUMENTS")]
    arguments: Vec<OsString>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let profile = if options.release {
        Profile::Release
    } else {
        Profile::Dev
    };
    Cmd::new(build::agent(profile)?)
        .arg("agent")
        .args(&options.arguments)
        .run()
}
