//! Allocated time against a node that knows who had which GPU, and when.
//!
//! The node is small: a few containers in pods, two GPUs, a kubelet that may be down. Processes are
//! found by scans of `/proc`. At each commit no account has more held or allocated time than has
//! passed, and no counter falls.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use gpuacct_core::accountant::{Accountant, Settings};
use gpuacct_core::input::{
    AllocatedDevice, Allocations, ContainerAllocation, ContainerIdentity, Credit, DeviceRef,
    EventCounters, GpuInfo, GpuWindow, IdentitySource, IdentityUpdate, Input, KernelBatch,
    KubernetesNames, Policy, ProcessScan, ScannedProcess, SourceHealth, WindowQuality,
};
use gpuacct_core::model::{
    BootTime, Clock, GpuUuid, Nanos, Pid, SourceId, SourceState, StartTicks, WallTime,
};
use gpuacct_core::records::PersistedState;
use gpuacct_core::snapshot::{AllocationState, ContainerAccount, Snapshot};
use proptest::prelude::*;

const SECOND: u64 = 1_000_000_000;
const GPUS: usize = 2;
const CONTAINERS: usize = 8;
/// When the first agent begins.
const BEGIN: u64 = 1_000 * SECOND;

fn clock(boot: u64) -> Clock {
    Clock {
        boot: BootTime(boot),
        wall: WallTime(1_700_000_000 * SECOND + boot),
    }
}

fn uuid(gpu: usize) -> GpuUuid {
    GpuUuid::from(format!("GPU-{gpu}").as_str())
}

fn id(container: usize) -> String {
    format!("{:064x}", 0xa0 + container)
}

fn pod_uid(container: usize) -> String {
    format!("11111111-2222-3333-4444-{container:012}")
}

fn policy() -> Policy {
    Policy {
        grace: Nanos::from_secs(2),
        zero_for: Nanos::from_secs(1),
        keep_for: Nanos::from_secs(600),
    }
}

struct Node {
    accountant: Accountant,
    settings: Settings,
    now: u64,
    /// The end of each GPU's last window; absent where the GPU has none.
    windowed: [Option<u64>; GPUS],
    /// Living processes: start and container.
    processes: BTreeMap<u32, (u64, usize)>,
    /// The last that was seen of each account, by container, GPU and opening.
    seen: BTreeMap<(String, String), Nanos>,
    last_number: u32,
}

impl Node {
    fn new() -> Self {
        let settings = Settings {
            policy: policy(),
            ..Settings::default()
        };
        let mut accountant = Accountant::new(settings, clock(BEGIN));
        accountant.keep();
        let mut node = Self {
            accountant,
            settings,
            now: BEGIN,
            windowed: [Some(BEGIN); GPUS],
            processes: BTreeMap::new(),
            seen: BTreeMap::new(),
            last_number: 0,
        };
        node.begin();
        node
    }

    /// What an agent is told first.
    fn begin(&mut self) {
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
        self.take(Input::Health(SourceHealth {
            source: SourceId::Kernel,
            state: SourceState::Up,
            since: BootTime(self.now),
            place: "".into(),
        }));
        for container in 0..CONTAINERS {
            self.name(container);
        }
        self.scan();
    }

    fn take(&mut self, input: Input) {
        self.accountant.take(input, clock(self.now));
        drop(self.accountant.take_effects());
    }

    fn name(&mut self, container: usize) {
        self.take(Input::Identity(IdentityUpdate::Found(ContainerIdentity {
            runtime: None,
            id: id(container).as_str().into(),
            source: IdentitySource::Docker,
            name: Some("main".into()),
            image: None,
            kubernetes: Some(KubernetesNames {
                namespace: "ml".into(),
                pod: format!("pod-{container}").into(),
                pod_uid: pod_uid(container).as_str().into(),
                container: "main".into(),
            }),
            labels: BTreeMap::new(),
        })));
    }

    fn scan(&mut self) {
        let processes = self.processes.iter().map(|(pid, (start, container))| {
            let path = format!("/kubepods/pod{}/{}", pod_uid(*container), id(*container));
            ScannedProcess {
                pid: Pid(*pid),
                parent: Pid(1),
                start: StartTicks::from(BootTime(*start)),
                cgroups: Arc::new([(0, path.into())]),
            }
        });
        let scan = ProcessScan {
            started: BootTime(self.now),
            finished: BootTime(self.now),
            processes: processes.collect(),
            ..ProcessScan::default()
        };
        self.take(Input::Processes(scan));
        self.drained();
    }

