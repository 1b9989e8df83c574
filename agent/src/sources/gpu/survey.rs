//! Asks NVML once which features it has here, for `gpuacct check`.
//!
//! It opens the library as the agent does, asks each GPU the three questions that the books are made
//! from, and shuts the library down again. The calls block, perhaps for ever: not for an async
//! thread.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use nvml_wrapper::enum_wrappers::device::Sampling;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};

use super::calls::Watchdog;
use super::fault::{NvmlErrorKind, fault};
use super::library::{Library, OpenError};
use super::{lists, mig, retried};
use crate::core::model::GpuUuid;

/// NVML as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Survey {
    /// Path of the library.
    pub place: Arc<str>,
    /// The driver's version.
    pub driver: Arc<str>,
    /// Whether the library is the simulated one.
    pub simulated: bool,
    /// The GPUs that it lists, in its order.
    pub gpus: Vec<Result<Surveyed, String>>,
}

/// One GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Surveyed {
    /// Its UUID.
    pub uuid: GpuUuid,
    /// The product's name; empty where NVML does not say.
    pub model: Arc<str>,
    /// Its instances, if it is divided into such: the profile of each, and whether its activity can
    /// be measured.
    pub mig: Option<Vec<(Arc<str>, bool)>>,
    /// The device's own samples: how busy it is.
    pub samples: Offer,
    /// The processes' rows: who makes it busy.
    pub processes: Offer,
    /// The process lists: who has a context, with how much memory.
    pub lists: Offer,
}

/// Whether a device answers a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Offer {
    /// It does, be it with nothing.
    Yes,
    /// The device or the driver does not offer it.
    No,
    /// It failed, in NVML's words.
    Failed(String),
}

/// Why there is nothing to survey.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SurveyError {
    /// No library is anywhere: normal on a node without NVIDIA's driver.
    #[error("{0}")]
    Absent(String),
    /// There is one, or there had to be, and it is of no use.
    #[error("{0}")]
    Unusable(String),
}

/// Opens NVML at `configured`, or where drivers put it or specifications in the folders `cdi` say that
/// it is, and asks.
///
/// # Errors
/// If it is not there, or does not initialise.
pub fn survey(configured: Option<&Path>, cdi: &[PathBuf]) -> Result<Survey, SurveyError> {
    let watchdog = Watchdog::default();
    let library = Library::open(configured, cdi, &watchdog).map_err(|error| match error {
        OpenError::Absent { .. } => SurveyError::Absent(error.reason()),
        _ => SurveyError::Unusable(error.reason()),
    })?;
    let nvml = library.nvml();
    let count = nvml
        .device_count()
        .map_err(|error| SurveyError::Unusable(format!("nvmlDeviceGetCount_v2: {error}")))?;
    Ok(Survey {
        place: Arc::clone(&library.place),
        driver: Arc::clone(&library.driver),
        simulated: library.simulated,
        gpus: (0..count)
            .map(|index| ask(nvml, index, &library.driver, &watchdog))
            .collect(),
    })
}

fn ask(nvml: &Nvml, index: u32, driver: &str, watchdog: &Watchdog) -> Result<Surveyed, String> {
    let device = nvml
        .device_by_index(index)
        .map_err(|error| format!("nvmlDeviceGetHandleByIndex_v2: {error}"))?;
    let uuid = device
        .uuid()
        .map_err(|error| format!("nvmlDeviceGetUUID: {error}"))?;
    let uuid = GpuUuid::from(uuid.as_str());
    let lists = if lists::readable(driver) {
        offer(lists::read(&device, &uuid, watchdog))
    } else {
        Offer::Failed(format!(
            "driver {driver} writes them in a layout of its own"
        ))
    };
    Ok(Surveyed {
        model: device.name().unwrap_or_default().into(),
        mig: instances(nvml, &device, &uuid, watchdog),
        samples: offer(retried(|| device.samples(Sampling::GpuUtilization, 0))),
        processes: offer(retried(|| device.process_utilization_stats(0))),
        lists,
        uuid,
    })
}

fn instances(
    nvml: &Nvml,
    device: &Device<'_>,
    uuid: &GpuUuid,
    watchdog: &Watchdog,
) -> Option<Vec<(Arc<str>, bool)>> {
    // The agent's own source reports what cannot be asked, and tries again.
    if !mig::is_divided(device, uuid, watchdog).unwrap_or(false) {
        return None;
    }
    let total = device.memory_info().ok().map(|memory| memory.total);
    let instances = mig::instances(nvml, device, uuid, total, watchdog).unwrap_or_default();
    let described = instances
        .into_iter()
        .map(|instance| (instance.mig.profile, instance.activity.is_some()));
    Some(described.collect())
}

/// "Not found" is NVML's word for an empty list.
fn offer<T>(answer: Result<T, NvmlError>) -> Offer {
    match answer {
        Ok(_) | Err(NvmlError::NotFound | NvmlError::NoData) => Offer::Yes,
        Err(error) if fault(&error) == NvmlErrorKind::Unsupported => Offer::No,
        Err(error) => Offer::Failed(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_now_is_an_offer_and_never_is_none() {
        for (answer, expected) in [
            (Ok(()), Offer::Yes),
            (Err(NvmlError::NotFound), Offer::Yes),
            (Err(NvmlError::NotSupported), Offer::No),
            (
                Err(NvmlError::NoPermission),
                Offer::Failed(NvmlError::NoPermission.to_string()),
            ),
        ] {
            assert_eq!(offer(answer), expected);
        }
    }

    #[test]
    fn a_named_library_that_is_missing_is_no_normal_absence() {
        let error = survey(Some(Path::new("/nonexistent/libnvidia-ml.so.1")), &[]).unwrap_err();
        assert!(matches!(error, SurveyError::Unusable(_)), "{error}");
    }
}
