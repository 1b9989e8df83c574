//! The agent itself on this machine, for as long as loads run: what it shows, or why it refuses.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use gpuacct::config::{Config, Span};
use rustix::process::{Pid, Signal, kill_process};

/// How often to see whether it still runs.
const POLL: Duration = Duration::from_millis(200);
/// How long it may take to end when asked to.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long it may take, after all of that, until it shows a GPU: a busy machine's may be slow.
const PUBLISHES_WITHIN: Duration = Duration::from_secs(30);
/// The series about busy time.
const BUSY: &str = "gpu_busy_seconds_total{";
/// The end of its log that a summary quotes.
const LOG_LINES: usize = 5;
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// How it went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// How it ended before it was asked to; none where it ran on.
    pub ended_early: Option<String>,
    /// The end of its log.
    pub log_end: Vec<String>,
    /// What `gpuacct status` printed.
    pub status: String,
    /// The lines of `/metrics` about busy time, verbatim.
    pub busy_lines: Vec<String>,
}

/// Runs `binary` for `duration` and leaves its configuration, log, status and metrics in `dir`.
///
/// # Errors
/// If it cannot be started or files cannot be written. That it refuses to run is an outcome.
pub fn watch(
    binary: &Path,
    library: Option<&Path>,
    dir: &Path,
    duration: Duration,
) -> io::Result<Outcome> {
    fs::create_dir_all(dir)?;
    // A socket's path may have 107 bytes, wherever `dir` is.
    let sockets = tempfile::Builder::new()
        .prefix("gpu-record-")
        .tempdir_in("/tmp")?;
    let mut config = Config::default();
    config.prometheus.listen = free_address()?;
    config.socket.path = sockets.path().join("agent.sock");
    config.gpu.library = library.map(Path::to_owned);
    // Another agent's ledger is none of its business, and its own is nobody's: it has every label.
    config.store.path = sockets.path().join("store");
    // Short enough for amounts to show.
    config.publish.grace = Span(Duration::from_secs(3));
    config.publish.zero_for = Span(Duration::from_secs(3));
    let file = dir.join("gpuacct.toml");
    fs::write(&file, config.to_toml().map_err(io::Error::other)?)?;
    let log = dir.join("log.txt");
    let out = File::create(&log)?;
    let child = Command::new(binary)
        .args(["agent", "--config"])
        .arg(&file)
        .stdin(Stdio::null())
        .stdout(out.try_clone()?)
        .stderr(out)
        .spawn()?;
    let mut running = Running(child);

    let mut outcome = Outcome {
        ended_early: running.for_at_most(duration)?.map(|how| how.to_string()),
        ..Outcome::default()
    };
    if outcome.ended_early.is_none() {
        let deadline = Instant::now() + PUBLISHES_WITHIN;
        let metrics = loop {
            let metrics = metrics(config.prometheus.listen);
            let is_there = metrics.as_ref().is_ok_and(|text| text.contains(BUSY));
            if is_there || Instant::now() >= deadline {
                break metrics;
            }
            outcome.ended_early = running.for_at_most(POLL)?.map(|how| how.to_string());
            if outcome.ended_early.is_some() {
                break metrics;
            }
        };
        let ask = |arguments: &[&str]| status(binary, &config.socket.path, arguments);
        outcome.status = ask(&["--processes"])?;
        fs::write(dir.join("status.txt"), &outcome.status)?;
        fs::write(dir.join("status.json"), ask(&["-o", "json"])?)?;
        let metrics = metrics.unwrap_or_else(|error| format!("# no answer: {error}\n"));
        fs::write(dir.join("metrics.txt"), &metrics)?;
        let busy = metrics
            .lines()
            .filter(|line| !line.starts_with('#') && line.contains(BUSY));
        outcome.busy_lines = busy.map(str::to_owned).collect();
    }
    running.end()?;
    let log = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
    let lines: Vec<&str> = log.lines().collect();
    let end = &lines[lines.len().saturating_sub(LOG_LINES)..];
    outcome.log_end = end.iter().map(|&line| line.to_owned()).collect();
    Ok(outcome)
}

/// Ended when dropped.
struct Running(Child);

impl Running {
    /// How it ended, if it does within this time.
    fn for_at_most(&mut self, duration: Duration) -> io::Result<Option<ExitStatus>> {
        let began = Instant::now();
        while began.elapsed() < duration {
            if let Some(status) = self.0.try_wait()? {
                return Ok(Some(status));
            }
            sleep(POLL);
        }
        self.0.try_wait()
    }

    /// Asks it to end, and sees to it.
    fn end(&mut self) -> io::Result<()> {
        if self.0.try_wait()?.is_none() {
            kill_process(Pid::from_child(&self.0), Signal::TERM)?;
            if self.for_at_most(PATIENCE)?.is_none() {
                self.0.kill()?;
                self.0.wait()?;
            }
        }
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Only after an error, which is what is told.
        let _ = self.end();
    }
}

fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}

fn status(binary: &Path, socket: &PathBuf, arguments: &[&str]) -> io::Result<String> {
    let output = Command::new(binary)
        .args(["status", "--socket"])
        .arg(socket)
        .args(arguments)
        .stdin(Stdio::null())
        .output()?;
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    Ok(text)
}

/// The body of `/metrics`, asked for in a version of HTTP that needs no client.
fn metrics(address: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.contains(" 200 ") => Ok(body.to_owned()),
        _ => Err(io::Error::other(format!(
            "found {:?}, expected status 200",
            answer.lines().next().unwrap_or_default()
        ))),
    }
}
