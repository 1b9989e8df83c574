//! An accountant that goes on where an agent before this one stopped.

use std::sync::Arc;

use crate::account::{Account, PublishedCounter, Series, ShownEngines};
use crate::accountant::{Accountant, Settings, follow};
use crate::amounts::Amounts;
use crate::input::{ContainerIdentity, IdentitySource, IdentityUpdate, KubernetesNames};
use crate::ledger::{Book, Ledger};
use crate::model::{
    BootTime, Clock, ContainerId, NONE, Nanos, Owner, PodUid, UNRESOLVED, WallTime,
};
use crate::namespaces::NamespaceCounter;
use crate::naming::NamingState;
use crate::records::{
    KeptAccount, KeptBook, KeptReason, KeptSeries, KeptTime, KeptTotals, PersistedState,
    StateError, owner,
};
use crate::snapshot::Attribution;
use crate::tables::HashMap;

/// How long the first windows of an agent that goes on wait for the first scan of `/proc`.
const AWAIT_FIRST_SCAN: Nanos = Nanos::from_secs(10);

impl Accountant {
    /// Creates an accountant that continues from `state` and hands over its changes.
    ///
    /// # Errors
    ///
    /// The state was not handed over by an agent of this boot.
    pub fn restored(
        settings: Settings,
        state: &PersistedState,
        clock: Clock,
    ) -> Result<Self, StateError> {
        if state.clock.boot > clock.boot {
            let ahead = state.clock.boot.since(clock.boot).0;
            return Err(StateError::Future { ahead });
        }
        let now = clock.boot;
        let mut accountant = Self::new(settings, clock);
        accountant.keep();
        accountant.sequence = state.sequence;
        accountant
            .tracker
            .await_scan_until(now.plus(AWAIT_FIRST_SCAN));
        let books = state.books.iter();
        let books = books.map(|book| restored_book(book, &state.times, state.clock));
        let mut ledger =
            Ledger::restored(books.collect(), state.last_number, settings.account_limit);
        let mut numbers = HashMap::default();
        for (kept, totals) in &state.accounts {
            let gpu = &kept.gpu;
            let book = ledger.book_of(gpu);
            let book = book.ok_or_else(|| StateError::NoBook { gpu: gpu.clone() })?;
            let owner = owner(kept.kind, &kept.owner_id);
            let mut account = restored_account(kept, totals, now);
            numbers.insert(kept.number, (book, owner.clone()));
            if let Owner::Container(id) = &owner {
                let (from, until) = undivided(&account, &ledger.books()[book]);
                accountant.shares.hold(book, id, from, until);
            }
            let twice = || StateError::Twice {
                owner: Arc::clone(&kept.owner_id),
                gpu: gpu.clone(),
            };
            let Some(attribution) = kept.attribution else {
                if !ledger.restore(book, owner, account) {
                    return Err(twice());
                }
                continue;
            };
            if let Owner::Container(id) = &owner
                && *kept.labels.pod_uid != *UNRESOLVED
            {
                let uid = PodUid(Arc::clone(&kept.labels.pod_uid));
                let uid = (*uid.0 != *NONE).then_some(&uid);
                accountant
                    .naming
                    .directory_mut()
                    .restore_pod(id, uid, &kept.runtime, now);
            }
            if let (Attribution::Named { source }, Owner::Container(_)) = (attribution, &owner) {
                let identity = restored_identity(kept, source);
                accountant.naming.directory_mut().restore(identity, now);
            }
            let naming = accountant.naming.restore(
                owner.clone(),
                NamingState {
                    attribution,
                    held_since: kept.held_since,
                    labels: kept.labels.clone(),
                    image: Arc::clone(&kept.image),
                    runtime: Arc::clone(&kept.runtime),
                },
            );
            account.naming = Some(naming);
            if !ledger.restore(book, owner, account) {
                return Err(twice());
            }
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
            let counter = restored_counter(kept.start, kept.shown, kept.changed, kept.shows, now);
            let counter = NamespaceCounter {
                amounts: kept.amounts,
                counter,
            };
            let namespace = Arc::clone(&kept.namespace);
            accountant.namespaces.restore(book, namespace, counter);
        }
        for (book, nanoseconds) in ledger.books().iter().zip(ledger.imbalances()) {
            if nanoseconds != 0 {
                let gpu = book.gpu.uuid.clone();
                return Err(StateError::Imbalance { gpu, nanoseconds });
            }
        }
        accountant.ledger = ledger;
        accountant.restore_processes(state, &numbers, clock);
        Ok(accountant)
    }

    /// Takes back the processes that an agent before this one knew. `accounts` are whose accounts
    /// have which numbers.
    fn restore_processes(
        &mut self,
        state: &PersistedState,
        accounts: &HashMap<u32, (usize, Owner)>,
        clock: Clock,
    ) {
        let then = state.clock.boot;
        for kept in state.processes.iter().filter(|kept| kept.start <= then) {
            if !self.tracker.restore(kept, then) {
                continue;
            }
            let process = kept.process();
            follow(&mut self.change_tracker, process);
            for (book, owner) in kept.accounts.iter().filter_map(|of| accounts.get(of)) {
                let holding = &mut self.devices.of(*book).holding;
                holding.restore(process, owner.clone());
            }
        }
        if clock.boot.since(then) > BELIEVED_FOR {
            self.tracker.close_restored(then.plus(BELIEVED_FOR));
        }
        self.introduce_containers(clock.boot, false);
    }
}

/// Restores a series. If it showed 0, it shows 0 again from `now` on, because no scraper could see
/// the 0 while no agent ran.
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
        counter: restored_counter(kept.start, kept.shown, changed, visible, now),
    }
}

/// Restores a counter. It shows 0 again for `zero_for`, if it showed 0 before, and so does each of
/// its engines.
fn restored_counter(
    start: WallTime,
    shown: BootTime,
    changed: BootTime,
    visible: Amounts,
    now: BootTime,
) -> PublishedCounter {
    PublishedCounter {
        start,
        shown: if visible.is_zero() { now } else { shown },
        visible,
        changed,
        engines: ShownEngines::restored(&visible.engines, shown),
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
        naming: None,
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
fn restored_book(kept: &KeptBook, times: &[KeptTime], committed: Clock) -> Book {
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
        id: ContainerId(Arc::clone(&account.owner_id)),
        source,
        name: known(&labels.container),
        image: known(&account.image),
        kubernetes,
        labels: (*account.runtime_labels).clone(),
    })
}

/// How long after the last commit a process is believed to live that no scan has confirmed.
const BELIEVED_FOR: Nanos = Nanos::from_secs(60);
