//! The dashboards in `deploy/grafana`: that they are whole, that each query speaks of what exists, and
//! that every panel has data from a real agent by way of a real Prometheus, whether that keeps the owner
//! labels (`honor_labels`) or renames them.
//!
//! Grafana itself is not to be had here.

#![expect(
    clippy::unwrap_used,
    reason = "the helpers are part of the tests: what is not as it should be fails them"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use gpuacct::config::Span;
use gpuacct::core::model::{SourceId, SourceState};
use gpuacct_tests::agent::{self, Agent};
use gpuacct_tests::daemon::Killed;
use gpuacct_tests::docker::{self, ContainerSpec, Dockerd};
use gpuacct_tests::node::{Node, new_pod_uid, state};
use gpuacct_tests::pod_resources::{Get, Kubelet, pod};
use gpuacct_tests::prometheus::{Prometheus, Sample};
use gpuacct_tests::promql::{
    Names, OTHERS, OWNER, OWNER_PREFIXES, RULE_FILES, TARGET, alerts_folder,
};
use gpuacct_tests::requirement::require;
use gpuacct_tests::web::newest;
use serde_json::{Value, json};
use sim_nvml::library::Driver;
use sim_nvml::{GpuSpec, Scenario};
use tokio::runtime::Runtime;

/// What Grafana calls units, as far as it is used.
const UNITS: [&str; 13] = [
    "bytes",
    "celsius",
    "cps",
    "dateTimeAsIso",
    "h",
    "none",
    "percentunit",
    "s",
    "short",
    "watt",
    "string",
    "hertz",
    "joule",
];
/// What Grafana puts into a query by itself, and what stands for it here.
const BUILT_IN: [(&str, &str); 2] = [("__rate_interval", "2m"), ("__range", "1h")];
/// The width of a dashboard.
const COLUMNS: u64 = 24;
const PATIENCE: Duration = Duration::from_secs(90);
const SCRAPE_INTERVAL: Duration = Duration::from_millis(500);
/// Several scrapes, since one may fail on a busy machine.
const ZERO_FOR: Duration = Duration::from_secs(3);
const NAMESPACE: &str = "ml";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/grafana")
}

/// The dashboards by the names of their files.
fn dashboards() -> BTreeMap<String, Value> {
    let entries = fs::read_dir(folder()).unwrap();
    let files = entries.map(|entry| entry.unwrap().path());
    let files = files.filter(|file| file.extension().is_some_and(|kind| kind == "json"));
    let read = files.map(|file| {
        let text = fs::read_to_string(&file).unwrap();
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        (name, serde_json::from_str(&text).unwrap())
    });
    let dashboards: BTreeMap<String, Value> = read.collect();
    assert_eq!(dashboards.len(), 6);
    dashboards
}

fn list<'a>(of: &'a Value, key: &str) -> &'a [Value] {
    of[key].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn text<'a>(of: &'a Value, key: &str) -> &'a str {
    of[key]
        .as_str()
        .unwrap_or_else(|| panic!("no {key} in {of}"))
}

/// Each panel with a query, with its title for messages.
fn panels<'a>(file: &str, dashboard: &'a Value) -> Vec<(String, &'a Value)> {
    let panels = list(dashboard, "panels").iter();
    let panels = panels.filter(|panel| panel["type"] != "row");
    panels
        .map(|panel| (format!("{file}: {}", text(panel, "title")), panel))
        .collect()
}

fn variables(dashboard: &Value) -> Vec<&Value> {
    list(&dashboard["templating"], "list").iter().collect()
}

/// The names of variables in a text: `$name` and `${name}`, without Grafana's for links.
fn used(text: &str) -> BTreeSet<String> {
    let parts = text.split('$').skip(1);
    let names = parts.map(|part| {
        let part = part.strip_prefix('{').unwrap_or(part);
        let is_part = |c: &char| c.is_ascii_alphanumeric() || *c == '_';
        part.chars().take_while(is_part).collect::<String>()
    });
    names.filter(|name| !name.is_empty()).collect()
}

/// A query with values in place of variables.
fn filled(expression: &str, values: &BTreeMap<String, String>) -> String {
    let built_in = BUILT_IN.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let mut query = expression.to_owned();
    for (name, value) in values.clone().into_iter().chain(built_in) {
        query = query.replace(&format!("${name}"), &value);
    }
    assert!(!query.contains('$'), "{query}");
    query
}

