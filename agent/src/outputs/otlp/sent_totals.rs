//! What a receiver of deltas has been sent, series by series, and what was added since.
//!
//! A receiver that adds deltas up must never get more than was booked, so each growth is sent at
//! most once. It counts as sent from the moment at which its message is queued. This is undone only
//! if the message certainly did not arrive. A message that is not known to have failed counts as
//! arrived.
//!
//! A series is identified by its family, labels and start. For an unknown series it must be
//! decided whether a part of it may have been sent before. If it began no earlier than
//! [`SentTotals::floor_of`] of its family, it is new, and all of it is sent. If it is older, its
//! present total counts as sent, and only later growth is sent.
//!
//! It refuses to know of files and messages. Amounts are those of [`Value`], times nanoseconds
//! since 1970 as they go out, but for the boot time at which a series was last seen.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::core::model::{BootTime, Nanos, WallTime};
use crate::core::snapshot::Snapshot;
use crate::outputs::instruments::{Instrument, LabelValues, VERSION, Value};

/// How long a series that is not published any more is remembered. Some come back: allocated time
/// of which nothing was kept is away from a restart until the kubelet has answered.
const REMEMBERED_FOR: Nanos = Nanos::from_secs(3_600);
/// Series that are not published any more and are remembered, at most.
const REMEMBERED: usize = 20_000;
/// Between the parts of a series' name. No label has it: control characters do not go out.
const SEPARATOR: char = '\u{1f}';

/// Amount of a series that a receiver has, and the end of the last interval that was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct SentAmount {
    /// The series' own start.
    start: u64,
    /// The end of the last interval that was sent.
    end: u64,
    amount: u128,
}

impl SentAmount {
    /// A series of which nothing was sent.
    const fn new(start: WallTime) -> Self {
        Self {
            start: start.0,
            end: start.0,
            amount: 0,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct SeriesState {
    account: SentAmount,
    /// When it was last published.
    seen: BootTime,
}

/// A growth of a series that is to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Growth {
    series: String,
    before: SentAmount,
    after: SentAmount,
}

/// The OTLP point of a growth.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Delta {
    /// Where its interval begins.
    pub(super) from: u64,
    /// By how much the series has grown in it.
    pub(super) value: Value,
}

/// Totals that a receiver has been sent so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SentTotals {
    boot: String,
    /// Unix time in nanoseconds. An unknown series that began before this may have been sent
    /// already.
    floor: u64,
    /// The same per family, if it is later, because a series of the family was forgotten. It says
    /// nothing of another family, whose series may begin late and all with the agent's start.
    floors: BTreeMap<String, u64>,
    series: BTreeMap<String, SeriesState>,
}

/// Format of the file.
#[derive(Serialize, Deserialize)]
struct SentTotalsRecord<'a> {
    /// The agent's version: another one may give a series other labels.
    version: Cow<'a, str>,
    boot: Cow<'a, str>,
    floor: u64,
    /// An older version had one floor for all.
    #[serde(default)]
    floors: BTreeMap<Cow<'a, str>, u64>,
    /// Start, end and amount.
    series: BTreeMap<Cow<'a, str>, (u64, u64, u128)>,
}

impl SentTotals {
    /// Nothing is known of what went out before `floor`.
    pub(super) fn new(boot: &str, floor: WallTime) -> Self {
        Self {
            boot: boot.to_owned(),
            floor: floor.0,
            floors: BTreeMap::new(),
            series: BTreeMap::new(),
        }
    }

    /// An unknown series of this family that began before this time may have been sent already.
    fn floor_of(&self, family: &str) -> u64 {
        let floor = self.floors.get(family).copied();
        self.floor.max(floor.unwrap_or_default())
    }

    /// What was kept, if it was in this boot. `now` is when this agent began.
    pub(super) fn read(
        text: &[u8],
        boot: &str,
        began: WallTime,
        now: BootTime,
    ) -> Result<Option<Self>, serde_json::Error> {
        let kept: SentTotalsRecord<'_> = serde_json::from_slice(text)?;
        if kept.boot != boot {
            return Ok(None);
        }
        let series = kept.series.into_iter().map(|(series, account)| {
            let (start, end, amount) = account;
            let account = SentAmount { start, end, amount };
            let seen = now;
            (series.into_owned(), SeriesState { account, seen })
        });
        let floor = if kept.version == VERSION {
            kept.floor
        } else {
            kept.floor.max(began.0)
        };
        let floors = kept.floors.into_iter().filter(|(_, of_it)| *of_it > floor);
        let floors = floors.map(|(family, of_it)| (family.into_owned(), of_it));
        Ok(Some(Self {
            boot: boot.to_owned(),
            floor,
            floors: floors.collect(),
            series: series.collect(),
        }))
    }

