//! The software bill of materials: what is in the program, as CycloneDX 1.6 in JSON.
//!
//! Beside the crates it lists what no crate's name shows: SQLite, which a crate has inside, and the
//! standard library.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::crates::{AGENT, Crate, Id};
use crate::command::Cmd;
use crate::dist::{self, Arch, VERSION};

/// The crate that has SQLite's source inside.
const SQLITE: &str = "libsqlite3-sys";
/// Where that crate has the version of it.
const SQLITE_HEADER: &str = "sqlite3/sqlite3.h";

/// The document.
pub(crate) fn document(crates: &BTreeMap<Id, Crate>, arch: Arch, epoch: u64) -> Result<String> {
    let mut components = Vec::new();
    let mut dependencies = Vec::new();
    let mut agent = None;
    let std = standard_library()?;
    for (id, found) in crates {
        let mut uses: Vec<String> = found.uses.iter().map(reference).collect();
        if id.name == AGENT {
            uses.push(reference(&std));
            agent = Some(component(id, found, "application"));
        } else {
            components.push(component(id, found, "library"));
        }
        if id.name == SQLITE {
            let sqlite = sqlite(found)?;
            uses.push(text(&sqlite["bom-ref"]));
            components.push(sqlite);
        }
        dependencies.push(json!({"ref": reference(id), "dependsOn": uses}));
    }
    components.push(json!({
        "type": "library",
        "bom-ref": reference(&std),
        "name": std.name,
        "version": std.version,
        "description": "Rust's standard library, of the compiler's version",
        "licenses": [{"expression": "MIT OR Apache-2.0"}],
        "purl": format!("pkg:generic/rust@{}", std.version),
    }));
    let agent = agent.context("the agent is not among its crates")?;
    let mut document = json!({
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "timestamp": dist::timestamp(epoch)?.to_string(),
            "tools": {"components": [
                {"type": "application", "name": "cargo xtask package", "version": VERSION},
            ]},
            "component": agent,
            "properties": [{"name": "gpuacct:target", "value": arch.target()}],
        },
        "components": components,
        "dependencies": dependencies,
    });
    // The same content has the same number, and other content another one.
    let number = dist::sha256(document.to_string().as_bytes());
    document["serialNumber"] = json!(format!("urn:uuid:{}", uuid(&number)));
    Ok(serde_json::to_string_pretty(&document)? + "\n")
}

/// A UUID of version 8 (RFC 9562, 5.8) from the first digits of a hash.
fn uuid(hash: &str) -> String {
    let part = |range| hash.get(range).unwrap_or_default();
    let (a, b, c, d, e) = (
        part(0..8),
        part(8..12),
        part(13..16),
        part(17..20),
        part(20..32),
    );
    format!("{a}-{b}-8{c}-8{d}-{e}")
}

fn reference(id: &Id) -> String {
    let Id { name, version } = id;
    format!("{name}@{version}")
}

fn component(id: &Id, found: &Crate, kind: &str) -> Value {
    let Id { name, version } = id;
    let mut component = json!({
        "type": kind,
        "bom-ref": reference(id),
        "name": name,
        "version": version,
        "purl": format!("pkg:cargo/{name}@{}", version.replace('+', "%2B")),
    });
    let about = &found.about;
    if let Some(license) = &about.license {
        // The older way to write OR, which SPDX has not.
        let expression = license.replace('/', " OR ");
        component["licenses"] = json!([{"expression": expression}]);
    }
    if let Some(description) = &about.description {
        component["description"] = json!(description.trim());
    }
    if let Some(checksum) = &found.checksum {
        component["hashes"] = json!([{"alg": "SHA-256", "content": checksum}]);
    }
    if let Some(repository) = &about.repository {
        component["externalReferences"] = json!([{"type": "vcs", "url": repository}]);
    }
    component
}

/// SQLite as it is in its crate, by the name that databases of vulnerabilities have for it.
fn sqlite(found: &Crate) -> Result<Value> {
    let header = found.about.folder()?.join(SQLITE_HEADER);
    let bytes = dist::read(&header)?;
    let version = String::from_utf8_lossy(&bytes)
        .lines()
        .find_map(|line| line.strip_prefix("#define SQLITE_VERSION "))
        .map(|version| version.trim().trim_matches('"').to_owned())
        .with_context(|| format!("{} has no version", header.display()))?;
    Ok(json!({
        "type": "library",
        "bom-ref": format!("sqlite@{version}"),
        "name": "sqlite",
        "version": version,
        "description": "The source is in libsqlite3-sys",
        "licenses": [{"license": {"id": "blessing"}}],
        "purl": format!("pkg:generic/sqlite@{version}"),
        "cpe": format!("cpe:2.3:a:sqlite:sqlite:{version}:*:*:*:*:*:*:*"),
    }))
}

/// The standard library of the compiler that builds the program.
fn standard_library() -> Result<Id> {
    let about = Cmd::new("rustc").arg("--version").read()?;
    let version = about.split(' ').nth(1);
    Ok(Id {
        name: "rust-std".to_owned(),
        version: version.context("rustc has no version")?.to_owned(),
    })
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::package::crates;

    #[test]
    fn the_same_crates_give_the_same_document_which_lists_each() {
        let crates = crates::in_the_program(Arch::Amd64).unwrap();
        let first = document(&crates, Arch::Amd64, 1).unwrap();
        assert_eq!(first, document(&crates, Arch::Amd64, 1).unwrap());
        let first: Value = serde_json::from_str(&first).unwrap();
        let other: Value =
            serde_json::from_str(&document(&crates, Arch::Amd64, 2).unwrap()).unwrap();
        assert_ne!(first["serialNumber"], other["serialNumber"]);
        // SQLite and the standard library are added, and the agent is the subject.
        let components = first["components"].as_array().unwrap();
        assert_eq!(components.len(), crates.len() + 1);
        for id in [
            "serde_json",
            "aya-ebpf",
            "sqlite",
            "rust-std",
            "gpuacct-core",
        ] {
            assert!(components.iter().any(|found| found["name"] == id), "{id}");
        }
        // A macro builds the program and is not in it, nor is a crate of tests.
        for id in ["serde_derive", "proptest", "protox"] {
            assert!(components.iter().all(|found| found["name"] != id), "{id}");
        }
    }

    #[test]
    fn a_number_is_a_uuid() {
        let hash = dist::sha256(b"abc");
        assert_eq!(uuid(&hash), "ba7816bf-8f01-8fea-8141-40de5dae2223");
    }
}
