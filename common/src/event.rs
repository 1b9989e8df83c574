//! The records in the ring: one struct per shape, each behind the same [`Header`].
//!
//! A record is as long as its kind needs and no longer: a union of all kinds would make the ring
//! hold a quarter of the events. No field is a `bool`, an `enum`, an `Option` or a `usize`, and all
//! padding has a name, so that every byte of a record is written by the object and may hold any
//! value when it is read.

/// A thread group was born.
pub const KIND_FORK: u16 = 1;
/// A process replaced its image.
pub const KIND_EXEC: u16 = 2;
/// The last thread of a process is out.
pub const KIND_EXIT: u16 = 3;
/// A process was moved to another cgroup.
pub const KIND_ATTACH: u16 = 4;
/// A cgroup's name and place.
pub const KIND_CGROUP: u16 = 5;

/// A process opened a device that is watched, and got it.
pub const KIND_OPEN: u16 = 6;

/// A cgroup was removed.
pub const KIND_CGROUP_REMOVED: u16 = 7;

/// The cgroup has no parent: it is the root of its hierarchy.
pub const CGROUP_ROOT: u32 = 1 << 0;

/// Room for a cgroup's name: `NAME_MAX` of the kernel's file systems, and its closing zero.
pub const CGROUP_NAME_BYTES: usize = 256;

/// The hierarchy number of cgroup v2; in [`ProcessRecord::legacy`] it says that there is no v1
/// cgroup to report.
pub const UNIFIED_HIERARCHY: u32 = 0;

/// What every record begins with.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// One of the `KIND_` constants.
    pub kind: u16,
    /// Length of the whole record in bytes, this header included.
    pub size: u16,
    /// The CPU that wrote it. A CPU's records are in order; those of two CPUs need not be.
    pub cpu: u32,
    /// When the event happened.
    pub at_ns: u64,
}

/// A cgroup as the kernel numbers it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CgroupRef {
    /// `cgroup_root.hierarchy_id`; [`UNIFIED_HIERARCHY`] for cgroup v2.
    pub hierarchy: u32,
    /// Zero; keeps `id` aligned.
    pub reserved: u32,
    /// `kernfs_node.id`, which is the inode number of the cgroup's directory.
    pub id: u64,
}

/// [`KIND_FORK`], [`KIND_EXEC`], [`KIND_EXIT`], [`KIND_ATTACH`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessRecord {
    /// What, where and when.
    pub header: Header,
    /// The thread group, in the initial pid namespace.
    pub pid: u32,
    /// The real parent's thread group, in the initial pid namespace.
    pub parent: u32,
    /// `start_boottime` of the thread group's leader.
    pub start_ns: u64,
    /// Depth of the process's pid namespace; 0 is the initial one.
    pub pid_namespace_level: u32,
    /// Zero; keeps what follows aligned.
    pub reserved: u32,
    /// The cgroup in the v2 hierarchy; its root where v2 is not in use.
    pub unified: CgroupRef,
    /// The cgroup of the v1 controller that the agent asked for; hierarchy
    /// [`UNIFIED_HIERARCHY`] where there is none.
    pub legacy: CgroupRef,
}

/// [`KIND_OPEN`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenRecord {
    /// Who, where and when. A thread's open is its process's.
    pub process: ProcessRecord,
    /// The device's major number.
    pub major: u32,
    /// Its minor number.
    pub minor: u32,
}

/// [`KIND_CGROUP`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CgroupRecord {
    /// What, where and when.
    pub header: Header,
    /// Which cgroup.
    pub cgroup: CgroupRef,
    /// The kernfs id of its parent, in the same hierarchy; 0 for a root.
    pub parent_id: u64,
    /// [`CGROUP_ROOT`]; other bits are zero.
    pub flags: u32,
    /// Bytes of `name` that are in use, without the closing zero.
    pub name_len: u32,
    /// The last component of its path. What follows `name_len` bytes has no meaning.
    pub name: [u8; CGROUP_NAME_BYTES],
}

/// [`KIND_CGROUP_REMOVED`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CgroupRemovedRecord {
    /// What, where and when.
    pub header: Header,
    /// Which cgroup.
    pub cgroup: CgroupRef,
}

// The layout is a contract with records that another build may have written: any change to it must
// be made here, on purpose.
const _: () = {
    use core::mem::{align_of, offset_of, size_of};

    assert!(size_of::<Header>() == 16);
    assert!(offset_of!(Header, size) == 2);
    assert!(offset_of!(Header, cpu) == 4);
    assert!(offset_of!(Header, at_ns) == 8);

    assert!(size_of::<CgroupRef>() == 16);
    assert!(offset_of!(CgroupRef, reserved) == 4);
    assert!(offset_of!(CgroupRef, id) == 8);

    assert!(size_of::<ProcessRecord>() == 72);
    assert!(align_of::<ProcessRecord>() == 8);
    assert!(offset_of!(ProcessRecord, pid) == 16);
    assert!(offset_of!(ProcessRecord, parent) == 20);
    assert!(offset_of!(ProcessRecord, start_ns) == 24);
    assert!(offset_of!(ProcessRecord, pid_namespace_level) == 32);
    assert!(offset_of!(ProcessRecord, reserved) == 36);
    assert!(offset_of!(ProcessRecord, unified) == 40);
    assert!(offset_of!(ProcessRecord, legacy) == 56);

    assert!(size_of::<OpenRecord>() == 80);
    assert!(align_of::<OpenRecord>() == 8);
    assert!(offset_of!(OpenRecord, process) == 0);
    assert!(offset_of!(OpenRecord, major) == 72);
    assert!(offset_of!(OpenRecord, minor) == 76);

    assert!(size_of::<CgroupRecord>() == 304);
    assert!(align_of::<CgroupRecord>() == 8);
    assert!(offset_of!(CgroupRecord, cgroup) == 16);
    assert!(offset_of!(CgroupRecord, parent_id) == 32);
    assert!(offset_of!(CgroupRecord, flags) == 40);
    assert!(offset_of!(CgroupRecord, name_len) == 44);
    assert!(offset_of!(CgroupRecord, name) == 48);

    assert!(size_of::<CgroupRemovedRecord>() == 32);
    assert!(offset_of!(CgroupRemovedRecord, cgroup) == 16);
};
