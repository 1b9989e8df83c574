//! The exporter against receivers in this process that fail, refuse, hang, and then accept.

use std::collections::{BTreeSet, VecDeque};
use std::io::Read as _;
use std::net::SocketAddr;
use std::sync::Mutex;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use flate2::read::GzDecoder;
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsPartialSuccess, ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, NumberDataPoint, metric, number_data_point,
};
use prost::Message as _;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::oneshot;
use tonic::codec::CompressionEncoding;
use tonic_types::{ErrorDetails, StatusExt as _};

use super::*;
use crate::core::model::{Clock, SourceState, WallTime};
use crate::outputs::receiver::Protocol;
use crate::outputs::sample::{self, NOW};

mod tls;

/// Nothing here takes as long; it turns a wait for what never comes into a failure.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a receiver does with one message.
#[derive(Clone, Copy, Debug)]
enum Act {
    /// Takes it.
    Accept,
    /// Takes it and refuses some points.
    Reject(i64),
    /// Is not there for the moment, and may say for how many milliseconds (gRPC) or seconds (HTTP).
    Unavailable(Option<u64>),
    /// Is overloaded and may say for how many milliseconds (gRPC) or seconds (HTTP).
    Overloaded(Option<u64>),
    /// Will never like it.
    Invalid,
    /// Wants another token.
    Denied,
    /// Has a defect that ends in an answer.
    Defect,
    /// Is behind a gateway that gave up on it.
    GaveUp,
    /// Does not answer.
    Hang,
    /// Says yes, and then nonsense.
    Babble,
}

/// A message that arrived: the sum of its counters of commits, its points, a header.
#[derive(Debug, PartialEq)]
struct Arrived {
    commits: i64,
    points: usize,
    /// The counters in it, by name and attributes.
    counters: Vec<String>,
    temporality: AggregationTemporality,
    token: Option<String>,
    is_compressed: bool,
}

struct Peer {
    /// What to do with the messages to come; accept when there is nothing left.
    script: Mutex<VecDeque<Act>>,
    arrived: mpsc::UnboundedSender<Arrived>,
}

impl Peer {
    fn next(
        &self,
        request: &ExportMetricsServiceRequest,
        token: Option<String>,
        is_compressed: bool,
    ) -> Act {
        let mut arrived = Arrived {
            commits: -1,
            points: 0,
            counters: Vec::new(),
            temporality: AggregationTemporality::Unspecified,
            token,
            is_compressed,
        };
        for resource in &request.resource_metrics {
            let of_it = &resource.resource.as_ref().unwrap().attributes;
            for metric in &resource.scope_metrics[0].metrics {
                let points = match metric.data.as_ref().unwrap() {
                    metric::Data::Sum(sum) if !sum.is_monotonic => &sum.data_points,
                    metric::Data::Sum(sum) => {
                        arrived.temporality = sum.aggregation_temporality();
                        let name = |point: &NumberDataPoint| {
                            format!("{} {:?} {of_it:?}", metric.name, point.attributes)
                        };
                        arrived.counters.extend(sum.data_points.iter().map(name));
                        &sum.data_points
                    }
                    metric::Data::Gauge(gauge) => &gauge.data_points,
                    other => panic!("{other:?}"),
                };
                arrived.points += points.len();
                if metric.name == "gpuacct.commits" {
                    let Some(number_data_point::Value::AsInt(commits)) = points[0].value else {
                        panic!("{points:?}");
                    };
                    arrived.commits = commits;
                }
            }
        }
        self.arrived.send(arrived).unwrap();
        self.script
            .lock()
            .unwrap()
            .pop_front()
            .unwrap_or(Act::Accept)
    }
}

fn partial(rejected: i64) -> ExportMetricsServiceResponse {
    ExportMetricsServiceResponse {
        partial_success: Some(ExportMetricsPartialSuccess {
            rejected_data_points: rejected,
            error_message: "too\nold".to_owned(),
        }),
    }
}

/// The receiver behind gRPC.
struct Service(Arc<Peer>);

