//! Names without any socket: the built agent, a real container in a pod's cgroup whose daemon is
//! gone, and one rung of the ladder after the other taken away.

use std::fs;
use std::os::unix::fs::symlink;
use std::time::Duration;

use anyhow::{Context as _, Result};
use gpuacct::config::{Cadvisor, Config, Span};
use gpuacct_tests::agent::Agent;
use gpuacct_tests::docker::{self, Container, ContainerSpec, Dockerd, available};
use gpuacct_tests::node::{Node, pod_uid};
use gpuacct_tests::requirement::require;
use gpuacct_tests::{exposition, http};

const NAMESPACE: &str = "ml";
const POD: &str = "train-0";
const CONTAINER: &str = "trainer";
const NAME: &str = "k8s_trainer_train-0";
const BUSY: &str = "gpuacct_container_gpu_busy_seconds_total";
const INFO: &str = "gpuacct_container_info";
const DUTY: &str = "container_accelerator_duty_cycle";

/// A node with a container of a pod that works on its GPU. Dropped from top to bottom.
struct Rig {
    container: Container,
    docker: Dockerd,
    node: Node,
}

impl Rig {
    /// Everything is up, and then the daemon and its socket are gone while the container works on.
    fn start() -> Result<Self> {
        let node = Node::new(1)?;
        let mut docker = node.dockerd()?;
        let spec = ContainerSpec::named(NAME).in_pod(NAMESPACE, POD, pod_uid(), CONTAINER);
        let container = docker.run(&node.at_work(spec, 0, "0.5"))?;
        docker.stop()?;
        assert!(!docker.socket().exists(), "the socket went with its daemon");
        Ok(Self {
            container,
            docker,
            node,
        })
    }

    /// A configuration in which no identity source is anywhere but at the daemon's socket.
    fn config(&self) -> Config {
        let mut config = self.node.config();
        config.publish.grace = Span(Duration::from_secs(2));
        config.docker.sockets = vec![self.docker.socket()];
        config.cadvisor = Cadvisor {
            enabled: true,
            ..Cadvisor::default()
        };
        config
    }

    /// The container's cgroup, as the kernel has it.
    fn cgroup(&self) -> Result<String> {
        let lines = fs::read_to_string(format!("/proc/{}/cgroup", self.container.pid))?;
        let mut paths = lines.lines().filter_map(|line| line.splitn(3, ':').nth(2));
        let path = paths.find(|path| path.ends_with(&self.container.id));
        Ok(path.context(lines.clone())?.to_owned())
    }

    /// The labels of the container's main series where it has all its names.
    fn named(&self) -> String {
        format!(
            "namespace=\"{NAMESPACE}\",pod=\"{POD}\",container=\"{CONTAINER}\",pod_uid=\"{}\",container_id=\"{}\"",
            pod_uid(),
            self.container.id
        )
    }

    /// The same where only the kernel has spoken.
    fn by_ids(&self) -> String {
        let unresolved = ["namespace", "pod", "container"].map(|k| format!("{k}=\"(unresolved)\""));
        format!(
            "{},pod_uid=\"{}\",container_id=\"{}\"",
            unresolved.join(","),
            pod_uid(),
            self.container.id
        )
    }
}

/// Waits until a series of `family` has all of `parts` and an amount.
fn wait_for_amount(agent: &mut Agent, family: &str, parts: &[&str]) -> Result<String> {
    let mut found = String::new();
    agent.wait_for(&format!("{family} with {parts:?}"), |agent| {
        let lines = agent.metric_lines(family)?;
        let line = lines.into_iter().find(|line| {
            let has_amount = !line.ends_with("} 0");
            has_amount && parts.iter().all(|part| line.contains(part))
        });
        found = line.unwrap_or_default();
        Ok(!found.is_empty())
    })?;
    Ok(found)
}

/// Both formats of what is published now keep their promise, and every family is among it.
fn check_exposition(agent: &Agent) -> Result<()> {
    for accept in ["text/plain", "application/openmetrics-text"] {
        let url = format!("http://{}/metrics", agent.address());
        let (code, text) = http::get(&url, accept)?;
        assert_eq!(code, 200);
        exposition::check(&text)?;
        for family in ["memory_total_bytes", "memory_used_bytes", "duty_cycle"] {
            let series = format!("\ncontainer_accelerator_{family}{{make=\"nvidia\",");
            assert!(text.contains(&series), "no {family} in {text}");
        }
    }
    Ok(())
}

