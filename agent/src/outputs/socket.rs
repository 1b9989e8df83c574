//! The local socket that `gpuacct status` asks: HTTP/1 with JSON over a Unix socket that only the
//! agent's own user may open.
//!
//! `GET /v1/status` answers with a [`StatusReport`] made from what was published last, without asking
//! anybody. `GET /v1/processes` and `GET /v1/explain?subject=…` ask the core, bounded in number and
//! time: a stuck core costs the caller two seconds and the core nothing.
//!
//! `GET /v1/log` has the last lines of the agent's log, `GET /v1/config` the configuration in force
//! without its secrets. `GET /v1/live` and `GET /v1/ready` are the probes, answered with 200 or 503.
//!
//! It refuses to take orders that touch the books. The one thing that can be changed through it is
//! what is logged: `POST /v1/log-level`, with the level as the body.

mod occupant;

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Query as Parameters, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use serde::{Deserialize, Serialize};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot, watch};

pub use self::occupant::Occupant;
use super::ReadClock;
use super::condition::STUCK_AFTER;
use super::connection_slots::{Bounds, ConnectionSlots};
use super::connections::{Server, Straight};
use super::counters::OutputCounters;
use super::log::{Log, LogReport};
use super::probe::Probe;
pub use super::status_report::{BlockedFor, StatusReport};
use crate::core::explanation::Explanation;
use crate::core::model::{BootTime, Nanos};
use crate::core::snapshot::GpuProcessView;
use crate::errors::chain;
use crate::published::Published;

/// Where the socket is unless the configuration says otherwise.
pub const DEFAULT_PATH: &str = "/run/gpuacct/gpuacct.sock";
/// The kernel's bound on a socket's path (`sun_path`), less the closing zero.
const MAX_PATH_BYTES: usize = 107;
/// The longest subject that is looked for: a namespace, a pod and a container.
const MAX_SUBJECT_BYTES: usize = 1_024;
/// How often a socket is tried again on which another agent answers.
const TRY_AGAIN: Duration = Duration::from_millis(500);
/// How long the core may take to answer a query.
const QUERY_TIMEOUT: Duration = Duration::from_secs(2);

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

/// Why the socket could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The path does not fit into a socket address.
    #[error("the socket path {path} is too long: {found} bytes, at most {allowed}", path = .path.display(), allowed = MAX_PATH_BYTES - 1)]
    PathTooLong {
        /// The path.
        path: PathBuf,
        /// Its length.
        found: usize,
    },
    /// Something else is there, and it is not for the agent to remove.
    #[error("{path} exists and is not a socket", path = .path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// A program listens there.
    #[error("{path} is in use: {by}", path = .path.display())]
    InUse {
        /// The path.
        path: PathBuf,
        /// Who listens.
        by: Occupant,
    },
    /// The file system, or the kernel, refused.
    #[error("cannot {act} {path}", path = .path.display())]
    Io {
        /// Verb phrase of the failed action, for the message.
        act: &'static str,
        /// File or directory of the action.
        path: PathBuf,
        /// I/O error of the action.
        source: io::Error,
    },
}

/// The socket, listening. Its file is removed when this is dropped, if it is still the same one.
#[derive(Debug)]
pub struct BoundSocket {
    listener: Option<UnixListener>,
    path: PathBuf,
    inode: (u64, u64),
}

/// Makes the socket at `path`, its directory if need be, and removes one that a dead agent left.
///
/// The socket is created under another name and renamed once it has its mode, so that no other user
/// can ever open it.
///
/// # Errors
/// If a program listens there, if something else is there, or if the system refuses.
pub fn bind(path: &Path) -> Result<BoundSocket, SocketError> {
    let failed = |act, path: &Path| {
        let path = path.to_owned();
        move |source| SocketError::Io { act, path, source }
    };
    let mut beside = path.as_os_str().to_owned();
    beside.push("~");
    if beside.len() > MAX_PATH_BYTES {
        return Err(SocketError::PathTooLong {
            path: path.to_owned(),
            found: path.as_os_str().len(),
        });
    }
    let beside = PathBuf::from(beside);
    if let Some(directory) = path.parent().filter(|parent| *parent != Path::new("")) {
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(directory)
            .map_err(failed("make the directory", directory))?;
    }
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("look at", path)(error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(SocketError::NotASocket {
                path: path.to_owned(),
            });
        }
        Ok(_) => {
            if has_listener(path).map_err(failed("find out who is behind", path))? {
                return Err(SocketError::InUse {
                    path: path.to_owned(),
                    by: Occupant::Unknown,
                });
            }
            // Nothing listens: the move below replaces it.
        }
    }
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("remove", &beside)(error));
        }
        _ => {}
    }
    let listener = UnixListener::bind(&beside).map_err(failed("listen on", &beside))?;
    fs::set_permissions(&beside, Permissions::from_mode(0o600))
        .map_err(failed("set the mode of", &beside))?;
    let inode = inode(&beside).map_err(failed("look at", &beside))?;
    fs::rename(&beside, path).map_err(failed("move into place", path))?;
    Ok(BoundSocket {
        listener: Some(listener),
        path: path.to_owned(),
        inode,
    })
}

