//! What the agent's process takes, under the names, kinds and texts that Prometheus' client libraries
//! give these figures: dashboards and alerts of every exporter ask for them.
//!
//! Only Prometheus gets them. Over OTLP the same goes out under OpenTelemetry's names
//! ([`crate::outputs::telemetry`]).

use super::instrument::{Instrument, Kind, Points, Unit, Value, View, nanos};
use crate::published::ProcessBook;

/// The rows, in the order in which they are published.
pub(super) static FAMILIES: &[Instrument] = &[
    Instrument {
        name: "process_cpu_seconds_total",
        otlp: "process.cpu.time",
        kind: Kind::Counter,
        unit: Unit::Seconds,
        help: "Total user and system CPU time spent in seconds.",
        keys: &[],
        read: |view, points| put(view, points, |book| Some(nanos(book.cpu.0))),
    },
    Instrument {
        name: "process_max_fds",
        otlp: "",
        kind: Kind::Gauge,
        unit: Unit::Count("{descriptor}"),
        help: "Maximum number of open file descriptors.",
        keys: &[],
        read: |view, points| put(view, points, |book| book.max_fds.map(Value::Count)),
    },
    Instrument {
        name: "process_open_fds",
        otlp: "",
        kind: Kind::Gauge,
        unit: Unit::Count("{descriptor}"),
        help: "Number of open file descriptors.",
        keys: &[],
        read: |view, points| put(view, points, |book| Some(Value::Count(book.open_fds))),
    },
    Instrument {
        name: "process_resident_memory_bytes",
        otlp: "process.memory.usage",
        kind: Kind::Gauge,
        unit: Unit::Bytes,
        help: "Resident memory size in bytes.",
        keys: &[],
        read: |view, points| put(view, points, |book| Some(Value::Count(book.resident_bytes))),
    },
    Instrument {
        name: "process_start_time_seconds",
        otlp: "",
        kind: Kind::Gauge,
        unit: Unit::Seconds,
        help: "Start time of the process since unix epoch in seconds.",
        keys: &[],
        read: |view, points| put(view, points, |book| Some(nanos(book.started.0))),
    },
    Instrument {
        name: "process_virtual_memory_bytes",
        otlp: "",
        kind: Kind::Gauge,
        unit: Unit::Bytes,
        help: "Virtual memory size in bytes.",
        keys: &[],
        read: |view, points| put(view, points, |book| Some(Value::Count(book.virtual_bytes))),
    },
];

fn put(view: &View<'_>, points: &mut Points<'_>, value: fn(&ProcessBook) -> Option<Value>) {
    if let Some(book) = &view.agent.process
        && let Some(value) = value(book)
    {
        // The counter has counted since the process was started.
        points.put(&[], book.started, value);
    }
}
