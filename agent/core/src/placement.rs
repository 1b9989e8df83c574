//! The cgroups of processes and their owners. Cgroups are known by the kernel's numbers or by path,
//! resolved once, and shared by all processes in them.
//!
//! Events name a cgroup by (hierarchy, id); its name and its ancestors' are announced apart from
//! that and may come later. `/proc` names it by path. Both end in the same [`Owner`].
//!
//! Placements are reference-counted: process records hold them, and the last release frees them.
//! cgroups that no placement needs are dropped when the table is full; since the kernel side
//! announces each cgroup only once, the caller must then have it announce all of them anew.
//!
//! A path names the owner of a cgroup, and anyone who may make cgroups can write any id into a
//! path. So an id, and a pod's uid, belongs to the cgroup in which it was first seen, its *place*.
//! Another cgroup with the same id is refused and charged to the host. The place is released when
//! the id has no process (dead processes that are still kept count) and no account. One exception:
//! users can make cgroups below their own service manager and inside a container. An id that was
//! first seen there moves to a cgroup elsewhere as soon as one has that id. So nobody can reserve
//! the uid of a pod that has not started yet.

mod paths;
mod removal;

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::sync::Arc;

use crate::cgroup_path::{self, CgroupMeaning, ContainerCgroup, PodCgroup};
use crate::input::{CgroupAnnouncement, CgroupSet};
use crate::model::{CgroupKey, ContainerId, HostUnit, Owner, PodUid};
use crate::tables::{HashMap, HashSet};

/// Longest path of a cgroup, in bytes: the kernel's `PATH_MAX`, of which each byte may be escaped.
/// `/proc` cannot show a longer one. Of a longer path that events report, the highest part is kept,
/// since it names the owner.
const MAX_PATH_BYTES: usize = 4 * 4096;

/// Which container is charged if one is inside another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NestingRule {
    /// The outermost. Anyone who runs in a container can make cgroups below its cgroup.
    #[default]
    Outermost,
    /// The innermost that an identity source has confirmed, otherwise the outermost. For clusters
    /// whose nodes are containers, with trusted tenants.
    Innermost,
}

/// A container inside another one, by the cgroup's path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct InnerContainer {
    /// Its id.
    pub id: ContainerId,
    /// Its own cgroup.
    pub place: Arc<str>,
    /// The uid of the pod that it is in, inside the outer container.
    pub pod: Option<PodUid>,
}

/// A number for a placement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PlacementId(NonZeroU32);

impl PlacementId {
    /// A placement's number; 0 counts as 1.
    #[must_use]
    pub const fn new(number: u32) -> Self {
        match NonZeroU32::new(number) {
            Some(number) => Self(number),
            None => Self(NonZeroU32::MIN),
        }
    }

    /// Its number.
    #[must_use]
    pub const fn number(self) -> u32 {
        self.0.get()
    }

    /// Its index in tables by placement, from 0.
    pub(crate) const fn slot(self) -> usize {
        self.0.get() as usize - 1
    }
}

/// A hierarchy's number, and a path in it.
type HierarchyPath = (u32, Arc<str>);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Source {
    Keys(CgroupKey, Option<CgroupKey>),
    Paths(Arc<[HierarchyPath]>),
}

#[derive(Debug)]
struct Placement {
    source: Source,
    users: u32,
    meaning: Option<(Owner, CgroupMeaning)>,
    /// The ids whose places it counts for.
    binds: Vec<Owner>,
    refusal: Option<Refusal>,
}

/// Why the id in a cgroup's path is not believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Whose id it is: a container's or a pod's.
    pub claimed: Owner,
    /// The cgroup that bears it.
    pub place: Arc<str>,
    /// The cgroup that it belongs to.
    pub bound_to: Arc<str>,
}

/// Where an id belongs.
#[derive(Debug)]
struct Binding {
    /// One path, or one a hierarchy where those differ.
    places: BTreeSet<Arc<str>>,
    /// Whether it is where people make cgroups for themselves.
    is_weak: bool,
    /// Placements that count for it.
    placements: u32,
}

/// An id, and the cgroups of one placement that bear it.
struct Claim {
    owner: Owner,
    /// The same as [`key_of`] has it.
    key: Owner,
    places: BTreeSet<Arc<str>>,
    is_weak: bool,
}

