//! Whether a GPU itself is well, and if not, what is wrong: one rule for the metric of its status and
//! for `gpuacct status`.
//!
//! This is about the hardware. Whether the agent's figures can be relied upon is another question, see
//! [`condition`](super::condition). What lasts and is no fault, such as a power cap, is none of it.

use crate::core::input::{HealthFigure, RecoveryAction, ThrottleReason};
use crate::core::model::{Nanos, WallTime};
use crate::core::snapshot::{GpuBook, HealthBook, QueryState, XidSeries};

/// How long an Xid error is something to look at.
pub const XID_RECENT: Nanos = Nanos::from_secs(600);

/// State of a GPU, by the values of `hw.state` in OpenTelemetry's semantic conventions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum GpuStatus {
    /// Nothing is wrong, as far as is known.
    Ok,
    /// It works, and somebody should look at it.
    Degraded,
    /// It has to be reset or replaced.
    Failed,
}

impl GpuStatus {
    /// Every state.
    pub const ALL: [Self; 3] = [Self::Ok, Self::Degraded, Self::Failed];

    /// Returns the value as used in labels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Degraded => "degraded",
            Self::Failed => "failed",
        }
    }
}

/// What is wrong with a GPU, the gravest first, each in a few words. What is to be known and is no fault
/// of the GPU comes last, as [`GpuStatus::Ok`].
#[must_use]
pub fn troubles(book: &GpuBook, xids: &[XidSeries], now: WallTime) -> Vec<(GpuStatus, String)> {
    let mut found = Vec::new();
    if let Some(health) = &book.health {
        lasting(health, &mut found);
        present(health, &mut found);
    }
    let mut recent: Vec<&XidSeries> = xids
        .iter()
        .filter(|series| series.gpu == book.gpu.uuid && is_recent(series, now))
        .collect();
    // The last of each number.
    recent.sort_by_key(|series| (series.xid, std::cmp::Reverse(series.last)));
    recent.dedup_by_key(|series| series.xid);
    recent.sort_by_key(|series| std::cmp::Reverse(series.last));
    for series in recent {
        let age = Nanos(now.0.saturating_sub(series.last.0));
        let seconds = age.0 / Nanos::SECOND.0;
        let who = owner(series);
        let text = format!("Xid {} {seconds}s ago, by {who}", series.xid);
        found.push((GpuStatus::Degraded, text));
    }
    found.sort_by_key(|(status, _)| std::cmp::Reverse(*status));
    found
}

/// The state of a GPU; none if its health is not known.
#[must_use]
pub fn status(book: &GpuBook, xids: &[XidSeries], now: WallTime) -> Option<GpuStatus> {
    let gravest = troubles(book, xids, now).first().map(|(status, _)| *status);
    let is_known = book.health.is_some();
    gravest.or_else(|| is_known.then_some(GpuStatus::Ok))
}

fn is_recent(series: &XidSeries, now: WallTime) -> bool {
    now.0.saturating_sub(series.last.0) <= XID_RECENT.0
}

fn owner(series: &XidSeries) -> String {
    let labels = &series.labels;
    match (&*labels.namespace, &*labels.container) {
        ("(none)", "(none)") => series.unit.to_string(),
        ("(none)", container) => container.to_owned(),
        (namespace, container) if namespace == container => namespace.to_owned(),
        (namespace, container) => format!("{namespace}/{}/{container}", labels.pod),
    }
}

/// What stays until somebody does something.
fn lasting(health: &HealthBook, found: &mut Vec<(GpuStatus, String)>) {
    let value = |figure| health.value(figure).unwrap_or(0);
    let action = RecoveryAction::of(value(HealthFigure::RecoveryAction));
    if action != RecoveryAction::None {
        let text = format!("NVML recommends to recover it: {}", action.as_str());
        found.push((GpuStatus::Failed, text));
    }
    for (figure, status, text) in [
        (
            HealthFigure::RemapFailed,
            GpuStatus::Failed,
            "a row of its memory could not be remapped",
        ),
        (
            HealthFigure::RemapPending,
            GpuStatus::Degraded,
            "rows of its memory wait for a reset to be remapped",
        ),
        (
            HealthFigure::RetirementPending,
            GpuStatus::Degraded,
            "pages of its memory wait for a reset to be retired",
        ),
    ] {
        if value(figure) != 0 {
            found.push((status, text.to_owned()));
        }
    }
    let uncorrected = health.counts.iter();
    let uncorrected = uncorrected
        .filter(|count| count.figure == HealthFigure::EccUncorrectedVolatile)
        .map(|count| count.total)
        .sum::<u64>();
    if uncorrected > 0 {
        let text = format!("{uncorrected} ECC errors were not corrected");
        found.push((GpuStatus::Degraded, text));
    }
}