#[tonic::async_trait]
impl MetricsService for Service {
    async fn export(
        &self,
        request: tonic::Request<ExportMetricsServiceRequest>,
    ) -> Result<tonic::Response<ExportMetricsServiceResponse>, tonic::Status> {
        let token = request
            .metadata()
            .get("x-token")
            .map(|value| value.to_str().unwrap().to_owned());
        let is_compressed = request.metadata().get("grpc-encoding").is_some();
        match self.0.next(request.get_ref(), token, is_compressed) {
            Act::Accept | Act::Babble => {
                Ok(tonic::Response::new(ExportMetricsServiceResponse::default()))
            }
            Act::Reject(points) => Ok(tonic::Response::new(partial(points))),
            Act::Unavailable(None) => Err(tonic::Status::unavailable("down for a while")),
            Act::Unavailable(Some(millis)) => Err(tonic::Status::with_error_details(
                tonic::Code::Unavailable,
                "back soon",
                ErrorDetails::with_retry_info(Some(Duration::from_millis(millis))),
            )),
            Act::Overloaded(None) => Err(tonic::Status::resource_exhausted("full")),
            Act::Overloaded(Some(millis)) => Err(tonic::Status::with_error_details(
                tonic::Code::ResourceExhausted,
                "busy",
                ErrorDetails::with_retry_info(Some(Duration::from_millis(millis))),
            )),
            Act::Invalid => Err(tonic::Status::invalid_argument("no")),
            Act::Denied => Err(tonic::Status::unauthenticated("who are you")),
            Act::Defect => Err(tonic::Status::internal("a defect")),
            Act::GaveUp => Err(tonic::Status::deadline_exceeded("too late")),
            Act::Hang => std::future::pending().await,
        }
    }
}

async fn http_export(
    State(receiver): State<Arc<Peer>>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    assert_eq!(headers["content-type"], "application/x-protobuf");
    let token = headers
        .get("x-token")
        .map(|value| value.to_str().unwrap().to_owned());
    let is_compressed = headers.get("content-encoding").is_some();
    let mut plain = Vec::new();
    if is_compressed {
        GzDecoder::new(&body[..]).read_to_end(&mut plain).unwrap();
    } else {
        plain.extend(body);
    }
    let request = ExportMetricsServiceRequest::decode(&plain[..]).unwrap();
    match receiver.next(&request, token, is_compressed) {
        Act::Accept => ExportMetricsServiceResponse::default()
            .encode_to_vec()
            .into_response(),
        Act::Reject(points) => partial(points).encode_to_vec().into_response(),
        Act::Unavailable(None) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
        Act::Unavailable(Some(seconds)) => (
            StatusCode::SERVICE_UNAVAILABLE,
            [("retry-after", seconds.to_string())],
        )
            .into_response(),
        Act::Overloaded(None) => StatusCode::TOO_MANY_REQUESTS.into_response(),
        Act::Overloaded(Some(seconds)) => (
            StatusCode::TOO_MANY_REQUESTS,
            [("retry-after", seconds.to_string())],
        )
            .into_response(),
        // A google.rpc.Status: field 1 is the code, field 2 the message.
        Act::Invalid => (StatusCode::BAD_REQUEST, b"\x08\x03\x12\x02no".to_vec()).into_response(),
        Act::Denied => StatusCode::UNAUTHORIZED.into_response(),
        Act::Defect => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        Act::GaveUp => StatusCode::GATEWAY_TIMEOUT.into_response(),
        Act::Hang => std::future::pending().await,
        Act::Babble => "yes, gladly".into_response(),
    }
}

/// A receiver, an exporter that runs against it, and everything that the two say.
struct Bench {
    arrived: mpsc::UnboundedReceiver<Arrived>,
    health: mpsc::Receiver<SourceHealth>,
    counters: Arc<OutputCounters>,
    published: watch::Sender<Arc<Published>>,
    stop: Option<oneshot::Sender<()>>,
    exporter: tokio::task::JoinHandle<()>,
    receiver: tokio::task::JoinHandle<()>,
}

const BOTH: [Protocol; 2] = [Protocol::Grpc, Protocol::HttpProtobuf];

