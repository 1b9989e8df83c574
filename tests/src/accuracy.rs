//! How right the books are: one agent on a node of nine simulated GPUs, each with a scenario of its
//! own, beside what polling would have made of the very same node.
//!
//! Processes, cgroups, events, the agent and NVML's ABI are real; what the GPUs do is a scenario
//! whose truth is known. There are two truths. What was *done* is the integral of the work. What
//! was *sampled* is what the driver's ring credited, six times a second: nobody who asks the
//! driver can know better, and the books are to be that. Their difference is the driver's.
//!
//! The ninth GPU is divided. Its instances have no ring: the driver tells for which part of a time
//! each was active (GPM), which is the integral of the work itself. So there the two truths are one,
//! and what the books differ by is the agent's. Whose an instance is, the process lists tell, which
//! are read each five seconds: the work there begins once the lists have shown whose context is on
//! which instance, as a program loads its model before it computes. A pid's utilisation does not
//! exist there, so that pollers find nothing.
//!
//! A poller is a usual exporter: at each interval it asks for the processes' utilisation since the
//! last call, multiplies it by that time, and looks up the owners in `/proc`.
//!
//! Times are nanoseconds, but for the wall clock of the simulation, which is microseconds.

use std::collections::BTreeMap;
use std::fs;
use std::io::{PipeWriter, Read as _};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use gpuacct::config::{Config, Span};
use gpuacct::core::model::{Nanos, UnattributedReason};
use gpuacct::core::snapshot::{GpuBook, Snapshot};
use nvml_wrapper::Nvml;
use serde::{Deserialize, Serialize};
use sim_nvml::{Cadence, GpuSpec, Instance, Job, JobId, Measure, Scenario, Truth, wall_us};

use crate::agent::Agent;
use crate::cgroups::{Container, Containers};

/// The scenarios, one for each GPU.
pub const SCENARIOS: [&str; 9] = [
    "steady shares",
    "bursts",
    "short jobs",
    "pids used again",
    "device samples at another cadence",
    "no samples while idle",
    "samples that are means",
    "eight in turns",
    "three MIG instances",
];
const STEADY: u32 = 0;
const BURSTS: u32 = 1;
/// The GPU of the short jobs.
pub const SHORT: u32 = 2;
/// The GPU of the pids that are used again.
pub const REUSE: u32 = 3;
/// The GPU whose own samples come at another cadence than those of processes.
pub const CADENCE: u32 = 4;
const PAUSES: u32 = 5;
const MEANS: u32 = 6;
const TURNS: u32 = 7;
/// The GPU that is divided into instances.
pub const DIVIDED: u32 = 8;

/// The containers that the short jobs are run in, and those of the pids that are used again.
const POOL: usize = 20;
/// How often a pid is requested again, because another process may take it.
const ATTEMPTS: u32 = 200;
/// Where the kernel says which pid it gave last, and takes it.
const LAST_PID: &str = "/proc/sys/kernel/ns_last_pid";
/// How long a short job is, in milliseconds.
const SHORT_MILLIS: Range<u64> = 50..500;
/// How often the pollers poll, in seconds.
pub const POLLS: [u64; 3] = [1, 5, 15];

/// How much there is to do.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// How long the work goes on.
    pub length: Duration,
    /// Short jobs.
    pub short_jobs: u32,
}

/// What one container had of one GPU, by everybody's account.
#[derive(Clone, Debug, Default)]
pub struct Account {
    /// The GPU's index.
    pub gpu: u32,
    /// What was done.
    pub done: u64,
    /// What the driver's samples credited; of an instance, what it was active by the driver.
    pub sampled: u64,
    /// What the agent booked.
    pub booked: u64,
    /// What each of [`POLLS`] made of it.
    pub polled: [u64; POLLS.len()],
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    /// The accounts, of all GPUs.
    pub accounts: Vec<Account>,
    /// How long the GPUs were watched.
    pub watched: Duration,
    /// The books at the end.
    pub snapshot: Snapshot,
    /// Short jobs that were run.
    pub short_jobs: u32,
    /// Pids that were used again by another container.
    pub reused: u32,
    /// By pid, whether two containers had it within a second and a half, and what those were
    /// sampled: the driver cannot tell them apart.
    pub close: u64,
}

