//! Starts every source that is configured, and ends them.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;
use tracing::{error, warn};

use super::error::AppError;
use super::requests::Requests;
use super::servers_thread::ServersThread;
use crate::config::Config;
use crate::core::input::{IdentitySource, Input};
use crate::core::model::{SourceId, SourceState};
use crate::gpu_release::ReleaseOrder;
use crate::sources::clock::now;
use crate::sources::gpu::calls::Watchdog;
use crate::sources::gpu::cursor::Cursor;
use crate::sources::gpu::nvml::{self, NvmlHandle};
use crate::sources::health::HealthReporter;
use crate::sources::identity::{IdentityIo, bundle, cri, docker, kubelet_logs, pod_resources};
use crate::sources::kernel::follow;
use crate::sources::{Io, kernel_log, procfs};

/// How long the first scan of `/proc` waits for the eBPF object to be attached. That takes some
/// hundred milliseconds; one that takes this long may never come back.
const ATTACH_WITHIN: Duration = Duration::from_secs(10);
/// How much of a clean shutdown the last windows may take.
const LAST_WINDOWS: Duration = Duration::from_secs(2);
/// How much of it the last events of the kernel may take. They take some milliseconds.
const LAST_EVENTS: Duration = Duration::from_millis(500);

/// The running sources.
pub(super) struct Sources {
    tasks: JoinSet<()>,
    /// The source of the kernel's events, which ends last.
    kernel: JoinHandle<()>,
    stop_kernel: watch::Sender<bool>,
    nvml: NvmlHandle,
    /// Where the sources run that talk to servers.
    _servers: ServersThread,
    stop: watch::Sender<bool>,
}

/// Tells the core which sources there are, before any of them says so itself.
pub(super) async fn announce(config: &Config, inputs: &mpsc::Sender<Input>) {
    for (source, is_on) in [
        (SourceId::Kernel, true),
        (SourceId::Procfs, true),
        (SourceId::Nvml, true),
        (SourceId::KernelLog, config.kernel_log.enabled),
        (SourceId::Docker, config.docker.is_on()),
        (SourceId::Cri, config.cri.is_on()),
        (SourceId::Bundle, config.bundle.is_on()),
        (SourceId::KubeletLogs, config.kubelet_logs.enabled),
        (SourceId::PodResources, config.pod_resources.enabled),
    ] {
        let state = if is_on {
            SourceState::Absent
        } else {
            SourceState::Disabled
        };
        report_state(inputs, source, state).await;
    }
}

/// Starts the sources. `cursors` say where the GPUs' windows go on, `releases` asks to let go of the
/// GPUs for a while.
///
/// # Errors
/// If a thread cannot be started.
pub(super) fn start(
    config: &Config,
    cursors: Vec<Cursor>,
    inputs: &mpsc::Sender<Input>,
    releases: mpsc::Receiver<ReleaseOrder>,
) -> Result<(Sources, Requests), AppError> {
    let (mut requests, asked) = Requests::new();
    let (stop, shutdown) = watch::channel(false);
    let io = || Io {
        out: inputs.clone(),
        clock: now,
        shutdown: shutdown.clone(),
    };
    let nvml = nvml::spawn(
        config.gpu.clone(),
        cursors,
        inputs.clone(),
        nvml::Asked {
            lists: asked.lists,
            releases,
        },
        shutdown.clone(),
    )
    .map_err(AppError::Nvml)?;
    let servers = ServersThread::spawn("servers", 1).map_err(AppError::ServersThread)?;
    let mut tasks = JoinSet::new();

    let (tried, has_tried) = oneshot::channel();
    let (stop_kernel, shutdown_of_kernel) = watch::channel(false);
    let kernel = follow::run(
        config.kernel.clone(),
        asked.kernel,
        requests.rescans(),
        tried,
        Io {
            shutdown: shutdown_of_kernel,
            ..io()
        },
    );
    let kernel = tokio::spawn(outlived(SourceId::Kernel, inputs.clone(), kernel));
    let attached = async {
        // If the sender is gone, the source has ended, and its first attempt is over as well.
        let _ = timeout(ATTACH_WITHIN, has_tried).await;
    };
    let procfs = procfs::run(
        config.procfs.clone(),
        procfs::ROOT.into(),
        attached,
        asked.rescans,
        io(),
    );
    tasks.spawn(outlived(SourceId::Procfs, inputs.clone(), procfs));

    if config.kernel_log.enabled {
        let life = kernel_log::run(config.kernel_log.clone(), io());
        tasks.spawn(outlived(SourceId::KernelLog, inputs.clone(), life));
    }

    let mut names = |source| {
        let (counters, questions) = requests.identity(source);
        IdentityIo {
            counters,
            questions,
            io: io(),
        }
    };
    if config.docker.is_on() {
        let names = names(IdentitySource::Docker);
        let life = docker::run(config.docker.clone(), docker::Tuning::default(), names);
        let life = outlived(SourceId::Docker, inputs.clone(), life);
        tasks.spawn_on(life, servers.handle());
    }
    if config.cri.is_on() {
        let names = names(IdentitySource::Cri);
        let life = cri::run(config.cri.clone(), cri::Tuning::default(), names);
        let life = outlived(SourceId::Cri, inputs.clone(), life);
        tasks.spawn_on(life, servers.handle());
    }
    if config.bundle.is_on() {
        let names = names(IdentitySource::Bundle);
        let life = bundle::run(config.bundle.clone(), bundle::Timing::default(), names);
        tasks.spawn(outlived(SourceId::Bundle, inputs.clone(), life));
    }
    if config.kubelet_logs.enabled {
        let names = names(IdentitySource::KubeletLogs);
        let (section, pace) = (config.kubelet_logs.clone(), kubelet_logs::Timing::default());
        let life = kubelet_logs::run(section, pace, requests.pods(), names);
        tasks.spawn(outlived(SourceId::KubeletLogs, inputs.clone(), life));
    }
    if config.pod_resources.enabled {
        let allocations = IdentityIo {
            counters: requests.allocations(),
            questions: asked.pods,
            io: io(),
        };
        let (section, pace) = (
            config.pod_resources.clone(),
            pod_resources::Timing::default(),
        );
        let life = pod_resources::run(section, pace, allocations);
        let life = outlived(SourceId::PodResources, inputs.clone(), life);
        tasks.spawn_on(life, servers.handle());
    }
    let sources = Sources {
        tasks,
        kernel,
        stop_kernel,
        nvml,
        _servers: servers,
        stop,
    };
    Ok((sources, requests))
}

