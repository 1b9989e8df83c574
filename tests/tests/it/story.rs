//! The whole story of names on one node, in one life of the agent, with a Prometheus that scrapes
//! throughout: a real pod's containers while every runtime's socket is gone, then the bundles, then
//! the kubelet's links, and at last the socket back. No nanosecond is lost or counted twice.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::time::Duration;

use gpuacct::config::Span;
use gpuacct::core::explanation::{AnswerOutcome, AnswerStory, CgroupOwner, OwnerStory};
use gpuacct::core::input::IdentitySource;
use gpuacct::core::snapshot::{Attribution, IdOnlyReason};
use gpuacct_tests::agent::{self, Agent};
use gpuacct_tests::containerd::{self, Containerd, Pod};
use gpuacct_tests::node::{Node, account, pod_uid};
use gpuacct_tests::prometheus::{self, Prometheus, Sample};
use gpuacct_tests::requirement::require;

const NAMESPACE: &str = "ml";
const POD: &str = "train-0";
/// Named by the bundle, by the kubelet's link, and late by the runtime.
const CONTAINERS: [&str; 3] = ["by-bundle", "by-link", "by-ids"];
const BUSY: &str = "gpuacct_container_gpu_busy_seconds_total";
const NAMESPACE_BUSY: &str = "gpuacct_namespace_gpu_busy_seconds_total";
const INFO: &str = "gpuacct_container_info";
const SECOND: u64 = 1_000_000_000;
const PATIENCE: Duration = Duration::from_secs(90);
const SCRAPE_INTERVAL: Duration = Duration::from_millis(500);
/// How long a new series shows 0: several scrapes, since one may fail on a busy machine.
const ZERO_FOR: Duration = Duration::from_secs(3);
/// Longer than the two seconds after which a question is put again, also on a busy machine.
const GRACE: Duration = Duration::from_secs(10);

/// Where the node's agent looks for names, all of which come and go.
struct Places {
    /// A link to containerd's folder of bundles.
    bundles: PathBuf,
    /// The kubelet's folder of links.
    links: PathBuf,
}

/// A node with a pod on it. Dropped from top to bottom.
struct Story {
    agent: Agent,
    prometheus: Prometheus,
    pod: Pod,
    containerd: Containerd,
    places: Places,
    node: Node,
}

impl Story {
    fn start() -> Option<Self> {
        require("agent", agent::binary())?;
        require("containerd", containerd::available())?;
        require("prometheus", prometheus::available())?;
        let node = Node::new(CONTAINERS.len().try_into().unwrap()).unwrap();
        let mut containerd = Containerd::start(node.dir().join("c")).unwrap();
        let pod = containerd.run_pod(NAMESPACE, POD, pod_uid(), &[]).unwrap();
        containerd.hide().unwrap();
        let places = Places {
            bundles: node.dir().join("bundles"),
            links: node.dir().join("links"),
        };
        symlink(containerd.state(), &places.bundles).unwrap();
        let mut config = node.config();
        config.publish.grace = Span(GRACE);
        config.publish.zero_for = Span(ZERO_FOR);
        config.cri.sockets = vec![containerd.socket()];
        config.bundle.containerd = vec![places.bundles.clone()];
        config.kubelet_logs.containers = places.links.clone();
        let agent = node.agent("agent", config).unwrap();
        let prometheus =
            Prometheus::start(node.dir(), &[agent.address()], SCRAPE_INTERVAL).unwrap();
        // It takes some seconds until it scrapes at all, and a zero is shown for less.
        prometheus.wait_for_scrape(PATIENCE).unwrap();
        Some(Self {
            agent,
            prometheus,
            pod,
            containerd,
            places,
            node,
        })
    }

    /// Starts the pod's container of that name, which uses a GPU of its own. Its id.
    fn run(&self, container: &str) -> String {
        let gpu = gpu_of(container);
        let work = self.node.work(gpu, "0.5", container);
        let mounts = self.node.mounts();
        self.containerd
            .run_work(&self.pod, container, &work, &mounts)
            .unwrap()
    }

    /// What the kubelet does once a container of its is running.
    fn link(&self, container: &str, id: &str) {
        let log = self.containerd.logs(NAMESPACE, POD, pod_uid());
        let log = log.join(container).join("0.log");
        assert!(log.is_file(), "{}", log.display());
        fs::create_dir_all(&self.places.links).unwrap();
        let name = format!("{POD}_{NAMESPACE}_{container}-{id}.log");
        symlink(log, self.places.links.join(name)).unwrap();
    }

    /// Waits until a series with these labels has an amount, and says which.
    fn published(&mut self, labels: &str) -> f64 {
        let mut found = 0.0;
        self.agent
            .wait_for(&format!("an amount for {labels}"), |agent| {
                let lines = agent.metric_lines(BUSY)?;
                let line = lines.iter().find(|line| line.contains(labels));
                let value = line.and_then(|line| line.rsplit_once(' '));
                found = value.map_or(Ok(0.0), |(_, value)| value.parse())?;
                Ok(found > 0.0)
            })
            .unwrap();
        found
    }

