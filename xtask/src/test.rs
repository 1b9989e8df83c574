//! `cargo xtask test`: every test, on everything real that this machine has.
//!
//! Tests run side by side: most of their time is spent waiting. cargo-nextest runs them if it is
//! installed, each in a process of its own; otherwise libtest does. What must run alone is a test
//! binary of its own: cargo runs one binary after another, and `.config/nextest.toml` says the same
//! to nextest.
//!
//! Tests that lack a part skip themselves and say so. The skips are listed at the end.
//! `GPUACCT_REQUIRE` makes a skip a failure, as CI does.

#[cfg(test)]
mod features;
mod results;

use std::ffi::OsString;
use std::fs;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::archive;
use crate::build;
use crate::command::Cmd;
use crate::fuzz;
use crate::image::{self, IMAGE_VARIABLE};
use crate::kubernetes;
use crate::setup::{self, Group};
use crate::workspace;
use results::follow;

/// Where the tests write down what they skip; see `gpuacct_tests::requirement`.
const SKIPS: &str = "GPUACCT_SKIPS";
/// Names the folder with newer runtimes; see `gpuacct_tests::docker`.
pub(crate) const NEWER_RUNTIMES: &str = "GPUACCT_NEWER_RUNTIMES";
/// Where the tests find VictoriaMetrics' program, and nginx's.
pub(crate) const VICTORIA_METRICS: &str = "GPUACCT_VICTORIA_METRICS";
const NGINX: &str = "GPUACCT_NGINX";
/// Where the tests find Alertmanager's tool; see `gpuacct_tests::alertmanager`.
const AMTOOL: &str = "GPUACCT_AMTOOL";
/// Where the tests find a registry.
pub(crate) const REGISTRY: &str = "GPUACCT_REGISTRY";
/// Names the folder with the newest Prometheus; see `gpuacct_tests::prometheus`.
pub(crate) const NEWEST_PROMETHEUS: &str = "GPUACCT_NEWEST_PROMETHEUS";
/// Names the folder with a Prometheus of a release in between; see `gpuacct_tests::web`.
const LATER_PROMETHEUS: &str = "GPUACCT_LATER_PROMETHEUS";
/// Names the folder with the programs of Kubernetes; see `gpuacct_tests::kubelet`.
const KUBERNETES: &str = "GPUACCT_KUBERNETES";
/// What a cluster takes besides; see `gpuacct_tests::cluster`.
const ETCD: &str = "GPUACCT_ETCD";
const NETWORK_PLUGINS: &str = "GPUACCT_CNI";
/// The parts that whoever asks for the slow tests does not want to be skipped.
const SLOW_PARTS: [&str; 3] = ["cluster", "image", "kubelet"];
/// Where the tests of one run write down which cgroups were there before; see
/// `gpuacct_tests::docker`.
const CGROUPS_BEFORE: &str = "GPUACCT_CGROUPS_BEFORE";
/// The folder with the built simulation; see `sim_nvml::library`.
const SIMULATION: &str = "SIM_NVML_BUILT";
/// The parts that must be there; see `gpuacct_tests::requirement`.
const REQUIRE: &str = "GPUACCT_REQUIRE";

/// How long each fuzz target runs.
const FUZZ_EACH: Duration = Duration::from_secs(60);

/// How many tests run at once for each core, and at least. Tests on real parts wait most of the time,
/// so a core is busy with several.
const THREADS_A_CORE: usize = 2;
const THREADS: usize = 6;

/// Set everything up and run all tests
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Only the tests that need no root, no kernel, no daemon and no network
    #[arg(long, conflicts_with = "slow")]
    fast: bool,
    /// Also the tests that take minutes: the image and the chart in a cluster of one node, a pod under a
    /// kubelet, and a minute of each fuzz target. Kubernetes is built for it
    #[arg(long)]
    slow: bool,
    /// Run the tests with `cargo test`, even if cargo-nextest is installed
    #[arg(long)]
    libtest: bool,
    /// What the test binaries are given, e.g. a test's name
    #[arg(last = true, value_name = "ARGUMENTS")]
    arguments: Vec<OsString>,
    /// Parts whose absence is a failure, for a verb that selects tests
    #[arg(skip)]
    required: Option<&'static str>,
}

