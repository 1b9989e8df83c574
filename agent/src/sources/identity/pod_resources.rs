//! Which container was given which GPU, from the kubelet's PodResources API, v1.
//!
//! The kubelet alone knows what its device plugins and DRA drivers gave away; the API server is not
//! asked. It answers by namespace, pod and container, without ids, and without a time: everything is
//! listed again and again, and one pod is asked for alone where the core has met it and the kubelet
//! offers that (`Get`, since Kubernetes 1.27); where it does not, the list comes sooner.
//!
//! What a list says is passed on as it is said. Whether a listed pod still runs, and which GPU an
//! index means, is for the core to know: some kubelets list pods that are over, others forget pods
//! that run. `GetAllocatableResources` is not asked: it says what could be given, and NVML knows
//! better which GPUs there are.
//!
//! Only devices that can be NVIDIA's GPUs are passed on, each with the kubelet's own id. An id that
//! refers to no known device is passed on as such, never guessed at. An answer in which one
//! container occurs twice with different devices contradicts itself (a pod was replaced by another
//! of its name), and that container is left out of it.
//!
//! An answer is bounded before any work is done for it: its bytes are kept, its containers are decoded
//! one at a time, and what is beyond a bound is counted and costs nothing more.
//!
//! A kubelet is judged by whether it answers. A socket on which nobody offers this interface is as
//! good as absent.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep_until};
use tonic::transport::Channel;
use tracing::debug;

use super::device_id::{Origin, device_ref, is_nvidia_kind};
use super::elements::{Malformed, decode, elements, text};
use super::grpc::{self, GrpcError, MAX_LIST, MAX_ONE};
pub use super::sockets::Timing;
use super::sockets::{self, Follower, SocketContext};
use super::wanted::receive;
use super::{Counters, IdentityIo, clean, is_kubernetes_name};
use crate::config;
use crate::core::input::{
    AllocatedDevice, Allocations, ContainerAllocation, DeviceRef, Input, PodName,
};
use crate::core::model::{BootTime, SourceId, SourceState};
use crate::sources::health::Closed;
use gpuacct_proto::pod_resources::{
    ClaimResource, ContainerResources, GetPodResourcesRequest, ListPodResourcesRequest,
};

/// How close lists follow each other at most, however many pods are new.
const LISTS_APART: Duration = Duration::from_secs(1);
/// Containers of one answer that are passed on. A node has 110 pods, 256 where it is pushed.
const MAX_CONTAINERS: usize = 4_096;
/// Devices of one container. A node has 16 GPUs, each shared by some tens.
const MAX_DEVICES: usize = 1_024;
/// Devices of all containers of one answer.
const MAX_DEVICES_IN_ALL: usize = 16_384;
/// Names of one device of a claim that are looked at. A DRA driver writes one or two.
const MAX_NAMES: usize = 64;
/// Largest container that is decoded, in bytes. A device takes some 60; an empty element takes two,
/// and a hundred in memory.
const MAX_CONTAINER: usize = 256 << 10;
const LIST: &str = "/v1.PodResourcesLister/List";
const GET: &str = "/v1.PodResourcesLister/Get";

/// The fields of the interface's messages: those of an answer, of a pod and of a container.
mod field {
    pub(super) const PODS: usize = 1;
    pub(super) const POD_NAME: usize = 1;
    pub(super) const POD_NAMESPACE: usize = 2;
    pub(super) const POD_CONTAINERS: usize = 3;
    pub(super) const CONTAINER_NAME: usize = 1;
    pub(super) const CONTAINER_DEVICES: usize = 2;
    pub(super) const CONTAINER_CLAIMS: usize = 5;
}
/// The DRA driver whose devices are GPUs.
const GPU_DRIVER: &str = "gpu.nvidia.com";

/// Follows the kubelet until `shutdown` turns true or nobody reads `out` any more.
///
/// It is asked for pods that the core would like to know of soon. A full `out` holds this source and
/// nothing else.
pub async fn run(config: config::PodResources, pace: Timing, io: IdentityIo<PodName>) {
    let begin = |seat| Kubelet {
        seat,
        config: config.clone(),
    };
    let (source, sockets) = (SourceId::PodResources, [config.socket.clone()]);
    sockets::run(source, &sockets, pace, io, begin).await;
}

/// Asks a kubelet for its list, once, and returns how many containers of its list have devices, for
/// `gpuacct check`.
///
/// # Errors
/// What failed, in words.
pub async fn greet(socket: &Path, limit: Duration) -> Result<usize, String> {
    let ask = async {
        let counters = Counters::default();
        let channel = grpc::connect(socket, limit).await?;
        let list = grpc::ask(&channel, LIST, ListPodResourcesRequest {}, MAX_LIST);
        let answer = grpc::first_call("list", limit, &counters, list).await?;
        with_devices(&answer).map_err(|source| GrpcError::Malformed {
            call: "list",
            source,
        })
    };
    ask.await.map_err(|fault: GrpcError| fault.to_string())
}

