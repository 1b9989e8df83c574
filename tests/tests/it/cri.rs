//! The CRI source against a real containerd: there from the start, late, stopped, frozen; against
//! what only claims to be a runtime; and against answers of runtimes that cannot be had here, served
//! over the published interface.

use std::collections::{HashMap, HashSet};
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use gpuacct::config::{self, Span};
use gpuacct::core::input::{ContainerIdentity, IdentityUpdate, Input, SourceHealth};
use gpuacct::core::model::{SourceId, SourceState};
use gpuacct::sources::identity::cri::{self, Timing, Tuning};
use gpuacct_tests::containerd::{Containerd, IMAGE, available};
use gpuacct_tests::docker;
use gpuacct_tests::node::short_folder;
use gpuacct_tests::proto::cri as api;
use gpuacct_tests::proto::cri::runtime_service_client::RuntimeServiceClient;
use gpuacct_tests::proto::cri::runtime_service_server::{RuntimeService, RuntimeServiceServer};
use gpuacct_tests::requirement::require;
use gpuacct_tests::source_rig::SourceRig;
use tokio::runtime::Runtime;
use tokio::sync::{Mutex, mpsc};
use tonic::transport::Endpoint;
use tonic::{Request, Response, Status};

const UID: &str = "9f6c1b1e-2d3f-4a5b-8c7d-0123456789ab";
/// Nothing here takes as long; it turns a hang into a failure.
const PATIENCE: Duration = Duration::from_secs(90);

/// What these tests set of the source.
struct Config {
    sockets: Vec<PathBuf>,
    events: bool,
    timeout: Duration,
    ping_interval: Duration,
    list_interval: Duration,
    relist_interval: Duration,
    retry_max: Duration,
    look_interval: Duration,
}

fn config(sockets: &[&Path]) -> Config {
    Config {
        sockets: sockets.iter().map(|path| path.to_path_buf()).collect(),
        events: true,
        timeout: Duration::from_secs(5),
        ping_interval: Duration::from_millis(200),
        list_interval: Duration::from_millis(200),
        relist_interval: Duration::from_secs(3600),
        retry_max: Duration::from_secs(1),
        look_interval: Duration::from_millis(50),
    }
}

fn following(sockets: &[&Path]) -> SourceRig {
    start(config(sockets))
}

fn start(config: Config) -> SourceRig {
    let section = config::Cri {
        sockets: config.sockets,
        events: config.events,
        timeout: Span(config.timeout),
        ..config::Cri::default()
    };
    let tuning = Tuning {
        ping_interval: config.ping_interval,
        list_interval: config.list_interval,
        relist_interval: config.relist_interval,
        pace: Timing {
            retry_max: config.retry_max,
            look_interval: config.look_interval,
        },
    };
    SourceRig::start(SourceId::Cri, |io| cri::run(section, tuning, io))
}

fn check(identity: &ContainerIdentity, container: &str) {
    let kubernetes = identity.kubernetes.as_ref().expect("the sandbox's names");
    let names = [
        &*kubernetes.namespace,
        &*kubernetes.pod,
        kubernetes.pod_uid.as_str(),
        &*kubernetes.container,
    ];
    assert_eq!(names, ["ml", "train-0", UID, container]);
    // Only the sandbox has the pod's own labels.
    assert_eq!(identity.labels.get("team").map(|t| &**t), Some("vision"));
    let image = identity.image.as_deref();
    assert_eq!(
        image,
        Some(if container == "(pod)" {
            "(none)"
        } else {
            IMAGE
        })
    );
}

