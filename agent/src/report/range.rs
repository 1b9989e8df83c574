//! Which hours a report is about.
//!
//! The ledger knows hours, UTC. Both ends of what is asked for go back to the beginning of their
//! hour, so the hour in which `until` lies is left to the report that begins there: reports that
//! follow each other cover every hour once. Without `until` the present hour is in, as far as it has
//! been committed.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use crate::config::Span;

/// Seconds of an hour.
const HOUR: i64 = 3_600;

/// A moment as it is typed: a time, or how long ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// So long before now.
    Ago(SignedDuration),
    /// A point in time.
    At(Timestamp),
}

impl FromStr for Moment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(at) = text.parse() {
            return Ok(Self::At(at));
        }
        // Without an offset it is UTC, as the hours are; without a time it is midnight.
        if let Ok(at) = text.parse::<DateTime>()
            && let Ok(at) = TimeZone::UTC.to_timestamp(at)
        {
            return Ok(Self::At(at));
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
    fn resolve(self, now: Timestamp) -> Result<Timestamp, RangeError> {
        match self {
            Self::At(at) => Ok(at),
            Self::Ago(ago) => now
                .checked_sub(ago)
                .map_err(|source| RangeError::Beyond { source }),
        }
    }
}

/// Why a range cannot be reported on.
#[derive(Debug, thiserror::Error)]
pub enum RangeError {
    /// The range has no hour.
    #[error("the range is empty: it begins at the hour of {since} and ends at the hour of {until}")]
    Empty {
        /// Beginning of the range.
        since: Timestamp,
        /// End of the range.
        until: Timestamp,
    },
    /// Longer ago than there is a calendar for.
    #[error("the range begins before the earliest date that can be represented")]
    Beyond {
        /// What the calendar cannot express.
        source: jiff::Error,
    },
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
    pub fn new(since: Moment, until: Option<Moment>, now: Timestamp) -> Result<Self, RangeError> {
        let asked = Self {
            since: since.resolve(now)?,
            until: until.map(|until| until.resolve(now)).transpose()?,
        };
        let end = asked.until.map_or(hour_of(now) + 1, hour_of);
        if end <= hour_of(asked.since) {
            return Err(RangeError::Empty {
                since: asked.since,
                until: asked.until.unwrap_or(now),
            });
        }
        Ok(asked)
    }

    /// The numbers of its hours.
    #[must_use]
    pub fn hours(&self) -> Range<i64> {
        hour_of(self.since)..self.until.map_or(i64::MAX, hour_of)
    }
}

/// The number of the hour that a moment is in.
#[must_use]
pub fn hour_of(at: Timestamp) -> i64 {
    at.as_second().div_euclid(HOUR)
}

/// The beginning of an hour; the end of the calendar where it is beyond it.
#[must_use]
pub fn begin_of(hour: i64) -> Timestamp {
    hour.checked_mul(HOUR)
        .and_then(|second| Timestamp::from_second(second).ok())
        .unwrap_or(Timestamp::MAX)
}

/// An hour, the day and the month it is in, as they are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Calendar(pub i64);

impl Calendar {
    fn civil(self) -> DateTime {
        TimeZone::UTC.to_datetime(begin_of(self.0))
    }

    /// `2026-01-31`.
    #[must_use]
    pub fn day(self) -> impl fmt::Display {
        self.civil().date()
    }

    /// `2026-01`.
    #[must_use]
    pub fn month(self) -> impl fmt::Display {
        let civil = self.civil();
        format!("{:04}-{:02}", civil.year(), civil.month())
    }

    /// `2026-01-31T08:00:00Z`.
    #[must_use]
    pub fn hour(self) -> impl fmt::Display {
        begin_of(self.0)
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
            ("1 month", None),
            ("-1h", None),
            ("yesterday", None),
            ("", None),
            ("2026-02-30", None),
            ("24", None),
        ] {
            let found = typed.parse::<Moment>().ok();
            let found = found.map(|moment| moment.resolve(at(NOW)).unwrap());
            assert_eq!(found, expected.map(at), "{typed}");
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
            // In the future, and none is promised.
            ("2026-02-01", None, None),
        ] {
            let moment = |text: &str| text.parse::<Moment>().unwrap();
            let asked = Asked::new(moment(since), until.map(moment), at(NOW));
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
                Asked::new(since, Some(until), at(NOW)).unwrap().hours()
            })
            .collect();
        let whole: Vec<i64> = (hour_of(at(ends[0]))..hour_of(at(NOW))).collect();
        assert_eq!(covered, whole);
    }

    #[test]
    fn hours_have_names() {
        let hour = Calendar(hour_of(at(NOW)));
        assert_eq!(hour.hour().to_string(), "2026-01-31T08:00:00Z");
        assert_eq!(hour.day().to_string(), "2026-01-31");
        assert_eq!(hour.month().to_string(), "2026-01");
        assert_eq!(begin_of(i64::MAX), Timestamp::MAX);
        assert_eq!(hour_of(at("1969-12-31T23:59:59Z")), -1);
    }
}
