//! A row of the table: a family of series, the figure of a point, and where a row writes its points.

use std::borrow::Cow;

use super::container_points::PublishedContainer;
use super::labels::{
    ConfiguredLabel, Corrections, LabelValues, SHARED_LABELS, SharedLabels, clean,
};
use crate::core::amounts::Millijoules;
use crate::core::model::WallTime;
use crate::core::snapshot::Snapshot;
use crate::outputs::counters::OutputCounters;
use crate::published::{AgentStatus, Published};

/// The version of this agent.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The revision of the source that this agent was built from; `(none)` in a development build, and
/// where there was no Git. Set by the build script.
pub(super) const REVISION: &str = env!("GPUACCT_BUILT_REVISION");

/// The compiler that built this agent, such as `rustc 1.95.0`. Set by the build script.
pub(super) const COMPILER: &str = env!("GPUACCT_BUILT_COMPILER");

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
    /// A value that can rise and fall.
    Gauge,
    /// Always 1; the labels are what it says.
    Info,
}

/// What a figure is measured in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Time in seconds, UCUM `s`.
    Seconds,
    /// Memory or storage in bytes, UCUM `By`.
    Bytes,
    /// Energy in joules, UCUM `J`.
    Joules,
    /// Power in watts, UCUM `W`.
    Watts,
    /// Temperature in degrees Celsius, UCUM `Cel`.
    Celsius,
    /// Frequency in hertz, UCUM `Hz`.
    Hertz,
    /// Throughput in bytes a second, UCUM `By/s`.
    BytesPerSecond,
    /// A ratio from 0 to 1.
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
            Self::Watts => "W",
            Self::Celsius => "Cel",
            Self::Hertz => "Hz",
            Self::BytesPerSecond => "By/s",
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
            Self::Watts => Some("watts"),
            Self::Celsius => Some("celsius"),
            Self::Hertz => Some("hertz"),
            Self::BytesPerSecond => Some("bytes_per_second"),
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
    /// A ratio from 0 to 1.
    Ratio(f64),
}

/// What the rows are read from.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The books as of the last commit.
    pub snapshot: &'a Snapshot,
    /// How the agent itself is.
    pub agent: &'a AgentStatus,
    /// What the outputs count of themselves.
    pub counters: &'a OutputCounters,
    /// What is shown beyond that.
    pub opt_in: &'a OptIn,
}

impl<'a> View<'a> {
    /// What was published last, with what the outputs count and show beyond that.
    #[must_use]
    pub const fn new(
        published: &'a Published,
        counters: &'a OutputCounters,
        opt_in: &'a OptIn,
    ) -> Self {
        Self {
            snapshot: &published.books,
            agent: &published.agent,
            counters,
            opt_in,
        }
    }
}

/// What is published only where it is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OptIn {
    /// Whether cAdvisor's families are shown, and whose duty cycle.
    pub cadvisor: Option<DutyCycle>,
    /// Whether DCGM's families are shown, and the node's name in them.
    pub dcgm: Option<String>,
    /// The pods' own labels that are shown.
    pub pod_labels: Vec<String>,
    /// What the keys of labels that name an owner begin with, in Prometheus.
    pub owner_prefix: String,
}

/// A format: takes the families in the table's order, and the points of each.
pub trait Sink {
    /// Begins a metric family.
    fn family(&mut self, instrument: &'static Instrument);
    /// A point of it. `labels` has one value for each of the family's keys, in their order; `start`
    /// is when a counter was zero.
    fn point(
        &mut self,
        instrument: &'static Instrument,
        labels: LabelValues<'_>,
        start: WallTime,
        value: Value,
    );
}

/// The most keys that a family has.
pub(super) const MAX_KEYS: usize = 11;

/// Where a row writes its points, and where the promises that concern every series are kept.
pub struct Points<'a> {
    instrument: &'static Instrument,
    sink: &'a mut dyn Sink,
    counters: &'a OutputCounters,
    containers: &'a [PublishedContainer<'a>],
}

impl std::fmt::Debug for Points<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Points")
            .field("instrument", &self.instrument.name)
            .finish_non_exhaustive()
    }
}

impl<'a> Points<'a> {
    /// Where the points of this family are written.
    pub(super) fn new(
        instrument: &'static Instrument,
        sink: &'a mut dyn Sink,
        counters: &'a OutputCounters,
        containers: &'a [PublishedContainer<'a>],
    ) -> Self {
        Self {
            instrument,
            sink,
            counters,
            containers,
        }
    }

    /// What is published of containers, with the labels that their families share.
    pub(super) const fn containers(&self) -> &'a [PublishedContainer<'a>] {
        self.containers
    }

    /// A point with the family's label values, in the order of its keys.
    pub fn put(&mut self, labels: &[&str], start: WallTime, value: Value) {
        self.write(None, labels, &[], start, value);
    }

    /// A point of a container, whose label values come first, and then the others.
    pub(super) fn put_container(
        &mut self,
        container: &PublishedContainer<'_>,
        others: &[&str],
        value: Value,
    ) {
        let start = container.series.start;
        self.write(Some(&container.labels), others, &[], start, value);
    }

    /// A point with labels whose keys the configuration has chosen, after those of the family.
    pub(super) fn put_configured(
        &mut self,
        labels: &[&str],
        configured: &[(&str, &str)],
        start: WallTime,
        value: Value,
    ) {
        self.write(None, labels, configured, start, value);
    }

    fn write(
        &mut self,
        shared: Option<&SharedLabels<'_>>,
        labels: &[&str],
        configured: &[(&str, &str)],
        start: WallTime,
        value: Value,
    ) {
        let keys = self.instrument.keys.len();
        let places = keys.saturating_sub(shared.map_or(0, |_| SHARED_LABELS));
        debug_assert_eq!(
            labels.len(),
            places,
            "a label value for every key of {}",
            self.instrument.name
        );
        let mut corrections = shared.map(SharedLabels::corrections).unwrap_or_default();
        let mut own = [const { Cow::Borrowed("") }; MAX_KEYS];
        let own = &mut own[..places.min(MAX_KEYS)];
        for (place, value) in own.iter_mut().enumerate() {
            let label = labels.get(place).copied().unwrap_or_default();
            *value = clean(label, &mut corrections);
        }
        let configured: Vec<ConfiguredLabel<'_>> = configured
            .iter()
            .map(|(key, value)| (*key, clean(value, &mut corrections)))
            .collect();
        if corrections != Corrections::default() {
            self.counters.labels_blank.add(corrections.blank);
            self.counters.labels_cut.add(corrections.cut);
        }
        let labels = LabelValues::after(shared, own).with(&configured);
        self.sink.point(self.instrument, labels, start, value);
    }
}

/// Seconds, given in nanoseconds.
pub(super) fn nanos(amount: u64) -> Value {
    Value::Nanos(i128::from(amount))
}

/// Joules, given in millijoules.
pub(super) const fn joules(amount: Millijoules) -> Value {
    Value::Nanos(amount.0 as i128 * 1_000_000)
}

/// A figure of the agent itself, without labels.
pub(super) fn own(view: &View<'_>, points: &mut Points<'_>, value: u64) {
    points.put(&[], view.snapshot.agent_started, Value::Count(value));
}

/// Whose duty cycle is shown with a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DutyCycle {
    /// Duty cycle of the device, as in cAdvisor, regardless of who used it.
    Device,
    /// The container's own share of the device.
    Container,
}
