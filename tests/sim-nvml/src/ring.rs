//! The driver's sample ring, and the answers that NVML computes from it.
//!
//! Every `period` the driver takes one sample; for each engine the sample credits its whole busy
//! percent to one process, the one on the engine at that instant, drawn by busy share. The draw is
//! a hash of (seed, GPU, engine, sample index): no state, so each client computes the same ring.
//! Utilisation inside is percent × 100, as in the driver; NVML's answers are whole percents, floored.

use std::ops::Range;

use crate::event::WHOLE_PPM;
use crate::history::{Account, ENGINES, Engine, Gpu, Segment};
use crate::machine::{Cadence, Measure, RING_CAPACITY};

/// The driver's "no process".
pub(crate) const NO_PID: u32 = u32::MAX;
/// 100 %, in the ring's unit.
const FULL: u64 = 10_000;
/// Accounting looks at new samples once a second.
const ACCOUNTING_TICK_US: u64 = 1_000_000;

/// One entry of the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sample {
    pub(crate) at_us: u64,
    pub(crate) engines: [Credit; 6],
}

/// What a sample says of one engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Credit {
    pub(crate) pid: u32,
    /// Percent × 100.
    pub(crate) util: u64,
}

/// One row of `nvmlDeviceGetProcessUtilization`: floored means over the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProcessRow {
    pub(crate) pid: u32,
    /// The newest sample credited to this process.
    pub(crate) at_us: u64,
    /// Whole percents, by engine.
    pub(crate) percent: [u64; 6],
}

/// What accounting has summed up for a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Credited {
    pub(crate) samples: u64,
    pub(crate) sm: u64,
    pub(crate) memory: u64,
}

impl Cadence {
    /// The instant of sample `index`, in microseconds.
    fn instant_us(&self, origin_us: u64, index: u64) -> u64 {
        let ns = u128::from(self.phase_ns) + u128::from(index) * u128::from(self.period_ns);
        origin_us.saturating_add(u64::try_from(ns / 1_000).unwrap_or(u64::MAX))
    }

    /// The indexes of the samples in `window`.
    pub(crate) fn indexes(&self, origin_us: u64, window: Range<u64>) -> Range<u64> {
        self.first_at(origin_us, window.start)..self.first_at(origin_us, window.end)
    }

    /// The first sample at or after a moment.
    fn first_at(&self, origin_us: u64, at_us: u64) -> u64 {
        let ns = u128::from(at_us.saturating_sub(origin_us)) * 1_000;
        let period = u128::from(self.period_ns.max(1));
        let mut index = u64::try_from(ns.saturating_sub(u128::from(self.phase_ns)) / period)
            .unwrap_or(u64::MAX);
        while self.instant_us(origin_us, index) < at_us {
            index += 1;
        }
        index
    }
}

/// A well mixed function of its arguments (splitmix64's finaliser, folded over them).
fn mix(words: [u64; 4]) -> u64 {
    words
        .into_iter()
        .fold(0x9e37_79b9_7f4a_7c15, |state, word| {
            let mut z = (state ^ word).wrapping_add(0x9e37_79b9_7f4a_7c15);
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        })
}

impl Gpu {
    /// Samples taken in `window`, oldest first, without the ring's limit.
    pub(crate) fn samples(&self, window: Range<u64>) -> impl Iterator<Item = Sample> {
        self.overlaps(window.start, window.end)
            .flat_map(move |(segment, begin, end)| {
                self.indexes_in(segment, begin..end)
                    .map(move |index| self.sample(segment, index))
            })
    }

    /// What the ring holds at `now_us` that is newer than `last_seen_us`, oldest first.
    pub(crate) fn ring(&self, now_us: u64, last_seen_us: u64) -> Vec<Sample> {
        let mut ring = Vec::new();
        let mut end = now_us;
        for segment in self.segments[..=self.segment_at(now_us)].iter().rev() {
            let begin = segment.from_us.max(last_seen_us.saturating_add(1));
            for index in self.indexes_in(segment, begin..end.max(begin)).rev() {
                if ring.len() == RING_CAPACITY {
                    break;
                }
                ring.push(self.sample(segment, index));
            }
            end = segment.from_us;
            if ring.len() == RING_CAPACITY || end <= last_seen_us {
                break;
            }
        }
        ring.reverse();
        ring
    }

    /// The samples of a part of a segment; none where the driver pauses.
    fn indexes_in(&self, segment: &Segment, window: Range<u64>) -> Range<u64> {
        if self.spec.pauses_when_idle && segment.running.is_empty() {
            return 0..0;
        }
        self.spec.ring.indexes(self.origin_us, window)
    }

    fn sample(&self, segment: &Segment, index: u64) -> Sample {
        let at_us = self.spec.ring.instant_us(self.origin_us, index);
        Sample {
            at_us,
            engines: ENGINES.map(|engine| self.credit(segment, engine, index, at_us)),
        }
    }

