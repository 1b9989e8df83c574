//! A node full of work: 8 simulated GPUs with 64 processes each, every process in a container's
//! cgroup of its own.
//!
//! The processes and the cgroups are real. No runtime is behind them, so that the containers are
//! published under the ids that the kernel gives, which is what a node without a runtime shows.

use std::collections::BTreeMap;
use std::io::PipeWriter;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gpuacct_tests::agent::Agent;
use gpuacct_tests::cgroups::Containers;
use nvml_wrapper::Nvml;
use nvml_wrapper::enum_wrappers::device::Sampling;
use rustix::time::{ClockId, clock_gettime};
use sim_nvml::{GpuSpec, Job, Scenario};

use crate::forks::attached;
use crate::process::{Cpu, Group, Memory};
use crate::report::{Row, float, megabytes};
use crate::scrape::{GZIP, PROMETHEUS, Scraper};
use crate::{Bench, pause};

pub(crate) const GPUS: u32 = 8;
pub(crate) const PROCESSES: u32 = 64;
/// Until accounts are open, names are given up and what a start costs is over.
const WARM_UP: Duration = Duration::from_secs(20);
/// How long is measured.
const MEASURE: Duration = Duration::from_secs(60);
/// How often Prometheus scrapes a target in the usual configurations.
const SCRAPE_INTERVAL: Duration = Duration::from_secs(15);
/// Rounds of NVML calls by which the simulated library's own cost is measured.
const ROUNDS: u32 = 20;
/// The time between two of them.
const ROUND: Duration = Duration::from_millis(500);

/// The full node. Emptied when dropped.
pub(crate) struct Load {
    scenario: Scenario,
    processes: Vec<Child>,
    /// The processes end when this does, also if this program is killed.
    alive: Option<PipeWriter>,
    containers: Containers,
}

impl Load {
    pub(crate) fn start(dir: &Path) -> Result<Self> {
        let gpus = (0..GPUS).map(GpuSpec::a100).collect();
        let scenario = Scenario::create(dir.join("gpus"), gpus, 1)?;
        let (reader, writer) = std::io::pipe()?;
        let mut load = Self {
            scenario,
            processes: Vec::new(),
            alive: Some(writer),
            containers: Containers::below("bench")?,
        };
        for gpu in 0..GPUS {
            for _ in 0..PROCESSES {
                let container = load.containers.add()?;
                let mut command = Command::new("cat");
                command.stdin(reader.try_clone()?).stdout(Stdio::null());
                let child = container.spawn(&mut command)?;
                let pid = child.id();
                load.processes.push(child);
                let job = Job {
                    gpu,
                    share: 1.0 / f64::from(PROCESSES),
                    memory_bytes: 1 << 30,
                    ..Job::default()
                };
                load.scenario.start(pid, job)?;
            }
        }
        Ok(load)
    }

    /// What `SIM_NVML_DIR` has to be.
    pub(crate) fn dir(&self) -> &Path {
        self.scenario.dir()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        drop(self.alive.take());
        for process in &mut self.processes {
            // It ends by itself; a process that cannot be waited for is gone.
            let _ = process.wait();
        }
    }
}

/// Shares of one core, the largest first.
pub(crate) fn by_thread(spent: &BTreeMap<String, Group>, took: Duration) -> String {
    let mut groups: Vec<_> = spent.iter().collect();
    groups.sort_by_key(|(_, group)| std::cmp::Reverse(group.nanos));
    let groups: Vec<String> = groups
        .into_iter()
        .map(|(name, group)| {
            let threads = match group.threads {
                1 => String::new(),
                several => format!(" ({several} threads)"),
            };
            let share = share(group.nanos, took);
            format!("`{name}`{threads} {share:.2} %")
        })
        .collect();
    groups.join(", ")
}

/// In percent of one core.
fn share(nanos: u64, took: Duration) -> f64 {
    float(nanos) / 1e7 / took.as_secs_f64()
}

/// Processor time over [`MEASURE`], in percent of one core.
struct Spent {
    share: f64,
    by_ticks: f64,
    threads: String,
    /// The supervisor's thread and one for each GPU.
    nvml: f64,
}

