//! Asks one GPU's driver for the samples and rows of its windows: which call, from which stamp on,
//! and again if an answer contradicts what was known.
//!
//! - Each call is asked in the clock that it stamps by, and what it answers comes in the clock of the
//!   device's samples: see [`sample_clock`](super::sample_clock). As long as that clock is not known the
//!   time stays open, and the driver's ring keeps what is sampled.
//! - Where samples are missing for a second, and where the device was busy and
//!   no row says by whom, the driver is asked for all that it keeps. It distinguishes a driver that pauses
//!   from one whose clock was set.
//! - Two calls return the rows of processes. The newer one covers more engines; there are drivers where
//!   it succeeds and is always empty. Where it is empty and the device was busy, the older one is asked,
//!   and the one that has rows is kept to. The other one is asked again every [`COMPARED_ANEW`].
//!
//! Pure: [`Driver`] asks NVML and reads the clocks.

use std::collections::BTreeMap;

use super::answer::{RawRow, RawSample, WindowReadings};
use super::cursor::Cursor;
use super::driver::{Driver, RowsCall};
use super::fault::{NvmlErrorKind, NvmlFailure};
use super::row_clock::{CONVERTED_US, Conversion, RowClock};
use super::sample_clock::{Answered, ClockChange, Reading, SampleClock, StampClock};
use super::window::Windows;
use crate::core::input::{CallClock, GpuWindow, SampleClocks};
use crate::core::model::{BootTime, Clock, GpuUuid, Nanos, UnobservedReason};

/// How often a window's calls are made when a sample lands between them.
const TRIES: u32 = 3;
/// Where samples are missing for so long, the driver is asked for all that it keeps.
const SILENCE: Nanos = Nanos::SECOND;
/// The two calls for rows are compared no more often than this where neither has any.
const COMPARED_APART: Nanos = Nanos::from_secs(10);
/// While the older call for rows is used, the newer one is asked again after this time.
pub(super) const COMPARED_ANEW: Nanos = Nanos::from_secs(300);
/// The driver's answers for one interval.
pub(super) enum DriverAnswer {
    /// Samples and rows; rows that could not be had are left out, with the reason.
    WindowReadings(WindowReadings, Option<NvmlFailure>),
    /// The device has no samples of its own.
    RowsOnly {
        rows: Vec<RawRow>,
        asked: Reading,
        answered: Reading,
    },
    /// Neither, as under MIG.
    Unsupported,
    /// The clock of the samples is not known yet; these are all that the driver keeps.
    Unplaced(Vec<RawSample>),
    /// Nothing was asked, because an earlier window is still queued.
    Queued,
}

/// Answer of a call for rows, converted to the clock of the samples.
struct RowsAnswer {
    rows: Vec<RawRow>,
    /// Whether it had any row that can be somebody's, with whatever stamp.
    is_any: bool,
}

/// One GPU's windows, and what is known of how to ask for them.
pub(super) struct Reader {
    pub(super) windows: Windows,
    gpu: GpuUuid,
    samples: SampleClock,
    /// Of the newer call, and of the older one.
    rows: [RowClock; 2],
    /// The call for rows that is made first.
    call: RowsCall,
    /// The one that answered last.
    told_by: RowsCall,
    /// The one that has no rows although the other one has.
    empty: Option<RowsCall>,
    /// When the two were compared last.
    compared: Option<BootTime>,
    /// Whether the clock of the windows' stamps is known.
    has_begun: bool,
    /// The stamp of the device's newest sample that was busy.
    newest_busy_us: Option<u64>,
    /// The device has rows and no samples: rows' stamps are those of its windows.
    is_rows_only: bool,
    /// Where an agent before this one stopped, until the windows go on from there.
    cursor: Option<Cursor>,
    /// A window that closed behind another one.
    queued: Option<GpuWindow>,
    /// Time that was lost at the end of the previous agent, until it is reported.
    lost: Option<GpuWindow>,
    /// Why nobody asked the driver from then on, as far as an agent ran.
    silence: UnobservedReason,
}

