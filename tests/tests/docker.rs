//! The Docker source against real daemons: there from the start, late, killed, frozen, calling
//! themselves `dev`; and against what only claims to be one.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use gpuacct::config::{self, Span};
use gpuacct::core::cgroup_path::{CgroupMeaning, resolve};
use gpuacct::core::input::{ContainerIdentity, IdentityUpdate, Input, SourceHealth};
use gpuacct::core::model::{ContainerId, Pid, SourceId, SourceState};
use gpuacct::sources::identity::docker::{self, Pace, Tuning};
use gpuacct::sources::identity::{Counters, IdentityIo};
use gpuacct::sources::{Io, clock, procfs};
use gpuacct_tests::docker::{Container, ContainerSpec, Dockerd, IMAGE, Options, available, newer};
use gpuacct_tests::podman::{self, Podman};
use gpuacct_tests::requirement::require;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

const UID: &str = "9f6c1b1e-2d3f-4a5b-8c7d-0123456789ab";
/// Nothing here takes as long; it turns a hang into a failure.
const PATIENCE: Duration = Duration::from_secs(90);

fn root() -> TempDir {
    tempfile::Builder::new()
        .prefix("ga-")
        .tempdir()
        .expect("a folder below /tmp")
}

fn options(root: &TempDir) -> Options {
    Options::at(root.path().join("d"))
}

/// A source that is running, and what it says.
struct Source {
    inputs: mpsc::Receiver<Input>,
    lookups: mpsc::Sender<ContainerId>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
    counters: Arc<Counters>,
}

fn config(sockets: &[&Path]) -> config::Docker {
    config::Docker {
        sockets: sockets.iter().map(|path| path.to_path_buf()).collect(),
        timeout: Span(Duration::from_secs(5)),
        ..config::Docker::default()
    }
}

fn tuning() -> Tuning {
    Tuning {
        ping_interval: Duration::from_millis(200),
        pace: Pace {
            retry_max: Duration::from_secs(1),
            look_interval: Duration::from_millis(50),
        },
    }
}

impl Source {
    fn following(socket: &Path) -> Self {
        Self::with(config(&[socket]))
    }

    fn with(config: config::Docker) -> Self {
        let (lookups, receiver) = mpsc::channel(64);
        let (out, inputs) = mpsc::channel(64);
        let (stop, shutdown) = watch::channel(false);
        let counters = Arc::new(Counters::default());
        let io = IdentityIo {
            counters: Arc::clone(&counters),
            questions: receiver,
            io: Io {
                out,
                clock: clock::now,
                shutdown,
            },
        };
        let task = tokio::spawn(docker::run(config, tuning(), io));
        Self {
            inputs,
            lookups,
            stop,
            task,
            counters,
        }
    }

    /// The first of the coming inputs that `pick` makes something of.
    async fn until<T>(&mut self, what: &str, mut pick: impl FnMut(&Input) -> Option<T>) -> T {
        let mut passed = Vec::new();
        let search = async {
            loop {
                let input = self.inputs.recv().await.expect("the source goes on");
                if let Some(picked) = pick(&input) {
                    return picked;
                }
                passed.push(input);
            }
        };
        match tokio::time::timeout(PATIENCE, search).await {
            Ok(picked) => picked,
            Err(_) => panic!("no {what} among {passed:#?}"),
        }
    }

    async fn health(&mut self, state: &str) -> SourceHealth {
        self.until(state, |input| match input {
            Input::Health(health) if health.state.as_str() == state => {
                assert_eq!(health.source, SourceId::Docker);
                Some(health.clone())
            }
            _ => None,
        })
        .await
    }

    /// The class of the next failure.
    async fn down(&mut self) -> (String, String) {
        let SourceState::Down {
            class,
            reason,
            next_retry,
        } = self.health("down").await.state
        else {
            panic!("down is down");
        };
        assert!(next_retry.is_some());
        (class.to_string(), reason.to_string())
    }

