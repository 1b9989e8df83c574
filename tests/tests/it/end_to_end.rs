//! The whole chain: real containers, the built agent on this kernel, and what a real Prometheus and
//! a real OpenTelemetry collector make of what it publishes. Only the GPUs are simulated.
//!
//! Amounts are compared as whole nanoseconds, which is what the books are kept in and what both
//! protocols' doubles give back exactly for the first hundred days.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result};
use gpuacct::config::{Config, OtlpAttributes, OtlpProtocol, Span};
use gpuacct::core::model::{Nanos, SourceId, SourceState};
use gpuacct::core::snapshot::{Attribution, ContainerAccount};
use gpuacct::outputs::socket::StatusReport;
use gpuacct_tests::agent::{self, Agent};
use gpuacct_tests::daemon::Killed;
use gpuacct_tests::docker::{self, Container, ContainerSpec, Dockerd};
use gpuacct_tests::node::{Node, new_pod_uid, state};
use gpuacct_tests::otlp::{Kind, Point, Received};
use gpuacct_tests::prometheus::{self, Prometheus, Sample, promtool_check};
use gpuacct_tests::requirement::require;
use gpuacct_tests::rotel::{self, Rotel};
use opentelemetry_proto::tonic::metrics::v1::AggregationTemporality;
use sim_nvml::Truth;

/// Only ever waited for when something is broken.
const PATIENCE: Duration = Duration::from_secs(90);
const SCRAPE_INTERVAL: Duration = Duration::from_secs(1);
/// How long a new series shows 0: several scrapes, since one may fail on a busy machine.
const ZERO_FOR: Duration = Duration::from_secs(5);
const GPUS: u32 = 4;
const SECOND: u64 = 1_000_000_000;
const CONTAINER: &str = "gpuacct_container_gpu_busy_seconds_total";
const NAMESPACE: &str = "gpuacct_namespace_gpu_busy_seconds_total";
const HOST: &str = "gpuacct_host_gpu_busy_seconds_total";
const GPU: &str = "gpuacct_gpu_busy_seconds_total";
/// What stands still once nothing uses a GPU.
const FAMILIES: [&str; 4] = [CONTAINER, NAMESPACE, HOST, GPU];

type Labels = BTreeMap<String, String>;
/// The series of a family, in nanoseconds.
type Amounts = BTreeMap<Labels, i128>;

/// A node with GPUs and a daemon. Dropped from top to bottom.
struct Rig {
    docker: Dockerd,
    node: Node,
}

/// What a container is to do.
struct Work {
    namespace: &'static str,
    pod: String,
    gpu: u32,
    share: &'static str,
    /// For ever, if none.
    millis: Option<u64>,
}

impl Work {
    fn new(namespace: &'static str, pod: &str, gpu: u32, share: &'static str) -> Self {
        Self {
            namespace,
            pod: pod.to_owned(),
            gpu,
            share,
            millis: None,
        }
    }
}

impl Rig {
    fn start() -> Option<Self> {
        require("agent", agent::binary())?;
        require("docker", docker::available())?;
        let node = Node::new(GPUS).expect("a node can be put together");
        let docker = node.dockerd().expect("the daemon comes up");
        Some(Self { docker, node })
    }

    fn agent(&self, configure: impl FnOnce(&mut Config)) -> Agent {
        let mut config = self.node.config();
        // Everybody here gets a name, however long a busy machine's dockerd takes.
        config.publish.grace = Span(Duration::from_secs(30));
        config.publish.keep_for = Span(Duration::from_secs(3_600));
        config.publish.zero_for = Span(ZERO_FOR);
        config.docker.sockets = vec![self.docker.socket()];
        config.otlp.interval = Span(Duration::from_secs(1));
        // What is pushed is compared to what is scraped.
        config.otlp.attributes = OtlpAttributes::Labels;
        configure(&mut config);
        let mut agent = self.node.agent("agent", config).expect("it comes up");
        agent
            .wait_for_status("the sources", |status| {
                [SourceId::Docker, SourceId::Nvml]
                    .iter()
                    .all(|source| *state(status, *source) == SourceState::Up)
            })
            .expect("all is there");
        agent
    }