impl Options {
    /// Only the tests in these modules, which run only with all of these parts (`GPUACCT_REQUIRE`). No
    /// container runtime is set up for them.
    pub(crate) fn modules(modules: &[&str], required: &'static str) -> Self {
        Self {
            fast: false,
            slow: false,
            libtest: false,
            arguments: modules.iter().map(OsString::from).collect(),
            required: Some(required),
        }
    }
}

/// What runs the tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Runner {
    Nextest,
    Libtest,
}

impl Runner {
    fn choose(options: &Options) -> Self {
        let version = Cmd::new(workspace::cargo()).args(["nextest", "--version"]);
        if options.libtest {
            Self::Libtest
        } else if version.read().is_ok() {
            Self::Nextest
        } else {
            println!("cargo-nextest is not installed: `cargo test` runs the tests");
            Self::Libtest
        }
    }
}

/// The packages whose tests run, as arguments of cargo. One run names one set: another set would
/// have other features of the same dependencies, and build them again.
fn packages(options: &Options) -> &'static [&'static str] {
    if options.fast {
        // The workspace's default members.
        &[]
    } else {
        // The eBPF object is not a program of this machine; it is tested by loading it. The fuzz
        // targets need a feature of the agent that it does not have otherwise: with them it would be
        // built twice.
        &[
            "--workspace",
            "--exclude",
            "gpuacct-ebpf",
            "--exclude",
            "gpuacct-fuzz",
        ]
    }
}

/// Builds what the tests are and what they run: the agent, the simulation, programs of the rigs.
fn build(options: &Options, environment: &[(&str, PathBuf)]) -> Result<()> {
    let build = Cmd::new(workspace::cargo())
        .args(["build", "--lib", "--bins", "--tests"])
        .args(packages(options));
    with(build, environment).run()
}

pub(crate) fn with(mut command: Cmd, environment: &[(&str, PathBuf)]) -> Cmd {
    for (name, value) in environment {
        command = command.env(name, value);
    }
    command
}