/// The selector and the label of a variable that lists a label's values.
fn label_values(variable: &Value) -> Option<(&str, &str)> {
    let query = variable["query"]["query"].as_str()?;
    let inner = query.strip_prefix("label_values(")?.strip_suffix(')')?;
    inner.rsplit_once(", ")
}

fn no_values(dashboard: &Value) -> BTreeMap<String, String> {
    let names = variables(dashboard).into_iter();
    names
        .map(|variable| (text(variable, "name").to_owned(), "x".to_owned()))
        .collect()
}

#[test]
fn every_dashboard_is_whole() {
    let dashboards = dashboards();
    let uids: BTreeSet<&str> = dashboards.values().map(|d| text(d, "uid")).collect();
    assert_eq!(uids.len(), dashboards.len(), "{uids:?}");
    for (file, dashboard) in &dashboards {
        assert_eq!(
            text(dashboard, "uid"),
            format!("gpuacct-{}", file.trim_end_matches(".json"))
        );
        assert!(text(dashboard, "title").starts_with("gpuacct / "), "{file}");
        assert!(text(dashboard, "description").ends_with('.'), "{file}");
        assert!(dashboard["schemaVersion"].as_u64() >= Some(39), "{file}");
        let mut ids = BTreeSet::new();
        let mut places = BTreeSet::new();
        for panel in list(dashboard, "panels") {
            assert!(ids.insert(panel["id"].as_u64().unwrap()), "{panel}");
            let place = |key: &str| panel["gridPos"][key].as_u64().unwrap();
            let (x, y) = (place("x"), place("y"));
            assert!(x + place("w") <= COLUMNS, "{panel}");
            for cell in (x..x + place("w")).flat_map(|x| (y..y + place("h")).map(move |y| (x, y))) {
                assert!(places.insert(cell), "two panels at {cell:?}: {panel}");
            }
        }
        for (name, panel) in panels(file, dashboard) {
            let description = text(panel, "description");
            assert!(
                description.len() > 20 && description.ends_with('.'),
                "{name} does not say what it shows"
            );
            let targets = list(panel, "targets");
            let references: BTreeSet<&str> = targets.iter().map(|t| text(t, "refId")).collect();
            assert!(
                !targets.is_empty() && references.len() == targets.len(),
                "{name}"
            );
            for source in targets.iter().chain([panel]) {
                assert_eq!(
                    text(&source["datasource"], "uid"),
                    "${datasource}",
                    "{name}"
                );
            }
            let overrides = list(&panel["fieldConfig"], "overrides").iter();
            let properties = overrides.flat_map(|o| list(o, "properties"));
            let units = properties.filter(|p| p["id"] == "unit");
            let units = units.map(|p| text(p, "value"));
            for unit in units.chain([text(&panel["fieldConfig"]["defaults"], "unit")]) {
                assert!(UNITS.contains(&unit), "{name}: unit {unit}");
            }
        }
        // What is used is defined, and the other way round.
        let defined: BTreeSet<String> = no_values(dashboard).into_keys().collect();
        let built_in = BUILT_IN.map(|(name, _)| name.to_owned());
        let whole = dashboard.to_string();
        let of_links = ["__data", "__url_time_range", "__all"];
        let used: BTreeSet<String> = used(&whole)
            .into_iter()
            .filter(|name| !built_in.contains(name) && !of_links.contains(&&**name))
            .collect();
        assert_eq!(used, defined, "{file}");
        // Links lead to a dashboard that has the variable that they set.
        for link in whole.split("\"/d/").skip(1) {
            let (uid, rest) = link.split_once("?var-").unwrap();
            let variable = rest.split('=').next().unwrap();
            let to = dashboards.values().find(|d| text(d, "uid") == uid);
            let to = to.unwrap_or_else(|| panic!("{file} links to {uid}"));
            assert!(no_values(to).contains_key(variable), "{file}: {link}");
        }
    }
}

