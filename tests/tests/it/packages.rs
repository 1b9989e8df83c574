//! The packages that `cargo xtask package` makes: held against lintian, rpmlint and the schema of
//! CycloneDX, and installed, upgraded and purged in a Debian 12.
//!
//! The verb makes what these tests look at and sets the variables; without it they are skipped.
//! systemd does not run in that Debian. Its own helper enables the unit; the calls of `systemctl` are
//! recorded by a stand-in.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Result;
use gpuacct_tests::agent::{self, state_of};
use gpuacct_tests::docker::{self, Container, ContainerSpec, Dockerd, Options};
use gpuacct_tests::manifests::root;
use gpuacct_tests::python::{run, venv};
use gpuacct_tests::requirement::{fetched, fetched_program, require};
use serde_json::Value;

/// Names the folder with the packages.
const PACKAGES: &str = "GPUACCT_PACKAGES";
/// Names the folder with the same, made a second time, and a newer version in `newer`.
const AGAIN: &str = "GPUACCT_PACKAGES_AGAIN";
/// Names an archive of a Debian 12.
const DEBIAN: &str = "GPUACCT_DEBIAN";
const COSIGN: &str = "GPUACCT_COSIGN";
/// Checks a bill of materials against the schema.
const SCHEMA: [&str; 1] = ["cyclonedx-python-lib[json-validation]==11.12.0"];

fn packages() -> Option<PathBuf> {
    require("packages", fetched(PACKAGES))
}

/// The one file of a folder with this ending.
fn the_one(folder: &Path, ending: &str) -> PathBuf {
    let entries = fs::read_dir(folder).unwrap();
    let mut found: Vec<PathBuf> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_string_lossy().ends_with(ending))
        .collect();
    let file = found
        .pop()
        .unwrap_or_else(|| panic!("no {ending} in {}", folder.display()));
    assert!(found.is_empty(), "{found:?} beside {}", file.display());
    file
}

#[test]
fn lintian_has_nothing_to_say() {
    let Some(folder) = packages() else { return };
    let lintian = run(Command::new("lintian").arg("--version"));
    if require("lintian", lintian).is_none() {
        return;
    }
    let mut command = Command::new("lintian");
    command
        .args([
            "--allow-root",
            "--display-info",
            "--fail-on",
            "error,warning,info",
        ])
        .arg(the_one(&folder, "_amd64.deb"));
    let said = run(&mut command).unwrap();
    assert_eq!(said, "");
}

#[test]
fn rpmlint_has_nothing_to_say() {
    let Some(folder) = packages() else { return };
    let rpmlint = run(Command::new("rpmlint").arg("--version"));
    if require("rpmlint", rpmlint).is_none() {
        return;
    }
    let mut command = Command::new("rpmlint");
    command
        .arg("--config")
        .arg(root().join("deploy/packages/rpm/rpmlint.toml"))
        .arg(the_one(&folder, ".x86_64.rpm"));
    let said = run(&mut command).unwrap();
    assert!(said.contains("0 errors, 0 warnings"), "{said}");
}

#[test]
fn the_rpm_lays_the_files_of_the_deb_and_keeps_a_changed_configuration() {
    let Some(folder) = packages() else { return };
    let rpm = run(Command::new("rpm").arg("--version"));
    if require("rpm", rpm).is_none() {
        return;
    }
    let file = the_one(&folder, ".x86_64.rpm");
    let ask = |question: &str| {
        run(Command::new("rpm")
            .args(["--query", question, "--package"])
            .arg(&file))
    };
    assert_eq!(
        ask("--configfiles").unwrap().trim(),
        "/etc/gpuacct/gpuacct.toml"
    );
    let listed = ask("--list").unwrap();
    let listed: BTreeSet<&str> = listed.lines().collect();
    let deb = run(Command::new("dpkg-deb")
        .arg("--contents")
        .arg(the_one(&folder, "_amd64.deb")))
    .unwrap();
    let own = ["zsh", "lintian", "copyright", "changelog.Debian"];
    for line in deb.lines().filter(|line| line.starts_with('-')) {
        let path = line.rsplit(' ').next().unwrap().trim_start_matches('.');
        let is_debians = own.iter().any(|word| path.contains(word));
        assert!(
            is_debians || listed.contains(path),
            "{path} is not in the .rpm"
        );
    }
    let place = tempfile::tempdir().unwrap();
    let manage = |arguments: &[&str], what: &Path| {
        run(Command::new("rpm")
            .arg("--root")
            .arg(place.path())
            .args(["--nodeps", "--noscripts"])
            .args(arguments)
            .arg(what))
    };
    manage(&["--install"], &file).unwrap();
    let program = place.path().join("usr/bin/gpuacct");
    let says = run(Command::new(&program).arg("--version")).unwrap();
    assert!(says.starts_with("gpuacct "), "{says}");
    manage(&["--verify"], Path::new("gpuacct")).unwrap();
    manage(&["--erase"], Path::new("gpuacct")).unwrap();
    assert!(!program.exists());
}

