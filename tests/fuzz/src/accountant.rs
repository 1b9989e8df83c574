//! Gives the core any inputs in any order: the books balance, published amounts never fall and
//! never change their labels, and nothing panics.
//!
//! What is arbitrary is what outside parties say: events, scans, names, allocations, process lists,
//! the GPUs that there are. Windows come from the agent's own arithmetic, which has a target of its
//! own: they add up, and mostly tile time. Some overlap the one before, or leave a gap, as those of a
//! recording may.

use std::collections::HashMap;
use std::sync::Arc;

use arbitrary::{Arbitrary, Unstructured};
use gpuacct::core::accountant::{Accountant, Settings};
use gpuacct::core::amounts::{Amounts, Engines, Millijoules};
use gpuacct::core::input::{
    Accounted, AllocatedDevice, Allocations, CgroupAnnouncement, CgroupSet, ContainerAllocation,
    ContainerIdentity, Credit, DeviceOpen, DeviceRef, EngineUse, EventCounters, GpuInfo,
    GpuProcess, GpuProcesses, GpuWindow, IdentitySource, IdentityUpdate, Input, KernelBatch,
    KernelEvent, KubernetesNames, MigInfo, MpsRole, PodName, ProcessEvent, ProcessScan,
    ScannedProcess, SourceHealth, WindowQuality,
};
use gpuacct::core::model::{
    BootTime, CgroupKey, Clock, ContainerId, DeviceNumber, GpuUuid, Nanos, Pid, PodUid, SourceId,
    SourceState, StartTicks, UnobservedReason, WallTime,
};
use gpuacct::core::placement::NestingRule;
use gpuacct::core::snapshot::{ContainerLabels, Snapshot};

const MILLI: u64 = 1_000_000;
/// Steps of one life.
const MOST: usize = 256;
/// The GPUs there may be; the last is an instance of the first.
const GPUS: [&str; 3] = ["GPU-a", "GPU-b", "MIG-a"];
const DIGITS: [&str; 4] = ["a", "b", "c", "d"];
const UID: &str = "9f6c1b1e-2d3f-4a5b-8c7d-0123456789ab";
/// How fine an event's time is.
const GRAIN: u64 = MILLI;

#[derive(Arbitrary)]
enum Step {
    Pass {
        milliseconds: u16,
    },
    SetWall {
        seconds: i8,
    },
    Events {
        events: Vec<Event>,
        lag: u8,
        lost: bool,
    },
    Scan {
        processes: Vec<Process>,
        lag: u8,
        skipped: u8,
    },
    Named(Name),
    Gpus(u8),
    Window(Window),
    List {
        gpu: u8,
        at: u8,
        processes: Vec<(u8, u8, u8)>,
        used: Option<u32>,
    },
    Allocated {
        pod: Option<u8>,
        containers: Vec<(u8, Vec<u8>)>,
    },
    Accounted {
        gpu: u8,
        pid: u8,
        lifetime: u16,
        busy: Option<(u16, u16)>,
    },
    Health {
        source: u8,
        state: u8,
    },
    Commit,
    Explain,
    AwaitNothing,
}

#[derive(Arbitrary)]
struct Event {
    kind: u8,
    pid: u8,
    parent: u8,
    born: u8,
    /// Milliseconds before now; the other way round where `late` says so.
    ago: u8,
    late: bool,
    place: u8,
    extreme: Option<u64>,
}

#[derive(Arbitrary)]
struct Process {
    pid: u8,
    parent: u8,
    born: u8,
    place: u8,
    text: Option<u16>,
}

#[derive(Arbitrary)]
enum Name {
    Found {
        source: u8,
        container: u8,
        pod: bool,
        name: Option<u8>,
    },
    NotFound {
        source: u8,
        container: u8,
    },
    FoundPod {
        source: u8,
        name: u8,
    },
    PodNotFound {
        source: u8,
    },
    Removed {
        source: u8,
        container: u8,
    },
}

#[derive(Arbitrary)]
struct Window {
    gpu: u8,
    milliseconds: u16,
    /// By how much it begins before, or after, the end of the one before it.
    shift: Option<i8>,
    /// Parts of the window, each of what the ones before leave: in 255ths.
    credits: Vec<(u8, u8)>,
    hidden: u8,
    nobody: u8,
    unobserved: Vec<(u8, u8)>,
    energy: Option<u32>,
}

struct Life {
    accountant: Accountant,
    clock: Clock,
    /// Up to where each GPU's windows reach.
    through: [BootTime; GPUS.len()],
    counters: EventCounters,
    shown: Shown,
}

