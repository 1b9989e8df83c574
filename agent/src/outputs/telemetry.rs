//! The agent's own telemetry, through the OpenTelemetry SDK: what it costs (CPU, memory) and what
//! it logs. Only where a receiver is configured.
//!
//! The books do not go this way: the SDK has one start time for a whole instrument and no way to
//! resume a total, see [`super::otlp`].
//!
//! It refuses to log its own failures into itself: an export that fails is a line in the agent's
//! local log and nothing else. Otherwise each failed export would make the next one longer. The SDK
//! exports from threads of its own, with bounded queues that drop and count.

use std::time::Duration;

use bytes::Bytes;
use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE};
use opentelemetry::KeyValue;
use opentelemetry::metrics::MeterProvider as _;
use opentelemetry_appender_tracing::layer::OpenTelemetryTracingBridge;
use opentelemetry_otlp::{
    ExporterBuildError, LogExporter, MetricExporter, WithExportConfig, WithHttpConfig,
    WithTonicConfig,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::logs::SdkLoggerProvider;
pub use opentelemetry_sdk::metrics::Temporality;
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider};
use tokio::runtime::Handle;
use tonic::metadata::MetadataMap;
use tonic::{Request, Status};
use tracing::level_filters::LevelFilter;
use tracing::{Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::registry::LookupSpan;

use super::receiver::{Compression, Origin, Protocol, Receiver, ReceiverError};
use crate::errors::chain;
use crate::own_process;
use crate::receiver::HttpClient;

/// Whose events do not go out: everything that takes part in sending them.
const OWN_MACHINERY: [&str; 10] = [
    "gpuacct::outputs::otlp",
    "gpuacct::outputs::telemetry",
    "h2",
    "hyper",
    "hyper_util",
    "opentelemetry",
    "rustls",
    "tokio_rustls",
    "tonic",
    "tower",
];

/// Where the agent's own telemetry goes.
#[derive(Clone, Debug)]
pub struct Options {
    /// Receiver of the metrics, if they are sent.
    pub metrics: Option<Receiver>,
    /// Receiver of the log, if it is sent.
    pub logs: Option<Receiver>,
    /// Resource attributes of this agent.
    pub origin: Origin,
    /// The time between two exports of the metrics.
    pub interval: Duration,
    /// What a counter's points say.
    pub temporality: Temporality,
}

/// Why telemetry cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The receiver cannot work.
    #[error(transparent)]
    Receiver(#[from] ReceiverError),
    /// The SDK refuses to make an exporter.
    #[error("cannot create the OTLP exporter for the agent's own {signal} to {endpoint}")]
    Exporter {
        /// `metrics` or `logs`.
        signal: &'static str,
        /// The receiver.
        endpoint: String,
        /// What the exporter refused.
        source: ExporterBuildError,
    },
}

/// The agent's own telemetry, running.
#[derive(Debug)]
pub struct Telemetry {
    metrics: Option<SdkMeterProvider>,
    logs: Option<SdkLoggerProvider>,
}

impl Telemetry {
    /// Begins. Must be called within a tokio runtime that outlives it.
    ///
    /// # Errors
    /// If the receiver cannot work, whatever it answers. One that is away is no error.
    pub fn start(options: &Options) -> Result<Self, TelemetryError> {
        let resource = Resource::builder_empty()
            .with_attributes(
                options
                    .origin
                    .attributes()
                    .map(|(key, value)| KeyValue::new(key.to_owned(), value.to_owned())),
            )
            .build();
        let (metric_exporter, log_exporter) = exporters(options)?;
        let metrics = metric_exporter.map(|exporter| {
            let reader = PeriodicReader::builder(exporter)
                .with_interval(options.interval)
                .build();
            let metrics = SdkMeterProvider::builder()
                .with_resource(resource.clone())
                .with_reader(reader)
                .build();
            observe(&metrics);
            metrics
        });
        let logs = log_exporter.map(|exporter| {
            SdkLoggerProvider::builder()
                .with_resource(resource)
                .with_batch_exporter(exporter)
                .build()
        });
        Ok(Self { metrics, logs })
    }

    /// The layer that sends the log's events of level INFO and above, except those of the machinery
    /// that sends them.
    pub fn layer<S>(&self) -> impl Layer<S> + Send + Sync + 'static
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        let logs = self.logs.as_ref();
        logs.map(|logs| OpenTelemetryTracingBridge::new(logs).with_filter(filter_fn(goes_out)))
    }

    /// Sends what is left, no longer than `deadline` for each of the two signals. Blocks: call it
    /// where blocking is allowed.
    pub fn shutdown(self, deadline: Duration) {
        let (metrics, logs) = (self.metrics, self.logs);
        let ends = [
            (
                "metrics",
                metrics.map(|of_it| of_it.shutdown_with_timeout(deadline)),
            ),
            (
                "logs",
                logs.map(|of_it| of_it.shutdown_with_timeout(deadline)),
            ),
        ];
        for (signal, end) in ends {
            if let Some(Err(error)) = end {
                tracing::warn!(signal, %error, "cannot flush the agent's own telemetry");
            }
        }
    }
}

