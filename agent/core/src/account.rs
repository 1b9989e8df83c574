//! One owner's account on one GPU, and the counters under which it is published.

use std::sync::Arc;

use crate::amounts::{Amounts, ByteSeconds, Engine, EngineSet, Engines};
use crate::input::{MigInfo, Policy};
use crate::model::{BootTime, Clock, Nanos, WallTime};
use crate::naming::NamingId;
use crate::snapshot::ContainerLabels;

/// A published counter. It shows 0 for `zero_for`, then its amounts, and never falls.
///
/// Each engine's amount is a series of its own, which is first shown once the engine has been used.
/// Then it shows 0 for `zero_for` as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublishedCounter {
    /// Where the counter starts.
    pub start: WallTime,
    /// When it was first shown, at 0.
    pub shown: BootTime,
    /// Amounts that are shown now.
    pub visible: Amounts,
    /// When that last changed.
    pub changed: BootTime,
    /// When each engine was first shown, at 0.
    pub engines: ShownEngines,
}

impl PublishedCounter {
    /// A counter that is first shown now.
    #[must_use]
    pub const fn new(start: WallTime, now: BootTime) -> Self {
        Self {
            start,
            shown: now,
            visible: Amounts::ZERO,
            changed: now,
            engines: ShownEngines::NONE,
        }
    }

    /// Shows `amounts` if the zero has been shown for long enough: of the counter, and of each engine.
    pub fn show(&mut self, mut amounts: Amounts, policy: &Policy, now: BootTime) {
        self.engines.hold_back(&mut amounts.engines, policy, now);
        let grown = self.visible.max(amounts);
        if now.since(self.shown) >= policy.zero_for && grown != self.visible {
            self.visible = grown;
            self.changed = now;
        }
    }

    /// Whether it has shown its last value for long enough to be closed.
    pub(crate) fn is_done(&self, policy: &Policy, now: BootTime) -> bool {
        let settled = self.shown.plus(policy.zero_for).max(self.changed);
        now >= settled.plus(policy.keep_for)
    }
}

/// The engines that a counter shows, each with the time at which it was first shown, at 0.
///
/// These times are not stored. After a restart an engine that had shown more than 0 is shown at
/// once, and one that had not shows 0 anew from its next commit on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShownEngines([Option<BootTime>; Engine::ALL.len()]);

impl ShownEngines {
    const NONE: Self = Self([None; Engine::ALL.len()]);

    /// The engines whose `visible` amount is above zero, as if they had been shown since `shown`.
    pub(crate) fn restored(visible: &Engines, shown: BootTime) -> Self {
        Self(Engine::ALL.map(|engine| (!visible.of(engine).is_zero()).then_some(shown)))
    }

    /// Shows the engines that were used, and sets to zero the amounts of those that have not shown 0
    /// for long enough.
    fn hold_back(&mut self, amounts: &mut Engines, policy: &Policy, now: BootTime) {
        for (engine, shown) in Engine::ALL.into_iter().zip(&mut self.0) {
            let amount = amounts.of_mut(engine);
            if !amount.is_zero() && now.since(*shown.get_or_insert(now)) < policy.zero_for {
                *amount = Nanos::ZERO;
            }
        }
    }

    /// The engines without their times.
    #[must_use]
    pub fn set(&self) -> EngineSet {
        let engines = Engine::ALL.into_iter().zip(self.0);
        engines
            .filter_map(|(engine, shown)| shown.map(|_| engine))
            .collect()
    }
}

/// One published series of one account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Series {
    /// The labels it went out with.
    pub labels: Arc<ContainerLabels>,
    /// Its counter.
    pub counter: PublishedCounter,
}

impl Series {
    pub(crate) fn new(labels: Arc<ContainerLabels>, start: WallTime, now: BootTime) -> Self {
        Self {
            labels,
            counter: PublishedCounter::new(start, now),
        }
    }
}

