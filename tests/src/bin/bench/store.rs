//! What it costs to keep the books: the store's thread of an agent at full load, and the same agent
//! without a store.
//!
//! Every process of the load holds its GPU all the time, so that each commit has something of every
//! account: there is no busier second for a store with as many accounts.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gpuacct_tests::agent::Agent;

use crate::load::{GPUS, Load, PROCESSES, by_thread};
use crate::process::{Cpu, Group, Written};
use crate::report::{Row, float, megabytes, percentile};
use crate::{Bench, pause};

/// The thread's name.
const THREAD: &str = "store";
/// Until accounts are open, names are given up and what a start costs is over.
const WARM_UP: Duration = Duration::from_secs(25);
/// How long is measured. The store syncs and moves its log each minute.
const MEASURE: Duration = Duration::from_secs(180);
/// How often the agent is asked for its commits, of which it makes one a second.
const LOOK: Duration = Duration::from_millis(300);
/// In percent of one core.
const GOAL: f64 = 0.1;

/// What the agent says of its commits.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Commits {
    kept: f64,
    seconds: f64,
}

impl Commits {
    fn read(agent: &Agent) -> Result<Self> {
        let (code, text) = agent.get("/metrics")?;
        ensure!(code == 200, "/metrics answers {code}");
        let figure = |series: &str| -> Result<f64> {
            let line = text.lines().find_map(|line| line.strip_prefix(series));
            let line = line.with_context(|| format!("no {series}"))?;
            let figure = line.trim();
            figure
                .parse()
                .with_context(|| format!("{series} is {figure:?}"))
        };
        Ok(Self {
            kept: figure("gpuacct_store_commits_total{outcome=\"kept\"}")?,
            seconds: figure("gpuacct_store_commit_seconds_total ")?,
        })
    }
}

/// Everything that an agent's threads used over [`MEASURE`], and how long that was.
struct Spent {
    cpu: std::collections::BTreeMap<String, Group>,
    took: Duration,
}

impl Spent {
    /// Measures while `meanwhile` looks at it again and again.
    fn measure(agent: &Agent, mut meanwhile: impl FnMut() -> Result<()>) -> Result<Self> {
        let before = Cpu::read(agent.pid())?;
        let began = Instant::now();
        while began.elapsed() < MEASURE {
            pause(LOOK)?;
            meanwhile()?;
        }
        let after = Cpu::read(agent.pid())?;
        Ok(Self {
            cpu: after.by_name_since(&before),
            took: began.elapsed(),
        })
    }

    /// In percent of one core.
    fn share(&self, nanos: u64) -> f64 {
        float(nanos) / 1e7 / self.took.as_secs_f64()
    }

    fn of_all(&self) -> f64 {
        self.share(self.cpu.values().map(|group| group.nanos).sum())
    }
}

pub(crate) fn store(bench: &Bench) -> Result<Vec<Row>> {
    let load = Load::start(&bench.dir("load-store")?)?;
    let dir = bench.dir("store")?;
    let mut agent = bench.agent(&dir, Some(&load))?;
    crate::forks::attached(&mut agent)?;
    pause(WARM_UP)?;
    let accounts = agent.status()?.snapshot.accounts.len();
    ensure!(accounts >= 500, "{accounts} accounts are open");
    let written_before = Written::read(agent.pid(), THREAD)?;
    let mut last = Commits::read(&agent)?;
    let first = last;
    let mut times = Vec::new();
    let with = Spent::measure(&agent, || {
        let now = Commits::read(&agent)?;
        // Where two were made since the last look, what one of them took is not known.
        if (now.kept - last.kept - 1.0).abs() < 0.5 {
            times.push(Duration::from_secs_f64(now.seconds - last.seconds));
        }
        last = now;
        Ok(())
    })?;
    let written = Written::read(agent.pid(), THREAD)?.since(written_before);
    let commits = last.kept - first.kept;
    let size = |name: &str| -> Result<f64> {
        Ok(megabytes(
            std::fs::metadata(dir.join("store").join(name))?.len() / 1_024,
        ))
    };
    let (file, log) = (size("gpuacct.db")?, size("gpuacct.db-wal")?);
    agent.stop()?;

    let mut agent = bench.agent_with(&bench.dir("no-store")?, Some(&load), |config| {
        config.store.enabled = false;
    })?;
    crate::forks::attached(&mut agent)?;
    pause(WARM_UP)?;
    // Any agent that is queried as often has the same cost.
    let without = Spent::measure(&agent, || agent.get("/metrics").map(drop))?;
    agent.stop()?;
    drop(load);

    times.sort();
    let at = |percent| percentile(&times, percent).as_secs_f64() * 1e3;
    let nanos = with.cpu.get(THREAD).map(|group| group.nanos);
    let nanos = nanos.context("the store has a thread")?;
    let an_hour = |bytes: u64| float(bytes) / 1e6 * 3_600.0 / with.took.as_secs_f64();
    Ok(vec![
        Row::new(
            format!("processor time of the store, {accounts} open accounts, of one core"),
            format!("{:.3} %", with.share(nanos)),
        )
        .goal("≤ 0.1 %", with.share(nanos) <= GOAL),
        Row::new(
            "— for one commit",
            format!("{:.2} ms", float(nanos) / 1e6 / commits),
        ),
        Row::new(
            format!("— until a commit is kept, {} of them", times.len()),
            format!(
                "p50 {:.2} ms, p99 {:.2} ms, longest {:.2} ms",
                at(50),
                at(99),
                at(100)
            ),
        ),
        Row::new(
            "— written in an hour: by write calls; to the disk, with the file system's own writes",
            format!(
                "{:.0} MB; {:.0} MB",
                an_hour(written.to_files),
                an_hour(written.to_disk)
            ),
        ),
        Row::new(
            "— the ledger; its log",
            format!("{file:.1} MB; {log:.1} MB"),
        ),
        Row::new(
            format!(
                "the whole agent, {GPUS} GPUs × {PROCESSES} processes, looked at each {} ms: with a \
                 store; without",
                LOOK.as_millis()
            ),
            format!("{:.2} %; {:.2} %", with.of_all(), without.of_all()),
        ),
        Row::new("— by thread, with", by_thread(&with.cpu, with.took)),
        Row::new(
            "— by thread, without",
            by_thread(&without.cpu, without.took),
        ),
    ])
}
