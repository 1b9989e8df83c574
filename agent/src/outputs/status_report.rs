//! The answer to `GET /v1/status`, and its JSON.
//!
//! Programs read the JSON, so it is a format of its own, [`Document`]: the object `snapshot` has the
//! books and the state of the agent side by side, in an order that stays. `flatten` of `serde` cannot
//! read it back, since it keeps values in a buffer without 128-bit integers.

use std::borrow::Cow;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::condition::degraded;
use super::instruments::VERSION;
use crate::core::input::{EventCounters, SourceHealth};
use crate::core::model::{BootTime, Clock, GpuUuid, Nanos, WallTime};
use crate::core::snapshot::{
    AgentBook, AllocationView, ContainerAccount, ContainerSeries, GpuBook, HostAccount, HostSeries,
    NamespaceSeries, Snapshot, SourceErrorBook, XidSeries,
};
use crate::published::{
    AgentStatus, NamesBook, NvmlCallBook, NvmlThreadBook, ProcessBook, Published, StoreBook,
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
        let document = Document::deserialize(deserializer)?;
        if document.format > STATUS_FORMAT {
            return Err(de::Error::custom(format!(
                "the status has format {}, and this gpuacct knows format {STATUS_FORMAT}",
                document.format
            )));
        }
        Ok(document.into())
    }
}

/// Version of the JSON. It is raised whenever a program that reads it could be misled: if a field goes,
/// or gets another name, type, unit or meaning. New fields and new words do not raise it.
pub const STATUS_FORMAT: u32 = 1;

/// The JSON of a report. `docs/STATUS.md` describes it, and a test compares the two.
#[derive(Serialize, Deserialize)]
struct Document<'a> {
    version: Cow<'a, str>,
    /// [`STATUS_FORMAT`]. An agent that does not say so has the first one.
    #[serde(default = "first_format")]
    format: u32,
    now: BootTime,
    now_wall: WallTime,
    degraded: Cow<'a, [String]>,
    nvml_blocked: Option<BlockedFor>,
    snapshot: Shown<'a>,
}

const fn first_format() -> u32 {
    1
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
    process: Option<ProcessBook>,
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
            process,
        } = &report.agent;
        Self {
            version: (&*report.version).into(),
            format: STATUS_FORMAT,
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
                process: *process,
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
                process: shown.process,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use serde_json::Value;

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

    /// What `docs/STATUS.md` says: of each object its fields, with their types.
    type Documented<'a> = BTreeMap<&'a str, BTreeMap<&'a str, &'a str>>;

    fn documented(page: &str) -> Documented<'_> {
        let sections = page.split("\n### `").skip(1);
        let section = |text| -> (_, _) {
            let (name, rest): (&str, &str) = str::split_once(text, '`').unwrap();
            let rows = rest.lines().filter_map(|line| {
                let mut cells = line.strip_prefix("| `")?.split(" | ");
                Some((cells.next()?.trim_end_matches('`'), cells.next()?))
            });
            (name, rows.collect())
        };
        sections.map(section).collect()
    }

    /// Compares a value with the type that is documented, and notes each field that it met.
    fn compare(
        value: &Value,
        kind: &str,
        place: &str,
        documented: &Documented<'_>,
        met: &mut BTreeSet<(String, String)>,
    ) {
        let object = kind
            .split_once("(#")
            .map(|(_, rest)| rest.split(')').next().unwrap());
        let fits = match value {
            Value::Null => kind.contains("or null"),
            Value::Bool(_) => kind.starts_with("boolean"),
            Value::Number(number) if number.is_f64() => kind.starts_with("number"),
            Value::Number(_) => kind.starts_with("integer"),
            Value::String(_) => kind.starts_with("text"),
            Value::Array(_) => kind.starts_with("list of "),
            Value::Object(_) => kind.starts_with("object") || kind.starts_with("map of text"),
        };
        assert!(fits, "{place} is documented as {kind:?}: {value}");
        match value {
            Value::Array(items) => {
                let of = kind.trim_start_matches("list of ").to_owned();
                let of = if object.is_some() {
                    format!("object {of}")
                } else {
                    of
                };
                for item in items {
                    if of.starts_with("pairs") {
                        assert!(item[0].is_string() && item[1].is_u64(), "{place}: {item}");
                    } else {
                        compare(item, &of, &format!("{place}[]"), documented, met);
                    }
                }
            }
            Value::Object(fields) if kind.starts_with("object") => {
                let name = object.unwrap_or_else(|| panic!("{place}: which object?"));
                let known = documented.get(name).unwrap_or_else(|| panic!("no {name}"));
                for (field, value) in fields {
                    let place = format!("{place}.{field}");
                    let kind = known.get(field.as_str());
                    let kind = kind.unwrap_or_else(|| panic!("{place} is not documented"));
                    met.insert((name.to_owned(), field.clone()));
                    compare(value, kind, &place, documented, met);
                }
            }
            _ => {}
        }
    }

    #[test]
    fn every_field_is_documented_with_its_type_and_no_other() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/STATUS.md");
        let page = std::fs::read_to_string(page).unwrap();
        let documented = documented(&page);
        let mut met = BTreeSet::new();
        let report = serde_json::to_value(report()).unwrap();
        let processes = serde_json::to_value(sample::processes()).unwrap();
        for (value, kind) in [
            (report, "object (#status)"),
            (processes, "list of (#processes)"),
        ] {
            compare(&value, kind, "", &documented, &mut met);
        }
        for (object, fields) in &documented {
            for field in fields.keys() {
                let is_met = met.contains(&((*object).to_owned(), (*field).to_owned()));
                assert!(is_met, "{object}.{field} is documented and not there");
            }
        }
        assert!(page.contains(&format!(
            "| `format` | integer | Version of this document: {STATUS_FORMAT} |"
        )));
    }

    #[test]
    fn a_report_survives_its_json() {
        let mut report = report();
        report.snapshot.accounts[0].amounts.memory = ByteSeconds(u128::MAX);
        let json = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<StatusReport>(&json).unwrap(), report);
    }

    #[test]
    fn a_report_in_a_newer_format_is_refused_by_its_number() {
        let mut value = serde_json::to_value(report()).unwrap();
        value["format"] = (STATUS_FORMAT + 1).into();
        let error = serde_json::from_value::<StatusReport>(value).unwrap_err();
        assert!(error.to_string().contains("has format 2"), "{error}");
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
