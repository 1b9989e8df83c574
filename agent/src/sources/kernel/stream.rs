//! Drains the ring, on a thread of its own that does nothing else.
//!
//! # When it drains
//!
//! - Each [`PERIOD`]. That is the longest wait of an ordinary record: a fork, an exec, an exit.
//! - When the object wakes it: for a record that a container may begin with (a process has entered
//!   another cgroup, or has opened a GPU), and when a quarter of the ring is full. Such drains are
//!   [`SPACING`] apart at least, see there.
//! - When its owner calls.
//!
//! The ring is watched edge-triggered: its file is readable whenever anything is in it, and a plain
//! poll would return for every single record.
//!
//! # What it reports
//!
//! What it drained. An empty drain moves `drained_through` on, and is reported when somebody has
//! asked for a report, which the core's task does shortly before each commit, or when the last
//! report is [`REPORT_EMPTY_AFTER`] old. The instant alone could be a number in memory that both
//! threads share. But then it could overtake events that wait in one of the two channels on the way
//! to the core, and the core would book windows without them. In a batch it cannot.
//!
//! # What `drained_through` promises
//!
//! That every event up to then is in this batch or one before. A drain ends at the first record
//! that is reserved and not yet written, so an empty ring is not enough: for each CPU the records
//! taken out and those lost must make up all that the CPU had seen when the drain began. Where they
//! do not, the drain is repeated a few times and else makes no promise; the next one will.
//!
//! # When nobody listens
//!
//! The channel to the core is bounded. While it is full, events collect here up to [`MAX_PENDING`];
//! from then on they stay in the ring. If that fills up too, the object drops events and counts
//! them (`lost`). A rise of `lost`, `skipped` or `undecodable` makes the core scan `/proc` again.
//! After a loss the thread also voids the announcements of
//! cgroups then, once the loss is over, so that those are made again. An event that the kernel skipped
//! ([`super::skipped`]) never came near the ring, and counts as lost in the same way.

use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{io, thread};

use aya::maps::{Array, MapData, MapError, PerCpuArray, PerCpuValues, RingBuf};
use aya_log::EbpfLogger;
use gpuacct_common::counter::{self, LOST, SEEN, SLOTS, SUBMITTED};
use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::mpsc::{self, error::TrySendError};
use tracing::{debug, error, info, trace, warn};

use crate::core::input::{EventCounters, KernelBatch};
use crate::core::model::BootTime;

use super::decode::decode;
use super::shared::Shared;
use super::skipped::Skipped;

/// How often the ring is drained if nothing asks for it earlier.
pub(super) const PERIOD: Duration = Duration::from_millis(500);
/// The least time from one drain to another that the ring asks for.
///
/// It bounds what a storm of records that wake costs (somebody moves processes between cgroups, or
/// opens a GPU, in a loop): fifty drains a second, and fifty batches for the core. A container that
/// begins in a storm is known this much later. The first record after a quiet time does not wait.
///
/// The thread does not look at the ring meanwhile, not when it is a quarter full either. The default
/// ring fills up in this time at 650,000 records a second; a core that does nothing but fork causes
/// some 16,000.
pub const SPACING: Duration = Duration::from_millis(20);
/// The period while something is left over from the last drain: events that the core had no room
/// for, or a report that is asked for and could not be made.
const PERIOD_OF_RETRIES: Duration = Duration::from_millis(100);
/// An empty drain is reported unasked when the last report is this old. With [`PERIOD`] that is every
/// second drain.
const REPORT_EMPTY_AFTER: Duration = Duration::from_millis(750);
/// How many events are kept while the core is busy: about two megabytes.
const MAX_PENDING: usize = 16_384;
/// How often a drain is repeated for a record that is being written.
const SETTLE_ATTEMPTS: usize = 8;

const RING: u64 = 0;
const CALL: u64 = 1;

