use crate::model::GpuUuid;
use crate::testing::gpu_info;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::input::{
    Accounted, AllocatedDevice, Allocations, CgroupAnnouncement, CgroupSet, ContainerAllocation,
    ContainerIdentity, Credit, DeviceOpen, DeviceRef, EventCounters, GpuInfo, GpuProcess,
    GpuProcesses, IdentitySource, IdentityUpdate, KubernetesNames, MigInfo, MpsRole, PodName,
    ProcessEvent, ProcessScan, ScannedProcess, WindowQuality,
};
use crate::model::{
    CgroupKey, DeviceNumber, NONE, POD_ITSELF, SourceState, StartTicks, UNRESOLVED,
    UnattributedReason, UnobservedReason, WallTime,
};
use crate::snapshot::{AccountingBook, AllocationState, ContainerLabels, IdOnlyReason};
use crate::tables::HashMap;

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

fn settings(grace: u64, zero_for: u64) -> Settings {
    Settings {
        policy: Policy {
            grace: Nanos::from_millis(grace),
            zero_for: Nanos::from_millis(zero_for),
            keep_for: Nanos::from_secs(600),
        },
        ..Settings::default()
    }
}

impl Node {
    fn new(grace: u64, zero_for: u64) -> Self {
        Self::with(settings(grace, zero_for))
    }

