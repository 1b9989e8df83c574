//! One message to the receiver and its verdict, over gRPC or HTTP/protobuf.
//!
//! The two differ in how they fail; what comes out is one [`Failure`] that says in which class, in
//! which words, and whether the OTLP specification wants it tried again. The receiver's words are
//! bounded and freed of control characters, since they end up in logs and on terminals, and of what it
//! was sent and repeats.

use std::io::Write as _;
use std::iter;
use std::time::Duration;

use bytes::Bytes;
use flate2::write::GzEncoder;
use hyper::Uri;
use hyper::header::{CONTENT_ENCODING, HeaderMap, HeaderValue};
use prost::Message as _;
use tonic::Code;
use tonic::metadata::MetadataMap;
use tonic_types::StatusExt as _;

use super::signal::{Accepted, Signal};
use crate::errors::{causes, chain, without_repetitions};
use crate::outputs::receiver::{Compression, Protocol, Receiver, ReceiverError};
use crate::receiver::{ConnectError, HeaderError, HttpClient, HttpError, Notes};
use crate::secrets::Secrets;

/// The most that is kept of a receiver's words.
const MAX_REASON_CHARS: usize = 200;
/// How tonic begins its words where there is an answer of HTTP without one of gRPC: a gateway's, which
/// does not know what became of the message behind it.
const NOT_THE_RECEIVERS: &str = "grpc-status header missing";
/// The longest pause that a receiver may ask for.
const MAX_PAUSE: Duration = Duration::from_secs(600);

/// A way to the receiver of a signal.
#[derive(Debug)]
pub(super) struct Transport<S: Signal> {
    way: OtlpClient<S>,
    receiver: Receiver,
    notes: Notes,
}

#[derive(Debug)]
enum OtlpClient<S: Signal> {
    Grpc(S::Client),
    Http { client: Box<HttpClient>, url: Uri },
}

/// The receiver did not take the message.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Failure {
    /// A short class, for a label.
    pub(super) class: &'static str,
    /// Reason in words.
    pub(super) reason: String,
    /// Whether to try again before the next interval, and after which pause if the receiver asks
    /// for one.
    pub(super) retry: Retry,
    /// Whether it may have arrived all the same.
    pub(super) arrival: Arrival,
    /// Whether the receiver refused what is in the message, and not who sends it or at what time. A
    /// smaller message, or one without a part of it, may be taken.
    pub(super) is_of_content: bool,
}

/// Whether a failed message may have arrived. If so, its deltas must not be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// Nobody was there, or the receiver itself refused it or asked for a retry.
    No,
    /// There was no answer, or one that leaves it open: from a gateway that lost its receiver, an
    /// internal error of the receiver, or an overloaded receiver that does not ask for a retry.
    Unknown,
}

/// Whether the OTLP specification wants a failed message to be tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Retry {
    /// After the backoff.
    Backoff,
    /// After the pause that the receiver asks for.
    After(Duration),
    /// Not with this message: the receiver will not like it better then.
    Never,
}

impl<S: Signal> Transport<S> {
    /// A way to the receiver; nothing is connected yet.
    pub(super) fn new(receiver: &Receiver) -> Result<Self, ReceiverError> {
        // Those in files are read with each message.
        receiver.header_map()?;
        let (way, notes) = match receiver.protocol {
            Protocol::Grpc => {
                let (channel, notes) = receiver.channel()?;
                let is_compressed = receiver.compression == Compression::Gzip;
                (OtlpClient::Grpc(S::client(channel, is_compressed)), notes)
            }
            Protocol::HttpProtobuf => {
                let url = receiver.signal_url(S::NAME)?;
                let url = url
                    .as_str()
                    .parse()
                    .map_err(|error| receiver.wrong(error))?;
                let client = receiver.http_client();
                let notes = client.notes().clone();
                let client = Box::new(client);
                (OtlpClient::Http { client, url }, notes)
            }
        };
        Ok(Self {
            way,
            receiver: receiver.clone(),
            notes,
        })
    }

