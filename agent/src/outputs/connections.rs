//! Serves HTTP/1 within bounds: how many connections a listener has, how many of them from one
//! address, and how long each may take.
//!
//! Any client that can reach `/metrics` can open connections, send half a request, or ask and never
//! read. Without bounds such clients would use up the file descriptors that the agent needs to read
//! `/proc`, NVML and its runtimes. A bound on connections alone would lock the scraper out. So
//! every request and every answer has a deadline, and a new connection always gets a place: see
//! [`super::connection_slots`]. Closed connections are counted by reason.
//!
//! HTTP/2 is refused. Neither scrapers nor `gpuacct status` speak it without TLS, and with TLS they
//! take HTTP/1.1, which is all that the handshake offers. An HTTP/2 client can keep its flow-control
//! window closed, and a deadline on the byte stream would not notice.

use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::response::Response;
use axum::serve::Listener;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::connection_slots::{ConnectionSlot, ConnectionSlots, Progress};
use super::counters::{ConnectionCounters, OutputCounters};

/// The longest header of a request, and how much of an answer is prepared before the client has
/// taken what was sent, in bytes.
const MAX_BUFFERED: usize = 64 << 10;
/// How long answers under way may take once the agent is to stop.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

/// What a connection passes before its first request.
pub(super) trait Entry<Io>: Clone + Send + 'static {
    /// What requests are read from then.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send;

    /// Lets a connection in, or not.
    fn enter(self, io: Io) -> impl Future<Output = Option<Self::Stream>> + Send;
}

/// Every connection may send requests at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Straight;

impl<Io: AsyncRead + AsyncWrite + Unpin + Send> Entry<Io> for Straight {
    type Stream = Io;

    async fn enter(self, io: Io) -> Option<Io> {
        Some(io)
    }
}

/// Where a request is from, as an extension of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct ClientAddress(pub(super) Option<IpAddr>);

/// The user who sent a request, as an extension of it; absent where the listener cannot tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ClientUser(pub(super) Option<u32>);

/// A listener, and what its connections are counted in.
pub(super) struct Server<L: Listener, E = Straight> {
    pub(super) listener: L,
    /// What its connections pass first. The deadline of a request's header is for this, too.
    pub(super) entry: E,
    /// Where a client is, if the listener can tell.
    pub(super) address: fn(&L::Addr) -> Option<IpAddr>,
    /// Which user a client runs as, if the listener can tell.
    pub(super) user: fn(&L::Io) -> Option<u32>,
    pub(super) places: Arc<ConnectionSlots>,
    pub(super) counters: Arc<OutputCounters>,
    pub(super) of: fn(&OutputCounters) -> &ConnectionCounters,
}

impl<L: Listener, E: Entry<L::Io>> Server<L, E> {
    /// Answers from `router` until `shutdown` is done, then lets the answers under way finish.
    pub(super) async fn serve(mut self, router: Router, shutdown: impl Future<Output = ()>) {
        let mut shutdown = pin!(shutdown);
        let mut connections = JoinSet::new();
        let stop = watch::Sender::new(());
        loop {
            let (io, address) = tokio::select! {
                () = &mut shutdown => break,
                Some(_) = connections.join_next() => continue,
                accepted = self.listener.accept() => accepted,
            };
            let address = (self.address)(&address).map(|address| address.to_canonical());
            let connection = Connection {
                place: self.places.take(address),
                address: ClientAddress(address),
                user: ClientUser((self.user)(&io)),
                counters: Arc::clone(&self.counters),
                of: self.of,
                stopping: stop.subscribe(),
            };
            connections.spawn(connection.run(self.entry.clone(), io, router.clone()));
            // A connection that must close is gone before the next one is accepted.
            tokio::task::yield_now().await;
        }
        drop(self.listener);
        stop.send_replace(());
        let ended = async { while connections.join_next().await.is_some() {} };
        // Clients that do not take their answers are not waited for any longer.
        let _ = timeout(LAST_ANSWERS, ended).await;
    }
}

/// A connection with its slot and deadlines.
struct Connection {
    place: ConnectionSlot,
    address: ClientAddress,
    user: ClientUser,
    counters: Arc<OutputCounters>,
    of: fn(&OutputCounters) -> &ConnectionCounters,
    stopping: watch::Receiver<()>,
}

impl Connection {
    /// Answers until the client is done, or has to be closed.
    async fn run<Io, E: Entry<Io>>(mut self, entry: E, io: Io, router: Router) {
        let progress = self.place.progress();
        let must_close = self.place.must_close((self.of)(&self.counters));
        let mut must_close = pin!(must_close);
        let io = tokio::select! {
            entered = entry.enter(io) => match entered {
                Some(io) => io,
                None => return,
            },
            () = &mut must_close => return,
            _ = self.stopping.changed() => return,
        };
        let stream = TokioIo::new(Watched {
            io,
            progress: Arc::clone(progress),
        });
        let (address, user) = (self.address, self.user);
        let service = service_fn(|mut request: hyper::Request<Incoming>| {
            progress.request_arrived();
            request.extensions_mut().insert(address);
            request.extensions_mut().insert(user);
            let answer = TowerToHyperService::new(router.clone()).call(request);
            async {
                let answer: Result<Response, Infallible> = answer.await;
                progress.answer_made();
                answer
            }
        });
        let mut builder = http1::Builder::new();
        // The deadlines are this module's own.
        builder.header_read_timeout(None).max_buf_size(MAX_BUFFERED);
        let mut connection = pin!(builder.serve_connection(stream, service));
        let mut is_stopping = false;
        loop {
            tokio::select! {
                // A client that hangs up, or sends what is not HTTP, ends its connection.
                _ = connection.as_mut() => return,
                () = &mut must_close => return,
                _ = self.stopping.changed(), if !is_stopping => {
                    is_stopping = true;
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    }
}

/// A stream that reports its progress.
struct Watched<Io> {
    io: Io,
    progress: Arc<Progress>,
}

impl<Io: AsyncRead + Unpin> AsyncRead for Watched<Io> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.io).poll_read(context, buffer);
        if buffer.filled().len() > before {
            self.progress.bytes_arrived();
        }
        read
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for Watched<Io> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // hyper flushes the stream only once its own buffer is empty.
        let flushed = Pin::new(&mut self.io).poll_flush(context);
        if let Poll::Ready(Ok(())) = flushed {
            self.progress.all_taken();
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests;
