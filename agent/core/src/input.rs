//! What the sources send to the core: observations, never decisions.
//!
//! Every variant is plain data with its time in it. Nothing here is trusted to be complete, in
//! order or on time. The core decides how to use it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize};

mod health;

pub use self::health::{
    GpuHealth, HealthFigure, HealthFigures, HealthGroup, Reading, RecoveryAction, ThrottleReason,
    XidGpu, XidReport, XidReporter,
};
use crate::amounts::{Engine, Engines, Millijoules};
use crate::model::{
    BootTime, CgroupKey, ContainerId, DeviceNumber, GpuUuid, Nanos, Pid, PodUid, ProcessId,
    SourceId, SourceState, StartTicks, UnobservedReason,
};

/// An observation of a source. The only way into the core.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Input {
    /// Events of the eBPF object, as drained from the ring in one go.
    Kernel(KernelBatch),
    /// One scan of `/proc`.
    Processes(ProcessScan),
    /// An answer or event of an identity source about a container.
    Identity(IdentityUpdate),
    /// The GPUs that NVML lists now; replaces the list before it.
    Gpus(Vec<GpuInfo>),
    /// One closed window of one GPU.
    Window(GpuWindow),
    /// The processes that have a context on one GPU.
    GpuProcesses(GpuProcesses),
    /// What the kubelet has given to containers.
    Allocations(Allocations),
    /// The driver's accounting record of a process that ended.
    Accounted(Accounted),
    /// A source changed its state.
    Health(SourceHealth),
    /// A reading of a GPU's health.
    GpuHealth(GpuHealth),
    /// A report of an Xid error.
    Xid(XidReport),
    /// When amounts are published from now on. It is no observation: it enters here so that a
    /// recording of the inputs has it.
    Policy(Policy),
}

/// How long amounts are held back, new series show zero, and ended series stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// How long a container may be held back for its names.
    pub grace: Nanos,
    /// How long a new series shows 0: at least one scrape interval.
    pub zero_for: Nanos,
    /// How long a series is shown after its container has ended and its last amount is out.
    pub keep_for: Nanos,
}

/// What came out of the ring buffer in one drain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct KernelBatch {
    /// The events, in ring order. CPUs submit concurrently: neighbours may be out of order in time.
    pub events: Vec<KernelEvent>,
    /// Everything that was submitted before this instant is in this batch or in one before it.
    pub drained_through: BootTime,
    /// The object's own counters, summed over CPUs, read after the drain began.
    pub counters: EventCounters,
}

/// The eBPF object's counters, all since it was loaded. At rest `seen = submitted + lost`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct EventCounters {
    /// Events that an attach point wanted to report.
    pub seen: u64,
    /// Events that reached the ring.
    pub submitted: u64,
    /// Events that found no room in the ring.
    pub lost: u64,
    /// Records that the agent could not decode.
    pub undecodable: u64,
    /// Events for which the kernel did not run the object's program, since that was running on the same
    /// CPU already. They are not among those that were seen.
    #[serde(default)]
    pub skipped: u64,
}

impl EventCounters {
    /// Events that the core did not receive: lost, skipped or undecodable.
    #[must_use]
    pub const fn missing(&self) -> u64 {
        let missing = self.lost.saturating_add(self.undecodable);
        missing.saturating_add(self.skipped)
    }
}

/// One event of the eBPF object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KernelEvent {
    /// A thread group was born.
    Fork(ProcessEvent),
    /// A process replaced its image. The pid and start time stay, also when a thread other than
    /// the leader called it.
    Exec(ProcessEvent),
    /// The last thread of a process is out. May be reported more than once.
    Exit(ProcessEvent),
    /// A process was moved to another cgroup: `process.cgroups` is where it is now. It is the same
    /// cgroup as before if the move was in a hierarchy that events do not report.
    Attach(ProcessEvent),
    /// A cgroup, announced when it is made or first seen on a process. Ancestors are announced
    /// before their children, each once; any may be announced again. One that lies too far below
    /// those that are announced comes without them.
    Cgroup(CgroupAnnouncement),
    /// A cgroup has been removed: no living process and no other cgroup is in it.
    CgroupRemoved(CgroupKey),
    /// A process has opened a device of a GPU. Not every open is seen, and not everyone who opens
    /// one uses it.
    Open(DeviceOpen),
}

