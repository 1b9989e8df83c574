//! The books: one account per GPU and owner, in integer nanoseconds, and one book per GPU to which
//! the accounts must add up.
//!
//! The device's elapsed, busy and idle time are added up independently of the accounts, so that the
//! balance `busy = Σ containers + Σ host + Σ unattributed` is a check that can fail, not a
//! definition. Amounts of closed accounts stay in the balance.

use std::cmp::Ordering;
use std::collections::{BTreeMap, VecDeque};

use crate::account::Account;
use crate::accounts::{AccountKey, Accounts};
use crate::amounts::{self, Amounts, Millijoules};
use crate::input::{GpuInfo, GpuWindow, SampleClocks};
use crate::model::{
    BootTime, Clock, GpuUuid, Nanos, Owner, Pid, ProcessId, UnattributedReason, UnobservedReason,
    WallTime,
};
use crate::owners::Charge;
use crate::snapshot::{AccountingBook, Coverage, EnergyBook};
use crate::tiling::{self, TilingRepairs, WindowPosition};

/// Over which recent time a process's present share of a GPU is computed.
pub const SHARE_SPAN: Nanos = Nanos::from_secs(10);
/// How long accounts stay open on a GPU that NVML does not list any more.
pub const MISSING_GPU_HOLD: Nanos = Nanos::from_secs(600);
/// Over which recent time coverage and utilisation are computed.
pub const COVERAGE_SPAN: Nanos = Nanos::from_secs(60);

/// One process's part of one window, for "now".
#[derive(Clone, Debug)]
pub struct RecentCharge {
    /// Pid as the driver reported it. Absent if the processes of one owner are reported together.
    pub pid: Option<Pid>,
    /// The process, where known.
    pub process: Option<ProcessId>,
    /// Owner, or the reason why the time has none.
    pub owner: Result<Owner, UnattributedReason>,
    /// Busy time, in nanoseconds.
    pub busy: Nanos,
}

