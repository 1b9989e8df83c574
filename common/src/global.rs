//! Parameters that the agent sets in the object before it is loaded: names of maps and read-only
//! globals, and the kernel's fields whose offsets go into them.
//!
//! Rust's eBPF has no CO-RE relocations. The agent looks the offsets up in the running kernel's BTF
//! and writes them into the object's read-only globals; the verifier sees constants.

/// The ring that carries the records.
pub const EVENTS: &str = "EVENTS";
/// The per-CPU counters, see [`crate::counter`].
pub const COUNTERS: &str = "COUNTERS";
/// Which cgroups have been announced, and in which generation.
pub const ANNOUNCED: &str = "ANNOUNCED";
/// One `u64`: an announcement made under another generation is void.
pub const GENERATION: &str = "GENERATION";
/// The index of the v1 controller whose cgroup is reported in `css_set.subsys`.
pub const LEGACY_CONTROLLER: &str = "LEGACY_CONTROLLER";
/// The value of [`LEGACY_CONTROLLER`] that asks for none.
pub const NO_LEGACY_CONTROLLER: u32 = u32::MAX;
/// The hierarchy that the controller is mounted in; [`crate::event::UNIFIED_HIERARCHY`] for none.
pub const LEGACY_HIERARCHY: &str = "LEGACY_HIERARCHY";
/// How many bytes may wait in the ring before a record wakes the agent.
pub const WAKE_AT_BYTES: &str = "WAKE_AT_BYTES";
/// Major numbers of the character devices whose opens are reported; [`NO_MAJOR`] is none.
pub const DEVICE_MAJORS: [&str; 4] = [
    "DEVICE_MAJOR_0",
    "DEVICE_MAJOR_1",
    "DEVICE_MAJOR_2",
    "DEVICE_MAJOR_3",
];
/// The kernel gives no device this major number.
pub const NO_MAJOR: u32 = 0;
/// The numbers of the system calls that open a file by its name, where the architecture has them.
pub const OPEN_CALLS: [&str; 3] = ["CALL_OPEN", "CALL_OPENAT", "CALL_OPENAT2"];
/// "The architecture has no such call".
pub const NO_CALL: u32 = u32::MAX;
/// How many levels up the hierarchy a cgroup that is not announced yet is followed. The verifier
/// follows every one of them, so the bound is one on the time that loading takes.
pub const MAX_CGROUP_WALK: usize = 256;

/// Calls `$apply!` with every field of the kernel that the object reads: the global that holds its
/// offset, its struct, and its names, the newest first.
///
/// ```text
/// TASK_PID = "task_struct", ["pid"];
/// ```
///
/// The object declares its globals from this table and the agent fills them from it, so neither can
/// know a field that the other does not.
#[macro_export]
macro_rules! for_each_kernel_field {
    ($apply:ident) => {
        $apply! {
            TASK_PID = "task_struct", ["pid"];
            TASK_TGID = "task_struct", ["tgid"];
            TASK_GROUP_LEADER = "task_struct", ["group_leader"];
            TASK_REAL_PARENT = "task_struct", ["real_parent"];
            TASK_SIGNAL = "task_struct", ["signal"];
            TASK_START_BOOTTIME = "task_struct", ["start_boottime"];
            TASK_CGROUPS = "task_struct", ["cgroups"];
            TASK_THREAD_PID = "task_struct", ["thread_pid"];
            PID_LEVEL = "pid", ["level"];
            SIGNAL_LIVE = "signal_struct", ["live"];
            CSS_SET_DFL_CGRP = "css_set", ["dfl_cgrp"];
            CSS_SET_SUBSYS = "css_set", ["subsys"];
            CSS_CGROUP = "cgroup_subsys_state", ["cgroup"];
            CGROUP_KN = "cgroup", ["kn"];
            CGROUP_ROOT = "cgroup", ["root"];
            ROOT_HIERARCHY_ID = "cgroup_root", ["hierarchy_id"];
            KERNFS_ID = "kernfs_node", ["id"];
            KERNFS_NAME = "kernfs_node", ["name"];
            KERNFS_PARENT = "kernfs_node", ["__parent", "parent"];
        }
    };
}

/// As [`for_each_kernel_field`], for what only the programs read that report opens of devices: a
/// kernel that lacks one of these loses those programs and nothing else.
#[macro_export]
macro_rules! for_each_open_field {
    ($apply:ident) => {
        $apply! {
            TASK_FILES = "task_struct", ["files"];
            FILES_FDT = "files_struct", ["fdt"];
            FDTABLE_FD = "fdtable", ["fd"];
            FILE_INODE = "file", ["f_inode"];
            INODE_RDEV = "inode", ["i_rdev"];
            INODE_MODE = "inode", ["i_mode"];
            REGISTERS_CALL = "pt_regs", ["orig_ax", "syscallno"];
        }
    };
}
