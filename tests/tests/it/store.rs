//! The ledger as the world sees it: the built agent is killed again and again while a real container
//! works and a real Prometheus scrapes, and what Prometheus makes of the counters is what was used.
//!
//! `GPUACCT_KILLS` says how often it is killed; a few times unless set.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gpuacct::config::{Config, OtlpTemporality, Span};
use gpuacct::core::model::{SourceId, SourceState, UnobservedReason};
use gpuacct::core::snapshot::Snapshot;
use gpuacct::outputs::socket::StatusReport;
use gpuacct_tests::agent::{self, Agent};
use gpuacct_tests::crashes::{self, FAMILIES, Plan, Receiver};
use gpuacct_tests::daemon::Killed;
use gpuacct_tests::docker::{self, Container, ContainerSpec, Dockerd};
use gpuacct_tests::http::free_address;
use gpuacct_tests::node::{Node, account, pod_uid};
use gpuacct_tests::prometheus::{self, Prometheus};
use gpuacct_tests::requirement::require;
use gpuacct_tests::rotel;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};

/// Only ever waited for when something is broken.
const PATIENCE: Duration = Duration::from_secs(60);
const SCRAPE_INTERVAL: Duration = Duration::from_millis(500);
const SECOND: u64 = 1_000_000_000;
const POD: &str = "train-0";
const CONTAINER: &str = "gpuacct_container_gpu_busy_seconds_total";
const NAMESPACE: &str = "gpuacct_namespace_gpu_busy_seconds_total";

/// A node with a container that works on its GPU, and whoever scrapes the agent. Dropped from top to
/// bottom: the small disk before the folder that it is mounted in.
struct Rig {
    docker: Dockerd,
    spec: ContainerSpec,
    prometheus: Prometheus,
    config: Config,
    /// Where the store is, if it is to be small.
    small: Option<SmallDisk>,
    node: Node,
}

/// A file system that can be full.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: PathBuf) -> Result<Self> {
        fs::create_dir_all(&at)?;
        mount("tmpfs", &at, "tmpfs", MountFlags::empty(), Some(c"size=4m"))
            .with_context(|| format!("cannot mount a file system on {}", at.display()))?;
        Ok(Self(at))
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }

    fn fill(&self) -> Result<()> {
        let full = fs::write(self.filler(), vec![0; 8 << 20]);
        ensure!(full.is_err(), "it takes more than it should");
        Ok(())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // The kernel lets go of it when nobody uses it any more.
        if let Err(error) = unmount(&self.0, UnmountFlags::DETACH) {
            eprintln!("{} stays mounted: {error}", self.0.display());
        }
    }
}

impl Rig {
    fn start(small: bool) -> Option<Self> {
        require("agent", agent::binary())?;
        require("docker", docker::available())?;
        require("prometheus", prometheus::available())?;
        let node = Node::new(1).expect("a node can be put together");
        let small = small.then(|| SmallDisk::mount(node.dir().join("agent/store")));
        let small = match small {
            Some(disk) => Some(require("mount", disk)?),
            None => None,
        };
        Some(Self::assemble(node, small).expect("a rig can be put together"))
    }

    fn assemble(node: Node, small: Option<SmallDisk>) -> Result<Self> {
        let docker = node.dockerd()?;
        let mut config = node.config();
        // Several scrapes long, since some may fail on a busy machine.
        config.publish.zero_for = Span(Duration::from_secs(5));
        config.docker.sockets = vec![docker.socket()];
        config.prometheus.listen = free_address()?;
        let listen = config.prometheus.listen;
        let prometheus = Prometheus::start(node.dir(), &[listen], SCRAPE_INTERVAL)?;
        let spec = ContainerSpec::named("k8s_main_train-0")
            .in_pod("research", POD, pod_uid(), "main")
            .label("team", "vision");
        Ok(Self {
            docker,
            spec: node.at_work(spec, 0, "0.6"),
            prometheus,
            config,
            small,
            node,
        })
    }

