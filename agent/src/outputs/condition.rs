//! Whether the agent's figures can be relied upon now, and if not, why: one rule for `/readyz`,
//! the local socket and `gpuacct status`, so that they cannot disagree.
//!
//! A degraded agent still publishes, and its books still balance. Degraded means that somebody
//! should look at it. A lasting property of the hardware (a device without samples, rounding to
//! whole percents) does not count, or the word would lose its meaning.

use crate::core::model::{BootTime, Nanos, SourceState, UnattributedReason, UnobservedReason};
use crate::core::snapshot::Coverage;
use crate::published::Published;

/// Share of a minute that may be unobserved, or of its busy time that may have no owner for a
/// fixable reason, before the agent is degraded: one twentieth.
const COVERAGE_TOLERANCE: u64 = 20;
/// Kernel events that may be lost or be undecodable since the agent began: one in a thousand. Below
/// that the rescan of `/proc` has mended what mattered.
const EVENT_TOLERANCE: u64 = 1_000;
/// How long a call into NVML may take before it counts as blocked. Drivers are known to take a few
/// seconds over a first call.
pub const BLOCKED_AFTER: Nanos = Nanos::from_secs(10);
/// How old the last commit may be before the core counts as stuck. It commits every 2 s at most;
/// a machine that is short of CPU may take several times that.
pub const STUCK_AFTER: Nanos = Nanos::from_secs(30);

/// The reasons for which the agent is degraded; none if it is well.
///
/// 1. A source or receiver that was there, or has to be there, is down.
/// 2. The books of a GPU do not balance, or an account has more held or allocated time than has
///    passed.
/// 3. More than 5 % of the last minute was not observed, on a device that can be observed.
/// 4. More than 5 % of the last minute's busy time has no owner because a process, its cgroup or
///    an account was missing.
/// 5. More than one kernel event in a thousand was lost, was skipped by the kernel or could not be
///    decoded.
/// 6. A call into NVML has not returned for [`BLOCKED_AFTER`].
/// 7. Nothing has been committed yet, or not for [`STUCK_AFTER`].
#[must_use]
pub fn degraded(published: &Published, now: BootTime) -> Vec<String> {
    let snapshot = &published.books;
    let mut reasons = Vec::new();
    let age = now.since(snapshot.at);
    if snapshot.sequence == 0 {
        // What it waits for, if it can say, follows.
        reasons.push("nothing has been committed yet".to_owned());
    } else if age > STUCK_AFTER {
        reasons.push(format!(
            "the last commit is {} s old",
            age.0 / Nanos::SECOND.0
        ));
    }
    for source in &published.agent.sources {
        if let SourceState::Down { reason, .. } = &source.state {
            reasons.push(format!("{} is down: {reason}", source.source.as_str()));
        }
    }
    for book in &snapshot.gpus {
        let index = book.gpu.index;
        if book.imbalance != 0 {
            reasons.push(format!(
                "the books of gpu {index} are out of balance by {} ns",
                book.imbalance
            ));
        }
        if !book.excess.is_zero() {
            reasons.push(format!(
                "an account on gpu {index} has {} ns more held or allocated time than has passed",
                book.excess.0
            ));
        }
        coverage(index, &book.coverage, &mut reasons);
    }
    let events = &snapshot.events;
    for (count, what) in [
        (events.lost, "lost"),
        (events.undecodable, "undecodable"),
        (events.skipped, "skipped by the kernel"),
    ] {
        if count.saturating_mul(EVENT_TOLERANCE) > events.seen {
            reasons.push(format!("{count} of {} kernel events {what}", events.seen));
        }
    }
    if let Some(call) = &published.blocked {
        let waited = now.since(call.since);
        if waited >= BLOCKED_AFTER {
            let of = call.gpu.as_ref();
            let of = of.map_or_else(String::new, |gpu| format!(" on {gpu}"));
            reasons.push(format!(
                "the call {}{of} has been blocked for {} s",
                call.call,
                waited.0 / Nanos::SECOND.0
            ));
        }
    }
    reasons
}

fn coverage(index: u32, coverage: &Coverage, reasons: &mut Vec<String>) {
    let unobserved: Nanos = coverage
        .unobserved
        .iter()
        .filter(|(reason, _)| *reason != UnobservedReason::Unsupported)
        .map(|(_, amount)| *amount)
        .sum();
    let unowned: Nanos = coverage
        .unattributed
        .iter()
        .filter(|(reason, _)| match reason {
            UnattributedReason::UnknownPid
            | UnattributedReason::AmbiguousPid
            | UnattributedReason::UnconfirmedPid
            | UnattributedReason::UnknownCgroup
            | UnattributedReason::Overflow => true,
            // What the driver cannot tell is no fault of the agent's.
            UnattributedReason::BelowResolution
            | UnattributedReason::NoRow
            | UnattributedReason::MpsServer
            | UnattributedReason::SharedInstance => false,
        })
        .map(|(_, amount)| *amount)
        .sum();
    for (amount, whole, what) in [
        (unobserved, coverage.elapsed, "time was not observed"),
        (unowned, coverage.busy, "busy time has no owner"),
    ] {
        if amount.0.saturating_mul(COVERAGE_TOLERANCE) > whole.0 {
            reasons.push(format!(
                "{} % of gpu {index}'s {what} in the last minute",
                percent(amount, whole)
            ));
        }
    }
}

