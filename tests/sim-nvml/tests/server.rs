//! Real processes that register themselves, through the real binary and the real socket.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use sim_nvml::{GpuSpec, JobTruth, Scenario, Server, Truth};

struct Rig {
    dir: tempfile::TempDir,
    scenario: Arc<Scenario>,
    server: Server,
}

fn rig() -> Rig {
    let dir = tempfile::tempdir().unwrap();
    let scenario = Arc::new(
        Scenario::create(
            dir.path().join("state"),
            vec![GpuSpec::a100(0), GpuSpec::a100(1)],
            1,
        )
        .unwrap(),
    );
    let server = Server::start(Arc::clone(&scenario), dir.path().join("gpu.sock")).unwrap();
    Rig {
        dir,
        scenario,
        server,
    }
}

fn job(socket: &Path, arguments: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sim-gpu-job"));
    command
        .arg("--socket")
        .arg(socket)
        .args(arguments)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn jobs(scenario: &Scenario) -> Vec<JobTruth> {
    let truth = Truth::read(scenario.dir()).unwrap();
    truth.jobs(0..u64::MAX)
}

/// Waits for what the log will say; fails when it has not said it for half a minute.
fn await_jobs(scenario: &Scenario, wanted: impl Fn(&[JobTruth]) -> bool) -> Vec<JobTruth> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let jobs = jobs(scenario);
        if wanted(&jobs) {
            return jobs;
        }
        assert!(Instant::now() < deadline, "the log never said so: {jobs:?}");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_job_lives_as_long_as_it_said_under_the_pid_that_the_kernel_says() {
    let rig = rig();
    let arguments = [
        "--gpu",
        "1",
        "--share",
        "0.5",
        "--memory-bytes",
        "4096",
        "--duration-ms",
        "300",
        "--label",
        "train/a",
    ];
    let mut child = job(rig.server.path(), &arguments);
    assert!(child.wait().unwrap().success());
    let jobs = jobs(&rig.scenario);
    assert_eq!(jobs.len(), 1);
    let only = &jobs[0];
    assert_eq!(
        (only.gpu, only.pid, only.label.as_deref()),
        (1, child.id(), Some("train/a"))
    );
    let life_us = only
        .to_us
        .expect("the job's end is in the log before the process exits")
        - only.from_us;
    assert!(life_us >= 300_000, "{life_us} µs");
    assert_eq!(only.busy_ns, life_us * 500);
    let log = rig.dir.path().join("truth.jsonl");
    Truth::read(rig.scenario.dir())
        .unwrap()
        .write(&log)
        .unwrap();
    let line: JobTruth = serde_json::from_str(
        std::fs::read_to_string(log)
            .unwrap()
            .lines()
            .next()
            .unwrap(),
    )
    .unwrap();
    assert_eq!(&line, only);
}

#[test]
fn a_killed_or_terminated_process_gives_its_gpu_back() {
    for signal in [libc::SIGKILL, libc::SIGTERM] {
        let rig = rig();
        let mut child = job(
            rig.server.path(),
            &["--share", "1", "--duration-ms", "3600000"],
        );
        await_jobs(&rig.scenario, |jobs| jobs.len() == 1);
        let pid = i32::try_from(child.id()).unwrap();
        // SAFETY: takes no pointers; the child has not been waited for, so the pid is its own.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
        child.wait().unwrap();
        let ended = await_jobs(&rig.scenario, |jobs| jobs[0].to_us.is_some());
        assert_eq!(
            ended[0].busy_ns,
            (ended[0].to_us.unwrap() - ended[0].from_us) * 1_000
        );
    }
}

#[test]
fn many_jobs_at_once_are_all_told_apart() {
    let rig = rig();
    let children: Vec<Child> = (0..64)
        .map(|_| {
            job(
                rig.server.path(),
                &["--share", "0.01", "--duration-ms", "200"],
            )
        })
        .collect();
    let mut pids: Vec<u32> = children.iter().map(Child::id).collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let mut seen: Vec<u32> = jobs(&rig.scenario).iter().map(|job| job.pid).collect();
    pids.sort_unstable();
    seen.sort_unstable();
    assert_eq!(seen, pids);
}

#[test]
fn what_makes_no_sense_is_refused_with_the_reason() {
    let rig = rig();
    for (request, reason) in [
        ("{\"gpu\":2,\"share\":1.0}\n", "no gpu 2: the machine has 2"),
        ("{\"share\":1.5}\n", "gpu share is 1.5, allowed is 0 to 1"),
        ("{\"share\":-0.1}\n", "gpu share is -0.1"),
        (
            "{\"share\":0.1,\"engines\":{\"memory\":2}}\n",
            "memory share is 2",
        ),
        ("{\"share\":\"all\"}\n", "malformed request"),
        ("\n", "malformed request"),
        ("not json\n", "malformed request"),
    ] {
        let mut stream = UnixStream::connect(rig.server.path()).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let answer = BufReader::new(&stream).lines().next().unwrap().unwrap();
        assert!(
            answer.starts_with("error: ") && answer.contains(reason),
            "{request:?}: {answer:?}"
        );
    }
    let mut stream = UnixStream::connect(rig.server.path()).unwrap();
    // The server stops reading at its limit and hangs up, perhaps before everything is written.
    drop(stream.write_all(&vec![b' '; 1 << 20]));
    assert!(
        BufReader::new(&stream)
            .lines()
            .next()
            .is_none_or(|line| line.is_err() || line.unwrap().starts_with("error: "))
    );
    assert!(jobs(&rig.scenario).is_empty());
    let deadline = Instant::now() + Duration::from_secs(30);
    while rig.server.refused() < 8 {
        assert!(
            Instant::now() < deadline,
            "{} refused",
            rig.server.refused()
        );
        thread::yield_now();
    }
    for arguments in [
        &["--share", "2"][..],
        &["--gpu", "x"],
        &["--label", "a\"b"],
        &["--what", "1"],
        &["--gpu"],
    ] {
        let mut child = job(rig.server.path(), arguments);
        assert_eq!(child.wait().unwrap().code(), Some(2), "{arguments:?}");
    }
    assert_eq!(
        job(rig.server.path(), &["--gpu", "7"])
            .wait()
            .unwrap()
            .code(),
        Some(1)
    );
}

#[test]
fn a_server_that_ends_ends_its_jobs() {
    let rig = rig();
    let mut child = job(rig.server.path(), &["--share", "1"]);
    await_jobs(&rig.scenario, |jobs| jobs.len() == 1);
    let socket = rig.server.path().to_owned();
    drop(rig.server);
    assert!(jobs(&rig.scenario)[0].to_us.is_some());
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert!(!socket.exists());
}
