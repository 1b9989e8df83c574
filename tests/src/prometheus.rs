//! A real Prometheus that scrapes, and is asked what it made of that.
//!
//! It is the distribution's program with a configuration and a storage of its own. What it says of
//! a counter's growth is what a bill would be made from, so no arithmetic of PromQL is redone here.
//!
//! Values are in whatever unit the metric has; times are seconds since 1970.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Seek, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::daemon::{Daemon, program};
use crate::http;

/// Whether this machine has Prometheus and promtool; if not, which is missing.
///
/// # Errors
/// If one is missing.
pub fn available() -> Result<()> {
    program("prometheus")?;
    program("promtool")?;
    Ok(())
}

/// What a Prometheus is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It scrapes, keeps and answers.
    Server,
    /// The same, and other servers write to it.
    Receiver,
    /// It scrapes, and writes to other servers. It answers no questions. Only Prometheus 3 has the flag.
    Agent,
}

impl Role {
    const fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Server => &[],
            Self::Receiver => &["--web.enable-remote-write-receiver"],
            Self::Agent => &["--agent"],
        }
    }

    const fn storage_flag(self) -> &'static str {
        match self {
            Self::Server | Self::Receiver => "--storage.tsdb.path",
            Self::Agent => "--storage.agent.path",
        }
    }
}

/// A running Prometheus. Ended when dropped.
#[derive(Debug)]
pub struct Prometheus {
    daemon: Daemon,
    address: SocketAddr,
    scrape_interval: Duration,
}

/// A series at an instant.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Its labels; `__name__` is one of them where PromQL keeps it.
    pub labels: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
}

/// What is scraped, and how that went last.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Target {
    /// The URL that is scraped.
    pub scrape_url: String,
    /// `up`, `down`, or `unknown` before the first time.
    pub health: String,
    /// Why it is down; empty otherwise.
    pub last_error: String,
}

impl Prometheus {
    /// Starts one that scrapes `/metrics` of each target, and waits until it answers questions. All
    /// that it writes goes into `dir`.
    ///
    /// # Errors
    /// If it does not come up; the message has the end of its log.
    pub fn start(dir: &Path, targets: &[SocketAddr], scrape_interval: Duration) -> Result<Self> {
        // Prometheus takes 0 for its default of a minute.
        ensure!(
            scrape_interval >= Duration::from_millis(1),
            "a scrape interval of {scrape_interval:?} is too short"
        );
        let interval = format!("{}ms", scrape_interval.as_millis());
        // JSON is YAML, too.
        let config = json!({
            "global": {"scrape_interval": interval, "scrape_timeout": interval},
            "scrape_configs": [{
                "job_name": "gpuacct",
                "static_configs": [{"targets": targets}],
            }],
        });
        Self::start_with(&program("prometheus")?, dir, &config, scrape_interval)
    }

    /// Starts the program that is at a path, with a configuration of one's own.
    ///
    /// # Errors
    /// As [`Prometheus::start`].
    pub fn start_with(
        program: &Path,
        dir: &Path,
        config: &serde_json::Value,
        scrape_interval: Duration,
    ) -> Result<Self> {
        Self::start_as(Role::Server, program, dir, config, scrape_interval)
    }

    /// The same in another role. One that is started in the folder of an earlier one goes on with what
    /// that one had.
    ///
    /// # Errors
    /// As [`Prometheus::start`].
    pub fn start_as(
        role: Role,
        program: &Path,
        dir: &Path,
        config: &serde_json::Value,
        scrape_interval: Duration,
    ) -> Result<Self> {
        let file = dir.join("prometheus.json");
        fs::write(&file, config.to_string())
            .with_context(|| format!("cannot write {}", file.display()))?;
        let address = http::free_address()?;
        let mut command = Command::new(program);
        command
            .arg("--config.file")
            .arg(&file)
            .arg(role.storage_flag())
            .arg(dir.join("prometheus"))
            .arg(format!("--web.listen-address={address}"))
            .args(role.flags());
        let mut daemon = Daemon::start("prometheus", &mut command, &dir.join("prometheus.log"))?;
        let ready = format!("http://{address}/-/ready");
        daemon.wait_until_up(|| http::get(&ready, "*/*").is_ok_and(|(code, _)| code == 200))?;
        Ok(Self {
            daemon,
            address,
            scrape_interval,
        })
    }

