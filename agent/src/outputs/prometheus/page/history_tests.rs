//! Tests of `page::history`.

use super::*;
use crate::core::model::{UnattributedReason, UnobservedReason};
use crate::outputs::sample::{self, FIRST_GPU};

/// A node with one GPU of which a test says what became of its time.
pub(in super::super) struct Node {
    pub(in super::super) snapshot: Snapshot,
}

impl Node {
    pub(in super::super) fn new() -> Self {
        let mut snapshot = sample::snapshot();
        snapshot.gpus.truncate(1);
        snapshot.accounts.truncate(1);
        snapshot.host_accounts.truncate(1);
        let book = &mut snapshot.gpus[0];
        book.elapsed = Nanos::ZERO;
        book.busy = Nanos::ZERO;
        book.idle = Nanos::ZERO;
        book.unattributed = vec![(UnattributedReason::NoRow, Nanos::ZERO)];
        book.unobserved = vec![(UnobservedReason::SampleGap, Nanos::ZERO)];
        let mut node = Self { snapshot };
        let account = node.snapshot.accounts.remove(0);
        let unit = node.snapshot.host_accounts.remove(0);
        node.snapshot.accounts = vec![ContainerAccount {
            amounts: Default::default(),
            ..account
        }];
        node.snapshot.host_accounts = vec![crate::core::snapshot::HostAccount {
            amounts: Default::default(),
            ..unit
        }];
        node.containers(0);
        node
    }

    /// So many containers, of which none has used the GPU.
    pub(in super::super) fn containers(&mut self, count: usize) {
        let mut account = self.snapshot.accounts.first().cloned();
        if account.is_none() {
            account = sample::snapshot().accounts.first().cloned();
        }
        let mut account = account.expect("the sample has one");
        account.amounts = Default::default();
        self.snapshot.accounts = (0..count)
            .map(|number| {
                let mut account = account.clone();
                account.id = format!("{number:064}").as_str().into();
                let labels = Arc::make_mut(&mut account.labels);
                labels.namespace = "team".into();
                labels.pod = format!("pod-{number}").into();
                labels.container = "main".into();
                account
            })
            .collect();
    }

    /// The GPU is busy for a container.
    pub(in super::super) fn busy(&mut self, container: usize, seconds: u64) {
        let amount = Nanos::from_secs(seconds);
        let amounts = &mut self.snapshot.accounts[container].amounts;
        amounts.busy = amounts.busy.plus(amount);
        self.busy_for_nobody_seen(seconds);
    }

    fn busy_for_nobody_seen(&mut self, seconds: u64) {
        let book = &mut self.snapshot.gpus[0];
        book.busy = book.busy.plus(Nanos::from_secs(seconds));
        self.pass(seconds);
    }

    fn unowned(&mut self, seconds: u64) {
        let unowned = &mut self.snapshot.gpus[0].unattributed[0].1;
        *unowned = unowned.plus(Nanos::from_secs(seconds));
        self.busy_for_nobody_seen(seconds);
    }

    pub(in super::super) fn idle(&mut self, seconds: u64) {
        let idle = &mut self.snapshot.gpus[0].idle;
        *idle = idle.plus(Nanos::from_secs(seconds));
        self.pass(seconds);
    }

    pub(in super::super) fn unobserved(&mut self, seconds: u64) {
        let unobserved = &mut self.snapshot.gpus[0].unobserved[0].1;
        *unobserved = unobserved.plus(Nanos::from_secs(seconds));
        self.pass(seconds);
    }

    fn pass(&mut self, seconds: u64) {
        let book = &mut self.snapshot.gpus[0];
        book.elapsed = book.elapsed.plus(Nanos::from_secs(seconds));
        self.wait(seconds);
    }

    /// Time passes that the books do not have yet.
    fn wait(&mut self, seconds: u64) {
        let snapshot = &mut self.snapshot;
        snapshot.sequence += 1;
        snapshot.at = snapshot.at.plus(Nanos::from_secs(seconds));
    }

    fn container(&self, number: usize) -> OwnerKey {
        OwnerKey::of(&self.snapshot.accounts[number])
    }