/// A mean error and how far single errors are from it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Errors {
    /// What the errors add up to, in parts of what was done.
    pub bias: f64,
    /// The standard deviation of an account's error, in seconds.
    pub spread: f64,
}

impl Outcome {
    /// The accounts on one GPU.
    pub fn on(&self, gpu: u32) -> impl Iterator<Item = &Account> {
        self.accounts
            .iter()
            .filter(move |account| account.gpu == gpu)
    }

    /// The largest difference between what was booked and what was sampled, in parts of the time
    /// watched.
    #[must_use]
    pub fn worst(&self, gpu: u32) -> f64 {
        let differences = self.on(gpu).map(|it| it.booked.abs_diff(it.sampled));
        seconds(differences.max().unwrap_or(0)) / self.watched.as_secs_f64()
    }

    /// The errors of a figure against what was done.
    #[must_use]
    pub fn errors(&self, gpu: u32, figure: impl Fn(&Account) -> u64) -> Errors {
        let errors: Vec<f64> = self
            .on(gpu)
            .map(|it| seconds(figure(it)) - seconds(it.done))
            .collect();
        let done: f64 = self.on(gpu).map(|it| seconds(it.done)).sum();
        let sum: f64 = errors.iter().sum();
        #[expect(clippy::cast_precision_loss, reason = "a few accounts")]
        let count = errors.len().max(1) as f64;
        let mean = sum / count;
        let squares: f64 = errors.iter().map(|error| (error - mean).powi(2)).sum();
        Errors {
            bias: if done > 0.0 { sum / done } else { 0.0 },
            spread: (squares / count).sqrt(),
        }
    }

    /// The sum of a figure on one GPU.
    pub fn sum(&self, gpu: u32, figure: impl Fn(&Account) -> u64) -> u64 {
        self.on(gpu).map(figure).sum()
    }

    /// A GPU's book, and those of its instances.
    pub fn books(&self, gpu: u32) -> impl Iterator<Item = &GpuBook> {
        let books = self.snapshot.gpus.iter();
        books.filter(move |book| book.gpu.index == gpu)
    }

    /// What of a GPU's busy time is unattributed for a reason.
    pub fn unattributed(&self, gpu: u32, reason: UnattributedReason) -> Nanos {
        let amounts = self.books(gpu).flat_map(|book| &book.unattributed);
        let of_reason = amounts.filter(|(of, _)| *of == reason);
        of_reason.map(|(_, amount)| *amount).sum()
    }
}

/// Nanoseconds for people.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "for people, to a microsecond")]
pub fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

