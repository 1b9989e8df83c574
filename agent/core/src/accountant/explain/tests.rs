use super::*;
use crate::accountant::Settings;
use crate::input::{
    CgroupAnnouncement, CgroupSet, ContainerIdentity, Credit, EventCounters, GpuProcess,
    GpuProcesses, GpuWindow, IdentityUpdate, Input, KernelBatch, KernelEvent, KubernetesNames,
    MpsRole, ProcessEvent, ProcessScan, ScannedProcess, SourceHealth, WindowQuality,
};
use crate::model::{CgroupKey, ContainerId, Nanos, SourceId, SourceState, StartTicks, WallTime};
use crate::testing::gpu_info;

const SECOND: u64 = 1_000_000_000;
const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const B: &str = "aaaabbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
const UID: &str = "11111111-2222-3333-4444-555555555555";

fn at(seconds: u64) -> Clock {
    Clock {
        boot: BootTime(seconds * SECOND),
        wall: WallTime((1_700_000_000 + seconds) * SECOND),
    }
}

fn event(pid: u32, seconds: u64, cgroup: u64) -> ProcessEvent {
    ProcessEvent {
        at: at(seconds).boot,
        pid: Pid(pid),
        parent: Pid(42),
        start: at(100).boot,
        pid_namespace_level: 1,
        cgroups: CgroupSet {
            unified: CgroupKey {
                hierarchy: 0,
                id: cgroup,
            },
            legacy: None,
        },
    }
}

fn identity(source: IdentitySource, id: &str, name: &str, pod_uid: Option<&str>) -> Input {
    Input::Identity(IdentityUpdate::Found(ContainerIdentity {
        runtime: None,
        id: id.into(),
        source,
        name: Some(name.into()),
        image: Some("image:1".into()),
        kubernetes: pod_uid.map(|uid| KubernetesNames {
            namespace: "research".into(),
            pod: "train-0".into(),
            pod_uid: uid.into(),
            container: "trainer".into(),
        }),
        labels: BTreeMap::new(),
    }))
}

/// A pod's container that an event reported (pid 7), a plain one that a scan found (pid 8), and
/// a second of both's time on a GPU, two thirds of it used.
fn node() -> Accountant {
    let mut accountant = Accountant::new(Settings::default(), at(100));
    let cgroups = [
        (1, None, ""),
        (2, Some(1), "kubepods"),
        (3, Some(2), "burstable"),
        (4, Some(3), &format!("pod{UID}")),
        (5, Some(4), A),
    ];
    let mut events: Vec<KernelEvent> = cgroups
        .iter()
        .map(|(id, parent, name)| {
            KernelEvent::Cgroup(CgroupAnnouncement {
                key: CgroupKey {
                    hierarchy: 0,
                    id: *id,
                },
                parent: *parent,
                name: (*name).into(),
            })
        })
        .collect();
    events.push(KernelEvent::Fork(event(7, 100, 5)));
    let scanned = ScannedProcess {
        pid: Pid(8),
        parent: Pid(1),
        start: StartTicks(9_000),
        cgroups: [(0, Arc::from(format!("/docker/{B}")))].into(),
    };
    let gpu = GpuUuid::from("GPU-0");
    let credit = |pid, millis| Credit {
        pid: Pid(pid),
        busy: Nanos::from_millis(millis),
    };
    let inputs = [
        Input::Gpus(vec![gpu_info(0)]),
        Input::Health(SourceHealth {
            source: SourceId::Docker,
            state: SourceState::Up,
            since: at(100).boot,
            place: "".into(),
        }),
        Input::Processes(ProcessScan {
            started: at(99).boot,
            finished: at(99).boot,
            processes: vec![scanned],
            skipped: 0,
            unread: Vec::new(),
        }),
        Input::Kernel(KernelBatch {
            events,
            drained_through: at(110).boot,
            counters: EventCounters::default(),
        }),
        Input::GpuProcesses(GpuProcesses {
            gpu: gpu.clone(),
            at: at(101).boot,
            processes: vec![GpuProcess {
                pid: Pid(7),
                memory: Some(1 << 20),
                mps: MpsRole::None,
            }],
            memory_used: None,
        }),
        Input::Window(GpuWindow {
            gpu,
            start: at(100).boot,
            end: at(101).boot,
            busy: Nanos::from_millis(750),
            idle: Nanos::from_millis(250),
            unobserved: vec![],
            credits: vec![credit(7, 500), credit(8, 250)],
            below_resolution: Nanos::ZERO,
            no_row: Nanos::ZERO,
            engines: vec![],
            energy: None,
            quality: WindowQuality::default(),
            clocks: None,
        }),
    ];
    for input in inputs {
        accountant.take(input, at(101));
    }
    let _ = accountant.commit(at(101));
    accountant
}

