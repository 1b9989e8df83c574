//! The kernel's structures, as far as this object reads them.
//!
//! Every read goes through `bpf_probe_read_kernel`, which checks the address and reads zero bytes of
//! nothing else: a field that cannot be read is `None`, never a fault.

use aya_ebpf::Global;
use aya_ebpf::helpers::bpf_probe_read_kernel;
use gpuacct_common::event::{CgroupRef, UNIFIED_HIERARCHY};
use gpuacct_common::global::NO_LEGACY_CONTROLLER;

macro_rules! offsets {
    ($($global:ident = $structure:literal, [$($name:literal),+];)+) => {
        /// Offsets of fields, in bytes. The agent fills them in; unfilled, every read fails.
        mod offset {
            use aya_ebpf::Global;
            $(
                #[doc = concat!("`", $structure, "`: `", $($name, "` "),+)]
                #[unsafe(no_mangle)]
                pub(super) static $global: Global<u32> = Global::new(u32::MAX);
            )+
        }
    };
}
gpuacct_common::for_each_kernel_field!(offsets);

/// See [`gpuacct_common::global::LEGACY_CONTROLLER`].
#[unsafe(no_mangle)]
static LEGACY_CONTROLLER: Global<u32> = Global::new(NO_LEGACY_CONTROLLER);

/// A kernel address, never dereferenced here.
#[derive(Clone, Copy)]
struct Address(u64);

impl Address {
    #[inline(always)]
    fn read<T: Copy>(self, offset: &Global<u32>) -> Option<T> {
        self.read_at(offset.load() as u64)
    }

    #[inline(always)]
    fn read_at<T: Copy>(self, offset: u64) -> Option<T> {
        // SAFETY: the helper takes any address and reports one that it cannot read; the types asked
        // for are integers, for which any bytes will do.
        unsafe { bpf_probe_read_kernel((self.0 + offset) as *const T) }.ok()
    }

    /// The pointer in a field, unless it is null.
    #[inline(always)]
    fn follow(self, offset: &Global<u32>) -> Option<Self> {
        self.read::<u64>(offset).filter(|to| *to != 0).map(Self)
    }
}

/// `struct task_struct`.
#[derive(Clone, Copy)]
pub(crate) struct Task(Address);

impl Task {
    #[inline(always)]
    pub(crate) fn at(address: *const u8) -> Self {
        Self(Address(address as u64))
    }

    /// Whether it is its thread group's first thread.
    #[inline(always)]
    pub(crate) fn is_leader(self) -> bool {
        match (self.thread(), self.group()) {
            (Some(thread), Some(group)) => thread == group,
            // Reported, and found out to be unreadable, where it is counted.
            _ => true,
        }
    }

    /// Whether no thread of its group is left.
    #[inline(always)]
    pub(crate) fn is_group_dead(self) -> bool {
        let live = self
            .0
            .follow(&offset::TASK_SIGNAL)
            .and_then(|signal| signal.read::<i32>(&offset::SIGNAL_LIVE));
        live == Some(0)
    }

    #[inline(always)]
    fn thread(self) -> Option<u32> {
        self.0.read(&offset::TASK_PID)
    }

    /// The thread group's number in the initial pid namespace.
    #[inline(always)]
    pub(crate) fn group(self) -> Option<u32> {
        self.0.read(&offset::TASK_TGID)
    }

    /// The leader of its thread group. It outlives the group's other threads, as a zombie if need
    /// be, and keeps its cgroups until it is reaped.
    #[inline(always)]
    pub(crate) fn leader(self) -> Option<Self> {
        self.0.follow(&offset::TASK_GROUP_LEADER).map(Self)
    }

    #[inline(always)]
    pub(crate) fn real_parent(self) -> Option<Self> {
        self.0.follow(&offset::TASK_REAL_PARENT).map(Self)
    }

    #[inline(always)]
    pub(crate) fn start_boottime(self) -> Option<u64> {
        self.0.read(&offset::TASK_START_BOOTTIME)
    }

    #[inline(always)]
    pub(crate) fn pid_namespace_level(self) -> Option<u32> {
        self.0
            .follow(&offset::TASK_THREAD_PID)?
            .read(&offset::PID_LEVEL)
    }

    /// Its cgroup in the v2 hierarchy.
    #[inline(always)]
    pub(crate) fn unified_cgroup(self) -> Option<Cgroup> {
        self.0
            .follow(&offset::TASK_CGROUPS)?
            .follow(&offset::CSS_SET_DFL_CGRP)
            .map(Cgroup)
    }

    /// Its cgroup under the v1 controller that the agent asked for, if it asked for one. It is in
    /// the v2 hierarchy as long as nobody mounts that controller as v1.
    #[inline(always)]
    pub(crate) fn legacy_cgroup(self) -> Option<Cgroup> {
        let controller = LEGACY_CONTROLLER.load();
        if controller == NO_LEGACY_CONTROLLER {
            return None;
        }
        let state: u64 = self
            .0
            .follow(&offset::TASK_CGROUPS)?
            .read_at(offset::CSS_SET_SUBSYS.load() as u64 + controller as u64 * 8)?;
        Address(state).follow(&offset::CSS_CGROUP).map(Cgroup)
    }
}

/// `struct cgroup`.
#[derive(Clone, Copy)]
pub(crate) struct Cgroup(Address);

impl Cgroup {
    #[inline(always)]
    pub(crate) fn at(address: *const u8) -> Self {
        Self(Address(address as u64))
    }

    /// Its place in its hierarchy.
    #[inline(always)]
    pub(crate) fn node(self) -> Option<Node> {
        self.0.follow(&offset::CGROUP_KN).map(Node)
    }

    #[inline(always)]
    pub(crate) fn hierarchy(self) -> Option<u32> {
        self.0
            .follow(&offset::CGROUP_ROOT)?
            .read(&offset::ROOT_HIERARCHY_ID)
    }

    #[inline(always)]
    pub(crate) fn reference(self) -> Option<CgroupRef> {
        Some(reference(self.hierarchy()?, self.node()?.id()?))
    }
}

/// `struct kernfs_node`: a directory of a cgroup file system.
#[derive(Clone, Copy)]
pub(crate) struct Node(Address);

impl Node {
    #[inline(always)]
    pub(crate) fn at(address: u64) -> Self {
        Self(Address(address))
    }

    #[inline(always)]
    pub(crate) fn address(self) -> u64 {
        self.0.0
    }

    #[inline(always)]
    pub(crate) fn id(self) -> Option<u64> {
        self.0.read(&offset::KERNFS_ID)
    }

    /// `Some(None)` at the root of a hierarchy.
    #[inline(always)]
    pub(crate) fn parent(self) -> Option<Option<Self>> {
        let parent: u64 = self.0.read(&offset::KERNFS_PARENT)?;
        Some((parent != 0).then_some(Self(Address(parent))))
    }

    /// Where its name is, in the kernel.
    #[inline(always)]
    pub(crate) fn name(self) -> Option<u64> {
        self.0.read(&offset::KERNFS_NAME)
    }
}

/// Every byte set: it is a map's key.
#[inline(always)]
pub(crate) const fn reference(hierarchy: u32, id: u64) -> CgroupRef {
    CgroupRef {
        hierarchy,
        reserved: 0,
        id,
    }
}

/// "No v1 cgroup", in a record.
pub(crate) const NO_LEGACY_CGROUP: CgroupRef = reference(UNIFIED_HIERARCHY, 0);
