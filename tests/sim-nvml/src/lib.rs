//! A simulated NVML behind the real library's ABI.