/// An open of a device by a process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceOpen {
    /// Process and time. An open by a thread counts for its process.
    pub process: ProcessEvent,
    /// Device that was opened.
    pub device: DeviceNumber,
}

/// A process as the kernel saw it at an event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessEvent {
    /// When it happened.
    pub at: BootTime,
    /// The thread group, in the initial pid namespace.
    pub pid: Pid,
    /// The real parent's thread group at that moment.
    pub parent: Pid,
    /// `start_boottime` of the thread group's leader.
    pub start: BootTime,
    /// Depth of its pid namespace; 0 is the initial one.
    pub pid_namespace_level: u32,
    /// The cgroups it is in: cgroup v2's first, then those of the v1 controllers that the agent
    /// asked for. At least one.
    pub cgroups: CgroupSet,
}

impl ProcessEvent {
    /// Which process it is about.
    #[must_use]
    pub fn id(&self) -> ProcessId {
        ProcessId {
            pid: self.pid,
            start: self.start.into(),
        }
    }
}

/// The cgroups of one process that the eBPF object reports: at most one per hierarchy read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CgroupSet {
    /// The cgroup in the v2 hierarchy; the root where v2 is not in use.
    pub unified: CgroupKey,
    /// The cgroup of a v1 controller, on v1 and hybrid hosts.
    pub legacy: Option<CgroupKey>,
}

/// A cgroup's name and place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupAnnouncement {
    /// Cgroup that is announced.
    pub key: CgroupKey,
    /// The kernfs id of its parent, in the same hierarchy; absent for a hierarchy's root.
    pub parent: Option<u64>,
    /// The last component of its path; empty for a root, escaped by
    /// [`escaped`](super::model::text::escaped).
    pub name: Arc<str>,
}

/// Everything that one walk over `/proc` found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessScan {
    /// When the walk began. A process that died before is not in it; one that was born after may
    /// or may not be.
    pub started: BootTime,
    /// When it ended.
    pub finished: BootTime,
    /// The processes.
    pub processes: Vec<ScannedProcess>,
    /// Processes that vanished, or whose files could not be read, during the walk.
    pub skipped: u32,
    /// The pids of those whose files could not be read: they may be alive. Those that vanished are not
    /// among them.
    pub unread: Vec<Pid>,
}

/// One process of `/proc`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScannedProcess {
    /// Its pid.
    pub pid: Pid,
    /// Its parent.
    pub parent: Pid,
    /// Field 22 of `/proc/<pid>/stat`.
    pub start: StartTicks,
    /// The lines of `/proc/<pid>/cgroup`: hierarchy number (0 is v2) and path, which is escaped by
    /// [`escaped`](super::model::text::escaped). Shared between processes, since many have the same.
    pub cgroups: Arc<[(u32, Arc<str>)]>,
}

/// The source of a container's names, ordered from the best to the poorest.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum IdentitySource {
    /// The Docker Engine API, also Podman's.
    Docker,
    /// The container runtime interface of containerd and CRI-O.
    Cri,
    /// The OCI bundle on disk: annotations that the runtime wrote.
    Bundle,
    /// The kubelet's log links: names only.
    KubeletLogs,
}

impl IdentitySource {
    /// Every identity source, the best first.
    pub const ALL: [Self; 4] = [Self::Docker, Self::Cri, Self::Bundle, Self::KubeletLogs];

    /// The source whose state says whether it answers.
    #[must_use]
    pub const fn source(self) -> SourceId {
        match self {
            Self::Docker => SourceId::Docker,
            Self::Cri => SourceId::Cri,
            Self::Bundle => SourceId::Bundle,
            Self::KubeletLogs => SourceId::KubeletLogs,
        }
    }

    /// Returns the value as used in labels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        self.source().as_str()
    }
}

/// A label value that the sources agree on. Under a name of its own, since `serde` takes what is
/// written as a reference for borrowed from what is read.
pub type Reason = &'static str;

