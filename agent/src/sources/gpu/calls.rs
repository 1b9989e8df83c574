//! Which calls into NVML are in progress, and what calls cost so far.
//!
//! A call into NVML can block in the driver for any time, and nothing can interrupt it. But it can
//! be reported: outputs read this state while a thread is stuck. The lock is never held across a
//! call.
//!
//! Each thread that calls NVML has a lane of its own. A lane can be retired while its thread is
//! stuck. The thread then makes no further call, and ends when the call in progress returns.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nvml_wrapper::error::NvmlError;

use crate::core::model::{BootTime, GpuUuid, Nanos};
use crate::published::{BlockedCall, NvmlThreadBook};
use crate::sources::clock;

/// What calls of one NVML function cost since the agent started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CallFigures {
    /// Calls that returned.
    pub calls: u64,
    /// Of those, how many gave an error. "Not found" is NVML's word for "nothing" and is one too.
    pub errors: u64,
    /// Time spent in them.
    pub total: Nanos,
    /// Duration of the longest call.
    pub longest: Nanos,
}

/// Monitors the NVML calls of one thread. Clones share one lane; all lanes of one origin are read
/// together.
#[derive(Clone, Debug, Default)]
pub struct Watchdog {
    state: Arc<Mutex<CallTable>>,
    lane: Arc<Lane>,
}

#[derive(Debug, Default)]
struct CallTable {
    /// The number of the last call that was made.
    last: u64,
    in_progress: BTreeMap<u64, Call>,
    figures: BTreeMap<&'static str, CallFigures>,
    threads: NvmlThreadBook,
}

#[derive(Debug)]
struct Call {
    lane: Arc<Lane>,
    name: &'static str,
    gpu: Option<GpuUuid>,
    since: BootTime,
}

impl Call {
    fn blocked(&self) -> BlockedCall {
        BlockedCall {
            call: self.name.into(),
            gpu: self.gpu.clone(),
            since: self.since,
        }
    }
}

/// What is known of one thread's calls.
#[derive(Debug, Default)]
struct Lane {
    is_retired: AtomicBool,
    /// Whether the call that returned last failed.
    has_failed: AtomicBool,
    /// Nanoseconds spent in calls that returned.
    spent: AtomicU64,
}

impl Watchdog {
    /// The call that has been in progress for the longest, if it has not come back for at least
    /// `after`.
    #[must_use]
    pub fn blocked(&self, now: BootTime, after: Nanos) -> Option<BlockedCall> {
        let state = self.state();
        let oldest = state.in_progress.values().min_by_key(|call| call.since)?;
        (now.since(oldest.since) >= after).then(|| oldest.blocked())
    }

    /// What each NVML function cost, by its name.
    #[must_use]
    pub fn figures(&self) -> BTreeMap<&'static str, CallFigures> {
        self.state().figures.clone()
    }

    /// What became of the threads.
    #[must_use]
    pub fn threads(&self) -> NvmlThreadBook {
        self.state().threads
    }

    /// Counts what becomes of the threads.
    pub(super) fn count(&self, change: impl FnOnce(&mut NvmlThreadBook)) {
        change(&mut self.state().threads);
    }

    /// A lane for another thread.
    pub(super) fn new_lane(&self) -> Self {
        Self {
            state: Arc::clone(&self.state),
            lane: Arc::default(),
        }
    }

    /// Refuses every further call of this lane.
    pub(super) fn retire(&self) {
        self.lane.is_retired.store(true, Ordering::Relaxed);
    }

    /// Whether this lane's calls are refused.
    pub(super) fn is_retired(&self) -> bool {
        self.lane.is_retired.load(Ordering::Relaxed)
    }

    /// Whether this lane's last call failed.
    pub(super) fn has_failed(&self) -> bool {
        self.lane.has_failed.load(Ordering::Relaxed)
    }

    /// Time that this lane has spent in calls that returned.
    pub(super) fn spent(&self) -> Nanos {
        Nanos(self.lane.spent.load(Ordering::Relaxed))
    }

    /// This lane's call in progress.
    pub(super) fn in_progress(&self) -> Option<BlockedCall> {
        let state = self.state();
        let mut calls = state.in_progress.values();
        let call = calls.find(|call| Arc::ptr_eq(&call.lane, &self.lane))?;
        Some(call.blocked())
    }

    /// Makes a call under the watchdog's eyes. A retired lane's call fails at once as timed out, and
    /// is not made.
    pub(super) fn call<T>(
        &self,
        name: &'static str,
        gpu: Option<&GpuUuid>,
        call: impl FnOnce() -> Result<T, NvmlError>,
    ) -> Result<T, NvmlError> {
        self.make(name, gpu, true, call)
    }

    /// Makes a call that waits for something to happen. The time that it waits costs nothing and is
    /// not counted.
    pub(super) fn wait<T>(
        &self,
        name: &'static str,
        call: impl FnOnce() -> Result<T, NvmlError>,
    ) -> Result<T, NvmlError> {
        self.make(name, None, false, call)
    }

    fn make<T>(
        &self,
        name: &'static str,
        gpu: Option<&GpuUuid>,
        is_timed: bool,
        call: impl FnOnce() -> Result<T, NvmlError>,
    ) -> Result<T, NvmlError> {
        if self.is_retired() {
            return Err(NvmlError::Timeout);
        }
        let since = clock::now().boot;
        // A call that panics is in progress no more, either.
        let under_way = UnderWay::begin(self, name, gpu, since);
        let answer = call();
        let took = clock::now().boot.since(since);
        drop(under_way);
        self.lane.spent.fetch_add(took.0, Ordering::Relaxed);
        self.lane
            .has_failed
            .store(answer.is_err(), Ordering::Relaxed);
        let mut state = self.state();
        let figures = state.figures.entry(name).or_default();
        figures.calls += 1;
        figures.errors += u64::from(answer.is_err());
        if is_timed {
            figures.total += took;
            figures.longest = figures.longest.max(took);
        }
        answer
    }

    /// The lock guards plain figures: a panic elsewhere leaves them as good as they were.
    fn state(&self) -> MutexGuard<'_, CallTable> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call in progress, until this is dropped.