/// Runs all scenarios at once, with an agent and the pollers of `poller`, the program that is
/// `naive-poller`. Everything is kept in `dir`. It ends early if it is told to.
///
/// # Errors
/// If anything that takes part fails; never since a figure is bad.
pub fn run(
    dir: &Path,
    library: &Path,
    poller: &Path,
    plan: Plan,
    is_told_to_end: &(dyn Fn() -> bool + Sync),
) -> Result<Outcome> {
    let scenario = Arc::new(Scenario::create(dir.join("gpus"), gpus(), 1)?);
    let environment = [(sim_nvml::STATE_DIR, scenario.dir())];
    let mut agent = Agent::start(dir, config(dir, library), &environment)?;
    let books = SCENARIOS.len() + instances().len();
    agent.wait_for_status("the eBPF object and the GPUs", |status| {
        let snapshot = &status.snapshot;
        snapshot.events.seen > 0 && snapshot.agent.scans > 0 && snapshot.gpus.len() == books
    })?;
    let mut pollers = Pollers::start(poller, library, scenario.dir())?;

    let mut node = Node::new(Arc::clone(&scenario))?;
    let divided = node.on_instances()?;
    agent.wait_for_status("the lists to show who is on the instances", |status| {
        status.snapshot.accounts.len() == divided.len()
    })?;
    let (from_us, began) = (wall_us(), Instant::now());
    let done = node.work(plan, divided, began + plan.length, is_told_to_end)?;
    let to_us = wall_us();
    let polled = pollers.end()?;
    agent.wait_for_status("the books to pass the end of the work", |status| {
        let through = |book: &GpuBook| book.start.0.saturating_add(book.elapsed.0);
        let mut books = status.snapshot.gpus.iter();
        books.all(|book| through(book) >= to_us * 1_000)
    })?;
    let snapshot = agent.status()?.snapshot;
    let ended = agent.stop()?;
    ensure!(ended.success(), "the agent ended with {ended}");

    let truth = Truth::read(scenario.dir())?;
    let mut accounts = BTreeMap::<(u32, String), Account>::new();
    let mut account = |gpu: u32, container: &str, with: &dyn Fn(&mut Account)| {
        let entry = accounts.entry((gpu, container.to_owned())).or_default();
        entry.gpu = gpu;
        with(entry);
    };
    let mut lives = Vec::new();
    for job in truth.jobs(from_us..to_us) {
        let container = job.label.context("each job has its container's name")?;
        let window = job.from_us..job.to_us.unwrap_or(to_us);
        let sampled = if job.gpu == DIVIDED {
            job.busy_ns
        } else {
            let sampled = truth.ring_ns(job.gpu, window.clone());
            sampled.get(&job.pid).copied().unwrap_or(0)
        };
        account(job.gpu, &container, &|it| {
            it.done += job.busy_ns;
            it.sampled += sampled;
        });
        if job.gpu == REUSE {
            lives.push((job.pid, window, sampled));
        }
    }
    for booked in &snapshot.accounts {
        let mut books = snapshot.gpus.iter();
        let book = books.find(|book| book.gpu.uuid == booked.gpu);
        let gpu = book.context("each account is on a GPU")?.gpu.index;
        account(gpu, booked.id.as_str(), &|it| {
            it.booked += booked.amounts.busy.0
        });
    }
    for (at, poll) in polled.iter().enumerate() {
        for (gpu, container, busy) in &poll.found {
            account(*gpu, container, &|it| it.polled[at] += busy);
        }
    }
    Ok(Outcome {
        accounts: accounts.into_values().collect(),
        watched: Duration::from_micros(to_us - from_us),
        snapshot,
        short_jobs: done.short_jobs,
        reused: done.reused,
        close: close(&lives),
    })
}

/// What was sampled of lives that had one pid so shortly after another that one window can hold
/// both: a window is a second long, and the driver credits the period before a sample.
fn close(lives: &[(u32, Range<u64>, u64)]) -> u64 {
    const NEAR_US: u64 = 1_500_000;
    let is_near = |a: &Range<u64>, b: &Range<u64>| {
        a.start < b.end.saturating_add(NEAR_US) && b.start < a.end.saturating_add(NEAR_US)
    };
    let amounts = lives.iter().enumerate().filter(|(at, (pid, window, _))| {
        let mut others = lives.iter().enumerate();
        others.any(|(other, (of, near, _))| other != *at && of == pid && is_near(window, near))
    });
    amounts.map(|(_, (_, _, sampled))| sampled).sum()
}