/// An answer about one container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IdentityUpdate {
    /// It exists and this is what it is.
    Found(ContainerIdentity),
    /// The source answers and does not know it.
    NotFound {
        /// Source that was asked.
        source: IdentitySource,
        /// Container of the lookup.
        id: ContainerId,
        /// Why it is not known, as a label value: `not_found`, `invalid_reply`, …
        #[serde(deserialize_with = "reason")]
        reason: Reason,
    },
    /// Names of a pod, from a source that was asked for the pod and not for one of its containers.
    FoundPod {
        /// Source of the answer.
        source: IdentitySource,
        /// As what; its container is `(pod)`.
        names: KubernetesNames,
    },
    /// The source answers and does not know the pod.
    PodNotFound {
        /// Source that was asked.
        source: IdentitySource,
        /// Pod of the lookup.
        uid: PodUid,
        /// Why it is not known, as a label value.
        #[serde(deserialize_with = "reason")]
        reason: Reason,
    },
    /// The source says that it has been removed. What was learnt of it stays.
    Removed {
        /// Source of the report.
        source: IdentitySource,
        /// Container that is gone.
        id: ContainerId,
    },
}

/// Returns the known label value that equals the text. A recording cannot introduce new values.
fn reason<'de, D: Deserializer<'de>>(from: D) -> Result<Reason, D::Error> {
    let found = String::deserialize(from)?;
    let mut known = ["not_found", "invalid_reply", "too_large"].into_iter();
    Ok(known.find(|known| *known == found).unwrap_or("other"))
}

/// What a source knows of a container. All text is bounded by the source to 253 bytes a value
/// (labels: 64 of them at most), control characters escaped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerIdentity {
    /// Its id.
    pub id: ContainerId,
    /// Source of the answer.
    pub source: IdentitySource,
    /// The runtime's own name for it, without a leading slash.
    pub name: Option<Arc<str>>,
    /// The image as the user wrote it.
    pub image: Option<Arc<str>>,
    /// The container runtime; absent where the source does not say.
    #[serde(default)]
    pub runtime: Option<Arc<str>>,
    /// Kubernetes' name of the container (`io.kubernetes.container.name`).
    pub kubernetes: Option<KubernetesNames>,
    /// All labels.
    pub labels: BTreeMap<Arc<str>, Arc<str>>,
}

/// A container's names in Kubernetes. Complete or absent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KubernetesNames {
    /// `io.kubernetes.pod.namespace`.
    pub namespace: Arc<str>,
    /// `io.kubernetes.pod.name`.
    pub pod: Arc<str>,
    /// `io.kubernetes.pod.uid`.
    pub pod_uid: PodUid,
    /// `io.kubernetes.container.name`.
    pub container: Arc<str>,
}

/// A GPU as NVML lists it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct GpuInfo {
    /// Its UUID.
    pub uuid: GpuUuid,
    /// NVML's index, for people.
    pub index: u32,
    /// The number of its device file, `/dev/nvidia<minor>`; absent where NVML does not say.
    #[serde(default)]
    pub minor: Option<u32>,
    /// Its PCI address as domain, bus and device in hexadecimal digits of lower case, such as
    /// `0000:17:00`; absent where NVML does not say. A MIG instance has its GPU's.
    #[serde(default)]
    pub pci: Option<Arc<str>>,
    /// The product's name.
    pub model: Arc<str>,
    /// The driver's version.
    pub driver: Arc<str>,
    /// Whether the library is the simulated one.
    pub simulated: bool,
    /// Frame buffer size in bytes; absent where NVML does not say.
    pub memory_total: Option<u64>,
    /// What instance it is, if it is one of a GPU in MIG mode.
    pub mig: Option<MigInfo>,
    /// Engines other than the SMs whose use by process the driver reports.
    pub engines: Vec<Engine>,
}

/// A MIG instance's place.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct MigInfo {
    /// The GPU that is partitioned.
    pub parent: GpuUuid,
    /// Its profile, e.g. `1g.10gb`.
    pub profile: Arc<str>,
    /// The GPU instance's id, unique on the parent at one time.
    pub gpu_instance: u32,
    /// The compute instance's id, unique in the GPU instance at one time.
    pub compute_instance: u32,
}

