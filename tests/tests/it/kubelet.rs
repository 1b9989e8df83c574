//! A pod of a real kubelet's that is given a GPU by a real device plugin's interface, from the
//! allocation to the end, beside the built agent.

use std::fs;
use std::time::Duration;

use anyhow::Result;
use gpuacct::config::Span;
use gpuacct::core::input::IdentitySource;
use gpuacct::core::model::{SourceId, SourceState};
use gpuacct::core::snapshot::{AllocationState, AllocationView, Attribution, ContainerAccount};
use gpuacct::outputs::socket::StatusReport;
use gpuacct_tests::agent;
use gpuacct_tests::kubelet::{self, Kubelet, NODE, Plugin, Pod, RESOURCE};
use gpuacct_tests::node::{self, Node};
use gpuacct_tests::requirement::require;
use sim_nvml::GpuSpec;

const NAMESPACE: &str = "ml";
const POD: &str = "train";
const CONTAINER: &str = "trainer";
const WORK: &str = "training";
const ALLOCATED: &str = "gpuacct_container_gpu_allocated_seconds_total";
const BUSY: &str = "gpuacct_container_gpu_busy_seconds_total";

/// What the pod's container runs: it waits for a word, and then works on the GPU that it sees. The
/// shell is its process 1, which is ended by no signal that it does not handle: the container lives
/// on when the kubelet asks it to end.
fn command(node: &Node, gpus: &[String]) -> Vec<String> {
    let works = (0..).zip(gpus).map(|(at, gpu)| {
        let work = node.work(at, "0.5", WORK).join(" ");
        format!("{gpu}) {work};; ")
    });
    let script = format!(
        "until [ -e /word/go ]; do /bin/busybox sleep 0.1; done; \
         case \"$NVIDIA_VISIBLE_DEVICES\" in {}esac; exit 1",
        works.collect::<String>()
    );
    ["/bin/busybox", "sh", "-c", &script]
        .map(str::to_owned)
        .into()
}

/// What the kubelet says of the pod.
fn allocation<'a>(status: &'a StatusReport, pod: &str) -> Option<&'a AllocationView> {
    let mut allocations = status.snapshot.allocations.iter();
    allocations.find(|of| &*of.namespace == NAMESPACE && &*of.pod == pod)
}

/// The only account.
fn account(status: &StatusReport) -> &ContainerAccount {
    let [account] = &*status.snapshot.accounts else {
        panic!("one account, not {:#?}", status.snapshot.accounts);
    };
    account
}

