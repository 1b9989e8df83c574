//! MIG: what a GPU is divided into, and how busy each part is.
//!
//! To the driver a divided GPU has no utilisation, neither of the device nor of its processes; its
//! instances have process lists and memory. From Hopper on, performance monitoring (GPM) shows for
//! which part of a time a GPU instance's engine was busy: the difference of two samples that the
//! agent takes itself, so that nothing is lost between two of them, however far apart.
//!
//! GPM's figure is about a GPU instance. If that has several compute instances, the figure belongs
//! to none of them, and all of them are unsupported.
//!
//! An instance's UUID is made from its GPU and its ids, so one that is destroyed and made anew with
//! another profile has the UUID of the old one. What an instance is, is therefore UUID, profile and
//! ids together; see [`MigInfo`].
//!
//! Units: percents where NVML gives them, parts per million from there on.

use nvml_wrapper::enums::gpm::GpmMetricId;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::gpm::{GpmSample, gpm_metrics_get};
use nvml_wrapper::struct_wrappers::device::DeviceAttributes;
use nvml_wrapper::{Device, Nvml};

use super::calls::Watchdog;
use super::fault::{NvmlErrorKind, NvmlFailure, fault};
use super::raw;
use crate::core::input::{GpuInfo, MigInfo};
use crate::core::model::{Clock, GpuUuid};
use crate::sources::clock;

/// GPM's share of time in which the engine was busy, as the whole device's utilisation is.
const METRIC: GpmMetricId = GpmMetricId::GraphicsUtil;
/// Floating point leaves a little above the whole; more than this is no percent.
const MOST_PERCENT: f64 = 101.0;

/// Whether a GPU is divided. One that has no such mode is not; one that could not be asked may be
/// either.
pub(super) fn is_divided(
    device: &Device<'_>,
    gpu: &GpuUuid,
    watchdog: &Watchdog,
) -> Result<bool, NvmlError> {
    let mode = watchdog.call("nvmlDeviceGetMigMode", Some(gpu), || device.mig_mode());
    match mode {
        Ok(mode) => Ok(mode.current == 1),
        Err(error) if fault(&error) == NvmlErrorKind::Unsupported => Ok(false),
        Err(error) => Err(error),
    }
}

/// One instance, as NVML lists it.
pub(super) struct Instance<'library> {
    pub(super) device: Device<'library>,
    pub(super) uuid: GpuUuid,
    pub(super) mig: MigInfo,
    pub(super) memory_total: Option<u64>,
    /// How its activity is measured, where that can be.
    pub(super) activity: Option<Activity<'library>>,
}

/// The instances of a divided GPU of `whole_bytes` of memory.
pub(super) fn instances<'library>(
    nvml: &Nvml,
    whole: &Device<'library>,
    gpu: &GpuUuid,
    whole_bytes: Option<u64>,
    watchdog: &Watchdog,
) -> Result<Vec<Instance<'library>>, NvmlError> {
    let mut found = Vec::new();
    for device in handles(whole, gpu, watchdog)? {
        let (uuid, mig) = identity(&device, gpu, whole_bytes, watchdog)?;
        let memory = watchdog.call("nvmlDeviceGetMemoryInfo", Some(&uuid), || {
            device.memory_info()
        });
        found.push(Instance {
            device,
            uuid,
            mig,
            memory_total: memory.ok().map(|memory| memory.total),
            activity: None,
        });
    }

    let support = || {
        watchdog.call("nvmlGpmQueryDeviceSupport", Some(gpu), || {
            whole.gpm_support()
        })
    };
    if !raw::has_gpm(nvml) || !support().unwrap_or(false) {
        return Ok(found);
    }
    let ids: Vec<u32> = found
        .iter()
        .map(|instance| instance.mig.gpu_instance)
        .collect();
    for instance in &mut found {
        let id = instance.mig.gpu_instance;
        if ids.iter().filter(|other| **other == id).count() == 1 {
            instance.activity = Some(Activity {
                whole: watchdog.call(
                    "nvmlDeviceGetDeviceHandleFromMigDeviceHandle",
                    Some(&instance.uuid),
                    || instance.device.mig_parent_device(),
                )?,
                gpu_instance: id,
                last: None,
            });
        }
    }
    Ok(found)
}

/// Identities of a GPU's MIG instances. They change when the GPU is divided differently.
pub(super) fn identities(
    whole: &Device<'_>,
    info: &GpuInfo,
    watchdog: &Watchdog,
) -> Result<Vec<(GpuUuid, MigInfo)>, NvmlError> {
    handles(whole, &info.uuid, watchdog)?
        .iter()
        .map(|device| identity(device, &info.uuid, info.memory_total, watchdog))
        .collect()
}

fn identity(
    device: &Device<'_>,
    gpu: &GpuUuid,
    whole_bytes: Option<u64>,
    watchdog: &Watchdog,
) -> Result<(GpuUuid, MigInfo), NvmlError> {
    let uuid = watchdog.call("nvmlDeviceGetUUID", Some(gpu), || device.uuid())?;
    let attributes = watchdog.call("nvmlDeviceGetAttributes_v2", Some(gpu), || {
        device.attributes()
    })?;
    let (gpu_instance, compute_instance) =
        watchdog.call("nvmlDeviceGetGpuInstanceId", Some(gpu), || {
            raw::instance_ids(device.nvml(), device)
        })?;
    let mig = MigInfo {
        parent: gpu.clone(),
        profile: profile(&attributes, whole_bytes).into(),
        gpu_instance,
        compute_instance,
    };
    Ok((GpuUuid::from(uuid.as_str()), mig))
}