    /// What is told of one container, whose line in `container_info` says the same.
    fn told(&self, id: &str, attribution: Attribution) -> OwnerStory {
        let told = self.agent.explain(id).unwrap().unwrap();
        let [owner] = &told.owners[..] else {
            panic!("{told:#?}");
        };
        let CgroupOwner::Container {
            id: who,
            pod_uid: pod,
            qos,
            ..
        } = &owner.who
        else {
            panic!("{owner:#?}");
        };
        assert_eq!(who.as_str(), id);
        assert_eq!(pod.as_deref(), Some(pod_uid()));
        assert_eq!(qos.as_deref(), Some("Burstable"));
        assert_eq!(owner.attribution, Some(attribution), "{owner:#?}");
        let (source, reason) = match attribution {
            Attribution::Named { source } => (source.as_str(), "(none)"),
            Attribution::IdOnly { reason } => ("(unresolved)", reason.as_str()),
            Attribution::Held => panic!("{owner:#?}"),
        };
        let labels = [
            format!("container_id=\"{id}\""),
            format!("attribution=\"{}\"", attribution.as_str()),
            format!("source=\"{source}\",reason=\"{reason}\""),
        ];
        let lines = self.agent.metric_lines(INFO).unwrap();
        let line = lines
            .iter()
            .find(|line| labels.iter().all(|label| line.contains(label)));
        assert!(line.is_some(), "{labels:?}: {lines:#?}");
        owner.clone()
    }
}

fn gpu_of(container: &str) -> u32 {
    let place = CONTAINERS.iter().position(|name| *name == container);
    place.and_then(|place| place.try_into().ok()).unwrap()
}

/// The labels of a container with all its names.
fn named(container: &str, id: &str) -> String {
    format!(
        "namespace=\"{NAMESPACE}\",pod=\"{POD}\",container=\"{container}\",pod_uid=\"{}\",container_id=\"{id}\"",
        pod_uid()
    )
}

/// The same where only the kernel has spoken.
fn by_ids(id: &str) -> String {
    let unresolved = ["namespace", "pod", "container"].map(|k| format!("{k}=\"(unresolved)\""));
    let unresolved = unresolved.join(",");
    format!(
        "{unresolved},pod_uid=\"{}\",container_id=\"{id}\"",
        pod_uid()
    )
}

/// What a source is doing and has said: its state, and the name that it gave.
fn said(owner: &OwnerStory, source: IdentitySource) -> (&str, Option<&str>, bool) {
    let mut answers = owner.answers.iter();
    let answer: &AnswerStory = answers.find(|answer| answer.source == source).unwrap();
    let name = match &answer.outcome {
        Some(AnswerOutcome::Found { name }) => Some(&**name),
        Some(AnswerOutcome::NotFound { .. }) => Some("(not found)"),
        Some(AnswerOutcome::PodRefused { .. } | AnswerOutcome::Refused { .. }) => Some("(refused)"),
        None => None,
    };
    let health = answer.health.as_ref().map_or("", |health| health.as_str());
    (health, name, answer.wins)
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "rounded, and 2^127 ns are not reached"
)]
fn nanos(seconds: f64) -> i128 {
    (seconds * 1e9).round() as i128
}

/// Nanoseconds by the value of one label.
fn by_label(samples: &[Sample], label: &str) -> BTreeMap<String, i128> {
    let pairs = samples
        .iter()
        .map(|sample| (sample.labels[label].clone(), nanos(sample.value)));
    pairs.collect()
}

