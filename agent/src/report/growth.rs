//! How much a counter has grown from hour to hour, as a store of metrics has seen it.
//!
//! **Growth telescopes.** What is added for an hour is the difference between its last value and the
//! last value before the hour, however long ago that was. So the hours add up to the counter, over
//! outages and wherever a range is cut; `increase()` leaves out what grows between two windows.
//!
//! **A counter that fell began anew at 0.** What it showed before it fell and after it both count. What
//! it grew between the last sample and the fall was seen by nobody.
//!
//! **Several series can show one counter**: a pair of Prometheus servers, a store that is both scraped
//! and pushed to, an agent's pod that was replaced. They are compared by their values, in the counter's
//! present life, which is the time since it last began at 0. The highest value counts, so each second
//! counts once. Where two series contradict each other, the answer is the smaller one.
//!
//! An hour in which no series fell, and no new one is below the counter, is known by the least and the greatest
//! value of each. Any other hour has to be read sample by sample ([`Counter::is_plain`]). A longer time is added as one if nothing
//! but growth happened in it ([`Counter::is_settled`]), and otherwise hour by hour; the sum is the same.
//!
//! Pure. Values are integers in a unit of the caller's choice.

use std::collections::HashMap;
use std::ops::Range;

#[cfg(test)]
mod tests;

/// What a store has of one series in one hour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The caller's number of the series.
    pub series: usize,
    /// Its least value in the hour.
    pub least: u128,
    /// Its greatest value in the hour.
    pub most: u128,
    /// Whether it fell within the hour.
    pub fell: bool,
}

/// One value of a series.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sample {
    /// When, in milliseconds since 1970.
    pub at_ms: i64,
    /// The value.
    pub value: u128,
    /// The caller's number of the series.
    pub series: usize,
}

/// A series, as it was seen last.
#[derive(Clone, Copy, Debug)]
struct Series {
    last: u128,
    /// In which life of the counter that was.
    life: u64,
    /// The hour in which it was above a counter that had begun anew without it.
    doubted: Option<i64>,
}

/// A counter that one or several series show.
#[derive(Clone, Debug, Default)]
pub struct Counter {
    series: HashMap<usize, Series>,
    life: u64,
    /// The greatest value of the present life; none before the first value.
    high: Option<u128>,
    /// `high` at the beginning of the present hour.
    begin: u128,
    /// `high` at the beginning of the hour before it. A new series between this and `high` lags.
    floor: u128,
    hour: Option<i64>,
    /// The hours that were added last, if they were added as one.
    whole: Option<Range<i64>>,
}

impl Counter {
    /// Notes the last value of a series in the present life, as that from before the first hour.
    pub fn seed(&mut self, series: usize, value: u128) {
        let life = self.life;
        let seed = Series {
            last: value,
            life,
            doubted: None,
        };
        self.series.insert(series, seed);
    }

    /// Whether the least and greatest values say all about the hour: nothing fell, neither within it nor
    /// since the series was seen last, and no new series is below the counter.
    #[must_use]
    pub fn is_plain(&self, seen: &[Seen]) -> bool {
        let own = |of: &Seen| Some(self.series.get(&of.series)?.last);
        let high = self.high.or_else(|| seen.iter().filter_map(own).max());
        // Of several new series of a new counter, one may have ended before another began at 0.
        let new = high.or_else(|| seen.iter().map(|of| of.least).max());
        seen.iter().all(|of| {
            let before = own(of).or(new);
            !of.fell && before.is_none_or(|before| of.least >= before)
        })
    }

    /// Whether the least and greatest values say all about a time of any length: it is plain, and nobody has
    /// to know when within it a series came. That matters where a new one joins others, and where one has not
    /// followed the counter into its present life.
    #[must_use]
    pub fn is_settled(&self, seen: &[Seen]) -> bool {
        let follows = |of: &Seen| match self.series.get(&of.series) {
            Some(own) => own.life == self.life && (self.high.is_some() || seen.len() == 1),
            None => seen.len() == 1,
        };
        self.is_plain(seen) && seen.iter().all(follows)
    }

