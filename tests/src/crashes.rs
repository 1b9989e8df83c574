//! What becomes of the counters when the agent is killed again and again: one container at work, a
//! real Prometheus that scrapes and a real receiver of OTLP, and what the two make of it beside what
//! the driver credited.
//!
//! Both may be too low: an amount that was published and never scraped, or queued and never sent,
//! is lost. Neither may exceed the truth, since billing somebody too much is wrong even if the mean
//! is right.
//!
//! Times are nanoseconds unless their names say otherwise.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gpuacct::config::{Config, OtlpTemporality, Span};
use gpuacct::core::snapshot::Snapshot;
use opentelemetry_proto::tonic::metrics::v1::AggregationTemporality;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};
use serde_json::json;
use sim_nvml::STATE_DIR;

use crate::accuracy::Draw;
use crate::agent::{Agent, PATIENCE};
use crate::collector::Collector;
use crate::docker::{self, Container, ContainerSpec, Dockerd};
use crate::http::free_address;
use crate::node::Node;
use crate::otlp::{Kind, Received, Sink};
use crate::prometheus::{Prometheus, Sample};
use crate::rotel::{Program, Rotel};

/// The families that are looked at, by their names in Prometheus and over OTLP.
pub const FAMILIES: [(&str, &str); 2] = [
    (
        "gpuacct_container_gpu_busy_seconds_total",
        "gpuacct.container.gpu.busy",
    ),
    (
        "gpuacct_namespace_gpu_busy_seconds_total",
        "gpuacct.namespace.gpu.busy",
    ),
];
/// The container, by the name under which the truth knows its work.
const WORK: &str = "k8s_main_train-0";
const SCRAPE_INTERVAL: Duration = Duration::from_millis(500);
/// The shortest that can be configured.
const PUSH_INTERVAL: Duration = Duration::from_secs(1);
/// How long an agent lives at most before it is killed, in milliseconds after its first commit.
const LIFE_MILLIS: u64 = 3_000;
/// The driver's samples show when they have been taken.
const SAMPLES: u64 = 1_000_000_000;
/// A receiver that has been silent for so long has everything.
const SILENCE: Duration = Duration::from_secs(8);

/// Who receives OTLP.
#[derive(Clone, Debug)]
pub enum Receiver {
    /// rotel.
    Rotel(Program),
    /// An OpenTelemetry Collector.
    Collector(PathBuf),
}

/// The same, running.
enum Receiving {
    Rotel(Rotel),
    Collector {
        /// Ended before what it sends to.
        _collector: Collector,
        url: String,
        sink: Sink,
    },
}

impl Receiving {
    fn start(receiver: Receiver, dir: &Path) -> Result<Self> {
        match receiver {
            Receiver::Rotel(program) => Rotel::start(program, dir).map(Self::Rotel),
            Receiver::Collector(binary) => {
                let (address, sink) = (free_address()?, Sink::start()?);
                let pipeline = json!({"receivers": ["otlp"], "exporters": ["otlp"]});
                // JSON is YAML, too. Neither queues nor retries: what it acknowledges it has sent on.
                let config = json!({
                    "receivers": {"otlp": {"protocols": {"grpc": {"endpoint": address}}}},
                    "exporters": {"otlp": {
                        "endpoint": sink.address(),
                        "tls": {"insecure": true},
                        "sending_queue": {"enabled": false},
                        "retry_on_failure": {"enabled": false},
                    }},
                    "service": {
                        "telemetry": {"metrics": {"level": "none"}},
                        "pipelines": {"metrics": pipeline, "logs": pipeline},
                    },
                });
                let file = dir.join("collector.json");
                fs::write(&file, config.to_string())
                    .with_context(|| format!("cannot write {}", file.display()))?;
                Ok(Self::Collector {
                    _collector: Collector::start(&binary, &file, &[])?,
                    url: format!("http://{address}"),
                    sink,
                })
            }
        }
    }

    fn url(&self) -> String {
        match self {
            Self::Rotel(rotel) => rotel.grpc_url(),
            Self::Collector { url, .. } => url.clone(),
        }
    }

    fn received(&self) -> Received {
        match self {
            Self::Rotel(rotel) => rotel.received(),
            Self::Collector { sink, .. } => sink.received(),
        }
    }
}

