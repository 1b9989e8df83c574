//! Reports of the driver about processes, held back until the owners of their pids are known.
//!
//! A process list says which pids were on a GPU when it was read. A pid in it may have been given
//! to another process shortly before, and that event comes up to half a second later. If the list were
//! used at once, the container of the pid's former process could get a false peak of memory that
//! stays for ever. The driver's accounting of dead processes has the same problem.
//!
//! So both wait as windows do: until the event stream has passed them, or for a bounded time. After
//! that they count only for pids whose owner is certain.
//!
//! Times are of the boot clock.

use std::collections::VecDeque;

use crate::event_stream::EventStream;
use crate::input::{Accounted, GpuProcesses};
use crate::model::{BootTime, Clock, Nanos};

/// How many may wait. Beyond that the oldest is processed without waiting, which is counted.
const LIMIT: usize = 4096;

/// What waits.
#[derive(Debug)]
pub(crate) enum Awaited {
    /// A GPU's process lists.
    Lists(GpuProcesses),
    /// An accounting record of a process that ended.
    Died(Accounted),
}

impl Awaited {
    /// Up to when it must be known who had which pid.
    fn end(&self, received: Clock) -> BootTime {
        match self {
            Self::Lists(lists) => lists.at,
            Self::Died(process) => life_of(process, received).1,
        }
    }

    fn is_of_nobody(&self) -> bool {
        matches!(self, Self::Lists(lists) if lists.processes.is_empty())
    }
}

/// Interval in which a process was on its GPU, by one report of the driver.
pub(crate) fn life_of(process: &Accounted, received: Clock) -> (BootTime, BootTime) {
    let start = process.start_us.saturating_mul(1000);
    let age = received.wall.0.saturating_sub(start);
    let from = received.boot.minus(Nanos(age));
    (from, from.plus(process.lifetime))
}

/// The reports that wait, in the order in which they came.
#[derive(Debug, Default)]
pub(crate) struct PendingReports {
    queue: VecDeque<(Clock, Awaited)>,
}

/// What comes next.
#[derive(Debug)]
pub(crate) enum Next {
    /// Nothing waits.
    None,
    /// The oldest waits until everything up to `end` is known.
    Waits {
        /// Up to when.
        end: BootTime,
    },
    /// The oldest is to be processed.
    Ready {
        /// The report.
        awaited: Awaited,
        /// When it was received.
        received: Clock,
        /// Whether something that it depends on may still be missing.
        is_early: bool,
    },
}

impl PendingReports {
    /// Has a report wait for its turn.
    pub(crate) fn push(&mut self, awaited: Awaited, received: Clock) {
        self.queue.push_back((received, awaited));
    }

    /// Takes the oldest report if everything that it depends on is known, or if it has waited for
    /// `at_most`.
    pub(crate) fn next(&mut self, events: &EventStream, at_most: Nanos, now: BootTime) -> Next {
        let Some((received, awaited)) = self.queue.pop_front() else {
            return Next::None;
        };
        let end = awaited.end(received);
        let is_awaited = events.is_expected() && !events.has_caught_up(end);
        let is_early = is_awaited && !awaited.is_of_nobody();
        // With the one that was taken out there are too many.
        let is_full = self.queue.len() >= LIMIT;
        if is_early && !is_full && now.since(received.boot) < at_most {
            self.queue.push_front((received, awaited));
            return Next::Waits { end };
        }
        Next::Ready {
            awaited,
            received,
            is_early,
        }
    }

    /// When the oldest lists were read that wait; [`BootTime::MAX`] where none waits.
    pub(crate) fn oldest_lists(&self) -> BootTime {
        let lists = self.queue.iter().filter_map(|(_, awaited)| match awaited {
            Awaited::Lists(lists) => Some(lists.at),
            Awaited::Died(_) => None,
        });
        lists.min().unwrap_or(BootTime::MAX)
    }
}
