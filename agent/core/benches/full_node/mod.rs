//! A node whose GPUs are full, for what counts or measures the work of its agent.

use std::collections::BTreeMap;
use std::sync::Arc;

use gpuacct_core::accountant::{Accountant, Settings};
use gpuacct_core::input::{
    ContainerIdentity, Credit, GpuInfo, GpuProcess, GpuProcesses, GpuWindow, IdentitySource,
    IdentityUpdate, Input, KernelBatch, KubernetesNames, MpsRole, ProcessScan, ScannedProcess,
    SourceHealth, WindowQuality,
};
use gpuacct_core::model::{
    BootTime, Clock, GpuUuid, Nanos, Pid, SourceId, SourceState, StartTicks, WallTime,
};
use gpuacct_core::snapshot::Snapshot;

const SECOND: u64 = 1_000_000_000;
const GPUS: u32 = 8;
/// Containers on each GPU, with one process each.
const CONTAINERS: u32 = 64;
/// Processes of a GPU that a window credits: NVML's samples are 1/6 s apart.
const CREDITED: u32 = 6;
/// Seconds between two readings of the process lists.
const LISTS: u64 = 5;
/// Seconds between two commits, as in the agent.
const COMMIT: u64 = 2;

/// The core of an agent on a node with 8 GPUs and 64 containers on each.
#[derive(Debug)]
pub(crate) struct FullNode {
    accountant: Accountant,
    now: u64,
    seconds: u64,
    /// The books at the last commit.
    pub(crate) published: Snapshot,
}

impl FullNode {
    /// A node whose containers are published, with so many more processes outside of them.
    pub(crate) fn settled(others: u32) -> Self {
        let now = 1_000 * SECOND;
        let mut accountant = Accountant::new(Settings::default(), clock(now));
        accountant.keep();
        let mut node = Self {
            accountant,
            now,
            seconds: 0,
            published: Snapshot::default(),
        };
        node.take(Input::Gpus((0..GPUS).map(gpu_info).collect()));
        for source in [SourceId::Kernel, SourceId::Procfs, SourceId::Docker] {
            node.take(Input::Health(SourceHealth {
                source,
                state: SourceState::Up,
                since: BootTime(now),
                place: "".into(),
            }));
        }
        let containers =
            (0..GPUS * CONTAINERS).map(|number| scanned(number, container_path(number)));
        let host: Arc<[(u32, Arc<str>)]> = Arc::new([(0, "/system.slice/cron.service".into())]);
        let others = (0..others).map(|number| ScannedProcess {
            cgroups: Arc::clone(&host),
            ..scanned(GPUS * CONTAINERS + number, Arc::default())
        });
        node.take(Input::Processes(ProcessScan {
            started: BootTime(now),
            finished: BootTime(now),
            processes: containers.chain(others).collect(),
            ..ProcessScan::default()
        }));
        for number in 0..GPUS * CONTAINERS {
            node.take(Input::Identity(IdentityUpdate::Found(identity(number))));
        }
        // Longer than a new series shows zero.
        for _ in 0..90 {
            node.second();
        }
        assert_eq!(
            node.published.accounts.len(),
            512,
            "each container has an account"
        );
        assert_eq!(
            node.published.container_series.len(),
            512,
            "each is published"
        );
        assert!(node.published.gpus.iter().all(|book| book.imbalance == 0));
        node
    }

    fn take(&mut self, input: Input) {
        self.accountant.take(input, clock(self.now));
        drop(self.accountant.take_effects());
    }

    /// A second passes: windows, process lists each five seconds, and a commit each two.
    pub(crate) fn second(&mut self) {
        let start = self.now;
        self.now += SECOND;
        self.seconds += 1;
        for gpu in 0..GPUS {
            self.take(Input::Window(self.window(gpu, start)));
        }
        if self.seconds.is_multiple_of(LISTS) {
            for gpu in 0..GPUS {
                self.take(Input::GpuProcesses(self.lists(gpu)));
            }
        }
        self.take(Input::Kernel(KernelBatch {
            drained_through: BootTime(self.now),
            ..KernelBatch::default()
        }));
        if self.seconds.is_multiple_of(COMMIT) {
            self.commit();
        }
    }

