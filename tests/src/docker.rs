//! Real Docker daemons, started and stopped by the tests and the demo.
//!
//! Each has its own data, sockets and containerd below one folder, touches no network settings, and
//! takes everything with it when it is dropped: containers, mounts, the cgroups that it made. It is
//! driven by Docker's own command line, so that the tests share no client with the code they test.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};
use rustix::thread::{CapabilitySet, capabilities};

mod version;

/// The image that every container is made from: Debian's static busybox and nothing else.
pub const IMAGE: &str = "gpuacct/busybox:1";
/// How long a daemon may take to come or go. Only ever waited for when something is broken.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often to look whether it has.
const POLL: Duration = Duration::from_millis(20);
/// Longest path of a root: a Unix socket's may have 107 bytes, and dockerd's containerd puts
/// `/exec/containerd/containerd-debug.sock` and longer behind it.
const MAX_ROOT: usize = 60;

/// Whether this machine can run a daemon of its own; if not, why.
///
/// # Errors
/// If a program is missing, or the rights are.
pub fn available() -> Result<()> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "needs root to start a daemon"
    );
    for program in ["dockerd", "docker", "containerd", "runc", "busybox", "tar"] {
        program_path(program)?;
    }
    Ok(())
}

/// The environment variable that names where newer releases of the daemons are: a tree with
/// `usr/sbin/dockerd` and `usr/bin/containerd` in it, as `cargo xtask test` unpacks it.
pub const NEWER_RUNTIMES: &str = "GPUACCT_NEWER_RUNTIMES";

/// That tree, if this machine can run what is in it.
///
/// # Errors
/// If there is none, or no daemon can be run at all.
pub fn newer() -> Result<PathBuf> {
    available()?;
    let tree = crate::requirement::fetched(NEWER_RUNTIMES)?;
    for program in ["usr/sbin/dockerd", "usr/bin/containerd"] {
        let program = tree.join(program);
        ensure!(program.is_file(), "{} is not there", program.display());
    }
    Ok(tree)
}

/// The folders in which a daemon of a tree, or of the machine, finds the programs that it starts.
pub(crate) fn search_path(tree: Option<&Path>) -> String {
    let own = tree.into_iter().flat_map(|tree| {
        let folders = ["usr/sbin", "usr/bin"];
        folders.map(|folder| tree.join(folder).display().to_string())
    });
    let machine = PROGRAM_FOLDERS.map(str::to_owned);
    own.chain(machine).collect::<Vec<_>>().join(":")
}

/// What a daemon is like.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whether containers outlive the daemon.
    pub live_restore: bool,
    /// What it calls itself instead of its version: at most as long as that.
    pub version_says: Option<String>,
    /// The tree that its programs are in; the machine's own if none. See [`newer`].
    pub programs: Option<PathBuf>,
    /// Where everything of it is kept: a folder that nobody else uses, with a short path.
    pub root: PathBuf,
}

impl Options {
    /// Debian's daemon as it is, with containers that outlive it.
    #[must_use]
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self {
            live_restore: true,
            version_says: None,
            programs: None,
            root: root.into(),
        }
    }
}

/// A running container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// Its id: 64 hexadecimal digits.
    pub id: String,
    /// Its first process, in the initial pid namespace.
    pub pid: u32,
}

impl Container {
    /// Kills its first process, and with it the others, and waits for its end. The daemon hears of it
    /// when it does.
    ///
    /// # Errors
    /// If it has ended before.
    pub fn kill(&self) -> Result<()> {
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        let pid = pid.context("a pid is a positive number")?;
        let process = pidfd_open(pid, PidfdFlags::empty()).context("it has ended")?;
        pidfd_send_signal(&process, Signal::KILL).context("cannot kill it")?;
        let mut ended = [PollFd::new(&process, PollFlags::IN)];
        while poll(&mut ended, None) == Err(Errno::INTR) {}
        Ok(())
    }
}

/// What to run.
#[derive(Clone, Debug, Default)]
pub struct ContainerSpec {
    /// Its name, of two characters at least.
    pub name: String,
    /// Labels of the container: key, value.
    pub labels: Vec<(String, String)>,
    /// The cgroup to make its own in, e.g. `/kubepods/burstable/pod<uid>`.
    pub cgroup_parent: Option<String>,
    /// Bind mounts: outside, inside.
    pub mounts: Vec<(PathBuf, PathBuf)>,
    /// Environment variables: name, value.
    pub environment: Vec<(String, String)>,
    /// What it runs; a long sleep if empty.
    pub command: Vec<String>,
    /// Whether it may do what the tests' own root may.
    pub privileged: bool,
    /// What it is made from; [`IMAGE`] if none.
    pub image: Option<String>,
    /// Further arguments of `docker run`, before the image.
    pub further: Vec<String>,
}

