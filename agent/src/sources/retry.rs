//! Waits between attempts that double up to a bound.

use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

/// Waits that double from one length to another.
#[derive(Clone, Debug)]
pub(super) struct Backoff {
    shortest: Duration,
    longest: Duration,
    failures: u32,
    is_jittered: bool,
}

impl Backoff {
    /// Waits from the first length to the second.
    pub(super) const fn new((shortest, longest): (Duration, Duration)) -> Self {
        Self {
            shortest,
            longest,
            failures: 0,
            is_jittered: false,
        }
    }

    /// Shortens each wait at random by up to a half, so that the agents of a cluster do not retry
    /// at the same time.
    pub(super) const fn jittered(mut self) -> Self {
        self.is_jittered = true;
        self
    }

    /// Returns the next wait, and doubles the one after it.
    pub(super) fn wait(&mut self) -> Duration {
        self.wait_at_most(self.longest)
    }

    /// Returns the next wait, but no more than `most`.
    pub(super) fn wait_at_most(&mut self, most: Duration) -> Duration {
        let whole = self.peek().min(most);
        self.failures = self.failures.saturating_add(1);
        if !self.is_jittered {
            return whole;
        }
        // The standard library seeds each of these anew; more randomness a jitter does not need.
        let random = RandomState::new().hash_one(self.failures) % 1024;
        let random = u32::try_from(random).unwrap_or(0);
        whole / 2 + whole / 2048 * random
    }

    /// Returns the next wait without its jitter, and leaves it the next.
    pub(super) fn peek(&self) -> Duration {
        let doubled = self.shortest.saturating_mul(1 << self.failures.min(16));
        doubled.min(self.longest)
    }

    /// Begins again with the shortest.
    pub(super) const fn reset(&mut self) {
        self.failures = 0;
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

    #[test]
    fn jittered_waits_are_shortened_by_half_at_most() {
        let (shortest, longest) = (Duration::from_millis(200), Duration::from_secs(30));
        let mut retry = Backoff::new((shortest, longest)).jittered();
        for round in 0..40 {
            let whole = (shortest * 2_u32.pow(round.min(10))).min(longest);
            let wait = retry.wait();
            assert!(
                wait >= whole / 2 && wait <= whole,
                "{round}: {wait:?} of {whole:?}"
            );
        }
        let most = Duration::from_secs(5);
        assert!(retry.wait_at_most(most) <= most);
        retry.reset();
        assert!(retry.wait() <= shortest);
    }
}
