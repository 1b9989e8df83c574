//! When NVML's library is reopened because of a failed GPU.

use std::time::Duration;

use tokio::time::Instant;

use crate::sources::retry::Backoff;

/// Delays before the library is reopened: the first and the longest.
pub(super) const REOPEN: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));

/// The next time at which the library is reopened.
#[derive(Debug)]
pub(super) struct Reopening {
    delays: Backoff,
    /// Absent while no GPU fails, and while reopening cannot help.
    at: Option<Instant>,
}

impl Default for Reopening {
    fn default() -> Self {
        Self {
            delays: Backoff::new(REOPEN),
            at: None,
        }
    }
}

impl Reopening {
    /// When it is, if a time has been set.
    pub(super) const fn at(&self) -> Option<Instant> {
        self.at
    }

    /// No GPU fails: the next failure waits for the shortest delay.
    pub(super) fn reset(&mut self) {
        self.at = None;
        self.delays.reset();
    }

    /// Forgets the time, since the library is reopened now or reopening cannot help. The next delay is a
    /// longer one.
    pub(super) fn forget(&mut self) {
        self.at = None;
    }

    /// Whether a GPU that fails has failed for long enough. Sets the time if there is none.
    pub(super) fn is_due(&mut self, now: Instant) -> bool {
        let delays = &mut self.delays;
        now >= *self.at.get_or_insert_with(|| now + delays.wait())
    }
}