/// What is so now.
fn present(health: &HealthBook, found: &mut Vec<(GpuStatus, String)>) {
    let bits = health.value(HealthFigure::ThrottleReasons).unwrap_or(0);
    let reasons: Vec<&str> = ThrottleReason::ALL
        .into_iter()
        .filter(|reason| reason.needs_attention() && bits & reason.bit() != 0)
        .map(ThrottleReason::as_str)
        .collect();
    if !reasons.is_empty() {
        let text = format!("slowed down: {}", reasons.join(", "));
        found.push((GpuStatus::Degraded, text));
    }
    let states = health.states();
    let of = |wanted: QueryState| {
        let groups = states.iter().filter(move |(_, state)| **state == wanted);
        groups.map(|(group, _)| group.as_str())
    };
    let failed: Vec<&str> = of(QueryState::Failed).collect();
    if failed.is_empty() {
        return;
    }
    if of(QueryState::Ok).next().is_none() {
        found.push((GpuStatus::Degraded, "its health cannot be read".to_owned()));
    } else {
        // Some drivers fail where they should say that they do not offer it. That is no fault of the GPU.
        let text = format!("cannot be read: {}", failed.join(", "));
        found.push((GpuStatus::Ok, text));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::core::input::Reading;
    use crate::core::model::{NONE, UNRESOLVED};
    use crate::core::snapshot::ContainerLabels;
    use crate::outputs::sample;

    fn book(figures: &[(HealthFigure, Reading)]) -> GpuBook {
        let mut book = sample::snapshot().gpus.remove(0);
        let health = book.health.as_mut().expect("it is known");
        health.counts.clear();
        health.figures = figures.iter().copied().collect();
        book
    }

    #[test]
    fn a_gpu_is_as_bad_as_the_worst_that_is_known_of_it() {
        use HealthFigure::{Power, RecoveryAction, RemapFailed, RemapPending, ThrottleReasons};
        use Reading::{Failed, Ok, Unsupported};
        for (figures, expected) in [
            (vec![(Power, Ok(1))], vec![]),
            (vec![(Power, Unsupported)], vec![]),
            // Neither idleness nor a power cap nor set clocks.
            (vec![(ThrottleReasons, Ok(0x1 | 0x4 | 0x2))], vec![]),
            (
                vec![(ThrottleReasons, Ok(0x44))],
                vec![(GpuStatus::Degraded, "slowed down: hardware_thermal")],
            ),
            (
                vec![(RemapPending, Ok(1)), (RemapFailed, Ok(1))],
                vec![
                    (
                        GpuStatus::Failed,
                        "a row of its memory could not be remapped",
                    ),
                    (
                        GpuStatus::Degraded,
                        "rows of its memory wait for a reset to be remapped",
                    ),
                ],
            ),
            (
                vec![(RecoveryAction, Ok(2))],
                vec![(GpuStatus::Failed, "NVML recommends to recover it: reboot")],
            ),
            (
                vec![(Power, Failed), (RemapPending, Ok(0))],
                vec![(GpuStatus::Ok, "cannot be read: power")],
            ),
            (
                vec![(Power, Failed), (RemapPending, Failed)],
                vec![(GpuStatus::Degraded, "its health cannot be read")],
            ),
            (
                vec![(Power, Failed), (RemapPending, Unsupported)],
                vec![(GpuStatus::Degraded, "its health cannot be read")],
            ),
        ] {
            let found = troubles(&book(&figures), &[], WallTime(0));
            let found: Vec<_> = found
                .iter()
                .map(|(status, text)| (*status, &**text))
                .collect();
            assert_eq!(found, expected, "{figures:?}");
        }
        let mut unknown = book(&[]);
        unknown.health = None;
        assert_eq!(status(&unknown, &[], WallTime(0)), None);
        assert_eq!(
            status(&book(&[(Power, Ok(1))]), &[], WallTime(0)),
            Some(GpuStatus::Ok)
        );
    }

    #[test]
    fn an_xid_error_is_something_to_look_at_for_ten_minutes() {
        let book = book(&[(HealthFigure::Power, Reading::Ok(1))]);
        let labels = |namespace: &str, container: &str| {
            Arc::new(ContainerLabels {
                namespace: namespace.into(),
                pod: "train-0".into(),
                container: container.into(),
                pod_uid: NONE.into(),
                container_id: NONE.into(),
            })
        };
        let series = |labels, unit: &str| XidSeries {
            gpu: book.gpu.uuid.clone(),
            xid: 31,
            labels,
            unit: unit.into(),
            count: 1,
            published: 0,
            start: WallTime(0),
            last: WallTime(5 * Nanos::SECOND.0),
        };
        for (series, expected) in [
            (series(labels("ml", "main"), NONE), "ml/train-0/main"),
            (series(labels(NONE, "jupyter"), NONE), "jupyter"),
            (series(labels(NONE, NONE), "sshd.service"), "sshd.service"),
            (
                series(labels(UNRESOLVED, UNRESOLVED), UNRESOLVED),
                UNRESOLVED,
            ),
        ] {
            let at = |seconds: u64| {
                let now = WallTime(seconds * Nanos::SECOND.0);
                troubles(&book, std::slice::from_ref(&series), now)
            };
            let text = format!("Xid 31 600s ago, by {expected}");
            assert_eq!(at(605), [(GpuStatus::Degraded, text)]);
            assert_eq!(at(606), []);
        }
    }
}
