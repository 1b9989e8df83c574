//! Names from the Docker Engine API, Podman's included.
//!
//! A daemon is judged by whether it answers, never by what it calls itself: no version is asked
//! for, and none is needed, since the client sends paths without one and the daemon then speaks its
//! own. It may be absent, come late, hang, restart or reply with garbage; each is a state with a
//! name, and each is tried again for ever. Every configured socket is followed on its own, since a
//! node may have Podman's beside Docker's; together they are one source with one state.
//!
//! A session: ping, then a list of everything, then events from just before the list, so that
//! nothing falls between the two. Events carry a container's names themselves, so a job is named
//! even if it is gone before anyone could ask about it. What the core looks up is inspected; a
//! daemon that does not know a container is asked again at growing intervals, since the kernel
//! may have been faster than the daemon.
//!
//! It refuses to change anything: every request is a GET. Each reply is bounded in size, since
//! anyone who starts a container writes its labels. A list that is too large does not stop lookups,
//! and an event that is too large affects no other event.

use std::collections::{HashMap, HashSet};
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::Duration;

#[cfg(feature = "fuzzing")]
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::warn;

use super::engine::{Engine, EngineError, Event, Inspection, List, Summary};
use super::fault::SessionError as _;
use super::socket_file::{every, io_class};
pub use super::sockets::Timing;
use super::sockets::{self, Follower, SocketContext};
use super::wanted::{Wanted, container_id, receive};
use super::{Counters, IdentityIo, clean_labels, clean_name, kubernetes_names};
use crate::config;
use crate::core::input::{ContainerIdentity, IdentitySource, IdentityUpdate, Input};
use crate::core::model::{ContainerId, Nanos, SourceId, SourceState, WallTime};
use crate::errors::{causes, chain};
use crate::sources::health::Closed;

/// Inspections under way at one time: enough to hide the round trip, too few to bother a daemon.
const MAX_IN_FLIGHT: usize = 4;
/// Containers remembered as announced. Beyond it a start event costs an inspection.
const MAX_ANNOUNCED: usize = 16_384;
/// How far before the list the events begin: more than a clock step of NTP's slewing, few enough
/// seconds to be cheap.
const OVERLAP: Nanos = Nanos::from_secs(2);
/// The events that are asked for. Podman says `remove` for `destroy`. Without a filter a health check
/// would send three events each time that it runs.
const EVENTS: [&str; 5] = ["create", "start", "rename", "destroy", "remove"];

/// How often a daemon is asked. Only tests change it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuning {
    /// How often a daemon that sends no events is asked whether it is still there.
    pub ping_interval: Duration,
    /// How sockets are tried again.
    pub pace: Timing,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            ping_interval: Duration::from_secs(10),
            pace: Timing::default(),
        }
    }
}

/// Follows the daemons until `shutdown` turns true or nobody reads `out` any more.
///
/// A full `out` holds this source and nothing else.
pub async fn run(config: config::Docker, tuning: Tuning, io: IdentityIo<ContainerId>) {
    let begin = |seat| Daemon {
        seat,
        limit: config.timeout.0,
        ping_interval: tuning.ping_interval,
        wanted: Wanted::default(),
        announced: HashSet::new(),
        resume: None,
    };
    let source = SourceId::Docker;
    sockets::run(source, &config.sockets, tuning.pace, io, begin).await;
}

/// Why a daemon could not be used, or not any longer.
#[derive(Debug, thiserror::Error)]
enum DockerError {
    #[error("{call}: no answer within {limit:?}")]
    Timeout { call: &'static str, limit: Duration },
    #[error("{call}: {}", chain(.source))]
    Call {
        call: &'static str,
        class: &'static str,
        source: EngineError,
    },
    #[error("the event stream ended")]
    Ended,
}

impl DockerError {
    fn call(call: &'static str, source: EngineError) -> Self {
        let class = class_of(&source);
        Self::Call {
            call,
            class,
            source,
        }
    }

    /// Whether a reply came that cannot be used.
    fn is_of_the_reply(&self) -> bool {
        matches!(self.class(), "protocol" | "too_large")
    }