#[test]
fn a_pods_containers_are_named_without_sockets_and_billed_once_when_one_comes_back() {
    let Some(mut story) = Story::start() else {
        return;
    };
    let [bundled, linked, anonymous] = CONTAINERS;
    let name = |container: &str| format!("{NAMESPACE}/{POD}/{container}");

    // No socket anywhere: rung 3, the bundle that containerd made.
    let first = story.run(bundled);
    story.published(&named(bundled, &first));
    let source = IdentitySource::Bundle;
    let told = story.told(&first, Attribution::Named { source });
    assert_eq!(
        said(&told, IdentitySource::Bundle),
        ("up", Some(&*name(bundled)), true)
    );
    for absent in [
        IdentitySource::Docker,
        IdentitySource::Cri,
        IdentitySource::KubeletLogs,
    ] {
        assert_eq!(said(&told, absent), ("absent", None, false));
    }

    // The bundles are gone, too: rung 4, the kubelet's link.
    fs::remove_file(&story.places.bundles).unwrap();
    let second = story.run(linked);
    story.link(linked, &second);
    story.published(&named(linked, &second));
    let source = IdentitySource::KubeletLogs;
    let told = story.told(&second, Attribution::Named { source });
    assert_eq!(
        said(&told, IdentitySource::KubeletLogs),
        ("up", Some(&*name(linked)), true)
    );
    assert_eq!(said(&told, IdentitySource::Bundle), ("down", None, false));

    // And the links: what the kernel says, and why it is no more.
    fs::remove_dir_all(&story.places.links).unwrap();
    let third = story.run(anonymous);
    story.published(&by_ids(&third));
    let reason = IdOnlyReason::SourceDown;
    let told = story.told(&third, Attribution::IdOnly { reason });
    for (source, health) in [
        (IdentitySource::Docker, "absent"),
        (IdentitySource::Cri, "absent"),
        (IdentitySource::Bundle, "down"),
        (IdentitySource::KubeletLogs, "down"),
    ] {
        assert_eq!(said(&told, source), (health, None, false), "{source:?}");
    }
    // Nobody's namespace has been given any of it.
    let lines = story.agent.metric_lines(NAMESPACE_BUSY).unwrap();
    assert!(
        lines
            .iter()
            .all(|line| line.contains(&format!("namespace=\"{NAMESPACE}\""))),
        "{lines:#?}"
    );
    let status = story.agent.status().unwrap();
    let uuid = |container: &str| {
        let gpu = gpu_of(container);
        let mut books = status.snapshot.gpus.iter();
        let book = books.find(|book| book.gpu.index == gpu).unwrap();
        book.gpu.uuid.as_str().to_owned()
    };
    let gpu = uuid(anonymous);
    assert!(lines.iter().all(|line| !line.contains(&gpu)), "{lines:#?}");

    // The socket is back: its names complete the labels, and the rest goes under them.
    story.containerd.show().unwrap();
    let late = story.published(&named(anonymous, &third));
    let before = story.published(&by_ids(&third));
    assert!(late > 0.0 && before > 0.0);
    let source = IdentitySource::Cri;
    let told = story.told(&third, Attribution::Named { source });
    assert_eq!(
        said(&told, IdentitySource::Cri),
        ("up", Some(&*name(anonymous)), true)
    );
    for (container, id) in [(bundled, &first), (linked, &second)] {
        let told = story.agent.explain(id).unwrap().unwrap();
        let told = &told.owners[0];
        assert_eq!(&*told.labels.container, container);
        let (health, found, _) = said(told, IdentitySource::Cri);
        assert_eq!((health, found), ("up", Some(&*name(container))));
    }

    // The end of the story. Its sum is the ledger's, and that the truth.
    for id in [&first, &second, &third] {
        story.containerd.remove_container(id).unwrap();
    }
    let report = story.node.settle(&mut story.agent).unwrap();
    assert_eq!(report.snapshot.accounts.len(), 3, "{report:#?}");
    let mut booked = BTreeMap::new();
    for (container, id) in [(bundled, &first), (linked, &second), (anonymous, &third)] {
        let account = account(&report, gpu_of(container), id).unwrap();
        assert_eq!(&*account.labels.container, container);
        // NVML has the samples' times in microseconds.
        let credited = story.node.credited_ns(container).unwrap();
        let difference = account.amounts.busy.0.abs_diff(credited);
        assert!(
            difference < SECOND / 1_000,
            "{container}: the driver credited {credited} ns: {account:?}"
        );
        booked.insert(id.clone(), i128::from(account.amounts.busy.0));
    }
    let by_id = format!("sum by (container_id) ({BUSY})");
    story
        .prometheus
        .wait_for(&by_id, PATIENCE, |found| {
            by_label(found, "container_id") == booked
        })
        .unwrap();
    // Every series began at 0, so at its last sample nothing is extrapolated.
    let last = story.prometheus.last_scrape(BUSY, PATIENCE).unwrap();
    let grown = |expression: &str| story.prometheus.query_at(expression, last).unwrap();
    let series = grown(&format!("increase({BUSY}[1h])"));
    assert_eq!(series.len(), 4, "one was published twice: {series:#?}");
    let sums = grown(&format!("sum by (container_id) (increase({BUSY}[1h]))"));
    assert_eq!(by_label(&sums, "container_id"), booked);

    // The namespace's counter has all of it once, also what went out under the ids.
    let namespaces: BTreeMap<String, i128> = [
        (uuid(bundled), booked[&first]),
        (uuid(linked), booked[&second]),
        (uuid(anonymous), booked[&third]),
    ]
    .into();
    story
        .prometheus
        .wait_for(NAMESPACE_BUSY, PATIENCE, |found| {
            by_label(found, "gpu_uuid") == namespaces
        })
        .unwrap();
    let last = story.prometheus.last_scrape(NAMESPACE_BUSY, PATIENCE);
    let last = last.unwrap();
    let bill = format!("increase({NAMESPACE_BUSY}{{namespace=\"{NAMESPACE}\"}}[1h])");
    let bill = story.prometheus.query_at(&bill, last).unwrap();
    assert_eq!(by_label(&bill, "gpu_uuid"), namespaces);

    // Also of the dead.
    let told = story.agent.explain(&third).unwrap().unwrap();
    let account = &told.owners[0].accounts[0];
    assert!(
        account.ended && account.busy == account.published,
        "{told:#?}"
    );
    assert!(story.agent.stop().unwrap().success());
}