    fn with(settings: Settings) -> Self {
        let mut node = Self {
            accountant: Accountant::new(settings, clock(100 * SECOND)),
            now: 100 * SECOND,
            windowed: 100 * SECOND,
        };
        node.take(Input::Gpus(vec![gpu_info(0)]));
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
            counters: self.accountant.tracker.events().counters(),
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

    /// Time passes as in `pass`, but the event stream stays behind.
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
    assert_eq!(
        node.accountant.naming.directory().identified(&A.into()),
        None
    );
    node.now += SECOND;
    node.named(A, Some(UID));
    let identified = Some(BootTime(node.now));
    assert_eq!(
        node.accountant.naming.directory().identified(&A.into()),
        identified
    );
    node.now += SECOND;
    node.named(A, Some(UID));
    assert_eq!(
        node.accountant.naming.directory().identified(&A.into()),
        identified,
        "the first time counts"
    );

    // Named before it begins, as Docker's events do it.
    node.named(B, None);
    assert_eq!(
        node.accountant.naming.directory().identified(&B.into()),
        None
    );
    node.fork(9, 4);
    assert_eq!(node.accountant.take_effects(), []);
    assert_eq!(
        node.accountant.naming.directory().identified(&B.into()),
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
    assert_eq!(node.accountant.sources().errors().count(), 0);
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
    let errors = node.accountant.sources().errors();
    let rows: Vec<_> = errors
        .map(|book| (&*book.class, book.count, book.last.0 / SECOND))
        .collect();
    assert_eq!(rows, [("refused", 2, 104), ("timeout", 1, 103)]);

    for class in 0..100 {
        node.health(SourceId::Cri, down(&format!("c{class}")));
    }
    let errors = || node.accountant.sources().errors();
    let of_cri = || errors().filter(|book| book.source == SourceId::Cri);
    assert_eq!(of_cri().count(), 32 + 1);
    assert_eq!(of_cri().map(|book| book.count).sum::<u64>(), 100);
}

#[test]
fn the_innermost_pays_where_configured_once_a_source_vouches_for_it() {
    for nesting in [NestingRule::Outermost, NestingRule::Innermost] {
        let mut node = Node::new(0, 0);
        let settings = Settings {
            nesting,
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
        assert_eq!(asks, nesting == NestingRule::Innermost, "{asked:?}");
        // An answer about another pod does not vouch.
        node.named(B, Some("99999999-2222-3333-4444-555555555555"));
        node.pass(1_000, &[(7, 250)]);
        assert_eq!(published(&node.commit()), [("web".into(), 'a', 500)]);
        node.named(B, Some(UID));
        node.pass(1_000, &[(7, 250)]);
        let expected = match nesting {
            NestingRule::Outermost => vec![("web".into(), 'a', 750)],
            NestingRule::Innermost => {
                vec![("main".into(), 'b', 250), ("web".into(), 'a', 500)]
            }
        };
        let mut found = published(&node.commit());
        found.sort();
        assert_eq!(found, expected, "{nesting:?}");
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
        mig: Some(MigInfo {
            parent: "GPU-0".into(),
            profile: profile.into(),
            gpu_instance: 1,
            compute_instance: 0,
        }),
        ..gpu_info(0)
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
    let start = node.fork(7, 3);
    node.list(&[(7, 0)]);
    let held = |node: &mut Node| node.commit().accounts[0].amounts.held;
    node.now += SECOND;
    assert_eq!(held(&mut node), Nanos::ZERO, "its exit may be under way");
    node.now += 2 * SECOND;
    assert_eq!(held(&mut node), Nanos::SECOND);
    node.exit(7, start, 3);
    assert_eq!(held(&mut node), Nanos::from_secs(3));
}

#[test]
fn the_passing_of_time_alone_does_not_change_every_account_that_holds_a_gpu() {
    let mut node = Node::new(0, 0);
    node.accountant.keep();
    node.named(A, None);
    node.fork(7, 3);
    node.list(&[(7, 1_000)]);
    let mut handed_over = Vec::new();
    for second in 1..=12_u64 {
        if second == 10 {
            node.list(&[(7, 1_000)]);
        }
        node.pass(1_000, &[]);
        node.commit();
        let changes = node.accountant.changes(false, clock(node.now));
        if let [totals] = changes.totals[..] {
            handed_over.push((second, totals.amounts.held.0 / SECOND));
        }
    }
    // After the first list, after five seconds without another one, after the second list.
    assert_eq!(handed_over, [(1, 1), (6, 6), (10, 10)]);
    node.accountant.await_nothing();
    let last = node.commit();
    assert_eq!(last.accounts[0].amounts.held, Nanos::from_secs(12));
    assert_eq!(last.accounts[0].amounts.memory.0, 12_000);
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
    let mut counters = node.accountant.tracker.events().counters();
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
    let kernel = |node: &Node| node.accountant.sources().get(SourceId::Kernel).cloned();
    let health = kernel(&node).unwrap();
    assert_eq!(health.since, BootTime(began));
    assert_eq!(health.state, down("another"));
    let up = node.now;
    node.health(SourceId::Kernel, SourceState::Up);
    assert_eq!(kernel(&node).unwrap().since, BootTime(up));
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
    let mut node = Node::with(Settings {
        process_limit: 1_000,
        ..settings(0, 0)
    });
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

/// An account is closed between two commits, right after it was opened on a second GPU. It knows what
/// its owner is called only by the owner's other account.
#[test]
fn an_account_that_lived_between_two_commits_is_handed_over() {
    let mut node = Node::new(10_000, 0);
    node.accountant.keep();
    node.take(Input::Gpus(vec![gpu_info(0), gpu_info(1)]));
    let users = "/user.slice/user-1000.slice/user@1000.service";
    let usurper = node.scan(&[(20, 900_000_000, &format!("{users}/kubepods/pod{UID}"))]);
    node.take(usurper);
    node.pass(1_000, &[(20, 700)]);
    node.commit();
    assert_eq!(
        node.accountant
            .changes(false, clock(node.now))
            .accounts
            .len(),
        1
    );

    let list = |at: u64, gpu: &str, pid: u32| {
        Input::GpuProcesses(GpuProcesses {
            gpu: GpuUuid::from(gpu),
            at: BootTime(at),
            processes: vec![GpuProcess {
                pid: Pid(pid),
                memory: None,
                mps: MpsRole::None,
            }],
            memory_used: None,
        })
    };
    node.pass(500, &[]);
    node.take(list(node.now, "GPU-1", 20));
    // The pod whose uid it is starts, and is seen on a GPU.
    node.fork(7, 9);
    node.pass(500, &[]);
    node.take(list(node.now, "GPU-1", 7));
    node.commit();
    let closed = node.accountant.changes(false, clock(node.now)).closed;
    let mut gpus: Vec<String> = closed
        .iter()
        .map(|closed| closed.account.gpu.to_string())
        .collect();
    gpus.sort_unstable();
    assert_eq!(gpus, ["GPU-0", "GPU-1"], "{closed:?}");
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
    let mut node = Node::with(Settings {
        namespace_limit: 1,
        ..settings(0, 0)
    });
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
    assert_eq!(namespaces, [("(overflow)", 250), ("ml", 500)]);
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
    /// Grace, and time at zero, in milliseconds.
    Policy(u64, u64),
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
        (0..3_000u64, 0..3_000u64).prop_map(|(grace, zero_for)| Step::Policy(grace, zero_for)),
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
        let mut seen = HashMap::<(Arc<ContainerLabels>, WallTime), Nanos>::default();
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
                    let mut counters = node.accountant.tracker.events().counters();
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
                Step::Policy(grace, zero_for) => node.take(Input::Policy(Policy {
                    grace: Nanos::from_millis(grace),
                    zero_for: Nanos::from_millis(zero_for),
                    ..node.accountant.settings.policy
                })),
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

mod xids;
