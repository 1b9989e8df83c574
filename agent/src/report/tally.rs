//! Adding up: rows of the ledger in, a report out. Pure, and in the integers of the books.
//!
//! **Allocated and unused** is, for each account and hour, what was allocated beyond what was busy:
//! at least 0, and 0 where nothing was allocated. Busy time of a container that was given no GPU thus
//! never makes another one's idle GPU disappear, and the sum is the same however it is grouped.
//!
//! **A GPU that is shared** by time-slicing is allocated to each of the containers that have it, for all
//! of the time. Their parts of that time (`allocated_share`) are together no more than the GPU's time,
//! and are what allocated time costs.
//!
//! **GPU time** is the time of the GPU that a row is about, whatever became of it: busy time of
//! containers, of the host and of nobody; idle, unobserved and unaccounted time. Over all rows it is
//! all there is.
//!
//! **A divided GPU** is no GPU beside its MIG instances, whose time is all there is to use. What is
//! booked of it as not observed is its instances' time once more, so it is left out, and a note says
//! how much that is. Its energy is in: no instance has any of its own.
//!
//! **Energy** of time that has no owner or was not observed is known for the hour and not for each
//! reason; it is split by time.

mod dimension;
mod row;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use rust_decimal::Decimal;

pub use self::dimension::Dimension;
pub use self::row::{Kind, Report, Row, Sums};
use super::prices::{Cost, MoneyError, Price, Prices};
use super::range::{Asked, Calendar, begin_of, hour_of};
use crate::core::amounts::{self, Amounts, Millijoules};
use crate::core::model::{NONE, Nanos, UNRESOLVED, UnobservedReason};
use crate::outputs::store::query::{
    AccountLife, AccountRecord, GpuRecord, GpuUsed, LedgerExtent, ReasonUsed, Used,
};

/// Part of a GPU's time that may not be booked yet: windows end when the driver's samples do, and
/// wait for the event stream. Of an hour that is over it is in the next.
const UNDER_WAY: Nanos = Nanos::from_secs(10);
/// Nanoseconds of an hour.
const HOUR: u64 = 3_600_000_000_000;
/// A commit this old was not made by an agent that runs.
const LATE: SignedDuration = SignedDuration::from_secs(60);
/// A label's value that is the empty text, which would be a blank.
const EMPTY: &str = "(empty)";
/// Why the time of a divided GPU is not observed.
const UNSUPPORTED: &str = UnobservedReason::Unsupported.as_str();

type GroupKey = (Kind, Arc<str>, Vec<Arc<str>>);

/// One GPU's hour.
#[derive(Debug, Default)]
struct Hour {
    accounts_busy: Nanos,
    accounts_energy: Millijoules,
    book: GpuUsed,
    unattributed: Vec<(Arc<str>, Nanos)>,
    unobserved: Vec<(Arc<str>, Nanos)>,
}

/// An account, as far as the report needs it.
#[derive(Debug)]
struct AccountKey {
    kind: Kind,
    gpu: i64,
    profile: Option<Arc<str>>,
    key: Vec<Arc<str>>,
}

/// A report in the making.
#[derive(Debug)]
pub struct Tally<'a> {
    standing: LedgerExtent,
    gpus: HashMap<i64, GpuRecord>,
    asked: Asked,
    by: &'a [Dimension],
    prices: Option<&'a Prices>,
    price_of: HashMap<(i64, Option<Arc<str>>), Price>,
    /// GPUs that have or had MIG instances.
    divided: HashSet<i64>,
    /// Their time that is left out.
    left_out: Nanos,
    lives: HashMap<GroupKey, AccountLife>,
    life: AccountLife,
    payers: HashMap<i64, Arc<AccountKey>>,
    groups: HashMap<GroupKey, Sums>,
    hours: BTreeMap<(i64, i64), Hour>,
    /// The last hour whose name was asked for, with the names.
    named: Option<(i64, [Arc<str>; 3])>,
    none: Arc<str>,
}

