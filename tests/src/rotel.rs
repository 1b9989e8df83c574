//! A real OpenTelemetry collector: rotel, in Rust and from PyPI, hence to be had in every run.
//!
//! It takes OTLP over gRPC and HTTP and sends on at once, to a [`Sink`] in the test's own process.
//! It acknowledges what it has queued, not what it has sent on: wait for what is to arrive.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::daemon::Daemon;
use crate::http;
use crate::otlp::{Received, Sink};
use crate::python::venv;

/// The collector, pinned, and what it needs.
const PACKAGES: [&str; 2] = ["rotel==0.0.1a15", "typing_extensions==4.16.0"];
/// The collector's program, brought here first if need be.
///
/// # Errors
/// If PyPI cannot be had, or has none for this machine.
pub fn available() -> Result<Program> {
    // The package's own front end is a daemon in the name of a Python program. The collector
    // itself is the program beside it.
    let path = venv("rotel", &PACKAGES)?
        .package("rotel")?
        .join("rotel-agent");
    ensure!(path.is_file(), "{} is not a file", path.display());
    Ok(Program(path))
}

/// The collector's program.
#[derive(Clone, Debug)]
pub struct Program(PathBuf);

/// A collector, running or stopped. Ended when dropped.
#[derive(Debug)]
pub struct Rotel {
    program: Program,
    dir: PathBuf,
    grpc: SocketAddr,
    http: SocketAddr,
    daemon: Option<Daemon>,
    sink: Sink,
}

impl Rotel {
    /// Starts one, and waits until it takes connections. All that it writes goes into `dir`.
    ///
    /// # Errors
    /// If it does not come up; the message has the end of its log.
    pub fn start(program: Program, dir: &Path) -> Result<Self> {
        let mut rotel = Self {
            program,
            dir: dir.to_owned(),
            grpc: http::free_address()?,
            http: http::free_address()?,
            daemon: None,
            sink: Sink::start()?,
        };
        rotel.start_again()?;
        Ok(rotel)
    }

    /// Where it takes OTLP over gRPC: a URL.
    #[must_use]
    pub fn grpc_url(&self) -> String {
        format!("http://{}", self.grpc)
    }

    /// Where that is.
    #[must_use]
    pub const fn grpc_address(&self) -> SocketAddr {
        self.grpc
    }

    /// Where it takes OTLP over HTTP: a URL, to which a client adds `/v1/metrics`.
    #[must_use]
    pub fn http_url(&self) -> String {
        format!("http://{}", self.http)
    }

    /// Ends it. What it has sent on is kept, what it has not is lost.
    ///
    /// # Errors
    /// If it does not run, or does not end when asked to.
    pub fn stop(&mut self) -> Result<()> {
        let mut daemon = self.daemon.take().context("rotel does not run")?;
        daemon.stop()?;
        Ok(())
    }

    /// Starts it again where it was.
    ///
    /// # Errors
    /// If it runs, or does not come up.
    pub fn start_again(&mut self) -> Result<()> {
        ensure!(self.daemon.is_none(), "rotel runs already");
        let mut command = Command::new(&self.program.0);
        command
            .arg("start")
            .arg(format!("--otlp-grpc-endpoint={}", self.grpc))
            .arg(format!("--otlp-http-endpoint={}", self.http))
            .arg("--exporter=otlp")
            .arg(format!(
                "--otlp-exporter-endpoint=http://{}",
                self.sink.address()
            ))
            .arg("--disable-batching")
            .arg("--log-format=json");
        // Its own settings come from there, too.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("ROTEL_") {
                command.env_remove(name);
            }
        }
        let mut daemon = Daemon::start("rotel", &mut command, &self.dir.join("rotel.log"))?;
        daemon.wait_until_listening(&[self.grpc, self.http])?;
        self.daemon = Some(daemon);
        Ok(())
    }

    /// What it has sent on so far, also before it was stopped.
    #[must_use]
    pub fn received(&self) -> Received {
        self.sink.received()
    }

    /// Waits until what it has sent on pleases, and returns that.
    ///
    /// # Errors
    /// If it does not within `bound`; the message has the number of messages and the end of the log.
    pub fn wait_for(
        &self,
        what: &str,
        bound: Duration,
        pleases: impl FnMut(&Received) -> bool,
    ) -> Result<Received> {
        if let Some(received) = self.sink.wait_for(bound, pleases) {
            return Ok(received);
        }
        let received = self.received();
        let log = self
            .daemon
            .as_ref()
            .map_or_else(|| "it is stopped".to_owned(), Daemon::log_end);
        bail!(
            "waited in vain for {what} among {} messages of metrics and {} of logs; {log}",
            received.metrics.len(),
            received.logs.len()
        );
    }
}
