//! TLS to a receiver: what the files say, and what is wrong where no connection comes about.
//!
//! The files are read for each connection, so a certificate that was replaced is used from the next
//! connection on, without a restart. Each fault has a class of its own, because each asks for
//! something else to be done.
//!
//! It refuses to connect in the clear, or without checking the receiver's certificate: there is no
//! switch for either.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustls::client::ResolvesClientCert;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::CertifiedKey;
use rustls::{AlertDescription, CertificateError, ClientConfig, RootCertStore, SignatureScheme};

use crate::text_file::{self, TextFileError};

/// What the files of TLS are called where they are set, for error messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TlsFileNames {
    /// The authorities.
    pub ca: &'static str,
    /// The client certificate.
    pub cert: &'static str,
    /// Its key.
    pub key: &'static str,
}

impl Default for TlsFileNames {
    fn default() -> Self {
        Self {
            ca: "otlp.tls.ca_file",
            cert: "otlp.tls.cert_file",
            key: "otlp.tls.key_file",
        }
    }
}

/// The files of TLS. Without any, the receiver's certificate is checked by the authorities that the
/// system trusts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// PEM with the authorities that may have signed the receiver's certificate, in place of the
    /// system's.
    pub ca_file: Option<PathBuf>,
    /// PEM with the agent's own certificate and those that lead to its authority.
    pub cert_file: Option<PathBuf>,
    /// PEM with the key of that certificate.
    pub key_file: Option<PathBuf>,
    /// The name that the receiver's certificate must have, where it is not the endpoint's host.
    pub server_name: Option<String>,
    /// What the files are called.
    pub names: TlsFileNames,
}

/// Why there is no TLS connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {what} {}", path.display())]
    Read {
        what: String,
        path: PathBuf,
        source: TextFileError,
    },
    /// A file has not what is looked for.
    #[error("cannot use {what} {}: {found}", path.display())]
    Content {
        what: String,
        path: PathBuf,
        found: String,
    },
    /// One of the two files is named without the other.
    #[error("{} and {} need each other, one of them is not set", .0.cert, .0.key)]
    Half(TlsFileNames),
    /// The system trusts nobody.
    #[error("the system has no certificate authorities ({why}), and {ca} names none")]
    NoRoots { why: String, ca: &'static str },
    /// The certificate has no name to compare.
    #[error("{0:?} is no name that a certificate can have")]
    Name(String),
    /// The receiver's certificate, or the receiver's verdict on the agent's.
    #[error("{0}")]
    Handshake(TlsFault),
    /// Something else on the way.
    #[error("the TLS handshake was broken off")]
    Broken(#[source] std::io::Error),
}

impl TlsError {
    /// A short class, for a label.
    pub(crate) fn class(&self) -> &'static str {
        match self {
            Self::Read { .. }
            | Self::Content { .. }
            | Self::Half(_)
            | Self::NoRoots { .. }
            | Self::Name(_) => "tls_files",
            Self::Handshake(fault) => fault.class(),
            Self::Broken(_) => "tls",
        }
    }
}

/// What one side holds against the other's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TlsFault {
    kind: FaultKind,
    /// In rustls' words.
    words: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FaultKind {
    UnknownCa,
    Expired,
    WrongName,
    /// The receiver wants a client certificate, and there is none. Its file is called so.
    NoClientCertificate(&'static str),
    /// The receiver refuses the agent's certificate.
    ClientCertificate,
    Other,
}

impl std::fmt::Display for TlsFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { kind, words } = self;
        match kind {
            FaultKind::UnknownCa => {
                write!(
                    f,
                    "no trusted authority has signed the receiver's certificate: "
                )
            }
            FaultKind::Expired => {
                write!(f, "the receiver's certificate is not valid now: ")
            }
            FaultKind::WrongName => {
                write!(f, "the receiver's certificate has another name: ")
            }
            FaultKind::NoClientCertificate(file) => write!(
                f,
                "the receiver wants a client certificate, and {file} names none: "
            ),
            FaultKind::ClientCertificate => {
                write!(f, "the receiver refuses the client certificate: ")
            }
            FaultKind::Other => Ok(()),
        }?;
        f.write_str(words)
    }
}

