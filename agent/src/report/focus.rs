//! Makes charges of a report, in the sense of the FinOps Open Cost and Usage Specification (FOCUS): what
//! an hour of a GPU cost, split among those who used it and what nobody used.
//!
//! **The hour of a GPU is the origin charge.** What an owner used is one of its parts; so are busy time
//! without an owner, idle time and time that was not observed. If the prices have `busy_hour`, the hour is
//! split by busy time; if they have `allocated_hour`, by parts of allocated time; if they have both, it is
//! split twice, at either price. Time that no book covers is no charge: nothing is known of it.
//!
//! **Two amounts of money.** What a part is worth is its hours times the price. What is billed is the same
//! for time that the report bills: busy time, and time that somebody was given. Nobody is billed for the
//! rest. So what is billed adds up to the report's total, and what the parts are worth to the price of the
//! GPU's hour.
//!
//! **Exact.** Hours are decimals with [`DECIMALS`] digits, enough to get each nanosecond back. The parts of
//! an hour are rounded together ([`apportion`]) and add up to it. Money is hours times the price, a finite
//! decimal, and is not rounded at all. Ratios are rounded together too, and add up to 1.

mod apportion;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::{Timestamp, ToSpan as _};
use rust_decimal::Decimal;

use self::apportion::apportion;
use super::prices::{MoneyError, Price, Prices, Whose};
use super::tally::{Dimension, EMPTY, Kind, Question, Report, Row};
use super::zone::Zone;
use crate::core::model::{NONE, Nanos, UNRESOLVED};

/// Digits after the point of hours. The last one is 0.36 nanoseconds.
pub const DECIMALS: u32 = 13;
/// Digits after the point of a ratio.
const RATIO_DECIMALS: u32 = 12;
const NANOS_OF_AN_HOUR: u128 = 3_600_000_000_000;

/// What of a row a charge needs, beside labels that were asked for.
const KEY: [Dimension; 14] = [
    Dimension::Hour,
    Dimension::Node,
    Dimension::Gpu,
    Dimension::GpuIndex,
    Dimension::Model,
    Dimension::Profile,
    Dimension::Namespace,
    Dimension::Pod,
    Dimension::PodUid,
    Dimension::Container,
    Dimension::ContainerId,
    Dimension::Image,
    Dimension::Runtime,
    Dimension::Unit,
];

/// Why there are no charges.
#[derive(Debug, thiserror::Error)]
pub enum FocusError {
    /// There are no prices.
    #[error("FOCUS is a format of costs, and no prices were given")]
    NoPrices,
    /// The currency is none of those that FOCUS has.
    #[error(
        "the prices are in {found:?}, and FOCUS wants the three letters of ISO 4217, such as \"EUR\""
    )]
    Currency {
        /// The currency.
        found: String,
    },
    /// Only some owners' time was asked for, which is no whole hour of a GPU.
    #[error("a report that is limited to some containers has no whole hours of GPUs to split")]
    Limited,
    /// Owners of a GPU's hour pay different prices, and the hour has one.
    #[error(
        "the prices of an hour depend on the owner's labels, and in FOCUS the hour of a GPU has one price"
    )]
    PricesOfOwners,
    /// A sum, or a missing price.
    #[error(transparent)]
    Money(#[from] MoneyError),
    /// A row that is not as the question asked for it.
    #[error("the report has a row without its {0}: this is a bug")]
    Row(Dimension),
}

/// The question whose report has what charges need: the same range and prices, by hours of UTC and by
/// owner. Of what the report was to be grouped by, labels stay.
///
/// # Errors
/// If there are no prices, or not in a currency of FOCUS.
pub fn question(asked: Question) -> Result<Question, FocusError> {
    let prices = asked.prices.as_ref().ok_or(FocusError::NoPrices)?;
    let currency = &prices.currency;
    if currency.len() != 3 || !currency.chars().all(|c| c.is_ascii_uppercase()) {
        let found = currency.clone();
        return Err(FocusError::Currency { found });
    }
    if !prices.label_keys().is_empty() {
        return Err(FocusError::PricesOfOwners);
    }
    let cluster = prices.are_by_cluster().then_some(Dimension::Cluster);
    let labels = asked.by.iter();
    let labels = labels.filter(|dimension| matches!(dimension, Dimension::Label(_)));
    Ok(Question {
        by: KEY
            .iter()
            .chain(cluster.as_ref())
            .chain(labels)
            .cloned()
            .collect(),
        zone: Zone::UTC,
        ..asked
    })
}

