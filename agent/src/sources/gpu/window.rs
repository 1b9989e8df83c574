//! One GPU's time, cut into windows that tile it and bill nothing twice.
//!
//! NVML gives two views of one ring in the driver: the device's own samples (busy percent, each for
//! the stretch up to its timestamp) and, per process, the mean over all samples since a cursor. They
//! are separate calls without an upper bound, so a window is taken in a [`Bracket`]: samples, rows,
//! samples again. Where both sample calls agree on the newest sample, the rows are about the same
//! samples, and that newest sample becomes the window's end and the next one's cursor.
//!
//! What a window's time becomes:
//!
//! - a sample stands for the time since the sample before it, and for at most one *period*. The
//!   period is measured: the median spacing of the samples seen. A spacing of up to one and a half
//!   periods counts whole, as jitter;
//! - beyond that the driver did not sample: the rest of the spacing is `sample_gap`. Before the
//!   first sample it is `agent_paused` where nobody asked for longer than the ring reaches back, and
//!   `ring_overrun` where the ring came back full all the same;
//! - busy is each sample's percent of its stretch, idle the rest of the stretch. Time is idle only
//!   because a sample says so;
//! - the other engines' busy time is a row's percent of the time that samples cover: floored, up to a
//!   percentage point too low per process and window, and no part of any balance;
//! - [`Windows::fail`] and a jump of the stamps' clock close a stretch nobody observed, with a reason.
//!
//! Energy is the difference of the device's counter between the ends of two windows. It is read when a
//! window closes, up to a sample's period after the newest sample; the differences add up to the
//! counter's own. A counter that went down, and one that could not be read while time was closed as
//! unobserved, begins anew: that energy is nobody's, and is not taken for zero.
//!
//! All stamps here are of one clock, the one that stamps the device's samples; rows that come on
//! another clock are converted before. Which clock that is, [`sample_clock`](super::sample_clock) learns.
//! Stamps are converted to the boot clock by the distance of the two at the bracket. Slewing of the
//! wall clock, at most 0.05 %, therefore lands in the first stretch.
//!
//! Pure: no clock, no NVML. Units: nanoseconds, stamps in microseconds, NVML's percents.

use std::collections::{BTreeMap, VecDeque};
use std::ops::RangeInclusive;

use super::beat::{self, Beat, Samples};
use super::credit::{Split, apportion, scale, split};
use super::sample_clock::Reading;
use crate::core::amounts::{Engines, Millijoules};
use crate::core::input::{Credit, EngineUse, GpuWindow, WindowQuality};
use crate::core::model::{BootTime, Clock, GpuUuid, Nanos, Pid, UnobservedReason};

/// A stretch without a new sample is closed as unobserved once it is longer than this. Until then
/// nothing is lost by waiting: the driver's ring holds ten seconds at least.
pub const PATIENCE: Nanos = Nanos::from_secs(5);
/// A change of a clock's distance from the boot clock that is no slewing any more.
pub const CLOCK_STEP: Nanos = Nanos::from_millis(100);
/// The period until one is measured: what RM's headers give as the shortest.
const ASSUMED_PERIOD: Nanos = Nanos(1_000_000_000 / 6);
/// Spacings outside this range are no period of any product (1/6 s to 1 s by RM's headers), but
/// pauses or junk.
const PERIODS: RangeInclusive<u64> = 10_000_000..=1_500_000_000;
/// Spacings of which the median is taken.
const SPACINGS: usize = 64;
/// Fewer samples than this are never a full ring (real ones hold 72 or more).
const SMALLEST_RING: usize = 32;

/// How far back the driver's ring reaches, generously.
pub(super) const RING_SPAN: Nanos = Nanos::from_secs(12);
/// After so many windows in which every row's time was a sample's of the device, they are on one beat
/// again: where they are not, some are by chance.
const OFF_BEAT: u8 = 16;
/// What a sample's time may differ by when its clock is read anew. Samples are far further apart.
pub(super) const JITTER_US: u64 = 50;

/// Where the windows of an agent before this one stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// The GPU.
    pub gpu: GpuUuid,
    /// The end of its last window that is booked.
    pub end: BootTime,
    /// Both clocks about then.
    pub then: Clock,
    /// When this agent began.
    pub began: BootTime,
}

impl Cursor {
    /// The window from here up to `end`, of which nobody can tell any more: `agent_down` before this
    /// agent began, and `reason` from then on.
    pub(super) fn lost(&self, end: BootTime, reason: UnobservedReason) -> GpuWindow {
        let with_agent = end.since(self.began.max(self.end));
        let before = end.since(self.end).minus(with_agent);
        GpuWindow {
            gpu: self.gpu.clone(),
            start: self.end,
            end,
            busy: Nanos::ZERO,
            idle: Nanos::ZERO,
            unobserved: [(UnobservedReason::AgentDown, before), (reason, with_agent)]
                .into_iter()
                .filter(|(_, time)| !time.is_zero())
                .collect(),
            credits: Vec::new(),
            below_resolution: Nanos::ZERO,
            no_row: Nanos::ZERO,
            engines: Vec::new(),
            energy: None,
            quality: WindowQuality::default(),
            clocks: None,
        }
    }
}

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
    /// Whether it can be somebody's: the driver writes an all-ones pid for "nobody".
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

/// NVML's answers of one window.
#[derive(Clone, Debug, Default)]
pub struct Bracket {
    /// Samples newer than the cursor, before the rows were asked for.
    pub before: Vec<RawSample>,
    /// The rows since the cursor; empty where NVML answered "not found".
    pub rows: Vec<RawRow>,
    /// Rows since the newest sample of `before`, and when both kinds of rows had been answered; asked
    /// for where [`Windows::is_off_beat`].
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

impl Bracket {
    /// Whether a sample landed between the calls: the rows may lack it, or have one more.
    #[must_use]
    pub fn torn(&self) -> bool {
        let newest = |samples: &[RawSample]| samples.iter().map(|sample| sample.at_us).max();
        newest(&self.before) != newest(&self.after)
    }

    /// Why there are no samples of a time that was asked about.
    const fn gap(&self) -> UnobservedReason {
        if self.is_clock_doubted {
            UnobservedReason::UnknownSampleClock
        } else {
            UnobservedReason::SampleGap
        }
    }
}

/// Up to where the GPU's time is accounted for.
#[derive(Clone, Copy, Debug)]
struct Position {
    /// In NVML's time: only what is newer counts.
    stamp_us: u64,
    /// The same point on the boot clock.
    boot: BootTime,
    /// Whether a sample stands there, so that the next one's distance is a spacing.
    at_sample: bool,
}

impl Position {
    fn at(clock: Reading) -> Self {
        Self {
            stamp_us: clock.stamp_us(),
            boot: clock.boot,
            at_sample: false,
        }
    }
}

/// The state of one GPU's windows.
#[derive(Clone, Debug)]
pub struct Windows {
    gpu: GpuUuid,
    cursor: Position,
    /// How far the stamps' clock was ahead of the boot clock at the last call, in nanoseconds.
    distance: i128,
    /// The stamps' clock was set back and the ring still has samples of the time ahead. Rows are means
    /// over them too, so nothing can be made of rows until they are gone.
    ahead: bool,
    spacings: VecDeque<u64>,
    /// When processes are sampled.
    beat: Beat,
    /// For how many windows more that do not say so they are taken to have a beat of their own.
    off_beat: u8,
    /// The most samples that one answer had.
    ring: usize,
    /// Junk seen since the last window closed.
    invalid: u32,
    meter: Meter,
    /// When it was last tried to close a window.
    tried: BootTime,
}

/// The device's counter of energy.
#[derive(Clone, Copy, Debug, Default)]
struct Meter {
    /// What it showed at the end of the last window.
    baseline: Option<Millijoules>,
    /// What it showed last.
    reading: Option<Millijoules>,
}

impl Meter {
    /// What it counted since the last window's end.
    fn take(&mut self) -> Option<Millijoules> {
        let reading = self.reading.take()?;
        let before = self.baseline.replace(reading)?;
        reading.0.checked_sub(before.0).map(Millijoules)
    }
}

/// A window's busy time, and whose it is.
struct Divided {
    busy: Nanos,
    split: Split,
    engines: Vec<EngineUse>,
}

/// What the samples of one window come to.
struct Walk {
    end: BootTime,
    covered: Nanos,
    busy: Nanos,
    /// What the samples' whole percents may hide beyond that.
    hidden: Nanos,
    /// What is missing before the first sample.
    late: Nanos,
    /// What is missing between samples.
    gaps: Nanos,
}

impl Windows {
    /// Begins now: nothing from before is billed.
    #[must_use]
    pub fn new(gpu: GpuUuid, clock: Reading) -> Self {
        Self {
            gpu,
            cursor: Position::at(clock),
            distance: clock.ahead,
            ahead: false,
            spacings: VecDeque::new(),
            beat: Beat::default(),
            off_beat: 0,
            ring: 0,
            invalid: 0,
            meter: Meter::default(),
            tried: clock.boot,
        }
    }

    /// Goes on where an agent before this one stopped, with the driver's ring as it is now. What
    /// the ring does not reach back to is closed as unobserved: while no agent ran `agent_down`,
    /// from then on `driver_error`, since the device could not be asked before. `then` is the stamps'
    /// clock as it was when the other agent stopped.
    #[must_use]
    pub fn resumed(
        cursor: &Cursor,
        then: Reading,
        ring: &[RawSample],
        now: Reading,
    ) -> (Self, Option<GpuWindow>) {
        let mut windows = Self {
            cursor: Position {
                // A sample at the cursor is billed already, one after it is not.
                stamp_us: then.stamp_of(cursor.end).saturating_add(JITTER_US),
                boot: cursor.end,
                at_sample: true,
            },
            // A step of the stamps' clock in between shows in the first window.
            distance: then.ahead,
            ..Self::new(cursor.gpu.clone(), now)
        };
        windows.learn(ring);
        let stepped = (now.ahead - windows.distance).unsigned_abs() > u128::from(CLOCK_STEP.0);
        let oldest = ring.iter().filter(|sample| sample.percent <= 100);
        let oldest = oldest.map(|sample| now.boot_of(sample.at_us)).min();
        let reach = match oldest.filter(|oldest| !stepped && *oldest <= now.boot) {
            // A sample stands for the period before it.
            Some(oldest) => oldest.minus(windows.period()),
            None if now.boot.since(cursor.end) > RING_SPAN => now.boot,
            None => cursor.end,
        };
        let lost = (reach > cursor.end).then(|| windows.lose(cursor, reach, now));
        (windows, lost)
    }

