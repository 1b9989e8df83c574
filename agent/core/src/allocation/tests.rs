use super::*;
use crate::input::{ContainerAllocation, MigInfo};
use crate::model::PodUid;
use crate::testing::gpu_info;

const SECOND: u64 = 1_000_000_000;

fn at(seconds: u64) -> BootTime {
    BootTime(seconds * SECOND)
}

fn gpu(index: u32) -> GpuInfo {
    GpuInfo {
        // Unlike the index, as after a GPU fell off the bus.
        minor: Some(7 - index),
        pci: None,
        ..gpu_info(index)
    }
}

fn instance(of: u32, gpu_instance: u32) -> GpuInfo {
    GpuInfo {
        uuid: GpuUuid::from(&*format!("MIG-{of}-{gpu_instance}")),
        mig: Some(MigInfo {
            parent: GpuUuid::from(&*format!("GPU-{of}")),
            profile: "1g.10gb".into(),
            gpu_instance,
            compute_instance: 0,
        }),
        ..gpu(of)
    }
}

fn device(index: u32, replica: u32) -> AllocatedDevice {
    AllocatedDevice {
        resource: "nvidia.com/gpu".into(),
        id: format!("{index}::{replica}").into(),
        device: Some(DeviceRef::Index(index)),
    }
}

fn names(pod: &str) -> KubernetesNames {
    KubernetesNames {
        namespace: "ml".into(),
        pod: pod.into(),
        pod_uid: PodUid::from("uid"),
        container: "main".into(),
    }
}

/// A list of everything, with these pods.
fn list(seconds: u64, pods: &[(&str, &[AllocatedDevice])]) -> Allocations {
    Allocations {
        at: at(seconds),
        pod: None,
        containers: pods
            .iter()
            .map(|(pod, devices)| ContainerAllocation {
                namespace: "ml".into(),
                pod: (*pod).into(),
                container: "main".into(),
                devices: devices.to_vec(),
            })
            .collect(),
    }
}

/// A table and the GPUs 0 and 1, which NVML lists.
struct Node {
    table: AllocationTable,
    gpus: Vec<GpuInfo>,
    /// What it lists no more.
    unlisted: Vec<GpuUuid>,
}

impl Node {
    fn new() -> Self {
        Self {
            table: AllocationTable::new(100),
            gpus: vec![gpu(0), gpu(1)],
            unlisted: Vec::new(),
        }
    }

    fn lives(&mut self, id: &str, pod: &str, start: u64) -> Option<PodName> {
        let span = Span {
            start: at(start),
            end: None,
        };
        self.table.meet(&id.into(), span);
        self.table.name(&id.into(), &names(pod))
    }

    fn dies(&mut self, id: &str, end: u64) {
        let span = Span {
            start: BootTime::MAX,
            end: Some(at(end)),
        };
        self.table.meet(&id.into(), span);
    }

    /// What is counted now: container, GPU, from, seconds.
    fn count_until(&mut self, seconds: u64) -> Vec<(String, usize, u64, u64)> {
        let gpus = self.gpus.iter().map(|info| Known {
            info,
            is_listed: !self.unlisted.contains(&info.uuid),
        });
        let stretches = self.table.count_until(at(seconds), gpus, |_, _| None);
        stretches
            .into_iter()
            .map(|of| {
                let id = of.container.to_string();
                (id, of.gpu, of.from.0 / SECOND, of.amount.0 / SECOND)
            })
            .collect()
    }
}

fn one(id: &str, gpu: usize, from: u64, amount: u64) -> Vec<(String, usize, u64, u64)> {
    vec![(id.to_owned(), gpu, from, amount)]
}

