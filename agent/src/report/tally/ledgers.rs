//! The ledgers of a report, each with numbers and a part of the range of its own.

use jiff::Timestamp;

use crate::outputs::store::query::LedgerExtent;
use crate::report::hour::{begin_of, moment_of};
use crate::report::range::Asked;

/// A ledger's place among those of the report, and a number of a GPU or an account in it.
pub(super) type InLedger = (usize, i64);

/// The part of the range that a ledger answers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    /// Not before the ledger's first hour.
    pub(super) since: Timestamp,
    /// Not after its last commit.
    pub(super) until: Timestamp,
}

impl Span {
    pub(super) fn of(ledger: &LedgerExtent, asked: &Asked) -> Self {
        let hours = asked.hours();
        let since = begin_of(hours.start.max(ledger.first_hour));
        let until = begin_of(hours.end).min(moment_of(ledger.committed));
        Self {
            since,
            until: until.max(since),
        }
    }
}