#[test]
fn a_pod_pays_for_the_gpu_that_a_real_kubelet_gave_it_until_it_ends() {
    if require("agent", agent::binary()).is_none() {
        return;
    }
    let Some(program) = require("kubelet", kubelet::available()) else {
        return;
    };
    let pod = format!("{POD}-{NODE}");
    let gpus: Vec<String> = (0..2).map(|at| GpuSpec::a100(at).uuid).collect();
    let node = Node::new(2).unwrap();
    let mut kubelet = Kubelet::start(&program, &node.dir().join("k")).unwrap();
    let plugin = Plugin::register(&mut kubelet, &gpus).unwrap();
    let mut config = node.config();
    config.cri.sockets = vec![kubelet.containerd().socket()];
    config.pod_resources.socket = kubelet.pod_resources();
    config.pod_resources.interval = Span(Duration::from_secs(1));
    let mut agent = node.agent("agent", config).unwrap();
    agent
        .wait_for_status("the kubelet and the runtime", |status| {
            [SourceId::PodResources, SourceId::Cri]
                .iter()
                .all(|source| *node::state(status, *source) == SourceState::Up)
        })
        .unwrap();

    // It is given a GPU, and does nothing with it.
    let word = node.dir().join("word");
    fs::create_dir(&word).unwrap();
    let mut mounts = node.mounts();
    mounts.push((word.clone(), "/word".into()));
    let command = command(&node, &gpus);
    let described = Pod {
        namespace: NAMESPACE,
        name: POD,
        container: CONTAINER,
        gpus: 1,
        command: &command,
        mounts: &mounts,
        // Longer than the test, which ends it when it likes.
        grace_s: 3600,
    };
    kubelet.run_pod(&described).unwrap();
    let named_by_runtime = Attribution::Named {
        source: IdentitySource::Cri,
    };
    let status = agent
        .wait_for_status("allocated time", |status| {
            allocation(status, &pod).is_some_and(|of| of.state == AllocationState::Counting)
                && status.snapshot.container_series.iter().any(|series| {
                    !series.amounts.allocated.is_zero() && series.attribution == named_by_runtime
                })
        })
        .unwrap();
    let given = allocation(&status, &pod).unwrap();
    assert_eq!(&*given.container, CONTAINER);
    let [device] = &*given.devices else {
        panic!("one device, not {:#?}", given.devices);
    };
    assert_eq!(&*device.resource, RESOURCE);
    assert_eq!(plugin.given(), [[device.id.to_string()]]);
    let first = account(&status);
    assert_eq!(first.gpu.as_str(), &*device.id);
    assert_eq!(Some(&first.id), given.id.as_ref());
    assert!(first.amounts.busy.is_zero(), "{:?}", first.amounts);
    let labels = &first.labels;
    assert_eq!(
        [&*labels.namespace, &*labels.pod, &*labels.container],
        [NAMESPACE, &pod, CONTAINER]
    );
    // The uid of a pod from a file is a hash.
    assert_eq!(labels.pod_uid.len(), 32, "{labels:?}");
    assert!(!labels.pod_uid.contains('-'), "{labels:?}");
    let before = first.amounts.allocated;
    agent
        .wait_for_status("more allocated time", |status| {
            account(status).amounts.allocated > before
        })
        .unwrap();

    // It works on what it sees, which is what it was given.
    fs::write(word.join("go"), "").unwrap();
    agent
        .wait_for_status("the work", |status| !account(status).amounts.busy.is_zero())
        .unwrap();
    let named = format!(
        "{{namespace=\"{NAMESPACE}\",pod=\"{pod}\",container=\"{CONTAINER}\",pod_uid=\"{}\",container_id=\"{}\",",
        labels.pod_uid, labels.container_id
    );
    agent
        .wait_for("both amounts under the pod's names", |agent| {
            let published = |family: &str| -> Result<bool> {
                let lines = agent.metric_lines(family)?;
                Ok(lines.iter().any(|line| {
                    line.starts_with(&format!("{family}{named}"))
                        && line.contains(&format!("gpu_uuid=\"{}\"", device.id))
                        && !line.ends_with("} 0")
                }))
            };
            Ok(published(ALLOCATED)? && published(BUSY)?)
        })
        .unwrap();

    // The kubelet forgets it while its container lives, which goes on paying.
    kubelet.remove_pod(POD).unwrap();
    let forgotten = agent
        .wait_for_status("the list without it", |status| {
            allocation(status, &pod).is_some_and(|of| of.state == AllocationState::Forgotten)
        })
        .unwrap();
    let before = account(&forgotten).amounts.allocated;
    agent
        .wait_for_status("more time without the kubelet's word", |status| {
            account(status).amounts.allocated > before
        })
        .unwrap();
    let id = account(&forgotten).id.as_str();
    kubelet.containerd().remove_container(id).unwrap();
    agent
        .wait_for_status("the end", |status| account(status).ended)
        .unwrap();
    let end = node.settle(&mut agent).unwrap();
    let last = account(&end);
    assert_eq!(last.labels, *labels);
    assert!(last.amounts.allocated > before);
    // NVML has the samples' times in microseconds.
    let credited = node.credited_ns(WORK).unwrap();
    let difference = last.amounts.busy.0.abs_diff(credited);
    assert!(
        difference < 1_000_000,
        "the driver credited {credited} ns: {last:?}"
    );
    assert!(last.amounts.allocated > last.amounts.busy);
    let later = agent
        .wait_for_status("three more commits", |status| {
            status.snapshot.sequence >= end.snapshot.sequence + 3
        })
        .unwrap();
    assert_eq!(account(&later).amounts, last.amounts);
    assert!(agent.stop().unwrap().success());
}
