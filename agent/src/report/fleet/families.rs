//! The counters that a report is made of, and whose a series is.
//!
//! An owner's labels are read wherever a scraper or OTLP has put them: `owner_namespace` of an agent with
//! `prometheus.owner_prefix`, `exported_namespace` of a Prometheus that renamed them,
//! `k8s_namespace_name` of OTLP, `namespace`. Labels of the target (`instance`, `job`, `pod` of the agent,
//! a replica's name) are no part of what identifies a counter, so a replaced target goes on with it.

use std::sync::Arc;

use crate::core::amounts::{Amounts, ByteSeconds, Engine, Millijoules};
use crate::core::model::{NONE, Nanos};
use crate::report::promql::answer::Labels;
use crate::report::tally::Figure;

/// What a counter counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// Of a container.
    Container(Amount),
    /// Busy time of the host.
    Host,
    /// Of a GPU.
    Gpu(OfGpu),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Amount {
    Busy,
    Engine,
    Held,
    Allocated,
    Memory,
    Energy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OfGpu {
    Elapsed,
    Busy,
    Idle,
    Unobserved,
    Unattributed,
    Energy,
    IdleEnergy,
}

/// A counter that is read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Family {
    pub(super) name: &'static str,
    pub(super) what: What,
}

const NANOS: f64 = 1e9;
const MILLI: f64 = 1e3;

const fn of_gpu(name: &'static str, what: OfGpu) -> Family {
    let what = What::Gpu(what);
    Family { name, what }
}

const fn of_container(name: &'static str, what: Amount) -> Family {
    let what = What::Container(what);
    Family { name, what }
}

/// The GPUs' own counters come first: they say how far the store reaches.
pub(super) const FAMILIES: [Family; 14] = [
    of_gpu("gpuacct_gpu_elapsed_seconds_total", OfGpu::Elapsed),
    of_gpu("gpuacct_gpu_busy_seconds_total", OfGpu::Busy),
    of_gpu("gpuacct_gpu_idle_seconds_total", OfGpu::Idle),
    of_gpu("gpuacct_gpu_unobserved_seconds_total", OfGpu::Unobserved),
    of_gpu(
        "gpuacct_gpu_unattributed_seconds_total",
        OfGpu::Unattributed,
    ),
    of_gpu("gpuacct_gpu_energy_joules_total", OfGpu::Energy),
    of_gpu("gpuacct_gpu_idle_energy_joules_total", OfGpu::IdleEnergy),
    Family {
        name: "gpuacct_host_gpu_busy_seconds_total",
        what: What::Host,
    },
    of_container("gpuacct_container_gpu_busy_seconds_total", Amount::Busy),
    of_container(
        "gpuacct_container_gpu_engine_busy_seconds_total",
        Amount::Engine,
    ),
    of_container("gpuacct_container_gpu_held_seconds_total", Amount::Held),
    of_container(
        "gpuacct_container_gpu_allocated_seconds_total",
        Amount::Allocated,
    ),
    of_container(
        "gpuacct_container_gpu_memory_byte_seconds_total",
        Amount::Memory,
    ),
    of_container("gpuacct_container_gpu_energy_joules_total", Amount::Energy),
];

pub(super) const GPU_INFO: &str = "gpuacct_gpu_info";
pub(super) const CONTAINER_INFO: &str = "gpuacct_container_info";

/// More than any counter has in its unit: a byte-second counter of a node after centuries.
const MOST: f64 = 1e27;

impl Family {
    /// By what a value is multiplied, so that it is a whole number of the unit of the books.
    const fn scale(&self) -> f64 {
        match self.what {
            What::Gpu(OfGpu::Energy | OfGpu::IdleEnergy) | What::Container(Amount::Energy) => MILLI,
            What::Container(Amount::Memory) => 1.0,
            _ => NANOS,
        }
    }

    /// Whether there is no report without it.
    pub(super) const fn is_needed(&self) -> bool {
        matches!(
            self.what,
            What::Gpu(OfGpu::Elapsed | OfGpu::Busy | OfGpu::Idle)
        )
    }

    /// The figure of the report that is absent where the counter is.
    pub(super) const fn figure(&self) -> Option<Figure> {
        Some(match self.what {
            What::Gpu(OfGpu::Energy) | What::Container(Amount::Energy) => Figure::Energy,
            What::Container(Amount::Engine) => Figure::Engines,
            What::Container(Amount::Held) => Figure::Held,
            What::Container(Amount::Allocated) => Figure::Allocated,
            What::Container(Amount::Memory) => Figure::Memory,
            _ => return None,
        })
    }

    /// A value in the unit of the books; none if no counter has so much.
    pub(super) fn unit(&self, value: f64) -> Option<u128> {
        let scaled = (value * self.scale()).round();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it is a whole number in range"
        )]
        (0.0..MOST).contains(&scaled).then_some(scaled as u128)
    }
}

