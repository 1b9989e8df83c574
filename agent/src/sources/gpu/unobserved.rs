//! A window in which nothing was observed. The other windows are made from one.

use crate::core::input::{GpuWindow, WindowQuality};
use crate::core::model::{BootTime, GpuUuid, Nanos, UnobservedReason};

/// A window from `start` to `end` without any busy or idle time. Reasons without time are left out.
pub(super) fn unobserved(
    gpu: &GpuUuid,
    start: BootTime,
    end: BootTime,
    reasons: impl IntoIterator<Item = (UnobservedReason, Nanos)>,
) -> GpuWindow {
    GpuWindow {
        gpu: gpu.clone(),
        start,
        end,
        busy: Nanos::ZERO,
        idle: Nanos::ZERO,
        unobserved: reasons
            .into_iter()
            .filter(|(_, time)| !time.is_zero())
            .collect(),
        credits: Vec::new(),
        below_resolution: Nanos::ZERO,
        no_row: Nanos::ZERO,
        engines: Vec::new(),
        energy: None,
        quality: WindowQuality::default(),
        clocks: None,
    }
}
