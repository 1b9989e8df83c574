//! The owners that have a living process, kept from one commit to the next.
//!
//! A node with five hundred containers has five hundred owners with ids of 64 digits. To collect them
//! anew in each commit was the largest part of a commit in which no container came or went.

use std::sync::Arc;

use crate::model::Owner;
use crate::placement::PlacementTable;
use crate::process_table::ProcessTable;
use crate::tables::HashSet;

/// Walks over the live placements in one commit, at most.
const MOST_WALKS: usize = 4;

/// The owners that have a living process.
#[derive(Debug, Default)]
pub(crate) struct LiveOwners {
    owners: Arc<HashSet<Owner>>,
    /// The revisions of the live placements and of their owners that `owners` was found by. Absent if
    /// it may be another set the next time, whatever the revisions.
    revisions: Option<(u64, u64)>,
}

impl LiveOwners {
    /// Returns the owners. They are collected anew only if they may have changed.
    pub(crate) fn get(
        &mut self,
        processes: &ProcessTable,
        placements: &mut PlacementTable,
    ) -> Arc<HashSet<Owner>> {
        let revisions = |placements: &PlacementTable| {
            Some((processes.live_placements_revision(), placements.revision()))
        };
        if self.revisions == revisions(placements) {
            return Arc::clone(&self.owners);
        }
        // To find the owner of one placement may make the table forget that of another. Then those that
        // were found before are wrong. It does so once for an id, so a second walk is nearly always enough.
        for _ in 0..MOST_WALKS {
            let before = revisions(placements);
            let (owners, is_complete) = collect(processes, placements);
            self.owners = Arc::new(owners);
            let is_settled = revisions(placements) == before;
            self.revisions = before.filter(|_| is_settled && is_complete);
            if is_settled {
                break;
            }
        }
        Arc::clone(&self.owners)
    }
}

/// The owners, and whether the owner of every live placement is known.
fn collect(processes: &ProcessTable, placements: &mut PlacementTable) -> (HashSet<Owner>, bool) {
    let mut owners = HashSet::default();
    let mut is_complete = true;
    for place in processes.live_placements() {
        match placements.owner(place) {
            Some((owner, _)) => {
                owners.insert(owner.clone());
            }
            None => is_complete = false,
        }
    }
    (owners, is_complete)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::{CgroupAnnouncement, CgroupSet};
    use crate::model::{BootTime, CgroupKey, Pid};
    use crate::placement::PlacementId;
    use crate::process_table::Sighting;
    use proptest::prelude::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    /// cgroups by number, each with its parent and its name: two claim one id, where a user may make
    /// cgroups (5) and where Docker makes them (7).
    const CGROUPS: [(u64, Option<u64>, &str); 7] = [
        (1, None, ""),
        (2, Some(1), "user.slice"),
        (3, Some(2), "user-1000.slice"),
        (4, Some(3), "user@1000.service"),
        (5, Some(4), ID),
        (6, Some(1), "docker"),
        (7, Some(6), ID),
    ];

    /// The two tables, as the tracker has them.
    struct Tables {
        processes: ProcessTable,
        placements: PlacementTable,
    }

    impl Tables {
        fn new() -> Self {
            Self {
                processes: ProcessTable::new(20),
                placements: PlacementTable::new(20),
            }
        }

        fn announce(&mut self, index: usize) {
            let (id, parent, name) = CGROUPS[index];
            self.placements.announce(&CgroupAnnouncement {
                key: CgroupKey { hierarchy: 0, id },
                parent,
                name: name.into(),
            });
        }

        fn see(&mut self, pid: u32, at: u64, cgroup: u64) {
            let place = self.placements.of_keys(CgroupSet {
                unified: CgroupKey {
                    hierarchy: 0,
                    id: cgroup,
                },
                legacy: None,
            });
            let (pid, start, at) = (Pid(pid), second(1), second(at));
            let mut released = Vec::new();
            let release = &mut |place| released.push(place);
            let is_held = self
                .processes
                .observe(pid, start, at, place, Sighting::Attach, release);
            if is_held {
                self.placements.hold(place);
            }
            self.release(released);
            self.placements.discard_unheld(place);
        }

        fn forget(&mut self, before: u64) {
            let mut released = Vec::new();
            self.processes
                .forget(second(before), &mut |place| released.push(place));
            self.release(released);
        }

        fn release(&mut self, places: Vec<PlacementId>) {
            for place in places {
                self.placements.release(place);
            }
        }
    }

    fn second(number: u64) -> BootTime {
        BootTime(number * 1_000_000_000)
    }

    #[test]
    fn they_are_collected_anew_only_after_a_change() {
        let mut tables = Tables::new();
        for index in 0..CGROUPS.len() {
            tables.announce(index);
        }
        tables.see(1, 2, 7);
        let mut live = LiveOwners::default();
        let mut get = |tables: &mut Tables| live.get(&tables.processes, &mut tables.placements);
        let one = get(&mut tables);
        assert_eq!(one.len(), 1);
        tables.see(2, 2, 7);
        assert!(Arc::ptr_eq(&one, &get(&mut tables)), "the same owner");
        tables.see(3, 2, 6);
        assert_eq!(get(&mut tables).len(), 2);
        tables.processes.exit(Pid(3), second(1), second(3));
        assert_eq!(get(&mut tables), one);
    }

    proptest! {
        #[test]
        fn they_are_always_what_a_walk_over_all_places_finds(
            steps in prop::collection::vec((0_u8..6, 1_u32..5, 1_u64..8), 1..60),
        ) {
            let mut tables = Tables::new();
            let mut live = LiveOwners::default();
            for (at, (what, pid, number)) in (2..).zip(steps) {
                match what {
                    0 => tables.announce(usize::try_from(number - 1).unwrap()),
                    1 => tables.processes.exit(Pid(pid), second(1), second(at)),
                    2 => tables.forget(at.saturating_sub(number)),
                    _ => tables.see(pid, at, number),
                }
                let kept = live.get(&tables.processes, &mut tables.placements);
                let (found, _) = collect(&tables.processes, &mut tables.placements);
                prop_assert_eq!(&*kept, &found);
            }
        }
    }
}
