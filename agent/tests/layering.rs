//! Checks which module may import which, by reading the source files.
//!
//! Sources, core and outputs meet only in `core::model`, `core::amounts`, `core::input`,
//! `core::snapshot`, `core::explanation` and `core::records`; sources and outputs also in `published`,
//! which names these nouns of the core and nothing else. Two sources never import each other, nor do
//! two outputs; what they share is listed below. The core performs no I/O, reads no clock and does not
//! await. Only `app` sees everything.
//!
//! No circle of files: if a file names another one, that one does not name it, not over others
//! either. Then each file can be read and understood after the files that it names. Code in a module
//! `tests` is left out, since a test may name whatever it likes.
//!
//! The core is a crate of its own, so its manifest shows that it depends on nothing that reaches
//! outside. What the standard library offers is refused here. Sources and outputs are one crate: a
//! crate for each would need a public API between files that change together. So their paths are
//! read here, from `use` trees and from expressions, without comments and strings. This is no Rust
//! parser: if a module is renamed by `use … as`, the `use` is seen and the call is not.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// Parts of the core that the other layers may name.
const MEETING_POINTS: [&str; 6] = [
    "amounts",
    "explanation",
    "input",
    "model",
    "records",
    "snapshot",
];
/// What sources share. None is a source: a reading of two clocks, what connects a source to the agent,
/// how it reports its state, how long it waits, and how texts are made fit.
const SHARED_BY_SOURCES: [&str; 5] = ["clock", "Io", "health", "identity", "retry"];
/// The files of `identity` that are sources; the rest of it is theirs in common.
const SOURCES_OF_IDENTITY: [&str; 5] = ["bundle", "cri", "docker", "kubelet_logs", "pod_resources"];
/// The outputs. The other files beside them are tables and helpers that outputs share.
const OUTPUTS: [&str; 5] = ["otlp", "prometheus", "socket", "store", "telemetry"];
/// Crates that reach outside the process, or wait; the core must run without a kernel and a GPU.
const REFUSED_BY_CORE: [&str; 21] = [
    "aya",
    "aya_log",
    "axum",
    "futures_util",
    "gpuacct_proto",
    "hyper",
    "hyper_util",
    "libc",
    "nvml_wrapper",
    "nvml_wrapper_sys",
    "opentelemetry",
    "opentelemetry_appender_tracing",
    "opentelemetry_otlp",
    "opentelemetry_proto",
    "opentelemetry_sdk",
    "prost",
    "reqwest",
    "rusqlite",
    "rustix",
    "tokio",
    "tonic",
];
/// Parts of the standard library that do the same.
const REFUSED_STD: [&str; 7] = ["env", "fs", "io", "net", "os", "process", "thread"];
const REFUSED_CLOCKS: [&str; 2] = ["Instant", "SystemTime"];

/// A path as it is written somewhere, resolved as far as its text allows.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Named {
    line: usize,
    /// The module that names it, from the crate's root.
    by: Vec<String>,
    /// What is named: from the crate's root if `local`, from an external crate if not.
    path: Vec<String>,
    local: bool,
}

#[derive(Debug, PartialEq, Eq)]
struct Breach {
    file: PathBuf,
    line: usize,
    what: String,
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file.display(), self.line, self.what)
    }
}

