//! Processes that opened a GPU and were never sampled: an upper bound on their use, since there is
//! no figure.
//!
//! A process that opens a GPU, runs for a few milliseconds and dies may fall between all of the
//! driver's samples. What it used is then booked as the device's time without a row, and nobody can
//! say how much of that was its own; but it was no more than the time from its first open to its
//! death. That bound is kept for `explain`, and such processes are counted. No busy time is booked from
//! an open, because monitors open GPUs, too.
//!
//! Everything is bounded: the processes that are followed, and the bounds that are kept.

use std::collections::{BTreeMap, VecDeque};

use crate::model::{BootTime, DeviceNumber, Owner, ProcessId};
use crate::tables::HashMap;

/// Bounds that are kept, the newest.
const MAX_KEPT: usize = 256;

/// Times of opens that are remembered: a window is booked some seconds after its end.
const LATEST: usize = 64;

/// A process that has opened a GPU.
#[derive(Clone, Copy, Debug)]
struct Opened {
    at: BootTime,
    device: DeviceNumber,
    sampled: bool,
}

/// Upper bound on the use of a process that was never sampled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageBound {
    /// Process that opened the device.
    pub process: ProcessId,
    /// Owner that would have been charged, if known.
    pub owner: Option<Owner>,
    /// Device that it opened.
    pub device: DeviceNumber,
    /// When it first did.
    pub opened: BootTime,
    /// When it died.
    pub died: BootTime,
}

/// State of a process that opened a GPU, from the process table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProcessFate {
    /// It may still show up in a window.
    Open,
    /// It has died, and every window has passed its death.
    Over {
        /// When it died.
        died: BootTime,
        /// Its owner, if known.
        owner: Option<Owner>,
    },
    /// The table has no room for it, or forgot it.
    Unknown,
}

/// The processes that have opened a GPU.
#[derive(Debug)]
pub struct Opens {
    followed: BTreeMap<ProcessId, Opened>,
    limit: usize,
    bounds: VecDeque<UsageBound>,
    /// When a GPU was last opened, the newest first.
    latest: VecDeque<BootTime>,
    opens: u64,
    unsampled: u64,
    overflows: u64,
}

impl Opens {
    /// Of at most `limit` processes at a time.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            followed: BTreeMap::new(),
            limit,
            bounds: VecDeque::new(),
            latest: VecDeque::new(),
            opens: 0,
            unsampled: 0,
            overflows: 0,
        }
    }

    /// Opens that were reported.
    #[must_use]
    pub const fn opens(&self) -> u64 {
        self.opens
    }

    /// Processes that opened a GPU and died without a sample.
    #[must_use]
    pub const fn unsampled(&self) -> u64 {
        self.unsampled
    }

    /// Processes that are not followed since too many are.
    #[must_use]
    pub const fn overflows(&self) -> u64 {
        self.overflows
    }

    /// Notes an open.
    pub fn note(&mut self, process: ProcessId, device: DeviceNumber, at: BootTime) {
        self.opens += 1;
        self.latest.truncate(LATEST - 1);
        self.latest.push_front(at);
        if let Some(opened) = self.followed.get_mut(&process) {
            opened.at = opened.at.min(at);
            // A GPU's own device says more than the control device of all GPUs.
            if device.gpu().is_some() && opened.device.gpu().is_none() {
                opened.device = device;
            }
        } else if self.followed.len() < self.limit {
            let sampled = false;
            self.followed.insert(
                process,
                Opened {
                    at,
                    device,
                    sampled,
                },
            );
        } else {
            self.overflows += 1;
        }
    }

    /// Notes that a sample named a process.
    pub fn sampled(&mut self, process: ProcessId) {
        if let Some(opened) = self.followed.get_mut(&process) {
            opened.sampled = true;
        }
    }

    /// When a process first opened a GPU, if it is known to have.
    #[must_use]
    pub fn first(&self, process: ProcessId) -> Option<BootTime> {
        self.followed.get(&process).map(|opened| opened.at)
    }

    /// Whether a GPU may have been opened in `(from, to]`. Also true if too many opens came since
    /// to remember them.
    #[must_use]
    pub fn may_be_between(&self, from: BootTime, to: BootTime) -> bool {
        let is_forgotten = self.latest.len() == LATEST && self.latest.back() > Some(&from);
        is_forgotten || self.latest.iter().any(|at| from < *at && *at <= to)
    }

    /// Closes the records of processes that cannot be sampled any more.
    pub fn close_finished(&mut self, fate: &mut dyn FnMut(ProcessId) -> ProcessFate) {
        let Self {
            followed,
            bounds,
            unsampled,
            ..
        } = self;
        followed.retain(|process, opened| match fate(*process) {
            ProcessFate::Open => true,
            ProcessFate::Unknown => false,
            ProcessFate::Over { died, owner } => {
                if !opened.sampled {
                    *unsampled += 1;
                    if bounds.len() == MAX_KEPT {
                        bounds.pop_front();
                    }
                    bounds.push_back(UsageBound {
                        process: *process,
                        owner,
                        device: opened.device,
                        opened: opened.at,
                        died,
                    });
                }
                false
            }
        });
    }

    /// The bounds that are kept for an owner, the newest first.
    pub fn bounds_of(&self, owner: &Owner) -> impl Iterator<Item = &UsageBound> {
        let is_theirs = |bound: &&UsageBound| bound.owner.as_ref() == Some(owner);
        self.bounds.iter().rev().filter(is_theirs)
    }

    /// Owners of whom a bound is kept.
    pub fn owners(&self) -> impl Iterator<Item = &Owner> {
        let mut seen = HashMap::default();
        self.bounds
            .iter()
            .filter_map(|bound| bound.owner.as_ref())
            .filter(move |owner| seen.insert(*owner, ()).is_none())
    }
}

