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
//! **Several ledgers** are added up as if they were one. Numbers of GPUs and accounts are a ledger's own.
//! Each ledger answers for its part of the range.
//!
//! **GPU time** is the time of the GPU that a row is about, whatever became of it: busy time of
//! containers, of the host and of nobody; idle, unobserved and unaccounted time. Over all rows it is
//! all there is.
//!
//! **A divided GPU** is no GPU beside its MIG instances, whose time is all there is to use. What is
//! booked of it as not observed is its instances' time once more, so it is left out, and a note says
//! how much that is. Its energy is in: no instance has any of its own.
//!
//! **A report that is limited** to some accounts has no rows of the GPUs' other time, and its total is
//! that of its rows. The balance is that of all accounts, and a share is a part of all busy time.
//!
//! **Energy** of time that has no owner or was not observed is known for the hour and not for each
//! reason; it is split by time.

mod dimension;
mod elapsed;
mod filter;
mod keys;
mod kind;
mod ledgers;
mod question;
mod remarks;
mod row;
#[cfg(test)]
mod tests;
mod timeline;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use rust_decimal::Decimal;

pub use self::dimension::Dimension;
pub use self::elapsed::Elapsed;
pub use self::filter::{Filter, Label};
pub(super) use self::keys::EMPTY;
use self::keys::{AccountKey, AccountValues, Keys};
pub use self::kind::Kind;
use self::ledgers::{InLedger, Span};
pub use self::question::Question;
use self::remarks::Facts;
pub use self::row::{Absent, Figure, Report, Row, Sums};
pub use self::timeline::{Column, Strand, Timeline, without_times};
use super::hour::{begin_of, hour_of, moment_of};
use super::prices::{Cost, MoneyError, Price, Prices, Whose};
use crate::core::amounts::{self, Amounts, Millijoules};
use crate::core::model::{GpuUuid, NONE, Nanos, UnobservedReason};
use crate::outputs::store::query::{
    AccountLife, AccountRecord, GpuRecord, GpuUsed, LedgerExtent, ReasonUsed, Used,
};

/// Part of a GPU's time that may not be booked yet: windows end when the driver's samples do, and
/// wait for the event stream. Of an hour that is over it is in the next.
const UNDER_WAY: Nanos = Nanos::from_secs(10);
const HOUR: Nanos = Nanos::from_secs(3_600);
/// Why the time of a divided GPU is not observed.
const UNSUPPORTED: &str = UnobservedReason::Unsupported.as_str();

type GroupKey = (Kind, Arc<str>, Vec<Arc<str>>);
/// What a price depends on: a GPU, the profile of its instance, and labels of the owner.
type PricedBy = (InLedger, Option<Arc<str>>, Arc<[(Arc<str>, Arc<str>)]>);

/// Time that two ledgers may have in the same hour of a GPU beyond that hour: windows are booked in the
/// hour in which they end.
const SLACK: Nanos = Nanos::from_secs(300);

/// A GPU's hour that two ledgers have booked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doubled {
    /// The GPU.
    pub gpu: GpuUuid,
    /// The hour.
    pub hour: i64,
    /// The files of the two ledgers.
    pub paths: [PathBuf; 2],
}

/// One GPU's hour.
#[derive(Debug, Default)]
struct Hour {
    accounts_busy: Nanos,
    accounts_energy: Millijoules,
    book: GpuUsed,
    unattributed: Vec<(Arc<str>, Nanos)>,
    unobserved: Vec<(Arc<str>, Nanos)>,
}

