//! gRPC over a Unix socket: connecting within a time limit, and failures with a class and words.
//!
//! What listens on a path may be anything. Something that does not speak HTTP/2 is distinguished from
//! something that hung up, and both from an answer that says no. Whoever hangs up before the first
//! answer counts among the former: a server of another protocol may do so before anybody has read
//! what it said, and nothing else is known of it.

use std::error::Error as StdError;
use std::io::{self, ErrorKind};
use std::marker::PhantomData;
use std::path::Path;
use std::time::Duration;

use crate::errors::{causes, chain};

use bytes::{Buf as _, Bytes};
use prost::Message;
use tokio::time::timeout;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};
use tonic_prost::ProstEncoder;

use super::Counters;
use super::elements::Malformed;
use super::fault::SessionError as _;
use super::socket_file::io_class;

/// Largest answer about one container or one pod, and largest event, in bytes.
pub(super) const MAX_ONE: usize = 1 << 20;
/// Largest list that is taken, in bytes. A list of 500 containers has one or two megabytes. Several
/// of them fit the memory that the manifests allow the agent (docs/SECURITY.md).
pub(super) const MAX_LIST: usize = 8 << 20;

/// Why a server could not be used, or not any longer.
#[derive(Debug, thiserror::Error)]
pub(super) enum GrpcError {
    #[error("{path}: {}", chain(.source))]
    Connect {
        path: String,
        class: &'static str,
        source: tonic::transport::Error,
    },
    #[error("{at}: hung up before any answer: {words}")]
    HungUp { at: String, words: String },
    #[error("{call}: no answer within {limit:?}")]
    Timeout { call: &'static str, limit: Duration },
    #[error("{call}: {}", words(.source))]
    Call {
        call: &'static str,
        class: &'static str,
        source: Box<Status>,
    },
    #[error("{call}: {source}")]
    Malformed {
        call: &'static str,
        source: Malformed,
    },
}

impl GrpcError {
    pub(super) fn call(call: &'static str, source: Status) -> Self {
        Self::Call {
            call,
            class: class_of(&source),
            source: Box::new(source),
        }
    }

    /// Whether an answer came, and was about what had been asked: the next question may fare better.
    pub(super) fn is_an_answer(&self) -> bool {
        match self {
            Self::Malformed { .. } => true,
            Self::Call { class, source, .. } => {
                *class == "status" || (*class == "protocol" && source.source().is_none())
            }
            _ => false,
        }
    }

    /// Whether the server answered that it does not know what was asked for.
    pub(super) fn is_not_found(&self) -> bool {
        matches!(self, Self::Call { source, class: "status", .. } if source.code() == Code::NotFound)
    }

    /// Whether the answer is larger than what is taken. It says how large both are.
    pub(super) fn is_too_large(&self) -> bool {
        self.class() == "too_large"
    }

    pub(super) fn is_unimplemented(&self) -> bool {
        self.class() == "unimplemented"
    }

    /// Counts what ended a session.
    pub(super) fn count(&self, counters: &Counters) {
        Counters::count(&counters.disconnects);
        match self.class() {
            "protocol" => Counters::count(&counters.invalid_replies),
            "timeout" => Counters::count(&counters.timeouts),
            "too_large" => Counters::count(&counters.answers_too_large),
            _ => {}
        }
    }
}

impl super::fault::SessionError for GrpcError {
    fn class(&self) -> &'static str {
        match self {
            Self::HungUp { .. } | Self::Malformed { .. } => "protocol",
            Self::Timeout { .. } => "timeout",
            Self::Connect { class, .. } | Self::Call { class, .. } => class,
        }
    }
}

/// A short class for a failed call.
fn class_of(status: &Status) -> &'static str {
    if let Some(class) = status.source().and_then(transport_class) {
        return class;
    }
    match status.code() {
        // A web server that speaks HTTP/2; or bytes that are no message.
        _ if status.message().starts_with("grpc-status header missing") => "protocol",
        Code::Internal if status.message().starts_with("failed to decode") => "protocol",
        Code::Unimplemented => "unimplemented",
        Code::DeadlineExceeded => "timeout",
        Code::PermissionDenied | Code::Unauthenticated => "permission",
        Code::OutOfRange => "too_large",
        Code::Unavailable => "unavailable",
        _ => "status",
    }
}