    fn agent(&self) -> Agent {
        self.node
            .agent("agent", self.config.clone())
            .expect("the agent comes up")
    }

    /// Starts the container. The first agent is there before it, so that nothing was used unseen,
    /// and so are Prometheus' scrapes: they begin seconds after it is ready, and a zero that nobody
    /// has seen is no start for `increase()`.
    fn work(&mut self) -> Container {
        self.prometheus
            .wait_for_scrape(PATIENCE)
            .expect("it scrapes");
        self.docker.run(&self.spec).expect("it starts")
    }

    /// What the driver's samples credited, in nanoseconds.
    fn credited(&self) -> u64 {
        let truth = self.node.truth().expect("the scenario is there");
        truth.ring_ns(0, 0..u64::MAX).values().sum()
    }

    /// Ends the work, waits until all of it is published, and gives the last status.
    fn settle(&self, agent: &mut Agent, work: &Container) -> StatusReport {
        self.docker.remove(work).expect("it is there");
        let end = sim_nvml::wall_us() * 1_000 + SECOND;
        agent
            .wait_for_status("all of it to be published", |status| {
                let book = &status.snapshot.gpus[0];
                let passed = book.start.0 + book.elapsed.0 > end;
                // An agent that begins anew while the work goes on, on a busy machine, may learn too
                // late whose the first of it was.
                let unattributed: u64 = book.unattributed.iter().map(|(_, time)| time.0).sum();
                passed && shown(&status.snapshot, CONTAINER) + unattributed == book.busy.0
            })
            .expect("the books settle")
    }

    /// Waits until Prometheus shows what is published, and gives what it grew by, in nanoseconds.
    fn growth(&self, family: &str, report: &StatusReport) -> Result<u64> {
        let wanted = shown(&report.snapshot, family);
        let sum = |samples: &[prometheus::Sample]| -> u64 {
            samples.iter().map(|sample| nanos(sample.value)).sum()
        };
        self.prometheus
            .wait_for(family, PATIENCE, |found| sum(found) == wanted)?;
        let last = self.prometheus.last_scrape(family, PATIENCE)?;
        let growth = format!("increase({family}[1h])");
        Ok(sum(&self.prometheus.query_at(&growth, last)?))
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "rounded, and no counter is negative or beyond 2^64 ns"
)]
fn nanos(seconds: f64) -> u64 {
    (seconds * 1e9).round() as u64
}

/// What a family shows.
fn shown(snapshot: &Snapshot, family: &str) -> u64 {
    match family {
        CONTAINER => snapshot
            .container_series
            .iter()
            .map(|s| s.amounts.busy.0)
            .sum(),
        NAMESPACE => snapshot
            .namespace_series
            .iter()
            .map(|s| s.amounts.busy.0)
            .sum(),
        other => panic!("{other} is none of the families that are looked at"),
    }
}

fn store_state(status: &StatusReport) -> &SourceState {
    let mut sources = status.agent.sources.iter();
    let health = sources.find(|health| health.source == SourceId::Store);
    &health.expect("every source is in the status").state
}

