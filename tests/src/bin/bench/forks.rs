//! How fast processes come and go with the agent on and off, and how fast they may without a loss.
//!
//! Forking is done by processes of their own, small ones, so that what is measured is the kernel's
//! work and not the copying of this program's memory.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use gpuacct_tests::agent::Agent;

use crate::process::Cpu;
use crate::report::{Row, Spread, float};
use crate::{Bench, pause};

/// The argument that makes this program a forker.
pub(crate) const FORKER: &str = "--forker";
/// Pairs of runs with the agent on and off.
const PAIRS: u32 = 12;
/// How long one run of a pair is.
const RUN: Duration = Duration::from_secs(1);
/// How long the storm is.
const STORM: Duration = Duration::from_secs(30);
/// A program that does nothing, dynamically linked as programs are.
const PROGRAM: &str = "/bin/true";

/// What a forker does over and over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    /// fork, exec, exit.
    Exec,
    /// fork, exit: nothing is faster.
    Fork,
}

impl Work {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Exec => "exec",
            Self::Fork => "fork",
        }
    }
}

/// What forkers achieve.
#[derive(Clone, Copy, Debug, Default)]
struct Achieved {
    /// Children a second.
    rate: f64,
    /// Processor time for one child, in seconds: theirs and the forker's own. Waiting
    /// for a core is not in it, as it is in the rate.
    cost: f64,
}

/// What `count` forkers at once achieve in `length`.
fn achieve(work: Work, count: usize, length: Duration) -> Result<Achieved> {
    let mut forkers = (0..count)
        .map(|_| Forker::start(work, length))
        .collect::<Result<Vec<_>>>()?;
    for forker in &mut forkers {
        forker.go()?;
    }
    let mut sum = Achieved::default();
    let mut time = 0.0;
    for forker in forkers {
        let one = forker.finish()?;
        sum.rate += one.rate;
        time += one.rate * one.cost;
    }
    sum.cost = time / sum.rate;
    Ok(sum)
}

/// A process that forks.
struct Forker {
    child: Child,
    answers: BufReader<ChildStdout>,
}