/// Why `named` may not be named there, if so.
fn refusal(named: &Named) -> Option<String> {
    let by: Vec<&str> = named.by.iter().map(String::as_str).collect();
    let path: Vec<&str> = named.path.iter().map(String::as_str).collect();
    let shown = named.path.join("::");
    let layer = by.first().copied().unwrap_or("lib");
    if !named.local {
        return (layer == "core" && refused_by_core(&path))
            .then(|| format!("the core names `{shown}`, which reaches outside"));
    }
    let to = *path.first()?;
    // A test may hold two sources, or two outputs, against each other.
    let is_test = by.contains(&"tests");
    match (layer, to) {
        ("core", "core") => None,
        ("core", _) => Some(format!("the core names `{shown}`")),
        ("sources" | "outputs" | "published", "core") => {
            let part = path.get(1).copied().unwrap_or("*");
            (!MEETING_POINTS.contains(&part)).then(|| {
                format!("`{layer}` names `{shown}`; it meets the core only in {MEETING_POINTS:?}")
            })
        }
        ("sources", "sources") => {
            let (own, other) = (source(&by), source(&path));
            let is_allowed = other.is_none() || own == other || by.len() == 1 || is_test;
            (!is_allowed).then(|| format!("a source names another one: `{shown}`"))
        }
        ("outputs", "outputs") => {
            let (own, other) = (by.get(1), path.get(1));
            let is_output = other.is_some_and(|other| OUTPUTS.contains(other));
            (is_output && own != other && own.is_some() && !is_test)
                .then(|| format!("an output is named by another file of outputs: `{shown}`"))
        }
        ("published", _) => Some(format!(
            "`published` names `{shown}`; it is nouns for sources and outputs"
        )),
        // The registry of modules, and the one place where everything is wired.
        ("lib" | "app", _) => None,
        (_, "sources") => Some(format!(
            "`{layer}` names `{shown}`; only `app` sees the sources"
        )),
        ("sources" | "config", "outputs")
        | ("sources" | "outputs" | "config", "app" | "commands") => Some(format!(
            "`{layer}` names `{shown}`, which is downstream of it"
        )),
        _ => None,
    }
}

/// The source that a module belongs to; none for what sources share.
fn source<'a>(module: &[&'a str]) -> Option<&'a str> {
    let second = module.get(1).copied()?;
    if second == "identity" {
        // Each file in there asks somebody else.
        return module
            .get(2)
            .copied()
            .filter(|third| SOURCES_OF_IDENTITY.contains(third));
    }
    (!SHARED_BY_SOURCES.contains(&second)).then_some(second)
}

fn refused_by_core(path: &[&str]) -> bool {
    match path {
        ["std", "time", item, ..] => REFUSED_CLOCKS.contains(item),
        ["std", module, ..] => REFUSED_STD.contains(module),
        [krate, ..] => REFUSED_BY_CORE.contains(krate),
        [] => false,
    }
}

/// What breaks the rules in a file at `relative` (from the crate's `src`).
fn breaches(relative: &Path, text: &str) -> Vec<Breach> {
    let module = module_of(relative);
    let tokens = tokens(text);
    let breach = |line, what| Breach {
        file: relative.to_owned(),
        line,
        what,
    };
    let waits = tokens
        .iter()
        .filter(|token| matches!(token.text, "async" | "await"))
        .filter(|_| module.first().is_some_and(|layer| layer == "core"))
        .map(|token| breach(token.line, "the core waits".to_owned()));
    named(&module, &tokens)
        .iter()
        .filter_map(|named| Some(breach(named.line, refusal(named)?)))
        .chain(waits)
        .collect()
}

/// `core/ledger.rs` is `core::ledger`, `sources/gpu/mod.rs` is `sources::gpu`, `lib.rs` the root.
fn module_of(relative: &Path) -> Vec<String> {
    let mut module: Vec<String> = relative
        .with_extension("")
        .components()
        .map(|part| part.as_os_str().to_string_lossy().into_owned())
        .collect();
    if module
        .last()
        .is_some_and(|last| matches!(last.as_str(), "mod" | "lib" | "main"))
    {
        module.pop();
    }
    module
}

/// Which file names which other files, by their modules. `files` are modules and texts.
fn graph(files: &BTreeMap<Vec<String>, String>) -> BTreeMap<String, BTreeSet<String>> {
    let file_of = |path: &[String]| {
        (0..=path.len())
            .rev()
            .find(|length| files.contains_key(&path[..*length]))
            .map(|length| path[..length].to_vec())
    };
    let shown = |module: &[String]| module.join("::");
    files
        .iter()
        .map(|(module, text)| {
            let names = named(module, &tokens(text));
            let names = names.into_iter().filter(|named| !is_of_a_test(&named.by));
            let to = names.filter_map(|named| {
                if named.local {
                    return file_of(&named.path);
                }
                // `child::item` where a child of this module is a file.
                let mut below = named.by;
                below.push(named.path.first()?.clone());
                files.contains_key(&below).then_some(())?;
                below.extend(named.path.into_iter().skip(1));
                file_of(&below)
            });
            // The crate's root declares modules and is named by nobody for what it holds.
            let to = to.filter(|to| to != module && !to.is_empty());
            (shown(module), to.map(|to| shown(&to)).collect())
        })
        .collect()
}

