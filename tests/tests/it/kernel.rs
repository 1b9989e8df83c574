//! The real object on this machine's own kernel.
//!
//! Each test loads the object, makes one thing happen and waits until the stream says that it has
//! told everything up to then. Events of other processes are around at all times and are ignored.

#![allow(
    clippy::unwrap_used,
    reason = "the helpers of tests panic as the tests do, to keep the stack"
)]

use std::collections::BTreeSet;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, Once};
use std::thread;
use std::time::{Duration, Instant};

use gpuacct::config::Config;
use gpuacct::core::input::{Input, KernelEvent};
use gpuacct::core::model::{BootTime, CgroupKey, DeviceNumber, StartTicks};
use gpuacct::core::placement::PlacementTable;
use gpuacct::sources::Io;
use gpuacct::sources::kernel::KernelConfig;
use gpuacct::sources::kernel::follow::{self, Requested};
use gpuacct::sources::kernel::opens::{OpenHook, OpenHookState, Watch};
use gpuacct::sources::kernel::{self, trial};
use gpuacct_tests::kernel::{
    Observer, TestCgroup, TestProcess, boot_time, inode, legacy_mount, start_ticks, unified_mount,
};
use gpuacct_tests::requirement::require;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::thread::UnshareFlags;
use tokio::sync::{mpsc, oneshot, watch};

const RING_BYTES: u32 = 1 << 20;
const PROCESS: &str = env!("CARGO_BIN_EXE_test-process");

fn observer() -> Option<Observer> {
    observer_with(RING_BYTES)
}

fn observer_with(ring_bytes: u32) -> Option<Observer> {
    require("kernel", Observer::start(ring_bytes).map_err(with_causes))
}

fn with_causes(error: impl Into<anyhow::Error>) -> impl Display {
    format!("{:#}", error.into())
}

fn waiting_process() -> TestProcess {
    let mut process = TestProcess::start(PROCESS, &["wait"]).unwrap();
    process.line().unwrap();
    process
}

/// The hierarchies that the object reports on this machine: where each is mounted, its number, and
/// which of a process's cgroups is in it.
fn hierarchies() -> Vec<(PathBuf, u32)> {
    let unified = require("cgroup-v2", unified_mount().map_err(with_causes));
    let legacy = require("cgroup-v1", legacy_mount("memory").map_err(with_causes));
    unified
        .map(|mount| (mount, 0))
        .into_iter()
        .chain(legacy)
        .collect()
}

/// A name that no other test and no other run has.
fn name(test: &str) -> String {
    format!("gpuacct-test-{test}-{}", std::process::id())
}

/// The cgroup of a process that is in that hierarchy.
fn in_hierarchy(event: &gpuacct::core::input::ProcessEvent, hierarchy: u32) -> Option<CgroupKey> {
    if hierarchy == 0 {
        Some(event.cgroups.unified)
    } else {
        event
            .cgroups
            .legacy
            .filter(|key| key.hierarchy == hierarchy)
    }
}

/// Asserts that a cgroup was announced as what it is, after all of its ancestors and before
/// `before`, an index into the events.
fn assert_announced(
    observer: &Observer,
    mount: &Path,
    hierarchy: u32,
    cgroup: &Path,
    before: usize,
) {
    let mut cgroup = cgroup;
    let mut before = before;
    loop {
        let id = inode(cgroup).unwrap();
        let (at, announcement) = observer
            .announcements()
            .find(|(_, announcement)| announcement.key == CgroupKey { hierarchy, id })
            .unwrap_or_else(|| panic!("{} was not announced", cgroup.display()));
        assert!(
            at < before,
            "{} came after its child or process",
            cgroup.display()
        );
        before = at;
        if cgroup == mount {
            assert_eq!((announcement.parent, &*announcement.name), (None, ""));
            return;
        }
        let parent = cgroup.parent().unwrap();
        let name = cgroup.file_name().unwrap().to_str().unwrap();
        assert_eq!(
            (announcement.parent, &*announcement.name),
            (Some(inode(parent).unwrap()), name)
        );
        cgroup = parent;
    }
}

#[test]
fn a_process_is_seen_from_fork_to_exit() {
    let Some(mut observer) = observer() else {
        return;
    };
    let process = waiting_process();
    let pid = process.pid();
    let ticks = start_ticks(pid).unwrap();
    process.end().unwrap();

    observer.settle();
    assert_eq!(observer.life_of(pid), "fex");
    for (letter, event) in observer.of(pid) {
        assert_eq!(event.parent.0, std::process::id(), "{letter}");
        assert_eq!(event.pid_namespace_level, 0, "{letter}");
        assert_eq!(
            StartTicks::from(event.start),
            ticks,
            "{letter}: as in /proc"
        );
        assert!(event.at >= event.start, "{letter}");
    }
}

