//! Reads a counter from a store: its growth, hour by hour.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

use super::error::FleetError;
use super::families::{Family, Subject, found};
use crate::report::growth::{Counter, Sample, Seen};
use crate::report::promql::answer::{Labels, Series};
use crate::report::promql::{Store, one_of};

/// Seconds of an hour.
pub(super) const HOUR: i64 = 3_600;
/// Hours that one query asks for at most.
pub(super) const MOST_HOURS: i64 = 24;
/// Hours before the range that are read like those in it, so that its first hour knows what went before.
pub(super) const WARM_UP: i64 = 24;
/// How far before that the last value of a counter is looked for, in hours: seven days in all.
pub(super) const LOOK_BACK: i64 = 6 * 24;
/// GPUs that one query for samples names at most.
const MOST_GPUS: usize = 40;

/// What the store is asked for: whole hours, and the part of one more that has passed.
#[derive(Clone, Debug)]
pub(super) struct Span {
    /// The hours that are billed, the one that has not ended among them.
    pub(super) hours: Range<i64>,
    /// The time up to which there can be samples, in seconds.
    pub(super) end: i64,
}

impl Span {
    /// The first second that is billed.
    pub(super) fn since(&self) -> i64 {
        self.hours.start * HOUR
    }

    /// The first second that is read.
    pub(super) fn first(&self) -> i64 {
        (self.hours.start - WARM_UP - LOOK_BACK) * HOUR
    }

    /// The hour after the last one that has ended.
    pub(super) fn whole(&self) -> i64 {
        self.hours.end.min(self.end.div_euclid(HOUR))
    }
}

/// Growth of a subject in an hour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Grown {
    pub(super) hour: i64,
    pub(super) subject: Subject,
    pub(super) amount: u128,
}

/// A counter of one family, all of the store's.
#[derive(Debug)]
pub(super) struct Reading {
    family: Family,
    /// Numbers of the series, and whose they are.
    series: HashMap<Labels, (usize, Subject)>,
    counters: BTreeMap<Subject, Counter>,
    /// The first and the last hour that had samples, of those that were read hour by hour.
    pub(super) active: Option<(i64, i64)>,
    /// Whether there is a value from before these.
    pub(super) has_seeds: bool,
    pub(super) grown: Vec<Grown>,
    /// Hours that were read sample by sample.
    pub(super) fallen: BTreeSet<i64>,
}

impl Reading {
    /// Reads the growth of a family in the hours of a span.
    pub(super) async fn of(
        family: Family,
        store: &mut Store,
        span: &Span,
    ) -> Result<Self, FleetError> {
        let mut reading = Self {
            family,
            series: HashMap::new(),
            counters: BTreeMap::new(),
            active: None,
            has_seeds: false,
            grown: Vec::new(),
            fallen: BTreeSet::new(),
        };
        let vector = store.vector(family.name, "");
        let begin = span.hours.start - WARM_UP;
        let before = format!("last_over_time({vector}[{}s])", LOOK_BACK * HOUR);
        for series in store
            .range(&before, begin * HOUR, begin * HOUR, HOUR)
            .await?
        {
            let (number, subject) = reading.number(&series.labels, store)?;
            for (_, value) in series.points {
                let value = reading.unit(value, store)?;
                reading.has_seeds = true;
                let counter = reading.counters.entry(subject.clone()).or_default();
                counter.seed(number, value);
            }
        }
        let (mut at, whole) = (begin, span.whole());
        let mut step = MOST_HOURS;
        while at < whole {
            let hours = at..whole.min(at + step);
            let read = reading
                .read(store, &vector, hours.clone(), HOUR, hours.end * HOUR)
                .await;
            match read {
                Err(FleetError::Store(error)) if error.is_too_much() && step > 1 => step /= 2,
                read => {
                    read?;
                    at = hours.end;
                }
            }
        }
        // The part of the present hour that has passed.
        let passed = span.end - whole * HOUR;
        if whole < span.hours.end && passed > 0 {
            reading
                .read(store, &vector, whole..whole + 1, passed, span.end)
                .await?;
        }
        reading
            .grown
            .retain(|grown| span.hours.contains(&grown.hour));
        Ok(reading)
    }