impl Reader {
    /// A GPU's windows begin now, and its ring only shows how it samples; or they go on where an
    /// agent before this one stopped.
    pub(super) fn first_sight(
        gpu: &GpuUuid,
        driver: &impl Driver,
        cursor: Option<&Cursor>,
    ) -> Self {
        let now = Reading {
            boot: driver.now().boot,
            ahead: 0,
        };
        let mut reader = Self {
            windows: Windows::new(gpu.clone(), now),
            gpu: gpu.clone(),
            samples: SampleClock::default(),
            rows: Default::default(),
            call: RowsCall::OfAllEngines,
            told_by: RowsCall::OfAllEngines,
            empty: None,
            compared: None,
            has_begun: false,
            newest_busy_us: None,
            is_rows_only: false,
            cursor: cursor.cloned(),
            queued: None,
            lost: None,
            silence: UnobservedReason::DriverError,
        };
        // What fails here fails again at the first window, which says so.
        for call in [RowsCall::OfAllEngines, RowsCall::Older] {
            if driver.has(call) {
                let _ = reader.read_rows(driver, call, 0);
            }
        }
        if !driver.has(reader.call) {
            reader.call = RowsCall::Older;
        }
        let _ = reader.read_samples(driver, 0);
        reader
    }

    /// Says why nobody asked the driver between the cursor and now.
    pub(super) const fn set_silence(&mut self, reason: UnobservedReason) {
        self.silence = reason;
    }

    /// The windows of an instance, whose activity is measured on the boot clock: nothing is stamped, and
    /// no ring reaches back to before this agent.
    pub(super) fn without_ring(
        gpu: &GpuUuid,
        driver: &impl Driver,
        cursor: Option<&Cursor>,
    ) -> (Self, Option<GpuWindow>) {
        let now = Reading {
            boot: driver.now().boot,
            ahead: 0,
        };
        let (windows, lost) = match cursor {
            Some(cursor) => Windows::resumed_without_ring(cursor, now),
            None => (Windows::new(gpu.clone(), now), None),
        };
        let reader = Self {
            windows,
            gpu: gpu.clone(),
            samples: SampleClock::default(),
            rows: Default::default(),
            call: RowsCall::OfAllEngines,
            told_by: RowsCall::OfAllEngines,
            empty: None,
            compared: None,
            has_begun: true,
            newest_busy_us: None,
            is_rows_only: false,
            cursor: None,
            queued: None,
            lost: None,
            silence: UnobservedReason::DriverError,
        };
        (reader, lost)
    }

    /// The clocks by which the driver stamps. `None` if nothing is stamped.
    pub(super) fn sample_clocks(&self, now: Clock) -> Option<SampleClocks> {
        let call_clock = |clock: Option<StampClock>| {
            clock.map_or(CallClock::UNKNOWN, |clock| clock.call_clock(now))
        };
        let rows = &self.rows[self.told_by as usize];
        self.samples.is_asked().then(|| SampleClocks {
            samples: call_clock(self.samples.clock()),
            rows: call_clock(rows.clock(&self.samples)),
            rows_call: self.told_by.as_str().into(),
            empty_call: self.empty.map(|call| call.as_str().into()),
            changes: self.samples.changes() + rows.own.changes(),
        })
    }

    /// The clock of the windows' stamps.
    fn clock(&self) -> Option<StampClock> {
        if self.is_rows_only {
            self.row_clock(self.told_by)
        } else {
            self.samples.clock()
        }
    }

    fn row_clock(&self, call: RowsCall) -> Option<StampClock> {
        self.rows[call as usize].clock(&self.samples)
    }

    /// Both clocks at an instant, as the windows want them. As long as stamps are of no known clock it is
    /// the boot clock twice.
    fn reading(&self, now: Clock) -> Reading {
        self.clock().unwrap_or(StampClock::Boot).reading(now)
    }

