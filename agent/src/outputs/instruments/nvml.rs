//! Families of NVML: its calls and the threads that make them.

use super::instrument::{Instrument, Kind, Unit, Value, nanos, own};

/// The rows, in the order in which they are published.
pub(super) static FAMILIES: &[Instrument] = &[
    Instrument {
        name: "gpuacct_nvml_calls_total",
        otlp: "gpuacct.nvml.calls",
        kind: Kind::Counter,
        unit: Unit::Count("{call}"),
        help: "Calls into NVML that returned, by function and outcome.",
        keys: &["call", "outcome"],
        read: |view, points| {
            for book in &view.agent.nvml_calls {
                let failed = book.errors.min(book.calls);
                for (outcome, count) in [("ok", book.calls - failed), ("error", failed)] {
                    let labels = [&*book.call, outcome];
                    points.put(&labels, view.snapshot.agent_started, Value::Count(count));
                }
            }
        },
    },
    Instrument {
        name: "gpuacct_nvml_call_seconds_total",
        otlp: "gpuacct.nvml.call",
        kind: Kind::Counter,
        unit: Unit::Seconds,
        help: "Time spent inside NVML, by function.",
        keys: &["call"],
        read: |view, points| {
            for book in &view.agent.nvml_calls {
                points.put(
                    &[&book.call],
                    view.snapshot.agent_started,
                    nanos(book.total.0),
                );
            }
        },
    },
    Instrument {
        name: "gpuacct_nvml_thread_restarts_total",
        otlp: "gpuacct.nvml.thread.restarts",
        kind: Kind::Counter,
        unit: Unit::Count("{thread}"),
        help: "NVML threads that panicked (a bug) and were started again. Anything but zero is a bug.",
        keys: &[],
        read: |view, points| own(view, points, view.agent.nvml_threads.restarts),
    },
    Instrument {
        name: "gpuacct_nvml_threads_abandoned_total",
        otlp: "gpuacct.nvml.threads.abandoned",
        kind: Kind::Counter,
        unit: Unit::Count("{thread}"),
        help: "NVML threads that were abandoned because a call did not return.",
        keys: &[],
        read: |view, points| own(view, points, view.agent.nvml_threads.abandoned),
    },
    Instrument {
        name: "gpuacct_nvml_threads_blocked",
        otlp: "gpuacct.nvml.threads.blocked",
        kind: Kind::Gauge,
        unit: Unit::Count("{thread}"),
        help: "Abandoned NVML threads whose call has not returned yet. At most one per GPU, because no other thread is started for that GPU before.",
        keys: &[],
        read: |view, points| own(view, points, view.agent.nvml_threads.blocked),
    },
    Instrument {
        name: "gpuacct_windows_undelivered_total",
        otlp: "gpuacct.windows.undelivered",
        kind: Kind::Counter,
        unit: Unit::Count("{window}"),
        help: "Windows that the core did not accept when the agent stopped. With a store, the next agent continues from before them.",
        keys: &[],
        read: |view, points| own(view, points, view.agent.nvml_threads.undelivered),
    },
];
