//! Usage records as whoever bills by them gets them: the built agent sends the hours of a ledger that is
//! past, receivers are away, refuse, reject a part or lose their answers, the agent is killed in between,
//! and the shipped SQL gives the report of the ledger to the nanosecond.
//!
//! `GPUACCT_KILLS` says how often the agent is killed; a few times unless set.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use gpuacct::config::{Config, Span};
use gpuacct::core::amounts::{Amounts, ByteSeconds, Engines, Millijoules};
use gpuacct::core::model::{
    Nanos, SourceId, SourceState, UnattributedReason, UnobservedReason, WallTime,
};
use gpuacct::outputs::socket::StatusReport;
use gpuacct_tests::agent::{self, Agent};
use gpuacct_tests::ledger::{Past, Payer};
use gpuacct_tests::node::Node;
use gpuacct_tests::otlp::{LogsAnswer, Received, Sink};
use gpuacct_tests::requirement::require;
use gpuacct_tests::rotel::{self, Rotel};
use gpuacct_tests::sql::{self, Engine};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use rusqlite::Connection;
use rust_decimal::Decimal;

/// Only ever waited for when something is broken.
const PATIENCE: Duration = Duration::from_secs(60);
const MODELS: [&str; 2] = ["NVIDIA A100-SXM4-80GB", "NVIDIA H100 80GB HBM3"];
/// How the ids of the GPUs begin that a made-up past is about.
const PAST_GPUS: &str = "GPU-0000000";
const HOUR: u64 = 3_600_000_000_000;

fn minutes(n: u64) -> Nanos {
    Nanos::from_secs(60 * n)
}

/// What an account used in an hour: no two are the same, and none is round.
fn used(hour: u64, account: u64) -> Amounts {
    let busy = Nanos(minutes(7 + account).0 + hour * 1_000_003 + account);
    Amounts {
        busy,
        engines: Engines {
            decoder: Nanos(busy.0 / 3),
            ..Engines::default()
        },
        held: minutes(60),
        allocated: minutes(60),
        allocated_share: minutes(30),
        // An hour of 192 GiB and more.
        memory: ByteSeconds((192 << 30) * 3_600 + u128::from(hour)),
        energy: Millijoules(1_234_567 + hour * 7 + account),
    }
}

/// Hours of the past on two GPUs, the last of which ended an hour ago. Each has the records of five
/// accounts and of two GPUs. Returns when they begin and end.
fn past(store: &Path, hours: u64) -> (jiff::Timestamp, jiff::Timestamp) {
    let now = u64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap();
    let begin = (now / HOUR - hours - 1) * HOUR;
    let mut past = Past::begin(store, WallTime(begin), &MODELS).unwrap();
    past.commit(Nanos::ZERO).unwrap();
    let named = |name, labels| Payer::Named {
        name,
        image: "registry:5000/team/train:1.2",
        labels,
    };
    let accounts = [
        (
            0,
            past.open(0, &named("research/train-0/trainer", &[("team", "vision")])),
        ),
        (
            0,
            past.open(
                0,
                &named("research/train-1/trainer", &[("team", "language")]),
            ),
        ),
        (1, past.open(1, &named("serving/chat-1/server", &[]))),
        (1, past.open(1, &Payer::IdOnly("feedc0de"))),
        (0, past.open(0, &Payer::Host("user@1000.service"))),
    ];
    for hour in 0..hours {
        past.pass(minutes(59));
        for (at, (_, account)) in (0..).zip(accounts) {
            past.charge(account, used(hour, at));
        }
        past.unattributed(1, UnattributedReason::NoRow, Nanos(1_234_567_891 + hour));
        past.unobserved(0, UnobservedReason::DriverError, Nanos(minutes(5).0 + hour));
        past.commit(minutes(60)).unwrap();
        past.pass(minutes(1));
    }
    // The last hour ends with the first commit after it.
    past.commit(Nanos::ZERO).unwrap();
    past.end();
    let at = |nanos: u64| jiff::Timestamp::from_nanosecond(i128::from(nanos)).unwrap();
    (at(begin), at(begin + hours * HOUR))
}

/// A node with a ledger that is past, and the configuration of its agent.
struct Rig {
    node: Node,
    config: Config,
    since: jiff::Timestamp,
    until: jiff::Timestamp,
    records: usize,
}

