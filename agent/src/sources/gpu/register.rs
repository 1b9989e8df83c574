//! Every GPU that was seen since the start: who asks it, and up to where its time is accounted for.
//!
//! A GPU's time is closed by one thread at a time. While a worker has claimed a GPU, that worker
//! closes its windows. While none has, the register closes its time as unobserved. The register
//! stays ten seconds behind, since the driver may still have the samples of the last ten seconds.
//! So a worker that starts then loses nothing that the driver still has when the worker knows by which
//! clock the driver stamps.
//!
//! No GPU is ever forgotten. One that cannot be opened, or that is no longer listed, stays
//! unobserved, since missing windows would look like idle time. The exception is a MIG instance
//! that is gone while its GPU is there: it was destroyed, and its time is over.

use std::collections::BTreeMap;

use super::cursor::Cursor;
use super::fault::NvmlFailure;
use super::window::PATIENCE;
use crate::core::input::{GpuInfo, GpuWindow};
use crate::core::model::{BootTime, Clock, GpuUuid, Nanos, UnobservedReason};

/// For how long the driver keeps samples, at least.
pub(super) const RING: Nanos = Nanos::from_secs(10);

/// Which thread. No number is used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WorkerId(pub(super) u64);

/// Where a worker begins.
#[derive(Clone, Debug)]
pub(super) struct Resume {
    /// Where the GPU's time is accounted for; absent where it begins now.
    pub(super) cursor: Option<Cursor>,
    /// The reason for time that an agent ran for and that the ring no longer reaches back to.
    pub(super) reason: UnobservedReason,
}

/// Accounted time of one GPU.
#[derive(Debug)]
struct Known {
    info: GpuInfo,
    /// Up to where its time is accounted for.
    at: Cursor,
    owner: Option<WorkerId>,
    /// Whether the driver gave it up: it is unloaded, or lists the GPU no more.
    is_released: bool,
    /// Why nobody asks it, if it is not that.
    silence: UnobservedReason,
}

/// Accounted time of every GPU, and the worker that continues it.
#[derive(Debug, Default)]
pub(super) struct Register {
    gpus: BTreeMap<GpuUuid, Known>,
    /// Cursors of the previous agent. Each is used once: an instance that is created again under
    /// the same UUID begins now.
    before: Vec<Cursor>,
}

impl Register {
    /// A register that goes on from an agent before this one.
    pub(super) const fn new(before: Vec<Cursor>) -> Self {
        Self {
            gpus: BTreeMap::new(),
            before,
        }
    }

    /// Whether no GPU was ever seen.
    pub(super) fn is_empty(&self) -> bool {
        self.gpus.is_empty()
    }

    /// A worker has opened a GPU with its instances, the GPU first, and asks for them. It gets those
    /// that it does not have already, with where each begins.
    pub(super) fn claim(
        &mut self,
        worker: WorkerId,
        found: Vec<GpuInfo>,
        now: Clock,
    ) -> BTreeMap<GpuUuid, Resume> {
        if let Some(whole) = found.first().map(|info| info.uuid.clone()) {
            let is_found = |uuid: &GpuUuid| found.iter().any(|info| info.uuid == *uuid);
            self.gpus.retain(|uuid, known| {
                let parent = known.info.mig.as_ref().map(|mig| &mig.parent);
                parent != Some(&whole) || is_found(uuid)
            });
        }
        let mut granted = BTreeMap::new();
        for mut info in found {
            let uuid = info.uuid.clone();
            if let Some(known) = self.gpus.get_mut(&uuid) {
                // A question that failed this time takes back nothing.
                if info.engines.is_empty() && info.mig.is_none() {
                    info.engines = std::mem::take(&mut known.info.engines);
                }
                known.info = info;
                known.is_released = false;
                if known.owner.is_some() {
                    // Its own already; no driver lists one GPU in two places.
                    continue;
                }
                known.owner = Some(worker);
                let resume = Resume {
                    cursor: Some(known.at.clone()),
                    reason: known.silence,
                };
                granted.insert(uuid, resume);
                continue;
            }
            let before = self.before.iter().position(|cursor| cursor.gpu == uuid);
            let before = before.map(|at| self.before.swap_remove(at));
            let at = before
                .clone()
                .unwrap_or_else(|| cursor(&uuid, now.boot, now));
            let known = Known {
                info,
                at,
                owner: Some(worker),
                is_released: false,
                silence: UnobservedReason::DriverError,
            };
            let resume = Resume {
                cursor: before,
                reason: known.silence,
            };
            self.gpus.insert(uuid.clone(), known);
            granted.insert(uuid, resume);
        }
        granted
    }

