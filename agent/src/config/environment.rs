//! Environment variables for keys that the file does not set: OpenTelemetry's for `[otlp]`, and one
//! for the web configuration file.
//!
//! Names, forms and meanings are those of OpenTelemetry's specification (`specification/protocol/
//! exporter.md`, `specification/configuration/sdk-environment-variables.md`): an empty variable counts
//! as not set, durations are milliseconds, and a variable whose value cannot be used is left aside
//! with a warning. The agent must not stop counting because of a variable that was meant for others.
//!
//! It reads no other process' environment and no variable of another signal.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use percent_encoding::percent_decode_str;

use super::check;
use super::origins::Origins;
use super::otlp::{Otlp, OtlpTemporality};
use super::otlp_signal::{OtlpCompression, OtlpProtocol, OtlpSignal, OtlpTls};
use super::sections::Config;
use super::span::Span;

/// The one variable here that is not OpenTelemetry's. Exporters have a flag for what it sets.
const WEB_CONFIG_FILE: &str = "GPUACCT_WEB_CONFIG_FILE";

/// Name and meaning of each variable.
pub const VARIABLES: [(&str, &str); 15] = [
    (WEB_CONFIG_FILE, "prometheus.web_config_file"),
    (
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "otlp.endpoint. This and the next eight also with METRICS_ or LOGS_ before the last part",
    ),
    (
        "OTEL_EXPORTER_OTLP_PROTOCOL",
        "otlp.protocol: grpc or http/protobuf",
    ),
    (
        "OTEL_EXPORTER_OTLP_HEADERS",
        "otlp.headers, as key=value,key=value, percent-encoded",
    ),
    (
        "OTEL_EXPORTER_OTLP_TIMEOUT",
        "otlp.timeout, in milliseconds",
    ),
    (
        "OTEL_EXPORTER_OTLP_COMPRESSION",
        "otlp.compression: none or gzip",
    ),
    ("OTEL_EXPORTER_OTLP_CERTIFICATE", "otlp.tls.ca_file"),
    (
        "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE",
        "otlp.tls.cert_file",
    ),
    ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "otlp.tls.key_file"),
    (
        "OTEL_EXPORTER_OTLP_INSECURE",
        "true: a gRPC endpoint of the environment without http:// or https:// has no TLS",
    ),
    (
        "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE",
        "otlp.temporality: cumulative, delta, or lowmemory, which is cumulative for these metrics",
    ),
    (
        "OTEL_METRIC_EXPORT_INTERVAL",
        "otlp.interval, in milliseconds",
    ),
    (
        "OTEL_RESOURCE_ATTRIBUTES",
        "otlp.resource_attributes, as key=value,key=value, percent-encoded",
    ),
    ("OTEL_SERVICE_NAME", "otlp.service_name"),
    (
        "OTEL_SDK_DISABLED",
        "true: the endpoints of the environment are not used",
    ),
];

/// The variables that are set.
#[derive(Clone, Debug, Default)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    /// Those of this process. One that is no text counts as not set. A file that protects `/metrics` is
    /// never left aside: a name that is no text becomes one of a file that is not there.
    #[must_use]
    pub fn of_process() -> Self {
        Self::of(std::env::vars_os())
    }

    pub(super) fn of(all: impl IntoIterator<Item = (OsString, OsString)>) -> Self {
        Self::new(all.into_iter().filter_map(|(name, value)| {
            let name = name.into_string().ok()?;
            let value = match value.into_string() {
                Ok(value) => value,
                Err(value) if name == WEB_CONFIG_FILE => value.to_string_lossy().into_owned(),
                Err(_) => return None,
            };
            Some((name, value))
        }))
    }

    /// These variables, by name and value. Those that are not [`VARIABLES`] are left out.
    pub fn new(variables: impl IntoIterator<Item = (String, String)>) -> Self {
        let ours =
            |(name, _): &(String, String)| name.starts_with("OTEL_") || name == WEB_CONFIG_FILE;
        Self(variables.into_iter().filter(ours).collect())
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let value = self.0.get(name)?.trim();
        (!value.is_empty()).then_some(value)
    }

    fn is_true(&self, name: &str) -> bool {
        self.get(name)
            .is_some_and(|value| value.eq_ignore_ascii_case("true"))
    }
}

