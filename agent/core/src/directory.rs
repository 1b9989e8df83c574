//! What containers are called: the answers of the sources of names, by container id.
//!
//! The id and the pod uid come from the kernel's cgroup and need nobody's answer. Names do, and a
//! label can be set by anyone who can start a container: an answer counts only if its pod uid is the
//! cgroup's. One that contradicts it is refused; where the cgroup is in no pod, the pod that labels
//! tell of is, and the runtime's own name stays. Both are counted. Only what nobody but the host's
//! root can write, [`is_roots`], needs no cgroup of a pod's to be believed: a kubelet can be told to
//! make none.
//!
//! Answers are kept when they come, also for containers that have not used a GPU yet, so that a
//! short job is known before it is charged. How much of them is kept, and for how long, is the
//! matter of `budget`.

mod budget;

use std::collections::BTreeMap;
use std::sync::Arc;

use self::budget::Budget;
use super::input::{ContainerIdentity, IdentitySource, IdentityUpdate, KubernetesNames};
use super::model::{
    BootTime, ContainerId, Nanos, POD_ITSELF, PodUid, UNRESOLVED, none, unresolved,
};
use super::snapshot::{ContainerLabels, IdOnlyReason};
use super::tables::HashMap;

/// How long an unanswered question rests before it is put again.
const ASK_AGAIN: Nanos = Nanos::from_secs(2);

/// All labels of a container.
pub type Labels = Arc<BTreeMap<Arc<str>, Arc<str>>>;

#[derive(Debug, Default)]
struct Entry {
    /// What each source said last, in the order of [`IdentitySource::ALL`].
    answers: [Option<Box<Answer>>; IdentitySource::ALL.len()],
    /// Bytes that they take.
    bytes: usize,
    /// From the cgroup, if a process of the container has been seen.
    kernel: Option<Kernel>,
    asked: Option<BootTime>,
    /// When both the cgroup and a name were known first.
    identified: Option<BootTime>,
    /// Last time that anything was learnt or wanted.
    touched: BootTime,
    /// Last time that it had an account.
    wanted: Option<BootTime>,
    /// Whether it had one at the last commit, or has got one since.
    is_billed: bool,
}

/// What a source said of a container, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Who.
    pub source: IdentitySource,
    /// When it arrived.
    pub at: BootTime,
    /// What.
    pub outcome: Outcome,
    /// The source has said since that the container is gone.
    pub removed: bool,
}

impl Answer {
    const fn new(source: IdentitySource, at: BootTime, outcome: Outcome) -> Self {
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
    /// Who.
    pub source: IdentitySource,
    /// When it arrived.
    pub at: BootTime,
    /// What it is called, or why that is not known, as a label value.
    pub names: Result<&'a KubernetesNames, &'static str>,
    /// The source has said since that what it said it of is gone.
    pub removed: bool,
}

impl PodAnswer<'_> {
    /// What goes before other answers of the same source, the least first.
    fn rank(&self) -> (bool, bool, &str, &str, BootTime) {
        let (namespace, pod) = self
            .names
            .map_or(("", ""), |names| (&*names.namespace, &*names.pod));
        (self.names.is_err(), self.removed, namespace, pod, self.at)
    }
}

/// A pod that sources were asked for by its uid.
#[derive(Debug, Default)]
struct PodEntry {
    /// What each said last, in the order of [`IdentitySource::ALL`].
    answers: [Option<(BootTime, Result<KubernetesNames, &'static str>)>; IdentitySource::ALL.len()],
    asked: Option<BootTime>,
    touched: BootTime,
}

/// What of an answer counts, by what the kernel has shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Belief {
    /// All of it.
    Whole,
    /// Nothing yet: it tells of a pod by labels, and the cgroup has not been seen.
    Unconfirmed,
    /// All but the pod: labels tell of one, and the cgroup is in none.
    WithoutPod,
    /// Nothing: the cgroup is in another pod.
    Nothing,
}

impl Belief {
    fn of(identity: &ContainerIdentity, kernel: Option<&Kernel>) -> Self {
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

    /// Whether something is not believed that the answer says.
    const fn is_refusal(self) -> bool {
        matches!(self, Self::WithoutPod | Self::Nothing)
    }
}

/// Whether nobody but the host's root can have written what an answer says of a pod: the kubelet's
/// links, and the pods that it has a runtime make. A runtime in front of the Docker Engine has no
/// pods of its own to tell of and makes them up from the labels of Docker's containers.
fn is_roots(identity: &ContainerIdentity) -> bool {
    match identity.source {
        IdentitySource::KubeletLogs => true,
        IdentitySource::Cri => identity.runtime.as_deref() != Some("docker"),
        IdentitySource::Docker | IdentitySource::Bundle => false,
    }
}

/// An answer, as far as it counts.
struct Known<'a> {
    identity: &'a ContainerIdentity,
    labels: &'a Labels,
    kubernetes: Option<&'a KubernetesNames>,
}

impl Entry {
    /// What is kept when room is needed, the greatest first: nobody repeats what the kernel said.
    const fn worth(&self) -> (bool, BootTime) {
        (self.kernel.is_some(), self.touched)
    }

