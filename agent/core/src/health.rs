//! The health of each GPU: its last reading, the growth of the driver's counts, and throttled time.
//!
//! Nothing is judged here. The driver's counts begin again at zero when the driver is loaded anew, so
//! what is kept of them is their growth: a fall is a new beginning. What a count had before it was first
//! read is not in it.
//!
//! The driver tells of throttling by bits that hold at one instant. The time between two readings counts
//! for a reason whose bit was set in both, and half of it if it was set in one. Time between readings
//! that are too far apart counts for none.

use std::collections::BTreeMap;

use crate::input::{GpuHealth, HealthFigure, HealthFigures, Reading, ThrottleReason};
use crate::model::{BootTime, Clock, GpuUuid, Nanos, WallTime};
use crate::snapshot::{HealthBook, HealthCount, ThrottleBook};

/// How many intervals a reading counts for.
const INTERVALS: u64 = 3;

/// The growth of one of the driver's counts.
#[derive(Clone, Copy, Debug)]
struct Growth {
    /// What the driver had last.
    last: u64,
    total: u64,
    start: WallTime,
}

impl Growth {
    fn take(&mut self, now: u64) {
        // A count that fell began anew at zero.
        let grown = now.checked_sub(self.last).unwrap_or(now);
        self.total = self.total.saturating_add(grown);
        self.last = now;
    }
}

/// Time by reason.
#[derive(Debug)]
struct Throttling {
    start: WallTime,
    /// When the bits were last read, and the bits; absent if that reading had none.
    last: Option<(BootTime, i64)>,
    times: [Nanos; ThrottleReason::ALL.len()],
}

impl Throttling {
    fn take(&mut self, at: BootTime, bits: Option<i64>, longest: Nanos) {
        let before = self.last.take();
        self.last = bits.map(|bits| (at, bits));
        let (Some((from, earlier)), Some(later)) = (before, bits) else {
            return;
        };
        let elapsed = at.since(from);
        if elapsed > longest {
            return;
        }
        for (reason, time) in ThrottleReason::ALL.iter().zip(&mut self.times) {
            let [was, is] = [earlier, later].map(|bits| bits & reason.bit() != 0);
            *time += match (was, is) {
                (true, true) => elapsed,
                (true, false) | (false, true) => Nanos(elapsed.0 / 2),
                (false, false) => Nanos::ZERO,
            };
        }
    }
}

#[derive(Debug, Default)]
struct DeviceHealth {
    last: Option<(BootTime, HealthFigures)>,
    counts: BTreeMap<HealthFigure, Growth>,
    throttling: Option<Throttling>,
}

/// The shortest such time. A reading waits for a window, and for a hundred times as long as the last one
/// took, whatever its interval is.
const AT_LEAST: Nanos = Nanos::from_secs(30);

/// The health of all GPUs.
#[derive(Debug)]
pub(crate) struct DeviceHealths {
    /// How old a reading may be, and how far apart two may be.
    longest: Nanos,
    devices: BTreeMap<GpuUuid, DeviceHealth>,
}

impl DeviceHealths {
    /// For readings that come each `interval`.
    pub(crate) fn new(interval: Nanos) -> Self {
        Self {
            longest: Nanos(interval.0.saturating_mul(INTERVALS)).max(AT_LEAST),
            devices: BTreeMap::new(),
        }
    }

    /// Takes a reading of a GPU that has a book. A reading older than the last one is left out.
    pub(crate) fn take(&mut self, health: GpuHealth, clock: Clock) {
        let device = self.devices.entry(health.gpu).or_default();
        if device.last.as_ref().is_some_and(|(at, _)| *at > health.at) {
            return;
        }
        let read = clock.wall_of(health.at);
        for (figure, reading) in &health.figures {
            let count = reading.value().and_then(|value| u64::try_from(value).ok());
            if let Some(count) = count.filter(|_| figure.is_count()) {
                let growth = device.counts.entry(*figure).or_insert(Growth {
                    last: count,
                    total: 0,
                    start: read,
                });
                growth.take(count);
            }
        }
        let reasons = health.figures.get(&HealthFigure::ThrottleReasons);
        let bits = reasons.and_then(|reading| reading.value());
        if bits.is_some() && device.throttling.is_none() {
            device.throttling = Some(Throttling {
                start: read,
                last: None,
                times: Default::default(),
            });
        }
        if let Some(throttling) = &mut device.throttling {
            throttling.take(health.at, bits, self.longest);
        }
        device.last = Some((health.at, health.figures));
    }

