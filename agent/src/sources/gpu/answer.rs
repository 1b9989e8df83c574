//! What NVML answered about one GPU, as plain data: samples of the device, rows of its processes,
//! and the answers that one window is made of.

use super::sample_clock::Reading;
use crate::core::model::{BootTime, UnobservedReason};

/// One device sample as NVML gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawSample {
    /// The stamp: microseconds of the clock that stamps the device's samples.
    pub at_us: u64,
    /// Busy percent; more than 100 is junk.
    pub percent: u32,
}

/// One process's row as NVML gives it. Rows of one pid are ordered by what is kept of them: the
/// newest, then the largest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct RawRow {
    /// The pid.
    pub pid: u32,
    /// The stamp of the newest sample credited to this pid, on the same clock.
    pub at_us: u64,
    /// Mean percent since the cursor, floored.
    pub percent: u32,
    /// The same of the other engines. Each engine's sample credits a process of its own, so a row
    /// may have these and no percent.
    pub engines: EnginePercents,
}

impl RawRow {
    /// Whether the pid is a real one. The driver writes all ones for "no process".
    pub(super) const fn is_possible(&self) -> bool {
        self.pid != 0 && self.pid != u32::MAX && self.percent <= 100
    }
}

/// Whole percents of the engines beside the multiprocessors; zero where the driver does not tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct EnginePercents {
    /// The memory interface.
    pub memory: u32,
    /// Video encoders.
    pub encoder: u32,
    /// Video decoders.
    pub decoder: u32,
    /// JPEG decoders.
    pub jpeg: u32,
    /// Optical flow accelerators.
    pub ofa: u32,
}

impl EnginePercents {
    /// Takes figures that cannot be percents for none. Whether there were any.
    pub(super) fn drop_impossible(&mut self) -> bool {
        let mut any = false;
        for percent in [
            &mut self.memory,
            &mut self.encoder,
            &mut self.decoder,
            &mut self.jpeg,
            &mut self.ofa,
        ] {
            if *percent > 100 {
                *percent = 0;
                any = true;
            }
        }
        any
    }
}

/// NVML's answers for one window.
#[derive(Clone, Debug, Default)]
pub struct WindowReadings {
    /// Samples newer than the cursor, before the rows were asked for.
    pub before: Vec<RawSample>,
    /// The rows since the cursor; empty where NVML answered "not found".
    pub rows: Vec<RawRow>,
    /// Rows since the newest sample of `before`, and when both kinds of rows had been answered; asked
    /// for where the device and its processes are on different beats.
    pub later: Option<(Vec<RawRow>, Reading)>,
    /// Samples newer than the cursor, after the rows were asked for.
    pub after: Vec<RawSample>,
    /// When the first of the calls was made.
    pub asked: BootTime,
    /// Both clocks, after the last call.
    pub clock: Reading,
    /// New samples came with stamps that cannot be dated.
    pub is_clock_doubted: bool,
}

impl WindowReadings {
    /// Whether a sample landed between the calls: the rows may lack it, or have one more.
    #[must_use]
    pub fn torn(&self) -> bool {
        let newest = |samples: &[RawSample]| samples.iter().map(|sample| sample.at_us).max();
        newest(&self.before) != newest(&self.after)
    }

    /// Why there are no samples of a time that was asked about.
    pub(super) const fn gap(&self) -> UnobservedReason {
        if self.is_clock_doubted {
            UnobservedReason::UnknownSampleClock
        } else {
            UnobservedReason::SampleGap
        }
    }
}