fn pid(of: u8) -> Pid {
    Pid(u32::from(of % 8))
}

fn gpu(of: u8) -> GpuUuid {
    GpuUuid::from(GPUS[usize::from(of) % GPUS.len()])
}

fn container(of: u8) -> ContainerId {
    ContainerId::from(&*DIGITS[usize::from(of) % DIGITS.len()].repeat(64))
}

fn source(of: u8) -> IdentitySource {
    IdentitySource::ALL[usize::from(of) % IdentitySource::ALL.len()]
}

/// The cgroups, as a tree: each row names its parent.
fn cgroup(of: u8) -> (u64, Option<u64>, String) {
    let id = |digit: usize| DIGITS[digit].repeat(64);
    match of % 16 {
        0 => (1, None, String::new()),
        1 => (2, Some(1), "system.slice".to_owned()),
        2 => (3, Some(2), format!("docker-{}.scope", id(0))),
        3 => (4, Some(2), "sshd.service".to_owned()),
        4 => (5, Some(1), "kubepods.slice".to_owned()),
        5 => (
            6,
            Some(5),
            format!("kubepods-pod{}.slice", UID.replace('-', "_")),
        ),
        6 => (7, Some(6), format!("cri-containerd-{}.scope", id(1))),
        7 => (8, Some(6), format!("crio-{}.scope", id(2))),
        // One that the pod is within, and one in a container.
        8 => (9, Some(3), format!("docker-{}.scope", id(3))),
        9 => (10, Some(2), "slurmstepd.scope".to_owned()),
        10 => (11, Some(10), "job_7".to_owned()),
        // A second one of the same id.
        11 => (12, Some(1), format!("docker-{}.scope", id(0))),
        12 => (13, Some(13), "itself".to_owned()),
        13 => (14, Some(15), "a circle".to_owned()),
        14 => (15, Some(14), "a circle".to_owned()),
        _ => (u64::MAX, Some(99), "x".repeat(300)),
    }
}

fn key(of: u8) -> CgroupKey {
    CgroupKey {
        hierarchy: u32::from(of / 128),
        id: cgroup(of).0,
    }
}

/// The path of a cgroup, as `/proc` shows it.
fn path(of: u8) -> String {
    let mut parts = Vec::new();
    let mut at = Some(cgroup(of));
    while let Some((_, parent, name)) = at.take()
        && parts.len() < 8
    {
        parts.push(name);
        at = parent.and_then(|parent| (0..16).map(cgroup).find(|(id, ..)| *id == parent));
    }
    let path = parts.iter().rev().filter(|part| !part.is_empty());
    path.fold(String::new(), |path, part| format!("{path}/{part}"))
}

impl Life {
    fn ago(&self, milliseconds: u8) -> BootTime {
        BootTime(
            self.clock
                .boot
                .0
                .saturating_sub(u64::from(milliseconds) * GRAIN),
        )
    }

    fn born(&self, at: u8) -> BootTime {
        BootTime(u64::from(at) * 100 * MILLI)
    }

    fn event(&self, event: &Event) -> KernelEvent {
        let at = match event.extreme {
            Some(at) => BootTime(at),
            None if event.late => BootTime(self.clock.boot.0 + u64::from(event.ago) * GRAIN),
            None => self.ago(event.ago),
        };
        let of = ProcessEvent {
            at,
            pid: pid(event.pid),
            parent: pid(event.parent),
            start: self.born(event.born),
            pid_namespace_level: u32::from(event.place / 64),
            cgroups: CgroupSet {
                unified: key(event.place),
                legacy: event
                    .place
                    .is_multiple_of(5)
                    .then(|| key(event.place.wrapping_add(128))),
            },
        };
        match event.kind % 7 {
            0 => KernelEvent::Fork(of),
            1 => KernelEvent::Exec(of),
            2 => KernelEvent::Exit(of),
            3 => KernelEvent::Attach(of),
            4 => KernelEvent::Open(DeviceOpen {
                process: of,
                device: DeviceNumber {
                    major: 195,
                    minor: u32::from(event.born % 3),
                },
            }),
            _ => {
                let (_, parent, name) = cgroup(event.place);
                KernelEvent::Cgroup(CgroupAnnouncement {
                    key: key(event.place),
                    parent,
                    name: name.into(),
                })
            }
        }
    }

