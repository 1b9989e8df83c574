//! A MIG instance on which containers take turns.
//!
//! The driver gives an instance's activity as one figure for each window, and process lists now and
//! then. The world here knows which process had a context when. Whatever the order:
//!
//! - nobody pays for a window in which no process of it had a context;
//! - a window is `shared_instance` only if several owners had a context within it;
//! - a window in which one owner had contexts is that owner's, if a list around it names one of them.

use std::collections::{BTreeMap, BTreeSet};

use gpuacct_core::accountant::{Accountant, Settings};
use gpuacct_core::effect::Effect;
use gpuacct_core::input::{
    CgroupAnnouncement, CgroupSet, DeviceOpen, EventCounters, GpuInfo, GpuProcess, GpuProcesses,
    GpuWindow, Input, KernelBatch, KernelEvent, MigInfo, MpsRole, ProcessEvent, SourceHealth,
    WindowQuality,
};
use gpuacct_core::model::{
    BootTime, CgroupKey, DeviceNumber, GpuUuid, Nanos, Pid, SourceId, SourceState,
    UnattributedReason,
};
use proptest::prelude::*;

use super::{MILLI, SECOND, at_once, clock};

/// How many containers there are.
const PAYERS: u8 = 3;
/// The driver's lists are read no more often.
const LISTS_APART: u64 = SECOND;
/// The cgroup above all containers'.
const ABOVE: u64 = 2;

fn uuid() -> GpuUuid {
    GpuUuid::from("MIG-0")
}

fn id(payer: u8) -> String {
    char::from(b'a' + payer).to_string().repeat(64)
}

fn cgroup(payer: u8) -> CgroupKey {
    CgroupKey {
        hierarchy: 0,
        id: 10 + u64::from(payer),
    }
}

/// A process, as it really was.
#[derive(Clone, Copy, Debug)]
struct Life {
    pid: u32,
    payer: u8,
    start: u64,
    /// Since when it had a context: since it opened the GPU.
    context: Option<u64>,
    end: Option<u64>,
}

impl Life {
    fn ended(&self) -> u64 {
        self.end.unwrap_or(u64::MAX)
    }

    fn is_on_instance(&self, from: u64, to: u64) -> bool {
        self.context.is_some_and(|since| since < to) && self.ended() > from
    }

    fn has_context(&self, at: u64) -> bool {
        self.context.is_some_and(|since| since <= at) && self.ended() > at
    }
}

/// What became of the instance's busy time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Booked {
    payers: BTreeMap<u8, u64>,
    shared: u64,
    no_row: u64,
}

struct World {
    accountant: Accountant,
    now: u64,
    lives: Vec<Life>,
    next_pid: u32,
    events: Vec<(u64, KernelEvent)>,
    drained: u64,
    windowed: u64,
    /// When lists were read, and whether another reading is asked for.
    read: Vec<u64>,
    is_asked: bool,
    /// Windows that the core has and has not booked: from, to, busy.
    unbooked: Vec<(u64, u64, u64)>,
    windows: u64,
    /// What each owner must have been booked, and may have been at most.
    must: BTreeMap<u8, u64>,
    most: BTreeMap<u8, u64>,
    most_shared: u64,
    booked: Booked,
}

#[derive(Clone, Debug)]
enum Step {
    Wait(u64),
    Born(u8),
    /// The so-manieth of the living opens the GPU and has a context.
    Opens(usize),
    Dies(usize),
    Drain(u64),
    Lists,
    Window,
    Commit,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1..700 * MILLI).prop_map(Step::Wait),
        2 => (SECOND..3 * SECOND).prop_map(Step::Wait),
        3 => (0..PAYERS).prop_map(Step::Born),
        4 => (0..4_usize).prop_map(Step::Opens),
        4 => (0..4_usize).prop_map(Step::Dies),
        6 => prop_oneof![3 => Just(0), 1 => 0..300 * MILLI].prop_map(Step::Drain),
        2 => Just(Step::Lists),
        6 => Just(Step::Window),
        6 => Just(Step::Commit),
    ]
}

