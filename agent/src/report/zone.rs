//! The time zone of a report: in which it is asked for, cut into hours and days, and shown.
//!
//! The ledger keeps hours of UTC, and an hour is never divided. So the zone must be whole hours off UTC
//! in all of the range. A zone that is not (India, or Lord Howe Island in its winter) is refused,
//! because its days begin within an hour of the ledger.
//!
//! Moments are shown to the second, with their offset. So the hour that occurs twice when clocks are
//! set back has two names.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use super::hour::begin_of;

/// Seconds of an hour.
const HOUR: i32 = 3_600;
/// The zone that the machine is set to.
const LOCAL: &str = "local";
/// Names of UTC, whose moments end in `Z`.
const UTC: [&str; 6] = ["UTC", "Etc/UTC", "Etc/UCT", "UCT", "Zulu", "Etc/Zulu"];

/// The hours of a zone are not those of the ledger.
#[derive(Debug, thiserror::Error)]
#[error(
    "the time zone {zone} is {offset} off UTC at {at}, and the ledger's hours are whole hours of UTC: choose a zone that is whole hours off, such as UTC"
)]
pub struct UnevenZone {
    /// Name of the zone.
    zone: String,
    /// By how much it differs from UTC.
    offset: String,
    /// When it does.
    at: String,
}

/// A time zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone(TimeZone);

impl Zone {
    /// Coordinated Universal Time.
    pub const UTC: Self = Self(TimeZone::UTC);

    /// Returns the moment of a date and a time of day. Of a time of day that occurs twice it is the
    /// first, and one that is skipped is moved on.
    ///
    /// # Errors
    /// If it is beyond the calendar.
    pub fn moment(&self, civil: DateTime) -> Result<Timestamp, jiff::Error> {
        self.0.to_timestamp(civil)
    }

    /// Writes a moment as RFC 3339, in whole seconds.
    #[must_use]
    pub fn show(&self, at: Timestamp) -> String {
        let at = Timestamp::from_second(at.as_second()).unwrap_or(at);
        if self.0 == TimeZone::UTC {
            return at.to_string();
        }
        at.display_with_offset(self.0.to_offset(at)).to_string()
    }

    /// The names of an hour, and of the day and the month that it is in: `2026-01-31T08:00:00Z`,
    /// `2026-01-31`, `2026-01`.
    #[must_use]
    pub fn names(&self, hour: i64) -> [String; 3] {
        let begin = begin_of(hour);
        let civil = self.0.to_datetime(begin);
        let month = format!("{:04}-{:02}", civil.year(), civil.month());
        [self.show(begin), civil.date().to_string(), month]
    }

    /// Checks that the zone's hours are the ledger's in all of these hours.
    ///
    /// # Errors
    /// If one of them is not.
    pub fn check(&self, hours: &Range<i64>) -> Result<(), UnevenZone> {
        let (begin, end) = (begin_of(hours.start), begin_of(hours.end));
        let changes = self.0.following(begin);
        let changes = changes.map(|change| change.timestamp());
        let mut moments = std::iter::once(begin).chain(changes.take_while(|at| *at < end));
        let uneven = moments.find(|at| self.0.to_offset(*at).seconds() % HOUR != 0);
        uneven.map_or(Ok(()), |at| {
            Err(UnevenZone {
                zone: self.to_string(),
                at: self.show(at),
                offset: self.0.to_offset(at).to_string(),
            })
        })
    }
}

impl FromStr for Zone {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let zone = match text {
            LOCAL => TimeZone::try_system()
                .ok()
                .filter(|zone| !zone.is_unknown())
                .ok_or_else(|| {
                    "the time zone of this machine is not known; set TZ, or name a zone such as \
                     \"Europe/Berlin\""
                        .to_owned()
                }),
            name => TimeZone::get(name).map_err(|_| {
                format!(
                    "found {name:?}, expected \"{LOCAL}\" or a name of the IANA time zone database, such as \
                     \"Europe/Berlin\""
                )
            }),
        }?;
        match zone.iana_name() {
            Some(name) if UTC.contains(&name) => Ok(Self::UTC),
            _ => Ok(Self(zone)),
        }
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.iana_name().unwrap_or(LOCAL))
    }
}

