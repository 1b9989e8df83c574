//! Held time and memory over time, from the lists of processes that have a context on a GPU.
//!
//! NVML tells who has a context when it is asked, and between two answers nothing. What is booked in
//! between is what the kernel bounds:
//!
//! - A process that a list names holds the GPU from that list until the next one, and no longer than
//!   it lives: its exit is known to the nanosecond. So is when it executes another program, which ends
//!   what the old one had; the next list says whether the new one holds it.
//! - One that is named for the first time has held it since it was started, or opened the device,
//!   if that was after the list before. Otherwise since this list: nothing is extrapolated.
//! - Memory is the list's figure, from that list until the next one or the exit.
//! - A list that is not renewed counts for three intervals. After that nobody knows, and nothing is
//!   counted until a list comes again: failed is neither held nor free.
//!
//! Held time is a union: a payer with ten processes on a GPU for a second held it for a second.
//! Memory is a sum over its processes. Neither is ever turned into busy time.
//!
//! Exits come through another channel than lists, and later. So a stretch is booked only when the
//! caller says that everything up to its end is known.
//!
//! Times are of the boot clock, memory is in bytes. What is left of a byte second is carried.

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
    /// Which.
    pub process: ProcessId,
    /// Who pays for it.
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
    /// It died then.
    At(BootTime),
    /// It is not known any more.
    Forgotten,
}

/// What a payer is to be booked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldAmount {
    /// Where the earliest of that time begins; [`BootTime::MAX`] where there is none.
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

/// What one list says of one process: a stretch that ends with the next list.
#[derive(Debug)]
struct HoldingInterval {
    process: ProcessId,
    owner: Owner,
    /// Since when it holds the GPU.
    from: BootTime,
    memory: u64,
    /// Up to where its memory is booked: at first the list's own time.
    memory_through: BootTime,
    /// The next list; [`BootTime::MAX`] while there is none.
    until: BootTime,
}

/// A payer's part of one GPU.
#[derive(Debug, Default)]
struct HeldProgress {
    /// Up to where its held time is booked. Not gone back behind.
    through: BootTime,
    /// Byte nanoseconds that are no whole byte second yet.
    carry: u128,
}

/// Who holds one GPU.
#[derive(Debug)]
pub struct Holding {
    interval: Nanos,
    /// When the last list was read.
    listed: Option<BootTime>,
    stays: Vec<HoldingInterval>,
    payers: HashMap<Owner, HeldProgress>,
    /// Processes that have been named, while they live, and who paid for them last.
    known: HashMap<ProcessId, Owner>,
}

impl Holding {
    /// Of a GPU whose lists are read at least once in `interval`.
    #[must_use]
    pub fn new(interval: Nanos) -> Self {
        Self {
            interval,
            listed: None,
            stays: Vec::new(),
            payers: HashMap::default(),
            known: HashMap::default(),
        }
    }

    /// Who paid last for each process that has been named and lives.
    pub fn payers(&self) -> impl Iterator<Item = (ProcessId, &Owner)> {
        self.known.iter().map(|(process, owner)| (*process, owner))
    }

    /// A list before the first one here has named this process, and `owner` paid for it.
    pub fn restore(&mut self, process: ProcessId, owner: Owner) {
        self.known.insert(process, owner);
    }

    /// Takes a list that was read `at`, and returns whose processes are named for the first time,
    /// once for each; one that turns out to be another's, or moves to it, is new to that one. A list
    /// older than the last one says nothing new.
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
        // What came before a list that counts no more was not looked at.
        let before = self.listed.filter(|_| at <= stale);
        self.listed = Some(at);
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
            self.stays.push(HoldingInterval {
                process: member.process,
                owner: member.owner,
                from,
                memory: member.memory.unwrap_or(0),
                memory_through: at,
                until: BootTime::MAX,
            });
        }
        started
    }

    /// A process executes another program: what lists said of it before is over. Whether they said
    /// anything.
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

    /// Books everything up to `until`, by when `end_of` knows every exit. Each payer once.
    pub fn book_until(
        &mut self,
        until: BootTime,
        end_of: &dyn Fn(ProcessId) -> End,
    ) -> Vec<(Owner, HeldAmount)> {
        let until = until.min(self.stale());
        let mut booked = HashMap::<Owner, HeldAmount>::default();
        // By their beginnings, so that each payer's union is one sweep.
        self.stays.sort_by_key(|stay| stay.from);
        let payers = &mut self.payers;
        self.stays.retain_mut(|stay| {
            let end = match end_of(stay.process) {
                End::At(exit) => stay.until.min(exit),
                End::Alive | End::Forgotten => stay.until,
            };
            let through = until.min(end);
            let payer = payers.entry(stay.owner.clone()).or_default();
            let from = stay.from.max(payer.through);
            let mut held = HeldAmount {
                time: through.since(from),
                ..HeldAmount::default()
            };
            if !held.time.is_zero() {
                held.from = from;
            }
            payer.through = payer.through.max(through);
            let span = through.since(stay.memory_through);
            stay.memory_through = stay.memory_through.max(through);
            payer.carry += u128::from(stay.memory) * u128::from(span.0);
            held.memory = ByteSeconds(payer.carry / SECOND);
            payer.carry %= SECOND;
            if held != HeldAmount::default() {
                let sum = booked.entry(stay.owner.clone()).or_default();
                sum.from = sum.from.min(held.from);
                sum.time += held.time;
                sum.memory.0 = sum.memory.0.saturating_add(held.memory.0);
            }
            end > until
        });
        let stays = &self.stays;
        self.known.retain(|process, _| match end_of(*process) {
            End::Alive => true,
            End::At(exit) => exit > until,
            End::Forgotten => stays.iter().any(|stay| stay.process == *process),
        });
        booked.into_iter().collect()
    }

    /// Forgets payers that `is_open` says have no account any more.
    pub fn forget(&mut self, is_open: &dyn Fn(&Owner) -> bool) {
        let stays = &self.stays;
        self.payers
            .retain(|owner, _| is_open(owner) || stays.iter().any(|stay| stay.owner == *owner));
    }
}

#[cfg(test)]
mod tests;
