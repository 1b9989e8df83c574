use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const HOST: PlacementId = PlacementId::new(1);
const BOX_A: PlacementId = PlacementId::new(2);
const BOX_B: PlacementId = PlacementId::new(3);

fn s(seconds: u64) -> BootTime {
    BootTime(seconds * 1_000_000_000)
}

fn ms(millis: u64) -> BootTime {
    BootTime(millis * 1_000_000)
}

fn table() -> ProcessTable {
    ProcessTable::new(1 << 20)
}

fn see(
    table: &mut ProcessTable,
    pid: u32,
    start: BootTime,
    at: BootTime,
    place: PlacementId,
    how: Sighting,
) {
    table.observe(Pid(pid), start, at, place, how, &mut |_| {});
}

fn places(table: &ProcessTable, pid: u32, from: BootTime, to: BootTime) -> Vec<PlacementId> {
    let mut places: Vec<_> = table
        .holders(Pid(pid), from, to, Completeness::NONE)
        .into_iter()
        .flat_map(|holder| holder.placements)
        .flatten()
        .collect();
    places.sort_unstable();
    places.dedup();
    places
}

#[test]
fn a_process_is_found_from_birth_to_death_and_a_little_after() {
    let mut table = table();
    see(&mut table, 7, s(10), s(10), BOX_A, Sighting::Fork);
    table.exit(Pid(7), s(10), ms(10_300));
    // (from, to) in ms -> found
    for (from, to, found) in [
        (9_000, 9_999, false),
        (9_000, 10_000, true),
        (10_100, 10_200, true),
        (10_299, 11_000, true),
        (10_300, 11_000, true),  // within the slack
        (10_549, 11_000, true),  // within the slack, barely
        (10_550, 11_000, false), // beyond
    ] {
        assert_eq!(
            !places(&table, 7, ms(from), ms(to)).is_empty(),
            found,
            "({from}, {to}]"
        );
    }
}

#[test]
fn the_last_holder_is_found_long_after_its_death_where_no_event_was_lost() {
    let dead = |end: &dyn Fn(&mut ProcessTable)| {
        let mut table = table();
        see(&mut table, 7, s(10), s(10), BOX_A, Sighting::Fork);
        end(&mut table);
        table
    };
    let exit = |table: &mut ProcessTable| table.exit(Pid(7), s(10), s(20));
    let complete = |since, through| Completeness {
        since: s(since),
        through: s(through),
    };
    let found = |table: &ProcessTable, events| {
        let holders = table.holders(Pid(7), s(23), s(24), events);
        let places = holders.into_iter().flat_map(|holder| holder.placements);
        places.flatten().collect::<Vec<_>>()
    };
    assert_eq!(found(&dead(&exit), complete(20, 24)), [BOX_A]);
    assert_eq!(found(&dead(&exit), complete(21, 24)), [], "lost since");
    assert_eq!(found(&dead(&exit), complete(20, 23)), [], "not all there");
    let moved = dead(&|table| {
        see(table, 7, s(10), s(19), BOX_B, Sighting::Attach);
        exit(table);
    });
    assert_eq!(
        found(&moved, complete(20, 24)),
        [BOX_B],
        "where it was last"
    );
    let inferred = dead(&|table| {
        table.close_unseen(s(20), &|_, _| false);
    });
    assert_eq!(found(&inferred, complete(1, 24)), [], "nobody reported it");
    let taken = |at| {
        dead(&move |table: &mut ProcessTable| {
            table.exit(Pid(7), s(10), s(20));
            see(table, 7, s(at), s(at), BOX_B, Sighting::Fork);
            table.exit(Pid(7), s(at), s(at));
        })
    };
    assert_eq!(found(&taken(21), complete(1, 24)), [BOX_B], "the last one");
    assert_eq!(found(&taken(25), complete(1, 24)), [BOX_A], "taken later");
    let restored = dead(&|table| {
        exit(table);
        let facts = table.incarnations(Pid(7))[0];
        *table = ProcessTable::new(9);
        assert!(table.restore(&facts));
    });
    assert_eq!(found(&restored, complete(22, 24)), [], "no agent ran");
    let full = dead(&|table| {
        exit(table);
        table.limit = 1;
        see(table, 7, s(22), s(22), BOX_B, Sighting::Fork);
    });
    assert_eq!(found(&full, complete(1, 24)), [], "one found no room");
}