impl Rig {
    fn new(hours: u64, endpoint: String) -> Self {
        let node = Node::new(1).unwrap();
        let mut config = node.config();
        config.store.path = node.dir().join("store");
        config.records.enabled = true;
        config.records.endpoint = Some(endpoint);
        config.records.interval = Span(Duration::from_secs(1));
        config.otlp.node_name = Some("gpu-7".to_owned());
        config.publish.pod_labels = vec!["team".to_owned()];
        let (since, until) = past(&config.store.path, hours);
        Self {
            node,
            config,
            since,
            until,
            records: usize::try_from(hours * 7).unwrap(),
        }
    }

    fn agent(&self) -> Agent {
        self.node.agent("agent", self.config.clone()).unwrap()
    }

    fn ledger(&self) -> PathBuf {
        self.config.store.path.join("gpuacct.db")
    }

    /// Records of the past that are not settled.
    fn unsettled(&self) -> i64 {
        let ledger = Connection::open(self.ledger()).unwrap();
        let count = "SELECT (SELECT count(*) FROM account_records WHERE state <> 'settled')
            + (SELECT count(*) FROM gpu_records WHERE state <> 'settled')";
        ledger.query_row(count, [], |row| row.get(0)).unwrap()
    }
}

/// Records by id and revision, with how often each arrived.
fn arrived(received: &Received) -> BTreeMap<(String, i64), usize> {
    let mut arrived = BTreeMap::new();
    let resources = received
        .logs
        .iter()
        .flat_map(|message| &message.resource_logs);
    let scopes = resources.flat_map(|resource| &resource.scope_logs);
    for record in scopes.flat_map(|scope| &scope.log_records) {
        let attributes = &record.attributes;
        // The agent's own log comes here, too, where OTLP is configured.
        if let (Some(id), Some(revision)) = (
            text(attributes, "gpuacct.record.id"),
            integer(attributes, "gpuacct.record.revision"),
        ) {
            assert_eq!(record.event_name, "gpuacct.usage");
            *arrived.entry((id, revision)).or_default() += 1;
        }
    }
    arrived
}

fn value<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a any_value::Value> {
    let found = attributes.iter().find(|pair| pair.key == key)?;
    found.value.as_ref()?.value.as_ref()
}

fn text(attributes: &[KeyValue], key: &str) -> Option<String> {
    match value(attributes, key)? {
        any_value::Value::StringValue(text) => Some(text.clone()),
        other => panic!("{key} is {other:?}"),
    }
}

fn integer(attributes: &[KeyValue], key: &str) -> Option<i64> {
    match value(attributes, key)? {
        any_value::Value::IntValue(number) => Some(*number),
        other => panic!("{key} is {other:?}"),
    }
}

fn waiting(agent: &Agent) -> Result<usize> {
    Ok(agent.metric("gpuacct_records_waiting")?.parse()?)
}

fn oldest_age(agent: &Agent) -> Result<f64> {
    Ok(agent
        .metric("gpuacct_records_oldest_age_seconds")?
        .parse()?)
}

fn outcome(agent: &Agent, outcome: &str) -> Result<usize> {
    let series = format!("gpuacct_records_total{{outcome=\"{outcome}\"}}");
    Ok(agent.metric(&series)?.parse()?)
}

/// Waits until nothing waits any more.
fn wait_until_all_are_acknowledged(agent: &mut Agent, least: usize) {
    agent
        .wait_for("every record to be acknowledged", |agent| {
            let delivered = outcome(agent, "delivered")? + outcome(agent, "rejected")?;
            Ok(waiting(agent)? == 0 && delivered >= least)
        })
        .unwrap();
}

fn state(status: &StatusReport) -> &SourceState {
    let sources = status.agent.sources.iter();
    let mut found = sources.filter(|health| health.source == SourceId::Records);
    &found.next().unwrap().state
}

/// Kind, reason, GPU and namespace; then nanoseconds, byte-seconds and millijoules.
type Bill = BTreeMap<[String; 4], [String; 4]>;