fn gpus() -> Vec<GpuSpec> {
    let mut gpus: Vec<GpuSpec> = (0..DIVIDED).map(GpuSpec::a100).collect();
    gpus.push(GpuSpec::h100_divided(DIVIDED, instances().into()));
    for (index, gpu) in (0_u64..).zip(&mut gpus) {
        // No two sample at the same instants.
        gpu.ring.phase_ns = 19_000_000 * index;
    }
    for (gpu, edit) in [
        (
            CADENCE,
            (|it| it.device_samples = Some(Cadence::ONE_HERTZ)) as fn(&mut GpuSpec),
        ),
        (PAUSES, |it| it.pauses_when_idle = true),
        (MEANS, |it| it.measure = Measure::Averaged),
    ] {
        if let Some(spec) = usize::try_from(gpu).ok().and_then(|at| gpus.get_mut(at)) {
            edit(spec);
        }
    }
    gpus
}

/// What the divided GPU is divided into.
fn instances() -> [Instance; 3] {
    [(1, 3, 40), (2, 2, 20), (3, 1, 10)].map(|(id, slices, gib)| Instance::whole(id, slices, gib))
}

/// No source names these containers, and nothing waits for publication: the test reads the ledger.
fn config(dir: &Path, library: &Path) -> Config {
    let mut config = Config::default();
    config.docker.enabled = false;
    config.cri.enabled = false;
    config.bundle.enabled = false;
    config.kubelet_logs.enabled = false;
    config.gpu.library = Some(library.to_owned());
    config.publish.keep_for = Span(Duration::from_secs(3_600));
    config.socket.path = dir.join("agent.sock");
    config
}

/// Where the work is done.
struct Node {
    scenario: Arc<Scenario>,
    /// Those of the processes read from it that live as long as the node.
    reader: std::io::PipeReader,
    /// They end when this does, also if this program is killed.
    alive: Option<PipeWriter>,
    lasting: Vec<Child>,
    /// Its cgroups go when all processes have gone.
    containers: Containers,
}

/// What was done beside what the scenario's log says.
#[derive(Default)]
struct Done {
    short_jobs: u32,
    reused: u32,
}

impl Node {
    fn new(scenario: Arc<Scenario>) -> Result<Self> {
        let (reader, alive) = std::io::pipe()?;
        Ok(Self {
            scenario,
            reader,
            alive: Some(alive),
            lasting: Vec::new(),
            containers: Containers::below("accuracy")?,
        })
    }

    /// A container with a process that lives as long as the work and takes this share.
    fn lasting(&mut self, gpu: u32, share: f64) -> Result<Lasting> {
        self.lasting_on(gpu, None, share)
    }

    /// The same on an instance.
    fn lasting_on(
        &mut self,
        gpu: u32,
        instance: Option<(u32, u32)>,
        share: f64,
    ) -> Result<Lasting> {
        let container = self.containers.add()?;
        let child = container.spawn(
            Command::new("cat")
                .stdin(self.reader.try_clone()?)
                .stdout(Stdio::null()),
        )?;
        let job = Job {
            instance,
            ..job(gpu, share, &container)
        };
        let id = self.scenario.start(child.id(), job.clone())?;
        self.lasting.push(child);
        Ok(Lasting { id, job })
    }

    /// A container on each of the instances, none of which works yet.
    fn on_instances(&mut self) -> Result<[Lasting; 3]> {
        let [a, b, c] = instances().map(|of| {
            let ids = (of.gpu_instance, of.compute_instance);
            self.lasting_on(DIVIDED, Some(ids), 0.0)
        });
        Ok([a?, b?, c?])
    }

