//! A real OpenTelemetry Collector, run with the configuration that is shipped.
//!
//! Its binary is named by `GPUACCT_OTELCOL`: it is too large to fetch for every run of the tests.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// How long a line of its log may take to come. Only ever waited for when something is broken.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where the collector's binary is.
///
/// # Errors
/// If `GPUACCT_OTELCOL` names none.
pub fn binary() -> Result<PathBuf> {
    let path = std::env::var_os("GPUACCT_OTELCOL")
        .context("GPUACCT_OTELCOL does not name an OpenTelemetry Collector")?;
    let path = PathBuf::from(path);
    ensure!(path.is_file(), "{} is not a file", path.display());
    Ok(path)
}

/// A running collector. Killed when dropped.
#[derive(Debug)]
pub struct Collector {
    child: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
}

impl Collector {
    /// Starts a collector with a configuration file, and `overrides` on top: keys separated by
    /// `::`, a value each. Waits until it takes requests.
    ///
    /// # Errors
    /// If it does not come up; the message has its log.
    pub fn start(binary: &Path, config: &Path, overrides: &[(&str, &str)]) -> Result<Self> {
        let mut command = Command::new(binary);
        command.arg("--config").arg(config);
        for (key, value) in overrides {
            command.arg(format!("--config=yaml:{key}: {value}"));
        }
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {}", binary.display()))?;
        let log = child.stderr.take().context("its log was asked for")?;
        let (line, lines) = channel();
        // Ends with the collector, whose end closes the pipe.
        thread::spawn(move || {
            for read in BufReader::new(log).lines().map_while(Result::ok) {
                if line.send(read).is_err() {
                    break;
                }
            }
        });
        let mut collector = Self {
            child,
            lines,
            seen: Vec::new(),
        };
        collector.wait_for("Everything is ready")?;
        Ok(collector)
    }

    /// Waits for a line of its log that has `text`, and gives it.
    ///
    /// # Errors
    /// If it ends, or says no such thing; the message has its log.
    pub fn wait_for(&mut self, text: &str) -> Result<String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let why = match self.lines.recv_timeout(left) {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if line.contains(text) {
                        return Ok(line);
                    }
                    continue;
                }
                Err(RecvTimeoutError::Timeout) => "does not say",
                Err(RecvTimeoutError::Disconnected) => "ended without saying",
            };
            bail!("the collector {why} {text:?}:\n{}", self.seen.join("\n"));
        }
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        // Fails only if it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
