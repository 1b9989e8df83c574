//! Windows of a device whose own samples come at another cadence than those of its processes.
//!
//! A window ends with a sample of the device. Rows are means over all samples of processes up to
//! now. If those come at a cadence of their own, they include some of the next window, too. So rows
//! are requested twice: since the window's beginning and since its end. The difference belongs to
//! the window.
//!
//! Both are means, and sums take the number of samples in them, which NVML does not tell. But each row
//! says when its process was credited last, and those instants lie on the [`Cadence`]: the longest period
//! of which all distances between them are multiples. Until there are enough of them it is taken for the
//! usual one, a sixth of a second; where they contradict each other, rows are taken as if they were
//! about the device's own samples.
//!
//! The driver credits a sample to one process, and most samples are 0 % or 100 %. So if a whole
//! number of samples gives the row's percent, the row stands for that number. Otherwise it stands
//! for the middle of the amounts that give this percent. These errors have no bias, and the error
//! at the end of one window is corrected by the next.
//!
//! The device's figure is floored, too: a sample of one second hides up to ten milliseconds. If the
//! sum of the rows is floored to the device's figure, the sum is used. Otherwise the device's
//! figure is the upper bound.
//!
//! Pure. Units: microseconds of the clock of the device's samples, nanoseconds, and *points* as in
//! [`credit`](super::credit): one percent of one sample.

use std::collections::VecDeque;

use super::credit::{Split, apportion, credits, scale};
use crate::core::model::{Nanos, Pid};

/// The usual period, by RM's headers, in nanoseconds.
const USUAL_NS: u64 = 1_000_000_000 / 6;
/// Periods shorter than this are no product's (1/6 s to 1 s by RM's headers), in nanoseconds.
const SHORTEST_NS: u64 = 100_000_000;
/// Longest distance that is used. Over longer ones the jitter adds up so far that neighbouring
/// multiples of the period cannot be distinguished.
const LONGEST_US: u64 = 3_000_000;
/// Distances that are kept.
const DISTANCES: usize = 64;
/// Distances that are needed: fewer are too likely to be multiples of more than the period.
const ENOUGH: usize = 6;
/// The driver keeps ten seconds of samples at least; rows of more may lack some.
const RING: u64 = 60;
/// Uncertainty of an instant. Anything closer to it may be on either side.
const SLACK_US: u64 = 1_000;

/// The rhythm in which the driver samples processes, inferred from the times in the rows.
#[derive(Clone, Debug, Default)]
pub(super) struct Cadence {
    /// The newest instant.
    newest_us: Option<u64>,
    /// Distances from each instant heard to the next one heard.
    distances: VecDeque<u64>,
}

impl Cadence {
    /// Hears at which instants samples were taken, in any order.
    pub(super) fn hear(&mut self, instants: impl IntoIterator<Item = u64>) {
        let mut instants: Vec<u64> = instants.into_iter().collect();
        instants.sort_unstable();
        for at in instants {
            let Some(distance) = at.checked_sub(self.newest_us.unwrap_or(at)) else {
                continue;
            };
            self.newest_us = Some(at);
            if (1..=LONGEST_US).contains(&distance) {
                if self.distances.len() == DISTANCES {
                    self.distances.pop_front();
                }
                self.distances.push_back(distance);
            }
        }
    }

    /// The wall clock was set, so earlier instants say nothing about later ones.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }

    /// The time between two samples, where it is known.
    pub(super) fn period(&self) -> Option<Nanos> {
        self.period_ns().map(Nanos)
    }

    fn period_ns(&self) -> Option<u64> {
        let fits = |period: u64| {
            let (mut sum, mut count) = (0, 0);
            for distance in self.distances.iter().map(|us| us.saturating_mul(1_000)) {
                let times = (distance + period / 2) / period;
                if distance.abs_diff(times * period) > period / 8 {
                    return None;
                }
                sum += distance;
                count += times;
            }
            (count > 0).then(|| sum / count)
        };
        let Some(least) = self.distances.iter().min() else {
            return Some(USUAL_NS);
        };
        if self.distances.len() < ENOUGH {
            return fits(USUAL_NS);
        }
        let least = least.saturating_mul(1_000);
        (1..)
            .map(|part| least / part)
            .take_while(|&period| period >= SHORTEST_NS)
            .find_map(fits)
    }