#[test]
fn a_process_outlives_its_leader() {
    let Some(mut observer) = observer() else {
        return;
    };
    let mut process = TestProcess::start(PROCESS, &["leader-ends-first"]).unwrap();
    let pid = process.pid();
    assert_eq!(process.line().unwrap(), "leader is gone");
    observer.settle();
    // Neither the birth of the thread nor the leader's end is one of the process.
    assert_eq!(observer.life_of(pid), "fe");

    process.end().unwrap();
    observer.settle();
    assert_eq!(observer.life_of(pid), "fex");
    assert_eq!(
        observer.event(pid, 'x').start,
        observer.event(pid, 'f').start
    );
}

#[test]
fn a_thread_that_execs_becomes_the_process() {
    let Some(mut observer) = observer() else {
        return;
    };
    let mut process = TestProcess::start(PROCESS, &["exec-from-thread"]).unwrap();
    let pid = process.pid();
    assert_eq!(process.line().unwrap(), pid.to_string());
    process.end().unwrap();

    observer.settle();
    // The old leader's end must not pass for the process's.
    assert_eq!(observer.life_of(pid), "feex");
    let starts: BTreeSet<_> = observer.of(pid).map(|(_, event)| event.start).collect();
    assert_eq!(starts.len(), 1, "{starts:?}");
}

#[test]
fn a_pid_is_the_initial_namespaces() {
    let Some(mut observer) = observer() else {
        return;
    };
    let mut process = TestProcess::start(PROCESS, &["pid-namespace"]).unwrap();
    // Inside it is process 1, which the child checks.
    let child: u32 = process.line().unwrap().parse().unwrap();
    let parent = process.pid();
    process.end().unwrap();

    observer.settle();
    assert_eq!(observer.life_of(child), "fx");
    for (letter, event) in observer.of(child) {
        assert_eq!(event.pid_namespace_level, 1, "{letter}");
        assert_eq!(event.parent.0, parent, "{letter}");
    }
    assert_eq!(observer.event(parent, 'x').pid_namespace_level, 0);
}

#[test]
fn a_pid_that_is_given_again_is_another_process() {
    let Some(mut observer) = observer() else {
        return;
    };
    let mut process = TestProcess::start(PROCESS, &["reuse-pid"]).unwrap();
    let pid: u32 = process.line().unwrap().parse().unwrap();
    let parent = process.pid();
    process.end().unwrap();

    observer.settle();
    let ours: Vec<_> = observer
        .of(pid)
        .filter(|(_, event)| event.parent.0 == parent)
        .collect();
    let letters: String = ours.iter().map(|(letter, _)| letter).collect();
    assert_eq!(letters, "fxfx");
    let starts: Vec<_> = ours.iter().map(|(_, event)| event.start).collect();
    assert_eq!(starts[0], starts[1]);
    assert_eq!(starts[2], starts[3]);
    assert!(starts[1] < starts[2], "{starts:?}");
}

#[test]
fn a_cgroup_is_announced_when_it_is_made() {
    let Some(mut observer) = observer() else {
        return;
    };
    for (mount, hierarchy) in hierarchies() {
        let outer = TestCgroup::make(&mount, &name("made")).unwrap();
        let inner = TestCgroup::make(outer.path(), "in ner\"\\").unwrap();
        observer.settle();
        let end = observer.events.len();
        assert_announced(&observer, &mount, hierarchy, inner.path(), end);
        drop(inner);
    }
}

#[test]
fn a_removed_cgroup_leaves_the_table() {
    let Some(mut observer) = observer() else {
        return;
    };
    for (mount, hierarchy) in hierarchies() {
        let cgroup = TestCgroup::make(&mount, &name("removed")).unwrap();
        let key = CgroupKey {
            hierarchy,
            id: cgroup.id().unwrap(),
        };
        let process = waiting_process();
        let pid = process.pid();
        cgroup.take(pid).unwrap();
        process.end().unwrap();
        drop(cgroup);
        observer.settle();
        let place = |event: &KernelEvent| match event {
            KernelEvent::Cgroup(announced) => announced.key == key,
            _ => false,
        };
        let made = observer.events.iter().position(place).unwrap();
        let is_removal = |event: &KernelEvent| *event == KernelEvent::CgroupRemoved(key);
        let removed = observer.events.iter().position(is_removal).unwrap();
        assert!(made < removed, "{made} {removed}");

        let mut table = PlacementTable::new(1_000_000);
        let cgroups = observer.event(pid, 'x').cgroups;
        assert_eq!(in_hierarchy(observer.event(pid, 'x'), hierarchy), Some(key));
        let mut path = |events: &[KernelEvent]| {
            for event in events {
                match event {
                    KernelEvent::Cgroup(announced) => {
                        let _ = table.announce(announced);
                    }
                    KernelEvent::CgroupRemoved(cgroup) => table.remove(*cgroup),
                    _ => {}
                }
            }
            table.forget_removed();
            let placement = table.of_keys(cgroups);
            let paths = table.cgroups_of(placement);
            table.discard_unheld(placement);
            let ours = paths.into_iter().find(|(found, _)| *found == hierarchy);
            ours.and_then(|(_, path)| path)
        };
        let (before, after) = observer.events.split_at(removed);
        assert!(path(before).is_some());
        assert_eq!(path(after), None);
    }
}

