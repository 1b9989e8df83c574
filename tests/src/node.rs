//! A node with simulated GPUs, for scenarios with real containers and the built agent.
//!
//! It touches nothing of the machine's own: each identity source is told to look where nothing is,
//! until a scenario says otherwise.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gpuacct::config::{Config, Span};
use gpuacct::core::model::{SourceId, SourceState};
use gpuacct::core::snapshot::ContainerAccount;
use gpuacct::outputs::socket::StatusReport;
use sim_nvml::library::{self, Driver};
use sim_nvml::{GpuSpec, STATE_DIR, Scenario, Server, Truth};
use tempfile::TempDir;

use crate::agent::{Agent, PATIENCE, POLL};
use crate::docker::{ContainerSpec, Dockerd, Options};
use crate::turn::Turn;

/// The driver's samples are this much apart, and show when they have been taken.
const SAMPLES: Duration = Duration::from_secs(1);

/// A folder with GPUs in it. What runs in the folder is to be dropped before it.
#[derive(Debug)]
pub struct Node {
    server: Server,
    scenario: Arc<Scenario>,
    library: PathBuf,
    job: PathBuf,
    dir: TempDir,
}

impl Node {
    /// A node with so many GPUs.
    ///
    /// # Errors
    /// If its files cannot be written or built.
    pub fn new(gpus: u32) -> Result<Self> {
        Self::with_driver(gpus, Driver::R550)
    }

    /// The same with another driver.
    ///
    /// # Errors
    /// As [`Node::new`].
    pub fn with_driver(gpus: u32, driver: Driver) -> Result<Self> {
        Self::numbered(0..gpus, driver)
    }

    /// The same with GPUs of these numbers, so that several nodes have none in common.
    ///
    /// # Errors
    /// As [`Node::new`].
    pub fn numbered(gpus: Range<u32>, driver: Driver) -> Result<Self> {
        let dir = short_folder();
        let gpus = gpus.map(GpuSpec::a100).collect();
        let scenario = Arc::new(Scenario::create(dir.path().join("gpus"), gpus, 1)?);
        Ok(Self {
            server: Server::start(Arc::clone(&scenario), dir.path().join("jobs.sock"))?,
            scenario,
            library: library::install(driver, &dir.path().join("lib"))?,
            job: library::build_job()?,
            dir,
        })
    }

    /// Where it is.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A configuration in which every identity source looks where nothing is.
    #[must_use]
    pub fn config(&self) -> Config {
        let nowhere = |name: &str| self.dir().join("nowhere").join(name);
        let mut config = Config::default();
        config.gpu.library = Some(self.library.clone());
        config.kernel_log.path = nowhere("kmsg");
        config.docker.sockets = vec![nowhere("docker.sock")];
        config.cri.sockets = vec![nowhere("cri.sock")];
        config.pod_resources.socket = nowhere("kubelet.sock");
        config.bundle.containerd = vec![nowhere("containerd")];
        config.bundle.storage = vec![nowhere("storage")];
        config.bundle.docker = vec![nowhere("docker")];
        config.kubelet_logs.containers = nowhere("containers");
        config.kubelet_logs.pods = nowhere("pods");
        config.publish.grace = Span(Duration::from_secs(3));
        config.publish.zero_for = Span(Duration::from_secs(1));
        config
    }

