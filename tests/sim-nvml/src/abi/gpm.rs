//! GPM: samples that a client takes, and what lies between two of them.
//!
//! A sample is a handle that the library makes and a moment that it notes; the metric is the exact
//! integral of the instance's shares between two. Handles are never dereferenced.

use std::collections::BTreeMap;
use std::sync::Mutex;

use nvml_wrapper_sys::bindings::{nvmlGpmMetric_t, nvmlGpmSample_t};

use super::{Answer, code, locked};
use crate::history::Gpu;

/// `NVML_GPM_METRIC_GRAPHICS_UTIL`.
const GRAPHICS_UTIL: u32 = 1;
/// Sample handles begin here.
const HANDLES: usize = 0x5171_0000;

/// What a sample is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sample {
    pub(super) gpu: u32,
    /// The GPU instance; none for a GPU that is not divided.
    pub(super) instance: Option<u32>,
    pub(super) at_us: u64,
}

static SAMPLES: Mutex<BTreeMap<usize, Option<Sample>>> = Mutex::new(BTreeMap::new());

pub(super) fn alloc() -> nvmlGpmSample_t {
    let mut samples = locked(&SAMPLES);
    let address = samples
        .last_key_value()
        .map_or(HANDLES, |(last, _)| last + 8);
    samples.insert(address, None);
    std::ptr::without_provenance_mut(address)
}

pub(super) fn free(sample: nvmlGpmSample_t) -> Answer {
    let freed = locked(&SAMPLES).remove(&sample.addr());
    freed.map(drop).ok_or(code::INVALID_ARGUMENT)
}

pub(super) fn fill(sample: nvmlGpmSample_t, taken: Sample) -> Answer {
    let mut samples = locked(&SAMPLES);
    *samples
        .get_mut(&sample.addr())
        .ok_or(code::INVALID_ARGUMENT)? = Some(taken);
    Ok(())
}

/// Two samples of one part of one GPU, in their order.
pub(super) fn pair(
    earlier: nvmlGpmSample_t,
    later: nvmlGpmSample_t,
) -> Result<(Sample, Sample), u32> {
    let samples = locked(&SAMPLES);
    let get = |sample: nvmlGpmSample_t| samples.get(&sample.addr()).copied().flatten();
    let (Some(earlier), Some(later)) = (get(earlier), get(later)) else {
        return Err(code::INVALID_ARGUMENT);
    };
    let same = (earlier.gpu, earlier.instance) == (later.gpu, later.instance);
    if same && earlier.at_us < later.at_us {
        Ok((earlier, later))
    } else {
        Err(code::INVALID_ARGUMENT)
    }
}

/// Answers one metric, or says that it is not supported.
pub(super) fn answer(gpu: &Gpu, earlier: Sample, later: Sample, metric: &mut nvmlGpmMetric_t) {
    metric.metricInfo.shortName = std::ptr::null_mut();
    metric.metricInfo.longName = std::ptr::null_mut();
    metric.metricInfo.unit = std::ptr::null_mut();
    if metric.metricId != GRAPHICS_UTIL {
        metric.nvmlReturn = code::NOT_SUPPORTED;
        return;
    }
    let busy = match earlier.instance {
        Some(instance) => gpu.instance_busy(instance, earlier.at_us, later.at_us),
        None => gpu.busy(crate::history::Engine::Sm, earlier.at_us, later.at_us),
    };
    // In ppm of the time, of which ten thousand are a percent.
    let ppm = busy / u128::from(later.at_us - earlier.at_us);
    metric.value = f64::from(u32::try_from(ppm).unwrap_or(u32::MAX)) / 1e4;
    metric.nvmlReturn = code::SUCCESS;
}
