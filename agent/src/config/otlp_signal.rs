//! What of OTLP can be set for one signal alone, and the files of TLS.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::span::Span;
use crate::receiver::{Compression, Protocol, TlsFileNames, TlsFiles};
use crate::secrets::{self, STRUCK};

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

impl From<OtlpProtocol> for Protocol {
    fn from(protocol: OtlpProtocol) -> Self {
        match protocol {
            OtlpProtocol::Grpc => Self::Grpc,
            OtlpProtocol::HttpProtobuf => Self::HttpProtobuf,
        }
    }
}

/// How messages of OTLP are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OtlpCompression {
    /// They are not.
    #[default]
    None,
    /// By gzip.
    Gzip,
}

impl From<OtlpCompression> for Compression {
    fn from(compression: OtlpCompression) -> Self {
        match compression {
            OtlpCompression::None => Self::None,
            OtlpCompression::Gzip => Self::Gzip,
        }
    }
}

/// The files of TLS, for endpoints with `https`. They are read for each connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OtlpTls {
    /// Authorities that may have signed the receiver's certificate; absent for the system's.
    pub ca_file: Option<PathBuf>,
    /// The agent's certificate, for receivers that want one.
    pub cert_file: Option<PathBuf>,
    /// Its key.
    pub key_file: Option<PathBuf>,
    /// The name that the receiver's certificate must have; absent for the endpoint's host.
    pub server_name: Option<String>,
}

impl From<OtlpTls> for TlsFiles {
    fn from(files: OtlpTls) -> Self {
        let OtlpTls {
            ca_file,
            cert_file,
            key_file,
            server_name,
        } = files;
        Self {
            ca_file,
            cert_file,
            key_file,
            server_name,
            names: TlsFileNames::default(),
        }
    }
}

/// What is different for one signal. What is absent is as for all signals.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OtlpSignal {
    /// The receiver's address. Over HTTP it is used as it is, without anything added.
    pub endpoint: Option<String>,
    /// How it is spoken to.
    pub protocol: Option<OtlpProtocol>,
    /// How long one request may take.
    pub timeout: Option<Span>,
    /// How messages are compressed.
    pub compression: Option<OtlpCompression>,
    /// Headers in place of those for all signals.
    pub headers: Option<BTreeMap<String, String>>,
    /// Headers with values in files, in place of those for all signals.
    pub header_files: Option<BTreeMap<String, PathBuf>>,
    /// The files of TLS, in place of those for all signals.
    pub tls: Option<OtlpTls>,
}

impl fmt::Debug for OtlpSignal {
    /// Without a user in the endpoint and without the headers' values: they may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.headers.iter().flat_map(BTreeMap::keys).collect();
        f.debug_struct("OtlpSignal")
            .field("endpoint", &self.endpoint.as_deref().map(secrets::shown))
            .field("protocol", &self.protocol)
            .field("timeout", &self.timeout)
            .field("compression", &self.compression)
            .field("headers", &names)
            .field("header_files", &self.header_files)
            .field("tls", &self.tls)
            .finish()
    }
}

impl OtlpSignal {
    /// Takes the secrets out.
    pub(super) fn redact(&mut self) {
        redact(&mut self.endpoint, self.headers.iter_mut());
    }
}

/// Takes the secrets out of an endpoint and out of headers.
pub(super) fn redact<'a>(
    endpoint: &mut Option<String>,
    headers: impl Iterator<Item = &'a mut BTreeMap<String, String>>,
) {
    if let Some(endpoint) = endpoint {
        *endpoint = secrets::shown(endpoint);
    }
    for value in headers.flat_map(BTreeMap::values_mut) {
        *value = STRUCK.to_owned();
    }
}
