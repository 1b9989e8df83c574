use super::*;
use crate::directory::entry::source_index;
use crate::input::ContainerIdentity;
use crate::model::NONE;

const UID: &str = "11111111-2222-3333-4444-555555555555";

fn id() -> ContainerId {
    ContainerId::from("c0ffee")
}

fn found(uid: Option<&str>) -> IdentityUpdate {
    IdentityUpdate::Found(ContainerIdentity {
        id: id(),
        source: IdentitySource::Docker,
        name: Some("k8s_main".into()),
        image: Some("cuda:12".into()),
        runtime: None,
        kubernetes: uid.map(|uid| KubernetesNames {
            namespace: "ml".into(),
            pod: "train-0".into(),
            pod_uid: PodUid::from(uid),
            container: "main".into(),
        }),
        labels: Default::default(),
    })
}

fn directory() -> Directory {
    Directory::new(100)
}

fn text(labels: &ContainerLabels) -> [&str; 5] {
    [
        &labels.namespace,
        &labels.pod,
        &labels.container,
        &labels.pod_uid,
        &labels.container_id,
    ]
}

#[test]
fn names_in_every_state_of_knowledge() {
    let uid = PodUid::from(UID);
    let now = BootTime(1);
    // (pod uid in the cgroup, answer) -> labels, source
    type Row<'a> = (
        Option<&'a PodUid>,
        Option<IdentityUpdate>,
        [&'a str; 5],
        bool,
    );
    let rows: [Row<'_>; 6] = [
        (
            None,
            None,
            [UNRESOLVED, UNRESOLVED, UNRESOLVED, UNRESOLVED, "c0ffee"],
            false,
        ),
        (
            Some(&uid),
            None,
            [UNRESOLVED, UNRESOLVED, UNRESOLVED, UID, "c0ffee"],
            false,
        ),
        (
            None,
            Some(found(None)),
            [NONE, NONE, "k8s_main", NONE, "c0ffee"],
            true,
        ),
        // Labels alone could be anybody's: outside a pod's cgroup they name no pod.
        (
            None,
            Some(found(Some(UID))),
            [NONE, NONE, "k8s_main", NONE, "c0ffee"],
            true,
        ),
        (
            Some(&uid),
            Some(found(Some(UID))),
            ["ml", "train-0", "main", UID, "c0ffee"],
            true,
        ),
        // In a pod's cgroup, and the answer knows of no pod: that names nobody.
        (
            Some(&uid),
            Some(found(None)),
            [UNRESOLVED, UNRESOLVED, UNRESOLVED, UID, "c0ffee"],
            false,
        ),
    ];
    for (pod_uid, answer, labels, named) in rows {
        let mut directory = directory();
        directory.see(&id(), pod_uid, "docker", &"/here".into(), now);
        if let Some(answer) = answer.clone() {
            directory.learn(answer, now);
        }
        let names = directory.names(&id());
        assert_eq!(text(&names.labels), labels, "{pod_uid:?} {answer:?}");
        assert_eq!(names.source.is_some(), named, "{pod_uid:?} {answer:?}");
    }
}

#[test]
fn an_answer_vouches_for_the_pod_that_the_path_names_and_for_no_other_path() {
    let (uid, other) = (PodUid::from(UID), PodUid::from("other"));
    let rows = [
        (Some(UID), Some(&uid), None, true),
        (Some(UID), Some(&uid), Some("/here"), true),
        (Some(UID), Some(&uid), Some("/there"), false),
        (Some(UID), Some(&other), None, false),
        (Some(UID), None, None, false),
        (None, Some(&uid), None, false),
        (None, None, None, true),
    ];
    for (said, path, seen, vouches) in rows {
        let mut directory = directory();
        assert!(
            !directory.vouches(&id(), "/here", path),
            "nobody has spoken"
        );
        if let Some(seen) = seen {
            directory.see(&id(), path, "docker", &seen.into(), BootTime(1));
        }
        directory.learn(found(said), BootTime(1));
        let found = directory.vouches(&id(), "/here", path);
        assert_eq!(found, vouches, "{said:?} {path:?} {seen:?}");
        let source = IdentitySource::Docker;
        directory.learn(IdentityUpdate::Removed { source, id: id() }, BootTime(2));
        assert!(!directory.vouches(&id(), "/here", path), "it is gone");
    }
}

