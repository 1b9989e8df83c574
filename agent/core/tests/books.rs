//! The books against a world that knows better.
//!
//! A world is made up step by step: processes are born, run, move, die and give their pids to
//! others, and work on GPUs. It knows to the nanosecond who did. The core is told of it as it is
//! told on a node: in batches of events that are late, doubled, out of order or lost, in scans that
//! overlap them, in windows that come late or blind, in names that come early, late, never or
//! wrong. Commits fall between any two of these. Whatever the order:
//!
//! - the books balance at every commit, and hold what the world says that the windows hold;
//! - no published total falls, none changes its labels, none ends before all of it was shown, and
//!   one that begins anew says so by its start;
//! - no more is published than is booked, and nothing under a name that contradicts the cgroup;
//! - nothing is booked to the wrong container, and nothing that is certain to nobody.
//!
//! What is *certain* is a matter of what the core can have known when it booked: a window that it
//! did not await, and a pid of which an event was lost and that no scan has shown since, are in
//! doubt, and their amounts may be anybody's, once. Everything else must be where the world says.
//!
//! Now and then the eBPF object is gone for a while. Nothing is told of what happens meanwhile, and
//! scans stand in for it: a window is booked once one began after its end, or has shown nobody in time,
//! and then nobody pays. Some scans cannot read a process, and some take long and read all processes
//! at their end; neither is a death or a move at their beginning. Process lists name pids as well, and
//! no container has a peak of memory that none of its processes had.
//!
//! Now and then the agent is killed and another goes on. What happened while there was none need not
//! be known, but who is known from before is booked to nobody else. In doubt is only what no agent
//! can have seen: who had a pid after somebody else, or was moved, and died before the next scan.
//!
//! A process may go on working after its exit event, for as long as its GPU context is torn down. It
//! keeps its pid until then. That work is its own where no event was lost since its exit.
//!
//! Two things are left out that no node does and the table does not keep: a pid that comes around
//! within one tick of 10 ms, and a process that is moved twice after it has begun.

#[path = "books/instances.rs"]
mod instances;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use gpuacct_core::accountant::{Accountant, Settings};
use gpuacct_core::amounts::{Amounts, Engine, Engines, Millijoules};
use gpuacct_core::input::{
    CgroupAnnouncement, CgroupSet, ContainerIdentity, Credit, EngineUse, EventCounters, GpuInfo,
    GpuProcess, GpuProcesses, GpuWindow, IdentitySource, IdentityUpdate, Input, KernelBatch,
    KernelEvent, KubernetesNames, MpsRole, Policy, ProcessEvent, ProcessScan, ScannedProcess,
    SourceHealth, WindowQuality,
};
use gpuacct_core::model::{
    BootTime, CgroupKey, Clock, GpuUuid, Nanos, Pid, PodUid, ProcessId, SourceId, SourceState,
    UnattributedReason, UnobservedReason, WallTime,
};
use gpuacct_core::records::{KeptAccount, KeptTotals, PersistedState};
use gpuacct_core::snapshot::{ContainerLabels, Snapshot};
use proptest::prelude::*;

const SECOND: u64 = 1_000_000_000;
const MILLI: u64 = 1_000_000;
const GPUS: usize = 2;
/// What a container is called that somebody renames.
const RENAMED: &str = "renamed";
/// The pids there are.
const PIDS: std::ops::Range<u32> = 100..104;
/// How long after its death a process may still be credited: the core's own slack.
const SLACK: u64 = 250 * MILLI;
/// For how long the core keeps what it was told of a container that has no process: less than this
/// for no other reason than its age.
const FORGOTTEN_AFTER: u64 = 15 * SECOND;
/// What `/proc` dates starts by.
const TICK: u64 = 10 * MILLI;
/// No window is longer, as none can be that is made from a ring of twelve seconds.
const LONGEST_WINDOW: u64 = 5 * SECOND;

/// Where processes live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    /// A container of a plain runtime.
    Plain,
    /// Another container of a plain runtime.
    OtherPlain,
    /// A container in a pod.
    InPod,
    /// Another in another pod.
    InOtherPod,
    /// The first pod's own cgroup.
    Pod,
    /// A unit of the host.
    Host,
}

impl Place {
    const ALL: [Self; 6] = [
        Self::Plain,
        Self::OtherPlain,
        Self::InPod,
        Self::InOtherPod,
        Self::Pod,
        Self::Host,
    ];

    /// What an account of it is known by: a container's id, a pod's uid, a unit.
    fn account(self) -> String {
        match self {
            Self::Plain => "a".repeat(64),
            Self::OtherPlain => "b".repeat(64),
            Self::InPod => "c".repeat(64),
            Self::InOtherPod => "d".repeat(64),
            Self::Pod => Self::InPod.pod_uid().expect("it is in a pod").to_owned(),
            Self::Host => "sshd.service".to_owned(),
        }
    }

    fn of_account(account: &str) -> Self {
        let mut all = Self::ALL.into_iter();
        all.find(|place| place.account() == account)
            .unwrap_or_else(|| panic!("nobody is called {account}"))
    }

    fn pod_uid(self) -> Option<&'static str> {
        match self {
            Self::InPod | Self::Pod => Some("11111111-2222-3333-4444-555555555555"),
            Self::InOtherPod => Some("66666666-7777-8888-9999-000000000000"),
            Self::Plain | Self::OtherPlain | Self::Host => None,
        }
    }

    /// Namespace, pod, container.
    fn names(self) -> [&'static str; 3] {
        match self {
            Self::Plain => ["(none)", "(none)", "web"],
            Self::OtherPlain => ["(none)", "(none)", "db"],
            Self::InPod => ["ml", "train-0", "main"],
            Self::InOtherPod => ["web", "chat-0", "main"],
            Self::Pod => ["ml", "train-0", "(pod)"],
            Self::Host => ["(none)", "(none)", "sshd.service"],
        }
    }

    fn path(self) -> Vec<String> {
        let pod = |uid: &str| vec!["kubepods".to_owned(), format!("pod{uid}")];
        match self {
            Self::Plain | Self::OtherPlain => vec!["docker".to_owned(), self.account()],
            Self::InPod | Self::InOtherPod => {
                let mut path = pod(self.pod_uid().expect("it is in a pod"));
                path.push(self.account());
                path
            }
            Self::Pod => pod(&self.account()),
            Self::Host => vec!["system.slice".to_owned(), "sshd.service".to_owned()],
        }
    }

    /// Its cgroup and those above it, the root first: number, parent, name. One number stands for
    /// one path.
    fn cgroups(self) -> Vec<CgroupAnnouncement> {
        let announce = |id, parent, name: &str| CgroupAnnouncement {
            key: CgroupKey { hierarchy: 0, id },
            parent,
            name: name.into(),
        };
        let mut chain = vec![announce(1, None, "")];
        let path = self.path();
        for (depth, name) in path.iter().enumerate() {
            // The last of its kind that has the same path above it.
            let prefix = &path[..=depth];
            let owner = Self::ALL
                .iter()
                .position(|place| place.path().starts_with(prefix))
                .expect("it is one of them itself");
            let id = 10 * (owner as u64 + 1) + depth as u64;
            let parent = chain.last().map(|above| above.key.id);
            chain.push(announce(id, parent, name));
        }
        chain
    }

    fn cgroup(self) -> CgroupSet {
        let chain = self.cgroups();
        CgroupSet {
            unified: chain.last().expect("the root is there").key,
            legacy: None,
        }
    }
}

/// A process, as it really was.
#[derive(Clone, Debug)]
struct Life {
    pid: u32,
    start: u64,
    end: Option<u64>,
    /// When its context was torn down and its pid became free, if that was after its end.
    torn_down: Option<u64>,
    /// Since when it was where. A runtime's child is not counted where it was before its exec.
    stays: Vec<(u64, Place)>,
    /// Where it may still be moved from.
    has_moved: bool,
}

/// One GPU, as it really was.
#[derive(Clone, Debug, Default)]
struct Gpu {
    /// Who works now, and since when.
    working: Option<(u32, u64)>,
    /// Work since the last window: pid and duration.
    worked: BTreeMap<u32, u64>,
    /// Where the next window begins.
    windowed: u64,
    /// Windows that are closed and that the core has not been given.
    held: VecDeque<Input>,
    /// What is in those that it has and has not booked, in their order.
    unbooked: VecDeque<Truth>,
    booked_windows: u64,
}

/// A window, as it really was.
#[derive(Clone, Debug)]
struct Truth {
    start: u64,
    end: u64,
    busy: u64,
    nobodys: u64,
    credits: Vec<(u32, u64)>,
    /// When the core was given it.
    given: u64,
    /// As the core is given it.
    window: Input,
}

/// The time between an agent that was killed and the first scan of the next one.
#[derive(Clone, Debug)]
struct Gap {
    /// Up to when the former one knew the events.
    from: u64,
    until: u64,
    /// Whom it handed over.
    kept: BTreeSet<(u32, u64)>,
}

/// A scan that the core was given.
#[derive(Clone, Debug)]
struct Scanned {
    began: u64,
    /// When it came. A death that it alone shows is dated to this.
    came: u64,
    /// Up to when the core knew the events then.
    drained: u64,
    /// Whom it saw: pid and start in ticks.
    saw: BTreeSet<(u32, u64)>,
    /// The pids of those that lived when it began and were dead when it read them.
    missed: BTreeSet<u32>,
    /// The pids that it could not read.
    unread: BTreeSet<u32>,
}

