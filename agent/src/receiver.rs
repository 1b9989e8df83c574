//! The OTLP receiver: its address, its headers and its TLS, checked.
//!
//! The check of the configuration and the outputs use the same functions. So an endpoint that the
//! configuration accepts never keeps the agent from starting.

mod connector;
mod headers;
mod http;
mod tls;

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::Uri;
use hyper::header::HeaderMap;
use tonic::transport::{Channel, Endpoint};
use url::Url;

use self::connector::Alpn;
pub(crate) use self::connector::{ConnectError, Connector, Notes};
pub use self::headers::HeaderError;
pub(crate) use self::http::{HttpClient, HttpError};
pub use self::tls::{TlsFileNames, TlsFiles};
use crate::secrets::taken_apart;

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

/// How messages are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// They are not.
    #[default]
    None,
    /// By gzip, which every receiver of OTLP understands.
    Gzip,
}

/// A receiver of OTLP.
#[derive(Clone, PartialEq, Eq)]
pub struct Receiver {
    /// `http://host:port` or `https://host:port`. Without a user: it is shown wherever the receiver
    /// is spoken of.
    pub endpoint: String,
    /// Whether HTTP/protobuf uses the endpoint as it is. Otherwise it is the base to which
    /// `/v1/metrics` is added.
    pub is_whole: bool,
    /// How it is spoken to.
    pub protocol: Protocol,
    /// Headers, or gRPC metadata, that go with every message.
    pub headers: Vec<(String, String)>,
    /// Headers whose values are in files, read anew for every message.
    pub header_files: Vec<(String, PathBuf)>,
    /// How long it may take over one message.
    pub timeout: Duration,
    /// How messages are compressed.
    pub compression: Compression,
    /// The files of TLS, for an endpoint with `https`.
    pub tls: TlsFiles,
}

impl std::fmt::Debug for Receiver {
    /// Without the headers' values: they may be secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<_> = self.headers.iter().map(|(name, _)| name).collect();
        f.debug_struct("Receiver")
            .field("endpoint", &self.endpoint)
            .field("is_whole", &self.is_whole)
            .field("protocol", &self.protocol)
            .field("headers", &names)
            .field("header_files", &self.header_files)
            .field("timeout", &self.timeout)
            .field("compression", &self.compression)
            .field("tls", &self.tls)
            .finish()
    }
}

/// A receiver that cannot work, whatever it answers.
#[derive(Debug, thiserror::Error)]
pub enum ReceiverError {
    /// The endpoint is none.
    #[error(
        "cannot use the otlp endpoint {endpoint:?}: found {found}, expected http://host:port or https://host:port"
    )]
    Endpoint {
        /// As it was given.
        endpoint: String,
        /// What is wrong with it.
        found: String,
    },
    /// A header is none.
    #[error(transparent)]
    Header(#[from] HeaderError),
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
            is_whole: false,
            protocol,
            headers: authorization.into_iter().collect(),
            header_files: Vec::new(),
            timeout: Duration::from_secs(10),
            compression: Compression::default(),
            tls: TlsFiles::default(),
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
            "http" | "https" => Ok(url),
            other => Err(self.wrong(format!("the scheme {other}"))),
        }
    }

    /// Where a signal goes over HTTP: below the endpoint, as with `OTEL_EXPORTER_OTLP_ENDPOINT`, or to
    /// the endpoint itself, as with `OTEL_EXPORTER_OTLP_METRICS_ENDPOINT`.
    pub(crate) fn signal_url(&self, signal: &str) -> Result<Url, ReceiverError> {
        let base = self.url()?;
        if self.is_whole {
            return Ok(base);
        }
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
        Endpoint::from_shared(self.url()?.to_string())
            .and_then(|endpoint| endpoint.user_agent(http::AGENT))
            .map_err(|error| self.wrong(error))
    }

    /// A way to the receiver by gRPC, and what TLS says on it. Nothing is connected yet. Must be called
    /// within a tokio runtime.
    pub(crate) fn channel(&self) -> Result<(Channel, Notes), ReceiverError> {
        let connector = self.connector();
        let notes = connector.notes();
        Ok((
            self.grpc_endpoint()?.connect_with_connector_lazy(connector),
            notes,
        ))
    }

    /// The same by HTTP.
    pub(crate) fn http_client(&self) -> HttpClient {
        HttpClient::new(self.connector())
    }

    /// Whether a certificate may have this name.
    #[must_use]
    pub fn is_server_name(name: &str) -> bool {
        TlsFiles::is_name(name)
    }

    /// The headers of the configuration, checked. Those in files are left out.
    pub(crate) fn header_map(&self) -> Result<HeaderMap, ReceiverError> {
        let pairs = self
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()));
        Ok(headers::all(pairs, [])?)
    }

    /// Every header of a message, as the files are now.
    ///
    /// # Errors
    /// If a file cannot be read, or its value cannot be sent.
    pub(crate) fn headers_now(&self) -> Result<HeaderMap, HeaderError> {
        let pairs = self
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()));
        let files = self.header_files.iter();
        headers::all(
            pairs,
            files.map(|(name, path)| (name.as_str(), Path::new(path))),
        )
    }

    /// What connects to the receiver. A connection may take half as long as a message, so that a host
    /// which does not answer at all is known not to have taken the message.
    pub(crate) fn connector(&self) -> Connector {
        let limit = self.timeout / 2;
        let alpn = match self.protocol {
            Protocol::Grpc => Alpn::H2,
            Protocol::HttpProtobuf => Alpn::Http1,
        };
        Connector::new(self.tls.clone(), alpn, limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_that_cannot_work_are_named() {
        let rows = [
            (
                "collector:4317",
                "cannot use the otlp endpoint \"collector:4317\": found the scheme collector, expected http://host:port or https://host:port",
            ),
            (
                "",
                "cannot use the otlp endpoint \"\": found relative URL without a base, expected http://host:port or https://host:port",
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
            (2, &hyper::header::HeaderValue::from_static("Bearer abcdef"))
        );
        for wrong in [
            "ftp://me:hunter22@a:1",
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
