//! The clock by which a driver stamps what it samples, learnt for one call on one device.
//!
//! `nvml.h` says that timestamps are microseconds of the wall clock. Some machines (NVIDIA's GB10)
//! stamp samples with the boot clock, others are ahead or behind by a constant. Two calls about one
//! device need not use one clock. So the only assumption about a call's clock is that it runs at
//! normal speed.
//!
//! A stamp that an answer has, and that the answer before it did not have, belongs to a sample that
//! was taken between the beginning of the earlier call and the end of the later one. That bounds the
//! distance between the stamps' clock and the agent's clocks from both sides. The age of the newest
//! sample bounds nothing: a driver may pause while its GPU is idle, and an old stamp on the right
//! clock looks like a new one on a clock that is behind.
//!
//! - The bounds of the last [`KEPT`] answers are intersected. The wall clock is taken where it is
//!   within them, else the boot clock, else the lower bound: with it no sample is newer than the
//!   answer that has it, and it grows towards the truth with each fresher sample. It is late by the
//!   age of the freshest sample seen, at most one period.
//! - An answer whose new stamps are all outside the bounds is a doubt. A second one that agrees with
//!   it is a change of the clock; one is taken for junk.
//! - A distance that is not a known clock's is held against the boot clock, which is never set.
//!
//! Refused: taking the period or the phase of the samples for evidence. A grid of samples that is
//! shifted by one period is the same grid.
//!
//! Pure. Units: nanoseconds; stamps in microseconds, as NVML gives them.

use std::collections::{BTreeSet, VecDeque};

use super::spacing::RING_SPAN;
use crate::core::input::{CallClock, ClockKind};
use crate::core::model::{BootTime, Clock, Nanos};

/// A change of a clock's distance from the boot clock that is no slewing any more.
pub const CLOCK_STEP: Nanos = Nanos::from_millis(100);
/// Answers of which the bounds are kept. At one answer a second, a clock that drifts by a thousandth
/// moves by no more than the bounds' usual width meanwhile.
const KEPT: usize = 64;
/// How far stamps may be off the clock that they are read from, in nanoseconds: the driver reads it by
/// itself, and this agent reads two clocks one after the other.
const SLACK: i128 = 5_000_000;
/// Stamps that are remembered at least; rings hold 72 to 100 samples.
const REMEMBERED: usize = 1_024;

/// One instant on the boot clock and on the clock of a call's stamps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// The boot clock.
    pub boot: BootTime,
    /// How far the stamps' clock is ahead of the boot clock, in nanoseconds.
    pub ahead: i128,
}

impl Reading {
    /// The stamp of this instant, in microseconds.
    #[must_use]
    pub fn stamp_us(self) -> u64 {
        self.stamp_of(self.boot)
    }

    /// The stamp of another instant, in microseconds.
    #[must_use]
    pub fn stamp_of(self, at: BootTime) -> u64 {
        in_range((i128::from(at.0) + self.ahead) / 1_000)
    }

    /// When something was stamped.
    #[must_use]
    pub fn boot_of(self, stamp_us: u64) -> BootTime {
        BootTime(in_range(i128::from(stamp_us) * 1_000 - self.ahead))
    }
}

impl From<Clock> for Reading {
    /// Stamps of the wall clock.
    fn from(clock: Clock) -> Self {
        Self {
            boot: clock.boot,
            ahead: distance(clock),
        }
    }
}

/// How far the wall clock is ahead of the boot clock.
const fn distance(clock: Clock) -> i128 {
    clock.wall.0 as i128 - clock.boot.0 as i128
}

fn in_range(value: i128) -> u64 {
    u64::try_from(value.max(0)).unwrap_or(u64::MAX)
}

/// A clock that stamps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StampClock {
    Wall,
    Boot,
    /// Neither: so far ahead of the boot clock.
    Shifted(i128),
}

