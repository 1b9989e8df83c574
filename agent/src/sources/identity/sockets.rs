//! Servers behind Unix sockets, as one source: each followed on its own, all of them one state.
//!
//! A server may be absent, come late, hang, restart or be something else. It is judged by whether
//! it answers, and tried again for ever. The follower implements the session. This module has what
//! all followers share: when to connect and how long to wait, the state of a missing server, and
//! how the states of several sockets become the state of the source.
//!
//! No lookups are kept while a server is not connected: the first list of a session names
//! everything, and the core repeats its lookups. A follower that panics does not affect the others,
//! and is reported.

use std::io::{self, ErrorKind};
use std::os::unix::fs::FileTypeExt;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tracing::{error, info, warn};

use super::fault::SessionError;
use super::socket_file::{Socket, every, io_class};
use super::wanted::{Wanted, container_id, receive};
use super::{Counters, IdentityIo, clean};
use crate::core::input::Input;
use crate::core::model::{Clock, ContainerId, SourceId, SourceState};
use crate::sources::Io;
use crate::sources::health::{Closed, HealthReporter};
use crate::sources::retry::Backoff;

/// Shortest session after which the delays start again from the shortest, so that a server that
/// closes the connection after every list is not listed five times a second.
const SETTLED: Duration = Duration::from_secs(10);
/// First wait after a failure; it doubles from there.
const RETRY_MIN: Duration = Duration::from_millis(200);
/// Longest wait for an interface that a server does not offer, shorter than the grace for names: a
/// runtime may take connections before the part of it that offers the interface is ready.
const UNOFFERED_MAX: Duration = Duration::from_secs(5);
/// Questions on their way to one server; what finds no room is counted, and the core asks again.
const QUESTIONS: usize = 256;
/// Reports on their way from the followers: each waits until its report is taken.
const REPORTS: usize = 8;

/// Why a socket cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum SocketUnavailable {
    #[error("the socket {} was removed", .0.display())]
    Vanished(PathBuf),
    #[error("{}: not a socket", .0.display())]
    NotASocket(PathBuf),
    #[error("{}: {source}", path.display())]
    Unreachable { path: PathBuf, source: io::Error },
}

impl SessionError for SocketUnavailable {
    fn class(&self) -> &'static str {
        match self {
            Self::Vanished(_) => "vanished",
            Self::NotASocket(_) => "not_a_socket",
            Self::Unreachable { source, .. } => io_class(source.kind()),
        }
    }
}

/// What there is at a path.
fn look(path: &Path) -> Result<Option<Socket>, SocketUnavailable> {
    match std::fs::metadata(path) {
        Ok(file) if file.file_type().is_socket() => Ok(Some(Socket::new(&file))),
        // What a bind mount whose source is missing leaves is a directory.
        Ok(_) => Err(SocketUnavailable::NotASocket(path.to_owned())),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(source) => Err(SocketUnavailable::Unreachable {
            path: path.to_owned(),
            source,
        }),
    }
}

/// Timeouts and intervals. Only tests change it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Longest wait between attempts.
    pub retry_max: Duration,
    /// How often to look for a socket that is not there.
    pub look_interval: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            retry_max: Duration::from_secs(30),
            look_interval: Duration::from_secs(2),
        }
    }
}

/// A client of the server behind one socket.
pub(super) trait Follower: Send + 'static {
    /// What it can be asked.
    type Question: Clone + Send + 'static;
    /// What ends a session.
    type Error: SessionError;

    fn context(&mut self) -> &mut SocketContext<Self::Question>;

    /// Runs a session until the server fails, and returns the error. Sets `was_up` once the server
    /// has answered.
    fn session(
        &mut self,
        was_up: &mut bool,
    ) -> impl Future<Output = Result<Self::Error, Closed>> + Send;
}

