//! GPUs: what NVIDIA's management library answers, turned into windows of busy time.
//!
//! [`nvml`] asks, on a thread of its own, since its calls may block in the driver. [`window`] is
//! the arithmetic, without a clock and without NVML, so that every answer the driver could give can
//! be put to it in a test.

mod credit;
pub mod window;