impl Forker {
    fn start(work: Work, length: Duration) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args([FORKER, work.as_str(), &length.as_millis().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start a forker")?;
        let out = child.stdout.take().context("its output is piped")?;
        let mut forker = Self {
            child,
            answers: BufReader::new(out),
        };
        let line = forker.line()?;
        ensure!(line == "ready", "a forker says {line:?}");
        Ok(forker)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }

    fn go(&mut self) -> Result<()> {
        let stdin = self.child.stdin.as_mut().context("its input is piped")?;
        writeln!(stdin, "go").context("a forker is gone")
    }

    fn finish(mut self) -> Result<Achieved> {
        let line = self.line()?;
        let says = || format!("a forker says {line:?}");
        let (rate, cost) = line.split_once(' ').with_context(says)?;
        Ok(Achieved {
            rate: rate.parse().with_context(says)?,
            cost: cost.parse().with_context(says)?,
        })
    }
}

impl Drop for Forker {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a forker process does: `exec` or `fork`, for so many milliseconds. Prints its rate
/// and the processor time for one child.
pub(crate) fn be_a_forker(arguments: &[String]) -> Result<()> {
    let [work, millis] = arguments else {
        bail!("{FORKER} wants exec or fork, and milliseconds; found {arguments:?}");
    };
    let length = Duration::from_millis(millis.parse()?);
    let child = match work.as_str() {
        "exec" => exec,
        "fork" => fork,
        _ => bail!("{FORKER}: expected exec or fork, found {work:?}"),
    };
    println!("ready");
    std::io::stdin().read_line(&mut String::new())?;
    let spent_before = processor_time()?;
    let began = Instant::now();
    let mut count = 0_u64;
    while count == 0 || began.elapsed() < length {
        child()?;
        count += 1;
    }
    let took = began.elapsed().as_secs_f64();
    let spent = processor_time()? - spent_before;
    println!("{} {}", float(count) / took, spent / float(count));
    Ok(())
}

/// What this process and the children that it has waited for have used, in seconds.
fn processor_time() -> Result<f64> {
    let mut sum = 0.0;
    for who in [libc::RUSAGE_SELF, libc::RUSAGE_CHILDREN] {
        let mut usage = std::mem::MaybeUninit::<libc::rusage>::uninit();
        // SAFETY: the pointer is valid for the call, which fills it in when it returns 0.
        let usage = unsafe {
            let answer = libc::getrusage(who, usage.as_mut_ptr());
            ensure!(
                answer == 0,
                "getrusage: {}",
                std::io::Error::last_os_error()
            );
            usage.assume_init()
        };
        for time in [usage.ru_utime, usage.ru_stime] {
            let micros = time.tv_sec * 1_000_000 + time.tv_usec;
            sum += float(u64::try_from(micros)?) / 1e6;
        }
    }
    Ok(sum)
}

fn exec() -> Result<()> {
    let status = Command::new(PROGRAM).stdin(Stdio::null()).status()?;
    ensure!(status.success(), "{PROGRAM} ended with {status}");
    Ok(())
}

fn fork() -> Result<()> {
    // SAFETY: there is no other thread, and the child makes one system call.
    let child = match unsafe { libc::fork() } {
        -1 => bail!("fork: {}", std::io::Error::last_os_error()),
        // SAFETY: as above.
        0 => unsafe { libc::_exit(0) },
        child => child,
    };
    let mut status = 0;
    // SAFETY: `status` lives through the call.
    let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
    ensure!(
        waited == child,
        "waitpid: {}",
        std::io::Error::last_os_error()
    );
    Ok(())
}

/// fork + exec + exit with the agent on and off.
pub(crate) fn on_and_off(bench: &Bench) -> Result<Vec<Row>> {
    let loads = [1, bench.cores];
    let measure = || -> Result<[Achieved; 2]> {
        Ok([
            achieve(Work::Exec, loads[0], RUN)?,
            achieve(Work::Exec, loads[1], RUN)?,
        ])
    };
    let mut pairs = Vec::new();
    // Neither side shall pay for a cold cache.
    achieve(Work::Exec, bench.cores, RUN)?;
    for pair in 0..PAIRS {
        pause(Duration::ZERO)?;
        let dir = bench.dir(&format!("on-and-off-{pair}"))?;
        let with_agent = || -> Result<[Achieved; 2]> {
            let mut agent = bench.agent(&dir, None)?;
            attached(&mut agent)?;
            let achieved = measure()?;
            agent.stop()?;
            Ok(achieved)
        };
        // Now the one first, now the other, so that a drift of the machine favours neither.
        pairs.push(if pair % 2 == 0 {
            let off = measure()?;
            (off, with_agent()?)
        } else {
            let on = with_agent()?;
            (measure()?, on)
        });
    }
    let mut rows = Vec::new();
    for (load, forkers) in loads.iter().enumerate() {
        let spread = |figure: &dyn Fn(Achieved, Achieved) -> f64| {
            let figures = pairs.iter().map(|(off, on)| figure(off[load], on[load]));
            Spread::of(figures).context("no pair was measured")
        };
        let ratio = spread(&|off, on| on.rate / off.rate)?;
        let who = match forkers {
            1 => "one forker".to_owned(),
            many => format!("{many} forkers, all cores"),
        };
        rows.push(
            Row::new(
                format!("fork + exec + exit, {who}: rate on / off, {PAIRS} pairs"),
                format!("{ratio:.3}"),
            )
            .goal("median ≥ 0.98", ratio.median >= 0.98),
        );
        rows.push(Row::new(
            "— processor time for one, off / on",
            format!("{:.3}", spread(&|off, on| off.cost / on.cost)?),
        ));
        rows.push(Row::new(
            "— a second, off; on",
            format!(
                "{:.0}; {:.0}",
                spread(&|off, _| off.rate)?,
                spread(&|_, on| on.rate)?
            ),
        ));
    }
    Ok(rows)
}

/// Waits until the object is attached: `/readyz` is earlier.
pub(crate) fn attached(agent: &mut Agent) -> Result<()> {
    let attached = agent.wait_for_status("the eBPF object", |status| {
        status.snapshot.events.seen > 0 && status.snapshot.agent.scans > 0
    });
    attached.map(drop)
}

/// The highest rate of events, and what of them is lost.
pub(crate) fn storm(bench: &Bench) -> Result<Vec<Row>> {
    let dir = bench.dir("storm")?;
    let mut agent = bench.agent(&dir, None)?;
    attached(&mut agent)?;
    pause(Duration::from_secs(1))?;
    let before = agent.status()?.snapshot;
    let cpu_before = Cpu::read(agent.pid())?;
    let began = Instant::now();
    let rate = achieve(Work::Fork, bench.cores, STORM)?.rate;
    let took = began.elapsed();
    let spent = Cpu::read(agent.pid())?.by_name_since(&cpu_before);
    let commits = agent.status()?.snapshot.agent.commits;
    let after = agent
        .wait_for_status("the ring to be empty", |status| {
            let events = &status.snapshot.events;
            status.snapshot.agent.commits > commits + 1
                && events.seen == events.submitted + events.lost
        })?
        .snapshot;
    let seen = after.events.seen - before.events.seen;
    let lost = after.events.lost - before.events.lost;
    let undecodable = after.events.undecodable - before.events.undecodable;
    let cpu: u64 = spent.values().map(|group| group.nanos).sum();
    let ended = agent.stop()?;
    ensure!(ended.success(), "the agent ended with {ended}");
    Ok(vec![
        Row::new(
            format!(
                "events lost in {} s, {} forkers, default ring",
                STORM.as_secs(),
                bench.cores
            ),
            format!("{} of {seen}", lost + undecodable),
        )
        .goal("0", lost + undecodable == 0),
        Row::new("— processes a second (fork, exit)", format!("{rate:.0}")),
        Row::new(
            "— events a second",
            format!("{:.0}", float(seen) / took.as_secs_f64()),
        ),
        Row::new(
            "— scans of /proc for a loss; tables that overflowed",
            format!(
                "{}; {}",
                after.agent.rescans_after_loss - before.agent.rescans_after_loss,
                after.agent.table_overflows - before.agent.table_overflows
            ),
        ),
        Row::new(
            "— the agent's processor time for an event",
            format!("{:.2} µs", float(cpu) / 1e3 / float(seen.max(1))),
        ),
        Row::new(
            "— of one core, by thread",
            crate::load::by_thread(&spent, took),
        ),
    ])
}
