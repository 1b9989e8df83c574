//! Changes settings of the running agent when its configuration has changed.
//!
//! The configuration is read anew upon SIGHUP, and when its file has changed. What can change without
//! touching the books does. What cannot is named and stays until a restart. A configuration that
//! cannot be used changes nothing. Each of these is a state of the source `config`, so that a change
//! that is not in force is visible in `status` and alerts.
//!
//! It refuses to change anything that was attached, bound or opened at the start.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::signal::unix::Signal;
use tokio::sync::{mpsc, watch};
use tokio::task::spawn_blocking;
use tracing::{info, warn};

use super::config_file::WatchedFile;
use super::outputs::{LiveSettings, state_of};
use super::settings::{opt_in, policy};
use crate::config::{Config, ConfigError, LoadedConfig, Origins};
use crate::core::input::{Input, SourceHealth};
use crate::core::model::{SourceId, SourceState};
use crate::errors::chain;
use crate::outputs::counters::OutputCounters;
use crate::outputs::instruments::OptIn;
use crate::outputs::log::Log;
use crate::outputs::socket::ConfigReport;
use crate::outputs::store::{Limiter, StoreLimits};
use crate::text_file;

/// Reads the configuration as it was read at the start: the file, the environment and the flags.
pub type ReadConfig = Arc<dyn Fn() -> Result<LoadedConfig, ConfigError> + Send + Sync>;

/// Where the configuration comes from.
pub struct ConfigSource {
    /// The file that it was read from, if any.
    pub file: Option<PathBuf>,
    /// What has set which key.
    pub origins: Origins,
    /// Reads it again.
    pub read: ReadConfig,
}

impl std::fmt::Debug for ConfigSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConfigSource")
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

/// Where changed settings go that no output reads.
pub(super) struct Receivers {
    pub(super) log: Arc<Log>,
    /// The core, which publishes by a policy.
    pub(super) core: mpsc::Sender<Input>,
    /// The store; absent where nothing is kept.
    pub(super) limiter: Option<Limiter>,
    /// Where the state of the configuration goes.
    pub(super) health: mpsc::Sender<SourceHealth>,
    pub(super) counters: Arc<OutputCounters>,
}

/// The configuration in force, and who is told of its changes.
pub(super) struct Reload {
    config: Config,
    source: ConfigSource,
    opt_in: watch::Sender<Arc<OptIn>>,
    report: watch::Sender<Arc<ConfigReport>>,
}

impl Reload {
    /// The configuration that the agent starts with, and the settings of the outputs by it.
    pub(super) fn new(config: &Config, source: ConfigSource) -> (Self, LiveSettings) {
        let (opt_in, opt_in_read) = watch::channel(Arc::new(opt_in(config)));
        let (report, report_read) = watch::channel(Arc::new(ConfigReport {
            file: source.file.clone(),
            // A path that is not UTF-8 cannot be written, nor could it have been read.
            toml: config.shown(&source.origins).unwrap_or_default(),
        }));
        let live = LiveSettings {
            opt_in: opt_in_read,
            report: report_read,
        };
        let reload = Self {
            config: config.clone(),
            source,
            opt_in,
            report,
        };
        (reload, live)
    }

    /// The state of the source `config` at the start.
    pub(super) fn state(&self) -> SourceHealth {
        let state = match self.source.file {
            Some(_) => SourceState::Up,
            None => SourceState::Disabled,
        };
        state_of(SourceId::Config, state, &self.place())
    }

    fn place(&self) -> String {
        let file = self.source.file.as_ref();
        file.map(|file| file.display().to_string())
            .unwrap_or_default()
    }