/// One owner's account on one GPU.
#[derive(Debug)]
pub struct Account {
    /// Its number: unique for as long as series continue.
    pub number: u32,
    /// Which MIG instance it is on, if it is on one: the book is about the UUID, which another
    /// instance may have later.
    pub mig: Option<MigInfo>,
    /// The whole of each amount.
    pub amounts: Amounts,
    /// The most device memory that its processes were seen to use at once, in bytes.
    pub memory_peak: Option<u64>,
    /// Processes of it that were seen on the GPU.
    pub processes_started: u64,
    /// When it was opened, the start of its first series. No charge is older, with one exception: soon
    /// after a restart, or after an account of its owner was closed, it begins later than its first
    /// window, so that its series never have the start of earlier ones.
    pub opened: WallTime,
    /// The earliest time of which anything is counted: its held and its allocated time lie after it.
    pub since: BootTime,
    /// Up to when its allocated time is counted; absent before any is.
    pub allocated_through: Option<BootTime>,
    /// The end of the first window that charged it, if any did.
    pub first_used: Option<WallTime>,
    /// The end of the last window that charged it.
    pub last_used: Option<WallTime>,
    /// What its owner is called. Absent for host units, and until the first commit after it was
    /// opened.
    pub(crate) naming: Option<NamingId>,
    /// What is published of it under the ids alone.
    pub id_only: Option<Series>,
    /// What is published of it under its names, or, for the host, its unit.
    pub named: Option<Series>,
    /// How much of it the namespace's counter has been given.
    pub fed: Amounts,
    /// Since when its owner has had no process.
    pub ended: Option<BootTime>,
    /// Whether the MIG instance that it is on is another one now, under the same UUID.
    pub expired: bool,
}

impl Account {
    pub(crate) fn new(number: u32, mig: Option<MigInfo>, opened: Clock) -> Self {
        Self {
            number,
            mig,
            amounts: Amounts::ZERO,
            memory_peak: None,
            processes_started: 0,
            opened: opened.wall,
            since: opened.boot,
            allocated_through: None,
            first_used: None,
            last_used: None,
            naming: None,
            id_only: None,
            named: None,
            fed: Amounts::ZERO,
            ended: None,
            expired: false,
        }
    }

    /// Adds held time, the earliest of which is at `from`, and memory.
    pub fn add_held(&mut self, from: BootTime, held: Nanos, memory: ByteSeconds) {
        self.since = self.since.min(from);
        self.amounts += Amounts {
            held,
            memory,
            ..Amounts::ZERO
        };
    }

    /// Adds a share of the GPU's time, up to the account's allocated time. Any rest belongs to an
    /// account of the same owner that was closed meanwhile.
    pub fn add_share(&mut self, share: Nanos) {
        let Amounts {
            allocated,
            allocated_share,
            ..
        } = &mut self.amounts;
        *allocated_share += share.min(allocated.minus(*allocated_share));
    }

    /// By how much its held or its allocated time exceeds the time from its beginning until `now`,
    /// or its allocated share exceeds its allocated time: the largest of these. Zero unless
    /// something was counted twice.
    #[must_use]
    pub fn excess(&self, now: BootTime) -> Nanos {
        let passed = now.since(self.since);
        let Amounts {
            held,
            allocated,
            allocated_share,
            ..
        } = self.amounts;
        let beyond = held.minus(passed).max(allocated.minus(passed));
        beyond.max(allocated_share.minus(allocated))
    }

    /// When its newest series is done with showing 0; `None` if it has no series.
    #[must_use]
    pub(crate) fn shows_amounts_from(&self, zero_for: Nanos) -> Option<BootTime> {
        let newest = self.named.as_ref().or(self.id_only.as_ref())?;
        Some(newest.counter.shown.plus(zero_for))
    }

    /// All that is published of it, under either set of labels.
    #[must_use]
    pub fn published(&self) -> Amounts {
        [&self.id_only, &self.named]
            .into_iter()
            .flatten()
            .map(|series| series.counter.visible)
            .sum()
    }
}
