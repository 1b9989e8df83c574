//! The eBPF object: what the kernel says of processes and cgroups, as it happens.
//!
//! [`KernelSource::load`] finds out what the running kernel looks like, loads the embedded object
//! with that knowledge, attaches it and starts a thread that drains its ring. From then on batches
//! arrive on a bounded channel; whoever receives them should scan `/proc` only now, so that no
//! process falls between the scan and the first event.
//!
//! # What it refuses
//!
//! To run without the object: there is no poorer mode behind it. What is missing (BTF, a
//! capability, a tracepoint, a newer kernel, the object itself) is an error that names it. A limit
//! on locked memory that cannot be raised is none: it matters only before Linux 5.11, and the
//! kernel says so itself.
//!
//! # Memory
//!
//! Looking up the kernel's types takes some tens of megabytes for some tens of milliseconds, all of
//! which are given back before `load` returns.

pub mod btf;
pub mod decode;
pub mod opens;
mod skipped;
mod stream;
pub mod trial;

use std::error::Error as StdError;
use std::{fs, io, thread};

use aya::maps::{Array, Map, MapData, MapError, PerCpuArray, RingBuf};
use aya::programs::{BtfTracePoint, ProgramError};
use aya::{Btf, Ebpf, EbpfError, EbpfLoader};
use aya_log::EbpfLogger;
use gpuacct_common::event::UNIFIED_HIERARCHY;
use gpuacct_common::global::{
    COUNTERS, DEVICE_MAJORS, EVENTS, GENERATION, LEGACY_CONTROLLER, LEGACY_HIERARCHY,
    NO_LEGACY_CONTROLLER, OPEN_CALLS, WAKE_AT_BYTES,
};
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::thread::CapabilitySet;
use thiserror::Error;
use tokio::sync::mpsc;
use tracing::{debug, info};

use crate::core::input::{EventCounters, KernelBatch};

use self::btf::{BtfError, KernelTypes};
use self::opens::Opens;
use self::skipped::Skipped;
use self::stream::{Maps, ObjectLog, Shared, Stream};

/// Where the kernel describes its types.
const KERNEL_BTF: &str = "/sys/kernel/btf/vmlinux";
/// Where the kernel lists its v1 controllers.
const PROC_CGROUPS: &str = "/proc/cgroups";
/// The oldest kernel that has what the object is made of: the ring buffer and the boot clock.
const OLDEST_KERNEL: (u32, u32) = (5, 8);
/// The object's functions, which are called after what they are attached to.
const TRACEPOINTS: [&str; 5] = [
    "sched_process_fork",
    "sched_process_exec",
    "sched_process_exit",
    "cgroup_mkdir",
    "cgroup_attach_task",
];
/// Those that the agent does without where the kernel refuses them. Without `cgroup_rmdir` its table
/// of cgroups keeps removed ones until it is full.
const OPTIONAL_TRACEPOINTS: [&str; 1] = ["cgroup_rmdir"];
/// The v1 controllers in whose hierarchy a container or a batch job is looked for, the best first:
/// the one that every runtime and most schedulers use, then those that keep jobs off each other's
/// devices, and those that runtimes use beside them. Schedulers do not use pids: a job's processes
/// are in the daemon's cgroup there.
const LEGACY_CONTROLLERS: [&str; 7] = [
    "memory", "devices", "freezer", "cpuset", "cpuacct", "cpu", "pids",
];
/// aya-log's own ring, which it makes 128 KiB large: a message is at most 8 KiB.
const LOG_RING: &str = "AYA_LOGS";
const LOG_RING_BYTES: u32 = 16 * 1024;
/// Batches under way to the core. Each may hold whatever a drain found; what finds no room waits
/// with the thread, and then in the ring.
const CHANNEL_BATCHES: usize = 4;

/// A member of one of the kernel's structs, whose offset the object needs.
#[derive(Clone, Copy, Debug)]
struct KernelField {
    global: &'static str,
    structure: &'static str,
    names: &'static [&'static str],
}

