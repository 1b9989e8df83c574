//! The object's maps, and the arithmetic of its counters.

use aya_ebpf::Global;
use aya_ebpf::bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, LruHashMap, PerCpuArray, RingBuf};
use gpuacct_common::counter::{self, LOST, SEEN, SLOTS, SUBMITTED};
use gpuacct_common::event::CgroupRef;

/// The records. The agent sets its size.
#[map]
pub(crate) static EVENTS: RingBuf = RingBuf::with_byte_size(4096, 0);

/// What became of the records.
#[map]
static COUNTERS: PerCpuArray<[u64; SLOTS]> = PerCpuArray::with_max_entries(1, 0);

/// Cgroups that were announced to the agent, with the generation in which that was. A full cache
/// forgets the one that was used least recently, which is then announced again.
#[map]
pub(crate) static ANNOUNCED: LruHashMap<CgroupRef, u64> = LruHashMap::with_max_entries(8192, 0);

/// The generation that counts; the agent raises it when records were lost.
#[map]
static GENERATION: Array<u64> = Array::with_max_entries(1, 0);

/// How many cgroups are announced at one event: the last that a walk passed.
pub(crate) const STEP: usize = 32;

/// The way from a cgroup up to the first ancestor that has been announced, as far as there is room:
/// its highest part.
#[repr(C)]
pub(crate) struct Walk {
    /// Addresses of kernfs nodes. The walk's n-th is at n modulo the length.
    pub(crate) nodes: [u64; STEP],
    /// How many nodes the walk has passed.
    pub(crate) len: u64,
}

/// Where a walk up the hierarchy keeps its way, one for each attach point (see
/// [`gpuacct_common::counter`] on why): the stack has 512 bytes and no room for it.
#[map]
pub(crate) static WALKS: PerCpuArray<Walk> =
    PerCpuArray::with_max_entries(counter::ATTACH_POINTS as u32, 0);

/// See [`gpuacct_common::global::WAKE_AT_BYTES`].
#[unsafe(no_mangle)]
static WAKE_AT_BYTES: Global<u64> = Global::new(0);

/// The generation under which an announcement made now is valid.
#[inline(always)]
pub(crate) fn generation() -> u64 {
    GENERATION.get(0).copied().unwrap_or(0)
}

/// A record that has been counted as seen. It must be submitted or counted as lost.
pub(crate) struct Seen(u32);

/// Counts a record that `attach_point` is about to make.
#[inline(always)]
pub(crate) fn seen(attach_point: u32) -> Seen {
    add(attach_point, SEEN);
    Seen(attach_point)
}

impl Seen {
    #[inline(always)]
    pub(crate) fn ended(self, submitted: bool) {
        add(self.0, if submitted { SUBMITTED } else { LOST });
    }
}

/// Fetching atomics came with 5.12 and are not needed: see [`gpuacct_common::counter`].
#[inline(always)]
fn add(attach_point: u32, counter: usize) {
    if let Some(counters) = COUNTERS.get_ptr_mut(0) {
        // SAFETY: the map's value is this array, the slot is a constant inside it, and the slot is
        // this CPU's and this attach point's alone.
        unsafe { (*counters)[counter::slot(attach_point, counter)] += 1 };
    }
}

/// Whether a record may wait in the ring.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Urgency {
    /// Until the agent comes by itself, which it does twice a second.
    CanWait,
    /// The agent is woken, so that it knows of it within some milliseconds.
    Wakes,
}

/// How a record is to be submitted. A wake-up for each would cost a busy node a tenth of its forks,
/// so the agent comes by itself, and is woken only for an urgent record, or when a part of the ring
/// that is worth it has filled up. The kernel's own default would not do: it wakes a reader who had
/// read everything, and this one has not.
///
/// The agent bounds what a storm of urgent records costs it. Here each costs a raised interrupt, on
/// the CPU of whoever caused it, and only once while that interrupt is pending.
#[inline(always)]
pub(crate) fn submit_flags(urgency: Urgency) -> u64 {
    if urgency == Urgency::Wakes || EVENTS.query(BPF_RB_AVAIL_DATA as u64) >= WAKE_AT_BYTES.load() {
        BPF_RB_FORCE_WAKEUP as u64
    } else {
        BPF_RB_NO_WAKEUP as u64
    }
}
