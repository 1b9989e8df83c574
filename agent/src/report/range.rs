//! Which hours a report is about.
//!
//! The ledger knows hours, UTC. Both ends of what is asked for go back to the beginning of their
//! hour, so the hour in which `until` lies is left to the report that begins there: reports that
//! follow each other cover every hour once. Without `until` the present hour is in, as far as it has
//! been committed.
//!
//! A range of which the ledger has no hour is no answer of zero, and is refused ([`Outside`]).

use std::ops::Range;
use std::str::FromStr;

use jiff::civil::DateTime;
use jiff::{SignedDuration, Timestamp, Zoned};

use crate::config::Span;

use super::hour::hour_of;
use super::zone::Zone;

/// A commit this old was not made by an agent that runs.
pub const LATE: SignedDuration = SignedDuration::from_secs(60);

/// A moment as it is typed: a time, or how long ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// So long before now.
    Ago(SignedDuration),
    /// A point in time.
    At(Timestamp),
    /// A date and a time of day in the report's zone.
    Civil(DateTime),
}

impl FromStr for Moment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(at) = text.parse() {
            return Ok(Self::At(at));
        }
        // With the name of a zone, which the next form would leave unread.
        if let Ok(zoned) = text.parse::<Zoned>() {
            return Ok(Self::At(zoned.timestamp()));
        }
        // Without a time of day it is midnight.
        if let Ok(civil) = text.parse()
            && !text.contains('[')
        {
            return Ok(Self::Civil(civil));
        }
        text.parse::<Span>()
            .ok()
            .and_then(|Span(ago)| SignedDuration::try_from(ago).ok())
            .map(Self::Ago)
            .ok_or_else(|| {
                format!(
                    "found {text:?}, expected how long ago, such as \"24h\" or \"7d\" (units ms, s, m, h, d \
                     and w), or a time, such as \"2026-01-31\" or \"2026-01-31T08:00:00Z\""
                )
            })
    }
}

impl Moment {
    fn resolve(self, zone: &Zone, now: Timestamp) -> Result<Timestamp, RangeError> {
        match self {
            Self::At(at) => Ok(at),
            Self::Ago(ago) => now.checked_sub(ago),
            Self::Civil(civil) => zone.moment(civil),
        }
        .map_err(|source| RangeError::Beyond { source })
    }
}

/// Why a range cannot be reported on. Moments are as they are shown.
#[derive(Debug, thiserror::Error)]
pub enum RangeError {
    /// The end is before the beginning.
    #[error("the range ends before it begins: --since is {since} and --until is {until}")]
    Reversed {
        /// Beginning of the range.
        since: String,
        /// End of the range.
        until: String,
    },
    /// The range has no hour.
    #[error(
        "the range is empty: a report counts whole hours, and --since ({since}) and --until ({until}) are in the same hour"
    )]
    Empty {
        /// Beginning of the range.
        since: String,
        /// End of the range.
        until: String,
    },
    /// Longer ago than there is a calendar for, or later.
    #[error("the range is beyond the dates that can be represented")]
    Beyond {
        /// What the calendar cannot express.
        source: jiff::Error,
    },
}

/// Why a ledger has no hour of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outside {
    /// The range ends before the ledger begins.
    Before,
    /// The range begins after the last commit, and is past.
    After,
    /// The range is in the future.
    Future,
}

/// The hours that are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The beginning, as asked.
    pub since: Timestamp,
    /// The end, as asked; absent for "as far as there is".
    pub until: Option<Timestamp>,
}

impl Asked {
    /// What is meant by what was typed, now.
    ///
    /// # Errors
    /// If no hour is in it.
    pub fn new(
        since: Moment,
        until: Option<Moment>,
        zone: &Zone,
        now: Timestamp,
    ) -> Result<Self, RangeError> {
        let since = since.resolve(zone, now)?;
        let until = until.map(|until| until.resolve(zone, now)).transpose()?;
        if let Some(end) = until
            && hour_of(end) <= hour_of(since)
        {
            let (is_reversed, since, until) = (end < since, zone.show(since), zone.show(end));
            return Err(match is_reversed {
                true => RangeError::Reversed { since, until },
                false => RangeError::Empty { since, until },
            });
        }
        Ok(Self { since, until })
    }