    fn drained(&mut self) {
        self.take(Input::Kernel(KernelBatch {
            events: vec![],
            drained_through: BootTime(self.now),
            counters: EventCounters::default(),
        }));
    }

    fn born(&mut self, pid: u32, container: usize) {
        self.processes.insert(pid, (self.now, container));
        self.scan();
    }

    fn dies(&mut self, pid: u32) {
        self.processes.remove(&pid);
        self.scan();
    }

    /// The kubelet lists these containers with these GPUs, and no others.
    fn listed(&mut self, given: &[(usize, &[usize])]) {
        let containers = given.iter().map(|(container, gpus)| ContainerAllocation {
            namespace: "ml".into(),
            pod: format!("pod-{container}").into(),
            container: "main".into(),
            devices: gpus
                .iter()
                .map(|gpu| AllocatedDevice {
                    resource: "nvidia.com/gpu".into(),
                    id: format!("{}::{container}", uuid(*gpu)).into(),
                    device: Some(DeviceRef::Uuid(uuid(*gpu))),
                })
                .collect(),
        });
        self.take(Input::Allocations(Allocations {
            at: BootTime(self.now),
            pod: None,
            containers: containers.collect(),
        }));
    }

    /// A window of a GPU up to now, during all of which `pid` was busy, if any was.
    fn window(&mut self, gpu: usize, pid: Option<u32>) {
        let Some(start) = self.windowed[gpu] else {
            return;
        };
        let elapsed = Nanos(self.now - start);
        if elapsed.is_zero() {
            return;
        }
        self.windowed[gpu] = Some(self.now);
        let busy = if pid.is_some() { elapsed } else { Nanos::ZERO };
        self.take(Input::Window(GpuWindow {
            gpu: uuid(gpu),
            start: BootTime(start),
            end: BootTime(self.now),
            busy,
            idle: elapsed.minus(busy),
            unobserved: vec![],
            credits: pid
                .map(|pid| Credit {
                    pid: Pid(pid),
                    busy,
                })
                .into_iter()
                .collect(),
            below_resolution: Nanos::ZERO,
            no_row: Nanos::ZERO,
            engines: vec![],
            energy: None,
            quality: WindowQuality::default(),
            clocks: None,
        }));
    }

    /// So many seconds pass, each with its windows and its commit.
    fn pass(&mut self, seconds: u64) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for _ in 0..seconds {
            self.now += SECOND;
            for gpu in 0..GPUS {
                self.window(gpu, None);
            }
            self.drained();
            snapshot = self.commit();
        }
        snapshot
    }

    fn commit(&mut self) -> Snapshot {
        let snapshot = self.accountant.commit(clock(self.now));
        drop(self.accountant.take_effects());
        for book in &snapshot.gpus {
            assert_eq!(book.imbalance, 0, "{book:?}");
            assert_eq!(book.excess, Nanos::ZERO, "{book:?}");
        }
        let mut seen = BTreeMap::new();
        for account in &snapshot.accounts {
            let key = (account.id.to_string(), account.gpu.to_string());
            let allocated = account.amounts.allocated;
            if let Some(before) = self.seen.get(&key) {
                assert!(allocated >= *before, "{account:?} fell from {before:?}");
            }
            seen.insert(key, allocated);
        }
        self.seen = seen;
        snapshot
    }

    /// The agent is killed after a commit, and what it handed over is all that is left.
    fn kill(&mut self) -> PersistedState {
        let changes = self.accountant.changes(true, clock(self.now));
        let closed = changes.closed.iter().map(|closed| closed.account.number);
        let open = changes.accounts.iter().map(|account| account.number);
        self.last_number = open.chain(closed).fold(self.last_number, u32::max);
        PersistedState {
            sequence: changes.sequence,
            clock: changes.clock,
            books: changes.books,
            times: changes.times,
            accounts: changes.accounts.into_iter().zip(changes.totals).collect(),
            namespaces: changes.namespaces,
            processes: changes.processes,
            allocations: changes.allocations,
            last_number: self.last_number,
        }
    }

    /// Another agent goes on from there.
    fn start(&mut self, state: &PersistedState) {
        let accountant = Accountant::restored(self.settings, state, clock(self.now));
        self.accountant = accountant.expect("what was handed over can be gone on from");
        self.begin();
    }
}

