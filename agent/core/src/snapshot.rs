//! The books after a commit: everything of the core that outputs may show.
//!
//! A snapshot is complete when it leaves the core. Prometheus, OTLP and the socket read the same one,
//! so they cannot disagree about an amount; a slow output merely shows an older one.

mod health;

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use self::health::{HealthBook, HealthCount, QueryState, ThrottleBook};
use crate::amounts::{Amounts, EngineSet, Millijoules};
use crate::input::{EventCounters, GpuInfo, IdentitySource, SampleClocks};
use crate::model::{
    BootTime, ContainerId, GpuUuid, HostUnit, Nanos, Pid, SourceId, StartTicks, UnattributedReason,
    UnobservedReason, WallTime,
};

/// The books at one commit.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// Grows by one with every commit.
    pub sequence: u64,
    /// When it was committed.
    pub at: BootTime,
    /// The same instant on the wall clock.
    pub wall: WallTime,
    /// When this agent began, on the wall clock: the start of its own counters.
    pub agent_started: WallTime,
    /// One book per GPU, in NVML's order.
    pub gpus: Vec<GpuBook>,
    /// What is published of containers.
    pub container_series: Vec<ContainerSeries>,
    /// What is published of namespaces.
    pub namespace_series: Vec<NamespaceSeries>,
    /// What is published of host processes.
    pub host_series: Vec<HostSeries>,
    /// Every account of a container, held-back ones included, with its whole amount.
    pub accounts: Vec<ContainerAccount>,
    /// Every account of a host unit, with its whole amount.
    pub host_accounts: Vec<HostAccount>,
    /// The eBPF object's counters.
    pub events: EventCounters,
    /// The agent's own counters and sizes.
    pub agent: AgentBook,
    /// Whether the kubelet has ever said which container it gave which GPU.
    pub allocations_known: bool,
    /// Allocations of the kubelet, with their containers.
    pub allocations: Vec<AllocationView>,
    /// Counters of Xid errors.
    pub xids: Vec<XidSeries>,
}

/// One GPU's book.
///
/// `elapsed = busy + idle + Σ unobserved`; `busy = Σ containers + Σ host + Σ unattributed`, whole
/// amounts. Both are checked on every commit, see [`GpuBook::imbalance`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GpuBook {
    /// The GPU.
    pub gpu: GpuInfo,
    /// When its book was opened: the start of its counters.
    pub start: WallTime,
    /// Time accounted for.
    pub elapsed: Nanos,
    /// Busy time by the device's own samples, summed independently of the accounts.
    pub busy: Nanos,
    /// Idle time.
    pub idle: Nanos,
    /// Time that could not be observed: every reason, also those at zero.
    pub unobserved: Vec<(UnobservedReason, Nanos)>,
    /// Busy time without an owner: every reason, also those at zero.
    pub unattributed: Vec<(UnattributedReason, Nanos)>,
    /// Busy time that is booked to an owner and not yet published.
    pub pending: Nanos,
    /// Nanoseconds by which the accounts differ from the device's busy time, signed. Zero unless
    /// there is a bug.
    pub imbalance: i64,
    /// By how much the held or allocated time of an account on it exceeds the time that has passed
    /// since the account's beginning; zero unless there is a defect.
    #[serde(default)]
    pub excess: Nanos,
    /// Share of the last minute during which the GPU was busy, 0..=1; absent before the first
    /// window.
    pub utilization: Option<f64>,
    /// What became of the last minute's time.
    pub coverage: Coverage,
    /// Device memory in use, in bytes.
    pub memory_used: Option<u64>,
    /// Windows closed.
    pub windows: u64,
    /// Windows taken although a sample landed between the calls.
    pub torn_windows: u64,
    /// Rows dropped because they cannot be right.
    pub invalid_rows: u64,
    /// Time by which rows exceeded the device, cut.
    pub cut: Nanos,
    /// Energy; absent if the device has no energy counter.
    pub energy: Option<EnergyBook>,
    /// What the driver's accounting says beside; absent where it has said nothing.
    pub accounting: Option<AccountingBook>,
    /// By which clocks the driver stamps its samples; absent where it stamps none.
    #[serde(default)]
    pub clocks: Option<SampleClocks>,
    /// Its health; absent if it was never read, and for a MIG instance.
    #[serde(default)]
    pub health: Option<HealthBook>,
}

