//! The exporter against receivers in this process that take records, refuse them, refuse some of them,
//! or lose their answers; over gRPC and over HTTP.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Mutex;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use opentelemetry_proto::tonic::collector::logs::v1::logs_service_server::{
    LogsService, LogsServiceServer,
};
use opentelemetry_proto::tonic::collector::logs::v1::{
    ExportLogsPartialSuccess, ExportLogsServiceRequest, ExportLogsServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use tokio::net::TcpListener;

use super::*;
use crate::core::amounts::{Amounts, ByteSeconds, Engines, Millijoules};
use crate::core::model::{BootTime, Clock, NONE, Nanos, SourceState, UNRESOLVED, WallTime};
use crate::outputs::receiver::Protocol;
use crate::outputs::sample::golden;
use crate::usage_record::{AccountHour, GpuHour, RecordContent, RecordedGpu, Subject};

const PROTOCOLS: [Protocol; 2] = [Protocol::Grpc, Protocol::HttpProtobuf];

/// What a receiver does with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    Accept,
    /// Takes it and refuses so many records.
    Reject(i64),
    /// Is not there for the moment.
    Unavailable,
    /// Will never like it.
    Invalid,
    /// Wants another token.
    Denied,
    /// Takes it, and its answer is lost on the way.
    LoseAnswer,
}

type Script = Box<dyn Fn(&[String]) -> Act + Send + Sync>;

/// A receiver that does what its script says of the ids of a message.
struct Peer {
    script: Script,
    arrived: Mutex<Vec<Vec<String>>>,
}

impl Peer {
    fn act(&self, request: &ExportLogsServiceRequest) -> Act {
        let records = request.resource_logs.iter();
        let records = records.flat_map(|resource| &resource.scope_logs);
        let records = records.flat_map(|scope| &scope.log_records);
        let ids: Vec<String> = records
            .map(|record| {
                let texts: BTreeMap<_, _> = record.attributes.iter().map(shown).collect();
                format!(
                    "{}@{}",
                    texts["gpuacct.record.id"], texts["gpuacct.record.revision"]
                )
            })
            .collect();
        let act = (self.script)(&ids);
        self.arrived
            .lock()
            .expect("no test panics in here")
            .push(ids);
        act
    }

    /// The ids of each message so far.
    fn arrived(&self) -> Vec<Vec<String>> {
        self.arrived.lock().expect("no test panics in here").clone()
    }
}

fn shown(attribute: &KeyValue) -> (String, String) {
    fn text(value: &AnyValue) -> String {
        match value.value.as_ref().expect("a value") {
            any_value::Value::StringValue(text) => text.clone(),
            any_value::Value::IntValue(number) => format!("{number}"),
            any_value::Value::ArrayValue(list) => {
                let values: Vec<_> = list.values.iter().map(text).collect();
                format!("[{}]", values.join(" "))
            }
            other => panic!("{other:?}"),
        }
    }
    let value = attribute.value.as_ref().expect("a value");
    (attribute.key.clone(), text(value))
}

#[tonic::async_trait]
impl LogsService for Peer {
    async fn export(
        &self,
        request: tonic::Request<ExportLogsServiceRequest>,
    ) -> Result<tonic::Response<ExportLogsServiceResponse>, tonic::Status> {
        match self.act(&request.into_inner()) {
            Act::Accept => Ok(tonic::Response::new(ExportLogsServiceResponse::default())),
            Act::Reject(records) => Ok(tonic::Response::new(partial(records))),
            Act::Unavailable | Act::LoseAnswer => Err(tonic::Status::unavailable("not now")),
            Act::Invalid => Err(tonic::Status::invalid_argument("no")),
            Act::Denied => Err(tonic::Status::permission_denied("who are you")),
        }
    }
}

