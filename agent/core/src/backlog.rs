//! Windows that wait to be booked.
//!
//! A window is booked only when the event stream has been drained past its end, so that a process
//! that was born and died inside it is known. The accountant decides when a window is ready. This
//! module keeps the order: the windows of one GPU are booked in the order of their times.

use std::collections::VecDeque;

use crate::input::GpuWindow;
use crate::model::{BootTime, GpuUuid};
use crate::tables::HashSet;

/// A window, and when it was received.
#[derive(Debug)]
pub(crate) struct WaitingWindow {
    pub(crate) received: BootTime,
    pub(crate) window: GpuWindow,
}

/// The windows that wait.
#[derive(Debug, Default)]
pub(crate) struct WindowBacklog {
    waiting: VecDeque<WaitingWindow>,
}

/// One pass over the backlog.
#[derive(Debug)]
pub(crate) struct Round {
    left: VecDeque<WaitingWindow>,
    held_back: VecDeque<WaitingWindow>,
    gpus: HashSet<GpuUuid>,
}

impl WindowBacklog {
    /// Adds a window.
    pub(crate) fn push(&mut self, received: BootTime, window: GpuWindow) {
        self.waiting.push_back(WaitingWindow { received, window });
    }

    /// Begins a pass over all windows. Those that it holds back wait for the next pass.
    pub(crate) fn begin(&mut self) -> Round {
        Round {
            left: std::mem::take(&mut self.waiting),
            held_back: VecDeque::new(),
            gpus: HashSet::default(),
        }
    }

    /// Ends a pass.
    pub(crate) fn end(&mut self, round: Round) {
        self.waiting = round.held_back;
    }
}

impl Round {
    /// The next window.
    pub(crate) fn next(&mut self) -> Option<WaitingWindow> {
        self.left.pop_front()
    }

    /// Whether an earlier window of this GPU was held back.
    pub(crate) fn holds_back(&self, gpu: &GpuUuid) -> bool {
        self.gpus.contains(gpu)
    }

    /// Has a window wait for the next pass.
    pub(crate) fn hold_back(&mut self, waiting: WaitingWindow) {
        self.gpus.insert(waiting.window.gpu.clone());
        self.held_back.push_back(waiting);
    }
}
