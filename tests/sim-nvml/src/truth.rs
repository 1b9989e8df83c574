//! What really happened: the figures that an accountant's are compared with.
//!
//! Two truths: *busy* is the exact integral of the scenario's shares over its real event times;
//! *ring* is what the driver's samples credited, util × period, and thus the best that any reader
//! of the samples can know. Their difference is the sampling error, which no agent can avoid.
//! Busy times are nanoseconds; windows are wall-clock microseconds, half open.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::ops::Range;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::event::JobId;
use crate::history::{Engine, History};
use crate::log::{self, LogReader, StateError};
use crate::machine::Machine;
use crate::ring::NO_PID;

/// A scenario's past, up to the moment of reading.
#[derive(Debug)]
pub struct Truth {
    machine: Machine,
    history: History,
    now_us: u64,
}

/// The truth about one job: a line of the truth log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobTruth {
    /// The job.
    pub job: JobId,
    /// Its GPU's index.
    pub gpu: u32,
    /// Its GPU.
    pub gpu_uuid: String,
    /// The process.
    pub pid: u32,
    /// The name that the job gave itself.
    pub label: Option<String>,
    /// When it started, wall clock in microseconds.
    pub from_us: u64,
    /// When it stopped; `None` while it runs.
    pub to_us: Option<u64>,
    /// Its busy time in the window asked for.
    pub busy_ns: u64,
}

impl Truth {
    /// Reads the log to its end.
    pub fn read(dir: impl AsRef<Path>) -> Result<Self, StateError> {
        let machine = log::read_machine(dir.as_ref())?;
        let mut history = History::new(&machine);
        let now_us = LogReader::open(dir.as_ref())?.catch_up(|entry| history.apply(entry))?;
        let now_us = now_us.max(history.last_us());
        Ok(Self {
            machine,
            history,
            now_us,
        })
    }

    /// The moment of reading, wall clock in microseconds: windows end there at the latest.
    #[must_use]
    pub fn now_us(&self) -> u64 {
        self.now_us
    }

    /// The machine.
    #[must_use]
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Wall clock minus boot clock, in nanoseconds, when the machine was created.
    #[must_use]
    pub fn wall_minus_boot_ns(&self) -> i128 {
        i128::from(self.machine.created_us) * 1_000 - i128::from(self.machine.created_boot_ns)
    }

    /// True busy time by (GPU, pid).
    #[must_use]
    pub fn busy_ns(&self, window_us: Range<u64>) -> BTreeMap<(u32, u32), u64> {
        let mut busy = BTreeMap::new();
        for job in self.jobs(window_us) {
            *busy.entry((job.gpu, job.pid)).or_default() += job.busy_ns;
        }
        busy
    }

    /// Busy time as the ring's samples credited it, by pid: util × period, over all samples taken in
    /// the window, also those that the ring has since overwritten.
    #[must_use]
    pub fn ring_ns(&self, gpu: u32, window_us: Range<u64>) -> BTreeMap<u32, u64> {
        let mut credited = BTreeMap::new();
        let Some(gpu) = usize::try_from(gpu)
            .ok()
            .and_then(|index| self.history.gpus.get(index))
        else {
            return credited;
        };
        for sample in gpu.samples(window_us.start..window_us.end.min(self.now_us)) {
            let credit = sample.engines[Engine::Sm as usize];
            if credit.pid != NO_PID {
                *credited.entry(credit.pid).or_default() +=
                    credit.util * gpu.spec.ring.period_ns / 10_000;
            }
        }
        credited
    }

    /// Every job that overlaps the window, in the order of their ids.
    #[must_use]
    pub fn jobs(&self, window_us: Range<u64>) -> Vec<JobTruth> {
        let to_us = window_us.end.min(self.now_us);
        let overlapping = self.history.jobs.iter().filter(|(_, record)| {
            record.from_us < to_us && record.to_us.is_none_or(|end_us| end_us > window_us.start)
        });
        overlapping
            .filter_map(|(&job, record)| {
                let gpu = self.history.gpus.get(usize::try_from(record.gpu).ok()?)?;
                let from = record.from_us.max(window_us.start);
                let to = record.to_us.unwrap_or(u64::MAX).min(to_us);
                let busy: u128 = gpu
                    .overlaps(from, to)
                    .flat_map(|(segment, begin, end)| {
                        let ours = segment
                            .running
                            .iter()
                            .filter(move |running| running.job == job);
                        ours.map(move |running| segment.job_busy(running, end - begin))
                    })
                    .sum();
                Some(JobTruth {
                    job,
                    gpu: record.gpu,
                    gpu_uuid: gpu.spec.uuid.clone(),
                    pid: record.pid,
                    label: record.label.clone(),
                    from_us: record.from_us,
                    to_us: record.to_us,
                    // µs × ppm = 10⁻¹² s
                    busy_ns: u64::try_from(busy / 1_000).unwrap_or(u64::MAX),
                })
            })
            .collect()
    }

    /// Writes the truth log: one JSON line per job, over the whole past.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<(), StateError> {
        let path = path.as_ref();
        let io = |source| StateError::Io {
            action: "write",
            path: path.to_owned(),
            source,
        };
        let mut text = Vec::new();
        for job in self.jobs(0..self.now_us) {
            serde_json::to_writer(&mut text, &job).expect("plain data becomes JSON in memory");
            text.push(b'\n');
        }
        std::fs::File::create(path)
            .and_then(|mut file| file.write_all(&text))
            .map_err(io)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::thread;

