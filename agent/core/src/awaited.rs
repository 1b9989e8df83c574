//! Reports of the driver about processes, held back until the owners of their pids are known.
//!
//! A process list says which pids were on a GPU when it was read. A pid in it may have been given
//! to another process shortly before, and that event comes up to 200 ms later. If the list were
//! used at once, the container of the pid's former process could get a false peak of memory that
//! stays for ever. The driver's accounting of dead processes has the same problem.
//!
//! So both wait as windows do: until the event stream has passed them, or for a bounded time. After
//! that they count only for pids whose owner is certain.
//!
//! Times are of the boot clock.

use super::accountant::{Accountant, Effect};
use super::input::{Accounted, GpuProcesses};
use super::model::{BootTime, Clock, Nanos};

/// How many may wait. Beyond that the oldest is processed without waiting, which is counted.
const LIMIT: usize = 4096;

/// What waits.
#[derive(Debug)]
pub(super) enum Awaited {
    /// A GPU's process lists.
    Lists(GpuProcesses),
    /// What is said of a process that died.
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

/// From when to when a process was one of its GPU, by what the driver said at a time.
pub(super) fn life_of(process: &Accounted, received: Clock) -> (BootTime, BootTime) {
    let start = process.start_us.saturating_mul(1000);
    let age = received.wall.0.saturating_sub(start);
    let from = received.boot.minus(Nanos(age));
    (from, from.plus(process.lifetime))
}

impl Accountant {
    /// Has this wait for its turn.
    pub(super) fn await_owners(&mut self, awaited: Awaited, clock: Clock) {
        self.awaited.push_back((clock, awaited));
    }

    /// Takes what has waited long enough, in the order in which it came.
    pub(super) fn take_awaited(&mut self, clock: Clock) {
        while let Some((received, awaited)) = self.awaited.front() {
            let end = awaited.end(*received);
            let is_awaited = self.stream.is_expected() && !self.stream.has_caught_up(end);
            let waited = clock.boot.since(received.boot);
            if is_awaited
                && waited < self.settings.await_events
                && self.awaited.len() <= LIMIT
                && !awaited.is_of_nobody()
            {
                if self.stream.lacks_scan(end) && !self.stream.is_starting() {
                    self.wish(Effect::Rescan);
                }
                return;
            }
            if let Some((received, awaited)) = self.awaited.pop_front() {
                self.counts.lists_not_awaited += u64::from(is_awaited && !awaited.is_of_nobody());
                match awaited {
                    Awaited::Lists(lists) => self.take_lists(lists, clock),
                    Awaited::Died(process) => self.take_accounted(&process, received, clock),
                }
            }
        }
    }

    /// When the oldest lists were read that wait.
    pub(super) fn oldest_awaited(&self) -> BootTime {
        let lists = self
            .awaited
            .iter()
            .filter_map(|(_, awaited)| match awaited {
                Awaited::Lists(lists) => Some(lists.at),
                Awaited::Died(_) => None,
            });
        lists.min().unwrap_or(BootTime::MAX)
    }
}