/// How many containers of a list have devices of any kind.
fn with_devices(answer: &[u8]) -> Result<usize, Malformed> {
    let mut count = 0;
    for pod in elements(answer, field::PODS) {
        for container in elements(pod?, field::POD_CONTAINERS) {
            if has_devices(container?)? {
                count += 1;
            }
        }
    }
    Ok(count)
}

/// Whether a container was given anything by a device plugin or a claim.
fn has_devices(container: &[u8]) -> Result<bool, Malformed> {
    let any = |field| elements(container, field).next().transpose();
    Ok(any(field::CONTAINER_DEVICES)?.is_some() || any(field::CONTAINER_CLAIMS)?.is_some())
}

struct Kubelet {
    seat: SocketContext<PodName>,
    config: config::PodResources,
}

impl Follower for Kubelet {
    type Question = PodName;
    type Error = GrpcError;

    fn context(&mut self) -> &mut SocketContext<PodName> {
        &mut self.seat
    }

    async fn session(&mut self, was_up: &mut bool) -> Result<GrpcError, Closed> {
        let fault = self.talk(was_up).await?;
        fault.count(&self.seat.counters);
        Ok(fault)
    }
}

impl Kubelet {
    /// Asks the kubelet until it cannot be asked any more.
    async fn talk(&mut self, was_up: &mut bool) -> Result<GrpcError, Closed> {
        let limit = self.config.timeout.0;
        let channel = match grpc::connect(&self.seat.path, limit).await {
            Ok(channel) => channel,
            Err(fault) => return Ok(fault),
        };
        let at = (self.seat.clock)().boot;
        let list = grpc::ask(&channel, LIST, ListPodResourcesRequest {}, MAX_LIST);
        let answer = grpc::first_call("list", limit, &self.seat.counters, list).await;
        if let Err(fault) = self.pass_on(at, answer).await? {
            return Ok(fault);
        }
        *was_up = true;
        self.seat.report(SourceState::Up).await?;

        // A kubelet that was upgraded has another session.
        let mut offers_get = true;
        let mut listed = Instant::now();
        let mut list_at = listed + self.config.interval.0;
        loop {
            tokio::select! {
                () = sleep_until(list_at) => {
                    let at = (self.seat.clock)().boot;
                    let list = grpc::ask(&channel, LIST, ListPodResourcesRequest {}, MAX_LIST);
                    let answer = grpc::call("list", limit, &self.seat.counters, list).await;
                    if let Err(fault) = self.pass_on(at, answer).await? {
                        return Ok(fault);
                    }
                    listed = Instant::now();
                    list_at = listed + self.config.interval.0;
                }
                pod = receive(&mut self.seat.questions) => {
                    let Some(pod) = pod else {
                        self.seat.questions = None;
                        continue;
                    };
                    let answered = if offers_get {
                        self.get(&channel, pod, &mut offers_get).await?
                    } else {
                        Ok(false)
                    };
                    match answered {
                        Ok(true) => {}
                        // The list will tell.
                        Ok(false) => list_at = list_at.min(listed + LISTS_APART),
                        Err(fault) => return Ok(fault),
                    }
                }
            }
        }
    }

    /// Asks for one pod, and passes on what comes. Whether anything did: a kubelet that does not
    /// offer this is remembered, one that does not know the pod (yet) may list it all the same.
    async fn get(
        &mut self,
        channel: &Channel,
        pod: PodName,
        offers_get: &mut bool,
    ) -> Result<Result<bool, GrpcError>, Closed> {
        let at = (self.seat.clock)().boot;
        let request = GetPodResourcesRequest {
            pod_name: (*pod.pod).to_owned(),
            pod_namespace: (*pod.namespace).to_owned(),
        };
        let request = grpc::ask(channel, GET, request, MAX_ONE);
        let limit = self.config.timeout.0;
        let answer = match grpc::call("get", limit, &self.seat.counters, request).await {
            Ok(answer) => answer,
            Err(fault) if fault.is_unimplemented() => {
                debug!("pod resources: the kubelet has List only, not Get");
                *offers_get = false;
                return Ok(Ok(false));
            }
            Err(fault) if fault.is_an_answer() || fault.is_too_large() => {
                debug!(%fault, "pod resources: cannot look up a pod");
                if fault.is_too_large() {
                    Counters::count(&self.seat.counters.answers_too_large);
                }
                return Ok(Ok(false));
            }
            Err(fault) => return Ok(Err(fault)),
        };
        let malformed = |source| GrpcError::Malformed {
            call: "get",
            source,
        };
        // An answer about another pod is none.
        match is_about(&answer, &pod) {
            Ok(true) => {}
            Ok(false) => {
                Counters::count(&self.seat.counters.invalid_replies);
                return Ok(Ok(false));
            }
            Err(source) => return Ok(Err(malformed(source))),
        }
        let found = containers(&answer, &self.config.resources, &self.seat.counters);
        let containers = match found {
            Ok(containers) => containers,
            Err(source) => return Ok(Err(malformed(source))),
        };
        let allocations = Allocations {
            at,
            pod: Some(pod),
            containers,
        };
        self.seat.send(Input::Allocations(allocations)).await?;
        Ok(Ok(true))
    }

