//! Answers of a driver, and the windows that they become.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::super::answer::EnginePercents;
use super::*;
use crate::core::model::{Clock, WallTime};

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

fn bracket(now: Reading, list: &[(u64, u32)], rows_of: &[(u32, u64, u32)]) -> WindowReadings {
    WindowReadings {
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
    let torn = WindowReadings {
        before: samples(&[(10_200, 100)]),
        rows: rows(&[(7, 10_200, 100)]),
        after: samples(&[(10_200, 100), (10_400, 100)]),
        asked: BootTime(0),
        clock: at(10_400),
        ..WindowReadings::default()
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
        let is_asked = is_asked_later && windows.is_off_cadence();
        let clock = in_microseconds(now);
        let window = windows.close(&WindowReadings {
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
            .close(&WindowReadings {
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
                _ => windows.close(&WindowReadings { before, rows, later: None, after, asked: BootTime(0), clock, is_clock_doubted: false }),
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
            windows.close(&WindowReadings { before: vec![], rows: rows.clone(), later: None, after: vec![sample], asked: BootTime(boot / 2), clock, is_clock_doubted: false });
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
