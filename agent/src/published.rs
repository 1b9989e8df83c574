//! What the agent publishes after a commit: the books, and how the agent itself is.
//!
//! A [`Published`] is complete when it is made and is never changed afterwards. The composition
//! makes it and is the only one that does: the books come from the core, the figures of the sources
//! and of the store from these. Sources fill in the nouns of this file, outputs show them, and
//! neither sees the other.
//!
//! It refuses to have behaviour. Units: nanoseconds and bytes, unless a field says otherwise.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::core::input::SourceHealth;
use crate::core::model::{BootTime, GpuUuid, Nanos, SourceId, WallTime};
use crate::core::snapshot::{Snapshot, SourceErrorBook};

/// All that outputs may show.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Published {
    /// The books as of the last commit.
    pub books: Snapshot,
    /// How the agent itself is.
    pub agent: AgentStatus,
    /// The call into NVML that had not returned when this was made, if there was one.
    ///
    /// It is no fresher than the books and need not be. The call has the time at which it began, so a
    /// reader's own clock says how long it has lasted, even if the core has stopped committing. While
    /// a commit waits for the disk, which it does for ten seconds at most, a call that begins is not
    /// shown yet, and one that returns is still shown.
    pub blocked: Option<BlockedCall>,
}

/// How the agent itself is: its sources, its outputs, and what they have counted since it began.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AgentStatus {
    /// The last state of each source and of each output, in the order of [`SourceId::ALL`]. Those of
    /// the sources are as the core knew them at the commit.
    pub sources: Vec<SourceHealth>,
    /// How sources and outputs failed, by source and class, also those that are up again.
    pub source_errors: Vec<SourceErrorBook>,
    /// Figures of each identity source and of the source of allocations.
    pub names: Vec<NamesBook>,
    /// Figures of the calls into NVML, by function.
    pub nvml_calls: Vec<NvmlCallBook>,
    /// Failures of the threads that make them.
    pub nvml_threads: NvmlThreadBook,
    /// Figures of the store. Absent if it is disabled.
    pub store: Option<StoreBook>,
    /// What the agent's process takes. Absent if it cannot be read.
    pub process: Option<ProcessBook>,
}

/// What the agent's own process takes, as the kernel says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessBook {
    /// Processor time of all its threads, in user mode and in the kernel.
    pub cpu: Nanos,
    /// Physical memory, in bytes.
    pub resident_bytes: u64,
    /// Address space, in bytes.
    pub virtual_bytes: u64,
    /// When it was started.
    pub started: WallTime,
    /// Open file descriptors.
    pub open_fds: u64,
    /// The limit of open file descriptors. Absent if there is none.
    pub max_fds: Option<u64>,
}

/// What came of a source's lookups, each of one container. They add up to the lookups that ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LookupBook {
    /// It knows the container.
    pub found: u64,
    /// Lookups of a container that the source does not know.
    pub not_found: u64,
    /// It did not say in time.
    pub timeout: u64,
    /// What it said cannot be understood.
    pub invalid: u64,
    /// It could not be asked to the end.
    pub error: u64,
}

/// Requests, events and problems of an identity or allocation source since the agent began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamesBook {
    /// Which source.
    pub source: SourceId,
    /// What came of its lookups.
    pub lookups: LookupBook,
    /// Requests sent.
    pub calls: u64,
    /// Requests that were not answered in time.
    pub timeouts: u64,
    /// Replies that are not what the API promises.
    pub invalid_replies: u64,
    /// Connections that were lost or could not be made.
    pub disconnects: u64,
    /// Events received.
    pub events: u64,
    /// Lookups turned away: too many were waiting, or the id is none.
    pub lookups_refused: u64,
    /// Texts that were cut, or in which something was escaped.
    pub texts_changed: u64,
    /// Labels left out, since the container has too many.
    pub labels_dropped: u64,
    /// Sets of Kubernetes labels that are incomplete or cannot be Kubernetes'.
    pub kubernetes_refused: u64,
    /// Entries of answers left out, since there are too many, they are too large or they contradict
    /// each other.
    #[serde(default)]
    pub entries_dropped: u64,
    /// Answers and events refused, since they are larger than what is read.
    #[serde(default)]
    pub answers_too_large: u64,
}

/// What the calls of one function of NVML came to, since the agent began.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NvmlCallBook {
    /// The function.
    pub call: Arc<str>,
    /// Calls that returned.
    pub calls: u64,
    /// Those that returned an error.
    pub errors: u64,
    /// Time spent inside, all together.
    pub total: Nanos,
    /// Duration of the longest call.
    pub longest: Nanos,
}

/// Failures of NVML threads since the agent began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NvmlThreadBook {
    /// Threads that a defect ended and that were started again.
    pub restarts: u64,
    /// Threads that were given up since their call did not return.
    pub abandoned: u64,
    /// Those of them whose call has not returned yet: at most one a GPU.
    pub blocked: u64,
    /// Windows that the core had no room for when the agent stopped.
    pub undelivered: u64,
}

/// Figures of the store since the agent began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreBook {
    /// Commits that are kept.
    pub commits: u64,
    /// Attempts that failed.
    pub failures: u64,
    /// Time that commits took to be written, all together.
    pub spent: Nanos,
    /// What the store takes, in bytes; looked at once a minute.
    pub bytes: u64,
    /// Hours without a commit that are in the hour after them.
    #[serde(default)]
    pub hours_merged: u64,
    /// How often the store was too large and nothing in it could go.
    #[serde(default)]
    pub over_size: u64,
    /// The usage records that wait in the store. Absent if none are sent.
    #[serde(default)]
    pub records: Option<RecordsBook>,
}

/// Usage records that no receiver has acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordsBook {
    /// How many wait.
    pub unsettled: u64,
    /// When the hour of the oldest of them ended. Absent if none waits.
    pub oldest_ended: Option<WallTime>,
    /// Those that were dropped with their hour since the agent began.
    pub dropped: u64,
}

/// A call into NVML that has not returned yet. The thread that made it waits in the driver and
/// cannot be interrupted; everything else goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockedCall {
    /// The function's name.
    pub call: Arc<str>,
    /// The GPU that it asks about; absent for calls about the whole library.
    pub gpu: Option<GpuUuid>,
    /// When it was made.
    pub since: BootTime,
}
