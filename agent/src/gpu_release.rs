//! Letting go of the GPUs for a while, so that the driver can be replaced or a GPU divided anew while
//! the agent runs: what is asked of the source of GPU time, and what it answers.

use std::ops::RangeInclusive;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::core::model::WallTime;

/// How long the GPUs can be released. By the end of it the agent takes them up again by itself, so
/// that a forgotten release does not leave a node without figures.
pub const ALLOWED: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(86_400);

/// What the source of GPU time is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Close NVML, and open it again after this time. Replaces the end of an earlier release.
    Release(Duration),
    /// Open NVML again now.
    TakeUp,
}

/// A request to the source of GPU time.
#[derive(Debug)]
pub struct ReleaseOrder {
    /// What it is to do.
    pub wanted: Wanted,
    /// Where the answer goes once it is done. Dropped if another request has replaced this one.
    pub answer: oneshot::Sender<ReleaseReport>,
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum ReleaseReport {
    /// NVML is closed. The agent has no handle of it and no mapping of its library.
    Released {
        /// When it is opened again.
        until: WallTime,
    },
    /// The agent calls NVML no more, but a call that has not returned keeps the library open.
    Stuck {
        /// When NVML is opened again.
        until: WallTime,
        /// The GPUs whose calls have not returned, as NVML numbers them. Empty if it is the call that
        /// waits for events of all GPUs.
        gpus: Vec<u32>,
    },
    /// NVML is being opened.
    TakenUp,
}