#[test]
fn a_real_containerd_names_containers_and_sandboxes_listed_and_looked_up() {
    let Some(()) = require("containerd", available()) else {
        return;
    };
    let root = short_folder();
    let mut containerd = Containerd::start(root.path().join("c")).unwrap();
    let labels = [("team", "vision")];
    let pod = containerd.run_pod("ml", "train-0", UID, &labels).unwrap();
    let early = containerd.run_container(&pod, "trainer").unwrap();

    let socket = containerd.socket();
    let mut source = following(&[&socket]);
    check(&source.found(&pod.sandbox), "(pod)");
    check(&source.found(&early), "trainer");
    assert_eq!(*source.health("up").place, *socket.to_string_lossy());

    // Started later: this containerd has no events, so the next list has it.
    let late = containerd.run_container(&pod, "sidecar").unwrap();
    check(&source.found(&late), "sidecar");
    source.look_up(&late);
    check(&source.found(&late), "sidecar");
    source.look_up(&pod.sandbox);
    check(&source.found(&pod.sandbox), "(pod)");

    containerd.remove_container(&late).unwrap();
    source.removed(&late);

    // The beginning of an id is none, nor is another one that begins so.
    source.look_up(&early[..12]);
    let similar = format!("{}{}", &early[..12], "0".repeat(52));
    source.look_up(&similar);
    assert_eq!(source.not_found(&similar), "not_found");
    assert_eq!(source.count(|c| &c.lookups_refused), 1);
    assert!(source.count(|c| &c.lookups_not_found) > 0);
    assert!(source.count(|c| &c.lookups_found) > 0);
    assert_eq!(source.count(|c| &c.invalid_replies), 0);
    assert_eq!(source.count(|c| &c.kubernetes_refused), 0);

    // Far from every list and every ping, a lookup alone is answered.
    source.stop();
    let mut source = start(Config {
        list_interval: Duration::from_secs(3600),
        ping_interval: Duration::from_secs(3600),
        ..config(&[&socket])
    });
    source.health("up");
    let after = containerd.run_container(&pod, "after").unwrap();
    source.look_up(&after);
    check(&source.found(&after), "after");
    source.stop();
}

#[test]
fn a_containerd_that_comes_late_stops_restarts_and_hangs_is_followed() {
    let Some(()) = require("containerd", available()) else {
        return;
    };
    let root = short_folder();
    let socket = root.path().join("c/c.sock");
    let mut source = following(&[&socket]);
    source.health("absent");

    let mut containerd = Containerd::start(root.path().join("c")).unwrap();
    source.health("up");
    let labels = [("team", "vision")];
    let pod = containerd.run_pod("ml", "train-0", UID, &labels).unwrap();
    let trainer = containerd.run_container(&pod, "trainer").unwrap();
    check(&source.found(&trainer), "trainer");

    containerd.stop().unwrap();
    let (class, reason) = source.down();
    let expected = ["vanished", "refused", "closed"];
    assert!(expected.contains(&&*class), "{class}: {reason}");
    containerd.start_again().unwrap();
    source.health("up");
    source.look_up(&trainer);
    check(&source.found(&trainer), "trainer");

    containerd.pause().unwrap();
    let reason = source.until("time-out", |input| match input {
        Input::Health(SourceHealth {
            state: SourceState::Down { class, reason, .. },
            ..
        }) => (&**class == "timeout").then(|| reason.to_string()),
        _ => None,
    });
    assert!(reason.ends_with("no answer within 5s"), "{reason}");
    containerd.resume().unwrap();
    source.health("up");
    source.stop();
}

/// A program on a socket that is no runtime.
fn impostor(socket: &Path, reply: &'static [u8]) {
    let listener = UnixListener::bind(socket).expect("a socket");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            std::thread::spawn(move || {
                // The client may hang up whenever it likes.
                let _ = stream.write_all(reply);
                while stream.read(&mut [0; 4096]).is_ok_and(|n| n > 0) {}
            });
        }
    });
}

#[test]
fn a_wrong_protocol_is_an_error_with_words() {
    let http1 = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n".as_slice();
    let noise = b"\x00\xff\x00\xff\x00\xff\x00\xff\x00\xff".as_slice();
    let short = Duration::from_millis(500);
    let silence = "version: no answer within 500ms";
    for (name, reply, timeout, class, words) in [
        ("http1", http1, PATIENCE, "protocol", "version: "),
        ("noise", noise, PATIENCE, "protocol", "version: "),
        ("silence", &[], short, "timeout", silence),
    ] {
        let root = short_folder();
        let socket = root.path().join(name);
        impostor(&socket, reply);
        let mut source = start(Config {
            timeout,
            ..config(&[&socket])
        });
        let (found, reason) = source.down();
        assert_eq!(found, class, "{name}: {reason}");
        assert!(reason.starts_with(words), "{name}: {reason}");
        source.stop();
    }
    // One that hangs up at once may do so before, while or after it is spoken to.
    let root = short_folder();
    let socket = root.path().join("rude");
    let listener = UnixListener::bind(&socket).expect("a socket");
    std::thread::spawn(move || for _ in listener.incoming() {});
    let mut source = following(&[&socket]);
    let (class, reason) = source.down();
    assert_eq!(class, "protocol", "{reason}");
    assert!(reason.contains("hung up before any answer"), "{reason}");
    source.stop();
    let mut source = following(&[root.path()]);
    let (class, reason) = source.down();
    assert_eq!(class, "not_a_socket", "{reason}");
    source.stop();
}

