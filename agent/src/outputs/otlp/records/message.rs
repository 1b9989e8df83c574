//! Usage records as log records of OTLP.
//!
//! Names are those of the semantic conventions, and `gpuacct.` where these have none. Amounts are
//! integers in the units that their names end in. Memory over time is a decimal text: it has 128 bits,
//! of which an integer of OTLP has 64, and one attribute of one type is read by one expression in SQL.

use std::collections::BTreeMap;
use std::sync::Arc;

use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::common::v1::{InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs, SeverityNumber};
use opentelemetry_proto::tonic::resource::v1::Resource;

use crate::core::amounts::Engine;
use crate::core::model::{NONE, Nanos, WallTime};
use crate::outputs::instruments::VERSION;
use crate::outputs::instruments::conventions::{SCHEMA_URL, attribute_name};
use crate::outputs::otlp::attributes::{VENDOR, attribute, image, with};
use crate::outputs::receiver::Origin;
use crate::usage_record::{AccountHour, GpuHour, RecordContent, UsageRecord};

/// The name of the event that a record is.
pub(super) const EVENT: &str = "gpuacct.usage";
/// Nanoseconds of an hour.
const HOUR: u64 = 3_600_000_000_000;

/// A message with these records, as of `now`. Of the labels of pods it has `pod_labels`.
pub(super) fn of(
    records: &[UsageRecord],
    origin: &Origin,
    pod_labels: &[String],
    now: WallTime,
) -> ExportLogsServiceRequest {
    let own = origin.attributes();
    let log_records = records.iter().map(|record| LogRecord {
        // The beginning of the hour, so that a table which is divided by time has the usage where it was.
        time_unix_nano: u64::try_from(record.key.hour)
            .unwrap_or(0)
            .saturating_mul(HOUR),
        observed_time_unix_nano: now.0,
        // Some pipelines drop what has no severity.
        severity_number: SeverityNumber::Info.into(),
        severity_text: "INFO".to_owned(),
        event_name: EVENT.to_owned(),
        attributes: attributes(record, pod_labels),
        ..LogRecord::default()
    });
    ExportLogsServiceRequest {
        resource_logs: vec![ResourceLogs {
            resource: Some(Resource {
                attributes: own.map(|(key, value)| attribute(key, value)).collect(),
                ..Resource::default()
            }),
            scope_logs: vec![ScopeLogs {
                scope: Some(InstrumentationScope {
                    name: "gpuacct".to_owned(),
                    version: VERSION.to_owned(),
                    ..InstrumentationScope::default()
                }),
                log_records: log_records.collect(),
                schema_url: SCHEMA_URL.to_owned(),
            }],
            schema_url: SCHEMA_URL.to_owned(),
        }],
    }
}

fn attributes(record: &UsageRecord, pod_labels: &[String]) -> Vec<KeyValue> {
    let gpu = &record.gpu;
    let kind = match record.content {
        RecordContent::Account(_) => "account",
        RecordContent::Gpu(_) => "gpu",
    };
    let mut all = vec![
        attribute("gpuacct.record.id", &record.id),
        integer("gpuacct.record.revision", record.key.revision),
        attribute("gpuacct.record.kind", kind),
        attribute("hw.id", &gpu.uuid),
        attribute("hw.type", "gpu"),
        attribute("hw.vendor", VENDOR),
    ];
    if !gpu.model.is_empty() {
        all.push(attribute("hw.model", &gpu.model));
    }
    if let Some(parent) = &gpu.parent {
        all.push(attribute("hw.parent", parent));
    }
    if let Some(profile) = &gpu.profile {
        all.push(attribute("gpuacct.mig_profile", profile));
    }
    match &record.content {
        RecordContent::Account(account) => of_account(account, pod_labels, &mut all),
        RecordContent::Gpu(hour) => of_gpu(hour, &mut all),
    }
    all
}