    fn run(&mut self, work: &Work) -> Container {
        let uid = new_pod_uid();
        let spec = ContainerSpec::named(&format!("k8s_main_{}", work.pod)).in_pod(
            work.namespace,
            &work.pod,
            &uid,
            "main",
        );
        let mut command = self.node.work(work.gpu, work.share, &work.pod);
        command.extend(["--memory-bytes".into(), (64 << 20).to_string()]);
        if let Some(millis) = work.millis {
            command.extend(["--duration-ms".into(), millis.to_string()]);
        }
        let spec = self
            .node
            .at_work(spec, work.gpu, work.share)
            .command(command);
        self.docker.run(&spec).expect("the container starts")
    }

    /// Work outside containers.
    fn run_on_host(&self, gpu: u32, share: &str) -> Killed {
        let child = self.node.host_work(gpu, share).spawn();
        Killed(child.expect("the job was built"))
    }

    fn remove(&self, container: &Container) {
        self.docker.remove(container).expect("it is there");
    }

    /// Waits until the books have passed this moment and all that is in them is published.
    fn settle(&self, agent: &mut Agent) -> StatusReport {
        // A sample is taken each 1/6 s, and shows when it has been taken.
        let end = sim_nvml::wall_us() * 1_000 + SECOND;
        let report = agent
            .wait_for_status("the books to pass the end of the work", |status| {
                status.snapshot.gpus.iter().all(|book| {
                    let uuid = &book.gpu.uuid;
                    let containers = status.snapshot.container_series.iter();
                    let containers = containers.filter(|series| series.gpu == *uuid);
                    let hosts = status.snapshot.host_series.iter();
                    let hosts = hosts.filter(|series| series.gpu == *uuid);
                    let namespaces = status.snapshot.namespace_series.iter();
                    let namespaces = namespaces.filter(|series| series.gpu == *uuid);
                    let containers: u64 = containers.map(|series| series.amounts.busy.0).sum();
                    let hosts: u64 = hosts.map(|series| series.amounts.busy.0).sum();
                    let namespaces: u64 = namespaces.map(|series| series.amounts.busy.0).sum();
                    let unattributed: u64 = book.unattributed.iter().map(|(_, time)| time.0).sum();
                    book.start.0 + book.elapsed.0 > end
                        && containers + hosts + unattributed == book.busy.0
                        && namespaces == containers
                })
            })
            .expect("the books settle");
        assert_balanced(&report);
        report
    }

    fn truth(&self) -> Truth {
        self.node.truth().expect("the scenario is there")
    }
}

fn receivers() -> Option<rotel::Program> {
    require("prometheus", prometheus::available())?;
    require("pypi", rotel::available())
}

fn account<'a>(status: &'a StatusReport, pod: &str) -> Option<&'a ContainerAccount> {
    let mut accounts = status.snapshot.accounts.iter();
    accounts.find(|account| &*account.labels.pod == pod)
}

fn busy(status: &StatusReport, pod: &str) -> u64 {
    account(status, pod).map_or(0, |account| account.amounts.busy.0)
}

/// The balance of every GPU, with nothing unobserved and nothing without an owner.
fn assert_balanced(report: &StatusReport) {
    for book in &report.snapshot.gpus {
        let uuid = &book.gpu.uuid;
        assert_eq!(
            book.unobserved.iter().map(|(_, time)| time.0).sum::<u64>(),
            0,
            "{book:?}"
        );
        assert_eq!(
            book.unattributed
                .iter()
                .map(|(_, time)| time.0)
                .sum::<u64>(),
            0,
            "{book:?}"
        );
        assert_eq!(book.pending.0, 0, "{book:?}");
        assert_eq!(book.imbalance, 0, "{book:?}");
        assert_eq!(book.elapsed.0, book.busy.0 + book.idle.0, "{book:?}");
        let accounts = report.snapshot.accounts.iter();
        let accounts = accounts.filter(|account| account.gpu == *uuid);
        let hosts = report.snapshot.host_series.iter();
        let hosts = hosts.filter(|series| series.gpu == *uuid);
        let owned = accounts.map(|account| account.amounts.busy.0).sum::<u64>()
            + hosts.map(|series| series.amounts.busy.0).sum::<u64>();
        assert_eq!(book.busy.0, owned, "{book:?}");
    }
}

/// What the driver's samples credited to anybody is booked, up to the microseconds in which NVML
/// has the samples' times. A sample that was lost would be 166,667 of them.
fn assert_credited(truth: &Truth, gpu: u32, booked: u64) {
    let credited: u64 = truth.ring_ns(gpu, 0..u64::MAX).values().sum();
    let difference = booked.abs_diff(credited);
    assert!(
        difference < SECOND / 1_000,
        "gpu {gpu}: the driver credited {credited} ns, booked are {booked} ns"
    );
}

