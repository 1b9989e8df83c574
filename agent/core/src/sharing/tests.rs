use super::*;
use crate::attribute::tests::{A, B, Tables, s};
use crate::input::WindowQuality;
use crate::model::{DeviceNumber, GpuUuid};
use crate::owners::owners_of;

/// Readings at 10 s, 15 s, 20 s, … of (pid, role); pids 1.. are of the host, 11.. of A, 21.. of
/// B, 31.. of nobody known.
fn observed(readings: &[&[(u32, MpsRole)]]) -> (Sharing, Tables) {
    let mut tables = Tables::new();
    for pid in [1, 11, 12, 21, 22] {
        live(&mut tables, pid, 1, 0);
    }
    let sharing = read(readings, &mut tables);
    (sharing, tables)
}

fn live(tables: &mut Tables, pid: u32, from: u64, to: u64) {
    let path = match pid {
        1..11 => "/system.slice/mps.service".to_owned(),
        11..21 => format!("/docker/{A}"),
        _ => format!("/docker/{B}"),
    };
    tables.live(pid, from, to, &path);
}

fn read(readings: &[&[(u32, MpsRole)]], tables: &mut Tables) -> Sharing {
    let mut sharing = Sharing::default();
    for (at, reading) in (10..).step_by(5).zip(readings) {
        let lists: Vec<GpuProcess> = reading
            .iter()
            .map(|&(pid, mps)| GpuProcess {
                pid: Pid(pid),
                memory: None,
                mps,
            })
            .collect();
        let mut lookup = tables.lookup();
        let owners = owners_of(&lists, s(at), &mut lookup);
        sharing.observe(s(at), &lists, &owners, &lookup);
    }
    sharing
}

#[test]
fn the_mps_server_s_part_is_its_clients_where_they_are_one_payer_s() {
    let a = || Ok(Owner::Container(A.into()));
    let b = || Ok(Owner::Container(B.into()));
    let nobody = || Some(Err(UnattributedReason::MpsServer));
    let (none, client) = (MpsRole::None, MpsRole::Client);
    let (server, named) = (MpsRole::Server, MpsRole::NamedServer);
    /// The readings, a window in seconds, and whose the rows of pids 1 and 22 are.
    type Case<'a> = (
        &'a str,
        &'a [&'a [(u32, MpsRole)]],
        (u64, u64),
        [Option<Result<Owner, UnattributedReason>>; 2],
    );
    let one: &[(u32, MpsRole)] = &[(1, server), (11, client)];
    let other: &[(u32, MpsRole)] = &[(1, server), (21, client)];
    let idle: &[(u32, MpsRole)] = &[(1, none)];
    let cases: &[Case<'_>] = &[
        (
            "no MPS",
            &[&[(1, none), (11, none)]],
            (11, 12),
            [None, None],
        ),
        ("one client", &[one], (11, 12), [Some(a()), None]),
        (
            "two of one container",
            &[&[(1, server), (11, client), (12, client)]],
            (11, 12),
            [Some(a()), None],
        ),
        (
            "of two containers",
            &[&[(1, server), (11, client), (21, client)]],
            (11, 12),
            [nobody(), None],
        ),
        (
            "one of them unknown",
            &[&[(1, server), (11, client), (31, client)]],
            (11, 12),
            [nobody(), None],
        ),
        (
            "between one and another",
            &[one, other],
            (11, 12),
            [nobody(), None],
        ),
        ("after that", &[one, other], (16, 17), [Some(b()), None]),
        (
            "long before",
            &[one, one, other],
            (11, 12),
            [Some(a()), None],
        ),
        (
            "as the last client went",
            &[one, idle],
            (14, 16),
            [Some(a()), None],
        ),
        ("after it", &[one, idle], (16, 17), [nobody(), None]),
        (
            "after nobody, before somebody",
            &[one, idle, other],
            (16, 17),
            [Some(b()), None],
        ),
        (
            "when the lists have long been unread",
            &[one],
            (80, 81),
            [nobody(), None],
        ),
        (
            "before the server went",
            &[one, &[(12, none)]],
            (11, 12),
            [Some(a()), None],
        ),
        (
            "when the server is gone",
            &[one, &[(12, none)]],
            (16, 17),
            [None, None],
        ),
        (
            "by name, on the host",
            &[&[(1, named), (11, client)]],
            (11, 12),
            [Some(a()), None],
        ),
        // Whoever takes the name in a container goes on paying for himself.
        (
            "by name, in a container",
            &[&[(22, named), (11, client)]],
            (11, 12),
            [None, None],
        ),
    ];
    for (what, readings, (from, to), expected) in cases {
        let (sharing, mut tables) = observed(readings);
        let payer = |pid| sharing.owner_of_server(Pid(pid), s(*from), s(*to), &mut tables.lookup());
        assert_eq!([1, 22].map(payer), *expected, "{what}");
    }
}

