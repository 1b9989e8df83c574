//! The one task that owns the books: it takes inputs, commits, hands over to the store, publishes.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::{debug, error, warn};

use super::books::OpenedBooks;
use super::outputs::state_of;
use super::recorder::Recorder;
use super::requests::Requests;
use super::settings::COMMIT_EVERY;
use crate::core::accountant::Accountant;
use crate::core::input::{Input, SourceHealth};
use crate::core::model::{Clock, Nanos, SourceId};
use crate::core::snapshot::Snapshot;
use crate::core::source_states::SourceStates;
use crate::outputs::socket::Query;
use crate::outputs::store::durability::{DurabilityGate, Outcome};
use crate::own_process;
use crate::published::{AgentStatus, NvmlCallBook, Published};
use crate::sources::clock::now;
use crate::sources::gpu::calls::Watchdog;

/// How long before a commit the kernel source is asked up to when all events are known. A window that
/// ended before that is booked with this commit, not with the next one. The answer takes about a
/// millisecond, more where cores are busy.
const EVENTS_BEFORE_COMMIT: Duration = Duration::from_millis(50);
/// Inputs taken in a row before a commit that is due gets its turn.
const INPUTS_IN_A_ROW: usize = 64;
/// How long a call into NVML takes before `status` speaks of it.
const SHOWN_AS_BLOCKED: Nanos = Nanos::from_secs(1);
/// How long, at the end, each of these may take: the commit under way, the last one, closing the
/// store.
const LAST_COMMIT: Duration = Duration::from_secs(2);

/// What the core made of a commit.
#[derive(Default)]
struct Committed {
    books: Snapshot,
    /// The states of the sources, as the books were made with them.
    sources: SourceStates,
}

/// A commit that is being stored; it is published afterwards.
struct PendingCommit {
    committed: Committed,
    kept: Pin<Box<dyn Future<Output = (DurabilityGate, Outcome)> + Send>>,
}

/// The one task that owns the books.
pub(super) struct Core {
    accountant: Accountant,
    /// Stores commits. Absent if there is no store, and while a commit is being stored.
    keeping: Option<DurabilityGate>,
    /// The commit that waits until it is kept.
    waiting: Option<PendingCommit>,
    /// The store's directory.
    store: String,
    /// Records the inputs, if `--record-inputs` is set.
    recorder: Option<Recorder>,
    /// Whether the next commit is the last.
    is_last: bool,
    published: watch::Sender<Arc<Published>>,
    /// The states of the outputs. The core's books do not depend on them, so it is not told.
    outputs: SourceStates,
    /// Passes the core's effects on to the sources.
    requests: Requests,
    watchdog: Watchdog,
}

impl Core {
    /// The core with books that have been begun. `outputs` has the states of the outputs so far,
    /// `published` is what they show.
    pub(super) fn new(
        begun: OpenedBooks,
        store: String,
        recorder: Option<Recorder>,
        requests: Requests,
        watchdog: Watchdog,
        mut outputs: SourceStates,
        published: watch::Sender<Arc<Published>>,
    ) -> Self {
        outputs.take(begun.store, now().boot);
        Self {
            accountant: begun.accountant,
            keeping: begun.keeping,
            waiting: None,
            store,
            recorder,
            is_last: false,
            published,
            outputs,
            requests,
            watchdog,
        }
    }

    /// Takes inputs and the outputs' states, answers queries and commits until it is stopped; then
    /// commits once more.
    pub(super) async fn run(
        mut self,
        mut inputs: mpsc::Receiver<Input>,
        mut queries: mpsc::Receiver<Query>,
        mut output_health: mpsc::Receiver<SourceHealth>,
        mut stopped: watch::Receiver<bool>,
    ) {
        let mut commits = interval(COMMIT_EVERY);
        // After a pause of the machine one commit is enough.
        commits.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Begins anew with each commit, since commits may be late.
        let mut asks = interval(COMMIT_EVERY);
        let mut batch = Vec::with_capacity(INPUTS_IN_A_ROW);
        loop {
            tokio::select! {
                biased;
                _ = stopped.wait_for(|stop| *stop) => break,
                stored = commit_stored(&mut self.waiting) => self.publish_stored(stored),
                // While a snapshot waits for the disk, the next commit waits, too. Nothing else
                // does.
                _ = commits.tick(), if self.waiting.is_none() => {
                    asks.reset_after(COMMIT_EVERY.saturating_sub(EVENTS_BEFORE_COMMIT));
                    self.commit(now());
                }
                _ = asks.tick() => self.requests.ask_for_events(),
                Some(query) = queries.recv() => self.answer(query),
                Some(health) = output_health.recv() => {
                    self.outputs.take(health, now().boot);
                }
                taken = inputs.recv_many(&mut batch, INPUTS_IN_A_ROW) => {
                    if taken == 0 {
                        break;
                    }
                    self.take(&mut batch);
                }
            }
        }
        while inputs.try_recv().map(|input| batch.push(input)).is_ok() {}
        self.take(&mut batch);
        while let Ok(health) = output_health.try_recv() {
            self.outputs.take(health, now().boot);
        }
        self.end().await;
    }

