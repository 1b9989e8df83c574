//! What has happened to the machine so far, as state: the log replayed.
//!
//! A [`History`] is a pure function of the machine and the entries applied; it reads no clock and
//! no file. Busy time is kept in µs × ppm: the exact integral of the scenario's shares.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::event::{Entry, Event, Fault, FaultId, Job, JobId, Kind, WHOLE_PPM};
use crate::health::Health;
use crate::machine::{GpuSpec, Instance, Machine, Mig, RING_CAPACITY, Stamps};

/// Records of dead processes that the driver's accounting keeps.
pub(crate) const ACCOUNTING_DEAD: usize = 128;
/// Live processes that the driver's accounting can follow.
pub(crate) const ACCOUNTING_LIVE: usize = 3872;

/// The engines that a sample covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Engine {
    Sm,
    Memory,
    Encoder,
    Decoder,
    Jpeg,
    OpticalFlow,
}

pub(crate) const ENGINES: [Engine; 6] = [
    Engine::Sm,
    Engine::Memory,
    Engine::Encoder,
    Engine::Decoder,
    Engine::Jpeg,
    Engine::OpticalFlow,
];

/// The machine and everything that has happened to it.
#[derive(Clone, Debug)]
pub(crate) struct History {
    pub(crate) gpus: Vec<Gpu>,
    pub(crate) jobs: BTreeMap<JobId, JobRecord>,
    faults: Vec<(FaultId, Option<u32>, Fault)>,
    last_us: u64,
}

/// A job from its start to its end.
#[derive(Clone, Debug)]
pub(crate) struct JobRecord {
    pub(crate) gpu: u32,
    pub(crate) pid: u32,
    /// Where its pid is another: (inode of the namespace, its pid there).
    pub(crate) inner_pid: Option<(u64, u32)>,
    pub(crate) label: Option<String>,
    pub(crate) from_us: u64,
    pub(crate) to_us: Option<u64>,
}

/// One GPU's past.
#[derive(Clone, Debug)]
pub(crate) struct Gpu {
    pub(crate) index: u32,
    pub(crate) seed: u64,
    /// When the driver was loaded: a ring's length before the machine's creation, so that the ring
    /// is full from the beginning, of idleness.
    pub(crate) origin_us: u64,
    pub(crate) spec: GpuSpec,
    pub(crate) segments: Vec<Segment>,
    pub(crate) accounting: Option<Accounting>,
    pub(crate) xids: Vec<(u64, u64)>,
    pub(crate) health: Health,
    pub(crate) instances: Vec<Part>,
    /// By which clocks it stamps, each from an instant on.
    pub(crate) stamps: Vec<(u64, Stamps)>,
    /// How far the wall clock is ahead of the boot clock.
    pub(crate) boot_lead_us: u64,
    /// The next instance's serial number.
    next_serial: u32,
}

/// A MIG instance, and which of all that there have been.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) serial: u32,
    pub(crate) spec: Instance,
}

impl Part {
    /// Where its jobs say that they run.
    pub(crate) fn ids(&self) -> (u32, u32) {
        (self.spec.gpu_instance, self.spec.compute_instance)
    }
}

/// A stretch of time in which nothing changes; it ends where the next one begins.
#[derive(Clone, Debug)]
pub(crate) struct Segment {
    pub(crate) from_us: u64,
    pub(crate) running: Arc<[Running]>,
    /// Busy time of the multiprocessors before this segment, in µs × ppm.
    pub(crate) busy_before: u128,
}

/// A job while it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Running {
    pub(crate) job: JobId,
    pub(crate) pid: u32,
    pub(crate) ppm: [u64; 6],
    pub(crate) memory_bytes: u64,
    pub(crate) kind: Kind,
    pub(crate) instance: Option<(u32, u32)>,
}

/// What accounting mode has recorded.
#[derive(Clone, Debug, Default)]
pub(crate) struct Accounting {
    pub(crate) live: Vec<Account>,
    pub(crate) dead: VecDeque<Account>,
}

/// Accounting's record of one process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) pid: u32,
    pub(crate) from_us: u64,
    pub(crate) to_us: Option<u64>,
    pub(crate) peak_bytes: u64,
}