/// Both protocols in both layouts.
const WAYS: [(Protocol, Layout); 4] = [
    (Protocol::Grpc, Layout::Point),
    (Protocol::Grpc, Layout::Resource),
    (Protocol::HttpProtobuf, Layout::Point),
    (Protocol::HttpProtobuf, Layout::Resource),
];

fn quick(protocol: Protocol, endpoint: String) -> Options {
    let origin = Origin {
        host_name: "node".to_owned(),
        ..Origin::default()
    };
    let receiver = Receiver {
        headers: vec![("x-token".to_owned(), "secret".to_owned())],
        timeout: Duration::from_secs(20),
        ..Receiver::new(endpoint, protocol)
    };
    Options {
        interval: Duration::from_millis(2),
        first_within: Duration::ZERO,
        backoff: Duration::from_millis(1),
        backoff_max: Duration::from_millis(4),
        flush_deadline: Duration::from_secs(20),
        ..Options::new(receiver, origin)
    }
}

async fn listen() -> (TcpListener, String) {
    let address = SocketAddr::from(([127, 0, 0, 1], 0));
    let listener = TcpListener::bind(address).await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    (listener, endpoint)
}

/// A port that is taken and where nobody listens.
fn unheard() -> (TcpSocket, String) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let endpoint = format!("http://{}", socket.local_addr().unwrap());
    (socket, endpoint)
}

async fn bench(protocol: Protocol, script: &[Act], change: impl FnOnce(&mut Options)) -> Bench {
    let (listener, endpoint) = listen().await;
    let (sender, arrived) = mpsc::unbounded_channel();
    let receiver = Arc::new(Peer {
        script: Mutex::new(script.iter().copied().collect()),
        arrived: sender,
    });
    let receiver = match protocol {
        Protocol::Grpc => tokio::spawn(async move {
            tonic::transport::Server::builder()
                .add_service(
                    MetricsServiceServer::new(Service(receiver))
                        .accept_compressed(CompressionEncoding::Gzip),
                )
                .serve_with_incoming(tonic::transport::server::TcpIncoming::from(listener))
                .await
                .unwrap();
        }),
        Protocol::HttpProtobuf => tokio::spawn(async move {
            let router = axum::Router::new()
                .route("/v1/metrics", axum::routing::post(http_export))
                .with_state(receiver);
            axum::serve(listener, router).await.unwrap();
        }),
    };
    let mut options = quick(protocol, endpoint);
    change(&mut options);
    let (published, follow) = watch::channel(Arc::new(commit(1)));
    let (health_sender, health) = mpsc::channel(64);
    let (stop, stopped) = oneshot::channel();
    let counters = Arc::new(OutputCounters::default());
    let exporter = Exporter::new(
        options,
        follow,
        Arc::clone(&counters),
        clock(),
        health_sender,
    )
    .unwrap();
    let exporter = tokio::spawn(exporter.run(async move {
        stopped.await.unwrap();
    }));
    Bench {
        arrived,
        health,
        counters,
        published,
        stop: Some(stop),
        exporter,
        receiver,
    }
}

fn clock() -> ReadClock {
    Arc::new(|| Clock {
        boot: NOW,
        wall: WallTime::default(),
    })
}

fn commit(number: u64) -> Published {
    let mut published = sample::published();
    published.books.sequence = number;
    published.books.agent.commits = number;
    published
}

impl Bench {
    async fn arrival(&mut self) -> Arrived {
        self.arrived.recv().await.expect("the receiver lives")
    }

    async fn state(&mut self) -> SourceState {
        let health = self.health.recv().await.expect("the exporter lives");
        assert_eq!(health.source, SourceId::Otlp);
        assert_eq!(health.since, NOW);
        health.state
    }

    /// The class and words of the next state, which must be down.
    async fn down(&mut self) -> (String, String) {
        match self.state().await {
            SourceState::Down {
                class,
                reason,
                next_retry,
            } => {
                assert!(next_retry.is_some(), "it is always tried again");
                (class.to_string(), reason.to_string())
            }
            other => panic!("found {other:?}, expected down"),
        }
    }

