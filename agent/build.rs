//! Puts the eBPF object where `sources::kernel` embeds it from, and says which source and which
//! compiler the agent is built from.
//!
//! `GPUACCT_EBPF_OBJECT` names the object; `cargo xtask build` sets it. Without it the agent gets
//! an empty one, which it refuses to load with an error that says so: it builds for someone who
//! has no eBPF toolchain, and never pretends to account.

use std::path::PathBuf;
use std::process::Command;
use std::{env, fs};

/// What stands for a revision that is not known, as `NONE` does in the core.
const NONE: &str = "(none)";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-env=GPUACCT_BUILT_REVISION={}", revision());
    println!("cargo:rustc-env=GPUACCT_BUILT_COMPILER={}", compiler());
    println!("cargo:rerun-if-env-changed=GPUACCT_EBPF_OBJECT");

    let out = env::var_os("OUT_DIR").expect("cargo sets OUT_DIR for build scripts");
    let target = PathBuf::from(out).join("gpuacct.bpf.o");
    match env::var_os("GPUACCT_EBPF_OBJECT") {
        Some(object) => {
            let object = PathBuf::from(object);
            println!("cargo:rerun-if-changed={}", object.display());
            if let Err(error) = fs::copy(&object, &target) {
                panic!(
                    "cannot copy the eBPF object {} named by GPUACCT_EBPF_OBJECT: {error}",
                    object.display()
                );
            }
        }
        None => fs::write(&target, []).expect("OUT_DIR can be written to"),
    }
}

/// The revision: what `GPUACCT_REVISION` says, for builds without Git such as an image's; otherwise
/// Git's. A development build has none: it would be built anew with each commit.
fn revision() -> String {
    println!("cargo:rerun-if-env-changed=GPUACCT_REVISION");
    let told = env::var("GPUACCT_REVISION").ok();
    let told = told.filter(|revision| !revision.trim().is_empty());
    if let Some(revision) = told {
        return revision.trim().to_owned();
    }
    if env::var("PROFILE").as_deref() != Ok("release") {
        return NONE.to_owned();
    }
    // A file that is not there would cause a build each time.
    if let Some(log) = output("git", &["rev-parse", "--git-path", "logs/HEAD"])
        && PathBuf::from(&log).is_file()
    {
        println!("cargo:rerun-if-changed={log}");
    }
    output("git", &["rev-parse", "HEAD"]).unwrap_or_else(|| NONE.to_owned())
}

/// Name and version of the compiler.
fn compiler() -> String {
    let rustc = env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    let version = output(&rustc, &["--version"]).unwrap_or_else(|| NONE.to_owned());
    let words: Vec<&str> = version.split(' ').take(2).collect();
    words.join(" ")
}

/// The first line that a program prints, if it can be run and succeeds.
fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let line = text.lines().next()?.trim();
    (output.status.success() && !line.is_empty()).then(|| line.to_owned())
}
