//! Shared code of identity sources that read files: opening files below the host's root safely, and
//! a task that answers lookups from them.
//!
//! Files have no connection to lose, so such a source does nothing until the core asks, apart from
//! looking now and then whether its folders are there. A lookup is answered on a thread that may
//! block; a disk that hangs is a time-out of this source and affects nothing else. After an answer
//! about an id the files are not read again for that id for a while. This time grows with each
//! answer. It applies to ids that were not found, and to answers that the core could not use. The
//! core repeats its lookup while it needs a name, so this module needs no timer.
//!
//! It refuses to follow a link out of the folder that it reads in, to open what is no regular file,
//! and to read more than a bounded part of any.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, ErrorKind, Read as _};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{Dir, FileType, Mode, OFlags, ResolveFlags, fstat, open, openat2};
use rustix::io::Errno;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tracing::warn;

use super::{Counters, IdentityIo, clean};
use crate::core::input::{ContainerIdentity, IdentitySource, IdentityUpdate, Input};
use crate::core::model::{BootTime, Clock, ContainerId, SourceState};
use crate::sources::Io;
use crate::sources::health::{Closed, HealthReporter};

/// Longest file that is read. A pod's `config.json` has some 10 KiB.
pub(super) const MAX_FILE_BYTES: u64 = 1 << 20;
/// Lookups answered in one go.
const BATCH: usize = 64;
/// Ids remembered as answered. Beyond it the answers that hold least long are forgotten, which costs
/// a read.
const MAX_ANSWERED: usize = 4096;
/// How long the first answer about an id holds, the second, …; the last one's time holds from there
/// on.
const HOLDS: [Duration; 4] = [
    Duration::from_secs(1),
    Duration::from_secs(4),
    Duration::from_secs(16),
    Duration::from_secs(60),
];
/// Times that an open is tried which a rename disturbs.
const OPEN_TRIES: usize = 8;

/// Timeouts and intervals. Only tests change it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// How long one round of reading may take before the source is down.
    pub timeout: Duration,
    /// How often to look whether the folders are there.
    pub look_interval: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(5),
            look_interval: Duration::from_secs(10),
        }
    }
}

/// Why a file or folder could not be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum FileError {
    /// The file or folder does not exist.
    #[error("{}: does not exist", .0.display())]
    Missing(PathBuf),
    /// A link in it leads out of its root.
    #[error("{}: a symbolic link leads out of the folder", .0.display())]
    Escapes(PathBuf),
    /// It is a folder, a pipe, a device.
    #[error("{}: not a regular file", .0.display())]
    NotAFile(PathBuf),
    /// It is too long to be what it should be.
    #[error("{path}: more than {MAX_FILE_BYTES} bytes", path = .0.display())]
    TooLarge(PathBuf),
    /// It is not what it should be.
    #[error("{}: {message}", path.display())]
    Invalid {
        /// Path of the file.
        path: PathBuf,
        /// What was found and what was expected. Never the file's own text, which holds secrets.
        message: String,
    },
    /// It says nothing that names a container.
    #[error("{}: names nobody", .0.display())]
    Nameless(PathBuf),
    /// The system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
}

impl FileError {
    fn of(path: &Path, errno: Errno) -> Self {
        let path = path.to_owned();
        match errno {
            Errno::NOENT | Errno::NOTDIR => Self::Missing(path),
            // `openat2`'s word for it; LOOP where links are not followed at all, or for ever.
            Errno::XDEV | Errno::LOOP => Self::Escapes(path),
            errno => Self::Io {
                path,
                source: errno.into(),
            },
        }
    }

    /// Returns the value as used in labels.
    pub(super) fn class(&self) -> &'static str {
        match self {
            Self::Missing(_) => "not_found",
            Self::Escapes(_) => "escapes",
            Self::NotAFile(_) => "not_a_file",
            Self::TooLarge(_) => "too_large",
            Self::Invalid { .. } => "invalid_reply",
            Self::Nameless(_) => "nameless",
            Self::Io { source, .. } if source.kind() == ErrorKind::PermissionDenied => "permission",
            Self::Io { .. } => "io",
        }
    }

    /// Whether there was something, and not what there should be.
    fn is_invalid(&self) -> bool {
        matches!(
            self,
            Self::Escapes(_) | Self::NotAFile(_) | Self::TooLarge(_) | Self::Invalid { .. }
        )
    }
}

/// Whether `text` is a container id, and so fit for a path: 64 hexadecimal digits.
pub(super) fn is_container_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(is_id_digit)
}

