//! Into which windows a report's hours are cut.
//!
//! A store is asked for the growth of a counter in each window. The fewer windows, the less there is to
//! send, to read and to keep: a day has 24 times less than its hours. So a window is an hour where the
//! report groups by hour or is short, and otherwise a day of the report's zone. A window ends where the
//! range does.
//!
//! Growth is the same by the hour and by the day ([`crate::report::growth`]): a day in which a counter does not
//! simply grow is read by the hour. Differences between counters, such as imbalances, are computed per window,
//! so opposite differences within a day cancel each other.

use std::collections::VecDeque;
use std::ops::Range;

use super::span::{HOUR, Span, WARM_UP};
use crate::report::tally::{Dimension, Question};

/// The longest range, in hours, that is always read by the hour. It must be at least the longest range for which
/// [`crate::report::tally::Timeline`] shows hours.
const SHORT: i64 = 72;
/// Hours that one query asks for at most.
pub(super) const MOST_HOURS: i64 = 96;
/// Seconds of a day.
const DAY: i64 = 24 * HOUR;
/// Windows that one query asks for at most.
const MOST_WINDOWS: i64 = 24;

/// The windows of a report, in order, the ones before its range included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Windows(Vec<Range<i64>>);

/// Windows of one length that one query asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// When the first window ends, in seconds.
    pub(super) first_end: i64,
    /// The length of each, in seconds.
    pub(super) window: i64,
    /// How many there are; each begins where the one before it ends.
    pub(super) count: i64,
}

/// The windows that are still to be read.
#[derive(Debug)]
pub(super) struct Plan {
    windows: VecDeque<Range<i64>>,
    most_hours: i64,
}

impl Windows {
    /// The windows for a question.
    pub(super) fn of(span: &Span, question: &Question) -> Self {
        let hours = span.hours.start..span.whole();
        let by_hour = question.by.contains(&Dimension::Hour);
        if by_hour || span.hours.end - span.hours.start <= SHORT {
            return Self::hours(span);
        }
        let before = hours.start - WARM_UP..hours.start;
        let mut windows = Vec::from([before]);
        let mut day = None;
        for hour in hours {
            let [_, name, _] = question.zone.names(hour);
            match windows.last_mut() {
                Some(window) if day.as_ref() == Some(&name) => window.end = hour + 1,
                _ => windows.push(hour..hour + 1),
            }
            day = Some(name);
        }
        Self(windows)
    }

    /// Every hour by itself.
    pub(super) fn hours(span: &Span) -> Self {
        let hours = span.hours.start - WARM_UP..span.whole();
        Self(hours.map(|hour| hour..hour + 1).collect())
    }

    /// The last hour of the window that an hour is in: under it stands what is in the window. An hour in no
    /// window stands for itself, such as the one that has not ended.
    pub(super) fn last_hour(&self, hour: i64) -> i64 {
        let at = self.0.partition_point(|window| window.end <= hour);
        let window = self.0.get(at).filter(|window| window.contains(&hour));
        window.map_or(hour, |window| window.end - 1)
    }

    /// All of them, of which one query asks for so many hours at most.
    pub(super) fn plan(&self, most_hours: i64) -> Plan {
        Plan {
            windows: self.0.iter().cloned().collect(),
            most_hours,
        }
    }
}

impl Run {
    /// The part of the present hour that has passed.
    pub(super) fn of_part(span: &Span) -> Option<Self> {
        let whole = span.whole();
        let window = span.end - whole * HOUR;
        (whole < span.hours.end && window > 0).then_some(Self {
            first_end: span.end,
            window,
            count: 1,
        })
    }

    /// How far apart the windows' ends are, in seconds, or what divides the end of a single one: Thanos moves
    /// times that are no multiple of it.
    pub(super) fn step(&self) -> i64 {
        match self.count {
            1 if self.first_end % HOUR == 0 => HOUR,
            1 => 1,
            _ => self.window,
        }
    }

    /// Whether it is more than a day.
    pub(super) fn is_long(&self) -> bool {
        self.window * self.count > DAY
    }

    /// When the last window ends, in seconds.
    pub(super) fn last_end(&self) -> i64 {
        self.first_end + (self.count - 1) * self.window
    }
}

/// The hour that ends at a time, or the part of it that has passed then.
pub(super) fn hour_ending(at_s: i64) -> i64 {
    (at_s - 1).div_euclid(HOUR)
}

fn length(window: &Range<i64>) -> i64 {
    window.end - window.start
}

impl Plan {
    /// Hours, each a window.
    pub(super) fn of_hours(hours: Range<i64>) -> Self {
        Self {
            windows: hours.map(|hour| hour..hour + 1).collect(),
            most_hours: MOST_HOURS,
        }
    }

    /// Hours that one query asks for at most.
    pub(super) fn most_hours(&self) -> i64 {
        self.most_hours
    }

    /// Takes the next windows that are read together.
    pub(super) fn next(&mut self) -> Option<Run> {
        let first = self.windows.front()?;
        let hours = length(first);
        // Windows that do not end at a multiple of their length are asked for one at a time: see `Run::step`.
        let most = match first.end % hours {
            0 => (self.most_hours / hours).clamp(1, MOST_WINDOWS),
            _ => 1,
        };
        let same = self
            .windows
            .iter()
            .take_while(|window| length(window) == hours);
        let count = same.take(usize::try_from(most).unwrap_or(1)).count();
        let first = self.windows.drain(..count).next()?;
        Some(Run {
            first_end: first.end * HOUR,
            window: hours * HOUR,
            count: i64::try_from(count).unwrap_or(1),
        })
    }