fn is_of_a_test(module: &[String]) -> bool {
    module
        .iter()
        .any(|part| part == "tests" || part.ends_with("_tests"))
}

/// Sets of files of which each reaches each other.
fn circles(graph: &BTreeMap<String, BTreeSet<String>>) -> Vec<Vec<String>> {
    let reached = |from: &String| {
        let mut reached = BTreeSet::new();
        let mut next: Vec<&String> = graph.get(from).into_iter().flatten().collect();
        while let Some(file) = next.pop() {
            if reached.insert(file.clone()) {
                next.extend(graph.get(file).into_iter().flatten());
            }
        }
        reached
    };
    let all: BTreeMap<&String, BTreeSet<String>> =
        graph.keys().map(|file| (file, reached(file))).collect();
    let circle_of = |file: &String| -> Vec<String> {
        let mutual = all[file]
            .iter()
            .filter(|other| all.get(other).is_some_and(|back| back.contains(file)));
        mutual.cloned().collect()
    };
    let found: BTreeSet<Vec<String>> = graph.keys().map(circle_of).collect();
    found
        .into_iter()
        .filter(|circle| circle.len() > 1)
        .collect()
}

/// All paths of two or more parts.
fn named(module: &[String], tokens: &[Token<'_>]) -> Vec<Named> {
    let mut found = Vec::new();
    let mut by = module.to_vec();
    // Where each inline module ends: the depth of braces at which it began.
    let mut inline = Vec::new();
    let mut depth = 0_usize;
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        match token.text {
            "{" => depth += 1,
            "}" => {
                depth = depth.saturating_sub(1);
                if inline.last() == Some(&depth) {
                    inline.pop();
                    by.pop();
                }
            }
            "mod" if tokens.get(at + 2).is_some_and(|next| next.text == "{") => {
                by.push(tokens[at + 1].text.to_owned());
                inline.push(depth);
                depth += 1;
                at += 3;
                continue;
            }
            _ => {
                let begins = is_name(token.text)
                    && tokens.get(at + 1).is_some_and(|next| next.text == "::")
                    && (at == 0 || tokens[at - 1].text != "::");
                if begins {
                    let mut paths = Vec::new();
                    at = tree(tokens, at, &mut Vec::new(), &mut paths);
                    found.extend(
                        paths
                            .into_iter()
                            .map(|(line, path)| resolve(&by, line, &path)),
                    );
                    continue;
                }
            }
        }
        at += 1;
    }
    found
}