#[test]
fn kills_are_not_seen_in_what_prometheus_adds_up() {
    let kills = std::env::var("GPUACCT_KILLS").ok();
    let kills: u64 = kills.map_or(4, |kills| kills.parse().expect("a number of kills"));
    let Some(mut rig) = Rig::start(false) else {
        return;
    };
    let mut agent = rig.agent();
    let work = rig.work();
    let mut before: Option<Snapshot> = None;
    for kill in 0..=kills {
        // At another point of the second each time.
        let enough = before.as_ref().map_or(0, |before| before.gpus[0].busy.0)
            + SECOND
            + kill * 377_000_000 % SECOND;
        let status = agent
            .wait_for_status("it to be billed", |status| {
                let gpus = &status.snapshot.gpus;
                gpus.first().is_some_and(|book| book.busy.0 > enough)
                    && shown(&status.snapshot, CONTAINER) > 0
            })
            .expect("it works on");
        assert_eq!(*store_state(&status), SourceState::Up);
        if let Some(before) = before {
            let now = &status.snapshot;
            assert!(now.sequence > before.sequence);
            assert_eq!(now.gpus[0].start, before.gpus[0].start);
            assert_eq!(now.container_series.len(), 1);
            let (one, other) = (&now.container_series[0], &before.container_series[0]);
            assert_eq!((&one.labels, one.start), (&other.labels, other.start));
            assert!(one.amounts.busy >= other.amounts.busy);
            assert_eq!(now.accounts.len(), 1, "it is recognised");
            assert!(!now.accounts[0].ended);
            assert_eq!(&*now.accounts[0].runtime_labels["team"], "vision");
        }
        before = Some(status.snapshot);
        if kill < kills {
            // Dropped is killed.
            drop(agent);
            agent = rig.agent();
        }
    }
    let report = rig.settle(&mut agent, &work);
    let book = &report.snapshot.gpus[0];
    // The driver's ring reaches further back than any restart took.
    assert!(
        book.unobserved.iter().all(|(_, time)| time.is_zero()),
        "{book:?}"
    );
    assert!(
        book.unattributed.iter().all(|(_, time)| time.is_zero()),
        "{book:?}"
    );
    assert_eq!(book.imbalance, 0);
    let credited = rig.credited();
    assert!(
        book.busy.0.abs_diff(credited) < SECOND / 1_000,
        "the driver credited {credited} ns, booked are {} ns",
        book.busy.0
    );
    for family in [CONTAINER, NAMESPACE] {
        let growth = rig.growth(family, &report).expect("Prometheus answers");
        assert_eq!(growth, book.busy.0, "{family}");
    }
    assert!(agent.stop().expect("it ends").success());
}

#[test]
fn reloads_under_load_are_not_seen_in_what_prometheus_adds_up() {
    const RELOADS: u64 = 4;
    let Some(mut rig) = Rig::start(false) else {
        return;
    };
    let mut agent = rig.agent();
    let work = rig.work();
    let file = rig.node.dir().join("agent/gpuacct.toml");
    let written = fs::read_to_string(&file).expect("it is the agent's file");
    let mut config = Config::parse(&written, "it").expect("the agent has read it");
    for reload in 1..=RELOADS {
        // Each of these changes what is published while the container works.
        config.cadvisor.enabled = !config.cadvisor.enabled;
        config.publish.zero_for = Span(Duration::from_secs(5 + reload % 2));
        config.store.max_size += 1 << 20;
        let text = config.to_toml().expect("it can be written");
        fs::write(&file, text).expect("it is the agent's file");
        let applied = format!("gpuacct_config_changes_total{{outcome=\"applied\"}} {reload}\n");
        agent
            .wait_for("the change", |agent| {
                Ok(agent.get("/metrics")?.1.contains(&applied))
            })
            .expect("it is in force");
        let before = shown(&agent.status().expect("it answers").snapshot, CONTAINER);
        agent
            .wait_for_status("it to be billed", |status| {
                shown(&status.snapshot, CONTAINER) > before + SECOND / 2
            })
            .expect("it works on");
    }
    let report = rig.settle(&mut agent, &work);
    let book = &report.snapshot.gpus[0];
    assert_eq!(book.imbalance, 0);
    for family in [CONTAINER, NAMESPACE] {
        let growth = rig.growth(family, &report).expect("Prometheus answers");
        assert_eq!(growth, book.busy.0, "{family}");
    }
    assert!(agent.stop().expect("it ends").success());
}

