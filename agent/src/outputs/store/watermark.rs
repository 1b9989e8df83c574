//! Totals as of the last stored commit, kept in memory beside the file.
//!
//! A file can be lost in the midst of a life: damaged, removed, replaced by an older copy. The one
//! after it is given totals since the beginning of that life, and only what has been added since the
//! last commit in the lost one is its own to bill. And a file can refuse commits for hours: what was
//! booked meanwhile belongs to the hours in which it was booked, not to the one in which the file
//! takes it. So the amounts of the last commit that was written are remembered ([`Watermark`]), and
//! those of the last attempt in each hour since ([`Missed`]).

use std::collections::HashMap;

use super::sql::{HOUR, hour};
use crate::core::amounts::Amounts;
use crate::core::model::{BootTime, Clock, GpuUuid, Nanos, UnobservedReason, WallTime};
use crate::core::records::{Changes, KeptBook, KeptReason, KeptTotals, PersistedState};
use crate::core::snapshot::EnergyBook;

/// Largest number of hours without a commit that are kept separately: a week. Beyond it the oldest
/// are merged into the following hour, and counted.
const HOURS: usize = 7 * 24;

/// Totals of all accounts and books as of one commit.
#[derive(Clone, Debug, Default)]
pub(super) struct Watermark {
    pub(super) sequence: u64,
    clock: Clock,
    pub(super) accounts: HashMap<u32, AccountWatermark>,
    pub(super) books: HashMap<GpuUuid, BookWatermark>,
    pub(super) times: HashMap<(GpuUuid, KeptReason), Nanos>,
}

/// Totals of an account as of a commit.
#[derive(Clone, Debug)]
pub(super) struct AccountWatermark {
    pub(super) gpu: GpuUuid,
    pub(super) amounts: Amounts,
    /// Whether it was closed by that commit.
    closed: bool,
}

/// Totals of a book as of a commit.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct BookWatermark {
    pub(super) through: Option<BootTime>,
    pub(super) elapsed: Nanos,
    pub(super) busy: Nanos,
    pub(super) idle: Nanos,
    pub(super) energy: EnergyBook,
    closed: Amounts,
}

impl From<&KeptBook> for BookWatermark {
    fn from(book: &KeptBook) -> Self {
        Self {
            through: book.through,
            elapsed: book.elapsed,
            busy: book.busy,
            idle: book.idle,
            energy: book.energy.unwrap_or_default(),
            closed: book.closed,
        }
    }
}

impl Watermark {
    /// As it was read back.
    pub(super) fn of(state: &PersistedState) -> Self {
        let mut reached = Self {
            sequence: state.sequence,
            clock: state.clock,
            ..Self::default()
        };
        for book in &state.books {
            reached.books.insert(book.gpu.uuid.clone(), book.into());
        }
        for time in &state.times {
            let key = (time.gpu.clone(), time.reason);
            reached.times.insert(key, time.time);
        }
        for (account, totals) in &state.accounts {
            reached.put(totals, Some(&account.gpu), false);
        }
        reached
    }

    /// Goes on to the next commit.
    pub(super) fn take(&mut self, changes: &Changes) {
        self.sequence = changes.sequence;
        self.clock = changes.clock;
        if changes.whole {
            self.accounts.clear();
        } else {
            self.accounts.retain(|_, account| !account.closed);
        }
        for book in &changes.books {
            self.books.insert(book.gpu.uuid.clone(), book.into());
        }
        for time in &changes.times {
            let key = (time.gpu.clone(), time.reason);
            self.times.insert(key, time.time);
        }
        let mut gpus = HashMap::new();
        for account in &changes.accounts {
            gpus.insert(account.number, &account.gpu);
        }
        for totals in &changes.totals {
            self.put(totals, gpus.get(&totals.number).copied(), false);
        }
        for closed in &changes.closed {
            self.put(&closed.totals, Some(&closed.account.gpu), true);
        }
    }

    fn put(&mut self, totals: &KeptTotals, gpu: Option<&GpuUuid>, closed: bool) {
        let amounts = totals.amounts;
        match (self.accounts.get_mut(&totals.number), gpu) {
            (Some(account), _) => {
                account.amounts = amounts;
                account.closed = closed;
            }
            (None, Some(gpu)) => {
                let gpu = gpu.clone();
                let account = AccountWatermark {
                    gpu,
                    amounts,
                    closed,
                };
                self.accounts.insert(totals.number, account);
            }
            // Totals of an account that was never handed over. The writer finds the same error.
            (None, None) => {}
        }
    }

