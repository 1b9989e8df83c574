//! The books: one account per GPU and payer, in integer nanoseconds, and one book per GPU to which
//! the accounts must add up.
//!
//! The device's elapsed, busy and idle time are added up apart from the accounts, so that the
//! balance `busy = Σ containers + Σ host + Σ unattributed` is a check that can fail, not a
//! definition. What an account that was closed held stays in the balance.

use std::collections::{BTreeMap, VecDeque};

use super::amounts::{self, Amounts, ByteSeconds, Millijoules};
use super::attribute::Charge;
use super::input::{GpuInfo, GpuWindow, MigInfo, SampleClocks};
use super::model::{
    BootTime, Clock, GpuUuid, Nanos, Pid, ProcessId, UnattributedReason, UnobservedReason, WallTime,
};
use super::placement::Owner;
use super::publication::Series;
use super::snapshot::{AccountingBook, Coverage, EnergyBook};
use super::tables::HashMap;
use super::tiling::{self, Mended, Place};

/// What "now" means for a share.
pub const SHARE_SPAN: Nanos = Nanos::from_secs(10);
/// How long the accounts of a GPU stay open that NVML lists no more.
pub const MISSING_GPU_HOLD: Nanos = Nanos::from_secs(600);
/// What coverage and utilisation are about.
pub const COVERAGE_SPAN: Nanos = Nanos::from_secs(60);

/// One payer's account on one GPU.
#[derive(Debug)]
pub struct Account {
    /// Its number: unique for as long as series continue.
    pub number: u32,
    /// Which MIG instance it is on, if it is on one: the book is about the UUID, which another
    /// instance may have later.
    pub mig: Option<MigInfo>,
    /// The whole of each amount.
    pub amounts: Amounts,
    /// The most device memory that its processes were seen to use at once, in bytes.
    pub memory_peak: Option<u64>,
    /// Processes of it that were seen on the GPU.
    pub processes_started: u64,
    /// When it was opened: no charge is older.
    pub opened: WallTime,
    /// The earliest time of which anything is counted: its held and its allocated time lie after it.
    pub since: BootTime,
    /// Up to when its allocated time is counted; absent before any is.
    pub allocated_through: Option<BootTime>,
    /// The end of the first window that charged it, if any did.
    pub first_used: Option<WallTime>,
    /// The end of the last.
    pub last_used: Option<WallTime>,
    /// What is published of it under the ids alone.
    pub id_only: Option<Series>,
    /// What is published of it under its names, or, for the host, its unit.
    pub named: Option<Series>,
    /// How much of it the namespace's counter has been given.
    pub fed: Amounts,
    /// Since when its payer has had no process.
    pub ended: Option<BootTime>,
    /// Whether the MIG instance that it is on is another one now, under the same UUID.
    pub expired: bool,
}

impl Account {
    fn new(number: u32, mig: Option<MigInfo>, opened: Clock) -> Self {
        Self {
            number,
            mig,
            amounts: Amounts::ZERO,
            memory_peak: None,
            processes_started: 0,
            opened: opened.wall,
            since: opened.boot,
            allocated_through: None,
            first_used: None,
            last_used: None,
            id_only: None,
            named: None,
            fed: Amounts::ZERO,
            ended: None,
            expired: false,
        }
    }

    /// Adds held time, the earliest of which is at `from`, and memory.
    pub fn add_held(&mut self, from: BootTime, held: Nanos, memory: ByteSeconds) {
        self.since = self.since.min(from);
        self.amounts += Amounts {
            held,
            memory,
            ..Amounts::ZERO
        };
    }

    /// Adds a part of the GPU's time, up to its allocated time: the rest is of an account of the same
    /// payer that was closed meanwhile.
    pub fn add_share(&mut self, share: Nanos) {
        let Amounts {
            allocated,
            allocated_share,
            ..
        } = &mut self.amounts;
        *allocated_share += share.min(allocated.minus(*allocated_share));
    }

    /// By how much its held or allocated time exceeds the time from its beginning until `now`, or its
    /// part of the GPU's time its allocated time. Zero unless something was counted twice.
    #[must_use]
    pub fn excess(&self, now: BootTime) -> Nanos {
        let passed = now.since(self.since);
        let Amounts {
            held,
            allocated,
            allocated_share,
            ..
        } = self.amounts;
        let beyond = held.minus(passed).max(allocated.minus(passed));
        beyond.max(allocated_share.minus(allocated))
    }

    /// What is out, under whatever labels.
    #[must_use]
    pub fn published(&self) -> Amounts {
        [&self.id_only, &self.named]
            .into_iter()
            .flatten()
            .map(|series| series.gate.visible)
            .sum()
    }
}

