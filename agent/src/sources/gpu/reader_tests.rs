//! A GPU's reader against a driver on a simulated clock: a ring of samples whose stamps are of any
//! clock, and whose truth is known.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use super::answer::{RawRow, RawSample};
use super::cursor::Cursor;
use super::driver::{Driver, RowsCall};
use super::fault::NvmlFailure;
use super::reader::{COMPARED_ANEW, DriverAnswer, Reader};
use crate::core::input::{CallClock, ClockKind, GpuWindow};
use crate::core::model::{BootTime, Clock, GpuUuid, UnobservedReason, WallTime};

const MS: u64 = 1_000_000;
const SECOND: u64 = 1_000 * MS;
const SIXTH: u64 = 166_666_667;
/// The boot clock where a test begins, and the wall clock's lead: no multiple of anything.
const START: u64 = 5_000 * SECOND + 12_345_678;
const LEAD: i128 = 1_700_000_000_123_456_789;
/// Samples that the driver keeps.
const RING: usize = 72;

/// A clock that stamps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stamps {
    Wall,
    Boot,
    /// Ahead of the wall clock as it was at the beginning, in milliseconds.
    Ahead(i64),
    /// Another time for each sample.
    Erratic,
}

const CLOCKS: [Stamps; 9] = [
    Stamps::Wall,
    Stamps::Boot,
    Stamps::Ahead(150),
    Stamps::Ahead(-150),
    Stamps::Ahead(2_000),
    Stamps::Ahead(-2_000),
    Stamps::Ahead(8_000),
    Stamps::Ahead(-8_000),
    Stamps::Ahead(15_000),
];

/// A clock from an instant on.
type Since = (u64, Stamps);

/// A driver whose time passes with each call.
struct Simulated {
    boot: Cell<u64>,
    /// The wall clock is set by so much at these instants.
    steps: RefCell<Vec<(u64, i128)>>,
    period: u64,
    /// The device's own samples, where they come on another beat: period and phase.
    device: Option<(u64, u64)>,
    samples: RefCell<Vec<Since>>,
    rows: RefCell<Vec<Since>>,
    older_rows: RefCell<Vec<Since>>,
    /// Stretches in which no samples are taken.
    pauses: RefCell<Vec<(u64, u64)>>,
    /// Stretches in which the device is idle.
    idle: RefCell<Vec<(u64, u64)>>,
    /// From when to when the newer call is empty.
    is_empty: Cell<Option<(u64, u64)>>,
    calls: RefCell<BTreeMap<&'static str, u64>>,
}

impl Simulated {
    fn new(samples: Stamps, rows: Stamps) -> Self {
        Self {
            boot: Cell::new(START),
            steps: RefCell::default(),
            period: SIXTH,
            device: None,
            samples: vec![(0, samples)].into(),
            rows: vec![(0, rows)].into(),
            older_rows: vec![(0, rows)].into(),
            pauses: RefCell::default(),
            idle: RefCell::default(),
            is_empty: Cell::new(None),
            calls: RefCell::default(),
        }
    }

    fn wall(&self, boot: u64) -> i128 {
        let steps = self.steps.borrow();
        let set = steps.iter().filter(|(at, _)| *at <= boot);
        i128::from(boot) + LEAD + set.map(|(_, by)| *by).sum::<i128>()
    }

    /// The stamp of something that was sampled at an instant.
    fn stamp(&self, clocks: &RefCell<Vec<Since>>, boot: u64) -> u64 {
        let clocks = clocks.borrow();
        let newest = clocks.iter().rfind(|(from, _)| *from <= boot);
        let (_, clock) = newest.expect("there is one from the beginning");
        let nanos = match clock {
            Stamps::Wall => self.wall(boot),
            Stamps::Boot => i128::from(boot),
            Stamps::Ahead(ms) => i128::from(boot) + LEAD + i128::from(*ms) * 1_000_000,
            Stamps::Erratic => {
                i128::from(boot) + LEAD + i128::from(hash(boot / SIXTH) % 20) * 1_000_000_000
            }
        };
        u64::try_from(nanos / 1_000).unwrap()
    }

    fn is_in(stretches: &RefCell<Vec<(u64, u64)>>, at: u64) -> bool {
        let stretches = stretches.borrow();
        stretches
            .iter()
            .any(|(from, to)| (*from..*to).contains(&at))
    }

