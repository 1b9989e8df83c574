//! What one segment of a cgroup's path says by itself: the id of a container, or a number.

use crate::model::{ContainerId, UNRESOLVED};

/// Who runs a container, by the shape of its cgroup's path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Runtime {
    /// Docker Engine.
    Docker,
    /// containerd, through CRI or nerdctl.
    Containerd,
    /// CRI-O.
    CriO,
    /// Podman, or another user of libpod.
    Podman,
    /// Kata Containers: the path names the sandbox, in which all of a pod's containers are.
    Kata,
    /// The path is a bare id: Docker and containerd both write that under a parent that is not
    /// their own.
    Unresolved,
}

impl Runtime {
    /// Returns the value as used in labels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Containerd => "containerd",
            Self::CriO => "cri-o",
            Self::Podman => "podman",
            Self::Kata => "kata",
            Self::Unresolved => UNRESOLVED,
        }
    }
}

/// Digits of a container id.
pub(crate) const ID_LEN: usize = 64;

pub(crate) fn is_numbered(text: &str, prefix: &str) -> bool {
    text.strip_prefix(prefix)
        .is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
}

/// `<prefix>-<id>`, with `.scope` behind it under the systemd driver. Monitors (`crio-conmon-<id>`,
/// `libpod-conmon-<id>`) are no containers: what stands between prefix and id makes the id
/// malformed, except for the payload that Podman splits off from its monitor.
pub(crate) fn prefixed(component: &str) -> Option<(ContainerId, Runtime)> {
    let name = component.strip_suffix(".scope").unwrap_or(component);
    [
        ("docker-", Runtime::Docker),
        ("cri-containerd-", Runtime::Containerd),
        ("nerdctl-", Runtime::Containerd),
        ("crio-", Runtime::CriO),
        ("libpod-payload-", Runtime::Podman),
        ("libpod-", Runtime::Podman),
    ]
    .into_iter()
    .find_map(|(prefix, runtime)| Some((container_id(name.strip_prefix(prefix)?)?, runtime)))
}

pub(crate) fn container_id(text: &str) -> Option<ContainerId> {
    let well_formed =
        text.len() == ID_LEN && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    well_formed.then(|| ContainerId::from(text))
}
