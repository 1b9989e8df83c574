//! One GPU of NVML's list: its worker, its failure, and when it is retried.
//!
//! One thread at most asks a GPU. One that is stuck in a call is given up, and no other is started
//! until that call has returned: it would be stuck, too. So there are never more threads than GPUs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::calls::Watchdog;
use super::fault::NvmlFailure;
use super::orders::Orders;
use super::register::{Resume, WorkerId};
use super::worker::{Ending, GpuFailure};
use crate::core::input::GpuInfo;
use crate::core::model::{BootTime, GpuUuid, UnobservedReason};
use crate::published::BlockedCall;
use crate::sources::retry::Backoff;

/// Waits before a worker is started anew.
const QUICK: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// The same where its calls took longer than the driver keeps samples: there is nothing to be lost by
/// waiting, and each call may hold up others in the driver.
const SLOW: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(120));

/// State of one GPU: its worker, its failure and its retries.
pub(super) struct Slot {
    pub(super) running: Option<Running>,
    /// The thread that was given up and has not ended, with its way into NVML.
    pub(super) stuck: Option<(WorkerId, Watchdog)>,
    /// The GPU that was seen here last.
    pub(super) uuid: Option<GpuUuid>,
    wrong: Option<SlotFailure>,
    /// The call that did not return when the thread was given up.
    blocked: Option<Arc<str>>,
    /// When it is tried again.
    retry_at: Option<Instant>,
    quick: Backoff,
    slow: Backoff,
}

/// A running worker thread.
pub(super) struct Running {
    pub(super) id: WorkerId,
    pub(super) lane: Watchdog,
    pub(super) orders: Arc<Orders>,
    pub(super) state: WorkerState,
    /// Whether it has said how its GPU is.
    is_heard: bool,
    /// Since when the call has been in progress that was too long when it was looked at last.
    seen_blocked: Option<BootTime>,
}

/// How far a worker is.
pub(super) enum WorkerState {
    /// It opens its GPU.
    Opening,
    /// It has opened its GPU and waits for the cursors of these devices.
    Asking {
        gpus: Vec<GpuInfo>,
        grant: oneshot::Sender<BTreeMap<GpuUuid, Resume>>,
    },
    /// It closes windows.
    Granted,
}

struct SlotFailure {
    trouble: NvmlFailure,
    /// Whether opening the library anew may help.
    may_reopen: bool,
}

impl Running {
    /// A worker that has just been started.
    pub(super) const fn new(id: WorkerId, lane: Watchdog, orders: Arc<Orders>) -> Self {
        Self {
            id,
            lane,
            orders,
            state: WorkerState::Opening,
            is_heard: false,
            seen_blocked: None,
        }
    }

    /// The worker's call that has been too long in progress since `before`, if it was that already
    /// when this was last asked: after a pause of the machine every call seems long.
    pub(super) fn blocked(&mut self, before: BootTime) -> Option<BlockedCall> {
        let call = self.lane.in_progress().filter(|call| call.since <= before);
        let since = call.as_ref().map(|call| call.since);
        let seen = std::mem::replace(&mut self.seen_blocked, since);
        call.filter(|call| seen == Some(call.since))
    }
}

impl Slot {
    pub(super) const fn new() -> Self {
        Self {
            running: None,
            stuck: None,
            uuid: None,
            wrong: None,
            blocked: None,
            retry_at: None,
            quick: Backoff::new(QUICK),
            slow: Backoff::new(SLOW),
        }
    }

