//! TLS of `/metrics`, made of the web configuration file by rustls.
//!
//! The file's values are Go's. What rustls has no equal for is an error that names the key and what is
//! possible.

use std::sync::Arc;

use rustls::crypto::ring::{cipher_suite, kx_group};
use rustls::crypto::{CryptoProvider, SupportedKxGroup, ring};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::NoServerSessionStorage;
use rustls::{
    ProtocolVersion, RootCertStore, ServerConfig, SupportedCipherSuite, SupportedProtocolVersion,
};

use super::client_certificates::{ClientCertificates, Demand};
use super::error::WebConfigError;
use super::file::{Pem, TlsSection, TlsValues};

/// Cipher suites of TLS 1.2 by Go's names.
const SUITES_OF_TLS12: [(&str, SupportedCipherSuite); 6] = [
    (
        "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
        cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    ),
    (
        "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
        cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    ),
    (
        "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
        cipher_suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    ),
    (
        "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
        cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
    ),
    (
        "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
        cipher_suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
    ),
    (
        "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
        cipher_suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
    ),
];
/// Cipher suites of TLS 1.3. They may be named, and change nothing: in Go they are always on.
const SUITES_OF_TLS13: [&str; 3] = [
    "TLS_AES_128_GCM_SHA256",
    "TLS_AES_256_GCM_SHA384",
    "TLS_CHACHA20_POLY1305_SHA256",
];
/// Groups for the exchange of keys by Go's names.
const CURVES: [(&str, &dyn SupportedKxGroup); 3] = [
    ("X25519", kx_group::X25519),
    ("CurveP256", kx_group::SECP256R1),
    ("CurveP384", kx_group::SECP384R1),
];
/// Versions by exporter-toolkit's names.
const VERSIONS: [(&str, &SupportedProtocolVersion); 2] = [
    ("TLS12", &rustls::version::TLS12),
    ("TLS13", &rustls::version::TLS13),
];
/// What the server says it speaks.
const PROTOCOL: &[u8] = b"http/1.1";

/// Judges what can be judged without a file.
pub(super) fn check_values(values: &TlsValues) -> Result<(), WebConfigError> {
    chosen(values).map(drop)
}

/// What rustls is to use.
struct Chosen {
    suites: Vec<SupportedCipherSuite>,
    curves: Vec<&'static dyn SupportedKxGroup>,
    versions: Vec<&'static SupportedProtocolVersion>,
}

fn chosen(values: &TlsValues) -> Result<Chosen, WebConfigError> {
    let least = version("min_version", &values.min_version)?;
    let most = version("max_version", &values.max_version)?;
    if least > most {
        return Err(WebConfigError::value(
            "tls_server_config.min_version",
            format!(
                "found {}, which is above max_version, {}",
                values.min_version, values.max_version
            ),
        ));
    }
    let mut versions: Vec<_> = VERSIONS[least..=most].iter().map(|(_, it)| *it).collect();
    let default = ring::default_provider();
    let is_13 = |suite: &SupportedCipherSuite| suite.version().version == ProtocolVersion::TLSv1_3;
    let mut suites = default.cipher_suites;
    if !values.cipher_suites.is_empty() {
        let named = suites_of_tls12(&values.cipher_suites)?;
        if named.is_empty() {
            versions.retain(|it| it.version == ProtocolVersion::TLSv1_3);
        }
        suites.retain(is_13);
        suites.extend(named);
    }
    if versions.is_empty() {
        return Err(WebConfigError::value(
            "tls_server_config.cipher_suites",
            "none of them is of TLS 1.2, and max_version allows no other version",
        ));
    }
    Ok(Chosen {
        suites,
        curves: curves(&values.curve_preferences, default.kx_groups)?,
        versions,
    })
}

/// Where a version is in [`VERSIONS`].
fn version(key: &str, name: &str) -> Result<usize, WebConfigError> {
    let place = VERSIONS.iter().position(|(known, _)| *known == name);
    place.ok_or_else(|| {
        WebConfigError::value(
            format!("tls_server_config.{key}"),
            match name {
                "TLS10" | "TLS11" => format!(
                    "found {name}, which is obsolete (RFC 8996) and not offered, expected TLS12 or TLS13"
                ),
                _ => format!("found {name:?}, expected TLS12 or TLS13"),
            },
        )
    })
}

fn suites_of_tls12(names: &[String]) -> Result<Vec<SupportedCipherSuite>, WebConfigError> {
    let mut suites = Vec::new();
    for name in names {
        let known = SUITES_OF_TLS12.iter().find(|(known, _)| known == name);
        match known {
            Some((_, suite)) => suites.push(*suite),
            None if SUITES_OF_TLS13.contains(&&**name) => {}
            None => {
                let all = SUITES_OF_TLS12.map(|(name, _)| name).join(", ");
                return Err(WebConfigError::value(
                    "tls_server_config.cipher_suites",
                    format!("found {name:?}, which is not offered, expected some of {all}"),
                ));
            }
        }
    }
    Ok(suites)
}

fn curves(
    names: &[String],
    default: Vec<&'static dyn SupportedKxGroup>,
) -> Result<Vec<&'static dyn SupportedKxGroup>, WebConfigError> {
    if names.is_empty() {
        return Ok(default);
    }
    let curve = |name: &String| {
        let known = CURVES.iter().find(|(known, _)| known == name);
        known.map(|(_, curve)| *curve).ok_or_else(|| {
            let all = CURVES.map(|(name, _)| name).join(", ");
            WebConfigError::value(
                "tls_server_config.curve_preferences",
                format!("found {name:?}, which is not offered, expected some of {all}"),
            )
        })
    };
    names.iter().map(curve).collect()
}

/// What a listener needs for TLS.
///
/// # Errors
/// If a file cannot be read, or a value cannot be honoured.
pub(super) fn server(section: &TlsSection) -> Result<Arc<ServerConfig>, WebConfigError> {
    let Chosen {
        suites,
        curves,
        versions,
    } = chosen(&TlsValues {
        min_version: section.min_version.clone(),
        max_version: section.max_version.clone(),
        cipher_suites: section.cipher_suites.clone(),
        curve_preferences: section.curve_preferences.clone(),
    })?;
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
    Ok(Arc::new(config))
}

fn sans_need_a_certificate() -> WebConfigError {
    WebConfigError::value(
        "tls_server_config.client_allowed_sans",
        "expected client_auth_type RequireAndVerifyClientCert or RequireAnyClientCert; with others a client may come without a certificate",
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