#[test]
fn a_reused_pid_has_two_holders_only_in_windows_that_both_touch() {
    let mut table = table();
    see(&mut table, 7, s(10), s(10), BOX_A, Sighting::Fork);
    table.exit(Pid(7), s(10), s(11));
    see(&mut table, 7, s(12), s(12), BOX_B, Sighting::Fork);
    assert_eq!(places(&table, 7, s(10), ms(11_500)), [BOX_A]);
    assert_eq!(places(&table, 7, ms(10_500), s(13)), [BOX_A, BOX_B]);
    assert_eq!(places(&table, 7, ms(11_500), s(13)), [BOX_B]);
    assert_eq!((table.alive(), table.exited()), (1, 1));
}

#[test]
fn a_lost_exit_is_inferred_from_the_pid_being_taken_again() {
    let mut table = table();
    see(&mut table, 7, s(10), s(10), BOX_A, Sighting::Fork);
    see(&mut table, 7, s(20), s(20), BOX_B, Sighting::Fork);
    assert_eq!((table.alive(), table.exited()), (1, 1));
    assert_eq!(places(&table, 7, s(21), s(22)), [BOX_B]);
    assert_eq!(places(&table, 7, s(18), s(19)), [BOX_A]);
}

#[test]
fn an_older_incarnation_that_is_reported_late_is_dead_already() {
    let mut table = table();
    see(&mut table, 7, s(20), s(20), BOX_B, Sighting::Fork);
    see(&mut table, 7, s(10), s(10), BOX_A, Sighting::Fork);
    assert_eq!((table.alive(), table.exited()), (1, 1));
    assert_eq!(places(&table, 7, s(11), s(12)), [BOX_A]);
    assert_eq!(places(&table, 7, s(21), s(22)), [BOX_B]);
}

#[test]
fn a_scan_and_an_event_are_one_process_if_their_ticks_agree() {
    let mut table = table();
    // The scan knows 10.01 s (a tick), the kernel 10.0187 s.
    see(&mut table, 7, ms(10_010), s(12), BOX_A, Sighting::Scan);
    table.exit(Pid(7), BootTime(10_018_700_000), s(13));
    assert_eq!((table.alive(), table.exited()), (0, 1));
}

#[test]
fn a_move_between_containers_gives_two_places_in_that_window_and_one_after() {
    let mut table = table();
    see(&mut table, 7, s(10), s(10), BOX_A, Sighting::Fork);
    see(&mut table, 7, s(10), s(11), BOX_A, Sighting::Exec);
    see(&mut table, 7, s(10), s(15), BOX_B, Sighting::Attach);
    assert_eq!(places(&table, 7, s(12), s(14)), [BOX_A]);
    assert_eq!(places(&table, 7, s(14), s(16)), [BOX_A, BOX_B]);
    assert_eq!(places(&table, 7, s(15), s(16)), [BOX_B]);
}

#[test]
fn a_move_that_is_reported_before_the_birth_comes_to_the_same() {
    let mut table = table();
    see(&mut table, 7, s(10), s(15), BOX_B, Sighting::Attach);
    see(&mut table, 7, s(10), s(11), BOX_A, Sighting::Exec);
    see(&mut table, 7, s(10), s(10), BOX_A, Sighting::Fork);
    assert_eq!(places(&table, 7, s(12), s(14)), [BOX_A]);
    assert_eq!(places(&table, 7, s(14), s(16)), [BOX_A, BOX_B]);
}

#[test]
fn a_starter_that_moves_into_its_container_and_execs_there_is_only_there() {
    let mut table = table();
    see(&mut table, 7, ms(10_000), ms(10_000), HOST, Sighting::Fork);
    see(
        &mut table,
        7,
        ms(10_000),
        ms(10_010),
        BOX_A,
        Sighting::Attach,
    );
    assert_eq!(places(&table, 7, s(9), s(11)), [HOST, BOX_A]);
    see(&mut table, 7, ms(10_000), ms(10_020), BOX_A, Sighting::Exec);
    assert_eq!(places(&table, 7, s(9), s(11)), [BOX_A]);
}

