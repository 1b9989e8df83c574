//! Waits that double.

use std::time::Duration;

/// Waits that double from the one to the other, up to a bound.
#[derive(Clone, Debug)]
pub(super) struct Backoff {
    next: Duration,
    range: (Duration, Duration),
}

impl Backoff {
    /// Waits from the first of these to the second.
    pub(super) const fn new(range: (Duration, Duration)) -> Self {
        Self {
            next: range.0,
            range,
        }
    }

    /// The next wait.
    pub(super) fn wait(&mut self) -> Duration {
        let wait = self.next;
        self.next = (wait * 2).min(self.range.1);
        wait
    }

    /// The next wait, which stays the next.
    pub(super) const fn peek(&self) -> Duration {
        self.next
    }

    /// Begins again with the shortest.
    pub(super) const fn reset(&mut self) {
        self.next = self.range.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_to_a_bound() {
        let mut backoff = Backoff::new((Duration::from_secs(1), Duration::from_secs(5)));
        let waits: Vec<u64> = (0..5).map(|_| backoff.wait().as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 5, 5]);
        backoff.reset();
        assert_eq!(backoff.peek().as_secs(), 1);
        assert_eq!(backoff.wait().as_secs(), 1);
    }
}