/// A share in parts per million, clamped to 0..=1e6. 0 if it is not a positive number.
pub(crate) fn ppm(share: f64) -> u64 {
    if share.is_finite() && share > 0.0 {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "clamped to 0..=1e6 before the cast"
        )]
        let ppm = (share.min(1.0) * 1e6).round() as u64;
        ppm
    } else {
        0
    }
}

impl Running {
    fn new(job: JobId, pid: u32, work: &Job) -> Self {
        let engines = work.engines;
        let shares = [
            work.share,
            engines.memory,
            engines.encoder,
            engines.decoder,
            engines.jpeg,
            engines.optical_flow,
        ];
        Self {
            job,
            pid,
            ppm: shares.map(ppm),
            memory_bytes: work.memory_bytes,
            kind: work.kind,
            instance: work.instance,
        }
    }
}

impl Segment {
    /// The shares of an engine added up, in ppm; more than the whole where it is overbooked.
    pub(crate) fn demand_ppm(&self, engine: Engine) -> u64 {
        self.running
            .iter()
            .map(|running| running.ppm[engine as usize])
            .sum()
    }

    /// What part of the engine's time is busy, in ppm.
    pub(crate) fn busy_ppm(&self, engine: Engine) -> u64 {
        self.demand_ppm(engine).min(WHOLE_PPM)
    }

    /// What part of a GPU instance's time is busy, in ppm.
    pub(crate) fn instance_busy_ppm(&self, gpu_instance: u32) -> u64 {
        let demand: u64 = self
            .running
            .iter()
            .filter(|running| running.instance.is_some_and(|(gpu, _)| gpu == gpu_instance))
            .map(|running| running.ppm[Engine::Sm as usize])
            .sum();
        demand.min(WHOLE_PPM)
    }

    /// Busy time of one job during `us` of this segment, in µs × ppm. Jobs of one instance, or of a
    /// GPU that has none, share its time.
    pub(crate) fn job_busy(&self, job: &Running, us: u64) -> u128 {
        let beside = self
            .running
            .iter()
            .filter(|running| running.instance == job.instance);
        let demand: u64 = beside.map(|running| running.ppm[Engine::Sm as usize]).sum();
        let demand = demand.max(WHOLE_PPM);
        u128::from(us) * u128::from(job.ppm[Engine::Sm as usize]) * u128::from(WHOLE_PPM)
            / u128::from(demand)
    }
}

impl History {
    pub(crate) fn new(machine: &Machine) -> Self {
        let gpus = (0..)
            .zip(&machine.gpus)
            .map(|(index, spec)| Gpu::new(machine, index, spec))
            .collect();
        Self {
            gpus,
            jobs: BTreeMap::new(),
            faults: Vec::new(),
            last_us: machine.created_us,
        }
    }

    /// The latest moment that anything happened; a reader whose wall clock is behind it (the clock
    /// was set back) takes it for now.
    pub(crate) fn last_us(&self) -> u64 {
        self.last_us
    }

    /// The faults that hit a call, in the order in which they were injected.
    pub(crate) fn faults_of(&self, gpu: Option<u32>) -> impl Iterator<Item = (FaultId, &Fault)> {
        self.faults
            .iter()
            .filter(move |(_, of, _)| of.is_none() || *of == gpu)
            .map(|(id, _, fault)| (*id, fault))
    }

