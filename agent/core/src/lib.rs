//! The accountant itself: arithmetic and state machines over plain data.
//!
//! Nothing here performs I/O, reads a clock or awaits. Time is an argument, observations come in
//! as [`input::Input`], the books go out as a [`snapshot::Snapshot`]. That is what lets the core be
//! tested, fuzzed and replayed without a kernel or a GPU, and it is held by a test: no file below
//! names tokio, aya, nvml-wrapper, hyper, tonic, opentelemetry or a database.
//!
//! Units: integer nanoseconds, bytes. Times are on the boot clock unless the type says otherwise.

pub mod accountant;
pub mod allocation;
pub mod amounts;
pub mod attribute;
mod awaited;
pub mod cgroup_path;
pub mod completeness;
pub mod directory;
mod event_stream;
mod explain;
#[cfg(test)]
mod gap_tests;
pub mod holding;
pub mod input;
pub mod ledger;
pub mod model;
pub mod opens;
pub mod persist;
pub mod placement;
pub mod process_table;
pub mod publication;
pub mod recording;
mod shares;
pub mod sharing;
pub mod snapshot;
mod tables;
mod tiling;