fn account(snapshot: &Snapshot, container: usize, gpu: usize) -> Option<&ContainerAccount> {
    let mut accounts = snapshot.accounts.iter();
    accounts.find(|account| account.id.as_str() == id(container) && account.gpu == uuid(gpu))
}

/// Whole seconds of allocated time.
fn allocated(snapshot: &Snapshot, container: usize, gpu: usize) -> u64 {
    account(snapshot, container, gpu).map_or(0, |of| of.amounts.allocated.0 / SECOND)
}

fn state(snapshot: &Snapshot, container: usize) -> Option<AllocationState> {
    let mut views = snapshot.allocations.iter();
    let pod = format!("pod-{container}");
    views.find(|view| *view.pod == *pod).map(|view| view.state)
}

#[test]
fn time_is_not_counted_again_after_a_container_was_not_seen_for_a_minute() {
    let mut node = Node::new();
    node.born(7, 0);
    node.listed(&[(0, &[0])]);
    node.pass(100);
    // `/proc` does not show it for a while, and it never died.
    let process = node.processes.remove(&7).expect("it was born");
    node.scan();
    node.pass(75);
    node.processes.insert(7, process);
    node.scan();
    let snapshot = node.pass(10);
    assert_eq!(allocated(&snapshot, 0, 0), 185);
    // So it is when it has not been seen for so long that its account was closed.
    node.processes.clear();
    node.scan();
    let snapshot = node.pass(1_300);
    assert!(account(&snapshot, 0, 0).is_none(), "it was closed");
    let before = snapshot.namespace_series[0].amounts.allocated;
    node.processes.insert(7, process);
    node.scan();
    let snapshot = node.pass(10);
    let now = snapshot.namespace_series[0].amounts.allocated;
    let lived = Nanos(node.now - process.0);
    assert!(now >= before && now <= lived, "{now:?} of {lived:?}");
}

#[test]
fn an_account_on_a_gpu_that_never_had_a_window_closes() {
    let mut node = Node::new();
    node.windowed[1] = None;
    node.born(7, 0);
    node.listed(&[(0, &[1])]);
    node.pass(10);
    node.dies(7);
    let snapshot = node.pass(2);
    assert_eq!(allocated(&snapshot, 0, 1), 10);
    let first = snapshot.container_series.clone();
    let snapshot = node.pass(1_300);
    assert!(account(&snapshot, 0, 1).is_none(), "it is closed");
    // The first window comes after all, and covers all of the time.
    node.windowed[1] = Some(BEGIN);
    node.window(1, Some(7));
    node.drained();
    node.commit();
    let snapshot = node.pass(5);
    assert_eq!(snapshot.gpus[1].elapsed, Nanos(node.now - BEGIN));
    for series in &snapshot.container_series {
        let before = first.iter().find(|before| before.labels == series.labels);
        let before = before.filter(|before| before.gpu == series.gpu);
        assert!(
            before.is_none_or(|before| before.start < series.start),
            "a series that begins anew says so: {series:?}"
        );
    }
}

#[test]
fn an_allocation_goes_on_over_a_restart_while_the_kubelet_is_down() {
    let mut node = Node::new();
    node.born(7, 0);
    node.listed(&[(0, &[0])]);
    let snapshot = node.pass(100);
    assert_eq!(allocated(&snapshot, 0, 0), 100);
    let left = node.kill();
    node.now += 20 * SECOND;
    node.start(&left);
    let snapshot = node.pass(30);
    assert_eq!(
        allocated(&snapshot, 0, 0),
        130,
        "time in which no agent ran is not counted"
    );
    assert!(snapshot.allocations_known);
    assert_eq!(state(&snapshot, 0), Some(AllocationState::Unconfirmed));
    // The kubelet is there again, and lists it.
    node.listed(&[(0, &[0])]);
    let snapshot = node.pass(30);
    assert_eq!(allocated(&snapshot, 0, 0), 160);
    assert_eq!(state(&snapshot, 0), Some(AllocationState::Counting));
}

