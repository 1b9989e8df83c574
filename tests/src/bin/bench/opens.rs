//! What the hook for opens of GPU devices costs those who open something else, or nothing at all.
//!
//! The object is loaded twice in each pair, with the hook and without, by this process itself; the
//! rest of it is the same. A stand-in for a GPU is watched, since a machine with a GPU is not asked
//! for. What is measured is this thread's own processor time for one call, so that other work on
//! the machine moves it through caches and clocks only.

use std::fs::File;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use gpuacct::sources::kernel::opens::{OpenHook, OpenHookState, Watch};
use gpuacct::sources::kernel::{KernelConfig, KernelSource};
use rustix::time::{ClockId, clock_gettime};

use crate::report::{Row, Spread, float};
use crate::{Bench, pause};

/// Pairs of runs with the hook on and off.
const PAIRS: usize = 12;
/// How long one kind of work goes on in one run.
const RUN: Duration = Duration::from_millis(200);
/// Calls between two looks at the clock.
const BATCH: u32 = 1_000;
/// Devices of this kind stand for GPUs.
const WATCHED: &str = "misc";

/// A kind of work: what it is called, and one of it.
type Work = (&'static str, fn() -> Result<()>);

const WORKS: [Work; 3] = [
    ("open + close of a file", || open("/proc/self/exe")),
    ("open + close of another device", || open("/dev/null")),
    ("a call that opens nothing (getppid)", || {
        std::hint::black_box(rustix::process::getppid());
        Ok(())
    }),
];

fn open(path: &str) -> Result<()> {
    File::open(path)
        .map(drop)
        .with_context(|| format!("cannot open {path}"))
}

/// Processor time of one of `work`, in nanoseconds.
fn cost(work: fn() -> Result<()>) -> Result<f64> {
    let began = Instant::now();
    let before = processor_time();
    let mut count = 0_u64;
    while began.elapsed() < RUN {
        for _ in 0..BATCH {
            work()?;
        }
        count += u64::from(BATCH);
    }
    Ok((processor_time() - before) / float(count))
}

/// Of this thread, in nanoseconds.
fn processor_time() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    // Neither is negative.
    let whole = u64::try_from(time.tv_sec).unwrap_or(0);
    float(whole) * 1e9 + float(u64::try_from(time.tv_nsec).unwrap_or(0))
}

/// What each work costs while the object is loaded so; nothing if the kernel does not allow it.
fn measure(watch: Watch) -> Result<Option<Vec<f64>>> {
    let is_on = !watch.names.is_empty();
    let config = KernelConfig {
        watch,
        ..KernelConfig::default()
    };
    let (source, mut batches) = KernelSource::load(&config)?;
    if is_on && !matches!(source.opens(), OpenHookState::Attached(_)) {
        return Ok(None);
    }
    let drain = std::thread::spawn(move || while batches.blocking_recv().is_some() {});
    let costs: Result<Vec<f64>> = WORKS.iter().map(|(_, work)| cost(*work)).collect();
    drop(source);
    drain.join().ok().context("the reader of events panicked")?;
    costs.map(Some)
}

/// The costs with each hook that the kernel allows, and without.
pub(crate) fn on_and_off(_bench: &Bench) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for hook in OpenHook::ALL {
        let on = || Watch {
            names: vec![WATCHED.to_owned()],
            hooks: vec![hook],
        };
        let off = || Watch {
            names: Vec::new(),
            ..on()
        };
        // Neither side shall pay for a cold cache.
        if measure(on())?.is_none() {
            rows.push(Row::new(
                format!("by `{}`", hook.name()),
                "the kernel does not allow it",
            ));
            continue;
        }
        let mut pairs = Vec::new();
        for pair in 0..PAIRS {
            pause(Duration::ZERO)?;
            let measured = if pair % 2 == 0 {
                let without = measure(off())?;
                (without, measure(on())?)
            } else {
                let with = measure(on())?;
                (measure(off())?, with)
            };
            let (Some(without), Some(with)) = measured else {
                anyhow::bail!("the kernel has changed its mind about `{}`", hook.name());
            };
            pairs.push((without, with));
        }
        for (at, (what, _)) in WORKS.iter().enumerate() {
            let spread = |figure: &dyn Fn(f64, f64) -> f64| {
                let figures = pairs.iter().map(|(off, on)| figure(off[at], on[at]));
                Spread::of(figures).context("no pair was measured")
            };
            let ratio = spread(&|off, on| off / on)?;
            rows.push(Row::new(
                format!(
                    "{what}, by `{}`: processor time off / on, {PAIRS} pairs",
                    hook.name()
                ),
                format!("{ratio:.3}"),
            ));
            rows.push(Row::new(
                "— nanoseconds for one, off; on",
                format!("{:.0}; {:.0}", spread(&|off, _| off)?, spread(&|_, on| on)?),
            ));
        }
    }
    Ok(rows)
}