/// Whether an event of the log is sent.
fn goes_out(metadata: &Metadata<'_>) -> bool {
    *metadata.level() <= LevelFilter::INFO && !is_own_machinery(metadata.target())
}

/// Whether `target` is one of [`OWN_MACHINERY`] or a module of it. `opentelemetry` stands for all
/// crates whose names begin so.
fn is_own_machinery(target: &str) -> bool {
    OWN_MACHINERY.iter().any(|own| {
        target.strip_prefix(own).is_some_and(|rest| {
            rest.is_empty() || rest.starts_with("::") || *own == "opentelemetry"
        })
    })
}

/// The exporters of both signals. Nothing is connected yet. Must be called within a tokio runtime.
///
/// # Errors
/// If a receiver cannot work.
pub(crate) fn exporters(
    options: &Options,
) -> Result<(Option<MetricExporter>, Option<LogExporter>), TelemetryError> {
    let metrics = options.metrics.as_ref();
    let metrics = metrics.map(|receiver| metric_exporter(receiver, options.temporality));
    let logs = options.logs.as_ref().map(log_exporter);
    Ok((metrics.transpose()?, logs.transpose()?))
}

fn metric_exporter(
    receiver: &Receiver,
    temporality: Temporality,
) -> Result<MetricExporter, TelemetryError> {
    let builder = MetricExporter::builder().with_temporality(temporality);
    match receiver.protocol {
        Protocol::Grpc => over_grpc(builder.with_tonic(), receiver)?.build(),
        Protocol::HttpProtobuf => over_http(builder.with_http(), receiver, "metrics")?.build(),
    }
    .map_err(|source| failed("metrics", receiver, source))
}

fn log_exporter(receiver: &Receiver) -> Result<LogExporter, TelemetryError> {
    let builder = LogExporter::builder();
    match receiver.protocol {
        Protocol::Grpc => over_grpc(builder.with_tonic(), receiver)?.build(),
        Protocol::HttpProtobuf => over_http(builder.with_http(), receiver, "logs")?.build(),
    }
    .map_err(|source| failed("logs", receiver, source))
}

/// Sends over the agent's own connections, with the agent's headers.
fn over_grpc<B: WithTonicConfig + WithExportConfig>(
    builder: B,
    receiver: &Receiver,
) -> Result<B, ReceiverError> {
    receiver.header_map()?;
    let (channel, _) = receiver.channel()?;
    let sender = receiver.clone();
    let builder = builder
        .with_channel(channel)
        .with_timeout(receiver.timeout)
        .with_interceptor(move |request| with_headers(&sender, request));
    Ok(match receiver.compression {
        Compression::None => builder,
        Compression::Gzip => builder.with_compression(opentelemetry_otlp::Compression::Gzip),
    })
}

/// The request with the receiver's headers, in place of those that the SDK takes from the environment.
fn with_headers(receiver: &Receiver, mut request: Request<()>) -> Result<Request<()>, Status> {
    const TIMEOUT: &str = "grpc-timeout";
    let headers = receiver.headers_now();
    let headers = headers.map_err(|error| Status::failed_precondition(chain(&error)))?;
    let timeout = request.metadata_mut().remove(TIMEOUT);
    let metadata = request.metadata_mut();
    *metadata = MetadataMap::from_headers(headers);
    if let Some(timeout) = timeout {
        metadata.insert(TIMEOUT, timeout);
    }
    Ok(request)
}

/// The same over HTTP.
fn over_http<B: WithHttpConfig + WithExportConfig>(
    builder: B,
    receiver: &Receiver,
    signal: &str,
) -> Result<B, ReceiverError> {
    receiver.header_map()?;
    let builder = builder
        .with_protocol(opentelemetry_otlp::Protocol::HttpBinary)
        .with_endpoint(receiver.signal_url(signal)?.as_str())
        .with_timeout(receiver.timeout)
        .with_http_client(SdkClient {
            client: receiver.http_client(),
            receiver: receiver.clone(),
            runtime: Handle::current(),
        });
    Ok(match receiver.compression {
        Compression::None => builder,
        Compression::Gzip => builder.with_compression(opentelemetry_otlp::Compression::Gzip),
    })
}