#[test]
fn what_an_agent_before_knew_ends_with_the_container_and_with_the_kubelets_word() {
    let mut node = Node::new();
    for (pid, container) in [(7, 0), (8, 1), (9, 2)] {
        node.born(pid, container);
    }
    node.listed(&[(0, &[0]), (1, &[0]), (2, &[0])]);
    node.pass(100);
    let left = node.kill();
    assert_eq!(left.allocations.len(), 3);
    // One ends while no agent runs, and another one of its name begins.
    node.now += 5 * SECOND;
    node.processes.remove(&7);
    node.start(&left);
    let snapshot = node.pass(10);
    assert_eq!(allocated(&snapshot, 0, 0), 100);
    assert_eq!(allocated(&snapshot, 1, 0), 110);
    assert_eq!(allocated(&snapshot, 2, 0), 110);
    // The kubelet has given one of them another GPU, and does not list the other.
    node.listed(&[(1, &[1])]);
    let snapshot = node.pass(10);
    assert_eq!(allocated(&snapshot, 1, 0), 110);
    assert_eq!(allocated(&snapshot, 1, 1), 10);
    assert_eq!(state(&snapshot, 1), Some(AllocationState::Counting));
    assert_eq!(allocated(&snapshot, 2, 0), 120, "as without a restart");
    assert_eq!(state(&snapshot, 2), Some(AllocationState::Forgotten));
    node.dies(9);
    let snapshot = node.pass(60);
    assert_eq!(allocated(&snapshot, 2, 0), 120);
    assert_eq!(node.kill().allocations.len(), 1, "of the living alone");
}

/// Seconds of a container's part of a GPU's time, to the nearest.
fn share(snapshot: &Snapshot, container: usize, gpu: usize) -> u64 {
    let part = account(snapshot, container, gpu).map(|of| of.amounts.allocated_share);
    (part.unwrap_or_default().0 + SECOND / 2) / SECOND
}

#[test]
fn a_shared_gpu_is_not_divided_into_more_than_its_time() {
    let mut node = Node::new();
    for (pid, container) in [(7, 0), (8, 1), (9, 2)] {
        node.born(pid, container);
    }
    node.listed(&[(0, &[0]), (1, &[0]), (2, &[0])]);
    node.pass(60);
    node.dies(9);
    let snapshot = node.pass(60);
    assert_eq!(snapshot.gpus[0].elapsed, Nanos::from_secs(120));
    let both = [allocated, share].map(|of| [0, 1, 2].map(|container| of(&snapshot, container, 0)));
    assert_eq!(both, [[120, 120, 60], [50, 50, 20]]);
    // What is not accounted for yet when the agent ends has its part afterwards.
    node.now += SECOND / 2;
    node.drained();
    node.commit();
    let left = node.kill();
    node.now += 10 * SECOND;
    node.start(&left);
    node.window(0, None);
    node.drained();
    node.now += SECOND;
    let snapshot = node.commit();
    let parts = snapshot
        .accounts
        .iter()
        .map(|of| of.amounts.allocated_share);
    let parts: Nanos = parts.sum();
    assert_eq!(parts, Nanos::from_millis(120_500));
}

