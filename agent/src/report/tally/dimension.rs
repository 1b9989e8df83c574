//! By what a report groups: an account's parts, a pod's labels, time.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// By what a report is grouped.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Dimension {
    /// Kubernetes namespace.
    Namespace,
    /// Pod name.
    Pod,
    /// Pod uid.
    PodUid,
    /// Container name.
    Container,
    /// Container id.
    ContainerId,
    /// Image of the container.
    Image,
    /// Container runtime.
    Runtime,
    /// systemd unit or cgroup of host processes.
    Unit,
    /// A label that the container's runtime gave.
    Label(Arc<str>),
    /// Name of the node that has the GPU.
    Node,
    /// Name of the cluster that the node is in, which only a store of metrics has.
    Cluster,
    /// GPU or MIG instance, by UUID.
    Gpu,
    /// NVML's index of the GPU, which can change over reboots. A MIG instance has its GPU's.
    GpuIndex,
    /// The GPU's model.
    Model,
    /// The profile of the MIG instance.
    Profile,
    /// Hour, in the report's zone.
    Hour,
    /// Day, in the report's zone.
    Day,
    /// Month, in the report's zone.
    Month,
}

/// Those without a parameter, in the order in which they are offered.
pub(super) const PLAIN: [(&str, Dimension); 17] = [
    ("namespace", Dimension::Namespace),
    ("pod", Dimension::Pod),
    ("pod_uid", Dimension::PodUid),
    ("container", Dimension::Container),
    ("container_id", Dimension::ContainerId),
    ("image", Dimension::Image),
    ("runtime", Dimension::Runtime),
    ("unit", Dimension::Unit),
    ("node", Dimension::Node),
    ("cluster", Dimension::Cluster),
    ("gpu", Dimension::Gpu),
    ("gpu_index", Dimension::GpuIndex),
    ("model", Dimension::Model),
    ("profile", Dimension::Profile),
    ("hour", Dimension::Hour),
    ("day", Dimension::Day),
    ("month", Dimension::Month),
];

const LABEL: &str = "label:";

impl FromStr for Dimension {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(key) = text.strip_prefix(LABEL).filter(|key| !key.is_empty()) {
            return Ok(Self::Label(key.into()));
        }
        let plain = PLAIN.iter().find(|(name, _)| *name == text);
        plain
            .map(|(_, dimension)| dimension.clone())
            .ok_or_else(|| {
                let names = PLAIN.map(|(name, _)| name).join(", ");
                format!("found {text:?}, expected one of {names}, {LABEL}KEY")
            })
    }
}

impl fmt::Display for Dimension {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Self::Label(key) = self {
            return write!(f, "{LABEL}{key}");
        }
        let plain = PLAIN.iter().find(|(_, dimension)| dimension == self);
        f.write_str(plain.map_or("?", |(name, _)| name))
    }
}

impl Dimension {
    /// Puts the index of a GPU beside its UUID, which nobody knows by heart. The rows are the same.
    #[must_use]
    pub fn with_index(by: &[Self]) -> Vec<Self> {
        let is_there = by.contains(&Self::GpuIndex);
        let beside = |dimension: &Self| {
            let index = (*dimension == Self::Gpu && !is_there).then_some(Self::GpuIndex);
            std::iter::once(dimension.clone()).chain(index)
        };
        by.iter().flat_map(beside).collect()
    }

    /// Whether it says who; otherwise it says when or where, which every row has.
    #[must_use]
    pub const fn is_identity(&self) -> bool {
        !matches!(
            self,
            Self::Node
                | Self::Cluster
                | Self::Gpu
                | Self::GpuIndex
                | Self::Model
                | Self::Profile
                | Self::Hour
                | Self::Day
                | Self::Month
        )
    }

    pub(super) const fn is_time(&self) -> bool {
        matches!(self, Self::Hour | Self::Day | Self::Month)
    }
}
