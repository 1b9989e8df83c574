//! Programs and sources of a Debian release, the machine's or another: downloaded, checked,
//! unpacked, and never installed.
//!
//! apt does the work with a state of its own, so that the machine's is left alone and Debian's
//! signatures are checked. No script of a package is run. What has been unpacked stays in the
//! target folder and is not looked for again.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::command::Cmd;
use crate::workspace;

/// The keys that Debian signs its releases with.
pub(crate) const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
pub(crate) const ADDRESS: &str = "http://deb.debian.org/debian";
/// The release after the one whose daemons are tested throughout.
const SUITE: &str = "trixie";
const RUNTIMES: [&str; 2] = ["docker.io", "containerd"];

/// The release with the newest programs of the Prometheus project.
const NEWEST: &str = "sid";
const NEWEST_PROMETHEUS: [&str; 3] = ["prometheus", "prometheus-node-exporter", "promtool"];

/// A newer Docker Engine and containerd, as a tree with `usr/sbin/dockerd` in it.
pub(crate) fn newer_runtimes() -> Result<PathBuf> {
    let programs = ["usr/sbin/dockerd", "usr/bin/containerd"];
    unpacked(&format!("debian-{SUITE}"), SUITE, &RUNTIMES, &programs)
}

/// VictoriaMetrics, which takes OTLP over TLS. No release of Debian has a version that does.
pub(crate) fn victoria_metrics() -> Result<PathBuf> {
    let name = "debian-sid-victoria-metrics";
    program(name, "sid", "victoria-metrics", "usr/bin/victoria-metrics")
}

/// nginx, which ends TLS in front of receivers that have none.
pub(crate) fn nginx() -> Result<PathBuf> {
    program(
        "debian-bookworm-nginx",
        "bookworm",
        "nginx",
        "usr/sbin/nginx",
    )
}

/// Alertmanager's tool, which checks its configuration.
pub(crate) fn amtool() -> Result<PathBuf> {
    let (name, package) = ("debian-bookworm-alertmanager", "prometheus-alertmanager");
    program(name, "bookworm", package, "usr/bin/amtool")
}

/// A registry of images and charts.
pub(crate) fn registry() -> Result<PathBuf> {
    let (name, package) = ("debian-bookworm-docker-registry", "docker-registry");
    program(name, "bookworm", package, "usr/bin/docker-registry")
}

/// etcd, in which a control plane of Kubernetes keeps everything.
pub(crate) fn etcd() -> Result<PathBuf> {
    program(
        "debian-bookworm-etcd",
        "bookworm",
        "etcd-server",
        "usr/bin/etcd",
    )
}

/// The folder of the plugins that give pods a network.
pub(crate) fn network_plugins() -> Result<PathBuf> {
    let (name, folder) = ("debian-bookworm-cni", "usr/lib/cni");
    let package = "containernetworking-plugins";
    let programs = ["host-local", "loopback", "ptp"].map(|name| format!("{folder}/{name}"));
    let programs = programs.each_ref().map(String::as_str);
    Ok(unpacked(name, "bookworm", &[package], &programs)?.join(folder))
}

/// cosign, which signs releases.
pub(crate) fn cosign() -> Result<PathBuf> {
    program("debian-sid-cosign", "sid", "cosign", "usr/bin/cosign")
}

/// The program of a package of a release, which is unpacked into the folder `name` of the tools once.
fn program(name: &str, suite: &str, package: &str, program: &str) -> Result<PathBuf> {
    Ok(unpacked(name, suite, &[package], &[program])?.join(program))
}

/// Debian's newest Prometheus, promtool and node_exporter, as a tree with `usr/bin/promtool` in it.
pub(crate) fn newest_prometheus() -> Result<PathBuf> {
    let programs = [
        "usr/bin/prometheus",
        "usr/bin/prometheus-node-exporter",
        "usr/bin/promtool",
    ];
    let name = format!("debian-{NEWEST}-prometheus");
    unpacked(&name, NEWEST, &NEWEST_PROMETHEUS, &programs)
}

/// Prometheus and promtool of the release between the machine's and the newest, as a tree with
/// `usr/bin/promtool` in it.
pub(crate) fn later_prometheus() -> Result<PathBuf> {
    let programs = ["usr/bin/prometheus", "usr/bin/promtool"];
    unpacked(
        "debian-trixie-prometheus",
        SUITE,
        &["prometheus", "promtool"],
        &programs,
    )
}

/// A folder among the tools that `make` puts together once, somewhere in the folder that it is given.
pub(crate) fn once(name: &str, make: impl FnOnce(&Path) -> Result<PathBuf>) -> Result<PathBuf> {
    let tools = workspace::target().join("tools");
    let tree = tools.join(name);
    if !tree.is_dir() {
        let work = tools.join(format!("{name}.part"));
        let made = make(&work)?;
        // Only what is whole has the name that is looked for.
        fs::rename(&made, &tree).with_context(|| format!("cannot make {}", tree.display()))?;
        fs::remove_dir_all(&work).with_context(|| format!("cannot remove {}", work.display()))?;
    }
    Ok(tree)
}