/// Whole percents of `whole`, at most 100; 100 where `whole` is nothing.
fn percent(part: Nanos, whole: Nanos) -> u64 {
    u128::from(part.0)
        .saturating_mul(100)
        .checked_div(u128::from(whole.0))
        .map_or(100, |percent| {
            u64::try_from(percent).unwrap_or(100).min(100)
        })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::core::model::SourceId;
    use crate::outputs::sample::{self, NOW};
    use crate::published::BlockedCall;

    fn healthy() -> Published {
        let mut published = sample::published();
        for source in &mut published.agent.sources {
            source.state = SourceState::Up;
        }
        let snapshot = &mut published.books;
        for book in &mut snapshot.gpus {
            book.coverage.unobserved.clear();
            book.coverage.unattributed.clear();
        }
        snapshot.events.lost = 0;
        snapshot.events.undecodable = 0;
        published
    }

    #[test]
    fn a_well_agent_has_no_reasons() {
        assert_eq!(degraded(&healthy(), NOW), Vec::<String>::new());
        assert_eq!(
            degraded(&Published::default(), NOW),
            ["nothing has been committed yet"]
        );
    }

    #[test]
    fn each_fault_is_a_reason_of_its_own() {
        type Fault = fn(&mut Published);
        let rows: [(Fault, &str); 10] = [
            (
                |s| {
                    s.agent.sources[3].state = SourceState::Down {
                        class: "refused".into(),
                        reason: "connection refused".into(),
                        next_retry: None,
                    };
                },
                "docker is down: connection refused",
            ),
            (
                |s| s.books.gpus[1].imbalance = -7,
                "the books of gpu 1 are out of balance by -7 ns",
            ),
            (
                |s| s.books.gpus[1].excess = Nanos(7),
                "an account on gpu 1 has 7 ns more held or allocated time than has passed",
            ),
            (
                |s| {
                    s.books.gpus[0].coverage.elapsed = Nanos(100);
                    s.books.gpus[0].coverage.unobserved = vec![
                        (UnobservedReason::SampleGap, Nanos(3)),
                        (UnobservedReason::DriverError, Nanos(3)),
                    ];
                },
                "6 % of gpu 0's time was not observed in the last minute",
            ),
            (
                |s| {
                    s.books.gpus[0].coverage.busy = Nanos(100);
                    s.books.gpus[0].coverage.unattributed =
                        vec![(UnattributedReason::UnknownPid, Nanos(6))];
                },
                "6 % of gpu 0's busy time has no owner in the last minute",
            ),
            (
                |s| {
                    s.books.events.seen = 1_999;
                    s.books.events.lost = 2;
                },
                "2 of 1999 kernel events lost",
            ),
            (
                |s| {
                    s.books.events.seen = 0;
                    s.books.events.undecodable = 1;
                },
                "1 of 0 kernel events undecodable",
            ),
            (
                |s| {
                    s.books.gpus[0].coverage.busy = Nanos(0);
                    s.books.gpus[0].coverage.unattributed =
                        vec![(UnattributedReason::Overflow, Nanos(u64::MAX))];
                },
                "100 % of gpu 0's busy time has no owner in the last minute",
            ),
            (
                |s| {
                    s.agent.sources[0].state = SourceState::Down {
                        class: "permission".into(),
                        reason: "CAP_BPF is missing".into(),
                        next_retry: Some(BootTime(1)),
                    };
                },
                "kernel is down: CAP_BPF is missing",
            ),
            (
                |s| s.books.at = NOW.minus(Nanos::from_secs(31)),
                "the last commit is 31 s old",
            ),
        ];
        for (fault, expected) in rows {
            let mut published = healthy();
            fault(&mut published);
            assert_eq!(degraded(&published, NOW), [expected]);
        }
    }

    #[test]
    fn lasting_properties_of_the_hardware_are_no_reasons() {
        let mut published = healthy();
        let coverage = &mut published.books.gpus[0].coverage;
        coverage.unobserved = vec![(UnobservedReason::Unsupported, coverage.elapsed)];
        coverage.unattributed = vec![
            (UnattributedReason::BelowResolution, coverage.busy),
            (UnattributedReason::NoRow, coverage.busy),
        ];
        published.agent.sources[3].state = SourceState::Absent;
        published.agent.sources[4].state = SourceState::Disabled;
        assert_eq!(published.agent.sources[4].source, SourceId::Otlp);
        assert_eq!(degraded(&published, NOW), Vec::<String>::new());
    }

    #[test]
    fn a_blocked_call_counts_after_its_allowance() {
        let mut call = BlockedCall {
            call: Arc::from("nvmlDeviceGetProcessUtilization"),
            gpu: None,
            since: NOW.minus(Nanos::from_secs(9)),
        };
        let reasons = |call: &BlockedCall| {
            let blocked = Some(call.clone());
            let published = Published {
                blocked,
                ..healthy()
            };
            degraded(&published, NOW)
        };
        assert_eq!(reasons(&call), Vec::<String>::new());
        call.since = NOW.minus(Nanos::from_secs(11));
        assert_eq!(
            reasons(&call),
            ["the call nvmlDeviceGetProcessUtilization has been blocked for 11 s"]
        );
        call.gpu = Some("GPU-7".into());
        assert_eq!(
            reasons(&call),
            ["the call nvmlDeviceGetProcessUtilization on GPU-7 has been blocked for 11 s"]
        );
    }
}
