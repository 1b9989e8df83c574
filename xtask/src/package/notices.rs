//! The licence texts of the crates in the program, which most licences ask to be passed on with it.
//!
//! Crates with the same text share it. A crate without a text of its own is listed with the licence that
//! its manifest names.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::crates::{Crate, Id};
use crate::dist::{entries, read};

/// How files with the text of a licence or with notices are called, in small letters.
const NAMES: [&str; 6] = [
    "license",
    "licence",
    "copying",
    "copyright",
    "notice",
    "unlicense",
];
const LINE: &str =
    "\n--------------------------------------------------------------------------------\n";

/// All texts, each below the crates that have it.
pub(crate) fn text(crates: &BTreeMap<Id, Crate>) -> Result<String> {
    let mut holders: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut without = String::new();
    // The crates of this workspace have the licence of the whole.
    let foreign = crates.iter().filter(|(_, found)| found.checksum.is_some());
    for (id, found) in foreign {
        let license = found.about.license.as_deref().unwrap_or("(none named)");
        let holder = format!("{} {}: {license}", id.name, id.version);
        let files = files(found.about.folder()?)?;
        if files.is_empty() {
            without += &format!("{holder}\n");
        }
        for file in files {
            let bytes = read(&file)?;
            let text = String::from_utf8_lossy(&bytes).trim().replace("\r\n", "\n");
            holders.entry(text).or_default().insert(holder.clone());
        }
    }
    let mut page = String::from(
        "gpuacct contains the following crates. Each is listed with its licence and above the texts \
         that come with it.\n",
    );
    for (text, holders) in holders {
        let holders: Vec<String> = holders.into_iter().collect();
        page += &format!("{LINE}{}\n\n{text}\n", holders.join("\n"));
    }
    if !without.is_empty() {
        page += &format!("{LINE}These come without a text of their licence:\n{without}");
    }
    Ok(page)
}

/// The files of a folder that have the text of a licence, in order.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in entries(folder)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let name = name.to_lowercase();
        if path.is_file() && NAMES.iter().any(|known| name.starts_with(known)) {
            files.push(path);
        }
    }
    Ok(files)
}