/// Reads a path or `use` tree from `at`; gives where it ends.
fn tree<'a>(
    tokens: &[Token<'a>],
    mut at: usize,
    prefix: &mut Vec<&'a str>,
    found: &mut Vec<(usize, Vec<&'a str>)>,
) -> usize {
    let outer = prefix.len();
    let line = tokens[at].line;
    loop {
        match tokens.get(at).map(|token| token.text) {
            Some("{") => {
                at += 1;
                while let Some(token) = tokens.get(at) {
                    match token.text {
                        "}" => break,
                        "," => at += 1,
                        _ => {
                            let next = tree(tokens, at, prefix, found);
                            // What is no tree (a block of code after `::`) must not hold us.
                            at = next.max(at + 1);
                        }
                    }
                }
                prefix.truncate(outer);
                return at + 1;
            }
            Some(name) if is_name(name) || name == "*" => {
                prefix.push(name);
                at += 1;
                if tokens.get(at).is_some_and(|next| next.text == "::") {
                    at += 1;
                    continue;
                }
                if tokens.get(at).is_some_and(|next| next.text == "as") {
                    at += 2;
                }
            }
            // A turbofish, a macro's variable: the path ends here.
            _ => {}
        }
        found.push((line, prefix.clone()));
        prefix.truncate(outer);
        return at;
    }
}

fn resolve(by: &[String], line: usize, path: &[&str]) -> Named {
    let mut base = Vec::new();
    let mut rest = path;
    let mut local = true;
    match path.first() {
        Some(&"crate") => rest = &path[1..],
        Some(&"self") => {
            base = by.to_vec();
            rest = &path[1..];
        }
        Some(&"super") => {
            base = by.to_vec();
            while let Some((&"super", after)) = rest.split_first() {
                base.pop();
                rest = after;
            }
        }
        _ => local = false,
    }
    base.extend(
        rest.iter()
            .filter(|part| **part != "self")
            .map(|part| (*part).to_owned()),
    );
    Named {
        line,
        by: by.to_vec(),
        path: base,
        local,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Token<'a> {
    line: usize,
    text: &'a str,
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// Names, `::` and single characters; comments, strings, characters, lifetimes and numbers are left
/// out.
fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut found = Vec::new();
    let mut rest = text;
    let mut line = 1;
    while let Some(first) = rest.chars().next() {
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if let Some(length) = string(rest) {
            length
        } else if first == '\'' {
            quote(rest)
        } else if first.is_ascii_digit() {
            run(rest)
        } else if is_name(rest) {
            let length = run(rest);
            found.push(Token {
                line,
                text: rest[..length].trim_start_matches("r#"),
            });
            length
        } else if first.is_whitespace() {
            first.len_utf8()
        } else {
            let length = if rest.starts_with("::") {
                2
            } else {
                first.len_utf8()
            };
            found.push(Token {
                line,
                text: &rest[..length],
            });
            length
        };
        line += rest[..length].matches('\n').count();
        rest = &rest[length..];
    }
    found
}

/// How long a run of letters, digits and underscores is, a raw name's mark included.
fn run(rest: &str) -> usize {
    let mark = if rest.starts_with("r#") { 2 } else { 0 };
    rest[mark..]
        .find(|c: char| !(c.is_alphanumeric() || c == '_'))
        .map_or(rest.len(), |length| mark + length)
}

/// Block comments nest.
fn block_comment(rest: &str) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while at < rest.len() {
        let here = &rest.as_bytes()[at..];
        if here.starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if here.starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    rest.len()
}

/// The length of a string literal that begins here, raw, byte and C strings included.
fn string(rest: &str) -> Option<usize> {
    let prefix = rest
        .find(|c| !matches!(c, 'b' | 'c' | 'r'))
        .filter(|length| *length <= 2)?;
    let after = &rest[prefix..];
    let hashes = after.len() - after.trim_start_matches('#').len();
    let is_raw = rest[..prefix].contains('r');
    if !after[hashes..].starts_with('"') || (hashes > 0 && !is_raw) {
        return None;
    }
    let start = prefix + hashes + 1;
    if is_raw {
        let end = format!("\"{}", "#".repeat(hashes));
        let length = rest[start..].find(&end).map(|at| start + at + end.len());
        return Some(length.unwrap_or(rest.len()));
    }
    let mut escaped = false;
    for (at, c) in rest[start..].char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return Some(start + at + 1),
            _ => {}
        }
    }
    Some(rest.len())
}

/// The length of a character literal, or of a lifetime.
fn quote(rest: &str) -> usize {
    let mut after = rest[1..].char_indices();
    match (after.next(), after.next()) {
        (Some((_, '\\')), Some(_)) => rest[3..].find('\'').map_or(rest.len(), |at| 3 + at + 1),
        (Some(_), Some((at, '\''))) => 1 + at + 1,
        _ => 1 + run(&rest[1..]),
    }
}

fn rust_files(below: &Path, found: &mut BTreeSet<PathBuf>) {
    let entries =
        fs::read_dir(below).unwrap_or_else(|error| panic!("{}: {error}", below.display()));
    for entry in entries {
        let path = entry
            .expect("a folder that can be opened can be listed")
            .path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.insert(path);
        }
    }
}

/// The text of every file of the agent, by its path from `src`. The core is a crate of its own; its
/// files are read as those of the module by which the agent names it.
fn sources_read() -> Vec<(PathBuf, String)> {
    let agent = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut read = Vec::new();
    for (src, module) in [("src", None), ("core/src", Some("core"))] {
        let src = agent.join(src);
        let mut files = BTreeSet::new();
        rust_files(&src, &mut files);
        for file in files {
            let relative = file.strip_prefix(&src).expect("it was found below it");
            let text = fs::read_to_string(&file)
                .unwrap_or_else(|error| panic!("{}: {error}", file.display()));
            read.push(match module {
                None => (relative.to_owned(), text),
                Some(module) => (
                    Path::new(module).join(relative),
                    text.replace("crate::", &format!("crate::{module}::")),
                ),
            });
        }
    }
    read
}