    /// Samples, rows, samples: again if one landed in between, but not for ever.
    pub(super) fn ask(&mut self, driver: &impl Driver) -> Result<DriverAnswer, NvmlFailure> {
        if self.queued.is_some() {
            return Ok(DriverAnswer::Queued);
        }
        let mut tries = 0;
        let first_asked = driver.now().boot;
        loop {
            tries += 1;
            let asked = driver.now();
            let Some(before) = self.newer_samples(driver)? else {
                return self.ask_for_rows(driver);
            };
            if !self.has_begun {
                let Some(_) = self.samples.clock() else {
                    // The rows' clock can be learnt meanwhile; an error is reported with a window.
                    let _ = self.rows_since(driver, None);
                    return Ok(DriverAnswer::Unplaced(before));
                };
                self.begin(driver, &before);
            }
            let cursor_us = self.windows.cursor_us();
            let is_newer = |sample: &RawSample| sample.at_us > cursor_us;
            let before: Vec<RawSample> = before.into_iter().filter(is_newer).collect();
            let rows = self.rows_of_window(driver, &before);
            let (rows, trouble) = match rows {
                Ok(rows) => (rows.unwrap_or_default(), None),
                // Waited out for long enough: how busy the device was is known, who made it so is
                // not.
                Err(trouble)
                    if trouble.fault == NvmlErrorKind::Other
                        && self.windows.overdue(asked.boot) =>
                {
                    (Vec::new(), Some(trouble))
                }
                Err(trouble) => return Err(trouble),
            };
            // A failure here leaves the window unchanged.
            let newest_us = before.iter().map(|sample| sample.at_us).max();
            let later = newest_us
                .filter(|_| self.windows.is_off_cadence())
                .and_then(|newest_us| self.rows_since(driver, Some(newest_us)).ok().flatten());
            let answered = driver.now();
            let is_torn_within = self.is_exact()
                && self
                    .windows
                    .is_torn_within(self.reading(asked), self.reading(answered));
            // A device that has just stopped to offer samples says so again next time.
            let after = self.read_samples(driver, cursor_us)?.unwrap_or_default();
            let now = driver.now();
            let bracket = WindowReadings {
                before,
                rows,
                later: later.map(|later| (later.rows, self.reading(answered))),
                after,
                asked: first_asked,
                clock: self.reading(now),
                is_clock_doubted: self.samples.is_doubted_since(self.windows.end()),
            };
            let is_torn = bracket.torn() || is_torn_within;
            if !is_torn || tries == TRIES {
                return Ok(DriverAnswer::WindowReadings(bracket, trouble));
            }
        }
    }

    /// Makes a window of the answers. `None` if there is nothing to close yet.
    pub(super) fn close(&mut self, asked: DriverAnswer, now: Clock) -> Option<GpuWindow> {
        let window = match asked {
            DriverAnswer::Queued => return self.queued.take(),
            DriverAnswer::WindowReadings(bracket, _) => self.windows.close(&bracket),
            DriverAnswer::RowsOnly {
                rows,
                asked,
                answered,
            } => self.windows.close_without_samples(&rows, asked, answered),
            DriverAnswer::Unsupported => return self.fail(now, UnobservedReason::Unsupported),
            DriverAnswer::Unplaced(ring) => self.close_unplaced(&ring, now),
        };
        self.in_order(window, now)
    }

    /// Closes what is open as unobserved.
    pub(super) fn fail(&mut self, now: Clock, reason: UnobservedReason) -> Option<GpuWindow> {
        if self.queued.is_some() {
            return self.queued.take();
        }
        self.go_on_unlearnt(&[], now);
        let window = self.windows.fail(self.reading(now), reason);
        self.in_order(window, now)
    }

    /// Lost time is returned first. The closed window is queued for the next call.
    fn in_order(&mut self, window: Option<GpuWindow>, now: Clock) -> Option<GpuWindow> {
        let clocks = self.sample_clocks(now);
        let with_clocks = |window: GpuWindow| GpuWindow {
            clocks: clocks.clone(),
            ..window
        };
        let (lost, window) = (self.lost.take().map(with_clocks), window.map(with_clocks));
        if lost.is_none() {
            return window;
        }
        self.queued = window;
        lost
    }

    /// Closes what is open for too long while stamps are of no known clock. Where the ring stood still the
    /// driver took no samples, whatever its clock.
    fn close_unplaced(&mut self, ring: &[RawSample], now: Clock) -> Option<GpuWindow> {
        if !self.windows.overdue(now.boot) {
            return None;
        }
        if self.cursor.is_some() {
            self.go_on_unlearnt(ring, now);
            return None;
        }
        let end = self.windows.end();
        let reason = if self.samples.is_doubted_since(end) || self.samples.has_advanced_since(end) {
            UnobservedReason::UnknownSampleClock
        } else {
            UnobservedReason::SampleGap
        };
        self.windows.fail(self.reading(now), reason)
    }

    /// Goes on where the agent before this one stopped, although the stamps' clock could not be learnt:
    /// on the clock that they look like.
    fn go_on_unlearnt(&mut self, ring: &[RawSample], now: Clock) {
        if let Some(cursor) = self.cursor.take() {
            self.samples.assume(now);
            for rows in self.rows.iter_mut().filter(|rows| rows.own.is_stamped()) {
                rows.own.assume(now);
            }
            self.resume(&cursor, ring, now);
        }
    }