/// What the report of the ledger says.
fn reported(rig: &Rig, agent: &Agent) -> Bill {
    let (since, until) = (rig.since.to_string(), rig.until.to_string());
    let arguments = [
        "report",
        "--since",
        &since,
        "--until",
        &until,
        "--by",
        "gpu,namespace",
    ];
    let output = agent
        .gpuacct(&[&arguments[..], &["--output", "csv"]].concat())
        .unwrap();
    let mut reader = csv::Reader::from_reader(output.stdout.as_slice());
    let rows: Vec<BTreeMap<String, String>> = reader.deserialize().map(Result::unwrap).collect();
    let mut bill = Bill::new();
    for row in rows.iter().filter(|row| row["gpu"].starts_with(PAST_GPUS)) {
        let scaled = |column: &str, by: u64| match row[column].as_str() {
            "" => Decimal::ZERO,
            cell => cell.parse::<Decimal>().unwrap() * Decimal::from(by),
        };
        let is_owned = ["container", "host"].contains(&row["kind"].as_str());
        let nanos = |column| scaled(column, 1_000_000_000);
        let amounts = match is_owned {
            true => [
                nanos("busy_seconds"),
                nanos("allocated_share_seconds"),
                scaled("memory_byte_seconds", 1),
                scaled("energy_joules", 1_000),
            ],
            false => [
                nanos("gpu_seconds"),
                Decimal::ZERO,
                Decimal::ZERO,
                Decimal::ZERO,
            ],
        };
        let namespace = match is_owned {
            true => row["namespace"].clone(),
            false => String::new(),
        };
        let key = [
            row["kind"].clone(),
            row["reason"].replace("(none)", ""),
            row["gpu"].clone(),
            namespace,
        ];
        let before = bill.insert(key, amounts.map(|amount| amount.normalize().to_string()));
        assert_eq!(before, None, "{row:?}");
    }
    bill
}

const USED: &str = "SELECT CASE owner_kind WHEN 'host' THEN 'host' ELSE 'container' END AS kind,
        '' AS reason, gpu, coalesce(nullif(namespace, ''), '(none)') AS of_namespace,
        CAST(sum(busy_ns) AS VARCHAR), CAST(sum(allocated_share_ns) AS VARCHAR),
        CAST(sum(memory_byte_seconds) AS VARCHAR), CAST(sum(energy_mj) AS VARCHAR)
    FROM gpuacct.used WHERE gpu LIKE 'GPU-0000000%' GROUP BY 1, 2, 3, 4";
const UNUSED: &str = "SELECT state, reason, gpu, '', CAST(sum(time_ns) AS VARCHAR), '0', '0', '0'
    FROM gpuacct.unused WHERE gpu LIKE 'GPU-0000000%' GROUP BY 1, 2, 3";
/// What the bill has, what the GPUs were busy, and by how much each hour of a GPU is out of balance.
const BALANCE: &str = "SELECT CAST((SELECT sum(busy_ns) FROM gpuacct.bill) AS VARCHAR),
        CAST((SELECT sum(busy_ns) FROM gpuacct.gpus) AS VARCHAR),
        CAST((SELECT sum(abs(elapsed_ns - busy_ns - idle_ns - unobserved_ns)) FROM gpuacct.gpus)
            AS VARCHAR)";
const LABELS: &str = "SELECT labels['team'] AS team, CAST(count(*) AS VARCHAR) FROM gpuacct.used
    WHERE labels['team'] = 'vision' GROUP BY 1";

/// Compares the bill that an engine makes of the messages with the report of the ledger.
fn compare(engine: &Engine, received: &Received, expected: &Bill, hours: u64) {
    let dir = tempfile::tempdir().unwrap();
    let questions = [USED, UNUSED, BALANCE, LABELS];
    let answers = engine.ask(dir.path(), &received.logs, &questions).unwrap();
    let rows = answers[..2].iter().flatten();
    let bill: Bill = rows
        .map(|row| {
            let [a, b, c, d, w, x, y, z] = row.clone().try_into().unwrap();
            ([a, b, c, d], [w, x, y, z])
        })
        .collect();
    assert_eq!(&bill, expected, "{engine:?}");
    let [billed, busy, imbalance] = answers[2][0].clone().try_into().unwrap();
    assert_eq!((billed, imbalance.as_str()), (busy, "0"), "{engine:?}");
    assert_eq!(answers[3], [["vision".to_owned(), hours.to_string()]]);
    // What the document asks, as it asks: the bill, and hours that do not add up.
    let documented = documented_queries();
    let documented: Vec<&str> = documented.iter().map(String::as_str).collect();
    let dir = tempfile::tempdir().unwrap();
    let answers = engine.ask(dir.path(), &received.logs, &documented).unwrap();
    assert_eq!(answers.len(), 3);
    assert_eq!(answers[1], Vec::<sql::Row>::new(), "{engine:?}");
}

/// The queries of `docs/FLEET.md`.
fn documented_queries() -> Vec<String> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/FLEET.md");
    let page = fs::read_to_string(page).unwrap();
    let blocks = page.split("```sql\n").skip(1);
    let blocks = blocks.filter_map(|rest| rest.split_once("```"));
    // No comment in them has a semicolon.
    let queries = blocks.flat_map(|(block, _)| block.split(';'));
    let queries = queries.map(|query| query.trim().to_owned());
    queries.filter(|query| !query.is_empty()).collect()
}

