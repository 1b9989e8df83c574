//! The health of a GPU as NVML tells it, and its Xid errors.
//!
//! Every figure is a number, or says why there is none: a query that failed is never a zero. The
//! numbers are in the units that NVML has them in; outputs convert them.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::model::{BootTime, GpuUuid, Pid};

/// One reading of a GPU's health.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuHealth {
    /// The GPU. MIG instances have no health of their own.
    pub gpu: GpuUuid,
    /// When its figures had been read.
    pub at: BootTime,
    /// The figures that were asked for.
    pub figures: HealthFigures,
}

/// Figures of a GPU's health. One that was not asked for is absent.
pub type HealthFigures = BTreeMap<HealthFigure, Reading>;

/// The answer to a query for one figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reading {
    /// The figure, in its own unit.
    Ok(i64),
    /// The GPU or the driver does not offer it.
    Unsupported,
    /// The query failed.
    Failed,
}

impl Reading {
    /// The figure, if there is one.
    #[must_use]
    pub const fn value(self) -> Option<i64> {
        match self {
            Self::Ok(value) => Some(value),
            Self::Unsupported | Self::Failed => None,
        }
    }
}

/// Figures that are queried together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthGroup {
    /// Power and the power limit.
    Power,
    /// Temperature of the die and of the memory.
    Temperature,
    /// Clocks and their maxima.
    Clocks,
    /// Why clocks are reduced.
    Throttling,
    /// Errors found by ECC.
    Ecc,
    /// Memory that was taken out of use: remapped rows and retired pages.
    Repair,
    /// Replays on the PCIe link.
    Pcie,
    /// Errors on NVLink.
    Nvlink,
    /// What NVML recommends to do about the GPU.
    Recovery,
    /// Throughput of the PCIe link. The driver measures for 20 ms in each of two calls.
    PcieThroughput,
}

impl HealthGroup {
    /// Every group, in the order in which they are shown.
    pub const ALL: [Self; 10] = [
        Self::Power,
        Self::Temperature,
        Self::Clocks,
        Self::Throttling,
        Self::Ecc,
        Self::Repair,
        Self::Pcie,
        Self::Nvlink,
        Self::Recovery,
        Self::PcieThroughput,
    ];

    /// Returns the value as used in labels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Power => "power",
            Self::Temperature => "temperature",
            Self::Clocks => "clocks",
            Self::Throttling => "throttling",
            Self::Ecc => "ecc",
            Self::Repair => "repair",
            Self::Pcie => "pcie",
            Self::Nvlink => "nvlink",
            Self::Recovery => "recovery",
            Self::PcieThroughput => "pcie_throughput",
        }
    }
}

/// One figure of a GPU's health.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthFigure {
    /// Power that the GPU draws, in milliwatts.
    Power,
    /// The power limit in force, in milliwatts.
    PowerLimit,
    /// Temperature of the GPU's die, in degrees Celsius.
    GpuTemperature,
    /// Temperature of its memory, in degrees Celsius.
    MemoryTemperature,
    /// Clock of the SMs, in megahertz.
    SmClock,
    /// Clock of the memory, in megahertz.
    MemoryClock,
    /// The highest clock of the SMs, in megahertz.
    SmClockMax,
    /// The highest clock of the memory, in megahertz.
    MemoryClockMax,
    /// NVML's bits for why clocks are reduced: see [`ThrottleReason`].
    ThrottleReasons,
    /// Errors that ECC corrected since the driver was loaded.
    EccCorrectedVolatile,
    /// Errors that ECC found and could not correct since the driver was loaded.
    EccUncorrectedVolatile,
    /// Errors that ECC corrected in the GPU's life.
    EccCorrectedAggregate,
    /// Errors that ECC could not correct in the GPU's life.
    EccUncorrectedAggregate,
    /// Rows of memory that were remapped after correctable errors.
    RowsRemappedCorrectable,
    /// Rows of memory that were remapped after uncorrectable errors.
    RowsRemappedUncorrectable,
    /// Whether rows wait for a reset of the GPU to be remapped: 0 or 1.
    RemapPending,
    /// Whether a row could not be remapped: 0 or 1.
    RemapFailed,
    /// Pages that were retired after several single-bit errors (GPUs before Ampere).
    PagesRetiredSingleBit,
    /// Pages that were retired after a double-bit error (GPUs before Ampere).
    PagesRetiredDoubleBit,
    /// Whether pages wait for a reset of the GPU to be retired: 0 or 1.
    RetirementPending,
    /// Replays on the PCIe link since the driver was loaded.
    PcieReplays,
    /// NVLink packets with a wrong checksum, on all links.
    NvlinkCrcFlits,
    /// NVLink data with a wrong checksum, on all links.
    NvlinkCrcData,
    /// NVLink replays, on all links.
    NvlinkReplays,
    /// NVLink recoveries, on all links.
    NvlinkRecoveries,
    /// NVML's number of the action that it recommends: see [`RecoveryAction`].
    RecoveryAction,
    /// Data that the GPU sent over PCIe, in kilobytes a second.
    PcieSent,
    /// Data that the GPU received over PCIe, in kilobytes a second.
    PcieReceived,
}