impl TlsFault {
    /// A short class, for a label.
    pub(crate) fn class(&self) -> &'static str {
        match self.kind {
            FaultKind::UnknownCa => "tls_unknown_ca",
            FaultKind::Expired => "tls_expired",
            FaultKind::WrongName => "tls_wrong_name",
            FaultKind::NoClientCertificate(_) | FaultKind::ClientCertificate => {
                "tls_client_certificate"
            }
            FaultKind::Other => "tls",
        }
    }

    /// Whether the receiver said it, in TLS' own words. Then it has taken no request.
    pub(crate) fn is_the_receivers(&self) -> bool {
        matches!(
            self.kind,
            FaultKind::NoClientCertificate(_) | FaultKind::ClientCertificate
        )
    }

    /// What rustls reports. `in_vain`: the receiver asked for a certificate and got none; its file is called
    /// so.
    fn of(error: &rustls::Error, in_vain: Option<&'static str>) -> Self {
        use CertificateError as Bad;
        let kind = match error {
            rustls::Error::InvalidCertificate(bad) => match bad {
                Bad::UnknownIssuer | Bad::BadSignature => FaultKind::UnknownCa,
                Bad::Expired
                | Bad::ExpiredContext { .. }
                | Bad::NotValidYet
                | Bad::NotValidYetContext { .. } => FaultKind::Expired,
                Bad::NotValidForName | Bad::NotValidForNameContext { .. } => FaultKind::WrongName,
                _ => FaultKind::Other,
            },
            // By this one alone TLS 1.2 says that it wants a certificate.
            rustls::Error::AlertReceived(AlertDescription::HandshakeFailure) => {
                in_vain.map_or(FaultKind::Other, FaultKind::NoClientCertificate)
            }
            rustls::Error::AlertReceived(
                AlertDescription::CertificateRequired
                | AlertDescription::BadCertificate
                | AlertDescription::UnsupportedCertificate
                | AlertDescription::CertificateRevoked
                | AlertDescription::CertificateExpired
                | AlertDescription::CertificateUnknown
                | AlertDescription::UnknownCA
                | AlertDescription::AccessDenied
                | AlertDescription::DecryptError,
            ) => in_vain.map_or(FaultKind::ClientCertificate, FaultKind::NoClientCertificate),
            _ => FaultKind::Other,
        };
        let words = error.to_string();
        Self { kind, words }
    }

    /// The fault that an error of a TLS stream stands for, if it is one of TLS.
    pub(super) fn of_io(error: &std::io::Error, in_vain: Option<&'static str>) -> Option<Self> {
        let error = error.get_ref()?.downcast_ref::<rustls::Error>()?;
        Some(Self::of(error, in_vain))
    }
}

/// What one connection is made with.
pub(super) struct Terms {
    pub(super) config: Arc<ClientConfig>,
    pub(super) name: ServerName<'static>,
    pub(super) asked: AskedInVain,
}

/// Whether the receiver of a connection has asked for a certificate and there was none.
#[derive(Clone, Debug, Default)]
pub(super) struct AskedInVain {
    pub(super) is_set: Arc<AtomicBool>,
    /// What the file of the certificate is called.
    file: &'static str,
}

impl AskedInVain {
    /// What the file is called that would have had it.
    pub(super) fn file(&self) -> Option<&'static str> {
        self.is_set.load(Ordering::Relaxed).then_some(self.file)
    }
}

