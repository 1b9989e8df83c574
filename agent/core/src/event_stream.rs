//! Up to when the kernel's events are known, where some are missing, and which scan makes up for
//! them.
//!
//! The kernel source reports births, deaths and moves. Each batch says up to which instant the
//! reports are complete. They are not complete where events were lost, before the source was
//! attached, and while it is down. Such an interval is a [`Gap`]. A scan of `/proc` closes it:
//!
//! - A scan that began after the gap's end shows who lives from there on. The gap is then closed.
//! - A scan that began after a window's end shows who lived through the window, even if the gap is
//!   still open. So a window never waits for the end of a storm of losses.
//!
//! A gap begins at the last instant up to which the reports were complete. It ends when the agent
//! learned of the loss, not at the batch's `drained_through`: that stands still while the ring is
//! full, so a scan that began before the loss would seem to close the gap.
//!
//! A scan says nothing of the pids whose files it could not read. Their gap stays open until a
//! later scan reads them, or an event names them.
//!
//! This module decides nothing else. The accountant decides who waits, for what, and how long.
//! Times are of the boot clock.

use crate::completeness::Completeness;
use crate::input::{EventCounters, KernelBatch, ProcessScan};
use crate::model::{BootTime, Pid, ProcessId, SourceState};
use crate::tables::{HashMap, HashSet};

/// An interval whose events may be missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Gap {
    /// Everything up to here is known.
    since: BootTime,
    /// A scan closes the gap if it began at this instant or later. [`BootTime::MAX`] while the
    /// source is not up.
    until: BootTime,
}

/// A stretch of time for which it is not known which process had a pid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Doubt {
    /// Everything up to here is known.
    since: BootTime,
    /// The end of the gap. An event from before it does not end the doubt, since the pid may have
    /// been given to another process after the event.
    gap_end: BootTime,
    /// When the process began that has the pid by now; [`BootTime::MAX`] while that is not known.
    until: BootTime,
}

/// The state of the kernel source, as far as it was reported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Source {
    /// No state was reported: no kernel source is run, as in most tests.
    #[default]
    Unreported,
    /// It has not been attached yet.
    Starting,
    /// It is attached.
    Up,
    /// It was to be attached, or had been, and is not.
    Down,
}

/// What is known of the completeness of events and scans.
#[derive(Debug, Default)]
pub(super) struct EventStream {
    source: Source,
    counters: EventCounters,
    drained_through: BootTime,
    gap: Option<Gap>,
    /// Every event since this time has been received: the time at which the last loss was noticed,
    /// or of the last attachment. [`BootTime::MAX`] while the source is not up.
    complete_since: BootTime,
    /// When the newest scan began.
    scan_began: Option<BootTime>,
    /// The pids that the newest scan could not read.
    unread: HashSet<Pid>,
    /// Pids that the scan which closed a gap could not read.
    doubted: HashMap<Pid, Doubt>,
}

impl EventStream {
    /// A stream of which nothing has been received yet, from `since` on.
    pub(super) fn since(since: BootTime) -> Self {
        Self {
            complete_since: since,
            ..Self::default()
        }
    }

    /// The stretch of time of which every event has been received, up to the newest batch.
    pub(super) const fn completeness(&self) -> Completeness {
        Completeness {
            since: self.complete_since,
            through: self.drained_through,
        }
    }

    /// The counters of the newest batch.
    pub(super) const fn counters(&self) -> EventCounters {
        self.counters
    }

    /// Up to when events have been received. Events of before may be missing, if there is a gap.
    pub(super) const fn drained_through(&self) -> BootTime {
        self.drained_through
    }

    /// Whether the source is about to be attached for the first time.
    pub(super) fn is_starting(&self) -> bool {
        self.source == Source::Starting
    }

    /// Whether the source is attached.
    pub(super) fn is_up(&self) -> bool {
        self.source == Source::Up
    }

    /// Whether events are to be expected. They are not if no kernel source has ever reported a
    /// state.
    pub(super) fn is_expected(&self) -> bool {
        self.source != Source::Unreported
    }

