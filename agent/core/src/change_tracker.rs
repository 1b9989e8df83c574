//! What was handed over to the store, so that only what has changed since is handed over again.
//!
//! A commit in which one container of five hundred used a GPU is one narrow row, not five hundred.
//! Until the store confirms that it kept the closed accounts, they are handed over again.

use std::collections::hash_map::Entry;
use std::sync::Arc;

use crate::account::{Account, Series};
use crate::allocation::{AllocationTable, KeptAllocation};
use crate::amounts::Amounts;
use crate::device::Devices;
use crate::directory::Labels;
use crate::followed::Followed;
use crate::input::MigInfo;
use crate::ledger::{Book, Ledger};
use crate::model::{BootTime, ContainerId, GpuUuid, NONE, Nanos, Owner, ProcessId, WallTime, none};
use crate::records::{
    ClosedAccount, KeptAccount, KeptBook, KeptNamespace, KeptProcess, KeptReason, KeptSeries,
    KeptTime, KeptTotals, kind_and_id,
};
use crate::snapshot::{Attribution, ContainerLabels};
use crate::tables::HashMap;
use crate::tracker::ProcessTracker;

/// Largest number of closed accounts that are not stored yet. Beyond it the oldest are merged and
/// counted. Their amounts stay in their GPU's book.
const CLOSED_LIMIT: usize = 10_000;

/// Remembers the last handover, to find what changed since.
#[derive(Debug, Default)]
pub(crate) struct ChangeTracker {
    /// By number. A table has up to twice as many places as entries, and an entry is large: so it is
    /// boxed.
    accounts: HashMap<u32, Box<(KeptAccount, KeptTotals)>>,
    books: HashMap<GpuUuid, KeptBook>,
    times: HashMap<(GpuUuid, KeptReason), Nanos>,
    namespaces: HashMap<(GpuUuid, Arc<str>), KeptNamespace>,
    pub(crate) closed: Vec<ClosedAccount>,
    pub(crate) given_up: u64,
    followed: Followed,
    allocations: HashMap<ContainerId, KeptAllocation>,
}

impl ChangeTracker {
    /// Has a process handed over: it has to do with a GPU.
    pub(crate) fn follow(&mut self, process: ProcessId) {
        self.followed.follow(process);
    }

    /// Stops following the processes that the tracker has forgotten.
    pub(crate) fn unfollow_forgotten(&mut self, tracker: &ProcessTracker) {
        let is_known = |process| tracker.processes().facts_of(process).is_some();
        self.followed.let_go(is_known);
    }

    /// The followed processes that changed, and those that were handed over and are not kept any
    /// more.
    pub(crate) fn processes(
        &mut self,
        tracker: &mut ProcessTracker,
        devices: &Devices,
        ledger: &Ledger,
    ) -> (Vec<KeptProcess>, Vec<ProcessId>) {
        self.followed.changes(tracker, devices, ledger)
    }

    /// Processes that were not followed, since too many are.
    pub(crate) const fn not_followed(&self) -> u64 {
        self.followed.overflows()
    }

    /// Forgets the last handover, so that the next one is complete.
    pub(crate) fn forget(&mut self) {
        self.accounts.clear();
        self.books.clear();
        self.times.clear();
        self.namespaces.clear();
        self.followed.forget();
        self.allocations.clear();
    }

    /// Returns allocations that changed since the last handover, and containers whose allocations
    /// ended.
    pub(crate) fn allocations(
        &mut self,
        table: &AllocationTable,
    ) -> (Vec<KeptAllocation>, Vec<ContainerId>) {
        let mut news = Vec::new();
        let mut gone = std::mem::take(&mut self.allocations);
        for (container, name, grants) in table.kept() {
            let known = gone.remove(container);
            let known = known.filter(|known| known.name == *name && known.grants == grants);
            let kept = known.unwrap_or_else(|| {
                let kept = KeptAllocation {
                    container: container.clone(),
                    name: name.clone(),
                    grants: grants.to_vec(),
                };
                news.push(kept.clone());
                kept
            });
            self.allocations.insert(container.clone(), kept);
        }
        (news, gone.into_keys().collect())
    }

    /// Notes an account that is closed; it is handed over until [`ChangeTracker::confirm`].
    pub(crate) fn close(&mut self, closed: ClosedAccount) {
        self.accounts.remove(&closed.account.number);
        if self.closed.len() >= CLOSED_LIMIT {
            self.closed.remove(0);
            self.given_up += 1;
        }
        self.closed.push(closed);
    }

