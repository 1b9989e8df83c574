//! The eBPF object: events of processes and cgroups from the kernel, as they happen.
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

mod attach;
pub mod btf;
pub mod decode;
mod error;
pub mod follow;
mod layout;
pub mod opens;
mod shared;
mod skipped;
mod stream;
pub mod trial;

use std::thread;

use aya::Ebpf;
use tokio::sync::mpsc;
use tracing::info;

pub use self::attach::{KernelConfig, embedded_object};
use self::attach::{attach, attach_to, give_memory_back, load_object, take_maps};
pub use self::error::{KernelError, reason};
use self::error::{check_kernel, raise_locked_memory};
use self::layout::{Kernel, OPTIONAL_TRACEPOINTS, kernel_types};
use self::opens::Opens;
use self::shared::Shared;
use self::skipped::Skipped;
pub use self::stream::SPACING;
use self::stream::Stream;
use crate::core::input::{EventCounters, KernelBatch};

/// Batches under way to the core. Each may hold whatever a drain found; what finds no room waits
/// with the thread, and then in the ring.
const CHANNEL_BATCHES: usize = 4;

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
        let mut object = load_object(&kernel, config)?;
        let maps = take_maps(&mut object)?;
        // aya wants all of the kernel's types to find a few names in. They go right after.
        let types = kernel_types()?;
        attach(&mut object, &types)?;
        for tracepoint in OPTIONAL_TRACEPOINTS {
            if let Err(error) = attach_to(&mut object, tracepoint, &types) {
                let reason = reason(&error);
                info!(
                    tracepoint,
                    reason, "cannot attach to an optional tracepoint"
                );
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
        let stream = Stream::new(maps, skipped, config.period, shared.clone(), sender)
            .map_err(KernelError::Thread)?;
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

    /// Lets every cgroup be announced again when it is next seen on a process. This happens
    /// automatically after a loss. The core uses it when it has dropped cgroups for another reason.
    pub fn clear_announced(&self) {
        self.shared.clear_announced();
    }

    /// Drains the ring now, and reports up to when all events are known, even if none came.
    pub fn report(&self) {
        self.shared.report();
    }

    /// Whether opens of devices are reported.
    #[must_use]
    pub const fn opens(&self) -> opens::OpenHookState {
        self.opens.state()
    }

    /// Looks again whether there is a device to watch, where there was none, and attaches the hook
    /// if so. Does system calls that may take milliseconds.
    pub fn attach_opens(&mut self) -> opens::OpenHookState {
        self.opens.attach(&mut self.object)
    }

    /// The programs of which this kernel counts how often it did not run them.
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
}