    /// Whether the connection is at fault, rather than what was asked.
    fn is_of_the_connection(&self) -> bool {
        matches!(
            self.class(),
            "refused" | "vanished" | "permission" | "closed" | "io"
        )
    }
}

impl super::fault::SessionError for DockerError {
    fn class(&self) -> &'static str {
        match self {
            Self::Timeout { .. } => "timeout",
            Self::Call { class, .. } => class,
            Self::Ended => "closed",
        }
    }
}

/// A short class for a failed call.
fn class_of(error: &EngineError) -> &'static str {
    match error {
        EngineError::Connect { source, .. } => io_class(source.kind()),
        EngineError::Status { .. } => "status",
        EngineError::TooLarge { .. } => "too_large",
        EngineError::Target { .. } | EngineError::Format(_) => "protocol",
        EngineError::Connection(http) => {
            if http.is_incomplete_message() || http.is_closed() || http.is_canceled() {
                return "closed";
            }
            let system = causes(error).find_map(|cause| {
                let io = cause.downcast_ref::<io::Error>()?;
                // Errors of these two kinds only wrap the next error in the chain.
                let is_clothes = matches!(io.kind(), ErrorKind::Other | ErrorKind::InvalidData);
                (!is_clothes).then(|| io_class(io.kind()))
            });
            system.unwrap_or("protocol")
        }
    }
}

/// What the daemon said of one container.
enum Answer {
    Found(Box<ContainerIdentity>),
    /// It does not know it, or what it said cannot be used; a label value says which.
    Missing(&'static str),
}

/// One socket's daemon.
struct Daemon {
    seat: SocketContext<ContainerId>,
    /// How long any one request may take.
    limit: Duration,
    ping_interval: Duration,
    wanted: Wanted,
    /// Containers that the daemon has reported and not removed since.
    announced: HashSet<ContainerId>,
    /// When the last event happened, by the daemon's clock: where the next session resumes.
    resume: Option<WallTime>,
}

impl Follower for Daemon {
    type Question = ContainerId;
    type Error = DockerError;

    fn context(&mut self) -> &mut SocketContext<ContainerId> {
        &mut self.seat
    }

    async fn session(&mut self, was_up: &mut bool) -> Result<DockerError, Closed> {
        let fault = self.talk(was_up).await?;
        self.wanted.call_back();
        let counters = &self.seat.counters;
        Counters::count(&counters.disconnects);
        match fault.class() {
            // Counted where it happened for a single container; here for the session.
            "protocol" => {
                Counters::count(&counters.invalid_replies);
                // Otherwise the event that could not be read would be replayed forever. The list
                // makes up for it.
                self.resume = None;
            }
            "too_large" => Counters::count(&counters.answers_too_large),
            "timeout" => Counters::count(&counters.timeouts),
            _ => {}
        }
        Ok(fault)
    }
}

impl Daemon {
    /// Talks to the daemon until it cannot be talked to any more.
    async fn talk(&mut self, was_up: &mut bool) -> Result<DockerError, Closed> {
        let docker = Engine::new(&self.seat.path);
        if let Err(fault) = self.ping(&docker).await {
            return Ok(fault);
        }

        // The events begin before the list does, whichever is answered first.
        let since = self
            .resume
            .unwrap_or_else(|| WallTime((self.seat.clock)().wall.0.saturating_sub(OVERLAP.0)));
        let since = format!("{}.{:09}", since.0 / 1_000_000_000, since.0 % 1_000_000_000);
        let mut events = std::pin::pin!(docker.events(&since, &EVENTS));
        let mut listed = match self.take_list(&docker).await? {
            Ok(listed) => listed,
            Err(fault) => return Ok(fault),
        };
        *was_up = true;

        let mut ping = every(self.ping_interval);
        let mut inspections = FuturesUnordered::new();
        loop {
            while inspections.len() < MAX_IN_FLIGHT
                && let Some(id) = self.wanted.take_due(Instant::now())
            {
                inspections.push(self.describe(docker.clone(), id));
            }
            let due = if inspections.len() < MAX_IN_FLIGHT {
                self.wanted.next_due()
            } else {
                None
            };
            tokio::select! {
                event = events.next() => match event {
                    Some(Ok(Some(event))) => self.on_event(event).await?,
                    Some(Ok(None)) => Counters::count(&self.seat.counters.answers_too_large),
                    Some(Err(error)) => return Ok(DockerError::call("events", error)),
                    None => return Ok(DockerError::Ended),
                },
                Some((id, answer)) = inspections.next() => match answer {
                    Ok(answer) => self.on_answer(id, answer).await?,
                    Err(fault) => return Ok(fault),
                },
                id = receive(&mut self.seat.questions) => self.seat.look_up(&mut self.wanted, id),
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
                // Awaited in place: if there is no answer the session is over anyway.
                _ = ping.tick() => {
                    let answer = if listed {
                        self.ping(&docker).await.map(|()| true)
                    } else {
                        self.take_list(&docker).await?
                    };
                    match answer {
                        Ok(still) => listed = still,
                        Err(fault) => return Ok(fault),
                    }
                }
            }
        }
    }