/// One process's part of one window, for "now".
#[derive(Clone, Debug)]
pub struct RecentCharge {
    /// As the driver named it; absent where one payer's processes are told for together.
    pub pid: Option<Pid>,
    /// The process, where known.
    pub process: Option<ProcessId>,
    /// Who paid.
    pub owner: Result<Owner, UnattributedReason>,
    /// How much.
    pub busy: Nanos,
}

#[derive(Debug)]
struct Past {
    end: BootTime,
    elapsed: Nanos,
    busy: Nanos,
    unattributed: Vec<(UnattributedReason, Nanos)>,
    unobserved: Vec<(UnobservedReason, Nanos)>,
    /// Emptied after [`SHARE_SPAN`].
    charges: Vec<RecentCharge>,
}

/// One GPU's book.
#[derive(Debug)]
pub struct Book {
    /// The GPU.
    pub gpu: GpuInfo,
    /// When the book was opened.
    pub start: WallTime,
    /// Time accounted for, by the windows' bounds.
    pub elapsed: Nanos,
    /// Busy time, by the device's own samples.
    pub busy: Nanos,
    /// Idle time.
    pub idle: Nanos,
    /// Unobserved time by reason.
    pub unobserved: BTreeMap<UnobservedReason, Nanos>,
    /// Busy time without an owner by reason.
    pub unattributed: BTreeMap<UnattributedReason, Nanos>,
    /// What accounts that are closed held.
    pub closed: Amounts,
    /// Energy, where a window has told of any.
    pub energy: Option<EnergyBook>,
    /// The driver's accounting beside the windows, where it tells.
    pub accounting: Option<AccountingBook>,
    /// By which clocks the driver stamps, as the last window told.
    pub clocks: Option<SampleClocks>,
    /// The end of the last window.
    pub through: Option<BootTime>,
    /// Windows booked.
    pub windows: u64,
    /// Windows that were torn.
    pub torn_windows: u64,
    /// Rows that were dropped.
    pub invalid_rows: u64,
    /// Time cut from rows.
    pub cut: Nanos,
    /// Whether NVML lists the GPU. A book from before a restart waits to be listed.
    pub is_listed: bool,
    /// Since when NVML lists the GPU no more.
    pub missing: Option<BootTime>,
    /// Whether NVML has listed it no more since its last window. Its next window may begin later
    /// than that ended: a MIG instance that was destroyed and made anew had no time in between.
    may_skip: bool,
    /// No account that is opened before the next window begins earlier: the series of those that were
    /// closed began before this.
    reopen_from: WallTime,
    /// Up to where the book was when `reopen_from` was set.
    reopen_through: Option<BootTime>,
    past: VecDeque<Past>,
}

impl Book {
    pub(super) fn new(gpu: GpuInfo, start: WallTime) -> Self {
        Self {
            gpu,
            start,
            elapsed: Nanos::ZERO,
            busy: Nanos::ZERO,
            idle: Nanos::ZERO,
            unobserved: UnobservedReason::ALL.map(|r| (r, Nanos::ZERO)).into(),
            unattributed: UnattributedReason::ALL.map(|r| (r, Nanos::ZERO)).into(),
            closed: Amounts::ZERO,
            energy: None,
            accounting: None,
            clocks: None,
            through: None,
            windows: 0,
            torn_windows: 0,
            invalid_rows: 0,
            cut: Nanos::ZERO,
            is_listed: false,
            missing: None,
            may_skip: false,
            reopen_from: WallTime::default(),
            reopen_through: None,
            past: VecDeque::new(),
        }
    }

    /// Has accounts begin later than `at`, until the next window is booked. An agent before this one
    /// closed accounts up to then, and when those began is not kept. A series that began again at
    /// the same time would be taken for the old one, and its counter would fall.
    pub(super) fn reopen_after(&mut self, at: WallTime) {
        self.reopen_from = WallTime(at.0.saturating_add(1));
        self.reopen_through = self.through;
    }

    /// Books a time of which there is no window.
    fn skip(&mut self, from: BootTime, to: BootTime) {
        let gap = to.since(from);
        self.elapsed += gap;
        *self
            .unobserved
            .entry(UnobservedReason::WindowLost)
            .or_default() += gap;
        self.pass(Past {
            end: to,
            elapsed: gap,
            busy: Nanos::ZERO,
            unattributed: Vec::new(),
            unobserved: vec![(UnobservedReason::WindowLost, gap)],
            charges: Vec::new(),
        });
    }

