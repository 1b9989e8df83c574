//! Families of the sources: their states, and the events of the kernel.

use super::instrument::{Instrument, Kind, Unit, Value, nanos, own};
use crate::core::model::Clock;

/// The label values of `gpuacct_source_state`, in the order of `SourceState`'s variants.
pub(super) const STATES: [&str; 4] = ["up", "absent", "disabled", "down"];

/// The rows, in the order in which they are published.
pub(super) static FAMILIES: &[Instrument] = &[
    Instrument {
        name: "gpuacct_source_state",
        otlp: "gpuacct.source.state",
        kind: Kind::Gauge,
        unit: Unit::Count("{state}"),
        help: "1 for the present state of the source, 0 for the others. absent: was never there, which is normal. down: was there, or is required, and does not answer.",
        keys: &["source", "state"],
        read: |view, points| {
            for health in &view.agent.sources {
                for state in STATES {
                    points.put(
                        &[health.source.as_str(), state],
                        view.snapshot.agent_started,
                        Value::Count(u64::from(health.state.as_str() == state)),
                    );
                }
            }
        },
    },
    Instrument {
        name: "gpuacct_source_state_since_timestamp_seconds",
        otlp: "gpuacct.source.state.since.timestamp",
        kind: Kind::Gauge,
        unit: Unit::Seconds,
        help: "Unix time at which the source entered its present state.",
        keys: &["source"],
        read: |view, points| {
            let clock = Clock {
                boot: view.snapshot.at,
                wall: view.snapshot.wall,
            };
            for health in &view.agent.sources {
                points.put(
                    &[health.source.as_str()],
                    view.snapshot.agent_started,
                    nanos(clock.wall_of(health.since).0),
                );
            }
        },
    },
    Instrument {
        name: "gpuacct_source_errors_total",
        otlp: "gpuacct.source.errors",
        kind: Kind::Counter,
        unit: Unit::Count("{error}"),
        help: "Failures of a source that was there or is required, by class. A source that was never there has none.",
        keys: &["source", "class"],
        read: |view, points| {
            for book in &view.agent.source_errors {
                let labels = [book.source.as_str(), &*book.class];
                let start = view.snapshot.agent_started;
                points.put(&labels, start, Value::Count(book.count));
            }
        },
    },
    Instrument {
        name: "gpuacct_source_last_error_timestamp_seconds",
        otlp: "gpuacct.source.last_error.timestamp",
        kind: Kind::Gauge,
        unit: Unit::Seconds,
        help: "Unix time of the source's last failure of this class, even if it is up again.",
        keys: &["source", "class"],
        read: |view, points| {
            let clock = Clock {
                boot: view.snapshot.at,
                wall: view.snapshot.wall,
            };
            for book in &view.agent.source_errors {
                points.put(
                    &[book.source.as_str(), &*book.class],
                    view.snapshot.agent_started,
                    nanos(clock.wall_of(book.last).0),
                );
            }
        },
    },
    Instrument {
        name: "gpuacct_events_seen_total",
        otlp: "gpuacct.events.seen",
        kind: Kind::Counter,
        unit: Unit::Count("{event}"),
        help: "Kernel events that the eBPF program tried to report. seen = submitted + lost when no event is in progress.",
        keys: &[],
        read: |view, points| own(view, points, view.snapshot.events.seen),
    },
    Instrument {
        name: "gpuacct_events_submitted_total",
        otlp: "gpuacct.events.submitted",
        kind: Kind::Counter,
        unit: Unit::Count("{event}"),
        help: "Kernel events that reached the ring buffer.",
        keys: &[],
        read: |view, points| own(view, points, view.snapshot.events.submitted),
    },
    Instrument {
        name: "gpuacct_events_lost_total",
        otlp: "gpuacct.events.lost",
        kind: Kind::Counter,
        unit: Unit::Count("{event}"),
        help: "Kernel events that were lost because the ring buffer was full. A loss causes a scan of /proc.",
        keys: &[],
        read: |view, points| own(view, points, view.snapshot.events.lost),
    },
    Instrument {
        name: "gpuacct_events_undecodable_total",
        otlp: "gpuacct.events.undecodable",
        kind: Kind::Counter,
        unit: Unit::Count("{event}"),
        help: "Records of the ring buffer that the agent could not decode.",
        keys: &[],
        read: |view, points| own(view, points, view.snapshot.events.undecodable),
    },
    Instrument {
        name: "gpuacct_events_skipped_total",
        otlp: "gpuacct.events.skipped",
        kind: Kind::Counter,
        unit: Unit::Count("{event}"),
        help: "Kernel events for which the kernel did not run the eBPF program, because it was already running on the same CPU (recursion_misses of bpf_prog_info). Not included in seen. They cause a scan of /proc, as a loss does.",
        keys: &[],
        read: |view, points| own(view, points, view.snapshot.events.skipped),
    },
];
