//! Puts the eBPF object where `sources::kernel` embeds it from.
//!
//! `GPUACCT_EBPF_OBJECT` names the object; `cargo xtask build` sets it. Without it the agent gets
//! an empty one, which it refuses to load with an error that says so: it builds for someone who
//! has no eBPF toolchain, and never pretends to account.

use std::path::PathBuf;
use std::{env, fs};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
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