/// One digit of a container id.
pub(super) fn is_id_digit(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

/// Opens a folder of the host, whose root is mounted at `host_root`. Links are followed as the host
/// would: an absolute one starts at the host's root, and none leads out of it.
pub(super) fn open_folder(host_root: &Path, path: &Path) -> Result<OwnedFd, FileError> {
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY;
    let root = open(host_root, flags, Mode::empty()).map_err(|e| FileError::of(host_root, e))?;
    // The root itself has no name below itself.
    let below = path.strip_prefix(Component::RootDir).unwrap_or(path);
    let below = if below.as_os_str().is_empty() {
        Path::new(".")
    } else {
        below
    };
    resolve(&root, below, flags, ResolveFlags::IN_ROOT).map_err(|e| FileError::of(path, e))
}

/// Opens a folder below another one.
pub(super) fn open_below(folder: impl AsFd, path: &Path) -> Result<OwnedFd, FileError> {
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY;
    resolve(folder, path, flags, ResolveFlags::BENEATH).map_err(|e| FileError::of(path, e))
}

/// Reads a regular file below a folder, if it is not too long.
pub(super) fn read_below(folder: impl AsFd, path: &Path) -> Result<Vec<u8>, FileError> {
    // A pipe without a writer would block the open, a terminal would become ours.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let fault = |errno| FileError::of(path, errno);
    let file = resolve(folder, path, flags, ResolveFlags::BENEATH).map_err(fault)?;
    let meta = fstat(&file).map_err(fault)?;
    if FileType::from_raw_mode(meta.st_mode) != FileType::RegularFile {
        return Err(FileError::NotAFile(path.to_owned()));
    }
    let mut text = Vec::new();
    // It may grow while it is read: what counts is what comes.
    File::from(file)
        .take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut text)
        .map_err(|source| FileError::Io {
            path: path.to_owned(),
            source,
        })?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(FileError::TooLarge(path.to_owned()));
    }
    Ok(text)
}

fn resolve(
    folder: impl AsFd,
    path: &Path,
    flags: OFlags,
    how: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    let how = how | ResolveFlags::NO_MAGICLINKS;
    let mut tries = 1;
    loop {
        match openat2(&folder, path, flags, Mode::empty(), how) {
            // The kernel cannot say whether it stayed inside while something was renamed.
            Err(Errno::AGAIN) if tries < OPEN_TRIES => tries += 1,
            other => return other,
        }
    }
}

/// The names in a folder, at most `limit` of them, and whether there were more.
pub(super) fn names_in(
    folder: impl AsFd,
    path: &Path,
    limit: usize,
) -> Result<(Vec<String>, bool), FileError> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder).map_err(|e| FileError::of(path, e))? {
        let entry = entry.map_err(|e| FileError::of(path, e))?;
        // What is not UTF-8 is not the kubelet's, nor a runtime's.
        let Ok(name) = entry.file_name().to_str() else {
            continue;
        };
        if matches!(name, "." | "..") {
            continue;
        }
        if names.len() == limit {
            return Ok((names, true));
        }
        names.push(name.to_owned());
    }
    Ok((names, false))
}

/// State of a source's folders.
#[derive(Debug, Default)]
pub(super) struct Presence {
    /// The first that is.
    pub(super) place: Option<PathBuf>,
    /// Why one that is there cannot be used.
    pub(super) obstacle: Option<(PathBuf, FileError)>,
}

impl Presence {
    /// Notes whether a folder could be opened.
    pub(super) fn note<T>(&mut self, path: &Path, opened: Result<T, FileError>) -> Option<T> {
        match opened {
            Ok(opened) => {
                self.place.get_or_insert_with(|| path.to_owned());
                Some(opened)
            }
            Err(FileError::Missing(_)) => None,
            Err(fault) => {
                self.obstacle.get_or_insert((path.to_owned(), fault));
                None
            }
        }
    }

    /// Notes that what could be opened cannot be used all the same.
    pub(super) fn give_up(&mut self, path: PathBuf, fault: FileError) {
        self.place = None;
        self.obstacle = Some((path, fault));
    }
}

/// An answer about one container.
pub(super) type Answer = Result<Box<ContainerIdentity>, FileError>;

/// Files that name containers.
pub(super) trait IdentityFiles: Clone + Send + 'static {
    /// Identity source that these files belong to.
    const SOURCE: IdentitySource;

    /// Looks for each of `ids`, all of them well-formed: what of the folders is there, and an answer
    /// for each id in order. Blocks.
    fn find(&mut self, ids: &[ContainerId], counters: &Counters) -> (Presence, Vec<Answer>);
}