    fn hour(&self, history: &mut History) -> Hour {
        let mut hours = history.until(&self.snapshot);
        hours.remove(&FIRST_GPU.into()).expect("it is there")
    }
}

fn seconds(seconds: u64) -> Nanos {
    Nanos::from_secs(seconds)
}

/// The hour as one stretch, its owners in the order of their keys.
fn sum(hour: &Hour) -> Stretch {
    let mut sum = Stretch::default();
    let mut owners: BTreeMap<OwnerKey, Nanos> = BTreeMap::new();
    for stretch in &hour.stretches {
        for (owner, busy) in &stretch.owners {
            *owners.entry(owner.clone()).or_default() += *busy;
        }
        sum.others += stretch.others;
        sum.joined = sum.joined.max(stretch.joined);
        sum.unowned += stretch.unowned;
        sum.idle += stretch.idle;
        sum.unobserved += stretch.unobserved;
    }
    sum.owners = owners.into_iter().collect();
    sum
}

#[test]
fn an_hour_adds_up_to_what_the_counters_grew_by_since_the_first_look() {
    let (mut node, mut history) = (Node::new(), History::default());
    node.containers(2);
    // Before the first look: nothing of it is known.
    node.busy(0, 1_000);
    node.unobserved(50);
    history.look(&node.snapshot);
    assert!(node.hour(&mut history).stretches.is_empty());
    let mut expected = Stretch::default();
    let mut owners = [0, 0];
    for minute in 0..5 {
        node.busy(0, 10 + minute);
        node.busy(1, 20);
        node.unowned(5);
        node.idle(20 - minute);
        node.unobserved(5);
        owners[0] += 10 + minute;
        owners[1] += 20;
        expected.unowned += seconds(5);
        expected.idle += seconds(20 - minute);
        expected.unobserved += seconds(5);
        expected.owners = [0, 1]
            .map(|number| (node.container(number), seconds(owners[number])))
            .to_vec();
        // What came since the last look is in it, too.
        assert_eq!(sum(&node.hour(&mut history)), expected, "minute {minute}");
        history.look(&node.snapshot);
        let hour = node.hour(&mut history);
        assert_eq!(sum(&hour), expected, "minute {minute}");
        assert_eq!(hour.stretches[0].elapsed(), seconds(60));
        assert_eq!(hour.behind, Nanos::ZERO);
    }
    let last = node.hour(&mut history);
    let last = last.stretches.last().expect("five minutes");
    let expected = [
        (node.container(1), seconds(20)),
        (node.container(0), seconds(14)),
    ];
    assert_eq!(last.owners, expected, "the largest first");
}

#[test]
fn an_owner_that_came_and_went_between_two_looks_is_counted_and_not_named() {
    let (mut node, mut history) = (Node::new(), History::default());
    node.containers(1);
    history.look(&node.snapshot);
    node.busy(0, 7);
    node.busy_for_nobody_seen(3);
    let hour = sum(&node.hour(&mut history));
    assert_eq!((hour.others, hour.joined), (seconds(3), 1));
    assert_eq!(hour.owners, [(node.container(0), seconds(7))]);
    assert_eq!(hour.unowned, Nanos::ZERO);
}

#[test]
fn an_account_that_is_opened_again_begins_at_nothing() {
    let (mut node, mut history) = (Node::new(), History::default());
    node.containers(1);
    node.busy(0, 100);
    history.look(&node.snapshot);
    node.snapshot.accounts[0].amounts.busy = Nanos::ZERO;
    node.busy(0, 4);
    let hour = sum(&node.hour(&mut history));
    assert_eq!(hour.owners, [(node.container(0), seconds(4))]);
    assert_eq!(hour.others, Nanos::ZERO);
}

