//! Other people's NVML clients against the simulated library: proof that it speaks NVML's ABI and
//! not only our reading of it. The processes are real, their GPU past is scripted.

use std::process::Command;
use std::sync::Arc;

use gpuacct_tests::daemon::Killed;
use gpuacct_tests::python::{Venv, run, venv};
use gpuacct_tests::requirement::require;
use serde_json::Value;
use sim_nvml::library::{self, Driver};
use sim_nvml::{
    Engines, Event, GpuSpec, Health, Job, JobId, Kind, Scenario, Script, Server, Truth,
};

/// The clients, pinned: a new release is tried on purpose, not by chance.
const PINS: [&str; 3] = ["nvidia-ml-py==13.615.71", "nvitop==1.7.2", "gpustat==1.1.1"];
const GIB: u64 = 1 << 30;
const SECOND: u64 = 1_000_000;

/// A process that exists, and nothing else.
fn process() -> Killed {
    let child = Command::new("sleep").arg("3600").spawn();
    Killed(child.expect("sleep(1) is everywhere"))
}

/// Two GPUs with a minute behind them: one process has the first GPU, three share the second.
struct Rig {
    dir: tempfile::TempDir,
    venv: Venv,
    scenario: Scenario,
    alone: Killed,
    sharing: [Killed; 3],
}

impl Rig {
    fn new() -> Option<Self> {
        let venv = require("pypi", venv("nvml-clients", &PINS))?;
        let dir = tempfile::tempdir().expect("a temporary directory");
        library::install(Driver::R550, &dir.path().join("lib")).expect("the library builds");
        let (alone, sharing) = (process(), [process(), process(), process()]);
        let created_us = sim_nvml::wall_us() - 60 * SECOND;
        let mut script = Script::new(created_us, vec![GpuSpec::a100(0), GpuSpec::a100(1)], 2026);
        let engines = Engines {
            memory: 0.5,
            ..Engines::default()
        };
        let whole = Job {
            share: 1.0,
            memory_bytes: 2 * GIB,
            engines,
            ..Job::default()
        };
        let jobs = [
            (&alone, whole),
            (
                &sharing[0],
                Job {
                    gpu: 1,
                    share: 0.5,
                    memory_bytes: 3 * GIB,
                    ..Job::default()
                },
            ),
            (
                &sharing[1],
                Job {
                    gpu: 1,
                    share: 0.25,
                    memory_bytes: 4 * GIB,
                    ..Job::default()
                },
            ),
            (
                &sharing[2],
                Job {
                    gpu: 1,
                    share: 0.1,
                    memory_bytes: 5 * GIB,
                    kind: Kind::Graphics,
                    ..Job::default()
                },
            ),
        ];
        for (id, (process, work)) in (0..).zip(jobs) {
            let job = JobId(u64::MAX - id);
            script = script.at(
                created_us,
                Event::Start {
                    job,
                    pid: process.pid(),
                    inner_pid: None,
                    work,
                },
            );
        }
        let scenario = script
            .create(dir.path().join("state"))
            .expect("a fresh directory");
        Some(Self {
            dir,
            venv,
            scenario,
            alone,
            sharing,
        })
    }

    fn client(&self, program: &str) -> Command {
        let mut command = Command::new(self.venv.program(program));
        command
            .env("LD_LIBRARY_PATH", self.dir.path().join("lib"))
            .env(sim_nvml::STATE_DIR, self.scenario.dir());
        command
            .env("NO_COLOR", "1")
            .env("TERM", "dumb")
            .env("COLUMNS", "200")
            .env("LANG", "C.UTF-8");
        command
    }
}

