//! The built agent, run as a user runs it: a process with a configuration file, asked through its
//! own command line and its HTTP endpoints.
//!
//! Whatever a scenario is about, what the agent publishes must keep the promise of [`exposition`]:
//! it is checked in both formats whenever something that was waited for has come true, and once
//! more at the end, so that no scenario has to think of it.

use std::ffi::OsString;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use gpuacct::config::Config;
use gpuacct::core::explanation::Explanation;
use gpuacct::outputs::socket::StatusReport;
use rustix::process::{Pid, Signal, kill_process, setpriority_process};

use crate::exposition;
use crate::http::{free_address, get};

/// How long the agent may take to come or go, and an expectation to come true. Only ever waited for
/// when something is broken.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// The configuration's file, beside the socket.
const FILE: &str = "gpuacct.toml";
/// The niceness of an agent that comes before everything else.
const FIRST: i32 = -15;
/// How often to look.
pub(crate) const POLL: Duration = Duration::from_millis(50);
/// The formats of `/metrics`, as a scraper asks for them.
const FORMATS: [&str; 2] = ["text/plain", "application/openmetrics-text"];

/// Where the built agent is: named by `GPUACCT_BIN`, as `cargo xtask` does.
///
/// # Errors
/// If there is none, or it was built without the eBPF object.
pub fn binary() -> Result<PathBuf> {
    let path = std::env::var_os("GPUACCT_BIN").context(
        "GPUACCT_BIN does not name the built agent; `cargo xtask test` builds it and does",
    )?;
    let path = PathBuf::from(path);
    ensure!(path.is_file(), "{} is not a file", path.display());
    Ok(path)
}

/// A configuration as its file. What is not set of OTLP is not in it, so that the environment may set
/// it.
fn file_of(config: &Config) -> Result<String> {
    let text = config.to_toml()?;
    if config.otlp != Config::default().otlp {
        return Ok(text);
    }
    let begins = text.find("\n[otlp]\n").context("no section of otlp")?;
    let ends = text.find("\n[log]\n").context("no section of log")?;
    Ok(format!("{}{}", &text[..begins], &text[ends..]))
}

/// Gives a configuration addresses of its own: a free port of the loopback interface, a socket and a
/// store in `dir`. Returns the file in `dir` that it is written into.
fn settled(config: &mut Config, dir: &Path) -> Result<PathBuf> {
    if config.prometheus.listen.ip().is_unspecified() {
        config.prometheus.listen = free_address()?;
    }
    config.socket.path = dir.join("agent.sock");
    if config.store.path == Config::default().store.path {
        config.store.path = dir.join("store");
    }
    let file = dir.join(FILE);
    fs::write(&file, file_of(config)?)
        .with_context(|| format!("cannot write {}", file.display()))?;
    Ok(file)
}

/// The program and its arguments for an agent in `dir`, to be started by another program that takes
/// something from it, and the agent's socket. Its configuration is made its own, as by [`Agent::start`].
///
/// # Errors
/// If `dir` cannot be written.
pub fn command_line(
    binary: &Path,
    dir: &Path,
    mut config: Config,
) -> Result<(Vec<OsString>, PathBuf)> {
    let file = settled(&mut config, dir)?;
    let arguments = ["agent", "--log", "warn", "--config"].map(OsString::from);
    let words = [binary.into()].into_iter().chain(arguments);
    Ok((words.chain([file.into()]).collect(), config.socket.path))
}

/// A running agent. Killed when dropped.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    binary: PathBuf,
    config: Config,
    log: PathBuf,
}

impl Agent {
    /// Starts an agent in `dir` with `config`, whose addresses are made its own: a free port of the
    /// loopback interface, a socket and a store in `dir`. Waits until it publishes.
    ///
    /// # Errors
    /// If it does not come up; the message has the end of its log.
    pub fn start(dir: &Path, config: Config, environment: &[(&str, &Path)]) -> Result<Self> {
        Self::start_at(None, dir, config, environment)
    }

    /// The same before everything else that runs here, where this process may say so. On a node the
    /// agent's reservation of a processor sees to that. On a machine that is busy with tests and builds
    /// it would need many seconds to load the object, and book what ran before it to nobody.
    ///
    /// # Errors
    /// As [`Agent::start`].
    pub fn start_first(dir: &Path, config: Config, environment: &[(&str, &Path)]) -> Result<Self> {
        Self::start_at(Some(FIRST), dir, config, environment)
    }

