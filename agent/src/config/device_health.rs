//! The sections of the GPUs' health, and of the names that other exporters have for it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::span::Span;

/// The health of GPUs: power, temperatures, clocks, errors.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GpuHealth {
    /// Whether it is read at all.
    pub enabled: bool,
    /// How often.
    pub interval: Span,
    /// Whether the throughput of the PCIe link is read. The driver measures it for 20 ms in each of two
    /// calls.
    pub pcie_throughput: bool,
    /// Whether NVML is asked to report Xid errors.
    pub xid_events: bool,
}

impl Default for GpuHealth {
    fn default() -> Self {
        Self {
            enabled: true,
            interval: Span::secs(10),
            pcie_throughput: false,
            xid_events: true,
        }
    }
}

/// The families of dcgm-exporter, for what queries them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Dcgm {
    /// Whether they are published.
    pub enabled: bool,
}

/// The kernel's log, from which Xid errors are read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KernelLog {
    /// Whether it is read at all.
    pub enabled: bool,
    /// The device of its records; looked for again while it is not there.
    pub path: PathBuf,
}

impl Default for KernelLog {
    fn default() -> Self {
        Self {
            enabled: true,
            path: "/dev/kmsg".into(),
        }
    }
}