    async fn stop(mut self) -> Arc<OutputCounters> {
        self.stop.take().unwrap().send(()).unwrap();
        self.exporter.await.unwrap();
        self.receiver.abort();
        self.counters
    }
}

#[tokio::test]
async fn what_fails_is_sent_again_newer_until_it_arrives() {
    for protocol in BOTH {
        let script = [
            Act::Unavailable(None),
            Act::Unavailable(None),
            Act::Overloaded(Some(0)),
            Act::Accept,
        ];
        let mut bench = bench(protocol, &script, |_| {}).await;
        let first = bench.arrival().await;
        assert_eq!(first.commits, 1);
        assert_eq!(first.token.as_deref(), Some("secret"));
        assert_eq!(bench.down().await.0, "unavailable");
        bench.published.send_replace(Arc::new(commit(2)));
        assert_eq!(bench.down().await.0, "unavailable");
        assert_eq!(bench.down().await.0, "overloaded");
        assert_eq!(bench.state().await, SourceState::Up);
        // The first, two or three that failed, the one that was taken.
        let mut last = bench.arrival().await;
        for _ in 0..2 {
            last = bench.arrival().await;
        }
        assert_eq!(last.commits, 2, "a retry carries the newest commit");
        let counters = bench.stop().await;
        assert_eq!(counters.otlp_requests_failed.get(), 3);
        assert_eq!(
            counters.otlp_points_failed.get(),
            3 * first.points as u64,
            "{protocol:?}"
        );
        assert!(counters.otlp_requests_delivered.get() >= 1);
        assert_eq!(counters.otlp_points_rejected.get(), 0);
    }
}

#[tokio::test]
async fn a_receiver_that_is_not_there_yet_is_found_when_it_comes() {
    for protocol in BOTH {
        let (_unheard, endpoint) = unheard();
        let mut bench = bench(protocol, &[], |options| {
            options.receiver.endpoint = endpoint
        })
        .await;
        let (class, reason) = bench.down().await;
        assert_eq!(class, "unavailable", "{protocol:?}: {reason}");
        assert!(
            reason.to_lowercase().contains("connection refused"),
            "{protocol:?}: {reason}"
        );
        bench.stop().await;
    }
}

#[tokio::test]
async fn a_receiver_that_hangs_is_given_up_on() {
    for protocol in BOTH {
        let mut bench = bench(protocol, &[Act::Hang], |options| {
            options.receiver.timeout = Duration::from_millis(200);
        })
        .await;
        let (class, reason) = bench.down().await;
        assert_eq!(
            (class.as_str(), reason.as_str()),
            ("timeout", "no answer within 200ms")
        );
        loop {
            // A machine that is busy may let another one run out.
            if bench.state().await == SourceState::Up {
                break;
            }
        }
        assert!(bench.stop().await.otlp_requests_failed.get() >= 1);
    }
}

#[tokio::test]
async fn refused_points_are_counted_and_not_sent_again() {
    for protocol in BOTH {
        let script = [Act::Reject(3), Act::Reject(-5), Act::Reject(i64::MAX)];
        let mut bench = bench(protocol, &script, |_| {}).await;
        let points = bench.arrival().await.points as u64;
        assert_eq!(bench.state().await, SourceState::Up);
        for _ in 0..3 {
            bench.arrival().await;
        }
        let counters = bench.stop().await;
        assert_eq!(
            counters.otlp_points_rejected.get(),
            3 + points,
            "{protocol:?}: three, then nonsense that counts as none, then all"
        );
        assert_eq!(counters.otlp_requests_failed.get(), 0);
    }
}

#[tokio::test]
async fn a_verdict_that_is_final_waits_for_the_next_interval() {
    for (act, class) in [
        (Act::Invalid, "protocol"),
        (Act::Denied, "permission"),
        (Act::Overloaded(None), "overloaded"),
    ] {
        for protocol in BOTH {
            let mut bench = bench(protocol, &[act], |options| {
                options.interval = Duration::from_millis(20);
            })
            .await;
            let (found, reason) = bench.down().await;
            assert_eq!(found, class, "{protocol:?}: {reason}");
            if matches!(act, Act::Invalid) {
                assert!(reason.ends_with("no"), "{protocol:?}: {reason}");
            }
            assert_eq!(bench.state().await, SourceState::Up);
            bench.stop().await;
        }
    }
}