/// One step of an arbitrary life of the node.
#[derive(Clone, Debug)]
enum Step {
    Born(u32, usize),
    Dies(u32),
    /// `/proc` does not show these for so many seconds.
    Hidden(u32, u64),
    Listed(Vec<(usize, Vec<usize>)>),
    /// So many milliseconds pass; which GPUs have a window at the end.
    Pass(u64, [bool; GPUS]),
    /// The agent is killed, and another one begins after so many milliseconds.
    Restart(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let container = 0..CONTAINERS;
    let given = prop::collection::vec(0..GPUS, 0..3);
    let list = prop::collection::vec((container.clone(), given), 0..6);
    prop_oneof![
        3 => (1..9u32, container).prop_map(|(pid, container)| Step::Born(pid, container)),
        2 => (1..9u32).prop_map(Step::Dies),
        2 => (1..9u32, 1..200u64).prop_map(|(pid, seconds)| Step::Hidden(pid, seconds)),
        4 => list.prop_map(Step::Listed),
        8 => (1..9_000u64, any::<[bool; GPUS]>())
            .prop_map(|(millis, windows)| Step::Pass(millis, windows)),
        1 => (1..90_000u64).prop_map(Step::Restart),
    ]
}

/// Everything that may be said of allocated time whatever happens.
fn check(snapshot: &Snapshot, lived: &BTreeMap<usize, u64>, watched: u64) {
    let mut shares = [Nanos::ZERO; GPUS];
    for account in &snapshot.accounts {
        let container = (0..CONTAINERS).find(|of| account.id.as_str() == id(*of));
        let container = container.expect("it is one of them");
        let amounts = account.amounts;
        let lived = lived.get(&container).copied().unwrap_or_default();
        assert!(amounts.allocated.0 <= lived, "{account:?} lived {lived}");
        assert!(amounts.allocated.0 <= watched, "{account:?} in {watched}");
        assert!(amounts.allocated_share <= amounts.allocated, "{account:?}");
        let gpu = (0..GPUS).find(|gpu| account.gpu == uuid(*gpu));
        shares[gpu.expect("it is one of them")] += amounts.allocated_share;
    }
    for (book, share) in snapshot.gpus.iter().zip(shares) {
        assert!(share <= book.elapsed, "{share:?} of {book:?}");
    }
}

proptest! {
    /// Whatever happens: nobody has more allocated time than its container lived and an agent ran, all
    /// parts of a GPU's time are no more than that, and no counter falls (checked at each commit).
    #[test]
    fn nobody_has_more_than_there_was(steps in prop::collection::vec(step(), 1..60)) {
        let mut node = Node::new();
        // How long each container has had a process; for how long an agent ran.
        let mut lived = BTreeMap::<usize, u64>::new();
        let mut watched = 0;
        let mut hidden = Vec::<(u64, u32, (u64, usize))>::new();
        for step in steps {
            let before = node.now;
            match step {
                Step::Born(pid, container) => {
                    let is_hidden = hidden.iter().any(|(_, of, _)| *of == pid);
                    let alive = node.processes.values().chain(hidden.iter().map(|(.., of)| of));
                    let is_alive = alive.into_iter().any(|(_, of)| *of == container);
                    // A container that has ended does not begin again: another one has another id.
                    let is_over = lived.contains_key(&container) && !is_alive;
                    if !is_hidden && !is_over && !node.processes.contains_key(&pid) {
                        // `/proc` tells starts by whole ticks of 10 ms.
                        node.now = (node.now + SECOND / 50).next_multiple_of(SECOND / 100);
                        node.born(pid, container);
                    }
                }
                Step::Dies(pid) => {
                    node.now += SECOND / 50;
                    node.dies(pid);
                }
                Step::Hidden(pid, seconds) => {
                    if let Some(process) = node.processes.remove(&pid) {
                        node.now += SECOND / 50;
                        hidden.push((node.now + seconds * SECOND, pid, process));
                        node.scan();
                    }
                }
                Step::Listed(given) => {
                    let given: Vec<(usize, &[usize])> =
                        given.iter().map(|(of, gpus)| (*of, &**gpus)).collect();
                    node.listed(&given);
                }
                Step::Pass(millis, windows) => {
                    node.now += millis * SECOND / 1_000;
                    for gpu in (0..GPUS).filter(|gpu| windows[*gpu]) {
                        node.window(gpu, None);
                    }
                    node.drained();
                }
                Step::Restart(millis) => {
                    node.commit();
                    let left = node.kill();
                    node.now += millis * SECOND / 1_000;
                    node.start(&left);
                }
            }
            let passed = node.now - before;
            let alive = node.processes.values().chain(hidden.iter().map(|(.., of)| of));
            let alive: BTreeSet<usize> = alive.map(|(_, container)| *container).collect();
            for container in alive {
                *lived.entry(container).or_default() += passed;
            }
            watched += passed;
            let (back, still) = hidden.into_iter().partition(|(until, ..)| *until <= node.now);
            hidden = still;
            let back: Vec<(u64, u32, (u64, usize))> = back;
            if !back.is_empty() {
                for (_, pid, process) in back {
                    node.processes.insert(pid, process);
                }
                node.scan();
            }
            let snapshot = node.commit();
            check(&snapshot, &lived, watched);
        }
    }
}
