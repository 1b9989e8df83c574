//! Fuzz targets: everything that gpuacct reads from outside, and its books.
//!
//! A target takes any bytes. It may refuse them; it must not panic, take long, or take memory beyond
//! what the bytes justify. Where something must hold of the result, the target asserts it.
//!
//! `cargo xtask fuzz TARGET` runs one under libFuzzer. The tests of this package run each over its
//! seeds, the folder `seeds/TARGET`, with no engine and no further tools. An input that once was a
//! defect becomes a seed.

mod accountant;
mod ledger_rows;
mod requests;
mod texts;
mod windows;

/// A fuzz target.
#[derive(Debug)]
pub struct Target {
    /// What it is called.
    pub name: &'static str,
    /// Runs it.
    pub run: fn(&[u8]),
    /// Largest input that makes sense, in bytes.
    pub most: usize,
}

const KIB: usize = 1 << 10;

const fn of(name: &'static str, run: fn(&[u8]), most: usize) -> Target {
    Target { name, run, most }
}

/// Every target.
pub const TARGETS: &[Target] = &[
    of("accountant", accountant::run, 4 * KIB),
    of("btf", texts::btf, 16 * KIB),
    of("budgets", texts::budgets, 4 * KIB),
    of("bundle", gpuacct::sources::identity::bundle::fuzz, 8 * KIB),
    of("cgroup_path", texts::cgroup_path, KIB),
    of("config", texts::config, 4 * KIB),
    of("cdi", gpuacct::sources::gpu::fuzz_cdi, 16 * KIB),
    of("cri", gpuacct::sources::identity::cri::fuzz, 64 * KIB),
    of("device_id", texts::device_id, KIB),
    of("docker", gpuacct::sources::identity::docker::fuzz, 64 * KIB),
    of("http_metrics", requests::metrics, 4 * KIB),
    of("http_socket", requests::socket, 4 * KIB),
    of("kernel_log", gpuacct::sources::kernel_log::fuzz, 4 * KIB),
    of("kubelet_log", texts::kubelet_log, KIB),
    of("ledger_rows", ledger_rows::run, 4 * KIB),
    of(
        "pod_resources",
        gpuacct::sources::identity::pod_resources::fuzz,
        64 * KIB,
    ),
    of("prices", texts::prices, 4 * KIB),
    of("procfs", gpuacct::sources::procfs::fuzz, 4 * KIB),
    of("range", texts::range, KIB),
    of("recording", texts::recording, 16 * KIB),
    of("ring_record", texts::ring_record, KIB),
    of(
        "web_config",
        gpuacct::outputs::prometheus::fuzz_web_config,
        4 * KIB,
    ),
    of("windows", windows::run, 4 * KIB),
];

/// The target of a name.
#[must_use]
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}