type Events =
    Pin<Box<dyn tokio_stream::Stream<Item = Result<api::ContainerEventResponse, Status>> + Send>>;

/// A runtime that answers what it was told to.
#[derive(Clone, Default)]
struct Canned {
    containers: Arc<Mutex<Vec<api::Container>>>,
    sandboxes: Vec<api::PodSandbox>,
    statuses: HashMap<String, api::ContainerStatus>,
    /// Absent: it has no events.
    events: Option<tokio::sync::broadcast::Sender<api::ContainerEventResponse>>,
    /// Whether it says that it has none as any error, instead of `unimplemented`.
    is_vague: bool,
    /// How often it was asked for events.
    subscriptions: Arc<AtomicU64>,
    /// How often it was asked for containers.
    lists: Arc<AtomicU64>,
}

fn no<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("not here"))
}

#[tonic::async_trait]
impl RuntimeService for Canned {
    type GetContainerEventsStream = Events;

    async fn version(
        &self,
        _: Request<api::VersionRequest>,
    ) -> Result<Response<api::VersionResponse>, Status> {
        Ok(Response::new(api::VersionResponse::default()))
    }

    async fn list_containers(
        &self,
        request: Request<api::ListContainersRequest>,
    ) -> Result<Response<api::ListContainersResponse>, Status> {
        self.lists.fetch_add(1, Ordering::Relaxed);
        let wanted = request.into_inner().filter.unwrap_or_default().id;
        // By the beginning of an id, as runtimes do.
        let all = self.containers.lock().await;
        let containers = all.iter().filter(|c| c.id.starts_with(&wanted));
        Ok(Response::new(api::ListContainersResponse {
            containers: containers.cloned().collect(),
        }))
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<api::ListPodSandboxRequest>,
    ) -> Result<Response<api::ListPodSandboxResponse>, Status> {
        let wanted = request.into_inner().filter.unwrap_or_default().id;
        let items = self.sandboxes.iter().filter(|s| s.id.starts_with(&wanted));
        Ok(Response::new(api::ListPodSandboxResponse {
            items: items.cloned().collect(),
        }))
    }

    async fn container_status(
        &self,
        request: Request<api::ContainerStatusRequest>,
    ) -> Result<Response<api::ContainerStatusResponse>, Status> {
        let id = request.into_inner().container_id;
        match self.statuses.get(&id) {
            Some(status) => Ok(Response::new(api::ContainerStatusResponse {
                status: Some(status.clone()),
                info: HashMap::new(),
            })),
            None => Err(Status::not_found(id)),
        }
    }

    async fn get_container_events(
        &self,
        _: Request<api::GetEventsRequest>,
    ) -> Result<Response<Events>, Status> {
        self.subscriptions.fetch_add(1, Ordering::Relaxed);
        let Some(events) = &self.events else {
            return Err(if self.is_vague {
                Status::unknown("not implemented")
            } else {
                Status::unimplemented("no events")
            });
        };
        let mut events = events.subscribe();
        let (pass, taken) = mpsc::channel(8);
        tokio::spawn(async move {
            while let Ok(event) = events.recv().await {
                if pass.send(Ok(event)).await.is_err() {
                    return;
                }
            }
        });
        let stream = tokio_stream::wrappers::ReceiverStream::new(taken);
        Ok(Response::new(Box::pin(stream)))
    }

    async fn run_pod_sandbox(
        &self,
        _: Request<api::RunPodSandboxRequest>,
    ) -> Result<Response<api::RunPodSandboxResponse>, Status> {
        no()
    }

