//! What there is to know of a report beside its figures.
//!
//! A warning says that the report answers less than was asked for, or is wrong. A note explains.

use jiff::Timestamp;
use rust_decimal::Decimal;

use crate::core::model::Nanos;
use crate::report::hour::{begin_of, hour_of};
use crate::report::range::{Asked, LATE};
use crate::report::zone::Zone;

/// Nanoseconds of an hour.
const HOUR: u64 = 3_600_000_000_000;

/// What the warnings and notes of a report are made from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts<'a> {
    /// The range that was asked for.
    pub(super) asked: Asked,
    /// The time zone in which moments are written.
    pub(super) zone: &'a Zone,
    /// The ledger's first hour.
    pub(super) first_hour: i64,
    /// When the ledger was last committed.
    pub(super) committed: Timestamp,
    /// When the report is made.
    pub(super) now: Timestamp,
    /// The end of what is answered.
    pub(super) until: Timestamp,
    /// By how much the rows differ from the GPUs' books. Zero unless there is a bug.
    pub(super) imbalance: Nanos,
    /// Time of divided GPUs that is left out.
    pub(super) left_out: Nanos,
    /// Whether the ledger has GPUs, and none of them was observed.
    pub(super) is_blind: bool,
    /// To which accounts the report is limited.
    pub(super) only: &'a [String],
    /// Whether it is limited to accounts of which there is none.
    pub(super) is_nobody: bool,
    /// Models that have the default price.
    pub(super) at_default_price: &'a [String],
}

impl Facts<'_> {
    /// The beginning of the range, at its hour.
    fn begin(&self) -> Timestamp {
        begin_of(hour_of(self.asked.since))
    }

    /// The beginning of the hour in which the range ends, if that is asked for and not in the ledger.
    fn missed_end(&self) -> Option<Timestamp> {
        let end = begin_of(hour_of(self.asked.until?));
        (end > self.committed).then_some(end)
    }

    fn is_early(&self) -> bool {
        begin_of(self.first_hour) > self.begin()
    }

    /// Whether the ledger has all of the requested range.
    pub(super) fn is_complete(&self) -> bool {
        !self.is_early() && self.missed_end().is_none()
    }

    /// In which way the report is less than was asked for.
    pub(super) fn warnings(&self) -> Vec<String> {
        let show = |at| self.zone.show(at);
        let mut warnings = Vec::new();
        if !self.imbalance.is_zero() {
            warnings.push(format!(
                "the books are out of balance by {} ns: this is a bug, please keep the ledger and report it",
                self.imbalance.0
            ));
        }
        if self.is_early() {
            warnings.push(format!(
                "the range begins at {}, and the ledger begins with the hour of {}: nothing is known of the \
                 time before",
                show(self.begin()),
                show(begin_of(self.first_hour))
            ));
        }
        if let Some(end) = self.missed_end() {
            let what = match end > self.now {
                true => "the range reaches into the future: it",
                false => "the range",
            };
            warnings.push(format!(
                "{what} ends at {}, and the report ends with the last commit, at {}",
                show(end),
                show(self.committed)
            ));
        }
        let wanted = self.asked.until.map_or(self.now, |end| end.min(self.now));
        if wanted.duration_since(self.committed) > LATE {
            warnings.push(format!(
                "nothing was committed after {}: is the agent running?",
                show(self.committed)
            ));
        }
        if self.is_blind {
            warnings.push(
                "no GPU was observed in this range: whether one was used is not known".to_owned(),
            );
        }
        if self.is_nobody {
            warnings.push(format!(
                "no account in this range has {}",
                self.only.join(" and ")
            ));
        }
        warnings
    }

    /// What else there is to know.
    pub(super) fn notes(&self) -> Vec<String> {
        let show = |at| self.zone.show(at);
        let mut notes = Vec::new();
        if !self.only.is_empty() {
            notes.push(format!(
                "only accounts with {} are in the report; shares are of the busy time of all",
                self.only.join(" and ")
            ));
        }
        if !self.left_out.is_zero() {
            let hours = Decimal::from(self.left_out.0) / Decimal::from(HOUR);
            notes.push(format!(
                "{} GPU hours of divided GPUs are left out: their MIG instances' time is in",
                hours.round_dp(3).normalize()
            ));
        }
        let Asked { since, until: end } = self.asked;
        let cut_end = end.filter(|end| begin_of(hour_of(*end)) != *end);
        if let Some(end) = cut_end {
            notes.push(format!(
                "the report counts whole hours: it includes all of the hour of {} and nothing of the hour of {}",
                show(since),
                show(end)
            ));
        } else if self.begin() != since {
            notes.push(format!(
                "the report counts whole hours: it includes all of the hour of {}",
                show(since)
            ));
        }
        let is_cut = self.until == self.committed && begin_of(hour_of(self.until)) != self.until;
        if is_cut && self.missed_end().is_none() {
            notes.push(format!(
                "the hour of {} is included up to the last commit",
                show(begin_of(hour_of(self.until)))
            ));
        }
        if !self.at_default_price.is_empty() {
            notes.push(format!(
                "the default price applies to {}",
                self.at_default_price.join(", ")
            ));
        }
        notes
    }
}
