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

use super::{
    CgroupKey, CgroupSet, HierarchyPath, Node, PlacementId, PlacementTable, Source, cgroup_path,
};

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
mod tests {
    use super::super::super::input::CgroupAnnouncement;
    use super::super::Owner;
    use super::*;

    fn announce(table: &mut PlacementTable, hierarchy: u32, id: u64, parent: u64, name: &str) {
        table.announce(&CgroupAnnouncement {
            key: CgroupKey { hierarchy, id },
            parent: (parent != 0).then_some(parent),
            name: name.into(),
        });
    }

    /// In v2's root, and in the daemon's cgroup of hierarchy 4.
    fn table() -> PlacementTable {
        let mut table = PlacementTable::new(10_000);
        announce(&mut table, 0, 1, 0, "");
        announce(&mut table, 4, 1, 0, "");
        announce(&mut table, 4, 2, 1, "system.slice");
        announce(&mut table, 4, 3, 2, "sgeexecd.service");
        table
    }

    fn keys(unified: u64, legacy: u64) -> CgroupSet {
        CgroupSet {
            unified: CgroupKey {
                hierarchy: 0,
                id: unified,
            },
            legacy: Some(CgroupKey {
                hierarchy: 4,
                id: legacy,
            }),
        }
    }

    fn paths(table: &mut PlacementTable, lines: &[(u32, &str)]) -> PlacementId {
        let lines: Vec<_> = lines.iter().map(|(h, path)| (*h, (*path).into())).collect();
        let place = table.of_paths(&lines.into());
        table.hold(place);
        place
    }

    fn unit(table: &mut PlacementTable, place: PlacementId) -> Option<String> {
        match table.owner(place)? {
            (Owner::Host(unit), _) => Some(unit.to_string()),
            (owner, _) => panic!("{owner:?}"),
        }
    }

    const DAEMON: (u32, &str) = (4, "/system.slice/sgeexecd.service");

    #[test]
    fn a_job_that_only_another_hierarchy_names_is_kept_while_events_agree() {
        let mut table = table();
        let job = paths(&mut table, &[(7, "/sge/12.1/99"), DAEMON, (0, "/")]);
        assert_eq!(unit(&mut table, job).as_deref(), Some("/sge/12.1"));
        assert_eq!(table.of_event(keys(1, 3), Some(job)), job);
        // Elsewhere in a hierarchy that events name.
        announce(&mut table, 4, 5, 2, "ssh.service");
        let moved = table.of_event(keys(1, 5), Some(job));
        assert_eq!(unit(&mut table, moved).as_deref(), Some("ssh.service"));
        // In a cgroup that has no name yet.
        let unknown = table.of_event(keys(1, 6), Some(job));
        assert_eq!(unit(&mut table, unknown), None);
        // Nothing is known of it, or no more.
        let new = table.of_event(keys(1, 3), None);
        assert_eq!(unit(&mut table, new).as_deref(), Some("sgeexecd.service"));
        let daemon = paths(&mut table, &[(7, "/"), DAEMON, (0, "/")]);
        assert_eq!(table.of_event(keys(1, 3), Some(daemon)), new);
        assert_eq!(table.of_event(keys(1, 3), Some(new)), new);
    }

    #[test]
    fn a_cgroup_that_is_too_deep_to_be_announced_is_known_by_a_scan() {
        let mut table = table();
        announce(&mut table, 4, 900, 899, "z");
        let place = table.of_event(keys(1, 900), None);
        assert_eq!(unit(&mut table, place), None);
        for wrong in ["/a/b/y", "/z", "z", "/a/b/yz"] {
            let scanned = paths(&mut table, &[(4, wrong), (0, "/")]);
            table.learn(place, scanned);
            assert_eq!(unit(&mut table, place), None, "{wrong}");
        }
        let scanned = paths(&mut table, &[(4, "/a/b/z"), (0, "/")]);
        table.learn(place, scanned);
        assert_eq!(unit(&mut table, place).as_deref(), Some("/a/b/z"));
        // So are those below, and it stays so if it is announced again.
        announce(&mut table, 4, 901, 900, "below");
        announce(&mut table, 4, 900, 899, "z");
        let below = CgroupKey {
            hierarchy: 4,
            id: 901,
        };
        assert_eq!(table.path(below).as_deref(), Some("/a/b/z/below"));
        // What the kernel says of the whole way is better.
        announce(&mut table, 4, 899, 1, "b");
        announce(&mut table, 4, 900, 899, "z");
        assert_eq!(table.path(below).as_deref(), Some("/b/z/below"));
    }

    #[test]
    fn a_cgroup_is_known_at_any_depth() {
        for depth in [40, 64, 65, 200, 2_000] {
            let mut table = table();
            for id in 10..10 + depth {
                let parent = if id == 10 { 1 } else { id - 1 };
                announce(&mut table, 0, id, parent, "d");
            }
            let key = CgroupKey {
                hierarchy: 0,
                id: 9 + depth,
            };
            let expected = "/d".repeat(usize::try_from(depth).unwrap());
            assert_eq!(table.path(key), Some(expected));
        }
    }

    #[test]
    fn a_path_beyond_the_kernels_is_bounded_and_keeps_its_top() {
        let mut table = table();
        let id = "6f1e0b5d9c3a47288f0e1d2c3b4a59687766554433221100ffeeddccbbaa9988";
        announce(&mut table, 0, 10, 1, "docker");
        announce(&mut table, 0, 11, 10, id);
        for number in 12..2_012 {
            announce(&mut table, 0, number, number - 1, &"n".repeat(255));
        }
        let key = CgroupKey {
            hierarchy: 0,
            id: 2_011,
        };
        let path = table.path(key).unwrap();
        assert!(path.len() <= super::super::MAX_PATH_BYTES, "{}", path.len());
        assert!(path.starts_with(&format!("/docker/{id}/nnn")));
    }
}
