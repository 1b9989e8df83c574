//! What the core hands over to be kept, and what it takes back after a restart.
//!
//! After each commit the [`Keeper`] says what differs from what it has handed over before: a
//! commit in which one container of five hundred used a GPU is one narrow row, not five hundred.
//! Nothing here knows of files. Whoever keeps the rows says whether they were kept; until then the
//! core assumes that they were not, and can be told to hand over everything again.
//!
//! A [`State`] is everything that was handed over, put together. An [`Accountant`] that is made of
//! it goes on where the one before it stopped: the same books, accounts and series, with the same
//! start times and no published amount below the one before. It is refused if its books do not
//! balance, since nothing that is added to such books would make them right again.
//!
//! Of processes only those are kept that have to do with a GPU, see [`processes`]: `/proc` tells who
//! lives, but not whose the time was of those who died while no agent ran, and not who has been
//! counted already.
//!
//! Not kept: what containers are called that have no account, and the agent's figures about itself.

mod processes;

use std::borrow::Cow;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use super::accountant::{Accountant, NamespaceBook, Payer, Settings, no_names};
use super::allocation::AllocationTable;
use super::amounts::Amounts;
use super::directory::Labels;
use super::input::{
    ContainerIdentity, GpuInfo, IdentitySource, IdentityUpdate, KubernetesNames, MigInfo,
};
use super::ledger::{Account, Book, Ledger};
use super::model::{
    BootTime, Clock, ContainerId, GpuUuid, HostUnit, NONE, Nanos, PodUid, ProcessId, UNRESOLVED,
    UnattributedReason, UnobservedReason, WallTime, none,
};
use super::placement::Owner;
use super::publication::{Gate, Series};
use super::snapshot::{Attribution, ContainerLabels, EnergyBook};
use super::tables::HashMap;

use self::processes::Followed;
pub use self::processes::{Cgroups, KeptProcess};
pub use super::allocation::{GivenName, Grant, KeptAllocation};

/// Accounts that have been closed and are not known to be kept. Beyond that the oldest are given up
/// and counted: their amounts stay in their GPU's book.
const CLOSED_LIMIT: usize = 10_000;

/// How long the first windows of an agent that goes on wait for the first scan of `/proc`.
const AWAIT_FIRST_SCAN: Nanos = Nanos::from_secs(10);

/// What kind of payer an account is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PayerKind {
    /// A container, by its id.
    Container,
    /// A pod, by its uid.
    Pod,
    /// A host process, by its unit.
    Host,
}

impl PayerKind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Container, Self::Pod, Self::Host];

    /// Its name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::Pod => "pod",
            Self::Host => "host",
        }
    }
}

const fn payer_of(owner: &Owner) -> (PayerKind, &Arc<str>) {
    match owner {
        Owner::Container(ContainerId(id)) => (PayerKind::Container, id),
        Owner::Pod(PodUid(uid)) => (PayerKind::Pod, uid),
        Owner::Host(HostUnit(unit)) => (PayerKind::Host, unit),
    }
}

fn owner(kind: PayerKind, id: &Arc<str>) -> Owner {
    let id = Arc::clone(id);
    match kind {
        PayerKind::Container => Owner::Container(ContainerId(id)),
        PayerKind::Pod => Owner::Pod(PodUid(id)),
        PayerKind::Host => Owner::Host(HostUnit(id)),
    }
}

/// One published series of an account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptSeries {
    /// Its labels, frozen.
    pub labels: ContainerLabels,
    /// Where its counter starts.
    pub start: WallTime,
    /// When it was first shown.
    pub shown: BootTime,
    /// When what it shows last changed. Of a series that follows, see [`KeptTotals::changed`].
    pub changed: BootTime,
    /// Whether it shows all of the account that the other series does not: then it need not be
    /// handed over again with each second of use.
    pub follows: bool,
    /// What it shows; zero, and without meaning, where it follows.
    pub shows: Amounts,
}