impl Scanned {
    /// Whether it says who has a pid.
    fn tells_of(&self, pid: u32) -> bool {
        !self.unread.contains(&pid)
    }
}

/// A scan that is under way.
#[derive(Clone, Debug)]
struct Scanning {
    began: u64,
    unread: BTreeSet<u32>,
    /// What it has read; absent where it reads all at its end.
    read: Option<Vec<ScannedProcess>>,
}

/// A list that named one pid.
#[derive(Clone, Copy, Debug)]
struct List {
    at: u64,
    gpu: usize,
    pid: u32,
}

/// A scan found a process elsewhere. If its move is never told, it may have been in either place for a
/// while.
#[derive(Clone, Copy, Debug)]
struct Blur {
    pid: u32,
    from: u64,
    to: u64,
    /// When it did move.
    moved: u64,
}

/// An event of a process that the core never receives.
#[derive(Clone, Copy, Debug)]
struct Unreported {
    pid: u32,
    at: u64,
    /// Whether the event was lost while others may still arrive; otherwise the source was down.
    is_lost: bool,
}

/// What the core may have booked on one owner.
#[derive(Clone, Copy, Debug, Default)]
struct Expected {
    /// It must have.
    certain: u64,
    /// It may have, or nobody: its cgroup had not been announced, or a scan was too coarse.
    possible: u64,
}

/// What has been seen of one published series.
#[derive(Clone, Debug)]
struct Published {
    account: (String, String),
    last: Nanos,
    all: Amounts,
    /// Whether the decoder was shown.
    decoder: bool,
    gone: bool,
}

/// A pid whose holder is not known: since when, the end of the gap, and the start of the process that
/// is known to have it by now.
#[derive(Clone, Copy, Debug)]
struct Doubt {
    since: u64,
    gap_end: u64,
    until: u64,
}

struct World {
    accountant: Accountant,
    policy: Policy,
    now: u64,
    lives: Vec<Life>,
    gpus: Vec<Gpu>,
    /// Events on their way.
    events: Vec<(u64, KernelEvent)>,
    lose: u32,
    /// Whether the kernel source is up.
    is_up: bool,
    /// When the object was attached.
    attached: u64,
    /// Up to when all was known before something was missing, and since when a scan must have begun to
    /// mend that; never while the source is down.
    gap: Option<(u64, u64)>,
    /// Pids of which a scan that mended a gap could not tell.
    doubted: BTreeMap<u32, Doubt>,
    /// Since when the core has received every event: since it last heard of a loss, or the object was
    /// attached; never while the source is down.
    complete_since: u64,
    counters: EventCounters,
    /// What it was told of them.
    lost_told: u64,
    drained: u64,
    untold: Vec<Unreported>,
    blurred: Vec<Blur>,
    /// Processes on each GPU by a list, and the processes that a list may have meant.
    listed: BTreeSet<(Place, usize)>,
    scan: Option<Scanning>,
    /// State that a killed agent left, while no agent runs.
    left: Option<PersistedState>,
    gaps: Vec<Gap>,
    last_number: u32,
    scanned: Vec<Scanned>,
    /// Where in these the scans of the agent that runs now begin.
    own_scans_from: usize,
    /// Lists that the core was given and cannot have taken yet.
    pending_lists: Vec<List>,
    announced: BTreeSet<u64>,
    expected: BTreeMap<(Place, usize), Expected>,
    doubt: Vec<u64>,
    nobodys: Vec<u64>,
    busy: Vec<u64>,
    /// Accounts by owner and GPU: what is booked, and what was when it was closed before.
    booked: BTreeMap<(String, String), (Nanos, Nanos)>,
    published: BTreeMap<(Arc<ContainerLabels>, String, WallTime), Published>,
    hosts: BTreeMap<(String, WallTime), Nanos>,
    /// The host unit's accounts by GPU: what is booked, and what was when it was closed before.
    host_booked: BTreeMap<String, (Nanos, Nanos)>,
    namespaces: BTreeMap<(String, String), Nanos>,
    /// Who could say what the first pod is called, whether or not a container of it was seen, and
    /// when each said it.
    know_the_pod: BTreeMap<IdentitySource, u64>,
}

/// What an answer of an identity source is like.
#[derive(Clone, Copy, Debug)]
enum Answer {
    Right,
    /// Another container of the same pod has been given the id's name, or somebody renamed it.
    Renamed,
    /// It claims another pod, where the container is in one.
    Wrong,
    /// It does not know the pod.
    WithoutPod,
    Unknown,
    Removed,
}

/// One step of an arbitrary life of the node. A step that makes no sense when its turn comes does
/// nothing.
#[derive(Clone, Debug)]
enum Step {
    Wait(u64),
    /// A process is born where its parent is.
    Born(u32, Place),
    /// A runtime makes one: born on the host, moved, made to execute.
    Run(u32, Place),
    Moves(u32, Place),
    Dies(u32, bool),
    /// It ends, and its work is credited for this many more nanoseconds.
    TearsDown(u32, u64),
    Works(usize, Option<u32>),
    /// So many of the coming events are lost.
    Lose(u32),
    Announce(Place),
    /// The ring is drained up to so many nanoseconds ago, its events in some order.
    Drain(u64, u64),
    /// A scan that cannot read these pids (a bit for each), and reads the others at once or at its end.
    ScanBegins(u32, bool),
    ScanArrives,
    /// A window is closed and handed over, or held; so many thousandths of its busy time show in
    /// no row; or it is blind.
    Window(usize, bool, u64),
    Blind(usize),
    WindowsArrive(usize),
    Lists(usize),
    Named(Place, IdentitySource, Answer),
    Kernel(bool),
    Commit,
    Kill,
    Start,
}

fn step() -> impl Strategy<Value = Step> {
    let pid = PIDS;
    let gpu = 0..GPUS;
    let place = || prop::sample::select(&Place::ALL[..]);
    let source = prop::sample::select(&IdentitySource::ALL[..]);
    let answer = prop_oneof![
        4 => Just(Answer::Right),
        2 => Just(Answer::Renamed),
        1 => Just(Answer::Wrong),
        1 => Just(Answer::WithoutPod),
        1 => Just(Answer::Unknown),
        1 => Just(Answer::Removed),
    ];
    prop_oneof![
        6 => (1..700 * MILLI).prop_map(Step::Wait),
        2 => (SECOND..3 * SECOND).prop_map(Step::Wait),
        3 => (pid.clone(), place()).prop_map(|(pid, place)| Step::Born(pid, place)),
        3 => (pid.clone(), place()).prop_map(|(pid, place)| Step::Run(pid, place)),
        1 => (pid.clone(), place()).prop_map(|(pid, place)| Step::Moves(pid, place)),
        4 => (pid.clone(), any::<bool>()).prop_map(|(pid, twice)| Step::Dies(pid, twice)),
        2 => (pid.clone(), 1..6 * SECOND).prop_map(|(pid, span)| Step::TearsDown(pid, span)),
        8 => (gpu.clone(), prop::option::weighted(0.9, pid))
            .prop_map(|(gpu, pid)| Step::Works(gpu, pid)),
        1 => (1..4u32).prop_map(Step::Lose),
        1 => place().prop_map(Step::Announce),
        6 => (prop_oneof![3 => Just(0), 1 => 0..300 * MILLI], any::<u64>())
            .prop_map(|(ago, order)| Step::Drain(ago, order)),
        2 => (prop_oneof![3 => Just(0), 1 => 0..16u32], any::<bool>())
            .prop_map(|(unread, late)| Step::ScanBegins(unread, late)),
        2 => Just(Step::ScanArrives),
        6 => (gpu.clone(), any::<bool>(), 0..100u64)
            .prop_map(|(gpu, held, hidden)| Step::Window(gpu, held, hidden)),
        1 => gpu.clone().prop_map(Step::Blind),
        3 => gpu.clone().prop_map(Step::WindowsArrive),
        2 => gpu.prop_map(Step::Lists),
        4 => (place(), source, answer)
            .prop_map(|(place, source, answer)| Step::Named(place, source, answer)),
        1 => prop::bool::weighted(0.7).prop_map(Step::Kernel),
        8 => Just(Step::Commit),
        1 => Just(Step::Kill),
        2 => Just(Step::Start),
    ]
}

fn policy() -> impl Strategy<Value = Policy> {
    let keep_for = prop_oneof![Just(500), Just(600_000)];
    (0..4_000u64, 0..3_000u64, keep_for).prop_map(|(grace, zero_for, keep_for)| Policy {
        grace: Nanos::from_millis(grace),
        zero_for: Nanos::from_millis(zero_for),
        keep_for: Nanos::from_millis(keep_for),
    })
}

fn uuid(gpu: usize) -> GpuUuid {
    GpuUuid::from(format!("GPU-{gpu}").as_str())
}

