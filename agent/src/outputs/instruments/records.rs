//! Families of the usage records.

use super::instrument::{Instrument, Kind, Unit, Value, nanos};

/// The rows, in the order in which they are published.
pub(super) static FAMILIES: &[Instrument] = &[
    Instrument {
        name: "gpuacct_records_total",
        otlp: "gpuacct.records",
        kind: Kind::Counter,
        unit: Unit::Count("{record}"),
        help: "Usage records, by outcome. delivered: acknowledged by the receiver. failed: in a message that failed; sent again, so one record may count many times. rejected: refused by the receiver for good. dropped: their hour left the store before they were acknowledged. Absent if records.enabled is false.",
        keys: &["outcome"],
        read: |view, points| {
            let Some(records) = view.agent.store.and_then(|store| store.records) else {
                return;
            };
            for (outcome, count) in [
                ("delivered", view.counters.records_delivered.get()),
                ("failed", view.counters.records_failed.get()),
                ("rejected", view.counters.records_rejected.get()),
                ("dropped", records.dropped),
            ] {
                points.put(&[outcome], view.snapshot.agent_started, Value::Count(count));
            }
        },
    },
    Instrument {
        name: "gpuacct_records_waiting",
        otlp: "gpuacct.records.waiting",
        kind: Kind::Gauge,
        unit: Unit::Count("{record}"),
        help: "Usage records of hours that are over which no receiver has acknowledged. Absent if records.enabled is false.",
        keys: &[],
        read: |view, points| {
            if let Some(records) = view.agent.store.and_then(|store| store.records) {
                let start = view.snapshot.agent_started;
                points.put(&[], start, Value::Count(records.unsettled));
            }
        },
    },
    Instrument {
        name: "gpuacct_records_oldest_age_seconds",
        otlp: "gpuacct.records.oldest_age",
        kind: Kind::Gauge,
        unit: Unit::Seconds,
        help: "Time since the end of the hour of the oldest usage record that no receiver has acknowledged. 0 if none waits. Absent if records.enabled is false.",
        keys: &[],
        read: |view, points| {
            if let Some(records) = view.agent.store.and_then(|store| store.records) {
                let now = view.snapshot.wall.0;
                let waits = records
                    .oldest_ended
                    .map(|ended| now.saturating_sub(ended.0));
                let start = view.snapshot.agent_started;
                points.put(&[], start, nanos(waits.unwrap_or(0)));
            }
        },
    },
];