impl ContainerSpec {
    /// A container of that name which sleeps.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            ..Self::default()
        }
    }

    /// With a label.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.push((key.to_owned(), value.to_owned()));
        self
    }

    /// As the kubelet would have it: the four labels, and a cgroup below the pod's.
    #[must_use]
    pub fn in_pod(self, namespace: &str, pod: &str, uid: &str, container: &str) -> Self {
        let mut spec = self
            .label("io.kubernetes.pod.namespace", namespace)
            .label("io.kubernetes.pod.name", pod)
            .label("io.kubernetes.pod.uid", uid)
            .label("io.kubernetes.container.name", container);
        spec.cgroup_parent = Some(format!("/kubepods/burstable/pod{uid}"));
        spec
    }

    /// With a folder or file of the host's at the same or another place inside.
    #[must_use]
    pub fn mount(mut self, outside: impl Into<PathBuf>, inside: impl Into<PathBuf>) -> Self {
        self.mounts.push((outside.into(), inside.into()));
        self
    }

    /// With a variable in its environment.
    #[must_use]
    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With all that the tests' own root may do.
    #[must_use]
    pub const fn privileged(mut self) -> Self {
        self.privileged = true;
        self
    }

    /// Made from another image.
    #[must_use]
    pub fn image(mut self, image: &str) -> Self {
        self.image = Some(image.to_owned());
        self
    }

    /// With an argument of `docker run` that has no other name here.
    #[must_use]
    pub fn argument(mut self, argument: &str) -> Self {
        self.further.push(argument.to_owned());
        self
    }

    /// With a command.
    #[must_use]
    pub fn command<S: Into<String>>(mut self, words: impl IntoIterator<Item = S>) -> Self {
        self.command = words.into_iter().map(Into::into).collect();
        self
    }

    /// The arguments of `docker run` and `podman run`.
    pub(crate) fn arguments(&self) -> Result<Vec<String>> {
        let mut arguments = vec!["--network=none".to_owned(), format!("--name={}", self.name)];
        for (key, value) in &self.labels {
            arguments.push(format!("--label={key}={value}"));
        }
        for (key, value) in &self.environment {
            arguments.push(format!("--env={key}={value}"));
        }
        for (outside, inside) in &self.mounts {
            let (outside, inside) = (outside.display(), inside.display());
            arguments.push(format!(
                "--mount=type=bind,source={outside},target={inside}"
            ));
        }
        if self.privileged {
            arguments.extend(all_rights()?);
        }
        if let Some(parent) = &self.cgroup_parent {
            arguments.push(format!("--cgroup-parent={parent}"));
        }
        arguments.extend(self.further.iter().cloned());
        let image = self.image.as_deref();
        arguments.push(image.unwrap_or(IMAGE).to_owned());
        if image.is_some() {
            // Without a command it is the image's own.
            arguments.extend(self.command.iter().cloned());
        } else if self.command.is_empty() {
            arguments.extend(["sleep", "3600"].map(str::to_owned));
        } else {
            arguments.extend(self.command.iter().cloned());
        }
        Ok(arguments)
    }
}

/// A daemon.
#[derive(Debug)]
pub struct Dockerd {
    options: Options,
    program: PathBuf,
    child: Option<Child>,
    paused: bool,
    /// What was left running.
    containers: Vec<Container>,
    cgroups: Cgroups,
}

impl Dockerd {
    /// Starts a daemon and waits until it answers. The image is there then.
    ///
    /// # Errors
    /// If it does not come up; the message has the end of its log.
    pub fn start(options: Options) -> Result<Self> {
        let length = options.root.as_os_str().len();
        ensure!(
            length <= MAX_ROOT,
            "{}: {length} bytes, at most {MAX_ROOT} leave room for socket paths",
            options.root.display()
        );
        fs::create_dir_all(&options.root)
            .with_context(|| format!("cannot make {}", options.root.display()))?;
        let mut program = match &options.programs {
            Some(tree) => tree.join("usr/sbin/dockerd"),
            None => program_path("dockerd")?,
        };
        if let Some(says) = &options.version_says {
            program = version::renamed(&program, says, &options.root)?;
        }
        let mut daemon = Self {
            options,
            program,
            child: None,
            paused: false,
            containers: Vec::new(),
            cgroups: Cgroups::noticed()?,
        };
        daemon.start_again()?;
        if daemon.docker(&["image", "inspect", IMAGE]).is_err() {
            daemon.import()?;
        }
        Ok(daemon)
    }