/// Asks everything twice where one answer could be torn, and prints it as JSON.
const PYNVML: &str = r#"
import json, pynvml as n
n.nvmlInit()
def text(value): return value.decode() if isinstance(value, bytes) else value
gpus = []
for index in range(n.nvmlDeviceGetCount()):
    gpu = n.nvmlDeviceGetHandleByIndex(index)
    memory = n.nvmlDeviceGetMemoryInfo(gpu, version=n.nvmlMemory_v2)
    lists = dict(compute=n.nvmlDeviceGetComputeRunningProcesses(gpu),
                 graphics=n.nvmlDeviceGetGraphicsRunningProcesses(gpu),
                 mps=n.nvmlDeviceGetMPSComputeRunningProcesses(gpu))
    samples = lambda: [(s.timeStamp, s.sampleValue.uiVal)
                       for s in n.nvmlDeviceGetSamples(gpu, n.NVML_GPU_UTILIZATION_SAMPLES, 0)[1]]
    while True:
        before = samples()
        last_seen = before[-60][0]
        rows = [(r.pid, r.timeStamp, r.smUtil, r.memUtil) for r in n.nvmlDeviceGetProcessUtilization(gpu, last_seen)]
        if samples()[-1] == before[-1]:
            break
    newer = [sample for sample in before if sample[0] > last_seen]
    try:
        n.nvmlDeviceGetProcessUtilization(gpu, before[-1][0] + 3600 * 10**6)
        later = 'rows'
    except n.NVMLError_NotFound:
        later = 'not found'
    gpus.append(dict(
        name=text(n.nvmlDeviceGetName(gpu)), uuid=text(n.nvmlDeviceGetUUID(gpu)),
        bus=text(n.nvmlDeviceGetPciInfo(gpu).busId), total=memory.total, used=memory.used,
        lists={kind: [(p.pid, p.usedGpuMemory) for p in rows] for kind, rows in lists.items()},
        last_seen=last_seen, samples=newer, rows=rows, later=later,
        rates=n.nvmlDeviceGetUtilizationRates(gpu).gpu,
        energy=n.nvmlDeviceGetTotalEnergyConsumption(gpu), power=n.nvmlDeviceGetPowerUsage(gpu),
        accounting=n.nvmlDeviceGetAccountingMode(gpu), mig=n.nvmlDeviceGetMigMode(gpu)))
print(json.dumps(dict(driver=text(n.nvmlSystemGetDriverVersion()), gpus=gpus)))
n.nvmlShutdown()
"#;

#[test]
fn nvidia_ml_py_shows_the_scenario_s_pids_and_the_ring_s_means() {
    let Some(rig) = Rig::new() else { return };
    let text = run(rig.client("python").args(["-c", PYNVML]))
        .expect("NVIDIA's own bindings accept the library");
    let seen: Value = serde_json::from_str(&text).expect("the script prints JSON");
    assert_eq!(seen["driver"], "550.163.01");
    let truth = Truth::read(rig.scenario.dir()).expect("the scenario's log");
    let expected_lists = [
        (vec![(rig.alone.pid(), 2 * GIB)], vec![]),
        (
            vec![
                (rig.sharing[0].pid(), 3 * GIB),
                (rig.sharing[1].pid(), 4 * GIB),
            ],
            vec![(rig.sharing[2].pid(), 5 * GIB)],
        ),
    ];
    for (index, (spec, (compute, graphics))) in
        (0..).zip(rig.scenario.machine().gpus.iter().zip(expected_lists))
    {
        let gpu = &seen["gpus"][index as usize];
        assert_eq!(
            (gpu["name"].as_str(), gpu["uuid"].as_str()),
            (Some(&*spec.name), Some(&*spec.uuid))
        );
        assert_eq!(gpu["lists"]["compute"], serde_json::json!(compute));
        assert_eq!(gpu["lists"]["graphics"], serde_json::json!(graphics));
        assert_eq!(gpu["lists"]["mps"], serde_json::json!([]));
        let held: u64 = compute
            .iter()
            .chain(&graphics)
            .map(|(_, bytes)| bytes)
            .sum();
        assert_eq!(
            (gpu["total"].as_u64(), gpu["used"].as_u64()),
            (Some(80 * GIB), Some(held))
        );
        assert_eq!(
            (&gpu["later"], &gpu["accounting"], &gpu["mig"]),
            (&"not found".into(), &0.into(), &[0, 0].into())
        );
        assert!(gpu["energy"].as_u64() > Some(0) && gpu["power"].as_u64() >= Some(spec.idle_mw));

        // Each row is the floored mean of what the ring credited to its pid after lastSeen.
        let samples = gpu["samples"].as_array().expect("samples");
        let number = |value: &Value| value.as_u64().expect("a number");
        let (begin, end) = (
            number(&gpu["last_seen"]) + 1,
            number(&samples[samples.len() - 1][0]) + 1,
        );
        assert!(samples.len() >= 59, "{} samples", samples.len());
        let credited = truth.ring_ns(index, begin..end);
        let rows = gpu["rows"].as_array().expect("rows");
        assert_eq!(rows.len(), credited.len(), "{rows:?} {credited:?}");
        for row in rows {
            let pid = u32::try_from(number(&row[0])).expect("a pid");
            let whole = samples.len() as u64 * spec.ring.period_ns;
            assert_eq!(number(&row[2]), credited[&pid] * 100 / whole, "pid {pid}");
            assert!((begin..end).contains(&number(&row[1])));
        }
        let device: u64 = samples.iter().map(|sample| number(&sample[1])).sum();
        assert_eq!(
            device * spec.ring.period_ns / 100,
            credited.values().sum::<u64>()
        );
    }
    assert_eq!(seen["gpus"][0]["rates"], 100);
}

