//! The answer to `GET /v1/status`, and its JSON.
//!
//! Programs read the JSON, so it is a format of its own, [`Document`]: the object `snapshot` has the
//! books and the state of the agent side by side, in an order that stays. `flatten` of `serde` cannot
//! read it back, since it keeps values in a buffer without 128-bit integers.

use std::borrow::Cow;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::condition::degraded;
use super::instruments::VERSION;
use crate::core::input::{EventCounters, SourceHealth};
use crate::core::model::{BootTime, Clock, GpuUuid, Nanos, WallTime};
use crate::core::snapshot::{
    AgentBook, AllocationView, ContainerAccount, ContainerSeries, GpuBook, HostAccount, HostSeries,
    NamespaceSeries, Snapshot, SourceErrorBook, XidSeries,
};
use crate::published::{
    AgentStatus, NamesBook, NvmlCallBook, NvmlThreadBook, Published, StoreBook,
};

/// The agent's answer to `GET /v1/status`.
#[derive(Clone, Debug, PartialEq)]
pub struct StatusReport {
    /// The agent's version.
    pub version: String,
    /// When the answer was made, on the boot clock.
    pub now: BootTime,
    /// The same instant on the wall clock.
    pub now_wall: WallTime,
    /// Why the agent is degraded; nothing if it is well.
    pub degraded: Vec<String>,
    /// The call into NVML that has not returned.
    pub nvml_blocked: Option<BlockedFor>,
    /// The books as of the last commit.
    pub snapshot: Snapshot,
    /// How the agent itself is.
    pub agent: AgentStatus,
}

impl StatusReport {
    /// What this agent says at `now`.
    #[must_use]
    pub fn new(published: &Published, now: Clock) -> Self {
        let blocked = published.blocked.as_ref();
        Self {
            version: VERSION.to_owned(),
            now: now.boot,
            now_wall: now.wall,
            degraded: degraded(published, now.boot),
            nvml_blocked: blocked.map(|call| BlockedFor {
                call: Arc::clone(&call.call),
                gpu: call.gpu.clone(),
                waited: now.boot.since(call.since),
            }),
            snapshot: published.books.clone(),
            agent: published.agent.clone(),
        }
    }
}

/// A call into NVML that has not returned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockedFor {
    /// The function's name.
    pub call: Arc<str>,
    /// The GPU that it asks about, if one.
    pub gpu: Option<GpuUuid>,
    /// For how long, in nanoseconds.
    #[serde(rename = "for")]
    pub waited: Nanos,
}

impl Serialize for StatusReport {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Document::from(self).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for StatusReport {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Document::deserialize(deserializer).map(Self::from)
    }
}

/// The JSON of a report.
#[derive(Serialize, Deserialize)]
struct Document<'a> {
    version: Cow<'a, str>,
    now: BootTime,
    now_wall: WallTime,
    degraded: Cow<'a, [String]>,
    nvml_blocked: Option<BlockedFor>,
    snapshot: Shown<'a>,
}

/// The object `snapshot`: all of the books and of the agent's status. What has a default was not
/// there in the first versions.
#[derive(Serialize, Deserialize)]
struct Shown<'a> {
    sequence: u64,
    at: BootTime,
    wall: WallTime,
    agent_started: WallTime,
    gpus: Cow<'a, [GpuBook]>,
    container_series: Cow<'a, [ContainerSeries]>,
    namespace_series: Cow<'a, [NamespaceSeries]>,
    host_series: Cow<'a, [HostSeries]>,
    accounts: Cow<'a, [ContainerAccount]>,
    #[serde(default)]
    host_accounts: Cow<'a, [HostAccount]>,
    sources: Cow<'a, [SourceHealth]>,
    events: EventCounters,
    agent: AgentBook,
    source_errors: Cow<'a, [SourceErrorBook]>,
    names: Cow<'a, [NamesBook]>,
    nvml_calls: Cow<'a, [NvmlCallBook]>,
    #[serde(default)]
    nvml_threads: NvmlThreadBook,
    allocations_known: bool,
    allocations: Cow<'a, [AllocationView]>,
    #[serde(default)]
    store: Option<StoreBook>,
    #[serde(default)]
    xids: Cow<'a, [XidSeries]>,
}

