//! What the reader of a GPU asks: the calls for its samples and rows, as a trait, so that tests can
//! stand in for the driver.

use super::answer::{RawRow, RawSample};
use super::fault::NvmlFailure;
use crate::core::model::Clock;

/// A call for the processes' rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RowsCall {
    /// `nvmlDeviceGetProcessesUtilizationInfo`, with all engines, from R550 on.
    OfAllEngines,
    /// `nvmlDeviceGetProcessUtilization`.
    Older,
}

impl RowsCall {
    /// NVML's name of it.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::OfAllEngines => "nvmlDeviceGetProcessesUtilizationInfo",
            Self::Older => "nvmlDeviceGetProcessUtilization",
        }
    }

    pub(super) const fn other(self) -> Self {
        match self {
            Self::OfAllEngines => Self::Older,
            Self::Older => Self::OfAllEngines,
        }
    }
}

/// One GPU's driver. Stamps are of the call's own clock, in microseconds; 0 asks for all that is kept.
pub(super) trait Driver {
    /// Both clocks of this machine.
    fn now(&self) -> Clock;
    /// The device's own samples newer than a stamp; none where it does not offer them.
    fn samples(&self, since_us: u64) -> Result<Option<Vec<RawSample>>, NvmlFailure>;
    /// Whether the driver has the call.
    fn has(&self, call: RowsCall) -> bool;
    /// The processes' rows over all samples newer than a stamp; none where it does not offer them.
    fn rows(&self, call: RowsCall, since_us: u64) -> Result<Option<Vec<RawRow>>, NvmlFailure>;
}
