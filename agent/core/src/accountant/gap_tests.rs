//! Lives in which events are missing: what the books make of a pid whose former holder may be gone.
//!
//! All of them are about pid 7, which was in container A and is given to another process in B.

use crate::testing::gpu_info;
use std::sync::Arc;

use crate::accountant::{Accountant, Settings};
use crate::effect::Effect;
use crate::input::{
    CgroupAnnouncement, CgroupSet, Credit, EventCounters, GpuProcess, GpuProcesses, GpuWindow,
    Input, KernelBatch, KernelEvent, MpsRole, ProcessEvent, ProcessScan, ScannedProcess,
    SourceHealth, WindowQuality,
};
use crate::model::{
    BootTime, CgroupKey, Clock, GpuUuid, Nanos, Pid, SourceId, SourceState, UnattributedReason,
    WallTime,
};
use crate::snapshot::Snapshot;

const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
const PID: Pid = Pid(7);

fn at(millis: u64) -> BootTime {
    BootTime(millis * 1_000_000)
}

/// A node, in milliseconds since boot. The object is attached at 10 s and `/proc` scanned then.
struct Node {
    accountant: Accountant,
    now: u64,
    windowed: u64,
    counters: EventCounters,
}

impl Node {
    fn new() -> Self {
        let mut node = Self::unattached();
        node.attach();
        node.scan(node.now, &[]);
        node
    }

    fn unattached() -> Self {
        let now = 10_000;
        let mut node = Self {
            accountant: Accountant::new(Settings::default(), clock(now)),
            now,
            windowed: now,
            counters: EventCounters::default(),
        };
        node.take(Input::Gpus(vec![gpu_info(0)]));
        node.kernel(SourceState::Absent);
        node
    }

    fn attach(&mut self) {
        self.kernel(SourceState::Up);
        let announce = |id, parent, name: &str| {
            KernelEvent::Cgroup(CgroupAnnouncement {
                key: CgroupKey { hierarchy: 0, id },
                parent,
                name: name.into(),
            })
        };
        self.events(vec![
            announce(1, None, ""),
            announce(2, Some(1), "docker"),
            announce(3, Some(2), A),
            announce(4, Some(2), B),
        ]);
    }

    fn take(&mut self, input: Input) {
        self.accountant.take(input, clock(self.now));
    }

    fn kernel(&mut self, state: SourceState) {
        self.take(Input::Health(SourceHealth {
            source: SourceId::Kernel,
            state,
            since: at(self.now),
            place: "".into(),
        }));
    }

    fn down(&mut self) {
        self.kernel(SourceState::Down {
            class: "stream".into(),
            reason: "the event stream ended".into(),
            next_retry: None,
        });
    }

    fn events(&mut self, events: Vec<KernelEvent>) {
        self.drained(self.now, events);
    }

    fn drained(&mut self, through: u64, events: Vec<KernelEvent>) {
        self.take(Input::Kernel(KernelBatch {
            events,
            drained_through: at(through),
            counters: self.counters,
        }));
    }

    /// A scan that began then and finds the pid in these: when each started, and the container.
    fn scan(&mut self, began: u64, found: &[(u64, &str)]) {
        let processes = found.iter().map(|(start, container)| ScannedProcess {
            pid: PID,
            parent: Pid(1),
            start: at(*start).into(),
            cgroups: Arc::new([(0, format!("/docker/{container}").into())]),
        });
        self.take(Input::Processes(ProcessScan {
            started: at(began),
            finished: at(self.now),
            processes: processes.collect(),
            ..ProcessScan::default()
        }));
    }

    /// The pid was busy for all of the time since the last window.
    fn window(&mut self) {
        let busy = at(self.now).since(at(self.windowed));
        self.take(Input::Window(GpuWindow {
            gpu: GpuUuid::from("GPU-0"),
            start: at(self.windowed),
            end: at(self.now),
            busy,
            idle: Nanos::ZERO,
            unobserved: vec![],
            credits: vec![Credit { pid: PID, busy }],
            below_resolution: Nanos::ZERO,
            no_row: Nanos::ZERO,
            engines: vec![],
            energy: None,
            quality: WindowQuality::default(),
            clocks: None,
        }));
        self.windowed = self.now;
    }

    fn lists(&mut self) {
        self.take(Input::GpuProcesses(GpuProcesses {
            gpu: GpuUuid::from("GPU-0"),
            at: at(self.now),
            processes: vec![GpuProcess {
                pid: PID,
                memory: Some(4096),
                mps: MpsRole::None,
            }],
            memory_used: None,
        }));
    }