    /// Puts back windows that are too much for one query, so that fewer are read together from now on. A day
    /// that is too much is read by the hour, with all that follow. False if they cannot be fewer.
    pub(super) fn put_back(&mut self, run: Run) -> bool {
        let hours = run.window / HOUR;
        let first = run.first_end / HOUR - hours;
        let windows = (0..run.count).map(|at| first + at * hours..first + (at + 1) * hours);
        for window in windows.rev() {
            self.windows.push_front(window);
        }
        if run.count > 1 {
            self.most_hours = run.count / 2 * hours;
        } else if hours > 1 {
            let windows = std::mem::take(&mut self.windows);
            let each = windows.into_iter().flatten();
            self.windows = each.map(|hour| hour..hour + 1).collect();
        } else {
            return false;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::hour::hour_of;
    use crate::report::range::Asked;
    use crate::report::tally::Filter;
    use crate::report::zone::Zone;

    fn hour(text: &str) -> i64 {
        hour_of(text.parse().unwrap())
    }

    /// Windows of a report, without those before its range.
    fn windows(since: &str, until: &str, zone: &Zone, by: Dimension) -> (Span, Vec<Range<i64>>) {
        let hours = hour(since)..hour(until);
        let span = Span {
            end: hours.end * HOUR,
            hours: hours.clone(),
        };
        let question = Question {
            asked: Asked {
                since: since.parse().unwrap(),
                until: Some(until.parse().unwrap()),
            },
            zone: zone.clone(),
            by: vec![by],
            filter: Filter::default(),
            prices: None,
            timeline: true,
        };
        let Windows(all) = Windows::of(&span, &question);
        let before: i64 = all
            .iter()
            .filter(|window| window.end <= hours.start)
            .map(length)
            .sum();
        assert_eq!(before, WARM_UP);
        let own = all.into_iter().filter(|window| window.start >= hours.start);
        (span, own.collect())
    }

    #[test]
    fn windows_are_the_days_of_the_zone_and_end_where_the_range_does() {
        let berlin: Zone = "Europe/Berlin".parse().unwrap();
        // In the night to the 25th clocks are set back.
        let (_, days) = windows(
            "2026-10-22T14:00:00Z",
            "2026-10-27T05:00:00Z",
            &berlin,
            Dimension::Namespace,
        );
        let lengths: Vec<i64> = days.iter().map(length).collect();
        assert_eq!(lengths, [8, 24, 24, 25, 24, 6]);
        assert_eq!(days[1].start, hour("2026-10-22T22:00:00Z"));
        assert!(days.windows(2).all(|two| two[0].end == two[1].start));
    }

    #[test]
    fn hours_that_are_told_apart_are_read_by_the_hour() {
        for (until, by) in [
            ("2026-01-31T00:00:00Z", Dimension::Hour),
            ("2026-01-03T00:00:00Z", Dimension::Namespace),
        ] {
            let (span, hours) = windows("2026-01-01T00:00:00Z", until, &Zone::UTC, by);
            let each: Vec<_> = span.hours.map(|hour| hour..hour + 1).collect();
            assert_eq!(hours, each);
        }
    }

    #[test]
    fn what_is_in_a_window_stands_under_its_last_hour() {
        let windows = Windows(vec![0..24, 24..30, 30..31]);
        let found = [-1, 0, 23, 24, 29, 30, 31].map(|hour| windows.last_hour(hour));
        assert_eq!(found, [-1, 23, 23, 29, 29, 30, 31]);
    }

    #[test]
    fn thanos_moved_times_that_are_no_multiple_of_the_step() {
        // Days of Berlin in winter.
        let mut plan = Windows(vec![-1..23, 23..47, 47..71, 71..72, 72..73]).plan(MOST_HOURS);
        let mut steps = Vec::new();
        while let Some(run) = plan.next() {
            assert_eq!(run.first_end % run.step(), 0, "{run:?}");
            steps.push((run.count, run.step() / HOUR));
        }
        assert_eq!(steps, [(1, 1), (1, 1), (1, 1), (2, 1)]);
        let part = Run {
            first_end: 72 * HOUR + 61,
            window: 61,
            count: 1,
        };
        assert_eq!(part.step(), 1);
    }

    #[test]
    fn a_query_has_windows_of_one_length_and_fewer_after_one_that_was_too_much() {
        let mut plan =
            Windows(vec![16..24, 24..48, 48..72, 72..96, 96..120, 120..144]).plan(MOST_HOURS);
        let run = |first_end: i64, hours: i64, count| {
            Some(Run {
                first_end: first_end * HOUR,
                window: hours * HOUR,
                count,
            })
        };
        assert_eq!(plan.next(), run(24, 8, 1));
        let four = plan.next();
        assert_eq!(four, run(48, 24, 4));
        assert!(plan.put_back(four.unwrap()));
        assert_eq!(plan.next(), run(48, 24, 2));
        let two = plan.next();
        assert_eq!(two, run(96, 24, 2));
        assert!(plan.put_back(two.unwrap()));
        let one = plan.next();
        assert_eq!(one, run(96, 24, 1));
        // By the hour from here on.
        assert!(plan.put_back(one.unwrap()));
        let mut hours = Vec::new();
        let mut smallest = None;
        while let Some(run) = plan.next() {
            assert_eq!(run.window, HOUR);
            hours.extend((0..run.count).map(|at| run.first_end / HOUR + at));
            smallest = Some(Run { count: 1, ..run });
        }
        assert_eq!(hours, (73..=144).collect::<Vec<_>>());
        assert!(!plan.put_back(smallest.unwrap()));
    }
}
