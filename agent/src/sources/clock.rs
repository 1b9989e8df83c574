//! The two clocks, read together. The only place of the sources that asks for the time.

use rustix::time::{ClockId, Timespec, clock_gettime};

use crate::core::model::{BootTime, Clock, WallTime};

/// The boot clock and the wall clock, now.
#[must_use]
pub fn now() -> Clock {
    Clock {
        boot: BootTime(nanos(clock_gettime(ClockId::Boottime))),
        wall: WallTime(nanos(clock_gettime(ClockId::Realtime))),
    }
}

/// Nanoseconds since the clock's zero; a clock set before its own epoch reads as zero.
fn nanos(time: Timespec) -> u64 {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_clock_does_not_run_backwards() {
        let earlier = now();
        let later = now();
        assert!(later.boot >= earlier.boot, "{earlier:?} {later:?}");
    }
}
