use super::*;

const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn key(id: u64) -> CgroupKey {
    CgroupKey { hierarchy: 0, id }
}

fn announce(table: &mut PlacementTable, hierarchy: u32, id: u64, parent: u64, name: &str) -> bool {
    table.announce(&CgroupAnnouncement {
        key: CgroupKey { hierarchy, id },
        parent: (parent != 0).then_some(parent),
        name: name.into(),
    })
}

fn keys(unified: u64, legacy: Option<u64>) -> CgroupSet {
    CgroupSet {
        unified: key(unified),
        legacy: legacy.map(|id| CgroupKey { hierarchy: 4, id }),
    }
}

fn owner(table: &mut PlacementTable, id: PlacementId) -> Option<Owner> {
    table.owner(id).map(|(owner, _)| owner.clone())
}

#[test]
fn a_place_is_known_when_the_cgroup_and_its_ancestors_are_whatever_the_order() {
    let mut table = PlacementTable::new(100);
    let place = table.of_keys(keys(3, None));
    assert_eq!(owner(&mut table, place), None);
    announce(&mut table, 0, 3, 2, ID);
    assert_eq!(owner(&mut table, place), None);
    announce(&mut table, 0, 2, 1, "docker");
    assert_eq!(owner(&mut table, place), None);
    announce(&mut table, 0, 1, 0, "");
    assert_eq!(owner(&mut table, place), Some(Owner::Container(ID.into())));
    assert_eq!(table.path(key(1)).as_deref(), Some("/"));
}

#[test]
fn whichever_hierarchy_names_a_container_wins() {
    let mut table = PlacementTable::new(100);
    announce(&mut table, 0, 1, 0, "");
    let place = table.of_keys(keys(1, Some(12)));
    // The v2 root says "host"; that must not be believed before v1 has been heard.
    assert_eq!(owner(&mut table, place), None);
    announce(&mut table, 4, 10, 0, "");
    announce(&mut table, 4, 11, 10, "docker");
    announce(&mut table, 4, 12, 11, ID);
    assert_eq!(owner(&mut table, place), Some(Owner::Container(ID.into())));
}

#[test]
fn paths_and_keys_of_one_container_have_one_owner() {
    let mut table = PlacementTable::new(100);
    let paths: Arc<[(u32, Arc<str>)]> = Arc::new([(0, format!("/docker/{ID}").into())]);
    let place = table.of_paths(&paths);
    assert_eq!(owner(&mut table, place), Some(Owner::Container(ID.into())));
    assert_eq!(table.of_paths(&paths), place);
}

#[test]
fn a_placement_is_freed_with_its_last_user() {
    let mut table = PlacementTable::new(100);
    let place = table.of_keys(keys(3, None));
    table.hold(place);
    table.hold(place);
    table.release(place);
    assert_eq!(table.of_keys(keys(3, None)), place);
    table.release(place);
    assert!(table.by_source.is_empty());
    assert_eq!(
        table.of_keys(keys(9, None)),
        place,
        "the slot is used again"
    );
}

#[test]
fn a_full_table_drops_what_no_process_uses_and_then_counts() {
    let mut table = PlacementTable::new(4);
    announce(&mut table, 0, 1, 0, "");
    announce(&mut table, 0, 2, 1, "used");
    announce(&mut table, 0, 3, 1, "unused");
    announce(&mut table, 0, 4, 2, "leaf");
    let place = table.of_keys(keys(4, None));
    table.hold(place);
    assert!(announce(&mut table, 0, 5, 2, "new"), "3 was dropped");
    assert_eq!((table.cgroups(), table.overflows()), (4, 0));
    let other = table.of_keys(keys(5, None));
    table.hold(other);
    assert!(!announce(&mut table, 0, 6, 2, "newer"));
    assert_eq!((table.cgroups(), table.overflows()), (4, 1));
    assert_eq!(table.path(key(4)).as_deref(), Some("/used/leaf"));
}

const UID: &str = "11111111-2222-3333-4444-555555555555";
const USERS: &str = "/user.slice/user-1000.slice/user@1000.service";

/// A process by itself in this cgroup.
fn live(table: &mut PlacementTable, path: &str) -> PlacementId {
    let paths: Arc<[(u32, Arc<str>)]> = Arc::new([(0, path.into())]);
    let place = table.of_paths(&paths);
    table.hold(place);
    place
}

fn host(unit: &str) -> Option<Owner> {
    Some(Owner::Host(unit.into()))
}