impl Sources {
    /// What the threads of NVML are doing.
    pub(super) fn watchdog(&self) -> Watchdog {
        self.nvml.watchdog()
    }

    /// Tells the sources to end, and waits for their last words.
    pub(super) async fn drain(mut self) {
        let _ = self.stop.send(true);
        // A call into NVML may never come back: the books do not wait for it long.
        if timeout(LAST_WINDOWS, self.nvml.stopped()).await.is_err() {
            warn!(
                "NVML's last windows did not arrive within {LAST_WINDOWS:?}; their time is not booked"
            );
        }
        // Only now: the last windows are booked by what is known up to their ends.
        let _ = self.stop_kernel.send(true);
        if timeout(LAST_EVENTS, &mut self.kernel).await.is_err() {
            warn!("the last events of the kernel did not arrive within {LAST_EVENTS:?}");
            self.kernel.abort();
        }
        self.tasks.shutdown().await;
    }
}

/// Runs a source, and reports it as down if it panicked. Otherwise its last report would stand.
async fn outlived(source: SourceId, inputs: mpsc::Sender<Input>, life: impl Future<Output = ()>) {
    if let Some(state) = panicked(source, life).await {
        report_state(&inputs, source, state).await;
    }
}

/// Runs a source or an output. Returns its state from then on if it panicked.
pub(super) async fn panicked(
    source: SourceId,
    life: impl Future<Output = ()>,
) -> Option<SourceState> {
    // Nothing of the source is looked at after a panic.
    if AssertUnwindSafe(life).catch_unwind().await.is_ok() {
        return None;
    }
    let source_name = source.as_str();
    error!(
        source = source_name,
        "the source's task panicked (a bug); restart the agent"
    );
    Some(SourceState::Down {
        class: "panic".into(),
        reason: "a defect ended it; the agent must be started anew".into(),
        next_retry: None,
    })
}

/// Reports a source's state on its behalf.
async fn report_state(inputs: &mpsc::Sender<Input>, source: SourceId, state: SourceState) {
    let mut reporter = HealthReporter::new(source, inputs.clone(), now).quiet();
    // The receiver is dropped only when the agent is stopping.
    let _ = reporter.report(state, "").await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_source_with_an_empty_list_of_places_is_disabled_and_not_absent() {
        let text = "[docker]\nsockets = []\n[cri]\nsockets = []\n\
                    [bundle]\ncontainerd = []\nstorage = []\ndocker = []\n";
        let config = Config::parse(text, "test").expect("it can be used");
        let (inputs, mut taken) = mpsc::channel(16);
        announce(&config, &inputs).await;
        drop(inputs);
        let mut disabled = Vec::new();
        while let Some(input) = taken.recv().await {
            if let Input::Health(health) = input
                && health.state == SourceState::Disabled
            {
                disabled.push(health.source);
            }
        }
        let expected = [SourceId::Docker, SourceId::Cri, SourceId::Bundle];
        assert_eq!(disabled, expected);
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
