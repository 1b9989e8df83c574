//! The image that `cargo xtask image` makes, as a cluster gets it: pushed to a registry on loopback,
//! pulled by a Docker Engine, and run. And the program of an image for another processor, emulated.
//!
//! The verb makes what these tests look at and sets the variables; without it they are skipped. The slow
//! tests make an image, too, and run those that need no other one.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use gpuacct::core::model::{SourceId, SourceState};
use gpuacct::outputs::socket::StatusReport;
use gpuacct_tests::agent;
use gpuacct_tests::cluster::IMAGE;
use gpuacct_tests::docker::{self, ContainerSpec, Dockerd, Options};
use gpuacct_tests::http::free_address;
use gpuacct_tests::manifests::deploy;
use gpuacct_tests::node::{self, Node};
use gpuacct_tests::python::run;
use gpuacct_tests::registry::{self, Registry};
use gpuacct_tests::requirement::{fetched, require};
use serde_json::Value;
use sim_nvml::STATE_DIR;

use crate::deploy::{held, read, unit_values};

/// Names the image that [`IMAGE`] names, made a second time.
const AGAIN: &str = "GPUACCT_IMAGE_AGAIN";

fn image() -> Option<PathBuf> {
    require("image", fetched(IMAGE))
}

fn json(file: &Path) -> Value {
    serde_json::from_slice(&fs::read(file).unwrap()).unwrap()
}

/// A document or a layer that another one refers to.
fn blob(image: &Path, descriptor: &Value) -> PathBuf {
    let digest = descriptor["digest"].as_str().unwrap();
    image.join("blobs").join(digest.replace(':', "/"))
}

fn manifest(image: &Path) -> Value {
    json(&blob(
        image,
        &json(&image.join("index.json"))["manifests"][0],
    ))
}

/// The processor that the image is for.
fn processor(image: &Path) -> String {
    let config = json(&blob(image, &manifest(image)["config"]));
    config["architecture"].as_str().unwrap().to_owned()
}

/// Whether this machine can run it by itself; if not, why.
fn is_own(image: &Path) -> Result<(), String> {
    let processor = processor(image);
    let own = [("x86_64", "amd64"), ("aarch64", "arm64")];
    let is_own = own.contains(&(std::env::consts::ARCH, &processor));
    is_own
        .then_some(())
        .ok_or_else(|| format!("the image is for {processor}"))
}

/// The files of an image, as a container sees them.
fn unpacked(image: &Path) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for layer in manifest(image)["layers"].as_array().unwrap() {
        run(Command::new("tar")
            .arg("--extract")
            .arg("--gzip")
            .arg("--file")
            .arg(blob(image, layer))
            .arg("--directory")
            .arg(root.path()))
        .unwrap();
    }
    root
}

/// Hashes of all files below a folder.
fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let list = run(Command::new("find")
        .current_dir(folder)
        .args([".", "-type", "f"]))
    .unwrap();
    let read = |name: &str| (name.to_owned(), fs::read(folder.join(name)).unwrap());
    list.lines().map(read).collect()
}

#[test]
fn made_twice_it_is_the_same_bytes() {
    let Some(image) = image() else { return };
    let Some(again) = require("image-again", fetched(AGAIN)) else {
        return;
    };
    let first = contents(&image);
    assert!(first.len() >= 6, "{:?}", first.keys());
    assert!(first == contents(&again));
}

#[test]
fn it_has_what_scanners_and_tls_look_for_and_no_shell() {
    let Some(image) = image() else { return };
    let root = unpacked(&image);
    let text = |name: &str| fs::read_to_string(root.path().join(name)).unwrap();
    assert!(text("etc/os-release").contains("VERSION_ID=\"12\""));
    for package in ["base-files", "ca-certificates", "libc6", "libgcc-s1"] {
        let status = text(&format!("var/lib/dpkg/status.d/{package}"));
        assert!(
            status.starts_with(&format!("Package: {package}\n")),
            "{status}"
        );
        assert!(status.contains("\nVersion: "), "{status}");
        let copyright = root
            .path()
            .join("usr/share/doc")
            .join(package)
            .join("copyright");
        // A link to the copyright of the compiler, of which it is a part.
        assert!(copyright.exists() || package == "libgcc-s1", "{package}");
    }
    let authorities = text("etc/ssl/certs/ca-certificates.crt");
    assert!(authorities.matches("BEGIN CERTIFICATE").count() > 100);
    assert!(text("usr/share/doc/gpuacct/gpuacct.cdx.json").contains("CycloneDX"));
    for absent in ["bin/sh", "bin/bash", "usr/bin/dpkg", "usr/bin/apt"] {
        assert!(!root.path().join(absent).exists(), "{absent}");
    }
}