    /// The windows go on from a cursor.
    fn resume(&mut self, cursor: &Cursor, ring: &[RawSample], now: Clock) {
        let reading = self.reading(now);
        let then = match self.clock() {
            // It may have been set in between.
            Some(StampClock::Wall) | None => cursor.then.into(),
            Some(StampClock::Boot | StampClock::Shifted(_)) => reading,
        };
        let (windows, lost) = Windows::resumed(cursor, then, ring, reading);
        self.windows = windows.with_meter_of(&self.windows);
        self.lost = lost.map(|mut window| {
            for (reason, _) in &mut window.unobserved {
                if *reason == UnobservedReason::DriverError {
                    *reason = self.silence;
                }
            }
            window
        });
        self.has_begun = true;
    }

    /// The clock of the stamps is known: windows begin where they were to, with the driver's ring as it
    /// is.
    fn begin(&mut self, driver: &impl Driver, ring: &[RawSample]) {
        let now = driver.now();
        if let Some(cursor) = self.cursor.take() {
            self.resume(&cursor, ring, now);
        } else {
            self.windows.begin(self.reading(now));
            self.windows.learn(ring);
            self.has_begun = true;
        }
        // Rows before the ring, so that it has every sample that they are about.
        let rows = self.rows_since(driver, None).ok().flatten();
        let ring = self.read_samples(driver, 0).ok().flatten();
        if let (Some(answer), Some(ring)) = (rows, ring) {
            self.windows.compare(&answer.rows, &ring);
        }
    }

    /// The samples since the last one: all that the driver keeps as long as their clock is not known.
    fn newer_samples(
        &mut self,
        driver: &impl Driver,
    ) -> Result<Option<Vec<RawSample>>, NvmlFailure> {
        if !self.has_begun {
            return self.read_samples(driver, 0);
        }
        let cursor_us = self.windows.cursor_us();
        let answer = self.read_samples(driver, cursor_us)?;
        let elapsed = driver.now().boot.since(self.windows.end());
        let is_sparse = answer.as_ref().is_some_and(|samples| {
            let count = u64::try_from(samples.len()).unwrap_or(u64::MAX);
            let covered = self.windows.period().0.saturating_mul(count);
            covered.saturating_mul(2) < elapsed.0
        });
        if is_sparse && elapsed > SILENCE {
            self.read_samples(driver, 0)?;
        }
        Ok(answer)
    }

    /// Rows of a device without samples.
    fn ask_for_rows(&mut self, driver: &impl Driver) -> Result<DriverAnswer, NvmlFailure> {
        let asked = driver.now();
        let Some(mut answer) = self.rows_since(driver, None)? else {
            return Ok(DriverAnswer::Unsupported);
        };
        if !self.has_begun {
            self.is_rows_only = true;
            self.rows[self.told_by as usize].own.assume(asked);
            if let Some(cursor) = self.cursor.take() {
                self.resume(&cursor, &[], asked);
            } else {
                self.windows.begin(self.reading(asked));
                self.has_begun = true;
            }
        }
        if self.is_rows_only {
            if self.rows[self.told_by as usize].own.take_refinement() {
                self.windows.refine(self.reading(asked));
            }
            let cursor_us = self.windows.cursor_us();
            match self.rows_since(driver, Some(cursor_us))? {
                Some(since) => answer = since,
                None => return Ok(DriverAnswer::Unsupported),
            }
        }
        Ok(DriverAnswer::RowsOnly {
            rows: answer.rows,
            asked: self.reading(asked),
            answered: self.reading(driver.now()),
        })
    }

    /// The rows of the window that begins at the cursor and has these samples.
    fn rows_of_window(
        &mut self,
        driver: &impl Driver,
        samples: &[RawSample],
    ) -> Result<Option<Vec<RawRow>>, NvmlFailure> {
        let cursor_us = self.windows.cursor_us();
        let Some(answer) = self.rows_since(driver, Some(cursor_us))? else {
            return Ok(None);
        };
        let clock = self.row_clock(self.told_by);
        let is_busy = samples
            .iter()
            .any(|sample| (1..=100).contains(&sample.percent));
        let is_of_window = |row: &RawRow| row.is_possible() && row.at_us > cursor_us;
        let fits = answer.rows.iter().any(is_of_window);
        if !is_busy || (fits && self.call == RowsCall::OfAllEngines) {
            return Ok(Some(answer.rows));
        }
        let all = match fits {
            true => None,
            false => self.rows_since(driver, None)?,
        };
        let has_rows = fits || all.is_some_and(|all| all.is_any);
        if self.compare_calls(driver, has_rows) || self.row_clock(self.told_by) != clock {
            let again = self.rows_since(driver, Some(cursor_us))?;
            return Ok(again.map(|again| again.rows));
        }
        Ok(Some(answer.rows))
    }

