//! Requests to a Docker Engine over its socket, each answer bounded in size.
//!
//! Only GET, and only the five requests that the agent makes. Paths carry no version: the daemon
//! then speaks its own, and nothing has to be negotiated. Each request has its own connection, so
//! that an answer can be abandoned by closing its connection.
//!
//! The client libraries for this API read a whole answer before a caller can bound its size. What
//! they decode takes up to a hundred times the memory of its bytes. So this module reads bytes up
//! to a bound, and the caller decodes a list one element at a time.
//!
//! Units: bytes.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use bytes::{Buf as _, Bytes, BytesMut};
use futures_util::Stream;
use futures_util::stream::try_unfold;
use http_body_util::{BodyExt as _, Empty, LengthLimitError, Limited};
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1;
use hyper::header::{HOST, HeaderValue};
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use serde::de::{DeserializeOwned, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use tokio::net::UnixStream;
use tokio::task::JoinSet;

/// Largest answer about one container, largest element of a list, and largest event. A container has
/// some kilobytes.
pub(super) const MAX_ONE: usize = 1 << 20;
/// Largest list. One of 1,000 containers has two or three megabytes.
pub(super) const MAX_LIST: usize = 8 << 20;
/// Elements of one list that are decoded.
pub(super) const MAX_LISTED: usize = 16_384;
/// Largest explanation of a refusal.
const MAX_REFUSAL: usize = 64 << 10;
/// What a connection buffers: more than a head of any daemon has.
const CONNECTION_BUFFER: usize = 64 << 10;

/// Why a request to a Docker Engine came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Nothing accepts connections.
    #[error("{path}", path = .path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// I/O error of connecting to the socket.
        source: io::Error,
    },
    /// What is asked does not fit into a request.
    #[error("invalid request target {target}")]
    Target {
        /// Path and query of the request.
        target: String,
        /// Why it is no valid URI.
        source: hyper::http::uri::InvalidUri,
    },
    /// The connection broke, or what came is no HTTP.
    #[error("the connection broke")]
    Connection(#[source] hyper::Error),
    /// The answer is larger than what is read of it.
    #[error("the answer is too large: {found} bytes, at most {most}")]
    TooLarge {
        /// Stated size in bytes, or the bytes received so far.
        found: u64,
        /// How large it may be.
        most: usize,
    },
    /// The daemon refused.
    #[error("status {status}: {message}")]
    Status {
        /// The HTTP status.
        status: u16,
        /// Message of the server.
        message: String,
    },
    /// The answer is not what the API promises.
    #[error("the answer cannot be read")]
    Format(#[source] serde_json::Error),
}

/// Whoever answers on a socket.
#[derive(Clone, Debug)]
pub(super) struct Engine {
    socket: PathBuf,
}

/// A container in a list.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Summary {
    pub(super) id: Option<String>,
    pub(super) names: Option<Vec<String>>,
    pub(super) image: Option<String>,
    pub(super) labels: Option<HashMap<String, String>>,
}

/// A container that was asked for alone.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Inspection {
    pub(super) id: Option<String>,
    pub(super) name: Option<String>,
    pub(super) config: Option<InspectedConfig>,
}

/// What a container was started with.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct InspectedConfig {
    pub(super) image: Option<String>,
    pub(super) labels: Option<HashMap<String, String>>,
}

/// Something that happened to a container.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Event {
    /// Only those of containers are asked for.
    #[serde(rename = "Type")]
    _of: Option<String>,
    pub(super) action: Option<String>,
    pub(super) actor: Option<Actor>,
    #[serde(rename = "timeNano")]
    pub(super) time_nano: Option<i64>,
}

/// What an event happened to.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Actor {
    #[serde(rename = "ID")]
    pub(super) id: Option<String>,
    #[serde(rename = "Attributes")]
    pub(super) attributes: Option<HashMap<String, String>>,
}

/// What a daemon says of itself.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Version {
    pub(super) platform: Option<Platform>,
    pub(super) version: Option<String>,
}