    fn window(&mut self, of: &Window) -> GpuWindow {
        let place = usize::from(of.gpu) % GPUS.len();
        let through = self.through[place];
        let shift = i64::from(of.shift.unwrap_or(0)) * i64::try_from(MILLI).unwrap_or(0);
        let start = BootTime(through.0.saturating_add_signed(shift));
        let end = BootTime(start.0 + u64::from(of.milliseconds) * MILLI);
        self.through[place] = end.max(through);
        let mut rest = end.0 - start.0;
        let mut part = |of: u8| {
            let part = Nanos(rest * u64::from(of) / 255);
            rest -= part.0;
            part
        };
        let mut unobserved = Vec::new();
        for (reason, share) in &of.unobserved {
            let reasons = UnobservedReason::ALL;
            unobserved.push((reasons[usize::from(*reason) % reasons.len()], part(*share)));
        }
        let mut credits = HashMap::<Pid, Nanos>::new();
        for (of, share) in &of.credits {
            credits.entry(pid(*of)).or_default().0 += part(*share).0;
        }
        let (below_resolution, no_row) = (part(of.hidden), part(of.nobody));
        let owned: u64 = credits.values().map(|busy| busy.0).sum();
        let mut credits: Vec<_> = credits.into_iter().collect();
        credits.sort_by_key(|(pid, _)| *pid);
        GpuWindow {
            gpu: gpu(of.gpu),
            start,
            end,
            busy: Nanos(owned + below_resolution.0 + no_row.0),
            idle: Nanos(rest),
            unobserved,
            engines: credits
                .iter()
                .map(|(pid, busy)| EngineUse {
                    pid: *pid,
                    engines: Engines {
                        memory: *busy,
                        ..Engines::default()
                    },
                })
                .collect(),
            credits: credits
                .into_iter()
                .map(|(pid, busy)| Credit { pid, busy })
                .collect(),
            below_resolution,
            no_row,
            energy: of.energy.map(|energy| Millijoules(energy.into())),
            quality: WindowQuality::default(),
            clocks: None,
        }
    }

    fn name(name: &Name) -> IdentityUpdate {
        let kubernetes = |name: u8| KubernetesNames {
            namespace: "ml".into(),
            pod: format!("train-{}", name % 4).into(),
            pod_uid: PodUid::from(UID),
            container: "main".into(),
        };
        match *name {
            Name::Found {
                source: by,
                container: of,
                pod,
                name,
            } => IdentityUpdate::Found(ContainerIdentity {
                id: container(of),
                source: source(by),
                name: name.map(|name| format!("name-{}", name % 4).into()),
                image: name.map(|name| format!("image:{}", name % 4).into()),
                runtime: None,
                kubernetes: pod.then(|| kubernetes(name.unwrap_or(0))),
                labels: [("app".into(), "train".into())].into(),
            }),
            Name::NotFound {
                source: by,
                container: of,
            } => IdentityUpdate::NotFound {
                source: source(by),
                id: container(of),
                reason: "not_found",
            },
            Name::FoundPod { source: by, name } => IdentityUpdate::FoundPod {
                source: source(by),
                names: kubernetes(name),
            },
            Name::PodNotFound { source: by } => IdentityUpdate::PodNotFound {
                source: source(by),
                uid: PodUid::from(UID),
                reason: "not_found",
            },
            Name::Removed {
                source: by,
                container: of,
            } => IdentityUpdate::Removed {
                source: source(by),
                id: container(of),
            },
        }
    }

    fn allocations(&self, pod: Option<u8>, containers: &[(u8, Vec<u8>)]) -> Allocations {
        let name = |of: u8| format!("train-{}", of % 4);
        let device = |of: &u8| AllocatedDevice {
            resource: "nvidia.com/gpu".into(),
            id: format!("{of}").into(),
            device: match of % 6 {
                0 => None,
                1 => Some(DeviceRef::Index(u32::from(of / 6) % 4)),
                2 => Some(DeviceRef::Minor(u32::from(of / 6) % 4)),
                3 => Some(DeviceRef::All),
                4 => Some(DeviceRef::MigIndex {
                    gpu: 0,
                    instance: u32::from(of / 6),
                }),
                _ => Some(DeviceRef::Uuid(gpu(of / 6))),
            },
        };
        Allocations {
            at: self.clock.boot,
            pod: pod.map(|pod| PodName {
                namespace: "ml".into(),
                pod: name(pod).into(),
            }),
            containers: containers
                .iter()
                .map(|(of, devices)| ContainerAllocation {
                    namespace: "ml".into(),
                    pod: name(pod.unwrap_or(*of)).into(),
                    container: "main".into(),
                    devices: devices.iter().map(device).collect(),
                })
                .collect(),
        }
    }

