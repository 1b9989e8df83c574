//! The pages for those who come from another exporter (`docs/migration`): each is what its table makes,
//! names what `docs/METRICS.md` has, and has every family that is served under the other exporter's names.
//!
//! `GPUACCT_UPDATE_DOCS=1` writes the pages.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use gpuacct::outputs::instruments::{Instrument, cadvisor, dcgm};
use gpuacct_tests::promql::{Names, documented};
use gpuacct_tests::requirement::require;
use gpuacct_tests::web::newest;
use serde::Deserialize;

/// The pages, with the section of the configuration that serves the other exporter's names, and those.
const PAGES: [(&str, &str, &[Instrument]); 2] = [
    ("dcgm-exporter", "[dcgm]", dcgm::FAMILIES),
    ("cadvisor", "[cadvisor]", cadvisor::FAMILIES),
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    title: String,
    intro: String,
    metrics: Vec<Metric>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Metric {
    /// What the other exporter calls it.
    theirs: String,
    /// The section of the configuration that serves it under that name.
    served: Option<String>,
    /// What has the figure here; nothing if it is not read.
    ours: Vec<String>,
    /// What differs in meaning, unit or shape.
    difference: String,
    /// A query as it was.
    before: Option<String>,
    /// The same question here.
    after: Option<String>,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/migration")
}

fn table(page: &str) -> Table {
    let text = fs::read_to_string(folder().join(format!("{page}.yaml"))).unwrap();
    serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{page}: {error}"))
}

/// A text of the table as Markdown: metrics as code, so that their underscores are no emphasis.
fn marked(text: &str) -> String {
    let words = text.split(' ').map(|word| {
        let end = word.trim_end_matches([',', ';', '.', ':']).len();
        let (word, rest) = word.split_at(end);
        if word.contains('_') || word.contains('=') || word.contains('[') {
            format!("`{word}`{rest}")
        } else {
            format!("{word}{rest}")
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

fn page(name: &str, table: &Table) -> String {
    let mut page = format!(
        "# {}\n\n<!-- Generated from {name}.yaml: GPUACCT_UPDATE_DOCS=1 cargo test -p gpuacct-tests --test it migration -->\n\n{}\n",
        table.title, table.intro
    );
    page += "| theirs | here | what differs |\n|---|---|---|\n";
    for metric in &table.metrics {
        let ours = metric.ours.iter().map(|name| format!("`{name}`"));
        let ours = match metric.ours[..] {
            [] => "–".to_owned(),
            _ => ours.collect::<Vec<_>>().join(" "),
        };
        let served = metric.served.as_ref();
        let served = served.map_or_else(String::new, |by| format!(" (served with `{by}`)"));
        let difference = marked(&metric.difference);
        writeln!(
            page,
            "| `{}`{served} | {ours} | {difference} |",
            metric.theirs
        )
        .unwrap();
    }
    page += "\n## Queries\n";
    for metric in &table.metrics {
        let Some(after) = &metric.after else { continue };
        write!(page, "\n`{}`:\n\n```promql\n", metric.theirs).unwrap();
        if let Some(before) = &metric.before {
            writeln!(page, "# before\n{before}\n# here\n{after}\n```").unwrap();
        } else {
            writeln!(page, "{after}\n```").unwrap();
        }
    }
    page
}

#[test]
fn the_pages_are_what_their_tables_make() {
    for (name, _, _) in PAGES {
        let made = page(name, &table(name));
        let file = folder().join(format!("{name}.md"));
        if std::env::var_os("GPUACCT_UPDATE_DOCS").is_some() {
            fs::write(&file, &made).unwrap();
        }
        let found = fs::read_to_string(&file).unwrap_or_default();
        assert!(
            found == made,
            "docs/migration/{name}.md is stale: GPUACCT_UPDATE_DOCS=1 cargo test -p gpuacct-tests \
             --test it migration"
        );
    }
}

#[test]
fn every_metric_is_named_once_and_every_one_of_ours_exists() {
    let documented = documented().unwrap();
    for (page, section, families) in PAGES {
        let table = table(page);
        let mut theirs = BTreeSet::new();
        let mut served = BTreeSet::new();
        for metric in &table.metrics {
            assert!(theirs.insert(&*metric.theirs), "{} twice", metric.theirs);
            assert!(metric.difference.ends_with('.'), "{}", metric.theirs);
            assert_eq!(
                metric.ours.is_empty(),
                metric.after.is_none(),
                "{}",
                metric.theirs
            );
            for ours in &metric.ours {
                assert!(documented.contains_key(ours), "{}: {ours}", metric.theirs);
            }
            for word in metric.difference.split(' ') {
                let word = word.trim_end_matches([',', ';', '.']);
                let is_known = documented.contains_key(word);
                assert!(is_known || !word.starts_with("gpuacct_"), "{word}");
            }
            if let Some(by) = &metric.served {
                assert_eq!(by, section);
                served.insert(&*metric.theirs);
            }
        }
        let families: BTreeSet<&str> = families.iter().map(|family| family.name).collect();
        assert_eq!(served, families, "{page}: what is served under their names");
    }
}

#[test]
fn the_queries_are_promql_and_ours_name_what_exists() {
    let Some(program) = require("prometheus-new", newest("prometheus")) else {
        return;
    };
    let names = Names::start(&program).unwrap();
    for (page, _, _) in PAGES {
        for metric in table(page).metrics {
            if let Some(before) = &metric.before {
                names.parse(before).unwrap();
                assert!(before.contains(&metric.theirs), "{before}");
            }
            let Some(after) = &metric.after else { continue };
            names.labels(after).unwrap();
            let is_ours = metric.ours.iter().any(|ours| after.contains(ours));
            assert!(is_ours, "{}: {after}", metric.theirs);
        }
    }
}
