//! OPERATIONS says what to do about each class of failure of a source or an output. Classes are label
//! values, so what the code has and what the document explains must be the same.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("the folder is there") {
        let path = entry.expect("it can be read").path();
        let name = path.file_name().and_then(|name| name.to_str());
        if path.is_dir() {
            rust_files(&path, found);
        } else if name.is_some_and(|name| name.ends_with(".rs") && !name.contains("tests")) {
            found.push(path);
        }
    }
}

/// Whether a text is a class: small letters and underscores.
fn is_class(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|c| c.is_ascii_lowercase() || c == b'_')
}

/// The quoted words in a piece of code.
fn literals(code: &str) -> impl Iterator<Item = &str> {
    code.split('"')
        .skip(1)
        .step_by(2)
        .filter(|text| is_class(text))
}

/// The classes that a file gives to failures: what its functions `class` and `class_of` return, and
/// the literals of fields and variables with that name.
fn classes(code: &str) -> BTreeSet<String> {
    let code = code.split("#[cfg(test)]").next().unwrap_or_default();
    let mut found = BTreeSet::new();
    for name in ["fn class(", "fn class_of("] {
        for (at, _) in code.match_indices(name) {
            let line = code[..at].rfind('\n').map_or(0, |end| end + 1);
            let indent: String = code[line..].chars().take_while(|c| *c == ' ').collect();
            let body = &code[at..];
            let end = body.find(&format!("\n{indent}}}\n")).unwrap_or(body.len());
            found.extend(literals(&body[..end]).map(str::to_owned));
        }
    }
    for (at, before) in code.match_indices("class: \"") {
        let rest = &code[at + before.len()..];
        let class = rest.split('"').next().filter(|text| is_class(text));
        found.extend(class.map(str::to_owned));
    }
    found
}

#[test]
fn the_code_and_the_document_have_the_same_classes() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for folder in ["src/sources", "src/outputs", "src/app", "src/receiver"] {
        rust_files(&root.join(folder), &mut files);
    }
    let code = files
        .iter()
        .map(|file| fs::read_to_string(file).expect("it can be read"));
    let (mut in_code, mut quoted) = (BTreeSet::new(), BTreeSet::new());
    for code in code {
        in_code.extend(classes(&code));
        // Some classes are given in other ways.
        quoted.extend(literals(&code).map(str::to_owned));
    }

    let page = fs::read_to_string(root.join("../docs/OPERATIONS.md")).expect("it is there");
    let (_, section) = page
        .split_once("### Why a source is down")
        .expect("it has this section");
    let rows = section.lines().skip_while(|line| !line.starts_with('|'));
    let rows = rows.take_while(|line| line.starts_with('|')).skip(2);
    let mut in_page = BTreeSet::new();
    for row in rows {
        let cell = row.split('|').nth(2).unwrap_or_default();
        let words = cell.split('`').skip(1).step_by(2);
        // `as docker` refers to another row.
        let sources = ["docker", "cri", "bundle"];
        let words = words.filter(|word| !sources.contains(word));
        in_page.extend(words.map(str::to_owned));
    }
    let missing: Vec<&String> = in_code.difference(&in_page).collect();
    let unknown: Vec<_> = in_page.difference(&quoted).collect();
    assert!(
        missing.is_empty(),
        "classes that OPERATIONS does not explain: {missing:?}"
    );
    assert!(
        unknown.is_empty(),
        "classes in OPERATIONS that no code gives: {unknown:?}"
    );
}