#[test]
fn the_layers_meet_only_where_they_may() {
    let files = sources_read();
    for layer in ["core", "outputs", "sources"] {
        assert!(
            files.iter().any(|(file, _)| file.starts_with(layer)),
            "no file in {layer}: the rules below would hold of nothing"
        );
    }
    let mut breaches_found = Vec::new();
    let mut paths_read = 0;
    for (relative, text) in &files {
        paths_read += named(&module_of(relative), &tokens(text)).len();
        breaches_found.extend(breaches(relative, text));
    }
    assert!(
        paths_read > files.len(),
        "{paths_read} paths in {} files",
        files.len()
    );
    let report: Vec<_> = breaches_found
        .iter()
        .map(|breach| format!("src/{breach}"))
        .collect();
    assert!(report.is_empty(), "\n{}", report.join("\n"));
}

#[test]
fn no_files_name_each_other_in_a_circle() {
    let files = sources_read();
    let files = files
        .into_iter()
        .map(|(relative, text)| (module_of(&relative), text));
    let graph = graph(&files.collect());
    assert!(
        graph.values().map(BTreeSet::len).sum::<usize>() > graph.len(),
        "hardly a file names another one: the rule would hold of nothing"
    );
    let found = circles(&graph);
    let mut report = Vec::new();
    for circle in &found {
        report.push("a circle of files:".to_owned());
        for file in circle {
            let to = graph[file].iter().filter(|to| circle.contains(to));
            let to: Vec<_> = to.map(String::as_str).collect();
            report.push(format!("    {file} names {}", to.join(", ")));
        }
    }
    assert!(report.is_empty(), "\n{}", report.join("\n"));
}

#[test]
fn a_circle_is_found_over_other_files_and_not_through_tests() {
    for (files, expected) in [
        (
            vec![
                ("core/a.rs", "use super::b::B;"),
                ("core/b.rs", "use crate::core::c::C;"),
                ("core/c.rs", "fn f() { crate::core::a::f() }"),
                ("core/d.rs", "use super::a::A;"),
            ],
            vec!["core::a core::b core::c"],
        ),
        (
            vec![
                ("sources/x/mod.rs", "mod y; pub use y::Y; pub struct X;"),
                ("sources/x/y.rs", "use super::X;"),
            ],
            vec!["sources::x sources::x::y"],
        ),
        // A parent that only declares a child does not name it.
        (
            vec![
                ("sources/x.rs", "mod y; pub struct X;"),
                ("sources/x/y.rs", "use super::X;"),
            ],
            vec![],
        ),
        (
            vec![
                ("core/a.rs", "use super::b::B; mod tests { use super::*; }"),
                ("core/b.rs", "mod tests { use crate::core::a::A; }"),
                ("core/b/tests.rs", "use super::B; use crate::core::a::A;"),
            ],
            vec![],
        ),
    ] {
        let files = files
            .iter()
            .map(|(file, text)| (module_of(Path::new(file)), (*text).to_owned()));
        let found = circles(&graph(&files.collect()));
        let found: Vec<_> = found.iter().map(|circle| circle.join(" ")).collect();
        assert_eq!(found, expected);
    }
}