    /// Everything at once, until `end`. The first on an instance works steadily, the others in
    /// bursts.
    fn work(
        mut self,
        plan: Plan,
        [steady, first, second]: [Lasting; 3],
        end: Instant,
        is_told_to_end: &(dyn Fn() -> bool + Sync),
    ) -> Result<Done> {
        steady.take(&self.scenario, 0.6)?;
        for share in [0.5, 0.3, 0.1] {
            self.lasting(STEADY, share)?;
        }
        for share in [0.45, 0.25] {
            self.lasting(CADENCE, share)?;
            self.lasting(MEANS, share)?;
        }
        for _ in 0..8 {
            self.lasting(TURNS, 1.0 / 8.0)?;
        }
        let bursty = [self.lasting(BURSTS, 0.0)?, self.lasting(BURSTS, 0.0)?];
        let mut pool = |count: usize| -> Result<Vec<Container>> {
            (0..count).map(|_| self.containers.add()).collect()
        };
        let (short, reuse, pausing) = (pool(POOL)?, pool(POOL)?, pool(2)?);
        let scenario = &*self.scenario;
        let has_failed = AtomicBool::new(false);
        // One that fails ends the others.
        let lane = |work: &mut dyn FnMut() -> Result<u32>| {
            let done = work();
            has_failed.fetch_or(done.is_err(), Ordering::Relaxed);
            done
        };
        let until = || {
            let is_over = has_failed.load(Ordering::Relaxed) || is_told_to_end();
            Instant::now() < end && !is_over
        };
        let jobs = plan.short_jobs;
        let done = thread::scope(|scope| {
            let whole = scope.spawn(|| lane(&mut || bursts(scenario, &bursty, 1, &until)));
            let parts = scope.spawn(|| {
                let bursty = [first, second];
                lane(&mut || bursts(scenario, &bursty, 9, &until))
            });
            let short =
                scope.spawn(|| lane(&mut || short_jobs(scenario, &short, jobs, end, &until)));
            let reuse = scope.spawn(|| lane(&mut || pids_again(scenario, &reuse, &until)));
            let pauses = scope.spawn(|| lane(&mut || now_and_then(scenario, &pausing, &until)));
            let join = |lane: thread::ScopedJoinHandle<'_, Result<u32>>| match lane.join() {
                Ok(done) => done,
                Err(_) => bail!("a lane panicked"),
            };
            let done = Done {
                short_jobs: join(short)?,
                reused: join(reuse)?,
            };
            for lane in [whole, parts, pauses] {
                join(lane)?;
            }
            Ok(done)
        });
        let truth = Truth::read(self.scenario.dir())?;
        for running in truth.jobs(0..u64::MAX) {
            if running.to_us.is_none() {
                self.scenario.stop(running.job)?;
            }
        }
        done
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        drop(self.alive.take());
        for child in &mut self.lasting {
            // It ends by itself; a process that cannot be waited for is gone.
            let _ = child.wait();
        }
    }
}

/// Something that runs as long as the work goes on.
struct Lasting {
    id: JobId,
    job: Job,
}

impl Lasting {
    /// From now on it takes this share.
    fn take(&self, scenario: &Scenario, share: f64) -> Result<()> {
        let job = Job {
            share,
            ..self.job.clone()
        };
        Ok(scenario.change(self.id, job)?)
    }
}

fn job(gpu: u32, share: f64, container: &Container) -> Job {
    Job {
        gpu,
        share,
        memory_bytes: 1 << 30,
        label: Some(container.id.clone()),
        ..Job::default()
    }
}

/// Numbers that are the same each time.
pub(crate) struct Draw(pub(crate) u64);

impl Draw {
    pub(crate) fn from(&mut self, range: Range<u64>) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        range.start + self.0 % (range.end - range.start)
    }

    fn rest(&mut self, millis: Range<u64>) {
        thread::sleep(Duration::from_millis(self.from(millis)));
    }
}

/// Two that are all busy for a while and idle for a while, each at its own pace.
fn bursts(
    scenario: &Scenario,
    bursty: &[Lasting; 2],
    seed: u64,
    until: &dyn Fn() -> bool,
) -> Result<u32> {
    let mut draw = Draw(seed);
    let mut is_on = false;
    while until() {
        is_on = !is_on;
        for (lasting, share) in bursty.iter().zip([0.9, 0.6]) {
            lasting.take(scenario, if is_on { share } else { 0.0 })?;
            draw.rest(100..900);
        }
        draw.rest(200..1_500);
    }
    Ok(0)
}

