//! The PodResources source against kubelets of every kind, served over the published interface: old
//! and new, late, hanging, something else; and the built agent beside one of them, with a real
//! container in a pod's cgroup that was given a GPU and never uses it.

#![expect(
    clippy::unwrap_used,
    reason = "the helpers are part of the tests: what is not as it should be fails them"
)]

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use gpuacct::config::{self, Span};
use gpuacct::core::input::{Allocations, DeviceRef, Input, PodName, SourceHealth};
use gpuacct::core::model::{GpuUuid, SourceId, SourceState};
use gpuacct::core::snapshot::AllocationState;
use gpuacct::sources::identity::pod_resources::{self, Timing};
use gpuacct_tests::agent::{self, Agent};
use gpuacct_tests::docker::{self, Container, ContainerSpec, Dockerd};
use gpuacct_tests::node::{Node, pod_uid, short_folder};
use gpuacct_tests::pod_resources::{Get, Kubelet, pod};
use gpuacct_tests::proto::pod_resources as api;
use gpuacct_tests::requirement::require;
use gpuacct_tests::source_rig::SourceRig;
use sim_nvml::GpuSpec;
use tokio::runtime::Runtime;

const GPU: &str = "GPU-7c8e1f02-9a4b-4d5e-8f60-112233445566";
/// Nothing here takes as long; it turns a hang into a failure.
const PATIENCE: Duration = Duration::from_secs(60);
const ALLOCATED: &str = "gpuacct_container_gpu_allocated_seconds_total";

/// What these tests set of the source.
struct Config {
    socket: PathBuf,
    timeout: Duration,
    interval: Duration,
    retry_max: Duration,
    look_interval: Duration,
}

fn config(socket: &Path) -> Config {
    Config {
        socket: socket.to_owned(),
        timeout: PATIENCE,
        interval: Duration::from_millis(100),
        retry_max: Duration::from_secs(1),
        look_interval: Duration::from_millis(50),
    }
}

type Source = SourceRig<PodName>;

fn start(config: Config) -> Source {
    let section = config::PodResources {
        socket: config.socket,
        timeout: Span(config.timeout),
        interval: Span(config.interval),
        ..config::PodResources::default()
    };
    let pace = Timing {
        retry_max: config.retry_max,
        look_interval: config.look_interval,
    };
    Source::start(SourceId::PodResources, |io| {
        pod_resources::run(section, pace, io)
    })
}

/// The next answer about everything, or about one pod, that `is` the one.
fn next_answer(source: &mut Source, what: &str, is: impl Fn(&Allocations) -> bool) -> Allocations {
    source.until(what, |input| match input {
        Input::Allocations(answer) if is(answer) => Some(answer.clone()),
        _ => None,
    })
}

fn ask_for(source: &Source, pod: &str) {
    source.ask(PodName {
        namespace: "ml".into(),
        pod: pod.into(),
    });
}

/// Who was given what: pod, container, resource, id, meaning.
fn told(answer: &Allocations) -> Vec<(String, String, Option<DeviceRef>)> {
    let containers = answer.containers.iter();
    containers
        .flat_map(|of| {
            of.devices.iter().map(|device| {
                let whose = format!("{}/{}/{}", of.namespace, of.pod, of.container);
                let what = format!("{} {}", device.resource, device.id);
                (whose, what, device.device.clone())
            })
        })
        .collect()
}

fn row(pod: &str, device: &str, means: Option<DeviceRef>) -> (String, String, Option<DeviceRef>) {
    (format!("ml/{pod}/trainer"), device.to_owned(), means)
}

#[test]
fn an_old_kubelet_that_only_lists_is_asked_for_lists_only() {
    let root = short_folder();
    let socket = root.path().join("kubelet.sock");
    let shared = format!("{GPU}::3");
    let kubelet = Kubelet::new(
        Get::Unimplemented,
        vec![
            pod("shared", "nvidia.com/gpu.shared", &[&shared]),
            pod("indexed", "nvidia.com/gpu", &["1", "card-7"]),
            pod("network", "intel.com/sriov", &["0000:3b:02.1"]),
        ],
    );
    let _server = kubelet.serve(&socket);
    let mut source = start(Config {
        // Only what is asked for comes in time.
        interval: Duration::from_secs(3600),
        ..config(&socket)
    });
    let answer = next_answer(&mut source, "list", |answer| answer.pod.is_none());
    assert_eq!(
        told(&answer),
        [
            row(
                "shared",
                &format!("nvidia.com/gpu.shared {shared}"),
                Some(DeviceRef::Uuid(GpuUuid::from(GPU)))
            ),
            row("indexed", "nvidia.com/gpu 1", Some(DeviceRef::Index(1))),
            row("indexed", "nvidia.com/gpu card-7", None),
        ]
    );
    let health = source.health("up");
    assert_eq!(*health.place, *socket.to_string_lossy());

    for lists in 2..4 {
        kubelet.set(vec![pod("new", "nvidia.com/gpu", &[GPU])]);
        ask_for(&source, "new");
        let answer = next_answer(&mut source, "list", |answer| answer.pod.is_none());
        assert_eq!(told(&answer)[0].0, "ml/new/trainer");
        assert_eq!(kubelet.lists.load(Ordering::SeqCst), lists);
    }
    let gets = kubelet.gets.load(Ordering::SeqCst);
    assert_eq!(gets, 1, "that it is not offered is remembered");
    assert_eq!(source.count(|c| &c.disconnects), 0);
    assert_eq!(source.count(|c| &c.calls), 4);
    source.stop();
}

