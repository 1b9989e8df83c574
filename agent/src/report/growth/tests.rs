//! Tests of `growth`.

use proptest::prelude::*;

use super::*;

const HOUR: i64 = 3_600_000;

/// The samples of hours. Windows are open on the left: a sample at the very hour belongs to the hour before.
fn within(samples: &[Sample], hours: &Range<i64>) -> Vec<Sample> {
    let is_in = |at: i64| at > hours.start * HOUR && at <= hours.end * HOUR;
    let samples = samples.iter().filter(|sample| is_in(sample.at_ms));
    samples.copied().collect()
}

/// What a store has of these samples.
fn seen_of(samples: &[Sample]) -> Vec<Seen> {
    let mut seen: Vec<Seen> = Vec::new();
    let mut last: HashMap<usize, u128> = HashMap::new();
    for sample in samples {
        let before = last.insert(sample.series, sample.value);
        let fell = before.is_some_and(|before| before > sample.value);
        match seen.iter_mut().find(|seen| seen.series == sample.series) {
            Some(seen) => {
                seen.least = seen.least.min(sample.value);
                seen.most = seen.most.max(sample.value);
                seen.fell |= fell;
            }
            None => seen.push(Seen {
                series: sample.series,
                least: sample.value,
                most: sample.value,
                fell,
            }),
        }
    }
    seen
}

/// Growth of the hours `hours`, read as a store would be: by least and greatest value where these say all.
fn hours_of(counter: &mut Counter, samples: &[Sample], hours: Range<i64>) -> Vec<u128> {
    hours
        .map(|hour| {
            let of_it = within(samples, &(hour..hour + 1));
            let seen = seen_of(&of_it);
            if seen.is_empty() {
                0
            } else if counter.is_plain(&seen) {
                counter.hour(hour, &seen)
            } else {
                counter.samples(hour, of_it)
            }
        })
        .collect()
}

/// Windows that follow each other, of these lengths in turns.
fn windows(hours: &Range<i64>, lengths: &[i64]) -> Vec<Range<i64>> {
    let mut windows = Vec::new();
    let mut begin = hours.start;
    for length in lengths.iter().cycle() {
        if begin >= hours.end {
            break;
        }
        let end = hours.end.min(begin + length);
        windows.push(begin..end);
        begin = end;
    }
    windows
}

/// Growth of windows, read by the hour where they are not settled.
fn windows_of(samples: &[Sample], windows: Vec<Range<i64>>) -> Vec<u128> {
    let mut counter = Counter::default();
    windows
        .into_iter()
        .map(|window| {
            let seen = seen_of(&within(samples, &window));
            let is_hour = window.end - window.start == 1;
            if seen.is_empty() {
                return 0;
            }
            if is_hour && counter.is_plain(&seen) {
                return counter.hour(window.start, &seen);
            }
            if !is_hour && counter.is_settled(&seen) {
                return counter.hours(window, &seen);
            }
            if let Some(whole) = counter.whole() {
                let most = |hour| {
                    let seen = seen_of(&within(samples, &(hour..hour + 1)));
                    Some((hour, seen.iter().map(|seen| seen.most).max()?))
                };
                let mut active: Vec<(i64, u128)> = whole.filter_map(most).collect();
                let (last, _) = active.pop().unwrap();
                counter.ended_with(last, active.iter().map(|(_, most)| *most).max());
            }
            hours_of(&mut counter, samples, window).into_iter().sum()
        })
        .collect()
}

fn grown(samples: &[Sample], hours: Range<i64>) -> u128 {
    hours_of(&mut Counter::default(), samples, hours)
        .iter()
        .sum()
}

fn series(number: usize, points: &[(i64, u128)]) -> Vec<Sample> {
    let sample = |&(at_s, value): &(i64, u128)| Sample {
        at_ms: at_s * 1000,
        value,
        series: number,
    };
    points.iter().map(sample).collect()
}

