//! One GPU as its thread knows it: asked for one window at a time, by itself.
//!
//! Errors are retried, since the driver's ring keeps what was missed. Only overdue time is closed
//! as unobserved. A feature that the device does not offer is not an error.

use nvml_wrapper::Device;
use nvml_wrapper::enum_wrappers::device::Sampling;
use nvml_wrapper::enums::device::SampleValue;
use nvml_wrapper::error::NvmlError;

use super::accounting::Accounting;
use super::answer::{EnginePercents, RawRow, RawSample};
use super::calls::Watchdog;
use super::cursor::Cursor;
use super::driver::{Driver, RowsCall};
use super::fault::{NvmlErrorKind, NvmlFailure, fault};
use super::mig::Activity;
use super::reader::{DriverAnswer, Reader};
use super::sample_clock::Reading;
use super::{raw, retried};
use crate::core::amounts::{Engine, Millijoules};
use crate::core::input::{GpuInfo, GpuWindow};
use crate::core::model::{Clock, GpuUuid, Nanos, UnobservedReason};
use crate::sources::clock;

const SAMPLES: &str = "nvmlDeviceGetSamples";
const ENERGY: &str = "nvmlDeviceGetTotalEnergyConsumption";
/// One GPU.
pub(super) struct Gpu {
    pub(super) info: GpuInfo,
    pub(super) reader: Reader,
    pub(super) accounting: Accounting,
    /// Whether it has a counter of energy, as far as this session of the library knows.
    pub(super) has_energy: bool,
    /// What went wrong when it was asked last.
    pub(super) fault: Option<NvmlFailure>,
}

/// The engines beside the SMs that the device's rows report. The call asks for rows from now on.
/// Only whether it answers matters, so the clock of "now" makes no difference.
pub(super) fn engines(
    device: &Device<'_>,
    uuid: &GpuUuid,
    watchdog: &Watchdog,
) -> &'static [Engine] {
    let driver = Asking {
        device,
        uuid,
        watchdog,
    };
    let now_us = clock::now().wall.0 / 1000;
    for (call, engines) in [
        (RowsCall::OfAllEngines, &Engine::ALL[..]),
        (
            RowsCall::Older,
            &[Engine::Memory, Engine::Encoder, Engine::Decoder],
        ),
    ] {
        if driver.has(call) && matches!(driver.rows(call, now_us), Ok(Some(_))) {
            return engines;
        }
    }
    &[]
}

/// A device that is asked over NVML.
struct Asking<'a, 'library> {
    device: &'a Device<'library>,
    uuid: &'a GpuUuid,
    watchdog: &'a Watchdog,
}

impl Driver for Asking<'_, '_> {
    fn now(&self) -> Clock {
        clock::now()
    }

    fn samples(&self, since_us: u64) -> Result<Option<Vec<RawSample>>, NvmlFailure> {
        let answer = retried(|| {
            self.watchdog.call(SAMPLES, Some(self.uuid), || {
                self.device.samples(Sampling::GpuUtilization, since_us)
            })
        });
        let samples = offered(SAMPLES, answer)?;
        Ok(samples.map(|samples| {
            samples
                .into_iter()
                .map(|sample| RawSample {
                    at_us: sample.timestamp,
                    percent: percent(&sample.value),
                })
                .collect()
        }))
    }

    fn has(&self, call: RowsCall) -> bool {
        call == RowsCall::Older || raw::has_processes_utilization(self.device.nvml())
    }

