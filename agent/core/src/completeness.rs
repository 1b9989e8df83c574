//! For which time every event of the kernel is known to have been received.
//!
//! A pid may have been taken by a process whose events were lost. Code that concludes something
//! from the absence of an event checks this first.

use crate::model::BootTime;

/// An interval of which every kernel event has been received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completeness {
    /// Beginning: the time at which the last loss was noticed, or the kernel source came up.
    pub since: BootTime,
    /// Its end: the event stream has been drained up to here.
    pub through: BootTime,
}

impl Completeness {
    /// Nothing is known to be complete.
    pub const NONE: Self = Self {
        since: BootTime::MAX,
        through: BootTime(0),
    };

    /// Whether every event of `(from, to]` has been received.
    #[must_use]
    pub fn covers(self, from: BootTime, to: BootTime) -> bool {
        self.since <= from && to <= self.through
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stretch_is_covered_if_it_is_within() {
        let complete = Completeness {
            since: BootTime(10),
            through: BootTime(20),
        };
        let rows = [
            (10, 20, true),
            (12, 12, true),
            (9, 12, false),
            (12, 21, false),
        ];
        for (from, to, covered) in rows {
            let found = complete.covers(BootTime(from), BootTime(to));
            assert_eq!(found, covered, "({from}, {to}]");
        }
        assert!(!Completeness::NONE.covers(BootTime(1), BootTime(1)));
    }
}
