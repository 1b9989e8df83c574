//! How a GPU's time is divided among the containers that it is allocated to.
//!
//! A GPU that is shared by time-slicing is given to several containers at once, and each of them
//! has all of its time as allocated time. Here each container has a share: while `n` containers
//! have the GPU, each gets one n-th of that time. As with allocated time, the number of replicas
//! that a container has does not matter. The remainder of a division, in nanoseconds, goes to the
//! first of the containers, so that all shares add up to the divided time.
//!
//! Only time that the GPU's book accounts for is divided, each nanosecond once. So all shares of a
//! GPU's time are together no more than its elapsed time. A container that becomes known late, e.g.
//! because its name came late, gets a share of the earlier time that was given to no container yet.
//!
//! Times are on the boot clock, amounts in whole nanoseconds.

use std::collections::{BTreeMap, VecDeque};

use crate::model::{BootTime, ContainerId, Nanos};

/// Largest number of intervals without a container that are remembered per GPU, for containers that
/// become known late. The oldest is dropped first, since such containers concern the newest ones.
const FREE_LIMIT: usize = 64;
/// How long a piece of a container's time waits for the GPU's book to account for it.
const AWAIT_BOOK: Nanos = Nanos::from_secs(600);

/// Time during which a container had a GPU.
#[derive(Clone, Debug)]
struct Piece {
    container: ContainerId,
    from: BootTime,
    until: BootTime,
}

/// One GPU's time.
#[derive(Clone, Debug, Default)]
struct Gpu {
    /// What its book accounts for and nobody has been given, in order, the pieces apart.
    free: VecDeque<(BootTime, BootTime)>,
    /// Up to where its book accounts for time.
    accounted: BootTime,
    /// When which container had it, from when until when, as far as that is not divided yet.
    held: BTreeMap<ContainerId, Vec<(BootTime, BootTime)>>,
}

/// A container's part of a GPU's time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Share {
    /// The GPU's place in the list of books.
    pub(super) gpu: usize,
    /// The container.
    pub(super) container: ContainerId,
    /// Time in nanoseconds.
    pub(super) amount: Nanos,
}

/// The time of all GPUs, by the places of their books.
#[derive(Clone, Debug, Default)]
pub(super) struct Shares {
    gpus: Vec<Gpu>,
}

impl Shares {
    fn of(&mut self, gpu: usize) -> &mut Gpu {
        if self.gpus.len() <= gpu {
            self.gpus.resize_with(gpu + 1, Gpu::default);
        }
        &mut self.gpus[gpu]
    }

    /// The GPU's book accounts for this time. What it has accounted for before is left out.
    pub(super) fn account(&mut self, gpu: usize, from: BootTime, until: BootTime) {
        let gpu = self.of(gpu);
        let from = from.max(gpu.accounted);
        if from >= until {
            return;
        }
        match gpu.free.back_mut() {
            Some((_, end)) if *end == from => *end = until,
            _ => gpu.free.push_back((from, until)),
        }
        gpu.accounted = until;
    }

    /// A container had the GPU from `from` until `until`: time that was not added before.
    pub(super) fn hold(
        &mut self,
        gpu: usize,
        container: &ContainerId,
        from: BootTime,
        until: BootTime,
    ) {
        if from >= until {
            return;
        }
        let held = &mut self.of(gpu).held;
        let spans = held.entry(container.clone()).or_default();
        match spans.last_mut() {
            Some((_, end)) if *end == from => *end = until,
            _ => spans.push((from, until)),
        }
    }

    /// Divides the time of containers that a book accounts for. Other time waits until a book
    /// accounts for it, for ten minutes after its end at most.
    pub(super) fn divide(&mut self, now: BootTime) -> Vec<Share> {
        let mut shares = Vec::new();
        for (at, gpu) in self.gpus.iter_mut().enumerate() {
            gpu.divide(at, &mut shares);
            gpu.held.retain(|_, spans| {
                spans.retain(|(_, until)| now.since(*until) < AWAIT_BOOK);
                !spans.is_empty()
            });
            while gpu.free.len() > FREE_LIMIT {
                gpu.free.pop_front();
            }
        }
        shares
    }
}