    /// Whether a worker is to be started.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        let is_free = self.running.is_none() && self.stuck.is_none();
        is_free && self.retry_at.is_none_or(|at| at <= now)
    }

    /// Whether a worker closes its GPU's windows.
    pub(super) fn is_granted(&self) -> bool {
        let running = self.running.as_ref();
        running.is_some_and(|running| matches!(running.state, WorkerState::Granted))
    }

    /// Whether a worker is opening the GPU and has not said what it found.
    pub(super) fn is_opening(&self) -> bool {
        let running = self.running.as_ref();
        running.is_some_and(|running| matches!(running.state, WorkerState::Opening))
    }

    /// A new session begins: GPUs that failed quickly are retried at once.
    pub(super) fn begin_session(&mut self) {
        let is_slow = self.wrong.as_ref().is_some_and(|wrong| !wrong.may_reopen);
        if !is_slow {
            self.retry_at = None;
        }
    }

    /// Whether it is known how the GPU is.
    pub(super) fn is_heard(&self) -> bool {
        let running = self.running.as_ref();
        self.wrong.is_some() || running.is_some_and(|running| running.is_heard)
    }

    /// The worker has seen its GPU at work: what comes next begins with short waits.
    pub(super) const fn is_well(&mut self) {
        self.quick.reset();
        self.slow.reset();
    }

    /// The worker reports a failure and keeps asking.
    pub(super) fn set_wrong(&mut self, wrong: Option<GpuFailure>, now: Instant) {
        if let Some(running) = &mut self.running {
            running.is_heard = true;
        }
        self.retry_at = wrong.as_ref().map(|wrong| now + wrong.retry);
        self.wrong = wrong.map(|wrong| SlotFailure {
            may_reopen: !wrong.slowly,
            trouble: wrong.trouble,
        });
    }

    /// A call of the worker's does not return.
    pub(super) fn set_blocked(&mut self, call: &BlockedCall) {
        self.blocked = Some(Arc::clone(&call.call));
        self.wrong = Some(SlotFailure {
            trouble: NvmlFailure::blocked(&call.call),
            may_reopen: false,
        });
    }

    /// Abandons the worker: it makes no further call, and its reports are ignored.
    pub(super) fn give_up(&mut self) -> Option<WorkerId> {
        let running = self.running.take()?;
        running.lane.retire();
        running.orders.end();
        self.stuck = Some((running.id, running.lane));
        Some(running.id)
    }

    /// The worker has ended. Returns why its GPU's time is not observed from now on.
    pub(super) fn ended(&mut self, ending: Ending, now: Instant) -> UnobservedReason {
        let was_granted = self.is_granted();
        self.running = None;
        match ending {
            Ending::Stopped => UnobservedReason::DriverError,
            Ending::Failed { trouble, slowly } => {
                let trouble = if was_granted {
                    trouble
                } else {
                    NvmlFailure::gone(Some(trouble))
                };
                let waits = if slowly {
                    &mut self.slow
                } else {
                    &mut self.quick
                };
                self.retry_at = Some(now + waits.wait());
                self.wrong = Some(SlotFailure {
                    trouble,
                    may_reopen: !slowly,
                });
                if slowly {
                    UnobservedReason::DriverTimeout
                } else {
                    UnobservedReason::DriverError
                }
            }
            Ending::Panicked => {
                self.retry_at = Some(now + self.quick.wait());
                self.wrong = Some(SlotFailure {
                    trouble: NvmlFailure::panicked(),
                    may_reopen: false,
                });
                UnobservedReason::AgentError
            }
        }
    }

    /// The worker that was given up has ended. A call that answered at last is tried again at once.
    pub(super) fn came_back(&mut self, now: Instant) {
        let Some((_, lane)) = self.stuck.take() else {
            return;
        };
        self.retry_at = lane.has_failed().then(|| now + self.slow.wait());
        let wrong = self.wrong.as_mut().filter(|_| lane.has_failed());
        if let (Some(wrong), Some(call)) = (wrong, self.blocked.take()) {
            wrong.trouble = NvmlFailure::slow(&call);
        }
    }

    /// What is wrong, and when it is tried again.
    pub(super) fn trouble(&self, now: Instant) -> Option<(&NvmlFailure, Instant)> {
        let wrong = self.wrong.as_ref()?;
        let soon = if self.stuck.is_some() {
            now + self.slow.peek()
        } else {
            now + self.quick.peek()
        };
        let at = self.retry_at.filter(|at| *at > now && self.stuck.is_none());
        Some((&wrong.trouble, at.unwrap_or(soon)))
    }

    /// Whether something is wrong for which opening the library anew may help.
    pub(super) fn may_reopen(&self) -> bool {
        self.wrong.as_ref().is_some_and(|wrong| wrong.may_reopen)
    }
}

#[cfg(test)]
mod tests {
    use nvml_wrapper::error::NvmlError;

    use super::*;

    fn failed(slowly: bool) -> Ending {
        let trouble = NvmlFailure::new("nvmlDeviceGetSamples", &NvmlError::Unknown);
        Ending::Failed { trouble, slowly }
    }

    fn running() -> Running {
        let lane = Watchdog::default();
        Running::new(WorkerId(1), lane, Arc::default())
    }

    #[test]
    fn a_gpu_that_fails_slowly_is_asked_ever_more_rarely() {
        let now = Instant::now();
        let mut slot = Slot::new();
        let mut waits = Vec::new();
        for _ in 0..6 {
            assert_eq!(
                slot.ended(failed(true), now),
                UnobservedReason::DriverTimeout
            );
            let (_, at) = slot.trouble(now).expect("it failed");
            waits.push((at - now).as_secs());
            assert!(!slot.is_due(now) && slot.is_due(at));
            assert!(!slot.may_reopen(), "the others would wait with it");
        }
        assert_eq!(waits, [10, 20, 40, 80, 120, 120]);
        slot.is_well();
        slot.ended(failed(false), now);
        let (_, at) = slot.trouble(now).expect("it failed");
        assert_eq!((at - now).as_secs(), 1);
        assert!(slot.may_reopen());
    }

    #[test]
    fn no_thread_is_started_while_another_is_stuck() {
        let now = Instant::now();
        let mut slot = Slot::new();
        slot.running = Some(running());
        assert_eq!(slot.give_up(), Some(WorkerId(1)));
        let later = now + Duration::from_secs(3_600);
        assert!(!slot.is_due(later), "it would be stuck, too");
        slot.came_back(later);
        assert!(slot.is_due(later), "the call answered at last");
    }

    #[test]
    fn a_call_that_failed_at_last_is_not_said_to_be_blocked() {
        let now = Instant::now();
        let mut slot = Slot::new();
        let running = running();
        let lane = running.lane.clone();
        slot.running = Some(running);
        let failed = lane.call::<()>("nvmlDeviceGetSamples", None, || {
            slot.set_blocked(&lane.in_progress().expect("it is under way"));
            slot.give_up();
            Err(NvmlError::Unknown)
        });
        assert!(failed.is_err());
        let text = |slot: &Slot| slot.trouble(now).map(|(trouble, _)| trouble.text.clone());
        let expected = "the call nvmlDeviceGetSamples does not return";
        assert_eq!(text(&slot).as_deref(), Some(expected));
        slot.came_back(now);
        let expected = "the call nvmlDeviceGetSamples took longer than the driver keeps samples, \
                        and failed";
        assert_eq!(text(&slot).as_deref(), Some(expected));
        assert!(!slot.is_due(now), "it is asked more rarely");
    }

    #[test]
    fn a_call_is_blocked_when_it_is_found_so_twice() {
        let mut running = running();
        let lane = running.lane.clone();
        let found = lane.call("nvmlDeviceGetSamples", None, || {
            Ok([BootTime::MAX; 3].map(|before| running.blocked(before).is_some()))
        });
        assert_eq!(found.unwrap(), [false, true, true]);
        assert!(running.blocked(BootTime::MAX).is_none(), "it has returned");
    }
}