    /// The numbers of its hours.
    #[must_use]
    pub fn hours(&self) -> Range<i64> {
        hour_of(self.since)..self.until.map_or(i64::MAX, hour_of)
    }

    /// Whether a ledger has none of its hours. The ledger begins with the hour `first`, and was
    /// written last at `committed`. The hour that has just begun is in a ledger whose agent runs,
    /// although nothing has been committed in it yet.
    #[must_use]
    pub fn outside(&self, first: i64, committed: Timestamp, now: Timestamp) -> Option<Outside> {
        let hours = self.hours();
        if hours.end <= first {
            return Some(Outside::Before);
        }
        if hours.start <= hour_of(committed) {
            return None;
        }
        if hours.start > hour_of(now) {
            return Some(Outside::Future);
        }
        (now.duration_since(committed) > LATE).then_some(Outside::After)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-01-31T08:41:30Z";

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn moments_are_times_or_how_long_ago() {
        for (typed, expected) in [
            ("24h", Some("2026-01-30T08:41:30Z")),
            ("7d", Some("2026-01-24T08:41:30Z")),
            ("1w 2d", Some("2026-01-22T08:41:30Z")),
            ("90m", Some("2026-01-31T07:11:30Z")),
            ("0s", Some(NOW)),
            ("PT1H", Some("2026-01-31T07:41:30Z")),
            ("2026-01-30", Some("2026-01-30T00:00:00Z")),
            ("2026-01-30T06:30", Some("2026-01-30T06:30:00Z")),
            ("2026-01-30T06:30:00Z", Some("2026-01-30T06:30:00Z")),
            ("2026-01-30T06:30:00+02:00", Some("2026-01-30T04:30:00Z")),
            (
                "2026-01-30T06:30[Europe/Berlin]",
                Some("2026-01-30T05:30:00Z"),
            ),
            ("2026-01-30T06:30[Mars]", None),
            ("1 month", None),
            ("-1h", None),
            ("yesterday", None),
            ("", None),
            ("2026-02-30", None),
            ("24", None),
        ] {
            let found = typed.parse::<Moment>().ok();
            let found = found.map(|moment| moment.resolve(&Zone::UTC, at(NOW)).unwrap());
            assert_eq!(found, expected.map(at), "{typed}");
        }
    }

    #[test]
    fn dates_and_times_of_day_are_those_of_the_zone() {
        let berlin: Zone = "Europe/Berlin".parse().unwrap();
        for (typed, expected) in [
            ("2026-02-01", "2026-01-31T23:00:00Z"),
            ("2026-07-01T06:30", "2026-07-01T04:30:00Z"),
            ("2026-07-01T06:30:00Z", "2026-07-01T06:30:00Z"),
            ("1h", "2026-01-31T07:41:30Z"),
            // It occurs twice, and not at all.
            ("2026-10-25T02:30", "2026-10-25T00:30:00Z"),
            ("2026-03-29T02:30", "2026-03-29T01:30:00Z"),
        ] {
            let moment: Moment = typed.parse().unwrap();
            let found = moment.resolve(&berlin, at(NOW)).unwrap();
            assert_eq!(found, at(expected), "{typed}");
        }
    }

    #[test]
    fn both_ends_go_back_to_the_beginning_of_their_hour() {
        let hour = |text| hour_of(at(text));
        for (since, until, expected) in [
            ("24h", None, Some((hour("2026-01-30T08:00:00Z"), i64::MAX))),
            ("0s", None, Some((hour(NOW), i64::MAX))),
            (
                "2026-01-30T08:10:00Z",
                Some("2026-01-30T10:50:00Z"),
                Some((hour("2026-01-30T08:00:00Z"), hour("2026-01-30T10:00:00Z"))),
            ),
            ("2h", Some("1h"), Some((hour(NOW) - 2, hour(NOW) - 1))),
            // Both in one hour.
            ("10m", Some("1m"), None),
            ("2026-01-30", Some("2026-01-30"), None),
            ("1h", Some("2h"), None),
            // In the future: the ledger says what it has.
            (
                "2026-02-01",
                None,
                Some((hour("2026-02-01T00:00:00Z"), i64::MAX)),
            ),
        ] {
            let moment = |text: &str| text.parse::<Moment>().unwrap();
            let asked = Asked::new(moment(since), until.map(moment), &Zone::UTC, at(NOW));
            let found = asked.ok().map(|asked| asked.hours());
            let expected = expected.map(|(first, end)| first..end);
            assert_eq!(found, expected, "{since} to {until:?}");
        }
    }

    #[test]
    fn reports_that_follow_each_other_cover_every_hour_once() {
        let ends = [
            "2026-01-30T00:10:00Z",
            "2026-01-30T05:59:59Z",
            "2026-01-30T06:00:00Z",
            NOW,
        ];
        let covered: Vec<i64> = ends
            .windows(2)
            .flat_map(|pair| {
                let [since, until] = [pair[0], pair[1]].map(|end| Moment::At(at(end)));
                let asked = Asked::new(since, Some(until), &Zone::UTC, at(NOW));
                asked.unwrap().hours()
            })
            .collect();
        let whole: Vec<i64> = (hour_of(at(ends[0]))..hour_of(at(NOW))).collect();
        assert_eq!(covered, whole);
    }

    #[test]
    fn an_end_before_the_beginning_is_not_explained_by_hours() {
        for (since, until, expected) in [
            (
                "2026-01-30",
                "2026-01-29",
                "the range ends before it begins: --since is 2026-01-30T00:00:00Z and --until is \
                 2026-01-29T00:00:00Z",
            ),
            (
                "2026-01-30T06:30",
                "2026-01-30T06:10",
                "ends before it begins",
            ),
            ("1h", "2h", "ends before it begins"),
            (
                "2026-01-30T06:10",
                "2026-01-30T06:30",
                "are in the same hour",
            ),
            ("2026-01-30", "2026-01-30", "the range is empty"),
        ] {
            let [since, until] = [since, until].map(|text| text.parse().unwrap());
            let error = Asked::new(since, Some(until), &Zone::UTC, at(NOW)).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        }
    }

    #[test]
    fn a_range_of_which_the_ledger_has_no_hour_is_outside() {
        let first = hour_of(at("2026-01-20T05:00:00Z"));
        let running = "2026-01-31T08:41:29Z";
        let stopped = "2026-01-29T12:30:00Z";
        for (committed, since, until, expected) in [
            (
                running,
                "2025-01-01",
                Some("2025-02-01"),
                Some(Outside::Before),
            ),
            (
                running,
                "2025-01-01",
                Some("2026-01-20T05:00"),
                Some(Outside::Before),
            ),
            (running, "2025-01-01", Some("2026-01-20T06:00"), None),
            (running, "2025-01-01", None, None),
            (running, "24h", None, None),
            (running, "0s", None, None),
            (running, "2026-01-31T08:00", Some("2026-03-01"), None),
            (
                running,
                "2026-01-31T09:00",
                Some("2026-03-01"),
                Some(Outside::Future),
            ),
            (running, "2027-01-01", None, Some(Outside::Future)),
            (stopped, "24h", None, Some(Outside::After)),
            (stopped, "2026-01-29T12:00", None, None),
            (
                stopped,
                "2026-01-29T13:00",
                Some("2026-01-30"),
                Some(Outside::After),
            ),
            (
                stopped,
                "2027-01-01",
                Some("2028-01-01"),
                Some(Outside::Future),
            ),
        ] {
            let moment = |text: &str| text.parse::<Moment>().unwrap();
            let asked = Asked::new(moment(since), until.map(moment), &Zone::UTC, at(NOW)).unwrap();
            let found = asked.outside(first, at(committed), at(NOW));
            assert_eq!(found, expected, "{since} to {until:?}, {committed}");
        }
        // The hour began a second ago, and the next commit is on its way.
        let now = at("2026-01-31T09:00:01Z");
        let asked = Asked::new(Moment::At(now), None, &Zone::UTC, now).unwrap();
        assert_eq!(asked.outside(first, at("2026-01-31T08:59:59Z"), now), None);
    }
}
