use crate::testing::gpu_info;
use std::sync::Arc;

use crate::accountant::{Accountant, Settings};
use crate::input::{
    CgroupAnnouncement, CgroupSet, EventCounters, GpuProcess, GpuProcesses, Input, KernelBatch,
    KernelEvent, MpsRole, ProcessEvent, SourceHealth,
};
use crate::model::{
    BootTime, CgroupKey, Clock, GpuUuid, Nanos, Pid, SourceId, SourceState, WallTime,
};
use crate::records::{Cgroups, Changes};

const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
const SECOND: u64 = Nanos::SECOND.0;

fn clock(seconds: u64) -> Clock {
    Clock {
        boot: BootTime(seconds * SECOND),
        wall: WallTime(1_700_000_000 * SECOND + seconds * SECOND),
    }
}

/// An accountant that keeps, with `/docker/A` as cgroup 3 and `/docker/B` as cgroup 4.
struct Node {
    accountant: Accountant,
    now: u64,
}

impl Node {
    fn new() -> Self {
        let accountant = Accountant::new(Settings::default(), clock(100));
        let now = 100;
        let mut node = Self { accountant, now };
        node.accountant.keep();
        node.take(Input::Gpus(vec![gpu_info(0)]));
        node.take(Input::Health(SourceHealth {
            source: SourceId::Kernel,
            state: SourceState::Up,
            since: BootTime(0),
            place: "".into(),
        }));
        for (id, parent, name) in [(1, None, ""), (2, Some(1), "docker"), (3, Some(2), A)] {
            node.announce(id, parent, name);
        }
        node
    }

    fn take(&mut self, input: Input) {
        self.accountant.take(input, clock(self.now));
    }

    fn event(&mut self, event: KernelEvent) {
        self.events(vec![event]);
    }

    fn events(&mut self, events: Vec<KernelEvent>) {
        self.take(Input::Kernel(KernelBatch {
            events,
            drained_through: clock(self.now).boot,
            counters: EventCounters::default(),
        }));
    }

    fn announce(&mut self, id: u64, parent: Option<u64>, name: &str) {
        let key = CgroupKey { hierarchy: 0, id };
        self.event(KernelEvent::Cgroup(CgroupAnnouncement {
            key,
            parent,
            name: name.into(),
        }));
    }

    /// Something of a process that began at 100 s.
    fn seen(&mut self, kind: fn(ProcessEvent) -> KernelEvent, pid: u32, cgroup: u64) {
        let at = clock(self.now).boot;
        self.event(kind(ProcessEvent {
            at,
            pid: Pid(pid),
            parent: Pid(1),
            start: clock(100).boot,
            pid_namespace_level: 0,
            cgroups: CgroupSet {
                unified: CgroupKey {
                    hierarchy: 0,
                    id: cgroup,
                },
                legacy: None,
            },
        }));
    }

    fn lists(&mut self, listed: &[(u32, MpsRole)]) {
        self.now += 1;
        let processes = listed.iter().map(|&(pid, mps)| GpuProcess {
            pid: Pid(pid),
            memory: None,
            mps,
        });
        self.take(Input::GpuProcesses(GpuProcesses {
            gpu: GpuUuid::from("GPU-0"),
            at: clock(self.now).boot,
            processes: processes.collect(),
            memory_used: None,
        }));
        // Lists wait until it is known who had the pids.
        self.events(vec![]);
    }

    fn changes(&mut self) -> Changes {
        self.now += 1;
        self.accountant.commit(clock(self.now));
        self.accountant.changes(false, clock(self.now))
    }

    /// Pids of which there is news, and those that are not kept any more.
    fn news(&mut self) -> (Vec<u32>, Vec<u32>) {
        let changes = self.changes();
        let changed = changes.processes.iter().map(|kept| kept.pid.0);
        let gone = changes.gone.iter().map(|process| process.pid.0);
        (changed.collect(), gone.collect())
    }
}

#[test]
fn only_who_has_to_do_with_a_gpu_is_kept_and_only_until_it_is_forgotten() {
    let mut node = Node::new();
    node.seen(KernelEvent::Fork, 7, 3);
    node.seen(KernelEvent::Fork, 8, 3);
    assert_eq!(node.news(), (vec![], vec![]));
    node.lists(&[(7, MpsRole::None)]);
    let changes = node.changes();
    let [kept] = &*changes.processes else {
        panic!("one is listed: {changes:?}")
    };
    let path: Arc<str> = format!("/docker/{A}").into();
    assert_eq!(*kept.cgroups, [(0, path)]);
    assert_eq!((kept.exit, kept.by_event), (None, true));
    let number = changes.accounts[0].number;
    assert_eq!(kept.accounts, [number]);
    node.lists(&[(7, MpsRole::None)]);
    assert_eq!(node.news(), (vec![], vec![]), "nothing is new");
    let died = node.now;
    node.seen(KernelEvent::Exit, 7, 3);
    let changes = node.changes();
    let kept = &changes.processes[0];
    assert_eq!(kept.exit, Some(clock(died).boot));
    assert!(kept.exit_reported && kept.accounts.is_empty());
    node.now += 13;
    assert_eq!(node.news(), (vec![], vec![]));
    assert_eq!(node.news(), (vec![], vec![7]));
    assert_eq!(node.news(), (vec![], vec![]));
}

#[test]
fn what_could_mislead_is_not_kept() {
    let mut node = Node::new();
    let all = [7, 8, 9].map(|pid| (pid, MpsRole::None));
    node.seen(KernelEvent::Fork, 7, 3);
    node.seen(KernelEvent::Fork, 8, 4);
    node.seen(KernelEvent::Fork, 9, 3);
    node.lists(&all);
    assert_eq!(node.news().0, [7, 9], "the cgroup of one has no path");
    node.announce(4, Some(2), B);
    assert_eq!(node.news(), (vec![8], vec![]));
    // It moves, and where it was counts until its windows are booked.
    node.seen(KernelEvent::Attach, 7, 4);
    let moved = clock(node.now).boot;
    let [kept] = &*node.changes().processes else {
        panic!("one has moved")
    };
    let [before, now] = [A, B].map(|id| Cgroups::from([(0, format!("/docker/{id}").into())]));
    assert_eq!(
        (&kept.cgroups, &kept.moved),
        (&now, &Some((before, Some(moved))))
    );
    // It turns out to be an MPS server.
    node.lists(&[
        (7, MpsRole::None),
        (8, MpsRole::Client),
        (9, MpsRole::Server),
    ]);
    assert_eq!(
        node.news(),
        (vec![7, 8], vec![9]),
        "on which they are counted is news"
    );
    // An id that belongs elsewhere.
    node.announce(5, Some(1), "mine");
    node.announce(6, Some(5), A);
    node.seen(KernelEvent::Fork, 10, 6);
    node.lists(&[(10, MpsRole::None)]);
    assert_eq!(node.news(), (vec![], vec![]));
}
