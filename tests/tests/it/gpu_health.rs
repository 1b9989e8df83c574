//! The health of a GPU and its Xid errors through the built agent: from NVML and the log to `/metrics`
//! and `gpuacct status`.
//!
//! The log is a pipe with a name in place of `/dev/kmsg`: the kernel lets nobody write a record of its
//! own facility there, which is why a forged one is not believed.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use gpuacct::config::Span;
use gpuacct::core::model::{SourceId, SourceState};
use gpuacct_tests::agent::{self, Agent};
use gpuacct_tests::daemon::Killed;
use gpuacct_tests::docker::{self, ContainerSpec};
use gpuacct_tests::node::{Node, new_pod_uid, state};
use gpuacct_tests::requirement::require;
use rustix::fs::{FileType, Mode};
use sim_nvml::{Health, Scenario};

const XIDS: &str = "gpuacct_gpu_xid_errors_total";

/// A log that only this test writes to, open for reading as well, so that it has no end.
fn log_at(path: &Path) -> File {
    let mode = Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, path, FileType::Fifo, mode, 0).unwrap();
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap()
}

/// Writes a record of the kernel's, as of now, and waits until it is read.
fn write_record(mut log: &File, text: &str) {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let micros = now.tv_sec * 1_000_000 + now.tv_nsec / 1_000;
    // In one write: the reader would take a part for a record.
    let record = format!("3,1,{micros},-;{text}\n");
    log.write_all(record.as_bytes()).unwrap();
    // The device gives one record at each reading, and a pipe gives all that is in it.
    while rustix::io::ioctl_fionread(log).unwrap() > 0 {
        std::thread::yield_now();
    }
}

/// The lines of the errors, without what differs between two runs.
fn xids(agent: &Agent) -> Vec<String> {
    agent.metric_lines(XIDS).unwrap()
}

fn wait_for_xid(agent: &mut Agent, xid: u32, count: u64) -> String {
    let wanted = format!("xid=\"{xid}\"");
    let end = format!(" {count}");
    let mut found = String::new();
    agent
        .wait_for("the error to be counted", |agent| {
            let lines = agent.metric_lines(XIDS)?;
            let line = lines
                .into_iter()
                .find(|line| line.contains(&wanted) && line.ends_with(&end));
            let is_there = line.is_some();
            found = line.unwrap_or_default();
            Ok(is_there)
        })
        .unwrap();
    found
}

#[test]
fn an_xid_error_has_the_container_that_caused_it() {
    let Some(_) = require("agent", agent::binary()) else {
        return;
    };
    let Some(_) = require("docker", docker::available()) else {
        return;
    };
    let node = Node::new(2).unwrap();
    let scenario = Scenario::open(node.scenario_dir()).unwrap();
    let mut daemon = node.dockerd().unwrap();
    let mut config = node.config();
    config.docker.sockets = vec![daemon.socket()];
    config.gpu.health.interval = Span(Duration::from_secs(1));
    config.publish.grace = Span(Duration::from_secs(30));
    config.kernel_log.path = node.dir().join("kmsg");
    config.dcgm.enabled = true;
    let log = log_at(&config.kernel_log.path);
    let mut agent = node.agent("agent", config).unwrap();
    let is_up = |source| move |status: &_| *state(status, source) == SourceState::Up;
    agent
        .wait_for_status("the log", is_up(SourceId::KernelLog))
        .unwrap();
    agent
        .wait_for_status("Docker", is_up(SourceId::Docker))
        .unwrap();

    let uid = new_pod_uid();
    let spec = ContainerSpec::named("k8s_main_xid").in_pod("ml", "xid-0", &uid, "main");
    let container = daemon.run(&node.at_work(spec, 0, "0.5")).unwrap();
    agent
        .wait_for_status("the container to be named and to hold the GPU", |status| {
            let mut accounts = status.snapshot.accounts.iter();
            accounts.any(|account| &*account.labels.pod == "xid-0" && account.memory.is_some())
        })
        .unwrap();

    // Under DCGM's name it has its own share, half of the GPU.
    agent
        .wait_for("the container's share under DCGM's name", |agent| {
            let lines = agent.metric_lines("DCGM_FI_DEV_GPU_UTIL")?;
            let line = lines.iter().find(|line| line.contains("pod=\"xid-0\""));
            let value = line.and_then(|line| line.rsplit_once(' '));
            Ok(value.is_some_and(|(_, value)| value.parse::<f64>().is_ok_and(|of| of > 10.0)))
        })
        .unwrap();

    // Both report it, in whichever order.
    write_record(
        &log,
        &format!(
            "NVRM: Xid (PCI:0000:17:00): 31, pid={}, name=sim-gpu-job, Ch 00000008, intr 00000000",
            container.pid
        ),
    );
    scenario.xid(0, 31).unwrap();
    // Only NVML does, and nobody else is on the GPU.
    scenario.xid(0, 79).unwrap();
    // One of a process on the host, and one of a GPU that nobody uses.
    let work = Killed(node.host_work(1, "0.1").spawn().unwrap());
    write_record(
        &log,
        &format!(
            "NVRM: Xid (PCI:0000:27:00): 43, pid={}, name=sim-gpu-job, Ch 1",
            work.pid()
        ),
    );
    write_record(
        &log,
        "NVRM: Xid (PCI:0000:ff:00): 48, pid='<unknown>', name=<unknown>",
    );

    let labels = format!(
        "namespace=\"ml\",pod=\"xid-0\",container=\"main\",pod_uid=\"{uid}\",container_id=\"{}\"",
        container.id
    );
    for xid in [31, 79] {
        let line = wait_for_xid(&mut agent, xid, 1);
        assert!(line.contains(&labels), "{line}");
        assert!(line.contains("unit=\"(none)\""), "{line}");
    }
    let line = wait_for_xid(&mut agent, 43, 1);
    assert!(line.contains("container=\"(none)\""), "{line}");
    assert!(!line.contains("unit=\"("), "it has a unit: {line}");
    assert_eq!(xids(&agent).len(), 3, "{:#?}", xids(&agent));
    let elsewhere = agent
        .metric_lines("gpuacct_xid_errors_elsewhere_total")
        .unwrap();
    assert_eq!(elsewhere, ["gpuacct_xid_errors_elsewhere_total 1"]);

    let output = agent.gpuacct(&["status"]).unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("gpu 0: Xid 79 "), "{text}");
    assert!(text.contains("by ml/xid-0/main"), "{text}");
    drop(work);
    assert!(agent.stop().unwrap().success());
}

