//! Chromium, which shows the page for people as a person's browser does.
//!
//! It is Debian's. It runs without a window, with a profile of its own, and does nothing in the
//! background. What it asked whom for is in a log of its network that it writes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::daemon::program;

/// The names under which distributions have it.
const PROGRAMS: [&str; 2] = ["chromium", "chromium-browser"];
/// How long it may take for one page. Only ever waited for when something is broken.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often to look whether it has ended.
const POLL: Duration = Duration::from_millis(20);

/// The program.
///
/// # Errors
/// If there is none.
pub fn available() -> Result<Chromium> {
    let found = PROGRAMS.iter().find_map(|name| program(name).ok());
    let program = found.context("no chromium is in PATH; `cargo xtask setup` installs it")?;
    Ok(Chromium { program })
}

/// What a person prefers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// Dark on light.
    Light,
    /// Light on dark.
    Dark,
}

/// A browser that can be run.
#[derive(Clone, Debug)]
pub struct Chromium {
    program: PathBuf,
}

/// What became of a page in the browser.
#[derive(Debug)]
pub struct Seen {
    /// The document after everything that it does, as HTML.
    pub dom: String,
    /// The addresses that the browser began to ask for, for the page. What it asks for by itself, such
    /// as its dictionaries, is not among them; it has no network for that but loopback.
    pub asked: Vec<String>,
    /// What it said, its console included.
    pub said: String,
}

impl Chromium {
    /// Loads a page, with a profile and a log in `dir`.
    ///
    /// # Errors
    /// If it does not come to an end, or fails.
    pub fn load(&self, dir: &Path, url: &str) -> Result<Seen> {
        let log = dir.join("net-log.json");
        let mut command = self.command(dir, url)?;
        command
            .arg("--dump-dom")
            .arg("--enable-logging=stderr")
            .arg(format!("--log-net-log={}", log.display()));
        let (dom, said) = run(&mut command, dir)?;
        let log = fs::read(&log).with_context(|| format!("cannot read {}", log.display()))?;
        let asked = asked(&log).context("the log of the network cannot be read")?;
        ensure!(
            asked.iter().any(|address| address == url),
            "{url} was not asked for: {asked:?}"
        );
        Ok(Seen { dom, asked, said })
    }

    /// Makes a picture of a page, so many pixels wide and high.
    ///
    /// # Errors
    /// As [`Chromium::load`].
    pub fn picture(
        &self,
        dir: &Path,
        url: &str,
        scheme: Scheme,
        (width, height): (u32, u32),
        file: &Path,
    ) -> Result<()> {
        let scheme = match scheme {
            Scheme::Dark => 0,
            Scheme::Light => 1,
        };
        let mut command = self.command(dir, url)?;
        command
            .arg(format!("--screenshot={}", file.display()))
            .arg(format!("--window-size={width},{height}"))
            .arg("--hide-scrollbars")
            .arg(format!("--blink-settings=preferredColorScheme={scheme}"));
        let (_, said) = run(&mut command, dir)?;
        ensure!(file.is_file(), "no picture was made:\n{said}");
        Ok(())
    }

    fn command(&self, dir: &Path, url: &str) -> Result<Command> {
        let profile = tempfile::Builder::new().prefix("profile-").tempdir_in(dir);
        // It goes with `dir`.
        let profile = profile.context("no room for a profile")?.keep();
        let mut command = Command::new(&self.program);
        command
            .args([
                "--headless",
                // Root may not have its sandbox. What it loads here is what the test serves.
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--force-device-scale-factor=1",
                "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.*",
            ])
            .arg(format!("--user-data-dir={}", profile.display()))
            .env("HOME", dir)
            .arg(url);
        Ok(command)
    }
}

/// Runs it to its end. Its output goes to files: it would fill a pipe.
fn run(command: &mut Command, dir: &Path) -> Result<(String, String)> {
    let [out, err] = ["out", "err"].map(|name| dir.join(format!("chromium.{name}")));
    let [to_out, to_err] = [&out, &err].map(fs::File::create);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(to_out.context("cannot keep its output")?)
        .stderr(to_err.context("cannot keep its output")?)
        .spawn()
        .context("cannot start chromium")?;
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            bail!("chromium does not end");
        }
        std::thread::sleep(POLL);
    };
    let read = |path: &Path| {
        let bytes = fs::read(path);
        bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    };
    let (out, err) = (read(&out)?, read(&err)?);
    ensure!(status.success(), "chromium ended with {status}:\n{err}");
    Ok((out, err))
}

/// The addresses of requests in a log of the network.
fn asked(log: &[u8]) -> Result<Vec<String>> {
    let log: Value = serde_json::from_slice(log)?;
    let events = log["events"].as_array().context("no events")?;
    let begins = &log["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"];
    ensure!(begins.is_u64(), "no type of a request that begins");
    let requests = events.iter().filter(|event| event["type"] == *begins);
    let requests = requests.map(|event| &event["params"]);
    // The browser's own have no origin and are for no frame.
    let of_page = requests.filter(|request| {
        request["request_type"] != "other" || request["initiator"] != "not an origin"
    });
    let addresses = of_page.filter_map(|request| request["url"].as_str());
    Ok(addresses.map(str::to_owned).collect())
}