#[derive(Debug)]
struct Node {
    parent: Option<u64>,
    /// Its name; where it has no parent, its path: empty for a root, and what a scan said of a
    /// cgroup whose ancestors are not announced.
    name: Arc<str>,
}

/// The table of placements and of the cgroups that they are made from.
#[derive(Debug)]
pub struct PlacementTable {
    placements: Vec<Option<Placement>>,
    free: Vec<PlacementId>,
    by_source: HashMap<Source, PlacementId>,
    nodes: HashMap<CgroupKey, Node>,
    /// Those of them that the kernel has removed.
    removed: HashSet<CgroupKey>,
    node_limit: usize,
    overflows: u64,
    new_containers: Vec<ContainerCgroup>,
    bindings: HashMap<Owner, Binding>,
    /// Bindings without a placement, kept for as long as there is an account.
    idle: HashSet<Owner>,
    /// Placements whose ids are refused.
    refused: HashSet<PlacementId>,
    /// Ids under which somebody other than their owner was billed.
    taken_over: Vec<Owner>,
    refusals: u64,
    rule: NestingRule,
    /// Inner containers that may pay.
    vouched: BTreeSet<InnerContainer>,
    /// Grows each time the owner of a placement is forgotten.
    revision: u64,
}

impl PlacementTable {
    /// A table that knows at most `node_limit` cgroups.
    #[must_use]
    pub fn new(node_limit: usize) -> Self {
        Self {
            placements: Vec::new(),
            free: Vec::new(),
            by_source: HashMap::default(),
            nodes: HashMap::default(),
            removed: HashSet::default(),
            node_limit,
            overflows: 0,
            new_containers: Vec::new(),
            bindings: HashMap::default(),
            idle: HashSet::default(),
            refused: HashSet::default(),
            taken_over: Vec::new(),
            refusals: 0,
            rule: NestingRule::default(),
            vouched: BTreeSet::new(),
            revision: 0,
        }
    }

    /// The same table under another rule of who pays.
    #[must_use]
    pub const fn with_rule(mut self, rule: NestingRule) -> Self {
        self.rule = rule;
        self
    }

    /// A number that differs from an earlier one if the known owner of a placement was forgotten since,
    /// so that it may have another one now.
    pub(crate) const fn revision(&self) -> u64 {
        self.revision
    }

    /// Ids in cgroups' paths that were refused, since they belong elsewhere.
    #[must_use]
    pub const fn refusals(&self) -> u64 {
        self.refusals
    }

    /// Why the id in a placement's path is not believed, if it is not.
    #[must_use]
    pub fn refusal(&self, id: PlacementId) -> Option<&Refusal> {
        self.placements.get(id.slot())?.as_ref()?.refusal.as_ref()
    }

    /// Cgroups that have an id which belongs to another cgroup.
    pub fn refusals_of(&self, claimed: &Owner) -> impl Iterator<Item = &Refusal> {
        let key = key_of(claimed);
        self.refused
            .iter()
            .filter_map(|id| self.refusal(*id))
            .filter(move |refusal| key_of(&refusal.claimed) == key)
    }

    /// The cgroup that an owner's id belongs to, one of them where hierarchies differ.
    #[must_use]
    pub fn bound_cgroup(&self, owner: &Owner) -> Option<&Arc<str>> {
        self.bindings.get(&key_of(owner))?.places.first()
    }

    /// Whether an id may be only where people make cgroups for themselves: who has it there chose it.
    /// After a restart it is not known where one without a process was.
    #[must_use]
    pub fn is_weak(&self, owner: &Owner) -> bool {
        let binding = self.bindings.get(&key_of(owner));
        binding.is_none_or(|binding| binding.is_weak)
    }

    /// Whose ids have turned out to be somebody else's than who was billed under them, since this was
    /// last asked. What was billed is not to be theirs.
    pub fn take_taken_over(&mut self) -> Vec<Owner> {
        std::mem::take(&mut self.taken_over)
    }

    /// The containers that were met since this was last asked. One may come again.
    pub fn take_new_containers(&mut self) -> Vec<ContainerCgroup> {
        std::mem::take(&mut self.new_containers)
    }

