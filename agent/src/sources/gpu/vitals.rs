//! Reads a GPU's health, group by group.
//!
//! Each figure is a number, or it is unsupported, or its query failed. A group is one or a few calls.
//! [`Vitals`] reads as many groups as there is time for and goes on with the others later, so that no
//! window waits for more than one group. The calls of a group that fail do not affect the others.
//!
//! A group's cost is seen in the figures of the calls: the calls for field values are counted by group.

use std::time::{Duration, Instant};

use nvml_wrapper::Device;
use nvml_wrapper::enum_wrappers::device::{Clock, PcieUtilCounter, TemperatureSensor};
use nvml_wrapper::enums::device::SampleValue;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::structs::device::FieldId;
use nvml_wrapper::sys_exports::field_id as id;

use super::calls::Watchdog;
use super::fault::{NvmlErrorKind, fault};
use super::raw;
use crate::config;
use crate::core::input::{GpuHealth, HealthFigure, HealthFigures, HealthGroup, Reading};
use crate::core::model::GpuUuid;
use crate::sources::clock;

/// The groups that are always read. Each takes the driver's time for a call or two.
const CHEAP: [HealthGroup; 9] = [
    HealthGroup::Power,
    HealthGroup::Temperature,
    HealthGroup::Clocks,
    HealthGroup::Throttling,
    HealthGroup::Ecc,
    HealthGroup::Repair,
    HealthGroup::Pcie,
    HealthGroup::Nvlink,
    HealthGroup::Recovery,
];
/// Readings may take one part in this many of the time.
const SHARE: u32 = 100;

/// What is read of a GPU's health, and how far the reading is.
#[derive(Debug)]
pub(super) struct Vitals {
    groups: Vec<HealthGroup>,
    /// How many of them the reading in progress has.
    done: usize,
    figures: HealthFigures,
    /// Time that the reading in progress has taken.
    took: Duration,
    /// The next reading is not begun before.
    not_before: Option<Instant>,
}

impl Vitals {
    pub(super) fn new(config: &config::GpuHealth) -> Self {
        let costly = config
            .pcie_throughput
            .then_some(HealthGroup::PcieThroughput);
        let groups = CHEAP.into_iter().chain(costly);
        Self {
            groups: groups.filter(|_| config.enabled).collect(),
            done: 0,
            figures: HealthFigures::new(),
            took: Duration::ZERO,
            not_before: None,
        }
    }

    /// Whether there is something to read now, if a reading is due since `due`.
    pub(super) fn wants(&self, due: Instant, now: Instant) -> bool {
        let is_late_enough = self.not_before.is_none_or(|earliest| now >= earliest);
        !self.groups.is_empty() && (self.done > 0 || (now >= due && is_late_enough))
    }

    /// Reads groups until all are read or it is `until`. Returns the reading once it has all groups.
    pub(super) fn read(
        &mut self,
        device: &Device<'_>,
        gpu: &GpuUuid,
        watchdog: &Watchdog,
        until: Instant,
    ) -> Option<GpuHealth> {
        let asking = Asking {
            device,
            gpu,
            watchdog,
        };
        while let Some(group) = self.groups.get(self.done) {
            let began = Instant::now();
            if began >= until && self.done > 0 {
                return None;
            }
            asking.read(*group, &mut self.figures);
            self.done += 1;
            self.took += began.elapsed();
        }
        self.not_before = Some(Instant::now() + self.took * SHARE);
        self.took = Duration::ZERO;
        self.done = 0;
        Some(GpuHealth {
            gpu: gpu.clone(),
            at: clock::now().boot,
            figures: std::mem::take(&mut self.figures),
        })
    }
}

/// A GPU that is asked.
struct Asking<'a, 'library> {
    device: &'a Device<'library>,
    gpu: &'a GpuUuid,
    watchdog: &'a Watchdog,
}