    async fn stop_pod_sandbox(
        &self,
        _: Request<api::StopPodSandboxRequest>,
    ) -> Result<Response<api::StopPodSandboxResponse>, Status> {
        no()
    }

    async fn remove_pod_sandbox(
        &self,
        _: Request<api::RemovePodSandboxRequest>,
    ) -> Result<Response<api::RemovePodSandboxResponse>, Status> {
        no()
    }

    async fn create_container(
        &self,
        _: Request<api::CreateContainerRequest>,
    ) -> Result<Response<api::CreateContainerResponse>, Status> {
        no()
    }

    async fn start_container(
        &self,
        _: Request<api::StartContainerRequest>,
    ) -> Result<Response<api::StartContainerResponse>, Status> {
        no()
    }

    async fn remove_container(
        &self,
        _: Request<api::RemoveContainerRequest>,
    ) -> Result<Response<api::RemoveContainerResponse>, Status> {
        no()
    }
}

/// Serves it on a socket, for as long as the runtime returned lives.
fn serve(canned: Canned, socket: &Path) -> Runtime {
    let runtime = Runtime::new().expect("a runtime");
    let listener = runtime
        .block_on(async { tokio::net::UnixListener::bind(socket) })
        .expect("a socket");
    let incoming = tokio_stream::wrappers::UnixListenerStream::new(listener);
    runtime.spawn(
        tonic::transport::Server::builder()
            .add_service(RuntimeServiceServer::new(canned))
            .serve_with_incoming(incoming),
    );
    runtime
}

fn id(digit: char) -> String {
    String::from(digit).repeat(64)
}

fn metadata() -> api::PodSandboxMetadata {
    api::PodSandboxMetadata {
        name: "train-0".into(),
        uid: UID.into(),
        namespace: "ml".into(),
        attempt: 0,
    }
}

fn pod_labels() -> HashMap<String, String> {
    HashMap::from([("team".to_owned(), "vision".to_owned())])
}

fn sandbox(digit: char) -> api::PodSandbox {
    api::PodSandbox {
        id: id(digit),
        metadata: Some(metadata()),
        labels: pod_labels(),
        ..api::PodSandbox::default()
    }
}

fn container(digit: char, image: api::ImageSpec, image_ref: &str) -> api::Container {
    api::Container {
        id: id(digit),
        pod_sandbox_id: id('0'),
        metadata: Some(api::ContainerMetadata {
            name: "trainer".into(),
            attempt: 0,
        }),
        image: Some(image),
        image_ref: image_ref.to_owned(),
        ..api::Container::default()
    }
}

#[test]
fn an_image_is_called_what_its_user_wrote_as_far_as_any_answer_knows() {
    let digest = format!("sha256:{}", id('d'));
    let spec = |image: &str, written: &str| api::ImageSpec {
        image: image.to_owned(),
        user_specified_image: written.to_owned(),
        ..api::ImageSpec::default()
    };
    let pinned = format!("registry.local/cuda@{digest}");
    let mut annotated = container('4', spec(&id('d'), ""), &digest);
    annotated.annotations = HashMap::from([(
        "io.kubernetes.cri-o.ImageName".to_owned(),
        "registry.local/cuda:12".to_owned(),
    )]);
    let status = api::ContainerStatus {
        image_ref: digest.clone(),
        image: Some(spec("cuda:12", "")),
        ..api::ContainerStatus::default()
    };
    let canned = Canned {
        containers: Arc::new(Mutex::new(vec![
            // CRI-O and newer kubelets.
            container('1', spec(&digest, "cuda:12"), &digest),
            container('2', spec("cuda:12", ""), &digest),
            container('3', spec(&digest, ""), &pinned),
            annotated,
            // Only its status knows.
            container('5', spec(&digest, ""), &digest),
            // Nobody knows more than the digest.
            container('6', spec(&digest, ""), &digest),
        ])),
        sandboxes: vec![sandbox('0')],
        statuses: HashMap::from([
            (
                id('5'),
                api::ContainerStatus {
                    id: id('5'),
                    metadata: Some(api::ContainerMetadata {
                        name: "trainer".into(),
                        attempt: 0,
                    }),
                    ..status.clone()
                },
            ),
            // An answer about another container is none.
            (
                id('6'),
                api::ContainerStatus {
                    id: id('5'),
                    ..status
                },
            ),
        ]),
        ..Canned::default()
    };
    let root = short_folder();
    let socket = root.path().join("crio.sock");
    let _server = serve(canned, &socket);
    let mut source = following(&[&socket]);
    for (digit, image) in [
        ('1', "cuda:12"),
        ('2', "cuda:12"),
        ('3', &*pinned),
        ('4', "registry.local/cuda:12"),
        ('5', "cuda:12"),
        ('6', &*digest),
    ] {
        source.look_up(&id(digit));
        let identity = source.found(&id(digit));
        assert_eq!(identity.image.as_deref(), Some(image), "{digit}");
        let kubernetes = identity.kubernetes.expect("the sandbox's names");
        assert_eq!(&*kubernetes.container, "trainer", "{digit}");
    }
    source.stop();
}

