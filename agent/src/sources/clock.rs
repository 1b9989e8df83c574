//! The two clocks, read together: the only place below `sources` where time is asked for.
//!
//! Two readings are never made at the same instant, and code that compares the clocks over time
//! would take the difference for a step of the wall clock. An agent that has used up its share of
//! the CPU rests between any two instructions for a tenth of a second, so a pair that was torn
//! apart is read again.
//!
//! Units: nanoseconds; the boot clock since boot, suspended time included, the wall clock since the
//! Unix epoch. A clock that shows a time before its origin reads as zero.

use rustix::time::{ClockId, Timespec, clock_gettime};

use crate::core::model::{BootTime, Clock, Nanos, WallTime};

/// How far apart the two readings may be. Undisturbed they are some tens of nanoseconds apart.
const APART_NANOS: u64 = 20_000;
/// How often a pair that is further apart is read again.
const TRIES: u32 = 8;

/// Both clocks now.
#[must_use]
pub fn now() -> Clock {
    together(
        || nanos(clock_gettime(ClockId::Boottime)),
        || nanos(clock_gettime(ClockId::Realtime)),
    )
}

/// How far a stamp of the kernel's log may be off the time at which it is read.
const LOG_IS_OFF: Nanos = Nanos::from_secs(2);

/// The boot time of a record of the kernel's log that has just been written, by its stamp in
/// microseconds.
///
/// The clock of the stamps stands still while the machine is suspended, as the monotonic one does. But
/// nothing disciplines it, so it drifts by seconds in some days. A record that looks older than
/// [`LOG_IS_OFF`] therefore has the time at which it was read.
pub(super) fn boot_of_log(stamp_us: u64) -> BootTime {
    let monotonic = nanos(clock_gettime(ClockId::Monotonic));
    let age = Nanos(monotonic.saturating_sub(stamp_us.saturating_mul(1_000)));
    let now = now().boot;
    if age <= LOG_IS_OFF {
        now.minus(age)
    } else {
        now
    }
}

/// The wall clock and the middle of the boot times before and after it; of several tries the
/// closest.
fn together(mut boot: impl FnMut() -> u64, mut wall: impl FnMut() -> u64) -> Clock {
    let mut closest = (u64::MAX, Clock::default());
    for _ in 0..TRIES {
        let before = boot();
        let wall = WallTime(wall());
        let apart = boot().saturating_sub(before);
        if apart <= closest.0 {
            let boot = BootTime(before.saturating_add(apart / 2));
            closest = (apart, Clock { boot, wall });
        }
        if apart <= APART_NANOS {
            break;
        }
    }
    closest.1
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
    fn a_stamp_of_the_log_is_believed_only_while_its_clock_has_not_drifted() {
        let second = Nanos::SECOND.0 / 1_000;
        let monotonic_us = nanos(clock_gettime(ClockId::Monotonic)) / 1_000;
        let before = now().boot;
        let fresh = boot_of_log(monotonic_us - second);
        assert!(fresh < before, "a second old");
        for off in [60 * second, monotonic_us] {
            assert!(boot_of_log(monotonic_us - off) >= before, "{off}");
        }
        assert!(boot_of_log(monotonic_us + 60 * second) >= before, "ahead");
    }

    #[test]
    fn a_rest_between_the_readings_is_no_step_of_the_wall_clock() {
        const LEAD: u64 = 1_000_000_000_000;
        const REST: u64 = 100_000_000;
        // Rests before some of the readings, the readings themselves taking 10 ns.
        for rests in [&[][..], &[1], &[2], &[1, 4], &[2, 5, 7], &[1, 2, 4, 5, 7]] {
            let time = std::cell::Cell::new(5_000_000_000);
            let reading = std::cell::Cell::new(0);
            let read = || {
                let rested = rests.contains(&reading.replace(reading.get() + 1));
                time.set(time.get() + 10 + if rested { REST } else { 0 });
                time.get()
            };
            let clock = together(read, || read() + LEAD);
            let lead = clock.wall.0 - clock.boot.0;
            assert!(lead.abs_diff(LEAD) <= 10, "{rests:?}: {lead}");
        }
        // Where every pair is torn, half of the closest is the error.
        let time = std::cell::Cell::new(0);
        let read = || time.replace(time.get() + REST) + REST;
        assert_eq!(together(read, read).wall, WallTime(23 * REST));
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
