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
mod config_file;
mod core_task;
mod error;
mod outputs;
pub mod preflight;
mod recorder;
mod reload;
mod requests;
mod servers_thread;
mod settings;
mod signals;
mod sources;
mod start_pages;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tracing::{debug, error, info, warn};

use self::core_task::Core;
pub use self::error::AppError;
use self::outputs::{Outputs, Shown, Taken};
use self::recorder::Recorder;
pub use self::reload::{ConfigSource, ReadConfig};
use self::reload::{Receivers, Reload};
pub(crate) use self::settings::origin;
use self::signals::Signals;
use self::sources::Sources;
use self::start_pages::MappedFiles;
use crate::config::Config;
use crate::core::input::SourceHealth;
use crate::core::model::{SourceId, SourceState};
use crate::core::source_states::SourceStates;
use crate::outputs::log::Log;
use crate::outputs::socket;
use crate::published::Published;
use crate::sources::clock::now;

/// Inputs that may wait in the core's channel.
const INPUTS: usize = 256;
/// States of outputs that may wait to be taken. One that finds no room is told again.
const OUTPUT_STATES: usize = 16;
/// Requests to let go of the GPUs that may wait to be taken.
const RELEASES: usize = 4;
/// How long an earlier agent on the same socket is waited for: twice what Kubernetes and systemd
/// give it to end. One that lives longer is not being replaced.
const LAST_AGENT: Duration = Duration::from_secs(30);
/// How long a clean shutdown may take.
const DRAIN: Duration = Duration::from_secs(10);

/// Runs the agent until SIGTERM or SIGINT.
///
/// `source` is where the configuration comes from, and `record` where to write down what the core is
/// told.
///
/// # Errors
///
/// What was configured cannot be had: an address, the socket, a receiver's address; or the core has
/// ended by a defect. A missing source is not a failure: it is reported as absent and retried.
pub async fn run(
    config: Config,
    source: ConfigSource,
    log: Arc<Log>,
    record: Option<PathBuf>,
) -> Result<(), AppError> {
    let mut signals = Signals::listen().map_err(AppError::Signals)?;
    let hang_ups = signals::hang_ups().map_err(AppError::Signals)?;

    // Take what can be refused.
    let access = config.socket.access();
    let socket = tokio::select! {
        bound = socket::bind_after(&config.socket.path, &access, LAST_AGENT) => bound?,
        () = signals.recv() => return Ok(()),
    };
    let recorder = recorder(record, &config)?;
    let counters = Arc::default();
    let endpoint = outputs::listen(&config.prometheus, &counters).await?;
    let (inputs, inputs_taken) = mpsc::channel(INPUTS);
    let (health, health_taken) = mpsc::channel(OUTPUT_STATES);
    let (published, published_shown) = watch::channel(Arc::new(Published::default()));
    let shown = Shown {
        published: published_shown,
        counters,
    };
    let (reload, live) = Reload::new(&config, source);
    let opt_in = live.opt_in.clone();
    let exporter = outputs::exporter(&config, opt_in.clone(), &shown, health.clone())?;
    let records = outputs::records(&config, opt_in, &shown, health.clone())?;
    let taken = Taken {
        endpoint,
        socket,
        exporter,
    };

    // Begin: the outputs show how far the start has come, and the books go on from what an agent
    // before this one has left, once nobody else holds it.
    sources::announce(&config, &inputs).await;
    let output_states = output_states(&taken, outputs::records_state(&config), reload.state());
    let (releases, releases_taken) = mpsc::channel(RELEASES);
    let receivers = Receivers {
        log: Arc::clone(&log),
        core: inputs.clone(),
        limiter: None,
        health: health.clone(),
        counters: Arc::clone(&shown.counters),
    };
    let (mut outputs, queries) = outputs::start(live, log, taken, releases, &shown, health);
    let mut begun = tokio::select! {
        begun = books::begin(&config, &published) => begun,
        () = signals.recv() => {
            info!("stopped before accounting began");
            return Ok(());
        }
    };

    // Start the sources and the core.
    if let (Some(records), Some(outbox)) = (records, begun.records.take()) {
        outputs.start_records(records, outbox);
    }
    let mapped = MappedFiles::now();
    let receivers = Receivers {
        limiter: begun.limiter.take(),
        ..receivers
    };
    let cursors = std::mem::take(&mut begun.cursors);
    let (sources, requests) = sources::start(&config, cursors, &inputs, releases_taken)?;
    drop(inputs);
    let (stop_core, core_stopped) = watch::channel(false);
    let store = config.store.path.display().to_string();
    let watchdog = sources.watchdog();
    let core = Core::new(
        begun,
        store,
        recorder,
        requests,
        watchdog,
        output_states,
        published,
    );
    let mut core = tokio::spawn(core.run(inputs_taken, queries, health_taken, core_stopped));

    // Run.
    let reloading = tokio::spawn(reload.run(hang_ups, receivers));
    let settling = tokio::spawn(mapped.let_go_once_settled(shown.published.clone()));
    let ended = end(signals.recv(), &mut core).await;

    // Drain.
    info!("stopping");
    settling.abort();
    reloading.abort();
    let core = ended.is_ok().then_some(core);
    drain(sources, core, &stop_core, outputs).await;
    ended
}

