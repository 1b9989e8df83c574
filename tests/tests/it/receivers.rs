//! The rigs of the receivers, judged before they judge: each passes on what is known, and says so
//! when something is wrong.

#![expect(
    clippy::float_cmp,
    reason = "values are chosen such that every digit must arrive"
)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use gpuacct_tests::http;
use gpuacct_tests::otlp::{Kind, Point};
use gpuacct_tests::prometheus::{self, Prometheus, promtool_check};
use gpuacct_tests::requirement::require;
use gpuacct_tests::rotel::{self, Rotel};
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_client::MetricsServiceClient;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Gauge, Metric, NumberDataPoint, ResourceMetrics, ScopeMetrics, Sum,
    metric, number_data_point,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::Message;
use tokio::runtime::Runtime;

/// Only ever waited for when something is broken.
const PATIENCE: Duration = Duration::from_secs(60);
const SCRAPE_INTERVAL: Duration = Duration::from_millis(500);
const COUNTER: &str = "rig_busy_seconds_total";

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("threads are to be had")
}

/// Serves `/metrics` for as long as the runtime lives.
fn serve(
    runtime: &Runtime,
    text: impl Fn() -> String + Clone + Send + Sync + 'static,
) -> SocketAddr {
    let routes = Router::new().route("/metrics", get(async move || text()));
    let listener = runtime
        .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
        .expect("loopback has free ports");
    let address = listener.local_addr().expect("it is bound");
    runtime.spawn(async move { axum::serve(listener, routes).await });
    address
}

/// A counter of seconds, in quarters so that no digit is lost.
fn counter_text(quarters: u64) -> String {
    let whole = quarters / 4;
    let fraction = quarters % 4 * 25;
    format!(
        "# HELP {COUNTER} Time in which the rig was busy.\n\
         # TYPE {COUNTER} counter\n\
         {COUNTER}{{pod=\"a\"}} {whole}.{fraction:02}\n"
    )
}

#[test]
fn prometheus_says_what_it_scraped_and_how_much_it_grew() {
    if require("prometheus", prometheus::available()).is_none() {
        return;
    }
    let runtime = runtime();
    let quarters = Arc::new(AtomicU64::new(0));
    let shown = Arc::clone(&quarters);
    let good = serve(&runtime, move || counter_text(shown.load(Ordering::SeqCst)));
    let broken = serve(&runtime, || "this is { no exposition\n".to_owned());
    let nobody = http::free_address().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let prometheus =
        Prometheus::start(dir.path(), &[good, broken, nobody], SCRAPE_INTERVAL).unwrap();

    let first = prometheus.wait_for_any(COUNTER, PATIENCE).unwrap();
    assert_eq!(first.len(), 1);
    assert_eq!(first[0].value, 0.0);
    assert_eq!(first[0].labels["__name__"], COUNTER);
    assert_eq!(first[0].labels["pod"], "a");
    assert_eq!(first[0].labels["instance"], good.to_string());

    quarters.store(10, Ordering::SeqCst);
    prometheus
        .wait_for(COUNTER, PATIENCE, |found| {
            found.first().is_some_and(|sample| sample.value == 2.5)
        })
        .unwrap();
    let last = prometheus.last_scrape(COUNTER, PATIENCE).unwrap();
    let growth = prometheus
        .query_at(&format!("increase({COUNTER}[10m])"), last)
        .unwrap();
    assert_eq!(growth[0].value, 2.5, "nothing is extrapolated");

    prometheus
        .wait_for("up", PATIENCE, |found| found.len() == 3)
        .unwrap();
    let targets = prometheus.targets().unwrap();
    let of = |address: SocketAddr| {
        let url = format!("http://{address}/metrics");
        targets
            .iter()
            .find(|target| target.scrape_url == url)
            .unwrap()
    };
    assert_eq!(
        (of(good).health.as_str(), of(good).last_error.as_str()),
        ("up", "")
    );
    for (address, reason) in [(broken, "invalid syntax"), (nobody, "connection refused")] {
        assert_eq!(of(address).health, "down");
        let error = &of(address).last_error;
        assert!(error.contains(reason), "{error:?}");
    }
}