    fn rows(&self, call: RowsCall, since_us: u64) -> Result<Option<Vec<RawRow>>, NvmlFailure> {
        let (name, gpu, device) = (call.as_str(), Some(self.uuid), self.device);
        if call == RowsCall::OfAllEngines {
            let answer = retried(|| {
                self.watchdog.call(name, gpu, || {
                    raw::processes_utilization(device.nvml(), device, since_us)
                })
            });
            let rows = offered(name, answer)?;
            return Ok(rows.map(|rows| {
                let rows = rows.into_iter().map(|row| RawRow {
                    pid: row.pid,
                    at_us: row.timeStamp,
                    percent: row.smUtil,
                    engines: EnginePercents {
                        memory: row.memUtil,
                        encoder: row.encUtil,
                        decoder: row.decUtil,
                        jpeg: row.jpgUtil,
                        ofa: row.ofaUtil,
                    },
                });
                rows.collect()
            }));
        }
        let answer = retried(|| {
            self.watchdog
                .call(name, gpu, || device.process_utilization_stats(since_us))
        });
        let rows = offered(name, answer)?;
        Ok(rows.map(|rows| {
            rows.into_iter()
                .map(|row| RawRow {
                    pid: row.pid,
                    at_us: row.timestamp,
                    percent: row.sm_util,
                    engines: EnginePercents {
                        memory: row.mem_util,
                        encoder: row.enc_util,
                        decoder: row.dec_util,
                        ..EnginePercents::default()
                    },
                })
                .collect()
        }))
    }
}

impl Gpu {
    /// Creates a GPU's windows. They begin now, or continue from the previous agent. Time that a
    /// MIG instance lost in between is returned; a whole GPU's lost time is its first window.
    pub(super) fn first_sight(
        device: &Device<'_>,
        info: &GpuInfo,
        watchdog: &Watchdog,
        cursor: Option<&Cursor>,
    ) -> (Self, Option<GpuWindow>) {
        let driver = Asking {
            device,
            uuid: &info.uuid,
            watchdog,
        };
        let (reader, lost) = match info.mig {
            Some(_) => Reader::without_ring(&info.uuid, &driver, cursor),
            None => (Reader::first_sight(&info.uuid, &driver, cursor), None),
        };
        let mut gpu = Self {
            info: info.clone(),
            reader,
            accounting: Accounting::default(),
            has_energy: true,
            fault: None,
        };
        gpu.read_energy(device, watchdog);
        gpu.reader.windows.set_baseline();
        (gpu, lost)
    }

    /// The time between two samples of processes, and up to when this GPU's time is accounted for, in
    /// microseconds of the wall clock.
    pub(super) fn accounted(&self) -> (Nanos, u64) {
        let windows = &self.reader.windows;
        let through = clock::now().wall_of(windows.end());
        (windows.process_period(), through.0 / 1000)
    }

    /// Asks for a window. None where there is nothing to close yet.
    pub(super) fn poll(&mut self, device: &Device<'_>, watchdog: &Watchdog) -> Option<GpuWindow> {
        let driver = Asking {
            device,
            uuid: &self.info.uuid,
            watchdog,
        };
        let answer = self.reader.ask(&driver);
        if answer.is_ok() {
            self.read_energy(device, watchdog);
        } else {
            self.reader.windows.read_energy(None);
        }
        match answer {
            Ok(asked) => {
                self.fault = match &asked {
                    DriverAnswer::WindowReadings(_, trouble) => trouble.clone(),
                    _ => None,
                };
                self.reader.close(asked, clock::now())
            }
            Err(trouble) => {
                let gpu = self.info.uuid.as_str();
                tracing::debug!(gpu, error = trouble.text, "cannot read a GPU");
                self.fault = Some(trouble);
                self.close_overdue()
            }
        }
    }

    /// Takes the measure of an instance. None where there is nothing to close yet; without an
    /// `activity` its time is unsupported.
    pub(super) fn poll_instance(
        &mut self,
        activity: &mut Option<Activity<'_>>,
        watchdog: &Watchdog,
    ) -> Option<GpuWindow> {
        let Some(measuring) = activity else {
            self.fault = None;
            return self
                .reader
                .fail(clock::now(), UnobservedReason::Unsupported);
        };
        match measuring.measure(&self.info.uuid, watchdog) {
            Ok(measured) => {
                self.fault = None;
                let measured = measured?;
                // On the boot clock: nothing of it is stamped.
                let until = Reading {
                    boot: measured.until.boot,
                    ahead: 0,
                };
                self.reader
                    .windows
                    .close_measured(measured.since.boot, until, measured.busy_ppm)
            }
            Err(trouble) if trouble.fault == NvmlErrorKind::Unsupported => {
                *activity = None;
                self.poll_instance(activity, watchdog)
            }
            Err(trouble) => {
                let gpu = self.info.uuid.as_str();
                tracing::debug!(gpu, error = trouble.text, "cannot measure a MIG instance");
                self.fault = Some(trouble);
                self.close_overdue()
            }
        }
    }

