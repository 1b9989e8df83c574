use proptest::prelude::*;

use super::*;
use crate::model::{ContainerId, Pid, StartTicks};

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
/// lists go by then and once more at the end, and returns what each owner came to.
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
    let mut sums = HashMap::<Owner, HeldAmount>::default();
    let mut lists = lists.iter().peekable();
    for settle in settles {
        while let Some((time, rows)) = lists.next_if(|(time, _)| time <= settle) {
            let members = rows
                .iter()
                .map(|(pid, name, not_before, memory)| ListedProcess {
                    process: process(*pid),
                    owner: owner(name),
                    not_before: not_before.map(at),
                    memory: *memory,
                });
            holding.list(at(*time), members.collect());
        }
        for (owner, held) in holding.book_until(at(*settle), &end_of) {
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
    let member = |pid| ListedProcess {
        process: process(pid),
        owner: owner("a"),
        not_before: None,
        memory: Some(1_000),
    };
    let alive = |_| End::Alive;
    let settle = |holding: &mut Holding, to| {
        let booked = holding.book_until(at(to), &alive);
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
    let member = |pid| ListedProcess {
        process: process(pid),
        owner: owner("a"),
        not_before: None,
        memory: None,
    };
    assert_eq!(holding.list(at(1_000), vec![member(1), member(2)]).len(), 2);
    assert_eq!(holding.list(at(2_000), vec![member(2)]).len(), 0);
    holding.book_until(at(2_000), &|_| End::Alive);
    let moved = ListedProcess {
        owner: owner("b"),
        ..member(2)
    };
    assert_eq!(holding.list(at(2_500), vec![moved]), [owner("b")]);
    // It gave its context back and took another.
    assert_eq!(holding.list(at(3_000), vec![member(1)]).len(), 0);
    holding.book_until(at(3_500), &|_| End::At(at(3_200)));
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
        let member = ListedProcess {
            process: process(list),
            owner: owner("a"),
            not_before: None,
            memory: Some(u64::MAX),
        };
        holding.list(at(u64::from(list) * 1_000), vec![member]);
        holding.book_until(at(u64::from(list) * 1_000), &|_| End::Forgotten);
        assert!(holding.stays.len() <= 1 && holding.known.len() <= 1);
    }
    holding.book_until(at(1_000_000), &|_| End::At(at(100)));
    holding.forget(&|_| false);
    assert!(holding.stays.is_empty() && holding.progress.is_empty());
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
