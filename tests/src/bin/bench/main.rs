//! What the agent costs: `cargo xtask bench` builds everything with optimisations and runs this.
//!
//! Every figure that another machine would change is a ratio of two that were taken in one run, or
//! stands beside the machine. Nothing is asserted: a goal that is missed is printed as such.
//!
//! What measures costs wants a build with optimisations; what measures when or whether something
//! becomes known does not.
//!
//! It takes three quarters of an hour. It leaves nothing behind: processes, cgroups and directories go
//! with it, also when it is interrupted.

mod accuracy;
mod crashes;
mod fleet;
mod forks;
mod health;
mod identity;
mod load;
mod opens;
mod past;
mod process;
mod report;
mod scrape;
mod store;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use gpuacct::config::Config;
use gpuacct_tests::agent::{self, Agent};
use sim_nvml::library::{self, Driver};
use tempfile::TempDir;

use load::Load;
use report::Row;

/// A benchmark: its name, its title, what it does.
type Benchmark = (&'static str, &'static str, fn(&Bench) -> Result<Vec<Row>>);

const BENCHMARKS: [Benchmark; 12] = [
    ("forks", "Processes come and go", forks::on_and_off),
    ("opens", "Opens of devices", opens::on_and_off),
    ("storm", "Events without a loss", forks::storm),
    ("footprint", "Processor time and memory", load::footprint),
    ("health", "The health of GPUs", health::health),
    ("metrics", "/metrics", scrape::metrics),
    (
        "identity",
        "From a container's start to its identity",
        identity::identity,
    ),
    ("accuracy", "How right the books are", accuracy::accuracy),
    (
        "crashes",
        "Counters over crashes of the agent",
        crashes::crashes,
    ),
    ("store", "The books are kept", store::store),
    ("report", "The report", past::report),
    ("fleet", "The bill of a fleet", fleet::fleet),
];

/// Those that measure no cost.
const IN_ANY_BUILD: [&str; 3] = ["identity", "accuracy", "crashes"];

/// Turns true when the bench is to end.
static INTERRUPTED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match arguments.split_first() {
        Some((first, rest)) if first == forks::FORKER => forks::be_a_forker(rest),
        Some((first, [path])) if first == load::LIBRARY_COST => load::library_cost(path),
        _ => run(&arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(names: &[String]) -> Result<()> {
    for name in names {
        if BENCHMARKS.iter().all(|(known, ..)| known != name) {
            let known = BENCHMARKS.map(|(known, ..)| known).join(", ");
            bail!("no benchmark is called {name:?}, there are: {known}");
        }
    }
    let in_any_build = |name: &String| IN_ANY_BUILD.contains(&name.as_str());
    ensure!(
        !cfg!(debug_assertions) || (!names.is_empty() && names.iter().all(in_any_build)),
        "this build is not optimised; `cargo xtask bench` makes one that is"
    );
    let flag = INTERRUPTED.get_or_init(Arc::default);
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(flag)).context("cannot catch signals")?;
    }
    let bench = Bench::new()?;
    println!("{}", machine()?);
    for (name, title, measure) in BENCHMARKS {
        if names.is_empty() || names.iter().any(|wanted| wanted == name) {
            let began = Instant::now();
            let rows = measure(&bench).with_context(|| format!("the benchmark {name}"))?;
            report::table(&format!("{title} (`{name}`)"), &rows);
            eprintln!("{name}: {:.0} s", began.elapsed().as_secs_f64());
        }
    }
    Ok(())
}

/// What the benchmarks share.
struct Bench {
    dir: TempDir,
    /// The simulated `libnvidia-ml.so.1`.
    library: PathBuf,
    cores: usize,
}

impl Bench {
    fn new() -> Result<Self> {
        // Where `TMPDIR` says: a memory file system is the quieter place.
        let dir = tempfile::Builder::new().prefix("gpuacct-").tempdir()?;
        let library = library::install(Driver::R550, &dir.path().join("lib"))?;
        Ok(Self {
            dir,
            library,
            cores: std::thread::available_parallelism()?.get(),
        })
    }

