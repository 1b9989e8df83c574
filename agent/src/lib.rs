//! gpuacct accounts for the GPU time of a node: which container used how much of which GPU.
//!
//! Observations flow one way. [`sources`] turn the outside world into plain data, [`core`] joins
//! and books it, [`outputs`] show what was [`published`] last. Only [`app`] sees all three.

#![deny(unsafe_code)]

pub mod app;
pub mod budgets;
pub mod commands;
pub mod config;
mod drawing;
mod errors;
mod figures;
pub mod gpu_release;
mod log_filter;
mod maybe_tls;
pub mod outputs;
mod own_process;
pub mod published;
pub mod receiver;
pub mod report;
pub mod secrets;
mod shutdown;
pub mod socket_access;
pub mod sources;
mod text_file;
pub mod usage_record;
mod words;

pub use gpuacct_core as core;