impl World {
    fn new(policy: Policy) -> Self {
        let start = 1_000 * SECOND;
        let settings = Settings {
            policy,
            ..Settings::default()
        };
        let gpu = Gpu {
            windowed: start,
            ..Gpu::default()
        };
        let mut world = Self {
            accountant: Accountant::new(settings, clock(start)),
            policy,
            now: start,
            lives: Vec::new(),
            gpus: vec![gpu; GPUS],
            events: Vec::new(),
            lose: 0,
            is_up: false,
            attached: start,
            gap: None,
            doubted: BTreeMap::new(),
            complete_since: start,
            counters: EventCounters::default(),
            lost_told: 0,
            drained: start,
            untold: Vec::new(),
            blurred: Vec::new(),
            listed: BTreeSet::new(),
            scan: None,
            left: None,
            gaps: Vec::new(),
            last_number: 0,
            scanned: Vec::new(),
            own_scans_from: 0,
            pending_lists: Vec::new(),
            announced: BTreeSet::new(),
            expected: BTreeMap::new(),
            doubt: vec![0; GPUS],
            nobodys: vec![0; GPUS],
            busy: vec![0; GPUS],
            booked: BTreeMap::new(),
            published: BTreeMap::new(),
            hosts: BTreeMap::new(),
            host_booked: BTreeMap::new(),
            namespaces: BTreeMap::new(),
            know_the_pod: BTreeMap::new(),
        };
        world.accountant.keep();
        world.list_gpus();
        world.attach();
        world
    }

    /// The agent begins: the object is attached, and only then is `/proc` scanned.
    fn attach(&mut self) {
        self.is_up = false;
        self.gap = Some((0, u64::MAX));
        self.doubted.clear();
        self.own_scans_from = self.scanned.len();
        self.health(SourceState::Absent);
        self.kernel(true);
        self.drain(0, 0);
        self.scan_begins(0, false);
        self.scan_arrives();
    }

    fn own_scans(&self) -> &[Scanned] {
        &self.scanned[self.own_scans_from..]
    }

    fn list_gpus(&mut self) {
        let gpus = (0..GPUS).map(|gpu| GpuInfo {
            uuid: uuid(gpu),
            index: u32::try_from(gpu).unwrap_or(0),
            model: "test".into(),
            driver: "1".into(),
            simulated: true,
            memory_total: None,
            minor: None,
            pci: None,
            mig: None,
            engines: Vec::new(),
        });
        self.take(Input::Gpus(gpus.collect()));
    }

    /// The agent is killed after a commit. The driver keeps the windows that were not booked.
    fn kill(&mut self) {
        self.commit();
        let changes = self.accountant.changes(true, clock(self.now));
        let closed = changes.closed.iter().map(|closed| closed.account.number);
        let open = changes.accounts.iter().map(|account| account.number);
        self.last_number = open.chain(closed).fold(self.last_number, u32::max);
        let accounts: Vec<(KeptAccount, KeptTotals)> =
            changes.accounts.into_iter().zip(changes.totals).collect();
        assert!(
            accounts
                .iter()
                .all(|(one, other)| one.number == other.number)
        );
        let kept = changes.processes.iter().map(|kept| {
            let ProcessId { pid, start } = kept.process();
            (pid.0, start.0)
        });
        self.gaps.push(Gap {
            from: self.drained,
            until: u64::MAX,
            kept: kept.collect(),
        });
        self.left = Some(PersistedState {
            sequence: changes.sequence,
            clock: changes.clock,
            books: changes.books,
            times: changes.times,
            accounts,
            namespaces: changes.namespaces,
            processes: changes.processes,
            allocations: changes.allocations,
            last_number: self.last_number,
        });
        self.scan = None;
        self.pending_lists.clear();
        for gpu in &mut self.gpus {
            gpu.held = gpu
                .unbooked
                .iter()
                .map(|truth| truth.window.clone())
                .collect();
        }
    }

    /// Another agent continues, and scans `/proc` once it has the events.
    fn start(&mut self) {
        let Some(state) = self.left.take() else {
            return;
        };
        let settings = Settings {
            policy: self.policy,
            ..Settings::default()
        };
        let accountant = Accountant::restored(settings, &state, clock(self.now));
        self.accountant = accountant.expect("what was handed over can be gone on from");
        self.events.clear();
        self.lose = 0;
        self.counters = EventCounters::default();
        self.lost_told = 0;
        self.announced.clear();
        self.know_the_pod.clear();
        self.list_gpus();
        self.attach();
        self.gaps.last_mut().expect("one was killed").until = self.now;
    }

    fn take(&mut self, input: Input) {
        self.accountant.take(input, clock(self.now));
        // Effects are not carried out: scans and names come when the steps say so.
        drop(self.accountant.take_effects());
        self.settle_lists();
    }

    /// Notes whom the lists named that the core has taken by now.
    fn settle_lists(&mut self) {
        for list in std::mem::take(&mut self.pending_lists) {
            let (at, pid) = (list.at, list.pid);
            let is_in_gap = self.gap.is_some_and(|(since, _)| since < at);
            let is_scanned = self.own_scans().iter().any(|of| of.began >= at);
            let has_drained = self.drained >= at;
            let is_known = if is_in_gap {
                is_scanned && (has_drained || !self.is_up)
            } else {
                has_drained
            };
            let has_waited = self.now - at >= Settings::default().await_events.0;
            if !is_known && !has_waited {
                self.pending_lists.push(list);
                continue;
            }
            let is_untold = self.untold.iter().any(|of| of.pid == pid && of.at <= at);
            let is_only_late = !is_known && !is_in_gap;
            let is_unseen = self.could_not_be_seen(pid, at, at);
            let places: Vec<Place> = if is_untold || is_only_late || is_unseen {
                let lives = self.lives.iter().filter(|life| life.pid == pid);
                let stays = lives.flat_map(|life| &life.stays);
                stays.map(|(_, place)| *place).collect()
            } else {
                let mut owners = self.owners(pid, at, at);
                if owners.is_empty() {
                    // Its context is being torn down, or nobody has had the pid since.
                    let mut lives = self.lives.iter();
                    let last = lives.rfind(|life| life.pid == pid && life.start <= at);
                    owners.extend(last.and_then(|life| life.stays.last()).map(|(_, at)| *at));
                }
                owners.into_iter().collect()
            };
            self.listed
                .extend(places.into_iter().map(|place| (place, list.gpu)));
        }
    }

    /// The object is attached, or goes with what is in its ring.
    fn kernel(&mut self, up: bool) {
        if self.is_up == up {
            return;
        }
        self.is_up = up;
        let since = self.gap.map_or(self.drained, |(since, _)| since);
        if up {
            self.attached = self.now;
            self.complete_since = self.now;
            self.gap = Some((since, self.now));
            self.health(SourceState::Up);
            if self.now > 1_000 * SECOND {
                // It announces every cgroup anew that has processes.
                for place in Place::ALL {
                    self.announce(place);
                }
            }
            return;
        }
        self.gap = Some((since, u64::MAX));
        self.complete_since = u64::MAX;
        // What it had lost and not told goes with it.
        self.counters.lost = self.lost_told;
        self.lose = 0;
        for (at, event) in std::mem::take(&mut self.events) {
            self.never_told(&event, at, false);
        }
        self.health(SourceState::Down {
            class: "stream".into(),
            reason: "the event stream ended".into(),
            next_retry: None,
        });
    }

    fn never_told(&mut self, event: &KernelEvent, at: u64, is_lost: bool) {
        // Without its name a cgroup could be anybody's, and so could whoever is in it. An object that
        // is attached later announces it.
        let everybody = if is_lost { PIDS.collect() } else { Vec::new() };
        let of = pid_of(event).map_or(everybody, |pid| vec![pid]);
        let untold = of.into_iter().map(|pid| Unreported { pid, at, is_lost });
        self.untold.extend(untold);
    }

    fn health(&mut self, state: SourceState) {
        self.take(Input::Health(SourceHealth {
            source: SourceId::Kernel,
            state,
            since: BootTime(self.now),
            place: "".into(),
        }));
    }

    fn alive(&self, pid: u32) -> Option<usize> {
        let mut lives = self.lives.iter();
        lives.position(|life| life.pid == pid && life.end.is_none())
    }

    /// Until when a dead process keeps its pid, if that is later than now.
    fn tears_down_until(&self, pid: u32) -> Option<u64> {
        let last = self.lives.iter().rfind(|life| life.pid == pid)?;
        last.torn_down.filter(|until| *until > self.now)
    }

    /// Puts an event on its way, unless it is lost.
    fn emit(&mut self, event: KernelEvent) {
        if !self.is_up {
            return self.never_told(&event, self.now, false);
        }
        self.counters.seen += 1;
        if self.lose > 0 {
            self.lose -= 1;
            self.counters.lost += 1;
            return self.never_told(&event, self.now, true);
        }
        self.counters.submitted += 1;
        self.events.push((self.now, event));
    }

    fn process(&self, pid: u32, start: u64, place: Place) -> ProcessEvent {
        ProcessEvent {
            at: BootTime(self.now),
            pid: Pid(pid),
            parent: Pid(1),
            start: BootTime(start),
            pid_namespace_level: 0,
            cgroups: place.cgroup(),
        }
    }

    fn announce(&mut self, place: Place) {
        for cgroup in place.cgroups() {
            self.emit(KernelEvent::Cgroup(cgroup));
        }
    }