/// The boot clock now.
pub(super) fn boot_time() -> BootTime {
    let now = clock_gettime(ClockId::Boottime);
    // Neither is negative: the boot clock starts at zero.
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(now.tv_nsec).unwrap_or(0);
    BootTime(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
}

/// The maps that the thread works on.
pub(super) struct Maps {
    pub(super) ring: RingBuf<MapData>,
    pub(super) counters: PerCpuArray<MapData, [u64; SLOTS]>,
    pub(super) generation: Array<MapData, u64>,
    pub(super) log: EbpfLogger<ObjectLog>,
}

/// The thread's state.
pub(super) struct Stream {
    ring: RingBuf<MapData>,
    counters: PerCpuArray<MapData, [u64; SLOTS]>,
    generation: Array<MapData, u64>,
    log: Option<EbpfLogger<ObjectLog>>,
    epoll: OwnedFd,
    shared: Arc<Shared>,
    sender: mpsc::Sender<KernelBatch>,
    /// Records taken out of the ring, by the CPU that wrote them.
    taken: Vec<u64>,
    /// Records taken out that do not say which CPU wrote them.
    taken_of_unknown_cpu: u64,
    undecodable: u64,
    skipped: Skipped,
    pending: KernelBatch,
    period: Duration,
    last_drain: Instant,
    last_report: Instant,
    /// Whether a report is asked for and not made yet.
    owes_report: bool,
    /// Whether the core had no room for the last batch.
    is_backed_up: bool,
    losses: Losses,
}

/// Whether records were lost, and whether that is over.
#[derive(Debug, Default)]
struct Losses {
    known: u64,
    ongoing: bool,
}

impl Losses {
    /// Takes the present count and says whether a loss has just come to its end: announcing
    /// cgroups anew while the ring is full would only lose more.
    fn ended(&mut self, count: u64) -> bool {
        let grew = count > self.known;
        self.known = count;
        let ended = self.ongoing && !grew;
        self.ongoing = grew;
        ended
    }
}

impl Stream {
    pub(super) fn new(
        maps: Maps,
        skipped: Skipped,
        period: Duration,
        shared: Arc<Shared>,
        sender: mpsc::Sender<KernelBatch>,
    ) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let edge = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&epoll, &maps.ring, epoll::EventData::new_u64(RING), edge)?;
        epoll::add(
            &epoll,
            shared.call_file(),
            epoll::EventData::new_u64(CALL),
            epoll::EventFlags::IN,
        )?;
        Ok(Self {
            ring: maps.ring,
            counters: maps.counters,
            generation: maps.generation,
            log: Some(maps.log),
            epoll,
            shared,
            sender,
            taken: Vec::new(),
            taken_of_unknown_cpu: 0,
            undecodable: 0,
            skipped,
            pending: KernelBatch::default(),
            period,
            last_drain: Instant::now(),
            last_report: Instant::now(),
            owes_report: false,
            is_backed_up: false,
            losses: Losses::default(),
        })
    }

    /// Runs until shutdown, until the receiver is dropped, or until a system call fails
    /// unexpectedly.
    pub(super) fn run(mut self) {
        if let Err(error) = self.run_inner() {
            error!(%error, "the thread that reads kernel events failed");
        }
    }

    fn run_inner(&mut self) -> Result<(), StreamError> {
        loop {
            self.wait()?;
            if self.shared.is_stopped() {
                return Ok(());
            }
            let is_complete = self.drain()?;
            self.forward_log();
            if self.hand_over(is_complete).is_err() {
                debug!("the core no longer receives kernel events");
                return Ok(());
            }
        }
    }

    /// Until the ring wakes it, the owner calls, or it is time.
    fn wait(&mut self) -> Result<(), StreamError> {
        let period = if self.is_backed_up || self.owes_report {
            self.period.min(PERIOD_OF_RETRIES)
        } else {
            self.period
        };
        let called = if self.is_full() {
            // A ring that stays full wakes for every record, and there is nothing to do about it.
            self.wait_for_call(period)?
        } else {
            let woken_by = self.wait_for_any(period)?;
            let too_early = SPACING.saturating_sub(self.last_drain.elapsed());
            // Wake-ups within `SPACING` of the last drain cause one drain together: while nobody waits
            // for the ring, they only mark it as ready.
            woken_by.call
                || (woken_by.ring && !too_early.is_zero() && self.wait_for_call(too_early)?)
        };
        if called {
            let mut count = [0; 8];
            uninterrupted(rustix::io::read(self.shared.call_file(), &mut count))?;
        }
        if self.shared.take_clear_announced() {
            self.clear_announced()?;
        }
        self.owes_report |= self.shared.take_report();
        Ok(())
    }

    fn wait_for_any(&self, at_most: Duration) -> Result<WokenBy, StreamError> {
        let at_most = timespec(at_most);
        let mut events = Vec::with_capacity(2);
        let space = rustix::buffer::spare_capacity(&mut events);
        uninterrupted(epoll::wait(&self.epoll, space, Some(&at_most)))?;
        let is_by = |which| events.iter().any(|event| event.data.u64() == which);
        Ok(WokenBy {
            ring: is_by(RING),
            call: is_by(CALL),
        })
    }

    /// Returns whether the owner called.
    fn wait_for_call(&self, at_most: Duration) -> Result<bool, StreamError> {
        let at_most = timespec(at_most);
        let mut fds = [PollFd::new(self.shared.call_file(), PollFlags::IN)];
        Ok(uninterrupted(poll(&mut fds, Some(&at_most)))? > 0)
    }

    fn is_full(&self) -> bool {
        self.pending.events.len() >= MAX_PENDING
    }

    /// Takes out what is in the ring. Returns whether that was every event up to the drain's beginning.
    fn drain(&mut self) -> Result<bool, StreamError> {
        self.last_drain = Instant::now();
        let began = boot_time();
        let at_start = self.read_counters()?;
        self.take_all();
        let mut later: Option<PerCpuValues<[u64; SLOTS]>> = None;
        let mut attempt = 0;
        let is_complete = loop {
            // Most drains need one reading: what had been seen was taken out just now, or lost before.
            if self.has_taken_all(&at_start, later.as_ref().unwrap_or(&at_start)) {
                self.pending.drained_through = began;
                break true;
            }
            if attempt == SETTLE_ATTEMPTS || self.is_full() {
                trace!(
                    attempt,
                    "some records that were reserved before this drain are not written yet"
                );
                break false;
            }
            attempt += 1;
            thread::yield_now();
            self.take_all();
            later = Some(self.read_counters()?);
        };
        let now = later.unwrap_or(at_start);

        // Read after the drain began, as the others: what is promised up to then is all counted.
        let counters = EventCounters {
            skipped: self.skipped.total(),
            ..self.sum(&now)
        };
        if self.losses.ended(counters.missing()) {
            warn!(
                lost = counters.lost,
                undecodable = counters.undecodable,
                skipped = counters.skipped,
                "kernel events were lost; /proc will be scanned"
            );
            self.clear_announced()?;
        }
        self.pending.counters = counters;
        self.shared.set_counters(counters);
        Ok(is_complete)
    }

    /// Takes what is in the ring, as far as there is room for it.
    fn take_all(&mut self) {
        while !self.is_full() {
            let Some(record) = self.ring.next() else {
                return;
            };
            let (cpu, event) = decode(&record);
            drop(record);
            match cpu.and_then(|cpu| self.taken.get_mut(usize::try_from(cpu).ok()?)) {
                Some(taken) => *taken += 1,
                None => self.taken_of_unknown_cpu += 1,
            }
            match event {
                Ok(event) => self.pending.events.push(event),
                Err(error) => {
                    self.undecodable += 1;
                    debug!(%error, "cannot decode a record of the ring buffer");
                }
            }
        }
    }

    fn has_taken_all(&self, at_start: &[[u64; SLOTS]], now: &[[u64; SLOTS]]) -> bool {
        missing(at_start, now, &self.taken) <= self.taken_of_unknown_cpu
    }

    /// Every CPU's counters.
    fn read_counters(&mut self) -> Result<PerCpuValues<[u64; SLOTS]>, StreamError> {
        let values = self.counters.get(&0, 0).map_err(StreamError::Counters)?;
        self.taken.resize(values.len(), 0);
        Ok(values)
    }

    fn sum(&self, counters: &[[u64; SLOTS]]) -> EventCounters {
        let sum = |counter| counters.iter().map(|cpu| total(cpu, counter)).sum();
        EventCounters {
            seen: sum(SEEN),
            submitted: sum(SUBMITTED),
            lost: sum(LOST),
            undecodable: self.undecodable,
            skipped: 0,
        }
    }

    fn clear_announced(&mut self) -> Result<(), StreamError> {
        let generation = self
            .generation
            .get(&0, 0)
            .map_err(StreamError::Generation)?;
        self.generation
            .set(0, generation.wrapping_add(1), 0)
            .map_err(StreamError::Generation)
    }

    /// Carries the object's own messages into the agent's log.
    fn forward_log(&mut self) {
        // aya-log panics on a record that it cannot read. It must not take the events with it.
        let forwarded = catch_unwind(AssertUnwindSafe(|| {
            if let Some(log) = &mut self.log {
                log.flush();
            }
        }));
        if forwarded.is_err() {
            self.log = None;
            error!("cannot read a log message of the eBPF object; its log is closed");
        }
    }

    /// Sends the pending batch if it is due and the channel has room. `Err` if the receiver was
    /// dropped.
    fn hand_over(&mut self, is_complete: bool) -> Result<(), ()> {
        let is_due = !self.pending.events.is_empty()
            || self.owes_report
            || self.last_report.elapsed() >= REPORT_EMPTY_AFTER;
        if !is_due {
            return if self.sender.is_closed() {
                Err(())
            } else {
                Ok(())
            };
        }
        let next = KernelBatch {
            events: Vec::new(),
            ..self.pending
        };
        match self
            .sender
            .try_send(std::mem::replace(&mut self.pending, next))
        {
            Ok(()) => {
                self.last_report = Instant::now();
                self.is_backed_up = false;
                // An incomplete drain does not move `drained_through`. Then the report that was asked
                // for is still owed.
                self.owes_report &= !is_complete;
                Ok(())
            }
            Err(TrySendError::Full(batch)) => {
                self.pending = batch;
                self.is_backed_up = true;
                Ok(())
            }
            Err(TrySendError::Closed(_)) => Err(()),
        }
    }
}

