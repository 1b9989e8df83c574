//! Who owned a pid in a stretch of time.

use crate::amounts::Engines;
use crate::event_stream::EventStream;
use crate::input::GpuProcess;
use crate::model::{BootTime, Nanos, Owner, Pid, ProcessId, UnattributedReason};
use crate::opens::Opens;
use crate::placement::PlacementTable;
use crate::process_table::{Holder, ProcessTable};

/// What is needed to find the owner of a pid.
#[derive(Debug)]
pub(crate) struct Lookup<'a> {
    /// Processes by pid and time.
    pub(crate) processes: &'a ProcessTable,
    /// The owners of the cgroups in which processes live.
    pub(crate) placements: &'a mut PlacementTable,
    /// Who opened a GPU, and when.
    pub(crate) opens: &'a Opens,
    /// Up to when the kernel's events are known, and where some are missing.
    pub(crate) events: &'a EventStream,
}

/// A part of a window's busy time and its owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Charge {
    /// Pid as the driver reported it. Absent for busy time that is in no row.
    pub pid: Option<Pid>,
    /// The process itself, where one is known.
    pub process: Option<ProcessId>,
    /// Owner, or the reason why the time has none.
    pub owner: Result<Owner, UnattributedReason>,
    /// Busy time, in nanoseconds.
    pub busy: Nanos,
    /// Time in which it kept the other engines busy.
    pub engines: Engines,
}

/// The process that had a pid, where one is known, and its owner, or the reason why there is none.
pub(crate) type FoundOwner = (Option<ProcessId>, Result<Owner, UnattributedReason>);

/// Who owned each process of a GPU's lists when these were read, in the order of the lists.
pub(crate) fn owners_of(
    lists: &[GpuProcess],
    at: BootTime,
    lookup: &mut Lookup<'_>,
) -> Vec<FoundOwner> {
    let processes = lists.iter();
    processes
        .map(|process| owner_of(process.pid, at, at, lookup))
        .collect()
}

/// Who owned a pid in `(from, to]`.
pub(crate) fn owner_of(
    pid: Pid,
    from: BootTime,
    to: BootTime,
    lookup: &mut Lookup<'_>,
) -> FoundOwner {
    let complete = lookup.events.completeness();
    let holders = lookup.processes.holders(pid, from, to, complete);
    let Some(newest) = holders.first() else {
        return (None, Err(UnattributedReason::UnknownPid));
    };
    let found = match owner_among(&holders, lookup.placements) {
        Err(UnattributedReason::AmbiguousPid) => (None, Err(UnattributedReason::AmbiguousPid)),
        owner => (Some(newest.process), owner),
    };
    confirmed(pid, to, found, lookup)
}

/// Returns `found`, or an error if an event may be missing that gave the pid to another process by
/// `to`.
pub(crate) fn confirmed(
    pid: Pid,
    to: BootTime,
    found: FoundOwner,
    lookup: &Lookup<'_>,
) -> FoundOwner {
    if found.1.is_ok() && !lookup.events.vouches_for(pid, to) {
        (None, Err(UnattributedReason::UnconfirmedPid))
    } else {
        found
    }
}

/// The single owner of all these placements.
pub(crate) fn owner_among(
    holders: &[Holder],
    placements: &mut PlacementTable,
) -> Result<Owner, UnattributedReason> {
    let mut found: Option<Owner> = None;
    for placement in holders
        .iter()
        .flat_map(|holder| holder.placements.iter().flatten())
    {
        let Some((owner, _)) = placements.owner(*placement) else {
            return Err(UnattributedReason::UnknownCgroup);
        };
        match &found {
            None => found = Some(owner.clone()),
            Some(other) if other == owner => {}
            Some(_) => return Err(UnattributedReason::AmbiguousPid),
        }
    }
    found.ok_or(UnattributedReason::UnknownCgroup)
}
