//! Finds the running processes by scanning `/proc`.
//!
//! The kernel's events report every start and exit from the moment the eBPF object is attached. A
//! scan shows what was running before, and makes up for lost events. It runs at the start, when the
//! core asks, and on a slow timer, always on a thread of its own: with 100,000 processes a walk
//! takes the better part of a second. The first waits for the eBPF object, so that nobody is born
//! unseen between the two.
//!
//! A process is read through an open directory, which stays bound to that process: when the pid is
//! taken by another one in the middle of it, the read fails and nothing of two processes is mixed.
//!
//! A process lives as long as one of its threads does, and is where a live thread is: of a leader
//! that is gone the kernel shows the root cgroup in v1's hierarchies, whoever's container it was in.
//! A process without a live thread is left out, as one that is dead: zombies use no GPU.
//!
//! It reads no command lines, no environments and no memory maps. Kernel threads are left out: they
//! use no GPU, and there can be thousands.
//!
//! Units: start times in ticks of [`USER_HZ`](crate::core::model::USER_HZ) since boot.

pub mod cgroup_namespace;

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{CWD, Dir, Mode, OFlags, openat};
use rustix::io::Errno;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tracing::warn;

use self::cgroup_namespace::{CgroupNamespace, CgroupNamespaceError};
use super::Io;
use super::health::{Closed, HealthReporter};
use crate::config;
use crate::core::input::{Input, ProcessScan, ScannedProcess};
use crate::core::model::{BootTime, Clock, Pid, SourceId, SourceState, StartTicks, text};

/// Two scans begin at least this far apart, however many are asked for.
const MIN_GAP: Duration = Duration::from_secs(1);
/// How soon a scan that failed altogether is tried again.
const RETRY: Duration = Duration::from_secs(5);
/// `PF_KTHREAD` of the kernel's `sched.h`, in field 9 of `stat`.
const PF_KTHREAD: u64 = 0x0020_0000;
/// `PF_EXITING`: the thread is on its way out, or a zombie.
const PF_EXITING: u64 = 0x0000_0004;
/// Longest file that is read. A `stat` has some 300 bytes; a `cgroup` at most one path of 4 KiB a
/// hierarchy, of which there are at most a dozen and a half.
const MAX_FILE: usize = 128 * 1024;

/// The proc file system of the initial pid namespace.
pub const ROOT: &str = "/proc";

/// Why no scan could be made.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// The root cannot be opened or listed.
    #[error("cannot list {root}: {source}")]
    List {
        /// The root of the proc file system.
        root: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Not one process was found, and at least the reader's own must be there.
    #[error("{root} lists no process: found {skipped} that could not be read")]
    Empty {
        /// The root of the proc file system.
        root: PathBuf,
        /// Entries that look like processes.
        skipped: u32,
    },
    /// The cgroups that it shows cannot be told from others.
    #[error(transparent)]
    CgroupNamespace(#[from] CgroupNamespaceError),
}

impl ScanError {
    /// Returns the value as used in labels.
    fn class(&self) -> &'static str {
        match self {
            Self::List { source, .. } => match source.kind() {
                io::ErrorKind::PermissionDenied => "permission",
                io::ErrorKind::NotFound => "not_found",
                _ => "io",
            },
            Self::Empty { .. } => "empty",
            Self::CgroupNamespace(_) => "cgroup_namespace",
        }
    }
}