impl StampClock {
    pub(super) fn reading(self, now: Clock) -> Reading {
        Reading {
            boot: now.boot,
            ahead: match self {
                Self::Wall => distance(now),
                Self::Boot => 0,
                Self::Shifted(ahead) => ahead,
            },
        }
    }

    /// As it is shown: a known clock, and how far the stamps are ahead of it.
    pub(super) fn call_clock(self, now: Clock) -> CallClock {
        let narrow = |ahead: i128| {
            let bounded = ahead.clamp(i128::from(i64::MIN), i128::from(i64::MAX));
            i64::try_from(bounded).unwrap_or(i64::MAX)
        };
        let (kind, ahead) = match self {
            Self::Wall => (ClockKind::Wall, 0),
            Self::Boot => (ClockKind::Boot, 0),
            Self::Shifted(ahead) => {
                let of_wall = ahead - distance(now);
                if of_wall.abs() <= ahead.abs() {
                    (ClockKind::Wall, of_wall)
                } else {
                    (ClockKind::Boot, ahead)
                }
            }
        };
        CallClock {
            clock: kind,
            ahead_nanos: narrow(ahead),
        }
    }
}

/// One answer of a call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answered<'a> {
    /// Only stamps newer than this were asked for; 0 asks for all that the driver keeps.
    pub(super) since_us: u64,
    /// The stamps that can be a sample's, in any order.
    pub(super) stamps: &'a [u64],
    /// Before the call.
    pub(super) started: Clock,
    /// After it.
    pub(super) ended: Clock,
}

/// Effect of an answer on the known clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClockChange {
    /// Nothing, or something more exact.
    None,
    /// The clock is known now.
    Learnt,
    /// The clock is another one now, or was set.
    Changed,
}

/// From where to where a distance can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    low: i128,
    high: i128,
}

impl Span {
    const ALL: Self = Self {
        low: i128::MIN / 4,
        high: i128::MAX / 4,
    };

    /// Where the distance can be if stamps from `first_us` to `last_us` are of samples taken after
    /// `from` and up to `to`.
    fn new(first_us: u64, last_us: u64, from: i128, to: i128) -> Self {
        Self {
            low: i128::from(last_us) * 1_000 - to,
            high: i128::from(first_us) * 1_000 - from,
        }
    }

    fn intersection(self, other: Self) -> Self {
        Self {
            low: self.low.max(other.low),
            high: self.high.min(other.high),
        }
    }

    const fn is_possible(self) -> bool {
        self.low <= self.high + SLACK
    }

    fn has(self, distance: i128) -> bool {
        (self.low - SLACK..=self.high + SLACK).contains(&distance)
    }
}

/// Bounds of the distance between the stamps' clock and each of the agent's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bounds {
    of_boot: Span,
    of_wall: Span,
}

impl Bounds {
    const ALL: Self = Self {
        of_boot: Span::ALL,
        of_wall: Span::ALL,
    };

    /// Bounds that stamps from `first_us` to `last_us` give, if they were taken after `from` and up
    /// to `to`.
    fn new(first_us: u64, last_us: u64, from: BootTime, to: Clock) -> Self {
        let (from, boot) = (i128::from(from.0), i128::from(to.boot.0));
        let lead = distance(to);
        Self {
            of_boot: Span::new(first_us, last_us, from, boot),
            of_wall: Span::new(first_us, last_us, from + lead, boot + lead),
        }
    }

    fn intersection(self, other: Self) -> Self {
        Self {
            of_boot: self.of_boot.intersection(other.of_boot),
            of_wall: self.of_wall.intersection(other.of_wall),
        }
    }

    /// Whether a clock is within them, one that follows the boot clock or one that follows the wall
    /// clock.
    const fn is_possible(self) -> bool {
        self.of_boot.is_possible() || self.of_wall.is_possible()
    }
}

