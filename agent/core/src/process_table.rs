//! Which process had which pid at what time, and in which cgroup. NVML's pids are looked up here.
//!
//! A process is `Running → Exited → Forgotten`. An exited one is kept until every GPU's window has
//! passed it, since the driver reports busy time of the dead for seconds. Pids are reused, in
//! seconds where `pid_max` is small, so a pid has a chain of incarnations, which differ in their
//! start in ticks: the kernel's events give nanoseconds, `/proc` gives ticks.
//!
//! Events may be lost, duplicated, or out of order across CPUs, and a scan may overlap them. So
//! nothing here counts transitions. Each observation only says "this process was in this place at
//! that time", and the table keeps the latest such fact, the one before it, and the exit.
//!
//! The table does not know what a cgroup means: it holds [`PlacementId`]s, which
//! [`super::placement`] resolves.

mod living;
mod record;

use self::living::Living;
use self::record::{
    BY_EVENT, EXEC_BEFORE, EXEC_HERE, EXIT_REPORTED, FOUND_HERE, LISTED_AS_DEAD, MOVED_UNSEEN, NIL,
    PID_MASK, RESTORED, Record,
};
use crate::completeness::Completeness;
use crate::model::{BootTime, Nanos, Pid, ProcessId, StartTicks};
use crate::placement::PlacementId;
use crate::tables::HashMap;

/// How long before a window a process may have died and still be credited in it, whatever was lost:
/// the driver names the process that was active when a sample was taken, for the period before that
/// sample. Samples are 1/6 s apart on current products.
///
/// A process also works after its exit event, while its GPU context is torn down. That may take
/// seconds, and is credited only where [`Completeness`] says that nobody else can have had the pid.
pub const CREDIT_SLACK: Nanos = Nanos::from_millis(250);

/// What kind of observation put a process where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sighting {
    /// It was born there.
    Fork,
    /// It replaced its image there.
    Exec,
    /// It was moved there.
    Attach,
    /// A scan of `/proc` found it there.
    Scan,
}

/// When a process moved whose move was only seen by a scan, as far as that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FoundMove {
    /// It was in the place before up to here.
    after: BootTime,
    /// It was in the place where it is from here on.
    by: BootTime,
}

/// Who had a pid in a stretch of time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The process.
    pub process: ProcessId,
    /// Where it was. Two entries if it moved within the stretch.
    pub placements: [Option<PlacementId>; 2],
}

/// What is known of one process, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The process.
    pub process: ProcessId,
    /// When it started, as finely as it is known.
    pub start: BootTime,
    /// When it died; absent while it lives.
    pub exit: Option<BootTime>,
    /// Whether its death was reported, and not only inferred.
    pub exit_reported: bool,
    /// The parent that it was first seen with.
    pub parent: Option<Pid>,
    /// Whether an event of the kernel reported it, and not only a scan.
    pub by_event: bool,
    /// Where it is, or was when it died.
    pub placement: PlacementId,
    /// Where it was before, if it moved.
    pub previous: Option<PlacementId>,
    /// Since when it is known to be where it is.
    pub since: BootTime,
    /// Whether it may have been there before, in either place: it moved while nobody looked.
    pub moved_unseen: bool,
}

/// The table.
#[derive(Debug, Default)]
pub struct ProcessTable {
    /// Newest incarnation by pid.
    newest: HashMap<u32, u32>,
    records: Vec<Record>,
    /// By slot: when a process moved whose move no event has reported. There are few of these, so
    /// this is not in the process records.
    found_moved: HashMap<u32, FoundMove>,
    free: Option<u32>,
    /// How many live in each place.
    living: Living,
    /// The slots of the dead, so that forgetting some costs nothing for the living. Each is in it
    /// once, and may have turned out to be alive since.
    dead: Vec<u32>,
    exited: u64,
    limit: usize,
    overflows: u64,
    /// The latest start of a process that the full table turned away.
    turned_away: BootTime,
    /// Whoever died before this may have been forgotten.
    forgotten_before: BootTime,
}

