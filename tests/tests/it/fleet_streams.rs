//! `gpuacct report --from` over real agents: one and two nodes in a Prometheus, a store that has the same
//! counters by three ways, and a target that was away. The nodes' ledgers are the truth.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use gpuacct::config::Config;
use gpuacct::outputs::socket::StatusReport;
use gpuacct::outputs::store::mark::MarkerFile;
use gpuacct_tests::agent::{self, Agent};
use gpuacct_tests::certificates::Authority;
use gpuacct_tests::daemon::{Killed, program};
use gpuacct_tests::http::free_address;
use gpuacct_tests::node::Node;
use gpuacct_tests::prometheus::{self, Prometheus, Role};
use gpuacct_tests::requirement::require;
use gpuacct_tests::victoria_metrics::{self, VictoriaMetrics};
use gpuacct_tests::web::newest;
use rust_decimal::Decimal;
use serde_json::{Value, json};
use sim_nvml::library::Driver;

use crate::fleet::{PATIENCE, SCRAPE_INTERVAL, number};

const HOST_BUSY: &str = "gpuacct_host_gpu_busy_seconds_total";
/// What one scrape can miss of a counter, in seconds.
fn missed() -> Decimal {
    Decimal::new(2, 1)
}

/// A report of the last hours by node and unit.
fn report(arguments: &[&str]) -> Value {
    report_by("node,unit", arguments)
}