fn partial(records: i64) -> ExportLogsServiceResponse {
    ExportLogsServiceResponse {
        partial_success: Some(ExportLogsPartialSuccess {
            rejected_log_records: records,
            error_message: "too old".to_owned(),
        }),
    }
}

async fn over_http(State(peer): State<Arc<Peer>>, body: Bytes) -> Response {
    let request = ExportLogsServiceRequest::decode(body).expect("it is OTLP");
    match peer.act(&request) {
        Act::Accept => ExportLogsServiceResponse::default()
            .encode_to_vec()
            .into_response(),
        Act::Reject(records) => partial(records).encode_to_vec().into_response(),
        Act::Unavailable | Act::LoseAnswer => StatusCode::SERVICE_UNAVAILABLE.into_response(),
        Act::Invalid => StatusCode::BAD_REQUEST.into_response(),
        Act::Denied => StatusCode::UNAUTHORIZED.into_response(),
    }
}

async fn listen(protocol: Protocol, peer: Arc<Peer>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("it is bound");
    match protocol {
        Protocol::Grpc => {
            let service = LogsServiceServer::from_arc(peer).max_decoding_message_size(4 << 20);
            let server = tonic::transport::Server::builder().add_service(service);
            let incoming = tonic::transport::server::TcpIncoming::from(listener);
            tokio::spawn(server.serve_with_incoming(incoming));
        }
        Protocol::HttpProtobuf => {
            let routes = axum::Router::new()
                .route("/v1/logs", axum::routing::post(over_http))
                .layer(axum::extract::DefaultBodyLimit::max(4 << 20))
                .with_state(peer);
            tokio::spawn(async move { axum::serve(listener, routes).await });
        }
    }
    address
}

/// An outbox in memory: what is in it is due.
#[derive(Default)]
struct Pile {
    due: Mutex<BTreeMap<RecordKey, UsageRecord>>,
    is_broken: bool,
}

impl Pile {
    fn of(records: impl IntoIterator<Item = UsageRecord>) -> Self {
        let due = records.into_iter().map(|record| (record.key, record));
        Self {
            due: Mutex::new(due.collect()),
            is_broken: false,
        }
    }

    fn ids(&self) -> Vec<String> {
        let due = self.due.lock().expect("no test panics in here");
        due.values().map(id).collect()
    }
}

fn id(record: &UsageRecord) -> String {
    format!("{}@{}", record.id, record.key.revision)
}

impl Outbox for Pile {
    async fn offer(&self, most: usize) -> Result<Vec<UsageRecord>, OutboxError> {
        if self.is_broken {
            return Err(OutboxError {
                reason: "the disk is full".to_owned(),
            });
        }
        let due = self.due.lock().expect("no test panics in here");
        Ok(due.values().take(most).cloned().collect())
    }

    async fn settle(&self, keys: Vec<RecordKey>) -> Result<(), OutboxError> {
        let mut due = self.due.lock().expect("no test panics in here");
        for key in keys {
            assert!(
                due.remove(&key).is_some(),
                "{key:?} was offered and not settled"
            );
        }
        Ok(())
    }
}

fn record(number: i64) -> UsageRecord {
    UsageRecord {
        key: RecordKey {
            subject: Subject::Gpu(number),
            hour: 497_222,
            revision: 1,
        },
        id: format!("ledger/GPU-{number}/497222"),
        gpu: RecordedGpu {
            uuid: format!("GPU-{number}").into(),
            model: "H200".into(),
            profile: None,
            parent: None,
        },
        content: RecordContent::Gpu(GpuHour::default()),
    }
}

struct Bench {
    exporter: RecordsExporter,
    peer: Arc<Peer>,
    counters: Arc<OutputCounters>,
    told: mpsc::Receiver<SourceHealth>,
}