fn handles<'library>(
    whole: &Device<'library>,
    gpu: &GpuUuid,
    watchdog: &Watchdog,
) -> Result<Vec<Device<'library>>, NvmlError> {
    let most = watchdog.call("nvmlDeviceGetMaxMigDeviceCount", Some(gpu), || {
        whole.mig_device_count()
    })?;
    let mut handles = Vec::new();
    for index in 0..most {
        let handle = watchdog.call("nvmlDeviceGetMigDeviceHandleByIndex", Some(gpu), || {
            whole.mig_device_by_index(index)
        });
        match handle {
            Ok(handle) => handles.push(handle),
            // Places are not filled in order.
            Err(NvmlError::NotFound) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(handles)
}

/// NVIDIA's name of an instance's size: slices and memory, e.g. `1g.10gb`, and the compute slices
/// before them where they are not all. Memory is given in eighths of the whole, rounded to gigabytes.
fn profile(attributes: &DeviceAttributes, whole_bytes: Option<u64>) -> String {
    const GIB: u64 = 1 << 30;
    let (compute, slices) = (
        attributes.compute_instance_slice_count,
        attributes.gpu_instance_slice_count,
    );
    let prefix = if compute == slices {
        String::new()
    } else {
        format!("{compute}c.")
    };
    let memory = whole_bytes.filter(|bytes| *bytes > 0).map(|whole| {
        let bytes = attributes.memory_size_mb.saturating_mul(1 << 20);
        let eighths = bytes.saturating_mul(8).div_ceil(whole);
        let gigabytes = (eighths.saturating_mul(whole.div_ceil(GIB)) + 4) / 8;
        format!(".{gigabytes}gb")
    });
    format!("{prefix}{slices}g{}", memory.unwrap_or_default())
}

/// A GPU instance's activity, measured from one question to the next.
pub(super) struct Activity<'library> {
    whole: Device<'library>,
    gpu_instance: u32,
    last: Option<(GpmSample<'library>, Clock)>,
}

/// Activity of a MIG instance between two GPM samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Measured {
    /// When the earlier one was taken.
    pub(super) since: Clock,
    /// When the later one was.
    pub(super) until: Clock,
    /// For which part of that time it was busy.
    pub(super) busy_ppm: u32,
}

impl Activity<'_> {
    /// Activity since the last call. `None` the first time.
    pub(super) fn measure(
        &mut self,
        uuid: &GpuUuid,
        watchdog: &Watchdog,
    ) -> Result<Option<Measured>, NvmlFailure> {
        const SAMPLE: &str = "nvmlGpmMigSampleGet";
        const METRICS: &str = "nvmlGpmMetricsGet";
        let sample = watchdog
            .call(SAMPLE, Some(uuid), || {
                self.whole.gpm_mig_sample(self.gpu_instance)
            })
            .map_err(|error| NvmlFailure::new(SAMPLE, &error))?;
        let until = clock::now();
        let Some((earlier, since)) = &self.last else {
            self.last = Some((sample, until));
            return Ok(None);
        };
        let since = *since;
        let percent = watchdog
            .call(METRICS, Some(uuid), || {
                let metrics = gpm_metrics_get(self.whole.nvml(), earlier, &sample, &[METRIC])?;
                let metric = metrics.into_iter().next().ok_or(NvmlError::NoData)?;
                Ok(metric?.value)
            })
            .map_err(|error| NvmlFailure::new(METRICS, &error))?;
        let Some(busy_ppm) = ppm(percent) else {
            return Err(NvmlFailure::figure(METRICS, percent));
        };
        self.last = Some((sample, until));
        Ok(Some(Measured {
            since,
            until,
            busy_ppm,
        }))
    }
}

/// A percent in parts per million; none where it is no percent.
fn ppm(percent: f64) -> Option<u32> {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "0 to 1e6 by the range that was checked"
    )]
    (0.0..=MOST_PERCENT)
        .contains(&percent)
        .then(|| (percent.min(100.0) * 1e4).round() as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_have_nvidia_s_names() {
        const MIB: u64 = 1 << 20;
        let (a100, h100, h200) = (81_920 * MIB, 81_559 * MIB, 143_771 * MIB);
        for (whole, slices, compute, mib, expected) in [
            (a100, 1, 1, 9_728, "1g.10gb"),
            (a100, 1, 1, 19_968, "1g.20gb"),
            (a100, 3, 3, 40_192, "3g.40gb"),
            (a100, 3, 1, 40_192, "1c.3g.40gb"),
            (a100, 7, 7, 80_896, "7g.80gb"),
            (40_536 * MIB, 1, 1, 4_864, "1g.5gb"),
            (h100, 2, 2, 19_968, "2g.20gb"),
            (h200, 1, 1, 16_384, "1g.18gb"),
            (h200, 3, 3, 70_000, "3g.71gb"),
        ] {
            let attributes = DeviceAttributes {
                multiprocessor_count: 14,
                shared_copy_engine_count: 1,
                shared_decoder_count: 0,
                shared_encoder_count: 0,
                shared_jpeg_count: 0,
                shared_ofa_count: 0,
                gpu_instance_slice_count: slices,
                compute_instance_slice_count: compute,
                memory_size_mb: mib,
            };
            assert_eq!(profile(&attributes, Some(whole)), expected);
        }
    }

    #[test]
    fn only_percents_are_percents() {
        for (percent, expected) in [
            (0.0, Some(0)),
            (12.345_67, Some(123_457)),
            (100.0, Some(1_000_000)),
            (100.000_1, Some(1_000_000)),
            (150.0, None),
            (-1.0, None),
            (f64::NAN, None),
            (f64::INFINITY, None),
        ] {
            assert_eq!(ppm(percent), expected, "{percent}");
        }
    }
}
