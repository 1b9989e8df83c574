//! Where a window lies beside what is booked of its GPU already.
//!
//! The windows of a GPU tile its time: each begins where the one before it ended. The sources
//! ensure that. If a window does not, this module decides what is booked, so that no time is booked
//! twice and no time is left out without being counted.
//!
//! Refused: guessing which part of a window its busy time lies in. A window that is cut keeps the same
//! share of each of its amounts.
//!
//! Units: integer nanoseconds.

use crate::amounts::{Millijoules, parts};
use crate::input::GpuWindow;
use crate::model::{BootTime, Nanos};
use crate::owners::Charge;

/// How many windows did not begin where the one before them ended, since the agent began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TilingRepairs {
    /// Windows that began later. The gap was booked as not observed.
    pub gaps: u64,
    /// Windows that began earlier and were cut.
    pub overlaps: u64,
    /// Windows that ended no later than what was booked already. Nothing of them was booked.
    pub refused: u64,
}

/// Position of a window relative to the booked time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WindowPosition {
    /// It begins where the one before it ended, or is the first.
    Next,
    /// It begins later than the one before it ended.
    AfterGap {
        /// Where that ended.
        from: BootTime,
    },
    /// It begins before the one before it ended, and ends after that.
    Overlapping {
        /// Where the one before it ended.
        from: BootTime,
    },
    /// All of it is booked already.
    Past,
}

impl WindowPosition {
    /// Where `window` lies if its GPU's time is booked up to `through`.
    pub(super) fn of(window: &GpuWindow, through: Option<BootTime>) -> Self {
        match through {
            Some(from) if window.start > from => Self::AfterGap { from },
            Some(from) if window.start < from && window.end > from => Self::Overlapping { from },
            Some(from) if window.start < from => Self::Past,
            _ => Self::Next,
        }
    }
}

/// Cuts what lies before `from` off a window and its charges. Each amount keeps the share that is left
/// of the time. A balance that held before holds after, and a difference stays what it was.
pub(super) fn cut(window: &mut GpuWindow, charges: &mut [Charge], from: BootTime) {
    let before = window.end.since(window.start);
    window.start = from.clamp(window.start, window.end.max(window.start));
    let after = window.end.since(window.start);
    let share = |amount: u64| {
        let share = u128::from(amount) * u128::from(after.0);
        let share = share.checked_div(u128::from(before.0)).unwrap_or(0);
        u64::try_from(share).unwrap_or(u64::MAX)
    };

    let busy_before = window.busy;
    let unobserved = window.unobserved.iter().map(|(_, time)| *time);
    let times: Vec<Nanos> = [window.busy, window.idle]
        .into_iter()
        .chain(unobserved)
        .collect();
    let sum: Nanos = times.iter().copied().sum();
    let mut kept = parts(sum.minus(before.minus(after)).0, &times)
        .into_iter()
        .map(Nanos);
    window.busy = kept.next().unwrap_or_default();
    window.idle = kept.next().unwrap_or_default();
    for ((_, time), kept) in window.unobserved.iter_mut().zip(kept) {
        *time = kept;
    }
    window.energy = window.energy.map(|energy| Millijoules(share(energy.0)));

    let times: Vec<Nanos> = charges.iter().map(|charge| charge.busy).collect();
    let sum: Nanos = times.iter().copied().sum();
    let kept = parts(sum.minus(busy_before.minus(window.busy)).0, &times);
    for (charge, kept) in charges.iter_mut().zip(kept) {
        charge.busy = Nanos(kept);
        charge.engines = charge.engines.map(|time| Nanos(share(time.0)));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::amounts::Engines;
    use crate::input::WindowQuality;
    use crate::model::{GpuUuid, Pid, UnattributedReason, UnobservedReason};

    fn window(start: u64, busy: u64, idle: u64, unobserved: u64) -> GpuWindow {
        GpuWindow {
            gpu: GpuUuid::from("GPU-0"),
            start: BootTime(start),
            end: BootTime(start + busy + idle + unobserved),
            busy: Nanos(busy),
            idle: Nanos(idle),
            unobserved: vec![(UnobservedReason::SampleGap, Nanos(unobserved))],
            credits: vec![],
            below_resolution: Nanos::ZERO,
            no_row: Nanos::ZERO,
            engines: vec![],
            energy: Some(Millijoules(1_000)),
            quality: WindowQuality::default(),
            clocks: None,
        }
    }

    fn charge(busy: u64) -> Charge {
        Charge {
            pid: Some(Pid(1)),
            process: None,
            owner: Err(UnattributedReason::UnknownPid),
            busy: Nanos(busy),
            engines: Engines {
                encoder: Nanos(busy),
                ..Engines::default()
            },
        }
    }

    #[test]
    fn windows_lie_next_to_after_across_or_before_what_is_booked() {
        let from = BootTime(100);
        for (start, length, booked, expected) in [
            (50, 60, None, WindowPosition::Next),
            (100, 60, Some(from), WindowPosition::Next),
            (100, 0, Some(from), WindowPosition::Next),
            (101, 60, Some(from), WindowPosition::AfterGap { from }),
            (99, 2, Some(from), WindowPosition::Overlapping { from }),
            (40, 60, Some(from), WindowPosition::Past),
            (40, 20, Some(from), WindowPosition::Past),
        ] {
            let window = window(start, 0, length, 0);
            assert_eq!(WindowPosition::of(&window, booked), expected, "{window:?}");
        }
    }

    #[test]
    fn a_window_keeps_the_share_of_its_amounts_that_is_left_of_its_time() {
        let mut cut_window = window(0, 500, 300, 200);
        let mut charges = [charge(400), charge(100)];
        cut(&mut cut_window, &mut charges, BootTime(750));
        let expected = GpuWindow {
            end: BootTime(1_000),
            energy: Some(Millijoules(250)),
            ..window(750, 125, 75, 50)
        };
        assert_eq!(cut_window, expected);
        assert_eq!(charges, [charge(100), charge(25)]);
    }

    proptest! {
        #[test]
        fn what_balanced_balances_after_a_cut(
            parts in prop::collection::vec(0_u64..3_000_000_000, 3),
            weights in prop::collection::vec(0_u64..1_000, 1..6),
            at in 0_u64..1_000,
            off in 0_u64..2,
        ) {
            let (busy, idle, unobserved) = (parts[0], parts[1], parts[2]);
            let mut cut_window = window(7, busy, idle, unobserved);
            // A window that lacks a nanosecond lacks it still.
            cut_window.idle = Nanos(idle.saturating_sub(off));
            let off = idle - cut_window.idle.0;
            let weights: Vec<Nanos> = weights.into_iter().map(Nanos).collect();
            let charged = super::parts(busy, &weights);
            let sum: u64 = charged.iter().sum();
            let mut charges: Vec<Charge> = charged.into_iter().map(charge).collect();
            let elapsed = busy + idle + unobserved;
            cut(&mut cut_window, &mut charges, BootTime(7 + elapsed * at / 1_000));
            let left = cut_window.end.since(cut_window.start).0;
            let unobserved = cut_window.unobserved[0].1.0;
            prop_assume!(left > off);
            prop_assert_eq!(cut_window.busy.0 + cut_window.idle.0 + unobserved + off, left);
            let kept: u64 = charges.iter().map(|charge| charge.busy.0).sum();
            prop_assert_eq!(kept, if sum == busy { cut_window.busy.0 } else { kept });
            for charge in charges {
                prop_assert!(charge.engines.encoder.0 <= left);
            }
        }
    }
}
