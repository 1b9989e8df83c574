//! From the driver's rows to credits: who gets how much of a window's busy time.
//!
//! A row is a mean over the window's samples, in whole percents, floored. A row of `r` percent over
//! `n` samples therefore says that its process was credited between `r·n` and `r·n + n - 1` points,
//! a *point* being one percent of one sample. Two facts narrow that down:
//!
//! - the driver credits each sample whole to one process, so a process's points are the sum of some
//!   subset of the samples' values: with samples of 100, 100 and 0 percent nobody has 50 points;
//! - where the rows can explain the whole of the device's busy time, they are taken to do so, so
//!   that what one process may have depends on what is left for the others.
//!
//! A process gets the least that is possible for it under these facts: exactly its own where only
//! one amount is possible, never more than one percentage point of the window beyond its row. What
//! could belong to several is `below_resolution`; what no row can own is `no_row`.
//!
//! The driver keeps samples finer than it shows them. Where its rounding makes no subset fit a row,
//! every amount up to a whole percentage point beyond the row counts as possible, and an error made
//! by trusting whole percents is no larger than such a point.
//!
//! Refused: scaling all rows up until they add up to the device. It would bill those who have a row
//! for those who have none.

use crate::core::input::Credit;
use crate::core::model::{Nanos, Pid};

/// With more samples than this in a window (a real ring holds 72) rows get what they show and no more:
/// the work and the room below grow with the square of it.
const MOST_SAMPLES: usize = 256;
/// Work bound of the search for what the rows can explain together, in words touched.
const MOST_WORK: usize = 1 << 20;

/// A window's busy time, divided. `busy = Σ credits + below_resolution + no_row`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Split {
    pub(super) credits: Vec<Credit>,
    pub(super) below_resolution: Nanos,
    pub(super) no_row: Nanos,
    /// Time by which the rows exceeded the device.
    pub(super) cut: Nanos,
}

/// Divides `busy`, the device's own figure for samples of `values` percent that cover `covered`,
/// among `rows` of (pid, percent). Pids are distinct, percents at most 100.
pub(super) fn split(busy: Nanos, covered: Nanos, values: &[u32], rows: &[(Pid, u32)]) -> Split {
    let samples = values.len() as u64;
    let total: u64 = values.iter().map(|&value| u64::from(value)).sum();
    let least: Vec<u64> = rows
        .iter()
        .map(|&(_, percent)| u64::from(percent) * samples)
        .collect();
    let claimed: u64 = least.iter().sum();

    if claimed > total {
        let shares = apportion(busy, &least);
        return Split {
            credits: credits(rows, &shares),
            cut: Nanos(scale(claimed - total, covered.0, samples.max(1) * 100)),
            ..Split::default()
        };
    }

    let Points {
        mut each,
        ambiguous,
        unowned,
    } = points(values, total, &least);
    each.push(ambiguous);
    each.push(unowned);
    let mut shares = apportion(busy, &each);
    let no_row = shares.pop().unwrap_or_default();
    let below_resolution = shares.pop().unwrap_or_default();
    Split {
        credits: credits(rows, &shares),
        below_resolution,
        no_row,
        cut: Nanos::ZERO,
    }
}

/// The rows' credits; a row that comes to nothing has none.
pub(super) fn credits<T>(rows: &[(Pid, T)], shares: &[Nanos]) -> Vec<Credit> {
    rows.iter()
        .zip(shares)
        .filter(|(_, busy)| !busy.is_zero())
        .map(|((pid, _), &busy)| Credit { pid: *pid, busy })
        .collect()
}

/// Points by row, and those without one. They add up to the samples' total.
struct Points {
    each: Vec<u64>,
    ambiguous: u64,
    unowned: u64,
}