/// For which signals a variable is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    All,
    Metrics,
    Logs,
}

impl Scope {
    const EVERY: [Self; 3] = [Self::All, Self::Metrics, Self::Logs];

    fn variable(self, last: &str) -> String {
        let infix = match self {
            Self::All => "",
            Self::Metrics => "METRICS_",
            Self::Logs => "LOGS_",
        };
        format!("OTEL_EXPORTER_OTLP_{infix}{last}")
    }

    fn section(self) -> &'static str {
        match self {
            Self::All => "otlp",
            Self::Metrics => "otlp.metrics",
            Self::Logs => "otlp.logs",
        }
    }

    /// The section of one signal; absent for all signals.
    fn signal(self, otlp: &mut Otlp) -> Option<&mut OtlpSignal> {
        match self {
            Self::All => None,
            Self::Metrics => Some(&mut otlp.metrics),
            Self::Logs => Some(&mut otlp.logs),
        }
    }
}

/// What variables change, key by key.
struct Merge<'a> {
    config: &'a mut Config,
    origins: &'a mut Origins,
    environment: &'a Environment,
    unused: Vec<String>,
}

/// Takes from the environment what the file does not set. Says which variables are set and not used,
/// and why.
pub(super) fn merge(
    config: &mut Config,
    origins: &mut Origins,
    environment: &Environment,
) -> Vec<String> {
    let mut merge = Merge {
        config,
        origins,
        environment,
        unused: Vec::new(),
    };
    for scope in Scope::EVERY {
        merge.scope(scope);
    }
    merge.whole();
    merge.web_config_file();
    merge.unused
}

