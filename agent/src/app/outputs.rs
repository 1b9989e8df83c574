//! Starts every output that is configured, and ends them.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::{error, info};

use super::error::AppError;
use super::servers_thread::ServersThread;
use super::settings::{origin, shape, starts, temporality};
use super::sources::panicked;
use crate::config::{self, Config};
use crate::core::input::SourceHealth;
use crate::core::model::{SourceId, SourceState};
use crate::gpu_release::ReleaseOrder;
use crate::outputs::condition::STUCK_AFTER;
use crate::outputs::counters::OutputCounters;
use crate::outputs::instruments::OptIn;
use crate::outputs::log::Log;
use crate::outputs::prometheus::{BindError, Guard, ProtectionFiles};
use crate::outputs::receiver::ReceiverError;
use crate::outputs::socket::{ConfigReport, Query};
use crate::outputs::store::RecordsDesk;
use crate::outputs::{otlp, prometheus, socket};
use crate::published::Published;
use crate::shutdown::until;
use crate::sources::clock::now;

/// Queries from the socket that may wait.
const QUERIES: usize = 16;

/// What the thread of a protected `/metrics` may wait for at once: an exposition that is made, a password
/// that is checked, files that are looked at.
const METRICS_BLOCKING: usize = 3;

/// What the outputs show, and what they count.
#[derive(Clone)]
pub(super) struct Shown {
    /// What was published last.
    pub(super) published: watch::Receiver<Arc<Published>>,
    /// What the outputs count of themselves.
    pub(super) counters: Arc<OutputCounters>,
}

/// The running outputs.
pub(super) struct Outputs {
    tasks: JoinSet<()>,
    /// The thread of a protected `/metrics`: it ends with this.
    _thread: Option<ServersThread>,
    stop: watch::Sender<bool>,
    health: mpsc::Sender<SourceHealth>,
}

/// What serves `/metrics`.
pub(super) struct Endpoint {
    listeners: prometheus::Listeners,
    guard: Guard,
    /// Where a protected endpoint is served, so that TLS handshakes do not hold up the core.
    thread: Option<ServersThread>,
    /// Whether there is a page for people.
    has_page: bool,
}

impl Endpoint {
    /// The address that is listened on.
    pub(super) fn place(&self) -> String {
        let address = self.listeners.metrics.local_addr();
        address.map(|at| at.to_string()).unwrap_or_default()
    }
}

/// The files that protect `/metrics`.
pub(super) fn protection(section: &config::Prometheus) -> ProtectionFiles {
    ProtectionFiles {
        web_config: section.web_config_file.clone(),
        bearer_tokens: section.bearer_token_file.clone(),
    }
}

/// Reads what protects `/metrics` and takes its addresses, if it is to be served.
pub(super) async fn listen(
    section: &config::Prometheus,
    counters: &Arc<OutputCounters>,
) -> Result<Option<Endpoint>, AppError> {
    if !section.enabled {
        return Ok(None);
    }
    let files = protection(section);
    let (guard, thread) = match files.is_empty() {
        true => (Guard::open(Arc::clone(counters)), None),
        false => {
            let thread = ServersThread::spawn("metrics", METRICS_BLOCKING);
            (
                Guard::read(files, Arc::clone(counters))?,
                Some(thread.map_err(AppError::MetricsThread)?),
            )
        }
    };
    let metrics = bind(section.listen).await?;
    let probes = match section.probe_listen {
        Some(address) => Some(bind(address).await?),
        None => None,
    };
    Ok(Some(Endpoint {
        listeners: prometheus::Listeners { metrics, probes },
        guard,
        thread,
        has_page: section.page,
    }))
}

/// The same listeners where another runtime waits for them.
fn moved(
    listeners: prometheus::Listeners,
    to: &tokio::runtime::Handle,
) -> std::io::Result<prometheus::Listeners> {
    let metrics = listeners.metrics.into_std()?;
    let probes = listeners.probes.map(TcpListener::into_std).transpose()?;
    let _there = to.enter();
    Ok(prometheus::Listeners {
        metrics: TcpListener::from_std(metrics)?,
        probes: probes.map(TcpListener::from_std).transpose()?,
    })
}