#[test]
fn an_instance_s_time_is_its_one_container_s() {
    let none = MpsRole::None;
    let (a, b) = (
        Ok(Owner::Container(A.into())),
        UnattributedReason::SharedInstance,
    );
    /// The readings; the process and the owner.
    type Case<'a> = (
        &'a str,
        &'a [&'a [(u32, MpsRole)]],
        (Option<Pid>, Result<Owner, UnattributedReason>),
    );
    let cases: [Case<'_>; 5] = [
        ("one process", &[&[(11, none)]], (Some(Pid(11)), a.clone())),
        (
            "two of one container",
            &[&[(11, none), (12, none)]],
            (None, a),
        ),
        (
            "two containers",
            &[&[(11, none), (21, none)]],
            (None, Err(b)),
        ),
        ("nobody", &[&[]], (None, Err(UnattributedReason::NoRow))),
        ("nothing read", &[], (None, Err(UnattributedReason::NoRow))),
    ];
    for (what, readings, expected) in cases {
        let (sharing, mut tables) = observed(readings);
        let window = GpuWindow {
            gpu: GpuUuid::from("MIG-0"),
            start: s(11),
            end: s(12),
            busy: Nanos(600_000_000),
            idle: Nanos(400_000_000),
            unobserved: vec![],
            credits: vec![],
            below_resolution: Nanos::ZERO,
            no_row: Nanos(600_000_000),
            engines: vec![],
            energy: None,
            quality: WindowQuality::default(),
            clocks: None,
        };
        let charges = charges_of_instance(&window, &sharing, &mut tables.lookup());
        assert_eq!(charges.len(), 1, "{what}");
        let (pid, owner) = (charges[0].pid, charges[0].owner.clone());
        assert_eq!((pid, owner), expected, "{what}");
        assert_eq!(charges[0].busy, window.busy, "{what}");
    }
}
/// Who pays for an instance's window, in seconds, after these readings.
fn payer(
    readings: &[&[(u32, MpsRole)]],
    lives: &[(u32, u64, u64)],
    (from, to): (u64, u64),
) -> Result<Owner, UnattributedReason> {
    let mut tables = Tables::new();
    for &(pid, from, to) in lives {
        live(&mut tables, pid, from, to);
    }
    let sharing = read(readings, &mut tables);
    let on_it = |part: Part| !part.is_server();
    let only = sharing.only(s(from), s(to), on_it, &mut tables.lookup());
    only.map(|(_, owner)| owner)
        .map_err(|not_one| match not_one {
            NoSingleOwner::Nobody => UnattributedReason::NoRow,
            NoSingleOwner::Several => UnattributedReason::SharedInstance,
        })
}

#[test]
fn only_who_lived_in_a_window_was_there() {
    let none = MpsRole::None;
    let (one, other): (&[_], &[_]) = (&[(11, none)], &[(21, none)]);
    let a = || Ok(Owner::Container(A.into()));
    let b = || Ok(Owner::Container(B.into()));
    let shared = || Err(UnattributedReason::SharedInstance);
    let nobody = || Err(UnattributedReason::NoRow);
    // The first is listed at 10 s and dies at 12 s, the next begins at 13 s and is listed at 15 s.
    let lives = [(11, 1, 12), (21, 13, 0)];
    let rows = [
        ((10, 11), a()),
        ((11, 12), a()),
        ((12, 13), nobody()),
        ((13, 14), b()),
        ((14, 15), b()),
        ((11, 14), shared()),
    ];
    for (window, expected) in rows {
        assert_eq!(payer(&[one, other], &lives, window), expected, "{window:?}");
    }
    // Whoever is gone before a reading could name him is nobody.
    assert_eq!(payer(&[one], &lives, (12, 13)), nobody());
    assert_eq!(payer(&[one], &lives, (13, 14)), nobody());
    // A pid that was used again is not who was listed under it before.
    let reused = [(11, 1, 12), (11, 13, 0), (21, 1, 0)];
    assert_eq!(payer(&[one, other], &reused, (13, 14)), b());
    // One that is still listed after its exit is being torn down.
    let listed_dead = [(11, 1, 10), (21, 13, 0)];
    assert_eq!(payer(&[one, other], &listed_dead, (10, 11)), a());
    assert_eq!(payer(&[one, other], &listed_dead, (11, 12)), nobody());
}

