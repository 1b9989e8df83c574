//! How far a store is read for a report.

use std::ops::Range;

/// Seconds of an hour.
pub(super) const HOUR: i64 = 3_600;
/// Hours before the range that are read like those in it, so that its first hour knows what went before.
pub(super) const WARM_UP: i64 = 24;
/// How far before that the last value of a counter is looked for, in hours: seven days in all.
pub(super) const LOOK_BACK: i64 = 6 * 24;

/// What the store is asked for: whole hours, and the part of one more that has passed.
#[derive(Clone, Debug)]
pub(super) struct Span {
    /// The hours that are billed, the one that has not ended among them.
    pub(super) hours: Range<i64>,
    /// The time up to which there can be samples, in seconds.
    pub(super) end: i64,
}

impl Span {
    /// The first second that is billed.
    pub(super) fn since(&self) -> i64 {
        self.hours.start * HOUR
    }

    /// The first second that is read.
    pub(super) fn first(&self) -> i64 {
        (self.hours.start - WARM_UP - LOOK_BACK) * HOUR
    }

    /// The hour after the last one that has ended.
    pub(super) fn whole(&self) -> i64 {
        self.hours.end.min(self.end.div_euclid(HOUR))
    }
}
