//! `gpuacct report --from` over real agents: two nodes in one Prometheus, and a store that has the same
//! counters by three ways. The nodes' ledgers are the truth.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use gpuacct::config::Config;
use gpuacct::outputs::socket::StatusReport;
use gpuacct_tests::agent::{self, Agent};
use gpuacct_tests::certificates::Authority;
use gpuacct_tests::daemon::{Killed, program};
use gpuacct_tests::http::free_address;
use gpuacct_tests::node::Node;
use gpuacct_tests::prometheus::{self, Prometheus};
use gpuacct_tests::requirement::require;
use gpuacct_tests::victoria_metrics::{self, VictoriaMetrics};
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
    let output = Command::new(agent::binary().unwrap())
        .args(["report", "--since", "1h", "--by", "node,unit", "-o", "json"])
        .args(arguments)
        .output()
        .unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Busy seconds of host units, by node and unit.
fn busy(report: &Value) -> BTreeMap<(String, String), Decimal> {
    let rows = report["rows"].as_array().unwrap().iter();
    let rows = rows.filter(|row| row["kind"] == "host");
    rows.map(|row| {
        let key = ["node", "unit"].map(|key| row[key].as_str().unwrap().to_owned());
        (key.into(), number(&row["busy_seconds"]))
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

/// A node's agent, and what is at work on its GPU.
struct Running {
    agent: Agent,
    store: PathBuf,
    node: Node,
}

impl Running {
    fn start(number: u32, name: &str, change: impl FnOnce(&mut Config)) -> Self {
        let node = Node::numbered(number..number + 1, Driver::R550).unwrap();
        let mut config = node.config();
        config.otlp.node_name = Some(name.to_owned());
        change(&mut config);
        let agent = node.agent("fleet", config).unwrap();
        let store = node.dir().join("fleet").join("store");
        Self { agent, store, node }
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
    let is_there = |found: &[prometheus::Sample]| {
        found
            .iter()
            .any(|sample| (sample.value - booked).abs() < 1e-6)
    };
    store
        .wait_for(&format!("sum({HOST_BUSY})"), PATIENCE, is_there)
        .unwrap();
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
    let work = node.work("0.5");
    node.wait_for_busy(3.0);
    drop(work);
    let booked = node.settle();
    let series = three(&format!("{HOST_BUSY} > {}", booked - 1e-6));
    // They differ in their labels, by which alone they would be three counters.
    assert!(
        series
            .iter()
            .any(|(labels, _)| labels["prometheus_replica"] == "b"),
        "{series:?}"
    );
    let (ledger, _node) = node.stop();

    let scraped = report(&["--from", &store.url()]);
    let kept = report(&["--store", text(&ledger)]);
    assert!(
        busy(&kept).values().sum::<Decimal>() > Decimal::from(3),
        "{kept:#}"
    );
    agrees(&scraped, &kept);
}
