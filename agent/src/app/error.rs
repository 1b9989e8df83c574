//! Why the agent could not start, or had to stop.

use std::path::PathBuf;

use tokio::task::JoinError;

use crate::outputs::prometheus::{BindError, WebConfigError};
use crate::outputs::receiver::ReceiverError;
use crate::outputs::socket;

/// Why the agent could not start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The address of `/metrics` cannot be bound.
    #[error(transparent)]
    Prometheus(#[from] BindError),
    /// What is to protect `/metrics` cannot be used.
    #[error("cannot protect /metrics")]
    Protection(#[from] WebConfigError),
    /// The thread that serves protected `/metrics` cannot be started.
    #[error("cannot start the thread that serves /metrics")]
    MetricsThread(#[source] std::io::Error),
    /// The local socket cannot be made.
    #[error("cannot create the local socket")]
    Socket(#[from] socket::SocketError),
    /// The OTLP receiver cannot be used as configured.
    #[error(transparent)]
    Otlp(#[from] ReceiverError),
    /// The thread that follows NVML cannot be started.
    #[error("cannot start the nvml thread")]
    Nvml(#[source] std::io::Error),
    /// The core task ended, so nothing is booked any more.
    #[error("the core task ended unexpectedly")]
    Core(#[source] Option<JoinError>),
    /// The file for the recording of inputs cannot be created.
    #[error("cannot record to {path}", path = .path.display())]
    Record {
        /// Path of the file.
        path: PathBuf,
        /// I/O error of creating the file.
        source: std::io::Error,
    },
    /// The thread for the answers of runtimes and the kubelet cannot be started.
    #[error("cannot start the thread for container runtimes and the kubelet")]
    ServersThread(#[source] std::io::Error),
    /// A signal handler cannot be installed.
    #[error("cannot listen for signals")]
    Signals(#[source] std::io::Error),
}

impl AppError {
    /// What to do about it.
    #[must_use]
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Prometheus(_) => {
                "choose another prometheus.listen or prometheus.probe_listen, or stop the program that uses the address"
            }
            Self::Protection(_) => {
                "correct the file that prometheus.web_config_file or prometheus.bearer_token_file names"
            }
            Self::Socket(error) => error.remedy(),
            Self::Otlp(_) => "correct otlp.endpoint and otlp.headers",
            Self::Core(_) => "report this as a bug, with the log",
            Self::Record { .. } => "name a file for --record-inputs that does not exist",
            Self::Nvml(_) | Self::ServersThread(_) | Self::MetricsThread(_) | Self::Signals(_) => {
                "check the limits on processes and open files of the pod or the unit"
            }
        }
    }
}