#[test]
fn an_answer_for_another_pod_is_refused_whichever_is_heard_first() {
    let uid = PodUid::from(UID);
    for kernel_first in [true, false] {
        let mut directory = directory();
        let lie = found(Some("99999999-2222-3333-4444-555555555555"));
        if kernel_first {
            directory.see(&id(), Some(&uid), "docker", &"/here".into(), BootTime(1));
            directory.learn(lie, BootTime(2));
        } else {
            directory.learn(lie, BootTime(1));
            directory.see(&id(), Some(&uid), "docker", &"/here".into(), BootTime(2));
        }
        assert_eq!(directory.names(&id()).source, None);
        assert_eq!(&*directory.names(&id()).labels.namespace, UNRESOLVED);
        assert_eq!(directory.refused(), 1);
        assert_eq!(directory.reason(&id(), UP), IdOnlyReason::PodUidMismatch);
    }
}

#[test]
fn labels_name_no_pod_until_its_cgroup_is_seen_and_never_where_it_is_in_none() {
    use IdentitySource::{Bundle, Cri, Docker, KubeletLogs};
    let plain = [NONE, NONE, "k8s_main", NONE, "c0ffee"];
    let unresolved = [UNRESOLVED, UNRESOLVED, UNRESOLVED, UNRESOLVED, "c0ffee"];
    let named = ["ml", "train-0", "main", UID, "c0ffee"];
    let docker = Some("docker");
    // (who says so, of which runtime) -> labels before and after, answers refused
    for (source, runtime, before, after, refused) in [
        (Docker, None, unresolved, plain, 1),
        (Bundle, None, unresolved, plain, 1),
        // A kubelet that makes no cgroups for its pods, and root's word.
        (Cri, Some("containerd"), named, named, 0),
        (KubeletLogs, None, named, named, 0),
        // It makes pods up from the labels of Docker's containers.
        (Cri, docker, unresolved, plain, 1),
    ] {
        let IdentityUpdate::Found(mut identity) = said(source, Some(UID), None) else {
            unreachable!("it is found");
        };
        identity.runtime = runtime.map(Into::into);
        let answer = IdentityUpdate::Found(identity);
        for kernel_first in [true, false] {
            let mut directory = directory();
            if !kernel_first {
                directory.learn(answer.clone(), BootTime(1));
                assert_eq!(text(&directory.names(&id()).labels), before, "{answer:?}");
                assert_eq!(directory.refused(), 0, "nothing contradicts it yet");
            }
            directory.see(&id(), None, "docker", &"/here".into(), BootTime(2));
            if kernel_first {
                directory.learn(answer.clone(), BootTime(3));
            }
            assert_eq!(text(&directory.names(&id()).labels), after, "{answer:?}");
            assert_eq!(
                directory.refused_of()[source_index(source)],
                refused,
                "{answer:?}"
            );
            assert_eq!(directory.kubernetes(&id()), None);
            assert_eq!(directory.pod_names(&UID.into(), true), None);
        }
    }
}

#[test]
fn annotations_without_a_name_of_the_runtimes_name_nobody() {
    let mut directory = directory();
    let IdentityUpdate::Found(mut identity) = said(IdentitySource::Bundle, Some(UID), None) else {
        unreachable!("it is found");
    };
    identity.name = None;
    directory.see(&id(), None, "docker", &"/here".into(), BootTime(1));
    directory.learn(IdentityUpdate::Found(identity), BootTime(2));
    assert_eq!(directory.names(&id()).source, None);
    assert_eq!(directory.reason(&id(), UP), IdOnlyReason::PodUidMismatch);
}