/// Processes that died, as the driver's accounting and as the windows have them. A check since
/// the agent started, and no part of the books.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountingBook {
    /// Number of ended processes in the sums.
    pub processes: u64,
    /// Their busy time by the driver's sums.
    pub by_driver: Nanos,
    /// The same by the credits of their windows.
    pub by_windows: Nanos,
}

/// A GPU's energy: `total = Σ containers + Σ host + idle + unattributed`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnergyBook {
    /// What the device consumed in the windows that have a figure for it.
    pub total: Millijoules,
    /// What it consumed while it was idle, by share of time.
    pub idle: Millijoules,
    /// Energy of busy time without an owner, and of unobserved time.
    pub unattributed: Millijoules,
}

/// How much of a GPU's last minute is known and owned.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Coverage {
    /// The stretch that this is about: a minute, or less after a start.
    pub elapsed: Nanos,
    /// Busy time in it.
    pub busy: Nanos,
    /// Busy time that has an owner.
    pub attributed: Nanos,
    /// Busy time that has none, by reason; zeros left out.
    pub unattributed: Vec<(UnattributedReason, Nanos)>,
    /// Time that was not observed, by reason; zeros left out.
    pub unobserved: Vec<(UnobservedReason, Nanos)>,
}

/// The labels under which a container's series goes out. None is ever empty.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ContainerLabels {
    /// Kubernetes namespace, or `(none)`, or `(unresolved)`.
    pub namespace: Arc<str>,
    /// Pod name, likewise.
    pub pod: Arc<str>,
    /// Container name: Kubernetes' if it has one, else the runtime's.
    pub container: Arc<str>,
    /// Pod uid, from the kernel's cgroup or from the runtime.
    pub pod_uid: Arc<str>,
    /// Container id, from the kernel's cgroup.
    pub container_id: Arc<str>,
}

impl ContainerLabels {
    const fn texts(&self) -> [&Arc<str>; 5] {
        let Self {
            namespace,
            pod,
            container,
            pod_uid,
            container_id,
        } = self;
        [namespace, pod, container, pod_uid, container_id]
    }
}

impl Ord for ContainerLabels {
    /// By namespace, pod, container, pod uid and id. Most of two containers' are one text,
    /// which is equal without being read.
    fn cmp(&self, other: &Self) -> Ordering {
        let mut pairs = self.texts().into_iter().zip(other.texts());
        let differ = pairs.find(|(one, other)| one != other);
        differ.map_or(Ordering::Equal, |(one, other)| one.cmp(other))
    }
}

impl PartialOrd for ContainerLabels {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// One published series of a container on a GPU. Its labels never change and `busy` never falls.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ContainerSeries {
    /// Labels, frozen at first publication. Shared with earlier and later snapshots.
    pub labels: Arc<ContainerLabels>,
    /// The GPU.
    pub gpu: GpuUuid,
    /// The start of the counter, for OTLP and OpenMetrics.
    pub start: WallTime,
    /// The published amounts: zero until `zero_for` is over.
    pub amounts: Amounts,
    /// The engines that are shown: those that were used. Each shows 0 first, for `zero_for` as well.
    #[serde(default)]
    pub engines: EngineSet,
    /// Device memory in use now, in bytes; absent where nothing is known.
    pub memory: Option<u64>,
    /// The most that was seen in use, in bytes; absent where nothing was ever known.
    pub memory_peak: Option<u64>,
    /// How the names were found.
    pub attribution: Attribution,
    /// The image, for the info series; `(none)` or `(unresolved)` where not known.
    pub image: Arc<str>,
    /// Container runtime by the form of the cgroup's path: `docker`, `containerd`, `cri-o`,
    /// `podman`, ….
    pub runtime: Arc<str>,
}

/// How far a container's names are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Attribution {
    /// Held back: the names are being asked for.
    Held,
    /// Published under its names, which do not change any more.
    Named {
        /// Source whose answer was used.
        source: IdentitySource,
    },
    /// Published under the ids that the kernel gave, since the grace was over.
    IdOnly {
        /// Why no name was found.
        reason: IdOnlyReason,
    },
}

impl Attribution {
    /// Returns the value as used in labels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Named { .. } => "named",
            Self::IdOnly { .. } => "id_only",
        }
    }
}

/// Why a container goes without names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IdOnlyReason {
    /// There is no identity source.
    NoSource,
    /// A source that was there does not answer.
    SourceDown,
    /// The sources answer and do not know this container.
    NotFound,
    /// An answer contradicted the pod uid in the container's cgroup: it names another pod, or
    /// none.
    PodUidMismatch,
    /// No answer came within the grace.
    Timeout,
}

