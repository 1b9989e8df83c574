//! What the eBPF object is compiled with.
//!
//! The object needs `core` for a target that no compiler ships, so it needs a compiler that comes
//! with the standard library's source: rustup's nightly with `rust-src`, or Debian's `rustc-web`
//! with `rust-web-src`, which `RUSTC_BOOTSTRAP` allows the unstable flags. The nightly comes first,
//! since whoever installed it did so for this.
//!
//! The linker, bpf-linker, must understand the compiler's bitcode, hence be of the same LLVM. It is
//! linked against the compiler's own `libLLVM`, wherever that is: the same version by construction,
//! and no other LLVM to install.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::command::{Cmd, find_program};
use crate::workspace;

/// The releases of LLVM that the pinned bpf-linker can be built with.
const LLVM_MAJORS: std::ops::RangeInclusive<u32> = 21..=23;

/// A compiler that can build the object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Toolchain {
    pub(crate) rustc: PathBuf,
    pub(crate) cargo: PathBuf,
    pub(crate) llvm: Llvm,
}

/// The LLVM of a compiler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Llvm {
    pub(crate) version: String,
    pub(crate) major: u32,
    pub(crate) library: PathBuf,
}

/// The first compiler on this machine that can build the object; otherwise what each lacks.
pub(crate) fn find() -> Result<Toolchain, Vec<String>> {
    let mut lacking = Vec::new();
    for candidate in [nightly, debian] {
        match candidate() {
            Ok(toolchain) => return Ok(toolchain),
            Err(error) => lacking.push(format!("{error:#}")),
        }
    }
    Err(lacking)
}

fn nightly() -> Result<Toolchain> {
    let rustup = find_program("rustup").context("rustup is not installed")?;
    let rustc = Cmd::new(rustup)
        .args(["which", "--toolchain", "nightly", "rustc"])
        .read()
        .ok()
        .context("rustup has no nightly toolchain")?;
    let rustc = PathBuf::from(rustc.trim_end());
    let cargo = rustc.with_file_name("cargo");
    inspect(rustc, cargo).context("rustup's nightly")
}

fn debian() -> Result<Toolchain> {
    let rustc = PathBuf::from("/usr/bin/rustc");
    if !rustc.exists() {
        bail!("Debian's rustc-web is not installed");
    }
    inspect(rustc, workspace::cargo()).context("/usr/bin/rustc")
}

fn inspect(rustc: PathBuf, cargo: PathBuf) -> Result<Toolchain> {
    let sysroot = Cmd::new(&rustc).args(["--print", "sysroot"]).read()?;
    let sysroot = PathBuf::from(sysroot.trim_end());
    let core = sysroot.join("lib/rustlib/src/rust/library/core/src/lib.rs");
    if !core.exists() {
        bail!("lacks the standard library's source, {}", core.display());
    }
    let about = Cmd::new(&rustc).arg("-vV").read()?;
    let version = llvm_version(&about).context("does not tell its LLVM version")?;
    let major = major(version)?;
    if !LLVM_MAJORS.contains(&major) {
        bail!(
            "is made with LLVM {version}, expected {} to {}",
            LLVM_MAJORS.start(),
            LLVM_MAJORS.end()
        );
    }
    let library = find_library(&sysroot, major)?;
    Ok(Toolchain {
        rustc,
        cargo,
        llvm: Llvm {
            version: version.to_owned(),
            major,
            library,
        },
    })
}

/// The line `LLVM version: 22.1.2` of `rustc -vV`.
fn llvm_version(about: &str) -> Option<&str> {
    about
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version:"))
        .map(str::trim)
}

fn major(version: &str) -> Result<u32> {
    version
        .split('.')
        .next()
        .and_then(|major| major.parse().ok())
        .with_context(|| format!("LLVM version {version:?} does not begin with a number"))
}

/// The compiler's `libLLVM`: in its own folder (rustup) or among the system's (Debian).
fn find_library(sysroot: &Path, major: u32) -> Result<PathBuf> {
    let lib = sysroot.join("lib");
    let multiarch = lib.join(format!("{}-linux-gnu", std::env::consts::ARCH));
    for dir in [&lib, &multiarch] {
        let Ok(entries) = fs::read_dir(dir) else {
            continue;
        };
        let mut libraries: Vec<PathBuf> = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| {
                path.file_name()
                    .is_some_and(|name| is_llvm_library(&name.to_string_lossy(), major))
            })
            .collect();
        libraries.sort();
        if let Some(library) = libraries.into_iter().next() {
            return Ok(library);
        }
    }
    bail!(
        "has no libLLVM.so.{major} in {} or {}",
        lib.display(),
        multiarch.display()
    )
}

/// `libLLVM.so.22.1` and `libLLVM.so.22.1-rust-1.97.0-nightly`, but no `libLLVM-22.so`: those are
/// links, or scripts of the linker.
fn is_llvm_library(name: &str, major: u32) -> bool {
    name.strip_prefix("libLLVM.so.")
        .and_then(|rest| rest.split(['.', '-']).next())
        .is_some_and(|found| found == major.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_llvm_version_is_the_compilers() {
        let about = "rustc 1.96.0\nrelease: 1.96.0\nLLVM version: 22.1.8\n";
        assert_eq!(llvm_version(about), Some("22.1.8"));
        assert_eq!(llvm_version("rustc 1.96.0\n"), None);
        assert_eq!(major("22.1.8").unwrap(), 22);
        assert!(major("").is_err());
    }

    #[test]
    fn the_library_is_of_the_compilers_llvm() {
        for (name, expected) in [
            ("libLLVM.so.22.1", true),
            ("libLLVM.so.22.1-rust-1.97.0-nightly", true),
            ("libLLVM-22-rust-1.97.0-nightly.so", false),
            ("libLLVM.so.21.1", false),
            ("libLLVM.so.220", false),
            ("libLLVM.so", false),
            ("libLLVM-14.so.1", false),
        ] {
            assert_eq!(is_llvm_library(name, 22), expected, "{name}");
        }
    }
}