    /// Replays one entry. An entry that makes no sense (a stop of an unknown job) changes nothing.
    pub(crate) fn apply(&mut self, entry: Entry) {
        let at_us = entry.at_us.max(self.last_us);
        self.last_us = at_us;
        match entry.event {
            Event::Start {
                job,
                pid,
                inner_pid,
                work,
            } => {
                let Some(gpu) = usize::try_from(work.gpu)
                    .ok()
                    .and_then(|index| self.gpus.get_mut(index))
                else {
                    return;
                };
                if self.jobs.contains_key(&job) {
                    return;
                }
                let started = Running::new(job, pid, &work);
                gpu.edit(at_us, |running| running.push(started));
                let record = JobRecord {
                    gpu: work.gpu,
                    pid,
                    inner_pid,
                    label: work.label,
                    from_us: at_us,
                    to_us: None,
                };
                self.jobs.insert(job, record);
            }
            Event::Change { job, work } => {
                let Some(gpu) = self.gpu_of_live(job) else {
                    return;
                };
                gpu.edit(at_us, |running| {
                    for old in running.iter_mut().filter(|old| old.job == job) {
                        *old = Running::new(job, old.pid, &work);
                    }
                });
            }
            Event::Stop { job } => {
                let Some(gpu) = self.gpu_of_live(job) else {
                    return;
                };
                gpu.edit(at_us, |running| running.retain(|old| old.job != job));
                if let Some(record) = self.jobs.get_mut(&job) {
                    record.to_us = Some(at_us);
                }
            }
            Event::Inject {
                fault_id,
                gpu,
                fault,
            } => self.faults.push((fault_id, gpu, fault)),
            Event::Clear { fault_id } => self.faults.retain(|(id, _, _)| *id != fault_id),
            Event::Accounting { gpu, on } => self.with_gpu(gpu, |gpu| {
                if on != gpu.accounting.is_some() {
                    gpu.accounting = on.then(Accounting::default);
                    gpu.account(at_us);
                }
            }),
            Event::ClearAccounting { gpu } => self.with_gpu(gpu, |gpu| {
                if let Some(accounting) = &mut gpu.accounting {
                    accounting.dead.clear();
                }
            }),
            Event::Divide { gpu, instances } => self.with_gpu(gpu, |gpu| gpu.divide(instances)),
            Event::Stamp { gpu, stamps } => {
                self.with_gpu(gpu, |gpu| gpu.stamps.push((at_us, stamps)));
            }
            Event::Health { gpu, health } => self.with_gpu(gpu, |gpu| gpu.health = health),
            Event::Xid { gpu, code } => self.with_gpu(gpu, |gpu| gpu.xids.push((at_us, code))),
        }
    }

    fn with_gpu(&mut self, index: u32, act: impl FnOnce(&mut Gpu)) {
        if let Some(gpu) = usize::try_from(index)
            .ok()
            .and_then(|index| self.gpus.get_mut(index))
        {
            act(gpu);
        }
    }

    fn gpu_of_live(&mut self, job: JobId) -> Option<&mut Gpu> {
        let record = self
            .jobs
            .get(&job)
            .filter(|record| record.to_us.is_none())?;
        self.gpus.get_mut(usize::try_from(record.gpu).ok()?)
    }
}

impl Gpu {
    fn new(machine: &Machine, index: u32, spec: &GpuSpec) -> Self {
        let ring_us = spec.ring.period_ns * RING_CAPACITY as u64 / 1_000;
        let origin_us = machine.created_us.saturating_sub(ring_us);
        let mut gpu = Self {
            index,
            seed: machine.seed,
            origin_us,
            spec: spec.clone(),
            segments: vec![Segment {
                from_us: origin_us,
                running: Arc::new([]),
                busy_before: 0,
            }],
            accounting: spec.accounting.then(Accounting::default),
            xids: Vec::new(),
            health: Health::default(),
            instances: Vec::new(),
            stamps: vec![(0, spec.stamps)],
            boot_lead_us: machine
                .created_us
                .saturating_sub(machine.created_boot_ns / 1_000),
            next_serial: 0,
        };
        gpu.divide(spec.instances.clone());
        gpu
    }

    /// Divides the GPU anew. An instance that stays as it is is the same one.
    fn divide(&mut self, instances: Vec<Instance>) {
        if self.spec.mig != Mig::On || !self.current().running.is_empty() {
            return;
        }
        let before = std::mem::take(&mut self.instances);
        for spec in instances {
            let same = before.iter().find(|part| part.spec == spec).copied();
            self.instances.push(same.unwrap_or_else(|| {
                self.next_serial += 1;
                Part {
                    serial: self.next_serial,
                    spec,
                }
            }));
        }
    }

    /// Busy time of a GPU instance in `from_us..to_us`, in µs × ppm.
    pub(crate) fn instance_busy(&self, gpu_instance: u32, from_us: u64, to_us: u64) -> u128 {
        self.overlaps(from_us, to_us)
            .map(|(segment, begin, end)| {
                u128::from(end - begin) * u128::from(segment.instance_busy_ppm(gpu_instance))
            })
            .sum()
    }