impl IdOnlyReason {
    /// Returns the value as used in labels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoSource => "no_source",
            Self::SourceDown => "source_down",
            Self::NotFound => "not_found",
            Self::PodUidMismatch => "pod_uid_mismatch",
            Self::Timeout => "timeout",
        }
    }
}

/// One published series of a namespace on a GPU.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NamespaceSeries {
    /// Kubernetes namespace, `(none)` for containers outside Kubernetes, `(unresolved)` for
    /// containers that ended without a name.
    pub namespace: Arc<str>,
    /// The GPU.
    pub gpu: GpuUuid,
    /// The start of the counter.
    pub start: WallTime,
    /// The published amounts.
    pub amounts: Amounts,
}

/// One published series of host processes on a GPU.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostSeries {
    /// systemd unit or cgroup path.
    pub unit: HostUnit,
    /// The GPU.
    pub gpu: GpuUuid,
    /// The start of the counter.
    pub start: WallTime,
    /// The published amounts.
    pub amounts: Amounts,
}

/// Xid errors of one number on one GPU by one owner. Its labels never change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct XidSeries {
    /// The GPU.
    pub gpu: GpuUuid,
    /// NVIDIA's number.
    pub xid: u32,
    /// The container to which the process belongs. Each label is `(none)` for a process in no
    /// container, and `(unresolved)` if the process is not known.
    pub labels: Arc<ContainerLabels>,
    /// The host unit to which it belongs; `(none)` for a container, `(unresolved)` if not known.
    pub unit: HostUnit,
    /// Number of errors that were counted, also while the series still shows 0.
    pub count: u64,
    /// The same as published: 0 at first, as with every new series.
    pub published: u64,
    /// The start of the counter.
    pub start: WallTime,
    /// When the last of them was.
    pub last: WallTime,
}

/// A host unit's account on one GPU, as it stands in the ledger.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostAccount {
    /// systemd unit or cgroup path.
    pub unit: HostUnit,
    /// The GPU.
    pub gpu: GpuUuid,
    /// The whole of each amount, also what is not published yet.
    pub amounts: Amounts,
    /// Share of the GPU over the last ten seconds, 0..=1.
    pub share: f64,
    /// Device memory in use now, in bytes.
    pub memory: Option<u64>,
}

/// A container's account on one GPU, as it stands in the ledger.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ContainerAccount {
    /// Names as known now. Shared with earlier and later snapshots.
    pub labels: Arc<ContainerLabels>,
    /// The container.
    pub id: ContainerId,
    /// The GPU.
    pub gpu: GpuUuid,
    /// How far the names are known.
    pub attribution: Attribution,
    /// The whole of each amount.
    pub amounts: Amounts,
    /// Share of the GPU over the last ten seconds, 0..=1.
    pub share: f64,
    /// Device memory in use now, in bytes.
    pub memory: Option<u64>,
    /// The most that was seen in use, in bytes.
    pub memory_peak: Option<u64>,
    /// Processes that were seen on the GPU.
    pub processes_started: u64,
    /// The image.
    pub image: Arc<str>,
    /// Who runs it, by the shape of its cgroup.
    pub runtime: Arc<str>,
    /// Its cgroup; absent while no process of it has been seen.
    #[serde(default)]
    pub cgroup: Option<Arc<str>>,
    /// The runtime's own name for it; absent where no source has one.
    #[serde(default)]
    pub own_name: Option<Arc<str>>,
    /// End of the first window that charged it; absent if none has.
    pub first_used: Option<WallTime>,
    /// End of the last window with use.
    pub last_used: Option<WallTime>,
    /// Whether its last process is gone.
    pub ended: bool,
    /// All labels that its runtime gave.
    pub runtime_labels: Arc<BTreeMap<Arc<str>, Arc<str>>>,
}

/// What one container was given, by the kubelet's word and the kernel's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AllocationView {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its pod.
    pub pod: Arc<str>,
    /// Its name in the pod.
    pub container: Arc<str>,
    /// Its id; absent where no such container has been seen.
    pub id: Option<ContainerId>,
    /// Whether its time counts, and why not.
    pub state: AllocationState,
    /// The devices.
    pub devices: Vec<AllocatedDeviceView>,
}

/// Whether allocated time counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AllocationState {
    /// The kubelet lists it and it lives.
    Counting,
    /// It is running and the kubelet does not list it any more. Its time counts.
    Forgotten,
    /// It is running and was known to the previous agent. The kubelet has not answered since. Its
    /// time counts.
    Unconfirmed,
    /// The kubelet lists it, and no container of that name is running: not yet, or not any more.
    NoContainer,
    /// It has ended just now.
    Ended,
}