    /// Number of cgroups whose path is known.
    #[must_use]
    pub fn cgroups(&self) -> u64 {
        self.nodes.len() as u64
    }

    /// cgroups that the full table turned away.
    #[must_use]
    pub const fn overflows(&self) -> u64 {
        self.overflows
    }

    /// Learns a cgroup's name. Returns whether others had to be dropped for it, so that the kernel
    /// side must announce anew what is still in use.
    pub fn announce(&mut self, announcement: &CgroupAnnouncement) -> bool {
        let mut dropped = false;
        if self.nodes.len() >= self.node_limit && !self.nodes.contains_key(&announcement.key) {
            dropped = self.drop_unused();
            if self.nodes.len() >= self.node_limit {
                self.overflows += 1;
                return dropped;
            }
        }
        self.removed.remove(&announcement.key);
        if self.is_learnt_better(announcement.key, announcement.parent) {
            return dropped;
        }
        self.nodes.insert(
            announcement.key,
            Node {
                parent: announcement.parent,
                name: Arc::clone(&announcement.name),
            },
        );
        dropped
    }

    fn drop_unused(&mut self) -> bool {
        let used = self.used();
        let before = self.nodes.len();
        self.nodes.retain(|key, _| used.contains(key));
        self.nodes.len() < before
    }

    /// The placement of a process that an event reported. It is not held yet: see
    /// [`PlacementTable::hold`].
    pub fn of_keys(&mut self, cgroups: CgroupSet) -> PlacementId {
        self.intern(Source::Keys(cgroups.unified, cgroups.legacy))
    }

    /// The placement of a process that a scan found. Not held yet either.
    pub fn of_paths(&mut self, cgroups: &Arc<[(u32, Arc<str>)]>) -> PlacementId {
        self.intern(Source::Paths(Arc::clone(cgroups)))
    }

    fn intern(&mut self, source: Source) -> PlacementId {
        if let Some(&id) = self.by_source.get(&source) {
            return id;
        }
        let placement = Placement {
            source: source.clone(),
            users: 0,
            meaning: None,
            binds: Vec::new(),
            refusal: None,
        };
        let id = match self.free.pop() {
            Some(id) => {
                self.placements[id.slot()] = Some(placement);
                id
            }
            None => {
                self.placements.push(Some(placement));
                PlacementId::new(u32::try_from(self.placements.len()).unwrap_or(u32::MAX))
            }
        };
        self.by_source.insert(source, id);
        id
    }

    /// Counts one more process in this placement.
    pub fn hold(&mut self, id: PlacementId) {
        if let Some(Some(placement)) = self.placements.get_mut(id.slot()) {
            placement.users += 1;
        }
    }

    /// Releases a placement. One without users is freed.
    pub fn release(&mut self, id: PlacementId) {
        let Some(entry) = self.placements.get_mut(id.slot()) else {
            return;
        };
        let Some(placement) = entry else { return };
        placement.users = placement.users.saturating_sub(1);
        if placement.users == 0 {
            let binds = std::mem::take(&mut placement.binds);
            // Its cgroup may have been removed, and another one has the number.
            if self.by_source.get(&placement.source) == Some(&id) {
                self.by_source.remove(&placement.source);
            }
            *entry = None;
            self.free.push(id);
            self.refused.remove(&id);
            self.unbind(binds);
        }
    }

    /// Frees a placement that was interned and that nobody came to hold.
    pub fn discard_unheld(&mut self, id: PlacementId) {
        if let Some(Some(placement)) = self.placements.get(id.slot())
            && placement.users == 0
        {
            self.release(id);
        }
    }

    /// Owner of the processes in this placement. Absent while the path is not known.
    pub fn owner(&mut self, id: PlacementId) -> Option<&(Owner, CgroupMeaning)> {
        let placement = self.placements.get(id.slot())?.as_ref()?;
        if placement.meaning.is_none() {
            let paths = match &placement.source {
                Source::Paths(paths) => paths
                    .iter()
                    .map(|(hierarchy, path)| (*hierarchy, path.to_string()))
                    .collect(),
                Source::Keys(unified, legacy) => self.paths_of_keys(*unified, *legacy)?,
            };
            self.classify(id, &paths);
        }
        self.placements.get(id.slot())?.as_ref()?.meaning.as_ref()
    }