    /// A worker has closed a window. Whether it may.
    pub(super) fn pass(&mut self, worker: WorkerId, window: &GpuWindow, now: Clock) -> bool {
        let Some(known) = self.gpus.get_mut(&window.gpu) else {
            return false;
        };
        if known.owner != Some(worker) {
            return false;
        }
        known.at = cursor(&window.gpu, window.end, now);
        true
    }

    /// Takes the GPUs from a worker. From now on their time is unobserved, for `reason`.
    pub(super) fn release(&mut self, worker: WorkerId, reason: UnobservedReason) {
        let claimed = |known: &&mut Known| known.owner == Some(worker);
        for known in self.gpus.values_mut().filter(claimed) {
            known.owner = None;
            known.silence = reason;
        }
    }

    /// Notes why no worker asks the GPUs that have none: all of them, or one with its instances.
    pub(super) fn blame(&mut self, whole: Option<&GpuUuid>, reason: UnobservedReason) {
        for known in self.gpus.values_mut() {
            let of = known
                .info
                .mig
                .as_ref()
                .map_or(&known.info.uuid, |mig| &mig.parent);
            if known.owner.is_none() && whole.is_none_or(|whole| of == whole) {
                known.silence = reason;
            }
        }
    }

    /// Notes for all GPUs without a worker whether the driver gave them up.
    pub(super) fn set_released(&mut self, is_released: bool) {
        for known in self.gpus.values_mut().filter(|known| known.owner.is_none()) {
            known.is_released = is_released;
        }
    }

    /// What is to be listed, in NVML's order.
    pub(super) fn listed(&self) -> Vec<GpuInfo> {
        let known = self.gpus.values().filter(|known| !known.is_released);
        let mut listed: Vec<GpuInfo> = known.map(|known| known.info.clone()).collect();
        listed.sort_by_cached_key(|info| {
            let instance = info.mig.as_ref();
            let ids = instance.map(|mig| (mig.gpu_instance, mig.compute_instance));
            (info.index, ids, info.uuid.clone())
        });
        listed
    }

    /// The whole GPUs that have no worker and that the driver still has, other than `troubled`.
    pub(super) fn missing(&self, troubled: &[GpuUuid]) -> Vec<(String, NvmlFailure)> {
        let whole = |known: &&Known| {
            known.owner.is_none()
                && !known.is_released
                && known.info.mig.is_none()
                && !troubled.contains(&known.info.uuid)
        };
        let missing = self.gpus.values().filter(whole);
        missing
            .map(|known| (known.info.uuid.to_string(), NvmlFailure::gone(None)))
            .collect()
    }

    /// Closes the time of GPUs without a worker, as far as the driver no longer has samples of it.
    pub(super) fn close_overdue(&mut self, now: Clock) -> Vec<GpuWindow> {
        let silent = |known: &&mut Known| known.owner.is_none();
        self.gpus
            .values_mut()
            .filter(silent)
            .filter_map(|known| known.close_overdue(now))
            .collect()
    }
}

impl Known {
    fn close_overdue(&mut self, now: Clock) -> Option<GpuWindow> {
        let start = self.at.end;
        let end = if !self.is_released {
            now.boot.minus(RING)
        } else if now.boot.since(start) > PATIENCE {
            // The ring is gone with the driver.
            now.boot
        } else {
            start
        };
        if end <= start {
            return None;
        }
        let reason = if self.is_released {
            UnobservedReason::Released
        } else {
            self.silence
        };
        let window = self.at.lost(end, reason);
        self.at = cursor(&self.info.uuid, end, now);
        Some(window)
    }
}

