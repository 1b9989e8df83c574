//! What the environment sets, and what it cannot.

use std::path::Path;

use std::time::Duration;

use super::*;
use crate::receiver::{Compression, Protocol, Receiver};

fn environment(variables: &[(&str, &str)]) -> Environment {
    let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    Environment::new(variables.iter().map(owned))
}

/// A configuration of a file's text and of variables.
fn loaded(text: &str, variables: &[(&str, &str)]) -> LoadedConfig {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("gpuacct.toml");
    std::fs::write(&file, text).unwrap();
    LoadedConfig::load(Some(&file), &environment(variables)).unwrap()
}

fn receivers(loaded: &LoadedConfig) -> [Option<Receiver>; 2] {
    [OtlpKind::Metrics, OtlpKind::Logs].map(|kind| loaded.config.otlp.receiver(kind))
}

#[test]
fn all_variables_together_are_one_configuration() {
    let loaded = loaded(
        "",
        &[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", " https://collector:4318 "),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "Api-Key=a%20b%3D, x = y ,"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "2500"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/tls/ca.pem"),
            ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", "/tls/cert.pem"),
            ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "/tls/key.pem"),
            ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "Delta"),
            ("OTEL_METRIC_EXPORT_INTERVAL", "5000"),
            (
                "OTEL_RESOURCE_ATTRIBUTES",
                "k8s.cluster.name=a%2Cb,team%3D=c",
            ),
            ("OTEL_SERVICE_NAME", "gpu"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "nonsense"),
        ],
    );
    assert_eq!(loaded.unused, Vec::<String>::new());
    let [Some(metrics), Some(logs)] = receivers(&loaded) else {
        panic!("both are sent");
    };
    assert_eq!(metrics, logs);
    assert_eq!(metrics.protocol, Protocol::HttpProtobuf);
    assert_eq!(metrics.signal_url("metrics").unwrap().path(), "/v1/metrics");
    let headers = [("api-key", "a b="), ("x", "y")];
    let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(metrics.headers, headers);
    assert_eq!(metrics.timeout, Duration::from_millis(2_500));
    assert_eq!(metrics.compression, Compression::Gzip);
    assert_eq!(
        metrics.tls.ca_file.as_deref(),
        Some(Path::new("/tls/ca.pem"))
    );
    assert_eq!(
        metrics.tls.cert_file.as_deref(),
        Some(Path::new("/tls/cert.pem"))
    );
    assert_eq!(
        metrics.tls.key_file.as_deref(),
        Some(Path::new("/tls/key.pem"))
    );
    let otlp = &loaded.config.otlp;
    assert_eq!(otlp.temporality, OtlpTemporality::Delta);
    assert_eq!(otlp.interval, Span(Duration::from_secs(5)));
    assert_eq!(otlp.service_name.as_deref(), Some("gpu"));
    assert_eq!(otlp.resource_attributes["k8s.cluster.name"], "a,b");
    assert_eq!(otlp.resource_attributes["team="], "c");
}

#[test]
fn a_variable_of_one_signal_counts_for_it_alone_and_its_address_is_used_as_it_is() {
    let loaded = loaded(
        "",
        &[
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
            (
                "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
                "http://m:1/ingest/here",
            ),
            ("OTEL_EXPORTER_OTLP_METRICS_HEADERS", "a=b"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "c=d"),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/ca.pem"),
            ("OTEL_EXPORTER_OTLP_METRICS_CLIENT_CERTIFICATE", "/cert.pem"),
            ("OTEL_EXPORTER_OTLP_METRICS_CLIENT_KEY", "/key.pem"),
        ],
    );
    assert_eq!(loaded.unused, Vec::<String>::new());
    let [Some(metrics), None] = receivers(&loaded) else {
        panic!("metrics alone are sent");
    };
    assert_eq!(
        metrics.signal_url("metrics").unwrap().as_str(),
        "http://m:1/ingest/here"
    );
    assert_eq!(metrics.headers, [("a".to_owned(), "b".to_owned())]);
    assert_eq!(metrics.tls.ca_file.as_deref(), Some(Path::new("/ca.pem")));
    assert_eq!(
        metrics.tls.cert_file.as_deref(),
        Some(Path::new("/cert.pem"))
    );
}

