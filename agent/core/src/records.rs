//! The rows in which the core hands its books to the store, and takes them back after a restart.

use std::sync::Arc;

use crate::amounts::Amounts;
use crate::directory::Labels;
use crate::input::{GpuInfo, MigInfo};
use crate::model::{
    BootTime, Clock, ContainerId, GpuUuid, HostUnit, Nanos, Owner, Pid, PodUid, ProcessId,
    StartTicks, UnattributedReason, UnobservedReason, WallTime,
};
use crate::snapshot::{Attribution, ContainerLabels, EnergyBook};

pub use crate::allocation::{GivenName, Grant, KeptAllocation};

/// What kind of owner an account is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OwnerKind {
    /// A container, by its id.
    Container,
    /// A pod, by its uid.
    Pod,
    /// A host process, by its unit.
    Host,
}

impl OwnerKind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Container, Self::Pod, Self::Host];

    /// Its name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::Pod => "pod",
            Self::Host => "host",
        }
    }
}

pub(crate) const fn kind_and_id(owner: &Owner) -> (OwnerKind, &Arc<str>) {
    match owner {
        Owner::Container(ContainerId(id)) => (OwnerKind::Container, id),
        Owner::Pod(PodUid(uid)) => (OwnerKind::Pod, uid),
        Owner::Host(HostUnit(unit)) => (OwnerKind::Host, unit),
    }
}

pub(crate) fn owner(kind: OwnerKind, id: &Arc<str>) -> Owner {
    let id = Arc::clone(id);
    match kind {
        OwnerKind::Container => Owner::Container(ContainerId(id)),
        OwnerKind::Pod => Owner::Pod(PodUid(id)),
        OwnerKind::Host => Owner::Host(HostUnit(id)),
    }
}

/// One published series of an account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptSeries {
    /// Its labels, frozen.
    pub labels: Arc<ContainerLabels>,
    /// Where its counter starts.
    pub start: WallTime,
    /// When it was first shown.
    pub shown: BootTime,
    /// When what it shows last changed. Of a series that follows, see [`KeptTotals::changed`].
    pub changed: BootTime,
    /// Whether it shows the whole account less what the other series shows. Then that follows from
    /// the totals and is not handed over with each second of use.
    pub follows: bool,
    /// What it shows; zero, and without meaning, where it follows.
    pub shows: Amounts,
}

/// The part of an account that changes rarely.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptAccount {
    /// Its number: unique for as long as series continue, closed accounts included.
    pub number: u32,
    /// The GPU.
    pub gpu: GpuUuid,
    /// Which MIG instance that was, if it is one, when the account was opened.
    pub mig: Option<MigInfo>,
    /// What kind of owner.
    pub kind: OwnerKind,
    /// Id, uid or unit of the owner.
    pub owner_id: Arc<str>,
    /// What it is called.
    pub labels: Arc<ContainerLabels>,
    /// The image.
    pub image: Arc<str>,
    /// Container runtime, by the form of the path.
    pub runtime: Arc<str>,
    /// How far its names are known; absent for the host, which needs none.
    pub attribution: Option<Attribution>,
    /// All labels that its runtime gave.
    pub runtime_labels: Labels,
    /// When it was opened.
    pub opened: WallTime,
    /// Since when its names have been waited for.
    pub held_since: BootTime,
    /// Since when it has had no process.
    pub ended: Option<BootTime>,
    /// Whether its namespace's counter has been given all of it.
    pub fed: bool,
    /// What is published of it under the ids alone.
    pub id_only: Option<KeptSeries>,
    /// What is published of it under its names.
    pub named: Option<KeptSeries>,
}

/// What of an account changes with each second of use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeptTotals {
    /// The account's number.
    pub number: u32,
    /// The whole of each amount.
    pub amounts: Amounts,
    /// The most device memory that was seen in use, in bytes.
    pub memory_peak: Option<u64>,
    /// Processes of it that were seen on the GPU.
    pub processes_started: u64,
    /// The end of the first window that charged it.
    pub first_used: Option<WallTime>,
    /// The end of the last window that charged it.
    pub last_used: Option<WallTime>,
    /// When the amount last changed that the following series shows.
    pub changed: BootTime,
    /// The earliest time of which anything is counted; absent where an older agent did not note it.
    pub since: Option<BootTime>,
    /// Up to when its allocated time is counted.
    pub allocated_through: Option<BootTime>,
}

/// An account that has been closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClosedAccount {
    /// Time at which it was closed.
    pub at: WallTime,
    /// The account.
    pub account: KeptAccount,
    /// Its final totals.
    pub totals: KeptTotals,
}

/// A GPU's book, without the times of its reasons.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptBook {
    /// The GPU.
    pub gpu: GpuInfo,
    /// When it was opened.
    pub start: WallTime,
    /// The end of the last window: where the next one begins.
    pub through: Option<BootTime>,
    /// Time accounted for.
    pub elapsed: Nanos,
    /// Busy time.
    pub busy: Nanos,
    /// Idle time.
    pub idle: Nanos,
    /// Energy in millijoules, divided into idle and unattributed energy; absent if the driver reports none.
    pub energy: Option<EnergyBook>,
    /// The amounts of closed accounts.
    pub closed: Amounts,
    /// Windows booked.
    pub windows: u64,
    /// Windows that are torn: samples landed between the calls in every try.
    pub torn_windows: u64,
    /// Rows dropped.
    pub invalid_rows: u64,
    /// Time cut from rows.
    pub cut: Nanos,
}

