//! The health of GPUs, as a snapshot has it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::input::{HealthFigure, HealthFigures, HealthGroup, Reading, ThrottleReason};
use crate::model::{BootTime, Nanos, WallTime};

/// The health of one GPU by its last reading, and what has been counted since the agent started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthBook {
    /// When it was last read.
    pub at: BootTime,
    /// The figures of that reading. Each is failed if the reading is too old to say anything of now.
    pub figures: HealthFigures,
    /// Growth of the driver's counts.
    pub counts: Vec<HealthCount>,
    /// For how long clocks were reduced, by reason: every reason, also those at zero. Absent until
    /// NVML has told of reasons.
    pub throttled: Option<ThrottleBook>,
}

/// By how much a count of the driver has grown. A count that began again at zero, because the driver
/// was loaded anew, has not fallen here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCount {
    /// The count.
    pub figure: HealthFigure,
    /// Its growth since `start`.
    pub total: u64,
    /// When it was first read.
    pub start: WallTime,
}

/// For how long clocks were reduced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThrottleBook {
    /// Since when.
    pub start: WallTime,
    /// The time of each reason. Reasons overlap.
    pub times: Vec<(ThrottleReason, Nanos)>,
}

/// What became of the queries of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueryState {
    /// At least one figure is there, and no query failed.
    Ok,
    /// The GPU or the driver offers none of them.
    Unsupported,
    /// A query failed.
    Failed,
}

impl QueryState {
    /// Every state.
    pub const ALL: [Self; 3] = [Self::Ok, Self::Unsupported, Self::Failed];

    /// Returns the value as used in labels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Unsupported => "unsupported",
            Self::Failed => "failed",
        }
    }
}

impl HealthBook {
    /// A figure, if there is one now.
    #[must_use]
    pub fn value(&self, figure: HealthFigure) -> Option<i64> {
        self.figures.get(&figure)?.value()
    }

    /// The state of each group that was asked for.
    #[must_use]
    pub fn states(&self) -> BTreeMap<HealthGroup, QueryState> {
        let mut states = BTreeMap::new();
        for (figure, reading) in &self.figures {
            let state = states
                .entry(figure.group())
                .or_insert(QueryState::Unsupported);
            match reading {
                Reading::Failed => *state = QueryState::Failed,
                Reading::Ok(_) if *state == QueryState::Unsupported => *state = QueryState::Ok,
                Reading::Ok(_) | Reading::Unsupported => {}
            }
        }
        states
    }
}
