//! Counters of the outputs: scrapes served, points delivered, label values corrected.
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
    /// Times that what was sent as deltas was recorded in its file.
    pub otlp_deltas_kept: Counter,
    /// Times that it could not be recorded.
    pub otlp_deltas_unkept: Counter,
    /// Times that what an agent before had sent as deltas could not be read.
    pub otlp_deltas_unread: Counter,
    /// Times that starts of counters which are sent without it were too many to be distinguished.
    pub otlp_starts_merged: Counter,
    /// Usage records that a receiver has acknowledged.
    pub records_delivered: Counter,
    /// Usage records that a receiver refused for good.
    pub records_rejected: Counter,
    /// Usage records in messages that failed; they are sent again.
    pub records_failed: Counter,
    /// Label values that were empty and were published as `(unresolved)`.
    pub labels_blank: Counter,
    /// Label values that were cut to the bound, or freed of control characters.
    pub labels_cut: Counter,
    /// Connections to `/metrics` that the agent closed.
    pub metrics_connections: ConnectionCounters,
    /// Connections to the listener of the probes alone that the agent closed.
    pub probe_connections: ConnectionCounters,
    /// Requests and connections to `/metrics` that were not let through.
    pub metrics_refused: RefusedCounters,
    /// Times that a changed web configuration or token file was put in force.
    pub web_config_applied: Counter,
    /// Times that a changed file could not be used.
    pub web_config_failed: Counter,
    /// Times that a changed configuration was put in force, at least in part.
    pub config_applied: Counter,
    /// Times that a changed configuration could not be used.
    pub config_failed: Counter,
    /// Connections to the local socket that the agent closed.
    pub socket_connections: ConnectionCounters,
    /// Requests on the local socket.
    pub socket_requests: Counter,
}

/// Requests and connections to `/metrics` that were not let through, by why.
#[derive(Debug, Default)]
pub struct RefusedCounters {
    /// A TLS handshake failed: no certificate, one that is not accepted, no version in common.
    pub handshake: Counter,
    /// A client that does not speak TLS, where TLS is needed.
    pub not_tls: Counter,
    /// No password and no token, or a wrong one.
    pub unauthorized: Counter,
    /// Too many passwords were being checked.
    pub busy: Counter,
    /// More requests than the rate limit allows.
    pub rate_limit: Counter,
}

impl RefusedCounters {
    /// Every reason with its counter, as label values.
    #[must_use]
    pub const fn by_reason(&self) -> [(&'static str, &Counter); 5] {
        [
            ("handshake", &self.handshake),
            ("not_tls", &self.not_tls),
            ("unauthorized", &self.unauthorized),
            ("busy", &self.busy),
            ("rate_limit", &self.rate_limit),
        ]
    }
}

/// Connections of one listener that the agent closed, by why.
#[derive(Debug, Default)]
pub struct ConnectionCounters {
    /// All places were taken, and this connection was the idlest.
    pub gave_way: Counter,
    /// Its address had more than its share of places, and this was the idlest of them.
    pub one_address: Counter,
    /// A request's header did not arrive in time.
    pub slow_header: Counter,
    /// An answer was not taken in time.
    pub slow_reader: Counter,
    /// Nothing was asked for a long time.
    pub silent: Counter,
}

impl ConnectionCounters {
    /// Connections that were one too many: for the listener, or for their address.
    #[must_use]
    pub fn too_many(&self) -> u64 {
        self.gave_way.get() + self.one_address.get()
    }

    /// Every reason with its counter, as label values.
    #[must_use]
    pub const fn by_reason(&self) -> [(&'static str, &Counter); 5] {
        [
            ("gave_way", &self.gave_way),
            ("one_address", &self.one_address),
            ("slow_header", &self.slow_header),
            ("slow_reader", &self.slow_reader),
            ("silent", &self.silent),
        ]
    }
}
