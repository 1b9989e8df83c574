//! A foreign program that runs beside a test: its output kept, its end seen to.
//!
//! It is only ever signalled through the process that was started here, and never outlives the
//! value: SIGTERM first, SIGKILL when that is not heeded.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

/// How long it may take to come up. Only ever waited for when something is broken.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long it may take to go after SIGTERM.
const GRACE: Duration = Duration::from_secs(60);
/// How long a connection may take to be accepted.
const CONNECT: Duration = Duration::from_secs(1);
/// How often to look whether it is up.
const POLL: Duration = Duration::from_millis(20);
/// Lines of its log that go into a message.
const LOG_LINES: usize = 30;

/// A running program. Ended when dropped.
#[derive(Debug)]
pub struct Daemon {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts it, with its output appended to `log`.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(name: &'static str, command: &mut Command, log: &Path) -> Result<Self> {
        let out = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("cannot open {}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(out.try_clone().context("cannot share the log")?)
            .stderr(out)
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        Ok(Self {
            name,
            child,
            log: log.to_owned(),
        })
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it takes connections at each address.
    ///
    /// # Errors
    /// As [`Daemon::wait_until_up`].
    pub fn wait_until_listening(&mut self, addresses: &[SocketAddr]) -> Result<()> {
        let takes = |address| TcpStream::connect_timeout(address, CONNECT).is_ok();
        self.wait_until_up(|| addresses.iter().all(takes))
    }

    /// Looks until `is_up` says so.
    ///
    /// # Errors
    /// If it ends or does not come up; the message has the end of its log.
    pub fn wait_until_up(&mut self, is_up: impl Fn() -> bool) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !is_up() {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended with {status}; {}", self.name, self.log_end());
            }
            if Instant::now() >= deadline {
                bail!("{} does not come up; {}", self.name, self.log_end());
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// Asks it to end and waits; what does not heed that is killed.
    ///
    /// # Errors
    /// If it can neither be asked nor killed, or had to be killed.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(status);
        }
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::TERM).with_context(|| format!("cannot end {}", self.name))?;
        if self.ends_within(GRACE)? {
            return Ok(self.child.wait()?);
        }
        self.child.kill()?;
        self.child.wait()?;
        bail!("{} did not heed SIGTERM; {}", self.name, self.log_end());
    }

    /// The end of its log.
    #[must_use]
    pub fn log_end(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_else(|error| error.to_string());
        let lines: Vec<&str> = text.lines().collect();
        let end = &lines[lines.len().saturating_sub(LOG_LINES)..];
        format!("the log of {} ends:\n{}", self.name, end.join("\n"))
    }

    fn ends_within(&self, bound: Duration) -> Result<bool> {
        // Its number stays its own until it is waited for, which only this value does.
        let process = pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty())
            .with_context(|| format!("cannot watch {}", self.name))?;
        let deadline = Instant::now() + bound;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).context("a bound is short")?;
            match poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&left)) {
                Ok(ready) => return Ok(ready > 0),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error).context("cannot wait for a process to end"),
            }
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("{error:#}");
        }
    }
}

/// A program beside a test of which neither log nor manners matter. Killed when dropped, however the
/// test ends.
#[derive(Debug)]
pub struct Killed(pub Child);

impl Killed {
    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Copies a program that is to be run from there. A process of its own does it: what is open for
/// writing here is so in every child that another test starts meanwhile, and cannot be run.
///
/// # Errors
/// If it cannot be read or written.
pub fn install(program: &Path, to: &Path) -> Result<()> {
    let ended = Command::new("install")
        .args(["-m", "755"])
        .args([program, to])
        .status()
        .context("cannot run install")?;
    ensure!(
        ended.success(),
        "{} to {}: install ended with {ended}",
        program.display(),
        to.display()
    );
    Ok(())
}

/// Where a program is on `PATH`.
///
/// # Errors
/// If it is nowhere there.
pub fn program(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
        .with_context(|| format!("{name} is not on the PATH"))
}
