//! What can happen to the simulated machine, as it is written in the log.

use serde::{Deserialize, Serialize};

use crate::health::Health;
use crate::machine::{Instance, Stamps};

/// Parts per million of an engine's time: shares in the log are integers, so that every reader
/// computes the same.
pub(crate) const WHOLE_PPM: u64 = 1_000_000;

/// One line of the log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Wall clock when it took effect, in microseconds.
    pub at_us: u64,
    /// Boot clock at the same moment, in nanoseconds; 0 where nobody measured it.
    #[serde(default)]
    pub boot_ns: u64,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A process took a context on a GPU.
    Start {
        /// Its identity; no two starts of a log share one.
        job: JobId,
        /// The process, in the pid namespace of the scenario's creator.
        pid: u32,
        /// Where its pid is another: (inode of the namespace, its pid there).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        inner_pid: Option<(u64, u32)>,
        /// What it does there.
        #[serde(flatten)]
        work: Job,
    },
    /// A running job's share, engines or memory changed.
    Change {
        /// The job.
        job: JobId,
        /// What it does from now on. A change of GPU is ignored.
        #[serde(flatten)]
        work: Job,
    },
    /// The process gave its context back, or died.
    Stop {
        /// The job.
        job: JobId,
    },
    /// A fault began.
    Inject {
        /// Its identity.
        fault_id: FaultId,
        /// The GPU that has it; `None`: the library and every GPU.
        gpu: Option<u32>,
        /// What goes wrong.
        fault: Fault,
    },
    /// A fault ended.
    Clear {
        /// The fault.
        fault_id: FaultId,
    },
    /// Accounting mode was switched; both ways forget what was recorded.
    Accounting {
        /// The GPU.
        gpu: u32,
        /// The new mode.
        on: bool,
    },
    /// The records of dead processes were wiped.
    ClearAccounting {
        /// The GPU.
        gpu: u32,
    },
    /// A GPU in MIG mode was divided anew. While something runs there, the driver refuses.
    Divide {
        /// The GPU.
        gpu: u32,
        /// Its instances from now on.
        instances: Vec<Instance>,
    },
    /// From now on the driver stamps what it samples by other clocks.
    Stamp {
        /// The GPU.
        gpu: u32,
        /// The clocks.
        stamps: Stamps,
    },
    /// The GPU's health is this from now on.
    Health {
        /// The GPU.
        gpu: u32,
        /// Its health.
        health: Health,
    },
    /// The driver reported a critical Xid error.
    Xid {
        /// The GPU.
        gpu: u32,
        /// NVIDIA's number of the error.
        code: u64,
    },
}

/// Identity of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobId(pub u64);

/// Identity of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FaultId(pub u64);

/// What a process does on a GPU. Shares are of the engine's time while the job runs, 0 to 1; where
/// the shares of one engine add up to more than 1, they are scaled down to 1 (time slicing).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Job {
    /// The GPU's index.
    pub gpu: u32,
    /// Share of the streaming multiprocessors: what "GPU utilisation" means, and what is billed.
    #[serde(rename = "share")]
    pub share: f64,
    /// Frame buffer that it holds.
    pub memory_bytes: u64,
    /// Which process lists show it.
    pub kind: Kind,
    /// Shares of the other engines.
    pub engines: Engines,
    /// The MIG instance that it runs on: the GPU instance's id and the compute instance's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance: Option<(u32, u32)>,
    /// A name for the truth log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
}

/// Shares of the engines other than the multiprocessors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Engines {
    /// The memory interface.
    pub memory: f64,
    /// Video encoder.
    pub encoder: f64,
    /// Video decoder.
    pub decoder: f64,
    /// JPEG decoder.
    pub jpeg: f64,
    /// Optical flow.
    pub optical_flow: f64,
}

/// Which process lists show a job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The compute list.
    #[default]
    Compute,
    /// The graphics list.
    Graphics,
    /// A client of MPS: in the MPS list and in the compute list, `M+C` as nvidia-smi shows it.
    Mps,
}

/// What can go wrong. `call` is a prefix of the NVML functions that are hit: `"nvmlInit"`,
/// `"nvmlDevice"`, `"nvmlDeviceGetSamples"`, `""` for all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Fault {
    /// Calls return this code: 9 from `nvmlInit` (no driver), 15 (GPU is lost), any number.
    Fail {
        /// Prefix of the functions.
        call: String,
        /// The `nvmlReturn_t`.
        code: u32,
    },
    /// The same for one function, and for none whose name begins with its name.
    FailExactly {
        /// The function.
        call: String,
        /// The `nvmlReturn_t`.
        code: u32,
    },
    /// Calls block this long, or until the fault is cleared, and then answer.
    Delay {
        /// Prefix of the functions.
        call: String,
        /// How long, in milliseconds.
        ms: u64,
    },
    /// Process utilisation answers carry junk rows beside the true ones: pid 0, no timestamp, a
    /// timestamp before the window, more than 100 %, a pid that nobody has.
    JunkRows,
    /// Calls for processes' rows succeed and have none.
    EmptyRows {
        /// Prefix of the functions.
        call: String,
    },
    /// Process lists say `NVML_VALUE_NOT_AVAILABLE` for memory.
    MissingMemory,
    /// A size query reports this many rows fewer than the call after it has, as if processes had
    /// started between the two.
    GrowingRows {
        /// How many fewer.
        rows: u32,
    },
}

impl Fault {
    /// No driver is loaded: `nvmlInit` fails.
    #[must_use]
    pub fn no_driver() -> Self {
        Self::Fail {
            call: "nvmlInit".to_owned(),
            code: 9,
        }
    }

    /// The GPU has fallen off the bus.
    #[must_use]
    pub fn gpu_is_lost() -> Self {
        Self::Fail {
            call: "nvmlDevice".to_owned(),
            code: 15,
        }
    }
}
