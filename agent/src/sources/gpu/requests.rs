//! What the source of GPU time can be asked for while it runs.

use tokio::sync::mpsc;

use crate::gpu_release::ReleaseOrder;

/// The receiving ends of what the source can be asked for.
#[derive(Debug)]
pub struct Asked {
    /// To read the process lists soon. A channel of one is enough, since one reading serves all who
    /// asked before it.
    pub lists: mpsc::Receiver<()>,
    /// To let go of the GPUs for a while.
    pub releases: mpsc::Receiver<ReleaseOrder>,
}

/// One request.
#[derive(Debug)]
pub(super) enum Request {
    /// To read the process lists soon.
    Lists,
    /// To let go of the GPUs, or to take them up again.
    Release(ReleaseOrder),
}

/// The requests of all who can ask.
#[derive(Debug)]
pub(super) struct Requests {
    /// Absent once nobody can ask any more.
    lists: Option<mpsc::Receiver<()>>,
    /// Absent once nobody can ask any more.
    releases: Option<mpsc::Receiver<ReleaseOrder>>,
}

impl From<Asked> for Requests {
    fn from(asked: Asked) -> Self {
        Self {
            lists: Some(asked.lists),
            releases: Some(asked.releases),
        }
    }
}

impl Requests {
    /// Returns the next request; never returns once nobody can ask. No request is lost if the future is
    /// dropped before it is ready.
    pub(super) async fn next(&mut self) -> Request {
        tokio::select! {
            biased;
            () = next(&mut self.lists) => Request::Lists,
            order = next(&mut self.releases) => Request::Release(order),
        }
    }
}

/// The next request of one channel; never returns once its senders are gone.
async fn next<T>(requests: &mut Option<mpsc::Receiver<T>>) -> T {
    if let Some(receiver) = requests {
        match receiver.recv().await {
            Some(request) => return request,
            // A closed channel answers at once, for ever: it would keep this thread spinning.
            None => *requests = None,
        }
    }
    std::future::pending().await
}
