//! The gRPC interfaces that gpuacct speaks, as the `.proto` files in `proto/` define them. The code is
//! written by `cargo xtask codegen`.
//!
//! A crate of its own, since it changes yearly and the code around it daily. The asking sides are
//! there by default; the feature `server` adds the serving sides and what only tests speak.

/// The container runtime interface, v1, cut down to what the agent asks for and reads. Fields that are
/// left out are skipped when an answer is decoded.
#[allow(
    clippy::all,
    clippy::allow_attributes_without_reason,
    missing_docs,
    unreachable_pub,
    reason = "generated, with the whole of every message"
)]
pub mod cri {
    include!("generated/cri.rs");
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
    include!("generated/pod_resources.rs");
}

/// The container runtime interface, v1, with what it takes to run pods on a real runtime and to stand
/// in for one. It is not the module `cri`: the agent is to skip what it does not read.
#[cfg(feature = "server")]
#[allow(
    clippy::all,
    clippy::allow_attributes_without_reason,
    missing_docs,
    unreachable_pub,
    reason = "generated, with the whole of every message"
)]
pub mod runtime {
    include!("generated/runtime.rs");
}

/// The kubelet's interface to device plugins, v1beta1.
#[cfg(feature = "server")]
#[allow(
    clippy::all,
    clippy::allow_attributes_without_reason,
    missing_docs,
    unreachable_pub,
    reason = "generated, with the whole of every message"
)]
pub mod device_plugin {
    include!("generated/device_plugin.rs");
}