/// What ended a wait. Neither, if it was time.
#[derive(Clone, Copy, Debug)]
struct WokenBy {
    ring: bool,
    call: bool,
}

fn timespec(duration: Duration) -> Timespec {
    Timespec::try_from(duration).unwrap_or_default()
}

/// Records that had been seen `at_start` and that are by `now` neither taken nor lost.
///
/// Per CPU, since there records are made one after the other: in a sum over CPUs a later record of
/// one would stand in for an earlier one of another.
fn missing(at_start: &[[u64; SLOTS]], now: &[[u64; SLOTS]], taken: &[u64]) -> u64 {
    at_start
        .iter()
        .zip(now)
        .zip(taken)
        .map(|((at_start, now), taken)| {
            total(at_start, SEEN).saturating_sub(total(now, LOST).saturating_add(*taken))
        })
        .sum()
}

/// One counter of one CPU, over all attach points.
fn total(cpu: &[u64; SLOTS], which: usize) -> u64 {
    cpu.chunks_exact(counter::COUNTERS)
        .map(|attach_point| attach_point[which])
        .sum()
}

fn uninterrupted<T: Default>(result: Result<T, Errno>) -> Result<T, StreamError> {
    match result {
        Err(Errno::INTR | Errno::AGAIN) => Ok(T::default()),
        result => result.map_err(|errno| StreamError::Wait(errno.into())),
    }
}

