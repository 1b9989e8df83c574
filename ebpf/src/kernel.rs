//! The kernel's structures, as far as this object reads them.
//!
//! An event hands over pointers whose type the verifier knows, and it follows that type through
//! every load: such a load is one instruction, checked against the kernel's BTF when the object is
//! loaded, and reads zero where the pointer is bad. This is what happens at every event. Addresses
//! without a type are read by a helper, at many times the cost: those that have been in a map, when
//! a cgroup is announced, and the current task, which no helper of Linux 5.8 gives with its type.

use aya_ebpf::Global;
use aya_ebpf::helpers::{bpf_get_current_task, bpf_probe_read_kernel};
use gpuacct_common::event::{CgroupRef, UNIFIED_HIERARCHY};
use gpuacct_common::global::NO_LEGACY_CONTROLLER;

macro_rules! offsets {
    ($($global:ident = $structure:literal, [$($name:literal),+];)+) => {
        $(
            #[doc = concat!("`", $structure, "`: `", $($name, "` "),+)]
            #[unsafe(no_mangle)]
            pub(super) static $global: Global<u32> = Global::new(u32::MAX);
        )+
    };
}
/// Offsets of fields, in bytes. The agent fills them in; with one that is not filled in the verifier
/// refuses the programs that read it.
mod offset {
    use aya_ebpf::Global;
    gpuacct_common::for_each_kernel_field!(offsets);
    gpuacct_common::for_each_open_field!(offsets);
}

/// See [`gpuacct_common::global::LEGACY_CONTROLLER`].
#[unsafe(no_mangle)]
static LEGACY_CONTROLLER: Global<u32> = Global::new(NO_LEGACY_CONTROLLER);

/// A place in the kernel's memory, and a way to read there. A bad address reads as zero.
pub(crate) trait Pointer: Copy {
    fn at(address: u64) -> Self;

    /// `T` is an integer or an address: any bytes will do for it.
    fn load_at<T: Copy>(self, offset: usize) -> T;

    #[inline(always)]
    fn load<T: Copy>(self, offset: &Global<u32>) -> T {
        self.load_at(offset.load() as usize)
    }

    #[inline(always)]
    fn follow(self, offset: &Global<u32>) -> Self {
        Self::at(self.load(offset))
    }
}

/// A pointer that came with an event, or was reached from one.
#[derive(Clone, Copy)]
pub(crate) struct Typed(*const u8);

impl Pointer for Typed {
    #[inline(always)]
    fn at(address: u64) -> Self {
        Self(address as *const u8)
    }

    #[inline(always)]
    fn load_at<T: Copy>(self, offset: usize) -> T {
        // SAFETY: the verifier admits a load only where the kernel's own type has a field of this
        // size, and the kernel makes it read zero where the address is bad. The types asked for are
        // integers and addresses, for which any bytes will do. Volatile, so that the compiler
        // neither widens nor merges what the verifier is to compare with that field.
        unsafe { self.0.byte_add(offset).cast::<T>().read_volatile() }
    }
}

/// An address whose type the verifier does not know.
#[derive(Clone, Copy)]
pub(crate) struct Untyped(u64);

impl Pointer for Untyped {
    #[inline(always)]
    fn at(address: u64) -> Self {
        Self(address)
    }

    #[inline(always)]
    fn load_at<T: Copy>(self, offset: usize) -> T {
        // SAFETY: the helper takes any address and reports one that it cannot read. All zeros are a
        // value of every type that is asked for.
        unsafe {
            match bpf_probe_read_kernel((self.0 + offset as u64) as *const T) {
                Ok(value) => value,
                Err(_) => core::mem::zeroed(),
            }
        }
    }
}

/// `struct task_struct`.
#[derive(Clone, Copy)]
pub(crate) struct Task<P>(P);

impl Task<Untyped> {
    /// The thread that is running.
    #[inline(always)]
    pub(crate) fn current() -> Self {
        // SAFETY: the helper takes nothing and cannot fail.
        Self(Untyped(unsafe { bpf_get_current_task() }))
    }
}

impl<P: Pointer> Task<P> {
    #[inline(always)]
    pub(crate) fn at(address: u64) -> Self {
        Self(P::at(address))
    }

    /// Whether it is its thread group's first thread.
    #[inline(always)]
    pub(crate) fn is_leader(self) -> bool {
        self.0.load::<u32>(&offset::TASK_PID) == self.group()
    }

    /// Whether no thread of its group is left.
    #[inline(always)]
    pub(crate) fn is_group_dead(self) -> bool {
        let signal = self.0.follow(&offset::TASK_SIGNAL);
        signal.load::<i32>(&offset::SIGNAL_LIVE) == 0
    }

    /// The thread group's number in the initial pid namespace.
    #[inline(always)]
    pub(crate) fn group(self) -> u32 {
        self.0.load(&offset::TASK_TGID)
    }

    /// The leader of its thread group. It outlives the group's other threads, as a zombie if need
    /// be, and keeps its cgroups until it is reaped.
    #[inline(always)]
    pub(crate) fn leader(self) -> Self {
        Self(self.0.follow(&offset::TASK_GROUP_LEADER))
    }

    #[inline(always)]
    pub(crate) fn real_parent(self) -> Self {
        Self(self.0.follow(&offset::TASK_REAL_PARENT))
    }