#[test]
fn a_cgroup_of_before_is_announced_before_its_process() {
    for (mount, hierarchy) in hierarchies() {
        let outer = TestCgroup::make(&mount, &name("before")).unwrap();
        let inner = TestCgroup::make(outer.path(), "inner").unwrap();
        let process = waiting_process();
        inner.take(process.pid()).unwrap();

        let Some(mut observer) = observer() else {
            return;
        };
        let pid = process.pid();
        process.end().unwrap();
        observer.settle();
        assert_eq!(observer.life_of(pid), "x");
        let exit = observer.event(pid, 'x');
        let key = CgroupKey {
            hierarchy,
            id: inner.id().unwrap(),
        };
        assert_eq!(in_hierarchy(exit, hierarchy), Some(key));
        let at = observer
            .events
            .iter()
            .position(|event| matches!(event, KernelEvent::Exit(exit) if exit.pid.0 == pid))
            .unwrap();
        assert_announced(&observer, &mount, hierarchy, inner.path(), at);
        drop(inner);
    }
}

/// cgroups one in the other, removed from the lowest up.
struct Chain(Vec<TestCgroup>);

impl Chain {
    /// So many below a mount.
    fn make(mount: &Path, test: &str, depth: usize) -> Self {
        let mut chain = Self(vec![TestCgroup::make(mount, &name(test)).unwrap()]);
        for _ in 1..depth {
            let parent = chain.lowest().path().to_owned();
            chain.0.push(TestCgroup::make(&parent, "deeper").unwrap());
        }
        chain
    }

    fn lowest(&self) -> &TestCgroup {
        self.0.last().unwrap()
    }
}

impl Drop for Chain {
    fn drop(&mut self) {
        while self.0.pop().is_some() {}
    }
}

#[test]
fn a_deep_cgroup_of_before_is_announced_from_the_highest_down_and_to_the_end() {
    for (mount, hierarchy) in hierarchies() {
        for depth in [40, 70, 200] {
            let chain = Chain::make(&mount, &format!("deep-{depth}"), depth);
            let Some(mut observer) = observer() else {
                return;
            };
            // Each is moved there and ends there: two events, and as many steps of 32.
            for _ in 0..depth.div_ceil(2 * 32) {
                let process = waiting_process();
                chain.lowest().take(process.pid()).unwrap();
                process.end().unwrap();
            }
            observer.settle();
            let end = observer.events.len();
            assert_announced(&observer, &mount, hierarchy, chain.lowest().path(), end);
            // Nobody is announced twice, so nobody was marked too early.
            let ids: Vec<_> = observer
                .announcements()
                .filter(|(_, announcement)| announcement.key.hierarchy == hierarchy)
                .map(|(_, announcement)| announcement.key.id)
                .collect();
            for cgroup in &chain.0 {
                let id = cgroup.id().unwrap();
                assert_eq!(ids.iter().filter(|found| **found == id).count(), 1);
            }
        }
    }
}

#[test]
fn a_process_that_is_moved_is_where_it_was_moved_to() {
    let Some(mut observer) = observer() else {
        return;
    };
    for (mount, hierarchy) in hierarchies() {
        let cgroup = TestCgroup::make(&mount, &name("moved")).unwrap();
        let key = CgroupKey {
            hierarchy,
            id: cgroup.id().unwrap(),
        };
        let process = waiting_process();
        let pid = process.pid();
        cgroup.take(pid).unwrap();
        process.end().unwrap();

        observer.settle();
        assert_eq!(observer.life_of(pid), "feax");
        let places: Vec<bool> = observer
            .of(pid)
            .map(|(_, event)| in_hierarchy(event, hierarchy) == Some(key))
            .collect();
        assert_eq!(places, [false, false, true, true]);
    }
}

#[test]
fn a_move_in_a_hierarchy_that_is_not_reported_is_told() {
    let Some(mut observer) = observer() else {
        return;
    };
    let other = require("cgroup-v1", legacy_mount("freezer").map_err(with_causes));
    let Some((mount, _)) = other else {
        return;
    };
    let cgroup = TestCgroup::make(&mount, &name("elsewhere")).unwrap();
    let process = waiting_process();
    let pid = process.pid();
    cgroup.take(pid).unwrap();
    process.end().unwrap();

    observer.settle();
    assert_eq!(observer.life_of(pid), "feax");
    let places: BTreeSet<String> = observer
        .of(pid)
        .map(|(_, event)| format!("{:?}", event.cgroups))
        .collect();
    assert_eq!(places.len(), 1, "{places:?}");
}