#[test]
fn a_pid_is_told_of_from_its_birth_to_what_is_published() {
    let mut accountant = node();
    let told = accountant.explain("7", at(102)).unwrap();
    let [process] = &told.processes[..] else {
        panic!("one process: {told:?}");
    };
    assert_eq!((process.pid, process.parent), (Pid(7), Some(Pid(42))));
    assert_eq!(process.started, at(100).wall);
    assert_eq!((process.died, process.seen_by), (None, SeenBy::Event));
    let path = format!("/kubepods/burstable/pod{UID}/{A}");
    assert_eq!(process.cgroups[0].path.as_deref(), Some(path.as_str()));
    assert_eq!(&*process.owner, A);
    assert_eq!(process.gpus.len(), 1);
    assert_eq!(process.gpus[0].memory, Some(1 << 20));
    assert!((process.gpus[0].share - 0.5).abs() < 1e-9, "{process:?}");

    let [owner] = &told.owners[..] else {
        panic!("one owner: {told:?}");
    };
    let CgroupOwner::Container {
        id, pod_uid, qos, ..
    } = &owner.who
    else {
        panic!("a container: {owner:?}");
    };
    assert_eq!(id.as_str(), A);
    assert_eq!(pod_uid.as_deref(), Some(UID));
    assert_eq!(qos.as_deref(), Some("Burstable"));
    assert_eq!(owner.attribution, Some(Attribution::Held));
    assert_eq!(owner.answers.len(), IdentitySource::ALL.len());
    assert!(owner.answers.iter().all(|answer| !answer.wins));
    assert_eq!(owner.accounts[0].busy, Nanos::from_millis(500));
    assert_eq!(owner.accounts[0].published, Nanos::ZERO);
}

#[test]
fn a_new_series_that_shows_0_says_until_when() {
    let mut accountant = node();
    // The second container is named at once, so its series has shown 0 since this commit.
    accountant.take(
        identity(IdentitySource::Docker, B, "jupyter", None),
        at(103),
    );
    let _ = accountant.commit(at(103));
    let account = |accountant: &mut Accountant, now| {
        let told = accountant.explain(B, at(now)).unwrap();
        (told.owners[0].accounts[0].clone(), told.events_through)
    };
    let (shows_zero, through) = account(&mut accountant, 110);
    assert_eq!(shows_zero.published, Nanos::ZERO);
    assert_eq!(shows_zero.published_from, Some(at(163).wall));
    assert_eq!(through, Some(at(110).wall));
    // What is held back has no series that could show anything.
    let told = accountant.explain(A, at(110)).unwrap();
    assert_eq!(told.owners[0].accounts[0].published_from, None);
    let _ = accountant.commit(at(163));
    let (shown, _) = account(&mut accountant, 163);
    assert_eq!(shown.published, Nanos::from_millis(250));
    assert_eq!(shown.published_from, None);
}

#[test]
fn the_answers_say_who_won_and_who_was_refused() {
    let mut accountant = node();
    let uid = Some(UID);
    let other = "99999999-2222-3333-4444-555555555555";
    accountant.take(
        identity(IdentitySource::Docker, A, "k8s_x", Some(other)),
        at(103),
    );
    accountant.take(identity(IdentitySource::Bundle, A, "x", uid), at(104));
    let id = ContainerId::from(A);
    accountant.take(
        Input::Identity(IdentityUpdate::NotFound {
            source: IdentitySource::Cri,
            id,
            reason: "not_found",
        }),
        at(105),
    );
    let _ = accountant.commit(at(105));
    let told = accountant.explain(A, at(106)).unwrap();
    let owner = &told.owners[0];
    let story = |answer: &AnswerStory| (answer.outcome.clone(), answer.at, answer.wins);
    let stories: Vec<_> = owner.answers.iter().map(story).collect();
    let refused = AnswerOutcome::Refused {
        claimed: other.into(),
    };
    let unknown = AnswerOutcome::NotFound {
        reason: "not_found".into(),
    };
    let found = AnswerOutcome::Found {
        name: "research/train-0/trainer".into(),
    };
    assert_eq!(
        stories,
        [
            (Some(refused), Some(at(103).wall), false),
            (Some(unknown), Some(at(105).wall), false),
            (Some(found), Some(at(104).wall), true),
            (None, None, false),
        ]
    );
    assert!(owner.why.starts_with("named by bundle"), "{}", owner.why);
}