#[test]
fn a_job_over_the_hour_is_counted_once_and_whole() {
    let samples = series(0, &[(3_560, 0), (3_590, 5), (3_605, 12), (7_190, 12)]);
    assert_eq!(hours_of(&mut Counter::default(), &samples, 0..2), [5, 7]);
}

#[test]
fn a_sample_at_the_hour_belongs_to_the_hour_before_also_where_windows_are_closed() {
    let samples = series(0, &[(3_000, 1), (3_600, 7), (3_601, 9)]);
    assert_eq!(hours_of(&mut Counter::default(), &samples, 0..2), [6, 2]);
    // A closed window has the sample at its beginning once more.
    let mut counter = Counter::default();
    let seen = |least, most| Seen {
        series: 0,
        least,
        most,
        fell: false,
    };
    assert_eq!(counter.hour(0, &[seen(1, 7)]), 6);
    assert_eq!(counter.hour(1, &[seen(7, 9)]), 2);
}

#[test]
fn what_stood_before_the_first_value_is_not_counted() {
    assert_eq!(grown(&series(0, &[(10, 5_000), (20, 5_007)]), 0..1), 7);
}

#[test]
fn both_sides_of_a_fall_count() {
    // Within an hour, over the hour, twice within one, and where it grows beyond its old value.
    for (points, expected) in [
        (&[(10, 0), (20, 90), (30, 3), (40, 20)][..], 110),
        (&[(10, 0), (3_599, 90), (3_700, 3), (3_800, 20)], 110),
        (&[(10, 0), (20, 9), (30, 2), (40, 8), (50, 1)], 18),
        (&[(10, 0), (20, 10), (30, 3), (40, 20)], 30),
    ] {
        assert_eq!(grown(&series(0, points), 0..2), expected, "{points:?}");
    }
}

#[test]
fn a_replaced_target_goes_on_where_the_counter_was() {
    let mut samples = series(0, &[(10, 100), (1_000, 150)]);
    samples.extend(series(1, &[(1_100, 160), (3_700, 190)]));
    assert_eq!(grown(&samples, 0..2), 90);
}

#[test]
fn a_replaced_target_that_lost_its_ledger_begins_at_nothing() {
    let mut samples = series(0, &[(10, 100), (1_000, 150)]);
    samples.extend(series(1, &[(1_100, 0), (3_700, 30)]));
    assert_eq!(grown(&samples, 0..2), 80);
}

#[test]
fn a_pair_that_sees_the_same_fall_counts_it_once() {
    let mut samples = series(0, &[(10, 100), (1_000, 150), (1_100, 1), (1_200, 20)]);
    samples.extend(series(
        1,
        &[(15, 101), (1_005, 152), (1_105, 2), (1_195, 19)],
    ));
    assert_eq!(grown(&samples, 0..1), 72);
}

#[test]
fn a_second_stream_that_lags_is_not_a_fall() {
    let mut samples = series(
        0,
        &[(10, 0), (3_590, 3_500), (3_610, 3_520), (7_190, 7_000)],
    );
    samples.extend(series(1, &[(3_615, 3_499), (7_195, 7_010)]));
    assert_eq!(grown(&samples, 0..2), 7_010);
}

#[test]
fn one_of_a_pair_that_missed_a_fall_is_not_lost_for_good() {
    let mut samples = series(0, &[(10, 0), (20, 40), (30, 0), (3_700, 60), (7_300, 70)]);
    // The other one was down and comes back above its last value.
    samples.extend(series(
        1,
        &[
            (12, 10),
            (7_310, 71),
            (10_900, 80),
            (14_500, 100),
            (18_100, 130),
        ],
    ));
    let found = grown(&samples, 0..6);
    let truth = 40 + 130;
    assert!(found <= truth, "{found}");
    assert!(found >= truth - 20, "{found}");
}

