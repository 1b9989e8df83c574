//! The core as a whole: observations in, snapshots out, and a few wishes to the sources.
//!
//! It owns every table. Whoever drives it hands over inputs as they come, commits at least every
//! two seconds, and carries out the [`Effect`]s; there is no other way in or out.
//!
//! A window is booked only when the event stream has been drained past its end, so that a process
//! that was born and died inside it is known. That wait is bounded: a kernel source that is down
//! must not hold the books.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::allocation::{AllocationTable, Grantee, Known, Span};
use super::amounts::Amounts;
use super::attribute::{self, Charge, Lookup};
use super::awaited::{Awaited, life_of};
use super::cgroup_path::CgroupMeaning;
use super::directory::{Directory, SourcesOfNames};
use super::event_stream::EventStream;
use super::holding::{End, Holding, Member};
use super::input::{
    Accounted, GpuInfo, GpuProcess, GpuProcesses, GpuWindow, IdentitySource, Input, KernelBatch,
    KernelEvent, PodName, ProcessEvent, ProcessScan, SourceHealth,
};
use super::ledger::{Account, Ledger};
use super::model::{
    BootTime, Clock, ContainerId, GpuUuid, HostUnit, Nanos, POD_ITSELF, Pid, PodUid, ProcessId,
    SourceId, SourceState, UNRESOLVED, UnattributedReason, none, unresolved,
};
use super::opens::{Fate, Opens};
use super::persist::Keeper;
use super::placement::{Owner, PayerRule, PlacementId, PlacementTable};
use super::process_table::{CREDIT_SLACK, Facts, ProcessTable, Sighting};
use super::publication::{self, Gate, Policy};
use super::shares::Shares;
use super::sharing::{self, Sharing};
use super::snapshot::{
    AgentBook, AllocatedDeviceView, AllocationState, AllocationView, Attribution, ContainerAccount,
    ContainerLabels, ContainerSeries, GpuBook, GpuProcessView, HostAccount, HostSeries,
    NamespaceSeries, Snapshot, SourceErrorBook,
};
use super::tables::{HashMap, HashSet};

/// Classes of errors that are told apart, per source; each has one of a few in its code.
const MAX_ERROR_CLASSES: usize = 32;
/// The namespace label beyond [`Settings::namespace_limit`], and the class of a source's errors
/// beyond [`MAX_ERROR_CLASSES`].
const OVERFLOW: &str = "(overflow)";
/// How long the dead are kept at least: the driver's ring spans 12 s, and a reader may be late.
const KEEP_DEAD: Nanos = Nanos::from_secs(15);
/// How old process lists may be and still say how much memory is in use: three times the longest
/// interval at which they can be configured to be read.
const LISTS_HOLD: Nanos = Nanos::from_secs(180);
/// Processes that have opened a GPU and are followed for it.
const OPENS_LIMIT: usize = 16_384;
/// How soon `/proc` is scanned again for a process that the last scan did not show.
const LOOK_AGAIN: Nanos = Nanos::from_secs(10);
/// How long the dead are kept at most, however far a GPU's windows lag.
const KEEP_DEAD_AT_MOST: Nanos = Nanos::from_secs(60);

/// Bounds and times of the core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Grace, zero and retention.
    pub policy: Policy,
    /// Processes, the dead that are kept included.
    pub process_limit: usize,
    /// cgroups.
    pub cgroup_limit: usize,
    /// Containers whose names are remembered.
    pub container_limit: usize,
    /// Open accounts.
    pub account_limit: usize,
    /// Namespaces with a counter of their own, times GPUs.
    pub namespace_limit: usize,
    /// How long a window waits for the event stream to pass its end.
    pub await_events: Nanos,
    /// Who pays where one container is in another.
    pub payer: PayerRule,
    /// How often the GPUs' process lists are read at least.
    pub lists_interval: Nanos,
    /// The agent's own pid: it has no context, and would not pay if it had.
    pub own_pid: Option<Pid>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            policy: Policy {
                grace: Nanos::from_secs(10),
                zero_for: Nanos::from_secs(60),
                keep_for: Nanos::from_secs(600),
            },
            process_limit: 262_144,
            cgroup_limit: 16_384,
            container_limit: 8_192,
            account_limit: 10_000,
            namespace_limit: 4_096,
            await_events: Nanos::from_secs(2),
            payer: PayerRule::default(),
            lists_interval: Nanos::from_secs(5),
            own_pid: None,
        }
    }
}

/// What the core wants done. Each may be dropped: it is asked for again if it is still needed. Only
/// a scan that is already to come may stand for [`Effect::Rescan`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Ask the sources of names for this container.
    LookUp(ContainerId),
    /// Ask the sources of names that can tell for this pod.
    LookUpPod(PodUid),
    /// Scan `/proc`: something was lost, or a process is not known.
    Rescan,
    /// Have the kernel side announce every cgroup anew.
    AnnounceAnew,
    /// Read the GPUs' process lists: somebody new uses one.
    ReadLists,
    /// Ask the kubelet what this pod was given: it is new here.
    ReadAllocations(PodName),
}

#[derive(Debug)]
pub(super) struct Payer {
    pub(super) attribution: Attribution,
    pub(super) held_since: BootTime,
    pub(super) labels: ContainerLabels,
    pub(super) image: Arc<str>,
    pub(super) runtime: Arc<str>,
}

#[derive(Debug, Default)]
pub(super) struct DeviceLists {
    at: BootTime,
    pub(super) processes: Vec<GpuProcess>,
    memory_used: Option<u64>,
    pub(super) memory: HashMap<Owner, u64>,
}

#[derive(Debug)]
pub(super) struct NamespaceBook {
    pub(super) amounts: Amounts,
    pub(super) gate: Gate,
}

/// The core.
#[derive(Debug)]
pub struct Accountant {
    pub(super) settings: Settings,
    started: Clock,
    pub(super) processes: ProcessTable,
    pub(super) placements: PlacementTable,
    /// Whether a scan has found a job where events name a daemon.
    scans_tell_more: bool,
    pub(super) directory: Directory,
    pub(super) allocations: AllocationTable,
    pub(super) shares: Shares,
    /// Containers of pods that were met since allocations were last booked.
    new_in_pods: HashSet<ContainerId>,
    pub(super) ledger: Ledger,
    pub(super) payers: HashMap<Owner, Payer>,
    pub(super) namespaces: BTreeMap<(usize, Arc<str>), NamespaceBook>,
    pub(super) lists: HashMap<GpuUuid, DeviceLists>,
    pub(super) holdings: HashMap<usize, Holding>,
    pub(super) opens: Opens,
    /// Who was on each GPU.
    pub(super) sharing: HashMap<GpuUuid, Sharing>,
    pub(super) sources: BTreeMap<SourceId, SourceHealth>,
    source_errors: BTreeMap<(SourceId, Arc<str>), SourceErrorBook>,
    waiting: VecDeque<(BootTime, GpuWindow)>,
    /// Up to when the kernel's events are known, and where some are missing.
    pub(super) stream: EventStream,
    /// Process lists and reports about dead processes that wait until the owners of their pids are
    /// known.
    pub(super) awaited: VecDeque<(Clock, Awaited)>,
    effects: Vec<Effect>,
    pub(super) counts: AgentBook,
    /// When `/proc` was last to be scanned for a pid.
    looked_for: HashMap<Pid, BootTime>,
    namespace_overflows: u64,
    pub(super) sequence: u64,
    /// Until when windows wait for the first scan of `/proc`. Those that go on where an agent before
    /// this one stopped are about processes that nothing else has shown yet.
    pub(super) await_scan_until: BootTime,
    /// What was handed over to be kept; absent where nothing is.
    pub(super) keeper: Option<Keeper>,
}

impl Accountant {
    /// An accountant with empty books.
    #[must_use]
    pub fn new(settings: Settings, clock: Clock) -> Self {
        Self {
            settings,
            started: clock,
            processes: ProcessTable::new(settings.process_limit),
            placements: PlacementTable::new(settings.cgroup_limit).with_rule(settings.payer),
            scans_tell_more: false,
            directory: Directory::new(settings.container_limit),
            allocations: AllocationTable::new(settings.container_limit),
            shares: Shares::default(),
            new_in_pods: HashSet::default(),
            ledger: Ledger::new(settings.account_limit),
            payers: HashMap::default(),
            namespaces: BTreeMap::new(),
            lists: HashMap::default(),
            holdings: HashMap::default(),
            opens: Opens::new(OPENS_LIMIT),
            sharing: HashMap::default(),
            sources: BTreeMap::new(),
            source_errors: BTreeMap::new(),
            waiting: VecDeque::new(),
            stream: EventStream::since(clock.boot),
            awaited: VecDeque::new(),
            effects: Vec::new(),
            counts: AgentBook::default(),
            looked_for: HashMap::default(),
            namespace_overflows: 0,
            sequence: 0,
            await_scan_until: BootTime::default(),
            keeper: None,
        }
    }

    /// Takes one observation.
    pub fn take(&mut self, input: Input, clock: Clock) {
        let from_events = matches!(input, Input::Kernel(_));
        match input {
            Input::Kernel(batch) => self.take_events(batch, clock.boot),
            Input::Processes(scan) => self.take_scan(&scan),
            Input::Identity(update) => self.directory.learn(update, clock.boot),
            Input::Gpus(gpus) => self.ledger.list(gpus, clock),
            Input::Window(window) => self.waiting.push_back((clock.boot, window)),
            Input::GpuProcesses(lists) => self.await_owners(Awaited::Lists(lists), clock),
            Input::Allocations(answer) => self.allocations.take(answer),
            Input::Accounted(process) => self.await_owners(Awaited::Died(process), clock),
            Input::Health(health) => self.take_health(health, clock.boot),
        }
        self.take_awaited(clock);
        self.introduce_containers(clock.boot, from_events);
    }