/// What a price is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Meter {
    /// Time in which the GPU was busy: `busy_hour` in the prices.
    Busy,
    /// Time in which the GPU was given to somebody: `allocated_hour` in the prices.
    Allocated,
}

impl Meter {
    /// All meters, in the order in which an hour is split by them.
    pub const ALL: [Self; 2] = [Self::Busy, Self::Allocated];

    /// Returns a short name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::Allocated => "allocated",
        }
    }

    const fn of(self, price: Price) -> Option<Decimal> {
        match self {
            Self::Busy => price.busy_hour,
            Self::Allocated => price.allocated_hour,
        }
    }
}

/// The hour of a GPU that charges are parts of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Its beginning.
    pub begin: Timestamp,
    /// What the price is for.
    pub meter: Meter,
    /// The UUID of the GPU or the MIG instance.
    pub gpu: Arc<str>,
    /// The node's name, if it is known.
    pub node: Option<Arc<str>>,
    /// NVML's index of the GPU, if it is known.
    pub index: Option<Arc<str>>,
    /// The GPU's model.
    pub model: Arc<str>,
    /// The MIG instance's profile.
    pub profile: Option<Arc<str>>,
    /// Price of an hour.
    pub price: Decimal,
}

impl Origin {
    /// The end of the hour.
    #[must_use]
    pub fn end(&self) -> Timestamp {
        self.begin.checked_add(1.hour()).unwrap_or(Timestamp::MAX)
    }
}

/// Who is charged: names as the report has them, none where nothing is known or applies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Payer {
    /// Name of the Kubernetes namespace.
    pub namespace: Option<Arc<str>>,
    /// Name of the pod.
    pub pod: Option<Arc<str>>,
    /// The pod's uid, as Kubernetes gave it.
    pub pod_uid: Option<Arc<str>>,
    /// Name of the container.
    pub container: Option<Arc<str>>,
    /// The container's id, as its runtime gave it.
    pub container_id: Option<Arc<str>>,
    /// Image of the container, as its runtime names it.
    pub image: Option<Arc<str>>,
    /// Container runtime, by the form of the cgroup's path.
    pub runtime: Option<Arc<str>>,
    /// The host's systemd unit, if a process of the host is charged.
    pub unit: Option<Arc<str>>,
    /// Labels that were asked for, by their keys.
    pub labels: Vec<(Arc<str>, Arc<str>)>,
}

impl Payer {
    /// What tells this owner from all others on the GPU: the id of the container, the uid of the pod, or
    /// the unit.
    #[must_use]
    pub fn id(&self) -> Option<&Arc<str>> {
        let ids = [
            &self.container_id,
            &self.pod_uid,
            &self.unit,
            &self.container,
        ];
        ids.into_iter().find_map(Option::as_ref)
    }

    /// Its name: namespace, pod and container as far as they are known, or the unit.
    #[must_use]
    pub fn name(&self) -> Option<String> {
        let parts = [&self.namespace, &self.pod, &self.container];
        let parts: Vec<&str> = parts.into_iter().flatten().map(|part| &**part).collect();
        match parts.is_empty() {
            false => Some(parts.join("/")),
            true => self
                .unit
                .as_deref()
                .or(self.id().map(|id| &**id))
                .map(ToOwned::to_owned),
        }
    }
}

/// What became of a part of the hour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// It is in the report under this kind.
    Reported(Kind),
    /// Nobody was given it.
    Unallocated,
}

impl Part {
    /// Returns the name that is printed.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Reported(kind) => kind.as_str(),
            Self::Unallocated => "unallocated",
        }
    }

    /// Whether the report bills it.
    const fn is_billed(self) -> bool {
        matches!(self, Self::Reported(kind) if kind.is_busy())
    }
}