#[test]
fn exits_are_idempotent_and_exits_of_strangers_are_ignored() {
    let mut table = table();
    see(&mut table, 7, s(10), s(10), BOX_A, Sighting::Fork);
    table.exit(Pid(7), s(10), s(11));
    table.exit(Pid(7), s(10), s(11));
    table.exit(Pid(7), s(9), s(14));
    table.exit(Pid(8), s(9), s(14));
    assert_eq!((table.alive(), table.exited()), (0, 1));
    assert!(places(&table, 7, s(12), s(13)).is_empty());
}

#[test]
fn an_exit_that_is_reported_after_a_scan_missed_the_process_is_when_it_was() {
    let mut table = table();
    see(&mut table, 7, s(10), s(10), BOX_A, Sighting::Fork);
    table.close_unseen(s(20), &|_, _| false);
    table.exit(Pid(7), s(10), s(22));
    assert_eq!(places(&table, 7, s(21), s(30)), [BOX_A]);
    assert_eq!((table.alive(), table.exited()), (0, 1));
}

#[test]
fn a_scan_closes_those_it_should_have_seen_and_no_others() {
    let mut table = table();
    see(&mut table, 1, s(1), s(1), HOST, Sighting::Fork);
    see(&mut table, 2, s(1), s(1), HOST, Sighting::Fork);
    see(&mut table, 3, s(30), s(30), HOST, Sighting::Fork); // born during the scan
    let closed = table.close_unseen(s(20), &|pid, _| pid == Pid(1));
    assert_eq!(closed, 1);
    assert_eq!((table.alive(), table.exited()), (2, 1));
    assert!(places(&table, 2, s(21), s(22)).is_empty());
    assert_eq!(places(&table, 3, s(30), s(31)), [HOST]);
}

#[test]
fn a_scan_dates_a_lost_exit_better_than_the_pid_being_taken_again() {
    let mut table = table();
    see(&mut table, 7, s(10), s(10), BOX_A, Sighting::Fork);
    see(&mut table, 7, s(20), s(20), BOX_B, Sighting::Fork);
    // It began before the pid was taken again, and comes after that is known.
    assert_eq!(table.close_unseen(s(15), &|_, _| false), 0);
    assert_eq!((table.alive(), table.exited()), (1, 1));
    assert_eq!(places(&table, 7, s(16), s(22)), [BOX_B]);
}

#[test]
fn a_process_that_a_scan_had_missed_lives_again_when_it_is_seen() {
    let mut table = table();
    see(&mut table, 1, s(1), s(1), HOST, Sighting::Fork);
    table.close_unseen(s(20), &|_, _| false);
    assert_eq!((table.alive(), table.exited()), (0, 1));
    see(&mut table, 1, s(1), s(30), HOST, Sighting::Scan);
    assert_eq!((table.alive(), table.exited()), (1, 0));
    assert_eq!(places(&table, 1, s(40), s(41)), [HOST]);
}

#[test]
fn a_zombie_that_a_scan_still_finds_stays_dead() {
    let mut table = table();
    see(&mut table, 1, s(1), s(1), BOX_A, Sighting::Fork);
    table.exit(Pid(1), s(1), s(10));
    // Its parent has not asked for its status yet.
    see(&mut table, 1, s(1), s(30), BOX_A, Sighting::Scan);
    assert_eq!((table.alive(), table.exited()), (0, 1));
    see(&mut table, 1, s(40), s(40), BOX_B, Sighting::Fork);
    assert_eq!(places(&table, 1, s(39), s(41)), [BOX_B]);
}

#[test]
fn a_pid_that_is_used_again_within_a_tick_is_alive_again() {
    let mut table = table();
    see(&mut table, 1, ms(1_000), ms(1_000), BOX_A, Sighting::Fork);
    table.exit(Pid(1), ms(1_000), ms(1_002));
    see(&mut table, 1, ms(1_004), ms(1_004), BOX_A, Sighting::Fork);
    assert_eq!((table.alive(), table.exited()), (1, 0));
    assert_eq!(places(&table, 1, s(2), s(3)), [BOX_A]);
    // The news of the first one, come late, change nothing.
    table.exit(Pid(1), ms(1_000), ms(1_002));
    see(&mut table, 1, ms(1_000), ms(1_001), BOX_A, Sighting::Exec);
    assert_eq!((table.alive(), table.exited()), (1, 0));
}

