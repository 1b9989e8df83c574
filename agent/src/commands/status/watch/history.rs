//! What each GPU did in the last minutes, as the view saw it.
//!
//! The agent's counters say what became of the time between two commits. The view keeps the counters
//! of the commits that it saw, and divides each stretch between two of them evenly among the slots of
//! a graph. What was before the view began is not known and is left blank.

use std::collections::{BTreeMap, VecDeque};

use crate::core::model::{BootTime, GpuUuid, Nanos};
use crate::core::snapshot::{GpuBook, Snapshot};
use crate::figures::sum;

/// How far back a graph reaches.
pub(super) const SPAN: Nanos = Nanos::from_secs(120);
/// Commits kept, for each GPU. With more of them in the span, the oldest go.
const MAX_COMMITS: usize = 700;

/// A GPU's counters at one commit.
#[derive(Clone, Copy, Debug)]
struct Counters {
    at: BootTime,
    elapsed: Nanos,
    busy: Nanos,
    unowned: Nanos,
    unobserved: Nanos,
}

/// What became of a slot's time, as shares of the time that is accounted for.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Slot {
    /// Share of the time for which there are figures, of all of the slot.
    pub(super) known: f64,
    /// Busy, with or without an owner.
    pub(super) busy: f64,
    /// Busy without an owner.
    pub(super) unowned: f64,
    /// Not observed.
    pub(super) unobserved: f64,
}

/// The counters of the GPUs, by UUID.
#[derive(Debug, Default)]
pub(super) struct History {
    gpus: BTreeMap<GpuUuid, VecDeque<Counters>>,
}

impl History {
    /// Notes a commit. GPUs that it does not have are forgotten.
    pub(super) fn note(&mut self, snapshot: &Snapshot) {
        let at = snapshot.at;
        self.gpus
            .retain(|uuid, _| snapshot.gpus.iter().any(|book| book.gpu.uuid == *uuid));
        for book in &snapshot.gpus {
            let kept = self.gpus.entry(book.gpu.uuid.clone()).or_default();
            let now = Counters::of(book, at);
            // Another agent whose books begin anew, or a boot: the two have nothing between them.
            if kept
                .back()
                .is_some_and(|last| last.at >= at || last.elapsed > now.elapsed)
            {
                kept.clear();
            }
            kept.push_back(now);
            // One commit from before the span is the beginning of the first stretch in it.
            while kept.len() > MAX_COMMITS
                || kept.get(1).is_some_and(|next| at.since(next.at) > SPAN)
            {
                kept.pop_front();
            }
        }
    }

    /// The last minutes of a GPU until `now`, in this many slots of equal length.
    pub(super) fn slots(&self, gpu: &GpuUuid, now: BootTime, slots: usize) -> Vec<Slot> {
        let mut sums = vec![Slot::default(); slots];
        let Some(kept) = self.gpus.get(gpu).filter(|_| slots > 0) else {
            return sums;
        };
        let length = SPAN.0 / slots as u64;
        // Slots begin at multiples of their length, so that a figure stays in its slot.
        let end = now.0.div_ceil(length) * length;
        let begin = end.saturating_sub(length * slots as u64);
        let mut accounted = vec![0.0; slots];
        for (from, to) in kept.iter().zip(kept.iter().skip(1)) {
            let stretch = to.at.since(from.at).as_secs_f64();
            let elapsed = to.elapsed.minus(from.elapsed);
            for (number, sum) in sums.iter_mut().enumerate() {
                let slot_begin = begin + length * number as u64;
                let first = from.at.0.max(slot_begin);
                let last = to.at.0.min(slot_begin + length);
                if last <= first {
                    continue;
                }
                let overlap = Nanos(last - first).as_secs_f64();
                let part = overlap / stretch;
                sum.known += overlap / Nanos(length).as_secs_f64();
                let share = |later: Nanos, sooner: Nanos| later.minus(sooner).as_secs_f64() * part;
                accounted[number] += elapsed.as_secs_f64() * part;
                sum.busy += share(to.busy, from.busy);
                sum.unowned += share(to.unowned, from.unowned);
                sum.unobserved += share(to.unobserved, from.unobserved);
            }
        }
        for (sum, accounted) in sums.iter_mut().zip(accounted) {
            if accounted > 0.0 {
                sum.busy /= accounted;
                sum.unowned /= accounted;
                sum.unobserved /= accounted;
            } else {
                *sum = Slot::default();
            }
        }
        sums
    }
}

