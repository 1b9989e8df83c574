//! What there is to know of a report beside its figures.
//!
//! A warning says that the report answers less than was asked for, or is wrong. A note explains.

use jiff::Timestamp;
use rust_decimal::Decimal;

use super::ledgers::Span;
use crate::core::model::{Nanos, UNRESOLVED};
use crate::outputs::store::query::LedgerExtent;
use crate::report::hour::{begin_of, hour_of, moment_of};
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
    /// The ledgers that were read.
    pub(super) ledgers: &'a [LedgerExtent],
    /// When the report is made.
    pub(super) now: Timestamp,
    /// By how much the rows differ from the GPUs' books. Zero unless there is a bug.
    pub(super) imbalance: Nanos,
    /// Time of divided GPUs that is left out.
    pub(super) left_out: Nanos,
    /// Places of the ledgers that have GPUs, none of which was observed.
    pub(super) blind: &'a [usize],
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

    /// The beginning of the hour in which the range ends, if that is asked for and not in a ledger that
    /// was last committed then.
    fn missed_end(&self, committed: Timestamp) -> Option<Timestamp> {
        let end = begin_of(hour_of(self.asked.until?));
        (end > committed).then_some(end)
    }

    fn is_early(&self, ledger: &LedgerExtent) -> bool {
        begin_of(ledger.first_hour) > self.begin()
    }

    /// Whether the ledgers have all of the requested range.
    pub(super) fn is_complete(&self) -> bool {
        self.ledgers.iter().all(|ledger| {
            let committed = moment_of(ledger.committed);
            !self.is_early(ledger) && self.missed_end(committed).is_none()
        })
    }

    /// What stands before a remark on one of several ledgers.
    fn whose(&self, ledger: &LedgerExtent) -> String {
        let namesakes = self.ledgers.iter().filter(|of| of.node == ledger.node);
        match (self.ledgers, namesakes.count()) {
            ([_], _) => String::new(),
            (_, 1) if *ledger.node != *UNRESOLVED => format!("node {}: ", ledger.node),
            _ => format!("node {} ({}): ", ledger.node, ledger.path.display()),
        }
    }

    /// In which way a ledger has less than was asked for.
    fn warnings_on(&self, ledger: &LedgerExtent) -> Vec<String> {
        let show = |at| self.zone.show(at);
        let committed = moment_of(ledger.committed);
        let mut warnings = Vec::new();
        if self.is_early(ledger) {
            warnings.push(format!(
                "the range begins at {}, and the ledger begins with the hour of {}: nothing is known of the \
                 time before",
                show(self.begin()),
                show(begin_of(ledger.first_hour))
            ));
        }
        if let Some(end) = self.missed_end(committed) {
            let what = match end > self.now {
                true => "the range reaches into the future: it",
                false => "the range",
            };
            warnings.push(format!(
                "{what} ends at {}, and the report ends with the last commit, at {}",
                show(end),
                show(committed)
            ));
        }
        let wanted = self.asked.until.map_or(self.now, |end| end.min(self.now));
        if wanted.duration_since(committed) > LATE {
            warnings.push(format!(
                "nothing was committed after {}: is the agent running?",
                show(committed)
            ));
        }
        let whose = self.whose(ledger);
        let warnings = warnings.into_iter();
        warnings.map(|text| format!("{whose}{text}")).collect()
    }

    /// In which way the report is less than was asked for.
    pub(super) fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if !self.imbalance.is_zero() {
            warnings.push(format!(
                "the books are out of balance by {} ns: this is a bug, please keep the ledger and report it",
                self.imbalance.0
            ));
        }
        for ledger in self.ledgers {
            warnings.extend(self.warnings_on(ledger));
        }
        for ledger in self.blind {
            warnings.push(format!(
                "{}no GPU was observed in this range: whether one was used is not known",
                self.whose(&self.ledgers[*ledger])
            ));
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
        for ledger in self.ledgers {
            let committed = moment_of(ledger.committed);
            let is_cut = Span::of(ledger, &self.asked).until == committed
                && begin_of(hour_of(committed)) != committed;
            if is_cut && self.missed_end(committed).is_none() {
                notes.push(format!(
                    "{}the hour of {} is included up to the last commit",
                    self.whose(ledger),
                    show(begin_of(hour_of(committed)))
                ));
            }
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
