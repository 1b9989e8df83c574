//! OTLP over TLS at real receivers, set up by OpenTelemetry's environment variables alone.

use std::path::{Path, PathBuf};
use std::time::Duration;

use gpuacct::core::model::{SourceId, SourceState};
use gpuacct::outputs::socket::StatusReport;
use gpuacct_tests::agent;
use gpuacct_tests::certificates::Authority;
use gpuacct_tests::nginx::{self, Nginx};
use gpuacct_tests::node::{Node, state};
use gpuacct_tests::requirement::require;
use gpuacct_tests::rotel::{self, Rotel};
use gpuacct_tests::victoria_metrics::{self, VictoriaMetrics};

/// Only ever waited for when something is broken.
const PATIENCE: Duration = Duration::from_secs(60);

/// Variables, as the agent is given them.
struct Variables(Vec<(&'static str, PathBuf)>);

impl Variables {
    fn new(texts: &[(&'static str, &str)]) -> Self {
        Self(
            texts
                .iter()
                .map(|(name, text)| (*name, (*text).into()))
                .collect(),
        )
    }

    fn with(mut self, files: &[(&'static str, PathBuf)]) -> Self {
        self.0.extend_from_slice(files);
        self
    }

    fn given(&self) -> Vec<(&str, &Path)> {
        self.0
            .iter()
            .map(|(name, value)| (*name, value.as_path()))
            .collect()
    }
}

/// Whether the agent's OTLP is down with a class.
fn is_down(status: &StatusReport, expected: &str) -> bool {
    matches!(state(status, SourceId::Otlp), SourceState::Down { class, .. } if &**class == expected)
}

/// An agent's node, and rotel behind an nginx that demands a client certificate.
struct Rig {
    front: Nginx,
    rotel: Rotel,
    authority: Authority,
    /// Dropped last, since all others write into its directory.
    node: Node,
}

impl Rig {
    /// Starts all but the agent, if all parts are there.
    fn start() -> Option<Self> {
        require("agent", agent::binary())?;
        let front = require("nginx", nginx::available())?;
        let rotel = require("pypi", rotel::available())?;
        Some(Self::of(&front, rotel).expect("the parts that are there start"))
    }

    fn of(front: &Path, rotel: rotel::Program) -> anyhow::Result<Self> {
        let node = Node::new(1)?;
        let authority = Authority::new(node.dir(), "authority")?;
        let rotel = Rotel::start(rotel, node.dir())?;
        let front = Nginx::start(front, node.dir(), &authority, rotel.grpc_address())?;
        Ok(Self {
            front,
            rotel,
            authority,
            node,
        })
    }
}

#[test]
fn the_books_arrive_at_victoria_metrics_over_tls() {
    let agent = require("agent", agent::binary());
    let program = require("victoria-metrics", victoria_metrics::available());
    let (Some(_), Some(program)) = (agent, program) else {
        return;
    };
    let node = Node::new(1).unwrap();
    let authority = Authority::new(node.dir(), "authority").unwrap();
    let backend = VictoriaMetrics::start(&program, node.dir(), &authority).unwrap();
    let variables = Variables::new(&[
        (
            "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
            &backend.metrics_url(),
        ),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "1000"),
        ("OTEL_RESOURCE_ATTRIBUTES", "k8s.cluster.name=a%20lab"),
    ])
    .with(&[("OTEL_EXPORTER_OTLP_CERTIFICATE", authority.ca())]);
    let mut agent = node
        .agent_with("agent", node.config(), &variables.given())
        .unwrap();
    agent
        .wait_for_status("the receiver", |status| {
            *state(status, SourceId::Otlp) == SourceState::Up
        })
        .unwrap();
    let query = "{__name__=\"gpuacct.gpu.elapsed\"}";
    let found = backend
        .wait_for(query, PATIENCE, |found| {
            found.first().is_some_and(|(_, value)| *value > 0.0)
        })
        .unwrap();
    let labels = &found[0].0;
    assert_eq!(labels["k8s.cluster.name"], "a lab", "{labels}");
    assert_eq!(labels["service.name"], "gpuacct", "{labels}");
    assert!(
        labels["hw.id"].as_str().unwrap().starts_with("GPU-"),
        "{labels}"
    );
    let size = "{__name__=\"hw.gpu.memory.limit\"}";
    let found = backend
        .wait_for(size, PATIENCE, |found| !found.is_empty())
        .unwrap();
    let book = &agent.status().unwrap().snapshot.gpus[0].gpu;
    assert_eq!(found[0].0["hw.model"], *book.model);
    // The agent's own, by the SDK.
    let own = "{__name__=\"process.cpu.time\"}";
    backend
        .wait_for(own, PATIENCE, |found| !found.is_empty())
        .unwrap();
    assert!(agent.stop().unwrap().success());
}

#[test]
fn books_and_log_arrive_at_rotel_over_grpc_with_client_certificates() {
    let Some(rig) = Rig::start() else { return };
    let own = rig.authority.for_name("agent").unwrap();
    // Without a scheme, as gRPC's clients take it.
    let variables = Variables::new(&[
        (
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            &rig.front.address().to_string(),
        ),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-scope-orgid=a%3Db"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "1000"),
        ("OTEL_SERVICE_NAME", "lab-gpus"),
    ])
    .with(&[
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", rig.authority.ca()),
        ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", own.cert),
        ("OTEL_EXPORTER_OTLP_CLIENT_KEY", own.key),
    ]);
    let agent = rig
        .node
        .agent_with("agent", rig.node.config(), &variables.given())
        .unwrap();
    let received = rig
        .rotel
        .wait_for(
            "the books, the agent's own and its log",
            PATIENCE,
            |received| {
                !received.latest("hw.gpu.memory.limit").is_empty()
                    && !received.latest("process.cpu.time").is_empty()
                    && !received.logs.is_empty()
            },
        )
        .unwrap();
    for name in ["hw.gpu.memory.limit", "process.cpu.time"] {
        let points = received.latest(name);
        let point = points.values().next().unwrap();
        assert_eq!(point.resource["service.name"], "lab-gpus", "{point:?}");
    }
    let mut shown = agent.command(&["config"]);
    let shown = shown.envs(variables.given()).output().unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    for line in [
        "service_name = \"lab-gpus\" # from OTEL_SERVICE_NAME",
        "x-scope-orgid = \"(redacted)\" # from OTEL_EXPORTER_OTLP_HEADERS",
        "interval = \"1s\" # from OTEL_METRIC_EXPORT_INTERVAL",
    ] {
        assert!(shown.lines().any(|found| found == line), "{line}: {shown}");
    }
    assert!(agent.stop().unwrap().success());
}

#[test]
fn a_wrong_authority_and_a_missing_client_certificate_are_said() {
    let Some(rig) = Rig::start() else { return };
    let other = Authority::new(rig.node.dir(), "other").unwrap();
    let endpoint = format!("https://{}", rig.front.address());
    // What is wrong, the class of the state, and what `gpuacct check` finds.
    for (name, ca, class, found) in [
        ("wrong", other.ca(), "tls_unknown_ca", "(tls_unknown_ca)"),
        (
            "missing",
            rig.authority.ca(),
            "tls_client_certificate",
            "asks for a client certificate",
        ),
    ] {
        let variables = Variables::new(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint),
            ("OTEL_METRIC_EXPORT_INTERVAL", "1000"),
        ])
        .with(&[("OTEL_EXPORTER_OTLP_CERTIFICATE", ca)]);
        let mut agent = rig
            .node
            .agent_with(name, rig.node.config(), &variables.given())
            .unwrap();
        agent
            .wait_for_status(class, |status| is_down(status, class))
            .unwrap();
        let mut check = agent.command(&["check", "-o", "json"]);
        let check = check.envs(variables.given()).output().unwrap();
        let page = String::from_utf8(check.stdout).unwrap();
        assert!(page.contains(found), "{found}: {page}");
        assert!(agent.stop().unwrap().success());
    }
    assert_eq!(rig.rotel.received().metrics, []);
}