#[test]
fn a_newer_kubelet_is_asked_for_the_new_pod_alone() {
    let root = short_folder();
    let socket = root.path().join("kubelet.sock");
    let cdi = |name: &str| api::CdiDevice {
        name: name.to_owned(),
    };
    let claimed = api::PodResources {
        name: "claimed".to_owned(),
        namespace: "ml".to_owned(),
        containers: vec![api::ContainerResources {
            name: "trainer".to_owned(),
            devices: vec![],
            dynamic_resources: vec![api::DynamicResource {
                claim_name: "one-gpu".to_owned(),
                claim_namespace: "ml".to_owned(),
                claim_resources: vec![
                    api::ClaimResource {
                        cdi_devices: vec![cdi("k8s.gpu.nvidia.com/device=gpu-1")],
                        driver_name: "gpu.nvidia.com".to_owned(),
                        pool_name: "node-1".to_owned(),
                        device_name: "gpu-1".to_owned(),
                    },
                    api::ClaimResource {
                        cdi_devices: vec![cdi(&format!("nvidia.com/gpu={GPU}"))],
                        driver_name: "gpu.nvidia.com".to_owned(),
                        pool_name: "node-1".to_owned(),
                        device_name: "gpu-0".to_owned(),
                    },
                ],
            }],
        }],
    };
    let kubelet = Kubelet::new(Get::Offered, vec![]);
    let _server = kubelet.serve(&socket);
    let mut source = start(Config {
        interval: Duration::from_secs(3600),
        ..config(&socket)
    });
    let empty = next_answer(&mut source, "list", |answer| answer.pod.is_none());
    assert_eq!(told(&empty), []);
    source.health("up");
    kubelet.set(vec![pod("other", "nvidia.com/gpu", &["0"]), claimed]);
    ask_for(&source, "claimed");
    let answer = next_answer(&mut source, "answer about one pod", |answer| {
        answer.pod.is_some()
    });
    assert_eq!(answer.pod.as_ref().map(|of| &*of.pod), Some("claimed"));
    assert!(answer.at >= empty.at);
    assert_eq!(
        told(&answer),
        [
            row(
                "claimed",
                "gpu.nvidia.com k8s.gpu.nvidia.com/device=gpu-1",
                Some(DeviceRef::Minor(1))
            ),
            row(
                "claimed",
                &format!("gpu.nvidia.com nvidia.com/gpu={GPU}"),
                Some(DeviceRef::Uuid(GpuUuid::from(GPU)))
            ),
        ]
    );
    // One that it does not know, or not yet, may be in its list.
    ask_for(&source, "unknown");
    next_answer(&mut source, "list", |answer| answer.pod.is_none());
    let of_each = [&kubelet.lists, &kubelet.gets].map(|count| count.load(Ordering::SeqCst));
    assert_eq!(of_each, [2, 2]);
    source.stop();

    // The feature gate is off: no code says so, and the list has it.
    let socket = root.path().join("disabled.sock");
    let kubelet = Kubelet::new(Get::Disabled, vec![pod("p", "nvidia.com/gpu", &["0"])]);
    let _server = kubelet.serve(&socket);
    let mut source = start(Config {
        interval: Duration::from_secs(3600),
        ..config(&socket)
    });
    source.health("up");
    ask_for(&source, "p");
    let answer = next_answer(&mut source, "list", |answer| answer.pod.is_none());
    assert_eq!(told(&answer).len(), 1);
    source.stop();
}