#[test]
fn events_name_a_container_that_no_list_has() {
    let (events, _) = tokio::sync::broadcast::channel(8);
    let canned = Canned {
        sandboxes: vec![sandbox('0')],
        events: Some(events.clone()),
        ..Canned::default()
    };
    let root = short_folder();
    let socket = root.path().join("crio.sock");
    let _server = serve(canned, &socket);
    let mut source = following(&[&socket]);
    source.found(&id('0'));
    source.health("up");
    let event = |kind: api::ContainerEventType| api::ContainerEventResponse {
        container_id: id('1'),
        container_event_type: kind.into(),
        created_at: 1,
        pod_sandbox_status: Some(api::PodSandboxStatus {
            id: id('0'),
            metadata: Some(metadata()),
            labels: pod_labels(),
            ..api::PodSandboxStatus::default()
        }),
        containers_statuses: vec![api::ContainerStatus {
            id: id('1'),
            metadata: Some(api::ContainerMetadata {
                name: "trainer".into(),
                attempt: 0,
            }),
            image: Some(api::ImageSpec {
                image: IMAGE.to_owned(),
                ..api::ImageSpec::default()
            }),
            ..api::ContainerStatus::default()
        }],
    };
    // The subscription is made while the first lists are; nobody says when.
    let deadline = std::time::Instant::now() + PATIENCE;
    while events.receiver_count() == 0 {
        assert!(std::time::Instant::now() < deadline, "nobody subscribes");
        std::thread::yield_now();
    }
    let send = |kind| events.send(event(kind)).map(|_| ()).expect("a subscriber");
    send(api::ContainerEventType::ContainerCreatedEvent);
    check(&source.found(&id('1')), "trainer");
    send(api::ContainerEventType::ContainerDeletedEvent);
    source.removed(&id('1'));
    assert!(source.count(|c| &c.events) >= 1);
    source.stop();
}

#[test]
fn a_runtime_that_has_no_events_and_says_so_in_its_own_way_is_asked_once() {
    let canned = Canned {
        sandboxes: vec![sandbox('0')],
        is_vague: true,
        ..Canned::default()
    };
    let (lists, subscriptions) = (Arc::clone(&canned.lists), Arc::clone(&canned.subscriptions));
    let root = short_folder();
    let socket = root.path().join("containerd.sock");
    let _server = serve(canned, &socket);
    let mut source = following(&[&socket]);
    source.health("up");
    source.while_it_goes_on("list", || lists.load(Ordering::Relaxed) >= 6);
    assert_eq!(subscriptions.load(Ordering::Relaxed), 1);
    assert_eq!(source.count(|c| &c.invalid_replies), 1);
    assert_eq!(source.count(|c| &c.disconnects), 0);
    source.stop();
}

#[test]
fn events_are_not_asked_for_unless_configured() {
    let (events, _) = tokio::sync::broadcast::channel(8);
    let canned = Canned {
        sandboxes: vec![sandbox('0')],
        events: Some(events),
        ..Canned::default()
    };
    let (lists, subscriptions) = (Arc::clone(&canned.lists), Arc::clone(&canned.subscriptions));
    let root = short_folder();
    let socket = root.path().join("containerd.sock");
    let _server = serve(canned, &socket);
    let mut source = start(Config {
        events: config::Cri::default().events,
        ..config(&[&socket])
    });
    source.health("up");
    // What comes after the first list comes soon all the same.
    source.while_it_goes_on("list", || lists.load(Ordering::Relaxed) >= 6);
    assert_eq!(subscriptions.load(Ordering::Relaxed), 0);
    source.stop();
}