#[test]
fn whoever_showed_an_id_first_does_not_keep_its_pod_when_the_id_is_anothers() {
    let (uid, other) = (PodUid::from(UID), PodUid::from("99999999"));
    // What a user's own manager showed first, and the container's pod.
    for (first, then) in [
        (Some(&other), Some(&uid)),
        (None, Some(&uid)),
        (Some(&other), None),
    ] {
        let mut directory = directory();
        directory.learn(found(then.map(|_| UID)), BootTime(1));
        let usurpers = "/user@1000.service/c0ffee".into();
        directory.see(&id(), first, "podman", &usurpers, BootTime(2));
        directory.see(&id(), then, "docker", &"/here".into(), BootTime(3));
        let names = directory.names(&id());
        let pod_uid = then.map_or(NONE, |_| UID);
        assert_eq!(&*names.labels.pod_uid, pod_uid, "{first:?} {then:?}");
        assert_eq!(&*names.runtime, "docker");
        assert_eq!(names.source, Some(IdentitySource::Docker));
        assert_eq!(directory.pod_uid(&id()), then);
        assert!(directory.vouches(&id(), "/here", then));
        assert!(!directory.vouches(&id(), &usurpers, first));
    }
}

#[test]
fn whoever_knows_the_container_and_not_its_pod_does_not_fail_to_know_it() {
    let mut directory = directory();
    directory.see(
        &id(),
        Some(&UID.into()),
        "docker",
        &"/here".into(),
        BootTime(1),
    );
    directory.learn(found(None), BootTime(2));
    assert_eq!(directory.reason(&id(), UP), IdOnlyReason::PodUidMismatch);
    // Whoever does not answer may know more.
    let down = IdentitySources {
        up: true,
        down: true,
    };
    assert_eq!(directory.reason(&id(), down), IdOnlyReason::SourceDown);
}

#[test]
fn who_runs_it_is_told_by_whoever_knows_where_the_cgroup_does_not_show_it() {
    for (shown, runtime) in [(UNRESOLVED, "docker"), ("podman", "podman")] {
        let mut directory = directory();
        directory.see(&id(), None, shown, &"/here".into(), BootTime(1));
        let IdentityUpdate::Found(mut identity) = found(None) else {
            unreachable!("it is found");
        };
        identity.runtime = Some("docker".into());
        directory.learn(IdentityUpdate::Found(identity), BootTime(2));
        assert_eq!(&*directory.names(&id()).runtime, runtime);
    }
}

#[test]
fn a_sandboxs_own_container_is_the_pod_whoever_names_it() {
    for (said, label) in [
        ("POD", POD_ITSELF),
        (POD_ITSELF, POD_ITSELF),
        ("pod", "pod"),
    ] {
        let mut directory = directory();
        directory.see(
            &id(),
            Some(&UID.into()),
            "docker",
            &"/here".into(),
            BootTime(1),
        );
        let IdentityUpdate::Found(mut identity) = found(Some(UID)) else {
            unreachable!("it is found");
        };
        if let Some(names) = &mut identity.kubernetes {
            names.container = said.into();
        }
        directory.learn(IdentityUpdate::Found(identity), BootTime(1));
        let labels = directory.names(&id()).labels;
        assert_eq!((&*labels.pod, &*labels.container), ("train-0", label));
    }
}

#[test]
fn labels_that_came_before_the_kernel_was_heard_stay() {
    let mut directory = directory();
    let IdentityUpdate::Found(mut identity) = found(Some(UID)) else {
        unreachable!("it is found");
    };
    identity.labels.insert("team".into(), "a".into());
    directory.learn(IdentityUpdate::Found(identity), BootTime(1));
    directory.see(
        &id(),
        Some(&PodUid::from(UID)),
        "docker",
        &"/here".into(),
        BootTime(2),
    );
    let labels = directory.runtime_labels(&id()).unwrap();
    assert_eq!(labels.get("team").map(|team| &**team), Some("a"));
}

#[test]
fn what_the_kernel_said_is_not_forgotten_for_containers_that_no_process_is_in() {
    let mut directory = Directory::new(8);
    directory.see(
        &id(),
        Some(&PodUid::from(UID)),
        "docker",
        &"/here".into(),
        BootTime(1),
    );
    // A runtime that lists thousands of containers that ended long ago.
    for n in 0..20u64 {
        let IdentityUpdate::Found(mut identity) = found(None) else {
            unreachable!("found is Found")
        };
        identity.id = ContainerId::from(format!("stopped{n}").as_str());
        directory.learn(IdentityUpdate::Found(identity), BootTime(2 + n));
    }
    directory.learn(
        found(Some("99999999-2222-3333-4444-555555555555")),
        BootTime(50),
    );
    assert_eq!(directory.names(&id()).source, None, "it is another pod's");
    assert!(directory.entries.len() <= 8);
}