/// Scans once `begin` is done, whenever `requests` asks for it and on the timer, until `shutdown` turns
/// true or nobody reads `out` any more.
///
/// `begin` completes once the eBPF object is attached. A process that starts between that and the
/// scan is then seen by both instead of by neither.
///
/// Requests that come before a scan has begun are served by that one; a request that comes while
/// one runs is served by the next, since the walk may already have passed what it is about.
pub async fn run(
    config: config::Procfs,
    root: PathBuf,
    begin: impl Future<Output = ()>,
    mut requests: mpsc::Receiver<()>,
    io: Io,
) {
    let Io {
        out,
        clock,
        shutdown,
    } = io;
    let follow = async {
        begin.await;
        let mut health = HealthReporter::new(SourceId::Procfs, out.clone(), clock);
        let place = root.to_string_lossy();
        let mut open = true;
        let mut namespace: Option<CgroupNamespace> = None;
        loop {
            let begun = Instant::now();
            while requests.try_recv().is_ok() {}
            let (walked, host_root) = (root.clone(), config.host_root.clone());
            let known = namespace.clone();
            let scanned = tokio::task::spawn_blocking(move || {
                let namespace = known.map_or_else(|| CgroupNamespace::find(&host_root), Ok)?;
                Ok((scan_in(walked, &namespace, clock)?, namespace))
            });
            let scanned = scanned.await;
            let (state, scan, pause) = match scanned {
                Ok(Ok((scan, found))) => {
                    namespace = Some(found);
                    (
                        SourceState::Up,
                        Some(Input::Processes(scan)),
                        config.interval.0,
                    )
                }
                Ok(Err(error)) => (down(&error, clock), None, RETRY),
                // Only if the runtime is going down or the scan panicked; either way there is
                // nothing to report and the next round decides.
                Err(_) => {
                    warn!("procfs: the scan was interrupted");
                    sleep_until(begun + MIN_GAP).await;
                    continue;
                }
            };
            if let Err(Closed) = health.report(state, &place).await {
                return;
            }
            if let Some(scan) = scan
                && out.send(scan).await.is_err()
            {
                return;
            }
            tokio::select! {
                () = sleep_until(begun + pause) => {}
                request = requests.recv(), if open => open = request.is_some(),
            }
            sleep_until(begun + MIN_GAP).await;
        }
    };
    Io::until_stopped(shutdown, follow).await;
}

fn down(error: &ScanError, clock: fn() -> Clock) -> SourceState {
    SourceState::Down {
        class: error.class().into(),
        reason: error.to_string().into(),
        next_retry: Some(clock().boot.plus(RETRY.into())),
    }
}

/// One walk over `root`, in the initial cgroup namespace. Blocks.
///
/// # Errors
/// If `root` cannot be listed, or lists processes of which none can be read.
pub fn scan(root: PathBuf, clock: fn() -> Clock) -> Result<ProcessScan, ScanError> {
    scan_in(root, &CgroupNamespace::default(), clock)
}

fn scan_in(
    root: PathBuf,
    namespace: &CgroupNamespace,
    clock: fn() -> Clock,
) -> Result<ProcessScan, ScanError> {
    let started = clock().boot;
    let mut walk = Walk {
        cgroups: Interner::new(namespace),
        ..Walk::default()
    };
    if let Err(error) = walk.over(&root) {
        return Err(ScanError::List {
            root,
            source: error.into(),
        });
    }
    if walk.processes.is_empty() {
        return Err(ScanError::Empty {
            root,
            skipped: walk.skipped,
        });
    }
    Ok(walk.finish(started, clock().boot))
}

#[derive(Default)]
struct Walk {
    processes: Vec<ScannedProcess>,
    skipped: u32,
    unread: Vec<Pid>,
    cgroups: Interner,
    /// Reused from file to file.
    buffer: Vec<u8>,
}

