//! The glossary names types and files that exist, and the documents name files that exist.

use std::fs;
use std::path::{Path, PathBuf};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The texts between backticks in a line.
fn quoted(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

/// Whether a word stands in a text by itself.
fn has_word(text: &str, word: &str) -> bool {
    let is_part = |byte: Option<&u8>| byte.is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_');
    text.match_indices(word).any(|(at, _)| {
        let bytes = text.as_bytes();
        let before = at.checked_sub(1).and_then(|before| bytes.get(before));
        !is_part(before) && !is_part(bytes.get(at + word.len()))
    })
}

/// Whether a text defines a name: a type, a function, or a name in the list of a macro.
fn defines(text: &str, name: &str) -> bool {
    let kinds = ["struct", "enum", "type", "trait", "fn", "const"];
    let by_macro = text
        .lines()
        .any(|line| line.trim_end_matches(',').trim() == name);
    by_macro
        || kinds
            .iter()
            .any(|kind| has_word(text, &format!("{kind} {name}")))
}

#[test]
fn every_term_of_the_glossary_is_defined_in_the_file_that_it_names() {
    let glossary = read(&repository().join("docs/GLOSSARY.md"));
    let mut terms = 0;
    let mut wrong = Vec::new();
    for line in glossary.lines().filter(|line| line.starts_with("| ")) {
        let Some(code) = line.trim_end_matches(" |").rsplit(" | ").next() else {
            continue;
        };
        let mut quoted = quoted(code);
        let (Some(name), Some(file)) = (quoted.next(), quoted.next()) else {
            continue;
        };
        terms += 1;
        let path = repository().join("agent").join(file);
        let Ok(text) = fs::read_to_string(&path) else {
            wrong.push(format!("{name}: there is no {file}"));
            continue;
        };
        let mut words = name.split("::");
        let is_defined = words.next().is_some_and(|first| defines(&text, first));
        if !is_defined || words.any(|member| !has_word(&text, member)) {
            wrong.push(format!("{name}: {file} does not define it"));
        }
    }
    assert!(terms >= 25, "{terms} terms were read");
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn the_documents_name_files_that_exist() {
    let roots = ["", "agent", "agent/src", "agent/core", "docs"];
    let mut named = 0;
    let mut missing = Vec::new();
    let adr = fs::read_dir(repository().join("docs/adr")).expect("the decisions");
    let adr = adr.map(|entry| entry.expect("an entry").path());
    let docs = ["ARCHITECTURE.md", "GLOSSARY.md", "SECURITY.md"];
    let docs = docs.map(|name| repository().join("docs").join(name));
    for document in docs.into_iter().chain(adr) {
        let text = read(&document);
        let is_merged = |line: &str| !line.starts_with("<<<<<<<") && !line.starts_with(">>>>>>>");
        assert!(text.lines().all(is_merged), "{}", document.display());
        for path in text.lines().flat_map(quoted) {
            if !path.ends_with(".rs") || path.contains(['{', ' ', '*']) {
                continue;
            }
            named += 1;
            // A walk names a file once with its folder, and then by its name.
            let is_short = !path.contains('/');
            let exists = |root: &&str| repository().join(root).join(path).exists();
            if !is_short && !roots.iter().any(exists) {
                missing.push(format!("{}: {path}", document.display()));
            }
        }
    }
    assert!(named >= 30, "{named} files were named");
    assert!(missing.is_empty(), "\n{}", missing.join("\n"));
}