impl World {
    fn new() -> Self {
        let start = 1_000 * SECOND;
        let settings = Settings {
            policy: at_once(),
            ..Settings::default()
        };
        let mut world = Self {
            accountant: Accountant::new(settings, clock(start)),
            now: start,
            lives: Vec::new(),
            next_pid: 100,
            events: Vec::new(),
            drained: start,
            windowed: start,
            read: Vec::new(),
            is_asked: false,
            unbooked: Vec::new(),
            windows: 0,
            must: BTreeMap::new(),
            most: BTreeMap::new(),
            most_shared: 0,
            booked: Booked::default(),
        };
        world.take(Input::Gpus(vec![GpuInfo {
            uuid: uuid(),
            index: 0,
            model: "test".into(),
            driver: "1".into(),
            simulated: true,
            memory_total: None,
            minor: None,
            pci: None,
            mig: Some(MigInfo {
                parent: "GPU-0".into(),
                profile: "1g.10gb".into(),
                gpu_instance: 1,
                compute_instance: 0,
            }),
            engines: Vec::new(),
        }]));
        world.take(Input::Health(SourceHealth {
            source: SourceId::Kernel,
            state: SourceState::Up,
            since: BootTime(start),
            place: "".into(),
        }));
        let above = CgroupKey {
            hierarchy: 0,
            id: ABOVE,
        };
        let root = CgroupKey {
            hierarchy: 0,
            id: 1,
        };
        world.announce(root, None, "");
        world.announce(above, Some(1), "docker");
        for payer in 0..PAYERS {
            world.announce(cgroup(payer), Some(ABOVE), &id(payer));
        }
        world.drain(0);
        world
    }

    fn take(&mut self, input: Input) {
        self.accountant.take(input, clock(self.now));
        let effects = self.accountant.take_effects();
        self.is_asked |= effects.contains(&Effect::ReadLists);
    }

    fn announce(&mut self, key: CgroupKey, parent: Option<u64>, name: &str) {
        let announcement = CgroupAnnouncement {
            key,
            parent,
            name: name.into(),
        };
        self.events
            .push((self.now, KernelEvent::Cgroup(announcement)));
    }

    fn process(&self, life: &Life) -> ProcessEvent {
        ProcessEvent {
            at: BootTime(self.now),
            pid: Pid(life.pid),
            parent: Pid(1),
            start: BootTime(life.start),
            pid_namespace_level: 0,
            cgroups: CgroupSet {
                unified: cgroup(life.payer),
                legacy: None,
            },
        }
    }

    fn living(&self, which: usize) -> Option<usize> {
        let alive = (0..self.lives.len()).filter(|at| self.lives[*at].end.is_none());
        let alive: Vec<usize> = alive.collect();
        (!alive.is_empty()).then(|| alive[which % alive.len()])
    }

    fn born(&mut self, payer: u8) {
        let life = Life {
            pid: self.next_pid,
            payer,
            start: self.now,
            context: None,
            end: None,
        };
        self.next_pid += 1;
        let event = KernelEvent::Fork(self.process(&life));
        self.events.push((self.now, event));
        self.lives.push(life);
    }

    fn opens(&mut self, which: usize) {
        let Some(at) = self.living(which) else { return };
        if self.lives[at].context.is_some() {
            return;
        }
        self.lives[at].context = Some(self.now);
        let event = KernelEvent::Open(DeviceOpen {
            process: self.process(&self.lives[at]),
            device: DeviceNumber {
                major: DeviceNumber::NVIDIA,
                minor: 0,
            },
        });
        self.events.push((self.now, event));
    }

    fn dies(&mut self, which: usize) {
        let Some(at) = self.living(which) else { return };
        self.lives[at].end = Some(self.now);
        let event = KernelEvent::Exit(self.process(&self.lives[at]));
        self.events.push((self.now, event));
    }

    fn drain(&mut self, ago: u64) {
        let through = self.now.saturating_sub(ago).max(self.drained);
        let (out, later): (Vec<_>, Vec<_>) = std::mem::take(&mut self.events)
            .into_iter()
            .partition(|(at, _)| *at <= through);
        self.events = later;
        self.drained = through;
        self.take(Input::Kernel(KernelBatch {
            events: out.into_iter().map(|(_, event)| event).collect(),
            drained_through: BootTime(through),
            counters: EventCounters::default(),
        }));
    }