fn points(values: &[u32], total: u64, least: &[u64]) -> Points {
    let samples = values.len() as u64;
    let claimed: u64 = least.iter().sum();
    let spare = total - claimed;
    if values.len() > MOST_SAMPLES {
        let unowned = spare.saturating_sub(samples.saturating_mul(least.len() as u64));
        return Points {
            each: least.to_vec(),
            ambiguous: spare - unowned,
            unowned,
        };
    }
    let reachable = Sums::of_subsets(values, total);

    let possible: Vec<Vec<u64>> = least
        .iter()
        .map(|&from| {
            let shown = from..=from + spare.min(samples.saturating_sub(1));
            let narrowed: Vec<u64> = shown.filter(|&sum| reachable.contains(sum)).collect();
            if narrowed.is_empty() {
                // The samples hide fractions too: up to the whole point, not just below it.
                (from..=from + spare.min(samples)).collect()
            } else {
                narrowed
            }
        })
        .collect();

    if let Some(each) = explained(&possible, total) {
        let ambiguous = total - each.iter().sum::<u64>();
        return Points {
            each,
            ambiguous,
            unowned: 0,
        };
    }

    let mut each: Vec<u64> = possible.iter().map(|row| row[0]).collect();
    if each.iter().sum::<u64>() > total {
        // Each row alone could have its least subset, all of them together could not.
        each = least.to_vec();
    }
    let rest = total - each.iter().sum::<u64>();
    let slack: u64 = possible
        .iter()
        .zip(&each)
        .map(|(row, &own)| row[row.len() - 1].saturating_sub(own))
        .sum();
    let unowned = rest.saturating_sub(slack);
    Points {
        each,
        ambiguous: rest - unowned,
        unowned,
    }
}

/// The least that each row has in any choice of possible amounts that adds up to `total`; `None`
/// where no choice does, or the search would be too long.
///
/// Layers: `forward[j]` holds the sums that rows `0..j` can make. Going back from `total`, `alive`
/// holds those sums from which the rest can still be reached.
fn explained(possible: &[Vec<u64>], total: u64) -> Option<Vec<u64>> {
    let words = usize::try_from(total / 64 + 1).ok()?;
    let choices: usize = possible.iter().map(Vec::len).sum();
    if possible.is_empty() || choices.saturating_mul(words) > MOST_WORK {
        return None;
    }
    let mut forward = vec![Sums::only(0, total)];
    for (layer, row) in possible.iter().enumerate() {
        let mut next = Sums::none(total);
        for &amount in row {
            next.add_shifted_up(&forward[layer], amount);
        }
        forward.push(next);
    }
    if !forward[possible.len()].contains(total) {
        return None;
    }
    let mut least = vec![0; possible.len()];
    let mut alive = Sums::only(total, total);
    for (layer, row) in possible.iter().enumerate().rev() {
        let mut before = Sums::none(total);
        let mut lowest = None;
        for &amount in row {
            if before.add_shifted_down(&alive, amount, &forward[layer]) {
                lowest.get_or_insert(amount);
            }
        }
        least[layer] = lowest?;
        alive = before;
    }
    Some(least)
}

/// A set of sums in `0..=limit`, one bit each.
#[derive(Clone, Debug)]
struct Sums {
    words: Vec<u64>,
    limit: u64,
}

impl Sums {
    fn none(limit: u64) -> Self {
        let words = usize::try_from(limit / 64 + 1).unwrap_or(usize::MAX);
        Self {
            words: vec![0; words],
            limit,
        }
    }

    fn only(sum: u64, limit: u64) -> Self {
        let mut sums = Self::none(limit);
        let (word, bit) = bit_position(sum);
        sums.words[word] |= bit;
        sums
    }

    /// Every sum that a subset of `values` makes; `limit` is the sum of all.
    fn of_subsets(values: &[u32], limit: u64) -> Self {
        let mut sums = Self::only(0, limit);
        for &value in values.iter().filter(|&&value| value > 0) {
            let before = sums.clone();
            sums.add_shifted_up(&before, u64::from(value));
        }
        sums
    }