    /// Passes on a list.
    async fn pass_on(
        &self,
        at: BootTime,
        answer: Result<Bytes, GrpcError>,
    ) -> Result<Result<(), GrpcError>, Closed> {
        let read = |answer: Bytes| {
            containers(&answer, &self.config.resources, &self.seat.counters).map_err(|source| {
                GrpcError::Malformed {
                    call: "list",
                    source,
                }
            })
        };
        let containers = match answer.and_then(read) {
            Ok(containers) => containers,
            Err(fault) => return Ok(Err(fault)),
        };
        let allocations = Allocations {
            at,
            pod: None,
            containers,
        };
        self.seat.send(Input::Allocations(allocations)).await?;
        Ok(Ok(()))
    }
}

/// Whether an answer is about this pod and no other.
fn is_about(answer: &[u8], pod: &PodName) -> Result<bool, Malformed> {
    let mut is_it = false;
    for found in elements(answer, field::PODS) {
        let found = found?;
        is_it = text(found, field::POD_NAME)? == &*pod.pod
            && text(found, field::POD_NAMESPACE)? == &*pod.namespace;
        if !is_it {
            break;
        }
    }
    Ok(is_it)
}

/// The containers of an answer that have devices which can be GPUs, each once.
fn containers(
    answer: &[u8],
    resources: &[String],
    counters: &Counters,
) -> Result<Vec<ContainerAllocation>, Malformed> {
    let mut found = Found::default();
    for pod in elements(answer, field::PODS) {
        let pod = pod?;
        let (namespace, name) = (
            text(pod, field::POD_NAMESPACE)?,
            text(pod, field::POD_NAME)?,
        );
        for container in elements(pod, field::POD_CONTAINERS) {
            let container = container?;
            if !has_devices(container)? {
                continue;
            }
            let names = [namespace, name, text(container, field::CONTAINER_NAME)?];
            found.take(names, container, resources, counters)?;
        }
    }
    Ok(found.taken())
}

