//! Answers that are cheap to send and dear to take, over the interfaces themselves: what an answer
//! costs is bounded by its bytes, and what is refused costs nobody else a name.
//!
//! A test that measures the memory of the whole process runs again in one of its own.

#![expect(
    clippy::unwrap_used,
    reason = "the helpers are part of the tests: what is not as it should be fails them"
)]

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use gpuacct::config::{self, Span};
use gpuacct::core::input::{IdentityUpdate, Input, PodName};
use gpuacct::core::model::SourceId;
use gpuacct::sources::identity::{cri, pod_resources};
use gpuacct_tests::node::short_folder;
use gpuacct_tests::proto::cri as api;
use gpuacct_tests::proto::pod_resources as kubelet;
use gpuacct_tests::rerun::alone;
use gpuacct_tests::source_rig::SourceRig;
use prost::Message as _;
use tokio::runtime::Runtime;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::service::Routes;

/// Nothing here takes as long; it turns a hang into a failure.
const PATIENCE: Duration = Duration::from_secs(120);
/// What an answer of three megabytes may cost, server and client together. The messages that are in it
/// would take hundreds of megabytes.
const MOST: u64 = 48 << 20;
/// Serves gRPC whose answers are these bytes, for as long as the runtime lives.
fn serve(
    socket: &Path,
    reply: impl Fn(&str) -> Vec<u8> + Clone + Send + Sync + 'static,
) -> Runtime {
    let runtime = Runtime::new().unwrap();
    let listener = runtime
        .block_on(async { tokio::net::UnixListener::bind(socket) })
        .unwrap();
    let router = axum::Router::new().fallback(move |request: Request| {
        let message = reply(request.uri().path());
        async move {
            let length = u32::try_from(message.len()).unwrap();
            let frame = [&[0][..], &length.to_be_bytes(), &message].concat();
            Response::builder()
                .header("content-type", "application/grpc")
                .header("grpc-status", "0")
                .body(Body::from(frame))
                .unwrap()
        }
    });
    runtime.spawn(
        tonic::transport::Server::builder()
            .add_routes(Routes::from(router))
            .serve_with_incoming(UnixListenerStream::new(listener)),
    );
    runtime
}

/// An amount of memory of this process, in bytes.
fn memory(of: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(of))
        .unwrap();
    let kib = line.trim_start_matches(':').trim().trim_end_matches(" kB");
    kib.parse::<u64>().unwrap() << 10
}

/// How much memory is used while something is done, beyond what is used before it.
fn peak_of(act: impl FnOnce()) -> u64 {
    // Resets the peak.
    fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = memory("VmRSS");
    act();
    memory("VmHWM").saturating_sub(before)
}

fn kubelets(socket: &Path) -> SourceRig<PodName> {
    let config = config::PodResources {
        socket: socket.to_owned(),
        timeout: Span(PATIENCE),
        ..config::PodResources::default()
    };
    SourceRig::start(SourceId::PodResources, |io| {
        pod_resources::run(config, pod_resources::Timing::default(), io)
    })
}

fn runtimes(socket: &Path) -> SourceRig {
    let config = config::Cri {
        sockets: vec![socket.to_owned()],
        timeout: Span(PATIENCE),
        ..config::Cri::default()
    };
    let tuning = cri::Tuning {
        list_interval: Duration::from_secs(3_600),
        ..cri::Tuning::default()
    };
    SourceRig::start(SourceId::Cri, |io| cri::run(config, tuning, io))
}

/// A message in which the first field is there `count` times, each time with nothing in it.
fn empties(count: usize) -> Vec<u8> {
    [0x0a, 0].repeat(count)
}

#[test]
fn a_list_of_a_million_empty_containers_costs_no_more_than_its_bytes() {
    alone(
        module_path!(),
        "a_list_of_a_million_empty_containers_costs_no_more_than_its_bytes",
        || {
            let root = short_folder();
            let socket = root.path().join("kubelet.sock");
            // A pod whose third field, its containers, is there a million and a half times.
            let pod = [0x1a, 0].repeat(1_500_000);
            let mut answer = vec![0x0a];
            prost::encode_length_delimiter(pod.len(), &mut answer).unwrap();
            answer.extend(pod);
            let _server = serve(&socket, move |_| answer.clone());
            let peak = peak_of(|| drop(kubelets(&socket).health("up")));
            assert!(peak < MOST, "{} MiB", peak >> 20);
        },
    );
}