/// An export that is under way when the agent is killed counts as told, whether it arrived or not:
/// it may be missing, and is never there twice.
#[test]
fn kills_make_a_receiver_of_deltas_miss_what_was_under_way_and_nothing_twice() {
    if require("agent", agent::binary()).is_none()
        || require("docker", docker::available()).is_none()
        || require("prometheus", prometheus::available()).is_none()
    {
        return;
    }
    let Some(receiver) = require("pypi", rotel::available()) else {
        return;
    };
    let plan = Plan {
        kills: 4,
        read_only: 0,
        temporality: OtlpTemporality::Delta,
        seed: 4,
    };
    let outcome =
        crashes::run(Receiver::Rotel(receiver), plan, &|| false).expect("everything takes part");
    for (at, (scraped, pushed)) in FAMILIES.iter().enumerate() {
        assert_eq!(outcome.scraped[at], outcome.booked, "{scraped}");
        let gaps = crashes::gaps(&outcome.messages, pushed).expect("nothing is told of twice");
        assert!(gaps.len() <= 4, "{pushed}: {gaps:?}");
        // One GPU is busy for no more than the time that passes, but what a commit publishes may
        // have been booked two commits before.
        let missing = gaps.iter().map(|gap| gap.to - gap.from + 2 * SECOND);
        let most = outcome.booked;
        let least = most.saturating_sub(missing.sum());
        let received = outcome.received[at];
        // Seconds are doubles: what is added up is off by a nanosecond a point at most.
        let rounded = outcome.messages.metrics.len() as u64;
        assert!(
            (least..=most + rounded).contains(&received),
            "{pushed}: {received} of {least} to {most} ns, {gaps:?}"
        );
    }
}

#[test]
fn after_a_full_disk_series_begin_at_zero_and_not_in_between() {
    let Some(mut rig) = Rig::start(true) else {
        return;
    };
    let mut agent = rig.agent();
    let work = rig.work();
    let small = rig.small.as_ref().expect("it was asked for");
    agent
        .wait_for_status("it to be published", |status| {
            shown(&status.snapshot, CONTAINER) > SECOND
        })
        .expect("it works");
    small.fill().expect("it can be filled");
    let filler = small.filler();
    let full = agent
        .wait_for_status("the full disk to be noticed", |status| {
            matches!(store_state(status), SourceState::Down { class, .. } if &**class == "disk_full")
        })
        .expect("there is no room");
    assert!(
        full.degraded
            .iter()
            .any(|reason| reason.contains("store is down")),
        "{full:?}"
    );
    let unkept = agent
        .wait_for_status("it to be published nevertheless", |status| {
            shown(&status.snapshot, CONTAINER) > shown(&full.snapshot, CONTAINER) + SECOND
        })
        .expect("a full disk holds up nothing");
    let before = &unkept.snapshot.container_series[0];
    // Prometheus must have seen what the store has not.
    rig.prometheus
        .wait_for(CONTAINER, PATIENCE, |found| {
            found
                .iter()
                .any(|sample| nanos(sample.value) >= before.amounts.busy.0)
        })
        .expect("it scrapes");
    drop(agent);
    fs::remove_file(filler).expect("it is there");

    let mut agent = rig.agent();
    let anew = agent
        .wait_for_status("the series to begin anew", |status| {
            status
                .snapshot
                .container_series
                .iter()
                .any(|series| series.start > before.start)
        })
        .expect("it works on");
    let after = &anew.snapshot.container_series[0];
    assert_eq!(after.labels, before.labels);
    assert!(after.amounts.busy.is_zero());
    assert_eq!(*store_state(&anew), SourceState::Up);
    let report = rig.settle(&mut agent, &work);
    let down = report.snapshot.gpus[0].unobserved.iter();
    let down = down.filter(|(reason, _)| *reason == UnobservedReason::AgentDown);
    assert!(
        down.map(|(_, time)| *time).all(|time| time.is_zero()),
        "a life of its own"
    );
    let credited = rig.credited();
    for family in [CONTAINER, NAMESPACE] {
        let growth = rig.growth(family, &report).expect("Prometheus answers");
        assert!(
            growth <= credited + credited / 100,
            "{family}: {growth} of {credited} ns"
        );
        assert!(
            growth > shown(&unkept.snapshot, family),
            "{family}: {growth} ns"
        );
    }
}