    fn lists(&mut self) {
        let last = self.read.last().copied().unwrap_or_default();
        if self.now < last + LISTS_APART {
            return;
        }
        self.is_asked = false;
        self.read.push(self.now);
        let listed = self.lives.iter().filter(|life| life.has_context(self.now));
        let processes = listed.map(|life| GpuProcess {
            pid: Pid(life.pid),
            memory: None,
            mps: MpsRole::None,
        });
        let lists = GpuProcesses {
            gpu: uuid(),
            at: BootTime(self.now),
            processes: processes.collect(),
            memory_used: None,
        };
        self.take(Input::GpuProcesses(lists));
    }

    /// Closes a window. The instance is active while anybody has a context.
    fn window(&mut self) {
        let (from, to) = (self.windowed, self.now);
        let mut stretches: Vec<(u64, u64)> = self
            .lives
            .iter()
            .filter(|life| life.is_on_instance(from, to))
            .filter_map(|life| Some((life.context?.max(from), life.ended().min(to))))
            .collect();
        stretches.sort_unstable();
        let (mut busy, mut through) = (0, from);
        for (start, end) in stretches {
            busy += end.saturating_sub(start.max(through));
            through = through.max(end);
        }
        self.windowed = to;
        self.unbooked.push((from, to, busy));
        self.take(Input::Window(GpuWindow {
            gpu: uuid(),
            start: BootTime(from),
            end: BootTime(to),
            busy: Nanos(busy),
            idle: Nanos(to - from - busy),
            unobserved: Vec::new(),
            credits: Vec::new(),
            below_resolution: Nanos::ZERO,
            no_row: Nanos(busy),
            engines: Vec::new(),
            energy: None,
            quality: WindowQuality::default(),
            clocks: None,
        }));
    }

    /// Whom the lists around a window name who had a context in it.
    fn listed_around(&self, from: u64, to: u64) -> BTreeSet<u8> {
        let around = self.around(from, to);
        let on_instance = self.lives.iter().filter(|l| l.is_on_instance(from, to));
        let listed = on_instance.filter(|life| around.iter().any(|at| life.has_context(*at)));
        listed.map(|life| life.payer).collect()
    }

    /// The readings around a window.
    fn around(&self, from: u64, to: u64) -> &[u64] {
        let first = self.read.iter().rposition(|at| *at <= from).unwrap_or(0);
        let after = self.read.iter().position(|at| *at >= to);
        let last = after.map_or(self.read.len(), |at| at + 1);
        &self.read[first.min(last)..last]
    }

    fn commit(&mut self) {
        let snapshot = self.accountant.commit(clock(self.now));
        let effects = self.accountant.take_effects();
        self.is_asked |= effects.contains(&Effect::ReadLists);
        let book = &snapshot.gpus[0];
        assert_eq!(book.imbalance, 0, "{book:?}");
        let news = usize::try_from(book.windows - self.windows).expect("a few");
        self.windows = book.windows;
        let windows: Vec<_> = self.unbooked.drain(..news).collect();
        for (from, to, busy) in windows {
            let on_instance = self.lives.iter().filter(|l| l.is_on_instance(from, to));
            let payers: BTreeSet<u8> = on_instance.map(|life| life.payer).collect();
            let listed = self.listed_around(from, to);
            let last_read = self.around(from, to).last().copied();
            let is_known = self.drained >= to.max(last_read.unwrap_or_default());
            if payers.len() > 1 {
                self.most_shared += busy;
            }
            match listed.iter().copied().collect::<Vec<_>>()[..] {
                _ if !is_known => {
                    // An exit or an open of this window may not have been heard of.
                    for payer in 0..PAYERS {
                        *self.most.entry(payer).or_default() += busy;
                    }
                    self.most_shared += busy;
                }
                [payer] => {
                    *self.most.entry(payer).or_default() += busy;
                    if payers.len() == 1 {
                        *self.must.entry(payer).or_default() += busy;
                    }
                }
                // Nobody is known, or several are: it is nobody's.
                _ => {}
            }
        }
        let unattributed = |reason| {
            let found = book.unattributed.iter().find(|(of, _)| *of == reason);
            found.map_or(0, |(_, amount)| amount.0)
        };
        self.booked = Booked {
            payers: snapshot
                .accounts
                .iter()
                .map(|account| {
                    (
                        account.id.as_str().as_bytes()[0] - b'a',
                        account.amounts.busy.0,
                    )
                })
                .filter(|(_, busy)| *busy > 0)
                .collect(),
            shared: unattributed(UnattributedReason::SharedInstance),
            no_row: unattributed(UnattributedReason::NoRow),
        };
        for payer in 0..PAYERS {
            let of = |amounts: &BTreeMap<u8, u64>| amounts.get(&payer).copied().unwrap_or_default();
            let (must, most) = (of(&self.must), of(&self.most));
            let booked = of(&self.booked.payers);
            assert!(
                must <= booked && booked <= most,
                "payer {payer}: {booked} booked, {must} to {most} expected"
            );
        }
        assert!(
            self.booked.shared <= self.most_shared,
            "{} is shared, {} at most",
            self.booked.shared,
            self.most_shared
        );
    }