/// By the hour, and by windows of so many hours.
fn both_ways(samples: &[Sample], hours: Range<i64>, length: i64) -> [u128; 2] {
    let windows = windows(&hours, &[length]);
    [
        grown(samples, hours),
        windows_of(samples, windows).iter().sum(),
    ]
}

#[test]
fn a_value_of_an_earlier_life_made_a_second_stream_a_fall() {
    let mut samples = series(0, &[(2_032, 716), (2_805, 62), (6_937, 2_736)]);
    samples.extend(series(2, &[(12_583, 621)]));
    assert_eq!(both_ways(&samples, 0..4, 2), [2_736, 2_736]);
}

#[test]
fn a_day_that_ended_without_samples_made_a_fall_a_second_stream() {
    // Up from 18:00 to 22:30, and again from 00:30 on, as another series that begins anew.
    let points = |from: i64, to: i64, first: u128| -> Vec<(i64, u128)> {
        let times = (from..to).step_by(600);
        times.zip((first..).step_by(600)).collect()
    };
    let mut samples = series(0, &points(18 * 3_600, 81_000, 10));
    samples.extend(series(1, &points(88_200, 48 * 3_600, 12)));
    let [by_hour, by_day] = both_ways(&samples, 0..48, 24);
    assert_eq!(by_hour, by_day);
    assert_eq!(
        by_hour,
        81_000 - 600 - 18 * 3_600 + (48 * 3_600 - 600 - 88_200) + 12
    );
}

#[test]
fn a_pair_that_was_silent_was_known_from_the_wrong_one_of_its_values() {
    let mut counters = [Counter::default(), Counter::default()];
    let mut samples = series(1, &[(100, 95), (3_500, 100)]);
    samples.extend(series(0, &[(4_000, 105), (7_000, 111)]));
    samples.extend(series(1, &[(4_000, 105), (7_000, 111)]));
    samples.sort_unstable();
    for counter in &mut counters {
        counter.seed(0, 100);
        counter.seed(1, 90);
    }
    let by_hour: u128 = hours_of(&mut counters[0], &samples, 0..2).iter().sum();
    let seen = seen_of(&samples);
    assert!(!counters[1].is_settled(&seen));
    assert_eq!(by_hour, 21);
}

/// A counter with its lives: each sample has the life that it is of.
fn truth(union: &[(i64, usize, u128, u32)]) -> u128 {
    let mut union = union.to_vec();
    union.sort_unstable();
    let mut sum = 0;
    let mut at: Option<(u32, u128)> = None;
    for (_, _, value, life) in union {
        sum += match at {
            None => 0,
            Some((before, high)) if before == life => value - high,
            Some(_) => value,
        };
        at = Some((life, value));
    }
    sum
}

prop_compose! {
    /// Steps of a counter: seconds, what it grows, and whether it begins anew before.
    fn steps()(steps in prop::collection::vec((1_i64..2_000, 0_u128..400, prop::bool::weighted(0.05), 0_u8..8), 2..120))
        -> Vec<(i64, u128, bool, u8)> { steps }
}

/// What is scraped of it: which of two servers scrape at a step is in the lowest bits of its last part.
fn scraped(steps: &[(i64, u128, bool, u8)], pair: bool) -> Vec<(i64, usize, u128, u32)> {
    let (mut at, mut value, mut life) = (0, 0_u128, 0);
    let mut union = Vec::new();
    for (wait, grows, anew, who) in steps {
        at += wait;
        if *anew {
            (value, life) = (0, life + 1);
        }
        value += grows;
        match (pair, who) {
            (_, 0) => {}
            (false, _) => union.push((at * 1000, 0, value, life)),
            (true, 1..=3) => union.push((at * 1000, 0, value, life)),
            (true, 4..=5) => union.push((at * 1000, 1, value, life)),
            (true, _) => union.extend([0, 1].map(|who| (at * 1000, who, value, life))),
        }
    }
    union
}

