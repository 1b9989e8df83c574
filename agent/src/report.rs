//! Reports past use from ledgers, of one node or of several: who used how much of which GPU, and what
//! it cost.
//!
//! A ledger is read with or without a running agent, and is not changed. Open accounts count like
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
//! **No answer is not an answer of nothing**: a range of which the ledger has no hour is an error. A
//! range of which it has a part is answered for that part, with a warning.
//!
//! It refuses to estimate. Time that no book covers is shown as such, and has no owner and no price.

pub mod fleet;
pub mod focus;
pub mod growth;
pub mod hour;
pub mod prices;
pub mod promql;
pub mod range;
pub mod tally;
pub mod zone;

use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;

use self::hour::{begin_of, hour_of, moment_of};
use self::prices::MoneyError;
use self::range::Outside;
use self::tally::{Doubled, Question, Report, Tally};
use self::zone::UnevenZone;
use crate::core::model::GpuUuid;
use crate::outputs::store::query::{Ledger, ReadError};

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// The ledger cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The range cannot be cut into hours of the zone.
    #[error(transparent)]
    Zone(#[from] UnevenZone),
    /// The ledger has no hour of the range. Moments are as they are shown.
    #[error(
        "the ledger at {} has nothing of {range}: its first hour is {first}, its last is {last}{}",
        path.display(),
        match outside {
            Outside::Before => "",
            Outside::After => "; is the agent running?",
            Outside::Future => "; that is in the future",
        }
    )]
    Outside {
        /// Its file.
        path: PathBuf,
        /// The range.
        range: String,
        /// The ledger's first hour.
        first: String,
        /// The ledger's last hour.
        last: String,
        /// On which side of the ledger the range is.
        outside: Outside,
    },
    /// Two of the ledgers are the same, or one is a copy of the other.
    #[error(
        "{} and {} are the same ledger, of node {node}: its use would be billed twice",
        paths[0].display(),
        paths[1].display()
    )]
    Twice {
        /// Their files.
        paths: [PathBuf; 2],
        /// Their node.
        node: Arc<str>,
    },
    /// Two ledgers have the same time of a GPU.
    #[error(
        "{} and {} have both booked the hour of {hour} of {gpu}: did two agents run on one node? Its use \
         would be billed twice",
        paths[0].display(),
        paths[1].display()
    )]
    Doubled {
        /// The GPU.
        gpu: GpuUuid,
        /// The hour, as it is shown.
        hour: String,
        /// The ledgers' files.
        paths: [PathBuf; 2],
    },
    /// No ledger was named.
    #[error("no ledger was named")]
    NoLedger,
    /// Ledgers do not say in which cluster they are.
    #[error(
        "{0} is for a report from a store of metrics: a ledger does not say in which cluster its node is"
    )]
    NoCluster(&'static str),
    /// Prices, or what they come to.
    #[error(transparent)]
    Money(#[from] MoneyError),
}

/// Reads ledgers, at least one, and adds up. A ledger that has nothing of the range is left out with a
/// warning if another one has something of it.
///
/// # Errors
/// If a ledger cannot be read, if two are the same, if none has anything of the range, if the zone's
/// hours are not the ledger's, or if a price is missing.
pub fn make(
    stores: &[PathBuf],
    question: &Question,
    now: Timestamp,
) -> Result<Report, ReportError> {
    if let Some(what) = question.needs_cluster() {
        return Err(ReportError::NoCluster(what));
    }
    let mut names: Vec<(Arc<str>, PathBuf)> = Vec::new();
    let mut tally = None;
    let mut outside = Vec::new();
    let mut read_from = Vec::new();
    for store in stores {
        // It is closed before the next one is opened: each is several open files, and an agent cannot
        // begin its log anew while somebody reads it.
        let ledger = Ledger::open(store)?;
        let (path, extent) = (ledger.path(), ledger.standing());
        let same = names.iter().find(|(name, _)| *name == extent.store);
        if let Some((_, other)) = same {
            return Err(ReportError::Twice {
                paths: [other.clone(), path.to_owned()],
                node: Arc::clone(&extent.node),
            });
        }
        names.push((Arc::clone(&extent.store), path.to_owned()));
        match check(&ledger, question, now) {
            Err(error @ ReportError::Outside { .. }) => outside.push(error),
            checked => {
                checked?;
                let (path, node) = (path.display(), &extent.node);
                read_from.push(format!("read from {path} of node {node}"));
                add(&mut tally, &ledger, question)?;
            }
        }
    }
    let mut outside = outside.into_iter();
    let Some(tally) = tally else {
        return Err(outside.next().unwrap_or(ReportError::NoLedger));
    };
    if let Some(Doubled { gpu, hour, paths }) = tally.doubled() {
        let hour = question.zone.show(begin_of(hour));
        return Err(ReportError::Doubled { gpu, hour, paths });
    }
    let mut report = tally.report(now)?;
    report.notes.splice(0..0, read_from);
    for error in outside {
        report.warn(error.to_string());
    }
    Ok(report)
}

/// Adds up what a ledger has of the range.
fn add<'a>(
    tally: &mut Option<Tally<'a>>,
    ledger: &Ledger,
    question: &'a Question,
) -> Result<(), ReportError> {
    let (extent, gpus) = (ledger.standing().clone(), ledger.gpus()?);
    let tally = match tally {
        Some(tally) => {
            tally.next_ledger(extent, gpus);
            tally
        }
        None => tally.insert(Tally::new(extent, gpus, question)),
    };
    let hours = question.asked.hours();
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
    Ok(())
}

/// Checks that the ledger has hours of the range, and that they are hours of the zone.
fn check(ledger: &Ledger, question: &Question, now: Timestamp) -> Result<(), ReportError> {
    let Question { asked, zone, .. } = question;
    let extent = ledger.standing();
    let committed = moment_of(extent.committed);
    let show = |hour| zone.show(begin_of(hour));
    let hours = asked.hours();
    if let Some(outside) = asked.outside(extent.first_hour, committed, now) {
        return Err(ReportError::Outside {
            path: ledger.path().to_owned(),
            range: match asked.until {
                Some(_) => format!("{} to {}", show(hours.start), show(hours.end)),
                None => format!("the time from {} on", show(hours.start)),
            },
            first: show(extent.first_hour),
            last: show(hour_of(committed)),
            outside,
        });
    }
    let kept = extent.first_hour..hour_of(committed).saturating_add(1);
    zone.check(&(hours.start.max(kept.start)..hours.end.min(kept.end)))?;
    Ok(())
}
