//! Process lists, and reports about dead processes: what they change in the books.

use crate::accountant::{Accountant, HeldTime, follow};
use crate::awaited::{Awaited, Next, life_of};
use crate::device::DeviceLists;
use crate::effect::Effect;
use crate::holding::{End, ListedProcess};
use crate::input::{Accounted, GpuProcesses};
use crate::model::{BootTime, Clock, Owner};
use crate::owners;
use crate::tables::HashMap;

impl Accountant {
    /// Takes the reports that have waited long enough, in the order in which they came.
    pub(super) fn take_reports(&mut self, clock: Clock) {
        loop {
            let events = self.tracker.events();
            let next = self
                .reports
                .next(events, self.settings.await_events, clock.boot);
            match next {
                Next::None => return,
                Next::Waits { end } => {
                    if events.lacks_scan(end) && !events.is_starting() {
                        self.effects.ask(Effect::Rescan);
                    }
                    return;
                }
                Next::Ready {
                    awaited,
                    received,
                    is_early,
                } => {
                    self.counts.lists_not_awaited += u64::from(is_early);
                    match awaited {
                        Awaited::Lists(lists) => self.take_lists(lists, clock),
                        Awaited::Died(process) => self.take_accounted(&process, received, clock),
                    }
                }
            }
        }
    }

    /// Takes the driver's accounting of a process that ended: its peak memory, which no reading may
    /// have seen, and its busy time, to compare with what was booked.
    fn take_accounted(&mut self, process: &Accounted, received: Clock, clock: Clock) {
        let Some(book) = self.ledger.book_of(&process.gpu) else {
            return;
        };
        if let Some((by_driver, by_windows)) = process.busy {
            self.ledger.compare(book, by_driver, by_windows);
        }
        if self.tracker.awaits_scan(clock.boot) {
            // As with process lists, the owner of the pid is not certain yet.
            return;
        }
        let (from, to) = life_of(process, received);
        let mut lookup = self.tracker.lookup();
        let (_, owner) = owners::owner_of(process.pid, from, to, &mut lookup);
        let Ok(owner) = owner else { return };
        let opened = self.opened_at(book, from, clock);
        self.ledger.open(book, &owner, opened);
        if let Some(account) = self.ledger.account_mut(book, &owner) {
            account.memory_peak = account.memory_peak.max(process.memory_peak);
        }
    }

    fn take_lists(&mut self, mut lists: GpuProcesses, clock: Clock) {
        if self.tracker.awaits_scan(clock.boot) {
            // A pid in it may have belonged to another process when the previous agent ended.
            return;
        }
        let own = self.settings.own_pid;
        lists.processes.retain(|process| Some(process.pid) != own);
        let Some(book) = self.ledger.book_of(&lists.gpu) else {
            return; // Nothing can be booked on a GPU that NVML has never listed.
        };
        let mut lookup = self.tracker.lookup();
        let mut owners = owners::owners_of(&lists.processes, lists.at, &mut lookup);
        let sharing = &mut self.devices.of(book).sharing;
        sharing.observe(lists.at, &lists.processes, &owners, &lookup);
        for (process, (_, owner)) in lists.processes.iter().zip(&mut owners) {
            let of_server = sharing.owner_of_server(process.pid, lists.at, lists.at, &mut lookup);
            if let Some(of_server) = of_server {
                (_, *owner) = owners::confirmed(process.pid, lists.at, (None, of_server), &lookup);
            }
        }
        self.close_taken_over(clock);
        let mut members = Vec::with_capacity(lists.processes.len());
        let mut memory = HashMap::<Owner, u64>::default();
        let opened = self.opened_at(book, lists.at, clock);
        for (process, (found, owner)) in lists.processes.iter().zip(owners) {
            if let Some(found) = found {
                follow(&mut self.change_tracker, found);
            }
            let Ok(owner) = owner else { continue };
            if let Some(found) = found {
                let started = self
                    .tracker
                    .processes()
                    .facts_of(found)
                    .map(|facts| facts.start);
                members.push(ListedProcess {
                    process: found,
                    owner: owner.clone(),
                    not_before: started.max(self.tracker.opens().first(found)),
                    memory: process.memory,
                });
            }
            if let Some(bytes) = process.memory {
                let sum = memory.entry(owner.clone()).or_default();
                *sum = sum.saturating_add(bytes);
            }
            // If the account is opened before the first charge, its series shows 0 earlier.
            self.ledger.open(book, &owner, opened);
        }
        let device = self.devices.of(book);
        for owner in device.holding.list(lists.at, members) {
            if let Some(account) = self.ledger.account_mut(book, &owner) {
                account.processes_started += 1;
            }
        }
        for (owner, bytes) in &memory {
            if let Some(account) = self.ledger.account_mut(book, owner) {
                account.memory_peak = account.memory_peak.max(Some(*bytes));
            }
        }
        device.lists = Some(DeviceLists {
            at: lists.at,
            processes: lists.processes,
            memory_used: lists.memory_used,
            memory,
        });
    }

    /// Books held time and memory where it is due, as far as every exit is known, or has been waited
    /// for long enough.
    pub(super) fn book_held(&mut self, which: HeldTime, now: BootTime) {
        if self.tracker.awaits_scan(now) {
            // A process that is wrongly considered dead until then would be counted as started a
            // second time.
            return;
        }
        let until = self.tracker.events().drained_through().min(now);
        let until = until.max(now.minus(self.settings.await_events));
        let until = until.min(self.reports.oldest_lists());
        let processes = self.tracker.processes();
        let end_of = |process| match processes.facts_of(process) {
            None => End::Forgotten,
            Some(facts) => facts.exit.map_or(End::Alive, End::At),
        };
        let ledger = &mut self.ledger;
        for (book, device) in self.devices.iter_mut().enumerate() {
            if which == HeldTime::Due && !device.holding.is_due(until, &end_of) {
                continue;
            }
            for (owner, held) in device.holding.book_until(until, &end_of) {
                if let Some(account) = ledger.account_mut(book, &owner) {
                    account.add_held(held.from, held.time, held.memory);
                }
            }
        }
    }
}