fn of_account(account: &AccountHour, pod_labels: &[String], all: &mut Vec<KeyValue>) {
    all.push(attribute("gpuacct.owner.kind", &account.kind));
    all.push(attribute("gpuacct.attribution", &account.attribution));
    if &*account.kind == "host" {
        all.push(attribute("gpuacct.unit", &account.owner));
    }
    // Outside of Kubernetes a container has a name and no pod. What does not apply is left out: `(none)`
    // would be the name of a pod.
    let container = match &*account.pod {
        NONE => "container.name".to_owned(),
        _ => attribute_name("container"),
    };
    let names = [
        (attribute_name("namespace"), &account.namespace),
        (attribute_name("pod"), &account.pod),
        (container, &account.container),
        (attribute_name("pod_uid"), &account.pod_uid),
        (attribute_name("container_id"), &account.container_id),
        (attribute_name("runtime"), &account.runtime),
    ];
    let names = names.into_iter().filter(|(_, value)| &***value != NONE);
    all.extend(names.map(|(key, value)| attribute(&key, value)));
    if &*account.image != NONE {
        image(&account.image, all);
    }
    if !pod_labels.is_empty() && &*account.pod != NONE {
        // Of any agent that ever wrote the ledger: what cannot be read is not there.
        let labels: BTreeMap<String, String> =
            serde_json::from_str(&account.labels).unwrap_or_default();
        let labels = pod_labels
            .iter()
            .filter_map(|label| Some((label, labels.get(label)?)));
        all.extend(labels.map(|(key, value)| attribute(&format!("k8s.pod.label.{key}"), value)));
    }
    let amounts = &account.amounts;
    let times = [
        ("gpuacct.busy_ns", amounts.busy),
        ("gpuacct.held_ns", amounts.held),
        ("gpuacct.allocated_ns", amounts.allocated),
        ("gpuacct.allocated_share_ns", amounts.allocated_share),
    ];
    all.extend(times.map(|(key, time)| nanos(key, time)));
    // An engine has an attribute only where it was used: most never are.
    let engines = Engine::ALL.map(|engine| (engine, amounts.engines.of(engine)));
    let used = engines.into_iter().filter(|(_, time)| !time.is_zero());
    all.extend(
        used.map(|(engine, time)| nanos(&format!("gpuacct.engine.{}_ns", engine.as_str()), time)),
    );
    all.push(attribute(
        "gpuacct.memory_byte_seconds",
        &amounts.memory.0.to_string(),
    ));
    all.push(count("gpuacct.energy_mj", amounts.energy.0));
}

fn of_gpu(hour: &GpuHour, all: &mut Vec<KeyValue>) {
    let sum = |times: &[(Arc<str>, Nanos)]| times.iter().map(|(_, time)| *time).sum();
    let times = [
        ("gpuacct.elapsed_ns", hour.elapsed),
        ("gpuacct.busy_ns", hour.busy),
        ("gpuacct.idle_ns", hour.idle),
        ("gpuacct.unobserved_ns", sum(&hour.unobserved)),
        ("gpuacct.unattributed_ns", sum(&hour.unattributed)),
    ];
    all.extend(times.map(|(key, time)| nanos(key, time)));
    for (key, times) in [
        ("gpuacct.unobserved.", &hour.unobserved),
        ("gpuacct.unattributed.", &hour.unattributed),
    ] {
        all.extend(
            times
                .iter()
                .map(|(reason, time)| nanos(&format!("{key}{reason}_ns"), *time)),
        );
    }
    let energies = [
        ("gpuacct.energy_mj", hour.energy),
        ("gpuacct.energy_idle_mj", hour.energy_idle),
        ("gpuacct.energy_unattributed_mj", hour.energy_unattributed),
    ];
    all.extend(energies.map(|(key, energy)| count(key, energy.0)));
}

fn nanos(key: &str, Nanos(time): Nanos) -> KeyValue {
    count(key, time)
}

/// A number of the ledger, which has no more than 63 bits.
fn count(key: &str, number: u64) -> KeyValue {
    integer(key, i64::try_from(number).unwrap_or(i64::MAX))
}

fn integer(key: &str, number: i64) -> KeyValue {
    with(key, any_value::Value::IntValue(number))
}
