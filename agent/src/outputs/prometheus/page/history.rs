//! What became of each GPU's time in the last hour, minute by minute, and whose it was.
//!
//! The books only grow, so the difference between two snapshots says what became of the time between
//! them. A look at the snapshot once a minute makes a [`Column`] of each GPU. The columns of a GPU and
//! what came after the last look add up to what its counters have grown by since the first look, to
//! the nanosecond. Time before the first look is not known. It is never taken for idle time.
//!
//! Owners beyond the bounds are joined, and how many were joined is kept. A look costs a pass over the
//! accounts. Nothing is done between two looks.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use crate::core::model::{BootTime, ContainerId, GpuUuid, HostUnit, NONE, Nanos};
use crate::core::snapshot::{ContainerAccount, ContainerLabels, GpuBook, Snapshot};
use crate::drawing::{COLOURS, first_colour};
use crate::figures::sum;
use crate::words::container;

/// Full columns that are kept of each GPU: an hour of looks.
const COLUMNS: usize = 60;
/// Owners that the columns of one look name, on all GPUs together.
const CELLS_A_LOOK: usize = 512;
/// Owners that a column names at most and, however many GPUs there are, at least.
const CELLS_A_COLUMN: std::ops::RangeInclusive<usize> = 4..=64;
/// Owners that are known by name at once.
const MAX_OWNERS: usize = 512;
/// Who a GPU's time is booked to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum OwnerKey {
    /// A container.
    Container(ContainerId),
    /// The processes in a pod's own cgroup, by the pod's uid.
    Pod(Arc<str>),
    /// A host unit.
    Unit(HostUnit),
}

/// An owner's place in the table of owners.
type OwnerNumber = u16;

/// An owner of whom a column has something, or who was there at the last look.
#[derive(Clone, Debug)]
struct Owner {
    /// Absent for a host unit, and for a container whose account was gone before its first column.
    labels: Option<Arc<ContainerLabels>>,
    colour: u8,
}

/// What became of a stretch of one GPU's time. All of it together is how long the stretch is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Column {
    /// Busy time of owners, the largest first.
    owners: Box<[(OwnerNumber, Nanos)]>,
    /// Busy time of the owners that are not named.
    others: Nanos,
    /// How many they are.
    joined: u32,
    /// Busy time that nobody owns.
    unowned: Nanos,
    idle: Nanos,
    unobserved: Nanos,
}

/// A GPU's counters at a look.
#[derive(Clone, Copy, Debug)]
struct Totals {
    elapsed: Nanos,
    busy: Nanos,
    idle: Nanos,
    unowned: Nanos,
    unobserved: Nanos,
}

/// What is kept of a GPU.
#[derive(Debug)]
struct Kept {
    columns: VecDeque<Column>,
    last: Totals,
    /// By how much the books are behind the clock, apart from how far they were at the first look.
    lag: i128,
}

/// The last look.
#[derive(Debug)]
struct Look {
    at: BootTime,
    /// Busy time of each account, in order of owner and GPU.
    accounts: Vec<(OwnerKey, GpuUuid, Nanos)>,
}

/// The last hour of every GPU that the last look has seen.
#[derive(Debug, Default)]
pub(super) struct History {
    gpus: BTreeMap<GpuUuid, Kept>,
    owners: Owners,
    last: Option<Look>,
}

/// An hour of one GPU until a snapshot.
#[derive(Clone, Debug, Default)]
pub(super) struct Hour {
    /// The stretches that are known, the oldest first. One follows the other without a gap.
    pub(super) stretches: Vec<Stretch>,
    /// How long the time between the end of the last stretch and the snapshot is.
    pub(super) behind: Nanos,
}

/// What became of a stretch of one GPU's time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Stretch {
    /// Busy time of owners, the largest first.
    pub(super) owners: Vec<(OwnerKey, Nanos)>,
    /// Busy time of the owners that are not named.
    pub(super) others: Nanos,
    /// How many they are, at least.
    pub(super) joined: u32,
    /// Busy time that nobody owns.
    pub(super) unowned: Nanos,
    /// Idle time.
    pub(super) idle: Nanos,
    /// Time that was not observed.
    pub(super) unobserved: Nanos,
}

impl Stretch {
    /// Busy time, with and without an owner.
    pub(super) fn busy(&self) -> Nanos {
        let owned: Nanos = self.owners.iter().map(|(_, busy)| *busy).sum();
        owned.plus(self.others).plus(self.unowned)
    }

    /// How long it is.
    pub(super) fn elapsed(&self) -> Nanos {
        self.busy().plus(self.idle).plus(self.unobserved)
    }
}