#[test]
fn a_kubelet_that_comes_late_goes_and_hangs_is_followed() {
    let root = short_folder();
    let socket = root.path().join("kubelet.sock");
    let mut source = start(Config {
        timeout: Duration::from_millis(500),
        ..config(&socket)
    });
    source.health("absent");

    let kubelet = Kubelet::new(Get::Offered, vec![pod("p", "nvidia.com/gpu", &["0"])]);
    let server = kubelet.serve(&socket);
    source.health("up");
    kubelet.set(vec![pod("q", "nvidia.com/gpu", &["0"])]);
    next_answer(&mut source, "q", |answer| {
        told(answer)
            .iter()
            .any(|(whose, ..)| whose == "ml/q/trainer")
    });

    // It hangs, and comes to itself.
    kubelet.hangs.store(true, Ordering::SeqCst);
    let (class, reason) = source.down();
    assert_eq!(class, "timeout");
    assert_eq!(reason, "list: no answer within 500ms");
    kubelet.hangs.store(false, Ordering::SeqCst);
    source.health("up");

    // It ends in the middle of a session, and its socket goes.
    server.shutdown_timeout(Duration::from_secs(1));
    fs::remove_file(&socket).unwrap();
    let class = source.until("loss", |input| match input {
        Input::Health(SourceHealth {
            state: SourceState::Down { class, .. },
            ..
        }) => Some(class.to_string()).filter(|class| class != "timeout"),
        _ => None,
    });
    assert!(
        matches!(&*class, "closed" | "vanished" | "refused"),
        "{class}"
    );
    let _server = kubelet.serve(&socket);
    source.health("up");
    assert!(source.count(|c| &c.timeouts) >= 1);
    assert!(source.count(|c| &c.disconnects) >= 2);
    source.stop();
}

#[test]
fn what_is_no_kubelet_is_an_error_with_words_or_as_good_as_absent() {
    let root = short_folder();
    for (name, reply) in [
        (
            "http1",
            b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n".as_slice(),
        ),
        ("noise", b"\x00\xff\x00\xff\x00\xff\x00\xff\x00\xff"),
    ] {
        let socket = root.path().join(name);
        let listener = UnixListener::bind(&socket).unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                std::thread::spawn(move || {
                    let mut stream = stream;
                    // The client may hang up whenever it likes.
                    let _ = stream.write_all(reply);
                    while stream.read(&mut [0; 4096]).is_ok_and(|n| n > 0) {}
                });
            }
        });
        let mut source = start(config(&socket));
        let (class, reason) = source.down();
        assert_eq!(class, "protocol", "{name}: {reason}");
        assert!(reason.starts_with("list: "), "{name}: {reason}");
        source.stop();
    }
    let mut source = start(config(root.path()));
    let (class, reason) = source.down();
    assert_eq!(class, "not_a_socket", "{reason}");
    source.stop();

    // gRPC, without this interface, as of a kubelet before 1.20.
    let socket = root.path().join("other.sock");
    let runtime = Runtime::new().unwrap();
    let listener = runtime
        .block_on(async { tokio::net::UnixListener::bind(&socket) })
        .unwrap();
    let incoming = tokio_stream::wrappers::UnixListenerStream::new(listener);
    let routes = tonic::service::Routes::default();
    runtime.spawn(
        tonic::transport::Server::builder()
            .add_routes(routes)
            .serve_with_incoming(incoming),
    );
    let mut source = start(config(&socket));
    let health = source.until("a state", |input| match input {
        Input::Health(health) => Some(health.clone()),
        _ => None,
    });
    assert_eq!(health.state, SourceState::Absent);
    source.stop();
}

/// A node with two GPUs that nobody uses, a container of a pod that sleeps, and a kubelet. Dropped
/// from top to bottom.
struct Rig {
    docker: Dockerd,
    container: Container,
    kubelet: Kubelet,
    _server: Runtime,
    node: Node,
}

impl Rig {
    fn start(get: Get) -> Self {
        let node = Node::new(2).unwrap();
        let mut docker = node.dockerd().unwrap();
        let spec = ContainerSpec::named("k8s_trainer_train-0").in_pod(
            "ml",
            "train-0",
            pod_uid(),
            "trainer",
        );
        let container = docker.run(&spec).unwrap();
        let kubelet = Kubelet::new(get, vec![]);
        let server = kubelet.serve(&node.dir().join("kubelet.sock"));
        Self {
            docker,
            container,
            kubelet,
            _server: server,
            node,
        }
    }

    fn agent(&self) -> Agent {
        let mut config = self.node.config();
        config.publish.grace = Span(Duration::from_secs(2));
        config.docker.sockets = vec![self.docker.socket()];
        config.cri.enabled = false;
        config.pod_resources.socket = self.node.dir().join("kubelet.sock");
        config.pod_resources.interval = Span(Duration::from_secs(1));
        self.node.agent("agent", config).unwrap()
    }
}

/// The seconds of the container's series of allocated time, by GPU.
fn allocated(agent: &Agent, id: &str) -> Vec<(String, f64)> {
    let lines = agent.metric_lines(ALLOCATED).unwrap();
    let of_container = lines.iter().filter(|line| line.contains(id));
    of_container
        .map(|line| {
            let (labels, value) = line.rsplit_once(' ').expect("a line has a value");
            let uid = pod_uid();
            let named =
                format!("namespace=\"ml\",pod=\"train-0\",container=\"trainer\",pod_uid=\"{uid}\"");
            assert!(labels.contains(&named), "{line}");
            let (_, gpu) = labels.rsplit_once("gpu_uuid=\"").expect("a GPU");
            let gpu = gpu.trim_end_matches("\"}").to_owned();
            (gpu, value.parse().expect("a number"))
        })
        .collect()
}

