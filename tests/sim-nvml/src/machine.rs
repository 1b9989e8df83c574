//! The simulated machine: which GPUs it has and how their driver behaves.
//!
//! A machine is written once, when a scenario is created, and never changes; everything that does
//! change is an [`Event`](crate::Event) in the log. Times are wall-clock microseconds (as NVML's
//! timestamps are), powers milliwatts, memory bytes.

use serde::{Deserialize, Serialize};

/// Samples that the driver's ring holds since R525.
pub const RING_CAPACITY: usize = 72;
/// One sample each 1/6 s, the driver's fastest cadence and the usual one.
pub const RING_PERIOD_NS: u64 = 166_666_667;

/// What `machine.json` of a state directory says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Decides every draw; two machines with one seed and one log have the same samples.
    pub seed: u64,
    /// Wall clock at creation, in microseconds.
    pub created_us: u64,
    /// Boot clock at the same moment, in nanoseconds: maps the log's times to the boot clock.
    pub created_boot_ns: u64,
    /// Inode of the pid namespace that created the scenario: the pids of the log are its pids.
    pub pid_namespace: u64,
    /// The GPUs, by index.
    pub gpus: Vec<GpuSpec>,
}

/// One GPU of the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuSpec {
    /// `GPU-…`.
    pub uuid: String,
    /// Product name.
    pub name: String,
    /// Frame buffer.
    pub memory_bytes: u64,
    /// The driver's own part of the frame buffer.
    pub reserved_bytes: u64,
    /// When the process ring takes its samples.
    pub ring: Cadence,
    /// When the device's own samples are taken; `None`: with the ring's.
    pub device_samples: Option<Cadence>,
    /// The driver takes no samples while no process has a context.
    pub pauses_when_idle: bool,
    /// What the utilisation of one sample means.
    pub measure: Measure,
    /// Accounting mode at creation.
    pub accounting: bool,
    /// One process only may have a compute context, as MPS wants it.
    #[serde(default)]
    pub exclusive: bool,
    /// Multi-instance mode.
    pub mig: Mig,
    /// The instances at creation, in that mode.
    #[serde(default)]
    pub instances: Vec<Instance>,
    /// The product has performance monitoring (GPM), as those since Hopper have.
    #[serde(default)]
    pub gpm: bool,
    /// By which clock each call stamps, from the beginning.
    #[serde(default)]
    pub stamps: Stamps,
    /// Power with nothing running.
    pub idle_mw: u64,
    /// Power with every engine busy; also the power limit.
    pub full_mw: u64,
}

/// A sampling grid: instants `phase + k × period` after the driver was loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cadence {
    /// Distance of two samples, in nanoseconds.
    pub period_ns: u64,
    /// Offset of the grid, in nanoseconds.
    pub phase_ns: u64,
}

impl Cadence {
    /// Six samples a second.
    pub const SIX_HERTZ: Self = Self {
        period_ns: RING_PERIOD_NS,
        phase_ns: 0,
    };
    /// One sample a second, as some products do.
    pub const ONE_HERTZ: Self = Self {
        period_ns: 1_000_000_000,
        phase_ns: 0,
    };
}

/// What the driver's counter measures when it takes a sample.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// Whether the engine is busy at the sample's instant: 0 or 100 %. The noisiest case.
    #[default]
    Instant,
    /// The engine's mean over the period before the sample, credited whole to whichever process is
    /// on the engine at the instant, or to none.
    Averaged,
}

/// By which clock each call about samples stamps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stamps {
    /// `nvmlDeviceGetSamples`.
    pub samples: StampClock,
    /// `nvmlDeviceGetProcessUtilization`.
    pub rows: StampClock,
    /// `nvmlDeviceGetProcessesUtilizationInfo`.
    pub rows_of_all_engines: StampClock,
}

impl Stamps {
    /// One clock for samples, one for the rows of both calls.
    #[must_use]
    pub fn new(samples: StampClock, rows: StampClock) -> Self {
        Self {
            samples,
            rows,
            rows_of_all_engines: rows,
        }
    }
}

/// A clock that stamps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StampClock {
    /// The wall clock, as nvml.h has it.
    #[default]
    Wall,
    /// The boot clock, as NVIDIA's GB10 stamps samples.
    Boot,
    /// The wall clock and so many milliseconds.
    AheadMs(i64),
    /// Another time for each second, so that no clock can be learnt.
    Erratic,
}

impl StampClock {
    /// The stamp of an instant of the wall clock, which is `boot_lead_us` ahead of the boot clock.
    pub(crate) fn stamp_us(self, at_us: u64, boot_lead_us: u64) -> u64 {
        match self {
            Self::Wall => at_us,
            Self::Boot => at_us.saturating_sub(boot_lead_us),
            Self::AheadMs(ms) => at_us.saturating_add_signed(ms.saturating_mul(1_000)),
            Self::Erratic => {
                let second = at_us / 1_000_000;
                at_us.saturating_add(second.wrapping_mul(0x9e37_79b9_7f4a_7c15) % 20_000_000)
            }
        }
    }
}

/// Multi-instance mode of a GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mig {
    /// The product has none.
    Incapable,
    /// Capable and off.
    #[default]
    Off,
    /// On: nothing is measured per process. What runs there needs an instance.
    On,
}

/// A MIG instance: a compute instance in a GPU instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// The GPU instance's id.
    pub gpu_instance: u32,
    /// The compute instance's id in it.
    pub compute_instance: u32,
    /// Slices of the GPU that the GPU instance has; there are seven.
    pub slices: u32,
    /// Slices of those that the compute instance has.
    pub compute_slices: u32,
    /// Frame buffer of the GPU instance.
    pub memory_bytes: u64,
}

impl Instance {
    /// A GPU instance with one compute instance, which has all of it.
    #[must_use]
    pub fn whole(gpu_instance: u32, slices: u32, memory_gib: u64) -> Self {
        Self {
            gpu_instance,
            compute_instance: 0,
            slices,
            compute_slices: slices,
            memory_bytes: memory_gib << 30,
        }
    }
}

impl GpuSpec {
    /// The same of the next generation, which has performance monitoring, divided into instances.
    #[must_use]
    pub fn h100_divided(index: u32, instances: Vec<Instance>) -> Self {
        Self {
            name: "NVIDIA H100 80GB HBM3 (simulated)".to_owned(),
            mig: Mig::On,
            instances,
            gpm: true,
            ..Self::a100(index)
        }
    }

    /// An 80 GiB data-centre GPU; the name says that it is simulated.
    #[must_use]
    pub fn a100(index: u32) -> Self {
        Self {
            uuid: format!("GPU-5a100000-51b0-4000-8000-{index:012x}"),
            name: "NVIDIA A100-SXM4-80GB (simulated)".to_owned(),
            memory_bytes: 80 << 30,
            reserved_bytes: 512 << 20,
            ring: Cadence::SIX_HERTZ,
            device_samples: None,
            pauses_when_idle: false,
            measure: Measure::Instant,
            accounting: false,
            exclusive: false,
            mig: Mig::Off,
            instances: Vec::new(),
            gpm: false,
            stamps: Stamps::default(),
            idle_mw: 55_000,
            full_mw: 400_000,
        }
    }
}