/// What of an account changes rarely.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptAccount {
    /// Its number: unique for as long as series continue, closed accounts included.
    pub number: u32,
    /// The GPU.
    pub gpu: GpuUuid,
    /// Which MIG instance that was, if it is one, when the account was opened.
    pub mig: Option<MigInfo>,
    /// What kind of payer.
    pub kind: PayerKind,
    /// Which.
    pub payer: Arc<str>,
    /// What it is called.
    pub labels: ContainerLabels,
    /// The image.
    pub image: Arc<str>,
    /// Who runs it.
    pub runtime: Arc<str>,
    /// How far its names are known; absent for the host, which needs none.
    pub attribution: Option<Attribution>,
    /// All labels that its runtime gave.
    pub runtime_labels: Labels,
    /// When it was opened.
    pub opened: WallTime,
    /// Since when its names have been waited for.
    pub held_since: BootTime,
    /// Since when it has had no process.
    pub ended: Option<BootTime>,
    /// Whether its namespace's counter has been given all of it.
    pub fed: bool,
    /// What is published of it under the ids alone.
    pub id_only: Option<KeptSeries>,
    /// What is published of it under its names.
    pub named: Option<KeptSeries>,
}

/// What of an account changes with each second of use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeptTotals {
    /// The account's number.
    pub number: u32,
    /// The whole of each amount.
    pub amounts: Amounts,
    /// The most device memory that was seen in use, in bytes.
    pub memory_peak: Option<u64>,
    /// Processes of it that were seen on the GPU.
    pub processes_started: u64,
    /// The end of the first window that charged it.
    pub first_used: Option<WallTime>,
    /// The end of the last.
    pub last_used: Option<WallTime>,
    /// When what the series that follows shows last changed.
    pub changed: BootTime,
    /// The earliest time of which anything is counted; absent where an older agent did not note it.
    pub since: Option<BootTime>,
    /// Up to when its allocated time is counted.
    pub allocated_through: Option<BootTime>,
}

/// An account that has been closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClosedAccount {
    /// When.
    pub at: WallTime,
    /// What it was.
    pub account: KeptAccount,
    /// What it held.
    pub totals: KeptTotals,
}

/// A GPU's book, but for its reasons.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptBook {
    /// The GPU.
    pub gpu: GpuInfo,
    /// When it was opened.
    pub start: WallTime,
    /// The end of the last window: where the next one begins.
    pub through: Option<BootTime>,
    /// Time accounted for.
    pub elapsed: Nanos,
    /// Busy time.
    pub busy: Nanos,
    /// Idle time.
    pub idle: Nanos,
    /// Energy.
    pub energy: Option<EnergyBook>,
    /// What accounts that are closed held.
    pub closed: Amounts,
    /// Windows booked.
    pub windows: u64,
    /// Those that were torn.
    pub torn_windows: u64,
    /// Rows dropped.
    pub invalid_rows: u64,
    /// Time cut from rows.
    pub cut: Nanos,
}

/// Why time has no owner, or was not observed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeptReason {
    /// No owner.
    Unattributed(UnattributedReason),
    /// Not observed.
    Unobserved(UnobservedReason),
}

/// The time of one reason in one GPU's book.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptTime {
    /// The GPU.
    pub gpu: GpuUuid,
    /// The reason.
    pub reason: KeptReason,
    /// The whole of it.
    pub time: Nanos,
}

/// The counter of a namespace on a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptNamespace {
    /// The GPU.
    pub gpu: GpuUuid,
    /// The namespace.
    pub namespace: Arc<str>,
    /// The whole of each amount.
    pub amounts: Amounts,
    /// Where the counter starts.
    pub start: WallTime,
    /// When it was first shown.
    pub shown: BootTime,
    /// When what it shows last changed.
    pub changed: BootTime,
    /// What it shows.
    pub shows: Amounts,
}

/// What has changed since what was handed over before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Everything there is, not only what changed: whatever else is kept as open is gone.
    pub whole: bool,
    /// The commit's number.
    pub sequence: u64,
    /// When it was made.
    pub clock: Clock,
    /// Books.
    pub books: Vec<KeptBook>,
    /// Times of their reasons.
    pub times: Vec<KeptTime>,
    /// What changes rarely of accounts. The account's totals may be as they were.
    pub accounts: Vec<KeptAccount>,
    /// Totals of accounts that were handed over, before or with these.
    pub totals: Vec<KeptTotals>,
    /// Accounts that have been closed.
    pub closed: Vec<ClosedAccount>,
    /// Namespaces.
    pub namespaces: Vec<KeptNamespace>,
    /// Processes that have to do with a GPU.
    pub processes: Vec<KeptProcess>,
    /// Those that were handed over and are not kept any more.
    pub gone: Vec<ProcessId>,
    /// What the kubelet has given to containers that live.
    pub allocations: Vec<KeptAllocation>,
    /// Containers of which that was handed over and is not kept any more.
    pub allocations_gone: Vec<ContainerId>,
}