#[test]
fn a_static_pods_uid_is_the_same_with_and_without_dashes() {
    let mut directory = directory();
    let bare = PodUid::from(UID.replace('-', "").as_str());
    directory.see(&id(), Some(&bare), "docker", &"/here".into(), BootTime(1));
    directory.learn(found(Some(UID)), BootTime(2));
    assert_eq!(&*directory.names(&id()).labels.pod, "train-0");
}

#[test]
fn a_question_is_put_once_and_again_after_a_while() {
    let mut directory = directory();
    let s = |seconds: u64| BootTime(seconds * 1_000_000_000);
    let asked: Vec<_> = [10, 11, 12, 13, 14]
        .map(|at| directory.should_ask(&id(), s(at)))
        .into();
    assert_eq!(asked, [true, false, true, false, true]);
    directory.learn(found(None), s(15));
    assert!(!directory.should_ask(&id(), s(60)));
}

const UP: IdentitySources = IdentitySources {
    up: true,
    down: false,
};

#[test]
fn every_reason_can_be_given() {
    let down = IdentitySources {
        up: true,
        down: true,
    };
    let mut directory = directory();
    let none = IdentitySources::default();
    assert_eq!(directory.reason(&id(), none), IdOnlyReason::NoSource);
    assert_eq!(directory.reason(&id(), down), IdOnlyReason::SourceDown);
    assert_eq!(directory.reason(&id(), UP), IdOnlyReason::Timeout);
    directory.see(&id(), None, "docker", &"/here".into(), BootTime(1));
    directory.learn(
        IdentityUpdate::NotFound {
            source: IdentitySource::Docker,
            id: id(),
            reason: "not_found",
        },
        BootTime(2),
    );
    assert_eq!(directory.reason(&id(), UP), IdOnlyReason::NotFound);
}

fn said(source: IdentitySource, uid: Option<&str>, image: Option<&str>) -> IdentityUpdate {
    let IdentityUpdate::Found(mut identity) = found(uid) else {
        unreachable!("it is found");
    };
    identity.source = source;
    identity.image = image.map(Into::into);
    IdentityUpdate::Found(identity)
}

#[test]
fn the_best_answer_that_names_wins_whatever_the_order() {
    use IdentitySource::{Bundle, Cri, Docker, KubeletLogs};
    let uid = PodUid::from(UID);
    let lie = "99999999-2222-3333-4444-555555555555";
    // (answers) -> winner
    for (answers, winner) in [
        (vec![(KubeletLogs, Some(UID)), (Cri, Some(UID))], Some(Cri)),
        (vec![(Cri, Some(UID)), (KubeletLogs, Some(UID))], Some(Cri)),
        // The best has not heard of the pod, or tells of another.
        (vec![(Docker, None), (Bundle, Some(UID))], Some(Bundle)),
        (vec![(Docker, Some(lie)), (Bundle, Some(UID))], Some(Bundle)),
        (vec![(Docker, None), (Cri, Some(lie))], None),
    ] {
        let mut directory = directory();
        directory.see(
            &id(),
            Some(&uid),
            "containerd",
            &"/here".into(),
            BootTime(1),
        );
        for (source, uid) in &answers {
            directory.learn(said(*source, *uid, Some("img")), BootTime(2));
        }
        assert_eq!(directory.names(&id()).source, winner, "{answers:?}");
        assert_eq!(directory.answers(&id()).count(), answers.len());
    }
}

#[test]
fn a_pod_is_called_what_its_confirmed_containers_say() {
    let uid = PodUid::from(UID);
    let mut directory = directory();
    // Labels alone could be anybody's.
    directory.learn(found(Some(UID)), BootTime(1));
    assert_eq!(directory.pod_names(&uid, false), None);
    directory.see(&id(), Some(&uid), "docker", &"/here".into(), BootTime(2));
    for is_users_own in [false, true] {
        let (names, source) = directory.pod_names(&uid, is_users_own).unwrap();
        assert_eq!((&*names.namespace, &*names.pod), ("ml", "train-0"));
        assert_eq!(source, IdentitySource::Docker);
    }
}