#[test]
fn an_id_that_belongs_elsewhere_is_refused_and_is_the_hosts() {
    let other = ID.replace('0', "f");
    // The victim's, the impostor's, and what that one is.
    let rows = [
        (
            format!("/docker/{ID}"),
            format!("/evil/docker/{ID}"),
            format!("/evil/docker/{ID}"),
        ),
        (
            format!("/system.slice/docker-{ID}.scope/init.scope"),
            format!("{USERS}/docker-{ID}.scope"),
            format!("user@1000.service/docker-{ID}.scope"),
        ),
        (
            format!("/kubepods/burstable/pod{UID}/{ID}"),
            format!("{USERS}/kubepods/burstable/pod{UID}/{ID}"),
            "user@1000.service".to_owned(),
        ),
        // Another container of the pod, and the pod itself.
        (
            format!("/kubepods/burstable/pod{UID}/{ID}"),
            format!("/evil/kubepods/burstable/pod{UID}/{other}"),
            format!("/evil/kubepods/burstable/pod{UID}"),
        ),
        (
            format!("/kubepods/burstable/pod{UID}/{ID}"),
            format!("{USERS}/kubepods/pod{}", UID.replace('-', "")),
            "user@1000.service".to_owned(),
        ),
    ];
    for (victims, impostors, unit) in rows {
        let mut table = PlacementTable::new(100);
        let victim = live(&mut table, &victims);
        let before = owner(&mut table, victim);
        let impostor = live(&mut table, &impostors);
        assert_eq!(owner(&mut table, impostor), host(&unit), "{impostors}");
        assert_eq!(owner(&mut table, victim), before, "{victims}");
        assert_eq!(table.refusals(), 1);
        let refusal = table.refusal(impostor).expect("it is refused");
        assert!(victims.starts_with(&*refusal.bound_to), "{refusal:?}");
        assert!(impostors.starts_with(&*refusal.place), "{refusal:?}");
        let claimed = refusal.claimed.clone();
        assert_eq!(table.refusals_of(&claimed).count(), 1);
        assert_eq!(table.take_new_containers().len(), 1, "the victim alone");
    }
}

#[test]
fn all_of_one_containers_cgroups_have_its_place() {
    let mut table = PlacementTable::new(100);
    let pod = format!("/kubepods/burstable/pod{UID}");
    let places = [
        format!("{pod}/{ID}"),
        format!("{pod}/{ID}/init.scope"),
        format!("{pod}/{ID}/docker/{ID}"),
        format!("{pod}/{}", ID.replace('0', "f")),
        pod.clone(),
        // What Kata keeps out of the pod's bounds.
        format!("/kata_overhead{pod}/{ID}"),
    ];
    for path in places {
        let place = live(&mut table, &path);
        assert!(!matches!(
            owner(&mut table, place),
            Some(Owner::Host(_)) | None
        ));
    }
    assert_eq!(table.refusals(), 0);
}

#[test]
fn hierarchies_may_place_a_container_differently() {
    let mut table = PlacementTable::new(100);
    for (id, parent, name) in [(1, 0, ""), (2, 1, "docker"), (3, 2, ID)] {
        announce(&mut table, 4, id, parent, name);
    }
    announce(&mut table, 0, 1, 0, "");
    let scanned: Arc<[(u32, Arc<str>)]> = Arc::new([
        (4, format!("/docker/{ID}").into()),
        (
            1,
            format!("/system.slice/docker.service/docker/{ID}").into(),
        ),
        (0, "/".into()),
    ]);
    let scanned = table.of_paths(&scanned);
    let by_event = table.of_keys(keys(1, Some(3)));
    for place in [scanned, by_event] {
        table.hold(place);
        assert_eq!(owner(&mut table, place), Some(Owner::Container(ID.into())));
    }
    assert_eq!(table.refusals(), 0);
}

#[test]
fn a_place_is_given_up_with_the_last_process_and_the_last_account() {
    let mut table = PlacementTable::new(100);
    let container = Owner::Container(ID.into());
    let first = live(&mut table, &format!("/docker/{ID}"));
    assert_eq!(owner(&mut table, first), Some(container.clone()));
    let second = live(&mut table, &format!("/batch/{ID}"));
    let unit = format!("/batch/{ID}");
    assert_eq!(owner(&mut table, second), host(&unit));
    table.end_bindings(std::iter::empty());
    assert_eq!(owner(&mut table, second), host(&unit), "the first lives");

    table.release(first);
    table.end_bindings(std::iter::once(&container));
    assert_eq!(owner(&mut table, second), host(&unit), "it has an account");
    // Restarted where it was: nothing has changed.
    let again = live(&mut table, &format!("/docker/{ID}"));
    assert_eq!(owner(&mut table, again), Some(container.clone()));
    table.release(again);

    table.end_bindings(std::iter::empty());
    assert_eq!(owner(&mut table, second), Some(container));
    assert_eq!(table.refusal(second), None);
    assert_eq!(table.refusals(), 1);
    table.release(second);
    table.end_bindings(std::iter::empty());
    assert!(table.bindings.is_empty() && table.idle.is_empty() && table.refused.is_empty());
}

