//! The one table of everything that is published: Prometheus' text, OTLP's messages and
//! `docs/METRICS.md` are made from it and so cannot disagree.
//!
//! A row gives a family its two names, its kind, unit, help and label keys, and reads its points
//! from the last committed [`Snapshot`]. [`Points`] stands between the rows and the formats and
//! holds the promises that concern every series, so that no row and no format can break them:
//! each series has all keys of its family, no value is empty, none is longer than
//! [`MAX_LABEL_BYTES`].
//!
//! Units at this edge: seconds, bytes, ratios in 0..=1. Seconds travel as integer nanoseconds up to
//! the format that writes them.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::cadvisor::{self, DutyCycle};
use super::counters::{ConnectionCounters, OutputCounters};
use crate::core::amounts::{Engine, Millijoules};
use crate::core::input::{ClockKind, IdentitySource};
use crate::core::model::{
    Clock, NONE, Nanos, SourceId, UNRESOLVED, UnattributedReason, UnobservedReason, WallTime, text,
};
use crate::core::snapshot::{
    AllocationState, Attribution, ContainerLabels, ContainerSeries, EnergyBook, GpuBook,
    IdOnlyReason, Snapshot,
};

/// The longest label value that is published, in bytes: as long as the longest Kubernetes name.
pub const MAX_LABEL_BYTES: usize = 253;

/// The version of this agent.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A family of series.
#[derive(Debug)]
pub struct Instrument {
    /// Its name in Prometheus, suffixes included.
    pub name: &'static str,
    /// Its name in OTLP. Prometheus' rules for OTLP translate it, with unit and kind, to `name`.
    pub otlp: &'static str,
    /// What the figure means over time.
    pub kind: Kind,
    /// What it is measured in.
    pub unit: Unit,
    /// One sentence for people.
    pub help: &'static str,
    /// The label keys, the same for every series.
    pub keys: &'static [&'static str],
    /// Writes the points.
    pub read: fn(&View<'_>, &mut Points<'_>),
}

/// What a figure means over time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows; starts again at zero with a new start time.
    Counter,
    /// A level.
    Gauge,
    /// Always 1; the labels are what it says.
    Info,
}

/// What a figure is measured in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Seconds.
    Seconds,
    /// Bytes.
    Bytes,
    /// Joules.
    Joules,
    /// A share of one.
    Ratio,
    /// A number of things; the UCUM annotation, e.g. `{event}`, names them.
    Count(&'static str),
    /// Nothing: for [`Kind::Info`].
    None,
}

impl Unit {
    /// The unit as OTLP writes it (UCUM).
    #[must_use]
    pub const fn ucum(self) -> &'static str {
        match self {
            Self::Seconds => "s",
            Self::Bytes => "By",
            Self::Joules => "J",
            Self::Ratio => "1",
            Self::Count(annotation) => annotation,
            Self::None => "",
        }
    }

    /// The unit as Prometheus and OpenMetrics write it at the end of a name, if they do.
    #[must_use]
    pub const fn suffix(self) -> Option<&'static str> {
        match self {
            Self::Seconds => Some("seconds"),
            Self::Bytes => Some("bytes"),
            Self::Joules => Some("joules"),
            Self::Ratio => Some("ratio"),
            Self::Count(_) | Self::None => None,
        }
    }
}

/// A figure, still exact.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    /// Billionths of the unit: seconds given in nanoseconds, joules in nanojoules. Signed and wide:
    /// an imbalance may be negative, a time stamp has 61 bits.
    Nanos(i128),
    /// A number of things or bytes.
    Count(u64),
    /// The same where 64 bits are too few.
    Wide(u128),
    /// A share of one.
    Ratio(f64),
}

/// What the rows are read from.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The books.
    pub snapshot: &'a Snapshot,
    /// What the outputs count of themselves.
    pub counters: &'a OutputCounters,
    /// What is shown beyond that.
    pub opt_in: &'a OptIn,
}

/// What is published only where it is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OptIn {
    /// Whether cAdvisor's families are shown, and whose duty cycle.
    pub cadvisor: Option<DutyCycle>,
    /// The pods' own labels that are shown.
    pub pod_labels: Vec<String>,
}

/// A format: takes the families in the table's order, and the points of each.
pub trait Sink {
    /// A family begins.
    fn family(&mut self, instrument: &'static Instrument);
    /// A point of it. `labels` has one value for each of the family's keys, in their order; `start`
    /// is when a counter was zero.
    fn point(
        &mut self,
        instrument: &'static Instrument,
        labels: &[Cow<'_, str>],
        start: WallTime,
        value: Value,
    );
}

/// Writes every family and every point of `view` into `sink`.
pub fn write(view: &View<'_>, sink: &mut dyn Sink) {
    let others: &[Instrument] = match view.opt_in.cadvisor {
        Some(_) => cadvisor::FAMILIES,
        None => &[],
    };
    for instrument in INSTRUMENTS.iter().chain(others) {
        sink.family(instrument);
        (instrument.read)(
            view,
            &mut Points {
                instrument,
                sink,
                counters: view.counters,
            },
        );
    }
}

/// Where a row writes its points, and where the promises that concern every series are kept.
pub struct Points<'a> {
    instrument: &'static Instrument,
    sink: &'a mut dyn Sink,
    counters: &'a OutputCounters,
}

impl std::fmt::Debug for Points<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Points")
            .field("instrument", &self.instrument.name)
            .finish_non_exhaustive()
    }
}

impl Points<'_> {
    /// A point with the family's label values, in the order of its keys.
    pub fn put(&mut self, labels: &[&str], start: WallTime, value: Value) {
        debug_assert_eq!(
            labels.len(),
            self.instrument.keys.len(),
            "a label value for every key of {}",
            self.instrument.name
        );
        let labels: Vec<_> = (0..self.instrument.keys.len())
            .map(|key| self.clean(labels.get(key).copied().unwrap_or_default()))
            .collect();
        self.sink.point(self.instrument, &labels, start, value);
    }

    /// A label value as it may go out: not empty, bounded, without control characters.
    ///
    /// An empty value becomes `(unresolved)`: whoever left it empty did not say that the label does
    /// not apply, which `(none)` would claim. It is counted, being a defect of this agent.
    ///
    /// A value over the bound is cut at a character's boundary, control characters become spaces;
    /// a value that is changed so ends in a hash of what it was, so that two series that differ
    /// only in what was taken away stay two. It is counted as well.
    fn clean<'v>(&self, value: &'v str) -> Cow<'v, str> {
        if value.is_empty() {
            self.counters.labels_blank.add(1);
            Cow::Borrowed(UNRESOLVED)
        } else if value.len() > MAX_LABEL_BYTES || !is_welcome(value) {
            self.counters.labels_cut.add(1);
            Cow::Owned(mend(value))
        } else {
            Cow::Borrowed(value)
        }
    }
}