/// Packages of a release, unpacked into the folder `name` of the tools once. It has `programs`.
fn unpacked(name: &str, suite: &str, packages: &[&str], programs: &[&str]) -> Result<PathBuf> {
    let tree = once(name, |work| Apt::of(suite, work)?.unpack(packages))?;
    for program in programs {
        let program = tree.join(program);
        ensure!(program.is_file(), "{} is not there", program.display());
    }
    Ok(tree)
}

/// An apt with one release and a folder of its own, in which it keeps everything.
#[derive(Debug)]
pub(crate) struct Apt {
    work: PathBuf,
    config: PathBuf,
}

impl Apt {
    /// Downloads the package lists of a release into `work`, which is emptied first.
    pub(crate) fn of(suite: &str, work: &Path) -> Result<Self> {
        Self::with(suite, work, "")
    }

    /// The same for a processor that may not be this machine's, by Debian's name of it.
    pub(crate) fn for_arch(suite: &str, work: &Path, arch: &str) -> Result<Self> {
        let only =
            format!("APT::Architecture \"{arch}\";\nAPT::Architectures {{ \"{arch}\"; }};\n");
        Self::with(suite, work, &only)
    }

    fn with(suite: &str, work: &Path, further: &str) -> Result<Self> {
        // What a run that was broken off has left.
        let _ = fs::remove_dir_all(work);
        for folder in [
            "lists/partial",
            "cache/archives/partial",
            "packages",
            "root",
            "empty",
        ] {
            let folder = work.join(folder);
            fs::create_dir_all(&folder)
                .with_context(|| format!("cannot make {}", folder.display()))?;
        }
        let write = |name: &str, text: String| -> Result<PathBuf> {
            let file = work.join(name);
            fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
            Ok(file)
        };
        let line = |kind: &str| format!("{kind} [signed-by={KEYS}] {ADDRESS} {suite} main\n");
        let sources = write("sources.list", line("deb") + &line("deb-src"))?;
        let config = write("apt.conf", config(work, &sources) + further)?;
        let apt = Self {
            work: work.to_owned(),
            config,
        };
        apt.get().arg("update").run()?;
        Ok(apt)
    }

    fn get(&self) -> Cmd {
        Cmd::new("apt-get")
            .env("APT_CONFIG", &self.config)
            .arg("-q")
    }

    /// Downloads packages, and names their files.
    pub(crate) fn download(&self, packages: &[&str]) -> Result<Vec<PathBuf>> {
        let folder = self.work.join("packages");
        self.get()
            .current_dir(&folder)
            .arg("download")
            .args(packages)
            .run()?;
        let entries = fs::read_dir(folder).context("no packages")?;
        entries
            .map(|entry| Ok(entry.context("no packages")?.path()))
            .collect()
    }

    /// Unpacks packages into a tree, which it names.
    pub(crate) fn unpack(&self, packages: &[&str]) -> Result<PathBuf> {
        let root = self.work.join("root");
        for package in self.download(packages)? {
            Cmd::new("dpkg-deb")
                .arg("--extract")
                .arg(&package)
                .arg(&root)
                .run()?;
        }
        Ok(root)
    }

    /// Fetches a source package's files, and says which describes them.
    pub(crate) fn source(&self, package: &str) -> Result<PathBuf> {
        let folder = self.work.join("source");
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        self.get()
            .current_dir(&folder)
            .args(["source", "--download-only", package])
            .run()?;
        let entries = fs::read_dir(&folder).context("no source")?;
        entries
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .find(|path| path.extension().is_some_and(|kind| kind == "dsc"))
            .with_context(|| format!("no .dsc in {}", folder.display()))
    }
}

/// What makes apt keep everything of its own below `work`.
fn config(work: &Path, sources: &Path) -> String {
    let at = |name: &str| work.join(name).display().to_string();
    [
        ("Dir::Etc::sourcelist", sources.display().to_string()),
        ("Dir::Etc::sourceparts", at("empty")),
        ("Dir::Etc::preferencesparts", at("empty")),
        ("Dir::State::lists", at("lists")),
        ("Dir::Cache", at("cache")),
        // Descriptions and icons.
        ("Acquire::Languages", "none".to_owned()),
        (
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled",
            "false".to_owned(),
        ),
        // Its usual user cannot write here.
        ("APT::Sandbox::User", "root".to_owned()),
    ]
    .map(|(key, value)| format!("{key} \"{value}\";\n"))
    .concat()
}