    /// Starts the program that is at a path with nothing to scrape, behind a web configuration file: with
    /// TLS, client certificates or passwords. Only the program that is tested can ask it. The address is
    /// known before, so that a certificate can be made for it.
    ///
    /// # Errors
    /// As [`Prometheus::start`].
    pub fn guarded(
        program: &Path,
        dir: &Path,
        address: SocketAddr,
        web_config: &Path,
    ) -> Result<Self> {
        let file = dir.join("prometheus.json");
        fs::write(&file, json!({"scrape_configs": []}).to_string())
            .with_context(|| format!("cannot write {}", file.display()))?;
        let mut command = Command::new(program);
        command
            .arg("--config.file")
            .arg(&file)
            .arg("--storage.tsdb.path")
            .arg(dir.join("prometheus"))
            .arg(format!("--web.listen-address={address}"))
            .arg("--web.config.file")
            .arg(web_config);
        let log = dir.join("prometheus.log");
        let mut daemon = Daemon::start("prometheus", &mut command, &log)?;
        // Whether it is ready can be asked only by who has a certificate; its log says it, too.
        let is_ready = || {
            let log = fs::read_to_string(&log);
            log.is_ok_and(|log| log.contains("ready to receive web requests"))
        };
        daemon.wait_until_up(is_ready)?;
        Ok(Self {
            daemon,
            address,
            scrape_interval: Duration::from_secs(1),
        })
    }

    /// Starts the program that is at a path with nothing to scrape, for what it knows of PromQL.
    ///
    /// # Errors
    /// As [`Prometheus::start`].
    pub fn idle(program: &Path, dir: &Path) -> Result<Self> {
        let interval = Duration::from_secs(1);
        Self::start_with(program, dir, &json!({"scrape_configs": []}), interval)
    }

    /// The URL at which a [`Role::Receiver`] takes samples from other servers.
    #[must_use]
    pub fn write_url(&self) -> String {
        format!("http://{}/api/v1/write", self.address)
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.daemon.pid()
    }

    /// Where it answers.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// What an expression is now.
    ///
    /// # Errors
    /// If there is no answer, PromQL does not understand the expression, or it is not a vector.
    pub fn query(&self, promql: &str) -> Result<Vec<Sample>> {
        self.ask(&[("query", promql)])
    }

    /// What an expression was at a time. `increase()` at the time of a series' last sample, over
    /// more than its life, is free of extrapolation if the series began at 0.
    ///
    /// # Errors
    /// As [`Prometheus::query`].
    pub fn query_at(&self, promql: &str, time_seconds: f64) -> Result<Vec<Sample>> {
        // Display gives the shortest text that is read back as the same number.
        self.ask(&[("query", promql), ("time", &time_seconds.to_string())])
    }

    /// Waits until it has scraped: it begins seconds after it is ready.
    ///
    /// # Errors
    /// As [`Prometheus::wait_for`].
    pub fn wait_for_scrape(&self, bound: Duration) -> Result<()> {
        let scrapes = |found: &[Sample]| found.iter().any(|up| up.value > 0.0);
        self.wait_for("up", bound, scrapes).map(drop)
    }

    /// When a series of these was last scraped, in seconds. Waits for a scrape that succeeds: after
    /// one that failed there is no such series for a while.
    ///
    /// # Errors
    /// As [`Prometheus::wait_for`].
    pub fn last_scrape(&self, series: &str, bound: Duration) -> Result<f64> {
        let last = format!("max(timestamp({series}))");
        let found = self.wait_for_any(&last, bound)?;
        Ok(found[0].value)
    }

    /// Asks at every scrape until there is a sample, and returns the answer.
    ///
    /// # Errors
    /// As [`Prometheus::wait_for`].
    pub fn wait_for_any(&self, promql: &str, bound: Duration) -> Result<Vec<Sample>> {
        self.wait_for(promql, bound, |found| !found.is_empty())
    }

    /// Asks at every scrape until the answer pleases, and returns that.
    ///
    /// # Errors
    /// If it does not within `bound`; the message has the last answer, the targets and the end of
    /// the log.
    pub fn wait_for(
        &self,
        promql: &str,
        bound: Duration,
        mut pleases: impl FnMut(&[Sample]) -> bool,
    ) -> Result<Vec<Sample>> {
        let deadline = Instant::now() + bound;
        loop {
            let answer = self.query(promql);
            if let Ok(answer) = &answer
                && pleases(answer)
            {
                return Ok(answer.clone());
            }
            if Instant::now() >= deadline {
                bail!(
                    "waited in vain for {promql}: {answer:?}; targets: {:?}; {}",
                    self.targets(),
                    self.daemon.log_end()
                );
            }
            std::thread::sleep(self.scrape_interval);
        }
    }