impl History {
    /// Takes a look: what came since the last one becomes a column of each GPU. GPUs that the snapshot
    /// does not have are forgotten.
    pub(super) fn look(&mut self, snapshot: &Snapshot) {
        let at = snapshot.at;
        if snapshot.sequence == 0 || self.last.as_ref().is_some_and(|last| last.at >= at) {
            return;
        }
        let accounts = accounts(snapshot);
        let mut stretches = self.since_last_look(snapshot, &accounts);
        let mut before = std::mem::take(&mut self.gpus);
        for book in &snapshot.gpus {
            let uuid = &book.gpu.uuid;
            let now = Totals::of(book);
            let kept = before.remove(uuid);
            let kept = match (kept, stretches.remove(uuid)) {
                (Some(mut kept), Some(stretch)) => {
                    kept.lag = self.lag(&kept, &now, at);
                    if kept.columns.len() >= COLUMNS {
                        kept.columns.pop_front();
                    }
                    let column = self.owners.column(stretch, snapshot);
                    kept.columns.push_back(column);
                    kept.last = now;
                    kept
                }
                // A GPU that is new, or whose book begins anew.
                _ => Kept {
                    columns: VecDeque::new(),
                    last: now,
                    lag: 0,
                },
            };
            self.gpus.insert(uuid.clone(), kept);
        }
        let columns = self.gpus.values().flat_map(|kept| &kept.columns);
        let numbers = columns.flat_map(|column| column.owners.iter().map(|(number, _)| *number));
        self.owners.keep(numbers, snapshot);
        self.last = Some(Look { at, accounts });
    }

    /// Takes up GPUs that have come since the last look: what is known of them begins here.
    pub(super) fn meet(&mut self, snapshot: &Snapshot) {
        let Some(last) = &mut self.last else {
            return;
        };
        if snapshot.at < last.at {
            return;
        }
        let since = i128::from(snapshot.at.since(last.at).0);
        let mut met = BTreeSet::new();
        for book in &snapshot.gpus {
            let uuid = &book.gpu.uuid;
            if self.gpus.contains_key(uuid) {
                continue;
            }
            let kept = Kept {
                columns: VecDeque::new(),
                last: Totals::of(book),
                // The next look counts the time since the last one.
                lag: -since,
            };
            self.gpus.insert(uuid.clone(), kept);
            met.insert(uuid);
        }
        last.accounts.retain(|(_, gpu, _)| !met.contains(gpu));
        let own = accounts(snapshot).into_iter();
        last.accounts
            .extend(own.filter(|(_, gpu, _)| met.contains(gpu)));
        last.accounts.sort_unstable();
    }

    /// The last hour of each GPU until a snapshot. Owners that are new in it get their colours.
    pub(super) fn until(&mut self, snapshot: &Snapshot) -> BTreeMap<GpuUuid, Hour> {
        let accounts = accounts(snapshot);
        let mut since = self.since_last_look(snapshot, &accounts);
        let mut hours = BTreeMap::new();
        for book in &snapshot.gpus {
            let uuid = &book.gpu.uuid;
            let since = since.remove(uuid);
            let since = since.map(|stretch| self.owners.column(stretch, snapshot));
            let hour = match (self.gpus.get(uuid), since) {
                (Some(kept), Some(since)) => {
                    let columns = kept.columns.iter().chain([&since]);
                    let stretches = columns.map(|column| self.owners.stretch(column));
                    let behind = self.lag(kept, &Totals::of(book), snapshot.at);
                    Hour {
                        stretches: stretches
                            .filter(|stretch| !stretch.elapsed().is_zero())
                            .collect(),
                        behind: Nanos(u64::try_from(behind).unwrap_or(0)),
                    }
                }
                _ => Hour::default(),
            };
            hours.insert(uuid.clone(), hour);
        }
        hours
    }

    /// What an owner is called.
    pub(super) fn name(&self, owner: &OwnerKey) -> String {
        let known = self.owners.known(owner);
        owner.name(known.and_then(|known| known.labels.as_deref()))
    }

    /// The colour of an owner, which it keeps for as long as a column has something of it.
    pub(super) fn colour(&self, owner: &OwnerKey) -> u8 {
        let known = self.owners.known(owner);
        known.map_or_else(|| first_colour(&owner.name(None)), |known| known.colour)
    }

    /// By how much the books of a GPU are behind the clock, apart from how far they were at first.
    fn lag(&self, kept: &Kept, now: &Totals, at: BootTime) -> i128 {
        let passed = self.last.as_ref().map_or(0, |last| at.since(last.at).0);
        let booked = now.elapsed.minus(kept.last.elapsed).0;
        (kept.lag + i128::from(passed) - i128::from(booked)).max(0)
    }

