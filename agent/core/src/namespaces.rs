//! The counters of namespaces: how much of each GPU the containers of a namespace used. They outlive
//! the containers, so that a rate over them misses no short job.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::account::PublishedCounter;
use crate::amounts::Amounts;
use crate::input::Policy;
use crate::model::{BootTime, Clock};

/// The namespace label of amounts beyond the limit.
const OVERFLOW: &str = "(overflow)";

/// The counter of one namespace on one GPU.
#[derive(Debug)]
pub(crate) struct NamespaceCounter {
    /// All that was counted.
    pub(crate) amounts: Amounts,
    /// What is published of it.
    pub(crate) counter: PublishedCounter,
}

/// The counters, by the index of the GPU's book and the namespace.
#[derive(Debug)]
pub(crate) struct NamespaceCounters {
    counters: BTreeMap<(usize, Arc<str>), NamespaceCounter>,
    limit: usize,
    overflows: u64,
}

impl NamespaceCounters {
    /// At most `limit` counters. What is beyond goes to the namespace `(overflow)`, one for each GPU.
    pub(crate) const fn new(limit: usize) -> Self {
        Self {
            counters: BTreeMap::new(),
            limit,
            overflows: 0,
        }
    }

    /// Adds amounts to a namespace's counter, and opens it if there is none.
    pub(crate) fn add(&mut self, book: usize, namespace: Arc<str>, amounts: Amounts, clock: Clock) {
        let mut key = (book, namespace);
        let is_full = self.counters.len() >= self.limit && !self.counters.contains_key(&key);
        if is_full {
            key.1 = OVERFLOW.into();
        }
        let counter = self
            .counters
            .entry(key)
            .or_insert_with(|| NamespaceCounter {
                amounts: Amounts::ZERO,
                counter: PublishedCounter::new(clock.wall, clock.boot),
            });
        counter.amounts += amounts;
        self.overflows += u64::from(is_full && !amounts.is_zero());
    }

    /// Puts back a counter from before a restart.
    pub(crate) fn restore(&mut self, book: usize, namespace: Arc<str>, counter: NamespaceCounter) {
        self.counters.insert((book, namespace), counter);
    }

    /// Publishes what may be published now.
    pub(crate) fn publish(&mut self, policy: &Policy, now: BootTime) {
        for counter in self.counters.values_mut() {
            counter.counter.show(counter.amounts, policy, now);
        }
    }

    /// All counters, by book and namespace.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (usize, &Arc<str>, &NamespaceCounter)> {
        let counters = self.counters.iter();
        counters.map(|((book, namespace), counter)| (*book, namespace, counter))
    }

    /// How often amounts went to `(overflow)`.
    pub(crate) const fn overflows(&self) -> u64 {
        self.overflows
    }
}
