//! Pushes the books to an OpenTelemetry receiver, over gRPC or HTTP/protobuf.
//!
//! What is sent is cumulative unless configured: a message that got lost is made good by the next
//! one, so a retry always sends the newest commit and nothing is queued. While the receiver is away
//! the agent keeps one snapshot, not a backlog; what the receiver misses is the resolution in time,
//! never an amount.
//!
//! Deltas ([`Temporality::Delta`]) are for receivers that add up. There a message that got lost is
//! gone, and one that came twice is billed twice. The second must not be: each growth is sent at
//! most once, over crashes of the agent too. It is sent again, with what came since, only where it
//! certainly did not arrive.
//!
//! It refuses to slow anything down: it reads the last commit when it is its turn, and its health is
//! offered without waiting.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::ReadClock;
use super::counters::OutputCounters;
use super::instruments::{OptIn, View};
use super::receiver::{Origin, Receiver, ReceiverError};
use crate::core::input::SourceHealth;
use crate::core::model::SourceId;
use crate::published::Published;

mod attributes;
mod delta_session;
mod health;
mod pace;
mod records;
mod request;
mod sent_totals;
mod sent_totals_file;
mod shape;
mod signal;
mod starts;
mod transport;

use delta_session::DeltaSession;
use health::Health;
use pace::{Backoff, random, spread};
pub use records::{RecordsExporter, RecordsOptions};
use request::{Counters, build};
pub use sent_totals_file::SentTotalsLocation;
pub use shape::{Layout, Naming, Shape};
use signal::Metrics;
use starts::Starts;
pub use starts::StartsFile;
use transport::{Arrival, Failure, Retry, Transport};

/// How and when to push.
#[derive(Clone, Debug)]
pub struct Options {
    /// Receiver of the exports.
    pub receiver: Receiver,
    /// The time between two pushes; each is up to a tenth earlier or later, so that the nodes of a
    /// cluster do not push together.
    pub interval: Duration,
    /// The first push comes at some moment within this time after the first commit: a cluster's
    /// agents often start together.
    pub first_within: Duration,
    /// The first pause after a failure; it doubles with every further one. The pause that is taken
    /// is between half of that and the whole.
    pub backoff: Duration,
    /// The longest such pause.
    pub backoff_max: Duration,
    /// Points in one message at most.
    pub max_points: usize,
    /// How long the last push may take when the agent stops.
    pub flush_deadline: Duration,
    /// Where the figures come from.
    pub origin: Origin,
    /// What is sent only where it is asked for.
    pub opt_in: watch::Receiver<Arc<OptIn>>,
    /// Names of metrics and attributes, and where container names go.
    pub shape: Shape,
    /// What a counter's points say.
    pub temporality: Temporality,
    /// Where it is kept which counters are sent without their start; absent where no series outlives
    /// the agent.
    pub starts: Option<StartsFile>,
}

/// What a counter's points say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Temporality {
    /// Totals since the start of the series.
    #[default]
    Cumulative,
    /// What came since the last point; where it is kept what was sent. Where that is nowhere, no
    /// series may outlive the agent.
    Delta(Option<SentTotalsLocation>),
}

impl Options {
    /// The defaults for a receiver.
    #[must_use]
    pub fn new(receiver: Receiver, origin: Origin) -> Self {
        Self {
            receiver,
            interval: Duration::from_secs(60),
            first_within: Duration::from_secs(5),
            backoff: Duration::from_secs(1),
            backoff_max: Duration::from_secs(60),
            max_points: 4_000,
            flush_deadline: Duration::from_secs(5),
            origin,
            opt_in: watch::channel(Arc::default()).1,
            shape: Shape::default(),
            temporality: Temporality::default(),
            starts: None,
        }
    }
}

/// Pushes the books.
pub struct Exporter {
    options: Options,
    transport: Transport<Metrics>,
    published: watch::Receiver<Arc<Published>>,
    counters: Arc<OutputCounters>,
    clock: ReadClock,
    health: Health,
    /// Absent where what is sent is cumulative.
    session: Option<DeltaSession>,
    starts: Starts,
}

impl std::fmt::Debug for Exporter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exporter")
            .field("receiver", &self.options.receiver)
            .finish_non_exhaustive()
    }
}

impl Exporter {
    /// An exporter; nothing is connected before [`Exporter::run`]. Must be called within a tokio
    /// runtime.
    ///
    /// # Errors
    /// If the receiver cannot work, whatever it answers.
    pub fn new(
        options: Options,
        published: watch::Receiver<Arc<Published>>,
        counters: Arc<OutputCounters>,
        clock: ReadClock,
        health: mpsc::Sender<SourceHealth>,
    ) -> Result<Self, ReceiverError> {
        let transport = Transport::new(&options.receiver)?;
        let health = Health::new(SourceId::Otlp, &options.receiver.endpoint, health);
        let session = match &options.temporality {
            Temporality::Cumulative => None,
            Temporality::Delta(place) => {
                Some(DeltaSession::new(place.clone(), Arc::clone(&counters)))
            }
        };
        let starts = Starts::new(options.starts.clone(), Arc::clone(&counters));
        Ok(Self {
            starts,
            options,
            transport,
            published,
            counters,
            clock,
            health,
            session,
        })
    }