    /// What came since the last look, of each GPU that was there and whose book has gone on.
    fn since_last_look(
        &self,
        snapshot: &Snapshot,
        accounts: &[(OwnerKey, GpuUuid, Nanos)],
    ) -> BTreeMap<GpuUuid, Stretch> {
        let Some(last) = &self.last else {
            return BTreeMap::new();
        };
        if snapshot.at < last.at {
            // A reader took it before the look was taken. What the columns have is newer.
            let books = snapshot.gpus.iter();
            return books
                .map(|book| (book.gpu.uuid.clone(), Stretch::default()))
                .collect();
        }
        let mut stretches: BTreeMap<GpuUuid, Stretch> = BTreeMap::new();
        let most = CELLS_A_LOOK / snapshot.gpus.len().max(1);
        let most = most.clamp(*CELLS_A_COLUMN.start(), *CELLS_A_COLUMN.end());
        for book in &snapshot.gpus {
            let Some(kept) = self.gpus.get(&book.gpu.uuid) else {
                continue;
            };
            let (before, now) = (kept.last, Totals::of(book));
            if now.elapsed < before.elapsed {
                continue;
            }
            let stretch = Stretch {
                // What is not found below: of accounts that have come and gone.
                others: now.busy.minus(before.busy),
                unowned: now.unowned.minus(before.unowned),
                idle: now.idle.minus(before.idle),
                unobserved: now.unobserved.minus(before.unobserved),
                ..Stretch::default()
            };
            stretches.insert(book.gpu.uuid.clone(), stretch);
        }
        let mut earlier = last.accounts.iter().peekable();
        for (owner, gpu, busy) in accounts {
            let place = (owner, gpu);
            while earlier
                .next_if(|(owner, gpu, _)| (owner, gpu) < place)
                .is_some()
            {}
            let before = earlier.next_if(|(owner, gpu, _)| (owner, gpu) == place);
            let before = before.map_or(Nanos::ZERO, |(_, _, busy)| *busy);
            // An account that was closed and opened again begins at nothing.
            let grown = if *busy < before {
                *busy
            } else {
                busy.minus(before)
            };
            if let Some(stretch) = stretches.get_mut(gpu)
                && !grown.is_zero()
            {
                stretch.owners.push((owner.clone(), grown));
            }
        }
        for stretch in stretches.values_mut() {
            // The largest first; equal ones stay in the order of owners.
            stretch
                .owners
                .sort_by_key(|(_, busy)| std::cmp::Reverse(*busy));
            let found: Nanos = stretch.owners.iter().map(|(_, busy)| *busy).sum();
            stretch.others = stretch.others.minus(found).minus(stretch.unowned);
            if !stretch.others.is_zero() {
                stretch.joined = 1;
            }
            let joined = stretch.owners.split_off(most.min(stretch.owners.len()));
            stretch.join(joined.into_iter());
        }
        stretches
    }
}

impl Stretch {
    /// Counts these among the owners that are not named.
    fn join(&mut self, owners: impl Iterator<Item = (OwnerKey, Nanos)>) {
        for (_, busy) in owners {
            self.others = self.others.plus(busy);
            self.joined = self.joined.saturating_add(1);
        }
    }
}

impl Totals {
    fn of(book: &GpuBook) -> Self {
        Self {
            elapsed: book.elapsed,
            busy: book.busy,
            idle: book.idle,
            unowned: sum(&book.unattributed),
            unobserved: sum(&book.unobserved),
        }
    }
}

/// The busy time of each account, in order of owner and GPU.
fn accounts(snapshot: &Snapshot) -> Vec<(OwnerKey, GpuUuid, Nanos)> {
    let containers = snapshot.accounts.iter().map(|account| {
        (
            OwnerKey::of(account),
            account.gpu.clone(),
            account.amounts.busy,
        )
    });
    let units = snapshot.host_accounts.iter().map(|account| {
        let owner = OwnerKey::Unit(account.unit.clone());
        (owner, account.gpu.clone(), account.amounts.busy)
    });
    let mut accounts: Vec<_> = containers.chain(units).collect();
    accounts.sort_unstable();
    accounts
}

/// The table of owners.
#[derive(Debug, Default)]
struct Owners {
    numbers: BTreeMap<OwnerKey, OwnerNumber>,
    owners: BTreeMap<OwnerNumber, (OwnerKey, Owner)>,
}