/// A report in the making.
#[derive(Debug)]
pub struct Tally<'a> {
    /// The ledgers. What is added is of the last one.
    ledgers: Vec<LedgerExtent>,
    question: &'a Question,
    keys: Keys<'a>,
    /// The labels that prices depend on.
    price_keys: Vec<Arc<str>>,
    price_of: HashMap<PricedBy, Price>,
    at_default_price: BTreeSet<String>,
    /// GPUs that have or had MIG instances.
    divided: HashSet<InLedger>,
    /// Their time that is left out.
    left_out: Nanos,
    lives: HashMap<GroupKey, AccountLife>,
    life: AccountLife,
    payers: HashMap<InLedger, Arc<AccountKey>>,
    groups: HashMap<GroupKey, Sums>,
    /// What is asked for in the order of time.
    timeline: Option<timeline::Hours>,
    hours: BTreeMap<(i64, InLedger), Hour>,
    /// What of each GPU's hours is in a book, where its books are of longer times.
    elapsed: HashMap<InLedger, Elapsed>,
    none: Arc<str>,
}

impl<'a> Tally<'a> {
    /// Creates a tally of a ledger and its GPUs.
    #[must_use]
    pub fn new(
        ledger: LedgerExtent,
        gpus: HashMap<i64, GpuRecord>,
        question: &'a Question,
    ) -> Self {
        let none: Arc<str> = NONE.into();
        let mut tally = Self {
            divided: HashSet::new(),
            left_out: Nanos::ZERO,
            lives: HashMap::new(),
            life: AccountLife::default(),
            ledgers: Vec::new(),
            question,
            keys: Keys::new(&question.by, &question.zone, Arc::clone(&none)),
            price_keys: question
                .prices
                .iter()
                .flat_map(Prices::label_keys)
                .collect(),
            price_of: HashMap::new(),
            at_default_price: BTreeSet::new(),
            payers: HashMap::new(),
            groups: HashMap::new(),
            timeline: question.timeline.then(Default::default),
            hours: BTreeMap::new(),
            elapsed: HashMap::new(),
            none,
        };
        tally.next_ledger(ledger, gpus);
        tally
    }

    /// Goes on to another ledger and its GPUs.
    pub fn next_ledger(&mut self, ledger: LedgerExtent, gpus: HashMap<i64, GpuRecord>) {
        let parents: HashSet<_> = gpus.values().filter_map(|gpu| gpu.parent.clone()).collect();
        self.ledgers.push(ledger);
        for (number, gpu) in gpus {
            let number = self.in_ledger(number);
            if parents.contains(&gpu.uuid) {
                self.divided.insert(number);
            }
            self.keys.add(number, gpu);
        }
    }

    /// A number of the present ledger.
    fn in_ledger(&self, number: i64) -> InLedger {
        (self.ledgers.len() - 1, number)
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
        let number = self.in_ledger(used.account);
        let payer = match self.payers.get(&number) {
            Some(payer) => Arc::clone(payer),
            None => {
                let record = record(used.account)?;
                let values = AccountValues::new(&record);
                let is_in = self.question.filter.admits(&values);
                let gpu = self.in_ledger(record.gpu);
                let labels = self.price_keys.iter();
                let labels = labels.map(|key| {
                    let of = Dimension::Label(Arc::clone(key));
                    (Arc::clone(key), values.get(&of))
                });
                let labels = labels.collect();
                let payer = Arc::new(self.keys.account(&values, gpu, is_in, labels));
                if is_in {
                    self.life = self.life.and(record.life);
                }
                if is_in && !self.question.by.iter().any(Dimension::is_time) {
                    let group = (payer.kind, self.none.clone(), payer.key.clone());
                    let life = self.lives.entry(group).or_default();
                    *life = life.and(record.life);
                }
                self.payers.insert(number, Arc::clone(&payer));
                payer
            }
        };
        let AccountKey {
            kind, gpu, is_in, ..
        } = *payer;
        let Amounts {
            busy,
            allocated,
            allocated_share,
            ..
        } = used.amounts;
        let hour = self.hours.entry((used.hour, gpu)).or_default();
        hour.accounts_busy += busy;
        let energy = &mut hour.accounts_energy.0;
        *energy = energy.saturating_add(used.amounts.energy.0);
        if !is_in {
            return Ok(());
        }
        let key = self.keys.at_hour(&payer.key, used.hour);
        let priced_by = (gpu, payer.profile.clone(), Arc::clone(&payer.priced_by));
        let cost = self.cost(priced_by, busy, allocated_share)?;
        let sums = Sums {
            gpu: busy,
            amounts: used.amounts,
            unused: allocated.minus(busy),
            cost,
        };
        self.add(used.hour, kind, self.none.clone(), key, sums)?;
        Ok(())
    }