/// Why the thread cannot go on. None of them happens while the maps are there.
#[derive(Debug, thiserror::Error)]
enum StreamError {
    #[error("cannot wait for the ring")]
    Wait(#[source] io::Error),
    #[error("cannot read the object's counters")]
    Counters(#[source] MapError),
    #[error("cannot clear the map of announced cgroups")]
    Generation(#[source] MapError),
}

/// Writes the object's messages into the agent's log, under a target of their own.
pub(super) struct ObjectLog;

impl log::Log for ObjectLog {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let message = record.args();
        match record.level() {
            log::Level::Error => error!(target: "gpuacct::ebpf", "{message}"),
            log::Level::Warn => warn!(target: "gpuacct::ebpf", "{message}"),
            log::Level::Info => info!(target: "gpuacct::ebpf", "{message}"),
            log::Level::Debug => debug!(target: "gpuacct::ebpf", "{message}"),
            log::Level::Trace => trace!(target: "gpuacct::ebpf", "{message}"),
        }
    }

    fn flush(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counters of one CPU: `(seen, lost)` at the first two attach points.
    fn cpu(rows: [(u64, u64); 2]) -> [u64; SLOTS] {
        let mut counters = [0; SLOTS];
        for (attach_point, (seen, lost)) in (0u32..).zip(rows) {
            counters[counter::slot(attach_point, SEEN)] = seen;
            counters[counter::slot(attach_point, LOST)] = lost;
        }
        counters
    }

    #[test]
    fn a_record_is_missing_until_it_is_taken_or_lost() {
        let quiet = cpu([(0, 0), (0, 0)]);
        let rows = [
            ("nothing happened", vec![quiet], vec![quiet], vec![0], 0),
            (
                "taken",
                vec![cpu([(3, 0), (2, 0)])],
                vec![cpu([(3, 0), (2, 0)])],
                vec![5],
                0,
            ),
            (
                "lost",
                vec![cpu([(3, 0), (2, 0)])],
                vec![cpu([(3, 1), (2, 1)])],
                vec![3],
                0,
            ),
            (
                "being written",
                vec![cpu([(3, 0), (2, 0)])],
                vec![cpu([(3, 0), (2, 0)])],
                vec![4],
                1,
            ),
            (
                "seen later",
                vec![cpu([(3, 0), (2, 0)])],
                vec![cpu([(9, 0), (9, 0)])],
                vec![5],
                0,
            ),
            (
                "another cpu's later record does not stand in",
                vec![cpu([(1, 0), (0, 0)]), quiet],
                vec![cpu([(1, 0), (0, 0)]), cpu([(7, 0), (0, 0)])],
                vec![0, 7],
                1,
            ),
        ];
        for (what, at_start, now, taken, expected) in rows {
            assert_eq!(missing(&at_start, &now, &taken), expected, "{what}");
        }
    }

    #[test]
    fn announcements_are_voided_once_a_loss_is_over() {
        let mut losses = Losses::default();
        let ended: Vec<bool> = [0, 0, 5, 9, 9, 9, 12, 12]
            .into_iter()
            .map(|count| losses.ended(count))
            .collect();
        assert_eq!(
            ended,
            [false, false, false, false, true, false, false, true]
        );
    }
}