/// A closed interval of one GPU's time. The windows of a GPU tile its time: each starts where the
/// previous one ended.
///
/// `end - start = busy + idle + Σ unobserved` and
/// `busy = Σ credits + below_resolution + no_row`, to the nanosecond.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuWindow {
    /// The GPU.
    pub gpu: GpuUuid,
    /// Where the window before it ended.
    pub start: BootTime,
    /// The newest device sample, or where an unobservable stretch was closed.
    pub end: BootTime,
    /// Busy time by the device's own samples.
    pub busy: Nanos,
    /// Time for which the device's samples advanced and were not busy.
    pub idle: Nanos,
    /// The rest, by reason.
    #[serde(default)]
    pub unobserved: Vec<(UnobservedReason, Nanos)>,
    /// Busy time by pid, as the driver's rows give it. One entry per pid.
    #[serde(default)]
    pub credits: Vec<Credit>,
    /// Busy time that belongs to processes with a row, but is hidden by the rounding to whole
    /// percents.
    #[serde(default)]
    pub below_resolution: Nanos,
    /// Busy time that no row can own.
    #[serde(default)]
    pub no_row: Nanos,
    /// Busy time of the engines beside the SMs by pid: no part of the sums above, and each at most
    /// the window's length. One entry per pid.
    #[serde(default)]
    pub engines: Vec<EngineUse>,
    /// Energy that the device consumed in the window. Absent where it has no counter, and for the
    /// window in which the counter began anew.
    #[serde(default)]
    pub energy: Option<Millijoules>,
    /// How the window came about.
    #[serde(default)]
    pub quality: WindowQuality,
    /// The clocks of the stamps in the driver's answers; absent if the window was made without
    /// stamps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clocks: Option<SampleClocks>,
}

/// The clocks by which the driver stamps samples and rows of a GPU, and the call that returns the
/// rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SampleClocks {
    /// The clock of the device's samples (`nvmlDeviceGetSamples`).
    pub samples: CallClock,
    /// The clock of the processes' rows.
    pub rows: CallClock,
    /// The NVML function that returned the rows.
    pub rows_call: Arc<str>,
    /// NVML function that should return rows, but succeeds with none while the GPU is busy.
    #[serde(default)]
    pub empty_call: Option<Arc<str>>,
    /// How often a clock was found to be another one since the agent started.
    pub changes: u64,
}

/// The clock of one call's stamps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallClock {
    /// The clock that they are nearest to.
    pub clock: ClockKind,
    /// Offset in nanoseconds by which the stamps are ahead of the clock. 0 if there is none or
    /// nothing is known.
    pub ahead_nanos: i64,
}

impl fmt::Display for CallClock {
    /// The clock, and how far the stamps are ahead of it: `wall`, `boot`, `wall +1.500s`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.clock.as_str())?;
        if self.ahead_nanos != 0 {
            let sign = if self.ahead_nanos < 0 { '-' } else { '+' };
            let millis = self.ahead_nanos.unsigned_abs() / 1_000_000;
            write!(f, " {sign}{}.{:03}s", millis / 1_000, millis % 1_000)?;
        }
        Ok(())
    }
}

impl CallClock {
    /// Whether the stamps are on a clock other than the wall clock, or off it.
    #[must_use]
    pub fn is_unusual(&self) -> bool {
        self.clock == ClockKind::Boot || self.ahead_nanos != 0
    }

    /// Nothing is known of it yet.
    pub const UNKNOWN: Self = Self {
        clock: ClockKind::Unknown,
        ahead_nanos: 0,
    };
}

/// A clock of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClockKind {
    /// Not known yet: nothing new was stamped since the agent started.
    Unknown,
    /// The wall clock, as NVML's documentation has it.
    Wall,
    /// The boot clock.
    Boot,
}

impl ClockKind {
    /// Every kind, in the order in which they are shown.
    pub const ALL: [Self; 3] = [Self::Unknown, Self::Wall, Self::Boot];

    /// Returns the value as used in labels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Wall => "wall",
            Self::Boot => "boot",
        }
    }
}

/// One process's part of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credit {
    /// The pid as NVML gave it: of the initial namespace, if the agent runs in that.
    pub pid: Pid,
    /// Its busy time in the window.
    pub busy: Nanos,
}

/// One process's use of the engines beside the SMs in a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineUse {
    /// The pid as NVML gave it.
    pub pid: Pid,
    /// How long each was busy for it.
    pub engines: Engines,
}

