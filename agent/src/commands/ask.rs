//! One question to the agent on this node, over its local socket.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Method, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use crate::config::ConfigError;
use crate::outputs::socket::Refusal;

/// How long the agent may take to answer.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest answer that is read.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// Why there is no answer to show.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Where the agent's socket is cannot be found out.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// What is asked does not fit into a request.
    #[error("invalid request {request:?}")]
    Request {
        /// Path and query of the request.
        request: String,
        /// Why it is no valid URI.
        source: hyper::http::uri::InvalidUri,
    },
    /// No agent listens on the socket.
    #[error("no agent answers on {path}", path = .path.display())]
    NoAgent {
        /// The socket.
        path: PathBuf,
        /// I/O error of connecting to the socket.
        source: std::io::Error,
    },
    /// The agent did not answer in time.
    #[error("the agent has not answered {request} for {} s", ANSWER_TIMEOUT.as_secs())]
    Timeout {
        /// Path and query of the request.
        request: String,
    },
    /// The connection broke.
    #[error("the connection to the agent broke on {request}")]
    Connection {
        /// Path and query of the request.
        request: String,
        /// What broke the connection.
        source: hyper::Error,
    },
    /// The answer broke off or is too long.
    #[error("cannot read the agent's answer to {request} (at most {MAX_ANSWER_BYTES} bytes)")]
    Body {
        /// Path and query of the request.
        request: String,
        /// What is wrong with the answer.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The agent refused.
    #[error("the agent answered {request} with {status}: {reason}")]
    Refused {
        /// Path and query of the request.
        request: String,
        /// The HTTP status.
        status: u16,
        /// Message of the server.
        reason: String,
    },
    /// The answer is not what this version understands.
    #[error("cannot decode the agent's answer to {request}")]
    Format {
        /// Path and query of the request.
        request: String,
        /// Where the answer cannot be parsed.
        source: serde_json::Error,
    },
}

/// Reads an answer.
///
/// # Errors
/// If it is not what this version understands.
pub(super) fn parse<T: serde::de::DeserializeOwned>(
    request: &str,
    json: &[u8],
) -> Result<T, AskError> {
    serde_json::from_slice(json).map_err(|source| AskError::Format {
        request: request.to_owned(),
        source,
    })
}

/// Asks for something.
///
/// # Errors
/// If no agent answers, or not in a way that can be understood.
pub(super) async fn get(socket: &Path, request: &str) -> Result<Bytes, AskError> {
    ask(socket, Method::GET, request, Bytes::new()).await
}

/// Asks for a change.
///
/// # Errors
/// As [`get`].
pub(super) async fn post(socket: &Path, request: &str, body: Bytes) -> Result<Bytes, AskError> {
    ask(socket, Method::POST, request, body).await
}

async fn ask(socket: &Path, method: Method, request: &str, body: Bytes) -> Result<Bytes, AskError> {
    tokio::time::timeout(ANSWER_TIMEOUT, exchange(socket, method, request, body))
        .await
        .map_err(|_| AskError::Timeout {
            request: request.to_owned(),
        })?
}

async fn exchange(
    socket: &Path,
    method: Method,
    request: &str,
    body: Bytes,
) -> Result<Bytes, AskError> {
    let broke = |source| AskError::Connection {
        request: request.to_owned(),
        source,
    };
    let uri: Uri = request.parse().map_err(|source| AskError::Request {
        request: request.to_owned(),
        source,
    })?;
    let stream = UnixStream::connect(socket)
        .await
        .map_err(|source| AskError::NoAgent {
            path: socket.to_owned(),
            source,
        })?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(broke)?;
    let ask = async {
        let mut message = hyper::Request::new(Full::new(body));
        *message.method_mut() = method;
        *message.uri_mut() = uri;
        message.headers_mut().insert(
            hyper::header::HOST,
            hyper::header::HeaderValue::from_static("gpuacct"),
        );
        let answer = sender.send_request(message).await.map_err(broke)?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES)
            .collect()
            .await
            .map_err(|source| AskError::Body {
                request: request.to_owned(),
                source,
            })?
            .to_bytes();
        if status.is_success() {
            return Ok(body);
        }
        let reason = serde_json::from_slice::<Refusal>(&body)
            .map_or_else(|_| "no reason given".to_owned(), |refusal| refusal.error);
        Err(AskError::Refused {
            request: request.to_owned(),
            status: status.as_u16(),
            reason,
        })
    };
    // The connection moves bytes while the request waits; it ends with the request.
    tokio::pin!(connection);
    tokio::select! {
        biased;
        answer = ask => answer,
        Err(error) = &mut connection => Err(broke(error)),
    }
}

/// A text as the value of a query's parameter: whatever is not plainly safe is escaped.
pub(super) fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_asked_fits_into_a_request() {
        for (text, expected) in [
            ("4711", "4711"),
            ("ns/pod-0.a_b~", "ns%2Fpod-0.a_b~"),
            ("a b&c=d#e?f+%", "a%20b%26c%3Dd%23e%3Ff%2B%25"),
            ("ä\n", "%C3%A4%0A"),
        ] {
            assert_eq!(escaped(text), expected);
            let uri: Result<Uri, _> = format!("/v1/explain?subject={expected}").parse();
            assert!(uri.is_ok(), "{uri:?}");
        }
    }
}