impl Gpu {
    fn divide(&mut self, at: usize, shares: &mut Vec<Share>) {
        let mut due = Vec::new();
        let accounted = self.accounted;
        for (container, spans) in &mut self.held {
            spans.retain_mut(|(from, until)| {
                if *from < accounted {
                    due.push(Piece {
                        container: container.clone(),
                        from: *from,
                        until: accounted.min(*until),
                    });
                    *from = accounted;
                }
                *from < *until
            });
        }
        if due.is_empty() {
            return;
        }
        // Between two of these the same containers have the GPU.
        let mut bounds: Vec<BootTime> = due
            .iter()
            .flat_map(|piece| [piece.from, piece.until])
            .collect();
        bounds.extend(self.free.iter().flat_map(|(from, until)| [*from, *until]));
        bounds.sort_unstable();
        bounds.dedup();
        let mut given = vec![Nanos::ZERO; due.len()];
        let mut left = VecDeque::new();
        let mut free = std::mem::take(&mut self.free).into_iter().peekable();
        for pair in bounds.windows(2) {
            let (from, until) = (pair[0], pair[1]);
            while free.next_if(|(_, end)| *end <= from).is_some() {}
            if free.peek().is_none_or(|(begin, _)| *begin > from) {
                continue; // Given to others, or in no book.
            }
            let has = |piece: &Piece| piece.from <= from && until <= piece.until;
            let holders: Vec<usize> = (0..due.len()).filter(|of| has(&due[*of])).collect();
            let time = until.since(from).0;
            let count = holders.len() as u64;
            match time.checked_div(count) {
                None => match left.back_mut() {
                    Some((_, end)) if *end == from => *end = until,
                    _ => left.push_back((from, until)),
                },
                Some(part) => {
                    let mut rest = time - part * count;
                    for holder in holders {
                        given[holder] += Nanos(part + u64::from(rest > 0));
                        rest = rest.saturating_sub(1);
                    }
                }
            }
        }
        self.free = left;
        let given = due.into_iter().zip(given);
        let given = given.filter(|(_, amount)| !amount.is_zero());
        shares.extend(given.map(|(piece, amount)| Share {
            gpu: at,
            container: piece.container,
            amount,
        }));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What becomes of steps on one GPU, by container: `(from, until, container)`, with a container of
    /// "" for time that the book accounts for. It is divided after each.
    fn divided(steps: &[(u64, u64, &str)]) -> Vec<(String, u64)> {
        let mut shares = Shares::default();
        let mut sums = std::collections::BTreeMap::<String, u64>::new();
        for (from, until, container) in steps {
            let (from, until) = (BootTime(*from), BootTime(*until));
            match *container {
                "" => shares.account(0, from, until),
                container => shares.hold(0, &container.into(), from, until),
            }
            for share in shares.divide(until) {
                *sums.entry(share.container.to_string()).or_default() += share.amount.0;
            }
        }
        sums.into_iter().collect()
    }

    #[test]
    fn a_gpu_is_divided_by_those_who_have_it_at_the_time() {
        type Row = (
            &'static [(u64, u64, &'static str)],
            &'static [(&'static str, u64)],
        );
        let rows: [Row; 8] = [
            (&[(0, 10, "a"), (0, 10, "")], &[("a", 10)]),
            (
                &[(0, 10, "a"), (0, 10, "b"), (0, 10, "")],
                &[("a", 5), ("b", 5)],
            ),
            // What is left over goes to the first.
            (
                &[(0, 11, "c"), (0, 11, "b"), (0, 11, "a"), (0, 11, "")],
                &[("a", 4), ("b", 4), ("c", 3)],
            ),
            (
                &[(0, 10, "a"), (4, 10, "b"), (0, 6, ""), (6, 10, "")],
                &[("a", 7), ("b", 3)],
            ),
            // No book accounts for it: before its first window, in a gap, after its last one.
            (&[(0, 30, "a"), (5, 10, ""), (12, 15, "")], &[("a", 8)]),
            // Met late: the others have had that time.
            (
                &[
                    (0, 10, "a"),
                    (0, 10, ""),
                    (0, 12, "b"),
                    (10, 14, "a"),
                    (10, 14, ""),
                ],
                &[("a", 13), ("b", 1)],
            ),
            // Met late, and nobody has had it.
            (
                &[(0, 10, ""), (5, 8, "a"), (6, 8, "b"), (0, 10, "c")],
                &[("a", 3), ("c", 7)],
            ),
            // A window that overlaps the one before it.
            (&[(0, 20, "a"), (0, 10, ""), (5, 15, "")], &[("a", 15)]),
        ];
        for (steps, expected) in rows {
            let found = divided(steps);
            let found: Vec<_> = found.iter().map(|(of, sum)| (of.as_str(), *sum)).collect();
            assert_eq!(found, expected, "{steps:?}");
        }
    }

    #[test]
    fn what_no_book_accounts_for_does_not_wait_for_ever() {
        let mut shares = Shares::default();
        shares.hold(1, &"a".into(), BootTime(0), BootTime(5));
        shares.divide(BootTime(AWAIT_BOOK.0 + 4));
        assert_eq!(shares.gpus[1].held.len(), 1);
        shares.divide(BootTime(AWAIT_BOOK.0 + 5));
        assert_eq!(shares.gpus[1].held.len(), 0);
        for at in 0..200 {
            shares.account(0, BootTime(10 * at), BootTime(10 * at + 5));
        }
        shares.divide(BootTime(2_000));
        assert_eq!(shares.gpus[0].free.len(), FREE_LIMIT);
    }

    proptest! {
        #[test]
        fn the_parts_are_no_more_than_the_gpus_time_and_than_each_one_had(
            steps in prop::collection::vec((0..100_u64, 1..40_u64, 0..4_usize), 1..40),
        ) {
            let mut shares = Shares::default();
            let mut had = [0; 3];
            // Each container's time is added once.
            let mut added = [0; 3];
            let (mut accounted, mut through) = (0, 0);
            let mut given = [0; 3];
            for (from, span, who) in steps {
                let until = from + span;
                match who {
                    3 => {
                        accounted += until.saturating_sub(from.max(through));
                        through = through.max(until);
                        shares.account(0, BootTime(from), BootTime(until));
                    }
                    who => {
                        let from = from.max(added[who]);
                        had[who] += until.saturating_sub(from);
                        added[who] = added[who].max(until);
                        let id = ContainerId::from(who.to_string().as_str());
                        shares.hold(0, &id, BootTime(from), BootTime(until));
                    }
                }
                for share in shares.divide(BootTime(until)) {
                    given[share.container.as_str().parse::<usize>().unwrap()] += share.amount.0;
                }
                for (given, had) in given.iter().zip(had) {
                    prop_assert!(*given <= had);
                }
                prop_assert!(given.iter().sum::<u64>() <= accounted);
            }
        }
    }
}