/// The product that a daemon is part of.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Platform {
    pub(super) name: String,
}

/// A list whose elements are decoded one at a time.
#[derive(Debug)]
pub(super) struct List {
    body: Bytes,
    /// Where its elements are.
    elements: Vec<Range<usize>>,
    /// Those that are beyond [`MAX_LISTED`] or larger than [`MAX_ONE`].
    pub(super) dropped: usize,
}

impl List {
    pub(super) fn of(body: Bytes) -> Result<Self, EngineError> {
        let listed: Listed<'_> = serde_json::from_slice(&body).map_err(EngineError::Format)?;
        let begin = body.as_ptr().addr();
        let place = |element: &&RawValue| {
            // Borrowed from the body, so it is within it.
            let start = element.get().as_ptr().addr() - begin;
            start..start + element.get().len()
        };
        Ok(Self {
            elements: listed.elements.iter().map(place).collect(),
            dropped: listed.dropped,
            body,
        })
    }

    /// Its containers, each decoded when it is asked for.
    pub(super) fn containers(&self) -> impl Iterator<Item = Result<Summary, serde_json::Error>> {
        let elements = self.elements.iter();
        elements.map(|at| serde_json::from_slice(&self.body[at.clone()]))
    }
}

/// The elements of a list, undecoded.
struct Listed<'a> {
    elements: Vec<&'a RawValue>,
    dropped: usize,
}

impl<'de> Deserialize<'de> for Listed<'de> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Listed<'de>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a list")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut listed = Listed {
                    elements: Vec::new(),
                    dropped: 0,
                };
                while let Some(element) = list.next_element::<&RawValue>()? {
                    if listed.elements.len() < MAX_LISTED && element.get().len() <= MAX_ONE {
                        listed.elements.push(element);
                    } else {
                        listed.dropped += 1;
                    }
                }
                Ok(listed)
            }
        }
        from.deserialize_seq(Entries)
    }
}

impl Engine {
    pub(super) fn new(socket: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
        }
    }

    /// Asks whether anybody answers.
    pub(super) async fn ping(&self) -> Result<(), EngineError> {
        self.get("/_ping", MAX_REFUSAL).await.map(drop)
    }

    /// Asks what the daemon calls itself.
    pub(super) async fn version(&self) -> Result<Version, EngineError> {
        self.read("/version").await
    }

    /// Asks for containers: of any state if `all`, and those that every filter lets through.
    pub(super) async fn list(
        &self,
        all: bool,
        filters: &[(&str, &str)],
    ) -> Result<List, EngineError> {
        let mut target = format!("/containers/json?all={all}");
        if !filters.is_empty() {
            target.push_str("&filters=");
            target.push_str(&encoded(&filter(
                filters.iter().map(|(key, value)| (*key, [*value].to_vec())),
            )));
        }
        List::of(self.get(&target, MAX_LIST).await?)
    }

    /// Asks for one container by its id, which must be fit for a path.
    pub(super) async fn inspect(&self, id: &str) -> Result<Inspection, EngineError> {
        self.read(&format!("/containers/{id}/json")).await
    }

    /// Events of these kinds that happen to containers from `since` on, in seconds of the daemon's
    /// clock. Nothing stands for an event that was too large to be read.
    pub(super) fn events(
        &self,
        since: &str,
        kinds: &[&str],
    ) -> impl Stream<Item = Result<Option<Event>, EngineError>> + use<> {
        let filters = filter([("type", vec!["container"]), ("event", kinds.to_vec())]);
        let target = format!("/events?since={since}&filters={}", encoded(&filters));
        try_unfold(Err((self.clone(), target)), |state| async move {
            let mut lines = match state {
                Ok(lines) => lines,
                Err((engine, target)) => Lines::of(engine.send(&target).await?),
            };
            let event = match lines.next().await? {
                Some(Line::Whole(line)) => {
                    let event = serde_json::from_slice::<Event>(&line);
                    Some(Some(event.map_err(EngineError::Format)?))
                }
                Some(Line::TooLong) => Some(None),
                None => None,
            };
            Ok(event.map(|event| (event, Ok(lines))))
        })
    }

    async fn read<T: DeserializeOwned>(&self, target: &str) -> Result<T, EngineError> {
        let body = self.get(target, MAX_ONE).await?;
        serde_json::from_slice(&body).map_err(EngineError::Format)
    }

    async fn get(&self, target: &str, most: usize) -> Result<Bytes, EngineError> {
        self.send(target).await?.body(most).await
    }

    /// Sends a request, and waits for the head of its answer.
    async fn send(&self, target: &str) -> Result<Answer, EngineError> {
        let uri: Uri = target.parse().map_err(|source| EngineError::Target {
            target: target.to_owned(),
            source,
        })?;
        let stream =
            UnixStream::connect(&self.socket)
                .await
                .map_err(|source| EngineError::Connect {
                    path: self.socket.clone(),
                    source,
                })?;
        let (mut sender, connection) = http1::Builder::new()
            .max_buf_size(CONNECTION_BUFFER)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(EngineError::Connection)?;
        let mut driver = JoinSet::new();
        // A failure of the connection is returned to the waiting request.
        driver.spawn(async move { drop(connection.await) });
        let mut request = Request::new(Empty::<Bytes>::new());
        *request.uri_mut() = uri;
        let host = HeaderValue::from_static("docker");
        request.headers_mut().insert(HOST, host);
        let response = sender
            .send_request(request)
            .await
            .map_err(EngineError::Connection)?;
        let answer = Answer {
            response,
            _sender: sender,
            _driver: driver,
        };
        answer.accepted().await
    }
}

