//! Bounds on the connections of a listener: how many there are, and how long one may be silent.
//!
//! Whoever can reach `/metrics` can open connections; without a bound they would take the file
//! descriptors that the agent reads `/proc`, NVML and its runtimes with. A connection too many is
//! closed at once and counted: a scraper tries again, and waiting would only move the queue.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep};

use super::counters::{Counter, OutputCounters};

/// Connections that a listener has open at most.
pub const MAX_CONNECTIONS: usize = 64;
/// How long a connection may move no byte before it is closed. Longer than any usual scrape
/// interval, so that scrapers can keep theirs.
const MAX_SILENCE: Duration = Duration::from_secs(150);

/// A listener with bounds.
pub(super) struct Bounded<L> {
    listener: L,
    slots: Arc<Semaphore>,
    counters: Arc<OutputCounters>,
    refused: fn(&OutputCounters) -> &Counter,
}

impl<L> Bounded<L> {
    /// `listener` with at most `most` connections; those too many are counted in `refused`.
    pub(super) fn new(
        listener: L,
        most: usize,
        counters: Arc<OutputCounters>,
        refused: fn(&OutputCounters) -> &Counter,
    ) -> Self {
        Self {
            listener,
            slots: Arc::new(Semaphore::new(most)),
            counters,
            refused,
        }
    }
}

impl<L: Listener> Listener for Bounded<L> {
    type Io = Connection<L::Io>;
    type Addr = L::Addr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (io, address) = self.listener.accept().await;
            if let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() {
                let connection = Connection {
                    io,
                    silence: Box::pin(sleep(MAX_SILENCE)),
                    _slot: slot,
                };
                return (connection, address);
            }
            (self.refused)(&self.counters).add(1);
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

/// A connection that gives its slot back when it ends, and ends when it is silent for too long.
pub(super) struct Connection<Io> {
    io: Io,
    silence: Pin<Box<Sleep>>,
    _slot: OwnedSemaphorePermit,
}

impl<Io: Unpin> Connection<Io> {
    /// Passes on what the stream says; where it says nothing, ends the silence if it was too long.
    fn watch<T>(
        &mut self,
        context: &mut Context<'_>,
        said: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if said.is_pending() {
            ready!(self.silence.as_mut().poll(context));
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        self.silence.as_mut().reset(Instant::now() + MAX_SILENCE);
        said
    }
}

impl<Io: AsyncRead + Unpin> AsyncRead for Connection<Io> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let said = Pin::new(&mut self.io).poll_read(context, buffer);
        self.watch(context, said)
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for Connection<Io> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let said = Pin::new(&mut self.io).poll_write(context, bytes);
        self.watch(context, said)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let said = Pin::new(&mut self.io).poll_write_vectored(context, slices);
        self.watch(context, said)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Sockets have nothing to flush: this is no sign of life.
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
    use tokio::sync::mpsc;

    use super::*;

    /// Hands out the server's ends of streams in memory.
    struct InMemory(mpsc::Receiver<DuplexStream>);

    impl Listener for InMemory {
        type Io = DuplexStream;
        type Addr = ();

        async fn accept(&mut self) -> (DuplexStream, ()) {
            match self.0.recv().await {
                Some(io) => (io, ()),
                None => std::future::pending().await,
            }
        }

        fn local_addr(&self) -> io::Result<()> {
            Ok(())
        }
    }

    fn bounded(most: usize) -> (Bounded<InMemory>, mpsc::Sender<DuplexStream>) {
        let (sender, receiver) = mpsc::channel(8);
        let bounded = Bounded::new(InMemory(receiver), most, Arc::default(), |counters| {
            &counters.connections_refused_metrics
        });
        (bounded, sender)
    }

    async fn connect(dial: &mpsc::Sender<DuplexStream>) -> DuplexStream {
        let (near, far) = duplex(64);
        dial.send(far).await.unwrap();
        near
    }

    #[tokio::test]
    async fn one_connection_too_many_is_closed_and_counted() {
        let (mut listener, dial) = bounded(2);
        let _clients = [connect(&dial).await, connect(&dial).await];
        let (first, ()) = listener.accept().await;
        let (_second, ()) = listener.accept().await;
        let mut third = connect(&dial).await;
        let mut fourth = connect(&dial).await;
        // The third is closed while the listener waits for a slot; the fourth gets the first's.
        let refused = async {
            assert_eq!(
                third.read_u8().await.unwrap_err().kind(),
                io::ErrorKind::UnexpectedEof
            );
            assert_eq!(
                fourth.read_u8().await.unwrap_err().kind(),
                io::ErrorKind::UnexpectedEof
            );
        };
        tokio::select! {
            _ = listener.accept() => panic!("both slots are taken"),
            () = refused => {}
        }
        assert_eq!(listener.counters.connections_refused_metrics.get(), 2);
        drop(first);
        let _fifth = connect(&dial).await;
        listener.accept().await;
        assert_eq!(listener.counters.connections_refused_metrics.get(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_a_connection_and_a_byte_does_not() {
        let (mut listener, dial) = bounded(1);
        let mut client = connect(&dial).await;
        let (mut connection, ()) = listener.accept().await;
        for _ in 0..3 {
            tokio::time::advance(MAX_SILENCE - Duration::from_secs(1)).await;
            client.write_u8(7).await.unwrap();
            assert_eq!(connection.read_u8().await.unwrap(), 7);
        }
        // The paused clock moves on to the next timer by itself.
        let error = connection.read_u8().await.expect_err("nobody writes");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        // A reader that does not read: the buffer fills, then nothing moves.
        let error = connection.write_all(&[0; 1024]).await.expect_err("full");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