#[test]
fn a_process_can_be_born_in_another_cgroup() {
    let Some(mut observer) = observer() else {
        return;
    };
    let Some(mount) = require("cgroup-v2", unified_mount().map_err(with_causes)) else {
        return;
    };
    let cgroup = TestCgroup::make(&mount, &name("born")).unwrap();
    let path = cgroup.path().to_str().unwrap();
    let mut process = TestProcess::start(PROCESS, &["into-cgroup", path]).unwrap();
    let child: u32 = process.line().unwrap().parse().unwrap();
    process.end().unwrap();

    observer.settle();
    assert_eq!(observer.life_of(child), "fx");
    for (letter, event) in observer.of(child) {
        assert_eq!(event.cgroups.unified.id, cgroup.id().unwrap(), "{letter}");
    }
}

#[test]
fn nothing_is_lost_while_there_is_room() {
    let Some(mut observer) = observer() else {
        return;
    };
    const CHILDREN: usize = 3_000;
    let mut process = TestProcess::start(PROCESS, &["fork", &CHILDREN.to_string()]).unwrap();
    process.line().unwrap();
    process.say("go").unwrap();
    process.line().unwrap();
    let parent = process.pid();
    process.end().unwrap();

    let counters = observer.settle();
    assert_eq!(
        (counters.lost, counters.undecodable),
        (0, 0),
        "{counters:?}"
    );
    let (mut born, mut dead) = (0, 0);
    for event in &observer.events {
        match event {
            KernelEvent::Fork(process) if process.parent.0 == parent => born += 1,
            KernelEvent::Exit(process) if process.parent.0 == parent => dead += 1,
            _ => {}
        }
    }
    assert_eq!((born, dead), (CHILDREN, CHILDREN));
}

#[test]
fn the_kernel_tells_how_often_it_skipped_a_program() {
    let Some(mut observer) = observer() else {
        return;
    };
    let release = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    let numbers: Vec<u32> = release.split('.').map_while(|of| of.parse().ok()).collect();
    // The two numbers of "5.10.0-28-amd64", as far as they are there.
    if matches!(numbers[..], [5, minor, ..] if minor < 12) {
        println!("linux {release} does not count them");
        return;
    }
    let watched = observer.source().counts_skipped();
    for program in ["fork", "exec", "exit"] {
        let name = format!("sched_process_{program}");
        assert!(watched.contains(&&*name), "{watched:?}");
    }
    assert_eq!(watched.len(), 5, "{watched:?}");
    assert_eq!(observer.settle().skipped, 0);
}

/// Where tracefs is looked for.
const TRACEFS: &str = "/sys/kernel/tracing";
/// Devices of the kind "misc" stand for GPUs: every kernel has some, and hardly anybody opens one.
const STAND_INS: &str = "misc";

/// One observer for each hook that this kernel lets the object take.
fn observers_of_opens(config: &KernelConfig) -> Vec<(OpenHook, Observer)> {
    mount_tracefs();
    let observer = |hook: OpenHook| {
        let config = KernelConfig {
            watch: Watch {
                names: vec![STAND_INS.to_owned()],
                hooks: vec![hook],
            },
            ..config.clone()
        };
        let observer = require("kernel", Observer::start_with(&config).map_err(with_causes))?;
        let attached = match observer.source().opens() {
            OpenHookState::Attached(by) => {
                assert_eq!(by, hook);
                Ok(())
            }
            state => Err(format!("the kernel allows no `{}`: {state:?}", hook.name())),
        };
        let part = match hook {
            OpenHook::Function => "fexit",
            OpenHook::Opens => "tracefs",
            OpenHook::Calls => "kernel",
        };
        require(part, attached).map(|()| (hook, observer))
    };
    OpenHook::ALL.into_iter().filter_map(observer).collect()
}

/// Mounts tracefs where this test's thread alone sees it, unless it is there for all.
fn mount_tracefs() {
    if Path::new(TRACEFS).join("events").exists() {
        return;
    }
    // SAFETY: the flag leaves this thread's descriptors where they are.
    let mounted = unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }
        .and_then(|()| {
            mount_change(
                "/",
                MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
            )
        })
        .and_then(|()| mount("tracefs", TRACEFS, "tracefs", MountFlags::empty(), None));
    // Then the hook that needs it is skipped, and says why.
    if let Err(error) = mounted {
        println!("no tracefs: {error}");
    }
}

/// A device node of these tests, which nobody else knows.
struct DeviceNode {
    dir: tempfile::TempDir,
    number: DeviceNumber,
}