#[tokio::test]
async fn a_yes_with_nonsense_behind_it_is_a_yes() {
    let mut bench = bench(Protocol::HttpProtobuf, &[Act::Babble], |_| {}).await;
    assert_eq!(bench.state().await, SourceState::Up);
    assert_eq!(bench.stop().await.otlp_requests_failed.get(), 0);
}

#[tokio::test]
async fn one_message_that_is_refused_does_not_keep_the_others_back() {
    for protocol in BOTH {
        let mut bench = bench(protocol, &[Act::Accept, Act::Invalid], |options| {
            options.max_points = 20;
            options.interval = Duration::from_secs(3_600);
        })
        .await;
        let mut points = 0;
        let mut messages: u64 = 0;
        let whole = build(
            &View::new(&commit(1), &OutputCounters::default(), &OptIn::default()),
            &quick(protocol, String::new()).origin,
            Shape::default(),
            usize::MAX,
            Counters::Totals(&mut Starts::new(None, Arc::default())),
        )[0]
        .points;
        while points < whole {
            points += bench.arrival().await.points as u64;
            messages += 1;
        }
        assert_eq!(messages, whole.div_ceil(20));
        assert_eq!(bench.down().await.0, "protocol");
        bench.receiver.abort();
        assert_eq!(bench.counters.otlp_points_failed.get(), 20);
        assert_eq!(bench.counters.otlp_points_delivered.get(), whole - 20);
        bench.exporter.abort();
    }
}

#[tokio::test]
async fn the_last_commit_goes_out_when_the_agent_stops() {
    for protocol in BOTH {
        let mut bench = bench(protocol, &[], |_| {}).await;
        bench.arrival().await;
        bench.published.send_replace(Arc::new(commit(77)));
        bench.stop.take().unwrap().send(()).unwrap();
        bench.exporter.await.unwrap();
        bench.receiver.abort();
        let mut last = 0;
        while let Ok(arrived) = bench.arrived.try_recv() {
            last = arrived.commits;
        }
        assert_eq!(last, 77);
    }
}

#[tokio::test]
async fn a_dead_receiver_does_not_hold_the_end() {
    for temporality in [Temporality::Cumulative, Temporality::Delta(None)] {
        let mut bench = bench(Protocol::Grpc, &[Act::Hang, Act::Hang], |options| {
            options.receiver.timeout = Duration::from_secs(3_600);
            options.flush_deadline = Duration::from_millis(50);
            options.temporality = temporality;
        })
        .await;
        bench.arrival().await;
        // It ends, or the test does not.
        bench.stop().await;
    }
}

#[tokio::test]
async fn nothing_goes_out_before_the_first_commit() {
    for protocol in BOTH {
        let (listener, endpoint) = listen().await;
        let (published, follow) = watch::channel(Arc::new(Published::default()));
        let (health, _told) = mpsc::channel(1);
        let exporter = Exporter::new(
            quick(protocol, endpoint),
            follow,
            Arc::default(),
            clock(),
            health,
        )
        .unwrap();
        // No further commit will come: it is done, and has not even connected.
        drop(published);
        exporter.run(std::future::pending()).await;
        let accept = tokio::time::timeout(Duration::ZERO, listener.accept()).await;
        assert!(accept.is_err(), "{protocol:?} connected");
    }
}

fn deltas(options: &mut Options) {
    options.temporality = Temporality::Delta(None);
}

/// What the messages add up to that are there, and those that come until it is `expected`.
async fn commits_added_up(bench: &mut Bench, expected: i64) -> i64 {
    let mut sum = 0;
    let all = async {
        while sum < expected {
            let arrived = bench.arrival().await;
            // The agent's own counters grow with each push; a message without any has no temporality.
            assert_eq!(arrived.temporality, AggregationTemporality::Delta);
            sum += arrived.commits.max(0);
        }
    };
    let all = tokio::time::timeout(PATIENCE, all).await;
    assert!(all.is_ok(), "{sum} of {expected} commits arrived");
    sum
}

