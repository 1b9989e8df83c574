//! The OTLP receiver: its address and its headers, checked.
//!
//! The check of the configuration and the outputs use the same functions. So an endpoint that the
//! configuration accepts never keeps the agent from starting.
//!
//! It refuses TLS: an `https` endpoint is an error at the start and not a connection in the clear.

use std::time::Duration;

use hyper::Uri;
use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use tonic::transport::Endpoint;

use crate::secrets::{Secrets, taken_apart};

/// How a receiver is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
pub enum Protocol {
    /// gRPC, by convention on port 4317.
    #[serde(rename = "grpc")]
    Grpc,
    /// Protobuf in HTTP/1 POST requests, by convention on port 4318.
    #[serde(rename = "http/protobuf")]
    HttpProtobuf,
}

/// A receiver of OTLP.
#[derive(Clone, PartialEq, Eq)]
pub struct Receiver {
    /// `http://host:port`; for HTTP/protobuf the base to which `/v1/metrics` is added. Without a user:
    /// it is shown wherever the receiver is spoken of.
    pub endpoint: String,
    /// How it is spoken to.
    pub protocol: Protocol,
    /// Headers, or gRPC metadata, that go with every message.
    pub headers: Vec<(String, String)>,
    /// How long it may take over one message.
    pub timeout: Duration,
}

impl std::fmt::Debug for Receiver {
    /// Without the headers' values: they may be secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<_> = self.headers.iter().map(|(name, _)| name).collect();
        f.debug_struct("Receiver")
            .field("endpoint", &self.endpoint)
            .field("protocol", &self.protocol)
            .field("headers", &names)
            .field("timeout", &self.timeout)
            .finish()
    }
}

/// A receiver that cannot work, whatever it answers.
#[derive(Debug, thiserror::Error)]
pub enum ReceiverError {
    /// The endpoint is none.
    #[error("cannot use the otlp endpoint {endpoint:?}: found {found}, expected http://host:port")]
    Endpoint {
        /// As it was given.
        endpoint: String,
        /// What is wrong with it.
        found: String,
    },
    /// The endpoint wants TLS.
    #[error("cannot use the otlp endpoint {0:?}: this build has no TLS, expected http://host:port")]
    Tls(String),
    /// A header is none. Its value is not shown: it may be a secret.
    #[error(
        "cannot use the otlp header {0:?}: its name or its value has characters that none may have"
    )]
    Header(String),
}

impl Receiver {
    /// A receiver with the default time-out and no headers, but for the one that stands for a user
    /// in the endpoint.
    #[must_use]
    pub fn new(endpoint: String, protocol: Protocol) -> Self {
        let (endpoint, authorization) = taken_apart(endpoint);
        let authorization = authorization.map(|value| ("authorization".to_owned(), value));
        Self {
            endpoint,
            protocol,
            headers: authorization.into_iter().collect(),
            timeout: Duration::from_secs(10),
        }
    }

    /// The same with further headers. One that says who asks counts for more than a user in the
    /// endpoint.
    #[must_use]
    pub fn with_headers(mut self, headers: impl IntoIterator<Item = (String, String)>) -> Self {
        for (name, value) in headers {
            self.headers
                .retain(|(known, _)| !known.eq_ignore_ascii_case(&name));
            self.headers.push((name, value));
        }
        self
    }

    /// Secrets that a receiver might repeat in its answers.
    pub(crate) fn secrets(&self) -> Secrets {
        Secrets::of(self.headers.iter().map(|(_, value)| value.as_str()), None)
    }

    /// An endpoint that is not one, with what was found.
    pub(crate) fn wrong(&self, found: impl ToString) -> ReceiverError {
        ReceiverError::Endpoint {
            endpoint: self.endpoint.clone(),
            found: found.to_string(),
        }
    }

    /// The endpoint, checked.
    pub(crate) fn url(&self) -> Result<Url, ReceiverError> {
        let url = Url::parse(&self.endpoint).map_err(|error| self.wrong(error))?;
        match url.scheme() {
            "http" => Ok(url),
            "https" => Err(ReceiverError::Tls(self.endpoint.clone())),
            other => Err(self.wrong(format!("the scheme {other}"))),
        }
    }

    /// Where a signal goes over HTTP: the endpoint is a base, as `OTEL_EXPORTER_OTLP_ENDPOINT` is.
    pub(crate) fn signal_url(&self, signal: &str) -> Result<Url, ReceiverError> {
        let base = self.url()?;
        let base = base.as_str().trim_end_matches('/');
        Url::parse(&format!("{base}/v1/{signal}")).map_err(|error| self.wrong(error))
    }

