//! The composition: every source, the core, every output, wired once and taken down in order.
//!
//! The core and the outputs run on one thread, since the agent's work and memory are to be small.
//! Calls that may block (NVML, the ring, `/proc`) run on threads of their own. So does the work for
//! answers of runtimes and the kubelet, because the agent does not control their size
//! ([`servers_thread`]).
//!
//! The order matters. What can be refused (addresses, sockets) is taken first, so that a wrong
//! configuration fails before anything is attached. The eBPF object is attached before `/proc` is
//! scanned, and events that come meanwhile queue, so that no process falls between the two.

mod books;
pub mod preflight;
mod recorder;
mod servers_thread;

use std::net::{Ipv4Addr, SocketAddr};
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinError, JoinHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tracing::{debug, error, info, warn};

use self::recorder::Recorder;
use self::servers_thread::ServersThread;
use crate::config::{CadvisorDutyCycle, Config, OtlpProtocol, OtlpTemporality, Payer};
use crate::core::accountant::{Accountant, Effect, Settings};
use crate::core::input::{IdentitySource, Input, PodName, SourceHealth};
use crate::core::model::{Clock, ContainerId, Nanos, Pid, PodUid, SourceId, SourceState};
use crate::core::placement::PayerRule;
use crate::core::publication::Policy;
use crate::core::snapshot::{BlockedCall, NvmlCallBook, Snapshot};
use crate::errors::chain;
use crate::outputs::condition::STUCK_AFTER;
use crate::outputs::counters::OutputCounters;
use crate::outputs::instruments::{DutyCycle, OptIn};
use crate::outputs::log::Log;
use crate::outputs::prometheus::BindError;
use crate::outputs::receiver::{Origin, Protocol, Receiver, ReceiverError};
use crate::outputs::socket::{ConfigReport, Query};
use crate::outputs::store::keeping::{Keeping, Outcome};
use crate::outputs::{otlp, prometheus, socket};
use crate::sources::clock::now;
use crate::sources::gpu::calls::Watchdog;
use crate::sources::gpu::nvml;
use crate::sources::identity::{self, bundle, cri, docker, kubelet_logs, pod_resources};
use crate::sources::kernel::opens::State;
use crate::sources::kernel::{KernelConfig, KernelSource, Tally};
use crate::sources::procfs;

/// Observations under way to the core.
const INPUTS: usize = 256;
/// Questions under way to the sources of names; what finds no room is asked again.
const LOOKUPS: usize = 256;
/// Queries under way from the socket.
const QUERIES: usize = 16;
/// How often the books are committed. The design allows two seconds at most.
const COMMIT_EVERY: Duration = Duration::from_secs(1);
/// Inputs taken in a row before a commit that is due gets its turn.
const INPUTS_IN_A_ROW: usize = 64;
/// How long a call into NVML takes before `status` speaks of it.
const SHOWN_AS_BLOCKED: Nanos = Nanos::from_secs(1);
/// How long an agent on the same socket is waited for: twice what Kubernetes and systemd give it to
/// end in. Longer than that it is no longer one that is being replaced.
const LAST_AGENT: Duration = Duration::from_secs(30);
/// How long a clean shutdown may take, and how much of that the last windows may.
const DRAIN: Duration = Duration::from_secs(10);
const LAST_WINDOWS: Duration = Duration::from_secs(2);
/// How long, at the end, each of these may take: the commit under way, the last one, closing the
/// store.
const LAST_COMMIT: Duration = Duration::from_secs(2);
/// How long a source that cannot be loaded rests at first, and at most.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MOST: Duration = Duration::from_secs(60);
/// How long the first scan of `/proc` waits for the eBPF object to be attached. That takes some
/// hundred milliseconds; one that takes this long may never come back.
const ATTACH_WITHIN: Duration = Duration::from_secs(10);
/// How often a node without a GPU's device is looked at again.
const LOOK_FOR_DEVICES: Duration = Duration::from_secs(10);

