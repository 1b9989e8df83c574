//! Whether the agent is alive and whether it is ready: one rule for `/healthz` and `/readyz`, and
//! for the local socket, which `gpuacct probe` asks.
//!
//! It reads what was published last and does not ask the core, since it has to report a core that is
//! stuck.

use std::fmt::Write as _;
use std::sync::Arc;

use tokio::sync::watch;

use super::ReadClock;
use super::condition::degraded;
use crate::core::model::{BootTime, Nanos};
use crate::published::Published;

/// The paths of the probes on a listener.
pub(super) const PATHS: [&str; 2] = ["/healthz", "/readyz"];

/// What the probes are answered from.
#[derive(Clone)]
pub(super) struct Probe {
    published: watch::Receiver<Arc<Published>>,
    clock: ReadClock,
    /// When serving began: before the first commit, the core is given its time from here.
    began: BootTime,
    stuck_after: Nanos,
}

impl Probe {
    /// A probe that finds the core stuck once the last commit is older than `stuck_after`.
    pub(super) fn new(
        published: watch::Receiver<Arc<Published>>,
        clock: ReadClock,
        stuck_after: Nanos,
    ) -> Self {
        Self {
            published,
            began: clock().boot,
            clock,
            stuck_after,
        }
    }

    /// Fails only if the core loop is stuck: that is what a restart can mend.
    pub(super) fn live(&self) -> Result<String, String> {
        let committed = self.published.borrow().books.at;
        let age = (self.clock)().boot.since(committed.max(self.began));
        if age <= self.stuck_after {
            return Ok("ok\n".to_owned());
        }
        let (age, bound) = (age.as_secs_f64(), self.stuck_after.as_secs_f64());
        Err(format!(
            "stuck: the last commit is {age:.1} s old, allowed are {bound:.1} s\n"
        ))
    }

    /// Fails only if the agent cannot publish: nothing is committed yet. Reasons for a degraded
    /// state are in the text only, since taking a degraded agent out of service would only hide its
    /// figures.
    pub(super) fn ready(&self) -> Result<String, String> {
        let published = Arc::clone(&self.published.borrow());
        if published.books.sequence == 0 {
            return Err("not ready: nothing has been committed yet\n".to_owned());
        }
        let mut text = String::from("ready\n");
        for reason in degraded(&published, (self.clock)().boot) {
            writeln!(text, "degraded: {reason}").expect("a String takes everything");
        }
        Ok(text)
    }
}
