//! Records what a receiver of deltas has been sent, over restarts and crashes of the agent.
//!
//! It is a file in the state directory, beside the books and not in them: an output keeps its own.
//! It is written whole, to another name, synced and renamed, before each export. It holds the totals
//! that the receiver has after that export. An agent that is killed in between has sent less than the
//! file says, by one export at most, and never more. An export that certainly fails is taken back, and
//! the file written once more.
//!
//! A file that cannot be written says too little, and cannot say that. So, as with the books, there
//! is a mark in the runtime directory while it says all, and that is taken away *before* anything
//! goes out that it does not have. A file without its mark is not believed: every series then
//! begins with the total that it has. Where the mark cannot be taken away either, nothing goes out.
//!
//! A lock is held for as long as the agent lives: one that ends sends its last words after it has
//! let go of the books, and the next one must not go on from what was there before.
//!
//! File operations run on a thread of their own and are waited for only for a bounded time.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;

/// The file's name in the state directory.
const FILE: &str = "otlp-delta.json";
/// The lock's name beside it.
const LOCK: &str = "otlp-delta.lock";
/// How long a disk may take. Tests are about other things than a busy one.
pub(super) const PATIENCE: Duration = Duration::from_secs(if cfg!(test) { 60 } else { 2 });

/// Paths of the file and its marker file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SentTotalsLocation {
    directory: PathBuf,
    mark: PathBuf,
    /// The kernel's boot id.
    boot: Arc<str>,
}

/// Why the file cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub(super) enum KeepError {
    /// Another agent sends.
    #[error("another agent has locked {}", path.display())]
    Locked { path: PathBuf },
    /// A file or its directory cannot be had.
    #[error("cannot {act} {}", path.display())]
    File {
        act: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// What is in it is not what was written.
    #[error("cannot decode {}", path.display())]
    Content {
        path: PathBuf,
        source: serde_json::Error,
    },
    /// The disk does not answer.
    #[error("no answer from {} within {} s", path.display(), PATIENCE.as_secs())]
    Slow { path: PathBuf },
}

impl KeepError {
    /// Returns the value as used in labels.
    pub(super) fn class(&self) -> &'static str {
        match self {
            Self::Locked { .. } => "locked",
            Self::File { source, .. } => crate::outputs::disk_class(source.kind()),
            Self::Content { .. } => "content",
            Self::Slow { .. } => "slow",
        }
    }

    /// It and its cause, in one line.
    pub(super) fn words(&self) -> String {
        crate::errors::chain(self)
    }
}

pub(super) fn failed(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> KeepError {
    let path = path.to_owned();
    move |source| KeepError::File { act, path, source }
}

impl SentTotalsLocation {
    /// A file in `directory`, and its mark beside `socket`.
    #[must_use]
    pub fn new(directory: &Path, socket: &Path, boot: &str) -> Self {
        Self {
            directory: directory.to_owned(),
            mark: mark(socket),
            boot: boot.into(),
        }
    }

    /// What is sent from here on is in no file, even if a previous agent left one.
    ///
    /// # Errors
    ///
    /// The mark is still there, and an agent that sends deltas again would go on from that file.
    pub fn disown(socket: &Path) -> io::Result<()> {
        clear(&mark(socket))
    }

    pub(super) fn boot(&self) -> &str {
        &self.boot
    }

    pub(super) fn file(&self) -> PathBuf {
        self.directory.join(FILE)
    }

    fn lock(&self) -> Result<File, KeepError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.directory)
            .map_err(failed("make the directory", &self.directory))?;
        let path = self.directory.join(LOCK);
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            // A directory that takes no new file may have one to lock.
            .or_else(|error| File::open(&path).map_err(|_| error))
            .map_err(failed("open", &path))?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => Err(KeepError::Locked { path }),
            Err(TryLockError::Error(source)) => Err(failed("lock", &path)(source)),
        }
    }

    /// What the file says, if its mark is there.
    fn read(&self) -> Result<Option<Vec<u8>>, KeepError> {
        let marked = match fs::read_to_string(&self.mark) {
            Ok(text) => text == self.marked(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(failed("read", &self.mark)(error)),
        };
        if !marked {
            return Ok(None);
        }
        let path = self.file();
        fs::read(&path).map(Some).map_err(failed("read", &path))
    }

    fn write(&self, text: &[u8]) -> Result<(), KeepError> {
        replace(&self.file(), text)
    }

    /// What the mark says: a series lives no longer than a boot.
    fn marked(&self) -> String {
        format!("{}\n", self.boot)
    }

    fn set_mark(&self) -> Result<(), KeepError> {
        let beside = self.mark.with_extension("told~");
        let set = fs::write(&beside, self.marked()).and_then(|()| fs::rename(&beside, &self.mark));
        set.map_err(failed("make", &self.mark))
    }
}