    /// Passes on the list. False if there is one that cannot be read: the source is down for that,
    /// and the session goes on, since events and inspections still name one container at a time.
    async fn take_list(&mut self, docker: &Engine) -> Result<Result<bool, DockerError>, Closed> {
        match self.list(docker).await {
            Ok(list) => {
                self.announce_all(&list).await?;
                self.seat.report(SourceState::Up).await?;
                Ok(Ok(true))
            }
            Err(fault) if fault.is_of_the_reply() => {
                self.seat.counters.refuse_answer(&fault);
                self.seat.down(&fault, self.ping_interval).await?;
                Ok(Ok(false))
            }
            Err(fault) => Ok(Err(fault)),
        }
    }

    async fn ping(&self, docker: &Engine) -> Result<(), DockerError> {
        call("ping", self.limit, &self.seat.counters, docker.ping()).await
    }

    /// Every container, or every running one where the whole list cannot be read or is too large.
    async fn list(&self, docker: &Engine) -> Result<List, DockerError> {
        let all = docker.list(true, &[]);
        match call("list", self.limit, &self.seat.counters, all).await {
            Err(fault) if fault.is_of_the_reply() => {
                self.seat.counters.refuse_answer(&fault);
                let running = docker.list(false, &[("status", "running")]);
                call("list", self.limit, &self.seat.counters, running).await
            }
            other => other,
        }
    }

    /// Asks for one container. A daemon may hang on one container, or say something of it that
    /// cannot be read, and answer for all others: then the list is asked, which takes no lock of
    /// the container and says less.
    fn describe(
        &self,
        docker: Engine,
        id: ContainerId,
    ) -> impl Future<Output = (ContainerId, Result<Answer, DockerError>)> + use<> {
        let (limit, counters) = (self.limit, Arc::clone(&self.seat.counters));
        async move {
            let inspection = docker.inspect(id.as_str());
            let answer = match call("inspect", limit, &counters, inspection).await {
                Ok(reply) => Ok(inspected(&id, reply, &counters)),
                Err(DockerError::Call {
                    source: EngineError::Status { status: 404, .. },
                    ..
                }) => Ok(Answer::Missing("not_found")),
                Err(fault) if fault.is_of_the_connection() => Err(fault),
                Err(fault) => {
                    if fault.class() == "timeout" {
                        Counters::count(&counters.timeouts);
                    } else {
                        counters.refuse_answer(&fault);
                    }
                    let filters = [("id", id.as_str())];
                    let list = docker.list(true, &filters);
                    match call("list", limit, &counters, list).await {
                        Ok(list) => Ok(listed(&id, &list, &counters)),
                        Err(fault) if fault.is_of_the_reply() => {
                            counters.refuse_answer(&fault);
                            Ok(Answer::Missing(match fault.class() {
                                "too_large" => "too_large",
                                _ => "invalid_reply",
                            }))
                        }
                        Err(fault) => Err(fault),
                    }
                }
            };
            match &answer {
                Ok(Answer::Found(_)) => Counters::count(&counters.lookups_found),
                Ok(Answer::Missing(reason)) => counters.count_failed_lookup(reason),
                Err(fault) => counters.count_failed_lookup(fault.class()),
            }
            (id, answer)
        }
    }

