//! The append-only log of a state directory, and the lock that makes it a single history.
//!
//! A writer takes its time stamp and appends under an exclusive lock; a reader takes its "now" and
//! reads to the end under a shared one. So a reader at time *t* has seen every event before *t*, and
//! whatever it computes about instants before *t* stays true: all clients see one GPU.
//!
//! Units: wall-clock microseconds, boot-clock nanoseconds.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::time::{ClockId, clock_gettime};

use crate::event::{Entry, Event};
use crate::machine::Machine;

const MACHINE: &str = "machine.json";
const LOG: &str = "events.jsonl";

/// What can go wrong with a state directory.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A file could not be read, written or locked.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is not what this program writes.
    #[error("{path} is malformed at byte {offset}")]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// Where the offending line begins.
        offset: u64,
        /// What the parser said.
        source: serde_json::Error,
    },
    /// The directory already holds a scenario.
    #[error("{0} already holds a scenario")]
    Exists(PathBuf),
    /// A job or a fault named a GPU that the machine lacks.
    #[error("no gpu {found}: the machine has {count}")]
    NoSuchGpu {
        /// The index asked for.
        found: u32,
        /// How many there are.
        count: usize,
    },
    /// A share outside 0 to 1.
    #[error("{engine} share is {found}, allowed is 0 to 1")]
    Share {
        /// Which engine.
        engine: &'static str,
        /// What was asked for.
        found: f64,
    },
}

fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> StateError {
    let path = path.to_owned();
    move |source| StateError::Io {
        action,
        path,
        source,
    }
}

/// Wall clock in microseconds.
#[must_use]
pub fn wall_us() -> u64 {
    let now = clock_gettime(ClockId::Realtime);
    u64::try_from(now.tv_sec * 1_000_000 + now.tv_nsec / 1_000).unwrap_or(0)
}

/// Boot clock in nanoseconds.
#[must_use]
pub fn boot_ns() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    u64::try_from(now.tv_sec * 1_000_000_000 + now.tv_nsec).unwrap_or(0)
}

/// Inode of this process's pid namespace; 0 where /proc does not say.
#[must_use]
pub(crate) fn pid_namespace() -> u64 {
    fs::metadata("/proc/self/ns/pid").map_or(0, |meta| meta.ino())
}

/// Writes a new state directory: first the log, then, in one step, the machine. A client that finds
/// no machine says that no driver is loaded.
pub(crate) fn create(dir: &Path, machine: &Machine, entries: &[Entry]) -> Result<(), StateError> {
    fs::create_dir_all(dir).map_err(io("create", dir))?;
    let path = dir.join(LOG);
    let mut text = Vec::new();
    for entry in entries {
        push_line(&mut text, entry);
    }
    let mut log = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&path)
        .map_err(|source| match source.kind() {
            std::io::ErrorKind::AlreadyExists => StateError::Exists(dir.to_owned()),
            _ => io("create", &path)(source),
        })?;
    log.write_all(&text).map_err(io("write", &path))?;
    let path = dir.join(MACHINE);
    let draft = dir.join("machine.json.new");
    fs::write(
        &draft,
        serde_json::to_vec_pretty(machine).expect("plain data becomes JSON"),
    )
    .map_err(io("write", &draft))?;
    fs::rename(&draft, &path).map_err(io("write", &path))
}

pub(crate) fn read_machine(dir: &Path) -> Result<Machine, StateError> {
    let path = dir.join(MACHINE);
    let text = fs::read(&path).map_err(io("read", &path))?;
    serde_json::from_slice(&text).map_err(|source| StateError::Malformed {
        path,
        offset: 0,
        source,
    })
}

fn push_line(text: &mut Vec<u8>, entry: &Entry) {
    serde_json::to_writer(&mut *text, entry).expect("plain data becomes JSON in memory");
    text.push(b'\n');
}

/// Appends to a log. Several writers, in several processes, may share one.
#[derive(Debug)]
pub(crate) struct LogWriter {
    path: PathBuf,
}

impl LogWriter {
    pub(crate) fn open(dir: &Path) -> Self {
        Self {
            path: dir.join(LOG),
        }
    }

    /// Appends what `event` makes of the new line's offset, which no other line has and which
    /// therefore serves as an identity, and returns the entry with its time.
    pub(crate) fn append(&self, event: impl FnOnce(u64) -> Event) -> Result<Entry, StateError> {
        // Opened anew each time: the lock belongs to the open file, so threads of one process
        // exclude each other too.
        let mut file = OpenOptions::new()
            .append(true)
            .open(&self.path)
            .map_err(io("open", &self.path))?;
        flock(&file, FlockOperation::LockExclusive)
            .map_err(|errno| io("lock", &self.path)(errno.into()))?;
        let offset = file.metadata().map_err(io("inspect", &self.path))?.len();
        let entry = Entry {
            at_us: wall_us(),
            boot_ns: boot_ns(),
            event: event(offset),
        };
        let mut line = Vec::new();
        push_line(&mut line, &entry);
        file.write_all(&line).map_err(io("append to", &self.path))?;
        Ok(entry)
    }
}

/// Follows a log.
#[derive(Debug)]
pub(crate) struct LogReader {
    path: PathBuf,
    file: File,
    offset: u64,
}

impl LogReader {
    pub(crate) fn open(dir: &Path) -> Result<Self, StateError> {
        let path = dir.join(LOG);
        let file = File::open(&path).map_err(io("open", &path))?;
        Ok(Self {
            path,
            file,
            offset: 0,
        })
    }

    /// The log's file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Hands every new entry to `each`, in order, and returns the wall clock before which no more
    /// will come.
    pub(crate) fn catch_up(&mut self, mut each: impl FnMut(Entry)) -> Result<u64, StateError> {
        flock(&self.file, FlockOperation::LockShared)
            .map_err(|errno| io("lock", &self.path)(errno.into()))?;
        let now = wall_us();
        let news = self.read_new();
        let unlocked = flock(&self.file, FlockOperation::Unlock);
        let news = news?;
        unlocked.map_err(|errno| io("unlock", &self.path)(errno.into()))?;
        for line in news.split_inclusive(|&byte| byte == b'\n') {
            if !line.ends_with(b"\n") {
                break; // A writer died in the middle of it.
            }
            let offset = self.offset;
            self.offset += line.len() as u64;
            each(
                serde_json::from_slice(line).map_err(|source| StateError::Malformed {
                    path: self.path.clone(),
                    offset,
                    source,
                })?,
            );
        }
        Ok(now)
    }

    fn read_new(&self) -> Result<Vec<u8>, StateError> {
        let end = self
            .file
            .metadata()
            .map_err(io("inspect", &self.path))?
            .len();
        let mut news = vec![0; usize::try_from(end.saturating_sub(self.offset)).unwrap_or(0)];
        self.file
            .read_exact_at(&mut news, self.offset)
            .map_err(io("read", &self.path))?;
        Ok(news)
    }
}