impl Counters {
    fn of(book: &GpuBook, at: BootTime) -> Self {
        Self {
            at,
            elapsed: book.elapsed,
            busy: book.busy,
            unowned: sum(&book.unattributed),
            unobserved: sum(&book.unobserved),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::model::{UnattributedReason, UnobservedReason};
    use crate::outputs::sample;

    fn commit(at: u64, busy: u64, unowned: u64, unobserved: u64) -> Snapshot {
        let mut snapshot = sample::snapshot();
        snapshot.at = BootTime(at * Nanos::SECOND.0);
        snapshot.gpus.truncate(1);
        let book = &mut snapshot.gpus[0];
        book.elapsed = Nanos::from_secs(at);
        book.busy = Nanos::from_secs(busy);
        book.unattributed = vec![(UnattributedReason::NoRow, Nanos::from_secs(unowned))];
        book.unobserved = vec![(UnobservedReason::SampleGap, Nanos::from_secs(unobserved))];
        snapshot
    }

    #[test]
    fn a_slot_has_the_shares_of_its_time_and_the_time_before_the_view_is_blank() {
        let mut history = History::default();
        // 60 s busy for a half, then 30 s of which a third has no owner, then 30 s unobserved.
        for (at, busy, unowned, unobserved) in [
            (1_000, 100, 0, 0),
            (1_030, 115, 0, 0),
            (1_060, 145, 10, 0),
            (1_090, 145, 10, 30),
        ] {
            history.note(&commit(at, busy, unowned, unobserved));
        }
        let gpu = GpuUuid::from(sample::FIRST_GPU);
        let now = BootTime(1_090 * Nanos::SECOND.0);
        // Slots of 30 s, of which the last begins at 1080.
        let slots = history.slots(&gpu, now, 4);
        let rounded: Vec<_> = slots
            .iter()
            .map(|slot| {
                [slot.known, slot.busy, slot.unowned, slot.unobserved]
                    .map(|share| (share * 100.0).round())
            })
            .collect();
        assert_eq!(
            rounded,
            [
                [67.0, 50.0, 0.0, 0.0],
                [100.0, 83.0, 22.0, 0.0],
                [100.0, 33.0, 11.0, 67.0],
                [33.0, 0.0, 0.0, 100.0],
            ]
        );
        assert!(history.slots(&gpu, now, 0).is_empty());
        let other = GpuUuid::from("GPU-0");
        assert_eq!(history.slots(&other, now, 2), [Slot::default(); 2]);
    }

    #[test]
    fn an_agent_that_begins_anew_leaves_no_figure_between_its_books_and_the_last_ones() {
        let mut history = History::default();
        history.note(&commit(1_000, 900, 0, 0));
        history.note(&commit(1_002, 902, 0, 0));
        let mut anew = commit(1_004, 1, 0, 0);
        anew.gpus[0].elapsed = Nanos::from_secs(2);
        history.note(&anew);
        let gpu = GpuUuid::from(sample::FIRST_GPU);
        let slots = history.slots(&gpu, BootTime(1_004 * Nanos::SECOND.0), 60);
        assert!(
            slots.iter().all(|slot| *slot == Slot::default()),
            "{slots:?}"
        );
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut history = History::default();
        for at in 1..2_000 {
            history.note(&commit(at, at, 0, 0));
        }
        let gpu = GpuUuid::from(sample::FIRST_GPU);
        assert_eq!(
            history.gpus[&gpu].len(),
            122,
            "a commit a second, two minutes"
        );
        history.note(&Snapshot::default());
        assert!(history.gpus.is_empty());
    }
}
