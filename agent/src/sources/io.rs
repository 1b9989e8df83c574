//! What connects a source to the rest of the agent.

use tokio::sync::{mpsc, watch};

use crate::core::input::Input;
use crate::core::model::Clock;

/// Where a source sends what it observes, by which clocks, and until when.
#[derive(Clone, Debug)]
pub struct Io {
    /// To the core. A full channel holds this source and no other.
    pub out: mpsc::Sender<Input>,
    /// Reads both clocks.
    pub clock: fn() -> Clock,
    /// Turns true when the source is to end. A sender that is gone means the same.
    pub shutdown: watch::Receiver<bool>,
}

impl Io {
    /// Waits until the source is to end.
    pub(super) async fn stopped(&self) {
        // An error says that the sender is gone.
        let _ = self.shutdown.clone().wait_for(|stop| *stop).await;
    }

    /// Lives until the agent stops, or as long as `life` does.
    pub(super) async fn until_stopped(
        mut shutdown: watch::Receiver<bool>,
        life: impl Future<Output = ()>,
    ) {
        tokio::select! {
            // An error says that the sender is gone.
            _ = shutdown.wait_for(|stop| *stop) => {}
            () = life => {}
        }
    }
}
