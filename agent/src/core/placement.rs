//! Where a process lives, and whose that is: cgroups by the kernel's numbers or by path, resolved
//! once and shared by all processes in the same place.
//!
//! Events name a cgroup by (hierarchy, id); its name and its ancestors' are announced apart from
//! that and may come later. `/proc` names it by path. Both end in the same [`Owner`].
//!
//! A placement is counted: it is held by the process records that use it and freed with the last.
//! cgroups that no placement needs are dropped when the table is full; since the kernel side
//! announces each cgroup only once, the caller must then have it announce all of them anew.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroU32;
use std::sync::Arc;

use super::cgroup_path::{self, CgroupMeaning, ContainerCgroup};
use super::input::{CgroupAnnouncement, CgroupSet};
use super::model::{CgroupKey, ContainerId, HostUnit, PodUid};

/// How deep a cgroup may lie. The kernel side walks no further either.
const MAX_DEPTH: usize = 64;

/// Who pays: what a process's place means.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Owner {
    /// The outermost container.
    Container(ContainerId),
    /// A pod, for processes in the pod's own cgroup.
    Pod(PodUid),
    /// A host process.
    Host(HostUnit),
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

    const fn slot(self) -> usize {
        self.0.get() as usize - 1
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Source {
    Keys(CgroupKey, Option<CgroupKey>),
    Paths(Arc<[(u32, Arc<str>)]>),
}

#[derive(Debug)]
struct Placement {
    source: Source,
    users: u32,
    meaning: Option<(Owner, CgroupMeaning)>,
}

#[derive(Debug)]
struct Node {
    parent: Option<u64>,
    name: Arc<str>,
}

/// The table of placements and of the cgroups that they are made from.
#[derive(Debug)]
pub struct PlacementTable {
    placements: Vec<Option<Placement>>,
    free: Vec<PlacementId>,
    by_source: HashMap<Source, PlacementId>,
    nodes: HashMap<CgroupKey, Node>,
    node_limit: usize,
    overflows: u64,
    new_containers: Vec<ContainerCgroup>,
}

impl PlacementTable {
    /// A table that knows at most `node_limit` cgroups.
    #[must_use]
    pub fn new(node_limit: usize) -> Self {
        Self {
            placements: Vec::new(),
            free: Vec::new(),
            by_source: HashMap::new(),
            nodes: HashMap::new(),
            node_limit,
            overflows: 0,
            new_containers: Vec::new(),
        }
    }

    /// The containers that were met since this was last asked. One may come again.
    pub fn take_new_containers(&mut self) -> Vec<ContainerCgroup> {
        std::mem::take(&mut self.new_containers)
    }

    /// cgroups known.
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
        let mut used = HashSet::new();
        for source in self.by_source.keys() {
            let Source::Keys(unified, legacy) = source else {
                continue;
            };
            for key in std::iter::once(*unified).chain(*legacy) {
                let mut key = Some(key);
                while let Some(at) = key {
                    if !used.insert(at) {
                        break;
                    }
                    key = self.nodes.get(&at).and_then(|node| {
                        node.parent.map(|id| CgroupKey {
                            hierarchy: at.hierarchy,
                            id,
                        })
                    });
                }
            }
        }
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

    /// Adds a user.
    pub fn hold(&mut self, id: PlacementId) {
        if let Some(Some(placement)) = self.placements.get_mut(id.slot()) {
            placement.users += 1;
        }
    }

    /// Takes a user away; a placement without users is freed.
    pub fn release(&mut self, id: PlacementId) {
        let Some(entry) = self.placements.get_mut(id.slot()) else {
            return;
        };
        let Some(placement) = entry else { return };
        placement.users = placement.users.saturating_sub(1);
        if placement.users == 0 {
            self.by_source.remove(&placement.source);
            *entry = None;
            self.free.push(id);
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

    /// Whose processes in this place are; absent while a cgroup's name has not been announced.
    pub fn owner(&mut self, id: PlacementId) -> Option<&(Owner, CgroupMeaning)> {
        let placement = self.placements.get(id.slot())?.as_ref()?;
        if placement.meaning.is_none() {
            let meaning = match &placement.source {
                Source::Paths(paths) => cgroup_path::resolve(paths.iter().map(|(h, p)| (*h, &**p))),
                Source::Keys(unified, legacy) => self.meaning_of_keys(*unified, *legacy)?,
            };
            let owner = match &meaning {
                CgroupMeaning::Container(container) => Owner::Container(container.id.clone()),
                CgroupMeaning::Pod(pod) => Owner::Pod(pod.uid.clone()),
                CgroupMeaning::Host(unit) => Owner::Host(unit.clone()),
                CgroupMeaning::Root => Owner::Host(HostUnit::from("/")),
            };
            if let CgroupMeaning::Container(container) = &meaning {
                self.new_containers.push(container.clone());
            }
            self.placements.get_mut(id.slot())?.as_mut()?.meaning = Some((owner, meaning));
        }
        self.placements.get(id.slot())?.as_ref()?.meaning.as_ref()
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
    fn meaning_of_keys(
        &self,
        unified: CgroupKey,
        legacy: Option<CgroupKey>,
    ) -> Option<CgroupMeaning> {
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
        let meaning = cgroup_path::resolve(paths.iter().map(|(h, p)| (*h, p.as_str())));
        (complete || matches!(meaning, CgroupMeaning::Container(_))).then_some(meaning)
    }

    /// The path of a cgroup below its hierarchy's root, if it and all its ancestors are announced.
    #[must_use]
    pub fn path(&self, key: CgroupKey) -> Option<String> {
        let mut names = Vec::new();
        let mut at = key;
        loop {
            let node = self.nodes.get(&at)?;
            let Some(parent) = node.parent else { break };
            names.push(&*node.name);
            if names.len() > MAX_DEPTH {
                return None;
            }
            at.id = parent;
        }
        if names.is_empty() {
            return Some("/".to_owned());
        }
        names.reverse();
        Some(
            names
                .iter()
                .fold(String::new(), |path, name| path + "/" + name),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn key(id: u64) -> CgroupKey {
        CgroupKey { hierarchy: 0, id }
    }

    fn announce(
        table: &mut PlacementTable,
        hierarchy: u32,
        id: u64,
        parent: u64,
        name: &str,
    ) -> bool {
        table.announce(&CgroupAnnouncement {
            key: CgroupKey { hierarchy, id },
            parent: (parent != 0).then_some(parent),
            name: name.into(),
        })
    }

    fn keys(unified: u64, legacy: Option<u64>) -> CgroupSet {
        CgroupSet {
            unified: key(unified),
            legacy: legacy.map(|id| CgroupKey { hierarchy: 4, id }),
        }
    }

    fn owner(table: &mut PlacementTable, id: PlacementId) -> Option<Owner> {
        table.owner(id).map(|(owner, _)| owner.clone())
    }

    #[test]
    fn a_place_is_known_when_the_cgroup_and_its_ancestors_are_whatever_the_order() {
        let mut table = PlacementTable::new(100);
        let place = table.of_keys(keys(3, None));
        assert_eq!(owner(&mut table, place), None);
        announce(&mut table, 0, 3, 2, ID);
        assert_eq!(owner(&mut table, place), None);
        announce(&mut table, 0, 2, 1, "docker");
        assert_eq!(owner(&mut table, place), None);
        announce(&mut table, 0, 1, 0, "");
        assert_eq!(owner(&mut table, place), Some(Owner::Container(ID.into())));
        assert_eq!(table.path(key(1)).as_deref(), Some("/"));
    }

    #[test]
    fn whichever_hierarchy_names_a_container_wins() {
        let mut table = PlacementTable::new(100);
        announce(&mut table, 0, 1, 0, "");
        let place = table.of_keys(keys(1, Some(12)));
        // The v2 root says "host"; that must not be believed before v1 has been heard.
        assert_eq!(owner(&mut table, place), None);
        announce(&mut table, 4, 10, 0, "");
        announce(&mut table, 4, 11, 10, "docker");
        announce(&mut table, 4, 12, 11, ID);
        assert_eq!(owner(&mut table, place), Some(Owner::Container(ID.into())));
    }

    #[test]
    fn paths_and_keys_of_one_container_have_one_owner() {
        let mut table = PlacementTable::new(100);
        let paths: Arc<[(u32, Arc<str>)]> = Arc::new([(0, format!("/docker/{ID}").into())]);
        let place = table.of_paths(&paths);
        assert_eq!(owner(&mut table, place), Some(Owner::Container(ID.into())));
        assert_eq!(table.of_paths(&paths), place);
    }

    #[test]
    fn a_placement_is_freed_with_its_last_user() {
        let mut table = PlacementTable::new(100);
        let place = table.of_keys(keys(3, None));
        table.hold(place);
        table.hold(place);
        table.release(place);
        assert_eq!(table.of_keys(keys(3, None)), place);
        table.release(place);
        assert!(table.by_source.is_empty());
        assert_eq!(
            table.of_keys(keys(9, None)),
            place,
            "the slot is used again"
        );
    }

    #[test]
    fn a_full_table_drops_what_no_process_uses_and_then_counts() {
        let mut table = PlacementTable::new(4);
        announce(&mut table, 0, 1, 0, "");
        announce(&mut table, 0, 2, 1, "used");
        announce(&mut table, 0, 3, 1, "unused");
        announce(&mut table, 0, 4, 2, "leaf");
        let place = table.of_keys(keys(4, None));
        table.hold(place);
        assert!(announce(&mut table, 0, 5, 2, "new"), "3 was dropped");
        assert_eq!((table.cgroups(), table.overflows()), (4, 0));
        let other = table.of_keys(keys(5, None));
        table.hold(other);
        assert!(!announce(&mut table, 0, 6, 2, "newer"));
        assert_eq!((table.cgroups(), table.overflows()), (4, 1));
        assert_eq!(table.path(key(4)).as_deref(), Some("/used/leaf"));
    }

    #[test]
    fn a_loop_of_parents_ends() {
        let mut table = PlacementTable::new(100);
        announce(&mut table, 0, 1, 2, "a");
        announce(&mut table, 0, 2, 1, "b");
        assert_eq!(table.path(key(1)), None);
    }
}
