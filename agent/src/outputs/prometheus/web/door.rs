//! What a connection passes before its first request: the TLS handshake, if there is TLS.

use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use super::Guard;
use crate::maybe_tls::MaybeTls;
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
    type Stream = MaybeTls;

    async fn enter(self, mut stream: TcpStream) -> Option<MaybeTls> {
        let Self(guard) = self;
        let rules = guard.rules().await;
        let Some(tls) = &rules.tls else {
            return Some(MaybeTls::Plain(stream));
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
        match TlsAcceptor::from(Arc::clone(&tls.config))
            .accept(stream)
            .await
        {
            Ok(stream) => Some(MaybeTls::Tls(Box::new(stream.into()))),
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
