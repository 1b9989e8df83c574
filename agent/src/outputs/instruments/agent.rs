//! Families of the agent's own outputs: the snapshot, scrapes, OTLP, the socket, connections.

use super::instrument::{
    COMPILER, Instrument, Kind, REVISION, Unit, VERSION, Value, View, nanos, own,
};
use crate::outputs::counters::ConnectionCounters;

/// The rows, in the order in which they are published.
pub(super) static FAMILIES: &[Instrument] = &[
    Instrument {
        name: "gpuacct_snapshot_timestamp_seconds",
        otlp: "gpuacct.snapshot.timestamp",
        kind: Kind::Gauge,
        unit: Unit::Seconds,
        help: "Unix time of the commit that these figures are from.",
        keys: &[],
        read: |view, points| {
            let snapshot = view.snapshot;
            points.put(&[], snapshot.agent_started, nanos(snapshot.wall.0));
        },
    },
    Instrument {
        name: "gpuacct_scrapes_total",
        otlp: "gpuacct.scrapes",
        kind: Kind::Counter,
        unit: Unit::Count("{scrape}"),
        help: "Scrapes that were answered, as of the commit that these figures are from.",
        keys: &["format"],
        read: |view, points| {
            for (format, counter) in [
                ("text", &view.counters.scrapes_text),
                ("openmetrics", &view.counters.scrapes_openmetrics),
            ] {
                points.put(
                    &[format],
                    view.snapshot.agent_started,
                    Value::Count(counter.get()),
                );
            }
        },
    },
    Instrument {
        name: "gpuacct_otlp_points_total",
        otlp: "gpuacct.otlp.points",
        kind: Kind::Counter,
        unit: Unit::Count("{point}"),
        help: "Points sent over OTLP. delivered: accepted. failed: not accepted; sent again with newer values. rejected: refused by the receiver for good. unknown: deltas that may or may not have arrived and are not sent again.",
        keys: &["outcome"],
        read: |view, points| {
            for (outcome, counter) in [
                ("delivered", &view.counters.otlp_points_delivered),
                ("failed", &view.counters.otlp_points_failed),
                ("rejected", &view.counters.otlp_points_rejected),
                ("unknown", &view.counters.otlp_points_unknown),
            ] {
                points.put(
                    &[outcome],
                    view.snapshot.agent_started,
                    Value::Count(counter.get()),
                );
            }
        },
    },
    Instrument {
        name: "gpuacct_otlp_requests_total",
        otlp: "gpuacct.otlp.requests",
        kind: Kind::Counter,
        unit: Unit::Count("{request}"),
        help: "Requests sent over OTLP.",
        keys: &["outcome"],
        read: |view, points| {
            for (outcome, counter) in [
                ("delivered", &view.counters.otlp_requests_delivered),
                ("failed", &view.counters.otlp_requests_failed),
            ] {
                points.put(
                    &[outcome],
                    view.snapshot.agent_started,
                    Value::Count(counter.get()),
                );
            }
        },
    },
    Instrument {
        name: "gpuacct_otlp_delta_writes_total",
        otlp: "gpuacct.otlp.delta_writes",
        kind: Kind::Counter,
        unit: Unit::Count("{write}"),
        help: "Writes of the record of sent deltas. kept: written. failed: could not be written. unread: the record of the previous agent could not be read. After failed and unread, deltas begin with the totals of that moment. 0 if sums are cumulative.",
        keys: &["outcome"],
        read: |view, points| {
            for (outcome, counter) in [
                ("kept", &view.counters.otlp_deltas_kept),
                ("failed", &view.counters.otlp_deltas_unkept),
                ("unread", &view.counters.otlp_deltas_unread),
            ] {
                points.put(
                    &[outcome],
                    view.snapshot.agent_started,
                    Value::Count(counter.get()),
                );
            }
        },
    },
    Instrument {
        name: "gpuacct_otlp_starts_merged_total",
        otlp: "gpuacct.otlp.starts_merged",
        kind: Kind::Counter,
        unit: Unit::Count("{merge}"),
        help: "Times that too many counters had to be sent without a start time (the wall clock was behind their start) to remember each. From then on, all counters that began earlier are sent without a start time, too.",
        keys: &[],
        read: |view, points| own(view, points, view.counters.otlp_starts_merged.get()),
    },
    Instrument {
        name: "gpuacct_socket_requests_total",
        otlp: "gpuacct.socket.requests",
        kind: Kind::Counter,
        unit: Unit::Count("{request}"),
        help: "Requests on the local socket.",
        keys: &[],
        read: |view, points| own(view, points, view.counters.socket_requests.get()),
    },
    Instrument {
        name: "gpuacct_connections_refused_total",
        otlp: "gpuacct.connections.refused",
        kind: Kind::Counter,
        unit: Unit::Count("{connection}"),
        help: "Connections that were one too many for their listener and were closed.",
        keys: &["listener"],
        read: |view, points| {
            for (listener, counters) in listeners(view) {
                points.put(
                    &[listener],
                    view.snapshot.agent_started,
                    Value::Count(counters.too_many()),
                );
            }
        },
    },
    Instrument {
        name: "gpuacct_connections_closed_total",
        otlp: "gpuacct.connections.closed",
        kind: Kind::Counter,
        unit: Unit::Count("{connection}"),
        help: "Connections that the agent closed. gave_way: the longest idle one, because the connection limit was reached. one_address: the longest idle one of an address that reached its limit. slow_header: the request header did not arrive in time. slow_reader: the client did not read the answer in time. silent: no request for a long time.",
        keys: &["listener", "reason"],
        read: |view, points| {
            for (listener, counters) in listeners(view) {
                for (reason, counter) in counters.by_reason() {
                    points.put(
                        &[listener, reason],
                        view.snapshot.agent_started,
                        Value::Count(counter.get()),
                    );
                }
            }
        },
    },
    Instrument {
        name: "gpuacct_requests_refused_total",
        otlp: "gpuacct.requests.refused",
        kind: Kind::Counter,
        unit: Unit::Count("{request}"),
        help: "Requests and connections to /metrics that were not let through. handshake: TLS failed, for example for want of a client's certificate. not_tls: sent in the clear. unauthorized: no password and no token, or a wrong one. busy: too many passwords were being checked. rate_limit: more than the rate limit allows.",
        keys: &["reason"],
        read: |view, points| {
            for (reason, counter) in view.counters.metrics_refused.by_reason() {
                points.put(
                    &[reason],
                    view.snapshot.agent_started,
                    Value::Count(counter.get()),
                );
            }
        },
    },
    Instrument {
        name: "gpuacct_config_changes_total",
        otlp: "gpuacct.config.changes",
        kind: Kind::Counter,
        unit: Unit::Count("{change}"),
        help: "Changes of the configuration file that the running agent has read, by whether they could be used. After failed, what was in force stays in force.",
        keys: &["outcome"],
        read: |view, points| {
            for (outcome, counter) in [
                ("applied", &view.counters.config_applied),
                ("failed", &view.counters.config_failed),
            ] {
                points.put(
                    &[outcome],
                    view.snapshot.agent_started,
                    Value::Count(counter.get()),
                );
            }
        },
    },
    Instrument {
        name: "gpuacct_web_config_changes_total",
        otlp: "gpuacct.web_config.changes",
        kind: Kind::Counter,
        unit: Unit::Count("{change}"),
        help: "Changes of the files that protect /metrics, by whether they could be put in force. After failed, what was in force stays in force.",
        keys: &["outcome"],
        read: |view, points| {
            for (outcome, counter) in [
                ("applied", &view.counters.web_config_applied),
                ("failed", &view.counters.web_config_failed),
            ] {
                points.put(
                    &[outcome],
                    view.snapshot.agent_started,
                    Value::Count(counter.get()),
                );
            }
        },
    },
    Instrument {
        name: "gpuacct_label_values_mended_total",
        otlp: "gpuacct.label_values.mended",
        kind: Kind::Counter,
        unit: Unit::Count("{value}"),
        help: "Label values that were cut to 253 bytes or freed of control characters, or were blank and went out as (unresolved), counted each time they are written.",
        keys: &["mend"],
        read: |view, points| {
            for (mend, counter) in [
                ("cut", &view.counters.labels_cut),
                ("blank", &view.counters.labels_blank),
            ] {
                points.put(
                    &[mend],
                    view.snapshot.agent_started,
                    Value::Count(counter.get()),
                );
            }
        },
    },
    Instrument {
        name: "gpuacct_build_info",
        otlp: "gpuacct.build.info",
        kind: Kind::Info,
        unit: Unit::None,
        help: "The agent that publishes this: its version, the revision of its source, and the compiler that built it. A revision that is not known is (none).",
        keys: &["version", "revision", "compiler"],
        read: |view, points| {
            points.put(
                &[VERSION, REVISION, COMPILER],
                view.snapshot.agent_started,
                Value::Count(1),
            );
        },
    },
];

/// The listeners, as label values, with what they closed.
fn listeners<'a>(view: &View<'a>) -> [(&'static str, &'a ConnectionCounters); 3] {
    [
        ("metrics", &view.counters.metrics_connections),
        ("probes", &view.counters.probe_connections),
        ("socket", &view.counters.socket_connections),
    ]
}
