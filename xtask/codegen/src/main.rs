//! Writes the Rust code of the gRPC interfaces that gpuacct speaks, from their `.proto` files.
//!
//! The result is committed: whoever builds gpuacct needs neither this nor `protoc`. The `.proto`
//! files are read by a compiler in Rust. A package of its own, so that `cargo xtask` does not have
//! to wait for that compiler to be built. The test below fails when a result is stale.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Where the agent's interfaces are, below the repository's root.
const AGENT: &str = "agent/src/sources/identity/proto";
/// Where those of the tests are.
const TESTS: &str = "tests/src/proto";

/// One interface: from a file, into a file.
struct Interface {
    proto: PathBuf,
    code: PathBuf,
    /// The package inside, which names what the compiler writes.
    package: &'static str,
    /// Whether the asking side is wanted, and the serving one.
    client: bool,
    server: bool,
}

fn interfaces() -> [Interface; 5] {
    let interface = |proto: [&str; 2], code: [&str; 2], package, server| Interface {
        proto: proto.iter().collect(),
        code: code.iter().collect(),
        package,
        client: true,
        server,
    };
    [
        interface([AGENT, "cri.proto"], [AGENT, "cri.rs"], "runtime.v1", false),
        // Its answers are taken as bytes and decoded in parts, which the client cannot do.
        Interface {
            client: false,
            ..interface(
                [AGENT, "pod_resources.proto"],
                [AGENT, "pod_resources.rs"],
                "v1",
                false,
            )
        },
        // The tests run pods, and stand in for runtimes.
        interface([TESTS, "cri.proto"], [TESTS, "cri.rs"], "runtime.v1", true),
        // The same messages, and the side that a kubelet serves.
        interface(
            [AGENT, "pod_resources.proto"],
            [TESTS, "pod_resources.rs"],
            "v1",
            true,
        ),
        // What gives a real kubelet its GPUs.
        interface(
            [TESTS, "device_plugin.proto"],
            [TESTS, "device_plugin.rs"],
            "v1beta1",
            true,
        ),
    ]
}

fn main() -> Result<()> {
    let root = root();
    for interface in interfaces() {
        let code = generate(&root, &interface)?;
        let path = root.join(&interface.code);
        std::fs::write(&path, code).with_context(|| format!("cannot write {}", path.display()))?;
        println!("{}", interface.code.display());
    }
    Ok(())
}

/// This package lies two folders below the repository's root.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn generate(root: &Path, interface: &Interface) -> Result<String> {
    let proto = root.join(&interface.proto);
    let folder = proto.parent().context("a file is in a folder")?;
    let descriptors = protox::compile([&proto], [folder])
        .with_context(|| format!("cannot read {}", proto.display()))?;
    let out = tempfile::tempdir().context("cannot make a folder")?;
    tonic_prost_build::configure()
        .build_client(interface.client)
        .build_server(interface.server)
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
        for interface in interfaces() {
            let fresh = generate(&root, &interface).unwrap();
            let committed = std::fs::read_to_string(root.join(&interface.code)).unwrap();
            assert!(
                fresh == committed,
                "{} is stale: run `cargo xtask codegen`",
                interface.code.display()
            );
        }
    }
}
