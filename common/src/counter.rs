//! Where the object counts: one array of `u64` per CPU, three counters for each attach point.
//!
//! An attach point has counters of its own, since the kernel keeps a program from interrupting
//! itself on one CPU and says nothing of two programs: with a slot each, a plain add can never lose
//! another's. An announcement of a cgroup counts at the attach point that made it.
//!
//! At rest, and for each attach point, `seen = submitted + lost`.

/// `sched_process_fork`.
pub const FORK: u32 = 0;
/// `sched_process_exec`.
pub const EXEC: u32 = 1;
/// `sched_process_exit`.
pub const EXIT: u32 = 2;
/// `cgroup_mkdir`.
pub const MKDIR: u32 = 3;
/// `cgroup_attach_task`.
pub const ATTACH: u32 = 4;
/// Opens of devices, by whichever hook the kernel lets the agent have: never two. Those on the calls
/// that open files run with preemption disabled at the end of a call, and so one at a time.
pub const OPEN: u32 = 5;
/// `cgroup_rmdir`.
pub const RMDIR: u32 = 6;
/// How many attach points there are.
pub const ATTACH_POINTS: usize = 7;

/// A record that was wanted. Counted before its time is taken, so that a reader who has seen a
/// time also sees the count.
pub const SEEN: usize = 0;
/// A record that reached the ring.
pub const SUBMITTED: usize = 1;
/// A record that did not: no room in the ring, or a field that could not be read.
pub const LOST: usize = 2;
/// How many counters an attach point has.
pub const COUNTERS: usize = 3;

/// The length of one CPU's array.
pub const SLOTS: usize = ATTACH_POINTS * COUNTERS;

/// The place of a counter of an attach point.
#[must_use]
pub const fn slot(attach_point: u32, counter: usize) -> usize {
    attach_point as usize * COUNTERS + counter
}

const _: () = assert!(slot(RMDIR, LOST) == SLOTS - 1);