#[cfg(test)]
mod tests {
    use super::super::hour::hour_of;
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn zone(name: &str) -> Zone {
        name.parse().unwrap()
    }

    #[test]
    fn hours_days_and_months_are_those_of_the_zone() {
        for (name, hour, expected) in [
            (
                "UTC",
                "2026-01-31T23:10:00Z",
                ["2026-01-31T23:00:00Z", "2026-01-31", "2026-01"],
            ),
            (
                "Etc/UTC",
                "2026-01-31T23:10:00Z",
                ["2026-01-31T23:00:00Z", "2026-01-31", "2026-01"],
            ),
            (
                "Europe/Berlin",
                "2026-01-31T23:10:00Z",
                ["2026-02-01T00:00:00+01:00", "2026-02-01", "2026-02"],
            ),
            (
                "America/Los_Angeles",
                "2026-02-01T07:59:59Z",
                ["2026-01-31T23:00:00-08:00", "2026-01-31", "2026-01"],
            ),
            // The hour that occurs twice.
            (
                "Europe/Berlin",
                "2026-10-25T00:00:00Z",
                ["2026-10-25T02:00:00+02:00", "2026-10-25", "2026-10"],
            ),
            (
                "Europe/Berlin",
                "2026-10-25T01:00:00Z",
                ["2026-10-25T02:00:00+01:00", "2026-10-25", "2026-10"],
            ),
        ] {
            assert_eq!(
                zone(name).names(hour_of(at(hour))),
                expected,
                "{name} {hour}"
            );
        }
        assert_eq!(
            Zone::UTC.names(i64::MAX)[0],
            Zone::UTC.show(Timestamp::MAX),
            "beyond the calendar"
        );
    }

    #[test]
    fn moments_are_shown_in_whole_seconds() {
        let moment = at("2026-01-31T08:30:00.123456789Z");
        for (name, expected) in [
            ("UTC", "2026-01-31T08:30:00Z"),
            ("Europe/Berlin", "2026-01-31T09:30:00+01:00"),
            ("Europe/London", "2026-01-31T08:30:00+00:00"),
        ] {
            assert_eq!(zone(name).show(moment), expected);
        }
    }

    #[test]
    fn a_zone_whose_hours_are_not_the_ledgers_is_refused() {
        let hours = |since: &str, until: &str| hour_of(at(since))..hour_of(at(until));
        let winter = hours("2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z");
        // Lord Howe's clocks are half an hour back from April to October.
        let into_autumn = hours("2026-04-01T00:00:00Z", "2026-04-10T00:00:00Z");
        for (name, hours, is_even) in [
            ("UTC", &winter, true),
            ("Europe/Berlin", &winter, true),
            ("Asia/Kolkata", &winter, false),
            ("Australia/Lord_Howe", &winter, true),
            ("Australia/Lord_Howe", &into_autumn, false),
            // Before there was a common time.
            (
                "Europe/Berlin",
                &hours("1850-01-01T00:00:00Z", "2026-01-01T00:00:00Z"),
                false,
            ),
        ] {
            let found = zone(name).check(hours);
            assert_eq!(found.is_ok(), is_even, "{name} {hours:?}: {found:?}");
        }
        let error = zone("Asia/Kolkata").check(&winter).unwrap_err().to_string();
        assert!(error.contains("Asia/Kolkata is +05:30 off UTC"), "{error}");
    }

    #[test]
    fn a_zone_is_local_or_has_a_name() {
        assert_eq!(zone("Europe/Berlin").to_string(), "Europe/Berlin");
        for name in ["", "Europe/Berlln", "+02:00", "Local"] {
            let error = name.parse::<Zone>().unwrap_err();
            assert!(error.contains("IANA"), "{name}: {error}");
        }
    }
}