    /// Notes what was booked last, and forgets what is too old to be shown.
    fn pass(&mut self, newest: Past) {
        let end = newest.end;
        self.through = Some(end);
        self.past.push_back(newest);
        while let Some(past) = self.past.front()
            && past.end.plus(COVERAGE_SPAN) <= end
        {
            self.past.pop_front();
        }
        for past in &mut self.past {
            if past.end.plus(SHARE_SPAN) > end {
                break;
            }
            past.charges = Vec::new();
        }
    }

    /// Whether NVML has not listed the GPU for so long that nothing is counted on it any more.
    #[must_use]
    pub fn is_gone(&self, now: BootTime) -> bool {
        self.missing
            .is_some_and(|since| now.since(since) >= MISSING_GPU_HOLD)
    }

    /// The last minute.
    #[must_use]
    pub fn coverage(&self) -> Coverage {
        let mut unattributed = BTreeMap::<_, Nanos>::new();
        let mut unobserved = BTreeMap::<_, Nanos>::new();
        let mut coverage = Coverage::default();
        for past in &self.past {
            coverage.elapsed += past.elapsed;
            coverage.busy += past.busy;
            for &(reason, amount) in &past.unattributed {
                *unattributed.entry(reason).or_default() += amount;
            }
            for &(reason, amount) in &past.unobserved {
                *unobserved.entry(reason).or_default() += amount;
            }
        }
        coverage.attributed = coverage.busy.minus(unattributed.values().copied().sum());
        coverage.unattributed = unattributed.into_iter().collect();
        coverage.unobserved = unobserved.into_iter().collect();
        coverage
    }

    /// The charges of the last ten seconds, and how long those were.
    pub fn recent(&self) -> (Nanos, impl Iterator<Item = &RecentCharge>) {
        let from = self.through.unwrap_or_default().minus(SHARE_SPAN);
        let recent = move |past: &&Past| past.end > from;
        (
            self.past
                .iter()
                .filter(recent)
                .map(|past| past.elapsed)
                .sum(),
            self.past
                .iter()
                .filter(recent)
                .flat_map(|past| &past.charges),
        )
    }
}

/// The ledger.
#[derive(Debug)]
pub struct Ledger {
    books: Vec<Book>,
    accounts: HashMap<(usize, Owner), Account>,
    account_limit: usize,
    overflows: u64,
    mended: Mended,
    last_number: u32,
}

impl Ledger {
    /// A ledger of at most `account_limit` open accounts; amounts beyond go to
    /// [`UnattributedReason::Overflow`].
    #[must_use]
    pub fn new(account_limit: usize) -> Self {
        Self {
            books: Vec::new(),
            accounts: HashMap::default(),
            account_limit,
            overflows: 0,
            mended: Mended::default(),
            last_number: 0,
        }
    }

    /// A ledger with books from before, and no account as yet.
    pub(super) fn restored(books: Vec<Book>, last_number: u32, account_limit: usize) -> Self {
        Self {
            books,
            last_number,
            ..Self::new(account_limit)
        }
    }

    /// Puts an account from before back. Returns whether there was none of that payer.
    pub(super) fn restore(&mut self, book: usize, owner: Owner, account: Account) -> bool {
        self.last_number = self.last_number.max(account.number);
        self.accounts.insert((book, owner), account).is_none()
    }

    /// Accounts that were not opened since the ledger is full.
    #[must_use]
    pub const fn overflows(&self) -> u64 {
        self.overflows
    }

    /// Windows that did not begin where the one before them ended.
    #[must_use]
    pub const fn mended(&self) -> Mended {
        self.mended
    }

    /// The books, in NVML's order.
    #[must_use]
    pub fn books(&self) -> &[Book] {
        &self.books
    }

    /// Takes NVML's list: new GPUs get a book, known ones keep theirs, missing ones too, which is
    /// noted.
    ///
    /// A MIG instance that was made anew under the UUID of another one is of a new generation. A
    /// second of the one is no second of the other, so the accounts end with the old one. What an
    /// instance is, is its UUID, its profile and its ids together; the book is about the UUID and
    /// goes on.
    pub fn list(&mut self, gpus: Vec<GpuInfo>, clock: Clock) {
        for book in &mut self.books {
            if gpus.iter().all(|gpu| gpu.uuid != book.gpu.uuid) {
                book.is_listed = false;
                book.may_skip = true;
                book.missing.get_or_insert(clock.boot);
            }
        }
        for gpu in gpus {
            let Some(at) = self.book_of(&gpu.uuid) else {
                let mut book = Book::new(gpu, clock.wall);
                book.is_listed = true;
                self.books.push(book);
                continue;
            };
            let book = &mut self.books[at];
            // What is not known of the one before, as after a restart, is no other generation.
            let before = book.gpu.mig.as_ref();
            let is_another = before.is_some_and(|before| gpu.mig.as_ref() != Some(before));
            let was_unknown = before.is_none();
            for (_, account) in self.accounts.iter_mut().filter(|((of, _), _)| *of == at) {
                if is_another {
                    account.expired = true;
                } else if was_unknown && account.mig.is_none() {
                    account.mig.clone_from(&gpu.mig);
                }
            }
            book.is_listed = true;
            book.missing = None;
            book.gpu = gpu;
        }
    }

