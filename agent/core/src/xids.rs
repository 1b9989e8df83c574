//! Xid errors: reports of two reporters are merged, and a counter for each number, GPU and owner.
//!
//! NVML's events and the kernel's log report the same error. Each report is paired with at most one
//! report of the other reporter about the same error on the same GPU, and a pair counts once. Reports of
//! one reporter are never paired: the driver may report one number several times.
//!
//! A report waits before it counts, since the other reporter may still come, and since the process
//! table may not know yet who had the pid. The caller says when it has waited for long enough.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::input::{XidReport, XidReporter};
use crate::model::{
    BootTime, Clock, HostUnit, Nanos, Owner, Pid, ProcessId, WallTime, none, unresolved,
};
use crate::snapshot::ContainerLabels;

/// How far the times of two reports about one error may be apart. NVML's events have the time at which
/// they were received.
const PAIR_WITHIN: Nanos = Nanos::from_secs(10);
/// The same for two reports with different numbers. If several errors come at once, NVML's events all
/// have the number of the last one (`nvmlEventSetWait_v2` in nvml.h).
const PAIR_ANY_WITHIN: Nanos = Nanos::SECOND;
/// How many reports are remembered. Beyond that the oldest counts without waiting.
const LIMIT: usize = 1_024;
/// How many processes of a sole holder are remembered with an error.
pub(crate) const HOLDERS: usize = 64;
/// The largest number that is believed. What is larger counts as [`UNKNOWN`].
const LARGEST: u32 = 9_999;
/// NVML's number for an error that it does not know.
const UNKNOWN: u32 = 999;

/// An error that was reported.
#[derive(Debug)]
pub(crate) struct XidError {
    /// Index of the book of its GPU.
    pub(crate) book: usize,
    pub(crate) xid: u32,
    /// When it happened.
    pub(crate) at: BootTime,
    /// When the first report of it came.
    pub(crate) received: BootTime,
    /// The process that caused it, if the kernel's log says so.
    pub(crate) pid: Option<Pid>,
    /// Who held the GPU when it was reported.
    pub(crate) holder: SoleHolder,
    /// The owner, once all events until the error are known; none if there is no sole one. It is kept
    /// because the process may be forgotten while the owner's names are waited for.
    pub(crate) owner: Option<Option<Owner>>,
    reporter: XidReporter,
    /// Whether the other reporter has come, too.
    is_paired: bool,
    is_counted: bool,
}

impl XidError {
    /// Whether nothing more can come that says who caused it.
    pub(crate) fn is_logged(&self) -> bool {
        self.reporter == XidReporter::KernelLog || self.is_paired
    }
}

/// Who had a context on a GPU, if that was one owner only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum SoleHolder {
    /// Nobody, as far as is known.
    #[default]
    Nobody,
    /// One owner, with the first [`HOLDERS`] of its processes that had a context.
    One(Owner, Vec<ProcessId>),
    /// More than one, or somebody who is not known.
    Several,
}

impl SoleHolder {
    /// Adds another process and its owner; none if these are not known.
    pub(crate) fn add(&mut self, found: Option<(ProcessId, Owner)>) {
        *self = match (std::mem::take(self), found) {
            (Self::Nobody, Some((process, owner))) => Self::One(owner, vec![process]),
            (Self::One(one, mut processes), Some((process, owner))) if one == owner => {
                if processes.len() < HOLDERS {
                    processes.push(process);
                }
                Self::One(one, processes)
            }
            _ => Self::Several,
        };
    }
}

/// To whom an error is counted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct XidOwner {
    pub(crate) labels: Arc<ContainerLabels>,
    pub(crate) unit: HostUnit,
}

impl XidOwner {
    /// A container or a pod.
    pub(crate) fn container(labels: Arc<ContainerLabels>) -> Self {
        let unit = HostUnit(none());
        Self { labels, unit }
    }

    /// A process in no container.
    pub(crate) fn host(unit: HostUnit) -> Self {
        let labels = Arc::new(all(&none()));
        Self { labels, unit }
    }

    /// Nobody knows.
    pub(crate) fn unresolved() -> Self {
        Self {
            labels: Arc::new(all(&unresolved())),
            unit: HostUnit(unresolved()),
        }
    }
}