/// What the collector's configuration must have, and must not have, so that what is acknowledged is on
/// a disk. The exporters in it cannot be had here, so it is not run.
#[test]
fn the_collectors_configuration_acknowledges_nothing_that_is_only_in_memory() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/collector/records.yaml");
    let text = fs::read_to_string(file).unwrap();
    let config: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
    let logs = &config["service"]["pipelines"]["logs"];
    let names = |list: &serde_json::Value| -> Vec<String> {
        let names = list.as_array().unwrap().iter();
        names
            .map(|name| name.as_str().unwrap().to_owned())
            .collect()
    };
    let extensions = names(&config["service"]["extensions"]);
    for exporter in names(&logs["exporters"]) {
        let of_it = &config["exporters"][&exporter];
        let storage = of_it["sending_queue"]["storage"].as_str().unwrap();
        assert!(extensions.iter().any(|name| name == storage), "{exporter}");
        assert!(config["extensions"][storage]["directory"].is_string());
        assert_eq!(of_it["retry_on_failure"]["max_elapsed_time"], "0s");
    }
    for processor in names(&logs["processors"]) {
        let kind = processor.split('/').next().unwrap();
        assert_ne!(kind, "batch", "it acknowledges before the queue has it");
        assert!(
            config["processors"].get(&processor).is_some(),
            "{processor}"
        );
    }
    for receiver in names(&logs["receivers"]) {
        assert!(config["receivers"].get(&receiver).is_some(), "{receiver}");
    }
}

#[test]
fn the_shipped_sql_gives_the_report_of_the_ledger_to_the_nanosecond() {
    if require("agent", agent::binary()).is_none() {
        return;
    }
    const HOURS: u64 = 6;
    let sink = Sink::start().unwrap();
    let rig = Rig::new(HOURS, format!("http://{}", sink.address()));
    // The first answers are lost, so that all that is sent first arrives twice.
    sink.answer_logs(LogsAnswer::LoseAnswer);
    let mut agent = rig.agent();
    sink.wait_for(PATIENCE, |received| received.logs.len() > 1)
        .expect("two messages");
    sink.answer_logs(LogsAnswer::Take);
    wait_until_all_are_acknowledged(&mut agent, rig.records);
    let first = arrived(&sink.received());
    let ids: BTreeSet<_> = first.keys().map(|(id, _)| id).collect();
    assert_eq!((ids.len(), first.len()), (rig.records, rig.records));
    assert!(first.keys().all(|(_, revision)| *revision == 1));
    assert!(first.values().any(|times| *times > 1), "{first:?}");
    assert!(agent.stop().unwrap().success());
    assert_eq!(rig.unsettled(), 0);

    // A name that came late, as the writer puts it.
    let named = Connection::open(rig.ledger())
        .unwrap()
        .execute(
            "UPDATE accounts SET namespace = 'late', pod = 'late-0', container = 'main',
                attribution = 'named' WHERE owner = 'feedc0de'",
            [],
        )
        .unwrap();
    assert_eq!(named, 1);
    let hours = usize::try_from(HOURS).unwrap();
    let mut agent = rig.agent();
    wait_until_all_are_acknowledged(&mut agent, hours);
    let received = sink.received();
    let second = arrived(&received);
    let revised: Vec<_> = second
        .keys()
        .filter(|(_, revision)| *revision == 2)
        .collect();
    assert_eq!((revised.len(), second.len()), (hours, rig.records + hours));

    let expected = reported(&rig, &agent);
    assert!(expected.keys().any(|key| key[3] == "late"), "{expected:?}");
    assert_eq!(expected.len(), 8, "{expected:?}");
    if let Some(duckdb) = require("duckdb", sql::duckdb()) {
        compare(&duckdb, &received, &expected, HOURS);
    }
    if let Some(clickhouse) = require("chdb", sql::clickhouse()) {
        compare(&clickhouse, &received, &expected, HOURS);
    }
}

