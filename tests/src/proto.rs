//! The gRPC interfaces that the tests speak, on both sides: to run pods on real runtimes, to give a
//! real kubelet its devices, and to stand in for runtimes and kubelets that cannot be had. The code
//! is written by `cargo xtask codegen`.

/// The container runtime interface, v1.
#[allow(
    clippy::all,
    clippy::allow_attributes_without_reason,
    missing_docs,
    unreachable_pub,
    reason = "generated, with the whole of every message"
)]
pub mod cri {
    include!("proto/cri.rs");
}

/// The kubelet's PodResources interface, v1.
#[allow(
    clippy::all,
    clippy::allow_attributes_without_reason,
    missing_docs,
    unreachable_pub,
    reason = "generated, with the whole of every message"
)]
pub mod pod_resources {
    include!("proto/pod_resources.rs");
}

/// The kubelet's interface to device plugins, v1beta1.
#[allow(
    clippy::all,
    clippy::allow_attributes_without_reason,
    missing_docs,
    unreachable_pub,
    reason = "generated, with the whole of every message"
)]
pub mod device_plugin {
    include!("proto/device_plugin.rs");
}