/// As [`bind`], and waits for another agent that answers there to end, for `patience` at most: one that
/// is being replaced takes its time. Two that are meant to run on one socket never end, and neither
/// does another program.
///
/// # Errors
/// As [`bind`]. If another program answers there, at once.
pub async fn bind_after(path: &Path, patience: Duration) -> Result<BoundSocket, SocketError> {
    let deadline = tokio::time::Instant::now() + patience;
    let mut known = Occupant::Unknown;
    loop {
        let path = match bind(path) {
            Err(SocketError::InUse { path, .. }) => path,
            result => return result,
        };
        if known == Occupant::Unknown {
            known = Occupant::ask(&path).await;
            let path = path.display();
            match &known {
                Occupant::Other { .. } => {}
                Occupant::Agent => {
                    tracing::warn!(%path, ?patience, "another agent answers on the socket; waiting until it stops");
                }
                Occupant::Silent | Occupant::Unknown => {
                    tracing::warn!(%path, ?patience, "a program listens on the socket and does not answer; waiting until it stops");
                }
            }
        }
        let is_agent = !matches!(known, Occupant::Other { .. });
        if !is_agent || tokio::time::Instant::now() >= deadline {
            return Err(SocketError::InUse { path, by: known });
        }
        tokio::time::sleep(TRY_AGAIN).await;
    }
}

/// Whether a program listens on a socket.
///
/// It never waits. A program that accepts nothing lets connections wait in its backlog; where that is
/// full, `connect` would wait for as long as the program likes.
///
/// # Errors
/// If that cannot be found out, for lack of permission for example.
pub fn has_listener(path: &Path) -> io::Result<bool> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match connect(&socket, &SocketAddrUnix::new(path)?) {
        Ok(()) | Err(Errno::AGAIN) => Ok(true),
        // Nobody listens; or the file is gone, since an agent has just ended.
        Err(Errno::CONNREFUSED | Errno::NOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn inode(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()))
}

impl Drop for BoundSocket {
    fn drop(&mut self) {
        if inode(&self.path).is_ok_and(|found| found == self.inode)
            && let Err(error) = fs::remove_file(&self.path)
        {
            // The next agent finds that nothing answers there and replaces it.
            tracing::debug!(path = %self.path.display(), %error, "cannot remove the socket file");
        }
    }
}

/// State that the handlers of the local socket use.
#[derive(Clone)]
pub struct SocketState {
    /// What was published last.
    pub published: watch::Receiver<Arc<Published>>,
    /// Where the core takes queries.
    pub queries: mpsc::Sender<Query>,
    /// What the outputs count.
    pub counters: Arc<OutputCounters>,
    /// The agent's log.
    pub log: Arc<Log>,
    /// The configuration in force, without its secrets.
    pub config: Arc<ConfigReport>,
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
        .with_state(state)
        .merge(probes)
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
        // Only the agent's own user can be there.
        address: |_| None,
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
    Json(ConfigReport::clone(&state.config))
}

