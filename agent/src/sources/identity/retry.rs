//! When to try again, and where: what every source behind a Unix socket needs.

use std::fs::Metadata;
use std::hash::{BuildHasher, RandomState};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

/// First wait after a failure; it doubles from there.
const RETRY_MIN: Duration = Duration::from_millis(200);

/// Waits that double, each shortened at random by up to a half, so that the agents of a cluster do
/// not knock in step.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    pub(super) fn next(&mut self, longest: Duration) -> Duration {
        let whole = RETRY_MIN
            .saturating_mul(1 << self.failures.min(16))
            .min(longest);
        self.failures = self.failures.saturating_add(1);
        // The standard library seeds each of these anew; more randomness a jitter does not need.
        let random = RandomState::new().hash_one(self.failures) % 1024;
        let random = u32::try_from(random).unwrap_or(0);
        whole / 2 + whole / 2048 * random
    }

    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }
}

/// A timer whose first tick is a whole span away, and which does not make up for missed ones.
pub(super) fn every(span: Duration) -> Interval {
    // A timer of no length at all would panic.
    let span = span.max(Duration::from_millis(1));
    let mut timer = interval_at(Instant::now() + span, span);
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    timer
}

/// A socket as a file: another daemon's is another file, whatever path leads to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Socket {
    device: u64,
    inode: u64,
    changed: (i64, i64),
}

impl Socket {
    pub(super) fn new(file: &Metadata) -> Self {
        Self {
            device: file.dev(),
            inode: file.ino(),
            changed: (file.ctime(), file.ctime_nsec()),
        }
    }

    /// Whether both paths lead to one socket.
    pub(super) fn is_same_file(self, other: Self) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }
}

/// A short class for an error of the system.
pub(super) fn io_class(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::ConnectionRefused => "refused",
        ErrorKind::NotFound => "vanished",
        ErrorKind::PermissionDenied => "permission",
        ErrorKind::TimedOut => "timeout",
        ErrorKind::UnexpectedEof
        | ErrorKind::ConnectionReset
        | ErrorKind::ConnectionAborted
        | ErrorKind::BrokenPipe
        | ErrorKind::NotConnected => "closed",
        _ => "io",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_are_shortened_by_half_at_most() {
        let longest = Duration::from_secs(30);
        let mut retry = Backoff::default();
        for round in 0..40 {
            let whole = (RETRY_MIN * 2_u32.pow(round.min(10))).min(longest);
            let wait = retry.next(longest);
            assert!(
                wait >= whole / 2 && wait <= whole,
                "{round}: {wait:?} of {whole:?}"
            );
        }
        retry.reset();
        assert!(retry.next(longest) <= RETRY_MIN);
    }
}
