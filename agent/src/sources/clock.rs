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
    fn the_boot_clock_never_goes_back_and_agrees_with_the_kernels_uptime() {
        let before = now();
        let uptime = std::fs::read_to_string("/proc/uptime").unwrap();
        let after = now();
        assert!(before.boot <= after.boot);
        let seconds: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
        // Uptime has a resolution of 10 ms and is on the boot clock too.
        assert!(before.boot.0 <= (seconds * 1e9) as u64 + 20_000_000);
        assert!((seconds * 1e9) as u64 <= after.boot.0 + 20_000_000);
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
