//! A real daemon under another version.
//!
//! Distributions have shipped daemons that call themselves `dev`, and the version is a constant in
//! the binary. A Go string is a pointer and a length, so a copy of the binary in which the header
//! of that constant is shortened, and its text overwritten, is the same daemon in all else. In a
//! position-independent executable the pointer is in a relocation, otherwise in the data itself.
//!
//! A proxy that edits replies would be simpler and would test the proxy.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use object::read::{Object, ObjectSegment};

use crate::daemon::install;

/// A copy of `program` below `folder` that says `says` for its version.
pub(super) fn renamed(program: &Path, says: &str, folder: &Path) -> Result<PathBuf> {
    let version = version_of(program)?;
    let mut bytes =
        fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
    let headers = shorten(&mut bytes, version.as_bytes(), says.as_bytes())?;
    ensure!(
        headers > 0,
        "{}: no string {version:?} to overwrite",
        program.display()
    );
    let copy = folder.join("dockerd");
    let text = folder.join("dockerd.bytes");
    fs::write(&text, bytes).with_context(|| format!("cannot write {}", text.display()))?;
    install(&text, &copy)?;
    let now = version_of(&copy)?;
    ensure!(now == says, "the copy says {now:?}, expected {says:?}");
    Ok(copy)
}

/// What a daemon calls itself: `Docker version 20.10.24+dfsg1, build 5d6db84`.
fn version_of(program: &Path) -> Result<String> {
    let output = Command::new(program)
        .arg("--version")
        .output()
        .with_context(|| format!("cannot run {}", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = text
        .strip_prefix("Docker version ")
        .and_then(|rest| rest.split(',').next());
    version
        .map(str::to_owned)
        .with_context(|| format!("no version in {text:?}"))
}

/// Overwrites every string that is `old` with `new`; how many headers there were.
fn shorten(bytes: &mut [u8], old: &[u8], new: &[u8]) -> Result<usize> {
    ensure!(
        !old.is_empty() && new.len() <= old.len(),
        "{} bytes do not fit into {}",
        new.len(),
        old.len()
    );
    // File offsets to overwrite: with a length, with the text.
    let mut edits = Vec::new();
    {
        let image = object::File::parse(&*bytes).context("not an ELF file")?;
        let segments: Vec<_> = image
            .segments()
            .filter_map(|s| Some((s.address(), s.file_range().0, s.data().ok()?)))
            .collect();
        let offset_of = |address: u64| {
            segments
                .iter()
                .find(|(start, _, data)| {
                    (*start..start.saturating_add(data.len() as u64)).contains(&address)
                })
                .and_then(|(start, offset, _)| usize::try_from(offset + (address - start)).ok())
        };
        let texts: BTreeSet<u64> = segments
            .iter()
            .flat_map(|(start, _, data)| {
                positions(data, old)
                    .into_iter()
                    .map(move |at| start + at as u64)
            })
            .collect();

        let mut headers = BTreeMap::new();
        for (at, relocation) in image.dynamic_relocations().into_iter().flatten() {
            let target = u64::try_from(relocation.addend()).unwrap_or(0);
            if texts.contains(&target) {
                headers.insert(at, target);
            }
        }
        for (start, _, data) in &segments {
            for (at, word) in data.chunks_exact(8).enumerate() {
                let target = u64::from_le_bytes(word.try_into().context("a word has 8 bytes")?);
                if texts.contains(&target) {
                    headers.insert(start + 8 * at as u64, target);
                }
            }
        }
        for (header, text) in headers {
            let (Some(length), Some(text)) = (offset_of(header + 8), offset_of(text)) else {
                continue;
            };
            if bytes.get(length..length + 8) == Some(&(old.len() as u64).to_le_bytes()) {
                edits.push((length, text));
            }
        }
    }
    for (length, text) in &edits {
        bytes[*length..length + 8].copy_from_slice(&(new.len() as u64).to_le_bytes());
        bytes[*text..text + new.len()].copy_from_slice(new);
    }
    Ok(edits.len())
}

/// Where `needle` occurs.
fn positions(hay: &[u8], needle: &[u8]) -> Vec<usize> {
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(at) = hay[from..].iter().position(|b| *b == needle[0]) {
        if hay[from + at..].starts_with(needle) {
            found.push(from + at);
        }
        from += at + 1;
    }
    found
}