#[test]
fn time_counts_from_the_later_of_the_first_list_and_the_first_process() {
    let mut node = Node::new();
    node.lives("a", "old", 10);
    assert_eq!(node.count_until(19), []);
    node.table.take(list(
        20,
        &[("old", &[device(0, 0)]), ("new", &[device(1, 0)])],
    ));
    // Open at once, before any time has passed.
    assert_eq!(node.count_until(20), one("a", 0, 20, 0));
    node.lives("b", "new", 25);
    // An answer that is older than the container may be about another one of its name.
    assert_eq!(node.count_until(29), one("a", 0, 20, 9));
    node.table.take(list(
        30,
        &[("old", &[device(0, 0)]), ("new", &[device(1, 0)])],
    ));
    assert_eq!(
        node.count_until(32),
        [one("a", 0, 29, 3), one("b", 1, 25, 7)].concat()
    );
    assert_eq!(node.count_until(32), [], "each stretch is told once");
}

#[test]
fn what_the_kubelet_forgets_or_cannot_say_counts_while_the_container_lives() {
    let mut node = Node::new();
    node.lives("a", "p", 10);
    node.table.take(list(10, &[("p", &[device(0, 0)])]));
    node.count_until(20);
    node.table.take(list(20, &[]));
    assert_eq!(node.count_until(30), one("a", 0, 20, 10));
    assert!(!node.table.grantees()[0].is_listed);
    // A list without devices is one of a kubelet that lost its checkpoint. Nothing comes at all
    // for an hour; then it knows again, and nothing begins anew.
    assert_eq!(node.count_until(3_630), one("a", 0, 30, 3_600));
    node.table.take(list(3_640, &[("p", &[device(0, 0)])]));
    assert_eq!(node.count_until(3_640), one("a", 0, 3_630, 10));
    node.dies("a", 3_645);
    assert_eq!(node.count_until(3_650), one("a", 0, 3_640, 5));
    assert_eq!(node.count_until(3_660), []);
}

#[test]
fn a_pod_that_is_over_counts_nothing_however_long_it_is_listed() {
    let mut node = Node::new();
    node.table.take(list(10, &[("done", &[device(0, 0)])]));
    assert_eq!(node.count_until(20), [], "no container was ever seen");
    assert_eq!(node.table.grantees()[0].container, None);
    node.lives("a", "p", 20);
    node.table.take(list(20, &[("p", &[device(0, 0)])]));
    node.dies("a", 25);
    assert_eq!(node.count_until(30), one("a", 0, 20, 5));
    for seconds in [40, 100, 1_000] {
        node.table.take(list(seconds, &[("p", &[device(0, 0)])]));
        assert_eq!(node.count_until(seconds), []);
    }
    // Its name is given to another pod, with another GPU.
    node.table.take(list(1_010, &[("p", &[device(1, 0)])]));
    node.lives("b", "p", 1_005);
    assert_eq!(node.count_until(1_020), one("b", 1, 1_010, 10));
}

#[test]
fn a_restart_in_a_pod_pauses_the_count() {
    let mut node = Node::new();
    node.lives("a", "p", 10);
    node.table.take(list(12, &[("p", &[device(0, 0)])]));
    node.dies("a", 20);
    assert_eq!(node.count_until(21), one("a", 0, 12, 8));
    node.lives("b", "p", 30);
    node.table.take(list(32, &[("p", &[device(0, 0)])]));
    assert_eq!(node.count_until(40), one("b", 0, 30, 10));
}

#[test]
fn a_container_that_ended_before_the_answer_has_what_was_listed_in_its_life() {
    let mut node = Node::new();
    node.table.take(list(10, &[("short", &[device(0, 0)])]));
    node.lives("a", "short", 12);
    node.dies("a", 15);
    assert_eq!(node.count_until(15), []);
    node.table.take(list(
        20,
        &[("short", &[device(0, 0)]), ("late", &[device(1, 0)])],
    ));
    node.lives("b", "late", 12);
    node.dies("b", 15);
    assert_eq!(
        node.count_until(20),
        one("a", 0, 12, 3),
        "the other was not given in its life"
    );
}