impl Asking<'_, '_> {
    fn read(&self, group: HealthGroup, figures: &mut HealthFigures) {
        use HealthFigure::*;
        let device = self.device;
        match group {
            HealthGroup::Power => {
                let power = self.ask("nvmlDeviceGetPowerUsage", || device.power_usage());
                let limit = self.ask("nvmlDeviceGetEnforcedPowerLimit", || {
                    device.enforced_power_limit()
                });
                figures.extend([(Power, power), (PowerLimit, limit)]);
            }
            HealthGroup::Temperature => {
                figures.insert(GpuTemperature, self.temperature());
                let fields = [(MemoryTemperature, id::NVML_FI_DEV_MEMORY_TEMP)];
                self.fields("nvmlDeviceGetFieldValues(temperature)", &fields, figures);
                // Some boards without a sensor at their memory answer 0.
                if let Some(reading @ Reading::Ok(0)) = figures.get_mut(&MemoryTemperature) {
                    *reading = Reading::Unsupported;
                }
            }
            HealthGroup::Clocks => {
                for (figure, clock) in [(SmClock, Clock::SM), (MemoryClock, Clock::Memory)] {
                    let reading = self.ask("nvmlDeviceGetClockInfo", || device.clock_info(clock));
                    figures.insert(figure, reading);
                }
                for (figure, clock) in [(SmClockMax, Clock::SM), (MemoryClockMax, Clock::Memory)] {
                    let reading =
                        self.ask("nvmlDeviceGetMaxClockInfo", || device.max_clock_info(clock));
                    figures.insert(figure, reading);
                }
            }
            HealthGroup::Throttling => {
                let name = raw::clocks_event_reasons_call(device.nvml());
                let reading = self.ask(name, || raw::clocks_event_reasons(device.nvml(), device));
                figures.insert(ThrottleReasons, reading);
            }
            HealthGroup::Ecc => {
                let fields = [
                    (EccCorrectedVolatile, id::NVML_FI_DEV_ECC_SBE_VOL_TOTAL),
                    (EccUncorrectedVolatile, id::NVML_FI_DEV_ECC_DBE_VOL_TOTAL),
                    (EccCorrectedAggregate, id::NVML_FI_DEV_ECC_SBE_AGG_TOTAL),
                    (EccUncorrectedAggregate, id::NVML_FI_DEV_ECC_DBE_AGG_TOTAL),
                ];
                self.fields("nvmlDeviceGetFieldValues(ecc)", &fields, figures);
            }
            HealthGroup::Repair => {
                let fields = [
                    (RowsRemappedCorrectable, id::NVML_FI_DEV_REMAPPED_COR),
                    (RowsRemappedUncorrectable, id::NVML_FI_DEV_REMAPPED_UNC),
                    (RemapPending, id::NVML_FI_DEV_REMAPPED_PENDING),
                    (RemapFailed, id::NVML_FI_DEV_REMAPPED_FAILURE),
                    (PagesRetiredSingleBit, id::NVML_FI_DEV_RETIRED_SBE),
                    (PagesRetiredDoubleBit, id::NVML_FI_DEV_RETIRED_DBE),
                    (RetirementPending, id::NVML_FI_DEV_RETIRED_PENDING),
                ];
                self.fields("nvmlDeviceGetFieldValues(repair)", &fields, figures);
            }
            HealthGroup::Pcie => {
                let fields = [(PcieReplays, id::NVML_FI_DEV_PCIE_REPLAY_COUNTER)];
                self.fields("nvmlDeviceGetFieldValues(pcie)", &fields, figures);
            }
            HealthGroup::Nvlink => {
                let fields = [
                    (
                        NvlinkCrcFlits,
                        id::NVML_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL,
                    ),
                    (
                        NvlinkCrcData,
                        id::NVML_FI_DEV_NVLINK_CRC_DATA_ERROR_COUNT_TOTAL,
                    ),
                    (
                        NvlinkReplays,
                        id::NVML_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL,
                    ),
                    (
                        NvlinkRecoveries,
                        id::NVML_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL,
                    ),
                ];
                self.fields("nvmlDeviceGetFieldValues(nvlink)", &fields, figures);
            }
            HealthGroup::Recovery => {
                let fields = [(RecoveryAction, id::NVML_FI_DEV_GET_GPU_RECOVERY_ACTION)];
                self.fields("nvmlDeviceGetFieldValues(recovery)", &fields, figures);
            }
            HealthGroup::PcieThroughput => {
                for (figure, counter) in [
                    (PcieSent, PcieUtilCounter::Send),
                    (PcieReceived, PcieUtilCounter::Receive),
                ] {
                    let reading = self.ask("nvmlDeviceGetPcieThroughput", || {
                        device.pcie_throughput(counter)
                    });
                    figures.insert(figure, reading);
                }
            }
        }
    }

