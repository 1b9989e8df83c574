//! Names from the container runtime interface of containerd and CRI-O.
//!
//! A runtime is judged by whether it answers, never by its name or version. Every configured socket
//! is followed on its own, since a node may have several runtimes (k3s brings its own containerd
//! beside Docker's); together they are one source with one state.
//!
//! A session: a first call, then, if wanted, the stream of events, then lists of containers and
//! sandboxes. Without events the lists are repeated soon, with them seldom, since a stream can lose
//! what a list cannot. What the core looks up is asked for by its exact id; the interface also
//! answers to the beginning of an id, and such answers are not taken.
//!
//! Events are not asked for unless configured. containerd before 2.0 and CRI-O before 1.28 hand each
//! event to one of their subscribers only, and no answer says whether a runtime does: a
//! subscription would take events from a kubelet that lives by them. Nothing is named later without,
//! since the core asks when the kernel first shows a container.
//!
//! A container's names come from its pod's sandbox, as do the pod's own labels. The sandbox's own id
//! is answered, too, since it has a cgroup: under the pod's names and the container `(pod)`.
//!
//! An answer with a list is kept as bytes and decoded one element at a time, so that it takes
//! little more memory than its own size. A list that is too large does not stop lookups: each
//! container is still asked for by its id.
//!
//! It refuses to change anything: it only lists. A socket on which nobody offers this interface, as
//! that of a containerd that serves Docker alone, is as good as absent.

mod facts;
mod lookup;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{Stream, StreamExt, TryFutureExt};
use gpuacct_proto::cri::{
    Container, ContainerEventResponse, ContainerEventType, ContainerStatus, GetEventsRequest,
    ListContainersRequest, ListPodSandboxRequest, PodSandbox, VersionRequest,
};
use prost::Message as _;
use tokio::time::{Instant, sleep_until};
use tonic::{Response, Status};
use tracing::{debug, warn};

use self::facts::{Facts, Sandbox, sandbox_identity};
use self::lookup::{
    Answer, Client, Connection, LIST_CONTAINERS, LIST_POD_SANDBOX, LISTED, Lookup, MAX_LISTED,
};
use super::elements::{Malformed, decode, elements};
use super::fault::SessionError as _;
use super::grpc::{self, GrpcError, MAX_LIST};
use super::socket_file::every;
pub use super::sockets::Timing;
use super::sockets::{self, Follower, SocketContext};
use super::wanted::{Wanted, container_id, receive};
use super::{Counters, IdentityIo, clean_labels, clean_name};
use crate::config;
use crate::core::input::{ContainerIdentity, IdentitySource, IdentityUpdate, Input};
use crate::core::model::{ContainerId, SourceId, SourceState};
use crate::sources::health::Closed;

/// A stream of events that lasted so long was one, even if nothing happened meanwhile.
const LASTING: Duration = Duration::from_secs(10);
/// The first list is repeated so soon: a container may have started after it and before the runtime
/// took the request for events.
const LIST_AGAIN: Duration = Duration::from_secs(1);
/// Lookups under way at one time, per runtime.
const MAX_IN_FLIGHT: usize = 4;
/// Containers and sandboxes remembered, per runtime. Beyond it each list passes them on again.
const MAX_ANNOUNCED: usize = 16_384;
/// Bytes of labels of listed sandboxes that are remembered, per runtime. A sandbox beyond it keeps its
/// names and loses its labels.
const MAX_SANDBOX_LABELS: usize = 2 << 20;
/// Memory for what the sandboxes of a runtime say of their pods, in bytes.
const MAX_SANDBOXES: usize = 8 << 20;
/// How often a runtime is asked. Only tests change it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuning {
    /// How often a runtime is asked whether it is still there.
    pub ping_interval: Duration,
    /// How often everything is listed without events.
    pub list_interval: Duration,
    /// How often everything is listed with them.
    pub relist_interval: Duration,
    /// How sockets are tried again.
    pub pace: Timing,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            ping_interval: Duration::from_secs(10),
            list_interval: Duration::from_secs(10),
            relist_interval: Duration::from_secs(60),
            pace: Timing::default(),
        }
    }
}