    fn born(&mut self, pid: u32, place: Place, by_runtime: bool) {
        if self.alive(pid).is_some() || self.tears_down_until(pid).is_some() {
            return;
        }
        for gpu in 0..GPUS {
            // What was torn down there is over.
            if self.gpus[gpu].working.is_some_and(|(of, _)| of == pid) {
                self.works(gpu, None);
            }
        }
        let tick = |at: u64| at / TICK;
        let before = self.lives.iter().rfind(|life| life.pid == pid);
        if let Some(before) = before
            && tick(before.start) == tick(self.now)
        {
            self.now = (tick(self.now) + 1) * TICK;
        }
        let start = self.now;
        let mut life = Life {
            pid,
            start,
            end: None,
            torn_down: None,
            stays: vec![(start, place)],
            has_moved: false,
        };
        if by_runtime {
            self.announce(Place::Host);
            self.emit(KernelEvent::Fork(self.process(pid, start, Place::Host)));
            self.now += MILLI;
            life.stays = vec![(self.now, place)];
            self.announce(place);
            self.emit(KernelEvent::Attach(self.process(pid, start, place)));
            self.now += MILLI;
            self.emit(KernelEvent::Exec(self.process(pid, start, place)));
        } else {
            self.announce(place);
            self.emit(KernelEvent::Fork(self.process(pid, start, place)));
        }
        self.lives.push(life);
    }

    fn moves(&mut self, pid: u32, place: Place) {
        let Some(at) = self.alive(pid) else { return };
        let life = &mut self.lives[at];
        if life.has_moved || life.stays.last().is_some_and(|(_, from)| *from == place) {
            return;
        }
        life.has_moved = true;
        life.stays.push((self.now, place));
        let start = life.start;
        self.announce(place);
        self.emit(KernelEvent::Attach(self.process(pid, start, place)));
    }

    fn dies(&mut self, pid: u32, twice: bool, tear_down: Option<u64>) {
        let Some(at) = self.alive(pid) else { return };
        for gpu in 0..GPUS {
            if tear_down.is_none() && self.gpus[gpu].working.is_some_and(|(of, _)| of == pid) {
                self.works(gpu, None);
            }
        }
        let life = &mut self.lives[at];
        life.end = Some(self.now);
        life.torn_down = tear_down.map(|span| self.now + span);
        let place = life.stays.last().expect("it was somewhere").1;
        let start = life.start;
        for _ in 0..=u32::from(twice) {
            self.emit(KernelEvent::Exit(self.process(pid, start, place)));
        }
    }

    fn works(&mut self, gpu: usize, pid: Option<u32>) {
        let now = self.now;
        let before = self.gpus[gpu].working;
        let goes_on = |pid: &u32| {
            before.is_some_and(|(of, _)| of == *pid) && self.tears_down_until(*pid).is_some()
        };
        let pid = pid.filter(|pid| self.alive(*pid).is_some() || goes_on(pid));
        // The dead work until their context is gone.
        let until = before.map(|(pid, _)| match self.alive(pid) {
            Some(_) => now,
            None => {
                let last = self.lives.iter().rfind(|life| life.pid == pid);
                last.and_then(|life| life.torn_down)
                    .map_or(now, |until| until.min(now))
            }
        });
        let gpu = &mut self.gpus[gpu];
        if let (Some((pid, since)), Some(until)) = (gpu.working.take(), until)
            && until > since
        {
            *gpu.worked.entry(pid).or_default() += until - since;
        }
        gpu.working = pid.map(|pid| (pid, now));
    }

    fn drain(&mut self, ago: u64, order: u64) {
        if !self.is_up {
            return;
        }
        // Never earlier than before: what was promised stays promised.
        let through = self.now.saturating_sub(ago);
        let through = through.max(self.drained).max(self.attached);
        let (out, later): (Vec<_>, Vec<_>) = std::mem::take(&mut self.events)
            .into_iter()
            .partition(|(at, _)| *at <= through);
        self.events = later;
        let events = shuffled(out.into_iter().map(|(_, event)| event), order);
        for event in &events {
            if let KernelEvent::Cgroup(cgroup) = event {
                self.announced.insert(cgroup.key.id);
            }
            if let Some(of) = process_of(event)
                && let Some(doubt) = self.doubted.get_mut(&of.pid.0)
                && of.at.0 >= doubt.gap_end
            {
                let start = of.start.0 / TICK * TICK;
                if start <= doubt.since {
                    self.doubted.remove(&of.pid.0);
                } else {
                    doubt.until = doubt.until.min(start);
                }
            }
        }
        if self.counters.lost > self.lost_told {
            self.lost_told = self.counters.lost;
            // It is mended by a scan that begins after the news of it, whatever is drained.
            let since = self.gap.map_or(self.drained, |(since, _)| since);
            self.gap = Some((since, self.now));
            self.complete_since = self.now;
        }
        self.drained = through;
        self.take(Input::Kernel(KernelBatch {
            events,
            drained_through: BootTime(through),
            counters: self.counters,
        }));
    }

    fn scan_begins(&mut self, unread: u32, late: bool) {
        let unread = PIDS.filter(|pid| unread >> (pid - PIDS.start) & 1 == 1);
        let unread: BTreeSet<u32> = unread.collect();
        self.scan = Some(Scanning {
            began: self.now,
            read: (!late).then(|| self.read_processes(&unread)),
            unread,
        });
    }

    fn read_processes(&self, unread: &BTreeSet<u32>) -> Vec<ScannedProcess> {
        let alive = self.lives.iter().filter(|life| life.end.is_none());
        let read = alive.filter(|life| !unread.contains(&life.pid));
        let processes = read.map(|life| {
            let place = life.stays.last().expect("it is somewhere").1;
            let path = format!("/{}", place.path().join("/"));
            ScannedProcess {
                pid: Pid(life.pid),
                parent: Pid(1),
                start: BootTime(life.start).into(),
                cgroups: Arc::new([(0, path.into())]),
            }
        });
        processes.collect()
    }

    fn scan_arrives(&mut self) {
        let Some(scan) = self.scan.take() else { return };
        let began = scan.began;
        let is_late = scan.read.is_none();
        let processes = scan
            .read
            .unwrap_or_else(|| self.read_processes(&scan.unread));
        // A process that could not be read and is not there any more has vanished.
        let is_alive = |pid: &u32| self.alive(*pid).is_some();
        let unread: BTreeSet<u32> = scan.unread.iter().copied().filter(is_alive).collect();
        let known_until = |pid: u32| {
            let scans = self.own_scans().iter().filter(|of| of.tells_of(pid));
            scans.map(|of| of.began).max().unwrap_or_default().max(
                self.gap
                    .map_or(self.drained, |(since, _)| since.min(self.drained)),
            )
        };
        let blurred = processes.iter().filter_map(|process| {
            let pid = process.pid.0;
            let from = known_until(pid);
            let life = self.lives.iter().rfind(|life| life.pid == pid)?;
            let (moved, _) = life.stays.iter().rfind(|stay| stay.0 > from)?;
            Some(Blur {
                pid,
                from,
                to: self.now,
                moved: *moved,
            })
        });
        self.blurred.extend(blurred.collect::<Vec<_>>());
        let mut missed = BTreeSet::new();
        if is_late {
            // Whoever died before it was read is taken for one that died when the scan began.
            let ends = self
                .lives
                .iter()
                .filter_map(|life| Some((life.pid, life.end?)));
            let gone = ends.filter(|(_, end)| *end > began);
            let gone: Vec<u32> = gone.map(|(pid, _)| pid).collect();
            for pid in gone {
                missed.insert(pid);
                self.untold.push(Unreported {
                    pid,
                    at: began,
                    is_lost: false,
                });
            }
        }
        if self.own_scans().iter().all(|of| of.began <= began) {
            self.doubted.retain(|pid, _| unread.contains(pid));
            if let Some((since, until)) = self.gap
                && began >= until
            {
                self.gap = None;
                for pid in &unread {
                    let doubt = self.doubted.entry(*pid).or_insert(Doubt {
                        since,
                        gap_end: until,
                        until: u64::MAX,
                    });
                    doubt.gap_end = doubt.gap_end.max(until);
                    doubt.until = u64::MAX;
                }
            }
        }
        let saw = processes.iter();
        let saw = saw.map(|process| (process.pid.0, process.start.0));
        self.scanned.push(Scanned {
            began,
            came: self.now,
            drained: self.drained,
            saw: saw.collect(),
            missed,
            unread: unread.clone(),
        });
        self.take(Input::Processes(ProcessScan {
            started: BootTime(began),
            finished: BootTime(self.now),
            skipped: u32::try_from(unread.len()).unwrap_or(u32::MAX),
            unread: unread.into_iter().map(Pid).collect(),
            processes,
        }));
    }