    /// How many samples were taken after `from_us` and up to `to_us`; none as long as the beat is not
    /// known.
    pub(super) fn count(&self, from_us: u64, to_us: u64) -> Option<u64> {
        let period = i128::from(self.period_ns()?);
        let newest = i128::from(self.newest_us?);
        let index = |at_us: u64| {
            let after = i128::from(at_us) + i128::from(SLACK_US) - newest;
            (after * 1_000).div_euclid(period)
        };
        u64::try_from(index(to_us) - index(from_us)).ok()
    }

    /// Whether a sample was, or may have been, taken between two instants.
    pub(super) fn falls_within(&self, from_us: u64, to_us: u64) -> bool {
        // What is a slack after `to` counts already; a slack before `from` is to count as well.
        self.count(from_us.saturating_sub(2 * SLACK_US), to_us) > Some(0)
    }
}

/// The samples of processes that rows are means over.
#[derive(Clone, Copy, Debug)]
pub(super) struct Samples {
    /// Since the window's beginning, until the rows were asked for.
    pub(super) all: u64,
    /// Those of them after the window's end.
    pub(super) after: u64,
}

impl Samples {
    /// Those in the window; none where there are none, or where it is not known of how many there still
    /// are.
    pub(super) fn of_window(self) -> Option<u64> {
        let of_window = self.all.checked_sub(self.after)?;
        (of_window > 0 && self.all <= RING).then_some(of_window)
    }

    /// Points of a process in the window, from its percents since the window's beginning and end.
    pub(super) fn points(self, since_beginning: u32, since_end: u32) -> u64 {
        let most = self.of_window().unwrap_or_default().saturating_mul(100);
        let all = points(since_beginning, self.all);
        all.saturating_sub(points(since_end, self.after)).min(most)
    }
}

/// What a mean over so many samples most likely stands for.
fn points(percent: u32, samples: u64) -> u64 {
    let from = u64::from(percent) * samples;
    let whole = from.div_ceil(100) * 100;
    if whole < from + samples {
        whole
    } else {
        from + samples / 2
    }
}