impl<'a> Tally<'a> {
    /// Creates an empty tally.
    #[must_use]
    pub fn new(
        standing: LedgerExtent,
        gpus: HashMap<i64, GpuRecord>,
        asked: Asked,
        by: &'a [Dimension],
        prices: Option<&'a Prices>,
    ) -> Self {
        let parents: HashSet<_> = gpus.values().filter_map(|gpu| gpu.parent.clone()).collect();
        let divided = gpus.iter().filter(|(_, gpu)| parents.contains(&gpu.uuid));
        Self {
            divided: divided.map(|(number, _)| *number).collect(),
            left_out: Nanos::ZERO,
            lives: HashMap::new(),
            life: AccountLife::default(),
            standing,
            gpus,
            asked,
            by,
            prices,
            price_of: HashMap::new(),
            payers: HashMap::new(),
            groups: HashMap::new(),
            hours: BTreeMap::new(),
            named: None,
            none: NONE.into(),
        }
    }

    /// Adds what an account used. `record` is asked for an account that is met for the first time.
    ///
    /// # Errors
    /// That of `record`, and if its GPU has no price.
    pub fn account<E: From<MoneyError>>(
        &mut self,
        used: Used,
        record: impl FnOnce(i64) -> Result<AccountRecord, E>,
    ) -> Result<(), E> {
        let payer = match self.payers.get(&used.account) {
            Some(payer) => Arc::clone(payer),
            None => {
                let record = record(used.account)?;
                let payer = Arc::new(self.payer(&record));
                self.life = self.life.and(record.life);
                if !self.by.iter().any(Dimension::is_time) {
                    let group = (payer.kind, self.none.clone(), payer.key.clone());
                    let life = self.lives.entry(group).or_default();
                    *life = life.and(record.life);
                }
                self.payers.insert(used.account, Arc::clone(&payer));
                payer
            }
        };
        let key = self.at_hour(&payer.key, used.hour);
        let AccountKey { kind, gpu, .. } = *payer;
        let profile = payer.profile.clone();
        let Amounts {
            busy,
            allocated,
            allocated_share,
            ..
        } = used.amounts;
        let cost = self.cost(gpu, profile, busy, allocated_share)?;
        let hour = self.hours.entry((used.hour, gpu)).or_default();
        hour.accounts_busy += busy;
        let energy = &mut hour.accounts_energy.0;
        *energy = energy.saturating_add(used.amounts.energy.0);
        let sums = Sums {
            gpu: busy,
            amounts: used.amounts,
            unused: allocated.minus(busy),
            cost,
        };
        self.add(kind, self.none.clone(), key, sums)?;
        Ok(())
    }

    /// Adds what became of a GPU's hour.
    pub fn book(&mut self, book: GpuUsed) {
        self.hours.entry((book.hour, book.gpu)).or_default().book = book;
    }

    /// Adds time without an owner, or without an observation.
    pub fn reason(&mut self, found: ReasonUsed) {
        let hour = self.hours.entry((found.hour, found.gpu)).or_default();
        let reasons = if found.unobserved {
            &mut hour.unobserved
        } else {
            &mut hour.unattributed
        };
        reasons.push((found.reason, found.time));
    }

