//! Opens of devices: a process may be about to use a GPU.
//!
//! A GPU is used through its device nodes, and whoever uses one opens some first. That says neither
//! that it was used (monitors open them, too) nor by how much: the agent takes it as a trigger to
//! read the GPUs' process lists, and as a bound on what a process too short for any sample can have
//! used. What it does not see: descriptors that were inherited or sent, and, where the system calls
//! are watched, opens by io_uring and by 32-bit programs. On a preemptible kernel the function's
//! hook misses an open that comes while another one's report is preempted on the same CPU.
//!
//! An open that fails is not reported.

use aya_ebpf::programs::TracePointContext;
use aya_ebpf::{EbpfContext as _, Global};
use gpuacct_common::counter::OPEN;
use gpuacct_common::event::{KIND_OPEN, OpenRecord};
use gpuacct_common::global::{NO_CALL, NO_MAJOR};

use crate::kernel::{Registers, Task};
use crate::maps::{self, Urgency};
use crate::process;
use crate::record;

/// `MINORBITS` of `include/linux/kdev_t.h`: the kernel's own packing, which user space never sees.
const MINOR_BITS: u32 = 20;
/// Where a system call's tracepoint has its answer, in bytes.
const ANSWER: usize = 16;

macro_rules! globals {
    ($($name:ident = $none:expr, $doc:literal;)+) => {
        $(
            #[doc = $doc]
            #[unsafe(no_mangle)]
            static $name: Global<u32> = Global::new($none);
        )+
    };
}
globals! {
    DEVICE_MAJOR_0 = NO_MAJOR, "See [`gpuacct_common::global::DEVICE_MAJORS`].";
    DEVICE_MAJOR_1 = NO_MAJOR, "As above.";
    DEVICE_MAJOR_2 = NO_MAJOR, "As above.";
    DEVICE_MAJOR_3 = NO_MAJOR, "As above.";
    CALL_OPEN = NO_CALL, "See [`gpuacct_common::global::OPEN_CALLS`].";
    CALL_OPENAT = NO_CALL, "As above.";
    CALL_OPENAT2 = NO_CALL, "As above.";
}

/// Whether opens of this device are reported.
#[inline(always)]
pub(crate) fn is_watched(device: u32) -> bool {
    let major = device >> MINOR_BITS;
    major != NO_MAJOR
        && (major == DEVICE_MAJOR_0.load()
            || major == DEVICE_MAJOR_1.load()
            || major == DEVICE_MAJOR_2.load()
            || major == DEVICE_MAJOR_3.load())
}

/// Reports that the running thread has opened a device. The agent is woken: the process may be gone
/// before it comes by itself, and the driver lists only processes that live.
#[inline(always)]
pub(crate) fn report(device: u32) {
    let leader = Task::current().leader();
    let (unified, legacy) = process::announce_cgroups(OPEN, leader);
    let seen = maps::seen(OPEN);
    let record = OpenRecord {
        process: process::record(KIND_OPEN, size_of::<OpenRecord>(), leader, unified, legacy),
        major: device >> MINOR_BITS,
        minor: device & ((1 << MINOR_BITS) - 1),
    };
    seen.ended(record::submit(&record, Urgency::Wakes));
}

/// The running thread has returned from a system call with `answer`. Every call of every program
/// comes here, and most are told by their number alone.
#[inline(always)]
pub(crate) fn after_call(registers: Registers, answer: i64) {
    let call = registers.call();
    if call == CALL_OPENAT.load() || call == CALL_OPEN.load() || call == CALL_OPENAT2.load() {
        opened(answer);
    }
}

/// The running thread has returned from a system call that opens a file.
#[inline(always)]
pub(crate) fn after_open(ctx: &TracePointContext) {
    // SAFETY: the verifier knows how long the context is; its answer is there on every kernel:
    // `struct syscall_tp_t` of kernel/trace/trace_syscalls.c has it after the event's common
    // header and the call's number.
    let answer = unsafe { ctx.as_ptr().byte_add(ANSWER).cast::<i64>().read_volatile() };
    opened(answer);
}

/// Of files that are no device only the inode is looked up.
#[inline(always)]
fn opened(answer: i64) {
    let Ok(descriptor) = u32::try_from(answer) else {
        return;
    };
    let inode = Task::current().open_inode(descriptor);
    let device = inode.device();
    if is_watched(device) && inode.is_character_device() {
        report(device);
    }
}
