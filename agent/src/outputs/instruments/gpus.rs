//! Families of GPUs: their books, their samples, what they are.

use super::instrument::{Instrument, Kind, Points, Unit, Value, View, joules, nanos};
use crate::core::amounts::Millijoules;
use crate::core::input::ClockKind;
use crate::core::model::{NONE, Nanos, UnattributedReason, UnobservedReason};
use crate::core::snapshot::{EnergyBook, GpuBook};

const GPU: &[&str] = &["gpu_uuid"];
const GPU_REASON: &[&str] = &["gpu_uuid", "reason"];

/// The rows, in the order in which they are published.
pub(super) static FAMILIES: &[Instrument] = &[
    Instrument {
        name: "gpuacct_gpu_elapsed_seconds_total",
        otlp: "gpuacct.gpu.elapsed",
        kind: Kind::Counter,
        unit: Unit::Seconds,
        help: "Time accounted for. Equals busy + idle + unobserved.",
        keys: GPU,
        read: |view, points| per_gpu(view, points, |book| nanos(book.elapsed.0)),
    },
    Instrument {
        name: "gpuacct_gpu_busy_seconds_total",
        otlp: "gpuacct.gpu.busy",
        kind: Kind::Counter,
        unit: Unit::Seconds,
        help: "Busy time by the device's own samples. Equals containers + host + unattributed + pending, except for amounts of new series that still show zero.",
        keys: GPU,
        read: |view, points| per_gpu(view, points, |book| nanos(book.busy.0)),
    },
    Instrument {
        name: "gpuacct_gpu_attributed_seconds_total",
        otlp: "gpuacct.gpu.attributed",
        kind: Kind::Counter,
        unit: Unit::Seconds,
        help: "Busy time that has an owner: busy minus unattributed, including amounts that are not published yet. Its rate divided by that of busy is the coverage.",
        keys: GPU,
        read: |view, points| {
            per_gpu(view, points, |book| {
                let unattributed = book.unattributed.iter().map(|(_, amount)| *amount);
                nanos(book.busy.minus(unattributed.sum()).0)
            });
        },
    },
    Instrument {
        name: "gpuacct_gpu_idle_seconds_total",
        otlp: "gpuacct.gpu.idle",
        kind: Kind::Counter,
        unit: Unit::Seconds,
        help: "Time that was observed and in which nothing ran.",
        keys: GPU,
        read: |view, points| per_gpu(view, points, |book| nanos(book.idle.0)),
    },
    Instrument {
        name: "gpuacct_gpu_unobserved_seconds_total",
        otlp: "gpuacct.gpu.unobserved",
        kind: Kind::Counter,
        unit: Unit::Seconds,
        help: "Time for which it is not known whether the GPU was busy, by reason. Never counted as idle.",
        keys: GPU_REASON,
        read: |view, points| {
            for book in &view.snapshot.gpus {
                for reason in UnobservedReason::ALL {
                    let amount = amount_of(&book.unobserved, &reason);
                    points.put(
                        &[book.gpu.uuid.as_str(), reason.as_str()],
                        book.start,
                        amount,
                    );
                }
            }
        },
    },
    Instrument {
        name: "gpuacct_gpu_unattributed_seconds_total",
        otlp: "gpuacct.gpu.unattributed",
        kind: Kind::Counter,
        unit: Unit::Seconds,
        help: "Busy time without an owner, by reason.",
        keys: GPU_REASON,
        read: |view, points| {
            for book in &view.snapshot.gpus {
                for reason in UnattributedReason::ALL {
                    let amount = amount_of(&book.unattributed, &reason);
                    points.put(
                        &[book.gpu.uuid.as_str(), reason.as_str()],
                        book.start,
                        amount,
                    );
                }
            }
        },
    },
    Instrument {
        name: "gpuacct_gpu_energy_joules_total",
        otlp: "gpuacct.gpu.energy",
        kind: Kind::Counter,
        unit: Unit::Joules,
        help: "Energy that the GPU consumed in the time accounted for. Equals containers + host + idle + unattributed. Absent if the GPU has no energy counter.",
        keys: GPU,
        read: |view, points| per_meter(view, points, |energy| energy.total),
    },
    Instrument {
        name: "gpuacct_gpu_idle_energy_joules_total",
        otlp: "gpuacct.gpu.idle_energy",
        kind: Kind::Counter,
        unit: Unit::Joules,
        help: "Energy that the GPU consumed while nothing ran, by share of time.",
        keys: GPU,
        read: |view, points| per_meter(view, points, |energy| energy.idle),
    },
    Instrument {
        name: "gpuacct_gpu_unattributed_energy_joules_total",
        otlp: "gpuacct.gpu.unattributed_energy",
        kind: Kind::Counter,
        unit: Unit::Joules,
        help: "Energy that the GPU consumed for busy time without an owner, and in time that was not observed.",
        keys: GPU,
        read: |view, points| per_meter(view, points, |energy| energy.unattributed),
    },
    Instrument {
        name: "gpuacct_gpu_accounting_busy_seconds_total",
        otlp: "gpuacct.gpu.accounting.busy",
        kind: Kind::Counter,
        unit: Unit::Seconds,
        help: "Busy time of processes that ended, by the driver's accounting mode (by=driver) and as booked by the agent for the same processes (by=windows), since the agent started. For comparison: the driver misses up to the last second of each process. Absent unless accounting mode is on and the driver reports sums (R610 and newer).",
        keys: &["by", "gpu_uuid"],
        read: |view, points| {
            for book in &view.snapshot.gpus {
                let Some(accounting) = &book.accounting else {
                    continue;
                };
                for (by, amount) in [
                    ("driver", accounting.by_driver),
                    ("windows", accounting.by_windows),
                ] {
                    let labels = [by, book.gpu.uuid.as_str()];
                    points.put(&labels, view.snapshot.agent_started, nanos(amount.0));
                }
            }
        },
    },
    Instrument {
        name: "gpuacct_gpu_accounting_processes_total",
        otlp: "gpuacct.gpu.accounting.processes",
        kind: Kind::Counter,
        unit: Unit::Count("{process}"),
        help: "Ended processes whose time is in gpuacct_gpu_accounting_busy_seconds_total.",
        keys: GPU,
        read: |view, points| {
            for book in &view.snapshot.gpus {
                if let Some(accounting) = &book.accounting {
                    let labels = [book.gpu.uuid.as_str()];
                    let started = view.snapshot.agent_started;
                    points.put(&labels, started, Value::Count(accounting.processes));
                }
            }
        },
    },
    Instrument {
        name: "gpuacct_gpu_pending_seconds",
        otlp: "gpuacct.gpu.pending",
        kind: Kind::Gauge,
        unit: Unit::Seconds,
        help: "Busy time that has an owner and is not published yet, because names are being looked up or the new series still shows zero.",
        keys: GPU,
        read: |view, points| per_gpu(view, points, |book| nanos(book.pending.0)),
    },
    Instrument {
        name: "gpuacct_gpu_imbalance_seconds",
        otlp: "gpuacct.gpu.imbalance",
        kind: Kind::Gauge,
        unit: Unit::Seconds,
        help: "Difference between the accounts and the device's busy time. Anything but zero is a bug.",
        keys: GPU,
        read: |view, points| {
            per_gpu(view, points, |book| {
                Value::Nanos(i128::from(book.imbalance))
            });
        },
    },
    Instrument {
        name: "gpuacct_gpu_excess_seconds",
        otlp: "gpuacct.gpu.excess",
        kind: Kind::Gauge,
        unit: Unit::Seconds,
        help: "Time by which an account's held or allocated time exceeds the time since the account was opened. Anything but zero is a bug.",
        keys: GPU,
        read: |view, points| per_gpu(view, points, |book| nanos(book.excess.0)),
    },
    Instrument {
        name: "gpuacct_gpu_utilization_ratio",
        otlp: "gpuacct.gpu.utilization",
        kind: Kind::Gauge,
        unit: Unit::Ratio,
        help: "Share of the last minute in which the GPU was busy. Absent before the first window.",
        keys: GPU,
        read: |view, points| {
            for book in &view.snapshot.gpus {
                if let Some(share) = book.utilization {
                    points.put(&[book.gpu.uuid.as_str()], book.start, Value::Ratio(share));
                }
            }
        },
    },
    Instrument {
        name: "gpuacct_gpu_memory_used_bytes",
        otlp: "gpuacct.gpu.memory.used",
        kind: Kind::Gauge,
        unit: Unit::Bytes,
        help: "Device memory in use by all processes. Absent if the driver does not report it.",
        keys: GPU,
        read: |view, points| {
            for book in &view.snapshot.gpus {
                if let Some(bytes) = book.memory_used {
                    points.put(&[book.gpu.uuid.as_str()], book.start, Value::Count(bytes));
                }
            }
        },
    },
    Instrument {
        name: "gpuacct_gpu_memory_size_bytes",
        otlp: "gpuacct.gpu.memory.size",
        kind: Kind::Gauge,
        unit: Unit::Bytes,
        help: "Total device memory. Absent if the driver does not report it.",
        keys: GPU,
        read: |view, points| {
            for book in &view.snapshot.gpus {
                if let Some(bytes) = book.gpu.memory_total {
                    points.put(&[book.gpu.uuid.as_str()], book.start, Value::Count(bytes));
                }
            }
        },
    },
    Instrument {
        name: "gpuacct_gpu_memory_utilization_ratio",
        otlp: "gpuacct.gpu.memory.utilization",
        kind: Kind::Gauge,
        unit: Unit::Ratio,
        help: "Share of the device memory that is in use. Absent if the driver does not report it.",
        keys: GPU,
        read: |view, points| {
            for book in &view.snapshot.gpus {
                let total = book.gpu.memory_total.filter(|total| *total > 0);
                if let (Some(used), Some(total)) = (book.memory_used, total) {
                    let share = (used as f64 / total as f64).clamp(0.0, 1.0);
                    points.put(&[book.gpu.uuid.as_str()], book.start, Value::Ratio(share));
                }
            }
        },
    },
    Instrument {
        name: "gpuacct_gpu_info",
        otlp: "gpuacct.gpu.info",
        kind: Kind::Info,
        unit: Unit::None,
        help: "Facts about the GPU. Always 1. The index is NVML's and may change over reboots. simulated is true if the library is the tests' simulation. A MIG instance has a profile and its GPU as parent.",
        keys: &[
            "gpu_uuid",
            "index",
            "model",
            "driver",
            "simulated",
            "mig_profile",
            "mig_parent",
        ],
        read: |view, points| {
            for book in &view.snapshot.gpus {
                let gpu = &book.gpu;
                let simulated = if gpu.simulated { "true" } else { "false" };
                points.put(
                    &[
                        gpu.uuid.as_str(),
                        &gpu.index.to_string(),
                        &gpu.model,
                        &gpu.driver,
                        simulated,
                        gpu.mig.as_ref().map_or(NONE, |mig| &*mig.profile),
                        gpu.mig.as_ref().map_or(NONE, |mig| mig.parent.as_str()),
                    ],
                    book.start,
                    Value::Count(1),
                );
            }
        },
    },
    Instrument {
        name: "gpuacct_gpu_windows_total",
        otlp: "gpuacct.gpu.windows",
        kind: Kind::Counter,
        unit: Unit::Count("{window}"),
        help: "Windows that were read and booked.",
        keys: GPU,
        read: |view, points| per_gpu(view, points, |book| Value::Count(book.windows)),
    },
    Instrument {
        name: "gpuacct_gpu_torn_windows_total",
        otlp: "gpuacct.gpu.torn_windows",
        kind: Kind::Counter,
        unit: Unit::Count("{window}"),
        help: "Windows that were booked although the driver took a new sample between the calls for one window.",
        keys: GPU,
        read: |view, points| per_gpu(view, points, |book| Value::Count(book.torn_windows)),
    },
    Instrument {
        name: "gpuacct_gpu_invalid_rows_total",
        otlp: "gpuacct.gpu.invalid_rows",
        kind: Kind::Counter,
        unit: Unit::Count("{row}"),
        help: "Per-process rows of the driver that were impossible and were dropped.",
        keys: GPU,
        read: |view, points| per_gpu(view, points, |book| Value::Count(book.invalid_rows)),
    },
    Instrument {
        name: "gpuacct_gpu_sample_clock_offset_seconds",
        otlp: "gpuacct.gpu.sample_clock.offset",
        kind: Kind::Gauge,
        unit: Unit::Seconds,
        help: "Offset of the timestamps of device samples (call=samples) and per-process rows (call=rows) from the nearest clock (clock=wall or boot); positive if they are ahead. By NVML's documentation it is 0 from the wall clock. Absent until it is known.",
        keys: &["call", "clock", "gpu_uuid"],
        read: |view, points| {
            for book in &view.snapshot.gpus {
                let Some(clocks) = &book.clocks else {
                    continue;
                };
                for (call, clock) in [("samples", clocks.samples), ("rows", clocks.rows)] {
                    if clock.clock != ClockKind::Unknown {
                        let labels = [call, clock.clock.as_str(), book.gpu.uuid.as_str()];
                        let ahead = Value::Nanos(clock.ahead_nanos.into());
                        points.put(&labels, view.snapshot.agent_started, ahead);
                    }
                }
            }
        },
    },
    Instrument {
        name: "gpuacct_gpu_sample_clock_changes_total",
        otlp: "gpuacct.gpu.sample_clock.changes",
        kind: Kind::Counter,
        unit: Unit::Count("{change}"),
        help: "Changes of the clock by which the driver stamps samples or rows, since the agent started.",
        keys: GPU,
        read: |view, points| {
            for book in &view.snapshot.gpus {
                if let Some(clocks) = &book.clocks {
                    let labels = [book.gpu.uuid.as_str()];
                    let started = view.snapshot.agent_started;
                    points.put(&labels, started, Value::Count(clocks.changes));
                }
            }
        },
    },
    Instrument {
        name: "gpuacct_gpu_cut_seconds_total",
        otlp: "gpuacct.gpu.cut",
        kind: Kind::Counter,
        unit: Unit::Seconds,
        help: "Time by which per-process rows exceeded the device's own busy time. It was cut from the rows.",
        keys: GPU,
        read: |view, points| per_gpu(view, points, |book| nanos(book.cut.0)),
    },
];

fn amount_of<R: PartialEq>(amounts: &[(R, Nanos)], reason: &R) -> Value {
    nanos(
        amounts
            .iter()
            .filter(|(found, _)| found == reason)
            .map(|(_, amount)| *amount)
            .sum::<Nanos>()
            .0,
    )
}

fn per_meter(view: &View<'_>, points: &mut Points<'_>, amount: fn(&EnergyBook) -> Millijoules) {
    for book in &view.snapshot.gpus {
        if let Some(energy) = &book.energy {
            points.put(
                &[book.gpu.uuid.as_str()],
                book.start,
                joules(amount(energy)),
            );
        }
    }
}

fn per_gpu(view: &View<'_>, points: &mut Points<'_>, value: fn(&GpuBook) -> Value) {
    for book in &view.snapshot.gpus {
        points.put(&[book.gpu.uuid.as_str()], book.start, value(book));
    }
}
