//! Divides one GPU's time into windows that follow each other without gap or overlap.
//!
//! NVML gives two views of one ring in the driver: the device's own samples (busy percent, each for
//! the stretch up to its timestamp) and, per process, the mean over all samples since a cursor. They
//! are separate calls without an upper bound, so a window is taken in a [`WindowReadings`]: samples, rows,
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

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use super::answer::{RawRow, RawSample, WindowReadings};
use super::cadence::{self, Cadence, Samples};
use super::credit::{Split, apportion, scale, split};
use super::cursor::Cursor;
use super::energy::Meter;
use super::engines::{engines, shown};
use super::sample_clock::{CLOCK_STEP, Reading};
use super::spacing::{RING_SPAN, Spacing};
use super::unobserved::unobserved;
use crate::core::amounts::Millijoules;
use crate::core::input::{Credit, EngineUse, GpuWindow, WindowQuality};
use crate::core::model::{BootTime, GpuUuid, Nanos, Pid, UnobservedReason};

/// A stretch without a new sample is closed as unobserved once it is longer than this. Until then
/// nothing is lost by waiting: the driver's ring holds ten seconds at least.
pub const PATIENCE: Nanos = Nanos::from_secs(5);
/// Number of consecutive windows, in each of which every row's time is that of a device sample, after
/// which processes count as sampled together with the device. Fewer can match by chance.
const OFF_BEAT: u8 = 16;
/// What a sample's time may differ by when its clock is read anew. Samples are far further apart.
pub(super) const JITTER_US: u64 = 50;

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
    spacing: Spacing,
    /// When processes are sampled.
    beat: Cadence,
    /// For how many windows more that do not say so they are taken to have a beat of their own.
    off_beat: u8,
    /// Junk seen since the last window closed.
    invalid: u32,
    meter: Meter,
    /// When it was last tried to close a window.
    tried: BootTime,
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
            spacing: Spacing::default(),
            beat: Cadence::default(),
            off_beat: 0,
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

    /// Goes on for a device that has no ring: all of the time until now is unobserved.
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

    /// Closes time that the ring no longer covers, up to `reach`.
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
        self.spacing.learn(times);
        self.spacing.learn_size(ring.len());
    }

    /// Learns from the rows of the whole ring, and from the device's samples as they were after, whether
    /// those have a beat of their own.
    pub(super) fn compare(&mut self, rows: &[RawRow], ring: &[RawSample]) {
        let times = ring.iter().map(|sample| sample.at_us);
        let (Some(oldest), Some(newest)) = (times.clone().min(), times.max()) else {
            return;
        };
        let latest = newest.saturating_add(self.spacing.tolerance().0 / 1000);
        let is_valid = |row: &&RawRow| row.is_possible() && (oldest..=latest).contains(&row.at_us);
        let valid: Vec<RawRow> = rows.iter().filter(is_valid).copied().collect();
        self.listen(ring, &valid);
    }

    /// Takes a reading of the device's counter of energy for the window that closes next; none where
    /// it could not be read.
    pub const fn read_energy(&mut self, reading: Option<Millijoules>) {
        self.meter.read(reading);
    }

    /// Takes the last reading for where the next window begins.
    pub const fn set_baseline(&mut self) {
        self.meter.set_baseline();
    }

    /// The GPU.
    #[must_use]
    pub const fn gpu(&self) -> &GpuUuid {
        &self.gpu
    }

    /// Stamp for the next request: only newer samples are returned.
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
    pub fn close(&mut self, bracket: &WindowReadings) -> Option<GpuWindow> {
        let clock = bracket.clock;
        let paused = bracket.asked.since(self.tried) > self.spacing.ring_span();
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
        let full = self.spacing.is_full(samples.len());
        let before = self.cursor.at_sample.then_some(self.cursor.stamp_us);
        let stamps_us = samples.iter().map(|sample| sample.at_us);
        self.spacing.learn(before.into_iter().chain(stamps_us));
        self.spacing.learn_size(bracket.after.len());

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
        let missing = [(bracket.gap(), walk.gaps), (before_the_first, walk.late)];
        let window = GpuWindow {
            busy,
            idle: walk.covered.minus(busy),
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
            ..unobserved(&self.gpu, self.cursor.boot, walk.end, missing)
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
    pub(super) const fn is_off_cadence(&self) -> bool {
        self.off_beat > 0
    }

    /// The time between two samples of processes.
    pub(super) fn process_period(&self) -> Nanos {
        let own = self.is_off_cadence().then(|| self.beat.period());
        own.flatten().unwrap_or_else(|| self.period())
    }

    /// Whether the driver may have sampled its processes between two moments, so that
    /// two answers need not be about the same samples.
    pub(super) fn is_torn_within(&self, from: Reading, to: Reading) -> bool {
        let (from_us, to_us) = (from.stamp_us(), to.stamp_us());
        self.is_off_cadence() && self.beat.falls_within(from_us, to_us)
    }

    /// Splits a window's busy time into charges. `samples` are the device's, `valid` the rows since
    /// its beginning.
    fn divide(
        &mut self,
        bracket: &WindowReadings,
        samples: &[RawSample],
        valid: &[RawRow],
        walk: &Walk,
    ) -> Divided {
        let newest_us = samples.last().map_or(self.cursor.stamp_us, |it| it.at_us);
        if !bracket.torn() {
            self.listen(samples, valid);
        }
        if let Some(divided) = self.divide_off_cadence(bracket, newest_us, valid, walk) {
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

    /// Divides a window whose rows are about other samples than the device's. None if they are about
    /// the same samples, or if the samples that they are about are unknown.
    fn divide_off_cadence(
        &self,
        bracket: &WindowReadings,
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
        let (busy, split) = cadence::split(
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
        let rest = [(UnobservedReason::Unsupported, elapsed.minus(busy))];
        let window = GpuWindow {
            busy,
            credits,
            engines: engines(&rows, elapsed, 100, shown),
            energy: self.meter.take(),
            quality: WindowQuality {
                invalid_rows: std::mem::take(&mut self.invalid),
                cut: Nanos(scale(claimed.saturating_sub(100), elapsed.0, 100)),
                ..WindowQuality::default()
            },
            ..unobserved(&self.gpu, start, end, rest)
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
        let before = [(UnobservedReason::SampleGap, since.since(start))];
        Some(checked(GpuWindow {
            busy,
            idle: covered.minus(busy),
            no_row: busy,
            energy: self.meter.take(),
            ..unobserved(&self.gpu, start, end, before)
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
        self.meter.forget_unread();
        Some(checked(GpuWindow {
            energy: self.meter.take(),
            quality: WindowQuality {
                invalid_rows: std::mem::take(&mut self.invalid),
                ..WindowQuality::default()
            },
            ..unobserved(&self.gpu, start, end, [(reason, end.since(start))])
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
        let tolerance_us = self.spacing.tolerance().0 / 1000;
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
        let (period, tolerance) = (self.spacing.period(), self.spacing.tolerance());
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
                && sample.at_us - self.cursor.stamp_us <= tolerance.0 / 1000;
            let stretch = if gap <= tolerance || is_next {
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

    /// The time between two samples of the device.
    pub(super) fn period(&self) -> Nanos {
        self.spacing.period()
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
mod tests;
