//! The eBPF object itself: how it is loaded, attached, and its maps taken.

use std::time::Duration;

use aya::maps::{Array, Map, MapData, MapError, PerCpuArray, RingBuf};
use aya::programs::BtfTracePoint;
use aya::{Btf, Ebpf, EbpfLoader};
use aya_log::EbpfLogger;
use gpuacct_common::event::UNIFIED_HIERARCHY;
use gpuacct_common::global::{
    COUNTERS, DEVICE_MAJORS, EVENTS, GENERATION, LEGACY_CONTROLLER, LEGACY_HIERARCHY,
    NO_LEGACY_CONTROLLER, OPEN_CALLS, WAKE_AT_BYTES,
};

use super::error::{KernelError, refused};
use super::layout::{Kernel, TRACEPOINTS};
use super::opens;
use super::stream::{Maps, ObjectLog, PERIOD};
use crate::config;

/// aya-log's own ring, which it makes 128 KiB large: a message is at most 8 KiB.
const LOG_RING: &str = "AYA_LOGS";

const LOG_RING_BYTES: u32 = 16 * 1024;

/// The eBPF object that this binary carries; empty in a build without the eBPF toolchain.
#[must_use]
pub fn embedded_object() -> &'static [u8] {
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/gpuacct.bpf.o"))
}

/// How the object is loaded.
#[derive(Clone, Debug)]
pub struct KernelConfig {
    /// Size of the ring in bytes: a power of two, and whole pages. One MiB holds 13,000 events of
    /// processes, and costs twice that of resident memory, since the kernel maps it twice.
    pub ring_bytes: u32,
    /// The object.
    pub object: &'static [u8],
    /// Which devices' opens are reported.
    pub watch: opens::Watch,
    /// How often the ring is drained if nothing asks for it earlier.
    pub period: Duration,
}

impl Default for KernelConfig {
    fn default() -> Self {
        Self {
            ring_bytes: 1 << 20,
            object: embedded_object(),
            watch: opens::Watch::default(),
            period: PERIOD,
        }
    }
}

impl From<&config::Kernel> for KernelConfig {
    fn from(section: &config::Kernel) -> Self {
        Self {
            ring_bytes: section.ring_bytes,
            watch: opens::Watch {
                names: section.devices.clone(),
                ..opens::Watch::default()
            },
            ..Self::default()
        }
    }
}

/// Loads the object with what it must know of the kernel.
pub(super) fn load_object(kernel: &Kernel, config: &KernelConfig) -> Result<Ebpf, KernelError> {
    let (controller, hierarchy) = match &kernel.legacy {
        Some(legacy) => (legacy.index, legacy.mounted.hierarchy),
        None => (NO_LEGACY_CONTROLLER, UNIFIED_HIERARCHY),
    };
    let wake_at_bytes = u64::from(config.ring_bytes / 4);
    let mut loader = EbpfLoader::new();
    loader
        // The object has no relocation that needs the kernel's types.
        .btf(None)
        .map_max_entries(EVENTS, config.ring_bytes)
        .map_max_entries(LOG_RING, LOG_RING_BYTES)
        .override_global(LEGACY_CONTROLLER, &controller, true)
        .override_global(LEGACY_HIERARCHY, &hierarchy, true)
        .override_global(WAKE_AT_BYTES, &wake_at_bytes, true);
    let (majors, calls) = (config.watch.majors(), opens::open_calls());
    let numbers = DEVICE_MAJORS.iter().zip(&majors);
    for (global, number) in numbers.chain(OPEN_CALLS.iter().zip(&calls)) {
        loader.override_global(global, number, true);
    }
    let open_offsets = kernel.open_offsets.iter().flatten();
    for (global, offset) in kernel.offsets.iter().chain(open_offsets) {
        loader.override_global(global, offset, true);
    }
    loader.load(config.object).map_err(|error| {
        refused("make the eBPF object's maps", error, |error| {
            KernelError::Load(Box::new(error))
        })
    })
}

/// Attaches what the agent cannot do without.
pub(super) fn attach(object: &mut Ebpf, types: &Btf) -> Result<(), KernelError> {
    TRACEPOINTS
        .into_iter()
        .try_for_each(|tracepoint| attach_to(object, tracepoint, types))
}

/// Loads one program and attaches it to the tracepoint that it is called after.
pub(super) fn attach_to(
    object: &mut Ebpf,
    tracepoint: &'static str,
    types: &Btf,
) -> Result<(), KernelError> {
    let program: &mut BtfTracePoint = object
        .program_mut(tracepoint)
        .and_then(|program| program.try_into().ok())
        .ok_or(KernelError::Foreign {
            what: "program",
            name: tracepoint,
        })?;
    program
        .load(tracepoint, types)
        .and_then(|()| program.attach().map(drop))
        .map_err(|error| {
            refused(&format!("attach to `{tracepoint}`"), error, |error| {
                KernelError::Attach {
                    tracepoint,
                    source: Box::new(error),
                }
            })
        })
}

/// Takes the maps that the thread reads.
pub(super) fn take_maps(object: &mut Ebpf) -> Result<Maps, KernelError> {
    fn take<T>(object: &mut Ebpf, name: &'static str) -> Result<T, KernelError>
    where
        T: TryFrom<Map, Error = MapError>,
    {
        let map = object
            .take_map(name)
            .ok_or(KernelError::Foreign { what: "map", name })?;
        T::try_from(map).map_err(|source| KernelError::Map {
            name,
            source: Box::new(source),
        })
    }
    Ok(Maps {
        ring: take::<RingBuf<MapData>>(object, EVENTS)?,
        counters: take::<PerCpuArray<MapData, _>>(object, COUNTERS)?,
        generation: take::<Array<MapData, u64>>(object, GENERATION)?,
        log: EbpfLogger::init_with_logger(object, ObjectLog).map_err(|_| KernelError::Foreign {
            what: "map",
            name: LOG_RING,
        })?,
    })
}

/// Looking through the kernel's types leaves the allocator with tens of megabytes that it would
/// keep for the life of the agent.
pub(super) fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    #[allow(
        unsafe_code,
        reason = "the allocator can be asked for this in no other way"
    )]
    // SAFETY: malloc_trim takes a number, touches only memory that is free, and is thread-safe.
    unsafe {
        libc::malloc_trim(0);
    }
}