    fn commit(&mut self) -> Snapshot {
        let snapshot = self.accountant.commit(clock(self.now));
        assert!(snapshot.gpus.iter().all(|book| book.imbalance == 0));
        snapshot
    }

    /// A is at work until its end at 20.5 s, of which nobody tells; the rest of each window is B's.
    fn with_a() -> Self {
        let mut node = Self::new();
        node.events(vec![KernelEvent::Fork(process(10_000, 3, 10_000))]);
        node.now = 20_000;
        node.windowed = 20_000;
        node.events(vec![]);
        node
    }
}

fn clock(millis: u64) -> Clock {
    Clock {
        boot: at(millis),
        wall: WallTime(1_700_000_000_000_000_000 + at(millis).0),
    }
}

fn process(start: u64, cgroup: u64, when: u64) -> ProcessEvent {
    let unified = CgroupKey {
        hierarchy: 0,
        id: cgroup,
    };
    ProcessEvent {
        at: at(when),
        pid: PID,
        parent: Pid(1),
        start: at(start),
        pid_namespace_level: 0,
        cgroups: CgroupSet {
            unified,
            legacy: None,
        },
    }
}

/// Milliseconds of A, of B, and of nobody by reason.
fn booked(snapshot: &Snapshot) -> (u64, u64, Vec<(UnattributedReason, u64)>) {
    let millis = |amount: Nanos| amount.0 / 1_000_000;
    let of = |id: &str| {
        let accounts = snapshot.accounts.iter();
        let of = accounts.filter(|account| account.id.as_str() == id);
        millis(of.map(|account| account.amounts.busy).sum())
    };
    let nobodys = snapshot.gpus[0].unattributed.iter();
    let nobodys = nobodys.filter(|(_, amount)| !amount.is_zero());
    let nobodys = nobodys.map(|(reason, amount)| (*reason, millis(*amount)));
    (of(A), of(B), nobodys.collect())
}

#[test]
fn a_scan_from_before_a_loss_does_not_bill_two_seconds_to_a_pid_s_former_holder() {
    let mut node = Node::with_a();
    // The ring is full: what is drained stands still at 20 s. A scan begins, then the pid changes
    // hands, and both events are lost.
    let began = 20_100;
    node.now = 21_000;
    node.counters.lost += 2;
    node.drained(20_000, vec![]);
    node.scan(began, &[(10_000, A)]);
    node.now = 23_000;
    node.events(vec![]);
    node.windowed = 21_000;
    node.window();
    assert_eq!(booked(&node.commit()), (0, 0, vec![]), "it waits");
    node.scan(node.now, &[(20_500, B)]);
    assert_eq!(booked(&node.commit()), (0, 2_000, vec![]));
}

#[test]
fn a_pid_that_was_reused_while_the_object_was_reloaded_is_not_its_former_holder_s() {
    let mut node = Node::with_a();
    node.down();
    drop(node.accountant.take_effects());
    let began = 20_100;
    node.now = 21_000;
    node.kernel(SourceState::Up);
    node.events(vec![]);
    node.scan(began, &[(10_000, A)]);
    node.windowed = 21_000;
    node.now = 22_000;
    node.events(vec![]);
    node.window();
    assert_eq!(booked(&node.commit()), (0, 0, vec![]), "it waits");
    let effects = node.accountant.take_effects();
    assert!(effects.contains(&Effect::Rescan), "{effects:?}");
    node.scan(node.now, &[(20_500, B)]);
    assert_eq!(booked(&node.commit()), (0, 1_000, vec![]));
}

#[test]
fn a_pid_that_was_reused_while_the_source_is_down_is_not_its_former_holder_s() {
    let mut node = Node::with_a();
    node.down();
    node.scan(20_100, &[(10_000, A)]);
    node.windowed = 21_000;
    node.now = 22_000;
    node.window();
    assert_eq!(booked(&node.commit()), (0, 0, vec![]), "it waits");
    assert!(node.accountant.take_effects().contains(&Effect::Rescan));
    node.scan(node.now, &[(20_500, B)]);
    assert_eq!(booked(&node.commit()), (0, 1_000, vec![]));
    // And where no scan comes, it is nobody's, after a bounded time.
    node.now = 23_000;
    node.window();
    node.now = 24_999;
    assert_eq!(booked(&node.commit()), (0, 1_000, vec![]), "it waits");
    node.now = 25_000;
    let nobodys = vec![(UnattributedReason::UnconfirmedPid, 1_000)];
    assert_eq!(booked(&node.commit()), (0, 1_000, nobodys));
}

