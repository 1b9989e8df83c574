//! Families of namespaces, and of processes outside containers.

use super::instrument::{Instrument, Kind, Unit, nanos};

/// The rows, in the order in which they are published.
pub(super) static FAMILIES: &[Instrument] = &[
    Instrument {
        name: "gpuacct_namespace_gpu_busy_seconds_total",
        otlp: "gpuacct.namespace.gpu.busy",
        kind: Kind::Counter,
        unit: Unit::Seconds,
        help: "GPU time in which the namespace's containers kept the SMs busy. Counted once the owner's names are final, so the series do not churn. Use it for billing.",
        keys: &["namespace", "gpu_uuid"],
        read: |view, points| {
            for series in &view.snapshot.namespace_series {
                points.put(
                    &[&series.namespace, series.gpu.as_str()],
                    series.start,
                    nanos(series.amounts.busy.0),
                );
            }
        },
    },
    Instrument {
        name: "gpuacct_namespace_gpu_allocated_seconds_total",
        otlp: "gpuacct.namespace.gpu.allocated",
        kind: Kind::Counter,
        unit: Unit::Seconds,
        help: "GPU time allocated to the namespace's containers by the kubelet, summed over containers. Absent if PodResources never answered. If containers share a GPU by time-slicing, each counts in full; gpuacct report divides the time among them.",
        keys: &["namespace", "gpu_uuid"],
        read: |view, points| {
            if view.snapshot.allocations_known {
                for series in &view.snapshot.namespace_series {
                    points.put(
                        &[&series.namespace, series.gpu.as_str()],
                        series.start,
                        nanos(series.amounts.allocated.0),
                    );
                }
            }
        },
    },
    Instrument {
        name: "gpuacct_host_gpu_busy_seconds_total",
        otlp: "gpuacct.host.gpu.busy",
        kind: Kind::Counter,
        unit: Unit::Seconds,
        help: "GPU time in which processes outside containers kept the SMs busy, by systemd unit or cgroup.",
        keys: &["unit", "gpu_uuid"],
        read: |view, points| {
            for series in &view.snapshot.host_series {
                points.put(
                    &[series.unit.as_str(), series.gpu.as_str()],
                    series.start,
                    nanos(series.amounts.busy.0),
                );
            }
        },
    },
];
