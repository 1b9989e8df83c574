//! The open accounts of all GPUs, in a kept order.
//!
//! Each commit visits all accounts several times and shows them in the order of their labels. So
//! they lie side by side in that order, and it is found again only after one was opened or renamed.

use std::cmp::Ordering;

use crate::account::Account;
use crate::model::Owner;
use crate::tables::HashMap;

/// Whose account it is, and the index of its GPU's book.
pub(crate) type AccountKey = (usize, Owner);

/// The accounts, with an index by book and owner.
#[derive(Debug, Default)]
pub(crate) struct Accounts {
    entries: Vec<(AccountKey, Account)>,
    /// For each book, the positions in `entries` by owner.
    positions: Vec<HashMap<Owner, usize>>,
    /// Grows with each account that is added or removed.
    revision: u64,
}

impl Accounts {
    /// The number of accounts.
    pub(crate) const fn len(&self) -> usize {
        self.entries.len()
    }

    /// A number that differs from an earlier one if an account was added or removed since.
    pub(crate) const fn revision(&self) -> u64 {
        self.revision
    }

    /// The position of an account among [`Accounts::iter`], until one is added or removed.
    pub(crate) fn position(&self, book: usize, owner: &Owner) -> Option<usize> {
        self.positions.get(book)?.get(owner).copied()
    }

    /// An account.
    pub(crate) fn get(&self, book: usize, owner: &Owner) -> Option<&Account> {
        let position = self.position(book, owner)?;
        self.entries.get(position).map(|(_, account)| account)
    }

    /// The same, to be changed.
    pub(crate) fn get_mut(&mut self, book: usize, owner: &Owner) -> Option<&mut Account> {
        let position = self.position(book, owner)?;
        self.entries.get_mut(position).map(|(_, account)| account)
    }

    /// Adds an account. Returns false, and changes nothing, if its owner has one on this GPU.
    pub(crate) fn insert(&mut self, (book, owner): AccountKey, account: Account) -> bool {
        if self.position(book, &owner).is_some() {
            return false;
        }
        if self.positions.len() <= book {
            self.positions.resize_with(book + 1, HashMap::default);
        }
        self.positions[book].insert(owner.clone(), self.entries.len());
        self.entries.push(((book, owner), account));
        self.revision += 1;
        true
    }

    /// All accounts.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&AccountKey, &Account)> {
        self.entries.iter().map(|(key, account)| (key, account))
    }

    /// All accounts, to be changed.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (&AccountKey, &mut Account)> {
        let entries = self.entries.iter_mut();
        entries.map(|(key, account)| (&*key, account))
    }

    /// Removes the accounts for which `is_done` holds, and returns them.
    pub(crate) fn remove(
        &mut self,
        is_done: &mut dyn FnMut(&AccountKey, &Account) -> bool,
    ) -> Vec<(AccountKey, Account)> {
        let removed = self
            .entries
            .extract_if(.., |(key, account)| is_done(key, account));
        let removed: Vec<_> = removed.collect();
        if !removed.is_empty() {
            self.revision += 1;
            self.index();
        }
        removed
    }

    /// Puts the accounts in an order. Costs one comparison for each if they are in it already.
    pub(crate) fn sort(
        &mut self,
        compare: impl Fn((&AccountKey, &Account), (&AccountKey, &Account)) -> Ordering,
    ) {
        let compare = |(one, one_account): &(AccountKey, Account),
                       (other, other_account): &(AccountKey, Account)| {
            compare((one, one_account), (other, other_account))
        };
        let in_order = |one: &_, other: &_| compare(one, other).is_le();
        if !self.entries.is_sorted_by(in_order) {
            self.entries.sort_by(compare);
            self.index();
        }
    }

    fn index(&mut self) {
        for positions in &mut self.positions {
            positions.clear();
        }
        for (position, ((book, owner), _)) in self.entries.iter().enumerate() {
            self.positions[*book].insert(owner.clone(), position);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{BootTime, Clock, HostUnit, WallTime};

    fn owner(number: u32) -> Owner {
        Owner::Host(HostUnit::from(format!("unit-{number}").as_str()))
    }

    fn accounts(keys: &[(usize, u32)]) -> Accounts {
        let mut accounts = Accounts::default();
        for (number, (book, of)) in (1..).zip(keys) {
            let opened = Clock {
                boot: BootTime(1),
                wall: WallTime(1),
            };
            let account = Account::new(number, None, opened);
            assert!(accounts.insert((*book, owner(*of)), account));
        }
        accounts
    }

    fn numbers(accounts: &Accounts) -> Vec<u32> {
        accounts.iter().map(|(_, account)| account.number).collect()
    }

    #[test]
    fn an_account_is_found_after_others_were_sorted_and_removed() {
        let keys = [(0, 5), (1, 5), (0, 1), (1, 3)];
        let mut accounts = accounts(&keys);
        accounts.sort(|(one, _), (other, _)| (&one.1, one.0).cmp(&(&other.1, other.0)));
        assert_eq!(numbers(&accounts), [3, 4, 1, 2]);
        let removed = accounts.remove(&mut |(_, of), _| *of == owner(3));
        assert_eq!(removed.len(), 1);
        for (number, (book, of)) in (1..).zip(keys) {
            let found = accounts.get(book, &owner(of)).map(|account| account.number);
            assert_eq!(found, (number != 4).then_some(number));
        }
        assert_eq!(accounts.len(), 3);
    }

    #[test]
    fn an_owner_has_one_account_on_a_gpu() {
        let mut accounts = accounts(&[(0, 5), (1, 5)]);
        let second = Account::new(
            9,
            None,
            Clock {
                boot: BootTime(1),
                wall: WallTime(1),
            },
        );
        assert!(!accounts.insert((0, owner(5)), second));
        assert_eq!(numbers(&accounts), [1, 2]);
    }
}
