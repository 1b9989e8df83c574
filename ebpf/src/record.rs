//! How a record is headed and handed over.

use aya_ebpf::helpers::{bpf_get_smp_processor_id, bpf_ktime_get_boot_ns};
use gpuacct_common::event::Header;

use crate::maps::{self, EVENTS, Urgency};

/// Whether there was room for it.
#[inline(always)]
pub(crate) fn submit<T: 'static>(record: &T, urgency: Urgency) -> bool {
    EVENTS
        .output::<T>(record, maps::submit_flags(urgency))
        .is_ok()
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