    /// The store has kept the oldest `closed` of the closed accounts. They are not handed over
    /// again.
    pub(crate) fn confirm(&mut self, closed: usize) {
        self.closed.drain(..closed.min(self.closed.len()));
    }

    /// Returns what changed in an account since the last handover, and marks it as handed over.
    pub(crate) fn account(
        &mut self,
        account: &AccountView<'_>,
        totals: KeptTotals,
    ) -> (Option<KeptAccount>, Option<KeptTotals>) {
        match self.accounts.entry(account.number) {
            Entry::Vacant(place) => {
                let kept = account.copied();
                place.insert(Box::new((kept.clone(), totals)));
                (Some(kept), Some(totals))
            }
            Entry::Occupied(mut place) => {
                let (known, known_totals) = place.get_mut().as_mut();
                let is_known = account.is(known);
                debug_assert_eq!(is_known, account.copied() == *known, "compared as copied");
                let changed = (!is_known).then(|| {
                    *known = account.copied();
                    known.clone()
                });
                let changed_totals = (*known_totals != totals).then_some(totals);
                *known_totals = totals;
                (changed, changed_totals)
            }
        }
    }

    /// Returns what changed in a book since the last handover, with the times of its reasons that
    /// changed, and marks it as handed over.
    pub(crate) fn book(&mut self, book: &Book) -> (Option<KeptBook>, Vec<KeptTime>) {
        let kept = kept_book(book);
        let gpu = &book.gpu.uuid;
        let unattributed = book.unattributed.iter();
        let unattributed = unattributed.map(|(r, time)| (KeptReason::Unattributed(*r), *time));
        let unobserved = book.unobserved.iter();
        let unobserved = unobserved.map(|(r, time)| (KeptReason::Unobserved(*r), *time));
        let mut times = Vec::new();
        for (reason, time) in unattributed.chain(unobserved) {
            let known = self.times.entry((gpu.clone(), reason)).or_default();
            if *known != time {
                *known = time;
                times.push(KeptTime {
                    gpu: gpu.clone(),
                    reason,
                    time,
                });
            }
        }
        let changed = self.books.get(gpu) != Some(&kept);
        let changed = changed.then(|| {
            self.books.insert(gpu.clone(), kept.clone());
            kept
        });
        (changed, times)
    }

    /// Returns a namespace's counter if it changed since the last handover, and marks it as handed
    /// over.
    pub(crate) fn namespace(&mut self, namespace: KeptNamespace) -> Option<KeptNamespace> {
        let key = (namespace.gpu.clone(), Arc::clone(&namespace.namespace));
        let changed = self.namespaces.get(&key) != Some(&namespace);
        changed.then(|| {
            self.namespaces.insert(key, namespace.clone());
            namespace
        })
    }
}

pub(crate) fn kept_book(book: &Book) -> KeptBook {
    KeptBook {
        gpu: book.gpu.clone(),
        start: book.start,
        through: book.through,
        elapsed: book.elapsed,
        busy: book.busy,
        idle: book.idle,
        energy: book.energy,
        closed: book.closed,
        windows: book.windows,
        torn_windows: book.torn_windows,
        invalid_rows: book.invalid_rows,
        cut: book.cut,
    }
}

/// A series as it is handed over, by reference: most have not changed and need no copy.
#[derive(Clone, Copy)]
pub(crate) struct SeriesView<'a> {
    pub(crate) series: &'a Series,
    pub(crate) follows: bool,
}

impl SeriesView<'_> {
    pub(crate) fn changed(&self) -> BootTime {
        let counter = &self.series.counter;
        if self.follows {
            counter.shown
        } else {
            counter.changed
        }
    }

    pub(crate) fn shows(&self) -> Amounts {
        if self.follows {
            Amounts::ZERO
        } else {
            self.series.counter.visible
        }
    }

    /// Whether it equals what was handed over last.
    pub(crate) fn is(&self, kept: &KeptSeries) -> bool {
        let KeptSeries {
            labels,
            start,
            shown,
            changed,
            follows,
            shows,
        } = kept;
        let counter = &self.series.counter;
        self.follows == *follows
            && counter.start == *start
            && counter.shown == *shown
            && self.changed() == *changed
            && self.shows() == *shows
            && self.series.labels == *labels
    }

    pub(crate) fn copied(&self) -> KeptSeries {
        let counter = &self.series.counter;
        KeptSeries {
            labels: self.series.labels.clone(),
            start: counter.start,
            shown: counter.shown,
            changed: self.changed(),
            follows: self.follows,
            shows: self.shows(),
        }
    }

    pub(crate) fn option_is(view: Option<Self>, kept: Option<&KeptSeries>) -> bool {
        match (view, kept) {
            (None, None) => true,
            (Some(view), Some(kept)) => view.is(kept),
            _ => false,
        }
    }
}