#[test]
fn lists_of_a_million_empty_elements_cost_no_more_than_their_bytes() {
    alone(
        module_path!(),
        "lists_of_a_million_empty_elements_cost_no_more_than_their_bytes",
        || {
            let root = short_folder();
            let socket = root.path().join("runtime.sock");
            let _server = serve(&socket, |path| match path.rsplit('/').next() {
                Some("ListContainers" | "ListPodSandbox") => empties(1_500_000),
                _ => Vec::new(),
            });
            let mut source = runtimes(&socket);
            let peak = peak_of(|| drop(source.health("up")));
            assert!(peak < MOST, "{} MiB", peak >> 20);
            // Those that are looked at have no id; the rest is not looked at.
            let looked_at = source.count(|c| &c.invalid_replies);
            assert_eq!(looked_at, 2 * 16_384);
            assert_eq!(
                source.count(|c| &c.entries_dropped),
                2 * (1_500_000 - 16_384)
            );
        },
    );
}

#[test]
fn ten_thousand_names_of_one_device_are_not_compared_with_each_other() {
    let root = short_folder();
    let socket = root.path().join("kubelet.sock");
    let name = |at| kubelet::CdiDevice {
        name: format!("nvidia.com/gpu={at}"),
    };
    let pod = kubelet::PodResources {
        name: "claimed".to_owned(),
        namespace: "ml".to_owned(),
        containers: vec![kubelet::ContainerResources {
            name: "trainer".to_owned(),
            devices: vec![],
            dynamic_resources: vec![kubelet::DynamicResource {
                claim_name: "gpus".to_owned(),
                claim_namespace: "ml".to_owned(),
                claim_resources: vec![kubelet::ClaimResource {
                    cdi_devices: (0..10_000).map(name).collect(),
                    driver_name: "gpu.nvidia.com".to_owned(),
                    pool_name: "node-1".to_owned(),
                    device_name: String::new(),
                }],
            }],
        }],
    };
    let answer = kubelet::ListPodResourcesResponse {
        pod_resources: vec![pod],
    };
    let answer = answer.encode_to_vec();
    let _server = serve(&socket, move |_| answer.clone());
    let mut source = kubelets(&socket);
    let devices = source.until("answer", |input| match input {
        Input::Allocations(answer) => Some(answer.containers[0].devices.len()),
        _ => None,
    });
    assert_eq!(devices, 64);
    assert_eq!(source.count(|c| &c.entries_dropped), 10_000 - 64);
}

#[test]
fn an_answer_that_is_too_large_says_how_large_it_is_and_may_be() {
    let root = short_folder();
    let socket = root.path().join("kubelet.sock");
    let _server = serve(&socket, |_| empties(5 << 20));
    let mut source = kubelets(&socket);
    let (class, reason) = source.down();
    assert_eq!(class, "too_large");
    assert!(
        reason.contains("found 10485760 bytes") && reason.contains("the limit is"),
        "{reason}"
    );
    assert!(source.count(|c| &c.answers_too_large) >= 1);
}

#[test]
fn lists_that_are_too_large_cost_no_lookup() {
    let root = short_folder();
    let socket = root.path().join("runtime.sock");
    let id = "a".repeat(64);
    let container = api::Container {
        id: id.clone(),
        metadata: Some(api::ContainerMetadata {
            name: "trainer".to_owned(),
            attempt: 0,
        }),
        image_ref: "app:1".to_owned(),
        ..api::Container::default()
    };
    let list = api::ListContainersResponse {
        containers: vec![container],
    };
    let list = list.encode_to_vec();
    let asked = Arc::new(AtomicU64::new(0));
    let _server = serve(&socket, move |path| match path.rsplit('/').next() {
        // The list of everything comes first.
        Some("ListContainers") if asked.fetch_add(1, Ordering::SeqCst) == 0 => empties(5 << 20),
        Some("ListContainers") => list.clone(),
        _ => Vec::new(),
    });
    let mut source = runtimes(&socket);
    let (class, reason) = source.down();
    assert_eq!(class, "too_large", "{reason}");
    source.look_up(&id);
    let name = source.until("answer", |input| match input {
        Input::Identity(IdentityUpdate::Found(found)) => Some(found.name.clone()),
        _ => None,
    });
    assert_eq!(name.as_deref(), Some("trainer"));
    assert_eq!(source.count(|c| &c.answers_too_large), 1);
    assert_eq!(source.count(|c| &c.disconnects), 0);
}