async fn log_level(State(state): State<SocketState>, level: String) -> Response {
    state.counters.socket_requests.add(1);
    match state.log.set_level(&level) {
        Ok(change) => Json(change).into_response(),
        Err(error) => refuse(StatusCode::BAD_REQUEST, chain(&error)),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::model::{Clock, WallTime};
    use crate::outputs::sample::{self, NOW};

    fn state() -> (SocketState, mpsc::Receiver<Query>) {
        let (queries, asked) = mpsc::channel(1);
        let (_, published) = watch::channel(Arc::new(sample::published()));
        let state = SocketState {
            published,
            queries,
            counters: Arc::default(),
            log: Arc::default(),
            config: Arc::default(),
            clock: Arc::new(|| Clock {
                boot: NOW,
                wall: WallTime(5),
            }),
        };
        (state, asked)
    }

    async fn body(response: impl IntoResponse) -> (StatusCode, Vec<u8>) {
        use http_body_util::BodyExt as _;
        let response = response.into_response();
        let status = response.status();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (status, bytes.to_vec())
    }

    #[tokio::test]
    async fn the_status_is_what_was_published_last() {
        let (state, _asked) = state();
        let (code, json) = body(status(State(state)).await).await;
        assert_eq!(code, StatusCode::OK);
        let report: StatusReport = serde_json::from_slice(&json).unwrap();
        let now = Clock {
            boot: NOW,
            wall: WallTime(5),
        };
        assert_eq!(report, StatusReport::new(&sample::published(), now));
    }

    #[tokio::test]
    async fn a_probe_that_fails_says_why() {
        let (code, json) = body(answer_probe(Err("stuck\n".into()))).await;
        assert_eq!(code, StatusCode::SERVICE_UNAVAILABLE);
        let refusal: Refusal = serde_json::from_slice(&json).unwrap();
        assert_eq!(refusal.error, "stuck");
        let (code, text) = body(answer_probe(Ok("ok\n".into()))).await;
        assert_eq!((code, &*text), (StatusCode::OK, &b"ok\n"[..]));
    }

    #[tokio::test]
    async fn processes_are_asked_of_the_core() {
        let (state, mut asked) = state();
        let core = tokio::spawn(async move {
            let Some(Query::Processes(answer)) = asked.recv().await else {
                panic!("nobody asked");
            };
            answer.send(sample::processes()).unwrap();
        });
        let (code, json) = body(processes(State(state)).await).await;
        assert_eq!(code, StatusCode::OK);
        let found: Vec<GpuProcessView> = serde_json::from_slice(&json).unwrap();
        assert_eq!(found, sample::processes());
        core.await.unwrap();
    }

    #[tokio::test]
    async fn a_subject_is_explained_unknown_or_no_subject() {
        let (state, mut asked) = state();
        let core = tokio::spawn(async move {
            while let Some(Query::Explain { subject, answer }) = asked.recv().await {
                let known = subject == "4711";
                let story = known.then(|| {
                    Box::new(Explanation {
                        subject: subject.into(),
                        at: NOW,
                        wall: WallTime(5),
                        events_through: None,
                        processes: vec![],
                        processes_left_out: 0,
                        owners: vec![],
                        owners_left_out: 0,
                    })
                });
                answer.send(story).unwrap();
            }
        });
        let longest = "x".repeat(MAX_SUBJECT_BYTES);
        let too_long = "x".repeat(MAX_SUBJECT_BYTES + 1);
        for (subject, expected) in [
            ("4711", StatusCode::OK),
            ("4712", StatusCode::NOT_FOUND),
            (longest.as_str(), StatusCode::NOT_FOUND),
            (too_long.as_str(), StatusCode::BAD_REQUEST),
            ("", StatusCode::BAD_REQUEST),
        ] {
            let parameters = Parameters(Subject {
                subject: subject.to_owned(),
            });
            let (code, json) = body(explain(State(state.clone()), parameters).await).await;
            assert_eq!(code, expected, "{subject}");
            if code == StatusCode::OK {
                let told: Explanation = serde_json::from_slice(&json).unwrap();
                assert_eq!(&*told.subject, subject);
            } else {
                let refusal: Refusal = serde_json::from_slice(&json).unwrap();
                assert!(!refusal.error.is_empty());
            }
        }
        drop(state);
        core.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_whose_events_are_not_read_yet_was_said_not_to_exist() {
        let (mut state, mut asked) = state();
        let (committed, published) = watch::channel(Arc::new(sample::published()));
        state.published = published;
        let mut later = sample::published();
        later.books.at = NOW.plus(COMMIT_LATER);
        let questions = tokio::spawn(async move {
            let mut questions = 0;
            while let Some(Query::Explain { answer, .. }) = asked.recv().await {
                questions += 1;
                answer.send(None).unwrap();
                if questions == 1 {
                    committed.send_replace(Arc::new(later.clone()));
                }
            }
            questions
        });
        let parameters = || {
            Parameters(Subject {
                subject: "4711".to_owned(),
            })
        };
        let (code, json) = body(explain(State(state.clone()), parameters()).await).await;
        let refusal: Refusal = serde_json::from_slice(&json).unwrap();
        assert_eq!(code, StatusCode::NOT_FOUND);
        assert!(!refusal.error.contains("ask again"), "{refusal:?}");

        // No commit comes any more: that nothing is known yet is said.
        state.clock = Arc::new(|| Clock {
            boot: NOW.plus(Nanos::from_secs(60)),
            wall: WallTime(5),
        });
        let (code, json) = body(explain(State(state.clone()), parameters()).await).await;
        let refusal: Refusal = serde_json::from_slice(&json).unwrap();
        assert_eq!(code, StatusCode::NOT_FOUND);
        assert!(refusal.error.contains("ask again"), "{refusal:?}");
        drop(state);
        assert_eq!(questions.await.unwrap(), 4, "each is asked twice");
    }

    #[tokio::test(start_paused = true)]
    async fn a_core_that_is_stuck_or_gone_costs_two_seconds_at_most() {
        let (state, asked) = state();
        // The first query fills the channel, the second finds it full: both come back.
        for expected in ["the core has not answered for 2 s"; 2] {
            let (code, json) = body(processes(State(state.clone())).await).await;
            assert_eq!(code, StatusCode::SERVICE_UNAVAILABLE);
            let refusal: Refusal = serde_json::from_slice(&json).unwrap();
            assert_eq!(refusal.error, expected);
        }
        drop(asked);
        let (_, json) = body(processes(State(state)).await).await;
        let refusal: Refusal = serde_json::from_slice(&json).unwrap();
        assert_eq!(refusal.error, "the core has stopped");
    }

    #[tokio::test]
    async fn the_socket_is_private_and_goes_with_the_agent() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/gpuacct/a.sock");
        let bound = bind(&path).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o600);
        // The process's umask may only take away from what was asked for.
        assert_eq!(mode(path.parent().unwrap()) & !0o755, 0);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        drop(bound);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_dead_agents_socket_is_replaced_and_a_live_ones_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        // A listener that is closed leaves its file behind.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let bound = bind(&path).unwrap();
        let error = bind(&path).expect_err("it is in use");
        assert!(matches!(error, SocketError::InUse { .. }), "{error}");
        // A second agent in its place: the first one's end leaves it alone.
        fs::remove_file(&path).unwrap();
        let second = bind(&path).unwrap();
        drop(bound);
        assert!(path.exists());
        drop(second);
        assert!(!path.exists());
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_that_is_ending_is_waited_for_and_another_one_only_so_long() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        let patience = Duration::from_secs(30);
        let first = bind(&path).unwrap();
        let error = bind_after(&path, patience).await.expect_err("it goes on");
        assert!(matches!(error, SocketError::InUse { .. }), "{error}");
        let (second, ()) = tokio::join!(bind_after(&path, patience), async {
            tokio::time::sleep(Duration::from_secs(16)).await;
            drop(first);
        });
        drop(second.unwrap());
        // What no waiting mends is said at once.
        fs::write(&path, "").unwrap();
        let began = tokio::time::Instant::now();
        let error = bind_after(&path, patience).await.expect_err("a file");
        assert!(matches!(error, SocketError::NotASocket { .. }), "{error}");
        assert_eq!(began.elapsed(), Duration::ZERO);
    }

    #[tokio::test]
    async fn any_programs_socket_was_called_another_agents() {
        use tokio::io::AsyncWriteExt as _;
        let directory = tempfile::tempdir().unwrap();
        let patience = Duration::ZERO;
        let path = directory.path().join("other.sock");
        let other = UnixListener::bind(&path).unwrap();
        let greet = async {
            loop {
                let (mut stream, _) = other.accept().await.unwrap();
                // The first connection is only tried, and closed.
                let _ = stream.write_all(b"220 mail.example ESMTP\r\n").await;
            }
        };
        let error = tokio::select! {
            bound = bind_after(&path, Duration::from_secs(30)) => bound.expect_err("it is in use"),
            () = greet => unreachable!("it greets for ever"),
        };
        let said = error.to_string();
        assert!(said.contains("no gpuacct agent"), "{said}");
        assert!(said.contains("220 mail.example ESMTP"), "{said}");

        let path = directory.path().join("agent.sock");
        let (state, _asked) = state();
        let bound = bind(&path).unwrap();
        let error = tokio::select! {
            bound = bind_after(&path, patience) => bound.expect_err("it is in use"),
            _ = serve(bound, state, std::future::pending()) => unreachable!("it serves for ever"),
        };
        let said = error.to_string();
        assert!(said.contains("another agent answers"), "{said}");
    }

    #[tokio::test]
    async fn what_is_not_a_socket_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        fs::write(&path, "precious").unwrap();
        let error = bind(&path).expect_err("a file is there");
        assert!(matches!(error, SocketError::NotASocket { .. }), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        let long = directory.path().join("x".repeat(107));
        let error = bind(&long).expect_err("too long");
        assert!(matches!(error, SocketError::PathTooLong { .. }), "{error}");
    }

    /// A start in `connect` was deaf to every signal for as long as the other program liked.
    #[test]
    fn a_socket_whose_backlog_is_full_is_in_use_and_blocks_nobody() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("full.sock");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let mut waiting = Vec::new();
        loop {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
            match connect(&socket, &SocketAddrUnix::new(&path).unwrap()) {
                Ok(()) => waiting.push(socket),
                Err(error) => {
                    assert_eq!(error, Errno::AGAIN, "after {}", waiting.len());
                    break;
                }
            }
            assert!(waiting.len() < 10_000, "the backlog has an end");
        }
        assert!(has_listener(&path).unwrap());
        let error = bind(&path).expect_err("somebody listens");
        assert!(matches!(error, SocketError::InUse { .. }), "{error}");
        drop((listener, waiting));
        assert!(!has_listener(&path).unwrap());
    }
}