#[test]
fn made_twice_they_are_the_same_bytes() {
    let Some(folder) = packages() else { return };
    let Some(again) = require("packages", fetched(AGAIN)) else {
        return;
    };
    for ending in ["_amd64.deb", ".x86_64.rpm", "-amd64.cdx.json"] {
        let first = fs::read(the_one(&folder, ending)).unwrap();
        assert!(
            first == fs::read(the_one(&again, ending)).unwrap(),
            "{ending}"
        );
    }
}

#[test]
fn the_signature_is_of_the_checksums_and_they_are_of_the_files() {
    let Some(folder) = packages() else { return };
    let Some(cosign) = require("cosign", fetched_program(COSIGN)) else {
        return;
    };
    let verify = |sums: &Path| {
        run(Command::new(&cosign)
            .args(["verify-blob", "--insecure-ignore-tlog", "--key"])
            .arg(folder.join("cosign.pub"))
            .arg("--bundle")
            .arg(folder.join("SHA256SUMS.sigstore.json"))
            .arg(sums))
    };
    let sums = folder.join("SHA256SUMS");
    verify(&sums).unwrap();
    run(Command::new("sha256sum")
        .current_dir(&folder)
        .args(["--check", "--strict", "SHA256SUMS"]))
    .unwrap();
    let text = fs::read_to_string(&sums).unwrap();
    for ending in ["_amd64.deb", ".x86_64.rpm", "-amd64.cdx.json"] {
        assert!(text.contains(ending), "{text}");
    }
    // One digit of one hash.
    let place = tempfile::tempdir().unwrap();
    let other = place.path().join("SHA256SUMS");
    let first = text.chars().next().unwrap();
    let digit = if first == '0' { "1" } else { "0" };
    fs::write(&other, format!("{digit}{}", &text[1..])).unwrap();
    assert!(verify(&other).is_err());
}

/// Crates by name and version.
type Crates = BTreeSet<(String, String)>;

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