#[test]
fn gpustat_shows_the_scenario_s_pids_and_memory() {
    let Some(rig) = Rig::new() else { return };
    let text = run(rig.client("gpustat").arg("--json")).expect("gpustat accepts the library");
    let seen: Value = serde_json::from_str(&text).expect("gpustat prints JSON");
    let processes = |gpu: usize| {
        let rows = seen["gpus"][gpu]["processes"]
            .as_array()
            .expect("processes");
        let mut rows: Vec<_> = rows
            .iter()
            .map(|row| (row["pid"].as_u64(), row["gpu_memory_usage"].as_u64()))
            .collect();
        rows.sort_unstable();
        rows
    };
    let row = |process: &Killed, gib: u64| (Some(u64::from(process.pid())), Some(gib * 1_024));
    assert_eq!(processes(0), [row(&rig.alone, 2)]);
    let mut shared = vec![
        row(&rig.sharing[0], 3),
        row(&rig.sharing[1], 4),
        row(&rig.sharing[2], 5),
    ];
    shared.sort_unstable();
    assert_eq!(processes(1), shared);
    let gpu = &seen["gpus"][0];
    assert_eq!(gpu["utilization.gpu"], 100);
    assert_eq!(
        (&gpu["memory.used"], &gpu["memory.total"]),
        (&2_048.into(), &81_920.into())
    );
    assert_eq!(
        gpu["uuid"].as_str(),
        Some(&*rig.scenario.machine().gpus[0].uuid)
    );
}

/// A GPU that is not well.
fn ill() -> Health {
    Health {
        memory_temperature: 93,
        throttle_reasons: 0x40,
        ecc_volatile: (11, 12),
        ecc_aggregate: (21, 22),
        rows_remapped: (31, 32),
        remap_pending: true,
        pcie_replays: 51,
        pcie_throughput: (61, 62),
        nvlink: [71, 72, 73, 74],
        ..Health::default()
    }
}

/// Asks NVIDIA's bindings for the health of the first GPU, by the functions and by the fields.
const HEALTH: &str = r#"
import json, pynvml as n
n.nvmlInit()
gpu = n.nvmlDeviceGetHandleByIndex(0)
fields = dict(memory_temp=n.NVML_FI_DEV_MEMORY_TEMP, sbe_vol=n.NVML_FI_DEV_ECC_SBE_VOL_TOTAL,
              dbe_agg=n.NVML_FI_DEV_ECC_DBE_AGG_TOTAL, remap_pending=n.NVML_FI_DEV_REMAPPED_PENDING,
              retired=n.NVML_FI_DEV_RETIRED_SBE, replays=n.NVML_FI_DEV_PCIE_REPLAY_COUNTER,
              nvlink=n.NVML_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL,
              recovery=n.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION)
