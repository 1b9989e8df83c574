//! Alertmanager's tool, which reads its configuration as Alertmanager does.

use std::path::PathBuf;

use anyhow::Result;

use crate::requirement::fetched_program;

/// The environment variable that names amtool, as `cargo xtask test` unpacks it.
pub const AMTOOL: &str = "GPUACCT_AMTOOL";

/// Where it is.
///
/// # Errors
/// If it has not been fetched.
pub fn amtool() -> Result<PathBuf> {
    fetched_program(AMTOOL)
}
