//! The crates that are in the program: those that cargo builds into it, and those of the eBPF object,
//! which is embedded in it. Crates that only build it, and crates of tests, are not among them.
//!
//! `cargo tree` says which these are: unlike `cargo metadata` it knows the features that a crate has in
//! this program alone. `cargo metadata` says more about each, and `Cargo.lock` has their hashes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::command::Cmd;
use crate::dist::{Arch, read};
use crate::workspace;

/// The agent, which is the program.
pub(crate) const AGENT: &str = "gpuacct";
const OBJECT: &str = "gpuacct-ebpf";
const OBJECT_TARGET: &str = "bpfel-unknown-none";

/// A crate by its name and version.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Id {
    pub(crate) name: String,
    pub(crate) version: String,
}

/// A crate that is in the program.
#[derive(Clone, Debug)]
pub(crate) struct Crate {
    pub(crate) about: About,
    /// SHA-256 of the archive that the registry has; none for a crate of this workspace.
    pub(crate) checksum: Option<String>,
    /// Crates that it uses.
    pub(crate) uses: BTreeSet<Id>,
}

/// What a crate's manifest says.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct About {
    name: String,
    version: String,
    /// An SPDX expression.
    pub(crate) license: Option<String>,
    pub(crate) description: Option<String>,
    pub(crate) repository: Option<String>,
    manifest_path: PathBuf,
}

impl About {
    /// The folder with its source.
    pub(crate) fn folder(&self) -> Result<&Path> {
        self.manifest_path
            .parent()
            .context("a manifest is in a folder")
    }
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<About>,
}

#[derive(Deserialize)]
struct Lock {
    package: Vec<Locked>,
}

#[derive(Deserialize)]
struct Locked {
    name: String,
    version: String,
    checksum: Option<String>,
}

/// The crates in the program for a processor.
pub(crate) fn in_the_program(arch: Arch) -> Result<BTreeMap<Id, Crate>> {
    let mut uses = uses(&tree(AGENT, &arch.target())?)?;
    for (id, more) in self::uses(&tree(OBJECT, OBJECT_TARGET)?)? {
        uses.entry(id).or_default().extend(more);
    }
    let agent = uses.keys().find(|id| id.name == AGENT).cloned();
    let object = uses.keys().find(|id| id.name == OBJECT).cloned();
    let (agent, object) = agent
        .zip(object)
        .context("cargo tree does not list the agent")?;
    uses.entry(agent).or_default().insert(object);

    let metadata = Cmd::new(workspace::cargo())
        .args(["metadata", "--locked", "--format-version=1"])
        .read()?;
    let metadata: Metadata = serde_json::from_str(&metadata).context("cargo metadata")?;
    let mut abouts: BTreeMap<Id, About> = metadata
        .packages
        .into_iter()
        .map(|about| {
            let (name, version) = (about.name.clone(), about.version.clone());
            (Id { name, version }, about)
        })
        .collect();
    let checksums = checksums()?;
    uses.into_iter()
        .map(|(id, uses)| {
            let about = abouts.remove(&id);
            let about = about.with_context(|| format!("cargo metadata does not list {id:?}"))?;
            let checksum = checksums.get(&id).cloned().flatten();
            let found = Crate {
                about,
                checksum,
                uses,
            };
            Ok((id, found))
        })
        .collect()
}

/// The hashes in `Cargo.lock`.
fn checksums() -> Result<BTreeMap<Id, Option<String>>> {
    let lock = read(&workspace::root().join("Cargo.lock"))?;
    let lock: Lock = toml::from_slice(&lock).context("Cargo.lock")?;
    let id = |locked: Locked| {
        let Locked {
            name,
            version,
            checksum,
        } = locked;
        (Id { name, version }, checksum)
    };
    Ok(lock.package.into_iter().map(id).collect())
}

/// A line for each crate and each use of it: how deep it is, and what it is.
fn tree(package: &str, target: &str) -> Result<String> {
    Cmd::new(workspace::cargo())
        .args(["tree", "--locked", "--package", package, "--target", target])
        .args(["--edges", "normal,no-proc-macro", "--prefix", "depth"])
        .args(["--format", " {p}"])
        .read()
}

/// Which crate uses which, from such lines.
fn uses(tree: &str) -> Result<BTreeMap<Id, BTreeSet<Id>>> {
    let mut uses: BTreeMap<Id, BTreeSet<Id>> = BTreeMap::new();
    // The crates above a line, the outermost first.
    let mut above: Vec<Id> = Vec::new();
    for line in tree.lines().filter(|line| !line.is_empty()) {
        let mut words = line.split(' ');
        let depth = words.next().and_then(|depth| depth.parse().ok());
        let (Some(depth), Some(name), Some(version)) = (depth, words.next(), words.next()) else {
            bail!("cargo tree printed {line:?}, expected a depth, a name and a version");
        };
        let version = version.trim_start_matches('v').to_owned();
        let name = name.to_owned();
        let id = Id { name, version };
        above.truncate(depth);
        uses.entry(id.clone()).or_default();
        if let Some(user) = above.last() {
            uses.entry(user.clone()).or_default().insert(id.clone());
        }
        above.push(id);
    }
    Ok(uses)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_with_depths_say_which_crate_uses_which() {
        let id = |name: &str| Id {
            name: name.to_owned(),
            version: "1.0.0".to_owned(),
        };
        let tree = "0 a v1.0.0 (/a)\n1 b v1.0.0\n2 c v1.0.0\n1 c v1.0.0 (*)\n";
        let found = uses(tree).unwrap();
        assert_eq!(found[&id("a")], [id("b"), id("c")].into());
        assert_eq!(found[&id("b")], [id("c")].into());
        assert!(found[&id("c")].is_empty());
        assert!(uses("a v1.0.0\n").is_err());
    }
}
