//! The demonstration: real eBPF, real containers, the built agent, and a simulated GPU if there is
//! none, which the output says. `cargo xtask demo` builds everything and runs this.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gpuacct::config::{Config, Span};
use gpuacct::outputs::socket::StatusReport;
use gpuacct_tests::agent::Agent;
use gpuacct_tests::docker::{self, Container, ContainerSpec, Dockerd};
use gpuacct_tests::pace::{interrupted, rest_until};
use sim_nvml::library::{self, Driver};
use sim_nvml::{GpuSpec, Scenario, Server, Truth};

/// When in the run the short job comes.
const SHORT_JOB_AFTER: Duration = Duration::from_secs(10);
const SHORT_JOB_MILLIS: u64 = 300;
/// A run that is as long has batch jobs, too, one after the other once the short job has been.
const LONG_RUN: Duration = Duration::from_secs(120);
/// Hundredths of the run between two of them.
const BATCH_PAUSE: u32 = 3;
/// Where a driver puts its character device.
const REAL_GPU: &str = "/dev/nvidiactl";

struct Workload {
    pod: Pod,
    gpu: u32,
    share: &'static str,
}

#[derive(Clone, Copy)]
struct Pod {
    namespace: &'static str,
    name: &'static str,
    uid: &'static str,
    container: &'static str,
}

const WORKLOADS: [Workload; 3] = [
    Workload {
        pod: Pod {
            namespace: "research",
            name: "train-7b-0",
            uid: "6f1c8a52-3c1e-4c55-9a8e-0d5b7c1a2e01",
            container: "trainer",
        },
        gpu: 0,
        share: "0.5",
    },
    Workload {
        pod: Pod {
            namespace: "research",
            name: "notebook-ada",
            uid: "6f1c8a52-3c1e-4c55-9a8e-0d5b7c1a2e02",
            container: "jupyter",
        },
        gpu: 0,
        share: "0.2",
    },
    Workload {
        pod: Pod {
            namespace: "serving",
            name: "chat-5d9f7-x2x4z",
            uid: "6f1c8a52-3c1e-4c55-9a8e-0d5b7c1a2e03",
            container: "server",
        },
        gpu: 1,
        share: "0.35",
    },
];
const SHORT_JOB: Pod = Pod {
    namespace: "batch",
    name: "thumbnail-28431",
    uid: "6f1c8a52-3c1e-4c55-9a8e-0d5b7c1a2e04",
    container: "convert",
};
const SHORT_JOB_GPU: u32 = 2;

/// A job that comes and goes in a long run.
struct BatchJob {
    pod: Pod,
    gpu: u32,
    share: &'static str,
    /// How long it works, in hundredths of the run.
    hundredths: u32,
}

/// A job of the namespace `batch`.
const fn batch(
    name: &'static str,
    uid: &'static str,
    gpu: u32,
    share: &'static str,
    hundredths: u32,
) -> BatchJob {
    BatchJob {
        pod: Pod {
            namespace: "batch",
            name,
            uid,
            container: "main",
        },
        gpu,
        share,
        hundredths,
    }
}

const BATCH: [BatchJob; 6] = [
    batch(
        "eval-7b-0",
        "6f1c8a52-3c1e-4c55-9a8e-0d5b7c1a2e05",
        2,
        "0.8",
        14,
    ),
    batch(
        "render-frames-118",
        "6f1c8a52-3c1e-4c55-9a8e-0d5b7c1a2e06",
        1,
        "0.4",
        10,
    ),
    batch(
        "embed-docs-0",
        "6f1c8a52-3c1e-4c55-9a8e-0d5b7c1a2e07",
        2,
        "0.45",
        17,
    ),
    batch(
        "sweep-lr-3",
        "6f1c8a52-3c1e-4c55-9a8e-0d5b7c1a2e08",
        0,
        "0.25",
        12,
    ),
    batch(
        "eval-7b-1",
        "6f1c8a52-3c1e-4c55-9a8e-0d5b7c1a2e09",
        2,
        "0.9",
        13,
    ),
    batch(
        "render-frames-119",
        "6f1c8a52-3c1e-4c55-9a8e-0d5b7c1a2e0a",
        1,
        "0.3",
        8,
    ),
];
const HOST_SHARE: &str = "0.15";
const HOST_LABEL: &str = "host-process";