    /// What the core wants done since this was last asked.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    pub(super) fn wish(&mut self, effect: Effect) {
        if !self.effects.contains(&effect) {
            self.effects.push(effect);
        }
    }

    fn take_health(&mut self, mut health: SourceHealth, now: BootTime) {
        if let SourceState::Down { class, .. } = &health.state {
            self.note_error(health.source, class, now);
        }
        if let Some(known) = self.sources.get(&health.source)
            && known.state.as_str() == health.state.as_str()
        {
            // Down again is still down, for whatever reason this time.
            health.since = health.since.min(known.since);
        }
        if health.source == SourceId::Kernel {
            // No state is one of the future: the gap would never end.
            self.stream.take_state(&health.state, health.since.min(now));
        }
        self.sources.insert(health.source, health);
    }

    fn note_error(&mut self, source: SourceId, class: &Arc<str>, now: BootTime) {
        let known = self.source_errors.keys().filter(|(of, _)| *of == source);
        let is_full = known.count() >= MAX_ERROR_CLASSES;
        let mut key = (source, Arc::clone(class));
        if is_full && !self.source_errors.contains_key(&key) {
            key.1 = OVERFLOW.into();
        }
        let class = Arc::clone(&key.1);
        let book = self.source_errors.entry(key).or_insert(SourceErrorBook {
            source,
            class,
            count: 0,
            last: now,
        });
        book.count += 1;
        book.last = book.last.max(now);
    }

    fn take_events(&mut self, batch: KernelBatch, now: BootTime) {
        if self.stream.take_batch(&batch, now) {
            self.counts.rescans_after_loss += 1;
            self.wish(Effect::AnnounceAnew);
            self.wish(Effect::Rescan);
        }
        for event in batch.events {
            match event {
                KernelEvent::Fork(event) => self.sight(&event, Sighting::Fork),
                KernelEvent::Exec(event) => {
                    self.sight(&event, Sighting::Exec);
                    let id = event.id();
                    let mut held = false;
                    for holding in self.holdings.values_mut() {
                        held |= holding.executed(id, event.at);
                    }
                    for sharing in self.sharing.values_mut() {
                        sharing.executed(id, event.at);
                    }
                    if held {
                        self.wish(Effect::ReadLists);
                    }
                }
                KernelEvent::Attach(event) => self.sight(&event, Sighting::Attach),
                KernelEvent::Exit(event) => {
                    // A process whose birth was lost is known by its death at least.
                    let id = event.id();
                    if self.processes.placement(id).is_none() {
                        self.sight(&event, Sighting::Scan);
                    }
                    self.processes.exit(event.pid, event.start, event.at);
                    self.stream.take_event_of(event.pid);
                }
                KernelEvent::Open(open) => {
                    // Wherever its birth went, it lives here now. Nothing is booked for it.
                    let process = &open.process;
                    self.sight(process, Sighting::Scan);
                    let id = process.id();
                    if self.settings.own_pid != Some(id.pid) {
                        self.opens.note(id, open.device, process.at);
                        self.follow(id);
                        self.wish(Effect::ReadLists);
                    }
                }
                KernelEvent::CgroupRemoved(cgroup) => self.placements.remove(cgroup),
                KernelEvent::Cgroup(announcement) => {
                    if self.placements.announce(&announcement) {
                        self.wish(Effect::AnnounceAnew);
                    }
                }
            }
        }
    }

    fn sight(&mut self, event: &ProcessEvent, sighting: Sighting) {
        let process = ProcessId {
            pid: event.pid,
            start: event.start.into(),
        };
        let known = self.processes.placement(process).or_else(|| {
            // What is born is where its parent is.
            let is_birth = sighting == Sighting::Fork;
            is_birth.then(|| self.processes.placement_of(event.parent, event.at))?
        });
        let mut place = self.placements.of_event(event.cgroups, known);
        if sighting == Sighting::Attach && known == Some(place) && self.scans_tell_more {
            // It was moved in a hierarchy that events do not name, and there it may be a job's now.
            self.wish(Effect::Rescan);
        }
        // A scan that was faster than this event knew the same place by its path.
        if let Some(found) = self.processes.found_at(process)
            && found != place
        {
            let owner = self.placements.owner(place).map(|(owner, _)| owner.clone());
            let known = self.placements.owner(found).map(|(owner, _)| owner);
            if owner.is_some() && owner.as_ref() == known {
                self.placements.discard_unheld(place);
                place = found;
            }
        }
        let before = self.processes.facts_of(process);
        self.put(event.pid, event.start, event.at, place, sighting);
        if sighting == Sighting::Scan {
            self.date_move(process, before, event.at);
        }
        self.stream.take_event_of(event.pid);
        self.processes
            .note(event.pid, event.start, event.parent, true);
    }

    fn put(
        &mut self,
        pid: Pid,
        start: BootTime,
        at: BootTime,
        place: PlacementId,
        sighting: Sighting,
    ) {
        let placements = &mut self.placements;
        // Held before the old one is let go, since they may be the same.
        placements.hold(place);
        let held = self
            .processes
            .observe(pid, start, at, place, sighting, &mut |gone| {
                placements.release(gone);
            });
        if !held {
            placements.release(place);
        } else {
            // Resolving now, while it is fresh, introduces its container to the directory.
            let _ = placements.owner(place);
        }
    }

    /// Notes the interval in which a process moved that a scan found in another place. The interval
    /// begins where the process was last known to be in the place `before`, and ends at `by`, when
    /// it was seen in the new place.
    fn date_move(&mut self, process: ProcessId, before: Option<Facts>, by: BootTime) {
        let Some(before) = before else { return };
        let is_elsewhere = self
            .processes
            .placement(process)
            .is_some_and(|now| now != before.placement);
        if is_elsewhere && self.processes.found_at(process).is_some() {
            let after = self.stream.seen_through(process.pid);
            self.processes.found_moved(process, before.since, after, by);
        }
    }

    fn take_scan(&mut self, scan: &ProcessScan) {
        let unread: HashSet<Pid> = scan.unread.iter().copied().collect();
        let mut seen = HashSet::default();
        seen.reserve(scan.processes.len());
        for process in &scan.processes {
            seen.insert((process.pid, process.start));
            let id = ProcessId {
                pid: process.pid,
                start: process.start,
            };
            let place = self.placements.of_paths(&process.cgroups);
            self.placements.hold(place);
            let owner = self.placements.owner(place).map(|(owner, _)| owner.clone());
            let known = self
                .processes
                .placement(id)
                .and_then(|known| self.placements.owner(known))
                .map(|(owner, _)| owner.clone());
            // A path and a number that mean the same owner are no move. A number that means nothing
            // yet, or less than the path, is what the path says.
            let place = match self.processes.placement(id) {
                Some(known_place)
                    if owner.is_some()
                        && self.processes.is_there_since(id, scan.started)
                        && (known.is_none() || self.placements.says_more(place, known_place)) =>
                {
                    if known.is_none() {
                        self.placements.learn(known_place, place);
                    } else if self.placements.is_work(place) {
                        self.scans_tell_more = true;
                    }
                    self.placements.hold(place);
                    if let Some(gone) = self.processes.settle(id, place) {
                        self.placements.release(gone);
                    }
                    place
                }
                Some(known_place) if known.is_some() && known == owner => {
                    self.placements.hold(known_place);
                    self.placements.release(place);
                    known_place
                }
                _ => place,
            };
            let start = process.start.earliest();
            let before = self.processes.facts_of(id);
            self.put(process.pid, start, scan.started, place, Sighting::Scan);
            self.date_move(id, before, scan.finished);
            self.processes
                .note(process.pid, start, process.parent, false);
            self.placements.release(place);
        }
        // Who could not be read may live.
        let is_there = |pid, start| seen.contains(&(pid, start)) || unread.contains(&pid);
        self.processes
            .close_missing(scan.started, scan.finished, &is_there);
        if self.awaits_scan(scan.finished) {
            // Those that came before said nothing.
            self.wish(Effect::ReadLists);
        }
        self.counts.scans += 1;
        if self.stream.take_scan(scan) {
            // Those that came before may have named pids that nobody could vouch for.
            self.wish(Effect::ReadLists);
        }
    }

    /// Takes the driver's word on a process that died: its peak of memory, which no reading may have
    /// seen, and its busy time as a check of what was booked.
    pub(super) fn take_accounted(&mut self, process: &Accounted, received: Clock, clock: Clock) {
        let Some(book) = self.ledger.book_of(&process.gpu) else {
            return;
        };
        if let Some((by_driver, by_windows)) = process.busy {
            self.ledger.compare(book, by_driver, by_windows);
        }
        if self.awaits_scan(clock.boot) {
            // As of lists: whose the pid was cannot be told yet.
            return;
        }
        let (from, to) = life_of(process, received);
        let mut lookup = Lookup {
            events: &self.stream,
            processes: &self.processes,
            placements: &mut self.placements,
            opens: &self.opens,
        };
        let (_, owner) = attribute::owner_of(process.pid, from, to, &mut lookup);
        let Ok(owner) = owner else { return };
        let opened = self.opened_at(book, from, clock);
        self.ledger.open(book, &owner, opened);
        if let Some(account) = self.ledger.account_mut(book, &owner) {
            account.memory_peak = account.memory_peak.max(process.memory_peak);
        }
    }

    /// When an account is opened that something up to `at` is known of: its last windows may still be
    /// waiting, and are not booked before where the others ended.
    fn opened_at(&self, book: usize, at: BootTime, clock: Clock) -> Clock {
        let book = &self.ledger.books()[book];
        match book.through {
            Some(through) => clock.at(through.min(at)),
            None => Clock {
                boot: at,
                wall: book.start,
            },
        }
    }

    /// Whose a window's busy time is.
    fn charges_of(&mut self, window: &GpuWindow) -> Vec<Charge> {
        let unread = Sharing::default();
        let sharing = self.sharing.get(&window.gpu).unwrap_or(&unread);
        let is_instance = self.is_instance(&window.gpu);
        let mut lookup = Lookup {
            events: &self.stream,
            processes: &self.processes,
            placements: &mut self.placements,
            opens: &self.opens,
        };
        if is_instance {
            sharing::charges_of_instance(window, sharing, &mut lookup)
        } else {
            attribute::charges(window, sharing, &mut lookup)
        }
    }

    /// Whether a GPU is a MIG instance.
    fn is_instance(&self, gpu: &GpuUuid) -> bool {
        let book = self.ledger.book_of(gpu);
        book.is_some_and(|at| self.ledger.books()[at].gpu.mig.is_some())
    }

    /// Whether a window has to wait until the processes on its GPU are known. Its busy time comes
    /// without a process. A process may have come or gone since the last reading of the process
    /// lists, or events that a reading depends on have not been received yet.
    fn awaits_lists(&mut self, window: &GpuWindow) -> bool {
        let is_instance = self.is_instance(&window.gpu);
        let Some(sharing) = self.sharing.get(&window.gpu) else {
            return false;
        };
        let lookup = Lookup {
            events: &self.stream,
            processes: &self.processes,
            placements: &mut self.placements,
            opens: &self.opens,
        };
        if window.busy.is_zero() || !(is_instance || sharing.has_servers()) {
            return false;
        }
        let is_ahead = sharing.is_ahead(window.start, window.end, &lookup);
        let has_changed = sharing.has_changed(window.end, &lookup);
        if has_changed {
            self.wish(Effect::ReadLists);
        }
        is_ahead || has_changed
    }

    pub(super) fn take_lists(&mut self, mut lists: GpuProcesses, clock: Clock) {
        if self.awaits_scan(clock.boot) {
            // A pid in it may have been somebody else's when the agent before this one ended.
            return;
        }
        let own = self.settings.own_pid;
        lists.processes.retain(|process| Some(process.pid) != own);
        let book = self.ledger.book_of(&lists.gpu);
        let mut lookup = Lookup {
            events: &self.stream,
            processes: &self.processes,
            placements: &mut self.placements,
            opens: &self.opens,
        };
        let mut owners = HashMap::default();
        for &GpuProcess { pid, .. } in &lists.processes {
            let (found, owner) = attribute::owner_of(pid, lists.at, lists.at, &mut lookup);
            owners.insert(pid, (found, owner));
        }
        if book.is_some() {
            let sharing = self.sharing.entry(lists.gpu.clone()).or_default();
            sharing.observe(lists.at, &lists.processes, &mut lookup);
            for (pid, (_, owner)) in &mut owners {
                if let Some(of_server) =
                    sharing.payer_of_server(*pid, lists.at, lists.at, &mut lookup)
                {
                    (_, *owner) = attribute::confirmed(*pid, lists.at, (None, of_server), &lookup);
                }
            }
        }
        self.close_taken_over(clock);
        let mut members = Vec::with_capacity(lists.processes.len());
        let mut memory = HashMap::<Owner, u64>::default();
        let opened = book.map(|book| (book, self.opened_at(book, lists.at, clock)));
        for process in &lists.processes {
            let Some((found, payer)) = owners.get(&process.pid).cloned() else {
                continue;
            };
            if let Some(found) = found {
                self.follow(found);
            }
            let Ok(owner) = payer else { continue };
            if let Some(found) = found {
                let started = self.processes.facts_of(found).map(|facts| facts.start);
                members.push(Member {
                    process: found,
                    owner: owner.clone(),
                    not_before: started.max(self.opens.first(found)),
                    memory: process.memory,
                });
            }
            if let Some(bytes) = process.memory {
                let sum = memory.entry(owner.clone()).or_default();
                *sum = sum.saturating_add(bytes);
            }
            // Opened before it is charged, its series shows 0 all the earlier.
            if let Some((book, opened)) = opened {
                self.ledger.open(book, &owner, opened);
            }
        }
        if let Some((book, _)) = opened {
            let interval = self.settings.lists_interval;
            let holding = self.holdings.entry(book);
            let holding = holding.or_insert_with(|| Holding::new(interval));
            for owner in holding.list(lists.at, members) {
                if let Some(account) = self.ledger.account_mut(book, &owner) {
                    account.processes_started += 1;
                }
            }
            for (owner, bytes) in &memory {
                if let Some(account) = self.ledger.account_mut(book, owner) {
                    account.memory_peak = account.memory_peak.max(Some(*bytes));
                }
            }
        }
        self.lists.insert(
            lists.gpu,
            DeviceLists {
                at: lists.at,
                processes: lists.processes,
                memory_used: lists.memory_used,
                memory,
            },
        );
    }

    /// Tells the directory of containers that were met. One that an event shows has just begun: its
    /// names are asked for at once, so that they are known when it is charged. What a scan shows
    /// began before the agent looked, and every source lists those by itself.
    pub(super) fn introduce_containers(&mut self, now: BootTime, begins: bool) {
        for container in self.placements.take_new_containers() {
            self.directory.see(
                &container.id,
                container.pod.as_ref().map(|pod| &pod.uid),
                container.runtime.as_str(),
                &container.place,
                now,
            );
            if container.pod.is_some() && !self.allocations.knows(&container.id) {
                self.new_in_pods.insert(container.id.clone());
            }
            if begins && self.directory.should_ask(&container.id, now) {
                self.effects.push(Effect::LookUp(container.id));
            }
        }
    }

    /// Where the innermost container may pay: asks for those that nobody has vouched for, and has
    /// the others pay. Until then the outermost does.
    fn vouch_for_inner(&mut self, now: BootTime) {
        let present = self.placements.inner_containers();
        let mut vouched = BTreeSet::new();
        for inner in &present {
            self.directory.touch(&inner.id, now);
            if self
                .directory
                .vouches(&inner.id, &inner.place, inner.pod.as_ref())
            {
                vouched.insert(inner.clone());
            } else if self.directory.should_ask(&inner.id, now) {
                self.effects.push(Effect::LookUp(inner.id.clone()));
            }
        }
        self.placements.vouch(vouched, &present);
    }

    /// Whether the first scan of `/proc` is still to come that says who of an earlier agent's
    /// processes lives, and who else does.
    fn awaits_scan(&self, now: BootTime) -> bool {
        self.counts.scans == 0 && now < self.await_scan_until
    }

    fn book_waiting(&mut self, clock: Clock) {
        // Who was there before the agent is known by the first scan.
        let is_unscanned = self.counts.scans == 0 && self.sources.contains_key(&SourceId::Procfs);
        let is_starting = self.stream.is_starting() || is_unscanned;
        let mut still = VecDeque::new();
        let mut held_back = HashSet::default();
        while let Some((since, window)) = self.waiting.pop_front() {
            let caught_up = !is_unscanned && self.stream.has_caught_up(window.end);
            // Scans are made for busy windows alone while nothing else tells of processes.
            let is_nobodys = window.busy.is_zero() && window.engines.is_empty();
            let is_down = self.stream.is_expected() && !self.stream.is_up() && !is_starting;
            let is_expected = self.stream.is_expected() || is_starting;
            let awaits_lists = caught_up && self.awaits_lists(&window);
            let is_awaited =
                (is_expected && !caught_up && !(is_down && is_nobodys)) || awaits_lists;
            let waited = clock.boot.since(since);
            let scanned = !self.awaits_scan(clock.boot);
            let waited_enough = waited >= self.settings.await_events && scanned;
            if is_awaited && self.stream.lacks_scan(window.end) && !self.stream.is_starting() {
                self.wish(Effect::Rescan);
            }
            // A GPU's windows are booked in their order.
            if held_back.contains(&window.gpu) || !scanned || (is_awaited && !waited_enough) {
                held_back.insert(window.gpu.clone());
                still.push_back((since, window));
                continue;
            }
            self.counts.windows_not_awaited += u64::from(is_awaited);
            let charges = self.charges_of(&window);
            self.close_taken_over(clock);
            self.introduce_containers(clock.boot, false);
            for charge in &charges {
                self.look_for(charge, clock.boot);
                if let Some(process) = charge.process {
                    self.follow(process);
                    self.opens.sampled(process);
                }
            }
            let accounts = self.ledger.accounts().count();
            let book = self.ledger.book_of(&window.gpu);
            let through = book.and_then(|book| self.ledger.books()[book].through);
            let gaps = self.ledger.mended().gaps;
            let (start, end) = (window.start, window.end);
            if let Some(unlisted) = self.ledger.book(window, charges, clock)
                && !waited_enough
            {
                // Its GPU is about to be listed; if not, there is no book to put it in.
                held_back.insert(unlisted.gpu.clone());
                still.push_back((since, unlisted));
            }
            if let Some(book) = book {
                // A gap before the window is in the book, too.
                let is_mended = self.ledger.mended().gaps > gaps;
                let from = through.filter(|_| is_mended).unwrap_or(start);
                self.shares.account(book, from, end);
            }
            if self.ledger.accounts().count() > accounts {
                self.wish(Effect::ReadLists);
            }
        }
        self.waiting = still;
    }

    /// Books held time and memory as far as every exit is known, or has been waited for long enough.
    fn book_held(&mut self, now: BootTime) {
        if self.awaits_scan(now) {
            // Whoever is believed dead only until then would be counted as started once more.
            return;
        }
        let until = self.stream.drained_through().min(now);
        let until = until.max(now.minus(self.settings.await_events));
        let until = until.min(self.oldest_awaited());
        let processes = &self.processes;
        let end_of = |process| match processes.facts_of(process) {
            None => End::Forgotten,
            Some(facts) => facts.exit.map_or(End::Alive, End::At),
        };
        let ledger = &mut self.ledger;
        for (book, holding) in &mut self.holdings {
            for (owner, held) in holding.settle(until, &end_of) {
                if let Some(account) = ledger.account_mut(*book, &owner) {
                    account.add_held(held.from, held.time, held.memory);
                }
            }
        }
    }

    /// Has `/proc` scanned for a process that is not known, but not again and again for one that is
    /// not there either: the driver may name it for as long as it likes.
    fn look_for(&mut self, charge: &Charge, now: BootTime) {
        let Some(pid) = charge.pid else { return };
        let Err(
            UnattributedReason::UnknownPid
            | UnattributedReason::UnknownCgroup
            | UnattributedReason::UnconfirmedPid,
        ) = &charge.owner
        else {
            self.looked_for.remove(&pid);
            return;
        };
        self.looked_for.retain(|_, at| now.since(*at) < LOOK_AGAIN);
        if let Entry::Vacant(entry) = self.looked_for.entry(pid) {
            entry.insert(now);
            self.wish(Effect::Rescan);
        }
    }

    /// From here on nothing is waited for: the next commit is the last of this agent.
    pub fn await_nothing(&mut self) {
        self.settings.await_events = Nanos::ZERO;
        self.await_scan_until = BootTime::default();
    }

    /// Books what is ready, settles names, publishes, checks the balance.
    pub fn commit(&mut self, clock: Clock) -> Snapshot {
        if self.settings.payer == PayerRule::Innermost {
            self.vouch_for_inner(clock.boot);
        }
        self.take_awaited(clock);
        self.book_waiting(clock);
        let live = self.live_owners();
        self.book_allocations(&live, clock);
        self.book_held(clock.boot);
        self.settle_names(clock.boot);
        self.publish(clock);
        self.close_ended(&live, clock);
        self.forget_dead(clock.boot);
        self.placements.forget_removed();
        let placements = &self.placements;
        self.directory
            .settle(clock.boot, |id| placements.has_place(id));
        self.sequence += 1;
        self.counts.commits += 1;
        self.snapshot(clock)
    }

    fn settle_names(&mut self, now: BootTime) {
        let sources = self.sources_of_names();
        let is_asked_for_pods = self.is_asked_for_pods();
        let owners: Vec<Owner> = self
            .ledger
            .accounts()
            .map(|((_, owner), _)| owner)
            .filter(|owner| !matches!(owner, Owner::Host(_)))
            .cloned()
            .collect();
        for owner in owners {
            match &owner {
                Owner::Container(id) => self.directory.want(id, now),
                Owner::Pod(uid) => self.directory.want_pod(uid, now),
                Owner::Host(_) => {}
            }
            let payer = self.payers.entry(owner.clone()).or_insert_with(|| Payer {
                attribution: Attribution::Held,
                held_since: now,
                labels: no_names(&owner),
                image: match &owner {
                    Owner::Container(_) => unresolved(),
                    // It is of several containers, or of none.
                    Owner::Pod(_) | Owner::Host(_) => none(),
                },
                runtime: unresolved(),
            });
            if matches!(payer.attribution, Attribution::Named { .. }) {
                // Its names are frozen. What else is told of it may be learnt later, from another.
                if let Owner::Container(id) = &owner
                    && [&payer.image, &payer.runtime]
                        .map(|of| &**of)
                        .contains(&UNRESOLVED)
                {
                    let names = self.directory.names(id);
                    for (of, known) in [
                        (&mut payer.image, names.image),
                        (&mut payer.runtime, names.runtime),
                    ] {
                        if &**of == UNRESOLVED {
                            *of = known;
                        }
                    }
                }
                continue;
            }
            let grace_over = now.since(payer.held_since) >= self.settings.policy.grace;
            match &owner {
                Owner::Container(id) => {
                    let names = self.directory.names(id);
                    payer.image = names.image;
                    payer.runtime = names.runtime;
                    if let Some(source) = names.source {
                        if matches!(payer.attribution, Attribution::IdOnly { .. }) {
                            self.counts.named_late += 1;
                        }
                        payer.labels = names.labels;
                        payer.attribution = Attribution::Named { source };
                        continue;
                    }
                    if payer.attribution == Attribution::Held {
                        payer.labels = names.labels;
                        if grace_over {
                            let reason = self.directory.reason(id, sources);
                            payer.attribution = Attribution::IdOnly { reason };
                        }
                    }
                    if self.directory.should_ask(id, now) {
                        self.effects.push(Effect::LookUp(id.clone()));
                    }
                    // It may be new there.
                    self.directory.want(id, now);
                }
                Owner::Pod(uid) => {
                    let is_users_own = self.placements.is_weak(&owner);
                    if let Some((names, source)) = self.directory.pod_names(uid, is_users_own) {
                        if matches!(payer.attribution, Attribution::IdOnly { .. }) {
                            self.counts.named_late += 1;
                        }
                        payer.labels.namespace = Arc::clone(&names.namespace);
                        payer.labels.pod = Arc::clone(&names.pod);
                        payer.attribution = Attribution::Named { source };
                        continue;
                    }
                    if payer.attribution == Attribution::Held && grace_over {
                        let reason = self.directory.pod_reason(uid, sources, is_asked_for_pods);
                        payer.attribution = Attribution::IdOnly { reason };
                    }
                    if !is_users_own && self.directory.should_ask_pod(uid, now) {
                        self.effects.push(Effect::LookUpPod(uid.clone()));
                    }
                }
                // A unit needs nobody's answer.
                Owner::Host(_) => {}
            }
        }
    }

    pub(super) fn sources_of_names(&self) -> SourcesOfNames {
        let states = IdentitySource::ALL.map(|source| {
            let health = self.sources.get(&source.source());
            health.map(|health| &health.state)
        });
        SourcesOfNames {
            up: states
                .iter()
                .any(|state| matches!(state, Some(SourceState::Up))),
            down: states
                .iter()
                .any(|state| matches!(state, Some(SourceState::Down { .. }))),
        }
    }

    /// Whether a source is there that can be asked for a pod by its uid.
    pub(super) fn is_asked_for_pods(&self) -> bool {
        let logs = self.sources.get(&SourceId::KubeletLogs);
        logs.is_some_and(|health| health.state == SourceState::Up)
    }

    fn publish(&mut self, clock: Clock) {
        let policy = &self.settings.policy;
        let limit = self.settings.namespace_limit;
        for ((book, owner), account) in self.ledger.accounts_mut() {
            match owner {
                Owner::Host(_) => {
                    // A unit needs nobody's answer.
                    publication::publish_named(account, &no_names(owner), policy, clock);
                }
                Owner::Container(_) | Owner::Pod(_) => {
                    let Some(payer) = self.payers.get(owner) else {
                        continue;
                    };
                    publication::publish(account, payer.attribution, &payer.labels, policy, clock);
                    if matches!(payer.attribution, Attribution::Named { .. }) {
                        let amounts = account.amounts.minus(account.fed);
                        account.fed = account.amounts;
                        let key = (*book, Arc::clone(&payer.labels.namespace));
                        self.namespace_overflows +=
                            u64::from(feed(&mut self.namespaces, limit, key, amounts, clock));
                    }
                }
            }
        }
        for namespace in self.namespaces.values_mut() {
            namespace.gate.show(namespace.amounts, policy, clock.boot);
        }
    }

    /// Whoever has a living process.
    fn live_owners(&mut self) -> HashSet<Owner> {
        let live: HashSet<PlacementId> = self.processes.live_placements().collect();
        live.into_iter()
            .filter_map(|place| self.placements.owner(place).map(|(owner, _)| owner.clone()))
            .collect()
    }

    /// Books for how long containers were given GPUs, which opens their accounts, and asks for what
    /// is missing to know it.
    fn book_allocations(&mut self, live: &HashSet<Owner>, clock: Clock) {
        // The deaths of the last instants may not have been drained yet.
        let is_fresh = clock.boot.since(self.stream.drained_through()) < self.settings.await_events;
        let now = if is_fresh {
            clock.boot.min(self.stream.drained_through())
        } else {
            clock.boot
        };
        self.measure_lives(live, now);
        for id in self.allocations.unnamed() {
            if let Some(names) = self.directory.kubernetes(&id)
                && let Some(pod) = self.allocations.name(&id, names)
            {
                self.effects.push(Effect::ReadAllocations(pod));
            }
        }
        let directory = &mut self.directory;
        let wanted = self
            .allocations
            .wanted(|id| directory.should_ask(id, clock.boot));
        self.effects.extend(wanted.into_iter().map(Effect::LookUp));

        let gpus = self.ledger.books().iter().map(|book| Known {
            info: &book.gpu,
            is_listed: book.is_listed,
        });
        let ledger = &self.ledger;
        let counted = |container: &ContainerId, gpu| {
            let account = ledger.account(gpu, &Owner::Container(container.clone()));
            account.and_then(|account| account.allocated_through)
        };
        for stretch in self.allocations.settle(now, gpus, counted) {
            let book = &self.ledger.books()[stretch.gpu];
            if book.is_gone(now) {
                continue; // It would open an account that is closed at once, again and again.
            }
            // The next window begins where the last one ended, before the container may have.
            let opened = match book.through {
                Some(through) => clock.at(through.min(stretch.from)),
                None => Clock {
                    wall: book.start.min(clock.wall_of(stretch.from)),
                    boot: stretch.from,
                },
            };
            let span = (stretch.from, stretch.from.plus(stretch.amount));
            // A full ledger counts what it turns away.
            let owner = Owner::Container(stretch.container.clone());
            if self.ledger.allocate(stretch.gpu, &owner, opened, span) {
                let (from, until) = span;
                self.shares
                    .hold(stretch.gpu, &stretch.container, from, until);
            }
        }
        for share in self.shares.divide(clock.boot) {
            let owner = Owner::Container(share.container);
            if let Some(account) = self.ledger.account_mut(share.gpu, &owner) {
                account.add_share(share.amount);
            }
        }
    }

    /// Learns from when to when the containers have lived that began or ended since the last time.
    fn measure_lives(&mut self, live: &HashSet<Owner>, now: BootTime) {
        if self.awaits_scan(now) {
            return;
        }
        let is_live = |id: &ContainerId| live.contains(&Owner::Container(id.clone()));
        let known: HashMap<ContainerId, Span> = self
            .allocations
            .spans()
            .filter(|(id, span)| is_live(id) == span.end.is_some())
            .map(|(id, span)| (id.clone(), span))
            .collect();
        let mut changed = std::mem::take(&mut self.new_in_pods);
        changed.extend(known.keys().cloned());
        if changed.is_empty() {
            return;
        }
        let mut spans = HashMap::<ContainerId, Span>::default();
        // Thousands of processes share a few places.
        let mut owners = HashMap::<PlacementId, Option<ContainerId>>::default();
        for facts in self.processes.everyone() {
            let placements = &mut self.placements;
            let owner = owners.entry(facts.placement).or_insert_with(|| {
                match placements.owner(facts.placement) {
                    Some((Owner::Container(id), _)) => Some(id.clone()),
                    _ => None,
                }
            });
            let Some(id) = owner.as_ref().filter(|id| changed.contains(id)) else {
                continue;
            };
            spans
                .entry(id.clone())
                .and_modify(|span| {
                    span.start = span.start.min(facts.start);
                    // One that lives outlives the dead.
                    span.end = span.end.and_then(|end| Some(end.max(facts.exit?)));
                })
                .or_insert(Span {
                    start: facts.start,
                    end: facts.exit,
                });
        }
        for id in changed {
            let lost = known.get(&id).map(|span| Span {
                end: Some(now),
                ..*span
            });
            if let Some(span) = spans.remove(&id).or(lost) {
                self.allocations.meet(&id, span);
            }
        }
    }

    /// What the kubelet has given, and to whom.
    fn allocation_views(&self, clock: Clock) -> Vec<AllocationView> {
        let holdings = self.allocations.grantees();
        let views = holdings.iter().map(|holding| self.view(holding, clock));
        views.collect()
    }

    pub(super) fn allocation_of(&self, id: &ContainerId, clock: Clock) -> Option<AllocationView> {
        let holdings = self.allocations.grantees();
        let found = holdings.iter().find(|of| of.container == Some(id))?;
        Some(self.view(found, clock))
    }

    fn view(&self, holding: &Grantee<'_>, clock: Clock) -> AllocationView {
        let gpus: Vec<&GpuInfo> = self.ledger.books().iter().map(|book| &book.gpu).collect();
        let state = match (holding.container, holding.ended, holding.is_listed) {
            (None, _, _) => AllocationState::NoContainer,
            (Some(_), Some(_), _) => AllocationState::Ended,
            (Some(_), None, true) => AllocationState::Counting,
            (Some(_), None, false) if holding.is_unconfirmed => AllocationState::Unconfirmed,
            (Some(_), None, false) => AllocationState::Forgotten,
        };
        AllocationView {
            namespace: Arc::clone(&holding.name.namespace),
            pod: Arc::clone(&holding.name.pod),
            container: Arc::clone(&holding.name.container),
            id: holding.container.cloned(),
            state,
            devices: holding
                .grants
                .iter()
                .map(|grant| AllocatedDeviceView {
                    resource: Arc::clone(&grant.device.resource),
                    id: Arc::clone(&grant.device.id),
                    is_known: grant.device.device.is_some(),
                    gpus: grant
                        .device
                        .device
                        .iter()
                        .flat_map(|device| self.allocations.gpus_of(device, &gpus))
                        .map(|at| gpus[at].uuid.clone())
                        .collect(),
                    since: clock.wall_of(grant.since),
                })
                .collect(),
        }
    }

    fn close_ended(&mut self, live: &HashSet<Owner>, clock: Clock) {
        for ((_, owner), account) in self.ledger.accounts_mut() {
            if live.contains(owner) {
                account.ended = None;
            } else {
                account.ended.get_or_insert(clock.boot);
            }
        }
        let policy = self.settings.policy;
        let books = self.ledger.books().iter();
        let books = books.map(|book| (book.is_gone(clock.boot), book.through));
        let books: Vec<(bool, Option<BootTime>)> = books.collect();
        self.close_accounts(clock, &|(book, _), account| {
            let (is_gone, through) = books[*book];
            // Opened anew by a window that comes late, it would have the start that it has now.
            // Where no window has ever come none may; what is opened anew then begins later.
            let is_awaited = account
                .ended
                .is_some_and(|ended| through.is_some_and(|through| through < ended));
            let is_done = publication::is_done(account, &policy, clock) && !is_awaited;
            is_done || account.expired || is_gone
        });
        let owners = self.ledger.accounts().map(|((_, owner), _)| owner);
        self.placements.end_bindings(owners);
    }

    /// Closes the accounts under ids that have turned out to be another's: what was billed to whoever
    /// sat on one is not that one's, and goes on record without a name.
    fn close_taken_over(&mut self, clock: Clock) {
        let taken = self.placements.take_taken_over();
        if !taken.is_empty() {
            self.close_accounts(clock, &|(_, owner), _| taken.contains(owner));
        }
    }

    fn close_accounts(
        &mut self,
        clock: Clock,
        is_done: &dyn Fn(&(usize, Owner), &Account) -> bool,
    ) {
        let limit = self.settings.namespace_limit;
        // The account's last word to its namespace, if nobody ever named it.
        let mut unsettled = Vec::new();
        let closed = self.ledger.close(&mut |key, account| {
            let done = is_done(key, account);
            let is_owed = !matches!(key.1, Owner::Host(_)) && account.fed != account.amounts;
            if done && is_owed {
                unsettled.push((key.0, account.amounts.minus(account.fed)));
            }
            done
        });
        let counted = closed.iter();
        let counted = counted.filter_map(|(_, account)| account.allocated_through);
        self.allocations.forget_counted(counted.max());
        self.keep_closed(&closed, clock.wall);
        for (book, amounts) in unsettled {
            let key = (book, unresolved());
            self.namespace_overflows +=
                u64::from(feed(&mut self.namespaces, limit, key, amounts, clock));
        }
        if !closed.is_empty() {
            let open: HashSet<&Owner> = self
                .ledger
                .accounts()
                .map(|((_, owner), _)| owner)
                .collect();
            self.payers.retain(|owner, _| open.contains(owner));
            for holding in self.holdings.values_mut() {
                holding.forget(&|owner| open.contains(owner));
            }
        }
    }

    fn forget_dead(&mut self, now: BootTime) {
        let passed = self
            .ledger
            .books()
            .iter()
            .filter(|book| book.missing.is_none())
            .filter_map(|book| book.through)
            .min()
            .unwrap_or(now);
        // Whatever was lost, a window reaches no further back than the slack. The rest is for news
        // that come late and for work during tear-down, and a storm of short processes must not turn
        // others away for it.
        let mut books = self.ledger.books().iter();
        let keep = if self.processes.is_crowded() && books.all(|book| book.through.is_some()) {
            CREDIT_SLACK
        } else {
            KEEP_DEAD
        };
        let before = passed.max(now.minus(KEEP_DEAD_AT_MOST)).minus(keep);
        let placements = &mut self.placements;
        let processes = &self.processes;
        self.opens
            .settle(&mut |process| match processes.facts_of(process) {
                None => Fate::Unknown,
                Some(facts) => match facts.exit {
                    Some(died) if died < before => Fate::Over {
                        died,
                        owner: placements
                            .owner(facts.placement)
                            .map(|(owner, _)| owner.clone()),
                    },
                    _ => Fate::Open,
                },
            });
        self.processes
            .forget(before, &mut |place| placements.release(place));
        self.unfollow_forgotten();
    }

    fn snapshot(&mut self, clock: Clock) -> Snapshot {
        let imbalances = self.ledger.imbalances();
        self.counts.imbalances += u64::from(imbalances.iter().any(|difference| *difference != 0));
        let excesses = self.ledger.excesses(clock.boot);
        self.counts.excesses += u64::from(excesses.iter().any(|excess| !excess.is_zero()));
        let mut pending = vec![Nanos::ZERO; self.ledger.books().len()];
        let mut shares = HashMap::<(usize, Owner), f64>::default();
        for (at, book) in self.ledger.books().iter().enumerate() {
            let (span, charges) = book.recent();
            for charge in charges {
                if let Ok(owner) = &charge.owner {
                    *shares.entry((at, owner.clone())).or_default() += ratio(charge.busy, span);
                }
            }
        }
        // A figure that nobody renews is not "now" for ever.
        self.lists
            .retain(|_, lists| clock.boot.since(lists.at) < LISTS_HOLD);
        let mut snapshot = Snapshot {
            sequence: self.sequence,
            at: clock.boot,
            wall: clock.wall,
            agent_started: self.started.wall,
            events: self.stream.counters(),
            allocations_known: self.allocations.is_known(),
            allocations: self.allocation_views(clock),
            sources: self.sources.values().cloned().collect(),
            source_errors: self.source_errors.values().cloned().collect(),
            ..Snapshot::default()
        };
        // In the order in which they are shown: where they lie they are small to move about.
        let accounts = self.ledger.accounts();
        let mut accounts: Vec<_> = accounts
            .map(|((at, owner), account)| {
                let gpu = &self.ledger.books()[*at].gpu.uuid;
                (self.payers.get(owner), gpu, *at, owner, account)
            })
            .collect();
        accounts.sort_by(|(one, gpu, ..), (other, other_gpu, ..)| {
            let labels = [one, other].map(|payer| payer.map(|payer| &payer.labels));
            (labels[0], gpu).cmp(&(labels[1], other_gpu))
        });
        for (payer, gpu, at, owner, account) in accounts {
            pending[at] += account.amounts.minus(account.published()).busy;
            let memory = self
                .lists
                .get(gpu)
                .and_then(|lists| lists.memory.get(owner))
                .copied();
            let share = shares.get(&(at, owner.clone())).copied().unwrap_or(0.0);
            if let Owner::Host(unit) = owner {
                snapshot
                    .host_series
                    .extend(account.named.as_ref().map(|series| HostSeries {
                        unit: unit.clone(),
                        gpu: gpu.clone(),
                        start: series.gate.start,
                        amounts: series.gate.visible,
                    }));
                snapshot.host_accounts.push(HostAccount {
                    unit: unit.clone(),
                    gpu: gpu.clone(),
                    amounts: account.amounts,
                    share,
                    memory,
                });
                continue;
            }
            let Some(payer) = payer else {
                continue;
            };
            for (series, is_current) in [
                (&account.id_only, account.named.is_none()),
                (&account.named, true),
            ] {
                snapshot
                    .container_series
                    .extend(series.as_ref().map(|series| ContainerSeries {
                        labels: series.labels.clone(),
                        gpu: gpu.clone(),
                        start: series.gate.start,
                        amounts: series.gate.visible,
                        memory: memory.filter(|_| is_current),
                        memory_peak: account.memory_peak.filter(|_| is_current),
                        attribution: payer.attribution,
                        image: Arc::clone(&payer.image),
                        runtime: Arc::clone(&payer.runtime),
                    }));
            }
            let (id, runtime_labels, own_name) = match owner {
                Owner::Container(id) => (
                    id.clone(),
                    self.directory
                        .runtime_labels(id)
                        .cloned()
                        .unwrap_or_default(),
                    self.directory.own_name(id),
                ),
                Owner::Pod(_) | Owner::Host(_) => (ContainerId(none()), Arc::default(), None),
            };
            snapshot.accounts.push(ContainerAccount {
                labels: payer.labels.clone(),
                id,
                gpu: gpu.clone(),
                attribution: payer.attribution,
                amounts: account.amounts,
                share,
                memory,
                memory_peak: account.memory_peak,
                processes_started: account.processes_started,
                image: Arc::clone(&payer.image),
                runtime: Arc::clone(&payer.runtime),
                cgroup: self.placements.place(owner).cloned(),
                own_name,
                first_used: account.first_used,
                last_used: account.last_used,
                ended: account.ended.is_some(),
                runtime_labels,
            });
        }
        snapshot
            .container_series
            .sort_by(|a, b| (&a.labels, &a.gpu).cmp(&(&b.labels, &b.gpu)));
        snapshot
            .host_series
            .sort_by(|a, b| (&a.unit, &a.gpu).cmp(&(&b.unit, &b.gpu)));
        snapshot
            .host_accounts
            .sort_by(|a, b| (&a.unit, &a.gpu).cmp(&(&b.unit, &b.gpu)));
        snapshot.namespace_series = self
            .namespaces
            .iter()
            .map(|((at, namespace), book)| NamespaceSeries {
                namespace: Arc::clone(namespace),
                gpu: self.ledger.books()[*at].gpu.uuid.clone(),
                start: book.gate.start,
                amounts: book.gate.visible,
            })
            .collect();
        snapshot.gpus = self
            .ledger
            .books()
            .iter()
            .zip(imbalances)
            .zip(excesses)
            .zip(pending)
            .map(|(((book, imbalance), excess), pending)| {
                let coverage = book.coverage();
                GpuBook {
                    gpu: book.gpu.clone(),
                    start: book.start,
                    elapsed: book.elapsed,
                    busy: book.busy,
                    idle: book.idle,
                    unobserved: book.unobserved.iter().map(|(r, n)| (*r, *n)).collect(),
                    unattributed: book.unattributed.iter().map(|(r, n)| (*r, *n)).collect(),
                    pending,
                    imbalance,
                    excess,
                    utilization: (!coverage.elapsed.is_zero())
                        .then(|| ratio(coverage.busy, coverage.elapsed)),
                    coverage,
                    memory_used: self
                        .lists
                        .get(&book.gpu.uuid)
                        .and_then(|lists| lists.memory_used),
                    windows: book.windows,
                    torn_windows: book.torn_windows,
                    invalid_rows: book.invalid_rows,
                    cut: book.cut,
                    energy: book.energy,
                    accounting: book.accounting,
                    clocks: book.clocks.clone(),
                }
            })
            .collect();
        let attribution = |wanted: &str| {
            let count = self
                .payers
                .values()
                .filter(|payer| payer.attribution.as_str() == wanted)
                .count();
            count as u64
        };
        snapshot.agent = AgentBook {
            processes: self.processes.alive(),
            exited_processes: self.processes.exited(),
            cgroups: self.placements.cgroups(),
            table_overflows: self.processes.overflows()
                + self.placements.overflows()
                + self.directory.overflows()
                + self.ledger.overflows()
                + self.allocations.overflows()
                + self.opens.overflows()
                + self.not_followed()
                + self.namespace_overflows,
            containers_held: attribution("held"),
            containers_named: attribution("named"),
            containers_id_only: attribution("id_only"),
            names_dropped: self.directory.names_dropped(),
            labels_dropped: self.directory.labels_dropped(),
            identities_refused: self.directory.refused(),
            identities_refused_of: self.directory.refused_of(),
            cgroups_refused: self.placements.refusals(),
            gpu_opens: self.opens.opens(),
            gpu_opens_unsampled: self.opens.unsampled(),
            records_given_up: self.records_given_up(),
            windows_after_gap: self.ledger.mended().gaps,
            windows_cut: self.ledger.mended().overlaps,
            windows_refused: self.ledger.mended().refused,
            ..self.counts
        };
        snapshot
    }

    /// The containers inside the payer in which a process runs.
    fn inside_payer(&mut self, view: &GpuProcessView) -> Vec<ContainerId> {
        let place = view.start.and_then(|start| {
            let pid = view.pid;
            self.processes.placement(ProcessId { pid, start })
        });
        match place.and_then(|place| self.placements.owner(place)) {
            Some((Owner::Container(payer), CgroupMeaning::Container(cgroup))) => {
                let ids = cgroup.chain().map(|container| &container.id);
                let inner = ids.skip_while(|id| *id != payer).skip(1);
                inner.cloned().collect()
            }
            _ => Vec::new(),
        }
    }

    /// The processes that use a GPU now or did within the last ten seconds.
    #[must_use]
    pub fn gpu_processes(&mut self, now: BootTime) -> Vec<GpuProcessView> {
        let mut lookup = Lookup {
            events: &self.stream,
            processes: &self.processes,
            placements: &mut self.placements,
            opens: &self.opens,
        };
        let mut views = BTreeMap::<(GpuUuid, Pid), GpuProcessView>::new();
        let mut owners = HashMap::<(GpuUuid, Pid), Result<Owner, UnattributedReason>>::default();
        for book in self.ledger.books() {
            let (span, charges) = book.recent();
            for charge in charges {
                let Some(pid) = charge.pid else { continue };
                let key = (book.gpu.uuid.clone(), pid);
                owners.insert(key.clone(), charge.owner.clone());
                let view = views.entry(key).or_insert_with(|| GpuProcessView {
                    pid,
                    start: charge.process.map(|process| process.start),
                    gpu: book.gpu.uuid.clone(),
                    owner: "".into(),
                    inner: Vec::new(),
                    alive: false,
                    share: 0.0,
                    memory: None,
                });
                view.share += ratio(charge.busy, span);
            }
        }
        for (gpu, lists) in &self.lists {
            for process in &lists.processes {
                let key = (gpu.clone(), process.pid);
                let (found, owner) = attribute::owner_of(process.pid, now, now, &mut lookup);
                owners.entry(key.clone()).or_insert(owner);
                let view = views.entry(key).or_insert_with(|| GpuProcessView {
                    pid: process.pid,
                    start: found.map(|process| process.start),
                    gpu: gpu.clone(),
                    owner: "".into(),
                    inner: Vec::new(),
                    alive: false,
                    share: 0.0,
                    memory: None,
                });
                view.memory = process.memory;
            }
        }
        for view in views.values_mut() {
            view.inner = self.inside_payer(view);
        }
        views
            .into_iter()
            .map(|(key, mut view)| {
                view.owner = match owners.get(&key) {
                    Some(Ok(Owner::Container(id))) => Arc::clone(&id.0),
                    Some(Ok(Owner::Pod(uid))) => format!("pod {uid}").into(),
                    Some(Ok(Owner::Host(unit))) => Arc::clone(&unit.0),
                    Some(Err(reason)) => format!("({})", reason.as_str()).into(),
                    None => UNRESOLVED.into(),
                };
                view.alive = view.start.is_some_and(|start| {
                    self.processes.is_alive(ProcessId {
                        pid: view.pid,
                        start,
                    })
                });
                view
            })
            .collect()
    }
}