#[test]
fn restarts_over_a_read_only_store_never_go_on_from_what_it_holds() {
    if require("agent", agent::binary()).is_none() {
        return;
    }
    let node = Node::new(1).expect("a node can be put together");
    let store = node.dir().join("agent/store");
    let Some(disk) = require("mount", SmallDisk::mount(store.clone())) else {
        return;
    };
    let mut agent = node.agent("agent", node.config()).expect("it comes up");
    let job = node
        .host_work(0, "0.5")
        .args(["--label", "job"])
        .stdout(std::process::Stdio::null())
        .spawn();
    let _job = Killed(job.expect("it can be run"));
    let busy = |status: &StatusReport| status.snapshot.gpus[0].busy.0;
    let down = |status: &StatusReport| match store_state(status) {
        SourceState::Down { class, .. } => Some(class.to_string()),
        _ => None,
    };
    let kept = agent
        .wait_for_status("two seconds of work to be kept", |status| {
            busy(status) > 2 * SECOND && *store_state(status) == SourceState::Up
        })
        .expect("it works");

    // From here on there is nothing that can be written where the store was.
    let read_only = SmallDisk::mount(store.clone()).expect("the other one could be mounted");
    mount_remount(&store, MountFlags::RDONLY, c"").expect("nobody has it open");
    let unkept = agent
        .wait_for_status("it to go on without the store, and to say so", |status| {
            down(status).is_some() && busy(status) > busy(&kept) + SECOND
        })
        .expect("a store that cannot be written holds up nothing");
    let mut before = &unkept.snapshot.gpus[0];
    let says_so = |status: &StatusReport| {
        let mut reasons = status.degraded.iter();
        reasons.any(|reason| reason.contains("store is down"))
    };
    assert!(says_so(&unkept), "{:?}", unkept.degraded);
    assert_eq!(before.start, kept.snapshot.gpus[0].start);

    let mut seen = Vec::new();
    for restart in 0..10 {
        drop(agent);
        agent = node.agent("agent", node.config()).expect("it comes up");
        let status = agent
            .wait_for_status("it to meter without a store", |status| {
                busy(status) > SECOND / 4 && down(status).is_some()
            })
            .expect("it works");
        assert_eq!(down(&status).as_deref(), Some("read_only"), "{restart}");
        assert!(says_so(&status), "{restart}: {:?}", status.degraded);
        seen.push(status);
    }
    for (restart, status) in seen.iter().enumerate() {
        let book = &status.snapshot.gpus[0];
        assert!(book.start > before.start, "restart {restart} went on");
        before = book;
    }

    // What it held is there again, and is less than what has been published since.
    drop(agent);
    drop(read_only);
    let mut agent = node.agent("agent", node.config()).expect("it comes up");
    let anew = agent
        .wait_for_status("it to be kept again", |status| {
            busy(status) > SECOND / 4 && *store_state(status) == SourceState::Up
        })
        .expect("it works");
    assert!(anew.snapshot.gpus[0].start > before.start, "it went on");
    assert!(anew.snapshot.gpus[0].start > kept.snapshot.gpus[0].start);
    agent.stop().expect("it ends");
    drop(disk);
}

