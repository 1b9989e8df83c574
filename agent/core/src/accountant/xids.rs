//! Xid errors: which GPU and which owner they are of.

use std::sync::Arc;

use crate::accountant::Accountant;
use crate::input::{GpuHealth, XidGpu, XidReport};
use crate::model::{Clock, Nanos, Owner, ProcessId};
use crate::owners;
use crate::process_table::CREDIT_SLACK;
use crate::snapshot::{Attribution, XidSeries};
use crate::xids::{HOLDERS, SoleHolder, XidError, XidOwner};

/// How many intervals of the process lists a list may be old when it says who held a GPU.
const LISTS_HOLD: u64 = 3;

impl Accountant {
    /// Takes a reading of a GPU's health. A GPU that NVML has never listed has none.
    pub(super) fn take_gpu_health(&mut self, health: GpuHealth, clock: Clock) {
        if self.ledger.book_of(&health.gpu).is_some() {
            self.healths.take(health, clock);
        }
    }

    /// Takes a report of an Xid error. One about a GPU that NVML does not list is counted as such: the
    /// kernel's log also has errors of GPUs that were given to a virtual machine.
    pub(super) fn take_xid(&mut self, report: &XidReport, clock: Clock) {
        let book =
            match &report.gpu {
                XidGpu::Uuid(uuid) => self.ledger.book_of(uuid),
                XidGpu::Pci(address) => self.ledger.books().iter().position(|book| {
                    book.gpu.mig.is_none() && book.gpu.pci.as_ref() == Some(address)
                }),
            };
        let Some(book) = book else {
            self.counts.xids_elsewhere += 1;
            return;
        };
        let holder = self.sole_holder(book, clock);
        self.xids.report(book, report, holder, clock);
    }

    /// Counts the errors whose owner is settled.
    pub(super) fn settle_xids(&mut self, clock: Clock) {
        let mut xids = std::mem::take(&mut self.xids);
        xids.settle(clock, &mut |error| self.owner_of_xid(error, clock));
        xids.show(self.settings.policy.zero_for, clock.boot);
        self.xids = xids;
    }

    /// To whom an error is counted; none while that may still become known.
    fn owner_of_xid(&mut self, error: &mut XidError, clock: Clock) -> Option<XidOwner> {
        let waited = clock.boot.since(error.received);
        let has_waited = waited >= self.settings.await_events;
        let events = self.tracker.events();
        let is_known = error.is_logged()
            && (!events.is_expected() || events.has_caught_up(error.at))
            && !self.tracker.awaits_scan(clock.boot);
        if !is_known && !has_waited {
            return None;
        }
        let owner = match &error.owner {
            Some(owner) => owner.clone(),
            None => {
                let owner = self.cause_of(error);
                error.owner.insert(owner).clone()
            }
        };
        let owner = match owner {
            None => return Some(XidOwner::unresolved()),
            Some(Owner::Host(unit)) => return Some(XidOwner::host(unit)),
            Some(owner) => owner,
        };
        match self.naming.of_owner(&owner) {
            Some(known) if known.attribution == Attribution::Held && !self.is_final(waited) => None,
            Some(known) => Some(XidOwner::container(Arc::clone(&known.labels))),
            // It has no account here: one of its processes opened the GPU for the first time, or the
            // account is on an instance of the GPU and has been closed.
            None => Some(XidOwner::container(Arc::new(match &owner {
                Owner::Container(id) => self.naming.directory().names(id).labels,
                Owner::Pod(_) | Owner::Host(_) => crate::naming::no_names(&owner),
            }))),
        }
    }

    /// The owner of the process that caused an error, or the sole holder of the GPU at that time.
    fn cause_of(&mut self, error: &XidError) -> Option<Owner> {
        let mut lookup = self.tracker.lookup();
        if let Some(pid) = error.pid {
            return owners::owner_of(pid, error.at, error.at, &mut lookup)
                .1
                .ok();
        }
        let SoleHolder::One(owner, processes) = &error.holder else {
            return None;
        };
        // A process that had ended before cannot have caused it. NVML's event is later than the error,
        // and the driver may end the process that caused it.
        let from = error.at.minus(CREDIT_SLACK);
        let lived = |process: &ProcessId| {
            let facts = lookup.processes.facts_of(*process);
            facts.is_some_and(|facts| facts.exit.is_none_or(|exit| exit >= from))
        };
        // Of more processes than are remembered, one that is not may have lived.
        let is_known = processes.len() >= HOLDERS || processes.iter().any(lived);
        is_known.then(|| owner.clone())
    }

    /// Whether names are not waited for any longer.
    fn is_final(&self, waited: Nanos) -> bool {
        let await_events = self.settings.await_events;
        let names_waited = waited.minus(await_events);
        await_events.is_zero() || names_waited >= self.settings.policy.grace
    }

    /// Who holds a GPU, by the last process lists of it and of its instances.
    fn sole_holder(&mut self, book: usize, clock: Clock) -> SoleHolder {
        let uuid = &self.ledger.books()[book].gpu.uuid;
        let books = self.ledger.books().iter();
        let is_part = books.map(|part| match &part.gpu.mig {
            Some(mig) => mig.parent == *uuid,
            None => part.gpu.uuid == *uuid,
        });
        let oldest = clock.boot.minus(Nanos(
            self.settings.lists_interval.0.saturating_mul(LISTS_HOLD),
        ));
        let mut holder = SoleHolder::default();
        let mut lookup = self.tracker.lookup();
        for (device, is_part) in self.devices.iter().zip(is_part) {
            let lists = device.lists.as_ref().filter(|lists| lists.at >= oldest);
            for lists in lists.into_iter().filter(|_| is_part) {
                for (process, owner) in owners::owners_of(&lists.processes, lists.at, &mut lookup) {
                    holder.add(process.zip(owner.ok()));
                }
            }
        }
        holder
    }

    /// The counters of Xid errors, for a snapshot.
    pub(super) fn xid_series(&self) -> Vec<XidSeries> {
        let counters = self.xids.iter();
        counters
            .map(|((book, xid, owner), counter)| XidSeries {
                gpu: self.ledger.books()[*book].gpu.uuid.clone(),
                xid: *xid,
                labels: Arc::clone(&owner.labels),
                unit: owner.unit.clone(),
                count: counter.count,
                published: counter.published(),
                start: counter.start,
                last: counter.last,
            })
            .collect()
    }
}