    fn contains(&self, sum: u64) -> bool {
        let (word, bit) = bit_position(sum);
        sum <= self.limit && self.words[word] & bit != 0
    }

    /// Adds `other`'s sums, each greater by `by`; those beyond the limit fall away.
    fn add_shifted_up(&mut self, other: &Self, by: u64) {
        if by > self.limit {
            return;
        }
        let (skip, bits) = (bit_position(by).0, by % 64);
        for to in skip..self.words.len() {
            let low = other.words[to - skip] << bits;
            let carried = if bits > 0 && to > skip {
                other.words[to - skip - 1] >> (64 - bits)
            } else {
                0
            };
            self.words[to] |= low | carried;
        }
        let last = self.words.len() - 1;
        self.words[last] &= u64::MAX >> (63 - self.limit % 64);
    }

    /// Adds `other`'s sums, each smaller by `by`, where `within` has them too. Whether any did.
    fn add_shifted_down(&mut self, other: &Self, by: u64, within: &Self) -> bool {
        let (skip, bits) = (bit_position(by).0, by % 64);
        let mut any = false;
        for to in 0..self.words.len().saturating_sub(skip) {
            let high = other.words[to + skip] >> bits;
            let carried = if bits > 0 {
                other.words.get(to + skip + 1).unwrap_or(&0) << (64 - bits)
            } else {
                0
            };
            let found = (high | carried) & within.words[to];
            any |= found != 0;
            self.words[to] |= found;
        }
        any
    }
}

/// Where a sum's bit is.
fn bit_position(sum: u64) -> (usize, u64) {
    (
        usize::try_from(sum / 64).unwrap_or(usize::MAX),
        1 << (sum % 64),
    )
}

/// `value · by / of`, without overflow on the way; it stops at the largest value.
pub(super) fn scale(value: u64, by: u64, of: u64) -> u64 {
    let product = u128::from(value) * u128::from(by) / u128::from(of.max(1));
    u64::try_from(product).unwrap_or(u64::MAX)
}