    /// Takes what the driver's accounting sums up for a process, beside what was credited to it.
    pub fn compare(&mut self, book: usize, by_driver: Nanos, by_windows: Nanos) {
        let accounting = self.books[book].accounting.get_or_insert_default();
        accounting.processes += 1;
        accounting.by_driver += by_driver;
        accounting.by_windows += by_windows;
    }

    /// The place of a GPU's book.
    #[must_use]
    pub fn book_of(&self, gpu: &GpuUuid) -> Option<usize> {
        self.books.iter().position(|book| book.gpu.uuid == *gpu)
    }

    /// Opens a payer's account on a GPU if there is none. `opened` is the time, on both clocks, from
    /// which on anything is counted. Returns whether there is one now.
    pub fn open(&mut self, book: usize, owner: &Owner, mut opened: Clock) -> bool {
        let key = (book, owner.clone());
        if !self.accounts.contains_key(&key) {
            if self.accounts.len() >= self.account_limit {
                self.overflows += 1;
                return false;
            }
            // 2^32 accounts in one boot, each open for ten minutes at least, are out of reach.
            self.last_number = self.last_number.saturating_add(1);
            let book = self.books.get(book);
            let mig = book.and_then(|book| book.gpu.mig.clone());
            let stands = book.filter(|book| book.through == book.reopen_through);
            let earliest = stands.map(|book| book.reopen_from).unwrap_or_default();
            opened.wall = opened.wall.max(earliest);
            self.accounts
                .insert(key, Account::new(self.last_number, mig, opened));
        }
        true
    }

    /// Adds allocated time from `from` until `until` to a payer's account, and opens it if there is
    /// none. Returns whether there was room for it.
    pub fn allocate(
        &mut self,
        book: usize,
        owner: &Owner,
        opened: Clock,
        (from, until): (BootTime, BootTime),
    ) -> bool {
        let is_open = self.open(book, owner, opened);
        if is_open && let Some(account) = self.accounts.get_mut(&(book, owner.clone())) {
            account.amounts.allocated += until.since(from);
            account.since = account.since.min(from);
            account.allocated_through = account.allocated_through.max(Some(until));
        }
        is_open
    }

    /// An account that is open.
    pub fn account(&self, book: usize, owner: &Owner) -> Option<&Account> {
        self.accounts.get(&(book, owner.clone()))
    }

    /// The same, to be changed.
    pub fn account_mut(&mut self, book: usize, owner: &Owner) -> Option<&mut Account> {
        self.accounts.get_mut(&(book, owner.clone()))
    }

