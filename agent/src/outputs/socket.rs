//! The local socket that `gpuacct status` asks: HTTP/1 with JSON over a Unix socket that only the
//! agent's own user may open, and a group if the configuration names one.
//!
//! `GET /v1/status` answers with a [`StatusReport`] made from what was published last, without asking
//! anybody. `GET /v1/processes` and `GET /v1/explain?subject=…` ask the core, bounded in number and
//! time: a stuck core costs the caller two seconds and the core nothing.
//!
//! `GET /v1/log` has the last lines of the agent's log, `GET /v1/config` the configuration in force
//! without its secrets. `GET /v1/live` and `GET /v1/ready` are the probes, answered with 200 or 503.
//!
//! It refuses to take orders that touch the books. Two things can be changed through it. `POST
//! /v1/log-level` changes what is logged, with the level as the body. `POST /v1/release` has the agent
//! let go of the GPUs for so many seconds as the body says, `POST /v1/take-up` ends that.

mod binding;
mod occupant;
#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Query as Parameters, Request, State};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};

pub use self::binding::{BoundSocket, SocketError, bind, bind_after, has_listener};
pub use self::occupant::Occupant;
use super::ReadClock;
use super::condition::STUCK_AFTER;
use super::connection_slots::{Bounds, ConnectionSlots};
use super::connections::{ClientUser, Server, Straight};
use super::counters::OutputCounters;
use super::log::{Log, LogReport};
use super::probe::Probe;
pub use super::status_report::{BlockedFor, STATUS_FORMAT, StatusReport};
use crate::core::explanation::Explanation;
use crate::core::model::{BootTime, Nanos};
use crate::core::snapshot::GpuProcessView;
use crate::errors::chain;
use crate::gpu_release::{ALLOWED, ReleaseOrder, ReleaseReport, Wanted};
use crate::published::Published;

/// Where the socket is unless the configuration says otherwise.
pub const DEFAULT_PATH: &str = "/run/gpuacct/gpuacct.sock";
/// The longest subject that is looked for: a namespace, a pod and a container.
const MAX_SUBJECT_BYTES: usize = 1_024;
/// How long the core may take to answer a query.
const QUERY_TIMEOUT: Duration = Duration::from_secs(2);

/// How long closing NVML may take before the caller is told that it takes longer. The threads have two
/// seconds to end their calls.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(4);
/// How long a question about an unknown subject waits for a commit.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(4);
/// How much later than the question that commit has to be. The kernel's events are read twice a second
/// and shortly before each commit, so it knows of all that happened before the question.
const COMMIT_LATER: Nanos = Nanos::from_millis(500);

/// What the socket asks of the core.
#[derive(Debug)]
pub enum Query {
    /// The processes that use a GPU now.
    Processes(oneshot::Sender<Vec<GpuProcessView>>),
    /// All that is known of one subject; nothing if there is no such.
    Explain {
        /// What the question is about, as the user wrote it.
        subject: String,
        /// Where the answer goes.
        answer: oneshot::Sender<Option<Box<Explanation>>>,
    },
}

/// The answer to `GET /v1/config`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigReport {
    /// The file that it was read from; absent where the agent was given none.
    pub file: Option<PathBuf>,
    /// The configuration in force, flags and environment included, without its secrets. Read back,
    /// it is one that can be used.
    pub toml: String,
}

/// Why an answer could not be given, as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Reason in words.
    pub error: String,
}

/// State that the handlers of the local socket use.
#[derive(Clone)]
pub struct SocketState {
    /// What was published last.
    pub published: watch::Receiver<Arc<Published>>,
    /// Where the core takes queries.
    pub queries: mpsc::Sender<Query>,
    /// Where the source of GPU time takes requests to let go of the GPUs.
    pub releases: mpsc::Sender<ReleaseOrder>,
    /// What the outputs count.
    pub counters: Arc<OutputCounters>,
    /// The agent's log.
    pub log: Arc<Log>,
    /// The configuration in force, without its secrets.
    pub config: watch::Receiver<Arc<ConfigReport>>,
    /// The time now.
    pub clock: ReadClock,
}

impl std::fmt::Debug for SocketState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SocketState").finish_non_exhaustive()
    }
}

