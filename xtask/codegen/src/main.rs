//! Writes the Rust code of the gRPC interfaces that gpuacct speaks, from their `.proto` files.
//!
//! The result is committed: whoever builds gpuacct needs neither this nor `protoc`. The `.proto`
//! files are read by a compiler in Rust. A package of its own, so that `cargo xtask` does not have
//! to wait for that compiler to be built. The test below fails when a result is stale.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The crate of the interfaces, below the repository's root.
const CRATE: &str = "agent/proto";

/// One interface: from `proto/NAME.proto` of the crate into `src/generated/NAME.rs`.
struct Interface {
    name: &'static str,
    /// The package inside, which names what the compiler writes.
    package: &'static str,
    serving: Serving,
}

/// Whether the serving side is written, beside the asking one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Serving {
    No,
    /// Behind the feature `server` of the crate.
    Optional,
    /// All of the interface is behind that feature.
    Yes,
}

const INTERFACES: [Interface; 4] = [
    // What the agent reads, and no more: what is left out is skipped when an answer is decoded.
    Interface {
        name: "cri",
        package: "runtime.v1",
        serving: Serving::No,
    },
    // The tests stand in for a kubelet.
    Interface {
        name: "pod_resources",
        package: "v1",
        serving: Serving::Optional,
    },
    // The tests run pods, and stand in for runtimes.
    Interface {
        name: "runtime",
        package: "runtime.v1",
        serving: Serving::Yes,
    },
    // What gives a real kubelet its GPUs.
    Interface {
        name: "device_plugin",
        package: "v1beta1",
        serving: Serving::Yes,
    },
];

impl Interface {
    fn proto(&self, root: &Path) -> PathBuf {
        root.join(CRATE)
            .join("proto")
            .join(self.name)
            .with_extension("proto")
    }

    fn code(&self, root: &Path) -> PathBuf {
        let generated = root.join(CRATE).join("src/generated");
        generated.join(self.name).with_extension("rs")
    }
}

fn main() -> Result<()> {
    let root = root();
    for interface in &INTERFACES {
        let code = generate(&root, interface)?;
        let path = interface.code(&root);
        std::fs::write(&path, code).with_context(|| format!("cannot write {}", path.display()))?;
        println!("{CRATE}/src/generated/{}.rs", interface.name);
    }
    Ok(())
}

/// This package lies two folders below the repository's root.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn generate(root: &Path, interface: &Interface) -> Result<String> {
    let proto = interface.proto(root);
    let folder = proto.parent().context("a file is in a folder")?;
    let descriptors = protox::compile([&proto], [folder])
        .with_context(|| format!("cannot read {}", proto.display()))?;
    let out = tempfile::tempdir().context("cannot make a folder")?;
    let mut compiler = tonic_prost_build::configure();
    if interface.serving == Serving::Optional {
        compiler = compiler.server_mod_attribute(".", "#[cfg(feature = \"server\")]");
    }
    compiler
        .build_client(true)
        .build_server(interface.serving != Serving::No)
        // A channel is made by the caller, who has a time limit for it.
        .build_transport(false)
        .out_dir(out.path())
        .compile_fds(descriptors)
        .with_context(|| format!("cannot generate code for {}", proto.display()))?;
    let written = out.path().join(format!("{}.rs", interface.package));
    std::fs::read_to_string(&written).with_context(|| format!("cannot read {}", written.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn committed_code_is_what_the_proto_files_say() {
        let root = root();
        for interface in &INTERFACES {
            let fresh = generate(&root, interface).unwrap();
            let committed = std::fs::read_to_string(interface.code(&root)).unwrap();
            assert!(
                fresh == committed,
                "{} is stale: run `cargo xtask codegen`",
                interface.code(&root).display()
            );
        }
    }
}
