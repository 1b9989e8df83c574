//! What there is to say of a report from a store beside its figures.

use std::sync::Arc;

use super::balance::Apart;
use super::span::{LOOK_BACK, Span, WARM_UP};
use crate::core::model::{Nanos, UNRESOLVED};
use crate::outputs::store::query::GpuRecord;
use crate::report::hour::begin_of;
use crate::report::tally::{Question, Report};

/// Time that may be apart at the ends of the range: what is on its way between the books and the store.
const UNDER_WAY: Nanos = Nanos::from_secs(120);
/// GPUs or metrics that a message names at most.
const MOST_NAMED: usize = 8;

/// How far the store reaches.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reach {
    /// The first and the last hour with samples of a GPU.
    pub(super) active: Option<(i64, i64)>,
    /// Whether the store has anything from before that.
    pub(super) has_before: bool,
    /// How many hours of the range were read sample by sample.
    pub(super) fallen: usize,
}

/// What there is to say of a report from a store.
#[derive(Debug)]
pub(super) struct Remarks {
    asked: Nanos,
    warnings: Vec<String>,
    notes: Vec<String>,
    imbalance: Nanos,
    unbalanced: Vec<String>,
    late: Vec<String>,
}

impl Remarks {
    pub(super) fn of(reach: &Reach, span: &Span, question: &Question) -> Self {
        let show = |hour| question.zone.show(begin_of(hour));
        let mut remarks = Self {
            asked: Nanos::from_secs(u64::try_from(span.end - span.since()).unwrap_or(0)),
            warnings: Vec::new(),
            notes: Vec::new(),
            imbalance: Nanos::ZERO,
            unbalanced: Vec::new(),
            late: Vec::new(),
        };
        let since = show(span.hours.start);
        match reach.active {
            None => remarks.warnings.push(format!(
                "the store has no sample of a GPU from {since} on: the time is in no book"
            )),
            Some((first, last)) => {
                if !reach.has_before {
                    remarks.warnings.push(format!(
                        "the store has nothing from before the hour of {}, and the range begins at {since}: is \
                         its retention shorter than --since? Time of which it has nothing is in no book",
                        show(first)
                    ));
                }
                if last < span.hours.end - 1 && span.end > (last + 2) * 3_600 {
                    remarks.warnings.push(format!(
                        "the store has no sample of a GPU after the hour of {}: does it still scrape the agents?",
                        show(last)
                    ));
                }
            }
        }
        if reach.fallen > 0 {
            remarks.notes.push(format!(
                "counters began anew, or were taken up by another series, in {} hours: these were read \
                 sample by sample",
                reach.fallen
            ));
        }
        remarks.notes.push(format!(
            "exact to the last sample of each counter; values of the {} days before the range were looked for",
            (WARM_UP + LOOK_BACK) / 24
        ));
        remarks
    }

    /// Says for which GPUs the cluster is not known, if it matters.
    pub(super) fn clusters<'a>(
        &mut self,
        question: &Question,
        gpus: impl Iterator<Item = &'a GpuRecord>,
    ) {
        let Some(what) = question.needs_cluster() else {
            return;
        };
        let unnamed = gpus.filter(|gpu| &*gpu.cluster == UNRESOLVED).count();
        if unnamed > 0 {
            self.warnings.push(format!(
                "the series of {unnamed} GPUs do not say in which cluster they are, and {what} asks for it: --cluster-label names the label that does"
            ));
        }
    }

    /// Says that pods have no labels, if it matters.
    pub(super) fn unlabelled(&mut self, pods: usize) {
        if pods > 0 {
            self.warnings.push(format!(
                "the store has no labels of {pods} pods in the range, and the report asks for labels: these pods \
                 have (unresolved)"
            ));
        }
    }

    /// Adds what was found of a GPU.
    pub(super) fn gpu(&mut self, gpu: &Arc<str>, apart: Apart, elapsed: Nanos) {
        let wrong = apart
            .early
            .minus(UNDER_WAY)
            .plus(apart.short.minus(UNDER_WAY));
        if !wrong.is_zero() {
            self.imbalance += wrong;
            self.unbalanced.push(format!(
                "{gpu} (owners {} s above its busy time, parts {} s above its elapsed time)",
                apart.early.0 / 1_000_000_000,
                apart.short.0 / 1_000_000_000
            ));
        }
        let over = elapsed.minus(self.asked);
        if over > UNDER_WAY {
            self.late
                .push(format!("{gpu} ({} s)", over.0 / 1_000_000_000));
        }
    }

    pub(super) fn put(self, report: &mut Report) {
        let some = |mut names: Vec<String>| {
            let more = names.len().saturating_sub(MOST_NAMED);
            names.truncate(MOST_NAMED);
            let more = if more > 0 {
                format!(" and {more} more")
            } else {
                String::new()
            };
            format!("{}{more}", names.join(", "))
        };
        report.imbalance += self.imbalance;
        for warning in self.warnings {
            report.warn(warning);
        }
        if !self.unbalanced.is_empty() {
            report.warnings.push(format!(
                "the counters in the store do not balance: {}. Is a GPU counted by two agents?",
                some(self.unbalanced)
            ));
        }
        report.notes.extend(self.notes);
        if !self.late.is_empty() {
            report.notes.push(format!(
                "more time than the range has was first seen in it, after the store had been without samples: {}",
                some(self.late)
            ));
        }
    }
}