    /// Takes the counters and the completeness of a batch, at the time of its receipt. Returns
    /// whether events were lost since the batch before.
    pub(super) fn take_batch(&mut self, batch: &KernelBatch, received: BootTime) -> bool {
        let has_lost = batch.counters.missing() > self.counters.missing();
        if has_lost {
            self.open_gap(received);
            self.complete_since = self.complete_since.max(received);
        }
        self.counters = batch.counters;
        self.drained_through = self.drained_through.max(batch.drained_through);
        has_lost
    }

    /// Takes the source's state, and since when it is in that state.
    pub(super) fn take_state(&mut self, state: &SourceState, since: BootTime) {
        let (before, now) = (
            self.source,
            match state {
                SourceState::Up => Source::Up,
                SourceState::Absent => Source::Starting,
                SourceState::Down { .. } | SourceState::Disabled => Source::Down,
            },
        );
        self.source = now;
        if now != Source::Up {
            self.complete_since = BootTime::MAX;
        } else if before != Source::Up {
            self.complete_since = since;
        }
        match (before, now) {
            // Nothing has waited for this source, so no missing event matters.
            (Source::Unreported, Source::Up) | (Source::Up, Source::Up) => {}
            // What happened before it was attached was not reported.
            (_, Source::Up) => {
                if let Some(gap) = &mut self.gap {
                    gap.until = since;
                }
                self.open_gap(since);
            }
            _ => self.open_gap(BootTime::MAX),
        }
    }

    /// Events may be missing, up to some of `until`.
    fn open_gap(&mut self, until: BootTime) {
        let gap = self.gap.get_or_insert(Gap {
            since: self.drained_through,
            until,
        });
        gap.until = gap.until.max(until);
    }

    /// Takes what a scan says beside its processes. Returns whether it closed a gap.
    pub(super) fn take_scan(&mut self, scan: &ProcessScan) -> bool {
        if self.scan_began.is_some_and(|began| scan.started < began) {
            // An older scan that arrives late has nothing new.
            return false;
        }
        self.scan_began = Some(scan.started);
        self.unread = scan.unread.iter().copied().collect();
        let unread = &self.unread;
        self.doubted.retain(|pid, _| unread.contains(pid));
        let Some(gap) = self.gap.take_if(|gap| gap.until <= scan.started) else {
            return false;
        };
        for pid in &scan.unread {
            let doubt = self.doubted.entry(*pid).or_insert(Doubt {
                since: gap.since,
                gap_end: gap.until,
                until: BootTime::MAX,
            });
            doubt.gap_end = doubt.gap_end.max(gap.until);
            doubt.until = BootTime::MAX;
        }
        true
    }

    /// An event shows that a process had its pid at `at`. A process that began before the doubt has
    /// had the pid throughout. One that began in it leaves the time before in doubt.
    pub(super) fn take_event_of(&mut self, process: ProcessId, at: BootTime) {
        let Some(doubt) = self.doubted.get_mut(&process.pid) else {
            return;
        };
        if at < doubt.gap_end {
            return;
        }
        let start = process.start.earliest();
        if start <= doubt.since {
            self.doubted.remove(&process.pid);
        } else {
            doubt.until = doubt.until.min(start);
        }
    }

    /// Up to when every event is known.
    pub(super) fn complete_through(&self) -> BootTime {
        self.gap.map_or(self.drained_through, |gap| {
            gap.since.min(self.drained_through)
        })
    }

    /// Since when a process has been where it was known to be, at the latest, if nothing has said
    /// otherwise: events are complete up to there, or the newest scan saw it there.
    pub(super) fn seen_through(&self, pid: Pid) -> BootTime {
        let scanned = self.scan_began.filter(|_| !self.unread.contains(&pid));
        self.complete_through().max(scanned.unwrap_or_default())
    }

    /// Whether everything up to `end` is known that can still become known.
    pub(super) fn has_caught_up(&self, end: BootTime) -> bool {
        // Those that a scan did not find may have been born and have died since; the events say.
        let has_drained = !self.is_up() || self.drained_through >= end;
        end <= self.complete_through() || (has_drained && !self.lacks_scan(end))
    }

