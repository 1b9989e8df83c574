//! What is shipped, on a real Kubernetes of one node: the API server takes the manifests and the chart,
//! the image runs as a DaemonSet's pod, and the books go on over whatever replaces that pod.
//!
//! The driver is the simulated one. It is where the GPU operator mounts its driver on a node.

#![expect(
    clippy::unwrap_used,
    reason = "the helpers are part of the tests: what is not as it should be fails them"
)]

use std::fs;
use std::process::Command;

use gpuacct::core::model::{Nanos, SourceId, SourceState};
use gpuacct::core::snapshot::{ContainerAccount, GpuBook};
use gpuacct::outputs::socket::StatusReport;
use gpuacct_tests::agent;
use gpuacct_tests::cluster::{self, Cluster};
use gpuacct_tests::exposition;
use gpuacct_tests::kubelet::{NODE, Plugin, Pod};
use gpuacct_tests::manifests::{OLDEST_KUBERNETES, Tools, chart, deploy};
use gpuacct_tests::node::{self, Node};
use gpuacct_tests::python::run;
use gpuacct_tests::requirement::{fetched, require};
use gpuacct_tests::turn::Turn;
use serde_json::{Value, json};
use sim_nvml::{GpuSpec, STATE_DIR, library};

use crate::deploy::{COMPONENTS, FOREIGN_KINDS, held, read};
use crate::install;

/// Where the users' containers are.
const NAMESPACE: &str = "ml";
const CONTAINER: &str = "trainer";
/// The name that the page on installing has for a registry.
const REGISTRY: &str = "REGISTRY";
/// What it is here. Nobody is asked for it: the node has the image.
const OWN_REGISTRY: &str = "registry.test";
const SECOND: u64 = 1_000_000_000;
/// The label by which the GPU operator has the agent leave a node, and what it says then.
const CLIENT: &str = "nvidia.com/gpu.deploy.client";
const PAUSED: &str = "paused-for-driver-upgrade";
/// How long what was deleted may still be there. The agent ends at once. A kubelet of this age then keeps
/// its pod for up to a minute, since it removes dead sandboxes that seldom, and the controller of
/// namespaces doubles its pauses.
const GONE: &str = "--timeout=180s";

/// A node with GPUs in a cluster.
struct Rig {
    // What runs in the node's folder goes before it.
    _plugin: Plugin,
    cluster: Cluster,
    tools: Tools,
    node: Node,
}

impl Rig {
    /// The cluster has the image, and a namespace for users.
    fn start() -> Option<Self> {
        let parts = require("cluster", cluster::available())?;
        let image = require("image", fetched(cluster::IMAGE))?;
        let tools = require("pypi", Tools::new())?;
        require("agent", agent::binary())?;
        let node = Node::new(1).unwrap();
        let mut cluster = Cluster::start(&parts, tools.clone(), &node.dir().join("k")).unwrap();
        let version = cluster.kubectl(&["get", "--raw=/version"]).unwrap();
        let version: Value = serde_json::from_str(&version).unwrap();
        let version = version["gitVersion"].as_str().unwrap();
        assert!(
            version.starts_with(&format!("v{OLDEST_KUBERNETES}.")),
            "{version}"
        );
        let plugin = Plugin::register(cluster.kubelet(), &[GpuSpec::a100(0).uuid]).unwrap();
        let containerd = cluster.host().containerd();
        // Without a registry in its name an image is Docker's, and without an owner it is `library`'s.
        for registry in ["docker.io/library", OWN_REGISTRY] {
            let name = format!("{registry}/gpuacct");
            containerd.import_layout(&image, &name).unwrap();
        }
        cluster
            .kubectl(&["create", "namespace", NAMESPACE])
            .unwrap();
        // Its controller makes it, and no pod is taken before.
        let account = ["serviceaccount/default", "--namespace", NAMESPACE];
        let wait = ["wait", "--for=create", "--timeout=60s"];
        cluster.kubectl(&[&wait[..], &account].concat()).unwrap();
        Some(Self {
            _plugin: plugin,
            cluster,
            tools,
            node,
        })
    }

    /// Puts the driver where the GPU operator does.
    fn install_driver(&self) {
        let folder = format!(
            "/run/nvidia/driver/usr/lib/{}-linux-gnu",
            std::env::consts::ARCH
        );
        let folder = self.cluster.host().outside(&folder);
        library::lay_out(self.node.library(), &folder).unwrap();
    }