    /// Closes a window; `hidden` thousandths of what each did show in no row.
    fn window(&mut self, gpu: usize, hidden: Option<u64>) {
        let working = self.gpus[gpu].working.map(|(pid, _)| pid);
        self.works(gpu, working);
        let (now, of) = (self.now, &mut self.gpus[gpu]);
        let (start, elapsed) = (of.windowed, now - of.windowed);
        if elapsed == 0 {
            return;
        }
        of.windowed = now;
        let worked = std::mem::take(&mut of.worked);
        let mut truth = Truth {
            start,
            end: now,
            busy: 0,
            nobodys: 0,
            credits: Vec::new(),
            given: 0,
            window: Input::Gpus(Vec::new()),
        };
        let mut unobserved = Vec::new();
        match hidden {
            None => unobserved.push((UnobservedReason::SampleGap, Nanos(elapsed))),
            Some(hidden) => {
                truth.busy = worked.values().sum();
                for (pid, busy) in worked {
                    let shown = busy - busy / 1_000 * hidden;
                    truth.nobodys += busy - shown;
                    truth.credits.push((pid, shown));
                }
            }
        }
        let idle = elapsed - truth.busy;
        let window = GpuWindow {
            gpu: uuid(gpu),
            start: BootTime(start),
            end: BootTime(now),
            busy: Nanos(truth.busy),
            idle: Nanos(if hidden.is_some() { idle } else { 0 }),
            unobserved,
            credits: truth.credits.iter().map(credit).collect(),
            below_resolution: Nanos(truth.nobodys),
            no_row: Nanos::ZERO,
            // One process in three decodes, for half of its time.
            engines: truth
                .credits
                .iter()
                .filter(|(pid, _)| pid % 3 == 0)
                .map(|&(pid, busy)| EngineUse {
                    pid: Pid(pid),
                    engines: Engines {
                        decoder: Nanos(busy / 2),
                        ..Engines::default()
                    },
                })
                .collect(),
            energy: Some(Millijoules(elapsed / MILLI)),
            quality: WindowQuality::default(),
            clocks: None,
        };
        truth.window = Input::Window(window);
        of.held.push_back(truth.window.clone());
        of.unbooked.push_back(truth);
    }

    fn windows_arrive(&mut self, gpu: usize) {
        if self.left.is_some() {
            return;
        }
        let now = self.now;
        let of = &mut self.gpus[gpu];
        let windows = std::mem::take(&mut of.held);
        for window in of.unbooked.iter_mut().rev().take(windows.len()) {
            window.given = now;
        }
        for window in windows {
            self.take(window);
        }
    }

    fn lists(&mut self, gpu: usize) {
        let working = self.gpus[gpu].working.map(|(pid, _)| pid);
        let has_context =
            |pid: &u32| self.alive(*pid).is_some() || self.tears_down_until(*pid).is_some();
        let pids = working.filter(has_context);
        let at = self.now;
        self.pending_lists
            .extend(pids.map(|pid| List { at, gpu, pid }));
        self.take(Input::GpuProcesses(GpuProcesses {
            gpu: uuid(gpu),
            at: BootTime(self.now),
            processes: pids
                .map(|pid| GpuProcess {
                    pid: Pid(pid),
                    mps: MpsRole::None,
                    memory: Some(1 << 20),
                })
                .into_iter()
                .collect(),
            memory_used: Some(1 << 20),
        }));
    }

    fn named(&mut self, place: Place, source: IdentitySource, answer: Answer) {
        let [namespace, pod, container] = place.names();
        if place == Place::Pod {
            return self.pod_named(source, answer);
        }
        if place == Place::Host {
            return;
        }
        let id = place.account().as_str().into();
        let container = if matches!(answer, Answer::Renamed) {
            RENAMED
        } else {
            container
        };
        let kubernetes = |namespace: &str, uid: &str| KubernetesNames {
            namespace: namespace.into(),
            pod: pod.into(),
            pod_uid: uid.into(),
            container: container.into(),
        };
        let kubernetes = match (answer, place.pod_uid()) {
            (Answer::Unknown, _) => {
                let reason = "not_found";
                let update = IdentityUpdate::NotFound { source, id, reason };
                return self.take(Input::Identity(update));
            }
            (Answer::Removed, _) => {
                return self.take(Input::Identity(IdentityUpdate::Removed { source, id }));
            }
            (Answer::WithoutPod, _) | (_, None) => None,
            (Answer::Wrong, Some(_)) => {
                Some(kubernetes("evil", "eeeeeeee-2222-3333-4444-555555555555"))
            }
            (Answer::Right | Answer::Renamed, Some(uid)) => Some(kubernetes(namespace, uid)),
        };
        if place == Place::InPod {
            // These two need no container in the pod's cgroup. What is said last counts.
            let is_roots = matches!(source, IdentitySource::Cri | IdentitySource::KubeletLogs);
            if is_roots && matches!(answer, Answer::Right | Answer::Renamed) {
                self.know_the_pod.insert(source, self.now);
            } else {
                self.know_the_pod.remove(&source);
            }
        }
        self.take(Input::Identity(IdentityUpdate::Found(ContainerIdentity {
            runtime: None,
            id,
            source,
            name: Some(container.into()),
            image: None,
            kubernetes,
            labels: BTreeMap::new(),
        })));
    }

    /// A source that is asked for pods answers for the one whose own cgroup has processes.
    fn pod_named(&mut self, source: IdentitySource, answer: Answer) {
        let [namespace, pod, container] = Place::Pod.names();
        let uid: PodUid = Place::Pod.account().as_str().into();
        let update = match answer {
            Answer::Right => IdentityUpdate::FoundPod {
                source,
                names: KubernetesNames {
                    namespace: namespace.into(),
                    pod: pod.into(),
                    pod_uid: uid,
                    container: container.into(),
                },
            },
            Answer::Unknown => IdentityUpdate::PodNotFound {
                source,
                uid,
                reason: "not_found",
            },
            Answer::Renamed | Answer::Wrong | Answer::WithoutPod | Answer::Removed => return,
        };
        self.take(Input::Identity(update));
    }

    fn step(&mut self, step: Step) {
        // No two things happen at one instant.
        self.now += 1;
        let needs_agent = !matches!(
            step,
            Step::Wait(_)
                | Step::Born(..)
                | Step::Run(..)
                | Step::Moves(..)
                | Step::Dies(..)
                | Step::TearsDown(..)
                | Step::Works(..)
                | Step::Window(..)
                | Step::Blind(_)
                | Step::Start
        );
        if self.left.is_some() && needs_agent {
            return;
        }
        match step {
            Step::Wait(span) => self.now += span,
            Step::Born(pid, place) => self.born(pid, place, false),
            Step::Run(pid, place) => self.born(pid, place, true),
            Step::Moves(pid, place) => self.moves(pid, place),
            Step::Dies(pid, twice) => self.dies(pid, twice, None),
            Step::TearsDown(pid, span) => self.dies(pid, false, Some(span)),
            Step::Works(gpu, pid) => self.works(gpu, pid),
            Step::Lose(count) => self.lose = count,
            Step::Announce(place) => self.announce(place),
            Step::Drain(ago, order) => self.drain(ago, order),
            Step::ScanBegins(unread, late) => self.scan_begins(unread, late),
            Step::ScanArrives => self.scan_arrives(),
            Step::Window(gpu, held, hidden) => {
                self.window(gpu, Some(hidden));
                if !held {
                    self.windows_arrive(gpu);
                }
            }
            Step::Blind(gpu) => self.window(gpu, None),
            Step::WindowsArrive(gpu) => self.windows_arrive(gpu),
            Step::Lists(gpu) => self.lists(gpu),
            Step::Named(place, source, answer) => self.named(place, source, answer),
            Step::Kernel(up) => self.kernel(up),
            Step::Commit => self.commit(),
            Step::Kill => self.kill(),
            Step::Start => self.start(),
        }
        for gpu in 0..GPUS {
            if self.now - self.gpus[gpu].windowed > LONGEST_WINDOW {
                self.now += 1;
                self.window(gpu, Some(0));
                self.windows_arrive(gpu);
            }
        }
    }

    /// Everything that is under way arrives, and all that is booked comes out.
    fn end(&mut self) {
        self.now += 1;
        self.start();
        self.kernel(true);
        for gpu in 0..GPUS {
            self.window(gpu, Some(0));
            self.windows_arrive(gpu);
        }
        self.drain(0, 1);
        self.scan_begins(0, false);
        self.scan_arrives();
        self.commit();
        assert!(
            self.gpus.iter().all(|gpu| gpu.unbooked.is_empty()),
            "nothing waits once the stream and a scan have caught up"
        );
        for _ in 0..2 {
            self.now += self.policy.grace.0.max(self.policy.zero_for.0) + 1;
            self.commit();
        }
        for ((place, gpu), expected) in &self.expected {
            let (booked, published) = match place {
                Place::Host => {
                    let host = self.host(*gpu);
                    (host, host)
                }
                _ => {
                    let key = (place.account(), uuid(*gpu).to_string());
                    let now_and_before = self.booked.get(&key).copied().unwrap_or_default();
                    let published = self.published.values().filter(|it| it.account == key);
                    let published: Nanos = published.map(|it| it.last).sum();
                    (now_and_before.0.plus(now_and_before.1), published)
                }
            };
            assert_eq!(booked, published, "{place:?}: all is out in the end");
            assert!(
                booked.0 >= expected.certain,
                "{place:?} on GPU {gpu}: {booked:?} booked, {expected:?}"
            );
        }
    }

    fn host(&self, gpu: usize) -> Nanos {
        let of_gpu = |key: &&(String, WallTime)| key.0 == uuid(gpu).to_string();
        let hosts = self.hosts.iter().filter(|(key, _)| of_gpu(key));
        hosts.map(|(_, amount)| *amount).sum()
    }

