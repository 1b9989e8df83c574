//! The thread that opens and closes the library. Both can block in the driver, so no other thread
//! waits for it, and there is at most one.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::mpsc;

use super::calls::Watchdog;
use super::fault::NvmlFailure;
use super::health::Failed;
use super::library::Library;
use crate::published::BlockedCall;

/// Result of a task of the helper thread.
pub(super) enum HelperResult {
    /// A library was closed.
    Closed,
    /// One was opened, and lists so many GPUs; or it could not be.
    Opened(Result<(Arc<Library>, u32), Failed>),
}

/// The thread that opens and closes the library.
pub(super) struct Helper {
    watchdog: Watchdog,
    /// Its way into NVML, while it is at work.
    lane: Option<Watchdog>,
    done: (mpsc::Sender<HelperResult>, mpsc::Receiver<HelperResult>),
}

impl Helper {
    pub(super) fn new(watchdog: Watchdog) -> Self {
        Self {
            watchdog,
            lane: None,
            done: mpsc::channel(1),
        }
    }

    /// Whether it is at work.
    pub(super) const fn is_at_work(&self) -> bool {
        self.lane.is_some()
    }

    /// Its call in progress.
    pub(super) fn in_progress(&self) -> Option<BlockedCall> {
        self.lane.as_ref()?.in_progress()
    }

    /// What it has done, once it has.
    pub(super) async fn helped(&mut self) -> HelperResult {
        loop {
            // Never none: this has an end of its own.
            if let Some(helped) = self.done.1.recv().await {
                self.lane = None;
                return helped;
            }
        }
    }

    /// Closes a library.
    pub(super) fn close(&mut self, library: Arc<Library>) -> Result<(), NvmlFailure> {
        self.start(move |_| {
            drop(library);
            HelperResult::Closed
        })
    }

    /// Opens the configured library, or the first that is found, once the one before is closed.
    pub(super) fn open(
        &mut self,
        configured: Option<PathBuf>,
        cdi: Vec<PathBuf>,
        before: Option<Arc<Library>>,
    ) -> Result<(), NvmlFailure> {
        self.start(move |lane| {
            drop(before);
            HelperResult::Opened(open(configured.as_deref(), &cdi, lane))
        })
    }

    fn start(
        &mut self,
        work: impl FnOnce(&Watchdog) -> HelperResult + Send + 'static,
    ) -> Result<(), NvmlFailure> {
        let lane = self.watchdog.new_lane();
        let done = self.done.0.clone();
        let theirs = lane.clone();
        std::thread::Builder::new()
            .name("nvml-open".into())
            .spawn(move || {
                // What it held is gone with a panic.
                let helped = catch_unwind(AssertUnwindSafe(|| work(&theirs)));
                let helped = helped.unwrap_or_else(|_| {
                    tracing::error!("the thread that opens NVML panicked (a bug)");
                    HelperResult::Opened(Err(Failed::Session(NvmlFailure::panicked())))
                });
                // Nobody who listens any more needs telling.
                let _ = done.blocking_send(helped);
            })
            .map_err(|error| NvmlFailure::thread(&error))?;
        self.lane = Some(lane);
        Ok(())
    }
}

fn open(
    configured: Option<&Path>,
    cdi: &[PathBuf],
    watchdog: &Watchdog,
) -> Result<(Arc<Library>, u32), Failed> {
    const COUNT: &str = "nvmlDeviceGetCount";
    let library = Library::open(configured, cdi, watchdog).map_err(Failed::Open)?;
    let count = watchdog.call(COUNT, None, || library.nvml().device_count());
    let count = count.map_err(|error| Failed::Session(NvmlFailure::new(COUNT, &error)))?;
    Ok((Arc::new(library), count))
}