    /// Where it listens.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.options.root.join("docker.sock")
    }

    /// Starts the daemon after it was stopped or killed, and waits until it answers.
    ///
    /// # Errors
    /// If it runs already or does not come up.
    pub fn start_again(&mut self) -> Result<()> {
        ensure!(self.child.is_none(), "the daemon runs already");
        let root = &self.options.root;
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log())
            .context("cannot open the daemon's log")?;
        let child = Command::new(&self.program)
            .env("PATH", search_path(self.options.programs.as_deref()))
            // The machine's own configuration is not ours to use.
            .arg("--config-file=")
            .arg(option("--data-root", &root.join("data")))
            .arg(option("--exec-root", &root.join("exec")))
            .arg(option("--pidfile", &root.join("docker.pid")))
            .arg(format!("--host=unix://{}", self.socket().display()))
            .args(["--bridge=none", "--iptables=false", "--ip6tables=false"])
            .args(["--ip-forward=false", "--ip-masq=false"])
            // Else a host with systemd would refuse cgroup parents that are no slices.
            .arg("--exec-opt=native.cgroupdriver=cgroupfs")
            .arg(format!("--live-restore={}", self.options.live_restore))
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("cannot share the log")?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", self.program.display()))?;
        self.child = Some(child);
        self.wait_until_up()
    }

    /// Asks it to end and waits until it has. Containers go with it, unless `live_restore` is on.
    ///
    /// # Errors
    /// If it does not run or does not end.
    pub fn stop(&mut self) -> Result<()> {
        self.end(Signal::TERM)
    }

    /// Kills it on the spot; its socket and, for a while, its containers stay behind.
    ///
    /// # Errors
    /// If it does not run.
    pub fn kill(&mut self) -> Result<()> {
        self.end(Signal::KILL)
    }

    /// Freezes it: it accepts connections and answers none.
    ///
    /// # Errors
    /// If it does not run.
    pub fn pause(&mut self) -> Result<()> {
        self.signal(Signal::STOP)?;
        self.paused = true;
        Ok(())
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// If it does not run.
    pub fn resume(&mut self) -> Result<()> {
        self.signal(Signal::CONT)?;
        self.paused = false;
        Ok(())
    }

    /// Starts a container and leaves it running.
    ///
    /// # Errors
    /// If the daemon does not start it.
    pub fn run(&mut self, spec: &ContainerSpec) -> Result<Container> {
        let _making = self.cgroups.expect(spec.cgroup_parent.as_deref())?;
        let mut arguments = vec!["run".to_owned(), "--detach".to_owned()];
        arguments.extend(spec.arguments()?);
        let id = self.docker(&arguments)?.trim().to_owned();
        let pid = self.docker(&["inspect", "--format={{.State.Pid}}", &id])?;
        let pid = pid
            .trim()
            .parse()
            .with_context(|| format!("no pid of {id}: found {pid:?}"))?;
        let container = Container { id, pid };
        self.containers.push(container.clone());
        Ok(container)
    }

    /// Runs a container to its end, removes it, and returns what it printed.
    ///
    /// # Errors
    /// If the daemon does not start it, or it fails.
    pub fn run_to_end(&mut self, spec: &ContainerSpec) -> Result<String> {
        let _making = self.cgroups.expect(spec.cgroup_parent.as_deref())?;
        let mut arguments = vec!["run".to_owned(), "--rm".to_owned()];
        arguments.extend(spec.arguments()?);
        self.docker(&arguments)
    }

    /// Ends a container and removes it.
    ///
    /// # Errors
    /// If the daemon does not know it.
    pub fn remove(&self, container: &Container) -> Result<()> {
        self.docker(&["rm", "--force", "--volumes", &container.id])?;
        Ok(())
    }

    /// Any other command of Docker's command line; what it printed.
    ///
    /// # Errors
    /// If the command fails; the message has what it said.
    pub fn docker<S: AsRef<str>>(&self, arguments: &[S]) -> Result<String> {
        let arguments: Vec<&str> = arguments.iter().map(AsRef::as_ref).collect();
        let output = self
            .client()?
            .args(&arguments)
            .stdin(Stdio::null())
            .output()
            .context("cannot run docker")?;
        ensure!(
            output.status.success(),
            "docker {}: {}: {}",
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn client(&self) -> Result<Command> {
        let mut command = Command::new(program_path("docker")?);
        command
            // Neither the user's settings nor those of a desktop.
            .env_clear()
            .env("PATH", PROGRAM_FOLDERS.join(":"))
            .env("DOCKER_CONFIG", self.options.root.join("client"))
            .arg(format!("--host=unix://{}", self.socket().display()));
        Ok(command)
    }

    fn log(&self) -> PathBuf {
        self.options.root.join("dockerd.log")
    }

    fn wait_until_up(&mut self) -> Result<()> {
        let socket = self.socket();
        let give_up = Instant::now() + PATIENCE;
        while !answers(&socket) {
            let ended = match &mut self.child {
                Some(child) => child.try_wait().context("cannot wait for dockerd")?,
                None => bail!("the daemon does not run"),
            };
            if let Some(status) = ended {
                self.child = None;
                bail!("dockerd ended, {status}: {}", tail(&self.log()));
            }
            ensure!(
                Instant::now() < give_up,
                "dockerd does not answer on {}: {}",
                socket.display(),
                tail(&self.log())
            );
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let child = self.child.as_ref().context("the daemon does not run")?;
        kill_process(Pid::from_child(child), signal).context("cannot signal dockerd")
    }

    fn end(&mut self, signal: Signal) -> Result<()> {
        self.signal(signal)?;
        // A frozen process takes nothing but a kill.
        if self.paused && signal != Signal::KILL {
            self.resume()?;
        }
        self.paused = false;
        let give_up = Instant::now() + PATIENCE;
        let Some(child) = &mut self.child else {
            return Ok(());
        };
        while child
            .try_wait()
            .context("cannot wait for dockerd")?
            .is_none()
        {
            ensure!(Instant::now() < give_up, "dockerd does not end");
            std::thread::sleep(POLL);
        }
        self.child = None;
        // Its containerd dies with it, a moment later. A daemon that starts in that moment takes it
        // for alive and waits for it in vain.
        let file = self.options.root.join("exec/containerd/containerd.pid");
        if let Ok(pid) = fs::read_to_string(file) {
            let process = Path::new("/proc").join(pid.trim());
            while process.exists() {
                ensure!(Instant::now() < give_up, "containerd does not end");
                std::thread::sleep(POLL);
            }
        }
        Ok(())
    }

    /// What outlives its daemon and cannot be ended through a new one any more: shims, known by the
    /// address that they report to, and containers, known by their cgroup.
    fn kill_orphans(&self) {
        let address = self.options.root.join("exec/containerd/containerd.sock");
        let address = address.display().to_string();
        let is_shim = |pid: &Pid| {
            let line = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero()));
            line.is_ok_and(|line| {
                line.split(|byte| *byte == 0)
                    .any(|word| word == address.as_bytes())
            })
        };
        let is_container = |container: &&Container| {
            let cgroups = fs::read_to_string(format!("/proc/{}/cgroup", container.pid));
            cgroups.is_ok_and(|cgroups| cgroups.contains(&container.id))
        };
        let shims = fs::read_dir("/proc")
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter_map(Pid::from_raw)
            .filter(is_shim);
        let containers = self
            .containers
            .iter()
            .filter(is_container)
            .filter_map(|container| Pid::from_raw(container.pid.try_into().ok()?));
        for pid in shims.chain(containers) {
            // Gone already is as good.
            let _ = kill_process(pid, Signal::KILL);
        }
    }

    fn import(&self) -> Result<()> {
        let archive = image(&self.options.root)?.display().to_string();
        self.docker(&["import", "--change=ENV PATH=/bin", &archive, IMAGE])?;
        Ok(())
    }

    /// Everything away: containers, the daemon, mounts, cgroups.
    fn clean_up(&mut self) -> Result<()> {
        if self.paused {
            self.resume()?;
        }
        if !self.containers.is_empty() {
            // Containers of a daemon that is gone can only be ended through a new one.
            if self.child.is_none() {
                self.start_again()?;
            }
            let containers = self.docker(&["ps", "--all", "--quiet", "--no-trunc"])?;
            let mut remove = vec!["rm", "--force", "--volumes"];
            remove.extend(containers.lines());
            if remove.len() > 3 {
                self.docker(&remove)?;
            }
        }
        if self.child.is_some() {
            self.stop()?;
        }
        unmount_below(&self.options.root)?;
        self.cgroups.remove();
        Ok(())
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        if let Err(error) = self.clean_up() {
            eprintln!("docker: not everything could be cleaned up: {error:#}");
            // Whatever went wrong, the daemon does not stay.
            if let Some(child) = &mut self.child
                && let Err(error) = child.kill().and_then(|()| child.wait())
            {
                eprintln!("docker: the daemon could not be killed: {error}");
            }
            self.kill_orphans();
            if let Err(error) = unmount_below(&self.options.root) {
                eprintln!("docker: {error:#}");
            }
            self.cgroups.remove();
        }
    }
}

/// Where Debian puts programs. A desktop's `docker` elsewhere may bring settings of its own.
const PROGRAM_FOLDERS: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];