    fn commit(&mut self) {
        let snapshot = self.accountant.commit(clock(self.now));
        drop(self.accountant.take_effects());
        self.settle_lists();
        for (gpu, book) in snapshot.gpus.iter().enumerate() {
            assert_eq!(book.imbalance, 0, "{book:?}");
            let unobserved: Nanos = book.unobserved.iter().map(|(_, amount)| *amount).sum();
            assert_eq!(book.elapsed, book.busy.plus(book.idle).plus(unobserved));
            let news = book.windows - self.gpus[gpu].booked_windows;
            self.gpus[gpu].booked_windows = book.windows;
            for _ in 0..news {
                let window = self.gpus[gpu].unbooked.pop_front();
                let window = window.expect("no window is booked that was not closed");
                self.expect(gpu, &window);
            }
            assert_eq!(book.busy, Nanos(self.busy[gpu]), "as the world says");
            let hidden = |reason| {
                let found = book.unattributed.iter().find(|(r, _)| *r == reason);
                found.map_or(Nanos::ZERO, |(_, amount)| *amount)
            };
            let below = hidden(UnattributedReason::BelowResolution);
            assert_eq!(below, Nanos(self.nobodys[gpu]));
        }
        self.check_booked(&snapshot);
        self.check_published(&snapshot);
    }

    /// Notes what a window that has just been booked must have brought whom.
    fn expect(&mut self, gpu: usize, window: &Truth) {
        let has_waited = self.now - window.given >= Settings::default().await_events.0;
        let is_scanned = self.own_scans().iter().any(|of| of.began >= window.end);
        let is_in_gap = self.gap.is_some_and(|(since, _)| since < window.end);
        let has_drained = self.drained >= window.end;
        let has_caught_up = if is_in_gap {
            is_scanned && (has_drained || !self.is_up)
        } else {
            has_drained
        };
        let is_nobodys = window.busy == 0 && !self.is_up;
        assert!(
            has_caught_up || has_waited || is_nobodys,
            "a window was booked before what happened in it was known: {window:?}"
        );
        self.busy[gpu] += window.busy;
        self.nobodys[gpu] += window.nobodys;
        for &(pid, amount) in &window.credits {
            let newest = self.own_scans().last();
            let is_read = newest.is_some_and(|of| of.tells_of(pid));
            let doubt = self.doubted.get(&pid);
            let is_doubted =
                doubt.is_some_and(|of| of.since < window.end && window.end <= of.until);
            if is_doubted || (is_in_gap && !(is_scanned && is_read)) {
                // Another process may have the pid by now, and nothing rules it out. The time then
                // has no owner, and is not its former holder's.
                continue;
            }
            let mended = |untold: &Unreported| {
                self.scanned.iter().any(|of| {
                    // What came before a loss may come after the scan.
                    let is_known = !untold.is_lost || of.drained >= untold.at;
                    let is_later = of.began >= untold.at && of.came + SLACK <= window.start;
                    is_later && is_known && of.tells_of(pid) && !of.missed.contains(&pid)
                })
            };
            let is_untold = |of: &Unreported| of.pid == pid && of.at <= window.end && !mended(of);
            let is_late = self.drained < window.end && (self.is_up || !is_in_gap);
            let is_in_doubt = is_late
                || self.could_not_be_seen(pid, window.start, window.end)
                || self.untold.iter().any(is_untold);
            let by_scan = self.holder_by_scan(pid, window);
            let is_beside_another = self.is_torn_down_beside_another(pid, window);
            if is_beside_another || (is_in_doubt && by_scan.is_none()) {
                self.doubt[gpu] += amount;
                continue;
            }
            let mut owners = self.owners(pid, window.start, window.end);
            // A scan's starts are whole ticks: who has the pid next may seem to have had it.
            let mut next = self.owners(pid, window.start, window.end + TICK);
            let mut is_known = true;
            if owners.is_empty()
                && let Some((end, place, has_just_moved)) = self.torn_down_in(pid, window)
            {
                is_known = self.complete_since <= end && !has_just_moved;
                owners.insert(place);
                next.insert(place);
            }
            // The row does not say which of two it was, so the time has no owner.
            if let [owner] = owners.iter().copied().collect::<Vec<_>>()[..] {
                let mut chain = owner.cgroups().into_iter();
                let is_announced = chain.all(|cgroup| self.announced.contains(&cgroup.key.id));
                let expected = self.expected.entry((owner, gpu)).or_default();
                let mut gaps = self.gaps.iter();
                let is_in_gap = gaps.any(|gap| window.start < gap.until + SLACK);
                let mut blurred = self.blurred.iter();
                let is_blurred = blurred.any(|of| {
                    let mut untold = self.untold.iter();
                    of.pid == pid
                        && of.from < window.end + TICK
                        && of.to + SLACK > window.start
                        && (of.moved > self.drained
                            || untold.any(|untold| untold.pid == pid && untold.at == of.moved))
                });
                let is_certain = is_announced && next == owners && !is_in_gap;
                if is_certain && is_known && !is_blurred && !is_in_doubt {
                    expected.certain += amount;
                } else {
                    expected.possible += amount;
                }
            }
        }
    }

    /// Who a scan from after a window shows to have had a pid throughout it, whatever was lost: it
    /// began before the window, long after whoever had the pid before, and has never moved.
    fn holder_by_scan(&self, pid: u32, window: &Truth) -> Option<Place> {
        let of_pid = || self.lives.iter().filter(|life| life.pid == pid);
        let life = of_pid().rfind(|life| life.start <= window.end)?;
        let process = (pid, life.start / TICK);
        let saw = |of: &Scanned| of.began >= window.end && of.saw.contains(&process);
        // Of what an agent that was killed had seen, this one knows whom that one handed over.
        let is_handed_over = self
            .gaps
            .last()
            .is_none_or(|gap| gap.kept.contains(&process));
        let scanned = if is_handed_over {
            &self.scanned
        } else {
            self.own_scans()
        };
        let former = of_pid().rfind(|of| of.start < life.start);
        let is_former_long_gone = former.is_none() || life.start + TICK + SLACK <= window.start;
        let is_shown = scanned.iter().any(saw) && is_former_long_gone;
        let [(since, place)] = life.stays[..] else {
            return None;
        };
        (is_shown && life.start <= window.start && since == life.start).then_some(place)
    }

    /// Whether what a pid did in a stretch of time cannot be told from what somebody else did who had
    /// it before or after, since no agent ran.
    fn could_not_be_seen(&self, pid: u32, from: u64, to: u64) -> bool {
        let of_pid = || self.lives.iter().filter(|life| life.pid == pid);
        let mut gaps = self.gaps.iter();
        gaps.any(|gap| {
            // The scan dates a move, and up to then who was there before may be credited.
            if from >= gap.until + SLACK {
                return false;
            }
            let is_kept = |life: &Life| gap.kept.contains(&(pid, life.start / TICK));
            let is_over = |life: &Life| life.end.is_some_and(|end| end <= gap.until);
            let has_moved = |life: &Life, from: u64| {
                let moves = life.stays.iter().skip(1);
                moves.into_iter().any(|(at, _)| *at > from)
            };
            let touches = |life: &&Life| {
                let end = life.end.max(life.torn_down);
                life.start <= to + TICK && end.is_none_or(|end| end + SLACK > from)
            };
            // A scan found it where it had moved to, and the events of its move were never received.
            let is_found_moved = |life: &Life| {
                let mut moves = life.stays.iter().skip(1);
                moves.any(|(at, _)| {
                    let mut scans = self.scanned.iter();
                    *at > gap.from && scans.any(|of| *at <= of.came && of.came <= gap.until)
                })
            };
            let unseen = |life: &Life| {
                (is_over(life) && (life.start > gap.from || has_moved(life, gap.from)))
                    || (!is_kept(life) && has_moved(life, 0))
                    || is_found_moved(life)
                    || (!is_kept(life) && is_over(life) && of_pid().filter(touches).count() > 1)
            };
            of_pid().filter(touches).any(unseen)
        })
    }

    /// Who had a pid before a window and whose context was torn down in it: when it died, where it
    /// was, and whether it had only just come there.
    fn torn_down_in(&self, pid: u32, window: &Truth) -> Option<(u64, Place, bool)> {
        let mut of_pid = self.lives.iter().filter(|life| life.pid == pid);
        let life = of_pid.rfind(|life| life.start <= window.end)?;
        let end = life.end.filter(|end| *end <= window.start)?;
        let (since, place) = *life.stays.last().expect("it was somewhere");
        let is_torn_down = life.torn_down.is_some_and(|until| until > window.start);
        // A sample is about the time before it, when one that had just moved was elsewhere.
        let has_just_moved = life.stays.len() > 1 && since + SLACK > window.start;
        is_torn_down.then_some((end, place, has_just_moved))
    }

    /// Whether a window has both a dead process's tear-down and the next holder of its pid: the row
    /// is one figure, and the core takes it for the next holder's.
    fn is_torn_down_beside_another(&self, pid: u32, window: &Truth) -> bool {
        let lives = || self.lives.iter().filter(|life| life.pid == pid);
        let mut torn_down = lives().filter(|life| {
            life.end.is_some_and(|end| end <= window.start)
                && life.torn_down.is_some_and(|until| until > window.start)
        });
        torn_down.any(|dead| {
            lives().any(|life| life.start > dead.start && life.start <= window.end + TICK)
        })
    }