impl Bench {
    async fn new(
        protocol: Protocol,
        script: impl Fn(&[String]) -> Act + Send + Sync + 'static,
    ) -> Self {
        let peer = Arc::new(Peer {
            script: Box::new(script),
            arrived: Mutex::default(),
        });
        let address = listen(protocol, Arc::clone(&peer)).await;
        let receiver = Receiver::new(format!("http://{address}"), protocol);
        let mut options = RecordsOptions::new(receiver, Origin::default());
        options.interval = Duration::from_millis(1);
        options.backoff = Duration::from_millis(1);
        options.backoff_max = Duration::from_millis(10);
        let counters = Arc::new(OutputCounters::default());
        let clock: ReadClock = Arc::new(|| Clock {
            boot: BootTime(1),
            wall: WallTime(2),
        });
        let (health, told) = mpsc::channel(16);
        Self {
            exporter: RecordsExporter::new(options, Arc::clone(&counters), clock, health)
                .expect("the endpoint is one"),
            peer,
            counters,
            told,
        }
    }

    /// Delivered, rejected and failed records.
    fn counted(&self) -> [u64; 3] {
        let counters = &self.counters;
        [
            counters.records_delivered.get(),
            counters.records_rejected.get(),
            counters.records_failed.get(),
        ]
    }
}

#[tokio::test]
async fn all_that_is_due_is_sent_in_batches_and_settled() {
    for protocol in PROTOCOLS {
        let mut bench = Bench::new(protocol, |_| Act::Accept).await;
        let pile = Pile::of((0..250).map(record));
        bench.exporter.send_due(&pile).await.expect("it is taken");
        assert_eq!(pile.ids(), Vec::<String>::new());
        let sizes: Vec<_> = bench.peer.arrived().iter().map(Vec::len).collect();
        assert_eq!(sizes, [100, 100, 50]);
        assert_eq!(bench.counted(), [250, 0, 0]);
    }
}

#[tokio::test]
async fn records_that_a_receiver_rejects_are_counted_and_not_sent_forever() {
    for protocol in PROTOCOLS {
        let mut bench = Bench::new(protocol, |_| Act::Reject(3)).await;
        let pile = Pile::of((0..10).map(record));
        bench.exporter.send_due(&pile).await.expect("it is taken");
        bench
            .exporter
            .send_due(&pile)
            .await
            .expect("nothing is due");
        assert_eq!(bench.peer.arrived().len(), 1);
        assert_eq!(bench.counted(), [7, 3, 0]);
    }
}

#[tokio::test]
async fn a_receiver_that_is_away_or_refuses_the_sender_settles_nothing() {
    for protocol in PROTOCOLS {
        for (act, retry) in [
            (Act::Unavailable, Retry::Backoff),
            (Act::Denied, Retry::Never),
        ] {
            let mut bench = Bench::new(protocol, move |_| act).await;
            let pile = Pile::of((0..10).map(record));
            for times in 1..=2 {
                let failure = bench.exporter.send_due(&pile).await.expect_err("refused");
                assert_eq!(failure.retry, retry, "{protocol:?} {act:?}");
                assert!(!failure.is_of_content);
                assert_eq!(pile.ids().len(), 10);
                assert_eq!(bench.counted(), [0, 0, times * 10]);
            }
            let arrived = bench.peer.arrived();
            assert_eq!(arrived[0], arrived[1], "the same revisions");
        }
    }
}

#[tokio::test]
async fn a_record_whose_answer_is_lost_arrives_twice_as_the_same_revision() {
    for protocol in PROTOCOLS {
        let lost = Mutex::new(false);
        let mut bench = Bench::new(protocol, move |_| {
            let mut lost = lost.lock().expect("no test panics in here");
            match std::mem::replace(&mut *lost, true) {
                false => Act::LoseAnswer,
                true => Act::Accept,
            }
        })
        .await;
        let pile = Pile::of((0..10).map(record));
        bench.exporter.send_due(&pile).await.expect_err("no answer");
        bench.exporter.send_due(&pile).await.expect("an answer");
        let arrived = bench.peer.arrived();
        assert_eq!((arrived.len(), &arrived[0]), (2, &arrived[1]));
        assert_eq!(pile.ids(), Vec::<String>::new());
    }
}

