//! Programs from PyPI, each set in a virtual environment of its own below the target folder.
//!
//! The tests have the same in `tests/src/python.rs`. xtask does not use theirs, since it would have to
//! build the whole agent first.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::command::Cmd;
use crate::setup::{self, Group};
use crate::workspace;

/// The folder with the programs of `packages`, each of them `<package>==<version>`, installed if they
/// are not there.
pub(crate) fn programs(name: &str, packages: &[&str]) -> Result<PathBuf> {
    setup::ensure(&[Group::Python])?;
    let root = workspace::target().join("venv").join(name);
    // Programs in it name its path, so that a copy of it elsewhere is of no use.
    let content = format!("{}\n{}\n", root.display(), packages.join("\n"));
    let marker = root.join("packages.txt");
    let programs = root.join("bin");
    if fs::read_to_string(&marker).is_ok_and(|found| found == content) {
        return Ok(programs);
    }
    Cmd::new("python3")
        .args(["-m", "venv", "--clear"])
        .arg(&root)
        .run()?;
    Cmd::new(programs.join("python"))
        .args(["-m", "pip", "install", "--quiet", "--no-input"])
        .arg("--disable-pip-version-check")
        .args(packages)
        .run()?;
    fs::write(&marker, content).with_context(|| format!("cannot write {}", marker.display()))?;
    Ok(programs)
}