    fn start_at(
        niceness: Option<i32>,
        dir: &Path,
        mut config: Config,
        environment: &[(&str, &Path)],
    ) -> Result<Self> {
        let binary = binary()?;
        let file = settled(&mut config, dir)?;
        let log = dir.join("agent.log");
        let out = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("cannot open {}", log.display()))?;
        let child = Command::new(&binary)
            .args(["agent", "--config"])
            .arg(&file)
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(out.try_clone().context("cannot share the log")?)
            .stderr(out)
            .spawn()
            .with_context(|| format!("cannot start {}", binary.display()))?;
        if let Some(niceness) = niceness {
            // Its threads have it from the first one, which is at the command line still. Whoever may
            // not say so has an agent like any other.
            let _ = setpriority_process(Some(Pid::from_child(&child)), niceness);
        }
        let mut agent = Self {
            child,
            binary,
            config,
            log,
        };
        agent.wait_for("it to publish", |agent| {
            Ok(agent.get("/readyz").is_ok_and(|(code, _)| code == 200))
        })?;
        Ok(agent)
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where it serves `/metrics`.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.config.prometheus.listen
    }

    /// What `gpuacct status` prints with these arguments, and how it exits.
    ///
    /// # Errors
    /// If it cannot be run.
    pub fn status_text(&self, arguments: &[&str]) -> Result<(String, ExitStatus)> {
        let output = Command::new(&self.binary)
            .args(["status", "--socket"])
            .arg(&self.config.socket.path)
            .args(arguments)
            .output()
            .context("cannot run gpuacct status")?;
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        Ok((text, output.status))
    }

    /// What `gpuacct` with these arguments does beside this agent: with its socket and its
    /// configuration.
    ///
    /// # Errors
    /// If it cannot be run.
    pub fn gpuacct(&self, arguments: &[&str]) -> Result<Output> {
        self.command(arguments)
            .output()
            .with_context(|| format!("cannot run gpuacct {arguments:?}"))
    }

    /// The same, not yet run.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .args(arguments)
            .env("GPUACCT_SOCKET", &self.config.socket.path)
            .env(
                "GPUACCT_CONFIG",
                self.config.socket.path.with_file_name(FILE),
            );
        command
    }

    /// What `gpuacct status -o json` says.
    ///
    /// # Errors
    /// If the agent does not answer, or not with a status.
    pub fn status(&self) -> Result<StatusReport> {
        let (text, status) = self.status_text(&["-o", "json"])?;
        serde_json::from_str(&text).with_context(|| format!("{status}: {text:?}"))
    }

    /// Output of `gpuacct explain -o json` for a subject. `None` if the agent does not know it.
    ///
    /// # Errors
    /// If the agent does not answer, or not with a story.
    pub fn explain(&self, subject: &str) -> Result<Option<Explanation>> {
        let output = self.gpuacct(&["explain", "-o", "json", subject])?;
        match output.status.code() {
            Some(0) => serde_json::from_slice(&output.stdout)
                .map(Some)
                .with_context(|| format!("explain {subject}: {output:?}")),
            Some(1) => Ok(None),
            _ => bail!("explain {subject}: {output:?}"),
        }
    }

    /// Refuses what is published now if it breaks the promise of [`exposition`], in either format.
    ///
    /// # Errors
    /// If it does, naming the line, or there is no answer.
    pub fn check_exposition(&self) -> Result<()> {
        check_all(&self.expositions()?)
    }

    /// What is published now, in each format.
    fn expositions(&self) -> Result<Vec<(&'static str, String)>> {
        let url = format!("http://{}/metrics", self.address());
        let texts = FORMATS.into_iter().map(|format| {
            let (code, text) = get(&url, format)?;
            ensure!(code == 200, "{url} answers {code}");
            Ok((format, text))
        });
        texts.collect()
    }

    /// A GET on its HTTP port: code and body.
    ///
    /// # Errors
    /// If there is no answer.
    pub fn get(&self, path: &str) -> Result<(u16, String)> {
        get(&format!("http://{}{path}", self.address()), "*/*")
    }

    /// The lines of `/metrics` whose metric is `family`, verbatim.
    ///
    /// # Errors
    /// If there is no answer, or any line of it has an empty label or fewer labels than another of
    /// its family.
    pub fn metric_lines(&self, family: &str) -> Result<Vec<String>> {
        let (code, text) = self.get("/metrics")?;
        ensure!(code == 200, "/metrics answers {code}");
        exposition::check(&text)?;
        let lines = text.lines().filter(|line| {
            line.strip_prefix(family)
                .is_some_and(|rest| rest.starts_with(['{', ' ']))
        });
        Ok(lines.map(str::to_owned).collect())
    }

    /// The value of one series of `/metrics`, named with its labels as there, verbatim.
    ///
    /// # Errors
    /// As [`Agent::metric_lines`], and if there is no such series.
    pub fn metric(&self, series: &str) -> Result<String> {
        let family = series.split('{').next().unwrap_or(series);
        let lines = self.metric_lines(family)?;
        let value = lines.iter().find_map(|line| line.strip_prefix(series));
        let value = value.with_context(|| format!("no {series} in {lines:?}"))?;
        Ok(value.trim().to_owned())
    }

    /// Looks until `holds` says so. What is published then keeps its promise. A look that fails is
    /// made again: on a busy machine an answer can take longer than whoever asks will wait.
    ///
    /// # Errors
    /// If it does not within [`PATIENCE`], the agent has ended, or the exposition is not as it should
    /// be; the message has the end of the log.
    pub fn wait_for(
        &mut self,
        what: &str,
        mut holds: impl FnMut(&mut Self) -> Result<bool>,
    ) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let published = holds(self);
            let published = published.and_then(|held| held.then(|| self.expositions()).transpose());
            // If it has ended, the answer comes from another process.
            let ended = self.child.try_wait()?;
            let failure = match published {
                Ok(Some(texts)) if ended.is_none() => {
                    return check_all(&texts)
                        .with_context(|| format!("once there was {what}; {}", self.log_end()));
                }
                Ok(_) => None,
                Err(error) => Some(error),
            };
            if ended.is_none() && Instant::now() < deadline {
                std::thread::sleep(POLL);
                continue;
            }
            let ended =
                ended.map_or_else(String::new, |status| format!("it ended with {status}; "));
            let said = format!("waited in vain for {what}; {ended}{}", self.log_end());
            return Err(match failure {
                Some(error) => error.context(said),
                None => anyhow!(said),
            });
        }
    }

    /// Looks at the status until `holds` says so, and returns the one for which it did.
    ///
    /// # Errors
    /// As [`Agent::wait_for`].
    pub fn wait_for_status(
        &mut self,
        what: &str,
        holds: impl Fn(&StatusReport) -> bool,
    ) -> Result<StatusReport> {
        let mut found = None;
        self.wait_for(what, |agent| {
            let status = agent.status()?;
            let done = holds(&status);
            found = Some(status);
            Ok(done)
        })?;
        found.context("the loop looks at least once")
    }

    /// The end of its log.
    #[must_use]
    pub fn log_end(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().rev().take(30).collect();
        let end: Vec<&str> = lines.into_iter().rev().collect();
        format!("the agent's log ends:\n{}", end.join("\n"))
    }

    /// Its whole log.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn log(&self) -> Result<String> {
        fs::read_to_string(&self.log).context("cannot read the agent's log")
    }

    /// Asks it to end, waits, and says how it did.
    ///
    /// # Errors
    /// If it does not end, or what it published last breaks the promise of [`exposition`].
    pub fn stop(mut self) -> Result<ExitStatus> {
        self.check_exposition()?;
        self.signal(Signal::TERM)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            ensure!(
                Instant::now() < deadline,
                "it does not end; {}",
                self.log_end()
            );
            std::thread::sleep(POLL);
        }
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id())?;
        let pid = Pid::from_raw(pid).context("a pid is not zero")?;
        kill_process(pid, signal).context("cannot signal the agent")
    }
}

/// Refuses what breaks the promise of [`exposition`], by format.
fn check_all(texts: &[(&str, String)]) -> Result<()> {
    texts.iter().try_for_each(|(format, text)| {
        exposition::check(text).with_context(|| format!("/metrics as {format}"))
    })
}

impl Drop for Agent {
    fn drop(&mut self) {
        // A test that fails already has its reason. An agent that the test has ended, or frozen,
        // publishes nothing.
        let is_running = matches!(self.child.try_wait(), Ok(None));
        let last_words = (is_running && !std::thread::panicking())
            .then(|| self.get("/metrics").ok())
            .flatten();
        // Gone already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some((200, text)) = last_words
            && let Err(error) = exposition::check(&text)
        {
            panic!("the agent published at its end: {error:#}");
        }
    }
}

/// The state of a source in an answer of `gpuacct status -o json`; none if it is no such answer.
#[must_use]
pub fn state_of(status: &str, source: &str) -> Option<String> {
    let report: serde_json::Value = serde_json::from_str(status).ok()?;
    let sources = report["snapshot"]["sources"].as_array()?;
    let found = sources.iter().find(|found| found["source"] == source)?;
    Some(found["state"].as_str()?.to_owned())
}