#[test]
fn an_endpoint_without_a_scheme_is_one_of_grpc_and_safe_unless_told_otherwise() {
    for (variables, expected) in [
        (&[][..], Some("https://c:4317")),
        (
            &[("OTEL_EXPORTER_OTLP_INSECURE", "true")],
            Some("http://c:4317"),
        ),
        (
            &[("OTEL_EXPORTER_OTLP_INSECURE", "yes")],
            Some("https://c:4317"),
        ),
        (
            &[
                ("OTEL_EXPORTER_OTLP_INSECURE", "true"),
                ("OTEL_EXPORTER_OTLP_METRICS_INSECURE", "false"),
                ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "m:4317"),
            ],
            Some("https://m:4317"),
        ),
        (&[("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")], None),
        (&[("OTEL_SDK_DISABLED", "true")], None),
    ] {
        let endpoint = [("OTEL_EXPORTER_OTLP_ENDPOINT", "c:4317")];
        let loaded = loaded("", &[&endpoint, variables].concat());
        let [metrics, _] = receivers(&loaded);
        let found = metrics.map(|receiver| receiver.endpoint);
        assert_eq!(found.as_deref(), expected, "{variables:?}");
        assert_eq!(
            loaded.unused.is_empty(),
            expected.is_some(),
            "{variables:?}"
        );
    }
}

