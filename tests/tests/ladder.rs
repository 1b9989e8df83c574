//! Names without any socket: the built agent, a real container in a pod's cgroup whose daemon is
//! gone, and one rung of the ladder after the other taken away.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use gpuacct::config::{Cadvisor, Config, Span};
use gpuacct_tests::agent::Agent;
use gpuacct_tests::docker::{self, Container, ContainerSpec, Dockerd, available};
use gpuacct_tests::requirement::require;
use gpuacct_tests::{exposition, http};
use sim_nvml::library::{self, Driver};
use sim_nvml::{GpuSpec, Scenario, Server};

const NAMESPACE: &str = "ml";
const POD: &str = "train-0";
const UID: &str = "9f6c1b1e-2d3f-4a5b-8c7d-0123456789ab";
const CONTAINER: &str = "trainer";
const NAME: &str = "k8s_trainer_train-0";
const BUSY: &str = "gpuacct_container_gpu_busy_seconds_total";
const INFO: &str = "gpuacct_container_info";
const DUTY: &str = "container_accelerator_duty_cycle";

/// A GPU, and a container of a pod that works on it.
struct Node {
    scenario: Arc<Scenario>,
    library: PathBuf,
    container: Container,
    docker: Dockerd,
    /// Its jobs end with it.
    _server: Server,
}

impl Node {
    /// Everything is up, and then the daemon and its socket are gone while the container works on.
    fn start(dir: &Path) -> Result<Self> {
        let scenario = Scenario::create(dir.join("gpus"), vec![GpuSpec::a100(0)], 1)?;
        let scenario = Arc::new(scenario);
        let server = Server::start(Arc::clone(&scenario), dir.join("jobs.sock"))?;
        let library = library::install(Driver::R550, &dir.join("lib"))?;
        let job = library::build_job()?;
        let mut docker = Dockerd::start(docker::Options::at(dir.join("d")))?;
        let mut spec = ContainerSpec::named(NAME)
            .in_pod(NAMESPACE, POD, UID, CONTAINER)
            .mount(server.path(), "/jobs.sock")
            .mount(job, "/sim-gpu-job")
            .command([
                "/sim-gpu-job",
                "--socket",
                "/jobs.sock",
                "--gpu",
                "0",
                "--share",
                "0.5",
            ]);
        // The job is linked against the host's C library.
        for libraries in ["/lib", "/lib64", "/usr/lib"] {
            if Path::new(libraries).exists() {
                spec = spec.mount(libraries, libraries);
            }
        }
        let container = docker.run(&spec)?;
        docker.stop()?;
        assert!(!docker.socket().exists(), "the socket went with its daemon");
        Ok(Self {
            scenario,
            library,
            container,
            docker,
            _server: server,
        })
    }

    /// A configuration in which no source of names is anywhere but at the daemon's socket.
    fn config(&self, dir: &Path) -> Config {
        let nowhere = dir.join("nowhere");
        let mut config = Config::default();
        config.publish.grace = Span(Duration::from_secs(2));
        config.publish.zero_for = Span(Duration::from_secs(1));
        config.gpu.library = Some(self.library.clone());
        config.docker.sockets = vec![self.docker.socket()];
        config.cri.sockets = vec![nowhere.join("cri.sock")];
        config.pod_resources.socket = nowhere.join("kubelet.sock");
        config.bundle.containerd = vec![nowhere.join("containerd")];
        config.bundle.storage = vec![nowhere.join("storage")];
        config.bundle.docker = vec![nowhere.join("docker")];
        config.kubelet_logs.containers = nowhere.join("containers");
        config.kubelet_logs.pods = nowhere.join("pods");
        config.cadvisor = Cadvisor {
            enabled: true,
            ..Cadvisor::default()
        };
        config
    }