    /// The health of a GPU as of now; absent if it was never read.
    pub(crate) fn book(&self, gpu: &GpuUuid, now: BootTime) -> Option<HealthBook> {
        let device = self.devices.get(gpu)?;
        let (at, figures) = device.last.as_ref()?;
        let mut figures = figures.clone();
        if now.since(*at) > self.longest {
            for reading in figures.values_mut() {
                if *reading != Reading::Unsupported {
                    *reading = Reading::Failed;
                }
            }
        }
        let counts = device.counts.iter();
        Some(HealthBook {
            at: *at,
            figures,
            counts: counts
                .map(|(figure, growth)| HealthCount {
                    figure: *figure,
                    total: growth.total,
                    start: growth.start,
                })
                .collect(),
            throttled: device.throttling.as_ref().map(|throttling| ThrottleBook {
                start: throttling.start,
                times: ThrottleReason::ALL
                    .into_iter()
                    .zip(throttling.times)
                    .collect(),
            }),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::QueryState;

    const INTERVAL: Nanos = Nanos::from_secs(10);

    fn clock(second: u64) -> Clock {
        Clock {
            boot: BootTime(second * 1_000_000_000),
            wall: WallTime(1_000_000_000_000 + second * 1_000_000_000),
        }
    }

    struct Rig(DeviceHealths);

    impl Rig {
        fn new() -> Self {
            Self(DeviceHealths::new(INTERVAL))
        }

        fn read(&mut self, second: u64, figures: &[(HealthFigure, Reading)]) {
            let health = GpuHealth {
                gpu: "GPU-1".into(),
                at: clock(second).boot,
                figures: figures.iter().copied().collect(),
            };
            self.0.take(health, clock(second));
        }

        fn book(&self, second: u64) -> HealthBook {
            let book = self.0.book(&"GPU-1".into(), clock(second).boot);
            book.expect("it was read")
        }
    }

    #[test]
    fn a_count_that_begins_anew_with_the_driver_does_not_fall() {
        use HealthFigure::PcieReplays;
        let mut rig = Rig::new();
        for (second, reading, expected) in [
            (0, Reading::Ok(7), 0),
            (10, Reading::Ok(9), 2),
            (20, Reading::Failed, 2),
            (30, Reading::Ok(10), 3),
            // The driver was loaded anew and has counted one since.
            (40, Reading::Ok(1), 4),
            (50, Reading::Unsupported, 4),
            (60, Reading::Ok(1), 4),
            (70, Reading::Ok(-5), 4),
        ] {
            rig.read(second, &[(PcieReplays, reading)]);
            let counts = rig.book(second).counts;
            let expected = HealthCount {
                figure: PcieReplays,
                total: expected,
                start: clock(0).wall,
            };
            assert_eq!(counts, [expected], "{second} s");
        }
    }

    #[test]
    fn throttled_time_is_the_time_between_readings_that_both_saw_it() {
        use HealthFigure::ThrottleReasons;
        let mut rig = Rig::new();
        let heat = ThrottleReason::HardwareThermal;
        let time = |rig: &Rig, second| {
            let times = rig.book(second).throttled.expect("it was told").times;
            let of_heat = times.iter().find(|(reason, _)| *reason == heat);
            of_heat.map(|(_, time)| time.0 / 1_000_000_000)
        };
        for (second, reading, expected) in [
            (0, Reading::Ok(0x40), 0),
            (10, Reading::Ok(0x44), 10),
            (20, Reading::Ok(0x1), 15),
            (30, Reading::Ok(0x40), 20),
            // What was not read counts for nothing, on either side of it.
            (40, Reading::Failed, 20),
            (50, Reading::Ok(0x40), 20),
            (60, Reading::Ok(0x40), 30),
            (60 + 31, Reading::Ok(0x40), 30),
            (60 + 61, Reading::Ok(0x40), 60),
        ] {
            rig.read(second, &[(ThrottleReasons, reading)]);
            assert_eq!(time(&rig, second), Some(expected), "{second} s");
        }
    }

    #[test]
    fn a_reading_that_is_too_old_says_nothing_of_now() {
        use HealthFigure::{MemoryTemperature, Power};
        let mut rig = Rig::new();
        let figures = [
            (Power, Reading::Ok(55_000)),
            (MemoryTemperature, Reading::Unsupported),
        ];
        rig.read(5, &figures);
        assert_eq!(rig.book(35).value(Power), Some(55_000));
        let old = rig.book(36);
        assert_eq!(old.figures[&Power], Reading::Failed);
        assert_eq!(old.figures[&MemoryTemperature], Reading::Unsupported);
        // An older one that comes late does not replace it.
        rig.read(4, &[(Power, Reading::Ok(1))]);
        assert_eq!(rig.book(6).value(Power), Some(55_000));
    }

    #[test]
    fn a_group_with_one_failed_query_has_failed() {
        use HealthFigure::{GpuTemperature, MemoryTemperature};
        for (gpu, memory, expected) in [
            (Reading::Ok(1), Reading::Ok(0), QueryState::Ok),
            (Reading::Ok(1), Reading::Unsupported, QueryState::Ok),
            (Reading::Unsupported, Reading::Ok(1), QueryState::Ok),
            (Reading::Ok(1), Reading::Failed, QueryState::Failed),
            (Reading::Failed, Reading::Ok(1), QueryState::Failed),
            (Reading::Failed, Reading::Unsupported, QueryState::Failed),
            (
                Reading::Unsupported,
                Reading::Unsupported,
                QueryState::Unsupported,
            ),
        ] {
            let mut rig = Rig::new();
            rig.read(0, &[(GpuTemperature, gpu), (MemoryTemperature, memory)]);
            let states = rig.book(0).states();
            assert_eq!(states.len(), 1);
            let found = states[&GpuTemperature.group()];
            assert_eq!(found, expected, "{gpu:?} {memory:?}");
        }
    }
}