values = n.nvmlDeviceGetFieldValues(gpu, list(fields.values()))
print(json.dumps(dict(
    fields={name: [v.nvmlReturn, v.value.ullVal] for name, v in zip(fields, values)},
    ecc=[n.nvmlDeviceGetTotalEccErrors(gpu, kind, counter) for kind in (0, 1) for counter in (0, 1)],
    rows=list(n.nvmlDeviceGetRemappedRows(gpu)), replays=n.nvmlDeviceGetPcieReplayCounter(gpu),
    reasons=n.nvmlDeviceGetCurrentClocksEventReasons(gpu),
    older=n.nvmlDeviceGetCurrentClocksThrottleReasons(gpu),
    pcie=[n.nvmlDeviceGetPcieThroughput(gpu, kind) for kind in (0, 1)],
    limit=n.nvmlDeviceGetEnforcedPowerLimit(gpu), temperature=n.nvmlDeviceGetTemperature(gpu, 0),
    clocks=[n.nvmlDeviceGetClockInfo(gpu, kind) for kind in (1, 2)])))
"#;

#[test]
fn nvidia_ml_py_reads_the_scenario_s_health() {
    let Some(rig) = Rig::new() else { return };
    rig.scenario.health(0, ill()).expect("the GPU is there");
    let text = run(rig.client("python").args(["-c", HEALTH])).expect("the bindings accept it");
    let seen: Value = serde_json::from_str(&text).expect("the script prints JSON");
    let fields = serde_json::json!({
        "memory_temp": [0, 93], "sbe_vol": [0, 11], "dbe_agg": [0, 22], "remap_pending": [0, 1],
        // Not offered since Ampere, and not known to this driver.
        "retired": [3, 0], "recovery": [2, 0],
        "replays": [0, 51], "nvlink": [0, 73],
    });
    assert_eq!(seen["fields"], fields);
    assert_eq!(seen["ecc"], serde_json::json!([11, 21, 12, 22]));
    assert_eq!(seen["rows"], serde_json::json!([31, 32, 1, 0]));
    assert_eq!(seen["replays"], 51);
    assert_eq!(
        (&seen["reasons"], &seen["older"]),
        (&0x40.into(), &0x40.into())
    );
    assert_eq!(seen["pcie"], serde_json::json!([61, 62]));
    assert_eq!(
        (&seen["limit"], &seen["temperature"]),
        (&400_000.into(), &75.into())
    );
    assert_eq!(seen["clocks"], serde_json::json!([1_410, 1_593]));
}

#[test]
fn nvitop_and_gpustat_show_the_scenario_s_health() {
    let Some(rig) = Rig::new() else { return };
    rig.scenario.health(0, ill()).expect("the GPU is there");
    let text = run(rig.client("gpustat").arg("--json")).expect("gpustat accepts the library");
    let seen: Value = serde_json::from_str(&text).expect("gpustat prints JSON");
    let gpu = &seen["gpus"][0];
    assert_eq!(gpu["temperature.gpu"], 75);
    assert_eq!(
        (&gpu["power.draw"], &gpu["enforced.power.limit"]),
        (&400.into(), &400.into())
    );
    let text =
        run(rig.client("nvitop").args(["-1", "--no-unicode"])).expect("nvitop accepts the library");
    // Temperature, power and limit, and uncorrected volatile ECC errors.
    for word in ["75C", "400W", "12"] {
        let is_shown = text
            .split(|c: char| !c.is_alphanumeric())
            .any(|found| found == word);
        assert!(is_shown, "no {word} in:\n{text}");
    }
}

