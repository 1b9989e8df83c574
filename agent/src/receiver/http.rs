//! HTTP requests to a receiver: what they are made of, and what their answers may be.

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue, USER_AGENT};
use hyper::{Method, Request, Uri};
use hyper_util::client::legacy::{self, Client};
use hyper_util::rt::{TokioExecutor, TokioTimer};

use super::connector::{Connector, Notes};

/// The longest answer that is read, in bytes.
const MAX_ANSWER_BYTES: usize = 64 << 10;

/// What the agent calls itself to receivers.
pub(crate) const AGENT: &str = concat!("gpuacct/", env!("CARGO_PKG_VERSION"));

/// A client that keeps a connection open between two requests. It follows no redirect and uses no
/// proxy, as gRPC does not: a node's collector is rarely behind one.
#[derive(Clone, Debug)]
pub(crate) struct HttpClient {
    client: Client<Connector, Full<Bytes>>,
    notes: Notes,
}

/// An answer, cut where it is longer than any should be.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HttpError {
    /// There is no request.
    #[error("cannot make the request")]
    Request(#[from] hyper::http::Error),
    /// It was not sent, or not answered.
    #[error(transparent)]
    Sending(#[from] legacy::Error),
    /// The answer broke off.
    #[error(transparent)]
    Reading(#[from] hyper::Error),
}

impl HttpError {
    /// Whether nothing was sent because there was no connection.
    pub(crate) fn is_connect(&self) -> bool {
        matches!(self, Self::Sending(error) if error.is_connect())
    }
}

impl HttpClient {
    pub(crate) fn new(connector: Connector) -> Self {
        let notes = connector.notes();
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .build(connector);
        Self { client, notes }
    }

    /// What TLS says on the connections.
    pub(crate) fn notes(&self) -> &Notes {
        &self.notes
    }

    /// Sends protobuf.
    ///
    /// # Errors
    /// If there is no whole answer. A refusal is an answer.
    pub(crate) async fn post(
        &self,
        url: Uri,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Answer, HttpError> {
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(url)
            .body(Full::new(body))?;
        *request.headers_mut() = headers;
        let fixed = [
            (CONTENT_TYPE, "application/x-protobuf"),
            (USER_AGENT, AGENT),
        ];
        for (name, value) in fixed {
            let of_it = request.headers_mut().entry(name);
            of_it.or_insert(HeaderValue::from_static(value));
        }
        let (answer, _) = self.answer(request, MAX_ANSWER_BYTES).await?;
        Ok(answer)
    }

    /// Asks for JSON, and says whether the answer was cut because it is longer than `most` bytes.
    ///
    /// # Errors
    /// If there is no whole answer. A refusal is an answer.
    pub(crate) async fn get(
        &self,
        url: Uri,
        headers: HeaderMap,
        most: usize,
    ) -> Result<(Answer, bool), HttpError> {
        let mut request = Request::builder().uri(url).body(Full::default())?;
        *request.headers_mut() = headers;
        for (name, value) in [(ACCEPT, "application/json"), (USER_AGENT, AGENT)] {
            let of_it = request.headers_mut().entry(name);
            of_it.or_insert(HeaderValue::from_static(value));
        }
        self.answer(request, most).await
    }

    async fn answer(
        &self,
        request: Request<Full<Bytes>>,
        most: usize,
    ) -> Result<(Answer, bool), HttpError> {
        let response = self.client.request(request).await?;
        let (parts, mut read) = response.into_parts();
        let mut body = Vec::new();
        let mut is_cut = false;
        while let Some(frame) = read.frame().await {
            let Ok(chunk) = frame?.into_data() else {
                continue;
            };
            let room = most.saturating_sub(body.len());
            body.extend_from_slice(&chunk[..chunk.len().min(room)]);
            if room < chunk.len() {
                is_cut = true;
                break;
            }
        }
        let answer = Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body: body.into(),
        };
        Ok((answer, is_cut))
    }
}
