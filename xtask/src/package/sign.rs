//! Checksums of everything in the folder, and cosign's signature of them.
//!
//! One signature is enough: who has checked the list has checked what it lists. Nothing is sent to a
//! log and no network is needed, so that a signature can be made and checked anywhere.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::archive;
use crate::command::Cmd;
use crate::dist;

/// The list of hashes, as `sha256sum --check` reads it.
pub(crate) const SUMS: &str = "SHA256SUMS";
/// The signature, with what is needed to check it.
const BUNDLE: &str = "SHA256SUMS.sigstore.json";
/// The public half of the key.
const PUBLIC: &str = "cosign.pub";
/// The variable by which cosign learns of a key's password.
const PASSWORD: &str = "COSIGN_PASSWORD";

/// Lists all files of this version in the folder with their hashes, and signs the list: with a key as cosign names it
/// (a file, `env://NAME`, a key service), otherwise with one that is made for it and thrown away.
pub(crate) fn run(folder: &Path, key: Option<&str>) -> Result<()> {
    for old in [SUMS, BUNDLE, PUBLIC] {
        let old = folder.join(old);
        if old.exists() {
            fs::remove_file(&old).with_context(|| format!("cannot remove {}", old.display()))?;
        }
    }
    let mut names = Vec::new();
    for path in dist::entries(folder)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_file() && name.contains(dist::VERSION) {
            names.push(name.into_owned());
        }
    }
    let mut sums = String::new();
    for name in names {
        sums += &format!("{}  {name}\n", dist::sha256_of(&folder.join(&name))?);
    }
    let list = folder.join(SUMS);
    dist::write(&list, sums.as_bytes())?;

    let cosign = archive::cosign()?;
    let Some(key) = key else {
        let own = tempfile::tempdir().context("no folder for a key")?;
        Cmd::new(&cosign)
            .current_dir(own.path())
            .env(PASSWORD, "")
            .arg("generate-key-pair")
            .run()?;
        let private = own.path().join("cosign.key").display().to_string();
        println!(
            "signed with a key of this run only: it shows that signing works, and not who signed"
        );
        return sign(&cosign, &list, &private, true);
    };
    sign(&cosign, &list, key, false)
}

fn sign(cosign: &PathBuf, list: &Path, key: &str, without_password: bool) -> Result<()> {
    let with_password = |command: Cmd| {
        if without_password {
            command.env(PASSWORD, "")
        } else {
            command
        }
    };
    let public = with_password(Cmd::new(cosign))
        .args(["public-key", "--key", key])
        .read()?;
    dist::write(&list.with_file_name(PUBLIC), public.as_bytes())?;
    let bundle = list.with_file_name(BUNDLE);
    with_password(Cmd::new(cosign))
        .args(["sign-blob", "--yes", "--key", key])
        // Neither a transparency log nor a time-stamping service.
        .args(["--use-signing-config=false", "--tlog-upload=false"])
        .arg("--bundle")
        .arg(&bundle)
        .arg(list)
        .run()?;
    // cosign makes it for its owner only, and it is for everybody.
    fs::set_permissions(&bundle, fs::Permissions::from_mode(0o644))
        .with_context(|| format!("cannot open {} to all", bundle.display()))
}
