//! The Docker source against real daemons: there from the start, late, killed, frozen, calling
//! themselves `dev`; and against what only claims to be one.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use gpuacct::config::{self, Span};
use gpuacct::core::cgroup_path::{CgroupMeaning, resolve};
use gpuacct::core::input::{ContainerIdentity, IdentityUpdate, Input};
use gpuacct::core::model::{Pid, SourceId};
use gpuacct::sources::identity::docker::{self, Timing, Tuning};
use gpuacct::sources::{clock, procfs};
use gpuacct_tests::docker::{ContainerSpec, Dockerd, IMAGE, Options, available, newer};
use gpuacct_tests::node::short_folder;
use gpuacct_tests::podman::{self, Podman};
use gpuacct_tests::requirement::require;
use gpuacct_tests::source_rig::SourceRig;
use tempfile::TempDir;

const UID: &str = "9f6c1b1e-2d3f-4a5b-8c7d-0123456789ab";

fn options(root: &TempDir) -> Options {
    Options::at(root.path().join("d"))
}

fn config(sockets: &[&Path]) -> config::Docker {
    config::Docker {
        sockets: sockets.iter().map(|path| path.to_path_buf()).collect(),
        timeout: Span(Duration::from_secs(5)),
        ..config::Docker::default()
    }
}

fn following(socket: &Path) -> SourceRig {
    start(config(&[socket]))
}

