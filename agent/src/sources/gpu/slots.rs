//! The places of all GPUs in NVML's list.

use tokio::time::Instant;

use super::calls::Watchdog;
use super::fault::NvmlFailure;
use super::register::{Register, WorkerId};
use super::slot::{Running, Slot, WorkerState};
use crate::core::model::{BootTime, GpuUuid, UnobservedReason};

/// The slots, by NVML's index.
pub(super) struct Slots {
    all: Vec<Slot>,
    watchdog: Watchdog,
}

/// Something that is wrong, and with which GPU.
pub(super) type Named = (String, NvmlFailure);

impl Slots {
    pub(super) const fn new(watchdog: Watchdog) -> Self {
        Self {
            all: Vec::new(),
            watchdog,
        }
    }

    /// A session begins that lists so many GPUs.
    pub(super) fn begin_session(&mut self, count: usize) {
        // A stuck thread is remembered, whether its GPU is listed or not.
        while self.all.len() > count && self.all.last().is_some_and(|slot| slot.stuck.is_none()) {
            self.all.pop();
        }
        while self.all.len() < count {
            self.all.push(Slot::new());
        }
        for slot in &mut self.all {
            slot.begin_session();
        }
    }

    /// The first so many.
    pub(super) fn first(&self, count: usize) -> impl Iterator<Item = &Slot> {
        self.all.iter().take(count)
    }

    /// Every slot.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Slot> {
        self.all.iter_mut()
    }

    /// The workers at work.
    pub(super) fn running(&self) -> impl Iterator<Item = &Running> {
        self.all.iter().filter_map(|slot| slot.running.as_ref())
    }

    /// Whether any worker is at work.
    pub(super) fn any_running(&self) -> bool {
        self.running().next().is_some()
    }

    /// Whether any thread that was given up has not ended.
    pub(super) fn any_stuck(&self) -> bool {
        self.all.iter().any(|slot| slot.stuck.is_some())
    }

    /// The GPUs whose threads were given up and have not ended, as NVML numbers them.
    pub(super) fn stuck(&self) -> Vec<u32> {
        let stuck = (0..).zip(&self.all);
        let stuck = stuck.filter(|(_, slot)| slot.stuck.is_some());
        stuck.map(|(index, _)| index).collect()
    }

    /// Whether anything is wrong for which opening the library anew may help.
    pub(super) fn may_reopen(&self) -> bool {
        self.all.iter().any(Slot::may_reopen)
    }

    /// Where a worker is at work.
    pub(super) fn of(&mut self, worker: WorkerId) -> Option<&mut Slot> {
        self.all.iter_mut().find(|slot| {
            let running = slot.running.as_ref();
            running.is_some_and(|running| running.id == worker)
        })
    }

    /// Tells every worker to end.
    pub(super) fn end_all(&mut self) {
        for running in self.all.iter_mut().filter_map(|slot| slot.running.as_mut()) {
            running.orders.end();
            // Workers that wait for their cursors no longer get them.
            if matches!(running.state, WorkerState::Asking { .. }) {
                running.state = WorkerState::Opening;
            }
        }
    }

    /// Gives up every worker that has not ended. Its GPUs' time is not observed, for `reason`.
    pub(super) fn give_up_all(&mut self, register: &mut Register, reason: UnobservedReason) {
        for slot in &mut self.all {
            give_up(slot, &self.watchdog, register, reason);
        }
    }

    /// Takes the GPUs from workers whose call has been in progress since `before`.
    pub(super) fn give_up_blocked(&mut self, register: &mut Register, before: BootTime) {
        let reason = UnobservedReason::DriverTimeout;
        for slot in &mut self.all {
            let Some(running) = &mut slot.running else {
                continue;
            };
            let Some(call) = running.blocked(before) else {
                continue;
            };
            slot.set_blocked(&call);
            if slot.is_granted() {
                let gpu = slot.uuid.as_ref().map_or("", |uuid| uuid.as_str());
                tracing::warn!(gpu, call = &*call.call, "an NVML call has not returned");
                give_up(slot, &self.watchdog, register, reason);
            } else if let Some(uuid) = &slot.uuid {
                register.blame(Some(uuid), reason);
            }
        }
    }

    /// Records why GPUs have no worker. For a GPU whose thread is stuck, that is the reason.
    pub(super) fn blame(&self, register: &mut Register, reason: UnobservedReason) {
        register.blame(None, reason);
        let stuck = self.all.iter().filter(|slot| slot.stuck.is_some());
        for uuid in stuck.filter_map(|slot| slot.uuid.as_ref()) {
            register.blame(Some(uuid), UnobservedReason::DriverTimeout);
        }
    }

    /// A thread that was given up has ended.
    pub(super) fn came_back(&mut self, worker: WorkerId, now: Instant) {
        let is_stuck = |slot: &&mut Slot| slot.stuck.as_ref().is_some_and(|(id, _)| *id == worker);
        if let Some(slot) = self.all.iter_mut().find(is_stuck) {
            slot.came_back(now);
            self.watchdog
                .count(|threads| threads.blocked = threads.blocked.saturating_sub(1));
        }
    }

    /// What is wrong with which GPU, when the first of them is tried again, and which GPUs they are as
    /// far as that is known.
    pub(super) fn troubles(&self, now: Instant) -> (Vec<Named>, Option<Instant>, Vec<GpuUuid>) {
        let mut all = Vec::new();
        let mut retry = None;
        let mut troubled = Vec::new();
        for (index, slot) in self.all.iter().enumerate() {
            let Some((trouble, at)) = slot.trouble(now) else {
                continue;
            };
            let name = slot.uuid.as_ref().map(ToString::to_string);
            let name = name.unwrap_or_else(|| format!("GPU {index}"));
            all.push((name, trouble.clone()));
            retry = Some(retry.map_or(at, |earliest: Instant| earliest.min(at)));
            troubled.extend(slot.uuid.clone());
        }
        (all, retry, troubled)
    }
}

fn give_up(
    slot: &mut Slot,
    watchdog: &Watchdog,
    register: &mut Register,
    reason: UnobservedReason,
) {
    let Some(worker) = slot.give_up() else { return };
    watchdog.count(|threads| {
        threads.abandoned += 1;
        threads.blocked += 1;
    });
    register.release(worker, reason);
}
