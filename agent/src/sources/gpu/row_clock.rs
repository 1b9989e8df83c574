//! By which clock a call stamps its rows, and how its stamps become the windows'.

use super::sample_clock::{Answered, ClockChange, SampleClock, StampClock};
use super::window::JITTER_US;

/// Number of consecutive answers that must show the same offset between the stamps of rows and of
/// samples before it is used. One is not enough: an answer can have a sample that the previous
/// answer lacked.
const RELATED_AFTER: u8 = 2;

/// How far a stamp may be off when it is converted between two known clocks, in microseconds: they are
/// read one after the other, and slewing moves them apart.
pub(super) const CONVERTED_US: u64 = 1_000;

/// The clock of one call's rows.
#[derive(Debug, Default)]
pub(super) struct RowClock {
    pub(super) own: SampleClock,
    /// Its clock is that of the device's samples.
    is_shared: bool,
    /// How far its stamps are ahead of the samples' stamps, in microseconds: found by the stamps
    /// themselves, since rows bear stamps of samples where device and processes are sampled at once.
    pub(super) related: Option<i128>,
    /// The same by the last answer, and how often in turn that was found.
    found: Option<(i128, u8)>,
}

impl RowClock {
    pub(super) fn clock(&self, samples: &SampleClock) -> Option<StampClock> {
        if self.is_shared {
            samples.clock()
        } else {
            self.own.clock()
        }
    }

    /// Learns from an answer. `newest_busy_us` is the device's newest sample that was busy.
    pub(super) fn observe(
        &mut self,
        answer: &Answered<'_>,
        samples: &SampleClock,
        newest_busy_us: Option<u64>,
    ) -> ClockChange {
        let before = self.clock(samples);
        let news = self.own.observe(answer);
        if news == ClockChange::Changed {
            self.forget_relation();
        }
        let is_sample = |stamp: &u64| samples.has_seen(*stamp, JITTER_US);
        let is_matched = !answer.stamps.is_empty() && answer.stamps.iter().all(is_sample);
        let is_shifted = |clock| matches!(clock, Some(StampClock::Shifted(_)));
        // A row can have a sample's stamp that is yet to be seen: what was found once stays.
        let is_likely = self.is_shared || is_matched || is_shifted(self.own.clock());
        // Where the work has ended, no row is ever new, and nothing bounds the clock of the rows. Rows
        // that all bear stamps of samples are then taken to be stamped as those are.
        let is_told = if self.own.clock().is_some() {
            is_likely
        } else {
            self.is_shared || is_matched
        };
        self.is_shared = is_told && self.own.agrees_with(samples, answer.ended);
        if is_shifted(self.own.clock()) || is_shifted(samples.clock()) {
            self.relate(answer, samples, newest_busy_us);
        } else {
            self.forget_relation();
        }
        match (before, self.clock(samples)) {
            (None, Some(_)) => ClockChange::Learnt,
            (Some(_), Some(_)) => news,
            (_, None) => ClockChange::None,
        }
    }

    /// Looks by how much all of an answer's stamps are ahead of samples' stamps.
    ///
    /// Samples come in a grid, so that one period more fits as well. The newest row is of the newest busy
    /// sample, unless that was credited to nobody or another one landed since.
    fn relate(
        &mut self,
        answer: &Answered<'_>,
        samples: &SampleClock,
        newest_busy_us: Option<u64>,
    ) {
        let (Some(newest), Some(busy)) = (answer.stamps.iter().max(), newest_busy_us) else {
            return;
        };
        let ahead = i128::from(*newest) - i128::from(busy);
        let is_sample = |stamp: &u64| {
            let sample = u64::try_from(i128::from(*stamp) - ahead);
            sample.is_ok_and(|sample| samples.has_seen(sample, JITTER_US))
        };
        let is_found =
            answer.stamps.iter().all(is_sample) && self.own.can_be_ahead(samples, ahead * 1_000);
        let near = |other: i128| other.abs_diff(ahead) <= u128::from(JITTER_US);
        self.found = match self.found {
            _ if !is_found => None,
            Some((found, times)) if near(found) => Some((ahead, times.saturating_add(1))),
            _ => Some((ahead, 1)),
        };
        match self.found {
            Some((ahead, times)) if times >= RELATED_AFTER => self.related = Some(ahead),
            _ => {}
        }
        if !self
            .own
            .can_be_ahead(samples, self.related.unwrap_or(ahead) * 1_000)
        {
            self.related = None;
        }
    }

    pub(super) const fn forget_relation(&mut self) {
        self.related = None;
        self.found = None;
    }
}

/// From a call's stamps to the windows'.
#[derive(Clone, Copy, Debug)]
pub(super) struct Conversion {
    /// They are on one clock.
    pub(super) is_same: bool,
    /// How far the call's stamps are ahead of the windows'.
    pub(super) ahead_us: i128,
}

impl Conversion {
    /// The stamp to pass to the call so that the sample with this stamp is not returned again.
    pub(super) fn to_rows(self, stamp_us: u64) -> u64 {
        if self.is_same {
            return stamp_us;
        }
        let stamp = i128::from(stamp_us) + self.ahead_us + i128::from(CONVERTED_US);
        u64::try_from(stamp.max(1)).unwrap_or(u64::MAX)
    }

    pub(super) fn to_windows(self, stamp_us: u64) -> u64 {
        if self.is_same {
            return stamp_us;
        }
        let stamp = i128::from(stamp_us) - self.ahead_us;
        u64::try_from(stamp.max(0)).unwrap_or(u64::MAX)
    }
}
