//! Reads a counter from a store: its growth, window by window.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use super::error::FleetError;
use super::families::{Family, Subject, found};
use super::span::{HOUR, LOOK_BACK, Span, WARM_UP};
use super::windows::{Plan, Run, Windows, hour_ending};
use crate::report::growth::{Counter, Sample, Seen};
use crate::report::promql::answer::{Labels, Series};
use crate::report::promql::{Store, one_of};

/// GPUs that one query names at most.
const MOST_GPUS: usize = 40;
/// Queries about named GPUs that are made at most, where one query about all GPUs does as well.
const MOST_PORTIONS: usize = 4;
/// What is wrong with an answer about a day, or the hours of it.
const NO_HOURS: &str = "no samples in the hours of a day of which it has the greatest value";

/// Growth of a subject in a window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Grown {
    /// The last hour of the window.
    pub(super) hour: i64,
    pub(super) subject: Arc<Subject>,
    pub(super) amount: u128,
}

/// What the store has of the series of some subjects, by the last hour of each window.
type SeenIn = BTreeMap<i64, BTreeMap<Arc<Subject>, Vec<Seen>>>;
/// Times in milliseconds, and values.
type Points = Vec<(i64, f64)>;

/// A counter of one family, all of the store's.
pub(super) struct Reading {
    family: Family,
    /// Numbers of the series.
    series: HashMap<Labels, usize>,
    /// Whose they are, by their numbers.
    whose: Vec<Arc<Subject>>,
    counters: BTreeMap<Arc<Subject>, Counter>,
    /// The first and the last hour that had samples, of those that were read window by window.
    pub(super) active: Option<(i64, i64)>,
    /// Whether there is a value from before these.
    pub(super) has_seeds: bool,
    /// Hours that were read sample by sample.
    pub(super) fallen: BTreeSet<i64>,
}

/// Takes growth, also that of the hours before the range.
type Sink<'a> = &'a mut (dyn FnMut(Grown) + Send);

impl Reading {
    /// Reads the growth of a family in windows. One query asks for `most_hours` at most, which becomes less if
    /// that is too much.
    pub(super) async fn of(
        family: Family,
        store: &mut Store,
        span: &Span,
        windows: &Windows,
        most_hours: &mut i64,
        sink: Sink<'_>,
    ) -> Result<Self, FleetError> {
        let mut reading = Self {
            family,
            series: HashMap::new(),
            whose: Vec::new(),
            counters: BTreeMap::new(),
            active: None,
            has_seeds: false,
            fallen: BTreeSet::new(),
        };
        let vector = store.vector(family.name, "");
        let begin = (span.hours.start - WARM_UP) * HOUR;
        let before = format!("last_over_time({vector}[{}s])", LOOK_BACK * HOUR);
        for series in store.range(&before, begin, begin, HOUR).await? {
            let number = reading.number(series.labels, store)?;
            for (_, value) in series.points {
                let value = reading.unit(value, store)?;
                reading.has_seeds = true;
                let subject = Arc::clone(&reading.whose[number]);
                reading
                    .counters
                    .entry(subject)
                    .or_default()
                    .seed(number, value);
            }
        }
        let mut plan = windows.plan(*most_hours);
        while let Some(run) = plan.next() {
            match reading.seen(store, &vector, &run).await {
                Err(error) if error.is_too_much() && plan.put_back(run) => {}
                // A store gives up a query that takes too long, or somebody between gives up the store.
                Err(error) if error.is_too_slow() && run.is_long() && plan.put_back(run) => {}
                seen => reading.add_run(store, run, seen?, sink).await?,
            }
        }
        *most_hours = plan.most_hours();
        if let Some(run) = Run::of_part(span) {
            let seen = reading.seen(store, &vector, &run).await?;
            reading.add_run(store, run, seen, sink).await?;
        }
        Ok(reading)
    }

