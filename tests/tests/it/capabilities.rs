//! The capabilities of the component `hardened`: that they are enough, and what the loss of each costs.
//!
//! The agent runs here as it does in such a pod: as root with these capabilities and no others, with a
//! `/proc` that hides processes, and in a cgroup namespace of its own. What a pod has besides cannot be
//! tried without a cluster: the list of devices of an unprivileged container and its seccomp profile.

#![expect(
    clippy::unwrap_used,
    reason = "the helpers are part of the tests: what is not as it should be fails them"
)]

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread;
use std::time::{Duration, Instant};

use gpuacct::core::model::{SourceId, SourceState};
use gpuacct::outputs::socket::StatusReport;
use gpuacct_tests::agent::{self, PATIENCE};
use gpuacct_tests::cgroups::Containers;
use gpuacct_tests::daemon::Killed;
use gpuacct_tests::manifests::{Tools, deploy};
use gpuacct_tests::node::{Node, state};
use gpuacct_tests::python::run;
use gpuacct_tests::requirement::require;
use sim_nvml::STATE_DIR;

use crate::deploy::bounding_set;
use crate::install::rows;

/// Somebody who is not root.
const NOBODY: u32 = 65_534;

/// What an agent without one of the capabilities lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loss {
    /// The source `kernel` is down.
    Kernel,
    /// Processes of other users that are older than the agent are not known where `/proc` hides them.
    OlderProcesses,
    /// Nothing, on Linux 5.11 and newer.
    Nothing,
}

const LOSSES: [(&str, Loss); 4] = [
    ("BPF", Loss::Kernel),
    ("PERFMON", Loss::Kernel),
    ("SYS_PTRACE", Loss::OlderProcesses),
    ("SYS_RESOURCE", Loss::Nothing),
];

/// An agent with these capabilities, in a mount namespace whose `/proc` shows a process to members of a
/// group and to who may trace it. Without `gid` the group is root's, of which the agent is a member.
struct Rig {
    socket: PathBuf,
    binary: PathBuf,
    _agent: Killed,
}

impl Rig {
    fn start(binary: &Path, node: &Node, name: &str, capabilities: &[&str]) -> Self {
        let folder = node.dir().join(name);
        fs::create_dir(&folder).unwrap();
        let (agent, socket) = agent::command_line(binary, &folder, node.config()).unwrap();
        let agent = Command::new("unshare")
            .args(["--mount", "sh", "-c"])
            .arg("mount -t proc -o hidepid=2,gid=65534 proc /proc && exec setpriv \"$@\"")
            .args(["sh", "--no-new-privs", "--inh-caps=-all"])
            .arg(bounding_set(&capabilities.join(" ")))
            .args(agent)
            .env(STATE_DIR, node.scenario_dir())
            .spawn()
            .unwrap();
        Self {
            socket,
            binary: binary.to_owned(),
            _agent: Killed(agent),
        }
    }