/// What is known of the clock of one call on one device.
#[derive(Clone, Debug, Default)]
pub(super) struct SampleClock {
    clock: Option<StampClock>,
    bounds: VecDeque<Bounds>,
    /// Bounds from new stamps that contradict the present ones.
    suspect: Option<Bounds>,
    /// Whether the last new stamps contradicted the bounds, or each other.
    is_doubted: bool,
    /// When a new stamp did so last.
    misfit: Option<BootTime>,
    /// Stamps that were seen, the latest last, and the same in order.
    seen: VecDeque<u64>,
    known: BTreeSet<u64>,
    /// Everything that was sampled before this instant and is still kept has been seen.
    complete_at: Option<BootTime>,
    /// When there was a new stamp last.
    advanced: Option<BootTime>,
    /// The wall clock's distance at the last answer.
    distance: Option<i128>,
    /// The clock became more exact since it was last asked.
    is_refined: bool,
    changes: u64,
}

impl SampleClock {
    /// The clock, where it is known.
    pub(super) const fn clock(&self) -> Option<StampClock> {
        self.clock
    }

    /// Both clocks now; none as long as the stamps' one is not known.
    pub(super) fn reading(&self, now: Clock) -> Option<Reading> {
        self.clock.map(|clock| clock.reading(now))
    }

    /// How often the clock was found to be another one.
    pub(super) const fn changes(&self) -> u64 {
        self.changes
    }

    /// Whether a sample that was taken after an instant may have a stamp that cannot be dated. As
    /// long as the driver keeps such a sample, missing samples need not be a pause.
    pub(super) fn is_doubted_since(&self, at: BootTime) -> bool {
        let is_kept = |misfit: BootTime| misfit.plus(RING_SPAN) > at;
        self.is_doubted || self.misfit.is_some_and(is_kept)
    }

    /// Whether there was a new stamp after an instant.
    pub(super) fn has_advanced_since(&self, at: BootTime) -> bool {
        self.advanced.is_some_and(|advanced| advanced > at)
    }

    /// Whether a stamp was seen that is this one, but for a jitter.
    pub(super) fn has_seen(&self, stamp_us: u64, jitter_us: u64) -> bool {
        let from = stamp_us.saturating_sub(jitter_us);
        let near = from..=stamp_us.saturating_add(jitter_us);
        self.known.range(near).next().is_some()
    }

    /// Whether this clock can be so far ahead of another call's.
    pub(super) fn can_be_ahead(&self, other: &Self, ahead: i128) -> bool {
        let (own, other) = (self.intersection(), other.intersection());
        let is_possible = |own: Span, other: Span| {
            let moved = Span {
                low: other.low + ahead,
                high: other.high + ahead,
            };
            own.intersection(moved).is_possible()
        };
        is_possible(own.of_boot, other.of_boot) || is_possible(own.of_wall, other.of_wall)
    }

    /// The stamp seen that is nearest.
    pub(super) fn nearest(&self, stamp_us: u64) -> Option<u64> {
        let before = self.known.range(..=stamp_us).next_back();
        let after = self.known.range(stamp_us..).next();
        let both = before.into_iter().chain(after).copied();
        both.min_by_key(|near| near.abs_diff(stamp_us))
    }

    /// Whether the last full answer had a stamp.
    pub(super) fn is_stamped(&self) -> bool {
        !self.known.is_empty()
    }

    /// Whether anything was ever answered.
    pub(super) const fn is_asked(&self) -> bool {
        self.complete_at.is_some()
    }

    /// Whether the clock became more exact since this was last asked.
    pub(super) fn take_refinement(&mut self) -> bool {
        std::mem::take(&mut self.is_refined)
    }

    /// Assumes a clock without evidence, for a caller that cannot wait: the boot clock if the
    /// newest stamp is not later than it, else the wall clock.
    pub(super) fn assume(&mut self, now: Clock) {
        let latest_us = now.boot.0.saturating_add(CLOCK_STEP.0) / 1_000;
        let clock = match self.known.last() {
            Some(newest) if *newest <= latest_us => StampClock::Boot,
            _ => StampClock::Wall,
        };
        self.clock.get_or_insert(clock);
    }