/// One socket, with the channels and counters of the task that follows it.
pub(super) struct SocketContext<Q> {
    pub(super) path: PathBuf,
    pub(super) counters: Arc<Counters>,
    pub(super) clock: fn() -> Clock,
    /// Gone once its other end is.
    pub(super) questions: Option<mpsc::Receiver<Q>>,
    out: mpsc::Sender<Input>,
    reports: mpsc::Sender<Report>,
    source: SourceId,
    member: usize,
    /// Paths before this one in the configuration. If one of them is the same socket, its task
    /// follows it.
    before: Vec<PathBuf>,
    pace: Timing,
    /// State that was reported last.
    state: Option<SourceState>,
    /// Whether a server has ever answered here.
    was_up: bool,
}

impl SocketContext<ContainerId> {
    /// Takes a question of the core's, or that there will be no more.
    pub(super) fn look_up(&mut self, wanted: &mut Wanted, id: Option<ContainerId>) {
        match id {
            Some(id) => match container_id(id.as_str()) {
                Some(id) => self.want(wanted, id, true),
                None => Counters::count(&self.counters.lookups_refused),
            },
            None => self.questions = None,
        }
    }

    /// Puts a container in line, and counts it where the line is too long.
    pub(super) fn want(&self, wanted: &mut Wanted, id: ContainerId, asked: bool) {
        if !wanted.want(id, asked, Instant::now()) {
            Counters::count(&self.counters.lookups_refused);
        }
    }
}

impl<Q> SocketContext<Q> {
    /// The socket, unless another path leads to it too.
    fn look(&self) -> Result<Option<Socket>, SocketUnavailable> {
        let Some(socket) = look(&self.path)? else {
            return Ok(None);
        };
        let is_anothers = |path: &PathBuf| {
            look(path).is_ok_and(|other| other.is_some_and(|other| other.is_same_file(socket)))
        };
        Ok((!self.before.iter().any(is_anothers)).then_some(socket))
    }

    /// Waits, and discards lookups meanwhile. Returns true if it ended early because another socket
    /// file is there than `before`.
    async fn wait(&mut self, span: Duration, before: Option<Socket>) -> bool {
        let end = Instant::now() + span;
        let mut look = every(self.pace.look_interval);
        loop {
            tokio::select! {
                () = sleep_until(end) => return false,
                _ = look.tick() => {
                    if matches!(self.look(), Ok(Some(now)) if Some(now) != before) {
                        return true;
                    }
                }
                question = receive(&mut self.questions) => if question.is_none() {
                    self.questions = None;
                },
            }
        }
    }

    /// Tells that the server does not answer, and when it is tried again.
    pub(super) async fn down(
        &mut self,
        fault: &impl SessionError,
        wait: Duration,
    ) -> Result<(), Closed> {
        let state = self.state_of(fault, wait);
        self.report(state).await
    }

    fn state_of(&self, fault: &impl SessionError, wait: Duration) -> SourceState {
        SourceState::Down {
            class: fault.class().into(),
            reason: clean(&fault.to_string(), &self.counters),
            next_retry: Some((self.clock)().boot.plus(wait.into())),
        }
    }

    /// Passes on a state if it is news.
    pub(super) async fn report(&mut self, state: SourceState) -> Result<(), Closed> {
        let before = self.state.as_ref();
        if before == Some(&state) {
            return Ok(());
        }
        if before.is_none_or(|before| before.as_str() != state.as_str()) {
            let (source, place) = (self.source.as_str(), self.path.display());
            match &state {
                SourceState::Down { class, reason, .. } => {
                    warn!(source, %place, %class, %reason, "source is down");
                }
                _ => info!(source, %place, state = state.as_str(), "socket"),
            }
        }
        self.state = Some(state.clone());
        let member = self.member;
        let report = Report { member, state };
        self.reports.send(report).await.map_err(|_| Closed)
    }

    pub(super) async fn send(&self, input: Input) -> Result<(), Closed> {
        self.out.send(input).await.map_err(|_| Closed)
    }
}

