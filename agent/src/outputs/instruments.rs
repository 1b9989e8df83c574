//! The one table of everything that is published: Prometheus' text, OTLP's messages and
//! `docs/METRICS.md` are made from it and so cannot disagree.
//!
//! A row gives a family its two names (`conventions` has those that OpenTelemetry gives to some
//! families and keys), its kind, unit, help and label keys, and reads its points
//! from what was published last. [`Points`] stands between the rows and the formats and
//! holds the promises that concern every series, so that no row and no format can break them:
//! each series has all keys of its family, no value is empty, none is longer than
//! [`MAX_LABEL_BYTES`].
//!
//! Units at this edge: seconds, bytes, ratios in 0..=1. Seconds travel as integer nanoseconds up to
//! the format that writes them.

mod agent;
pub mod cadvisor;
mod container_points;
mod containers;
pub mod conventions;
#[cfg(test)]
mod conventions_tests;
pub mod dcgm;
mod gpus;
mod health;
mod identity;
mod instrument;
mod labels;
mod markdown;
mod namespaces;
mod nvml;
mod pod_labels;
mod process;
mod records;
mod sources;
mod store;
mod table;
#[cfg(test)]
mod tests;
mod tracking;

pub use self::instrument::{
    DutyCycle, Instrument, Kind, OptIn, Points, Sink, Unit, VERSION, Value, View,
};
pub use self::labels::{ConfiguredLabel, LabelValues, MAX_LABEL_BYTES};
pub use self::markdown::metrics_markdown;
pub use self::pod_labels::pod_label_key;
pub use self::table::{families, write, write_process};