/// Why the agent could not start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// `/metrics` has no address.
    #[error(transparent)]
    Prometheus(#[from] BindError),
    /// The local socket cannot be made.
    #[error("cannot make the local socket")]
    Socket(#[from] socket::SocketError),
    /// OTLP cannot be spoken as configured.
    #[error(transparent)]
    Otlp(#[from] ReceiverError),
    /// The thread that follows NVML cannot be started.
    #[error("cannot start the nvml thread")]
    Nvml(#[source] std::io::Error),
    /// The books are kept no longer.
    #[error("the core ended before it was told to")]
    Core(#[source] Option<JoinError>),
    /// The file for what the core is told cannot be made.
    #[error("cannot record to {path}", path = .path.display())]
    Record {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The thread for the answers of runtimes and the kubelet cannot be started.
    #[error("cannot start the thread for the answers of runtimes")]
    ServersThread(#[source] std::io::Error),
    /// A signal handler cannot be installed.
    #[error("cannot listen for signals")]
    Signals(#[source] std::io::Error),
}

/// Runs the agent until SIGTERM or SIGINT.
///
/// # Errors
///
/// What was configured cannot be had: an address, the socket, a receiver's address; or the core has
/// ended by a defect. A source that is missing is none: it is reported as such and tried again.
///
/// `file` is where the configuration was read from, and `record` where to write down what the core is
/// told.
pub async fn run(
    config: Config,
    file: Option<PathBuf>,
    log: Arc<Log>,
    record: Option<PathBuf>,
) -> Result<(), AppError> {
    let mut signals = Signals::listen().map_err(AppError::Signals)?;
    let socket = tokio::select! {
        bound = socket::bind_after(&config.socket.path, LAST_AGENT) => bound?,
        () = signals.recv() => return Ok(()),
    };
    let began = now();
    let recorder = record.map(|path| {
        let recorder = Recorder::create(&path, &settings(&config), began);
        recorder.map_err(|source| AppError::Record { path, source })
    });
    let recorder = recorder.transpose()?;
    let listener = if config.prometheus.enabled {
        Some(listen(config.prometheus.listen).await?)
    } else {
        None
    };
    let (stop, stopped) = watch::channel(false);
    // The core ends after the sources, so that it books their last words, and the outputs after
    // the core, so that they show its last commit.
    let (stop_core, core_stopped) = watch::channel(false);
    let (stop_outputs, outputs_stopped) = watch::channel(false);
    let (inputs, inputs_taken) = mpsc::channel(INPUTS);
    let (queries, queries_taken) = mpsc::channel(QUERIES);
    let (rescans, rescans_taken) = mpsc::channel(1);
    let (announce, announce_taken) = mpsc::channel(1);
    let (lists, lists_wanted) = mpsc::channel(1);
    let (pods, pods_wanted) = mpsc::channel(LOOKUPS);
    let (snapshots, snapshot) = watch::channel(Arc::new(Snapshot::default()));
    let counters = Arc::new(OutputCounters::default());
    let mut sources = JoinSet::new();
    let mut outputs = JoinSet::new();
    let exporter = match receiver(&config) {
        Some(receiver) => Some(otlp::Exporter::new(
            otlp::Options {
                interval: config.otlp.interval.0,
                // No later than the first regular push would be.
                first_within: config.otlp.interval.0.min(Duration::from_secs(5)),
                opt_in: opt_in(&config),
                temporality: temporality(&config),
                starts: starts(&config),
                ..otlp::Options::new(receiver, origin(&config))
            },
            snapshot.clone(),
            Arc::clone(&counters),
            Arc::new(now),
            inputs.clone(),
        )?),
        None => None,
    };

    if let Some(listener) = &listener {
        let address = listener.local_addr().map(|at| at.to_string());
        info!(address = address.unwrap_or_default(), "serving /metrics");
    }
    for (source, is_on) in [
        (SourceId::Kernel, true),
        (SourceId::Procfs, true),
        (SourceId::Nvml, true),
        (SourceId::Docker, config.docker.enabled),
        (SourceId::Cri, config.cri.enabled),
        (SourceId::Bundle, config.bundle.enabled),
        (SourceId::KubeletLogs, config.kubelet_logs.enabled),
        (SourceId::PodResources, config.pod_resources.enabled),
        (SourceId::Otlp, exporter.is_some()),
    ] {
        let state = if is_on {
            SourceState::Absent
        } else {
            SourceState::Disabled
        };
        tell(&inputs, source, state, "").await;
    }

    // The outputs, which can say from here on how far the start has come.
    let (blocked_now, blocked) = watch::channel(None);
    if let Some(listener) = listener {
        let exposition = prometheus::Exposition {
            snapshots: snapshot.clone(),
            blocked: blocked.clone(),
            counters: Arc::clone(&counters),
            opt_in: opt_in(&config),
            clock: Arc::new(now),
            stuck_after: STUCK_AFTER,
        };
        let stopped = outputs_stopped.clone();
        outputs.spawn(async move {
            if let Err(error) = prometheus::serve(listener, exposition, until(stopped)).await {
                error!(%error, "serving /metrics ended");
            }
        });
    }
    let desk = socket::Desk {
        snapshots: snapshot,
        blocked,
        queries,
        counters: Arc::clone(&counters),
        log,
        config: Arc::new(ConfigReport {
            file,
            // A path that is not UTF-8 cannot be written, nor could it have been read.
            toml: config.clone().redacted().to_toml().unwrap_or_default(),
        }),
        clock: Arc::new(now),
    };
    let socket_stopped = outputs_stopped.clone();
    outputs.spawn(async move {
        if let Err(error) = socket::serve(socket, desk, until(socket_stopped)).await {
            error!(%error, "serving the local socket ended");
        }
    });
    if let Some(exporter) = exporter {
        let exporter = exporter.run(until(outputs_stopped.clone()));
        outputs.spawn(outlived(SourceId::Otlp, inputs.clone(), exporter));
    }
    // The books: what an agent before this one has left, once nobody else holds it.
    let begun = tokio::select! {
        begun = books::begin(&config, &snapshots) => begun,
        () = signals.recv() => {
            info!("stopped before anything was metered");
            return Ok(());
        }
    };

    // The sources.
    let nvml = nvml::spawn(
        config.gpu.clone(),
        begun.cursors,
        inputs.clone(),
        lists_wanted,
        stopped.clone(),
    )
    .map_err(AppError::Nvml)?;
    let (kernel_tried, tried) = oneshot::channel();
    let kernel = follow_kernel(
        KernelConfig::from(&config.kernel),
        inputs.clone(),
        announce_taken,
        rescans.clone(),
        kernel_tried,
        stopped.clone(),
    );
    sources.spawn(outlived(SourceId::Kernel, inputs.clone(), kernel));
    let procfs = procfs::run(
        procfs::Config {
            interval: config.procfs.interval.0,
            ..procfs::Config::default()
        },
        async {
            // A sender that is gone has had its try as well.
            let _ = timeout(ATTACH_WITHIN, tried).await;
        },
        rescans_taken,
        inputs.clone(),
        now,
        stopped.clone(),
    );
    sources.spawn(outlived(SourceId::Procfs, inputs.clone(), procfs));
    let servers = ServersThread::spawn().map_err(AppError::ServersThread)?;
    let mut names = Vec::new();
    let mut pod_lookups = None;
    if config.docker.enabled {
        let (counters, lookups) = source_of_names(&mut names, IdentitySource::Docker);
        let docker = docker::run(
            docker::Config {
                sockets: config.docker.sockets.clone(),
                timeout: config.docker.timeout.0,
                ..docker::Config::default()
            },
            counters,
            lookups,
            inputs.clone(),
            now,
            stopped.clone(),
        );
        let life = outlived(SourceId::Docker, inputs.clone(), docker);
        sources.spawn_on(life, servers.handle());
    }
    if config.cri.enabled {
        let (counters, lookups) = source_of_names(&mut names, IdentitySource::Cri);
        let cri = cri::run(
            cri::Config {
                sockets: config.cri.sockets.clone(),
                events: config.cri.events,
                timeout: config.cri.timeout.0,
                ..cri::Config::default()
            },
            counters,
            lookups,
            inputs.clone(),
            now,
            stopped.clone(),
        );
        let life = outlived(SourceId::Cri, inputs.clone(), cri);
        sources.spawn_on(life, servers.handle());
    }
    if config.bundle.enabled {
        let (counters, lookups) = source_of_names(&mut names, IdentitySource::Bundle);
        let bundle = config.bundle.clone();
        let bundle = bundle::run(
            bundle::Config {
                host_root: bundle.host_root,
                containerd: bundle.containerd,
                storage: bundle.storage,
                docker: bundle.docker,
                pace: bundle::Pace::default(),
            },
            counters,
            lookups,
            inputs.clone(),
            now,
            stopped.clone(),
        );
        sources.spawn(outlived(SourceId::Bundle, inputs.clone(), bundle));
    }
    if config.kubelet_logs.enabled {
        let (counters, lookups) = source_of_names(&mut names, IdentitySource::KubeletLogs);
        let (ask, pods) = mpsc::channel(LOOKUPS);
        pod_lookups = Some(ask);
        let logs = config.kubelet_logs.clone();
        let logs = kubelet_logs::run(
            kubelet_logs::Config {
                host_root: logs.host_root,
                containers: logs.containers,
                pods: logs.pods,
                pace: kubelet_logs::Pace::default(),
            },
            counters,
            lookups,
            pods,
            inputs.clone(),
            now,
            stopped.clone(),
        );
        sources.spawn(outlived(SourceId::KubeletLogs, inputs.clone(), logs));
    }
    let mut allocations = None;
    if config.pod_resources.enabled {
        let counters = Arc::new(identity::Counters::default());
        allocations = Some(Arc::clone(&counters));
        let kubelet = pod_resources::run(
            pod_resources::Config {
                socket: config.pod_resources.socket.clone(),
                resources: config.pod_resources.resources.clone(),
                timeout: config.pod_resources.timeout.0,
                interval: config.pod_resources.interval.0,
                ..pod_resources::Config::default()
            },
            counters,
            pods_wanted,
            inputs.clone(),
            now,
            stopped.clone(),
        );
        let life = outlived(SourceId::PodResources, inputs.clone(), kubelet);
        sources.spawn_on(life, servers.handle());
    }

    drop(inputs);

    let core = Core {
        accountant: begun.accountant,
        keeping: begun.keeping,
        waiting: None,
        store: config.store.path.display().to_string(),
        recorder,
        is_last: false,
        snapshots,
        names,
        pod_lookups,
        allocations,
        rescans,
        announce,
        lists,
        pods,
        watchdog: nvml.watchdog(),
        blocked: blocked_now,
    };
    let mut core = tokio::spawn(core.run(inputs_taken, queries_taken, core_stopped));

    let ended = end(signals.recv(), &mut core).await;
    info!("stopping");
    let began = Instant::now();
    let _ = stop.send(true);
    let drained = timeout(DRAIN, async {
        // A call into NVML may never come back: the books do not wait for it long.
        if timeout(LAST_WINDOWS, nvml.stopped()).await.is_err() {
            warn!(
                "NVML's last windows did not come within {LAST_WINDOWS:?}; their time is not booked"
            );
        }
        sources.shutdown().await;
        let _ = stop_core.send(true);
        if ended.is_ok()
            && let Err(error) = core.await
        {
            error!(%error, "the core did not end in order");
        }
        let _ = stop_outputs.send(true);
        while outputs.join_next().await.is_some() {}
    });
    if drained.await.is_err() {
        warn!("not everything ended within {DRAIN:?}");
    }
    debug!(took = ?began.elapsed(), "stopped");
    ended
}

/// Takes the address of `/metrics`.
async fn listen(address: SocketAddr) -> Result<TcpListener, BindError> {
    match prometheus::bind(address).await {
        Err(error) => match without_ipv6(address, &error.source) {
            Some(address) => prometheus::bind(address).await,
            None => Err(error),
        },
        bound => bound,
    }
}

/// What stands for all addresses, the default, where the kernel was started without IPv6.
fn without_ipv6(address: SocketAddr, error: &std::io::Error) -> Option<SocketAddr> {
    let no_ipv6 = error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error());
    let all = address.is_ipv6() && address.ip().is_unspecified();
    (no_ipv6 && all).then(|| SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port())))
}

/// Waits until the agent is told to stop, or has to: without its core it would look alive and book
/// nothing, and whoever started it can start it anew.
async fn end(told: impl Future<Output = ()>, core: &mut JoinHandle<()>) -> Result<(), AppError> {
    tokio::select! {
        () = told => Ok(()),
        ended = core => Err(AppError::Core(ended.err())),
    }
}

/// Lives as long as a source does, and tells if that ended by a panic: what is dead must not pass
/// for what was heard of it last.
async fn outlived(source: SourceId, inputs: mpsc::Sender<Input>, life: impl Future<Output = ()>) {
    // Nothing of the source is looked at after a panic.
    if AssertUnwindSafe(life).catch_unwind().await.is_ok() {
        return;
    }
    let source_name = source.as_str();
    error!(source = source_name, "a defect ended this source");
    let state = SourceState::Down {
        class: "panic".into(),
        reason: "a defect ended it; the agent must be started anew".into(),
        next_retry: None,
    };
    tell(&inputs, source, state, "").await;
}

/// Done when the agent is to stop.
async fn until(mut stopped: watch::Receiver<bool>) {
    // A sender that is gone means the same.
    let _ = stopped.wait_for(|stop| *stop).await;
}

async fn tell(inputs: &mpsc::Sender<Input>, source: SourceId, state: SourceState, place: &str) {
    let health = SourceHealth {
        source,
        state,
        since: now().boot,
        place: place.into(),
    };
    // Nobody listens any more only when the agent is stopping.
    let _ = inputs.send(Input::Health(health)).await;
}

fn settings(config: &Config) -> Settings {
    let nanos = |span: Duration| Nanos(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX));
    Settings {
        policy: Policy {
            grace: nanos(config.publish.grace.0),
            zero_for: nanos(config.publish.zero_for.0),
            keep_for: nanos(config.publish.keep_for.0),
        },
        payer: match config.attribution.payer {
            Payer::Outermost => PayerRule::Outermost,
            Payer::Innermost => PayerRule::Innermost,
        },
        lists_interval: nanos(config.gpu.lists_interval.0),
        own_pid: Some(Pid(std::process::id())),
        ..Settings::default()
    }
}

/// The receiver of OTLP, if one is configured.
pub(crate) fn receiver(config: &Config) -> Option<Receiver> {
    let endpoint = config.otlp.endpoint.clone()?;
    let headers = config.otlp.headers.iter();
    let headers = headers.map(|(name, value)| (name.clone(), value.clone()));
    let protocol = match config.otlp.protocol {
        OtlpProtocol::Grpc => Protocol::Grpc,
        OtlpProtocol::HttpProtobuf => Protocol::HttpProtobuf,
    };
    Some(Receiver {
        timeout: config.otlp.timeout.0,
        ..Receiver::new(endpoint, protocol).with_headers(headers)
    })
}

/// What counters say over OTLP, and where it is kept what was sent.
fn temporality(config: &Config) -> otlp::Temporality {
    match config.otlp.temporality {
        OtlpTemporality::Cumulative => {
            // Totals go out from here on: deltas that follow some day begin with those of then.
            if let Err(error) = otlp::Place::disown(&config.socket.path) {
                warn!(%error, "the mark of an earlier agent's deltas stays");
            }
            otlp::Temporality::Cumulative
        }
        // Without a store every agent's series are its own, and so is what was sent of them.
        OtlpTemporality::Delta if !config.store.enabled => otlp::Temporality::Delta(None),
        // Nor is there a store where the boot has no name, which the store says.
        OtlpTemporality::Delta => otlp::Temporality::Delta(
            books::boot()
                .ok()
                .map(|boot| otlp::Place::new(&config.store.path, &config.socket.path, &boot)),
        ),
    }
}

/// The file that records which counters are sent over OTLP without their start. Absent without a
/// store or without a boot id, since no series then outlives the agent.
fn starts(config: &Config) -> Option<otlp::StartsFile> {
    let boot = books::boot().ok().filter(|_| config.store.enabled)?;
    Some(otlp::StartsFile::new(&config.store.path, &boot))
}

/// What is published only where it is asked for.
fn opt_in(config: &Config) -> OptIn {
    let duty_cycle = match config.cadvisor.duty_cycle {
        CadvisorDutyCycle::Device => DutyCycle::Device,
        CadvisorDutyCycle::Container => DutyCycle::Container,
    };
    OptIn {
        cadvisor: config.cadvisor.enabled.then_some(duty_cycle),
        pod_labels: config.publish.pod_labels.clone(),
    }
}

/// Where the figures come from, as OTLP's resource says it.
pub(crate) fn origin(config: &Config) -> Origin {
    // In a pod the kernel's host name is the pod's.
    let host_name = config.otlp.node_name.clone().unwrap_or_else(|| {
        let names = rustix::system::uname();
        names.nodename().to_string_lossy().into_owned()
    });
    let host_id = std::fs::read_to_string("/etc/machine-id").ok();
    Origin {
        host_name,
        host_id: host_id
            .map(|id| id.trim().to_owned())
            .filter(|id| !id.is_empty()),
        node_name: config.otlp.node_name.clone(),
    }
}

/// A source of names, as the core sees it.
struct SourceOfNames {
    source: IdentitySource,
    counters: Arc<identity::Counters>,
    lookups: mpsc::Sender<ContainerId>,
}

/// Adds a source to those that are asked, and returns its ends.
fn source_of_names(
    names: &mut Vec<SourceOfNames>,
    source: IdentitySource,
) -> (Arc<identity::Counters>, mpsc::Receiver<ContainerId>) {
    let counters = Arc::new(identity::Counters::default());
    let (lookups, taken) = mpsc::channel(LOOKUPS);
    names.push(SourceOfNames {
        source,
        counters: Arc::clone(&counters),
        lookups,
    });
    (counters, taken)
}

/// A snapshot that may not go out yet.
struct Waiting {
    snapshot: Snapshot,
    kept: Pin<Box<dyn Future<Output = (Keeping, Outcome)> + Send>>,
}

/// The one task that owns the books.
struct Core {
    accountant: Accountant,
    /// Keeps commits; absent where none are kept, and while it keeps one.
    keeping: Option<Keeping>,
    /// The snapshot that waits until its commit is kept.
    waiting: Option<Waiting>,
    /// The store's directory.
    store: String,
    /// If what it is told is to be written down.
    recorder: Option<Recorder>,
    /// Whether the next commit is the last.
    is_last: bool,
    snapshots: watch::Sender<Arc<Snapshot>>,
    /// The sources of names that are switched on.
    names: Vec<SourceOfNames>,
    /// The one that is asked for pods, if it is.
    pod_lookups: Option<mpsc::Sender<PodUid>>,
    /// What the source of allocations counts, if that is switched on.
    allocations: Option<Arc<identity::Counters>>,
    rescans: mpsc::Sender<()>,
    announce: mpsc::Sender<()>,
    lists: mpsc::Sender<()>,
    pods: mpsc::Sender<PodName>,
    watchdog: Watchdog,
    blocked: watch::Sender<Option<BlockedCall>>,
}

impl Core {
    async fn run(
        mut self,
        mut inputs: mpsc::Receiver<Input>,
        mut queries: mpsc::Receiver<Query>,
        mut stopped: watch::Receiver<bool>,
    ) {
        let mut commits = interval(COMMIT_EVERY);
        // After a pause of the machine one commit is enough.
        commits.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut batch = Vec::with_capacity(INPUTS_IN_A_ROW);
        loop {
            tokio::select! {
                biased;
                _ = stopped.wait_for(|stop| *stop) => break,
                settled = settled(&mut self.waiting) => self.settle(settled),
                // While a snapshot waits for the disk, the next commit does, and nothing else.
                _ = commits.tick(), if self.waiting.is_none() => self.commit(now()),
                Some(query) = queries.recv() => self.answer(query),
                taken = inputs.recv_many(&mut batch, INPUTS_IN_A_ROW) => {
                    if taken == 0 {
                        break;
                    }
                    self.take(&mut batch);
                }
            }
        }
        while inputs.try_recv().map(|input| batch.push(input)).is_ok() {}
        self.take(&mut batch);
        self.end().await;
    }

    /// The last commit. What the disk does not take in time does not go out either: the next agent
    /// goes on from what is kept, and shows that.
    async fn end(&mut self) {
        if self.waiting.is_some() {
            match timeout(LAST_COMMIT, settled(&mut self.waiting)).await {
                Ok(settled) => self.settle(settled),
                Err(_) => return,
            }
        }
        self.accountant.await_nothing();
        self.is_last = true;
        self.commit(now());
        if self.waiting.is_some()
            && let Ok(settled) = timeout(LAST_COMMIT, settled(&mut self.waiting)).await
        {
            self.settle(settled);
        }
        if let Some(keeping) = self.keeping.take()
            && timeout(LAST_COMMIT, keeping.close()).await.is_err()
        {
            warn!("the store was not closed within {LAST_COMMIT:?}");
        }
    }

    fn take(&mut self, batch: &mut Vec<Input>) {
        let clock = now();
        for input in batch.drain(..) {
            if let Some(recorder) = &mut self.recorder {
                recorder.take(&input, clock);
            }
            self.accountant.take(input, clock);
        }
        self.carry_out();
    }

    fn commit(&mut self, at: Clock) {
        if let Some(recorder) = &mut self.recorder {
            recorder.commit(self.is_last, at);
        }
        let snapshot = self.accountant.commit(at);
        self.carry_out();
        let keeping = self.keeping.as_mut();
        if !keeping.is_some_and(|keeping| keeping.is_due(at.boot)) {
            self.publish(snapshot);
        } else if let Some(keeping) = self.keeping.take() {
            let changes = self.accountant.changes(keeping.wants_whole(), at);
            let kept = Box::pin(keeping.keep(changes));
            self.waiting = Some(Waiting { snapshot, kept });
        }
    }

    /// A commit is kept, or cannot be: its snapshot goes out.
    fn settle(&mut self, (snapshot, keeping, outcome): (Snapshot, Keeping, Outcome)) {
        if let Some(kept) = outcome.kept {
            self.accountant.kept(kept);
        }
        let health = Input::Health(books::health(outcome.state, &self.store));
        let clock = now();
        if let Some(recorder) = &mut self.recorder {
            recorder.take(&health, clock);
        }
        self.accountant.take(health, clock);
        self.keeping = Some(keeping);
        self.publish(snapshot);
    }

    fn publish(&mut self, mut snapshot: Snapshot) {
        // What the sources count of themselves goes out with the books.
        let books = self
            .names
            .iter()
            .map(|of| of.counters.book(of.source.source()));
        let kubelet = self.allocations.iter();
        let kubelet = kubelet.map(|counters| counters.book(SourceId::PodResources));
        snapshot.names = books.chain(kubelet).collect();
        snapshot.nvml_calls = self.nvml_calls();
        snapshot.nvml_threads = self.watchdog.threads();
        snapshot.store = self.keeping.as_ref().map(Keeping::book);
        for book in &snapshot.gpus {
            if book.imbalance != 0 {
                error!(gpu = %book.gpu.uuid, nanoseconds = book.imbalance, "the books do not balance");
            }
            if !book.excess.is_zero() {
                error!(
                    gpu = %book.gpu.uuid,
                    nanoseconds = book.excess.0,
                    "an account has more held or allocated time than has passed"
                );
            }
        }
        self.snapshots.send_replace(Arc::new(snapshot));
        self.blocked
            .send_replace(self.watchdog.blocked(now().boot, SHOWN_AS_BLOCKED));
    }

    fn nvml_calls(&self) -> Vec<NvmlCallBook> {
        let figures = self.watchdog.figures().into_iter();
        figures
            .map(|(call, figures)| NvmlCallBook {
                call: call.into(),
                calls: figures.calls,
                errors: figures.errors,
                total: figures.total,
                longest: figures.longest,
            })
            .collect()
    }

    fn carry_out(&mut self) {
        for effect in self.accountant.take_effects() {
            // A full channel means that it is being done, or will be asked for again.
            let dropped = match effect {
                // Whoever knows it: the best answer wins, whichever comes first.
                Effect::LookUp(id) => {
                    let mut any = false;
                    for of in &self.names {
                        if of.lookups.try_send(id.clone()).is_err() {
                            of.counters.refuse_lookup();
                            any = true;
                        }
                    }
                    any
                }
                // The others tell by themselves of every pod that they know.
                Effect::LookUpPod(uid) => match &self.pod_lookups {
                    Some(lookups) => lookups.try_send(uid).is_err(),
                    None => false,
                },
                Effect::Rescan => self.rescans.try_send(()).is_err(),
                Effect::AnnounceAnew => self.announce.try_send(()).is_err(),
                Effect::ReadLists => self.lists.try_send(()).is_err(),
                // The next list of everything has it, too.
                Effect::ReadAllocations(pod) => self.pods.try_send(pod).is_err(),
            };
            if dropped {
                debug!("a wish of the core was not taken");
            }
        }
    }

    fn answer(&mut self, query: Query) {
        match query {
            Query::Processes(reply) => {
                // Whoever asked may have gone.
                let _ = reply.send(self.accountant.gpu_processes(now().boot));
            }
            Query::Explain { subject, answer } => {
                let explanation = self.accountant.explain(&subject, now());
                // Likewise.
                let _ = answer.send(explanation.map(Box::new));
            }
        }
    }
}

/// Waits until the waiting snapshot may go out; for ever if there is none.
async fn settled(waiting: &mut Option<Waiting>) -> (Snapshot, Keeping, Outcome) {
    let Some(under_way) = waiting else {
        return std::future::pending().await;
    };
    let (keeping, outcome) = (&mut under_way.kept).await;
    let snapshot = std::mem::take(&mut under_way.snapshot);
    *waiting = None;
    (snapshot, keeping, outcome)
}

/// Keeps the eBPF object loaded, hands on what it reports, and has `/proc` scanned when it has
/// just been attached: what was born before that is known from there. Tells `tried` when the object
/// has been attached for the first time, or cannot be.
async fn follow_kernel(
    config: KernelConfig,
    inputs: mpsc::Sender<Input>,
    mut announce: mpsc::Receiver<()>,
    rescans: mpsc::Sender<()>,
    tried: oneshot::Sender<()>,
    stopped: watch::Receiver<bool>,
) {
    let follow = async {
        let mut tried = Some(tried);
        let mut has_tried = || {
            // Nobody listens where `/proc` was scanned without waiting any longer.
            let _ = tried.take().map(|tried| tried.send(()));
        };
        let mut pause = RETRY_FIRST;
        let mut reported = String::new();
        let mut tally = Tally::default();
        loop {
            let config = config.clone();
            let loaded = tokio::task::spawn_blocking(move || KernelSource::load(&config)).await;
            let (class, reason) = match loaded {
                Ok(Ok((mut source, mut batches))) => {
                    pause = RETRY_FIRST;
                    reported.clear();
                    let mut opens = source.opens();
                    tell(&inputs, SourceId::Kernel, SourceState::Up, opens.as_str()).await;
                    let mut look = interval(LOOK_FOR_DEVICES);
                    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
                    // Full means that a scan is about to begin anyway.
                    let _ = rescans.try_send(());
                    has_tried();
                    loop {
                        tokio::select! {
                            batch = batches.recv() => match batch {
                                Some(mut batch) => {
                                    batch.counters = tally.count(batch.counters);
                                    if inputs.send(Input::Kernel(batch)).await.is_err() {
                                        return;
                                    }
                                }
                                None => break,
                            },
                            Some(()) = announce.recv() => source.clear_announced(),
                            // The driver is often loaded later than the agent starts.
                            _ = look.tick(), if opens == State::Waiting => {
                                let looked = tokio::task::spawn_blocking(move || {
                                    let opens = source.attach_opens();
                                    (source, opens)
                                });
                                let Ok(looked) = looked.await else { break };
                                (source, opens) = looked;
                                if opens != State::Waiting {
                                    let place = opens.as_str();
                                    tell(&inputs, SourceId::Kernel, SourceState::Up, place).await;
                                }
                            }
                        }
                    }
                    tally.object_gone();
                    ("stream", "the event stream ended".to_owned())
                }
                Ok(Err(error)) => (error.class(), chain(&error)),
                Err(error) => ("panic", error.to_string()),
            };
            if reason != reported {
                warn!(class, reason, "the eBPF object does not run");
                reported.clone_from(&reason);
            }
            let state = SourceState::Down {
                class: class.into(),
                reason: reason.into(),
                next_retry: Some(
                    now()
                        .boot
                        .plus(Nanos(u64::try_from(pause.as_nanos()).unwrap_or(u64::MAX))),
                ),
            };
            tell(&inputs, SourceId::Kernel, state, "").await;
            has_tried();
            sleep(pause).await;
            pause = (pause * 2).min(RETRY_MOST);
        }
    };
    tokio::select! {
        () = until(stopped) => {}
        () = follow => {}
    }
}

struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn recv(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    #[test]
    fn the_defaults_of_the_sources_are_those_of_the_configuration() {
        let config = Config::default();
        let docker = docker::Config::default();
        assert_eq!(config.docker.sockets, docker.sockets);
        assert_eq!(config.docker.timeout.0, docker.timeout);
        let cri = cri::Config::default();
        assert_eq!(config.cri.sockets, cri.sockets);
        assert_eq!(config.cri.events, cri.events);
        assert_eq!(config.cri.timeout.0, cri.timeout);
        let kubelet = pod_resources::Config::default();
        assert_eq!(config.pod_resources.socket, kubelet.socket);
        assert_eq!(config.pod_resources.resources, kubelet.resources);
        assert_eq!(config.pod_resources.timeout.0, kubelet.timeout);
        assert_eq!(config.pod_resources.interval.0, kubelet.interval);
    }

    #[tokio::test]
    async fn an_agent_whose_core_has_ended_does_not_stay() {
        let mut core = tokio::spawn(async { panic!("a defect") });
        let ended = end(pending(), &mut core).await;
        assert!(matches!(ended, Err(AppError::Core(Some(_)))), "{ended:?}");
        let mut core = tokio::spawn(pending());
        assert!(end(async {}, &mut core).await.is_ok());
    }

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

    #[tokio::test]
    async fn a_source_that_a_defect_ended_is_down() {
        let (inputs, mut taken) = mpsc::channel(1);
        outlived(SourceId::Docker, inputs.clone(), async {}).await;
        assert!(taken.try_recv().is_err(), "it ended in order");
        outlived(SourceId::Docker, inputs, async { panic!("a defect") }).await;
        let Some(Input::Health(health)) = taken.recv().await else {
            panic!("a source tells of its health");
        };
        assert_eq!(health.source, SourceId::Docker);
        assert!(
            matches!(&health.state, SourceState::Down { class, .. } if &**class == "panic"),
            "{health:?}"
        );
    }
}