/// Follows one socket for ever.
async fn follow<F: Follower>(follower: &mut F) -> Closed {
    let longest = follower.context().pace.retry_max.max(RETRY_MIN);
    let mut retry = Backoff::new((RETRY_MIN, longest)).jittered();
    loop {
        if let Err(closed) = attempt(follower, &mut retry).await {
            return closed;
        }
    }
}

/// One session, and the wait after it.
async fn attempt<F: Follower>(follower: &mut F, retry: &mut Backoff) -> Result<(), Closed> {
    let seat = follower.context();
    let Timing {
        retry_max,
        look_interval,
    } = seat.pace;
    let (socket, state, wait) = match seat.look() {
        Ok(Some(socket)) => {
            let (begun, mut was_up) = (Instant::now(), false);
            let fault = follower.session(&mut was_up).await?;
            if was_up && begun.elapsed() >= SETTLED {
                retry.reset();
            }
            let seat = follower.context();
            seat.was_up |= was_up;
            // Counts as absent: no server here has ever offered this interface.
            if fault.class() == "unimplemented" && !seat.was_up {
                if seat.state != Some(SourceState::Absent) {
                    let (source, place) = (seat.source.as_str(), seat.path.display());
                    info!(source, %place, %fault, "the server does not offer this interface");
                }
                let wait = retry.wait_at_most(retry_max.min(UNOFFERED_MAX));
                (Some(socket), SourceState::Absent, wait)
            } else {
                let wait = retry.wait_at_most(retry_max);
                (Some(socket), seat.state_of(&fault, wait), wait)
            }
        }
        Ok(None) if seat.was_up => {
            let fault = SocketUnavailable::Vanished(seat.path.clone());
            (None, seat.state_of(&fault, look_interval), look_interval)
        }
        Ok(None) => (None, SourceState::Absent, look_interval),
        Err(obstacle) => {
            let wait = retry.wait_at_most(retry_max);
            (None, seat.state_of(&obstacle, wait), wait)
        }
    };
    let seat = follower.context();
    seat.report(state).await?;
    if seat.wait(wait, socket).await {
        retry.reset();
    }
    Ok(())
}

/// What one socket is doing.
struct Report {
    member: usize,
    state: SourceState,
}

/// One socket, as the source's state is made from it.
struct SocketStatus {
    path: Arc<str>,
    state: SourceState,
    /// Whether it has ever been up.
    was_up: bool,
}

/// Follows the servers until shutdown, or until the receiver of `out` is dropped.
pub(super) async fn run<F: Follower>(
    source: SourceId,
    sockets: &[PathBuf],
    pace: Timing,
    io: IdentityIo<F::Question>,
    begin: impl Fn(SocketContext<F::Question>) -> F,
) {
    let shutdown = io.io.shutdown.clone();
    let life = async {
        let Closed = oversee(source, sockets, pace, io, begin).await;
    };
    Io::until_stopped(shutdown, life).await;
}