    /// Whether another call's clock can be this one.
    pub(super) fn agrees_with(&self, other: &Self, now: Clock) -> bool {
        let own = self.intersection();
        if !other.bounds.is_empty() {
            return own.intersection(other.intersection()).is_possible();
        }
        other.reading(now).is_some_and(|other| {
            own.of_boot.has(other.ahead) || own.of_wall.has(other.ahead - distance(now))
        })
    }

    /// Learns from an answer.
    pub(super) fn observe(&mut self, answer: &Answered<'_>) -> ClockChange {
        let lead = distance(answer.ended);
        let before = self.distance.replace(lead).unwrap_or(lead);
        let is_set = (lead - before).unsigned_abs() > u128::from(CLOCK_STEP.0);
        if is_set {
            // Bounds of the wall clock are void, and this answer's stamps may be from before or after.
            self.bounds.clear();
            self.suspect = None;
        }
        let new: BTreeSet<u64> = answer.stamps.iter().copied().collect();
        let new: BTreeSet<u64> = new.difference(&self.known).copied().collect();
        self.remember(answer, &new);
        let from = self.complete_at;
        if answer.since_us == 0 {
            self.complete_at = Some(answer.started.boot);
        }
        let (Some(from), false) = (from, new.is_empty()) else {
            return ClockChange::None;
        };
        self.advanced = Some(answer.ended.boot);
        if is_set {
            return ClockChange::None;
        }
        let bounds = |stamps: &BTreeSet<u64>| {
            let (first, last) = (stamps.first()?, stamps.last()?);
            Some(Bounds::new(*first, *last, from, answer.ended))
        };
        let all = self.intersection();
        let fits = |stamp: &&u64| {
            let alone = Bounds::new(**stamp, **stamp, from, answer.ended);
            all.intersection(alone).is_possible()
        };
        let fitting: BTreeSet<u64> = new.iter().filter(fits).copied().collect();
        if fitting.len() < new.len() {
            self.misfit = Some(answer.ended.boot);
        }
        if let Some(bounds) = bounds(&fitting).filter(|bounds| bounds.is_possible()) {
            self.is_doubted = false;
            self.suspect = None;
            self.complete_at = Some(answer.started.boot);
            return self.take(bounds, answer.ended);
        }
        self.is_doubted = true;
        self.misfit = Some(answer.ended.boot);
        let found = bounds(&new).filter(|bounds| bounds.is_possible());
        let agreed = self.suspect.zip(found);
        let agreed = agreed.map(|(before, found)| before.intersection(found));
        self.suspect = found;
        let Some(agreed) = agreed.filter(|agreed| agreed.is_possible()) else {
            return ClockChange::None;
        };
        self.bounds.clear();
        self.suspect = None;
        self.is_doubted = false;
        self.complete_at = Some(answer.started.boot);
        let before = self.clock.take();
        let news = self.take(agreed, answer.ended);
        let Some((before, now)) = before.zip(self.reading(answer.ended)) else {
            return news;
        };
        let moved = now.ahead - before.reading(answer.ended).ahead;
        if moved.unsigned_abs() <= u128::from(CLOCK_STEP.0) {
            // It drifts.
            self.is_refined = true;
            return ClockChange::None;
        }
        self.changes += 1;
        ClockChange::Changed
    }

    /// Takes bounds that fit those before them, and chooses the clock.
    fn take(&mut self, bounds: Bounds, now: Clock) -> ClockChange {
        if !self.intersection().intersection(bounds).is_possible() {
            self.bounds.clear();
        }
        if self.bounds.len() == KEPT {
            self.bounds.pop_front();
        }
        self.bounds.push_back(bounds);
        let chosen = self.choose();
        match self.clock.replace(chosen) {
            None => return ClockChange::Learnt,
            Some(before) if before == chosen => {}
            Some(before) => {
                // Bounds were void where the wall clock was set: what fits none may be far off.
                let moved = chosen.reading(now).ahead - before.reading(now).ahead;
                if self.bounds.len() == 1 && moved.unsigned_abs() > u128::from(CLOCK_STEP.0) {
                    self.changes += 1;
                    return ClockChange::Changed;
                }
                self.is_refined = true;
            }
        }
        ClockChange::None
    }