    /// Whom the driver's sample at an instant is credited to: 7 in three of five, 8 in one, or nobody.
    fn owner(&self, at: u64) -> Option<u32> {
        if Self::is_in(&self.idle, at) {
            return None;
        }
        match hash(at / self.period) % 5 {
            0..=2 => Some(7),
            3 => Some(8),
            _ => None,
        }
    }

    fn grid(&self, period: u64, phase: u64, from: u64, to: u64) -> Vec<u64> {
        let first = from.saturating_sub(phase) / period + 1;
        let all = (first..).map(|index| index * period + phase);
        let until = all.take_while(|at| *at <= to);
        until.filter(|at| !Self::is_in(&self.pauses, *at)).collect()
    }

    /// The last samples of a beat that the driver keeps.
    fn kept(&self, period: u64, phase: u64) -> Vec<u64> {
        let last = self.boot.get().saturating_sub(phase) / period;
        let back = (1..=last).rev().map(|index| index * period + phase);
        let taken = back.filter(|at| !Self::is_in(&self.pauses, *at));
        let mut kept: Vec<u64> = taken.take(RING).collect();
        kept.reverse();
        kept
    }

    /// The samples of processes.
    fn ring(&self) -> Vec<u64> {
        self.kept(self.period, 0)
    }

    fn call(&self, name: &'static str) {
        self.boot.set(self.boot.get() + 300_000);
        *self.calls.borrow_mut().entry(name).or_default() += 1;
    }

    /// The truth of a stretch, by pid.
    fn truth(&self, from: u64, to: u64) -> BTreeMap<u32, u64> {
        let mut truth = BTreeMap::new();
        for at in self.grid(self.period, 0, from, to) {
            if let Some(pid) = self.owner(at) {
                *truth.entry(pid).or_default() += self.period;
            }
        }
        truth
    }
}

impl Driver for Simulated {
    fn now(&self) -> Clock {
        let boot = self.boot.get();
        Clock {
            boot: BootTime(boot),
            wall: WallTime(u64::try_from(self.wall(boot)).unwrap()),
        }
    }

    fn samples(&self, since_us: u64) -> Result<Option<Vec<RawSample>>, NvmlFailure> {
        self.call("samples");
        let busy = |from, to| {
            let all = self.grid(self.period, 0, from, to);
            let busy = all.iter().filter(|at| self.owner(**at).is_some()).count();
            u32::try_from(busy * 100 / all.len().max(1)).unwrap()
        };
        let times = match self.device {
            None => self.ring(),
            Some((period, phase)) => self.kept(period, phase),
        };
        let length = self.device.map_or(1, |(period, _)| period);
        let all = times.into_iter().map(|at| RawSample {
            at_us: self.stamp(&self.samples, at),
            percent: busy(at - length, at),
        });
        Ok(Some(all.filter(|sample| sample.at_us > since_us).collect()))
    }

    fn has(&self, _: RowsCall) -> bool {
        true
    }

    fn rows(&self, call: RowsCall, since_us: u64) -> Result<Option<Vec<RawRow>>, NvmlFailure> {
        self.call(call.as_str());
        let now = self.boot.get();
        let clocks = match call {
            RowsCall::OfAllEngines => &self.rows,
            RowsCall::Older => &self.older_rows,
        };
        let is_empty = self.is_empty.get();
        if call == RowsCall::OfAllEngines
            && is_empty.is_some_and(|(from, to)| (from..to).contains(&now))
        {
            return Ok(Some(Vec::new()));
        }
        let stamped = self
            .ring()
            .into_iter()
            .map(|at| (at, self.stamp(clocks, at)));
        let newer: Vec<(u64, u64)> = stamped.filter(|(_, stamp)| *stamp > since_us).collect();
        let mut rows = BTreeMap::<u32, (u64, u32)>::new();
        for (at, stamp) in &newer {
            if let Some(pid) = self.owner(*at) {
                let row = rows.entry(pid).or_default();
                *row = (*stamp, row.1 + 100);
            }
        }
        let count = u32::try_from(newer.len()).unwrap();
        let rows = rows.into_iter().map(|(pid, (at_us, sum))| RawRow {
            pid,
            at_us,
            percent: sum / count,
            ..RawRow::default()
        });
        Ok(Some(rows.collect()))
    }
}

