//! The driver's sample ring, and the answers that NVML computes from it.
//!
//! Every `period` the driver takes one sample; for each engine the sample credits its whole busy
//! percent to one process, the one on the engine at that instant, drawn by busy share. The draw is
//! a hash of (seed, GPU, engine, sample index): no state, so each client computes the same ring.
//! Utilisation inside is percent × 100, as in the driver; NVML's answers are whole percents, floored.

use std::ops::Range;

use crate::event::WHOLE_PPM;
use crate::history::{Account, ENGINES, Engine, Gpu, Segment};
use crate::machine::{Cadence, Measure, RING_CAPACITY, StampClock, Stamps};

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

    /// The stamp of what was sampled at an instant, by one of the calls.
    pub(crate) fn stamp_us(&self, call: fn(&Stamps) -> StampClock, at_us: u64) -> u64 {
        let then = self.stamps.iter().rfind(|(from_us, _)| *from_us <= at_us);
        let clock = then.map_or(StampClock::Wall, |(_, stamps)| call(stamps));
        clock.stamp_us(at_us, self.boot_lead_us)
    }

    /// Whether a call's stamps were always those of the wall clock.
    pub(crate) fn stamps_by_wall_clock(&self, call: fn(&Stamps) -> StampClock) -> bool {
        let mut clocks = self.stamps.iter().map(|(_, stamps)| call(stamps));
        clocks.all(|clock| clock == StampClock::Wall)
    }

    /// Per process, the mean over all samples newer than `last_seen_us`, floored; a row for each
    /// process that was credited at all. In the order in which processes first appear, so neither
    /// by pid nor by time.
    pub(crate) fn process_rows(&self, now_us: u64, last_seen_us: u64) -> Vec<ProcessRow> {
        self.rows_of(&self.ring(now_us, last_seen_us))
    }

    /// The same by a call's own clock: what it is asked with and what it answers.
    pub(crate) fn stamped_rows(
        &self,
        call: fn(&Stamps) -> StampClock,
        now_us: u64,
        last_seen_us: u64,
    ) -> Vec<ProcessRow> {
        if self.stamps_by_wall_clock(call) {
            return self.process_rows(now_us, last_seen_us);
        }
        let mut ring = self.ring(now_us, 0);
        for sample in &mut ring {
            sample.at_us = self.stamp_us(call, sample.at_us);
        }
        ring.retain(|sample| sample.at_us > last_seen_us);
        self.rows_of(&ring)
    }

    fn rows_of(&self, ring: &[Sample]) -> Vec<ProcessRow> {
        let mut rows: Vec<ProcessRow> = Vec::new();
        for sample in ring {
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

    /// The device's own samples by their call's own clock.
    pub(crate) fn stamped_samples(
        &self,
        engine: Engine,
        now_us: u64,
        last_seen_us: u64,
    ) -> Vec<(u64, u64)> {
        let call = |stamps: &Stamps| stamps.samples;
        if self.stamps_by_wall_clock(call) {
            return self.device_samples(engine, now_us, last_seen_us);
        }
        let mut samples = self.device_samples(engine, now_us, 0);
        for (at_us, _) in &mut samples {
            *at_us = self.stamp_us(call, *at_us);
        }
        samples.retain(|(at_us, _)| *at_us > last_seen_us);
        samples
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Engines, Event, Job, JobId};
    use crate::history::History;
    use crate::machine::{GpuSpec, Mig, RING_PERIOD_NS};
    use crate::scenario::Script;

    /// The machine's creation; a round number, so that times in the rows below are readable.
    const T0: u64 = 1_700_000_000_000_000;
    const SECOND: u64 = 1_000_000;

    fn job(share: f64) -> Job {
        Job {
            share,
            ..Job::default()
        }
    }

    fn start(id: u64, pid: u32, work: Job) -> Event {
        Event::Start {
            job: JobId(id),
            pid,
            inner_pid: None,
            work,
        }
    }

    fn stop(id: u64) -> Event {
        Event::Stop { job: JobId(id) }
    }

    /// One GPU, as `edit` makes it, with these events at microseconds after T0.
    fn with(edit: impl FnOnce(&mut GpuSpec), seed: u64, events: Vec<(u64, Event)>) -> History {
        let mut spec = GpuSpec::a100(0);
        edit(&mut spec);
        let script = Script::new(T0, vec![spec], seed);
        events
            .into_iter()
            .fold(script, |script, (at, event)| script.at(T0 + at, event))
            .history()
    }

    fn credited(history: &History, pid: u32, engine: Engine, seconds: u64) -> f64 {
        let mut samples = 0_u32;
        let mut sum = 0.0;
        for sample in history.gpus[0].samples(T0..T0 + seconds * SECOND) {
            samples += 1;
            let credit = sample.engines[engine as usize];
            if credit.pid == pid {
                sum += f64::from(u32::try_from(credit.util).unwrap()) / 10_000.0;
            }
        }
        sum / f64::from(samples)
    }

    #[test]
    fn long_run_means_converge_to_the_shares() {
        let engines = Engines {
            memory: 0.3,
            encoder: 0.05,
            ..Engines::default()
        };
        let events = vec![
            (
                0,
                start(
                    1,
                    11,
                    Job {
                        engines,
                        ..job(0.5)
                    },
                ),
            ),
            (0, start(2, 12, job(0.25))),
            (0, start(3, 13, job(0.01))),
        ];
        for measure in [Measure::Instant, Measure::Averaged] {
            let history = with(|spec| spec.measure = measure, 7, events.clone());
            // 21,600 samples: the deviation of a share of a half is 0.0034.
            for (pid, engine, share) in [
                (11, Engine::Sm, 0.5),
                (12, Engine::Sm, 0.25),
                (13, Engine::Sm, 0.01),
                (11, Engine::Memory, 0.3),
                (11, Engine::Encoder, 0.05),
                (12, Engine::Memory, 0.0),
            ] {
                let found = credited(&history, pid, engine, 3_600);
                assert!(
                    (found - share).abs() < 0.014,
                    "{measure:?} {pid} {engine:?}: {found}, expected {share}"
                );
            }
        }
    }

    #[test]
    fn an_overbooked_gpu_is_time_sliced() {
        let events = vec![(0, start(1, 11, job(1.0))), (0, start(2, 12, job(1.0)))];
        let history = with(|_| (), 7, events);
        let (first, second) = (
            credited(&history, 11, Engine::Sm, 600),
            credited(&history, 12, Engine::Sm, 600),
        );
        assert!((first + second - 1.0).abs() < 1e-9, "{first} + {second}");
        assert!((first - 0.5).abs() < 0.04, "{first}");
    }

    #[test]
    fn every_sample_in_the_life_of_a_whole_gpu_job_hits_it() {
        for begin in (0..SECOND).step_by(37_003) {
            let history = with(
                |_| (),
                begin,
                vec![(begin, start(1, 11, job(1.0))), (begin + 300_000, stop(1))],
            );
            let gpu = &history.gpus[0];
            let inside: Vec<_> = gpu.samples(T0 + begin..T0 + begin + 300_000).collect();
            assert!(
                (1..=2).contains(&inside.len()),
                "{} samples in 300 ms",
                inside.len()
            );
            assert!(inside.iter().all(|sample| sample.engines[0]
                == Credit {
                    pid: 11,
                    util: FULL
                }));
            let all = gpu
                .samples(T0..T0 + 10 * SECOND)
                .filter(|sample| sample.engines[0].pid == 11);
            assert_eq!(all.count(), inside.len());
        }
    }

    #[test]
    fn two_machines_with_one_seed_have_one_ring_and_other_seeds_another() {
        let ring = |seed| {
            with(|_| (), seed, vec![(0, start(1, 11, job(0.5)))]).gpus[0].ring(T0 + 30 * SECOND, 0)
        };
        assert_eq!(ring(1), ring(1));
        assert_ne!(ring(1), ring(2));
    }

    #[test]
    fn what_comes_later_does_not_change_the_past() {
        let early = vec![(0, start(1, 11, job(0.5)))];
        let late = [
            early.clone(),
            vec![(5 * SECOND, start(2, 12, job(0.5))), (7 * SECOND, stop(1))],
        ]
        .concat();
        let past = |events| {
            with(|_| (), 3, events).gpus[0]
                .samples(T0..T0 + 5 * SECOND)
                .collect::<Vec<_>>()
        };
        assert_eq!(past(early), past(late));
    }

    #[test]
    fn the_ring_holds_72_samples_a_sixth_of_a_second_apart() {
        let history = with(|_| (), 1, vec![]);
        let ring = history.gpus[0].ring(T0 + 100 * SECOND, 0);
        assert_eq!(ring.len(), RING_CAPACITY);
        for pair in ring.windows(2) {
            assert!((166_666..=166_667).contains(&(pair[1].at_us - pair[0].at_us)));
        }
        let newest = ring.last().unwrap().at_us;
        assert!((T0 + 100 * SECOND - 166_667..T0 + 100 * SECOND).contains(&newest));
        // A driver that was loaded before the scenario has a full ring from the beginning.
        assert!(history.gpus[0].ring(T0 + 1, 0).len() >= RING_CAPACITY - 1);
    }

    #[test]
    fn a_window_begins_after_last_seen_and_never_beyond_the_ring() {
        let gpu = &with(|_| (), 1, vec![(0, start(1, 11, job(1.0)))]).gpus[0];
        let now = T0 + 60 * SECOND;
        let all = gpu.ring(now, 0);
        for (index, sample) in all.iter().enumerate() {
            assert_eq!(
                gpu.ring(now, sample.at_us),
                all[index + 1..],
                "strictly newer than lastSeen"
            );
            assert_eq!(gpu.ring(now, sample.at_us - 1), all[index..]);
        }
        assert_eq!(gpu.ring(now, T0), all, "older samples are overwritten");
    }

    #[test]
    fn each_call_stamps_by_its_own_clock_and_is_asked_in_it() {
        let later = Stamps {
            rows: StampClock::AheadMs(9_000),
            ..Stamps::default()
        };
        let events = vec![
            (0, start(1, 11, job(1.0))),
            (
                30 * SECOND,
                Event::Stamp {
                    gpu: 0,
                    stamps: later,
                },
            ),
        ];
        let edit = |spec: &mut GpuSpec| {
            spec.stamps = Stamps::new(StampClock::Boot, StampClock::AheadMs(-2_000));
        };
        let gpu = &with(edit, 1, events).gpus[0];
        let (now, samples) = (T0 + 20 * SECOND, |stamps: &Stamps| stamps.samples);
        let newest = gpu.ring(now, 0).last().unwrap().at_us;
        let boot = newest - gpu.boot_lead_us;
        assert_eq!(gpu.stamp_us(samples, newest), boot);
        let all = gpu.stamped_samples(Engine::Sm, now, 0);
        assert_eq!((all.len(), all.last()), (RING_CAPACITY, Some(&(boot, 100))));
        assert_eq!(gpu.stamped_samples(Engine::Sm, now, boot), []);
        let rows = |now, since| gpu.stamped_rows(|stamps| stamps.rows, now, since);
        assert_eq!(rows(now, 0)[0].at_us, newest - 2 * SECOND);
        assert_eq!(rows(now, newest - 2 * SECOND), []);
        // What was stamped before the change keeps its stamp.
        assert_eq!(
            rows(T0 + 30 * SECOND, 0)[0].at_us / SECOND,
            (T0 + 27 * SECOND) / SECOND
        );
        assert!(rows(T0 + 31 * SECOND, 0)[0].at_us > T0 + 39 * SECOND);
    }

    #[test]
    fn rows_are_floored_means_over_all_samples_of_the_window() {
        // Alive for exactly one of the samples of a window of n: 100/n, floored.
        let gpu = &with(
            |_| (),
            1,
            vec![(0, start(1, 11, job(1.0))), (SECOND / 6, stop(1))],
        )
        .gpus[0];
        let hit = gpu.samples(T0..T0 + SECOND / 6).next().unwrap().at_us;
        for (samples, expected) in [
            (1, 100),
            (2, 50),
            (3, 33),
            (6, 16),
            (7, 14),
            (50, 2),
            (72, 1),
        ] {
            let now = hit + samples * 166_667 - 100_000;
            let rows = gpu.process_rows(now, hit - 1);
            assert_eq!(gpu.ring(now, hit - 1).len() as u64, samples);
            assert_eq!(rows.len(), 1);
            assert_eq!(
                (rows[0].pid, rows[0].at_us, rows[0].percent[0]),
                (11, hit, expected),
                "{samples} samples"
            );
        }
    }

    #[test]
    fn the_dead_stay_in_the_ring_until_it_wraps() {
        let gpu = &with(
            |_| (),
            1,
            vec![(0, start(1, 11, job(1.0))), (SECOND, stop(1))],
        )
        .gpus[0];
        assert_eq!(gpu.process_rows(T0 + 12 * SECOND, 0).len(), 1);
        assert_eq!(gpu.process_rows(T0 + 14 * SECOND, 0).len(), 0);
    }

    #[test]
    fn rows_of_a_time_sliced_gpu_add_up_to_no_more_than_the_device() {
        let jobs = (0..8)
            .map(|id| (0, start(id, 100 + u32::try_from(id).unwrap(), job(0.12))))
            .collect();
        let gpu = &with(|_| (), 5, jobs).gpus[0];
        let now = T0 + 100 * SECOND;
        for window in 1..60 {
            let last_seen = now - window * 190_973;
            let rows: u64 = gpu
                .process_rows(now, last_seen)
                .iter()
                .map(|row| row.percent[0])
                .sum();
            let device = gpu.device_samples(Engine::Sm, now, last_seen);
            let mean = device.iter().map(|(_, percent)| percent).sum::<u64>() / device.len() as u64;
            assert!(rows <= mean, "rows {rows}, device {mean}");
        }
    }

    #[test]
    fn memory_rows_without_multiprocessor_use_exist() {
        let engines = Engines {
            memory: 1.0,
            ..Engines::default()
        };
        let gpu = &with(
            |_| (),
            1,
            vec![(
                0,
                start(
                    1,
                    11,
                    Job {
                        engines,
                        ..job(0.0)
                    },
                ),
            )],
        )
        .gpus[0];
        let rows = gpu.process_rows(T0 + 2 * SECOND, T0);
        assert_eq!((rows[0].percent[0], rows[0].percent[1]), (0, 100));
    }

    #[test]
    fn a_driver_that_pauses_samples_only_while_someone_has_a_context() {
        let events = vec![
            (20 * SECOND, start(1, 11, job(0.0))),
            (22 * SECOND, stop(1)),
        ];
        let gpu = &with(|spec| spec.pauses_when_idle = true, 1, events).gpus[0];
        let times = |now| {
            gpu.ring(T0 + now * SECOND, 0)
                .iter()
                .map(|sample| sample.at_us)
                .collect::<Vec<_>>()
        };
        assert!(times(20).is_empty());
        assert_eq!(times(22).len(), 12);
        assert_eq!(times(3_600), times(22), "the ring stands still");
    }

    #[test]
    fn device_samples_follow_their_own_cadence() {
        let own = Cadence {
            period_ns: 1_000_000_000,
            phase_ns: 250_000_000,
        };
        let gpu = &with(
            |spec| spec.device_samples = Some(own),
            1,
            vec![(0, start(1, 11, job(0.5)))],
        )
        .gpus[0];
        let now = T0 + 1_000 * SECOND;
        let samples = gpu.device_samples(Engine::Sm, now, now - 60 * SECOND);
        assert!((59..=60).contains(&samples.len()));
        assert!(
            samples
                .windows(2)
                .all(|pair| pair[1].0 - pair[0].0 == SECOND)
        );
        assert!(
            samples
                .iter()
                .any(|&(_, percent)| percent != 0 && percent != 100),
            "means of six ring samples"
        );
        for (at_us, percent) in samples {
            let busy = gpu
                .samples(at_us - SECOND + 1..at_us + 1)
                .map(|sample| sample.engines[0].util);
            let (count, sum) = busy.fold((0, 0), |(count, sum), util| (count + 1, sum + util));
            assert!((5..=7).contains(&count));
            assert_eq!(percent, sum / count / 100, "floored");
        }
        assert_eq!(gpu.device_samples(Engine::Sm, now, 0).len(), RING_CAPACITY);
    }

    #[test]
    fn a_one_hertz_product_samples_once_a_second() {
        let gpu = &with(|spec| spec.ring = Cadence::ONE_HERTZ, 1, vec![]).gpus[0];
        let ring = gpu.ring(T0 + 200 * SECOND, 0);
        assert_eq!(ring.len(), RING_CAPACITY);
        assert!(
            ring.windows(2)
                .all(|pair| pair[1].at_us - pair[0].at_us == SECOND)
        );
    }

    #[test]
    fn an_averaging_counter_reports_busy_time_whose_owner_is_gone() {
        let events = vec![(SECOND, start(1, 11, job(1.0))), (SECOND + 50_000, stop(1))];
        let mut owned = 0;
        for phase in 0..8 {
            let edit = |spec: &mut GpuSpec| {
                spec.measure = Measure::Averaged;
                spec.ring.phase_ns = phase * 20_000_000;
            };
            let history = with(edit, 1, events.clone());
            let sum = |pid| {
                let credits = history.gpus[0]
                    .samples(T0..T0 + 2 * SECOND)
                    .map(|sample| sample.engines[0]);
                credits
                    .filter(|credit| credit.pid == pid)
                    .map(|credit| credit.util)
                    .sum::<u64>()
            };
            // 50 ms of a period of 1/6 s are 30 %, of whosoever.
            assert!(
                (2_998..=3_000).contains(&(sum(11) + sum(NO_PID))),
                "{} + {}",
                sum(11),
                sum(NO_PID)
            );
            owned += u32::from(sum(11) > 0);
            assert!(
                sum(NO_PID) > 0,
                "what it did after its last sample is nobody's"
            );
        }
        assert!((1..8).contains(&owned), "{owned} of 8 phases");
    }

    /// What accounting reports of the GPU time of a process that lived `life_us`, over many phases.
    fn accounted(life_us: u64, share: f64) -> (f64, f64) {
        let (mut ratio, mut blank) = (0.0, 0.0);
        let runs = 400_u32;
        for run in 0..runs {
            let begin = 3 * SECOND + u64::from(run) * SECOND / u64::from(runs);
            let events = vec![
                (begin, start(1, 11, job(share))),
                (begin + life_us, stop(1)),
            ];
            let edit = |spec: &mut GpuSpec| {
                spec.accounting = true;
                spec.ring.phase_ns = mix([u64::from(run), 0, 0, 0]) % RING_PERIOD_NS;
            };
            let history = with(edit, u64::from(run), events);
            let account = &history.gpus[0].accounting.as_ref().unwrap().dead[0];
            let sums = history.gpus[0].credited(account, T0 + 60 * SECOND);
            let percent = sums.sm.checked_div(sums.samples).unwrap_or(0) / 100;
            ratio += f64::from(u32::try_from(sums.sm).unwrap())
                / 10_000.0
                / 6.0
                / (share * f64::from(u32::try_from(life_us).unwrap()) / 1e6);
            blank += f64::from(u8::from(percent == 0));
        }
        (ratio / f64::from(runs), blank / f64::from(runs))
    }

    #[test]
    fn accounting_loses_what_processes_did_in_their_last_part_of_a_second() {
        // The last tick comes half a second before the end in the mean, or not at all: of a life of
        // L seconds, L/2 of the time is credited below 1 s, and 1 - 1/2L above.
        for (life_ms, ratio, blank) in [
            (50, 0.025, 0.99),
            (200, 0.1, 0.92),
            (500, 0.25, 0.67),
            (900, 0.45, 0.29),
            (1_500, 0.667, 0.05),
            (5_000, 0.9, 0.0),
            (30_000, 0.983, 0.0),
        ] {
            let (found_ratio, found_blank) = accounted(life_ms * 1_000, 0.6);
            assert!(
                (found_ratio - ratio).abs() < 0.05,
                "{life_ms} ms: credited/true {found_ratio}, expected {ratio}"
            );
            assert!(
                (found_blank - blank).abs() < 0.05,
                "{life_ms} ms: {found_blank} read 0, expected {blank}"
            );
        }
    }

    #[test]
    fn accounting_keeps_128_dead_and_the_latest_of_a_reused_pid() {
        let mut events = vec![];
        for id in 0..200_u64 {
            let pid = if id == 199 {
                1_100
            } else {
                1_000 + u32::try_from(id).unwrap()
            };
            let work = Job {
                memory_bytes: id,
                ..job(0.1)
            };
            events.push((id * 1_000, start(id, pid, work)));
            events.push((id * 1_000 + 500, stop(id)));
        }
        let history = with(|spec| spec.accounting = true, 1, events);
        let accounting = history.gpus[0].accounting.as_ref().unwrap();
        assert_eq!((accounting.live.len(), accounting.dead.len()), (0, 128));
        let reused: Vec<_> = accounting
            .dead
            .iter()
            .filter(|account| account.pid == 1_100)
            .collect();
        assert_eq!(reused.len(), 1);
        assert_eq!(reused[0].peak_bytes, 199);
        // 199 distinct pids died; the record of the reused one made room for itself.
        assert_eq!(accounting.dead[0].pid, 1_071);
    }

    #[test]
    fn accounting_forgets_when_it_is_switched() {
        let on = |on| Event::Accounting { gpu: 0, on };
        let events = vec![
            (0, start(1, 11, job(1.0))),
            (SECOND, on(true)),
            (2 * SECOND, on(false)),
            (3 * SECOND, on(true)),
        ];
        let history = with(|_| (), 1, events);
        let accounting = history.gpus[0].accounting.as_ref().unwrap();
        assert_eq!(
            accounting
                .live
                .iter()
                .map(|account| (account.pid, account.from_us))
                .collect::<Vec<_>>(),
            [(11, T0 + 3 * SECOND)]
        );
    }

    #[test]
    fn energy_is_idle_power_and_the_share_of_the_rest() {
        let history = with(
            |_| (),
            1,
            vec![(0, start(1, 11, job(0.5))), (10 * SECOND, stop(1))],
        );
        let gpu = &history.gpus[0];
        let mj = |at| gpu.energy_mj(T0 + at * SECOND) - gpu.energy_mj(T0);
        assert_eq!(mj(10), 10 * (55_000 + 345_000 / 2));
        assert_eq!(mj(20), mj(10) + 10 * 55_000);
        assert_eq!(
            gpu.energy_mj(T0 + 99_999),
            gpu.energy_mj(T0),
            "it moves every 100 ms"
        );
    }

    #[test]
    fn mig_is_a_property_that_the_ring_ignores() {
        // The ring goes on in the hardware; the library refuses to read it.
        let history = with(
            |spec| spec.mig = Mig::On,
            1,
            vec![(0, start(1, 11, job(1.0)))],
        );
        assert_eq!(history.gpus[0].process_rows(T0 + SECOND, 0).len(), 1);
    }
}