    /// Determines the owner of a placement once its paths are known.
    fn classify(&mut self, id: PlacementId, paths: &[(u32, String)]) {
        let meaning = resolve(paths);
        let (mut owner, claims) = match &meaning {
            CgroupMeaning::Container(container) => (
                Owner::Container(container.id.clone()),
                claims_of_container(container, paths),
            ),
            CgroupMeaning::Pod(pod) => (Owner::Pod(pod.uid.clone()), claims_of_pod(pod, paths)),
            CgroupMeaning::Host(unit) => (Owner::Host(unit.clone()), Vec::new()),
            CgroupMeaning::Root => (Owner::Host(HostUnit::from("/")), Vec::new()),
        };
        let mut refusal = self.refuse(&claims);
        let mut binds = Vec::new();
        if let Some(refusal) = &refusal {
            owner = Owner::Host(cgroup_path::as_host(&refusal.place));
        } else {
            for claim in claims {
                binds.push(claim.key.clone());
                self.bind(claim);
            }
            if let CgroupMeaning::Container(container) = &meaning {
                self.new_containers.push(container.clone());
                match self.vouched_inner(container) {
                    Some(Ok((inner, claims))) => {
                        owner = Owner::Container(inner.id.clone());
                        for claim in claims {
                            binds.push(claim.key.clone());
                            self.bind(claim);
                        }
                        self.new_containers.push(inner);
                    }
                    Some(Err(inners)) => refusal = Some(inners),
                    None => {}
                }
            }
        }
        if refusal.is_some() {
            self.refusals += 1;
            self.refused.insert(id);
        }
        if let Some(Some(placement)) = self.placements.get_mut(id.slot()) {
            placement.meaning = Some((owner, meaning));
            placement.binds = binds;
            placement.refusal = refusal;
        }
    }

    /// The innermost container that an identity source has confirmed, unless its id belongs to
    /// another cgroup.
    fn vouched_inner(
        &self,
        outermost: &ContainerCgroup,
    ) -> Option<Result<(ContainerCgroup, Vec<Claim>), Refusal>> {
        let inner = inners(outermost)
            .filter(|inner| self.vouched.contains(&named(inner)))
            .last()?;
        let pod = inner.pod.as_ref().and_then(|pod| {
            let place = pod.place.as_ref()?;
            Some((Owner::Pod(pod.uid.clone()), place))
        });
        let container = (Owner::Container(inner.id.clone()), &inner.place);
        // Made inside a container: whoever has the id outside of it has the better claim.
        let claims = std::iter::once(container).chain(pod);
        let claims = claims.filter_map(|(owner, place)| {
            let claim = claim(&owner, std::iter::once(place))?;
            Some(Claim {
                is_weak: true,
                ..claim
            })
        });
        let claims: Vec<_> = claims.collect();
        Some(match self.refuse(&claims) {
            Some(refusal) => Err(refusal),
            None => Ok((inner.clone(), claims)),
        })
    }

    /// The containers in containers in which processes are, where they may pay.
    pub fn inner_containers(&mut self) -> BTreeSet<InnerContainer> {
        if self.rule == NestingRule::Outermost {
            return BTreeSet::new();
        }
        let slots = 1..=u32::try_from(self.placements.len()).unwrap_or(u32::MAX);
        for slot in slots {
            self.owner(PlacementId::new(slot));
        }
        let placements = self.placements.iter().flatten();
        let outermost = placements.filter_map(|placement| match &placement.meaning {
            Some((Owner::Container(_), CgroupMeaning::Container(outermost))) => Some(outermost),
            _ => None,
        });
        outermost.flat_map(inners).map(named).collect()
    }

    /// Charges these inner containers from now on: an identity source has confirmed their cgroup.
    /// Containers that were confirmed before stay so for as long as they have a process. `present`
    /// lists all that have one.
    pub fn vouch(&mut self, vouched: BTreeSet<InnerContainer>, present: &BTreeSet<InnerContainer>) {
        self.vouched.retain(|inner| present.contains(inner));
        let mut new = vouched;
        new.retain(|inner| !self.vouched.contains(inner));
        if new.is_empty() {
            return;
        }
        self.vouched.extend(new.iter().cloned());
        self.look_again(|placement| match &placement.meaning {
            Some((_, CgroupMeaning::Container(outermost))) => {
                inners(outermost).any(|inner| new.contains(&named(inner)))
            }
            _ => false,
        });
    }

