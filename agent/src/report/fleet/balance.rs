//! Balances the GPUs' hours. What scrapes show is a little apart from the books of the agent:
//!
//! - Busy time whose owner is not published yet gets one in a later hour. It is moved to that hour.
//! - An account that is new in the store has had some time before its first sample, which is nobody's
//!   then: a row `unattributed` with the reason [`NOT_IN_STORE`].
//! - Doubles have no whole nanoseconds after 104 days: a difference below a millisecond is rounding.
//!
//! Time of owners that exceeds the GPU's busy time was busy before the range. It is counted, and so much
//! of it that it cannot be that is an imbalance.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::core::amounts::Millijoules;
use crate::core::model::Nanos;
use crate::outputs::store::query::{GpuUsed, ReasonUsed};

/// Why time has no owner, or is not observed: the store does not say it.
pub(super) const NOT_IN_STORE: &str = "not_in_store";
/// Differences below this are rounding.
const ROUNDING: Nanos = Nanos::from_millis(1);

/// What the store has of a GPU's hour.
#[derive(Clone, Debug, Default)]
pub(super) struct Hour {
    pub(super) elapsed: Nanos,
    pub(super) busy: Nanos,
    pub(super) idle: Nanos,
    pub(super) energy: Millijoules,
    pub(super) energy_idle: Millijoules,
    /// Busy time of containers and of the host.
    pub(super) owned: Nanos,
    /// Whether it was not observed, and why; otherwise it has no owner.
    pub(super) reasons: BTreeMap<(bool, Arc<str>), Nanos>,
}

/// What was found beside the hours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Apart {
    /// Owners' time that was busy before the range.
    pub(super) early: Nanos,
    /// By how much the parts of elapsed time exceed it.
    pub(super) short: Nanos,
}

impl Hour {
    fn sum(&self, unobserved: bool) -> Nanos {
        let of = self.reasons.iter().filter(|((is, _), _)| *is == unobserved);
        of.map(|(_, time)| *time).sum()
    }

    fn add(&mut self, unobserved: bool, time: Nanos) {
        let key = (unobserved, NOT_IN_STORE.into());
        *self.reasons.entry(key).or_default() += time;
    }

    fn shift(&mut self, time: Nanos, gains: bool) {
        let by = |of: Nanos| if gains { of.plus(time) } else { of.minus(time) };
        self.busy = by(self.busy);
        self.elapsed = by(self.elapsed);
    }
}

/// Balances the hours of one GPU, in their order.
pub(super) fn balance(hours: &mut BTreeMap<i64, Hour>) -> Apart {
    let mut apart = Apart::default();
    let mut all: Vec<&mut Hour> = hours.values_mut().collect();
    // Busy time without an owner, so far, by the place of its hour.
    let mut open: Vec<(usize, Nanos)> = Vec::new();
    for at in 0..all.len() {
        let told = all[at].owned.plus(all[at].sum(false));
        let mut missing = told.minus(all[at].busy);
        let over = all[at].busy.minus(told);
        if !over.is_zero() {
            open.push((at, over));
        }
        let mut moved = Nanos::ZERO;
        while !missing.is_zero()
            && let Some((from, time)) = open.pop()
        {
            let part = Nanos(time.0.min(missing.0));
            all[from].shift(part, false);
            missing = missing.minus(part);
            moved += part;
            if part < time {
                open.push((from, time.minus(part)));
            }
        }
        all[at].shift(moved.plus(missing), true);
        apart.early += missing;
    }
    for (at, time) in open {
        match time < ROUNDING {
            true => all[at].shift(time, false),
            false => all[at].add(false, time),
        }
    }
    for hour in all {
        let parts = hour.busy.plus(hour.idle).plus(hour.sum(true));
        let rest = hour.elapsed.minus(parts);
        if rest >= ROUNDING {
            hour.add(true, rest);
            continue;
        }
        let short = parts.minus(hour.elapsed);
        if short >= ROUNDING {
            apart.short += short;
        }
        hour.elapsed = parts;
    }
    apart
}

/// The hours as a ledger would have them.
pub(super) fn books(
    gpu: i64,
    hours: BTreeMap<i64, Hour>,
) -> impl Iterator<Item = (GpuUsed, Vec<ReasonUsed>)> {
    hours.into_iter().map(move |(number, hour)| {
        let book = GpuUsed {
            hour: number,
            gpu,
            elapsed: hour.elapsed,
            busy: hour.busy,
            idle: hour.idle,
            energy: hour.energy,
            energy_idle: hour.energy_idle,
        };
        let reasons = hour.reasons.into_iter().filter(|(_, time)| !time.is_zero());
        let reasons = reasons.map(|((unobserved, reason), time)| ReasonUsed {
            hour: number,
            gpu,
            unobserved,
            reason,
            time,
        });
        (book, reasons.collect())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hour(busy: u64, owned: u64, idle: u64) -> Hour {
        let s = Nanos::from_secs;
        Hour {
            elapsed: s(busy + idle),
            busy: s(busy),
            idle: s(idle),
            owned: s(owned),
            ..Hour::default()
        }
    }

    /// Every hour is in balance.
    fn check(hours: &BTreeMap<i64, Hour>) {
        for hour in hours.values() {
            assert_eq!(hour.busy, hour.owned.plus(hour.sum(false)), "{hour:?}");
            let parts = hour.busy.plus(hour.idle).plus(hour.sum(true));
            assert_eq!(hour.elapsed, parts, "{hour:?}");
        }
    }

    #[test]
    fn time_that_gets_its_owner_later_is_moved() {
        let mut hours = BTreeMap::from([(1, hour(100, 90, 50)), (2, hour(100, 106, 50))]);
        assert_eq!(balance(&mut hours), Apart::default());
        check(&hours);
        assert_eq!(hours[&1].sum(false), Nanos::from_secs(4));
        assert_eq!(hours[&2].busy, Nanos::from_secs(106));
        let all: Nanos = hours.values().map(|hour| hour.elapsed).sum();
        assert_eq!(all, Nanos::from_secs(300));
    }

    #[test]
    fn time_from_before_the_range_is_counted() {
        let mut hours = BTreeMap::from([(1, hour(100, 103, 0)), (2, hour(100, 100, 0))]);
        assert_eq!(balance(&mut hours).early, Nanos::from_secs(3));
        check(&hours);
    }

    #[test]
    fn rounding_is_no_row() {
        let mut hours = BTreeMap::from([(1, hour(100, 100, 20))]);
        hours.get_mut(&1).unwrap().busy += Nanos(3);
        assert_eq!(balance(&mut hours), Apart::default());
        check(&hours);
        assert!(hours[&1].reasons.is_empty());
    }

    #[test]
    fn elapsed_time_that_has_no_part_is_not_observed() {
        let mut hours = BTreeMap::from([(1, hour(10, 10, 20))]);
        hours.get_mut(&1).unwrap().elapsed += Nanos::from_secs(5);
        assert_eq!(balance(&mut hours), Apart::default());
        check(&hours);
        assert_eq!(hours[&1].sum(true), Nanos::from_secs(5));
        hours.get_mut(&1).unwrap().elapsed = Nanos::ZERO;
        assert_eq!(balance(&mut hours).short, Nanos::from_secs(35));
        check(&hours);
    }
}