    /// The clock that the bounds say.
    fn choose(&self) -> StampClock {
        let all = self.intersection();
        if all.of_wall.is_possible() && all.of_wall.has(0) {
            return StampClock::Wall;
        }
        if all.of_boot.is_possible() && all.of_boot.has(0) {
            return StampClock::Boot;
        }
        match self.clock {
            Some(StampClock::Shifted(ahead)) => {
                StampClock::Shifted(ahead.min(all.of_boot.high).max(all.of_boot.low))
            }
            _ => StampClock::Shifted(all.of_boot.low),
        }
    }

    fn intersection(&self) -> Bounds {
        let all = self.bounds.iter();
        all.fold(Bounds::ALL, |all, bounds| all.intersection(*bounds))
    }

    /// Remembers an answer's stamps: of one that has all that the driver keeps, only those.
    fn remember(&mut self, answer: &Answered<'_>, new: &BTreeSet<u64>) {
        if answer.since_us == 0 {
            self.known = answer.stamps.iter().copied().collect();
            self.seen = self.known.iter().copied().collect();
            return;
        }
        self.seen.extend(new);
        self.known.extend(new);
        let most = REMEMBERED.max(2 * answer.stamps.len());
        while self.seen.len() > most {
            if let Some(oldest) = self.seen.pop_front() {
                self.known.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::core::model::WallTime;

    const MS: u64 = 1_000_000;
    /// The wall clock's lead over the boot clock.
    const LEAD: u64 = 1_700_000_000_000 * MS;

    fn at(boot_ms: u64) -> Clock {
        Clock {
            boot: BootTime(boot_ms * MS),
            wall: WallTime(LEAD + boot_ms * MS),
        }
    }

    /// Stamps of boot times, so many milliseconds ahead of the wall clock.
    fn stamps(boot_ms: &[u64], ahead_ms: i64) -> Vec<u64> {
        let wall = boot_ms.iter().map(|at| LEAD / 1_000 + at * 1_000);
        wall.map(|wall| wall.saturating_add_signed(ahead_ms * 1_000))
            .collect()
    }

    fn ask(clock: &mut SampleClock, since_us: u64, stamps: &[u64], now_ms: u64) -> ClockChange {
        clock.observe(&Answered {
            since_us,
            stamps,
            started: at(now_ms),
            ended: at(now_ms),
        })
    }

    #[test]
    fn one_answer_teaches_nothing_and_two_bound_the_clock() {
        // What, how far the stamps are ahead in ms, what is learnt of samples each 200 ms.
        for (what, ahead, expected) in [
            ("the wall clock", 0, StampClock::Wall),
            ("ahead", 8_000, StampClock::Shifted(8_000)),
            ("behind", -8_000, StampClock::Shifted(-8_000)),
        ] {
            let mut clock = SampleClock::default();
            assert_eq!(
                ask(&mut clock, 0, &stamps(&[1_000, 1_200], ahead), 1_300),
                ClockChange::None
            );
            assert_eq!(clock.clock(), None, "{what}");
            let news = ask(&mut clock, 0, &stamps(&[1_200, 1_400, 1_600], ahead), 1_650);
            assert_eq!(news, ClockChange::Learnt, "{what}");
            let expected = match expected {
                // Late by the age of the newest sample.
                StampClock::Shifted(ms) => {
                    StampClock::Shifted(i128::from(LEAD) + (ms - 50) * i128::from(MS))
                }
                known => known,
            };
            assert_eq!(clock.clock(), Some(expected), "{what}");
            // A fresher sample is a better bound.
            ask(&mut clock, 1, &stamps(&[1_800], ahead), 1_800);
            if let StampClock::Shifted(late) = expected {
                let exact = StampClock::Shifted(late + 50 * i128::from(MS));
                assert_eq!(clock.clock(), Some(exact), "{what}");
                assert!(
                    clock.take_refinement() && !clock.take_refinement(),
                    "{what}"
                );
            }
            assert_eq!(clock.changes(), 0, "{what}");
        }
    }

    #[test]
    fn an_old_stamp_is_of_any_clock() {
        let mut clock = SampleClock::default();
        for now in [1_300, 5_000, 9_000] {
            assert_eq!(
                ask(&mut clock, 0, &stamps(&[1_000, 1_200], 0), now),
                ClockChange::None
            );
        }
        assert_eq!(clock.clock(), None);
        assert!(!clock.has_advanced_since(BootTime(0)), "the driver pauses");
        clock.assume(at(9_000));
        assert_eq!(clock.clock(), Some(StampClock::Wall), "what it looks like");
    }

    #[test]
    fn one_stray_stamp_is_junk_and_two_that_agree_are_a_change() {
        let mut clock = SampleClock::default();
        ask(&mut clock, 0, &stamps(&[1_000], 0), 1_000);
        ask(&mut clock, 0, &stamps(&[1_000, 1_200], 0), 1_200);
        assert_eq!(clock.clock(), Some(StampClock::Wall));
        ask(&mut clock, 1, &stamps(&[1_400], 60_000), 1_400);
        assert!(clock.is_doubted_since(at(1_400).boot));
        ask(&mut clock, 1, &stamps(&[1_600], 0), 1_600);
        assert_eq!(
            (clock.clock(), clock.changes()),
            (Some(StampClock::Wall), 0)
        );
        assert_eq!(
            ask(&mut clock, 1, &stamps(&[1_800], 60_000), 1_800),
            ClockChange::None
        );
        assert_eq!(
            ask(&mut clock, 1, &stamps(&[2_000], 60_000), 2_000),
            ClockChange::Changed
        );
        assert_eq!(clock.changes(), 1);
        let shown = clock
            .clock()
            .map(|clock| clock.call_clock(at(2_000)).to_string());
        assert_eq!(shown.as_deref(), Some("wall +60.000s"));
    }

    #[test]
    fn clocks_are_shown_by_the_one_that_they_are_nearest_to() {
        let lead = i128::from(LEAD);
        for (clock, expected) in [
            (StampClock::Wall, "wall"),
            (StampClock::Boot, "boot"),
            (StampClock::Shifted(lead - 150_000_000), "wall -0.150s"),
            (StampClock::Shifted(2_000_000_000), "boot +2.000s"),
            (StampClock::Shifted(i128::MIN / 2), "boot -9223372036.854s"),
        ] {
            assert_eq!(
                clock.call_clock(at(5_000)).to_string(),
                expected,
                "{clock:?}"
            );
        }
    }

    proptest! {
        /// Whatever a driver stamps, a clock that is learnt makes no new sample newer than its answer,
        /// and nothing overflows.
        #[test]
        fn no_stamp_is_too_large(
            answers in prop::collection::vec(
                (any::<u64>(), any::<u64>(), any::<bool>(), prop::collection::vec(any::<u64>(), 0..6)),
                1..30,
            ),
        ) {
            let mut clock = SampleClock::default();
            for (boot, wall, is_full, stamps) in answers {
                let now = Clock { boot: BootTime(boot), wall: WallTime(wall) };
                let answer = Answered {
                    since_us: u64::from(!is_full),
                    stamps: &stamps,
                    started: now,
                    ended: now,
                };
                clock.observe(&answer);
                if let Some(reading) = clock.reading(now) {
                    let _ = (reading.stamp_us(), reading.boot_of(boot));
                }
                let _ = clock.clock().map(|clock| clock.call_clock(now));
                prop_assert!(clock.known.len() <= REMEMBERED.max(2 * stamps.len()));
            }
        }
    }
}