macro_rules! fields {
    ($($global:ident = $structure:literal, [$($name:literal),+];)+) => {
        &[$(KernelField {
            global: stringify!($global),
            structure: $structure,
            names: &[$($name),+],
        }),+]
    };
}
const KERNEL_FIELDS: &[KernelField] = gpuacct_common::for_each_kernel_field!(fields);
const OPEN_FIELDS: &[KernelField] = gpuacct_common::for_each_open_field!(fields);

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
}

impl Default for KernelConfig {
    fn default() -> Self {
        Self {
            ring_bytes: 1 << 20,
            object: embedded_object(),
            watch: opens::Watch::default(),
        }
    }
}

/// Why the object cannot run.
#[derive(Debug, Error)]
pub enum KernelError {
    /// This binary carries none.
    #[error("this build has no eBPF object; build with `cargo xtask build`")]
    NoObject,
    /// The kernel is older than the object needs.
    #[error(
        "linux {release} is too old, expected {}.{} or newer",
        OLDEST_KERNEL.0,
        OLDEST_KERNEL.1
    )]
    OldKernel {
        /// What it calls itself.
        release: String,
    },
    /// The ring cannot have that size.
    #[error("ring of {found} bytes, expected a power of two of at least {least}")]
    RingBytes {
        /// What was asked for.
        found: u32,
        /// The size of a page.
        least: usize,
    },
    /// The kernel does not describe its types.
    #[error("cannot read {KERNEL_BTF}; the kernel must be built with CONFIG_DEBUG_INFO_BTF")]
    NoBtf(#[source] io::Error),
    /// The kernel's description of its types lacks something, or is damaged.
    #[error("cannot use {KERNEL_BTF}")]
    Btf(#[source] BtfError),
    /// The kernel has no such tracepoint.
    #[error("the kernel has no tracepoint `{name}`; it must be built with {option}")]
    NoTracepoint {
        /// Which.
        name: &'static str,
        /// What would bring it.
        option: &'static str,
    },
    /// The kernel does not allow it.
    #[error("the kernel refused to {act}: {missing}")]
    Refused {
        /// What was tried.
        act: String,
        /// What is lacking for it.
        missing: String,
        /// The kernel's answer.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
    /// The object cannot be loaded.
    #[error("cannot load the eBPF object")]
    Load(#[source] Box<EbpfError>),
    /// One of its programs cannot be loaded or attached.
    #[error("cannot attach to `{tracepoint}`")]
    Attach {
        /// Where to.
        tracepoint: &'static str,
        /// Why.
        #[source]
        source: Box<ProgramError>,
    },
    /// The object is another than this agent was built for.
    #[error("the eBPF object has no {what} `{name}`")]
    Foreign {
        /// Map or program.
        what: &'static str,
        /// Its name.
        name: &'static str,
    },
    /// One of its maps cannot be used.
    #[error("cannot use the map `{name}`")]
    Map {
        /// Which.
        name: &'static str,
        /// Why.
        #[source]
        source: Box<MapError>,
    },
    /// The thread that drains the ring cannot be started.
    #[error("cannot start the thread that drains the ring")]
    Thread(#[source] io::Error),
}

impl KernelError {
    /// A short class, for a label.
    #[must_use]
    pub const fn class(&self) -> &'static str {
        match self {
            Self::NoObject => "no_object",
            Self::OldKernel { .. } | Self::NoTracepoint { .. } => "old_kernel",
            Self::RingBytes { .. } => "configuration",
            Self::NoBtf(_) | Self::Btf(_) => "btf",
            Self::Refused { .. } => "permission",
            Self::Load(_) | Self::Attach { .. } | Self::Foreign { .. } | Self::Map { .. } => "load",
            Self::Thread(_) => "system",
        }
    }
}

/// The loaded object. Dropping it detaches the object and ends the stream.
#[derive(Debug)]
pub struct KernelSource {
    /// Holds the programs and their links.
    object: Ebpf,
    opens: Opens,
    counts_skipped: Vec<&'static str>,
    shared: std::sync::Arc<Shared>,
    thread: Option<thread::JoinHandle<()>>,
}

impl KernelSource {
    /// Loads and attaches the object, and starts to drain its ring into the returned channel.
    ///
    /// Takes some hundred milliseconds and does file I/O: not for an async thread.
    pub fn load(config: &KernelConfig) -> Result<(Self, mpsc::Receiver<KernelBatch>), KernelError> {
        let loaded = Self::load_inner(config);
        give_memory_back();
        loaded
    }

    fn load_inner(
        config: &KernelConfig,
    ) -> Result<(Self, mpsc::Receiver<KernelBatch>), KernelError> {
        if config.object.is_empty() {
            return Err(KernelError::NoObject);
        }
        let page = rustix::param::page_size();
        let ring_bytes = usize::try_from(config.ring_bytes).unwrap_or(0);
        if !ring_bytes.is_power_of_two() || ring_bytes < page {
            return Err(KernelError::RingBytes {
                found: config.ring_bytes,
                least: page,
            });
        }
        check_kernel(rustix::system::uname().release().to_string_lossy().as_ref())?;
        raise_locked_memory();

        let kernel = Kernel::inspect()?;
        let mut object = kernel.load_object(config)?;
        let maps = take_maps(&mut object)?;
        // aya wants all of the kernel's types to find a few names in. They go right after.
        let types = kernel_types()?;
        attach(&mut object, &types)?;
        for tracepoint in OPTIONAL_TRACEPOINTS {
            if let Err(error) = attach_to(&mut object, tracepoint, &types) {
                let reason = trial::reason(&error);
                info!(tracepoint, reason, "the agent does without this tracepoint");
            }
        }
        let lacking = kernel.open_offsets.as_ref().err();
        let mut opens = Opens::load(&mut object, &types, &config.watch, lacking);
        drop(types);
        opens.attach(&mut object);
        let skipped = Skipped::of(&mut object);
        let counts_skipped = skipped.watched().collect();

        let shared = Shared::new().map_err(KernelError::Thread)?;
        let (sender, receiver) = mpsc::channel(CHANNEL_BATCHES);
        let stream =
            Stream::new(maps, skipped, shared.clone(), sender).map_err(KernelError::Thread)?;
        let thread = thread::Builder::new()
            .name("kernel-events".into())
            .spawn(move || stream.run())
            .map_err(KernelError::Thread)?;
        info!(
            ring_bytes = config.ring_bytes,
            legacy_controller = kernel.legacy.as_ref().map(|legacy| legacy.mounted.name),
            "eBPF object attached"
        );
        let source = Self {
            object,
            opens,
            counts_skipped,
            shared,
            thread: Some(thread),
        };
        Ok((source, receiver))
    }

    /// Has every cgroup announced again when it is next seen on a process. Done by itself after a
    /// loss; for whoever forgets what was announced for another reason.
    pub fn clear_announced(&self) {
        self.shared.clear_announced();
    }

    /// Whether opens of devices are reported.
    #[must_use]
    pub const fn opens(&self) -> opens::State {
        self.opens.state()
    }

    /// Looks again whether there is a device to watch, where there was none, and attaches the hook
    /// if so. Does system calls that may take milliseconds.
    pub fn attach_opens(&mut self) -> opens::State {
        self.opens.attach(&mut self.object)
    }

    /// The programs of which this kernel tells how often it did not run them.
    #[must_use]
    pub fn counts_skipped(&self) -> &[&'static str] {
        &self.counts_skipped
    }

    /// The counters, as of the latest drain.
    #[must_use]
    pub fn counters(&self) -> EventCounters {
        self.shared.counters()
    }
}

impl Drop for KernelSource {
    fn drop(&mut self) {
        self.shared.stop();
        if let Some(thread) = self.thread.take() {
            // It logged why, if it ended before its time.
            let _ = thread.join();
        }
    }
}

/// The counters of all objects that were loaded one after the other. Each begins at zero, and what
/// is published of them must not fall when the next one is loaded.
#[derive(Debug, Default)]
pub struct Tally {
    before: EventCounters,
    total: EventCounters,
}

impl Tally {
    /// Adds what the objects before this one had counted.
    pub fn count(&mut self, of_this_object: EventCounters) -> EventCounters {
        let sum = |before: u64, now: u64| before.saturating_add(now);
        self.total = EventCounters {
            seen: sum(self.before.seen, of_this_object.seen),
            submitted: sum(self.before.submitted, of_this_object.submitted),
            lost: sum(self.before.lost, of_this_object.lost),
            undecodable: sum(self.before.undecodable, of_this_object.undecodable),
            skipped: sum(self.before.skipped, of_this_object.skipped),
        };
        self.total
    }

    /// The object is gone: the next one begins at zero.
    pub const fn object_gone(&mut self) {
        self.before = self.total;
    }
}

/// What the object must be told of the running kernel.
struct Kernel {
    offsets: Vec<(&'static str, u32)>,
    /// What only the programs need that report opens of devices.
    open_offsets: Result<Vec<(&'static str, u32)>, BtfError>,
    legacy: Option<LegacyController>,
}

/// A v1 controller that is mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mounted {
    name: &'static str,
    hierarchy: u32,
}

/// The v1 controller whose cgroups are reported.
struct LegacyController {
    mounted: Mounted,
    /// Its place in `css_set.subsys`.
    index: u32,
}

impl Kernel {
    fn inspect() -> Result<Self, KernelError> {
        let bytes = fs::read(KERNEL_BTF).map_err(KernelError::NoBtf)?;
        let types = KernelTypes::parse(&bytes).map_err(KernelError::Btf)?;
        for name in TRACEPOINTS {
            if !types.has_typedef(&format!("btf_trace_{name}")) {
                return Err(KernelError::NoTracepoint {
                    name,
                    option: if name.starts_with("cgroup") {
                        "CONFIG_CGROUPS and CONFIG_TRACEPOINTS"
                    } else {
                        "CONFIG_TRACEPOINTS"
                    },
                });
            }
        }
        let offsets = |fields: &[KernelField]| {
            let offset = |field: &KernelField| {
                let offset = types.member_offset(field.structure, field.names)?;
                Ok((field.global, offset))
            };
            fields.iter().map(offset).collect::<Result<Vec<_>, _>>()
        };
        Ok(Self {
            offsets: offsets(KERNEL_FIELDS).map_err(KernelError::Btf)?,
            open_offsets: offsets(OPEN_FIELDS),
            legacy: find_legacy_controller(&types)?,
        })
    }

    fn load_object(&self, config: &KernelConfig) -> Result<Ebpf, KernelError> {
        let (controller, hierarchy) = match &self.legacy {
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
        let open_offsets = self.open_offsets.iter().flatten();
        for (global, offset) in self.offsets.iter().chain(open_offsets) {
            loader.override_global(global, offset, true);
        }
        loader.load(config.object).map_err(|error| {
            refused("make the eBPF object's maps", error, |error| {
                KernelError::Load(Box::new(error))
            })
        })
    }
}

/// The v1 controller whose cgroups are reported, where one is mounted.
fn find_legacy_controller(
    types: &KernelTypes<'_>,
) -> Result<Option<LegacyController>, KernelError> {
    let mounted = match fs::read_to_string(PROC_CGROUPS) {
        Ok(table) => choose_legacy_controller(&table),
        Err(error) => {
            // Linux can be built without v1's files; then there is no v1 either.
            debug!(%error, "no {PROC_CGROUPS}, cgroup v2 alone is reported");
            None
        }
    };
    mounted
        .map(|mounted| {
            let index = types
                .enumerator("cgroup_subsys_id", &format!("{}_cgrp_id", mounted.name))
                .map_err(KernelError::Btf)?;
            Ok(LegacyController { mounted, index })
        })
        .transpose()
}

/// The first of [`LEGACY_CONTROLLERS`] that `/proc/cgroups` has enabled, and in a hierarchy of v1.
fn choose_legacy_controller(proc_cgroups: &str) -> Option<Mounted> {
    LEGACY_CONTROLLERS.into_iter().find_map(|name| {
        proc_cgroups.lines().find_map(|line| {
            let columns: Vec<&str> = line.split_ascii_whitespace().collect();
            let [found, hierarchy, _cgroups, "1"] = columns[..] else {
                return None;
            };
            let hierarchy = hierarchy.parse().ok()?;
            (found == name && hierarchy != UNIFIED_HIERARCHY).then_some(Mounted { name, hierarchy })
        })
    })
}

fn kernel_types() -> Result<Btf, KernelError> {
    Btf::from_sys_fs().map_err(|error| KernelError::NoBtf(io::Error::other(error)))
}

fn attach(object: &mut Ebpf, types: &Btf) -> Result<(), KernelError> {
    TRACEPOINTS
        .into_iter()
        .try_for_each(|tracepoint| attach_to(object, tracepoint, types))
}

fn attach_to(object: &mut Ebpf, tracepoint: &'static str, types: &Btf) -> Result<(), KernelError> {
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

fn take_maps(object: &mut Ebpf) -> Result<Maps, KernelError> {
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

/// An error that says what was lacking, if it was the kernel's "not permitted"; `otherwise`'s if
/// it was not.
fn refused<E: StdError + Send + Sync + 'static>(
    act: &str,
    error: E,
    otherwise: impl FnOnce(E) -> KernelError,
) -> KernelError {
    if !is_not_permitted(&error) {
        return otherwise(error);
    }
    let missing = match effective_capabilities() {
        Some(held) => missing_capabilities(held),
        None => "it may lack CAP_BPF and CAP_PERFMON".into(),
    };
    KernelError::Refused {
        act: act.into(),
        missing,
        source: Box::new(error),
    }
}

fn is_not_permitted(error: &(dyn StdError + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>()
            && error.kind() == io::ErrorKind::PermissionDenied
        {
            return true;
        }
        cause = error.source();
    }
    false
}

fn effective_capabilities() -> Option<CapabilitySet> {
    rustix::thread::capabilities(None)
        .ok()
        .map(|sets| sets.effective)
}

/// What a process with these capabilities lacks for loading the object.
fn missing_capabilities(held: CapabilitySet) -> String {
    if held.contains(CapabilitySet::SYS_ADMIN) {
        return "this process has CAP_SYS_ADMIN, so it is the kernel's policy (lockdown, an LSM, \
                or a container's seccomp filter)"
            .into();
    }
    let lacking: Vec<&str> = [
        (CapabilitySet::BPF, "CAP_BPF"),
        (CapabilitySet::PERFMON, "CAP_PERFMON"),
    ]
    .into_iter()
    .filter_map(|(capability, name)| (!held.contains(capability)).then_some(name))
    .collect();
    if lacking.is_empty() {
        "this process has CAP_BPF and CAP_PERFMON, so it is the kernel's policy, or a kernel that \
         wants CAP_SYS_ADMIN"
            .into()
    } else {
        format!("this process lacks {}", lacking.join(" and "))
    }
}

fn check_kernel(release: &str) -> Result<(), KernelError> {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|number| number.parse::<u32>().ok());
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(major), Some(minor)) if (major, minor) < OLDEST_KERNEL => {
            Err(KernelError::OldKernel {
                release: release.into(),
            })
        }
        // A name that says nothing is no reason: what matters is whether the object loads.
        _ => Ok(()),
    }
}

/// Before Linux 5.11 maps count as locked memory.
fn raise_locked_memory() {
    let unlimited = Rlimit {
        current: None,
        maximum: None,
    };
    if let Err(error) = setrlimit(Resource::Memlock, unlimited) {
        debug!(%error, "the limit on locked memory stays, which matters before linux 5.11 only");
    }
    debug!(capabilities = ?effective_capabilities(), "loading the eBPF object");
}

/// Looking through the kernel's types leaves the allocator with tens of megabytes that it would
/// keep for the life of the agent.
fn give_memory_back() {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_object_is_refused() {
        let config = KernelConfig {
            object: &[],
            ..KernelConfig::default()
        };
        assert_eq!(
            KernelSource::load(&config).unwrap_err().to_string(),
            "this build has no eBPF object; build with `cargo xtask build`"
        );
        assert_eq!(KernelError::NoObject.class(), "no_object");
    }

    #[test]
    fn a_ring_of_an_impossible_size_is_refused() {
        for ring_bytes in [0, 1, 2048, 12_288, u32::MAX] {
            let config = KernelConfig {
                ring_bytes,
                object: b"never looked at",
                ..KernelConfig::default()
            };
            let error = KernelSource::load(&config).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("ring of {ring_bytes} bytes, expected")),
                "{error}"
            );
        }
    }

    #[test]
    fn the_counters_of_one_object_go_on_where_those_before_stopped() {
        let counters = |seen| EventCounters {
            seen,
            submitted: seen - 1,
            lost: 1,
            undecodable: 2,
            skipped: 3,
        };
        let mut tally = Tally::default();
        assert_eq!(tally.count(counters(5)), counters(5));
        assert_eq!(tally.count(counters(9)), counters(9));
        tally.object_gone();
        let both = EventCounters {
            seen: 12,
            submitted: 10,
            lost: 2,
            undecodable: 4,
            skipped: 6,
        };
        assert_eq!(tally.count(counters(3)), both);
        // One that never counted anything leaves no trace.
        tally.object_gone();
        tally.object_gone();
        assert_eq!(tally.count(EventCounters::default()), both);
    }

    #[test]
    fn kernels_before_5_8_are_refused() {
        for release in [
            "5.8.0",
            "5.10.0-28-amd64",
            "6.1.0",
            "10.0",
            "6",
            "custom",
            "",
        ] {
            check_kernel(release).unwrap();
        }
        for release in ["5.7.19", "5.4.0-150-generic", "4.19.0", "3.10.0-1160.el7"] {
            assert_eq!(
                check_kernel(release).unwrap_err().to_string(),
                format!("linux {release} is too old, expected 5.8 or newer")
            );
        }
    }

    #[test]
    fn the_legacy_controller_is_the_best_that_is_mounted() {
        let head = "#subsys_name\thierarchy\tnum_cgroups\tenabled\n";
        let rows = [
            ("", None),
            ("memory\t4\t11\t1\npids\t8\t1\t1\n", Some(("memory", 4))),
            ("pids\t8\t1\t1\nmemory\t4\t11\t1\n", Some(("memory", 4))),
            // Not mounted as v1, or switched off on the command line.
            ("memory\t0\t11\t1\npids\t8\t1\t1\n", Some(("pids", 8))),
            ("memory\t4\t1\t0\ncpu\t2\t1\t1\n", Some(("cpu", 2))),
            (
                "memory\t0\t11\t1\npids\t0\t1\t1\ncpu\t0\t1\t1\ndevices\t0\t1\t1\n",
                None,
            ),
            // Schedulers leave jobs in the daemon's cgroup of pids.
            (
                "memory\t4\t1\t0\npids\t8\t1\t1\nfreezer\t6\t1\t1\n",
                Some(("freezer", 6)),
            ),
            ("pids\t8\t1\t1\ncpuset\t3\t1\t1\n", Some(("cpuset", 3))),
            // A name that merely begins so.
            ("memory2\t2\t1\t1\ndevices\t5\t1\t1\n", Some(("devices", 5))),
            ("cpuacct\t2\t1\t1\ndevices\t5\t1\t1\n", Some(("devices", 5))),
            ("memory\n", None),
            ("memory\tfour\t1\t1\n", None),
        ];
        for (table, expected) in rows {
            let found = choose_legacy_controller(&format!("{head}{table}"));
            let found = found.map(|mounted| (mounted.name, mounted.hierarchy));
            assert_eq!(found, expected, "{table}");
        }
    }

    #[test]
    fn a_refusal_names_what_is_lacking() {
        let denied = || io::Error::from_raw_os_error(Errno::PERM.raw_os_error());
        let rows = [
            (CapabilitySet::empty(), "lacks CAP_BPF and CAP_PERFMON"),
            (CapabilitySet::BPF, "lacks CAP_PERFMON"),
            (
                CapabilitySet::BPF | CapabilitySet::PERFMON,
                "the kernel's policy",
            ),
            (CapabilitySet::SYS_ADMIN, "the kernel's policy (lockdown"),
        ];
        for (held, expected) in rows {
            let text = missing_capabilities(held);
            assert!(text.contains(expected), "{text}");
        }
        let nested = KernelError::Thread(denied());
        assert!(matches!(
            refused("x", nested, |_| KernelError::NoObject),
            KernelError::Refused { .. }
        ));
        assert!(matches!(
            refused("x", io::Error::other("no"), |_| KernelError::NoObject),
            KernelError::NoObject
        ));
    }

    use rustix::io::Errno;
}
