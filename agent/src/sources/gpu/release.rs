//! A release of the GPUs that somebody has asked for: until when, and who waits for it.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::fault::RELEASED;
use super::health::after;
use crate::core::model::{Nanos, SourceState, WallTime};
use crate::gpu_release::ReleaseReport;
use crate::sources::clock;

/// A release that is under way or done.
#[derive(Debug)]
pub(super) struct Release {
    time: Duration,
    /// When the library is opened again, and the same for people. Absent until it is closed.
    until: Option<(Instant, WallTime)>,
    /// Those who wait until the library is closed.
    answers: Vec<oneshot::Sender<ReleaseReport>>,
}

impl Release {
    /// A release for this time, which begins when the library is closed.
    pub(super) const fn of(time: Duration) -> Self {
        Self {
            time,
            until: None,
            answers: Vec::new(),
        }
    }

    /// Answers somebody who has asked for it, once the library is closed.
    pub(super) fn answer_later(&mut self, answer: oneshot::Sender<ReleaseReport>) {
        self.answers.push(answer);
    }

    /// Whether it is over.
    pub(super) fn is_over(&self) -> bool {
        self.until.is_some_and(|(until, _)| Instant::now() >= until)
    }

    /// The library is closed, or is as soon as the threads that are stuck in it return: those of `stuck`
    /// GPUs and, if `waits_for_events`, the one that waits for events. Answers all who wait.
    pub(super) fn closed(&mut self, stuck: &[u32], waits_for_events: bool) {
        let time = self.time;
        let (_, until) = *self.until.get_or_insert_with(|| {
            let now = clock::now();
            let wall = now.wall_of(now.boot.plus(Nanos::from(time)));
            (Instant::now() + time, wall)
        });
        for answer in self.answers.drain(..) {
            let report = if stuck.is_empty() && !waits_for_events {
                ReleaseReport::Released { until }
            } else {
                ReleaseReport::Stuck {
                    until,
                    gpus: stuck.to_vec(),
                }
            };
            // Whoever has waited for too long is gone.
            let _ = answer.send(report);
        }
    }

    /// The state of the source meanwhile.
    pub(super) fn state(&self) -> SourceState {
        SourceState::Down {
            class: RELEASED.into(),
            reason: "`gpuacct release` has let go of the GPUs for a while".into(),
            next_retry: Some(after(match self.until {
                Some((until, _)) => until.saturating_duration_since(Instant::now()),
                None => self.time,
            })),
        }
    }
}