    /// Reads the configuration anew whenever there is a reason to. Never ends.
    pub(super) async fn run(mut self, mut hang_ups: Signal, receivers: Receivers) {
        let mut watched = self.source.file.as_deref().map(WatchedFile::new);
        // What changed between the start and now was not watched.
        let mut known = self.text().await;
        self.take(&receivers).await;
        loop {
            tokio::select! {
                _ = hang_ups.recv() => {
                    info!("SIGHUP: reading the configuration anew");
                    known = self.text().await;
                    self.take(&receivers).await;
                }
                () = may_have_changed(&mut watched) => {
                    let text = self.text().await;
                    if text != known {
                        known = text;
                        self.take(&receivers).await;
                    }
                }
            }
        }
    }

    /// The content of the file, as far as it can be read.
    ///
    /// A file system that does not answer must not hold up the thread of the core.
    async fn text(&self) -> Option<String> {
        let file = self.source.file.clone()?;
        let read = spawn_blocking(move || text_file::read(&file).ok());
        read.await.ok().flatten()
    }

    /// Reads the configuration, and puts in force what can be.
    async fn take(&mut self, receivers: &Receivers) {
        let read = Arc::clone(&self.source.read);
        // It only ends otherwise with the runtime.
        let Ok(read) = spawn_blocking(move || read()).await else {
            return;
        };
        let state = match read {
            Ok(loaded) => self.change_to(loaded, receivers).await,
            Err(error) => {
                receivers.counters.config_failed.add(1);
                let reason = chain(&error);
                warn!(reason, "the changed configuration is not used");
                let class = match error {
                    ConfigError::Read { .. } => "unreadable",
                    ConfigError::Wrong(_) => "invalid",
                };
                down(class, format!("{reason}; what was in force stays in force"))
            }
        };
        let state = state_of(SourceId::Config, state, &self.place());
        // The receiver is dropped only when the agent is stopping.
        let _ = receivers.health.send(state).await;
    }

    async fn change_to(&mut self, loaded: LoadedConfig, receivers: &Receivers) -> SourceState {
        // Both can be written: they were read.
        let Ok(change) = self.config.change_to(&loaded.config) else {
            return SourceState::Up;
        };
        if !change.changed.is_empty() {
            receivers.counters.config_applied.add(1);
            info!(
                keys = change.changed.join(", "),
                "the configuration has changed"
            );
            self.put_in_force(change.config, &loaded.origins, receivers)
                .await;
        }
        match &change.needs_restart[..] {
            [] if self.source.file.is_none() => SourceState::Disabled,
            [] => SourceState::Up,
            keys => {
                let keys = keys.join(", ");
                warn!(
                    keys,
                    "these keys have changed and need a restart of the agent"
                );
                let reason = format!("changed, and in force only after a restart: {keys}");
                down("needs_restart", reason)
            }
        }
    }

    async fn put_in_force(&mut self, config: Config, origins: &Origins, receivers: &Receivers) {
        if config.log.level != self.config.log.level
            && let Err(error) = receivers.log.set_level(&config.log.level)
        {
            // The check of the configuration has made the same filter.
            warn!(error = chain(&error), "the log level is not changed");
        }
        if config.publish != self.config.publish {
            // The receiver is dropped only when the agent is stopping.
            let _ = receivers.core.send(Input::Policy(policy(&config))).await;
        }
        if let Some(limiter) = &receivers.limiter {
            limiter.set(StoreLimits {
                retention: config.store.retention.0,
                max_bytes: config.store.max_size,
            });
        }
        self.opt_in.send_replace(Arc::new(opt_in(&config)));
        self.report.send_replace(Arc::new(ConfigReport {
            file: self.source.file.clone(),
            toml: config.shown(origins).unwrap_or_default(),
        }));
        self.config = config;
    }
}

fn down(class: &str, reason: String) -> SourceState {
    SourceState::Down {
        class: class.into(),
        reason: reason.into(),
        next_retry: None,
    }
}

/// Returns when the file may have changed; never without a file.
async fn may_have_changed(watched: &mut Option<WatchedFile>) {
    match watched {
        Some(watched) => watched.may_have_changed().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
