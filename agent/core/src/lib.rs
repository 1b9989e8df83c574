//! The accountant itself: arithmetic and state machines over plain data.
//!
//! Nothing here performs I/O, reads a clock or awaits. Time is an argument, observations come in
//! as [`input::Input`], the books go out as a [`snapshot::Snapshot`]. That is what lets the core be
//! tested, fuzzed and replayed without a kernel or a GPU. The manifest shows it: there is no
//! dependency that could do any of these.
//!
//! Units: integer nanoseconds, bytes. Times are on the boot clock unless the type says otherwise.

pub mod account;
pub mod accountant;
mod accounts;
pub mod allocation;
pub mod amounts;
pub mod attribute;
mod awaited;
mod backlog;
pub mod cgroup_path;
mod change_tracker;
pub mod completeness;
mod device;
pub mod directory;
pub mod effect;
mod event_stream;
pub mod explanation;
mod followed;
mod health;
pub mod holding;
pub mod input;
pub mod ledger;
mod live_owners;
pub mod model;
mod namespaces;
mod naming;
pub mod opens;
pub mod owners;
pub mod placement;
pub mod process_table;
pub mod publication;
pub mod records;
pub mod replay;
mod shares;
pub mod sharing;
pub mod snapshot;
pub mod source_states;
mod tables;
#[cfg(test)]
mod testing;
mod tiling;
mod tracker;
mod xids;