/// What is answered, and by whom.
pub fn router(state: SocketState) -> Router {
    let probe = Probe::new(
        state.published.clone(),
        Arc::clone(&state.clock),
        STUCK_AFTER,
    );
    let probes = Router::new()
        .route("/v1/live", get(live))
        .route("/v1/ready", get(ready))
        .with_state((probe, Arc::clone(&state.counters)));
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/processes", get(processes))
        .route("/v1/explain", get(explain))
        .route("/v1/log", get(log))
        .route("/v1/config", get(config))
        .route("/v1/log-level", post(log_level))
        .with_state(state.clone())
        .merge(orders(state))
        .merge(probes)
}

/// What stops the accounting for a while. Members of `socket.group` may ask, and not order.
fn orders(state: SocketState) -> Router {
    Router::new()
        .route("/v1/release", post(release))
        .route("/v1/take-up", post(take_up))
        .layer(from_fn(only_own_user))
        .with_state(state)
}

/// Lets a request of root or of the agent's own user through.
async fn only_own_user(request: Request, next: Next) -> Response {
    let user = request.extensions().get::<ClientUser>();
    let user = user.and_then(|ClientUser(user)| *user);
    let own = rustix::process::geteuid().as_raw();
    match user {
        Some(user) if user == 0 || user == own => next.run(request).await,
        user => {
            let user = user.map_or("an unknown user".to_owned(), |user| format!("user {user}"));
            let error = format!("{user} may ask the agent, and not have it let go of the GPUs");
            refuse(StatusCode::FORBIDDEN, error)
        }
    }
}

/// Answers until `shutdown` is done, then removes the socket.
///
/// # Errors
/// Never by way of a client; only if the listener itself cannot go on.
pub async fn serve(
    mut bound: BoundSocket,
    state: SocketState,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let Some(listener) = bound.listener.take() else {
        return Ok(());
    };
    let server = Server {
        listener,
        entry: Straight,
        // It is on this node, and the agent's own user or a member of the group.
        address: |_| None,
        user: |stream| stream.peer_cred().ok().map(|peer| peer.uid()),
        places: ConnectionSlots::new(Bounds::default()),
        counters: Arc::clone(&state.counters),
        of: |counters| &counters.socket_connections,
    };
    server.serve(router(state), shutdown).await;
    Ok(())
}

/// What the probes are answered from, and where they are counted.
type Probed = (Probe, Arc<OutputCounters>);

async fn live(State((probe, counters)): State<Probed>) -> Response {
    counters.socket_requests.add(1);
    answer_probe(probe.live())
}

async fn ready(State((probe, counters)): State<Probed>) -> Response {
    counters.socket_requests.add(1);
    answer_probe(probe.ready())
}

fn answer_probe(answer: Result<String, String>) -> Response {
    match answer {
        Ok(text) => text.into_response(),
        Err(text) => refuse(StatusCode::SERVICE_UNAVAILABLE, text.trim_end().to_owned()),
    }
}

async fn status(State(state): State<SocketState>) -> Json<StatusReport> {
    state.counters.socket_requests.add(1);
    let published = Arc::clone(&state.published.borrow());
    Json(StatusReport::new(&published, (state.clock)()))
}

async fn processes(State(state): State<SocketState>) -> Response {
    match ask(&state, Query::Processes).await {
        Ok(processes) => Json(processes).into_response(),
        Err(refusal) => refusal,
    }
}

/// What `GET /v1/explain` is asked for.
#[derive(Debug, Deserialize)]
struct Subject {
    subject: String,
}

async fn explain(
    State(state): State<SocketState>,
    Parameters(Subject { subject }): Parameters<Subject>,
) -> Response {
    let found = subject.len();
    if !(1..=MAX_SUBJECT_BYTES).contains(&found) {
        state.counters.socket_requests.add(1);
        let error = format!("the subject has {found} bytes, expected 1 to {MAX_SUBJECT_BYTES}");
        return refuse(StatusCode::BAD_REQUEST, error);
    }
    let asked = (state.clock)().boot;
    let unknown = format!("no process, container, pod or unit matches {subject:?}");
    let mut found = ask_to_explain(&state, &subject).await;
    let mut is_certain = true;
    if matches!(found, Ok(None)) {
        // A process that has just begun, or begun and ended, is in events that are not read yet.
        is_certain = has_committed_after(&state, asked).await;
        found = ask_to_explain(&state, &subject).await;
    }
    match found {
        Ok(Some(explanation)) => Json(explanation).into_response(),
        Ok(None) if is_certain => refuse(StatusCode::NOT_FOUND, unknown),
        Ok(None) => {
            let error = format!(
                "{unknown}; the newest events of the kernel are not read yet, so ask again for a \
                 process that has just begun or ended"
            );
            refuse(StatusCode::NOT_FOUND, error)
        }
        Err(refusal) => refusal,
    }
}