/// Prints its own pid and those of the GPU's processes, as an NVML client in its namespace sees them.
const INSIDE: &str = r#"
import json, os, pynvml as n
n.nvmlInit()
gpu = n.nvmlDeviceGetHandleByIndex(0)
rows = n.nvmlDeviceGetProcessUtilization(gpu, 0)
print(json.dumps(dict(listed=[p.pid for p in n.nvmlDeviceGetComputeRunningProcesses(gpu)], rows=[r.pid for r in rows])))
"#;

#[test]
fn a_process_in_another_pid_namespace_is_known_by_both_its_pids() {
    let Some(rig) = Rig::new() else { return };
    let unshare = ["--pid", "--fork", "--mount-proc"];
    let available = run(Command::new("unshare").args(unshare).arg("true"));
    let Some(_) = require("namespaces", available) else {
        return;
    };
    let job = library::build_job().expect("the job builds");
    let socket = rig.dir.path().join("gpu.sock");
    let scenario = Scenario::open(rig.scenario.dir()).expect("the scenario");
    let _server = Server::start(Arc::new(scenario), &socket).expect("a socket");
    // The job says nothing when it is registered; the client looks until the list shows it.
    let script = "\"$1\" --socket \"$2\" --share 0.1 --duration-ms 3600000 --label inside & echo $!
        for attempt in $(seq 300); do
            \"$3\" -c \"$4\" > \"$5\"; grep -q '\"listed\": .[0-9]' \"$5\" && break
        done
        cat \"$5\"; kill $!";
    let mut inside = Command::new("unshare");
    inside
        .args(unshare)
        .args(["sh", "-c", script, "sh"])
        .arg(&job)
        .arg(&socket);
    inside
        .arg(rig.venv.program("python"))
        .arg(INSIDE)
        .arg(rig.dir.path().join("seen"));
    inside
        .env("LD_LIBRARY_PATH", rig.dir.path().join("lib"))
        .env(sim_nvml::STATE_DIR, rig.scenario.dir());
    let text = run(&mut inside).expect("the client runs inside");
    let (pid, seen) = text.split_once('\n').expect("a pid and a line");
    let (pid, seen): (u32, Value) = (
        pid.parse().expect("a pid"),
        serde_json::from_str(seen).expect("JSON"),
    );
    assert_eq!(
        seen["listed"],
        serde_json::json!([pid]),
        "its own pid there, and nobody from outside"
    );
    let rows = seen["rows"].as_array().expect("rows");
    assert!(
        rows.contains(&rig.alone.pid().into()),
        "this driver's utilisation rows have the host's pids: {rows:?}"
    );

    let truth = Truth::read(rig.scenario.dir()).expect("the scenario's log");
    let jobs = truth.jobs(0..u64::MAX);
    let job = jobs
        .iter()
        .find(|job| job.label.as_deref() == Some("inside"))
        .expect("the job is in the log");
    assert_ne!(job.pid, pid, "outside it has the host's");
}

#[test]
fn nvitop_shows_the_scenario_s_pids_and_shares() {
    let Some(rig) = Rig::new() else { return };
    let text =
        run(rig.client("nvitop").args(["-1", "--no-unicode"])).expect("nvitop accepts the library");
    let row = |process: &Killed| {
        let pid = process.pid().to_string();
        let row = text
            .lines()
            .find(|line| line.split_whitespace().any(|word| word == pid));
        row.unwrap_or_else(|| panic!("no pid {pid} in:\n{text}"))
    };
    let alone = row(&rig.alone);
    assert!(
        alone.contains("2048MiB") || alone.contains("2.00GiB") || alone.contains("2048M"),
        "{alone}\n{text}"
    );
    assert!(
        alone.split_whitespace().any(|word| word == "100"),
        "100 % of the multiprocessors: {alone}"
    );
    for process in &rig.sharing {
        row(process);
    }
}