fn start(config: config::Docker) -> SourceRig {
    let tuning = Tuning {
        ping_interval: Duration::from_millis(200),
        pace: Timing {
            retry_max: Duration::from_secs(1),
            look_interval: Duration::from_millis(50),
        },
    };
    SourceRig::start(SourceId::Docker, |io| docker::run(config, tuning, io))
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

#[test]
fn names_and_labels_arrive_by_list_event_and_lookup() {
    let Some(()) = require("docker", available()) else {
        return;
    };
    let root = short_folder();
    let mut daemon = Dockerd::start(options(&root)).unwrap();
    let early = daemon.run(&trainer("early")).unwrap();

    let mut source = following(&daemon.socket());
    check_trainer(&source.found(&early.id), "early");
    assert_eq!(
        *source.health("up").place,
        *daemon.socket().to_string_lossy()
    );

    // Started later: an event.
    let late = daemon.run(&trainer("late")).unwrap();
    check_trainer(&source.found(&late.id), "late");

    // Gone before anyone could ask: its event was enough.
    let spec = trainer("brief").command(["true"]);
    daemon.run_to_end(&spec).unwrap();
    let brief = source.until("brief", |input| match input {
        Input::Identity(IdentityUpdate::Found(identity))
            if identity.name.as_deref() == Some("brief") =>
        {
            Some(identity.clone())
        }
        _ => None,
    });
    check_trainer(&brief, "brief");
    source.until("removal", |input| match input {
        Input::Identity(IdentityUpdate::Removed { id, .. }) => (*id == brief.id).then_some(()),
        _ => None,
    });

    // A rename is news.
    daemon.docker(&["rename", "late", "later"]).unwrap();
    source.until("renamed", |input| match input {
        Input::Identity(IdentityUpdate::Found(identity)) => {
            (identity.name.as_deref() == Some("later")).then_some(())
        }
        _ => None,
    });

    // An image whose name went to another one is still called what the user wrote.
    daemon
        .docker(&["commit", "--message=other", "early", IMAGE])
        .unwrap();
    source.look_up(&early.id);
    check_trainer(&source.found(&early.id), "early");
    source.stop();
    let mut source = following(&daemon.socket());
    check_trainer(&source.found(&early.id), "early");

    // Nobody's id is not found, and that is said.
    let nobody = "0".repeat(64);
    source.look_up(&nobody);
    source.until("not found", |input| match input {
        Input::Identity(IdentityUpdate::NotFound { id, reason, .. }) => {
            assert_eq!(*reason, "not_found");
            (id.as_str() == nobody).then_some(())
        }
        _ => None,
    });
    assert_eq!(source.count(|c| &c.invalid_replies), 0);
    // It is asked for again after a second. Events of shortly before the source began are told again,
    // too, also of the brief one, which is then looked for and may be gone.
    assert!(source.count(|c| &c.lookups_not_found) > 0);
    assert_eq!(source.count(|c| &c.lookups_invalid), 0);
    source.stop();
}

#[test]
fn the_kernels_cgroup_and_the_daemon_name_the_same_container() {
    let Some(()) = require("docker", available()) else {
        return;
    };
    let root = short_folder();
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

#[test]
fn a_daemon_that_is_late_killed_or_stopped_is_picked_up_again() {
    let Some(()) = require("docker", available()) else {
        return;
    };
    let root = short_folder();
    let options = options(&root);
    let mut source = following(&options.root.join("docker.sock"));
    source.health("absent");

    let mut daemon = Dockerd::start(options).unwrap();
    source.health("up");
    let first = daemon.run(&trainer("first")).unwrap();
    check_trainer(&source.found(&first.id), "first");

    // Killed: the socket stays and refuses. What is looked up meanwhile is on the list afterwards.
    daemon.kill().unwrap();
    let (class, reason) = source.down();
    assert!(
        ["closed", "refused"].contains(&&*class),
        "{class}: {reason}"
    );
    source.look_up(&first.id);
    daemon.start_again().unwrap();
    source.health("up");
    let second = daemon.run(&trainer("second")).unwrap();
    check_trainer(&source.found(&second.id), "second");
    source.look_up(&first.id);
    check_trainer(&source.found(&first.id), "first");
    assert!(
        Path::new(&format!("/proc/{}", first.pid)).exists(),
        "it outlived the daemon"
    );

    // Stopped in order: the socket is taken away.
    daemon.stop().unwrap();
    source.down_for("vanished");
    daemon.start_again().unwrap();
    source.health("up");
    source.stop();
}

#[test]
fn a_daemon_that_hangs_is_down_and_comes_back() {
    let Some(()) = require("docker", available()) else {
        return;
    };
    let root = short_folder();
    let mut daemon = Dockerd::start(options(&root)).unwrap();
    let mut source = following(&daemon.socket());
    source.health("up");

    daemon.pause().unwrap();
    let (class, reason) = source.down();
    assert_eq!(class, "timeout", "{reason}");
    assert!(source.count(|c| &c.timeouts) > 0);
    daemon.resume().unwrap();
    source.health("up");
    let container = daemon.run(&trainer("after")).unwrap();
    check_trainer(&source.found(&container.id), "after");
    source.stop();
}

#[test]
fn a_daemon_that_calls_itself_dev_is_as_good_as_any() {
    let Some(()) = require("docker", available()) else {
        return;
    };
    let root = short_folder();
    let mut options = options(&root);
    options.version_says = Some("dev".to_owned());
    let mut daemon = Dockerd::start(options).unwrap();
    let version = daemon
        .docker(&["version", "--format={{.Server.Version}}"])
        .unwrap();
    assert_eq!(version.trim(), "dev");

    let early = daemon.run(&trainer("early")).unwrap();
    let mut source = following(&daemon.socket());
    check_trainer(&source.found(&early.id), "early");
    source.health("up");
    let late = daemon.run(&trainer("late")).unwrap();
    check_trainer(&source.found(&late.id), "late");
    source.stop();
}

#[test]
fn podmans_containers_are_known_beside_dockers() {
    let parts = (
        require("docker", available()),
        require("podman", podman::available()),
    );
    let (Some(()), Some(())) = parts else {
        return;
    };
    let root = short_folder();
    let mut daemon = Dockerd::start(options(&root)).unwrap();
    let mut podman = Podman::start(root.path().join("p")).unwrap();
    let sockets = [daemon.socket(), podman.socket()];
    let of_docker = daemon.run(&ContainerSpec::named("docks")).unwrap();
    let of_podman = podman.run(&ContainerSpec::named("pods")).unwrap();

    let mut source = start(config(&sockets.each_ref().map(|socket| &**socket)));
    let mut missing = vec!["docks", "pods"];
    while !missing.is_empty() {
        let name = source.until("a name", |input| match input {
            Input::Identity(IdentityUpdate::Found(found)) => found.name.clone(),
            _ => None,
        });
        missing.retain(|missing| *missing != &*name);
    }
    // What only one of them knows is found, whoever does not know it.
    for (container, name) in [(&of_docker, "docks"), (&of_podman, "pods")] {
        source.look_up(&container.id);
        let found = source.found(&container.id);
        assert_eq!(found.name.as_deref(), Some(name));
    }

    // The loss of one is told of, and the other goes on.
    podman.stop().unwrap();
    let health = source.health("down");
    assert_eq!(*health.place, *sockets[1].to_string_lossy());
    source.look_up(&of_docker.id);
    source.found(&of_docker.id);
    source.stop();
}

/// Sends one canned reply to every request.
fn impostor(socket: &Path, reply: &'static [u8]) {
    let listener = UnixListener::bind(socket).expect("a free path");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            // A client that hangs up early is the point of some of these.
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(reply);
        }
    });
}

