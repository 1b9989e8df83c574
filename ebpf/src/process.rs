//! What is said of a process, at any of its events.

use gpuacct_common::event::{CgroupRef, ProcessRecord, UNIFIED_HIERARCHY};

use crate::cgroup;
use crate::kernel::{NO_LEGACY_CGROUP, Pointer, Task, reference};
use crate::maps::{self, Urgency};
use crate::record::{header, submit};

/// Reports the process that `task` belongs to, and before it those of its cgroups that the agent
/// does not know.
#[inline(always)]
pub(crate) fn report<P: Pointer>(attach_point: u32, kind: u16, task: Task<P>, urgency: Urgency) {
    let leader = task.leader();
    let (unified, legacy) = announce_cgroups(attach_point, leader);
    let seen = maps::seen(attach_point);
    let record = record(kind, size_of::<ProcessRecord>(), leader, unified, legacy);
    seen.ended(submit(&record, urgency));
}

/// Announces the cgroups of a thread group that the agent does not know, and says which it is in:
/// that of v2, and that of the legacy controller.
#[inline(always)]
pub(crate) fn announce_cgroups<P: Pointer>(
    attach_point: u32,
    leader: Task<P>,
) -> (CgroupRef, CgroupRef) {
    let cgroup = leader.unified_cgroup();
    let unified = reference(UNIFIED_HIERARCHY, cgroup.id());
    cgroup::announce(attach_point, unified, cgroup);
    let mut legacy = NO_LEGACY_CGROUP;
    if let Some(cgroup) = leader.legacy_cgroup() {
        let hierarchy = cgroup.hierarchy();
        if hierarchy != UNIFIED_HIERARCHY {
            legacy = reference(hierarchy, cgroup.id());
            cgroup::announce(attach_point, legacy, cgroup);
        }
    }
    (unified, legacy)
}

/// What a record says of a process. Call it after the record is counted as seen.
#[inline(always)]
pub(crate) fn record<P: Pointer>(
    kind: u16,
    size: usize,
    leader: Task<P>,
    unified: CgroupRef,
    legacy: CgroupRef,
) -> ProcessRecord {
    ProcessRecord {
        header: header(kind, size),
        pid: leader.group(),
        parent: leader.real_parent().group(),
        start_ns: leader.start_boottime(),
        pid_namespace_level: leader.pid_namespace_level(),
        reserved: 0,
        unified,
        legacy,
    }
}