impl HealthFigure {
    /// The group that it is queried with.
    #[must_use]
    pub const fn group(self) -> HealthGroup {
        match self {
            Self::Power | Self::PowerLimit => HealthGroup::Power,
            Self::GpuTemperature | Self::MemoryTemperature => HealthGroup::Temperature,
            Self::SmClock | Self::MemoryClock | Self::SmClockMax | Self::MemoryClockMax => {
                HealthGroup::Clocks
            }
            Self::ThrottleReasons => HealthGroup::Throttling,
            Self::EccCorrectedVolatile
            | Self::EccUncorrectedVolatile
            | Self::EccCorrectedAggregate
            | Self::EccUncorrectedAggregate => HealthGroup::Ecc,
            Self::RowsRemappedCorrectable
            | Self::RowsRemappedUncorrectable
            | Self::RemapPending
            | Self::RemapFailed
            | Self::PagesRetiredSingleBit
            | Self::PagesRetiredDoubleBit
            | Self::RetirementPending => HealthGroup::Repair,
            Self::PcieReplays => HealthGroup::Pcie,
            Self::NvlinkCrcFlits
            | Self::NvlinkCrcData
            | Self::NvlinkReplays
            | Self::NvlinkRecoveries => HealthGroup::Nvlink,
            Self::RecoveryAction => HealthGroup::Recovery,
            Self::PcieSent | Self::PcieReceived => HealthGroup::PcieThroughput,
        }
    }

    /// Whether the driver counts it up: it never falls but for a reload of the driver or a reset of
    /// the GPU.
    #[must_use]
    pub const fn is_count(self) -> bool {
        matches!(
            self,
            Self::EccCorrectedVolatile
                | Self::EccUncorrectedVolatile
                | Self::EccCorrectedAggregate
                | Self::EccUncorrectedAggregate
                | Self::PcieReplays
                | Self::NvlinkCrcFlits
                | Self::NvlinkCrcData
                | Self::NvlinkReplays
                | Self::NvlinkRecoveries
        )
    }
}

/// Why the clocks of a GPU are lower than they could be, by NVML's bits. An idle GPU is not among
/// them: it is not held back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ThrottleReason {
    /// Somebody has set the clocks of applications.
    ApplicationClocks,
    /// The power limit.
    PowerCap,
    /// Hardware slows it down: heat, a power brake, or a drop of the supply.
    HardwareSlowdown,
    /// It is kept in step with other GPUs.
    SyncBoost,
    /// Heat, by the driver.
    SoftwareThermal,
    /// Heat, by the hardware.
    HardwareThermal,
    /// The server's power supply asked for less.
    PowerBrake,
    /// The clock of a display.
    DisplayClock,
}