    /// Likewise for what has no ring: all of the time until now is unobserved.
    #[must_use]
    pub fn resumed_without_ring(cursor: &Cursor, now: Reading) -> (Self, Option<GpuWindow>) {
        let mut windows = Self::new(cursor.gpu.clone(), now);
        let lost = (now.boot > cursor.end).then(|| windows.lose(cursor, now.boot, now));
        (windows, lost)
    }

    /// Takes the stamps' clock for known from now on; until then time stays open.
    pub(super) fn begin(&mut self, clock: Reading) {
        self.distance = clock.ahead;
        self.cursor.stamp_us = clock.stamp_of(self.cursor.boot);
        self.cursor.at_sample = false;
        self.tried = clock.boot;
    }

    /// Takes the distance of the stamps' clock for more exact than the one before. That is no step.
    pub(super) const fn refine(&mut self, clock: Reading) {
        self.distance = clock.ahead;
    }

    /// The same windows with the energy's readings of others of this GPU.
    pub(super) const fn with_meter_of(mut self, other: &Self) -> Self {
        self.meter = other.meter;
        self
    }

    /// Closes what nobody can tell of any more, up to `reach`.
    fn lose(&mut self, cursor: &Cursor, reach: BootTime, now: Reading) -> GpuWindow {
        self.distance = now.ahead;
        self.cursor = Position {
            stamp_us: now.stamp_of(reach),
            boot: reach,
            at_sample: false,
        };
        checked(cursor.lost(reach, UnobservedReason::DriverError))
    }

    /// Learns the period and the ring's size from samples that are not billed: the whole ring, as
    /// it is at the start.
    pub fn learn(&mut self, ring: &[RawSample]) {
        let mut times: Vec<u64> = ring.iter().map(|sample| sample.at_us).collect();
        times.sort_unstable();
        for pair in times.windows(2) {
            self.note_spacing(pair[1] - pair[0]);
        }
        self.ring = self.ring.max(ring.len());
    }

    /// Learns from the rows of the whole ring, and from the device's samples as they were after, whether
    /// those have a beat of their own.
    pub(super) fn compare(&mut self, rows: &[RawRow], ring: &[RawSample]) {
        let times = ring.iter().map(|sample| sample.at_us);
        let (Some(oldest), Some(newest)) = (times.clone().min(), times.max()) else {
            return;
        };
        let latest = newest.saturating_add(tolerance(self.period()).0 / 1000);
        let is_valid = |row: &&RawRow| row.is_possible() && (oldest..=latest).contains(&row.at_us);
        let valid: Vec<RawRow> = rows.iter().filter(is_valid).copied().collect();
        self.listen(ring, &valid);
    }

    /// Takes a reading of the device's counter of energy for the window that closes next; none where
    /// it could not be read.
    pub const fn read_energy(&mut self, reading: Option<Millijoules>) {
        self.meter.reading = reading;
    }

    /// Takes the last reading for where the next window begins.
    pub const fn set_baseline(&mut self) {
        self.meter.baseline = self.meter.reading.take();
    }

    /// The GPU.
    #[must_use]
    pub const fn gpu(&self) -> &GpuUuid {
        &self.gpu
    }

    /// What to ask for samples with: only those newer than this stamp.
    #[must_use]
    pub const fn cursor_us(&self) -> u64 {
        self.cursor.stamp_us
    }

    /// The end of the last window.
    #[must_use]
    pub const fn end(&self) -> BootTime {
        self.cursor.boot
    }

    /// Whether so much time is open that it should be closed as unobserved.
    #[must_use]
    pub fn overdue(&self, now: BootTime) -> bool {
        now.since(self.cursor.boot) > PATIENCE
    }

    /// Closes a window with NVML's answers. None while no sample is newer than the cursor: the time
    /// stays open, and is closed as `sample_gap` after [`PATIENCE`].
    pub fn close(&mut self, bracket: &Bracket) -> Option<GpuWindow> {
        let clock = bracket.clock;
        let paused = bracket.asked.since(self.tried) > self.ring_span();
        if let Some(reason) = self.step(clock) {
            return self.unobserved(clock, reason);
        }
        // NVML stamps in microseconds and reads its own clock: what is ahead by less than a step
        // was sampled just now.
        let latest_us = clock.stamp_us().saturating_add(CLOCK_STEP.0 / 1000);
        if self.ahead {
            if bracket.after.iter().any(|sample| sample.at_us > latest_us) {
                return self.unobserved(clock, UnobservedReason::ClockStep);
            }
            self.ahead = false;
        }

        let samples = self.valid_samples(&bracket.after, latest_us);
        let Some(newest_us) = samples.last().map(|sample| sample.at_us) else {
            let reason = if paused {
                UnobservedReason::AgentPaused
            } else {
                bracket.gap()
            };
            // What is sampled while the answer is under way is yet to be seen: the stretch ends
            // where it was asked for.
            let asked = if bracket.asked > self.cursor.boot {
                Reading {
                    boot: bracket.asked,
                    ..clock
                }
            } else {
                clock
            };
            return self
                .overdue(clock.boot)
                .then(|| self.unobserved(asked, reason))?;
        };
        let full = samples.len() >= self.ring.max(SMALLEST_RING);
        let mut before = self.cursor.at_sample.then_some(self.cursor.stamp_us);
        for sample in &samples {
            if let Some(before) = before {
                self.note_spacing(sample.at_us - before);
            }
            before = Some(sample.at_us);
        }
        self.ring = self.ring.max(bracket.after.len());

        let walk = self.walk(&samples, clock);
        if walk.end == self.cursor.boot {
            // A slew within the bounds of a step put the samples before the cursor. They stay newer
            // than the cursor in NVML's time, so the next window has them.
            return None;
        }
        let before_the_first = if paused {
            UnobservedReason::AgentPaused
        } else if full {
            UnobservedReason::RingOverrun
        } else {
            bracket.gap()
        };
        let valid = self.valid_rows(&bracket.rows, newest_us);
        let Divided {
            busy,
            split,
            engines,
        } = self.divide(bracket, &samples, &valid, &walk);
        let window = GpuWindow {
            gpu: self.gpu.clone(),
            start: self.cursor.boot,
            end: walk.end,
            busy,
            idle: walk.covered.minus(busy),
            unobserved: [(bracket.gap(), walk.gaps), (before_the_first, walk.late)]
                .into_iter()
                .filter(|(_, time)| !time.is_zero())
                .collect(),
            credits: split.credits,
            below_resolution: split.below_resolution,
            no_row: split.no_row,
            engines,
            energy: self.meter.take(),
            quality: WindowQuality {
                samples: u32::try_from(samples.len()).unwrap_or(u32::MAX),
                torn: bracket.torn(),
                invalid_rows: std::mem::take(&mut self.invalid),
                cut: split.cut,
            },
            clocks: None,
        };
        self.cursor = Position {
            stamp_us: newest_us,
            boot: walk.end,
            at_sample: true,
        };
        Some(checked(window))
    }

    /// Whether the device samples itself on another beat than its processes, so that rows are to be
    /// asked for since the window's end, too.
    #[must_use]
    pub(super) const fn is_off_beat(&self) -> bool {
        self.off_beat > 0
    }

    /// The time between two samples of processes.
    pub(super) fn process_period(&self) -> Nanos {
        let own = self.is_off_beat().then(|| self.beat.period());
        own.flatten().unwrap_or_else(|| self.period())
    }

    /// Whether the driver may have sampled its processes between two moments, so that
    /// two answers need not be about the same samples.
    pub(super) fn is_torn_within(&self, from: Reading, to: Reading) -> bool {
        let (from_us, to_us) = (from.stamp_us(), to.stamp_us());
        self.is_off_beat() && self.beat.falls_within(from_us, to_us)
    }

    /// Whose a window's busy time is. `samples` are the device's, `valid` the rows since its beginning.
    fn divide(
        &mut self,
        bracket: &Bracket,
        samples: &[RawSample],
        valid: &[RawRow],
        walk: &Walk,
    ) -> Divided {
        let newest_us = samples.last().map_or(self.cursor.stamp_us, |it| it.at_us);
        if !bracket.torn() {
            self.listen(samples, valid);
        }
        if let Some(divided) = self.divide_off_beat(bracket, newest_us, valid, walk) {
            return divided;
        }
        let rows: Vec<(Pid, u32)> = valid
            .iter()
            .map(|row| (Pid(row.pid), row.percent))
            .collect();
        let values: Vec<u32> = samples.iter().map(|sample| sample.percent).collect();
        Divided {
            busy: walk.busy,
            split: split(walk.busy, walk.covered, &values, &rows),
            engines: engines(valid, walk.covered, 100, shown),
        }
    }

    /// Learns when processes are sampled, and whether that is when the device is: samples are asked for
    /// after rows, so that those of one ring have every row's time.
    fn listen(&mut self, samples: &[RawSample], rows: &[RawRow]) {
        self.beat.hear(rows.iter().map(|row| row.at_us));
        let is_sampled = |row: &RawRow| {
            let mut samples = samples.iter();
            samples.any(|sample| sample.at_us.abs_diff(row.at_us) <= JITTER_US)
        };
        self.off_beat = if rows.iter().all(is_sampled) {
            self.off_beat.saturating_sub(u8::from(!rows.is_empty()))
        } else {
            OFF_BEAT
        };
    }

