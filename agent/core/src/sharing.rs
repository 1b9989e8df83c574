//! Which processes were on a GPU according to its process lists, for busy time that comes without a
//! process.
//!
//! Such time is an MPS server's, which belongs to its clients, and a MIG instance's, for which the
//! driver gives one figure for each window. It is billed to an owner only if all processes that were
//! there in the window belong to that owner. If two owners were there, at once or one after the
//! other, the figure cannot be divided. Then that window is unattributed, and no other window is
//! for that reason.
//!
//! A list says who had a context when it was read. Between two readings the process table bounds
//! it. A listed process was there:
//!
//! - from the reading before, if that has it, too; else from its start, its first open of a GPU, or
//!   the reading before, whichever is the latest;
//! - until the reading after, if that has it, too; else until its exit, until it executed another
//!   program, or the reading after, whichever is the earliest.
//!
//! So a process that was dead before a window began does not count in it. A process that started
//! after a reading is known from a later reading.

use std::collections::VecDeque;

use crate::amounts::Engines;
use crate::input::{GpuProcess, GpuWindow, MpsRole};
use crate::model::{BootTime, Nanos, Owner, Pid, ProcessId, UnattributedReason};
use crate::owners::{Charge, FoundOwner, Lookup, owner_among};
use crate::process_table::CREDIT_SLACK;

/// Readings of the process lists that are remembered: a window lies between two, and is booked some
/// seconds late.
const READINGS: usize = 8;
/// How long a reading of the process lists stays valid.
const READING_HOLDS: Nanos = Nanos::from_secs(60);

/// What a listed process has to do with MPS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// It is a server, and the list says so.
    Server,
    /// It was a server in the reading before and has no clients now.
    IdleServer,
    Client,
    Other,
}

impl Part {
    const fn is_server(self) -> bool {
        matches!(self, Self::Server | Self::IdleServer)
    }
}

/// A process in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Listed {
    pid: Pid,
    /// Who had the pid, as far as that was known when the list came.
    process: Option<ProcessId>,
    part: Part,
    /// When it executed another program after the reading.
    executed: Option<BootTime>,
}

/// One reading of a GPU's process lists.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Reading {
    at: BootTime,
    listed: Vec<Listed>,
    has_servers: bool,
}

/// A process that was there at some time of a window.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Present {
    pid: Pid,
    process: Option<ProcessId>,
    /// Until when it was there at most.
    until: BootTime,
    /// Who pays for it; absent where that is not known.
    owner: Option<Owner>,
}

/// The single owner of all processes in the window, and the process if there was only one.
type Only = (Option<(Pid, Option<ProcessId>)>, Owner);

/// Why there is no single owner: there is none, or more than one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NoSingleOwner {
    Nobody,
    Several,
}

/// Recent readings of one GPU's process lists, the newest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sharing {
    readings: VecDeque<Reading>,
}

impl Sharing {
    /// Takes the lists of a GPU, and the owners of their processes by [`owners_of`]. An MPS server
    /// stays one for as long as it is listed, also while it has no clients.
    ///
    /// [`owners_of`]: crate::owners::owners_of
    pub(super) fn observe(
        &mut self,
        at: BootTime,
        lists: &[GpuProcess],
        owners: &[FoundOwner],
        lookup: &Lookup<'_>,
    ) {
        let listed: Vec<Listed> = lists
            .iter()
            .zip(owners)
            .map(|(&GpuProcess { pid, mps, .. }, (process, owner))| {
                let process = *process;
                let part = match mps {
                    MpsRole::Client => Part::Client,
                    MpsRole::Server => Part::Server,
                    MpsRole::NamedServer if matches!(owner, Ok(Owner::Host(_))) => Part::Server,
                    MpsRole::NamedServer => Part::Other,
                    MpsRole::None if self.was_server(pid, process, lookup) => Part::IdleServer,
                    MpsRole::None => Part::Other,
                };
                Listed {
                    pid,
                    process,
                    part,
                    executed: None,
                }
            })
            .collect();
        let has_servers = listed.iter().any(|listed| listed.part.is_server());
        self.readings.push_front(Reading {
            at,
            listed,
            has_servers,
        });
        self.readings.truncate(READINGS);
    }

    /// Whether the newest reading has a process as a server.
    fn was_server(&self, pid: Pid, process: Option<ProcessId>, lookup: &Lookup<'_>) -> bool {
        self.readings.front().is_some_and(|reading| {
            let mut servers = reading.listed.iter().filter(|of| of.part.is_server());
            servers.any(|of| of.pid == pid && may_be(of.server(reading.at, lookup), process))
        })
    }

    /// Notes that a process has executed another program: its context is gone.
    pub fn executed(&mut self, process: ProcessId, at: BootTime) {
        if let Some(before) = self.readings.iter_mut().find(|reading| reading.at < at) {
            let listed = before.listed.iter_mut();
            for listed in listed.filter(|listed| listed.process == Some(process)) {
                listed.executed.get_or_insert(at);
            }
        }
    }

    /// Whether one of the latest lists has an MPS server.
    #[must_use]
    pub fn has_servers(&self) -> bool {
        self.readings.iter().any(|reading| reading.has_servers)
    }