    /// As it is to be kept.
    pub(super) fn write(&self) -> Result<Vec<u8>, serde_json::Error> {
        let series = self.series.iter().map(|(series, known)| {
            let SentAmount { start, end, amount } = known.account;
            (Cow::Borrowed(series.as_str()), (start, end, amount))
        });
        let floors = self.floors.iter();
        let floors = floors.map(|(family, of_it)| (Cow::Borrowed(family.as_str()), *of_it));
        serde_json::to_vec(&SentTotalsRecord {
            version: Cow::Borrowed(VERSION),
            boot: Cow::Borrowed(&self.boot),
            floor: self.floor,
            floors: floors.collect(),
            series: series.collect(),
        })
    }

    /// Growth of a counter since it was last sent. `None` if it has not grown. It is remembered
    /// either way, and counts as sent only with [`SentTotals::advance`].
    pub(super) fn growth(
        &mut self,
        instrument: &Instrument,
        labels: LabelValues<'_>,
        start: WallTime,
        value: Value,
        snapshot: &Snapshot,
    ) -> Option<(Delta, Growth)> {
        let amount = amount(value)?;
        let series = name(instrument, labels);
        let is_new = match self.series.get(&series) {
            Some(known) if known.account.start == start.0 => None,
            // Another start than the one that was sent last. It is a new series if its start is later.
            Some(known) => Some(known.account.start < start.0),
            None => Some(start.0 >= self.floor_of(instrument.otlp)),
        };
        let account = match is_new {
            None => self.series.get(&series)?.account,
            Some(true) => SentAmount::new(start),
            Some(false) => SentAmount {
                start: start.0,
                end: snapshot.wall.0,
                amount,
            },
        };
        let seen = snapshot.at;
        self.series
            .insert(series.clone(), SeriesState { account, seen });
        // If a total is below what was sent, the store has lost something. Nothing is sent until
        // the total has caught up.
        let grown = amount.checked_sub(account.amount).filter(|it| *it > 0)?;
        let end = snapshot.wall.0;
        let delta = Delta {
            // A clock that was set back must not make an interval end before it begins.
            from: account.end.min(end),
            value: match value {
                Value::Nanos(_) => Value::Nanos(i128::try_from(grown).ok()?),
                Value::Wide(_) => Value::Wide(grown),
                Value::Count(_) | Value::Ratio(_) => Value::Count(u64::try_from(grown).ok()?),
            },
        };
        let growth = Growth {
            series,
            before: account,
            after: SentAmount {
                end,
                amount,
                ..account
            },
        };
        Some((delta, growth))
    }

    /// These are to go out, and count as sent.
    pub(super) fn advance(&mut self, growths: &[Growth]) {
        for growth in growths {
            if let Some(known) = self.series.get_mut(&growth.series) {
                known.account = growth.after;
            }
        }
    }

    /// These certainly did not arrive.
    pub(super) fn take_back(&mut self, growths: &[Growth]) {
        for growth in growths {
            if let Some(known) = self.series.get_mut(&growth.series)
                && known.account == growth.after
            {
                known.account = growth.before;
            }
        }
    }

    /// Forgets series that have not been published for long, or that are too many; all that are
    /// published have been asked about at `now`. Should one come back, it is none of the new ones.
    pub(super) fn forget_absent(&mut self, now: BootTime) {
        let mut absent: Vec<_> = self
            .series
            .iter()
            .filter(|(_, known)| known.seen < now)
            .map(|(series, known)| (known.seen, known.account.end, series.clone()))
            .collect();
        absent.sort();
        let too_many = absent.len().saturating_sub(REMEMBERED);
        for (at, (seen, _, series)) in absent.into_iter().enumerate() {
            if at >= too_many && now.since(seen) < REMEMBERED_FOR {
                break;
            }
            if let Some(known) = self.series.remove(&series) {
                let floor = self.floor.max(known.account.start.saturating_add(1));
                let family = series.split(SEPARATOR).next().unwrap_or_default();
                match self.floors.get_mut(family) {
                    Some(of_it) => *of_it = floor.max(*of_it),
                    None => drop(self.floors.insert(family.to_owned(), floor)),
                }
            }
        }
    }
}

fn amount(value: Value) -> Option<u128> {
    match value {
        Value::Nanos(amount) => u128::try_from(amount).ok(),
        Value::Count(count) => Some(count.into()),
        Value::Wide(count) => Some(count),
        // No counter is a ratio.
        Value::Ratio(_) => None,
    }
}