async fn ask_to_explain(
    state: &SocketState,
    subject: &str,
) -> Result<Option<Box<Explanation>>, Response> {
    let subject = subject.to_owned();
    ask(state, |answer| Query::Explain { subject, answer }).await
}

/// Waits for a commit that knows of everything until `asked`; returns whether there was one.
async fn has_committed_after(state: &SocketState, asked: BootTime) -> bool {
    let mut published = state.published.clone();
    let later = published.wait_for(|published| published.books.at.since(asked) >= COMMIT_LATER);
    matches!(tokio::time::timeout(COMMIT_TIMEOUT, later).await, Ok(Ok(_)))
}

async fn log(State(state): State<SocketState>) -> Json<LogReport> {
    state.counters.socket_requests.add(1);
    Json(state.log.report())
}

async fn config(State(state): State<SocketState>) -> Json<ConfigReport> {
    state.counters.socket_requests.add(1);
    let report = Arc::clone(&state.config.borrow());
    Json(ConfigReport::clone(&report))
}

async fn log_level(State(state): State<SocketState>, level: String) -> Response {
    state.counters.socket_requests.add(1);
    match state.log.set_level(&level) {
        Ok(change) => Json(change).into_response(),
        Err(error) => refuse(StatusCode::BAD_REQUEST, chain(&error)),
    }
}

async fn release(State(state): State<SocketState>, seconds: String) -> Response {
    let time = seconds.trim().parse().ok().map(Duration::from_secs);
    match time.filter(|time| ALLOWED.contains(time)) {
        Some(time) => order_release(&state, Wanted::Release(time)).await,
        None => {
            state.counters.socket_requests.add(1);
            let (least, most) = (ALLOWED.start().as_secs(), ALLOWED.end().as_secs());
            let error = format!("found {seconds:?}, expected {least} to {most} seconds");
            refuse(StatusCode::BAD_REQUEST, error)
        }
    }
}

async fn take_up(State(state): State<SocketState>) -> Response {
    order_release(&state, Wanted::TakeUp).await
}

/// Passes on an order about the GPUs, and says why if it is not carried out.
async fn order_release(state: &SocketState, wanted: Wanted) -> Response {
    state.counters.socket_requests.add(1);
    let (answer, answered) = oneshot::channel();
    let order = async {
        let order = ReleaseOrder { wanted, answer };
        state.releases.send(order).await.ok()?;
        answered.await.ok()
    };
    match tokio::time::timeout(RELEASE_TIMEOUT, order).await {
        Ok(Some(report)) => Json::<ReleaseReport>(report).into_response(),
        Ok(None) => {
            let error = "another request has replaced this one, or the agent is stopping";
            refuse(StatusCode::CONFLICT, error.to_owned())
        }
        Err(_) => {
            let error = format!(
                "NVML has not been closed for {} s: a call into it may be stuck. It is closed once \
                 that call returns",
                RELEASE_TIMEOUT.as_secs()
            );
            refuse(StatusCode::SERVICE_UNAVAILABLE, error)
        }
    }
}

/// Asks the core, and says why if it does not answer.
async fn ask<T>(
    state: &SocketState,
    query: impl FnOnce(oneshot::Sender<T>) -> Query,
) -> Result<T, Response> {
    state.counters.socket_requests.add(1);
    let (sender, answer) = oneshot::channel();
    let ask = async {
        state.queries.send(query(sender)).await.ok()?;
        answer.await.ok()
    };
    let error = match tokio::time::timeout(QUERY_TIMEOUT, ask).await {
        Ok(Some(answer)) => return Ok(answer),
        Ok(None) => "the core has stopped".to_owned(),
        Err(_) => format!(
            "the core has not answered for {} s",
            QUERY_TIMEOUT.as_secs()
        ),
    };
    Err(refuse(StatusCode::SERVICE_UNAVAILABLE, error))
}

fn refuse(status: StatusCode, error: String) -> Response {
    (status, Json(Refusal { error })).into_response()
}