#[test]
fn the_file_counts_for_more_than_the_environment_and_each_origin_is_shown() {
    let text =
        "[otlp]\nendpoint = \"http://file:1\"\ntimeout = \"3s\"\n[otlp.tls]\nca_file = \"/ca\"\n";
    let loaded = loaded(
        text,
        &[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://env:1"),
            ("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "http://env:2"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "7000"),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/other"),
            (
                "OTEL_EXPORTER_OTLP_HEADERS",
                "authorization=Bearer%20hunter22",
            ),
            ("OTEL_METRIC_EXPORT_INTERVAL", "9000"),
        ],
    );
    let [metrics, logs] = receivers(&loaded).map(Option::unwrap);
    assert_eq!(
        (&*metrics.endpoint, &*logs.endpoint),
        ("http://file:1", "http://file:1")
    );
    assert_eq!(metrics.timeout, Duration::from_secs(3));
    let shown = loaded.config.shown(&loaded.origins).unwrap();
    for line in [
        "endpoint = \"http://file:1\" # from the file",
        "timeout = \"3s\" # from the file",
        "ca_file = \"/ca\" # from the file",
        "interval = \"9s\" # from OTEL_METRIC_EXPORT_INTERVAL",
        "authorization = \"(redacted)\" # from OTEL_EXPORTER_OTLP_HEADERS",
        "compression = \"none\"",
    ] {
        assert!(shown.lines().any(|found| found == line), "{line}: {shown}");
    }
    assert_eq!(
        Config::parse(&shown, "shown").unwrap(),
        loaded.config.redacted()
    );
}

#[test]
fn a_variable_that_cannot_be_used_is_named_and_changes_nothing() {
    for (variable, value, expected) in [
        (
            "OTEL_EXPORTER_OTLP_PROTOCOL",
            "http/json",
            "found \"http/json\", expected grpc or http/protobuf",
        ),
        (
            "OTEL_EXPORTER_OTLP_TIMEOUT",
            "10s",
            "found \"10s\", expected a number of milliseconds",
        ),
        (
            "OTEL_EXPORTER_OTLP_LOGS_TIMEOUT",
            "0",
            "found \"0s\", expected 100ms to 1m",
        ),
        (
            "OTEL_METRIC_EXPORT_INTERVAL",
            "5",
            "found \"5ms\", expected 1s to 1h",
        ),
        (
            "OTEL_EXPORTER_OTLP_COMPRESSION",
            "zstd",
            "expected none or gzip",
        ),
        (
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            "ftp://me:hunter22@c",
            "found \"ftp://(redacted)@c\", expected",
        ),
        (
            "OTEL_EXPORTER_OTLP_HEADERS",
            "authorization",
            "expected key=value,key=value",
        ),
        (
            "OTEL_EXPORTER_OTLP_HEADERS",
            "x=hunter22%0A",
            "x: expected a header's name",
        ),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x=%ff", "is not UTF-8"),
        (
            "OTEL_EXPORTER_OTLP_CLIENT_KEY",
            "/key.pem",
            "expected the file of its certificate",
        ),
        (
            "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE",
            "up",
            "expected cumulative, delta",
        ),
        ("OTEL_RESOURCE_ATTRIBUTES", "=a", "expected key=value"),
    ] {
        let loaded = loaded("", &[(variable, value)]);
        assert_eq!(loaded.config, Config::default(), "{variable}={value}");
        let [unused] = loaded.unused.as_slice() else {
            panic!("{variable}={value}: {:?}", loaded.unused);
        };
        let of_it = unused.strip_prefix(variable).unwrap();
        assert!(of_it.contains(expected), "{unused}");
        assert!(!unused.contains("hunter"), "{unused}");
    }
    let empty = loaded(
        "",
        &[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", " "),
            ("OTEL_SERVICE_NAME", ""),
        ],
    );
    assert_eq!(
        (empty.config, empty.unused),
        (Config::default(), Vec::new())
    );
}

#[test]
fn a_comment_does_not_get_into_a_text_with_line_breaks() {
    let name = "a\n[otlp]\nendpoint = \"b\"\n[otlp.tls]\nc = d";
    let text = format!("[otlp]\nendpoint = \"http://a:1\"\nservice_name = {name:?}\n");
    let loaded = loaded(&text, &[("OTEL_METRIC_EXPORT_INTERVAL", "9000")]);
    let shown = loaded.config.shown(&loaded.origins).unwrap();
    let read = Config::parse(&shown, "shown").unwrap();
    assert_eq!(read.otlp.service_name.as_deref(), Some(name), "{shown}");
}

#[test]
fn the_web_configuration_file_is_set_unless_the_file_sets_it_and_never_left_aside() {
    let variable = [("GPUACCT_WEB_CONFIG_FILE", "/etc/gpuacct-tls/web-config.yml")];
    let by_variable = loaded("", &variable);
    let named = by_variable.config.prometheus.web_config_file.as_deref();
    // It need not exist: whoever starts the agent learns then that it does not.
    assert_eq!(named, Some(Path::new("/etc/gpuacct-tls/web-config.yml")));
    let origin = by_variable.origins.of("prometheus.web_config_file");
    assert_eq!(origin, Some("GPUACCT_WEB_CONFIG_FILE"));
    assert_eq!(by_variable.unused, Vec::<String>::new());

    let file = "[prometheus]\nweb_config_file = \"/etc/own.yml\"\n";
    let by_file = loaded(file, &variable);
    let named = by_file.config.prometheus.web_config_file.as_deref();
    assert_eq!(named, Some(Path::new("/etc/own.yml")));

    let empty = loaded("", &[("GPUACCT_WEB_CONFIG_FILE", "")]);
    assert_eq!(empty.config.prometheus.web_config_file, None);
}

#[test]
fn a_file_that_protects_metrics_is_not_left_aside_for_its_name() {
    use std::ffi::{OsStr, OsString};
    use std::os::unix::ffi::OsStrExt as _;

    let broken = OsStr::from_bytes(b"/etc/w\xe9b.yml").to_owned();
    let variables = ["GPUACCT_WEB_CONFIG_FILE", "OTEL_SERVICE_NAME"];
    let environment = Environment::of(variables.map(|name| (OsString::from(name), broken.clone())));
    let found = environment.get("GPUACCT_WEB_CONFIG_FILE");
    assert_eq!(found, Some("/etc/w\u{fffd}b.yml"), "which is not there");
    assert_eq!(environment.get("OTEL_SERVICE_NAME"), None);
}
