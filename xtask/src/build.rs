//! `cargo xtask build`: the eBPF object, and the agent with the object inside.

use std::path::PathBuf;

use anyhow::{Result, ensure};

use crate::command::Cmd;
use crate::setup::{self, Group};
use crate::workspace;

/// The variable by which the agent's build learns of the object.
pub(crate) const OBJECT_VARIABLE: &str = "GPUACCT_EBPF_OBJECT";

/// The object's target: eBPF in this machine's byte order.
const TARGET: &str = if cfg!(target_endian = "big") {
    "bpfeb-unknown-none"
} else {
    "bpfel-unknown-none"
};

/// Build the eBPF object and the agent
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// With optimisations
    #[arg(long)]
    release: bool,
}

/// How the agent is compiled. The object is the same in all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Profile {
    Dev,
    Release,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let profile = if options.release {
        Profile::Release
    } else {
        Profile::Dev
    };
    let agent = agent(profile)?;
    println!("{}", agent.display());
    Ok(())
}

/// Builds the object, with everything that it takes, and returns where it is.
pub(crate) fn object() -> Result<PathBuf> {
    setup::ensure(&[Group::Ebpf])?;
    let toolchain = setup::ebpf_toolchain()?;
    let linker = setup::bpf_linker(&toolchain)?;

    let target = workspace::target().join("ebpf");
    let linker_variable = format!(
        "CARGO_TARGET_{}_LINKER",
        TARGET.to_uppercase().replace('-', "_")
    );
    Cmd::new(&toolchain.cargo)
        .env("RUSTC", &toolchain.rustc)
        // Debian's compiler is a stable one; `core` is built with flags that are not.
        .env("RUSTC_BOOTSTRAP", "1")
        // BTF is made from debug information. It must be whole: from mere line tables comes BTF in
        // which functions have no types, and the kernel refuses it.
        .env("RUSTFLAGS", "-C debuginfo=2 -C link-arg=--btf")
        .env(&linker_variable, linker)
        .without_env("CARGO_ENCODED_RUSTFLAGS")
        .without_env("RUSTC_WRAPPER")
        .without_env("RUSTC_WORKSPACE_WRAPPER")
        .without_env("RUSTUP_TOOLCHAIN")
        .args(["build", "--quiet", "--release", "--package", "gpuacct-ebpf"])
        .args(["-Z", "build-std=core", "--target", TARGET, "--target-dir"])
        .arg(&target)
        .run()?;

    let object = built_object();
    ensure!(object.exists(), "cargo built no {}", object.display());
    Ok(object)
}

/// Where the object is once it is built.
pub(crate) fn built_object() -> PathBuf {
    let target = workspace::target().join("ebpf").join(TARGET);
    target.join("release/gpuacct-ebpf")
}

/// Builds the agent with the object inside and returns where it is.
pub(crate) fn agent(profile: Profile) -> Result<PathBuf> {
    let object = object()?;
    let mut build = Cmd::new(workspace::cargo())
        .env(OBJECT_VARIABLE, object)
        .args(["build", "--package", "gpuacct"]);
    let folder = match profile {
        Profile::Dev => "debug",
        Profile::Release => {
            build = build.arg("--release");
            "release"
        }
    };
    build.run()?;
    Ok(workspace::target().join(folder).join("gpuacct"))
}