#[test]
fn pushed_and_pulled_it_runs_with_all_rights_and_with_the_listed_capabilities_only() {
    let Some(image) = image() else { return };
    let program = run(Command::new("skopeo").arg("--version")).and_then(|_| registry::binary());
    let own = require("own processor", is_own(&image));
    // Debian 12's own Docker Engine knows neither CAP_BPF nor CAP_PERFMON.
    let newer = require("docker-new", docker::newer());
    let (Some(()), Some(tree), Some(program)) = (own, newer, require("registry", program)) else {
        return;
    };
    let folder = tempfile::Builder::new().prefix("gi-").tempdir().unwrap();
    let mut registry = Registry::start(&program, folder.path()).unwrap();
    let name = format!("{}/gpuacct:test", registry.address());
    run(Command::new("skopeo")
        .args([
            "--insecure-policy",
            "copy",
            "--quiet",
            "--dest-tls-verify=false",
        ])
        .arg(format!("oci:{}", image.display()))
        .arg(format!("docker://{name}")))
    .unwrap();
    let mut options = Options::at(folder.path().join("d"));
    options.programs = Some(tree);
    let mut daemon = Dockerd::start(options).unwrap();
    daemon.docker(&["pull", "--quiet", &name]).unwrap();
    let size = daemon
        .docker(&["inspect", "--format={{.Size}}", &name])
        .unwrap();
    let size: u64 = size.trim().parse().unwrap();
    assert!(size <= 40 << 20, "{size} bytes");

    let of_image = |container: &str| ContainerSpec::named(container).image(&name);
    let says = daemon
        .run_to_end(&of_image("version").command(["--version"]))
        .unwrap();
    assert!(says.starts_with("gpuacct "), "{says}");
    let config = daemon
        .run_to_end(&of_image("config").command(["config"]))
        .unwrap();
    assert!(config.contains("[prometheus]"), "{config}");

    // What the systemd unit lists is all that the agent uses.
    let unit = read(&deploy().join("systemd/gpuacct.service"));
    let [listed] = unit_values(&unit, "CapabilityBoundingSet")[..] else {
        panic!("one CapabilityBoundingSet");
    };
    let mut listed_only = of_image("listed")
        .argument("--pid=host")
        .argument("--cap-drop=ALL")
        .argument("--security-opt=seccomp=unconfined")
        .argument("--security-opt=apparmor=unconfined");
    // What the root of these tests lacks, no container of it can have.
    for capability in held(listed) {
        listed_only = listed_only.argument(&format!("--cap-add={}", &capability[4..]));
    }
    let all = of_image("all")
        .argument("--privileged")
        .argument("--pid=host");

    // As the demo: a container at work on a simulated GPU, which the agent knows by name.
    let node = Node::new(1).unwrap();
    let mut config = node.config();
    let socket = daemon.socket();
    config.docker.sockets = vec![socket.clone()];
    config.prometheus.listen = free_address().unwrap();
    let file = node.dir().join("image.toml");
    fs::write(&file, config.to_toml().unwrap()).unwrap();
    let job = node.at_work(ContainerSpec::named("job"), 0, "0.5");
    let job = daemon.run(&job).unwrap();
    for spec in [all, listed_only] {
        let file = file.display().to_string();
        let spec = spec
            .mount(node.dir(), node.dir())
            .mount(&socket, &socket)
            .environment(STATE_DIR, &node.scenario_dir().display().to_string())
            .environment("GPUACCT_CONFIG", &file)
            .command(["agent"]);
        let container = daemon.run(&spec).unwrap();
        let ask = |words: &[&str]| {
            let mut command = Command::new("docker");
            command
                .arg(format!("--host=unix://{}", daemon.socket().display()))
                .args(["exec", &container.id, "/usr/bin/gpuacct"])
                .args(words);
            command.output().unwrap()
        };
        let deadline = Instant::now() + agent::PATIENCE;
        loop {
            // It exits with 1 as long as something is missing; the answer is whole all the same.
            let text = ask(&["status", "-o", "json"]).stdout;
            let status: Option<StatusReport> = serde_json::from_slice(&text).ok();
            let is_counted = status.as_ref().is_some_and(|status| {
                let account = node::account(status, 0, &job.id);
                *node::state(status, SourceId::Kernel) == SourceState::Up
                    && account.is_some_and(|account| &*account.labels.container == "job")
                    && account.is_some_and(|account| account.share > 0.0)
            });
            if is_counted {
                break;
            }
            let log = || daemon.docker(&["logs", &container.id]);
            assert!(
                Instant::now() < deadline,
                "{}: {status:?} {:?}",
                spec.name,
                log()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
        let ready = ask(&["probe", "ready"]);
        assert!(ready.status.success(), "{}: {ready:?}", spec.name);
        daemon.remove(&container).unwrap();
    }
    drop(daemon);
    registry.stop().unwrap();
}

#[test]
fn the_program_of_another_processor_answers_under_emulation() {
    let Some(image) = image() else { return };
    let is_other = is_own(&image).err().ok_or("the image is for this machine");
    let emulator = run(Command::new("qemu-aarch64-static").arg("--version"));
    let (Some(_), Some(_)) = (
        require("other processor", is_other),
        require("qemu", emulator),
    ) else {
        return;
    };
    let root = unpacked(&image);
    let emulated = |arguments: &[&str]| {
        run(Command::new("qemu-aarch64-static")
            .arg("-L")
            .arg(root.path())
            .arg(root.path().join("usr/bin/gpuacct"))
            .args(arguments))
    };
    let says = emulated(&["--version"]).unwrap();
    assert!(says.starts_with("gpuacct "), "{says}");
    let config = emulated(&["config"]).unwrap();
    let own = agent::binary().unwrap();
    let theirs = run(Command::new(&own).arg("config")).unwrap();
    assert_eq!(config, theirs);

    // A ledger that an agent on this machine wrote.
    let node = Node::new(1).unwrap();
    let mut config = node.config();
    config.store.path = node.dir().join("ledger");
    let store = config.store.path.display().to_string();
    let agent = node.agent("", config).unwrap();
    assert!(agent.stop().unwrap().success());
    let question = [
        "report", "--store", &store, "--by", "gpu", "--output", "csv",
    ];
    let theirs = run(Command::new(&own).args(question));
    let ours = emulated(&question);
    match (theirs, ours) {
        (Ok(theirs), Ok(ours)) => {
            assert!(theirs.lines().count() > 1, "{theirs}");
            assert_eq!(ours, theirs);
        }
        (theirs, ours) => panic!("{theirs:?} and {ours:?}"),
    }
}
