//! A load with a known duty cycle: kernels for a share of each period, then nothing.
//!
//! What it did is measured, not assumed: the time from each launch to its end, which on a GPU that
//! nobody else uses is the time the GPU was busy, plus some microseconds for the launch.

use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::cuda::{CudaError, Gpu};

/// Cycles of one kernel: 5 to 10 ms at the clocks that GPUs have.
const CYCLES: u64 = 10_000_000;

/// What to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The GPU's index, in CUDA's order.
    pub gpu: u32,
    /// Part of each period in which the GPU is busy, 0 to 1.
    pub share: f64,
    /// Memory to hold.
    pub memory_bytes: usize,
    /// For how long; without it until the process is ended.
    pub duration: Option<Duration>,
    /// Length of a period: long against the driver's 1/6 s, so that most samples are wholly busy
    /// or wholly idle.
    pub period: Duration,
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The process, as its own pid namespace counts.
    pub pid: u32,
    /// The GPU.
    pub uuid: String,
    /// When the first period began.
    pub began_us: u64,
    /// When the last one ended.
    pub ended_us: u64,
    /// For how long kernels ran.
    pub busy_ns: u64,
    /// Kernels that ran.
    pub kernels: u64,
}

/// Puts the load on the GPU.
pub fn run(plan: &Plan) -> Result<Report, CudaError> {
    let gpu = Gpu::open(plan.gpu)?;
    let uuid = gpu.uuid()?;
    gpu.allocate(plan.memory_bytes)?;
    let began_us = wall_us();
    let began = Instant::now();
    let over = |at: Duration| plan.duration.is_some_and(|duration| at >= duration);
    let working = plan.period.mul_f64(plan.share);
    let (mut busy, mut kernels) = (Duration::ZERO, 0);
    let mut period_began = Duration::ZERO;
    while !over(began.elapsed()) {
        while began.elapsed() < period_began + working && !over(began.elapsed()) {
            let launched = Instant::now();
            gpu.spin(CYCLES)?;
            busy += launched.elapsed();
            kernels += 1;
        }
        period_began += plan.period;
        let end = plan
            .duration
            .map_or(period_began, |duration| duration.min(period_began));
        // A duty, not a wait: the pause is the load's idle part.
        sleep(end.saturating_sub(began.elapsed()));
    }
    Ok(Report {
        pid: std::process::id(),
        uuid,
        began_us,
        ended_us: wall_us(),
        busy_ns: u64::try_from(busy.as_nanos()).unwrap_or(u64::MAX),
        kernels,
    })
}

fn wall_us() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| {
            u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
        })
}