/// Whether nothing in it is unwelcome. Printable ASCII, nearly every value, need not be decoded.
fn is_welcome(value: &str) -> bool {
    value.bytes().all(|byte| matches!(byte, b' '..=b'~')) || !value.chars().any(is_unwelcome)
}

/// Control characters other than the two that both text formats can carry.
fn is_unwelcome(c: char) -> bool {
    c.is_control() && c != '\n' && c != '\t'
}

fn mend(value: &str) -> String {
    /// `~` and 16 hexadecimal digits.
    const MARK_BYTES: usize = 17;
    let mut end = value.len().min(MAX_LABEL_BYTES - MARK_BYTES);
    while !value.is_char_boundary(end) {
        end -= 1;
    }
    // A space has one byte, a control character one or two: the result is no longer than the bound.
    let mut mended: String = value[..end]
        .chars()
        .map(|c| if is_unwelcome(c) { ' ' } else { c })
        .collect();
    write!(mended, "~{:016x}", text::fnv1a(value.as_bytes())).expect("a String takes everything");
    mended
}

const CONTAINER_GPU: &[&str] = &[
    "namespace",
    "pod",
    "container",
    "pod_uid",
    "container_id",
    "gpu_uuid",
];
const GPU: &[&str] = &["gpu_uuid"];
const GPU_REASON: &[&str] = &["gpu_uuid", "reason"];

