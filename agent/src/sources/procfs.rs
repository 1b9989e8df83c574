//! What is running, by a walk over `/proc`.
//!
//! The kernel's events tell of every birth and death from the moment they are attached; this tells
//! what was there before, and mends what was lost. It runs at the start, when the core asks, and on
//! a slow timer, always on a thread of its own: with 100,000 processes a walk takes the better part
//! of a second. The first waits for the eBPF object, so that nobody is born unseen between the two.
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
}

impl ScanError {
    /// The label value.
    fn class(&self) -> &'static str {
        match self {
            Self::List { source, .. } => match source.kind() {
                io::ErrorKind::PermissionDenied => "permission",
                io::ErrorKind::NotFound => "not_found",
                _ => "io",
            },
            Self::Empty { .. } => "empty",
        }
    }
}

/// Scans once `begin` is done, whenever `requests` asks for it and on the timer, until `shutdown` turns
/// true or nobody reads `out` any more.
///
/// `begin` is there for whoever is to be attached before the first scan: what is born between the two
/// is seen by both, and not by neither.
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
        loop {
            let begun = Instant::now();
            while requests.try_recv().is_ok() {}
            let walked = root.clone();
            let scanned = tokio::task::spawn_blocking(move || scan(walked, clock)).await;
            let (state, scan, pause) = match scanned {
                Ok(Ok(scan)) => (
                    SourceState::Up,
                    Some(Input::Processes(scan)),
                    config.interval.0,
                ),
                Ok(Err(error)) => (down(&error, clock), None, RETRY),
                // Only if the runtime is going down or the scan panicked; either way there is
                // nothing to report and the next round decides.
                Err(_) => {
                    warn!("procfs: the scan did not finish");
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

/// One walk over `root`. Blocks.
///
/// # Errors
/// If `root` cannot be listed, or lists processes of which none can be read.
pub fn scan(root: PathBuf, clock: fn() -> Clock) -> Result<ProcessScan, ScanError> {
    let started = clock().boot;
    let mut walk = Walk::default();
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
    files: HashMap<Box<[u8]>, Lines>,
    paths: HashMap<Box<[u8]>, Arc<str>>,
}

impl Interner {
    /// The lines of a `cgroup` file, `<hierarchy>:<controllers>:<path>` each. A path may contain
    /// colons, and anything else but newlines, which the kernel refuses in a cgroup's name. `None`
    /// if a line is none.
    fn lines(&mut self, file: &[u8]) -> Option<Lines> {
        if let Some(known) = self.files.get(file) {
            return Some(Arc::clone(known));
        }
        let mut lines = Vec::new();
        for line in file.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
            let mut fields = line.splitn(3, |b| *b == b':');
            let hierarchy = u32::try_from(decimal(fields.next()?)?).ok()?;
            let _controllers = fields.next()?;
            lines.push((hierarchy, self.path(fields.next()?)));
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
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use tokio::sync::watch;

    use super::*;
    use crate::sources::clock;

    /// A `stat` line of a process with this command, parent, flags and start.
    fn stat(comm: &str, parent: u32, flags: u64, start: u64) -> String {
        format!(
            "7 ({comm}) S {parent} 7 7 0 -1 {flags} 1 2 3 4 5 6 7 8 20 0 1 0 {start} 9 10 \
             18446744073709551615 0 0 0\n"
        )
    }

    /// [`stat`] of a thread that is on its way out or a zombie, of a process with so many threads.
    fn exiting(comm: &str, threads: u32, start: u64) -> String {
        let text = stat(comm, 1, PF_EXITING, start);
        text.replace(" 20 0 1 0 ", &format!(" 20 0 {threads} 0 "))
    }

    fn proc_of(files: &[(u32, &str, &str)]) -> TempDir {
        let root = tempfile::tempdir().unwrap();
        for (pid, stat, cgroup) in files {
            let directory = root.path().join(pid.to_string());
            fs::create_dir(&directory).unwrap();
            fs::write(directory.join("stat"), stat).unwrap();
            fs::write(directory.join("cgroup"), cgroup).unwrap();
        }
        // What else there is in a /proc.
        fs::create_dir(root.path().join("sys")).unwrap();
        fs::write(root.path().join("uptime"), "1 1\n").unwrap();
        fs::create_dir(root.path().join("12x")).unwrap();
        root
    }

    #[test]
    fn a_stat_is_read_whatever_the_command_is_called() {
        let expected = Some(Stat {
            parent: Pid(41),
            flags: 4_194_560,
            threads: 1,
            start: StartTicks(1234),
        });
        for comm in [
            "sleep",
            "",
            ") S 1 1",
            "a b",
            "(((",
            ")))",
            "new\nline",
            "Web Content)",
        ] {
            let text = stat(comm, 41, 4_194_560, 1234);
            assert_eq!(Stat::parse(text.as_bytes()), expected, "{comm:?}");
        }
        assert_eq!(
            Stat::parse(b"7 (\xff\xfe) S 41 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 1234 9"),
            expected
        );
    }

    #[test]
    fn a_stat_that_is_none_is_refused() {
        let whole = stat("sleep", 41, 0, 1234);
        let start = whole.find("1234").unwrap();
        for cut in 0..start {
            assert_eq!(Stat::parse(&whole.as_bytes()[..cut]), None, "{cut}");
        }
        for text in [
            "7 (x) S -1 7 7 0 -1 0 1 2 3 4 5 6 7 8 20 0 1 0 1 9",
            "7 (x) S 4294967296 7 7 0 -1 0 1 2 3 4 5 6 7 8 20 0 1 0 1 9",
            "7 (x) S 1 7 7 0 -1 0 1 2 3 4 5 6 7 8 20 0 1 0 +1 9",
            "7 (x) S 1 7 7 0 -1 0 1 2 3 4 5 6 7 8 20 0 1 0 18446744073709551616 9",
        ] {
            assert_eq!(Stat::parse(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn a_walk_finds_processes_and_counts_what_it_could_not_read() {
        let docker = "4:memory:/docker/x\n0::/docker/x\n";
        let root = proc_of(&[
            (1, &stat("init", 0, 0, 1), "0::/init.scope\n"),
            (2, &stat("kthreadd", 0, PF_KTHREAD, 1), "0::/\n"),
            (7, &stat("train)\n", 1, 0, 77), docker),
            (8, &stat("train", 7, 0, 78), docker),
            (9, "garbage", docker),
            (10, &stat("x", 1, 0, 1), "no colons"),
            (11, &stat("x", 1, 0, 1), "1:name=systemd:/a:b\n"),
        ]);
        fs::create_dir(root.path().join("12")).unwrap();

        let scan = scan(root.path().to_owned(), clock::now).unwrap();
        assert!(scan.started <= scan.finished);
        assert_eq!(scan.skipped, 3);
        let mut unread = scan.unread.clone();
        unread.sort_unstable();
        // The one that has no files has vanished.
        assert_eq!(unread, [Pid(9), Pid(10)]);
        let mut found: Vec<_> = scan
            .processes
            .iter()
            .map(|p| (p.pid.0, p.parent.0, p.start.0, p.cgroups.to_vec()))
            .collect();
        found.sort();
        let docker = vec![(4, "/docker/x".into()), (0, "/docker/x".into())];
        assert_eq!(
            found,
            [
                (1, 0, 1, vec![(0, "/init.scope".into())]),
                (7, 1, 77, docker.clone()),
                (8, 7, 78, docker),
                (11, 1, 1, vec![(1, "/a:b".into())]),
            ]
        );
        let of = |pid| {
            let found = scan.processes.iter().find(|p| p.pid == Pid(pid));
            Arc::clone(&found.unwrap().cgroups)
        };
        assert!(Arc::ptr_eq(&of(7), &of(8)), "equal files are kept once");
        assert!(Arc::ptr_eq(&of(7)[0].1, &of(7)[1].1), "equal paths too");
    }

    #[test]
    fn a_dead_leader_does_not_move_its_process_to_the_root() {
        // What the kernel shows of a zombie under v1, and of its live thread.
        let (zombie, docker) = ("4:memory:/\n0::/\n", "4:memory:/docker/x\n0::/\n");
        let root = proc_of(&[
            (1, &stat("init", 0, 0, 1), "0::/\n"),
            (7, &exiting("train", 3, 77), zombie),
        ]);
        let tasks = root.path().join("7/task");
        for (thread, stat, cgroup) in [
            (7, exiting("train", 3, 77), zombie),
            (8, exiting("train", 3, 78), zombie),
            (9, stat("train", 1, 0, 79), docker),
        ] {
            let directory = tasks.join(thread.to_string());
            fs::create_dir_all(&directory).unwrap();
            fs::write(directory.join("stat"), stat).unwrap();
            fs::write(directory.join("cgroup"), cgroup).unwrap();
        }
        let scan = scan(root.path().to_owned(), clock::now).unwrap();
        assert_eq!((scan.processes.len(), scan.skipped), (2, 0));
        let found = scan.processes.iter().find(|p| p.pid == Pid(7)).unwrap();
        assert_eq!((found.start.0, &*found.cgroups[0].1), (77, "/docker/x"));
    }

    #[test]
    fn a_process_without_a_live_thread_is_left_out() {
        let root = proc_of(&[
            (1, &stat("init", 0, 0, 1), "0::/\n"),
            (7, &exiting("train", 1, 77), "4:memory:/\n0::/docker/x\n"),
            (8, &exiting("train", 2, 78), "4:memory:/\n0::/docker/x\n"),
        ]);
        let directory = root.path().join("8/task/8");
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("stat"), exiting("train", 2, 78)).unwrap();
        let scan = scan(root.path().to_owned(), clock::now).unwrap();
        let pids: Vec<u32> = scan.processes.iter().map(|p| p.pid.0).collect();
        assert_eq!((pids, scan.skipped), (vec![1], 0));
    }

    #[test]
    fn cgroups_that_are_not_utf_8_stay_different() {
        let mut cgroups = Interner::default();
        let mut path = |file: &[u8]| cgroups.lines(file).unwrap()[0].1.to_string();
        assert_eq!(path(b"0::/job-\xff\n"), r"/job-\xff");
        assert_eq!(path(b"0::/job-\xfe\n"), r"/job-\xfe");
        assert_eq!(path(b"0::/job-\\xff\n"), r"/job-\x5cxff");
        assert_eq!(path(b"0::/a\\x2db.scope\n"), r"/a\x2db.scope");
    }

    #[test]
    fn a_file_without_an_end_is_skipped() {
        let endless = format!("0::/{}\n", "x".repeat(MAX_FILE));
        let root = proc_of(&[
            (1, &stat("init", 0, 0, 1), "0::/\n"),
            (2, &stat("x", 1, 0, 1), &endless),
        ]);
        let scan = scan(root.path().to_owned(), clock::now).unwrap();
        assert_eq!((scan.processes.len(), scan.skipped), (1, 1));
        assert_eq!(scan.unread, [Pid(2)], "a failed read is not a death");
    }

    #[test]
    fn a_process_whose_files_cannot_be_read_is_told_apart_from_one_that_is_gone() {
        let root = proc_of(&[
            (1, &stat("init", 0, 0, 1), "0::/\n"),
            (7, &exiting("train", 2, 77), "0::/\n"),
        ]);
        let make = |path: &str| fs::create_dir_all(root.path().join(path)).unwrap();
        // A directory opens as a file does, and its read fails: EISDIR.
        make("2/stat");
        fs::create_dir(root.path().join("3")).unwrap();
        fs::write(root.path().join("3/stat"), stat("x", 1, 0, 3)).unwrap();
        make("3/cgroup");
        // Nor can a process be told from a thread of which nothing is known.
        make("7/task/8/stat");
        let scan = scan(root.path().to_owned(), clock::now).unwrap();
        let mut unread = scan.unread.clone();
        unread.sort_unstable();
        assert_eq!(unread, [Pid(2), Pid(3), Pid(7)]);
        assert_eq!((scan.processes.len(), scan.skipped), (1, 3));
    }

    #[test]
    fn a_root_that_is_no_proc_is_an_error() {
        let root = proc_of(&[]);
        let error = scan(root.path().to_owned(), clock::now).unwrap_err();
        assert_eq!(error.class(), "empty");
        let error = scan(root.path().join("nowhere"), clock::now).unwrap_err();
        assert_eq!(error.class(), "not_found");
    }

    #[test]
    fn the_machines_own_proc_shows_this_process() {
        let scan = scan(PathBuf::from("/proc"), clock::now).unwrap();
        let own = scan
            .processes
            .iter()
            .find(|p| p.pid == Pid(std::process::id()))
            .unwrap();
        assert!(own.start.earliest() <= scan.started);
        assert!(!own.cgroups.is_empty());
        assert_eq!(own.parent.0, std::os::unix::process::parent_id());
    }

    /// It ran 344 ms before the eBPF object was attached, and who was born in between was unknown.
    #[tokio::test(start_paused = true)]
    async fn the_first_scan_waits_for_the_kernel_source() {
        let root = proc_of(&[(1, &stat("init", 0, 0, 1), "0::/\n")]);
        let config = config::Procfs::default();
        let (ask, requests) = mpsc::channel(8);
        let (out, mut inputs) = mpsc::channel(8);
        let (stop, shutdown) = watch::channel(false);
        let (tried, begin) = tokio::sync::oneshot::channel();
        let begin = async {
            let _: Result<(), _> = begin.await;
        };
        let task = tokio::spawn(run(
            config,
            root.path().to_owned(),
            begin,
            requests,
            Io {
                out,
                clock: clock::now,
                shutdown,
            },
        ));
        // Not even whoever asks has one. The clock stands still, so this waits for all that can run.
        ask.send(()).await.unwrap();
        let early = tokio::time::timeout(Duration::from_secs(3600), inputs.recv()).await;
        assert!(early.is_err(), "{early:?}");
        let attached = clock::now().boot;
        tried.send(()).unwrap();
        let scan = loop {
            match inputs.recv().await.unwrap() {
                Input::Processes(scan) => break scan,
                Input::Health(health) => assert_eq!(health.state, SourceState::Up),
                other => panic!("unexpected {other:?}"),
            }
        };
        assert!(scan.started >= attached);
        stop.send(true).unwrap();
        task.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn requests_are_gathered_and_failures_are_reported_and_mended() {
        let root = proc_of(&[]);
        let config = config::Procfs::default();
        let (ask, requests) = mpsc::channel(8);
        let (out, mut inputs) = mpsc::channel(8);
        let (stop, shutdown) = watch::channel(false);
        let begin = std::future::ready(());
        let task = tokio::spawn(run(
            config,
            root.path().to_owned(),
            begin,
            requests,
            Io {
                out,
                clock: clock::now,
                shutdown,
            },
        ));

        // Nothing there yet; then there is, and the source notices by itself.
        let Some(Input::Health(health)) = inputs.recv().await else {
            panic!("expected a health report");
        };
        assert_eq!(health.source, SourceId::Procfs);
        assert_eq!(health.state.as_str(), "down");
        let directory = root.path().join("1");
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("cgroup"), "0::/\n").unwrap();
        fs::write(directory.join("stat"), stat("init", 0, 0, 1)).unwrap();
        loop {
            match inputs.recv().await.unwrap() {
                Input::Health(health) if health.state == SourceState::Up => break,
                // It is down for another while as long as the files are being written.
                Input::Health(health) => assert_eq!(health.state.as_str(), "down"),
                other => panic!("unexpected {other:?}"),
            }
        }
        assert!(matches!(inputs.recv().await, Some(Input::Processes(_))));

        // Five requests, one scan; the next comes with the timer.
        let asked = Instant::now();
        for _ in 0..5 {
            ask.send(()).await.unwrap();
        }
        assert!(matches!(inputs.recv().await, Some(Input::Processes(_))));
        assert!(asked.elapsed() < Duration::from_secs(60), "on request");
        let scanned = Instant::now();
        assert!(matches!(inputs.recv().await, Some(Input::Processes(_))));
        assert!(scanned.elapsed() > Duration::from_secs(50), "on the timer");

        // Without anyone to ask, the timer alone.
        drop(ask);
        assert!(matches!(inputs.recv().await, Some(Input::Processes(_))));
        stop.send(true).unwrap();
        task.await.unwrap();
    }
}