/// What the demonstration may be told.
#[derive(clap::Parser)]
struct Options {
    /// How long the containers work, in seconds
    #[arg(long, default_value_t = 30)]
    seconds: u64,
}

fn main() -> ExitCode {
    let Options { seconds } = clap::Parser::parse();
    match run(Duration::from_secs(seconds)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(length: Duration) -> Result<()> {
    docker::available().context("the demo starts a dockerd of its own")?;
    let interrupted = interrupted()?;
    let dir = tempfile::Builder::new()
        .prefix("gpuacct-")
        .tempdir_in("/tmp")?;
    let dir = dir.path();
    if Path::new(REAL_GPU).exists() {
        println!("GPU: real. The agent runs against NVIDIA's library on this machine.");
        return run_on_real_gpu(dir, length, &interrupted);
    }
    println!("GPU: simulated. This machine has no NVIDIA driver; kernel and containers are real.");
    run_simulated(dir, length, &interrupted)
}

fn config(docker: &Dockerd, library: Option<PathBuf>) -> Config {
    let mut config = Config::default();
    // Short enough for amounts to show within the demo.
    config.publish.grace = Span(Duration::from_secs(3));
    config.publish.zero_for = Span(Duration::from_secs(3));
    config.docker.sockets = vec![docker.socket()];
    config.gpu.library = library;
    config
}

fn run_simulated(dir: &Path, length: Duration, interrupted: &AtomicBool) -> Result<()> {
    let scenario = Scenario::create(dir.join("gpus"), (0..3).map(GpuSpec::a100).collect(), 1)?;
    let scenario = Arc::new(scenario);
    // Dropped last: its jobs end with it.
    let server = Server::start(Arc::clone(&scenario), dir.join("jobs.sock"))?;
    let library = library::install(Driver::R550, &dir.join("lib"))?;
    let job = library::build_job()?;

    println!("dockerd: started for this demo in {}", dir.display());
    let mut docker = Dockerd::start(docker::Options {
        live_restore: true,
        ..docker::Options::at(dir.join("docker"))
    })?;
    // One container is there before the agent, the others come later.
    let mut containers = vec![start(&mut docker, &job, &server, &WORKLOADS[0])?];
    let environment = [(sim_nvml::STATE_DIR, scenario.dir())];
    let mut agent = Agent::start(dir, config(&docker, Some(library)), &environment)?;
    agent.wait_for_status("the three GPUs", |status| status.snapshot.gpus.len() == 3)?;
    println!("agent: running, pid {}", agent.pid());
    println!("page: http://{}/", agent.address());
    for workload in &WORKLOADS[1..] {
        containers.push(start(&mut docker, &job, &server, workload)?);
    }
    let mut host = HostJob(
        Command::new(&job)
            .args(["--gpu", "1", "--share", HOST_SHARE, "--label", HOST_LABEL])
            .args(["--memory-bytes", &(2_u64 << 30).to_string(), "--socket"])
            .arg(server.path())
            .spawn()
            .context("cannot start the host process")?,
    );
    let began = Instant::now();
    println!(
        "working for {} s: three containers, one host process, and a job of {SHORT_JOB_MILLIS} ms \
         that is gone before a poll could see it",
        length.as_secs()
    );
    rest_until(began + SHORT_JOB_AFTER, interrupted)?;
    docker.run_to_end(
        &in_pod(SHORT_JOB, &server)
            .command(job_command(
                SHORT_JOB_GPU,
                "1",
                SHORT_JOB.name,
                Some(SHORT_JOB_MILLIS),
            ))
            .mount(&job, "/sim-gpu-job"),
    )?;
    if length >= LONG_RUN {
        for batch in &BATCH {
            let work = length / 100 * batch.hundredths;
            println!("{}: for {} s", batch.pod.name, work.as_secs());
            run_batch(&mut docker, &job, &server, batch, work, interrupted)?;
            rest_until(Instant::now() + length / 100 * BATCH_PAUSE, interrupted)?;
        }
    }
    rest_until(began + length, interrupted)?;

    let status_while_working = agent.status_text(&["--processes"])?.0;
    for container in &containers {
        docker.remove(container)?;
    }
    host.end()?;
    let to_us = sim_nvml::wall_us();
    // The books are complete when they have passed the end of the work and nothing is held back.
    let report = agent.wait_for_status("the books to pass the end of the work", |status| {
        let behind = status.now_wall.0 / 1_000 < to_us + 2_000_000;
        !behind && status.snapshot.gpus.iter().all(|gpu| gpu.pending.is_zero())
    })?;
    let truth = Truth::read(scenario.dir())?;

    println!("\n$ gpuacct status --processes      (while they worked)\n{status_while_working}");
    println!("$ curl -s http://{}/metrics", agent.address());
    let family = "gpuacct_container_gpu_busy_seconds_total";
    let lines = agent.metric_lines(family)?;
    ensure!(!lines.is_empty(), "/metrics has no {family}");
    for line in lines {
        println!("{line}");
    }
    println!("\ntrue GPU seconds beside the booked ones:");
    compare(&truth, to_us, &report);
    let ended = agent.stop()?;
    ensure!(ended.success(), "the agent ended with {ended}");
    Ok(())
}

/// Nothing here puts load on a real GPU: whatever uses it now is what is shown.
fn run_on_real_gpu(dir: &Path, length: Duration, interrupted: &AtomicBool) -> Result<()> {
    let docker = Dockerd::start(docker::Options {
        live_restore: true,
        ..docker::Options::at(dir.join("docker"))
    })?;
    let agent = Agent::start(dir, config(&docker, None), &[])?;
    println!("watching whatever uses the GPU for {} s", length.as_secs());
    rest_until(Instant::now() + length, interrupted)?;
    println!("{}", agent.status_text(&["--processes"])?.0);
    for family in [
        "gpuacct_container_gpu_busy_seconds_total",
        "gpuacct_host_gpu_busy_seconds_total",
        "gpuacct_gpu_busy_seconds_total",
    ] {
        for line in agent.metric_lines(family)? {
            println!("{line}");
        }
    }
    let ended = agent.stop()?;
    ensure!(ended.success(), "the agent ended with {ended}");
    Ok(())
}

fn in_pod(pod: Pod, server: &Server) -> ContainerSpec {
    let mut spec = ContainerSpec::named(&format!("k8s_{}_{}", pod.container, pod.name))
        .in_pod(pod.namespace, pod.name, pod.uid, pod.container)
        .mount(server.path(), "/jobs.sock");
    // The job is linked against the host's C library.
    for libraries in ["/lib", "/lib64", "/usr/lib"] {
        if Path::new(libraries).exists() {
            spec = spec.mount(libraries, libraries);
        }
    }
    spec
}

fn job_command(gpu: u32, share: &str, label: &str, millis: Option<u64>) -> Vec<String> {
    let mut command: Vec<String> = ["/sim-gpu-job", "--socket", "/jobs.sock", "--gpu"]
        .map(str::to_owned)
        .into();
    command.extend([gpu.to_string(), "--share".into(), share.into()]);
    command.extend(["--label".into(), label.into()]);
    command.extend(["--memory-bytes".into(), (8_u64 << 30).to_string()]);
    if let Some(millis) = millis {
        command.extend(["--duration-ms".into(), millis.to_string()]);
    }
    command
}

fn start(
    docker: &mut Dockerd,
    job: &Path,
    server: &Server,
    workload: &Workload,
) -> Result<Container> {
    let Workload { pod, gpu, share } = workload;
    docker.run(
        &in_pod(*pod, server)
            .mount(job, "/sim-gpu-job")
            .command(job_command(*gpu, share, pod.name, None)),
    )
}

/// Has a batch job work for so long.
fn run_batch(
    docker: &mut Dockerd,
    job: &Path,
    server: &Server,
    batch: &BatchJob,
    work: Duration,
    interrupted: &AtomicBool,
) -> Result<()> {
    let BatchJob {
        pod, gpu, share, ..
    } = batch;
    let container = docker.run(
        &in_pod(*pod, server)
            .mount(job, "/sim-gpu-job")
            .command(job_command(*gpu, share, pod.name, None)),
    )?;
    rest_until(Instant::now() + work, interrupted)?;
    docker.remove(&container)
}

/// The process outside containers; ended when dropped.
struct HostJob(Child);

impl HostJob {
    fn end(&mut self) -> Result<()> {
        self.0.kill().context("cannot end the host process")?;
        self.0.wait().context("cannot end the host process")?;
        Ok(())
    }
}

impl Drop for HostJob {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = self.end();
    }
}

/// GPU seconds of one job.
#[derive(Default)]
struct Row {
    real: f64,
    sampled: f64,
    booked: f64,
}

/// What jobs did until `to_us` beside what is booked, each GPU from where its book begins.
fn compare(truth: &Truth, to_us: u64, report: &StatusReport) {
    let mut rows: BTreeMap<(String, u32), Row> = BTreeMap::new();
    let mut length = 0.0_f64;
    for book in &report.snapshot.gpus {
        let window_us = book.start.0 / 1_000..to_us;
        length = length.max(seconds(to_us.saturating_sub(window_us.start) * 1_000));
        let sampled = truth.ring_ns(book.gpu.index, window_us.clone());
        let jobs = truth.jobs(window_us).into_iter();
        for job in jobs.filter(|job| job.gpu == book.gpu.index) {
            let name = job.label.unwrap_or_else(|| format!("pid {}", job.pid));
            let row = rows.entry((name, job.gpu)).or_default();
            row.real += seconds(job.busy_ns);
            row.sampled += seconds(sampled.get(&job.pid).copied().unwrap_or(0));
        }
    }
    let index_of = |uuid: &str| {
        let book = report
            .snapshot
            .gpus
            .iter()
            .find(|book| book.gpu.uuid.as_str() == uuid);
        book.map_or(u32::MAX, |book| book.gpu.index)
    };
    for account in &report.snapshot.accounts {
        let key = (
            account.labels.pod.to_string(),
            index_of(account.gpu.as_str()),
        );
        rows.entry(key).or_default().booked += seconds(account.amounts.busy.0);
    }
    for host in &report.snapshot.host_accounts {
        let key = (HOST_LABEL.to_owned(), index_of(host.gpu.as_str()));
        rows.entry(key).or_default().booked += seconds(host.amounts.busy.0);
    }
    println!(
        "{:<22} {:>3} {:>9} {:>9} {:>9} {:>9} {:>9}",
        "WHO", "GPU", "TRUE s", "SAMPLED s", "BOOKED s", "ERROR s", "2 SIGMA s"
    );
    for ((who, gpu), row) in rows {
        println!(
            "{who:<22} {gpu:>3} {:>9.3} {:>9.3} {:>9.3} {:>+9.3} {:>9.3}",
            row.real,
            row.sampled,
            row.booked,
            row.booked - row.real,
            2.0 * deviation(row.real, length)
        );
    }
    println!(
        "TRUE is what the jobs did, SAMPLED what the driver's six samples a second saw of it: the \
         most that anyone\ncan book. ERROR is BOOKED - TRUE; about 19 in 20 such errors are below 2 \
         SIGMA."
    );
    for book in &report.snapshot.gpus {
        let unattributed: u64 = book.unattributed.iter().map(|(_, amount)| amount.0).sum();
        println!(
            "gpu {}: elapsed {:.3} s = busy {:.3} + idle {:.3} + unobserved {:.3}; of busy, {:.3} s have no owner; imbalance {} ns",
            book.gpu.index,
            book.elapsed.as_secs_f64(),
            book.busy.as_secs_f64(),
            book.idle.as_secs_f64(),
            seconds(book.unobserved.iter().map(|(_, amount)| amount.0).sum()),
            seconds(unattributed),
            book.imbalance,
        );
    }
}

/// The standard deviation of what six samples a second make of `busy` seconds within `length`, if
/// each sample sees whoever is active: a binomial, and never less than half a sample for the two
/// edges of a job.
fn deviation(busy: f64, length: f64) -> f64 {
    const PERIOD: f64 = 1.0 / 6.0;
    let samples = (length / PERIOD).max(1.0);
    let share = (busy / length).clamp(0.0, 1.0);
    (PERIOD * (samples * share * (1.0 - share)).sqrt()).max(PERIOD / 2.0)
}

#[expect(clippy::cast_precision_loss, reason = "for people, to the millisecond")]
fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}
