//! The image that containers of the tests are made from, in the form in which containerd imports images.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::docker::program_path;

/// An OCI archive of an image of that name that has busybox and sleeps for so many seconds.
pub(super) fn archive(root: &Path, name: &str, seconds: &str) -> Result<PathBuf> {
    let folder = root.join("image").join(seconds);
    let (tree, blobs) = (folder.join("tree"), folder.join("oci/blobs/sha256"));
    for folder in ["bin", "proc", "sys", "dev", "tmp", "etc"] {
        fs::create_dir_all(tree.join(folder)).context("cannot make the image's folders")?;
    }
    fs::create_dir_all(&blobs).context("cannot make the archive's folders")?;
    fs::copy(program_path("busybox")?, tree.join("bin/busybox")).context("cannot copy busybox")?;
    let layer = tar(&tree)?;
    let put = |bytes: &[u8], kind: &str| -> Result<serde_json::Value> {
        let digest = sha256(bytes)?;
        fs::write(blobs.join(&digest), bytes).context("cannot write a blob")?;
        Ok(serde_json::json!({
            "mediaType": format!("application/vnd.oci.image.{kind}"),
            "digest": format!("sha256:{digest}"),
            "size": bytes.len(),
        }))
    };
    let layer_blob = put(&layer, "layer.v1.tar")?;
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let config = serde_json::json!({
        "architecture": architecture,
        "os": "linux",
        "config": { "Entrypoint": ["/bin/busybox", "sleep", seconds], "Env": ["PATH=/bin"] },
        "rootfs": { "type": "layers", "diff_ids": [layer_blob["digest"]] },
    });
    let config = put(&serde_json::to_vec(&config)?, "config.v1+json")?;
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config,
        "layers": [layer_blob],
    });
    let mut manifest = put(&serde_json::to_vec(&manifest)?, "manifest.v1+json")?;
    manifest["annotations"] = serde_json::json!({ "io.containerd.image.name": name });
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": [manifest] });
    let oci = folder.join("oci");
    fs::write(oci.join("index.json"), serde_json::to_vec(&index)?)?;
    fs::write(oci.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    let archive = folder.join("image.tar");
    fs::write(&archive, tar(&oci)?).context("cannot write the archive")?;
    Ok(archive)
}

/// The archive of a folder's files, all of them root's.
pub(super) fn tar(folder: &Path) -> Result<Vec<u8>> {
    let output = Command::new(program_path("tar")?)
        .args(["--create", "--owner=0", "--group=0", "--directory"])
        .arg(folder)
        .arg(".")
        .output()
        .context("cannot run tar")?;
    ensure!(output.status.success(), "tar: {}", output.status);
    Ok(output.stdout)
}

fn sha256(bytes: &[u8]) -> Result<String> {
    let mut child = Command::new(program_path("sha256sum")?)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run sha256sum")?;
    child
        .stdin
        .take()
        .context("sha256sum has a standard input")?
        .write_all(bytes)?;
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    let digest = said.split(' ').next().unwrap_or_default();
    ensure!(digest.len() == 64, "sha256sum said {said:?}");
    Ok(digest.to_owned())
}
