//! Programs of another Debian release than the machine's: downloaded, checked, unpacked, and never
//! installed.
//!
//! apt does the work with a state of its own, so that the machine's is left alone and Debian's
//! signatures are checked. No script of a package is run. What has been unpacked stays in the
//! target folder and is not looked for again.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::command::Cmd;
use crate::workspace;

/// The keys that Debian signs its releases with.
pub(crate) const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const ADDRESS: &str = "http://deb.debian.org/debian";
/// The release after the one whose daemons are tested throughout.
const SUITE: &str = "trixie";
const RUNTIMES: [&str; 2] = ["docker.io", "containerd"];

/// A newer Docker Engine and containerd, as a tree with `usr/sbin/dockerd` in it.
pub(crate) fn newer_runtimes() -> Result<PathBuf> {
    let tools = workspace::target().join("tools");
    let tree = tools.join(format!("debian-{SUITE}"));
    if !tree.is_dir() {
        let work = tools.join(format!("debian-{SUITE}.part"));
        download(&work)?;
        let root = work.join("root");
        for entry in fs::read_dir(work.join("packages")).context("no packages")? {
            let package = entry.context("no packages")?.path();
            Cmd::new("dpkg-deb")
                .arg("--extract")
                .arg(&package)
                .arg(&root)
                .run()?;
        }
        // Only what is whole has the name that is looked for.
        fs::rename(&root, &tree).with_context(|| format!("cannot make {}", tree.display()))?;
        fs::remove_dir_all(&work).with_context(|| format!("cannot remove {}", work.display()))?;
    }
    for program in ["usr/sbin/dockerd", "usr/bin/containerd"] {
        let program = tree.join(program);
        ensure!(program.is_file(), "{} is not there", program.display());
    }
    Ok(tree)
}

/// Has apt put the packages into `packages` below `work`.
fn download(work: &Path) -> Result<()> {
    // What a run that was broken off has left.
    let _ = fs::remove_dir_all(work);
    for folder in [
        "lists/partial",
        "cache/archives/partial",
        "packages",
        "root",
        "empty",
    ] {
        let folder = work.join(folder);
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let write = |name: &str, text: String| -> Result<PathBuf> {
        let file = work.join(name);
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        Ok(file)
    };
    let sources = write(
        "sources.list",
        format!("deb [signed-by={KEYS}] {ADDRESS} {SUITE} main\n"),
    )?;
    let config = write("apt.conf", config(work, &sources))?;
    let apt = || Cmd::new("apt-get").env("APT_CONFIG", &config).arg("-q");
    apt().arg("update").run()?;
    apt()
        .current_dir(work.join("packages"))
        .arg("download")
        .args(RUNTIMES)
        .run()
}

/// What makes apt keep everything of its own below `work`.
fn config(work: &Path, sources: &Path) -> String {
    let at = |name: &str| work.join(name).display().to_string();
    [
        ("Dir::Etc::sourcelist", sources.display().to_string()),
        ("Dir::Etc::sourceparts", at("empty")),
        ("Dir::Etc::preferencesparts", at("empty")),
        ("Dir::State::lists", at("lists")),
        ("Dir::Cache", at("cache")),
        // Descriptions and icons.
        ("Acquire::Languages", "none".to_owned()),
        (
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled",
            "false".to_owned(),
        ),
        // Its usual user cannot write here.
        ("APT::Sandbox::User", "root".to_owned()),
    ]
    .map(|(key, value)| format!("{key} \"{value}\";\n"))
    .concat()
}
