//! Held time and memory over time, from the lists of processes that have a context on a GPU.
//!
//! NVML lists the processes with a context at one moment, and nothing between two lists. What is
//! booked in between is bounded by the kernel's events:
//!
//! - A process that a list names holds the GPU from that list until the next one, and no longer than
//!   it lives: its exit is known to the nanosecond. So is when it executes another program, which ends
//!   what the old one had; the next list says whether the new one holds it.
//! - One that is named for the first time has held it since it was started, or opened the device,
//!   if that was after the list before. Otherwise since this list: nothing is extrapolated.
//! - Memory is the list's figure, from that list until the next one or the exit.
//! - A list that is not renewed counts for three intervals. After that nothing is counted until a
//!   list comes again, because a failed reading means neither held nor free.
//!
//! Held time is a union: an owner with ten processes on a GPU for a second held it for a second.
//! Memory is a sum over its processes. Neither is ever turned into busy time.
//!
//! Exits come through another channel than lists, and later. So an interval is booked only when the
//! caller says that everything up to its end is known. It is booked when something has happened
//! ([`Holding::is_due`]), not at each commit.
//!
//! Times are of the boot clock, memory is in bytes. Remainders of a byte-second are carried over.

use crate::amounts::ByteSeconds;
use crate::model::{BootTime, Nanos, Owner, ProcessId};
use crate::tables::HashMap;

/// Nanoseconds of a second.
const SECOND: u128 = Nanos::SECOND.0 as u128;
/// How many intervals a list counts for.
pub const INTERVALS: u64 = 3;

/// A process in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedProcess {
    /// Process that is listed.
    pub process: ProcessId,
    /// Owner of the process.
    pub owner: Owner,
    /// The latest instant at which it is known not to have had a context yet, if any is known: when
    /// it was started, or first opened the device.
    pub not_before: Option<BootTime>,
    /// Its device memory, in bytes; absent where NVML does not say.
    pub memory: Option<u64>,
}

/// What is known of a process's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It lives.
    Alive,
    /// It ended at this time.
    At(BootTime),
    /// It is not known any more.
    Forgotten,
}

/// Held time and memory to be booked for one owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldAmount {
    /// Beginning of the earliest of that time. [`BootTime::MAX`] if there is none.
    pub from: BootTime,
    /// Time during which at least one of its processes had a context.
    pub time: Nanos,
    /// Device memory over time.
    pub memory: ByteSeconds,
}

impl Default for HeldAmount {
    fn default() -> Self {
        Self {
            from: BootTime::MAX,
            time: Nanos::ZERO,
            memory: ByteSeconds::default(),
        }
    }
}

/// An interval in which a process held the GPU, by one process list. It ends with the next list.
#[derive(Debug)]
struct HoldingInterval {
    process: ProcessId,
    /// Index of its owner in [`Holding::progress`].
    owner: usize,
    /// Since when it holds the GPU.
    from: BootTime,
    memory: u64,
    /// Up to where its memory is booked: at first the list's own time.
    memory_through: BootTime,
    /// The next list; [`BootTime::MAX`] while there is none.
    until: BootTime,
}

/// An owner's held time on one GPU, as far as it is booked.
#[derive(Debug)]
struct HeldProgress {
    owner: Owner,
    /// End of the booked held time. It never moves back.
    through: BootTime,
    /// Remainder in byte-nanoseconds, less than one byte-second.
    carry: u128,
}

/// Who holds one GPU.
#[derive(Debug)]
pub struct Holding {
    interval: Nanos,
    /// When the last list was read.
    listed: Option<BootTime>,
    stays: Vec<HoldingInterval>,
    /// One for each owner that has been listed and has an account.
    progress: Vec<HeldProgress>,
    /// Indices in `progress`.
    by_owner: HashMap<Owner, usize>,
    /// Living processes that have been listed, with their last owner.
    known: HashMap<ProcessId, Owner>,
    /// Whether `known` may still have processes that ended before the last list.
    is_unpruned: bool,
    /// Grows with each change of `known`.
    revision: u64,
    /// Up to when everything is booked.
    settled: BootTime,
}

impl Holding {
    /// Of a GPU whose lists are read at least once in `interval`.
    #[must_use]
    pub fn new(interval: Nanos) -> Self {
        Self {
            interval,
            listed: None,
            stays: Vec::new(),
            progress: Vec::new(),
            by_owner: HashMap::default(),
            known: HashMap::default(),
            is_unpruned: false,
            revision: 0,
            settled: BootTime::default(),
        }
    }

    /// Last owner of each living process that has been listed.
    pub fn owners(&self) -> impl Iterator<Item = (ProcessId, &Owner)> {
        self.known.iter().map(|(process, owner)| (*process, owner))
    }

    /// A number that differs from an earlier one if [`Holding::owners`] may differ.
    #[must_use]
    pub const fn revision(&self) -> u64 {
        self.revision
    }

    /// Records that an earlier agent's list had this process, and that `owner` was charged for it.
    pub fn restore(&mut self, process: ProcessId, owner: Owner) {
        self.known.insert(process, owner);
        self.revision += 1;
    }