/// A part of a GPU's hour, and what it costs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Charge {
    /// The hour.
    pub origin: Arc<Origin>,
    /// What became of the time.
    pub part: Part,
    /// Why, where it has no owner or was not observed; none otherwise.
    pub reason: Option<Arc<str>>,
    /// Who is charged; nobody for time without an owner.
    pub payer: Option<Payer>,
    /// The time.
    pub time: Nanos,
    /// The same in hours.
    pub hours: Decimal,
    /// Its part of the origin; the parts add up to 1.
    pub ratio: Decimal,
    /// What it is worth: hours times the price.
    pub cost: Decimal,
    /// What is billed of that: all or nothing.
    pub billed: Decimal,
}

impl Charge {
    /// The hours that somebody consumed: all or nothing.
    #[must_use]
    pub const fn consumed(&self) -> Decimal {
        match self.part.is_billed() {
            true => self.hours,
            false => Decimal::ZERO,
        }
    }
}

/// What is split, before there are prices.
#[derive(Debug)]
struct Piece {
    part: Part,
    reason: Option<Arc<str>>,
    payer: Option<Payer>,
    time: Nanos,
}

/// The rows of a GPU's hour.
type Rows<'a> = Vec<(&'a Row, Cells<'a>)>;

/// The charges of a report that answers [`question`], in the order of time. `whole` asks for whole hours of
/// GPUs, which a report of some owners does not have.
///
/// # Errors
/// If the report is limited and `whole` is asked for, if a GPU has no price, or if money has too many
/// digits.
pub fn charges(report: &Report, prices: &Prices, whole: bool) -> Result<Vec<Charge>, FocusError> {
    if whole && !report.only.is_empty() {
        return Err(FocusError::Limited);
    }
    let mut hours: BTreeMap<_, Rows<'_>> = BTreeMap::new();
    for row in &report.rows {
        if matches!(row.kind, Kind::Unaccounted | Kind::Total) {
            continue;
        }
        let cells = Cells { report, row };
        let of = |dimension| cells.get(&dimension);
        let key = [Dimension::Hour, Dimension::Gpu, Dimension::Profile].map(of);
        let [hour, gpu, profile] = key;
        hours
            .entry((hour?, gpu?, profile?))
            .or_default()
            .push((row, cells));
    }
    let mut charges = Vec::new();
    for rows in hours.into_values() {
        for meter in Meter::ALL {
            let pieces = pieces(&rows, meter, report.only.is_empty());
            let Some((_, cells)) = rows.first().filter(|_| !pieces.is_empty()) else {
                continue;
            };
            if let Some(origin) = cells.origin(prices, meter)? {
                split(&Arc::new(origin), pieces, &mut charges)?;
            }
        }
    }
    Ok(charges)
}

/// The pieces of a GPU's hour that are not nothing. The rows are all of it if it `is_whole`.
fn pieces(rows: &Rows<'_>, meter: Meter, is_whole: bool) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let (mut all, mut allocated) = (Nanos::ZERO, Nanos::ZERO);
    for (row, cells) in rows {
        all += row.sums.gpu;
        let is_owned = row.kind.is_owned();
        let time = match meter {
            Meter::Busy => row.sums.gpu,
            Meter::Allocated if is_owned => row.sums.amounts.allocated_share,
            Meter::Allocated => Nanos::ZERO,
        };
        allocated += time;
        pieces.push(Piece {
            part: Part::Reported(row.kind),
            reason: known(&row.reason),
            payer: is_owned.then(|| cells.payer()),
            time,
        });
    }
    if meter == Meter::Allocated && is_whole {
        pieces.push(Piece {
            part: Part::Unallocated,
            reason: None,
            payer: None,
            time: all.minus(allocated),
        });
    }
    pieces.retain(|piece| !piece.time.is_zero());
    pieces
}

/// Splits an hour.
fn split(
    origin: &Arc<Origin>,
    pieces: Vec<Piece>,
    charges: &mut Vec<Charge>,
) -> Result<(), MoneyError> {
    let times: Vec<u128> = pieces.iter().map(|piece| piece.time.0.into()).collect();
    let all: u128 = times.iter().sum();
    // Rounded, not cut: an hour of 3600 s is 1.
    let unit = 10_u128.pow(DECIMALS);
    let digits = (all * unit + NANOS_OF_AN_HOUR / 2) / NANOS_OF_AN_HOUR;
    let hours = apportion(digits, &times);
    let ratios = apportion(10_u128.pow(RATIO_DECIMALS), &times);
    for ((piece, hours), ratio) in pieces.into_iter().zip(hours).zip(ratios) {
        let hours = decimal(hours, DECIMALS)?;
        let cost = times_exactly(hours, origin.price)?;
        charges.push(Charge {
            origin: Arc::clone(origin),
            part: piece.part,
            reason: piece.reason,
            payer: piece.payer,
            time: piece.time,
            hours,
            ratio: decimal(ratio, RATIO_DECIMALS)?,
            cost,
            billed: match piece.part.is_billed() {
                true => cost,
                false => Decimal::ZERO,
            },
        });
    }
    Ok(())
}

