//! The answer to `gpuacct explain`: the chain of facts from a process to the labels of its account.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::input::{IdentitySource, SampleClocks};
use crate::model::{BootTime, ContainerId, GpuUuid, HostUnit, Nanos, Pid, SourceState, WallTime};
use crate::snapshot::{AllocationView, Attribution, ContainerLabels};

/// Everything that the agent knows about one subject: its processes, cgroups and owners, the
/// answers of identity sources, and the accounts. For `gpuacct explain`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// What was asked for.
    pub subject: Arc<str>,
    /// When, on the boot clock.
    pub at: BootTime,
    /// The same instant on the wall clock.
    pub wall: WallTime,
    /// Up to when the kernel's events have been read, on the wall clock. A process that began or ended
    /// later is not known to have. Absent while no events have been read.
    #[serde(default)]
    pub events_through: Option<WallTime>,
    /// Its processes: those that use a GPU first, then the living, then the newest.
    pub processes: Vec<ProcessStory>,
    /// Processes that are known and left out, since there are too many.
    pub processes_left_out: u64,
    /// Who pays for them.
    pub owners: Vec<OwnerStory>,
    /// Owners that the subject names as well and that are left out, since there are too many.
    pub owners_left_out: u64,
}

/// One process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProcessStory {
    /// Its pid in the host's namespace.
    pub pid: Pid,
    /// When it started, on the wall clock.
    pub started: WallTime,
    /// When it died; absent while it lives.
    pub died: Option<WallTime>,
    /// The parent that it was first seen with.
    pub parent: Option<Pid>,
    /// How it came to be known.
    pub seen_by: SeenBy,
    /// Where it is, or was when it died.
    pub cgroups: Vec<CgroupStory>,
    /// Where it was before, if it moved.
    pub moved_from: Vec<CgroupStory>,
    /// Who pays, as `GpuProcessView::owner` says it.
    pub owner: Arc<str>,
    /// Why the id in its cgroup's path is not believed, if it is not.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub refused: Option<RefusalStory>,
    /// The GPUs that it uses, or did within the last ten seconds.
    pub gpus: Vec<GpuUse>,
}

/// A cgroup that bears an id which belongs to another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusalStory {
    /// The id: `container <id>` or `pod <uid>`.
    pub claimed: Arc<str>,
    /// The cgroup that bears it.
    pub place: Arc<str>,
    /// The cgroup that it belongs to.
    pub bound_to: Arc<str>,
}

/// How a process came to be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SeenBy {
    /// By an event of the kernel.
    Event,
    /// By a scan of `/proc` alone: it began before the agent, or its events were lost.
    Scan,
}

/// A cgroup of a process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupStory {
    /// Its hierarchy; 0 is v2.
    pub hierarchy: u32,
    /// Its path; absent while the kernel has not announced it.
    pub path: Option<Arc<str>>,
}

/// What a process makes of a GPU.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GpuUse {
    /// The GPU.
    pub gpu: GpuUuid,
    /// Share over the last ten seconds, 0..=1.
    pub share: f64,
    /// Device memory in use, in bytes.
    pub memory: Option<u64>,
}

/// What is known of one owner.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OwnerStory {
    /// Who, by the kernel's cgroup alone.
    pub who: CgroupOwner,
    /// The labels under which it is published, or would be.
    pub labels: ContainerLabels,
    /// The image.
    pub image: Arc<str>,
    /// When its cgroup and its names were first known together; absent while they are not, and where
    /// it is no container.
    #[serde(default)]
    pub identified: Option<WallTime>,
    /// How far its names are known; absent where there is no account to publish.
    pub attribution: Option<Attribution>,
    /// Why these names were used, in words.
    pub why: Arc<str>,
    /// What each identity source is doing and has said, the best source first.
    pub answers: Vec<AnswerStory>,
    /// What the kubelet has given it; absent where it has said nothing.
    #[serde(default)]
    pub allocation: Option<AllocationView>,
    /// Other cgroups that bear its id now and are refused.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub refused: Vec<RefusalStory>,
    /// What is booked, by GPU.
    pub accounts: Vec<AccountStory>,
    /// Its processes that opened a GPU and died without a sample, the newest first.
    pub unsampled: Vec<UnsampledStory>,
}

