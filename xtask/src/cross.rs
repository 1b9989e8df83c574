//! The agent, optimised, for a processor that may not be this machine's.
//!
//! For another processor it takes the standard library of that processor and a linker that knows it.
//! rustup has the one, `rustup target add`; where it is not, Debian's compiler builds it from its source,
//! as it does for the eBPF object. zig is the other: a C compiler and linker for every processor, with
//! the C library of every version. cargo-zigbuild tells cargo of it.

use std::env;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};

use crate::build::{self, OBJECT_VARIABLE, Profile};
use crate::command::Cmd;
use crate::dist::Arch;
use crate::pypi;
use crate::setup;
use crate::workspace;

/// The linker, pinned: it is part of the build.
const PACKAGES: [&str; 2] = ["cargo-zigbuild==0.24.1", "ziglang==0.17.1"];
/// The C library that programs for another processor are linked with: Debian 12's.
const GLIBC: &str = "2.36";

/// The program that a package or an image has.
#[derive(Debug, clap::Args)]
pub(crate) struct Choice {
    /// The processor; this machine's if not given
    #[arg(long, value_enum)]
    arch: Option<Arch>,
    /// Take this program, built before, in place of building one
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
}

impl Choice {
    /// The processor.
    pub(crate) fn arch(&self) -> Result<Arch> {
        self.arch
            .or_else(Arch::of_this_machine)
            .context("name a processor with --arch")
    }

    /// Where the program is, built if none was named.
    pub(crate) fn program(&self) -> Result<PathBuf> {
        match &self.program {
            Some(program) => Ok(program.clone()),
            None => agent(self.arch()?),
        }
    }
}

/// Builds the agent and returns where it is.
fn agent(arch: Arch) -> Result<PathBuf> {
    if Arch::of_this_machine() == Some(arch) {
        return build::agent(Profile::Release);
    }
    let target = arch.target();
    let object = build::object()?;
    let programs = pypi::programs("cross", &PACKAGES)?;
    let path = env::var_os("PATH").unwrap_or_default();
    let path = env::join_paths(
        [programs.clone()]
            .into_iter()
            .chain(env::split_paths(&path)),
    )?;
    let folder = workspace::target().join("cross");
    let mut cargo = Cmd::new(programs.join("cargo-zigbuild"))
        .env("PATH", path)
        .env(OBJECT_VARIABLE, object)
        .env("CARGO_ZIGBUILD_ZIG_PATH", programs.join("python-zig"))
        .args(["zigbuild", "--release", "--locked", "--package", "gpuacct"])
        .arg("--target")
        .arg(format!("{target}.{GLIBC}"))
        .arg("--target-dir")
        .arg(&folder);
    let sysroot = Cmd::new("rustc").args(["--print", "sysroot"]).read()?;
    let library = PathBuf::from(sysroot.trim_end())
        .join("lib/rustlib")
        .join(&target);
    if !library.is_dir() {
        let toolchain = setup::ebpf_toolchain()?;
        cargo = cargo
            .env("CARGO", &toolchain.cargo)
            .env("RUSTC", &toolchain.rustc)
            .env("RUSTC_BOOTSTRAP", "1")
            .without_env("RUSTUP_TOOLCHAIN")
            .args(["-Z", "build-std=std,panic_unwind"]);
    }
    cargo.run()?;
    let agent = folder.join(target).join("release/gpuacct");
    ensure!(agent.is_file(), "cargo built no {}", agent.display());
    Ok(agent)
}
