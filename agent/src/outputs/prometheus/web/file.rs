//! The web configuration file of Prometheus' exporters, read as they read it.
//!
//! The format is exporter-toolkit's (`docs/web-configuration.md` there). A file that works with an
//! exporter works here without a change, or is refused with the key that cannot be honoured and what
//! is possible: nothing in it is ignored. Paths are relative to the file's folder.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::http::HeaderValue;
use axum::http::header::{
    CONTENT_SECURITY_POLICY, HeaderName, STRICT_TRANSPORT_SECURITY, X_CONTENT_TYPE_OPTIONS,
    X_FRAME_OPTIONS, X_XSS_PROTECTION,
};
use serde::Deserialize;

use super::error::WebConfigError;
use super::tls_values::{TlsValues, chosen};
use crate::text_file;

/// The key of gpuacct's own configuration that names the file.
pub(super) const KEY: &str = "prometheus.web_config_file";

/// What the file says, with defaults in place and paths made whole. Values that rustls has to judge
/// are still texts.
#[derive(Clone, Default, PartialEq)]
pub(super) struct WebFile {
    /// Absent if the file asks for no TLS.
    pub(super) tls: Option<TlsSection>,
    /// Headers that go with each answer.
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    /// Bcrypt hashes of passwords, by user.
    pub(super) users: BTreeMap<String, String>,
    /// Absent if requests are not limited.
    pub(super) rate_limit: Option<RateLimit>,
}

/// How often something may be asked: once each `interval` over time, `burst` times at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RateLimit {
    pub(super) interval: Duration,
    pub(super) burst: u32,
}