/// Divides `total` in proportion to `weights`, to the nanosecond: floors, then one nanosecond each
/// to the largest remainders, the first of equals first. All of `total` is given out unless every
/// weight is zero.
pub(super) fn apportion(total: Nanos, weights: &[u64]) -> Vec<Nanos> {
    let sum: u128 = weights.iter().map(|&weight| u128::from(weight)).sum();
    if sum == 0 {
        return vec![Nanos::ZERO; weights.len()];
    }
    let exact = |weight: u64| u128::from(weight) * u128::from(total.0);
    let mut shares: Vec<u64> = weights
        .iter()
        .map(|&weight| u64::try_from(exact(weight) / sum).unwrap_or(u64::MAX))
        .collect();
    let given: u64 = shares.iter().sum();
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by_key(|&index| std::cmp::Reverse(exact(weights[index]) % sum));
    let missing = usize::try_from(total.0 - given).unwrap_or(usize::MAX);
    for &index in order.iter().take(missing) {
        shares[index] += 1;
    }
    shares.into_iter().map(Nanos).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A window in which a point is one nanosecond, so that points can be read off the credits.
    fn in_points(values: &[u32], rows: &[(u32, u32)]) -> (Vec<(u32, u64)>, u64, u64, u64) {
        let total: u32 = values.iter().sum();
        let rows: Vec<_> = rows.iter().map(|&(pid, r)| (Pid(pid), r)).collect();
        let covered = Nanos(values.len() as u64 * 100);
        let split = split(Nanos(u64::from(total)), covered, values, &rows);
        let credits = split.credits.iter().map(|c| (c.pid.0, c.busy.0)).collect();
        (
            credits,
            split.below_resolution.0,
            split.no_row.0,
            split.cut.0,
        )
    }

    #[test]
    fn rows_become_points() {
        /// What, samples, rows, credits, below resolution, no row, cut.
        type Row = (
            &'static str,
            &'static [u32],
            &'static [(u32, u32)],
            &'static [(u32, u64)],
            u64,
            u64,
            u64,
        );
        let rows: &[Row] = &[
            ("nothing", &[0, 0], &[], &[], 0, 0, 0),
            (
                "one owner of all",
                &[100; 6],
                &[(7, 100)],
                &[(7, 600)],
                0,
                0,
                0,
            ),
            (
                "one of six samples",
                &[100, 0, 0, 0, 0, 0],
                &[(7, 16)],
                &[(7, 100)],
                0,
                0,
                0,
            ),
            (
                "two owners, floored",
                &[100; 6],
                &[(7, 16), (8, 83)],
                &[(7, 100), (8, 500)],
                0,
                0,
                0,
            ),
            (
                "three thirds",
                &[100; 3],
                &[(1, 33), (2, 33), (3, 33)],
                &[(1, 100), (2, 100), (3, 100)],
                0,
                0,
                0,
            ),
            (
                "equal samples of 60",
                &[60; 6],
                &[(1, 20), (2, 40)],
                &[(1, 120), (2, 240)],
                0,
                0,
                0,
            ),
            ("no rows at all", &[100, 50], &[], &[], 0, 150, 0),
            (
                "the other owner has no row",
                &[100, 100, 100, 100],
                &[(1, 50)],
                &[(1, 200)],
                0,
                200,
                0,
            ),
            (
                "small and alone",
                &[1, 1, 0, 0],
                &[(1, 0)],
                &[(1, 2)],
                0,
                0,
                0,
            ),
            (
                "small and disputed",
                &[1, 1, 0, 0],
                &[(1, 0), (2, 0)],
                &[],
                2,
                0,
                0,
            ),
            // 33 % is 198..=203 points: 200 is the only subset. 2 % is 12..=17: 12 or 13.
            (
                "a sample without a process",
                &[100, 100, 13, 12, 0, 0],
                &[(1, 33), (2, 2)],
                &[(1, 200), (2, 12)],
                1,
                12,
                0,
            ),
            (
                "rows beyond the device",
                &[50, 50],
                &[(1, 60), (2, 40)],
                &[(1, 60), (2, 40)],
                0,
                0,
                100,
            ),
            (
                "rows on an idle device",
                &[0, 0],
                &[(1, 60)],
                &[],
                0,
                0,
                120,
            ),
            // Each row alone fits the sample of 50; both together leave 2 points to nobody.
            (
                "finer than shown",
                &[50, 52],
                &[(1, 25), (2, 25)],
                &[(1, 50), (2, 50)],
                0,
                2,
                0,
            ),
        ];
        for &(what, values, rows, credits, below, none, cut) in rows {
            assert_eq!(
                in_points(values, rows),
                (credits.to_vec(), below, none, cut),
                "{what}"
            );
        }
    }

    #[test]
    fn no_row_gets_more_than_a_percentage_point() {
        // 3 samples of 99: the row of 65 is 195..=197 points. No subset fits (99, 198), so that the
        // samples must be finer than shown, and the row reaches up to 198.
        let (credits, below, none, cut) = in_points(&[99, 99, 99], &[(1, 65)]);
        assert_eq!((credits, below, none, cut), (vec![(1, 195)], 3, 99, 0));
    }

    #[test]
    fn apportioning_gives_out_everything() {
        let shares = |total, weights: &[u64]| {
            let shares = apportion(Nanos(total), weights);
            shares.iter().map(|share| share.0).collect::<Vec<_>>()
        };
        assert_eq!(shares(100, &[1, 1, 1]), [34, 33, 33]);
        assert_eq!(shares(7, &[0, 5, 0]), [0, 7, 0]);
        assert_eq!(shares(7, &[0, 0]), [0, 0]);
        assert_eq!(shares(u64::MAX, &[u64::MAX, 1]), [u64::MAX - 1, 1]);
        assert!(shares(5, &[]).is_empty());
    }

    proptest! {
        /// Truth: each sample belongs to one of a few pids, or to none. Rows are made as the driver
        /// makes them.
        #[test]
        fn a_row_is_never_off_by_a_percentage_point(
            samples in proptest::collection::vec((0_u32..=100, 0_u32..5), 1..40),
        ) {
            let values: Vec<u32> = samples.iter().map(|&(value, _)| value).collect();
            let n = values.len() as u64;
            let mut truth = std::collections::BTreeMap::<u32, u64>::new();
            for &(value, pid) in &samples {
                if pid > 0 && value > 0 {
                    *truth.entry(pid).or_default() += u64::from(value);
                }
            }
            let rows: Vec<(u32, u32)> = truth
                .iter()
                .map(|(&pid, &sum)| (pid, u32::try_from(sum / n).unwrap()))
                .collect();
            let (credits, below, none, cut) = in_points(&values, &rows);
            let total: u64 = values.iter().map(|&v| u64::from(v)).sum();
            let given: u64 = credits.iter().map(|&(_, points)| points).sum();
            prop_assert_eq!(given + below + none, total);
            prop_assert_eq!(cut, 0);
            for (pid, sum) in truth {
                let own = credits.iter().find(|&&(p, _)| p == pid).map_or(0, |&(_, points)| points);
                prop_assert!(own.abs_diff(sum) < n, "pid {} has {} points of {}, n {}", pid, own, sum, n);
            }
        }

        /// The same with samples in hundredths of a percent, as the driver keeps them, of which it
        /// shows whole percents. What the samples hide can make rows exceed the device by a point.
        #[test]
        fn fractions_that_the_samples_hide_cost_no_more_than_another_point(
            samples in proptest::collection::vec((0_u32..=10_000, 0_u32..5), 1..40),
        ) {
            let values: Vec<u32> = samples.iter().map(|&(value, _)| value / 100).collect();
            let n = values.len() as u64;
            let mut truth = std::collections::BTreeMap::<u32, u64>::new();
            for &(value, pid) in &samples {
                if pid > 0 && value > 0 {
                    *truth.entry(pid).or_default() += u64::from(value);
                }
            }
            let rows: Vec<(u32, u32)> = truth
                .iter()
                .map(|(&pid, &sum)| (pid, u32::try_from(sum / n / 100).unwrap()))
                .collect();
            let (credits, below, none, cut) = in_points(&values, &rows);
            let total: u64 = values.iter().map(|&v| u64::from(v)).sum();
            let given: u64 = credits.iter().map(|&(_, points)| points).sum();
            prop_assert_eq!(given + below + none, total);
            prop_assert!(cut <= n, "{}", cut);
            for (pid, sum) in truth {
                let own = credits.iter().find(|&&(p, _)| p == pid).map_or(0, |&(_, points)| points);
                prop_assert!(own.abs_diff(sum / 100) <= 2 * n, "pid {} has {} points of {}", pid, own, sum / 100);
            }
        }

        #[test]
        fn any_rows_balance(
            busy in any::<u64>(),
            covered in any::<u64>(),
            values in proptest::collection::vec(0_u32..=100, 1..300),
            percents in proptest::collection::vec(0_u32..=100, 0..40),
        ) {
            let rows: Vec<(Pid, u32)> = (1..).map(Pid).zip(percents).collect();
            let busy = if values.iter().all(|&value| value == 0) { Nanos::ZERO } else { Nanos(busy) };
            let split = split(busy, Nanos(covered), &values, &rows);
            let credited: u128 = split.credits.iter().map(|credit| u128::from(credit.busy.0)).sum();
            let parts = credited + u128::from(split.below_resolution.0) + u128::from(split.no_row.0);
            prop_assert_eq!(parts, u128::from(busy.0));
        }
    }
}