impl<'a> From<&'a StatusReport> for Document<'a> {
    fn from(report: &'a StatusReport) -> Self {
        // Without `..`: the compiler demands a place in the document for each new field.
        let Snapshot {
            sequence,
            at,
            wall,
            agent_started,
            gpus,
            container_series,
            namespace_series,
            host_series,
            accounts,
            host_accounts,
            events,
            agent,
            allocations_known,
            allocations,
            xids,
        } = &report.snapshot;
        let AgentStatus {
            sources,
            source_errors,
            names,
            nvml_calls,
            nvml_threads,
            store,
        } = &report.agent;
        Self {
            version: (&*report.version).into(),
            now: report.now,
            now_wall: report.now_wall,
            degraded: (&*report.degraded).into(),
            nvml_blocked: report.nvml_blocked.clone(),
            snapshot: Shown {
                sequence: *sequence,
                at: *at,
                wall: *wall,
                agent_started: *agent_started,
                gpus: gpus.into(),
                container_series: container_series.into(),
                namespace_series: namespace_series.into(),
                host_series: host_series.into(),
                accounts: accounts.into(),
                host_accounts: host_accounts.into(),
                sources: sources.into(),
                events: *events,
                agent: *agent,
                source_errors: source_errors.into(),
                names: names.into(),
                nvml_calls: nvml_calls.into(),
                nvml_threads: *nvml_threads,
                allocations_known: *allocations_known,
                allocations: allocations.into(),
                store: *store,
                xids: xids.into(),
            },
        }
    }
}

impl From<Document<'_>> for StatusReport {
    fn from(document: Document<'_>) -> Self {
        let shown = document.snapshot;
        Self {
            version: document.version.into_owned(),
            now: document.now,
            now_wall: document.now_wall,
            degraded: document.degraded.into_owned(),
            nvml_blocked: document.nvml_blocked,
            snapshot: Snapshot {
                sequence: shown.sequence,
                at: shown.at,
                wall: shown.wall,
                agent_started: shown.agent_started,
                gpus: shown.gpus.into_owned(),
                container_series: shown.container_series.into_owned(),
                namespace_series: shown.namespace_series.into_owned(),
                host_series: shown.host_series.into_owned(),
                accounts: shown.accounts.into_owned(),
                host_accounts: shown.host_accounts.into_owned(),
                events: shown.events,
                agent: shown.agent,
                allocations_known: shown.allocations_known,
                allocations: shown.allocations.into_owned(),
                xids: shown.xids.into_owned(),
            },
            agent: AgentStatus {
                sources: shown.sources.into_owned(),
                source_errors: shown.source_errors.into_owned(),
                names: shown.names.into_owned(),
                nvml_calls: shown.nvml_calls.into_owned(),
                nvml_threads: shown.nvml_threads,
                store: shown.store,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::amounts::ByteSeconds;
    use crate::outputs::sample::{self, FIRST_GPU, NOW, golden};
    use crate::published::BlockedCall;

    fn report() -> StatusReport {
        let published = Published {
            blocked: Some(BlockedCall {
                call: "nvmlInit_v2".into(),
                gpu: Some(FIRST_GPU.into()),
                since: NOW.minus(Nanos::from_secs(12)),
            }),
            ..sample::published()
        };
        let now = Clock {
            boot: NOW,
            wall: WallTime(5),
        };
        StatusReport::new(&published, now)
    }

    #[test]
    fn the_report_has_the_same_text_as_ever() {
        // The compact form differs from it in white space alone.
        let mut text = serde_json::to_string_pretty(&report()).unwrap();
        text.push('\n');
        golden("status.json", &text);
    }

    #[test]
    fn a_report_survives_its_json() {
        let mut report = report();
        report.snapshot.accounts[0].amounts.memory = ByteSeconds(u128::MAX);
        let json = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<StatusReport>(&json).unwrap(), report);
    }

    #[test]
    fn a_report_of_an_agent_from_before_the_store_is_read() {
        let mut report = report();
        let mut value = serde_json::to_value(&report).unwrap();
        let snapshot = value["snapshot"].as_object_mut().unwrap();
        for field in ["host_accounts", "nvml_threads", "store"] {
            assert!(snapshot.remove(field).is_some(), "{field}");
        }
        report.snapshot.host_accounts.clear();
        report.agent.nvml_threads = NvmlThreadBook::default();
        report.agent.store = None;
        let json = value.to_string();
        assert_eq!(serde_json::from_str::<StatusReport>(&json).unwrap(), report);
    }
}