impl DeviceNode {
    /// For a device that the kernel has, or for one that it has not.
    fn make(minor: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let number = DeviceNumber { major: 10, minor };
        rustix::fs::mknodat(
            rustix::fs::CWD,
            dir.path().join("node"),
            rustix::fs::FileType::CharacterDevice,
            rustix::fs::Mode::RUSR,
            rustix::fs::makedev(number.major, number.minor),
        )
        .unwrap();
        Self { dir, number }
    }

    fn path(&self) -> String {
        self.dir.path().join("node").display().to_string()
    }
}

/// The minor number of a device of [`STAND_INS`] that may be opened without a consequence.
fn harmless_minor() -> u32 {
    let table = std::fs::read_to_string("/proc/misc").unwrap();
    let harmless = ["cpu_dma_latency", "vga_arbiter", "hpet", "fuse", "tun"];
    let minor = table.lines().find_map(|line| {
        let (minor, name) = line.trim_start().split_once(' ')?;
        harmless.contains(&name).then(|| minor.parse().unwrap())
    });
    minor.unwrap_or_else(|| panic!("none of {harmless:?} in {table}"))
}

/// Has a process do its opens between two instants, and returns its pid, what it said of them, and
/// the instants.
fn opening(
    observer: &mut Observer,
    verb: &str,
    path: &str,
    before: impl FnOnce(u32),
) -> (u32, String, BootTime, BootTime) {
    let mut process = TestProcess::start(PROCESS, &[verb, path]).unwrap();
    let pid = process.pid();
    process.line().unwrap();
    before(pid);
    let began = boot_time();
    process.say("go").unwrap();
    let said = process.line().unwrap();
    let ended = boot_time();
    process.end().unwrap();
    observer.settle();
    (pid, said, began, ended)
}

#[test]
fn an_open_of_a_watched_device_is_announced() {
    let Some(unified) = require("cgroup-v2", unified_mount().map_err(with_causes)) else {
        return;
    };
    let node = DeviceNode::make(harmless_minor());
    for (hook, mut observer) in observers_of_opens(&KernelConfig::default()) {
        // Other names than the driver's lead to it as well.
        let link = node.dir.path().join(format!("link-{}", hook.name()));
        std::os::unix::fs::symlink(node.path(), &link).unwrap();
        let cgroup = TestCgroup::make(&unified, &name(&format!("opens-{}", hook.name()))).unwrap();
        let (pid, said, began, ended) =
            opening(&mut observer, "open", link.to_str().unwrap(), |pid| {
                cgroup.take(pid).unwrap();
            });
        let calls = if cfg!(target_arch = "x86_64") { 3 } else { 2 };
        assert_eq!(said, format!("{calls} 0"), "{hook:?}");
        let opens: Vec<_> = observer.opens_by(pid).collect();
        assert_eq!(opens.len(), calls, "{hook:?}");
        let born = observer.event(pid, 'f');
        for open in opens {
            let process = &open.process;
            assert_eq!(open.device, node.number, "{hook:?}");
            assert_eq!(process.start, born.start, "{hook:?}");
            assert_eq!(process.parent, born.parent, "{hook:?}");
            assert_eq!(process.pid_namespace_level, 0, "{hook:?}");
            assert_eq!(process.cgroups.unified.id, cgroup.id().unwrap(), "{hook:?}");
            assert_eq!(
                process.cgroups.legacy, born.cgroups.legacy,
                "{hook:?}: it was moved in v2 alone"
            );
            assert!(began <= process.at && process.at <= ended, "{hook:?}");
        }
    }
}

#[test]
fn an_open_by_a_thread_is_its_processs() {
    let node = DeviceNode::make(harmless_minor());
    for (hook, mut observer) in observers_of_opens(&KernelConfig::default()) {
        let (pid, said, ..) = opening(&mut observer, "open-from-thread", &node.path(), |_| {});
        assert_eq!(said, "1 0", "{hook:?}");
        let opens: Vec<_> = observer.opens_by(pid).collect();
        assert_eq!(opens.len(), 1, "{hook:?}");
        assert_eq!(opens[0].device, node.number, "{hook:?}");
        assert_eq!(opens[0].process.start, observer.event(pid, 'f').start);
    }
}

#[test]
fn what_fails_or_is_no_device_is_not_announced() {
    // The kernel has no misc device of this number, so its node leads nowhere.
    let nowhere = DeviceNode::make((1 << 20) - 2);
    for (hook, mut observer) in observers_of_opens(&KernelConfig::default()) {
        let calls = if cfg!(target_arch = "x86_64") { 3 } else { 2 };
        for (path, expected) in [
            (nowhere.path(), format!("0 {calls}")),
            ("/nonexistent".to_owned(), format!("0 {calls}")),
            (PROCESS.to_owned(), format!("{calls} 0")),
            ("/dev/null".to_owned(), format!("{calls} 0")),
        ] {
            let (pid, said, ..) = opening(&mut observer, "open", &path, |_| {});
            assert_eq!(said, expected, "{hook:?}: {path}");
            assert_eq!(observer.opens_by(pid).count(), 0, "{hook:?}: {path}");
        }
    }
}