#[test]
fn who_had_begun_before_is_there_from_its_first_open_on() {
    let none = MpsRole::None;
    let mut tables = Tables::new();
    live(&mut tables, 11, 1, 12);
    live(&mut tables, 21, 1, 0);
    let opened = ProcessId {
        pid: Pid(21),
        start: s(1).into(),
    };
    tables.2.note(
        opened,
        DeviceNumber {
            major: 195,
            minor: 0,
        },
        s(13),
    );
    let sharing = read(&[&[(11, none)], &[(21, none)]], &mut tables);
    let mut of = |from, to| {
        let window = sharing.only(s(from), s(to), |_| true, &mut tables.lookup());
        window.map(|(_, owner)| owner)
    };
    assert_eq!(of(11, 12), Ok(Owner::Container(A.into())));
    assert_eq!(of(12, 13), Err(NoSingleOwner::Nobody));
    assert_eq!(of(13, 14), Ok(Owner::Container(B.into())));
}

#[test]
fn another_program_is_not_on_the_instance_for_the_old_one() {
    let none = MpsRole::None;
    let mut tables = Tables::new();
    live(&mut tables, 11, 1, 0);
    let mut sharing = read(&[&[(11, none)]], &mut tables);
    let process = ProcessId {
        pid: Pid(11),
        start: s(1).into(),
    };
    sharing.executed(process, s(12));
    assert!(sharing.has_changed(s(12), &tables.lookup()));
    let mut of = |from, to| {
        let window = sharing.only(s(from), s(to), |_| true, &mut tables.lookup());
        window.map(|(_, owner)| owner)
    };
    assert_eq!(of(11, 12), Ok(Owner::Container(A.into())));
    assert_eq!(of(12, 13), Err(NoSingleOwner::Nobody));
}

#[test]
fn a_window_without_a_reading_after_it_is_not_the_one_s_who_ended_in_it_if_another_came() {
    let none = MpsRole::None;
    let mut tables = Tables::new();
    live(&mut tables, 11, 1, 12);
    live(&mut tables, 21, 1, 0);
    let sharing = read(&[&[(11, none)]], &mut tables);
    let of = |tables: &mut Tables| sharing.only(s(11), s(14), |_| true, &mut tables.lookup());
    assert!(of(&mut tables).is_ok());
    let opened = ProcessId {
        pid: Pid(21),
        start: s(1).into(),
    };
    tables.2.note(
        opened,
        DeviceNumber {
            major: 195,
            minor: 0,
        },
        s(13),
    );
    assert_eq!(of(&mut tables), Err(NoSingleOwner::Several));
}

#[test]
fn the_dead_client_of_an_mps_server_does_not_pay_for_the_next_one() {
    let (server, client) = (MpsRole::Server, MpsRole::Client);
    let mut tables = Tables::new();
    live(&mut tables, 1, 1, 0);
    live(&mut tables, 11, 1, 12);
    live(&mut tables, 21, 12, 0);
    let readings: [&[_]; 2] = [&[(1, server), (11, client)], &[(1, server), (21, client)]];
    let sharing = read(&readings, &mut tables);
    let mut of = |from, to| sharing.owner_of_server(Pid(1), s(from), s(to), &mut tables.lookup());
    assert_eq!(of(10, 11), Some(Ok(Owner::Container(A.into()))));
    assert_eq!(of(13, 14), Some(Ok(Owner::Container(B.into()))));
    assert_eq!(of(11, 13), Some(Err(UnattributedReason::MpsServer)));
}

#[test]
fn a_pid_that_was_an_mps_server_s_is_its_next_holder_s() {
    let (none, server, client) = (MpsRole::None, MpsRole::Server, MpsRole::Client);
    let mut tables = Tables::new();
    let host = "/system.slice/mps.service";
    tables.live(1, 1, 12, host);
    live(&mut tables, 11, 1, 0);
    let b = format!("/docker/{B}");
    tables.live(1, 13, 0, &b);
    let readings: [&[_]; 3] = [
        &[(1, server), (11, client)],
        &[(1, none), (11, none)],
        &[(1, none), (11, none)],
    ];
    let sharing = read(&readings, &mut tables);
    let mut of = |from, to| sharing.owner_of_server(Pid(1), s(from), s(to), &mut tables.lookup());
    assert_eq!(of(11, 12), Some(Ok(Owner::Container(A.into()))));
    let ambiguous = Some(Err(UnattributedReason::AmbiguousPid));
    assert_eq!(of(11, 14), ambiguous, "it was both's");
    assert_eq!(of(13, 14), None);
    assert_eq!(of(16, 17), None);
}