#[test]
fn work_that_ends_while_no_agent_runs_is_its_containers() {
    if require("agent", agent::binary()).is_none()
        || require("docker", docker::available()).is_none()
    {
        return;
    }
    let node = Node::new(1).expect("a node can be put together");
    let docker = node.dockerd();
    let mut docker = docker.expect("Docker comes up");
    let mut config = node.config();
    config.docker.sockets = vec![docker.socket()];
    let mut agent = node.agent("agent", config.clone()).expect("it comes up");
    let [short, long] = [("short", "0.5"), ("long", "0.3")].map(|(name, share)| {
        let spec = node.at_work(ContainerSpec::named(name), 0, share);
        docker.run(&spec).expect("it starts")
    });
    let of = |status: &StatusReport, container: &Container| {
        let found = account(status, 0, &container.id)?;
        Some((found.amounts.busy.0, found.processes_started))
    };
    let both = [&short, &long];
    let before = agent
        .wait_for_status("both to be billed and listed", |status| {
            let found = both.map(|container| of(status, container));
            found
                .iter()
                .all(|of| of.is_some_and(|(busy, started)| busy > SECOND && started > 0))
        })
        .expect("they work");

    // Dropped is killed. Both go on working until samples show it, and one ends then: by itself, as
    // the driver keeps its samples for twelve seconds, and Docker may take long to remove it.
    drop(agent);
    for work in ["short", "long"] {
        let seen = node.credited_ns(work).expect("it has worked");
        node.wait_for_credit(work, seen + 1).expect("it works");
    }
    short.kill().expect("it lives");
    let mut agent = node.agent("agent", config).expect("it comes up");
    for container in both {
        docker.remove(container).expect("it is there");
    }
    let report = node.settle(&mut agent).expect("the books settle");
    let book = &report.snapshot.gpus[0];
    assert_eq!(book.imbalance, 0);
    assert!(
        book.unattributed.iter().all(|(_, time)| time.is_zero()),
        "{book:?}"
    );
    for (container, label) in [(&short, "short"), (&long, "long")] {
        let (busy, started) = of(&report, container).expect("it has an account");
        let credited = node.credited_ns(label).expect("it has worked");
        assert!(
            busy.abs_diff(credited) < SECOND / 1_000,
            "{label}: the driver credited {credited} ns, booked are {busy} ns"
        );
        let (busy_before, started_before) = of(&before, container).expect("it had one");
        assert!(busy > busy_before, "{label} worked while no agent ran");
        assert_eq!(started, started_before, "{label} was not started again");
    }
    assert!(agent.stop().expect("it ends").success());
}

#[test]
fn a_second_agent_waits_for_the_first_and_says_so() {
    if require("agent", agent::binary()).is_none() {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let first = Agent::start(dir.path(), Config::default(), &[]).expect("it comes up");
    let mut config = Config::default();
    config.store.path = dir.path().join("store");
    config.prometheus.listen = free_address().expect("loopback has free ports");
    config.socket.path = dir.path().join("second.sock");
    let file = dir.path().join("second.toml");
    fs::write(&file, config.to_toml().expect("paths are text")).expect("it can be written");
    let mut second = Second::spawn(&file);
    let says = |second: &mut Second, what: &str| {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (code, page) = second.status(&config.socket.path);
            if page.contains(what) {
                return code;
            }
            let ended = second.0.0.try_wait().expect("it is our child");
            assert!(ended.is_none(), "{ended:?}: {page}");
            assert!(Instant::now() < deadline, "no {what:?} in {page}");
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    let code = says(&mut second, "nothing is metered until it lets go");
    assert_eq!(code, Some(1), "degraded");
    let (code, _) = gpuacct_tests::http::get(
        &format!("http://{}/readyz", config.prometheus.listen),
        "*/*",
    )
    .expect("it answers");
    assert_eq!(code, 503);
    drop(first);
    says(&mut second, "store up");
}

/// An agent that is not waited for.
struct Second(Killed);

impl Second {
    fn spawn(config: &Path) -> Self {
        let binary = agent::binary().expect("it was there before");
        let child = Command::new(binary)
            .args(["agent", "--log", "error", "--config"])
            .arg(config)
            .spawn();
        Self(Killed(child.expect("it can be run")))
    }

    fn status(&self, socket: &Path) -> (Option<i32>, String) {
        let binary = agent::binary().expect("it was there before");
        let output = Command::new(binary)
            .args(["status", "--socket"])
            .arg(socket)
            .output()
            .expect("it can be run");
        let page = String::from_utf8_lossy(&output.stdout).into_owned();
        // Lines are broken for people.
        let words: Vec<&str> = page.split_whitespace().collect();
        (output.status.code(), words.join(" "))
    }
}