    /// Makes the last commit. If the disk does not accept it in time, it is not published either:
    /// the next agent continues from what is stored, and shows that.
    async fn end(&mut self) {
        if self.waiting.is_some() {
            match timeout(LAST_COMMIT, commit_stored(&mut self.waiting)).await {
                Ok(stored) => self.publish_stored(stored),
                Err(_) => return,
            }
        }
        self.accountant.await_nothing();
        self.is_last = true;
        self.commit(now());
        if self.waiting.is_some()
            && let Ok(stored) = timeout(LAST_COMMIT, commit_stored(&mut self.waiting)).await
        {
            self.publish_stored(stored);
        }
        if let Some(keeping) = self.keeping.take()
            && timeout(LAST_COMMIT, keeping.close()).await.is_err()
        {
            warn!("the store was not closed within {LAST_COMMIT:?}");
        }
    }

    fn take(&mut self, batch: &mut Vec<Input>) {
        let clock = now();
        for input in batch.drain(..) {
            if let Some(recorder) = &mut self.recorder {
                recorder.take(&input, clock);
            }
            self.accountant.take(input, clock);
        }
        self.carry_out();
    }

    fn commit(&mut self, at: Clock) {
        if let Some(recorder) = &mut self.recorder {
            recorder.commit(self.is_last, at);
        }
        let committed = Committed {
            books: self.accountant.commit(at),
            sources: self.accountant.sources().clone(),
        };
        self.carry_out();
        let keeping = self.keeping.as_mut();
        if !keeping.is_some_and(|keeping| keeping.is_due(at.boot)) {
            self.publish(committed);
        } else if let Some(keeping) = self.keeping.take() {
            let changes = self.accountant.changes(keeping.wants_whole(), at);
            let kept = Box::pin(keeping.keep(changes));
            self.waiting = Some(PendingCommit { committed, kept });
        }
    }

    /// A commit was stored or could not be: it is published, with what became of it.
    fn publish_stored(
        &mut self,
        (committed, keeping, outcome): (Committed, DurabilityGate, Outcome),
    ) {
        if let Some(kept) = outcome.kept {
            self.accountant.kept(kept);
        }
        let health = state_of(SourceId::Store, outcome.state, &self.store);
        self.outputs.take(health, now().boot);
        self.keeping = Some(keeping);
        self.publish(committed);
    }

    fn publish(&self, Committed { books, sources }: Committed) {
        for book in &books.gpus {
            if book.imbalance != 0 {
                error!(gpu = %book.gpu.uuid, nanoseconds = book.imbalance, "the books do not balance");
            }
            if !book.excess.is_zero() {
                error!(
                    gpu = %book.gpu.uuid,
                    nanoseconds = book.excess.0,
                    "an account has more held or allocated time than has passed"
                );
            }
        }
        self.published.send_replace(Arc::new(Published {
            books,
            agent: self.agent_status(sources),
            blocked: self.watchdog.blocked(now().boot, SHOWN_AS_BLOCKED),
        }));
    }

    fn agent_status(&self, sources: SourceStates) -> AgentStatus {
        let states = sources.joined(&self.outputs);
        AgentStatus {
            sources: states.iter().cloned().collect(),
            source_errors: states.errors().cloned().collect(),
            names: self.requests.names_books(),
            nvml_calls: self.nvml_calls(),
            nvml_threads: self.watchdog.threads(),
            store: self.keeping.as_ref().map(DurabilityGate::book),
            process: own_process::book(now()),
        }
    }

    fn nvml_calls(&self) -> Vec<NvmlCallBook> {
        let figures = self.watchdog.figures().into_iter();
        figures
            .map(|(call, figures)| NvmlCallBook {
                call: call.into(),
                calls: figures.calls,
                errors: figures.errors,
                total: figures.total,
                longest: figures.longest,
            })
            .collect()
    }

    fn carry_out(&mut self) {
        for effect in self.accountant.take_effects() {
            // A full channel means that the request is already in progress, or will be repeated.
            if !self.requests.send(effect) {
                debug!("a request of the core was dropped; it is made again if still needed");
            }
        }
    }

    fn answer(&mut self, query: Query) {
        match query {
            Query::Processes(reply) => {
                // The client may have disconnected.
                let _ = reply.send(self.accountant.gpu_processes(now().boot));
            }
            Query::Explain { subject, answer } => {
                let explanation = self.accountant.explain(&subject, now());
                // The client may have disconnected.
                let _ = answer.send(explanation.map(Box::new));
            }
        }
    }
}

/// Waits until the pending commit is stored or has failed. Never returns if none is pending.
async fn commit_stored(
    waiting: &mut Option<PendingCommit>,
) -> (Committed, DurabilityGate, Outcome) {
    let Some(under_way) = waiting else {
        return std::future::pending().await;
    };
    let (keeping, outcome) = (&mut under_way.kept).await;
    let committed = std::mem::take(&mut under_way.committed);
    *waiting = None;
    (committed, keeping, outcome)
}

#[cfg(test)]
mod tests;