    /// Temperature of the die. The older of two calls is deprecated and gone from CUDA 14 on.
    fn temperature(&self) -> Reading {
        let (device, sensor) = (self.device, TemperatureSensor::Gpu);
        let older = self.ask("nvmlDeviceGetTemperature", || device.temperature(sensor));
        if older != Reading::Unsupported || !raw::has_temperature_v(device.nvml()) {
            return older;
        }
        self.ask("nvmlDeviceGetTemperatureV", || {
            raw::temperature(device.nvml(), device)
        })
    }

    /// Makes a call for one figure.
    fn ask<T: Into<i128>>(
        &self,
        name: &'static str,
        call: impl FnOnce() -> Result<T, NvmlError>,
    ) -> Reading {
        match self.watchdog.call(name, Some(self.gpu), call) {
            Ok(value) => number(value.into()),
            Err(error) => self.without(name, &error),
        }
    }

    /// Makes one call for several figures. Each has an outcome of its own.
    fn fields(
        &self,
        name: &'static str,
        fields: &[(HealthFigure, u32)],
        figures: &mut HealthFigures,
    ) {
        let ids: Vec<FieldId> = fields.iter().map(|(_, id)| FieldId(*id)).collect();
        let answers = self
            .watchdog
            .call(name, Some(self.gpu), || self.device.field_values_for(&ids));
        let answers = match answers {
            Ok(answers) => answers,
            Err(error) => {
                let reading = self.without(name, &error);
                figures.extend(fields.iter().map(|(figure, _)| (*figure, reading)));
                return;
            }
        };
        for ((figure, _), answer) in fields.iter().zip(answers) {
            let reading = match answer.and_then(|sample| sample.value) {
                Ok(value) => number_of(&value),
                // A driver that is older than the field does not know its number.
                Err(NvmlError::InvalidArg) => Reading::Unsupported,
                Err(error) => self.without(name, &error),
            };
            figures.insert(*figure, reading);
        }
    }

    fn without(&self, name: &str, error: &NvmlError) -> Reading {
        if fault(error) == NvmlErrorKind::Unsupported {
            return Reading::Unsupported;
        }
        let gpu = self.gpu.as_str();
        tracing::debug!(gpu, call = name, %error, "cannot read a GPU's health");
        Reading::Failed
    }
}

/// A figure. All ones stand for "not available" in NVML (`NVML_VALUE_NOT_AVAILABLE`).
fn number(value: i128) -> Reading {
    if value == i128::from(u32::MAX) || value == i128::from(u64::MAX) {
        return Reading::Unsupported;
    }
    i64::try_from(value).map_or(Reading::Failed, Reading::Ok)
}

fn number_of(value: &SampleValue) -> Reading {
    match *value {
        SampleValue::U32(value) => number(value.into()),
        SampleValue::U64(value) => number(value.into()),
        SampleValue::I64(value) => Reading::Ok(value),
        // None of the fields that are asked for is a fraction.
        SampleValue::F64(_) => Reading::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_that_is_not_available_is_no_number() {
        for (value, expected) in [
            (SampleValue::U32(0), Reading::Ok(0)),
            (SampleValue::U32(u32::MAX), Reading::Unsupported),
            (SampleValue::U64(u64::MAX), Reading::Unsupported),
            (SampleValue::U64(1 << 63), Reading::Failed),
            (SampleValue::I64(-3), Reading::Ok(-3)),
            (SampleValue::F64(1.0), Reading::Failed),
        ] {
            assert_eq!(number_of(&value), expected, "{value:?}");
        }
    }

    #[test]
    fn every_group_is_either_cheap_or_asked_for() {
        let config = config::GpuHealth {
            pcie_throughput: true,
            ..config::GpuHealth::default()
        };
        assert_eq!(Vitals::new(&config).groups, HealthGroup::ALL);
        let cheap = Vitals::new(&config::GpuHealth::default());
        assert_eq!(cheap.groups, CHEAP);
        let off = config::GpuHealth {
            enabled: false,
            ..config
        };
        let now = Instant::now();
        assert!(!Vitals::new(&off).wants(now, now));
    }

    #[test]
    fn a_slow_reading_makes_the_next_one_wait() {
        let mut vitals = Vitals::new(&config::GpuHealth::default());
        let now = Instant::now();
        assert!(vitals.wants(now, now));
        vitals.not_before = Some(now + Duration::from_secs(9));
        assert!(!vitals.wants(now, now + Duration::from_secs(8)));
        assert!(vitals.wants(now, now + Duration::from_secs(9)));
        // One that has begun goes on.
        vitals.done = 1;
        assert!(vitals.wants(now, now));
    }
}
