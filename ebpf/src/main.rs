//! gpuacct's eBPF object: it reports to the agent every process that forks, execs, exits, changes
//! its cgroup or opens a GPU, and the names of those cgroups.
//!
//! It filters, copies and submits, and decides nothing: which process is a container's, and who
//! pays, is the agent's to say. It names no helper and no instruction that Linux 5.8 lacks, and
//! reads the kernel's structures by offsets that the agent takes from the kernel's own BTF.
//!
//! A record that a container may begin with wakes the agent: a process enters a cgroup, by a move or
//! by its birth, or opens a GPU. All others wait until the agent comes by itself.
//!
//! Each function here is one attach point. Times are nanoseconds of the boot clock.

#![no_std]
#![no_main]

mod cgroup;
mod device;
mod kernel;
mod maps;
mod process;
mod record;

use aya_ebpf::Global;
use aya_ebpf::macros::{btf_tracepoint, fexit, tracepoint};
use aya_ebpf::programs::{BtfTracePointContext, FExitContext, TracePointContext};
use gpuacct_common::counter;
use gpuacct_common::event::{KIND_ATTACH, KIND_EXEC, KIND_EXIT, KIND_FORK, UNIFIED_HIERARCHY};

use crate::kernel::{Cgroup, Inode, Registers, Task, Typed, reference};
use crate::maps::Urgency;

/// See [`gpuacct_common::global::LEGACY_HIERARCHY`].
#[unsafe(no_mangle)]
static LEGACY_HIERARCHY: Global<u32> = Global::new(UNIFIED_HIERARCHY);

/// `TP_PROTO(struct task_struct *parent, struct task_struct *child)`; the child is complete, its
/// cgroup included (`clone3` can put it into another than its parent's), and has not run yet.
#[btf_tracepoint(function = "sched_process_fork")]
fn sched_process_fork(ctx: BtfTracePointContext) -> i32 {
    let child = Task::<Typed>::at(ctx.arg(1));
    // A new thread of an existing process is not reported.
    if child.is_leader() {
        // `clone3` knows only cgroups of v2.
        let parents = Task::<Typed>::at(ctx.arg(0)).unified_cgroup().id();
        let urgency = if child.unified_cgroup().id() == parents {
            Urgency::CanWait
        } else {
            Urgency::Wakes
        };
        process::report(counter::FORK, KIND_FORK, child, urgency);
    }
    0
}

/// `TP_PROTO(struct task_struct *p, pid_t old_pid, struct linux_binprm *bprm)`; `p` is the leader
/// now, whichever thread it was, and has the leader's pid and start time.
#[btf_tracepoint(function = "sched_process_exec")]
fn sched_process_exec(ctx: BtfTracePointContext) -> i32 {
    let task = Task::<Typed>::at(ctx.arg(0));
    process::report(counter::EXEC, KIND_EXEC, task, Urgency::CanWait);
    0
}

/// `TP_PROTO(struct task_struct *p, …)`; the kernel took `p` off `signal->live` before. Two threads
/// that end at once may both find it at 0: the agent applies the event idempotently.
#[btf_tracepoint(function = "sched_process_exit")]
fn sched_process_exit(ctx: BtfTracePointContext) -> i32 {
    let task = Task::<Typed>::at(ctx.arg(0));
    if task.is_group_dead() {
        process::report(counter::EXIT, KIND_EXIT, task, Urgency::CanWait);
    }
    0
}

/// `TP_PROTO(struct cgroup *cgrp, const char *path)`. A container runtime makes one in every
/// hierarchy; two of them are reported.
#[btf_tracepoint(function = "cgroup_mkdir")]
fn cgroup_mkdir(ctx: BtfTracePointContext) -> i32 {
    let made = Cgroup::<Typed>::at(ctx.arg(0));
    let hierarchy = made.hierarchy();
    if is_reported(hierarchy) {
        cgroup::announce(counter::MKDIR, reference(hierarchy, made.id()), made);
    }
    0
}

/// `TP_PROTO(struct cgroup *cgrp, const char *path)`. The directory is gone, its node is not yet:
/// the cgroup holds it.
#[btf_tracepoint(function = "cgroup_rmdir")]
fn cgroup_rmdir(ctx: BtfTracePointContext) -> i32 {
    let removed = Cgroup::<Typed>::at(ctx.arg(0));
    let hierarchy = removed.hierarchy();
    if is_reported(hierarchy) {
        cgroup::report_removed(counter::RMDIR, reference(hierarchy, removed.id()));
    }
    0
}

/// `TP_PROTO(struct cgroup *dst_cgrp, const char *path, struct task_struct *task, bool
/// threadgroup)`; the move is done. What is reported is where the process is now, in the hierarchies
/// that are reported, not merely `dst_cgrp`. A move in another hierarchy is reported as well: the
/// agent may have to look in `/proc` for where it led, as long as the process lives.
#[btf_tracepoint(function = "cgroup_attach_task")]
fn cgroup_attach_task(ctx: BtfTracePointContext) -> i32 {
    let task = Task::<Typed>::at(ctx.arg(2));
    let whole_group = ctx.arg::<u64>(3) & 0xff != 0;
    // A lone thread can be elsewhere than its process; the process is where its leader is.
    if whole_group || task.is_leader() {
        process::report(counter::ATTACH, KIND_ATTACH, task, Urgency::Wakes);
    }
    0
}

/// `static int chrdev_open(struct inode *inode, struct file *filp)`, which every open of every
/// character device goes through, whoever asks for it and however. The answer is what comes after
/// the arguments, and is 0 for "open".
#[fexit(function = "chrdev_open")]
fn chrdev_open(ctx: FExitContext) -> i32 {
    let device = Inode::<Typed>::at(ctx.arg(0)).device();
    if ctx.arg::<i32>(2) == 0 && device::is_watched(device) {
        device::report(device);
    }
    0
}

/// For kernels that do not let the agent have [`chrdev_open`], as the two after it: every call that
/// opens a file by its name.
#[tracepoint(category = "syscalls", name = "sys_exit_openat")]
fn sys_exit_openat(ctx: TracePointContext) -> i32 {
    device::after_open(&ctx);
    0
}

/// See [`sys_exit_openat`].
#[tracepoint(category = "syscalls", name = "sys_exit_openat2")]
fn sys_exit_openat2(ctx: TracePointContext) -> i32 {
    device::after_open(&ctx);
    0
}

/// See [`sys_exit_openat`]. Newer architectures have no such call.
#[tracepoint(category = "syscalls", name = "sys_exit_open")]
fn sys_exit_open(ctx: TracePointContext) -> i32 {
    device::after_open(&ctx);
    0
}

/// `TP_PROTO(struct pt_regs *regs, long ret)`; where there is no tracefs to find
/// [`sys_exit_openat`] with.
#[btf_tracepoint(function = "sys_exit")]
fn sys_exit(ctx: BtfTracePointContext) -> i32 {
    device::after_call(Registers::at(ctx.arg(0)), ctx.arg(1));
    0
}

/// Whether a hierarchy is one of those that are reported: v2's, and the one in which the legacy
/// controller is mounted.
#[inline(always)]
fn is_reported(hierarchy: u32) -> bool {
    hierarchy == UNIFIED_HIERARCHY || hierarchy == LEGACY_HIERARCHY.load()
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier refuses an object in which this can be reached.
    loop {}
}

/// The kernel lets a program call helpers such as `bpf_probe_read_kernel` and `bpf_ringbuf_output`
/// only if it declares a licence compatible with the GPL.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
