//! How long a container runs before the agent's directory holds its full identity: its cgroup, and
//! the names that go with it.
//!
//! The clock starts when the process is born that becomes the container's process 1, as the kernel
//! dates it. That is before the runtime has put it in its cgroup, before it executes the image's
//! program, and before the runtime answers the call that started it: no later start would be
//! stricter. It stops when the directory knows both, which the agent dates itself
//! (`identified`, in `gpuacct explain -o json`), so that how often the benchmark looks does not
//! matter. No container uses a GPU: nothing waits for a first charge.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gpuacct::config::Config;
use gpuacct::core::explanation::Explanation;
use gpuacct::core::model::{SourceId, SourceState};
use gpuacct_tests::agent::Agent;
use gpuacct_tests::containerd::{self, Containerd};
use gpuacct_tests::docker::{self, ContainerSpec, Dockerd};

use crate::report::{Row, percentile};
use crate::{Bench, pause};

/// Containers that are started, one after the other, with each runtime.
const STARTS: usize = 200;
const GOAL: Duration = Duration::from_millis(500);

/// What one start took, from the birth of the container's first process on.
struct Start {
    identified: Duration,
    /// Until the runtime had answered the call that started it.
    answered: Duration,
}

/// Both runtimes, side by side as on a node that has both.
pub(crate) fn identity(bench: &Bench) -> Result<Vec<Row>> {
    docker::available()?;
    containerd::available()?;
    // Sockets have short paths; the bench's own folder may not.
    let root = tempfile::Builder::new()
        .prefix("ga-")
        .tempdir_in("/tmp")
        .context("cannot make a folder")?;
    let dockerd = Dockerd::start(docker::Options::at(root.path().join("d")))?;
    let containerd = Containerd::start(root.path().join("c"))?;
    let dir = bench.dir("identity")?;
    let mut config = Config::default();
    config.docker.sockets = vec![dockerd.socket()];
    config.cri.sockets = vec![containerd.socket()];
    config.gpu.library = Some(dir.join("no-library.so"));
    let mut agent = Agent::start(&dir, config, &[])?;
    crate::forks::attached(&mut agent)?;
    agent.wait_for_status("both runtimes", |status| {
        let is_up = |source| {
            let mut sources = status.agent.sources.iter();
            sources.any(|health| health.source == source && health.state == SourceState::Up)
        };
        is_up(SourceId::Docker) && is_up(SourceId::Cri)
    })?;

    let mut rows = Vec::new();
    for mut runtime in [Runtime::Docker(dockerd), Runtime::Containerd(containerd)] {
        let name = runtime.name();
        let starts = (0..STARTS)
            .map(|number| runtime.start(number, &mut agent))
            .collect::<Result<Vec<_>>>()?;
        rows.extend(rows_of(name, &starts));
    }
    let ended = agent.stop()?;
    ensure!(ended.success(), "the agent ended with {ended}");
    Ok(rows)
}

/// What starts containers.
enum Runtime {
    Docker(Dockerd),
    Containerd(Containerd),
}

impl Runtime {
    const fn name(&self) -> &'static str {
        match self {
            Self::Docker(_) => "dockerd",
            Self::Containerd(_) => "containerd by its CRI",
        }
    }

    /// Starts a container, waits until it is identified, and takes it away.
    fn start(&mut self, number: usize, agent: &mut Agent) -> Result<Start> {
        pause(Duration::ZERO)?;
        let name = format!("job-{number}");
        let uid = format!("6f1c8a52-3c1e-4c55-9a8e-{number:012x}");
        match self {
            Self::Docker(dockerd) => {
                let spec = ContainerSpec::named(&name);
                // As the kubelet has it made by Docker, and as somebody does by hand.
                let in_pod = number.is_multiple_of(2);
                let container = dockerd.run(&if in_pod {
                    spec.in_pod("bench", &name, &uid, "main")
                } else {
                    spec
                })?;
                let answered_us = sim_nvml::wall_us();
                let start = identified(agent, &container.id, answered_us)?;
                dockerd.remove(&container)?;
                Ok(start)
            }
            Self::Containerd(containerd) => {
                let pod = containerd.run_pod("bench", &name, &uid, &[])?;
                let id = containerd.run_container(&pod, "main")?;
                let answered_us = sim_nvml::wall_us();
                let start = identified(agent, &id, answered_us)?;
                containerd.remove_pod(&pod.sandbox)?;
                Ok(start)
            }
        }
    }
}

/// Waits until the agent has identified a container, and takes from its own account when.
fn identified(agent: &mut Agent, id: &str, answered_us: u64) -> Result<Start> {
    let mut found = None;
    agent.wait_for("a container's identity", |agent| {
        let output = agent.gpuacct(&["explain", id, "--output", "json"])?;
        if output.status.success() {
            let told: Explanation = serde_json::from_slice(&output.stdout)?;
            found = start_of(&told, id, answered_us);
        }
        Ok(found.is_some())
    })?;
    found.context("it has been waited for")
}

/// Nothing while the container is not identified or its process not known.
fn start_of(told: &Explanation, id: &str, answered_us: u64) -> Option<Start> {
    let identified = told.owners.first()?.identified?;
    // Those of the runtime that were born before it have ended: they make the container and leave.
    let alive = told.processes.iter();
    let alive = alive.filter(|process| &*process.owner == id && process.died.is_none());
    let born = alive.map(|process| process.started).min()?;
    let since_birth = |wall: u64| Duration::from_nanos(wall.saturating_sub(born.0));
    Some(Start {
        identified: since_birth(identified.0),
        answered: since_birth(answered_us.saturating_mul(1_000)),
    })
}

fn rows_of(runtime: &str, starts: &[Start]) -> Vec<Row> {
    let sorted = |of: fn(&Start) -> Duration| {
        let mut times: Vec<Duration> = starts.iter().map(of).collect();
        times.sort();
        times
    };
    let times = |sorted: &[Duration]| {
        let at = |percent| percentile(sorted, percent).as_secs_f64() * 1e3;
        let (p50, p99, most) = (at(50), at(99), at(100));
        format!("p50 {p50:.0} ms, p99 {p99:.0} ms, longest {most:.0} ms")
    };
    let identified = sorted(|start| start.identified);
    let answered = sorted(|start| start.answered);
    let before = starts
        .iter()
        .filter(|it| it.identified <= it.answered)
        .count();
    vec![
        Row::new(
            format!("identity known, {} starts, {runtime}", starts.len()),
            times(&identified),
        )
        .goal("p99 ≤ 500 ms", percentile(&identified, 99) <= GOAL),
        Row::new(
            "— until the runtime had answered the start",
            times(&answered),
        ),
        Row::new(
            "— identified before that",
            format!("{before} of {}", starts.len()),
        ),
    ]
}