    /// Growth in a settled time of several hours. Times come in order.
    pub fn hours(&mut self, hours: Range<i64>, seen: &[Seen]) -> u128 {
        let grown = self.hour(hours.end - 1, seen);
        self.whole = Some(hours);
        grown
    }

    /// The hours that were added last, if they were added as one. Which new series lag in the next hour is
    /// known only after [`Counter::ended_with`].
    #[must_use]
    pub fn whole(&self) -> Option<Range<i64>> {
        self.whole.clone()
    }

    /// Says which of the hours that were added as one was the last with a sample, and the greatest value that
    /// the counter had in them before that hour; none if it had no other sample.
    pub fn ended_with(&mut self, hour: i64, before: Option<u128>) {
        self.whole = None;
        self.hour = Some(hour);
        self.begin = self.begin.max(before.unwrap_or(0));
    }

    /// Growth in a plain hour. Hours come in order.
    pub fn hour(&mut self, hour: i64, seen: &[Seen]) -> u128 {
        self.enter(hour, seen.iter().map(|of| of.series));
        // In such an hour the order of time is that of the values.
        let mut values: Vec<(bool, u128, usize)> = seen
            .iter()
            .flat_map(|of| [(false, of.least, of.series), (true, of.most, of.series)])
            .collect();
        values.sort_unstable();
        let grown = values
            .into_iter()
            .map(|(_, value, series)| self.see(hour, series, value));
        grown.fold(0, u128::saturating_add)
    }

    /// Growth in an hour of which all samples are at hand, of all series. Hours come in order.
    pub fn samples(&mut self, hour: i64, mut samples: Vec<Sample>) -> u128 {
        samples.sort_unstable();
        self.enter(hour, samples.iter().map(|sample| sample.series));
        let grown = samples
            .into_iter()
            .map(|sample| self.see(hour, sample.series, sample.value));
        grown.fold(0, u128::saturating_add)
    }

    fn enter(&mut self, hour: i64, active: impl Iterator<Item = usize>) {
        if self.high.is_none() {
            let known = active.filter_map(|series| Some(self.series.get(&series)?.last));
            self.high = known.max();
            self.begin = self.high.unwrap_or_default();
        }
        if self.hour != Some(hour) {
            self.floor = self.begin;
            self.begin = self.high.unwrap_or_default();
            self.hour = Some(hour);
        }
        self.whole = None;
    }

    /// Growth by one value.
    fn see(&mut self, hour: i64, number: usize, value: u128) -> u128 {
        let Some(high) = self.high else {
            self.start_at(number, value);
            return 0;
        };
        let life = self.life;
        let own = self.series.get(&number).copied();
        match own {
            // A new series that goes on where the counter is, such as that of a replaced pod.
            None if value >= high => {}
            // A new series that lags: a second stream of the same counter.
            None if value >= self.floor && value > 0 => {}
            None => return self.begin_anew(number, value),
            Some(own) if value < own.last && own.life == life => {
                return self.begin_anew(number, value);
            }
            // It has fallen, too, and is now where another series already was.
            Some(own) if value < own.last => {}
            Some(own) if own.life == life || value <= high => {}
            // The counter began anew without it, and it did not fall. It may lag for a moment. If it is
            // still above the counter in a later hour it fell unseen; from then on it counts.
            Some(own) => {
                let since = own.doubted.unwrap_or(hour);
                if since == hour {
                    let doubted = Series {
                        last: value,
                        doubted: Some(hour),
                        ..own
                    };
                    self.series.insert(number, doubted);
                } else {
                    self.seed(number, value);
                    self.high = Some(value);
                }
                return 0;
            }
        }
        self.seed(number, value);
        self.high = Some(high.max(value));
        value.saturating_sub(high)
    }

    fn start_at(&mut self, number: usize, value: u128) {
        self.high = Some(value);
        self.begin = value;
        self.floor = value;
        self.seed(number, value);
    }

    fn begin_anew(&mut self, number: usize, value: u128) -> u128 {
        self.life += 1;
        self.start_at(number, value);
        value
    }
}