#[test]
fn an_exit_that_is_reported_after_the_pid_was_taken_again_is_when_it_was() {
    let mut table = table();
    see(&mut table, 7, s(10), s(10), BOX_A, Sighting::Fork);
    see(&mut table, 7, s(20), s(20), BOX_B, Sighting::Fork);
    table.exit(Pid(7), s(10), s(12));
    assert_eq!(places(&table, 7, s(19), s(21)), [BOX_B]);
    assert_eq!((table.alive(), table.exited()), (1, 1));
}

#[test]
fn the_dead_are_forgotten_with_their_placements_and_slots_are_used_again() {
    let mut table = table();
    let mut released = Vec::new();
    for pid in 0..100 {
        see(&mut table, pid, s(10), s(10), HOST, Sighting::Fork);
        see(&mut table, pid, s(10), s(11), BOX_A, Sighting::Attach);
        table.exit(Pid(pid), s(10), s(12 + u64::from(pid)));
    }
    table.forget(s(62), &mut |id| released.push(id));
    assert_eq!((table.alive(), table.exited()), (0, 50));
    assert_eq!(released.len(), 100);
    let records = table.records.len();
    for pid in 200..250 {
        see(&mut table, pid, s(70), s(70), HOST, Sighting::Fork);
    }
    assert_eq!(table.records.len(), records, "freed slots are used first");
    assert_eq!((table.alive(), table.exited()), (50, 50));
}

#[test]
fn forgetting_keeps_a_living_incarnation_behind_a_dead_pid() {
    let mut table = table();
    for incarnation in 0..5 {
        let start = s(10 + incarnation * 10);
        see(&mut table, 7, start, start, BOX_A, Sighting::Fork);
    }
    table.forget(s(45), &mut |_| {});
    assert_eq!((table.alive(), table.exited()), (1, 1));
    assert_eq!(
        table
            .holders(Pid(7), s(48), s(60), Completeness::NONE)
            .len(),
        2
    );
    table.forget(s(100), &mut |_| {});
    assert_eq!(
        table
            .holders(Pid(7), s(48), s(60), Completeness::NONE)
            .len(),
        1
    );
}

#[test]
fn the_first_parent_stays_and_an_event_is_not_forgotten() {
    let mut table = table();
    see(&mut table, 7, s(10), s(10), HOST, Sighting::Scan);
    table.note(Pid(7), s(10), Pid(0), false);
    let of = |table: &ProcessTable| {
        let facts = table.incarnations(Pid(7))[0];
        (facts.parent, facts.by_event, facts.previous)
    };
    assert_eq!(of(&table), (None, false, None));
    table.note(Pid(7), s(10), Pid(3), true);
    table.note(Pid(7), s(10), Pid(1), false);
    assert_eq!(of(&table), (Some(Pid(3)), true, None));
    see(&mut table, 7, s(10), s(11), BOX_A, Sighting::Attach);
    assert_eq!(of(&table), (Some(Pid(3)), true, Some(HOST)));
    table.exit(Pid(7), s(10), s(12));
    see(&mut table, 7, s(13), s(13), BOX_B, Sighting::Fork);
    let known = table.incarnations(Pid(7));
    let ends: Vec<_> = known.iter().map(|facts| facts.exit).collect();
    assert_eq!(ends, [None, Some(s(12))]);
    assert_eq!(table.everyone().count(), 2);
    // A stranger is not made known by what is said beside its place.
    table.note(Pid(8), s(1), Pid(1), true);
    assert!(table.incarnations(Pid(8)).is_empty());
}