    /// What all accounts on each GPU come to, those that have ever been closed included.
    pub(super) fn owners(&self) -> HashMap<GpuUuid, Amounts> {
        let books = self.books.iter();
        let mut owners: HashMap<_, _> = books
            .map(|(gpu, book)| (gpu.clone(), book.closed))
            .collect();
        for account in self.accounts.values().filter(|account| !account.closed) {
            *owners.entry(account.gpu.clone()).or_default() += account.amounts;
        }
        owners
    }
}

/// What was booked by the last attempt of an hour in which the file took nothing any more.
#[derive(Clone, Debug)]
pub(super) struct MissedHour {
    pub(super) hour: i64,
    pub(super) clock: Clock,
    /// Accounts that are as they were before the hour are left out.
    pub(super) reached: Watermark,
    pub(super) owners: HashMap<GpuUuid, Amounts>,
}

/// The attempts since the last commit that was written.
#[derive(Debug, Default)]
pub(super) struct Missed {
    hours: Vec<MissedHour>,
    /// Everything as of the end of `hours`.
    before: Watermark,
    /// The last attempt.
    last: Option<Watermark>,
    /// Whether `hours` ends with the last attempt's: the one after it was begun, and may fail too.
    is_over: bool,
    /// Hours that were put together with the one after them.
    pub(super) merged: u64,
}

impl Missed {
    /// Notes an attempt that failed. `reached` is what is in the file.
    pub(super) fn note(&mut self, reached: &Watermark, changes: &Changes) {
        let Some(mut last) = self.last.take() else {
            self.before = reached.clone();
            let mut last = reached.clone();
            last.take(changes);
            self.last = Some(last);
            return;
        };
        let of = hour(last.clock.wall);
        let is_over = std::mem::take(&mut self.is_over);
        if !is_over && of != hour(changes.clock.wall) {
            self.push(of, &last);
        }
        last.take(changes);
        self.last = Some(last);
    }

    fn push(&mut self, hour: i64, last: &Watermark) {
        let before = std::mem::replace(&mut self.before, last.clone());
        let mut reached = last.clone();
        reached.accounts.retain(|number, account| {
            let before = before.accounts.get(number);
            before.is_none_or(|before| before.amounts != account.amounts)
        });
        self.hours.push(MissedHour {
            hour,
            clock: last.clock,
            owners: last.owners(),
            reached,
        });
        if self.hours.len() > HOURS {
            let oldest = self.hours.remove(0);
            self.merged += 1;
            if let Some(next) = self.hours.first_mut() {
                for (number, account) in oldest.reached.accounts {
                    next.reached.accounts.entry(number).or_insert(account);
                }
            }
        }
    }

    /// The hours that are over at `now`, the oldest first.
    pub(super) fn over(&mut self, now: Clock) -> &[MissedHour] {
        if let Some(last) = &self.last
            && !self.is_over
            && hour(last.clock.wall) != hour(now.wall)
        {
            let last = last.clone();
            self.push(hour(last.clock.wall), &last);
            self.is_over = true;
        }
        &self.hours
    }

    /// All of it has been written, or is of no use any more.
    pub(super) fn clear(&mut self) {
        *self = Self {
            merged: self.merged,
            ..Self::default()
        };
    }
}

/// Divides newly booked unobserved time among hours. A window may last for hours and is booked at once.
/// Its unobserved part is at its beginning, because the driver still has samples of its end. `before` and
/// `through` are how far the book reached and reaches, `grown` is by how much each reason grew. Returns
/// the parts that lie in hours before `present`; the rest is in that hour.
pub(super) fn spread(
    before: Option<BootTime>,
    through: Option<BootTime>,
    mut grown: Vec<(UnobservedReason, Nanos)>,
    clock: Clock,
    present: i64,
) -> Vec<(i64, UnobservedReason, Nanos)> {
    let (Some(before), Some(through)) = (before, through) else {
        return Vec::new();
    };
    let (start, end) = (clock.wall_of(before).0, clock.wall_of(through).0);
    grown.retain(|(_, time)| !time.is_zero());
    // An agent that was away was so before one that is there met with anything else.
    grown.sort_by_key(|(reason, _)| (*reason != UnobservedReason::AgentDown, *reason));
    grown.reverse();
    let mut parts = Vec::new();
    let mut at = start;
    while let Some((reason, left)) = grown.last_mut() {
        let of = at / HOUR;
        let room = end.min((of + 1).saturating_mul(HOUR)).saturating_sub(at);
        let hour = hour(WallTime(at));
        if room == 0 || hour >= present {
            break;
        }
        let part = left.0.min(room);
        parts.push((hour, *reason, Nanos(part)));
        at += part;
        left.0 -= part;
        if left.is_zero() {
            grown.pop();
        }
    }
    parts
}