/// Divides a window of which the device says that `busy` of `covered` was busy, or up to `hidden`
/// more, among rows of (pid, points in the window). `samples` are in the window, and `unsure` points
/// could be any row's. The first is the device's busy time.
pub(super) fn split(
    busy: Nanos,
    hidden: Nanos,
    covered: Nanos,
    samples: u64,
    rows: &[(Pid, u64)],
    unsure: u64,
) -> (Nanos, Split) {
    let in_time = |points| Nanos(scale(covered.0, points, samples.saturating_mul(100)));
    let each: Vec<u64> = rows.iter().map(|&(_, points)| points).collect();
    let claimed = in_time(each.iter().sum());
    let busy = claimed.clamp(busy, busy.plus(hidden));
    let billed = claimed.min(busy);
    let rest = busy.minus(billed);
    let below_resolution = rest.min(in_time(unsure));
    let split = Split {
        credits: credits(rows, &apportion(billed, &each)),
        below_resolution,
        no_row: rest.minus(below_resolution),
        cut: claimed.minus(billed),
    };
    (busy, split)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIXTH_US: u64 = 166_667;

    fn heard(instants: impl IntoIterator<Item = u64>) -> Cadence {
        let mut beat = Cadence::default();
        for at in instants {
            beat.hear([at]);
        }
        beat
    }

    #[test]
    fn the_beat_is_the_longest_that_all_distances_are_multiples_of() {
        let on = |period: u64, indexes: &[u64]| heard(indexes.iter().map(|i| 7_000 + i * period));
        for (what, beat, expected_us) in [
            ("nothing heard", Cadence::default(), Some(SIXTH_US)),
            ("too little", on(1_000_000, &[0, 1, 2, 3]), Some(SIXTH_US)),
            (
                "too little, and not the usual one",
                on(250_000, &[0, 1, 2, 3]),
                None,
            ),
            (
                "sixths of a second",
                on(SIXTH_US, &[0, 5, 11, 12, 18, 23, 29]),
                Some(SIXTH_US),
            ),
            (
                "a second",
                on(1_000_000, &[0, 1, 2, 4, 5, 6, 7]),
                Some(1_000_000),
            ),
            (
                "the same once a second is as good as seconds",
                on(SIXTH_US, &[0, 6, 12, 18, 24, 30, 36]),
                Some(6 * SIXTH_US),
            ),
            (
                "two and three make one",
                on(SIXTH_US, &[0, 2, 5, 7, 10, 12, 15]),
                Some(SIXTH_US),
            ),
            (
                "long pauses are left out",
                on(SIXTH_US, &[0, 5, 100, 106, 107, 200, 205, 211, 212]),
                Some(SIXTH_US),
            ),
            (
                "no beat",
                heard([0, 100_000, 250_000, 410_000, 730_000, 900_001, 1_333_333]),
                None,
            ),
        ] {
            let found = beat.period_ns().map(|ns| (ns + 500) / 1_000);
            assert_eq!(found, expected_us, "{what}");
        }
        // What an open source client logged: from 167.1 to 169.8 ms.
        let mut at = 0;
        let uneven = (0..60).map(|index| {
            at += 167_100 + index * 7_919 % 2_700;
            at
        });
        let uneven: Vec<u64> = uneven.collect();
        let beat = heard((0..10).map(|index| uneven[index * 6 - index / 2]));
        let period = beat.period_ns().unwrap();
        assert!((167_000_000..170_000_000).contains(&period), "{period}");
    }

    #[test]
    fn samples_are_counted_from_the_beat() {
        let beat = heard((0..8).map(|index| 1_000_000 + index * 200_000));
        // From, to, samples after the one and up to the other.
        for (from, to, expected) in [
            (1_000_000, 1_000_000, 0),
            (1_000_000, 1_199_000 - 1, 0),
            (1_000_000, 1_200_000, 1),
            (999_000 - 1, 1_000_000, 1),
            (2_400_000, 3_400_000, 5),
            (2_450_000, 3_450_000, 5),
            (100_000, 1_100_000, 5),
        ] {
            assert_eq!(beat.count(from, to), Some(expected), "{from} to {to}");
        }
        assert_eq!(
            beat.count(3_000_000, 2_000_000),
            None,
            "the wrong way around"
        );
        for (from, to, expected) in [
            (3_010_000, 3_020_000, false),
            (3_190_000, 3_199_500, true),
            (3_190_000, 3_210_000, true),
            (3_200_500, 3_203_000, true),
            (3_201_500, 3_203_000, false),
        ] {
            assert_eq!(beat.falls_within(from, to), expected, "{from} to {to}");
        }
        let mut beat = beat;
        beat.forget();
        assert_eq!(beat.count(1_000_000, 2_000_000), None);
        assert!(!beat.falls_within(0, u64::MAX), "not known");
    }

    #[test]
    fn rows_become_points_of_the_window() {
        // Samples since the beginning, of them since the end, percents since both, points.
        for (all, after, beginning, end, expected) in [
            (6, 0, 50, 0, 300),
            (6, 0, 16, 0, 100),
            (9, 3, 44, 66, 200),
            (9, 3, 44, 33, 300),
            (9, 3, 33, 100, 0),
            // No number of whole samples is 20 percent of six.
            (6, 0, 20, 0, 123),
            (6, 0, 100, 0, 600),
            (6, 0, 0, 0, 0),
            // Rows that contradict the beat bill nothing, and no more than there is.
            (9, 3, 11, 66, 0),
            (9, 6, 100, 0, 300),
            (3, 3, 100, 0, 0),
            (3, 4, 100, 0, 0),
        ] {
            let found = Samples { all, after }.points(beginning, end);
            assert_eq!(found, expected, "{all} {after} {beginning} {end}");
        }
    }

    #[test]
    fn a_window_is_divided_within_what_the_device_says() {
        const MS: u64 = 1_000_000;
        /// What, busy and hidden in ms of a second, rows, unsure points; busy, credits, below
        /// resolution, no row and cut, in ms.
        type Row = (
            &'static str,
            (u64, u64),
            &'static [(u32, u64)],
            u64,
            (u64, &'static [(u32, u64)], u64, u64, u64),
        );
        const TABLE: &[Row] = &[
            ("idle", (0, 10), &[], 0, (0, &[], 0, 0, 0)),
            (
                "what the figure hides",
                (660, 10),
                &[(1, 300), (2, 100)],
                12,
                (666, &[(1, 500), (2, 166)], 0, 0, 0),
            ),
            (
                "more than it can hide",
                (500, 10),
                &[(1, 300), (2, 300)],
                12,
                (510, &[(1, 255), (2, 255)], 0, 0, 490),
            ),
            (
                "less than there was",
                (500, 10),
                &[(1, 120)],
                6,
                (500, &[(1, 200)], 10, 290, 0),
            ),
            ("nobody", (500, 10), &[], 0, (500, &[], 0, 500, 0)),
        ];
        for &(what, (busy, hidden), rows, unsure, expected) in TABLE {
            let rows: Vec<_> = rows.iter().map(|&(pid, own)| (Pid(pid), own)).collect();
            let (busy, split) = split(
                Nanos(busy * MS),
                Nanos(hidden * MS),
                Nanos(1_000 * MS),
                6,
                &rows,
                unsure,
            );
            let credits: Vec<_> = split
                .credits
                .iter()
                .map(|it| (it.pid.0, it.busy.0 / MS))
                .collect();
            let found = (
                busy.0 / MS,
                credits.as_slice(),
                split.below_resolution.0 / MS,
                split.no_row.0 / MS,
                split.cut.0 / MS,
            );
            assert_eq!(found, expected, "{what}");
        }
    }

    proptest! {
        /// Whatever the driver answers, all that the device was busy is somebody's or nobody's, and
        /// its busy time is a figure that shows as its samples do.
        #[test]
        fn every_division_balances(
            busy in 0_u64..1_000_000_000,
            hidden in 0_u64..10_000_000,
            samples in 1_u64..80,
            rows in prop::collection::vec((1_u32..50, 0_u64..8_000), 0..10),
            unsure in 0_u64..200,
        ) {
            let rows: Vec<_> = rows.into_iter().map(|(pid, own)| (Pid(pid), own)).collect();
            let (found, split) = split(
                Nanos(busy), Nanos(hidden), Nanos(1_000_000_000), samples, &rows, unsure,
            );
            let credited: Nanos = split.credits.iter().map(|credit| credit.busy).sum();
            prop_assert_eq!(credited.plus(split.below_resolution).plus(split.no_row), found);
            prop_assert!((busy..=busy + hidden).contains(&found.0));
        }

        /// Where every sample is one process's or nobody's, what two rows of means say of a window is
        /// exact.
        #[test]
        fn whole_samples_are_told_exactly(
            owners in prop::collection::vec(0_usize..4, 2..14),
            cut in 1_usize..13,
        ) {
            let cut = cut.min(owners.len() - 1);
            let samples = Samples {
                all: owners.len() as u64,
                after: (owners.len() - cut) as u64,
            };
            for pid in 1..4 {
                let hits = |part: &[usize]| part.iter().filter(|&&owner| owner == pid).count();
                let mean = |part: &[usize]| u32::try_from(hits(part) * 100 / part.len()).unwrap();
                let found = samples.points(mean(&owners), mean(&owners[cut..]));
                prop_assert_eq!(found, hits(&owners[..cut]) as u64 * 100);
            }
        }
    }
}
