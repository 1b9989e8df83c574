//! Why there is no report from a store.

use crate::report::prices::MoneyError;
use crate::report::promql::StoreError;
use crate::report::zone::UnevenZone;

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// The store does not answer, or not what it should.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store has no metric of an agent.
    #[error("{url} has no metric of gpuacct from {since} to {until} that matches {vector}")]
    Nothing {
        /// The store.
        url: String,
        /// Beginning of the range.
        since: String,
        /// End of the range.
        until: String,
        /// What was looked for.
        vector: String,
    },
    /// The store lacks metrics without which there is no balance.
    #[error("{url} has metrics of gpuacct and lacks {}", lacks.join(", "))]
    Lacks {
        /// The store.
        url: String,
        /// The metrics.
        lacks: Vec<&'static str>,
    },
    /// Two answers do not fit together.
    #[error("the answers of {url} about {metric} contradict each other: it has {found}")]
    Contradiction {
        /// The store.
        url: String,
        /// The metric.
        metric: &'static str,
        /// What it has.
        found: &'static str,
    },
    /// The scraper has put the agent's namespace in the place of every owner's.
    #[error(
        "{url} says of every container that its namespace is {namespace:?}, which is the agent's own: the owners' labels were overwritten"
    )]
    OwnNamespace {
        /// The store.
        url: String,
        /// The agent's namespace.
        namespace: String,
    },
    /// The range has not begun.
    #[error("the range begins at {0}, which is in the future")]
    Future(String),
    /// The store has no labels of pods.
    #[error("{url} has no gpuacct_pod_labels, which has the labels of pods: the report asks for {}", asked.join(", "))]
    NoPodLabels {
        /// The store.
        url: String,
        /// The keys of the labels that are asked for.
        asked: Vec<String>,
    },
    /// The store has labels of pods, and not these.
    #[error(
        "gpuacct_pod_labels of {url} has no label of the key {} in the range, it has {}",
        lacks.join(", "),
        if has.is_empty() { "none".to_owned() } else { has.join(", ") }
    )]
    LacksPodLabels {
        /// The store.
        url: String,
        /// The keys of the labels that are asked for.
        lacks: Vec<String>,
        /// The labels that the metric has.
        has: Vec<String>,
    },
    /// Parts of allocated time are not published, so they have no cost.
    #[error(
        "the prices charge allocated time, and no metric says which part of a shared GPU is whose"
    )]
    AllocatedPrice,
    /// The range cannot be cut into hours of the zone.
    #[error(transparent)]
    Zone(#[from] UnevenZone),
    /// Prices, or what they come to.
    #[error(transparent)]
    Money(#[from] MoneyError),
}

impl FleetError {
    /// Whether less at a time may be answered.
    pub(super) fn is_too_much(&self) -> bool {
        matches!(self, Self::Store(error) if error.is_too_much())
    }

    /// Whether less at a time may be answered in time.
    pub(super) fn is_too_slow(&self) -> bool {
        matches!(self, Self::Store(error) if error.is_too_slow())
    }
}