#[test]
fn a_pod_that_only_labels_tell_of_is_told_as_refused() {
    let mut accountant = node();
    let uid = Some(UID);
    accountant.take(identity(IdentitySource::Docker, B, "thief", uid), at(103));
    let snapshot = accountant.commit(at(103));
    let account = snapshot.accounts.iter().find(|of| of.id.as_str() == B);
    let labels = &account.unwrap().labels;
    assert_eq!((&*labels.namespace, &*labels.container), (NONE, "thief"));
    assert_eq!(snapshot.agent.identities_refused, 1);
    let told = accountant.explain(B, at(104)).unwrap();
    let docker = &told.owners[0].answers[0];
    let refused = AnswerOutcome::PodRefused {
        name: "thief".into(),
        claimed: UID.into(),
    };
    assert_eq!(
        (docker.outcome.as_ref(), docker.wins),
        (Some(&refused), true)
    );
}

#[test]
fn what_each_source_said_of_a_pod_is_told() {
    let mut accountant = node();
    // A process in the pod's own cgroup.
    let batch = KernelBatch {
        events: vec![KernelEvent::Fork(event(9, 101, 4))],
        drained_through: at(110).boot,
        counters: EventCounters::default(),
    };
    accountant.take(Input::Kernel(batch), at(101));
    let lists = GpuProcesses {
        gpu: GpuUuid::from("GPU-0"),
        at: at(102).boot,
        processes: vec![GpuProcess {
            pid: Pid(9),
            memory: None,
            mps: MpsRole::None,
        }],
        memory_used: None,
    };
    accountant.take(Input::GpuProcesses(lists), at(102));
    let _ = accountant.commit(at(103));
    let told = accountant.explain(UID, at(104)).unwrap();
    let of_pod = |told: &Explanation| {
        let mut owners = told.owners.iter();
        let pod = owners.find(|owner| matches!(owner.who, CgroupOwner::Pod { .. }));
        pod.unwrap().clone()
    };
    let owner = of_pod(&told);
    assert_eq!(owner.answers.len(), IdentitySource::ALL.len());
    assert!(owner.answers.iter().all(|answer| answer.outcome.is_none()));
    accountant.take(
        Input::Identity(IdentityUpdate::PodNotFound {
            source: IdentitySource::KubeletLogs,
            uid: UID.into(),
            reason: "not_found",
        }),
        at(104),
    );
    // Its sandbox, which no cgroup shows.
    let sandbox = "c".repeat(64);
    accountant.take(
        identity(IdentitySource::Cri, &sandbox, "train-0", Some(UID)),
        at(105),
    );
    let _ = accountant.commit(at(105));
    let owner = of_pod(&accountant.explain("research/train-0", at(106)).unwrap());
    let outcomes: Vec<_> = owner
        .answers
        .iter()
        .map(|of| (&of.outcome, of.wins))
        .collect();
    let found = Some(AnswerOutcome::Found {
        name: "research/train-0".into(),
    });
    let unknown = Some(AnswerOutcome::NotFound {
        reason: "not_found".into(),
    });
    assert_eq!(
        outcomes,
        [
            (&None, false),
            (&found, true),
            (&None, false),
            (&unknown, false)
        ]
    );
    assert!(owner.why.starts_with("named by cri"), "{}", owner.why);
    assert_eq!(owner.labels.container.as_ref(), "(pod)");
}

#[test]
fn subjects_of_every_kind_find_what_they_name() {
    let mut accountant = node();
    accountant.take(
        identity(IdentitySource::Docker, A, "k8s_trainer_0", Some(UID)),
        at(103),
    );
    accountant.take(
        identity(IdentitySource::Docker, B, "jupyter", None),
        at(103),
    );
    let _ = accountant.commit(at(103));
    let rows: [(&str, &[&str]); 17] = [
        ("8", &[B]),
        (A, &[A]),
        ("aaaab", &[B]),
        ("aaaa", &[A, B]),
        ("aaa", &[]),
        ("k8s_trainer_0", &[A]),
        ("trainer", &[A]),
        ("jupyter", &[B]),
        ("research/train-0", &[A]),
        ("research/train-0/trainer", &[A]),
        ("research/train-0/other", &[]),
        ("research/train-1", &[]),
        (UID, &[A]),
        ("(none)/(none)", &[]),
        ("(none)", &[]),
        ("research/(none)", &[]),
        ("9", &[]),
    ];
    for (subject, expected) in rows {
        let told = accountant.explain(subject, at(104));
        let owners = told.iter().flat_map(|told| &told.owners);
        let ids: Vec<_> = owners
            .map(|owner| match &owner.who {
                CgroupOwner::Container { id, .. } => id.as_str(),
                other => panic!("{subject}: {other:?}"),
            })
            .collect();
        assert_eq!(ids, expected, "{subject}");
        assert_eq!(told.is_some(), !expected.is_empty(), "{subject}");
    }
    let scanned = accountant.explain("8", at(104)).unwrap();
    assert_eq!(scanned.processes[0].seen_by, SeenBy::Scan);
    assert_eq!(scanned.processes[0].parent, Some(Pid(1)));
}

