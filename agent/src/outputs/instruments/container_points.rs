//! What is published of containers, made ready once for all of their families.

use std::collections::HashMap;

use super::labels::{SHARED_LABELS, SharedLabels};
use crate::core::snapshot::{ContainerLabels, ContainerSeries, GpuBook, Snapshot};

/// The label keys with which all families of a container on a GPU begin.
pub(super) const CONTAINER_GPU: &[&str; SHARED_LABELS] = &[
    "namespace",
    "pod",
    "container",
    "pod_uid",
    "container_id",
    "gpu_uuid",
];

/// A container's series on a GPU, with its labels and the GPU's book.
#[derive(Debug)]
pub(super) struct PublishedContainer<'a> {
    pub(super) series: &'a ContainerSeries,
    /// Values of [`CONTAINER_GPU`].
    pub(super) labels: SharedLabels<'a>,
    /// The book of its GPU; absent if there is none.
    pub(super) book: Option<&'a GpuBook>,
}

impl<'a> PublishedContainer<'a> {
    /// All that are in the snapshot, in its order.
    pub(super) fn all(snapshot: &'a Snapshot) -> Vec<Self> {
        let books = snapshot.gpus.iter();
        let books: HashMap<_, _> = books.map(|book| (&book.gpu.uuid, book)).collect();
        let series = snapshot.container_series.iter().enumerate();
        series
            .map(|(number, series)| {
                let ContainerLabels {
                    namespace,
                    pod,
                    container,
                    pod_uid,
                    container_id,
                } = &*series.labels;
                let gpu = series.gpu.as_str();
                let labels = [namespace, pod, container, pod_uid, container_id, gpu];
                Self {
                    series,
                    labels: SharedLabels::new(number, labels),
                    book: books.get(&series.gpu).copied(),
                }
            })
            .collect()
    }
}