#[test]
fn what_is_no_daemon_is_down_with_a_reason_and_harms_nothing() {
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
        let root = short_folder();
        let socket = root.path().join("docker.sock");
        impostor(&socket, reply);
        let mut source = following(&socket);
        let (class, reason) = source.down();
        assert_eq!(class, expected, "{}: {reason}", reply.escape_ascii());
        source.stop();
    }
}

#[test]
fn what_is_not_there_is_absent_and_what_is_in_the_way_is_said() {
    let root = short_folder();
    let socket = root.path().join("docker.sock");
    let mut source = following(&socket);
    source.health("absent");
    // Docker makes a folder of a bind mount without a source.
    std::fs::create_dir(&socket).unwrap();
    let (class, _) = source.down();
    assert_eq!(class, "not_a_socket");
    std::fs::remove_dir(&socket).unwrap();
    // A socket that nobody listens on any more.
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    source.down_for("refused");
    source.stop();
}

#[test]
fn a_newer_daemon_is_as_good_as_any() {
    let Some(tree) = require("docker-new", newer()) else {
        return;
    };
    let root = short_folder();
    let mut options = options(&root);
    options.programs = Some(tree);
    let mut daemon = Dockerd::start(options).unwrap();
    let machines = Dockerd::start(Options::at(root.path().join("old"))).unwrap();
    let version = |daemon: &Dockerd| daemon.docker(&["version", "--format={{.Server.Version}}"]);
    assert_ne!(version(&daemon).unwrap(), version(&machines).unwrap());
    drop(machines);

    let early = daemon.run(&trainer("early")).unwrap();
    let mut source = following(&daemon.socket());
    check_trainer(&source.found(&early.id), "early");
    source.health("up");
    let late = daemon.run(&trainer("late")).unwrap();
    check_trainer(&source.found(&late.id), "late");
    source.look_up(&early.id);
    check_trainer(&source.found(&early.id), "early");
    daemon.remove(&late).unwrap();
    source.removed(&late.id);

    daemon.kill().unwrap();
    source.down();
    daemon.start_again().unwrap();
    source.health("up");
    source.look_up(&early.id);
    check_trainer(&source.found(&early.id), "early");
    let invalid = source.count(|c| &c.invalid_replies);
    assert_eq!(invalid, 0);
    source.stop();
}

#[test]
fn podmans_socket_names_what_podman_runs() {
    let Some(()) = require("podman", podman::available()) else {
        return;
    };
    let root = short_folder();
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
    let mut source = following(&podman.socket());
    check(&source.found(&early.id), "early");
    source.health("up");

    // Started past the service: an event.
    let late = podman.run(&spec("late")).unwrap();
    check(&source.found(&late.id), "late");
    source.look_up(&early.id);
    check(&source.found(&early.id), "early");
    podman.remove(&late).unwrap();
    source.removed(&late.id);

    // The service goes, its containers do not.
    podman.stop().unwrap();
    source.down();
    podman.start_again().unwrap();
    source.health("up");
    source.look_up(&early.id);
    check(&source.found(&early.id), "early");
    let invalid = source.count(|c| &c.invalid_replies);
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
    source.stop();
}