#[test]
fn what_a_table_before_knew_is_confirmed_or_ended_by_a_scan() {
    let mut before = table();
    see(&mut before, 1, s(10), s(10), BOX_A, Sighting::Fork);
    see(&mut before, 2, s(10), s(10), BOX_A, Sighting::Scan);
    see(&mut before, 3, s(10), s(10), BOX_A, Sighting::Fork);
    before.exit(Pid(3), s(10), s(11));
    see(&mut before, 4, s(10), s(10), BOX_A, Sighting::Fork);
    before.note(Pid(1), s(10), Pid(0), true);
    before.close_unseen(s(12), &|pid, _| pid != Pid(4));
    see(&mut before, 5, s(10), s(10), BOX_A, Sighting::Fork);
    see(&mut before, 5, s(10), s(11), BOX_B, Sighting::Attach);
    before.exit(Pid(5), s(10), s(12));
    let mut table = table();
    for facts in before.everyone() {
        assert!(table.restore(&facts));
        assert!(!table.restore(&facts), "it is known");
        assert_eq!(table.facts_of(facts.process), Some(facts));
    }
    assert_eq!((table.alive(), table.exited()), (2, 3));
    assert_eq!(places(&table, 5, s(9), s(12)), [BOX_A, BOX_B]);
    // One lives, one has died since, one is a zombie, and one had only been missed.
    for pid in [1, 3, 4] {
        see(&mut table, pid, s(10), s(20), BOX_A, Sighting::Scan);
    }
    table.close_unseen(s(20), &|pid, _| pid != Pid(2));
    let ends = [1, 2, 3, 4].map(|pid| table.incarnations(Pid(pid))[0].exit);
    assert_eq!(ends, [None, Some(s(20)), Some(s(11)), None]);
    assert_eq!((table.alive(), table.exited()), (2, 3));
}

#[test]
fn one_that_moved_while_nobody_looked_was_in_both_places_until_it_was_found() {
    let mut before = table();
    see(&mut before, 7, s(10), s(10), BOX_A, Sighting::Fork);
    let facts = before.incarnations(Pid(7))[0];
    for (how, until_found) in [
        (Sighting::Scan, &[BOX_A, BOX_B][..]),
        (Sighting::Exec, &[BOX_A, BOX_B]),
        (Sighting::Attach, &[BOX_A]),
    ] {
        let mut table = table();
        table.restore(&facts);
        see(&mut table, 7, s(10), s(20), BOX_B, how);
        assert_eq!(places(&table, 7, s(12), s(14)), until_found, "{how:?}");
        assert_eq!(places(&table, 7, s(19), s(21)), [BOX_A, BOX_B]);
        assert_eq!(places(&table, 7, s(20), s(21)), [BOX_B]);
    }
}

#[test]
fn a_pid_that_was_reused_since_has_two_holders() {
    for by_event in [true, false] {
        let mut before = table();
        see(&mut before, 7, s(10), s(10), BOX_A, Sighting::Fork);
        let mut table = table();
        let facts = before.incarnations(Pid(7))[0];
        table.restore(&Facts { by_event, ..facts });
        see(&mut table, 7, s(15), s(20), BOX_B, Sighting::Scan);
        table.close_unseen(s(20), &|_, start| start == s(15).into());
        assert_eq!(places(&table, 7, s(12), s(14)), [BOX_A]);
        assert_eq!(places(&table, 7, s(14), s(16)), [BOX_A, BOX_B]);
        assert_eq!(places(&table, 7, s(16), s(17)), [BOX_B]);
        assert_eq!((table.alive(), table.exited()), (1, 1));
    }
}

