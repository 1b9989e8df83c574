//! What each payer is called: who was asked, who answered, and which answer is published.

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
    pub(crate) labels: ContainerLabels,
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

/// The directory of names, and the payers that are or wait to be named.
#[derive(Debug)]
pub(crate) struct Naming {
    directory: Directory,
    payers: HashMap<Owner, NamingState>,
    /// Payers that were named after their grace was over.
    named_late: u64,
}

impl Naming {
    /// Remembers the names of at most `container_limit` containers.
    pub(crate) fn new(container_limit: usize) -> Self {
        Self {
            directory: Directory::new(container_limit),
            payers: HashMap::default(),
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

    /// A payer that has an account.
    pub(crate) fn payer(&self, owner: &Owner) -> Option<&NamingState> {
        self.payers.get(owner)
    }

    /// All payers that have an account.
    pub(crate) fn payers(&self) -> impl Iterator<Item = &NamingState> {
        self.payers.values()
    }

    /// Puts back a payer from before a restart.
    pub(crate) fn restore(&mut self, owner: Owner, payer: NamingState) {
        self.payers.insert(owner, payer);
    }

    /// Forgets the payers that have no account any more.
    pub(crate) fn retain(&mut self, has_account: &HashSet<&Owner>) {
        self.payers.retain(|owner, _| has_account.contains(owner));
    }

    /// Payers that were named after their grace was over.
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

    /// Settles what each owner of an account is called now, and asks for names that are missing.
    pub(crate) fn settle(
        &mut self,
        owners: Vec<Owner>,
        placements: &PlacementTable,
        askable: Askable,
        grace: Nanos,
        now: BootTime,
        effects: &mut Effects,
    ) {
        for owner in owners {
            match &owner {
                Owner::Container(id) => self.directory.want(id, now),
                Owner::Pod(uid) => self.directory.want_pod(uid, now),
                // A unit is its own name.
                Owner::Host(_) => continue,
            }
            let payer = self
                .payers
                .entry(owner.clone())
                .or_insert_with(|| NamingState {
                    attribution: Attribution::Held,
                    held_since: now,
                    labels: no_names(&owner),
                    image: match &owner {
                        Owner::Container(_) => unresolved(),
                        // A pod has several images, and a host unit has none.
                        Owner::Pod(_) | Owner::Host(_) => none(),
                    },
                    runtime: unresolved(),
                });
            let is_named = matches!(payer.attribution, Attribution::Named { .. });
            let grace_over = now.since(payer.held_since) >= grace;
            match &owner {
                // Its names are frozen. Another source may still tell its image and its runtime.
                Owner::Container(id) if is_named => {
                    if [&payer.image, &payer.runtime]
                        .map(|of| &**of)
                        .contains(&UNRESOLVED)
                    {
                        let names = self.directory.names(id);
                        for (of, known) in [
                            (&mut payer.image, names.image),
                            (&mut payer.runtime, names.runtime),
                        ] {
                            if &**of == UNRESOLVED {
                                *of = known;
                            }
                        }
                    }
                }
                Owner::Container(id) => {
                    let names = self.directory.names(id);
                    payer.image = names.image;
                    payer.runtime = names.runtime;
                    if let Some(source) = names.source {
                        if matches!(payer.attribution, Attribution::IdOnly { .. }) {
                            self.named_late += 1;
                        }
                        payer.labels = names.labels;
                        payer.attribution = Attribution::Named { source };
                        continue;
                    }
                    if payer.attribution == Attribution::Held {
                        payer.labels = names.labels;
                        if grace_over {
                            let reason = self.directory.reason(id, askable.sources);
                            payer.attribution = Attribution::IdOnly { reason };
                        }
                    }
                    if self.directory.should_ask(id, now) {
                        effects.push(Effect::LookUp(id.clone()));
                    }
                    // `should_ask` may have made its entry, which is not marked yet as one with an
                    // account.
                    self.directory.want(id, now);
                }
                Owner::Pod(_) if is_named => {}
                Owner::Pod(uid) => {
                    let is_users_own = placements.is_weak(&owner);
                    if let Some((names, source)) = self.directory.pod_names(uid, is_users_own) {
                        if matches!(payer.attribution, Attribution::IdOnly { .. }) {
                            self.named_late += 1;
                        }
                        payer.labels.namespace = Arc::clone(&names.namespace);
                        payer.labels.pod = Arc::clone(&names.pod);
                        payer.attribution = Attribution::Named { source };
                        continue;
                    }
                    if payer.attribution == Attribution::Held && grace_over {
                        let reason =
                            self.directory
                                .pod_reason(uid, askable.sources, askable.for_pods);
                        payer.attribution = Attribution::IdOnly { reason };
                    }
                    if !is_users_own && self.directory.should_ask_pod(uid, now) {
                        effects.push(Effect::LookUpPod(uid.clone()));
                    }
                }
                Owner::Host(_) => {}
            }
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
