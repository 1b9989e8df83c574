//! Families of containers.

use std::collections::BTreeSet;

use super::container_points::CONTAINER_GPU;
use super::instrument::{Instrument, Kind, Points, Unit, Value, View, joules, nanos};
use super::pod_labels;
use crate::core::model::{NONE, UNRESOLVED};
use crate::core::snapshot::{Attribution, ContainerSeries};

/// The rows, in the order in which they are published.
pub(super) static FAMILIES: &[Instrument] = &[
    Instrument {
        name: "gpuacct_container_gpu_busy_seconds_total",
        otlp: "gpuacct.container.gpu.busy",
        kind: Kind::Counter,
        unit: Unit::Seconds,
        help: "GPU time in which the container kept the SMs busy.",
        keys: CONTAINER_GPU,
        read: |_, points| per_container(points, |series| nanos(series.amounts.busy.0)),
    },
    Instrument {
        name: "gpuacct_container_gpu_engine_busy_seconds_total",
        otlp: "gpuacct.container.gpu.engine.busy",
        kind: Kind::Counter,
        unit: Unit::Seconds,
        help: "Time in which the container kept an engine other than the SMs busy; memory is the memory interface. Only engines that the container has used: a series begins at 0 with the first use. They run at the same time as the SMs and are not part of the balance.",
        keys: &[
            "namespace",
            "pod",
            "container",
            "pod_uid",
            "container_id",
            "gpu_uuid",
            "engine",
        ],
        read: container_engines,
    },
    Instrument {
        name: "gpuacct_container_gpu_held_seconds_total",
        otlp: "gpuacct.container.gpu.held",
        kind: Kind::Counter,
        unit: Unit::Seconds,
        help: "Time in which at least one process of the container had a context on the GPU, busy or not. Added each time the process lists are read, and when a process exits.",
        keys: CONTAINER_GPU,
        read: |_, points| per_container(points, |series| nanos(series.amounts.held.0)),
    },
    Instrument {
        name: "gpuacct_container_gpu_allocated_seconds_total",
        otlp: "gpuacct.container.gpu.allocated",
        kind: Kind::Counter,
        unit: Unit::Seconds,
        help: "GPU time allocated to the container by the kubelet, used or not. Absent if PodResources never answered. If containers share a GPU by time-slicing, each has the whole time; gpuacct report divides it among them.",
        keys: CONTAINER_GPU,
        read: |view, points| {
            if view.snapshot.allocations_known {
                per_container(points, |series| nanos(series.amounts.allocated.0));
            }
        },
    },
    Instrument {
        name: "gpuacct_container_gpu_memory_byte_seconds_total",
        otlp: "gpuacct.container.gpu.memory.byte_seconds",
        kind: Kind::Counter,
        unit: Unit::Count("{byte_second}"),
        help: "Device memory held by the container's processes, integrated over time.",
        keys: CONTAINER_GPU,
        read: |_, points| {
            per_container(points, |series| Value::Wide(series.amounts.memory.0));
        },
    },
    Instrument {
        name: "gpuacct_container_gpu_energy_joules_total",
        otlp: "gpuacct.container.gpu.energy",
        kind: Kind::Counter,
        unit: Unit::Joules,
        help: "The container's part of the GPU's energy, by share of busy time, without idle energy. Absent if the GPU has no energy counter.",
        keys: CONTAINER_GPU,
        read: |_, points| {
            for container in points.containers() {
                if container.book.is_some_and(|book| book.energy.is_some()) {
                    let energy = joules(container.series.amounts.energy);
                    points.put_container(container, &[], energy);
                }
            }
        },
    },
    Instrument {
        name: "gpuacct_container_gpu_memory_bytes",
        otlp: "gpuacct.container.gpu.memory",
        kind: Kind::Gauge,
        unit: Unit::Bytes,
        help: "Device memory that the container's processes hold now. Absent if the driver does not report it.",
        keys: CONTAINER_GPU,
        read: |_, points| {
            for container in points.containers() {
                if let Some(bytes) = container.series.memory {
                    points.put_container(container, &[], Value::Count(bytes));
                }
            }
        },
    },
    Instrument {
        name: "gpuacct_container_gpu_memory_peak_bytes",
        otlp: "gpuacct.container.gpu.memory.peak",
        kind: Kind::Gauge,
        unit: Unit::Bytes,
        help: "Largest device memory of the container's processes in any reading. Absent if the driver does not report it.",
        keys: CONTAINER_GPU,
        read: |_, points| {
            for container in points.containers() {
                if let Some(bytes) = container.series.memory_peak {
                    points.put_container(container, &[], Value::Count(bytes));
                }
            }
        },
    },
    Instrument {
        name: "gpuacct_container_info",
        otlp: "gpuacct.container.info",
        kind: Kind::Info,
        unit: Unit::None,
        help: "Names of a container that has used a GPU, and the identity source that gave them. Always 1.",
        keys: &[
            "namespace",
            "pod",
            "container",
            "pod_uid",
            "container_id",
            "image",
            "runtime",
            "attribution",
            "source",
            "reason",
        ],
        read: container_info,
    },
    Instrument {
        name: "gpuacct_pod_labels",
        otlp: "gpuacct.pod.labels",
        kind: Kind::Gauge,
        unit: Unit::Count("{pod}"),
        help: "Pod labels listed in [publish] pod_labels, in the shape of kube_pod_labels: one series per pod, with a label label_KEY for each of them. The value is (none) if the pod has no such label, and (unresolved) if the only source that named the pod has no labels.",
        keys: &["namespace", "pod", "pod_uid"],
        read: pod_labels::series,
    },
];

fn per_container(points: &mut Points<'_>, value: impl Fn(&ContainerSeries) -> Value) {
    for container in points.containers() {
        points.put_container(container, &[], value(container.series));
    }
}

/// The engines that the container has used, also after a restart and if the driver stops telling of
/// one: a published counter stays.
///
/// Their start is that of the whole series. It is stored, so that it is the same after a restart: a
/// receiver takes another start for a counter that began anew, and counts its amount once more. What
/// was used before an engine was first shown lies after that start, too.
fn container_engines(_: &View<'_>, points: &mut Points<'_>) {
    for container in points.containers() {
        let ContainerSeries {
            engines, amounts, ..
        } = container.series;
        for engine in engines.iter() {
            let amount = nanos(amounts.engines.of(engine).0);
            points.put_container(container, &[engine.as_str()], amount);
        }
    }
}

fn container_info(view: &View<'_>, points: &mut Points<'_>) {
    // A container on two GPUs has two series and is one container: a second info series with the
    // same labels would break every join with it.
    let mut written = BTreeSet::new();
    for series in &view.snapshot.container_series {
        if !written.insert(&series.labels) {
            continue;
        }
        let labels = &series.labels;
        let (source, reason) = match series.attribution {
            Attribution::Held => (UNRESOLVED, NONE),
            Attribution::Named { source } => (source.as_str(), NONE),
            Attribution::IdOnly { reason } => (UNRESOLVED, reason.as_str()),
        };
        points.put(
            &[
                &labels.namespace,
                &labels.pod,
                &labels.container,
                &labels.pod_uid,
                &labels.container_id,
                &series.image,
                &series.runtime,
                series.attribution.as_str(),
                source,
                reason,
            ],
            series.start,
            Value::Count(1),
        );
    }
}
