//! Batch jobs that are named in a hierarchy which events do not report.

use std::sync::Arc;

use crate::accountant::{Accountant, Settings};
use crate::effect::Effect;
use crate::input::{
    CgroupAnnouncement, CgroupSet, Input, KernelBatch, KernelEvent, ProcessEvent, ProcessScan,
    ScannedProcess,
};
use crate::model::{BootTime, CgroupKey, Clock, Owner, Pid, ProcessId, WallTime};

const SECOND: u64 = 1_000_000_000;
const JOB: &str = "/sge/12.1/99";
const DAEMON: &str = "/system.slice/sgeexecd.service";

struct Node {
    accountant: Accountant,
    now: u64,
}

impl Node {
    fn new() -> Self {
        let now = 100 * SECOND;
        let mut node = Self {
            accountant: Accountant::new(Settings::default(), clock(now)),
            now,
        };
        let announce = |hierarchy, id, parent, name: &str| {
            KernelEvent::Cgroup(CgroupAnnouncement {
                key: CgroupKey { hierarchy, id },
                parent,
                name: name.into(),
            })
        };
        node.events(vec![
            announce(0, 1, None, ""),
            announce(4, 1, None, ""),
            announce(4, 2, Some(1), "system.slice"),
            announce(4, 3, Some(2), "sgeexecd.service"),
        ]);
        node
    }

    fn events(&mut self, events: Vec<KernelEvent>) {
        let batch = KernelBatch {
            events,
            drained_through: BootTime(self.now),
            ..KernelBatch::default()
        };
        self.accountant.take(Input::Kernel(batch), clock(self.now));
        self.now += SECOND;
    }

    /// An event of a process in the daemon's cgroup, as far as events tell.
    fn event(&self, pid: u32, start: u64, parent: u32) -> ProcessEvent {
        ProcessEvent {
            at: BootTime(self.now),
            pid: Pid(pid),
            parent: Pid(parent),
            start: BootTime(start),
            pid_namespace_level: 0,
            cgroups: CgroupSet {
                unified: CgroupKey {
                    hierarchy: 0,
                    id: 1,
                },
                legacy: Some(CgroupKey {
                    hierarchy: 4,
                    id: 3,
                }),
            },
        }
    }

    fn scan(&mut self, processes: &[(u32, u64, &str)]) {
        let processes = processes
            .iter()
            .map(|(pid, start, cpuset)| ScannedProcess {
                pid: Pid(*pid),
                parent: Pid(1),
                start: BootTime(*start).into(),
                cgroups: Arc::new([(7, (*cpuset).into()), (4, DAEMON.into()), (0, "/".into())]),
            })
            .collect();
        let scan = ProcessScan {
            started: BootTime(self.now),
            finished: BootTime(self.now),
            processes,
            ..ProcessScan::default()
        };
        let clock = clock(self.now);
        self.accountant.take(Input::Processes(scan), clock);
        self.now += SECOND;
    }

    /// Whose a process's time was, from its start on.
    fn units(&mut self, pid: u32, start: u64) -> Vec<String> {
        let id = ProcessId {
            pid: Pid(pid),
            start: BootTime(start).into(),
        };
        let facts = self.accountant.tracker.processes().facts_of(id).unwrap();
        let places = facts.previous.into_iter().chain([facts.placement]);
        let tracker = &mut self.accountant.tracker;
        places
            .map(|place| match tracker.owner(place) {
                Some((Owner::Host(unit), _)) => unit.to_string(),
                other => panic!("{other:?}"),
            })
            .collect()
    }
}

fn clock(at: u64) -> Clock {
    Clock {
        boot: BootTime(at),
        wall: WallTime(at),
    }
}

#[test]
fn a_job_that_a_scan_finds_stays_the_jobs_whatever_events_say() {
    let mut node = Node::new();
    let daemon = node.now;
    node.events(vec![KernelEvent::Fork(node.event(50, daemon, 1))]);
    let job = node.now;
    node.events(vec![KernelEvent::Fork(node.event(60, job, 50))]);
    assert_eq!(
        node.units(60, job),
        ["sgeexecd.service"],
        "not known better"
    );
    node.scan(&[(50, daemon, "/"), (60, job, JOB)]);
    assert_eq!(node.units(60, job), ["/sge/12.1"], "from its beginning");
    node.events(vec![KernelEvent::Exec(node.event(60, job, 50))]);
    node.scan(&[(50, daemon, "/"), (60, job, JOB)]);
    node.events(vec![KernelEvent::Exit(node.event(60, job, 50))]);
    assert_eq!(node.units(60, job), ["/sge/12.1"]);
    assert_eq!(node.units(50, daemon), ["sgeexecd.service"]);
}

#[test]
fn what_a_job_forks_between_two_scans_is_the_jobs() {
    let mut node = Node::new();
    let (daemon, job) = (node.now, node.now + SECOND);
    node.events(vec![KernelEvent::Fork(node.event(50, daemon, 1))]);
    node.events(vec![KernelEvent::Fork(node.event(60, job, 50))]);
    node.scan(&[(50, daemon, "/"), (60, job, JOB)]);
    let child = node.now;
    node.events(vec![KernelEvent::Fork(node.event(70, child, 60))]);
    let grandchild = node.now;
    node.events(vec![
        KernelEvent::Fork(node.event(80, grandchild, 70)),
        KernelEvent::Exec(node.event(80, grandchild, 70)),
        KernelEvent::Exit(node.event(80, grandchild, 70)),
    ]);
    let other = node.now;
    node.events(vec![KernelEvent::Fork(node.event(90, other, 50))]);
    assert_eq!(node.units(70, child), ["/sge/12.1"]);
    assert_eq!(node.units(80, grandchild), ["/sge/12.1"]);
    assert_eq!(node.units(90, other), ["sgeexecd.service"]);
}

#[test]
fn a_move_that_events_do_not_name_is_looked_for_once_jobs_are_known_to_hide_there() {
    let mut node = Node::new();
    let (daemon, job) = (node.now, node.now + SECOND);
    let rescans = |node: &mut Node| {
        let effects = node.accountant.take_effects();
        effects.contains(&Effect::Rescan)
    };
    node.events(vec![KernelEvent::Fork(node.event(50, daemon, 1))]);
    node.events(vec![
        KernelEvent::Fork(node.event(60, job, 50)),
        KernelEvent::Attach(node.event(60, job, 50)),
    ]);
    rescans(&mut node);
    node.events(vec![KernelEvent::Attach(node.event(60, job, 50))]);
    assert!(!rescans(&mut node), "most nodes have no such jobs");
    node.scan(&[(50, daemon, "/"), (60, job, JOB)]);
    rescans(&mut node);
    let next = node.now;
    node.events(vec![
        KernelEvent::Fork(node.event(70, next, 50)),
        KernelEvent::Attach(node.event(70, next, 50)),
    ]);
    assert!(rescans(&mut node));
    node.scan(&[(50, daemon, "/"), (60, job, JOB), (70, next, "/sge/13.1/7")]);
    assert_eq!(node.units(70, next), ["/sge/13.1"]);
}
