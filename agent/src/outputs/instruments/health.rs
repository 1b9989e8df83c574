//! Families of the health of GPUs, and of their Xid errors.
//!
//! A figure that is unsupported, or whose query failed, has no series. `gpuacct_gpu_health_query` says
//! which of the two it is.

use super::instrument::{Instrument, Kind, Points, Unit, Value, View, nanos, own};
use crate::core::input::{HealthFigure, RecoveryAction};
use crate::core::model::WallTime;
use crate::core::snapshot::{GpuBook, HealthBook, QueryState, XidSeries};
use crate::outputs::gpu_status::{GpuStatus, status};

const GPU: &[&str] = &["gpu_uuid"];

/// The label keys of an Xid error: the container as in its other families, and what else it may be.
const XID: &[&str] = &[
    "namespace",
    "pod",
    "container",
    "pod_uid",
    "container_id",
    "gpu_uuid",
    "unit",
    "xid",
];

/// The rows, in the order in which they are published.
pub(super) static FAMILIES: &[Instrument] = &[
    Instrument {
        name: "gpuacct_gpu_status",
        otlp: "gpuacct.gpu.status",
        kind: Kind::Gauge,
        unit: Unit::Count("{status}"),
        help: "1 for the present state of the GPU's hardware, 0 for the others. degraded: somebody should look at it. failed: it has to be reset or replaced. Absent if its health is not read.",
        keys: &["gpu_uuid", "state"],
        read: |view, points| {
            for book in &view.snapshot.gpus {
                let Some(found) = status(book, &view.snapshot.xids, view.snapshot.wall) else {
                    continue;
                };
                for state in GpuStatus::ALL {
                    let labels = [book.gpu.uuid.as_str(), state.as_str()];
                    let value = Value::Count(u64::from(state == found));
                    points.put(&labels, book.start, value);
                }
            }
        },
    },
    Instrument {
        name: "gpuacct_gpu_health_query",
        otlp: "gpuacct.gpu.health.query",
        kind: Kind::Gauge,
        unit: Unit::Count("{query}"),
        help: "1 for the present state of the queries of a group of figures, 0 for the others. unsupported: the GPU or the driver offers none of them. failed: a query failed, or the last reading is too old.",
        keys: &["group", "gpu_uuid", "state"],
        read: |view, points| {
            for (book, health) in healths(view) {
                for (group, found) in health.states() {
                    for state in QueryState::ALL {
                        let labels = [group.as_str(), book.gpu.uuid.as_str(), state.as_str()];
                        let value = Value::Count(u64::from(state == found));
                        points.put(&labels, book.start, value);
                    }
                }
            }
        },
    },
    Instrument {
        name: "gpuacct_gpu_power_watts",
        otlp: "gpuacct.gpu.power",
        kind: Kind::Gauge,
        unit: Unit::Watts,
        help: "Power that the GPU draws. From Ampere on most GPUs give the mean of the last second.",
        keys: GPU,
        read: |view, points| level(view, points, HealthFigure::Power, milli),
    },
    Instrument {
        name: "gpuacct_gpu_power_limit_watts",
        otlp: "gpuacct.gpu.power_limit",
        kind: Kind::Gauge,
        unit: Unit::Watts,
        help: "Power limit that is in force.",
        keys: GPU,
        read: |view, points| level(view, points, HealthFigure::PowerLimit, milli),
    },
    Instrument {
        name: "gpuacct_gpu_temperature_celsius",
        otlp: "gpuacct.gpu.temperature",
        kind: Kind::Gauge,
        unit: Unit::Celsius,
        help: "Temperature of the GPU's die (sensor=gpu) and of its memory (sensor=memory).",
        keys: &["gpu_uuid", "sensor"],
        read: |view, points| {
            let sensors = [
                ("gpu", HealthFigure::GpuTemperature),
                ("memory", HealthFigure::MemoryTemperature),
            ];
            levels(view, points, GPU_FIRST, &sensors, whole);
        },
    },
    Instrument {
        name: "gpuacct_gpu_clock_hertz",
        otlp: "gpuacct.gpu.clock",
        kind: Kind::Gauge,
        unit: Unit::Hertz,
        help: "Clock of the SMs and of the memory.",
        keys: &["clock", "gpu_uuid"],
        read: |view, points| {
            let clocks = [
                ("sm", HealthFigure::SmClock),
                ("memory", HealthFigure::MemoryClock),
            ];
            levels(view, points, GPU_LAST, &clocks, mega);
        },
    },
    Instrument {
        name: "gpuacct_gpu_clock_max_hertz",
        otlp: "gpuacct.gpu.clock.max",
        kind: Kind::Gauge,
        unit: Unit::Hertz,
        help: "Highest clock of the SMs and of the memory.",
        keys: &["clock", "gpu_uuid"],
        read: |view, points| {
            let clocks = [
                ("sm", HealthFigure::SmClockMax),
                ("memory", HealthFigure::MemoryClockMax),
            ];
            levels(view, points, GPU_LAST, &clocks, mega);
        },
    },
    Instrument {
        name: "gpuacct_gpu_throttle_seconds_total",
        otlp: "gpuacct.gpu.throttle",
        kind: Kind::Counter,
        unit: Unit::Seconds,
        help: "Time for which the GPU's clocks were reduced, by reason, since the agent started. Reasons overlap. By NVML's reasons at each reading of the health: time between two readings counts if both have the reason, and half of it if one has.",
        keys: &["gpu_uuid", "reason"],
        read: |view, points| {
            for (book, health) in healths(view) {
                if let Some(throttled) = &health.throttled {
                    for (reason, time) in &throttled.times {
                        let labels = [book.gpu.uuid.as_str(), reason.as_str()];
                        points.put(&labels, throttled.start, nanos(time.0));
                    }
                }
            }
        },
    },
    Instrument {
        name: "gpuacct_gpu_ecc_errors_total",
        otlp: "gpuacct.gpu.ecc.errors",
        kind: Kind::Counter,
        unit: Unit::Count("{error}"),
        help: "Memory errors that ECC found, since the agent started: by kind, and by the driver's counter that has them. volatile: counted since the driver was loaded. aggregate: counted for the GPU's life. An error is in both.",
        keys: &["counter", "gpu_uuid", "kind"],
        read: |view, points| {
            use HealthFigure::*;
            for (counter, kind, figure) in [
                ("volatile", "corrected", EccCorrectedVolatile),
                ("volatile", "uncorrected", EccUncorrectedVolatile),
                ("aggregate", "corrected", EccCorrectedAggregate),
                ("aggregate", "uncorrected", EccUncorrectedAggregate),
            ] {
                counts(view, figure, &mut |book, start, total| {
                    points.put(&[counter, book.gpu.uuid.as_str(), kind], start, total);
                });
            }
        },
    },
    Instrument {
        name: "gpuacct_gpu_ecc_lifetime_errors",
        otlp: "gpuacct.gpu.ecc.lifetime_errors",
        kind: Kind::Gauge,
        unit: Unit::Count("{error}"),
        help: "Memory errors that ECC found in the GPU's life, by kind, as the driver keeps them.",
        keys: &["gpu_uuid", "kind"],
        read: |view, points| {
            let kinds = [
                ("corrected", HealthFigure::EccCorrectedAggregate),
                ("uncorrected", HealthFigure::EccUncorrectedAggregate),
            ];
            levels(view, points, GPU_FIRST, &kinds, count);
        },
    },
    Instrument {
        name: "gpuacct_gpu_remapped_rows",
        otlp: "gpuacct.gpu.remapped_rows",
        kind: Kind::Gauge,
        unit: Unit::Count("{row}"),
        help: "Rows of memory that were remapped in the GPU's life, by the kind of error that caused it.",
        keys: &["gpu_uuid", "kind"],
        read: |view, points| {
            let kinds = [
                ("correctable", HealthFigure::RowsRemappedCorrectable),
                ("uncorrectable", HealthFigure::RowsRemappedUncorrectable),
            ];
            levels(view, points, GPU_FIRST, &kinds, count);
        },
    },
    Instrument {
        name: "gpuacct_gpu_row_remap_state",
        otlp: "gpuacct.gpu.row_remap.state",
        kind: Kind::Gauge,
        unit: Unit::Count("{state}"),
        help: "1 if rows of memory wait for a reset of the GPU to be remapped (state=pending), or if a row could not be remapped (state=failed), else 0.",
        keys: &["gpu_uuid", "state"],
        read: |view, points| {
            let states = [
                ("pending", HealthFigure::RemapPending),
                ("failed", HealthFigure::RemapFailed),
            ];
            levels(view, points, GPU_FIRST, &states, count);
        },
    },
    Instrument {
        name: "gpuacct_gpu_retired_pages",
        otlp: "gpuacct.gpu.retired_pages",
        kind: Kind::Gauge,
        unit: Unit::Count("{page}"),
        help: "Pages of memory that were retired in the GPU's life, by cause. Only GPUs before Ampere retire pages; later ones remap rows.",
        keys: &["gpu_uuid", "kind"],
        read: |view, points| {
            let kinds = [
                ("single_bit", HealthFigure::PagesRetiredSingleBit),
                ("double_bit", HealthFigure::PagesRetiredDoubleBit),
            ];
            levels(view, points, GPU_FIRST, &kinds, count);
        },
    },
    Instrument {
        name: "gpuacct_gpu_page_retirement_pending",
        otlp: "gpuacct.gpu.page_retirement.pending",
        kind: Kind::Gauge,
        unit: Unit::Count("{state}"),
        help: "1 if pages of memory wait for a reset of the GPU to be retired, else 0.",
        keys: GPU,
        read: |view, points| level(view, points, HealthFigure::RetirementPending, count),
    },
    Instrument {
        name: "gpuacct_gpu_pcie_replays_total",
        otlp: "gpuacct.gpu.pcie.replays",
        kind: Kind::Counter,
        unit: Unit::Count("{replay}"),
        help: "Replays on the PCIe link since the agent started: transfers that had to be repeated.",
        keys: GPU,
        read: |view, points| {
            counts(
                view,
                HealthFigure::PcieReplays,
                &mut |book, start, total| {
                    points.put(&[book.gpu.uuid.as_str()], start, total);
                },
            );
        },
    },
    Instrument {
        name: "gpuacct_gpu_pcie_throughput_bytes_per_second",
        otlp: "gpuacct.gpu.pcie.throughput",
        kind: Kind::Gauge,
        unit: Unit::BytesPerSecond,
        help: "Throughput of the PCIe link, seen from the GPU, measured for 20 ms at each reading. Absent unless gpu.health.pcie_throughput is true.",
        keys: &["direction", "gpu_uuid"],
        read: |view, points| {
            let directions = [
                ("sent", HealthFigure::PcieSent),
                ("received", HealthFigure::PcieReceived),
            ];
            levels(view, points, GPU_LAST, &directions, kilo);
        },
    },
    Instrument {
        name: "gpuacct_gpu_nvlink_errors_total",
        otlp: "gpuacct.gpu.nvlink.errors",
        kind: Kind::Counter,
        unit: Unit::Count("{error}"),
        help: "Errors on all NVLinks of the GPU since the agent started, by kind.",
        keys: &["gpu_uuid", "kind"],
        read: |view, points| {
            for (kind, figure) in [
                ("crc_flit", HealthFigure::NvlinkCrcFlits),
                ("crc_data", HealthFigure::NvlinkCrcData),
                ("replay", HealthFigure::NvlinkReplays),
                ("recovery", HealthFigure::NvlinkRecoveries),
            ] {
                counts(view, figure, &mut |book, start, total| {
                    points.put(&[book.gpu.uuid.as_str(), kind], start, total);
                });
            }
        },
    },
    Instrument {
        name: "gpuacct_gpu_recovery_action",
        otlp: "gpuacct.gpu.recovery_action",
        kind: Kind::Gauge,
        unit: Unit::Count("{action}"),
        help: "1 for what NVML recommends to do about the GPU, 0 for the other actions. Drivers before R570 do not tell.",
        keys: &["action", "gpu_uuid"],
        read: |view, points| {
            for (book, health) in healths(view) {
                let Some(number) = health.value(HealthFigure::RecoveryAction) else {
                    continue;
                };
                for action in RecoveryAction::ALL {
                    let labels = [action.as_str(), book.gpu.uuid.as_str()];
                    let value = u64::from(action == RecoveryAction::of(number));
                    points.put(&labels, book.start, Value::Count(value));
                }
            }
        },
    },
    Instrument {
        name: "gpuacct_gpu_xid_errors_total",
        otlp: "gpuacct.gpu.xid.errors",
        kind: Kind::Counter,
        unit: Unit::Count("{error}"),
        help: "Xid errors since the agent started, by NVIDIA's number and by the owner of the process that caused it. (unresolved): nobody says which process it was, and more than one owner, or none, had the GPU. A new series first shows 0 for publish.zero_for.",
        keys: XID,
        read: |view, points| {
            per_xid(view, points, |series| {
                (series.start, Value::Count(series.published))
            });
        },
    },
    Instrument {
        name: "gpuacct_gpu_xid_errors_last_timestamp_seconds",
        otlp: "gpuacct.gpu.xid.errors.last.timestamp",
        kind: Kind::Gauge,
        unit: Unit::Seconds,
        help: "Unix time of the last of these errors.",
        keys: XID,
        read: |view, points| {
            per_xid(view, points, |series| (series.start, nanos(series.last.0)));
        },
    },
    Instrument {
        name: "gpuacct_xid_errors_elsewhere_total",
        otlp: "gpuacct.xid.errors.elsewhere",
        kind: Kind::Counter,
        unit: Unit::Count("{error}"),
        help: "Xid errors in the kernel's log of GPUs that NVML does not list, such as those of virtual machines.",
        keys: &[],
        read: |view, points| own(view, points, view.snapshot.agent.xids_elsewhere),
    },
];

