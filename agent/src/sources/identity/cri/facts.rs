//! What a runtime says of a container and of its sandbox, as a container's identity. Pure.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use gpuacct_proto::cri::{Container, ContainerStatus, ImageSpec, PodSandboxMetadata};

use crate::core::input::{ContainerIdentity, IdentitySource, KubernetesNames};
use crate::core::model::{ContainerId, NONE, POD_ITSELF};
use crate::sources::identity::{
    Counters, clean_labels, clean_name, kubernetes_names, merge_labels,
};

/// Where runtimes keep an image's name if they call the image by its digest.
const IMAGE_ANNOTATIONS: [&str; 2] = [
    "io.kubernetes.cri.image-name",
    "io.kubernetes.cri-o.ImageName",
];

/// What a sandbox says of its pod.
#[derive(Debug)]
pub(super) struct Sandbox {
    pub(super) metadata: Option<PodSandboxMetadata>,
    /// The pod's labels, cleaned.
    pub(super) labels: BTreeMap<Arc<str>, Arc<str>>,
}

impl Sandbox {
    /// Approximate memory use, rather overestimated.
    pub(super) fn bytes(&self) -> usize {
        const ENTRY: usize = 128;
        let metadata = self.metadata.iter();
        let names = metadata.map(|of| of.name.len() + of.uid.len() + of.namespace.len());
        let labels = self.labels.iter();
        let labels = labels.map(|(key, value)| ENTRY + key.len() + value.len());
        4 * ENTRY + names.chain(labels).sum::<usize>()
    }
}

/// What the interface says of a container, whichever message says it.
pub(super) struct Facts<'a> {
    pub(super) name: Option<&'a str>,
    pub(super) image: Option<&'a ImageSpec>,
    pub(super) image_ref: &'a str,
    pub(super) labels: &'a HashMap<String, String>,
    pub(super) annotations: &'a HashMap<String, String>,
}

impl<'a> Facts<'a> {
    pub(super) fn listed(container: &'a Container) -> Self {
        Self {
            name: container.metadata.as_ref().map(|m| m.name.as_str()),
            image: container.image.as_ref(),
            image_ref: &container.image_ref,
            labels: &container.labels,
            annotations: &container.annotations,
        }
    }

    pub(super) fn alone(status: &'a ContainerStatus) -> Self {
        Self {
            name: status.metadata.as_ref().map(|m| m.name.as_str()),
            image: status.image.as_ref(),
            image_ref: &status.image_ref,
            labels: &status.labels,
            annotations: &status.annotations,
        }
    }

    /// The image as its user wrote it, or nearly so; none if there are only digests.
    pub(super) fn image(&self) -> Option<&'a str> {
        self.images().find(|image| !is_digest(image))
    }

    /// Everything that the image is called, the user's own words first.
    fn images(&self) -> impl Iterator<Item = &'a str> {
        let image = self.image;
        let written = image.map(|image| image.user_specified_image.as_str());
        let given = image.map(|image| image.image.as_str());
        let annotations = self.annotations;
        let annotated = IMAGE_ANNOTATIONS.into_iter().filter_map(move |key| {
            let own = annotations.get(key);
            own.or_else(|| image?.annotations.get(key))
                .map(String::as_str)
        });
        written
            .into_iter()
            .chain(given)
            .chain(annotated)
            .chain([self.image_ref])
            .filter(|image| !image.is_empty())
    }

    pub(super) fn identity(
        &self,
        id: &ContainerId,
        sandbox: Option<&Sandbox>,
        counters: &Counters,
    ) -> ContainerIdentity {
        // The kubelet puts its own four labels on a container and the pod's on its sandbox.
        let mut labels = clean_labels(self.labels, counters);
        if let Some(sandbox) = sandbox {
            labels = merge_labels(labels, &sandbox.labels, counters);
        }
        let pod = sandbox.and_then(|sandbox| sandbox.metadata.as_ref());
        // Never by labels: what this source says of a pod is believed as the runtime's own word.
        let kubernetes = pod
            .zip(self.name)
            .and_then(|(pod, name)| names_in(pod, name, counters));
        let image = self.image().or_else(|| self.images().next());
        ContainerIdentity {
            id: id.clone(),
            source: IdentitySource::Cri,
            name: clean_name(self.name, counters),
            image: clean_name(image, counters),
            // The session knows: see [`Follower::found`].
            runtime: None,
            kubernetes,
            labels,
        }
    }
}

/// Whether an image is called by its digest alone.
fn is_digest(image: &str) -> bool {
    let digits = image.strip_prefix("sha256:").unwrap_or(image);
    image.starts_with("sha256:")
        || (digits.len() == 64 && digits.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Names by the pod's sandbox, held to the same shape as labels are.
fn names_in(
    pod: &PodSandboxMetadata,
    container: &str,
    counters: &Counters,
) -> Option<KubernetesNames> {
    let labels = [
        ("io.kubernetes.pod.namespace", pod.namespace.as_str()),
        ("io.kubernetes.pod.name", &pod.name),
        ("io.kubernetes.pod.uid", &pod.uid),
        ("io.kubernetes.container.name", container),
    ];
    let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned()));
    kubernetes_names(&HashMap::from(labels), counters)
}

/// A sandbox's own container: what keeps the pod's namespaces, or the machine that the pod runs in.
pub(super) fn sandbox_identity(
    id: &ContainerId,
    sandbox: &Sandbox,
    counters: &Counters,
) -> ContainerIdentity {
    let names = sandbox.metadata.as_ref();
    // Any name of a container will do for the check.
    let names = names.and_then(|pod| names_in(pod, "POD", counters));
    ContainerIdentity {
        id: id.clone(),
        source: IdentitySource::Cri,
        name: sandbox
            .metadata
            .as_ref()
            .and_then(|pod| clean_name(Some(&pod.name), counters)),
        // Its image is the runtime's business and nobody's choice.
        image: Some(NONE.into()),
        runtime: None,
        kubernetes: names.map(|names| KubernetesNames {
            container: POD_ITSELF.into(),
            ..names
        }),
        labels: sandbox.labels.clone(),
    }
}