    /// Likewise where rows are about other samples than the device's; none where nothing says so, or
    /// it cannot be told which they are about.
    fn divide_off_beat(
        &self,
        bracket: &Bracket,
        newest_us: u64,
        valid: &[RawRow],
        walk: &Walk,
    ) -> Option<Divided> {
        let (later, answered) = bracket.later.as_ref().filter(|_| !bracket.torn())?;
        let now_us = answered.stamp_us();
        let samples = Samples {
            all: self.beat.count(self.cursor.stamp_us, now_us)?,
            after: self.beat.count(newest_us, now_us)?,
        };
        let of_window = samples.of_window()?;
        let since_end = one_per_pid(later, &(newest_us.saturating_add(1)..=u64::MAX));
        let points = |row: &RawRow, of: &dyn Fn(&RawRow) -> u32| {
            samples.points(of(row), since_end.get(&row.pid).map_or(0, of))
        };
        let mut unsure = 0;
        let mut rows = Vec::with_capacity(valid.len());
        for row in valid {
            rows.push((Pid(row.pid), points(row, &|row| row.percent)));
            unsure += samples.all;
            if since_end.contains_key(&row.pid) {
                unsure += samples.after;
            }
        }
        let (busy, split) = beat::split(
            walk.busy,
            walk.hidden,
            walk.covered,
            of_window,
            &rows,
            unsure,
        );
        Some(Divided {
            busy,
            split,
            engines: engines(valid, walk.covered, of_window * 100, |row, engine| {
                points(row, &|row| engine(&row.engines))
            }),
        })
    }

    /// Closes a window for a device that has rows and no samples. `asked` is the clock before the
    /// rows were asked for, `clock` after.
    ///
    /// The window ends with the newest row, since nothing later is in the rows, and at `asked` where
    /// every row is older. Busy is what the rows say of that time; the rest is unobserved, not idle:
    /// without the device's samples nothing says how much the rows leave out.
    pub fn close_without_samples(
        &mut self,
        rows: &[RawRow],
        asked: Reading,
        clock: Reading,
    ) -> Option<GpuWindow> {
        if let Some(reason) = self.step(clock) {
            return self.unobserved(clock, reason);
        }
        let rows = self.valid_rows(rows, clock.stamp_us());
        let newest_us = rows.iter().map(|row| row.at_us).max().unwrap_or(0);
        let end_us = newest_us.max(asked.stamp_us());
        let start = self.cursor.boot;
        let end = clock.boot_of(end_us).clamp(start, clock.boot.max(start));
        let elapsed = end.since(start);
        if elapsed.is_zero() {
            return None;
        }
        let percents: Vec<u64> = rows.iter().map(|row| u64::from(row.percent)).collect();
        let claimed: u64 = percents.iter().sum();
        let busy = Nanos(scale(claimed.min(100), elapsed.0, 100));
        let credits = rows
            .iter()
            .zip(apportion(busy, &percents))
            .filter(|(_, busy)| !busy.is_zero())
            .map(|(row, busy)| Credit {
                pid: Pid(row.pid),
                busy,
            })
            .collect();
        let rest = elapsed.minus(busy);
        let window = GpuWindow {
            gpu: self.gpu.clone(),
            start,
            end,
            busy,
            idle: Nanos::ZERO,
            unobserved: Some((UnobservedReason::Unsupported, rest))
                .filter(|(_, time)| !time.is_zero())
                .into_iter()
                .collect(),
            credits,
            below_resolution: Nanos::ZERO,
            no_row: Nanos::ZERO,
            engines: engines(&rows, elapsed, 100, shown),
            energy: self.meter.take(),
            quality: WindowQuality {
                invalid_rows: std::mem::take(&mut self.invalid),
                cut: Nanos(scale(claimed.saturating_sub(100), elapsed.0, 100)),
                ..WindowQuality::default()
            },
            clocks: None,
        };
        self.cursor = Position {
            stamp_us: end_us,
            boot: end,
            at_sample: false,
        };
        Some(checked(window))
    }

    /// Closes a window for a device of which a part was measured as a whole: busy for `busy_ppm` of
    /// the time from `since` to `until`. Whose it was is not in the measure. What lies before it was
    /// not measured; a measure that reaches back into what is closed cannot be divided.
    pub fn close_measured(
        &mut self,
        since: BootTime,
        until: Reading,
        busy_ppm: u32,
    ) -> Option<GpuWindow> {
        // The measure is on the boot clock: a jump of another clock is noted, and costs nothing.
        let _ = self.step(until);
        let start = self.cursor.boot;
        let end = until.boot.max(start);
        if end == start {
            return None;
        }
        if since < start {
            return self.unobserved(until, UnobservedReason::SampleGap);
        }
        let since = since.min(end);
        let covered = end.since(since);
        let busy = Nanos(scale(
            covered.0,
            u64::from(busy_ppm.min(1_000_000)),
            1_000_000,
        ));
        self.cursor = Position {
            boot: end,
            ..Position::at(until)
        };
        Some(checked(GpuWindow {
            gpu: self.gpu.clone(),
            start,
            end,
            busy,
            idle: covered.minus(busy),
            unobserved: Some((UnobservedReason::SampleGap, since.since(start)))
                .filter(|(_, time)| !time.is_zero())
                .into_iter()
                .collect(),
            credits: Vec::new(),
            below_resolution: Nanos::ZERO,
            no_row: busy,
            engines: Vec::new(),
            energy: self.meter.take(),
            quality: WindowQuality::default(),
            clocks: None,
        }))
    }

    /// Closes everything up to now as unobserved. None if no time has passed.
    pub fn fail(&mut self, clock: Reading, reason: UnobservedReason) -> Option<GpuWindow> {
        let reason = self.step(clock).unwrap_or(reason);
        self.unobserved(clock, reason)
    }

    /// Notices a jump of the stamps' clock since the last call.
    fn step(&mut self, clock: Reading) -> Option<UnobservedReason> {
        self.tried = clock.boot;
        let before = std::mem::replace(&mut self.distance, clock.ahead);
        let moved = self.distance - before;
        if moved.unsigned_abs() <= u128::from(CLOCK_STEP.0) {
            return None;
        }
        self.ahead |= moved < 0;
        self.beat.forget();
        Some(UnobservedReason::ClockStep)
    }

    fn unobserved(&mut self, clock: Reading, reason: UnobservedReason) -> Option<GpuWindow> {
        let start = self.cursor.boot;
        let end = clock.boot.max(start);
        self.cursor = Position {
            boot: end,
            ..Position::at(clock)
        };
        if end == start {
            return None;
        }
        if self.meter.reading.is_none() {
            self.meter.baseline = None;
        }
        Some(checked(GpuWindow {
            gpu: self.gpu.clone(),
            start,
            end,
            busy: Nanos::ZERO,
            idle: Nanos::ZERO,
            unobserved: vec![(reason, end.since(start))],
            credits: Vec::new(),
            below_resolution: Nanos::ZERO,
            no_row: Nanos::ZERO,
            engines: Vec::new(),
            energy: self.meter.take(),
            quality: WindowQuality {
                invalid_rows: std::mem::take(&mut self.invalid),
                ..WindowQuality::default()
            },
            clocks: None,
        }))
    }

    /// The samples that can be used: in time order, one per timestamp, newer than the cursor, not
    /// from the future, at most 100 percent. What is left out is counted; its time shows as a gap.
    fn valid_samples(&mut self, raw: &[RawSample], latest_us: u64) -> Vec<RawSample> {
        let newer = self.cursor.stamp_us.saturating_add(1)..=latest_us;
        let mut samples: Vec<RawSample> = raw
            .iter()
            .copied()
            .filter(|sample| newer.contains(&sample.at_us) && sample.percent <= 100)
            .collect();
        samples.sort_by_key(|sample| sample.at_us);
        samples.dedup_by_key(|sample| sample.at_us);
        self.count_invalid(raw.len() - samples.len());
        samples
    }

    /// The rows that can be used, one per pid.
    ///
    /// A row's time must be newer than the cursor and at most one and a half periods after `end_us`:
    /// it is never later than the device's newest sample where both come from one ring, and never
    /// later than its period allows where a device samples its processes on another beat. The
    /// device's own busy time bounds what such a row can bill.
    ///
    /// A pid has one row. Of several the one with the newest time is kept, of equally new ones the
    /// largest; the others are counted as invalid: adding them up would bill a repeated row twice.
    fn valid_rows(&mut self, raw: &[RawRow], end_us: u64) -> Vec<RawRow> {
        let tolerance_us = tolerance(self.period()).0 / 1000;
        let newer = self.cursor.stamp_us.saturating_add(1)..=end_us.saturating_add(tolerance_us);
        let mut kept = one_per_pid(raw, &newer);
        let torn_engines = kept
            .values_mut()
            .map(|row| usize::from(row.engines.drop_impossible()))
            .sum::<usize>();
        self.count_invalid(raw.len() - kept.len() + torn_engines);
        kept.into_values().collect()
    }

    fn count_invalid(&mut self, count: usize) {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        self.invalid = self.invalid.saturating_add(count);
    }

