//! A pod that runs where its containers have no processes, as gVisor's and Kata's do: it is booked by
//! its uid, and named by whoever knows the pod.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs;
use std::time::Duration;

use gpuacct::config::Span;
use gpuacct::core::explanation::{AnswerOutcome, OwnerStory};
use gpuacct::core::input::IdentitySource;
use gpuacct::core::snapshot::{Attribution, IdOnlyReason};
use gpuacct_tests::agent::{self, Agent};
use gpuacct_tests::cgroups::{Containers, hierarchy};
use gpuacct_tests::daemon::Killed;
use gpuacct_tests::node::Node;
use gpuacct_tests::requirement::require;

const BUSY: &str = "gpuacct_container_gpu_busy_seconds_total";
const INFO: &str = "gpuacct_container_info";

/// Waits until a series of this family has these labels, and an amount if it is a counter.
fn wait_for(agent: &mut Agent, family: &str, labels: &str) {
    agent
        .wait_for(&format!("{family} with {labels}"), |agent| {
            let lines = agent.metric_lines(family)?;
            let mut lines = lines.iter();
            Ok(lines.any(|line| line.contains(labels) && !line.ends_with("} 0")))
        })
        .unwrap();
}

/// What is told of the pod, and what the kubelet's logs said of it.
fn told(agent: &Agent, uid: &str) -> (OwnerStory, Option<AnswerOutcome>) {
    let told = agent.explain(uid).unwrap().unwrap();
    let owner = told.owners[0].clone();
    let mut answers = owner.answers.iter();
    let logs = answers.find(|answer| answer.source == IdentitySource::KubeletLogs);
    let outcome = logs.unwrap().outcome.clone();
    (owner, outcome)
}

#[test]
fn a_pod_without_a_process_in_any_container_is_named_by_its_uid() {
    if require("agent", agent::binary()).is_none() || require("cgroups", hierarchy()).is_none() {
        return;
    }
    let node = Node::new(1).unwrap();
    let mut containers = Containers::below("pod").unwrap();
    let container = containers.add().unwrap();
    let uid = container.pod_uid.as_str();
    let pods = node.dir().join("host/var/log/pods");
    fs::create_dir_all(&pods).unwrap();
    let mut config = node.config();
    // Long enough for an answer on a busy machine.
    config.publish.grace = Span(Duration::from_secs(6));
    config.kubelet_logs.host_root = node.dir().join("host");
    config.kubelet_logs.containers = "/var/log/containers".into();
    config.kubelet_logs.pods = "/var/log/pods".into();
    let mut agent = node.agent("agent", config).unwrap();

    let mut command = node.host_work(0, "0.5");
    command.args(["--label", "pod"]);
    let _job = Killed(container.spawn_beside(&mut command).unwrap());

    // There are logs of pods, and none of this one.
    let ids = format!("container=\"(pod)\",pod_uid=\"{uid}\",container_id=\"(none)\"");
    let unresolved = format!("namespace=\"(unresolved)\",pod=\"(unresolved)\",{ids}");
    wait_for(&mut agent, BUSY, &unresolved);
    let reason = IdOnlyReason::NotFound;
    let (owner, said) = told(&agent, uid);
    assert_eq!(owner.attribution, Some(Attribution::IdOnly { reason }));
    let not_found = AnswerOutcome::NotFound {
        reason: "not_found".into(),
    };
    assert_eq!(said, Some(not_found));

    fs::create_dir(pods.join(format!("bank_teller-0_{uid}"))).unwrap();
    let named = format!("namespace=\"bank\",pod=\"teller-0\",{ids}");
    wait_for(&mut agent, BUSY, &named);
    wait_for(
        &mut agent,
        INFO,
        &format!(
            "{named},image=\"(none)\",runtime=\"(unresolved)\",attribution=\"named\",source=\"kubelet_logs\""
        ),
    );
    wait_for(
        &mut agent,
        "gpuacct_namespace_gpu_busy_seconds_total",
        "namespace=\"bank\"",
    );
    let (owner, said) = told(&agent, uid);
    let found = AnswerOutcome::Found {
        name: "bank/teller-0".into(),
    };
    assert_eq!(said, Some(found), "{owner:?}");
    assert!(
        owner.why.starts_with("named by kubelet_logs"),
        "{}",
        owner.why
    );
    assert!(agent.stop().unwrap().success());
}