    /// The report, as of now.
    ///
    /// # Errors
    /// If a GPU that was used has no price, or money has too many digits.
    pub fn report(mut self, now: Timestamp) -> Result<Report, MoneyError> {
        let committed = timestamp(i128::from(self.standing.committed.0));
        let hours = self.asked.hours();
        let since = begin_of(hours.start);
        let until = begin_of(hours.end).min(committed).max(since);

        let mut whole = Sums::default();
        let mut imbalance = Nanos::ZERO;
        let mut elapsed = HashMap::new();
        for ((hour, gpu), found) in std::mem::take(&mut self.hours) {
            imbalance += found.imbalance();
            elapsed.insert((hour, gpu), found.book.elapsed);
            whole = whole.plus(self.device(hour, gpu, found)?)?;
        }
        whole.gpu += self.unaccounted(&elapsed, since, until)?;
        let owned = self.groups.iter().filter(|((kind, ..), _)| kind.is_owned());
        for sums in owned.map(|(_, sums)| sums) {
            let Amounts { busy, energy, .. } = whole.amounts;
            whole.amounts += sums.amounts;
            // These two are the devices' own.
            whole.amounts.busy = busy;
            whole.amounts.energy = energy;
            whole.unused += sums.unused;
        }
        let notes = self.notes(until, committed, now, imbalance);
        let (rows, owned, total) = self.rows(whole)?;
        Ok(Report {
            asked: self.asked,
            since,
            until,
            committed,
            by: self.by.to_vec(),
            currency: self.prices.map(|prices| prices.currency.clone()),
            rows,
            owned,
            total,
            imbalance,
            notes,
        })
    }

    /// The rows in order, those that have an owner together, and the total.
    fn rows(&mut self, whole: Sums) -> Result<(Vec<Row>, Row, Row), MoneyError> {
        let mut groups: Vec<(GroupKey, Sums)> = self.groups.drain().collect();
        let by = self.by;
        let time = |key: &[Arc<str>]| -> Vec<Arc<str>> {
            let both = by.iter().zip(key);
            let times = both.filter(|(dimension, _)| dimension.is_time());
            times.map(|(_, value)| Arc::clone(value)).collect()
        };
        groups.sort_by_cached_key(|((kind, reason, key), sums)| {
            let most = Reverse((sums.gpu, sums.amounts.allocated));
            (*kind, time(key), most, Arc::clone(reason), key.clone())
        });
        let costs: Vec<Cost> = groups.iter().map(|(_, sums)| sums.cost).collect();
        let (costs, cost) = match self.prices {
            Some(prices) => {
                let (costs, cost) = prices.round(&costs)?;
                (costs.into_iter().map(Some).collect(), Some(cost))
            }
            None => (vec![None; costs.len()], None),
        };
        let share = |kind: Kind, busy: Nanos| {
            let part = Decimal::from(busy.0).checked_div(whole.amounts.busy.0.into())?;
            kind.is_busy().then(|| part.round_dp(6))
        };
        let together = |sums: Sums, cost: Option<Decimal>| Row {
            kind: Kind::Total,
            reason: self.none.clone(),
            key: vec![self.none.clone(); by.len()],
            sums,
            share: share(Kind::Total, sums.amounts.busy),
            cost,
            life: Some(self.life),
        };
        let rows: Vec<Row> = groups
            .into_iter()
            .zip(costs)
            .map(|(((kind, reason, key), sums), cost)| Row {
                kind,
                reason,
                key,
                sums,
                share: share(kind, sums.amounts.busy),
                cost: cost.filter(|_| kind.is_busy()),
                life: None,
            })
            .map(|row| {
                let group = (row.kind, row.reason.clone(), row.key.clone());
                let life = self.lives.get(&group).copied();
                Row { life, ..row }
            })
            .collect();
        let owned = rows.iter().filter(|row| row.kind.is_owned());
        let sums = owned
            .clone()
            .try_fold(Sums::default(), |sums, row| sums.plus(row.sums))?;
        let owned = together(sums, cost.map(|_| owned.filter_map(|row| row.cost).sum()));
        let total = together(whole, cost);
        Ok((rows, owned, total))
    }