#[test]
fn opens_are_counted_like_everything() {
    let node = DeviceNode::make(harmless_minor());
    for (hook, mut observer) in observers_of_opens(&KernelConfig::default()) {
        for _ in 0..20 {
            opening(&mut observer, "open", &node.path(), |_| {});
        }
        // As in the test of losses: the readings are one after the other, and others are at work.
        let mut facts = String::new();
        let balances = (0..1000).any(|_| {
            let counters = observer.settle();
            facts = format!("{counters:?}, {} received", observer.events.len());
            counters.seen == counters.submitted + counters.lost
                && counters.submitted == observer.events.len() as u64
        });
        assert!(balances, "{hook:?}: {facts}");
    }
}

#[test]
fn a_node_without_such_a_device_has_no_hook_until_it_comes() {
    let watch = |name: &str| KernelConfig {
        watch: Watch {
            names: name.split_terminator(' ').map(str::to_owned).collect(),
            ..Watch::default()
        },
        ..KernelConfig::default()
    };
    for (names, expected) in [
        ("", OpenHookState::Off),
        ("gpuacct-test-no-such-device", OpenHookState::Waiting),
    ] {
        let observer = Observer::start_with(&watch(names)).map_err(with_causes);
        let Some(mut observer) = require("kernel", observer) else {
            return;
        };
        assert_eq!(observer.source_mut().attach_opens(), expected, "{names}");
        assert_eq!(observer.source().opens(), expected, "{names}");
    }
}

#[test]
fn the_trial_says_which_hook_and_why_not_the_better_one() {
    if observer().is_none() {
        return;
    }
    let hooks = trial::hooks(&KernelConfig::default()).unwrap();
    let all = hooks.needed.iter().chain(&hooks.optional);
    assert!(all.map(|hook| &hook.refusal).all(Option::is_none));
    let OpenHookState::Attached(hook) = hooks.opens else {
        panic!("{hooks:?}");
    };
    // The better one is taken, or it is said why not.
    let refused: Vec<OpenHook> = hooks.refusals.iter().map(|refusal| refusal.hook).collect();
    let better: Vec<OpenHook> = OpenHook::ALL
        .into_iter()
        .take_while(|one| *one != hook)
        .collect();
    assert_eq!(refused, better);
    for refusal in &hooks.refusals {
        let reason = kernel::reason(&refusal.error);
        assert!(reason.contains(refusal.hook.name()), "{reason}");
    }
}

#[test]
fn what_is_lost_is_counted_and_announced_again() {
    // Some eight hundred events: less than one storm, and more than other processes cause between two
    // readings. The tests beside this one start many, and in a ring of one page the losses would not
    // end.
    let Some(mut observer) = observer_with(1 << 16) else {
        return;
    };
    let Some(mount) = require("cgroup-v2", unified_mount().map_err(with_causes)) else {
        return;
    };
    let cgroup = TestCgroup::make(&mount, &name("lost")).unwrap();
    let key = CgroupKey {
        hierarchy: 0,
        id: cgroup.id().unwrap(),
    };
    let process = waiting_process();
    cgroup.take(process.pid()).unwrap();
    observer.settle();

    // Nobody receives meanwhile: the channel fills up, then what the thread keeps, then the ring.
    for _ in 0..100 {
        if observer.source().counters().lost > 0 {
            break;
        }
        let mut storm = TestProcess::start(PROCESS, &["fork", "1000"]).unwrap();
        storm.line().unwrap();
        storm.say("go").unwrap();
        storm.line().unwrap();
        storm.end().unwrap();
    }

    // The counters are read one after the other while events go on, so the identity need not hold
    // in each reading; as soon as nothing is under way it does, and what was submitted is here.
    let mut facts = String::new();
    let balances = (0..1000).any(|_| {
        let counters = observer.settle();
        facts = format!("{counters:?}, {} received", observer.events.len());
        counters.lost > 0
            && counters.seen == counters.submitted + counters.lost
            && counters.submitted == observer.events.len() as u64
    });
    assert!(balances, "{facts}");

    // Once no more is lost, what had been announced is announced again when it is next seen. Other
    // processes are at work too, so it may take a while until the ring has room for all.
    let times_announced = |observer: &Observer| {
        observer
            .announcements()
            .filter(|(_, announcement)| announcement.key == key)
            .count()
    };
    let before = times_announced(&observer);
    process.end().unwrap();
    let again = (0..100).any(|_| {
        observer.settle();
        let process = waiting_process();
        cgroup.take(process.pid()).unwrap();
        process.end().unwrap();
        observer.settle();
        times_announced(&observer) > before
    });
    assert!(again, "{before} announcements, {facts}");
}

