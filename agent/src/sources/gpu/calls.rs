//! A cell beside the NVML thread: which call is in progress, and what calls cost so far.
//!
//! A call into NVML can wait in the driver for as long as the driver likes, and nothing can
//! interrupt it. What can be done is to say so: whoever shows the agent's state reads this cell
//! while the thread is stuck. Its lock is never held across a call.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nvml_wrapper::error::NvmlError;

use crate::core::model::{BootTime, GpuUuid, Nanos};
use crate::core::snapshot::BlockedCall;
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
    /// The longest.
    pub longest: Nanos,
}

/// Reads what the NVML thread is doing. Clones read the same thread.
#[derive(Clone, Debug, Default)]
pub struct Watchdog(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    in_progress: Option<(&'static str, Option<GpuUuid>, BootTime)>,
    figures: BTreeMap<&'static str, CallFigures>,
}

impl Watchdog {
    /// The call in progress, if it has not come back for at least `after`.
    #[must_use]
    pub fn blocked(&self, now: BootTime, after: Nanos) -> Option<BlockedCall> {
        let state = self.state();
        let (call, gpu, since) = state.in_progress.as_ref()?;
        (now.since(*since) >= after).then(|| BlockedCall {
            call: (*call).into(),
            gpu: gpu.clone(),
            since: *since,
        })
    }

    /// What each NVML function cost, by its name.
    #[must_use]
    pub fn figures(&self) -> BTreeMap<&'static str, CallFigures> {
        self.state().figures.clone()
    }

    /// Makes a call under the watchdog's eyes.
    pub(super) fn call<T>(
        &self,
        name: &'static str,
        gpu: Option<&GpuUuid>,
        call: impl FnOnce() -> Result<T, NvmlError>,
    ) -> Result<T, NvmlError> {
        let since = clock::now().boot;
        self.state().in_progress = Some((name, gpu.cloned(), since));
        let answer = call();
        let took = clock::now().boot.since(since);
        let mut state = self.state();
        state.in_progress = None;
        let figures = state.figures.entry(name).or_default();
        figures.calls += 1;
        figures.errors += u64::from(answer.is_err());
        figures.total += took;
        figures.longest = figures.longest.max(took);
        answer
    }

    /// The lock guards plain figures: a panic elsewhere leaves them as good as they were.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
}