/// Binds the address of `/metrics`.
pub(super) async fn bind(address: SocketAddr) -> Result<TcpListener, BindError> {
    match prometheus::bind(address).await {
        Err(error) => match without_ipv6(address, &error.source) {
            Some(address) => prometheus::bind(address).await,
            None => Err(error),
        },
        bound => bound,
    }
}

/// `0.0.0.0` with the same port, if the address is `[::]` and the kernel has no IPv6.
fn without_ipv6(address: SocketAddr, error: &std::io::Error) -> Option<SocketAddr> {
    let no_ipv6 = error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error());
    let all = address.is_ipv6() && address.ip().is_unspecified();
    (no_ipv6 && all).then(|| SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port())))
}

/// The exporter to an OTLP receiver, if one is configured.
pub(super) fn exporter(
    config: &Config,
    opt_in: watch::Receiver<Arc<OptIn>>,
    shown: &Shown,
    health: mpsc::Sender<SourceHealth>,
) -> Result<Option<otlp::Exporter>, ReceiverError> {
    let Some(receiver) = config.receiver() else {
        return Ok(None);
    };
    let options = otlp::Options {
        interval: config.otlp.interval.0,
        // No later than the first regular push would be.
        first_within: config.otlp.interval.0.min(Duration::from_secs(5)),
        opt_in,
        shape: shape(config),
        temporality: temporality(config),
        starts: starts(config),
        ..otlp::Options::new(receiver, origin(config))
    };
    let (published, counters) = (shown.published.clone(), Arc::clone(&shown.counters));
    otlp::Exporter::new(options, published, counters, Arc::new(now), health).map(Some)
}

/// The exporter of the usage records, if they are sent and a receiver is configured.
pub(super) fn records(
    config: &Config,
    opt_in: watch::Receiver<Arc<OptIn>>,
    shown: &Shown,
    health: mpsc::Sender<SourceHealth>,
) -> Result<Option<otlp::RecordsExporter>, ReceiverError> {
    let Some(receiver) = config.records_receiver() else {
        return Ok(None);
    };
    let options = otlp::RecordsOptions {
        interval: config.records.interval.0,
        opt_in,
        ..otlp::RecordsOptions::new(receiver, origin(config))
    };
    let counters = Arc::clone(&shown.counters);
    otlp::RecordsExporter::new(options, counters, Arc::new(now), health).map(Some)
}

/// The state of the usage records before any is sent.
pub(super) fn records_state(config: &Config) -> SourceState {
    match (config.records.enabled, config.records_receiver()) {
        (false, _) => SourceState::Disabled,
        (true, Some(_)) => SourceState::Absent,
        (true, None) => SourceState::Down {
            class: "no_receiver".into(),
            reason:
                "none of records.endpoint, otlp.logs.endpoint and otlp.endpoint names a receiver; the \
                     records wait in the store"
                    .into(),
            next_retry: None,
        },
    }
}

/// Settings of the outputs that change while the agent runs.
#[derive(Clone)]
pub(super) struct LiveSettings {
    /// What is published only where it is asked for.
    pub(super) opt_in: watch::Receiver<Arc<OptIn>>,
    /// The configuration in force, as it is shown.
    pub(super) report: watch::Receiver<Arc<ConfigReport>>,
}

/// What was bound or made before, for the outputs to start with.
pub(super) struct Taken {
    /// What serves `/metrics`, if it is to be served.
    pub(super) endpoint: Option<Endpoint>,
    /// The local socket.
    pub(super) socket: socket::BoundSocket,
    /// The exporter to an OTLP receiver, if one is configured.
    pub(super) exporter: Option<otlp::Exporter>,
}

