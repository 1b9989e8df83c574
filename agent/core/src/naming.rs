//! What each owner is called: who was asked, who answered, and which answer is published.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::cgroup_path::ContainerCgroup;
use crate::directory::{Directory, IdentitySources};
use crate::effect::{Effect, Effects};
use crate::model::{
    BootTime, ContainerId, HostUnit, Nanos, Owner, POD_ITSELF, PodUid, UNRESOLVED, none, unresolved,
};
use crate::placement::PlacementTable;
use crate::snapshot::{Attribution, ContainerLabels, IdOnlyReason};
use crate::tables::{HashMap, HashSet};
use crate::tracker::ProcessTracker;

/// How far the names of an owner that has an account are known.
#[derive(Debug)]
pub(crate) struct NamingState {
    /// How far its names are known.
    pub(crate) attribution: Attribution,
    /// Since when its names have been waited for.
    pub(crate) held_since: BootTime,
    /// What it is called, as good as it is known.
    pub(crate) labels: Arc<ContainerLabels>,
    /// Its image; `(unresolved)` while that is not known.
    pub(crate) image: Arc<str>,
    /// Its container runtime; `(unresolved)` while that is not known.
    pub(crate) runtime: Arc<str>,
}

/// Which identity sources there are, for the reason why a name is missing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Askable {
    /// Whether sources are up, and whether some are down.
    pub(crate) sources: IdentitySources,
    /// Whether a source is up that can be asked for a pod by its uid.
    pub(crate) for_pods: bool,
}

/// What holds for all owners in one commit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Round {
    /// The time of the commit.
    pub(crate) now: BootTime,
    /// How long names are waited for before an owner is published under its ids.
    pub(crate) grace: Nanos,
    /// Which identity sources there are.
    pub(crate) askable: Askable,
}

/// Where [`Naming`] keeps what an owner is called, for as long as the owner has an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NamingId(usize);

/// The directory of names, and the owners that are or wait to be named.
#[derive(Debug)]
pub(crate) struct Naming {
    directory: Directory,
    /// By [`NamingId`].
    states: Vec<Option<NamingState>>,
    ids: HashMap<Owner, NamingId>,
    free: Vec<NamingId>,
    /// Owners that were named after their grace was over.
    named_late: u64,
}

impl Naming {
    /// Remembers the names of at most `container_limit` containers.
    pub(crate) fn new(container_limit: usize) -> Self {
        Self {
            directory: Directory::new(container_limit),
            states: Vec::new(),
            ids: HashMap::default(),
            free: Vec::new(),
            named_late: 0,
        }
    }

    /// What the identity sources answered.
    pub(crate) const fn directory(&self) -> &Directory {
        &self.directory
    }

    /// The same, to be changed.
    pub(crate) const fn directory_mut(&mut self) -> &mut Directory {
        &mut self.directory
    }

    /// What an owner that has an account is called.
    pub(crate) fn of_owner(&self, owner: &Owner) -> Option<&NamingState> {
        self.of(self.ids.get(owner).copied())
    }

    /// What is known under the id that an account has. Absent for host units, and until the first
    /// commit after the account was opened.
    pub(crate) fn of(&self, id: Option<NamingId>) -> Option<&NamingState> {
        self.states.get(id?.0)?.as_ref()
    }

    /// How many owners with an account are named, wait for names, or go by their ids: as
    /// `(held, named, id_only)`.
    pub(crate) fn counts(&self) -> (u64, u64, u64) {
        let mut counts = (0, 0, 0);
        for state in self.states.iter().flatten() {
            match state.attribution {
                Attribution::Held => counts.0 += 1,
                Attribution::Named { .. } => counts.1 += 1,
                Attribution::IdOnly { .. } => counts.2 += 1,
            }
        }
        counts
    }

    /// Puts back what an owner was called before a restart.
    pub(crate) fn restore(&mut self, owner: Owner, state: NamingState) -> NamingId {
        let id = self.ids.get(&owner).copied();
        let id = id.or_else(|| self.free.pop()).unwrap_or_else(|| {
            self.states.push(None);
            NamingId(self.states.len() - 1)
        });
        self.ids.insert(owner, id);
        self.states[id.0] = Some(state);
        id
    }

    /// Forgets the owners that have no account any more.
    pub(crate) fn retain(&mut self, has_account: &HashSet<&Owner>) {
        let (states, free) = (&mut self.states, &mut self.free);
        self.ids.retain(|owner, id| {
            let stays = has_account.contains(owner);
            if !stays {
                states[id.0] = None;
                free.push(*id);
            }
            stays
        });
    }

    /// Where it is kept what this owner is called. Names are waited for from `now` on if nothing was
    /// known of it.
    pub(crate) fn id_of(&mut self, owner: &Owner, now: BootTime) -> NamingId {
        if let Some(id) = self.ids.get(owner) {
            return *id;
        }
        let state = NamingState {
            attribution: Attribution::Held,
            held_since: now,
            labels: Arc::new(no_names(owner)),
            image: match owner {
                Owner::Container(_) => unresolved(),
                // A pod has several images, and a host unit has none.
                Owner::Pod(_) | Owner::Host(_) => none(),
            },
            runtime: unresolved(),
        };
        self.restore(owner.clone(), state)
    }

    /// Owners that were named after their grace was over.
    pub(crate) const fn named_late(&self) -> u64 {
        self.named_late
    }

    /// Notes which pod a container is in by its cgroup. If an event showed the container, it has just
    /// begun: its names are asked for at once, so that they are known when it is charged. A container
    /// that a scan showed began before the agent looked, and every source lists those by itself.
    pub(crate) fn introduce(
        &mut self,
        container: &ContainerCgroup,
        by_event: bool,
        now: BootTime,
        effects: &mut Effects,
    ) {
        self.directory.see(
            &container.id,
            container.pod.as_ref().map(|pod| &pod.uid),
            container.runtime.as_str(),
            &container.place,
            now,
        );
        if by_event && self.directory.should_ask(&container.id, now) {
            effects.push(Effect::LookUp(container.id.clone()));
        }
    }

