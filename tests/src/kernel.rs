//! Watching the real kernel through the real object, and making things happen on it.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gpuacct::core::input::{
    CgroupAnnouncement, DeviceOpen, EventCounters, KernelBatch, KernelEvent, ProcessEvent,
};
use gpuacct::core::model::{BootTime, Pid, StartTicks};
use gpuacct::sources::kernel::{KernelConfig, KernelError, KernelSource};
use rustix::time::{ClockId, clock_gettime};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

use crate::turn::Turn;

/// How long anything may take before a test gives up. Nothing is expected to come near it.
const PATIENCE: Duration = Duration::from_secs(30);

/// The boot clock now.
#[must_use]
pub fn boot_time() -> BootTime {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).expect("the boot clock starts at zero");
    let nanos = u64::try_from(now.tv_nsec).expect("nanoseconds are not negative");
    BootTime(seconds * 1_000_000_000 + nanos)
}

/// The real object on this kernel, and everything that came out of it.
pub struct Observer {
    runtime: Runtime,
    source: KernelSource,
    receiver: mpsc::Receiver<KernelBatch>,
    /// All events so far, in the order in which they came.
    pub events: Vec<KernelEvent>,
    /// The latest batch's promise and counters.
    pub latest: KernelBatch,
}

impl Observer {
    /// Loads the object with a ring of that size.
    pub fn start(ring_bytes: u32) -> Result<Self, KernelError> {
        Self::start_with(&KernelConfig {
            ring_bytes,
            ..KernelConfig::default()
        })
    }

    /// Loads the object.
    pub fn start_with(config: &KernelConfig) -> Result<Self, KernelError> {
        // Its errors are those of a kernel; a lock that cannot be had is none of them.
        let turn = Turn::wait().expect("a turn");
        let (source, receiver) = KernelSource::load(config)?;
        drop(turn);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .map_err(KernelError::Thread)?;
        Ok(Self {
            runtime,
            source,
            receiver,
            events: Vec::new(),
            latest: KernelBatch::default(),
        })
    }

    /// The object's owner.
    #[must_use]
    pub fn source(&self) -> &KernelSource {
        &self.source
    }

    /// The object's owner, to be told to do something.
    pub fn source_mut(&mut self) -> &mut KernelSource {
        &mut self.source
    }

    /// Waits for the next batch and takes it in.
    ///
    /// # Panics
    ///
    /// If none comes.
    pub fn next_batch(&mut self) -> usize {
        let batch = self
            .runtime
            .block_on(async { tokio::time::timeout(PATIENCE, self.receiver.recv()).await })
            .expect("batches keep coming, also when nothing happens")
            .expect("the stream runs as long as the source is there");
        let count = batch.events.len();
        self.events.extend_from_slice(&batch.events);
        self.latest = KernelBatch {
            events: Vec::new(),
            ..batch
        };
        count
    }

    /// Takes everything in that has happened until now, and returns the counters after it.
    pub fn settle(&mut self) -> EventCounters {
        let now = boot_time();
        while self.latest.drained_through < now {
            self.source.report();
            self.next_batch();
        }
        self.latest.counters
    }

    /// What has been said of a process, as letters in the order in which it came: `f`ork, `e`xec,
    /// `a`ttach, e`x`it.
    #[must_use]
    pub fn life_of(&self, pid: u32) -> String {
        self.of(pid).map(|(letter, _)| letter).collect()
    }

    /// The events of a process, with the letters of [`Observer::life_of`].
    pub fn of(&self, pid: u32) -> impl Iterator<Item = (char, &ProcessEvent)> {
        self.events
            .iter()
            .filter_map(|event| match event {
                KernelEvent::Fork(process) => Some(('f', process)),
                KernelEvent::Exec(process) => Some(('e', process)),
                KernelEvent::Attach(process) => Some(('a', process)),
                KernelEvent::Exit(process) => Some(('x', process)),
                KernelEvent::Cgroup(_) | KernelEvent::CgroupRemoved(_) | KernelEvent::Open(_) => {
                    None
                }
            })
            .filter(move |(_, process)| process.pid == Pid(pid))
    }

    /// The first event of a process with that letter.
    ///
    /// # Panics
    ///
    /// If there is none.
    #[must_use]
    pub fn event(&self, pid: u32, letter: char) -> &ProcessEvent {
        self.of(pid)
            .find_map(|(found, process)| (found == letter).then_some(process))
            .unwrap_or_else(|| {
                panic!(
                    "no `{letter}` of {pid}, whose life is `{}`",
                    self.life_of(pid)
                )
            })
    }