/// An answer whose head has come, and the connection that its body comes over.
struct Answer {
    response: Response<Incoming>,
    _sender: http1::SendRequest<Empty<Bytes>>,
    /// Task that drives the connection; it is aborted on drop.
    _driver: JoinSet<()>,
}

impl Answer {
    /// The answer, if it is not a refusal.
    async fn accepted(self) -> Result<Self, EngineError> {
        #[derive(Deserialize)]
        struct Refusal {
            message: String,
        }
        let status = self.response.status();
        if status.is_success() {
            return Ok(self);
        }
        let body = self.body(MAX_REFUSAL).await?;
        let message = match serde_json::from_slice::<Refusal>(&body) {
            Ok(refusal) => refusal.message,
            Err(_) => StatusCode::canonical_reason(&status)
                .unwrap_or("no reason given")
                .to_owned(),
        };
        Err(EngineError::Status {
            status: status.as_u16(),
            message,
        })
    }

    /// The whole body, `most` bytes of it.
    async fn body(self, most: usize) -> Result<Bytes, EngineError> {
        let body = self.response.into_body();
        let declared = body.size_hint().lower();
        let too_large = |found| EngineError::TooLarge { found, most };
        if usize::try_from(declared).is_ok_and(|declared| declared > most) {
            return Err(too_large(declared));
        }
        match Limited::new(body, most).collect().await {
            Ok(body) => Ok(body.to_bytes()),
            Err(error) if error.is::<LengthLimitError>() => {
                // The answer has no stated size, and this many bytes have arrived.
                Err(too_large(
                    u64::try_from(most).unwrap_or(u64::MAX).saturating_add(1),
                ))
            }
            Err(error) => Err(match error.downcast::<hyper::Error>() {
                Ok(error) => EngineError::Connection(*error),
                Err(other) => EngineError::Format(serde::de::Error::custom(other)),
            }),
        }
    }
}

/// A line of a stream.
enum Line {
    Whole(BytesMut),
    /// It had more than [`MAX_ONE`] bytes, and was not kept.
    TooLong,
}

