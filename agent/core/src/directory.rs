//! Names of containers: the answers of all identity sources, by container id.
//!
//! Container id and pod uid come from the kernel's cgroup. Names come from identity sources, and
//! anyone who can start a container can set its labels. So an answer counts only if its pod uid is
//! that of the cgroup. An answer with another pod uid is refused. If the cgroup is in no pod and
//! labels name one, only the pod is refused and the runtime's own name stays. Both cases are
//! counted. Answers that only root on the host can write ([`is_roots`]) are believed without a
//! pod's cgroup, because a kubelet can be configured to make none.
//!
//! Answers are kept when they arrive, also for containers that have not used a GPU yet, so that a
//! short job is known before it is charged. `budget` decides how many of them are kept, and for how
//! long.

mod budget;
mod entry;
mod upkeep;

use std::sync::Arc;

use self::budget::Budget;
use crate::directory::entry::{
    Entry, Kernel, Known, PodEntry, bare_uid, is_roots, same_uid, source_index,
};
use crate::input::{IdentitySource, IdentityUpdate, KubernetesNames};
use crate::model::{
    BootTime, ContainerId, Nanos, POD_ITSELF, PodUid, UNRESOLVED, none, unresolved,
};
use crate::snapshot::{ContainerLabels, IdOnlyReason};
use crate::tables::HashMap;

pub use self::entry::{Answer, Belief, Labels, Outcome, PodAnswer};

/// Delay before an unanswered lookup is repeated.
const ASK_AGAIN: Nanos = Nanos::from_secs(2);

/// The best known names of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    /// The labels; `(unresolved)` where a name is missing.
    pub labels: ContainerLabels,
    /// Who gave the names; absent while nobody has.
    pub source: Option<IdentitySource>,
    /// The image.
    pub image: Arc<str>,
    /// Container runtime: by the form of the cgroup's path, otherwise from the source that knows
    /// the container.
    pub runtime: Arc<str>,
}

/// Names of containers and pods, from every identity source.
#[derive(Debug)]
pub struct Directory {
    entries: HashMap<ContainerId, Entry>,
    /// By their uids, as [`bare_uid`] writes them.
    pods: HashMap<PodUid, PodEntry>,
    limit: usize,
    budget: Budget,
    refused: [u64; IdentitySource::ALL.len()],
    overflows: u64,
}

