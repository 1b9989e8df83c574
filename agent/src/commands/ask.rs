//! One question to the agent on this node, over its local socket.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Method, Uri};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;

use crate::config::ConfigError;
use crate::errors::{MAX_REPEATED_BYTES, quoted};
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
        source: io::Error,
    },
    /// This user may not open the socket. An agent may well be behind it.
    #[error("this user may not open the agent's socket {path}", path = .path.display())]
    Denied {
        /// The socket.
        path: PathBuf,
        /// I/O error of connecting to the socket.
        source: io::Error,
    },
    /// What listens on the socket is no agent.
    #[error("what answers on {path} is no gpuacct agent: asked for {request}, it said {said}", path = .path.display())]
    Foreign {
        /// The socket.
        path: PathBuf,
        /// Path and query of the request.
        request: String,
        /// Beginning of its answer, quoted.
        said: String,
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
    #[error("cannot decode the answer to {request}, which begins with {said}")]
    Format {
        /// Path and query of the request.
        request: String,
        /// Beginning of the answer, quoted.
        said: String,
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
        said: quoted(json),
        source,
    })
}

impl AskError {
    /// What the user can do about it; nothing where the message says it.
    pub(super) fn remedy(&self) -> Option<&'static str> {
        match self {
            Self::NoAgent { .. } => Some(
                "see whether the agent runs; name its socket with --socket, or its configuration with \
                 --config",
            ),
            Self::Denied { .. } => Some(
                "run this as root (sudo), in the agent's pod (kubectl exec), or as a member of \
                 socket.group, if the agent has one",
            ),
            Self::Foreign { .. } | Self::Format { .. } => Some(
                "name the agent's socket with --socket or GPUACCT_SOCKET, and use the version of \
                 gpuacct that the agent has",
            ),
            Self::Timeout { .. } => Some(
                "the agent is overloaded or stopped: its log (journalctl -u gpuacct) may say why",
            ),
            Self::Connection { .. } | Self::Body { .. } => Some("look into the agent's log"),
            // The remedy of its cause.
            Self::Config(_) => None,
            Self::Request { .. } | Self::Refused { .. } => None,
        }
    }
}

/// Why nothing could be asked on a socket.
fn unreachable(socket: &Path, source: io::Error) -> AskError {
    let path = socket.to_owned();
    match source.kind() {
        ErrorKind::PermissionDenied => AskError::Denied { path, source },
        _ => AskError::NoAgent { path, source },
    }
}

/// A connection that keeps the beginning of what it reads: a program that speaks no HTTP is quoted.
struct Overheard {
    stream: UnixStream,
    beginning: Arc<Mutex<Vec<u8>>>,
}

impl AsyncRead for Overheard {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        let mut beginning = self
            .beginning
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let room = MAX_REPEATED_BYTES.saturating_sub(beginning.len());
        beginning.extend(buffer.filled()[before..].iter().take(room));
        read
    }
}

impl AsyncWrite for Overheard {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
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
    let foreign = |said: &[u8]| AskError::Foreign {
        path: socket.to_owned(),
        request: request.to_owned(),
        said: quoted(said),
    };
    let beginning = Arc::new(Mutex::new(Vec::new()));
    let broke = |source: hyper::Error| {
        let beginning = beginning.lock().unwrap_or_else(PoisonError::into_inner);
        if source.is_parse() && !beginning.is_empty() {
            return foreign(&beginning);
        }
        AskError::Connection {
            request: request.to_owned(),
            source,
        }
    };
    let uri: Uri = request.parse().map_err(|source| AskError::Request {
        request: request.to_owned(),
        source,
    })?;
    let stream = UnixStream::connect(socket)
        .await
        .map_err(|source| unreachable(socket, source))?;
    let stream = Overheard {
        stream,
        beginning: Arc::clone(&beginning),
    };
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
        // An agent answers with JSON, and its probes with plain text.
        let kind = answer.headers().get(hyper::header::CONTENT_TYPE);
        let kind = kind.map(|kind| kind.as_bytes().to_ascii_lowercase());
        let is_agents = kind.is_none_or(|kind| {
            kind.starts_with(b"application/json") || kind.starts_with(b"text/plain")
        });
        let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES)
            .collect()
            .await
            .map_err(|source| AskError::Body {
                request: request.to_owned(),
                source,
            })?
            .to_bytes();
        if status.is_success() && is_agents {
            return Ok(body);
        }
        let reason = match serde_json::from_slice::<Refusal>(&body) {
            Ok(refusal) if is_agents => refusal.error,
            // An agent that does not know the request says nothing.
            Err(_) if body.is_empty() => "no reason given".to_owned(),
            _ => {
                return Err(foreign(
                    &[status.to_string().as_bytes(), b": ", &body].concat(),
                ));
            }
        };
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
    use crate::errors::chain;

    #[test]
    fn a_missing_permission_is_not_a_missing_agent() {
        let socket = Path::new("/run/gpuacct/gpuacct.sock");
        for (kind, words, remedy) in [
            (ErrorKind::PermissionDenied, "may not open", "as root"),
            (
                ErrorKind::NotFound,
                "no agent answers",
                "see whether the agent runs",
            ),
            (
                ErrorKind::ConnectionRefused,
                "no agent answers",
                "see whether the agent runs",
            ),
        ] {
            let error = unreachable(socket, kind.into());
            assert!(chain(&error).contains(words), "{kind}: {error}");
            let said = error.remedy().unwrap();
            assert!(said.contains(remedy), "{kind}: {said}");
        }
    }

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