    fn credit(&self, segment: &Segment, engine: Engine, index: u64, at_us: u64) -> Credit {
        let demand = segment.demand_ppm(engine);
        let (wheel, util) = match self.spec.measure {
            Measure::Instant => (demand.max(WHOLE_PPM), FULL),
            Measure::Averaged => {
                let period_us = self.spec.ring.period_ns / 1_000;
                let busy = self.busy(engine, at_us.saturating_sub(period_us), at_us);
                let util = busy * u128::from(FULL)
                    / (u128::from(period_us.max(1)) * u128::from(WHOLE_PPM));
                (demand, u64::try_from(util).unwrap_or(FULL).min(FULL))
            }
        };
        let drawn = if demand == 0 {
            None
        } else {
            self.draw(segment, engine, index, wheel)
        };
        match (drawn, self.spec.measure) {
            (Some(pid), _) => Credit { pid, util },
            (None, Measure::Instant) => Credit {
                pid: NO_PID,
                util: 0,
            },
            (None, Measure::Averaged) => Credit { pid: NO_PID, util },
        }
    }

    /// Turns a wheel of `wheel` ppm on which each job has its share.
    fn draw(&self, segment: &Segment, engine: Engine, index: u64, wheel: u64) -> Option<u32> {
        let hash = mix([self.seed, u64::from(self.index), engine as u64, index]);
        let mut stop = u64::try_from((u128::from(hash) * u128::from(wheel)) >> 64).unwrap_or(0);
        for running in segment.running.iter() {
            let share = running.ppm[engine as usize];
            if stop < share {
                return Some(running.pid);
            }
            stop -= share;
        }
        None
    }

    /// Per process, the mean over all samples newer than `last_seen_us`, floored; a row for each
    /// process that was credited at all. In the order in which processes first appear, so neither
    /// by pid nor by time.
    pub(crate) fn process_rows(&self, now_us: u64, last_seen_us: u64) -> Vec<ProcessRow> {
        let ring = self.ring(now_us, last_seen_us);
        let mut rows: Vec<ProcessRow> = Vec::new();
        for sample in &ring {
            for (engine, credit) in ENGINES.into_iter().zip(sample.engines) {
                if credit.pid == NO_PID || credit.util == 0 {
                    continue;
                }
                let position = rows
                    .iter()
                    .position(|row| row.pid == credit.pid)
                    .unwrap_or_else(|| {
                        rows.push(ProcessRow {
                            pid: credit.pid,
                            at_us: sample.at_us,
                            percent: [0; 6],
                        });
                        rows.len() - 1
                    });
                rows[position].at_us = sample.at_us;
                rows[position].percent[engine as usize] += credit.util;
            }
        }
        let samples = ring.len() as u64;
        for row in &mut rows {
            row.percent = row.percent.map(|sum| sum / samples / 100);
        }
        rows
    }

    /// The device's own samples of an engine newer than `last_seen_us`: (time, whole percent).
    pub(crate) fn device_samples(
        &self,
        engine: Engine,
        now_us: u64,
        last_seen_us: u64,
    ) -> Vec<(u64, u64)> {
        let Some(cadence) = self.spec.device_samples else {
            let ring = self.ring(now_us, last_seen_us);
            return ring
                .iter()
                .map(|sample| (sample.at_us, sample.engines[engine as usize].util / 100))
                .collect();
        };
        let mut indexes = cadence.indexes(
            self.origin_us,
            last_seen_us.saturating_add(1).max(self.origin_us)..now_us,
        );
        indexes.start = indexes
            .start
            .max(indexes.end.saturating_sub(RING_CAPACITY as u64));
        let period_us = cadence.period_ns / 1_000;
        indexes
            .filter_map(|index| {
                let at_us = cadence.instant_us(self.origin_us, index);
                let idle = self.segments[self.segment_at(at_us)].running.is_empty();
                (!(self.spec.pauses_when_idle && idle))
                    .then(|| (at_us, self.mean_percent(engine, at_us, period_us)))
            })
            .collect()
    }

    /// The engine's mean over the ring samples of the `span_us` up to and with `at_us`, floored; the
    /// last sample before where there is none.
    pub(crate) fn mean_percent(&self, engine: Engine, at_us: u64, span_us: u64) -> u64 {
        let window = at_us.saturating_sub(span_us).saturating_add(1)..at_us.saturating_add(1);
        let (count, sum) = self
            .samples(window.clone())
            .fold((0, 0), |(count, sum), sample| {
                (count + 1, sum + sample.engines[engine as usize].util)
            });
        if count == 0 {
            return self
                .ring(window.start, 0)
                .last()
                .map_or(0, |sample| sample.engines[engine as usize].util / 100);
        }
        sum / count / 100
    }

    /// What accounting credits: once a second, the new samples of those processes that are alive at
    /// that tick. The samples of a process's last part of a second are lost.
    pub(crate) fn credited(&self, account: &Account, now_us: u64) -> Credited {
        let last_tick = account.to_us.unwrap_or(now_us).saturating_sub(1) / ACCOUNTING_TICK_US
            * ACCOUNTING_TICK_US;
        if last_tick <= account.from_us {
            return Credited::default();
        }
        let mut credited = Credited::default();
        for sample in self.samples(account.from_us..last_tick.saturating_add(1)) {
            credited.samples += 1;
            let of = |engine: Engine| {
                let credit = sample.engines[engine as usize];
                if credit.pid == account.pid {
                    credit.util
                } else {
                    0
                }
            };
            credited.sm += of(Engine::Sm);
            credited.memory += of(Engine::Memory);
        }
        credited
    }
}