    /// Sends one message and waits for the verdict, no longer than the time-out.
    pub(super) async fn send(&mut self, request: S::Request) -> Result<Accepted, Failure> {
        let timeout = self.receiver.timeout;
        // What an earlier connection left is no answer to this message.
        drop(self.notes.take_fault());
        let headers = tokio::time::timeout(timeout, self.headers()).await;
        let headers = headers.unwrap_or_else(|_| {
            Err(Failure {
                class: "timeout",
                reason: format!("the files of headers were not read within {timeout:?}"),
                retry: Retry::Backoff,
                arrival: Arrival::No,
                is_of_content: false,
            })
        })?;
        let secrets = headers.values().filter_map(|value| value.to_str().ok());
        let secrets = Secrets::of(secrets, None);
        let exchange = async {
            match &mut self.way {
                OtlpClient::Grpc(client) => grpc::<S>(client, headers, request).await,
                OtlpClient::Http { client, url } => {
                    http::<S>(client, url, headers, &request, self.receiver.compression).await
                }
            }
        };
        let verdict = tokio::time::timeout(timeout, exchange)
            .await
            .unwrap_or_else(|_| {
                Err(Failure {
                    class: "timeout",
                    reason: format!("no answer within {timeout:?}"),
                    retry: Retry::Backoff,
                    arrival: Arrival::Unknown,
                    is_of_content: false,
                })
            });
        let words = |words: &str| bounded(&secrets.struck_out(words));
        match verdict {
            Ok(accepted) => Ok(Accepted {
                message: words(&accepted.message),
                ..accepted
            }),
            Err(failure) => {
                let failure = self.explained(failure);
                Err(Failure {
                    reason: words(&failure.reason),
                    ..failure
                })
            }
        }
    }

    /// The headers of a message, as the files are now.
    async fn headers(&self) -> Result<HeaderMap, Failure> {
        if self.receiver.header_files.is_empty() {
            return self.receiver.headers_now().map_err(|error| unsent(&error));
        }
        let receiver = self.receiver.clone();
        match tokio::task::spawn_blocking(move || receiver.headers_now()).await {
            Ok(headers) => headers.map_err(|error| unsent(&error)),
            Err(_) => Err(Failure {
                class: "header",
                reason: "the agent is ending".to_owned(),
                retry: Retry::Backoff,
                arrival: Arrival::No,
                is_of_content: false,
            }),
        }
    }

    /// The same failure with what TLS has said on the connection, which is the reason where there is
    /// one.
    fn explained(&self, failure: Failure) -> Failure {
        if let Some(fault) = self.notes.take_fault() {
            return Failure {
                class: fault.class(),
                reason: fault.to_string(),
                arrival: match fault.is_the_receivers() {
                    true => Arrival::No,
                    false => failure.arrival,
                },
                retry: Retry::Backoff,
                is_of_content: false,
            };
        }
        // Some receivers answer a request without a certificate by an error of HTTP.
        let is_refusal = matches!(failure.class, "protocol" | "permission");
        if is_refusal && self.notes.asked_in_vain() {
            return Failure {
                class: "tls_client_certificate",
                reason: format!(
                    "{}; the receiver asked for a client certificate, and otlp.tls.cert_file names none",
                    failure.reason
                ),
                // Whoever answers so has not looked at the message.
                is_of_content: false,
                ..failure
            };
        }
        failure
    }
}

/// A message that cannot be sent for want of a header.
fn unsent(error: &HeaderError) -> Failure {
    Failure {
        class: error.class(),
        reason: chain(error),
        retry: Retry::Backoff,
        arrival: Arrival::No,
        is_of_content: false,
    }
}

async fn grpc<S: Signal>(
    client: &mut S::Client,
    headers: HeaderMap,
    message: S::Request,
) -> Result<Accepted, Failure> {
    let mut request = tonic::Request::new(message);
    *request.metadata_mut() = MetadataMap::from_headers(headers);
    let status = match S::export(client, request).await {
        Ok(response) => return Ok(S::accepted(response.into_inner())),
        Err(status) => status,
    };
    let retry_info = status.get_details_retry_info();
    let asks_again = retry_info.is_some();
    let pause = retry_info.and_then(|info| info.retry_delay);
    let retry = match status.code() {
        Code::Cancelled
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unavailable
        | Code::DataLoss => pause.map_or(Retry::Backoff, after),
        // Only a receiver that says when it will recover will do so.
        Code::ResourceExhausted => pause.map_or(Retry::Never, after),
        _ => Retry::Never,
    };
    let mut class = match status.code() {
        Code::Unavailable => "unavailable",
        Code::DeadlineExceeded | Code::Cancelled => "timeout",
        Code::PermissionDenied | Code::Unauthenticated => "permission",
        Code::ResourceExhausted => "overloaded",
        _ => "protocol",
    };
    let mut arrival = match status.code() {
        Code::InvalidArgument
        | Code::NotFound
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::Unimplemented
        | Code::Unauthenticated => Arrival::No,
        Code::ResourceExhausted | Code::Unavailable => overwhelmed(asks_again),
        _ => Arrival::Unknown,
    };
    if status.message().starts_with(NOT_THE_RECEIVERS) {
        arrival = Arrival::Unknown;
    }
    // tonic says "transport error" or "tcp connect error" and hides the rest in the causes.
    let words = format!("{:?}: {}", status.code(), status.message());
    let hidden = || causes(&status).skip(1);
    let mut reason =
        without_repetitions(iter::once(words).chain(hidden().map(ToString::to_string)));
    let mut connected = true;
    let mut is_of_content = status.code() == Code::InvalidArgument;
    for error in hidden() {
        connected &= !error.is::<tonic::ConnectError>();
        if let Some(error) = error.downcast_ref::<ConnectError>() {
            (class, reason) = (error.class(), chain(error));
        }
        // With a cause the status is not the receiver's: something broke on the way.
        is_of_content = false;
        arrival = if connected {
            Arrival::Unknown
        } else {
            Arrival::No
        };
    }
    Err(Failure {
        class,
        reason,
        retry,
        arrival,
        is_of_content,
    })
}