#[test]
fn containers_inside_and_ids_that_were_refused_are_told_of() {
    let mut accountant = node();
    let scanned = |pid, path: String| ScannedProcess {
        pid: Pid(pid),
        parent: Pid(1),
        start: StartTicks(9_100),
        cgroups: [(0, Arc::from(path))].into(),
    };
    let inner = "c".repeat(64);
    let pod = format!("/kubepods/burstable/pod{UID}");
    accountant.take(
        Input::Processes(ProcessScan {
            started: at(102).boot,
            finished: at(102).boot,
            processes: vec![
                scanned(9, format!("{pod}/{A}/docker/{inner}/docker/{B}")),
                scanned(10, format!("/evil{pod}/{A}")),
                scanned(11, format!("/batch/{B}/x")),
                scanned(12, format!("/docker/{B}")),
            ],
            skipped: 0,
            unread: Vec::new(),
        }),
        at(102),
    );
    let _ = accountant.commit(at(102));
    let told = accountant.explain(A, at(103)).unwrap();
    let CgroupOwner::Container { inner: ids, .. } = &told.owners[0].who else {
        panic!("a container: {told:?}");
    };
    let ids: Vec<_> = ids.iter().map(ContainerId::as_str).collect();
    assert_eq!(ids, [&*inner, B]);
    let [refused] = &told.owners[0].refused[..] else {
        panic!("one other cgroup bears its id: {told:?}");
    };
    assert_eq!(*refused.claimed, *format!("container {A}"));
    assert_eq!(*refused.place, *format!("/evil{pod}/{A}"));
    assert_eq!(*refused.bound_to, *format!("{pod}/{A}"));

    let told = accountant.explain("11", at(103)).unwrap();
    let refused = told.processes[0].refused.as_ref().unwrap();
    assert_eq!(*refused.place, *format!("/batch/{B}"));
    assert_eq!(*refused.bound_to, *format!("/docker/{B}"));
    assert!(
        matches!(&told.owners[0].who, CgroupOwner::Host { unit } if unit.as_str() == &*refused.place)
    );
}

#[test]
fn the_recently_dead_are_told_of() {
    let mut accountant = node();
    let exit = KernelEvent::Exit(event(7, 104, 5));
    accountant.take(
        Input::Kernel(KernelBatch {
            events: vec![exit],
            drained_through: at(104).boot,
            counters: EventCounters::default(),
        }),
        at(104),
    );
    let _ = accountant.commit(at(104));
    let told = accountant.explain("7", at(105)).unwrap();
    assert_eq!(told.processes[0].died, Some(at(104).wall));
    // Long after the process is forgotten, its container is not.
    let _ = accountant.commit(at(300));
    assert!(accountant.explain("7", at(300)).is_none());
    let told = accountant.explain(A, at(300)).unwrap();
    assert!(told.processes.is_empty());
    assert!(told.owners[0].accounts[0].ended);
}

#[test]
fn a_subject_with_too_many_processes_is_cut_and_says_so() {
    let mut accountant = node();
    let events = (1_000..1_100).map(|pid| KernelEvent::Fork(event(pid, 102, 5)));
    accountant.take(
        Input::Kernel(KernelBatch {
            events: events.collect(),
            drained_through: at(102).boot,
            counters: EventCounters::default(),
        }),
        at(102),
    );
    let told = accountant.explain(A, at(103)).unwrap();
    assert_eq!(told.processes.len(), MAX_PROCESSES);
    assert_eq!(told.processes_left_out, 101 - MAX_PROCESSES as u64);
    assert_eq!(told.processes[0].pid, Pid(7), "who uses a GPU goes first");
}