/// The same, grouped by something else.
fn report_by(by: &str, arguments: &[&str]) -> Value {
    let output = Command::new(agent::binary().unwrap())
        .args(["report", "--since", "1h", "--by", by, "-o", "json"])
        .args(arguments)
        .output()
        .unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Busy seconds of host units, by unit, and by node if the report is.
fn busy(report: &Value) -> BTreeMap<(Option<String>, String), Decimal> {
    let rows = report["rows"].as_array().unwrap().iter();
    let rows = rows.filter(|row| row["kind"] == "host");
    rows.map(|row| {
        let [node, unit] = ["node", "unit"].map(|key| row[key].as_str().map(str::to_owned));
        ((node, unit.unwrap()), number(&row["busy_seconds"]))
    })
    .collect()
}

/// Checks a bill from a store against that of the ledgers: never above it, and below by what a scrape can
/// miss.
fn agrees(scraped: &Value, kept: &Value) {
    let (from, of) = (busy(scraped), busy(kept));
    assert_eq!(
        from.keys().collect::<Vec<_>>(),
        of.keys().collect::<Vec<_>>(),
        "{scraped:#}"
    );
    for (key, kept) in of {
        let missing = kept - from[&key];
        // A double has no more than these digits.
        assert!(missing >= Decimal::new(-1, 6), "{key:?}: {kept} {from:?}");
        assert!(missing <= missed(), "{key:?}: {kept} {from:?}");
    }
    assert_eq!(
        number(&scraped["imbalance_seconds"]),
        Decimal::ZERO,
        "{scraped:#}"
    );
}

/// Checks the bill of a store against a ledger in which more than three seconds are busy.
fn bills_what_was_kept(by: &str, url: &str, ledger: &Path) {
    let scraped = report_by(by, &["--from", url]);
    let kept = report_by(by, &["--store", text(ledger)]);
    assert!(
        busy(&kept).values().sum::<Decimal>() > Decimal::from(3),
        "{kept:#}"
    );
    agrees(&scraped, &kept);
}

/// Waits until a store has all of the hosts' busy time that is booked.
fn wait_for_booked(store: &Prometheus, booked: f64) {
    let is_there = |found: &[prometheus::Sample]| {
        found
            .iter()
            .any(|sample| (sample.value - booked).abs() < 1e-6)
    };
    store
        .wait_for(&format!("sum({HOST_BUSY})"), PATIENCE, is_there)
        .unwrap();
}

/// A node's agent, and what is at work on its GPU.
struct Running {
    agent: Agent,
    config: Config,
    store: PathBuf,
    node: Node,
}

impl Running {
    fn start(number: u32, name: &str, change: impl FnOnce(&mut Config)) -> Self {
        let node = Node::numbered(number..number + 1, Driver::R550).unwrap();
        let mut config = node.config();
        config.otlp.node_name = Some(name.to_owned());
        change(&mut config);
        let agent = node.agent("fleet", config.clone()).unwrap();
        let store = node.dir().join("fleet").join("store");
        Self {
            agent,
            config,
            store,
            node,
        }
    }

    fn work(&self, share: &str) -> Killed {
        let mut work = self.node.host_work(0, share);
        let work = work.args(["--label", "job"]).stdout(Stdio::null());
        Killed(work.spawn().unwrap())
    }

    fn wait_for_busy(&mut self, wanted: f64) {
        self.agent
            .wait_for_status("its work", |status| seconds(status) > wanted)
            .unwrap();
    }

    /// Has a job use the GPU until more than so many seconds are busy, and returns what is booked then.
    fn works(&mut self, share: &str, wanted: f64) -> f64 {
        let work = self.work(share);
        self.wait_for_busy(wanted);
        drop(work);
        self.settle()
    }

    /// Ends the agent. The ledger is in the node's folder, which is there as long as the node.
    fn stop(self) -> (PathBuf, Node) {
        assert!(self.agent.stop().unwrap().success());
        (self.store, self.node)
    }

    /// What is booked once nothing is at work.
    fn settle(&mut self) -> f64 {
        seconds(&self.node.settle(&mut self.agent).unwrap())
    }
}

fn seconds(status: &StatusReport) -> f64 {
    status.snapshot.gpus[0].busy.as_secs_f64()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn two_agents_in_one_prometheus_give_the_bill_of_their_ledgers() {
    if require("prometheus", prometheus::available()).is_none()
        || require("agent", agent::binary()).is_none()
    {
        return;
    }
    let names = ["fleet-one", "fleet-two"];
    let mut nodes =
        [(21, names[0]), (22, names[1])].map(|(number, name)| Running::start(number, name, |_| {}));
    let dir = tempfile::tempdir().unwrap();
    let interval = format!("{}ms", SCRAPE_INTERVAL.as_millis());
    let targets = nodes.iter().zip(names).map(|(node, name)| {
        let labels = json!({"node": name, "cluster": format!("cluster-of-{name}")});
        json!({"targets": [node.agent.address()], "labels": labels})
    });
    let config = json!({
        "global": {"scrape_interval": interval, "scrape_timeout": interval},
        "scrape_configs": [{
            "job_name": "gpuacct",
            "static_configs": targets.collect::<Vec<_>>(),
        }],
    });
    let store = Prometheus::start_with(
        &program("prometheus").unwrap(),
        dir.path(),
        &config,
        SCRAPE_INTERVAL,
    );
    let store = store.unwrap();
    let both = |found: &[prometheus::Sample]| found.iter().filter(|up| up.value > 0.0).count() == 2;
    store.wait_for("up", PATIENCE, both).unwrap();

    let work = [nodes[0].work("0.5"), nodes[1].work("0.25")];
    nodes[0].wait_for_busy(3.0);
    nodes[1].wait_for_busy(1.5);
    drop(work);
    let booked: f64 = nodes.iter_mut().map(Running::settle).sum();
    wait_for_booked(&store, booked);
    let nodes = nodes.map(Running::stop);

    let url = format!("http://{}", store.address());
    let stores = [text(&nodes[0].0), text(&nodes[1].0)];
    let kept = report(&["--store", stores[0], "--store", stores[1]]);
    assert_eq!(kept["nodes"], json!(names), "{kept:#}");
    let scraped = report(&["--from", &url]);
    assert_eq!(scraped["nodes"], json!(names), "{scraped:#}");
    assert!(
        busy(&kept).values().sum::<Decimal>() > Decimal::from(4),
        "{kept:#}"
    );
    agrees(&scraped, &kept);
    // Each cluster is one of the nodes.
    for ((ledger, _), name) in nodes.iter().zip(names) {
        let selector = format!("{{cluster=\"cluster-of-{name}\"}}");
        let of_one = report(&["--from", &url, "--selector", &selector]);
        agrees(&of_one, &report(&["--store", text(ledger)]));
    }
}

#[test]
fn a_store_that_is_scraped_and_pushed_to_bills_each_second_once() {
    let victoria = require("victoria-metrics", victoria_metrics::available());
    let Some(victoria) = victoria else { return };
    if require("prometheus", prometheus::available()).is_none()
        || require("agent", agent::binary()).is_none()
    {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let address = free_address().unwrap();
    let interval = format!("{}ms", SCRAPE_INTERVAL.as_millis());
    let scrapes = json!({
        "global": {"scrape_interval": interval, "scrape_timeout": interval},
        "scrape_configs": [{
            "job_name": "gpuacct",
            "static_configs": [{"targets": [address], "labels": {"node": "fleet-three"}}],
        }],
    });
    let file = dir.path().join("scrapes.json");
    fs::write(&file, scrapes.to_string()).unwrap();
    let authority = Authority::new(dir.path(), "authority").unwrap();
    // It scrapes, and has OTLP's metrics under Prometheus' names.
    let arguments = [
        format!("-promscrape.config={}", file.display()),
        "-opentelemetry.usePrometheusNaming".to_owned(),
    ];
    let store = VictoriaMetrics::start_with(&victoria, dir.path(), &authority, &arguments).unwrap();

    let mut node = Running::start(23, "fleet-three", |config| {
        config.prometheus.listen = address;
        config.otlp.endpoint = Some(format!("{}/opentelemetry", store.url()));
        config.otlp.protocol = gpuacct::config::OtlpProtocol::HttpProtobuf;
        config.otlp.interval = gpuacct::config::Span(std::time::Duration::from_secs(1));
    });
    // A second server scrapes the agent, too, and sends the store what it has.
    let mut config = scrapes;
    config["remote_write"] = json!([{"url": format!("{}/api/v1/write", store.url())}]);
    config["global"]["external_labels"] = json!({"prometheus_replica": "b"});
    let server = Prometheus::start_with(
        &program("prometheus").unwrap(),
        dir.path(),
        &config,
        SCRAPE_INTERVAL,
    );
    let _server = server.unwrap();
    let three = |query: &str| {
        let found = store.wait_for(query, PATIENCE, |found| found.len() == 3);
        found.unwrap()
    };
    three("gpuacct_gpu_elapsed_seconds_total");
    let booked = node.works("0.5", 3.0);
    let series = three(&format!("{HOST_BUSY} > {}", booked - 1e-6));
    // They differ in their labels, by which alone they would be three counters.
    assert!(
        series
            .iter()
            .any(|(labels, _)| labels["prometheus_replica"] == "b"),
        "{series:?}"
    );
    let (ledger, _node) = node.stop();

    bills_what_was_kept("node,unit", &store.url(), &ledger);
}

#[test]
fn a_scraped_agent_gives_the_bill_of_its_ledger() {
    if require("prometheus", prometheus::available()).is_none()
        || require("agent", agent::binary()).is_none()
    {
        return;
    }
    let mut running = Running::start(24, "fleet-four", |_| {});
    let dir = tempfile::tempdir().unwrap();
    let store = Prometheus::start(dir.path(), &[running.agent.address()], SCRAPE_INTERVAL).unwrap();
    // It scrapes before anything is at work, so that it sees where counters begin.
    store.wait_for_scrape(PATIENCE).unwrap();
    let booked = running.works("0.5", 3.0);
    wait_for_booked(&store, booked);
    let (ledger, _node) = running.stop();

    // Without a label that names the node.
    let url = format!("http://{}", store.address());
    bills_what_was_kept("unit", &url, &ledger);
}

/// A Prometheus that loses a target writes a marker of staleness. Stores that others write into answer it
/// as a sample.
#[test]
fn a_target_that_was_away_made_the_bill_of_a_store_that_is_written_into_impossible() {
    let (Some(victoria), Some(program)) = (
        require("victoria-metrics", victoria_metrics::available()),
        require("prometheus-new", newest("prometheus")),
    ) else {
        return;
    };
    if require("agent", agent::binary()).is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path(), "authority").unwrap();
    let store = VictoriaMetrics::start(&victoria, dir.path(), &authority).unwrap();
    let address = free_address().unwrap();
    let mut running = Running::start(25, "fleet-five", |config| {
        config.prometheus.listen = address;
    });
    let interval = format!("{}ms", SCRAPE_INTERVAL.as_millis());
    let scraper = json!({
        "global": {"scrape_interval": interval, "scrape_timeout": interval},
        "scrape_configs": [{
            "job_name": "gpuacct",
            "honor_labels": true,
            "static_configs": [{"targets": [address]}],
        }],
        "remote_write": [{
            "url": format!("{}/api/v1/write", store.url()),
            "queue_config": {"batch_send_deadline": "200ms"},
        }],
    });
    let _scraper =
        Prometheus::start_as(Role::Agent, &program, dir.path(), &scraper, SCRAPE_INTERVAL).unwrap();
    let has = |query: &str, pleases: &dyn Fn(f64) -> bool| {
        let found = |found: &[(Value, f64)]| found.iter().any(|(_, value)| pleases(*value));
        store.wait_for(query, PATIENCE, found).unwrap();
    };
    let elapsed = "gpuacct_gpu_elapsed_seconds_total";
    has(elapsed, &|_| true);
    let booked = running.works("0.5", 1.0);
    has(&format!("sum({HOST_BUSY})"), &|value| {
        (value - booked).abs() < 1e-6
    });

    let config = running.config.clone();
    let (ledger, node) = running.stop();
    has("up", &|up| up < 0.5);
    // As a reboot does, so that the hour is read sample by sample.
    let mark = MarkerFile::beside(&ledger.with_file_name("agent.sock"));
    fs::remove_file(mark.path()).unwrap();
    let again = node.agent("fleet", config).unwrap();
    has(&format!("resets({elapsed}[1h])"), &|falls| falls > 0.5);
    assert!(again.stop().unwrap().success());

    let kept = report_by("unit", &["--store", text(&ledger)]);
    assert!(!busy(&kept).is_empty());
    agrees(&report_by("unit", &["--from", &store.url()]), &kept);
}
