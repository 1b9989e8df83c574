//! Sends usage records: each account's hour as a log record, at least once.
//!
//! A record stays in the [`Outbox`] until a receiver has acknowledged it. So it is sent at least once,
//! over restarts and crashes, and twice if an answer is lost. It is settled, and never sent again, if
//!
//! - the receiver took the message that it was in, also if it says that it refused some of its records
//!   for good (`partial_success` says how many and not which),
//! - the receiver refuses the record by itself as invalid, and takes another one of the same batch.
//!   Then the fault is the record's and not that of whoever answers.
//!
//! Every other failure leaves it where it is: a receiver that wants another token, or a proxy that
//! answers anything with 400, has not judged the record.
//!
//! The ledger is asked once in an interval, not with each commit. The exporter delays nothing else:
//! its health is offered without waiting.

use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;
use tokio::sync::{mpsc, watch};

use super::health::Health;
use super::pace::{Backoff, spread};
use super::request::MAX_BYTES;
use super::signal::Logs;
use super::transport::{Arrival, Failure, Retry, Transport};
use crate::core::input::SourceHealth;
use crate::core::model::SourceId;
use crate::outputs::ReadClock;
use crate::outputs::counters::OutputCounters;
use crate::outputs::instruments::OptIn;
use crate::outputs::receiver::{Origin, Receiver, ReceiverError};
use crate::usage_record::{Outbox, OutboxError, RecordKey, UsageRecord};

mod message;

/// Records in one message at most. Each has about one kilobyte.
const MOST: usize = 100;
/// The pause after every record of a batch was refused as invalid. To find that out takes up to two
/// messages for each record.
const ALL_REFUSED: Duration = Duration::from_secs(600);

/// How and when to send.
#[derive(Clone, Debug)]
pub struct RecordsOptions {
    /// Who receives the records.
    pub receiver: Receiver,
    /// How often the ledger is asked; each time up to a tenth earlier or later. The first time is after
    /// the first interval: by then the time in which no agent ran is booked in the hours that it was in.
    pub interval: Duration,
    /// The first pause after a failure; it doubles with every further one.
    pub backoff: Duration,
    /// The longest such pause.
    pub backoff_max: Duration,
    /// Where the records come from.
    pub origin: Origin,
    /// Which labels of pods are sent.
    pub opt_in: watch::Receiver<Arc<OptIn>>,
}

impl RecordsOptions {
    /// The defaults for a receiver.
    #[must_use]
    pub fn new(receiver: Receiver, origin: Origin) -> Self {
        Self {
            receiver,
            interval: Duration::from_secs(60),
            backoff: Duration::from_secs(1),
            backoff_max: Duration::from_secs(60),
            origin,
            opt_in: watch::channel(Arc::default()).1,
        }
    }
}

/// Sends usage records.
pub struct RecordsExporter {
    options: RecordsOptions,
    transport: Transport<Logs>,
    counters: Arc<OutputCounters>,
    clock: ReadClock,
    health: Health,
}

impl std::fmt::Debug for RecordsExporter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RecordsExporter")
            .field("receiver", &self.options.receiver)
            .finish_non_exhaustive()
    }
}

/// What became of a batch.
#[derive(Debug, Default)]
struct Batch {
    /// Whether a message with a part of it was taken.
    is_taken: bool,
    /// Records that were refused as invalid, each by itself.
    refused: Vec<RecordKey>,
    /// Why the last of them was.
    refusal: Option<Failure>,
}

impl RecordsExporter {
    /// An exporter; nothing is connected before [`RecordsExporter::run`]. Must be called within a tokio
    /// runtime.
    ///
    /// # Errors
    /// If the receiver cannot work, whatever it answers.
    pub fn new(
        options: RecordsOptions,
        counters: Arc<OutputCounters>,
        clock: ReadClock,
        health: mpsc::Sender<SourceHealth>,
    ) -> Result<Self, ReceiverError> {
        Ok(Self {
            transport: Transport::new(&options.receiver)?,
            health: Health::new(SourceId::Records, &options.receiver.endpoint, health),
            options,
            counters,
            clock,
        })
    }