    /// The agent, once it has the kernel and every GPU. Each that is started has a folder of its
    /// own, called `name`.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn agent(&self, name: &str, config: Config) -> Result<Agent> {
        self.agent_with(name, config, &[])
    }

    /// The same with further environment variables.
    ///
    /// # Errors
    /// As [`Node::agent`].
    pub fn agent_with(
        &self,
        name: &str,
        config: Config,
        variables: &[(&str, &Path)],
    ) -> Result<Agent> {
        let dir = self.dir().join(name);
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let _turn = Turn::wait()?;
        let environment = [&[(STATE_DIR, self.scenario.dir())], variables].concat();
        let mut agent = Agent::start_first(&dir, config, &environment)?;
        let gpus = self.scenario.machine().gpus.len();
        agent.wait_for_status("the kernel and the GPUs", |status| {
            let books = status.snapshot.gpus.iter();
            books.filter(|book| book.elapsed.0 > 0).count() == gpus
                && *state(status, SourceId::Kernel) == SourceState::Up
        })?;
        Ok(agent)
    }

    /// The simulated library, as a driver would have installed it.
    #[must_use]
    pub fn library(&self) -> &Path {
        &self.library
    }

    /// A process on the host that uses a share of a GPU for ever, once it is started. More arguments
    /// may follow.
    #[must_use]
    pub fn host_work(&self, gpu: u32, share: &str) -> Command {
        let mut command = Command::new(&self.job);
        command.arg("--socket").arg(self.server.path()).args([
            "--gpu",
            &gpu.to_string(),
            "--share",
            share,
        ]);
        command
    }

    /// A Docker daemon in this folder.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn dockerd(&self) -> Result<Dockerd> {
        Dockerd::start(Options::at(self.dir().join("d")))
    }

    /// Where the simulated GPUs are, for whoever opens their library.
    #[must_use]
    pub fn scenario_dir(&self) -> &Path {
        self.scenario.dir()
    }

    /// The command by which a container uses a share of a GPU forever, with a name that the log of
    /// the simulation records.
    #[must_use]
    pub fn work(&self, gpu: u32, share: &str, label: &str) -> Vec<String> {
        let words = ["/sim-gpu-job", "--socket", "/jobs.sock", "--gpu"];
        let mut command: Vec<String> = words.map(str::to_owned).into();
        command.extend([gpu.to_string(), "--share".into(), share.into()]);
        command.extend(["--label".into(), label.into()]);
        command
    }

    /// The files of the host's that it needs for that: outside, inside.
    #[must_use]
    pub fn mounts(&self) -> Vec<(PathBuf, PathBuf)> {
        let mut mounts = vec![
            (self.server.path().to_owned(), "/jobs.sock".into()),
            (self.job.clone(), "/sim-gpu-job".into()),
        ];
        // The job is linked against the host's C library.
        let libraries = ["/lib", "/lib64", "/usr/lib"].map(PathBuf::from);
        let libraries = libraries.into_iter().filter(|path| path.exists());
        mounts.extend(libraries.map(|path| (path.clone(), path)));
        mounts
    }

    /// A container of Docker's that does such work.
    #[must_use]
    pub fn at_work(&self, spec: ContainerSpec, gpu: u32, share: &str) -> ContainerSpec {
        let label = spec.name.clone();
        let mounts = self.mounts().into_iter();
        mounts
            .fold(spec, |spec, (outside, inside)| spec.mount(outside, inside))
            .command(self.work(gpu, share, &label))
    }

    /// What happened to the GPUs.
    ///
    /// # Errors
    /// If the log of it cannot be read.
    pub fn truth(&self) -> Result<Truth> {
        Ok(Truth::read(self.scenario.dir())?)
    }

    /// What the driver's samples credited to the work of that name so far.
    ///
    /// # Errors
    /// If there is no such work.
    pub fn credited_ns(&self, label: &str) -> Result<u64> {
        let truth = self.truth()?;
        let jobs = truth.jobs(0..u64::MAX);
        let job = jobs.iter().find(|job| job.label.as_deref() == Some(label));
        let job = job.with_context(|| format!("no work called {label}"))?;
        let credited = truth.ring_ns(job.gpu, 0..u64::MAX);
        Ok(credited.get(&job.pid).copied().unwrap_or_default())
    }

    /// Waits until the driver's samples credited so much to the work of that name.
    ///
    /// # Errors
    /// If that does not happen.
    pub fn wait_for_credit(&self, label: &str, wanted_ns: u64) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let credited = self.credited_ns(label)?;
            if credited >= wanted_ns {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "{label} was credited {credited} ns of {wanted_ns}"
            );
            std::thread::sleep(POLL);
        }
    }

    /// Waits until the books have passed this moment and all that is in them is published. Nothing
    /// may be at work any more.
    ///
    /// # Errors
    /// If that does not happen, or something is left without an owner.
    pub fn settle(&self, agent: &mut Agent) -> Result<StatusReport> {
        let end = sim_nvml::wall_us() * 1_000 + u64::try_from(SAMPLES.as_nanos())?;
        agent.wait_for_status("the books to settle", |status| {
            let snapshot = &status.snapshot;
            snapshot.gpus.iter().all(|book| {
                let uuid = &book.gpu.uuid;
                let containers = snapshot.container_series.iter();
                let containers = containers.filter(|series| series.gpu == *uuid);
                let hosts = snapshot.host_series.iter();
                let hosts = hosts.filter(|series| series.gpu == *uuid);
                let namespaces = snapshot.namespace_series.iter();
                let namespaces = namespaces.filter(|series| series.gpu == *uuid);
                let containers: u64 = containers.map(|series| series.amounts.busy.0).sum();
                let hosts: u64 = hosts.map(|series| series.amounts.busy.0).sum();
                let namespaces: u64 = namespaces.map(|series| series.amounts.busy.0).sum();
                book.start.0 + book.elapsed.0 > end
                    && containers + hosts == book.busy.0
                    && namespaces == containers
            })
        })
    }
}

/// A folder of the test's own with a short path, since the paths of sockets are bounded.
///
/// # Panics
/// If there is no room for one.
#[must_use]
pub fn short_folder() -> TempDir {
    let folder = tempfile::Builder::new().prefix("ga-").tempdir();
    folder.expect("a folder below the temporary one")
}

/// A pod's uid that no other test has, be it in this process or in another: all of them share the
/// kernel's cgroups, and one uid in two places is somebody who poses as a pod.
#[must_use]
pub fn new_pod_uid() -> String {
    static PODS: AtomicU64 = AtomicU64::new(1);
    let number = PODS.fetch_add(1, Ordering::Relaxed);
    format!(
        "6f1c8a52-3c1e-4c55-9a8e-{:08x}{number:04x}",
        std::process::id()
    )
}

/// The uid of the one pod of this test, which runs on one thread.
#[must_use]
pub fn pod_uid() -> &'static str {
    thread_local! {
        static UID: &'static str = new_pod_uid().leak();
    }
    UID.with(|uid| *uid)
}

/// What a source is doing.
///
/// # Panics
/// If the status does not have it: every source is in every status.
#[must_use]
pub fn state(status: &StatusReport, source: SourceId) -> &SourceState {
    let mut sources = status.agent.sources.iter();
    let health = sources.find(|health| health.source == source);
    &health.expect("every source is in the status").state
}

/// A container's account on one GPU, by the GPU's index.
#[must_use]
pub fn account<'a>(status: &'a StatusReport, gpu: u32, id: &str) -> Option<&'a ContainerAccount> {
    let snapshot = &status.snapshot;
    let book = snapshot.gpus.iter().find(|book| book.gpu.index == gpu)?;
    let mut accounts = snapshot.accounts.iter();
    accounts.find(|account| account.gpu == book.gpu.uuid && account.id.as_str() == id)
}
