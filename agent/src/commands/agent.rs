//! `gpuacct agent`: reads the configuration, starts the log, runs the agent.

use std::io::{IsTerminal, Stderr, stderr};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tracing::{error, warn};
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use super::block_on;
use super::complaint::complain;
use super::environment;
use crate::app;
use crate::config::{
    Config, ConfigError, Environment, LoadedConfig, LogFormat, OtlpKind, OtlpTemporality,
};
use crate::errors::chain;
use crate::outputs::log::{Log, LogCapture, RedactingWriter};
use crate::outputs::telemetry::{self, Telemetry, TelemetryError};

/// How long the last export of the agent's own telemetry may take.
const FLUSH: Duration = Duration::from_secs(3);

/// Run the accountant of this node in the foreground
///
/// Needs root on the host's pid namespace, Linux 5.8 or later with BTF. Flags override the
/// configuration file. Ends on SIGTERM or SIGINT with 0; with 1 if it cannot start, with 2 if the
/// configuration is wrong. Reads the configuration anew upon SIGHUP and when its file changes.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// The configuration file
    #[arg(long, value_name = "FILE", env = "GPUACCT_CONFIG", value_parser = environment::path())]
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
    /// Kubernetes name of this node, sent over OTLP and written into the ledger
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    node_name: Option<String>,
    /// Record all inputs of the core in FILE, for debugging. FILE must not exist, and grows with
    /// every process of the node
    #[arg(
        long,
        value_name = "FILE",
        env = "GPUACCT_RECORD_INPUTS",
        value_parser = environment::path(),
        hide_short_help = true
    )]
    record_inputs: Option<PathBuf>,
    /// Log level, or directives such as gpuacct=debug
    #[arg(long, value_name = "LEVEL")]
    log: Option<String>,
}

/// Which flag sets which key.
const FLAGS: [(&str, &str); 5] = [
    ("prometheus.listen", "--listen"),
    ("socket.path", "--socket"),
    ("gpu.library", "--nvml-library"),
    ("otlp.node_name", "--node-name or NODE_NAME"),
    ("log.level", "--log"),
];

impl Options {
    /// The file that is named. An empty environment variable counts as not set.
    fn file(&self) -> Option<&Path> {
        let file = self.config.as_deref();
        file.filter(|file| !file.as_os_str().is_empty())
    }

    fn config(self) -> Result<LoadedConfig, ConfigError> {
        let mut loaded = LoadedConfig::load(self.file(), &Environment::of_process())?;
        let config = &mut loaded.config;
        let named = self.node_name.filter(|name| !name.is_empty());
        let set = [
            self.listen.is_some(),
            self.socket.is_some(),
            self.nvml_library.is_some(),
            named.is_some(),
            self.log.is_some(),
        ];
        for ((key, flag), _) in FLAGS.iter().zip(set).filter(|(_, is_set)| *is_set) {
            loaded.origins.set((*key).to_owned(), (*flag).to_owned());
        }
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
        if let Some(name) = named {
            config.otlp.node_name = Some(name);
        }
        if let Some(level) = self.log {
            config.log.level = level;
        }
        config.check_flags(&FLAGS)?;
        Ok(loaded)
    }
}

/// Runs the agent until it is told to stop.
#[must_use]
pub fn run(options: Options) -> ExitCode {
    let record = options.record_inputs.clone();
    let record = record.filter(|file| !file.as_os_str().is_empty());
    let file = options.file().map(Path::to_owned);
    let again = options.clone();
    let LoadedConfig {
        config,
        origins,
        unused,
    } = match options.config() {
        Ok(loaded) => loaded,
        Err(error) => return complain(&error, 2),
    };
    let (log, filter) = match Log::new(&config.log.level) {
        Ok(log) => log,
        // The check of the configuration has made the same filter.
        Err(error) => return complain(&error, 2),
    };
    keep_memory_small();
    block_on(async {
        let telemetry = telemetry_options(&config).map(|options| Telemetry::start(&options));
        let telemetry = match telemetry.transpose() {
            Ok(telemetry) => telemetry,
            Err(error @ TelemetryError::Receiver(_)) => return complain(&error, 2),
            Err(error) => return complain(&error, 1),
        };
        let ansi = stderr().is_terminal()
            && environment::has_control_sequences()
            && environment::allows_colour();
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
        for variable in unused {
            warn!(variable, "an environment variable is set and not used");
        }
        let source = app::ConfigSource {
            file,
            origins,
            read: Arc::new(move || again.clone().config()),
        };
        let ended = app::run(config, source, log, record).await;
        if let Some(telemetry) = telemetry {
            let end = move || telemetry.shutdown(FLUSH);
            // Only a panic in there, which has been reported, or the end of the runtime.
            let _ = tokio::task::spawn_blocking(end).await;
        }
        match ended {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => {
                // As text: a formatter of the log may leave out the causes.
                let (error, remedy) = (chain(&failure), failure.remedy());
                error!(error, remedy, "the agent failed");
                ExitCode::FAILURE
            }
        }
    })
}