impl Spent {
    /// Measures while `meanwhile` waits for as long as it is told to.
    fn measure(agent: &Agent, meanwhile: impl FnOnce(Duration) -> Result<()>) -> Result<Self> {
        let before = Cpu::read(agent.pid())?;
        let began = Instant::now();
        meanwhile(MEASURE)?;
        let after = Cpu::read(agent.pid())?;
        let took = began.elapsed();
        let spent = after.by_name_since(&before);
        let ticks = float(after.ticks_since(&before));
        let per_second = float(rustix::param::clock_ticks_per_second());
        Ok(Self {
            share: share(spent.values().map(|group| group.nanos).sum(), took),
            by_ticks: ticks / per_second * 100.0 / took.as_secs_f64(),
            threads: by_thread(&spent, took),
            nvml: share(spent.get("nvml").map_or(0, |group| group.nanos), took),
        })
    }
}

/// What an agent costs, first with nobody who asks it for anything, then with a Prometheus.
struct Footprint {
    alone: Spent,
    scraped: Spent,
    at_start: Memory,
    steady: Memory,
    after_scrapes: Memory,
}

impl Footprint {
    fn measure(agent: &mut Agent) -> Result<Self> {
        attached(agent)?;
        pause(Duration::from_secs(2))?;
        let at_start = Memory::read(agent.pid())?;
        pause(WARM_UP)?;
        let alone = Spent::measure(agent, pause)?;
        let steady = Memory::read(agent.pid())?;
        let prometheus = Scraper::new(agent.address(), PROMETHEUS, GZIP);
        let scraped = Spent::measure(agent, |length| {
            let ends = Instant::now() + length;
            while Instant::now() < ends {
                prometheus.scrape()?;
                pause(SCRAPE_INTERVAL)?;
            }
            Ok(())
        })?;
        Ok(Self {
            alone,
            scraped,
            at_start,
            steady,
            after_scrapes: Memory::read(agent.pid())?,
        })
    }
}

/// The argument that makes this program measure the library, whose path follows.
pub(crate) const LIBRARY_COST: &str = "--library-cost";

/// What the agent's calls cost inside the simulated library.
struct LibraryCost {
    /// In percent of one core.
    share: f64,
    /// By how much the heap of a process grows that makes them, in KiB.
    heap: u64,
}

impl LibraryCost {
    fn measure(load: &Load, library: &Path) -> Result<Self> {
        // A process of its own, since the library reads where its state is from the environment.
        let output = Command::new(std::env::current_exe()?)
            .arg(LIBRARY_COST)
            .arg(library)
            .env(sim_nvml::STATE_DIR, load.dir())
            .stderr(Stdio::inherit())
            .output()
            .context("cannot measure the library")?;
        ensure!(output.status.success(), "measuring the library failed");
        let answer = String::from_utf8(output.stdout)?;
        let cost = answer.trim_end().split_once(' ').and_then(|(share, kib)| {
            Some(Self {
                share: share.parse().ok()?,
                heap: kib.parse().ok()?,
            })
        });
        cost.with_context(|| format!("the library's cost is {answer:?}"))
    }
}

/// Makes the agent's calls into the library at `path` and prints what they cost, in percent of one
/// core, and of heap in KiB: windows each second, lists and memory each five, as by default.
pub(crate) fn library_cost(path: &str) -> Result<()> {
    let before = Memory::read(std::process::id())?;
    let nvml = Nvml::builder().lib_path(path.as_ref()).init()?;
    let gpus = nvml.device_count()?;
    ensure!(gpus == GPUS, "{path} has {gpus} GPUs, expected {GPUS}");
    let (mut windows, mut lists) = (Duration::ZERO, Duration::ZERO);
    for round in 0..=ROUNDS {
        pause(ROUND)?;
        for index in 0..gpus {
            let device = nvml.device_by_index(index)?;
            let last_us = sim_nvml::wall_us().saturating_sub(1_000_000);
            let began = thread_time();
            // "Nothing" is an error to NVML; the agent has booked by now whatever else there was.
            let _ = device.samples(Sampling::GpuUtilization, last_us);
            let _ = device.process_utilization_stats(last_us);
            let _ = device.samples(Sampling::GpuUtilization, last_us);
            let between = thread_time();
            let _ = device.running_compute_processes();
            let _ = device.running_graphics_processes();
            let _ = device.mps_running_compute_processes();
            let _ = device.memory_info();
            // The first round reads the whole log.
            if round > 0 {
                windows += between.saturating_sub(began);
                lists += thread_time().saturating_sub(between);
            }
        }
    }
    let a_round = |spent: Duration| spent.as_secs_f64() / f64::from(ROUNDS);
    let share = (a_round(windows) + a_round(lists) / 5.0) * 100.0;
    let after = Memory::read(std::process::id())?;
    println!(
        "{share} {}",
        after.anonymous.saturating_sub(before.anonymous)
    );
    Ok(())
}

fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    // Never negative, and the nanoseconds are below a thousand million.
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or_default(),
        u32::try_from(time.tv_nsec).unwrap_or_default(),
    )
}

/// Processor time and memory at full load, and of the same agent with no GPU.
pub(crate) fn footprint(bench: &Bench) -> Result<Vec<Row>> {
    let dir = bench.dir("no-gpu")?;
    let mut agent = bench.agent(&dir, None)?;
    let bare = Footprint::measure(&mut agent)?;
    agent.stop()?;

    let load = Load::start(&bench.dir("load")?)?;
    let dir = bench.dir("full")?;
    let mut agent = bench.agent(&dir, Some(&load))?;
    let full = Footprint::measure(&mut agent)?;
    let status = agent.status()?.snapshot;
    agent.stop()?;
    let library = LibraryCost::measure(&load, &bench.library)?;
    drop(load);

    let accounts = status.accounts.len();
    let own = full.alone.share - library.share;
    let own_scraped = full.scraped.share - library.share;
    let unbalanced = status.agent.imbalances;
    ensure!(unbalanced == 0, "{unbalanced} commits did not balance");
    let memory = |it: &Memory| {
        format!(
            "{:.1} MB (PSS {:.1}; heap and stacks {:.1}, files {:.1}, shared {:.1})",
            megabytes(it.rss),
            megabytes(it.pss),
            megabytes(it.anonymous),
            megabytes(it.file),
            megabytes(it.shared),
        )
    };
    Ok(vec![
        Row::new(
            format!("processor time, {GPUS} GPUs × {PROCESSES} processes, of one core"),
            format!("{:.2} %", full.alone.share),
        )
        .goal("≤ 0.25 %", full.alone.share <= 0.25),
        Row::new(
            "— without what the simulated library itself takes",
            format!("{own:.2} % (the library: {:.2} %)", library.share),
        )
        .goal("≤ 0.25 %", own <= 0.25),
        Row::new("— by thread", full.alone.threads),
        Row::new(
            "— threads `nvml` less the library",
            format!("{:.2} %", full.alone.nvml - library.share),
        ),
        Row::new(
            "— by utime + stime, in ticks of 10 ms",
            format!("{:.2} %", full.alone.by_ticks),
        ),
        Row::new(
            format!(
                "the same with one scrape each {} s",
                SCRAPE_INTERVAL.as_secs()
            ),
            format!("{:.2} %", full.scraped.share),
        )
        .goal("≤ 0.4 %", full.scraped.share <= 0.4),
        Row::new(
            "— without what the simulated library itself takes",
            format!("{own_scraped:.2} %"),
        )
        .goal("≤ 0.4 %", own_scraped <= 0.4),
        Row::new("— by thread", full.scraped.threads),
        Row::new(
            "processor time with no GPU, of one core",
            format!(
                "{:.2} % ({:.2} % by ticks): {}",
                bare.alone.share, bare.alone.by_ticks, bare.alone.threads
            ),
        ),
        Row::new(
            format!("resident, steady, {accounts} accounts"),
            memory(&full.steady),
        )
        .goal("≤ 18 MB", megabytes(full.steady.rss) <= 18.0),
        Row::new(
            "— of its heap, what the simulated library takes, about",
            format!("{:.1} MB", megabytes(library.heap)),
        ),
        Row::new("— after the scrapes", memory(&full.after_scrapes)),
        Row::new("resident, steady, no GPU", memory(&bare.steady))
            .goal("≤ 11 MB", megabytes(bare.steady.rss) <= 11.0),
        Row::new("— after the scrapes", memory(&bare.after_scrapes)),
        Row::new(
            "peak of the start (VmHWM), full and with no GPU",
            format!(
                "{:.1} MB and {:.1} MB",
                megabytes(full.at_start.peak),
                megabytes(bare.at_start.peak)
            ),
        ),
        Row::new(
            "peak over the whole run, full",
            format!("{:.1} MB", megabytes(full.after_scrapes.peak)),
        ),
    ])
}
