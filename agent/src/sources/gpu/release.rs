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
    /// When the library is opened again.
    until: Instant,
    /// The same, for people.
    until_wall: WallTime,
    /// Those who wait until the library is closed.
    answers: Vec<oneshot::Sender<ReleaseReport>>,
}

impl Release {
    /// A release from now on.
    pub(super) fn of(time: Duration) -> Self {
        let (now, time_nanos) = (clock::now(), Nanos::from(time));
        Self {
            until: Instant::now() + time,
            until_wall: now.wall_of(now.boot.plus(time_nanos)),
            answers: Vec::new(),
        }
    }

    /// Answers somebody who has asked for it, once the library is closed.
    pub(super) fn answer_later(&mut self, answer: oneshot::Sender<ReleaseReport>) {
        self.answers.push(answer);
    }

    /// Whether it is over.
    pub(super) fn is_over(&self) -> bool {
        Instant::now() >= self.until
    }

    /// The library is closed, but for the threads of `stuck` GPUs. Answers all who wait.
    pub(super) fn closed(&mut self, stuck: &[u32]) {
        for answer in self.answers.drain(..) {
            let until = self.until_wall;
            let report = match stuck {
                [] => ReleaseReport::Released { until },
                gpus => ReleaseReport::Stuck {
                    until,
                    gpus: gpus.to_vec(),
                },
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
            next_retry: Some(after(self.until.saturating_duration_since(Instant::now()))),
        }
    }
}
