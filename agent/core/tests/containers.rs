//! Containers that never touch a GPU: whatever comes and goes on a node, and whatever labels it has,
//! the core's memory stays where it was. In a file of its own, since it counts every byte that is
//! allocated in its process.

#![expect(
    unsafe_code,
    reason = "an allocator that counts can be made in no other way"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use gpuacct_core::accountant::{Accountant, Settings};
use gpuacct_core::input::{
    CgroupAnnouncement, CgroupSet, ContainerIdentity, EventCounters, IdentitySource,
    IdentityUpdate, Input, KernelBatch, KernelEvent, ProcessEvent, SourceHealth,
};
use gpuacct_core::model::{
    BootTime, CgroupKey, Clock, ContainerId, Pid, SourceId, SourceState, WallTime,
};

/// Counts the bytes that are allocated.
struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is the system's allocator's with the same arguments.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HELD.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const CONTAINERS: u32 = 20_000;
/// Containers that begin in one second. Each lives for two.
const A_SECOND: u32 = 20;
const MOST: usize = 2_000_000;

fn clock(second: u32) -> Clock {
    let nanos = u64::from(second) * 1_000_000_000;
    Clock {
        boot: BootTime(nanos),
        wall: WallTime(1_700_000_000_000_000_000 + nanos),
    }
}

fn id(number: u32) -> ContainerId {
    ContainerId::from(format!("{number:064x}").as_str())
}

/// The container's cgroup.
fn cgroup(number: u32) -> CgroupKey {
    CgroupKey {
        hierarchy: 0,
        id: 1_000 + u64::from(number),
    }
}

/// What a runtime says of a container. One in ten has labels of its image of 30 kB, the others a
/// usual set.
fn identity(number: u32, source: IdentitySource) -> IdentityUpdate {
    let (labels, length) = if number.is_multiple_of(10) {
        (60, 250)
    } else {
        (12, 40)
    };
    let labels: BTreeMap<Arc<str>, Arc<str>> = (0..labels)
        .map(|label| {
            let key = format!("org.example.image.label.{label:0>length$}");
            let value = format!("{number:0>length$}");
            (key.as_str().into(), value.as_str().into())
        })
        .collect();
    IdentityUpdate::Found(ContainerIdentity {
        id: id(number),
        source,
        name: Some(format!("job-{number}").as_str().into()),
        image: Some("registry.example/team/image:latest".into()),
        runtime: None,
        kubernetes: None,
        labels,
    })
}

fn process(number: u32, at: BootTime) -> ProcessEvent {
    ProcessEvent {
        at,
        pid: Pid(10_000 + number % 30_000),
        parent: Pid(1),
        start: clock(number / A_SECOND).boot,
        pid_namespace_level: 1,
        cgroups: CgroupSet {
            unified: cgroup(number),
            legacy: None,
        },
    }
}

fn begins(number: u32, at: BootTime) -> Vec<KernelEvent> {
    vec![
        KernelEvent::Cgroup(CgroupAnnouncement {
            key: cgroup(number),
            parent: Some(2),
            name: format!("docker-{number:064x}.scope").as_str().into(),
        }),
        KernelEvent::Fork(process(number, at)),
        KernelEvent::Exec(process(number, at)),
    ]
}

fn ends(number: u32, at: BootTime) -> Vec<KernelEvent> {
    vec![
        KernelEvent::Exit(process(number, at)),
        KernelEvent::CgroupRemoved(cgroup(number)),
    ]
}

/// How the containers of a life come and go.
#[derive(Clone, Copy, Debug)]
struct Life {
    /// Who names them.
    source: IdentitySource,
    /// Whether that one says that they are gone.
    says_removed: bool,
}

/// The most bytes that the core held after a commit, beyond what it held with an empty node.
fn most_held(life: Life) -> usize {
    let mut accountant = Accountant::new(Settings::default(), clock(0));
    let up = |source| {
        Input::Health(SourceHealth {
            source,
            state: SourceState::Up,
            since: clock(0).boot,
            place: "".into(),
        })
    };
    for source in [SourceId::Kernel, life.source.source()] {
        accountant.take(up(source), clock(0));
    }
    let above = [(1, None, ""), (2, Some(1), "system.slice")];
    let above = above.map(|(id, parent, name)| {
        KernelEvent::Cgroup(CgroupAnnouncement {
            key: CgroupKey { hierarchy: 0, id },
            parent,
            name: name.into(),
        })
    });
    let batch = |events: Vec<KernelEvent>, second| {
        Input::Kernel(KernelBatch {
            events,
            drained_through: clock(second).boot,
            counters: EventCounters::default(),
        })
    };
    accountant.take(batch(above.into(), 0), clock(0));
    drop(accountant.commit(clock(0)));
    let before = HELD.load(Ordering::Relaxed);
    let mut most = 0;
    for second in 1..=CONTAINERS / A_SECOND + 60 {
        let at = clock(second);
        let those_of = |second: u32| second * A_SECOND..(second + 1) * A_SECOND;
        let mut events = Vec::new();
        if second < CONTAINERS / A_SECOND {
            for number in those_of(second) {
                accountant.take(Input::Identity(identity(number, life.source)), at);
                events.extend(begins(number, at.boot));
            }
        }
        if (3..CONTAINERS / A_SECOND + 2).contains(&second) {
            for number in those_of(second - 2) {
                events.extend(ends(number, at.boot));
                let (source, id) = (life.source, id(number));
                if life.says_removed {
                    let removed = IdentityUpdate::Removed { source, id };
                    accountant.take(Input::Identity(removed), at);
                }
            }
        }
        accountant.take(batch(events, second), at);
        drop(accountant.take_effects());
        let snapshot = accountant.commit(at);
        assert_eq!(snapshot.accounts, []);
        drop(snapshot);
        drop(accountant.take_effects());
        most = most.max(HELD.load(Ordering::Relaxed).saturating_sub(before));
    }
    most
}

#[test]
fn twenty_thousand_containers_that_never_touch_a_gpu_leave_nothing_behind() {
    for life in [
        Life {
            source: IdentitySource::Docker,
            says_removed: true,
        },
        // Files say nothing when they are gone.
        Life {
            source: IdentitySource::Bundle,
            says_removed: false,
        },
        // A runtime that still lists ended containers, or whose event about the end was missed.
        Life {
            source: IdentitySource::Cri,
            says_removed: false,
        },
    ] {
        let most = most_held(life);
        println!("{life:?}: {most} bytes");
        assert!(most <= MOST, "{life:?}: {most} bytes were held");
    }
}