    /// Whether a scan is needed to know which processes lived up to `end`, and none has been made.
    pub(super) fn lacks_scan(&self, end: BootTime) -> bool {
        let is_in_gap = self.gap.is_some_and(|gap| gap.since < end);
        is_in_gap && self.scan_began.is_none_or(|began| began < end)
    }

    /// Whether the process that is known to have had a pid up to `end` is certain: no event that
    /// gave the pid to another process can be missing. An event that is only late is not missing.
    pub(super) fn vouches_for(&self, pid: Pid, end: BootTime) -> bool {
        let doubt = self.doubted.get(&pid);
        if doubt.is_some_and(|doubt| doubt.since < end && end <= doubt.until) {
            return false;
        }
        let is_in_gap = self.gap.is_some_and(|gap| gap.since < end);
        let is_unread = self.unread.contains(&pid);
        !is_in_gap || !(is_unread || self.lacks_scan(end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(seconds: u64) -> BootTime {
        BootTime(seconds * 1_000_000_000)
    }

    fn batch(through: u64, lost: u64) -> KernelBatch {
        KernelBatch {
            drained_through: s(through),
            counters: EventCounters {
                lost,
                ..EventCounters::default()
            },
            ..KernelBatch::default()
        }
    }

    fn scan(started: u64, unread: &[u32]) -> ProcessScan {
        ProcessScan {
            started: s(started),
            finished: s(started),
            unread: unread.iter().map(|pid| Pid(*pid)).collect(),
            ..ProcessScan::default()
        }
    }

    fn down() -> SourceState {
        SourceState::Down {
            class: "stream".into(),
            reason: "the event stream ended".into(),
            next_retry: None,
        }
    }

    /// Attached at 10 s, scanned at 11 s, drained up to 20 s.
    fn running() -> EventStream {
        let mut stream = EventStream::default();
        stream.take_state(&SourceState::Absent, s(9));
        stream.take_state(&SourceState::Up, s(10));
        assert!(stream.take_scan(&scan(11, &[])));
        assert!(!stream.take_batch(&batch(20, 0), s(20)));
        stream
    }

    #[test]
    fn what_came_before_the_source_is_known_by_a_scan_that_began_later() {
        let mut stream = EventStream::default();
        assert!(stream.has_caught_up(s(0)) && !stream.is_expected());
        stream.take_state(&SourceState::Absent, s(1));
        assert!(stream.is_starting() && stream.is_expected());
        // This one began before the source was attached, and does not see who is born until then.
        assert!(!stream.take_scan(&scan(8, &[])));
        stream.take_state(&SourceState::Up, s(10));
        assert!(!stream.take_batch(&batch(20, 0), s(20)));
        for end in [9, 10, 20] {
            assert!(!stream.has_caught_up(s(end)), "{end}");
            assert!(!stream.vouches_for(Pid(7), s(end)), "{end}");
        }
        assert!(stream.take_scan(&scan(10, &[])));
        assert!(stream.has_caught_up(s(20)) && !stream.has_caught_up(s(21)));
        assert!(stream.vouches_for(Pid(7), s(21)), "that is only late");
        // Its place has changed, and nothing else.
        stream.take_state(&SourceState::Up, s(22));
        assert!(stream.has_caught_up(s(20)));
    }

    #[test]
    fn a_scan_from_before_the_news_of_a_loss_does_not_mend_it() {
        let mut stream = running();
        // The ring is full: what is drained stands still, and the loss is later than that.
        assert!(stream.take_batch(&batch(20, 3), s(24)));
        assert!(!stream.take_scan(&scan(22, &[])));
        assert!(stream.has_caught_up(s(20)), "before the loss all is known");
        assert!(!stream.vouches_for(Pid(7), s(23)));
        assert!(!stream.take_batch(&batch(30, 3), s(30)));
        assert!(!stream.has_caught_up(s(23)));
        assert!(stream.take_scan(&scan(24, &[])));
        assert!(stream.has_caught_up(s(30)) && stream.vouches_for(Pid(7), s(30)));
    }

    #[test]
    fn an_event_that_the_kernel_skipped_is_missing_as_one_that_was_lost_is() {
        for (undecodable, skipped) in [(1, 0), (0, 1)] {
            let mut stream = running();
            let mut news = batch(21, 0);
            (news.counters.undecodable, news.counters.skipped) = (undecodable, skipped);
            assert!(stream.take_batch(&news, s(21)));
            assert!(!stream.vouches_for(Pid(7), s(21)));
            assert!(!stream.take_batch(&news, s(21)), "it is news once");
        }
    }

    #[test]
    fn a_window_does_not_wait_for_the_end_of_a_storm() {
        let mut stream = running();
        for at in 21..30 {
            assert!(stream.take_batch(&batch(at, at), s(at)));
            assert!(!stream.take_scan(&scan(at - 1, &[])));
            assert!(stream.has_caught_up(s(at - 1)), "{at}");
            assert!(!stream.has_caught_up(s(at)) && stream.lacks_scan(s(at)));
        }
    }

    #[test]
    fn while_the_source_is_down_a_scan_from_after_the_window_stands_in() {
        let mut stream = running();
        stream.take_state(&down(), s(25));
        assert!(stream.has_caught_up(s(20)), "it had been reported");
        assert!(!stream.has_caught_up(s(21)) && !stream.vouches_for(Pid(7), s(21)));
        assert!(!stream.take_scan(&scan(30, &[])), "the gap stays open");
        assert!(stream.has_caught_up(s(30)) && stream.vouches_for(Pid(7), s(30)));
        assert!(!stream.has_caught_up(s(31)));
        // A scan that began before it came back does not see what happened in between.
        stream.take_state(&SourceState::Up, s(40));
        assert!(!stream.take_batch(&batch(50, 0), s(50)));
        assert!(!stream.take_scan(&scan(39, &[])));
        assert!(!stream.has_caught_up(s(50)));
        assert!(stream.take_scan(&scan(41, &[])));
        assert!(stream.has_caught_up(s(50)));
    }

    #[test]
    fn a_pid_that_the_scan_could_not_read_stays_in_doubt_until_somebody_tells() {
        let mut stream = running();
        assert!(stream.take_batch(&batch(21, 1), s(21)));
        assert!(stream.take_scan(&scan(22, &[7, 8])));
        assert!(!stream.take_batch(&batch(30, 1), s(30)));
        assert!(stream.has_caught_up(s(30)), "nobody waits for one pid");
        assert!(!stream.vouches_for(Pid(7), s(30)) && !stream.vouches_for(Pid(8), s(30)));
        assert!(stream.vouches_for(Pid(7), s(20)) && stream.vouches_for(Pid(9), s(30)));
        let eight = |start| ProcessId {
            pid: Pid(8),
            start: s(start).into(),
        };
        // The pid may have been given away after an event from inside the gap.
        stream.take_event_of(eight(5), s(20));
        assert!(!stream.vouches_for(Pid(8), s(30)));
        stream.take_event_of(eight(5), s(29));
        assert!(stream.vouches_for(Pid(8), s(30)));
        stream.take_scan(&scan(31, &[7]));
        assert!(!stream.vouches_for(Pid(7), s(30)));
        stream.take_scan(&scan(32, &[]));
        assert!(stream.vouches_for(Pid(7), s(30)));
        // The process that has the pid now says nothing of the time before it began.
        assert!(stream.take_batch(&batch(40, 2), s(40)));
        assert!(stream.take_scan(&scan(41, &[8])));
        assert!(!stream.take_batch(&batch(50, 2), s(50)));
        stream.take_event_of(eight(45), s(45));
        assert!(!stream.vouches_for(Pid(8), s(44)) && stream.vouches_for(Pid(8), s(50)));
        // A scan that cannot read a pid takes nothing away where the events are complete.
        stream.take_scan(&scan(33, &[7]));
        assert!(stream.vouches_for(Pid(7), s(30)));
    }
}
