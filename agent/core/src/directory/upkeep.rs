//! Which names the directory keeps, and which it drops for lack of room.

use std::sync::Arc;

use crate::directory::Directory;
use crate::directory::budget::{Budget, answer_bytes};
use crate::directory::entry::{Entry, Outcome, bare_uid};
use crate::input::IdentityUpdate;
use crate::model::{BootTime, ContainerId, Nanos, PodUid};
use crate::tables::HashMap;

impl Directory {
    /// Containers without an account whose names were dropped for lack of room. The names are asked
    /// for again when they are wanted.
    #[must_use]
    pub const fn names_dropped(&self) -> u64 {
        self.budget.names_dropped
    }

    /// Containers with an account whose labels were dropped for lack of room.
    #[must_use]
    pub const fn labels_dropped(&self) -> u64 {
        self.budget.labels_dropped
    }

    /// Notes that a container has an account.
    pub fn want(&mut self, id: &ContainerId, now: BootTime) {
        if let Some(entry) = self.entries.get_mut(id) {
            entry.touched = entry.touched.max(now);
            entry.wanted = Some(now);
            *self.budget.part(entry.is_billed) -= entry.bytes;
            entry.is_billed = true;
            self.budget.billed += entry.bytes;
        }
    }

    /// Takes what was known of a container that has an account, after a restart.
    pub fn restore(&mut self, known: IdentityUpdate, now: BootTime) {
        if let IdentityUpdate::Found(identity) = &known
            && self.entry(&identity.id, now).is_some()
        {
            self.want(&identity.id, now);
        }
        self.learn(known, now);
    }

    /// Notes that a pod has an account.
    pub fn want_pod(&mut self, uid: &PodUid, now: BootTime) {
        if let Some(entry) = self.pods.get_mut(&bare_uid(uid)) {
            entry.touched = entry.touched.max(now);
        }
    }

    /// Notes that a container is asked about without an account.
    pub fn touch(&mut self, id: &ContainerId, now: BootTime) {
        if let Some(entry) = self.entries.get_mut(id) {
            entry.touched = entry.touched.max(now);
        }
    }

    /// Updates the size of a container's answers after one has changed, and drops answers if the
    /// bound is exceeded.
    pub(super) fn weigh(&mut self, id: &ContainerId) {
        let Some(entry) = self.entries.get_mut(id) else {
            return;
        };
        let before = entry.bytes;
        let answers = entry.answers.iter().flatten();
        entry.bytes = answers.map(|answer| answer_bytes(answer)).sum();
        let part = self.budget.part(entry.is_billed);
        *part = *part - before + entry.bytes;
        if self.budget.unbilled > self.budget.unbilled_limit {
            self.drop_names();
        }
        if self.budget.billed > self.budget.billed_limit {
            self.cut_labels();
        }
    }

    /// An entry has left the table.
    pub(super) fn unweigh(budget: &mut Budget, entry: &Entry) {
        *budget.part(entry.is_billed) -= entry.bytes;
    }

    /// Lets answers about containers without an account go until an eighth of their room is free.
    fn drop_names(&mut self) {
        let unbilled = self.entries.iter();
        let unbilled = unbilled.filter(|(_, entry)| !entry.is_billed && entry.bytes > 0);
        let mut order: Vec<_> = unbilled
            .map(|(id, entry)| {
                // Sizes within a factor of two count as the same.
                let size = entry.bytes.ilog2();
                (std::cmp::Reverse(size), entry.touched, id.clone())
            })
            .collect();
        order.sort_unstable();
        let enough = self.budget.unbilled_limit / 8 * 7;
        for (_, _, id) in order {
            if self.budget.unbilled <= enough {
                break;
            }
            let Some(entry) = self.entries.get_mut(&id) else {
                continue;
            };
            self.budget.unbilled -= entry.bytes;
            self.budget.names_dropped += 1;
            entry.bytes = 0;
            entry.answers = Default::default();
            if entry.kernel.is_none() {
                self.entries.remove(&id);
            }
        }
    }

    /// Lets labels of containers with an account go until there is room for the rest.
    fn cut_labels(&mut self) {
        let billed = self.entries.iter().filter(|(_, entry)| entry.is_billed);
        let mut order: Vec<_> = billed
            .map(|(id, entry)| (std::cmp::Reverse(entry.label_bytes()), id.clone()))
            .collect();
        order.sort_unstable();
        for (_, id) in order {
            if self.budget.billed <= self.budget.billed_limit {
                break;
            }
            let Some(entry) = self.entries.get_mut(&id) else {
                continue;
            };
            let bytes = entry.label_bytes();
            if bytes == 0 {
                break;
            }
            for answer in entry.answers.iter_mut().flatten() {
                if let Outcome::Found { labels, .. } = &mut answer.outcome {
                    *labels = Arc::default();
                }
            }
            entry.bytes -= bytes;
            self.budget.billed -= bytes;
            self.budget.labels_dropped += 1;
        }
    }

    /// Forgets the containers that are gone. Called after each commit, in which the container of
    /// every account was wanted. For the others, `has_process` says whether one of their processes
    /// is known, including a dead one that is still remembered.
    pub fn settle(&mut self, now: BootTime, has_process: impl Fn(&ContainerId) -> bool) {
        let budget = &mut self.budget;
        self.entries.retain(|id, entry| {
            let is_billed = entry.wanted == Some(now);
            if entry.is_billed != is_billed {
                *budget.part(entry.is_billed) -= entry.bytes;
                *budget.part(is_billed) += entry.bytes;
                entry.is_billed = is_billed;
            }
            let stays = is_billed
                || now.since(entry.touched) < KEEP_GONE
                || entry.is_standing()
                || has_process(id);
            if !stays {
                Self::unweigh(budget, entry);
            }
            stays
        });
        self.pods
            .retain(|_, entry| now.since(entry.touched) < KEEP_GONE);
        give_room_back(&mut self.entries);
        give_room_back(&mut self.pods);
        if self.budget.unbilled > self.budget.unbilled_limit {
            self.drop_names();
        }
    }
}