#[test]
fn a_process_born_between_the_first_scan_and_the_attachment_is_not_unknown() {
    let mut node = Node::unattached();
    // The scan ran 344 ms before the object was attached. Who was born in between was seen by neither.
    node.scan(10_000, &[]);
    node.now = 10_344;
    node.attach();
    node.now = 11_000;
    node.events(vec![]);
    node.window();
    assert_eq!(booked(&node.commit()), (0, 0, vec![]), "it waits");
    node.scan(10_344, &[(10_200, B)]);
    assert_eq!(booked(&node.commit()), (0, 1_000, vec![]));
}

#[test]
fn a_failed_read_is_not_a_death() {
    let mut node = Node::with_a();
    node.now = 21_000;
    node.take(Input::Processes(ProcessScan {
        started: at(20_500),
        finished: at(20_900),
        skipped: 1,
        unread: vec![PID],
        ..ProcessScan::default()
    }));
    node.events(vec![]);
    node.window();
    assert_eq!(booked(&node.commit()), (1_000, 0, vec![]));
    // It cannot be told who has it, if events were lost as well.
    node.counters.lost += 1;
    node.events(vec![]);
    node.now = 22_000;
    node.take(Input::Processes(ProcessScan {
        started: at(22_000),
        finished: at(22_000),
        skipped: 1,
        unread: vec![PID],
        ..ProcessScan::default()
    }));
    node.events(vec![]);
    node.window();
    node.accountant.take_effects();
    let nobodys = vec![(UnattributedReason::UnconfirmedPid, 1_000)];
    assert_eq!(booked(&node.commit()), (1_000, 0, nobodys.clone()));
    let effects = node.accountant.take_effects();
    assert!(effects.contains(&Effect::Rescan), "{effects:?}");
    node.now = 23_000;
    node.scan(node.now, &[(10_000, A)]);
    node.events(vec![]);
    node.window();
    assert_eq!(booked(&node.commit()), (2_000, 0, nobodys));
}

#[test]
fn a_list_from_before_the_events_leaves_no_false_peak_of_memory() {
    let mut node = Node::with_a();
    node.now = 21_000;
    node.lists();
    let snapshot = node.commit();
    assert!(snapshot.accounts.is_empty(), "nobody knows yet who it is");
    // The events of the pid's change of hands come after the list that names it.
    node.now = 21_100;
    node.events(vec![
        KernelEvent::Exit(process(10_000, 3, 20_400)),
        KernelEvent::Fork(process(20_500, 4, 20_500)),
    ]);
    let peaks = |snapshot: &Snapshot| {
        let accounts = snapshot.accounts.iter();
        let peaks = accounts.map(|account| (account.id.to_string(), account.memory_peak));
        peaks.collect::<Vec<_>>()
    };
    let of_b = vec![(B.to_owned(), Some(4096))];
    assert_eq!(peaks(&node.commit()), of_b);
    // Where the source is down and no scan comes, it is nobody's.
    node.down();
    node.now = 30_000;
    node.lists();
    node.now = 32_000;
    let snapshot = node.commit();
    assert_eq!(snapshot.agent.lists_not_awaited, 1);
    assert_eq!(
        (peaks(&snapshot), snapshot.accounts[0].memory),
        (of_b, None)
    );
    // It is read again once it is known who lives.
    node.kernel(SourceState::Up);
    drop(node.accountant.take_effects());
    node.scan(node.now, &[(20_500, B)]);
    assert!(node.accountant.take_effects().contains(&Effect::ReadLists));
}

#[test]
fn a_move_that_a_scan_sees_before_its_event_moves_no_bill_to_the_scan_s_beginning() {
    for (moved, expect) in [(20_800, 0), (21_400, 1_000)] {
        let mut node = Node::with_a();
        node.now = 21_500;
        // It began at 21 s and read the process at the end.
        node.scan(21_000, &[(10_000, B)]);
        // The move is known to have been after 20 s and before 21.5 s, until its event comes.
        node.events(vec![KernelEvent::Attach(process(10_000, 4, moved))]);
        node.now = 21_000;
        node.window();
        node.now = 21_500;
        let (of_a, of_b, _) = booked(&node.commit());
        assert_eq!((of_a, of_b), (expect, 0), "moved at {moved}");
    }
}