    /// Takes a list that was read at `at`. Returns the owner of each process that is listed for the
    /// first time for that owner, once per process. A list older than the last one is ignored.
    pub fn list(&mut self, at: BootTime, members: Vec<ListedProcess>) -> Vec<Owner> {
        if self.listed.is_some_and(|listed| at <= listed) {
            return Vec::new();
        }
        let stale = self.stale();
        for stay in self
            .stays
            .iter_mut()
            .filter(|stay| stay.until == BootTime::MAX)
        {
            stay.until = at.min(stale);
        }
        // Only if the last list still counts is it known that a new process was not in it.
        let before = self.listed.filter(|_| at <= stale);
        self.listed = Some(at);
        self.is_unpruned = true;
        self.revision += 1;
        let mut started = Vec::new();
        for member in members {
            let paid = self.known.insert(member.process, member.owner.clone());
            let is_new = paid.is_none();
            let from = member
                .not_before
                .filter(|not_before| {
                    is_new && before.is_some_and(|before| before < *not_before) && *not_before < at
                })
                .unwrap_or(at);
            if paid.as_ref() != Some(&member.owner) {
                started.push(member.owner.clone());
            }
            let owner = self.index_of(member.owner);
            self.stays.push(HoldingInterval {
                process: member.process,
                owner,
                from,
                memory: member.memory.unwrap_or(0),
                memory_through: at,
                until: BootTime::MAX,
            });
        }
        started
    }

    fn index_of(&mut self, owner: Owner) -> usize {
        if let Some(index) = self.by_owner.get(&owner) {
            return *index;
        }
        self.by_owner.insert(owner.clone(), self.progress.len());
        self.progress.push(HeldProgress {
            owner,
            through: BootTime::default(),
            carry: 0,
        });
        self.progress.len() - 1
    }

    /// Ends the holding of a process that executed another program. Returns whether it was listed.
    pub fn executed(&mut self, process: ProcessId, at: BootTime) -> bool {
        let mut any = false;
        let before = |stay: &&mut HoldingInterval| stay.process == process && stay.from < at;
        for stay in self.stays.iter_mut().filter(before) {
            any |= stay.until > at;
            stay.until = stay.until.min(at);
        }
        any
    }

    /// Up to where the last list counts.
    fn stale(&self) -> BootTime {
        self.listed.map_or(BootTime::MAX, |listed| {
            listed.plus(Nanos(self.interval.0.saturating_mul(INTERVALS)))
        })
    }

    /// Whether [`Holding::book_until`] would book more than the passing of time: a list came, or an
    /// interval has ended. Also true once for each interval of the lists, since they may fail.
    ///
    /// Held time grows in every account that holds a GPU. Booked at each commit, it would change all of
    /// them each time, for the store to write, though nothing had happened.
    pub fn is_due(&self, until: BootTime, end_of: &dyn Fn(ProcessId) -> End) -> bool {
        let has_ended = |stay: &HoldingInterval| match end_of(stay.process) {
            End::At(exit) => stay.until.min(exit) <= until,
            End::Alive | End::Forgotten => stay.until <= until,
        };
        let has_new_list = |listed: BootTime| self.settled <= listed && listed < until;
        self.listed.is_some_and(has_new_list)
            || until.since(self.settled) >= self.interval
            || self.stays.iter().any(has_ended)
    }

    /// Books everything up to `until`. `end_of` must know every exit up to then. Returns one amount
    /// for each owner that held the GPU.
    pub fn book_until(
        &mut self,
        until: BootTime,
        end_of: &dyn Fn(ProcessId) -> End,
    ) -> Vec<(Owner, HeldAmount)> {
        self.settled = self.settled.max(until);
        let until = until.min(self.stale());
        let mut booked = vec![HeldAmount::default(); self.progress.len()];
        // Sorted by their beginnings, so that each owner's union needs one pass.
        self.stays.sort_by_key(|stay| stay.from);
        let progress = &mut self.progress;
        self.stays.retain_mut(|stay| {
            let end = match end_of(stay.process) {
                End::At(exit) => stay.until.min(exit),
                End::Alive | End::Forgotten => stay.until,
            };
            let through = until.min(end);
            let (progress, sum) = (&mut progress[stay.owner], &mut booked[stay.owner]);
            let from = stay.from.max(progress.through);
            let time = through.since(from);
            if !time.is_zero() {
                sum.from = sum.from.min(from);
                sum.time += time;
            }
            progress.through = progress.through.max(through);
            let span = through.since(stay.memory_through);
            stay.memory_through = stay.memory_through.max(through);
            progress.carry += u128::from(stay.memory) * u128::from(span.0);
            let memory = progress.carry / SECOND;
            progress.carry %= SECOND;
            sum.memory.0 = sum.memory.0.saturating_add(memory);
            end > until
        });
        if self.is_unpruned {
            // Nobody joins between two lists, so whoever ends after this waits for the next one.
            self.is_unpruned = false;
            let stays = &self.stays;
            self.known.retain(|process, _| match end_of(*process) {
                End::Alive => true,
                End::At(exit) => exit > until,
                End::Forgotten => stays.iter().any(|stay| stay.process == *process),
            });
            self.revision += 1;
        }
        let owners = self.progress.iter().map(|progress| &progress.owner);
        let booked = owners.zip(booked);
        booked
            .filter(|(_, held)| *held != HeldAmount::default())
            .map(|(owner, held)| (owner.clone(), held))
            .collect()
    }

    /// Forgets owners that `is_open` says have no account any more.
    pub fn forget(&mut self, is_open: &dyn Fn(&Owner) -> bool) {
        let mut holds = vec![false; self.progress.len()];
        for stay in &self.stays {
            holds[stay.owner] = true;
        }
        let mut moved = Vec::with_capacity(self.progress.len());
        let mut kept = 0;
        let mut index = 0;
        self.progress.retain(|progress| {
            let stays = holds[index] || is_open(&progress.owner);
            index += 1;
            moved.push(kept);
            kept += usize::from(stays);
            stays
        });
        for stay in &mut self.stays {
            stay.owner = moved[stay.owner];
        }
        let owners = self.progress.iter().map(|progress| progress.owner.clone());
        self.by_owner = owners.zip(0..).collect();
    }
}

#[cfg(test)]
mod tests;