impl ThrottleReason {
    /// Every reason, in the order of NVML's bits.
    pub const ALL: [Self; 8] = [
        Self::ApplicationClocks,
        Self::PowerCap,
        Self::HardwareSlowdown,
        Self::SyncBoost,
        Self::SoftwareThermal,
        Self::HardwareThermal,
        Self::PowerBrake,
        Self::DisplayClock,
    ];

    /// Its bit in `nvmlDeviceGetCurrentClocksEventReasons` (`nvmlClocksEventReason…` in nvml.h).
    #[must_use]
    pub const fn bit(self) -> i64 {
        match self {
            Self::ApplicationClocks => 0x2,
            Self::PowerCap => 0x4,
            Self::HardwareSlowdown => 0x8,
            Self::SyncBoost => 0x10,
            Self::SoftwareThermal => 0x20,
            Self::HardwareThermal => 0x40,
            Self::PowerBrake => 0x80,
            Self::DisplayClock => 0x100,
        }
    }

    /// Returns the value as used in labels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ApplicationClocks => "application_clocks",
            Self::PowerCap => "power_cap",
            Self::HardwareSlowdown => "hardware_slowdown",
            Self::SyncBoost => "sync_boost",
            Self::SoftwareThermal => "software_thermal",
            Self::HardwareThermal => "hardware_thermal",
            Self::PowerBrake => "power_brake",
            Self::DisplayClock => "display_clock",
        }
    }

    /// Whether somebody should look at it. Clocks that somebody has set, and a power cap, are how many
    /// GPUs run all the time.
    #[must_use]
    pub const fn needs_attention(self) -> bool {
        matches!(
            self,
            Self::HardwareSlowdown
                | Self::SoftwareThermal
                | Self::HardwareThermal
                | Self::PowerBrake
        )
    }
}

/// What NVML recommends to do about a GPU (`nvmlDeviceGpuRecoveryAction_t` in nvml.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecoveryAction {
    /// There is nothing to do.
    None,
    /// Reset the GPU.
    Reset,
    /// Reboot the node.
    Reboot,
    /// Let peer-to-peer traffic end, then reset.
    DrainPeers,
    /// Let no new work begin, then reset.
    DrainAndReset,
    /// An action that this agent does not know.
    Other,
}

impl RecoveryAction {
    /// Every action, in the order of NVML's numbers.
    pub const ALL: [Self; 6] = [
        Self::None,
        Self::Reset,
        Self::Reboot,
        Self::DrainPeers,
        Self::DrainAndReset,
        Self::Other,
    ];

    /// The action with NVML's number.
    #[must_use]
    pub const fn of(number: i64) -> Self {
        match number {
            0 => Self::None,
            1 => Self::Reset,
            2 => Self::Reboot,
            3 => Self::DrainPeers,
            4 => Self::DrainAndReset,
            _ => Self::Other,
        }
    }

    /// Returns the value as used in labels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Reset => "reset",
            Self::Reboot => "reboot",
            Self::DrainPeers => "drain_peers",
            Self::DrainAndReset => "drain_and_reset",
            Self::Other => "other",
        }
    }
}

/// One Xid error: NVIDIA's number of a fault of a GPU, as one reporter has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct XidReport {
    /// When it happened, as well as the reporter knows.
    pub at: BootTime,
    /// Who reports it. NVML and the kernel's log report the same error, each in its own way.
    pub reporter: XidReporter,
    /// The GPU.
    pub gpu: XidGpu,
    /// NVIDIA's number of the error; 999 if NVML does not know it.
    pub xid: u32,
    /// The process that caused it, by the kernel's log.
    #[serde(default)]
    pub pid: Option<Pid>,
}

/// Who reports Xid errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum XidReporter {
    /// NVML's events. They have no process and no time.
    Nvml,
    /// The kernel's log.
    KernelLog,
}

/// How a reporter names the GPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum XidGpu {
    /// By its UUID.
    Uuid(GpuUuid),
    /// By its PCI address, as in [`GpuInfo::pci`](super::GpuInfo::pci).
    Pci(Arc<str>),
}