/// A process that opened a GPU, died, and that no sample names. Nothing is booked for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnsampledStory {
    /// Its pid in the host's namespace.
    pub pid: Pid,
    /// What it opened, as NVIDIA calls it.
    pub device: Arc<str>,
    /// When it first did.
    pub opened: WallTime,
    /// The time from then to its death: it used no more than that.
    pub at_most: Nanos,
}

/// Who a cgroup belongs to, and what else its path says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum CgroupOwner {
    /// The container that pays: the outermost, unless it is configured otherwise.
    Container {
        /// Its id.
        id: ContainerId,
        /// Who runs it, by the shape of the path.
        runtime: Arc<str>,
        /// The pod whose cgroup it is in.
        pod_uid: Option<Arc<str>>,
        /// The pod's quality-of-service class; absent once no process of it is known.
        qos: Option<Arc<str>>,
        /// Containers inside it in which its processes run, the outermost first.
        inner: Vec<ContainerId>,
        /// Containers that it is in, the outermost first.
        #[serde(skip_serializing_if = "Vec::is_empty", default)]
        outer: Vec<ContainerId>,
    },
    /// A pod's own cgroup.
    Pod {
        /// Its uid.
        uid: Arc<str>,
    },
    /// The host.
    Host {
        /// systemd unit or cgroup path.
        unit: HostUnit,
    },
}

/// What became of a question to one identity source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnswerStory {
    /// Source that was asked.
    pub source: IdentitySource,
    /// What the source is doing now; absent where the agent has none of it.
    pub health: Option<SourceState>,
    /// When it answered, on the wall clock; absent where it has not.
    pub at: Option<WallTime>,
    /// Its answer. Absent if it has not answered.
    pub outcome: Option<AnswerOutcome>,
    /// It has said since that the container is gone.
    pub removed: bool,
    /// Whether this answer is the one that counts.
    pub wins: bool,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum AnswerOutcome {
    /// It knows the container.
    Found {
        /// As what: `namespace/pod/container`, or the runtime's name for it.
        name: Arc<str>,
    },
    /// The source does not know the container.
    NotFound {
        /// Why, as a label value.
        reason: Arc<str>,
    },
    /// It knows the container. The pod that it names is not believed: it is from labels, and no
    /// pod's cgroup confirms it.
    PodRefused {
        /// The runtime's name for it.
        name: Arc<str>,
        /// The pod uid that it claims.
        claimed: Arc<str>,
    },
    /// Its pod uid contradicts the cgroup's.
    Refused {
        /// The pod uid that it claims.
        claimed: Arc<str>,
    },
}

/// What is booked of one owner on one GPU.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AccountStory {
    /// The GPU.
    pub gpu: GpuUuid,
    /// The whole amount.
    pub busy: Nanos,
    /// What of it is published.
    pub published: Nanos,
    /// When its series will show its amounts, if the series is new and still shows 0
    /// (`publish.zero_for`). Absent where it shows them already, and where there is no series yet.
    #[serde(default)]
    pub published_from: Option<WallTime>,
    /// For how long the kubelet had given it the GPU.
    #[serde(default)]
    pub allocated: Nanos,
    /// Share over the last ten seconds, 0..=1.
    pub share: f64,
    /// Device memory in use now, in bytes.
    pub memory: Option<u64>,
    /// End of the first window that charged it.
    pub first_used: Option<WallTime>,
    /// End of the last window with use.
    pub last_used: Option<WallTime>,
    /// Whether its last process is gone.
    pub ended: bool,
    /// By which clocks the driver stamps the GPU's samples; absent where it stamps none.
    #[serde(default)]
    pub clocks: Option<SampleClocks>,
}
