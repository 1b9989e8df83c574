//! The two clocks, read together: the only place below `sources` where time is asked for.
//!
//! Units: nanoseconds; the boot clock since boot, suspended time included, the wall clock since the
//! Unix epoch. A clock that shows a time before its origin reads as zero.

use rustix::time::{ClockId, Timespec, clock_gettime};

use crate::core::model::{BootTime, Clock, WallTime};

/// Both clocks now.
#[must_use]
pub fn now() -> Clock {
    Clock {
        boot: BootTime(nanos(clock_gettime(ClockId::Boottime))),
        wall: WallTime(nanos(clock_gettime(ClockId::Realtime))),
    }
}

fn nanos(at: Timespec) -> u64 {
    let seconds = u64::try_from(at.tv_sec).unwrap_or(0);
    let rest = u64::try_from(at.tv_nsec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_clock_never_goes_back_and_is_never_behind_the_monotonic_one() {
        let monotonic = nanos(clock_gettime(ClockId::Monotonic));
        let first = now();
        let second = now();
        // The boot clock is the monotonic one and the time spent suspended.
        assert!(monotonic <= first.boot.0);
        assert!(first.boot <= second.boot);
        assert!(first.wall.0 > 0);
    }

    #[test]
    fn a_time_before_the_origin_reads_as_zero() {
        assert_eq!(
            nanos(Timespec {
                tv_sec: -1,
                tv_nsec: 0
            }),
            0
        );
        assert_eq!(
            nanos(Timespec {
                tv_sec: 2,
                tv_nsec: 3
            }),
            2_000_000_003
        );
    }
}