impl Directory {
    /// A directory of at most `limit` containers, and as many pods.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            entries: HashMap::default(),
            pods: HashMap::default(),
            limit,
            budget: Budget::default(),
            refused: [0; IdentitySource::ALL.len()],
            overflows: 0,
        }
    }

    /// Answers that contradicted the kernel.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused.iter().sum()
    }

    /// The same by source, in the order of [`IdentitySource::ALL`].
    #[must_use]
    pub const fn refused_of(&self) -> [u64; IdentitySource::ALL.len()] {
        self.refused
    }

    /// Containers that were not added because the directory was full.
    #[must_use]
    pub const fn overflows(&self) -> u64 {
        self.overflows
    }

    /// Records the pod and the cgroup of a container as the kernel shows them. The last call
    /// counts: an id that was first seen below a user's own manager may turn out to belong to a
    /// container elsewhere.
    pub fn see(
        &mut self,
        id: &ContainerId,
        pod_uid: Option<&PodUid>,
        runtime: &str,
        place: &Arc<str>,
        now: BootTime,
    ) {
        let seen = Kernel {
            pod_uid: pod_uid.cloned(),
            runtime: runtime.into(),
            place: Some(Arc::clone(place)),
        };
        self.take_seen(id, seen, now);
    }

    /// Takes back which pod the cgroup of a container with an account was in, or that it was in none,
    /// after a restart. The container may have no process any more, and nothing else would hold an
    /// answer about it to its pod.
    pub fn restore_pod(
        &mut self,
        id: &ContainerId,
        pod_uid: Option<&PodUid>,
        runtime: &Arc<str>,
        now: BootTime,
    ) {
        let seen = Kernel {
            pod_uid: pod_uid.cloned(),
            runtime: Arc::clone(runtime),
            place: None,
        };
        self.take_seen(id, seen, now);
    }

    fn take_seen(&mut self, id: &ContainerId, seen: Kernel, now: BootTime) {
        let Some(entry) = self.entry(id, now) else {
            return;
        };
        if entry.kernel.as_ref() == Some(&seen) {
            return;
        }
        entry.kernel = Some(seen);
        // What was believed until now may contradict it.
        let refused = entry.judge();
        entry.note_identified(now);
        for (sum, more) in self.refused.iter_mut().zip(refused) {
            *sum += more;
        }
    }

    /// Whether a source confirms the path of a container's cgroup: the pod that the container is
    /// in, or that it is in none. False if the kernel has shown that id under another path, since
    /// the answer is then about that one, and after the source has reported the container's
    /// removal.
    #[must_use]
    pub fn vouches(&self, id: &ContainerId, place: &str, pod_uid: Option<&PodUid>) -> bool {
        let Some(entry) = self.entries.get(id) else {
            return false;
        };
        let seen = entry.kernel.as_ref();
        let seen = seen.and_then(|seen| seen.place.as_deref());
        if seen.is_some_and(|seen| *seen != *place) {
            return false;
        }
        let mut answers = entry.answers.iter().flatten();
        answers.any(|answer| match &answer.outcome {
            Outcome::Found {
                identity, belief, ..
            } if !answer.removed && *belief != Belief::Nothing => {
                match (&identity.kubernetes, pod_uid) {
                    (Some(names), Some(uid)) => same_uid(&names.pod_uid, uid),
                    (None, None) => true,
                    (Some(_), None) | (None, Some(_)) => false,
                }
            }
            _ => false,
        })
    }

    /// Stores an answer of an identity source.
    pub fn learn(&mut self, update: IdentityUpdate, now: BootTime) {
        match update {
            IdentityUpdate::Found(mut identity) => {
                let id = identity.id.clone();
                let Some(entry) = self.entry(&id, now) else {
                    return;
                };
                let source = identity.source;
                let belief = Belief::of(&identity, entry.kernel.as_ref());
                let outcome = Outcome::Found {
                    labels: Arc::new(std::mem::take(&mut identity.labels)),
                    identity,
                    belief,
                };
                entry.answers[source_index(source)] =
                    Some(Box::new(Answer::new(source, now, outcome)));
                entry.note_identified(now);
                self.refused[source_index(source)] += u64::from(belief.is_refusal());
                self.weigh(&id);
            }
            IdentityUpdate::NotFound { source, id, reason } => {
                let Some(entry) = self.entries.get_mut(&id) else {
                    return;
                };
                entry.touched = now;
                let answer = &mut entry.answers[source_index(source)];
                // An earlier answer stays.
                if answer
                    .as_ref()
                    .is_none_or(|answer| matches!(answer.outcome, Outcome::NotFound { .. }))
                {
                    let outcome = Outcome::NotFound { reason };
                    *answer = Some(Box::new(Answer::new(source, now, outcome)));
                    self.weigh(&id);
                }
            }
            IdentityUpdate::FoundPod { source, names } => {
                if let Some(entry) = self.pods.get_mut(&bare_uid(&names.pod_uid)) {
                    entry.answers[source_index(source)] = Some((now, Ok(names)));
                }
            }
            IdentityUpdate::PodNotFound {
                source,
                uid,
                reason,
            } => {
                if let Some(entry) = self.pods.get_mut(&bare_uid(&uid)) {
                    let answer = &mut entry.answers[source_index(source)];
                    // An earlier answer stays.
                    if !matches!(answer, Some((_, Ok(_)))) {
                        *answer = Some((now, Err(reason)));
                    }
                }
            }
            IdentityUpdate::Removed { source, id } => {
                if let Some(entry) = self.entries.get_mut(&id) {
                    entry.touched = now;
                    if let Some(answer) = &mut entry.answers[source_index(source)] {
                        answer.removed = true;
                    }
                }
            }
        }
    }

    fn entry(&mut self, id: &ContainerId, now: BootTime) -> Option<&mut Entry> {
        if !self.entries.contains_key(id) {
            if self.entries.len() >= self.limit {
                self.make_room();
            }
            if self.entries.len() >= self.limit {
                self.overflows += 1;
                return None;
            }
        }
        let entry = self.entries.entry(id.clone()).or_default();
        entry.touched = entry.touched.max(now);
        Some(entry)
    }

    /// Drops an eighth of the entries: first containers that only a runtime has reported, then
    /// those that were used least recently. A dropped one is looked up again when it is needed.
    fn make_room(&mut self) {
        let mut worths: Vec<_> = self.entries.values().map(Entry::worth).collect();
        worths.sort_unstable();
        let Some(&least_kept) = worths.get(self.limit.div_ceil(8)) else {
            return;
        };
        let budget = &mut self.budget;
        self.entries.retain(|_, entry| {
            let stays = entry.worth() >= least_kept;
            if !stays {
                Self::unweigh(budget, entry);
            }
            stays
        });
    }

    /// Whether this container should be looked up now. Returns true once, then not again for two
    /// seconds.
    pub fn should_ask(&mut self, id: &ContainerId, now: BootTime) -> bool {
        if self.is_named(id) {
            return false;
        }
        let Some(entry) = self.entry(id, now) else {
            return false;
        };
        ask_if_due(&mut entry.asked, now)
    }

    fn is_named(&self, id: &ContainerId) -> bool {
        self.entries
            .get(id)
            .is_some_and(|entry| entry.winner().is_some())
    }

    /// When the full identity was first known: the cgroup, and names that match it.
    #[must_use]
    pub fn identified(&self, id: &ContainerId) -> Option<BootTime> {
        self.entries.get(id)?.identified
    }

    /// Whether this pod should be looked up now. Returns true once, then not again for two seconds.
    pub fn should_ask_pod(&mut self, uid: &PodUid, now: BootTime) -> bool {
        let uid = bare_uid(uid);
        if self.pods.len() >= self.limit && !self.pods.contains_key(&uid) {
            let least = self.pods.iter().min_by_key(|(_, entry)| entry.touched);
            let Some(least) = least.map(|(uid, _)| uid.clone()) else {
                return false;
            };
            // Whoever wants it asks again.
            self.pods.remove(&least);
            self.overflows += 1;
        }
        let entry = self.pods.entry(uid).or_default();
        entry.touched = now;
        ask_if_due(&mut entry.asked, now)
    }

    /// What each source said of a pod, in the order of [`IdentitySource::ALL`]. An answer counts if
    /// it is about a container in the pod's cgroup, or if only root can have written it
    /// ([`is_roots`]). Below a user's own service manager anyone can choose a pod's uid, so only the
    /// first kind counts there.
    #[must_use]
    pub fn pod_answers(
        &self,
        uid: &PodUid,
        is_users_own: bool,
    ) -> [Option<PodAnswer<'_>>; IdentitySource::ALL.len()] {
        let mut best = [None::<PodAnswer<'_>>; IdentitySource::ALL.len()];
        if let Some(entry) = self.pods.get(&bare_uid(uid)).filter(|_| !is_users_own) {
            for (source, answer) in IdentitySource::ALL.into_iter().zip(&entry.answers) {
                best[source_index(source)] = answer.as_ref().map(|(at, names)| PodAnswer {
                    source,
                    at: *at,
                    names: names.as_ref().map_err(|reason| *reason),
                    removed: false,
                });
            }
        }
        for entry in self.entries.values() {
            let is_in_it = entry.pod_uid().is_some_and(|known| same_uid(known, uid));
            for answer in entry.answers.iter().flatten() {
                let Outcome::Found {
                    identity,
                    belief: Belief::Whole,
                    ..
                } = &answer.outcome
                else {
                    continue;
                };
                let Some(names) = &identity.kubernetes else {
                    continue;
                };
                let is_believed = is_in_it || (!is_users_own && is_roots(identity));
                if !is_believed || !same_uid(&names.pod_uid, uid) {
                    continue;
                }
                let answer = PodAnswer {
                    source: answer.source,
                    at: answer.at,
                    names: Ok(names),
                    removed: answer.removed,
                };
                let best = &mut best[source_index(answer.source)];
                if best.is_none_or(|best| answer.rank() < best.rank()) {
                    *best = Some(answer);
                }
            }
        }
        best
    }

    /// What a pod is called, by the best source that knows it.
    #[must_use]
    pub fn pod_names(
        &self,
        uid: &PodUid,
        is_users_own: bool,
    ) -> Option<(&KubernetesNames, IdentitySource)> {
        let answers = self.pod_answers(uid, is_users_own);
        let mut found = answers.into_iter().flatten();
        found.find_map(|answer| Some((answer.names.ok()?, answer.source)))
    }

    /// Why a pod has no names, given what is known of the sources, and whether one is there that is
    /// asked for pods.
    #[must_use]
    pub fn pod_reason(
        &self,
        uid: &PodUid,
        sources: IdentitySources,
        is_asked: bool,
    ) -> IdOnlyReason {
        let entry = self.pods.get(&bare_uid(uid));
        let has_answer = entry.is_some_and(|entry| entry.answers.iter().any(Option::is_some));
        if sources.down {
            IdOnlyReason::SourceDown
        } else if !sources.up {
            IdOnlyReason::NoSource
        } else if has_answer || !is_asked {
            // The other sources report every pod without being asked.
            IdOnlyReason::NotFound
        } else {
            IdOnlyReason::Timeout
        }
    }

    /// What each source said of a container, the best first.
    pub fn answers(&self, id: &ContainerId) -> impl Iterator<Item = &Answer> {
        self.entries
            .get(id)
            .into_iter()
            .flat_map(|entry| entry.answers.iter().flatten())
            .map(|answer| &**answer)
    }

    /// The containers that it holds, in no order.
    pub fn ids(&self) -> impl Iterator<Item = &ContainerId> {
        self.entries.keys()
    }

    /// The pod that the kernel's cgroup puts a container in.
    #[must_use]
    pub fn pod_uid(&self, id: &ContainerId) -> Option<&PodUid> {
        self.entries.get(id)?.pod_uid()
    }

    /// What a container is called in Kubernetes, if the kernel's cgroup puts it in a pod.
    #[must_use]
    pub fn kubernetes(&self, id: &ContainerId) -> Option<&KubernetesNames> {
        let entry = self.entries.get(id)?;
        entry.pod_uid()?;
        entry.winner()?.kubernetes
    }

    /// Why a container has no names, given what is known of its sources.
    #[must_use]
    pub fn reason(&self, id: &ContainerId, sources: IdentitySources) -> IdOnlyReason {
        let entry = self.entries.get(id);
        let is = |outcome| entry.is_some_and(|entry| entry.is(outcome));
        let in_pod = entry.and_then(Entry::pod_uid).is_some();
        if is(|outcome| matches!(outcome, Outcome::Found { belief, .. } if belief.is_refusal())) {
            IdOnlyReason::PodUidMismatch
        } else if sources.down {
            IdOnlyReason::SourceDown
        } else if in_pod && is(|outcome| matches!(outcome, Outcome::Found { .. })) {
            // A source that knows the container without a pod also contradicts the cgroup.
            IdOnlyReason::PodUidMismatch
        } else if is(|_| true) {
            IdOnlyReason::NotFound
        } else if sources.up {
            IdOnlyReason::Timeout
        } else {
            IdOnlyReason::NoSource
        }
    }

    /// All labels that the container's runtime gave.
    #[must_use]
    pub fn runtime_labels(&self, id: &ContainerId) -> Option<&Labels> {
        self.entries.get(id).and_then(Entry::labels)
    }

    /// All labels that the container's runtime gave, and the runtime's own name for it, from the
    /// sources that have it. CRI has only Kubernetes' name.
    #[must_use]
    pub fn labels_and_own_name(&self, id: &ContainerId) -> (Option<&Labels>, Option<Arc<str>>) {
        let entry = self.entries.get(id);
        entry.map_or((None, None), |entry| (entry.labels(), entry.own_name()))
    }

    /// What a container is called, as far as known.
    #[must_use]
    pub fn names(&self, id: &ContainerId) -> Names {
        let entry = self.entries.get(id);
        let kernel = entry.and_then(|entry| entry.kernel.as_ref());
        let winner = entry.and_then(Entry::winner);
        let labels = match &winner {
            Some(Known {
                kubernetes: Some(names),
                ..
            }) => ContainerLabels {
                namespace: non_empty(&names.namespace),
                pod: non_empty(&names.pod),
                container: container_of(&names.container),
                pod_uid: non_empty(&names.pod_uid.0),
                container_id: Arc::clone(&id.0),
            },
            // A container of a plain runtime: Kubernetes' names do not apply.
            Some(known) => ContainerLabels {
                namespace: none(),
                pod: none(),
                container: (known.identity.name.as_ref()).map_or_else(unresolved, non_empty),
                pod_uid: none(),
                container_id: Arc::clone(&id.0),
            },
            None => ContainerLabels {
                namespace: unresolved(),
                pod: unresolved(),
                container: unresolved(),
                pod_uid: entry
                    .and_then(Entry::pod_uid)
                    .map_or_else(unresolved, |uid| Arc::clone(&uid.0)),
                container_id: Arc::clone(&id.0),
            },
        };
        // Not every source that knows the names knows the image.
        let known = || winner.iter().map(|known| known.identity);
        let others = || entry.into_iter().flat_map(Entry::found);
        let others = || others().map(|known| known.identity);
        let image = known().chain(others()).find_map(|of| of.image.as_ref());
        let runtime = kernel.map(|kernel| &kernel.runtime);
        let runtime = runtime
            .filter(|runtime| ***runtime != *UNRESOLVED)
            .or_else(|| known().chain(others()).find_map(|of| of.runtime.as_ref()));
        Names {
            labels,
            source: winner.as_ref().map(|known| known.identity.source),
            image: image.map_or_else(unresolved, non_empty),
            runtime: runtime.map_or_else(unresolved, non_empty),
        }
    }
}

/// State of all identity sources together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IdentitySources {
    /// At least one answers.
    pub up: bool,
    /// At least one source that was there does not answer.
    pub down: bool,
}

/// Whether a question that was last put at `asked` is due again. It then counts as put now.
fn ask_if_due(asked: &mut Option<BootTime>, now: BootTime) -> bool {
    let is_due = asked.is_none_or(|asked| now.since(asked) >= ASK_AGAIN);
    if is_due {
        *asked = Some(now);
    }
    is_due
}

fn non_empty(text: &Arc<str>) -> Arc<str> {
    if text.is_empty() {
        unresolved()
    } else {
        Arc::clone(text)
    }
}

/// Kubernetes names no container in capitals: `POD` is what the kubelet called the sandbox's under
/// Docker and CRI-O calls it still.
fn container_of(name: &Arc<str>) -> Arc<str> {
    match &**name {
        "POD" => POD_ITSELF.into(),
        _ => non_empty(name),
    }
}

#[cfg(test)]
mod tests;