    /// The pod that the kernel's cgroup names.
    fn pod_uid(&self) -> Option<&PodUid> {
        self.kernel.as_ref()?.pod_uid.as_ref()
    }

    /// Notes when its full identity is known for the first time.
    fn note_identified(&mut self, now: BootTime) {
        if self.identified.is_none() && self.kernel.is_some() && self.winner().is_some() {
            self.identified = Some(now);
        }
    }

    /// What was found and counts, the best first.
    fn found(&self) -> impl Iterator<Item = Known<'_>> {
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
    fn winner(&self) -> Option<Known<'_>> {
        let in_pod = self.pod_uid().is_some();
        let mut naming = self.found().filter(|known| {
            known.kubernetes.is_some() || (!in_pod && known.identity.name.is_some())
        });
        let first = naming.next()?;
        // Whoever knows the pod knows more than a runtime that was not told of it.
        if first.kubernetes.is_none()
            && let Some(better) = naming.find(|known| known.kubernetes.is_some())
        {
            return Some(better);
        }
        Some(first)
    }

    /// Says anew what counts, since the kernel has shown something else. Which sources' answers are
    /// refused for it that were not before.
    fn judge(&mut self) -> [u64; IdentitySource::ALL.len()] {
        let mut refused = [0; IdentitySource::ALL.len()];
        for answer in self.answers.iter_mut().flatten() {
            if let Outcome::Found {
                identity, belief, ..
            } = &mut answer.outcome
            {
                let before = std::mem::replace(belief, Belief::of(identity, self.kernel.as_ref()));
                let is_news = belief.is_refusal() && *belief != before;
                refused[place(answer.source)] += u64::from(is_news);
            }
        }
        refused
    }

    fn is(&self, outcome: fn(&Outcome) -> bool) -> bool {
        self.answers
            .iter()
            .flatten()
            .any(|answer| outcome(&answer.outcome))
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Kernel {
    pod_uid: Option<PodUid>,
    runtime: Arc<str>,
    /// Where the cgroup is; absent where an agent before this one saw it.
    place: Option<Arc<str>>,
}

/// A container's names, as good as they are known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    /// The labels; `(unresolved)` where a name is missing.
    pub labels: ContainerLabels,
    /// Who gave the names; absent while nobody has.
    pub source: Option<IdentitySource>,
    /// The image.
    pub image: Arc<str>,
    /// Who runs it, by the shape of its cgroup, or else by whoever knows it.
    pub runtime: Arc<str>,
}

/// The directory.
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

    /// Containers that the full directory turned away.
    #[must_use]
    pub const fn overflows(&self) -> u64 {
        self.overflows
    }

    /// Notes what the kernel's cgroup says of a container, and where that cgroup is. It is the last
    /// that counts: an id that was first seen where people make cgroups for themselves may turn out
    /// to be a container's elsewhere.
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

    /// Whether a source says of a container what the path of its cgroup says: the pod that it is in,
    /// or that it is in none. Not if the kernel has had that id elsewhere, since then the answer is
    /// about that one, and not once the source has said that the container is gone.
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