    /// Lays the samples out on the boot clock.
    fn walk(&self, samples: &[RawSample], clock: Reading) -> Walk {
        let period = self.period();
        let mut walk = Walk {
            end: self.cursor.boot,
            covered: Nanos::ZERO,
            busy: Nanos::ZERO,
            hidden: Nanos::ZERO,
            late: Nanos::ZERO,
            gaps: Nanos::ZERO,
        };
        let (mut percent_nanos, mut floored): (u128, Nanos) = (0, Nanos::ZERO);
        for (index, sample) in samples.iter().enumerate() {
            let at = clock
                .boot_of(sample.at_us)
                .clamp(walk.end, clock.boot.max(walk.end));
            let gap = at.since(walk.end);
            // Of the first, the stamps tell whether one is missing, also where the clock was refined.
            let is_next = index == 0
                && self.cursor.at_sample
                && sample.at_us - self.cursor.stamp_us <= tolerance(period).0 / 1000;
            let stretch = if gap <= tolerance(period) || is_next {
                gap
            } else {
                period
            };
            let missing = if index == 0 {
                &mut walk.late
            } else {
                &mut walk.gaps
            };
            *missing += gap.minus(stretch);
            walk.covered += stretch;
            percent_nanos += u128::from(stretch.0) * u128::from(sample.percent);
            if sample.percent < 100 {
                floored += stretch;
            }
            walk.end = at;
        }
        walk.busy = Nanos(u64::try_from(percent_nanos / 100).unwrap_or(u64::MAX));
        walk.hidden = Nanos(floored.0 / 100);
        walk
    }

    /// For how long the driver keeps a sample, at least.
    fn ring_span(&self) -> Nanos {
        let samples = self.ring.max(SMALLEST_RING) as u64;
        Nanos(self.period().0.saturating_mul(samples))
    }

    /// The time between two samples: the median of what was seen.
    pub(super) fn period(&self) -> Nanos {
        let mut spacings: Vec<u64> = self.spacings.iter().copied().collect();
        spacings.sort_unstable();
        spacings
            .get(spacings.len() / 2)
            .map_or(ASSUMED_PERIOD, |&spacing| Nanos(spacing))
    }

    fn note_spacing(&mut self, spacing_us: u64) {
        let spacing = spacing_us.saturating_mul(1000);
        if PERIODS.contains(&spacing) {
            if self.spacings.len() == SPACINGS {
                self.spacings.pop_front();
            }
            self.spacings.push_back(spacing);
        }
    }
}

/// The rows of those times that can be somebody's, one per pid: the newest, of equally new ones the
/// largest.
fn one_per_pid(rows: &[RawRow], times: &RangeInclusive<u64>) -> BTreeMap<u32, RawRow> {
    let mut kept = BTreeMap::<u32, RawRow>::new();
    for row in rows {
        if row.is_possible() && times.contains(&row.at_us) {
            let best = kept.entry(row.pid).or_insert(*row);
            *best = (*best).max(*row);
        }
    }
    kept
}

/// The longest spacing that still counts whole.
const fn tolerance(period: Nanos) -> Nanos {
    Nanos(period.0 + period.0 / 2)
}

/// An engine: its percent in a row, and its place in what a process used.
type Engine = (fn(&EnginePercents) -> u32, fn(&mut Engines) -> &mut Nanos);

/// Every engine beside the multiprocessors.
const ENGINES: [Engine; 5] = [
    (|row| row.memory, |engines| &mut engines.memory),
    (|row| row.encoder, |engines| &mut engines.encoder),
    (|row| row.decoder, |engines| &mut engines.decoder),
    (|row| row.jpeg, |engines| &mut engines.jpeg),
    (|row| row.ofa, |engines| &mut engines.ofa),
];

impl EnginePercents {
    /// Takes figures that cannot be percents for none. Whether there were any.
    fn drop_impossible(&mut self) -> bool {
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

/// A row's percent of an engine.
fn shown(row: &RawRow, engine: fn(&EnginePercents) -> u32) -> u64 {
    u64::from(engine(&row.engines))
}

/// The engines' busy time by pid: each row's part of `covered`, of `whole` parts, and no more than that
/// in all on any engine.
fn engines(
    rows: &[RawRow],
    covered: Nanos,
    whole: u64,
    part: impl Fn(&RawRow, fn(&EnginePercents) -> u32) -> u64,
) -> Vec<EngineUse> {
    let mut used: Vec<EngineUse> = rows
        .iter()
        .map(|row| EngineUse {
            pid: Pid(row.pid),
            engines: Engines::default(),
        })
        .collect();
    for (engine, place) in ENGINES {
        let parts: Vec<u64> = rows.iter().map(|row| part(row, engine)).collect();
        let sum: u64 = parts.iter().sum();
        let shares = apportion(Nanos(scale(covered.0, sum.min(whole), whole)), &parts);
        for (used, share) in used.iter_mut().zip(shares) {
            *place(&mut used.engines) = share;
        }
    }
    used.retain(|used| !used.engines.is_zero());
    used
}

/// The two balances that every window keeps.
fn checked(window: GpuWindow) -> GpuWindow {
    debug_assert_eq!(
        window.end.since(window.start),
        window
            .busy
            .plus(window.idle)
            .plus(window.unobserved.iter().map(|&(_, time)| time).sum()),
        "elapsed = busy + idle + unobserved: {window:?}"
    );
    debug_assert_eq!(
        window.busy,
        window
            .credits
            .iter()
            .map(|credit| credit.busy)
            .sum::<Nanos>()
            .plus(window.below_resolution)
            .plus(window.no_row),
        "busy = credits + below resolution + no row: {window:?}"
    );
    window
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::core::model::WallTime;

    /// The wall clock's lead over the boot clock in these tests.
    const EPOCH_MS: u64 = 1_700_000_000_000;

    fn gpu() -> GpuUuid {
        "GPU-test".into()
    }

    /// Both clocks at a boot time.
    fn at(boot_ms: u64) -> Reading {
        stepped(boot_ms, 0)
    }

    /// Both clocks at a boot time, the wall clock set ahead or back.
    fn stepped(boot_ms: u64, step_ms: i64) -> Reading {
        let wall_ms = (EPOCH_MS + boot_ms).saturating_add_signed(step_ms);
        Reading::from(Clock {
            boot: BootTime(boot_ms * 1_000_000),
            wall: WallTime(wall_ms * 1_000_000),
        })
    }

    /// Both clocks at a boot time, as a cursor has them.
    fn clock_at(boot_ms: u64) -> Clock {
        Clock {
            boot: BootTime(boot_ms * 1_000_000),
            wall: WallTime((EPOCH_MS + boot_ms) * 1_000_000),
        }
    }

    fn samples(list: &[(u64, u32)]) -> Vec<RawSample> {
        list.iter()
            .map(|&(boot_ms, percent)| RawSample {
                at_us: (EPOCH_MS + boot_ms) * 1000,
                percent,
            })
            .collect()
    }

    fn rows(list: &[(u32, u64, u32)]) -> Vec<RawRow> {
        list.iter()
            .map(|&(pid, boot_ms, percent)| RawRow {
                pid,
                at_us: (EPOCH_MS + boot_ms) * 1000,
                percent,
                ..RawRow::default()
            })
            .collect()
    }

    fn bracket(now: Reading, list: &[(u64, u32)], rows_of: &[(u32, u64, u32)]) -> Bracket {
        Bracket {
            before: samples(list),
            rows: rows(rows_of),
            later: None,
            after: samples(list),
            // As if somebody had asked all the time.
            asked: BootTime(0),
            clock: now,
            is_clock_doubted: false,
        }
    }

    /// A device that samples every 200 ms, its ring of 72 known, its cursor at 10 s.
    fn every_200_ms() -> Windows {
        let mut windows = Windows::new(gpu(), at(10_000));
        let ring: Vec<(u64, u32)> = (0..72).map(|index| (1_000 + index * 100, 0)).collect();
        // Two halves of one ring: 100 ms apart, then 200 ms apart; the newer 64 spacings count.
        windows.learn(&samples(&ring[..2]));
        let ring: Vec<(u64, u32)> = (0..72).map(|index| (index * 200, 0)).collect();
        windows.learn(&samples(&ring));
        windows
    }

    /// A window in milliseconds, as the tables below write it.
    #[derive(Debug, Default, PartialEq, Eq)]
    struct Seen {
        span: (u64, u64),
        busy: u64,
        idle: u64,
        unobserved: Vec<(&'static str, u64)>,
        credits: Vec<(u32, u64)>,
        below: u64,
        no_row: u64,
        invalid: u32,
        cut: u64,
    }

    fn seen(window: &GpuWindow) -> Seen {
        let ms = |time: Nanos| time.0 / 1_000_000;
        Seen {
            span: (window.start.0 / 1_000_000, window.end.0 / 1_000_000),
            busy: ms(window.busy),
            idle: ms(window.idle),
            unobserved: window
                .unobserved
                .iter()
                .map(|&(reason, time)| (reason.as_str(), ms(time)))
                .collect(),
            credits: window
                .credits
                .iter()
                .map(|c| (c.pid.0, ms(c.busy)))
                .collect(),
            below: ms(window.below_resolution),
            no_row: ms(window.no_row),
            invalid: window.quality.invalid_rows,
            cut: ms(window.quality.cut),
        }
    }

    #[test]
    fn an_agent_goes_on_where_the_one_before_it_stopped() {
        /// What, the cursor, when this agent began, now, a step of the wall clock, the ring, what
        /// is lost, where the next window begins.
        type Case<'a> = (
            &'a str,
            u64,
            u64,
            u64,
            i64,
            &'a [(u64, u32)],
            &'a [(&'static str, u64)],
            u64,
        );
        let every_200_ms = |from: u64, to: u64| -> Vec<(u64, u32)> {
            (from / 200..=to / 200).map(|at| (at * 200, 50)).collect()
        };
        let ring = every_200_ms(10_000, 20_000);
        let cases: &[Case<'_>] = &[
            (
                "a quick restart",
                15_000,
                19_500,
                20_100,
                0,
                &ring,
                &[],
                15_000,
            ),
            (
                "older than the ring",
                1_000,
                19_500,
                20_100,
                0,
                &ring,
                &[("agent_down", 8_800)],
                9_800,
            ),
            (
                "the driver came late",
                1_000,
                5_000,
                20_100,
                0,
                &ring,
                &[("agent_down", 4_000), ("driver_error", 4_800)],
                9_800,
            ),
            (
                "a ring that cannot be read",
                15_000,
                19_500,
                20_100,
                0,
                &[],
                &[],
                15_000,
            ),
            (
                "nothing in the ring for long",
                1_000,
                19_500,
                20_100,
                0,
                &[],
                &[("agent_down", 18_500), ("driver_error", 600)],
                20_100,
            ),
            (
                "a step is left to the first window",
                15_000,
                19_500,
                20_100,
                60_000,
                &ring,
                &[],
                15_000,
            ),
        ];
        for (what, end, began, now, step, ring, lost, start) in cases {
            let cursor = Cursor {
                gpu: gpu(),
                end: BootTime(end * 1_000_000),
                then: clock_at(*end),
                began: BootTime(began * 1_000_000),
            };
            let (windows, window) = Windows::resumed(
                &cursor,
                cursor.then.into(),
                &samples(ring),
                stepped(*now, *step),
            );
            let found = window.map(|window| seen(&window).unobserved);
            assert_eq!(found.unwrap_or_default(), *lost, "{what}");
            assert_eq!(windows.end(), BootTime(start * 1_000_000), "{what}");
        }
    }