    /// Reads some hours, the last of which ends at `end`, by windows of so many seconds.
    async fn read(
        &mut self,
        store: &mut Store,
        vector: &str,
        hours: Range<i64>,
        window: i64,
        end: i64,
    ) -> Result<(), FleetError> {
        let first = end - (hours.end - hours.start - 1) * HOUR;
        let mut answers: [Vec<Series>; 3] = Default::default();
        let functions = ["min_over_time", "max_over_time", "resets"];
        for (answer, function) in answers.iter_mut().zip(functions) {
            let query = format!("{function}({vector}[{window}s])");
            *answer = store.range(&query, first, end, HOUR).await?;
        }
        let mut seen: BTreeMap<i64, BTreeMap<Subject, Vec<Seen>>> = BTreeMap::new();
        for [least, most, falls] in self.joined(answers, store)? {
            let (number, subject) = self.number(&least.labels, store)?;
            let falls: HashMap<i64, f64> = falls.points.into_iter().collect();
            for ((at_ms, least), (_, most)) in least.points.iter().zip(&most.points) {
                let Some(falls) = falls.get(at_ms) else {
                    return Err(self.half(store, "a greatest value and not whether it fell"));
                };
                let (least, most) = (self.unit(*least, store)?, self.unit(*most, store)?);
                if least > most {
                    return Err(self.half(store, "a least value above the greatest"));
                }
                // The hour that ends then, or that has come so far.
                let hour = (at_ms - 1).div_euclid(HOUR * 1000);
                let of_hour = seen.entry(hour).or_default();
                of_hour.entry(subject.clone()).or_default().push(Seen {
                    series: number,
                    least,
                    most,
                    fell: *falls > 0.0,
                });
            }
        }
        for (hour, subjects) in seen {
            let first = self.active.map_or(hour, |(first, _)| first);
            self.active = Some((first, hour));
            let end = end.min((hour + 1) * HOUR);
            self.hour(store, hour, end, window, subjects).await?;
        }
        Ok(())
    }

    /// Adds an hour of all subjects.
    async fn hour(
        &mut self,
        store: &mut Store,
        hour: i64,
        end: i64,
        window: i64,
        subjects: BTreeMap<Subject, Vec<Seen>>,
    ) -> Result<(), FleetError> {
        let mut fallen = BTreeSet::new();
        for (subject, seen) in &subjects {
            let counter = self.counters.entry(subject.clone()).or_default();
            if counter.is_plain(seen) {
                let amount = counter.hour(hour, seen);
                self.add(hour, subject.clone(), amount);
            } else {
                fallen.insert(subject.clone());
            }
        }
        if fallen.is_empty() {
            return Ok(());
        }
        self.fallen.insert(hour);
        let mut samples: BTreeMap<Subject, Vec<Sample>> = BTreeMap::new();
        for (label, gpus) in self.gpus_of(&fallen) {
            for some in gpus.iter().collect::<Vec<_>>().chunks(MOST_GPUS) {
                let some: Vec<&str> = some.iter().map(|gpu| gpu.as_str()).collect();
                let vector = store.vector(self.family.name, &one_of(&label, &some));
                for series in store.samples(&vector, window, end).await? {
                    let (number, subject) = self.number(&series.labels, store)?;
                    if !fallen.contains(&subject) {
                        continue;
                    }
                    for (at_ms, value) in series.points {
                        let sample = Sample {
                            at_ms,
                            value: self.unit(value, store)?,
                            series: number,
                        };
                        samples.entry(subject.clone()).or_default().push(sample);
                    }
                }
            }
        }
        for subject in fallen {
            let Some(samples) = samples.remove(&subject) else {
                return Err(self.half(
                    store,
                    "no samples of an hour of which it has the greatest value",
                ));
            };
            let counter = self.counters.entry(subject.clone()).or_default();
            let amount = counter.samples(hour, samples);
            self.add(hour, subject, amount);
        }
        Ok(())
    }