#[test]
fn a_socket_that_hangs_is_told_of_while_another_runtime_answers() {
    let root = short_folder();
    let path = |name: &str| -> PathBuf { root.path().join(name) };
    let canned = Canned {
        sandboxes: vec![sandbox('1')],
        ..Canned::default()
    };
    let _server = serve(canned, &path("a"));
    impostor(&path("b"), b"");
    let mut source = following(&[&path("a"), &path("b")]);
    source.found(&id('1'));
    // It may be told before the other one is known to be up, and then again.
    let words = format!("version: no answer within 5s; up: {}", path("a").display());
    let place = source.until(&words, |input| match input {
        Input::Health(SourceHealth {
            state: SourceState::Down { class, reason, .. },
            place,
            ..
        }) => {
            assert_eq!(&**class, "timeout", "{reason}");
            (**reason == *words).then(|| place.to_string())
        }
        _ => None,
    });
    assert_eq!(*place, *path("b").to_string_lossy());
    // The other one still answers.
    source.look_up(&id('1'));
    source.found(&id('1'));
    source.stop();
}

#[test]
fn several_runtimes_are_one_source_and_none_hides_the_loss_of_another() {
    let root = short_folder();
    let path = |name: &str| -> PathBuf { root.path().join(name) };
    let at = |digit| Canned {
        sandboxes: vec![sandbox(digit)],
        ..Canned::default()
    };
    let first = serve(at('1'), &path("a"));
    let _second = serve(at('2'), &path("b"));
    // The same socket by another path is not another runtime.
    std::os::unix::fs::symlink(path("b"), path("c")).unwrap();
    let never = path("never");
    let mut source = following(&[&path("a"), &path("b"), &path("c"), &never]);
    let both = format!("{} {}", path("a").display(), path("b").display());
    source.until("both", |input| match input {
        Input::Health(health) => (*health.place == *both).then_some(()),
        _ => None,
    });
    source.look_up(&id('2'));
    source.found(&id('2'));

    first.shutdown_timeout(Duration::from_secs(1));
    let health = source.health("down");
    assert_eq!(*health.place, *path("a").to_string_lossy());
    // It ended in the middle of a session: that is no other protocol.
    let SourceState::Down { class, reason, .. } = &health.state else {
        unreachable!("it is down");
    };
    assert_ne!(&**class, "protocol", "{reason}");
    // The other one still answers.
    source.look_up(&id('2'));
    source.found(&id('2'));
    source.stop();
}

#[test]
fn a_runtime_without_this_interface_is_as_good_as_absent() {
    let root = short_folder();
    let socket = root.path().join("containerd.sock");
    let runtime = Runtime::new().expect("a runtime");
    let listener = runtime
        .block_on(async { tokio::net::UnixListener::bind(&socket) })
        .expect("a socket");
    let incoming = tokio_stream::wrappers::UnixListenerStream::new(listener);
    // gRPC, with another service on it.
    let other = gpuacct_tests::proto::pod_resources::pod_resources_lister_server::PodResourcesListerServer::new(Nothing);
    runtime.spawn(
        tonic::transport::Server::builder()
            .add_service(other)
            .serve_with_incoming(incoming),
    );
    let mut source = following(&[&socket]);
    let health = source.until("a state", |input| match input {
        Input::Health(health) => Some(health.clone()),
        _ => None,
    });
    assert_eq!(health.state, SourceState::Absent);
    assert!(source.count(|c| &c.disconnects) >= 1);
    source.stop();
}

struct Nothing;

#[tonic::async_trait]
impl gpuacct_tests::proto::pod_resources::pod_resources_lister_server::PodResourcesLister
    for Nothing
{
    async fn list(
        &self,
        _: Request<gpuacct_tests::proto::pod_resources::ListPodResourcesRequest>,
    ) -> Result<Response<gpuacct_tests::proto::pod_resources::ListPodResourcesResponse>, Status>
    {
        no()
    }

    async fn get(
        &self,
        _: Request<gpuacct_tests::proto::pod_resources::GetPodResourcesRequest>,
    ) -> Result<Response<gpuacct_tests::proto::pod_resources::GetPodResourcesResponse>, Status>
    {
        no()
    }
}