/// What cargo resolves for the agent and the object on Linux, by way of dependencies that are neither
/// for tests nor for builds. It knows the features of the whole workspace only, so it may have more.
fn resolved() -> Crates {
    let metadata = run(Command::new(env!("CARGO"))
        .current_dir(root())
        .args(["metadata", "--locked", "--format-version=1"])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"]))
    .unwrap();
    let metadata: Value = serde_json::from_str(&metadata).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let names: BTreeMap<String, (String, String)> = packages
        .iter()
        .map(|package| {
            let named = (text(&package["name"]), text(&package["version"]));
            (text(&package["id"]), named)
        })
        .collect();
    let nodes = metadata["resolve"]["nodes"].as_array().unwrap();
    let is_root = |id: &str| ["gpuacct", "gpuacct-ebpf"].contains(&&*names[id].0);
    let mut open: Vec<String> = names.keys().filter(|id| is_root(id)).cloned().collect();
    let mut seen = BTreeSet::new();
    while let Some(id) = open.pop() {
        if !seen.insert(id.clone()) {
            continue;
        }
        let node = nodes.iter().find(|node| node["id"] == id.as_str()).unwrap();
        for used in node["deps"].as_array().unwrap() {
            let kinds = used["dep_kinds"].as_array().unwrap();
            if kinds.iter().any(|kind| kind["kind"].is_null()) {
                open.push(text(&used["pkg"]));
            }
        }
    }
    seen.iter().map(|id| names[id].clone()).collect()
}

/// Crates whose source files the program names, in messages of panics.
fn named_by_the_program(program: &Path) -> Crates {
    let bytes = fs::read(program).unwrap();
    let all = String::from_utf8_lossy(&bytes);
    all.split("/registry/src/index.crates.io-")
        .skip(1)
        .filter_map(|rest| rest.split('/').nth(1))
        .filter_map(|folder| {
            let at = folder.match_indices('-').find(|(at, _)| {
                folder[at + 1..].starts_with(|c: char| c.is_ascii_digit())
                    && folder[at + 1..].contains('.')
            });
            at.map(|(at, _)| (folder[..at].to_owned(), version_at(&folder[at + 1..])))
        })
        .collect()
}

/// The version at the beginning of a text.
fn version_at(text: &str) -> String {
    let is_version = |c: &char| c.is_ascii_alphanumeric() || ".-+".contains(*c);
    text.chars().take_while(is_version).collect()
}

#[test]
fn the_bill_of_materials_lists_what_is_in_the_program() {
    let Some(folder) = packages() else { return };
    let file = the_one(&folder, "-amd64.cdx.json");
    let bill: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    let components = bill["components"].as_array().unwrap();
    let listed: Crates = components
        .iter()
        .filter(|component| text(&component["purl"]).starts_with("pkg:cargo/"))
        .map(|component| (text(&component["name"]), text(&component["version"])))
        .collect();
    let resolved = resolved();
    let strange: Vec<_> = listed.difference(&resolved).collect();
    assert!(strange.is_empty(), "cargo does not resolve {strange:?}");
    let place = tempfile::tempdir().unwrap();
    run(Command::new("dpkg-deb")
        .arg("--extract")
        .arg(the_one(&folder, "_amd64.deb"))
        .arg(place.path()))
    .unwrap();
    let named = named_by_the_program(&place.path().join("usr/bin/gpuacct"));
    assert!(named.len() > 50, "{named:?}");
    let missing: Vec<_> = named.difference(&listed).collect();
    assert!(missing.is_empty(), "the program has {missing:?} as well");
    // Cargo.lock's hash of each crate of the registry.
    let lock = fs::read_to_string(root().join("Cargo.lock")).unwrap();
    for component in components {
        if let Some(hash) = component["hashes"][0]["content"].as_str() {
            assert!(lock.contains(hash), "{component}");
        }
    }
    let Some(tools) = require("pypi", venv("cyclonedx", &SCHEMA)) else {
        return;
    };
    let check = "import sys\n\
                 from cyclonedx.validation.json import JsonStrictValidator\n\
                 from cyclonedx.schema import SchemaVersion\n\
                 text = open(sys.argv[1]).read()\n\
                 sys.exit(str(JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) or '') or None)";
    let validate = |file: &Path| {
        run(Command::new(tools.program("python"))
            .args(["-c", check])
            .arg(file))
    };
    validate(&file).unwrap();
    let broken = place.path().join("broken.json");
    fs::write(
        &broken,
        bill.to_string().replace("\"SHA-256\"", "\"SHA-257\""),
    )
    .unwrap();
    assert!(validate(&broken).is_err());
}

/// A Debian 12 in a container, with a stand-in that records the calls of `systemctl`.
struct Debian {
    daemon: Dockerd,
    container: Container,
    _folder: tempfile::TempDir,
}

/// It leaves to the real one what that does to files, and keeps whether the unit was started.
const RECORDER: &str = "#!/bin/sh
echo \"$*\" >> /var/log/systemctl
case \"$*\" in
*--root=*) exec /usr/bin/systemctl.real \"$@\" ;;
*is-enabled*) exec /usr/bin/systemctl.real --root=/ is-enabled gpuacct.service ;;
*is-active*) test -e /run/started ;;
*start*) touch /run/started ;;
*stop*) rm -f /run/started ;;
esac
";

impl Debian {
    fn start(archive: &Path, mounts: &[(&Path, &str)]) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("gp-").tempdir()?;
        let mut daemon = Dockerd::start(Options::at(folder.path().join("d")))?;
        let archive = archive.display().to_string();
        daemon.docker(&["import", &archive, "debian:12"])?;
        let mut spec = ContainerSpec::named("debian")
            .image("debian:12")
            .privileged()
            .argument("--pid=host")
            .command(["sleep", "3600"]);
        for (outside, inside) in mounts {
            spec = spec.mount(*outside, *inside);
        }
        let container = daemon.run(&spec)?;
        let debian = Self {
            daemon,
            container,
            _folder: folder,
        };
        debian
            .sh("mkdir -p /run/systemd/system && mv /usr/bin/systemctl /usr/bin/systemctl.real")?;
        debian.sh(&format!(
            "cat > /usr/bin/systemctl <<'END'\n{RECORDER}END\nchmod 755 /usr/bin/systemctl"
        ))?;
        Ok(debian)
    }

    /// What a command in it prints.
    fn sh(&self, command: &str) -> Result<String> {
        self.daemon
            .docker(&["exec", &self.container.id, "sh", "-c", command])
    }

    /// What `systemctl` was called with since the last question.
    fn calls(&self) -> Vec<String> {
        let calls = self
            .sh("cat /var/log/systemctl; rm /var/log/systemctl")
            .unwrap();
        calls.lines().map(str::to_owned).collect()
    }

    fn has(&self, path: &str) -> bool {
        self.sh(&format!("ls -d {path}")).is_ok()
    }
}

