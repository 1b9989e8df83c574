//! A report in the order of time: what became of the GPUs' time in each hour, day or month.
//!
//! It is for pictures. Its rows are those of the report without the hours, days and months among what the
//! report is grouped by; time that nobody owns is one row for each kind. All its amounts together are the
//! report's GPU time, and all its money is the report's money.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use jiff::Timestamp;
use rust_decimal::Decimal;

use super::dimension::Dimension;
use super::kind::Kind;
use crate::core::model::Nanos;
use crate::report::hour::{begin_of, hour_of};
use crate::report::prices::{Cost, MoneyError, Prices};
use crate::report::zone::Zone;

/// The longest range, in hours, that is cut into hours.
const MOST_HOURS: i64 = 48;
/// The longest range, in hours, that is cut into days; a longer one is cut into months.
const MOST_DAY_HOURS: i64 = 100 * 24;

/// Whose time it is: its kind, and what it is grouped by.
type StrandKey = (Kind, Vec<Arc<str>>);

/// What became of the GPUs' time, from the beginning of the report to its end.
#[derive(Clone, Debug, PartialEq)]
pub struct Timeline {
    /// Whether a column is an hour, a day or a month.
    pub unit: Dimension,
    /// By what the strands are grouped.
    pub by: Vec<Dimension>,
    /// The columns, in order and without a gap.
    pub columns: Vec<Column>,
    /// GPU time by whose it is: owners first, and those with the most time first.
    pub strands: Vec<Strand>,
}

/// A stretch of time.
#[derive(Clone, Debug, PartialEq)]
pub struct Column {
    /// Name of the hour, day or month, in the report's zone.
    pub name: Arc<str>,
    /// What was used in it costs so much, where there are prices.
    pub cost: Option<Decimal>,
}

/// GPU time of one owner, or of nobody.
#[derive(Clone, Debug, PartialEq)]
pub struct Strand {
    /// What became of the time.
    pub kind: Kind,
    /// Values of what it is grouped by; none if it is nobody's.
    pub key: Vec<Arc<str>>,
    /// Its time in each column.
    pub times: Vec<Nanos>,
}

impl Strand {
    /// All of its time.
    #[must_use]
    pub fn sum(&self) -> Nanos {
        self.times.iter().copied().sum()
    }
}

/// A timeline in the making: sums of hours, since the ends of the report are not known before its end.
#[derive(Debug, Default)]
pub(super) struct Hours {
    times: HashMap<StrandKey, BTreeMap<i64, Nanos>>,
    costs: BTreeMap<i64, Cost>,
}

impl Hours {
    /// Adds GPU time of an hour.
    pub(super) fn add(
        &mut self,
        by: &[Dimension],
        kind: Kind,
        key: &[Arc<str>],
        hour: i64,
        time: Nanos,
        cost: Cost,
    ) -> Result<(), MoneyError> {
        let key = match kind.is_owned() {
            true => without_times(by, key),
            false => Vec::new(),
        };
        let hours = self.times.entry((kind, key)).or_default();
        *hours.entry(hour).or_default() += time;
        let of_hour = self.costs.entry(hour).or_default();
        *of_hour = of_hour.plus(cost)?;
        Ok(())
    }

    /// The timeline of a report from `since` to `until`.
    pub(super) fn timeline(
        self,
        (since, until): (Timestamp, Timestamp),
        by: &[Dimension],
        zone: &Zone,
        prices: Option<&Prices>,
    ) -> Result<Timeline, MoneyError> {
        // The hour in which the report ends is in it, unless it ends with its beginning.
        let last = hour_of(until);
        let end = last + i64::from(begin_of(last) < until);
        let first = hour_of(since);
        // What was booked lies within, whatever the clock did.
        let hours = self.costs.keys();
        let first = hours.clone().next().map_or(first, |hour| first.min(*hour));
        let end = hours.last().map_or(end, |hour| end.max(hour + 1));
        let (unit, place) = match end - first {
            hours if hours <= MOST_HOURS => (Dimension::Hour, 0),
            hours if hours <= MOST_DAY_HOURS => (Dimension::Day, 1),
            _ => (Dimension::Month, 2),
        };
        let mut names: Vec<Arc<str>> = Vec::new();
        let mut costs: Vec<Cost> = Vec::new();
        let mut column_of: HashMap<i64, usize> = HashMap::new();
        for hour in first..end {
            let mut of_hour = zone.names(hour);
            let name = std::mem::take(&mut of_hour[place]);
            if names.last().is_none_or(|last| **last != *name) {
                names.push(name.into());
                costs.push(Cost::default());
            }
            let column = names.len() - 1;
            column_of.insert(hour, column);
            if let Some(cost) = self.costs.get(&hour) {
                costs[column] = costs[column].plus(*cost)?;
            }
        }
        let costs: Vec<Option<Decimal>> = match prices {
            Some(prices) => prices.round(&costs)?.0.into_iter().map(Some).collect(),
            None => vec![None; costs.len()],
        };
        let strand = |((kind, key), hours): (StrandKey, BTreeMap<i64, Nanos>)| {
            let mut times = vec![Nanos::ZERO; names.len()];
            for (hour, time) in hours {
                if let Some(column) = column_of.get(&hour) {
                    times[*column] += time;
                }
            }
            Strand { kind, key, times }
        };
        let mut strands: Vec<Strand> = self.times.into_iter().map(strand).collect();
        strands.retain(|strand| !strand.sum().is_zero());
        strands.sort_by_cached_key(|strand| {
            let most = Reverse(strand.sum());
            (
                !strand.kind.is_owned(),
                most,
                strand.kind,
                strand.key.clone(),
            )
        });
        let columns = names.iter().zip(costs);
        let columns = columns.map(|(name, cost)| Column {
            name: Arc::clone(name),
            cost,
        });
        Ok(Timeline {
            unit,
            by: untimed(by).cloned().collect(),
            columns: columns.collect(),
            strands,
        })
    }
}

fn untimed(by: &[Dimension]) -> impl Iterator<Item = &Dimension> {
    by.iter().filter(|dimension| !dimension.is_time())
}

/// The key of a row without the hours, days and months in it.
#[must_use]
pub fn without_times(by: &[Dimension], key: &[Arc<str>]) -> Vec<Arc<str>> {
    let both = by.iter().zip(key);
    let kept = both.filter(|(dimension, _)| !dimension.is_time());
    kept.map(|(_, value)| Arc::clone(value)).collect()
}
