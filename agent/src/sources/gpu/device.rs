//! One GPU as its thread knows it: asked for one window at a time, by itself.
//!
//! Errors are waited out, since the driver's ring keeps what was missed; only when the open time is
//! overdue is it closed as unobserved. What a device does not offer is no error.

use nvml_wrapper::Device;
use nvml_wrapper::enum_wrappers::device::Sampling;
use nvml_wrapper::enums::device::SampleValue;
use nvml_wrapper::error::NvmlError;

use super::accounting::Accounting;
use super::calls::Watchdog;
use super::library::{Fault, class, fault};
use super::mig::Activity;
use super::window::{Bracket, Cursor, EnginePercents, RawRow, RawSample, Windows};
use super::{raw, retried};
use crate::core::amounts::{Engine, Millijoules};
use crate::core::input::{GpuInfo, GpuWindow};
use crate::core::model::{Clock, GpuUuid, UnobservedReason};
use crate::sources::clock;

/// How often a window's calls are made when a sample lands between them.
const TRIES: u32 = 3;
const SAMPLES: &str = "nvmlDeviceGetSamples";
const ROWS: &str = "nvmlDeviceGetProcessUtilization";
const ENERGY: &str = "nvmlDeviceGetTotalEnergyConsumption";
/// The newer call, which tells of two engines more.
const ROWS_OF_ALL_ENGINES: &str = "nvmlDeviceGetProcessesUtilizationInfo";

/// A call that failed.
#[derive(Clone, Debug)]
pub(super) struct Trouble {
    pub(super) fault: Fault,
    /// The label for the source's state.
    pub(super) class: &'static str,
    pub(super) text: String,
}

impl Trouble {
    pub(super) fn new(call: &str, error: &NvmlError) -> Self {
        Self {
            fault: fault(error),
            class: class(error),
            text: format!("{call}: {error}"),
        }
    }

    /// A figure that cannot be one.
    pub(super) fn figure(call: &str, found: f64) -> Self {
        Self {
            fault: Fault::Other,
            class: "driver_error",
            text: format!("{call}: found {found} percent, expected 0 to 100"),
        }
    }

    /// NVML lists a GPU no more, or cannot open it, for this cause if it tells one.
    pub(super) fn gone(cause: Option<Self>) -> Self {
        const GONE: &str = "not among the GPUs that NVML can open";
        match cause {
            None => Self {
                fault: Fault::Lost,
                class: "gpu_lost",
                text: GONE.to_owned(),
            },
            Some(cause) => Self {
                text: format!("{GONE}: {}", cause.text),
                ..cause
            },
        }
    }

    /// A call that does not return.
    pub(super) fn blocked(call: &str) -> Self {
        Self {
            fault: Fault::Other,
            class: "timeout",
            text: format!("the call {call} does not return"),
        }
    }

    /// A call that has returned, and failed, after so long.
    pub(super) fn slow(call: &str) -> Self {
        Self {
            text: format!("the call {call} took longer than the driver keeps samples, and failed"),
            ..Self::blocked(call)
        }
    }

    /// A thread that cannot be started.
    pub(super) fn thread(error: &std::io::Error) -> Self {
        Self {
            fault: Fault::Other,
            class: "thread",
            text: format!("cannot start a thread: {error}"),
        }
    }

    /// A defect ended the thread.
    pub(super) fn panicked() -> Self {
        Self {
            fault: Fault::Other,
            class: "panic",
            text: "a defect ended the thread that asks it".to_owned(),
        }
    }

    /// NVML answers and has nothing to answer for.
    pub(super) fn no_gpu() -> Self {
        Self {
            fault: Fault::Other,
            class: "no_gpu",
            text: "NVML lists no GPU".to_owned(),
        }
    }
}

/// One GPU.
pub(super) struct Gpu {
    pub(super) info: GpuInfo,
    pub(super) windows: Windows,
    pub(super) accounting: Accounting,
    /// Whether it has a counter of energy, as far as this session of the library knows.
    pub(super) has_energy: bool,
    /// What went wrong when it was asked last.
    pub(super) fault: Option<Trouble>,
}