    #[inline(always)]
    pub(crate) fn start_boottime(self) -> u64 {
        self.0.load(&offset::TASK_START_BOOTTIME)
    }

    #[inline(always)]
    pub(crate) fn pid_namespace_level(self) -> u32 {
        self.0
            .follow(&offset::TASK_THREAD_PID)
            .load(&offset::PID_LEVEL)
    }

    /// Its cgroup in the v2 hierarchy.
    #[inline(always)]
    pub(crate) fn unified_cgroup(self) -> Cgroup<P> {
        let set = self.0.follow(&offset::TASK_CGROUPS);
        Cgroup(set.follow(&offset::CSS_SET_DFL_CGRP))
    }

    /// Its cgroup under the v1 controller that the agent asked for, if it asked for one. It is in
    /// the v2 hierarchy as long as nobody mounts that controller as v1.
    #[inline(always)]
    pub(crate) fn legacy_cgroup(self) -> Option<Cgroup<P>> {
        let controller = LEGACY_CONTROLLER.load();
        if controller == NO_LEGACY_CONTROLLER {
            return None;
        }
        let set = self.0.follow(&offset::TASK_CGROUPS);
        let entry = offset::CSS_SET_SUBSYS.load() as usize + controller as usize * 8;
        let state = P::at(set.load_at(entry));
        Some(Cgroup(state.follow(&offset::CSS_CGROUP)))
    }

    /// The inode of what it has open under a number. Meant for the running thread: its table of
    /// files is not replaced meanwhile.
    #[inline(always)]
    pub(crate) fn open_inode(self, descriptor: u32) -> Inode<P> {
        let table = self
            .0
            .follow(&offset::TASK_FILES)
            .follow(&offset::FILES_FDT);
        let files: P = table.follow(&offset::FDTABLE_FD);
        let file = P::at(files.load_at(descriptor as usize * 8));
        Inode(file.follow(&offset::FILE_INODE))
    }
}

/// `struct inode`.
#[derive(Clone, Copy)]
pub(crate) struct Inode<P>(P);

impl<P: Pointer> Inode<P> {
    #[inline(always)]
    pub(crate) fn at(address: u64) -> Self {
        Self(P::at(address))
    }

    /// Which device it stands for, as the kernel packs major and minor; 0 if none.
    #[inline(always)]
    pub(crate) fn device(self) -> u32 {
        self.0.load(&offset::INODE_RDEV)
    }

    #[inline(always)]
    pub(crate) fn is_character_device(self) -> bool {
        self.0.load::<u16>(&offset::INODE_MODE) & 0o170_000 == 0o020_000
    }
}

/// `struct pt_regs`: what the running thread had in its registers when it entered the kernel.
#[derive(Clone, Copy)]
pub(crate) struct Registers(Typed);

impl Registers {
    #[inline(always)]
    pub(crate) fn at(address: u64) -> Self {
        Self(Typed::at(address))
    }

    /// The number of the system call. The lower half of the field, where that is 64 bits wide.
    #[inline(always)]
    pub(crate) fn call(self) -> u32 {
        self.0.load(&offset::REGISTERS_CALL)
    }
}

/// `struct cgroup`.
#[derive(Clone, Copy)]
pub(crate) struct Cgroup<P>(P);

impl<P: Pointer> Cgroup<P> {
    #[inline(always)]
    pub(crate) fn at(address: u64) -> Self {
        Self(P::at(address))
    }

    #[inline(always)]
    pub(crate) fn hierarchy(self) -> u32 {
        self.0
            .follow(&offset::CGROUP_ROOT)
            .load(&offset::ROOT_HIERARCHY_ID)
    }

    /// Its kernfs node's number.
    #[inline(always)]
    pub(crate) fn id(self) -> u64 {
        self.0.follow(&offset::CGROUP_KN).load(&offset::KERNFS_ID)
    }

    /// Its place in its hierarchy.
    #[inline(always)]
    pub(crate) fn node(self) -> Node {
        Node(self.0.load(&offset::CGROUP_KN))
    }
}

/// The address of a `struct kernfs_node`: a directory of a cgroup file system.
#[derive(Clone, Copy)]
pub(crate) struct Node(u64);

impl Node {
    #[inline(always)]
    pub(crate) fn at(address: u64) -> Self {
        Self(address)
    }

    #[inline(always)]
    pub(crate) fn address(self) -> u64 {
        self.0
    }

    #[inline(always)]
    pub(crate) fn id(self) -> Option<u64> {
        self.read(&offset::KERNFS_ID)
    }

    /// `Some(None)` at the root of a hierarchy.
    #[inline(always)]
    pub(crate) fn parent(self) -> Option<Option<Self>> {
        let parent: u64 = self.read(&offset::KERNFS_PARENT)?;
        Some((parent != 0).then_some(Self(parent)))
    }

    /// Where its name is, in the kernel.
    #[inline(always)]
    pub(crate) fn name(self) -> Option<u64> {
        self.read(&offset::KERNFS_NAME)
    }

    #[inline(always)]
    fn read(self, offset: &Global<u32>) -> Option<u64> {
        // SAFETY: the helper takes any address and reports one that it cannot read.
        unsafe { bpf_probe_read_kernel((self.0 + offset.load() as u64) as *const u64) }.ok()
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