#[test]
fn queries_legends_and_columns_name_metrics_and_labels_that_exist() {
    let Some(program) = require("prometheus-new", newest("prometheus")) else {
        return;
    };
    let names = Names::start(&program).unwrap();
    for (file, dashboard) in dashboards() {
        let values = no_values(&dashboard);
        for variable in variables(&dashboard) {
            if let Some((selector, label)) = label_values(variable) {
                let labels = names.labels(&filled(selector, &values)).unwrap();
                assert!(labels.contains(label), "{file}: {variable}");
            }
        }
        for (name, panel) in panels(&file, &dashboard) {
            let mut columns = BTreeSet::from(["Time".to_owned(), "__name__".to_owned()]);
            let targets = list(panel, "targets");
            for target in targets {
                let query = filled(text(target, "expr"), &values);
                let labels = names.labels(&query);
                let labels = labels.unwrap_or_else(|error| panic!("{name}: {error:#}"));
                let legend = target["legendFormat"].as_str().unwrap_or_default();
                for part in legend.split("{{").skip(1) {
                    let (label, _) = part.split_once("}}").unwrap();
                    assert!(labels.contains(label), "{name}: the legend has {label}");
                }
                columns.extend(labels);
                columns.insert(match targets {
                    [_] => "Value".to_owned(),
                    _ => format!("Value #{}", text(target, "refId")),
                });
            }
            if panel["type"] != "table" {
                continue;
            }
            // What a scraper adds where it does not honour the owner's labels.
            columns.extend(OWNER.map(str::to_owned));
            let organize = list(panel, "transformations").iter();
            let organize = organize.filter(|t| t["id"] == "organize");
            let [organize] = organize.collect::<Vec<_>>()[..] else {
                panic!("{name} has columns in any order");
            };
            let renamed = organize["options"]["renameByName"].as_object().unwrap();
            let hidden = organize["options"]["excludeByName"].as_object().unwrap();
            for column in renamed.keys().chain(hidden.keys()) {
                assert!(columns.contains(column), "{name} has no column {column}");
            }
            let shown: BTreeSet<&str> = renamed.values().filter_map(Value::as_str).collect();
            for of in list(&panel["fieldConfig"], "overrides") {
                let column = text(&of["matcher"], "options");
                assert!(shown.contains(column), "{name} has no column {column}");
            }
            for column in columns.iter().filter(|c| !TARGET.contains(&&***c)) {
                let is_named = renamed.contains_key(column) || hidden.contains_key(column);
                let is_scrapers = OWNER.contains(&&**column)
                    || OWNER_PREFIXES
                        .iter()
                        .any(|prefix| column.starts_with(prefix))
                    || column == "__name__";
                assert!(is_named || is_scrapers, "{name}: {column} has no heading");
            }
        }
    }
}

/// An agent on two GPUs. One will be used by a pod, and the other given to a pod that sleeps and used by
/// the host. Dropped from top to bottom.
struct Rig {
    agent: Agent,
    work: Option<Killed>,
    docker: Dockerd,
    _kubelet: Runtime,
    node: Node,
}

impl Rig {
    /// With this as `prometheus.owner_prefix` of the agent.
    fn start(owner_prefix: &str) -> Option<Self> {
        require("agent", agent::binary())?;
        require("docker", docker::available())?;
        // NVML recommends what to do about a GPU from R570 on.
        let node = Node::with_driver(2, Driver::R610).unwrap();
        let docker = node.dockerd().unwrap();
        let uuids = [0, 1].map(|index| GpuSpec::a100(index).uuid);
        let kubelet = Kubelet::new(
            Get::Offered,
            vec![
                pod("train-0", "nvidia.com/gpu", &[&uuids[0]]),
                pod("notebook-0", "nvidia.com/gpu", &[&uuids[1]]),
            ],
        );
        let socket = node.dir().join("kubelet.sock");
        let server = kubelet.serve(&socket);
        let mut config = node.config();
        config.docker.sockets = vec![docker.socket()];
        config.pod_resources.socket = socket;
        config.pod_resources.interval = Span(Duration::from_secs(1));
        config.gpu.health.interval = Span(Duration::from_secs(1));
        config.publish.zero_for = Span(ZERO_FOR);
        // Nobody takes them: no hour ends while the test runs.
        config.records.enabled = true;
        config.records.endpoint = Some("http://127.0.0.1:9".to_owned());
        config.prometheus.owner_prefix = owner_prefix.to_owned();
        let mut agent = node.agent("agent", config).unwrap();
        agent
            .wait_for_status("Docker", |status| {
                *state(status, SourceId::Docker) == SourceState::Up
            })
            .unwrap();
        Some(Self {
            agent,
            work: None,
            docker,
            _kubelet: server,
            node,
        })
    }

    /// Starts the pods and the host's work. Whoever scrapes already sees all series begin at 0.
    fn work(&mut self) {
        let in_pod = |pod: &str| {
            ContainerSpec::named(&format!("k8s_trainer_{pod}")).in_pod(
                NAMESPACE,
                pod,
                &new_pod_uid(),
                "trainer",
            )
        };
        self.work = Some(Killed(self.node.host_work(1, "0.1").spawn().unwrap()));
        self.docker.run(&in_pod("notebook-0")).unwrap();
        self.docker
            .run(&self.node.at_work(in_pod("train-0"), 0, "0.5"))
            .unwrap();
        self.agent
            .wait_for_status("the container to hold the GPU", |status| {
                let mut accounts = status.snapshot.accounts.iter();
                accounts
                    .any(|account| &*account.labels.pod == "train-0" && account.memory.is_some())
            })
            .unwrap();
    }
}

