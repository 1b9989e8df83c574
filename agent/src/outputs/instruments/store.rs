//! Families of commits and of the store that keeps them.

use super::instrument::{Instrument, Kind, Unit, Value, nanos, own};

/// The rows, in the order in which they are published.
pub(super) static FAMILIES: &[Instrument] = &[
    Instrument {
        name: "gpuacct_commits_total",
        otlp: "gpuacct.commits",
        kind: Kind::Counter,
        unit: Unit::Count("{commit}"),
        help: "Commits of the books.",
        keys: &[],
        read: |view, points| own(view, points, view.snapshot.agent.commits),
    },
    Instrument {
        name: "gpuacct_imbalances_total",
        otlp: "gpuacct.imbalances",
        kind: Kind::Counter,
        unit: Unit::Count("{commit}"),
        help: "Commits whose books did not balance. Anything but zero is a bug.",
        keys: &[],
        read: |view, points| own(view, points, view.snapshot.agent.imbalances),
    },
    Instrument {
        name: "gpuacct_excesses_total",
        otlp: "gpuacct.excesses",
        kind: Kind::Counter,
        unit: Unit::Count("{commit}"),
        help: "Commits with an account that had more held or allocated time than the time since it was opened. Anything but zero is a bug.",
        keys: &[],
        read: |view, points| own(view, points, view.snapshot.agent.excesses),
    },
    Instrument {
        name: "gpuacct_store_commits_total",
        otlp: "gpuacct.store.commits",
        kind: Kind::Counter,
        unit: Unit::Count("{commit}"),
        help: "Commits handed to the store, by outcome. Absent if the store is disabled.",
        keys: &["outcome"],
        read: |view, points| {
            let Some(store) = &view.agent.store else {
                return;
            };
            for (outcome, count) in [("kept", store.commits), ("failed", store.failures)] {
                points.put(&[outcome], view.snapshot.agent_started, Value::Count(count));
            }
        },
    },
    Instrument {
        name: "gpuacct_store_commit_seconds_total",
        otlp: "gpuacct.store.commit",
        kind: Kind::Counter,
        unit: Unit::Seconds,
        help: "Time that the store took to write commits.",
        keys: &[],
        read: |view, points| {
            if let Some(store) = &view.agent.store {
                points.put(&[], view.snapshot.agent_started, nanos(store.spent.0));
            }
        },
    },
    Instrument {
        name: "gpuacct_store_size_bytes",
        otlp: "gpuacct.store.size",
        kind: Kind::Gauge,
        unit: Unit::Bytes,
        help: "Size of the store's tables, updated each minute. 0 in the first minute.",
        keys: &[],
        read: |view, points| {
            if let Some(store) = &view.agent.store {
                points.put(&[], view.snapshot.agent_started, Value::Count(store.bytes));
            }
        },
    },
    Instrument {
        name: "gpuacct_store_records_given_up_total",
        otlp: "gpuacct.store.records_given_up",
        kind: Kind::Counter,
        unit: Unit::Count("{record}"),
        help: "Records of closed accounts that were merged into (overflow) because the store accepted nothing for too long.",
        keys: &[],
        read: |view, points| own(view, points, view.snapshot.agent.records_given_up),
    },
    Instrument {
        name: "gpuacct_store_merged_total",
        otlp: "gpuacct.store.merged",
        kind: Kind::Counter,
        unit: Unit::Count("{hour}"),
        help: "Hours that were merged into the following hour because the store accepted nothing for too long.",
        keys: &[],
        read: |view, points| {
            if let Some(store) = &view.agent.store {
                own(view, points, store.hours_merged);
            }
        },
    },
    Instrument {
        name: "gpuacct_store_over_size_total",
        otlp: "gpuacct.store.over_size",
        kind: Kind::Counter,
        unit: Unit::Count("{pass}"),
        help: "Times that the store exceeded store.max_size and nothing could be dropped.",
        keys: &[],
        read: |view, points| {
            if let Some(store) = &view.agent.store {
                own(view, points, store.over_size);
            }
        },
    },
];