    /// MPS server in one of the latest lists.
    pub fn servers(&self) -> impl Iterator<Item = Pid> + '_ {
        let listed = self.readings.iter().flat_map(|reading| &reading.listed);
        let servers = listed.filter(|listed| listed.part.is_server());
        servers.map(|listed| listed.pid)
    }

    /// Whether a process may have come or gone between the newest reading and `to`: a process
    /// opened a GPU, or a listed one ended. The next reading shows it.
    #[must_use]
    pub(super) fn has_changed(&self, to: BootTime, lookup: &Lookup<'_>) -> bool {
        let newest = self.readings.front();
        let Some(newest) = newest.filter(|newest| to.since(newest.at) <= READING_HOLDS) else {
            // Where lists are not read any more there is nothing to wait for.
            return false;
        };
        let is_between = |at: BootTime| newest.at < at && at <= to;
        self.has_opened(to, lookup)
            || newest.listed.iter().any(|listed| {
                let process = listed.identify(newest.at, lookup);
                let facts = process.and_then(|process| lookup.processes.facts_of(process));
                let exit = facts.and_then(|facts| facts.exit);
                exit.is_some_and(is_between) || listed.executed.is_some_and(is_between)
            })
    }

    /// Whether a process list read around `(from, to]` is newer than the received events. If so, it is
    /// not known yet when its processes started.
    #[must_use]
    pub(super) fn is_ahead(&self, from: BootTime, to: BootTime, lookup: &Lookup<'_>) -> bool {
        let mut around = self.around(from, to);
        around.any(|place| !lookup.events.has_caught_up(self.readings[place].at))
    }

    /// Whether a process opened a GPU after the newest reading and by `to`.
    fn has_opened(&self, to: BootTime, lookup: &Lookup<'_>) -> bool {
        let newest = self.readings.front();
        newest.is_some_and(|newest| lookup.opens.may_be_between(newest.at, to))
    }

    /// The places of the reading before `from` and of all later ones up to the first that is not
    /// before `to`.
    fn around(&self, from: BootTime, to: BootTime) -> impl Iterator<Item = usize> + '_ {
        let before = self.readings.iter().position(|reading| reading.at <= from);
        let readings = 0..before.map_or(self.readings.len(), |last| last + 1);
        readings.filter(move |at| {
            let older = self.readings.get(at + 1);
            older.is_none_or(|older| older.at < to)
        })
    }

    /// Processes for whose role `counts` is true and which were there at some time in `(from, to]`.
    fn present(
        &self,
        from: BootTime,
        to: BootTime,
        counts: fn(Part) -> bool,
        lookup: &mut Lookup<'_>,
    ) -> Vec<Present> {
        let mut present = Vec::<Present>::new();
        for place in self.around(from, to) {
            let reading = &self.readings[place];
            if from.since(reading.at) > READING_HOLDS {
                continue;
            }
            for listed in reading.listed.iter().filter(|listed| counts(listed.part)) {
                let process = listed.identify(reading.at, lookup);
                let (since, until) = self.stay(place, listed, process, lookup);
                let is_within = from <= reading.at && reading.at <= to;
                if !is_within && (since >= to || until <= from) {
                    continue;
                }
                let mut known = present.iter();
                if known.any(|of| of.pid == listed.pid && of.process == process) {
                    continue;
                }
                let holder = process.and_then(|process| {
                    let (from, to) = (from.max(since), to.min(until));
                    lookup.processes.holder_of(process, from, to)
                });
                let owner = holder.map(|holder| owner_among(&[holder], lookup.placements));
                present.push(Present {
                    pid: listed.pid,
                    process,
                    until,
                    owner: owner.and_then(Result::ok),
                });
            }
        }
        present
    }

    /// From when to when a process was there at most, that one reading has.
    fn stay(
        &self,
        place: usize,
        listed: &Listed,
        process: Option<ProcessId>,
        lookup: &Lookup<'_>,
    ) -> (BootTime, BootTime) {
        let at = self.readings[place].at;
        let has = |reading: &Reading| {
            let mut all = reading.listed.iter();
            all.any(|of| of.pid == listed.pid && may_be(of.identify(reading.at, lookup), process))
        };
        let facts = process.and_then(|process| lookup.processes.facts_of(process));
        let before = self.readings.get(place + 1);
        let since = match before {
            Some(before) if has(before) => before.at,
            _ => {
                let before = before.map(|before| before.at);
                let start = facts.map(|facts| facts.start);
                let opened = process.and_then(|process| lookup.opens.first(process));
                let since = before.max(start).max(opened);
                since.unwrap_or_default().min(at)
            }
        };
        let after = place.checked_sub(1).map(|after| &self.readings[after]);
        let until = match after {
            Some(after) if has(after) => after.at,
            _ => {
                let exit = match (process, facts) {
                    (_, Some(facts)) => facts.exit,
                    // It was known and is forgotten: it died, and before then.
                    (Some(_), None) => Some(lookup.processes.forgotten_before()),
                    (None, None) => None,
                };
                let after = after.map(|after| after.at);
                let ends = [exit, listed.executed, after].into_iter().flatten();
                // What is listed after its exit is being torn down.
                ends.min().unwrap_or(BootTime::MAX).max(at)
            }
        };
        (since, until)
    }

    /// The one owner of all whose part `counts` and who were there at some time of `(from, to]`.
    fn only(
        &self,
        from: BootTime,
        to: BootTime,
        counts: fn(Part) -> bool,
        lookup: &mut Lookup<'_>,
    ) -> Result<Only, NoSingleOwner> {
        let present = self.present(from, to, counts, lookup);
        let first = present.first().ok_or(NoSingleOwner::Nobody)?;
        // A process with an unknown owner counts as another owner's.
        let owner = first.owner.as_ref().ok_or(NoSingleOwner::Several)?;
        let is_theirs = present.iter().all(|of| of.owner == first.owner);
        // Once they are gone, whoever has opened a GPU may have come, and no reading says who.
        let are_gone = present.iter().all(|of| of.until <= to);
        if !is_theirs || (are_gone && self.has_opened(to, lookup)) {
            return Err(NoSingleOwner::Several);
        }
        let alone = (present.len() == 1).then_some((first.pid, first.process));
        Ok((alone, owner.clone()))
    }

    /// Owner of the busy time that the driver reports for this pid in `(from, to]`, if the pid is
    /// an MPS server.
    #[must_use]
    pub(super) fn owner_of_server(
        &self,
        pid: Pid,
        from: BootTime,
        to: BootTime,
        lookup: &mut Lookup<'_>,
    ) -> Option<Result<Owner, UnattributedReason>> {
        // Also one that has ended since: its last window is booked later than that.
        let mut servers = Vec::new();
        let around = self.around(from, to).map(|place| &self.readings[place]);
        for reading in around.filter(|reading| reading.has_servers) {
            let listed = reading.listed.iter().filter(|of| of.pid == pid);
            let of_pid = listed.filter(|of| of.part.is_server());
            servers.extend(of_pid.map(|of| of.server(reading.at, lookup)));
        }
        if servers.is_empty() {
            return None;
        }
        let complete = lookup.events.completeness();
        let holders = lookup.processes.holders(pid, from, to, complete);
        let is_server = |process| servers.iter().any(|server| may_be(*server, Some(process)));
        let as_server = holders.iter().filter(|of| is_server(of.process)).count();
        if as_server < holders.len() {
            // Somebody else has the pid after it, or had it before.
            return (as_server > 0).then_some(Err(UnattributedReason::AmbiguousPid));
        }
        let is_client = |part| part == Part::Client;
        let mut only = self.only(from, to, is_client, lookup);
        if only == Err(NoSingleOwner::Nobody) {
            // A sample is about the time before it, as where a row names the process itself.
            only = self.only(from.minus(CREDIT_SLACK), to, is_client, lookup);
        }
        Some(match only {
            Ok((_, owner)) => Ok(owner),
            Err(_) => Err(UnattributedReason::MpsServer),
        })
    }
}