#[tokio::test]
async fn a_growth_is_told_again_only_where_the_receiver_has_refused_it_or_asks_for_it() {
    // What the receiver does with the first message, which tells of one commit; whether that may
    // have arrived.
    let rows = [
        (Act::Accept, true),
        (Act::Reject(3), true),
        (Act::Hang, true),
        (Act::Defect, true),
        (Act::GaveUp, true),
        (Act::Unavailable(None), true),
        (Act::Unavailable(Some(0)), false),
        (Act::Overloaded(None), true),
        (Act::Overloaded(Some(0)), false),
        (Act::Invalid, false),
        (Act::Denied, false),
    ];
    for (protocol, layout) in WAYS {
        for (act, arrived) in rows {
            let mut bench = bench(protocol, &[act], |options| {
                deltas(options);
                options.shape.layout = layout;
                // A machine that is busy may let an answer wait for longer than this.
                if matches!(act, Act::Hang) {
                    options.receiver.timeout = Duration::from_secs(3);
                }
            })
            .await;
            assert_eq!(bench.arrival().await.commits, 1);
            bench.published.send_replace(Arc::new(commit(5)));
            let expected = if arrived { 4 } else { 5 };
            let sum = commits_added_up(&mut bench, expected).await;
            assert_eq!(sum, expected, "{protocol:?} {act:?}");
            bench.stop.take().unwrap().send(()).unwrap();
            bench.exporter.await.unwrap();
            bench.receiver.abort();
            while let Ok(late) = bench.arrived.try_recv() {
                assert!(late.commits <= 0, "{protocol:?} {act:?}: {late:?}");
            }
            let unknown = bench.counters.otlp_points_unknown.get();
            let is_unknown = arrived && !matches!(act, Act::Accept | Act::Reject(_));
            assert_eq!(unknown > 0, is_unknown, "{protocol:?} {act:?}");
        }
    }
}

#[tokio::test]
async fn what_grew_while_nobody_was_there_is_told_to_who_comes() {
    for protocol in BOTH {
        let (_unheard, endpoint) = unheard();
        let mut bench = bench(protocol, &[], |options| {
            deltas(options);
            options.receiver.endpoint = endpoint;
        })
        .await;
        assert_eq!(bench.down().await.0, "unavailable", "{protocol:?}");
        assert_eq!(bench.counters.otlp_points_unknown.get(), 0);
        let failed = bench.counters.otlp_points_failed.get();
        assert!(failed > 0, "{protocol:?}");
        bench.stop().await;
    }
}

#[tokio::test]
async fn a_message_that_fails_does_not_tell_the_others_again() {
    for (protocol, layout) in WAYS {
        for act in [Act::Unavailable(Some(0)), Act::Invalid] {
            let script = [Act::Accept, act];
            let mut bench = bench(protocol, &script, |options| {
                deltas(options);
                options.shape.layout = layout;
                options.max_points = 20;
            })
            .await;
            let (published, counters) = (commit(1), OutputCounters::default());
            let opt_in = OptIn::default();
            let view = View::new(&published, &counters, &opt_in);
            let origin = &quick(protocol, String::new()).origin;
            let mut told = sent_totals::SentTotals::new("", view.snapshot.agent_started);
            let whole = build(
                &view,
                origin,
                Shape::default(),
                usize::MAX,
                Counters::Growths(&mut told),
            );
            let whole = whole[0].growths.len();
            let mut taken = BTreeSet::new();
            let mut messages = 0;
            while taken.len() < whole {
                let arrived = bench.arrival().await;
                messages += 1;
                if messages == 2 {
                    continue;
                }
                for counter in arrived.counters {
                    // What the exporter counts of itself grows with each message.
                    let is_own = counter.starts_with("gpuacct.otlp");
                    let is_new = taken.insert(counter.clone());
                    assert!(is_new || is_own, "{protocol:?} {act:?}: {counter} twice");
                }
            }
            bench.stop().await;
        }
    }
}