/// What a family should show: the ledger's own figures, not what was published of them.
fn booked(report: &StatusReport, family: &str) -> Amounts {
    let mut amounts = Amounts::new();
    let mut add = |labels: &[(&str, &str)], time: u64| {
        let labels = labels
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        *amounts.entry(labels.collect()).or_default() += i128::from(time);
    };
    let snapshot = &report.snapshot;
    match family {
        CONTAINER => snapshot.accounts.iter().for_each(|account| {
            let labels = &account.labels;
            let gpu = account.gpu.as_str();
            add(
                &[
                    ("namespace", &labels.namespace),
                    ("pod", &labels.pod),
                    ("container", &labels.container),
                    ("pod_uid", &labels.pod_uid),
                    ("container_id", &labels.container_id),
                    ("gpu_uuid", gpu),
                ],
                account.amounts.busy.0,
            );
        }),
        NAMESPACE => snapshot.accounts.iter().for_each(|account| {
            let labels = [
                ("namespace", &*account.labels.namespace),
                ("gpu_uuid", account.gpu.as_str()),
            ];
            add(&labels, account.amounts.busy.0);
        }),
        HOST => snapshot.host_series.iter().for_each(|series| {
            let unit = series.unit.to_string();
            add(
                &[("unit", &unit), ("gpu_uuid", series.gpu.as_str())],
                series.amounts.busy.0,
            );
        }),
        GPU => snapshot.gpus.iter().for_each(|book| {
            add(&[("gpu_uuid", book.gpu.uuid.as_str())], book.busy.0);
        }),
        other => panic!("{other} is none of the families that stand still"),
    }
    amounts
}

/// What Prometheus has, without the labels that are its own.
fn scraped(samples: &[Sample]) -> Amounts {
    let amounts = samples.iter().map(|sample| {
        let mut labels = sample.labels.clone();
        labels.retain(|key, _| !["__name__", "instance", "job"].contains(&key.as_str()));
        (labels, nanos(sample.value))
    });
    amounts.collect()
}

/// What the collector has of a family, under the name that Prometheus would give it.
fn pushed(received: &Received, family: &str) -> BTreeMap<Labels, Point> {
    let points = received.points().into_iter();
    let points = points.filter(|point| prometheus_name(point) == family);
    points
        .map(|point| (point.attributes.clone(), point))
        .collect()
}

fn amounts(points: &BTreeMap<Labels, Point>) -> Amounts {
    let amounts = points
        .iter()
        .map(|(labels, point)| (labels.clone(), nanos(point.value)));
    amounts.collect()
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "rounded, and 2^127 ns are not reached"
)]
fn nanos(seconds: f64) -> i128 {
    (seconds * 1e9).round() as i128
}

#[expect(
    clippy::cast_precision_loss,
    reason = "for a comparison within a tolerance"
)]
fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

/// The name that Prometheus' OTLP receiver makes: dots become underscores, the unit and, for a
/// counter, `total` are added unless they are there.
/// <https://opentelemetry.io/docs/specs/otel/compatibility/prometheus_and_openmetrics/>
fn prometheus_name(point: &Point) -> String {
    let mut name = point.name.replace('.', "_");
    let is_counter = matches!(
        point.kind,
        Kind::Sum {
            is_monotonic: true,
            ..
        }
    );
    let unit = match point.unit.as_str() {
        "s" => "seconds",
        "By" => "bytes",
        "J" => "joules",
        "W" => "watts",
        "Cel" => "celsius",
        "Hz" => "hertz",
        "By/s" => "bytes_per_second",
        "1" if !is_counter => "ratio",
        annotation if annotation.is_empty() || annotation.starts_with('{') => "",
        other => panic!("{}: no rule for the unit {other}", point.name),
    };
    let suffixes = [unit, if is_counter { "total" } else { "" }];
    for suffix in suffixes.into_iter().filter(|suffix| !suffix.is_empty()) {
        if !name.ends_with(&format!("_{suffix}")) {
            name = format!("{name}_{suffix}");
        }
    }
    name
}

/// The families of a text exposition that have samples.
fn families(text: &str) -> BTreeSet<String> {
    let samples = text
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty());
    let names = samples.map(|line| line.split(['{', ' ']).next().unwrap_or_default().to_owned());
    names.collect()
}