/// How long a container that is gone is remembered. News of its processes may be late, and its last
/// windows are yet to be booked.
const KEEP_GONE: Nanos = Nanos::from_secs(15);

/// A table that was large would otherwise keep its memory.
fn give_room_back<K: Eq + std::hash::Hash, V>(table: &mut HashMap<K, V>) {
    if table.capacity() > 64 && table.len() < table.capacity() / 4 {
        table.shrink_to(table.len() * 2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::ContainerIdentity;
    use crate::input::IdentitySource;

    fn id(number: u64) -> ContainerId {
        ContainerId::from(format!("c{number}").as_str())
    }

    fn found(source: IdentitySource, number: u64, labels: usize) -> IdentityUpdate {
        IdentityUpdate::Found(ContainerIdentity {
            id: id(number),
            source,
            name: Some("job".into()),
            image: None,
            runtime: None,
            kubernetes: None,
            labels: (0..labels)
                .map(|label| {
                    (
                        label.to_string().as_str().into(),
                        "x".repeat(200).as_str().into(),
                    )
                })
                .collect(),
        })
    }

    fn s(seconds: u64) -> BootTime {
        BootTime(seconds * 1_000_000_000)
    }

    fn see(directory: &mut Directory, number: u64, now: BootTime) {
        directory.see(&id(number), None, "docker", &"/here".into(), now);
    }

    fn is_weighed(directory: &Directory) {
        let sum = |is_billed| -> usize {
            let entries = directory.entries.values();
            let entries = entries.filter(|entry| entry.is_billed == is_billed);
            entries.map(|entry| entry.bytes).sum()
        };
        let budget = &directory.budget;
        assert_eq!((budget.unbilled, budget.billed), (sum(false), sum(true)));
    }

    #[test]
    fn a_container_that_is_gone_is_forgotten_and_one_that_may_come_back_is_not() {
        use IdentitySource::{Bundle, Docker};
        // (who knows it, whether it says that it is gone, process, account) -> it stays
        for (source, is_removed, has_process, has_account, stays) in [
            (Docker, true, false, false, false),
            (Docker, true, true, false, true),
            (Docker, true, false, true, true),
            // It was stopped and may be started again.
            (Docker, false, false, false, true),
            // Files say nothing when they go.
            (Bundle, false, false, false, false),
            (Bundle, false, true, false, true),
        ] {
            let mut directory = Directory::new(8);
            directory.learn(found(source, 1, 3), s(1));
            see(&mut directory, 1, s(1));
            if is_removed {
                directory.learn(IdentityUpdate::Removed { source, id: id(1) }, s(2));
            }
            for second in 3..40 {
                if has_account {
                    directory.want(&id(1), s(second));
                }
                directory.settle(s(second), |_| has_process);
                is_weighed(&directory);
                // Its last windows may still come.
                assert!(second > 15 || directory.entries.len() == 1, "{second}");
            }
            let row = (source, is_removed, has_process, has_account);
            assert_eq!(directory.entries.len() == 1, stays, "{row:?}");
        }
    }

    #[test]
    fn the_largest_answers_go_first_and_what_the_kernel_said_stays() {
        let mut directory = Directory::new(1_000);
        directory.budget.unbilled_limit = 40_000;
        for number in 0..10 {
            see(&mut directory, number, s(number));
            directory.learn(found(IdentitySource::Docker, number, 2), s(number));
        }
        // The first of these is with an account, and so are its names.
        for number in 10..20 {
            see(&mut directory, number, s(number));
            if number == 10 {
                directory.want(&id(number), s(number));
            }
            directory.learn(found(IdentitySource::Docker, number, 40), s(number));
            is_weighed(&directory);
            assert!(directory.budget.unbilled <= 40_000);
        }
        for number in 0..=10 {
            assert!(directory.is_named(&id(number)), "{number}");
        }
        let named = (11..20).filter(|number| directory.is_named(&id(*number)));
        assert_eq!(named.max(), Some(19), "the newest of the large ones");
        assert_eq!(directory.entries.len(), 20, "all have been seen");
        assert!(directory.names_dropped() >= 6);
        // It is asked for as if it had never been known.
        assert!(directory.should_ask(&id(11), s(30)));
    }

    #[test]
    fn where_accounts_have_too_many_labels_the_largest_sets_are_cut_and_no_names() {
        let mut directory = Directory::new(1_000);
        directory.budget.billed_limit = 40_000;
        for number in 0..20 {
            see(&mut directory, number, s(1));
            directory.want(&id(number), s(1));
            let labels = if number < 10 { 2 } else { 40 };
            directory.learn(found(IdentitySource::Docker, number, labels), s(1));
            is_weighed(&directory);
            assert!(directory.budget.billed <= 40_000);
        }
        for number in 0..20 {
            assert!(directory.is_named(&id(number)), "{number}");
            let labels = directory.runtime_labels(&id(number)).unwrap();
            assert!(number >= 10 || labels.len() == 2, "{number}");
        }
        assert!(directory.labels_dropped() >= 6);
        assert_eq!(directory.names_dropped(), 0);
    }

    #[test]
    fn a_table_that_was_large_gives_its_room_back() {
        let mut directory = Directory::new(10_000);
        for number in 0..5_000 {
            see(&mut directory, number, s(1));
        }
        directory.settle(s(60), |_| false);
        assert!(directory.entries.is_empty());
        assert!(directory.entries.capacity() <= 64);
    }
}
