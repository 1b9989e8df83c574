//! `cargo xtask gpu-record`: a bundle that settles on a machine with a GPU what NVIDIA's
//! documentation leaves open.
//!
//! It is carried to that machine by hand, so it is one folder and one archive of it, small, and in
//! need of nothing there but NVIDIA's driver and a C library. What version of that, is read from
//! the programs themselves and said.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::build;
use crate::command::{Cmd, find_program};
use crate::workspace;

/// What fits through any door: the folder and the archive each stay below.
const MOST_BYTES: u64 = 64 << 20;
const FOLDER: &str = "gpuacct-gpu-record";
/// Each program's name in cargo's folder and in the bundle.
const PROGRAMS: [(&str, &str); 3] = [
    ("gpu-record", "record"),
    ("gpu-load", "gpu-load"),
    ("gpuacct", "gpuacct"),
];
/// The C library of Debian 12, the oldest that the bundle is meant for.
const DEBIAN_12: (u32, u32) = (2, 36);

/// Build a bundle that records what a real GPU's driver answers
#[derive(Debug, clap::Args)]
pub(crate) struct Options {}

pub(crate) fn run(Options {}: &Options) -> Result<()> {
    let strip = find_program("strip").context("strip is missing; on Debian: binutils")?;
    let object = build::object()?;
    // In one go, so that the agent and the recorder share what they are built of.
    Cmd::new(workspace::cargo())
        .env(build::OBJECT_VARIABLE, object)
        .args(["build", "--release", "--bins"])
        .args(["--package", "gpuacct", "--package", "gpu-record"])
        .run()?;

    let place = workspace::target().join("gpu-record");
    let bundle = place.join(FOLDER);
    if bundle.exists() {
        fs::remove_dir_all(&bundle)
            .with_context(|| format!("cannot remove {}", bundle.display()))?;
    }
    fs::create_dir_all(&bundle).with_context(|| format!("cannot make {}", bundle.display()))?;
    let mut needed = (0, 0);
    for (built, name) in PROGRAMS {
        let from = workspace::target().join("release").join(built);
        let to = bundle.join(name);
        Cmd::new(&strip)
            .args([OsStr::new("--strip-all"), OsStr::new("-o")])
            .args([&to, &from])
            .run()?;
        let program = fs::read(&to).with_context(|| format!("cannot read {}", to.display()))?;
        needed = needed.max(c_library(&program));
    }
    let manual = workspace::root().join("docs/RECORDING.md");
    fs::copy(&manual, bundle.join("README.md"))
        .with_context(|| format!("cannot copy {}", manual.display()))?;

    let archive = place.join(format!("{FOLDER}.tar.gz"));
    Cmd::new("tar")
        .args([
            "--create",
            "--gzip",
            "--sort=name",
            "--owner=0",
            "--group=0",
        ])
        .args(["--numeric-owner", "--file"])
        .arg(&archive)
        .arg("--directory")
        .arg(&place)
        .arg(FOLDER)
        .run()?;

    let (unpacked, packed) = (size(&bundle)?, size(&archive)?);
    for (what, bytes) in [(&bundle, unpacked), (&archive, packed)] {
        ensure!(
            bytes < MOST_BYTES,
            "{} has {bytes} bytes, expected less than {MOST_BYTES}",
            what.display()
        );
    }
    let (major, minor) = needed;
    println!(
        "{}\n{} bytes, {unpacked} unpacked; needs glibc {major}.{minor} or later",
        archive.display(),
        packed
    );
    if needed > DEBIAN_12 {
        println!("note: Debian 12 has glibc 2.36; build there for machines that old");
    }
    println!("there: tar xzf {FOLDER}.tar.gz && {FOLDER}/record --out recordings");
    Ok(())
}

/// Bytes of a file, or of the files in a folder.
fn size(path: &Path) -> Result<u64> {
    let reading = || format!("cannot read {}", path.display());
    let found = path.metadata().with_context(reading)?;
    if !found.is_dir() {
        return Ok(found.len());
    }
    let mut total = 0;
    for entry in fs::read_dir(path).with_context(reading)? {
        total += size(&entry.with_context(reading)?.path())?;
    }
    Ok(total)
}

/// The newest version of glibc that a program names in its version needs: `GLIBC_2.34`.
fn c_library(program: &[u8]) -> (u32, u32) {
    const PREFIX: &[u8] = b"GLIBC_";
    let places = program.windows(PREFIX.len()).enumerate();
    let versions = places
        .filter(|(_, window)| *window == PREFIX)
        .filter_map(|(at, _)| {
            let rest = &program[at + PREFIX.len()..];
            let end = rest.iter().position(|&byte| byte == 0)?;
            let (major, minor) = str::from_utf8(&rest[..end]).ok()?.split_once('.')?;
            // A third number is a patch of an old version: 2.2.5.
            let minor = minor.split('.').next()?;
            Some((major.parse().ok()?, minor.parse().ok()?))
        });
    versions.max().unwrap_or((0, 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_c_library_that_is_named_is_needed() {
        for (program, needed) in [
            (&b"\0GLIBC_2.2.5\0GLIBC_2.34\0GLIBC_2.17\0"[..], (2, 34)),
            (b"\0GLIBC_PRIVATE\0GLIBC_2.9\0", (2, 9)),
            (b"GLIBC_2.40 is not a version here\0", (0, 0)),
            (b"\0GLIBC_2.99", (0, 0)),
            (b"", (0, 0)),
        ] {
            let shown = String::from_utf8_lossy(program);
            assert_eq!(c_library(program), needed, "{shown}");
        }
    }

    #[test]
    fn a_folders_size_is_that_of_its_files() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("inner")).unwrap();
        fs::write(dir.path().join("a"), [0; 10]).unwrap();
        fs::write(dir.path().join("inner/b"), [0; 5]).unwrap();
        assert_eq!(size(dir.path()).unwrap(), 15);
    }
}