    /// Adds what became of a GPU's hour.
    pub fn book(&mut self, book: GpuUsed) {
        let gpu = self.in_ledger(book.gpu);
        self.hours.entry((book.hour, gpu)).or_default().book = book;
    }

    /// Says how much of each of a GPU's hours is in a book, if its books are of more than an hour.
    pub fn elapsed(&mut self, gpu: i64, hours: Elapsed) {
        let gpu = self.in_ledger(gpu);
        self.elapsed.insert(gpu, hours);
    }

    /// Adds time without an owner, or without an observation.
    pub fn reason(&mut self, found: ReasonUsed) {
        let gpu = self.in_ledger(found.gpu);
        let hour = self.hours.entry((found.hour, gpu)).or_default();
        let reasons = if found.unobserved {
            &mut hour.unobserved
        } else {
            &mut hour.unattributed
        };
        reasons.push((found.reason, found.time));
    }

    /// The first hour of a GPU that two ledgers have booked. A GPU may go from one ledger to another, also
    /// within an hour, but no hour has more time than an hour.
    #[must_use]
    pub fn doubled(&self) -> Option<Doubled> {
        let mut booked: HashMap<(i64, &GpuUuid), (usize, Nanos)> = HashMap::new();
        for ((hour, gpu), found) in &self.hours {
            let Some(record) = self.keys.gpus().get(gpu) else {
                continue;
            };
            let (first, time) = booked
                .entry((*hour, &record.uuid))
                .or_insert((gpu.0, Nanos::ZERO));
            *time += found.book.elapsed;
            if *first != gpu.0 && *time > HOUR.plus(SLACK) {
                return Some(Doubled {
                    gpu: record.uuid.clone(),
                    hour: *hour,
                    paths: [*first, gpu.0].map(|of| self.ledgers[of].path.clone()),
                });
            }
        }
        None
    }