    /// Reads what windows have of the series of a vector.
    async fn seen(
        &mut self,
        store: &mut Store,
        vector: &str,
        run: &Run,
    ) -> Result<SeenIn, FleetError> {
        let (first, last, window) = (run.first_end, run.last_end(), run.window);
        let step = run.step();
        let ask = |function| {
            let query = format!("{function}({vector}[{window}s])");
            store.ask_range(query, first, last, step, run.is_long())
        };
        let (least, most, falls) =
            tokio::try_join!(ask("min_over_time"), ask("max_over_time"), ask("resets"))?;
        // One answer after the other, so that the labels of only one are in memory.
        let least = store.read_range(least)?.into_iter();
        let least = least.map(|of| Ok((self.number(of.labels, store)?, of.points)));
        let least: BTreeMap<usize, Points> = least.collect::<Result<_, FleetError>>()?;
        let (mut most, is_unknown) = self.by_number(store.read_range(most)?);
        // VictoriaMetrics knows of falls in hours without a sample, too.
        let (falls, _) = self.by_number(store.read_range(falls)?);
        let mut seen = SeenIn::new();
        for (series, least) in least {
            let joined = most.remove(&series).zip(falls.get(&series));
            let same_times = |(most, _): &(Points, _)| {
                let times = |(at, _): &(i64, f64)| *at;
                most.iter().map(times).eq(least.iter().map(times))
            };
            let Some((most, falls)) = joined.filter(same_times) else {
                return Err(self.half(store, "a least value without a greatest value at the same times or without a number of falls"));
            };
            let falls: HashMap<i64, f64> = falls.iter().copied().collect();
            for ((at_ms, least), (_, most)) in least.into_iter().zip(most) {
                let Some(falls) = falls.get(&at_ms) else {
                    return Err(self.half(store, "a greatest value and not whether it fell"));
                };
                let (least, most) = (self.unit(least, store)?, self.unit(most, store)?);
                if least > most {
                    return Err(self.half(store, "a least value above the greatest"));
                }
                let subject = Arc::clone(&self.whose[series]);
                let of_window = seen.entry(hour_ending(at_ms.div_euclid(1000))).or_default();
                of_window.entry(subject).or_default().push(Seen {
                    series,
                    least,
                    most,
                    fell: *falls > 0.0,
                });
            }
        }
        if is_unknown || !most.is_empty() {
            return Err(self.half(store, "a greatest value without a least one"));
        }
        Ok(seen)
    }

    /// Adds windows in their order.
    async fn add_run(
        &mut self,
        store: &mut Store,
        run: Run,
        seen: SeenIn,
        sink: Sink<'_>,
    ) -> Result<(), FleetError> {
        for (hour, subjects) in seen {
            let first = self.active.map_or(hour, |(first, _)| first);
            self.active = Some((first, hour));
            if run.window > HOUR {
                let hours = hour + 1 - run.window / HOUR..hour + 1;
                self.add_day(store, hours, subjects, sink).await?;
            } else {
                let end = run.last_end().min((hour + 1) * HOUR);
                self.add_hour(store, hour, end, run.window, subjects, sink)
                    .await?;
            }
        }
        Ok(())
    }

    /// Adds a window of several hours. The subjects that do not simply grow in it are read by the hour.
    async fn add_day(
        &mut self,
        store: &mut Store,
        hours: Range<i64>,
        subjects: BTreeMap<Arc<Subject>, Vec<Seen>>,
        sink: Sink<'_>,
    ) -> Result<(), FleetError> {
        let hour = hours.end - 1;
        let mut others = BTreeSet::new();
        let mut series = BTreeSet::new();
        for (subject, seen) in subjects {
            let counter = self.counters.entry(Arc::clone(&subject)).or_default();
            if counter.is_settled(&seen) {
                let amount = counter.hours(hours.clone(), &seen);
                sink(Grown {
                    hour,
                    subject,
                    amount,
                });
            } else {
                series.extend(seen.iter().map(|seen| seen.series));
                others.insert(subject);
            }
        }
        if others.is_empty() {
            return Ok(());
        }
        self.find_ends(store, &others).await?;
        let by_hour = self.by_hour(store, hours, &others).await?;
        for seen in by_hour.values().flat_map(BTreeMap::values).flatten() {
            series.remove(&seen.series);
        }
        if !series.is_empty() {
            return Err(self.half(store, NO_HOURS));
        }
        for (hour, subjects) in by_hour {
            self.add_hour(store, hour, (hour + 1) * HOUR, HOUR, subjects, sink)
                .await?;
        }
        Ok(())
    }

