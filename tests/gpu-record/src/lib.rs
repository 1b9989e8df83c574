//! What NVIDIA's documentation leaves open, settled on real hardware.
//!
//! [`session`] puts loads of known duty on a GPU and has `gpuacct::sources::gpu::record` write down
//! every answer of NVML meanwhile; [`analysis`] derives facts from those lines, and [`summary`]
//! words them. The recordings become test data, so the facts are derived from nothing else.
//!
//! Refused on purpose: changing any setting of a GPU, starting an MPS daemon, and needing anything
//! but the driver: no CUDA toolkit, no network, no eBPF.
//!
//! Units: microseconds of the wall clock where NVML has them, nanoseconds for busy time and for how
//! long a call took, bytes; shares are 0 to 1.

pub mod agent;
pub mod analysis;
pub mod cuda;
pub mod load;
pub mod session;
pub mod summary;