/// Gives a namespace's counter its amount. Returns whether the amount went to the overflow, since
/// there are too many namespaces.
fn feed(
    namespaces: &mut BTreeMap<(usize, Arc<str>), NamespaceBook>,
    limit: usize,
    mut key: (usize, Arc<str>),
    amounts: Amounts,
    clock: Clock,
) -> bool {
    let is_full = namespaces.len() >= limit && !namespaces.contains_key(&key);
    if is_full {
        key.1 = OVERFLOW.into();
    }
    let book = namespaces.entry(key).or_insert_with(|| NamespaceBook {
        amounts: Amounts::ZERO,
        gate: Gate::new(clock.wall, clock.boot),
    });
    book.amounts += amounts;
    is_full && !amounts.is_zero()
}

/// What a payer is called before anybody has named it.
pub(super) fn no_names(owner: &Owner) -> ContainerLabels {
    match owner {
        Owner::Container(id) => ContainerLabels {
            namespace: unresolved(),
            pod: unresolved(),
            container: unresolved(),
            pod_uid: unresolved(),
            container_id: Arc::clone(&id.0),
        },
        Owner::Pod(PodUid(uid)) => ContainerLabels {
            namespace: unresolved(),
            pod: unresolved(),
            container: POD_ITSELF.into(),
            pod_uid: Arc::clone(uid),
            container_id: none(),
        },
        Owner::Host(HostUnit(unit)) => ContainerLabels {
            namespace: none(),
            pod: none(),
            container: Arc::clone(unit),
            pod_uid: none(),
            container_id: none(),
        },
    }
}

