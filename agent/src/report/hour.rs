//! The ledger's hours, which count from the Unix epoch, and moments.

use jiff::Timestamp;

use crate::core::model::WallTime;

/// Seconds of an hour.
const HOUR: i64 = 3_600;

/// The number of the hour that a moment is in.
#[must_use]
pub fn hour_of(at: Timestamp) -> i64 {
    at.as_second().div_euclid(HOUR)
}

/// A time of the ledger. 64 bits of nanoseconds end in 2554, the calendar in 9999.
#[must_use]
pub fn moment_of(at: WallTime) -> Timestamp {
    Timestamp::from_nanosecond(at.0.into()).unwrap_or(Timestamp::MAX)
}

/// The beginning of an hour; the end of the calendar where it is beyond it.
#[must_use]
pub fn begin_of(hour: i64) -> Timestamp {
    hour.checked_mul(HOUR)
        .and_then(|second| Timestamp::from_second(second).ok())
        .unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hours_begin_where_the_calendar_has_them() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        assert_eq!(
            begin_of(hour_of(at("2026-01-31T08:41:30Z"))),
            at("2026-01-31T08:00:00Z")
        );
        assert_eq!(begin_of(i64::MAX), Timestamp::MAX);
        assert_eq!(hour_of(at("1969-12-31T23:59:59Z")), -1);
        assert_eq!(moment_of(WallTime(u64::MAX)).as_second(), 18_446_744_073);
    }
}
