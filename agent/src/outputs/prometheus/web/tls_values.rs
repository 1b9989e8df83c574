//! Versions, cipher suites and curves of the web configuration file, as rustls has them.
//!
//! The file's values are Go's. What rustls has no equal for is an error that names the key and what is
//! possible.

use rustls::crypto::ring::{cipher_suite, kx_group};
use rustls::crypto::{SupportedKxGroup, ring};
use rustls::{ProtocolVersion, SupportedCipherSuite, SupportedProtocolVersion};

use super::error::WebConfigError;

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
/// What the file says of them.
#[derive(Clone, PartialEq)]
pub(super) struct TlsValues {
    pub(super) min_version: String,
    pub(super) max_version: String,
    pub(super) cipher_suites: Vec<String>,
    pub(super) curve_preferences: Vec<String>,
}

/// What rustls is to use.
pub(super) struct Chosen {
    pub(super) suites: Vec<SupportedCipherSuite>,
    pub(super) curves: Vec<&'static dyn SupportedKxGroup>,
    pub(super) versions: Vec<&'static SupportedProtocolVersion>,
}

/// What a file's values mean for rustls.
///
/// # Errors
/// If it has no equal for one of them.
pub(super) fn chosen(values: &TlsValues) -> Result<Chosen, WebConfigError> {
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
