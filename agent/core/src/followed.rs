//! The processes that are handed over: those that have to do with a GPU.
//!
//! The driver goes on naming a process for seconds after its death, and a process that dies while
//! no agent runs is in no `/proc` that the next one can read. So whoever has opened a GPU, is in
//! its process lists or was charged in a window is followed until the process table forgets it,
//! which is when every window has passed its death.
//!
//! Whoever has the pid after one of them is followed as well, since that bounds what the one before
//! may be credited.
//!
//! The next agent believes what it is handed, since it has seen none of it. So only what cannot
//! mislead is handed over. Not handed over, as long as the condition holds:
//!
//! - a process whose cgroup has no path yet, or whose path bears an id that belongs elsewhere;
//! - an MPS server: its time is its clients', and who those were is not kept.
//!
//! A restored process counts as seen in its old cgroup. The first scan confirms it or marks it as
//! dead, and windows wait for that scan. Before it, the pid may have gone to another process that
//! has ended as well. That takes a whole round of the pids, so an unconfirmed process is believed
//! until a minute after the last commit.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::completeness::Completeness;
use crate::device::Devices;
use crate::ledger::Ledger;
use crate::model::{BootTime, Pid, ProcessId};
use crate::placement::PlacementId;
use crate::process_table::{CREDIT_SLACK, Facts};
use crate::records::{Cgroups, KeptProcess};
use crate::tracker::ProcessTracker;

/// Processes that are followed. Beyond that they are not kept, which is counted.
const LIMIT: usize = 16_384;

/// What was known of a process when it was handed over.
#[derive(Debug, PartialEq, Eq)]
struct HandedOver {
    facts: Facts,
    accounts: Vec<u32>,
}

/// Accounts on which each process is counted as started.
#[derive(Debug, Default)]
struct Paid {
    /// Pairs of process and account number, in the order of the processes.
    pairs: Vec<(ProcessId, u32)>,
    /// The revisions of the accounts and of all holdings that `pairs` were found by.
    revisions: Option<(u64, u64)>,
}

impl Paid {
    /// Finds the pairs again if lists or accounts have changed since.
    fn update(&mut self, devices: &Devices, ledger: &Ledger) {
        let holdings = devices.iter().map(|device| device.holding.revision()).sum();
        let revisions = Some((ledger.accounts().revision(), holdings));
        if self.revisions != revisions {
            self.revisions = revisions;
            self.pairs = Self::pairs(devices, ledger);
        }
    }

    /// By the processes that lists named on each GPU.
    fn pairs(devices: &Devices, ledger: &Ledger) -> Vec<(ProcessId, u32)> {
        let mut paid = Vec::new();
        for (book, device) in devices.iter().enumerate() {
            paid.extend(device.holding.owners().filter_map(|(process, owner)| {
                Some((process, ledger.account(book, owner)?.number))
            }));
        }
        // Stable: those of one process stay in the order of the books.
        paid.sort_by_key(|(process, _)| *process);
        paid
    }

    fn of(&self, process: ProcessId) -> &[(ProcessId, u32)] {
        let from = self.pairs.partition_point(|(of, _)| *of < process);
        let count = self.pairs[from..].partition_point(|(of, _)| *of == process);
        &self.pairs[from..from + count]
    }
}

/// The processes that are followed.
#[derive(Debug, Default)]
pub(crate) struct Followed {
    processes: BTreeMap<ProcessId, Option<HandedOver>>,
    /// Those that were handed over and have been forgotten since.
    gone: Vec<ProcessId>,
    paid: Paid,
    overflows: u64,
}

impl Followed {
    /// Follows a process from now on, since it has to do with a GPU.
    pub(crate) fn follow(&mut self, process: ProcessId) {
        if self.processes.len() < LIMIT {
            self.processes.entry(process).or_default();
        } else if !self.processes.contains_key(&process) {
            self.overflows += 1;
        }
    }

    /// How often one was not followed, since too many are.
    pub(crate) const fn overflows(&self) -> u64 {
        self.overflows
    }

    /// Stops following the processes for which `is_known` is false.
    pub(crate) fn let_go(&mut self, is_known: impl Fn(ProcessId) -> bool) {
        let gone = &mut self.gone;
        self.processes.retain(|process, handed_over| {
            let is_known = is_known(*process);
            if !is_known && handed_over.is_some() {
                gone.push(*process);
            }
            is_known
        });
    }