/// What was booked before the commit that is written: by the last one of this life, in whichever file
/// that is, and by those after it that could not be written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Baseline<'a> {
    pub(super) reached: &'a Watermark,
    pub(super) missed: &'a [MissedHour],
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: u64 = 60_000_000_000;

    #[test]
    fn hours_beyond_those_that_are_told_apart_are_in_the_one_after_them() {
        let gpu = GpuUuid("GPU-0".into());
        let totals = |number: u32, busy: u64| KeptTotals {
            number,
            amounts: Amounts::busy(Nanos(busy)),
            memory_peak: None,
            processes_started: 0,
            first_used: None,
            last_used: None,
            changed: BootTime(0),
            since: None,
            allocated_through: None,
        };
        let mut reached = Watermark::default();
        // Account 1 is used in the first hour alone, account 2 in each.
        reached.put(&totals(1, 0), Some(&gpu), false);
        reached.put(&totals(2, 0), Some(&gpu), false);
        // Whether the attempts get as far as to ask what is over, or fail before that.
        for is_asked in [false, true] {
            let mut missed = Missed::default();
            let clock = |hour: u64| Clock {
                boot: BootTime(hour * HOUR),
                wall: WallTime(hour * HOUR),
            };
            let last = HOURS as u64 + 2;
            for hour in 0..last {
                let changes = Changes {
                    clock: clock(hour),
                    totals: vec![totals(1, 5), totals(2, hour + 1)],
                    ..Changes::default()
                };
                if is_asked {
                    missed.over(changes.clock);
                }
                missed.note(&reached, &changes);
            }
            let hours = missed.over(clock(last)).to_vec();
            assert_eq!((hours.len(), missed.merged), (HOURS, 2));
            let busy = |at: usize, account: u32| {
                let accounts = &hours[at].reached.accounts;
                accounts.get(&account).map(|account| account.amounts.busy)
            };
            assert_eq!(hours[0].hour, 2);
            assert_eq!((busy(0, 1), busy(0, 2)), (Some(Nanos(5)), Some(Nanos(3))));
            assert_eq!((busy(1, 1), busy(1, 2)), (None, Some(Nanos(4))));
            assert_eq!(hours[1].owners[&gpu].busy, Nanos(9));
        }
    }

    #[test]
    fn five_hours_of_nobody_are_not_one_hours() {
        use UnobservedReason::{AgentDown, DriverError};
        let minutes = |n: u64| Nanos(n * MINUTE);
        // Minutes after midnight: how far the book reached before and reaches now; what grew; and
        // the hours before 8 o'clock's that it is in.
        type Row<'a> = (
            u64,
            u64,
            Vec<(UnobservedReason, u64)>,
            &'a [(i64, UnobservedReason, u64)],
        );
        let rows: [Row<'_>; 6] = [
            (7 * 60, 8 * 60 + 1, vec![(AgentDown, 0)], &[]),
            (8 * 60, 8 * 60 + 30, vec![(AgentDown, 30)], &[]),
            (
                6 * 60 + 30,
                8 * 60 + 10,
                vec![(AgentDown, 95)],
                &[(6, AgentDown, 30), (7, AgentDown, 60)],
            ),
            (
                6 * 60 + 30,
                8 * 60 + 10,
                vec![(DriverError, 5), (AgentDown, 50)],
                &[(6, AgentDown, 30), (7, AgentDown, 20), (7, DriverError, 5)],
            ),
            // No more than there was room for, whatever a book says.
            (
                7 * 60 + 50,
                7 * 60 + 55,
                vec![(AgentDown, 60)],
                &[(7, AgentDown, 5)],
            ),
            // A clock that was set back: nothing has passed.
            (8 * 60, 7 * 60, vec![(AgentDown, 60)], &[]),
        ];
        for (before, through, grown, expected) in rows {
            let clock = Clock {
                boot: BootTime(9 * 60 * MINUTE),
                wall: WallTime(9 * 60 * MINUTE),
            };
            let of = |at: u64| Some(BootTime(at * MINUTE));
            let times = grown.iter().map(|(reason, time)| (*reason, minutes(*time)));
            let found = spread(of(before), of(through), times.collect(), clock, 8);
            let expected: Vec<_> = expected
                .iter()
                .map(|(hour, reason, time)| (*hour, *reason, minutes(*time)))
                .collect();
            assert_eq!(found, expected, "{before} to {through}: {grown:?}");
        }
    }
}