fn all(text: &Arc<str>) -> ContainerLabels {
    ContainerLabels {
        namespace: Arc::clone(text),
        pod: Arc::clone(text),
        container: Arc::clone(text),
        pod_uid: Arc::clone(text),
        container_id: Arc::clone(text),
    }
}

/// A counter of errors.
#[derive(Debug)]
pub(crate) struct XidCounter {
    pub(crate) count: u64,
    pub(crate) start: WallTime,
    /// When the first error was counted.
    opened: BootTime,
    /// Whether the errors are published. Once they are, they stay: a counter never falls.
    is_shown: bool,
    pub(crate) last: WallTime,
}

impl XidCounter {
    /// What is published: 0 at first, so that a rate over it sees the first error.
    pub(crate) const fn published(&self) -> u64 {
        if self.is_shown { self.count } else { 0 }
    }
}

/// Index of a book, NVIDIA's number, and to whom the errors are counted.
pub(crate) type XidKey = (usize, u32, XidOwner);

/// The errors that were reported, and their counters.
#[derive(Debug, Default)]
pub(crate) struct Xids {
    /// In the order in which they were first reported.
    errors: VecDeque<XidError>,
    counters: BTreeMap<XidKey, XidCounter>,
    limit: usize,
    overflows: u64,
}

impl Xids {
    /// At most `limit` counters. Errors beyond are counted to nobody.
    pub(crate) const fn new(limit: usize) -> Self {
        Self {
            errors: VecDeque::new(),
            counters: BTreeMap::new(),
            limit,
            overflows: 0,
        }
    }

    /// Takes a report about the GPU of `book`.
    pub(crate) fn report(
        &mut self,
        book: usize,
        report: &XidReport,
        holder: SoleHolder,
        clock: Clock,
    ) {
        let xid = match report.xid {
            0..=LARGEST => report.xid,
            _ => UNKNOWN,
        };
        if let Some(twin) = self.twin_of(book, xid, report) {
            let twin = &mut self.errors[twin];
            twin.is_paired = true;
            if report.reporter == XidReporter::KernelLog {
                twin.pid = report.pid;
                twin.owner = None;
                twin.at = report.at;
                if !twin.is_counted {
                    twin.xid = xid;
                }
            }
            return;
        }
        self.errors.push_back(XidError {
            book,
            xid,
            at: report.at,
            received: clock.boot,
            pid: report.pid,
            holder,
            owner: None,
            reporter: report.reporter,
            is_paired: false,
            is_counted: false,
        });
        if self.errors.len() > LIMIT
            && let Some(oldest) = self.errors.pop_front()
            && !oldest.is_counted
        {
            self.overflows += 1;
            self.count(
                (oldest.book, oldest.xid, XidOwner::unresolved()),
                oldest.at,
                clock,
            );
        }
    }

    /// The report of the other reporter about the same error. If no number fits, it may be one about
    /// another number: an event of NVML with a number that an earlier event has had already.
    fn twin_of(&self, book: usize, xid: u32, report: &XidReport) -> Option<usize> {
        let is_twin = |error: &XidError, xid: Option<u32>, within: Nanos| {
            let apart = error.at.since(report.at).max(report.at.since(error.at));
            error.book == book
                && xid.is_none_or(|xid| error.xid == xid)
                && error.reporter != report.reporter
                && !error.is_paired
                && apart <= within
        };
        let errors = self.errors.iter();
        let same = errors
            .clone()
            .position(|error| is_twin(error, Some(xid), PAIR_WITHIN));
        let reported = |xid: u32| {
            let events = errors.clone().filter(|error| {
                let has_event = error.reporter == XidReporter::Nvml || error.is_paired;
                has_event && (error.book, error.xid) == (book, xid)
            });
            events.count() + usize::from(report.reporter == XidReporter::Nvml)
        };
        let any = || {
            errors.clone().position(|error| {
                let number = match report.reporter {
                    XidReporter::Nvml => xid,
                    XidReporter::KernelLog => error.xid,
                };
                is_twin(error, None, PAIR_ANY_WITHIN) && reported(number) > 1
            })
        };
        same.or_else(any)
    }