#[test]
fn a_gpu_counts_once_however_often_it_is_given() {
    let mut node = Node::new();
    node.lives("a", "p", 10);
    let twice = [device(0, 0), device(0, 1), device(1, 0)];
    node.table.take(list(10, &[("p", &twice)]));
    assert_eq!(
        node.count_until(20),
        [one("a", 0, 10, 10), one("a", 1, 10, 10)].concat()
    );
    // A replica less is no less of the GPU.
    node.table.take(list(20, &[("p", &twice[1..2])]));
    assert_eq!(node.count_until(30), one("a", 0, 20, 10));
}

#[test]
fn a_gpu_that_is_listed_late_gets_its_time_when_it_is() {
    let mut node = Node::new();
    let late = std::mem::take(&mut node.gpus);
    node.lives("a", "p", 10);
    node.table.take(list(10, &[("p", &[device(1, 0)])]));
    assert_eq!(node.count_until(100), []);
    node.gpus = late;
    assert_eq!(node.count_until(110), one("a", 1, 10, 100));
}

#[test]
fn an_answer_about_one_pod_says_nothing_of_others_and_an_old_one_nothing_at_all() {
    let mut node = Node::new();
    assert!(node.lives("a", "p", 10).is_some(), "to be asked for");
    assert!(node.lives("a", "p", 10).is_none(), "once");
    node.lives("b", "q", 10);
    node.table.take(list(20, &[("q", &[device(1, 0)])]));
    let mut of_pod = list(21, &[("p", &[device(0, 0)])]);
    of_pod.pod = Some(PodName {
        namespace: "ml".into(),
        pod: "p".into(),
    });
    node.table.take(of_pod.clone());
    assert!(node.table.grantees().iter().all(|of| of.is_listed));
    // It was asked for before, and comes after.
    node.table.take(list(19, &[]));
    assert!(node.table.grantees().iter().all(|of| of.is_listed));
    of_pod.containers.clear();
    of_pod.at = at(22);
    node.table.take(of_pod);
    node.count_until(22);
    let listed: Vec<_> = node
        .table
        .grantees()
        .iter()
        .map(|of| of.is_listed)
        .collect();
    assert_eq!(listed, [false, true]);
    assert!(
        node.lives("c", "q", 15).is_none(),
        "answered since it began"
    );
}

#[test]
fn names_are_asked_for_only_where_something_is_given_to_nobody() {
    let mut node = Node::new();
    let span = Span {
        start: at(10),
        end: None,
    };
    node.table.meet(&"a".into(), span);
    assert_eq!(node.table.wanted(|_| true), []);
    node.table.take(list(20, &[("p", &[device(0, 0)])]));
    assert_eq!(node.table.wanted(|_| false), []);
    for _ in 0..MAX_LOOKUPS {
        assert_eq!(node.table.wanted(|_| true), ["a".into()]);
    }
    assert_eq!(node.table.wanted(|_| true), [], "not for ever");
}

#[test]
fn the_table_is_bounded_and_forgets() {
    let mut node = Node::new();
    node.table = AllocationTable::new(2);
    let gpus = [device(0, 0)];
    node.table
        .take(list(10, &[("p", &gpus), ("q", &gpus), ("r", &gpus)]));
    for id in ["a", "b", "c"] {
        node.lives(id, id, 10);
    }
    assert_eq!(node.table.overflows(), 2);
    node.table.take(list(20, &[("r", &gpus)]));
    assert_eq!(node.table.overflows(), 2, "there is room again");
    node.dies("a", 20);
    node.count_until(20 + KEEP_ENDED.0 / SECOND);
    assert!(!node.table.knows(&"a".into()) && node.table.knows(&"b".into()));
}