    #[test]
    fn what_has_no_ring_is_not_observed_while_no_agent_runs() {
        let cursor = Cursor {
            gpu: gpu(),
            end: at(15_000).boot,
            then: clock_at(15_003),
            began: at(16_000).boot,
        };
        let (windows, lost) = Windows::resumed_without_ring(&cursor, at(16_100));
        let lost = lost.as_ref().map(seen).expect("a second is lost");
        assert_eq!(lost.span, (15_000, 16_100));
        assert_eq!(
            lost.unobserved,
            [("agent_down", 1_000), ("driver_error", 100)]
        );
        assert_eq!(windows.end(), at(16_100).boot);
    }

    #[test]
    fn a_sample_that_is_billed_is_not_billed_again_by_the_next_agent() {
        let cursor = Cursor {
            gpu: gpu(),
            end: at(15_000).boot,
            then: clock_at(15_003),
            began: at(16_000).boot,
        };
        let ring: Vec<(u64, u32)> = (50..=80).map(|at| (at * 200, 100)).collect();
        let (mut windows, _) =
            Windows::resumed(&cursor, cursor.then.into(), &samples(&ring), at(16_100));
        let newer: Vec<(u64, u32)> = ring
            .into_iter()
            .filter(|(boot, _)| (EPOCH_MS + boot) * 1000 > windows.cursor_us())
            .collect();
        assert_eq!(newer[0].0, 15_200);
        let window = windows.close(&bracket(at(16_100), &newer, &[(7, 16_000, 100)]));
        let window = window.as_ref().map(seen).expect("there are samples");
        assert_eq!(window.span, (15_000, 16_000));
        assert_eq!(window.credits, [(7, 1_000)]);
    }

    #[test]
    fn answers_become_windows() {
        /// What, the clock, samples, rows, the window.
        type Case<'a> = (
            &'a str,
            u64,
            &'a [(u64, u32)],
            &'a [(u32, u64, u32)],
            Option<Seen>,
        );
        let five = [
            (10_200, 100),
            (10_400, 0),
            (10_600, 100),
            (10_800, 0),
            (11_000, 0),
        ];
        let cases: &[Case<'_>] = &[
            ("no sample yet", 10_900, &[], &[(7, 10_500, 50)], None),
            (
                "one owner",
                11_010,
                &five,
                &[(7, 10_600, 40)],
                Some(Seen {
                    span: (10_000, 11_000),
                    busy: 400,
                    idle: 600,
                    credits: vec![(7, 400)],
                    ..Seen::default()
                }),
            ),
            (
                "two owners",
                11_010,
                &five,
                &[(7, 10_600, 20), (8, 10_200, 20)],
                Some(Seen {
                    span: (10_000, 11_000),
                    busy: 400,
                    idle: 600,
                    credits: vec![(7, 200), (8, 200)],
                    ..Seen::default()
                }),
            ),
            (
                "nobody",
                11_010,
                &five,
                &[],
                Some(Seen {
                    span: (10_000, 11_000),
                    busy: 400,
                    idle: 600,
                    no_row: 400,
                    ..Seen::default()
                }),
            ),
            (
                "samples out of order and twice",
                10_450,
                &[(10_400, 0), (10_200, 100), (10_400, 0)],
                &[(7, 10_200, 50)],
                Some(Seen {
                    span: (10_000, 10_400),
                    busy: 200,
                    idle: 200,
                    credits: vec![(7, 200)],
                    invalid: 1,
                    ..Seen::default()
                }),
            ),
            (
                "jitter of half a period counts whole",
                10_600,
                &[(10_300, 100), (10_400, 0)],
                &[(7, 10_300, 50)],
                Some(Seen {
                    span: (10_000, 10_400),
                    busy: 300,
                    idle: 100,
                    credits: vec![(7, 300)],
                    ..Seen::default()
                }),
            ),
            (
                "a pause is not idle",
                11_500,
                &[(10_200, 100), (11_200, 100)],
                &[(7, 11_200, 100)],
                Some(Seen {
                    span: (10_000, 11_200),
                    busy: 400,
                    unobserved: vec![("sample_gap", 800)],
                    credits: vec![(7, 400)],
                    ..Seen::default()
                }),
            ),
            (
                "a late first sample stands for one period",
                11_500,
                &[(11_000, 50)],
                &[(7, 11_000, 50)],
                Some(Seen {
                    span: (10_000, 11_000),
                    busy: 100,
                    idle: 100,
                    unobserved: vec![("sample_gap", 800)],
                    credits: vec![(7, 100)],
                    ..Seen::default()
                }),
            ),
            (
                "junk samples",
                10_450,
                &[(10_200, 100), (10_400, 101), (9_000, 100), (10_700, 100)],
                &[(7, 10_200, 100)],
                Some(Seen {
                    span: (10_000, 10_200),
                    busy: 200,
                    credits: vec![(7, 200)],
                    invalid: 3,
                    ..Seen::default()
                }),
            ),
            (
                "junk rows",
                10_450,
                &[(10_200, 100), (10_400, 100)],
                &[
                    (0, 10_400, 100),
                    (u32::MAX, 10_400, 100),
                    (7, 10_400, 101),
                    (7, 10_000, 50),
                    (8, 10_800, 50),
                    (9, 10_400, 50),
                ],
                Some(Seen {
                    span: (10_000, 10_400),
                    busy: 400,
                    credits: vec![(9, 200)],
                    no_row: 200,
                    invalid: 5,
                    ..Seen::default()
                }),
            ),
            (
                "of a pid's rows the newest, then the largest",
                10_450,
                &[(10_200, 100), (10_400, 100)],
                &[(7, 10_200, 100), (7, 10_400, 40), (7, 10_400, 50)],
                Some(Seen {
                    span: (10_000, 10_400),
                    busy: 400,
                    credits: vec![(7, 200)],
                    no_row: 200,
                    invalid: 2,
                    ..Seen::default()
                }),
            ),
            (
                "a device on another beat than its processes",
                10_480,
                &[(10_200, 100), (10_400, 100)],
                &[(7, 10_450, 100)],
                Some(Seen {
                    span: (10_000, 10_400),
                    busy: 400,
                    credits: vec![(7, 400)],
                    ..Seen::default()
                }),
            ),
            (
                "rows beyond the device are cut",
                10_450,
                &[(10_200, 50), (10_400, 50)],
                &[(7, 10_400, 75), (8, 10_400, 25)],
                Some(Seen {
                    span: (10_000, 10_400),
                    busy: 200,
                    idle: 200,
                    credits: vec![(7, 150), (8, 50)],
                    cut: 200,
                    ..Seen::default()
                }),
            ),
            (
                "rows of an idle device",
                10_450,
                &[(10_200, 0), (10_400, 0)],
                &[(7, 10_400, 1)],
                Some(Seen {
                    span: (10_000, 10_400),
                    idle: 400,
                    cut: 4,
                    ..Seen::default()
                }),
            ),
            ("five seconds are waited for", 15_000, &[], &[], None),
            (
                "after five seconds nobody knows",
                15_001,
                &[],
                &[(7, 14_000, 50)],
                Some(Seen {
                    span: (10_000, 15_001),
                    unobserved: vec![("sample_gap", 5_001)],
                    ..Seen::default()
                }),
            ),
        ];
        for (what, now, list, rows_of, expected) in cases {
            let mut windows = every_200_ms();
            let window = windows.close(&bracket(at(*now), list, rows_of));
            assert_eq!(
                window.as_ref().map(seen).as_ref(),
                expected.as_ref(),
                "{what}"
            );
            let end = expected.as_ref().map_or(10_000, |seen| seen.span.1);
            assert_eq!(windows.end(), at(end).boot, "{what}");
            assert_eq!(windows.cursor_us(), (EPOCH_MS + end) * 1000, "{what}");
        }
    }

    #[test]
    fn a_full_ring_whose_oldest_sample_is_late_was_overrun() {
        let ring = |from: u64, length: u64| -> Vec<(u64, u32)> {
            (0..length).map(|index| (from + index * 200, 0)).collect()
        };
        for (what, length, reason) in [
            ("full", 72, "ring_overrun"),
            ("longer than any before", 80, "ring_overrun"),
            ("not full: the driver paused", 71, "sample_gap"),
        ] {
            let mut windows = every_200_ms();
            let list = ring(30_000, length);
            let end = 30_000 + (length - 1) * 200;
            let window = windows
                .close(&bracket(at(end), &list, &[]))
                .map(|w| seen(&w));
            let expected = Seen {
                span: (10_000, end),
                idle: length * 200,
                unobserved: vec![(reason, 19_800)],
                ..Seen::default()
            };
            assert_eq!(window, Some(expected), "{what}");
        }
    }