    /// Counts each error for which `settle` names an owner now. Those without wait.
    pub(crate) fn settle(
        &mut self,
        clock: Clock,
        settle: &mut dyn FnMut(&mut XidError) -> Option<XidOwner>,
    ) {
        let mut errors = std::mem::take(&mut self.errors);
        for error in errors.iter_mut().filter(|error| !error.is_counted) {
            if let Some(owner) = settle(error) {
                error.is_counted = true;
                self.count((error.book, error.xid, owner), error.at, clock);
            }
        }
        // The twin of one that was counted may still come.
        errors.retain(|error| !error.is_counted || clock.boot.since(error.received) <= PAIR_WITHIN);
        self.errors = errors;
    }

    /// Publishes the counters that have been at 0 for long enough.
    pub(crate) fn show(&mut self, zero_for: Nanos, now: BootTime) {
        for counter in self.counters.values_mut() {
            counter.is_shown |= now.since(counter.opened) >= zero_for;
        }
    }

    fn count(&mut self, mut key: XidKey, at: BootTime, clock: Clock) {
        let is_full = self.counters.len() >= self.limit && !self.counters.contains_key(&key);
        if is_full {
            self.overflows += 1;
            key = (key.0, UNKNOWN, XidOwner::unresolved());
        }
        let last = clock.wall_of(at);
        let counter = self.counters.entry(key).or_insert(XidCounter {
            count: 0,
            start: clock.wall,
            opened: clock.boot,
            is_shown: false,
            last,
        });
        counter.count += 1;
        counter.last = counter.last.max(last);
    }

    /// The counters, by GPU and number.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&XidKey, &XidCounter)> {
        self.counters.iter()
    }

    /// Errors that were counted without their owner or their number, for want of room.
    pub(crate) const fn overflows(&self) -> u64 {
        self.overflows
    }
}

#[cfg(test)]
mod tests {
    use XidReporter::{KernelLog, Nvml};

    use super::*;
    use crate::input::XidGpu;
    use crate::model::StartTicks;

    fn clock(millis: u64) -> Clock {
        Clock {
            boot: BootTime(millis * 1_000_000),
            wall: WallTime(millis * 1_000_000),
        }
    }

    fn report(xids: &mut Xids, reporter: XidReporter, millis: u64, xid: u32, pid: Option<u32>) {
        let report = XidReport {
            at: clock(millis).boot,
            reporter,
            gpu: XidGpu::Uuid("GPU-1".into()),
            xid,
            pid: pid.map(Pid),
        };
        xids.report(0, &report, SoleHolder::Nobody, clock(millis));
    }

    /// Counts everything, each under the pid that was reported.
    fn settled(xids: &mut Xids, millis: u64) -> Vec<(u32, String, u64)> {
        xids.settle(clock(millis), &mut |error| {
            let unit = error.pid.map_or("-".to_owned(), |pid| pid.0.to_string());
            Some(XidOwner::host(HostUnit::from(&*unit)))
        });
        let counters = xids.iter();
        counters
            .map(|((_, xid, owner), counter)| (*xid, owner.unit.0.to_string(), counter.count))
            .collect()
    }

    #[test]
    fn what_both_report_counts_once_whoever_comes_first() {
        for order in [[Nvml, KernelLog], [KernelLog, Nvml]] {
            let mut xids = Xids::new(10);
            for (reporter, millis) in order.into_iter().zip([1_000, 2_000]) {
                let pid = (reporter == KernelLog).then_some(7);
                report(&mut xids, reporter, millis, 31, pid);
            }
            let expected = [(31, "7".to_owned(), 1)];
            assert_eq!(settled(&mut xids, 5_000), expected, "{order:?}");
        }
    }

    #[test]
    fn a_twin_that_comes_after_the_count_is_no_second_error() {
        let mut xids = Xids::new(10);
        report(&mut xids, Nvml, 1_000, 79, None);
        assert_eq!(settled(&mut xids, 2_000), [(79, "-".to_owned(), 1)]);
        report(&mut xids, KernelLog, 9_000, 79, Some(7));
        assert_eq!(settled(&mut xids, 10_000), [(79, "-".to_owned(), 1)]);
        // This one is another error: the first has its twin.
        report(&mut xids, KernelLog, 9_500, 79, Some(7));
        let expected = [(79, "-".to_owned(), 1), (79, "7".to_owned(), 1)];
        assert_eq!(settled(&mut xids, 10_500), expected);
    }