/// Follows the runtimes until `shutdown` turns true or nobody reads `out` any more.
///
/// A full `out` holds this source and nothing else.
pub async fn run(config: config::Cri, tuning: Tuning, io: IdentityIo<ContainerId>) {
    let begin = |seat| Runtime {
        seat,
        limit: config.timeout.0,
        asks_for_events: config.events,
        tuning,
        wanted: Wanted::default(),
        runtime: None,
        announced: HashSet::new(),
        sandboxes: Arc::default(),
        sandbox_labels: 0,
        sandbox_bytes: 0,
        lacks_sandboxes: false,
        has_warned: false,
    };
    sockets::run(SourceId::Cri, &config.sockets, tuning.pace, io, begin).await;
}

type Events = Pin<Box<dyn Stream<Item = Result<ContainerEventResponse, Status>> + Send>>;

/// A stream of events.
struct Subscription {
    events: Events,
    begun: Instant,
    /// Whether it has brought anything.
    has_delivered: bool,
}

/// One socket's runtime.
struct Runtime {
    seat: SocketContext<ContainerId>,
    /// How long any one request may take.
    limit: Duration,
    /// Whether to ask for events: only where every runtime hands each of them to every subscriber.
    asks_for_events: bool,
    tuning: Tuning,
    wanted: Wanted,
    /// Containers and sandboxes that the runtime has reported and not removed since.
    announced: HashSet<ContainerId>,
    /// By id, as last listed.
    sandboxes: Arc<HashMap<String, Arc<Sandbox>>>,
    /// Bytes of their labels.
    sandbox_labels: usize,
    /// The memory that they take, and whether there was too little for all of them.
    sandbox_bytes: usize,
    lacks_sandboxes: bool,
    /// Whether the end of the event stream was logged. It is logged once.
    has_warned: bool,
    /// What the runtime calls itself.
    runtime: Option<Arc<str>>,
}

impl Follower for Runtime {
    type Question = ContainerId;
    type Error = GrpcError;

    fn context(&mut self) -> &mut SocketContext<ContainerId> {
        &mut self.seat
    }

    async fn session(&mut self, was_up: &mut bool) -> Result<GrpcError, Closed> {
        let fault = self.talk(was_up).await?;
        self.wanted.call_back();
        fault.count(&self.seat.counters);
        Ok(fault)
    }
}

impl Runtime {
    /// Talks to the runtime until it cannot be talked to any more.
    async fn talk(&mut self, was_up: &mut bool) -> Result<GrpcError, Closed> {
        let connection = match grpc::connect(&self.seat.path, self.limit).await {
            Ok(channel) => Connection::new(channel),
            Err(fault) => return Ok(fault),
        };
        let mut client = connection.client.clone();
        let request = client.version(VersionRequest::default());
        let limit = self.limit;
        match grpc::first_call("version", limit, &self.seat.counters, request).await {
            Ok(it) => {
                debug!(runtime = %it.runtime_name, version = %it.runtime_version, "cri: connected");
                self.runtime = clean_name(Some(&it.runtime_name), &self.seat.counters);
            }
            Err(fault) => return Ok(fault),
        }

        let mut has_events = self.asks_for_events;
        let mut events = has_events.then(|| Subscription::new(&connection.client));
        let mut early = None;
        if let Some(Subscription { events, .. }) = &mut events {
            // The request is under way before the lists' are. A runtime may send no answer to it
            // before the first event, so nobody waits for one.
            tokio::select! {
                biased;
                event = events.next() => early = Some(event),
                () = std::future::ready(()) => {}
            }
        }
        if let Err(fault) = self.take_lists(&connection).await? {
            return Ok(fault);
        }
        *was_up = true;

        let mut list_at = Instant::now() + LIST_AGAIN.min(self.tuning.list_interval);
        let mut ping = every(self.tuning.ping_interval);
        let mut lookups = FuturesUnordered::new();
        loop {
            if let Some(event) = early.take() {
                match self.on_stream(event, &mut events, &mut has_events).await? {
                    Ok(()) if events.is_some() => {}
                    Ok(()) => list_at = list_at.min(Instant::now() + self.tuning.list_interval),
                    Err(fault) => return Ok(fault),
                }
            }
            while lookups.len() < MAX_IN_FLIGHT
                && let Some(id) = self.wanted.take_due(Instant::now())
            {
                lookups.push(self.describe(connection.clone(), id));
            }
            let due = if lookups.len() < MAX_IN_FLIGHT {
                self.wanted.next_due()
            } else {
                None
            };
            tokio::select! {
                event = next(&mut events) => early = Some(event),
                Some((id, answer)) = lookups.next() => match answer {
                    Ok(answer) => self.on_answer(id, answer).await?,
                    Err(fault) => return Ok(fault),
                },
                id = receive(&mut self.seat.questions) => self.seat.look_up(&mut self.wanted, id),
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
                // These two are awaited in place: without an answer the session is over anyway.
                () = sleep_until(list_at) => {
                    if let Err(fault) = self.take_lists(&connection).await? {
                        return Ok(fault);
                    }
                    if events.is_none() && has_events {
                        events = Some(Subscription::new(&connection.client));
                    }
                    list_at = Instant::now() + if events.is_some() {
                        self.tuning.relist_interval
                    } else {
                        self.tuning.list_interval
                    };
                }
                _ = ping.tick() => if let Err(fault) = self.ping(&connection).await {
                    return Ok(fault);
                },
            }
        }
    }

