//! When the worker threads wake up: all at the same instants.
//!
//! A wake-up costs more than the calls that follow it. Threads that wake at the same time share the
//! wake-ups of those that read their reports: the supervisor and the core are woken once for all
//! GPUs, not once for each. Process lists are read at one of these instants, too, right after a window.
//! But they are the only expensive call, and hold a lock of the whole driver, so GPUs take turns.

use std::time::{Duration, Instant};

/// How often a worker closes windows, reads the process lists, and reads the GPU's health.
#[derive(Clone, Copy, Debug)]
pub(super) struct Intervals {
    pub(super) windows: Duration,
    pub(super) lists: Duration,
    pub(super) health: Duration,
}

/// When a worker closes windows, reads the process lists and reads the health.
#[derive(Clone, Copy, Debug)]
pub(super) struct Schedule {
    /// An instant at which all workers are due.
    origin: Instant,
    /// An instant at which this worker's lists are due.
    lists_origin: Instant,
    /// Time between two windows.
    windows: Duration,
    /// Time between two readings of the process lists.
    lists: Duration,
    /// An instant at which this worker's reading of the GPU's health is due.
    health_origin: Instant,
    /// Time between two readings of the health.
    health: Duration,
}

impl Schedule {
    /// The schedule of the GPU with this index. `origin` is the same for all of them.
    pub(super) fn new(origin: Instant, index: u32, intervals: Intervals) -> Self {
        let Intervals {
            windows,
            lists,
            health,
        } = intervals;
        let turn = |every: Duration| {
            let turns = every.as_nanos() / windows.as_nanos().max(1);
            let turn = u128::from(index) % turns.max(1);
            origin + windows * u32::try_from(turn).unwrap_or(0)
        };
        Self {
            origin,
            lists_origin: turn(lists),
            health_origin: turn(health),
            windows,
            lists,
            health,
        }
    }

    /// When the health that was read at `read` is due again.
    pub(super) fn next_health(&self, read: Instant) -> Instant {
        after(self.health_origin, self.health, read)
    }

    /// When the window after one that was asked for at `asked` is due. A worker that was late skips an
    /// instant that would come too soon: the next window covers the time.
    pub(super) fn next_window(&self, asked: Instant) -> Instant {
        after(self.origin, self.windows, asked + self.windows / 2)
    }

    /// When the process lists that were read at `read` are due again, at the latest.
    pub(super) fn next_lists(&self, read: Instant) -> Instant {
        after(self.lists_origin, self.lists, read)
    }
}

/// The first instant after `now` that is a whole number of intervals away from `origin`.
fn after(origin: Instant, interval: Duration, now: Instant) -> Instant {
    let nanos = interval.as_nanos().max(1);
    let (passed, is_ahead) = match now.checked_duration_since(origin) {
        Some(passed) => (passed.as_nanos() % nanos, false),
        None => ((origin - now).as_nanos() % nanos, true),
    };
    let left = match (is_ahead, passed) {
        (true, 0) | (false, _) => nanos - passed,
        (true, left) => left,
    };
    // Less than the interval, which is a Duration, so it fits.
    now + Duration::from_nanos(u64::try_from(left).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn schedule(origin: Instant, index: u32, windows: Duration, lists: Duration) -> Schedule {
        let health = 10 * SECOND;
        let intervals = Intervals {
            windows,
            lists,
            health,
        };
        Schedule::new(origin, index, intervals)
    }

    #[test]
    fn gpus_take_turns_with_their_health() {
        let origin = Instant::now();
        let due: Vec<u64> = (0..12)
            .map(|index| {
                let schedule = schedule(origin, index, SECOND, 5 * SECOND);
                (schedule.next_health(origin + 20 * SECOND) - origin).as_secs()
            })
            .collect();
        assert_eq!(due, [30, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 21]);
    }

    #[test]
    fn workers_that_started_at_different_times_are_due_together() {
        let origin = Instant::now();
        let schedules = [0, 1, 7].map(|index| schedule(origin, index, SECOND, 5 * SECOND));
        for (asked_after, next) in [(0, 1), (400, 1), (499, 1), (500, 2), (999, 2), (1_003, 2)] {
            let asked = origin + Duration::from_millis(asked_after);
            let due = schedules.map(|schedule| schedule.next_window(asked) - origin);
            assert_eq!(due, [next * SECOND; 3], "asked after {asked_after} ms");
        }
    }

    #[test]
    fn gpus_take_turns_with_their_process_lists() {
        let origin = Instant::now();
        let lists = |index, read: u32| {
            let schedule = schedule(origin, index, SECOND, 5 * SECOND);
            (schedule.next_lists(origin + read * SECOND) - origin).as_secs()
        };
        let due: Vec<u64> = (0..8).map(|index| lists(index, 10)).collect();
        assert_eq!(due, [15, 11, 12, 13, 14, 15, 11, 12]);
        assert_eq!(lists(2, 12), 17, "not read twice at one instant");
        assert_eq!(lists(4, 0), 4, "also before its first turn");
        // Lists as often as windows leave no turns to take.
        let often = schedule(origin, 3, SECOND, SECOND);
        assert_eq!(often.next_lists(origin), origin + SECOND);
        let seldom = schedule(origin, 3, 10 * SECOND, SECOND);
        assert_eq!(seldom.next_lists(origin), origin + SECOND);
    }
}