/// Answers lookups until `shutdown` turns true or nobody reads `out` any more. `first_place` is
/// what is shown while no folder is there.
pub(super) async fn run<S: IdentityFiles>(
    shelf: S,
    pace: Timing,
    first_place: PathBuf,
    io: IdentityIo<ContainerId>,
) {
    let IdentityIo {
        counters,
        questions: lookups,
        io: Io {
            out,
            clock,
            shutdown,
        },
    } = io;
    let mut source = Source {
        pristine: shelf.clone(),
        shelf: Some(shelf),
        pace,
        first_place,
        counters,
        lookups: Some(lookups),
        health: HealthReporter::new(S::SOURCE.source(), out.clone(), clock),
        out,
        clock,
        answered: Answered::default(),
        seen: false,
        next_look: clock().boot,
    };
    let life = async {
        let Closed = source.follow().await;
    };
    Io::until_stopped(shutdown, life).await;
}

struct Source<S> {
    /// Initial copy of the files' state, used after a round that failed.
    pristine: S,
    /// Away while it is read.
    shelf: Option<S>,
    pace: Timing,
    /// What is shown while no folder is there.
    first_place: PathBuf,
    counters: Arc<Counters>,
    /// Gone once its other end is.
    lookups: Option<mpsc::Receiver<ContainerId>>,
    out: mpsc::Sender<Input>,
    clock: fn() -> Clock,
    answered: Answered,
    health: HealthReporter,
    /// Whether there has ever been a folder.
    seen: bool,
    /// Time of the next look for the folders, whatever lookups arrive before.
    next_look: BootTime,
}

impl<S: IdentityFiles> Source<S> {
    async fn follow(&mut self) -> Closed {
        // A timer of no length at all would panic.
        let mut look = interval(self.pace.look_interval.max(Duration::from_millis(1)));
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            let round = tokio::select! {
                taken = receive(&mut self.lookups, &mut batch) => {
                    if taken == 0 {
                        self.lookups = None;
                    }
                    let wanted = self.worth_a_look(&mut batch);
                    if wanted.is_empty() {
                        continue;
                    }
                    self.round(wanted).await
                }
                _ = look.tick() => {
                    self.next_look = self.after_a_look();
                    self.round(Vec::new()).await
                }
            };
            if let Err(closed) = round {
                return closed;
            }
        }
    }

    fn after_a_look(&self) -> BootTime {
        (self.clock)().boot.plus(self.pace.look_interval.into())
    }

    /// Those that are ids and have not just been answered, each once.
    fn worth_a_look(&mut self, batch: &mut Vec<ContainerId>) -> Vec<ContainerId> {
        let now = Instant::now();
        let mut wanted = Vec::with_capacity(batch.len());
        for id in batch.drain(..) {
            if !is_container_id(id.as_str()) {
                Counters::count(&self.counters.lookups_refused);
            } else if !self.answered.holds(&id, now) && !wanted.contains(&id) {
                wanted.push(id);
            }
        }
        wanted
    }

    /// Looks into the folders once, for nobody or for some, and passes on what is found.
    async fn round(&mut self, ids: Vec<ContainerId>) -> Result<(), Closed> {
        let looked_for = ids.len();
        Counters::add(&self.counters.calls, looked_for);
        let mut is_late = false;
        let mut shelf = self.shelf.take().unwrap_or_else(|| self.pristine.clone());
        let counters = Arc::clone(&self.counters);
        let mut work = spawn_blocking(move || {
            let (presence, answers) = shelf.find(&ids, &counters);
            (shelf, ids, presence, answers)
        });
        let done = match timeout(self.pace.timeout, &mut work).await {
            Ok(done) => done,
            Err(_) => {
                is_late = true;
                Counters::count(&self.counters.timeouts);
                Counters::add(&self.counters.lookups_timeout, looked_for);
                let limit = self.pace.timeout;
                let reason = format!("the disk has not answered for {limit:?}; still waiting");
                let place = self.endpoint();
                self.down("timeout", &reason, &place).await?;
                // One thread that hangs is enough.
                work.await
            }
        };
        let (shelf, ids, presence, answers) = match done {
            Ok(done) => done,
            Err(error) => {
                let place = self.endpoint();
                if !is_late {
                    Counters::add(&self.counters.lookups_error, looked_for);
                }
                return self.down("panic", &error.to_string(), &place).await;
            }
        };
        self.shelf = Some(shelf);
        let is_there = presence.place.is_some();
        self.show(presence).await?;
        for (id, answer) in ids.into_iter().zip(answers) {
            // A missing folder does not mean that the container is unknown.
            if is_there || answer.is_ok() {
                if !is_late {
                    self.count_lookup(&answer);
                }
                self.pass_on(id, answer).await?;
            }
        }
        Ok(())
    }

    fn count_lookup(&self, answer: &Answer) {
        match answer {
            Ok(_) => Counters::count(&self.counters.lookups_found),
            Err(FileError::Missing(_) | FileError::Nameless(_)) => {
                Counters::count(&self.counters.lookups_not_found);
            }
            Err(fault) if fault.is_invalid() => Counters::count(&self.counters.lookups_invalid),
            Err(_) => Counters::count(&self.counters.lookups_error),
        }
    }

    async fn pass_on(&mut self, id: ContainerId, answer: Answer) -> Result<(), Closed> {
        self.answered.note(&id, Instant::now());
        let update = match answer {
            Ok(identity) => IdentityUpdate::Found(*identity),
            Err(fault) => {
                if fault.is_invalid() {
                    Counters::count(&self.counters.invalid_replies);
                }
                if !matches!(fault, FileError::Missing(_) | FileError::Nameless(_)) {
                    let source = S::SOURCE.as_str();
                    warn!(source, container = %id, class = fault.class(), %fault, "cannot read the file");
                }
                IdentityUpdate::NotFound {
                    source: S::SOURCE,
                    id,
                    reason: fault.class(),
                }
            }
        };
        self.send(Input::Identity(update)).await
    }

    async fn show(&mut self, presence: Presence) -> Result<(), Closed> {
        self.seen |= presence.place.is_some() || presence.obstacle.is_some();
        if let Some(place) = presence.place {
            return self.report(SourceState::Up, &place).await;
        }
        if let Some((place, fault)) = presence.obstacle {
            return self.down(fault.class(), &fault.to_string(), &place).await;
        }
        let place = self.endpoint();
        if self.seen {
            let reason = format!("the folder {} was removed", place.display());
            self.down("vanished", &reason, &place).await
        } else {
            self.report(SourceState::Absent, &place).await
        }
    }

    fn endpoint(&self) -> PathBuf {
        match self.health.place() {
            Some(place) => place.into(),
            None => self.first_place.clone(),
        }
    }

    async fn down(&mut self, class: &str, reason: &str, place: &Path) -> Result<(), Closed> {
        let state = SourceState::Down {
            class: class.into(),
            reason: clean(reason, &self.counters),
            // A lookup may come earlier.
            next_retry: Some(self.next_look),
        };
        self.report(state, place).await
    }

    async fn report(&mut self, state: SourceState, place: &Path) -> Result<(), Closed> {
        self.health.report(state, &place.to_string_lossy()).await
    }

    async fn send(&self, input: Input) -> Result<(), Closed> {
        self.out.send(input).await.map_err(|_| Closed)
    }
}

