//! Usage records: what each account used of a GPU in an hour, and what became of the GPU's hour, for
//! whoever wants them in SQL. This file has the nouns. The ledger knows which of them are due
//! (`outputs/store/outbox`), and an exporter sends them as log records of OTLP
//! (`outputs/otlp/records`). Neither sees the other.
//!
//! A record is sent at least once. The same record may arrive twice; then it has the same [`UsageRecord::id`]
//! and the same revision, and the same amounts and names. What changes later comes under the same id with
//! a greater revision. So the greatest revision of each id is the truth.
//!
//! Units are the core's: nanoseconds, byte-seconds, millijoules. Hours count from the Unix epoch and
//! are UTC's.

use std::sync::Arc;

use crate::core::amounts::{Amounts, Millijoules};
use crate::core::model::Nanos;

/// Whose hour a record is of, by the numbers of one ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subject {
    /// An account.
    Account(i64),
    /// A GPU.
    Gpu(i64),
}

/// One revision of one record, by which the ledger is told what became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordKey {
    /// Whose hour.
    pub subject: Subject,
    /// The hour.
    pub hour: i64,
    /// The revision, from 1.
    pub revision: i64,
}

/// A record as it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageRecord {
    /// Which one it is, for the ledger.
    pub key: RecordKey,
    /// Which one it is, for everybody else: the same for each revision, and never that of another
    /// record of any node.
    pub id: String,
    /// The GPU that it is about.
    pub gpu: RecordedGpu,
    /// What it says.
    pub content: RecordContent,
}

/// A GPU or a MIG instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedGpu {
    /// NVML's name of it.
    pub uuid: Arc<str>,
    /// What it is.
    pub model: Arc<str>,
    /// The profile of the MIG instance, if it is one.
    pub profile: Option<Arc<str>>,
    /// The GPU that such an instance is a part of.
    pub parent: Option<Arc<str>>,
}

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordContent {
    /// What an account used.
    Account(Box<AccountHour>),
    /// What became of the GPU's time.
    Gpu(GpuHour),
}

/// What an account used in an hour, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccountHour {
    /// `container`, `pod` or `host`.
    pub kind: Arc<str>,
    /// The container's id, the pod's uid, the host's unit.
    pub owner: Arc<str>,
    /// Kubernetes namespace, or a marker in parentheses; so are the next four.
    pub namespace: Arc<str>,
    /// Pod name.
    pub pod: Arc<str>,
    /// Container name.
    pub container: Arc<str>,
    /// Pod uid.
    pub pod_uid: Arc<str>,
    /// Container id.
    pub container_id: Arc<str>,
    /// Image of the container, as its runtime names it.
    pub image: Arc<str>,
    /// Container runtime, by the form of the path.
    pub runtime: Arc<str>,
    /// How far its names are known: `held`, `named`, `id_only`, `host` or `overflow`.
    pub attribution: Arc<str>,
    /// All labels that its runtime gave, a JSON object.
    pub labels: Arc<str>,
    /// The amounts.
    pub amounts: Amounts,
}

/// What became of a GPU's hour.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GpuHour {
    /// Time accounted for.
    pub elapsed: Nanos,
    /// Busy time, by the device's own samples.
    pub busy: Nanos,
    /// Idle time.
    pub idle: Nanos,
    /// All energy.
    pub energy: Millijoules,
    /// Energy of idle time.
    pub energy_idle: Millijoules,
    /// Energy of busy time without an owner.
    pub energy_unattributed: Millijoules,
    /// Busy time without an owner, by reason.
    pub unattributed: Vec<(Arc<str>, Nanos)>,
    /// Unobserved time, by reason.
    pub unobserved: Vec<(Arc<str>, Nanos)>,
}

/// Why the ledger neither gives records nor takes back what became of them.
#[derive(Debug, thiserror::Error)]
#[error("cannot ask the ledger for records: {reason}")]
pub struct OutboxError {
    /// The ledger's error, with its causes.
    pub reason: String,
}

/// Where records wait until somebody has taken them.
pub trait Outbox {
    /// The oldest records that are due, `most` at most, and notes that they may have been sent from
    /// here on.
    fn offer(
        &self,
        most: usize,
    ) -> impl Future<Output = Result<Vec<UsageRecord>, OutboxError>> + Send;

    /// Notes that these revisions need not be sent again.
    fn settle(&self, keys: Vec<RecordKey>) -> impl Future<Output = Result<(), OutboxError>> + Send;
}
