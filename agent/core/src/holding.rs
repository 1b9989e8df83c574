//! Held time and memory over time, from the lists of processes that have a context on a GPU.
//!
//! NVML tells who has a context when it is asked, and between two answers nothing. What is booked in
//! between is what the kernel bounds:
//!
//! - A process that a list names holds the GPU from that list until the next one, and no longer than
//!   it lives: its exit is known to the nanosecond. So is when it executes another program, which ends
//!   what the old one had; the next list says whether the new one holds it.
//! - One that is named for the first time has held it since it was started, or opened the device,
//!   if that was after the list before. Otherwise since this list: nothing is extrapolated.
//! - Memory is the list's figure, from that list until the next one or the exit.
//! - A list that is not renewed counts for three intervals. After that nobody knows, and nothing is
//!   counted until a list comes again: failed is neither held nor free.
//!
//! Held time is a union: a payer with ten processes on a GPU for a second held it for a second.
//! Memory is a sum over its processes. Neither is ever turned into busy time.
//!
//! Exits come through another channel than lists, and later. So a stretch is booked only when the
//! caller says that everything up to its end is known.
//!
//! Times are of the boot clock, memory is in bytes. What is left of a byte second is carried.

use super::amounts::ByteSeconds;
use super::model::{BootTime, Nanos, ProcessId};
use super::placement::Owner;
use super::tables::HashMap;

/// Nanoseconds of a second.
const SECOND: u128 = Nanos::SECOND.0 as u128;
/// How many intervals a list counts for.
pub const INTERVALS: u64 = 3;

/// A process in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Which.
    pub process: ProcessId,
    /// Who pays for it.
    pub owner: Owner,
    /// The latest instant at which it is known not to have had a context yet, if any is known: when
    /// it was started, or first opened the device.
    pub not_before: Option<BootTime>,
    /// Its device memory, in bytes; absent where NVML does not say.
    pub memory: Option<u64>,
}

/// What is known of a process's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It lives.
    Alive,
    /// It died then.
    At(BootTime),
    /// It is not known any more.
    Forgotten,
}

/// What a payer is to be booked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Where the earliest of that time begins; [`BootTime::MAX`] where there is none.
    pub from: BootTime,
    /// Time during which at least one of its processes had a context.
    pub time: Nanos,
    /// Device memory over time.
    pub memory: ByteSeconds,
}

impl Default for Held {
    fn default() -> Self {
        Self {
            from: BootTime::MAX,
            time: Nanos::ZERO,
            memory: ByteSeconds::default(),
        }
    }
}

/// What one list says of one process: a stretch that ends with the next list.
#[derive(Debug)]
struct Stay {
    process: ProcessId,
    owner: Owner,
    /// Since when it holds the GPU.
    from: BootTime,
    memory: u64,
    /// Up to where its memory is booked: at first the list's own time.
    memory_through: BootTime,
    /// The next list; [`BootTime::MAX`] while there is none.
    until: BootTime,
}

/// A payer's part of one GPU.
#[derive(Debug, Default)]
struct Payer {
    /// Up to where its held time is booked. Not gone back behind.
    through: BootTime,
    /// Byte nanoseconds that are no whole byte second yet.
    carry: u128,
}

/// Who holds one GPU.
#[derive(Debug)]
pub struct Holding {
    interval: Nanos,
    /// When the last list was read.
    listed: Option<BootTime>,
    stays: Vec<Stay>,
    payers: HashMap<Owner, Payer>,
    /// Processes that have been named, while they live, and who paid for them last.
    known: HashMap<ProcessId, Owner>,
}

impl Holding {
    /// Of a GPU whose lists are read at least once in `interval`.
    #[must_use]
    pub fn new(interval: Nanos) -> Self {
        Self {
            interval,
            listed: None,
            stays: Vec::new(),
            payers: HashMap::default(),
            known: HashMap::default(),
        }
    }