#[tokio::test]
async fn one_invalid_record_does_not_keep_the_others_back() {
    for protocol in PROTOCOLS {
        for invalid in [vec![0], vec![99], vec![17, 18, 70]] {
            let refused: Vec<_> = invalid.iter().map(|number| id(&record(*number))).collect();
            let mut bench = Bench::new(protocol, move |ids| {
                match ids.iter().any(|id| refused.contains(id)) {
                    true => Act::Invalid,
                    false => Act::Accept,
                }
            })
            .await;
            let pile = Pile::of((0..100).map(record));
            bench
                .exporter
                .send_due(&pile)
                .await
                .expect("some are taken");
            assert_eq!(pile.ids(), Vec::<String>::new());
            let rejected = invalid.len() as u64;
            assert_eq!(bench.counted(), [100 - rejected, rejected, 0]);
            let messages = bench.peer.arrived().len();
            assert!(messages <= 1 + 14 * invalid.len(), "{messages} messages");
        }
    }
}

#[tokio::test]
async fn a_proxy_that_refuses_everything_as_invalid_has_judged_no_record() {
    for protocol in PROTOCOLS {
        let mut bench = Bench::new(protocol, |_| Act::Invalid).await;
        let pile = Pile::of((0..10).map(record));
        let failure = bench.exporter.send_due(&pile).await.expect_err("refused");
        assert!(failure.is_of_content);
        assert_eq!(pile.ids().len(), 10);
        assert_eq!(bench.counted(), [0, 0, 10]);
    }
}

#[tokio::test]
async fn a_message_that_would_be_too_large_is_divided() {
    for protocol in PROTOCOLS {
        let mut bench = Bench::new(protocol, |_| Act::Accept).await;
        let pile = Pile::of((0..40).map(|number| UsageRecord {
            id: format!("{number}{}", "x".repeat(200_000)),
            ..record(number)
        }));
        bench.exporter.send_due(&pile).await.expect("all are taken");
        assert_eq!(bench.counted(), [40, 0, 0]);
        assert!(bench.peer.arrived().len() > 1);
    }
}

#[tokio::test]
async fn a_ledger_that_does_not_answer_is_the_reason() {
    let mut bench = Bench::new(Protocol::Grpc, |_| Act::Accept).await;
    let pile = Pile {
        is_broken: true,
        ..Pile::default()
    };
    let failure = bench.exporter.send_due(&pile).await.expect_err("broken");
    assert_eq!(failure.class, "store");
    assert!(failure.reason.contains("the disk is full"), "{failure:?}");
}

#[tokio::test]
async fn what_is_due_is_sent_once_a_receiver_is_there_again_and_its_state_says_so() {
    let acts = Mutex::new(vec![Act::Accept, Act::Unavailable, Act::Unavailable]);
    let Bench {
        exporter,
        peer,
        mut told,
        ..
    } = Bench::new(Protocol::Grpc, move |_| {
        let mut acts = acts.lock().expect("no test panics in here");
        acts.pop().unwrap_or(Act::Accept)
    })
    .await;
    let shutdown = async {
        let mut states = Vec::new();
        while states.last() != Some(&"up") {
            let health = told.recv().await.expect("the exporter lives");
            assert_eq!(health.source, SourceId::Records);
            states.push(match health.state {
                SourceState::Up => "up",
                _ => "down",
            });
        }
        assert_eq!(states[0], "down");
    };
    exporter.run(Pile::of([record(1)]), shutdown).await;
    assert_eq!(peer.arrived().len(), 3);
}

fn text(text: &str) -> Arc<str> {
    text.into()
}