/// Starts a follower for each socket, hands questions to all of them, and makes one state of theirs.
/// Ends when nobody reads `out` any more, and its followers with it.
async fn oversee<F: Follower>(
    source: SourceId,
    sockets: &[PathBuf],
    pace: Timing,
    io: IdentityIo<F::Question>,
    begin: impl Fn(SocketContext<F::Question>) -> F,
) -> Closed {
    let IdentityIo {
        counters,
        questions,
        io: Io { out, clock, .. },
    } = io;
    // Each socket logs its own states.
    let mut health = HealthReporter::new(source, out.clone(), clock).quiet();
    let (reports, mut reported) = mpsc::channel(REPORTS);
    let mut followers = JoinSet::new();
    let mut asked = Vec::new();
    let mut members = Vec::new();
    for (member, path) in sockets.iter().enumerate() {
        let (ask, questions) = mpsc::channel(QUESTIONS);
        let mut follower = begin(SocketContext {
            path: path.clone(),
            counters: Arc::clone(&counters),
            clock,
            questions: Some(questions),
            out: out.clone(),
            reports: reports.clone(),
            source,
            member,
            before: sockets[..member].to_vec(),
            pace,
            state: None,
            was_up: false,
        });
        // Nothing of the follower is looked at after a panic.
        let life = async move { AssertUnwindSafe(follow(&mut follower)).catch_unwind().await };
        followers.spawn(async move { (member, life.await) });
        asked.push(ask);
        members.push(SocketStatus {
            path: path.to_string_lossy().as_ref().into(),
            state: SourceState::Absent,
            was_up: false,
        });
    }

    // If no socket is configured, no follower reports, and the source would have no state.
    if members.is_empty() {
        let (state, place) = together(&members);
        if let Err(closed) = health.report(state, &place).await {
            return closed;
        }
    }
    let mut questions = Some(questions);
    loop {
        let report = tokio::select! {
            () = out.closed() => return Closed,
            Some(report) = reported.recv() => report,
            Some(ended) = followers.join_next() => match ended {
                Ok((_, Ok(closed))) => return closed,
                Ok((member, Err(_))) => Report { member, state: defect(source) },
                // It ends when this does.
                Err(_) => continue,
            },
            question = receive(&mut questions) => {
                match question {
                    Some(question) => for ask in &asked {
                        if let Err(TrySendError::Full(_)) = ask.try_send(question.clone()) {
                            counters.refuse_lookup();
                        }
                    },
                    None => {
                        questions = None;
                        asked.clear();
                    }
                }
                continue;
            }
        };
        if let Some(member) = members.get_mut(report.member) {
            member.was_up |= report.state == SourceState::Up;
            member.state = report.state;
        }
        let (state, place) = together(&members);
        if let Err(closed) = health.report(state, &place).await {
            return closed;
        }
    }
}

fn defect(source: SourceId) -> SourceState {
    let source = source.as_str();
    error!(
        source,
        "the task of a socket panicked (a bug); restart the agent"
    );
    SourceState::Down {
        class: "panic".into(),
        reason: "a defect ended what followed it; the agent must be started anew".into(),
        next_retry: None,
    }
}

/// The state of all sockets together. One that is there and does not answer makes the source down,
/// whatever the others do: its containers go without names, and that the others do not know them
/// says nothing. The words are of the one whose loss is news, then of the others.
fn together(members: &[SocketStatus]) -> (SourceState, Arc<str>) {
    let up = members.iter().filter(|m| m.state == SourceState::Up);
    let up: Vec<&str> = up.map(|member| &*member.path).collect();
    let mut down: Vec<_> = members.iter().filter_map(SocketStatus::trouble).collect();
    // Stable: otherwise they stay in order.
    down.sort_by_key(|(member, _)| !member.was_up);
    let Some(((first, reason), others)) = down.split_first() else {
        return if up.is_empty() {
            let first = members.first().map(|member| Arc::clone(&member.path));
            (SourceState::Absent, first.unwrap_or_default())
        } else {
            (SourceState::Up, up.join(" ").into())
        };
    };
    let mut state = first.state.clone();
    if let SourceState::Down { reason: words, .. } = &mut state {
        let others = others
            .iter()
            .map(|(member, reason)| format!("; {}: {reason}", member.path));
        let mut text: String = std::iter::once((*reason).to_owned())
            .chain(others)
            .collect();
        if !up.is_empty() {
            text.push_str("; up: ");
            text.push_str(&up.join(" "));
        }
        *words = text.into();
    }
    (state, Arc::clone(&first.path))
}

impl SocketStatus {
    /// Why it is down, if it is.
    fn trouble(&self) -> Option<(&Self, &str)> {
        match &self.state {
            SourceState::Down { reason, .. } => Some((self, reason)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
