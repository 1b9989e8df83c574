//! Reports past use from the node's ledger: who used how much of which GPU, and what it cost.
//!
//! The ledger is read with or without a running agent, and is not changed. Open accounts count like
//! closed ones.
//!
//! **The balance holds in what is printed**: the rows of containers, of host processes and of time
//! without an owner add up to the devices' busy time, which the ledger keeps apart from them; with
//! idle, unobserved and unaccounted time they add up to all of it. A report in which they do not says
//! so and fails. Nothing is left out for being small or having no name.
//!
//! **Hours are the resolution** ([`range`]). Nothing is prorated: an hour is in the report or it is
//! not, so that consecutive reports bill nothing twice.
//!
//! It refuses to estimate. Time that no book covers is shown as such, and has no owner and no price.

pub mod prices;
pub mod range;
pub mod tally;

use std::path::Path;

use jiff::Timestamp;

use self::prices::{MoneyError, Prices};
use self::range::Asked;
use self::tally::{Dimension, Report, Tally};
use crate::outputs::store::query::{Ledger, ReadError};

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// The ledger cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Prices, or what they come to.
    #[error(transparent)]
    Money(#[from] MoneyError),
}

/// Reads a ledger and adds up.
///
/// # Errors
/// If the ledger cannot be read, or a price is missing.
pub fn make(
    store: &Path,
    asked: &Asked,
    by: &[Dimension],
    prices: Option<&Prices>,
    now: Timestamp,
) -> Result<Report, ReportError> {
    let ledger = Ledger::open(store)?;
    let hours = asked.hours();
    let mut tally = Tally::new(ledger.standing(), ledger.gpus()?, *asked, by, prices);
    // Accounts are looked up as they are met; a question within a question sees the same commit.
    let mut failed = None;
    ledger.used(&hours, |used| {
        if failed.is_none() {
            failed = tally
                .account(used, |account| {
                    ledger.account(account).map_err(ReportError::from)
                })
                .err();
        }
    })?;
    if let Some(error) = failed {
        return Err(error);
    }
    for book in ledger.gpu_used(&hours)? {
        tally.book(book);
    }
    for reason in ledger.reasons_used(&hours)? {
        tally.reason(reason);
    }
    Ok(tally.report(now)?)
}