#[test]
fn nobody_sits_on_the_uid_of_a_pod_that_is_yet_to_start() {
    let mut table = PlacementTable::new(100);
    let usurper = live(&mut table, &format!("{USERS}/kubepods/pod{UID}"));
    let pod = Some(Owner::Pod(UID.into()));
    assert_eq!(owner(&mut table, usurper), pod, "nobody contradicts yet");
    assert_eq!(table.take_taken_over(), []);
    let kubelets = live(&mut table, &format!("/kubepods/pod{UID}"));
    assert_eq!(owner(&mut table, kubelets), pod);
    assert_eq!(owner(&mut table, usurper), host("user@1000.service"));
    assert_eq!(table.refusals(), 1);
    assert_eq!(table.take_taken_over(), [Owner::Pod(UID.into())]);
    assert!(!table.is_weak(&Owner::Pod(UID.into())));
    table.release(usurper);
    table.release(kubelets);
    table.end_bindings(std::iter::empty());
    assert!(table.is_weak(&Owner::Pod(UID.into())), "nobody knows where");
    assert!(table.bindings.is_empty() && table.idle.is_empty() && table.refused.is_empty());
}

#[test]
fn an_inner_container_pays_where_it_may_and_somebody_vouches_for_it() {
    let outer = ID.replace('0', "a");
    let path = format!("/docker/{outer}/kubelet/kubepods/pod{UID}/{ID}");
    let payer = |id: &str| Some(Owner::Container(id.into()));
    for rule in [NestingRule::Outermost, NestingRule::Innermost] {
        let mut table = PlacementTable::new(100).with_rule(rule);
        let place = live(&mut table, &path);
        let beside = live(&mut table, &format!("/docker/{outer}/init"));
        assert_eq!(owner(&mut table, place), payer(&outer));
        assert_eq!(owner(&mut table, beside), payer(&outer));
        let present = table.inner_containers();
        assert_eq!(present.is_empty(), rule == NestingRule::Outermost);
        if present.is_empty() {
            continue;
        }
        let inner = present.first().unwrap();
        assert_eq!((inner.id.as_str(), &*inner.place), (ID, &*path));
        assert_eq!(inner.pod, Some(UID.into()));
        table.vouch(BTreeSet::new(), &present);
        assert_eq!(owner(&mut table, place), payer(&outer));
        table.vouch(present.clone(), &present);
        assert_eq!(owner(&mut table, place), payer(ID));
        assert_eq!(owner(&mut table, beside), payer(&outer));
        // Once is enough, for as long as it has a process.
        table.vouch(BTreeSet::new(), &present);
        assert_eq!(owner(&mut table, place), payer(ID));
        table.release(place);
        let present = table.inner_containers();
        table.vouch(BTreeSet::new(), &present);
        assert!(table.vouched.is_empty());
    }
}

#[test]
fn an_inner_container_never_pays_under_an_id_that_is_somebody_elses() {
    let outer = ID.replace('0', "a");
    let inner = format!("/docker/{outer}/kubepods/pod{UID}/{ID}");
    let victims = format!("/kubepods/pod{UID}/{ID}");
    let outermost = Some(Owner::Container(outer.as_str().into()));
    for victim_first in [true, false] {
        let mut table = PlacementTable::new(100).with_rule(NestingRule::Innermost);
        let paths = if victim_first {
            [&victims, &inner]
        } else {
            [&inner, &victims]
        };
        for path in paths {
            let place = live(&mut table, path);
            owner(&mut table, place);
            let present = table.inner_containers();
            table.vouch(present.clone(), &present);
            owner(&mut table, place);
        }
        let place = live(&mut table, &inner);
        assert_eq!(owner(&mut table, place), outermost);
        assert_eq!(&*table.refusal(place).unwrap().bound_to, &*victims);
        let place = live(&mut table, &victims);
        assert_eq!(owner(&mut table, place), Some(Owner::Container(ID.into())));
    }
}

#[test]
fn a_loop_of_parents_ends() {
    let mut table = PlacementTable::new(100);
    announce(&mut table, 0, 1, 2, "a");
    announce(&mut table, 0, 2, 1, "b");
    assert_eq!(table.path(key(1)), None);
}
