//! How often a device samples itself, and how many samples the driver keeps, as far as its answers
//! show.
//!
//! Pure. Units: nanoseconds; stamps in microseconds.

use std::collections::VecDeque;
use std::ops::RangeInclusive;

use crate::core::model::Nanos;

/// The period until one is measured: what RM's headers give as the shortest.
const ASSUMED_PERIOD: Nanos = Nanos(1_000_000_000 / 6);
/// Spacings outside this range, in nanoseconds, are pauses or invalid. Products have 1/6 s to 1 s by
/// the headers of NVIDIA's resource manager (RM); the range has a margin on both sides.
const PERIODS: RangeInclusive<u64> = 10_000_000..=1_500_000_000;
/// Spacings of which the median is taken.
const SPACINGS: usize = 64;
/// Fewer samples than this are never a full ring (real ones hold 72 or more).
const SMALLEST_RING: usize = 32;
/// How far back the driver's ring reaches, generously.
pub(super) const RING_SPAN: Nanos = Nanos::from_secs(12);

/// The spacing of one device's samples, learnt from the samples.
#[derive(Clone, Debug, Default)]
pub(super) struct Spacing {
    /// The newest spacings that can be periods, in nanoseconds.
    seen: VecDeque<u64>,
    /// The most samples that one answer had.
    ring: usize,
}

impl Spacing {
    /// Learns from the stamps of samples that follow each other, in time order.
    pub(super) fn learn(&mut self, stamps_us: impl IntoIterator<Item = u64>) {
        let mut before = None;
        for stamp_us in stamps_us {
            if let Some(before) = before {
                self.note(stamp_us - before);
            }
            before = Some(stamp_us);
        }
    }

    fn note(&mut self, spacing_us: u64) {
        let spacing = spacing_us.saturating_mul(1000);
        if PERIODS.contains(&spacing) {
            if self.seen.len() == SPACINGS {
                self.seen.pop_front();
            }
            self.seen.push_back(spacing);
        }
    }

    /// Learns that one answer had so many samples.
    pub(super) fn learn_size(&mut self, samples: usize) {
        self.ring = self.ring.max(samples);
    }

    /// Whether so many new samples may be all that the driver's ring holds.
    pub(super) fn is_full(&self, samples: usize) -> bool {
        samples >= self.ring.max(SMALLEST_RING)
    }

    /// For how long the driver keeps a sample, at least.
    pub(super) fn ring_span(&self) -> Nanos {
        let samples = self.ring.max(SMALLEST_RING) as u64;
        Nanos(self.period().0.saturating_mul(samples))
    }

    /// The time between two samples: the median of what was seen.
    pub(super) fn period(&self) -> Nanos {
        let mut spacings: Vec<u64> = self.seen.iter().copied().collect();
        spacings.sort_unstable();
        spacings
            .get(spacings.len() / 2)
            .map_or(ASSUMED_PERIOD, |&spacing| Nanos(spacing))
    }

    /// The longest spacing that still counts whole: one and a half periods.
    pub(super) fn tolerance(&self) -> Nanos {
        let period = self.period();
        Nanos(period.0 + period.0 / 2)
    }
}
