//! The rows of a report, and the report itself.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;
use rust_decimal::Decimal;

use super::dimension::Dimension;
use super::kind::Kind;
use super::timeline::Timeline;
use crate::core::amounts::Amounts;
use crate::core::model::Nanos;
use crate::outputs::store::query::AccountLife;
use crate::report::prices::{Cost, MoneyError};
use crate::report::range::Asked;
use crate::report::zone::Zone;

/// A figure that not every source of a report has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Figure {
    /// Allocated time, and what of it was not used.
    Allocated,
    /// Parts of allocated time.
    AllocatedShare,
    /// Held time.
    Held,
    /// Busy time of the other engines.
    Engines,
    /// Device memory over time.
    Memory,
    /// Electrical energy, in millijoules.
    Energy,
}

/// Figures that the source of a report does not have, by the kind of their rows. They are left out; they
/// are not zero.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Absent(BTreeSet<(Kind, Figure)>);

impl Absent {
    /// Adds a figure of rows of a kind.
    pub fn add(&mut self, kind: Kind, figure: Figure) {
        self.0.insert((kind, figure));
    }

    /// Whether rows of a kind have a figure.
    #[must_use]
    pub fn has(&self, kind: Kind, figure: Figure) -> bool {
        !self.0.contains(&(kind, figure))
    }
}

/// One line of a report.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Kind of the row.
    pub kind: Kind,
    /// Why, where time has no owner or was not observed; else `(none)`.
    pub reason: Arc<str>,
    /// Its values of what the report is grouped by. None is empty.
    pub key: Vec<Arc<str>>,
    /// Sums of the row.
    pub sums: Sums,
    /// Its part of all busy time, where there is any and it is about busy time.
    pub share: Option<Decimal>,
    /// What it costs, where there are prices and it is about busy or allocated time.
    pub cost: Option<Decimal>,
    /// Of the whole life of its accounts; not where a row is about a part of time.
    pub life: Option<AccountLife>,
}

impl Report {
    /// Adds a warning that it answers less than was asked for.
    pub fn warn(&mut self, text: String) {
        self.is_complete = false;
        self.warnings.push(text);
    }
}

/// What is added up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// GPU time, whatever became of it.
    pub gpu: Nanos,
    /// The books' amounts.
    pub amounts: Amounts,
    /// Allocated and not busy.
    pub unused: Nanos,
    /// What that costs.
    pub(super) cost: Cost,
}

impl Sums {
    pub(super) fn plus(self, other: Self) -> Result<Self, MoneyError> {
        Ok(Self {
            gpu: self.gpu.plus(other.gpu),
            amounts: self.amounts.plus(other.amounts),
            unused: self.unused.plus(other.unused),
            cost: self.cost.plus(other.cost)?,
        })
    }
}

/// A report: its range, notes and rows.
#[derive(Clone, Debug)]
pub struct Report {
    /// Names of the nodes that the ledgers are of, `(unresolved)` where one does not say it.
    pub nodes: Vec<Arc<str>>,
    /// Requested range.
    pub asked: Asked,
    /// The time zone in which moments are shown.
    pub zone: Zone,
    /// The beginning of what is answered: not before the ledger's first hour.
    pub since: Timestamp,
    /// Its end: not after the last commit.
    pub until: Timestamp,
    /// Whether that is all of the requested range.
    pub is_complete: bool,
    /// When the ledger was last written; of several ledgers, the first of these times.
    pub committed: Timestamp,
    /// By what it is grouped.
    pub by: Vec<Dimension>,
    /// What money is in, where there are prices.
    pub currency: Option<String>,
    /// To which accounts it is limited, in words; empty if it is about all of the GPUs' time.
    pub only: Vec<String>,
    /// The rows, in order.
    pub rows: Vec<Row>,
    /// The rows of containers and of the host together.
    pub owned: Row,
    /// All together. Busy time is the devices', not the rows', unless the report is limited.
    pub total: Row,
    /// The same in the order of time, if that was asked for.
    pub timeline: Option<Timeline>,
    /// By how much rows and devices differ, over all hours and GPUs; zero, or the books are wrong.
    pub imbalance: Nanos,
    /// Figures that are not known.
    pub absent: Absent,
    /// Whether the ledger has a GPU at all.
    pub has_gpus: bool,
    /// Why the report says less than was asked for, or is wrong, in words.
    pub warnings: Vec<String>,
    /// What else there is to know, in words.
    pub notes: Vec<String>,
}
