//! The recorder as a whole, against the simulated library: what it finds must be what the simulation
//! was built to do.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use gpuacct_tests::{agent, requirement};
use serde_json::Value;
use sim_nvml::library::{self, Driver};
use sim_nvml::{GpuSpec, STATE_DIR, Scenario, Server};

const RECORD: &str = env!("CARGO_BIN_EXE_gpu-record");
const LOAD: &str = env!("CARGO_BIN_EXE_gpu-load");

/// A simulated GPU, a job that stands in for the load, and a folder for results.
struct Rig {
    dir: tempfile::TempDir,
    library: PathBuf,
    load: PathBuf,
    /// Its jobs end with it.
    _server: Server,
}

impl Rig {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let scenario = Scenario::create(&state, vec![GpuSpec::a100(0)], 11).unwrap();
        let server = Server::start(Arc::new(scenario), dir.path().join("jobs.sock")).unwrap();
        let library = library::install(Driver::R550, dir.path()).unwrap();
        let job = library::build_job().unwrap();
        // Takes the arguments of a load, the last two of which (--report FILE) a job has no use for.
        let line = format!(
            "exec '{}' --socket '{}' \"$1\" \"$2\" \"$3\" \"$4\" \"$5\" \"$6\" \"$7\" \"$8\"",
            job.display(),
            server.path().display()
        );
        let load = script(dir.path(), "load", &line);
        Self {
            dir,
            library,
            load,
            _server: server,
        }
    }

    fn out(&self) -> PathBuf {
        self.dir.path().join("out")
    }

    fn record(&self, seconds: u32, arguments: &[&str]) -> Output {
        Command::new(RECORD)
            .arg("--out")
            .arg(self.out())
            .args(["--seconds", &seconds.to_string(), "--library"])
            .arg(&self.library)
            .args(arguments)
            .env(STATE_DIR, self.dir.path().join("state"))
            .output()
            .unwrap()
    }

    fn summary(&self) -> String {
        fs::read_to_string(self.out().join("summary.md")).unwrap()
    }
}

fn script(dir: &Path, name: &str, line: &str) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, format!("#!/bin/sh\n{line}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn the_simulations_own_facts_are_found() {
    let rig = Rig::new();
    let agent = script(
        rig.dir.path(),
        "refusing-agent",
        "echo 'error: this kernel has no BTF' >&2; exit 1",
    );
    let (load, agent) = (rig.load.to_str().unwrap(), agent.to_str().unwrap());
    let output = rig.record(20, &["--load", load, "--agent", agent]);
    assert!(output.status.success(), "{}", stderr(&output));
    let summary = rig.summary();
    let findings = fs::read(rig.out().join("findings.json")).unwrap();
    let findings: Value = serde_json::from_slice(&findings).unwrap();

    // The ring: 72 entries, one each 1/6 s.
    let ring = &findings["rings"]["0"];
    assert_eq!(ring["capacity"], 72, "{summary}");
    let period_us = ring["period_us"].as_u64().unwrap();
    assert!((166_000..=167_500).contains(&period_us), "{summary}");
    let rounding = &findings["rounding"];
    assert_ne!(rounding["floor"], 0, "{summary}");
    assert_eq!(rounding["nearest"], 0, "{summary}");
    assert_eq!(rounding["neither"], 0, "{summary}");
    let queries = findings["size_queries"].as_array().unwrap();
    assert!(
        queries.iter().any(|query| query["whole_ring"] == true
            && query["code"] == 7
            && query["room"] == 4096),
        "{summary}"
    );
    assert_eq!(findings["memory_versions"]["2"], "code 25", "{summary}");
    assert_eq!(
        findings["memory_versions"][&0x0200_0028.to_string()],
        "code 0",
        "{summary}"
    );
    // Killed at half time; its rows stay until the ring has gone round.
    let killed = &findings["programs"][0];
    assert_eq!(killed["listed_while_running"], true, "{summary}");
    assert_eq!(killed["status"], "signal: 9 (SIGKILL)", "{summary}");
    assert!(killed["rows_after_end_us"].is_u64(), "{summary}");
    // A list that was being read when it ended may still name it.
    let listed = killed["listed_after_end_us"].as_u64().unwrap_or(0);
    let rows = killed["rows_after_end_us"].as_u64().unwrap();
    assert!(listed < 2_000_000 && listed < rows, "{summary}");
    assert_eq!(findings["programs"].as_array().unwrap().len(), 3);

    for words in [
        "**simulated**",
        "## 3. Floor or nearest?\n\nfloor\n",
        "Skipped: no MPS client ran",
        "It ended by itself: exit status: 1",
        "error: this kernel has no BTF",
    ] {
        assert!(summary.contains(words), "{words:?} in {summary}");
    }
    for name in ["idle", "full", "part", "pair"] {
        assert!(rig.out().join(format!("{name}.jsonl")).is_file());
    }

    let again = rig.record(4, &["--no-load", "--no-agent"]);
    assert_eq!(again.status.code(), Some(1));
    assert!(stderr(&again).contains("recordings are never overwritten"));
    assert_eq!(rig.summary(), summary);
}

#[test]
fn the_real_agents_figures_are_in_the_summary() {
    let Some(agent) = requirement::require("agent", agent::binary()) else {
        return;
    };
    let rig = Rig::new();
    let load = rig.load.to_str().unwrap();
    let output = rig.record(8, &["--load", load, "--agent", agent.to_str().unwrap()]);
    assert!(output.status.success(), "{}", stderr(&output));
    let summary = rig.summary();
    assert!(summary.contains("It ran until it was ended."), "{summary}");
    assert!(
        summary.contains("\ngpuacct_gpu_busy_seconds_total{"),
        "{summary}"
    );
    assert!(rig.out().join("agent/status.json").is_file());
}

#[test]
fn without_a_driver_it_says_so_and_leaves_nothing_that_looks_like_a_recording() {
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new(RECORD)
        .args([
            "--seconds",
            "4",
            "--library",
            "/nonexistent/libnvidia-ml.so.1",
        ])
        .arg("--out")
        .arg(dir.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(
        stderr(&output).lines().last(),
        Some(
            "error: no NVIDIA GPU can be recorded here: /nonexistent/libnvidia-ml.so.1 does not exist"
        )
    );
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn wrong_arguments_are_named() {
    for (program, arguments, words) in [
        (
            RECORD,
            &["--out", "x", "--seconds", "3"][..],
            "3 is not in 4..=90",
        ),
        (LOAD, &["--share", "1.5"], "expected 0 to 1, found \"1.5\""),
        (LOAD, &["--period-ms", "1"], "1 is not in 10..=600000"),
    ] {
        let output = Command::new(program).args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(stderr(&output).contains(words), "{}", stderr(&output));
    }
}

#[test]
fn a_load_without_nvidias_driver_names_the_library() {
    let output = Command::new(LOAD)
        .args(["--duration-ms", "1"])
        .output()
        .unwrap();
    if output.status.success() {
        // There is a GPU: the report is what is left to check.
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(report["uuid"].as_str().unwrap().starts_with("GPU-"));
        return;
    }
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).starts_with("error: cannot load libcuda.so.1: "),
        "{}",
        stderr(&output)
    );
}