/// Where the agent's own telemetry goes, if anywhere.
fn telemetry_options(config: &Config) -> Option<telemetry::Options> {
    let metrics = config.otlp.receiver(OtlpKind::Metrics);
    let logs = config.otlp.receiver(OtlpKind::Logs);
    (metrics.is_some() || logs.is_some()).then(|| telemetry::Options {
        metrics,
        logs,
        origin: app::origin(config),
        interval: config.otlp.interval.0,
        temporality: match config.otlp.temporality {
            OtlpTemporality::Cumulative => telemetry::Temporality::Cumulative,
            OtlpTemporality::Delta => telemetry::Temporality::Delta,
        },
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

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use tokio::sync::{mpsc, watch};

    use super::*;
    use crate::config::OtlpProtocol;
    use crate::core::model::{BootTime, Clock, WallTime};
    use crate::outputs::{otlp, socket};
    use crate::socket_access::SocketAccess;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn config(arguments: &[&str]) -> Result<Config, ConfigError> {
        let line = Line::try_parse_from([&["agent"], arguments].concat());
        let loaded = line.expect("the flags are known").options.config();
        loaded.map(|loaded| loaded.config)
    }

    /// Does with a configuration what the agent does at its start, as far as that can fail for what
    /// the configuration says.
    fn start(config: &Config) -> Result<(), String> {
        let failed = |error: &(dyn std::error::Error + 'static)| chain(error);
        Log::new(&config.log.level).map_err(|error| failed(&error))?;
        let Some(receiver) = config.receiver() else {
            return Ok(());
        };
        let options = otlp::Options::new(receiver, app::origin(config));
        let (_, published) = watch::channel(Arc::default());
        let (health, _) = mpsc::channel(1);
        let clock = Arc::new(|| Clock {
            boot: BootTime(0),
            wall: WallTime(0),
        });
        otlp::Exporter::new(options, published, Arc::default(), clock, health)
            .map_err(|error| failed(&error))?;
        let telemetry = telemetry_options(config).expect("there is a receiver");
        telemetry::exporters(&telemetry)
            .map(drop)
            .map_err(|error| failed(&error))
    }

    #[tokio::test]
    async fn no_configuration_that_is_accepted_keeps_the_agent_from_starting() {
        let endpoints = [
            "http://collector:4317",
            "https://collector:4317",
            "https://[::1]/base/",
            "https://",
            "https://a b",
            "http://collector",
            "http://[::1]:4317/base/",
            "http://me:pass word@collector:1",
            "http://me:%zz@collector:1",
            "http://collector:4317?a=b#c",
            "http://collector/a|b\"{}^`<>",
            "http://bücher.example:1",
            "http://coll\tector:1",
            "http://collector\\a",
            "http://collector:99999",
            "http://:4317",
            "http://?a",
            "http://#",
            "http://%00",
            "http://a b",
            "http://[::1",
            "http://1.2.3.4.5:1",
            "http://xn--a",
            "HTTP://collector",
            "http://collector:0",
        ];
        let mut accepted = 0;
        for endpoint in endpoints {
            for protocol in [OtlpProtocol::Grpc, OtlpProtocol::HttpProtobuf] {
                for headers in [
                    &[][..],
                    &[("x-a", "b")],
                    &[("x-a", "ä\u{7f}")],
                    &[("te", "x")],
                ] {
                    let mut config = Config::default();
                    config.otlp.endpoint = Some(endpoint.to_owned());
                    config.otlp.protocol = protocol;
                    let headers = headers.iter();
                    config.otlp.headers =
                        headers.map(|(k, v)| ((*k).into(), (*v).into())).collect();
                    if Config::parse(&config.to_toml().unwrap(), "test").is_ok() {
                        accepted += 1;
                        assert_eq!(start(&config), Ok(()), "{config:?}");
                    }
                }
            }
        }
        assert!(accepted > 50, "{accepted}");
        for level in [
            "info",
            "warning",
            "WARN",
            "",
            "7",
            "a=b",
            "[",
            "[x]",
            "=",
            "info,,warn",
            "gpuacct=",
            "[{",
            "a[b{c=\"d\"}]=info",
            "a[b{c=(}]=info",
            " info ",
            "off\n",
        ] {
            let mut config = Config::default();
            config.log.level = level.to_owned();
            if Config::parse(&config.to_toml().unwrap(), "test").is_ok() {
                assert_eq!(start(&config), Ok(()), "{level:?}");
            }
        }
    }

    #[tokio::test]
    async fn the_longest_socket_that_is_accepted_can_be_made() {
        let folder = tempfile::tempdir().unwrap();
        let mut accepted = 0;
        for length in 90..120 {
            let name = "s".repeat(length - folder.path().as_os_str().len() - 1);
            let path = folder.path().join(name);
            let text = format!("[socket]\npath = {path:?}\n");
            if Config::parse(&text, "test").is_ok() {
                accepted += 1;
                socket::bind(&path, &SocketAccess::default())
                    .unwrap_or_else(|error| panic!("{length}: {error}"));
            }
        }
        assert_eq!(accepted, 17, "90 to 106 bytes");
    }

    #[test]
    fn flags_are_checked_like_the_file_and_named() {
        let error = config(&["--log", "warning"]).unwrap_err().to_string();
        let expected = "cannot use the configuration: --log: found \"warning\", expected off";
        assert!(error.starts_with(expected), "{error}");
        let keys: Vec<&str> = FLAGS.iter().map(|(key, _)| *key).collect();
        let flags = [
            "--listen",
            "[::1]:9",
            "--socket",
            "/a",
            "--nvml-library",
            "/b",
        ];
        let named = ["--node-name", "n", "--log", "warn", "--config", ""];
        let set = config(&[&flags[..], &named[..]].concat()).unwrap();
        let set = serde_json::to_value(set).unwrap();
        let defaults = serde_json::to_value(Config::default()).unwrap();
        for key in keys {
            let pointer = format!("/{}", key.replace('.', "/"));
            assert_ne!(set.pointer(&pointer), defaults.pointer(&pointer), "{key}");
        }
    }
}