/// What the SDK sends HTTP requests with. The SDK calls it on a thread of its own; the connections are
/// the runtime's.
#[derive(Debug)]
struct SdkClient {
    client: HttpClient,
    receiver: Receiver,
    runtime: Handle,
}

#[tonic::async_trait]
impl opentelemetry_http::HttpClient for SdkClient {
    async fn send_bytes(
        &self,
        request: opentelemetry_http::Request<Bytes>,
    ) -> Result<opentelemetry_http::Response<Bytes>, opentelemetry_http::HttpError> {
        let (parts, body) = request.into_parts();
        let mut headers = self.receiver.headers_now()?;
        // The SDK also puts in those that it finds in the environment.
        for name in [CONTENT_TYPE, CONTENT_ENCODING] {
            if let Some(value) = parts.headers.get(&name) {
                headers.insert(name, value.clone());
            }
        }
        let (client, timeout) = (self.client.clone(), self.receiver.timeout);
        let exchange = self.runtime.spawn(async move {
            tokio::time::timeout(timeout, client.post(parts.uri, headers, body)).await
        });
        let answer = exchange.await???;
        let mut response = opentelemetry_http::Response::builder().status(answer.status);
        if let Some(kept) = response.headers_mut() {
            *kept = answer.headers;
        }
        Ok(response.body(answer.body)?)
    }
}

fn failed(signal: &'static str, receiver: &Receiver, source: ExporterBuildError) -> TelemetryError {
    TelemetryError::Exporter {
        signal,
        endpoint: receiver.endpoint.clone(),
        source,
    }
}