pub(super) fn ratio(part: Nanos, whole: Nanos) -> f64 {
    if whole.is_zero() {
        0.0
    } else {
        part.as_secs_f64() / whole.as_secs_f64()
    }
}

#[cfg(test)]
mod jobs_tests;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::{
        AllocatedDevice, Allocations, CgroupAnnouncement, CgroupSet, ContainerAllocation,
        ContainerIdentity, Credit, DeviceOpen, DeviceRef, EventCounters, GpuInfo, IdentityUpdate,
        KubernetesNames, MigInfo, MpsRole, ScannedProcess, WindowQuality,
    };
    use crate::model::{CgroupKey, DeviceNumber, NONE, StartTicks, UnobservedReason, WallTime};
    use crate::snapshot::{AccountingBook, IdOnlyReason};
    use proptest::prelude::*;

    const SECOND: u64 = 1_000_000_000;
    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
    const UID: &str = "11111111-2222-3333-4444-555555555555";

    fn clock(nanos: u64) -> Clock {
        Clock {
            boot: BootTime(nanos),
            wall: WallTime(1_700_000_000 * SECOND + nanos),
        }
    }

    fn gpu() -> GpuUuid {
        GpuUuid::from("GPU-0")
    }

    /// A node with one GPU whose time the test tells in milliseconds.
    struct Node {
        accountant: Accountant,
        now: u64,
        windowed: u64,
    }

    impl Node {
        fn new(grace: u64, zero_for: u64) -> Self {
            let settings = Settings {
                policy: Policy {
                    grace: Nanos::from_millis(grace),
                    zero_for: Nanos::from_millis(zero_for),
                    keep_for: Nanos::from_secs(600),
                },
                ..Settings::default()
            };
            let mut node = Self {
                accountant: Accountant::new(settings, clock(100 * SECOND)),
                now: 100 * SECOND,
                windowed: 100 * SECOND,
            };
            node.take(Input::Gpus(vec![GpuInfo {
                uuid: gpu(),
                index: 0,
                minor: None,
                model: "test".into(),
                driver: "1".into(),
                simulated: true,
                memory_total: None,
                mig: None,
                engines: vec![],
            }]));
            node.health(SourceId::Kernel, SourceState::Up);
            for (id, parent, name) in [
                (1, None, ""),
                (2, Some(1), "docker"),
                (3, Some(2), A),
                (4, Some(2), B),
                (5, Some(1), "system.slice"),
                (6, Some(5), "sshd.service"),
                (7, Some(1), "kubepods"),
                (8, Some(7), "burstable"),
                (9, Some(8), &format!("pod{UID}")),
                (10, Some(9), A),
            ] {
                let key = CgroupKey { hierarchy: 0, id };
                node.events(vec![KernelEvent::Cgroup(CgroupAnnouncement {
                    key,
                    parent,
                    name: name.into(),
                })]);
            }
            node
        }

        fn take(&mut self, input: Input) {
            self.accountant.take(input, clock(self.now));
        }

        fn events(&mut self, events: Vec<KernelEvent>) {
            let batch = KernelBatch {
                events,
                drained_through: BootTime(self.now),
                counters: self.accountant.stream.counters(),
            };
            self.take(Input::Kernel(batch));
        }

        fn health(&mut self, source: SourceId, state: SourceState) {
            let since = BootTime(self.now);
            self.take(Input::Health(SourceHealth {
                source,
                state,
                since,
                place: "".into(),
            }));
        }

        fn event(&self, pid: u32, start: u64, cgroup: u64) -> ProcessEvent {
            ProcessEvent {
                at: BootTime(self.now),
                pid: Pid(pid),
                parent: Pid(1),
                start: BootTime(start),
                pid_namespace_level: 0,
                cgroups: CgroupSet {
                    unified: CgroupKey {
                        hierarchy: 0,
                        id: cgroup,
                    },
                    legacy: None,
                },
            }
        }

        fn fork(&mut self, pid: u32, cgroup: u64) -> u64 {
            let start = self.now;
            let event = self.event(pid, start, cgroup);
            self.events(vec![KernelEvent::Fork(event)]);
            start
        }

        fn exit(&mut self, pid: u32, start: u64, cgroup: u64) {
            let event = self.event(pid, start, cgroup);
            self.events(vec![KernelEvent::Exit(event)]);
        }

        /// Time passes, and the GPU's window up to now is closed with these credits (ms).
        fn pass(&mut self, millis: u64, credits: &[(u32, u64)]) {
            self.window(millis, credits);
            self.events(vec![]);
        }

        /// Likewise, and the event stream stays behind.
        fn window(&mut self, millis: u64, credits: &[(u32, u64)]) {
            self.now += millis * 1_000_000;
            let credits: Vec<Credit> = credits
                .iter()
                .map(|&(pid, millis)| Credit {
                    pid: Pid(pid),
                    busy: Nanos::from_millis(millis),
                })
                .collect();
            let busy: Nanos = credits.iter().map(|credit| credit.busy).sum();
            let window = GpuWindow {
                gpu: gpu(),
                start: BootTime(self.windowed),
                end: BootTime(self.now),
                busy,
                idle: Nanos(self.now - self.windowed).minus(busy),
                unobserved: vec![],
                credits,
                below_resolution: Nanos::ZERO,
                no_row: Nanos::ZERO,
                engines: vec![],
                energy: None,
                quality: WindowQuality::default(),
                clocks: None,
            };
            self.windowed = self.now;
            self.take(Input::Window(window));
        }

        /// A scan that begins now and finds these: pid, start, path.
        fn scan(&self, found: &[(u32, u64, &str)]) -> Input {
            let processes = found.iter().map(|&(pid, start, path)| ScannedProcess {
                pid: Pid(pid),
                parent: Pid(1),
                start: BootTime(start).into(),
                cgroups: Arc::new([(0, path.into())]),
            });
            Input::Processes(ProcessScan {
                started: BootTime(self.now),
                finished: BootTime(self.now),
                processes: processes.collect(),
                skipped: 0,
                unread: Vec::new(),
            })
        }

        /// Time passes, of which the GPU was busy for a part that has no rows.
        fn measured(&mut self, millis: u64, busy_millis: u64) {
            self.now += millis * 1_000_000;
            let busy = Nanos::from_millis(busy_millis);
            let window = GpuWindow {
                gpu: gpu(),
                start: BootTime(self.windowed),
                end: BootTime(self.now),
                busy,
                idle: Nanos(self.now - self.windowed).minus(busy),
                unobserved: vec![],
                credits: vec![],
                below_resolution: Nanos::ZERO,
                no_row: busy,
                engines: vec![],
                energy: None,
                quality: WindowQuality::default(),
                clocks: None,
            };
            self.windowed = self.now;
            self.take(Input::Window(window));
            self.events(vec![]);
        }

        fn commit(&mut self) -> Snapshot {
            let snapshot = self.accountant.commit(clock(self.now));
            for book in &snapshot.gpus {
                assert_eq!(book.imbalance, 0, "{book:?}");
            }
            snapshot
        }

        fn named(&mut self, id: &str, pod_uid: Option<&str>) {
            self.take(Input::Identity(IdentityUpdate::Found(ContainerIdentity {
                runtime: None,
                id: id.into(),
                source: IdentitySource::Docker,
                name: Some("web".into()),
                image: Some("img".into()),
                kubernetes: pod_uid.map(|uid| KubernetesNames {
                    namespace: "ml".into(),
                    pod: "train-0".into(),
                    pod_uid: uid.into(),
                    container: "main".into(),
                }),
                labels: Default::default(),
            })));
        }
    }

    /// What is published, as (container label, container id's first letter, ms).
    fn published(snapshot: &Snapshot) -> Vec<(String, char, u64)> {
        snapshot
            .container_series
            .iter()
            .map(|series| {
                (
                    series.labels.container.to_string(),
                    series.labels.container_id.chars().next().unwrap_or('?'),
                    series.amounts.busy.0 / 1_000_000,
                )
            })
            .collect()
    }

    /// What is published of allocated time, as (container label, ms).
    fn allocated(snapshot: &Snapshot) -> Vec<(String, u64)> {
        let series = snapshot.container_series.iter();
        series
            .map(|of| {
                let millis = of.amounts.allocated.0 / 1_000_000;
                (of.labels.container.to_string(), millis)
            })
            .collect()
    }

    /// The kubelet lists `ml/train-0/main` with GPU 0, or nobody.
    fn listed(node: &mut Node, is_listed: bool) {
        let container = ContainerAllocation {
            namespace: "ml".into(),
            pod: "train-0".into(),
            container: "main".into(),
            devices: vec![AllocatedDevice {
                resource: "nvidia.com/gpu".into(),
                id: "GPU-0".into(),
                device: Some(DeviceRef::Uuid(gpu())),
            }],
        };
        node.take(Input::Allocations(Allocations {
            at: BootTime(node.now),
            pod: None,
            containers: is_listed.then_some(container).into_iter().collect(),
        }));
    }

    #[test]
    fn a_container_has_an_account_from_its_allocation_on_though_it_never_uses_the_gpu() {
        let mut node = Node::new(0, 0);
        let start = node.fork(7, 10);
        node.named(A, Some(UID));
        node.pass(1_000, &[]);
        assert!(node.commit().container_series.is_empty());
        let pod = PodName {
            namespace: "ml".into(),
            pod: "train-0".into(),
        };
        let effects = node.accountant.take_effects();
        assert!(
            effects.contains(&Effect::ReadAllocations(pod)),
            "{effects:?}"
        );
        listed(&mut node, true);
        let snapshot = node.commit();
        assert_eq!(allocated(&snapshot), [("main".into(), 0)]);
        assert!(snapshot.allocations_known);
        assert_eq!(snapshot.allocations[0].state, AllocationState::Counting);
        assert_eq!(snapshot.allocations[0].devices[0].gpus, [gpu()]);
        node.pass(2_000, &[]);
        assert_eq!(allocated(&node.commit()), [("main".into(), 2_000)]);
        // The kubelet forgets it, and it goes on; it is used, too.
        listed(&mut node, false);
        node.pass(1_000, &[(7, 400)]);
        let snapshot = node.commit();
        assert_eq!(allocated(&snapshot), [("main".into(), 3_000)]);
        assert_eq!(published(&snapshot), [("main".into(), 'a', 400)]);
        assert_eq!(snapshot.allocations[0].state, AllocationState::Forgotten);
        // It ends, and the kubelet lists it for ever.
        node.now += SECOND / 2;
        node.exit(7, start, 10);
        for _ in 0..3 {
            listed(&mut node, true);
            node.pass(1_000, &[]);
            let snapshot = node.commit();
            assert_eq!(allocated(&snapshot), [("main".into(), 3_500)]);
            assert_eq!(snapshot.allocations[0].state, AllocationState::Ended);
        }
        assert_eq!(
            node.commit().namespace_series[0].amounts.allocated,
            Nanos::from_millis(3_500)
        );
    }

    #[test]
    fn labels_of_a_plain_container_get_it_no_allocation() {
        let mut node = Node::new(0, 0);
        // Its cgroup is no pod's, whatever its labels say.
        node.fork(7, 4);
        node.named(B, Some(UID));
        listed(&mut node, true);
        node.pass(1_000, &[]);
        let snapshot = node.commit();
        assert!(snapshot.accounts.is_empty());
        assert_eq!(snapshot.allocations[0].state, AllocationState::NoContainer);
    }

    #[test]
    fn a_container_that_lived_between_two_commits_has_its_allocated_time() {
        let mut node = Node::new(0, 0);
        node.named(A, Some(UID));
        listed(&mut node, true);
        node.pass(1_000, &[]);
        let start = node.fork(7, 10);
        node.now += 300_000_000;
        listed(&mut node, true);
        node.now += 300_000_000;
        node.exit(7, start, 10);
        node.pass(400, &[]);
        assert_eq!(allocated(&node.commit()), [("main".into(), 600)]);
    }

    #[test]
    fn an_old_containers_names_are_asked_for_where_the_kubelet_has_given_something() {
        let mut node = Node::new(0, 0);
        // No event shows it: it began before the agent.
        node.take(Input::Processes(ProcessScan {
            started: BootTime(node.now),
            finished: BootTime(node.now),
            processes: vec![ScannedProcess {
                pid: Pid(7),
                parent: Pid(1),
                start: StartTicks(100),
                cgroups: Arc::new([(0, format!("/kubepods/burstable/pod{UID}/{A}").into())]),
            }],
            skipped: 0,
            unread: Vec::new(),
        }));
        node.pass(1_000, &[]);
        node.commit();
        assert_eq!(node.accountant.take_effects(), []);
        listed(&mut node, true);
        node.commit();
        assert_eq!(node.accountant.take_effects(), [Effect::LookUp(A.into())]);
        node.named(A, Some(UID));
        node.commit();
        assert_eq!(node.accountant.take_effects(), [], "it is answered already");
        node.pass(1_000, &[]);
        assert_eq!(allocated(&node.commit()), [("main".into(), 1_000)]);
    }

    #[test]
    fn a_job_that_dies_before_its_window_is_booked_to_its_container() {
        let mut node = Node::new(0, 0);
        node.named(A, None);
        let start = node.fork(7, 3);
        node.now += 300_000_000;
        node.exit(7, start, 3);
        node.pass(700, &[(7, 300)]);
        assert_eq!(published(&node.commit()), [("web".into(), 'a', 300)]);
    }

    #[test]
    fn a_window_waits_for_the_event_stream_but_not_for_ever() {
        let mut node = Node::new(0, 0);
        node.named(A, None);
        node.now += SECOND;
        let mut event = node.event(7, node.now - SECOND / 2, 3);
        event.at = BootTime(node.now - SECOND / 2);
        let window = GpuWindow {
            gpu: gpu(),
            start: BootTime(node.windowed),
            end: BootTime(node.now),
            busy: Nanos::from_millis(400),
            idle: Nanos::from_millis(600),
            unobserved: vec![],
            credits: vec![Credit {
                pid: Pid(7),
                busy: Nanos::from_millis(400),
            }],
            below_resolution: Nanos::ZERO,
            no_row: Nanos::ZERO,
            engines: vec![],
            energy: None,
            quality: WindowQuality::default(),
            clocks: None,
        };
        node.take(Input::Window(window.clone()));
        assert_eq!(node.commit().gpus[0].windows, 0, "the stream is behind");
        node.now += 50_000_000;
        node.events(vec![KernelEvent::Fork(event)]);
        let snapshot = node.commit();
        assert_eq!(snapshot.gpus[0].windows, 1);
        assert_eq!(published(&snapshot), [("web".into(), 'a', 400)]);

        let mut late = window;
        late.start = BootTime(node.windowed + SECOND);
        late.end = BootTime(node.now + 10 * SECOND);
        late.idle = late.end.since(late.start).minus(late.busy);
        node.take(Input::Window(late));
        assert_eq!(node.commit().gpus[0].windows, 1);
        node.now += 2 * SECOND;
        let snapshot = node.commit();
        assert_eq!(snapshot.gpus[0].windows, 2);
        assert_eq!(snapshot.agent.windows_not_awaited, 1);
    }

    #[test]
    fn held_then_zero_then_whole_and_the_namespace_is_fed() {
        let mut node = Node::new(10_000, 3_000);
        node.fork(7, 10);
        node.accountant.take_effects();
        node.pass(2_000, &[(7, 500)]);
        let snapshot = node.commit();
        assert_eq!(published(&snapshot), []);
        assert_eq!(snapshot.gpus[0].pending, Nanos::from_millis(500));
        assert_eq!(
            node.accountant.take_effects(),
            [Effect::ReadLists, Effect::LookUp(A.into())],
            "the names are asked for again, and who else is on the GPU"
        );
        node.named(A, Some(UID));
        node.pass(1_000, &[(7, 500)]);
        assert_eq!(published(&node.commit()), [("main".into(), 'a', 0)]);
        for _ in 0..2 {
            node.pass(1_000, &[(7, 500)]);
            assert_eq!(published(&node.commit()), [("main".into(), 'a', 0)]);
        }
        node.pass(1_000, &[(7, 500)]);
        let snapshot = node.commit();
        assert_eq!(published(&snapshot), [("main".into(), 'a', 2_500)]);
        assert_eq!(snapshot.gpus[0].pending, Nanos::ZERO);
        let namespace = &snapshot.namespace_series[0];
        assert_eq!(&*namespace.namespace, "ml");
        assert_eq!(namespace.amounts.busy, Nanos::from_millis(2_500));
    }

    #[test]
    fn names_are_asked_for_when_a_container_begins_and_not_when_it_is_charged() {
        let mut node = Node::new(10_000, 0);
        node.fork(7, 10);
        assert_eq!(node.accountant.take_effects(), [Effect::LookUp(A.into())]);
        node.fork(8, 10);
        assert_eq!(node.accountant.take_effects(), [], "asked already");
        assert_eq!(node.accountant.directory.identified(&A.into()), None);
        node.now += SECOND;
        node.named(A, Some(UID));
        let identified = Some(BootTime(node.now));
        assert_eq!(node.accountant.directory.identified(&A.into()), identified);
        node.now += SECOND;
        node.named(A, Some(UID));
        assert_eq!(
            node.accountant.directory.identified(&A.into()),
            identified,
            "the first time counts"
        );

        // Named before it begins, as Docker's events do it.
        node.named(B, None);
        assert_eq!(node.accountant.directory.identified(&B.into()), None);
        node.fork(9, 4);
        assert_eq!(node.accountant.take_effects(), []);
        assert_eq!(
            node.accountant.directory.identified(&B.into()),
            Some(BootTime(node.now))
        );
    }

    #[test]
    fn what_a_scan_shows_is_left_to_the_sources_lists_until_it_is_charged() {
        let mut node = Node::new(10_000, 0);
        node.take(Input::Processes(ProcessScan {
            started: BootTime(node.now),
            finished: BootTime(node.now),
            processes: vec![ScannedProcess {
                pid: Pid(7),
                parent: Pid(1),
                start: StartTicks(100),
                cgroups: Arc::new([(0, format!("/docker/{A}").into())]),
            }],
            skipped: 0,
            unread: Vec::new(),
        }));
        assert_eq!(node.accountant.take_effects(), []);
        node.pass(1_000, &[(7, 500)]);
        node.commit();
        assert!(
            node.accountant
                .take_effects()
                .contains(&Effect::LookUp(A.into()))
        );
    }

    #[test]
    fn an_unknown_container_goes_out_by_id_and_later_by_name_with_nothing_counted_twice() {
        let mut node = Node::new(2_000, 1_000);
        node.health(
            SourceId::Docker,
            SourceState::Down {
                class: "refused".into(),
                reason: "".into(),
                next_retry: None,
            },
        );
        node.fork(7, 10);
        for _ in 0..5 {
            node.pass(1_000, &[(7, 1_000)]);
            node.commit();
        }
        let snapshot = node.commit();
        assert_eq!(published(&snapshot), [(UNRESOLVED.into(), 'a', 5_000)]);
        assert_eq!(&*snapshot.container_series[0].labels.pod_uid, UID);
        assert_eq!(
            snapshot.accounts[0].attribution,
            Attribution::IdOnly {
                reason: IdOnlyReason::SourceDown
            }
        );
        assert!(snapshot.namespace_series.is_empty(), "not settled yet");
        node.named(A, Some(UID));
        node.pass(1_000, &[(7, 1_000)]);
        node.commit();
        node.pass(1_000, &[(7, 1_000)]);
        let snapshot = node.commit();
        assert_eq!(
            published(&snapshot),
            [(UNRESOLVED.into(), 'a', 5_000), ("main".into(), 'a', 2_000)]
        );
        assert_eq!(snapshot.accounts[0].amounts.busy, Nanos::from_secs(7));
        assert_eq!(
            snapshot.namespace_series[0].amounts.busy,
            Nanos::from_secs(7)
        );
        assert_eq!(snapshot.agent.named_late, 1);
    }

    #[test]
    fn a_cgroup_made_elsewhere_with_a_victims_id_bills_its_maker() {
        let mut node = Node::new(0, 0);
        node.named(A, None);
        let victim = node.fork(7, 3);
        for (id, parent, name) in [
            (20, 1, "user.slice"),
            (21, 20, "user@1000.service"),
            (22, 21, "docker"),
            (23, 22, A),
        ] {
            node.events(vec![KernelEvent::Cgroup(CgroupAnnouncement {
                key: CgroupKey { hierarchy: 0, id },
                parent: Some(parent),
                name: name.into(),
            })]);
        }
        node.fork(8, 23);
        node.pass(1_000, &[(7, 250), (8, 500)]);
        let snapshot = node.commit();
        assert_eq!(published(&snapshot), [("web".into(), 'a', 250)]);
        let host = &snapshot.host_series[0];
        assert_eq!(host.unit.as_str(), "user@1000.service");
        assert_eq!(host.amounts.busy, Nanos::from_millis(500));
        assert_eq!(snapshot.agent.cgroups_refused, 1);

        // Nor does it once the victim is dead, for as long as its account is shown.
        node.exit(7, victim, 3);
        for _ in 0..60 {
            node.pass(5_000, &[(8, 1_000)]);
            node.commit();
        }
        let snapshot = node.commit();
        assert_eq!(published(&snapshot), [("web".into(), 'a', 250)]);
        assert_eq!(
            snapshot.host_series[0].amounts.busy,
            Nanos::from_millis(60_500)
        );
    }

    #[test]
    fn failures_are_kept_by_class_and_what_was_never_there_has_none() {
        let mut node = Node::new(0, 0);
        let down = |class: &str| SourceState::Down {
            class: class.into(),
            reason: "".into(),
            next_retry: None,
        };
        node.health(SourceId::Docker, SourceState::Absent);
        node.health(SourceId::Cri, SourceState::Disabled);
        assert_eq!(node.commit().source_errors, []);
        for state in [
            SourceState::Up,
            down("refused"),
            down("timeout"),
            down("refused"),
            SourceState::Up,
        ] {
            node.now += SECOND;
            node.health(SourceId::Docker, state);
        }
        let errors = node.commit().source_errors;
        let rows: Vec<_> = errors
            .iter()
            .map(|book| (&*book.class, book.count, book.last.0 / SECOND))
            .collect();
        assert_eq!(rows, [("refused", 2, 104), ("timeout", 1, 103)]);

        for class in 0..100 {
            node.health(SourceId::Cri, down(&format!("c{class}")));
        }
        let errors = node.commit().source_errors;
        let of_cri = || errors.iter().filter(|book| book.source == SourceId::Cri);
        assert_eq!(of_cri().count(), MAX_ERROR_CLASSES + 1);
        assert_eq!(of_cri().map(|book| book.count).sum::<u64>(), 100);
    }

    #[test]
    fn the_innermost_pays_where_configured_once_a_source_vouches_for_it() {
        for payer in [PayerRule::Outermost, PayerRule::Innermost] {
            let mut node = Node::new(0, 0);
            let settings = Settings {
                payer,
                ..node.accountant.settings
            };
            let gpus = node.accountant.ledger.books().iter();
            let gpus = gpus.map(|book| book.gpu.clone()).collect();
            node.accountant = Accountant::new(settings, clock(node.now));
            node.take(Input::Gpus(gpus));
            for (id, parent, name) in [
                (1, None, ""),
                (2, Some(1), "docker"),
                (3, Some(2), A),
                (4, Some(3), "kubepods"),
                (5, Some(4), &format!("pod{UID}")),
                (6, Some(5), B),
            ] {
                node.events(vec![KernelEvent::Cgroup(CgroupAnnouncement {
                    key: CgroupKey { hierarchy: 0, id },
                    parent,
                    name: name.into(),
                })]);
            }
            node.named(A, None);
            node.fork(7, 6);
            node.pass(1_000, &[(7, 250)]);
            assert_eq!(published(&node.commit()), [("web".into(), 'a', 250)]);
            let asked = node.accountant.take_effects();
            let asks = asked.contains(&Effect::LookUp(B.into()));
            assert_eq!(asks, payer == PayerRule::Innermost, "{asked:?}");
            // An answer about another pod does not vouch.
            node.named(B, Some("99999999-2222-3333-4444-555555555555"));
            node.pass(1_000, &[(7, 250)]);
            assert_eq!(published(&node.commit()), [("web".into(), 'a', 500)]);
            node.named(B, Some(UID));
            node.pass(1_000, &[(7, 250)]);
            let expected = match payer {
                PayerRule::Outermost => vec![("web".into(), 'a', 750)],
                PayerRule::Innermost => {
                    vec![("main".into(), 'b', 250), ("web".into(), 'a', 500)]
                }
            };
            let mut found = published(&node.commit());
            found.sort();
            assert_eq!(found, expected, "{payer:?}");
        }
    }

    #[test]
    fn a_container_that_is_restarted_keeps_its_account() {
        let mut node = Node::new(0, 0);
        node.named(A, None);
        let first = node.fork(7, 3);
        node.pass(1_000, &[(7, 250)]);
        node.commit();
        node.exit(7, first, 3);
        for _ in 0..30 {
            node.pass(5_000, &[]);
            node.commit();
        }
        // The same id, the same path, another directory.
        node.events(vec![KernelEvent::Cgroup(CgroupAnnouncement {
            key: CgroupKey {
                hierarchy: 0,
                id: 30,
            },
            parent: Some(2),
            name: A.into(),
        })]);
        node.fork(8, 30);
        node.pass(1_000, &[(8, 500)]);
        let snapshot = node.commit();
        assert_eq!(published(&snapshot), [("web".into(), 'a', 750)]);
        assert_eq!(snapshot.agent.cgroups_refused, 0);
    }

    #[test]
    fn what_runs_in_a_pods_own_cgroup_is_booked_to_the_pod() {
        let mut node = Node::new(1_000, 0);
        node.fork(7, 9);
        node.fork(8, 10);
        node.pass(1_000, &[(7, 250), (8, 500)]);
        node.commit();
        node.named(A, Some(UID));
        node.commit();
        let snapshot = node.commit();
        assert_eq!(
            published(&snapshot),
            [("(pod)".into(), '(', 250), ("main".into(), 'a', 500)]
        );
        assert_eq!(&*snapshot.container_series[0].labels.pod, "train-0");
        assert_eq!(&*snapshot.container_series[0].labels.pod_uid, UID);
    }

    #[test]
    fn what_a_container_never_named_used_reaches_the_unresolved_namespace_when_it_closes() {
        let mut node = Node::new(1_000, 0);
        let start = node.fork(7, 3);
        node.pass(1_000, &[(7, 1_000)]);
        node.commit();
        node.exit(7, start, 3);
        let mut last = node.commit();
        for _ in 0..1_300 {
            node.pass(1_000, &[]);
            last = node.commit();
        }
        assert!(last.accounts.is_empty() && last.container_series.is_empty());
        assert_eq!(&*last.namespace_series[0].namespace, UNRESOLVED);
        assert_eq!(last.namespace_series[0].amounts.busy, Nanos::from_secs(1));
        assert_eq!(last.gpus[0].busy, Nanos::from_secs(1));
    }

    /// An instance of a GPU in MIG mode, of this profile.
    fn instance(profile: &str) -> GpuInfo {
        GpuInfo {
            uuid: gpu(),
            index: 0,
            model: "test".into(),
            driver: "1".into(),
            simulated: true,
            minor: None,
            memory_total: None,
            mig: Some(MigInfo {
                parent: "GPU-0".into(),
                profile: profile.into(),
                gpu_instance: 1,
                compute_instance: 0,
            }),
            engines: vec![],
        }
    }

    #[test]
    fn an_instance_s_time_is_its_container_s_and_accounts_end_with_its_generation() {
        let mut node = Node::new(0, 0);
        node.named(A, None);
        node.fork(7, 3);
        node.take(Input::Gpus(vec![instance("1g.10gb")]));
        node.take(Input::GpuProcesses(GpuProcesses {
            gpu: gpu(),
            at: BootTime(node.now),
            processes: vec![GpuProcess {
                pid: Pid(7),
                memory: None,
                mps: MpsRole::None,
            }],
            memory_used: None,
        }));
        node.measured(1_000, 400);
        node.commit();
        let snapshot = node.commit();
        assert_eq!(published(&snapshot), [("web".into(), 'a', 400)]);
        let views = node.accountant.gpu_processes(BootTime(node.now));
        assert_eq!(
            (views.len(), views[0].pid, views[0].alive),
            (1, Pid(7), true)
        );

        // The same again is no news; another profile is another instance.
        node.take(Input::Gpus(vec![instance("1g.10gb")]));
        assert_eq!(node.commit().accounts.len(), 1);
        node.take(Input::Gpus(vec![instance("2g.20gb")]));
        let snapshot = node.commit();
        assert!(snapshot.accounts.is_empty() && snapshot.container_series.is_empty());
        assert_eq!(snapshot.gpus.len(), 1, "the book is about the UUID");
        assert_eq!(snapshot.gpus[0].busy, Nanos::from_millis(400));
        assert_eq!(
            snapshot.namespace_series[0].amounts.busy,
            Nanos::from_millis(400)
        );
        node.measured(1_000, 300);
        node.commit();
        let snapshot = node.commit();
        assert_eq!(published(&snapshot), [("web".into(), 'a', 300)]);
        assert_eq!(
            snapshot.namespace_series[0].amounts.busy,
            Nanos::from_millis(700)
        );
    }

    #[test]
    fn the_accounts_of_a_gpu_that_is_listed_no_more_close_after_ten_minutes() {
        let mut node = Node::new(0, 0);
        let listed = |node: &mut Node, missing: bool| {
            let mut gpus = vec![instance("1g.10gb")];
            gpus[0].mig = None;
            gpus.truncate(usize::from(!missing));
            node.take(Input::Gpus(gpus));
        };
        node.named(A, None);
        node.fork(7, 3);
        node.pass(1_000, &[(7, 500)]);
        node.commit();
        // Away and back again: nothing closes.
        listed(&mut node, true);
        node.pass(500_000, &[]);
        listed(&mut node, false);
        node.pass(500_000, &[]);
        assert_eq!(node.commit().accounts.len(), 1);
        listed(&mut node, true);
        node.pass(599_000, &[]);
        // Its container lives on.
        assert_eq!(node.commit().accounts.len(), 1);
        listed(&mut node, true);
        node.pass(1_000, &[]);
        let snapshot = node.commit();
        assert!(snapshot.accounts.is_empty() && snapshot.container_series.is_empty());
        assert_eq!(snapshot.gpus[0].busy, Nanos::from_millis(500));
    }

    #[test]
    fn who_was_given_all_gpus_is_not_left_with_instances_that_were_destroyed() {
        let mut node = Node::new(0, 0);
        let whole = GpuInfo {
            mig: None,
            ..instance("")
        };
        let part = GpuInfo {
            uuid: "MIG-0".into(),
            ..instance("1g.10gb")
        };
        node.take(Input::Gpus(vec![whole.clone(), part]));
        node.fork(7, 10);
        node.named(A, Some(UID));
        node.pass(1_000, &[]);
        node.commit();
        let container = ContainerAllocation {
            namespace: "ml".into(),
            pod: "train-0".into(),
            container: "main".into(),
            devices: vec![AllocatedDevice {
                resource: "nvidia.com/gpu".into(),
                id: "all".into(),
                device: Some(DeviceRef::All),
            }],
        };
        node.take(Input::Allocations(Allocations {
            at: BootTime(node.now),
            pod: None,
            containers: vec![container],
        }));
        let given = |node: &mut Node| {
            node.pass(1_000, &[]);
            let snapshot = node.commit();
            let accounts = snapshot.accounts.iter();
            let accounts = accounts.map(|of| (of.gpu.to_string(), of.amounts.allocated.0 / SECOND));
            let mut accounts: Vec<_> = accounts.collect();
            accounts.sort();
            let devices = &snapshot.allocations[0].devices;
            let gpus: Vec<String> = devices[0].gpus.iter().map(ToString::to_string).collect();
            (gpus, accounts)
        };
        let amount = |gpu: &str, seconds| (gpu.to_owned(), seconds);
        let expected = (vec!["MIG-0".to_owned()], vec![amount("MIG-0", 1)]);
        assert_eq!(given(&mut node), expected);
        node.take(Input::Gpus(vec![whole]));
        given(&mut node);
        let expected = (
            vec!["GPU-0".to_owned()],
            vec![amount("GPU-0", 1), amount("MIG-0", 1)],
        );
        assert_eq!(given(&mut node), expected);
    }

    #[test]
    fn what_the_kubelet_says_of_a_gpu_that_is_gone_opens_no_account() {
        let mut node = Node::new(0, 0);
        node.fork(7, 10);
        node.named(A, Some(UID));
        node.pass(1_000, &[]);
        node.commit();
        listed(&mut node, true);
        node.pass(1_000, &[]);
        assert_eq!(allocated(&node.commit()), [("main".into(), 1_000)]);
        node.take(Input::Gpus(vec![]));
        node.now += 600 * SECOND;
        for _ in 0..3 {
            listed(&mut node, true);
            node.now += SECOND;
            let snapshot = node.commit();
            assert!(snapshot.container_series.is_empty(), "{snapshot:?}");
        }
    }

    #[test]
    fn the_driver_s_accounting_tells_of_peaks_and_is_no_part_of_the_books() {
        let mut node = Node::new(0, 0);
        node.named(A, None);
        let start = node.fork(7, 3);
        node.pass(1_000, &[(7, 500)]);
        node.now += SECOND;
        node.exit(7, start, 3);
        let mut accounted = Accounted {
            gpu: gpu(),
            pid: Pid(7),
            start_us: (clock(node.now).wall.0 - 3 * SECOND / 2) / 1000,
            lifetime: Nanos::SECOND,
            memory_peak: Some(4_096),
            busy: Some((Nanos::from_millis(400), Nanos::from_millis(500))),
        };
        node.take(Input::Accounted(accounted.clone()));
        let snapshot = node.commit();
        assert_eq!(snapshot.accounts[0].memory_peak, Some(4_096));
        assert_eq!(snapshot.accounts[0].amounts.busy, Nanos::from_millis(500));
        let expected = AccountingBook {
            processes: 1,
            by_driver: Nanos::from_millis(400),
            by_windows: Nanos::from_millis(500),
        };
        assert_eq!(snapshot.gpus[0].accounting, Some(expected));
        // A smaller peak, of a process that nobody knows, without a sum.
        accounted.pid = Pid(1_234);
        accounted.busy = None;
        accounted.start_us = u64::MAX;
        node.take(Input::Accounted(accounted));
        let snapshot = node.commit();
        assert_eq!(snapshot.accounts[0].memory_peak, Some(4_096));
        assert_eq!(snapshot.gpus[0].accounting, Some(expected));
    }

    #[test]
    fn what_the_mps_server_is_named_for_is_its_clients() {
        let mut node = Node::new(0, 0);
        node.named(A, None);
        node.named(B, None);
        node.fork(1_000, 6);
        node.fork(7, 3);
        node.fork(8, 4);
        let lists = |node: &mut Node, clients: &[u32]| {
            let process = |pid, mps| GpuProcess {
                pid: Pid(pid),
                memory: Some(4_096),
                mps,
            };
            let server = process(1_000, MpsRole::Server);
            let clients = clients.iter().map(|&pid| process(pid, MpsRole::Client));
            node.take(Input::GpuProcesses(GpuProcesses {
                gpu: gpu(),
                at: BootTime(node.now),
                processes: std::iter::once(server).chain(clients).collect(),
                memory_used: None,
            }));
        };
        lists(&mut node, &[7]);
        node.pass(1_000, &[(1_000, 400)]);
        node.commit();
        let snapshot = node.commit();
        assert_eq!(published(&snapshot), [("web".into(), 'a', 400)]);
        assert_eq!(snapshot.accounts[0].memory, Some(8_192));
        assert!(snapshot.host_series.is_empty());
        lists(&mut node, &[7, 8]);
        node.pass(1_000, &[(1_000, 300), (8, 100)]);
        let snapshot = node.commit();
        let unowned = snapshot.gpus[0]
            .unattributed
            .iter()
            .find(|(reason, _)| *reason == UnattributedReason::MpsServer);
        assert_eq!(unowned.unwrap().1, Nanos::from_millis(300));
    }

    #[test]
    fn the_last_commit_leaves_no_window_waiting() {
        let mut node = Node::new(0, 0);
        node.named(A, None);
        node.fork(7, 3);
        // Its events have not come.
        node.window(1_000, &[(7, 500)]);
        assert_eq!(node.commit().gpus[0].windows, 0);
        node.accountant.await_nothing();
        let snapshot = node.accountant.commit(clock(node.now));
        assert_eq!(published(&snapshot), [("web".into(), 'a', 500)]);
    }

    #[test]
    fn memory_that_nobody_reads_any_more_is_not_shown_for_ever() {
        let mut node = Node::new(0, 0);
        node.named(A, None);
        node.fork(7, 3);
        let at = BootTime(node.now);
        node.take(Input::GpuProcesses(GpuProcesses {
            gpu: gpu(),
            at,
            processes: vec![GpuProcess {
                pid: Pid(7),
                memory: Some(4096),
                mps: MpsRole::None,
            }],
            memory_used: Some(8192),
        }));
        let snapshot = node.commit();
        assert_eq!(snapshot.container_series[0].memory, Some(4096));
        assert_eq!(snapshot.gpus[0].memory_used, Some(8192));
        node.now += 180 * SECOND;
        let snapshot = node.commit();
        assert_eq!(snapshot.container_series[0].memory, None);
        assert_eq!(snapshot.gpus[0].memory_used, None);
    }

    impl Node {
        /// Reads the process lists now: `(pid, memory)`.
        fn list(&mut self, processes: &[(u32, u64)]) {
            let processes = processes.iter().map(|&(pid, memory)| GpuProcess {
                pid: Pid(pid),
                memory: Some(memory),
                mps: MpsRole::None,
            });
            self.take(Input::GpuProcesses(GpuProcesses {
                gpu: gpu(),
                at: BootTime(self.now),
                processes: processes.collect(),
                memory_used: None,
            }));
        }

        fn open(&mut self, pid: u32, start: u64, cgroup: u64, minor: u32) {
            let process = self.event(pid, start, cgroup);
            self.events(vec![KernelEvent::Open(DeviceOpen {
                process,
                device: DeviceNumber {
                    major: DeviceNumber::NVIDIA,
                    minor,
                },
            })]);
        }
    }

    #[test]
    fn held_time_and_memory_go_by_the_lists_and_end_with_the_process() {
        let mut node = Node::new(0, 0);
        node.accountant.settings.own_pid = Some(Pid(9));
        node.named(A, None);
        node.fork(9, 4);
        node.list(&[]);
        node.pass(500, &[]);
        // Half a second after the list before it is born, and a quarter later it is named.
        let first = node.fork(7, 3);
        node.pass(250, &[]);
        node.list(&[(7, 1_000), (9, 5)]);
        node.pass(1_000, &[]);
        let second = node.fork(8, 3);
        node.list(&[(7, 4_000), (8, 500), (9, 5)]);
        node.pass(1_000, &[]);
        node.commit();
        // One ends unlisted, and the list that lacks it is read before its exit is heard of.
        node.now += SECOND / 2;
        let died = node.event(7, first, 3);
        node.now += SECOND / 2;
        node.list(&[(8, 500)]);
        node.events(vec![KernelEvent::Exit(died)]);
        node.pass(1_000, &[]);
        node.exit(8, second, 3);
        node.pass(1_000, &[]);
        let snapshot = node.commit();
        // The agent itself has no account, whatever a list says.
        let [account] = &snapshot.accounts[..] else {
            panic!("{:?}", snapshot.accounts);
        };
        assert_eq!(account.amounts.held, Nanos::from_millis(4_250));
        // 1,000 for a second, then 4,000 for one and a half, and 500 for three.
        assert_eq!(account.amounts.memory.0, 1_000 + 6_000 + 1_500);
        assert_eq!(account.memory_peak, Some(4_500));
        assert_eq!(account.processes_started, 2);
        assert_eq!(account.amounts.busy, Nanos::ZERO, "held is not busy");
        assert_eq!(
            snapshot.container_series[0].amounts.held,
            account.amounts.held
        );
    }

    #[test]
    fn held_time_waits_for_the_events_but_not_for_ever() {
        let mut node = Node::new(0, 0);
        node.named(A, None);
        node.fork(7, 3);
        node.list(&[(7, 0)]);
        let held = |node: &mut Node| node.commit().accounts[0].amounts.held;
        node.now += SECOND;
        assert_eq!(held(&mut node), Nanos::ZERO, "its exit may be under way");
        node.now += 2 * SECOND;
        assert_eq!(held(&mut node), Nanos::SECOND);
        node.events(vec![]);
        assert_eq!(held(&mut node), Nanos::from_secs(3));
    }

    #[test]
    fn an_open_has_the_lists_read_and_bounds_what_has_no_sample() {
        let mut node = Node::new(0, 0);
        node.accountant.settings.own_pid = Some(Pid(9));
        node.named(A, None);
        node.commit();
        node.accountant.take_effects();
        node.open(9, 1, 6, 0);
        assert_eq!(node.accountant.take_effects(), []);

        // Its birth was lost; the open makes it known.
        let start = node.now;
        node.now += SECOND / 10;
        node.open(7, start, 3, 255);
        node.open(7, start, 3, 2);
        assert_eq!(node.accountant.take_effects(), [Effect::ReadLists]);
        let sampled = node.fork(8, 3);
        node.open(8, sampled, 3, 2);
        node.now += SECOND / 5;
        node.exit(7, start, 3);
        node.exit(8, sampled, 3);
        node.pass(700, &[(8, 100)]);
        let snapshot = node.commit();
        assert_eq!(
            (snapshot.agent.gpu_opens, snapshot.agent.gpu_opens_unsampled),
            (3, 0),
            "a sample may still come"
        );
        for _ in 0..20 {
            node.pass(1_000, &[]);
            node.commit();
        }
        let snapshot = node.commit();
        assert_eq!(
            (snapshot.agent.gpu_opens, snapshot.agent.gpu_opens_unsampled),
            (3, 1)
        );
        // What was booked is the sample's, and the bound is told of.
        assert_eq!(snapshot.accounts[0].amounts.busy, Nanos::from_millis(100));
        let story = node.accountant.explain(A, clock(node.now)).expect("known");
        let [told] = &story.owners[0].unsampled[..] else {
            panic!("{story:?}");
        };
        assert_eq!((told.pid, &*told.device), (Pid(7), "nvidia2"));
        assert_eq!(told.at_most, Nanos::from_millis(200));
    }

    #[test]
    fn a_host_process_has_a_family_of_its_own() {
        let mut node = Node::new(0, 0);
        node.fork(7, 6);
        node.pass(1_000, &[(7, 250)]);
        let snapshot = node.commit();
        assert!(snapshot.container_series.is_empty());
        assert_eq!(snapshot.host_series[0].unit.as_str(), "sshd.service");
        assert_eq!(
            snapshot.host_series[0].amounts.busy,
            Nanos::from_millis(250)
        );
    }

    #[test]
    fn lost_events_lead_to_a_scan_and_the_scan_mends_the_table() {
        let mut node = Node::new(0, 0);
        node.named(A, None);
        node.take(Input::Kernel(KernelBatch {
            events: vec![],
            drained_through: BootTime(node.now),
            counters: EventCounters {
                seen: 10,
                submitted: 9,
                lost: 1,
                undecodable: 0,
                skipped: 0,
            },
        }));
        assert_eq!(
            node.accountant.take_effects(),
            [Effect::AnnounceAnew, Effect::Rescan]
        );
        node.pass(1_000, &[(7, 500)]);
        // No scan comes: the window is not held for ever.
        node.now += 2 * SECOND;
        assert_eq!(
            node.commit().gpus[0].coverage.unattributed,
            [(UnattributedReason::UnknownPid, Nanos::from_millis(500))]
        );
        node.take(Input::Processes(ProcessScan {
            started: BootTime(node.now),
            finished: BootTime(node.now),
            processes: vec![ScannedProcess {
                pid: Pid(7),
                parent: Pid(1),
                start: StartTicks(100),
                cgroups: Arc::new([(0, format!("/docker/{A}").into())]),
            }],
            skipped: 0,
            unread: Vec::new(),
        }));
        node.pass(1_000, &[(7, 500)]);
        assert_eq!(published(&node.commit()), [("web".into(), 'a', 500)]);
    }

    #[test]
    fn a_window_after_a_loss_waits_for_the_scan_that_mends_it() {
        let mut node = Node::new(0, 0);
        node.named(A, None);
        let mut counters = node.accountant.stream.counters();
        counters.lost += 1;
        node.take(Input::Kernel(KernelBatch {
            events: vec![],
            drained_through: BootTime(node.now),
            counters,
        }));
        node.pass(1_000, &[(7, 500)]);
        assert_eq!(node.commit().gpus[0].windows, 0);
        node.take(Input::Processes(ProcessScan {
            started: BootTime(node.now),
            finished: BootTime(node.now),
            processes: vec![ScannedProcess {
                pid: Pid(7),
                parent: Pid(1),
                start: StartTicks(100),
                cgroups: Arc::new([(0, format!("/docker/{A}").into())]),
            }],
            skipped: 0,
            unread: Vec::new(),
        }));
        assert_eq!(published(&node.commit()), [("web".into(), 'a', 500)]);
    }

    #[test]
    fn what_ran_before_the_agent_waits_for_the_first_scan_and_is_not_unknown() {
        let mut node = Node::new(0, 0);
        node.named(A, None);
        node.health(SourceId::Procfs, SourceState::Absent);
        node.health(SourceId::Kernel, SourceState::Absent);
        node.window(300, &[(7, 200)]);
        assert_eq!(node.commit().gpus[0].windows, 0, "nothing is attached yet");
        node.health(SourceId::Kernel, SourceState::Up);
        node.events(vec![]);
        assert_eq!(node.commit().gpus[0].windows, 0, "nobody has looked yet");
        let scan = node.scan(&[(7, SECOND, &format!("/docker/{A}"))]);
        node.take(scan);
        assert_eq!(published(&node.commit()), [("web".into(), 'a', 200)]);
        node.pass(1_000, &[(7, 500)]);
        assert_eq!(published(&node.commit()), [("web".into(), 'a', 700)]);
    }

    #[test]
    fn a_first_scan_that_never_comes_holds_nothing_for_ever() {
        let mut node = Node::new(0, 0);
        node.health(SourceId::Procfs, SourceState::Absent);
        node.pass(1_000, &[(7, 500)]);
        assert_eq!(node.commit().gpus[0].windows, 0);
        node.now += 2 * SECOND;
        let snapshot = node.commit();
        assert_eq!(snapshot.gpus[0].windows, 1);
        assert_eq!(snapshot.agent.windows_not_awaited, 1);
    }

    #[test]
    fn memory_beyond_all_sense_stops_nothing() {
        let mut node = Node::new(0, 0);
        node.fork(7, 3);
        node.fork(8, 3);
        let process = |pid| GpuProcess {
            pid: Pid(pid),
            memory: Some(u64::MAX - 1),
            mps: MpsRole::None,
        };
        node.take(Input::GpuProcesses(GpuProcesses {
            gpu: gpu(),
            at: BootTime(node.now),
            processes: vec![process(7), process(8)],
            memory_used: None,
        }));
        assert_eq!(node.commit().accounts[0].memory, Some(u64::MAX));
    }

    #[test]
    fn a_source_that_is_down_again_and_again_is_down_since_the_first_time() {
        let mut node = Node::new(0, 0);
        let down = |reason: &str| SourceState::Down {
            class: "permission".into(),
            reason: reason.into(),
            next_retry: None,
        };
        let began = node.now;
        for reason in ["one", "one", "another"] {
            node.health(SourceId::Kernel, down(reason));
            node.now += SECOND;
        }
        let health = &node.commit().sources[0];
        assert_eq!(health.since, BootTime(began));
        assert_eq!(health.state, down("another"));
        let up = node.now;
        node.health(SourceId::Kernel, SourceState::Up);
        assert_eq!(node.commit().sources[0].since, BootTime(up));
    }

    #[test]
    fn a_cgroup_that_only_a_scan_can_name_is_not_unknown_for_the_window_before() {
        let mut node = Node::new(0, 0);
        node.named(A, None);
        // The announcement of cgroup 99 was lost.
        let start = node.fork(7, 99);
        node.now += SECOND / 2;
        node.take(Input::Processes(ProcessScan {
            started: BootTime(node.now),
            finished: BootTime(node.now),
            processes: vec![ScannedProcess {
                pid: Pid(7),
                parent: Pid(1),
                start: BootTime(start).into(),
                cgroups: Arc::new([(0, format!("/docker/{A}").into())]),
            }],
            skipped: 0,
            unread: Vec::new(),
        }));
        node.pass(500, &[(7, 500)]);
        assert_eq!(published(&node.commit()), [("web".into(), 'a', 500)]);
    }

    #[test]
    fn a_storm_of_short_processes_does_not_turn_a_lasting_one_away() {
        let mut node = Node::new(0, 0);
        node.accountant.processes = ProcessTable::new(1_000);
        for _ in 0..10 {
            for pid in 100..300 {
                let start = node.fork(pid, 6);
                node.exit(pid, start, 6);
                node.now += 1_000_000;
            }
            node.pass(1_000, &[]);
            node.commit();
        }
        node.named(A, None);
        node.fork(7, 3);
        node.pass(1_000, &[(7, 500)]);
        let snapshot = node.commit();
        assert_eq!(published(&snapshot), [("web".into(), 'a', 500)]);
        assert_eq!(snapshot.agent.table_overflows, 0);
    }

    #[test]
    fn no_charge_is_older_than_its_account_though_a_list_opened_it() {
        let mut node = Node::new(0, 0);
        node.named(A, None);
        node.fork(7, 3);
        node.pass(1_000, &[]);
        node.commit();
        let through = clock(node.now).wall;
        node.now += SECOND / 2;
        node.take(Input::GpuProcesses(GpuProcesses {
            gpu: gpu(),
            at: BootTime(node.now),
            processes: vec![GpuProcess {
                pid: Pid(7),
                memory: None,
                mps: MpsRole::None,
            }],
            memory_used: None,
        }));
        node.commit();
        // The window begins before the list was read.
        node.pass(500, &[(7, 900)]);
        assert_eq!(node.commit().container_series[0].start, through);
    }

    #[test]
    fn a_container_is_not_left_in_the_pod_that_a_users_own_manager_showed_it_in_first() {
        let mut node = Node::new(0, 0);
        let other = "99999999-2222-3333-4444-555555555555";
        let users = "/user.slice/user-1000.slice/user@1000.service";
        node.take(Input::Processes(ProcessScan {
            started: BootTime(node.now),
            finished: BootTime(node.now),
            processes: vec![ScannedProcess {
                pid: Pid(20),
                parent: Pid(1),
                start: StartTicks(9_000),
                cgroups: [(0, Arc::from(format!("{users}/kubepods/pod{other}/{A}")))].into(),
            }],
            skipped: 0,
            unread: Vec::new(),
        }));
        node.named(A, Some(UID));
        node.fork(7, 10);
        node.pass(1_000, &[(7, 500)]);
        let snapshot = node.commit();
        let [account] = &snapshot.accounts[..] else {
            panic!("one account: {:?}", snapshot.accounts);
        };
        let labels = &account.labels;
        assert_eq!((&*labels.namespace, &*labels.pod_uid), ("ml", UID));
        assert_eq!(snapshot.agent.cgroups_refused, 1);
    }

    /// A pod whose sandbox has no cgroup below the pod's: gVisor's. Nothing of it is in a container.
    #[test]
    fn a_pod_whose_processes_are_in_its_own_cgroup_is_named_by_whoever_knows_the_pod() {
        let names = |uid: &str| KubernetesNames {
            namespace: "ml".into(),
            pod: "train-0".into(),
            pod_uid: uid.into(),
            container: POD_ITSELF.into(),
        };
        let sandbox = IdentityUpdate::Found(ContainerIdentity {
            runtime: Some("containerd".into()),
            id: A.into(),
            source: IdentitySource::Cri,
            name: Some("train-0".into()),
            image: Some(NONE.into()),
            kubernetes: Some(names(UID)),
            labels: Default::default(),
        });
        let folder = IdentityUpdate::FoundPod {
            source: IdentitySource::KubeletLogs,
            names: names(UID),
        };
        for (source, answer) in [
            (IdentitySource::Cri, sandbox),
            (IdentitySource::KubeletLogs, folder),
        ] {
            let mut node = Node::new(10_000, 0);
            node.health(SourceId::KubeletLogs, SourceState::Up);
            node.fork(7, 9);
            node.pass(1_000, &[(7, 500)]);
            node.commit();
            let asked = Effect::LookUpPod(UID.into());
            assert!(node.accountant.take_effects().contains(&asked));
            node.take(Input::Identity(answer));
            let snapshot = node.commit();
            let account = &snapshot.accounts[0];
            let labels = &account.labels;
            let found = [&labels.namespace, &labels.pod, &labels.container].map(|of| &**of);
            assert_eq!(found, ["ml", "train-0", POD_ITSELF]);
            assert_eq!((&*labels.pod_uid, &*labels.container_id), (UID, NONE));
            assert_eq!(account.attribution, Attribution::Named { source });
            assert_eq!(&*account.image, NONE);
            assert_eq!(&*snapshot.namespace_series[0].namespace, "ml");
            node.accountant.take_effects();
            node.pass(3_000, &[]);
            node.commit();
            assert!(!node.accountant.take_effects().contains(&asked));
        }
    }

    /// A user's process sits on the uid of a pod whose names are known, and the pod starts.
    #[test]
    fn a_pod_does_not_pay_for_who_sat_on_its_uid_before() {
        let mut node = Node::new(10_000, 0);
        node.health(SourceId::KubeletLogs, SourceState::Up);
        let users = "/user.slice/user-1000.slice/user@1000.service";
        let usurper = node.scan(&[(20, 900_000_000, &format!("{users}/kubepods/pod{UID}"))]);
        node.take(usurper);
        let names = KubernetesNames {
            namespace: "ml".into(),
            pod: "train-0".into(),
            pod_uid: UID.into(),
            container: POD_ITSELF.into(),
        };
        let found = IdentityUpdate::FoundPod {
            source: IdentitySource::KubeletLogs,
            names,
        };
        node.pass(1_000, &[(20, 700)]);
        node.commit();
        node.take(Input::Identity(found.clone()));
        let snapshot = node.commit();
        assert_eq!(&*snapshot.accounts[0].labels.namespace, UNRESOLVED);

        node.fork(7, 9);
        node.pass(1_000, &[(7, 200), (20, 100)]);
        node.commit();
        node.take(Input::Identity(found));
        let snapshot = node.commit();
        let busy = |namespace: &str| -> Vec<u64> {
            let accounts = snapshot.accounts.iter();
            accounts
                .filter(|account| &*account.labels.namespace == namespace)
                .map(|account| account.amounts.busy.0 / 1_000_000)
                .collect()
        };
        assert_eq!((busy("ml"), busy(UNRESOLVED)), (vec![200], vec![]));
        let fed = |namespace: &str| {
            let mut all = snapshot.namespace_series.iter();
            let found = all.find(|series| &*series.namespace == namespace);
            found.map(|series| series.amounts.busy.0 / 1_000_000)
        };
        assert_eq!((fed("ml"), fed(UNRESOLVED)), (Some(200), Some(700)));
        assert_eq!(snapshot.host_series.len(), 1, "he pays for himself now");
    }

    #[test]
    fn why_a_pod_has_no_names_is_told_as_it_is() {
        let down = SourceState::Down {
            class: "refused".into(),
            reason: "".into(),
            next_retry: None,
        };
        let rows = [
            (vec![], IdOnlyReason::NoSource),
            (
                vec![(SourceId::Cri, SourceState::Up)],
                IdOnlyReason::NotFound,
            ),
            (
                vec![(SourceId::KubeletLogs, SourceState::Up)],
                IdOnlyReason::Timeout,
            ),
            (
                vec![
                    (SourceId::KubeletLogs, SourceState::Up),
                    (SourceId::Cri, down),
                ],
                IdOnlyReason::SourceDown,
            ),
        ];
        for (states, reason) in rows {
            let mut node = Node::new(0, 0);
            for (source, state) in states {
                node.health(source, state);
            }
            node.fork(7, 9);
            node.pass(1_000, &[(7, 500)]);
            let snapshot = node.commit();
            let found = snapshot.accounts[0].attribution;
            assert_eq!(found, Attribution::IdOnly { reason });
        }
    }

    #[test]
    fn an_image_that_is_learnt_after_the_names_is_told() {
        let mut node = Node::new(0, 0);
        let identity = |source, image: Option<&str>| {
            Input::Identity(IdentityUpdate::Found(ContainerIdentity {
                runtime: None,
                id: A.into(),
                source,
                name: None,
                image: image.map(Into::into),
                kubernetes: Some(KubernetesNames {
                    namespace: "ml".into(),
                    pod: "train-0".into(),
                    pod_uid: UID.into(),
                    container: "main".into(),
                }),
                labels: Default::default(),
            }))
        };
        node.take(identity(IdentitySource::KubeletLogs, None));
        node.fork(7, 10);
        node.pass(1_000, &[(7, 500)]);
        let first = node.commit();
        assert_eq!(&*first.container_series[0].image, UNRESOLVED);
        node.take(identity(IdentitySource::Bundle, Some("cuda:12")));
        let then = node.commit();
        let (first, then) = (&first.container_series[0], &then.container_series[0]);
        assert_eq!(&*then.image, "cuda:12");
        // It tells more of the same series.
        assert_eq!(
            (&then.labels, then.start, then.attribution),
            (&first.labels, first.start, first.attribution)
        );
        // What is told stays, whoever tells something else.
        node.take(identity(IdentitySource::Cri, Some("other:1")));
        assert_eq!(&*node.commit().container_series[0].image, "cuda:12");
    }

    #[test]
    fn namespaces_beyond_the_bound_are_counted_and_go_to_the_overflow() {
        let mut node = Node::new(0, 0);
        node.accountant.settings.namespace_limit = 1;
        node.named(A, Some(UID));
        node.named(B, None);
        node.fork(7, 10);
        node.pass(1_000, &[(7, 500)]);
        node.commit();
        node.fork(8, 4);
        node.pass(1_000, &[(8, 250)]);
        let snapshot = node.commit();
        let namespaces: Vec<_> = snapshot
            .namespace_series
            .iter()
            .map(|series| (&*series.namespace, series.amounts.busy.0 / 1_000_000))
            .collect();
        assert_eq!(namespaces, [(OVERFLOW, 250), ("ml", 500)]);
        assert!(snapshot.agent.table_overflows > 0);
    }

    #[test]
    fn a_pid_that_nothing_shows_is_not_looked_for_every_second() {
        let mut node = Node::new(0, 0);
        let rescans = |node: &mut Node, seconds: u64, pid: u32| {
            (0..seconds)
                .map(|_| {
                    node.pass(1_000, &[(pid, 100)]);
                    node.commit();
                    let effects = node.accountant.take_effects();
                    effects.iter().filter(|e| **e == Effect::Rescan).count()
                })
                .sum::<usize>()
        };
        assert_eq!(rescans(&mut node, 20, 7), 2);
        assert_eq!(rescans(&mut node, 1, 8), 1, "another one is, at once");
    }

    #[test]
    fn a_scan_of_what_events_have_shown_is_no_move() {
        let mut node = Node::new(0, 0);
        node.named(A, None);
        let start = node.fork(7, 3);
        node.now += SECOND / 2;
        node.take(Input::Processes(ProcessScan {
            started: BootTime(node.now),
            finished: BootTime(node.now),
            processes: vec![ScannedProcess {
                pid: Pid(7),
                parent: Pid(1),
                start: BootTime(start).into(),
                cgroups: Arc::new([(0, format!("/docker/{A}").into())]),
            }],
            skipped: 0,
            unread: Vec::new(),
        }));
        node.pass(500, &[(7, 500)]);
        let snapshot = node.commit();
        assert_eq!(published(&snapshot), [("web".into(), 'a', 500)]);
        assert_eq!(snapshot.agent.processes, 1);
    }

    fn unattributed(snapshot: &Snapshot) -> Vec<(UnattributedReason, u64)> {
        let amounts = snapshot.gpus[0].unattributed.iter();
        amounts
            .filter(|(_, amount)| !amount.is_zero())
            .map(|(reason, amount)| (*reason, amount.0 / 1_000_000))
            .collect()
    }

    #[test]
    fn a_scan_that_overtakes_the_event_of_a_move_does_not_date_the_move() {
        let mut node = Node::new(0, 0);
        node.named(A, None);
        node.named(B, None);
        let start = node.fork(7, 3);
        node.now += SECOND / 2;
        let moved = node.event(7, start, 4);
        // It was both's.
        node.window(500, &[(7, 900)]);
        let scan = node.scan(&[(7, start, &format!("/docker/{B}"))]);
        node.take(scan);
        // It was B's alone.
        node.window(1_000, &[(7, 400)]);
        node.events(vec![KernelEvent::Attach(moved)]);
        let snapshot = node.commit();
        assert_eq!(published(&snapshot), [("web".into(), 'b', 400)]);
        assert_eq!(
            unattributed(&snapshot),
            [(UnattributedReason::AmbiguousPid, 900)]
        );
    }

    #[test]
    fn a_scan_that_overtakes_a_runtimes_child_leaves_it_to_its_container() {
        let mut node = Node::new(0, 0);
        node.named(A, None);
        let start = node.fork(7, 6);
        node.now += 10_000_000;
        let moved = node.event(7, start, 3);
        let executed = node.event(7, start, 3);
        node.now += 10_000_000;
        let scan = node.scan(&[(7, start, &format!("/docker/{A}"))]);
        node.take(scan);
        node.events(vec![
            KernelEvent::Attach(moved),
            KernelEvent::Exec(executed),
        ]);
        node.pass(980, &[(7, 500)]);
        assert_eq!(published(&node.commit()), [("web".into(), 'a', 500)]);
    }

    #[test]
    fn a_scan_older_than_a_move_does_not_undo_it_since_the_new_cgroup_has_no_name_yet() {
        let mut node = Node::new(0, 0);
        node.named(A, None);
        let start = node.fork(7, 3);
        node.now += SECOND / 4;
        let scan = node.scan(&[(7, start, &format!("/docker/{A}"))]);
        node.now += SECOND / 4;
        // The announcement of cgroup 99 was lost.
        let moved = node.event(7, start, 99);
        node.events(vec![KernelEvent::Attach(moved)]);
        node.pass(0, &[]);
        node.take(scan);
        node.pass(500, &[(7, 400)]);
        let snapshot = node.commit();
        assert_eq!(published(&snapshot), []);
        assert_eq!(
            unattributed(&snapshot),
            [(UnattributedReason::UnknownCgroup, 400)]
        );
    }

    #[test]
    fn a_pid_given_away_within_a_scans_tick_is_not_the_next_ones_alone() {
        let mut node = Node::new(0, 0);
        node.named(A, None);
        node.named(B, None);
        node.fork(7, 3);
        // A second and 4 ms: up to here it was A's. The scan dates B's start 4 ms before that.
        node.pass(1_000, &[]);
        node.window(4, &[(7, 4)]);
        node.events(vec![]);
        node.now += 2_000_000;
        let scan = node.scan(&[(7, node.now, &format!("/docker/{B}"))]);
        node.take(scan);
        let snapshot = node.commit();
        assert_eq!(published(&snapshot), []);
        assert_eq!(
            unattributed(&snapshot),
            [(UnattributedReason::AmbiguousPid, 4)]
        );
    }

    /// One step of an arbitrary life of the node.
    #[derive(Clone, Debug)]
    enum Step {
        Fork(u32, u64),
        Exit(u32),
        Move(u32, u64),
        Pass(u64, Vec<(u32, u64)>),
        Named(bool),
        Listed(bool),
        Lose,
        Unobserved(u64),
        Commit,
    }

    fn step() -> impl Strategy<Value = Step> {
        let pid = 1..6u32;
        let cgroup = prop_oneof![Just(3u64), Just(4), Just(6), Just(10), Just(99)];
        prop_oneof![
            (pid.clone(), cgroup.clone()).prop_map(|(pid, cgroup)| Step::Fork(pid, cgroup)),
            pid.clone().prop_map(Step::Exit),
            (pid.clone(), cgroup).prop_map(|(pid, cgroup)| Step::Move(pid, cgroup)),
            (300..5_000u64, prop::collection::vec((pid, 0..60u64), 0..4))
                .prop_map(|(millis, credits)| Step::Pass(millis, credits)),
            any::<bool>().prop_map(Step::Named),
            any::<bool>().prop_map(Step::Listed),
            Just(Step::Lose),
            (1..3_000u64).prop_map(Step::Unobserved),
            Just(Step::Commit),
        ]
    }

    proptest! {
        /// Whatever happens in whatever order: the books balance (checked in `commit`), nothing
        /// that is published ever falls or changes its labels, all that the device was busy is
        /// somewhere, and nobody had a GPU for longer than the node has been watched.
        #[test]
        fn published_amounts_never_fall(steps in prop::collection::vec(step(), 1..80)) {
            let mut node = Node::new(2_000, 1_000);
            let mut starts = HashMap::default();
            let mut seen = HashMap::<(ContainerLabels, WallTime), Nanos>::default();
            for step in steps {
                match step {
                    Step::Fork(pid, cgroup) => {
                        node.now += 20_000_000;
                        starts.insert(pid, node.fork(pid, cgroup));
                    }
                    Step::Exit(pid) => {
                        if let Some(start) = starts.remove(&pid) {
                            node.exit(pid, start, 3);
                        }
                    }
                    Step::Move(pid, cgroup) => {
                        if let Some(start) = starts.get(&pid) {
                            let event = node.event(pid, *start, cgroup);
                            node.events(vec![KernelEvent::Attach(event)]);
                        }
                    }
                    Step::Pass(millis, credits) => node.pass(millis, &credits),
                    Step::Named(first) => {
                        if first { node.named(A, Some(UID)) } else { node.named(B, None) }
                    }
                    Step::Listed(is_listed) => listed(&mut node, is_listed),
                    Step::Lose => {
                        let mut counters = node.accountant.stream.counters();
                        counters.lost += 1;
                        node.take(Input::Kernel(KernelBatch {
                            events: vec![],
                            drained_through: BootTime(node.now),
                            counters,
                        }));
                    }
                    Step::Unobserved(millis) => {
                        node.now += millis * 1_000_000;
                        let window = GpuWindow {
                            gpu: gpu(),
                            start: BootTime(node.windowed),
                            end: BootTime(node.now),
                            busy: Nanos::ZERO,
                            idle: Nanos::ZERO,
                            unobserved: vec![(
                                UnobservedReason::DriverError,
                                Nanos(node.now - node.windowed),
                            )],
                            credits: vec![],
                            below_resolution: Nanos::ZERO,
                            no_row: Nanos::ZERO,
                            engines: vec![],
                            energy: None,
                            quality: WindowQuality::default(),
                            clocks: None,
                        };
                        node.windowed = node.now;
                        node.take(Input::Window(window));
                    }
                    Step::Commit => {}
                }
                let snapshot = node.commit();
                let mut now = HashMap::default();
                for series in &snapshot.container_series {
                    let key = (series.labels.clone(), series.start);
                    prop_assert!(now.insert(key, series.amounts.busy).is_none(), "one series twice");
                }
                for (key, before) in &seen {
                    prop_assert!(now.get(key) >= Some(before), "{key:?} fell below {before:?}");
                }
                seen = now;
                let book = &snapshot.gpus[0];
                let out: Nanos = snapshot.container_series.iter().map(|s| s.amounts.busy)
                    .chain(snapshot.host_series.iter().map(|s| s.amounts.busy))
                    .chain(book.unattributed.iter().map(|(_, amount)| *amount))
                    .sum();
                prop_assert_eq!(out.plus(book.pending), book.busy);
                for account in &snapshot.accounts {
                    prop_assert!(account.amounts.allocated.0 <= node.now - 100 * SECOND);
                }
            }
        }
    }
}
