//! What is known of one container or one pod: each source's last answer, and what of it counts.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::input::{ContainerIdentity, IdentitySource, KubernetesNames};
use crate::model::{BootTime, PodUid};

/// All labels of a container.
pub type Labels = Arc<BTreeMap<Arc<str>, Arc<str>>>;

#[derive(Debug, Default)]
pub(super) struct Entry {
    /// Last answer of each source, in the order of [`IdentitySource::ALL`].
    pub(super) answers: [Option<Box<Answer>>; IdentitySource::ALL.len()],
    /// Bytes that they take.
    pub(super) bytes: usize,
    /// From the cgroup, if a process of the container has been seen.
    pub(super) kernel: Option<Kernel>,
    pub(super) asked: Option<BootTime>,
    /// When both the cgroup and a name were known first.
    pub(super) identified: Option<BootTime>,
    /// Last time that anything was learnt or wanted.
    pub(super) touched: BootTime,
    /// Last time that it had an account.
    pub(super) wanted: Option<BootTime>,
    /// Whether it had one at the last commit, or has got one since.
    pub(super) is_billed: bool,
}

/// A source's answer about a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Source that answered.
    pub source: IdentitySource,
    /// Time at which the answer arrived.
    pub at: BootTime,
    /// Its answer.
    pub outcome: Outcome,
    /// Whether the source has reported the container's removal since.
    pub removed: bool,
}

impl Answer {
    pub(super) const fn new(source: IdentitySource, at: BootTime, outcome: Outcome) -> Self {
        Self {
            source,
            at,
            outcome,
            removed: false,
        }
    }
}

/// What became of a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is known.
    Found {
        /// As what; its labels are apart.
        identity: ContainerIdentity,
        /// Shared with every snapshot.
        labels: Labels,
        /// What of it counts.
        belief: Belief,
    },
    /// The source answers and does not know it, or cannot say.
    NotFound {
        /// Why, as a label value.
        reason: &'static str,
    },
}

/// What a source said of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodAnswer<'a> {
    /// Source that answered.
    pub source: IdentitySource,
    /// Time at which the answer arrived.
    pub at: BootTime,
    /// Its names, or as a label value the reason why they are not known.
    pub names: Result<&'a KubernetesNames, &'static str>,
    /// Whether the source has reported the removal of the subject since.
    pub removed: bool,
}

impl PodAnswer<'_> {
    /// Rank among the answers of one source, the best first.
    pub(super) fn rank(&self) -> (bool, bool, &str, &str, BootTime) {
        let (namespace, pod) = self
            .names
            .map_or(("", ""), |names| (&*names.namespace, &*names.pod));
        (self.names.is_err(), self.removed, namespace, pod, self.at)
    }
}

/// A pod that was looked up by its uid.
#[derive(Debug, Default)]
pub(super) struct PodEntry {
    /// What each said last, in the order of [`IdentitySource::ALL`].
    pub(super) answers:
        [Option<(BootTime, Result<KubernetesNames, &'static str>)>; IdentitySource::ALL.len()],
    pub(super) asked: Option<BootTime>,
    pub(super) touched: BootTime,
}

/// Which part of an answer is used, given the container's cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Belief {
    /// The whole answer.
    Whole,
    /// Nothing yet: the answer names a pod by labels, and the cgroup has not been seen.
    Unconfirmed,
    /// Everything except the pod: labels name a pod, and the cgroup is in no pod.
    WithoutPod,
    /// Nothing: the cgroup is in another pod.
    Nothing,
}

impl Belief {
    pub(super) fn of(identity: &ContainerIdentity, kernel: Option<&Kernel>) -> Self {
        let Some(names) = &identity.kubernetes else {
            return Self::Whole;
        };
        match kernel.map(|kernel| kernel.pod_uid.as_ref()) {
            Some(Some(uid)) if same_uid(uid, &names.pod_uid) => Self::Whole,
            Some(Some(_)) => Self::Nothing,
            Some(None) | None if is_roots(identity) => Self::Whole,
            Some(None) => Self::WithoutPod,
            None => Self::Unconfirmed,
        }
    }

    /// Whether a part of the answer is not believed.
    pub(super) const fn is_refusal(self) -> bool {
        matches!(self, Self::WithoutPod | Self::Nothing)
    }
}

/// Whether only root on the host can have written what an answer says about a pod. This is so for
/// the kubelet's log links and for sandboxes that the kubelet creates through a runtime. A runtime
/// in front of the Docker Engine has no sandboxes of its own and derives them from labels of
/// Docker's containers.
pub(super) fn is_roots(identity: &ContainerIdentity) -> bool {
    match identity.source {
        IdentitySource::KubeletLogs => true,
        IdentitySource::Cri => identity.runtime.as_deref() != Some("docker"),
        IdentitySource::Docker | IdentitySource::Bundle => false,
    }
}

/// The part of an answer that is used.
pub(super) struct Known<'a> {
    pub(super) identity: &'a ContainerIdentity,
    pub(super) labels: &'a Labels,
    pub(super) kubernetes: Option<&'a KubernetesNames>,
}