/// How much is to happen.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// How often the agent is killed while all is well.
    pub kills: u32,
    /// How often it is restarted, killed too, after its store could not be written.
    pub read_only: u32,
    /// What it sends over OTLP.
    pub temporality: OtlpTemporality,
    /// Decides the moments; not 0.
    pub seed: u64,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What the driver's samples credited: the truth.
    pub credited: u64,
    /// What the agent's last life has booked: all of it, if its store could be written all the time.
    pub booked: u64,
    /// The growth of each of [`FAMILIES`] by Prometheus' `increase()`.
    pub scraped: [u64; FAMILIES.len()],
    /// What the receiver adds up of each.
    pub received: [u64; FAMILIES.len()],
    /// What the receiver got, message by message.
    pub messages: Received,
}

/// An interval of a delta series that was never sent, in nanoseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The end of the interval before.
    pub from: u64,
    /// The beginning of the one after.
    pub to: u64,
}

/// A store of its own file system, which can be made unwritable.
struct Store(PathBuf);

impl Store {
    fn mount(at: PathBuf) -> Result<Self> {
        fs::create_dir_all(&at)?;
        mount(
            "tmpfs",
            &at,
            "tmpfs",
            MountFlags::empty(),
            Some(c"size=64m"),
        )
        .with_context(|| format!("cannot mount a file system on {}", at.display()))?;
        Ok(Self(at))
    }

    /// Nobody may have a file of it open for writing.
    fn writable(&self, is_writable: bool) -> Result<()> {
        let flags = if is_writable {
            MountFlags::empty()
        } else {
            MountFlags::RDONLY
        };
        mount_remount(&self.0, flags, "").context("the store's file system cannot be remounted")
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // The kernel lets go of it when nobody uses it any more.
        if let Err(error) = unmount(&self.0, UnmountFlags::DETACH) {
            eprintln!("{} stays mounted: {error}", self.0.display());
        }
    }
}

/// Kills and restarts the agent as planned, and returns what Prometheus and the receiver computed.
/// It can be stopped early.
///
/// # Errors
/// If anything that takes part fails; never since a figure is bad.
pub fn run(receiver: Receiver, plan: Plan, is_told_to_end: &dyn Fn() -> bool) -> Result<Outcome> {
    let node = Node::new(1)?;
    let store = match plan.read_only {
        0 => None,
        _ => Some(Store::mount(node.dir().join("store"))?),
    };
    let mut docker = Dockerd::start(docker::Options::at(node.dir().join("d")))?;
    let receiving = Receiving::start(receiver, node.dir())?;
    let mut config = node.config();
    config.docker.sockets = vec![docker.socket()];
    // Long enough for a scrape even where several fail. Series that begin anew do so often: there it
    // is short, or nothing would be seen to grow.
    let zero_for = if plan.read_only == 0 { 5 } else { 2 };
    config.publish.zero_for = Span(Duration::from_secs(zero_for));
    config.prometheus.listen = free_address()?;
    config.store.path = node.dir().join("store");
    config.otlp.endpoint = Some(receiving.url());
    config.otlp.interval = Span(PUSH_INTERVAL);
    config.otlp.temporality = plan.temporality;
    let prometheus = Prometheus::start(node.dir(), &[config.prometheus.listen], SCRAPE_INTERVAL)?;
    let start = || start(&node, &config);

    let mut agent = start()?;
    // Its first zero must have been scraped before the work begins.
    prometheus.wait_for_scrape(PATIENCE)?;
    let spec = ContainerSpec::named(WORK).in_pod(
        "research",
        "train-0",
        "9f6c1b1e-2d3f-4a5b-8c7d-0123456789ab",
        "main",
    );
    let work = docker.run(&node.at_work(spec, 0, "0.6"))?;
    grown(&mut agent)?;
    let mut draw = Draw(plan.seed);
    let mut live = || std::thread::sleep(Duration::from_millis(draw.from(0..LIFE_MILLIS)));
    for _ in 0..plan.kills {
        ensure!(!is_told_to_end(), "interrupted");
        live();
        // Dropped is killed.
        drop(agent);
        agent = start()?;
    }
    if let Some(store) = &store {
        for _ in 0..plan.read_only {
            ensure!(!is_told_to_end(), "interrupted");
            live();
            drop(agent);
            store.writable(false)?;
            // Its series begin at 0, and are to be seen to grow, or there is nothing to exceed.
            agent = start()?;
            grown(&mut agent)?;
            live();
            drop(agent);
            store.writable(true)?;
            agent = start()?;
            grown(&mut agent)?;
        }
    }
    settle(&node, &docker, &prometheus, &receiving, agent, &work)
}