fn decimal(digits: u128, decimals: u32) -> Result<Decimal, MoneyError> {
    let digits = i128::try_from(digits).ok();
    digits
        .and_then(|digits| Decimal::try_from_i128_with_scale(digits, decimals).ok())
        .map(|number| number.normalize())
        .ok_or(MoneyError::TooLarge)
}

/// The product. What does not fit is rounded by the library, and what is rounded is not exact.
fn times_exactly(hours: Decimal, price: Decimal) -> Result<Decimal, MoneyError> {
    let price = price.normalize();
    hours
        .checked_mul(price)
        .filter(|product| product.is_zero() || product.scale() == hours.scale() + price.scale())
        .map(|product| product.normalize())
        .ok_or(MoneyError::TooLarge)
}

/// A value that says something; none of those that say that there is none.
fn known(value: &Arc<str>) -> Option<Arc<str>> {
    let says_nothing = matches!(&**value, "" | NONE | UNRESOLVED);
    (!says_nothing).then(|| Arc::clone(value))
}

/// The values of a row, by dimension.
#[derive(Clone, Copy, Debug)]
struct Cells<'a> {
    report: &'a Report,
    row: &'a Row,
}

impl<'a> Cells<'a> {
    fn get(&self, dimension: &Dimension) -> Result<&'a Arc<str>, FocusError> {
        let at = self.report.by.iter().position(|by| by == dimension);
        at.and_then(|at| self.row.key.get(at))
            .ok_or_else(|| FocusError::Row(dimension.clone()))
    }

    fn known(&self, dimension: &Dimension) -> Option<Arc<str>> {
        self.get(dimension).ok().and_then(known)
    }

    /// The hour, if it has a price.
    fn origin(&self, prices: &Prices, meter: Meter) -> Result<Option<Origin>, FocusError> {
        let hour = self.get(&Dimension::Hour)?;
        let begin = hour.parse().map_err(|_| FocusError::Row(Dimension::Hour))?;
        let (model, gpu) = (self.get(&Dimension::Model)?, self.get(&Dimension::Gpu)?);
        let profile = self.known(&Dimension::Profile);
        let whose = Whose {
            node: self.get(&Dimension::Node)?,
            // Only there if a price is for a cluster.
            cluster: self.get(&Dimension::Cluster).map_or(NONE, |name| name),
            labels: &[],
        };
        let quote = match &profile {
            Some(profile) => prices.of_instance(&whose, model, profile, gpu)?,
            None => prices.of(&whose, model, gpu)?,
        };
        Ok(meter.of(quote.price).map(|price| Origin {
            begin,
            meter,
            gpu: Arc::clone(gpu),
            node: self.known(&Dimension::Node),
            index: self.known(&Dimension::GpuIndex),
            model: Arc::clone(model),
            profile,
            price,
        }))
    }

    fn payer(&self) -> Payer {
        let labels = self.report.by.iter().filter_map(|dimension| {
            let Dimension::Label(key) = dimension else {
                return None;
            };
            let value = self.known(dimension)?;
            let value = if &*value == EMPTY { "".into() } else { value };
            Some((Arc::clone(key), value))
        });
        Payer {
            namespace: self.known(&Dimension::Namespace),
            pod: self.known(&Dimension::Pod),
            pod_uid: self.known(&Dimension::PodUid),
            container: self.known(&Dimension::Container),
            container_id: self.known(&Dimension::ContainerId),
            image: self.known(&Dimension::Image),
            runtime: self.known(&Dimension::Runtime),
            unit: self.known(&Dimension::Unit),
            labels: labels.collect(),
        }
    }
}
