//! What is said of a receiver: that it takes what it is sent, or why it does not.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::transport::Failure;
use crate::core::input::SourceHealth;
use crate::core::model::{BootTime, Nanos, SourceId, SourceState};

/// The receiver's health, as it is reported.
pub(super) struct Health {
    source: SourceId,
    sender: mpsc::Sender<SourceHealth>,
    place: Arc<str>,
    /// The state now and whether it was reported.
    state: Option<(SourceState, bool)>,
    since: BootTime,
}

impl Health {
    /// Nothing is known of the receiver at `endpoint` yet.
    pub(super) fn new(
        source: SourceId,
        endpoint: &str,
        sender: mpsc::Sender<SourceHealth>,
    ) -> Self {
        Self {
            source,
            sender,
            place: endpoint.into(),
            state: None,
            since: BootTime::default(),
        }
    }

    pub(super) fn up(&mut self, now: BootTime) {
        if !matches!(self.state, Some((SourceState::Up, _))) {
            tracing::info!(output = self.source.as_str(), endpoint = %self.place, "the OTLP receiver accepts exports");
            self.since = now;
            self.state = Some((SourceState::Up, false));
        }
        self.tell();
    }

    pub(super) fn down(&mut self, now: BootTime, failure: Failure, pause: Duration) {
        let Failure { class, reason, .. } = failure;
        if matches!(self.state, Some((SourceState::Down { .. }, _))) {
            tracing::debug!(output = self.source.as_str(), endpoint = %self.place, class, %reason, ?pause, "OTLP export still fails");
        } else {
            tracing::warn!(output = self.source.as_str(), endpoint = %self.place, class, %reason, ?pause, "OTLP export failed");
            self.since = now;
        }
        let pause = Nanos::from(pause);
        let state = SourceState::Down {
            class: class.into(),
            reason: reason.into(),
            next_retry: Some(now.plus(pause)),
        };
        self.state = Some((state, false));
        self.tell();
    }

    /// Offers the state. Where the channel is full the state is offered again after the next push: an
    /// output waits for nobody.
    fn tell(&mut self) {
        let Some((state, is_reported @ false)) = &mut self.state else {
            return;
        };
        *is_reported = self
            .sender
            .try_send(SourceHealth {
                source: self.source,
                state: state.clone(),
                since: self.since,
                place: Arc::clone(&self.place),
            })
            .is_ok();
    }
}