    use super::*;
    use crate::event::{Event, Job};
    use crate::machine::{Cadence, GpuSpec};
    use crate::scenario::{Scenario, Script};

    const T0: u64 = 1_700_000_000_000_000;
    const SECOND: u64 = 1_000_000;

    #[test]
    fn busy_time_is_the_integral_of_the_shares() {
        let dir = tempfile::tempdir().unwrap();
        let job = |share| Job {
            share,
            ..Job::default()
        };
        let start = |id, pid, share| Event::Start {
            job: JobId(id),
            pid,
            inner_pid: None,
            work: job(share),
        };
        Script::new(T0, vec![GpuSpec::a100(0)], 1)
            .at(T0, start(1, 11, 0.5))
            .at(T0 + 2 * SECOND, start(2, 12, 1.0)) // 1.5 in sum: scaled down to a third and two thirds
            .at(T0 + 5 * SECOND, Event::Stop { job: JobId(2) })
            .at(
                T0 + 6 * SECOND,
                Event::Change {
                    job: JobId(1),
                    work: job(0.125),
                },
            )
            .at(T0 + 8 * SECOND, Event::Stop { job: JobId(1) })
            .at(T0 + 8 * SECOND, start(3, 11, 0.25)) // the same process again
            .at(T0 + 8 * SECOND, start(3, 99, 1.0)) // an id that is taken: nothing
            .at(T0 + 9 * SECOND, Event::Stop { job: JobId(3) })
            .at(T0 + 9 * SECOND, Event::Stop { job: JobId(77) })
            .create(&dir)
            .unwrap();
        let truth = Truth::read(&dir).unwrap();
        for (window, first, second) in [
            (0..2, 1_000, None),
            (2..5, 1_000, Some(2_000)),
            (0..9, 1_000 + 1_000 + 500 + 250 + 250, Some(2_000)),
            (4..7, 333 + 500 + 125, Some(666)),
            (9..20, 0, None),
        ] {
            let busy = truth.busy_ns(T0 + window.start * SECOND..T0 + window.end * SECOND);
            let ms = |pid| busy.get(&(0, pid)).map(|ns| ns / 1_000_000);
            assert_eq!((ms(11).unwrap_or(0), ms(12)), (first, second), "{window:?}");
        }
        assert_eq!(truth.jobs(0..u64::MAX).len(), 3);
        assert!(truth.busy_ns(0..T0).is_empty());
    }

    #[test]
    fn the_ring_s_truth_comes_near_the_exact_one() {
        let dir = tempfile::tempdir().unwrap();
        let work = Job {
            share: 0.3,
            ..Job::default()
        };
        Script::new(T0, vec![GpuSpec::a100(0)], 9)
            .at(
                T0,
                Event::Start {
                    job: JobId(1),
                    pid: 11,
                    inner_pid: None,
                    work,
                },
            )
            .create(&dir)
            .unwrap();
        let truth = Truth::read(&dir).unwrap();
        let hour = T0..T0 + 3_600 * SECOND;
        let exact = truth.busy_ns(hour.clone())[&(0, 11)];
        let sampled = truth.ring_ns(0, hour)[&11];
        assert_eq!(exact, 1_080_000_000_000);
        // Three deviations of 21,600 draws: 1.1 % of the hour's 1,080 s.
        assert!(sampled.abs_diff(exact) < 34_000_000_000, "{sampled}");
        assert!(truth.ring_ns(7, 0..u64::MAX).is_empty(), "no such GPU");
    }

    #[test]
    fn what_a_reader_has_seen_stays_true_while_others_write() {
        let dir = tempfile::tempdir().unwrap();
        // A sample each 20 µs: between a writer's time stamp and its write lie many.
        let ring = Cadence {
            period_ns: 20_000,
            phase_ns: 0,
        };
        let scenario = Scenario::create(
            &dir,
            vec![GpuSpec {
                ring,
                ..GpuSpec::a100(0)
            }],
            1,
        )
        .unwrap();
        let mut history = History::new(scenario.machine());
        let mut log = LogReader::open(dir.path()).unwrap();
        let mut look = || {
            let now_us = log.catch_up(|entry| history.apply(entry)).unwrap();
            let window = now_us.saturating_sub(100)..now_us;
            (
                window.clone(),
                history.gpus[0].samples(window).collect::<Vec<_>>(),
            )
        };
        let writing = AtomicU32::new(2);
        let seen = thread::scope(|scope| {
            for pid in [11, 12] {
                let (scenario, writing) = (&scenario, &writing);
                scope.spawn(move || {
                    for _ in 0..1_000 {
                        let job = scenario
                            .start(
                                pid,
                                Job {
                                    share: 0.5,
                                    ..Job::default()
                                },
                            )
                            .unwrap();
                        scenario.stop(job).unwrap();
                    }
                    writing.fetch_sub(1, Ordering::Relaxed);
                });
            }
            let mut seen = Vec::new();
            // Once at least, however fast they are.
            loop {
                seen.push(look());
                if writing.load(Ordering::Relaxed) == 0 {
                    break;
                }
            }
            seen
        });
        let after = Truth::read(&dir).unwrap();
        for (window, samples) in seen {
            assert_eq!(
                after.history.gpus[0].samples(window).collect::<Vec<_>>(),
                samples
            );
        }
    }
}
