//! The section of OTLP.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::span::Span;
use crate::receiver::{Protocol, Receiver};
use crate::secrets;

/// How OTLP is spoken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum OtlpProtocol {
    /// gRPC, by convention on port 4317.
    #[default]
    #[serde(rename = "grpc")]
    Grpc,
    /// Protobuf in HTTP/1 POST requests, by convention on port 4318.
    #[serde(rename = "http/protobuf")]
    HttpProtobuf,
}

/// What a counter's points say over OTLP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OtlpTemporality {
    /// The total since the counter's start.
    #[default]
    Cumulative,
    /// What came since the last point: for receivers that add up.
    Delta,
}

/// OTLP.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Otlp {
    /// The receiver's base address, e.g. `http://otel-collector:4317`; absent for none.
    pub endpoint: Option<String>,
    /// How it is spoken to.
    pub protocol: OtlpProtocol,
    /// What a counter's points say.
    pub temporality: OtlpTemporality,
    /// How often the books are sent.
    pub interval: Span,
    /// How long one request may take.
    pub timeout: Span,
    /// Headers (gRPC metadata) sent with each request.
    pub headers: BTreeMap<String, String>,
    /// `k8s.node.name`, if the node has one.
    pub node_name: Option<String>,
}

impl fmt::Debug for Otlp {
    /// Without a user in the endpoint and without the headers' values: they may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Otlp")
            .field("endpoint", &self.endpoint.as_deref().map(secrets::shown))
            .field("protocol", &self.protocol)
            .field("temporality", &self.temporality)
            .field("interval", &self.interval)
            .field("timeout", &self.timeout)
            .field("headers", &self.headers.keys())
            .field("node_name", &self.node_name)
            .finish()
    }
}

impl Default for Otlp {
    fn default() -> Self {
        Self {
            endpoint: None,
            protocol: OtlpProtocol::default(),
            temporality: OtlpTemporality::default(),
            interval: Span::secs(60),
            timeout: Span::secs(10),
            headers: BTreeMap::new(),
            node_name: None,
        }
    }
}

impl Otlp {
    /// The receiver of OTLP, if one is configured.
    #[must_use]
    pub fn receiver(&self) -> Option<Receiver> {
        let endpoint = self.endpoint.clone()?;
        let headers = self.headers.iter();
        let headers = headers.map(|(name, value)| (name.clone(), value.clone()));
        let protocol = match self.protocol {
            OtlpProtocol::Grpc => Protocol::Grpc,
            OtlpProtocol::HttpProtobuf => Protocol::HttpProtobuf,
        };
        Some(Receiver {
            timeout: self.timeout.0,
            ..Receiver::new(endpoint, protocol).with_headers(headers)
        })
    }
}