    /// Books a window, split into `charges`. A book that was not listed before is left alone and
    /// the window given back.
    ///
    /// The windows of a GPU tile its time. One that begins later than the one before it ended leaves
    /// a gap, which is booked as not observed. One that begins earlier is cut to what is not booked
    /// yet, and is not booked at all where nothing is left. Each of these is counted.
    pub fn book(
        &mut self,
        mut window: GpuWindow,
        mut charges: Vec<Charge>,
        clock: Clock,
    ) -> Option<GpuWindow> {
        let Some(at) = self.book_of(&window.gpu) else {
            return Some(window);
        };
        let may_skip = std::mem::take(&mut self.books[at].may_skip);
        match Place::of(&window, self.books[at].through) {
            Place::Next => {}
            Place::AfterGap { .. } if may_skip => {}
            Place::AfterGap { from } => {
                self.mended.gaps += 1;
                self.books[at].skip(from, window.start);
            }
            Place::Overlapping { from } => {
                self.mended.overlaps += 1;
                tiling::cut(&mut window, &mut charges, from);
            }
            Place::Past => {
                self.mended.refused += 1;
                return None;
            }
        }
        let opened = clock.at(window.start);
        let used = clock.wall_of(window.end);
        let energies = self.split_energy(at, &window, &charges);
        let mut unattributed = Vec::new();
        let mut recent = Vec::with_capacity(charges.len());
        for (charge, energy) in charges.into_iter().zip(energies) {
            let owner = charge.owner.and_then(|owner| {
                if self.open(at, &owner, opened) {
                    Ok(owner)
                } else {
                    Err(UnattributedReason::Overflow)
                }
            });
            match &owner {
                Ok(owner) => {
                    if let Some(account) = self.accounts.get_mut(&(at, owner.clone())) {
                        account.amounts += Amounts {
                            busy: charge.busy,
                            engines: charge.engines,
                            energy,
                            ..Amounts::ZERO
                        };
                        account.first_used.get_or_insert(used);
                        account.last_used = Some(used);
                    }
                }
                Err(reason) => {
                    *self.books[at].unattributed.entry(*reason).or_default() += charge.busy;
                    if let Some(book) = &mut self.books[at].energy {
                        book.unattributed.0 = book.unattributed.0.saturating_add(energy.0);
                    }
                    unattributed.push((*reason, charge.busy));
                }
            }
            if charge.pid.is_some() || owner.is_ok() {
                recent.push(RecentCharge {
                    pid: charge.pid,
                    process: charge.process,
                    owner,
                    busy: charge.busy,
                });
            }
        }
        let book = &mut self.books[at];
        let elapsed = window.end.since(window.start);
        book.elapsed += elapsed;
        book.busy += window.busy;
        book.idle += window.idle;
        for &(reason, amount) in &window.unobserved {
            *book.unobserved.entry(reason).or_default() += amount;
        }
        book.windows += 1;
        book.torn_windows += u64::from(window.quality.torn);
        book.invalid_rows += u64::from(window.quality.invalid_rows);
        book.cut += window.quality.cut;
        if let Some(clocks) = &window.clocks {
            book.clocks = Some(clocks.clone());
        }
        book.pass(Past {
            end: window.end,
            elapsed,
            busy: window.busy,
            unattributed,
            unobserved: window.unobserved,
            charges: recent,
        });
        None
    }

    /// What each charge has of the window's energy: its share of the window's time. The rest is idle
    /// energy, and for time that was not observed it is nobody's.
    fn split_energy(
        &mut self,
        at: usize,
        window: &GpuWindow,
        charges: &[Charge],
    ) -> Vec<Millijoules> {
        let Some(energy) = window.energy else {
            return vec![Millijoules::default(); charges.len()];
        };
        let unobserved = window.unobserved.iter().map(|(_, amount)| *amount).sum();
        let mut weights: Vec<Nanos> = charges.iter().map(|charge| charge.busy).collect();
        weights.extend([window.idle, unobserved]);
        let mut parts = amounts::split(energy, &weights);
        let unobserved = parts.pop().unwrap_or_default();
        let idle = parts.pop().unwrap_or_default();
        let book = self.books[at].energy.get_or_insert_default();
        book.total.0 = book.total.0.saturating_add(energy.0);
        book.idle.0 = book.idle.0.saturating_add(idle.0);
        book.unattributed.0 = book.unattributed.0.saturating_add(unobserved.0);
        parts
    }

    /// Every open account.
    pub fn accounts(&self) -> impl Iterator<Item = (&(usize, Owner), &Account)> {
        self.accounts.iter()
    }

    /// Every open account, to publish from.
    pub fn accounts_mut(&mut self) -> impl Iterator<Item = (&(usize, Owner), &mut Account)> {
        self.accounts.iter_mut()
    }

    /// Closes the accounts that `done` says are done, and gives them back. What they held stays in
    /// their book.
    pub fn close(
        &mut self,
        done: &mut dyn FnMut(&(usize, Owner), &Account) -> bool,
    ) -> Vec<((usize, Owner), Account)> {
        let closed: Vec<_> = self
            .accounts
            .extract_if(|key, account| done(key, account))
            .collect();
        for ((book, _), account) in &closed {
            let book = &mut self.books[*book];
            book.closed += account.amounts;
            // Without a window in between the next account would be opened at the same time.
            if book.through != book.reopen_through {
                (book.reopen_from, book.reopen_through) = (WallTime::default(), book.through);
            }
            let series = account.id_only.iter().chain(&account.named);
            let start = series.map(|series| series.gate.start).max();
            let start = start.unwrap_or_default().max(account.opened);
            let next = WallTime(start.0.saturating_add(1));
            book.reopen_from = book.reopen_from.max(next);
        }
        closed
    }

    /// For each book: by how much the held or allocated time of an account exceeds the time that has
    /// passed since its beginning, the most of all its accounts; or by how much their parts of the
    /// GPU's time exceed what the book accounts for.
    #[must_use]
    pub fn excesses(&self, now: BootTime) -> Vec<Nanos> {
        let books = self.books.iter();
        let mut shares: Vec<Nanos> = books.map(|book| book.closed.allocated_share).collect();
        let mut excesses = vec![Nanos::ZERO; self.books.len()];
        for ((book, _), account) in &self.accounts {
            excesses[*book] = excesses[*book].max(account.excess(now));
            shares[*book] += account.amounts.allocated_share;
        }
        for ((excess, share), book) in excesses.iter_mut().zip(shares).zip(&self.books) {
            *excess = share.minus(book.elapsed).max(*excess);
        }
        excesses
    }