    /// Closes the open time as unobserved if it is overdue.
    fn close_overdue(&mut self) -> Option<GpuWindow> {
        let now = clock::now();
        if !self.reader.windows.overdue(now.boot) {
            return None;
        }
        self.reader.windows.read_energy(None);
        self.reader.fail(now, UnobservedReason::DriverError)
    }

    /// Reads the device's counter of energy, if it has one. What fails is left out of this window
    /// and in the next one.
    fn read_energy(&mut self, device: &Device<'_>, watchdog: &Watchdog) {
        if !self.has_energy {
            return;
        }
        let answer = watchdog.call(ENERGY, Some(&self.info.uuid), || {
            device.total_energy_consumption()
        });
        if let Err(error) = &answer {
            self.has_energy = fault(error) != NvmlErrorKind::Unsupported;
        }
        self.reader
            .windows
            .read_energy(answer.ok().map(Millijoules));
    }
}

/// Tells an empty list, a list that is not offered, and a list that could not be had apart. "Not
/// found" is NVML's word for the first.
fn offered<T>(
    call: &str,
    answer: Result<Vec<T>, NvmlError>,
) -> Result<Option<Vec<T>>, NvmlFailure> {
    match answer {
        Ok(list) => Ok(Some(list)),
        Err(NvmlError::NotFound | NvmlError::NoData) => Ok(Some(Vec::new())),
        Err(error) if fault(&error) == NvmlErrorKind::Unsupported => Ok(None),
        Err(error) => Err(NvmlFailure::new(call, &error)),
    }
}

/// A sample's whole percent. An impossible value becomes a number that the window counts as
/// invalid.
pub(super) fn percent(value: &SampleValue) -> u32 {
    match *value {
        SampleValue::U32(percent) => percent,
        SampleValue::U64(percent) => u32::try_from(percent).unwrap_or(u32::MAX),
        SampleValue::I64(percent) => u32::try_from(percent).unwrap_or(u32::MAX),
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "the range is checked, and whole percents are what NVML speaks"
        )]
        SampleValue::F64(percent) if (0.0..=100.0).contains(&percent) => percent as u32,
        SampleValue::F64(_) => u32::MAX,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sample_values_of_every_type_become_percents() {
        for (value, expected) in [
            (SampleValue::U32(37), 37),
            (SampleValue::U64(u64::MAX), u32::MAX),
            (SampleValue::I64(-1), u32::MAX),
            (SampleValue::I64(100), 100),
            (SampleValue::F64(99.9), 99),
            (SampleValue::F64(f64::NAN), u32::MAX),
            (SampleValue::F64(1e300), u32::MAX),
        ] {
            assert_eq!(percent(&value), expected, "{value:?}");
        }
    }

    #[test]
    fn nothing_is_neither_an_error_nor_unsupported() {
        for (answer, expected) in [
            (Ok(vec![1]), Some(Some(1))),
            (Ok(vec![]), Some(Some(0))),
            (Err(NvmlError::NotFound), Some(Some(0))),
            (Err(NvmlError::NoData), Some(Some(0))),
            (Err(NvmlError::NotSupported), Some(None)),
            (Err(NvmlError::UnexpectedVariant(26)), Some(None)),
            (Err(NvmlError::GpuLost), None),
            (Err(NvmlError::UnexpectedVariant(1234)), None),
        ] {
            let what = format!("{answer:?}");
            let length = offered("call", answer)
                .ok()
                .map(|list| list.map(|list: Vec<i32>| list.len()));
            assert_eq!(length, expected, "{what}");
        }
    }
}