/// Runs a module of the integration tests with this agent. What is required is not skipped.
pub(crate) fn module(
    name: &str,
    agent: &Path,
    required: &str,
    parts: &[(&'static str, PathBuf)],
) -> Result<()> {
    let tests = Cmd::new(workspace::cargo())
        // The tests are built as `run` builds them.
        .env(build::OBJECT_VARIABLE, build::object()?)
        .env("GPUACCT_BIN", agent)
        .env(REQUIRE, required)
        .args(["test", "--package", "gpuacct-tests", "--test", "it"])
        .args(["--", name]);
    with(tests, parts).run()
}

/// What only the slow tests take.
fn slow_parts() -> Result<[(&'static str, PathBuf); 4]> {
    setup::ensure(&[Group::Kubernetes])?;
    Ok([
        (KUBERNETES, kubernetes::built()?),
        (ETCD, archive::etcd()?),
        (NETWORK_PLUGINS, archive::network_plugins()?),
        (IMAGE_VARIABLE, image::of_this_machine()?),
    ])
}

/// The variables by which the tests find what they are to run with. Sets up what they name.
fn parts(options: &Options) -> Result<Vec<(&'static str, PathBuf)>> {
    let built = workspace::target().join("debug");
    let mut parts = vec![(SIMULATION, built.clone())];
    if options.fast {
        // If it is built: the agent with it and the agent without it are two, of which cargo keeps one.
        let object = build::built_object();
        if object.exists() {
            parts.push((build::OBJECT_VARIABLE, object));
        }
        return Ok(parts);
    }
    if options.required.is_some() {
        setup::ensure(&[Group::Ebpf, Group::Python])?;
        parts.push((AMTOOL, archive::amtool()?));
        parts.push((REGISTRY, archive::registry()?));
        parts.push((NEWEST_PROMETHEUS, archive::newest_prometheus()?));
        parts.push((VICTORIA_METRICS, archive::victoria_metrics()?));
        parts.push((build::OBJECT_VARIABLE, build::object()?));
        parts.push(("GPUACCT_BIN", built.join("gpuacct")));
        return Ok(parts);
    }
    setup::ensure(&[
        Group::Ebpf,
        Group::Runtimes,
        Group::Receivers,
        Group::Python,
    ])?;
    // What is tested with these is tested with others, too: without them, as without a network, the
    // rest is worth running.
    let runtimes = setup::ensure(&[Group::OtherRuntimes]);
    for (variable, what, fetched) in [
        (
            NEWER_RUNTIMES,
            "further runtimes",
            runtimes.and_then(|()| archive::newer_runtimes()),
        ),
        (
            VICTORIA_METRICS,
            "receivers of OTLP over TLS",
            archive::victoria_metrics(),
        ),
        (NGINX, "receivers of OTLP over TLS", archive::nginx()),
        (AMTOOL, "Alertmanager's tool", archive::amtool()),
        (REGISTRY, "a registry", archive::registry()),
        (
            NEWEST_PROMETHEUS,
            "the newest Prometheus",
            archive::newest_prometheus(),
        ),
        (
            LATER_PROMETHEUS,
            "a later Prometheus",
            archive::later_prometheus(),
        ),
    ] {
        match fetched {
            Ok(place) => parts.push((variable, place)),
            Err(error) => println!("without {what}: {error:#}"),
        }
    }
    for (group, what) in [
        (Group::Browser, "a browser"),
        (Group::Shells, "shells to load completions"),
    ] {
        if let Err(error) = setup::ensure(&[group]) {
            println!("without {what}: {error:#}");
        }
    }
    if options.slow {
        parts.extend(slow_parts()?);
    }
    parts.push((build::OBJECT_VARIABLE, build::object()?));
    parts.push(("GPUACCT_BIN", built.join("gpuacct")));
    Ok(parts)
}

/// An empty file of that name in the target folder.
fn fresh(name: &str) -> Result<PathBuf> {
    let path = workspace::target().join(name);
    fs::write(&path, "").with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let runner = Runner::choose(options);
    let mut environment = parts(options)?;
    build(options, &environment)?;
    let skips = fresh("skipped-tests.txt")?;
    environment.push((SKIPS, skips.clone()));
    environment.push((CGROUPS_BEFORE, fresh("cgroups-before-tests.txt")?));

    let cores: usize = std::thread::available_parallelism().map_or(1, Into::into);
    let threads = (cores * THREADS_A_CORE).max(THREADS);
    let threads = ["--test-threads".to_owned(), threads.to_string()];
    let tests = Cmd::new(workspace::cargo());
    let tests = match runner {
        Runner::Nextest => tests
            .args(["nextest", "run", "--no-fail-fast"])
            .args(packages(options))
            .args(threads)
            .arg("--"),
        Runner::Libtest => tests
            .args(["test", "--lib", "--bins", "--tests", "--no-fail-fast"])
            .args(packages(options))
            .arg("--")
            .args(threads),
    };
    let mut tests = with(tests.args(&options.arguments), &environment);
    let slow = options.slow.then_some(SLOW_PARTS).into_iter().flatten();
    let further: Vec<_> = slow.chain(options.required).collect();
    if !further.is_empty() {
        let required = std::env::var(REQUIRE).unwrap_or_default();
        tests = tests.env(REQUIRE, format!("{required},{}", further.join(",")));
    }
    let (results, status) = match runner {
        // nextest reports on standard error.
        Runner::Nextest => {
            let (mut running, output) = tests.spawn_reading_errors()?;
            (follow(runner, BufReader::new(output))?, running.wait())
        }
        Runner::Libtest => {
            let (mut running, output) = tests.spawn_reading()?;
            (follow(runner, BufReader::new(output))?, running.wait())
        }
    };
    let status = status.context("cannot wait for the tests")?;
    let skipped = fs::read_to_string(&skips).unwrap_or_default();
    for name in results.names() {
        println!("failed: {name}");
    }
    for name in results.flaky() {
        println!("flaky: {name}: it failed and passed at the second try, see above");
    }
    for line in skipped.lines() {
        println!("skipped: {line}");
    }
    println!(
        "{} passed, {} failed, {} skipped",
        results.passed,
        results.failed,
        skipped.lines().count()
    );
    if !status.success() || results.failed > 0 {
        bail!("the tests failed: {status}");
    }
    if results.passed == 0 {
        bail!("no test ran");
    }
    if options.slow {
        fuzz::all(FUZZ_EACH)?;
    }
    Ok(())
}