    /// Charges inner containers that an identity source has confirmed, and asks about the others.
    /// Until then the outermost container is charged.
    pub(crate) fn vouch_for_inner(
        &mut self,
        tracker: &mut ProcessTracker,
        now: BootTime,
        effects: &mut Effects,
    ) {
        let present = tracker.inner_containers();
        let mut vouched = BTreeSet::new();
        for inner in &present {
            self.directory.touch(&inner.id, now);
            if self
                .directory
                .vouches(&inner.id, &inner.place, inner.pod.as_ref())
            {
                vouched.insert(inner.clone());
            } else if self.directory.should_ask(&inner.id, now) {
                effects.push(Effect::LookUp(inner.id.clone()));
            }
        }
        tracker.vouch(vouched, &present);
    }

    /// Settles what the owner of an account is called now, and asks for names that are missing.
    pub(crate) fn settle(
        &mut self,
        owner: &Owner,
        id: NamingId,
        placements: &PlacementTable,
        round: Round,
        effects: &mut Effects,
    ) {
        let Some(Some(state)) = self.states.get_mut(id.0) else {
            return;
        };
        let is_named = matches!(state.attribution, Attribution::Named { .. });
        let grace_over = round.now.since(state.held_since) >= round.grace;
        match owner {
            Owner::Container(id) => self.directory.want(id, round.now),
            Owner::Pod(uid) => self.directory.want_pod(uid, round.now),
            // A unit is its own name.
            Owner::Host(_) => return,
        }
        match owner {
            // Its names are frozen. Another source may still know its image and its runtime.
            Owner::Container(id) if is_named => {
                if [&state.image, &state.runtime]
                    .map(|of| &**of)
                    .contains(&UNRESOLVED)
                {
                    let names = self.directory.names(id);
                    for (of, known) in [
                        (&mut state.image, names.image),
                        (&mut state.runtime, names.runtime),
                    ] {
                        if &**of == UNRESOLVED {
                            *of = known;
                        }
                    }
                }
            }
            Owner::Container(id) => {
                let names = self.directory.names(id);
                state.image = names.image;
                state.runtime = names.runtime;
                if let Some(source) = names.source {
                    if matches!(state.attribution, Attribution::IdOnly { .. }) {
                        self.named_late += 1;
                    }
                    state.labels = Arc::new(names.labels);
                    state.attribution = Attribution::Named { source };
                    return;
                }
                if state.attribution == Attribution::Held {
                    if *state.labels != names.labels {
                        state.labels = Arc::new(names.labels);
                    }
                    if grace_over {
                        let reason = self.directory.reason(id, round.askable.sources);
                        state.attribution = Attribution::IdOnly { reason };
                    }
                }
                if self.directory.should_ask(id, round.now) {
                    effects.push(Effect::LookUp(id.clone()));
                }
                // `should_ask` may have made its entry, which is not marked yet as one with an
                // account.
                self.directory.want(id, round.now);
            }
            Owner::Pod(_) if is_named => {}
            Owner::Pod(uid) => {
                let is_users_own = placements.is_weak(owner);
                if let Some((names, source)) = self.directory.pod_names(uid, is_users_own) {
                    if matches!(state.attribution, Attribution::IdOnly { .. }) {
                        self.named_late += 1;
                    }
                    let labels = Arc::make_mut(&mut state.labels);
                    labels.namespace = Arc::clone(&names.namespace);
                    labels.pod = Arc::clone(&names.pod);
                    state.attribution = Attribution::Named { source };
                    return;
                }
                if state.attribution == Attribution::Held && grace_over {
                    let sources = round.askable.sources;
                    let reason = self
                        .directory
                        .pod_reason(uid, sources, round.askable.for_pods);
                    state.attribution = Attribution::IdOnly { reason };
                }
                if !is_users_own && self.directory.should_ask_pod(uid, round.now) {
                    effects.push(Effect::LookUpPod(uid.clone()));
                }
            }
            Owner::Host(_) => {}
        }
    }

    /// Why nobody names this owner.
    pub(crate) fn reason(&self, owner: &Owner, askable: Askable) -> IdOnlyReason {
        match owner {
            Owner::Container(id) => self.directory.reason(id, askable.sources),
            Owner::Pod(uid) => self
                .directory
                .pod_reason(uid, askable.sources, askable.for_pods),
            Owner::Host(_) => IdOnlyReason::NoSource,
        }
    }

    /// Forgets the names of containers that have neither a process nor an account.
    pub(crate) fn forget_gone(&mut self, now: BootTime, has_place: impl Fn(&ContainerId) -> bool) {
        self.directory.settle(now, has_place);
    }
}

/// Labels of an owner before any source has named it.
pub(crate) fn no_names(owner: &Owner) -> ContainerLabels {
    match owner {
        Owner::Container(id) => ContainerLabels {
            namespace: unresolved(),
            pod: unresolved(),
            container: unresolved(),
            pod_uid: unresolved(),
            container_id: Arc::clone(&id.0),
        },
        Owner::Pod(PodUid(uid)) => ContainerLabels {
            namespace: unresolved(),
            pod: unresolved(),
            container: POD_ITSELF.into(),
            pod_uid: Arc::clone(uid),
            container_id: none(),
        },
        Owner::Host(HostUnit(unit)) => ContainerLabels {
            namespace: none(),
            pod: none(),
            container: Arc::clone(unit),
            pod_uid: none(),
            container_id: none(),
        },
    }
}
