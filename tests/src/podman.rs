//! Real Podman services, started and stopped by the tests: what speaks the Docker Engine API and is
//! no Docker.
//!
//! Each has its own storage below one folder and takes everything with it when it is dropped. It is
//! driven by Podman's own command line, which does not go through the service: that only tells of
//! what is there, as on a host where people use `podman run`.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::daemon::Daemon;
use crate::docker::{
    Cgroups, Container, ContainerSpec, IMAGE, answers, image, program_path, unmount_below,
};

/// How long the last commands of containers may take.
const PATIENCE: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(20);

/// Whether this machine can run a Podman of its own; if not, why.
///
/// # Errors
/// If a program is missing, or the rights are.
pub fn available() -> Result<()> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "needs root to start containers"
    );
    for program in ["podman", "conmon", "runc", "busybox", "tar"] {
        program_path(program)?;
    }
    Ok(())
}

/// A service, and the containers beside it.
#[derive(Debug)]
pub struct Podman {
    root: PathBuf,
    service: Option<Daemon>,
    cgroups: Cgroups,
}

impl Podman {
    /// Starts a service and waits until it answers. The image is there then.
    ///
    /// # Errors
    /// If it does not come up; the message has the end of its log.
    pub fn start(root: impl Into<PathBuf>) -> Result<Self> {
        let root = root.into();
        fs::create_dir_all(&root).with_context(|| format!("cannot make {}", root.display()))?;
        let shown = root.display();
        let write = |name: &str, text: String| {
            fs::write(root.join(name), text).with_context(|| format!("cannot write {name}"))
        };
        write(
            "storage.conf",
            format!(
                "[storage]\ndriver = \"overlay\"\n\
                 graphroot = \"{shown}/graph\"\nrunroot = \"{shown}/run\"\n"
            ),
        )?;
        write(
            "containers.conf",
            // runc takes every layout of cgroups, crun does not; the limits are those that the root
            // of a container may set; events and locks in files are this storage's alone.
            format!(
                "[containers]\n\
                 default_ulimits = [\"nofile=4096:4096\", \"nproc=4096:4096\"]\n\
                 cgroupns = \"host\"\n\
                 [engine]\ncgroup_manager = \"cgroupfs\"\nruntime = \"runc\"\n\
                 lock_type = \"file\"\nevents_logger = \"file\"\nevents_logfile_path = \"{shown}/events.log\"\n\
                 tmp_dir = \"{shown}/tmp\"\nstatic_dir = \"{shown}/static\"\n\
                 volume_path = \"{shown}/volumes\"\n"
            ),
        )?;
        let mut cgroups = Cgroups::noticed()?;
        drop(cgroups.expect(Some("/libpod_parent"))?);
        let mut podman = Self {
            root,
            service: None,
            cgroups,
        };
        podman.start_again()?;
        let archive = image(&podman.root)?.display().to_string();
        podman.podman(&["import", "--change=ENV PATH=/bin", &archive, IMAGE])?;
        Ok(podman)
    }

    /// Where it listens.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.root.join("p.sock")
    }

    /// Where it keeps its containers, as the bundles' source is told.
    #[must_use]
    pub fn storage(&self) -> PathBuf {
        self.root.join("graph")
    }

    /// Starts the service after it was stopped, and waits until it answers.
    ///
    /// # Errors
    /// If it runs already or does not come up.
    pub fn start_again(&mut self) -> Result<()> {
        ensure!(self.service.is_none(), "the service runs already");
        let mut command = self.command()?;
        command
            .args(["system", "service", "--time=0"])
            .arg(format!("unix://{}", self.socket().display()));
        let log = self.root.join("podman.log");
        let mut service = Daemon::start("podman", &mut command, &log)?;
        let socket = self.socket();
        service.wait_until_up(|| answers(&socket))?;
        self.service = Some(service);
        Ok(())
    }

    /// Ends the service. Containers go on without it.
    ///
    /// # Errors
    /// If it does not run or does not end.
    pub fn stop(&mut self) -> Result<()> {
        let mut service = self.service.take().context("the service does not run")?;
        service.stop()?;
        Ok(())
    }

    /// Starts a container and leaves it running.
    ///
    /// # Errors
    /// If Podman does not start it.
    pub fn run(&mut self, spec: &ContainerSpec) -> Result<Container> {
        let _making = self.cgroups.expect(spec.cgroup_parent.as_deref())?;
        let mut arguments = vec!["run".to_owned(), "--detach".to_owned()];
        arguments.extend(spec.arguments()?);
        let id = self.podman(&arguments)?.trim().to_owned();
        let pid = self.podman(&["inspect", "--format={{.State.Pid}}", &id])?;
        let pid = pid
            .trim()
            .parse()
            .with_context(|| format!("no pid of {id}: found {pid:?}"))?;
        Ok(Container { id, pid })
    }

    /// Ends a container and removes it.
    ///
    /// # Errors
    /// If Podman does not know it.
    pub fn remove(&self, container: &Container) -> Result<()> {
        self.podman(&["rm", "--force", "--time=1", &container.id])?;
        Ok(())
    }

    /// Any command of Podman's command line; what it printed.
    ///
    /// # Errors
    /// If the command fails; the message has what it said.
    pub fn podman<S: AsRef<str>>(&self, arguments: &[S]) -> Result<String> {
        let arguments: Vec<&str> = arguments.iter().map(AsRef::as_ref).collect();
        let output = self
            .command()?
            .args(&arguments)
            .stdin(Stdio::null())
            .output()
            .context("cannot run podman")?;
        ensure!(
            output.status.success(),
            "podman {}: {}: {}",
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn command(&self) -> Result<Command> {
        let mut command = Command::new(program_path("podman")?);
        command
            .env("CONTAINERS_STORAGE_CONF", self.root.join("storage.conf"))
            .env("CONTAINERS_CONF", self.root.join("containers.conf"));
        Ok(command)
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        if let Err(error) = self.podman(&["rm", "--all", "--force", "--time=1"]) {
            eprintln!("podman: containers could not be removed: {error:#}");
        }
        // Ends it.
        self.service = None;
        let deadline = Instant::now() + PATIENCE;
        while is_in_use(&self.root) && Instant::now() < deadline {
            std::thread::sleep(POLL);
        }
        if let Err(error) = unmount_below(Path::new(&self.root)) {
            eprintln!("podman: {error:#}");
        }
        self.cgroups.remove();
    }
}

/// Whether a process is left that has this folder in its command. What watches a container runs a command after
/// the container's end, and that mounts the storage once more.
fn is_in_use(root: &Path) -> bool {
    let root = root.as_os_str().as_bytes();
    let processes = fs::read_dir("/proc").into_iter().flatten();
    let mut commands =
        processes.filter_map(|entry| fs::read(entry.ok()?.path().join("cmdline")).ok());
    commands.any(|command| command.windows(root.len()).any(|part| part == root))
}