/// The engines beside the SMs of which the device's rows tell. They are asked for as
/// [`Gpu::rows`] does, from now on: it is whether they answer that counts.
pub(super) fn engines(
    device: &Device<'_>,
    uuid: &GpuUuid,
    watchdog: &Watchdog,
) -> &'static [Engine] {
    let now_us = clock::now().wall.0 / 1000;
    let nvml = device.nvml();
    if raw::has_processes_utilization(nvml) {
        let answer = watchdog.call(ROWS_OF_ALL_ENGINES, Some(uuid), || {
            raw::processes_utilization(nvml, device, now_us)
        });
        if matches!(offered(ROWS_OF_ALL_ENGINES, answer), Ok(Some(_))) {
            return &Engine::ALL;
        }
    }
    let answer = watchdog.call(ROWS, Some(uuid), || {
        device.process_utilization_stats(now_us)
    });
    match offered(ROWS, answer) {
        Ok(Some(_)) => &[Engine::Memory, Engine::Encoder, Engine::Decoder],
        Ok(None) | Err(_) => &[],
    }
}

/// What a device has to say about a stretch of time.
enum Answer {
    /// Samples and rows; rows that could not be had are left out, with the reason.
    Bracket(Bracket, Option<Trouble>),
    /// The device has no samples of its own.
    RowsOnly { rows: Vec<RawRow>, asked: Clock },
    /// Neither, as under MIG.
    Unsupported,
}

impl Gpu {
    /// A GPU's windows begin now, and its ring only tells how it samples; or they go on where an
    /// agent before this one stopped, and what that lost comes with it.
    pub(super) fn first_sight(
        device: &Device<'_>,
        info: &GpuInfo,
        watchdog: &Watchdog,
        cursor: Option<&Cursor>,
    ) -> (Self, Option<GpuWindow>) {
        let mut gpu = Self {
            info: info.clone(),
            windows: Windows::new(info.uuid.clone(), clock::now()),
            accounting: Accounting::default(),
            has_energy: true,
            fault: None,
        };
        // What fails here fails again at the first window, which says so. Rows before the ring, so that
        // it has every sample that they are about.
        let rows = gpu.rows(device, watchdog, 0).ok().flatten();
        let ring = gpu.samples(device, watchdog, 0).ok().flatten();
        let (rows, ring) = (rows.unwrap_or_default(), ring.unwrap_or_default());
        let mut lost = None;
        if let Some(cursor) = cursor {
            // An instance's activity is read from now on: it has no ring that reaches back.
            (gpu.windows, lost) = match info.mig {
                Some(_) => Windows::resumed_without_ring(cursor, clock::now()),
                None => Windows::resumed(cursor, &ring, clock::now()),
            };
        } else {
            gpu.windows.learn(&ring);
        }
        gpu.windows.compare(&rows, &ring);
        gpu.read_energy(device, watchdog);
        gpu.windows.set_baseline();
        (gpu, lost)
    }

    /// Asks for a window. None where there is nothing to close yet.
    pub(super) fn poll(&mut self, device: &Device<'_>, watchdog: &Watchdog) -> Option<GpuWindow> {
        let answer = self.ask(device, watchdog);
        if answer.is_ok() {
            self.read_energy(device, watchdog);
        } else {
            self.windows.read_energy(None);
        }
        match answer {
            Ok(Answer::Bracket(bracket, trouble)) => {
                self.fault = trouble;
                self.windows.close(&bracket)
            }
            Ok(Answer::RowsOnly { rows, asked }) => {
                self.fault = None;
                self.windows
                    .close_without_samples(&rows, asked, clock::now())
            }
            Ok(Answer::Unsupported) => {
                self.fault = None;
                self.windows
                    .fail(clock::now(), UnobservedReason::Unsupported)
            }
            Err(trouble) => {
                let gpu = self.info.uuid.as_str();
                tracing::debug!(gpu, error = trouble.text, "a GPU cannot be read");
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
                .windows
                .fail(clock::now(), UnobservedReason::Unsupported);
        };
        match measuring.measure(&self.info.uuid, watchdog) {
            Ok(measured) => {
                self.fault = None;
                let measured = measured?;
                self.windows
                    .close_measured(measured.since.boot, measured.until, measured.busy_ppm)
            }
            Err(trouble) if trouble.fault == Fault::Unsupported => {
                *activity = None;
                self.poll_instance(activity, watchdog)
            }
            Err(trouble) => {
                let gpu = self.info.uuid.as_str();
                tracing::debug!(gpu, error = trouble.text, "an instance cannot be measured");
                self.fault = Some(trouble);
                self.close_overdue()
            }
        }
    }

    /// Closes the open time as unobserved if it is overdue.
    fn close_overdue(&mut self) -> Option<GpuWindow> {
        let now = clock::now();
        if !self.windows.overdue(now.boot) {
            return None;
        }
        self.windows.read_energy(None);
        self.windows.fail(now, UnobservedReason::DriverError)
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
            self.has_energy = fault(error) != Fault::Unsupported;
        }
        self.windows.read_energy(answer.ok().map(Millijoules));
    }

