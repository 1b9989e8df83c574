//! The eBPF object.