    /// For each book: the nanoseconds by which the accounts, or else the parts of the elapsed time,
    /// do not add up, signed.
    #[must_use]
    pub fn imbalances(&self) -> Vec<i64> {
        let mut owned: Vec<Nanos> = self
            .books
            .iter()
            .map(|book| {
                book.closed
                    .busy
                    .plus(book.unattributed.values().copied().sum())
            })
            .collect();
        for ((book, _), account) in &self.accounts {
            owned[*book] += account.amounts.busy;
        }
        let difference = |a: Nanos, b: Nanos| {
            i64::try_from(i128::from(a.0) - i128::from(b.0)).unwrap_or(i64::MAX)
        };
        self.books
            .iter()
            .zip(owned)
            .map(|(book, owned)| {
                let parts = book
                    .busy
                    .plus(book.idle)
                    .plus(book.unobserved.values().copied().sum());
                match difference(book.busy, owned) {
                    0 => difference(book.elapsed, parts),
                    found => found,
                }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::amounts::Engines;
    use crate::input::WindowQuality;
    use crate::model::{ContainerId, HostUnit};

    fn gpu(index: u32) -> GpuInfo {
        GpuInfo {
            uuid: GpuUuid::from(format!("GPU-{index}").as_str()),
            index,
            minor: None,
            model: "test".into(),
            driver: "1".into(),
            simulated: true,
            memory_total: None,
            mig: None,
            engines: vec![],
        }
    }

    fn clock() -> Clock {
        Clock {
            boot: BootTime(100_000_000_000),
            wall: WallTime(1_700_000_100_000_000_000),
        }
    }

    fn window(start: u64, busy: u64, idle: u64, unobserved: u64) -> GpuWindow {
        GpuWindow {
            gpu: gpu(0).uuid,
            start: BootTime(start),
            end: BootTime(start + busy + idle + unobserved),
            busy: Nanos(busy),
            idle: Nanos(idle),
            unobserved: vec![(UnobservedReason::SampleGap, Nanos(unobserved))],
            credits: vec![],
            below_resolution: Nanos::ZERO,
            no_row: Nanos::ZERO,
            engines: vec![],
            energy: None,
            quality: WindowQuality::default(),
            clocks: None,
        }
    }

    fn charge(owner: Result<Owner, UnattributedReason>, busy: u64) -> Charge {
        Charge {
            pid: Some(Pid(1)),
            process: None,
            owner,
            busy: Nanos(busy),
            engines: Engines::default(),
        }
    }

    fn container(id: &str) -> Result<Owner, UnattributedReason> {
        Ok(Owner::Container(ContainerId::from(id)))
    }

    fn ledger() -> Ledger {
        let mut ledger = Ledger::new(100);
        ledger.list(vec![gpu(0), gpu(1)], clock());
        ledger
    }

    #[test]
    fn the_books_balance_through_charges_closures_and_reasons() {
        let mut ledger = ledger();
        let charges = vec![
            charge(container("a"), 50),
            charge(Ok(Owner::Host(HostUnit::from("sshd.service"))), 30),
            charge(Err(UnattributedReason::NoRow), 20),
        ];
        assert!(
            ledger
                .book(window(0, 100, 40, 5), charges, clock())
                .is_none()
        );
        assert_eq!(ledger.imbalances(), [0, 0]);
        ledger.close(&mut |_, _| true);
        assert_eq!(ledger.accounts().count(), 0);
        assert_eq!(ledger.imbalances(), [0, 0]);
        assert_eq!(ledger.books()[0].closed, Amounts::busy(Nanos(80)));
    }

    #[test]
    fn energy_goes_by_share_of_busy_time_and_adds_up() {
        let mut ledger = ledger();
        let charges = vec![
            charge(container("a"), 50),
            charge(Ok(Owner::Host(HostUnit::from("sshd.service"))), 30),
            charge(Err(UnattributedReason::NoRow), 20),
        ];
        let mut window = window(0, 100, 60, 40);
        window.energy = Some(Millijoules(2_000));
        let _ = ledger.book(window, charges, clock());
        let book = EnergyBook {
            total: Millijoules(2_000),
            idle: Millijoules(600),
            // What nobody owns, and what nobody saw.
            unattributed: Millijoules(200 + 400),
        };
        assert_eq!(ledger.books()[0].energy, Some(book));
        assert_eq!(ledger.books()[1].energy, None, "no meter is not no energy");
        let mut energies: Vec<_> = ledger.accounts().map(|(_, a)| a.amounts.energy.0).collect();
        energies.sort_unstable();
        assert_eq!(energies, [300, 500]);
    }

    #[test]
    fn the_check_can_fail() {
        let mut ledger = ledger();
        // The device was busy for 100 and only 90 were charged.
        let _ = ledger.book(
            window(0, 100, 0, 0),
            vec![charge(container("a"), 90)],
            clock(),
        );
        assert_eq!(ledger.imbalances(), [10, 0]);
        let mut ledger = super::tests::ledger();
        let mut torn = window(0, 100, 50, 0);
        torn.end = BootTime(149);
        let _ = ledger.book(torn, vec![charge(container("a"), 100)], clock());
        assert_eq!(ledger.imbalances(), [-1, 0]);
    }

    /// Found by fuzzing: the next account had the same start, and its counter fell.
    #[test]
    fn an_account_that_is_opened_anew_without_a_window_in_between_begins_later() {
        let mut ledger = ledger();
        let owner = container("a").expect("it is one");
        let _ = ledger.book(window(0, 60, 40, 0), vec![], clock());
        let mut last = WallTime::default();
        for _ in 0..3 {
            ledger.open(0, &owner, clock());
            let closed = ledger.close(&mut |_, _| true);
            let opened = closed[0].1.opened;
            assert!(opened > last, "{opened:?} after {last:?}");
            last = opened;
        }
    }

    #[test]
    fn a_gap_between_windows_is_booked_as_not_observed() {
        let mut ledger = ledger();
        let charged = || vec![charge(container("a"), 100)];
        // The first window begins wherever the source began.
        let _ = ledger.book(window(1_000, 100, 0, 0), charged(), clock());
        let _ = ledger.book(window(1_130, 100, 0, 0), charged(), clock());
        assert_eq!(ledger.imbalances(), [0, 0]);
        let book = &ledger.books()[0];
        assert_eq!((book.elapsed, book.busy), (Nanos(230), Nanos(200)));
        assert_eq!(book.unobserved[&UnobservedReason::WindowLost], Nanos(30));
        assert_eq!(book.windows, 2, "what is missing is no window");
        assert_eq!(
            book.coverage().unobserved,
            [
                (UnobservedReason::SampleGap, Nanos::ZERO),
                (UnobservedReason::WindowLost, Nanos(30))
            ]
        );
        let mended = Mended {
            gaps: 1,
            ..Mended::default()
        };
        assert_eq!(ledger.mended(), mended);
    }

    #[test]
    fn a_window_that_overlaps_the_one_before_bills_no_time_twice() {
        let mut ledger = ledger();
        let charged = |busy| vec![charge(container("a"), busy)];
        let _ = ledger.book(window(0, 60, 30, 10), charged(60), clock());
        // Half of it is booked already.
        let _ = ledger.book(window(50, 60, 30, 10), charged(60), clock());
        assert_eq!(ledger.imbalances(), [0, 0]);
        let book = &ledger.books()[0];
        assert_eq!(book.through, Some(BootTime(150)));
        assert_eq!((book.elapsed, book.busy), (Nanos(150), Nanos(90)));
        // All of these.
        for start in [0, 50] {
            let _ = ledger.book(window(start, 60, 30, 10), charged(60), clock());
        }
        assert_eq!(ledger.imbalances(), [0, 0]);
        let book = &ledger.books()[0];
        assert_eq!((book.elapsed, book.windows), (Nanos(150), 2));
        let mended = Mended {
            gaps: 0,
            overlaps: 1,
            refused: 2,
        };
        assert_eq!(ledger.mended(), mended);
    }

    #[test]
    fn an_instance_that_is_made_anew_had_no_time_in_between() {
        let mut ledger = ledger();
        let _ = ledger.book(window(0, 0, 100, 0), vec![], clock());
        ledger.list(vec![gpu(1)], clock());
        ledger.list(vec![gpu(0), gpu(1)], clock());
        let _ = ledger.book(window(500, 0, 100, 0), vec![], clock());
        assert_eq!(ledger.books()[0].elapsed, Nanos(200));
        assert_eq!(ledger.mended(), Mended::default());
        // Once: from there on its windows tile again.
        let _ = ledger.book(window(700, 0, 100, 0), vec![], clock());
        assert_eq!(ledger.books()[0].elapsed, Nanos(400));
        assert_eq!(ledger.mended().gaps, 1);
    }

    #[test]
    fn the_check_of_held_and_allocated_time_can_fail() {
        let second = 1_000_000_000;
        let at = |seconds: u64| BootTime(seconds * second);
        let owner = container("a").expect("it is one");
        let opened = |seconds| Clock {
            boot: at(seconds),
            ..Clock::default()
        };
        let mut ledger = ledger();
        // Allocated since before the first window, which opened the account.
        ledger.open(1, &owner, opened(15));
        ledger.allocate(1, &owner, opened(10), (at(10), at(40)));
        assert_eq!(ledger.excesses(at(40)), [Nanos::ZERO; 2]);
        // The same time once more.
        ledger.allocate(1, &owner, opened(10), (at(35), at(40)));
        assert_eq!(ledger.excesses(at(40)), [Nanos::ZERO, Nanos::from_secs(5)]);
        assert_eq!(ledger.excesses(at(45)), [Nanos::ZERO; 2], "time has passed");
        // Held time before the account's beginning moves that; held twice it does not fit.
        let account = ledger.account_mut(1, &owner).expect("it is open");
        account.add_held(at(5), Nanos::from_secs(40), ByteSeconds::default());
        assert_eq!(ledger.excesses(at(45)), [Nanos::ZERO; 2]);
        let account = ledger.account_mut(1, &owner).expect("it is open");
        account.add_held(at(44), Nanos::from_secs(1), ByteSeconds::default());
        assert_eq!(ledger.excesses(at(45)), [Nanos::ZERO, Nanos::from_secs(1)]);
        // A part of the GPU's time that no book accounts for, and one beyond what was allocated.
        assert_eq!(ledger.excesses(at(50)), [Nanos::ZERO; 2]);
        let account = ledger.account_mut(1, &owner).expect("it is open");
        account.add_share(Nanos(3));
        assert_eq!(ledger.excesses(at(50)), [Nanos::ZERO, Nanos(3)]);
        let account = ledger.account_mut(1, &owner).expect("it is open");
        account.amounts.allocated_share = account.amounts.allocated.plus(Nanos(7));
        let beyond = account.amounts.allocated_share;
        assert_eq!(
            ledger.excesses(at(50)),
            [Nanos::ZERO, beyond],
            "of the book"
        );
        let mut account = Account::new(1, None, opened(0));
        account.add_share(Nanos(7));
        assert_eq!(
            account.excess(at(1)),
            Nanos::ZERO,
            "there was room for none"
        );
        account.amounts.allocated_share = Nanos(7);
        assert_eq!(account.excess(at(1)), Nanos(7));
    }

    #[test]
    fn a_window_of_an_unlisted_gpu_comes_back_whole() {
        let mut ledger = Ledger::new(100);
        let back = ledger.book(window(0, 1, 1, 1), vec![], clock());
        assert_eq!(back, Some(window(0, 1, 1, 1)));
    }

    #[test]
    fn a_full_ledger_books_to_overflow_and_keeps_known_accounts() {
        let mut ledger = Ledger::new(1);
        ledger.list(vec![gpu(0)], clock());
        for start in [0, 100] {
            let charges = vec![charge(container("a"), 60), charge(container("b"), 40)];
            let _ = ledger.book(window(start, 100, 0, 0), charges, clock());
        }
        assert_eq!(ledger.imbalances(), [0]);
        assert_eq!(ledger.overflows(), 2);
        let book = &ledger.books()[0];
        assert_eq!(book.unattributed[&UnattributedReason::Overflow], Nanos(80));
    }

    #[test]
    fn shares_are_of_ten_seconds_and_coverage_of_a_minute() {
        let mut ledger = ledger();
        let second = 1_000_000_000;
        for n in 0..100 {
            let owner = if n < 95 { "a" } else { "b" };
            let charges = vec![
                charge(container(owner), second / 2),
                charge(Err(UnattributedReason::UnknownPid), second / 4),
            ];
            let busy = second / 2 + second / 4;
            let _ = ledger.book(window(n * second, busy, second / 4, 0), charges, clock());
        }
        let book = &ledger.books()[0];
        let (span, charges) = book.recent();
        assert_eq!(span, Nanos::from_secs(10));
        let a: Nanos = charges
            .filter(|charge| charge.owner == container("a"))
            .map(|charge| charge.busy)
            .sum();
        assert_eq!(a, Nanos(5 * second / 2));
        let coverage = book.coverage();
        assert_eq!(coverage.elapsed, Nanos::from_secs(60));
        assert_eq!(coverage.attributed, Nanos::from_secs(30));
        assert_eq!(
            coverage.unattributed,
            [(UnattributedReason::UnknownPid, Nanos::from_secs(15))]
        );
    }
}