    /// A directory for one part of one benchmark.
    fn dir(&self, name: &str) -> Result<PathBuf> {
        let dir = self.dir.path().join(name);
        fs::create_dir(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(dir)
    }

    /// An agent with its defaults, but for places: the simulated GPUs if there are any, no Docker.
    fn agent(&self, dir: &Path, load: Option<&Load>) -> Result<Agent> {
        self.agent_with(dir, load, |_| {})
    }

    /// The same but for what `edit` does to its configuration.
    fn agent_with(
        &self,
        dir: &Path,
        load: Option<&Load>,
        edit: impl FnOnce(&mut Config),
    ) -> Result<Agent> {
        let mut config = Config::default();
        edit(&mut config);
        config.docker.sockets = vec![dir.join("no-docker.sock")];
        match load {
            Some(load) => {
                config.gpu.library = Some(self.library.clone());
                Agent::start(dir, config, &[(sim_nvml::STATE_DIR, load.dir())])
            }
            None => {
                config.gpu.library = Some(dir.join("no-library.so"));
                Agent::start(dir, config, &[])
            }
        }
    }
}

/// Waits: how long a benchmark takes is what is asked for, nothing is awaited.
fn pause(length: Duration) -> Result<()> {
    const LOOK: Duration = Duration::from_millis(100);
    let until = Instant::now() + length;
    loop {
        let interrupted = INTERRUPTED
            .get()
            .is_some_and(|flag| flag.load(Ordering::Relaxed));
        ensure!(!interrupted, "interrupted");
        match until.checked_duration_since(Instant::now()) {
            Some(left) if !left.is_zero() => std::thread::sleep(left.min(LOOK)),
            _ => return Ok(()),
        }
    }
}

/// The machine and what runs on it, as a table.
fn machine() -> Result<String> {
    let cpus = fs::read_to_string("/proc/cpuinfo")?;
    let model = cpus
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.trim() == "model name")
        .map_or("(not said)", |(_, model)| model.trim());
    let memory = process::kib(&fs::read_to_string("/proc/meminfo")?, "MemTotal:")?;
    let kernel = rustix::system::uname();
    let load = fs::read_to_string("/proc/loadavg")?;
    let load: Vec<&str> = load.split(' ').take(2).collect();
    let rows = [
        (
            "machine",
            format!(
                "{model}, {} cores, {:.1} GB",
                std::thread::available_parallelism()?,
                report::megabytes(memory) / 1e3
            ),
        ),
        (
            "kernel",
            format!(
                "{} {}",
                kernel.sysname().to_string_lossy(),
                kernel.release().to_string_lossy()
            ),
        ),
        (
            "load average at the start, 1 and 5 minutes",
            load.join(" and "),
        ),
        (
            "gpuacct",
            said_by(Command::new(agent::binary()?).arg("--version")),
        ),
        ("revision", revision()),
        (
            "build",
            if cfg!(debug_assertions) {
                "without optimisations".to_owned()
            } else {
                "with optimisations".to_owned()
            },
        ),
        ("compiler", said_by(Command::new("rustc").arg("--version"))),
    ];
    let rows = rows.map(|(key, value)| format!("| {key} | {value} |"));
    Ok(format!("| | |\n|---|---|\n{}", rows.join("\n")))
}

fn revision() -> String {
    let git = |arguments: &[&str]| {
        let mut git = Command::new("git");
        said_by(
            git.arg("-C")
                .arg(env!("CARGO_MANIFEST_DIR"))
                .args(arguments),
        )
    };
    // Documents do not change what is measured.
    let changed = git(&["status", "--porcelain", "--", ":/", ":!/docs"]);
    let changed = if changed.is_empty() {
        ""
    } else {
        ", with changes"
    };
    format!("{}{changed}", git(&["rev-parse", "--short=12", "HEAD"]))
}

/// What a program prints, or why it does not.
fn said_by(command: &mut Command) -> String {
    match command.output() {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        }
        Ok(output) => format!("({})", output.status),
        Err(error) => format!("({error})"),
    }
}