impl TlsFiles {
    /// Reads the files. It blocks: call it where blocking is allowed. `host` is the endpoint's, and
    /// `protocol` what is spoken over the connection, in the words of ALPN.
    ///
    /// # Errors
    /// If a file cannot be used.
    pub(super) fn read(&self, host: &str, protocol: &[u8]) -> Result<Terms, TlsError> {
        let roots = match &self.ca_file {
            Some(path) => authorities(self.names, path)?,
            None => system_authorities(self.names)?,
        };
        let certificate = match (&self.cert_file, &self.key_file) {
            (Some(cert), Some(key)) => Some(Arc::new(certified_key(self.names, cert, key)?)),
            (None, None) => None,
            _ => return Err(TlsError::Half(self.names)),
        };
        let name = self.server_name.as_deref().unwrap_or(host);
        // An IPv6 address is in brackets in a URL and without them in a certificate.
        let name = name.trim_start_matches('[').trim_end_matches(']');
        let name =
            ServerName::try_from(name.to_owned()).map_err(|_| TlsError::Name(name.to_owned()))?;
        let asked = AskedInVain {
            is_set: Arc::default(),
            file: self.names.cert,
        };
        let resolver = ClientCertificate {
            certificate,
            asked_in_vain: Arc::clone(&asked.is_set),
        };
        let mut config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| TlsError::Handshake(TlsFault::of(&error, None)))?
            .with_root_certificates(roots)
            .with_client_cert_resolver(Arc::new(resolver));
        config.alpn_protocols = vec![protocol.to_vec()];
        Ok(Terms {
            config: Arc::new(config),
            name,
            asked,
        })
    }

    /// Whether a certificate may have this name.
    pub(crate) fn is_name(name: &str) -> bool {
        ServerName::try_from(name).is_ok()
    }
}

/// The agent's certificate, if there is one.
#[derive(Debug)]
struct ClientCertificate {
    certificate: Option<Arc<CertifiedKey>>,
    asked_in_vain: Arc<AtomicBool>,
}

impl ResolvesClientCert for ClientCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        if self.certificate.is_none() {
            self.asked_in_vain.store(true, Ordering::Relaxed);
        }
        self.certificate.clone()
    }

    fn has_certs(&self) -> bool {
        // It wants to be asked in any case.
        true
    }
}

fn authorities(names: TlsFileNames, path: &Path) -> Result<RootCertStore, TlsError> {
    let what = format!("the certificate authorities of {}", names.ca);
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&what, path)? {
        roots.add(certificate).map_err(|error| TlsError::Content {
            what: what.clone(),
            path: path.to_owned(),
            found: error.to_string(),
        })?;
    }
    Ok(roots)
}

/// Those of the system, wherever the distribution has them; `SSL_CERT_FILE` and `SSL_CERT_DIR` name
/// others.
fn system_authorities(names: TlsFileNames) -> Result<RootCertStore, TlsError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    // The system's collection may have some that rustls cannot read. The others are of use.
    let (used, _) = roots.add_parsable_certificates(found.certs);
    if used == 0 {
        let why = found.errors.first().map(ToString::to_string);
        let why = why.unwrap_or_else(|| "none was found".to_owned());
        return Err(TlsError::NoRoots { why, ca: names.ca });
    }
    Ok(roots)
}

fn certified_key(names: TlsFileNames, cert: &Path, key: &Path) -> Result<CertifiedKey, TlsError> {
    let what = format!("the client certificate of {}", names.cert);
    let chain = certificates(&what, cert)?;
    let what = format!("the key of {}", names.key);
    let wrong = |found: String| TlsError::Content {
        what: what.clone(),
        path: key.to_owned(),
        found,
    };
    let der = PrivateKeyDer::from_pem_slice(text(&what, key)?.as_bytes())
        .map_err(|error| wrong(error.to_string()))?;
    CertifiedKey::from_der(chain, der, &default_provider())
        .map_err(|error| wrong(error.to_string()))
}

fn certificates(what: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let wrong = |found: String| TlsError::Content {
        what: what.to_owned(),
        path: path.to_owned(),
        found,
    };
    let text = text(what, path)?;
    let found = CertificateDer::pem_slice_iter(text.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| wrong(error.to_string()))?;
    if found.is_empty() {
        return Err(wrong("it has no certificate in PEM".to_owned()));
    }
    Ok(found)
}

fn text(what: &str, path: &Path) -> Result<String, TlsError> {
    text_file::read(path).map_err(|source| TlsError::Read {
        what: what.to_owned(),
        path: path.to_owned(),
        source,
    })
}
