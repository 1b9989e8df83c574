//! The source of GPU time: how NVML is asked, and the thread that sees to it.
//!
//! NVML's calls can block in the driver, so no two GPUs are asked by one thread, and none by a thread
//! that anything else waits for. See [`supervisor`](super::supervisor) for who owns the library,
//! [`worker`](super::worker) for the thread of a GPU, and [`register`](super::register) for who closes
//! a GPU's time when. [`Watchdog`] tells the others which call is stuck.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, oneshot, watch};

use super::backoff::Backoff;
pub use super::calls::{CallFigures, Watchdog};
use super::supervisor::{RESTART, Supervisor};
pub use super::window::Cursor;
use super::worker::LISTS_APART;
use crate::core::input::Input;

/// Beyond this between two windows, a few late polls would lose samples of the ring.
const LONGEST_INTERVAL: Duration = Duration::from_secs(5);
/// Below this the calls cost more than the samples are worth: there are six a second.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(100);
/// The initial pid namespace: its inode number is fixed in the kernel (`PROC_PID_INIT_INO`).
pub const INITIAL_PID_NAMESPACE: &str = "pid:[4026531836]";

/// How NVML is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The library; looked for in the usual places if absent.
    pub library: Option<PathBuf>,
    /// Time between two windows of a GPU: 100 ms to 5 s.
    pub interval: Duration,
    /// Time between two readings of the process lists, unless something asks for them: 1 s at least.
    pub lists_interval: Duration,
    /// Where an agent before this one stopped, by GPU.
    pub cursors: Vec<Cursor>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            library: None,
            interval: Duration::from_secs(1),
            lists_interval: Duration::from_secs(5),
            cursors: Vec::new(),
        }
    }
}

/// Why the NVML thread was not started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The windows would be too long or too short.
    #[error(
        "window interval is {found:?}, expected {SHORTEST_INTERVAL:?} to {LONGEST_INTERVAL:?}: \
         the driver keeps ten seconds of samples"
    )]
    Interval {
        /// What was configured.
        found: Duration,
    },
    /// The process lists would be read too often.
    #[error("process list interval is {found:?}, expected at least {LISTS_APART:?}")]
    ListsInterval {
        /// What was configured.
        found: Duration,
    },
    /// The thread or its timer could not be made.
    #[error("cannot start the nvml thread")]
    Thread(#[from] std::io::Error),
}

impl Config {
    /// Whether these intervals can be kept.
    pub fn validate(&self) -> Result<(), SpawnError> {
        if !(SHORTEST_INTERVAL..=LONGEST_INTERVAL).contains(&self.interval) {
            return Err(SpawnError::Interval {
                found: self.interval,
            });
        }
        if self.lists_interval < LISTS_APART {
            return Err(SpawnError::ListsInterval {
                found: self.lists_interval,
            });
        }
        Ok(())
    }
}

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

    /// Waits until the source has sent its last words. Threads whose call does not return are not
    /// waited for.
    pub async fn stopped(self) {
        // An error means that the thread is over too.
        let _ = self.stopped.await;
    }
}

/// Starts the source.
///
/// `lists_wanted` asks for the process lists soon; a channel of one is enough, since one reading
/// serves all who asked before it. The source ends when `shutdown` turns true or `out` closes.
pub fn spawn(
    config: Config,
    out: mpsc::Sender<Input>,
    lists_wanted: mpsc::Receiver<()>,
    shutdown: watch::Receiver<bool>,
) -> Result<NvmlHandle, SpawnError> {
    config.validate()?;
    let runtime = runtime()?;
    let watchdog = Watchdog::default();
    let (on_stop, stopped) = oneshot::channel();
    let supervisor = Supervisor::new(
        config,
        out,
        lists_wanted,
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
        tracing::error!(?wait, "a defect ended the thread that looks after NVML");
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

/// The pid namespace of this process, if it is another than the initial one. What cannot be read is
/// taken for the initial one: a warning that may be wrong helps nobody.
fn pid_namespace() -> Option<Arc<str>> {
    other_namespace(&std::fs::read_link(Path::new("/proc/self/ns/pid")).ok()?)
}

fn other_namespace(link: &Path) -> Option<Arc<str>> {
    let name = link.to_string_lossy();
    (name != INITIAL_PID_NAMESPACE).then(|| name.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::model::{SourceId, SourceState};

    #[test]
    fn intervals_are_bounded() {
        let millis = Duration::from_millis;
        for (interval, lists, fine) in [
            (1_000, 5_000, true),
            (100, 1_000, true),
            (5_000, 60_000, true),
            (5_001, 5_000, false),
            (99, 5_000, false),
            (1_000, 999, false),
        ] {
            let config = Config {
                library: None,
                interval: millis(interval),
                lists_interval: millis(lists),
                cursors: Vec::new(),
            };
            assert_eq!(config.validate().is_ok(), fine, "{config:?}");
        }
    }

    #[test]
    fn only_the_initial_pid_namespace_is_right() {
        assert_eq!(other_namespace(Path::new("pid:[4026531836]")), None);
        let other = other_namespace(Path::new("pid:[4026532201]"));
        assert_eq!(other.as_deref(), Some("pid:[4026532201]"));
    }

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
            let config = Config {
                library: Some(library.clone()),
                ..Config::default()
            };
            let (out, mut inputs) = mpsc::channel(1);
            let (_asks, lists_wanted) = mpsc::channel(1);
            let (stop, shutdown) = watch::channel(false);
            let handle = spawn(config, out, lists_wanted, shutdown).unwrap();
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