    #[test]
    fn in_a_full_ring_only_what_lies_before_it_was_overrun() {
        let mut windows = every_200_ms();
        let early = (0..36).map(|index| (30_000 + index * 200, 0));
        let late = (0..36).map(|index| (40_000 + index * 200, 0));
        let list: Vec<(u64, u32)> = early.chain(late).collect();
        let window = windows.close(&bracket(at(47_000), &list, &[]));
        assert_eq!(
            seen(&window.expect("closed")).unobserved,
            [("sample_gap", 2_800), ("ring_overrun", 19_800)]
        );
    }

    #[test]
    fn a_product_that_samples_once_a_second_is_learnt() {
        let mut windows = Windows::new(gpu(), at(10_000));
        let first = windows.close(&bracket(at(10_600), &[(10_500, 100)], &[]));
        // Nothing is known yet: the shortest period is assumed, the rest is not guessed at.
        let first = seen(&first.expect("a sample closes a window"));
        assert_eq!(
            (first.busy, first.unobserved),
            (166, vec![("sample_gap", 333)])
        );
        let second = windows.close(&bracket(at(11_600), &[(11_500, 100)], &[]));
        let second = seen(&second.expect("a sample closes a window"));
        assert_eq!((second.busy, second.unobserved), (1_000, vec![]));
    }

    #[test]
    fn pauses_do_not_stretch_the_period() {
        let mut windows = every_200_ms();
        for pause in 1..100_u64 {
            let now = 10_000 + pause * 2_000;
            let window = windows.close(&bracket(at(now), &[(now, 100)], &[]));
            assert_eq!(
                seen(&window.expect("a sample closes a window")).busy,
                200,
                "{pause}"
            );
        }
    }

    #[test]
    fn a_jump_of_the_wall_clock_is_not_observed_and_moves_the_cursor() {
        for (what, step_ms) in [
            ("ahead", 3_600_000),
            ("back", -3_600_000),
            ("a little", 101),
        ] {
            let mut windows = every_200_ms();
            let now = stepped(11_000, step_ms);
            let window = windows.close(&bracket(now, &[(10_200, 100)], &[(7, 10_200, 100)]));
            let expected = Seen {
                span: (10_000, 11_000),
                unobserved: vec![("clock_step", 1_000)],
                ..Seen::default()
            };
            assert_eq!(window.as_ref().map(seen), Some(expected), "{what}");
            assert_eq!(windows.cursor_us(), now.stamp_us(), "{what}");
        }
    }

    #[test]
    fn slewing_is_no_jump() {
        for step_ms in [-100, 100] {
            let mut windows = every_200_ms();
            let window = windows.close(&bracket(stepped(10_700, step_ms), &[(10_400, 0)], &[]));
            let window = window.expect("a sample closes a window");
            assert!(
                window
                    .unobserved
                    .iter()
                    .all(|(reason, _)| *reason == UnobservedReason::SampleGap)
            );
            assert_eq!(
                window.end,
                at(10_400_u64.saturating_add_signed(-step_ms)).boot
            );
        }
    }

    #[test]
    fn after_a_step_back_the_ring_must_first_lose_what_lies_ahead() {
        let mut windows = every_200_ms();
        let back = -10_000;
        let stale = (10_800, 100);
        assert!(
            windows
                .close(&bracket(stepped(11_000, back), &[stale], &[]))
                .is_some()
        );
        // New samples carry the new time; the means are still over the old ones too.
        let fresh = (1_800, 0);
        let mixed = windows.close(&bracket(
            stepped(12_000, back),
            &[stale, fresh],
            &[(7, 1_800, 50)],
        ));
        assert_eq!(
            seen(&mixed.expect("closed")).unobserved,
            [("clock_step", 1_000)]
        );
        let fresh = [(2_200, 0), (2_400, 100)];
        let clean = windows.close(&bracket(stepped(12_400, back), &fresh, &[(7, 2_400, 50)]));
        assert_eq!(
            clean.as_ref().map(seen),
            Some(Seen {
                span: (12_000, 12_400),
                busy: 200,
                idle: 200,
                credits: vec![(7, 200)],
                ..Seen::default()
            })
        );
    }

    #[test]
    fn failures_are_closed_with_their_reason() {
        for reason in UnobservedReason::ALL {
            let mut windows = every_200_ms();
            let window = windows.fail(at(11_000), reason).map(|window| seen(&window));
            let unobserved = vec![(reason.as_str(), 1_000)];
            assert_eq!(
                window,
                Some(Seen {
                    span: (10_000, 11_000),
                    unobserved,
                    ..Seen::default()
                })
            );
            assert_eq!(windows.fail(at(11_000), reason), None, "no time has passed");
            // What the ring still has of the failed time is not billed.
            assert_eq!(
                windows.close(&bracket(at(11_100), &[(10_800, 100)], &[])),
                None
            );
        }
    }

    #[test]
    fn without_samples_the_rows_are_all_there_is() {
        let mut windows = every_200_ms();
        let mut close = |now, rows_of: &[(u32, u64, u32)]| {
            let window = windows.close_without_samples(&rows(rows_of), at(now), at(now + 50));
            seen(&window.expect("closed"))
        };
        assert_eq!(
            close(11_000, &[(7, 10_900, 30), (8, 10_800, 20)]),
            Seen {
                span: (10_000, 11_000),
                busy: 500,
                unobserved: vec![("unsupported", 500)],
                credits: vec![(7, 300), (8, 200)],
                ..Seen::default()
            }
        );
        // A sample that landed after the question was in the answer: the window ends with it.
        assert_eq!(
            close(12_000, &[(7, 12_040, 75), (8, 11_900, 75)]),
            Seen {
                span: (11_000, 12_040),
                busy: 1_040,
                credits: vec![(7, 520), (8, 520)],
                cut: 520,
                ..Seen::default()
            }
        );
        assert_eq!(
            close(13_000, &[]),
            Seen {
                span: (12_040, 13_000),
                unobserved: vec![("unsupported", 960)],
                ..Seen::default()
            }
        );
    }

    #[test]
    fn a_torn_window_is_taken_and_marked() {
        let mut windows = every_200_ms();
        let torn = Bracket {
            before: samples(&[(10_200, 100)]),
            rows: rows(&[(7, 10_200, 100)]),
            after: samples(&[(10_200, 100), (10_400, 100)]),
            asked: BootTime(0),
            clock: at(10_400),
            ..Bracket::default()
        };
        assert!(torn.torn());
        let window = windows.close(&torn).expect("closed");
        assert!(window.quality.torn);
        assert_eq!(window.quality.samples, 2);
        assert_eq!(seen(&window).credits, [(7, 400)]);
    }

    #[test]
    fn what_is_junk_is_counted_also_when_no_window_closes() {
        let mut windows = every_200_ms();
        assert_eq!(
            windows.close(&bracket(at(10_100), &[(9_000, 1)], &[])),
            None
        );
        let window = windows.close(&bracket(at(10_200), &[(10_200, 0)], &[]));
        assert_eq!(window.expect("closed").quality.invalid_rows, 1);
    }

    /// A driver with a ring of 72 samples, one each 1/6 s, each credited whole to one pid or nobody.
    struct Driver {
        /// Time in microseconds of the wall clock, percent, pid.
        ring: VecDeque<(u64, u32, u32)>,
        /// Percent-microseconds by pid, 0 being nobody, of every sample that a window can have.
        truth: BTreeMap<u32, u64>,
        random: u64,
        /// Whether samples that are credited to nobody can be busy.
        nobody_is_busy: bool,
        /// Whether every sample is all or nothing.
        is_whole: bool,
    }

    impl Driver {
        const PERIOD_US: u64 = 166_667;

        /// xorshift64: the same run every time.
        fn draw(&mut self, below: u64) -> u64 {
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            self.random % below
        }

        fn sample(&mut self, at_us: u64) {
            let pid = u32::try_from(self.draw(5)).unwrap();
            let percent = match self.draw(4) {
                _ if pid == 0 && !self.nobody_is_busy => 0,
                0 => 0,
                _ if self.is_whole => 100,
                1 => 100,
                _ => u32::try_from(self.draw(101)).unwrap(),
            };
            *self.truth.entry(pid).or_default() += u64::from(percent) * Self::PERIOD_US;
            if self.ring.len() == 72 {
                self.ring.pop_front();
            }
            self.ring.push_back((at_us, percent, pid));
        }

        fn samples(&self, after_us: u64) -> Vec<RawSample> {
            self.ring
                .iter()
                .filter(|sample| sample.0 > after_us)
                .map(|&(at_us, percent, _)| RawSample { at_us, percent })
                .collect()
        }

        fn rows(&self, after_us: u64) -> Vec<RawRow> {
            let newer: Vec<_> = self
                .ring
                .iter()
                .filter(|sample| sample.0 > after_us)
                .collect();
            let mut sums = BTreeMap::<u32, (u64, u32)>::new();
            for &&(at_us, percent, pid) in newer.iter().filter(|s| s.2 != 0 && s.1 != 0) {
                let sum = sums.entry(pid).or_default();
                *sum = (at_us, sum.1 + percent);
            }
            let samples = u32::try_from(newer.len()).unwrap();
            sums.into_iter()
                .map(|(pid, (at_us, sum))| RawRow {
                    pid,
                    at_us,
                    percent: sum / samples,
                    ..RawRow::default()
                })
                .collect()
        }
    }