/// A certificate, a key or authorities: PEM in a file, or in the web configuration itself.
#[derive(Clone, PartialEq)]
pub(super) enum Pem {
    File { key: &'static str, path: PathBuf },
    Inline { key: &'static str, text: String },
}

impl Pem {
    /// The key of the web configuration that it is from.
    pub(super) const fn key(&self) -> &'static str {
        match self {
            Self::File { key, .. } | Self::Inline { key, .. } => key,
        }
    }

    /// The file, if it is in one.
    pub(super) fn path(&self) -> Option<&Path> {
        match self {
            Self::File { path, .. } => Some(path),
            Self::Inline { .. } => None,
        }
    }

    /// The text, which may be a secret.
    pub(super) fn read(&self) -> Result<String, WebConfigError> {
        match self {
            Self::Inline { text, .. } => Ok(text.clone()),
            Self::File { key, path } => {
                text_file::read(path).map_err(|source| WebConfigError::Read {
                    key,
                    path: path.clone(),
                    source,
                })
            }
        }
    }
}

/// `tls_server_config`.
#[derive(Clone, PartialEq)]
pub(super) struct TlsSection {
    pub(super) certificate: Pem,
    pub(super) key: Pem,
    pub(super) client_auth_type: String,
    pub(super) client_ca: Option<Pem>,
    pub(super) client_allowed_sans: Option<Vec<String>>,
    pub(super) values: TlsValues,
    pub(super) prefer_server_cipher_suites: bool,
}

/// The file as it is written. A key without a value is as good as none, as in Go.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Written {
    tls_server_config: Option<WrittenTls>,
    http_server_config: Option<WrittenHttp>,
    rate_limit: Option<WrittenRateLimit>,
    basic_auth_users: Option<BTreeMap<String, Option<String>>>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct WrittenTls {
    cert: Option<String>,
    key: Option<String>,
    client_ca: Option<String>,
    cert_file: Option<String>,
    key_file: Option<String>,
    client_auth_type: Option<String>,
    client_ca_file: Option<String>,
    cipher_suites: Option<Vec<String>>,
    curve_preferences: Option<Vec<String>>,
    min_version: Option<String>,
    max_version: Option<String>,
    prefer_server_cipher_suites: Option<bool>,
    client_allowed_sans: Option<Vec<String>>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct WrittenHttp {
    http2: Option<bool>,
    headers: Option<BTreeMap<String, Option<String>>>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct WrittenRateLimit {
    burst: Option<i64>,
    interval: Option<String>,
}

/// The headers that the file may set, and the values that each may have; none stands for any.
const HEADERS: [(&str, HeaderName, &[&str]); 5] = [
    ("Strict-Transport-Security", STRICT_TRANSPORT_SECURITY, &[]),
    (
        "X-Content-Type-Options",
        X_CONTENT_TYPE_OPTIONS,
        &["nosniff"],
    ),
    ("X-Frame-Options", X_FRAME_OPTIONS, &["deny", "sameorigin"]),
    ("X-XSS-Protection", X_XSS_PROTECTION, &[]),
    ("Content-Security-Policy", CONTENT_SECURITY_POLICY, &[]),
];

impl WebFile {
    /// Reads the file.
    ///
    /// # Errors
    /// If it cannot be read, is no YAML, has unknown keys, or has values that cannot work.
    pub(super) fn read(path: &Path) -> Result<Self, WebConfigError> {
        let text = text_file::read(path).map_err(|source| WebConfigError::Read {
            key: KEY,
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&text, path)
    }

    /// Reads text that is in the file `path`.
    ///
    /// # Errors
    /// As [`WebFile::read`].
    pub(super) fn parse(text: &str, path: &Path) -> Result<Self, WebConfigError> {
        // A snippet of the file would show a key or a hash.
        let options = serde_saphyr::options! { with_snippet: false };
        let written: Option<Written> =
            serde_saphyr::from_str_with_options(text, options).map_err(|error| {
                WebConfigError::Syntax {
                    path: path.to_owned(),
                    problem: error.to_string(),
                }
            })?;
        let Written {
            tls_server_config,
            http_server_config,
            rate_limit,
            basic_auth_users,
        } = written.unwrap_or_default();
        let folder = path.parent().unwrap_or(Path::new("/"));
        let http = http_server_config.unwrap_or_default();
        if http.http2 == Some(true) {
            return Err(WebConfigError::value(
                "http_server_config.http2",
                "found true; gpuacct speaks HTTP/1.1 only: write false, or leave the key out",
            ));
        }
        Ok(Self {
            tls: tls(tls_server_config.unwrap_or_default(), folder)?,
            headers: headers(http.headers.unwrap_or_default())?,
            users: users(basic_auth_users.unwrap_or_default())?,
            rate_limit: limit(&rate_limit.unwrap_or_default())?,
        })
    }
}

/// A value that is not blank: Go does not tell a blank text from none.
fn filled(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty())
}

fn tls(written: WrittenTls, folder: &Path) -> Result<Option<TlsSection>, WebConfigError> {
    let WrittenTls {
        cert,
        key,
        client_ca,
        cert_file,
        key_file,
        client_auth_type,
        client_ca_file,
        cipher_suites,
        curve_preferences,
        min_version,
        max_version,
        prefer_server_cipher_suites,
        client_allowed_sans,
    } = written;
    // A file comes before what is in the configuration itself, as in exporter-toolkit.
    let pem = |file_key, file: Option<String>, key, text: Option<String>| match filled(file) {
        Some(file) => Some(Pem::File {
            key: file_key,
            path: folder.join(file),
        }),
        None => filled(text).map(|text| Pem::Inline { key, text }),
    };
    let certificate = pem(
        "tls_server_config.cert_file",
        cert_file,
        "tls_server_config.cert",
        cert,
    );
    let key = pem(
        "tls_server_config.key_file",
        key_file,
        "tls_server_config.key",
        key,
    );
    let client_ca = pem(
        "tls_server_config.client_ca_file",
        client_ca_file,
        "tls_server_config.client_ca",
        client_ca,
    );
    let client_auth_type = filled(client_auth_type);
    let values = TlsValues {
        min_version: min_version.unwrap_or_else(|| "TLS12".to_owned()),
        max_version: max_version.unwrap_or_else(|| "TLS13".to_owned()),
        cipher_suites: cipher_suites.unwrap_or_default(),
        curve_preferences: curve_preferences.unwrap_or_default(),
    };
    // These are judged whether TLS is on or not, as in exporter-toolkit.
    chosen(&values)?;
    let is_on =
        certificate.is_some() || key.is_some() || client_ca.is_some() || client_auth_type.is_some();
    if !is_on {
        return match client_allowed_sans {
            Some(_) => Err(WebConfigError::value(
                "tls_server_config.client_allowed_sans",
                "there is no certificate and no key, so no client is asked for its certificate",
            )),
            None => Ok(None),
        };
    }
    let missing = |keys: &str| {
        WebConfigError::value(
            "tls_server_config",
            format!("expected one of {keys}, found none"),
        )
    };
    Ok(Some(TlsSection {
        certificate: certificate.ok_or_else(|| missing("cert_file and cert"))?,
        key: key.ok_or_else(|| missing("key_file and key"))?,
        client_auth_type: client_auth_type.unwrap_or_default(),
        client_ca,
        client_allowed_sans,
        values,
        prefer_server_cipher_suites: prefer_server_cipher_suites.unwrap_or(true),
    }))
}

fn headers(
    written: BTreeMap<String, Option<String>>,
) -> Result<Vec<(HeaderName, HeaderValue)>, WebConfigError> {
    let mut headers = Vec::new();
    for (name, value) in written {
        let value = value.unwrap_or_default();
        let key = || format!("http_server_config.headers.{name}");
        let Some((_, header, allowed)) = HEADERS.iter().find(|(known, ..)| *known == name) else {
            let names = HEADERS.map(|(name, ..)| name).join(", ");
            return Err(WebConfigError::value(
                key(),
                format!("this header cannot be set, expected one of {names}"),
            ));
        };
        if !allowed.is_empty() && !allowed.contains(&&*value) {
            let allowed = allowed.join(" or ");
            return Err(WebConfigError::value(
                key(),
                format!("found {value:?}, expected {allowed}"),
            ));
        }
        let Ok(value) = HeaderValue::from_str(&value) else {
            return Err(WebConfigError::value(
                key(),
                format!("found {value:?}, expected a value without control characters"),
            ));
        };
        headers.push((header.clone(), value));
    }
    Ok(headers)
}

fn users(
    written: BTreeMap<String, Option<String>>,
) -> Result<BTreeMap<String, String>, WebConfigError> {
    /// Costs that bcrypt has.
    const COSTS: std::ops::RangeInclusive<u32> = 4..=31;
    let mut users = BTreeMap::new();
    for (name, hash) in written {
        let hash = hash.unwrap_or_default();
        let cost = hash
            .parse::<bcrypt::HashParts>()
            .map(|hash| hash.get_cost());
        // The value is not shown: whoever does not know of bcrypt has written a password.
        if !cost.is_ok_and(|cost| COSTS.contains(&cost)) {
            return Err(WebConfigError::value(
                format!("basic_auth_users.{name}"),
                "expected a bcrypt hash of 60 characters, such as `htpasswd -nBC 10 NAME` prints",
            ));
        }
        users.insert(name, hash);
    }
    Ok(users)
}

fn limit(written: &WrittenRateLimit) -> Result<Option<RateLimit>, WebConfigError> {
    let interval = match &written.interval {
        None => 0,
        Some(text) => go_duration(text).ok_or_else(|| {
            WebConfigError::value(
                "rate_limit.interval",
                format!("found {text:?}, expected a duration such as 1s or 100ms"),
            )
        })?,
    };
    let burst = written.burst.unwrap_or_default();
    // An interval that is not positive limits nothing, and a burst that is not positive lets nothing
    // through: so it is in golang.org/x/time/rate.
    let interval = u64::try_from(interval).ok().filter(|nanos| *nanos > 0);
    Ok(interval.map(|nanos| RateLimit {
        interval: Duration::from_nanos(nanos),
        burst: u32::try_from(burst.max(0)).unwrap_or(u32::MAX),
    }))
}

/// A duration in nanoseconds as Go's `time.ParseDuration` reads it, or a whole number of nanoseconds.
fn go_duration(text: &str) -> Option<i64> {
    if let Ok(nanos) = text.parse() {
        return Some(nanos);
    }
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest.is_empty() {
        return None;
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (digits, after) = rest.split_at(number);
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return None;
        }
        let end = after
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let unit: i128 = match unit {
            "ns" => 1,
            // The micro sign and the Greek letter.
            "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        if !whole.is_empty() {
            let whole: i64 = whole.parse().ok()?;
            total = total.checked_add(i128::from(whole).checked_mul(unit)?)?;
        }
        // More digits than these say nothing about nanoseconds.
        let fraction = &fraction[..fraction.len().min(18)];
        if !fraction.is_empty() {
            let scale = 10_i128.pow(u32::try_from(fraction.len()).ok()?);
            total = total.checked_add(fraction.parse::<i128>().ok()? * unit / scale)?;
        }
        rest = after;
    }
    i64::try_from(sign * total).ok()
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