    async fn found(&mut self, container: &Container) -> ContainerIdentity {
        self.until(&container.id, |input| match input {
            Input::Identity(IdentityUpdate::Found(identity))
                if identity.id.as_str() == container.id =>
            {
                Some(identity.clone())
            }
            _ => None,
        })
        .await
    }

    async fn removed(&mut self, container: &Container) {
        self.until("removal", |input| match input {
            Input::Identity(IdentityUpdate::Removed { id, .. }) => {
                (id.as_str() == container.id).then_some(())
            }
            _ => None,
        })
        .await;
    }

    async fn look_up(&self, id: &str) {
        self.lookups
            .send(ContainerId::from(id))
            .await
            .expect("the source goes on");
    }

    async fn stop(self) {
        self.stop.send(true).expect("the source goes on");
        tokio::time::timeout(PATIENCE, self.task)
            .await
            .expect("the source stops")
            .expect("and has not panicked");
    }
}

fn trainer(name: &str) -> ContainerSpec {
    ContainerSpec::named(name)
        .in_pod("ml", "train-0", UID, "trainer")
        .label("team", "vision \"north\"\nand south")
}

fn check_trainer(identity: &ContainerIdentity, name: &str) {
    assert_eq!(identity.name.as_deref(), Some(name));
    assert_eq!(identity.image.as_deref(), Some(IMAGE));
    let kubernetes = identity.kubernetes.as_ref().expect("all four labels");
    assert_eq!(&*kubernetes.namespace, "ml");
    assert_eq!(&*kubernetes.pod, "train-0");
    assert_eq!(kubernetes.pod_uid.as_str(), UID);
    assert_eq!(&*kubernetes.container, "trainer");
    assert_eq!(identity.labels.len(), 5, "{:?}", identity.labels);
    assert_eq!(&*identity.labels["team"], "vision \"north\"\\x0aand south");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_and_labels_arrive_by_list_event_and_lookup() {
    let Some(()) = require("docker", available()) else {
        return;
    };
    let root = root();
    let mut daemon = Dockerd::start(options(&root)).unwrap();
    let early = daemon.run(&trainer("early")).unwrap();

    let mut source = Source::following(&daemon.socket());
    check_trainer(&source.found(&early).await, "early");
    assert_eq!(
        *source.health("up").await.place,
        *daemon.socket().to_string_lossy()
    );

    // Started later: an event.
    let late = daemon.run(&trainer("late")).unwrap();
    check_trainer(&source.found(&late).await, "late");

    // Gone before anyone could ask: its event was enough.
    let spec = trainer("brief").command(["true"]);
    daemon.run_to_end(&spec).unwrap();
    let brief = source
        .until("brief", |input| match input {
            Input::Identity(IdentityUpdate::Found(identity))
                if identity.name.as_deref() == Some("brief") =>
            {
                Some(identity.clone())
            }
            _ => None,
        })
        .await;
    check_trainer(&brief, "brief");
    source
        .until("removal", |input| match input {
            Input::Identity(IdentityUpdate::Removed { id, .. }) => (*id == brief.id).then_some(()),
            _ => None,
        })
        .await;

    // A rename is news.
    daemon.docker(&["rename", "late", "later"]).unwrap();
    source
        .until("renamed", |input| match input {
            Input::Identity(IdentityUpdate::Found(identity)) => {
                (identity.name.as_deref() == Some("later")).then_some(())
            }
            _ => None,
        })
        .await;

    // An image whose name went to another one is still called what the user wrote.
    daemon
        .docker(&["commit", "--message=other", "early", IMAGE])
        .unwrap();
    source.look_up(&early.id).await;
    check_trainer(&source.found(&early).await, "early");
    source.stop().await;
    let mut source = Source::following(&daemon.socket());
    check_trainer(&source.found(&early).await, "early");

    // Nobody's id is not found, and that is said.
    let nobody = "0".repeat(64);
    source.look_up(&nobody).await;
    source
        .until("not found", |input| match input {
            Input::Identity(IdentityUpdate::NotFound { id, reason, .. }) => {
                assert_eq!(*reason, "not_found");
                (id.as_str() == nobody).then_some(())
            }
            _ => None,
        })
        .await;
    assert_eq!(source.counters.invalid_replies.load(Ordering::Relaxed), 0);
    // It is asked for again after a second. Events of shortly before the source began are told again,
    // too, also of the brief one, which is then looked for and may be gone.
    assert!(source.counters.lookups_not_found.load(Ordering::Relaxed) > 0);
    assert_eq!(source.counters.lookups_invalid.load(Ordering::Relaxed), 0);
    source.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_kernels_cgroup_and_the_daemon_name_the_same_container() {
    let Some(()) = require("docker", available()) else {
        return;
    };
    let root = root();
    let mut daemon = Dockerd::start(options(&root)).unwrap();
    let in_pod = daemon.run(&trainer("in-pod")).unwrap();
    let plain = daemon.run(&ContainerSpec::named("plain")).unwrap();

    let scan = procfs::scan(PathBuf::from("/proc"), clock::now).unwrap();
    for (container, pod) in [(&in_pod, Some(UID)), (&plain, None)] {
        let process = scan
            .processes
            .iter()
            .find(|p| p.pid == Pid(container.pid))
            .expect("the container's process is in /proc");
        let meaning = resolve(process.cgroups.iter().map(|(h, path)| (*h, &**path)));
        let CgroupMeaning::Container(found) = meaning else {
            panic!("{:?} means {meaning:?}", process.cgroups);
        };
        assert_eq!(found.id.as_str(), container.id);
        assert_eq!(found.pod.as_ref().map(|p| p.uid.as_str()), pod);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_is_late_killed_or_stopped_is_picked_up_again() {
    let Some(()) = require("docker", available()) else {
        return;
    };
    let root = root();
    let options = options(&root);
    let mut source = Source::following(&options.root.join("docker.sock"));
    source.health("absent").await;

    let mut daemon = Dockerd::start(options).unwrap();
    source.health("up").await;
    let first = daemon.run(&trainer("first")).unwrap();
    check_trainer(&source.found(&first).await, "first");

    // Killed: the socket stays and refuses. What is looked up meanwhile is on the list afterwards.
    daemon.kill().unwrap();
    let (class, reason) = source.down().await;
    assert!(
        ["closed", "refused"].contains(&&*class),
        "{class}: {reason}"
    );
    source.look_up(&first.id).await;
    daemon.start_again().unwrap();
    source.health("up").await;
    let second = daemon.run(&trainer("second")).unwrap();
    check_trainer(&source.found(&second).await, "second");
    source.look_up(&first.id).await;
    check_trainer(&source.found(&first).await, "first");
    assert!(
        Path::new(&format!("/proc/{}", first.pid)).exists(),
        "it outlived the daemon"
    );

    // Stopped in order: the socket is taken away.
    daemon.stop().unwrap();
    source
        .until("vanished", |input| match input {
            Input::Health(SourceHealth {
                state: SourceState::Down { class, .. },
                ..
            }) => (&**class == "vanished").then_some(()),
            _ => None,
        })
        .await;
    daemon.start_again().unwrap();
    source.health("up").await;
    source.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_hangs_is_down_and_comes_back() {
    let Some(()) = require("docker", available()) else {
        return;
    };
    let root = root();
    let mut daemon = Dockerd::start(options(&root)).unwrap();
    let mut source = Source::following(&daemon.socket());
    source.health("up").await;

    daemon.pause().unwrap();
    let (class, reason) = source.down().await;
    assert_eq!(class, "timeout", "{reason}");
    assert!(source.counters.timeouts.load(Ordering::Relaxed) > 0);
    daemon.resume().unwrap();
    source.health("up").await;
    let container = daemon.run(&trainer("after")).unwrap();
    check_trainer(&source.found(&container).await, "after");
    source.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_calls_itself_dev_is_as_good_as_any() {
    let Some(()) = require("docker", available()) else {
        return;
    };
    let root = root();
    let mut options = options(&root);
    options.version_says = Some("dev".to_owned());
    let mut daemon = Dockerd::start(options).unwrap();
    let version = daemon
        .docker(&["version", "--format={{.Server.Version}}"])
        .unwrap();
    assert_eq!(version.trim(), "dev");

    let early = daemon.run(&trainer("early")).unwrap();
    let mut source = Source::following(&daemon.socket());
    check_trainer(&source.found(&early).await, "early");
    source.health("up").await;
    let late = daemon.run(&trainer("late")).unwrap();
    check_trainer(&source.found(&late).await, "late");
    source.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn podmans_containers_are_known_beside_dockers() {
    let told = |available: anyhow::Result<()>| available.map_err(|error| format!("{error:#}"));
    let parts = (
        require("docker", available()),
        require("podman", told(podman::available())),
    );
    let (Some(()), Some(())) = parts else {
        return;
    };
    let root = root();
    let mut daemon = Dockerd::start(options(&root)).unwrap();
    let mut podman = Podman::start(root.path().join("p")).unwrap();
    let sockets = [daemon.socket(), podman.socket()];
    let of_docker = daemon.run(&ContainerSpec::named("docks")).unwrap();
    let of_podman = podman.run(&ContainerSpec::named("pods")).unwrap();

    let mut source = Source::with(config(&sockets.each_ref().map(|socket| &**socket)));
    let mut missing = vec!["docks", "pods"];
    while !missing.is_empty() {
        let name = source.until("a name", |input| match input {
            Input::Identity(IdentityUpdate::Found(found)) => found.name.clone(),
            _ => None,
        });
        let name = name.await;
        missing.retain(|missing| *missing != &*name);
    }
    // What only one of them knows is found, whoever does not know it.
    for (container, name) in [(&of_docker, "docks"), (&of_podman, "pods")] {
        source.look_up(&container.id).await;
        let found = source.found(container).await;
        assert_eq!(found.name.as_deref(), Some(name));
    }

    // The loss of one is told of, and the other goes on.
    podman.stop().unwrap();
    let health = source.health("down").await;
    assert_eq!(*health.place, *sockets[1].to_string_lossy());
    source.look_up(&of_docker.id).await;
    source.found(&of_docker).await;
    source.stop().await;
}

/// Sends one canned reply to every request.
fn impostor(socket: &Path, reply: &'static [u8]) -> JoinHandle<()> {
    let listener = UnixListener::bind(socket).expect("a free path");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 1024];
            // A client that hangs up early is the point of some of these.
            let _ = stream.read(&mut request).await;
            let _ = stream.write_all(reply).await;
        }
    })
}

#[tokio::test]
async fn what_is_no_daemon_is_down_with_a_reason_and_harms_nothing() {
    let rows: [(&[u8], &str); 7] = [
        (b"", "closed"),
        (b"\x00\xff\x16\x03garbage", "protocol"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\ngarbage",
            "protocol",
        ),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n{\"a\": 1}",
            "protocol",
        ),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n\xff\xfe\xfd\xfc\x80\x81\x82",
            "protocol",
        ),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 70\r\n\r\n[{\"Id\":",
            "closed",
        ),
        (
            b"HTTP/1.1 500 Oops\r\nContent-Length: 4\r\n\r\noops",
            "status",
        ),
    ];
    for (reply, expected) in rows {
        let root = root();
        let socket = root.path().join("docker.sock");
        let server = impostor(&socket, reply);
        let mut source = Source::following(&socket);
        let (class, reason) = source.down().await;
        assert_eq!(class, expected, "{}: {reason}", reply.escape_ascii());
        source.stop().await;
        server.abort();
    }
}

#[tokio::test]
async fn what_is_not_there_is_absent_and_what_is_in_the_way_is_said() {
    let root = root();
    let socket = root.path().join("docker.sock");
    let mut source = Source::following(&socket);
    source.health("absent").await;
    // Docker makes a folder of a bind mount without a source.
    std::fs::create_dir(&socket).unwrap();
    let (class, _) = source.down().await;
    assert_eq!(class, "not_a_socket");
    std::fs::remove_dir(&socket).unwrap();
    // A socket that nobody listens on any more.
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    source
        .until("refused", |input| match input {
            Input::Health(SourceHealth {
                state: SourceState::Down { class, .. },
                ..
            }) => (&**class == "refused").then_some(()),
            _ => None,
        })
        .await;
    source.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_daemon_is_as_good_as_any() {
    let told = |available: anyhow::Result<PathBuf>| available.map_err(|error| format!("{error:#}"));
    let Some(tree) = require("docker-new", told(newer())) else {
        return;
    };
    let root = root();
    let mut options = options(&root);
    options.programs = Some(tree);
    let mut daemon = Dockerd::start(options).unwrap();
    let machines = Dockerd::start(Options::at(root.path().join("old"))).unwrap();
    let version = |daemon: &Dockerd| daemon.docker(&["version", "--format={{.Server.Version}}"]);
    assert_ne!(version(&daemon).unwrap(), version(&machines).unwrap());
    drop(machines);

    let early = daemon.run(&trainer("early")).unwrap();
    let mut source = Source::following(&daemon.socket());
    check_trainer(&source.found(&early).await, "early");
    source.health("up").await;
    let late = daemon.run(&trainer("late")).unwrap();
    check_trainer(&source.found(&late).await, "late");
    source.look_up(&early.id).await;
    check_trainer(&source.found(&early).await, "early");
    daemon.remove(&late).unwrap();
    source.removed(&late).await;

    daemon.kill().unwrap();
    source.down().await;
    daemon.start_again().unwrap();
    source.health("up").await;
    source.look_up(&early.id).await;
    check_trainer(&source.found(&early).await, "early");
    let invalid = source.counters.invalid_replies.load(Ordering::Relaxed);
    assert_eq!(invalid, 0);
    source.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn podmans_socket_names_what_podman_runs() {
    let told = |available: anyhow::Result<()>| available.map_err(|error| format!("{error:#}"));
    let Some(()) = require("podman", told(podman::available())) else {
        return;
    };
    let root = root();
    let mut podman = Podman::start(root.path().join("p")).unwrap();
    let check = |identity: &ContainerIdentity, name: &str| {
        assert_eq!(identity.name.as_deref(), Some(name));
        // It calls an image that no registry has its own.
        let image = format!("localhost/{IMAGE}");
        assert_eq!(identity.image.as_deref(), Some(&*image));
        assert!(identity.kubernetes.is_none(), "{identity:?}");
        assert_eq!(identity.labels.get("team").map(|t| &**t), Some("vision"));
    };
    let spec = |name: &str| ContainerSpec::named(name).label("team", "vision");
    let early = podman.run(&spec("early")).unwrap();
    let mut source = Source::following(&podman.socket());
    check(&source.found(&early).await, "early");
    source.health("up").await;

    // Started past the service: an event.
    let late = podman.run(&spec("late")).unwrap();
    check(&source.found(&late).await, "late");
    source.look_up(&early.id).await;
    check(&source.found(&early).await, "early");
    podman.remove(&late).unwrap();
    source.removed(&late).await;

    // The service goes, its containers do not.
    podman.stop().unwrap();
    source.down().await;
    podman.start_again().unwrap();
    source.health("up").await;
    source.look_up(&early.id).await;
    check(&source.found(&early).await, "early");
    let invalid = source.counters.invalid_replies.load(Ordering::Relaxed);
    assert_eq!(invalid, 0);

    // The kernel knows it by the same id.
    let scan = procfs::scan(PathBuf::from("/proc"), clock::now).unwrap();
    let mut processes = scan.processes.iter();
    let process = processes.find(|process| process.pid == Pid(early.pid));
    let cgroups = process.unwrap().cgroups.iter();
    let CgroupMeaning::Container(container) = resolve(cgroups.map(|(h, path)| (*h, &**path)))
    else {
        panic!("{process:?}");
    };
    assert_eq!(container.id.as_str(), early.id);
    assert_eq!(container.runtime.as_str(), "podman");
    source.stop().await;
}