    /// Takes an answer.
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
                entry.answers[place(source)] = Some(Box::new(Answer::new(source, now, outcome)));
                entry.note_identified(now);
                self.refused[place(source)] += u64::from(belief.is_refusal());
                self.weigh(&id);
            }
            IdentityUpdate::NotFound { source, id, reason } => {
                let Some(entry) = self.entries.get_mut(&id) else {
                    return;
                };
                entry.touched = now;
                let answer = &mut entry.answers[place(source)];
                // What was learnt before stays.
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
                    entry.answers[place(source)] = Some((now, Ok(names)));
                }
            }
            IdentityUpdate::PodNotFound {
                source,
                uid,
                reason,
            } => {
                if let Some(entry) = self.pods.get_mut(&bare_uid(&uid)) {
                    let answer = &mut entry.answers[place(source)];
                    // What was learnt before stays.
                    if !matches!(answer, Some((_, Ok(_)))) {
                        *answer = Some((now, Err(reason)));
                    }
                }
            }
            IdentityUpdate::Removed { source, id } => {
                if let Some(entry) = self.entries.get_mut(&id) {
                    entry.touched = now;
                    if let Some(answer) = &mut entry.answers[place(source)] {
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

    /// Drops an eighth: containers of which only a runtime has spoken, then those that were least
    /// recently wanted; whoever wants one of them asks again.
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

    /// Whether somebody should be asked for this container now. Says so once, then not again for
    /// two seconds.
    pub fn should_ask(&mut self, id: &ContainerId, now: BootTime) -> bool {
        if self.is_named(id) {
            return false;
        }
        let Some(entry) = self.entry(id, now) else {
            return false;
        };
        let due = entry
            .asked
            .is_none_or(|asked| now.since(asked) >= ASK_AGAIN);
        if due {
            entry.asked = Some(now);
        }
        due
    }

    fn is_named(&self, id: &ContainerId) -> bool {
        self.entries
            .get(id)
            .is_some_and(|entry| entry.winner().is_some())
    }

    /// When its full identity was first known: its cgroup seen, and a name that goes with it.
    #[must_use]
    pub fn identified(&self, id: &ContainerId) -> Option<BootTime> {
        self.entries.get(id)?.identified
    }

    /// Whether somebody should be asked for this pod now. Says so once, then not again for two
    /// seconds.
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
        let due = entry
            .asked
            .is_none_or(|asked| now.since(asked) >= ASK_AGAIN);
        if due {
            entry.asked = Some(now);
        }
        due
    }

    /// What each source said of a pod, in the order of [`IdentitySource::ALL`]: of its containers
    /// that are in its cgroup, and what is root's word without one, as [`is_roots`] has it. Below a
    /// user's own manager a pod's uid may be anybody's choice, so there only the former counts.
    #[must_use]
    pub fn pod_answers(
        &self,
        uid: &PodUid,
        is_users_own: bool,
    ) -> [Option<PodAnswer<'_>>; IdentitySource::ALL.len()] {
        let mut best = [None::<PodAnswer<'_>>; IdentitySource::ALL.len()];
        if let Some(entry) = self.pods.get(&bare_uid(uid)).filter(|_| !is_users_own) {
            for (source, answer) in IdentitySource::ALL.into_iter().zip(&entry.answers) {
                best[place(source)] = answer.as_ref().map(|(at, names)| PodAnswer {
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
                let best = &mut best[place(answer.source)];
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
        sources: SourcesOfNames,
        is_asked: bool,
    ) -> IdOnlyReason {
        let entry = self.pods.get(&bare_uid(uid));
        let has_answer = entry.is_some_and(|entry| entry.answers.iter().any(Option::is_some));
        if sources.down {
            IdOnlyReason::SourceDown
        } else if !sources.up {
            IdOnlyReason::NoSource
        } else if has_answer || !is_asked {
            // The others tell by themselves of all that they know.
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
    pub fn reason(&self, id: &ContainerId, sources: SourcesOfNames) -> IdOnlyReason {
        let entry = self.entries.get(id);
        let is = |outcome| entry.is_some_and(|entry| entry.is(outcome));
        let in_pod = entry.and_then(Entry::pod_uid).is_some();
        if is(|outcome| matches!(outcome, Outcome::Found { belief, .. } if belief.is_refusal())) {
            IdOnlyReason::PodUidMismatch
        } else if sources.down {
            IdOnlyReason::SourceDown
        } else if in_pod && is(|outcome| matches!(outcome, Outcome::Found { .. })) {
            // Whoever knows the container and no pod of it contradicts the cgroup, too.
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
        let entry = self.entries.get(id)?;
        let known = entry.winner().or_else(|| entry.found().next())?;
        Some(known.labels)
    }

    /// The runtime's own name for a container, from those who tell it: over CRI it is Kubernetes'.
    #[must_use]
    pub fn own_name(&self, id: &ContainerId) -> Option<Arc<str>> {
        let entry = self.entries.get(id)?;
        let mut found = entry.found().map(|known| known.identity);
        let own = found.find(|identity| {
            let tells = matches!(
                identity.source,
                IdentitySource::Docker | IdentitySource::Bundle
            );
            tells && identity.name.is_some()
        });
        own?.name.clone()
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

/// A source's place among a container's answers.
fn place(source: IdentitySource) -> usize {
    source as usize
}

/// What the sources of names are doing, all together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SourcesOfNames {
    /// At least one answers.
    pub up: bool,
    /// At least one that was there does not.
    pub down: bool,
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

/// A pod's uid without dashes: a key.
fn bare_uid(uid: &PodUid) -> PodUid {
    PodUid(uid.0.replace('-', "").into())
}

/// Static pods' uids have no dashes in some places and have them in others.
fn same_uid(a: &PodUid, b: &PodUid) -> bool {
    fn bare(uid: &PodUid) -> impl Iterator<Item = u8> {
        uid.0.bytes().filter(|byte| *byte != b'-')
    }
    bare(a).eq(bare(b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::NONE;

    const UID: &str = "11111111-2222-3333-4444-555555555555";

    fn id() -> ContainerId {
        ContainerId::from("c0ffee")
    }

    fn found(uid: Option<&str>) -> IdentityUpdate {
        IdentityUpdate::Found(ContainerIdentity {
            id: id(),
            source: IdentitySource::Docker,
            name: Some("k8s_main".into()),
            image: Some("cuda:12".into()),
            runtime: None,
            kubernetes: uid.map(|uid| KubernetesNames {
                namespace: "ml".into(),
                pod: "train-0".into(),
                pod_uid: PodUid::from(uid),
                container: "main".into(),
            }),
            labels: Default::default(),
        })
    }

    fn directory() -> Directory {
        Directory::new(100)
    }

    fn text(labels: &ContainerLabels) -> [&str; 5] {
        [
            &labels.namespace,
            &labels.pod,
            &labels.container,
            &labels.pod_uid,
            &labels.container_id,
        ]
    }

    #[test]
    fn names_in_every_state_of_knowledge() {
        let uid = PodUid::from(UID);
        let now = BootTime(1);
        // (pod uid in the cgroup, answer) -> labels, source
        type Row<'a> = (
            Option<&'a PodUid>,
            Option<IdentityUpdate>,
            [&'a str; 5],
            bool,
        );
        let rows: [Row<'_>; 6] = [
            (
                None,
                None,
                [UNRESOLVED, UNRESOLVED, UNRESOLVED, UNRESOLVED, "c0ffee"],
                false,
            ),
            (
                Some(&uid),
                None,
                [UNRESOLVED, UNRESOLVED, UNRESOLVED, UID, "c0ffee"],
                false,
            ),
            (
                None,
                Some(found(None)),
                [NONE, NONE, "k8s_main", NONE, "c0ffee"],
                true,
            ),
            // Labels alone could be anybody's: outside a pod's cgroup they name no pod.
            (
                None,
                Some(found(Some(UID))),
                [NONE, NONE, "k8s_main", NONE, "c0ffee"],
                true,
            ),
            (
                Some(&uid),
                Some(found(Some(UID))),
                ["ml", "train-0", "main", UID, "c0ffee"],
                true,
            ),
            // In a pod's cgroup, and the answer knows of no pod: that names nobody.
            (
                Some(&uid),
                Some(found(None)),
                [UNRESOLVED, UNRESOLVED, UNRESOLVED, UID, "c0ffee"],
                false,
            ),
        ];
        for (pod_uid, answer, labels, named) in rows {
            let mut directory = directory();
            directory.see(&id(), pod_uid, "docker", &"/here".into(), now);
            if let Some(answer) = answer.clone() {
                directory.learn(answer, now);
            }
            let names = directory.names(&id());
            assert_eq!(text(&names.labels), labels, "{pod_uid:?} {answer:?}");
            assert_eq!(names.source.is_some(), named, "{pod_uid:?} {answer:?}");
        }
    }

    #[test]
    fn an_answer_vouches_for_the_pod_that_the_path_names_and_for_no_other_path() {
        let (uid, other) = (PodUid::from(UID), PodUid::from("other"));
        let rows = [
            (Some(UID), Some(&uid), None, true),
            (Some(UID), Some(&uid), Some("/here"), true),
            (Some(UID), Some(&uid), Some("/there"), false),
            (Some(UID), Some(&other), None, false),
            (Some(UID), None, None, false),
            (None, Some(&uid), None, false),
            (None, None, None, true),
        ];
        for (said, path, seen, vouches) in rows {
            let mut directory = directory();
            assert!(
                !directory.vouches(&id(), "/here", path),
                "nobody has spoken"
            );
            if let Some(seen) = seen {
                directory.see(&id(), path, "docker", &seen.into(), BootTime(1));
            }
            directory.learn(found(said), BootTime(1));
            let found = directory.vouches(&id(), "/here", path);
            assert_eq!(found, vouches, "{said:?} {path:?} {seen:?}");
            let source = IdentitySource::Docker;
            directory.learn(IdentityUpdate::Removed { source, id: id() }, BootTime(2));
            assert!(!directory.vouches(&id(), "/here", path), "it is gone");
        }
    }

    #[test]
    fn an_answer_for_another_pod_is_refused_whichever_is_heard_first() {
        let uid = PodUid::from(UID);
        for kernel_first in [true, false] {
            let mut directory = directory();
            let lie = found(Some("99999999-2222-3333-4444-555555555555"));
            if kernel_first {
                directory.see(&id(), Some(&uid), "docker", &"/here".into(), BootTime(1));
                directory.learn(lie, BootTime(2));
            } else {
                directory.learn(lie, BootTime(1));
                directory.see(&id(), Some(&uid), "docker", &"/here".into(), BootTime(2));
            }
            assert_eq!(directory.names(&id()).source, None);
            assert_eq!(&*directory.names(&id()).labels.namespace, UNRESOLVED);
            assert_eq!(directory.refused(), 1);
            assert_eq!(directory.reason(&id(), UP), IdOnlyReason::PodUidMismatch);
        }
    }

    #[test]
    fn labels_name_no_pod_until_its_cgroup_is_seen_and_never_where_it_is_in_none() {
        use IdentitySource::{Bundle, Cri, Docker, KubeletLogs};
        let plain = [NONE, NONE, "k8s_main", NONE, "c0ffee"];
        let unresolved = [UNRESOLVED, UNRESOLVED, UNRESOLVED, UNRESOLVED, "c0ffee"];
        let named = ["ml", "train-0", "main", UID, "c0ffee"];
        let docker = Some("docker");
        // (who says so, of which runtime) -> labels before and after, answers refused
        for (source, runtime, before, after, refused) in [
            (Docker, None, unresolved, plain, 1),
            (Bundle, None, unresolved, plain, 1),
            // A kubelet that makes no cgroups for its pods, and root's word.
            (Cri, Some("containerd"), named, named, 0),
            (KubeletLogs, None, named, named, 0),
            // It makes pods up from the labels of Docker's containers.
            (Cri, docker, unresolved, plain, 1),
        ] {
            let IdentityUpdate::Found(mut identity) = said(source, Some(UID), None) else {
                unreachable!("it is found");
            };
            identity.runtime = runtime.map(Into::into);
            let answer = IdentityUpdate::Found(identity);
            for kernel_first in [true, false] {
                let mut directory = directory();
                if !kernel_first {
                    directory.learn(answer.clone(), BootTime(1));
                    assert_eq!(text(&directory.names(&id()).labels), before, "{answer:?}");
                    assert_eq!(directory.refused(), 0, "nothing contradicts it yet");
                }
                directory.see(&id(), None, "docker", &"/here".into(), BootTime(2));
                if kernel_first {
                    directory.learn(answer.clone(), BootTime(3));
                }
                assert_eq!(text(&directory.names(&id()).labels), after, "{answer:?}");
                assert_eq!(directory.refused_of()[place(source)], refused, "{answer:?}");
                assert_eq!(directory.kubernetes(&id()), None);
                assert_eq!(directory.pod_names(&UID.into(), true), None);
            }
        }
    }

    #[test]
    fn annotations_without_a_name_of_the_runtimes_name_nobody() {
        let mut directory = directory();
        let IdentityUpdate::Found(mut identity) = said(IdentitySource::Bundle, Some(UID), None)
        else {
            unreachable!("it is found");
        };
        identity.name = None;
        directory.see(&id(), None, "docker", &"/here".into(), BootTime(1));
        directory.learn(IdentityUpdate::Found(identity), BootTime(2));
        assert_eq!(directory.names(&id()).source, None);
        assert_eq!(directory.reason(&id(), UP), IdOnlyReason::PodUidMismatch);
    }

    #[test]
    fn whoever_showed_an_id_first_does_not_keep_its_pod_when_the_id_is_anothers() {
        let (uid, other) = (PodUid::from(UID), PodUid::from("99999999"));
        // What a user's own manager showed first, and the container's pod.
        for (first, then) in [
            (Some(&other), Some(&uid)),
            (None, Some(&uid)),
            (Some(&other), None),
        ] {
            let mut directory = directory();
            directory.learn(found(then.map(|_| UID)), BootTime(1));
            let usurpers = "/user@1000.service/c0ffee".into();
            directory.see(&id(), first, "podman", &usurpers, BootTime(2));
            directory.see(&id(), then, "docker", &"/here".into(), BootTime(3));
            let names = directory.names(&id());
            let pod_uid = then.map_or(NONE, |_| UID);
            assert_eq!(&*names.labels.pod_uid, pod_uid, "{first:?} {then:?}");
            assert_eq!(&*names.runtime, "docker");
            assert_eq!(names.source, Some(IdentitySource::Docker));
            assert_eq!(directory.pod_uid(&id()), then);
            assert!(directory.vouches(&id(), "/here", then));
            assert!(!directory.vouches(&id(), &usurpers, first));
        }
    }

    #[test]
    fn whoever_knows_the_container_and_not_its_pod_does_not_fail_to_know_it() {
        let mut directory = directory();
        directory.see(
            &id(),
            Some(&UID.into()),
            "docker",
            &"/here".into(),
            BootTime(1),
        );
        directory.learn(found(None), BootTime(2));
        assert_eq!(directory.reason(&id(), UP), IdOnlyReason::PodUidMismatch);
        // Whoever does not answer may know more.
        let down = SourcesOfNames {
            up: true,
            down: true,
        };
        assert_eq!(directory.reason(&id(), down), IdOnlyReason::SourceDown);
    }

    #[test]
    fn who_runs_it_is_told_by_whoever_knows_where_the_cgroup_does_not_show_it() {
        for (shown, runtime) in [(UNRESOLVED, "docker"), ("podman", "podman")] {
            let mut directory = directory();
            directory.see(&id(), None, shown, &"/here".into(), BootTime(1));
            let IdentityUpdate::Found(mut identity) = found(None) else {
                unreachable!("it is found");
            };
            identity.runtime = Some("docker".into());
            directory.learn(IdentityUpdate::Found(identity), BootTime(2));
            assert_eq!(&*directory.names(&id()).runtime, runtime);
        }
    }

    #[test]
    fn a_sandboxs_own_container_is_the_pod_whoever_names_it() {
        for (said, label) in [
            ("POD", POD_ITSELF),
            (POD_ITSELF, POD_ITSELF),
            ("pod", "pod"),
        ] {
            let mut directory = directory();
            directory.see(
                &id(),
                Some(&UID.into()),
                "docker",
                &"/here".into(),
                BootTime(1),
            );
            let IdentityUpdate::Found(mut identity) = found(Some(UID)) else {
                unreachable!("it is found");
            };
            if let Some(names) = &mut identity.kubernetes {
                names.container = said.into();
            }
            directory.learn(IdentityUpdate::Found(identity), BootTime(1));
            let labels = directory.names(&id()).labels;
            assert_eq!((&*labels.pod, &*labels.container), ("train-0", label));
        }
    }

    #[test]
    fn labels_that_came_before_the_kernel_was_heard_stay() {
        let mut directory = directory();
        let IdentityUpdate::Found(mut identity) = found(Some(UID)) else {
            unreachable!("it is found");
        };
        identity.labels.insert("team".into(), "a".into());
        directory.learn(IdentityUpdate::Found(identity), BootTime(1));
        directory.see(
            &id(),
            Some(&PodUid::from(UID)),
            "docker",
            &"/here".into(),
            BootTime(2),
        );
        let labels = directory.runtime_labels(&id()).unwrap();
        assert_eq!(labels.get("team").map(|team| &**team), Some("a"));
    }

    #[test]
    fn what_the_kernel_said_is_not_forgotten_for_containers_that_no_process_is_in() {
        let mut directory = Directory::new(8);
        directory.see(
            &id(),
            Some(&PodUid::from(UID)),
            "docker",
            &"/here".into(),
            BootTime(1),
        );
        // A runtime that lists thousands of containers that ended long ago.
        for n in 0..20u64 {
            let IdentityUpdate::Found(mut identity) = found(None) else {
                unreachable!("found is Found")
            };
            identity.id = ContainerId::from(format!("stopped{n}").as_str());
            directory.learn(IdentityUpdate::Found(identity), BootTime(2 + n));
        }
        directory.learn(
            found(Some("99999999-2222-3333-4444-555555555555")),
            BootTime(50),
        );
        assert_eq!(directory.names(&id()).source, None, "it is another pod's");
        assert!(directory.entries.len() <= 8);
    }

    #[test]
    fn a_static_pods_uid_is_the_same_with_and_without_dashes() {
        let mut directory = directory();
        let bare = PodUid::from(UID.replace('-', "").as_str());
        directory.see(&id(), Some(&bare), "docker", &"/here".into(), BootTime(1));
        directory.learn(found(Some(UID)), BootTime(2));
        assert_eq!(&*directory.names(&id()).labels.pod, "train-0");
    }

    #[test]
    fn a_question_is_put_once_and_again_after_a_while() {
        let mut directory = directory();
        let s = |seconds: u64| BootTime(seconds * 1_000_000_000);
        let asked: Vec<_> = [10, 11, 12, 13, 14]
            .map(|at| directory.should_ask(&id(), s(at)))
            .into();
        assert_eq!(asked, [true, false, true, false, true]);
        directory.learn(found(None), s(15));
        assert!(!directory.should_ask(&id(), s(60)));
    }

    const UP: SourcesOfNames = SourcesOfNames {
        up: true,
        down: false,
    };

    #[test]
    fn every_reason_can_be_given() {
        let down = SourcesOfNames {
            up: true,
            down: true,
        };
        let mut directory = directory();
        let none = SourcesOfNames::default();
        assert_eq!(directory.reason(&id(), none), IdOnlyReason::NoSource);
        assert_eq!(directory.reason(&id(), down), IdOnlyReason::SourceDown);
        assert_eq!(directory.reason(&id(), UP), IdOnlyReason::Timeout);
        directory.see(&id(), None, "docker", &"/here".into(), BootTime(1));
        directory.learn(
            IdentityUpdate::NotFound {
                source: IdentitySource::Docker,
                id: id(),
                reason: "not_found",
            },
            BootTime(2),
        );
        assert_eq!(directory.reason(&id(), UP), IdOnlyReason::NotFound);
    }

    fn said(source: IdentitySource, uid: Option<&str>, image: Option<&str>) -> IdentityUpdate {
        let IdentityUpdate::Found(mut identity) = found(uid) else {
            unreachable!("it is found");
        };
        identity.source = source;
        identity.image = image.map(Into::into);
        IdentityUpdate::Found(identity)
    }

    #[test]
    fn the_best_answer_that_names_wins_whatever_the_order() {
        use IdentitySource::{Bundle, Cri, Docker, KubeletLogs};
        let uid = PodUid::from(UID);
        let lie = "99999999-2222-3333-4444-555555555555";
        // (answers) -> winner
        for (answers, winner) in [
            (vec![(KubeletLogs, Some(UID)), (Cri, Some(UID))], Some(Cri)),
            (vec![(Cri, Some(UID)), (KubeletLogs, Some(UID))], Some(Cri)),
            // The best has not heard of the pod, or tells of another.
            (vec![(Docker, None), (Bundle, Some(UID))], Some(Bundle)),
            (vec![(Docker, Some(lie)), (Bundle, Some(UID))], Some(Bundle)),
            (vec![(Docker, None), (Cri, Some(lie))], None),
        ] {
            let mut directory = directory();
            directory.see(
                &id(),
                Some(&uid),
                "containerd",
                &"/here".into(),
                BootTime(1),
            );
            for (source, uid) in &answers {
                directory.learn(said(*source, *uid, Some("img")), BootTime(2));
            }
            assert_eq!(directory.names(&id()).source, winner, "{answers:?}");
            assert_eq!(directory.answers(&id()).count(), answers.len());
        }
    }

    #[test]
    fn a_pod_is_called_what_its_confirmed_containers_say() {
        let uid = PodUid::from(UID);
        let mut directory = directory();
        // Labels alone could be anybody's.
        directory.learn(found(Some(UID)), BootTime(1));
        assert_eq!(directory.pod_names(&uid, false), None);
        directory.see(&id(), Some(&uid), "docker", &"/here".into(), BootTime(2));
        for is_users_own in [false, true] {
            let (names, source) = directory.pod_names(&uid, is_users_own).unwrap();
            assert_eq!((&*names.namespace, &*names.pod), ("ml", "train-0"));
            assert_eq!(source, IdentitySource::Docker);
        }
    }

    #[test]
    fn a_pod_without_a_containers_cgroup_is_called_what_roots_own_sources_say() {
        let uid = PodUid::from(UID);
        let bare = PodUid::from(UID.replace('-', "").as_str());
        for source in [IdentitySource::Cri, IdentitySource::KubeletLogs] {
            let mut directory = directory();
            directory.learn(said(source, Some(UID), None), BootTime(1));
            for uid in [&uid, &bare] {
                let (names, by) = directory.pod_names(uid, false).unwrap();
                assert_eq!(
                    (&*names.namespace, &*names.pod, by),
                    ("ml", "train-0", source)
                );
                // A user's own manager may show any uid.
                assert_eq!(directory.pod_names(uid, true), None);
            }
            // A container's in another pod is another pod's.
            let other = PodUid::from("other");
            directory.see(&id(), Some(&other), "kata", &"/here".into(), BootTime(2));
            assert_eq!(directory.pod_names(&uid, false), None);
        }
    }

    #[test]
    fn a_pod_is_asked_for_by_its_uid_and_why_it_is_not_known_is_told() {
        let source = IdentitySource::KubeletLogs;
        let uid = PodUid::from(UID);
        let (none, down) = (
            SourcesOfNames::default(),
            SourcesOfNames {
                up: true,
                down: true,
            },
        );
        let mut directory = directory();
        let s = |seconds: u64| BootTime(seconds * 1_000_000_000);
        let asked = [10, 11, 12].map(|at| directory.should_ask_pod(&uid, s(at)));
        assert_eq!(asked, [true, false, true]);
        for (sources, is_asked, reason) in [
            (none, false, IdOnlyReason::NoSource),
            (down, true, IdOnlyReason::SourceDown),
            (UP, true, IdOnlyReason::Timeout),
            (UP, false, IdOnlyReason::NotFound),
        ] {
            assert_eq!(directory.pod_reason(&uid, sources, is_asked), reason);
        }
        let not_found = IdentityUpdate::PodNotFound {
            source,
            uid: uid.clone(),
            reason: "not_found",
        };
        directory.learn(not_found.clone(), s(13));
        assert_eq!(directory.pod_reason(&uid, UP, true), IdOnlyReason::NotFound);
        let names = KubernetesNames {
            namespace: "ml".into(),
            pod: "train-0".into(),
            pod_uid: uid.clone(),
            container: POD_ITSELF.into(),
        };
        let found = IdentityUpdate::FoundPod {
            source,
            names: names.clone(),
        };
        directory.learn(found.clone(), s(14));
        // It is not unlearnt.
        directory.learn(not_found, s(15));
        assert_eq!(directory.pod_names(&uid, false), Some((&names, source)));
        assert_eq!(directory.pod_names(&uid, true), None);
        // Nobody asked for this one.
        let mut directory = Directory::new(1);
        directory.learn(found, s(16));
        assert_eq!(directory.pod_names(&uid, false), None);
        // There is room for one.
        assert!(directory.should_ask_pod(&uid, s(17)));
        assert!(directory.should_ask_pod(&"other".into(), s(18)));
        assert_eq!((directory.pods.len(), directory.overflows()), (1, 1));
    }

    #[test]
    fn an_image_may_come_from_a_poorer_source_than_the_names() {
        let mut directory = directory();
        directory.see(
            &id(),
            Some(&UID.into()),
            "docker",
            &"/here".into(),
            BootTime(1),
        );
        directory.learn(said(IdentitySource::Bundle, Some(UID), None), BootTime(1));
        directory.learn(
            said(IdentitySource::KubeletLogs, Some(UID), Some("cuda:12")),
            BootTime(1),
        );
        let names = directory.names(&id());
        assert_eq!(names.source, Some(IdentitySource::Bundle));
        assert_eq!(&*names.image, "cuda:12");
    }

    #[test]
    fn a_full_directory_makes_room_from_the_least_recently_wanted() {
        let mut directory = Directory::new(8);
        for n in 0..20u64 {
            let id = ContainerId::from(format!("c{n}").as_str());
            directory.see(&id, None, "docker", &"/here".into(), BootTime(n));
        }
        assert!(directory.entries.len() <= 8);
        assert!(directory.entries.contains_key(&ContainerId::from("c19")));
        assert!(!directory.entries.contains_key(&ContainerId::from("c0")));
    }
}
