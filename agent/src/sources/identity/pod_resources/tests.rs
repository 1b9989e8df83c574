//! Tests of `pod_resources`.

use std::sync::atomic::Ordering;

use prost::Message as _;

use super::*;
use crate::core::model::GpuUuid;
use gpuacct_proto::pod_resources::{
    CdiDevice, ContainerDevices, DynamicResource, ListPodResourcesResponse, PodResources,
};

const GPU: &str = "GPU-7c8e1f02-9a4b-4d5e-8f60-112233445566";

fn given(resource: &str, ids: &[&str]) -> ContainerDevices {
    ContainerDevices {
        resource_name: resource.to_owned(),
        device_ids: ids.iter().map(|id| (*id).to_owned()).collect(),
    }
}

fn pod(name: &str, containers: Vec<(&str, Vec<ContainerDevices>)>) -> PodResources {
    PodResources {
        name: name.to_owned(),
        namespace: "ml".to_owned(),
        containers: containers
            .into_iter()
            .map(|(name, devices)| ContainerResources {
                name: name.to_owned(),
                devices,
                dynamic_resources: vec![],
            })
            .collect(),
    }
}

fn listed(pods: Vec<PodResources>, counters: &Counters) -> Vec<ContainerAllocation> {
    let answer = ListPodResourcesResponse {
        pod_resources: pods,
    };
    containers(&answer.encode_to_vec(), &defaults(), counters).expect("a message")
}

fn defaults() -> Vec<String> {
    config::PodResources::default().resources
}

#[test]
fn only_resources_that_can_be_gpus_count() {
    let renamed = [defaults(), vec!["corp.example/fast".to_owned()]].concat();
    let rows: [(&str, &[String], Option<Origin>); 9] = [
        ("nvidia.com/gpu", &defaults(), Some(Origin::Gpus)),
        ("nvidia.com/gpu.shared", &defaults(), Some(Origin::Gpus)),
        ("nvidia.com/mig-1g.10gb", &defaults(), Some(Origin::Gpus)),
        ("nvidia.com/hostdev", &defaults(), Some(Origin::MaybeGpus)),
        ("nvidia.com.example/gpu", &defaults(), None),
        ("amd.com/gpu", &defaults(), None),
        ("cpu", &defaults(), None),
        ("corp.example/fast", &renamed, Some(Origin::Gpus)),
        ("corp.example/other", &renamed, None),
    ];
    for (resource, resources, expect) in rows {
        assert_eq!(origin(resource, resources), expect, "{resource}");
    }
}

#[test]
fn a_container_that_is_listed_twice_differently_is_left_out() {
    let counters = Counters::default();
    let gpu = |id: &str| vec![given("nvidia.com/gpu", &[id])];
    let pods = vec![
        pod("a", vec![("main", gpu("0")), ("sidecar", vec![])]),
        pod("b", vec![("main", gpu("1"))]),
        // Listed by way of its static and its mirror pod: the same.
        pod("b", vec![("main", gpu("1"))]),
        pod("a", vec![("main", gpu("2")), ("other", gpu("3"))]),
        pod("a", vec![("main", gpu("0"))]),
        pod("(none)", vec![("main", gpu("0"))]),
    ];
    let found = listed(pods, &counters);
    let names: Vec<_> = found
        .iter()
        .map(|found| format!("{}/{}", found.pod, found.container))
        .collect();
    assert_eq!(names, ["b/main", "a/other"]);
    let read = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    assert_eq!(read(&counters.entries_dropped), 2);
    assert_eq!(read(&counters.kubernetes_refused), 1);
}

#[test]
fn answers_are_bounded_and_what_is_cut_is_counted() {
    let counters = Counters::default();
    let ids: Vec<String> = (0..MAX_DEVICES + 5)
        .map(|at| format!("{GPU}::{at}"))
        .collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let mut pods = vec![pod(
        "all",
        vec![("main", vec![given("nvidia.com/gpu", &ids)])],
    )];
    pods.extend((0..MAX_CONTAINERS).map(|at| {
        pod(
            &format!("p{at}"),
            vec![("main", vec![given("nvidia.com/gpu", &["0"])])],
        )
    }));
    let found = listed(pods, &counters);
    assert_eq!(found.len(), MAX_CONTAINERS);
    assert_eq!(found[0].devices.len(), MAX_DEVICES);
    assert_eq!(counters.entries_dropped.load(Ordering::Relaxed), 6);
}

fn claim(names: Vec<String>) -> ContainerResources {
    ContainerResources {
        name: "main".to_owned(),
        devices: vec![],
        dynamic_resources: vec![DynamicResource {
            claim_name: "one-gpu".to_owned(),
            claim_namespace: "ml".to_owned(),
            claim_resources: vec![ClaimResource {
                cdi_devices: names.into_iter().map(|name| CdiDevice { name }).collect(),
                driver_name: GPU_DRIVER.to_owned(),
                pool_name: "node".to_owned(),
                device_name: String::new(),
            }],
        }],
    }
}

#[test]
fn names_of_one_device_are_bounded_before_they_are_compared() {
    let counters = Counters::default();
    let names = (0..22_309).map(|at| format!("k8s.gpu.nvidia.com/device=gpu-{at}"));
    let found = devices(&claim(names.collect()), &defaults(), &counters);
    assert_eq!(found.len(), MAX_NAMES);
    let dropped = counters.entries_dropped.into_inner();
    assert_eq!(dropped, 22_309 - 64);
}