/// splitmix64's finaliser.
const fn hash(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn gpu() -> GpuUuid {
    "GPU-test".into()
}

/// What was booked in a run.
#[derive(Debug, Default)]
struct Booked {
    from: u64,
    to: u64,
    busy: u64,
    by_pid: BTreeMap<u32, u64>,
    no_row: u64,
    unobserved: BTreeMap<UnobservedReason, u64>,
    last: Option<GpuWindow>,
}

impl Booked {
    fn take(&mut self, window: GpuWindow) {
        if self.last.is_none() {
            self.from = window.start.0;
        } else {
            assert_eq!(self.to, window.start.0, "windows tile: {window:?}");
        }
        self.to = window.end.0;
        self.busy += window.busy.0;
        self.no_row += window.no_row.0;
        for credit in &window.credits {
            *self.by_pid.entry(credit.pid.0).or_default() += credit.busy.0;
        }
        for (reason, time) in &window.unobserved {
            *self.unobserved.entry(*reason).or_default() += time.0;
        }
        self.last = Some(window);
    }

    fn lost(&self) -> u64 {
        self.unobserved.values().sum()
    }

    fn clocks(&self) -> (CallClock, CallClock, u64) {
        let shown = self.last.as_ref().and_then(|window| window.clocks.as_ref());
        let shown = shown.expect("what is stamped has clocks");
        (shown.samples, shown.rows, shown.changes)
    }
}

/// Polls at about each half second, for some seconds.
fn poll(reader: &mut Reader, driver: &Simulated, seconds: u64, booked: &mut Booked) {
    let end = driver.boot.get() + seconds * SECOND;
    let mut next = driver.boot.get();
    while driver.boot.get() < end {
        let asked = reader.ask(driver).unwrap_or(DriverAnswer::Unsupported);
        let window = reader.close(asked, driver.now());
        window.into_iter().for_each(|window| booked.take(window));
        next += 500 * MS + hash(next) % (30 * MS);
        driver.boot.set(driver.boot.get().max(next));
    }
}

fn run(driver: &Simulated, seconds: u64) -> Booked {
    let mut booked = Booked::default();
    let mut reader = Reader::first_sight(&gpu(), driver, None);
    poll(&mut reader, driver, seconds, &mut booked);
    booked
}

/// Whether what was booked is true but for some seconds.
fn assert_true(what: &str, driver: &Simulated, booked: &Booked, lost: u64, off: u64) {
    if let Some(fault) = wrong(driver, booked, lost, off) {
        panic!("{what}: {fault}");
    }
}

fn wrong(driver: &Simulated, booked: &Booked, lost: u64, off: u64) -> Option<String> {
    let truth = driver.truth(booked.from, booked.to);
    let busy: u64 = truth.values().sum();
    let is_off = |(pid, truth): (&u32, &u64)| {
        booked
            .by_pid
            .get(pid)
            .copied()
            .unwrap_or(0)
            .abs_diff(*truth)
            > off
    };
    let is_wrong = booked.lost() > lost
        || booked.busy.abs_diff(busy) > off
        || truth.iter().any(is_off)
        || booked.by_pid.keys().any(|pid| !truth.contains_key(pid));
    is_wrong.then(|| {
        let ms = |time: &u64| time / MS;
        let by_pid = |of: &BTreeMap<u32, u64>| -> Vec<(u32, u64)> {
            of.iter().map(|(pid, time)| (*pid, ms(time))).collect()
        };
        format!(
            "booked {:?}, true {:?}, busy {} of {busy}, no row {}, unobserved {:?}, clocks {:?}",
            by_pid(&booked.by_pid),
            by_pid(&truth),
            booked.busy,
            ms(&booked.no_row),
            booked.unobserved,
            booked.last.as_ref().and_then(|last| last.clocks.as_ref()),
        )
    })
}

#[test]
fn whatever_clock_a_call_stamps_by_its_time_is_observed_and_owned() {
    let mut faults = Vec::new();
    for period in [SIXTH, SECOND] {
        for samples in CLOCKS {
            for rows in CLOCKS {
                let driver = Simulated {
                    period,
                    ..Simulated::new(samples, rows)
                };
                let booked = run(&driver, 40);
                let what = format!("period {period}, samples {samples:?}, rows {rows:?}");
                // Half of a second at each end, and a sample each second may be on the other side.
                let off = if period == SIXTH { SECOND } else { 3 * SECOND };
                let fault = wrong(&driver, &booked, 3 * SECOND, off);
                faults.extend(fault.map(|fault| format!("{what}: {fault}")));
            }
        }
    }
    assert!(
        faults.is_empty(),
        "{} faults:\n{}",
        faults.len(),
        faults.join("\n")
    );
}

#[test]
fn a_device_on_another_beat_is_owned_by_whatever_clocks() {
    let mut faults = Vec::new();
    for samples in CLOCKS {
        for rows in CLOCKS {
            let driver = Simulated {
                device: Some((SECOND, 70 * MS)),
                ..Simulated::new(samples, rows)
            };
            let booked = run(&driver, 40);
            let fault = wrong(&driver, &booked, 3 * SECOND, 3 * SECOND);
            faults
                .extend(fault.map(|fault| format!("samples {samples:?}, rows {rows:?}: {fault}")));
        }
    }
    assert!(
        faults.is_empty(),
        "{} faults:\n{}",
        faults.len(),
        faults.join("\n")
    );
}

#[test]
fn an_old_sample_of_a_driver_that_pauses_is_no_clock_that_is_behind() {
    for clock in CLOCKS {
        let driver = Simulated::new(clock, clock);
        // It took its last sample 7 s before the agent came, and takes the next one 20 s after.
        let wakes = START + 20 * SECOND;
        driver.pauses.borrow_mut().push((START - 7 * SECOND, wakes));
        driver.idle.borrow_mut().push((0, wakes));
        let booked = run(&driver, 60);
        let paused = booked.unobserved[&UnobservedReason::SampleGap];
        let what = format!("{clock:?}: {booked:?}");
        assert!(paused.abs_diff(20 * SECOND) <= SECOND, "{what}");
        assert_eq!(booked.lost(), paused, "{what}");
        assert_true(&what, &driver, &booked, 21 * SECOND, SECOND);
    }
}

#[test]
fn a_driver_that_pauses_again_and_again_loses_only_its_pauses() {
    for clock in CLOCKS {
        let driver = Simulated::new(clock, Stamps::Wall);
        for round in 0..4 {
            let from = START + (10 + round * 30) * SECOND;
            let pause = (from, from + 15 * SECOND);
            driver.pauses.borrow_mut().push(pause);
            driver.idle.borrow_mut().push(pause);
        }
        let booked = run(&driver, 120);
        let what = format!("{clock:?}: {booked:?}");
        let paused = booked.unobserved[&UnobservedReason::SampleGap];
        assert_eq!(booked.lost(), paused, "{what}");
        assert_true(&what, &driver, &booked, 62 * SECOND, 2 * SECOND);
        assert_eq!(booked.clocks().2, 0, "a pause is no change: {what}");
    }
}

#[test]
fn an_agent_that_is_started_again_loses_nothing_on_any_clock() {
    for clock in CLOCKS {
        let driver = Simulated::new(clock, clock);
        let mut booked = Booked::default();
        let mut reader = Reader::first_sight(&gpu(), &driver, None);
        poll(&mut reader, &driver, 20, &mut booked);
        let then = driver.now();
        // For as long as the ring reaches back, with room for what the next one has to learn.
        driver.boot.set(driver.boot.get() + 6 * SECOND);
        let cursor = Cursor {
            gpu: gpu(),
            end: BootTime(booked.to),
            then,
            began: driver.now().boot,
        };
        let mut reader = Reader::first_sight(&gpu(), &driver, Some(&cursor));
        poll(&mut reader, &driver, 20, &mut booked);
        assert_true(&format!("{clock:?}"), &driver, &booked, SECOND / 2, SECOND);
    }
}

#[test]
fn an_agent_that_comes_back_too_late_says_what_it_lost() {
    for (clock, is_asleep) in [
        (Stamps::Wall, false),
        (Stamps::Ahead(-8_000), false),
        (Stamps::Wall, true),
        (Stamps::Boot, true),
    ] {
        let driver = Simulated::new(clock, clock);
        let mut booked = Booked::default();
        let mut reader = Reader::first_sight(&gpu(), &driver, None);
        poll(&mut reader, &driver, 20, &mut booked);
        let then = driver.now();
        driver.boot.set(driver.boot.get() + 60 * SECOND);
        if is_asleep {
            // The driver paused two seconds after the other agent stopped, and goes on doing so.
            driver
                .pauses
                .borrow_mut()
                .push((then.boot.0 + 2 * SECOND, u64::MAX));
        }
        let cursor = Cursor {
            gpu: gpu(),
            end: BootTime(booked.to),
            then,
            began: driver.now().boot,
        };
        let mut reader = Reader::first_sight(&gpu(), &driver, Some(&cursor));
        poll(&mut reader, &driver, 20, &mut booked);
        let what = format!("{clock:?}, asleep: {is_asleep}, {booked:?}");
        let down = booked.unobserved.get(&UnobservedReason::AgentDown);
        let gap = booked.unobserved.get(&UnobservedReason::SampleGap);
        if is_asleep {
            // What the ring still has is billed, the rest is the driver's pause.
            assert!(gap.is_some_and(|gap| *gap > 70 * SECOND), "{what}");
            assert_true(&what, &driver, &booked, 90 * SECOND, SECOND);
        } else {
            // 60 s and no more than a window, of which the ring has 12.
            let down = *down.expect(&what);
            assert!((47 * SECOND..=50 * SECOND).contains(&down), "{what}");
            assert_eq!(booked.lost(), down, "{what}");
        }
    }
}

#[test]
fn samples_on_another_clock_do_not_step_with_the_wall_clock() {
    for clock in [Stamps::Boot, Stamps::Ahead(-8_000), Stamps::Ahead(150)] {
        for by in [3_600, -3_600, 2, -2] {
            let driver = Simulated::new(clock, clock);
            let step = (START + 20 * SECOND, by * 1_000_000_000);
            driver.steps.borrow_mut().push(step);
            let booked = run(&driver, 60);
            let what = format!("{clock:?} {by}: {booked:?}");
            assert_true(&what, &driver, &booked, 0, SECOND);
            assert_eq!(booked.clocks().2, 0, "{what}");
        }
    }
}

#[test]
fn samples_on_the_wall_clock_lose_a_window_to_its_step() {
    for (by, most) in [(3_600, 2), (2, 2), (-2, 4), (-3_600, 14)] {
        let driver = Simulated::new(Stamps::Wall, Stamps::Wall);
        let step = (START + 20 * SECOND, by * 1_000_000_000);
        driver.steps.borrow_mut().push(step);
        let booked = run(&driver, 60);
        let what = format!("{by}: {booked:?}");
        let stepped = booked.unobserved[&UnobservedReason::ClockStep];
        assert_eq!(booked.lost(), stepped, "{what}");
        assert!(stepped <= most * SECOND, "{what}");
    }
}

#[test]
fn rows_on_the_wall_clock_follow_it_beside_samples_that_do_not() {
    for by in [3_600, 2] {
        let driver = Simulated::new(Stamps::Boot, Stamps::Wall);
        let step = (START + 20 * SECOND, by * 1_000_000_000);
        driver.steps.borrow_mut().push(step);
        let booked = run(&driver, 60);
        assert_true(&format!("{by}"), &driver, &booked, 0, 2 * SECOND);
    }
}

#[test]
fn a_driver_s_clock_that_changes_is_noticed_and_learnt_anew() {
    // By no whole number of periods: else the stamps after the change would be those before it.
    for (from, to) in [
        (Stamps::Wall, Stamps::Ahead(7_937)),
        (Stamps::Ahead(7_937), Stamps::Wall),
        (Stamps::Wall, Stamps::Boot),
        (Stamps::Boot, Stamps::Wall),
        (Stamps::Ahead(-1_937), Stamps::Ahead(2_111)),
        (Stamps::Ahead(2_111), Stamps::Ahead(-1_937)),
    ] {
        let driver = Simulated::new(from, from);
        let change = (START + 20 * SECOND, to);
        driver.samples.borrow_mut().push(change);
        driver.rows.borrow_mut().push(change);
        let booked = run(&driver, 60);
        let what = format!("{from:?} to {to:?}: {booked:?}");
        // A clock that was set back leaves stamps of the time ahead, up to a ring's length of them.
        assert!(booked.lost() <= 15 * SECOND, "{what}");
        assert!(
            !booked.unobserved.contains_key(&UnobservedReason::SampleGap),
            "{what}"
        );
        let (samples, rows, changes) = booked.clocks();
        for found in [samples, rows] {
            let expected = shown(to);
            assert_eq!(found.clock, expected.clock, "{what}");
            let off = found.ahead_nanos.abs_diff(expected.ahead_nanos);
            assert!(off <= SIXTH, "late by a period at most: {what}");
        }
        assert!((1..=4).contains(&changes), "{what}");
    }
}

/// What is shown of a clock.
fn shown(clock: Stamps) -> CallClock {
    let (clock, ms) = match clock {
        Stamps::Wall | Stamps::Erratic => (ClockKind::Wall, 0),
        Stamps::Boot => (ClockKind::Boot, 0),
        Stamps::Ahead(ms) => (ClockKind::Wall, ms),
    };
    CallClock {
        clock,
        ahead_nanos: ms * 1_000_000,
    }
}

#[test]
fn stamps_of_no_clock_are_told_as_such_and_are_no_pause_of_the_driver() {
    let gap = UnobservedReason::SampleGap;
    let unknown = |booked: &Booked| booked.unobserved[&UnobservedReason::UnknownSampleClock];
    let driver = Simulated::new(Stamps::Erratic, Stamps::Erratic);
    let booked = run(&driver, 60);
    assert!(!booked.unobserved.contains_key(&gap), "{booked:?}");
    assert!(unknown(&booked) >= 30 * SECOND, "{booked:?}");

    // A clock that was known, and is none any more.
    let driver = Simulated::new(Stamps::Wall, Stamps::Wall);
    let change = (START + 20 * SECOND, Stamps::Erratic);
    driver.samples.borrow_mut().push(change);
    let booked = run(&driver, 60);
    assert!(!booked.unobserved.contains_key(&gap), "{booked:?}");
    assert!(unknown(&booked) >= 20 * SECOND, "{booked:?}");
}

#[test]
fn a_call_that_succeeds_and_is_always_empty_gives_way_to_the_older_one() {
    for rows in CLOCKS {
        let driver = Simulated::new(Stamps::Wall, Stamps::Wall);
        driver.older_rows.borrow_mut()[0].1 = rows;
        driver.is_empty.set(Some((0, u64::MAX)));
        let booked = run(&driver, 40);
        let what = format!("{rows:?}: {booked:?}");
        assert_true(&what, &driver, &booked, 0, SECOND);
        let shown = booked.last.as_ref().and_then(|last| last.clocks.as_ref());
        assert_eq!(
            shown.map(|shown| &*shown.rows_call),
            Some(RowsCall::Older.as_str())
        );
        // It is not asked at each window any more.
        let calls = driver.calls.borrow();
        assert!(calls[RowsCall::OfAllEngines.as_str()] < 12, "{calls:?}");
    }
}

#[test]
fn a_call_that_has_rows_again_is_used_again() {
    let driver = Simulated::new(Stamps::Wall, Stamps::Wall);
    driver
        .is_empty
        .set(Some((START + 20 * SECOND, START + 60 * SECOND)));
    let mut booked = Booked::default();
    let mut reader = Reader::first_sight(&gpu(), &driver, None);
    poll(&mut reader, &driver, 60, &mut booked);
    let call = |booked: &Booked| {
        let shown = booked.last.as_ref().and_then(|last| last.clocks.as_ref());
        shown.map(|shown| shown.rows_call.to_string())
    };
    assert_eq!(call(&booked).as_deref(), Some(RowsCall::Older.as_str()));
    poll(&mut reader, &driver, COMPARED_ANEW.0 / SECOND, &mut booked);
    assert_eq!(
        call(&booked).as_deref(),
        Some(RowsCall::OfAllEngines.as_str())
    );
    assert_true("both", &driver, &booked, 0, 2 * SECOND);
}

#[test]
fn a_device_that_nobody_is_seen_on_is_asked_about_now_and_then() {
    // The rows that the driver has are of nobody that it names.
    let driver = Simulated::new(Stamps::Wall, Stamps::Wall);
    driver.is_empty.set(Some((0, u64::MAX)));
    driver.older_rows.borrow_mut()[0].1 = Stamps::Wall;
    driver.idle.borrow_mut().push((0, u64::MAX));
    let booked = run(&driver, 40);
    assert_eq!((booked.busy, booked.lost()), (0, 0), "{booked:?}");
    let shown = booked.last.as_ref().and_then(|last| last.clocks.as_ref());
    let call = shown.map(|shown| shown.rows_call.to_string());
    assert_eq!(
        call.as_deref(),
        Some(RowsCall::OfAllEngines.as_str()),
        "idle is not empty"
    );
}

#[test]
fn what_is_known_asks_no_more_than_before() {
    let driver = Simulated::new(Stamps::Wall, Stamps::Wall);
    let booked = run(&driver, 60);
    let polls = 60 * 2;
    let calls = driver.calls.borrow();
    assert!(calls["samples"] <= polls * 2 + 10, "{calls:?} {booked:?}");
    assert!(
        calls[RowsCall::OfAllEngines.as_str()] <= polls + 20,
        "{calls:?}"
    );
    assert!(calls[RowsCall::Older.as_str()] <= 5, "{calls:?}");
}