    /// Asks the call for rows that is not made, where that is due: the device was busy and the one that is
    /// made has no rows at all, or the older one is made. Whether the calls were exchanged.
    fn compare_calls(&mut self, driver: &impl Driver, has_rows: bool) -> bool {
        let other = self.call.other();
        let apart = match (has_rows, self.call) {
            (true, RowsCall::OfAllEngines) => return false,
            (true, RowsCall::Older) => COMPARED_ANEW,
            (false, _) => COMPARED_APART,
        };
        let now = driver.now().boot;
        let is_due = self.compared.is_none_or(|at| now.since(at) >= apart);
        if !driver.has(other) || !driver.has(self.call) || !is_due {
            return false;
        }
        self.compared = Some(now);
        let answer = self.read_rows(driver, other, 0).ok().flatten();
        if !answer.is_some_and(|rows| rows.iter().any(RawRow::is_possible)) {
            return false;
        }
        let gpu = self.gpu.as_str();
        let (empty, used) = (self.call.as_str(), other.as_str());
        if has_rows {
            tracing::info!(
                gpu,
                used,
                "the call for per-process utilisation returns rows again"
            );
        } else {
            tracing::warn!(
                gpu,
                empty,
                used,
                "the GPU is busy and the call for per-process utilisation returns no rows; using the other call"
            );
        }
        self.empty = (other == RowsCall::Older).then_some(self.call);
        self.call = other;
        true
    }

    /// Rows since a stamp of the samples' clock, or all that the driver keeps. The newer call is made where
    /// the driver has it; whatever it fails with, the older one decides, since both read one ring.
    fn rows_since(
        &mut self,
        driver: &impl Driver,
        since_us: Option<u64>,
    ) -> Result<Option<RowsAnswer>, NvmlFailure> {
        if self.call == RowsCall::OfAllEngines
            && driver.has(self.call)
            && let Ok(Some(answer)) = self.rows_by(driver, RowsCall::OfAllEngines, since_us)
        {
            return Ok(Some(answer));
        }
        self.rows_by(driver, RowsCall::Older, since_us)
    }

    fn rows_by(
        &mut self,
        driver: &impl Driver,
        call: RowsCall,
        since_us: Option<u64>,
    ) -> Result<Option<RowsAnswer>, NvmlFailure> {
        let mut answer = self.rows_asked(driver, call, since_us)?;
        if let Some((_, ClockChange::Learnt | ClockChange::Changed)) = answer
            && since_us.is_some()
        {
            // Asked since a stamp that was none of its clock.
            answer = self.rows_asked(driver, call, since_us)?;
        }
        Ok(answer.map(|(answer, _)| answer))
    }

    fn rows_asked(
        &mut self,
        driver: &impl Driver,
        call: RowsCall,
        since_us: Option<u64>,
    ) -> Result<Option<(RowsAnswer, ClockChange)>, NvmlFailure> {
        let asked = self.conversion(call, driver.now());
        let from_us = since_us
            .zip(asked)
            .map_or(0, |(since_us, conversion)| conversion.to_rows(since_us));
        let Some((raw, news)) = self.read_rows_with_news(driver, call, from_us)? else {
            return Ok(None);
        };
        let is_any = raw.iter().any(RawRow::is_possible);
        let rows = match self.conversion(call, driver.now()) {
            Some(conversion) if since_us.is_none() || from_us > 0 => raw
                .into_iter()
                .map(|row| RawRow {
                    at_us: self.aligned(conversion.to_windows(row.at_us), conversion),
                    ..row
                })
                .collect(),
            _ => Vec::new(),
        };
        Ok(Some((RowsAnswer { rows, is_any }, news)))
    }

    /// A converted stamp, taken for the sample's that it is off by no more than a conversion is.
    fn aligned(&self, stamp_us: u64, conversion: Conversion) -> u64 {
        if conversion.is_same {
            return stamp_us;
        }
        let nearest = self.samples.nearest(stamp_us);
        nearest
            .filter(|nearest| nearest.abs_diff(stamp_us) <= CONVERTED_US)
            .unwrap_or(stamp_us)
    }