/// The books among what was pushed.
fn books(received: &Received) -> impl Iterator<Item = Point> {
    let points = received.points().into_iter();
    points.filter(|point| point.scope == "gpuacct" && point.name.starts_with("gpuacct."))
}

/// A counter that has been seen never falls, and never changes its start.
fn assert_counters_only_grow(received: &Received) {
    let mut last: BTreeMap<(String, Labels), Point> = BTreeMap::new();
    for point in books(received) {
        let Kind::Sum {
            is_monotonic,
            temporality,
        } = point.kind
        else {
            continue;
        };
        assert!(is_monotonic, "{point:?}");
        assert_eq!(temporality, AggregationTemporality::Cumulative, "{point:?}");
        assert!(point.start_unix_nanos > 0, "{point:?}");
        assert!(point.start_unix_nanos <= point.time_unix_nanos, "{point:?}");
        let key = (point.name.clone(), point.attributes.clone());
        if let Some(before) = last.insert(key, point.clone()) {
            assert!(before.value <= point.value, "{before:?} then {point:?}");
            assert_eq!(before.start_unix_nanos, point.start_unix_nanos, "{point:?}");
        }
    }
    assert!(!last.is_empty(), "no counter was seen at all");
}

/// Waits until the collector has what the ledger has, and returns all that it has.
fn wait_for_pushed(rotel: &Rotel, report: &StatusReport) -> Received {
    for family in FAMILIES {
        let wanted = booked(report, family);
        let arrives = rotel.wait_for(family, PATIENCE, |received| {
            amounts(&pushed(received, family)) == wanted
        });
        if let Err(error) = arrives {
            let found = amounts(&pushed(&rotel.received(), family));
            panic!("{family}: the ledger has {wanted:#?}, the collector {found:#?}: {error:#}");
        }
    }
    rotel.received()
}

/// One node's day: two pods and a host process, seen by Prometheus and pushed in one protocol.
fn scraped_and_pushed(protocol: OtlpProtocol) -> Result<()> {
    let Some(program) = receivers() else {
        return Ok(());
    };
    let Some(mut rig) = Rig::start() else {
        return Ok(());
    };
    let rotel = Rotel::start(program, rig.node.dir())?;
    let early = rig.run(&Work::new("research", "train-0", 0, "0.6"));
    let mut agent = rig.agent(|config| {
        config.otlp.protocol = protocol;
        config.otlp.endpoint = Some(match protocol {
            OtlpProtocol::Grpc => rotel.grpc_url(),
            OtlpProtocol::HttpProtobuf => rotel.http_url(),
        });
    });
    let prometheus = Prometheus::start(rig.node.dir(), &[agent.address()], SCRAPE_INTERVAL)?;
    let late = rig.run(&Work::new("serving", "chat-0", 1, "0.4"));
    let host = rig.run_on_host(1, "0.3");
    agent.wait_for_status("everybody to be billed", |status| {
        let host = status
            .snapshot
            .host_series
            .iter()
            .any(|series| series.amounts.busy.0 > SECOND / 2);
        let is_listed = |pod| {
            account(status, pod).is_some_and(|of| {
                of.amounts.held > Nanos::ZERO && of.amounts.memory.0 > 0 && of.memory_peak > Some(0)
            })
        };
        host && ["train-0", "chat-0"]
            .into_iter()
            .all(|pod| busy(status, pod) > SECOND && is_listed(pod))
    })?;
    rig.remove(&early);
    rig.remove(&late);
    drop(host);
    let report = rig.settle(&mut agent);

    for (container, namespace, pod) in [
        (&early, "research", "train-0"),
        (&late, "serving", "chat-0"),
    ] {
        let account = account(&report, pod).with_context(|| format!("no account of {pod}"))?;
        assert_eq!(&*account.labels.namespace, namespace);
        assert_eq!(&*account.labels.container, "main");
        assert_eq!(&*account.labels.container_id, container.id);
        assert!(
            matches!(account.attribution, Attribution::Named { .. }),
            "{account:?}"
        );
        // It had a context, and memory, from a reading of the lists to the end of its process.
        assert!(account.amounts.held > Nanos::ZERO, "{account:?}");
        assert!(account.amounts.memory.0 > 0, "{account:?}");
        assert!(account.memory_peak > Some(0), "{account:?}");
        assert!(account.processes_started > 0, "{account:?}");
    }
    for family in FAMILIES {
        let wanted = booked(&report, family);
        prometheus
            .wait_for(family, PATIENCE, |found| scraped(found) == wanted)
            .unwrap_or_else(|error| panic!("{family}: the ledger has {wanted:#?}: {error:#}"));
    }
    let received = wait_for_pushed(&rotel, &report);
    assert_counters_only_grow(&received);
    let starts: BTreeMap<&str, u64> = report
        .snapshot
        .container_series
        .iter()
        .map(|series| (&*series.labels.pod, series.start.0))
        .collect();
    for point in pushed(&received, CONTAINER).values() {
        assert_eq!(
            point.start_unix_nanos,
            starts[point.attributes["pod"].as_str()],
            "{point:?}"
        );
    }

    let (code, text) = agent.get("/metrics")?;
    assert_eq!(code, 200);
    promtool_check(&text)?;
    // What the agent's process takes is pushed under OpenTelemetry's names: see below.
    let mut scraped = families(&text);
    scraped.retain(|family| !family.starts_with("process_"));
    let pushed = |received: &Received| -> BTreeSet<String> {
        let points = books(received);
        points.map(|point| prometheus_name(&point)).collect()
    };
    // What has been scraped since the last export comes with the next.
    rotel.wait_for("every family that is scraped", PATIENCE, |received| {
        scraped.is_subset(&pushed(received))
    })?;
    let pushed_families = pushed(&rotel.received());
    // What was pushed once stays received; a gauge whose processes have ended is scraped no more.
    let mut gone = pushed_families.difference(&scraped);
    assert_eq!(gone.find(|family| family.ends_with("_total")), None);

    // The agent's own, by the SDK: what it costs, and what it has logged.
    rotel.wait_for("the agent's own metrics and logs", PATIENCE, |received| {
        !received.logs.is_empty() && !received.latest("process.cpu.time").is_empty()
    })?;
    assert!(agent.stop()?.success());
    Ok(())
}

