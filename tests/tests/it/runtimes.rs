//! The built agent beside runtimes as they are met in the field: a daemon that calls itself `dev`
//! and comes when the agent is long up, a newer release, Podman instead of Docker. Each hangs or
//! goes away for a while, and neither a name nor a nanosecond is lost.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::os::unix::fs::symlink;

use gpuacct::config::Config;
use gpuacct::core::input::IdentitySource;
use gpuacct::core::model::{SourceId, SourceState};
use gpuacct::core::snapshot::Attribution;
use gpuacct_tests::agent::{self, Agent};
use gpuacct_tests::docker::{self, Container, ContainerSpec, Dockerd};
use gpuacct_tests::node::{Node, account, pod_uid, state};
use gpuacct_tests::podman::{self, Podman};
use gpuacct_tests::requirement::require;

const SECOND: u64 = 1_000_000_000;

fn node(gpus: u32) -> Option<Node> {
    require("agent", agent::binary())?;
    Some(Node::new(gpus).unwrap())
}

fn wait_for_docker(agent: &mut Agent, wanted: &str) {
    agent
        .wait_for_status(&format!("docker to be {wanted}"), |status| {
            state(status, SourceId::Docker).as_str() == wanted
        })
        .unwrap();
}

/// Waits until a container is named by that source and billed for a second more than now.
fn wait_for_bill(agent: &mut Agent, gpu: u32, id: &str, by: IdentitySource) {
    let status = agent.status().unwrap();
    let before = account(&status, gpu, id).map_or(0, |account| account.amounts.busy.0);
    agent
        .wait_for_status("it to be named and billed", |status| {
            account(status, gpu, id).is_some_and(|account| {
                account.attribution == Attribution::Named { source: by }
                    && account.amounts.busy.0 > before + SECOND
            })
        })
        .unwrap();
}

/// The books of a container are what the driver credited to its work, and it has these names.
fn assert_billed(
    node: &Node,
    agent: &mut Agent,
    gpu: u32,
    (container, work): (&Container, &str),
    [namespace, pod, name]: [&str; 3],
) {
    let report = node.settle(agent).unwrap();
    let account = account(&report, gpu, &container.id).unwrap();
    let labels = &account.labels;
    assert_eq!(
        [&*labels.namespace, &*labels.pod, &*labels.container],
        [namespace, pod, name]
    );
    // NVML has the samples' times in microseconds.
    let credited = node.credited_ns(work).unwrap();
    let difference = account.amounts.busy.0.abs_diff(credited);
    assert!(
        difference < SECOND / 1_000,
        "{work}: the driver credited {credited} ns: {account:?}"
    );
}

/// A daemon that comes after the agent, and hangs for a while.
fn late_and_hanging(prepare: impl FnOnce(&mut docker::Options)) {
    let Some(node) = node(2) else { return };
    let mut options = docker::Options::at(node.dir().join("d"));
    prepare(&mut options);
    let config = Config {
        docker: gpuacct::config::Docker {
            sockets: vec![options.root.join("docker.sock")],
            timeout: "1s".parse().unwrap(),
            ..node.config().docker
        },
        ..node.config()
    };
    let mut agent = node.agent("agent", config).unwrap();
    wait_for_docker(&mut agent, "absent");

    let mut daemon = Dockerd::start(options).unwrap();
    wait_for_docker(&mut agent, "up");
    let spec =
        |name: &str, pod: &str| ContainerSpec::named(name).in_pod("ml", pod, pod_uid(), "main");
    let early = node.at_work(spec("k8s_early", "early"), 0, "0.5");
    let early = daemon.run(&early).unwrap();
    let docker = IdentitySource::Docker;
    wait_for_bill(&mut agent, 0, &early.id, docker);

    daemon.pause().unwrap();
    let status = agent
        .wait_for_status("docker to be missed", |status| {
            matches!(state(status, SourceId::Docker), SourceState::Down { .. })
        })
        .unwrap();
    let SourceState::Down { class, .. } = state(&status, SourceId::Docker) else {
        panic!("it was down a moment ago");
    };
    assert_eq!(&**class, "timeout");
    wait_for_bill(&mut agent, 0, &early.id, docker);
    daemon.resume().unwrap();
    wait_for_docker(&mut agent, "up");
    let late = node.at_work(spec("k8s_late", "late"), 1, "0.5");
    let late = daemon.run(&late).unwrap();
    wait_for_bill(&mut agent, 1, &late.id, docker);

    for container in [&early, &late] {
        daemon.remove(container).unwrap();
    }
    let early = (&early, "k8s_early");
    assert_billed(&node, &mut agent, 0, early, ["ml", "early", "main"]);
    let late = (&late, "k8s_late");
    assert_billed(&node, &mut agent, 1, late, ["ml", "late", "main"]);
    let lines = agent.metric_lines("gpuacct_container_info").unwrap();
    assert_eq!(
        lines.len(),
        2,
        "nothing was published by its ids: {lines:#?}"
    );
    assert!(agent.stop().unwrap().success());
}

#[test]
fn a_daemon_that_says_dev_comes_late_and_hangs_is_followed() {
    if require("docker", docker::available()).is_none() {
        return;
    }
    late_and_hanging(|options| options.version_says = Some("dev".to_owned()));
}

#[test]
fn a_newer_daemon_that_comes_late_and_hangs_is_followed() {
    let Some(tree) = require("docker-new", docker::newer()) else {
        return;
    };
    late_and_hanging(|options| options.programs = Some(tree));
}

#[test]
fn podmans_containers_are_billed_by_name_with_its_socket_and_without() {
    if require("podman", podman::available()).is_none() {
        return;
    }
    let Some(node) = node(2) else { return };
    let mut podman = Podman::start(node.dir().join("p")).unwrap();
    let mut config = node.config();
    config.docker.sockets = vec![podman.socket()];
    let storage = node.dir().join("storage");
    config.bundle.storage = vec![storage.clone()];
    let mut agent = node.agent("agent", config).unwrap();
    wait_for_docker(&mut agent, "up");
    let first = node.at_work(ContainerSpec::named("first"), 0, "0.5");
    let first = podman.run(&first).unwrap();
    wait_for_bill(&mut agent, 0, &first.id, IdentitySource::Docker);
    // The first answer that names a container counts, so there is one at a time.
    symlink(podman.storage(), storage).unwrap();

    // Its service is seldom up: what it leaves on disk names its containers, too.
    podman.stop().unwrap();
    let second = node.at_work(ContainerSpec::named("second"), 1, "0.5");
    let second = podman.run(&second).unwrap();
    wait_for_bill(&mut agent, 1, &second.id, IdentitySource::Bundle);

    for container in [&first, &second] {
        podman.remove(container).unwrap();
    }
    for (gpu, container, name) in [(0, &first, "first"), (1, &second, "second")] {
        let work = (container, name);
        assert_billed(&node, &mut agent, gpu, work, ["(none)", "(none)", name]);
    }
    let lines = agent.metric_lines("gpuacct_container_info").unwrap();
    assert!(
        lines.len() == 2 && lines.iter().all(|line| line.contains("runtime=\"podman\"")),
        "{lines:#?}"
    );
    assert!(agent.stop().unwrap().success());
}