    #[test]
    fn who_does_not_ask_for_longer_than_the_ring_reaches_back_was_paused() {
        let full: Vec<(u64, u32)> = (0..72).map(|index| (45_800 + index * 200, 0)).collect();
        let few = [(59_800, 100), (60_000, 0)];
        for (what, list, asked_ms, expected) in [
            ("stopped", &full[..], 60_100, ("agent_paused", 35_600)),
            (
                "suspended, with the driver",
                &few,
                60_100,
                ("agent_paused", 49_600),
            ),
            ("nothing since", &[], 60_100, ("agent_paused", 50_100)),
            // The ring holds 72 samples of 200 ms each.
            (
                "stuck in a call",
                &full[..],
                24_300,
                ("ring_overrun", 35_600),
            ),
            ("the driver paused", &few, 24_300, ("sample_gap", 49_600)),
        ] {
            let mut windows = every_200_ms();
            let mut bracket = bracket(at(60_100), list, &[]);
            bracket.asked = at(asked_ms).boot;
            let window = windows.close(&bracket).expect(what);
            assert_eq!(seen(&window).unobserved, [expected], "{what}");
        }
        // Whoever tried in between was not paused, whatever came of it.
        let mut windows = every_200_ms();
        for now in [22_000, 34_000, 46_000] {
            windows.fail(at(now), UnobservedReason::DriverError);
        }
        let mut bracket = bracket(at(60_100), &few, &[]);
        bracket.asked = at(60_099).boot;
        let window = windows.close(&bracket).unwrap();
        assert_eq!(seen(&window).unobserved, [("sample_gap", 13_600)]);
    }

    #[test]
    fn what_is_sampled_while_a_pause_is_being_closed_is_in_the_next_window() {
        let mut windows = every_200_ms();
        // Asked at 16 s, when the driver still paused, and answered 700 ms later.
        let mut answer = bracket(at(16_700), &[], &[]);
        answer.asked = at(16_000).boot;
        let gap = windows.close(&answer).expect("the pause is long");
        assert_eq!(seen(&gap).span, (10_000, 16_000));
        let list = [(16_200, 100), (16_400, 100), (16_600, 0), (16_800, 0)];
        let next = windows.close(&bracket(at(16_900), &list, &[(7, 16_400, 50)]));
        let next = next.expect("there are samples");
        assert_eq!(seen(&next).credits, [(7, 400)]);
    }

    #[test]
    fn what_was_measured_as_a_whole_is_nobody_s_row() {
        let mut windows = Windows::new(gpu(), at(10_000));
        // From 10.1 s on, half of the time.
        let first = windows.close_measured(at(10_100).boot, at(11_100), 500_000);
        let expected = Seen {
            span: (10_000, 11_100),
            busy: 500,
            idle: 500,
            unobserved: vec![("sample_gap", 100)],
            no_row: 500,
            ..Seen::default()
        };
        assert_eq!(first.as_ref().map(seen), Some(expected));
        // The wall clock was set back; what was measured is what was measured.
        let second = windows.close_measured(at(11_100).boot, stepped(12_100, -5_000), 1_000_000);
        assert_eq!(second.map(|window| window.busy), Some(Nanos::SECOND));
        assert_eq!(windows.close_measured(at(11_100).boot, at(12_100), 0), None);
        // Which part of a measure fell into a time that is closed cannot be told.
        windows.fail(at(13_100), UnobservedReason::DriverError);
        let third = windows
            .close_measured(at(12_100).boot, at(14_100), 250_000)
            .unwrap();
        assert_eq!(seen(&third).unobserved, [("sample_gap", 1_000)]);
    }