    /// Values by which the agent's container reaches the simulated GPUs, in a file.
    fn values(&self) -> String {
        let gpus = self.node.scenario_dir();
        let values = json!({
            "extraEnv": [{ "name": STATE_DIR, "value": gpus }],
            "extraVolumes": [{ "name": "gpus", "hostPath": { "path": gpus, "type": "Directory" } }],
            "extraVolumeMounts": [{ "name": "gpus", "mountPath": gpus }],
        });
        let file = self.node.dir().join("values.json");
        fs::write(&file, values.to_string()).unwrap();
        file.display().to_string()
    }

    /// Waits until the DaemonSet's pod is the one that is wanted and is ready, and says what it is
    /// called.
    fn rolled_out(&self) -> String {
        let _turn = Turn::wait().unwrap();
        let rollout = ["rollout", "status", "daemonset/gpuacct", "--timeout=180s"];
        let status = self.in_namespace(&rollout);
        let log = || self.cluster.agent_log();
        status.unwrap_or_else(|error| panic!("{error:#}\n{}", log()));
        let pods = [
            "pods",
            "--namespace=gpuacct",
            "--field-selector=status.phase=Running",
        ];
        let pods = self.cluster.get(&pods).unwrap();
        let [pod] = &pods["items"].as_array().unwrap()[..] else {
            panic!("one pod, not {pods:#}");
        };
        pod["metadata"]["name"].as_str().unwrap().to_owned()
    }

    /// Waits until a pod of the DaemonSet is gone.
    fn is_gone(&self, pod: &str) {
        let pod = format!("pod/{pod}");
        let gone = self.in_namespace(&["wait", "--for=delete", &pod, GONE]);
        gone.unwrap_or_else(|error| panic!("{error:#}\n{}", self.cluster.agent_log()));
    }

    /// What `kubectl` prints in the agent's namespace.
    fn in_namespace(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let namespace = ["--namespace", "gpuacct"];
        self.cluster.kubectl(&[&namespace[..], arguments].concat())
    }

    /// Runs a command of the page on installing as it is there, but for the registry.
    fn follow(&self, line: &str, values: &str) -> String {
        let line = line.replace(REGISTRY, OWN_REGISTRY);
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["helm", "install", ..] => {
                let further = ["--values", values];
                self.cluster.helm(&[&words[1..], &further].concat())
            }
            ["kubectl", .., "gpuacct", "check"] => {
                let output = self.cluster.kubectl_output(&words[1..]).unwrap();
                // What it says of this machine is not the page's.
                Ok(String::from_utf8(output.stdout).unwrap())
            }
            ["kubectl", ..] => self.cluster.kubectl(&words[1..]),
            _ => panic!("no test tries {line:?}"),
        }
        .unwrap_or_else(|error| panic!("{line}: {error:#}\n{}", self.cluster.agent_log()))
    }

    /// Has a pod work on half of the GPU that it asks for.
    fn work(&self, pod: &str) {
        let (command, mounts) = (self.node.work(0, "0.5", pod), self.node.mounts());
        let pod = Pod {
            namespace: NAMESPACE,
            name: pod,
            container: CONTAINER,
            gpus: 1,
            command: &command,
            mounts: &mounts,
            grace_s: 1,
        };
        self.cluster.apply(&pod.manifest(), &[]).unwrap();
    }

    /// Waits until a pod has used so much of the GPU beyond what it had.
    fn billed(&self, pod: &str, before: u64) -> StatusReport {
        let what = format!("more than {before} ns of {pod}");
        let enough = before + 2 * SECOND;
        let status = self.cluster.wait_for_status(&what, |status| {
            account(status, pod).is_some_and(|account| account.amounts.busy.0 > enough)
        });
        status.unwrap()
    }

    /// Ends a pod, and waits until the books have all that it used.
    fn ended(&self, pod: &str) -> StatusReport {
        let delete = ["delete", "pod", pod, "--namespace", NAMESPACE, GONE];
        self.cluster.kubectl(&delete).unwrap();
        let end = sim_nvml::wall_us() * 1_000 + SECOND;
        let what = format!("the end of {pod}");
        let status = self.cluster.wait_for_status(&what, |status| {
            let book = book(status);
            let ended = account(status, pod).is_some_and(|account| account.ended);
            ended && book.start.0 + book.elapsed.0 > end
        });
        status.unwrap()
    }

    /// What the driver's samples credited to a pod is in the books, except for what nobody can know of
    /// times when no agent was there.
    fn balances(&self, pod: &str, status: &StatusReport) {
        let book = book(status);
        let unknown = unobserved(book) + sum(book.unattributed.iter().map(|(_, time)| *time));
        let (credited, busy) = (
            self.node.credited_ns(pod).unwrap(),
            account(status, pod).unwrap().amounts.busy.0,
        );
        // NVML has the samples' times in microseconds.
        let slack = SECOND / 1_000;
        assert!(
            busy <= credited + slack && credited <= busy + unknown + slack,
            "{pod}: the driver credited {credited} ns, booked are {busy} ns: {book:?}"
        );
    }
}