/// The next lookups, as many as one round answers. Never returns once the channel is closed.
async fn receive(
    lookups: &mut Option<mpsc::Receiver<ContainerId>>,
    batch: &mut Vec<ContainerId>,
) -> usize {
    match lookups {
        Some(lookups) => lookups.recv_many(batch, BATCH).await,
        None => std::future::pending().await,
    }
}

/// Containers that were answered, and how long each answer is valid. An entry is dropped once it
/// was not asked for longer than any answer is valid.
#[derive(Debug, Default)]
struct Answered {
    holds: HashMap<ContainerId, Hold>,
    /// At how many of them those are looked for that can be forgotten.
    look_at: usize,
}

#[derive(Debug)]
struct Hold {
    answers: usize,
    until: Instant,
}

impl Answered {
    fn holds(&self, id: &ContainerId, now: Instant) -> bool {
        self.holds.get(id).is_some_and(|hold| now < hold.until)
    }

    fn note(&mut self, id: &ContainerId, now: Instant) {
        if self.holds.len() >= self.look_at {
            let longest = HOLDS[HOLDS.len() - 1];
            self.holds.retain(|_, hold| now < hold.until + longest);
            self.holds.shrink_to_fit();
            self.look_at = (self.holds.len() * 2).max(64);
        }
        let answers = self.holds.get(id).map_or(0, |hold| hold.answers);
        let span = HOLDS[answers.min(HOLDS.len() - 1)];
        if self.holds.len() >= MAX_ANSWERED && !self.holds.contains_key(id) {
            let mut ends: Vec<_> = self.holds.values().map(|hold| hold.until).collect();
            ends.sort_unstable();
            let half = ends[ends.len() / 2];
            self.holds.retain(|_, hold| hold.until > half);
        }
        let hold = Hold {
            answers: answers + 1,
            until: now + span,
        };
        self.holds.insert(id.clone(), hold);
    }
}

#[cfg(test)]
mod tests;
