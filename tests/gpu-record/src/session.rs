//! One visit to a machine with a GPU: recordings under loads of known duty, then the agent.
//!
//! | recording | load | settles |
//! |---|---|---|
//! | `idle` | none | the size query, the ring, latencies |
//! | `full` | all of the time, killed at half time | what is left of a process that was killed |
//! | `part` | two thirds of the time, ends by itself | how rows are made whole, booked against true |
//! | `pair` | two processes at once | the same where rows share a sample ring |
//!
//! It starts processes of its own, ends them, and touches nothing else.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use gpuacct::sources::gpu::record::{self, RecordError};

use crate::agent::{self, Outcome};
use crate::analysis::{self, Findings, LineError};
use crate::load::Report;
use crate::summary;

/// Memory that each load holds: enough to be distinguished from that of a context.
const LOAD_MEMORY_BYTES: u64 = 1 << 30;
/// Name, duty and part of the recording's time of each recording's loads: the first is run by the
/// recorder, from a quarter to at most half of its time.
const RECORDINGS: [(&str, &[(f64, f64)]); 4] = [
    ("idle", &[]),
    ("full", &[(1.0, 1.0)]),
    ("part", &[(2.0 / 3.0, 0.22)]),
    ("pair", &[(0.5, 0.2), (0.4, 0.7)]),
];
/// The same of the loads beside the agent.
const AGENT_LOADS: [(f64, f64); 2] = [(0.5, 0.7), (0.25, 0.4)];

/// What to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// The folder for everything that is written; it must not have a summary yet.
    pub out: PathBuf,
    /// For how long each recording, and the agent, runs.
    pub each: Duration,
    /// NVIDIA's library, if it is not where drivers put it.
    pub library: Option<PathBuf>,
    /// The program that puts load on a GPU; without it nothing does.
    pub load: Option<PathBuf>,
    /// The agent; without it that part is left out.
    pub agent: Option<PathBuf>,
}

