//! TLS of `/metrics`, made of the web configuration file by rustls.

use std::sync::Arc;

use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::NoServerSessionStorage;
use rustls::{RootCertStore, ServerConfig};

use super::client_certificates::{ClientCertificates, Demand};
use super::error::WebConfigError;
use super::file::{Pem, TlsSection};
use super::tls_values::{Chosen, chosen};

/// What the server says it speaks.
const PROTOCOL: &[u8] = b"http/1.1";

/// What a listener needs for TLS.
pub(super) struct Tls {
    pub(super) config: Arc<ServerConfig>,
    /// What `config` demands of clients' certificates.
    pub(super) certificates: CertificateRules,
}

/// What a section asks for.
///
/// # Errors
/// If a file cannot be read, or a value cannot be honoured.
pub(super) fn server(section: &TlsSection) -> Result<Tls, WebConfigError> {
    let Chosen {
        suites,
        curves,
        versions,
    } = chosen(&section.values)?;
    let provider = Arc::new(CryptoProvider {
        cipher_suites: suites,
        kx_groups: curves,
        ..ring::default_provider()
    });
    let demand = Demand::read(&section.client_auth_type, section.client_ca.is_some())?;
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&versions)
        .map_err(|error| WebConfigError::value("tls_server_config", error.to_string()))?;
    let builder = match demand {
        Demand::None => {
            if section.client_allowed_sans.is_some() {
                return Err(sans_need_a_certificate());
            }
            builder.with_no_client_auth()
        }
        _ => {
            if section.client_allowed_sans.is_some() && !demand.is_mandatory() {
                return Err(sans_need_a_certificate());
            }
            let authorities = section.client_ca.as_ref().map(authorities).transpose()?;
            builder.with_client_cert_verifier(Arc::new(ClientCertificates::new(
                demand,
                authorities,
                section.client_allowed_sans.clone(),
                &provider,
            )?))
        }
    };
    let chain = chain(&section.certificate)?;
    let key = private_key(&section.key)?;
    let mut config =
        builder
            .with_single_cert(chain, key)
            .map_err(|error| WebConfigError::Certificate {
                key: section.key.key(),
                problem: match error {
                    rustls::Error::InconsistentKeys(_) => {
                        "the key is not that of the certificate".to_owned()
                    }
                    error => error.to_string(),
                },
            })?;
    config.ignore_client_order = section.prefer_server_cipher_suites;
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    if demand != Demand::None {
        // A resumed session is not checked again: a certificate that has expired since, or whose name
        // is no longer allowed, would still open the door.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
    }
    Ok(Tls {
        config: Arc::new(config),
        certificates: CertificateRules {
            is_mandatory: demand.is_mandatory(),
            is_verified: demand.verifies(),
            is_named: section.client_allowed_sans.is_some(),
        },
    })
}

/// What is demanded of a client's certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct CertificateRules {
    /// Whether a client without one is refused.
    pub(super) is_mandatory: bool,
    /// Whether an authority has to have signed it.
    is_verified: bool,
    /// Whether it has to have one of certain names.
    is_named: bool,
}

impl CertificateRules {
    /// What these rules demand and `next` would not, in words.
    pub(super) const fn weakened_by(self, next: Self) -> Option<&'static str> {
        if self.is_mandatory && !next.is_mandatory {
            Some("a client certificate")
        } else if self.is_verified && !next.is_verified {
            Some("the authority of a client certificate")
        } else if self.is_named && !next.is_named {
            Some("the name in a client certificate")
        } else {
            None
        }
    }
}

fn sans_need_a_certificate() -> WebConfigError {
    WebConfigError::value(
        "tls_server_config.client_allowed_sans",
        "expected client_auth_type RequireAndVerifyClientCert; with others a client may come without a certificate",
    )
}

fn chain(pem: &Pem) -> Result<Vec<CertificateDer<'static>>, WebConfigError> {
    let text = pem.read()?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    let refused = |problem: String| WebConfigError::Certificate {
        key: pem.key(),
        problem,
    };
    let chain = chain.map_err(|error| refused(format!("it is not PEM: {error}")))?;
    if chain.is_empty() {
        return Err(refused(
            "expected PEM with a CERTIFICATE, found none".to_owned(),
        ));
    }
    Ok(chain)
}

fn private_key(pem: &Pem) -> Result<PrivateKeyDer<'static>, WebConfigError> {
    let text = pem.read()?;
    PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(|_| WebConfigError::Certificate {
        key: pem.key(),
        // The text is not shown: it is a key.
        problem: match text.contains("ENCRYPTED") {
            true => "the key is encrypted, expected one without a passphrase".to_owned(),
            false => {
                "expected PEM with a PRIVATE KEY (PKCS #8, PKCS #1 or SEC1), found none".to_owned()
            }
        },
    })
}

fn authorities(pem: &Pem) -> Result<Arc<RootCertStore>, WebConfigError> {
    let mut store = RootCertStore::empty();
    for certificate in chain(pem)? {
        store
            .add(certificate)
            .map_err(|error| WebConfigError::Certificate {
                key: pem.key(),
                problem: format!("a certificate cannot be used as an authority: {error}"),
            })?;
    }
    Ok(Arc::new(store))
}
