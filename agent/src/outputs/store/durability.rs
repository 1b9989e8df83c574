//! Publishes a snapshot only after its commit is stored, and handles a store that fails.
//!
//! ```text
//!            ┌──────────── a commit fails: the mark is taken away ───────────┐
//!   Kept ────┘                                                               ▼
//!     ▲                                                            Unkept, tried again with backoff
//!     └── everything is written, and the mark is set ◀───────────────────────┘
//! ```
//!
//! While the store works, a snapshot waits for its transaction, for [`PATIENCE`] at most. After
//! that it is published without being stored, and the marker file is removed first. From then on a
//! snapshot waits only for attempts to write everything again, one at a time and for
//! [`PATIENCE_UNKEPT`] at most.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tracing::{info, warn};

use super::error::StoreError;
use super::mark::{LifeId, MarkerFile};
use super::{Handle, ReadClock, Written};
use crate::core::model::{BootTime, Nanos, SourceState};
use crate::core::records::{Changes, Kept};
use crate::published::StoreBook;

/// How long a snapshot waits for its transaction.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// The same while the store does not work.
const PATIENCE_UNKEPT: Duration = Duration::from_secs(2);
/// How long a store that does not work rests at first, and at most.
const RETRY: (Nanos, Nanos) = (Nanos::from_secs(1), Nanos::from_secs(60));

#[derive(Debug)]
enum Mode {
    /// Everything published is stored. The marker file says so if it names `marked`.
    Kept { marked: Option<LifeId> },
    /// Published snapshots are not stored, and the marker file is removed.
    Unkept { retry: BootTime, pause: Nanos },
}

/// Stores commits, and decides when their snapshots may be published.
#[derive(Debug)]
pub struct DurabilityGate {
    handle: Handle,
    mark: MarkerFile,
    clock: ReadClock,
    mode: Mode,
    /// The next commit is to be handed over whole.
    whole: bool,
    /// An answer that did not come in time.
    late: Option<oneshot::Receiver<Result<Written, StoreError>>>,
    book: StoreBook,
    reported: String,
}

/// What became of a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What to tell the core if it is kept.
    pub kept: Option<Kept>,
    /// How the store is.
    pub state: SourceState,
}

impl DurabilityGate {
    /// Nothing has been published by this agent. `trouble` is why nothing could be taken back.
    ///
    /// If the agent does not continue from stored state, the previous agent's marker file is
    /// removed at once.
    pub async fn begin(
        handle: Handle,
        mark: MarkerFile,
        clock: ReadClock,
        trouble: Option<&StoreError>,
    ) -> (Self, SourceState) {
        let mut keeping = Self {
            handle,
            mark,
            clock,
            mode: Mode::Kept { marked: None },
            whole: true,
            late: None,
            book: StoreBook::default(),
            reported: String::new(),
        };
        let state = match trouble {
            Some(error) => keeping.failed(error).await,
            None => SourceState::Up,
        };
        (keeping, state)
    }

    /// What the store has come to.
    #[must_use]
    pub const fn book(&self) -> StoreBook {
        self.book
    }

    /// Whether a commit is to be kept now; if not, it goes out as it is.
    pub fn is_due(&mut self, now: BootTime) -> bool {
        if let Some(late) = &mut self.late {
            match late.try_recv() {
                Err(oneshot::error::TryRecvError::Empty) => return false,
                // Whatever it says: everything is written anew.
                _ => self.late = None,
            }
        }
        match self.mode {
            Mode::Kept { .. } => true,
            Mode::Unkept { retry, .. } => now >= retry,
        }
    }

    /// Whether the next commit has to be handed over whole.
    #[must_use]
    pub const fn wants_whole(&self) -> bool {
        self.whole
    }

    /// Keeps a commit. When this returns, its snapshot may go out.
    pub async fn keep(mut self, changes: Changes) -> (Self, Outcome) {
        let receipt = changes.receipt();
        let patience = match self.mode {
            Mode::Kept { .. } => PATIENCE,
            Mode::Unkept { .. } => PATIENCE_UNKEPT,
        };
        let mut answered = self.handle.write(changes);
        let written = match timeout(patience, &mut answered).await {
            Ok(answer) => answer.unwrap_or(Err(StoreError::Gone)),
            Err(_) => {
                self.late = Some(answered);
                let seconds = patience.as_secs();
                Err(StoreError::Slow { seconds })
            }
        };
        let outcome = match written {
            Ok(written) => Outcome {
                kept: Some(receipt),
                state: self.succeeded(written).await,
            },
            Err(error) => Outcome {
                kept: None,
                state: self.failed(&error).await,
            },
        };
        (self, outcome)
    }

    async fn succeeded(&mut self, written: Written) -> SourceState {
        self.whole = false;
        self.book.commits += 1;
        self.book.bytes = written.bytes;
        self.book.hours_merged = written.hours_merged;
        self.book.over_size = written.over_size;
        self.book.records = written.records;
        self.book.spent += Nanos::from(written.took);
        let marked = match &self.mode {
            Mode::Kept { marked } => marked.as_ref(),
            Mode::Unkept { .. } => None,
        };
        let mut marked_now = Ok(());
        if marked != Some(&written.named) {
            let (mark, named) = (self.mark.clone(), written.named.clone());
            marked_now = on_disk(move || mark.set(&named)).await;
        }
        let unmarked = marked_now.is_err();
        self.mode = Mode::Kept {
            marked: Some(written.named).filter(|_| !unmarked),
        };
        match marked_now {
            Ok(()) => {
                if !self.reported.is_empty() {
                    info!("commits are stored again");
                    self.reported.clear();
                }
                SourceState::Up
            }
            Err(error) => {
                let path = self.mark.path().display();
                let reason = format!(
                    "the books are kept, but {path} cannot be made: {error}; a restart would begin \
                     at 0"
                );
                self.down("mark", reason, None)
            }
        }
    }

    async fn failed(&mut self, error: &StoreError) -> SourceState {
        self.book.failures += 1;
        // Anything may have been written of it, or nothing.
        self.whole = true;
        let mark = self.mark.clone();
        let cleared = on_disk(move || mark.clear()).await;
        let pause = match self.mode {
            Mode::Kept { .. } => RETRY.0,
            Mode::Unkept { pause, .. } => Nanos(pause.0.saturating_mul(2)).min(RETRY.1),
        };
        let retry = (self.clock)().boot.plus(pause);
        self.mode = Mode::Unkept { retry, pause };
        let mut reason = error.words();
        if let Err(error) = cleared {
            let path = self.mark.path().display();
            reason = format!(
                "{reason}; and {path} cannot be removed ({error}): a restart would go on from what \
                 is stored, which is less than what is published"
            );
        }
        self.down(error.class(), reason, Some(retry))
    }

    fn down(&mut self, class: &str, reason: String, retry: Option<BootTime>) -> SourceState {
        if reason != self.reported {
            warn!(class, reason, "commits are not stored");
            self.reported.clone_from(&reason);
        }
        SourceState::Down {
            class: class.into(),
            reason: Arc::from(reason),
            next_retry: retry,
        }
    }

    /// Closes the store. The caller limits the wait.
    pub async fn close(self) {
        self.handle.close().await;
    }
}

/// Does what may wait for a disk, or for something that ought to be none.
async fn on_disk(act: impl FnOnce() -> io::Result<()> + Send + 'static) -> io::Result<()> {
    match timeout(PATIENCE_UNKEPT, spawn_blocking(act)).await {
        Ok(Ok(done)) => done,
        Ok(Err(error)) => Err(io::Error::other(error)),
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}