    /// The segment that holds `at_us`, or the first one.
    pub(crate) fn segment_at(&self, at_us: u64) -> usize {
        self.segments
            .partition_point(|segment| segment.from_us <= at_us)
            .saturating_sub(1)
    }

    /// What runs now.
    pub(crate) fn current(&self) -> &Segment {
        self.segments
            .last()
            .expect("a GPU begins with a segment and never loses one")
    }

    /// Segments that overlap `from_us..to_us`, each with its part of that time.
    pub(crate) fn overlaps(
        &self,
        from_us: u64,
        to_us: u64,
    ) -> impl Iterator<Item = (&Segment, u64, u64)> {
        let first = self.segment_at(from_us);
        (first..self.segments.len()).map_while(move |index| {
            let segment = &self.segments[index];
            let end = self
                .segments
                .get(index + 1)
                .map_or(u64::MAX, |next| next.from_us);
            (segment.from_us < to_us).then(|| {
                let begin = segment.from_us.max(from_us);
                (segment, begin, end.min(to_us).max(begin))
            })
        })
    }

    /// Busy time of an engine in `from_us..to_us`, in µs × ppm.
    pub(crate) fn busy(&self, engine: Engine, from_us: u64, to_us: u64) -> u128 {
        self.overlaps(from_us, to_us)
            .map(|(segment, begin, end)| {
                u128::from(end - begin) * u128::from(segment.busy_ppm(engine))
            })
            .sum()
    }

    /// Energy since the driver was loaded, in millijoules; the counter moves every 100 ms.
    pub(crate) fn energy_mj(&self, now_us: u64) -> u64 {
        let now_us = now_us / 100_000 * 100_000;
        let segment = &self.segments[self.segment_at(now_us)];
        let busy = segment.busy_before
            + u128::from(now_us.saturating_sub(segment.from_us))
                * u128::from(segment.busy_ppm(Engine::Sm));
        let idle =
            u128::from(now_us.saturating_sub(self.origin_us)) * u128::from(self.spec.idle_mw);
        let active = busy * u128::from(self.spec.full_mw.saturating_sub(self.spec.idle_mw))
            / u128::from(WHOLE_PPM);
        u64::try_from((idle + active) / 1_000_000).unwrap_or(u64::MAX)
    }

    fn edit(&mut self, at_us: u64, change: impl FnOnce(&mut Vec<Running>)) {
        let last = self.current();
        let mut running = last.running.to_vec();
        change(&mut running);
        let next = Segment {
            from_us: at_us,
            running: running.into(),
            busy_before: last.busy_before
                + u128::from(at_us.saturating_sub(last.from_us))
                    * u128::from(last.busy_ppm(Engine::Sm)),
        };
        if last.from_us == at_us {
            self.segments.pop(); // It lasted no time, so no sample can have seen it.
        }
        self.segments.push(next);
        self.account(at_us);
    }

    /// Brings accounting's records in line with what runs now.
    fn account(&mut self, at_us: u64) {
        let Some(segment) = self.segments.last() else {
            return;
        };
        let Some(accounting) = &mut self.accounting else {
            return;
        };
        let mut memory: BTreeMap<u32, u64> = BTreeMap::new();
        for running in segment.running.iter() {
            *memory.entry(running.pid).or_default() += running.memory_bytes;
        }
        let (live, ended) = std::mem::take(&mut accounting.live)
            .into_iter()
            .partition(|account| memory.contains_key(&account.pid));
        accounting.live = live;
        for mut account in ended {
            account.to_us = Some(at_us);
            if accounting.dead.len() == ACCOUNTING_DEAD {
                accounting.dead.pop_front();
            }
            accounting.dead.push_back(account);
        }
        for (pid, bytes) in memory {
            if let Some(account) = accounting
                .live
                .iter_mut()
                .find(|account| account.pid == pid)
            {
                account.peak_bytes = account.peak_bytes.max(bytes);
            } else if accounting.live.len() < ACCOUNTING_LIVE {
                accounting.dead.retain(|account| account.pid != pid);
                accounting.live.push(Account {
                    pid,
                    from_us: at_us,
                    to_us: None,
                    peak_bytes: bytes,
                });
            }
        }
    }
}