#[test]
fn a_book_that_begins_anew_leaves_the_time_before_it_unknown() {
    let (mut node, mut history) = (Node::new(), History::default());
    node.containers(1);
    for _ in 0..3 {
        node.busy(0, 60);
        history.look(&node.snapshot);
    }
    assert_eq!(node.hour(&mut history).stretches.len(), 2);
    let mut anew = Node::new();
    anew.snapshot.at = node.snapshot.at;
    anew.containers(1);
    anew.busy(0, 2);
    assert!(anew.hour(&mut history).stretches.is_empty());
    history.look(&anew.snapshot);
    assert!(anew.hour(&mut history).stretches.is_empty());
    anew.busy(0, 3);
    assert_eq!(sum(&anew.hour(&mut history)).busy(), seconds(3));
}

#[test]
fn a_gpu_whose_books_stand_still_is_behind_until_they_go_on() {
    let (mut node, mut history) = (Node::new(), History::default());
    node.containers(1);
    history.look(&node.snapshot);
    node.busy(0, 60);
    history.look(&node.snapshot);
    node.wait(60);
    history.look(&node.snapshot);
    node.wait(30);
    assert_eq!(node.hour(&mut history).behind, seconds(90));
    // The books catch up with one window, all of it not observed.
    let snapshot = &mut node.snapshot;
    snapshot.gpus[0].unobserved[0].1 += seconds(90);
    snapshot.gpus[0].elapsed += seconds(90);
    let hour = node.hour(&mut history);
    assert_eq!(hour.behind, Nanos::ZERO);
    let lengths: Vec<_> = hour.stretches.iter().map(Stretch::elapsed).collect();
    assert_eq!(lengths, [seconds(60), seconds(90)]);
}

#[test]
fn a_gpu_that_comes_between_two_looks_is_known_from_then_on() {
    let (mut node, mut history) = (Node::new(), History::default());
    node.containers(1);
    let book = node.snapshot.gpus.remove(0);
    node.wait(1);
    history.meet(&node.snapshot);
    history.look(&node.snapshot);
    node.wait(10);
    // Its book is of an earlier agent.
    node.snapshot.gpus.push(book);
    node.busy(0, 500);
    history.meet(&node.snapshot);
    node.busy(0, 20);
    node.idle(10);
    let expected = Stretch {
        owners: vec![(node.container(0), seconds(20))],
        idle: seconds(10),
        ..Stretch::default()
    };
    assert_eq!(sum(&node.hour(&mut history)), expected);
    assert_eq!(node.hour(&mut history).behind, Nanos::ZERO);
    history.meet(&node.snapshot);
    history.look(&node.snapshot);
    assert_eq!(sum(&node.hour(&mut history)), expected);
    node.wait(30);
    assert_eq!(node.hour(&mut history).behind, seconds(30));
}

#[test]
fn a_snapshot_that_was_taken_just_before_a_look_has_the_hour_of_the_look() {
    let (mut node, mut history) = (Node::new(), History::default());
    node.containers(1);
    history.look(&node.snapshot);
    node.busy(0, 59);
    let before = node.snapshot.clone();
    node.busy(0, 1);
    history.look(&node.snapshot);
    let after = node.hour(&mut history);
    node.snapshot = before;
    let hour = node.hour(&mut history);
    assert_eq!(sum(&hour), sum(&after));
    assert_eq!(hour.behind, Nanos::ZERO);
}

#[test]
fn what_is_kept_is_bounded_and_what_is_joined_is_counted() {
    let (mut node, mut history) = (Node::new(), History::default());
    let most = *CELLS_A_COLUMN.end();
    node.containers(most + 8);
    history.look(&node.snapshot);
    for minute in 0..COLUMNS + 5 {
        for number in 0..most + 8 {
            node.busy(number, if number == minute % most { 2 } else { 1 });
        }
        history.look(&node.snapshot);
    }
    let hour = node.hour(&mut history);
    assert_eq!(hour.stretches.len(), COLUMNS);
    for stretch in &hour.stretches {
        assert_eq!(stretch.owners.len(), most);
        assert_eq!((stretch.others, stretch.joined), (seconds(8), 8));
        assert_eq!(stretch.elapsed(), seconds(most as u64 + 9));
    }
    // Owners that no column has any more are forgotten with their columns.
    for _ in 0..COLUMNS {
        node.idle(60);
        history.look(&node.snapshot);
    }
    assert!(history.owners.owners.is_empty() && history.owners.numbers.is_empty());
    node.snapshot.gpus.clear();
    node.wait(60);
    history.look(&node.snapshot);
    assert!(history.gpus.is_empty());
}