pub(crate) fn program_path(name: &str) -> Result<PathBuf> {
    PROGRAM_FOLDERS
        .iter()
        .map(|folder| Path::new(folder).join(name))
        .find(|path| {
            fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
        })
        .with_context(|| format!("no {name} in {}", PROGRAM_FOLDERS.join(", ")))
}

/// The arguments for a container without bounds. `--privileged` asks for every capability there is,
/// which the root of a container may lack itself; then all that it has comes to the same.
fn all_rights() -> Result<Vec<String>> {
    let held = capabilities(None).context("cannot read the own capabilities")?;
    let missing = CapabilitySet::all().difference(held.effective);
    if missing.iter_names().next().is_none() {
        return Ok(vec!["--privileged".to_owned()]);
    }
    let mut arguments: Vec<String> = [
        "--cap-add=ALL",
        "--security-opt=seccomp=unconfined",
        "--security-opt=apparmor=unconfined",
    ]
    .map(str::to_owned)
    .into();
    let missing = missing.iter_names();
    arguments.extend(missing.map(|(name, _)| format!("--cap-drop={name}")));
    Ok(arguments)
}

fn option(name: &str, path: &Path) -> String {
    format!("{name}={}", path.display())
}

/// Makes an archive of the image's files below `root`: busybox under all its names.
pub(crate) fn image(root: &Path) -> Result<PathBuf> {
    let busybox = program_path("busybox")?;
    let tree = root.join("image");
    let bin = tree.join("bin");
    for folder in ["bin", "proc", "sys", "dev", "tmp", "etc", "root"] {
        fs::create_dir_all(tree.join(folder)).context("cannot make the image's folders")?;
    }
    fs::copy(&busybox, bin.join("busybox")).context("cannot copy busybox")?;
    let names = Command::new(&busybox)
        .arg("--list")
        .output()
        .context("cannot list busybox's names")?;
    for name in String::from_utf8_lossy(&names.stdout).lines() {
        if name != "busybox" && !bin.join(name).exists() {
            std::os::unix::fs::symlink("busybox", bin.join(name))
                .with_context(|| format!("cannot link {name}"))?;
        }
    }
    fs::write(tree.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")
        .context("cannot write the image's passwd")?;
    let archive = root.join("image.tar");
    let packed = Command::new(program_path("tar")?)
        .args(["--create", "--owner=0", "--group=0", "--file"])
        .arg(&archive)
        .arg("--directory")
        .arg(&tree)
        .arg(".")
        .status()
        .context("cannot run tar")?;
    ensure!(packed.success(), "tar: {packed}");
    Ok(archive)
}

/// Whether a daemon answers a ping.
pub(crate) fn answers(socket: &Path) -> bool {
    let ask = || -> std::io::Result<Vec<u8>> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n")?;
        let mut head = vec![0; 12];
        stream.read_exact(&mut head)?;
        Ok(head)
    };
    ask().is_ok_and(|head| head.ends_with(b" 200"))
}

fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(8)..].join("\n")
}

/// Unmounts whatever is mounted below a folder, the innermost first.
pub(crate) fn unmount_below(root: &Path) -> Result<()> {
    let root = fs::canonicalize(root).context("cannot resolve the daemon's root")?;
    let table = fs::read_to_string("/proc/self/mountinfo").context("cannot read mountinfo")?;
    let mut points: Vec<PathBuf> = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(PathBuf::from)
        .filter(|point| point.starts_with(&root))
        .collect();
    points.sort();
    for point in points.iter().rev() {
        rustix::mount::unmount(point, rustix::mount::UnmountFlags::DETACH)
            .with_context(|| format!("cannot unmount {}", point.display()))?;
    }
    Ok(())
}

/// The environment variable that names the file in which the tests of one run, which may be many
/// processes, note which cgroups were there before any of them. `cargo xtask test` makes it, empty.
const CGROUPS_BEFORE: &str = "GPUACCT_CGROUPS_BEFORE";

/// The cgroups that containers are put below: those that were not there before the first daemon of
/// this run, or of this process if it runs by itself, are taken away again.
#[derive(Debug)]
pub(crate) struct Cgroups {
    /// Where the hierarchies are mounted.
    mounts: Vec<PathBuf>,
    /// The parents' first components, below each mount.
    parents: BTreeSet<String>,
    /// What was there before.
    before: &'static BTreeSet<PathBuf>,
}