/// What a scraper does to the labels that name owners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scraper {
    /// `honor_labels`, as the PodMonitor and the example are shipped.
    Honours,
    /// The target has the labels of the agent's own pod, as the Prometheus Operator gives them. The
    /// owner's are renamed.
    Renames,
    /// It puts its own namespace on every metric, as `enforcedNamespaceLabel` of the operator does.
    Overwrites,
}

/// A Prometheus with the shipped rules, which are evaluated each second.
fn prometheus(program: &Path, dir: &Path, target: SocketAddr, scraper: Scraper) -> Prometheus {
    let dir = &dir.join(format!("{target}-{scraper:?}"));
    fs::create_dir(dir).unwrap();
    let mut files = Vec::new();
    for name in RULE_FILES {
        let text = fs::read_to_string(alerts_folder().join(name)).unwrap();
        let file = dir.join(name);
        let text = text.replace("    interval: 5m\n", "    interval: 1s\n");
        fs::write(
            &file,
            text.replace("    interval: 1m\n", "    interval: 1s\n"),
        )
        .unwrap();
        files.push(file);
    }
    // Other projects, of which none runs here, have a sample of each of their metrics.
    let others = OTHERS.map(|(name, labels)| {
        let labels = labels.iter().map(|label| match *label {
            "resource" => (*label, "nvidia.com/gpu"),
            _ => (*label, "x"),
        });
        let labels: BTreeMap<&str, &str> = labels.collect();
        json!({"record": name, "expr": "vector(4)", "labels": labels})
    });
    let file = dir.join("others.yaml");
    let text = json!({"groups": [{"name": "others", "rules": others}]});
    fs::write(&file, text.to_string()).unwrap();
    files.push(file);
    let mut labels = json!({"instance": "node-1", "node": "node-1", "cluster": "c1"});
    if scraper == Scraper::Renames {
        labels["namespace"] = "gpuacct".into();
        labels["pod"] = "gpuacct-x".into();
        labels["container"] = "agent".into();
    }
    let enforced = json!({"target_label": "namespace", "replacement": "gpuacct"});
    let relabelled = match scraper {
        Scraper::Honours | Scraper::Renames => vec![],
        Scraper::Overwrites => vec![enforced],
    };
    let interval = format!("{}ms", SCRAPE_INTERVAL.as_millis());
    let config = json!({
        "global": {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": "1s"},
        "rule_files": files,
        "scrape_configs": [{
            "job_name": "gpuacct",
            "honor_labels": scraper != Scraper::Renames,
            "metric_relabel_configs": relabelled,
            "static_configs": [{"targets": [target], "labels": labels}],
        }],
    });
    Prometheus::start_with(program, dir, &config, SCRAPE_INTERVAL).unwrap()
}

/// The values of a dashboard's variables, asked for as Grafana asks.
fn values(prometheus: &Prometheus, dashboard: &Value) -> BTreeMap<String, String> {
    let mut values = BTreeMap::new();
    for variable in variables(dashboard) {
        let name = text(variable, "name");
        let Some((selector, label)) = label_values(variable) else {
            values.insert(name.to_owned(), String::new());
            continue;
        };
        let query = format!("group by ({label}) ({})", filled(selector, &values));
        let found = prometheus.wait_for_any(&query, PATIENCE).unwrap();
        let found: Vec<&String> = found.iter().map(|sample| &sample.labels[label]).collect();
        if name == "namespace" {
            assert_eq!(
                found,
                [NAMESPACE],
                "the owner, and not the agent's namespace"
            );
        }
        // As if All was chosen, where it can be.
        let all = variable["allValue"].as_str().map(str::to_owned);
        values.insert(name.to_owned(), all.unwrap_or_else(|| found[0].clone()));
    }
    values
}

/// Runs each panel's queries until they have data.
fn every_panel_has_data(prometheus: &Prometheus) {
    let mut queries = 0;
    for (file, dashboard) in dashboards() {
        let values = values(prometheus, &dashboard);
        for (name, panel) in panels(&file, &dashboard) {
            for target in list(panel, "targets") {
                let query = filled(text(target, "expr"), &values);
                let some = |found: &[Sample]| found.iter().any(|sample| !sample.value.is_nan());
                if let Err(error) = prometheus.wait_for(&query, PATIENCE, some) {
                    panic!("{name} has no data: {error:#}");
                }
                queries += 1;
            }
        }
    }
    assert!(queries > 100, "only {queries} queries");
    assert_eq!(prometheus.failing_rules().unwrap(), [""; 0]);
}

/// What was recorded is what the counter has: the agent's series began at 0 before the eyes of this
/// Prometheus. Both are of one evaluation, since the marks are recorded with the growth.
fn what_was_recorded_adds_up(prometheus: &Prometheus) {
    for amount in ["busy", "allocated"] {
        let metric = format!("gpuacct_{amount}_seconds:growth5m");
        let query = format!(
            "abs(sum by (instance) (sum_over_time(namespace_gpu:{metric}[1h])) \
             - sum by (instance) (series:gpuacct_namespace_gpu_{amount}_seconds:mark)) < 1e-6 \
             and sum by (instance) (series:gpuacct_namespace_gpu_{amount}_seconds:mark) > 5"
        );
        prometheus.wait_for_any(&query, PATIENCE).unwrap();
    }
}

#[test]
fn every_panel_has_data_with_honor_labels_and_without() {
    let Some(program) = require("prometheus-new", newest("prometheus")) else {
        return;
    };
    let Some(mut rig) = Rig::start("") else {
        return;
    };
    let target = rig.agent.address();
    let dir = rig.node.dir().to_owned();
    let scraped_by = |scraper| prometheus(&program, &dir, target, scraper);
    let honoured = scraped_by(Scraper::Honours);
    let renamed = scraped_by(Scraper::Renames);
    for prometheus in [&honoured, &renamed] {
        prometheus.wait_for_scrape(PATIENCE).unwrap();
    }
    rig.work();
    // An error that only NVML reports, while one container alone has the GPU.
    let scenario = Scenario::open(rig.node.scenario_dir()).unwrap();
    scenario.xid(0, 79).unwrap();
    for prometheus in [&honoured, &renamed] {
        every_panel_has_data(prometheus);
    }
    what_was_recorded_adds_up(&renamed);
    assert_eq!(owner_alerts(&honoured), [""; 0]);
    assert_eq!(owner_alerts(&renamed), ["GpuacctOwnerLabelsRenamed"]);
    drop((honoured, renamed));
    // Owners that are lost are told from those that are renamed.
    let lost = scraped_by(Scraper::Overwrites);
    let alert = "ALERTS{alertname=\"GpuacctOwnerLabelsOverwritten\"}";
    lost.wait_for_any(alert, PATIENCE).unwrap();
    assert_eq!(owner_alerts(&lost), ["GpuacctOwnerLabelsOverwritten"]);
    drop(lost);
    assert!(rig.agent.stop().unwrap().success());
}

/// The alerts about owner labels that fire or wait to.
fn owner_alerts(prometheus: &Prometheus) -> Vec<String> {
    let found = prometheus.query("ALERTS{alertname=~\"GpuacctOwnerLabels.+\"}");
    let found = found.unwrap().into_iter();
    found
        .map(|sample| sample.labels["alertname"].clone())
        .collect()
}

#[test]
fn with_a_prefix_owners_survive_a_scraper_that_renames_or_overwrites_them() {
    let Some(program) = require("prometheus-new", newest("prometheus")) else {
        return;
    };
    let Some(mut rig) = Rig::start("owner_") else {
        return;
    };
    rig.work();
    for scraper in [Scraper::Overwrites, Scraper::Renames] {
        let kept = prometheus(&program, rig.node.dir(), rig.agent.address(), scraper);
        let owners = "count by (namespace, pod, container) (container_gpu:gpuacct_busy:rate5m > 0)";
        let found = kept.wait_for_any(owners, PATIENCE).unwrap();
        let [owner] = &found[..] else {
            panic!("{found:?}");
        };
        let names = ["namespace", "pod", "container"].map(|key| &*owner.labels[key]);
        assert_eq!(names, [NAMESPACE, "train-0", "trainer"], "{scraper:?}");
        let billed = "sum by (namespace) (namespace_gpu:gpuacct_busy_seconds:growth5m)";
        let found = kept.wait_for_any(billed, PATIENCE).unwrap();
        assert_eq!(found[0].labels["namespace"], NAMESPACE, "{scraper:?}");
        assert_eq!(owner_alerts(&kept), [""; 0], "{scraper:?}");
    }
    assert!(rig.agent.stop().unwrap().success());
}
