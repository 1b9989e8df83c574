//! What the outputs count of themselves: scrapes served, points delivered, label values mended.
//!
//! These are the only figures that do not come from a snapshot, since the snapshot must not depend
//! on who reads it. They are shared by reference and only ever grow.

use std::sync::atomic::{AtomicU64, Ordering};

/// A counter that many tasks may add to.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `amount`.
    pub fn add(&self, amount: u64) {
        // Relaxed: each counter stands alone, no other memory is read on its account.
        self.0.fetch_add(amount, Ordering::Relaxed);
    }

    /// The value now.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The counters of all outputs, since the agent began.
#[derive(Debug, Default)]
pub struct OutputCounters {
    /// Scrapes answered in the text format 0.0.4.
    pub scrapes_text: Counter,
    /// Scrapes answered in OpenMetrics 1.0.
    pub scrapes_openmetrics: Counter,
    /// Points that an OTLP receiver took.
    pub otlp_points_delivered: Counter,
    /// Points in requests that failed; they go out again, newer, with the next attempt.
    pub otlp_points_failed: Counter,
    /// Points in requests of deltas that failed and may have arrived; they are not sent again.
    pub otlp_points_unknown: Counter,
    /// Points that an OTLP receiver took in and refused (`partial_success`).
    pub otlp_points_rejected: Counter,
    /// Requests that an OTLP receiver answered with success.
    pub otlp_requests_delivered: Counter,
    /// Requests that failed.
    pub otlp_requests_failed: Counter,
    /// Times that what was sent as deltas was written down.
    pub otlp_deltas_kept: Counter,
    /// Times that it could not be.
    pub otlp_deltas_unkept: Counter,
    /// Times that what an agent before had sent as deltas could not be read.
    pub otlp_deltas_unread: Counter,
    /// Times that starts of counters which are sent without it were too many to be told apart.
    pub otlp_starts_merged: Counter,
    /// Label values that were empty and were published as `(unresolved)`.
    pub labels_blank: Counter,
    /// Label values that were cut to the bound, or freed of control characters.
    pub labels_cut: Counter,
    /// Connections to `/metrics` that were one too many and were closed.
    pub connections_refused_metrics: Counter,
    /// Connections to the local socket that were one too many and were closed.
    pub connections_refused_socket: Counter,
    /// Requests on the local socket.
    pub socket_requests: Counter,
}