    /// The report, as of now.
    ///
    /// # Errors
    /// If a GPU that was used has no price, or money has too many digits.
    pub fn report(mut self, now: Timestamp) -> Result<Report, MoneyError> {
        let question = self.question;
        let spans: Vec<Span> = self
            .ledgers
            .iter()
            .map(|ledger| Span::of(ledger, &question.asked))
            .collect();
        let since = spans.iter().map(|span| span.since).min();
        let until = spans.iter().map(|span| span.until).max();
        let committed = self.ledgers.iter().map(|ledger| ledger.committed).min();
        let since = since.unwrap_or(question.asked.since);
        let until = until.unwrap_or(since);
        let committed = committed.map_or(until, moment_of);

        let mut whole = Sums::default();
        let mut imbalance = Nanos::ZERO;
        let mut elapsed = HashMap::new();
        let mut observed = HashSet::new();
        for ((hour, gpu), found) in std::mem::take(&mut self.hours) {
            imbalance += found.imbalance();
            elapsed.insert((hour, gpu), found.book.elapsed);
            if !found.book.busy.plus(found.book.idle).is_zero() {
                observed.insert(gpu.0);
            }
            whole = whole.plus(self.device(hour, gpu, found)?)?;
        }
        let all_busy = whole.amounts.busy;
        let has_gpus = !self.keys.gpus().is_empty();
        observed.extend(self.payers.keys().map(|account| account.0));
        let with_gpus: BTreeSet<usize> = self.keys.gpus().keys().map(|gpu| gpu.0).collect();
        let blind: Vec<usize> = with_gpus
            .into_iter()
            .filter(|ledger| !observed.contains(ledger))
            .collect();
        let only = question.filter.words();
        let is_nobody = !only.is_empty() && self.groups.is_empty();
        if only.is_empty() {
            whole.gpu += self.unaccounted(&elapsed, &spans)?;
        } else {
            whole = Sums::default();
        }
        let owned = self.groups.iter().filter(|((kind, ..), _)| kind.is_owned());
        for sums in owned.map(|(_, sums)| *sums) {
            if !only.is_empty() {
                whole = whole.plus(sums)?;
                continue;
            }
            let Amounts { busy, energy, .. } = whole.amounts;
            whole.amounts += sums.amounts;
            // These two are the devices' own.
            whole.amounts.busy = busy;
            whole.amounts.energy = energy;
            whole.unused += sums.unused;
        }
        let (rows, owned, total) = self.rows(whole, all_busy)?;
        let at_default_price: Vec<String> = self.at_default_price.into_iter().collect();
        let facts = Facts {
            asked: question.asked,
            zone: &question.zone,
            ledgers: &self.ledgers,
            now,
            imbalance,
            left_out: self.left_out,
            blind: &blind,
            only: &only,
            is_nobody,
            at_default_price: &at_default_price,
        };
        let (is_complete, warnings, notes) = (facts.is_complete(), facts.warnings(), facts.notes());
        let prices = question.prices.as_ref();
        let timeline = self.timeline.take();
        let timeline = timeline
            .map(|hours| hours.timeline((since, until), &question.by, &question.zone, prices))
            .transpose()?;
        Ok(Report {
            nodes: self.ledgers.into_iter().map(|of| of.node).collect(),
            asked: question.asked,
            zone: question.zone.clone(),
            since,
            until,
            is_complete,
            committed,
            by: question.by.clone(),
            currency: prices.map(|prices| prices.currency.clone()),
            only,
            rows,
            owned,
            total,
            timeline,
            imbalance,
            absent: Absent::default(),
            has_gpus,
            warnings,
            notes,
        })
    }

    /// The rows in order, those that have an owner together, and the total.
    /// Shares are parts of `all_busy`.
    fn rows(&mut self, whole: Sums, all_busy: Nanos) -> Result<(Vec<Row>, Row, Row), MoneyError> {
        let mut groups: Vec<(GroupKey, Sums)> = self.groups.drain().collect();
        let by = &self.question.by;
        groups.sort_by_cached_key(|((kind, reason, key), sums)| {
            let most = Reverse((sums.gpu, sums.amounts.allocated));
            let times = self.keys.times(key);
            (*kind, times, most, Arc::clone(reason), key.clone())
        });
        let costs: Vec<Cost> = groups.iter().map(|(_, sums)| sums.cost).collect();
        let (costs, cost) = match &self.question.prices {
            Some(prices) => {
                let (costs, cost) = prices.round(&costs)?;
                (costs.into_iter().map(Some).collect(), Some(cost))
            }
            None => (vec![None; costs.len()], None),
        };
        let share = |kind: Kind, busy: Nanos| {
            let part = Decimal::from(busy.0).checked_div(all_busy.0.into())?;
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
    fn device(&mut self, hour: i64, gpu: InLedger, found: Hour) -> Result<Sums, MoneyError> {
        let Hour { book, .. } = found;
        let of_device = Sums {
            gpu: book.elapsed,
            amounts: Amounts {
                energy: book.energy,
                ..Amounts::busy(book.busy)
            },
            ..Sums::default()
        };
        if !self.question.filter.is_empty() {
            return Ok(of_device);
        }
        let key = self.keys.nobody(gpu, hour);
        let profile = self
            .keys
            .gpus()
            .get(&gpu)
            .and_then(|gpu| gpu.profile.clone());
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
                cost: self.cost((gpu, profile.clone(), Arc::default()), busy, Nanos::ZERO)?,
            };
            self.add(hour, kind, reason, key.clone(), sums)?;
        }
        let idle = Sums {
            gpu: book.idle,
            amounts: Amounts {
                energy: book.energy_idle,
                ..Amounts::ZERO
            },
            ..Sums::default()
        };
        self.add(hour, Kind::Idle, self.none.clone(), key, idle)?;
        self.left_out += left_out;
        Ok(Sums {
            gpu: book.elapsed.minus(left_out),
            ..of_device
        })
    }