#[test]
fn prometheus_explains_what_it_cannot_answer() {
    if require("prometheus", prometheus::available()).is_none() {
        return;
    }
    let nobody = http::free_address().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let prometheus = Prometheus::start(dir.path(), &[nobody], SCRAPE_INTERVAL).unwrap();

    prometheus.wait_for_any("up == 0", PATIENCE).unwrap();
    assert_eq!(prometheus.query(COUNTER).unwrap(), []);
    let error = prometheus.query("sum(").unwrap_err();
    assert!(format!("{error:#}").contains("bad_data"), "{error:#}");
    let error = prometheus
        .wait_for_any(COUNTER, Duration::ZERO)
        .unwrap_err();
    let text = error.to_string();
    for part in [COUNTER, &nobody.to_string(), "Server is ready"] {
        assert!(text.contains(part), "{part}: {text}");
    }

    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("prometheus"), "where its storage would be").unwrap();
    let error = Prometheus::start(dir.path(), &[nobody], SCRAPE_INTERVAL).unwrap_err();
    let text = error.to_string();
    for part in ["prometheus ended with", "not a directory"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn promtool_judges_names_and_help() {
    if require("prometheus", prometheus::available()).is_none() {
        return;
    }
    promtool_check(&counter_text(10)).unwrap();
    for (text, reason) in [
        (
            "# HELP rig_busy_seconds Time.\n# TYPE rig_busy_seconds counter\nrig_busy_seconds 1\n",
            "counter metrics should have \"_total\" suffix",
        ),
        ("# TYPE rig_bytes gauge\nrig_bytes 1\n", "no help text"),
        ("rig_bytes{ 1\n", "error while linting"),
    ] {
        let error = promtool_check(text).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
}

/// A message with a sum and a gauge, told apart by `busy_seconds`.
fn message(busy_seconds: f64) -> ExportMetricsServiceRequest {
    let attribute = |key: &str, value: &str| KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue {
            value: Some(any_value::Value::StringValue(value.to_owned())),
        }),
        ..KeyValue::default()
    };
    let point = |value, start_time_unix_nano| NumberDataPoint {
        attributes: vec![attribute("k8s.pod.name", "träume-\"0\"\n")],
        start_time_unix_nano,
        time_unix_nano: 1_700_000_060_000_000_001,
        value: Some(value),
        ..NumberDataPoint::default()
    };
    let metric = |name: &str, unit: &str, data| Metric {
        name: name.to_owned(),
        unit: unit.to_owned(),
        description: "What it is.".to_owned(),
        data: Some(data),
        ..Metric::default()
    };
    let busy = metric::Data::Sum(Sum {
        data_points: vec![point(
            number_data_point::Value::AsDouble(busy_seconds),
            1_700_000_000_000_000_007,
        )],
        aggregation_temporality: AggregationTemporality::Cumulative.into(),
        is_monotonic: true,
    });
    let memory = metric::Data::Gauge(Gauge {
        data_points: vec![point(number_data_point::Value::AsInt(1 << 33), 0)],
    });
    ExportMetricsServiceRequest {
        resource_metrics: vec![ResourceMetrics {
            resource: Some(Resource {
                attributes: vec![attribute("host.name", "node-1")],
                ..Resource::default()
            }),
            scope_metrics: vec![ScopeMetrics {
                scope: Some(InstrumentationScope {
                    name: "gpuacct".to_owned(),
                    ..InstrumentationScope::default()
                }),
                metrics: vec![
                    metric("rig.busy", "s", busy),
                    metric("rig.memory", "By", memory),
                ],
                ..ScopeMetrics::default()
            }],
            ..ResourceMetrics::default()
        }],
    }
}