    /// Who paid last for each process that has been named and lives.
    pub fn payers(&self) -> impl Iterator<Item = (ProcessId, &Owner)> {
        self.known.iter().map(|(process, owner)| (*process, owner))
    }

    /// A list before the first one here has named this process, and `owner` paid for it.
    pub fn restore(&mut self, process: ProcessId, owner: Owner) {
        self.known.insert(process, owner);
    }

    /// Takes a list that was read `at`, and returns whose processes are named for the first time,
    /// once for each; one that turns out to be another's, or moves to it, is new to that one. A list
    /// older than the last one says nothing new.
    pub fn list(&mut self, at: BootTime, members: Vec<Member>) -> Vec<Owner> {
        if self.listed.is_some_and(|listed| at <= listed) {
            return Vec::new();
        }
        let stale = self.stale();
        for stay in self
            .stays
            .iter_mut()
            .filter(|stay| stay.until == BootTime::MAX)
        {
            stay.until = at.min(stale);
        }
        // What came before a list that counts no more was not looked at.
        let before = self.listed.filter(|_| at <= stale);
        self.listed = Some(at);
        let mut started = Vec::new();
        for member in members {
            let paid = self.known.insert(member.process, member.owner.clone());
            let is_new = paid.is_none();
            let from = member
                .not_before
                .filter(|not_before| {
                    is_new && before.is_some_and(|before| before < *not_before) && *not_before < at
                })
                .unwrap_or(at);
            if paid.as_ref() != Some(&member.owner) {
                started.push(member.owner.clone());
            }
            self.stays.push(Stay {
                process: member.process,
                owner: member.owner,
                from,
                memory: member.memory.unwrap_or(0),
                memory_through: at,
                until: BootTime::MAX,
            });
        }
        started
    }

    /// A process executes another program: what lists said of it before is over. Whether they said
    /// anything.
    pub fn executed(&mut self, process: ProcessId, at: BootTime) -> bool {
        let mut any = false;
        let before = |stay: &&mut Stay| stay.process == process && stay.from < at;
        for stay in self.stays.iter_mut().filter(before) {
            any |= stay.until > at;
            stay.until = stay.until.min(at);
        }
        any
    }

    /// Up to where the last list counts.
    fn stale(&self) -> BootTime {
        self.listed.map_or(BootTime::MAX, |listed| {
            listed.plus(Nanos(self.interval.0.saturating_mul(INTERVALS)))
        })
    }

    /// Books everything up to `until`, by when `end_of` knows every exit. Each payer once.
    pub fn settle(
        &mut self,
        until: BootTime,
        end_of: &dyn Fn(ProcessId) -> End,
    ) -> Vec<(Owner, Held)> {
        let until = until.min(self.stale());
        let mut booked = HashMap::<Owner, Held>::default();
        // By their beginnings, so that each payer's union is one sweep.
        self.stays.sort_by_key(|stay| stay.from);
        let payers = &mut self.payers;
        self.stays.retain_mut(|stay| {
            let end = match end_of(stay.process) {
                End::At(exit) => stay.until.min(exit),
                End::Alive | End::Forgotten => stay.until,
            };
            let through = until.min(end);
            let payer = payers.entry(stay.owner.clone()).or_default();
            let from = stay.from.max(payer.through);
            let mut held = Held {
                time: through.since(from),
                ..Held::default()
            };
            if !held.time.is_zero() {
                held.from = from;
            }
            payer.through = payer.through.max(through);
            let span = through.since(stay.memory_through);
            stay.memory_through = stay.memory_through.max(through);
            payer.carry += u128::from(stay.memory) * u128::from(span.0);
            held.memory = ByteSeconds(payer.carry / SECOND);
            payer.carry %= SECOND;
            if held != Held::default() {
                let sum = booked.entry(stay.owner.clone()).or_default();
                sum.from = sum.from.min(held.from);
                sum.time += held.time;
                sum.memory.0 = sum.memory.0.saturating_add(held.memory.0);
            }
            end > until
        });
        let stays = &self.stays;
        self.known.retain(|process, _| match end_of(*process) {
            End::Alive => true,
            End::At(exit) => exit > until,
            End::Forgotten => stays.iter().any(|stay| stay.process == *process),
        });
        booked.into_iter().collect()
    }

