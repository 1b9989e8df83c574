//! The second names: what a family and a key are called over OTLP by OpenTelemetry's semantic
//! conventions, and of which kind a figure is there.
//!
//! A figure or a key without a convention keeps its own name, below `gpuacct.`. The version of the
//! conventions is that of [`SCHEMA_URL`]. `conventions/v1.44.0.txt` beside this file is an extract of
//! them, to which a test compares what is sent.

use super::instrument::{Instrument, Kind};

/// Where the conventions are that the names follow.
pub const SCHEMA_URL: &str = "https://opentelemetry.io/schemas/1.44.0";

/// Families that the conventions name, by their names in Prometheus.
const FAMILIES: [(&str, &str); 7] = [
    ("gpuacct_gpu_energy_joules_total", "hw.energy"),
    ("gpuacct_gpu_memory_size_bytes", "hw.gpu.memory.limit"),
    ("gpuacct_gpu_memory_used_bytes", "hw.gpu.memory.usage"),
    (
        "gpuacct_gpu_memory_utilization_ratio",
        "hw.gpu.memory.utilization",
    ),
    ("gpuacct_gpu_power_watts", "hw.power"),
    ("gpuacct_gpu_temperature_celsius", "hw.temperature"),
    ("gpuacct_gpu_utilization_ratio", "hw.gpu.utilization"),
];

/// Keys that the conventions name.
const KEYS: [(&str, &str); 12] = [
    ("namespace", "k8s.namespace.name"),
    ("pod", "k8s.pod.name"),
    ("pod_uid", "k8s.pod.uid"),
    ("container", "k8s.container.name"),
    ("container_id", "container.id"),
    ("image", "container.image.name"),
    ("runtime", "container.runtime.name"),
    ("gpu_uuid", "hw.id"),
    ("model", "hw.model"),
    ("driver", "hw.driver_version"),
    ("mig_parent", "hw.parent"),
    ("sensor", "hw.sensor_location"),
];

/// Gauges whose values add up over their series: levels of memory, numbers of things, and states, of
/// which one has the value 1. OpenTelemetry's word for them is an UpDownCounter.
pub(super) const LEVELS: [&str; 16] = [
    "gpuacct_allocated_devices",
    "gpuacct_cgroups",
    "gpuacct_container_gpu_memory_bytes",
    "gpuacct_containers",
    "gpuacct_gpu_health_query",
    "gpuacct_gpu_memory_size_bytes",
    "gpuacct_gpu_memory_used_bytes",
    "gpuacct_gpu_recovery_action",
    "gpuacct_gpu_row_remap_state",
    "gpuacct_gpu_status",
    "gpuacct_nvml_threads_blocked",
    "gpuacct_pod_labels",
    "gpuacct_processes",
    "gpuacct_records_waiting",
    "gpuacct_source_state",
    "gpuacct_store_size_bytes",
];

/// What a figure is over OTLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OtlpInstrument {
    /// A sum that only grows.
    Counter,
    /// A sum that rises and falls.
    UpDownCounter,
    /// A value that cannot be added up.
    Gauge,
}

impl Instrument {
    /// Its name by the conventions, or its own.
    #[must_use]
    pub fn conventional(&self) -> &'static str {
        let found = FAMILIES.iter().find(|(name, _)| *name == self.name);
        found.map_or(self.otlp, |(_, conventional)| conventional)
    }

    /// What it is over OTLP by the conventions.
    #[must_use]
    pub fn otlp_instrument(&self) -> OtlpInstrument {
        match self.kind {
            Kind::Counter => OtlpInstrument::Counter,
            Kind::Info => OtlpInstrument::UpDownCounter,
            Kind::Gauge if LEVELS.contains(&self.name) => OtlpInstrument::UpDownCounter,
            Kind::Gauge => OtlpInstrument::Gauge,
        }
    }

    /// Whether it is one of the device's own, which say more about the device than its id.
    #[must_use]
    pub fn is_of_hardware(&self) -> bool {
        self.conventional().starts_with("hw.")
    }
}

/// The name of a key by the conventions, if they have one.
#[must_use]
pub fn conventional_key(key: &str) -> Option<&'static str> {
    let found = KEYS.iter().find(|(label, _)| *label == key);
    found.map(|(_, conventional)| *conventional)
}

/// The name of a key over OTLP: the conventions' or its own.
#[must_use]
pub fn attribute_name(key: &str) -> String {
    conventional_key(key).map_or_else(|| format!("gpuacct.{key}"), str::to_owned)
}

/// An image's name, its tag and its digest or id, as the conventions take it apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ImageParts<'a> {
    /// `container.image.name`.
    pub name: Option<&'a str>,
    /// The one of `container.image.tags`.
    pub tag: Option<&'a str>,
    /// The one of `container.image.repo_digests`.
    pub repo_digest: Option<&'a str>,
    /// `container.image.id`.
    pub id: Option<&'a str>,
}

/// Takes an image's name apart: `registry:5000/team/image:1.2`, `image@sha256:…`, or an id alone.
#[must_use]
pub fn image_parts(image: &str) -> ImageParts<'_> {
    if image.starts_with("sha256:") {
        return ImageParts {
            id: Some(image),
            ..ImageParts::default()
        };
    }
    let (named, digest) = match image.split_once('@') {
        Some((named, _)) => (named, Some(image)),
        None => (image, None),
    };
    // A colon before the last slash is one of the registry's port.
    let begin = named.rfind('/').map_or(0, |slash| slash + 1);
    let colon = named[begin..].find(':').map(|colon| begin + colon);
    let (name, tag) = match colon {
        Some(colon) => (&named[..colon], Some(&named[colon + 1..])),
        None => (named, None),
    };
    ImageParts {
        name: Some(name),
        tag: tag.filter(|tag| !tag.is_empty()),
        repo_digest: digest,
        id: None,
    }
}