    /// Everywhere that somebody with this pid was in a stretch of time.
    fn owners(&self, pid: u32, from: u64, to: u64) -> BTreeSet<Place> {
        let mut owners = BTreeSet::new();
        for life in self.lives.iter().filter(|life| life.pid == pid) {
            let end = life.end.unwrap_or(u64::MAX);
            for (at, &(since, place)) in life.stays.iter().enumerate() {
                let until = life.stays.get(at + 1).map_or(end, |(next, _)| *next);
                if since <= to && until > from && life.start <= to && end > from {
                    owners.insert(place);
                }
            }
        }
        owners
    }

    fn check_booked(&mut self, snapshot: &Snapshot) {
        let mut open = BTreeMap::new();
        for account in &snapshot.accounts {
            let owner = if account.id.as_str() == "(none)" {
                account.labels.pod_uid.to_string()
            } else {
                account.id.to_string()
            };
            if account.memory_peak.is_some() {
                let place = Place::of_account(&owner);
                let mut gpus = 0..GPUS;
                let gpu = gpus.find(|gpu| uuid(*gpu) == account.gpu);
                assert!(
                    gpu.is_some_and(|gpu| self.listed.contains(&(place, gpu))),
                    "{place:?} has a peak of memory and was on no list of {}",
                    account.gpu
                );
            }
            let key = (owner, account.gpu.to_string());
            assert!(
                open.insert(key, account.amounts.busy).is_none(),
                "one account twice"
            );
        }
        for (key, (now, before)) in &mut self.booked {
            match open.remove(key) {
                Some(busy) => {
                    assert!(busy >= *now, "{key:?} fell from {now:?} to {busy:?}");
                    *now = busy;
                }
                None => {
                    *before = before.plus(*now);
                    *now = Nanos::ZERO;
                }
            }
        }
        for (key, busy) in open {
            self.booked.insert(key, (busy, Nanos::ZERO));
        }
        for series in &snapshot.host_series {
            assert_eq!(series.unit.as_str(), Place::Host.account());
            let key = (series.gpu.to_string(), series.start);
            let before = self.hosts.insert(key, series.amounts.busy);
            assert!(before.is_none_or(|before| before <= series.amounts.busy));
        }
        self.check_host_accounts(snapshot);
        for gpu in 0..GPUS {
            for place in Place::ALL {
                let booked = match place {
                    Place::Host => self.host(gpu),
                    _ => {
                        let key = (place.account(), uuid(gpu).to_string());
                        let (now, before) = self.booked.get(&key).copied().unwrap_or_default();
                        now.plus(before)
                    }
                };
                let expected = self.expected.get(&(place, gpu)).copied();
                let expected = expected.unwrap_or_default();
                let most = expected.certain + expected.possible + self.doubt[gpu];
                assert!(
                    booked.0 <= most,
                    "{place:?} on GPU {gpu}: {booked:?} booked, {expected:?}, {} in doubt",
                    self.doubt[gpu]
                );
                // The host's account shows only what is out.
                if place != Place::Host {
                    assert!(
                        booked.0 >= expected.certain,
                        "{place:?} on GPU {gpu}: {booked:?} booked, {expected:?}"
                    );
                }
            }
        }
    }

    /// What is told of the host unit's accounts is all that is booked, published or not.
    fn check_host_accounts(&mut self, snapshot: &Snapshot) {
        let mut open = BTreeMap::new();
        for account in &snapshot.host_accounts {
            assert_eq!(account.unit.as_str(), Place::Host.account());
            let before = open.insert(account.gpu.to_string(), account.amounts.busy);
            assert!(before.is_none(), "one account twice");
        }
        for gpu in 0..GPUS {
            let key = uuid(gpu).to_string();
            let (now, before) = self.host_booked.entry(key.clone()).or_default();
            match open.remove(&key) {
                Some(busy) => {
                    assert!(busy >= *now, "the host fell from {now:?} to {busy:?}");
                    *now = busy;
                }
                None => {
                    *before = before.plus(*now);
                    *now = Nanos::ZERO;
                }
            }
            let booked = now.plus(*before);
            let expected = self.expected.get(&(Place::Host, gpu)).copied();
            let expected = expected.unwrap_or_default();
            let most = expected.certain + expected.possible + self.doubt[gpu];
            assert!(
                expected.certain <= booked.0 && booked.0 <= most,
                "the host on GPU {gpu}: {booked:?} booked, {expected:?}"
            );
            let published = self.host(gpu);
            assert!(published <= booked, "{published:?} of {booked:?}");
        }
    }

    fn check_published(&mut self, snapshot: &Snapshot) {
        for account in &snapshot.accounts {
            let labels = &account.labels;
            let mut told = self.know_the_pod.values();
            let is_pod_known = told.any(|at| self.now - at < FORGOTTEN_AFTER);
            if &*labels.container == "(pod)" && is_pod_known {
                let found = [&labels.namespace, &labels.pod, &labels.container];
                let found = found.map(|label| &**label);
                assert_eq!(found, Place::Pod.names(), "somebody knows the pod");
            }
        }
        let mut shown = BTreeSet::new();
        for series in &snapshot.container_series {
            let labels = &series.labels;
            let account = if &*labels.container_id == "(none)" {
                &labels.pod_uid
            } else {
                &labels.container_id
            };
            check_labels(labels, Place::of_account(account));
            let account = (account.to_string(), series.gpu.to_string());
            let key = (labels.clone(), series.gpu.to_string(), series.start);
            assert!(shown.insert(key.clone()), "one series twice: {key:?}");
            let is_first = !self.published.contains_key(&key);
            let entry = self.published.entry(key).or_insert(Published {
                account,
                last: Nanos::ZERO,
                all: Amounts::ZERO,
                decoder: false,
                gone: false,
            });
            // One that was gone may also go on where it stopped.
            entry.gone = false;
            assert!(
                entry.all.minus(series.amounts).is_zero(),
                "{labels:?} fell from {:?} to {:?}",
                entry.all,
                series.amounts
            );
            entry.all = series.amounts;
            assert!(
                !is_first || self.policy.zero_for.is_zero() || series.amounts.busy.is_zero(),
                "{labels:?} was not shown at 0"
            );
            entry.last = series.amounts.busy;
            let shown: Vec<Engine> = series.engines.iter().collect();
            assert!(shown.iter().all(|engine| *engine == Engine::Decoder));
            let decoder = series.amounts.engines.decoder;
            assert!(
                !shown.is_empty() || decoder.is_zero(),
                "{labels:?}: an engine that was published went"
            );
            assert!(
                shown.is_empty()
                    || entry.decoder
                    || self.policy.zero_for.is_zero()
                    || decoder.is_zero(),
                "{labels:?}: an engine was not shown at 0"
            );
            entry.decoder |= !shown.is_empty();
        }
        for (key, series) in &mut self.published {
            if !series.gone && !shown.contains(key) {
                series.gone = true;
                let booked = self.booked.get(&series.account);
                let (now, _) = booked.copied().unwrap_or_default();
                assert!(now.is_zero(), "{key:?} went before its account did");
            }
        }
        for (account, (now, before)) in &self.booked {
            let published = self.published.values().filter(|it| it.account == *account);
            let published: Nanos = published.map(|it| it.last).sum();
            let booked = now.plus(*before);
            assert!(
                published <= booked,
                "{account:?}: {published:?} of {booked:?}"
            );
            if now.is_zero() {
                assert_eq!(
                    published, booked,
                    "{account:?} was closed before all was out"
                );
            }
        }
        let mut fed = BTreeMap::<String, Nanos>::new();
        for series in &snapshot.namespace_series {
            let namespace = series.namespace.to_string();
            assert!(
                ["ml", "web", "(none)", "(unresolved)"].contains(&&*namespace),
                "{namespace} is nobody's"
            );
            *fed.entry(series.gpu.to_string()).or_default() += series.amounts.busy;
            let key = (namespace, series.gpu.to_string());
            let before = self.namespaces.insert(key, series.amounts.busy);
            assert!(before.is_none_or(|before| before <= series.amounts.busy));
        }
        for (gpu, fed) in fed {
            let of_gpu = self.booked.iter().filter(|((_, of), _)| *of == gpu);
            let booked: Nanos = of_gpu.map(|(_, (now, before))| now.plus(*before)).sum();
            assert!(
                fed <= booked,
                "{gpu}: namespaces have {fed:?} of {booked:?}"
            );
        }
    }
}

/// CPUs write concurrently: what concerns different processes comes in any order. What concerns one
/// is caused by what came before it, and a cgroup is announced before who is in it.
fn shuffled(events: impl Iterator<Item = KernelEvent>, mut order: u64) -> Vec<KernelEvent> {
    let mut cgroups = Vec::new();
    let mut by_pid = BTreeMap::<u32, VecDeque<KernelEvent>>::new();
    for event in events {
        match pid_of(&event) {
            None => cgroups.push(event),
            Some(pid) => by_pid.entry(pid).or_default().push_back(event),
        }
    }
    let mut queues: Vec<_> = by_pid.into_values().collect();
    let mut events = cgroups;
    while !queues.is_empty() {
        order = order
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let at = usize::try_from(order >> 33).unwrap_or(0) % queues.len();
        events.extend(queues[at].pop_front());
        if queues[at].is_empty() {
            queues.swap_remove(at);
        }
    }
    events
}