    /// Adds what of each GPU's hours is in no book, from the first hour of which it has one to the
    /// last; says how much that is. An hour that has more than it is long has it of the hours before
    /// it: a window is in the hour in which it was booked.
    fn unaccounted(
        &mut self,
        elapsed: &HashMap<(i64, InLedger), Nanos>,
        spans: &[Span],
    ) -> Result<Nanos, MoneyError> {
        let gpus = self.keys.gpus().iter();
        let gpus: Vec<_> = gpus
            .map(|(gpu, record)| {
                let Span { since, until } = spans[gpu.0];
                let first = record.first_hour.max(hour_of(since));
                (*gpu, until, first..=record.last_hour.min(hour_of(until)))
            })
            .collect();
        let mut all = Nanos::ZERO;
        for (gpu, until, hours) in gpus {
            let mut surplus = Nanos::ZERO;
            for hour in hours.rev() {
                let end = begin_of(hour + 1).min(until);
                let length = end.duration_since(begin_of(hour)).as_nanos();
                let length = Nanos(u64::try_from(length).unwrap_or(0));
                let booked = match self.elapsed.get(&gpu) {
                    Some(elapsed) => elapsed.of(hour),
                    None => elapsed.get(&(hour, gpu)).copied().unwrap_or_default(),
                };
                surplus += booked.minus(length);
                let missing = length.minus(booked).minus(surplus);
                surplus = surplus.minus(length.minus(booked));
                if missing > UNDER_WAY {
                    let sums = Sums {
                        gpu: missing,
                        ..Sums::default()
                    };
                    let key = self.keys.nobody(gpu, hour);
                    self.add(hour, Kind::Unaccounted, self.none.clone(), key, sums)?;
                    all += missing;
                }
            }
        }
        Ok(all)
    }

    fn add(
        &mut self,
        hour: i64,
        kind: Kind,
        reason: Arc<str>,
        key: Vec<Arc<str>>,
        sums: Sums,
    ) -> Result<(), MoneyError> {
        if sums == Sums::default() {
            return Ok(());
        }
        if let Some(timeline) = &mut self.timeline {
            let by = &self.question.by;
            timeline.add(by, kind, &key, hour, sums.gpu, sums.cost)?;
        }
        let group = self.groups.entry((kind, reason, key)).or_default();
        *group = group.plus(sums)?;
        Ok(())
    }

    /// What these times of a GPU cost, of allocated time the part that is the owner's; nothing where
    /// there are no prices.
    fn cost(&mut self, key: PricedBy, busy: Nanos, allocated: Nanos) -> Result<Cost, MoneyError> {
        let Some(prices) = &self.question.prices else {
            return Ok(Cost::default());
        };
        if busy.is_zero() && allocated.is_zero() {
            return Ok(Cost::default());
        }
        let price = match self.price_of.get(&key) {
            Some(price) => *price,
            None => {
                let of_device = |dimension| self.keys.device(key.0, &dimension);
                let (model, uuid) = (of_device(Dimension::Model), of_device(Dimension::Gpu));
                let whose = Whose {
                    node: &of_device(Dimension::Node),
                    cluster: &of_device(Dimension::Cluster),
                    labels: &key.2,
                };
                let found = match &key.1 {
                    Some(profile) => prices.of_instance(&whose, &model, profile, &uuid)?,
                    None => prices.of(&whose, &model, &uuid)?,
                };
                if found.is_default {
                    self.at_default_price.insert(match &key.1 {
                        Some(profile) => format!("{profile:?} of {model:?}"),
                        None => format!("{model:?}"),
                    });
                }
                let price = found.price;
                self.price_of.insert(key, price);
                price
            }
        };
        Cost::of(price, busy, allocated)
    }
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
