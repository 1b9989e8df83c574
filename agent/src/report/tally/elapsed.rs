//! Elapsed time of one GPU, by hour.

use crate::core::model::Nanos;

/// For how many hours room is made at once.
const RESERVED: usize = 24;

/// Time by the hour, from the first hour that has any.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Elapsed {
    first: i64,
    hours: Vec<Nanos>,
}

impl Elapsed {
    /// Adds time of an hour that is not before those that were added.
    pub fn add(&mut self, hour: i64, time: Nanos) {
        if self.hours.is_empty() {
            self.first = hour;
        }
        let Ok(at) = usize::try_from(hour - self.first) else {
            return;
        };
        if at >= self.hours.len() {
            // Many GPUs have some, and doubling would leave a half of it unused.
            let missing = at + 1 - self.hours.len();
            if self.hours.capacity() <= at {
                self.hours.reserve_exact(missing.max(RESERVED));
            }
            self.hours.resize(at + 1, Nanos::ZERO);
        }
        self.hours[at] += time;
    }

    /// Adds `after - before`, which are figures of a window, to the window's last hour. An hour that was never
    /// added is left out.
    pub fn correct(&mut self, hour: i64, before: Nanos, after: Nanos) {
        let at = usize::try_from(hour - self.first).ok();
        if let Some(time) = at.and_then(|at| self.hours.get_mut(at)) {
            *time = time.plus(after).minus(before);
        }
    }

    /// The time of an hour.
    pub(super) fn of(&self, hour: i64) -> Nanos {
        let at = usize::try_from(hour - self.first).ok();
        let time = at.and_then(|at| self.hours.get(at));
        time.copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hours_in_between_have_nothing() {
        let mut elapsed = Elapsed::default();
        for (hour, time) in [(7, 1), (7, 2), (10, 5)] {
            elapsed.add(hour, Nanos(time));
        }
        let found = [6, 7, 8, 10, 11].map(|hour| elapsed.of(hour).0);
        assert_eq!(found, [0, 3, 0, 5, 0]);
        elapsed.correct(10, Nanos(9), Nanos(7));
        elapsed.correct(7, Nanos(7), Nanos(9));
        elapsed.correct(11, Nanos(0), Nanos(1));
        assert_eq!([7, 10, 11].map(|hour| elapsed.of(hour).0), [5, 3, 0]);
    }
}