/// The GPUs whose health was read.
fn healths<'a>(view: &View<'a>) -> impl Iterator<Item = (&'a GpuBook, &'a HealthBook)> {
    let books = view.snapshot.gpus.iter();
    books.filter_map(|book| Some((book, book.health.as_ref()?)))
}

/// A figure that has a value now.
fn level(view: &View<'_>, points: &mut Points<'_>, figure: HealthFigure, value: fn(i64) -> Value) {
    for (book, health) in healths(view) {
        if let Some(found) = health.value(figure) {
            points.put(&[book.gpu.uuid.as_str()], book.start, value(found));
        }
    }
}

/// The values of two labels, of which one is the GPU's, in the order of a family's keys.
type InOrder = for<'a> fn(&'a str, &'a str) -> [&'a str; 2];

/// The GPU's label comes first.
const GPU_FIRST: InOrder = |gpu, label| [gpu, label];
/// The GPU's label comes last.
const GPU_LAST: InOrder = |gpu, label| [label, gpu];

/// Figures that have a value now, each with a label of its own beside the GPU's.
fn levels(
    view: &View<'_>,
    points: &mut Points<'_>,
    in_order: InOrder,
    figures: &[(&str, HealthFigure)],
    value: fn(i64) -> Value,
) {
    for (book, health) in healths(view) {
        for (label, figure) in figures {
            if let Some(found) = health.value(*figure) {
                let labels = in_order(book.gpu.uuid.as_str(), label);
                points.put(&labels, book.start, value(found));
            }
        }
    }
}