    /// Checks all that the outputs will need of it: the address as gRPC and as HTTP take it, and the
    /// headers.
    ///
    /// # Errors
    /// If the address or a header cannot be used, whatever the receiver answers.
    pub fn check(&self) -> Result<(), ReceiverError> {
        self.grpc_endpoint()?;
        for signal in ["metrics", "logs"] {
            let url = self.signal_url(signal)?;
            let uri: Result<Uri, _> = url.as_str().parse();
            uri.map_err(|error| self.wrong(error))?;
        }
        self.header_map().map(drop)
    }

    /// The endpoint as gRPC connects to it.
    pub(crate) fn grpc_endpoint(&self) -> Result<Endpoint, ReceiverError> {
        Endpoint::from_shared(self.url()?.to_string()).map_err(|error| self.wrong(error))
    }

    /// The headers, checked.
    pub(crate) fn header_map(&self) -> Result<HeaderMap, ReceiverError> {
        self.headers
            .iter()
            .map(|(name, value)| {
                let wrong = || ReceiverError::Header(name.clone());
                let key = HeaderName::from_bytes(name.as_bytes()).map_err(|_| wrong())?;
                let mut value = HeaderValue::from_str(value).map_err(|_| wrong())?;
                value.set_sensitive(true);
                Ok((key, value))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_that_cannot_work_are_named() {
        let rows = [
            (
                "https://collector:4317",
                "cannot use the otlp endpoint \"https://collector:4317\": this build has no TLS, expected http://host:port",
            ),
            (
                "collector:4317",
                "cannot use the otlp endpoint \"collector:4317\": found the scheme collector, expected http://host:port",
            ),
            (
                "",
                "cannot use the otlp endpoint \"\": found relative URL without a base, expected http://host:port",
            ),
        ];
        for (endpoint, expected) in rows {
            let error = Receiver::new(endpoint.to_owned(), Protocol::Grpc)
                .url()
                .expect_err(endpoint);
            assert_eq!(error.to_string(), expected);
        }
    }

    #[test]
    fn the_endpoint_of_http_is_a_base() {
        for (endpoint, expected) in [
            ("http://a:4318", "http://a:4318/v1/metrics"),
            ("http://a:4318/", "http://a:4318/v1/metrics"),
            (
                "http://a/opentelemetry/",
                "http://a/opentelemetry/v1/metrics",
            ),
        ] {
            let receiver = Receiver::new(endpoint.to_owned(), Protocol::HttpProtobuf);
            assert_eq!(receiver.signal_url("metrics").unwrap().as_str(), expected);
        }
    }

    #[test]
    fn the_user_in_an_endpoint_is_sent_and_not_shown() {
        let endpoint = "http://me:hunter22@a:1/x";
        let receiver = Receiver::new(endpoint.to_owned(), Protocol::HttpProtobuf);
        assert_eq!(receiver.endpoint, "http://a:1/x");
        let sent = receiver.header_map().unwrap();
        assert_eq!(sent["authorization"], "Basic bWU6aHVudGVyMjI=");
        let further = [
            ("Authorization".to_owned(), "Bearer abcdef".to_owned()),
            ("x".to_owned(), "y".to_owned()),
        ];
        let receiver = receiver.with_headers(further);
        let sent = receiver.header_map().unwrap();
        assert_eq!(
            (sent.len(), &sent["authorization"]),
            (2, &HeaderValue::from_static("Bearer abcdef"))
        );
        for wrong in [
            "https://me:hunter22@a:1",
            "http://me:hunter22@a:b",
            "me:hunter22@a",
        ] {
            let receiver = Receiver::new(wrong.to_owned(), Protocol::Grpc);
            let error = receiver.url().expect_err(wrong);
            let shown = format!("{error} {error:?} {receiver:?}");
            assert!(!shown.contains("hunter"), "{shown}");
        }
    }

    #[test]
    fn the_value_of_a_header_is_never_shown() {
        let mut receiver = Receiver::new("http://a:1".to_owned(), Protocol::Grpc);
        receiver.headers = vec![("x-token".to_owned(), "se\ncret".to_owned())];
        let error = receiver.header_map().expect_err("a line break");
        assert!(error.to_string().contains("x-token"), "{error}");
        for shown in [error.to_string(), format!("{error:?} {receiver:?}")] {
            assert!(!shown.contains("cret"), "{shown}");
        }
    }
}