#[test]
fn the_figures_of_an_hour_take_half_a_megabyte_at_most() {
    let figure = size_of::<(OwnerNumber, Nanos)>();
    assert!(
        COLUMNS * CELLS_A_LOOK * figure <= 512 << 10,
        "{figure} bytes"
    );
}

#[test]
fn owners_beyond_the_table_are_joined() {
    let (mut node, mut history) = (Node::new(), History::default());
    let round = *CELLS_A_COLUMN.end();
    let rounds = MAX_OWNERS / round;
    // In each minute others use the GPU.
    node.containers(MAX_OWNERS + 3);
    history.look(&node.snapshot);
    for first in 0..rounds {
        for number in 0..round {
            node.busy(first * round + number, 1);
        }
        history.look(&node.snapshot);
    }
    for number in 0..3 {
        node.busy(MAX_OWNERS + number, 2);
    }
    let hour = node.hour(&mut history);
    let last = hour.stretches.last().expect("there is one");
    assert_eq!((last.others, last.joined), (seconds(6), 3));
    assert!(last.owners.is_empty());
    assert_eq!(history.owners.owners.len(), MAX_OWNERS);
}

#[test]
fn an_owner_keeps_its_colour_and_as_many_as_there_are_colours_have_different_ones() {
    let (mut node, mut history) = (Node::new(), History::default());
    node.containers(usize::from(COLOURS));
    history.look(&node.snapshot);
    let mut before = BTreeMap::new();
    for number in 0..usize::from(COLOURS) {
        node.busy(number, 1);
        node.hour(&mut history);
        before.insert(number, history.colour(&node.container(number)));
        history.look(&node.snapshot);
        for (number, colour) in &before {
            assert_eq!(history.colour(&node.container(*number)), *colour);
        }
    }
    let colours: BTreeSet<u8> = before.into_values().collect();
    assert_eq!(colours.len(), usize::from(COLOURS));
}

#[test]
fn a_name_that_is_found_later_is_the_owners_also_once_its_account_is_gone() {
    let (mut node, mut history) = (Node::new(), History::default());
    node.containers(1);
    let labels = Arc::clone(&node.snapshot.accounts[0].labels);
    let nameless = ["namespace", "pod", "container"].map(|_| crate::core::model::UNRESOLVED);
    let unknown = Arc::make_mut(&mut node.snapshot.accounts[0].labels);
    [unknown.namespace, unknown.pod, unknown.container] = nameless.map(Arc::from);
    history.look(&node.snapshot);
    node.busy(0, 60);
    history.look(&node.snapshot);
    let owner = node.container(0);
    assert_eq!(history.name(&owner), "(unresolved) 000000000000");
    node.snapshot.accounts[0].labels = labels;
    node.idle(60);
    history.look(&node.snapshot);
    assert_eq!(history.name(&owner), "team/pod-0/main");
    node.snapshot.accounts.clear();
    node.idle(60);
    history.look(&node.snapshot);
    assert_eq!(history.name(&owner), "team/pod-0/main");
}

#[test]
fn a_pod_is_an_owner_beside_its_containers_and_other_pods() {
    let (mut node, mut history) = (Node::new(), History::default());
    node.containers(3);
    for number in [1, 2] {
        let account = &mut node.snapshot.accounts[number];
        account.id = NONE.into();
        Arc::make_mut(&mut account.labels).pod_uid = format!("uid-{number}").into();
    }
    history.look(&node.snapshot);
    node.busy(1, 2);
    node.busy(2, 3);
    let hour = sum(&node.hour(&mut history));
    let expected = [
        (OwnerKey::Pod("uid-1".into()), seconds(2)),
        (OwnerKey::Pod("uid-2".into()), seconds(3)),
    ];
    assert_eq!(hour.owners, expected);
}