/// Replaces a file's content whole, durably.
pub(super) fn replace(path: &Path, text: &[u8]) -> Result<(), KeepError> {
    let beside = path.with_extension("json~");
    let written = File::create(&beside).and_then(|mut file| {
        file.write_all(text)?;
        file.sync_all()
    });
    written.map_err(failed("write", &beside))?;
    fs::rename(&beside, path).map_err(failed("replace", path))?;
    let directory = path.parent().unwrap_or(path);
    let synced = File::open(directory).and_then(|directory| directory.sync_all());
    synced.map_err(failed("sync", directory))
}

fn mark(socket: &Path) -> PathBuf {
    socket.with_extension("told")
}

fn clear(mark: &Path) -> io::Result<()> {
    match fs::remove_file(mark) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            // A directory that takes no change may have files that do.
            fs::write(mark, "").map_err(|_| error)
        }
        _ => Ok(()),
    }
}

/// State of the file.
#[derive(Debug, Default)]
enum Mode {
    /// Nothing has been written by this agent; whether there is a mark is not known.
    #[default]
    Begun,
    /// The file is complete, and the marker file says so.
    Marked,
    /// What was sent is in no file that the next agent would accept.
    Unkept,
}

/// The file that records what a receiver was sent.
#[derive(Debug)]
pub(super) struct SentTotalsFile {
    place: SentTotalsLocation,
    /// Absent until it could be had, and where there is no directory to have it in.
    lock: Option<File>,
    mode: Mode,
    /// A write that is under way; it may be from a push that was given up.
    writing: Option<JoinHandle<Result<(), KeepError>>>,
    /// Why what is sent is not kept, if so.
    trouble: Option<KeepError>,
}

impl SentTotalsFile {
    pub(super) fn new(place: SentTotalsLocation) -> Self {
        Self {
            place,
            lock: None,
            mode: Mode::Begun,
            writing: None,
            trouble: None,
        }
    }

    pub(super) const fn location(&self) -> &SentTotalsLocation {
        &self.place
    }

    /// Why what is sent is not kept.
    pub(super) const fn trouble(&self) -> Option<&KeepError> {
        self.trouble.as_ref()
    }

    /// Takes the lock and reads what an agent before this one has left; nothing where that is not
    /// to be believed. While another agent holds the lock, nothing must be sent.
    pub(super) async fn read(&mut self) -> Result<Option<Vec<u8>>, KeepError> {
        let place = self.place.clone();
        let read = spawn_blocking(move || {
            let lock = place.lock()?;
            // The lock is kept also where the file cannot be read.
            Ok((lock, place.read()))
        });
        let (lock, read) = match timeout(PATIENCE, read).await {
            Ok(Ok(read)) => read?,
            Ok(Err(panic)) => return Err(failed("read", &self.place.file())(panic.into())),
            Err(_) => return Err(self.slow()),
        };
        self.lock = Some(lock);
        read
    }

    /// Writes down what is about to be sent. When this returns, it may go out, and if it says
    /// no, then it is in no file that is believed.
    ///
    /// # Errors
    ///
    /// It must not: neither can it be written, nor can the next agent be kept from believing what
    /// is there.
    pub(super) async fn write(&mut self, text: Vec<u8>) -> Result<bool, KeepError> {
        let error = match self.try_write(text).await {
            Ok(()) => {
                self.trouble = None;
                if !matches!(self.mode, Mode::Marked) {
                    let place = self.place.clone();
                    match self.on_disk(move || place.set_mark()).await {
                        Ok(()) => self.mode = Mode::Marked,
                        // Without a mark the next agent begins with the totals of then.
                        Err(error) => self.trouble = Some(error),
                    }
                }
                return Ok(true);
            }
            Err(error) => error,
        };
        if !matches!(self.mode, Mode::Unkept) {
            let mark = self.place.mark.clone();
            let cleared = move || clear(&mark).map_err(failed("remove", &mark));
            self.on_disk(cleared).await?;
            self.mode = Mode::Unkept;
        }
        self.trouble = Some(error);
        Ok(false)
    }

    async fn try_write(&mut self, text: Vec<u8>) -> Result<(), KeepError> {
        // One at a time: a write that came late must not replace a later one.
        if self.writing.is_some() {
            // Whatever its result, everything is written again.
            let _ = self.written().await;
            if self.writing.is_some() {
                return Err(self.slow());
            }
        }
        let place = self.place.clone();
        self.writing = Some(spawn_blocking(move || place.write(&text)));
        self.written().await
    }

