//! A thread with a runtime of its own, for work whose amount the agent does not control.
//!
//! On one of them answers of runtimes and the kubelet are read and decoded.
//! The agent does not control the size of these answers: tenants write labels, and a node may have
//! thousands of containers. While a large answer is read, the core continues to commit and the
//! outputs continue to serve. The sources that talk to servers share this one thread. Each answer
//! is bounded, and the decoding of a long list yields to the other sources.
//!
//! On another one `/metrics` is served if it is protected: whoever reaches the port can demand TLS
//! handshakes, each of which costs up to milliseconds.

use std::io;
use std::thread;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// A runtime of one thread. It ends when this is dropped, and what runs on it with it.
pub(super) struct ServersThread {
    handle: Handle,
    _alive: oneshot::Sender<()>,
}

impl ServersThread {
    /// Starts the thread. On `blocking` others, at most, it may wait for what blocks.
    pub(super) fn spawn(name: &str, blocking: usize) -> io::Result<Self> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(blocking)
            .build()?;
        let handle = runtime.handle().clone();
        let (alive, ended) = oneshot::channel();
        thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                // An error says that the sender is gone, which is the end.
                let _ = runtime.block_on(ended);
                runtime.shutdown_background();
            })?;
        Ok(Self {
            handle,
            _alive: alive,
        })
    }

    /// Where to spawn what is to run there.
    pub(super) fn handle(&self) -> &Handle {
        &self.handle
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::JoinSet;

    use super::*;

    #[tokio::test]
    async fn an_answer_that_is_dear_to_decode_does_not_hold_the_core() {
        let servers = ServersThread::spawn("servers", 1).unwrap();
        let (begun, has_begun) = oneshot::channel();
        let (decoded, go_on) = std::sync::mpsc::channel::<()>();
        let mut sources = JoinSet::new();
        // Decoding that takes as long as it is let.
        let decoding = async move {
            begun.send(()).unwrap();
            go_on.recv().is_ok()
        };
        sources.spawn_on(decoding, servers.handle());
        // On the core's thread nothing would come after this.
        has_begun.await.unwrap();
        decoded.send(()).unwrap();
        assert!(sources.join_next().await.unwrap().unwrap());
        // What is under way ends with the thread, as at a shutdown.
        sources.spawn_on(std::future::pending(), servers.handle());
        sources.shutdown().await;
        assert!(sources.is_empty());
    }
}