    /// Sends what is due until `shutdown` is done. What is under way then is sent again by the next
    /// agent.
    pub async fn run(mut self, outbox: impl Outbox, shutdown: impl Future<Output = ()>) {
        tokio::pin!(shutdown);
        let backoff = Backoff {
            first: self.options.backoff,
            most: self.options.backoff_max,
        };
        let mut pause = spread(self.options.interval);
        let mut failures = 0;
        loop {
            tokio::select! {
                biased;
                () = &mut shutdown => return,
                () = tokio::time::sleep(pause) => {}
            }
            let sent = tokio::select! {
                biased;
                () = &mut shutdown => return,
                sent = self.send_due(&outbox) => sent,
            };
            pause = match sent {
                Ok(()) => {
                    failures = 0;
                    self.health.up((self.clock)().boot);
                    spread(self.options.interval)
                }
                Err(failure) => {
                    let pause = match failure.retry {
                        Retry::Backoff => backoff.after(failures),
                        Retry::After(pause) => pause.max(backoff.after(failures)),
                        Retry::Never if failure.is_of_content => ALL_REFUSED,
                        Retry::Never => self.options.backoff_max,
                    };
                    failures = failures.saturating_add(1);
                    self.health.down((self.clock)().boot, failure, pause);
                    pause
                }
            };
        }
    }

    /// Sends all that is due, batch by batch. It may be given up at any moment.
    async fn send_due(&mut self, outbox: &impl Outbox) -> Result<(), Failure> {
        loop {
            let records = outbox.offer(MOST).await.map_err(unasked)?;
            if records.is_empty() {
                return Ok(());
            }
            let mut batch = Batch::default();
            self.send(&records, outbox, &mut batch).await?;
            let refused = batch.refused.len() as u64;
            match batch.refusal {
                Some(failure) if !batch.is_taken => {
                    self.counters.records_failed.add(refused);
                    return Err(failure);
                }
                Some(failure) => {
                    let ids = records.iter().filter(|it| batch.refused.contains(&it.key));
                    let ids: Vec<&str> = ids.map(|record| record.id.as_str()).collect();
                    tracing::warn!(
                        endpoint = %self.options.receiver.endpoint,
                        records = ?ids,
                        class = failure.class,
                        reason = %failure.reason,
                        "the receiver refuses usage records as invalid; they are not sent again"
                    );
                    self.counters.records_rejected.add(refused);
                    outbox.settle(batch.refused).await.map_err(unasked)?;
                }
                None => {}
            }
        }
    }

    /// Sends records, and settles those of every message that is taken. A message that is refused for
    /// its content is sent again in halves, so that one record does not keep the others back.
    async fn send(
        &mut self,
        records: &[UsageRecord],
        outbox: &impl Outbox,
        batch: &mut Batch,
    ) -> Result<(), Failure> {
        let opt_in = Arc::clone(&self.options.opt_in.borrow());
        let mut parts = vec![records];
        while let Some(part) = parts.pop() {
            let now = (self.clock)().wall;
            let request = message::of(part, &self.options.origin, &opt_in.pod_labels, now);
            let halves = part.split_at(part.len() / 2);
            if part.len() > 1 && request.encoded_len() > MAX_BYTES {
                parts.extend([halves.1, halves.0]);
                continue;
            }
            let keys = part.iter().map(|record| record.key);
            let count = part.len() as u64;
            match self.transport.send(request).await {
                Ok(accepted) => {
                    let rejected = accepted.rejected.min(count);
                    if rejected > 0 || !accepted.message.is_empty() {
                        tracing::warn!(
                            endpoint = %self.options.receiver.endpoint,
                            records = count,
                            rejected,
                            message = %accepted.message,
                            "the receiver rejected usage records or sent a warning"
                        );
                    }
                    batch.is_taken = true;
                    self.counters.records_delivered.add(count - rejected);
                    self.counters.records_rejected.add(rejected);
                    outbox.settle(keys.collect()).await.map_err(unasked)?;
                }
                Err(failure) if failure.is_of_content && part.len() > 1 => {
                    parts.extend([halves.1, halves.0]);
                }
                Err(failure) if failure.is_of_content => {
                    batch.refused.extend(keys);
                    batch.refusal = Some(failure);
                }
                Err(failure) => {
                    self.counters.records_failed.add(count);
                    return Err(failure);
                }
            }
        }
        Ok(())
    }
}

/// Nothing was sent, since the ledger cannot be asked.
fn unasked(error: OutboxError) -> Failure {
    Failure {
        class: "store",
        reason: error.to_string(),
        retry: Retry::Backoff,
        arrival: Arrival::No,
        is_of_content: false,
    }
}

#[cfg(test)]
mod tests;