    /// A commit, and what is handed over to the store. The earlier books are dropped.
    pub(crate) fn commit(&mut self) {
        let clock = clock(self.now);
        self.published = self.accountant.commit(clock);
        drop(self.accountant.take_effects());
        let changes = self.accountant.changes(false, clock);
        std::hint::black_box(changes);
    }

    fn window(&self, gpu: u32, start: u64) -> GpuWindow {
        let part = (self.now - start) / u64::from(2 * CREDITED);
        let busy = Nanos(part * u64::from(CREDITED));
        let first = u32::try_from(self.seconds).unwrap_or(0) * CREDITED;
        let credits = (first..first + CREDITED).map(|turn| Credit {
            pid: pid(gpu * CONTAINERS + turn % CONTAINERS),
            busy: Nanos(part),
        });
        GpuWindow {
            gpu: uuid(gpu),
            start: BootTime(start),
            end: BootTime(self.now),
            busy,
            idle: Nanos(self.now - start).minus(busy),
            unobserved: vec![],
            credits: credits.collect(),
            below_resolution: Nanos::ZERO,
            no_row: Nanos::ZERO,
            engines: vec![],
            energy: None,
            quality: WindowQuality::default(),
            clocks: None,
        }
    }

    fn lists(&self, gpu: u32) -> GpuProcesses {
        let numbers = gpu * CONTAINERS..(gpu + 1) * CONTAINERS;
        GpuProcesses {
            gpu: uuid(gpu),
            at: BootTime(self.now),
            processes: numbers
                .map(|number| GpuProcess {
                    pid: pid(number),
                    memory: Some(1 << 30),
                    mps: MpsRole::None,
                })
                .collect(),
            memory_used: Some(u64::from(CONTAINERS) << 30),
        }
    }
}

fn clock(boot: u64) -> Clock {
    Clock {
        boot: BootTime(boot),
        wall: WallTime(1_700_000_000 * SECOND + boot),
    }
}

fn uuid(gpu: u32) -> GpuUuid {
    GpuUuid::from(format!("GPU-5a1f6f1e-0000-4000-8000-{gpu:012}").as_str())
}

fn gpu_info(index: u32) -> GpuInfo {
    GpuInfo {
        uuid: uuid(index),
        index,
        minor: Some(index),
        pci: None,
        model: "guard".into(),
        driver: "1".into(),
        simulated: true,
        memory_total: Some(80 << 30),
        mig: None,
        engines: vec![],
    }
}

const fn pid(number: u32) -> Pid {
    Pid(1_000 + number)
}

fn scanned(number: u32, path: Arc<str>) -> ScannedProcess {
    ScannedProcess {
        pid: pid(number),
        parent: Pid(1),
        start: StartTicks::from(BootTime(900 * SECOND)),
        cgroups: Arc::new([(0, path)]),
    }
}

fn pod_uid(number: u32) -> String {
    format!("11111111-2222-3333-4444-{number:012}")
}

fn id(number: u32) -> String {
    format!("{:064x}", 0xa000 + number)
}

fn container_path(number: u32) -> Arc<str> {
    let (uid, id) = (pod_uid(number).replace('-', "_"), id(number));
    format!("/kubepods.slice/kubepods-pod{uid}.slice/cri-containerd-{id}.scope").into()
}

fn identity(number: u32) -> ContainerIdentity {
    ContainerIdentity {
        id: id(number).as_str().into(),
        source: IdentitySource::Docker,
        name: Some("main".into()),
        image: Some("registry.internal/team/train:1.4".into()),
        runtime: None,
        kubernetes: Some(KubernetesNames {
            namespace: format!("team-{}", number % 40).into(),
            pod: format!("train-{}-{}", number / CONTAINERS, number % CONTAINERS).into(),
            pod_uid: pod_uid(number).as_str().into(),
            container: "main".into(),
        }),
        labels: BTreeMap::new(),
    }
}