    /// Whether one of the ids belongs elsewhere.
    fn refuse(&self, claims: &[Claim]) -> Option<Refusal> {
        claims.iter().find_map(|claim| {
            let binding = self.bindings.get(&claim.key)?;
            if !binding.places.is_disjoint(&claim.places) || (binding.is_weak && !claim.is_weak) {
                return None;
            }
            Some(Refusal {
                claimed: claim.owner.clone(),
                place: Arc::clone(claim.places.first()?),
                bound_to: Arc::clone(binding.places.first()?),
            })
        })
    }

    /// Counts a placement for its id's place, which this may be the first to name.
    fn bind(&mut self, claim: Claim) {
        let is_taken_over = self
            .bindings
            .get(&claim.key)
            .is_some_and(|binding| binding.places.is_disjoint(&claim.places));
        if is_taken_over {
            // Placements that used the id wrongly are judged again and refused.
            self.look_again(|placement| placement.binds.contains(&claim.key));
            self.bindings.remove(&claim.key);
            self.taken_over.push(claim.owner.clone());
        }
        self.idle.remove(&claim.key);
        let binding = self.bindings.entry(claim.key).or_insert(Binding {
            places: claim.places,
            is_weak: claim.is_weak,
            placements: 0,
        });
        binding.placements += 1;
    }

    fn unbind(&mut self, keys: Vec<Owner>) {
        for key in keys {
            if let Some(binding) = self.bindings.get_mut(&key) {
                binding.placements = binding.placements.saturating_sub(1);
                if binding.placements == 0 {
                    self.idle.insert(key);
                }
            }
        }
    }

    /// Forgets what these placements mean, so that it is found again.
    fn look_again(&mut self, which: impl Fn(&Placement) -> bool) {
        let mut forgotten = Vec::new();
        self.revision += 1;
        for (slot, placement) in self.placements.iter_mut().enumerate() {
            if let Some(placement) = placement
                && which(placement)
            {
                placement.meaning = None;
                placement.refusal = None;
                forgotten.append(&mut placement.binds);
                let number = u32::try_from(slot + 1).unwrap_or(u32::MAX);
                self.refused.remove(&PlacementId::new(number));
            }
        }
        self.unbind(forgotten);
    }

    /// Gives up the places of ids that have neither a process nor one of these accounts.
    pub fn end_bindings<'a>(&mut self, accounts: impl Iterator<Item = &'a Owner>) {
        if self.idle.is_empty() {
            return;
        }
        let held: HashSet<Owner> = accounts.map(key_of).collect();
        let (kept, ended): (HashSet<_>, HashSet<_>) =
            self.idle.drain().partition(|key| held.contains(key));
        self.idle = kept;
        if ended.is_empty() {
            return;
        }
        self.bindings.retain(|key, _| !ended.contains(key));
        // Somebody else may have the id now.
        self.look_again(|placement| {
            let refusal = placement.refusal.as_ref();
            refusal.is_some_and(|refusal| ended.contains(&key_of(&refusal.claimed)))
        });
    }

    /// The cgroups that a placement is made from: hierarchy and path, or no path where it has not
    /// been announced.
    #[must_use]
    pub fn cgroups_of(&self, id: PlacementId) -> Vec<(u32, Option<String>)> {
        let Some(Some(placement)) = self.placements.get(id.slot()) else {
            return Vec::new();
        };
        match &placement.source {
            Source::Keys(unified, legacy) => std::iter::once(*unified)
                .chain(*legacy)
                .map(|key| (key.hierarchy, self.path(key)))
                .collect(),
            Source::Paths(paths) => paths
                .iter()
                .map(|(hierarchy, path)| (*hierarchy, Some(path.to_string())))
                .collect(),
        }
    }

    /// A container that one hierarchy names is one, whatever the other is called, even if that is
    /// not known yet. Anything else is settled only when all of them are known.
    fn paths_of_keys(
        &self,
        unified: CgroupKey,
        legacy: Option<CgroupKey>,
    ) -> Option<Vec<(u32, String)>> {
        let mut paths = Vec::with_capacity(2);
        let mut complete = true;
        for key in std::iter::once(unified).chain(legacy) {
            match self.path(key) {
                Some(path) => paths.push((key.hierarchy, path)),
                None => complete = false,
            }
        }
        if paths.is_empty() {
            return None;
        }
        (complete || matches!(resolve(&paths), CgroupMeaning::Container(_))).then_some(paths)
    }

    /// The path of a cgroup below its hierarchy's root, if it and all its ancestors are announced,
    /// or one of them is known by its path. It has at most [`MAX_PATH_BYTES`].
    #[must_use]
    pub fn path(&self, key: CgroupKey) -> Option<String> {
        let mut names = Vec::new();
        let mut at = key;
        let top = loop {
            let node = self.nodes.get(&at)?;
            let Some(parent) = node.parent else {
                break &*node.name;
            };
            names.push(&*node.name);
            // Only a loop of parents is longer than the table.
            if names.len() > self.nodes.len() {
                return None;
            }
            at.id = parent;
        };
        let mut path = top.to_owned();
        for name in names.iter().rev() {
            if path.len() + 1 + name.len() > MAX_PATH_BYTES {
                break;
            }
            path.push('/');
            path.push_str(name);
        }
        if path.is_empty() {
            path.push('/');
        }
        Some(path)
    }
}