/// A process in a container that works for so many milliseconds, alone in the world.
struct Short(Child);

impl Short {
    fn start(container: &Container) -> Result<Self> {
        // Its input is a pipe that nobody writes to.
        let child = container.spawn(
            Command::new("cat")
                .stdin(Stdio::piped())
                .stdout(Stdio::null()),
        )?;
        Ok(Self(child))
    }

    fn work(&self, scenario: &Scenario, job: Job, millis: u64) -> Result<()> {
        let id = scenario.start(self.0.id(), job)?;
        thread::sleep(Duration::from_millis(millis));
        scenario.stop(id)?;
        Ok(())
    }
}

impl Drop for Short {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Jobs that live for a moment, spread over the time there is.
fn short_jobs(
    scenario: &Scenario,
    pool: &[Container],
    count: u32,
    end: Instant,
    until: &(dyn Fn() -> bool + Sync),
) -> Result<u32> {
    /// As many at a time as come from one node's batch system.
    const LANES: u32 = 2;
    let lane = |lane: u32| -> Result<u32> {
        let mut draw = Draw(u64::from(lane) + 7);
        let mine = count / LANES;
        for done in 0..mine {
            if !until() {
                return Ok(done);
            }
            let each = end.saturating_duration_since(Instant::now()) / (mine - done);
            let began = Instant::now();
            let at = usize::try_from(draw.from(0..pool.len() as u64))?;
            let process = Short::start(&pool[at])?;
            process.work(
                scenario,
                job(SHORT, 0.5, &pool[at]),
                draw.from(SHORT_MILLIS),
            )?;
            drop(process);
            // Sometimes at once, sometimes after a while, and in time with the others on average.
            let left = each.saturating_sub(began.elapsed());
            if !left.is_zero() {
                thread::sleep(
                    left.mul_f64(seconds(draw.from(0..2_000_000_000)))
                        .min(left * 2),
                );
            }
        }
        Ok(mine)
    };
    thread::scope(|scope| {
        let lane = &lane;
        let lanes = (0..LANES).map(|number| scope.spawn(move || lane(number)));
        let lanes: Vec<_> = lanes.collect();
        let mut done = 0;
        for lane in lanes {
            done += lane
                .join()
                .map_err(|_| anyhow::anyhow!("a lane panicked"))??;
        }
        Ok(done)
    })
}

/// Two containers that have one pid, one after the other: sooner than a window is long, or later.
fn pids_again(scenario: &Scenario, pool: &[Container], until: &dyn Fn() -> bool) -> Result<u32> {
    let mut draw = Draw(3);
    let mut again = 0;
    for round in 0.. {
        if !until() {
            break;
        }
        let [first, second] = [0, 1].map(|at| &pool[(round * 2 + at) % pool.len()]);
        let process = Short::start(first)?;
        let pid = process.0.id();
        process.work(scenario, job(REUSE, 1.0, first), draw.from(300..800))?;
        drop(process);
        if round % 2 == 0 {
            draw.rest(2_500..3_500);
        }
        let last: u32 = fs::read_to_string(LAST_PID)?.trim().parse()?;
        for attempt in 1..=ATTEMPTS {
            fs::write(LAST_PID, (pid - 1).to_string())?;
            let process = Short::start(second)?;
            // Everybody else goes on with pids that nobody has had for long, also not those who
            // were born meanwhile.
            let ahead = fs::write(LAST_PID, (last + 100 * attempt).to_string());
            ahead.or_else(|_| fs::write(LAST_PID, last.to_string()))?;
            if process.0.id() == pid {
                process.work(scenario, job(REUSE, 1.0, second), draw.from(300..800))?;
                again += 1;
                break;
            }
        }
        draw.rest(2_500..3_500);
    }
    Ok(again)
}

/// Jobs of a few seconds with nothing between them: the driver pauses there.
fn now_and_then(scenario: &Scenario, pool: &[Container], until: &dyn Fn() -> bool) -> Result<u32> {
    let mut draw = Draw(5);
    for container in pool.iter().cycle() {
        if !until() {
            break;
        }
        let process = Short::start(container)?;
        process.work(scenario, job(PAUSES, 0.7, container), draw.from(800..4_000))?;
        drop(process);
        draw.rest(500..4_000);
    }
    Ok(0)
}

/// What one poller found.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Polled {
    /// GPU, container and busy time.
    pub found: Vec<(u32, String, u64)>,
    /// Busy time of those that `/proc` did not know any more.
    pub gone: u64,
}