#[test]
fn the_events_of_a_newer_containerd_name_containers_that_no_list_has() {
    let Some(tree) = require("docker-new", docker::newer()) else {
        return;
    };
    let root = short_folder();
    let mut containerd = Containerd::start_from(Some(&tree), root.path().join("c")).unwrap();
    let labels = [("team", "vision")];
    let pod = containerd.run_pod("ml", "train-0", UID, &labels).unwrap();
    let early = containerd.run_container(&pod, "trainer").unwrap();
    // One list at the beginning and none after it.
    let hour = Duration::from_secs(3600);
    let mut source = start(Config {
        ping_interval: hour,
        list_interval: hour,
        relist_interval: hour,
        ..config(&[&containerd.socket()])
    });
    check(&source.found(&early), "trainer");
    source.health("up");

    let late = containerd.run_container(&pod, "sidecar").unwrap();
    check(&source.found(&late), "sidecar");
    containerd.remove_container(&late).unwrap();
    source.removed(&late);
    assert!(source.count(|c| &c.events) > 0);
    assert_eq!(source.count(|c| &c.invalid_replies), 0);

    // It goes away and comes back, and its events with it.
    containerd.stop().unwrap();
    source.down();
    containerd.start_again().unwrap();
    source.health("up");
    let after = containerd.run_container(&pod, "after").unwrap();
    check(&source.found(&after), "after");
    source.stop();
}

/// Such a containerd hands each event to one of its subscribers.
#[test]
fn a_kubelet_that_lives_by_a_containerds_events_gets_all_of_them() {
    let Some(tree) = require("docker-new", docker::newer()) else {
        return;
    };
    let root = short_folder();
    let mut containerd = Containerd::start_from(Some(&tree), root.path().join("c")).unwrap();
    let labels = [("team", "vision")];
    let pod = containerd.run_pod("ml", "train-0", UID, &labels).unwrap();
    let mut source = start(Config {
        events: config::Cri::default().events,
        ..config(&[&containerd.socket()])
    });
    source.found(&pod.sandbox);
    source.health("up");

    let endpoint = format!("unix://{}", containerd.socket().display());
    let kubelet = Runtime::new().expect("a runtime");
    let (taken, mut told) = mpsc::unbounded_channel();
    kubelet.spawn(async move {
        let channel = Endpoint::from_shared(endpoint).unwrap().connect().await;
        let mut client = RuntimeServiceClient::new(channel.unwrap());
        let events = client.get_container_events(api::GetEventsRequest {}).await;
        let mut events = events.unwrap().into_inner();
        while let Ok(Some(event)) = events.message().await {
            let kind = event.container_event_type();
            if taken.send((event.container_id, kind)).is_err() {
                return;
            }
        }
    });
    // Nobody says when the subscription is made; what happened before it waits for it.
    let containers: Vec<_> = (0..6)
        .map(|number| containerd.run_container(&pod, &format!("trainer-{number}")))
        .collect::<anyhow::Result<_>>()
        .unwrap();
    // One list has all of them, in any order.
    let mut unnamed: HashSet<&str> = containers.iter().map(String::as_str).collect();
    source.until("every container", |input| {
        if let Input::Identity(IdentityUpdate::Found(identity)) = input {
            unnamed.remove(identity.id.as_str());
        }
        unnamed.is_empty().then_some(())
    });
    let all = async {
        use api::ContainerEventType::{ContainerCreatedEvent, ContainerStartedEvent};
        let both = |id: &String| {
            [ContainerCreatedEvent, ContainerStartedEvent].map(|kind| (id.clone(), kind))
        };
        let mut missing: HashSet<_> = containers.iter().flat_map(both).collect();
        while !missing.is_empty() {
            missing.remove(&told.recv().await.expect("the stream goes on"));
        }
    };
    kubelet
        .block_on(async { tokio::time::timeout(PATIENCE, all).await })
        .expect("both events of each container");
    source.stop();
}