#[test]
fn what_is_scraped_and_pushed_over_grpc_is_what_is_booked() {
    scraped_and_pushed(OtlpProtocol::Grpc).unwrap();
}

#[test]
fn what_is_scraped_and_pushed_over_http_is_what_is_booked() {
    scraped_and_pushed(OtlpProtocol::HttpProtobuf).unwrap();
}

#[test]
fn a_hundred_jobs_of_300_ms_grow_by_what_is_booked() {
    const JOBS: u32 = 100;
    const NAMES: &str = "batch";
    if require("prometheus", prometheus::available()).is_none() {
        return;
    }
    let Some(mut rig) = Rig::start() else {
        return;
    };
    let mut agent = rig.agent(|_| {});
    let prometheus =
        Prometheus::start(rig.node.dir(), &[agent.address()], SCRAPE_INTERVAL).unwrap();
    // It is ready seconds before it scrapes, and a zero that it has not seen is no start.
    prometheus.wait_for_scrape(PATIENCE).unwrap();
    for job in 0..JOBS {
        let work = Work::new(NAMES, &format!("job-{job}"), job % GPUS, "1");
        rig.run(&Work {
            millis: Some(300),
            ..work
        });
    }
    let ended = || {
        let jobs = rig.truth().jobs(0..u64::MAX);
        jobs.iter().filter(|job| job.to_us.is_some()).count()
    };
    // A container is started a moment before its program runs.
    agent
        .wait_for("every job to have ended", |_| Ok(ended() == JOBS as usize))
        .unwrap();
    let report = rig.settle(&mut agent);

    // Each has been seen: 300 ms are longer than a sample's 1/6 s.
    let truth = rig.truth();
    let jobs = truth.jobs(0..u64::MAX);
    assert_eq!(jobs.len(), JOBS as usize);
    assert_eq!(report.snapshot.accounts.len(), JOBS as usize);
    for account in &report.snapshot.accounts {
        assert!(account.amounts.busy.0 > 0, "{account:?}");
        assert!(
            matches!(account.attribution, Attribution::Named { .. }),
            "{account:?}"
        );
    }
    let real: u64 = jobs.iter().map(|job| job.busy_ns).sum();
    let billed: u64 = report
        .snapshot
        .accounts
        .iter()
        .map(|account| account.amounts.busy.0)
        .sum();
    // Each job's edges are off by less than a sample; in the sum they cancel out, as the square
    // root of their number. Five deviations.
    let tolerance = 5.0 * (f64::from(JOBS)).sqrt() / 12.0;
    let error = seconds(billed) - seconds(real);
    assert!(
        error.abs() < tolerance,
        "true {real} ns, booked {billed} ns"
    );

    for book in &report.snapshot.gpus {
        assert_credited(&truth, book.gpu.index, book.busy.0);
    }

    let wanted = booked(&report, NAMESPACE);
    assert_eq!(wanted.len(), GPUS as usize);
    prometheus
        .wait_for(NAMESPACE, PATIENCE, |found| scraped(found) == wanted)
        .unwrap();
    // From a series' first sample, which is 0, to its last one, nothing is extrapolated.
    let last = prometheus.last_scrape(NAMESPACE, PATIENCE).unwrap();
    let growth = prometheus
        .query_at(&format!("increase({NAMESPACE}[1h])"), last)
        .unwrap();
    assert_eq!(scraped(&growth), wanted);
}