#[test]
fn announcements_are_made_again_on_request() {
    let Some(mut observer) = observer() else {
        return;
    };
    let root_announced = |observer: &Observer| {
        observer
            .announcements()
            .filter(|(_, announcement)| announcement.parent.is_none())
            .count()
    };
    waiting_process().end().unwrap();
    observer.settle();
    let first = root_announced(&observer);
    assert!(first > 0);
    waiting_process().end().unwrap();
    observer.settle();
    assert_eq!(root_announced(&observer), first, "each is announced once");

    observer.source().clear_announced();
    // The request is carried out before the next drain.
    observer.settle();
    observer.settle();
    waiting_process().end().unwrap();
    observer.settle();
    assert!(root_announced(&observer) > first);
}

#[test]
fn the_stream_goes_on_when_nothing_happens() {
    let Some(mut observer) = observer() else {
        return;
    };
    let mut last = observer.latest.drained_through;
    for _ in 0..5 {
        // Nobody asks. A drain that comes while a record is being written promises nothing new.
        while observer.latest.drained_through == last {
            observer.next_batch();
        }
        let through = observer.latest.drained_through;
        assert!(through > last, "{through:?} after {last:?}");
        last = through;
    }
}

/// An object whose ring is drained only when something asks for it.
fn never_by_itself() -> KernelConfig {
    KernelConfig {
        period: Duration::from_secs(3600),
        ..KernelConfig::default()
    }
}

#[test]
fn a_report_that_is_asked_for_does_not_wait_for_the_next_drain() {
    let observer = Observer::start_with(&never_by_itself()).map_err(with_causes);
    let Some(mut observer) = require("kernel", observer) else {
        return;
    };
    for _ in 0..5 {
        let asked = boot_time();
        observer.settle();
        assert!(observer.latest.drained_through >= asked);
    }
    let process = waiting_process();
    observer.settle();
    assert!(observer.life_of(process.pid()).starts_with('f'));
}

#[test]
fn what_happened_before_the_agent_stops_is_reported() {
    if observer().is_none() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let (out, mut inputs) = mpsc::channel(64);
    let (rescans, _rescans_taken) = mpsc::channel(1);
    let (_announce, announce) = mpsc::channel(1);
    let (_reports, reports) = mpsc::channel(1);
    let (stop, shutdown) = watch::channel(false);
    let (tried, has_tried) = oneshot::channel();
    let io = Io {
        out,
        clock: gpuacct::sources::clock::now,
        shutdown,
    };
    let requested = Requested { announce, reports };
    let source = follow::run(Config::default().kernel, requested, rescans, tried, io);
    runtime.block_on(async {
        let source = tokio::spawn(source);
        has_tried.await.unwrap();
        let process = waiting_process();
        stop.send(true).unwrap();
        let mut forks = Vec::new();
        while let Some(input) = inputs.recv().await {
            let Input::Kernel(batch) = input else {
                continue;
            };
            forks.extend(batch.events.iter().filter_map(|event| match event {
                KernelEvent::Fork(fork) => Some(fork.pid.0),
                _ => None,
            }));
        }
        source.await.unwrap();
        assert!(forks.contains(&process.pid()), "{forks:?}");
        process.end().unwrap();
    });
}

#[test]
fn the_first_process_in_a_cgroup_does_not_wait_for_the_next_drain() {
    let observer = Observer::start_with(&never_by_itself()).map_err(with_causes);
    let Some(mut observer) = require("kernel", observer) else {
        return;
    };
    let seen = |observer: &mut Observer, pid, letter| {
        while !observer.life_of(pid).contains(letter) {
            observer.next_batch();
        }
    };
    for (mount, hierarchy) in hierarchies() {
        let cgroup = TestCgroup::make(&mount, &name(&format!("wakes-{hierarchy}"))).unwrap();
        let process = waiting_process();
        cgroup.take(process.pid()).unwrap();
        seen(&mut observer, process.pid(), 'a');
        let end = observer.events.len();
        assert_announced(&observer, &mount, hierarchy, cgroup.path(), end);
        process.end().unwrap();
    }
    let Some(mount) = require("cgroup-v2", unified_mount().map_err(with_causes)) else {
        return;
    };
    let cgroup = TestCgroup::make(&mount, &name("wakes-born")).unwrap();
    let path = cgroup.path().to_str().unwrap();
    let mut process = TestProcess::start(PROCESS, &["into-cgroup", path]).unwrap();
    let child: u32 = process.line().unwrap().parse().unwrap();
    seen(&mut observer, child, 'f');
    process.end().unwrap();
}

#[test]
fn an_open_does_not_wait_for_the_next_drain() {
    let node = DeviceNode::make(harmless_minor());
    for (hook, mut observer) in observers_of_opens(&never_by_itself()) {
        let mut process = TestProcess::start(PROCESS, &["open", &node.path()]).unwrap();
        process.line().unwrap();
        process.say("go").unwrap();
        process.line().unwrap();
        while observer.opens_by(process.pid()).count() == 0 {
            observer.next_batch();
        }
        process.end().unwrap();
        assert!(observer.latest.drained_through > BootTime(0), "{hook:?}");
    }
}

