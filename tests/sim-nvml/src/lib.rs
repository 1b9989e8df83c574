//! A simulated NVML behind the real library's ABI.
//!
//! It exists so that gpuacct, and anybody else's NVML client, can be measured on a machine without
//! a GPU. What it simulates is the driver's mechanism, not a table of percents: a ring of 72
//! samples, one each 1/6 s, each crediting one process per engine. So the error of an accountant
//! against the scenario's exact truth is a quantity that can be measured.
//!
//! A state directory (`SIM_NVML_DIR`) holds the machine, written once, and an append-only log of
//! what happens to it. Every client loads its own copy of the library and computes the ring from
//! (seed, sample index, log): all of them see the same GPUs.
//!
//! A GPU in MIG mode has instances, whose activity is told by GPM where the product has it, as the
//! exact integral of their jobs' shares; nothing else is measured there.
//!
//! Refused on purpose: undocumented tables that nvidia-smi wants, GPM metrics other than activity.
//!
//! Units: wall-clock microseconds where NVML has them, nanoseconds for busy time, bytes,
//! milliwatts, millijoules; shares are 0 to 1 at the API and parts per million in the arithmetic.

pub mod abi;
mod event;
mod health;
mod history;
pub mod library;
mod log;
mod machine;
mod ring;
mod scenario;
mod server;
mod truth;

pub use event::{Engines, Entry, Event, Fault, FaultId, Job, JobId, Kind};
pub use health::Health;
pub use log::{StateError, boot_ns, wall_us};
pub use machine::{
    Cadence, GpuSpec, Instance, Machine, Measure, Mig, RING_CAPACITY, RING_PERIOD_NS, StampClock,
    Stamps,
};
pub use scenario::{Scenario, Script};
pub use server::{CONNECTIONS, LINE_BYTES, Server, ServerError};
pub use truth::{JobTruth, Truth};

/// The environment variable that names the state directory to the library.
pub const STATE_DIR: &str = "SIM_NVML_DIR";
