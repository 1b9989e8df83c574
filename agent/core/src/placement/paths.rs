//! Paths of cgroups that `/proc` shows and that events do not.
//!
//! An event names a process's cgroups in two hierarchies: v2's, and that of one v1 controller.
//! `/proc` names them in all. A scheduler may name its jobs only in another hierarchy, e.g. cpuset.
//! The cgroups in the event are then the daemon's. What a scan found is kept for as long as events
//! agree with it: they report the same path in each hierarchy that they name. It also holds for the
//! processes that the process forks.
//!
//! A cgroup may also lie so deep that its ancestors are never announced. A scan that finds a
//! process in it learns its path. The path then holds for all other processes in that cgroup.

use std::sync::Arc;

use crate::cgroup_path;
use crate::input::CgroupSet;
use crate::model::CgroupKey;
use crate::placement::{HierarchyPath, Node, PlacementId, PlacementTable, Source};

impl PlacementTable {
    /// The placement of a process that an event reported, where the process or its parent is known
    /// to be in `known`. That is kept if it agrees with the event and says more. Not held yet.
    pub fn of_event(&mut self, cgroups: CgroupSet, known: Option<PlacementId>) -> PlacementId {
        let place = self.of_keys(cgroups);
        match known {
            Some(known) if self.says_more(known, place) => {
                self.discard_unheld(place);
                known
            }
            _ => place,
        }
    }

    /// Whether `scanned` is a process's paths in all hierarchies, `reported` its cgroups by events,
    /// both are the same cgroups as far as both name them, and `scanned` has another owner.
    pub fn says_more(&mut self, scanned: PlacementId, reported: PlacementId) -> bool {
        // Nearly always it is no scan's, or the owner is the same: no path needs to be put together.
        if !matches!(self.source(scanned), Some(Source::Paths(_))) {
            return false;
        }
        let Some(owner) = self.owner(scanned).map(|(owner, _)| owner.clone()) else {
            return false;
        };
        self.owner(reported)
            .is_some_and(|(reported, _)| *reported != owner)
            && self.agree(scanned, reported)
    }

    /// Whether a scan's paths name a container, a pod, a batch job or a machine.
    #[must_use]
    pub fn is_work(&self, scanned: PlacementId) -> bool {
        match self.source(scanned) {
            Some(Source::Paths(paths)) => {
                cgroup_path::names_work(paths.iter().map(|(_, path)| &**path))
            }
            _ => false,
        }
    }

    fn agree(&self, scanned: PlacementId, reported: PlacementId) -> bool {
        let (Some(Source::Paths(paths)), Some(&Source::Keys(unified, legacy))) =
            (self.source(scanned), self.source(reported))
        else {
            return false;
        };
        let mut keys = std::iter::once(unified).chain(legacy);
        keys.all(|key| self.path(key).is_some_and(|path| has(paths, key, &path)))
    }

    fn source(&self, id: PlacementId) -> Option<&Source> {
        let placement = self.placements.get(id.slot())?.as_ref()?;
        Some(&placement.source)
    }

    /// Learns the paths of those cgroups of `reported` whose ancestors have not been announced, from
    /// those of `scanned`, where a scan found a process of `reported`. A path that contradicts what
    /// has been announced is not believed: the process may have moved meanwhile.
    pub fn learn(&mut self, reported: PlacementId, scanned: PlacementId) {
        let (Some(Source::Paths(paths)), Some(&Source::Keys(unified, legacy))) =
            (self.source(scanned), self.source(reported))
        else {
            return;
        };
        let paths = Arc::clone(paths);
        for key in std::iter::once(unified).chain(legacy) {
            if self.path(key).is_some() {
                continue;
            }
            let Some((_, path)) = paths.iter().find(|(found, _)| *found == key.hierarchy) else {
                continue;
            };
            if self.ends_as_announced(key, path) {
                let name = Arc::clone(path);
                self.nodes.insert(key, Node { parent: None, name });
            }
        }
    }

    /// Whether a path ends in the names of a cgroup and of its ancestors, as far as they are known.
    /// The cgroup's own must be.
    fn ends_as_announced(&self, key: CgroupKey, path: &str) -> bool {
        let mut rest = path;
        let mut at = key;
        let mut is_known = false;
        while let Some(node) = self.nodes.get(&at) {
            let Some(parent) = node.parent else {
                // All of them are known, and then there is nothing to learn.
                return false;
            };
            let Some(above) = rest
                .strip_suffix(&*node.name)
                .and_then(|above| above.strip_suffix('/'))
            else {
                return false;
            };
            // Each step is shorter by a character at least, so a loop of parents ends.
            rest = above;
            at.id = parent;
            is_known = true;
        }
        is_known && !rest.is_empty()
    }

    /// Whether an announcement would put a path that is known behind ancestors that are not.
    pub(super) fn is_learnt_better(&self, key: CgroupKey, parent: Option<u64>) -> bool {
        let is_learnt = self
            .nodes
            .get(&key)
            .is_some_and(|node| node.parent.is_none() && node.name.starts_with('/'));
        let parent = parent.map(|id| CgroupKey { id, ..key });
        is_learnt && parent.is_some_and(|parent| self.path(parent).is_none())
    }
}

fn has(paths: &[HierarchyPath], key: CgroupKey, path: &str) -> bool {
    paths.iter().any(|(hierarchy, found)| {
        *hierarchy == key.hierarchy && found.strip_suffix(" (deleted)").unwrap_or(found) == path
    })
}

#[cfg(test)]
mod tests;
