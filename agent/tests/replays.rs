//! Recorded and hand-made lives of an agent, lived again: the same lines must give the same books.
//!
//! `replays/NAME.jsonl` is what the core was told (`gpuacct agent --record-inputs FILE` writes such
//! a file), `replays/NAME.ledger` what it made of it. Run with `GPUACCT_UPDATE_GOLDEN=1` to rewrite
//! the latter, and read what has changed: each line of a ledger is a bill.
//!
//! `demo` is a run of `cargo xtask demo` on a node that was building meanwhile, less the processes
//! that had nothing to do with a GPU or a container. The others are as small as what they show.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use gpuacct::core::model::Nanos;
use gpuacct::core::replay::replay;
use gpuacct::core::snapshot::Snapshot;

/// What a snapshot says of money, as text.
fn ledger(snapshot: &Snapshot) -> String {
    let mut text = String::new();
    let mut line = |line: String| writeln!(text, "{line}").expect("a String takes everything");
    let reasons = |amounts: &[(&str, Nanos)]| {
        let amounts = amounts.iter().filter(|(_, amount)| !amount.is_zero());
        let amounts: Vec<String> = amounts
            .map(|(reason, amount)| format!("{reason} {}", seconds(*amount)))
            .collect();
        match amounts.is_empty() {
            true => "nothing".to_owned(),
            false => amounts.join(", "),
        }
    };
    for book in &snapshot.gpus {
        let unobserved = book.unobserved.iter().map(|(of, it)| (of.as_str(), *it));
        let unattributed = book.unattributed.iter().map(|(of, it)| (of.as_str(), *it));
        line(format!("gpu {}", book.gpu.uuid));
        line(format!(
            "  elapsed {} = busy {} + idle {} + unobserved ({})",
            seconds(book.elapsed),
            seconds(book.busy),
            seconds(book.idle),
            reasons(&unobserved.collect::<Vec<_>>())
        ));
        line(format!(
            "  unattributed ({}), pending {}, {} windows, imbalance {}",
            reasons(&unattributed.collect::<Vec<_>>()),
            seconds(book.pending),
            book.windows,
            book.imbalance
        ));
    }
    for account in &snapshot.accounts {
        let labels = &account.labels;
        line(format!(
            "account {} {}/{}/{} on {}: busy {}, {}{}",
            short(&account.labels.container_id),
            labels.namespace,
            labels.pod,
            labels.container,
            account.gpu,
            seconds(account.amounts.busy),
            account.attribution.as_str(),
            if account.ended { ", ended" } else { "" }
        ));
    }
    for series in &snapshot.container_series {
        let labels = &series.labels;
        line(format!(
            "series {} {}/{}/{} on {} from {}: {}",
            short(&labels.container_id),
            labels.namespace,
            labels.pod,
            labels.container,
            series.gpu,
            seconds(Nanos(series.start.0)),
            seconds(series.amounts.busy)
        ));
    }
    for series in &snapshot.host_series {
        let busy = seconds(series.amounts.busy);
        line(format!("host {} on {}: {busy}", series.unit, series.gpu));
    }
    for series in &snapshot.namespace_series {
        let busy = seconds(series.amounts.busy);
        line(format!(
            "namespace {} on {}: {busy}",
            series.namespace, series.gpu
        ));
    }
    let agent = &snapshot.agent;
    line(format!(
        "{} commits, {} scans, {} after a loss, {} windows not awaited, {} named late, {} refused",
        agent.commits,
        agent.scans,
        agent.rescans_after_loss,
        agent.windows_not_awaited,
        agent.named_late,
        agent.identities_refused
    ));
    let mended = [
        ("after a gap", agent.windows_after_gap),
        ("cut", agent.windows_cut),
        ("refused", agent.windows_refused),
    ];
    if mended.iter().any(|(_, count)| *count > 0) {
        let mended = mended.map(|(how, count)| format!("{count} {how}"));
        writeln!(text, "windows mended: {}", mended.join(", ")).expect("a String takes everything");
    }
    text
}

fn seconds(of: Nanos) -> String {
    format!("{}.{:09} s", of.0 / 1_000_000_000, of.0 % 1_000_000_000)
}

fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/replays")
}

#[test]
fn the_same_lines_give_the_same_books() {
    let mut recordings: Vec<PathBuf> = fs::read_dir(folder())
        .expect("the recordings are there")
        .map(|entry| entry.expect("a folder can be read").path())
        .filter(|path| path.extension().is_some_and(|of| of == "jsonl"))
        .collect();
    recordings.sort();
    assert!(recordings.len() >= 6, "{recordings:?}");
    for path in recordings {
        let shown = path.display();
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{shown}: {error}"));
        let mut last = None;
        let replayed = replay(&text, |snapshot| {
            for book in &snapshot.gpus {
                assert_eq!(book.imbalance, 0, "{shown}: {book:?}");
            }
            last = Some(snapshot);
        });
        if let Err(error) = replayed {
            panic!("{shown}: {error}: {:?}", std::error::Error::source(&error));
        }
        let found = ledger(&last.unwrap_or_else(|| panic!("{shown}: no commit")));
        let golden = path.with_extension("ledger");
        if std::env::var_os("GPUACCT_UPDATE_GOLDEN").is_some() {
            fs::write(&golden, &found).expect("the ledger can be written");
        }
        let expect = fs::read_to_string(&golden).unwrap_or_default();
        assert!(
            found == expect,
            "{}: expected\n{expect}\nfound\n{found}",
            golden.display()
        );
    }
}
