//! The gRPC interfaces that the tests speak, on both sides: to run pods on real runtimes, to give a
//! real kubelet its devices, and to stand in for runtimes and kubelets that cannot be had.

pub use gpuacct_proto::{device_plugin, pod_resources, runtime as cri};