#[test]
fn nothing_is_lost_while_the_collector_is_away() {
    let Some(program) = require("pypi", rotel::available()) else {
        return;
    };
    let Some(mut rig) = Rig::start() else {
        return;
    };
    let mut rotel = Rotel::start(program, rig.node.dir()).unwrap();
    let mut agent = rig.agent(|config| config.otlp.endpoint = Some(rotel.grpc_url()));
    let steady = rig.run(&Work::new("research", "steady", 0, "0.6"));
    let before = rotel
        .wait_for("the first amount", PATIENCE, |received| {
            pushed(received, CONTAINER)
                .values()
                .any(|point| point.value > 0.0)
        })
        .unwrap();

    rotel.stop().unwrap();
    let away = agent
        .wait_for_status("the collector to be missed", |status| {
            matches!(state(status, SourceId::Otlp), SourceState::Down { .. })
        })
        .unwrap();
    rig.run(&Work {
        millis: Some(300),
        ..Work::new("batch", "unseen", 1, "1")
    });
    agent
        .wait_for_status("work to be done meanwhile", |status| {
            busy(status, "steady") > busy(&away, "steady") + SECOND && busy(status, "unseen") > 0
        })
        .unwrap();
    rig.remove(&steady);
    let report = rig.settle(&mut agent);

    rotel.start_again().unwrap();
    let received = wait_for_pushed(&rotel, &report);
    assert_counters_only_grow(&received);
    assert!(received.metrics.len() > before.metrics.len());
    agent
        .wait_for_status("the collector to be back", |status| {
            *state(status, SourceId::Otlp) == SourceState::Up
        })
        .unwrap();
}

#[test]
fn a_killed_dockerd_costs_no_gpu_time() {
    let Some(mut rig) = Rig::start() else {
        return;
    };
    let mut agent = rig.agent(|_| {});
    let steady = rig.run(&Work::new("research", "steady", 0, "0.6"));
    agent
        .wait_for_status("it to be billed", |status| busy(status, "steady") > SECOND)
        .unwrap();

    rig.docker.kill().unwrap();
    let killed = agent
        .wait_for_status("dockerd to be missed", |status| {
            matches!(state(status, SourceId::Docker), SourceState::Down { .. })
        })
        .unwrap();
    let alone = agent
        .wait_for_status("it to be billed without dockerd", |status| {
            busy(status, "steady") > busy(&killed, "steady") + SECOND
        })
        .unwrap();
    assert!(matches!(
        state(&alone, SourceId::Docker),
        SourceState::Down { .. }
    ));

    rig.docker.start_again().unwrap();
    agent
        .wait_for_status("dockerd to be back", |status| {
            *state(status, SourceId::Docker) == SourceState::Up
        })
        .unwrap();
    let late = rig.run(&Work::new("serving", "late", 1, "0.5"));
    agent
        .wait_for_status("the new one to be billed", |status| {
            busy(status, "late") > SECOND
        })
        .unwrap();
    rig.remove(&steady);
    rig.remove(&late);
    let report = rig.settle(&mut agent);

    assert_eq!(report.snapshot.accounts.len(), 2);
    let truth = rig.truth();
    for (pod, namespace, gpu) in [("steady", "research", 0), ("late", "serving", 1)] {
        let account = account(&report, pod).unwrap();
        assert_eq!(&*account.labels.namespace, namespace);
        assert!(
            matches!(account.attribution, Attribution::Named { .. }),
            "{account:?}"
        );
        assert_credited(&truth, gpu, account.amounts.busy.0);
    }
}