async fn http<S: Signal>(
    client: &HttpClient,
    url: &Uri,
    mut headers: HeaderMap,
    message: &S::Request,
    compression: Compression,
) -> Result<Accepted, Failure> {
    let broken = |error: HttpError| {
        let refusal = causes(&error).find_map(|cause| cause.downcast_ref::<ConnectError>());
        let (class, arrival) = match (refusal, error.is_connect()) {
            (Some(refusal), _) => (refusal.class(), Arrival::No),
            (None, true) => ("unavailable", Arrival::No),
            (None, false) => ("protocol", Arrival::Unknown),
        };
        Failure {
            class,
            reason: refusal.map_or_else(|| chain(&error), |refusal| chain(refusal)),
            retry: Retry::Backoff,
            arrival,
            is_of_content: false,
        }
    };
    let body = match compression {
        Compression::None => message.encode_to_vec(),
        Compression::Gzip => {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            gzip(&message.encode_to_vec())
        }
    };
    let answer = client.post(url.clone(), headers, Bytes::from(body)).await;
    let answer = answer.map_err(broken)?;
    let (status, body) = (answer.status, answer.body);
    let retry_after = answer.headers.get("retry-after");
    let asks_again = retry_after.is_some();
    let pause = retry_after
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.trim().parse().ok())
        .map(Duration::from_secs);
    if (200..300).contains(&status) {
        return match S::Response::decode(&body[..]) {
            Ok(answer) => Ok(S::accepted(answer)),
            // It accepted the message. An unreadable body changes nothing.
            Err(error) => Ok(Accepted {
                rejected: 0,
                message: format!("the answer is not OTLP: {error}"),
            }),
        };
    }
    let words = RpcStatus::decode(&body[..])
        .map(|status| status.message)
        .unwrap_or_default();
    let class = match status {
        401 | 403 => "permission",
        429 => "overloaded",
        502..=504 => "unavailable",
        _ => "protocol",
    };
    Err(Failure {
        class,
        reason: format!("HTTP {status} {words}").trim_end().to_owned(),
        retry: match status {
            429 | 502..=504 => pause.map_or(Retry::Backoff, after),
            _ => Retry::Never,
        },
        arrival: match status {
            // A request that took too long may have been taken by then.
            408 => Arrival::Unknown,
            429 | 503 => overwhelmed(asks_again),
            300..=499 | 501 => Arrival::No,
            _ => Arrival::Unknown,
        },
        is_of_content: matches!(status, 400 | 413 | 422),
    })
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder
        .write_all(bytes)
        .and_then(|()| encoder.finish())
        .expect("a Vec takes everything")
}

/// Arrival for an answer of an overloaded or unavailable receiver. If it asks for a retry, it took
/// nothing. If it does not, it may be a gateway, or a receiver that forwards to several others of
/// which some took it.
fn overwhelmed(asks_again: bool) -> Arrival {
    if asks_again {
        Arrival::No
    } else {
        Arrival::Unknown
    }
}

/// `google.rpc.Status`, as far as it is shown: what OTLP/HTTP puts into the body of an error.
#[derive(Clone, PartialEq, prost::Message)]
struct RpcStatus {
    #[prost(string, tag = "2")]
    message: String,
}

fn after(pause: Duration) -> Retry {
    Retry::After(pause.min(MAX_PAUSE))
}

/// A receiver's words, as they may go on.
fn bounded(words: &str) -> String {
    words
        .chars()
        .take(MAX_REASON_CHARS)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}
