use super::*;
use crate::input::CgroupAnnouncement;
use crate::model::Owner;

fn announce(table: &mut PlacementTable, hierarchy: u32, id: u64, parent: u64, name: &str) {
    table.announce(&CgroupAnnouncement {
        key: CgroupKey { hierarchy, id },
        parent: (parent != 0).then_some(parent),
        name: name.into(),
    });
}

/// In v2's root, and in the daemon's cgroup of hierarchy 4.
fn table() -> PlacementTable {
    let mut table = PlacementTable::new(10_000);
    announce(&mut table, 0, 1, 0, "");
    announce(&mut table, 4, 1, 0, "");
    announce(&mut table, 4, 2, 1, "system.slice");
    announce(&mut table, 4, 3, 2, "sgeexecd.service");
    table
}

fn keys(unified: u64, legacy: u64) -> CgroupSet {
    CgroupSet {
        unified: CgroupKey {
            hierarchy: 0,
            id: unified,
        },
        legacy: Some(CgroupKey {
            hierarchy: 4,
            id: legacy,
        }),
    }
}

fn paths(table: &mut PlacementTable, lines: &[(u32, &str)]) -> PlacementId {
    let lines: Vec<_> = lines.iter().map(|(h, path)| (*h, (*path).into())).collect();
    let place = table.of_paths(&lines.into());
    table.hold(place);
    place
}

fn unit(table: &mut PlacementTable, place: PlacementId) -> Option<String> {
    match table.owner(place)? {
        (Owner::Host(unit), _) => Some(unit.to_string()),
        (owner, _) => panic!("{owner:?}"),
    }
}

const DAEMON: (u32, &str) = (4, "/system.slice/sgeexecd.service");

#[test]
fn a_job_that_only_another_hierarchy_names_is_kept_while_events_agree() {
    let mut table = table();
    let job = paths(&mut table, &[(7, "/sge/12.1/99"), DAEMON, (0, "/")]);
    assert_eq!(unit(&mut table, job).as_deref(), Some("/sge/12.1"));
    assert_eq!(table.of_event(keys(1, 3), Some(job)), job);
    // Elsewhere in a hierarchy that events name.
    announce(&mut table, 4, 5, 2, "ssh.service");
    let moved = table.of_event(keys(1, 5), Some(job));
    assert_eq!(unit(&mut table, moved).as_deref(), Some("ssh.service"));
    // In a cgroup that has no name yet.
    let unknown = table.of_event(keys(1, 6), Some(job));
    assert_eq!(unit(&mut table, unknown), None);
    // Nothing is known of it, or no more.
    let new = table.of_event(keys(1, 3), None);
    assert_eq!(unit(&mut table, new).as_deref(), Some("sgeexecd.service"));
    let daemon = paths(&mut table, &[(7, "/"), DAEMON, (0, "/")]);
    assert_eq!(table.of_event(keys(1, 3), Some(daemon)), new);
    assert_eq!(table.of_event(keys(1, 3), Some(new)), new);
}

#[test]
fn a_cgroup_that_is_too_deep_to_be_announced_is_known_by_a_scan() {
    let mut table = table();
    announce(&mut table, 4, 900, 899, "z");
    let place = table.of_event(keys(1, 900), None);
    assert_eq!(unit(&mut table, place), None);
    for wrong in ["/a/b/y", "/z", "z", "/a/b/yz"] {
        let scanned = paths(&mut table, &[(4, wrong), (0, "/")]);
        table.learn(place, scanned);
        assert_eq!(unit(&mut table, place), None, "{wrong}");
    }
    let scanned = paths(&mut table, &[(4, "/a/b/z"), (0, "/")]);
    table.learn(place, scanned);
    assert_eq!(unit(&mut table, place).as_deref(), Some("/a/b/z"));
    // So are those below, and it stays so if it is announced again.
    announce(&mut table, 4, 901, 900, "below");
    announce(&mut table, 4, 900, 899, "z");
    let below = CgroupKey {
        hierarchy: 4,
        id: 901,
    };
    assert_eq!(table.path(below).as_deref(), Some("/a/b/z/below"));
    // What the kernel says of the whole way is better.
    announce(&mut table, 4, 899, 1, "b");
    announce(&mut table, 4, 900, 899, "z");
    assert_eq!(table.path(below).as_deref(), Some("/b/z/below"));
}

#[test]
fn a_cgroup_is_known_at_any_depth() {
    for depth in [40, 64, 65, 200, 2_000] {
        let mut table = table();
        for id in 10..10 + depth {
            let parent = if id == 10 { 1 } else { id - 1 };
            announce(&mut table, 0, id, parent, "d");
        }
        let key = CgroupKey {
            hierarchy: 0,
            id: 9 + depth,
        };
        let expected = "/d".repeat(usize::try_from(depth).unwrap());
        assert_eq!(table.path(key), Some(expected));
    }
}

#[test]
fn a_path_beyond_the_kernels_is_bounded_and_keeps_its_top() {
    let mut table = table();
    let id = "6f1e0b5d9c3a47288f0e1d2c3b4a59687766554433221100ffeeddccbbaa9988";
    announce(&mut table, 0, 10, 1, "docker");
    announce(&mut table, 0, 11, 10, id);
    for number in 12..2_012 {
        announce(&mut table, 0, number, number - 1, &"n".repeat(255));
    }
    let key = CgroupKey {
        hierarchy: 0,
        id: 2_011,
    };
    let path = table.path(key).unwrap();
    assert!(
        path.len() <= crate::placement::MAX_PATH_BYTES,
        "{}",
        path.len()
    );
    assert!(path.starts_with(&format!("/docker/{id}/nnn")));
}