/// A body that is read line by line, with no more than a line in memory.
struct Lines {
    answer: Answer,
    buffer: BytesMut,
    /// How much of the buffer is known to have no line's end.
    searched: usize,
    /// Whether the line that is coming is too long already.
    is_too_long: bool,
}

impl Lines {
    fn of(answer: Answer) -> Self {
        Self {
            answer,
            buffer: BytesMut::new(),
            searched: 0,
            is_too_long: false,
        }
    }

    /// The next line that is not empty.
    async fn next(&mut self) -> Result<Option<Line>, EngineError> {
        loop {
            while let Some(line) = self.cut() {
                match line {
                    Line::Whole(line) if line.trim_ascii().is_empty() => {}
                    line => return Ok(Some(line)),
                }
            }
            let Some(frame) = self.answer.response.body_mut().frame().await else {
                let rest = std::mem::take(&mut self.buffer);
                let has_rest = !rest.trim_ascii().is_empty();
                return Ok(has_rest.then_some(Line::Whole(rest)));
            };
            let frame = frame.map_err(EngineError::Connection)?;
            if let Some(data) = frame.data_ref() {
                self.buffer.extend_from_slice(data);
            }
        }
    }

    /// Cuts the next line off the buffer, if it is there.
    fn cut(&mut self) -> Option<Line> {
        let end = self.buffer[self.searched..]
            .iter()
            .position(|b| *b == b'\n');
        let Some(end) = end else {
            self.searched = self.buffer.len();
            if self.is_too_long || self.searched > MAX_ONE {
                self.is_too_long = true;
                self.searched = 0;
                self.buffer.clear();
            }
            return None;
        };
        let line = self.buffer.split_to(self.searched + end);
        self.buffer.advance(1);
        self.searched = 0;
        let is_too_long = std::mem::take(&mut self.is_too_long) || line.len() > MAX_ONE;
        Some(if is_too_long {
            Line::TooLong
        } else {
            Line::Whole(line)
        })
    }
}

/// A filter as the API wants it: for each key the values of which one must fit.
fn filter<'a>(of: impl IntoIterator<Item = (&'a str, Vec<&'a str>)>) -> String {
    let of: serde_json::Map<_, _> = of
        .into_iter()
        .map(|(key, values)| (key.to_owned(), values.into()))
        .collect();
    serde_json::Value::Object(of).to_string()
}

/// A text as it stands in the query of a target.
fn encoded(text: &str) -> String {
    use std::fmt::Write as _;
    let mut target = String::with_capacity(text.len() * 3);
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            target.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(target, "%{byte:02X}");
        }
    }
    target
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_many_or_large_elements_is_cut_before_it_is_decoded() {
        let read = |text: String| List::of(Bytes::from(text));
        let found = read(format!("[{}]", vec!["{}"; MAX_LISTED + 7].join(","))).unwrap();
        assert_eq!((found.elements.len(), found.dropped), (MAX_LISTED, 7));
        let large = format!(r#"[{{"Id":"{}"}}, {{"Id":"a"}} ,7]"#, "x".repeat(MAX_ONE));
        let found = read(large).unwrap();
        assert_eq!((found.elements.len(), found.dropped), (2, 1));
        let containers: Vec<_> = found.containers().collect();
        assert!(
            matches!(&containers[..], [Ok(one), Err(_)] if one.id.as_deref() == Some("a")),
            "{containers:?}"
        );
        for no_list in ["{}", "[{},", "", "null", "[{}] 7"] {
            let refused = read(no_list.to_owned());
            assert!(matches!(refused, Err(EngineError::Format(_))), "{no_list}");
        }
    }

    #[test]
    fn filters_are_json_in_a_query() {
        let filters = filter([("type", vec!["container"]), ("event", vec!["start", "die"])]);
        assert_eq!(filters, r#"{"event":["start","die"],"type":["container"]}"#);
        assert_eq!(
            encoded(r#"{"a":["b c"]}"#),
            "%7B%22a%22%3A%5B%22b%20c%22%5D%7D"
        );
    }
}
