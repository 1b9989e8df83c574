//! The gRPC interfaces that are asked, as their `.proto` files beside this one define them. The
//! code is written by `cargo xtask codegen`.

/// The container runtime interface, v1.
#[allow(
    clippy::all,
    clippy::allow_attributes_without_reason,
    dead_code,
    missing_docs,
    unreachable_pub,
    reason = "generated, with the whole of every message"
)]
pub(super) mod cri {
    include!("proto/cri.rs");
}

/// The kubelet's PodResources interface, v1.
#[allow(
    clippy::all,
    clippy::allow_attributes_without_reason,
    dead_code,
    missing_docs,
    unreachable_pub,
    reason = "generated, with the whole of every message"
)]
pub(super) mod pod_resources {
    include!("proto/pod_resources.rs");
}