impl Merge<'_> {
    /// The variables of one scope. The protocol comes first, since an endpoint depends on it.
    fn scope(&mut self, scope: Scope) {
        self.take(scope, "PROTOCOL", "protocol", |otlp, value| {
            let protocol = match value {
                "grpc" => OtlpProtocol::Grpc,
                "http/protobuf" => OtlpProtocol::HttpProtobuf,
                _ => return Err(expected(value, "grpc or http/protobuf")),
            };
            match scope.signal(otlp) {
                None => otlp.protocol = protocol,
                Some(signal) => signal.protocol = Some(protocol),
            }
            Ok(())
        });
        self.endpoint(scope);
        self.take(scope, "HEADERS", "headers", |otlp, value| {
            // The values are not shown.
            let headers = pairs(value, |name| Ok(name.to_ascii_lowercase()))?;
            match scope.signal(otlp) {
                None => otlp.headers = headers,
                Some(signal) => signal.headers = Some(headers),
            }
            Ok(())
        });
        self.take(scope, "TIMEOUT", "timeout", |otlp, value| {
            let timeout = millis(value)?;
            match scope.signal(otlp) {
                None => otlp.timeout = timeout,
                Some(signal) => signal.timeout = Some(timeout),
            }
            Ok(())
        });
        self.take(scope, "COMPRESSION", "compression", |otlp, value| {
            let compression = match value.to_ascii_lowercase().as_str() {
                "none" => OtlpCompression::None,
                "gzip" => OtlpCompression::Gzip,
                _ => return Err(expected(value, "none or gzip")),
            };
            match scope.signal(otlp) {
                None => otlp.compression = compression,
                Some(signal) => signal.compression = Some(compression),
            }
            Ok(())
        });
        self.take(scope, "CERTIFICATE", "tls.ca_file", |otlp, value| {
            tls(otlp, scope).ca_file = Some(path(value));
            Ok(())
        });
        self.client_certificate(scope);
    }

    fn endpoint(&mut self, scope: Scope) {
        let variable = scope.variable("ENDPOINT");
        if self.environment.is_true("OTEL_SDK_DISABLED") {
            if self.environment.get(&variable).is_some() {
                self.unused
                    .push(format!("{variable}: OTEL_SDK_DISABLED is true"));
            }
            return;
        }
        let insecure = |scope: Scope| scope.variable("INSECURE");
        let own = self.environment.get(&insecure(scope)).is_some();
        let from = if own { scope } else { Scope::All };
        let is_insecure = self.environment.is_true(&insecure(from));
        self.take(scope, "ENDPOINT", "endpoint", |otlp, value| {
            let own = scope.signal(otlp).and_then(|signal| signal.protocol);
            let is_grpc = own.unwrap_or(otlp.protocol) == OtlpProtocol::Grpc;
            // As `collector:4317`, which gRPC's own clients take.
            let endpoint = match is_grpc && !value.contains("://") {
                true if is_insecure => format!("http://{value}"),
                true => format!("https://{value}"),
                false => value.to_owned(),
            };
            match scope.signal(otlp) {
                None => otlp.endpoint = Some(endpoint),
                Some(signal) => signal.endpoint = Some(endpoint),
            }
            Ok(())
        });
    }

    /// A certificate and its key, which are of use only together.
    fn client_certificate(&mut self, scope: Scope) {
        let names = ["CLIENT_CERTIFICATE", "CLIENT_KEY"].map(|last| scope.variable(last));
        let values = names
            .each_ref()
            .map(|name| self.environment.get(name).map(path));
        let keys = ["tls.cert_file", "tls.key_file"];
        if keys.iter().any(|key| self.is_set(scope, key)) {
            return;
        }
        let [certificate, key] = values;
        let set = [certificate.is_some(), key.is_some()];
        let change = |otlp: &mut Otlp, _: &str| {
            let tls = tls(otlp, scope);
            tls.cert_file = certificate.clone().or(tls.cert_file.take());
            tls.key_file = key.clone().or(tls.key_file.take());
            Ok(())
        };
        if let Some(first) = set.iter().position(|is_set| *is_set) {
            let of_key = |at: usize| format!("{}.{}", scope.section(), keys[at]);
            if self.change(&names[first], "", change) {
                for (at, _) in set.iter().enumerate().filter(|(_, is_set)| **is_set) {
                    self.origins.set(of_key(at), names[at].clone());
                }
            }
        }
    }

    /// What is not set for each signal.
    fn whole(&mut self) {
        self.take_named(
            "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE",
            "otlp.temporality",
            |otlp, value| {
                otlp.temporality = match value.to_ascii_lowercase().as_str() {
                    // Under `lowmemory` counters that are observed, as all of these, are cumulative.
                    "cumulative" | "lowmemory" => OtlpTemporality::Cumulative,
                    "delta" => OtlpTemporality::Delta,
                    _ => return Err(expected(value, "cumulative, delta or lowmemory")),
                };
                Ok(())
            },
        );
        self.take_named(
            "OTEL_METRIC_EXPORT_INTERVAL",
            "otlp.interval",
            |otlp, value| {
                otlp.interval = millis(value)?;
                Ok(())
            },
        );
        self.take_named(
            "OTEL_RESOURCE_ATTRIBUTES",
            "otlp.resource_attributes",
            |otlp, value| {
                otlp.resource_attributes = pairs(value, decoded)?;
                Ok(())
            },
        );
        self.take_named("OTEL_SERVICE_NAME", "otlp.service_name", |otlp, value| {
            otlp.service_name = Some(value.to_owned());
            Ok(())
        });
    }

    /// What protects `/metrics`. It is never left aside: a file that cannot be used keeps the agent from
    /// starting, as one that the configuration names.
    fn web_config_file(&mut self) {
        let key = "prometheus.web_config_file";
        if let Some(file) = self.environment.get(WEB_CONFIG_FILE)
            && !self.origins.is_of_file(key)
        {
            self.config.prometheus.web_config_file = Some(path(file));
            self.origins.set(key.to_owned(), WEB_CONFIG_FILE.to_owned());
        }
    }

    /// Whether the file sets a key for these signals or for all.
    fn is_set(&self, scope: Scope, key: &str) -> bool {
        let own = format!("{}.{key}", scope.section());
        self.origins.is_of_file(&own) || self.origins.is_of_file(&format!("otlp.{key}"))
    }

    fn take(
        &mut self,
        scope: Scope,
        last: &str,
        key: &str,
        change: impl FnOnce(&mut Otlp, &str) -> Result<(), String>,
    ) {
        let variable = scope.variable(last);
        let set = format!("{}.{key}", scope.section());
        if !self.is_set(scope, key) && self.change(&variable, &set, change) {
            self.origins.set(set, variable);
        }
    }

    fn take_named(
        &mut self,
        variable: &str,
        key: &str,
        change: impl FnOnce(&mut Otlp, &str) -> Result<(), String>,
    ) {
        if !self.origins.is_of_file(key) && self.change(variable, key, change) {
            self.origins.set(key.to_owned(), variable.to_owned());
        }
    }

    /// Changes the configuration by a variable, if it is set and the result can work.
    fn change(
        &mut self,
        variable: &str,
        key: &str,
        change: impl FnOnce(&mut Otlp, &str) -> Result<(), String>,
    ) -> bool {
        let Some(value) = self.environment.get(variable) else {
            return false;
        };
        let mut changed = self.config.clone();
        let mut problem = change(&mut changed.otlp, value).err();
        if problem.is_none() {
            check::check(&changed, &mut |wrong| {
                let place = if wrong.key == key { "" } else { wrong.key };
                let name = wrong.name.as_deref().unwrap_or_default();
                let gap = if place.is_empty() && name.is_empty() {
                    ""
                } else {
                    ": "
                };
                problem.get_or_insert(format!("{place}{name}{gap}{}", wrong.problem));
            });
        }
        match problem {
            None => *self.config = changed,
            Some(problem) => {
                self.unused.push(format!("{variable}: {problem}"));
                return false;
            }
        }
        true
    }
}