fn book(status: &StatusReport) -> &GpuBook {
    let [book] = &*status.snapshot.gpus else {
        panic!("one GPU, not {:#?}", status.snapshot.gpus);
    };
    book
}

fn sum(times: impl Iterator<Item = Nanos>) -> u64 {
    times.map(|time| time.0).sum()
}

fn unobserved(book: &GpuBook) -> u64 {
    sum(book.unobserved.iter().map(|(_, time)| *time))
}

/// The account of a pod's container.
fn account<'a>(status: &'a StatusReport, pod: &str) -> Option<&'a ContainerAccount> {
    let mut accounts = status.snapshot.accounts.iter();
    accounts.find(|account| {
        let labels = &account.labels;
        let name = [&*labels.namespace, &*labels.pod, &*labels.container];
        name == [NAMESPACE, pod, CONTAINER]
    })
}

/// Another agent goes on where the one before it ended.
fn goes_on(before: &StatusReport, now: &StatusReport) {
    let (old, new) = (book(before), book(now));
    assert_eq!(new.start, old.start);
    assert_eq!((new.imbalance, new.excess), (0, Nanos::ZERO), "{new:?}");
    assert!(new.elapsed > old.elapsed && new.busy > old.busy && new.idle >= old.idle);
    let time = new.busy.0 + new.idle.0 + unobserved(new);
    assert_eq!(time, new.elapsed.0, "{new:?}");
    for old in &before.snapshot.accounts {
        let found = now.snapshot.accounts.iter();
        let mut found = found.filter(|new| new.id == old.id && new.gpu == old.gpu);
        let new = found
            .next()
            .unwrap_or_else(|| panic!("no account of {old:?}"));
        assert!(found.next().is_none(), "it is there once: {old:?}");
        assert_eq!(new.labels, old.labels);
        assert!(new.amounts.busy >= old.amounts.busy, "{old:?} {new:?}");
        assert!(
            new.amounts.allocated >= old.amounts.allocated,
            "{old:?} {new:?}"
        );
    }
    for old in &before.snapshot.container_series {
        let mut found = now.snapshot.container_series.iter();
        let new = found.find(|new| new.labels == old.labels && new.gpu == old.gpu);
        let new = new.unwrap_or_else(|| panic!("no series of {old:?}"));
        assert_eq!(new.start, old.start);
        assert!(new.amounts.busy >= old.amounts.busy, "{old:?} {new:?}");
    }
}