    /// What it scrapes.
    ///
    /// # Errors
    /// If there is no answer.
    pub fn targets(&self) -> Result<Vec<Target>> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Targets {
            active_targets: Vec<Target>,
        }
        let url = format!("http://{}/api/v1/targets", self.address);
        let (code, body) = http::get(&url, "application/json")?;
        let targets: Targets = data(&body).with_context(|| format!("{url} answers {code}"))?;
        Ok(targets.active_targets)
    }

    /// The syntax tree of an expression, as its parser makes it. Only Prometheus 3 tells.
    ///
    /// # Errors
    /// If there is no answer, or it does not understand the expression.
    pub fn parse(&self, promql: &str) -> Result<serde_json::Value> {
        let url = format!("http://{}/api/v1/parse_query", self.address);
        let (code, body) = http::post_form(&url, &[("query", promql)])?;
        data(&body).with_context(|| format!("{url} answers {code} to {promql}"))
    }

    /// The rules whose last evaluation failed, with the reason.
    ///
    /// # Errors
    /// If there is no answer.
    pub fn failing_rules(&self) -> Result<Vec<String>> {
        #[derive(Deserialize)]
        struct Rules {
            groups: Vec<Group>,
        }
        #[derive(Deserialize)]
        struct Group {
            rules: Vec<Rule>,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Rule {
            name: String,
            #[serde(default)]
            last_error: String,
        }
        let url = format!("http://{}/api/v1/rules", self.address);
        let (code, body) = http::get(&url, "application/json")?;
        let rules: Rules = data(&body).with_context(|| format!("{url} answers {code}"))?;
        ensure!(!rules.groups.is_empty(), "it has no rules");
        let rules = rules.groups.into_iter().flat_map(|group| group.rules);
        let failing = rules.filter(|rule| !rule.last_error.is_empty());
        Ok(failing
            .map(|rule| format!("{}: {}", rule.name, rule.last_error))
            .collect())
    }

    fn ask(&self, fields: &[(&str, &str)]) -> Result<Vec<Sample>> {
        #[derive(Deserialize)]
        #[serde(tag = "resultType", content = "result", rename_all = "lowercase")]
        enum Answer {
            Vector(Vec<Series>),
        }
        #[derive(Deserialize)]
        struct Series {
            metric: BTreeMap<String, String>,
            /// A time, and a number as text since JSON has neither NaN nor infinity.
            value: (f64, String),
        }
        let url = format!("http://{}/api/v1/query", self.address);
        let (code, body) = http::post_form(&url, fields)?;
        let answer = data(&body).with_context(|| format!("{url} answers {code} to {fields:?}"))?;
        let Answer::Vector(series) = answer;
        let samples = series.into_iter().map(|series| {
            let text = &series.value.1;
            let value = text
                .parse()
                .with_context(|| format!("{text:?} is no number"))?;
            Ok(Sample {
                labels: series.metric,
                value,
            })
        });
        samples.collect()
    }
}

/// Has promtool judge a text exposition: names, help, types, units.
///
/// # Errors
/// With promtool's own words.
pub fn promtool_check(text: &str) -> Result<()> {
    let mut file = tempfile::tempfile().context("no temporary file")?;
    file.write_all(text.as_bytes())?;
    file.rewind()?;
    let output = Command::new(program("promtool")?)
        .args(["check", "metrics"])
        .stdin(Stdio::from(file))
        .output()
        .context("cannot run promtool")?;
    ensure!(
        output.status.success(),
        "promtool check metrics: {}: {}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// What an answer of the API has in it, or why it has nothing.
fn data<T: DeserializeOwned>(body: &str) -> Result<T> {
    #[derive(Deserialize)]
    #[serde(tag = "status", rename_all = "lowercase")]
    enum Envelope<T> {
        Success {
            data: T,
        },
        Error {
            #[serde(rename = "errorType")]
            kind: String,
            error: String,
        },
    }
    match serde_json::from_str(body).with_context(|| format!("unexpected: {body:?}"))? {
        Envelope::Success { data } => Ok(data),
        Envelope::Error { kind, error } => bail!("{kind}: {error}"),
    }
}