/// How far changes reach, to be given back once they are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// How many closed accounts were among them.
    closed: usize,
}

impl Changes {
    /// What to say once they are kept.
    #[must_use]
    pub fn receipt(&self) -> Kept {
        Kept {
            closed: self.closed.len(),
        }
    }
}

/// Everything that is kept as open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// The last commit's number.
    pub sequence: u64,
    /// When it was made, on both clocks.
    pub clock: Clock,
    /// Books, in the order in which they are shown.
    pub books: Vec<KeptBook>,
    /// Times of their reasons.
    pub times: Vec<KeptTime>,
    /// Open accounts.
    pub accounts: Vec<(KeptAccount, KeptTotals)>,
    /// Namespaces.
    pub namespaces: Vec<KeptNamespace>,
    /// Processes that have to do with a GPU.
    pub processes: Vec<KeptProcess>,
    /// What the kubelet has given to containers.
    pub allocations: Vec<KeptAllocation>,
    /// The largest number that any account has had.
    pub last_number: u32,
}

/// Why a state cannot be continued from.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// Something is on a GPU that has no book.
    #[error("an account or a namespace is on {gpu}, which has no book")]
    NoBook {
        /// The GPU.
        gpu: GpuUuid,
    },
    /// Two accounts of one payer on one GPU.
    #[error("{payer} has two open accounts on {gpu}")]
    Twice {
        /// The payer.
        payer: Arc<str>,
        /// The GPU.
        gpu: GpuUuid,
    },
    /// The books do not balance.
    #[error("the book of {gpu} is out of balance by {nanoseconds} ns")]
    Imbalance {
        /// The GPU.
        gpu: GpuUuid,
        /// By how much.
        nanoseconds: i64,
    },
    /// The last commit is in the future of this boot.
    #[error("the last commit was made {ahead:?} ns ahead of the boot clock")]
    Future {
        /// By how much.
        ahead: u64,
    },
}

/// Remembers what was handed over.
#[derive(Debug, Default)]
pub(super) struct Keeper {
    accounts: HashMap<u32, (KeptAccount, KeptTotals)>,
    books: HashMap<GpuUuid, KeptBook>,
    times: HashMap<(GpuUuid, KeptReason), Nanos>,
    namespaces: HashMap<(GpuUuid, Arc<str>), KeptNamespace>,
    closed: Vec<ClosedAccount>,
    given_up: u64,
    followed: Followed,
    allocations: HashMap<ContainerId, KeptAllocation>,
}

impl Keeper {
    /// Forgets what was handed over: the next changes are everything there is.
    fn forget(&mut self) {
        self.accounts.clear();
        self.books.clear();
        self.times.clear();
        self.namespaces.clear();
        self.followed.forget();
        self.allocations.clear();
    }