fn resolve(paths: &[(u32, String)]) -> CgroupMeaning {
    cgroup_path::resolve(paths.iter().map(|(h, path)| (*h, path.as_str())))
}

fn inners(outermost: &ContainerCgroup) -> impl Iterator<Item = &ContainerCgroup> {
    outermost.chain().skip(1)
}

fn named(inner: &ContainerCgroup) -> InnerContainer {
    InnerContainer {
        id: inner.id.clone(),
        place: Arc::clone(&inner.place),
        pod: inner.pod.as_ref().map(|pod| pod.uid.clone()),
    }
}

/// The same for every way of writing an id: static pods' uids come with dashes and without.
fn key_of(owner: &Owner) -> Owner {
    match owner {
        Owner::Pod(PodUid(uid)) if uid.contains('-') => {
            Owner::Pod(PodUid(uid.replace('-', "").into()))
        }
        Owner::Container(_) | Owner::Pod(_) | Owner::Host(_) => owner.clone(),
    }
}

fn claim<'a>(owner: &Owner, places: impl Iterator<Item = &'a Arc<str>>) -> Option<Claim> {
    let places: BTreeSet<Arc<str>> = places.cloned().collect();
    Some(Claim {
        owner: owner.clone(),
        key: key_of(owner),
        is_weak: cgroup_path::is_users_own(places.first()?),
        places,
    })
}

/// A container's id belongs to its own cgroup, its pod's uid to the pod's.
fn claims_of_container(container: &ContainerCgroup, paths: &[(u32, String)]) -> Vec<Claim> {
    let others: Vec<_> = paths
        .iter()
        .filter_map(|(_, path)| match cgroup_path::parse(path) {
            CgroupMeaning::Container(other) if other.id == container.id => Some(other),
            _ => None,
        })
        .collect();
    let pods = others.iter().filter_map(|other| other.pod.as_ref());
    let pod = container.pod.as_ref().and_then(|pod| {
        let places = pods.filter(|other| other.uid == pod.uid);
        let places = places.filter_map(|other| other.place.as_ref());
        claim(&Owner::Pod(pod.uid.clone()), places)
    });
    let places = others.iter().map(|other| &other.place);
    let container = claim(&Owner::Container(container.id.clone()), places);
    container.into_iter().chain(pod).collect()
}

fn claims_of_pod(pod: &PodCgroup, paths: &[(u32, String)]) -> Vec<Claim> {
    let others: Vec<_> = paths
        .iter()
        .filter_map(|(_, path)| match cgroup_path::parse(path) {
            CgroupMeaning::Pod(other) if other.uid == pod.uid => other.place,
            _ => None,
        })
        .collect();
    let owner = Owner::Pod(pod.uid.clone());
    claim(&owner, others.iter()).into_iter().collect()
}

#[cfg(test)]
mod tests;