fn samples_of(union: &[(i64, usize, u128, u32)]) -> Vec<Sample> {
    let sample = |&(at_ms, series, value, _): &(i64, usize, u128, u32)| Sample {
        at_ms,
        value,
        series,
    };
    union.iter().map(sample).collect()
}

proptest! {
    #[test]
    fn one_series_grows_by_what_its_samples_show(steps in steps(), cut in 1_i64..60) {
        let union = scraped(&steps, false);
        let samples = samples_of(&union);
        // By samples alone a fall to a greater value cannot be seen.
        let shown: u128 = samples
            .windows(2)
            .map(|two| two[1].value.checked_sub(two[0].value).unwrap_or(two[1].value))
            .sum();
        let hours = 0..70;
        prop_assert_eq!(grown(&samples, hours.clone()), shown);
        // A report that begins later knows the value before it, and together they are the same.
        let first = grown(&samples, 0..cut);
        let before = samples.iter().rfind(|sample| sample.at_ms <= cut * HOUR);
        let mut later = Counter::default();
        if let Some(before) = before {
            later.seed(before.series, before.value);
        }
        let second: u128 = hours_of(&mut later, &samples, cut..70).iter().sum();
        prop_assert_eq!(first + second, shown);
    }

    #[test]
    fn a_pair_never_counts_more_than_there_was(steps in steps()) {
        let union = scraped(&steps, true);
        prop_assert!(grown(&samples_of(&union), 0..70) <= truth(&union));
    }

    #[test]
    fn a_pair_without_falls_counts_all_of_it(steps in steps()) {
        let steps: Vec<_> = steps.into_iter().map(|(at, grows, _, who)| (at, grows, false, who)).collect();
        let union = scraped(&steps, true);
        prop_assert_eq!(grown(&samples_of(&union), 0..70), truth(&union));
    }

    #[test]
    fn a_pair_that_misses_nothing_counts_both_sides_of_a_fall(steps in steps()) {
        // Both scrape at every step, and what comes after a fall is below what was before it.
        let mut value = 0;
        let steps: Vec<_> = steps
            .into_iter()
            .map(|(at, grows, anew, _)| {
                let anew = anew && value > 400;
                value = if anew { grows } else { value + grows };
                (at, grows, anew, 7)
            })
            .collect();
        let union = scraped(&steps, true);
        prop_assert_eq!(grown(&samples_of(&union), 0..70), truth(&union));
    }

    #[test]
    fn replaced_targets_count_like_one(steps in steps(), each in 1_usize..20) {
        let steps: Vec<_> = steps.into_iter().map(|(at, grows, _, who)| (at, grows, false, who)).collect();
        let mut union = scraped(&steps, false);
        let one = grown(&samples_of(&union), 0..70);
        for (at, sample) in union.iter_mut().enumerate() {
            sample.1 = at / each;
        }
        prop_assert_eq!(grown(&samples_of(&union), 0..70), one);
    }

    #[test]
    fn windows_of_any_length_grow_by_what_their_hours_do(
        steps in steps(), pair in any::<bool>(), each in prop::option::of(1_usize..40),
        lengths in prop::collection::vec(1_i64..30, 1..4)
    ) {
        let mut union = scraped(&steps, pair);
        if let Some(each) = each {
            // Targets are replaced, so that a counter goes on in another series or begins anew there.
            for (at, sample) in union.iter_mut().enumerate() {
                sample.1 += 2 * (at / each);
            }
        }
        let samples = samples_of(&union);
        let by_hour = hours_of(&mut Counter::default(), &samples, 0..60);
        let windows = windows(&(0..60), &lengths);
        let sums = windows.iter().map(|window| {
            let [first, end] = [window.start, window.end].map(|hour| usize::try_from(hour).unwrap());
            by_hour[first..end].iter().sum()
        });
        let expected: Vec<u128> = sums.collect();
        prop_assert_eq!(windows_of(&samples, windows), expected);
    }
}