/// What the agent costs, under OpenTelemetry's names for processes. Read when the SDK exports.
fn observe(provider: &SdkMeterProvider) {
    let meter = provider.meter("gpuacct");
    // The callbacks live on in the provider; the handles are of no further use.
    let _cpu = meter
        .f64_observable_counter("process.cpu.time")
        .with_unit("s")
        .with_description("CPU time that the agent has used.")
        .with_callback(|observer| observer.observe(own_process::cpu().as_secs_f64(), &[]))
        .build();
    let _memory = meter
        .i64_observable_up_down_counter("process.memory.usage")
        .with_unit("By")
        .with_description("Physical memory that the agent has.")
        .with_callback(|observer| {
            // Not measured is not zero.
            let bytes = own_process::resident_bytes();
            if let Some(bytes) = bytes.and_then(|bytes| i64::try_from(bytes).ok()) {
                observer.observe(bytes, &[]);
            }
        })
        .build();
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::{Arc, Mutex};

    use axum::body::Bytes;
    use axum::extract::State;
    use axum::routing::post;
    use opentelemetry_proto::tonic::collector::logs::v1::logs_service_server::{
        LogsService, LogsServiceServer,
    };
    use opentelemetry_proto::tonic::collector::logs::v1::{
        ExportLogsServiceRequest, ExportLogsServiceResponse,
    };
    use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
        MetricsService, MetricsServiceServer,
    };
    use opentelemetry_proto::tonic::collector::metrics::v1::{
        ExportMetricsServiceRequest, ExportMetricsServiceResponse,
    };
    use opentelemetry_proto::tonic::common::v1::any_value;
    use prost::Message as _;
    use tokio::net::TcpListener;
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    /// What arrived: the names of the metrics and the texts of the log.
    #[derive(Clone, Default)]
    struct Arrived(Arc<Mutex<(Vec<String>, Vec<String>)>>);

    impl Arrived {
        fn metrics(&self, request: &ExportMetricsServiceRequest) {
            let scopes = request
                .resource_metrics
                .iter()
                .flat_map(|resource| &resource.scope_metrics);
            let names = scopes
                .flat_map(|scope| &scope.metrics)
                .map(|metric| metric.name.clone());
            self.0.lock().unwrap().0.extend(names);
        }

        fn logs(&self, request: &ExportLogsServiceRequest) {
            let records = request
                .resource_logs
                .iter()
                .flat_map(|resource| &resource.scope_logs)
                .flat_map(|scope| &scope.log_records);
            let texts = records.filter_map(|record| match &record.body.as_ref()?.value {
                Some(any_value::Value::StringValue(text)) => Some(text.clone()),
                _ => None,
            });
            self.0.lock().unwrap().1.extend(texts);
        }
    }

    #[tonic::async_trait]
    impl MetricsService for Arrived {
        async fn export(
            &self,
            request: tonic::Request<ExportMetricsServiceRequest>,
        ) -> Result<tonic::Response<ExportMetricsServiceResponse>, tonic::Status> {
            self.metrics(request.get_ref());
            Ok(tonic::Response::new(ExportMetricsServiceResponse::default()))
        }
    }

    #[tonic::async_trait]
    impl LogsService for Arrived {
        async fn export(
            &self,
            request: tonic::Request<ExportLogsServiceRequest>,
        ) -> Result<tonic::Response<ExportLogsServiceResponse>, tonic::Status> {
            self.logs(request.get_ref());
            Ok(tonic::Response::new(ExportLogsServiceResponse::default()))
        }
    }

    fn options(protocol: Protocol, endpoint: String) -> Options {
        Options {
            metrics: Some(Receiver::new(endpoint.clone(), protocol)),
            logs: Some(Receiver::new(endpoint, protocol)),
            origin: Origin {
                host_name: "node".to_owned(),
                ..Origin::default()
            },
            interval: Duration::from_secs(3_600),
            temporality: Temporality::Cumulative,
        }
    }

    #[tokio::test]
    async fn the_agents_own_metrics_and_log_arrive_and_the_machinery_stays_silent() {
        for protocol in [Protocol::Grpc, Protocol::HttpProtobuf] {
            let address = SocketAddr::from(([127, 0, 0, 1], 0));
            let listener = TcpListener::bind(address).await.unwrap();
            let endpoint = format!("http://{}", listener.local_addr().unwrap());
            let arrived = Arrived::default();
            let peer = arrived.clone();
            let server = match protocol {
                Protocol::Grpc => tokio::spawn(async move {
                    tonic::transport::Server::builder()
                        .add_service(MetricsServiceServer::new(peer.clone()))
                        .add_service(LogsServiceServer::new(peer))
                        .serve_with_incoming(tonic::transport::server::TcpIncoming::from(listener))
                        .await
                        .unwrap();
                }),
                Protocol::HttpProtobuf => tokio::spawn(async move {
                    let router = axum::Router::new()
                        .route(
                            "/v1/metrics",
                            post(async |State(peer): State<Arrived>, body: Bytes| {
                                peer.metrics(&ExportMetricsServiceRequest::decode(body).unwrap());
                            }),
                        )
                        .route(
                            "/v1/logs",
                            post(async |State(peer): State<Arrived>, body: Bytes| {
                                peer.logs(&ExportLogsServiceRequest::decode(body).unwrap());
                            }),
                        )
                        .with_state(peer);
                    axum::serve(listener, router).await.unwrap();
                }),
            };
            let telemetry = Telemetry::start(&options(protocol, endpoint)).unwrap();
            let subscriber = tracing_subscriber::registry().with(telemetry.layer());
            tracing::subscriber::with_default(subscriber, || {
                tracing::info!(target: "gpuacct::app", "goes out");
                tracing::debug!(target: "gpuacct::app", "too quiet");
                for target in ["a", "b"] {
                    tracing::warn!(target: "opentelemetry-otlp", target, "an export failed");
                    tracing::error!(target: "tonic::transport", target, "broken");
                    tracing::warn!(target: "gpuacct::outputs::otlp", target, "OTLP export failed");
                }
                tracing::warn!(target: "gpuacct::sources::gpu", "goes out as well");
            });
            tokio::task::spawn_blocking(move || telemetry.shutdown(Duration::from_secs(20)))
                .await
                .unwrap();
            // The SDK groups records by target: their order says nothing.
            let (mut metrics, mut logs) = arrived.0.lock().unwrap().clone();
            metrics.sort();
            logs.sort();
            assert_eq!(
                metrics,
                ["process.cpu.time", "process.memory.usage"],
                "{protocol:?}"
            );
            assert_eq!(logs, ["goes out", "goes out as well"], "{protocol:?}");
            server.abort();
        }
    }

    #[test]
    fn modules_are_told_from_names_that_begin_alike() {
        for own in ["h2", "h2::codec", "hyper_util::client", "opentelemetry_sdk"] {
            assert!(is_own_machinery(own), "{own}");
        }
        for other in ["h2o", "gpuacct::outputs", "hyperion", "towering"] {
            assert!(!is_own_machinery(other), "{other}");
        }
    }
}
