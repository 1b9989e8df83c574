//! The section of OTLP.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::otlp_signal::{OtlpCompression, OtlpProtocol, OtlpSignal, OtlpTls, redact};
use super::span::Span;
use crate::receiver::Receiver;
use crate::secrets::{self, Secrets};

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

/// What metrics and attributes are called over OTLP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OtlpAttributes {
    /// As OpenTelemetry's semantic conventions call them.
    #[default]
    Conventions,
    /// As the labels of `/metrics`.
    Labels,
}

/// Where in a message the names of a container are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OtlpLayout {
    /// With each point.
    #[default]
    Point,
    /// Each container is a resource of its own.
    Resource,
}

/// What is sent over OTLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OtlpKind {
    /// The books, and what the agent itself costs.
    Metrics,
    /// The agent's log.
    Logs,
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
    /// What metrics and attributes are called.
    pub attributes: OtlpAttributes,
    /// Where the names of a container are.
    pub layout: OtlpLayout,
    /// How often the books are sent.
    pub interval: Span,
    /// How long one request may take.
    pub timeout: Span,
    /// How messages are compressed.
    pub compression: OtlpCompression,
    /// `k8s.node.name`, if the node has one.
    pub node_name: Option<String>,
    /// `service.name` in place of `gpuacct`.
    pub service_name: Option<String>,
    /// Further resource attributes; one of the agent's own is replaced.
    pub resource_attributes: BTreeMap<String, String>,
    /// Headers (gRPC metadata) sent with each request.
    pub headers: BTreeMap<String, String>,
    /// Headers whose values are in files, which are read for each request.
    pub header_files: BTreeMap<String, PathBuf>,
    /// The files of TLS.
    pub tls: OtlpTls,
    /// What is different for metrics.
    pub metrics: OtlpSignal,
    /// What is different for logs.
    pub logs: OtlpSignal,
}

impl fmt::Debug for Otlp {
    /// Without a user in the endpoint and without the headers' values: they may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Otlp")
            .field("endpoint", &self.endpoint.as_deref().map(secrets::shown))
            .field("protocol", &self.protocol)
            .field("temporality", &self.temporality)
            .field("attributes", &self.attributes)
            .field("layout", &self.layout)
            .field("interval", &self.interval)
            .field("timeout", &self.timeout)
            .field("compression", &self.compression)
            .field("node_name", &self.node_name)
            .field("service_name", &self.service_name)
            .field("resource_attributes", &self.resource_attributes)
            .field("headers", &self.headers.keys())
            .field("header_files", &self.header_files)
            .field("tls", &self.tls)
            .field("metrics", &self.metrics)
            .field("logs", &self.logs)
            .finish()
    }
}

impl Default for Otlp {
    fn default() -> Self {
        Self {
            endpoint: None,
            protocol: OtlpProtocol::default(),
            temporality: OtlpTemporality::default(),
            attributes: OtlpAttributes::default(),
            layout: OtlpLayout::default(),
            interval: Span::secs(60),
            timeout: Span::secs(10),
            compression: OtlpCompression::default(),
            node_name: None,
            service_name: None,
            resource_attributes: BTreeMap::new(),
            headers: BTreeMap::new(),
            header_files: BTreeMap::new(),
            tls: OtlpTls::default(),
            metrics: OtlpSignal::default(),
            logs: OtlpSignal::default(),
        }
    }
}

impl Otlp {
    /// What is different for a signal.
    #[must_use]
    pub fn signal(&self, kind: OtlpKind) -> &OtlpSignal {
        match kind {
            OtlpKind::Metrics => &self.metrics,
            OtlpKind::Logs => &self.logs,
        }
    }

    /// The receiver of a signal, if one is configured.
    #[must_use]
    pub fn receiver(&self, kind: OtlpKind) -> Option<Receiver> {
        let own = self.signal(kind);
        let endpoint = own.endpoint.clone().or_else(|| self.endpoint.clone())?;
        let headers = own.headers.as_ref().unwrap_or(&self.headers).iter();
        let headers = headers.map(|(name, value)| (name.clone(), value.clone()));
        let files = own.header_files.as_ref().unwrap_or(&self.header_files);
        let protocol = own.protocol.unwrap_or(self.protocol).into();
        Some(Receiver {
            is_whole: own.endpoint.is_some(),
            header_files: files.clone().into_iter().collect(),
            timeout: own.timeout.unwrap_or(self.timeout).0,
            compression: own.compression.unwrap_or(self.compression).into(),
            tls: own.tls.clone().unwrap_or_else(|| self.tls.clone()).into(),
            ..Receiver::new(endpoint, protocol).with_headers(headers)
        })
    }

    /// Takes the secrets out.
    pub(super) fn redact(&mut self) {
        redact(&mut self.endpoint, [&mut self.headers].into_iter());
        self.metrics.redact();
        self.logs.redact();
    }

    /// What is in it and must not leave the node, and what is in a further address.
    pub(super) fn secrets(&self, further: Option<&str>) -> Secrets {
        let (metrics, logs) = (&self.metrics, &self.logs);
        let tables = [
            Some(&self.headers),
            metrics.headers.as_ref(),
            logs.headers.as_ref(),
        ];
        let headers = tables.into_iter().flatten().flat_map(BTreeMap::values);
        let addresses = [&self.endpoint, &metrics.endpoint, &logs.endpoint];
        let addresses = addresses.into_iter().filter_map(|it| it.as_deref());
        let addresses = addresses.chain(further);
        Secrets::of(headers.map(String::as_str), addresses)
    }
}