    /// Passes on a list, and the disappearance of what is not on it any more. An entry that cannot be
    /// read costs its own container's name only.
    async fn announce_all(&mut self, list: &List) -> Result<(), Closed> {
        let counters = Arc::clone(&self.seat.counters);
        Counters::add(&counters.entries_dropped, list.dropped);
        let mut is_whole = list.dropped == 0;
        let mut gone = std::mem::take(&mut self.announced);
        for summary in list.containers() {
            // A long list must not keep the other sources of this thread waiting.
            tokio::task::consume_budget().await;
            is_whole &= summary.is_ok();
            let id = |summary: &Summary| summary.id.as_deref().and_then(container_id);
            let Some((summary, id)) = summary.ok().and_then(|of| id(&of).map(|id| (of, id))) else {
                Counters::count(&counters.invalid_replies);
                continue;
            };
            gone.remove(&id);
            // The list shows an image by its digest once its name means another one; what the user
            // wrote is only in the container itself.
            if summary
                .image
                .as_deref()
                .is_none_or(|i| i.starts_with("sha256:"))
            {
                self.seat.want(&mut self.wanted, id, false);
                continue;
            }
            let identity = summarised(&id, summary, &counters);
            self.found(identity).await?;
        }
        for id in gone {
            if is_whole {
                self.removed(id).await?;
            } else {
                // It may be among what was not read.
                self.note(id);
            }
        }
        Ok(())
    }

    async fn on_event(&mut self, event: Event) -> Result<(), Closed> {
        Counters::count(&self.seat.counters.events);
        let actor = event.actor.unwrap_or_default();
        let id = actor.id.as_deref().and_then(container_id);
        let (Some(action), Some(id)) = (event.action.as_deref(), id) else {
            Counters::count(&self.seat.counters.invalid_replies);
            return Ok(());
        };
        if let Some(at) = event.time_nano.and_then(|at| u64::try_from(at).ok()) {
            self.resume = self.resume.max(Some(WallTime(at)));
        }
        match action {
            "create" | "start" => {
                if self.announced.contains(&id) {
                    return Ok(());
                }
                // What the event says is enough to go by, also if the container is gone before it
                // can be inspected. An inspection still follows: in an event the container's name
                // and image hide labels called `name` and `image`.
                if let Some(attributes) = actor.attributes
                    && let Some(identity) = evented(&id, attributes, &self.seat.counters)
                {
                    self.found(identity).await?;
                }
                self.seat.want(&mut self.wanted, id, false);
            }
            "rename" => self.seat.want(&mut self.wanted, id, false),
            "destroy" | "remove" => {
                // The answer of a lookup in progress is ignored.
                self.wanted.forget(&id);
                self.removed(id).await?;
            }
            _ => {}
        }
        Ok(())
    }

    async fn on_answer(&mut self, id: ContainerId, answer: Answer) -> Result<(), Closed> {
        match answer {
            Answer::Found(identity) => {
                if self.wanted.answered(&id, Instant::now()) {
                    self.found(*identity).await?;
                }
            }
            Answer::Missing(reason) => {
                if reason == "invalid_reply" {
                    warn!(container = %id, "docker: cannot decode the answer about a container");
                }
                if self.wanted.missed(&id, Instant::now()) {
                    self.seat
                        .send(Input::Identity(IdentityUpdate::NotFound {
                            source: IdentitySource::Docker,
                            id,
                            reason,
                        }))
                        .await?;
                }
            }
        }
        Ok(())
    }

    fn note(&mut self, id: ContainerId) {
        if self.announced.len() < MAX_ANNOUNCED {
            self.announced.insert(id);
        }
    }

    async fn found(&mut self, identity: ContainerIdentity) -> Result<(), Closed> {
        self.note(identity.id.clone());
        self.seat
            .send(Input::Identity(IdentityUpdate::Found(identity)))
            .await
    }