    /// Forgets what was handed over.
    pub(crate) fn forget(&mut self) {
        self.gone.clear();
        for handed_over in self.processes.values_mut() {
            *handed_over = None;
        }
    }

    /// The processes of which there is news, and those that were handed over and are not kept any
    /// more.
    pub(crate) fn changes(
        &mut self,
        tracker: &mut ProcessTracker,
        devices: &Devices,
        ledger: &Ledger,
    ) -> (Vec<KeptProcess>, Vec<ProcessId>) {
        let followed = self.processes.keys();
        let reused = followed.filter(|process| !tracker.processes().is_alive(**process));
        // Who has the pid after one that is dead bounds what that one may be credited.
        let reused: Vec<Facts> = reused
            .flat_map(|process| tracker.processes().incarnations(process.pid))
            .collect();
        for facts in reused {
            self.follow(facts.process);
        }
        let servers = devices.iter().flat_map(|of| of.sharing.servers());
        let servers: BTreeSet<Pid> = servers.collect();
        self.paid.update(devices, ledger);
        let paid = &self.paid;
        let mut changed = Vec::new();
        let mut gone = std::mem::take(&mut self.gone);
        let books = ledger.books().iter();
        let unbooked = books
            .filter(|book| book.missing.is_none())
            .map(|book| book.through.unwrap_or_default())
            .min();
        let unbooked = unbooked.unwrap_or_default().minus(CREDIT_SLACK);
        for (process, handed_over) in &mut self.processes {
            let Some(facts) = tracker.processes().facts_of(*process) else {
                continue;
            };
            let accounts = match facts.exit {
                None => paid.of(*process),
                Some(_) => &[],
            };
            let is_news = handed_over.as_ref().is_none_or(|known| {
                let accounts = accounts.iter().map(|(_, number)| number);
                known.facts != facts || !known.accounts.iter().eq(accounts)
            });
            let is_server = servers.contains(&process.pid);
            let kept = if is_server || !is_to_be_kept(tracker, &facts) {
                None
            } else if is_news {
                let accounts = accounts.iter().map(|(_, number)| *number).collect();
                kept_process(tracker, &facts, accounts, unbooked)
            } else {
                continue;
            };
            match kept {
                Some(kept) => {
                    *handed_over = Some(HandedOver {
                        facts,
                        accounts: kept.accounts.clone(),
                    });
                    changed.push(kept);
                }
                None => gone.extend(handed_over.take().map(|_| *process)),
            }
        }
        (changed, gone)
    }
}

/// Whether a process may be handed over: each cgroup that it is or was in has a known owner, and
/// none was refused.
fn is_to_be_kept(tracker: &mut ProcessTracker, facts: &Facts) -> bool {
    let mut places = std::iter::once(facts.placement).chain(facts.previous);
    places.all(|place| {
        tracker.owner(place).is_some() && tracker.placements().refusal(place).is_none()
    })
}

/// A process as it is handed over. Where it was before is part of it if that counts in windows from
/// `unbooked` on.
fn kept_process(
    tracker: &ProcessTracker,
    facts: &Facts,
    accounts: Vec<u32>,
    unbooked: BootTime,
) -> Option<KeptProcess> {
    let pid = facts.process.pid;
    let holders = tracker
        .processes()
        .holders(pid, unbooked, BootTime::MAX, Completeness::NONE);
    let mut holders = holders.iter();
    let moved = holders
        .find(|of| of.process == facts.process)
        .and_then(|holder| holder.placements[1])
        .map(|before| {
            let seen = (!facts.moved_unseen).then_some(facts.since);
            Some((paths_of(tracker, before)?, seen))
        });
    let moved = match moved {
        Some(moved) => Some(moved?),
        None => None,
    };
    Some(KeptProcess {
        pid,
        start: facts.start,
        by_event: facts.by_event,
        exit: facts.exit,
        exit_reported: facts.exit_reported,
        cgroups: paths_of(tracker, facts.placement)?,
        moved,
        accounts,
    })
}

/// The paths of a placement; absent while one of them is not known.
fn paths_of(tracker: &ProcessTracker, place: PlacementId) -> Option<Cgroups> {
    let cgroups = tracker.placements().cgroups_of(place).into_iter();
    cgroups
        .map(|(hierarchy, path)| Some((hierarchy, Arc::from(path?))))
        .collect()
}

#[cfg(test)]
mod tests;
