//! Each reason for which a container can go without its names, brought about with real daemons: it
//! is published under the kernel's ids with that reason, nothing is blank, and `explain` says why.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::time::Duration;

use gpuacct::config::Span;
use gpuacct::core::explanation::{AnswerOutcome, OwnerStory};
use gpuacct::core::model::{SourceId, SourceState};
use gpuacct::core::snapshot::{Attribution, IdOnlyReason};
use gpuacct_tests::agent::{self, Agent};
use gpuacct_tests::docker::{self, Container, ContainerSpec, Dockerd};
use gpuacct_tests::node::{Node, pod_uid, state};
use gpuacct_tests::prometheus::{self, Prometheus, Sample};
use gpuacct_tests::requirement::require;

const OTHER_UID: &str = "00000000-2d3f-4a5b-8c7d-0123456789ab";
const BUSY: &str = "gpuacct_container_gpu_busy_seconds_total";
const INFO: &str = "gpuacct_container_info";
const SECOND: u64 = 1_000_000_000;

/// A node and a daemon of its own. Dropped from top to bottom.
struct Rig {
    daemon: Dockerd,
    node: Node,
}

impl Rig {
    fn start() -> Option<Self> {
        require("agent", agent::binary())?;
        require("docker", docker::available())?;
        let node = Node::new(1).unwrap();
        let daemon = Dockerd::start(docker::Options::at(node.dir().join("d"))).unwrap();
        Some(Self { daemon, node })
    }

    /// Another daemon, which knows none of the first one's containers.
    fn stranger(&self) -> Dockerd {
        Dockerd::start(docker::Options::at(self.node.dir().join("e"))).unwrap()
    }

    /// An agent that is told of this daemon alone.
    fn agent(&self, daemon: &Dockerd) -> Agent {
        let mut config = self.node.config();
        // Long enough for an answer on a busy machine.
        config.publish.grace = Span(Duration::from_secs(5));
        config.docker.sockets = vec![daemon.socket()];
        // The longest that an agent waits for an answer is longer than the grace.
        config.docker.timeout = Span(Duration::from_secs(60));
        self.node.agent("agent", config).unwrap()
    }

    /// A pod's container at work, in the cgroup of the pod with this uid.
    fn run(&mut self, uid: &str) -> Container {
        let mut spec =
            ContainerSpec::named("k8s_trainer").in_pod("ml", "train-0", pod_uid(), "trainer");
        spec.cgroup_parent = Some(format!("/kubepods/burstable/pod{uid}"));
        let spec = self.node.at_work(spec, 0, "0.5");
        self.daemon.run(&spec).unwrap()
    }
}

/// What the identity source that the agent was told of is doing meanwhile. A reason that is new has
/// no place here, and no test.
const fn state_of_docker(reason: IdOnlyReason) -> &'static str {
    match reason {
        IdOnlyReason::NoSource => "absent",
        IdOnlyReason::SourceDown => "down",
        IdOnlyReason::NotFound | IdOnlyReason::PodUidMismatch | IdOnlyReason::Timeout => "up",
    }
}

/// Waits until the container is published by its ids, and returns what is told of it.
fn published_by_ids(
    agent: &mut Agent,
    container: &Container,
    uid: &str,
    reason: IdOnlyReason,
) -> OwnerStory {
    let unresolved = ["namespace", "pod", "container"].map(|k| format!("{k}=\"(unresolved)\""));
    let labels = format!(
        "{},pod_uid=\"{uid}\",container_id=\"{}\"",
        unresolved.join(","),
        container.id
    );
    agent
        .wait_for("its amount under its ids", |agent| {
            let lines = agent.metric_lines(BUSY)?;
            Ok(lines
                .iter()
                .any(|line| line.contains(&labels) && !line.ends_with("} 0")))
        })
        .unwrap();
    let attribution = format!(
        "attribution=\"id_only\",source=\"(unresolved)\",reason=\"{}\"",
        reason.as_str()
    );
    let infos = agent.metric_lines(INFO).unwrap();
    let [info] = &infos[..] else {
        panic!("one container: {infos:#?}");
    };
    assert!(
        info.contains(&labels) && info.contains(&attribution),
        "{info}"
    );
    let status = agent.status().unwrap();
    let docker = state(&status, SourceId::Docker);
    assert_eq!(docker.as_str(), state_of_docker(reason), "{docker:?}");

    let told = agent.explain(&container.id).unwrap().unwrap();
    let owner = told.owners[0].clone();
    assert_eq!(owner.attribution, Some(Attribution::IdOnly { reason }));
    assert!(!owner.why.is_empty());
    assert!(
        owner.answers.iter().all(|answer| !answer.wins),
        "{:?}",
        owner.answers
    );
    assert!(owner.accounts[0].busy.0 > 0, "{:?}", owner.accounts);
    owner
}

/// What became of the question to Docker.
fn docker_said(owner: &OwnerStory) -> Option<&AnswerOutcome> {
    let mut answers = owner.answers.iter();
    let docker = answers.find(|answer| answer.source.source() == SourceId::Docker);
    docker.unwrap().outcome.as_ref()
}

#[test]
fn no_source() {
    let Some(mut rig) = Rig::start() else { return };
    let container = rig.run(pod_uid());
    // Its socket is taken away, and the agent has never seen it.
    rig.daemon.stop().unwrap();
    let mut agent = rig.agent(&rig.daemon);
    let owner = published_by_ids(&mut agent, &container, pod_uid(), IdOnlyReason::NoSource);
    assert_eq!(docker_said(&owner), None);
    assert!(agent.stop().unwrap().success());
}