impl Walk {
    fn over(&mut self, root: &std::path::Path) -> Result<(), Errno> {
        let root = open(CWD, root, OFlags::DIRECTORY)?;
        for entry in Dir::read_from(&root)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            let Some(pid) = decimal(name).and_then(|pid| u32::try_from(pid).ok()) else {
                continue;
            };
            match self.process(&root, entry.file_name(), Pid(pid)) {
                Ok(Some(process)) => self.processes.push(process),
                Ok(None) => continue,
                Err(Unseen::Vanished) => self.skipped = self.skipped.saturating_add(1),
                Err(Unseen::Unread) => {
                    self.skipped = self.skipped.saturating_add(1);
                    self.unread.push(Pid(pid));
                }
            }
        }
        Ok(())
    }

    /// One process; `None` for a kernel thread and for one without a live thread.
    fn process(
        &mut self,
        root: &OwnedFd,
        name: &std::ffi::CStr,
        pid: Pid,
    ) -> Result<Option<ScannedProcess>, Unseen> {
        let directory = open(root, name, OFlags::DIRECTORY)?;
        self.read(&directory, "stat")?;
        let stat = Stat::parse(&self.buffer).ok_or(Unseen::Unread)?;
        if stat.flags & PF_KTHREAD != 0 {
            return Ok(None);
        }
        // The leader is not the process: it may be gone while other threads live on.
        let live = match stat.is_exiting() {
            false => Some(directory),
            true if stat.threads > 1 => self.live_thread(&directory)?,
            true => None,
        };
        let Some(live) = live else {
            return Ok(None);
        };
        self.read(&live, "cgroup")?;
        let cgroups = self.cgroups.lines(&self.buffer).ok_or(Unseen::Unread)?;
        Ok(Some(ScannedProcess {
            pid,
            parent: stat.parent,
            start: stat.start,
            cgroups,
        }))
    }

    /// A thread of a process that is not on its way out, if there is one. A thread that cannot be read
    /// may be the one, unless another is found.
    fn live_thread(&mut self, process: &OwnedFd) -> Result<Option<OwnedFd>, Unseen> {
        let threads = open(process, "task", OFlags::DIRECTORY)?;
        let mut unread = false;
        for entry in Dir::read_from(&threads)? {
            let entry = entry?;
            if decimal(entry.file_name().to_bytes()).is_none() {
                continue;
            }
            match self.thread(&threads, entry.file_name()) {
                Ok(Some(thread)) => return Ok(Some(thread)),
                // One that is gone by now is not the one that is looked for.
                Ok(None) | Err(Unseen::Vanished) => {}
                Err(Unseen::Unread) => unread = true,
            }
        }
        if unread {
            return Err(Unseen::Unread);
        }
        Ok(None)
    }

    /// One thread, if it is not on its way out.
    fn thread(
        &mut self,
        threads: &OwnedFd,
        name: &std::ffi::CStr,
    ) -> Result<Option<OwnedFd>, Unseen> {
        let thread = open(threads, name, OFlags::DIRECTORY)?;
        self.read(&thread, "stat")?;
        let stat = Stat::parse(&self.buffer).ok_or(Unseen::Unread)?;
        Ok((!stat.is_exiting()).then_some(thread))
    }

    /// Reads a whole file into the buffer. One that has no end in sight is not read.
    fn read(&mut self, directory: &OwnedFd, name: &str) -> Result<(), Unseen> {
        let file = open(directory, name, OFlags::empty())?;
        self.buffer.clear();
        loop {
            let filled = self.buffer.len();
            if filled >= MAX_FILE {
                return Err(Unseen::Unread);
            }
            self.buffer.resize(filled.saturating_mul(2).max(4096), 0);
            let read =
                rustix::io::retry_on_intr(|| rustix::io::read(&file, &mut self.buffer[filled..]));
            self.buffer.truncate(filled + read.unwrap_or(0));
            if read? == 0 {
                return Ok(());
            }
        }
    }

    fn finish(self, started: BootTime, finished: BootTime) -> ProcessScan {
        ProcessScan {
            started,
            finished,
            processes: self.processes,
            skipped: self.skipped,
            unread: self.unread,
        }
    }
}

/// Why a process of the directory is not in the scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unseen {
    /// It has died since the directory was listed.
    Vanished,
    /// Its files could not be read, or are not what they should be. It may be alive: a failed read is
    /// not a death.
    Unread,
}

impl From<Errno> for Unseen {
    fn from(errno: Errno) -> Self {
        match errno {
            // Opening a file of a process that is gone, and reading one that was opened before.
            Errno::NOENT | Errno::SRCH => Self::Vanished,
            _ => Self::Unread,
        }
    }
}

