//! Signals: SIGTERM and SIGINT tell the agent to stop. SIGHUP is ignored with a line in the log.

use tracing::warn;

/// The signals that the agent handles.
pub(super) struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    hang_up: tokio::signal::unix::Signal,
}

impl Signals {
    /// Installs the handlers.
    pub(super) fn listen() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for a signal that stops the agent.
    ///
    /// Many daemons read their configuration anew upon SIGHUP, so people send it. By default it would
    /// kill the agent.
    pub(super) async fn recv(&mut self) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = self.hang_up.recv() => warn!(
                    "SIGHUP is ignored; restart the agent to read the configuration anew"
                ),
            }
        }
    }
}