    #[test]
    fn engines_are_percents_of_the_covered_time_and_never_more_than_it() {
        let engines = |memory, encoder, jpeg| EnginePercents {
            memory,
            encoder,
            jpeg,
            ..EnginePercents::default()
        };
        /// Rows of (pid, percent, engines); use of (pid, memory, encoder, jpeg) in ms; invalid.
        type Case<'a> = (
            &'a str,
            &'a [(u32, u32, EnginePercents)],
            &'a [(u32, u64, u64, u64)],
            u32,
        );
        let cases: &[Case<'_>] = &[
            (
                "its own",
                &[(7, 50, engines(30, 10, 5))],
                &[(7, 300, 100, 50)],
                0,
            ),
            (
                "another pid's memory",
                &[(7, 50, engines(0, 0, 0)), (8, 0, engines(40, 0, 0))],
                &[(8, 400, 0, 0)],
                0,
            ),
            (
                "more than there is",
                &[(7, 50, engines(90, 0, 0)), (8, 0, engines(30, 0, 0))],
                &[(7, 750, 0, 0), (8, 250, 0, 0)],
                0,
            ),
            (
                "no percent at all",
                &[(7, 50, engines(101, 20, u32::MAX))],
                &[(7, 0, 200, 0)],
                1,
            ),
        ];
        for (what, rows_of, expected, invalid) in cases {
            let mut windows = every_200_ms();
            let list = [
                (10_200, 100),
                (10_400, 0),
                (10_600, 100),
                (10_800, 0),
                (11_000, 50),
            ];
            let mut bracket = bracket(at(11_010), &list, &[]);
            bracket.rows = rows_of
                .iter()
                .map(|&(pid, percent, engines)| RawRow {
                    pid,
                    at_us: (EPOCH_MS + 10_600) * 1000,
                    percent,
                    engines,
                })
                .collect();
            let window = windows.close(&bracket).expect(what);
            let ms = |time: Nanos| time.0 / 1_000_000;
            let used: Vec<_> = window
                .engines
                .iter()
                .map(|used| {
                    let engines = used.engines;
                    (
                        used.pid.0,
                        ms(engines.memory),
                        ms(engines.encoder),
                        ms(engines.jpeg),
                    )
                })
                .collect();
            assert_eq!(used, *expected, "{what}: {window:?}");
            assert_eq!(window.credits.len(), 1, "{what}: {window:?}");
            assert_eq!(ms(window.credits[0].busy), 500, "{what}");
            assert_eq!(window.quality.invalid_rows, *invalid, "{what}");
        }
    }

    #[test]
    fn energy_is_what_the_counter_moved_between_two_windows() {
        /// What happens next: the counter's reading, whether a window closes with samples, and its
        /// energy.
        type Step = (&'static str, Option<u64>, bool, Option<u64>);
        let steps: &[Step] = &[
            (
                "the first window has the baseline of the start",
                Some(1_300),
                true,
                Some(300),
            ),
            ("the counter moves on", Some(1_500), true, Some(200)),
            ("it stands", Some(1_500), true, Some(0)),
            ("a reading fails", None, true, None),
            ("and nothing is lost", Some(1_900), true, Some(400)),
            ("the driver was reloaded", Some(20), true, None),
            ("and counts anew", Some(120), true, Some(100)),
            (
                "nobody observed, but the counter",
                Some(220),
                false,
                Some(100),
            ),
            ("nor that", None, false, None),
            ("that energy is nobody's", Some(900), true, None),
            ("and it goes on", Some(1_000), true, Some(100)),
        ];
        let mut windows = every_200_ms();
        windows.read_energy(Some(Millijoules(1_000)));
        windows.set_baseline();
        let mut now = 10_000;
        for (what, reading, sampled, expected) in steps {
            now += 200;
            windows.read_energy(reading.map(Millijoules));
            let window = if *sampled {
                windows.close(&bracket(at(now), &[(now, 0)], &[]))
            } else {
                windows.fail(at(now), UnobservedReason::DriverError)
            };
            let energy = window.expect(what).energy.map(|energy| energy.0);
            assert_eq!(energy, *expected, "{what}");
        }
        // A reading without a window is replaced by the next one.
        windows.read_energy(Some(Millijoules(1_050)));
        assert_eq!(windows.close(&bracket(at(now), &[], &[])), None);
        windows.read_energy(Some(Millijoules(1_100)));
        let window = windows.close(&bracket(at(now + 200), &[(now + 200, 0)], &[]));
        assert_eq!(window.unwrap().energy, Some(Millijoules(100)));
    }

    /// Both clocks at a boot time in microseconds.
    fn in_microseconds(boot: u64) -> Reading {
        Reading::from(Clock {
            boot: BootTime(boot * 1000),
            wall: WallTime((EPOCH_MS * 1000 + boot) * 1000),
        })
    }

    /// Ten minutes of a device that tells its own mean once a second, polled at a jittered second.
    /// Returns what was booked and the truth by pid, nobody being 0, and the time that passed.
    fn ten_minutes_off_beat(is_whole: bool, is_asked_later: bool) -> (Vec<(u64, u64)>, u64) {
        const SECOND_US: u64 = 1_000_000;
        let mut driver = Driver {
            ring: VecDeque::new(),
            truth: BTreeMap::new(),
            random: 0x9E37_79B9_7F4A_7C15,
            nobody_is_busy: false,
            is_whole,
        };
        let epoch = EPOCH_MS * 1000;
        let mut device: Vec<RawSample> = Vec::new();
        let (mut now, mut next_device) = (1_000_000, 2_000_000);
        // Not in step with the device's own.
        let mut next_sample = now + 70_000;
        let mut windows = Windows::new(gpu(), in_microseconds(now));
        windows.learn(&samples(&[(0, 0), (1_000, 0)]));
        // What was heard before: rows that are on no sample of the device's.
        windows.compare(&rows(&[(9, 903, 1)]), &samples(&[(0, 0), (1_000, 0)]));
        let start = windows.end();
        let mut booked = BTreeMap::<u32, u64>::new();
        for _ in 0..600 {
            now += 900_000 + driver.draw(200_000);
            while next_sample.min(next_device) <= now {
                if next_sample <= next_device {
                    driver.sample(epoch + next_sample);
                    next_sample += Driver::PERIOD_US;
                } else {
                    let of_it = driver.samples(epoch + next_device - SECOND_US);
                    let sum: u32 = of_it.iter().map(|sample| sample.percent).sum();
                    device.push(RawSample {
                        at_us: epoch + next_device,
                        percent: sum / u32::try_from(of_it.len()).unwrap(),
                    });
                    next_device += SECOND_US;
                }
            }
            let cursor = windows.cursor_us();
            let newer: Vec<RawSample> = device
                .iter()
                .copied()
                .filter(|it| it.at_us > cursor)
                .collect();
            let newest = newer.last().map_or(cursor, |it| it.at_us);
            let is_asked = is_asked_later && windows.is_off_beat();
            let clock = in_microseconds(now);
            let window = windows.close(&Bracket {
                before: newer.clone(),
                rows: driver.rows(cursor),
                later: is_asked.then(|| (driver.rows(newest), clock)),
                after: newer,
                asked: clock.boot,
                clock,
                is_clock_doubted: false,
            });
            let Some(window) = window else { continue };
            assert_eq!(window.unobserved, [], "{window:?}");
            *booked.entry(0).or_default() += window.no_row.plus(window.below_resolution).0;
            for credit in &window.credits {
                *booked.entry(credit.pid.0).or_default() += credit.busy.0;
            }
        }
        // What was sampled after the last window's end is in no window yet.
        for &(at_us, percent, pid) in &driver.ring {
            if at_us > windows.cursor_us() {
                *driver.truth.entry(pid).or_default() -= u64::from(percent) * Driver::PERIOD_US;
            }
        }
        let truth = |pid: u32| {
            driver
                .truth
                .get(&pid)
                .map_or(0, |percent_us| percent_us * 10)
        };
        let both = (0..5).map(|pid| (booked.get(&pid).copied().unwrap_or(0), truth(pid)));
        (both.collect(), windows.end().since(start).0)
    }

    #[test]
    fn a_device_that_samples_itself_on_another_beat_is_billed_all_the_same() {
        // The largest error of a process, and what is nobody's, in millionths of the time.
        let errors = |is_whole, is_asked| {
            let (both, elapsed) = ten_minutes_off_beat(is_whole, is_asked);
            let errors = both.iter().map(|&(booked, truth)| booked.abs_diff(truth));
            let errors: Vec<u64> = errors.map(|error| error * 1_000_000 / elapsed).collect();
            (errors[1..].iter().copied().max().unwrap(), errors[0])
        };
        for is_whole in [true, false] {
            let (told, untold) = (errors(is_whole, true), errors(is_whole, false));
            assert!(told.0 <= 500, "{told:?}, whole: {is_whole}");
            assert!(told.1 <= if is_whole { 150 } else { 1_500 }, "{told:?}");
            assert!(untold.0 > 20 * told.0, "{untold:?} without, {told:?} with");
        }
    }

    /// What ten minutes of polling at a jittered second came to, beside the truth.
    struct Billed {
        elapsed: u64,
        busy: u64,
        booked: BTreeMap<u32, u64>,
        below: u64,
        no_row: u64,
        torn: u32,
        truth: BTreeMap<u32, u64>,
    }

    fn ten_minutes(nobody_is_busy: bool) -> Billed {
        let mut driver = Driver {
            ring: VecDeque::new(),
            truth: BTreeMap::new(),
            random: 0x9E37_79B9_7F4A_7C15,
            nobody_is_busy,
            is_whole: false,
        };
        let clock = in_microseconds;
        // The first sample is a whole period after the cursor: every sample is billed for one.
        let mut now = 1_000_000;
        let mut next_sample = now + Driver::PERIOD_US;
        let mut windows = Windows::new(gpu(), clock(now));
        let start = windows.end();
        let mut billed = Billed {
            elapsed: 0,
            busy: 0,
            booked: BTreeMap::new(),
            below: 0,
            no_row: 0,
            torn: 0,
            truth: BTreeMap::new(),
        };
        for tick in 0..600 {
            now += 900_000 + driver.draw(200_000);
            while next_sample <= now {
                driver.sample(EPOCH_MS * 1000 + next_sample);
                next_sample += Driver::PERIOD_US;
            }
            let cursor = windows.cursor_us();
            let before = driver.samples(cursor);
            if tick % 100 == 0 {
                // One lands between the calls, and this time nobody asks again.
                now = now.max(next_sample);
                driver.sample(EPOCH_MS * 1000 + next_sample);
                next_sample += Driver::PERIOD_US;
            }
            let rows = driver.rows(cursor);
            let after = driver.samples(cursor);
            let end = windows.end();
            let window = windows
                .close(&Bracket {
                    before,
                    rows,
                    later: None,
                    after,
                    asked: clock(now).boot,
                    clock: clock(now),
                    is_clock_doubted: false,
                })
                .expect("every tick has samples");
            assert_eq!(window.start, end, "windows tile");
            assert_eq!(window.unobserved, [], "{window:?}");
            billed.torn += u32::from(window.quality.torn);
            billed.busy += window.busy.0;
            billed.below += window.below_resolution.0;
            billed.no_row += window.no_row.0;
            for credit in &window.credits {
                *billed.booked.entry(credit.pid.0).or_default() += credit.busy.0;
            }
        }
        billed.elapsed = windows.end().since(start).0;
        for (pid, percent_us) in driver.truth {
            billed.truth.insert(pid, percent_us * 10);
        }
        billed
    }

    #[test]
    fn ten_minutes_of_a_ring_are_billed_once_and_whole() {
        let billed = ten_minutes(false);
        assert_eq!(billed.torn, 6);
        let thousandth = billed.elapsed / 1000;
        let truth: u64 = billed.truth.values().sum();
        let credited: u64 = billed.booked.values().sum();
        assert!(
            billed.busy.abs_diff(truth) < 1_000_000,
            "{} of {truth}",
            billed.busy
        );
        assert!(
            (credited + billed.below).abs_diff(truth) < thousandth,
            "{credited} + {} of {truth}",
            billed.below
        );
        assert!(billed.no_row < thousandth, "{}", billed.no_row);
        for (pid, booked) in &billed.booked {
            let truth = billed.truth[pid];
            // Never more than a hair beyond the truth; what is short lies in `below_resolution`.
            assert!(
                *booked < truth + thousandth,
                "pid {pid}: {booked} of {truth}"
            );
            assert!(
                booked + billed.below + thousandth > truth,
                "pid {pid}: {booked} of {truth}"
            );
        }
    }

    #[test]
    fn what_nobody_is_credited_with_is_not_billed_to_somebody() {
        let billed = ten_minutes(true);
        let nobody = billed.truth[&0];
        // Below a percentage point of each window may hide in the others' rows.
        assert!(
            billed.no_row <= nobody && nobody - billed.no_row < billed.elapsed / 500,
            "{} of {nobody}",
            billed.no_row
        );
    }

    proptest! {
        #[test]
        fn whatever_the_driver_answers_time_is_tiled(
            ticks in proptest::collection::vec(
                (
                    0_u64..4_000,
                    prop_oneof![9 => Just(0_i64), 1 => -20_000_i64..20_000],
                    proptest::collection::vec((sample_time(), 0_u32..110), 0..12),
                    proptest::collection::vec((0_u32..6, sample_time(), 0_u32..110), 0..6),
                    0_u8..10,
                ),
                1..40,
            ),
        ) {
            let mut windows = Windows::new(gpu(), at(10_000));
            let (mut now_ms, mut step_ms) = (10_000_u64, 0_i64);
            for (pass, step, list, rows_of, call) in ticks {
                now_ms += pass;
                step_ms += step;
                let clock = stepped(now_ms, step_ms);
                let time = |offset: Option<i64>| offset.map_or(u64::MAX, |offset| {
                    clock.stamp_us().saturating_add_signed(offset * 1000)
                });
                let before = samples(&[]);
                let after: Vec<RawSample> = list.iter()
                    .map(|&(offset, percent)| RawSample { at_us: time(offset), percent })
                    .collect();
                let rows: Vec<RawRow> = rows_of.iter()
                    .map(|&(pid, offset, percent)| RawRow { pid, at_us: time(offset), percent, ..RawRow::default() })
                    .collect();
                let (end, cursor) = (windows.end(), windows.cursor_us());
                let window = match call {
                    0 => windows.fail(clock, UnobservedReason::DriverError),
                    1 => windows.close_without_samples(&rows, clock, clock),
                    _ => windows.close(&Bracket { before, rows, later: None, after, asked: BootTime(0), clock, is_clock_doubted: false }),
                };
                // The balances are asserted where the window is made.
                if let Some(window) = window {
                    prop_assert_eq!(window.start, end);
                    prop_assert_eq!(window.end, windows.end());
                    prop_assert!(window.start < window.end);
                    prop_assert!(window.end <= clock.boot);
                    let pids: std::collections::BTreeSet<_> =
                        window.credits.iter().map(|credit| credit.pid).collect();
                    prop_assert_eq!(pids.len(), window.credits.len());
                    if window.busy > Nanos::ZERO {
                        prop_assert!(windows.cursor_us() > cursor, "a billed sample is passed");
                    }
                } else {
                    prop_assert_eq!(windows.end(), end);
                }
            }
        }

        #[test]
        fn no_number_is_too_large(
            calls in proptest::collection::vec((any::<u64>(), any::<u64>(), any::<u64>(), any::<u32>()), 1..20),
        ) {
            let mut windows = Windows::new(gpu(), Reading::default());
            for (boot, wall, at_us, percent) in calls {
                let clock = Reading::from(Clock { boot: BootTime(boot), wall: WallTime(wall) });
                let sample = RawSample { at_us, percent };
                windows.learn(&[sample, RawSample { at_us: at_us.wrapping_mul(7), percent }]);
                let rows = vec![RawRow { pid: percent, at_us, percent: percent % 128, ..RawRow::default() }];
                windows.close(&Bracket { before: vec![], rows: rows.clone(), later: None, after: vec![sample], asked: BootTime(boot / 2), clock, is_clock_doubted: false });
                windows.close_without_samples(&rows, clock, clock);
                windows.fail(clock, UnobservedReason::DriverError);
            }
        }
    }

    /// Milliseconds from now, mostly just passed; none stands for the largest timestamp there is.
    fn sample_time() -> impl Strategy<Value = Option<i64>> {
        prop_oneof![
            8 => (-2_000_i64..=0).prop_map(Some),
            1 => (-30_000_i64..30_000).prop_map(Some),
            1 => Just(None),
        ]
    }
}