/// The pollers, as processes of their own: the library reads where its state is from the
/// environment.
struct Pollers(Vec<Child>);

impl Pollers {
    fn start(program: &Path, library: &Path, state: &Path) -> Result<Self> {
        let start = |every: u64| {
            Command::new(program)
                .arg(every.to_string())
                .arg(library)
                .env(sim_nvml::STATE_DIR, state)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .with_context(|| format!("cannot start {}", program.display()))
        };
        let mut pollers = Self(Vec::new());
        for every in POLLS {
            pollers.0.push(start(every)?);
        }
        Ok(pollers)
    }

    fn end(&mut self) -> Result<Vec<Polled>> {
        let mut polled = Vec::new();
        for child in &mut self.0 {
            drop(child.stdin.take());
            let mut said = String::new();
            if let Some(out) = &mut child.stdout {
                out.read_to_string(&mut said)?;
            }
            let status = child.wait()?;
            ensure!(status.success(), "a poller ended with {status}");
            polled.push(serde_json::from_str(&said).with_context(|| format!("{said:?}"))?);
        }
        Ok(polled)
    }
}

impl Drop for Pollers {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // Gone already is as good.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Polls each so many seconds until `end` says so, and once more then.
///
/// # Errors
/// If the library cannot be loaded or has no GPUs.
pub fn poll(library: &Path, every: Duration, end: &AtomicBool) -> Result<Polled> {
    const LOOK: Duration = Duration::from_millis(20);
    let nvml = Nvml::builder().lib_path(library.as_os_str()).init()?;
    let gpus = nvml.device_count()?;
    let mut found = BTreeMap::<(u32, String), u64>::new();
    let mut polled = Polled::default();
    let mut last_us = wall_us();
    let mut next = Instant::now() + every;
    loop {
        let is_over = end.load(Ordering::Relaxed);
        if !is_over && Instant::now() < next {
            thread::sleep(LOOK);
            continue;
        }
        next += every;
        let now_us = wall_us();
        for gpu in 0..gpus {
            // Nobody is an error to NVML.
            let rows = nvml
                .device_by_index(gpu)?
                .process_utilization_stats(last_us);
            for row in rows.unwrap_or_default() {
                let busy = (now_us - last_us) * 1_000 / 100 * u64::from(row.sm_util);
                match container_of(row.pid) {
                    Some(container) => *found.entry((gpu, container)).or_default() += busy,
                    None => polled.gone += busy,
                }
            }
        }
        last_us = now_us;
        if is_over {
            break;
        }
    }
    let rows = found.into_iter();
    polled.found = rows
        .map(|((gpu, container), busy)| (gpu, container, busy))
        .collect();
    Ok(polled)
}

/// As one finds it who comes by now.
fn container_of(pid: u32) -> Option<String> {
    let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let mut names = cgroups.split(['/', '\n']);
    let is_id = |name: &&str| name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit());
    names.find(is_id).map(str::to_owned)
}

/// Where a program of this crate is that was built beside the running one.
///
/// # Errors
/// If it is not there.
pub fn beside(name: &str) -> Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name(name);
    ensure!(path.is_file(), "{} is not built", path.display());
    Ok(path)
}