#[test]
fn a_pod_without_a_containers_cgroup_is_called_what_roots_own_sources_say() {
    let uid = PodUid::from(UID);
    let bare = PodUid::from(UID.replace('-', "").as_str());
    for source in [IdentitySource::Cri, IdentitySource::KubeletLogs] {
        let mut directory = directory();
        directory.learn(said(source, Some(UID), None), BootTime(1));
        for uid in [&uid, &bare] {
            let (names, by) = directory.pod_names(uid, false).unwrap();
            assert_eq!(
                (&*names.namespace, &*names.pod, by),
                ("ml", "train-0", source)
            );
            // A user's own manager may show any uid.
            assert_eq!(directory.pod_names(uid, true), None);
        }
        // A container's in another pod is another pod's.
        let other = PodUid::from("other");
        directory.see(&id(), Some(&other), "kata", &"/here".into(), BootTime(2));
        assert_eq!(directory.pod_names(&uid, false), None);
    }
}

#[test]
fn a_pod_is_asked_for_by_its_uid_and_why_it_is_not_known_is_told() {
    let source = IdentitySource::KubeletLogs;
    let uid = PodUid::from(UID);
    let (none, down) = (
        IdentitySources::default(),
        IdentitySources {
            up: true,
            down: true,
        },
    );
    let mut directory = directory();
    let s = |seconds: u64| BootTime(seconds * 1_000_000_000);
    let asked = [10, 11, 12].map(|at| directory.should_ask_pod(&uid, s(at)));
    assert_eq!(asked, [true, false, true]);
    for (sources, is_asked, reason) in [
        (none, false, IdOnlyReason::NoSource),
        (down, true, IdOnlyReason::SourceDown),
        (UP, true, IdOnlyReason::Timeout),
        (UP, false, IdOnlyReason::NotFound),
    ] {
        assert_eq!(directory.pod_reason(&uid, sources, is_asked), reason);
    }
    let not_found = IdentityUpdate::PodNotFound {
        source,
        uid: uid.clone(),
        reason: "not_found",
    };
    directory.learn(not_found.clone(), s(13));
    assert_eq!(directory.pod_reason(&uid, UP, true), IdOnlyReason::NotFound);
    let names = KubernetesNames {
        namespace: "ml".into(),
        pod: "train-0".into(),
        pod_uid: uid.clone(),
        container: POD_ITSELF.into(),
    };
    let found = IdentityUpdate::FoundPod {
        source,
        names: names.clone(),
    };
    directory.learn(found.clone(), s(14));
    // It is not unlearnt.
    directory.learn(not_found, s(15));
    assert_eq!(directory.pod_names(&uid, false), Some((&names, source)));
    assert_eq!(directory.pod_names(&uid, true), None);
    // Nobody asked for this one.
    let mut directory = Directory::new(1);
    directory.learn(found, s(16));
    assert_eq!(directory.pod_names(&uid, false), None);
    // There is room for one.
    assert!(directory.should_ask_pod(&uid, s(17)));
    assert!(directory.should_ask_pod(&"other".into(), s(18)));
    assert_eq!((directory.pods.len(), directory.overflows()), (1, 1));
}

#[test]
fn an_image_may_come_from_a_poorer_source_than_the_names() {
    let mut directory = directory();
    directory.see(
        &id(),
        Some(&UID.into()),
        "docker",
        &"/here".into(),
        BootTime(1),
    );
    directory.learn(said(IdentitySource::Bundle, Some(UID), None), BootTime(1));
    directory.learn(
        said(IdentitySource::KubeletLogs, Some(UID), Some("cuda:12")),
        BootTime(1),
    );
    let names = directory.names(&id());
    assert_eq!(names.source, Some(IdentitySource::Bundle));
    assert_eq!(&*names.image, "cuda:12");
}

#[test]
fn a_full_directory_makes_room_from_the_least_recently_wanted() {
    let mut directory = Directory::new(8);
    for n in 0..20u64 {
        let id = ContainerId::from(format!("c{n}").as_str());
        directory.see(&id, None, "docker", &"/here".into(), BootTime(n));
    }
    assert!(directory.entries.len() <= 8);
    assert!(directory.entries.contains_key(&ContainerId::from("c19")));
    assert!(!directory.entries.contains_key(&ContainerId::from("c0")));
}