impl Listed {
    /// Who had the pid when a list was read, as far as that is known now: the events of that time
    /// may have come since.
    fn identify(&self, at: BootTime, lookup: &Lookup<'_>) -> Option<ProcessId> {
        if !lookup.events.vouches_for(self.pid, at) {
            return None;
        }
        let complete = lookup.events.completeness();
        let holders = lookup.processes.holders(self.pid, at, at, complete);
        match &*holders {
            [] => self.process,
            [holder] => Some(holder.process),
            _ => None,
        }
    }

    /// Which process is the server, of one that is listed as such.
    fn server(&self, at: BootTime, lookup: &Lookup<'_>) -> Option<ProcessId> {
        match self.part {
            // Only the process that was taken for the server before is it.
            Part::IdleServer => self.process,
            _ => self.identify(at, lookup),
        }
    }
}

/// Whether two may be the same process: an unknown one may be any process.
fn may_be(one: Option<ProcessId>, other: Option<ProcessId>) -> bool {
    one.is_none() || other.is_none() || one == other
}

/// A MIG instance's window. The driver gives no rows, so all of its busy time goes to one owner or
/// is unattributed.
#[must_use]
pub(super) fn charges_of_instance(
    window: &GpuWindow,
    sharing: &Sharing,
    lookup: &mut Lookup<'_>,
) -> Vec<Charge> {
    let is_on_it = |part: Part| !part.is_server();
    let (alone, owner) = match sharing.only(window.start, window.end, is_on_it, lookup) {
        Ok((alone, owner)) => (alone, Ok(owner)),
        Err(NoSingleOwner::Nobody) => (None, Err(UnattributedReason::NoRow)),
        Err(NoSingleOwner::Several) => (None, Err(UnattributedReason::SharedInstance)),
    };
    let charge = Charge {
        pid: alone.map(|(pid, _)| pid),
        process: alone.and_then(|(_, process)| process),
        owner,
        busy: window.busy,
        engines: Engines::default(),
    };
    Some(charge)
        .filter(|charge| !charge.busy.is_zero())
        .into_iter()
        .collect()
}

#[cfg(test)]
mod tests;