    /// Rereads, by the hour, the last window of each subject if it was added as a whole. How high the counter
    /// stood in its hours says whether a new series lags.
    async fn find_ends(
        &mut self,
        store: &mut Store,
        subjects: &BTreeSet<Arc<Subject>>,
    ) -> Result<(), FleetError> {
        let mut wholes: BTreeMap<(i64, i64), BTreeSet<Arc<Subject>>> = BTreeMap::new();
        for subject in subjects {
            let counter = self.counters.get(subject);
            if let Some(whole) = counter.and_then(Counter::whole) {
                let subjects = wholes.entry((whole.start, whole.end)).or_default();
                subjects.insert(Arc::clone(subject));
            }
        }
        for ((first, end), subjects) in wholes {
            // The last hour with samples, the greatest value in it, and the greatest one before it.
            let mut ends: BTreeMap<Arc<Subject>, (i64, u128, Option<u128>)> = BTreeMap::new();
            for (hour, seen) in self.by_hour(store, first..end, &subjects).await? {
                for (subject, seen) in seen {
                    let most = seen.iter().map(|seen| seen.most).max().unwrap_or_default();
                    let before = ends.get(&subject);
                    let before = before.map(|(_, most, before)| before.unwrap_or(0).max(*most));
                    ends.insert(subject, (hour, most, before));
                }
            }
            for subject in subjects {
                let Some((hour, _, before)) = ends.remove(&subject) else {
                    return Err(self.half(store, NO_HOURS));
                };
                let counter = self.counters.entry(subject).or_default();
                counter.ended_with(hour, before);
            }
        }
        Ok(())
    }

    /// Reads what each of some hours has of some subjects.
    async fn by_hour(
        &mut self,
        store: &mut Store,
        hours: Range<i64>,
        subjects: &BTreeSet<Arc<Subject>>,
    ) -> Result<SeenIn, FleetError> {
        let mut by_hour = SeenIn::new();
        let mut portions = Portions::of(self.gpus_of(subjects));
        if portions.are_many() {
            portions = Portions::everything();
        }
        while let Some(portion) = portions.next() {
            let vector = portion.vector(self.family.name, store);
            let mut plan = Plan::of_hours(hours.clone());
            while let Some(run) = plan.next() {
                let seen = match self.seen(store, &vector, &run).await {
                    Err(error) if error.is_too_much() && plan.put_back(run) => continue,
                    seen => seen?,
                };
                for (hour, of_hour) in seen {
                    let known: &mut BTreeMap<_, Vec<Seen>> = by_hour.entry(hour).or_default();
                    for (subject, seen) in of_hour {
                        if subjects.contains(&subject) {
                            // A GPU that two labels name has series in two portions, and one in both.
                            let known = known.entry(subject).or_default();
                            for of in seen {
                                if known.iter().all(|other| other.series != of.series) {
                                    known.push(of);
                                }
                            }
                        }
                    }
                }
            }
        }
        Ok(by_hour)
    }