fn has(calls: &[String], words: &str) -> bool {
    calls.iter().any(|call| call.contains(words))
}

#[test]
fn the_deb_is_installed_runs_is_upgraded_removed_and_purged() {
    let Some(folder) = packages() else { return };
    let again = require("packages", fetched(AGAIN));
    let debian = require("packages", fetched_program(DEBIAN));
    let docker = require("docker", docker::available());
    let (Some(again), Some(archive), Some(())) = (again, debian, docker) else {
        return;
    };
    let newer = again.join("newer");
    let mounts = [
        (&*folder, "/packages"),
        (&*newer, "/newer"),
        (Path::new("/sys/fs/bpf"), "/sys/fs/bpf"),
    ];
    let mounts = if Path::new("/sys/fs/bpf").is_dir() {
        &mounts[..]
    } else {
        &mounts[..2]
    };
    let debian = Debian::start(&archive, mounts).unwrap();
    let wanted = "/etc/systemd/system/multi-user.target.wants/gpuacct.service";

    debian.sh("dpkg --install /packages/*_amd64.deb").unwrap();
    let calls = debian.calls();
    assert!(
        has(&calls, "daemon-reload") && has(&calls, "start gpuacct.service"),
        "{calls:?}"
    );
    assert!(debian.has(wanted));
    let says = debian
        .sh("gpuacct --version && gpuacct config --config /etc/gpuacct/gpuacct.toml")
        .unwrap();
    assert!(says.starts_with("gpuacct "), "{says}");
    assert_eq!(debian.sh("dpkg --verify gpuacct").unwrap(), "");

    // It runs, as the unit would run it.
    debian
        .sh(
            "mkdir -p /run/gpuacct /var/lib/gpuacct; gpuacct agent --listen 127.0.0.1:0 \
             --config /etc/gpuacct/gpuacct.toml > /var/log/gpuacct 2>&1 & echo $! > /run/agent.pid",
        )
        .unwrap();
    let deadline = Instant::now() + agent::PATIENCE;
    loop {
        // It exits with 1, since there is no GPU; the answer is whole all the same.
        let status = debian.sh("gpuacct status -o json; true").unwrap();
        if state_of(&status, "kernel").as_deref() == Some("up") {
            break;
        }
        let log = || debian.sh("cat /var/log/gpuacct");
        assert!(Instant::now() < deadline, "{status} {:?}", log());
        std::thread::sleep(Duration::from_millis(100));
    }
    debian
        .sh("kill $(cat /run/agent.pid); while test -e /proc/$(cat /run/agent.pid); do sleep 0.1; done")
        .unwrap();
    assert!(debian.has("/var/lib/gpuacct/*"), "the ledger");

    debian
        .sh("echo '# mine' >> /etc/gpuacct/gpuacct.toml")
        .unwrap();
    debian.sh("dpkg --install /newer/*_amd64.deb").unwrap();
    let calls = debian.calls();
    assert!(
        has(&calls, "restart gpuacct.service") && !has(&calls, "stop gpuacct"),
        "{calls:?}"
    );
    let version = debian
        .sh("dpkg-query --show --showformat='${Version}' gpuacct")
        .unwrap();
    assert!(version.contains("+newer"), "{version}");
    let config = debian.sh("cat /etc/gpuacct/gpuacct.toml").unwrap();
    assert!(config.ends_with("# mine\n"), "{config}");

    debian.sh("dpkg --remove gpuacct").unwrap();
    let calls = debian.calls();
    assert!(has(&calls, "stop gpuacct.service"), "{calls:?}");
    assert!(!debian.has("/usr/bin/gpuacct"));
    assert!(debian.has("/etc/gpuacct/gpuacct.toml") && debian.has("/var/lib/gpuacct"));

    debian.sh("dpkg --purge gpuacct").unwrap();
    let left =
        debian.sh("find / -xdev -name '*gpuacct*' -not -path '/var/log/*' -not -path '/proc/*'");
    assert_eq!(left.unwrap(), "", "it leaves something behind");
}