/// Names of a label beside its own, first the one that counts most.
fn names_of(label: &str) -> &'static [&'static str] {
    match label {
        "namespace" => &[
            "owner_namespace",
            "exported_namespace",
            "k8s_namespace_name",
            "namespace",
        ],
        "pod" => &["owner_pod", "exported_pod", "k8s_pod_name", "pod"],
        "container" => &[
            "owner_container",
            "exported_container",
            "k8s_container_name",
            "container_name",
            "container",
        ],
        "pod_uid" => &[
            "owner_pod_uid",
            "exported_pod_uid",
            "k8s_pod_uid",
            "pod_uid",
        ],
        "container_id" => &[
            "owner_container_id",
            "exported_container_id",
            "container_id",
        ],
        "unit" => &["owner_unit", "exported_unit", "gpuacct_unit", "unit"],
        "gpu_uuid" => &["exported_gpu_uuid", "hw_id", "gpu_uuid"],
        "reason" => &["exported_reason", "gpuacct_reason", "reason"],
        "engine" => &["exported_engine", "gpuacct_engine", "engine"],
        "image" => &["exported_image", "container_image_name", "image"],
        "runtime" => &["exported_runtime", "container_runtime_name", "runtime"],
        "index" => &["exported_index", "gpuacct_index", "index"],
        "model" => &["exported_model", "hw_model", "model"],
        "mig_profile" => &["exported_mig_profile", "gpuacct_mig_profile", "mig_profile"],
        "mig_parent" => &["exported_mig_parent", "hw_parent", "mig_parent"],
        "node" => &["k8s_node_name", "node", "host_name", "kubernetes_node"],
        "cluster" => &["cluster", "k8s_cluster_name"],
        _ => &[],
    }
}

/// The name and the value of a label, by whatever name it is there. OTLP's dots may have been kept.
pub(super) fn found<'a>(labels: &'a Labels, label: &str) -> Option<(&'a str, &'a str)> {
    names_of(label).iter().find_map(|name| {
        let same = |of: &str| {
            of.bytes()
                .map(|c| if c == b'.' { b'_' } else { c })
                .eq(name.bytes())
        };
        let mut found = labels
            .iter()
            .filter(|(of, value)| !value.is_empty() && same(of));
        found
            .next()
            .map(|(name, value)| (name.as_str(), value.as_str()))
    })
}

/// The value of a label; `(none)` where it is not there, as OTLP leaves that out.
pub(super) fn value(labels: &Labels, label: &str) -> Arc<str> {
    found(labels, label).map_or(NONE, |(_, value)| value).into()
}

/// Who used a GPU.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Owner {
    Container {
        namespace: Arc<str>,
        pod: Arc<str>,
        container: Arc<str>,
        pod_uid: Arc<str>,
        container_id: Arc<str>,
    },
    Host {
        unit: Arc<str>,
    },
    /// The GPU's own counter.
    Nobody,
}

impl Owner {
    /// Namespace, name and uid of the pod that it is in, or what stands for that.
    pub(super) fn pod(&self) -> Option<[Arc<str>; 3]> {
        match self {
            Self::Container {
                namespace,
                pod,
                pod_uid,
                ..
            } => Some([namespace, pod, pod_uid].map(Arc::clone)),
            Self::Host { .. } | Self::Nobody => None,
        }
    }
}

/// What identifies a counter.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Subject {
    pub(super) gpu: Arc<str>,
    pub(super) owner: Owner,
    /// The reason, or the engine; `(none)` where there is neither.
    pub(super) detail: Arc<str>,
}

impl Subject {
    /// The subject of a series; none if it names no GPU.
    pub(super) fn of(what: What, labels: &Labels) -> Option<Self> {
        let gpu = found(labels, "gpu_uuid")?.1.into();
        let of = |label: &str| value(labels, label);
        let owner = match what {
            What::Container(_) => Owner::Container {
                namespace: of("namespace"),
                pod: of("pod"),
                container: of("container"),
                pod_uid: of("pod_uid"),
                container_id: of("container_id"),
            },
            What::Host => Owner::Host { unit: of("unit") },
            What::Gpu(_) => Owner::Nobody,
        };
        let detail = match what {
            What::Container(Amount::Engine) => of("engine"),
            What::Gpu(OfGpu::Unobserved | OfGpu::Unattributed) => of("reason"),
            _ => NONE.into(),
        };
        Some(Self { gpu, owner, detail })
    }
}

impl Amount {
    /// Adds growth to an account's amounts. An engine that is not known here is left out.
    pub(super) fn add(self, amounts: &mut Amounts, detail: &str, grown: u128) {
        let small = u64::try_from(grown).unwrap_or(u64::MAX);
        match self {
            Self::Busy => amounts.busy += Nanos(small),
            Self::Held => amounts.held += Nanos(small),
            Self::Allocated => amounts.allocated += Nanos(small),
            Self::Memory => {
                amounts.memory = ByteSeconds(amounts.memory.0.saturating_add(grown));
            }
            Self::Energy => {
                amounts.energy = Millijoules(amounts.energy.0.saturating_add(small));
            }
            Self::Engine => {
                let mut engines = Engine::ALL.into_iter();
                if let Some(engine) = engines.find(|engine| engine.as_str() == detail) {
                    *amounts.engines.of_mut(engine) += Nanos(small);
                }
            }
        }
    }
}