/// The sentinel of the living is a time, too, and times come from outside: the count of the living
/// wrapped.
#[test]
fn a_death_at_the_end_of_time_is_a_death() {
    let end = BootTime::MAX;
    let mut table = table();
    see(&mut table, 1, s(10), s(10), BOX_A, Sighting::Fork);
    for _ in 0..3 {
        table.exit(Pid(1), s(10), end);
    }
    assert_eq!((table.alive(), table.exited()), (0, 1));
    // Its pid is taken by one that is said to have been born then, and once more.
    see(&mut table, 1, end, end, BOX_B, Sighting::Scan);
    see(&mut table, 1, s(20), s(20), BOX_B, Sighting::Fork);
    assert_eq!((table.alive(), table.exited()), (1, 2));
    table.exit(Pid(1), s(20), end);
    assert_eq!((table.alive(), table.exited()), (1, 2));
    // A scan that is said to have begun then.
    see(&mut table, 2, s(10), s(10), BOX_A, Sighting::Fork);
    for _ in 0..2 {
        assert_eq!(table.close_unseen(end, &|_, _| false), 0);
        assert_eq!((table.alive(), table.exited()), (2, 2));
    }
    // And what was handed over.
    let kept = |pid| Facts {
        exit: Some(end),
        exit_reported: true,
        ..table.incarnations(Pid(pid))[0]
    };
    let mut next = ProcessTable::new(10);
    assert!(next.restore(&kept(1)) && next.restore(&kept(2)));
    assert_eq!((next.alive(), next.exited()), (0, 2));
    next.exit(Pid(2), s(10), end);
    next.forget(end, &mut |_| {});
    assert_eq!((next.alive(), next.exited()), (0, 0));
}

#[test]
fn a_death_during_a_scan_is_not_dated_to_its_beginning() {
    let mut table = table();
    see(&mut table, 7, s(10), s(10), BOX_A, Sighting::Fork);
    // The scan began at 20 s and ended at 24 s.
    assert_eq!(table.close_missing(s(20), s(24), &|_, _| false), 1);
    assert_eq!(places(&table, 7, s(22), s(23)), [BOX_A]);
    assert!(places(&table, 7, s(25), s(26)).is_empty());
    table.exit(Pid(7), s(10), ms(24_500));
    assert_eq!((table.alive(), table.exited()), (0, 1));
}

#[test]
fn a_move_that_a_scan_saw_before_its_event_is_when_the_event_says() {
    let moved_at = |event| {
        let mut table = table();
        see(&mut table, 7, s(10), s(10), BOX_A, Sighting::Fork);
        see(&mut table, 7, s(10), s(11), BOX_A, Sighting::Exec);
        // The scan began at 20 s and read it by 24 s; events are known up to 18 s.
        see(&mut table, 7, s(10), s(20), BOX_B, Sighting::Scan);
        let process = table.incarnations(Pid(7))[0].process;
        table.found_moved(process, s(10), s(18), s(24));
        if let Some(at) = event {
            see(&mut table, 7, s(10), s(at), BOX_B, Sighting::Attach);
            assert!(!table.incarnations(Pid(7))[0].moved_unseen);
        }
        table
    };
    // Without the event it may have been in either place between 18 s and 24 s.
    let table = moved_at(None);
    assert_eq!(places(&table, 7, s(17), s(18)), [BOX_A]);
    assert_eq!(places(&table, 7, s(18), s(19)), [BOX_A, BOX_B]);
    assert_eq!(places(&table, 7, s(23), s(24)), [BOX_A, BOX_B]);
    assert_eq!(places(&table, 7, s(24), s(25)), [BOX_B]);
    // It may be before the scan's beginning as well as after.
    for at in [19, 22] {
        let table = moved_at(Some(at));
        assert_eq!(places(&table, 7, s(at - 1), ms(at * 1_000 - 1)), [BOX_A]);
        assert_eq!(places(&table, 7, s(at - 1), s(at)), [BOX_A, BOX_B]);
        assert_eq!(places(&table, 7, s(at), s(at + 1)), [BOX_B]);
    }
    // What comes later is another move.
    let mut table = moved_at(None);
    see(&mut table, 7, s(10), s(30), HOST, Sighting::Attach);
    assert_eq!(places(&table, 7, s(28), s(29)), [BOX_B]);
    assert_eq!(places(&table, 7, s(30), s(31)), [HOST]);
    // An exec that comes late says that it was there by then, and not since when.
    let mut table = moved_at(None);
    see(&mut table, 7, s(10), s(19), BOX_B, Sighting::Exec);
    assert_eq!(places(&table, 7, s(18), s(19)), [BOX_A, BOX_B]);
    assert_eq!(places(&table, 7, s(19), s(20)), [BOX_B]);
    // The event of the move comes after it all the same.
    see(&mut table, 7, s(10), ms(18_500), BOX_B, Sighting::Attach);
    assert_eq!(places(&table, 7, s(18), ms(18_499)), [BOX_A]);
    // An exec from during the scan bounds the move, too.
    let mut table = moved_at(None);
    see(&mut table, 7, s(10), s(22), BOX_B, Sighting::Exec);
    assert_eq!(places(&table, 7, s(21), s(22)), [BOX_A, BOX_B]);
    assert_eq!(places(&table, 7, s(22), s(23)), [BOX_B]);
}

