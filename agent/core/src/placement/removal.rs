//! cgroups that have been removed: they leave the table once nothing refers to them.
//!
//! The kernel removes a cgroup when no living process and no cgroup is in it. Processes that died in
//! it are kept for a while, and are billed by what the cgroup was called. Its number may be given to
//! another cgroup (on a kernel whose inode numbers have 32 bits), so what belongs to it from then on
//! has a placement of its own.

use crate::model::{CgroupKey, ContainerId, Owner};
use crate::placement::{PlacementId, PlacementTable, Source};
use crate::tables::HashSet;

impl Source {
    fn is_in(&self, cgroup: CgroupKey) -> bool {
        matches!(self, Self::Keys(unified, legacy)
            if *unified == cgroup || *legacy == Some(cgroup))
    }
}

impl PlacementTable {
    /// Notes that a cgroup has been removed. Processes that come later are not in it, even if its
    /// number is reused.
    pub fn remove(&mut self, cgroup: CgroupKey) {
        if !self.nodes.contains_key(&cgroup) {
            return;
        }
        self.removed.insert(cgroup);
        let of_it = self.by_source.iter();
        let of_it = of_it.filter(|(source, _)| source.is_in(cgroup));
        let of_it: Vec<(Source, PlacementId)> =
            of_it.map(|(source, id)| (source.clone(), *id)).collect();
        for (source, id) in of_it {
            // While what it was called is still known.
            let _ = self.owner(id);
            self.by_source.remove(&source);
        }
    }

    /// Forgets the removed cgroups that no process is billed by, dead ones that are still kept
    /// included.
    pub fn forget_removed(&mut self) {
        if self.removed.is_empty() {
            return;
        }
        let used = self.used();
        let nodes = &mut self.nodes;
        self.removed.retain(|cgroup| {
            let is_used = used.contains(cgroup);
            if !is_used {
                nodes.remove(cgroup);
            }
            is_used
        });
    }

    /// Every cgroup that a placement is made from, and those above it.
    pub(super) fn used(&self) -> HashSet<CgroupKey> {
        let mut used = HashSet::default();
        for placement in self.placements.iter().flatten() {
            let Source::Keys(unified, legacy) = &placement.source else {
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
        used
    }

    /// Whether a container's id has a place: a process that is known, living or dead, or an account.
    #[must_use]
    pub fn has_place(&self, container: &ContainerId) -> bool {
        self.bindings
            .contains_key(&Owner::Container(container.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::{CgroupAnnouncement, CgroupSet};

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

    const fn key(id: u64) -> CgroupKey {
        CgroupKey { hierarchy: 0, id }
    }

    fn set(id: u64) -> CgroupSet {
        CgroupSet {
            unified: key(id),
            legacy: None,
        }
    }

    fn announce(table: &mut PlacementTable, id: u64, parent: Option<u64>, name: &str) {
        let announcement = CgroupAnnouncement {
            key: key(id),
            parent,
            name: name.into(),
        };
        assert!(!table.announce(&announcement));
    }

    /// A table with `/system.slice`, and a container's cgroup below it.
    fn table() -> PlacementTable {
        let mut table = PlacementTable::new(100);
        announce(&mut table, 1, None, "");
        announce(&mut table, 2, Some(1), "system.slice");
        announce(&mut table, 3, Some(2), &format!("docker-{A}.scope"));
        table
    }

    fn container(table: &mut PlacementTable, place: PlacementId) -> Option<String> {
        match table.owner(place) {
            Some((Owner::Container(id), _)) => Some(id.to_string()),
            _ => None,
        }
    }

    #[test]
    fn a_removed_cgroup_stays_for_as_long_as_somebody_is_billed_by_it() {
        let mut table = table();
        let place = table.of_keys(set(3));
        table.hold(place);
        table.remove(key(3));
        // Those above it are removed later, and are still its path.
        table.remove(key(2));
        table.forget_removed();
        assert_eq!(table.cgroups(), 3);
        assert_eq!(container(&mut table, place), Some(A.to_owned()));
        let path = format!("/system.slice/docker-{A}.scope");
        assert_eq!(table.cgroups_of(place), [(0, Some(path))]);
        table.release(place);
        table.forget_removed();
        assert_eq!(table.cgroups(), 1);
        // One that was never known is none to forget, and one that lives stays.
        table.remove(key(9));
        table.forget_removed();
        assert_eq!(table.cgroups(), 1);
    }

    #[test]
    fn a_cgroup_that_gets_the_number_of_a_removed_one_is_another_ones() {
        let mut table = table();
        let before = table.of_keys(set(3));
        table.hold(before);
        table.remove(key(3));
        announce(&mut table, 3, Some(2), &format!("docker-{B}.scope"));
        let after = table.of_keys(set(3));
        table.hold(after);
        assert_ne!(before, after);
        assert_eq!(container(&mut table, before), Some(A.to_owned()));
        assert_eq!(container(&mut table, after), Some(B.to_owned()));
        // The end of the first is not the end of the second.
        table.release(before);
        table.forget_removed();
        assert_eq!(table.of_keys(set(3)), after);
        assert_eq!(table.cgroups(), 3);
        assert_eq!(container(&mut table, after), Some(B.to_owned()));
    }

    #[test]
    fn an_id_keeps_its_place_after_its_cgroup_was_removed() {
        let mut table = table();
        let first = table.of_keys(set(3));
        table.hold(first);
        assert_eq!(container(&mut table, first), Some(A.to_owned()));
        table.remove(key(3));
        table.forget_removed();
        // Somebody makes a cgroup with its id elsewhere while its dead are still to be billed.
        announce(&mut table, 4, Some(1), &format!("docker-{A}.scope"));
        let second = table.of_keys(set(4));
        table.hold(second);
        assert_eq!(container(&mut table, second), None);
        assert_eq!(table.refusals(), 1);
        assert!(table.has_place(&ContainerId::from(A)));
        table.release(first);
        table.end_bindings(std::iter::empty());
        assert_eq!(container(&mut table, second), Some(A.to_owned()));
        table.release(second);
        table.end_bindings(std::iter::empty());
        assert!(!table.has_place(&ContainerId::from(A)));
    }
}