#[tokio::test]
async fn the_next_agent_goes_on_where_the_last_one_was_killed() {
    // What the receiver does with the message before the kill, which tells of one commit; whether
    // that may have arrived.
    let rows = [
        (Act::Accept, true),
        (Act::Hang, true),
        (Act::Unavailable(None), true),
        // Long enough in either unit.
        (Act::Unavailable(Some(3_600_000)), false),
    ];
    for (act, arrived) in rows {
        for (protocol, layout) in WAYS {
            let dir = tempfile::tempdir().unwrap();
            let place = SentTotalsLocation::new(dir.path(), &dir.path().join("agent.sock"), "boot");
            let kept = |options: &mut Options| {
                options.temporality = Temporality::Delta(Some(place.clone()));
                options.shape.layout = layout;
                // Refused once, it is not tried again before the kill.
                options.backoff = Duration::from_secs(3_600);
                options.backoff_max = options.backoff;
            };
            let mut killed = bench(protocol, &[act], kept).await;
            assert_eq!(killed.arrival().await.commits, 1);
            match act {
                Act::Hang => {}
                Act::Unavailable(_) => drop(killed.down().await),
                _ => assert_eq!(killed.state().await, SourceState::Up),
            }
            killed.exporter.abort();
            assert!(killed.exporter.await.unwrap_err().is_cancelled());
            killed.receiver.abort();

            let mut next = bench(protocol, &[], kept).await;
            next.published.send_replace(Arc::new(commit(9)));
            let expected = if arrived { 8 } else { 9 };
            let sum = commits_added_up(&mut next, expected).await;
            assert_eq!(sum, expected, "{protocol:?} {act:?}");
            next.stop().await;
        }
    }
}

#[tokio::test]
async fn what_cannot_be_kept_is_sent_and_not_gone_on_from() {
    let dir = tempfile::tempdir().unwrap();
    let place = SentTotalsLocation::new(dir.path(), &dir.path().join("agent.sock"), "boot");
    let kept = |options: &mut Options| {
        options.temporality = Temporality::Delta(Some(place.clone()));
    };
    // A directory is in the way of the file.
    std::fs::create_dir(place.file().with_extension("json~")).unwrap();
    let mut unkept = bench(Protocol::Grpc, &[], kept).await;
    assert_eq!(unkept.arrival().await.commits, 1, "it is sent");
    let (_, reason) = unkept.down().await;
    assert!(reason.starts_with("deltas are sent, but "), "{reason}");
    let counters = unkept.stop().await;
    assert!(counters.otlp_deltas_unkept.get() > 0);

    // The same life of the same series, and an agent that began after them.
    let mut published = commit(9);
    published.books.agent_started = published.books.wall;
    let mut next = bench(Protocol::Grpc, &[], kept).await;
    next.published.send_replace(Arc::new(published));
    let arrived = next.arrival().await;
    let mut counters = arrived.counters.iter();
    let books = counters.any(|it| it.starts_with("gpuacct.gpu.busy"));
    assert!(!books, "they begin with the totals of now: {arrived:?}");
    next.stop().await;
}

/// Its words are all that tells a gateway's answer of HTTP from the receiver's own.
#[tokio::test]
async fn a_gateway_over_grpc_does_not_say_whether_a_message_arrived() {
    let (listener, endpoint) = listen().await;
    let gateway = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut connection = h2::server::handshake(stream).await.unwrap();
        while let Some(request) = connection.accept().await {
            let (_, mut respond) = request.unwrap();
            let mut answer = axum::http::Response::new(());
            *answer.status_mut() = StatusCode::BAD_GATEWAY;
            respond.send_response(answer, true).unwrap();
        }
    });
    let receiver = Receiver::new(endpoint, Protocol::Grpc);
    let mut transport = Transport::<Metrics>::new(&receiver).unwrap();
    let sent = transport.send(ExportMetricsServiceRequest::default()).await;
    let failure = sent.unwrap_err();
    assert_eq!(failure.class, "unavailable", "{failure:?}");
    assert_eq!(failure.arrival, Arrival::Unknown, "{failure:?}");
    gateway.abort();
}