#[cfg(test)]
mod tests {
    use super::super::model::{HostUnit, Pid, StartTicks};
    use super::*;

    const GPU: DeviceNumber = DeviceNumber {
        major: 195,
        minor: 1,
    };
    const CONTROL: DeviceNumber = DeviceNumber {
        major: 195,
        minor: 255,
    };

    fn process(pid: u32) -> ProcessId {
        ProcessId {
            pid: Pid(pid),
            start: StartTicks(7),
        }
    }

    fn unit() -> Owner {
        Owner::Host(HostUnit::from("a.service"))
    }

    fn over() -> ProcessFate {
        ProcessFate::Over {
            died: BootTime(90),
            owner: Some(unit()),
        }
    }

    #[test]
    fn opens_that_are_too_many_to_remember_may_have_been_at_any_time() {
        let mut opens = Opens::new(1);
        assert!(!opens.may_be_between(BootTime(0), BootTime(100)));
        for at in 1..=64 {
            opens.note(process(1), GPU, BootTime(100 + at));
        }
        assert!(opens.may_be_between(BootTime(101), BootTime(102)));
        assert!(!opens.may_be_between(BootTime(164), BootTime(170)));
        assert!(!opens.may_be_between(BootTime(101), BootTime(101)));
        opens.note(process(1), GPU, BootTime(170));
        assert!(
            opens.may_be_between(BootTime(101), BootTime(101)),
            "unknown"
        );
    }

    #[test]
    fn a_process_without_a_sample_leaves_a_bound() {
        let mut opens = Opens::new(8);
        opens.note(process(1), CONTROL, BootTime(50));
        opens.note(process(1), GPU, BootTime(55));
        opens.note(process(1), CONTROL, BootTime(40));
        opens.note(process(2), GPU, BootTime(60));
        opens.note(process(3), GPU, BootTime(60));
        opens.note(process(4), GPU, BootTime(60));
        opens.sampled(process(2));
        opens.sampled(process(9));
        assert_eq!(opens.first(process(1)), Some(BootTime(40)));
        opens.close_finished(&mut |process| match process.pid.0 {
            1 | 2 => over(),
            3 => ProcessFate::Open,
            _ => ProcessFate::Unknown,
        });
        let bounds: Vec<_> = opens.bounds_of(&unit()).cloned().collect();
        let expected = UsageBound {
            process: process(1),
            owner: Some(unit()),
            device: GPU,
            opened: BootTime(40),
            died: BootTime(90),
        };
        assert_eq!(bounds, [expected]);
        assert_eq!((opens.opens(), opens.unsampled()), (6, 1));
        assert_eq!(opens.owners().collect::<Vec<_>>(), [&unit()]);
        // The one that lives is followed, and the others are not any more.
        opens.close_finished(&mut |_| over());
        assert_eq!(opens.unsampled(), 2);
    }

    #[test]
    fn what_is_kept_is_bounded_and_what_is_not_is_counted() {
        let mut opens = Opens::new(2);
        for pid in 1..=5 {
            opens.note(process(pid), GPU, BootTime(1));
        }
        assert_eq!((opens.opens(), opens.overflows()), (5, 3));
        for pid in 0..2 * u32::try_from(MAX_KEPT).unwrap() {
            opens.note(process(pid), GPU, BootTime(1));
            opens.close_finished(&mut |_| over());
        }
        assert_eq!(opens.bounds_of(&unit()).count(), MAX_KEPT);
        assert!(opens.unsampled() > MAX_KEPT as u64);
    }
}
