//! Announcements of cgroups: names and places, the ancestors' first, each once.
//!
//! A record of a process carries only its cgroups' numbers. The agent learns what they are called
//! from these announcements, and so never has to search a cgroup file system for a directory that
//! may be gone by then.
//!
//! None of these records wakes the agent. A cgroup without a process means nothing to it, and the
//! record of the process that enters a new cgroup wakes it.

use aya_ebpf::helpers::generated::bpf_probe_read_kernel_str;
use aya_log_ebpf::warn;
use gpuacct_common::event::{
    CGROUP_NAME_BYTES, CGROUP_ROOT, CgroupRecord, CgroupRef, CgroupRemovedRecord, KIND_CGROUP,
    KIND_CGROUP_REMOVED,
};
use gpuacct_common::global::MAX_CGROUP_WALK;

use crate::kernel::{Cgroup, Node, Pointer, reference};
use crate::maps::{self, ANNOUNCED, EVENTS, STEP, Urgency, WALKS};
use crate::record::{self, header};

/// Announces `cgroup` and those of its ancestors that the agent does not know, the highest first.
#[inline(always)]
pub(crate) fn announce<P: Pointer>(attach_point: u32, key: CgroupRef, cgroup: Cgroup<P>) {
    // All that happens at nearly every event.
    if !is_announced(&key, maps::generation()) {
        announce_way(attach_point, cgroup.node().address(), key.hierarchy);
    }
}

/// Tells that a cgroup was removed. If its number is given away again, the cgroup that gets it is
/// announced as any other.
#[inline(always)]
pub(crate) fn report_removed(attach_point: u32, key: CgroupRef) {
    // One that was not announced is not there.
    let _ = ANNOUNCED.remove(key);
    let seen = maps::seen(attach_point);
    let record = CgroupRemovedRecord {
        header: header(KIND_CGROUP_REMOVED, size_of::<CgroupRemovedRecord>()),
        cgroup: key,
    };
    seen.ended(record::submit(&record, Urgency::CanWait));
}

#[inline(always)]
fn is_announced(key: &CgroupRef, generation: u64) -> bool {
    // SAFETY: the value is a plain u64; a writer on another CPU makes it one generation or the
    // other, both of which are right.
    unsafe { ANNOUNCED.get(key) }.is_some_and(|announced| *announced == generation)
}

/// A function of its own in the object too: it is long, and seven programs call it twice.
#[inline(never)]
fn announce_way(attach_point: u32, node: u64, hierarchy: u32) {
    if walk(attach_point, Node::at(node), hierarchy).is_some() {
        submit_walk(attach_point, hierarchy);
        return;
    }
    warn!(
        (),
        "cgroup {} of hierarchy {} is more than {} levels below any that the agent knows: it is looked for in /proc",
        Node::at(node).id().unwrap_or(0),
        hierarchy,
        MAX_CGROUP_WALK
    );
    // Only the cgroup and its parent are announced, so that neither it nor a sibling is tried again at
    // each event. If higher ancestors were announced as well, the walks of other cgroups would end at
    // them, and what is above them would never be announced.
    let node = Node::at(node);
    if let Some(Some(parent)) = node.parent() {
        let seen = maps::seen(attach_point);
        seen.ended(submit(parent, hierarchy).is_some());
    }
    let seen = maps::seen(attach_point);
    seen.ended(submit(node, hierarchy).is_some());
}

/// Passes the nodes to be announced and notes the last of them in [`WALKS`]. `None` if there are
/// more than are passed, or if a field cannot be read.
///
/// A cgroup made while the agent runs is one step below what is announced. Only those from before
/// have long ways.
#[inline(always)]
fn walk(attach_point: u32, from: Node, hierarchy: u32) -> Option<()> {
    let walk = WALKS.get_ptr_mut(attach_point)?;
    // SAFETY: the value is this CPU's and this attach point's alone, see `maps::WALKS`.
    let walk = unsafe { &mut *walk };
    walk.len = 0;
    let generation = maps::generation();
    let mut node = from;
    for passed in 0..MAX_CGROUP_WALK {
        if is_announced(&reference(hierarchy, node.id()?), generation) {
            return Some(());
        }
        walk.nodes[passed % STEP] = node.address();
        walk.len = passed as u64 + 1;
        match node.parent()? {
            Some(parent) => node = parent,
            None => return Some(()),
        }
    }
    None
}

/// Submits the nodes that [`walk`] noted, from the highest down. Those below them come at the next
/// events. One that does not reach the ring ends it, for its children must not come before it; the
/// rest is tried again at the next event.
#[inline(always)]
fn submit_walk(attach_point: u32, hierarchy: u32) {
    let Some(walk) = WALKS.get_ptr_mut(attach_point) else {
        return;
    };
    // SAFETY: as in `walk`.
    let walk = unsafe { &*walk };
    let len = walk.len;
    for done in 0..STEP as u64 {
        if done >= len {
            return;
        }
        let index = (len - 1 - done) as usize % STEP;
        let seen = maps::seen(attach_point);
        let submitted = submit(Node::at(walk.nodes[index]), hierarchy).is_some();
        seen.ended(submitted);
        if !submitted {
            return;
        }
    }
}

/// `None` if a field cannot be read or the ring has no room.
#[inline(always)]
fn submit(node: Node, hierarchy: u32) -> Option<()> {
    let key = reference(hierarchy, node.id()?);
    let (parent_id, flags) = match node.parent()? {
        Some(parent) => (parent.id()?, 0),
        None => (0, CGROUP_ROOT),
    };
    let name = node.name()?;
    let generation = maps::generation();

    let mut entry = EVENTS.reserve::<CgroupRecord>(0)?;
    let record = entry.as_mut_ptr();
    // SAFETY: the entry is this record's size, aligned to 8, and ours until it is submitted. The
    // helper writes at most the name's room, and a closing zero.
    let copied = unsafe {
        (*record).header = header(KIND_CGROUP, size_of::<CgroupRecord>());
        (*record).cgroup = key;
        (*record).parent_id = parent_id;
        (*record).flags = flags;
        let copied = bpf_probe_read_kernel_str(
            (&raw mut (*record).name).cast(),
            CGROUP_NAME_BYTES as u32,
            name as *const _,
        );
        (*record).name_len = u32::try_from(copied).unwrap_or(0).saturating_sub(1);
        copied
    };
    if copied < 0 {
        entry.discard(0);
        return None;
    }
    entry.submit(maps::submit_flags(Urgency::CanWait));
    // Only now: a cgroup that never reached the ring must be announced again.
    let _ = ANNOUNCED.insert(key, generation, 0);
    Some(())
}

// So that the remainder is a mask, of which the verifier sees the bound.
const _: () = assert!(STEP.is_power_of_two());