    /// What of allocations is news, and of which containers there is none any more.
    fn allocations(&mut self, table: &AllocationTable) -> (Vec<KeptAllocation>, Vec<ContainerId>) {
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

    /// Notes an account that is closed; it is handed over until [`Keeper::confirm`].
    fn close(&mut self, closed: ClosedAccount) {
        self.accounts.remove(&closed.account.number);
        if self.closed.len() >= CLOSED_LIMIT {
            self.closed.remove(0);
            self.given_up += 1;
        }
        self.closed.push(closed);
    }

    /// All closed accounts that were handed over so far are kept.
    fn confirm(&mut self, closed: usize) {
        self.closed.drain(..closed.min(self.closed.len()));
    }

    /// What of an account is news, which it then is no more.
    fn account(
        &mut self,
        account: &AccountView<'_>,
        totals: KeptTotals,
    ) -> (Option<KeptAccount>, Option<KeptTotals>) {
        match self.accounts.entry(account.number) {
            Entry::Vacant(place) => {
                let kept = account.copied();
                place.insert((kept.clone(), totals));
                (Some(kept), Some(totals))
            }
            Entry::Occupied(mut place) => {
                let (known, known_totals) = place.get_mut();
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

    /// Likewise.
    fn book(&mut self, book: &Book) -> (Option<KeptBook>, Vec<KeptTime>) {
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

    /// Likewise.
    fn namespace(&mut self, namespace: KeptNamespace) -> Option<KeptNamespace> {
        let key = (namespace.gpu.clone(), Arc::clone(&namespace.namespace));
        let changed = self.namespaces.get(&key) != Some(&namespace);
        changed.then(|| {
            self.namespaces.insert(key, namespace.clone());
            namespace
        })
    }
}

fn kept_book(book: &Book) -> KeptBook {
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

/// A series as it is handed over, where it is: most have not changed, and are not copied.
#[derive(Clone, Copy)]
struct SeriesView<'a> {
    series: &'a Series,
    follows: bool,
}

impl SeriesView<'_> {
    fn changed(&self) -> BootTime {
        let gate = &self.series.gate;
        if self.follows {
            gate.shown
        } else {
            gate.changed
        }
    }

    fn shows(&self) -> Amounts {
        if self.follows {
            Amounts::ZERO
        } else {
            self.series.gate.visible
        }
    }

    /// Whether that is what was kept.
    fn is(&self, kept: &KeptSeries) -> bool {
        let KeptSeries {
            labels,
            start,
            shown,
            changed,
            follows,
            shows,
        } = kept;
        let gate = &self.series.gate;
        self.follows == *follows
            && gate.start == *start
            && gate.shown == *shown
            && self.changed() == *changed
            && self.shows() == *shows
            && self.series.labels == *labels
    }

    fn copied(&self) -> KeptSeries {
        let gate = &self.series.gate;
        KeptSeries {
            labels: self.series.labels.clone(),
            start: gate.start,
            shown: gate.shown,
            changed: self.changed(),
            follows: self.follows,
            shows: self.shows(),
        }
    }

    fn option_is(view: Option<Self>, kept: Option<&KeptSeries>) -> bool {
        match (view, kept) {
            (None, None) => true,
            (Some(view), Some(kept)) => view.is(kept),
            _ => false,
        }
    }
}

/// What of an account changes rarely, where it is: see [`KeptAccount`].
struct AccountView<'a> {
    number: u32,
    gpu: &'a GpuUuid,
    mig: Option<&'a MigInfo>,
    owner: &'a Owner,
    labels: Cow<'a, ContainerLabels>,
    /// Absent for the host, where nobody tells an image.
    image: Option<&'a Arc<str>>,
    runtime: Option<&'a Arc<str>>,
    attribution: Option<Attribution>,
    /// Absent where nobody told any.
    runtime_labels: Option<&'a Labels>,
    opened: WallTime,
    held_since: BootTime,
    ended: Option<BootTime>,
    id_only: Option<SeriesView<'a>>,
    named: Option<SeriesView<'a>>,
}

impl AccountView<'_> {
    const fn fed(&self) -> bool {
        matches!(self.attribution, Some(Attribution::Named { .. }))
    }

    /// Whether that is what was kept.
    fn is(&self, known: &KeptAccount) -> bool {
        let KeptAccount {
            number,
            gpu,
            mig,
            kind,
            payer,
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
            Some(told) => told == runtime_labels,
            None => runtime_labels.is_empty(),
        };
        self.number == *number
            && self.opened == *opened
            && self.held_since == *held_since
            && self.ended == *ended
            && self.fed() == *fed
            && self.attribution == *attribution
            && payer_of(self.owner) == (*kind, payer)
            && self.gpu == gpu
            && self.mig == mig.as_ref()
            && *self.labels == *labels
            && text_is(self.image, image)
            && text_is(self.runtime, runtime)
            && labels_are
            && SeriesView::option_is(self.id_only, id_only.as_ref())
            && SeriesView::option_is(self.named, named.as_ref())
    }

    fn copied(&self) -> KeptAccount {
        let text = |text: Option<&Arc<str>>| text.map_or_else(none, Arc::clone);
        let (kind, payer) = payer_of(self.owner);
        KeptAccount {
            number: self.number,
            gpu: self.gpu.clone(),
            mig: self.mig.cloned(),
            kind,
            payer: Arc::clone(payer),
            labels: self.labels.as_ref().clone(),
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
fn kept_parts(account: &Account) -> ([Option<SeriesView<'_>>; 2], KeptTotals) {
    let frozen = account.id_only.as_ref().filter(|_| account.named.is_some());
    let current = account.named.as_ref().or(account.id_only.as_ref());
    let elsewhere = frozen.map_or(Amounts::ZERO, |series| series.gate.visible);
    let follows =
        current.is_some_and(|series| series.gate.visible == account.amounts.minus(elsewhere));
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
            .map_or(BootTime::default(), |series| series.gate.changed),
        since: Some(account.since),
        allocated_through: account.allocated_through,
    };
    ([id_only, named], totals)
}

/// A series as it was. What was shown at 0 is shown so anew from `now` on: while the agent was away
/// nobody could see the 0.
fn restored_series(
    kept: &KeptSeries,
    totals: &KeptTotals,
    elsewhere: Amounts,
    now: BootTime,
) -> Series {
    let (visible, changed) = if kept.follows {
        (totals.amounts.minus(elsewhere), totals.changed)
    } else {
        (kept.shows, kept.changed)
    };
    Series {
        labels: kept.labels.clone(),
        gate: restored_gate(kept.start, kept.shown, changed, visible, now),
    }
}

/// Likewise a counter.
fn restored_gate(
    start: WallTime,
    shown: BootTime,
    changed: BootTime,
    visible: Amounts,
    now: BootTime,
) -> Gate {
    Gate {
        start,
        shown: if visible.is_zero() { now } else { shown },
        visible,
        changed,
    }
}

/// An account as it was.
fn restored_account(kept: &KeptAccount, totals: &KeptTotals, now: BootTime) -> Account {
    let frozen = kept.id_only.as_ref().filter(|_| kept.named.is_some());
    let elsewhere = frozen.map_or(Amounts::ZERO, |series| series.shows);
    let restored = |series: &KeptSeries, elsewhere| restored_series(series, totals, elsewhere, now);
    Account {
        number: kept.number,
        mig: kept.mig.clone(),
        amounts: totals.amounts,
        memory_peak: totals.memory_peak,
        processes_started: totals.processes_started,
        opened: kept.opened,
        since: totals.since.unwrap_or_else(|| {
            // The latest that its amounts allow, so that what is added from here on is checked.
            now.minus(totals.amounts.held.max(totals.amounts.allocated))
        }),
        allocated_through: totals.allocated_through,
        first_used: totals.first_used,
        last_used: totals.last_used,
        id_only: kept.id_only.as_ref().map(|s| restored(s, Amounts::ZERO)),
        named: kept.named.as_ref().map(|s| restored(s, elsewhere)),
        fed: if kept.fed {
            totals.amounts
        } else {
            Amounts::ZERO
        },
        ended: kept.ended,
        // Set and done within one commit, or set anew.
        expired: false,
    }
}

/// The end of an account's allocated time that its book had not accounted for yet, and of which it has
/// no part yet. The next window begins there.
fn undivided(account: &Account, book: &Book) -> (BootTime, BootTime) {
    let until = account.allocated_through.unwrap_or_default();
    let rest = account.amounts.allocated;
    let rest = rest.minus(account.amounts.allocated_share);
    let from = book.through.unwrap_or_default().max(until.minus(rest));
    (from.min(until), until)
}

/// A book as it was at the last commit, the reasons that it never had at zero.
fn restored_book(kept: &KeptBook, times: &[KeptTime], committed: WallTime) -> Book {
    let mut book = Book::new(kept.gpu.clone(), kept.start);
    book.through = kept.through;
    book.elapsed = kept.elapsed;
    book.busy = kept.busy;
    book.idle = kept.idle;
    book.energy = kept.energy;
    book.closed = kept.closed;
    book.windows = kept.windows;
    book.torn_windows = kept.torn_windows;
    book.invalid_rows = kept.invalid_rows;
    book.cut = kept.cut;
    book.reopen_after(committed);
    for time in times.iter().filter(|time| time.gpu == kept.gpu.uuid) {
        match time.reason {
            KeptReason::Unattributed(reason) => book.unattributed.insert(reason, time.time),
            KeptReason::Unobserved(reason) => book.unobserved.insert(reason, time.time),
        };
    }
    book
}

/// What a named container was called, for the directory: its labels are wanted again before its
/// runtime has been heard again.
fn restored_identity(account: &KeptAccount, source: IdentitySource) -> IdentityUpdate {
    let labels = &account.labels;
    let known =
        |text: &Arc<str>| (&**text != NONE && &**text != UNRESOLVED).then(|| Arc::clone(text));
    let kubernetes = known(&labels.namespace).map(|namespace| KubernetesNames {
        namespace,
        pod: Arc::clone(&labels.pod),
        pod_uid: PodUid(Arc::clone(&labels.pod_uid)),
        container: Arc::clone(&labels.container),
    });
    IdentityUpdate::Found(ContainerIdentity {
        runtime: None,
        id: ContainerId(Arc::clone(&account.payer)),
        source,
        name: known(&labels.container),
        image: known(&account.image),
        kubernetes,
        labels: (*account.runtime_labels).clone(),
    })
}

impl Accountant {
    /// Has changes kept from here on: see [`Accountant::changes`].
    pub fn keep(&mut self) {
        self.keeper = Some(Keeper::default());
    }

    /// What the last commit changed since this was last asked; everything if `whole`. Nothing of it
    /// may be asked for between an input and the commit after it.
    pub fn changes(&mut self, whole: bool, clock: Clock) -> Changes {
        let Some(mut keeper) = self.keeper.take() else {
            return Changes::default();
        };
        if whole {
            keeper.forget();
        }
        let mut changes = Changes {
            whole,
            sequence: self.sequence,
            clock,
            closed: keeper.closed.clone(),
            ..Changes::default()
        };
        for book in self.ledger.books() {
            let (book, times) = keeper.book(book);
            changes.books.extend(book);
            changes.times.extend(times);
        }
        for ((book, owner), account) in self.ledger.accounts() {
            let Some((account, totals)) = self.account_view(*book, owner, account) else {
                continue;
            };
            let (account, totals) = keeper.account(&account, totals);
            changes.accounts.extend(account);
            changes.totals.extend(totals);
        }
        for ((book, namespace), counter) in &self.namespaces {
            changes.namespaces.extend(keeper.namespace(KeptNamespace {
                gpu: self.ledger.books()[*book].gpu.uuid.clone(),
                namespace: Arc::clone(namespace),
                amounts: counter.amounts,
                start: counter.gate.start,
                shown: counter.gate.shown,
                changed: counter.gate.changed,
                shows: counter.gate.visible,
            }));
        }
        (changes.processes, changes.gone) = self.changed_processes(&mut keeper);
        (changes.allocations, changes.allocations_gone) = keeper.allocations(&self.allocations);
        self.keeper = Some(keeper);
        changes
    }

    /// Changes are kept: what was closed in them need not be handed over again.
    pub fn kept(&mut self, changes: Kept) {
        if let Some(keeper) = &mut self.keeper {
            keeper.confirm(changes.closed);
        }
    }

    /// An account as it is handed over; nothing while its payer has not been looked at, which the
    /// next commit does.
    fn account_view<'a>(
        &'a self,
        book: usize,
        owner: &'a Owner,
        account: &'a Account,
    ) -> Option<(AccountView<'a>, KeptTotals)> {
        let ([id_only, named], totals) = kept_parts(account);
        let known = self.payers.get(owner);
        let labels = match (known, owner) {
            (Some(known), _) => Cow::Borrowed(&known.labels),
            (None, Owner::Host(_)) => Cow::Owned(no_names(owner)),
            (None, _) => return None,
        };
        let view = AccountView {
            number: account.number,
            gpu: &self.ledger.books()[book].gpu.uuid,
            mig: account.mig.as_ref(),
            owner,
            labels,
            image: known.map(|known| &known.image),
            runtime: known.map(|known| &known.runtime),
            attribution: known.map(|known| known.attribution),
            runtime_labels: match owner {
                Owner::Container(id) => self.directory.runtime_labels(id),
                Owner::Pod(_) | Owner::Host(_) => None,
            },
            opened: account.opened,
            held_since: known.map_or(BootTime::default(), |known| known.held_since),
            ended: account.ended,
            id_only,
            named,
        };
        Some((view, totals))
    }

    /// The end of each GPU's last window that is booked.
    #[must_use]
    pub fn windows_ended(&self) -> Vec<(GpuUuid, BootTime)> {
        let books = self.ledger.books().iter();
        books
            .filter_map(|book| Some((book.gpu.uuid.clone(), book.through?)))
            .collect()
    }

    /// Notes the last state of accounts that have just been closed, while their payers are known.
    pub(super) fn keep_closed(&mut self, closed: &[((usize, Owner), Account)], at: WallTime) {
        let Some(mut keeper) = self.keeper.take() else {
            return;
        };
        for ((book, owner), account) in closed {
            if let Some((account, totals)) = self.account_view(*book, owner, account) {
                keeper.close(ClosedAccount {
                    at,
                    account: account.copied(),
                    totals,
                });
            }
        }
        self.keeper = Some(keeper);
    }

    /// Closed accounts whose records were given up.
    pub(super) fn records_given_up(&self) -> u64 {
        self.keeper.as_ref().map_or(0, |keeper| keeper.given_up)
    }

    /// Processes that were not followed to be kept.
    pub(super) fn not_followed(&self) -> u64 {
        let keeper = self.keeper.as_ref();
        keeper.map_or(0, |keeper| keeper.followed.overflows())
    }

    /// An accountant that goes on from `state`, and whose changes are kept.
    ///
    /// # Errors
    ///
    /// The state is none that an accountant has handed over in this boot.
    pub fn restored(settings: Settings, state: &State, clock: Clock) -> Result<Self, StateError> {
        if state.clock.boot > clock.boot {
            let ahead = state.clock.boot.since(clock.boot).0;
            return Err(StateError::Future { ahead });
        }
        let now = clock.boot;
        let mut accountant = Self::new(settings, clock);
        accountant.keep();
        accountant.sequence = state.sequence;
        accountant.await_scan_until = now.plus(AWAIT_FIRST_SCAN);
        let books = state.books.iter();
        let books = books.map(|book| restored_book(book, &state.times, state.clock.wall));
        let mut ledger =
            Ledger::restored(books.collect(), state.last_number, settings.account_limit);
        let mut numbers = HashMap::default();
        for (kept, totals) in &state.accounts {
            let gpu = &kept.gpu;
            let book = ledger.book_of(gpu);
            let book = book.ok_or_else(|| StateError::NoBook { gpu: gpu.clone() })?;
            let owner = owner(kept.kind, &kept.payer);
            let account = restored_account(kept, totals, now);
            numbers.insert(kept.number, (book, owner.clone()));
            if let Owner::Container(id) = &owner {
                let (from, until) = undivided(&account, &ledger.books()[book]);
                accountant.shares.hold(book, id, from, until);
            }
            if !ledger.restore(book, owner.clone(), account) {
                return Err(StateError::Twice {
                    payer: Arc::clone(&kept.payer),
                    gpu: gpu.clone(),
                });
            }
            let Some(attribution) = kept.attribution else {
                continue;
            };
            if let Owner::Container(id) = &owner
                && *kept.labels.pod_uid != *UNRESOLVED
            {
                let uid = PodUid(Arc::clone(&kept.labels.pod_uid));
                let uid = (*uid.0 != *NONE).then_some(&uid);
                accountant
                    .directory
                    .restore_pod(id, uid, &kept.runtime, now);
            }
            if let (Attribution::Named { source }, Owner::Container(_)) = (attribution, &owner) {
                let identity = restored_identity(kept, source);
                accountant.directory.restore(identity, now);
            }
            accountant.payers.insert(
                owner,
                Payer {
                    attribution,
                    held_since: kept.held_since,
                    labels: kept.labels.clone(),
                    image: Arc::clone(&kept.image),
                    runtime: Arc::clone(&kept.runtime),
                },
            );
        }
        let amounts = state.accounts.iter().map(|(_, totals)| totals.amounts);
        let amounts = amounts.chain(state.namespaces.iter().map(|kept| kept.amounts));
        let is_known = amounts
            .map(|amounts| amounts.allocated)
            .any(|of| !of.is_zero());
        let then = state.clock.boot;
        accountant
            .allocations
            .restore(&state.allocations, is_known, then, now);
        for kept in &state.namespaces {
            let gpu = &kept.gpu;
            let book = ledger.book_of(gpu);
            let book = book.ok_or_else(|| StateError::NoBook { gpu: gpu.clone() })?;
            let gate = restored_gate(kept.start, kept.shown, kept.changed, kept.shows, now);
            let counter = NamespaceBook {
                amounts: kept.amounts,
                gate,
            };
            let key = (book, Arc::clone(&kept.namespace));
            accountant.namespaces.insert(key, counter);
        }
        for (book, nanoseconds) in ledger.books().iter().zip(ledger.imbalances()) {
            if nanoseconds != 0 {
                let gpu = book.gpu.uuid.clone();
                return Err(StateError::Imbalance { gpu, nanoseconds });
            }
        }
        accountant.ledger = ledger;
        accountant.restore_processes(state, &numbers, &settings, clock);
        Ok(accountant)
    }
}
