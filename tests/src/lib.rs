//! What gpuacct's tests against real parts share.

pub mod daemon;
pub mod http;
pub mod kernel;
pub mod otlp;
pub mod prometheus;
pub mod python;
pub mod requirement;
pub mod rotel;