#[test]
fn an_upgrade_a_rollback_and_a_pause_for_the_driver_lose_no_total() {
    let Some(rig) = Rig::start() else { return };
    let cluster = &rig.cluster;
    rig.install_driver();
    let values = rig.values();
    let page = install::page();
    let commands = install::first_commands(&page, "## Helm");
    assert!(commands.len() >= 4, "{commands:?}");
    let mut said = String::new();
    for line in commands {
        if line.contains("rollout status") {
            rig.rolled_out();
        }
        said = rig.follow(line, &values);
    }
    // The last one is `gpuacct check`.
    assert!(said.contains("kernel"), "{said}");
    let first_pod = rig.rolled_out();

    // A container is billed under its own names, for what it uses and for what it was given.
    rig.work("first");
    let mut status = rig.billed("first", 0);
    for source in [
        SourceId::Kernel,
        SourceId::Cri,
        SourceId::KubeletLogs,
        SourceId::PodResources,
        SourceId::Store,
    ] {
        assert_eq!(*node::state(&status, source), SourceState::Up, "{source:?}");
    }
    let account_of_first = account(&status, "first").unwrap();
    assert!(!account_of_first.amounts.allocated.is_zero());
    let uid = ["pod", "first", "--namespace", NAMESPACE];
    let uid = cluster.get(&uid).unwrap()["metadata"]["uid"].clone();
    assert_eq!(*account_of_first.labels.pod_uid, *uid.as_str().unwrap());
    // Whoever asks by kubectl sees it, and so does whoever scrapes the pod at its address.
    let shown = cluster.gpuacct(&["status"]).unwrap();
    assert!(shown.status.success(), "{shown:?}");
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("ml/first"), "{shown}");
    let metrics = cluster.metrics(&first_pod).unwrap();
    exposition::check(&metrics).unwrap();

    // Another image, and back.
    let containerd = cluster.host().containerd();
    let image = format!("{OWN_REGISTRY}/gpuacct");
    let version = env!("CARGO_PKG_VERSION");
    containerd
        .tag(&format!("{image}:{version}"), &format!("{image}:next"))
        .unwrap();
    let chart = chart().display().to_string();
    let upgrade = [
        "upgrade",
        "gpuacct",
        &chart,
        "--namespace=gpuacct",
        "--reuse-values",
    ];
    let rollback = ["rollback", "gpuacct", "1", "--namespace=gpuacct"];
    let mut pod = first_pod;
    for (words, tag) in [
        ([&upgrade[..], &["--set=image.tag=next"]].concat(), "next"),
        (rollback.to_vec(), version),
    ] {
        cluster.helm(&words).unwrap();
        let next = rig.rolled_out();
        assert_ne!(next, pod, "{words:?}");
        pod = next;
        let spec = cluster.get(&["pod", &pod, "--namespace=gpuacct"]).unwrap();
        let runs = &spec["spec"]["containers"][0]["image"];
        assert_eq!(*runs, json!(format!("{image}:{tag}")));
        let busy = account(&status, "first").unwrap().amounts.busy.0;
        let now = rig.billed("first", busy);
        goes_on(&status, &now);
        status = now;
    }
    let now = rig.ended("first");
    goes_on(&status, &now);
    rig.balances("first", &now);

    // It leaves when the GPU operator says so, and comes back.
    rig.work("second");
    let before = rig.billed("second", 0);
    let node = format!("node/{NODE}");
    let label = |value: &str| {
        let label = format!("{CLIENT}={value}");
        cluster
            .kubectl(&["label", "--overwrite", &node, &label])
            .unwrap();
    };
    label(PAUSED);
    rig.is_gone(&pod);
    let none = "--for=jsonpath={.status.desiredNumberScheduled}=0";
    rig.in_namespace(&["wait", none, "daemonset/gpuacct", "--timeout=60s"])
        .unwrap();
    // The driver remembers ten seconds; half of the time is the pod's.
    let credited = rig.node.credited_ns("second").unwrap();
    rig.node
        .wait_for_credit("second", credited + 6 * SECOND)
        .unwrap();
    label("true");
    let next = rig.rolled_out();
    assert_ne!(next, pod);
    pod = next;
    let busy = account(&before, "second").unwrap().amounts.busy.0;
    let back = rig.billed("second", busy);
    goes_on(&before, &back);
    assert!(unobserved(book(&back)) > unobserved(book(&before)));
    let last = rig.ended("second");
    goes_on(&back, &last);
    rig.balances("second", &last);

    // What is left on the node is what was shown last.
    cluster
        .helm(&["uninstall", "gpuacct", "--namespace=gpuacct"])
        .unwrap();
    rig.is_gone(&pod);
    let ledger = cluster.host().outside("/var/lib/gpuacct");
    let report = run(Command::new(agent::binary().unwrap())
        .args([
            "report",
            "--by=pod",
            "--output=json",
            "--since=1h",
            "--store",
        ])
        .arg(ledger))
    .unwrap();
    let report: Value = serde_json::from_str(&report).unwrap();
    for pod in ["first", "second"] {
        let rows = report["rows"].as_array().unwrap();
        let row = rows.iter().find(|row| row["pod"] == pod);
        let row = row.unwrap_or_else(|| panic!("no row of {pod} in {report:#}"));
        let shown = account(&last, pod).unwrap().amounts.busy.0 as f64 / SECOND as f64;
        let billed = row["busy_seconds"].as_f64().unwrap();
        assert!((billed - shown).abs() < 1e-3, "{pod}: {billed}, {shown}");
    }
}