/// Irregularities of a window. Each is counted and exported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct WindowQuality {
    /// Device samples that the window is made from.
    pub samples: u32,
    /// A sample landed between the calls in three tries running: the window was taken anyway.
    pub torn: bool,
    /// Rows that cannot be right: pid 0, a timestamp outside the window, more than 100 percent.
    pub invalid_rows: u32,
    /// Time by which the rows exceeded the device, cut from them.
    pub cut: Nanos,
}

/// The processes that have a context on a GPU: the union of NVML's compute, graphics and MPS
/// lists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuProcesses {
    /// The GPU.
    pub gpu: GpuUuid,
    /// When the lists were read.
    pub at: BootTime,
    /// One entry per pid.
    pub processes: Vec<GpuProcess>,
    /// Memory used on the device, in bytes, by everyone.
    pub memory_used: Option<u64>,
}

/// One process on a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuProcess {
    /// The pid as NVML gave it.
    pub pid: Pid,
    /// Its frame buffer memory in bytes; absent where NVML does not say.
    pub memory: Option<u64>,
    /// What it is to MPS.
    #[serde(default)]
    pub mps: MpsRole,
}

/// Role of a process in NVIDIA's Multi-Process Service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MpsRole {
    /// None, as far as NVML says.
    #[default]
    None,
    /// A client: NVML lists it as one.
    Client,
    /// The server: the GPU lets one process only have a compute context, others are its clients.
    Server,
    /// It has the server's name. Any process can choose that name, so it counts only for a process
    /// in no container.
    NamedServer,
}

/// Allocations as listed by the kubelet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allocations {
    /// When it was asked: the answer is no older.
    pub at: BootTime,
    /// The pod that it was asked about; absent where it was asked about all of them.
    pub pod: Option<PodName>,
    /// The containers that have devices which can be NVIDIA GPUs, each once. Some kubelets list pods
    /// that are over, others forget pods that run.
    pub containers: Vec<ContainerAllocation>,
}

/// A pod as the kubelet calls it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PodName {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub pod: Arc<str>,
}

/// What one container was given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerAllocation {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its pod.
    pub pod: Arc<str>,
    /// Its name in the pod.
    pub container: Arc<str>,
    /// The devices, each once.
    pub devices: Vec<AllocatedDevice>,
}

/// One device of one container.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct AllocatedDevice {
    /// The resource, e.g. `nvidia.com/gpu`, or the driver of a claim, e.g. `gpu.nvidia.com`.
    pub resource: Arc<str>,
    /// What the kubelet calls the device.
    pub id: Arc<str>,
    /// Which device that is; absent where the id does not say.
    pub device: Option<DeviceRef>,
}

/// A device as identified by the kubelet's id. The core maps it to a GPU.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceRef {
    /// A GPU or a MIG instance, by its UUID.
    Uuid(GpuUuid),
    /// A GPU by NVML's index.
    Index(u32),
    /// A GPU by the number of its device file, `/dev/nvidia<minor>`.
    Minor(u32),
    /// A MIG instance by the index of its GPU and its own.
    MigIndex {
        /// NVML's index of the GPU.
        gpu: u32,
        /// The instance's, among the GPU's.
        instance: u32,
    },
    /// A MIG instance as drivers before 470 name it.
    MigOf {
        /// Its GPU.
        gpu: GpuUuid,
        /// The GPU instance.
        gpu_instance: u32,
        /// The compute instance in it.
        compute_instance: u32,
    },
    /// Every GPU of the node.
    All,
}

/// A process that died, by the driver's own accounting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accounted {
    /// The GPU.
    pub gpu: GpuUuid,
    /// Its pid.
    pub pid: Pid,
    /// When it became a process of the GPU, by the wall clock, in microseconds.
    pub start_us: u64,
    /// For how long it was one.
    pub lifetime: Nanos,
    /// The most device memory that it had, in bytes.
    pub memory_peak: Option<u64>,
    /// Its busy time, by the driver's sum and by the credits of its windows, where the driver has a
    /// sum.
    pub busy: Option<(Nanos, Nanos)>,
}

/// A source's state and since when.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SourceHealth {
    /// Source or output whose state this is.
    pub source: SourceId,
    /// Its state.
    #[serde(flatten)]
    pub state: SourceState,
    /// Since when it has been in that state.
    pub since: BootTime,
    /// Where it is: a socket, a library, an endpoint; empty where it has no place.
    pub place: Arc<str>,
}