    /// Its status, once the GPUs are accounted for, and the kernel has answered.
    fn status(&self) -> StatusReport {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut status = Command::new(&self.binary);
            let status = status.args(["status", "-o", "json", "--socket"]);
            let output = status.arg(&self.socket).output().unwrap();
            if let Ok(report) = serde_json::from_slice::<StatusReport>(&output.stdout) {
                let mut sources = report.agent.sources.iter();
                let has_answered = sources.any(|health| {
                    health.source == SourceId::Kernel
                        && matches!(health.state, SourceState::Up | SourceState::Down { .. })
                });
                let mut books = report.snapshot.gpus.iter();
                if has_answered && books.any(|book| book.elapsed.0 > 0) {
                    return report;
                }
            }
            assert!(Instant::now() < deadline, "{output:?}");
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Whether it knows a process.
    fn knows(&self, pid: u32) -> bool {
        let output = self.ask_about(pid);
        match output.status.code() {
            Some(0) => true,
            Some(1) => false,
            _ => panic!("{output:?}"),
        }
    }

    /// What it says of a process that it knows.
    fn explain(&self, pid: u32) -> String {
        let output = self.ask_about(pid);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn ask_about(&self, pid: u32) -> Output {
        let mut explain = Command::new(&self.binary);
        let explain = explain.args(["explain", "--socket"]).arg(&self.socket);
        explain.arg(pid.to_string()).output().unwrap()
    }
}

/// The capabilities that the component adds.
fn listed(tools: &Tools) -> Vec<String> {
    let file = deploy().join("kubernetes/components/hardened/daemon-set.yaml");
    let documents = tools.documents(&fs::read_to_string(file).unwrap()).unwrap();
    let container = &documents[0]["spec"]["template"]["spec"]["containers"][0];
    let capabilities = container["securityContext"]["capabilities"].clone();
    assert_eq!(capabilities["drop"], serde_json::json!(["ALL"]));
    serde_json::from_value(capabilities["add"].clone()).unwrap()
}

#[test]
fn the_loss_of_each_capability_of_hardened_costs_what_the_document_says() {
    let unshare = run(Command::new("unshare").args(["--mount", "setpriv", "--version"]));
    let Some(binary) = require("agent", agent::binary()) else {
        return;
    };
    if require("namespaces", unshare).is_none() {
        return;
    }
    let Some(tools) = require("pypi", Tools::new()) else {
        return;
    };
    let listed = listed(&tools);
    let names = LOSSES.map(|(name, _)| name);
    assert_eq!(listed, names, "what is listed is what is tried");

    let older = Killed(
        Command::new("sleep")
            .arg("600")
            .uid(NOBODY)
            .gid(NOBODY)
            .spawn()
            .unwrap(),
    );
    let node = Node::new(1).unwrap();
    let all: Vec<String> = names.iter().map(|name| format!("CAP_{name}")).collect();
    let missing = std::iter::once(None).chain(LOSSES.into_iter().map(Some));
    for missing in missing {
        let (name, loss) = missing.unwrap_or(("none", Loss::Nothing));
        let kept: Vec<&str> = all
            .iter()
            .map(String::as_str)
            .filter(|kept| *kept != format!("CAP_{name}"))
            .collect();
        let rig = Rig::start(&binary, &node, &name.to_lowercase(), &kept);
        let status = rig.status();
        let nvml = state(&status, SourceId::Nvml);
        assert_eq!(*nvml, SourceState::Up, "without {name}");
        let kernel = state(&status, SourceId::Kernel);
        let is_up = *kernel == SourceState::Up;
        assert_eq!(is_up, loss != Loss::Kernel, "without {name}: {kernel:?}");
        // The first scan has ended once a GPU's time is accounted for.
        let is_known = rig.knows(older.0.id());
        assert_eq!(is_known, loss != Loss::OlderProcesses, "without {name}");
    }
}

#[test]
fn the_document_has_a_row_for_each_capability() {
    let page = fs::read_to_string(deploy().join("../docs/INSTALL.md")).unwrap();
    let rows = rows(&page, "| capability |");
    assert_eq!(rows, LOSSES.map(|(name, _)| name));
}

#[test]
fn an_agent_in_a_cgroup_namespace_of_its_own_refuses_nobody() {
    let Some(binary) = require("agent", agent::binary()) else {
        return;
    };
    let Some(mut containers) = require("cgroups", Containers::below("namespace")) else {
        return;
    };
    let node = Node::new(1).unwrap();
    let (own, other) = (containers.add().unwrap(), containers.add().unwrap());
    let sleep = || Killed(other.spawn(Command::new("sleep").arg("600")).unwrap());
    let older = sleep();

    let folder = node.dir().join("namespace");
    fs::create_dir(&folder).unwrap();
    let (words, socket) = agent::command_line(&binary, &folder, node.config()).unwrap();
    let mut agent = Command::new("unshare");
    agent
        .arg("--cgroup")
        .args(words)
        .env(STATE_DIR, node.scenario_dir());
    let rig = Rig {
        socket,
        binary,
        _agent: Killed(own.spawn(&mut agent).unwrap()),
    };
    let status = rig.status();
    assert_eq!(*state(&status, SourceId::Procfs), SourceState::Up);
    // One process is known by a scan, whose paths are relative, the other by an event, whose path is
    // whole. Both are in the same container.
    let younger = sleep();
    for process in [&older, &younger] {
        let told = rig.explain(process.0.id());
        assert!(told.contains(&other.id), "{told}");
        let pod = format!("pod uid: {} (Burstable)", other.pod_uid);
        assert!(told.contains(&pod), "{told}");
        assert!(!told.contains("refused"), "{told}");
        assert!(!told.contains("/../"), "{told}");
    }
}