struct UnderWay<'watchdog> {
    watchdog: &'watchdog Watchdog,
    number: u64,
}

impl<'watchdog> UnderWay<'watchdog> {
    fn begin(
        watchdog: &'watchdog Watchdog,
        name: &'static str,
        gpu: Option<&GpuUuid>,
        since: BootTime,
    ) -> Self {
        let mut state = watchdog.state();
        state.last += 1;
        let number = state.last;
        let call = Call {
            lane: Arc::clone(&watchdog.lane),
            name,
            gpu: gpu.cloned(),
            since,
        };
        state.in_progress.insert(number, call);
        Self { watchdog, number }
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.watchdog.state().in_progress.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_seen_while_it_lasts() {
        let watchdog = Watchdog::default();
        let gpu = GpuUuid::from("GPU-1");
        let now = || clock::now().boot;
        assert_eq!(watchdog.blocked(now(), Nanos::ZERO), None);
        let seen = watchdog.call("nvmlDeviceGetSamples", Some(&gpu), || {
            // Another thread looks; this one is inside the call.
            let other = watchdog.clone();
            let look = move || {
                let now = now();
                let hour = Nanos::from_secs(3_600);
                (
                    other.blocked(now, hour),
                    other.blocked(now.plus(hour), hour),
                )
            };
            Ok(std::thread::spawn(look).join().unwrap())
        });
        let (early, late) = seen.unwrap();
        assert_eq!(early, None, "not for long enough");
        let late = late.expect("an hour is over by then");
        assert_eq!((&*late.call, late.gpu), ("nvmlDeviceGetSamples", Some(gpu)));
        assert_eq!(watchdog.blocked(now(), Nanos::ZERO), None);
    }

    #[test]
    fn calls_and_errors_are_counted_by_name() {
        let watchdog = Watchdog::default();
        for answer in [Ok(1), Err(NvmlError::NotFound), Ok(2)] {
            let expected = answer.is_ok();
            assert_eq!(watchdog.call("a", None, || answer).is_ok(), expected);
        }
        let figures = watchdog.figures()["a"];
        assert_eq!((figures.calls, figures.errors), (3, 1));
        assert!(figures.longest <= figures.total);
    }

    #[test]
    fn a_retired_lane_makes_no_call_and_others_do() {
        let watchdog = Watchdog::default();
        let (one, other) = (watchdog.new_lane(), watchdog.new_lane());
        let seen = one.call("a", None, || {
            assert_eq!(other.in_progress(), None);
            one.retire();
            Ok(one.in_progress())
        });
        let call = seen.unwrap().expect("it is in progress");
        assert_eq!((&*call.call, call.gpu), ("a", None));
        let refused = one.call::<()>("a", None, || unreachable!("it is retired"));
        assert!(matches!(refused, Err(NvmlError::Timeout)), "{refused:?}");
        assert!(!one.has_failed(), "a call that was not made does not fail");
        let failed = other.call::<()>("a", None, || Err(NvmlError::Unknown));
        assert!(failed.is_err() && other.has_failed());
        // What all lanes together cost.
        let figures = watchdog.figures()["a"];
        assert_eq!((figures.calls, figures.errors), (2, 1));
        assert_eq!(figures.total, one.spent().plus(other.spent()));
    }

    #[test]
    fn the_oldest_of_several_blocked_calls_is_told() {
        let watchdog = Watchdog::default();
        let (one, other) = (watchdog.new_lane(), watchdog.new_lane());
        let returned = one.call("older", None, || {
            other.call("younger", None, || {
                Ok(watchdog.blocked(clock::now().boot, Nanos::ZERO))
            })
        });
        assert_eq!(
            returned.unwrap().map(|call| call.call),
            Some("older".into())
        );
    }
}