    /// Samples, rows, samples: again if one landed in between, but not for ever.
    fn ask(&self, device: &Device<'_>, watchdog: &Watchdog) -> Result<Answer, Trouble> {
        let cursor = self.windows.cursor_us();
        let mut tries = 0;
        let first_asked = clock::now().boot;
        loop {
            tries += 1;
            let asked = clock::now();
            let before = self.samples(device, watchdog, cursor)?;
            let rows = self.rows(device, watchdog, cursor);
            let (before, rows, trouble) = match (before, rows) {
                (Some(before), Ok(rows)) => (before, rows.unwrap_or_default(), None),
                (None, Ok(Some(rows))) => return Ok(Answer::RowsOnly { rows, asked }),
                (None, Ok(None)) => return Ok(Answer::Unsupported),
                // Waited out for long enough: how busy the device was is known, who made it so is
                // not.
                (Some(before), Err(trouble))
                    if trouble.fault == Fault::Other && self.windows.overdue(asked.boot) =>
                {
                    (before, Vec::new(), Some(trouble))
                }
                (_, Err(trouble)) => return Err(trouble),
            };
            // What fails here leaves the window as it would be without.
            let newest_us = before.iter().map(|sample| sample.at_us).max();
            let later = newest_us
                .filter(|_| self.windows.is_off_beat())
                .and_then(|newest_us| self.rows(device, watchdog, newest_us).ok().flatten());
            let answered = clock::now();
            let is_torn_within = self.windows.is_torn_within(asked, answered);
            // A device that has just stopped to offer samples says so again next time.
            let after = self.samples(device, watchdog, cursor)?.unwrap_or_default();
            let bracket = Bracket {
                before,
                rows,
                later: later.map(|later| (later, answered)),
                after,
                asked: first_asked,
                clock: clock::now(),
            };
            let is_torn = bracket.torn() || is_torn_within;
            if !is_torn || tries == TRIES {
                return Ok(Answer::Bracket(bracket, trouble));
            }
        }
    }

    /// The device's own samples newer than `last_us`; none where it does not offer them.
    fn samples(
        &self,
        device: &Device<'_>,
        watchdog: &Watchdog,
        last_us: u64,
    ) -> Result<Option<Vec<RawSample>>, Trouble> {
        let answer = retried(|| {
            watchdog.call(SAMPLES, Some(&self.info.uuid), || {
                device.samples(Sampling::GpuUtilization, last_us)
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

    /// The processes' rows since `last_us`; none where the device does not offer them. The newer
    /// call is made where the driver has it; whatever it fails with, the older one decides, since
    /// both read one ring.
    fn rows(
        &self,
        device: &Device<'_>,
        watchdog: &Watchdog,
        last_us: u64,
    ) -> Result<Option<Vec<RawRow>>, Trouble> {
        if raw::has_processes_utilization(device.nvml()) {
            let answer = retried(|| {
                watchdog.call(ROWS_OF_ALL_ENGINES, Some(&self.info.uuid), || {
                    raw::processes_utilization(device.nvml(), device, last_us)
                })
            });
            if let Ok(Some(rows)) = offered(ROWS_OF_ALL_ENGINES, answer) {
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
                return Ok(Some(rows.collect()));
            }
        }
        let answer = retried(|| {
            watchdog.call(ROWS, Some(&self.info.uuid), || {
                device.process_utilization_stats(last_us)
            })
        });
        let rows = offered(ROWS, answer)?;
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

/// Tells an empty list, a list that is not offered, and a list that could not be had apart. "Not
/// found" is NVML's word for the first.
fn offered<T>(call: &str, answer: Result<Vec<T>, NvmlError>) -> Result<Option<Vec<T>>, Trouble> {
    match answer {
        Ok(list) => Ok(Some(list)),
        Err(NvmlError::NotFound | NvmlError::NoData) => Ok(Some(Vec::new())),
        Err(error) if fault(&error) == Fault::Unsupported => Ok(None),
        Err(error) => Err(Trouble::new(call, &error)),
    }
}

/// A sample's whole percent; what cannot be one becomes a number that the window counts as junk.
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