impl ProcessTable {
    /// A table for at most `limit` processes, the dead that are kept included.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            limit: limit.min(NIL as usize),
            ..Self::default()
        }
    }

    /// Processes alive.
    #[must_use]
    pub const fn alive(&self) -> u64 {
        self.living.count()
    }

    /// Processes that are dead and kept.
    #[must_use]
    pub const fn exited(&self) -> u64 {
        self.exited
    }

    /// Processes that the full table turned away.
    #[must_use]
    pub const fn overflows(&self) -> u64 {
        self.overflows
    }

    /// Notes that a process was in a place at a time. Returns whether the placement's user count
    /// grew, i.e. a new reference to `placement` is now held (see [`ProcessTable::forget`] for
    /// where it is given back).
    pub fn observe(
        &mut self,
        pid: Pid,
        start: BootTime,
        at: BootTime,
        placement: PlacementId,
        sighting: Sighting,
        release: &mut dyn FnMut(PlacementId),
    ) -> bool {
        let ticks = StartTicks::from(start);
        let Some(slot) = self.find(pid, ticks) else {
            return self.insert(pid, start, at, placement, sighting);
        };
        let record = &mut self.records[slot as usize];
        let mut reused = false;
        // A scan may have begun before the process did, and has seen it later than that.
        let at = if sighting == Sighting::Scan {
            at.max(record.start)
        } else {
            at
        };
        if sighting != Sighting::Scan {
            if start < record.start {
                // Late news of one that had this pid in the same tick before.
                return false;
            }
            reused = record.has(EXIT_REPORTED) && record.exit <= start;
            // The kernel's nanoseconds are finer than the tick that a scan gave.
            record.start = start;
        }
        // It was considered dead because a scan could not read it, and it is alive. A scan does not
        // override a reported exit.
        let mistaken = record.exit < at && sighting != Sighting::Fork && !record.has(EXIT_REPORTED);
        if (reused || mistaken) && self.newest.get(&pid.0) == Some(&slot) {
            record.exit = BootTime::MAX;
            record.pid_and_flags &= !EXIT_REPORTED;
            self.exited -= 1;
            self.living.came(record.placement);
        }
        let mut held = false;
        if record.placement == placement {
            // The event that a scan was faster than says when it came here. A scan takes time: the
            // move may be later than the scan's beginning.
            let is_event = sighting != Sighting::Scan;
            let found = self.found_moved.get_mut(&slot).filter(|of| at < of.by);
            let is_the_move = sighting == Sighting::Attach && found.is_some();
            if let Some(found) = found
                && is_event
            {
                found.by = at;
            }
            if is_the_move || (is_event && record.has(FOUND_HERE) && at < record.since) {
                record.since = at;
                record.pid_and_flags &= !FOUND_HERE;
                if sighting == Sighting::Attach {
                    record.pid_and_flags &= !MOVED_UNSEEN;
                    self.found_moved.remove(&slot);
                }
            }
        } else {
            if at >= record.since {
                if let Some(gone) = record.previous.replace(record.placement) {
                    release(gone);
                }
                if record.is_alive() {
                    self.living.moved(record.placement, placement);
                }
                record.placement = placement;
                record.since = at;
                self.found_moved.remove(&slot);
                let exec_before = if record.has(EXEC_HERE) {
                    EXEC_BEFORE
                } else {
                    0
                };
                let found_here = if sighting == Sighting::Scan {
                    FOUND_HERE
                } else {
                    0
                };
                let moved_unseen = if record.has(RESTORED) && sighting != Sighting::Attach {
                    MOVED_UNSEEN
                } else {
                    0
                };
                record.pid_and_flags &= !(EXEC_HERE | EXEC_BEFORE | FOUND_HERE | MOVED_UNSEEN);
                record.pid_and_flags |= exec_before | found_here | moved_unseen;
                held = true;
            } else if record.previous.is_none() {
                // Older news that came late: it says where the process was before it moved.
                record.previous = Some(placement);
                held = true;
            }
        }
        record.pid_and_flags &= !RESTORED;
        if sighting == Sighting::Exec {
            if record.placement == placement {
                record.pid_and_flags |= EXEC_HERE;
            } else if record.previous == Some(placement) {
                record.pid_and_flags |= EXEC_BEFORE;
            }
        }
        held
    }

    fn insert(
        &mut self,
        pid: Pid,
        start: BootTime,
        at: BootTime,
        placement: PlacementId,
        sighting: Sighting,
    ) -> bool {
        if self.living.count() + self.exited >= self.limit as u64 || pid.0 > PID_MASK {
            self.overflows += 1;
            self.turned_away = self.turned_away.max(start);
            return false;
        }
        let mut record = Record {
            start,
            exit: BootTime::MAX,
            // Known since its birth, unless the news is that it came here from elsewhere.
            since: if sighting == Sighting::Attach {
                at
            } else {
                start
            },
            pid_and_flags: if sighting == Sighting::Exec {
                pid.0 | EXEC_HERE
            } else {
                pid.0
            },
            placement,
            previous: None,
            older: NIL,
            parent: 0,
        };
        // Chains are kept newest first. A younger incarnation means that this one is dead.
        let mut younger = None;
        let mut next = self.newest.get(&pid.0).copied().unwrap_or(NIL);
        while next != NIL && self.records[next as usize].start > start {
            younger = Some(next);
            next = self.records[next as usize].older;
        }
        record.older = next;
        if let Some(younger) = younger {
            record.end(self.records[younger as usize].started_by());
            self.exited += 1;
        } else {
            self.living.came(placement);
        }
        if next != NIL && !self.records[next as usize].has(EXIT_REPORTED) {
            // Its exit was lost, or is dated by a scan. A pid is free again only when its holder is
            // gone. So it was over by then, at the latest.
            let by = if sighting == Sighting::Scan {
                record.started_by()
            } else {
                start
            };
            let exit = self.records[next as usize].exit.min(by);
            self.end(next, exit);
        }
        let slot = match self.free {
            Some(slot) => {
                let next_free = self.records[slot as usize].older;
                self.free = (next_free != NIL).then_some(next_free);
                self.records[slot as usize] = record;
                slot
            }
            None => {
                if self.records.len() == self.records.capacity() {
                    // Doubling the capacity would use up to twice the allowed memory per process.
                    self.records.reserve_exact(self.records.len() / 16 + 1024);
                }
                self.records.push(record);
                u32::try_from(self.records.len() - 1).unwrap_or(NIL)
            }
        };
        match younger {
            Some(younger) => {
                self.records[younger as usize].older = slot;
                self.list_as_dead(slot);
            }
            None => {
                self.newest.insert(pid.0, slot);
            }
        }
        true
    }

    /// Notes that a scan found a known process in another place than the one that it was known to
    /// be in since `came`. It moved after `after`, or after `came` if that is later, and no later
    /// than `by`. In between it may have been in either place. An event of the move may still come,
    /// and says when it was.
    pub fn found_moved(
        &mut self,
        process: ProcessId,
        came: BootTime,
        after: BootTime,
        by: BootTime,
    ) {
        if let Some(slot) = self.find(process.pid, process.start) {
            let record = &mut self.records[slot as usize];
            record.pid_and_flags |= MOVED_UNSEEN;
            let by = by.max(record.since);
            let after = after.max(came).min(by);
            self.found_moved.insert(slot, FoundMove { after, by });
        }
    }

    /// Takes in what a table before this one knew of a process. Returns whether its placements are
    /// held now; not where it is known already, or the table full.
    pub fn restore(&mut self, known: &Facts) -> bool {
        let pid = known.process.pid;
        let ticks = StartTicks::from(known.start);
        let sighting = if known.by_event {
            Sighting::Fork
        } else {
            Sighting::Scan
        };
        if self.find(pid, ticks).is_some()
            || !self.insert(pid, known.start, known.start, known.placement, sighting)
        {
            return false;
        }
        let Some(slot) = self.find(pid, ticks) else {
            return false;
        };
        let record = &mut self.records[slot as usize];
        record.since = known.since;
        record.previous = known.previous;
        // A process that uses a GPU is not a runtime's short-lived starter: it did work wherever it
        // was.
        record.pid_and_flags |= RESTORED | EXEC_HERE;
        if known.previous.is_some() {
            record.pid_and_flags |= EXEC_BEFORE;
        }
        if known.moved_unseen {
            record.pid_and_flags |= MOVED_UNSEEN;
        }
        if known.by_event {
            record.pid_and_flags |= BY_EVENT;
        }
        if let Some(exit) = known.exit {
            if known.exit_reported {
                record.pid_and_flags |= EXIT_REPORTED;
            }
            self.end(slot, exit);
        }
        true
    }

    /// Notes what a sighting says beside the place: whose child the process is, and whether the
    /// kernel said so. The first parent stays, since orphans are given another one.
    pub fn note(&mut self, pid: Pid, start: BootTime, parent: Pid, by_event: bool) {
        if let Some(slot) = self.find(pid, StartTicks::from(start)) {
            let record = &mut self.records[slot as usize];
            if record.parent == 0 {
                record.parent = parent.0;
            }
            if by_event {
                record.pid_and_flags |= BY_EVENT;
            }
        }
    }

    /// What is known of one process.
    #[must_use]
    pub fn facts_of(&self, process: ProcessId) -> Option<Facts> {
        let slot = self.find(process.pid, process.start)?;
        Some(Self::facts(&self.records[slot as usize]))
    }

    /// Everyone who has the pid or had it, the newest first.
    #[must_use]
    pub fn incarnations(&self, pid: Pid) -> Vec<Facts> {
        let newest = self.newest.get(&pid.0).copied().unwrap_or(NIL);
        self.chain(newest)
            .map(|(_, record)| Self::facts(record))
            .collect()
    }

    /// Everyone that the table knows, in no order.
    pub fn everyone(&self) -> impl Iterator<Item = Facts> + '_ {
        let chains = self.newest.values().flat_map(|newest| self.chain(*newest));
        chains.map(|(_, record)| Self::facts(record))
    }

    fn chain(&self, newest: u32) -> impl Iterator<Item = (u32, &Record)> {
        // No slot has the number NIL.
        let at = |slot: u32| Some((slot, self.records.get(slot as usize)?));
        std::iter::successors(at(newest), move |(_, record)| at(record.older))
    }

    fn facts(record: &Record) -> Facts {
        Facts {
            process: ProcessId {
                pid: record.pid(),
                start: record.ticks(),
            },
            start: record.start,
            exit: (!record.is_alive()).then_some(record.exit),
            exit_reported: record.has(EXIT_REPORTED),
            parent: (record.parent != 0).then_some(Pid(record.parent)),
            by_event: record.has(BY_EVENT),
            placement: record.placement,
            previous: record.previous,
            since: record.since,
            moved_unseen: record.has(MOVED_UNSEEN),
        }
    }

    /// Whether more than half of the table is used.
    #[must_use]
    pub const fn is_crowded(&self) -> bool {
        self.living.count() + self.exited > self.limit as u64 / 2
    }

    /// Corrects the placement of a process whose first placement had no known owner. The correction
    /// applies from the process's start. Returns the former placement to release, or `None` if the
    /// process is not known.
    pub fn correct_placement(
        &mut self,
        process: ProcessId,
        placement: PlacementId,
    ) -> Option<PlacementId> {
        let slot = self.find(process.pid, process.start)?;
        let record = &mut self.records[slot as usize];
        if record.is_alive() {
            self.living.moved(record.placement, placement);
        }
        Some(std::mem::replace(&mut record.placement, placement))
    }

    /// Notes that a process is dead. Idempotent; unknown processes are ignored, since an exit alone
    /// does not say where GPU time of theirs should go that the caller cannot learn from the event.
    ///
    /// The latest reported time is kept, since two last threads may both report it. A reported time
    /// replaces an inferred one, which is only an upper bound: a scan that missed the process says that
    /// it was gone when the scan began, and the pid's next holder that it was gone by then.
    pub fn exit(&mut self, pid: Pid, start: BootTime, at: BootTime) {
        if let Some(slot) = self.find(pid, StartTicks::from(start)) {
            let record = &mut self.records[slot as usize];
            if start < record.start {
                // Late news of one that had this pid in the same tick before.
                return;
            }
            let exit = if record.has(EXIT_REPORTED) {
                record.exit.max(at)
            } else {
                at
            };
            record.pid_and_flags |= EXIT_REPORTED;
            self.end(slot, exit);
        }
    }

    /// Notes when a process died. It may have been known to be dead.
    fn end(&mut self, slot: u32, at: BootTime) {
        let record = &mut self.records[slot as usize];
        if record.is_alive() {
            self.living.left(record.placement);
            self.exited += 1;
        }
        record.end(at);
        self.list_as_dead(slot);
    }

    fn list_as_dead(&mut self, slot: u32) {
        let record = &mut self.records[slot as usize];
        if !record.has(LISTED_AS_DEAD) {
            record.pid_and_flags |= LISTED_AS_DEAD;
            self.dead.push(slot);
        }
    }

    /// Notes that, of all processes born before `started`, only those that `seen` knows were alive
    /// then. Returns how many had died unnoticed.
    pub fn close_unseen(
        &mut self,
        started: BootTime,
        seen: &dyn Fn(Pid, StartTicks) -> bool,
    ) -> u64 {
        self.close_missing(started, started, seen)
    }

    /// As [`ProcessTable::close_unseen`], for a scan that ended at `finished`. A process that the
    /// scan missed may have lived up to then. If its death were dated to the scan's beginning, its
    /// later work would go to the next holder of its pid.
    pub fn close_missing(
        &mut self,
        started: BootTime,
        finished: BootTime,
        seen: &dyn Fn(Pid, StartTicks) -> bool,
    ) -> u64 {
        let gone = started.max(finished);
        let unseen = self.newest.values().flat_map(|newest| self.chain(*newest));
        let unseen = unseen.filter(|(_, record)| {
            // Its pid may have been given away since: then all that was known of its end is that it
            // was over by then.
            record.exit > gone
                && !record.has(EXIT_REPORTED)
                && record.start < started
                && record.since < started
                && !seen(record.pid(), record.ticks())
        });
        let unseen: Vec<u32> = unseen.map(|(slot, _)| slot).collect();
        let exited = self.exited;
        for slot in unseen {
            self.end(slot, gone);
        }
        self.exited - exited
    }

    fn find(&self, pid: Pid, ticks: StartTicks) -> Option<u32> {
        let mut slot = self.newest.get(&pid.0).copied().unwrap_or(NIL);
        while slot != NIL {
            let record = &self.records[slot as usize];
            if record.ticks() == ticks {
                return Some(slot);
            }
            slot = record.older;
        }
        None
    }

    /// All processes that had `pid` at some time in `(from, to]`. If there were none, its last
    /// holder:
    ///
    /// - if it ended within [`CREDIT_SLACK`] before `from`;
    /// - or if it ended at any earlier time, its exit was reported, and `events` says that no event
    ///   since then was lost. Then no other process has had the pid since, and the driver's row is
    ///   about the tear-down of that holder's context.
    #[must_use]
    pub fn holders(
        &self,
        pid: Pid,
        from: BootTime,
        to: BootTime,
        events: Completeness,
    ) -> Vec<Holder> {
        let newest = self.newest.get(&pid.0).copied().unwrap_or(NIL);
        let known = self.chain(newest).filter(|(_, record)| record.start <= to);
        let mut holders = Vec::new();
        for (after, (slot, record)) in known.enumerate() {
            if record.exit > from {
                holders.push(self.holder(slot, from, to));
            } else if holders.is_empty() {
                let is_last = after == 0
                    && record.has(EXIT_REPORTED)
                    && record.exit >= self.turned_away
                    && events.covers(record.exit, to);
                if record.exit.plus(CREDIT_SLACK) > from {
                    holders.push(self.holder(slot, from.minus(CREDIT_SLACK), to));
                    return holders;
                } else if is_last {
                    holders.push(self.holder(slot, record.exit, to));
                    return holders;
                }
            }
        }
        holders
    }

    /// Where a process was in `(from, to]`; after its exit, where it was then. Absent if it is not
    /// known.
    #[must_use]
    pub fn holder_of(&self, process: ProcessId, from: BootTime, to: BootTime) -> Option<Holder> {
        let slot = self.find(process.pid, process.start)?;
        let exit = self.records[slot as usize].exit;
        Some(self.holder(slot, from.min(exit), to))
    }

    /// Whoever died before this may have been forgotten, and nobody else.
    #[must_use]
    pub const fn forgotten_before(&self) -> BootTime {
        self.forgotten_before
    }

    fn holder(&self, slot: u32, from: BootTime, to: BootTime) -> Holder {
        let record = &self.records[slot as usize];
        // A runtime's child that was moved into its container and replaced its image there did
        // nothing in the place where it was forked: a GPU context does not survive an exec, and
        // it had no image of its own before. Anything else that moved has two places.
        let found = self.found_moved.get(&slot);
        let here_by = found.map_or(record.since, |found| found.by);
        let starter = record.has(EXEC_HERE) && !record.has(EXEC_BEFORE) && here_by > from;
        let was_here = match found {
            Some(found) => found.after < to,
            None => record.since <= to || record.has(MOVED_UNSEEN),
        };
        let here = was_here.then_some(record.placement);
        let before = record
            .previous
            .filter(|_| here_by > from && !(starter && here.is_some()));
        Holder {
            process: ProcessId {
                pid: record.pid(),
                start: record.ticks(),
            },
            placements: match (here, before) {
                // It has not arrived yet, and where it was is not known: where it is stands for it.
                (None, None) => [Some(record.placement), None],
                (here, before) => [here, before],
            },
        }
    }

    /// Where a scan found a process that had moved, if no event has said so since.
    #[must_use]
    pub fn found_at(&self, process: ProcessId) -> Option<PlacementId> {
        let slot = self.find(process.pid, process.start)?;
        let record = &self.records[slot as usize];
        record.has(FOUND_HERE).then_some(record.placement)
    }

    /// Whether a process moved around `at`, by a scan that found it elsewhere, and no event has said
    /// so since.
    #[must_use]
    pub fn may_have_moved_at(&self, process: ProcessId, at: BootTime) -> bool {
        let slot = self.find(process.pid, process.start);
        let found = slot.and_then(|slot| self.found_moved.get(&slot));
        found.is_some_and(|found| found.after < at && at <= found.by)
    }

    /// Whether nothing newer than `at` is known of where a process is: it has been there since then,
    /// or since it began.
    #[must_use]
    pub fn is_there_since(&self, process: ProcessId, at: BootTime) -> bool {
        self.find(process.pid, process.start).is_some_and(|slot| {
            let record = &self.records[slot as usize];
            record.since <= at.max(record.start)
        })
    }

    /// Where a process is, as far as the table knows it.
    #[must_use]
    pub fn placement(&self, process: ProcessId) -> Option<PlacementId> {
        self.find(process.pid, process.start)
            .map(|slot| self.records[slot as usize].placement)
    }

    /// Where the process was that had a pid at a time, as far as the table knows it.
    #[must_use]
    pub fn placement_of(&self, pid: Pid, at: BootTime) -> Option<PlacementId> {
        let newest = self.newest.get(&pid.0).copied()?;
        self.chain(newest)
            .find(|(_, record)| record.start <= at && at <= record.exit && record.since <= at)
            .map(|(_, record)| record.placement)
    }

    /// Whether the process is alive.
    #[must_use]
    pub fn is_alive(&self, process: ProcessId) -> bool {
        self.find(process.pid, process.start)
            .is_some_and(|slot| self.records[slot as usize].is_alive())
    }

    /// Forgets the processes that died before `before`, giving their placements back.
    pub fn forget(&mut self, before: BootTime, release: &mut dyn FnMut(PlacementId)) {
        if self.exited == 0 {
            return;
        }
        self.forgotten_before = self.forgotten_before.max(before);
        let mut dead = std::mem::take(&mut self.dead);
        dead.retain(|&slot| {
            let record = &mut self.records[slot as usize];
            if record.is_alive() {
                record.pid_and_flags &= !LISTED_AS_DEAD;
                return false;
            }
            let is_kept = record.exit >= before;
            if !is_kept {
                self.free(slot, release);
            }
            is_kept
        });
        self.dead = dead;
        if self.alive() + self.exited == 0 {
            self.records = Vec::new();
            self.dead = Vec::new();
            self.free = None;
        }
    }

    /// Takes a dead process out of its pid's chain, and gives its slot and its placements back.
    fn free(&mut self, slot: u32, release: &mut dyn FnMut(PlacementId)) {
        let Record {
            placement,
            previous,
            older,
            ..
        } = self.records[slot as usize];
        let pid = self.records[slot as usize].pid().0;
        match self.newest.get_mut(&pid) {
            Some(newest) if *newest == slot && older == NIL => {
                self.newest.remove(&pid);
            }
            Some(newest) if *newest == slot => *newest = older,
            Some(newest) => {
                let newest = *newest;
                let younger = self.chain(newest).find(|(_, record)| record.older == slot);
                if let Some((younger, _)) = younger {
                    self.records[younger as usize].older = older;
                }
            }
            // The head of each chain is in the index.
            None => {}
        }
        self.exited -= 1;
        self.found_moved.remove(&slot);
        release(placement);
        if let Some(previous) = previous {
            release(previous);
        }
        self.records[slot as usize].older = self.free.unwrap_or(NIL);
        self.free = Some(slot);
    }

    /// The placements in which processes live, each once.
    pub fn live_placements(&self) -> impl Iterator<Item = PlacementId> + '_ {
        self.living.placements()
    }

    /// A number that differs from an earlier one if [`ProcessTable::live_placements`] changed since.
    #[must_use]
    pub const fn live_placements_revision(&self) -> u64 {
        self.living.revision()
    }

    /// Bytes of memory that the table holds, roughly: records and index.
    #[must_use]
    pub fn memory(&self) -> usize {
        // hashbrown: one control byte an entry, 8/7 of the capacity in buckets.
        self.records.capacity() * size_of::<Record>()
            + self.dead.capacity() * size_of::<u32>()
            + self.newest.capacity() * (size_of::<(u32, u32)>() + 1) * 8 / 7
    }
}

#[cfg(test)]
mod tests;