/// Waits until what it has published can be seen to be too much.
fn grown(agent: &mut Agent) -> Result<()> {
    let shows = |snapshot: &Snapshot| shown(snapshot, 0) > SAMPLES;
    agent.wait_for_status("it to be published", |status| shows(&status.snapshot))?;
    Ok(())
}

fn start(node: &Node, config: &Config) -> Result<Agent> {
    let environment = [(STATE_DIR, node.scenario_dir())];
    Agent::start(node.dir(), config.clone(), &environment)
}

/// Ends the work, waits until everybody has all of it, and adds up.
fn settle(
    node: &Node,
    docker: &Dockerd,
    prometheus: &Prometheus,
    receiving: &Receiving,
    mut agent: Agent,
    work: &Container,
) -> Result<Outcome> {
    docker.remove(work)?;
    let end = sim_nvml::wall_us() * 1_000 + SAMPLES;
    let settled = agent.wait_for_status("all of it to be published", |status| {
        let mut books = status.snapshot.gpus.iter();
        books.all(|book| book.start.0 + book.elapsed.0 > end && book.pending.is_zero())
            && shown(&status.snapshot, 0) == shown(&status.snapshot, 1)
    })?;
    let snapshot = settled.snapshot;
    let mut scraped = [0; FAMILIES.len()];
    for (at, (family, _)) in FAMILIES.iter().enumerate() {
        let wanted = shown(&snapshot, at);
        prometheus.wait_for(family, PATIENCE, |found| sum(found) == wanted)?;
        let last = prometheus.last_scrape(family, PATIENCE)?;
        // A series that has been away for a while would be taken to have stopped.
        let growth = format!("increase({family}[12h])");
        scraped[at] = sum(&prometheus.query_at(&growth, last)?);
    }
    let ended = agent.stop()?;
    ensure!(ended.success(), "the agent ended with {ended}");
    let messages = silent(receiving);
    Ok(Outcome {
        credited: node.credited_ns(WORK)?,
        booked: snapshot.gpus.iter().map(|book| book.busy.0).sum(),
        scraped,
        received: FAMILIES.map(|(_, family)| received(&messages, family)),
        messages,
    })
}

/// All that has arrived, once nothing more does.
fn silent(receiving: &Receiving) -> Received {
    let mut received = receiving.received();
    let mut since = Instant::now();
    while since.elapsed() < SILENCE {
        std::thread::sleep(SILENCE / 10);
        let now = receiving.received();
        if now.metrics.len() != received.metrics.len() {
            since = Instant::now();
        }
        received = now;
    }
    received
}

/// What one of [`FAMILIES`] shows.
fn shown(snapshot: &Snapshot, family: usize) -> u64 {
    match family {
        0 => {
            let series = snapshot.container_series.iter();
            series.map(|series| series.amounts.busy.0).sum()
        }
        _ => {
            let series = snapshot.namespace_series.iter();
            series.map(|series| series.amounts.busy.0).sum()
        }
    }
}

fn sum(samples: &[Sample]) -> u64 {
    samples.iter().map(|sample| nanos(sample.value)).sum()
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "rounded, and no counter is negative or beyond 2^64 ns"
)]
fn nanos(seconds: f64) -> u64 {
    (seconds * 1e9).round() as u64
}

/// What a receiver adds up of a family: all deltas, or the last total of each life of each series.
#[must_use]
pub fn received(messages: &Received, family: &str) -> u64 {
    let mut totals = BTreeMap::new();
    let mut added = 0;
    for point in messages.points() {
        if point.name != family {
            continue;
        }
        let value = nanos(point.value);
        match point.kind {
            Kind::Sum {
                temporality: AggregationTemporality::Delta,
                ..
            } => added += value,
            Kind::Sum { .. } => {
                totals.insert((point.attributes, point.start_unix_nanos), value);
            }
            Kind::Gauge => {}
        }
    }
    added + totals.values().sum::<u64>()
}

/// The intervals of a family's deltas of which nobody told.
///
/// # Errors
/// If one is told of twice.
pub fn gaps(messages: &Received, family: &str) -> Result<Vec<Gap>> {
    let mut ends = BTreeMap::new();
    let mut gaps = Vec::new();
    for point in messages.points() {
        if point.name != family {
            continue;
        }
        let before = ends.insert(point.attributes.clone(), point.time_unix_nanos);
        let (from, to) = (before.unwrap_or(0), point.start_unix_nanos);
        ensure!(from <= to, "twice, from {to} to {from}: {point:?}");
        if before.is_some() && from < to {
            gaps.push(Gap { from, to });
        }
    }
    Ok(gaps)
}