fn push_grpc(
    runtime: &Runtime,
    rotel: &Rotel,
    message: ExportMetricsServiceRequest,
) -> anyhow::Result<()> {
    runtime.block_on(async {
        let mut client = MetricsServiceClient::connect(rotel.grpc_url()).await?;
        let response = client.export(message).await?;
        assert_eq!(response.into_inner().partial_success, None);
        Ok(())
    })
}

fn push_http(rotel: &Rotel, body: &[u8]) -> anyhow::Result<u16> {
    let url = format!("{}/v1/metrics", rotel.http_url());
    Ok(http::post(&url, "application/x-protobuf", body)?.0)
}

#[test]
fn rotel_sends_on_what_it_takes_over_grpc_and_http() {
    let Some(program) = require("pypi", rotel::available()) else {
        return;
    };
    let runtime = runtime();
    let dir = tempfile::tempdir().unwrap();
    let rotel = Rotel::start(program, dir.path()).unwrap();

    push_grpc(&runtime, &rotel, message(1.5)).unwrap();
    rotel
        .wait_for("a message over grpc", PATIENCE, |received| {
            received.metrics.len() == 1
        })
        .unwrap();
    assert_eq!(
        push_http(&rotel, &message(2.25).encode_to_vec()).unwrap(),
        200
    );
    let received = rotel
        .wait_for("a message over http", PATIENCE, |received| {
            received.metrics.len() == 2
        })
        .unwrap();
    assert_eq!(received.metrics, [message(1.5), message(2.25)]);

    let text = |key: &str, value: &str| [(key.to_owned(), value.to_owned())].into();
    let busy = Point {
        name: "rig.busy".to_owned(),
        unit: "s".to_owned(),
        kind: Kind::Sum {
            is_monotonic: true,
            temporality: AggregationTemporality::Cumulative,
        },
        scope: "gpuacct".to_owned(),
        resource: text("host.name", "node-1"),
        attributes: text("k8s.pod.name", "träume-\"0\"\n"),
        value: 1.5,
        start_unix_nanos: 1_700_000_000_000_000_007,
        time_unix_nanos: 1_700_000_060_000_000_001,
    };
    let points = received.points();
    assert_eq!(points.len(), 4);
    assert_eq!(points[0], busy);
    assert_eq!(
        (points[1].kind, points[1].value),
        (Kind::Gauge, 8_589_934_592.0)
    );
    let latest = received.latest("rig.busy");
    assert_eq!(latest.len(), 1);
    assert_eq!(latest[&busy.attributes].value, 2.25);
}

#[test]
fn rotel_refuses_what_is_no_message() {
    let Some(program) = require("pypi", rotel::available()) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let rotel = Rotel::start(program, dir.path()).unwrap();

    assert_eq!(push_http(&rotel, b"\xff\xff\xff").unwrap(), 400);
    let error = rotel
        .wait_for("a message", Duration::ZERO, |received| {
            !received.metrics.is_empty()
        })
        .unwrap_err()
        .to_string();
    for part in ["a message among 0 messages", "Starting Rotel"] {
        assert!(error.contains(part), "{part}: {error}");
    }
}

#[test]
fn rotel_goes_away_and_comes_back_where_it_was() {
    let Some(program) = require("pypi", rotel::available()) else {
        return;
    };
    let runtime = runtime();
    let dir = tempfile::tempdir().unwrap();
    let mut rotel = Rotel::start(program, dir.path()).unwrap();
    push_grpc(&runtime, &rotel, message(1.0)).unwrap();
    rotel
        .wait_for("the first message", PATIENCE, |received| {
            received.metrics.len() == 1
        })
        .unwrap();

    rotel.stop().unwrap();
    push_grpc(&runtime, &rotel, message(2.0)).unwrap_err();
    push_http(&rotel, &message(2.0).encode_to_vec()).unwrap_err();

    rotel.start_again().unwrap();
    push_grpc(&runtime, &rotel, message(3.0)).unwrap();
    let received = rotel
        .wait_for("the third message", PATIENCE, |received| {
            received.metrics.len() == 2
        })
        .unwrap();
    assert_eq!(received.metrics, [message(1.0), message(3.0)]);
}