    async fn removed(&mut self, id: ContainerId) -> Result<(), Closed> {
        self.announced.remove(&id);
        self.seat
            .send(Input::Identity(IdentityUpdate::Removed {
                source: IdentitySource::Docker,
                id,
            }))
            .await
    }
}

/// One request, bounded in time.
async fn call<T>(
    name: &'static str,
    limit: Duration,
    counters: &Counters,
    request: impl Future<Output = Result<T, EngineError>>,
) -> Result<T, DockerError> {
    Counters::count(&counters.calls);
    match timeout(limit, request).await {
        Ok(reply) => reply.map_err(|error| DockerError::call(name, error)),
        Err(_) => Err(DockerError::Timeout { call: name, limit }),
    }
}

fn inspected(id: &ContainerId, reply: Inspection, counters: &Counters) -> Answer {
    if reply.id.as_deref() != Some(id.as_str()) {
        Counters::count(&counters.invalid_replies);
        return Answer::Missing("invalid_reply");
    }
    let config = reply.config.unwrap_or_default();
    Answer::Found(Box::new(identity(
        id,
        reply.name.as_deref(),
        config.image.as_deref(),
        &config.labels.unwrap_or_default(),
        counters,
    )))
}

/// What a list that was asked for one container says of it.
fn listed(id: &ContainerId, list: &List, counters: &Counters) -> Answer {
    Counters::add(&counters.entries_dropped, list.dropped);
    let mut missing = "not_found";
    for summary in list.containers() {
        match summary {
            Ok(summary) if summary.id.as_deref() == Some(id.as_str()) => {
                return Answer::Found(Box::new(summarised(id, summary, counters)));
            }
            Ok(_) => {}
            Err(_) => {
                Counters::count(&counters.invalid_replies);
                missing = "invalid_reply";
            }
        }
    }
    Answer::Missing(missing)
}

fn summarised(id: &ContainerId, summary: Summary, counters: &Counters) -> ContainerIdentity {
    let names = summary.names.unwrap_or_default();
    // A container that others link to has names below theirs as well: `/web/database`.
    let own = names
        .iter()
        .find(|name| !name.trim_start_matches('/').contains('/'))
        .or(names.first());
    identity(
        id,
        own.map(String::as_str),
        summary.image.as_deref(),
        &summary.labels.unwrap_or_default(),
        counters,
    )
}

/// The attributes of a create or start event: the labels, and among them, in place of labels so
/// called, the container's name and image.
fn evented(
    id: &ContainerId,
    mut attributes: HashMap<String, String>,
    counters: &Counters,
) -> Option<ContainerIdentity> {
    let name = attributes.remove("name")?;
    let image = attributes.remove("image");
    Some(identity(
        id,
        Some(&name),
        image.as_deref(),
        &attributes,
        counters,
    ))
}

fn identity(
    id: &ContainerId,
    name: Option<&str>,
    image: Option<&str>,
    labels: &HashMap<String, String>,
    counters: &Counters,
) -> ContainerIdentity {
    ContainerIdentity {
        id: id.clone(),
        source: IdentitySource::Docker,
        name: clean_name(name.map(|name| name.trim_start_matches('/')), counters),
        image: clean_name(image, counters),
        // Podman offers this interface as well, and writes its name into every cgroup.
        runtime: Some("docker".into()),
        kubernetes: kubernetes_names(labels, counters),
        labels: clean_labels(labels, counters),
    }
}

/// For the fuzz target: reads a body, as each of those that are read.
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub fn fuzz(body: &[u8]) {
    let counters = Counters::default();
    let id = ContainerId::from(&*"a".repeat(64));
    if let Ok(list) = List::of(Bytes::copy_from_slice(body)) {
        for summary in list.containers().flatten() {
            let identity = summarised(&id, summary, &counters);
            assert!(identity.labels.len() <= super::MAX_LABELS);
        }
        let _ = listed(&id, &list, &counters);
    }
    if let Ok(inspection) = serde_json::from_slice::<Inspection>(body) {
        let _ = inspected(&id, inspection, &counters);
    }
    if let Ok(event) = serde_json::from_slice::<Event>(body)
        && let Some(attributes) = event.actor.and_then(|actor| actor.attributes)
    {
        let _ = evented(&id, attributes, &counters);
    }
}

#[cfg(test)]
mod tests;