/// The part of an account that changes rarely, by reference; owned, it is a [`KeptAccount`].
pub(crate) struct AccountView<'a> {
    pub(crate) number: u32,
    pub(crate) gpu: &'a GpuUuid,
    pub(crate) mig: Option<&'a MigInfo>,
    pub(crate) owner: &'a Owner,
    pub(crate) labels: Arc<ContainerLabels>,
    /// Absent for host units, which have no image.
    pub(crate) image: Option<&'a Arc<str>>,
    pub(crate) runtime: Option<&'a Arc<str>>,
    pub(crate) attribution: Option<Attribution>,
    /// Absent if no source gave labels.
    pub(crate) runtime_labels: Option<&'a Labels>,
    pub(crate) opened: WallTime,
    pub(crate) held_since: BootTime,
    pub(crate) ended: Option<BootTime>,
    pub(crate) id_only: Option<SeriesView<'a>>,
    pub(crate) named: Option<SeriesView<'a>>,
}

impl AccountView<'_> {
    pub(crate) const fn fed(&self) -> bool {
        matches!(self.attribution, Some(Attribution::Named { .. }))
    }

    /// Whether it equals what was handed over last.
    pub(crate) fn is(&self, known: &KeptAccount) -> bool {
        let KeptAccount {
            number,
            gpu,
            mig,
            kind,
            owner_id,
            labels,
            image,
            runtime,
            attribution,
            runtime_labels,
            opened,
            held_since,
            ended,
            fed,
            id_only,
            named,
        } = known;
        let text_is = |text: Option<&Arc<str>>, kept: &Arc<str>| match text {
            Some(text) => text == kept,
            None => **kept == *NONE,
        };
        let labels_are = match self.runtime_labels {
            Some(labels) => labels == runtime_labels,
            None => runtime_labels.is_empty(),
        };
        self.number == *number
            && self.opened == *opened
            && self.held_since == *held_since
            && self.ended == *ended
            && self.fed() == *fed
            && self.attribution == *attribution
            && kind_and_id(self.owner) == (*kind, owner_id)
            && self.gpu == gpu
            && self.mig == mig.as_ref()
            && self.labels == *labels
            && text_is(self.image, image)
            && text_is(self.runtime, runtime)
            && labels_are
            && SeriesView::option_is(self.id_only, id_only.as_ref())
            && SeriesView::option_is(self.named, named.as_ref())
    }

    pub(crate) fn copied(&self) -> KeptAccount {
        let text = |text: Option<&Arc<str>>| text.map_or_else(none, Arc::clone);
        let (kind, owner_id) = kind_and_id(self.owner);
        KeptAccount {
            number: self.number,
            gpu: self.gpu.clone(),
            mig: self.mig.cloned(),
            kind,
            owner_id: Arc::clone(owner_id),
            labels: Arc::clone(&self.labels),
            image: text(self.image),
            runtime: text(self.runtime),
            attribution: self.attribution,
            runtime_labels: self.runtime_labels.map(Arc::clone).unwrap_or_default(),
            opened: self.opened,
            held_since: self.held_since,
            ended: self.ended,
            fed: self.fed(),
            id_only: self.id_only.as_ref().map(SeriesView::copied),
            named: self.named.as_ref().map(SeriesView::copied),
        }
    }
}

/// An account's series and totals as they are handed over.
pub(crate) fn kept_parts(account: &Account) -> ([Option<SeriesView<'_>>; 2], KeptTotals) {
    let frozen = account.id_only.as_ref().filter(|_| account.named.is_some());
    let current = account.named.as_ref().or(account.id_only.as_ref());
    let elsewhere = frozen.map_or(Amounts::ZERO, |series| series.counter.visible);
    let follows =
        current.is_some_and(|series| series.counter.visible == account.amounts.minus(elsewhere));
    let id_only = account.id_only.as_ref().map(|series| SeriesView {
        series,
        follows: follows && account.named.is_none(),
    });
    let named = account.named.as_ref();
    let named = named.map(|series| SeriesView { series, follows });
    let totals = KeptTotals {
        number: account.number,
        amounts: account.amounts,
        memory_peak: account.memory_peak,
        processes_started: account.processes_started,
        first_used: account.first_used,
        last_used: account.last_used,
        changed: current
            .filter(|_| follows)
            .map_or(BootTime::default(), |series| series.counter.changed),
        since: Some(account.since),
        allocated_through: account.allocated_through,
    };
    ([id_only, named], totals)
}