fn transport_class(error: &(dyn StdError + 'static)) -> Option<&'static str> {
    let mut known = None;
    for error in causes(error) {
        if let Some(http2) = error.downcast_ref::<h2::Error>() {
            return Some(match http2.get_io() {
                Some(io) => io_class(io.kind()),
                None if http2.reason().is_some_and(is_an_end) => "closed",
                None => "protocol",
            });
        }
        if let Some(http) = error.downcast_ref::<hyper::Error>() {
            let gone = http.is_incomplete_message() || http.is_closed() || http.is_canceled();
            known = Some(if gone { "closed" } else { "protocol" });
        } else if let Some(io) = error.downcast_ref::<io::Error>()
            // These two kinds are only the clothes of the next error in the chain.
            && !matches!(io.kind(), ErrorKind::Other | ErrorKind::InvalidData)
        {
            return Some(io_class(io.kind()));
        }
    }
    known
}

/// Whether HTTP/2 has this reason for ending a stream or a connection, and not for a breach of the
/// protocol (RFC 9113, section 7). A server that is shut down cancels the streams under way.
fn is_an_end(reason: h2::Reason) -> bool {
    matches!(
        reason,
        h2::Reason::NO_ERROR | h2::Reason::CANCEL | h2::Reason::REFUSED_STREAM
    )
}

/// Message of a status: the server's own, or the cause of the failure.
fn words(status: &Status) -> String {
    match status.source() {
        Some(source) => chain(source),
        None => format!("{:?}: {}", status.code(), status.message()),
    }
}

/// A connection, made now.
pub(super) async fn connect(path: &Path, limit: Duration) -> Result<Channel, GrpcError> {
    let text = path.display().to_string();
    let failed = |source: tonic::transport::Error| match transport_class(&source) {
        Some("closed") => GrpcError::HungUp {
            at: text.clone(),
            words: chain(&source),
        },
        class => GrpcError::Connect {
            class: class.unwrap_or("io"),
            path: text.clone(),
            source,
        },
    };
    let endpoint = Endpoint::from_shared(format!("unix://{text}")).map_err(failed)?;
    match timeout(limit, endpoint.connect()).await {
        Ok(connected) => connected.map_err(failed),
        Err(_) => Err(GrpcError::Timeout {
            call: "connect",
            limit,
        }),
    }
}

/// Asks for an answer and takes the bytes of its message, `most` of them, so that a list in it can be
/// decoded one element at a time.
pub(super) async fn ask<Q: Message + 'static>(
    channel: &Channel,
    method: &'static str,
    request: Q,
    most: usize,
) -> Result<Response<Bytes>, Status> {
    let mut client = Grpc::new(channel.clone()).max_decoding_message_size(most);
    client
        .ready()
        .await
        .map_err(|error| Status::from_error(error.into()))?;
    let method = PathAndQuery::from_static(method);
    let codec = Undecoded::<Q>(PhantomData);
    client.unary(Request::new(request), method, codec).await
}

/// Encodes requests, and leaves answers as they are.
struct Undecoded<Q>(PhantomData<Q>);

impl<Q: Message + 'static> Codec for Undecoded<Q> {
    type Encode = Q;
    type Decode = Bytes;
    type Encoder = ProstEncoder<Q>;
    type Decoder = Self;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::default()
    }

    fn decoder(&mut self) -> Self::Decoder {
        Self(PhantomData)
    }
}

impl<Q> Decoder for Undecoded<Q> {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, message: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(message.copy_to_bytes(message.remaining())))
    }
}

/// The first request on a connection: who hangs up on it has not answered anything.
pub(super) async fn first_call<T>(
    name: &'static str,
    limit: Duration,
    counters: &Counters,
    request: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, GrpcError> {
    let reply = call(name, limit, counters, request).await;
    reply.map_err(|fault| match fault {
        GrpcError::Call {
            call,
            class: "closed",
            source,
        } => GrpcError::HungUp {
            at: call.to_owned(),
            words: words(&source),
        },
        other => other,
    })
}

/// One request, bounded in time.
pub(super) async fn call<T>(
    name: &'static str,
    limit: Duration,
    counters: &Counters,
    request: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, GrpcError> {
    Counters::count(&counters.calls);
    match timeout(limit, request).await {
        Ok(Ok(reply)) => Ok(reply.into_inner()),
        Ok(Err(status)) => Err(GrpcError::call(name, status)),
        Err(_) => Err(GrpcError::Timeout { call: name, limit }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_cancels_a_stream_speaks_no_other_protocol() {
        let rows = [
            (h2::Reason::NO_ERROR, "closed"),
            (h2::Reason::CANCEL, "closed"),
            (h2::Reason::REFUSED_STREAM, "closed"),
            (h2::Reason::PROTOCOL_ERROR, "protocol"),
            (h2::Reason::HTTP_1_1_REQUIRED, "protocol"),
        ];
        for (reason, class) in rows {
            let error = h2::Error::from(reason);
            assert_eq!(transport_class(&error), Some(class), "{reason:?}");
        }
    }
}
