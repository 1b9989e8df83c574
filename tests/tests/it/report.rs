//! `gpuacct report` as it is typed, over ledgers that the store's own writer wrote.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use gpuacct::core::amounts::{Amounts, ByteSeconds, Engines, Millijoules};
use gpuacct::core::model::{Nanos, UnattributedReason, UnobservedReason, WallTime};
use gpuacct_tests::agent;
use gpuacct_tests::daemon::install;
use gpuacct_tests::ledger::{NODE, Past, Payer};
use gpuacct_tests::node::Node;
use gpuacct_tests::terminal::Terminal;
use rusqlite::Connection;
use rust_decimal::Decimal;
use tempfile::TempDir;

pub(crate) const A100: &str = "NVIDIA A100-SXM4-80GB";
pub(crate) const H100: &str = "NVIDIA H100 80GB HBM3";
/// The hours that the past is about; the last one is not over.
pub(crate) const RANGE: [&str; 4] = [
    "--since",
    "2026-01-31T06:00:00Z",
    "--until",
    "2026-01-31T09:00:00Z",
];

pub(crate) fn minutes(n: u64) -> Nanos {
    Nanos::from_secs(60 * n)
}

pub(crate) fn used(busy: u64, allocated: u64) -> Amounts {
    Amounts {
        busy: minutes(busy),
        engines: Engines {
            decoder: minutes(busy / 2),
            ..Engines::default()
        },
        held: minutes(allocated),
        allocated: minutes(allocated),
        allocated_share: minutes(allocated),
        memory: ByteSeconds(u128::from(busy) * 60 * (3 << 30)),
        energy: Millijoules(busy * 60 * 300_000 + 1),
    }
}

/// Three hours on two GPUs, the last until half past eight. The writer is still at work.
pub(crate) fn past(directory: &Path) -> Past {
    past_on(NODE, "2026-01-31T06:00:00Z", directory)
}

/// The same three hours on a node, from a time on.
pub(crate) fn past_on(node: &str, begin: &str, directory: &Path) -> Past {
    let begin: jiff::Timestamp = begin.parse().unwrap();
    let begin = WallTime(u64::try_from(begin.as_nanosecond()).unwrap());
    let mut past = Past::begin_on(node, directory, begin, &[A100, H100]).unwrap();
    past.commit(Nanos::ZERO).unwrap();
    let train = past.open(
        0,
        &Payer::Named {
            name: "research/train-0/trainer",
            image: "registry/train:1, with a comma",
            labels: &[("team", "vision"), ("empty", "")],
        },
    );
    let chat = past.open(
        1,
        &Payer::Named {
            name: "serving/chat-1/=cmd|' /C calc'!A0",
            image: "registry/chat:2",
            labels: &[("team", "language")],
        },
    );
    let stray = past.open(1, &Payer::IdOnly("feedc0de"));
    let host = past.open(0, &Payer::Host("user@1000.service"));

    // 06:00 to 07:00.
    past.pass(minutes(59));
    past.charge(train, used(40, 60));
    past.charge(chat, used(7, 0));
    past.charge(host, used(2, 0));
    past.unattributed(1, UnattributedReason::NoRow, Nanos(1_234_567_891));
    past.unobserved(0, UnobservedReason::DriverError, minutes(5));
    past.commit(minutes(60)).unwrap();
    // 07:00 to 08:00: the trainer ends.
    past.pass(minutes(60));
    past.charge(train, used(11, 30));
    past.close(train);
    past.charge(stray, used(20, 0));
    past.unattributed(0, UnattributedReason::UnknownPid, minutes(3));
    past.commit(minutes(60)).unwrap();
    // 08:00 to 08:30.
    past.pass(minutes(31));
    past.charge(chat, used(20, 30));
    past.commit(minutes(30)).unwrap();
    past
}

pub(crate) fn report(store: &Path, arguments: &[&str]) -> Output {
    Command::new(agent::binary().unwrap())
        .arg("report")
        .arg("--store")
        .arg(store)
        .args(arguments)
        .env_remove("GPUACCT_CONFIG")
        .output()
        .unwrap()
}