/// The containers that are passed on, each once and bounded.
#[derive(Default)]
struct Found<'a> {
    order: Vec<[&'a str; 3]>,
    /// Nothing for one that contradicts itself.
    devices: HashMap<[&'a str; 3], Option<Vec<AllocatedDevice>>>,
    /// Devices of all of them.
    count: usize,
}

impl<'a> Found<'a> {
    fn take(
        &mut self,
        names: [&'a str; 3],
        container: &[u8],
        resources: &[String],
        counters: &Counters,
    ) -> Result<(), Malformed> {
        let is_known = self.devices.contains_key(&names);
        let has_room = self.order.len() < MAX_CONTAINERS && self.count < MAX_DEVICES_IN_ALL;
        if container.len() > MAX_CONTAINER || !(is_known || has_room) {
            Counters::count(&counters.entries_dropped);
            if is_known {
                // What it has now cannot be distinguished from what it had.
                self.devices.insert(names, None);
            }
            return Ok(());
        }
        let Some(container) = decode::<ContainerResources>(container, counters)? else {
            return Ok(());
        };
        let devices = devices(&container, resources, counters);
        if devices.is_empty() {
            return Ok(());
        }
        if !names.iter().all(|name| is_kubernetes_name(name)) {
            Counters::count(&counters.kubernetes_refused);
            return Ok(());
        }
        match self.devices.entry(names) {
            Entry::Vacant(_) if self.count + devices.len() > MAX_DEVICES_IN_ALL => {
                Counters::count(&counters.entries_dropped);
            }
            Entry::Vacant(entry) => {
                self.order.push(names);
                self.count += devices.len();
                entry.insert(Some(devices));
            }
            Entry::Occupied(mut entry) => {
                if entry.get().as_ref() != Some(&devices) {
                    Counters::count(&counters.entries_dropped);
                    entry.insert(None);
                }
            }
        }
        Ok(())
    }

    fn taken(mut self) -> Vec<ContainerAllocation> {
        let taken = self.order.into_iter().filter_map(|names| {
            let devices = self.devices.remove(&names)??;
            let [namespace, pod, container] = names.map(Arc::from);
            Some(ContainerAllocation {
                namespace,
                pod,
                container,
                devices,
            })
        });
        taken.collect()
    }
}

/// A container's devices that can be GPUs: those of device plugins, then those of claims.
fn devices(
    container: &ContainerResources,
    resources: &[String],
    counters: &Counters,
) -> Vec<AllocatedDevice> {
    let mut devices = Vec::<AllocatedDevice>::new();
    let mut known = HashSet::<AllocatedDevice>::new();
    let mut take = |resource: &str, id: &str, device: Option<DeviceRef>| {
        if devices.len() >= MAX_DEVICES {
            Counters::count(&counters.entries_dropped);
            return;
        }
        let device = AllocatedDevice {
            resource: clean(resource, counters),
            id: clean(id, counters),
            device,
        };
        if known.insert(device.clone()) {
            devices.push(device);
        }
    };
    for of_resource in &container.devices {
        let resource = &of_resource.resource_name;
        let Some(origin) = origin(resource, resources) else {
            continue;
        };
        for id in &of_resource.device_ids {
            take(resource, id, device_ref(id, origin));
        }
    }
    for claim in &container.dynamic_resources {
        for device in &claim.claim_resources {
            claimed(device, resources, counters, &mut take);
        }
    }
    devices
}

/// What a device of a claim is: whatever any of its names says, and where one is a UUID, that.
fn claimed(
    device: &ClaimResource,
    resources: &[String],
    counters: &Counters,
    take: &mut impl FnMut(&str, &str, Option<DeviceRef>),
) {
    let is_kind = |name: &str| {
        name.split_once('=')
            .is_some_and(|(kind, _)| is_nvidia_kind(kind))
    };
    let of_driver = device.driver_name == GPU_DRIVER || resources.contains(&device.driver_name);
    let cdi = device.cdi_devices.iter().map(|device| device.name.as_str());
    let mut cdi = cdi.filter(|name| of_driver || is_kind(name));
    let mut names: Vec<&str> = cdi.by_ref().take(MAX_NAMES).collect();
    Counters::add(&counters.entries_dropped, cdi.count());
    if names.is_empty() && !of_driver {
        return;
    }
    if of_driver && !device.device_name.is_empty() {
        names.push(&device.device_name);
    }
    let resource = match device.driver_name.as_str() {
        "" => GPU_DRIVER,
        driver => driver,
    };
    let mut meant: Vec<_> = names
        .iter()
        .filter_map(|name| Some((*name, device_ref(name, Origin::Dra)?)))
        .collect();
    if meant.iter().any(|(_, device)| is_uuid(device)) {
        meant.retain(|(_, device)| is_uuid(device));
    }
    let mut pushed = Vec::new();
    for (name, device) in meant {
        if !pushed.contains(&device) {
            take(resource, name, Some(device.clone()));
            pushed.push(device);
        }
    }
    if pushed.is_empty()
        && let Some(name) = names.last()
    {
        take(resource, name, None);
    }
}

fn is_uuid(device: &DeviceRef) -> bool {
    matches!(device, DeviceRef::Uuid(_) | DeviceRef::MigOf { .. })
}

/// Kind of device that ids of a resource can mean. `None` if the resource cannot be a GPU.
fn origin(resource: &str, resources: &[String]) -> Option<Origin> {
    if resources.iter().any(|name| name == resource) {
        return Some(Origin::Gpus);
    }
    let (domain, name) = resource.split_once('/')?;
    let of_domain = |entry: &String| entry.strip_suffix('/') == Some(domain);
    if !resources.iter().any(of_domain) {
        return None;
    }
    // `gpu`, `gpu.shared`, `mig-1g.10gb`; a domain may have network cards, too.
    let is_gpus = name == "gpu" || name.starts_with("gpu.") || name.starts_with("mig-");
    Some(if is_gpus {
        Origin::Gpus
    } else {
        Origin::MaybeGpus
    })
}

/// For the fuzz target: reads an answer.
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub fn fuzz(answer: &[u8]) {
    let counters = Counters::default();
    let resources = config::PodResources::default().resources;
    let counted = with_devices(answer);
    if let Ok(found) = containers(answer, &resources, &counters) {
        assert!(counted.is_ok_and(|count| count >= found.len()));
        assert!(found.len() <= MAX_CONTAINERS);
        let devices: usize = found.iter().map(|of| of.devices.len()).sum();
        assert!(devices <= MAX_DEVICES_IN_ALL);
    }
}

#[cfg(test)]
mod tests;