fn name(instrument: &Instrument, labels: LabelValues<'_>) -> String {
    let mut name = instrument.otlp.to_owned();
    for label in labels.iter() {
        name.push(SEPARATOR);
        name.push_str(label);
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outputs::instruments::families;

    const BOOT: &str = "7d3b0a52";
    const FLOOR: WallTime = WallTime(1_000);

    fn family(at: usize) -> &'static Instrument {
        families().nth(at).expect("there are more families")
    }

    fn sent() -> SentTotals {
        SentTotals::new(BOOT, FLOOR)
    }

    /// A commit at this second.
    fn at(second: u64) -> Snapshot {
        Snapshot {
            at: BootTime(second * 1_000_000_000),
            wall: WallTime(10_000 + second),
            ..Snapshot::default()
        }
    }

    fn grow(
        sent: &mut SentTotals,
        label: &str,
        start: u64,
        total: u64,
        second: u64,
    ) -> Option<Delta> {
        let grown = offer(sent, label, start, total, second)?;
        sent.advance(std::slice::from_ref(&grown.1));
        Some(grown.0)
    }

    fn offer(
        sent: &mut SentTotals,
        label: &str,
        start: u64,
        total: u64,
        second: u64,
    ) -> Option<(Delta, Growth)> {
        sent.growth(
            family(0),
            LabelValues::new(&[Cow::Borrowed(label)]),
            WallTime(start),
            Value::Count(total),
            &at(second),
        )
    }

    fn delta(from: u64, grown: u64) -> Option<Delta> {
        Some(Delta {
            from,
            value: Value::Count(grown),
        })
    }

    #[test]
    fn what_goes_out_is_what_came_since() {
        // Start, total, second; what goes out.
        let rows = [
            (
                "a new series, at 0 first",
                vec![
                    ((2_000, 0, 1), None),
                    ((2_000, 7, 2), delta(2_000, 7)),
                    ((2_000, 7, 3), None),
                    ((2_000, 9, 4), delta(10_002, 2)),
                ],
            ),
            (
                "one that is older than what is known: its total went out, or may have",
                vec![((999, 50, 1), None), ((999, 51, 2), delta(10_001, 1))],
            ),
            (
                "one that is older and was at 0, as an engine that is used late: all of it",
                vec![((999, 0, 1), None), ((999, 7, 2), delta(10_001, 7))],
            ),
            (
                "one that began anew",
                vec![
                    ((2_000, 7, 1), delta(2_000, 7)),
                    ((3_000, 2, 2), delta(3_000, 2)),
                ],
            ),
            (
                "one that began anew before what it was before, by a clock that was set back",
                vec![
                    ((2_000, 7, 1), delta(2_000, 7)),
                    ((1_500, 2, 2), None),
                    ((1_500, 3, 3), delta(10_002, 1)),
                ],
            ),
            (
                "a total that fell, with the same start",
                vec![
                    ((2_000, 7, 1), delta(2_000, 7)),
                    ((2_000, 5, 2), None),
                    ((2_000, 7, 3), None),
                    ((2_000, 8, 4), delta(10_001, 1)),
                ],
            ),
            (
                "a clock that was set back",
                vec![
                    ((2_000, 7, 50), delta(2_000, 7)),
                    ((2_000, 8, 40), delta(10_040, 1)),
                ],
            ),
        ];
        for (what, pushes) in rows {
            let mut sent = sent();
            for ((start, total, second), expected) in pushes {
                let found = grow(&mut sent, "a", start, total, second);
                assert_eq!(found, expected, "{what}: {total} at {second}");
            }
        }
    }

    #[test]
    fn only_what_certainly_failed_is_sent_again() {
        let mut sent = sent();
        let (first, growth) = offer(&mut sent, "a", 2_000, 7, 1).unwrap();
        assert_eq!(Some(first), delta(2_000, 7));
        sent.advance(std::slice::from_ref(&growth));
        sent.take_back(std::slice::from_ref(&growth));
        let (again, growth) = offer(&mut sent, "a", 2_000, 9, 2).unwrap();
        assert_eq!(Some(again), delta(2_000, 9), "with what came since");
        sent.advance(&[growth]);
        assert_eq!(grow(&mut sent, "a", 2_000, 9, 3), None);
    }

    #[test]
    fn what_is_kept_reads_back_in_the_same_boot() {
        let mut sent = sent();
        grow(&mut sent, "a", 2_000, 7, 1);
        // More than 64 bits: joules of ten years.
        let (_, growth) = sent
            .growth(
                family(5),
                LabelValues::new(&[Cow::Borrowed("line\nbreak \"and\" quotes")]),
                WallTime(2_000),
                Value::Nanos(i128::from(u64::MAX) * 1_000),
                &at(1),
            )
            .unwrap();
        sent.advance(&[growth]);
        let text = sent.write().unwrap();
        let read = |text: &[u8], boot| SentTotals::read(text, boot, WallTime(5_000), at(1).at);
        assert_eq!(read(&text, BOOT).unwrap().as_ref(), Some(&sent));
        assert_eq!(read(&text, "another").unwrap(), None);
        assert!(read(&text[..text.len() - 1], BOOT).is_err(), "cut off");
        assert!(read(b"", BOOT).is_err());

        let mut read = read(&text, BOOT).unwrap().unwrap();
        assert_eq!(grow(&mut read, "a", 2_000, 8, 2), delta(10_001, 1));
        assert_eq!(grow(&mut read, "b", 3_000, 1, 2), delta(3_000, 1), "new");
        assert_eq!(grow(&mut read, "c", 999, 1, 2), None, "too old");
    }

    /// It may call the same series otherwise, and what went out under the old name is all there is.
    #[test]
    fn another_version_tells_nothing_of_series_that_are_not_known_and_older_than_it() {
        let mut sent = sent();
        grow(&mut sent, "a", 2_000, 7, 1);
        let text = String::from_utf8(sent.write().unwrap()).unwrap();
        let text = text.replace(VERSION, "0.0.1");
        let read = SentTotals::read(text.as_bytes(), BOOT, WallTime(5_000), at(1).at);
        let mut read = read.unwrap().unwrap();
        assert_eq!(grow(&mut read, "a, renamed", 2_000, 8, 2), None);
        assert_eq!(grow(&mut read, "a", 2_000, 8, 2), delta(10_001, 1));
        assert_eq!(grow(&mut read, "new", 5_000, 8, 2), delta(5_000, 8));
    }

    #[test]
    fn a_series_that_comes_back_after_it_was_forgotten_is_not_sent_again() {
        let hour = REMEMBERED_FOR.0 / 1_000_000_000;
        let mut sent = sent();
        grow(&mut sent, "a", 2_000, 7, 1);
        grow(&mut sent, "b", 2_001, 7, 1);
        grow(&mut sent, "b", 2_001, 8, hour);
        sent.forget_absent(at(hour).at);
        assert_eq!(grow(&mut sent, "a", 2_000, 8, hour), delta(10_001, 1));
        grow(&mut sent, "b", 2_001, 9, 2 * hour + 1);
        sent.forget_absent(at(2 * hour + 1).at);
        assert_eq!(sent.series.len(), 1, "a is forgotten");
        assert_eq!(grow(&mut sent, "a", 2_000, 9, 2 * hour + 2), None);
        assert_eq!(
            grow(&mut sent, "c", 2_001, 1, 2 * hour + 2),
            delta(2_001, 1),
            "what began later is new"
        );
    }

    /// A container that came and went says nothing of the agent's own counters, of which some are
    /// there only from their first error on, and began with the agent.
    #[test]
    fn a_series_that_comes_late_is_new_though_another_familys_was_forgotten() {
        let later = |sent: &mut SentTotals, label: &'static str, second| {
            let labels = [Cow::Borrowed(label)];
            let start = WallTime(2_000);
            let value = Value::Count(1);
            sent.growth(
                family(1),
                LabelValues::new(&labels),
                start,
                value,
                &at(second),
            )
            .map(|grown| grown.0)
        };
        let end = REMEMBERED_FOR.0 / 1_000_000_000 + 1;
        let mut sent = sent();
        grow(&mut sent, "a", 3_000, 7, 1);
        sent.forget_absent(at(end).at);
        assert_eq!(sent.series.len(), 0, "a is forgotten");
        assert_eq!(later(&mut sent, "first error", end), delta(2_000, 1));

        let text = sent.write().unwrap();
        let read = SentTotals::read(&text, BOOT, WallTime(5_000), at(end).at);
        let mut read = read.unwrap().unwrap();
        assert_eq!(later(&mut read, "another error", end), delta(2_000, 1));
        assert_eq!(grow(&mut read, "a", 3_000, 8, end), None, "still forgotten");
    }

    #[test]
    fn a_file_of_a_version_with_one_floor_for_all_reads_back() {
        let mut sent = sent();
        grow(&mut sent, "a", 2_000, 7, 1);
        let text = String::from_utf8(sent.write().unwrap()).unwrap();
        let older = text.replace(r#""floors":{},"#, "");
        assert_ne!(older, text);
        let read = SentTotals::read(older.as_bytes(), BOOT, WallTime(5_000), at(1).at);
        assert_eq!(read.unwrap(), Some(sent));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut sent = sent();
        for number in 0..REMEMBERED + 10 {
            offer(&mut sent, &number.to_string(), 2_000, 1, 1);
        }
        grow(&mut sent, "here", 2_000, 1, 2);
        sent.forget_absent(at(2).at);
        assert_eq!(sent.series.len(), REMEMBERED + 1);
    }
}