    async fn ping(&self, connection: &Connection) -> Result<(), GrpcError> {
        let mut client = connection.client.clone();
        self.call("version", client.version(VersionRequest::default()))
            .await?;
        Ok(())
    }

    async fn call<T>(
        &self,
        name: &'static str,
        request: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, GrpcError> {
        grpc::call(name, self.limit, &self.seat.counters, request).await
    }

    /// Takes what the stream of events brought. One that broke is asked for anew after the next list.
    /// One that ended at once without having brought anything is taken for the runtime's way of
    /// saying that it has none, whichever way that is, until the next session.
    async fn on_stream(
        &mut self,
        event: Option<Result<ContainerEventResponse, Status>>,
        events: &mut Option<Subscription>,
        has_events: &mut bool,
    ) -> Result<Result<(), GrpcError>, Closed> {
        let fault = match event {
            Some(Ok(event)) => {
                if let Some(events) = events {
                    events.has_delivered = true;
                }
                self.on_event(event).await?;
                return Ok(Ok(()));
            }
            Some(Err(status)) => Some(GrpcError::call("events", status)),
            None => None,
        };
        let place = self.seat.path.display();
        if let Some(ended) = events.take() {
            *has_events &= ended.has_delivered || ended.begun.elapsed() >= LASTING;
        }
        match fault {
            Some(fault) if fault.is_unimplemented() => *has_events = false,
            Some(fault) if fault.is_an_answer() || fault.is_too_large() => {
                self.seat.counters.refuse_answer(&fault);
                if self.has_warned {
                    debug!(%place, %fault, "cri: events ended");
                } else {
                    warn!(%place, %fault, "cri: events ended");
                }
                self.has_warned = true;
            }
            Some(fault) => return Ok(Err(fault)),
            None => debug!(%place, "cri: events ended"),
        }
        Ok(Ok(()))
    }

    /// Takes the lists. If they are too large, the source is reported as down and the session
    /// continues, since lookups and events still name one container at a time.
    async fn take_lists(
        &mut self,
        connection: &Connection,
    ) -> Result<Result<(), GrpcError>, Closed> {
        match self.list(connection).await? {
            Ok(()) => self.seat.report(SourceState::Up).await?,
            Err(fault) if fault.is_too_large() => {
                self.seat.counters.refuse_answer(&fault);
                self.seat.down(&fault, self.tuning.list_interval).await?;
            }
            Err(fault) => return Ok(Err(fault)),
        }
        Ok(Ok(()))
    }

    /// Passes on all that is new, and the disappearance of what is not listed any more.
    async fn list(&mut self, connection: &Connection) -> Result<Result<(), GrpcError>, Closed> {
        let request = ListContainersRequest::default();
        let containers = grpc::ask(&connection.channel, LIST_CONTAINERS, request, MAX_LIST);
        let containers = match self.call("list_containers", containers).await {
            Ok(reply) => reply,
            Err(fault) => return Ok(Err(fault)),
        };
        // After the containers, so that the sandbox of each is among them.
        let request = ListPodSandboxRequest::default();
        let sandboxes = grpc::ask(&connection.channel, LIST_POD_SANDBOX, request, MAX_LIST);
        let sandboxes = match self.call("list_pod_sandbox", sandboxes).await {
            Ok(reply) => reply,
            Err(fault) => return Ok(Err(fault)),
        };

        let mut pass = Pass {
            known: std::mem::take(&mut self.announced),
            seen: HashSet::new(),
            is_whole: true,
        };
        let taken = match self.take_sandboxes(&sandboxes, &mut pass).await? {
            Ok(()) => self.take_containers(&containers, &mut pass).await?,
            Err(fault) => Err(fault),
        };
        let gone = pass.known.into_iter().filter(|id| !pass.seen.contains(id));
        let is_whole = pass.is_whole && taken.is_ok();
        for id in gone {
            if is_whole {
                self.removed(id).await?;
            } else {
                // It may be among what was not looked at.
                self.note(id);
            }
        }
        Ok(taken)
    }

    async fn take_sandboxes(
        &mut self,
        list: &[u8],
        pass: &mut Pass,
    ) -> Result<Result<(), GrpcError>, Closed> {
        let call = "list_pod_sandbox";
        self.sandboxes = Arc::default();
        self.sandbox_labels = 0;
        self.sandbox_bytes = 0;
        self.lacks_sandboxes = false;
        for (number, element) in elements(list, LISTED).enumerate() {
            // A long list must not keep the other sources of this thread waiting.
            tokio::task::consume_budget().await;
            let counters = &self.seat.counters;
            let sandbox = match element.and_then(|of| pass.next::<PodSandbox>(number, of, counters))
            {
                Ok(Some(sandbox)) => sandbox,
                Ok(None) => {
                    self.lacks_sandboxes = true;
                    continue;
                }
                Err(source) => return Ok(Err(GrpcError::Malformed { call, source })),
            };
            let Some(id) = container_id(&sandbox.id) else {
                Counters::count(&self.seat.counters.invalid_replies);
                continue;
            };
            let is_known = pass.knows(&id);
            let sandbox = self.remember(sandbox, !is_known);
            if is_known {
                self.note(id);
            } else {
                self.found(sandbox_identity(&id, &sandbox, &self.seat.counters))
                    .await?;
            }
        }
        Ok(Ok(()))
    }

    async fn take_containers(
        &mut self,
        list: &[u8],
        pass: &mut Pass,
    ) -> Result<Result<(), GrpcError>, Closed> {
        let call = "list_containers";
        for (number, element) in elements(list, LISTED).enumerate() {
            tokio::task::consume_budget().await;
            let counters = &self.seat.counters;
            let container =
                match element.and_then(|of| pass.next::<Container>(number, of, counters)) {
                    Ok(Some(container)) => container,
                    Ok(None) => continue,
                    Err(source) => return Ok(Err(GrpcError::Malformed { call, source })),
                };
            let Some(id) = container_id(&container.id) else {
                Counters::count(&self.seat.counters.invalid_replies);
                continue;
            };
            let sandbox = self.sandboxes.get(&container.pod_sandbox_id).cloned();
            let facts = Facts::listed(&container);
            if pass.knows(&id) {
                self.note(id);
            } else if facts.image().is_none() || (sandbox.is_none() && self.lacks_sandboxes) {
                // The list has a digest only, or its sandbox found no room. Asked for alone, a
                // container may have more.
                self.seat.want(&mut self.wanted, id, false);
            } else {
                let identity = facts.identity(&id, sandbox.as_deref(), &self.seat.counters);
                self.found(identity).await?;
            }
        }
        Ok(Ok(()))
    }

    fn remember(&mut self, sandbox: PodSandbox, is_new: bool) -> Arc<Sandbox> {
        let counters = &self.seat.counters;
        // Dropped labels are counted once for each sandbox, however often it is listed.
        let listed_before = Counters::default();
        let counted = if is_new { counters } else { &listed_before };
        let mut labels = clean_labels(&sandbox.labels, counted);
        let bytes = labels.iter().map(|(key, value)| key.len() + value.len());
        let bytes: usize = bytes.sum();
        if self.sandbox_labels + bytes > MAX_SANDBOX_LABELS {
            if is_new {
                Counters::add(&counters.labels_dropped, labels.len());
            }
            labels = BTreeMap::new();
        } else {
            self.sandbox_labels += bytes;
        }
        let known = Arc::new(Sandbox {
            metadata: sandbox.metadata,
            labels,
        });
        let bytes = self.sandbox_bytes.saturating_add(known.bytes());
        if self.sandboxes.len() < MAX_ANNOUNCED && bytes <= MAX_SANDBOXES {
            self.sandbox_bytes = bytes;
            // Nobody else holds the map yet, so nothing is copied.
            Arc::make_mut(&mut self.sandboxes).insert(sandbox.id, Arc::clone(&known));
        } else {
            self.lacks_sandboxes = true;
            Counters::count(&self.seat.counters.entries_dropped);
        }
        known
    }

    async fn on_event(&mut self, event: ContainerEventResponse) -> Result<(), Closed> {
        Counters::count(&self.seat.counters.events);
        let Some(id) = container_id(&event.container_id) else {
            Counters::count(&self.seat.counters.invalid_replies);
            return Ok(());
        };
        match event.container_event_type() {
            ContainerEventType::ContainerCreatedEvent
            | ContainerEventType::ContainerStartedEvent => {
                if self.announced.contains(&id) {
                    return Ok(());
                }
                // What the event says is enough to go by, also if the container is gone before it
                // can be asked for.
                let counters = &self.seat.counters;
                let sandbox = event.pod_sandbox_status.map(|status| Sandbox {
                    metadata: status.metadata,
                    labels: clean_labels(&status.labels, counters),
                });
                let statuses = event.containers_statuses.iter();
                // One that cannot be decoded is none: the container is asked for.
                let mut statuses = statuses.flat_map(|of| ContainerStatus::decode(&**of));
                let status = statuses.find(|status| status.id == *id.0);
                if let (Some(sandbox), Some(status)) = (&sandbox, &status)
                    && Facts::alone(status).image().is_some()
                {
                    let facts = Facts::alone(status);
                    let identity = facts.identity(&id, Some(sandbox), &self.seat.counters);
                    return self.found(identity).await;
                }
                self.seat.want(&mut self.wanted, id, false);
            }
            ContainerEventType::ContainerStoppedEvent => {}
            ContainerEventType::ContainerDeletedEvent => {
                // The answer of a lookup in progress is ignored.
                self.wanted.forget(&id);
                if self.announced.contains(&id) {
                    self.removed(id).await?;
                }
            }
        }
        Ok(())
    }

    /// Asks for one container.
    fn describe(
        &self,
        connection: Connection,
        id: ContainerId,
    ) -> impl Future<Output = (ContainerId, Result<Answer, GrpcError>)> + use<> {
        let lookup = Lookup {
            connection,
            limit: self.limit,
            counters: Arc::clone(&self.seat.counters),
            // Most lookups are of pods that have been listed.
            sandboxes: Arc::clone(&self.sandboxes),
        };
        async move {
            let answer = match lookup.describe(&id).await {
                Err(fault) if fault.is_not_found() => Ok(Answer::Missing("not_found")),
                Err(fault) if fault.is_an_answer() || fault.is_too_large() => {
                    lookup.counters.refuse_answer(&fault);
                    warn!(container = %id, %fault, "cri: cannot look up a container");
                    Ok(Answer::Missing(if fault.is_too_large() {
                        "too_large"
                    } else {
                        "invalid_reply"
                    }))
                }
                other => other,
            };
            match &answer {
                Ok(Answer::Found(_)) => Counters::count(&lookup.counters.lookups_found),
                Ok(Answer::Missing(reason)) => lookup.counters.count_failed_lookup(reason),
                Err(fault) => lookup.counters.count_failed_lookup(fault.class()),
            }
            (id, answer)
        }
    }

    async fn on_answer(&mut self, id: ContainerId, answer: Answer) -> Result<(), Closed> {
        match answer {
            Answer::Found(identity) => {
                if self.wanted.answered(&id, Instant::now()) {
                    self.found(*identity).await?;
                }
            }
            Answer::Missing(reason) => {
                if self.wanted.missed(&id, Instant::now()) {
                    self.seat
                        .send(Input::Identity(IdentityUpdate::NotFound {
                            source: IdentitySource::Cri,
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

    async fn found(&mut self, mut identity: ContainerIdentity) -> Result<(), Closed> {
        identity.runtime.clone_from(&self.runtime);
        self.note(identity.id.clone());
        self.seat
            .send(Input::Identity(IdentityUpdate::Found(identity)))
            .await
    }

    async fn removed(&mut self, id: ContainerId) -> Result<(), Closed> {
        self.announced.remove(&id);
        self.seat
            .send(Input::Identity(IdentityUpdate::Removed {
                source: IdentitySource::Cri,
                id,
            }))
            .await
    }
}

impl Subscription {
    /// The request for events and then the events, as one.
    fn new(client: &Client) -> Self {
        let mut client = client.clone();
        let stream = async move {
            let reply = client.get_container_events(GetEventsRequest {}).await;
            reply.map(Response::into_inner)
        };
        Self {
            events: Box::pin(stream.try_flatten_stream()),
            begun: Instant::now(),
            has_delivered: false,
        }
    }
}

/// The next event; none ever where there are none.
async fn next(events: &mut Option<Subscription>) -> Option<Result<ContainerEventResponse, Status>> {
    match events {
        Some(subscription) => subscription.events.next().await,
        None => std::future::pending().await,
    }
}

/// One reading of the lists.
struct Pass {
    /// What has been announced before.
    known: HashSet<ContainerId>,
    /// What of that is listed still.
    seen: HashSet<ContainerId>,
    /// Whether every element could be looked at.
    is_whole: bool,
}

impl Pass {
    /// The next element, unless a bound is passed.
    fn next<T: prost::Message + Default>(
        &mut self,
        number: usize,
        element: &[u8],
        counters: &Counters,
    ) -> Result<Option<T>, Malformed> {
        let decoded = if number < MAX_LISTED {
            decode(element, counters)?
        } else {
            Counters::count(&counters.entries_dropped);
            None
        };
        self.is_whole &= decoded.is_some();
        Ok(decoded)
    }

    /// Whether a container or a sandbox that is listed has been announced before.
    fn knows(&mut self, id: &ContainerId) -> bool {
        let is_known = self.known.contains(id);
        if is_known {
            self.seen.insert(id.clone());
        }
        is_known
    }
}

/// For the fuzz target: reads an answer, as each of those that are read.
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub fn fuzz(answer: &[u8]) {
    let counters = Counters::default();
    let id = ContainerId::from(&*"a".repeat(64));
    let mut sandboxes = Vec::new();
    let mut pass = Pass {
        known: HashSet::new(),
        seen: HashSet::new(),
        is_whole: true,
    };
    for (number, element) in elements(answer, LISTED).enumerate() {
        let Ok(element) = element else { break };
        if let Ok(Some(found)) = pass.next::<PodSandbox>(number, element, &counters) {
            let sandbox = Sandbox {
                metadata: found.metadata,
                labels: clean_labels(&found.labels, &counters),
            };
            let identity = sandbox_identity(&id, &sandbox, &counters);
            assert!(identity.labels.len() <= super::MAX_LABELS);
            sandboxes.push(sandbox);
        }
        if let Ok(Some(found)) = pass.next::<Container>(number, element, &counters) {
            let identity = Facts::listed(&found).identity(&id, sandboxes.last(), &counters);
            assert!(
                identity
                    .name
                    .is_none_or(|name| name.len() <= super::MAX_TEXT)
            );
        }
    }
    if let Ok(event) = ContainerEventResponse::decode(answer) {
        let statuses = event.containers_statuses.iter();
        for status in statuses.flat_map(|of| ContainerStatus::decode(&**of)) {
            let _ = Facts::alone(&status).identity(&id, sandboxes.last(), &counters);
        }
    }
}
