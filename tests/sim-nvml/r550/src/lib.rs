//! The simulated NVML, as driver R550 would export it.