pub(crate) fn printed(store: &Path, arguments: &[&str]) -> String {
    let output = report(store, arguments);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A table, or what was said on standard error, without the note on which ledger was read.
fn without_its_ledger(text: &str) -> String {
    let is_note =
        |line: &&str| line.starts_with("  - read from ") || line.starts_with("note: read from ");
    let lines = text.lines().filter(|line| !is_note(line));
    lines.fold(String::new(), |kept, line| kept + line + "\n")
}

pub(crate) type Rows = Vec<BTreeMap<String, String>>;

/// The rows of a report as CSV, by column.
fn rows(store: &Path, arguments: &[&str]) -> Rows {
    let text = printed(store, &[arguments, &["--output", "csv"]].concat());
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let rows = reader.deserialize().collect::<Result<_, _>>();
    rows.unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// The sum of a column over all rows but the total; what does not apply is nothing.
fn sum(rows: &Rows, column: &str) -> Decimal {
    let rows = rows.iter().filter(|row| row["kind"] != "total");
    let cells = rows
        .map(|row| row[column].as_str())
        .filter(|cell| !cell.is_empty());
    cells.map(|cell| cell.parse::<Decimal>().unwrap()).sum()
}

fn total(rows: &Rows) -> &BTreeMap<String, String> {
    let last = rows.last().unwrap();
    assert_eq!(last["kind"], "total");
    last
}

fn number(row: &BTreeMap<String, String>, column: &str) -> Decimal {
    row[column].parse().unwrap()
}

const SUMS: [&str; 9] = [
    "gpu_seconds",
    "busy_seconds",
    "allocated_seconds",
    "allocated_share_seconds",
    "allocated_unused_seconds",
    "held_seconds",
    "engine_decoder_busy_seconds",
    "memory_byte_seconds",
    "energy_joules",
];

#[test]
fn every_grouping_adds_up_to_the_same_totals() {
    let dir = TempDir::new().unwrap();
    let past = past(dir.path());
    let prices = dir.path().join("prices.toml");
    let text = format!(
        "currency = \"EUR\"\n[gpu.\"{A100}\"]\nbusy_hour = \"1.83\"\nallocated_hour = \"0.417\"\n\
         [gpu.\"{H100}\"]\nbusy_hour = \"3.337\"\n"
    );
    fs::write(&prices, text).unwrap();
    let prices = prices.to_str().unwrap();
    let mut first: Option<BTreeMap<String, String>> = None;
    for by in [
        "namespace",
        "namespace,pod,container",
        "pod_uid,container_id",
        "image",
        "runtime",
        "unit",
        "label:team",
        "label:nobody",
        "gpu",
        "model",
        "hour",
        "day",
        "month",
        "gpu,hour,namespace,label:team",
    ] {
        let arguments = [&RANGE[..], &["--by", by, "--prices", prices]].concat();
        let rows = rows(dir.path(), &arguments);
        let total = total(&rows);
        for column in SUMS {
            assert_eq!(
                sum(&rows, column),
                number(total, column),
                "{column} by {by}"
            );
        }
        assert_eq!(sum(&rows, "cost"), number(total, "cost"), "by {by}");
        // The key differs, the figures do not.
        let figures: BTreeMap<_, _> = total
            .iter()
            .filter(|(column, _)| column.contains("_") || *column == "cost")
            .filter(|(column, _)| *column != "gpu_index")
            .filter(|(column, _)| !by.split(',').any(|by| by == *column))
            .map(|(column, cell)| (column.clone(), cell.clone()))
            .collect();
        match &first {
            None => first = Some(figures),
            Some(first) => assert_eq!(first, &figures, "by {by}"),
        }
        for row in &rows {
            for dimension in by.split(',') {
                assert!(!row[dimension].is_empty(), "a blank {dimension} in {row:?}");
            }
        }
    }
    let total = first.unwrap();
    // 40 + 7 + 2, 11 + 20 + 3, 20 minutes, and 1.234567891 s that nobody owns.
    assert_eq!(
        number(&total, "busy_seconds"),
        "6181.234567891".parse().unwrap()
    );
    assert_eq!(number(&total, "gpu_seconds"), Decimal::from(2 * 9_000));
    assert_eq!(number(&total, "allocated_seconds"), Decimal::from(120 * 60));
    // 20 and 19 minutes of the trainer, 10 of the chat; what was never allocated takes none away.
    assert_eq!(
        number(&total, "allocated_unused_seconds"),
        Decimal::from(49 * 60)
    );
    past.end();
}

/// Two replicas of one GPU for an hour: each was given it for all of that, and it was one hour.
#[test]
fn a_gpu_that_two_share_is_not_billed_twice() {
    let dir = TempDir::new().unwrap();
    let begin: jiff::Timestamp = "2026-01-31T06:00:00Z".parse().unwrap();
    let begin = WallTime(u64::try_from(begin.as_nanosecond()).unwrap());
    let mut past = Past::begin(dir.path(), begin, &[A100]).unwrap();
    past.commit(Nanos::ZERO).unwrap();
    let named = |name| Payer::Named {
        name,
        image: "registry/train:1",
        labels: &[],
    };
    let both = [named("research/train-0/main"), named("serving/chat-0/main")];
    let both = both.map(|payer| past.open(0, &payer));
    past.pass(minutes(59));
    for account in both {
        past.charge(
            account,
            Amounts {
                allocated: minutes(60),
                allocated_share: minutes(30),
                // Beyond what 64 bits can hold.
                memory: ByteSeconds(u128::from(u64::MAX)),
                ..Amounts::ZERO
            },
        );
    }
    past.commit(minutes(60)).unwrap();
    past.pass(minutes(30));
    past.commit(minutes(30)).unwrap();
    let prices = dir.path().join("prices.toml");
    let text = format!("currency = \"EUR\"\n[gpu.\"{A100}\"]\nallocated_hour = \"0.40\"\n");
    fs::write(&prices, text).unwrap();
    let prices = ["--prices", prices.to_str().unwrap()];
    let arguments = [&RANGE[..], &prices].concat();
    let rows = rows(dir.path(), &arguments);
    let total = total(&rows);
    assert_eq!(number(total, "allocated_seconds"), Decimal::from(7_200));
    assert_eq!(number(total, "allocated_gpu_hours"), Decimal::from(2));
    assert_eq!(number(total, "allocated_share_gpu_hours"), Decimal::ONE);
    assert!(number(total, "allocated_share_seconds") <= number(total, "gpu_seconds"));
    assert_eq!(number(total, "cost"), Decimal::new(40, 2));
    assert_eq!(
        number(total, "memory_byte_seconds"),
        Decimal::from(u64::MAX) * Decimal::TWO
    );
    let table = printed(dir.path(), &arguments);
    let heading = table.lines().find(|line| line.starts_with("NAMESPACE"));
    let heading = heading.unwrap();
    assert!(heading.contains("ALLOC. h  DIV. h"), "{table}");
    let line = table.lines().find(|line| line.starts_with("research "));
    assert!(line.unwrap().contains("1.000   0.500"), "{table}");
    past.end();
}

#[test]
fn every_output_has_the_same_cells() {
    let dir = TempDir::new().unwrap();
    past(dir.path()).end();
    let arguments = [&RANGE[..], &["--by", "namespace,container,gpu"]].concat();
    let csv = rows(dir.path(), &arguments);
    let ndjson = printed(dir.path(), &[&arguments[..], &["-o", "ndjson"]].concat());
    let ndjson: Vec<serde_json::Value> = ndjson
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let json = printed(dir.path(), &[&arguments[..], &["-o", "json"]].concat());
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let mut documents = json["rows"].as_array().unwrap().clone();
    documents.push(json["total"].clone());
    assert_eq!(documents, ndjson);
    assert_eq!(csv.len(), ndjson.len());
    for (row, document) in csv.iter().zip(&ndjson) {
        let document = document.as_object().unwrap();
        assert_eq!(row.len(), document.len());
        for (name, value) in document {
            let cell = &row[name];
            match value {
                serde_json::Value::Null => assert_eq!(cell, "", "{name}"),
                serde_json::Value::Number(value) => {
                    let cell: f64 = cell.parse().unwrap();
                    assert!((cell - value.as_f64().unwrap()).abs() < 1e-9, "{name}");
                }
                // A name that a spreadsheet would calculate is tame in CSV and itself elsewhere.
                value => {
                    let text = value.as_str().unwrap();
                    let tame = cell.strip_prefix('\'').unwrap_or(cell);
                    assert_eq!(tame, text, "{name}");
                    assert_eq!(tame != cell, text.starts_with('='), "{name}: {cell}");
                }
            }
        }
    }
    assert_eq!(json["since"], "2026-01-31T06:00:00Z");
    assert_eq!(json["until"], "2026-01-31T08:30:00Z");
    assert_eq!(json["imbalance_seconds"], 0);
    assert_eq!(json["complete"], false);
    let warnings = json["warnings"].to_string();
    assert!(
        warnings.contains("the report ends with the last commit, at 2026-01-31T08:30:00Z"),
        "{warnings}"
    );

    let table = printed(dir.path(), &arguments);
    let lines = [
        "research ",
        "(host) ",
        "owned ",
        "no owner: no_row ",
        "idle ",
        "total ",
    ];
    for expected in lines.into_iter().chain(["not observed: driver_error "]) {
        let mut found = table.lines().filter(|line| line.starts_with(expected));
        assert!(found.next().is_some(), "no {expected} in\n{table}");
    }
    // A pipe gets all of it.
    assert!(table.contains("SHARE") && !table.contains('…'), "{table}");
    let wide = printed(dir.path(), &[&arguments[..], &["--wide"]].concat());
    assert!(wide.contains("HELD") && wide.contains("DECODER"), "{wide}");
    assert!(wide.contains("=cmd|' /C calc'!A0"), "{wide}");
}

#[test]
fn kinds_and_reasons_have_rows_of_their_own() {
    let dir = TempDir::new().unwrap();
    past(dir.path()).end();
    let rows = rows(
        dir.path(),
        &[&RANGE[..], &["--by", "namespace,unit,label:team"]].concat(),
    );
    let found: Vec<[&str; 6]> = rows
        .iter()
        .map(|row| {
            let cells = [
                "kind",
                "reason",
                "namespace",
                "unit",
                "label:team",
                "gpu_seconds",
            ];
            cells.map(|column| row[column].as_str())
        })
        .collect();
    let none = "(none)";
    let unresolved = "(unresolved)";
    assert_eq!(
        found,
        [
            ["container", none, "research", none, "vision", "3060"],
            ["container", none, "serving", none, "language", "1620"],
            ["container", none, unresolved, none, unresolved, "1200"],
            ["host", none, none, "user@1000.service", none, "120"],
            ["unattributed", "unknown_pid", none, none, none, "180"],
            ["unattributed", "no_row", none, none, none, "1.234567891"],
            ["idle", none, none, none, none, "11518.765432109"],
            ["unobserved", "driver_error", none, none, none, "300"],
            ["total", none, none, none, none, "18000"],
        ]
    );
    // One who asks for some of them gets these, under the same figures.
    let some = [
        "--by",
        "namespace,unit,label:team",
        "--label",
        "team=vision",
    ];
    let mine = self::rows(
        dir.path(),
        &[&RANGE[..], &some, &["--label", "team="]].concat(),
    );
    assert_eq!(mine.len(), 2);
    assert_eq!(mine[0], rows[0]);
    assert_eq!(number(&mine[1], "busy_seconds"), Decimal::from(3_060));
    // Empty is a value, and no blank.
    let labels: Vec<String> =
        self::rows(dir.path(), &[&RANGE[..], &["--by", "label:empty"]].concat())
            .iter()
            .filter(|row| row["kind"] == "container")
            .map(|row| row["label:empty"].clone())
            .collect();
    assert_eq!(labels, ["(empty)", none, unresolved]);
}

#[test]
fn what_a_running_agent_has_open_is_in_and_an_hour_is_in_once() {
    let dir = TempDir::new().unwrap();
    let mut past = past(dir.path());
    let busy = |since: &str, until: &str| {
        let rows = rows(dir.path(), &["--since", since, "--until", until]);
        number(total(&rows), "busy_seconds")
    };
    let of = |row: &str| row.parse::<Decimal>().unwrap();
    // Not a second of the present hour is in a closed record.
    assert_eq!(
        busy("2026-01-31T08:00:00Z", "2026-01-31T09:00:00Z"),
        of("1200")
    );
    let parts = busy("2026-01-31T06:20:00Z", "2026-01-31T07:59:59Z")
        + busy("2026-01-31T07:59:59Z", "2026-01-31T09:00:00Z");
    assert_eq!(parts, busy(RANGE[1], RANGE[3]));
    let chat = past.open(0, &Payer::Host("late.service"));
    past.charge(chat, Amounts::busy(Nanos::from_secs(7)));
    past.pass(minutes(1));
    past.commit(minutes(1)).unwrap();
    assert_eq!(
        busy("2026-01-31T08:00:00Z", "2026-01-31T09:00:00Z"),
        of("1207")
    );
    past.end();
}

#[test]
fn a_running_agents_books_and_its_report_agree() {
    let node = Node::new(1).unwrap();
    let mut agent = node.agent("agent", node.config()).unwrap();
    let mut job = node
        .host_work(0, "0.5")
        .args(["--label", "job"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let store = node.dir().join("agent/store");
    let busy = |agent: &agent::Agent| agent.status().unwrap().snapshot.gpus[0].busy;
    let worked = agent.wait_for_status("a second of work", |status| {
        status.snapshot.gpus[0].busy > Nanos::SECOND
    });
    let before = busy(&agent);
    let rows = rows(&store, &["--since", "1h", "--by", "unit,gpu"]);
    let after = busy(&agent);
    job.kill().unwrap();
    job.wait().unwrap();
    worked.unwrap();

    let seconds = |time: Nanos| Decimal::from_i128_with_scale(time.0.into(), 9);
    let reported = number(total(&rows), "busy_seconds");
    assert!(
        (seconds(before)..=seconds(after)).contains(&reported),
        "{reported} s between {before:?} and {after:?}"
    );
    assert_eq!(sum(&rows, "busy_seconds"), reported);
    assert_eq!(
        sum(&rows, "gpu_seconds"),
        number(total(&rows), "gpu_seconds")
    );
    let owned = rows
        .iter()
        .filter(|row| ["container", "host"].contains(&row["kind"].as_str()));
    let owned: Decimal = owned.map(|row| number(row, "busy_seconds")).sum();
    assert!(owned > Decimal::ZERO, "{rows:?}");

    // Stopped, the agent leaves a ledger that says no less.
    agent.stop().unwrap();
    let rows = self::rows(&store, &["--since", "1h"]);
    assert!(number(total(&rows), "busy_seconds") >= reported);
}

#[test]
fn a_ledger_is_read_as_a_crash_left_it_and_where_nothing_can_be_written() {
    let dir = TempDir::new().unwrap();
    let store = dir.path().join("store");
    let past = past(&store);
    let expected = without_its_ledger(&printed(&store, &RANGE));

    // As `kill -9` leaves it: the commits are in the log.
    let crashed = dir.path().join("crashed");
    fs::create_dir(&crashed).unwrap();
    for name in ["gpuacct.db", "gpuacct.db-wal", "gpuacct.db-shm"] {
        fs::copy(store.join(name), crashed.join(name)).unwrap();
    }
    assert!(fs::metadata(crashed.join("gpuacct.db-wal")).unwrap().len() > 0);
    assert_eq!(without_its_ledger(&printed(&crashed, &RANGE)), expected);
    past.end();

    // The file by itself, by somebody who may read it and nothing else.
    let copied = dir.path().join("copied");
    fs::create_dir(&copied).unwrap();
    fs::copy(store.join("gpuacct.db"), copied.join("gpuacct.db")).unwrap();
    let binary = dir.path().join("gpuacct");
    install(&agent::binary().unwrap(), &binary).unwrap();
    for (path, mode) in [
        (dir.path(), 0o755),
        (&copied, 0o555),
        (&copied.join("gpuacct.db"), 0o444),
    ] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let mut command = Command::new(&binary);
    command
        .arg("report")
        .args(RANGE)
        .arg("--store")
        .arg(copied.join("gpuacct.db"));
    if rustix::process::getuid().is_root() {
        command.uid(65_534).gid(65_534);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let copy = String::from_utf8(output.stdout).unwrap();
    let file = copied.join("gpuacct.db");
    assert!(
        copy.contains(&format!("read from {} of node {NODE}\n", file.display())),
        "{copy}"
    );
    assert_eq!(without_its_ledger(&copy), expected);
    let left: Vec<_> = fs::read_dir(&copied)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["gpuacct.db"]);
}

#[test]
fn what_is_in_the_way_is_said_in_words() {
    let dir = TempDir::new().unwrap();
    let store = dir.path().join("store");
    past(&store).end();
    let prices = dir.path().join("prices.toml");
    fs::write(
        &prices,
        format!("currency = \"EUR\"\n[gpu.\"{A100}\"]\nbusy_hour = \"1\"\n"),
    )
    .unwrap();
    let prices = prices.to_str().unwrap();
    let made = |name: &str, make: &dyn Fn(&Path)| {
        let path = dir.path().join(name);
        fs::copy(store.join("gpuacct.db"), &path).unwrap();
        make(&path);
        path
    };
    let sql = |sql: &'static str| {
        move |path: &Path| Connection::open(path).unwrap().execute_batch(sql).unwrap()
    };
    let missing = dir.path().join("missing");
    let garbage = made("garbage", &|path| {
        fs::write(path, vec![7_u8; 9_000]).unwrap()
    });
    let torn = made("torn", &|path| {
        let mut bytes = fs::read(path).unwrap();
        bytes[4_096..].fill(0xff);
        fs::write(path, bytes).unwrap();
    });
    let empty = made("empty", &|path| fs::write(path, "").unwrap());
    let newer = made("newer", &sql("PRAGMA user_version = 999"));
    let foreign = made("foreign", &sql("PRAGMA application_id = 1"));
    let negative = made("negative", &sql("UPDATE gpu_hours SET busy = -1"));
    let unbalanced = made(
        "unbalanced",
        &sql("UPDATE gpu_hours SET busy = busy + 1, idle = idle - 1"),
    );
    let locked = made("locked", &|_| {});
    let holder = Connection::open(&locked).unwrap();
    holder
        .execute_batch(
            "PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE; UPDATE meta SET version = '';",
        )
        .unwrap();
    let cases: [(&Path, &[&str], i32, &str); 23] = [
        (&missing, &[], 1, "there is no ledger at"),
        (&garbage, &[], 1, "damaged, or is not an SQLite file"),
        (&torn, &RANGE, 1, "damaged, or is not an SQLite file"),
        (&empty, &[], 1, "holds no commit yet"),
        (&newer, &[], 1, "has schema 999, this gpuacct knows"),
        (&foreign, &[], 1, "is not a gpuacct ledger"),
        (&negative, &RANGE, 1, "expected at least 0"),
        (&unbalanced, &RANGE, 1, ""),
        (&locked, &[], 1, "has been locked by another process"),
        (
            &store,
            &["--since", "1h", "--until", "2h"],
            2,
            "the range ends before it begins",
        ),
        // Before the ledger, after it, and in the future.
        (
            &store,
            &["--since", "2025-01-01", "--until", "2025-02-01"],
            2,
            "gpuacct.db has nothing of 2025-01-01T00:00:00Z to 2025-02-01T00:00:00Z: its first hour is \
             2026-01-31T06:00:00Z, its last is 2026-01-31T08:00:00Z",
        ),
        (
            &store,
            &["--config", "/nowhere"],
            2,
            "is the agent running?",
        ),
        (
            &store,
            &["--since", "9000-01-01", "-o", "csv"],
            2,
            "has nothing of the time from 9000-01-01T00:00:00Z on",
        ),
        (&store, &["--timezone", "Mars"], 2, "found \"Mars\""),
        (
            &store,
            &[&RANGE[..], &["--timezone", "Asia/Kolkata"]].concat(),
            2,
            "+05:30 off UTC",
        ),
        (&store, &["--label", "team"], 2, "expected KEY=VALUE"),
        (
            &store,
            &["--since", "yesterday"],
            2,
            "expected how long ago",
        ),
        (&store, &["--by", "colour"], 2, "expected one of namespace"),
        (&store, &["--by", "label:"], 2, "label:KEY"),
        (&store, &["--by", "pod,gpu,pod"], 2, "has pod twice"),
        (
            &store,
            &["--prices", "/nowhere"],
            2,
            "cannot read the prices",
        ),
        (
            &store,
            &[&RANGE[..], &["--prices", prices]].concat(),
            2,
            "no price for \"NVIDIA H100 80GB HBM3\" (GPU-00000001), it has prices for \"NVIDIA A100-SXM4-80GB\"",
        ),
        // The GPU without a price was not used by those who are in the report.
        (
            &store,
            &[&RANGE[..], &["--prices", prices, "--namespace", "research"]].concat(),
            0,
            "",
        ),
    ];
    for (store, arguments, code, expected) in cases {
        let output = report(store, arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(
            output.status.code(),
            Some(code),
            "{store:?} {arguments:?}: {output:?}"
        );
        assert!(error.contains(expected), "{store:?} {arguments:?}: {error}");
    }
    drop(holder);
    let page = report(&unbalanced, &RANGE);
    for page in [page.stdout, page.stderr] {
        let page = String::from_utf8_lossy(&page);
        assert!(page.contains("out of balance by 4 ns"), "{page}");
    }
}

/// For a user who may not read it, there is no telling whether there is a ledger.
#[test]
fn a_missing_permission_is_not_called_a_missing_ledger() {
    let dir = TempDir::new().unwrap();
    let store = dir.path().join("store");
    past(&store).end();
    let file = store.join("gpuacct.db");
    let binary = dir.path().join("gpuacct");
    install(&agent::binary().unwrap(), &binary).unwrap();
    let chmod = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    chmod(dir.path(), 0o755);
    for (of_directory, of_file, expected) in [
        (0o755, 0o000, Some("no permission to read the ledger at")),
        (0o000, 0o644, Some("no permission to read the ledger at")),
        (0o755, 0o644, None),
    ] {
        chmod(&store, 0o755);
        chmod(&file, of_file);
        chmod(&store, of_directory);
        for named in [&store, &file] {
            let mut command = Command::new(&binary);
            command.arg("report").args(RANGE).arg("--store").arg(named);
            if rustix::process::getuid().is_root() {
                command.uid(65_534).gid(65_534);
            }
            let output = command.output().unwrap();
            let error = String::from_utf8_lossy(&output.stderr);
            let code = i32::from(expected.is_some());
            assert_eq!(output.status.code(), Some(code), "{named:?}: {output:?}");
            let expected = expected.unwrap_or("the range ends at");
            assert!(error.contains(expected), "{named:?}: {error}");
        }
    }
}

#[test]
fn a_range_that_the_ledger_has_in_part_is_answered_with_a_warning() {
    let dir = TempDir::new().unwrap();
    past(dir.path()).end();
    for (since, until, answered, expected) in [
        (
            "2026-01-30",
            "2026-01-31T08:00:00Z",
            ["2026-01-31T06:00:00Z", "2026-01-31T08:00:00Z"],
            "warning: the range begins at 2026-01-30T00:00:00Z, and the ledger begins with the hour of",
        ),
        (
            "2026-01-31T06:00:00Z",
            "9000-01-01",
            ["2026-01-31T06:00:00Z", "2026-01-31T08:30:00Z"],
            "warning: the range reaches into the future",
        ),
        (
            "2026-01-31T06:00:00Z",
            "2026-01-31T08:00:00Z",
            ["2026-01-31T06:00:00Z", "2026-01-31T08:00:00Z"],
            "",
        ),
    ] {
        let range = ["--since", since, "--until", until];
        for output in ["table", "csv", "ndjson", "json"] {
            let found = report(dir.path(), &[&range[..], &["-o", output]].concat());
            assert!(found.status.success(), "{found:?}");
            let error = String::from_utf8_lossy(&found.stderr);
            match expected {
                "" => assert_eq!(without_its_ledger(&error), ""),
                expected => assert!(error.contains(expected), "{output}: {error}"),
            }
        }
        let row = &rows(dir.path(), &range)[0];
        assert_eq!([&row["since"], &row["until"]], answered);
        let json = printed(dir.path(), &[&range[..], &["-o", "json"]].concat());
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["complete"], expected.is_empty());
    }
}

/// An agent that ran and saw no GPU has an answer: there was none.
#[test]
fn a_node_without_a_gpu_has_a_report_of_nobody() {
    let dir = TempDir::new().unwrap();
    let begin: jiff::Timestamp = "2026-01-31T06:10:00Z".parse().unwrap();
    let begin = WallTime(u64::try_from(begin.as_nanosecond()).unwrap());
    let mut past = Past::begin(dir.path(), begin, &[]).unwrap();
    for _ in 0..4 {
        past.commit(minutes(60)).unwrap();
        past.pass(minutes(60));
    }
    let within = [
        "--since",
        "2026-01-31T06:00:00Z",
        "--until",
        "2026-01-31T08:00:00Z",
    ];
    let found = report(dir.path(), &within);
    assert!(
        found.status.success() && found.stderr.is_empty(),
        "{found:?}"
    );
    let page = String::from_utf8(found.stdout).unwrap();
    assert!(page.contains("the ledger has no GPU"), "{page}");
    let before = [
        "--since",
        "2026-01-31T04:00:00Z",
        "--until",
        "2026-01-31T06:00:00Z",
    ];
    assert_eq!(report(dir.path(), &before).status.code(), Some(2));
    past.end();
}

#[test]
fn a_full_disk_fails_and_a_closed_pipe_ends_quietly() {
    let dir = TempDir::new().unwrap();
    past(dir.path()).end();
    for format in ["table", "csv", "ndjson", "json"] {
        let command = || {
            let mut command = Command::new(agent::binary().unwrap());
            command.arg("report").args(RANGE).args(["-o", format]);
            command.arg("--store").arg(dir.path());
            command.stderr(Stdio::piped());
            command
        };
        let full = fs::OpenOptions::new().write(true).open("/dev/full");
        let full = command().stdout(full.unwrap()).output().unwrap();
        assert_eq!(full.status.code(), Some(1), "{format}: {full:?}");
        let error = String::from_utf8_lossy(&full.stderr);
        let expected = "error: cannot write to standard output: No space left on device";
        assert!(error.contains(expected), "{format}: {error}");

        let closed = || {
            let (reader, writer) = std::io::pipe().unwrap();
            drop(reader);
            writer
        };
        let gone = command().stdout(closed()).output().unwrap();
        assert_eq!(gone.status.code(), Some(0), "{format}: {gone:?}");
        let error = String::from_utf8_lossy(&gone.stderr);
        let error = without_its_ledger(&error);
        let said: Vec<&str> = error
            .lines()
            .filter(|line| !line.starts_with("warning: "))
            .collect();
        assert_eq!(said, [""; 0], "{format}");
        // Nor does it matter if nobody reads what it says.
        let gone = command()
            .stdout(closed())
            .stderr(closed())
            .status()
            .unwrap();
        assert_eq!(gone.code(), Some(0), "{format}: {gone:?}");
    }
}

#[test]
fn a_narrow_terminal_is_told_which_columns_it_lacks() {
    let dir = TempDir::new().unwrap();
    past(dir.path()).end();
    let mut command = Command::new(agent::binary().unwrap());
    command
        .arg("report")
        .args(RANGE)
        .arg("--store")
        .arg(dir.path());
    command.args(["--by", "gpu,hour,pod,namespace,unit"]);
    let left = Terminal::start(command).unwrap().left().unwrap();
    assert!(left.status.success(), "{left:?}");
    let screen = left.screen;
    assert!(screen.contains("2026-01-31T06:00:00Z"), "{screen}");
    assert!(
        screen.contains("note: left out for lack of room: SHARE, kWh"),
        "{screen}"
    );
    let table = screen.lines().skip_while(|line| !line.starts_with("GPU"));
    let widest = table.map(|line| line.trim_end().chars().count()).max();
    assert!((100..=120).contains(&widest.unwrap()), "{screen}");
}

/// A GPU in two instances for two hours; after the first hour one of them is made anew, larger, under
/// the same UUID.
pub(crate) fn divided(directory: &Path) -> Past {
    let begin: jiff::Timestamp = "2026-01-31T06:00:00Z".parse().unwrap();
    let begin = WallTime(u64::try_from(begin.as_nanosecond()).unwrap());
    let mut past = Past::begin(directory, begin, &[A100, A100, A100]).unwrap();
    past.divide(1, 0, "1g.10gb");
    past.divide(2, 0, "3g.40gb");
    past.commit(Nanos::ZERO).unwrap();
    let named = |name| Payer::Named {
        name,
        image: "i",
        labels: &[],
    };
    let small = past.open(1, &named("research/small/main"));
    let large = past.open(2, &named("research/large/main"));
    past.pass(minutes(59));
    past.charge(small, used(60, 0));
    past.charge(large, used(30, 0));
    past.unobserved(0, UnobservedReason::Unsupported, minutes(60));
    past.commit(minutes(60)).unwrap();
    past.close(small);
    past.divide(1, 0, "4g.40gb");
    let again = past.open(1, &named("research/again/main"));
    past.pass(minutes(60));
    past.charge(again, used(30, 0));
    past.unobserved(0, UnobservedReason::Unsupported, minutes(60));
    past.commit(minutes(60)).unwrap();
    past
}

pub(crate) const DIVIDED: [&str; 4] = [
    "--since",
    "2026-01-31T06:00:00Z",
    "--until",
    "2026-01-31T08:00:00Z",
];

#[test]
fn an_instance_does_not_cost_a_whole_gpu() {
    let dir = TempDir::new().unwrap();
    divided(dir.path()).end();
    let path = dir.path().join("prices.toml");
    let text = format!(
        "currency = \"EUR\"\n[gpu.\"{A100}\"]\nbusy_hour = \"7\"\n\
         [gpu.\"{A100}\".mig.\"1g.10gb\"]\nbusy_hour = \"1\"\n\
         [gpu.\"{A100}\".mig.\"3g.40gb\"]\nbusy_hour = \"3\"\n"
    );
    fs::write(&path, &text).unwrap();
    let prices = path.to_str().unwrap();
    let all = [&DIVIDED[..], &["--by", "pod,profile", "--prices", prices]].concat();
    // One was used that has no price.
    let output = report(dir.path(), &all);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    let expected =
        format!("no price for the MIG instance \"4g.40gb\" of \"{A100}\" (GPU-00000001)");
    assert!(error.contains(&expected), "{error}");

    let more = format!("{text}[gpu.\"{A100}\".mig.\"4g.40gb\"]\nbusy_hour = \"4\"\n");
    fs::write(&path, more).unwrap();
    let rows = rows(dir.path(), &all);
    let found: Vec<[&str; 3]> = rows
        .iter()
        .filter(|row| row["kind"] == "container")
        .map(|row| ["pod", "profile", "cost"].map(|column| row[column].as_str()))
        .collect();
    assert_eq!(
        found,
        [
            ["small", "1g.10gb", "1.00"],
            ["again", "4g.40gb", "2.00"],
            ["large", "3g.40gb", "1.50"],
        ]
    );
    // Of the GPU itself there is nothing to use beside its instances.
    let total = total(&rows);
    assert_eq!(number(total, "gpu_seconds"), Decimal::from(2 * 2 * 3_600));
    assert_eq!(sum(&rows, "gpu_seconds"), number(total, "gpu_seconds"));
    assert_eq!(number(total, "cost"), "4.50".parse().unwrap());
    let json = printed(dir.path(), &[&DIVIDED[..], &["-o", "json"]].concat());
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let notes = json["notes"].to_string();
    assert!(
        notes.contains("2 GPU hours of divided GPUs are left out"),
        "{notes}"
    );
}

#[test]
fn a_ledger_of_an_older_version_is_read() {
    let dir = TempDir::new().unwrap();
    divided(dir.path()).end();
    let connection = Connection::open(dir.path().join("gpuacct.db")).unwrap();
    connection
        .execute_batch("DROP TABLE instances; DROP TABLE held; PRAGMA user_version = 1;")
        .unwrap();
    drop(connection);
    let rows = rows(dir.path(), &[&DIVIDED[..], &["--by", "profile"]].concat());
    let found: Vec<&str> = rows
        .iter()
        .filter(|row| row["kind"] == "container")
        .map(|row| row["profile"].as_str())
        .collect();
    // What is there now is all that it knows.
    assert_eq!(found, ["4g.40gb", "3g.40gb"]);
}

#[test]
fn ledgers_of_several_nodes_are_added_up_and_none_twice() {
    let dir = TempDir::new().unwrap();
    let store = |name: &str| dir.path().join(name);
    let arguments = |names: &[&str]| -> Vec<String> {
        let stores = names.iter().skip(1);
        let stores = stores.flat_map(|name| ["--store".into(), store(name).display().to_string()]);
        stores.collect()
    };
    let make = |names: &[&str], more: &[&str]| {
        let stores = arguments(names);
        let stores: Vec<&str> = stores.iter().map(String::as_str).collect();
        report(&store(names[0]), &[&RANGE[..], &stores, more].concat())
    };
    let rows = |names: &[&str], by: &str| -> Rows {
        let output = make(names, &["--output", "csv", "--by", by]);
        assert!(output.status.success(), "{output:?}");
        let mut reader = csv::Reader::from_reader(&output.stdout[..]);
        reader.deserialize().collect::<Result<_, _>>().unwrap()
    };
    past_on("a", "2026-01-31T06:00:00Z", &store("a")).end();
    past_on("b", "2026-01-31T06:00:00Z", &store("b")).end();
    // This node came later.
    past_on("late", "2026-03-01T06:00:00Z", &store("late")).end();
    fs::create_dir(store("copy")).unwrap();
    fs::copy(
        store("a").join("gpuacct.db"),
        store("copy").join("gpuacct.db"),
    )
    .unwrap();

    // The GPUs have the same numbers in both, and the accounts, too.
    let alone = rows(&["a"], "namespace,gpu");
    let both = rows(&["a", "b"], "node,namespace,gpu");
    for node in ["a", "b"] {
        let of_node = both.iter().filter(|row| row["node"] == node);
        let of_node: Vec<_> = of_node
            .map(|row| SUMS.map(|column| row[column].clone()))
            .collect();
        let alone = alone.iter().filter(|row| row["kind"] != "total");
        let mut alone: Vec<_> = alone
            .map(|row| SUMS.map(|column| row[column].clone()))
            .collect();
        let mut of_node = of_node;
        alone.sort_unstable();
        of_node.sort_unstable();
        assert_eq!(of_node, alone, "{node}");
    }
    for column in SUMS {
        let sum = number(total(&both), column);
        assert_eq!(
            sum,
            number(total(&alone), column) * Decimal::TWO,
            "{column}"
        );
    }
    let namespaces = rows(&["a", "b"], "namespace");
    assert_eq!(namespaces.len(), rows(&["a"], "namespace").len());

    // What a node has nothing of is said, and the others are answered for.
    let output = make(&["a", "late", "b"], &["--output", "json"]);
    assert!(output.status.success(), "{output:?}");
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["nodes"], serde_json::json!(["a", "b"]));
    assert_eq!(json["complete"], false);
    let warnings = json["warnings"].to_string();
    assert!(warnings.contains("node a: the range ends at"), "{warnings}");
    assert!(
        warnings.contains(&store("late").display().to_string()),
        "{warnings}"
    );
    let notes = json["notes"].to_string();
    assert!(
        notes.contains("of node a") && notes.contains("of node b"),
        "{notes}"
    );
    assert_eq!(make(&["late"], &[]).status.code(), Some(2));

    // Two agents ran on one node, each with a ledger of its own.
    past_on(NODE, "2026-01-31T06:00:00Z", &store("one")).end();
    past_on(NODE, "2026-01-31T06:00:00Z", &store("other")).end();
    let output = make(&["one", "a", "other"], &[]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("have both booked the hour of 2026-01-31T06:00:00Z of GPU-00000000"),
        "{said}"
    );
    assert!(output.stdout.is_empty());

    let output = make(&["a", "b", "copy"], &[]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("are the same ledger, of node a"), "{said}");
    assert!(output.stdout.is_empty());
}

#[test]
fn a_ledger_names_its_node() {
    let dir = TempDir::new().unwrap();
    past(dir.path()).end();
    let by_node = [&RANGE[..], &["--by", "node"]].concat();
    // Also idle time and time without an owner are of a node; the total is of all.
    let nodes = |rows: Rows| -> BTreeSet<String> {
        let total = |row: &BTreeMap<String, String>| row["kind"] == "total";
        let rows = rows.into_iter().filter(|row| !total(row));
        rows.map(|mut row| row.remove("node").unwrap()).collect()
    };
    assert_eq!(nodes(rows(dir.path(), &by_node)), [NODE.to_owned()].into());
    let json = printed(dir.path(), &[&RANGE[..], &["--output", "json"]].concat());
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["nodes"], serde_json::json!([NODE]));

    // An older agent did not write it.
    let connection = Connection::open(dir.path().join("gpuacct.db")).unwrap();
    connection
        .execute_batch("ALTER TABLE meta DROP COLUMN node; PRAGMA user_version = 4;")
        .unwrap();
    drop(connection);
    let unknown = ["(unresolved)".to_owned()].into();
    assert_eq!(nodes(rows(dir.path(), &by_node)), unknown);
}

#[test]
fn processes_first_and_last_use_and_the_peak_of_memory_can_be_shown() {
    let dir = TempDir::new().unwrap();
    past(dir.path()).end();
    let rows = rows(dir.path(), &[&RANGE[..], &["--by", "pod"]].concat());
    let columns = [
        "processes_started",
        "first_used",
        "last_used",
        "memory_peak_bytes",
    ];
    let found = |row: &BTreeMap<String, String>| columns.map(|column| row[column].clone());
    let of = |pod: &str| found(rows.iter().find(|row| row["pod"] == pod).unwrap());
    let gibibyte = (1_u64 << 30).to_string();
    let chat = [
        "1",
        "2026-01-31T06:59:00Z",
        "2026-01-31T08:30:00Z",
        &gibibyte,
    ];
    assert_eq!(of("chat-1"), chat.map(str::to_owned));
    let all = [
        "4",
        "2026-01-31T06:59:00Z",
        "2026-01-31T08:30:00Z",
        &gibibyte,
    ];
    assert_eq!(found(total(&rows)), all.map(str::to_owned));
    // Nobody's time has none, and neither has a part of an account's.
    let idle = rows.iter().find(|row| row["kind"] == "idle").unwrap();
    assert_eq!(found(idle), [""; 4].map(str::to_owned));
    let hours = self::rows(dir.path(), &[&RANGE[..], &["--by", "pod,hour"]].concat());
    assert_eq!(found(&hours[0]), [""; 4].map(str::to_owned));
    let wide = printed(
        dir.path(),
        &[&RANGE[..], &["--by", "pod", "--wide"]].concat(),
    );
    assert!(
        wide.contains("LAST USED") && wide.contains("PEAK GiB"),
        "{wide}"
    );
}