/// Ends the parts in order: the sources, then the core, so that it books their last words, then the
/// outputs, so that they show its last commit. A core that has ended already is absent.
async fn drain(
    sources: Sources,
    core: Option<JoinHandle<()>>,
    stop_core: &watch::Sender<bool>,
    outputs: Outputs,
) {
    let began = Instant::now();
    let drained = timeout(DRAIN, async {
        sources.drain().await;
        let _ = stop_core.send(true);
        if let Some(core) = core
            && let Err(error) = core.await
        {
            error!(%error, "the core task failed while stopping");
        }
        outputs.drain().await;
    });
    if drained.await.is_err() {
        warn!("some tasks did not stop within {DRAIN:?}");
    }
    debug!(took = ?began.elapsed(), "stopped");
}

/// The states of the outputs before any of them says so itself. The store's is known once the books
/// have begun.
fn output_states(taken: &Taken, records: SourceState, config: SourceHealth) -> SourceStates {
    let otlp = match taken.exporter.is_some() {
        true => SourceState::Absent,
        false => SourceState::Disabled,
    };
    // It listens from here on.
    let (prometheus, place) = match &taken.endpoint {
        Some(endpoint) => (SourceState::Up, endpoint.place()),
        None => (SourceState::Disabled, String::new()),
    };
    let mut states = SourceStates::default();
    for state in [
        outputs::state_of(SourceId::Prometheus, prometheus, &place),
        outputs::state_of(SourceId::Otlp, otlp, ""),
        outputs::state_of(SourceId::Records, records, ""),
        config,
    ] {
        states.take(state, now().boot);
    }
    states
}

/// The file for what the core is told, if it is asked for.
fn recorder(record: Option<PathBuf>, config: &Config) -> Result<Option<Recorder>, AppError> {
    let recorder = record.map(|path| {
        let recorder = Recorder::create(&path, &settings::settings(config), now());
        recorder.map_err(|source| AppError::Record { path, source })
    });
    recorder.transpose()
}

/// Waits for a signal, or for the end of the core. Without its core the agent would look alive and
/// book nothing, so it exits and can be restarted.
async fn end(told: impl Future<Output = ()>, core: &mut JoinHandle<()>) -> Result<(), AppError> {
    tokio::select! {
        () = told => Ok(()),
        ended = core => Err(AppError::Core(ended.err())),
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    #[tokio::test]
    async fn an_agent_whose_core_has_ended_does_not_stay() {
        let mut core = tokio::spawn(async { panic!("a defect") });
        let ended = end(pending(), &mut core).await;
        assert!(matches!(ended, Err(AppError::Core(Some(_)))), "{ended:?}");
        let mut core = tokio::spawn(pending());
        assert!(end(async {}, &mut core).await.is_ok());
    }
}