#[test]
fn the_health_of_a_gpu_is_published_and_shown_where_it_needs_attention() {
    let Some(_) = require("agent", agent::binary()) else {
        return;
    };
    let node = Node::new(2).unwrap();
    let scenario = Scenario::open(node.scenario_dir()).unwrap();
    let mut config = node.config();
    config.gpu.health.interval = Span(Duration::from_secs(1));
    let health = Health {
        pcie_replays: 7,
        ecc_volatile: (3, 0),
        ecc_aggregate: (40, 1),
        ..Health::default()
    };
    scenario.health(0, health.clone()).unwrap();
    let mut agent = node.agent("agent", config).unwrap();
    agent
        .wait_for_status("the health of both", |status| {
            let mut books = status.snapshot.gpus.iter();
            books.all(|book| book.health.is_some())
        })
        .unwrap();
    let uuid = &scenario.machine().gpus[0].uuid;
    let line = |agent: &Agent, family: &str, labels: &str| {
        let lines = agent.metric_lines(family).unwrap();
        let found = lines
            .iter()
            .find(|line| line.contains(uuid) && line.contains(labels));
        let found = found.unwrap_or_else(|| panic!("{family} {labels}: {lines:#?}"));
        found.rsplit_once(' ').unwrap().1.to_owned()
    };
    assert_eq!(line(&agent, "gpuacct_gpu_power_watts", ""), "55");
    assert_eq!(line(&agent, "gpuacct_gpu_clock_hertz", "sm"), "210000000");
    assert_eq!(
        line(&agent, "gpuacct_gpu_ecc_lifetime_errors", "uncorrected"),
        "1"
    );
    // What the driver had counted before the agent is not the agent's.
    assert_eq!(line(&agent, "gpuacct_gpu_pcie_replays_total", ""), "0");
    assert_eq!(line(&agent, "gpuacct_gpu_status", "state=\"ok\""), "1");
    // This driver knows of no recovery action.
    let query = "gpuacct_gpu_health_query";
    assert_eq!(
        line(
            &agent,
            query,
            "group=\"recovery\",gpu_uuid=\"GPU-5a100000-51b0-4000-8000-000000000000\",state=\"unsupported\""
        ),
        "1"
    );
    let text = agent.gpuacct(&["status"]).unwrap().stdout;
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(!text.contains("gpu 0:"), "nothing needs attention: {text}");

    // The driver is loaded anew, and the GPU has become hot.
    scenario
        .health(
            0,
            Health {
                pcie_replays: 2,
                throttle_reasons: 0x40,
                ..health
            },
        )
        .unwrap();
    agent
        .wait_for("throttled seconds", |agent| {
            let time = line(
                agent,
                "gpuacct_gpu_throttle_seconds_total",
                "hardware_thermal",
            );
            Ok(time.parse::<f64>()? > 1.0)
        })
        .unwrap();
    assert_eq!(line(&agent, "gpuacct_gpu_pcie_replays_total", ""), "2");
    assert_eq!(
        line(&agent, "gpuacct_gpu_status", "state=\"degraded\""),
        "1"
    );
    let text = agent.gpuacct(&["status"]).unwrap().stdout;
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(
        text.contains("gpu 0: slowed down: hardware_thermal"),
        "{text}"
    );
    assert!(!text.contains("gpu 1:"), "{text}");
    assert!(agent.stop().unwrap().success());
}
