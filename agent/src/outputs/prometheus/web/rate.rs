//! How many requests are answered over time: a bucket of tokens, as golang.org/x/time/rate has it.

use std::time::Duration;

use tokio::time::Instant;

use super::file::RateLimit;

/// A bucket that is full at first. Each answer takes one token, and one comes back each interval.
#[derive(Debug)]
pub(super) struct Bucket {
    limit: RateLimit,
    /// Time that the bucket has saved up: one interval is one token.
    saved: Duration,
    /// When `saved` was right.
    at: Instant,
}

impl Bucket {
    pub(super) fn new(limit: RateLimit) -> Self {
        Self {
            limit,
            saved: limit.interval.saturating_mul(limit.burst),
            at: Instant::now(),
        }
    }

    pub(super) const fn limit(&self) -> RateLimit {
        self.limit
    }

    /// Takes a token, if there is one.
    pub(super) fn take(&mut self) -> bool {
        let RateLimit { interval, burst } = self.limit;
        let now = Instant::now();
        let passed = now.saturating_duration_since(self.at);
        let full = interval.saturating_mul(burst);
        self.saved = self.saved.saturating_add(passed).min(full);
        self.at = now;
        match self.saved.checked_sub(interval) {
            Some(left) => {
                self.saved = left;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_bucket_gives_its_burst_and_then_a_token_each_interval() {
        let limit = |burst| RateLimit {
            interval: Duration::from_secs(1),
            burst,
        };
        let mut bucket = Bucket::new(limit(2));
        let taken: Vec<bool> = (0..3).map(|_| bucket.take()).collect();
        assert_eq!(taken, [true, true, false]);
        tokio::time::advance(Duration::from_millis(999)).await;
        assert!(!bucket.take());
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(bucket.take() && !bucket.take());
        // It holds no more than its burst, however long nobody asks.
        tokio::time::advance(Duration::from_secs(3_600)).await;
        let taken = (0..5).filter(|_| bucket.take()).count();
        assert_eq!(taken, 2);
        let mut closed = Bucket::new(limit(0));
        tokio::time::advance(Duration::from_secs(3_600)).await;
        assert!(!closed.take(), "without a burst nothing is let through");
    }
}
