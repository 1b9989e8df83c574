//! VictoriaMetrics, a real backend that takes OTLP by HTTP over TLS, and is asked in the clear.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::certificates::Authority;
use crate::daemon::Daemon;
use crate::http::{free_address, get, post, post_form};
use crate::requirement::fetched_program;

/// Names the program, which `cargo xtask test` fetches.
pub const VARIABLE: &str = "GPUACCT_VICTORIA_METRICS";
/// How often it is asked while something is waited for.
const POLL: Duration = Duration::from_millis(200);

/// The program.
///
/// # Errors
/// If there is none.
pub fn available() -> Result<PathBuf> {
    fetched_program(VARIABLE)
}

/// What runs tests of rules as vmalert evaluates them. It comes with the program.
///
/// # Errors
/// If there is none.
pub fn vmalert_tool() -> Result<PathBuf> {
    let tool = available()?.with_file_name("vmalert-tool");
    ensure!(tool.is_file(), "{} is not a file", tool.display());
    Ok(tool)
}

/// A running VictoriaMetrics. Ended when dropped.
#[derive(Debug)]
pub struct VictoriaMetrics {
    daemon: Daemon,
    safe: SocketAddr,
    plain: SocketAddr,
}

impl VictoriaMetrics {
    /// Starts one with a certificate of this authority.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn start(program: &Path, dir: &Path, authority: &Authority) -> Result<Self> {
        Self::start_with(program, dir, authority, &[])
    }

    /// The same with further arguments.
    ///
    /// # Errors
    /// As [`VictoriaMetrics::start`].
    pub fn start_with(
        program: &Path,
        dir: &Path,
        authority: &Authority,
        arguments: &[String],
    ) -> Result<Self> {
        let dir = dir.join("victoria-metrics");
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let (safe, plain) = (free_address()?, free_address()?);
        let own = authority.for_address(safe)?;
        let mut command = Command::new(program);
        command
            .arg(format!("-httpListenAddr={safe}"))
            .args([
                "-tls=true".to_owned(),
                format!("-httpListenAddr={plain}"),
                "-tls=false".to_owned(),
            ])
            .arg(format!("-tlsCertFile={}", own.cert.display()))
            .arg(format!("-tlsKeyFile={}", own.key.display()))
            .arg(format!("-storageDataPath={}", dir.join("data").display()))
            .args(["-search.latencyOffset=0s", "-memory.allowedBytes=128MB"])
            .args(arguments);
        let log = dir.join("victoria-metrics.log");
        let mut daemon = Daemon::start("victoria-metrics", &mut command, &log)?;
        daemon.wait_until_listening(&[safe, plain])?;
        Ok(Self {
            daemon,
            safe,
            plain,
        })
    }

    /// Where it takes metrics over OTLP: the whole URL.
    #[must_use]
    pub fn metrics_url(&self) -> String {
        format!("https://{}/opentelemetry/v1/metrics", self.safe)
    }

    /// Where it is asked in PromQL: the URL below which it has `/api/v1`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.plain)
    }

    /// Takes samples in Prometheus' text format, with times in milliseconds, so that they can be asked for.
    ///
    /// # Errors
    /// If it does not.
    pub fn import(&self, text: &str) -> Result<()> {
        let url = format!("{}/api/v1/import/prometheus", self.url());
        let (code, body) = post(&url, "text/plain", text.as_bytes())?;
        ensure!(code < 300, "{url}: {code} {body}");
        let url = format!("{}/internal/force_flush", self.url());
        let (code, body) = get(&url, "*/*")?;
        ensure!(code < 300, "{url}: {code} {body}");
        Ok(())
    }

    /// Labels and values that a query gives now.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn query(&self, query: &str) -> Result<Vec<(Value, f64)>> {
        let url = format!("http://{}/api/v1/query", self.plain);
        let (code, body) = post_form(&url, &[("query", query)])?;
        ensure!(code == 200, "{query}: {code} {body}");
        let answer: Value = serde_json::from_str(&body)?;
        let result = answer["data"]["result"].as_array().context("no result")?;
        let sample = |sample: &Value| {
            let value = sample["value"][1].as_str()?.parse().ok()?;
            Some((sample["metric"].clone(), value))
        };
        Ok(result.iter().filter_map(sample).collect())
    }

    /// Waits until a query has an answer that pleases, and returns it.
    ///
    /// # Errors
    /// If it has not within `bound`; the message has the end of the log.
    pub fn wait_for(
        &self,
        query: &str,
        bound: Duration,
        pleases: impl Fn(&[(Value, f64)]) -> bool,
    ) -> Result<Vec<(Value, f64)>> {
        let end = Instant::now() + bound;
        loop {
            let found = self.query(query)?;
            if pleases(&found) {
                return Ok(found);
            }
            if Instant::now() > end {
                bail!(
                    "waited in vain for {query}: {found:?}; {}",
                    self.daemon.log_end()
                );
            }
            // It tells nobody when something has arrived.
            sleep(POLL);
        }
    }
}
