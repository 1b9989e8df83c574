//! What gpuacct's tests against real parts share.

pub mod kernel;
pub mod requirement;