    #[test]
    fn reports_of_one_reporter_and_of_other_errors_are_errors_of_their_own() {
        let mut xids = Xids::new(10);
        for _ in 0..3 {
            report(&mut xids, KernelLog, 1_000, 13, Some(7));
        }
        report(&mut xids, Nvml, 1_000, 13, None);
        report(&mut xids, Nvml, 1_000, 43, None);
        // Too late to be the same.
        report(&mut xids, Nvml, 11_001, 13, None);
        let expected = [
            (13, "-".to_owned(), 1),
            (13, "7".to_owned(), 3),
            (43, "-".to_owned(), 1),
        ];
        assert_eq!(settled(&mut xids, 12_000), expected);
    }

    #[test]
    fn a_storm_is_bounded_and_no_error_is_lost() {
        let mut xids = Xids::new(10);
        for number in 0..3_000 {
            report(&mut xids, KernelLog, 1_000, number, Some(number));
        }
        assert!(xids.errors.len() <= LIMIT);
        let counted: u64 = settled(&mut xids, 2_000)
            .iter()
            .map(|(_, _, count)| count)
            .sum();
        assert_eq!(counted, 3_000);
        assert!(xids.counters.len() <= 11, "{}", xids.counters.len());
        assert!(xids.overflows() >= 3_000 - 10);
    }

    #[test]
    fn a_number_that_cannot_be_one_is_unknown() {
        let mut xids = Xids::new(10);
        report(&mut xids, Nvml, 1_000, u32::MAX, None);
        assert_eq!(settled(&mut xids, 2_000), [(999, "-".to_owned(), 1)]);
    }

    #[test]
    fn a_new_counter_shows_zero_first() {
        let mut xids = Xids::new(10);
        report(&mut xids, KernelLog, 1_000, 48, None);
        settled(&mut xids, 2_000);
        let shown = |xids: &Xids| {
            let (_, counter) = xids.iter().next().expect("it was counted");
            assert_eq!(counter.last, clock(1_000).wall);
            counter.published()
        };
        let zero_for = Nanos::from_secs(60);
        xids.show(zero_for, clock(61_999).boot);
        assert_eq!(shown(&xids), 0);
        xids.show(zero_for, clock(62_000).boot);
        assert_eq!(shown(&xids), 1);
        // The time at 0 is raised while the agent runs.
        xids.show(Nanos::from_secs(600), clock(63_000).boot);
        assert_eq!(shown(&xids), 1, "a counter never falls");
    }

    #[test]
    fn errors_at_once_have_the_number_of_the_last_one_in_nvml_s_events() {
        let mut xids = Xids::new(10);
        report(&mut xids, Nvml, 1_000, 45, None);
        report(&mut xids, Nvml, 1_001, 45, None);
        report(&mut xids, KernelLog, 1_000, 31, None);
        report(&mut xids, KernelLog, 1_001, 45, None);
        let found = settled(&mut xids, 2_000);
        assert_eq!(found, [(31, "-".to_owned(), 1), (45, "-".to_owned(), 1)]);
    }

    #[test]
    fn a_holder_is_sole_if_all_processes_are_of_one_known_owner() {
        let [one, other] = ["a.service", "b.service"].map(|unit| Owner::Host(unit.into()));
        let process = ProcessId {
            pid: Pid(7),
            start: StartTicks(1),
        };
        for (owners, expected) in [
            (vec![], SoleHolder::Nobody),
            (
                vec![Some(&one), Some(&one)],
                SoleHolder::One(one.clone(), vec![process; 2]),
            ),
            (vec![Some(&one), Some(&other)], SoleHolder::Several),
            (vec![Some(&one), None], SoleHolder::Several),
            (vec![None, Some(&one)], SoleHolder::Several),
        ] {
            let mut holder = SoleHolder::default();
            for owner in &owners {
                holder.add(owner.map(|owner| (process, owner.clone())));
            }
            assert_eq!(holder, expected, "{owners:?}");
        }
    }
}