    fn agent(&self, dir: &Path, config: Config) -> Result<Agent> {
        fs::create_dir_all(dir)?;
        let environment = [(sim_nvml::STATE_DIR, self.scenario.dir())];
        Agent::start(dir, config, &environment)
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
            "namespace=\"{NAMESPACE}\",pod=\"{POD}\",container=\"{CONTAINER}\",pod_uid=\"{UID}\",container_id=\"{}\"",
            self.container.id
        )
    }

    /// The same where only the kernel has spoken.
    fn by_ids(&self) -> String {
        let unresolved = ["namespace", "pod", "container"].map(|k| format!("{k}=\"(unresolved)\""));
        format!(
            "{},pod_uid=\"{UID}\",container_id=\"{}\"",
            unresolved.join(","),
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
    let root = tempfile::Builder::new().prefix("ga-").tempdir().unwrap();
    let dir = root.path();
    let mut node = Node::start(dir).unwrap();
    let id = node.container.id.clone();

    // Rung 3: the file that the daemon left beside the container.
    let mut config = node.config(dir);
    config.bundle.docker = vec![dir.join("d/data")];
    let mut agent = node.agent(&dir.join("bundle"), config).unwrap();
    wait_for_amount(&mut agent, BUSY, &[&node.named()]).unwrap();
    let source = "attribution=\"named\",source=\"bundle\",reason=\"(none)\"";
    let image = format!("image=\"{}\"", docker::IMAGE);
    wait_for_amount(&mut agent, INFO, &[&node.named(), source, &image]).unwrap();
    // As cAdvisor had it: the cgroup's path, and Docker's own name.
    let path = node.cgroup().unwrap();
    assert!(
        path.ends_with(&format!("/pod{UID}/{id}")) && path.len() > 120,
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
    let mut config = node.config(dir);
    config.bundle.containerd = vec![dir.join("d/exec/containerd/daemon")];
    let logs = dir.join("host/var/log");
    fs::create_dir_all(logs.join("containers")).unwrap();
    symlink(
        format!("/var/log/pods/{NAMESPACE}_{POD}_{UID}/{CONTAINER}/0.log"),
        logs.join(format!("containers/{POD}_{NAMESPACE}_{CONTAINER}-{id}.log")),
    )
    .unwrap();
    config.kubelet_logs.host_root = dir.join("host");
    config.kubelet_logs.containers = "/var/log/containers".into();
    let mut agent = node.agent(&dir.join("logs"), config).unwrap();
    wait_for_amount(&mut agent, BUSY, &[&node.named()]).unwrap();
    let source = "attribution=\"named\",source=\"kubelet_logs\",reason=\"(none)\"";
    wait_for_amount(&mut agent, INFO, &[&node.named(), source]).unwrap();
    // The kubelet's links do not tell the runtime's name.
    let cgroup = format!("id=\"{path}\",name=\"{id}\",");
    wait_for_amount(&mut agent, DUTY, &[&cgroup]).unwrap();
    check_exposition(&agent).unwrap();
    assert!(agent.stop().unwrap().success());

    // Nothing is left: the kernel's ids and a reason, and then the daemon comes back.
    let mut agent = node.agent(&dir.join("ids"), node.config(dir)).unwrap();
    let by_ids = wait_for_amount(&mut agent, BUSY, &[&node.by_ids()]).unwrap();
    let reason = "attribution=\"id_only\",source=\"(unresolved)\",reason=\"no_source\"";
    wait_for_amount(&mut agent, INFO, &[&node.by_ids(), reason]).unwrap();
    let states = agent.metric_lines("gpuacct_source_state").unwrap();
    for source in ["docker", "bundle", "kubelet_logs"] {
        let absent = format!("gpuacct_source_state{{source=\"{source}\",state=\"absent\"}} 1");
        assert!(states.contains(&absent), "{states:#?}");
    }
    check_exposition(&agent).unwrap();
    node.docker.start_again().unwrap();
    wait_for_amount(&mut agent, BUSY, &[&node.named()]).unwrap();
    let source = "attribution=\"named\",source=\"docker\"";
    wait_for_amount(&mut agent, INFO, &[&node.named(), source]).unwrap();
    // What went out under the ids stays there and does not shrink.
    let value = |line: &str| -> f64 {
        let value = line.rsplit_once(' ').expect("a line has a value").1;
        value.parse().expect("which is a number")
    };
    let after = wait_for_amount(&mut agent, BUSY, &[&node.by_ids()]).unwrap();
    assert!(value(&after) >= value(&by_ids), "{by_ids} then {after}");
    check_exposition(&agent).unwrap();
    assert!(agent.stop().unwrap().success());
}