    /// Adds an hour, or the part of it that ends at `end`. The subjects that do not simply grow in it are
    /// read sample by sample.
    async fn add_hour(
        &mut self,
        store: &mut Store,
        hour: i64,
        end: i64,
        window: i64,
        subjects: BTreeMap<Arc<Subject>, Vec<Seen>>,
        sink: Sink<'_>,
    ) -> Result<(), FleetError> {
        let mut fallen = BTreeSet::new();
        for (subject, seen) in subjects {
            let counter = self.counters.entry(Arc::clone(&subject)).or_default();
            if counter.is_plain(&seen) {
                let amount = counter.hour(hour, &seen);
                sink(Grown {
                    hour,
                    subject,
                    amount,
                });
            } else {
                fallen.insert(subject);
            }
        }
        if fallen.is_empty() {
            return Ok(());
        }
        self.fallen.insert(hour);
        self.find_ends(store, &fallen).await?;
        let mut samples: BTreeMap<Arc<Subject>, Vec<Sample>> = BTreeMap::new();
        let mut portions = Portions::of(self.gpus_of(&fallen));
        while let Some(portion) = portions.next() {
            let vector = portion.vector(self.family.name, store);
            let found = match store.samples(&vector, window, end).await {
                Err(error) if error.is_too_much() && portions.put_back(&portion) => continue,
                found => found?,
            };
            for Series { labels, points } in found {
                let series = self.number(labels, store)?;
                let subject = Arc::clone(&self.whose[series]);
                if !fallen.contains(&subject) {
                    continue;
                }
                let of_subject = samples.entry(subject).or_default();
                for (at_ms, value) in points {
                    let value = self.unit(value, store)?;
                    of_subject.push(Sample {
                        at_ms,
                        value,
                        series,
                    });
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
            let counter = self.counters.entry(Arc::clone(&subject)).or_default();
            let amount = counter.samples(hour, samples);
            sink(Grown {
                hour,
                subject,
                amount,
            });
        }
        Ok(())
    }

    /// By which labels the GPUs of subjects are named, and their names.
    fn gpus_of(&self, subjects: &BTreeSet<Arc<Subject>>) -> BTreeMap<String, BTreeSet<String>> {
        let mut gpus: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (labels, number) in &self.series {
            if subjects.contains(&self.whose[*number])
                && let Some((name, value)) = found(labels, "gpu_uuid")
            {
                gpus.entry(name.to_owned())
                    .or_default()
                    .insert(value.to_owned());
            }
        }
        gpus
    }

    /// The points of series by their numbers, and whether there are series without one.
    fn by_number(&self, all: Vec<Series>) -> (HashMap<usize, Points>, bool) {
        let mut is_unknown = false;
        let mut by_number = HashMap::new();
        for Series { labels, points } in all {
            match self.series.get(&labels) {
                Some(number) => drop(by_number.insert(*number, points)),
                None => is_unknown = true,
            }
        }
        (by_number, is_unknown)
    }

    /// The number of a series; a new one if it is not known yet.
    fn number(&mut self, labels: Labels, store: &Store) -> Result<usize, FleetError> {
        if let Some(number) = self.series.get(&labels) {
            return Ok(*number);
        }
        let Some(subject) = Subject::of(self.family.what, &labels) else {
            return Err(self.half(store, "a series that names no GPU (no gpu_uuid or hw_id)"));
        };
        let number = self.whose.len();
        self.whose.push(Arc::new(subject));
        self.series.insert(labels, number);
        Ok(number)
    }

    /// The labels that series of each GPU have. Of several values the one of the series that was met last.
    pub(super) fn labels_of_gpus(&self) -> BTreeMap<String, Labels> {
        let mut all: Vec<_> = self.series.iter().collect();
        all.sort_unstable_by_key(|(_, number)| **number);
        let mut gpus: BTreeMap<String, Labels> = BTreeMap::new();
        for (labels, number) in all {
            let gpu = self.whose[*number].gpu.to_string();
            let labels = labels
                .iter()
                .map(|(name, value)| (name.clone(), value.clone()));
            gpus.entry(gpu).or_default().extend(labels);
        }
        gpus
    }

    /// The labels of all series.
    pub(super) fn all_labels(&self) -> impl ExactSizeIterator<Item = &Labels> {
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

/// GPUs that one query names; all GPUs if it names none.
struct Portion {
    label: String,
    gpus: Vec<String>,
}

impl Portion {
    fn vector(&self, metric: &str, store: &Store) -> String {
        if self.gpus.is_empty() {
            return store.vector(metric, "");
        }
        let gpus: Vec<&str> = self.gpus.iter().map(String::as_str).collect();
        store.vector(metric, &one_of(&self.label, &gpus))
    }
}

/// GPUs that are still to be asked for.
struct Portions(VecDeque<Portion>);

impl Portions {
    fn of(gpus: BTreeMap<String, BTreeSet<String>>) -> Self {
        let mut portions = VecDeque::new();
        for (label, gpus) in gpus {
            let gpus: Vec<String> = gpus.into_iter().collect();
            portions.extend(gpus.chunks(MOST_GPUS).map(|some| Portion {
                label: label.clone(),
                gpus: some.to_vec(),
            }));
        }
        Self(portions)
    }

    /// All GPUs at once.
    fn everything() -> Self {
        Self(VecDeque::from([Portion {
            label: String::new(),
            gpus: Vec::new(),
        }]))
    }

    fn are_many(&self) -> bool {
        self.0.len() > MOST_PORTIONS
    }

    fn next(&mut self) -> Option<Portion> {
        self.0.pop_front()
    }

    /// Puts back GPUs that are too much for one query, in two halves. False if it is one GPU.
    fn put_back(&mut self, portion: &Portion) -> bool {
        let (first, second) = portion.gpus.split_at(portion.gpus.len() / 2);
        if first.is_empty() {
            return false;
        }
        for half in [second, first] {
            self.0.push_front(Portion {
                label: portion.label.clone(),
                gpus: half.to_vec(),
            });
        }
        true
    }
}
