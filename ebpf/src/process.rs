//! What is said of a process, at any of its events.

use aya_ebpf::helpers::{bpf_get_smp_processor_id, bpf_ktime_get_boot_ns};
use aya_ebpf::programs::BtfTracePointContext;
use gpuacct_common::event::{Header, ProcessRecord, UNIFIED_HIERARCHY};

use crate::cgroup;
use crate::kernel::{NO_LEGACY_CGROUP, Task};
use crate::maps::{self, EVENTS};

/// Reports the process that `task` belongs to, and before it those of its cgroups that the agent
/// does not know.
#[inline(always)]
pub(crate) fn report(ctx: &BtfTracePointContext, attach_point: u32, kind: u16, task: Task) {
    let unified = task.leader().and_then(Task::unified_cgroup);
    if let Some(unified) = unified {
        cgroup::announce(ctx, attach_point, unified);
    }
    let legacy = task
        .leader()
        .and_then(Task::legacy_cgroup)
        .filter(|legacy| legacy.hierarchy() != Some(UNIFIED_HIERARCHY));
    if let Some(legacy) = legacy {
        cgroup::announce(ctx, attach_point, legacy);
    }

    let seen = maps::seen(attach_point);
    let submitted = submit(kind, task).is_some();
    seen.ended(submitted);
}

/// `None` if a field cannot be read or the ring has no room.
#[inline(always)]
fn submit(kind: u16, task: Task) -> Option<()> {
    let leader = task.leader()?;
    let legacy = leader
        .legacy_cgroup()
        .and_then(|legacy| legacy.reference())
        .filter(|legacy| legacy.hierarchy != UNIFIED_HIERARCHY)
        .unwrap_or(NO_LEGACY_CGROUP);
    let record = ProcessRecord {
        header: header(kind, size_of::<ProcessRecord>()),
        pid: leader.group()?,
        parent: leader.real_parent()?.group()?,
        start_ns: leader.start_boottime()?,
        pid_namespace_level: leader.pid_namespace_level()?,
        reserved: 0,
        unified: leader.unified_cgroup()?.reference()?,
        legacy,
    };
    EVENTS
        .output::<ProcessRecord>(&record, maps::submit_flags())
        .ok()
}

/// The header of a record that is made now. Call it after the record is counted as seen.
#[inline(always)]
pub(crate) fn header(kind: u16, size: usize) -> Header {
    Header {
        kind,
        size: size as u16,
        // SAFETY: these helpers take nothing and cannot fail.
        cpu: unsafe { bpf_get_smp_processor_id() },
        // SAFETY: as above.
        at_ns: unsafe { bpf_ktime_get_boot_ns() },
    }
}
