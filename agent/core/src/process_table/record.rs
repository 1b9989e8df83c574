//! One incarnation of a pid, as the table keeps it.

use crate::model::{BootTime, Pid, StartTicks};
use crate::placement::PlacementId;

/// No slot, the end of a chain.
pub(super) const NIL: u32 = u32::MAX;

/// Bits of a record's `pid_and_flags` that are the pid; the kernel's `PID_MAX_LIMIT` is 2^22.
pub(super) const PID_MASK: u32 = (1 << 24) - 1;

/// Its exit was reported, not inferred. Only the pid's next holder can follow it.
pub(super) const EXIT_REPORTED: u32 = 1 << 29;

/// The process replaced its image in the place where it is now.
pub(super) const EXEC_HERE: u32 = 1 << 30;

/// The process replaced its image in the place where it was before.
pub(super) const EXEC_BEFORE: u32 = 1 << 31;

/// An event of the kernel reported it, not only a scan.
pub(super) const BY_EVENT: u32 = 1 << 28;

/// A scan found it where it is: it may have come there before the scan began.
pub(super) const FOUND_HERE: u32 = 1 << 27;

/// A table before this one had it where it is, and nothing has been seen of it since.
pub(super) const RESTORED: u32 = 1 << 26;

/// It moved without an event: before it was found here, it may have been in either placement.
pub(super) const MOVED_UNSEEN: u32 = 1 << 25;

/// It is in the table's list of the dead. It may have turned out to be alive since.
pub(super) const LISTED_AS_DEAD: u32 = 1 << 24;

const _: () = {
    let found = FOUND_HERE | RESTORED | MOVED_UNSEEN | LISTED_AS_DEAD;
    let flags = EXIT_REPORTED | EXEC_HERE | EXEC_BEFORE | BY_EVENT | found;
    assert!(flags.count_ones() == 8 && flags & PID_MASK == 0);
};

/// One process that had a pid. 48 bytes; at most 64 with its index entry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record {
    pub(super) start: BootTime,
    /// When it died; [`BootTime::MAX`] while it lives. Set by [`Record::end`], and back to that by the
    /// table where it turns out to be alive.
    pub(super) exit: BootTime,
    /// Since when `placement` is known to hold.
    pub(super) since: BootTime,
    pub(super) pid_and_flags: u32,
    pub(super) placement: PlacementId,
    /// Where it was before `since`, if that was elsewhere.
    pub(super) previous: Option<PlacementId>,
    /// The incarnation of this pid before this one, or the next free slot.
    pub(super) older: u32,
    /// The parent that it was first seen with; 0 where nobody said.
    pub(super) parent: u32,
}

const _: () = assert!(size_of::<Record>() == 48);

impl Record {
    pub(super) const fn pid(&self) -> Pid {
        Pid(self.pid_and_flags & PID_MASK)
    }

    pub(super) const fn has(&self, flag: u32) -> bool {
        self.pid_and_flags & flag != 0
    }

    pub(super) fn ticks(&self) -> StartTicks {
        StartTicks::from(self.start)
    }

    pub(super) fn is_alive(&self) -> bool {
        self.exit == BootTime::MAX
    }

    /// Notes when it died. Times come from outside, and none of them may stand for "it lives".
    pub(super) fn end(&mut self, at: BootTime) {
        self.exit = BootTime(at.0.min(BootTime::MAX.0 - 1));
    }

    /// The latest instant at which it can have started: a scan knows the tick alone.
    pub(super) fn started_by(&self) -> BootTime {
        if self.has(BY_EVENT) {
            self.start
        } else {
            StartTicks(self.ticks().0.saturating_add(1)).earliest()
        }
    }
}