#[derive(Debug)]
struct RecentWindow {
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
    /// The amounts of closed accounts.
    pub closed: Amounts,
    /// Energy. Absent if no window had any.
    pub energy: Option<EnergyBook>,
    /// Sums of the driver's accounting mode, beside those of the windows; absent if it gives none.
    pub accounting: Option<AccountingBook>,
    /// Clocks by which the driver stamps, from the last window.
    pub clocks: Option<SampleClocks>,
    /// The end of the last window.
    pub through: Option<BootTime>,
    /// Windows booked.
    pub windows: u64,
    /// Windows that are torn: samples landed between the calls in every try.
    pub torn_windows: u64,
    /// Rows that were dropped.
    pub invalid_rows: u64,
    /// Time cut from rows.
    pub cut: Nanos,
    /// Whether NVML lists the GPU. A book from before a restart waits to be listed.
    pub is_listed: bool,
    /// Since when NVML lists the GPU no more.
    pub missing: Option<BootTime>,
    /// Whether NVML stopped listing it after its last window. The next window may then begin later:
    /// a MIG instance that was destroyed and created again had no time in between.
    may_skip: bool,
    /// The earliest start of an account that is opened of something up to `reopen_until`. The series
    /// of closed accounts began earlier, and a series with the same start would be taken for one of
    /// them: its counter would fall.
    reopen_from: WallTime,
    /// When the last account was closed. A window that begins later needs no such care.
    reopen_until: BootTime,
    past: VecDeque<RecentWindow>,
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
            reopen_until: BootTime::default(),
            past: VecDeque::new(),
        }
    }

    /// Notes that accounts were closed up to `at`, whose series began by then.
    pub(super) fn reopen_after(&mut self, at: Clock) {
        let next = WallTime(at.wall.0.saturating_add(1));
        self.reopen_from = self.reopen_from.max(next);
        self.reopen_until = self.reopen_until.max(at.boot);
    }

    /// Books `from` to `to` as unobserved, since no window covers it.
    fn skip(&mut self, from: BootTime, to: BootTime) {
        let gap = to.since(from);
        self.elapsed += gap;
        *self
            .unobserved
            .entry(UnobservedReason::WindowLost)
            .or_default() += gap;
        self.pass(RecentWindow {
            end: to,
            elapsed: gap,
            busy: Nanos::ZERO,
            unattributed: Vec::new(),
            unobserved: vec![(UnobservedReason::WindowLost, gap)],
            charges: Vec::new(),
        });
    }

    /// Notes what was booked last, and forgets what is too old to be shown.
    fn pass(&mut self, newest: RecentWindow) {
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

    /// Returns the coverage of the last minute.
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
        let recent = move |past: &&RecentWindow| past.end > from;
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

/// The books of all GPUs and the accounts on them.
#[derive(Debug)]
pub struct Ledger {
    books: Vec<Book>,
    accounts: Accounts,
    account_limit: usize,
    overflows: u64,
    mended: TilingRepairs,
    last_number: u32,
}

impl Ledger {
    /// A ledger of at most `account_limit` open accounts; amounts beyond go to
    /// [`UnattributedReason::Overflow`].
    #[must_use]
    pub fn new(account_limit: usize) -> Self {
        Self {
            books: Vec::new(),
            accounts: Accounts::default(),
            account_limit,
            overflows: 0,
            mended: TilingRepairs::default(),
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

    /// Restores an account. Returns whether its owner had none on this GPU.
    pub(super) fn restore(&mut self, book: usize, owner: Owner, account: Account) -> bool {
        self.last_number = self.last_number.max(account.number);
        self.accounts.insert((book, owner), account)
    }

    /// Accounts that were not opened since the ledger is full.
    #[must_use]
    pub const fn overflows(&self) -> u64 {
        self.overflows
    }

    /// Windows that did not begin where the one before them ended.
    #[must_use]
    pub const fn mended(&self) -> TilingRepairs {
        self.mended
    }

    /// The books, in NVML's order.
    #[must_use]
    pub fn books(&self) -> &[Book] {
        &self.books
    }

    /// Takes NVML's list of GPUs. New ones get a book. Known ones keep theirs, also if the list
    /// lacks them, which is noted.
    ///
    /// A MIG instance that was created under the UUID of an earlier one is a new generation. Their
    /// seconds are not comparable, so accounts end with the old one. UUID, profile and ids together
    /// identify an instance. The book is about the UUID and continues.
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
            // If the earlier instance is not known, as after a restart, it counts as the same
            // generation.
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

    /// Opens an owner's account on a GPU if there is none. `opened` is the time, on both clocks, from
    /// which on anything is counted. Returns whether there is one now.
    pub fn open(&mut self, book: usize, owner: &Owner, mut opened: Clock) -> bool {
        if self.accounts.position(book, owner).is_none() {
            if self.accounts.len() >= self.account_limit {
                self.overflows += 1;
                return false;
            }
            // 2^32 accounts in one boot, each open for ten minutes at least, are out of reach.
            self.last_number = self.last_number.saturating_add(1);
            let key = (book, owner.clone());
            let book = self.books.get(book);
            let mig = book.and_then(|book| book.gpu.mig.clone());
            // Without a window the wall time is the book's, whatever the boot time says.
            let guarded =
                book.filter(|book| book.through.is_none() || opened.boot <= book.reopen_until);
            let earliest = guarded.map(|book| book.reopen_from).unwrap_or_default();
            opened.wall = opened.wall.max(earliest);
            self.accounts
                .insert(key, Account::new(self.last_number, mig, opened));
        }
        true
    }

    /// Adds allocated time from `from` until `until` to an owner's account, and opens it if there is
    /// none. Returns whether there was room for it.
    pub fn allocate(
        &mut self,
        book: usize,
        owner: &Owner,
        opened: Clock,
        (from, until): (BootTime, BootTime),
    ) -> bool {
        let is_open = self.open(book, owner, opened);
        if is_open && let Some(account) = self.accounts.get_mut(book, owner) {
            account.amounts.allocated += until.since(from);
            account.since = account.since.min(from);
            account.allocated_through = account.allocated_through.max(Some(until));
        }
        is_open
    }

    /// An account that is open.
    pub fn account(&self, book: usize, owner: &Owner) -> Option<&Account> {
        self.accounts.get(book, owner)
    }

    /// The same, to be changed.
    pub fn account_mut(&mut self, book: usize, owner: &Owner) -> Option<&mut Account> {
        self.accounts.get_mut(book, owner)
    }

    /// Books a window, split into `charges`. If the GPU has no book, nothing is booked and the
    /// window is returned.
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
        match WindowPosition::of(&window, self.books[at].through) {
            WindowPosition::Next => {}
            WindowPosition::AfterGap { .. } if may_skip => {}
            WindowPosition::AfterGap { from } => {
                self.mended.gaps += 1;
                self.books[at].skip(from, window.start);
            }
            WindowPosition::Overlapping { from } => {
                self.mended.overlaps += 1;
                tiling::cut(&mut window, &mut charges, from);
            }
            WindowPosition::Past => {
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
                    if let Some(account) = self.accounts.get_mut(at, owner) {
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
        book.pass(RecentWindow {
            end: window.end,
            elapsed,
            busy: window.busy,
            unattributed,
            unobserved: window.unobserved,
            charges: recent,
        });
        None
    }

    /// Divides the window's energy among the charges by busy time. The part of idle time is idle
    /// energy; that of unobserved time is unattributed.
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

    /// The open accounts.
    pub(crate) const fn accounts(&self) -> &Accounts {
        &self.accounts
    }

    /// Every open account, to publish from.
    pub(crate) fn accounts_mut(&mut self) -> impl Iterator<Item = (&AccountKey, &mut Account)> {
        self.accounts.iter_mut()
    }

    /// Puts the open accounts in the order in which they are shown.
    pub(crate) fn sort_accounts(
        &mut self,
        compare: impl Fn(&[Book], (&AccountKey, &Account), (&AccountKey, &Account)) -> Ordering,
    ) {
        let books = &self.books;
        self.accounts.sort(|one, other| compare(books, one, other));
    }

    /// Closes, at the time `now`, the accounts for which `done` is true, and returns them. Their
    /// amounts stay in their book.
    pub fn close(
        &mut self,
        now: BootTime,
        done: &mut dyn FnMut(&(usize, Owner), &Account) -> bool,
    ) -> Vec<((usize, Owner), Account)> {
        let closed = self.accounts.remove(done);
        for ((book, _), account) in &closed {
            let book = &mut self.books[*book];
            book.closed += account.amounts;
            let series = account.id_only.iter().chain(&account.named);
            let start = series.map(|series| series.counter.start).max();
            let start = start.unwrap_or_default().max(account.opened);
            book.reopen_after(Clock {
                boot: now,
                wall: start,
            });
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
        for ((book, _), account) in self.accounts.iter() {
            excesses[*book] = excesses[*book].max(account.excess(now));
            shares[*book] += account.amounts.allocated_share;
        }
        for ((excess, share), book) in excesses.iter_mut().zip(shares).zip(&self.books) {
            *excess = share.minus(book.elapsed).max(*excess);
        }
        excesses
    }

    /// For each book, signed nanoseconds: by how much busy time and its charges differ, or, if they
    /// do not, elapsed time and its parts.
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
        for ((book, _), account) in self.accounts.iter() {
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
mod tests;