/// One device that was given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AllocatedDeviceView {
    /// The resource, or the driver of a claim.
    pub resource: Arc<str>,
    /// What the kubelet calls the device.
    pub id: Arc<str>,
    /// Whether the id says which device it is.
    pub is_known: bool,
    /// The GPUs or MIG instances that it is, of those that NVML lists.
    pub gpus: Vec<GpuUuid>,
    /// When it was first listed for this container.
    pub since: WallTime,
}

/// The agent's own counters and sizes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentBook {
    /// Processes that the table holds alive.
    pub processes: u64,
    /// Processes kept after their death until every window has passed them.
    pub exited_processes: u64,
    /// cgroups known by path.
    pub cgroups: u64,
    /// Entries that were not added because a table was full: processes, cgroups, opens, containers,
    /// accounts, allocations, namespaces, Xid errors and processes to be stored.
    pub table_overflows: u64,
    /// Scans of `/proc` that were merged.
    pub scans: u64,
    /// Scans asked for because events were lost.
    pub rescans_after_loss: u64,
    /// Windows that were booked before all that they wait for had come: the event stream, and for
    /// MIG instances and MPS servers a reading of the process lists.
    pub windows_not_awaited: u64,
    /// Process lists, and the driver's accounts of processes that died, that were taken before the
    /// event stream had caught up with them.
    #[serde(default)]
    pub lists_not_awaited: u64,
    /// Windows that began later than the one before them ended: the time between them is booked as
    /// not observed.
    #[serde(default)]
    pub windows_after_gap: u64,
    /// Windows that began earlier than that, and were cut.
    #[serde(default)]
    pub windows_cut: u64,
    /// Windows of which all was booked already, and nothing was booked.
    #[serde(default)]
    pub windows_refused: u64,
    /// Containers held back now.
    pub containers_held: u64,
    /// Containers that are published with names.
    pub containers_named: u64,
    /// Containers that are published by id only.
    pub containers_id_only: u64,
    /// Containers whose names were found after they had been published by id.
    pub named_late: u64,
    /// Containers without an account whose names were let go for want of room.
    #[serde(default)]
    pub names_dropped: u64,
    /// Containers with an account whose labels were let go for want of room.
    #[serde(default)]
    pub labels_dropped: u64,
    /// Answers refused since their pod uid contradicts the cgroup's.
    pub identities_refused: u64,
    /// The same by source, in the order of [`IdentitySource::ALL`].
    pub identities_refused_of: [u64; IdentitySource::ALL.len()],
    /// cgroups whose id was refused, since it belongs to another one.
    pub cgroups_refused: u64,
    /// Opens of GPU devices that the kernel reported.
    pub gpu_opens: u64,
    /// Processes that opened a GPU and died without a sample.
    pub gpu_opens_unsampled: u64,
    /// Records of closed accounts that were given up, since the store did not take them in time.
    pub records_given_up: u64,
    /// Xid errors of GPUs that NVML does not list.
    #[serde(default)]
    pub xids_elsewhere: u64,
    /// Commits that the core has made since it started.
    pub commits: u64,
    /// Commits whose books did not balance.
    pub imbalances: u64,
    /// Commits with an account that had more held or allocated time than had passed.
    #[serde(default)]
    pub excesses: u64,
}

/// How often a source failed in one way, since the agent began. A source that was never there does
/// not fail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceErrorBook {
    /// Which source.
    pub source: SourceId,
    /// A short class, as in `SourceState::Down`.
    pub class: Arc<str>,
    /// Failures reported.
    pub count: u64,
    /// When the last of them was.
    pub last: BootTime,
}

/// A process that uses a GPU, for `status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GpuProcessView {
    /// Its pid.
    pub pid: Pid,
    /// Its start; absent if the agent never saw the process.
    pub start: Option<StartTicks>,
    /// The GPU.
    pub gpu: GpuUuid,
    /// The owner in words: a container id, a host unit, or a reason in parentheses.
    pub owner: Arc<str>,
    /// Containers inside the owner in which it runs, the outermost first.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub inner: Vec<ContainerId>,
    /// Whether it is alive.
    pub alive: bool,
    /// Share of the GPU over the last ten seconds, 0..=1.
    pub share: f64,
    /// Device memory in use, in bytes.
    pub memory: Option<u64>,
}