#[test]
fn a_collector_written_by_others_passes_records_on() {
    let (Some(program), Some(_)) = (
        require("pypi", rotel::available()),
        require("agent", agent::binary()),
    ) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let rotel = Rotel::start(program, dir.path()).unwrap();
    let mut rig = Rig::new(2, rotel.grpc_url());
    // As for all logs over OTLP, but for the endpoint.
    rig.config.otlp.compression = gpuacct::config::OtlpCompression::Gzip;
    let mut agent = rig.agent();
    wait_until_all_are_acknowledged(&mut agent, rig.records);
    let received = rotel
        .wait_for("every record", PATIENCE, |received| {
            arrived(received).len() == rig.records
        })
        .unwrap();
    let resource = &received.logs[0].resource_logs[0];
    let attributes = &resource.resource.as_ref().unwrap().attributes;
    assert_eq!(text(attributes, "k8s.node.name").as_deref(), Some("gpu-7"));
    let records = &resource.scope_logs[0].log_records;
    let trainer = records
        .iter()
        .find(|record| text(&record.attributes, "k8s.pod.name").as_deref() == Some("train-0"))
        .unwrap();
    let begins = u64::try_from(rig.since.as_nanosecond()).unwrap();
    assert_eq!(trainer.time_unix_nano, begins);
    let busy = used(0, 0).busy.0;
    assert_eq!(
        integer(&trainer.attributes, "gpuacct.busy_ns"),
        Some(busy.cast_signed())
    );
    assert!(records.iter().all(|record| record.severity_text == "INFO"));
}

#[test]
fn records_wait_for_their_receiver_and_what_it_rejects_is_not_sent_again() {
    if require("agent", agent::binary()).is_none() {
        return;
    }
    let sink = Sink::start().unwrap();
    sink.answer_logs(LogsAnswer::Unavailable);
    let rig = Rig::new(3, format!("http://{}", sink.address()));
    let mut agent = rig.agent();
    agent
        .wait_for("the records to wait", |agent| {
            Ok(waiting(agent)? == rig.records && outcome(agent, "failed")? > 0)
        })
        .unwrap();
    // The oldest hour ended three hours ago and more.
    let age = oldest_age(&agent).unwrap();
    assert!(age >= 3.0 * 3_600.0, "{age}");
    sink.answer_logs(LogsAnswer::Deny);
    agent
        .wait_for_status("the refusal to be told", |status| {
            matches!(state(status), SourceState::Down { class, .. } if &**class == "permission")
        })
        .unwrap();
    assert_eq!(arrived(&sink.received()).len(), 0);
    assert_eq!(rig.unsettled(), i64::try_from(rig.records).unwrap());
    // The agent that comes after it begins at once.
    drop(agent);
    sink.answer_logs(LogsAnswer::Reject(4));
    let mut agent = rig.agent();
    wait_until_all_are_acknowledged(&mut agent, rig.records);
    assert_eq!(outcome(&agent, "rejected").unwrap(), 4);
    assert_eq!(outcome(&agent, "delivered").unwrap(), rig.records - 4);
    assert!(oldest_age(&agent).unwrap() < 1.0);
    agent
        .wait_for_status("it to be up", |status| *state(status) == SourceState::Up)
        .unwrap();
    let arrived = arrived(&sink.received());
    assert_eq!(arrived.len(), rig.records);
    assert!(arrived.values().all(|times| *times == 1), "{arrived:?}");
}

#[test]
fn an_agent_that_is_killed_again_and_again_loses_no_record() {
    if require("agent", agent::binary()).is_none() {
        return;
    }
    let kills: u64 = std::env::var("GPUACCT_KILLS").map_or(3, |kills| kills.parse().unwrap());
    let sink = Sink::start().unwrap();
    // More messages of a hundred records than are acknowledged before the last kill.
    let rig = Rig::new(15 * (kills / 2 + 2), format!("http://{}", sink.address()));
    for kill in 0..kills {
        // Killed while an answer is awaited that does not come, or just after the answer to one message.
        sink.answer_logs(match kill % 2 {
            0 => LogsAnswer::LoseAnswer,
            _ => LogsAnswer::TakeOne,
        });
        let before = sink.received().logs.len();
        let agent = rig.agent();
        sink.wait_for(PATIENCE, |received| received.logs.len() > before)
            .expect("there is more to send");
        drop(agent);
    }
    assert!(rig.unsettled() > 0, "the last agent has something to send");
    sink.answer_logs(LogsAnswer::Take);
    let mut agent = rig.agent();
    wait_until_all_are_acknowledged(&mut agent, 0);
    let arrived = arrived(&sink.received());
    assert_eq!(arrived.len(), rig.records, "each id in one revision");
    let twice = arrived.values().filter(|times| **times > 1).count();
    println!(
        "{kills} kills: {twice} of {} records arrived more than once",
        rig.records
    );
    assert!(agent.stop().unwrap().success());
    assert_eq!(rig.unsettled(), 0);
}
