//! One export of deltas: its growths are recorded in the file first, then confirmed or undone
//! message by message.
//!
//! The state of an export is kept here and not in the export's future, which may be dropped at any
//! moment. A message whose sending began counts as sent. Any other message is taken back with the
//! next export.

use std::collections::VecDeque;
use std::sync::Arc;

use super::sent_totals::{Growth, SentTotals};
use super::sent_totals_file::{KeepError, SentTotalsFile, SentTotalsLocation};
use super::transport::{Arrival, Failure, Retry};
use crate::core::snapshot::Snapshot;
use crate::outputs::counters::OutputCounters;

/// What a receiver of deltas has been sent, and the export in progress.
#[derive(Debug)]
pub(super) struct DeltaSession {
    /// Absent where nothing outlives the agent: then no series does either.
    file: Option<SentTotalsFile>,
    /// Absent until it has been read.
    sent: Option<SentTotals>,
    /// Queued messages, one list of growths each.
    offered: VecDeque<Vec<Growth>>,
    /// The message that is being sent.
    begun: Vec<Growth>,
    /// Whether the file records more than was sent.
    is_ahead: bool,
    counters: Arc<OutputCounters>,
}

impl DeltaSession {
    pub(super) fn new(place: Option<SentTotalsLocation>, counters: Arc<OutputCounters>) -> Self {
        Self {
            file: place.map(SentTotalsFile::new),
            sent: None,
            offered: VecDeque::new(),
            begun: Vec::new(),
            is_ahead: false,
            counters,
        }
    }

    /// Begins an export. Returns the totals that were sent so far.
    pub(super) async fn begin(&mut self, snapshot: &Snapshot) -> Result<&mut SentTotals, Failure> {
        self.take_back_offered();
        self.begun.clear();
        let sent = match self.sent.take() {
            Some(sent) => sent,
            None => self.read(snapshot).await?,
        };
        Ok(self.sent.insert(sent))
    }

    async fn read(&mut self, snapshot: &Snapshot) -> Result<SentTotals, Failure> {
        // The books begin when the agent before has let go of them: whatever series it had began
        // earlier.
        let began = snapshot.agent_started;
        let Some(file) = &mut self.file else {
            return Ok(SentTotals::new("", began));
        };
        let boot = file.location().boot().to_owned();
        let read = file.read().await.and_then(|text| {
            let Some(text) = text else {
                return Ok(None);
            };
            SentTotals::read(&text, &boot, began, snapshot.at).map_err(|source| {
                KeepError::Content {
                    path: file.location().file(),
                    source,
                }
            })
        });
        match read {
            Ok(sent) => Ok(sent.unwrap_or_else(|| SentTotals::new(&boot, began))),
            Err(error @ KeepError::Locked { .. }) => Err(refused(&error)),
            Err(error) => {
                self.counters.otlp_deltas_unread.add(1);
                tracing::warn!(
                    class = error.class(),
                    reason = error.words(),
                    "cannot read which deltas were sent before; deltas begin with the present totals"
                );
                Ok(SentTotals::new(&boot, began))
            }
        }
    }

    /// Records the growths that are about to be sent, one list for each message. Series that are not
    /// in this snapshot are no longer published.
    ///
    /// # Errors
    ///
    /// If the growths must not be sent.
    pub(super) async fn offer(
        &mut self,
        snapshot: &Snapshot,
        messages: impl Iterator<Item = Vec<Growth>>,
    ) -> Result<(), Failure> {
        self.offered = messages.collect();
        if let Some(sent) = &mut self.sent {
            sent.forget_absent(snapshot.at);
            for growths in &self.offered {
                sent.advance(growths);
            }
        }
        self.is_ahead = true;
        let written = self.write().await;
        if written.is_err() {
            self.take_back_offered();
        }
        written
    }

    /// The next message is being sent: from here on it may have arrived.
    pub(super) fn message_begins(&mut self) {
        self.begun = self.offered.pop_front().unwrap_or_default();
    }

    /// The message that was begun did not arrive.
    pub(super) fn message_failed(&mut self) {
        if let Some(sent) = &mut self.sent {
            sent.take_back(&self.begun);
        }
        self.begun.clear();
        self.is_ahead = true;
    }

    /// Ends an export: growths that were not sent are taken back, in the file, too, if it can be
    /// written.
    pub(super) async fn end(&mut self) {
        self.take_back_offered();
        if self.is_ahead {
            // What the file says beyond what was sent is safe; the next push writes it anew.
            let _ = self.write().await;
        }
    }

    /// Why a restart would not go on from here, if so.
    pub(super) fn trouble(&self) -> Option<Failure> {
        let error = self.file.as_ref()?.trouble()?;
        Some(Failure {
            reason: format!(
                "deltas are sent, but {}; after a restart they would begin with the totals of then",
                error.words()
            ),
            ..refused(error)
        })
    }

    fn take_back_offered(&mut self) {
        for growths in self.offered.drain(..) {
            if let Some(sent) = &mut self.sent {
                sent.take_back(&growths);
            }
            self.is_ahead = true;
        }
    }

    async fn write(&mut self) -> Result<(), Failure> {
        let (Some(file), Some(sent)) = (&mut self.file, &self.sent) else {
            return Ok(());
        };
        let text = sent.write().map_err(|source| {
            let path = file.location().file();
            refused(&KeepError::Content { path, source })
        })?;
        let written = file.write(text).await;
        match &written {
            Ok(true) => {
                self.counters.otlp_deltas_kept.add(1);
                self.is_ahead = false;
            }
            Ok(false) | Err(_) => self.counters.otlp_deltas_unkept.add(1),
        }
        // Why not is the source's state, and in the log with it.
        written.map(drop).map_err(|error| refused(&error))
    }
}

/// Nothing was sent, for this reason.
fn refused(error: &KeepError) -> Failure {
    Failure {
        class: error.class(),
        reason: error.words(),
        retry: Retry::Backoff,
        arrival: Arrival::No,
        is_of_content: false,
    }
}