#[test]
fn the_manifests_are_applied_and_the_agent_follows_its_config_map() {
    let Some(rig) = Rig::start() else { return };
    let cluster = &rig.cluster;
    let base = deploy().join("kubernetes/base").display().to_string();
    let apply = ["apply", "--kustomize", &base];
    let said = cluster.kubectl(&apply).unwrap();
    assert!(said.contains("daemonset.apps/gpuacct created"), "{said}");
    let pod = rig.rolled_out();
    // The driver is not there yet.
    let status = cluster.wait_for_status("the kernel", |status| {
        *node::state(status, SourceId::Kernel) == SourceState::Up
    });
    assert_eq!(status.unwrap().snapshot.gpus.len(), 0);
    // What has been applied is what is there.
    let again = cluster.kubectl(&apply).unwrap();
    assert!(
        again.lines().all(|line| line.ends_with(" unchanged")),
        "{again}"
    );

    // The kubelet replaces the files of a ConfigMap below a running agent.
    let applied = "gpuacct_config_changes_total{outcome=\"applied\"} 1\n";
    assert!(!cluster.metrics(&pod).unwrap().contains(applied));
    let map = ["configmap", "gpuacct", "--namespace=gpuacct"];
    let mut map = cluster.get(&map).unwrap();
    let text = map["data"]["gpuacct.toml"].as_str().unwrap();
    let changed = text.replace("[log]\n", "[log]\nlevel = \"debug\"\n");
    assert_ne!(changed, text);
    map["data"]["gpuacct.toml"] = changed.into();
    cluster.apply(&map, &[]).unwrap();
    let follows = cluster.wait_for("the changed configuration", || {
        Ok(cluster.metrics(&pod)?.contains(applied))
    });
    follows.unwrap();

    // The API server takes what each component makes of it.
    let rendered = COMPONENTS.map(|name| rig.tools.kustomize(&[name]).unwrap());
    let documents = rig.tools.documents_of(&rendered).unwrap();
    for (component, mut items) in COMPONENTS.into_iter().zip(documents) {
        items.retain(|item| !FOREIGN_KINDS.contains(&item["kind"].as_str().unwrap()));
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": items });
        let taken = cluster.apply(&list, &["--dry-run=server"]);
        taken.unwrap_or_else(|error| panic!("{component}: {error:#}"));
    }

    let delete = ["delete", "--kustomize", &base, "--wait=false"];
    cluster.kubectl(&delete).unwrap();
    rig.is_gone(&pod);
    let namespace = ["wait", "--for=delete", "namespace/gpuacct", GONE];
    cluster.kubectl(&namespace).unwrap();
    let ledger = cluster.host().outside("/var/lib/gpuacct");
    let mut ledger = fs::read_dir(ledger).unwrap();
    assert!(ledger.next().is_some(), "the ledger stays");
}

#[test]
fn without_a_privileged_container_it_counts_all_the_same() {
    let Some(rig) = Rig::start() else { return };
    rig.install_driver();
    let values = rig.tools.documents(&read(&chart().join("values.yaml")));
    let capabilities = &values.unwrap()[0]["hardened"]["capabilities"];
    let listed = capabilities.as_array().unwrap().iter();
    let listed = listed.map(|name| format!("CAP_{}", name.as_str().unwrap()));
    let listed = listed.collect::<Vec<_>>().join(" ");
    // What the root of these tests lacks, no container of it can have.
    let held = held(&listed).into_iter();
    let held: Vec<_> = held.map(|name| name.trim_start_matches("CAP_")).collect();
    let capabilities = format!("--set-json=hardened.capabilities={}", json!(held));
    let values = rig.values();
    let install = [
        "install",
        "gpuacct",
        &chart().display().to_string(),
        "--namespace=gpuacct",
        "--create-namespace",
        "--values",
        &values,
        "--set=hardened.enabled=true",
        // As the page says: the default profile of this containerd refuses bpf.
        "--set=hardened.seccompProfile.type=Unconfined",
        &capabilities,
    ];
    rig.cluster.helm(&install).unwrap();
    let pod = rig.rolled_out();
    let pod = ["pod", &pod, "--namespace=gpuacct"];
    let pod = rig.cluster.get(&pod).unwrap();
    let context = &pod["spec"]["containers"][0]["securityContext"];
    assert_eq!(context["privileged"], json!(false), "{context:#}");
    rig.work("first");
    let status = rig.billed("first", 0);
    assert_eq!(
        *node::state(&status, SourceId::Kernel),
        SourceState::Up,
        "{:?}",
        status.agent.sources
    );
    let status = rig.ended("first");
    rig.balances("first", &status);
}