    /// Forgets payers that `is_open` says have no account any more.
    pub fn forget(&mut self, is_open: &dyn Fn(&Owner) -> bool) {
        let stays = &self.stays;
        self.payers
            .retain(|owner, _| is_open(owner) || stays.iter().any(|stay| stay.owner == *owner));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::model::{ContainerId, Pid, StartTicks};
    use super::*;

    fn owner(name: &str) -> Owner {
        Owner::Container(ContainerId::from(name))
    }

    fn process(pid: u32) -> ProcessId {
        ProcessId {
            pid: Pid(pid),
            start: StartTicks(0),
        }
    }

    fn at(millis: u64) -> BootTime {
        BootTime(millis * 1_000_000)
    }

    /// `(pid, owner, not before, memory)`, times in milliseconds.
    type Row = (u32, &'static str, Option<u64>, Option<u64>);

    /// Takes lists `(time, rows)` with exits `(pid, time)`, settles at each of `settles` as far as the
    /// lists go by then and once more at the end, and returns what each payer came to.
    fn held(
        lists: &[(u64, &[Row])],
        exits: &[(u32, u64)],
        settles: &[u64],
    ) -> Vec<(&'static str, u64, u64)> {
        let exits: HashMap<u32, u64> = exits.iter().copied().collect();
        let end_of = |process: ProcessId| {
            exits
                .get(&process.pid.0)
                .map_or(End::Alive, |exit| End::At(at(*exit)))
        };
        let mut holding = Holding::new(Nanos::from_secs(1));
        let mut sums = HashMap::<Owner, Held>::default();
        let mut lists = lists.iter().peekable();
        for settle in settles {
            while let Some((time, rows)) = lists.next_if(|(time, _)| time <= settle) {
                let members = rows.iter().map(|(pid, name, not_before, memory)| Member {
                    process: process(*pid),
                    owner: owner(name),
                    not_before: not_before.map(at),
                    memory: *memory,
                });
                holding.list(at(*time), members.collect());
            }
            for (owner, held) in holding.settle(at(*settle), &end_of) {
                let sum = sums.entry(owner).or_default();
                sum.time += held.time;
                sum.memory.0 += held.memory.0;
            }
        }
        let mut rows: Vec<_> = ["a", "b"]
            .into_iter()
            .filter_map(|name| {
                let held = sums.get(&owner(name))?;
                let memory = u64::try_from(held.memory.0).expect("it is small here");
                Some((name, held.time.0 / 1_000_000, memory))
            })
            .collect();
        rows.sort_unstable();
        rows
    }

    #[test]
    fn another_program_holds_nothing_of_the_old_one_s() {
        let mut holding = Holding::new(Nanos::from_secs(5));
        let member = |pid| Member {
            process: process(pid),
            owner: owner("a"),
            not_before: None,
            memory: Some(1_000),
        };
        let alive = |_| End::Alive;
        let settle = |holding: &mut Holding, to| {
            let booked = holding.settle(at(to), &alive);
            let held = booked.first().map(|(_, held)| *held).unwrap_or_default();
            (held.time.0 / 1_000_000, held.memory.0)
        };
        assert_eq!(holding.list(at(1_000), vec![member(7)]), [owner("a")]);
        assert!(!holding.executed(process(8), at(1_500)), "another process");
        assert!(holding.executed(process(7), at(2_000)));
        assert!(!holding.executed(process(7), at(2_500)), "once");
        assert_eq!(settle(&mut holding, 3_000), (1_000, 1_000));
        // It holds it, too, from the list that says so, and is not another process for that.
        assert_eq!(holding.list(at(4_000), vec![member(7)]), []);
        // News of an exec before that list, which come late, say nothing of after it.
        assert!(!holding.executed(process(7), at(3_500)));
        assert_eq!(settle(&mut holding, 5_000), (1_000, 1_000));
    }

    #[test]
    fn held_time_is_a_union_bounded_by_lists_and_lives() {
        const ONE: &[Row] = &[(1, "a", None, Some(10))];
        type Case = (
            &'static str,
            &'static [(u64, &'static [Row])],
            &'static [(u32, u64)],
            &'static [u64],
            &'static [(&'static str, u64, u64)],
        );
        let cases: &[Case] = &[
            ("nobody", &[(1_000, &[])], &[], &[2_000], &[]),
            (
                "from list to list",
                &[(1_000, ONE), (2_000, ONE), (3_000, &[])],
                &[],
                &[4_000],
                &[("a", 2_000, 20)],
            ),
            (
                "until its exit",
                &[(1_000, ONE), (2_000, ONE), (3_000, &[])],
                &[(1, 2_400)],
                &[4_000],
                // 4 byte seconds of the last stretch.
                &[("a", 1_400, 14)],
            ),
            (
                "booked in steps it is the same",
                &[(1_000, ONE), (2_000, ONE), (3_000, &[])],
                &[(1, 2_400)],
                &[
                    1_100, 1_133, 1_999, 2_000, 2_350, 2_399, 2_400, 2_900, 4_000,
                ],
                &[("a", 1_400, 14)],
            ),
            (
                "since its start, if that was after the list before; its memory since the list",
                &[(1_000, &[]), (2_000, &[(1, "a", Some(1_300), Some(10))])],
                &[],
                &[3_000],
                &[("a", 1_700, 10)],
            ),
            (
                "since the list, if it started before the list before",
                &[(1_000, &[]), (2_000, &[(1, "a", Some(900), None)])],
                &[],
                &[3_000],
                &[("a", 1_000, 0)],
            ),
            (
                "since the first list of all, however long it had been there",
                &[(2_000, &[(1, "a", Some(900), None)])],
                &[],
                &[3_000],
                &[("a", 1_000, 0)],
            ),
            (
                "two processes of one payer hold it once, and each its memory",
                &[
                    (1_000, &[(1, "a", None, Some(10)), (2, "a", None, Some(5))]),
                    (2_000, &[(2, "a", None, Some(5))]),
                    (3_000, &[]),
                ],
                &[(1, 1_500)],
                &[4_000],
                &[("a", 2_000, 15)],
            ),
            (
                "two payers hold it both",
                &[
                    (1_000, &[(1, "a", None, Some(1)), (2, "b", None, Some(2))]),
                    (2_000, &[]),
                ],
                &[],
                &[3_000],
                &[("a", 1_000, 1), ("b", 1_000, 2)],
            ),
            (
                "a list that is not renewed counts for three intervals",
                &[(1_000, ONE)],
                &[],
                &[2_000, 60_000],
                &[("a", 3_000, 30)],
            ),
            (
                "and one that comes again counts from there",
                &[
                    (1_000, ONE),
                    (
                        10_000,
                        &[(1, "a", None, Some(10)), (2, "b", Some(9_000), None)],
                    ),
                ],
                &[],
                &[11_000],
                &[("a", 4_000, 40), ("b", 1_000, 0)],
            ),
            (
                "a list out of order is none",
                &[(2_000, ONE), (1_500, &[])],
                &[],
                &[3_000],
                &[("a", 1_000, 10)],
            ),
        ];
        for (what, lists, exits, settles, expected) in cases {
            assert_eq!(held(lists, exits, settles), *expected, "{what}");
        }
    }

    #[test]
    fn parts_of_a_byte_second_are_carried() {
        // A thousandth of a byte second with each list.
        let lists: Vec<(u64, Vec<Row>)> = (0..3_000)
            .map(|list| (list, vec![(1, "a", None, Some(1))]))
            .collect();
        let lists: Vec<(u64, &[Row])> = lists.iter().map(|(t, rows)| (*t, &rows[..])).collect();
        let settles: Vec<u64> = (0..3_000).step_by(7).chain([2_999]).collect();
        assert_eq!(held(&lists, &[], &settles), [("a", 2_999, 2)]);
    }

    #[test]
    fn a_process_is_counted_as_started_once_in_its_life() {
        let mut holding = Holding::new(Nanos::SECOND);
        let member = |pid| Member {
            process: process(pid),
            owner: owner("a"),
            not_before: None,
            memory: None,
        };
        assert_eq!(holding.list(at(1_000), vec![member(1), member(2)]).len(), 2);
        assert_eq!(holding.list(at(2_000), vec![member(2)]).len(), 0);
        holding.settle(at(2_000), &|_| End::Alive);
        let moved = Member {
            owner: owner("b"),
            ..member(2)
        };
        assert_eq!(holding.list(at(2_500), vec![moved]), [owner("b")]);
        // It gave its context back and took another.
        assert_eq!(holding.list(at(3_000), vec![member(1)]).len(), 0);
        holding.settle(at(3_500), &|_| End::At(at(3_200)));
        assert_eq!(holding.list(at(4_000), vec![member(1)]).len(), 1);
        assert_eq!(
            holding.list(at(4_000), vec![member(3)]).len(),
            0,
            "not newer"
        );
    }

    #[test]
    fn what_is_settled_is_forgotten() {
        let mut holding = Holding::new(Nanos::SECOND);
        for list in 1..100 {
            let member = Member {
                process: process(list),
                owner: owner("a"),
                not_before: None,
                memory: Some(u64::MAX),
            };
            holding.list(at(u64::from(list) * 1_000), vec![member]);
            holding.settle(at(u64::from(list) * 1_000), &|_| End::Forgotten);
            assert!(holding.stays.len() <= 1 && holding.known.len() <= 1);
        }
        holding.settle(at(1_000_000), &|_| End::At(at(100)));
        holding.forget(&|_| false);
        assert!(holding.stays.is_empty() && holding.payers.is_empty());
    }

    proptest! {
        /// However lists and settlings fall, nobody holds a GPU for longer than the time there was,
        /// and a single process's memory is its held time times its bytes.
        #[test]
        fn no_more_is_held_than_time_goes_by(
            lists in proptest::collection::vec((1u64..2_500, any::<bool>(), any::<bool>()), 1..20),
            settles in proptest::collection::vec(0u64..40_000, 0..30),
            exit in proptest::option::of(0u64..40_000),
        ) {
            let mut time = 0;
            let lists: Vec<(u64, Vec<Row>)> = lists.into_iter().map(|(step, one, two)| {
                time += step;
                let rows = [(one, (1, "a", None, Some(1_000))), (two, (2, "a", Some(time / 2), None))];
                (time, rows.into_iter().filter_map(|(is_there, row)| is_there.then_some(row)).collect())
            }).collect();
            let lists: Vec<(u64, &[Row])> = lists.iter().map(|(t, rows)| (*t, &rows[..])).collect();
            let mut settles = settles;
            settles.push(60_000);
            settles.sort_unstable();
            let exits: Vec<(u32, u64)> = exit.map(|exit| (1, exit)).into_iter().collect();
            let in_steps = held(&lists, &exits, &settles);
            if let Some((_, millis, memory)) = in_steps.first() {
                // The last list counts for three seconds.
                prop_assert!(*millis <= time + 3_000, "{millis} of {time}");
                prop_assert!(*memory <= *millis, "{memory} in {millis}");
            }
        }
    }
}