    fn add(&mut self, hour: i64, subject: Subject, amount: u128) {
        self.grown.push(Grown {
            hour,
            subject,
            amount,
        });
    }

    /// By which labels the GPUs of subjects are named, and their names.
    fn gpus_of(&self, subjects: &BTreeSet<Subject>) -> BTreeMap<String, BTreeSet<String>> {
        let mut gpus: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (labels, (_, subject)) in &self.series {
            if subjects.contains(subject)
                && let Some((name, value)) = found(labels, "gpu_uuid")
            {
                gpus.entry(name.to_owned())
                    .or_default()
                    .insert(value.to_owned());
            }
        }
        gpus
    }

    /// The three answers about each series. One that is not in all of them, with the same times, is half
    /// an answer.
    fn joined(
        &self,
        [least, most, falls]: [Vec<Series>; 3],
        store: &Store,
    ) -> Result<Vec<[Series; 3]>, FleetError> {
        let by_labels = |all: Vec<Series>| -> HashMap<Labels, Series> {
            let all = all.into_iter();
            all.map(|of| (of.labels.clone(), of)).collect()
        };
        fn times(series: &Series) -> impl Iterator<Item = i64> {
            series.points.iter().map(|(at, _)| *at)
        }
        let (mut most, mut falls) = (by_labels(most), by_labels(falls));
        let mut joined = Vec::with_capacity(least.len());
        for least in least {
            let of_others = (most.remove(&least.labels), falls.remove(&least.labels));
            match of_others {
                (Some(most), Some(falls)) if times(&most).eq(times(&least)) => {
                    joined.push([least, most, falls]);
                }
                _ => return Err(self.half(store, "a least value without a greatest one")),
            }
        }
        // VictoriaMetrics knows of falls in hours without a sample, too.
        match most.is_empty() {
            true => Ok(joined),
            false => Err(self.half(store, "a greatest value without a least one")),
        }
    }

    /// The number of a series, and whose it is.
    fn number(&mut self, labels: &Labels, store: &Store) -> Result<(usize, Subject), FleetError> {
        if let Some((number, subject)) = self.series.get(labels) {
            return Ok((*number, subject.clone()));
        }
        let Some(subject) = Subject::of(self.family.what, labels) else {
            return Err(self.half(store, "a series that names no GPU (no gpu_uuid or hw_id)"));
        };
        let number = self.series.len();
        self.series
            .insert(labels.clone(), (number, subject.clone()));
        Ok((number, subject))
    }

    /// The labels that series of each GPU have. Of several values the one of the series that was met last.
    pub(super) fn labels_of_gpus(&self) -> BTreeMap<String, Labels> {
        let mut all: Vec<_> = self.series.iter().collect();
        all.sort_unstable_by_key(|(_, (number, _))| *number);
        let mut gpus: BTreeMap<String, Labels> = BTreeMap::new();
        for (labels, (_, subject)) in all {
            let known = gpus.entry(subject.gpu.to_string()).or_default();
            let labels = labels
                .iter()
                .map(|(name, value)| (name.clone(), value.clone()));
            known.extend(labels);
        }
        gpus
    }

    /// The labels of all series.
    pub(super) fn all_labels(&self) -> impl Iterator<Item = &Labels> {
        self.series.keys()
    }

    fn unit(&self, value: f64, store: &Store) -> Result<u128, FleetError> {
        let unit = self.family.unit(value);
        unit.ok_or_else(|| self.half(store, "a value that no counter can have"))
    }

    fn half(&self, store: &Store, found: &'static str) -> FleetError {
        FleetError::Contradiction {
            url: store.url().to_owned(),
            metric: self.family.name,
            found,
        }
    }
}
