//! The image as a folder in OCI's layout, which `skopeo` and others copy to registries and daemons.
//! <https://github.com/opencontainers/image-spec/blob/v1.1.1/image-layout.md>

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::command::Cmd;
use crate::dist::{self, Arch, VERSION};

/// Writes the layout of an image with these layers, the lowest first.
pub(crate) fn write(folder: &Path, layers: &[Vec<u8>], arch: Arch, epoch: u64) -> Result<()> {
    let created = dist::timestamp(epoch)?.to_string();
    let annotations = annotations(&created)?;
    let mut described = Vec::new();
    let mut identities = Vec::new();
    let mut history = Vec::new();
    for (layer, what) in layers.iter().zip(["packages of Debian 12", "gpuacct"]) {
        identities.push(format!("sha256:{}", dist::sha256(layer)));
        history
            .push(json!({"created": created, "created_by": "cargo xtask image", "comment": what}));
        let kind = "application/vnd.oci.image.layer.v1.tar+gzip";
        described.push(blob(folder, kind, &dist::gzip(layer)?)?);
    }
    let config = json!({
        "created": created,
        "architecture": arch.name(),
        "os": "linux",
        "config": {
            // Root is needed for eBPF, NVML's device nodes and the runtimes' sockets.
            "User": "0:0",
            // /metrics, /healthz and /readyz.
            "ExposedPorts": {"10944/tcp": {}},
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "Entrypoint": ["/usr/bin/gpuacct"],
            "Cmd": ["agent"],
            "Labels": annotations,
        },
        "rootfs": {"type": "layers", "diff_ids": identities},
        "history": history,
    });
    let config = document(folder, "application/vnd.oci.image.config.v1+json", &config)?;
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": kind,
        "config": config,
        "layers": described,
        "annotations": annotations,
    });
    let mut manifest = document(folder, kind, &manifest)?;
    manifest["platform"] = json!({"architecture": arch.name(), "os": "linux"});
    manifest["annotations"] = json!({"org.opencontainers.image.ref.name": VERSION});
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [manifest],
    });
    dist::write(&folder.join("index.json"), index.to_string().as_bytes())?;
    let layout = json!({"imageLayoutVersion": "1.0.0"});
    dist::write(&folder.join("oci-layout"), layout.to_string().as_bytes())
}

/// What says of the image what it is, under OCI's names.
fn annotations(created: &str) -> Result<Value> {
    let revision = std::env::var("GPUACCT_REVISION").ok();
    let revision = revision.map_or_else(|| Cmd::new("git").args(["rev-parse", "HEAD"]).read(), Ok);
    let revision = revision.context("no Git to ask for the revision; set GPUACCT_REVISION")?;
    Ok(json!({
        "org.opencontainers.image.title": "gpuacct",
        "org.opencontainers.image.description":
            "Accounts every second of GPU time to the container that used it",
        "org.opencontainers.image.licenses": "MIT OR Apache-2.0",
        "org.opencontainers.image.version": VERSION,
        "org.opencontainers.image.revision": revision.trim(),
        "org.opencontainers.image.created": created,
        "org.opencontainers.image.base.name": "debian:12",
    }))
}

fn document(folder: &Path, kind: &str, content: &Value) -> Result<Value> {
    blob(folder, kind, content.to_string().as_bytes())
}

/// Lays a blob into the layout, and returns what refers to it.
fn blob(folder: &Path, kind: &str, bytes: &[u8]) -> Result<Value> {
    let hash = dist::sha256(bytes);
    dist::write(&folder.join("blobs/sha256").join(&hash), bytes)?;
    Ok(json!({"mediaType": kind, "digest": format!("sha256:{hash}"), "size": bytes.len()}))
}
