//! The end of an OTLP chain, in the test's own process: it takes what a collector sends on, and
//! keeps it to be looked at.
//!
//! What the agent sends is judged behind a collector written by others, which has parsed it and encoded
//! it again: the agent and this end share their protobuf code, so that alone they would agree on any
//! mistake in it. The agent sends to this end itself only where a test is about answers, which a
//! collector does not give on demand.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use opentelemetry_proto::tonic::collector::logs::v1::logs_service_server::{
    LogsService, LogsServiceServer,
};
use opentelemetry_proto::tonic::collector::logs::v1::{
    ExportLogsPartialSuccess, ExportLogsServiceRequest, ExportLogsServiceResponse,
};
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Metric, NumberDataPoint, ResourceMetrics, metric, number_data_point,
};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tonic::codec::CompressionEncoding;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

/// The largest message that is taken.
const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// What has arrived so far, in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Received {
    /// Metrics, one entry a message.
    pub metrics: Vec<ExportMetricsServiceRequest>,
    /// Logs, one entry a message.
    pub logs: Vec<ExportLogsServiceRequest>,
}

/// What a point is a point of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A sum.
    Sum {
        /// Whether it never falls.
        is_monotonic: bool,
        /// Cumulative or delta.
        temporality: AggregationTemporality,
    },
    /// A value that can rise and fall.
    Gauge,
}

/// A point of a sum or a gauge, with all that belongs to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// The instrument's name.
    pub name: String,
    /// Its unit.
    pub unit: String,
    /// What it is.
    pub kind: Kind,
    /// The scope's name: whose instrument it is.
    pub scope: String,
    /// Attributes of the resource.
    pub resource: BTreeMap<String, String>,
    /// Attributes of the point.
    pub attributes: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
    /// When its sum was 0, in nanoseconds since 1970.
    pub start_unix_nanos: u64,
    /// When it was taken, in nanoseconds since 1970.
    pub time_unix_nanos: u64,
}

impl Received {
    /// The points of all sums and gauges, by their times: two exports that are under way at once may
    /// arrive in either order. Histograms are in the messages.
    #[must_use]
    pub fn points(&self) -> Vec<Point> {
        let messages = self.metrics.iter();
        let resources = messages.flat_map(|message| &message.resource_metrics);
        let mut points: Vec<Point> = resources.flat_map(points_of_resource).collect();
        points.sort_by_key(|point| point.time_unix_nanos);
        points
    }

    /// The latest point of each series of an instrument, by its attributes.
    #[must_use]
    pub fn latest(&self, name: &str) -> BTreeMap<BTreeMap<String, String>, Point> {
        let points = self.points().into_iter().filter(|point| point.name == name);
        points
            .map(|point| (point.attributes.clone(), point))
            .collect()
    }
}

/// Takes OTLP over gRPC for as long as it lives.
#[derive(Debug)]
pub struct Sink {
    address: SocketAddr,
    shelf: Arc<Shelf>,
    runtime: Option<Runtime>,
}

/// What becomes of a message of logs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogsAnswer {
    /// It is kept and acknowledged.
    #[default]
    Take,
    /// It is kept, and so many of its records are said to be rejected (`partial_success`).
    Reject(i64),
    /// It is kept and acknowledged, and those after it are answered as by [`LogsAnswer::LoseAnswer`].
    TakeOne,
    /// It is kept, and no acknowledgement arrives: the sender is told that nobody is there.
    LoseAnswer,
    /// It is not kept. The sender is asked to come again.
    Unavailable,
    /// It is not kept, since the sender may not send.
    Deny,
}

#[derive(Debug, Default)]
struct Shelf {
    received: Mutex<Received>,
    arrived: Condvar,
    answer: Mutex<LogsAnswer>,
}

impl Sink {
    /// Starts taking, on a thread of its own.
    ///
    /// # Errors
    /// If there is no port or no thread to be had.
    pub fn start() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .context("no thread for an otlp sink")?;
        let shelf = Arc::new(Shelf::default());
        let listener = runtime
            .block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
            .context("no port for an otlp sink")?;
        let address = listener.local_addr()?;
        let metrics = MetricsServiceServer::from_arc(Arc::clone(&shelf))
            .accept_compressed(CompressionEncoding::Gzip)
            .max_decoding_message_size(MAX_MESSAGE_BYTES);
        let logs = LogsServiceServer::from_arc(Arc::clone(&shelf))
            .accept_compressed(CompressionEncoding::Gzip)
            .max_decoding_message_size(MAX_MESSAGE_BYTES);
        let server = Server::builder()
            .add_service(metrics)
            .add_service(logs)
            .serve_with_incoming(TcpIncoming::from(listener));
        runtime.spawn(async move {
            // Nothing waits for this. The missing data shows it, too.
            if let Err(error) = server.await {
                eprintln!("the otlp sink ended: {error}");
            }
        });
        Ok(Self {
            address,
            shelf,
            runtime: Some(runtime),
        })
    }

    /// Where it takes.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers messages of logs in this way from here on.
    pub fn answer_logs(&self, answer: LogsAnswer) {
        let now = self.shelf.answer.lock();
        *now.unwrap_or_else(PoisonError::into_inner) = answer;
    }

    /// What has arrived so far.
    #[must_use]
    pub fn received(&self) -> Received {
        self.shelf.lock().clone()
    }

    /// Looks at what has arrived, and again at each arrival, until that pleases; `None` if it does
    /// not within `bound`.
    pub fn wait_for(
        &self,
        bound: Duration,
        mut pleases: impl FnMut(&Received) -> bool,
    ) -> Option<Received> {
        let (received, result) = self
            .shelf
            .arrived
            .wait_timeout_while(self.shelf.lock(), bound, |received| !pleases(received))
            .unwrap_or_else(PoisonError::into_inner);
        (!result.timed_out()).then(|| received.clone())
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        // An ordinary drop of a runtime waits, which is forbidden to a test that is async itself.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Shelf {
    /// Messages are pushed whole, so that a test which panicked in between has spoilt nothing.
    fn lock(&self) -> MutexGuard<'_, Received> {
        self.received.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, put: impl FnOnce(&mut Received)) {
        put(&mut self.lock());
        self.arrived.notify_all();
    }
}