#[test]
fn a_device_that_is_given_a_thousand_times_is_one() {
    let counters = Counters::default();
    let ids: Vec<String> = (0..MAX_DEVICES - 1).map(|at| at.to_string()).collect();
    let mut ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    ids.extend(std::iter::repeat_n("1022", 100_000));
    let container = pod("a", vec![("main", vec![given("nvidia.com/gpu", &ids)])]);
    let found = devices(&container.containers[0], &defaults(), &counters);
    assert_eq!(found.len(), MAX_DEVICES - 1);
    assert_eq!(counters.entries_dropped.into_inner(), 0);
}

#[test]
fn an_answer_is_bounded_over_all_its_containers() {
    let counters = Counters::default();
    let ids: Vec<String> = (0..MAX_DEVICES).map(|at| at.to_string()).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let of = |at| {
        let devices = vec![given("nvidia.com/gpu", &ids)];
        pod(&format!("p{at}"), vec![("main", devices)])
    };
    let most = MAX_DEVICES_IN_ALL / MAX_DEVICES;
    let found = listed((0..most + 3).map(of).collect(), &counters);
    assert_eq!(found.len(), most);
    assert_eq!(counters.entries_dropped.load(Ordering::Relaxed), 3);
    // One that is larger than any container is.
    let counters = Counters::default();
    let large = "x".repeat(MAX_CONTAINER);
    let pods = vec![
        pod(
            "large",
            vec![("main", vec![given("nvidia.com/gpu", &[&large])])],
        ),
        pod(
            "small",
            vec![("main", vec![given("nvidia.com/gpu", &["0"])])],
        ),
    ];
    let found = listed(pods, &counters);
    assert_eq!(&*found[0].pod, "small");
    assert_eq!(counters.entries_dropped.load(Ordering::Relaxed), 1);
}

#[test]
fn an_answer_that_is_no_message_is_an_error_whatever_came_before() {
    let counters = Counters::default();
    let mut answer = ListPodResourcesResponse {
        pod_resources: vec![pod(
            "a",
            vec![("main", vec![given("nvidia.com/gpu", &["0"])])],
        )],
    }
    .encode_to_vec();
    assert_eq!(with_devices(&answer).expect("a message"), 1);
    answer.extend([0x0a, 7, 0x1a]);
    assert!(containers(&answer, &defaults(), &counters).is_err());
    assert!(with_devices(&answer).is_err());
}

#[test]
fn a_claims_device_is_whatever_its_best_name_says() {
    let uuid = || Some(DeviceRef::Uuid(GpuUuid::from(GPU)));
    let minor = || Some(DeviceRef::Minor(1));
    let by_uuid = format!("nvidia.com/gpu={GPU}");
    let by_claim = format!("k8s.gpu.nvidia.com/claim={}-gpu-1", &GPU[4..]);
    let device = "k8s.gpu.nvidia.com/device=gpu-1";
    let mig = "k8s.gpu.nvidia.com/device=gpu-1-mig-19-0-1";
    type Row<'a> = (
        &'a str,
        &'a [&'a str],
        &'a str,
        &'a [(&'a str, Option<DeviceRef>)],
    );
    let rows: [Row<'_>; 9] = [
        (GPU_DRIVER, &[device], "gpu-1", &[(device, minor())]),
        (
            GPU_DRIVER,
            &[device, &by_claim],
            "gpu-1",
            &[(device, minor())],
        ),
        (GPU_DRIVER, &[&by_uuid], "gpu-1", &[(&by_uuid, uuid())]),
        (GPU_DRIVER, &[], "gpu-1", &[("gpu-1", minor())]),
        (
            GPU_DRIVER,
            &[mig],
            "gpu-1-mig-19-0-1",
            &[("gpu-1-mig-19-0-1", None)],
        ),
        // Another driver that hands on NVIDIA's devices.
        ("dra.example", &[&by_uuid], "card-7", &[(&by_uuid, uuid())]),
        ("dra.example", &["example/card=7"], "gpu-7", &[]),
        (
            "compute-domain.nvidia.com",
            &["k8s.compute-domain.nvidia.com/claim=x"],
            "channel-0",
            &[],
        ),
        ("", &[], "", &[]),
    ];
    for (driver, cdi, name, expect) in rows {
        let container = ContainerResources {
            name: "main".to_owned(),
            devices: vec![],
            dynamic_resources: vec![DynamicResource {
                claim_name: "one-gpu".to_owned(),
                claim_namespace: "ml".to_owned(),
                claim_resources: vec![ClaimResource {
                    cdi_devices: cdi
                        .iter()
                        .map(|name| CdiDevice {
                            name: (*name).to_owned(),
                        })
                        .collect(),
                    driver_name: driver.to_owned(),
                    pool_name: "node".to_owned(),
                    device_name: name.to_owned(),
                }],
            }],
        };
        let found = devices(&container, &defaults(), &Counters::default());
        let found: Vec<_> = found
            .iter()
            .map(|device| (&*device.id, device.device.clone()))
            .collect();
        assert_eq!(found, expect, "{driver} {cdi:?} {name}");
    }
}
