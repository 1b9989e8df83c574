//! How much memory the answers of identity sources may take, and which of them are dropped.
//!
//! Anyone who can start a container chooses its names and labels, and thousands of containers come
//! and go without touching a GPU. So the table is bounded in bytes, in two parts:
//!
//! - Answers about containers without an account. If they take too much, the largest are dropped
//!   first. Among answers of one size, those that were least recently wanted are dropped first. They
//!   are asked for again when the container is charged. What the kernel said of a container stays as
//!   long as the container has a process, since the kernel does not repeat it.
//! - Answers about containers with an account. Their names are published and their labels are
//!   reported, so only labels are dropped, the largest sets first.
//!
//! A container is forgotten when it has neither a process nor an account, and no source that
//! reports removals still lists it. Answers that are dropped for lack of room are counted.

use std::sync::Arc;

use crate::directory::entry::{Answer, Entry, Labels, Outcome};
use crate::input::IdentitySource;

/// Bytes of answers about containers without an account: some five hundred with usual labels.
const UNBILLED_BYTES: usize = 3 << 18;
/// Bytes of answers about containers with an account.
const BILLED_BYTES: usize = 8 << 20;
/// Overhead of a text in bytes: two reference counts, a length and a pointer.
const TEXT_BYTES: usize = 32;
/// Overhead of a label in bytes: its part of a tree's nodes, which are not full.
const LABEL_BYTES: usize = 32;

/// The bounds, and how much of them is in use.
#[derive(Clone, Debug)]
pub(super) struct Budget {
    pub(super) unbilled_limit: usize,
    pub(super) billed_limit: usize,
    pub(super) unbilled: usize,
    pub(super) billed: usize,
    /// Containers whose answers were dropped.
    pub(super) names_dropped: u64,
    /// Containers whose labels were dropped.
    pub(super) labels_dropped: u64,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            unbilled_limit: UNBILLED_BYTES,
            billed_limit: BILLED_BYTES,
            unbilled: 0,
            billed: 0,
            names_dropped: 0,
            labels_dropped: 0,
        }
    }
}

impl Budget {
    pub(super) const fn part(&mut self, is_billed: bool) -> &mut usize {
        if is_billed {
            &mut self.billed
        } else {
            &mut self.unbilled
        }
    }
}

/// Bytes that a set of labels takes.
pub(super) fn label_bytes(labels: &Labels) -> usize {
    let of_label = |(key, value): (&Arc<str>, &Arc<str>)| {
        key.len() + value.len() + 2 * TEXT_BYTES + LABEL_BYTES
    };
    labels.iter().map(of_label).sum()
}

/// Bytes that an answer takes.
pub(super) fn answer_bytes(answer: &Answer) -> usize {
    let Outcome::Found {
        identity, labels, ..
    } = &answer.outcome
    else {
        return size_of::<Answer>();
    };
    let kubernetes = identity.kubernetes.as_ref();
    let of_pod = kubernetes.map(|names| {
        let texts = [
            &names.namespace,
            &names.pod,
            &names.pod_uid.0,
            &names.container,
        ];
        texts
            .map(|text| text.len() + TEXT_BYTES)
            .iter()
            .sum::<usize>()
    });
    let texts = [&identity.name, &identity.image, &identity.runtime];
    let of_texts = texts.into_iter().flatten();
    let of_texts = of_texts.map(|text| text.len() + TEXT_BYTES);
    size_of::<Answer>()
        + identity.id.0.len()
        + TEXT_BYTES
        + of_texts.sum::<usize>()
        + of_pod.unwrap_or(0)
        + label_bytes(labels)
}

impl Entry {
    /// Whether a source that reports removals still lists the container.
    pub(super) fn is_standing(&self) -> bool {
        self.answers.iter().flatten().any(|answer| {
            let is_complete = matches!(answer.source, IdentitySource::Docker | IdentitySource::Cri);
            is_complete && !answer.removed && matches!(answer.outcome, Outcome::Found { .. })
        })
    }

    pub(super) fn label_bytes(&self) -> usize {
        let labels = self.answers.iter().flatten().map(|answer| {
            if let Outcome::Found { labels, .. } = &answer.outcome {
                label_bytes(labels)
            } else {
                0
            }
        });
        labels.sum()
    }
}