#[test]
fn a_container_that_was_given_a_gpu_pays_for_having_it_until_it_ends() {
    let Some(()) = require("docker", docker::available()) else {
        return;
    };
    if require("agent", agent::binary()).is_none() {
        return;
    }
    let rig = Rig::start(Get::Unimplemented);
    let gpus: Vec<String> = (0..2).map(|at| GpuSpec::a100(at).uuid).collect();
    let shared = format!("{}::2", gpus[1]);
    rig.kubelet.set(vec![
        pod("train-0", "nvidia.com/gpu.shared", &[&shared]),
        // It is over, and this kubelet lists it for ever.
        pod("done", "nvidia.com/gpu", &["0"]),
        pod("strange", "nvidia.com/gpu", &["card-7"]),
    ]);
    let mut agent = rig.agent();
    let id = rig.container.id.clone();
    agent
        .wait_for("allocated time", |agent| {
            Ok(allocated(agent, &id)
                .iter()
                .any(|(_, seconds)| *seconds > 0.0))
        })
        .unwrap();
    let series = allocated(&agent, &id);
    assert_eq!(series.len(), 1, "{series:?}");
    assert_eq!(series[0].0, gpus[1]);
    let status = agent.status().unwrap();
    assert_eq!(
        status.snapshot.accounts.len(),
        1,
        "nobody else has an account"
    );
    let amounts = status.snapshot.accounts[0].amounts;
    assert!(
        amounts.busy.is_zero() && !amounts.allocated.is_zero(),
        "{amounts:?}"
    );
    let states: Vec<_> = status
        .snapshot
        .allocations
        .iter()
        .map(|of| (&*of.pod, of.state))
        .collect();
    let expect = [
        ("done", AllocationState::NoContainer),
        ("strange", AllocationState::NoContainer),
        ("train-0", AllocationState::Counting),
    ];
    assert_eq!(states, expect);
    let devices = agent.metric_lines("gpuacct_allocated_devices").unwrap();
    for (state, count) in [("matched", 2), ("unlisted", 0), ("unknown", 1)] {
        let line = format!("gpuacct_allocated_devices{{state=\"{state}\"}} {count}");
        assert!(devices.contains(&line), "{line} in {devices:#?}");
    }
    let explained = agent.gpuacct(&["explain", "ml/train-0"]).unwrap();
    let explained = String::from_utf8_lossy(&explained.stdout).into_owned();
    let words = explained.split_whitespace().collect::<Vec<_>>().join(" ");
    let given = format!(
        "given by the kubelet: nvidia.com/gpu.shared {shared}: {}",
        gpus[1]
    );
    assert!(words.contains(&given), "{explained}");
    let check = agent.gpuacct(&["check"]).unwrap();
    let check = String::from_utf8_lossy(&check.stdout).into_owned();
    let words = check.split_whitespace().collect::<Vec<_>>().join(" ");
    let found = "kubelet.sock: lists its pods, 3 containers with devices";
    assert!(words.contains(found), "{check}");

    // The kubelet forgets the pod; its container lives, and goes on paying.
    rig.kubelet.set(vec![]);
    agent
        .wait_for_status("the list without it", |status| {
            let given = &status.snapshot.allocations;
            given.len() == 1 && given[0].state == AllocationState::Forgotten
        })
        .unwrap();
    let before = allocated(&agent, &id)[0].1;
    agent
        .wait_for("more allocated time", |agent| {
            Ok(allocated(agent, &id)[0].1 > before + 1.0)
        })
        .unwrap();

    // The container ends; the kubelet knows the pod again, and lists it though it is over.
    rig.docker.remove(&rig.container).unwrap();
    rig.kubelet
        .set(vec![pod("train-0", "nvidia.com/gpu.shared", &[&shared])]);
    agent
        .wait_for_status("its end", |status| {
            let given = &status.snapshot.allocations;
            status.snapshot.accounts.iter().all(|account| account.ended)
                && given.iter().any(|of| of.state == AllocationState::Ended)
        })
        .unwrap();
    let end = agent.status().unwrap().snapshot;
    let later = agent
        .wait_for_status("three more commits", |status| {
            status.snapshot.sequence >= end.sequence + 3
        })
        .unwrap();
    assert_eq!(
        later.snapshot.accounts[0].amounts.allocated, end.accounts[0].amounts.allocated,
        "a listed pod without a container pays nothing"
    );
    assert!(agent.stop().unwrap().success());
}