/// Why there is no summary.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// No NVML here.
    #[error("no NVIDIA GPU can be recorded here: {0}")]
    NoLibrary(String),
    /// The folder has one already.
    #[error("{} exists: recordings are never overwritten", .0.display())]
    Exists(PathBuf),
    /// A recording broke off.
    #[error("the recording {name:?} broke off")]
    Record {
        /// Name of the recording.
        name: &'static str,
        /// Error of starting or reading the recording.
        source: RecordError,
    },
    /// What was recorded cannot be read back.
    #[error("the recording {name:?} cannot be read")]
    Read {
        /// Name of the recording.
        name: &'static str,
        /// The line that cannot be decoded, and why.
        source: LineError,
    },
    /// A program cannot be run.
    #[error("cannot run {}", program.display())]
    Program {
        /// The program.
        program: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file cannot be written or read.
    #[error("cannot use {}", path.display())]
    File {
        /// Path of the recording.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// What one visit brought.
#[derive(Clone, Debug)]
pub struct Visit {
    /// What the recordings show.
    pub findings: Findings,
    /// Measurements of each load that ended by itself.
    pub loads: Vec<(String, Report)>,
    /// How the agent fared; none where there was none to run.
    pub agent: Option<Outcome>,
    /// What the loads beside it did.
    pub agent_loads: Vec<Report>,
}

/// Makes the visit, and says on standard error what it is at. Leaves the recordings, `findings.json`
/// and `summary.md` in the folder.
pub fn run(options: &Options) -> Result<Visit, SessionError> {
    let summary_file = options.out.join("summary.md");
    if summary_file.exists() {
        return Err(SessionError::Exists(summary_file));
    }
    fs::create_dir_all(&options.out).map_err(at(&options.out))?;
    let mut recordings = Vec::new();
    let mut loads = Vec::new();
    for (name, duties) in RECORDINGS {
        if options.load.is_none() && !duties.is_empty() {
            eprintln!("{name}: left out, since there is no program that puts load on a GPU");
            continue;
        }
        eprintln!("{name}: {} s", options.each.as_secs());
        recordings.push(one_recording(options, name, duties)?);
        for index in 0..duties.len() {
            let report = read_report(&report_file(options, name, index))?;
            loads.extend(report.map(|report| (name.to_owned(), report)));
        }
    }
    let findings = analysis::analyse(&recordings);
    write(
        &options.out.join("findings.json"),
        &serde_json::to_string_pretty(&findings).unwrap_or_else(|error| format!("{error}\n")),
    )?;
    let mut visit = Visit {
        findings,
        loads,
        agent: None,
        agent_loads: Vec::new(),
    };
    // What is known so far is kept should the agent's part break off.
    write(&summary_file, &summary::text(&visit))?;
    if let Some(binary) = &options.agent {
        eprintln!("agent: {} s", options.each.as_secs());
        watch_agent(options, binary, &mut visit)?;
        write(&summary_file, &summary::text(&visit))?;
    }
    Ok(visit)
}

fn one_recording(
    options: &Options,
    name: &'static str,
    duties: &[(f64, f64)],
) -> Result<Vec<analysis::Line>, SessionError> {
    let mut command_lines = duties.iter().enumerate().filter_map(|(index, &duty)| {
        let report = report_file(options, name, index);
        load_line(options, duty, &report)
    });
    let program = command_lines.next().unwrap_or_default();
    let mut beside = Vec::new();
    for line in command_lines {
        beside.push(Load::start(&line)?);
    }
    let path = options.out.join(format!("{name}.jsonl"));
    let mut file = BufWriter::new(File::create(&path).map_err(at(&path))?);
    let recorded = record::record(
        &mut file,
        &record::Options {
            library: options.library.clone(),
            duration: options.each,
            program,
        },
    );
    drop(file);
    drop(beside);
    match recorded {
        Ok(()) => {}
        Err(RecordError::Library(reason)) => {
            // It is empty, and would look like a recording. If it stays, it is still empty.
            let _ = fs::remove_file(&path);
            return Err(SessionError::NoLibrary(reason));
        }
        Err(source) => return Err(SessionError::Record { name, source }),
    }
    let text = fs::read_to_string(&path).map_err(at(&path))?;
    analysis::parse(&text).map_err(|source| SessionError::Read { name, source })
}

fn watch_agent(options: &Options, binary: &Path, visit: &mut Visit) -> Result<(), SessionError> {
    let dir = options.out.join("agent");
    let mut loads = Vec::new();
    for (index, &duty) in AGENT_LOADS.iter().enumerate() {
        let report = report_file(options, "agent", index);
        if let Some(line) = load_line(options, duty, &report) {
            loads.push(Load::start(&line)?);
        }
    }
    let outcome = agent::watch(binary, options.library.as_deref(), &dir, options.each);
    drop(loads);
    visit.agent = Some(outcome.map_err(|source| SessionError::Program {
        program: binary.to_owned(),
        source,
    })?);
    for index in 0..AGENT_LOADS.len() {
        let report = read_report(&report_file(options, "agent", index))?;
        visit.agent_loads.extend(report);
    }
    Ok(())
}

fn report_file(options: &Options, name: &str, index: usize) -> PathBuf {
    options.out.join(format!("{name}-load-{index}.json"))
}

/// What starts a load; its arguments are those of `gpu-load`.
fn load_line(options: &Options, (share, part): (f64, f64), report: &Path) -> Option<Vec<OsString>> {
    let load = options.load.as_ref()?;
    let millis = options.each.mul_f64(part).as_millis();
    let mut line = vec![load.clone().into_os_string()];
    for (flag, value) in [
        ("--gpu", "0".to_owned()),
        ("--share", share.to_string()),
        ("--memory-bytes", LOAD_MEMORY_BYTES.to_string()),
        ("--duration-ms", millis.to_string()),
    ] {
        line.extend([flag.into(), value.into()]);
    }
    line.extend(["--report".into(), report.into()]);
    Some(line)
}

/// A load that ends when dropped, if it has not by itself.
struct Load(Child);

impl Load {
    fn start(line: &[OsString]) -> Result<Self, SessionError> {
        let program = PathBuf::from(&line[0]);
        Command::new(&program)
            .args(&line[1..])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .map(Self)
            .map_err(|source| SessionError::Program { program, source })
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // Over already is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a load says it did; none where it was ended before it could.
fn read_report(path: &Path) -> Result<Option<Report>, SessionError> {
    match fs::read(path) {
        Ok(text) => {
            let report = serde_json::from_slice(&text).map_err(io::Error::from);
            report.map(Some).map_err(at(path))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(at(path)(error)),
    }
}

fn write(path: &Path, text: &str) -> Result<(), SessionError> {
    fs::write(path, text).map_err(at(path))
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> SessionError {
    let path = path.to_owned();
    move |source| SessionError::File { path, source }
}