impl Entry {
    /// All labels that the container's runtime gave.
    pub(super) fn labels(&self) -> Option<&Labels> {
        let known = self.winner().or_else(|| self.found().next())?;
        Some(known.labels)
    }

    /// The runtime's own name for the container, from the sources that have it.
    pub(super) fn own_name(&self) -> Option<Arc<str>> {
        let mut found = self.found().map(|known| known.identity);
        let own = found.find(|identity| {
            let has_names = matches!(
                identity.source,
                IdentitySource::Docker | IdentitySource::Bundle
            );
            has_names && identity.name.is_some()
        });
        own?.name.clone()
    }

    /// Order in which entries are kept when the table is full, the most valuable first. The kernel
    /// does not repeat what it reported, so those come first.
    pub(super) const fn worth(&self) -> (bool, BootTime) {
        (self.kernel.is_some(), self.touched)
    }

    /// The pod that the kernel's cgroup names.
    pub(super) fn pod_uid(&self) -> Option<&PodUid> {
        self.kernel.as_ref()?.pod_uid.as_ref()
    }

    /// Records the time at which the full identity is known for the first time.
    pub(super) fn note_identified(&mut self, now: BootTime) {
        if self.identified.is_none() && self.kernel.is_some() && self.winner().is_some() {
            self.identified = Some(now);
        }
    }

    /// What was found and counts, the best first.
    pub(super) fn found(&self) -> impl Iterator<Item = Known<'_>> {
        self.answers.iter().flatten().filter_map(|answer| {
            let Outcome::Found {
                identity,
                labels,
                belief,
            } = &answer.outcome
            else {
                return None;
            };
            let kubernetes = match belief {
                Belief::Whole => identity.kubernetes.as_ref(),
                Belief::WithoutPod => None,
                Belief::Unconfirmed | Belief::Nothing => return None,
            };
            Some(Known {
                identity,
                labels,
                kubernetes,
            })
        })
    }

    /// The best answer that names the container. In a pod's cgroup only the pod's names do.
    pub(super) fn winner(&self) -> Option<Known<'_>> {
        let in_pod = self.pod_uid().is_some();
        let mut naming = self.found().filter(|known| {
            known.kubernetes.is_some() || (!in_pod && known.identity.name.is_some())
        });
        let first = naming.next()?;
        // A source that knows the pod knows more than a runtime that does not.
        if first.kubernetes.is_none()
            && let Some(better) = naming.find(|known| known.kubernetes.is_some())
        {
            return Some(better);
        }
        Some(first)
    }

    /// Judges all answers again after the kernel has shown another cgroup. Returns, for each
    /// source, how many answers are newly refused.
    pub(super) fn judge(&mut self) -> [u64; IdentitySource::ALL.len()] {
        let mut refused = [0; IdentitySource::ALL.len()];
        for answer in self.answers.iter_mut().flatten() {
            if let Outcome::Found {
                identity, belief, ..
            } = &mut answer.outcome
            {
                let before = std::mem::replace(belief, Belief::of(identity, self.kernel.as_ref()));
                let is_news = belief.is_refusal() && *belief != before;
                refused[source_index(answer.source)] += u64::from(is_news);
            }
        }
        refused
    }

    pub(super) fn is(&self, outcome: fn(&Outcome) -> bool) -> bool {
        self.answers
            .iter()
            .flatten()
            .any(|answer| outcome(&answer.outcome))
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kernel {
    pub(super) pod_uid: Option<PodUid>,
    pub(super) runtime: Arc<str>,
    /// Where the cgroup is; absent where an agent before this one saw it.
    pub(super) place: Option<Arc<str>>,
}

/// A source's place among a container's answers.
pub(super) fn source_index(source: IdentitySource) -> usize {
    source as usize
}

/// A pod's uid without dashes: a key.
pub(super) fn bare_uid(uid: &PodUid) -> PodUid {
    PodUid(uid.0.replace('-', "").into())
}

/// Static pods' uids have no dashes in some places and have them in others.
pub(super) fn same_uid(a: &PodUid, b: &PodUid) -> bool {
    pub(super) fn bare(uid: &PodUid) -> impl Iterator<Item = u8> {
        uid.0.bytes().filter(|byte| *byte != b'-')
    }
    bare(a).eq(bare(b))
}