fn process_of(event: &KernelEvent) -> Option<&ProcessEvent> {
    match event {
        KernelEvent::Cgroup(_) | KernelEvent::CgroupRemoved(_) => None,
        KernelEvent::Fork(of)
        | KernelEvent::Exec(of)
        | KernelEvent::Exit(of)
        | KernelEvent::Attach(of) => Some(of),
        KernelEvent::Open(of) => Some(&of.process),
    }
}

fn pid_of(event: &KernelEvent) -> Option<u32> {
    process_of(event).map(|of| of.pid.0)
}

fn credit(&(pid, busy): &(u32, u64)) -> Credit {
    Credit {
        pid: Pid(pid),
        busy: Nanos(busy),
    }
}

fn check_labels(labels: &ContainerLabels, place: Place) {
    let found = [&labels.namespace, &labels.pod, &labels.container];
    assert!(found.iter().all(|label| !label.is_empty()), "{labels:?}");
    assert!(!labels.pod_uid.is_empty() && !labels.container_id.is_empty());
    let unresolved = match place {
        Place::Pod => ["(unresolved)", "(unresolved)", "(pod)"],
        _ => ["(unresolved)"; 3],
    };
    let found = found.map(|label| &**label);
    let [namespace, pod, _] = place.names();
    let renamed = [namespace, pod, RENAMED];
    let is_container = !matches!(place, Place::Pod | Place::Host);
    assert!(
        found == place.names() || found == unresolved || (is_container && found == renamed),
        "{place:?} is published as {labels:?}"
    );
}

fn clock(now: u64) -> Clock {
    Clock {
        boot: BootTime(now),
        wall: WallTime(1_700_000_000 * SECOND + now),
    }
}

fn live(policy: Policy, steps: Vec<Step>) {
    let mut world = World::new(policy);
    for step in steps {
        world.step(step);
    }
    world.end();
}

proptest! {
    #[test]
    fn the_books_are_right_whatever_happens_in_whatever_order(
        policy in policy(),
        steps in prop::collection::vec(step(), 1..150),
    ) {
        live(policy, steps);
    }

    /// Then only what was not awaited is in doubt.
    #[test]
    fn they_are_right_to_the_nanosecond_where_nothing_is_lost(
        policy in policy(),
        mut steps in prop::collection::vec(step(), 1..150),
    ) {
        steps.retain(|step| !matches!(step, Step::Lose(_) | Step::Kernel(_)));
        live(policy, steps);
    }
}

#[test]
fn an_account_is_not_closed_before_the_windows_of_its_life_are_booked() {
    let policy = Policy {
        grace: Nanos::from_millis(1),
        zero_for: Nanos::ZERO,
        keep_for: Nanos::from_millis(500),
    };
    let steps = vec![
        Step::Born(101, Place::Plain),
        Step::Drain(0, 0),
        Step::Works(1, Some(101)),
        Step::Lists(1),
        Step::Wait(SECOND),
        Step::Dies(101, false),
        Step::Drain(0, 0),
        Step::Wait(MILLI),
        Step::Commit,
        Step::Wait(MILLI),
        Step::Commit,
        Step::Wait(SECOND),
        Step::Commit,
    ];
    // The window comes with the end.
    live(policy, steps);
}

/// What is published is not the matter of these.
fn at_once() -> Policy {
    Policy {
        grace: Nanos::ZERO,
        zero_for: Nanos::ZERO,
        keep_for: Nanos::from_secs(600),
    }
}

#[test]
fn work_that_is_credited_seconds_after_an_exit_is_the_dead_process_s() {
    let steps = vec![
        Step::Born(101, Place::Plain),
        Step::Works(0, Some(101)),
        Step::Wait(SECOND),
        Step::TearsDown(101, 4 * SECOND),
        Step::Drain(0, 0),
        Step::Window(0, false, 0),
        Step::Wait(3 * SECOND),
        Step::Window(0, false, 0),
        Step::Drain(0, 0),
        Step::Commit,
        Step::Wait(SECOND / 2),
        Step::Window(0, false, 0),
        Step::Drain(0, 0),
        Step::Commit,
    ];
    live(at_once(), steps);
}

#[test]
fn the_dead_pay_for_no_tear_down_after_a_loss_in_which_their_pid_may_have_been_taken() {
    let steps = vec![
        Step::Announce(Place::OtherPlain),
        Step::Born(101, Place::Plain),
        Step::Works(0, Some(101)),
        Step::Wait(SECOND),
        Step::Dies(101, false),
        Step::Window(0, false, 0),
        Step::Drain(0, 0),
        Step::Commit,
        Step::Wait(SECOND),
        Step::Window(0, false, 0),
        // Nobody hears of the next one, who lives for less than a scan.
        Step::Lose(6),
        Step::Born(101, Place::OtherPlain),
        Step::Works(0, Some(101)),
        Step::Wait(SECOND),
        Step::Dies(101, false),
        Step::Window(0, true, 0),
        Step::Wait(SECOND),
        Step::Drain(0, 0),
        Step::ScanBegins(0, false),
        Step::ScanArrives,
        Step::WindowsArrive(0),
        Step::Commit,
    ];
    let mut world = World::new(at_once());
    for step in steps {
        world.step(step);
    }
    let key = (Place::Plain.account(), uuid(0).to_string());
    let expected = world.expected[&(Place::Plain, 0)];
    assert_eq!(world.booked[&key].0, Nanos(expected.certain));
    world.end();
}
// generated

/// A scan could not read the process. Its exit names it, and says that it had the pid until then.
#[test]
fn an_exit_confirms_a_process_that_a_scan_could_not_read() {
    let unread = 0b100;
    let steps = vec![
        Step::Born(102, Place::Plain),
        Step::Drain(0, 0),
        Step::Kernel(false),
        Step::Kernel(true),
        Step::ScanBegins(unread, false),
        Step::Works(1, Some(102)),
        Step::Wait(SECOND),
        Step::Window(1, false, 0),
        Step::ScanArrives,
        Step::Dies(102, false),
        Step::Wait(1),
        Step::Drain(0, 0),
        Step::Commit,
    ];
    let mut world = World::new(at_once());
    for step in steps {
        world.step(step);
    }
    let key = (Place::Plain.account(), uuid(1).to_string());
    assert!(world.booked[&key].0 > Nanos(SECOND));
    world.end();
}

#[test]
fn an_account_that_is_opened_anew_after_a_restart_has_a_start_of_its_own() {
    let policy = Policy {
        grace: Nanos::ZERO,
        zero_for: Nanos::ZERO,
        keep_for: Nanos::from_millis(500),
    };
    let steps = vec![
        Step::Born(102, Place::Plain),
        Step::Works(0, Some(102)),
        Step::Lists(0),
        Step::Dies(102, false),
        Step::Drain(0, 0),
        Step::Run(100, Place::Plain),
        Step::Commit,
        Step::Wait(500 * MILLI),
        // The last commit closes the account; the next agent books a window of before.
        Step::Kill,
    ];
    live(policy, steps);
}

#[test]
fn a_restarted_agent_knows_in_which_pod_a_container_was_that_has_no_process_any_more() {
    let policy = Policy {
        grace: Nanos::ZERO,
        zero_for: Nanos::from_millis(1),
        keep_for: Nanos::from_secs(600),
    };
    for answer in [Answer::Wrong, Answer::WithoutPod] {
        let steps = vec![
            Step::Born(102, Place::InPod),
            Step::Works(0, Some(102)),
            Step::Wait(SECOND),
            Step::Window(0, false, 0),
            Step::Moves(102, Place::Plain),
            Step::Wait(SECOND),
            Step::Window(0, false, 0),
            Step::Drain(0, 0),
            Step::Commit,
            // Once this is booked, where the process was before is not kept any more.
            Step::Wait(2 * SECOND),
            Step::Window(0, false, 0),
            Step::Window(1, false, 0),
            Step::Drain(0, 0),
            Step::Commit,
            Step::Kill,
            Step::Start,
            Step::Named(Place::InPod, IdentitySource::Docker, answer),
        ];
        live(policy, steps);
    }
}

/// The event of the move comes after a scan that saw the process in its new place. The names of the
/// new cgroup are lost, so that the event's number and the scan's path are not known to be one.
#[test]
fn what_a_process_did_before_a_move_that_a_scan_saw_first_stays_where_it_was() {
    let steps = vec![
        Step::Born(102, Place::Plain),
        Step::Works(0, Some(102)),
        Step::ScanBegins(0, true),
        Step::Wait(SECOND),
        Step::Window(0, false, 0),
        Step::Lose(2),
        Step::Drain(0, 0),
        Step::Moves(102, Place::InPod),
        Step::Wait(200 * MILLI),
        Step::ScanArrives,
        Step::Drain(0, 0),
        Step::Wait(1),
        Step::TearsDown(102, 1),
    ];
    live(at_once(), steps);
}

#[test]
fn a_scan_that_began_before_a_process_did_has_not_seen_it_before_its_birth() {
    let steps = vec![
        Step::ScanBegins(0, true),
        Step::Born(100, Place::InPod),
        Step::Works(0, Some(100)),
        Step::Window(0, false, 0),
        Step::Wait(10 * MILLI),
        Step::Drain(0, 0),
        Step::Moves(100, Place::Plain),
        Step::ScanArrives,
        Step::Commit,
    ];
    live(at_once(), steps);
}
