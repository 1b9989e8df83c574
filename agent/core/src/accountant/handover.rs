//! What the core hands over to the store, and what it restores after a restart.
//!
//! After each commit the [`ChangeTracker`] says what differs from what it has handed over before: a
//! commit in which one container of five hundred used a GPU is one narrow row, not five hundred.
//! Nothing here knows files. The store reports whether the rows were stored. Until then the core
//! assumes that they were not, and it can be asked to hand over everything again.
//!
//! A [`PersistedState`] is everything that was handed over, put together. An [`Accountant`] that is
//! made of it continues where the previous one stopped: the same books, accounts and series, with
//! the same start times and no lower published amount. It is refused if its books do not balance,
//! since nothing could correct them later.
//!
//! Only processes that use a GPU are stored, see [`processes`]: `/proc` shows who lives, but not
//! whose the time was of those who died while no agent ran, and not who has been counted already.
//!
//! Not kept: what containers are called that have no account, and the agent's figures about itself.

use std::sync::Arc;

use crate::account::Account;
use crate::accountant::{Accountant, no_names};
use crate::change_tracker::{AccountView, ChangeTracker, kept_parts};
use crate::model::{BootTime, Clock, GpuUuid, Owner, WallTime};
use crate::records::{Changes, ClosedAccount, Kept, KeptNamespace, KeptTotals};

impl Accountant {
    /// Has changes kept from here on: see [`Accountant::changes`].
    pub fn keep(&mut self) {
        self.change_tracker = Some(ChangeTracker::default());
    }

    /// What the last commit changed since this was last asked; everything if `whole`. Nothing of it
    /// may be asked for between an input and the commit after it.
    pub fn changes(&mut self, whole: bool, clock: Clock) -> Changes {
        let Some(mut change_tracker) = self.change_tracker.take() else {
            return Changes::default();
        };
        if whole {
            change_tracker.forget();
        }
        let mut changes = Changes {
            whole,
            sequence: self.sequence,
            clock,
            closed: change_tracker.closed.clone(),
            ..Changes::default()
        };
        for book in self.ledger.books() {
            let (book, times) = change_tracker.book(book);
            changes.books.extend(book);
            changes.times.extend(times);
        }
        for ((book, owner), account) in self.ledger.accounts().iter() {
            let Some((account, totals)) = self.account_view(*book, owner, account) else {
                continue;
            };
            let (account, totals) = change_tracker.account(&account, totals);
            changes.accounts.extend(account);
            changes.totals.extend(totals);
        }
        for (book, namespace, counter) in self.namespaces.iter() {
            changes
                .namespaces
                .extend(change_tracker.namespace(KeptNamespace {
                    gpu: self.ledger.books()[book].gpu.uuid.clone(),
                    namespace: Arc::clone(namespace),
                    amounts: counter.amounts,
                    start: counter.counter.start,
                    shown: counter.counter.shown,
                    changed: counter.counter.changed,
                    shows: counter.counter.visible,
                }));
        }
        (changes.processes, changes.gone) =
            change_tracker.processes(&mut self.tracker, &self.devices, &self.ledger);
        (changes.allocations, changes.allocations_gone) =
            change_tracker.allocations(&self.allocations);
        self.change_tracker = Some(change_tracker);
        changes
    }

    /// Changes are kept: what was closed in them need not be handed over again.
    pub fn kept(&mut self, changes: Kept) {
        if let Some(change_tracker) = &mut self.change_tracker {
            change_tracker.confirm(changes.closed);
        }
    }

    /// An account as it is handed over; nothing while its owner has not been looked at, which the
    /// next commit does.
    fn account_view<'a>(
        &'a self,
        book: usize,
        owner: &'a Owner,
        account: &'a Account,
    ) -> Option<(AccountView<'a>, KeptTotals)> {
        let ([id_only, named], totals) = kept_parts(account);
        // An account that was opened since the last commit does not have it yet, and its owner may have
        // another account.
        let known = self.naming.of(account.naming);
        let known = known.or_else(|| self.naming.of_owner(owner));
        let labels = match (known, owner) {
            (Some(known), _) => Arc::clone(&known.labels),
            (None, Owner::Host(_)) => match &account.named {
                Some(series) => Arc::clone(&series.labels),
                None => Arc::new(no_names(owner)),
            },
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
                Owner::Container(id) => self.naming.directory().runtime_labels(id),
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

    /// Notes the last state of accounts that have just been closed, while their owners are known.
    pub(super) fn keep_closed(&mut self, closed: &[((usize, Owner), Account)], at: WallTime) {
        let Some(mut change_tracker) = self.change_tracker.take() else {
            return;
        };
        for ((book, owner), account) in closed {
            if let Some((account, totals)) = self.account_view(*book, owner, account) {
                change_tracker.close(ClosedAccount {
                    at,
                    account: account.copied(),
                    totals,
                });
            }
        }
        self.change_tracker = Some(change_tracker);
    }

    /// Closed accounts whose records were given up.
    pub(super) fn records_given_up(&self) -> u64 {
        self.change_tracker
            .as_ref()
            .map_or(0, |change_tracker| change_tracker.given_up)
    }

    /// Processes that were not followed to be kept.
    pub(super) fn not_followed(&self) -> u64 {
        let change_tracker = self.change_tracker.as_ref();
        change_tracker.map_or(0, ChangeTracker::not_followed)
    }
}
