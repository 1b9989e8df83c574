//! The source of GPU time: how NVML is asked, and the thread that sees to it.
//!
//! NVML's calls can block in the driver, so no two GPUs are asked by one thread, and none by a thread
//! that anything else waits for. See [`supervisor`](super::supervisor) for who owns the library,
//! [`worker`](super::worker) for the thread of a GPU, and [`register`](super::register) for who closes
//! a GPU's time when. [`Watchdog`] shows which call is stuck.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, oneshot, watch};

pub use super::calls::{CallFigures, Watchdog};
use super::cursor::Cursor;
use super::namespace::pid_namespace;
pub use super::requests::Asked;
use super::supervisor::{RESTART, Supervisor};
use crate::config;
use crate::core::input::Input;
use crate::sources::retry::Backoff;

/// The running source, seen from outside.
#[derive(Debug)]
pub struct NvmlHandle {
    watchdog: Watchdog,
    stopped: oneshot::Receiver<()>,
}

impl NvmlHandle {
    /// What the threads are doing; readable while they are blocked.
    #[must_use]
    pub fn watchdog(&self) -> Watchdog {
        self.watchdog.clone()
    }

    /// Waits until the source has sent its last windows. Threads whose call does not return are not
    /// waited for.
    pub async fn stopped(self) {
        // An error means that the thread is over too.
        let _ = self.stopped.await;
    }
}

/// Starts the source with its section of the configuration. `cursors` say where an agent before this
/// one stopped, by GPU.
///
/// The source ends when `shutdown` turns true or `out` closes.
pub fn spawn(
    config: config::Gpu,
    cursors: Vec<Cursor>,
    out: mpsc::Sender<Input>,
    asked: Asked,
    shutdown: watch::Receiver<bool>,
) -> io::Result<NvmlHandle> {
    let runtime = runtime()?;
    let watchdog = Watchdog::default();
    let (on_stop, stopped) = oneshot::channel();
    let supervisor = Supervisor::new(
        config,
        cursors,
        out,
        asked,
        shutdown,
        watchdog.clone(),
        pid_namespace(),
    );
    std::thread::Builder::new()
        .name("nvml".into())
        .spawn(move || {
            supervise(supervisor, runtime);
            // Nobody waiting is fine.
            let _ = on_stop.send(());
        })?;
    Ok(NvmlHandle { watchdog, stopped })
}

/// Has the supervisor live to the end, over its own defects.
fn supervise(mut supervisor: Supervisor, runtime: Runtime) {
    let mut runtime = Some(runtime);
    let mut waits = Backoff::new(RESTART);
    loop {
        if let Some(runtime) = runtime.take() {
            // What it holds is plain data, and is brought in order below.
            let live = AssertUnwindSafe(|| runtime.block_on(supervisor.live()));
            if catch_unwind(live).is_ok() {
                return;
            }
        }
        let wait = waits.wait();
        tracing::error!(
            ?wait,
            "the NVML supervisor thread panicked (a bug); restarting it"
        );
        supervisor.recover(wait);
        // Without a runtime nothing can be waited for but this.
        runtime = self::runtime().ok();
        if runtime.is_none() {
            std::thread::sleep(wait);
            runtime = self::runtime().ok();
        }
    }
}

fn runtime() -> std::io::Result<Runtime> {
    Builder::new_current_thread().enable_time().build()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::model::{SourceId, SourceState};

    /// The thread as the agent starts it, with a library that is not there.
    #[test]
    fn a_missing_library_is_down_and_the_thread_stops_when_told() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        runtime.block_on(async {
            let directory = tempfile::tempdir().unwrap();
            let library = directory.path().join("libnvidia-ml.so.1");
            let config = config::Gpu {
                library: Some(library.clone()),
                ..config::Gpu::default()
            };
            let (out, mut inputs) = mpsc::channel(1);
            let (_asks, lists) = mpsc::channel(1);
            let (_orders, releases) = mpsc::channel(1);
            let asked = Asked { lists, releases };
            let (stop, shutdown) = watch::channel(false);
            let handle = spawn(config, Vec::new(), out, asked, shutdown).unwrap();
            let Some(Input::Health(health)) = inputs.recv().await else {
                panic!("health comes first");
            };
            assert_eq!(health.source, SourceId::Nvml);
            let SourceState::Down {
                class,
                reason,
                next_retry,
            } = health.state
            else {
                panic!("{health:?}");
            };
            assert_eq!(&*class, "not_found");
            assert_eq!(*reason, format!("{} does not exist", library.display()));
            assert!(next_retry > Some(health.since));
            stop.send(true).unwrap();
            handle.stopped().await;
            // Whatever was still on its way, then the end.
            while inputs.recv().await.is_some() {}
        });
    }
}