#[test]
fn a_reference_means_one_gpu_of_the_list_or_none() {
    let list = [
        gpu(0),
        gpu(1),
        instance(1, 3),
        instance(1, 4),
        gpu(2),
        gpu(2),
    ];
    let list: Vec<&GpuInfo> = list.iter().collect();
    let uuid = |text: &str| DeviceRef::Uuid(GpuUuid::from(text));
    let mig_of = |gpu_instance, compute_instance| DeviceRef::MigOf {
        gpu: GpuUuid::from("GPU-1"),
        gpu_instance,
        compute_instance,
    };
    let rows: [(DeviceRef, &[usize]); 13] = [
        (uuid("GPU-0"), &[0]),
        (uuid("MIG-1-4"), &[3]),
        (uuid("GPU-9"), &[]),
        (DeviceRef::Index(0), &[0]),
        (DeviceRef::Index(1), &[1]),
        (DeviceRef::Index(2), &[]),
        (DeviceRef::Index(3), &[]),
        (DeviceRef::Minor(7), &[0]),
        (DeviceRef::Minor(0), &[]),
        (mig_of(4, 0), &[3]),
        (mig_of(4, 1), &[]),
        (
            DeviceRef::MigIndex {
                gpu: 1,
                instance: 0,
            },
            &[],
        ),
        (DeviceRef::All, &[0, 2, 3, 4, 5]),
    ];
    let mut table = AllocationTable::new(1);
    let is_listed = true;
    let gpus = list.iter().map(|info| Known { info, is_listed });
    table.count_until(at(1), gpus, |_, _| None);
    for (device, expect) in rows {
        assert_eq!(table.gpus_of(&device, &list), expect, "{device:?}");
    }
}

fn everything() -> AllocatedDevice {
    AllocatedDevice {
        resource: "nvidia.com/gpu".into(),
        id: "all".into(),
        device: Some(DeviceRef::All),
    }
}

#[test]
fn all_gpus_are_no_instances_that_were_destroyed() {
    let mut node = Node::new();
    node.gpus = vec![gpu(0), instance(0, 1), instance(0, 2)];
    node.lives("a", "p", 10);
    node.table.take(list(10, &[("p", &[everything()])]));
    let (both, whole) = ([1, 2], 0);
    let of = |gpus: &[usize], from, amount| {
        let stretches = gpus.iter().map(|gpu| one("a", *gpu, from, amount));
        stretches.collect::<Vec<_>>().concat()
    };
    assert_eq!(node.count_until(20), of(&both, 10, 10));
    // MIG is switched off: the GPU is given whole, from here on.
    node.unlisted = vec![node.gpus[1].uuid.clone(), node.gpus[2].uuid.clone()];
    assert_eq!(node.count_until(30), one("a", whole, 30, 0));
    assert_eq!(node.count_until(40), one("a", whole, 30, 10));
    // It is divided anew: an instance of an old name, and a new one.
    node.unlisted = vec![node.gpus[2].uuid.clone()];
    node.gpus.push(instance(0, 3));
    assert_eq!(node.count_until(50), one("a", 3, 50, 0));
    assert_eq!(node.count_until(60), of(&[1, 3], 50, 10));
}

#[test]
fn all_gpus_stay_what_they_were_while_the_driver_is_away() {
    let mut node = Node::new();
    node.gpus = vec![gpu(0), instance(0, 1), gpu(1)];
    let uuids: Vec<GpuUuid> = node.gpus.iter().map(|gpu| gpu.uuid.clone()).collect();
    node.lives("a", "p", 10);
    node.table.take(list(10, &[("p", &[everything()])]));
    // Books from before a restart, of which one may be a destroyed instance's.
    node.unlisted.clone_from(&uuids);
    assert_eq!(node.count_until(20), []);
    node.unlisted.clear();
    let both = |from, amount| [one("a", 1, from, amount), one("a", 2, from, amount)].concat();
    assert_eq!(node.count_until(30), both(10, 20));
    node.unlisted.clone_from(&uuids);
    assert_eq!(node.count_until(40), both(30, 10));
    // One GPU, with its instance, is back later than the other.
    node.unlisted.truncate(2);
    assert_eq!(node.count_until(50), both(40, 10));
    node.unlisted.clear();
    assert_eq!(node.count_until(60), both(50, 10));
}