    /// From the stamps of a call's rows to those of the windows; none as long as one is not known.
    fn conversion(&self, call: RowsCall, now: Clock) -> Option<Conversion> {
        let (rows, windows) = (self.row_clock(call)?, self.clock()?);
        if let Some(ahead_us) = self.rows[call as usize].related {
            return Some(Conversion {
                is_same: ahead_us == 0,
                ahead_us,
            });
        }
        Some(Conversion {
            is_same: rows == windows,
            ahead_us: (rows.reading(now).ahead - windows.reading(now).ahead) / 1_000,
        })
    }

    /// Whether the clock of the rows is known to better than a period.
    fn is_exact(&self) -> bool {
        let rows = self.row_clock(self.told_by);
        self.rows[self.told_by as usize].related.is_some()
            || rows.is_some() && !matches!(rows, Some(StampClock::Shifted(_)))
            || rows == self.samples.clock()
    }

    fn read_samples(
        &mut self,
        driver: &impl Driver,
        since_us: u64,
    ) -> Result<Option<Vec<RawSample>>, NvmlFailure> {
        let started = driver.now();
        let Some(samples) = driver.samples(since_us)? else {
            return Ok(None);
        };
        let ended = driver.now();
        let stamps: Vec<u64> = samples
            .iter()
            .filter(|sample| sample.percent <= 100 && sample.at_us > 0)
            .map(|sample| sample.at_us)
            .collect();
        let news = self.samples.observe(&Answered {
            since_us,
            stamps: &stamps,
            started,
            ended,
        });
        if news == ClockChange::Changed {
            self.rows.iter_mut().for_each(RowClock::forget_relation);
            self.newest_busy_us = None;
        }
        let busy = samples
            .iter()
            .filter(|sample| (1..=100).contains(&sample.percent));
        self.newest_busy_us = busy
            .map(|sample| sample.at_us)
            .max()
            .or(self.newest_busy_us);
        self.log("nvmlDeviceGetSamples", news, self.samples.clock(), ended);
        if self.samples.take_refinement() && self.has_begun {
            self.windows.refine(self.reading(ended));
        }
        Ok(Some(samples))
    }

    fn read_rows(
        &mut self,
        driver: &impl Driver,
        call: RowsCall,
        since_us: u64,
    ) -> Result<Option<Vec<RawRow>>, NvmlFailure> {
        let answer = self.read_rows_with_news(driver, call, since_us)?;
        Ok(answer.map(|(rows, _)| rows))
    }

    fn read_rows_with_news(
        &mut self,
        driver: &impl Driver,
        call: RowsCall,
        since_us: u64,
    ) -> Result<Option<(Vec<RawRow>, ClockChange)>, NvmlFailure> {
        let started = driver.now();
        let Some(rows) = driver.rows(call, since_us)? else {
            return Ok(None);
        };
        let ended = driver.now();
        self.told_by = call;
        let mut stamps = BTreeMap::<u32, u64>::new();
        for row in rows
            .iter()
            .filter(|row| row.is_possible() && row.at_us > since_us)
        {
            let newest = stamps.entry(row.pid).or_default();
            *newest = row.at_us.max(*newest);
        }
        let stamps: Vec<u64> = stamps.into_values().collect();
        let answer = Answered {
            since_us,
            stamps: &stamps,
            started,
            ended,
        };
        let news = self.rows[call as usize].observe(&answer, &self.samples, self.newest_busy_us);
        self.log(call.as_str(), news, self.row_clock(call), ended);
        Ok(Some((rows, news)))
    }

    fn log(&self, call: &str, news: ClockChange, clock: Option<StampClock>, now: Clock) {
        let (ClockChange::Learnt | ClockChange::Changed, Some(clock)) = (news, clock) else {
            return;
        };
        let gpu = self.gpu.as_str();
        let shown = clock.call_clock(now);
        let (clock, ahead_ms) = (shown.clock.as_str(), shown.ahead_nanos / 1_000_000);
        match (news, clock) {
            (ClockChange::Changed, _) => tracing::warn!(
                gpu,
                call,
                clock,
                ahead_ms,
                "the clock of a call's timestamps changed"
            ),
            (_, "wall") if shown.ahead_nanos == 0 => {
                tracing::debug!(gpu, call, "timestamps of a call are of the wall clock");
            }
            _ => tracing::info!(
                gpu,
                call,
                clock,
                ahead_ms,
                "timestamps of a call are not of the wall clock"
            ),
        }
    }
}
