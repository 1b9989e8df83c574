//! How a part of the agent learns that it is to stop.

use tokio::sync::watch;

/// Done when the agent is to stop.
pub(crate) async fn until(mut stopped: watch::Receiver<bool>) {
    // A sender that is gone means the same.
    let _ = stopped.wait_for(|stop| *stop).await;
}