    /// Waits for the write under way. It stays where it is if it takes too long.
    async fn written(&mut self) -> Result<(), KeepError> {
        let Some(writing) = &mut self.writing else {
            return Ok(());
        };
        match timeout(PATIENCE, writing).await {
            Ok(ended) => {
                self.writing = None;
                ended.unwrap_or_else(|panic| Err(failed("write", &self.place.file())(panic.into())))
            }
            Err(_) => Err(self.slow()),
        }
    }

    async fn on_disk(
        &self,
        act: impl FnOnce() -> Result<(), KeepError> + Send + 'static,
    ) -> Result<(), KeepError> {
        match timeout(PATIENCE, spawn_blocking(act)).await {
            Ok(Ok(done)) => done,
            Ok(Err(panic)) => Err(failed("use", &self.place.mark)(panic.into())),
            Err(_) => Err(KeepError::Slow {
                path: self.place.mark.clone(),
            }),
        }
    }

    fn slow(&self) -> KeepError {
        KeepError::Slow {
            path: self.place.file(),
        }
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn place(dir: &TempDir) -> SentTotalsLocation {
        let socket = dir.path().join("run/agent.sock");
        fs::create_dir_all(dir.path().join("run")).unwrap();
        SentTotalsLocation::new(&dir.path().join("state/below"), &socket, "7d3b0a52")
    }

    #[tokio::test]
    async fn what_is_written_reads_back_and_only_with_its_mark() {
        let dir = tempfile::tempdir().unwrap();
        let place = place(&dir);
        let mut keeper = SentTotalsFile::new(place.clone());
        assert_eq!(keeper.read().await.unwrap(), None, "there is nothing yet");
        assert!(keeper.write(b"one".to_vec()).await.unwrap());
        assert!(keeper.write(b"two".to_vec()).await.unwrap());
        assert!(keeper.trouble().is_none());
        drop(keeper);

        let mut next = SentTotalsFile::new(place.clone());
        assert_eq!(next.read().await.unwrap().as_deref(), Some(&b"two"[..]));
        drop(next);
        let socket = dir.path().join("run/agent.sock");
        let another = SentTotalsLocation::new(&place.directory, &socket, "another boot");
        assert_eq!(SentTotalsFile::new(another).read().await.unwrap(), None);
        SentTotalsLocation::disown(&socket).unwrap();
        assert_eq!(SentTotalsFile::new(place).read().await.unwrap(), None);
    }

    #[tokio::test]
    async fn two_agents_do_not_send_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut first = SentTotalsFile::new(place(&dir));
        first.read().await.unwrap();
        let mut second = SentTotalsFile::new(place(&dir));
        let error = second.read().await.unwrap_err();
        assert_eq!(error.class(), "locked");
        drop(first);
        second.read().await.unwrap();
    }

    #[tokio::test]
    async fn what_cannot_be_written_is_not_believed_later() {
        let dir = tempfile::tempdir().unwrap();
        let place = place(&dir);
        let mut keeper = SentTotalsFile::new(place.clone());
        keeper.read().await.unwrap();
        assert!(keeper.write(b"one".to_vec()).await.unwrap());
        // A directory is in the way: root may write everywhere, and tests may be root's.
        let beside = place.file().with_extension("json~");
        fs::create_dir(&beside).unwrap();
        assert!(!keeper.write(b"two".to_vec()).await.unwrap());
        assert!(keeper.trouble().is_some());
        assert!(!place.mark.exists(), "what it says is too little");

        fs::remove_dir(&beside).unwrap();
        assert!(keeper.write(b"three".to_vec()).await.unwrap());
        assert!(keeper.trouble().is_none());
        drop(keeper);
        let read = SentTotalsFile::new(place).read().await.unwrap();
        assert_eq!(read.as_deref(), Some(&b"three"[..]));
    }

    #[tokio::test]
    async fn nothing_goes_out_where_neither_file_nor_mark_can_be_changed() {
        let dir = tempfile::tempdir().unwrap();
        let place = place(&dir);
        let mut keeper = SentTotalsFile::new(place.clone());
        keeper.read().await.unwrap();
        assert!(keeper.write(b"one".to_vec()).await.unwrap());
        fs::create_dir(place.file().with_extension("json~")).unwrap();
        fs::remove_file(&place.mark).unwrap();
        fs::create_dir(&place.mark).unwrap();
        assert!(keeper.write(b"two".to_vec()).await.is_err());
    }

    #[tokio::test]
    async fn without_a_mark_it_goes_on_and_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let place = place(&dir);
        fs::create_dir(&place.mark).unwrap();
        let mut keeper = SentTotalsFile::new(place);
        assert!(keeper.read().await.is_err(), "the mark is no file");
        assert!(keeper.write(b"one".to_vec()).await.unwrap());
        assert_eq!(keeper.trouble().map(KeepError::class), Some("io"));
    }
}