/// A scan that took long dates a death to its own end, and the pid was taken before that.
#[test]
fn a_death_that_a_scan_dates_is_over_when_the_pid_is_taken() {
    let mut table = table();
    see(&mut table, 1, s(10), s(10), BOX_A, Sighting::Fork);
    assert_eq!(table.close_missing(s(20), s(22), &|_, _| false), 1);
    see(&mut table, 1, s(21), s(21), BOX_B, Sighting::Fork);
    assert_eq!((table.alive(), table.exited()), (1, 1));
    let [next, former] = &table.incarnations(Pid(1))[..] else {
        panic!("two had the pid");
    };
    assert_eq!((next.exit, former.exit), (None, Some(s(21))));
}

#[test]
fn a_full_table_turns_newcomers_away_and_says_so() {
    let mut table = ProcessTable::new(2);
    for pid in 1..=5 {
        see(&mut table, pid, s(10), s(10), HOST, Sighting::Fork);
    }
    assert_eq!((table.alive(), table.overflows()), (2, 3));
}

#[test]
fn a_hundred_thousand_processes_cost_at_most_64_bytes_each() {
    let mut table = ProcessTable::new(200_000);
    for pid in 0..100_000 {
        see(&mut table, pid, s(10), s(10), HOST, Sighting::Fork);
    }
    let each = table.memory() as f64 / 100_000.0;
    assert!(each <= 64.0, "{each} bytes");
}

/// The places in which processes live, by walking over all of them.
fn lived_in(table: &ProcessTable) -> BTreeSet<PlacementId> {
    let living = table.everyone().filter(|facts| facts.exit.is_none());
    living.map(|facts| facts.placement).collect()
}

proptest! {
    #[test]
    fn the_counts_of_the_living_and_the_list_of_the_dead_are_what_a_walk_finds(
        steps in prop::collection::vec((0_u8..10, 0_u32..6, 1_u64..40, 1_u64..40, 1_u32..5), 1..80),
    ) {
        let mut table = ProcessTable::new(10);
        for (what, pid, start, at, place) in steps {
            let (pid, place) = (Pid(pid), PlacementId::new(place));
            let process = ProcessId { pid, start: s(start).into() };
            match what {
                0 => table.exit(pid, s(start), s(at)),
                1 => {
                    table.close_missing(s(at), s(at + 1), &|seen, _| seen == pid);
                }
                2 => table.forget(s(at), &mut |_| {}),
                3 => {
                    table.correct_placement(process, place);
                }
                4 => {
                    table.restore(&Facts {
                        process,
                        start: s(start),
                        exit: (at > 20).then_some(s(start + at)),
                        exit_reported: at > 30,
                        parent: None,
                        by_event: at % 2 == 0,
                        placement: place,
                        previous: None,
                        since: s(start),
                        moved_unseen: false,
                    });
                }
                _ => {
                    let sighting = match what {
                        5 => Sighting::Fork,
                        6 => Sighting::Exec,
                        7 => Sighting::Attach,
                        _ => Sighting::Scan,
                    };
                    table.observe(pid, s(start), s(at.max(start)), place, sighting, &mut |_| {});
                }
            }
            let (living, dead): (Vec<_>, Vec<_>) =
                table.everyone().partition(|facts| facts.exit.is_none());
            prop_assert_eq!(table.alive(), living.len() as u64);
            prop_assert_eq!(table.exited(), dead.len() as u64);
            let counted: BTreeSet<_> = table.live_placements().collect();
            prop_assert_eq!(counted, lived_in(&table));
        }
        // Nothing is left of the dead, wherever they stood in their pids' chains.
        table.forget(BootTime::MAX, &mut |_| {});
        prop_assert!(table.everyone().all(|facts| facts.exit.is_none()));
        prop_assert_eq!(table.exited(), 0);
    }
}