    /// Pushes until `shutdown` is done, then once more with the newest commit, within the deadline.
    /// A message that is under way at that moment is given up: the last one has more in it. Where it
    /// has deltas the last one has not, and it is waited for within the same deadline.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) {
        tokio::pin!(shutdown);
        let ended = self.push_until(shutdown.as_mut()).await;
        let deadline = self.options.flush_deadline;
        let endpoint = &self.options.receiver.endpoint.clone();
        let ends = ended + deadline;
        let last = tokio::time::timeout_at(ends, self.push()).await;
        if let Some(session) = &mut self.session {
            session.end().await;
        }
        match last {
            Ok(Ok(())) => {}
            Ok(Err(Failure { class, reason, .. })) => {
                tracing::warn!(%endpoint, class, %reason, "the last OTLP export failed");
            }
            Err(_) => {
                tracing::warn!(%endpoint, ?deadline, "the last OTLP export did not finish in time");
            }
        }
    }

    /// Returns when it is to stop, or when there will be no further commit, and says when that was.
    async fn push_until(&mut self, mut stop: Pin<&mut impl Future<Output = ()>>) -> Instant {
        let committed = self
            .published
            .wait_for(|published| published.books.sequence > 0);
        tokio::select! {
            biased;
            () = &mut stop => return Instant::now(),
            committed = committed => if committed.is_err() {
                return Instant::now();
            }
        }
        let mut pause = self.options.first_within.mul_f64(random());
        let backoff = Backoff {
            first: self.options.backoff,
            most: self.options.backoff_max,
        };
        let mut failures = 0;
        loop {
            tokio::select! {
                biased;
                () = &mut stop => return Instant::now(),
                () = tokio::time::sleep(pause) => {}
            }
            let has_deltas = self.session.is_some();
            let deadline = self.options.flush_deadline;
            let pushed = {
                let push = self.push();
                tokio::pin!(push);
                tokio::select! {
                    biased;
                    () = &mut stop => {
                        let now = Instant::now();
                        if has_deltas {
                            // What becomes of it is counted; the last push has the rest.
                            let _ = tokio::time::timeout_at(now + deadline, push).await;
                        }
                        return now;
                    }
                    pushed = &mut push => pushed,
                }
            };
            pause = match pushed {
                Ok(()) => {
                    failures = 0;
                    let now = (self.clock)().boot;
                    let pause = spread(self.options.interval);
                    match self.session.as_ref().and_then(DeltaSession::trouble) {
                        None => self.health.up(now),
                        Some(trouble) => self.health.down(now, trouble, pause),
                    }
                    pause
                }
                Err(failure) => {
                    let pause = match failure.retry {
                        Retry::Backoff => backoff.after(failures),
                        // If the receiver asks for no pause, the usual one is used.
                        Retry::After(pause) => pause.max(backoff.after(failures)),
                        Retry::Never => spread(self.options.interval),
                    };
                    failures = failures.saturating_add(1);
                    self.health.down((self.clock)().boot, failure, pause);
                    pause
                }
            };
            if self.published.has_changed().is_err() {
                return Instant::now();
            }
        }
    }

    /// Sends the newest commit. A message that the receiver will never like does not keep the
    /// others back; one that may be tried again does, since then all are.
    ///
    /// It may be given up at any moment.
    async fn push(&mut self) -> Result<(), Failure> {
        let published = Arc::clone(&self.published.borrow_and_update());
        let snapshot = &published.books;
        if snapshot.sequence == 0 {
            return Ok(());
        }
        let opt_in = Arc::clone(&self.options.opt_in.borrow());
        let view = View::new(&published, &self.counters, &opt_in);
        let (origin, shape) = (&self.options.origin, self.options.shape);
        let max_points = self.options.max_points;
        let messages = match &mut self.session {
            None => {
                self.starts.begin().await;
                let totals = Counters::Totals(&mut self.starts);
                let messages = build(&view, origin, shape, max_points, totals);
                self.starts.keep().await;
                messages
            }
            Some(session) => {
                let sent = session.begin(snapshot).await?;
                let mut messages = build(&view, origin, shape, max_points, Counters::Growths(sent));
                let growths = messages.iter_mut();
                let growths = growths.map(|outgoing| std::mem::take(&mut outgoing.growths));
                session.offer(snapshot, growths).await?;
                messages
            }
        };
        let mut outcome = Ok(());
        for outgoing in messages {
            let points = outgoing.points;
            if let Some(session) = &mut self.session {
                session.message_begins();
            }
            match self.transport.send(outgoing.request).await {
                Ok(accepted) => {
                    let rejected = accepted.rejected.min(points);
                    self.counters.otlp_requests_delivered.add(1);
                    self.counters.otlp_points_delivered.add(points - rejected);
                    self.counters.otlp_points_rejected.add(rejected);
                    if rejected > 0 || !accepted.message.is_empty() {
                        tracing::warn!(
                            endpoint = %self.options.receiver.endpoint,
                            points,
                            rejected,
                            message = %accepted.message,
                            "the OTLP receiver rejected points or sent a warning"
                        );
                    }
                }
                Err(failure) => {
                    self.counters.otlp_requests_failed.add(1);
                    match (&mut self.session, failure.arrival) {
                        (Some(_), Arrival::Unknown) => {
                            self.counters.otlp_points_unknown.add(points)
                        }
                        (session, _) => {
                            self.counters.otlp_points_failed.add(points);
                            if let Some(session) = session {
                                session.message_failed();
                            }
                        }
                    }
                    let last = failure.retry != Retry::Never;
                    if outcome.is_ok() || last {
                        outcome = Err(failure);
                    }
                    if last {
                        break;
                    }
                }
            }
        }
        if let Some(session) = &mut self.session {
            session.end().await;
        }
        outcome
    }
}

#[cfg(test)]
mod tests;
