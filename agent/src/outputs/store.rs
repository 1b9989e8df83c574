//! The durable ledger: what the core hands over to be kept, in a SQLite file that outlives the agent.
//!
//! A *published counter never falls*, not over a `kill -9` either. So a snapshot is shown only once
//! the commit that it was made from is in the file ([`keeping`]), and the agent that comes after goes
//! on from there: the same boot, the same books, the same series with the same start times. In
//! another boot, or where the file does not hold all that was published ([`mark`]), series start at
//! 0 with a new start time, and what was open becomes a record. Nothing in between is possible.
//!
//! # What a crash can take
//!
//! `kill -9` takes nothing: what a transaction has written is in the kernel's page cache, whoever
//! dies. A power cut takes what was not on the disk, and with it the boot: series start at 0
//! anyway, so not a counter but only the record of the last moments is lost. That is why commits are
//! not synced one by one (`synchronous=NORMAL`; `FULL` would sync a disk each second for the rest of
//! its life) and why everything is synced once a minute ([`SYNC_EVERY`]): a power cut costs the
//! record of a minute at most.
//!
//! # What can go wrong
//!
//! No problem of the file stops accounting and publishing. A directory that cannot be written is
//! retried forever. A damaged file is renamed, and the next file bills nothing that was in it. A
//! file of a newer agent or of another program is not touched. Another agent's lock is waited for:
//! two that count the same GPUs would both be believed.
//!
//! It refuses to be the fleet's book: what is older than the retention, or beyond the size, goes.

pub mod durability;
pub mod error;
mod file;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod hours;
pub mod mark;
mod outbox;
pub mod query;
mod read;
mod retention;
mod rollup;
pub mod schema;
mod sql;
mod watermark;
mod write;

use std::io;

use tokio::sync::{mpsc, oneshot};

use self::error::StoreError;
use self::file::Store;
pub use self::file::{FILE, Options, SYNC_EVERY, StoreLimits, Written};
use self::mark::MarkerFile;
use crate::core::model::Clock;
use crate::core::records::{Changes, PersistedState};
use crate::usage_record::{Outbox, OutboxError, RecordKey, UsageRecord};

/// What the store's thread is asked for.
enum Command {
    Resume(
        MarkerFile,
        oneshot::Sender<Result<Option<PersistedState>, StoreError>>,
    ),
    BeginAnew(&'static str),
    Write(Box<Changes>, oneshot::Sender<Result<Written, StoreError>>),
    Limit(StoreLimits),
    Offer(usize, oneshot::Sender<Result<Vec<UsageRecord>, StoreError>>),
    Settle(Vec<RecordKey>, oneshot::Sender<Result<(), StoreError>>),
}

/// The store's thread, seen from outside. It ends when this is dropped.
#[derive(Debug)]
pub struct Handle {
    commands: mpsc::UnboundedSender<Command>,
    ended: oneshot::Receiver<()>,
}

/// Starts the store's thread. The disk may block this thread; no other thread waits for it.
///
/// # Errors
///
/// There is no thread to be had.
pub fn spawn(options: Options) -> io::Result<Handle> {
    // The queue stays short: the sender of a commit waits for its answer before it sends the next.
    let (commands, mut taken) = mpsc::unbounded_channel();
    let (on_end, ended) = oneshot::channel();
    std::thread::Builder::new()
        .name("store".into())
        .spawn(move || {
            let mut store = Store::new(options);
            while let Some(command) = taken.blocking_recv() {
                // If nobody waits any more, there is nobody to inform.
                match command {
                    Command::Resume(mark, answer) => {
                        let _ = answer.send(store.resume(&mark));
                    }
                    Command::BeginAnew(reason) => store.begin_anew(reason),
                    Command::Limit(limits) => store.limit(limits),
                    Command::Offer(most, answer) => {
                        let _ = answer.send(store.offer(most));
                    }
                    Command::Settle(keys, answer) => {
                        let _ = answer.send(store.settle(&keys));
                    }
                    Command::Write(changes, answer) => {
                        let written = store.write(&changes);
                        let _ = answer.send(written);
                        store.maintain(changes.clock);
                    }
                }
            }
            // Closed, and with it the log moved into the file, before anybody is informed.
            drop(store);
            let _ = on_end.send(());
        })?;
    Ok(Handle { commands, ended })
}

impl Handle {
    fn send(&self, command: Command) {
        // A thread that is gone shows by the answer that does not come.
        let _ = self.commands.send(command);
    }

    /// Opens the store and returns the previous agent's state, if this agent can continue from it.
    pub async fn resume(&self, mark: &MarkerFile) -> Result<Option<PersistedState>, StoreError> {
        let (answer, answered) = oneshot::channel();
        self.send(Command::Resume(mark.clone(), answer));
        answered.await.unwrap_or(Err(StoreError::Gone))
    }

    /// Does not continue from the stored state, for this reason: the next commit begins a new life.
    pub fn begin_anew(&self, reason: &'static str) {
        self.send(Command::BeginAnew(reason));
    }

    /// Queues a commit. The answer arrives once it is in the file; the caller need not wait for it.
    pub fn write(&self, changes: Changes) -> oneshot::Receiver<Result<Written, StoreError>> {
        let (answer, answered) = oneshot::channel();
        self.send(Command::Write(Box::new(changes), answer));
        answered
    }

    /// What can change the store's limits for as long as the store is open.
    #[must_use]
    pub fn limiter(&self) -> Limiter {
        Limiter(self.commands.downgrade())
    }

    /// What gives the usage records that are due and takes back what became of them.
    #[must_use]
    pub fn records(&self) -> RecordsDesk {
        RecordsDesk(self.commands.downgrade())
    }

    /// Closes the store and waits until it is closed. The disk may hold that up: whoever waits sets
    /// a limit.
    pub async fn close(self) {
        drop(self.commands);
        // An error means that the thread is over too.
        let _ = self.ended.await;
    }
}

/// Changes the store's limits. It does not keep the store open.
#[derive(Clone, Debug)]
pub struct Limiter(mpsc::WeakUnboundedSender<Command>);

impl Limiter {
    /// Sets the limits. They hold from the next commit on.
    pub fn set(&self, limits: StoreLimits) {
        if let Some(commands) = self.0.upgrade() {
            // A thread that is gone has nothing to limit.
            let _ = commands.send(Command::Limit(limits));
        }
    }
}

/// Gives the usage records that are due. It does not keep the store open.
#[derive(Clone, Debug)]
pub struct RecordsDesk(mpsc::WeakUnboundedSender<Command>);

impl RecordsDesk {
    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Command,
    ) -> Result<T, OutboxError> {
        let Some(commands) = self.0.upgrade() else {
            return Err(OutboxError {
                reason: "the store is closed".to_owned(),
            });
        };
        let (answer, answered) = oneshot::channel();
        // A thread that is gone shows by the answer that does not come.
        let _ = commands.send(command(answer));
        // While this waits, the store can be closed.
        drop(commands);
        let answer = answered.await.unwrap_or(Err(StoreError::Gone));
        answer.map_err(|error| OutboxError {
            reason: error.words(),
        })
    }
}

impl Outbox for RecordsDesk {
    async fn offer(&self, most: usize) -> Result<Vec<UsageRecord>, OutboxError> {
        self.ask(|answer| Command::Offer(most, answer)).await
    }

    async fn settle(&self, keys: Vec<RecordKey>) -> Result<(), OutboxError> {
        self.ask(|answer| Command::Settle(keys, answer)).await
    }
}

/// Both clocks, asked for.
pub type ReadClock = fn() -> Clock;