    fn gpus(present: u8) -> Vec<GpuInfo> {
        let present = (0..GPUS.len()).filter(|at| present & (1 << at) != 0);
        present
            .map(|at| GpuInfo {
                uuid: GpuUuid::from(GPUS[at]),
                index: u32::try_from(at).unwrap_or(0),
                minor: u32::try_from(at).ok(),
                pci: None,
                model: "fuzz".into(),
                driver: "1".into(),
                simulated: true,
                memory_total: Some(1 << 30),
                mig: (at == 2).then(|| MigInfo {
                    parent: GpuUuid::from(GPUS[0]),
                    profile: "1g.10gb".into(),
                    gpu_instance: 1,
                    compute_instance: 0,
                }),
                engines: vec![],
            })
            .collect()
    }

    fn live(&mut self, step: Step) {
        let input = match step {
            Step::Pass { milliseconds } => {
                self.clock.boot.0 += u64::from(milliseconds) * MILLI;
                self.clock.wall.0 += u64::from(milliseconds) * MILLI;
                return;
            }
            Step::SetWall { seconds } => {
                let by = i64::from(seconds) * 1_000_000_000;
                self.clock.wall.0 = self.clock.wall.0.saturating_add_signed(by);
                return;
            }
            Step::Commit => {
                let snapshot = self.accountant.commit(self.clock);
                self.shown.check(&snapshot);
                return;
            }
            Step::AwaitNothing => return self.accountant.await_nothing(),
            Step::Explain => {
                let _ = self.accountant.gpu_processes(self.clock.boot);
                drop(self.accountant.take_effects());
                return;
            }
            Step::Events { events, lag, lost } => {
                let events: Vec<_> = events.iter().map(|event| self.event(event)).collect();
                let count = u64::try_from(events.len()).unwrap_or(0);
                self.counters.seen += count + u64::from(lost);
                self.counters.submitted += count;
                self.counters.lost += u64::from(lost);
                Input::Kernel(KernelBatch {
                    events,
                    drained_through: self.ago(lag),
                    counters: self.counters,
                })
            }
            Step::Scan {
                processes,
                lag,
                skipped,
            } => Input::Processes(ProcessScan {
                started: self.ago(lag),
                finished: self.clock.boot,
                processes: processes
                    .iter()
                    .map(|of| ScannedProcess {
                        pid: pid(of.pid),
                        parent: pid(of.parent),
                        start: StartTicks::from(self.born(of.born)),
                        cgroups: Arc::from([(
                            u32::from(of.place / 128),
                            match of.text {
                                Some(text) => Arc::from(format!("/{text:x}/docker/{text}")),
                                None => Arc::from(path(of.place)),
                            },
                        )]),
                    })
                    .collect(),
                skipped: skipped.into(),
                unread: (0..skipped % 4).map(pid).collect(),
            }),
            Step::Named(name) => Input::Identity(Self::name(&name)),
            Step::Gpus(present) => Input::Gpus(Self::gpus(present)),
            Step::Window(of) => {
                let window = self.window(&of);
                // A window is closed in the past.
                let late = window.end.0.saturating_sub(self.clock.boot.0);
                self.clock.boot.0 += late;
                self.clock.wall.0 += late;
                Input::Window(window)
            }
            Step::List {
                gpu: of,
                at,
                processes,
                used,
            } => {
                let mut seen = HashMap::new();
                for (of, memory, role) in processes {
                    seen.entry(pid(of)).or_insert((memory, role));
                }
                let roles = [
                    MpsRole::None,
                    MpsRole::Client,
                    MpsRole::Server,
                    MpsRole::NamedServer,
                ];
                let mut processes: Vec<_> = seen
                    .into_iter()
                    .map(|(pid, (memory, role))| GpuProcess {
                        pid,
                        memory: (memory > 0).then_some(u64::from(memory) << 20),
                        mps: roles[usize::from(role) % roles.len()],
                    })
                    .collect();
                processes.sort_by_key(|process| process.pid);
                Input::GpuProcesses(GpuProcesses {
                    gpu: gpu(of),
                    at: self.ago(at),
                    processes,
                    memory_used: used.map(u64::from),
                })
            }
            Step::Allocated { pod, containers } => {
                Input::Allocations(self.allocations(pod, &containers))
            }
            Step::Accounted {
                gpu: of,
                pid: whose,
                lifetime,
                busy,
            } => Input::Accounted(Accounted {
                gpu: gpu(of),
                pid: pid(whose),
                start_us: self.clock.wall.0 / 1_000,
                lifetime: Nanos(u64::from(lifetime) * MILLI),
                memory_peak: Some(u64::from(lifetime) << 20),
                busy: busy.map(|(sum, credits)| {
                    (
                        Nanos(u64::from(sum) * MILLI),
                        Nanos(u64::from(credits) * MILLI),
                    )
                }),
            }),
            Step::Health { source, state } => {
                let sources = [
                    SourceId::Kernel,
                    SourceId::Procfs,
                    SourceId::Nvml,
                    SourceId::Docker,
                    SourceId::Cri,
                    SourceId::Bundle,
                    SourceId::KubeletLogs,
                    SourceId::PodResources,
                ];
                Input::Health(SourceHealth {
                    source: sources[usize::from(source) % sources.len()],
                    state: match state % 4 {
                        0 => SourceState::Up,
                        1 => SourceState::Absent,
                        2 => SourceState::Disabled,
                        _ => SourceState::Down {
                            class: "timeout".into(),
                            reason: "fuzz".into(),
                            next_retry: None,
                        },
                    },
                    since: self.clock.boot,
                    place: "fuzz".into(),
                })
            }
        };
        self.accountant.take(input, self.clock);
    }
}