fn open(
    at: impl std::os::fd::AsFd,
    path: impl rustix::path::Arg,
    flags: OFlags,
) -> Result<OwnedFd, Errno> {
    openat(
        at,
        path,
        OFlags::RDONLY | OFlags::CLOEXEC | flags,
        Mode::empty(),
    )
}

/// What is taken from `/proc/<pid>/stat`.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    parent: Pid,
    flags: u64,
    threads: u64,
    start: StartTicks,
}

impl Stat {
    const fn is_exiting(&self) -> bool {
        self.flags & PF_EXITING != 0
    }

    /// The second field is the command in parentheses, and a process may put anything into that,
    /// parentheses, spaces and newlines included; what follows the last parenthesis is the kernel's.
    fn parse(text: &[u8]) -> Option<Self> {
        let end = text.iter().rposition(|b| *b == b')')?;
        let mut fields = text[end + 1..]
            .split(u8::is_ascii_whitespace)
            .filter(|field| !field.is_empty());
        // Fields 4, 9, 20 and 22; the first one here is field 3.
        let parent = decimal(fields.nth(1)?)?;
        let flags = decimal(fields.nth(4)?)?;
        let threads = decimal(fields.nth(10)?)?;
        let start = decimal(fields.nth(1)?)?;
        Some(Self {
            parent: Pid(u32::try_from(parent).ok()?),
            flags,
            threads,
            start: StartTicks(start),
        })
    }
}

/// A number and nothing else.
fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

type Lines = Arc<[(u32, Arc<str>)]>;

/// Files and paths that have been met in this walk, each kept once: processes are many, cgroups few.
#[derive(Default)]
struct Interner {
    namespace: CgroupNamespace,
    files: HashMap<Box<[u8]>, Lines>,
    paths: HashMap<Box<[u8]>, Arc<str>>,
}

impl Interner {
    fn new(namespace: &CgroupNamespace) -> Self {
        Self {
            namespace: namespace.clone(),
            ..Self::default()
        }
    }

    /// The lines of a `cgroup` file, `<hierarchy>:<controllers>:<path>` each. A path may contain
    /// colons, and anything else but newlines, which the kernel refuses in a cgroup's name. `None`
    /// if a line is none, or its path on the host cannot be found out. Hierarchies that are not mounted are
    /// left out.
    fn lines(&mut self, file: &[u8]) -> Option<Lines> {
        if let Some(known) = self.files.get(file) {
            return Some(Arc::clone(known));
        }
        let mut lines = Vec::new();
        for line in file.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
            let mut fields = line.splitn(3, |b| *b == b':');
            let hierarchy = u32::try_from(decimal(fields.next()?)?).ok()?;
            let _controllers = fields.next()?;
            let path = fields.next()?;
            if self.namespace.knows(hierarchy) {
                // With one line less, another could make it a process of the host's.
                let path = self.namespace.on_host(hierarchy, path)?;
                lines.push((hierarchy, self.path(&path)));
            } else if path != b"/" {
                // It may name a container, and without it the process would be the host's.
                return None;
            }
        }
        // Without a path the process would be taken for one of the host's root.
        if lines.is_empty() && !self.namespace.is_initial() {
            return None;
        }
        let lines: Lines = lines.into();
        self.files.insert(file.into(), Arc::clone(&lines));
        Some(lines)
    }

    fn path(&mut self, path: &[u8]) -> Arc<str> {
        if let Some(known) = self.paths.get(path) {
            return Arc::clone(known);
        }
        let text: Arc<str> = text::escaped(path).into();
        self.paths.insert(path.into(), Arc::clone(&text));
        text
    }
}

/// For the fuzz target: reads a file, as each of those that are read.
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub fn fuzz(file: &[u8]) {
    let _ = Stat::parse(file);
    let mut interner = Interner::default();
    let lines = interner.lines(file);
    assert_eq!(lines, interner.lines(file));
}

#[cfg(test)]
mod tests;
