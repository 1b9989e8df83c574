//! Outputs show what was published last. An output never feeds anything upstream, and a slow or
//! dead one never delays the others.

use std::sync::Arc;

use crate::core::model::Clock;

pub mod condition;
mod connection_slots;
pub mod connections;
pub mod counters;
pub mod gpu_status;
pub mod instruments;
pub mod log;
pub mod otlp;
mod probe;
pub mod prometheus;
pub mod receiver;
pub mod socket;
pub mod status_report;
pub mod store;
pub mod telemetry;

#[cfg(test)]
pub(crate) mod sample;

/// Reads both clocks. Given to the outputs rather than called by them, so that a test can say what
/// time it is.
pub type ReadClock = Arc<dyn Fn() -> Clock + Send + Sync>;

/// The label value of a file that could not be read or written.
pub(crate) const fn disk_class(kind: std::io::ErrorKind) -> &'static str {
    use std::io::ErrorKind;
    match kind {
        ErrorKind::PermissionDenied => "permission",
        ErrorKind::ReadOnlyFilesystem => "read_only",
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "disk_full",
        _ => "io",
    }
}
