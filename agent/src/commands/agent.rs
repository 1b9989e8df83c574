//! `gpuacct agent`: reads the configuration, starts the log, runs the agent.

use std::io::{IsTerminal, Stderr, stderr};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tracing::error;
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use super::{block_on, complain, config::read};
use crate::app;
use crate::config::{Config, ConfigError, LogFormat, OtlpTemporality};
use crate::outputs::log::{self, Log, LogCapture, RedactingWriter};
use crate::outputs::telemetry::{self, Telemetry, TelemetryError};

/// How long the last export of the agent's own telemetry may take.
const FLUSH: Duration = Duration::from_secs(3);

/// Run the accountant of this node in the foreground
///
/// Needs root on the host's pid namespace, Linux 5.8 or later with BTF. Flags override the
/// configuration file. Ends on SIGTERM or SIGINT with 0; with 1 if it cannot start, with 2 if the
/// configuration is wrong.
#[derive(Debug, Args)]
pub struct Options {
    /// The configuration file
    #[arg(long, value_name = "FILE", env = "GPUACCT_CONFIG")]
    config: Option<PathBuf>,
    /// Address that serves /metrics, /healthz and /readyz
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
    /// The local socket for `gpuacct status`
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Path of NVIDIA's management library, if it is not in a usual place
    #[arg(long, value_name = "PATH")]
    nvml_library: Option<PathBuf>,
    /// Kubernetes name of this node, sent over OTLP
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    node_name: Option<String>,
    /// Record all inputs of the core in FILE, for debugging. FILE must not exist, and grows with
    /// every process of the node
    #[arg(long, value_name = "FILE", env = "GPUACCT_RECORD_INPUTS", hide = true)]
    record_inputs: Option<PathBuf>,
    /// Log level, or directives such as gpuacct=debug
    #[arg(long, value_name = "LEVEL")]
    log: Option<String>,
}

impl Options {
    fn config(self) -> Result<Config, ConfigError> {
        let mut config = read(self.config.as_deref())?;
        if let Some(listen) = self.listen {
            config.prometheus.listen = listen;
        }
        if let Some(socket) = self.socket {
            config.socket.path = socket;
        }
        if self.nvml_library.is_some() {
            config.gpu.library = self.nvml_library;
        }
        // An empty environment variable counts as not set.
        if let Some(name) = self.node_name.filter(|name| !name.is_empty()) {
            config.otlp.node_name = Some(name);
        }
        if let Some(level) = self.log {
            config.log.level = level;
        }
        config.check()?;
        Ok(config)
    }
}

/// Runs the agent until it is told to stop.
#[must_use]
pub fn run(options: Options) -> ExitCode {
    let record = options.record_inputs.clone();
    let file = options.config.clone();
    let config = match options.config() {
        Ok(config) => config,
        Err(error) => return complain(&error, 2),
    };
    let (log, filter) = match Log::new(&config.log.level) {
        Ok(log) => log,
        Err(_) => {
            let error = ConfigError::Value {
                key: "log.level",
                found: format!("{:?}", config.log.level),
                allowed: log::ALLOWED,
            };
            return complain(&error, 2);
        }
    };
    keep_memory_small();
    block_on(async {
        let telemetry = app::receiver(&config).map(|receiver| {
            Telemetry::start(&telemetry::Options {
                receiver,
                origin: app::origin(&config),
                interval: config.otlp.interval.0,
                temporality: match config.otlp.temporality {
                    OtlpTemporality::Cumulative => telemetry::Temporality::Cumulative,
                    OtlpTemporality::Delta => telemetry::Temporality::Delta,
                },
            })
        });
        let telemetry = match telemetry.transpose() {
            Ok(telemetry) => telemetry,
            Err(error @ TelemetryError::Receiver(_)) => return complain(&error, 2),
            Err(error) => return complain(&error, 1),
        };
        let ansi = stderr().is_terminal();
        // Nothing of ours logs a secret; a library might, or a receiver's words that it logs.
        let secrets = config.secrets();
        let node = RedactingWriter {
            secrets: secrets.clone(),
            writers: stderr as fn() -> Stderr,
        };
        let (text, json) = match config.log.format {
            LogFormat::Text => (Some(fmt::layer().with_writer(node).with_ansi(ansi)), None),
            LogFormat::Json => (None, Some(fmt::layer().with_writer(node).json())),
        };
        let kept = RedactingWriter {
            secrets,
            writers: LogCapture(Arc::clone(&log)),
        };
        let kept = fmt::layer().with_writer(kept).with_ansi(false);
        tracing_subscriber::registry()
            .with(filter)
            .with(text)
            .with(json)
            .with(kept)
            .with(telemetry.as_ref().map(Telemetry::layer))
            .init();
        let ended = app::run(config, file, log, record).await;
        if let Some(telemetry) = telemetry {
            let end = move || telemetry.shutdown(FLUSH);
            // Only a panic in there, which has been reported, or the end of the runtime.
            let _ = tokio::task::spawn_blocking(end).await;
        }
        match ended {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => {
                error!(
                    error = &failure as &dyn std::error::Error,
                    "the agent failed"
                );
                ExitCode::FAILURE
            }
        }
    })
}

/// Has the allocator give back what the start needed, before any thread has an arena of its own.
///
/// Reading the kernel's types takes some tens of megabytes on a thread that is soon idle. In an
/// arena of that thread they stay: `malloc_trim` never shrinks the top of such an arena, and a large
/// block that is freed raises the threshold above which the allocator would do so by itself. One
/// arena is enough for an agent that allocates little, and a threshold that is set no longer rises.
fn keep_memory_small() {
    #[cfg(target_env = "gnu")]
    {
        /// glibc's own default, as long as nothing large has been freed.
        const THRESHOLD: libc::c_int = 128 * 1024;
        for (option, value) in [
            (libc::M_ARENA_MAX, 1),
            (libc::M_MMAP_THRESHOLD, THRESHOLD),
            (libc::M_TRIM_THRESHOLD, THRESHOLD),
        ] {
            #[expect(
                unsafe_code,
                reason = "the allocator can be told this in no other way that the agent controls"
            )]
            // SAFETY: mallopt takes two numbers and keeps them; there is one thread as yet.
            let taken = unsafe { libc::mallopt(option, value) } == 1;
            if !taken {
                // It costs memory and nothing else. The log is not there yet.
                eprintln!("warning: the allocator does not take option {option}");
            }
        }
    }
}