/// Starts the outputs, which can say from here on how far the start has come. Returns the queries
/// that come in over the socket, too.
pub(super) fn start(
    live: LiveSettings,
    log: Arc<Log>,
    taken: Taken,
    releases: mpsc::Sender<ReleaseOrder>,
    shown: &Shown,
    health: mpsc::Sender<SourceHealth>,
) -> (Outputs, mpsc::Receiver<Query>) {
    let (stop, stopped) = watch::channel(false);
    let (queries, queries_taken) = mpsc::channel(QUERIES);
    let mut tasks = JoinSet::new();
    let mut thread = None;
    if let Some(endpoint) = taken.endpoint {
        let place = endpoint.place();
        info!(address = place, "serving /metrics");
        let exposition = prometheus::Exposition {
            published: shown.published.clone(),
            counters: Arc::clone(&shown.counters),
            opt_in: live.opt_in,
            clock: Arc::new(now),
            stuck_after: STUCK_AFTER,
            has_page: endpoint.has_page,
        };
        let Endpoint {
            listeners,
            guard,
            thread: own,
            has_page: _,
        } = endpoint;
        let guard = Arc::new(guard.reporting(prometheus::Report {
            health: health.clone(),
            clock: Arc::new(now),
            place: place.into(),
        }));
        let at = own.as_ref().map(ServersThread::handle).cloned();
        let listeners = match &at {
            Some(at) => moved(listeners, at),
            None => Ok(listeners),
        };
        let stopped = stopped.clone();
        let serving = async move {
            let served =
                prometheus::serve_guarded(listeners?, exposition, guard, until(stopped)).await;
            served.inspect_err(|error| error!(%error, "serving /metrics ended"))
        };
        let health = health.clone();
        let serving = async move {
            let serving = async {
                // The error has been logged.
                let _: std::io::Result<()> = serving.await;
            };
            if let Some(state) = panicked(SourceId::Prometheus, serving).await {
                // The receiver is dropped only when the agent is stopping.
                let _ = health.send(state_of(SourceId::Prometheus, state, "")).await;
            }
        };
        match at {
            Some(at) => tasks.spawn_on(serving, &at),
            None => tasks.spawn(serving),
        };
        thread = own;
    }
    let desk = socket::SocketState {
        published: shown.published.clone(),
        queries,
        releases,
        counters: Arc::clone(&shown.counters),
        log,
        config: live.report,
        clock: Arc::new(now),
    };
    let (socket, socket_stopped) = (taken.socket, stopped.clone());
    tasks.spawn(async move {
        if let Err(error) = socket::serve(socket, desk, until(socket_stopped)).await {
            error!(%error, "serving the local socket ended");
        }
    });
    if let Some(exporter) = taken.exporter {
        let exporter = exporter.run(until(stopped));
        let reported = health.clone();
        tasks.spawn(async move {
            if let Some(state) = panicked(SourceId::Otlp, exporter).await {
                // The receiver is dropped only when the agent is stopping.
                let _ = reported.send(state_of(SourceId::Otlp, state, "")).await;
            }
        });
    }
    let outputs = Outputs {
        tasks,
        _thread: thread,
        stop,
        health,
    };
    (outputs, queries_taken)
}

/// The state of an output from now on, with the place where it is.
pub(super) fn state_of(output: SourceId, state: SourceState, place: &str) -> SourceHealth {
    SourceHealth {
        source: output,
        state,
        since: now().boot,
        place: place.into(),
    }
}

impl Outputs {
    /// Sends usage records from here on: their outbox is there once the books have begun.
    pub(super) fn start_records(&mut self, exporter: otlp::RecordsExporter, outbox: RecordsDesk) {
        let exporter = exporter.run(outbox, until(self.stop.subscribe()));
        let health = self.health.clone();
        self.tasks.spawn(async move {
            if let Some(state) = panicked(SourceId::Records, exporter).await {
                // The receiver is dropped only when the agent is stopping.
                let _ = health.send(state_of(SourceId::Records, state, "")).await;
            }
        });
    }

    /// Tells the outputs to show the last snapshot and end, and waits until they have.
    pub(super) async fn drain(mut self) {
        let _ = self.stop.send(true);
        while self.tasks.join_next().await.is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_addresses_are_those_of_ipv4_where_there_is_no_ipv6() {
        let no_ipv6 = rustix::io::Errno::AFNOSUPPORT.raw_os_error();
        let in_use = rustix::io::Errno::ADDRINUSE.raw_os_error();
        for (address, errno, expect) in [
            ("[::]:10944", no_ipv6, Some("0.0.0.0:10944")),
            ("[::]:10944", in_use, None),
            ("[::1]:10944", no_ipv6, None),
            ("0.0.0.0:10944", no_ipv6, None),
        ] {
            let error = std::io::Error::from_raw_os_error(errno);
            let instead = without_ipv6(address.parse().expect("an address"), &error);
            let expect = expect.map(|address| address.parse().expect("an address"));
            assert_eq!(instead, expect, "{address} {error}");
        }
    }
}
