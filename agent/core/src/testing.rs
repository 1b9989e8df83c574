//! What the unit tests of several parts share.

use crate::input::GpuInfo;
use crate::model::GpuUuid;

/// A whole GPU called `GPU-<index>`.
pub(crate) fn gpu_info(index: u32) -> GpuInfo {
    GpuInfo {
        uuid: GpuUuid::from(format!("GPU-{index}").as_str()),
        index,
        minor: None,
        pci: None,
        model: "test".into(),
        driver: "1".into(),
        simulated: true,
        memory_total: None,
        mig: None,
        engines: vec![],
    }
}