    /// Adds the rows without an owner of a GPU's hour, and returns the device's own figures.
    fn device(&mut self, hour: i64, gpu: i64, found: Hour) -> Result<Sums, MoneyError> {
        let Hour { book, .. } = found;
        let key = self.nobody(gpu, hour);
        let profile = self.gpus.get(&gpu).and_then(|gpu| gpu.profile.clone());
        let owned = found.accounts_energy.0;
        let owned = owned.saturating_add(book.energy_idle.0);
        let mut energy = Millijoules(book.energy.0.saturating_sub(owned));
        let with = |kind| move |(reason, time)| (kind, reason, time);
        let unattributed = found.unattributed.into_iter();
        let unobserved = found.unobserved.into_iter();
        let mut reasons: Vec<(Kind, Arc<str>, Nanos)> = unattributed
            .map(with(Kind::Unattributed))
            .chain(unobserved.map(with(Kind::Unobserved)))
            .collect();
        let times: Vec<Nanos> = reasons.iter().map(|(.., time)| *time).collect();
        let mut energies = amounts::split(energy, &times);
        energy.0 -= energies.iter().map(|part| part.0).sum::<u64>();
        if energy.0 > 0 {
            reasons.push((Kind::Unattributed, self.none.clone(), Nanos::ZERO));
            energies.push(energy);
        }
        let is_divided = self.divided.contains(&gpu);
        let is_instances = |reason: &Arc<str>| is_divided && &**reason == UNSUPPORTED;
        // Divided for all of the hour: then whatever else is not observed is its instances' too.
        let all = book.busy.is_zero()
            && book.idle.is_zero()
            && reasons.iter().any(|(_, reason, _)| is_instances(reason));
        let mut left_out = Nanos::ZERO;
        for ((kind, reason, mut time), energy) in reasons.into_iter().zip(energies) {
            if kind == Kind::Unobserved && (all || is_instances(&reason)) {
                left_out += time;
                time = Nanos::ZERO;
            }
            let busy = match kind {
                Kind::Unattributed => time,
                _ => Nanos::ZERO,
            };
            let sums = Sums {
                gpu: time,
                amounts: Amounts {
                    energy,
                    ..Amounts::busy(busy)
                },
                unused: Nanos::ZERO,
                cost: self.cost(gpu, profile.clone(), busy, Nanos::ZERO)?,
            };
            self.add(kind, reason, key.clone(), sums)?;
        }
        let idle = Sums {
            gpu: book.idle,
            amounts: Amounts {
                energy: book.energy_idle,
                ..Amounts::ZERO
            },
            ..Sums::default()
        };
        self.add(Kind::Idle, self.none.clone(), key, idle)?;
        self.left_out += left_out;
        Ok(Sums {
            gpu: book.elapsed.minus(left_out),
            amounts: Amounts {
                energy: book.energy,
                ..Amounts::busy(book.busy)
            },
            ..Sums::default()
        })
    }

    /// Adds what of each GPU's hours is in no book, from the first hour of which it has one to the
    /// last; says how much that is. An hour that has more than it is long has it of the hours before
    /// it: a window is in the hour in which it was booked.
    fn unaccounted(
        &mut self,
        elapsed: &HashMap<(i64, i64), Nanos>,
        since: Timestamp,
        until: Timestamp,
    ) -> Result<Nanos, MoneyError> {
        let spans: Vec<_> = self
            .gpus
            .iter()
            .map(|(gpu, record)| {
                let first = record.first_hour.max(hour_of(since));
                (*gpu, first..=record.last_hour.min(hour_of(until)))
            })
            .collect();
        let mut all = Nanos::ZERO;
        for (gpu, hours) in spans {
            let mut surplus = Nanos::ZERO;
            for hour in hours.rev() {
                let end = begin_of(hour + 1).min(until);
                let length = end.duration_since(begin_of(hour)).as_nanos();
                let length = Nanos(u64::try_from(length).unwrap_or(0));
                let booked = elapsed.get(&(hour, gpu)).copied().unwrap_or_default();
                surplus += booked.minus(length);
                let missing = length.minus(booked).minus(surplus);
                surplus = surplus.minus(length.minus(booked));
                if missing > UNDER_WAY {
                    let sums = Sums {
                        gpu: missing,
                        ..Sums::default()
                    };
                    let key = self.nobody(gpu, hour);
                    self.add(Kind::Unaccounted, self.none.clone(), key, sums)?;
                    all += missing;
                }
            }
        }
        Ok(all)
    }