impl Owners {
    fn known(&self, owner: &OwnerKey) -> Option<&Owner> {
        let number = self.numbers.get(owner)?;
        self.owners.get(number).map(|(_, owner)| owner)
    }

    /// The stretch as it is kept. Owners that find no room in the table are joined.
    fn column(&mut self, mut stretch: Stretch, snapshot: &Snapshot) -> Column {
        let mut owners = Vec::with_capacity(stretch.owners.len());
        for (key, busy) in std::mem::take(&mut stretch.owners) {
            match self.number(&key, snapshot) {
                Some(number) => owners.push((number, busy)),
                None => stretch.join([(key, busy)].into_iter()),
            }
        }
        Column {
            owners: owners.into(),
            others: stretch.others,
            joined: stretch.joined,
            unowned: stretch.unowned,
            idle: stretch.idle,
            unobserved: stretch.unobserved,
        }
    }

    fn stretch(&self, column: &Column) -> Stretch {
        let named = column.owners.iter();
        let named = named.filter_map(|(number, busy)| {
            let (key, _) = self.owners.get(number)?;
            Some((key.clone(), *busy))
        });
        Stretch {
            owners: named.collect(),
            others: column.others,
            joined: column.joined,
            unowned: column.unowned,
            idle: column.idle,
            unobserved: column.unobserved,
        }
    }

    /// The owner's number, a new one if it has none; none if the table is full.
    fn number(&mut self, key: &OwnerKey, snapshot: &Snapshot) -> Option<OwnerNumber> {
        if let Some(number) = self.numbers.get(key) {
            return Some(*number);
        }
        if self.owners.len() >= MAX_OWNERS {
            return None;
        }
        let number = (0..OwnerNumber::MAX).find(|number| !self.owners.contains_key(number))?;
        let labels = labels_in(snapshot, key);
        let colour = self.next_colour(&key.name(labels.as_deref()));
        let owner = Owner { labels, colour };
        self.numbers.insert(key.clone(), number);
        self.owners.insert(number, (key.clone(), owner));
        Some(number)
    }

    /// The colour that the fewest owners have. Of several it is the next one after the owner's own,
    /// so that an owner mostly has the same colour after a restart of the agent, too.
    fn next_colour(&self, name: &str) -> u8 {
        let mut uses = [0_usize; COLOURS as usize];
        for (_, owner) in self.owners.values() {
            uses[usize::from(owner.colour)] += 1;
        }
        let own = first_colour(name);
        let from_own = (0..COLOURS).map(|step| (own + step) % COLOURS);
        from_own
            .min_by_key(|colour| uses[usize::from(*colour)])
            .unwrap_or(own)
    }

    /// Keeps the owners with these numbers, and learns the names that they have now.
    fn keep(&mut self, numbers: impl Iterator<Item = OwnerNumber>, snapshot: &Snapshot) {
        let used: BTreeSet<OwnerNumber> = numbers.collect();
        self.owners.retain(|number, _| used.contains(number));
        self.numbers.retain(|_, number| used.contains(number));
        let accounts = snapshot.accounts.iter();
        let now: BTreeMap<_, _> = accounts
            .map(|account| (OwnerKey::of(account), &account.labels))
            .collect();
        for (key, owner) in self.owners.values_mut() {
            if let Some(labels) = now.get(key) {
                owner.labels = Some(Arc::clone(labels));
            }
        }
    }
}

fn labels_in(snapshot: &Snapshot, key: &OwnerKey) -> Option<Arc<ContainerLabels>> {
    let mut accounts = snapshot.accounts.iter();
    let account = accounts.find(|account| OwnerKey::of(account) == *key)?;
    Some(Arc::clone(&account.labels))
}

impl OwnerKey {
    /// The owner of an account.
    pub(super) fn of(account: &ContainerAccount) -> Self {
        if account.id.as_str() == NONE {
            Self::Pod(Arc::clone(&account.labels.pod_uid))
        } else {
            Self::Container(account.id.clone())
        }
    }

    /// What it is called. Without labels it is called by its id or uid.
    pub(super) fn name(&self, labels: Option<&ContainerLabels>) -> String {
        match (self, labels) {
            (Self::Container(id), Some(labels)) => container(labels, id.as_str()),
            (Self::Pod(uid), Some(labels)) => container(labels, uid),
            (Self::Container(id), None) => id.to_string(),
            (Self::Pod(uid), None) => uid.to_string(),
            (Self::Unit(unit), _) => unit.to_string(),
        }
    }
}

#[cfg(test)]
#[path = "history_tests.rs"]
pub(super) mod tests;
