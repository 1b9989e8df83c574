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