    fn add(
        &mut self,
        kind: Kind,
        reason: Arc<str>,
        key: Vec<Arc<str>>,
        sums: Sums,
    ) -> Result<(), MoneyError> {
        if sums == Sums::default() {
            return Ok(());
        }
        let group = self.groups.entry((kind, reason, key)).or_default();
        *group = group.plus(sums)?;
        Ok(())
    }
}

impl Tally<'_> {
    fn payer(&self, record: &AccountRecord) -> AccountKey {
        let kind = match &*record.kind {
            "host" => Kind::Host,
            _ => Kind::Container,
        };
        let is_host = kind == Kind::Host;
        let key = self.by.iter().map(|dimension| match dimension {
            Dimension::Gpu | Dimension::Model => self.device_name(record.gpu, dimension),
            Dimension::Profile => record.profile.as_ref().map_or(self.none.clone(), shown),
            Dimension::Unit if is_host => shown(&record.owner),
            Dimension::Unit => self.none.clone(),
            _ if is_host => self.none.clone(),
            Dimension::Namespace => shown(&record.namespace),
            Dimension::Pod => shown(&record.pod),
            Dimension::PodUid => shown(&record.pod_uid),
            Dimension::Container => shown(&record.container),
            Dimension::ContainerId => shown(&record.container_id),
            Dimension::Image => shown(&record.image),
            Dimension::Runtime => shown(&record.runtime),
            Dimension::Label(key) => label(record, key),
            // Known with each hour.
            Dimension::Hour | Dimension::Day | Dimension::Month => self.none.clone(),
        });
        AccountKey {
            kind,
            gpu: record.gpu,
            profile: record.profile.clone(),
            key: key.collect(),
        }
    }

    /// The key of a GPU's hour that is nobody's.
    fn nobody(&mut self, gpu: i64, hour: i64) -> Vec<Arc<str>> {
        let key = self.by.iter().map(|dimension| match dimension {
            Dimension::Gpu | Dimension::Model | Dimension::Profile => {
                self.device_name(gpu, dimension)
            }
            _ => self.none.clone(),
        });
        let key: Vec<_> = key.collect();
        self.at_hour(&key, hour)
    }

    fn device_name(&self, gpu: i64, dimension: &Dimension) -> Arc<str> {
        let Some(gpu) = self.gpus.get(&gpu) else {
            return UNRESOLVED.into();
        };
        match dimension {
            Dimension::Model => shown(&gpu.model),
            Dimension::Profile => gpu.profile.as_ref().map_or(self.none.clone(), shown),
            _ => shown(&gpu.uuid.0),
        }
    }

    /// A key with what depends on the hour.
    fn at_hour(&mut self, key: &[Arc<str>], hour: i64) -> Vec<Arc<str>> {
        let mut key = key.to_vec();
        if !self.by.iter().any(Dimension::is_time) {
            return key;
        }
        let names = match &self.named {
            Some((named, names)) if *named == hour => names,
            _ => {
                let calendar = Calendar(hour);
                let names = [
                    calendar.hour().to_string().into(),
                    calendar.day().to_string().into(),
                    calendar.month().to_string().into(),
                ];
                &self.named.insert((hour, names)).1
            }
        };
        for (dimension, value) in self.by.iter().zip(&mut key) {
            match dimension {
                Dimension::Hour => value.clone_from(&names[0]),
                Dimension::Day => value.clone_from(&names[1]),
                Dimension::Month => value.clone_from(&names[2]),
                _ => {}
            }
        }
        key
    }

    /// What these times of a GPU cost, of allocated time the part that is the payer's; nothing where
    /// there are no prices.
    fn cost(
        &mut self,
        gpu: i64,
        profile: Option<Arc<str>>,
        busy: Nanos,
        allocated: Nanos,
    ) -> Result<Cost, MoneyError> {
        let Some(prices) = self.prices else {
            return Ok(Cost::default());
        };
        if busy.is_zero() && allocated.is_zero() {
            return Ok(Cost::default());
        }
        let key = (gpu, profile);
        let price = match self.price_of.get(&key) {
            Some(price) => *price,
            None => {
                let model = self.device_name(gpu, &Dimension::Model);
                let uuid = self.device_name(gpu, &Dimension::Gpu);
                let price = match &key.1 {
                    Some(profile) => prices.of_instance(&model, profile, &uuid)?,
                    None => prices.of(&model, &uuid)?,
                }
                .price;
                self.price_of.insert(key, price);
                price
            }
        };
        Cost::of(price, busy, allocated)
    }

    fn notes(
        &self,
        until: Timestamp,
        committed: Timestamp,
        now: Timestamp,
        imbalance: Nanos,
    ) -> Vec<String> {
        let mut notes = Vec::new();
        if !imbalance.is_zero() {
            notes.push(format!(
                "the books are out of balance by {} ns: this is a bug, please keep the ledger and report it",
                imbalance.0
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
        let begin = begin_of(hour_of(since));
        let cut_end = end.filter(|end| begin_of(hour_of(*end)) != *end);
        if let Some(end) = cut_end {
            notes.push(format!(
                "the report counts whole hours: it includes all of the hour of {since} and nothing of the hour of {end}"
            ));
        } else if begin != since {
            notes.push(format!(
                "the report counts whole hours: it includes all of the hour of {since}"
            ));
        }
        let first = begin_of(self.standing.first_hour);
        if first > begin {
            notes.push(format!("the ledger begins with the hour of {first}"));
        }
        if until == committed && begin_of(hour_of(until)) != until {
            notes.push(format!(
                "the hour of {} is included up to the last commit",
                begin_of(hour_of(until))
            ));
        }
        let wanted = end.map_or(now, |end| end.min(now));
        if wanted.duration_since(committed) > LATE {
            notes.push(format!("nothing was committed after {committed}"));
        }
        notes
    }
}

/// A text that is not blank.
fn shown(text: &Arc<str>) -> Arc<str> {
    if text.is_empty() {
        UNRESOLVED.into()
    } else {
        Arc::clone(text)
    }
}

/// The value of a label.
fn label(record: &AccountRecord, key: &str) -> Arc<str> {
    // Until it is named, nothing is known of its labels either.
    if &*record.attribution != "named" {
        return UNRESOLVED.into();
    }
    let labels: Result<HashMap<String, Arc<str>>, _> = serde_json::from_str(&record.labels);
    let Ok(labels) = labels else {
        return UNRESOLVED.into();
    };
    match labels.get(key) {
        None => NONE.into(),
        Some(value) if value.is_empty() => EMPTY.into(),
        Some(value) => Arc::clone(value),
    }
}

fn timestamp(nanoseconds: i128) -> Timestamp {
    // 64 bits of nanoseconds end in 2554, the calendar in 9999.
    Timestamp::from_nanosecond(nanoseconds).unwrap_or(Timestamp::MAX)
}

impl Hour {
    /// By how much its rows and the device differ.
    fn imbalance(&self) -> Nanos {
        let sum = |reasons: &[(Arc<str>, Nanos)]| reasons.iter().map(|(_, time)| *time).sum();
        let unattributed: Nanos = sum(&self.unattributed);
        let unobserved: Nanos = sum(&self.unobserved);
        let busy = self.accounts_busy.plus(unattributed);
        let elapsed = self.book.busy.plus(self.book.idle).plus(unobserved);
        Nanos(busy.0.abs_diff(self.book.busy.0))
            .plus(Nanos(elapsed.0.abs_diff(self.book.elapsed.0)))
    }
}
