//! Directing the simulated machine: creating it and writing its log.
//!
//! Whoever starts a job here vouches that the process exists and will stop the job; processes that
//! come by themselves go through [`Server`](crate::Server).

use std::path::{Path, PathBuf};

use crate::event::{Entry, Event, Fault, FaultId, Job, JobId};
use crate::health::Health;
use crate::log::{self, LogWriter, StateError};
use crate::machine::{GpuSpec, Instance, Machine, Stamps};

/// A state directory, open for writing. Clones write to the same log; so may other processes.
#[derive(Debug)]
pub struct Scenario {
    dir: PathBuf,
    machine: Machine,
    log: LogWriter,
}

impl Scenario {
    /// Makes `dir` a machine with these GPUs, idle until now.
    pub fn create(
        dir: impl AsRef<Path>,
        gpus: Vec<GpuSpec>,
        seed: u64,
    ) -> Result<Self, StateError> {
        Script::new(log::wall_us(), gpus, seed).create(dir)
    }

    /// Opens an existing one, to direct it further.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, StateError> {
        let dir = dir.as_ref().to_owned();
        let machine = log::read_machine(&dir)?;
        let log = LogWriter::open(&dir);
        Ok(Self { dir, machine, log })
    }

    /// The state directory: the value of `SIM_NVML_DIR` for clients.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The machine.
    #[must_use]
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// A process takes a context on a GPU and begins to work.
    pub fn start(&self, pid: u32, work: Job) -> Result<JobId, StateError> {
        self.start_inside(pid, None, work)
    }

    /// The same for a process that has another pid in a namespace of its own.
    pub(crate) fn start_inside(
        &self,
        pid: u32,
        inner_pid: Option<(u64, u32)>,
        work: Job,
    ) -> Result<JobId, StateError> {
        self.check(&work)?;
        let mut id = JobId(0);
        self.log.append(|offset| {
            id = JobId(offset);
            Event::Start {
                job: id,
                pid,
                inner_pid,
                work,
            }
        })?;
        Ok(id)
    }

    /// From now on the job does `work` instead; it stays on its GPU.
    pub fn change(&self, job: JobId, work: Job) -> Result<(), StateError> {
        self.check(&work)?;
        self.log.append(|_| Event::Change { job, work }).map(drop)
    }

    /// The process gives its context back. A second stop changes nothing.
    pub fn stop(&self, job: JobId) -> Result<(), StateError> {
        self.log.append(|_| Event::Stop { job }).map(drop)
    }

    /// A fault begins, on one GPU or on all and the library itself.
    pub fn inject(&self, gpu: Option<u32>, fault: Fault) -> Result<FaultId, StateError> {
        gpu.map_or(Ok(()), |gpu| self.check_gpu(gpu))?;
        let mut id = FaultId(0);
        self.log.append(|offset| {
            id = FaultId(offset);
            Event::Inject {
                fault_id: id,
                gpu,
                fault,
            }
        })?;
        Ok(id)
    }

    /// A fault ends.
    pub fn clear(&self, fault_id: FaultId) -> Result<(), StateError> {
        self.log.append(|_| Event::Clear { fault_id }).map(drop)
    }

    /// Accounting mode is switched.
    pub fn accounting(&self, gpu: u32, on: bool) -> Result<(), StateError> {
        self.check_gpu(gpu)?;
        self.log.append(|_| Event::Accounting { gpu, on }).map(drop)
    }

    /// A GPU in MIG mode is divided anew, if nothing runs there.
    pub fn divide(&self, gpu: u32, instances: Vec<Instance>) -> Result<(), StateError> {
        self.check_gpu(gpu)?;
        self.log
            .append(|_| Event::Divide { gpu, instances })
            .map(drop)
    }

    /// The driver stamps what it samples from now on by other clocks.
    pub fn stamp(&self, gpu: u32, stamps: Stamps) -> Result<(), StateError> {
        self.check_gpu(gpu)?;
        self.log.append(|_| Event::Stamp { gpu, stamps }).map(drop)
    }

    /// The GPU's health is this from now on.
    pub fn health(&self, gpu: u32, health: Health) -> Result<(), StateError> {
        self.check_gpu(gpu)?;
        self.log.append(|_| Event::Health { gpu, health }).map(drop)
    }

    /// The driver reports a critical Xid error.
    pub fn xid(&self, gpu: u32, code: u64) -> Result<(), StateError> {
        self.check_gpu(gpu)?;
        self.log.append(|_| Event::Xid { gpu, code }).map(drop)
    }

    fn check_gpu(&self, found: u32) -> Result<(), StateError> {
        let count = self.machine.gpus.len();
        if usize::try_from(found).is_ok_and(|index| index < count) {
            Ok(())
        } else {
            Err(StateError::NoSuchGpu { found, count })
        }
    }

    fn check(&self, work: &Job) -> Result<(), StateError> {
        self.check_gpu(work.gpu)?;
        let engines = work.engines;
        for (engine, found) in [
            ("gpu", work.share),
            ("memory", engines.memory),
            ("encoder", engines.encoder),
            ("decoder", engines.decoder),
            ("jpeg", engines.jpeg),
            ("optical flow", engines.optical_flow),
        ] {
            if !(0.0..=1.0).contains(&found) {
                return Err(StateError::Share { engine, found });
            }
        }
        Ok(())
    }
}

/// A past written in one go, before any client looks: for tests that must not wait for time to
/// pass. Its entries are not checked; ids must differ, and [`JobId`]s near `u64::MAX` never meet
/// those of a [`Scenario`].
#[derive(Clone, Debug)]
pub struct Script {
    machine: Machine,
    entries: Vec<Entry>,
}

impl Script {
    /// A machine created at `created_us` of the wall clock.
    #[must_use]
    pub fn new(created_us: u64, gpus: Vec<GpuSpec>, seed: u64) -> Self {
        let age_ns = log::wall_us()
            .saturating_sub(created_us)
            .saturating_mul(1_000);
        let machine = Machine {
            seed,
            created_us,
            created_boot_ns: log::boot_ns().saturating_sub(age_ns),
            pid_namespace: log::pid_namespace(),
            gpus,
        };
        Self {
            machine,
            entries: Vec::new(),
        }
    }

    /// The next thing to happen.
    #[must_use]
    pub fn at(mut self, at_us: u64, event: Event) -> Self {
        self.entries.push(Entry {
            at_us,
            boot_ns: 0,
            event,
        });
        self
    }

    /// Writes the state directory.
    pub fn create(self, dir: impl AsRef<Path>) -> Result<Scenario, StateError> {
        let dir = dir.as_ref();
        log::create(dir, &self.machine, &self.entries)?;
        Scenario::open(dir)
    }

    /// The past, without a directory.
    #[cfg(test)]
    pub(crate) fn history(self) -> crate::history::History {
        let mut history = crate::history::History::new(&self.machine);
        self.entries
            .into_iter()
            .for_each(|entry| history.apply(entry));
        history
    }
}