/// A cursor of this agent's own.
fn cursor(gpu: &GpuUuid, end: BootTime, now: Clock) -> Cursor {
    Cursor {
        gpu: gpu.clone(),
        end,
        then: now,
        began: end,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::input::{MigInfo, WindowQuality};
    use crate::core::model::WallTime;

    const S: u64 = 1_000_000_000;
    const ONE: WorkerId = WorkerId(1);
    const TWO: WorkerId = WorkerId(2);

    fn at(seconds: u64) -> Clock {
        Clock {
            boot: BootTime(seconds * S),
            wall: WallTime((1_700_000_000 + seconds) * S),
        }
    }

    fn gpu(uuid: &str, parent: Option<&str>) -> GpuInfo {
        GpuInfo {
            uuid: uuid.into(),
            index: 0,
            minor: None,
            pci: None,
            model: "test".into(),
            driver: "1".into(),
            simulated: true,
            memory_total: None,
            mig: parent.map(|parent| MigInfo {
                parent: parent.into(),
                profile: "1g.10gb".into(),
                gpu_instance: 1,
                compute_instance: 0,
            }),
            engines: vec![],
        }
    }

    fn window(uuid: &str, start: u64, end: u64) -> GpuWindow {
        GpuWindow {
            gpu: uuid.into(),
            start: BootTime(start * S),
            end: BootTime(end * S),
            busy: Nanos::ZERO,
            idle: Nanos((end - start) * S),
            unobserved: vec![],
            credits: vec![],
            below_resolution: Nanos::ZERO,
            no_row: Nanos::ZERO,
            engines: vec![],
            energy: None,
            quality: WindowQuality::default(),
            clocks: None,
        }
    }

    /// Start, end and reasons, in seconds.
    type Closed = (u64, u64, Vec<(UnobservedReason, u64)>);

    fn closed(register: &mut Register, now: u64) -> Vec<Closed> {
        let windows = register.close_overdue(at(now)).into_iter();
        windows
            .map(|window| {
                let reasons = window.unobserved.iter();
                let reasons = reasons.map(|(reason, time)| (*reason, time.0 / S));
                (window.start.0 / S, window.end.0 / S, reasons.collect())
            })
            .collect()
    }

    #[test]
    fn what_nobody_asks_is_closed_as_far_as_the_ring_has_lost_it() {
        use UnobservedReason::{DriverTimeout, Released};
        let mut register = Register::default();
        let granted = register.claim(ONE, vec![gpu("GPU-0", None)], at(100));
        assert!(
            granted[&GpuUuid::from("GPU-0")].cursor.is_none(),
            "it begins now"
        );
        assert!(register.pass(ONE, &window("GPU-0", 100, 110), at(110)));
        assert_eq!(closed(&mut register, 200), [], "its worker does it");

        register.release(ONE, DriverTimeout);
        assert!(!register.pass(ONE, &window("GPU-0", 110, 111), at(111)));
        assert_eq!(closed(&mut register, 120), []);
        assert_eq!(
            closed(&mut register, 125),
            [(110, 115, vec![(DriverTimeout, 5)])]
        );
        // The next worker begins there, and has the ring to look into.
        let granted = register.claim(TWO, vec![gpu("GPU-0", None)], at(126));
        let cursor = granted[&GpuUuid::from("GPU-0")].cursor.clone().unwrap();
        assert_eq!((cursor.end, cursor.began), (at(115).boot, at(115).boot));
        assert_eq!(granted[&GpuUuid::from("GPU-0")].reason, DriverTimeout);

        // Without a driver there is no ring.
        register.release(TWO, DriverTimeout);
        register.set_released(true);
        assert_eq!(register.listed(), []);
        assert_eq!(
            closed(&mut register, 130),
            [(115, 130, vec![(Released, 15)])]
        );
    }

    #[test]
    fn what_an_agent_before_left_is_gone_on_from_once() {
        use UnobservedReason::{AgentDown, DriverError};
        let before = Cursor {
            gpu: "GPU-0".into(),
            end: at(50).boot,
            then: at(51),
            began: at(80).boot,
        };
        let mut register = Register::new(vec![before.clone()]);
        let granted = register.claim(ONE, vec![gpu("GPU-0", None)], at(81));
        assert_eq!(granted[&GpuUuid::from("GPU-0")].cursor, Some(before));
        // It goes before it has reported anything.
        register.release(ONE, DriverError);
        let expected = vec![(AgentDown, 30), (DriverError, 5)];
        assert_eq!(closed(&mut register, 95), [(50, 85, expected)]);
    }

    #[test]
    fn an_instance_is_gone_when_its_gpu_is_there_without_it() {
        let whole = || gpu("GPU-0", None);
        let part = |uuid| gpu(uuid, Some("GPU-0"));
        let mut register = Register::default();
        register.claim(ONE, vec![whole(), part("MIG-a"), part("MIG-b")], at(1));
        let granted = register.claim(ONE, vec![whole(), part("MIG-b"), part("MIG-c")], at(5));
        let granted: Vec<&str> = granted.keys().map(GpuUuid::as_str).collect();
        assert_eq!(granted, ["MIG-c"], "the others are its own already");
        let listed = register.listed();
        let listed: Vec<&str> = listed.iter().map(|info| info.uuid.as_str()).collect();
        assert_eq!(listed, ["GPU-0", "MIG-b", "MIG-c"]);
        // What cannot be asked is missed once, and not with each of its parts.
        register.release(ONE, UnobservedReason::DriverError);
        let missing = |register: &Register, troubled: &[GpuUuid]| register.missing(troubled).len();
        assert_eq!(missing(&register, &[]), 1);
        assert_eq!(missing(&register, &["GPU-0".into()]), 0);
    }
}