    fn step(&mut self, step: Step) {
        self.now += 1;
        if self.is_asked {
            self.lists();
        }
        self.now += 1;
        match step {
            Step::Wait(span) => self.now += span,
            Step::Born(payer) => self.born(payer),
            Step::Opens(which) => self.opens(which),
            Step::Dies(which) => self.dies(which),
            Step::Drain(ago) => self.drain(ago),
            Step::Lists => self.lists(),
            Step::Window => self.window(),
            Step::Commit => self.commit(),
        }
    }
}

proptest! {
    #[test]
    fn an_instance_is_billed_to_who_was_on_it_whatever_happens_in_whatever_order(
        steps in prop::collection::vec(step(), 1..150),
    ) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
        }
        world.step(Step::Window);
        world.step(Step::Drain(0));
        for _ in 0..3 {
            world.step(Step::Wait(SECOND));
            world.step(Step::Commit);
        }
        prop_assert!(world.unbooked.is_empty(), "nothing waits for ever");
    }
}

/// One container ends and the next one begins, a tenth of a second apart. Process lists are read when
/// they are asked for, or only some seconds later; and windows are booked at once, or only then.
fn turnover(are_lists_prompt: bool, is_booked_at_once: bool) -> Booked {
    let mut world = World::new();
    world.step(Step::Born(0));
    world.step(Step::Opens(0));
    world.step(Step::Drain(0));
    world.step(Step::Lists);
    let second = |world: &mut World| {
        for _ in 0..10 {
            world.step(Step::Wait(SECOND / 10));
            world.step(Step::Drain(0));
            world.is_asked &= are_lists_prompt;
        }
        world.step(Step::Window);
        world.step(Step::Drain(0));
        if is_booked_at_once {
            world.step(Step::Commit);
        }
        world.is_asked &= are_lists_prompt;
    };
    second(&mut world);
    second(&mut world);
    world.step(Step::Wait(SECOND / 5));
    world.step(Step::Dies(0));
    world.step(Step::Wait(SECOND / 10));
    world.step(Step::Born(1));
    world.step(Step::Opens(0));
    for _ in 0..3 {
        second(&mut world);
    }
    world.step(Step::Lists);
    for _ in 0..2 {
        second(&mut world);
    }
    world.step(Step::Wait(SECOND));
    world.step(Step::Lists);
    world.step(Step::Drain(0));
    world.step(Step::Commit);
    world.booked
}

#[test]
fn the_dead_do_not_pay_for_their_successor_and_a_turnover_costs_one_window() {
    for are_lists_prompt in [true, false] {
        for is_booked_at_once in [true, false] {
            let booked = turnover(are_lists_prompt, is_booked_at_once);
            let case = format!("{are_lists_prompt}, {is_booked_at_once}: {booked:?}");
            let tenths = |busy: u64| (busy + SECOND / 20) / (SECOND / 10);
            let payers = booked.payers.iter();
            let payers: Vec<_> = payers.map(|(of, busy)| (*of, tenths(*busy))).collect();
            assert_eq!(payers, [(0, 20), (1, 40)], "{case}");
            // The window of the turnover is 1.3 s long, and for 0.1 s of it nobody was there.
            assert_eq!((tenths(booked.shared), booked.no_row), (12, 0), "{case}");
        }
    }
}