fn tls(otlp: &mut Otlp, scope: Scope) -> &mut OtlpTls {
    let all = otlp.tls.clone();
    match scope {
        Scope::All => &mut otlp.tls,
        // What is not different for a signal stays as it is for all.
        Scope::Metrics => otlp.metrics.tls.get_or_insert(all),
        Scope::Logs => otlp.logs.tls.get_or_insert(all),
    }
}

/// A path as a program means it that was started here.
fn path(value: &str) -> PathBuf {
    std::path::absolute(value).unwrap_or_else(|_| value.into())
}

fn millis(value: &str) -> Result<Span, String> {
    let millis = value
        .parse()
        .map_err(|_| expected(value, "a number of milliseconds"))?;
    Ok(Span(Duration::from_millis(millis)))
}

fn expected(found: &str, expected: &str) -> String {
    format!("found {found:?}, expected {expected}")
}

/// `key=value,key=value`. Values are percent-encoded, and so may be keys.
fn pairs(
    text: &str,
    key: impl Fn(&str) -> Result<String, String>,
) -> Result<BTreeMap<String, String>, String> {
    let mut pairs = BTreeMap::new();
    for pair in text
        .split(',')
        .map(str::trim)
        .filter(|pair| !pair.is_empty())
    {
        let wrong = || "expected key=value,key=value".to_owned();
        let (name, value) = pair.split_once('=').ok_or_else(wrong)?;
        let name = name.trim();
        if name.is_empty() {
            return Err(wrong());
        }
        pairs.insert(key(name)?, decoded(value.trim())?);
    }
    Ok(pairs)
}

fn decoded(text: &str) -> Result<String, String> {
    let decoded = percent_decode_str(text).decode_utf8();
    let decoded = decoded.map_err(|_| "what is percent-encoded is not UTF-8".to_owned());
    Ok(decoded?.into_owned())
}