#[tonic::async_trait]
impl MetricsService for Shelf {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        self.take(|received| received.metrics.push(request.into_inner()));
        Ok(Response::new(Default::default()))
    }
}

#[tonic::async_trait]
impl LogsService for Shelf {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        let answer = {
            let mut next = self.answer.lock().unwrap_or_else(PoisonError::into_inner);
            let answer = *next;
            if answer == LogsAnswer::TakeOne {
                *next = LogsAnswer::LoseAnswer;
            }
            answer
        };
        let keep = || self.take(|received| received.logs.push(request.into_inner()));
        match answer {
            LogsAnswer::Take | LogsAnswer::TakeOne => {
                keep();
                Ok(Response::new(Default::default()))
            }
            LogsAnswer::Reject(records) => {
                keep();
                Ok(Response::new(ExportLogsServiceResponse {
                    partial_success: Some(ExportLogsPartialSuccess {
                        rejected_log_records: records,
                        error_message: "rejected by the test".to_owned(),
                    }),
                }))
            }
            LogsAnswer::LoseAnswer => {
                keep();
                Err(Status::unavailable("the answer is lost"))
            }
            LogsAnswer::Unavailable => Err(Status::unavailable("come again")),
            LogsAnswer::Deny => Err(Status::permission_denied("not you")),
        }
    }
}

fn points_of_resource(resource: &ResourceMetrics) -> impl Iterator<Item = Point> {
    let attributes = resource
        .resource
        .as_ref()
        .map(|resource| texts(&resource.attributes));
    let attributes = attributes.unwrap_or_default();
    resource.scope_metrics.iter().flat_map(move |scope| {
        let name = scope.scope.as_ref().map_or("", |scope| &scope.name);
        let metrics = scope.metrics.iter();
        let points = metrics.flat_map(|metric| points_of_metric(metric, name, &attributes));
        points.collect::<Vec<_>>()
    })
}

fn points_of_metric(
    metric: &Metric,
    scope: &str,
    resource: &BTreeMap<String, String>,
) -> Vec<Point> {
    let (kind, points) = match &metric.data {
        Some(metric::Data::Sum(sum)) => {
            let kind = Kind::Sum {
                is_monotonic: sum.is_monotonic,
                temporality: sum.aggregation_temporality(),
            };
            (kind, &sum.data_points)
        }
        Some(metric::Data::Gauge(gauge)) => (Kind::Gauge, &gauge.data_points),
        _ => return Vec::new(),
    };
    let points = points.iter().map(|point| Point {
        name: metric.name.clone(),
        unit: metric.unit.clone(),
        kind,
        scope: scope.to_owned(),
        resource: resource.clone(),
        attributes: texts(&point.attributes),
        value: number(point),
        start_unix_nanos: point.start_time_unix_nano,
        time_unix_nanos: point.time_unix_nano,
    });
    points.collect()
}

/// A point without a value says that there is none (`FLAG_NO_RECORDED_VALUE`): NaN, which equals
/// nothing.
fn number(point: &NumberDataPoint) -> f64 {
    match point.value {
        Some(number_data_point::Value::AsDouble(value)) => value,
        #[expect(
            clippy::cast_precision_loss,
            reason = "exact up to 2^53, and the messages have all digits"
        )]
        Some(number_data_point::Value::AsInt(value)) => value as f64,
        None => f64::NAN,
    }
}

fn texts(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let texts = attributes
        .iter()
        .map(|pair| (pair.key.clone(), text(pair.value.as_ref())));
    texts.collect()
}

fn text(value: Option<&AnyValue>) -> String {
    match value.and_then(|value| value.value.as_ref()) {
        Some(any_value::Value::StringValue(text)) => text.clone(),
        Some(any_value::Value::IntValue(number)) => number.to_string(),
        Some(any_value::Value::DoubleValue(number)) => number.to_string(),
        Some(any_value::Value::BoolValue(truth)) => truth.to_string(),
        other => format!("{other:?}"),
    }
}