/// The growth of a count of the driver's.
fn counts(view: &View<'_>, figure: HealthFigure, put: &mut dyn FnMut(&GpuBook, WallTime, Value)) {
    for (book, health) in healths(view) {
        for count in health.counts.iter().filter(|count| count.figure == figure) {
            put(book, count.start, Value::Count(count.total));
        }
    }
}

fn per_xid(view: &View<'_>, points: &mut Points<'_>, value: fn(&XidSeries) -> (WallTime, Value)) {
    for series in &view.snapshot.xids {
        let labels = &series.labels;
        let (start, value) = value(series);
        points.put(
            &[
                &labels.namespace,
                &labels.pod,
                &labels.container,
                &labels.pod_uid,
                &labels.container_id,
                series.gpu.as_str(),
                &series.unit.0,
                &series.xid.to_string(),
            ],
            start,
            value,
        );
    }
}

/// A figure in thousandths of the unit.
fn milli(value: i64) -> Value {
    Value::Nanos(i128::from(value) * 1_000_000)
}

/// A figure in the unit, which may be below zero.
fn whole(value: i64) -> Value {
    Value::Nanos(i128::from(value) * 1_000_000_000)
}

/// A number of things. One below zero is none.
fn count(value: i64) -> Value {
    Value::Count(u64::try_from(value).unwrap_or(0))
}

/// A figure in thousands of the unit.
fn kilo(value: i64) -> Value {
    count(value.saturating_mul(1_000))
}

/// A figure in millions of the unit.
fn mega(value: i64) -> Value {
    count(value.saturating_mul(1_000_000))
}