/// Why time has no owner, or was not observed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeptReason {
    /// Reason of busy time without an owner.
    Unattributed(UnattributedReason),
    /// Reason of unobserved time.
    Unobserved(UnobservedReason),
}

/// The time of one reason in one GPU's book.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptTime {
    /// The GPU.
    pub gpu: GpuUuid,
    /// The reason.
    pub reason: KeptReason,
    /// The whole of it.
    pub time: Nanos,
}

/// The counter of a namespace on a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptNamespace {
    /// The GPU.
    pub gpu: GpuUuid,
    /// The namespace.
    pub namespace: Arc<str>,
    /// The whole of each amount.
    pub amounts: Amounts,
    /// Where the counter starts.
    pub start: WallTime,
    /// When it was first shown.
    pub shown: BootTime,
    /// When what it shows last changed.
    pub changed: BootTime,
    /// What it shows.
    pub shows: Amounts,
}

/// What changed since the last handover.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Whether this is everything and not only what changed. Then whatever else the store has as
    /// open is gone.
    pub whole: bool,
    /// The commit's number.
    pub sequence: u64,
    /// When it was made.
    pub clock: Clock,
    /// The books that changed.
    pub books: Vec<KeptBook>,
    /// Times of their reasons.
    pub times: Vec<KeptTime>,
    /// The rarely changing parts of accounts. Totals that did not change are not in `totals`.
    pub accounts: Vec<KeptAccount>,
    /// Totals of accounts that were handed over, before or with these.
    pub totals: Vec<KeptTotals>,
    /// Accounts that have been closed.
    pub closed: Vec<ClosedAccount>,
    /// The counters of namespaces that changed.
    pub namespaces: Vec<KeptNamespace>,
    /// Processes that have to do with a GPU.
    pub processes: Vec<KeptProcess>,
    /// Processes that were handed over before and that the store is to drop.
    pub gone: Vec<ProcessId>,
    /// What the kubelet has given to containers that live.
    pub allocations: Vec<KeptAllocation>,
    /// Containers whose allocations were handed over before and that the store is to drop.
    pub allocations_gone: Vec<ContainerId>,
}

/// Receipt for a handover. Given back to the core once the changes are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// How many closed accounts were among them.
    pub(crate) closed: usize,
}

impl Changes {
    /// The receipt for [`Accountant::kept`](crate::accountant::Accountant::kept), once the changes
    /// are stored.
    #[must_use]
    pub fn receipt(&self) -> Kept {
        Kept {
            closed: self.closed.len(),
        }
    }
}

/// The whole stored state of the core, for a restart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PersistedState {
    /// The last commit's number.
    pub sequence: u64,
    /// When it was made, on both clocks.
    pub clock: Clock,
    /// Books, in the order in which they are shown.
    pub books: Vec<KeptBook>,
    /// Times of their reasons.
    pub times: Vec<KeptTime>,
    /// Open accounts.
    pub accounts: Vec<(KeptAccount, KeptTotals)>,
    /// The counters of namespaces.
    pub namespaces: Vec<KeptNamespace>,
    /// Processes that have to do with a GPU.
    pub processes: Vec<KeptProcess>,
    /// What the kubelet has given to containers.
    pub allocations: Vec<KeptAllocation>,
    /// The largest number that any account has had.
    pub last_number: u32,
}

/// Why a state cannot be continued from.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// Something is on a GPU that has no book.
    #[error("an account or a namespace is on {gpu}, which has no book")]
    NoBook {
        /// The GPU.
        gpu: GpuUuid,
    },
    /// Two accounts of one owner on one GPU.
    #[error("{owner} has two open accounts on {gpu}")]
    Twice {
        /// The owner.
        owner: Arc<str>,
        /// The GPU.
        gpu: GpuUuid,
    },
    /// The books do not balance.
    #[error("the book of {gpu} is out of balance by {nanoseconds} ns")]
    Imbalance {
        /// The GPU.
        gpu: GpuUuid,
        /// Difference in nanoseconds.
        nanoseconds: i64,
    },
    /// The last commit is in the future of this boot.
    #[error("the last commit was made {ahead:?} ns ahead of the boot clock")]
    Future {
        /// Nanoseconds that the commit is ahead of the boot clock.
        ahead: u64,
    },
}

/// A process's cgroups: hierarchies and paths.
pub type Cgroups = Arc<[(u32, Arc<str>)]>;

/// A process that has to do with a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptProcess {
    /// Its pid.
    pub pid: Pid,
    /// When it started, as finely as it is known.
    pub start: BootTime,
    /// Whether an event of the kernel reported it, and not only a scan.
    pub by_event: bool,
    /// When it died, if it has.
    pub exit: Option<BootTime>,
    /// Whether an event reported that; otherwise a scan has missed it since, or its pid was taken.
    pub exit_reported: bool,
    /// Where it is or was.
    pub cgroups: Cgroups,
    /// Where it was before, if it had only just moved, and when it did; absent where nobody saw it.
    pub moved: Option<(Cgroups, Option<BootTime>)>,
    /// The numbers of the accounts on which it is counted as started. Of the dead none: nothing more
    /// is counted.
    pub accounts: Vec<u32>,
}

impl KeptProcess {
    /// Which process that is.
    #[must_use]
    pub fn process(&self) -> ProcessId {
        ProcessId {
            pid: self.pid,
            start: StartTicks::from(self.start),
        }
    }
}