/// What is sent of an account that the host, a container of Docker's or a pod's container has.
fn account(kind: &str, names: [&str; 5]) -> UsageRecord {
    let [namespace, pod, container, pod_uid, container_id] = names.map(text);
    UsageRecord {
        key: RecordKey {
            subject: Subject::Account(4_294_967_297),
            hour: 497_222,
            revision: 2,
        },
        id: "ledger/1790000000000000000/MIG-1/4294967297/497222".to_owned(),
        gpu: RecordedGpu {
            uuid: text("MIG-1"),
            model: text("NVIDIA H200"),
            profile: Some(text("1g.18gb")),
            parent: Some(text("GPU-1")),
        },
        content: RecordContent::Account(Box::new(AccountHour {
            kind: kind.into(),
            owner: text("ssh.service"),
            namespace,
            pod,
            container,
            pod_uid,
            container_id,
            image: match kind {
                "host" => text(NONE),
                _ => text("registry:5000/team/train:1.2"),
            },
            runtime: match kind {
                "host" => text(NONE),
                _ => text("containerd"),
            },
            attribution: match kind {
                "host" => text("host"),
                _ => text("named"),
            },
            labels: text(r#"{"team":"vision","secret":"x"}"#),
            amounts: Amounts {
                busy: Nanos(1_234_567_890_123),
                engines: Engines {
                    encoder: Nanos(5),
                    ..Engines::default()
                },
                held: Nanos(3_600_000_000_000),
                allocated: Nanos(3_600_000_000_000),
                allocated_share: Nanos(1_800_000_000_000),
                memory: ByteSeconds(1 << 70),
                energy: Millijoules(987_654_321),
            },
        })),
    }
}

#[test]
fn records_say_whose_they_are_by_the_conventions_and_amounts_exactly() {
    let gpu = UsageRecord {
        content: RecordContent::Gpu(GpuHour {
            elapsed: Nanos(3_600_000_000_000),
            busy: Nanos(1_234_567_890_130),
            idle: Nanos(2_365_432_109_868),
            energy: Millijoules(9),
            energy_idle: Millijoules(2),
            energy_unattributed: Millijoules(1),
            unattributed: vec![(text("unknown_pid"), Nanos(7))],
            unobserved: vec![
                (text("agent_down"), Nanos(1)),
                (text("driver_error"), Nanos(1)),
            ],
        }),
        ..record(1)
    };
    let records = [
        account("container", ["team", "train-0", "main", "uid-1", "abc"]),
        account("container", [NONE, NONE, "builder", NONE, "abc"]),
        account(
            "container",
            [UNRESOLVED, UNRESOLVED, UNRESOLVED, UNRESOLVED, "abc"],
        ),
        account("host", [NONE; 5]),
        gpu,
    ];
    let origin = Origin {
        host_name: "gpu-7".to_owned(),
        node_name: Some("gpu-7".to_owned()),
        ..Origin::default()
    };
    let labels = ["team".to_owned(), "absent".to_owned()];
    let message = message::of(
        &records,
        &origin,
        &labels,
        WallTime(1_790_003_660_000_000_000),
    );
    let [resource] = message.resource_logs.as_slice() else {
        panic!("one resource");
    };
    let mut lines = String::new();
    let of_it = &resource.resource.as_ref().expect("it has one").attributes;
    for (key, value) in of_it.iter().map(shown) {
        writeln!(lines, "resource {key}={value}").expect("a text takes everything");
    }
    for record in &resource.scope_logs[0].log_records {
        writeln!(
            lines,
            "\n{} at {} seen {} {}",
            record.event_name,
            record.time_unix_nano,
            record.observed_time_unix_nano,
            record.severity_text
        )
        .expect("a text takes everything");
        for (key, value) in record.attributes.iter().map(shown) {
            writeln!(lines, "  {key}={value}").expect("a text takes everything");
        }
    }
    assert!(
        !lines.contains("secret"),
        "a label that is not configured stays"
    );
    golden("records.txt", &lines);
}
