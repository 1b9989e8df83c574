//! What a connection passes before its first request: the TLS handshake, if there is TLS.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::Guard;
use crate::outputs::connections::Entry;

/// The first byte of a TLS handshake.
const HANDSHAKE: u8 = 0x16;
/// How a request begins that was sent in the clear, as Go's server recognises it.
const REQUESTS: [&[u8; 5]; 5] = [b"GET /", b"HEAD ", b"POST ", b"PUT /", b"OPTIO"];
/// What such a client is told, in the words of Go's server.
const NOT_TLS: &[u8] =
    b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n";
/// How much more of such a request is read, in bytes. A connection that is closed with bytes unread
/// may lose the answer.
const REST: u64 = 64 << 10;

/// Lets connections in.
#[derive(Clone)]
pub(crate) struct Door(pub(crate) Arc<Guard>);

impl Entry<TcpStream> for Door {
    type Stream = Entered;

    async fn enter(self, mut stream: TcpStream) -> Option<Entered> {
        let Self(guard) = self;
        let rules = guard.rules().await;
        let Some(tls) = &rules.tls else {
            return Some(Entered::Plain(stream));
        };
        let refused = &guard.counters.metrics_refused;
        let mut first = [0];
        if stream.peek(&mut first).await.ok()? == 0 {
            return None;
        }
        if first != [HANDSHAKE] {
            refused.not_tls.add(1);
            tell_not_tls(&mut stream).await;
            return None;
        }
        match TlsAcceptor::from(Arc::clone(tls)).accept(stream).await {
            Ok(stream) => Some(Entered::Tls(Box::new(stream))),
            // The client has been told why, by an alert.
            Err(_) => {
                refused.handshake.add(1);
                None
            }
        }
    }
}

/// Answers a request that was sent in the clear.
async fn tell_not_tls(stream: &mut TcpStream) {
    let mut begin = [0; 5];
    if stream.read_exact(&mut begin).await.is_err() || !REQUESTS.contains(&&begin) {
        return;
    }
    // A client that is gone has no use for the answer.
    if stream.write_all(NOT_TLS).await.is_ok() && stream.shutdown().await.is_ok() {
        let mut rest = stream.take(REST);
        let _ = tokio::io::copy(&mut rest, &mut tokio::io::sink()).await;
    }
}

/// A connection that may send requests.
pub(crate) enum Entered {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Entered {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Entered {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(context, slices),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
