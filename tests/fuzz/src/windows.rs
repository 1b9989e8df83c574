//! The windows of a GPU whose driver answers anything: they tile time and add up.

use arbitrary::{Arbitrary, Unstructured};
use gpuacct::core::input::GpuWindow;
use gpuacct::core::model::{BootTime, Clock, GpuUuid, Nanos, UnobservedReason, WallTime};
use gpuacct::sources::gpu::answer::{RawRow, RawSample, WindowReadings};
use gpuacct::sources::gpu::sample_clock::Reading;
use gpuacct::sources::gpu::window::Windows;

const MILLI: u64 = 1_000_000;
/// Steps of one run.
const MOST: usize = 64;

#[derive(Arbitrary)]
struct Sample {
    /// Milliseconds before now, or after where it is negative.
    ago: i16,
    percent: u8,
}

#[derive(Arbitrary)]
struct Row {
    pid: u8,
    ago: i16,
    percent: u8,
    engine: u8,
}

#[derive(Arbitrary)]
enum Step {
    Close {
        before: Vec<Sample>,
        rows: Vec<Row>,
        later: Option<Vec<Row>>,
        after: Vec<Sample>,
    },
    CloseWithoutSamples(Vec<Row>),
    CloseMeasured {
        length: u16,
        ppm: u32,
    },
    Fail(u8),
    /// A sample or a row at any time at all.
    CloseAt(u64, u32),
    Learn(Vec<Sample>),
}

#[derive(Arbitrary)]
struct Tick {
    /// Milliseconds since the tick before.
    after: u16,
    /// Seconds by which the wall clock is set, now and then.
    set: Option<i8>,
    step: Step,
}

fn samples(of: &[Sample], now_us: u64) -> Vec<RawSample> {
    of.iter()
        .map(|sample| RawSample {
            at_us: now_us.saturating_add_signed(-i64::from(sample.ago) * 1_000),
            percent: sample.percent.into(),
        })
        .collect()
}

fn rows(of: &[Row], now_us: u64) -> Vec<RawRow> {
    of.iter()
        .map(|row| {
            let mut raw = RawRow {
                pid: row.pid.into(),
                at_us: now_us.saturating_add_signed(-i64::from(row.ago) * 1_000),
                percent: row.percent.into(),
                ..RawRow::default()
            };
            raw.engines.memory = row.engine.into();
            raw
        })
        .collect()
}

fn check(window: &GpuWindow, through: &mut BootTime, now: BootTime) {
    assert_eq!(window.start, *through, "windows tile time");
    assert!(window.end >= window.start && window.end <= now.max(window.start));
    *through = window.end;
    let unobserved: u64 = window.unobserved.iter().map(|(_, time)| time.0).sum();
    let length = window.end.0 - window.start.0;
    assert_eq!(
        length,
        window.busy.0 + window.idle.0 + unobserved,
        "{window:?}"
    );
    let credits: u64 = window.credits.iter().map(|credit| credit.busy.0).sum();
    assert_eq!(
        window.busy.0,
        credits + window.below_resolution.0 + window.no_row.0,
        "{window:?}"
    );
}

/// An instant as windows want it, where the driver stamps by the wall clock.
fn reading(clock: Clock) -> Reading {
    Reading {
        boot: clock.boot,
        ahead: i128::from(clock.wall.0) - i128::from(clock.boot.0),
    }
}

pub(crate) fn run(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let mut clock = Clock {
        boot: BootTime(1_000 * MILLI),
        wall: WallTime(1_790_000_000_000 * MILLI),
    };
    let mut windows = Windows::new(GpuUuid::from("GPU-fuzz"), reading(clock));
    let mut through = clock.boot;
    for _ in 0..MOST {
        let Ok(Tick { after, set, step }) = Tick::arbitrary(&mut input) else {
            break;
        };
        let asked = clock;
        clock.boot.0 += u64::from(after) * MILLI;
        let set = i64::from(set.unwrap_or(0)) * 1_000_000_000;
        clock.wall.0 = (clock.wall.0 + u64::from(after) * MILLI).saturating_add_signed(set);
        let now_us = clock.wall.0 / 1_000;
        let window = match step {
            Step::Close {
                before,
                rows: found,
                later,
                after,
            } => windows.close(&WindowReadings {
                before: samples(&before, now_us),
                rows: rows(&found, now_us),
                later: later.map(|found| (rows(&found, now_us), reading(clock))),
                after: samples(&after, now_us),
                asked: asked.boot,
                clock: reading(clock),
                is_clock_doubted: now_us.is_multiple_of(2),
            }),
            Step::CloseWithoutSamples(found) => {
                windows.close_without_samples(&rows(&found, now_us), reading(asked), reading(clock))
            }
            Step::CloseMeasured { length, ppm } => {
                let since = clock.boot.0.saturating_sub(u64::from(length) * MILLI);
                windows.close_measured(BootTime(since), reading(clock), ppm)
            }
            Step::Fail(reason) => {
                let reasons = UnobservedReason::ALL;
                windows.fail(reading(clock), reasons[usize::from(reason) % reasons.len()])
            }
            Step::CloseAt(at_us, percent) => windows.close(&WindowReadings {
                before: vec![RawSample { at_us, percent }],
                rows: vec![RawRow {
                    pid: percent,
                    at_us,
                    percent,
                    ..RawRow::default()
                }],
                after: vec![RawSample { at_us, percent }],
                asked: asked.boot,
                clock: reading(clock),
                is_clock_doubted: now_us.is_multiple_of(2),
                ..WindowReadings::default()
            }),
            Step::Learn(found) => {
                windows.learn(&samples(&found, now_us));
                None
            }
        };
        if let Some(window) = window {
            check(&window, &mut through, clock.boot);
        }
        let _ = windows.overdue(clock.boot.plus(Nanos(MILLI)));
    }
}