#[test]
fn source_down() {
    let Some(mut rig) = Rig::start() else { return };
    let container = rig.run(pod_uid());
    // Killed, it leaves its socket behind, which refuses.
    rig.daemon.kill().unwrap();
    let mut agent = rig.agent(&rig.daemon);
    let owner = published_by_ids(&mut agent, &container, pod_uid(), IdOnlyReason::SourceDown);
    assert_eq!(docker_said(&owner), None);
    assert!(agent.stop().unwrap().success());
}

#[test]
fn not_found() {
    let Some(mut rig) = Rig::start() else { return };
    let stranger = rig.stranger();
    let container = rig.run(pod_uid());
    let mut agent = rig.agent(&stranger);
    let owner = published_by_ids(&mut agent, &container, pod_uid(), IdOnlyReason::NotFound);
    assert!(
        matches!(docker_said(&owner), Some(AnswerOutcome::NotFound { .. })),
        "{owner:?}"
    );
    assert!(agent.stop().unwrap().success());
}

#[test]
fn pod_uid_mismatch() {
    let Some(mut rig) = Rig::start() else { return };
    // Its labels say that it is another pod's.
    let container = rig.run(OTHER_UID);
    let mut agent = rig.agent(&rig.daemon);
    let reason = IdOnlyReason::PodUidMismatch;
    let owner = published_by_ids(&mut agent, &container, OTHER_UID, reason);
    let refused = Some(&AnswerOutcome::Refused {
        claimed: pod_uid().into(),
    });
    assert_eq!(docker_said(&owner), refused);
    let status = agent.status().unwrap();
    assert!(status.snapshot.agent.identities_refused > 0, "{status:?}");
    assert!(agent.stop().unwrap().success());
}

/// The questions of the documentation that ask the info series.
fn documented_joins() -> Vec<String> {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/OPERATIONS.md");
    let page = std::fs::read_to_string(page).unwrap();
    let questions = page.split("```promql\n").skip(1);
    let questions = questions.map(|block| block.split_once("\n```").unwrap().0);
    let joins = questions.filter(|question| question.contains(INFO));
    joins.map(str::to_owned).collect()
}

#[test]
fn a_container_that_was_named_late_is_joined_with_what_is_known_of_it() {
    let Some(mut rig) = Rig::start() else { return };
    if require("prometheus", prometheus::available()).is_none() {
        return;
    }
    let container = rig.run(pod_uid());
    rig.daemon.pause().unwrap();
    let mut agent = rig.agent(&rig.daemon);
    let id = format!("container_id=\"{}\"", container.id);
    let published = |agent: &Agent, count: usize| -> anyhow::Result<bool> {
        let lines = agent.metric_lines(BUSY)?.into_iter();
        let lines = lines.filter(|line| line.contains(&id) && !line.ends_with("} 0"));
        Ok(lines.count() == count)
    };
    agent
        .wait_for("its amount under its ids", |agent| published(agent, 1))
        .unwrap();
    rig.daemon.resume().unwrap();
    agent
        .wait_for("an amount under its names as well", |agent| {
            published(agent, 2)
        })
        .unwrap();

    let dir = tempfile::tempdir().unwrap();
    let interval = Duration::from_millis(500);
    let prometheus = Prometheus::start(dir.path(), &[agent.address()], interval).unwrap();
    let joins = documented_joins();
    assert!(!joins.is_empty());
    for join in joins {
        // A rate needs two scrapes, and what has names is billed on.
        let samples = prometheus
            .wait_for(&join, agent::PATIENCE, |samples| {
                let named = |sample: &Sample| sample.labels["namespace"] == "ml";
                samples
                    .iter()
                    .any(|sample| named(sample) && sample.value > 0.0)
            })
            .unwrap();
        let mut found: Vec<[&str; 2]> = samples
            .iter()
            .map(|sample| ["namespace", "image"].map(|label| &*sample.labels[label]))
            .collect();
        found.sort_unstable();
        let image = "gpuacct/busybox:1";
        assert_eq!(found, [["(unresolved)", image], ["ml", image]], "{join}");
    }
    // Its id alone names two info series.
    let by_id = format!("{BUSY} * on (container_id) group_left (image) {INFO}");
    agent
        .wait_for("the join to be refused", |_| {
            // After a scrape that failed there is nothing to join.
            let error = prometheus.query(&by_id).err();
            Ok(error.is_some_and(|error| format!("{error:#}").contains("many-to-many")))
        })
        .unwrap();
    assert!(agent.stop().unwrap().success());
}

#[test]
fn timeout() {
    let Some(mut rig) = Rig::start() else { return };
    let mut stranger = rig.stranger();
    let mut agent = rig.agent(&stranger);
    agent
        .wait_for_status("docker", |status| {
            *state(status, SourceId::Docker) == SourceState::Up
        })
        .unwrap();
    // It hangs, and is not yet taken for down.
    stranger.pause().unwrap();
    let container = rig.run(pod_uid());
    let owner = published_by_ids(&mut agent, &container, pod_uid(), IdOnlyReason::Timeout);
    assert_eq!(docker_said(&owner), None);
    // It goes on, and says that it does not know it: what was published keeps its reason.
    stranger.resume().unwrap();
    agent
        .wait_for("the late answer", |agent| {
            let told = agent.explain(&container.id)?.unwrap();
            Ok(docker_said(&told.owners[0]).is_some())
        })
        .unwrap();
    published_by_ids(&mut agent, &container, pod_uid(), IdOnlyReason::Timeout);
    let status = agent.status().unwrap();
    let before = status.snapshot.accounts[0].amounts.busy.0;
    agent
        .wait_for_status("it to be billed on", |status| {
            status.snapshot.accounts[0].amounts.busy.0 > before + SECOND / 2
        })
        .unwrap();
    assert!(agent.stop().unwrap().success());
}
