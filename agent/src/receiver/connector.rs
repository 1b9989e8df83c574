//! Connections to a receiver, in the clear or by TLS: one kind for gRPC and HTTP, for the books and
//! for the agent's own telemetry.
//!
//! With TLS 1.3 a receiver refuses the agent's certificate after the handshake is over for the agent.
//! HTTP/2 then reports a broken connection and keeps the reason to itself. So the connection itself
//! notes what TLS has said ([`Notes`]), and whoever sends looks it up when a request has failed.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::Uri;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::TlsConnector;
use tower_service::Service;

use super::tls::{AskedInVain, TlsError, TlsFault, TlsFiles};
use crate::maybe_tls::MaybeTls;

/// What is spoken over the connections, in the words of ALPN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Alpn {
    /// HTTP/2, for gRPC.
    H2,
    /// HTTP/1.1.
    Http1,
}

impl Alpn {
    const fn as_bytes(self) -> &'static [u8] {
        match self {
            Self::H2 => b"h2",
            Self::Http1 => b"http/1.1",
        }
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    /// The receiver is not reached.
    #[error("cannot connect")]
    Tcp(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It takes too long.
    #[error("no connection within {0:?}")]
    Slow(Duration),
    /// The connection would not be a safe one.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The task that reads the files was stopped with the agent.
    #[error("the agent is ending")]
    Ending,
}

impl ConnectError {
    /// A short class, for a label.
    pub(crate) fn class(&self) -> &'static str {
        match self {
            Self::Tcp(_) | Self::Slow(_) | Self::Ending => "unavailable",
            Self::Tls(error) => error.class(),
        }
    }
}

/// What TLS has said on connections over which no answer came. Shared by a connector and whoever
/// sends.
#[derive(Clone, Debug, Default)]
pub(crate) struct Notes(Arc<NotesInner>);

#[derive(Debug, Default)]
struct NotesInner {
    fault: Mutex<Option<TlsFault>>,
    /// The last connection's receiver asked for a certificate and got none.
    asked_in_vain: Mutex<Arc<AtomicBool>>,
}

impl Notes {
    /// The fault since the last call, if there was one.
    pub(crate) fn take_fault(&self) -> Option<TlsFault> {
        let mut fault = self.0.fault.lock().unwrap_or_else(PoisonError::into_inner);
        fault.take()
    }

    /// Whether the receiver of the last connection asked for a certificate and got none.
    pub(crate) fn asked_in_vain(&self) -> bool {
        let asked = self.0.asked_in_vain.lock();
        let asked = asked.unwrap_or_else(PoisonError::into_inner);
        asked.load(Ordering::Relaxed)
    }

    fn set_fault(&self, found: TlsFault) {
        let mut fault = self.0.fault.lock().unwrap_or_else(PoisonError::into_inner);
        *fault = Some(found);
    }

    fn connection_begins(&self, asked: &Arc<AtomicBool>) {
        let mut last = self
            .0
            .asked_in_vain
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *last = Arc::clone(asked);
    }
}

/// Connects, and reads the files of TLS anew each time.
#[derive(Clone, Debug)]
pub(crate) struct Connector {
    tcp: HttpConnector,
    tls: Arc<TlsFiles>,
    alpn: Alpn,
    /// How long a connection may take, with its handshake.
    limit: Duration,
    notes: Notes,
}

impl Connector {
    pub(crate) fn new(tls: TlsFiles, alpn: Alpn, limit: Duration) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(limit));
        Self {
            tcp,
            tls: Arc::new(tls),
            alpn,
            limit,
            notes: Notes::default(),
        }
    }

    /// What TLS says on the connections.
    pub(crate) fn notes(&self) -> Notes {
        self.notes.clone()
    }

    /// Connects to a URL, within the limit.
    ///
    /// # Errors
    /// If there is no connection, or none that is safe where the URL wants one.
    pub(crate) async fn connect(self, url: Uri) -> Result<Link, ConnectError> {
        let limit = self.limit;
        tokio::time::timeout(limit, self.connect_unbounded(url))
            .await
            .unwrap_or(Err(ConnectError::Slow(limit)))
    }

    async fn connect_unbounded(mut self, url: Uri) -> Result<Link, ConnectError> {
        let is_tls = url.scheme_str() == Some("https");
        let host = url.host().unwrap_or_default().to_owned();
        std::future::poll_fn(|context| self.tcp.poll_ready(context))
            .await
            .map_err(|error| ConnectError::Tcp(error.into()))?;
        let tcp = self.tcp.call(url).await;
        let tcp = tcp.map_err(|error| ConnectError::Tcp(error.into()))?;
        let stream = tcp.into_inner();
        if !is_tls {
            return Ok(Link::new(
                MaybeTls::Plain(stream),
                self.notes,
                AskedInVain::default(),
            ));
        }
        let (tls, alpn) = (Arc::clone(&self.tls), self.alpn.as_bytes());
        let terms = tokio::task::spawn_blocking(move || tls.read(&host, alpn)).await;
        let terms = terms.map_err(|_| ConnectError::Ending)??;
        let asked = terms.asked;
        self.notes.connection_begins(&asked.is_set);
        let connector = TlsConnector::from(terms.config);
        let stream = connector
            .connect(terms.name, stream)
            .await
            .map_err(|error| match TlsFault::of_io(&error, asked.file()) {
                Some(fault) => TlsError::Handshake(fault),
                None => TlsError::Broken(error),
            })?;
        let stream = MaybeTls::Tls(Box::new(stream.into()));
        Ok(Link::new(stream, self.notes, asked))
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Link>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, url: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move { connector.connect(url).await.map(TokioIo::new) })
    }
}

/// A connection.
#[derive(Debug)]
pub(crate) struct Link {
    stream: MaybeTls,
    notes: Notes,
    /// Whether anything has come back. From then on the receiver has accepted the agent.
    has_read: bool,
    asked: AskedInVain,
}

impl Link {
    const fn new(stream: MaybeTls, notes: Notes, asked: AskedInVain) -> Self {
        Self {
            stream,
            notes,
            has_read: false,
            asked,
        }
    }

    fn noted<T>(&self, done: io::Result<T>) -> io::Result<T> {
        if let Err(error) = &done
            && !self.has_read
            && let Some(fault) = TlsFault::of_io(error, self.asked.file())
        {
            self.notes.set_fault(fault);
        }
        done
    }
}

impl Connection for Link {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl AsyncRead for Link {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = ready!(Pin::new(&mut self.stream).poll_read(context, buffer));
        self.has_read |= buffer.filled().len() > before;
        Poll::Ready(self.noted(read))
    }
}

impl AsyncWrite for Link {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(context, bytes));
        Poll::Ready(self.noted(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = ready!(Pin::new(&mut self.stream).poll_flush(context));
        Poll::Ready(self.noted(flushed))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