/// What has been published.
#[derive(Default)]
struct Shown {
    containers: HashMap<(Arc<ContainerLabels>, GpuUuid, WallTime), Amounts>,
    hosts: HashMap<(String, GpuUuid, WallTime), Amounts>,
    namespaces: HashMap<(Arc<str>, GpuUuid, WallTime), Amounts>,
    books: HashMap<(GpuUuid, WallTime), [u64; 3]>,
}

fn grows<K: std::hash::Hash + Eq + std::fmt::Debug + Clone>(
    shown: &mut HashMap<K, Amounts>,
    key: K,
    now: Amounts,
) {
    let before = shown.insert(key.clone(), now).unwrap_or(Amounts::ZERO);
    let figures = |of: &Amounts| {
        let Amounts {
            busy,
            held,
            allocated,
            energy,
            engines,
            ..
        } = of;
        [busy.0, held.0, allocated.0, energy.0, engines.memory.0]
    };
    let fallen = figures(&before)
        .iter()
        .zip(figures(&now))
        .any(|(before, now)| *before > now);
    assert!(!fallen, "{key:?} fell from {before:?} to {now:?}");
}

impl Shown {
    fn check(&mut self, snapshot: &Snapshot) {
        for book in &snapshot.gpus {
            assert_eq!(book.imbalance, 0, "{book:?}");
            let unobserved: u64 = book.unobserved.iter().map(|(_, time)| time.0).sum();
            assert_eq!(
                book.elapsed.0,
                book.busy.0 + book.idle.0 + unobserved,
                "{book:?}"
            );
            let now = [book.elapsed.0, book.busy.0, book.idle.0];
            let before = self.books.insert((book.gpu.uuid.clone(), book.start), now);
            let has_fallen = |before: [u64; 3]| before.iter().zip(now).any(|(a, b)| *a > b);
            assert!(!before.is_some_and(has_fallen), "{book:?} was {before:?}");
        }
        for series in &snapshot.container_series {
            let key = (series.labels.clone(), series.gpu.clone(), series.start);
            grows(&mut self.containers, key, series.amounts);
        }
        for series in &snapshot.host_series {
            let key = (series.unit.to_string(), series.gpu.clone(), series.start);
            grows(&mut self.hosts, key, series.amounts);
        }
        for series in &snapshot.namespace_series {
            let key = (
                Arc::clone(&series.namespace),
                series.gpu.clone(),
                series.start,
            );
            grows(&mut self.namespaces, key, series.amounts);
        }
    }
}

pub(crate) fn run(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let clock = Clock {
        boot: BootTime(10_000 * MILLI),
        wall: WallTime(1_790_000_000_000 * MILLI),
    };
    let innermost = bool::arbitrary(&mut input).unwrap_or(false);
    let tight = bool::arbitrary(&mut input).unwrap_or(false);
    let mut settings = Settings {
        nesting: if innermost {
            NestingRule::Innermost
        } else {
            NestingRule::Outermost
        },
        ..Settings::default()
    };
    if tight {
        // Tables that are soon full.
        settings.process_limit = 4;
        settings.cgroup_limit = 6;
        settings.container_limit = 2;
        settings.account_limit = 3;
        settings.namespace_limit = 1;
    }
    let mut life = Life {
        accountant: Accountant::new(settings, clock),
        clock,
        through: [clock.boot; GPUS.len()],
        counters: EventCounters::default(),
        shown: Shown::default(),
    };
    life.live(Step::Gpus(7));
    for _ in 0..MOST {
        let Ok(step) = Step::arbitrary(&mut input) else {
            break;
        };
        if input.is_empty() {
            break;
        }
        life.live(step);
    }
    life.live(Step::AwaitNothing);
    life.live(Step::Commit);
}