/// Every family of the agent's own, in the order in which it is published. cAdvisor's follow where
/// they are switched on.
pub static INSTRUMENTS: &[Instrument] = &[
    Instrument {
        name: "gpuacct_container_gpu_busy_seconds_total",
        otlp: "gpuacct.container.gpu.busy",
        kind: Kind::Counter,
        unit: Unit::Seconds,
        help: "Time during which the container kept the GPU busy.",
        keys: CONTAINER_GPU,
        read: |view, points| {
            for series in &view.snapshot.container_series {
                points.put(
                    &container_gpu(series),
                    series.start,
                    nanos(series.amounts.busy.0),
                );
            }
        },
    },
    Instrument {
        name: "gpuacct_container_gpu_engine_busy_seconds_total",
        otlp: "gpuacct.container.gpu.engine.busy",
        kind: Kind::Counter,
        unit: Unit::Seconds,
        help: "Time during which the container kept an engine beside the SMs busy: memory is the memory interface. Only engines of which the driver tells. They run at the same time as the SMs and are no part of the balance.",
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
        help: "Time during which at least one of the container's processes had a context on the GPU, busy or not.",
        keys: CONTAINER_GPU,
        read: |view, points| {
            per_container(view, points, |series| nanos(series.amounts.held.0));
        },
    },
    Instrument {
        name: "gpuacct_container_gpu_allocated_seconds_total",
        otlp: "gpuacct.container.gpu.allocated",
        kind: Kind::Counter,
        unit: Unit::Seconds,
        help: "Time during which the kubelet had given the container the GPU, used or not; absent on nodes whose kubelet has never said. Each of the containers that share a GPU by time-slicing has all of that time; gpuacct report divides it among them.",
        keys: CONTAINER_GPU,
        read: |view, points| {
            if view.snapshot.allocations_known {
                per_container(view, points, |series| nanos(series.amounts.allocated.0));
            }
        },
    },
    Instrument {
        name: "gpuacct_container_gpu_memory_byte_seconds_total",
        otlp: "gpuacct.container.gpu.memory.byte_seconds",
        kind: Kind::Counter,
        unit: Unit::Count("{byte_second}"),
        help: "Device memory that the container's processes held, summed over time.",
        keys: CONTAINER_GPU,
        read: |view, points| {
            per_container(view, points, |series| Value::Wide(series.amounts.memory.0));
        },
    },
    Instrument {
        name: "gpuacct_container_gpu_energy_joules_total",
        otlp: "gpuacct.container.gpu.energy",
        kind: Kind::Counter,
        unit: Unit::Joules,
        help: "Energy of the GPU by the container's share of busy time, idle energy apart; absent where the GPU has no meter.",
        keys: CONTAINER_GPU,
        read: |view, points| {
            for series in &view.snapshot.container_series {
                let mut books = view.snapshot.gpus.iter();
                if books.any(|book| book.gpu.uuid == series.gpu && book.energy.is_some()) {
                    points.put(
                        &container_gpu(series),
                        series.start,
                        joules(series.amounts.energy),
                    );
                }
            }
        },
    },
    Instrument {
        name: "gpuacct_container_gpu_memory_bytes",
        otlp: "gpuacct.container.gpu.memory",
        kind: Kind::Gauge,
        unit: Unit::Bytes,
        help: "Device memory that the container's processes hold now; absent where the driver does not say.",
        keys: CONTAINER_GPU,
        read: |view, points| {
            for series in &view.snapshot.container_series {
                if let Some(bytes) = series.memory {
                    points.put(&container_gpu(series), series.start, Value::Count(bytes));
                }
            }
        },
    },
    Instrument {
        name: "gpuacct_container_gpu_memory_peak_bytes",
        otlp: "gpuacct.container.gpu.memory.peak",
        kind: Kind::Gauge,
        unit: Unit::Bytes,
        help: "The most device memory that the container's processes were seen to hold at once; absent where the driver does not say.",
        keys: CONTAINER_GPU,
        read: |view, points| {
            for series in &view.snapshot.container_series {
                if let Some(bytes) = series.memory_peak {
                    points.put(&container_gpu(series), series.start, Value::Count(bytes));
                }
            }
        },
    },
    Instrument {
        name: "gpuacct_container_info",
        otlp: "gpuacct.container.info",
        kind: Kind::Info,
        unit: Unit::None,
        help: "What is known of a container that has used a GPU, and who said so.",
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
        unit: Unit::Count("{label}"),
        help: "The pod's own labels that [publish] pod_labels lists, one series a label, for joins. The value is (none) where the pod has no such label, and (unresolved) where only a source that does not tell labels has named it.",
        keys: &["namespace", "pod", "pod_uid", "label", "value"],
        read: pod_labels,
    },
    Instrument {
        name: "gpuacct_namespace_gpu_busy_seconds_total",
        otlp: "gpuacct.namespace.gpu.busy",
        kind: Kind::Counter,
        unit: Unit::Seconds,
        help: "Time during which the namespace's containers kept the GPU busy, fed once the owner is settled. It never churns: bills are made from it.",
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
        help: "Time during which the kubelet had given the namespace's containers the GPU, summed over containers; absent on nodes whose kubelet has never said. Each of the containers that share a GPU by time-slicing counts for itself; gpuacct report divides the time among them.",
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
        help: "Time during which processes outside containers kept the GPU busy, by systemd unit or cgroup.",
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
        help: "Busy time by the device's own samples. Equals containers + host + unattributed + pending, apart from amounts that are shown at zero first.",
        keys: GPU,
        read: |view, points| per_gpu(view, points, |book| nanos(book.busy.0)),
    },
    Instrument {
        name: "gpuacct_gpu_attributed_seconds_total",
        otlp: "gpuacct.gpu.attributed",
        kind: Kind::Counter,
        unit: Unit::Seconds,
        help: "Busy time that has an owner: busy less unattributed, what is not published yet included. Its rate by that of busy is the coverage.",
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
        help: "Time of which it is not known whether the GPU was busy, and why. Never counted as idle.",
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
        help: "Busy time without an owner, and why.",
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
        help: "Energy that the GPU consumed in the time accounted for. Equals containers + host + idle + unattributed; absent where the GPU has no meter.",
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
        help: "Busy time of processes that died, by the driver's own accounting (by=driver) and by what was credited to the same processes here (by=windows). A check, since the agent started: the driver misses up to the last second of each life. Absent unless accounting mode is on and the driver tells sums (R610 and newer).",
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
        help: "Processes that gpuacct_gpu_accounting_busy_seconds_total is about.",
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
        help: "Busy time that is booked to an owner and not yet published, since its name is being asked for or its series is shown at zero first.",
        keys: GPU,
        read: |view, points| per_gpu(view, points, |book| nanos(book.pending.0)),
    },
    Instrument {
        name: "gpuacct_gpu_imbalance_seconds",
        otlp: "gpuacct.gpu.imbalance",
        kind: Kind::Gauge,
        unit: Unit::Seconds,
        help: "By how much the accounts differ from the device's busy time. Anything but zero is a defect.",
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
        help: "By how much the held or allocated time of an account exceeds the time that has passed since the account's beginning. Anything but zero is a defect.",
        keys: GPU,
        read: |view, points| per_gpu(view, points, |book| nanos(book.excess.0)),
    },
    Instrument {
        name: "gpuacct_gpu_utilization_ratio",
        otlp: "gpuacct.gpu.utilization",
        kind: Kind::Gauge,
        unit: Unit::Ratio,
        help: "Share of the last minute during which the GPU was busy; absent before the first window.",
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
        help: "Device memory in use by everyone; absent where the driver does not say.",
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
        help: "Device memory that the GPU has; absent where the driver does not say.",
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
        name: "gpuacct_gpu_info",
        otlp: "gpuacct.gpu.info",
        kind: Kind::Info,
        unit: Unit::None,
        help: "What the GPU is. The index is NVML's and may change over reboots; simulated is true where the library is the tests' own. A MIG instance has a profile, and the GPU that it is a part of as its parent.",
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
        help: "Stretches of the GPU's time that were read and booked.",
        keys: GPU,
        read: |view, points| per_gpu(view, points, |book| Value::Count(book.windows)),
    },
    Instrument {
        name: "gpuacct_gpu_torn_windows_total",
        otlp: "gpuacct.gpu.torn_windows",
        kind: Kind::Counter,
        unit: Unit::Count("{window}"),
        help: "Windows that were booked although a driver sample landed between the calls.",
        keys: GPU,
        read: |view, points| per_gpu(view, points, |book| Value::Count(book.torn_windows)),
    },
    Instrument {
        name: "gpuacct_gpu_invalid_rows_total",
        otlp: "gpuacct.gpu.invalid_rows",
        kind: Kind::Counter,
        unit: Unit::Count("{row}"),
        help: "Rows of the driver that cannot be right and were dropped.",
        keys: GPU,
        read: |view, points| per_gpu(view, points, |book| Value::Count(book.invalid_rows)),
    },
    Instrument {
        name: "gpuacct_gpu_sample_clock_offset_seconds",
        otlp: "gpuacct.gpu.sample_clock.offset",
        kind: Kind::Gauge,
        unit: Unit::Seconds,
        help: "How far the stamps of the driver's samples (call=samples) and of the processes' rows (call=rows) are ahead of the clock that they are nearest to (clock=wall or boot). NVML's documentation says wall, zero. Absent until it is learnt.",
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
        help: "How often the clock that stamps the driver's samples or rows was found to be another one, since the agent started.",
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
        help: "Time by which the processes' rows exceeded the device's own busy time, cut from them.",
        keys: GPU,
        read: |view, points| per_gpu(view, points, |book| nanos(book.cut.0)),
    },
    Instrument {
        name: "gpuacct_source_state",
        otlp: "gpuacct.source.state",
        kind: Kind::Gauge,
        unit: Unit::Count("{state}"),
        help: "1 for the state that the source is in, 0 for the others. Absent was never there, which is normal; down was there or has to be.",
        keys: &["source", "state"],
        read: |view, points| {
            for health in &view.snapshot.sources {
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
        help: "Unix time since which the source has been in its state.",
        keys: &["source"],
        read: |view, points| {
            let clock = Clock {
                boot: view.snapshot.at,
                wall: view.snapshot.wall,
            };
            for health in &view.snapshot.sources {
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
        help: "Failures of a source that was there, or has to be, by class. One that was never there has none.",
        keys: &["source", "class"],
        read: |view, points| {
            for book in &view.snapshot.source_errors {
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
        help: "Unix time at which the source last failed in this way, also if it is up again.",
        keys: &["source", "class"],
        read: |view, points| {
            let clock = Clock {
                boot: view.snapshot.at,
                wall: view.snapshot.wall,
            };
            for book in &view.snapshot.source_errors {
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
        help: "Kernel events that the eBPF object wanted to report. At rest seen = submitted + lost.",
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
        help: "Kernel events that found no room in the ring buffer. A loss leads to a scan of /proc.",
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
        help: "Kernel events for which the kernel did not run the eBPF program, since that was running on the same CPU already (recursion_misses of bpf_prog_info). Not among those seen. Leads to a scan of /proc, as a loss does.",
        keys: &[],
        read: |view, points| own(view, points, view.snapshot.events.skipped),
    },
    Instrument {
        name: "gpuacct_processes",
        otlp: "gpuacct.processes",
        kind: Kind::Gauge,
        unit: Unit::Count("{process}"),
        help: "Processes that the table holds; exited ones are kept until every GPU's window has passed them.",
        keys: &["state"],
        read: |view, points| {
            let agent = &view.snapshot.agent;
            for (state, count) in [
                ("running", agent.processes),
                ("exited", agent.exited_processes),
            ] {
                points.put(&[state], view.snapshot.agent_started, Value::Count(count));
            }
        },
    },
    Instrument {
        name: "gpuacct_cgroups",
        otlp: "gpuacct.cgroups",
        kind: Kind::Gauge,
        unit: Unit::Count("{cgroup}"),
        help: "cgroups whose path is known.",
        keys: &[],
        read: |view, points| own(view, points, view.snapshot.agent.cgroups),
    },
    Instrument {
        name: "gpuacct_containers",
        otlp: "gpuacct.containers",
        kind: Kind::Gauge,
        unit: Unit::Count("{container}"),
        help: "Containers with an account, by how far their names are known.",
        keys: &["attribution"],
        read: |view, points| {
            let agent = &view.snapshot.agent;
            for (attribution, count) in [
                ("held", agent.containers_held),
                ("named", agent.containers_named),
                ("id_only", agent.containers_id_only),
            ] {
                points.put(
                    &[attribution],
                    view.snapshot.agent_started,
                    Value::Count(count),
                );
            }
        },
    },
    Instrument {
        name: "gpuacct_containers_named_late_total",
        otlp: "gpuacct.containers.named_late",
        kind: Kind::Counter,
        unit: Unit::Count("{container}"),
        help: "Containers whose names came after they had been published by id.",
        keys: &[],
        read: |view, points| own(view, points, view.snapshot.agent.named_late),
    },
    Instrument {
        name: "gpuacct_identities_refused_total",
        otlp: "gpuacct.identities.refused",
        kind: Kind::Counter,
        unit: Unit::Count("{answer}"),
        help: "Answers about a container that were refused, since their pod uid contradicts the cgroup's, or whose pod was, since labels tell of it and the cgroup is in none.",
        keys: &[],
        read: |view, points| own(view, points, view.snapshot.agent.identities_refused),
    },
    Instrument {
        name: "gpuacct_cgroups_refused_total",
        otlp: "gpuacct.cgroups.refused",
        kind: Kind::Counter,
        unit: Unit::Count("{cgroup}"),
        help: "cgroups that bear the id of a container or the uid of a pod which belongs to another cgroup. Their processes are booked to the host.",
        keys: &[],
        read: |view, points| own(view, points, view.snapshot.agent.cgroups_refused),
    },
    Instrument {
        name: "gpuacct_gpu_opens_total",
        otlp: "gpuacct.gpu.opens",
        kind: Kind::Counter,
        unit: Unit::Count("{open}"),
        help: "Opens of GPU devices that the kernel reported. Not everyone who opens a GPU uses it.",
        keys: &[],
        read: |view, points| own(view, points, view.snapshot.agent.gpu_opens),
    },
    Instrument {
        name: "gpuacct_gpu_opens_unsampled_total",
        otlp: "gpuacct.gpu.opens.unsampled",
        kind: Kind::Counter,
        unit: Unit::Count("{process}"),
        help: "Processes that opened a GPU and died without a sample that names them. What they used, at most their lifetimes, is in the GPU's time without a row.",
        keys: &[],
        read: |view, points| own(view, points, view.snapshot.agent.gpu_opens_unsampled),
    },
    Instrument {
        name: "gpuacct_table_overflows_total",
        otlp: "gpuacct.table.overflows",
        kind: Kind::Counter,
        unit: Unit::Count("{entry}"),
        help: "Processes, cgroups or accounts that a full table turned away.",
        keys: &[],
        read: |view, points| own(view, points, view.snapshot.agent.table_overflows),
    },
    Instrument {
        name: "gpuacct_names_dropped_total",
        otlp: "gpuacct.names.dropped",
        kind: Kind::Counter,
        unit: Unit::Count("{container}"),
        help: "Containers whose names were let go for want of room, and that are asked for again once they use a GPU (names), or which use one and whose labels were let go, so that no report can be made by them (labels). The largest go first.",
        keys: &["part"],
        read: |view, points| {
            let agent = &view.snapshot.agent;
            for (part, count) in [
                ("names", agent.names_dropped),
                ("labels", agent.labels_dropped),
            ] {
                points.put(&[part], view.snapshot.agent_started, Value::Count(count));
            }
        },
    },
    Instrument {
        name: "gpuacct_procfs_scans_total",
        otlp: "gpuacct.procfs.scans",
        kind: Kind::Counter,
        unit: Unit::Count("{scan}"),
        help: "Scans of /proc that were merged.",
        keys: &[],
        read: |view, points| own(view, points, view.snapshot.agent.scans),
    },
    Instrument {
        name: "gpuacct_procfs_rescans_after_loss_total",
        otlp: "gpuacct.procfs.rescans_after_loss",
        kind: Kind::Counter,
        unit: Unit::Count("{scan}"),
        help: "Scans of /proc that were asked for because events were lost.",
        keys: &[],
        read: |view, points| own(view, points, view.snapshot.agent.rescans_after_loss),
    },
    Instrument {
        name: "gpuacct_windows_not_awaited_total",
        otlp: "gpuacct.windows.not_awaited",
        kind: Kind::Counter,
        unit: Unit::Count("{window}"),
        help: "Windows that were booked before all that they wait for had come: the event stream, \
               and on MIG instances and MPS servers a reading of the process lists.",
        keys: &[],
        read: |view, points| own(view, points, view.snapshot.agent.windows_not_awaited),
    },
    Instrument {
        name: "gpuacct_process_lists_not_awaited_total",
        otlp: "gpuacct.process_lists.not_awaited",
        kind: Kind::Counter,
        unit: Unit::Count("{list}"),
        help: "Process lists, and the driver's accounts of processes that died, that were taken before the event stream had caught up with them.",
        keys: &[],
        read: |view, points| own(view, points, view.snapshot.agent.lists_not_awaited),
    },
    Instrument {
        name: "gpuacct_windows_mended_total",
        otlp: "gpuacct.windows.mended",
        kind: Kind::Counter,
        unit: Unit::Count("{window}"),
        help: "Windows that did not begin where the one before them ended. after_gap: the time between them was booked as not observed (window_lost). cut: it began earlier, and only what was not booked yet was booked. refused: all of it was booked already. Anything but zero is a defect, or a recording that is none.",
        keys: &["mend"],
        read: |view, points| {
            let agent = &view.snapshot.agent;
            for (mend, count) in [
                ("after_gap", agent.windows_after_gap),
                ("cut", agent.windows_cut),
                ("refused", agent.windows_refused),
            ] {
                points.put(&[mend], view.snapshot.agent_started, Value::Count(count));
            }
        },
    },
    Instrument {
        name: "gpuacct_names_lookups_total",
        otlp: "gpuacct.names.lookups",
        kind: Kind::Counter,
        unit: Unit::Count("{lookup}"),
        help: "Lookups of one container each, by source and outcome. error: the source could not be asked to the end. refused is counted beside the others: an answer, asked for or not, that tells of a pod which the cgroup does not confirm.",
        keys: &["source", "outcome"],
        read: |view, points| {
            for book in &view.snapshot.names {
                // The kubelet's list of allocations names nobody.
                let mut of_names = IdentitySource::ALL.into_iter();
                let Some(source) = of_names.find(|of| of.source() == book.source) else {
                    continue;
                };
                let lookups = &book.lookups;
                let refused = &view.snapshot.agent.identities_refused_of;
                let refused = refused.get(source as usize).copied();
                for (outcome, count) in LOOKUP_OUTCOMES.into_iter().zip([
                    lookups.found,
                    lookups.not_found,
                    lookups.timeout,
                    lookups.invalid,
                    lookups.error,
                    refused.unwrap_or_default(),
                ]) {
                    let labels = [book.source.as_str(), outcome];
                    points.put(&labels, view.snapshot.agent_started, Value::Count(count));
                }
            }
        },
    },
    Instrument {
        name: "gpuacct_names_events_total",
        otlp: "gpuacct.names.events",
        kind: Kind::Counter,
        unit: Unit::Count("{event}"),
        help: "What a source of names, or of allocations, met: requests sent (calls) and events received (events), and what went wrong or was turned away, by kind.",
        keys: &["source", "kind"],
        read: |view, points| {
            for book in &view.snapshot.names {
                for (kind, count) in [
                    ("calls", book.calls),
                    ("timeouts", book.timeouts),
                    ("invalid_replies", book.invalid_replies),
                    ("disconnects", book.disconnects),
                    ("events", book.events),
                    ("lookups_refused", book.lookups_refused),
                    ("texts_changed", book.texts_changed),
                    ("labels_dropped", book.labels_dropped),
                    ("kubernetes_refused", book.kubernetes_refused),
                    ("entries_dropped", book.entries_dropped),
                    ("answers_too_large", book.answers_too_large),
                ] {
                    let labels = [book.source.as_str(), kind];
                    points.put(&labels, view.snapshot.agent_started, Value::Count(count));
                }
            }
        },
    },
    Instrument {
        name: "gpuacct_allocated_devices",
        otlp: "gpuacct.allocated_devices",
        kind: Kind::Gauge,
        unit: Unit::Count("{device}"),
        help: "Devices that the kubelet lists as given to containers: those that are a GPU or MIG instance which NVML lists (matched), are one which it does not list (unlisted), or have an id that does not say (unknown).",
        keys: &["state"],
        read: |view, points| {
            if !view.snapshot.allocations_known {
                return;
            }
            let listed = view.snapshot.allocations.iter().filter(|of| {
                let state = of.state;
                matches!(
                    state,
                    AllocationState::Counting | AllocationState::NoContainer
                )
            });
            let devices: Vec<_> = listed.flat_map(|of| &of.devices).collect();
            for (state, has_gpu, is_known) in [
                ("matched", true, true),
                ("unlisted", false, true),
                ("unknown", false, false),
            ] {
                let of_state = devices.iter().filter(|device| {
                    device.is_known == is_known && device.gpus.is_empty() != has_gpu
                });
                let count = of_state.count() as u64;
                points.put(&[state], view.snapshot.agent_started, Value::Count(count));
            }
        },
    },
    Instrument {
        name: "gpuacct_nvml_calls_total",
        otlp: "gpuacct.nvml.calls",
        kind: Kind::Counter,
        unit: Unit::Count("{call}"),
        help: "Calls into NVML that returned, by function and outcome.",
        keys: &["call", "outcome"],
        read: |view, points| {
            for book in &view.snapshot.nvml_calls {
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
            for book in &view.snapshot.nvml_calls {
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
        help: "Threads that ask NVML which a defect ended and which were started again. Anything but zero is a defect.",
        keys: &[],
        read: |view, points| own(view, points, view.snapshot.nvml_threads.restarts),
    },
    Instrument {
        name: "gpuacct_nvml_threads_abandoned_total",
        otlp: "gpuacct.nvml.threads.abandoned",
        kind: Kind::Counter,
        unit: Unit::Count("{thread}"),
        help: "Threads that ask NVML which were given up, since their call did not return.",
        keys: &[],
        read: |view, points| own(view, points, view.snapshot.nvml_threads.abandoned),
    },
    Instrument {
        name: "gpuacct_nvml_threads_blocked",
        otlp: "gpuacct.nvml.threads.blocked",
        kind: Kind::Gauge,
        unit: Unit::Count("{thread}"),
        help: "Threads that were given up and whose call into NVML has not returned yet. At most one a GPU: no other is started before.",
        keys: &[],
        read: |view, points| own(view, points, view.snapshot.nvml_threads.blocked),
    },
    Instrument {
        name: "gpuacct_windows_undelivered_total",
        otlp: "gpuacct.windows.undelivered",
        kind: Kind::Counter,
        unit: Unit::Count("{window}"),
        help: "Windows that the books had no room for when the agent stopped. With a store the next agent goes on from before them.",
        keys: &[],
        read: |view, points| own(view, points, view.snapshot.nvml_threads.undelivered),
    },
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
        help: "Commits whose books did not balance. Anything but zero is a defect.",
        keys: &[],
        read: |view, points| own(view, points, view.snapshot.agent.imbalances),
    },
    Instrument {
        name: "gpuacct_excesses_total",
        otlp: "gpuacct.excesses",
        kind: Kind::Counter,
        unit: Unit::Count("{commit}"),
        help: "Commits with an account that had more held or allocated time than had passed since its beginning. Anything but zero is a defect.",
        keys: &[],
        read: |view, points| own(view, points, view.snapshot.agent.excesses),
    },
    Instrument {
        name: "gpuacct_store_commits_total",
        otlp: "gpuacct.store.commits",
        kind: Kind::Counter,
        unit: Unit::Count("{commit}"),
        help: "Commits that the store was given, by outcome; absent where the books are not kept.",
        keys: &["outcome"],
        read: |view, points| {
            let Some(store) = &view.snapshot.store else {
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
            if let Some(store) = &view.snapshot.store {
                points.put(&[], view.snapshot.agent_started, nanos(store.spent.0));
            }
        },
    },
    Instrument {
        name: "gpuacct_store_size_bytes",
        otlp: "gpuacct.store.size",
        kind: Kind::Gauge,
        unit: Unit::Bytes,
        help: "What the store's tables take, as of the last minute; 0 before the first one is over.",
        keys: &[],
        read: |view, points| {
            if let Some(store) = &view.snapshot.store {
                points.put(&[], view.snapshot.agent_started, Value::Count(store.bytes));
            }
        },
    },
    Instrument {
        name: "gpuacct_store_records_given_up_total",
        otlp: "gpuacct.store.records_given_up",
        kind: Kind::Counter,
        unit: Unit::Count("{record}"),
        help: "Records of closed accounts that were given up, since the store did not take them for too long.",
        keys: &[],
        read: |view, points| own(view, points, view.snapshot.agent.records_given_up),
    },
    Instrument {
        name: "gpuacct_store_merged_total",
        otlp: "gpuacct.store.merged",
        kind: Kind::Counter,
        unit: Unit::Count("{hour}"),
        help: "Hours that the store did not take for so long that they are in the hour after them.",
        keys: &[],
        read: |view, points| {
            if let Some(store) = &view.snapshot.store {
                own(view, points, store.hours_merged);
            }
        },
    },
    Instrument {
        name: "gpuacct_store_over_size_total",
        otlp: "gpuacct.store.over_size",
        kind: Kind::Counter,
        unit: Unit::Count("{pass}"),
        help: "Times that the store was larger than it may be and nothing in it could go.",
        keys: &[],
        read: |view, points| {
            if let Some(store) = &view.snapshot.store {
                own(view, points, store.over_size);
            }
        },
    },
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
        help: "Points sent over OTLP: delivered, failed (and sent again, newer), rejected by the receiver for good, or unknown: deltas of which no answer says whether they arrived, and which are not sent again.",
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
        help: "Times that what was sent as deltas was written down (kept) or could not be (failed), and that what an agent before had written could not be read (unread). After the latter two, deltas begin with the totals of then. Stays at 0 where sums are cumulative.",
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
        help: "Times that the starts of counters which are sent without their start, since the wall clock was behind it, were too many to be told apart. From then on counters that began earlier are sent without it, too.",
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
        help: "Connections that the agent closed so that others are served: the idlest one where all places were taken (gave_way) or its address had its share of them (one_address), a request's header that did not arrive in time (slow_header), an answer that was not taken in time (slow_reader), a connection without a request for a long time (silent).",
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
        help: "The agent that publishes this.",
        keys: &["version"],
        read: |view, points| {
            points.put(&[VERSION], view.snapshot.agent_started, Value::Count(1));
        },
    },
];

/// The label values of `gpuacct_source_state`, in the order of `SourceState`'s variants.
const STATES: [&str; 4] = ["up", "absent", "disabled", "down"];

/// The label values of `gpuacct_names_lookups_total`.
const LOOKUP_OUTCOMES: [&str; 6] = [
    "found",
    "not_found",
    "timeout",
    "invalid",
    "error",
    "refused",
];

/// The listeners, as label values, with what they closed.
fn listeners<'a>(view: &View<'a>) -> [(&'static str, &'a ConnectionCounters); 2] {
    [
        ("metrics", &view.counters.metrics_connections),
        ("socket", &view.counters.socket_connections),
    ]
}

fn nanos(amount: u64) -> Value {
    Value::Nanos(i128::from(amount))
}

const fn joules(amount: Millijoules) -> Value {
    Value::Nanos(amount.0 as i128 * 1_000_000)
}

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

fn per_container(view: &View<'_>, points: &mut Points<'_>, value: fn(&ContainerSeries) -> Value) {
    for series in &view.snapshot.container_series {
        points.put(&container_gpu(series), series.start, value(series));
    }
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

/// One series a label, since a family's keys are the same everywhere and the list is not.
fn pod_labels(view: &View<'_>, points: &mut Points<'_>) {
    let mut seen = BTreeSet::new();
    for account in &view.snapshot.accounts {
        let Attribution::Named { source } = account.attribution else {
            continue;
        };
        let ContainerLabels {
            namespace,
            pod,
            pod_uid,
            ..
        } = &account.labels;
        if [NONE, UNRESOLVED].contains(&&**pod) {
            continue;
        }
        for label in &view.opt_in.pod_labels {
            let value = match account.runtime_labels.get(label.as_str()) {
                Some(value) if !value.is_empty() => &**value,
                // An empty value is one that Kubernetes allows.
                Some(_) => NONE,
                None if source == IdentitySource::Cri => NONE,
                None => UNRESOLVED,
            };
            seen.insert([namespace, pod, pod_uid, label.as_str(), value]);
        }
    }
    for labels in seen {
        points.put(&labels, view.snapshot.agent_started, Value::Count(1));
    }
}

fn container_engines(view: &View<'_>, points: &mut Points<'_>) {
    for series in &view.snapshot.container_series {
        let mut books = view.snapshot.gpus.iter();
        let Some(book) = books.find(|book| book.gpu.uuid == series.gpu) else {
            continue;
        };
        let [namespace, pod, container, pod_uid, container_id, gpu] = container_gpu(series);
        // The call that tells of these two is empty: no row says that they were not used.
        let is_untold = book
            .clocks
            .as_ref()
            .is_some_and(|clocks| clocks.empty_call.is_some());
        let engines = book.gpu.engines.iter();
        let told =
            engines.filter(|engine| !is_untold || !matches!(engine, Engine::Jpeg | Engine::Ofa));
        for engine in told {
            points.put(
                &[
                    namespace,
                    pod,
                    container,
                    pod_uid,
                    container_id,
                    gpu,
                    engine.as_str(),
                ],
                series.start,
                nanos(series.amounts.engines.of(*engine).0),
            );
        }
    }
}

fn container_gpu(series: &ContainerSeries) -> [&str; 6] {
    let ContainerLabels {
        namespace,
        pod,
        container,
        pod_uid,
        container_id,
    } = &series.labels;
    [
        namespace,
        pod,
        container,
        pod_uid,
        container_id,
        series.gpu.as_str(),
    ]
}

fn per_gpu(view: &View<'_>, points: &mut Points<'_>, value: fn(&GpuBook) -> Value) {
    for book in &view.snapshot.gpus {
        points.put(&[book.gpu.uuid.as_str()], book.start, value(book));
    }
}

/// A figure of the agent itself, without labels.
fn own(view: &View<'_>, points: &mut Points<'_>, value: u64) {
    points.put(&[], view.snapshot.agent_started, Value::Count(value));
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

/// `docs/METRICS.md`, made from the table.
#[must_use]
pub fn metrics_markdown() -> String {
    let mut page = String::from(
        "# Metrics\n\n\
         <!-- Generated from agent/src/outputs/instruments.rs: GPUACCT_UPDATE_DOCS=1 cargo test -p gpuacct -->\n\n\
         Everything that gpuacct publishes, at `/metrics` and over OTLP. An OTLP name, translated by\n\
         Prometheus' rules, is the name in Prometheus.\n\n\
         Within a family every series has the same labels and no value is ever empty: `(none)` stands\n\
         where a label does not apply, `(unresolved)` where it could not be learnt. Counters keep their\n\
         labels and never fall; each has its own start time in OTLP and, in OpenMetrics, its `_created`.\n",
    );
    for instrument in INSTRUMENTS.iter().chain(cadvisor::FAMILIES) {
        let kind = match instrument.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Info => "info",
        };
        let unit = match instrument.unit {
            Unit::Seconds => "seconds",
            Unit::Bytes => "bytes",
            Unit::Joules => "joules",
            Unit::Ratio => "ratio, 0 to 1",
            Unit::Count(annotation) => annotation,
            Unit::None => "none",
        };
        let labels = if instrument.keys.is_empty() {
            "none".to_owned()
        } else {
            format!("`{}`", instrument.keys.join("` `"))
        };
        write!(
            page,
            "\n## `{}`\n\n{}\n\n| kind | unit | labels | OTLP name | OTLP unit |\n|---|---|---|---|---|\n| {kind} | {unit} | {labels} | `{}` | {} |\n",
            instrument.name,
            instrument.help,
            instrument.otlp,
            match instrument.unit.ucum() {
                "" => "none".to_owned(),
                ucum => format!("`{ucum}`"),
            },
        )
        .expect("a String takes everything");
    }
    page.push_str("\n# Label values\n\n| label | of | values |\n|---|---|---|\n");
    let mut row = |label: &str, family: &str, values: Vec<&str>| {
        writeln!(
            page,
            "| `{label}` | `{family}` | `{}` |",
            values.join("` `")
        )
        .expect("a String takes everything");
    };
    row(
        "reason",
        "gpuacct_gpu_unobserved_seconds_total",
        UnobservedReason::ALL.map(UnobservedReason::as_str).to_vec(),
    );
    row(
        "reason",
        "gpuacct_gpu_unattributed_seconds_total",
        UnattributedReason::ALL
            .map(UnattributedReason::as_str)
            .to_vec(),
    );
    row(
        "attribution",
        "gpuacct_container_info",
        vec!["held", "named", "id_only"],
    );
    row(
        "reason",
        "gpuacct_container_info",
        [
            IdOnlyReason::NoSource,
            IdOnlyReason::SourceDown,
            IdOnlyReason::NotFound,
            IdOnlyReason::PodUidMismatch,
            IdOnlyReason::Timeout,
        ]
        .map(IdOnlyReason::as_str)
        .to_vec(),
    );
    row(
        "source",
        "gpuacct_source_state",
        SourceId::ALL.map(SourceId::as_str).to_vec(),
    );
    row("state", "gpuacct_source_state", STATES.to_vec());
    row(
        "clock",
        "gpuacct_gpu_sample_clock_offset_seconds",
        vec![ClockKind::Wall.as_str(), ClockKind::Boot.as_str()],
    );
    row(
        "outcome",
        "gpuacct_names_lookups_total",
        LOOKUP_OUTCOMES.to_vec(),
    );
    let reasons = ConnectionCounters::default();
    row(
        "reason",
        "gpuacct_connections_closed_total",
        reasons.by_reason().map(|(reason, _)| reason).to_vec(),
    );
    page
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::core::input::GpuInfo;
    use crate::core::model::{HostUnit, SourceState};
    use crate::core::snapshot::HostSeries;
    use crate::outputs::sample;

    /// Remembers every point.
    #[derive(Default)]
    struct Everything(BTreeMap<&'static str, Vec<Vec<String>>>);

    impl Sink for Everything {
        fn family(&mut self, instrument: &'static Instrument) {
            let before = self.0.insert(instrument.name, Vec::new());
            assert_eq!(before, None, "{} is in the table twice", instrument.name);
        }

        fn point(
            &mut self,
            instrument: &'static Instrument,
            labels: &[Cow<'_, str>],
            start: WallTime,
            _: Value,
        ) {
            assert!(
                instrument.kind != Kind::Counter || start.0 > 0,
                "{} has a counter without a start",
                instrument.name
            );
            self.0
                .get_mut(instrument.name)
                .expect("its family came first")
                .push(labels.iter().map(ToString::to_string).collect());
        }
    }

    fn everything(snapshot: &Snapshot) -> (Everything, OutputCounters) {
        let counters = OutputCounters::default();
        let mut seen = Everything::default();
        write(
            &View {
                snapshot,
                counters: &counters,
                opt_in: &OptIn {
                    cadvisor: Some(DutyCycle::Device),
                    pod_labels: vec!["team".to_owned(), "absent".to_owned()],
                },
            },
            &mut seen,
        );
        (seen, counters)
    }

    fn check_every_series(seen: &Everything) {
        for instrument in INSTRUMENTS.iter().chain(cadvisor::FAMILIES) {
            let series = &seen.0[instrument.name];
            let mut distinct = BTreeSet::new();
            for labels in series {
                assert_eq!(labels.len(), instrument.keys.len(), "{}", instrument.name);
                for (key, value) in instrument.keys.iter().zip(labels) {
                    assert!(!value.is_empty(), "{}{{{key}}} is blank", instrument.name);
                    assert!(value.len() <= MAX_LABEL_BYTES, "{}", instrument.name);
                }
                assert!(
                    distinct.insert(labels),
                    "{}{labels:?} twice",
                    instrument.name
                );
            }
        }
    }

    #[test]
    fn every_series_has_every_label_and_none_is_blank() {
        let (seen, counters) = everything(&sample::snapshot());
        check_every_series(&seen);
        for (name, series) in &seen.0 {
            assert!(!series.is_empty(), "the sample shows nothing of {name}");
        }
        assert_eq!(counters.labels_blank.get(), 0);
        assert_eq!(counters.labels_cut.get(), 0);
    }

    #[test]
    fn blanks_from_upstream_are_mended_and_counted() {
        let mut snapshot = sample::snapshot();
        let blank = || "".into();
        snapshot.container_series[0].labels = ContainerLabels {
            namespace: blank(),
            pod: blank(),
            container: blank(),
            pod_uid: blank(),
            container_id: blank(),
        };
        snapshot.container_series[0].image = blank();
        snapshot.namespace_series[0].namespace = blank();
        snapshot.host_series[0].unit = HostUnit(blank());
        snapshot.gpus[0].gpu = GpuInfo {
            model: blank(),
            driver: blank(),
            ..snapshot.gpus[0].gpu.clone()
        };
        let (seen, counters) = everything(&snapshot);
        check_every_series(&seen);
        // Seven families of a container and one more with three engines: five each; info: six; two
        // of namespaces and one of hosts: one each; gpu info: two. cAdvisor's three show the model
        // of the GPU with the other container on it.
        assert_eq!(counters.labels_blank.get(), (7 + 3) * 5 + 6 + 2 + 1 + 2 + 3);
        assert_eq!(
            seen.0["gpuacct_host_gpu_busy_seconds_total"][0][0],
            UNRESOLVED
        );
    }

    #[test]
    fn values_that_differ_only_behind_the_cut_stay_two_series() {
        let mut snapshot = sample::snapshot();
        let long = "\u{e9}".repeat(1 << 19);
        let series = snapshot.host_series[0].clone();
        snapshot.host_series = ["a", "b"]
            .map(|end| HostSeries {
                unit: HostUnit::from(format!("x{long}{end}").as_str()),
                ..series.clone()
            })
            .to_vec();
        let (seen, counters) = everything(&snapshot);
        check_every_series(&seen);
        assert_eq!(counters.labels_cut.get(), 2);
        let (again, _) = everything(&snapshot);
        assert_eq!(seen.0, again.0, "a cut value is the same every time");
    }

    #[test]
    fn control_characters_do_not_go_out() {
        let mut snapshot = sample::snapshot();
        let series = snapshot.host_series[0].clone();
        snapshot.host_series = ["a\0b\u{1b}[31mc\u{85}d\ne", "a\u{1}b\u{1b}[31mc\u{85}d\ne"]
            .map(|unit| HostSeries {
                unit: HostUnit::from(unit),
                ..series.clone()
            })
            .to_vec();
        let (seen, counters) = everything(&snapshot);
        check_every_series(&seen);
        let unit = &seen.0["gpuacct_host_gpu_busy_seconds_total"][0][0];
        assert_eq!(unit.split_once('~').unwrap().0, "a b [31mc d\ne");
        assert_eq!(counters.labels_cut.get(), 2);
    }

    #[test]
    fn every_reason_is_there_also_when_the_book_leaves_it_out() {
        let mut snapshot = sample::snapshot();
        snapshot.gpus.truncate(1);
        snapshot.gpus[0].unattributed.clear();
        snapshot.gpus[0].unobserved.clear();
        let (seen, _) = everything(&snapshot);
        assert_eq!(
            seen.0["gpuacct_gpu_unattributed_seconds_total"].len(),
            UnattributedReason::ALL.len()
        );
        assert_eq!(
            seen.0["gpuacct_gpu_unobserved_seconds_total"].len(),
            UnobservedReason::ALL.len()
        );
    }

    #[test]
    fn a_container_on_two_gpus_has_one_info() {
        let (seen, _) = everything(&sample::snapshot());
        assert_eq!(seen.0["gpuacct_container_gpu_busy_seconds_total"].len(), 4);
        assert_eq!(seen.0["gpuacct_container_info"].len(), 3);
    }

    #[test]
    fn the_states_are_those_of_the_model() {
        let down = SourceState::Down {
            class: "".into(),
            reason: "".into(),
            next_retry: None,
        };
        let states = [
            SourceState::Up,
            SourceState::Absent,
            SourceState::Disabled,
            down,
        ];
        assert_eq!(states.each_ref().map(SourceState::as_str), STATES);
    }

    /// Prometheus' translation of OTLP names (`otlptranslator`, suffixes on, UTF-8 off), written
    /// down once more: tokens of the name, the unit unless it is among them, `total` or `ratio`
    /// last.
    fn translate(instrument: &Instrument) -> String {
        let mut tokens: Vec<&str> = instrument
            .otlp
            .split(|c: char| !c.is_ascii_alphanumeric() && c != ':')
            .filter(|token| !token.is_empty())
            .collect();
        let ucum = instrument.unit.ucum();
        let unit = match ucum {
            "s" => "seconds",
            "By" => "bytes",
            "J" => "joules",
            _ if ucum.contains('{') => "",
            "1" | "" => "",
            other => panic!("{other} is not in the rules written down here"),
        };
        if !unit.is_empty() && !tokens.contains(&unit) {
            tokens.push(unit);
        }
        if instrument.kind == Kind::Counter {
            tokens.retain(|token| *token != "total");
            tokens.push("total");
        }
        if ucum == "1" && instrument.kind == Kind::Gauge {
            tokens.retain(|token| *token != "ratio");
            tokens.push("ratio");
        }
        tokens.join("_")
    }

    #[test]
    fn an_otlp_name_translates_to_the_scraped_one() {
        for instrument in INSTRUMENTS.iter().chain(cadvisor::FAMILIES) {
            assert_eq!(translate(instrument), instrument.name);
        }
    }

    #[test]
    fn names_units_and_kinds_agree() {
        for instrument in INSTRUMENTS {
            let name = instrument.name;
            assert!(name.starts_with("gpuacct_"), "{name}");
            assert_eq!(name.ends_with("_total"), instrument.kind == Kind::Counter);
            assert_eq!(name.ends_with("_info"), instrument.kind == Kind::Info);
            let base = name.trim_end_matches("_total");
            if let Some(suffix) = instrument.unit.suffix() {
                assert!(base.ends_with(&format!("_{suffix}")), "{name}");
            }
            let distinct: BTreeSet<_> = instrument.keys.iter().collect();
            assert_eq!(distinct.len(), instrument.keys.len(), "{name}");
            assert!(instrument.help.ends_with('.'), "{name}");
        }
    }

    #[test]
    fn the_page_of_metrics_is_the_table() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/METRICS.md");
        let page = metrics_markdown();
        if std::env::var_os("GPUACCT_UPDATE_DOCS").is_some() {
            std::fs::create_dir_all(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs")).unwrap();
            std::fs::write(path, &page).unwrap();
        }
        assert_eq!(
            std::fs::read_to_string(path).unwrap_or_default(),
            page,
            "docs/METRICS.md is stale: GPUACCT_UPDATE_DOCS=1 cargo test -p gpuacct"
        );
    }
}