#[test]
fn a_pods_container_keeps_its_names_when_every_socket_is_gone() {
    let Some(()) = require("docker", available()) else {
        return;
    };
    let mut rig = Rig::start().unwrap();
    let dir = rig.node.dir().to_owned();
    let id = rig.container.id.clone();

    // Rung 3: the file that the daemon left beside the container.
    let mut config = rig.config();
    config.bundle.docker = vec![dir.join("d/data")];
    let mut agent = rig.node.agent("bundle", config).unwrap();
    wait_for_amount(&mut agent, BUSY, &[&rig.named()]).unwrap();
    let source = "attribution=\"named\",source=\"bundle\",reason=\"(none)\"";
    let image = format!("image=\"{}\"", docker::IMAGE);
    wait_for_amount(&mut agent, INFO, &[&rig.named(), source, &image]).unwrap();
    // As cAdvisor had it: the cgroup's path, and Docker's own name.
    let path = rig.cgroup().unwrap();
    assert!(
        path.ends_with(&format!("/pod{}/{id}", pod_uid())) && path.len() > 120,
        "{path}"
    );
    let cgroup = format!("id=\"{path}\",name=\"{NAME}\",{image},");
    let duty = wait_for_amount(&mut agent, DUTY, &[&cgroup]).unwrap();
    let names = format!(
        "container_name=\"{CONTAINER}\",pod_name=\"{POD}\",namespace=\"{NAMESPACE}\",container=\"{CONTAINER}\",pod=\"{POD}\""
    );
    assert!(duty.contains(&names), "{duty}");
    check_exposition(&agent).unwrap();
    assert!(agent.stop().unwrap().success());

    // Rung 4: the kubelet's link. The bundle of the daemon's containerd is there and names nobody.
    let mut config = rig.config();
    config.bundle.containerd = vec![dir.join("d/exec/containerd/daemon")];
    let logs = dir.join("host/var/log");
    fs::create_dir_all(logs.join("containers")).unwrap();
    symlink(
        format!(
            "/var/log/pods/{NAMESPACE}_{POD}_{}/{CONTAINER}/0.log",
            pod_uid()
        ),
        logs.join(format!("containers/{POD}_{NAMESPACE}_{CONTAINER}-{id}.log")),
    )
    .unwrap();
    config.kubelet_logs.host_root = dir.join("host");
    config.kubelet_logs.containers = "/var/log/containers".into();
    let mut agent = rig.node.agent("logs", config).unwrap();
    wait_for_amount(&mut agent, BUSY, &[&rig.named()]).unwrap();
    let source = "attribution=\"named\",source=\"kubelet_logs\",reason=\"(none)\"";
    wait_for_amount(&mut agent, INFO, &[&rig.named(), source]).unwrap();
    // The kubelet's links do not tell the runtime's name.
    let cgroup = format!("id=\"{path}\",name=\"{id}\",");
    wait_for_amount(&mut agent, DUTY, &[&cgroup]).unwrap();
    check_exposition(&agent).unwrap();
    assert!(agent.stop().unwrap().success());

    // Nothing is left: the kernel's ids and a reason, and then the daemon comes back.
    let mut agent = rig.node.agent("ids", rig.config()).unwrap();
    let by_ids = wait_for_amount(&mut agent, BUSY, &[&rig.by_ids()]).unwrap();
    let reason = "attribution=\"id_only\",source=\"(unresolved)\",reason=\"no_source\"";
    wait_for_amount(&mut agent, INFO, &[&rig.by_ids(), reason]).unwrap();
    let states = agent.metric_lines("gpuacct_source_state").unwrap();
    for source in ["docker", "bundle", "kubelet_logs"] {
        let absent = format!("gpuacct_source_state{{source=\"{source}\",state=\"absent\"}} 1");
        assert!(states.contains(&absent), "{states:#?}");
    }
    check_exposition(&agent).unwrap();
    rig.docker.start_again().unwrap();
    wait_for_amount(&mut agent, BUSY, &[&rig.named()]).unwrap();
    let source = "attribution=\"named\",source=\"docker\"";
    wait_for_amount(&mut agent, INFO, &[&rig.named(), source]).unwrap();
    // What went out under the ids stays there and does not shrink.
    let value = |line: &str| -> f64 {
        let value = line.rsplit_once(' ').expect("a line has a value").1;
        value.parse().expect("which is a number")
    };
    let after = wait_for_amount(&mut agent, BUSY, &[&rig.by_ids()]).unwrap();
    assert!(value(&after) >= value(&by_ids), "{by_ids} then {after}");
    check_exposition(&agent).unwrap();
    assert!(agent.stop().unwrap().success());
}