impl Cgroups {
    pub(crate) fn noticed() -> Result<Self> {
        /// One for all: a daemon that starts beside another one would take that one's for older.
        static BEFORE: OnceLock<BTreeSet<PathBuf>> = OnceLock::new();
        let table = fs::read_to_string("/proc/self/mountinfo").context("cannot read mountinfo")?;
        let mounts: Vec<PathBuf> = table
            .lines()
            .filter(|line| line.contains(" - cgroup"))
            .filter_map(|line| line.split(' ').nth(4))
            .map(PathBuf::from)
            .collect();
        let before = match BEFORE.get() {
            Some(before) => before,
            None => {
                let found = Self::before_this_run(&mounts)?;
                BEFORE.get_or_init(|| found)
            }
        };
        Ok(Self {
            mounts,
            parents: BTreeSet::from(["docker".to_owned()]),
            before,
        })
    }

    /// The cgroups right below the mounts, as the first process of this run found them.
    fn before_this_run(mounts: &[PathBuf]) -> Result<BTreeSet<PathBuf>> {
        let folders = mounts.iter().filter_map(|mount| fs::read_dir(mount).ok());
        let entries = folders.flat_map(|entries| entries.filter_map(Result::ok));
        let found: BTreeSet<PathBuf> = entries.map(|entry| entry.path()).collect();
        let Some(path) = std::env::var_os(CGROUPS_BEFORE) else {
            return Ok(found);
        };
        let lock = Self::lock()?;
        lock.lock().context("cannot lock the cgroups")?;
        let noted = fs::read_to_string(&path).context("cannot read the cgroups of before")?;
        if !noted.is_empty() {
            return Ok(noted.lines().map(PathBuf::from).collect());
        }
        let lines = found.iter().map(|path| format!("{}\n", path.display()));
        fs::write(&path, lines.collect::<String>()).context("cannot note the cgroups of before")?;
        Ok(found)
    }

    /// Announces a container below `parent`, and keeps the folders above it from being removed as
    /// empty until the returned lock is dropped: a runtime makes them one after the other.
    pub(crate) fn expect(&mut self, parent: Option<&str>) -> Result<File> {
        let first = parent.and_then(|parent| parent.split('/').find(|part| !part.is_empty()));
        self.parents.extend(first.map(str::to_owned));
        Self::hold()
    }

    /// Keeps empty cgroups from being removed until the returned lock is dropped: a runtime makes one
    /// and then puts a process into it.
    pub(crate) fn hold() -> Result<File> {
        let lock = Self::lock()?;
        lock.lock_shared().context("cannot lock the cgroups")?;
        Ok(lock)
    }

    /// Makes a parent in every hierarchy, for somebody who wants to find it.
    pub(crate) fn make(&mut self, name: &str) -> Result<()> {
        for mount in &self.mounts {
            let path = mount.join(name);
            fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        }
        self.parents.insert(name.to_owned());
        Ok(())
    }

    /// One lock for all tests of this machine: they share the cgroups' parents.
    fn lock() -> Result<File> {
        let path = std::env::temp_dir().join("gpuacct-tests-cgroups.lock");
        File::create(&path).with_context(|| format!("cannot make {}", path.display()))
    }

    /// What cannot be removed is in use by somebody else, another daemon for example, who will.
    pub(crate) fn remove(&self) {
        // Without the lock the folders stay: better that than to take another's away.
        let Ok(lock) = Self::lock() else { return };
        if lock.lock().is_err() {
            return;
        }
        for mount in &self.mounts {
            for parent in &self.parents {
                let path = mount.join(parent);
                if !self.before.contains(&path) {
                    remove_tree(&path);
                }
            }
        }
    }
}

/// A cgroup is removed from the leaves up; its files go with it.
fn remove_tree(path: &Path) {
    let Ok(entries) = fs::read_dir(path) else {
        return;
    };
    for entry in entries.filter_map(Result::ok) {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    // See `Cgroups::remove` for what a failure means.
    let _ = fs::remove_dir(path);
}