#[test]
fn each_rule_can_be_broken() {
    for (file, text, expected) in [
        ("core/ledger.rs", "use super::model::Nanos;", None),
        ("core/ledger.rs", "use std::time::Duration;", None),
        (
            "core/ledger.rs",
            "use std::{mem, time::Instant};",
            Some("reaches outside"),
        ),
        (
            "core/ledger.rs",
            "fn f() { std::fs::read(x); }",
            Some("`std::fs::read`"),
        ),
        (
            "core/ledger.rs",
            "use tokio::sync::mpsc;",
            Some("reaches outside"),
        ),
        (
            "core/ledger.rs",
            "use crate::config::Config;",
            Some("the core names `config"),
        ),
        (
            "core/ledger.rs",
            "mod tests { use super::super::super::app; }",
            Some("the core names `app`"),
        ),
        ("core/ledger.rs", "async fn f() {}", Some("the core waits")),
        (
            "core/mod.rs",
            "use super::sources::clock;",
            Some("the core names `sources::clock`"),
        ),
        (
            "sources/procfs.rs",
            "use crate::core::{input::Input, model::Pid};",
            None,
        ),
        (
            "sources/procfs.rs",
            "use crate::core::{input::Input,\n ledger::Ledger};",
            Some("core::ledger"),
        ),
        (
            "sources/procfs.rs",
            "use crate::published::NamesBook;",
            None,
        ),
        ("outputs/otlp.rs", "use crate::published::Published;", None),
        ("published.rs", "use crate::core::snapshot::Snapshot;", None),
        (
            "published.rs",
            "use crate::core::source_states::SourceStates;",
            Some("core::source_states"),
        ),
        (
            "published.rs",
            "use crate::outputs::counters::OutputCounters;",
            Some("nouns for sources and outputs"),
        ),
        (
            "core/ledger.rs",
            "use crate::published::Published;",
            Some("the core names `published"),
        ),
        ("sources/procfs.rs", "use crate::sources::clock::now;", None),
        (
            "sources/procfs.rs",
            "use super::kernel::KernelSource;",
            Some("another one"),
        ),
        (
            "sources/procfs.rs",
            "mod tests { use super::super::kernel; }",
            None,
        ),
        (
            "sources/gpu/nvml.rs",
            "use super::window::{self, Windows};",
            None,
        ),
        (
            "sources/gpu/nvml.rs",
            "let x = crate::sources::procfs::scan();",
            Some("another one"),
        ),
        (
            "sources/clock.rs",
            "use super::kernel::KernelSource;",
            Some("another one"),
        ),
        (
            "sources/identity/docker.rs",
            "use super::{Counters, clean};",
            None,
        ),
        (
            "sources/identity/docker.rs",
            "use super::cri::Client;",
            Some("another one"),
        ),
        (
            "sources/procfs.rs",
            "use crate::outputs::socket;",
            Some("downstream"),
        ),
        (
            "outputs/otlp.rs",
            "use super::instruments::{self, Sink};",
            None,
        ),
        (
            "outputs/otlp.rs",
            "use super::{prometheus, ReadClock};",
            Some("outputs::prometheus"),
        ),
        (
            "outputs/otlp/request.rs",
            "use crate::outputs::otlp::Sender;",
            None,
        ),
        (
            "outputs/instruments.rs",
            "use super::socket::Query;",
            Some("outputs::socket"),
        ),
        (
            "outputs/socket.rs",
            "use crate::sources::procfs;",
            Some("only `app`"),
        ),
        (
            "commands/status.rs",
            "use crate::outputs::socket::StatusReport;",
            None,
        ),
        (
            "commands/status.rs",
            "use crate::sources::clock;",
            Some("only `app`"),
        ),
        (
            "config.rs",
            "use crate::outputs::prometheus;",
            Some("downstream"),
        ),
        (
            "app.rs",
            "use crate::{core::accountant, outputs::otlp, sources::procfs};",
            None,
        ),
        // What only looks like a path.
        (
            "core/a.rs",
            "// tokio::spawn\n/* /* tokio::a */ tokio::b */",
            None,
        ),
        (
            "core/a.rs",
            "let a = \"tokio::x \\\" tokio::y\"; let b = r#\"\" tokio::z\"#;",
            None,
        ),
        (
            "core/a.rs",
            "let a = ('\"', '\\'', b'\\\\', 'x'); fn f<'a>(x: &'a str) {} // tokio::x",
            None,
        ),
        ("core/a.rs", "let a = '\"'; tokio::x();", Some("`tokio::x`")),
        ("core/a.rs", "fn f<'a>() { tokio::x() }", Some("`tokio::x`")),
    ] {
        let found = breaches(Path::new(file), text);
        match expected {
            None => assert_eq!(found, [], "{file}: {text}"),
            Some(expected) => {
                let report = found.iter().map(ToString::to_string).collect::<Vec<_>>();
                assert!(
                    report.len() == 1 && report[0].contains(expected),
                    "{file}: {text:?} gave {report:?}"
                );
            }
        }
    }
}

#[test]
fn a_breach_is_reported_where_it_is() {
    let text = "//! Books.\n\nuse std::sync::Arc;\n\nmod tests {\n    use super::*;\n    use tokio::time;\n}\n";
    let found = breaches(Path::new("core/ledger.rs"), text);
    let report: Vec<_> = found.iter().map(ToString::to_string).collect();
    assert_eq!(
        report,
        ["core/ledger.rs:7: the core names `tokio::time`, which reaches outside"]
    );
}