#[test]
fn a_storm_of_moves_does_not_have_the_ring_drained_for_each() {
    let observer = Observer::start_with(&never_by_itself()).map_err(with_causes);
    let Some(mut observer) = require("kernel", observer) else {
        return;
    };
    let Some(mount) = require("cgroup-v2", unified_mount().map_err(with_causes)) else {
        return;
    };
    const MOVES: usize = 2_000;
    let cgroups = ["storm-a", "storm-b"].map(|of| TestCgroup::make(&mount, &name(of)).unwrap());
    let process = waiting_process();
    let pid = process.pid();
    observer.settle();

    let began = Instant::now();
    let mut batches = 0;
    thread::scope(|scope| {
        let movers = scope.spawn(|| {
            for target in cgroups.iter().cycle().take(MOVES) {
                target.take(pid).unwrap();
            }
        });
        // The last of them have nothing that follows, and come all the same.
        while observer
            .of(pid)
            .filter(|(letter, _)| *letter == 'a')
            .count()
            < MOVES
        {
            observer.next_batch();
            batches += 1;
        }
        movers.join().unwrap();
    });
    // Not how long it took, but how often it was drained in that time.
    let at_most = began.elapsed().as_nanos() / kernel::SPACING.as_nanos() + 2;
    assert!(batches <= at_most, "{batches} drains, at most {at_most}");
    process.end().unwrap();
}

/// What the agent logs, of all tests of this file.
static LOG: Mutex<Vec<u8>> = Mutex::new(Vec::new());

struct Log;

impl std::io::Write for Log {
    fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
        LOG.lock().unwrap().write(text)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn the_objects_messages_arrive_in_the_agents_log() {
    static SUBSCRIBE: Once = Once::new();
    SUBSCRIBE.call_once(|| {
        tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(|| Log)
            .init();
    });
    let Some(mount) = require("cgroup-v2", unified_mount().map_err(with_causes)) else {
        return;
    };
    // Deeper than the object goes, and made before it is there.
    let depth = gpuacct_common::global::MAX_CGROUP_WALK + 1;
    let chain = Chain::make(&mount, "too-deep", depth);
    let lowest = chain.lowest();
    let Some(mut observer) = observer() else {
        return;
    };
    for _ in 0..2 {
        let process = waiting_process();
        lowest.take(process.pid()).unwrap();
        process.end().unwrap();
    }
    observer.settle();

    let log = String::from_utf8(LOG.lock().unwrap().clone()).unwrap();
    let id = lowest.id().unwrap();
    let expected = format!("cgroup {id} of hierarchy 0 is more than 256 levels below");
    let lines: Vec<_> = log
        .lines()
        .filter(|line| line.contains(&expected))
        .collect();
    let [line] = lines[..] else {
        panic!("{} times {expected:?} in {log}", lines.len());
    };
    assert!(line.contains("WARN gpuacct::ebpf:"), "{line}");

    // It and its parent are announced alone: the way of others, up to here, is still to be announced.
    let announced: BTreeSet<u64> = observer
        .announcements()
        .map(|(_, announcement)| announcement.key.id)
        .collect();
    for (level, cgroup) in chain.0.iter().enumerate() {
        let is_announced = announced.contains(&cgroup.id().unwrap());
        assert_eq!(is_announced, level + 2 >= depth, "level {level}");
    }
    let process = waiting_process();
    chain.0[0].take(process.pid()).unwrap();
    process.end().unwrap();
    observer.settle();
    let end = observer.events.len();
    assert_announced(&observer, &mount, 0, chain.0[0].path(), end);
}

#[test]
fn an_ordinary_user_is_told_what_is_lacking() {
    if observer().is_none() {
        return;
    }
    let mut process = TestProcess::start(PROCESS, &["load-as-nobody"]).unwrap();
    let error = process.line().unwrap();
    assert!(error.starts_with("the kernel refused to "), "{error}");
    assert!(
        error.ends_with("this process lacks CAP_BPF and CAP_PERFMON"),
        "{error}"
    );
    process.end().unwrap();
}

#[test]
fn the_kernels_types_do_not_stay_in_memory() {
    if observer().is_none() {
        return;
    }
    let mut process = TestProcess::start(PROCESS, &["memory"]).unwrap();
    let line = process.line().unwrap();
    process.end().unwrap();
    let kib: Vec<u64> = line.split(' ').map(|kib| kib.parse().unwrap()).collect();
    let [before, peak, after] = kib[..] else {
        panic!("{line}")
    };
    println!("resident KiB: {before} before, {peak} at the peak, {after} after");
    // The types take more than this by themselves.
    assert!(after < before + 8 * 1024, "{line}");
}