    /// The opens of devices by a process, in the order in which they came.
    pub fn opens_by(&self, pid: u32) -> impl Iterator<Item = &DeviceOpen> {
        self.events.iter().filter_map(move |event| match event {
            KernelEvent::Open(open) if open.process.pid == Pid(pid) => Some(open),
            _ => None,
        })
    }

    /// The announcements of cgroups, with their places among the events.
    pub fn announcements(&self) -> impl DoubleEndedIterator<Item = (usize, &CgroupAnnouncement)> {
        self.events
            .iter()
            .enumerate()
            .filter_map(|(at, event)| match event {
                KernelEvent::Cgroup(announcement) => Some((at, announcement)),
                _ => None,
            })
    }
}

/// A process of these tests, doing one of the things that `src/bin/test-process.rs` lists.
pub struct TestProcess {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl TestProcess {
    /// Starts it.
    pub fn start(program: &str, arguments: &[&str]) -> Result<Self> {
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {program} {arguments:?}"))?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().context("its output is piped")?;
        Ok(Self {
            child,
            stdin,
            stdout: BufReader::new(stdout),
        })
    }

    /// Its pid.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for its next line.
    pub fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        let count = self.stdout.read_line(&mut line)?;
        ensure!(count > 0, "process {} ended without a word", self.pid());
        Ok(line.trim_end().to_owned())
    }

    /// Sends it a line.
    pub fn say(&mut self, line: &str) -> Result<()> {
        let stdin = self.stdin.as_mut().context("its input is closed")?;
        writeln!(stdin, "{line}").context("cannot write to it")
    }

    /// Closes its input, which ends it, and waits for that.
    pub fn end(mut self) -> Result<()> {
        drop(self.stdin.take());
        let status = self.child.wait()?;
        ensure!(
            status.success(),
            "process {} ended with {status}",
            self.pid()
        );
        Ok(())
    }
}

impl Drop for TestProcess {
    fn drop(&mut self) {
        // After `end` both fail, since it is gone.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What `/proc` says of a process's start.
pub fn start_ticks(pid: u32) -> Result<StartTicks> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after_name = stat.rsplit_once(')').context("a name in parentheses")?.1;
    let ticks = after_name.split_ascii_whitespace().nth(19);
    Ok(StartTicks(ticks.context("field 22")?.parse()?))
}

/// A cgroup of these tests, removed when dropped. Processes in it must have ended by then.
pub struct TestCgroup {
    path: PathBuf,
}

impl TestCgroup {
    /// Makes one.
    pub fn make(parent: &Path, name: &str) -> Result<Self> {
        let path = parent.join(name);
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self { path })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its number: the inode of its directory.
    pub fn id(&self) -> Result<u64> {
        inode(&self.path)
    }

    /// Moves a process into it.
    pub fn take(&self, pid: u32) -> Result<()> {
        fs::write(self.path.join("cgroup.procs"), pid.to_string())
            .with_context(|| format!("cannot move {pid} to {}", self.path.display()))
    }
}

impl Drop for TestCgroup {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.path) {
            println!("left behind: {}: {error}", self.path.display());
        }
    }
}

/// The inode of a directory.
pub fn inode(path: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt;
    Ok(fs::metadata(path)
        .with_context(|| format!("cannot look at {}", path.display()))?
        .ino())
}

/// Where cgroup v2 is mounted.
pub fn unified_mount() -> Result<PathBuf> {
    mount(|kind, _| kind == "cgroup2")
}

/// Where a v1 controller is mounted, and the number of its hierarchy.
pub fn legacy_mount(controller: &str) -> Result<(PathBuf, u32)> {
    let path = mount(|kind, options| {
        kind == "cgroup" && options.split(',').any(|option| option == controller)
    })
    .with_context(|| format!("controller {controller}"))?;
    let table = fs::read_to_string("/proc/cgroups")?;
    let hierarchy = table
        .lines()
        .find_map(|line| {
            let mut columns = line.split_ascii_whitespace();
            (columns.next() == Some(controller)).then(|| columns.next())?
        })
        .with_context(|| format!("{controller} is not in /proc/cgroups"))?;
    Ok((path, hierarchy.parse()?))
}

/// The first mount whose type and options please.
fn mount(pleases: impl Fn(&str, &str) -> bool) -> Result<PathBuf> {
    fs::read_to_string("/proc/self/mounts")?
        .lines()
        .find_map(|line| {
            let columns: Vec<&str> = line.split(' ').collect();
            let (path, kind, options) = (columns.get(1)?, columns.get(2)?, columns.get(3)?);
            pleases(kind, options).then(|| PathBuf::from(path))
        })
        .context("not mounted")
}
