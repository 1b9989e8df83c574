//! The processes that are handed over: those that have to do with a GPU.
//!
//! The driver goes on naming a process for seconds after its death, and a process that dies while
//! no agent runs is in no `/proc` that the next one can read. So whoever has opened a GPU, is in
//! its process lists or was charged in a window is followed until the process table forgets it,
//! which is when every window has passed its death.
//!
//! Whoever has the pid after one of them is followed as well, since that bounds what the one before
//! may be credited.
//!
//! What is handed over is believed by an agent that has seen nothing of it, so it is only what
//! cannot mislead. Not handed over, for as long as this is so:
//!
//! - a process whose cgroup has no path yet, or whose path bears an id that belongs elsewhere;
//! - an MPS server: its time is its clients', and who those were is not kept.
//!
//! Taken back, a process is one that was sighted where it was, and the first scan confirms or ends
//! it. Windows wait for that scan. Until then a pid may have been given to somebody else who is gone
//! as well, which takes a whole round of the pids: what is not confirmed is believed for
//! [`BELIEVED_FOR`] after the last commit.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Keeper, State};
use crate::accountant::{Accountant, Settings};
use crate::completeness::Completeness;
use crate::holding::Holding;
use crate::model::{BootTime, Clock, Nanos, Pid, ProcessId, StartTicks};
use crate::placement::{Owner, PlacementId};
use crate::process_table::{CREDIT_SLACK, Facts};
use crate::sharing::Sharing;
use crate::tables::HashMap;

/// Processes that are followed. Beyond that they are not kept, which is counted.
const LIMIT: usize = 16_384;
/// How long after the last commit a process is believed to live that no scan has confirmed.
const BELIEVED_FOR: Nanos = Nanos::from_secs(60);

/// A process's cgroups: hierarchies and paths.
pub type Cgroups = Arc<[(u32, Arc<str>)]>;

/// A process that has to do with a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptProcess {
    /// Its pid.
    pub pid: Pid,
    /// When it started, as finely as it is known.
    pub start: BootTime,
    /// Whether an event of the kernel reported it, and not only a scan.
    pub by_event: bool,
    /// When it died, if it has.
    pub exit: Option<BootTime>,
    /// Whether an event reported that; otherwise a scan has missed it since, or its pid was taken.
    pub exit_reported: bool,
    /// Where it is or was.
    pub cgroups: Cgroups,
    /// Where it was before, if it had only just moved, and when it did; absent where nobody saw it.
    pub moved: Option<(Cgroups, Option<BootTime>)>,
    /// The numbers of the accounts on which it is counted as started. Of the dead none: nothing more
    /// is counted.
    pub accounts: Vec<u32>,
}

impl KeptProcess {
    /// Which process that is.
    #[must_use]
    pub fn process(&self) -> ProcessId {
        ProcessId {
            pid: self.pid,
            start: StartTicks::from(self.start),
        }
    }
}

/// What was known of a process when it was handed over.
#[derive(Debug, PartialEq, Eq)]
struct HandedOver {
    facts: Facts,
    accounts: Vec<u32>,
}

/// On which accounts processes are counted as started: by number, in the order of the processes.
struct Paid(Vec<(ProcessId, u32)>);

impl Paid {
    fn of(&self, process: ProcessId) -> &[(ProcessId, u32)] {
        let from = self.0.partition_point(|(of, _)| *of < process);
        let count = self.0[from..].partition_point(|(of, _)| *of == process);
        &self.0[from..from + count]
    }
}

/// The processes that are followed.
#[derive(Debug, Default)]
pub(crate) struct Followed {
    processes: BTreeMap<ProcessId, Option<HandedOver>>,
    /// Those that were handed over and have been forgotten since.
    gone: Vec<ProcessId>,
    overflows: u64,
}

impl Followed {
    /// This one has to do with a GPU.
    pub(crate) fn follow(&mut self, process: ProcessId) {
        if self.processes.len() < LIMIT {
            self.processes.entry(process).or_default();
        } else if !self.processes.contains_key(&process) {
            self.overflows += 1;
        }
    }

    /// How often one was not followed, since too many are.
    pub(crate) const fn overflows(&self) -> u64 {
        self.overflows
    }

    /// Lets those go that `is_known` does not know any more.
    fn let_go(&mut self, is_known: impl Fn(ProcessId) -> bool) {
        let gone = &mut self.gone;
        self.processes.retain(|process, handed_over| {
            let is_known = is_known(*process);
            if !is_known && handed_over.is_some() {
                gone.push(*process);
            }
            is_known
        });
    }

    /// Forgets what was handed over.
    pub(super) fn forget(&mut self) {
        self.gone.clear();
        for handed_over in self.processes.values_mut() {
            *handed_over = None;
        }
    }
}

impl Accountant {
    /// Has a process kept: it has to do with a GPU.
    pub(crate) fn follow(&mut self, process: ProcessId) {
        if let Some(keeper) = &mut self.keeper {
            keeper.followed.follow(process);
        }
    }

    /// Lets the followed go that the process table has forgotten.
    pub(crate) fn unfollow_forgotten(&mut self) {
        if let Some(keeper) = &mut self.keeper {
            let processes = &self.processes;
            let is_known = |process| processes.facts_of(process).is_some();
            keeper.followed.let_go(is_known);
        }
    }

    /// The processes of which there is news, and those that were handed over and are not kept any
    /// more.
    pub(super) fn changed_processes(
        &mut self,
        keeper: &mut Keeper,
    ) -> (Vec<KeptProcess>, Vec<ProcessId>) {
        let followed = keeper.followed.processes.keys();
        let reused = followed.filter(|process| !self.processes.is_alive(**process));
        // Who has the pid after one that is dead bounds what that one may be credited.
        let reused: Vec<Facts> = reused
            .flat_map(|process| self.processes.incarnations(process.pid))
            .collect();
        for facts in reused {
            keeper.followed.follow(facts.process);
        }
        let servers: BTreeSet<Pid> = self.sharing.values().flat_map(Sharing::servers).collect();
        let paid = self.accounts_paid();
        let mut changed = Vec::new();
        let mut gone = std::mem::take(&mut keeper.followed.gone);
        let books = self.ledger.books().iter();
        let unbooked = books
            .filter(|book| book.missing.is_none())
            .map(|book| book.through.unwrap_or_default())
            .min();
        let unbooked = unbooked.unwrap_or_default().minus(CREDIT_SLACK);
        for (process, handed_over) in &mut keeper.followed.processes {
            let Some(facts) = self.processes.facts_of(*process) else {
                continue;
            };
            let accounts = match facts.exit {
                None => paid.of(*process),
                Some(_) => &[],
            };
            let is_news = handed_over.as_ref().is_none_or(|known| {
                let accounts = accounts.iter().map(|(_, number)| number);
                known.facts != facts || !known.accounts.iter().eq(accounts)
            });
            let is_server = servers.contains(&process.pid);
            let kept = if is_server || !self.is_to_be_kept(&facts) {
                None
            } else if is_news {
                let accounts = accounts.iter().map(|(_, number)| *number).collect();
                self.kept_process(&facts, accounts, unbooked)
            } else {
                continue;
            };
            match kept {
                Some(kept) => {
                    *handed_over = Some(HandedOver {
                        facts,
                        accounts: kept.accounts.clone(),
                    });
                    changed.push(kept);
                }
                None => gone.extend(handed_over.take().map(|_| *process)),
            }
        }
        (changed, gone)
    }

    /// On which accounts whose processes are counted as started.
    fn accounts_paid(&self) -> Paid {
        let mut paid = Vec::new();
        for book in 0..self.ledger.books().len() {
            let known = self.holdings.get(&book).into_iter();
            paid.extend(
                known
                    .flat_map(Holding::payers)
                    .filter_map(|(process, owner)| {
                        Some((process, self.ledger.account(book, owner)?.number))
                    }),
            );
        }
        // Stable: those of one process stay in the order of the books.
        paid.sort_by_key(|(process, _)| *process);
        Paid(paid)
    }

    /// Whether somebody who knows no more of a process than where it is knows who pays for it.
    fn is_to_be_kept(&mut self, facts: &Facts) -> bool {
        let mut places = std::iter::once(facts.placement).chain(facts.previous);
        let placements = &mut self.placements;
        places.all(|place| placements.owner(place).is_some() && placements.refusal(place).is_none())
    }

    /// A process as it is handed over. Where it was before is told if that counts in windows from
    /// `unbooked` on.
    fn kept_process(
        &self,
        facts: &Facts,
        accounts: Vec<u32>,
        unbooked: BootTime,
    ) -> Option<KeptProcess> {
        let pid = facts.process.pid;
        let holders = self
            .processes
            .holders(pid, unbooked, BootTime::MAX, Completeness::NONE);
        let mut holders = holders.iter();
        let moved = holders
            .find(|of| of.process == facts.process)
            .and_then(|holder| holder.placements[1])
            .map(|before| {
                let seen = (!facts.moved_unseen).then_some(facts.since);
                Some((self.paths_of(before)?, seen))
            });
        let moved = match moved {
            Some(moved) => Some(moved?),
            None => None,
        };
        Some(KeptProcess {
            pid,
            start: facts.start,
            by_event: facts.by_event,
            exit: facts.exit,
            exit_reported: facts.exit_reported,
            cgroups: self.paths_of(facts.placement)?,
            moved,
            accounts,
        })
    }

    fn paths_of(&self, place: PlacementId) -> Option<Cgroups> {
        let cgroups = self.placements.cgroups_of(place).into_iter();
        cgroups
            .map(|(hierarchy, path)| Some((hierarchy, Arc::from(path?))))
            .collect()
    }

    /// Takes back the processes that an agent before this one knew. `accounts` are whose accounts
    /// have which numbers.
    pub(super) fn restore_processes(
        &mut self,
        state: &State,
        accounts: &HashMap<u32, (usize, Owner)>,
        settings: &Settings,
        clock: Clock,
    ) {
        let then = state.clock.boot;
        for kept in state.processes.iter().filter(|kept| kept.start <= then) {
            let process = kept.process();
            let mut hold = |cgroups| {
                let place = self.placements.of_paths(cgroups);
                self.placements.hold(place);
                place
            };
            let place = hold(&kept.cgroups);
            let moved = kept.moved.as_ref();
            let moved = moved.map(|(cgroups, seen)| (hold(cgroups), *seen));
            let is_known = self.processes.restore(&Facts {
                process,
                start: kept.start,
                exit: kept.exit,
                exit_reported: kept.exit_reported,
                parent: None,
                by_event: kept.by_event,
                placement: place,
                previous: moved.map(|(before, _)| before),
                since: moved.map_or(kept.start, |(_, seen)| seen.unwrap_or(then)),
                moved_unseen: moved.is_some_and(|(_, seen)| seen.is_none()),
            });
            for place in std::iter::once(place).chain(moved.map(|(before, _)| before)) {
                if is_known {
                    // Its place is its container's from here on, and no other's.
                    let _ = self.placements.owner(place);
                } else {
                    self.placements.release(place);
                }
            }
            if !is_known {
                continue;
            }
            self.follow(process);
            for (book, owner) in kept.accounts.iter().filter_map(|of| accounts.get(of)) {
                let holding = self.holdings.entry(*book);
                let holding = holding.or_insert_with(|| Holding::new(settings.lists_interval));
                holding.restore(process, owner.clone());
            }
        }
        if clock.boot.since(then) > BELIEVED_FOR {
            // As if a scan had been made and had found nobody.
            let until = then.plus(BELIEVED_FOR);
            self.processes.close_unseen(until, &|_, _| false);
        }
        self.introduce_containers(clock.boot, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::{
        CgroupAnnouncement, CgroupSet, EventCounters, GpuInfo, GpuProcess, GpuProcesses, Input,
        KernelBatch, KernelEvent, MpsRole, ProcessEvent, SourceHealth,
    };
    use crate::model::{CgroupKey, GpuUuid, SourceId, SourceState, WallTime};
    use crate::persist::Changes;

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
    const SECOND: u64 = Nanos::SECOND.0;

    fn clock(seconds: u64) -> Clock {
        Clock {
            boot: BootTime(seconds * SECOND),
            wall: WallTime(1_700_000_000 * SECOND + seconds * SECOND),
        }
    }

    /// An accountant that keeps, with `/docker/A` as cgroup 3 and `/docker/B` as cgroup 4.
    struct Node {
        accountant: Accountant,
        now: u64,
    }

    impl Node {
        fn new() -> Self {
            let accountant = Accountant::new(Settings::default(), clock(100));
            let now = 100;
            let mut node = Self { accountant, now };
            node.accountant.keep();
            node.take(Input::Gpus(vec![GpuInfo {
                uuid: GpuUuid::from("GPU-0"),
                index: 0,
                minor: None,
                model: "test".into(),
                driver: "1".into(),
                simulated: true,
                memory_total: None,
                mig: None,
                engines: vec![],
            }]));
            node.take(Input::Health(SourceHealth {
                source: SourceId::Kernel,
                state: SourceState::Up,
                since: BootTime(0),
                place: "".into(),
            }));
            for (id, parent, name) in [(1, None, ""), (2, Some(1), "docker"), (3, Some(2), A)] {
                node.announce(id, parent, name);
            }
            node
        }

        fn take(&mut self, input: Input) {
            self.accountant.take(input, clock(self.now));
        }

        fn event(&mut self, event: KernelEvent) {
            self.events(vec![event]);
        }

        fn events(&mut self, events: Vec<KernelEvent>) {
            self.take(Input::Kernel(KernelBatch {
                events,
                drained_through: clock(self.now).boot,
                counters: EventCounters::default(),
            }));
        }

        fn announce(&mut self, id: u64, parent: Option<u64>, name: &str) {
            let key = CgroupKey { hierarchy: 0, id };
            self.event(KernelEvent::Cgroup(CgroupAnnouncement {
                key,
                parent,
                name: name.into(),
            }));
        }

        /// Something of a process that began at 100 s.
        fn seen(&mut self, kind: fn(ProcessEvent) -> KernelEvent, pid: u32, cgroup: u64) {
            let at = clock(self.now).boot;
            self.event(kind(ProcessEvent {
                at,
                pid: Pid(pid),
                parent: Pid(1),
                start: clock(100).boot,
                pid_namespace_level: 0,
                cgroups: CgroupSet {
                    unified: CgroupKey {
                        hierarchy: 0,
                        id: cgroup,
                    },
                    legacy: None,
                },
            }));
        }

        fn lists(&mut self, listed: &[(u32, MpsRole)]) {
            self.now += 1;
            let processes = listed.iter().map(|&(pid, mps)| GpuProcess {
                pid: Pid(pid),
                memory: None,
                mps,
            });
            self.take(Input::GpuProcesses(GpuProcesses {
                gpu: GpuUuid::from("GPU-0"),
                at: clock(self.now).boot,
                processes: processes.collect(),
                memory_used: None,
            }));
            // Lists wait until it is known who had the pids.
            self.events(vec![]);
        }

        fn changes(&mut self) -> Changes {
            self.now += 1;
            self.accountant.commit(clock(self.now));
            self.accountant.changes(false, clock(self.now))
        }

        /// Pids of which there is news, and those that are not kept any more.
        fn news(&mut self) -> (Vec<u32>, Vec<u32>) {
            let changes = self.changes();
            let changed = changes.processes.iter().map(|kept| kept.pid.0);
            let gone = changes.gone.iter().map(|process| process.pid.0);
            (changed.collect(), gone.collect())
        }
    }

    #[test]
    fn only_who_has_to_do_with_a_gpu_is_kept_and_only_until_it_is_forgotten() {
        let mut node = Node::new();
        node.seen(KernelEvent::Fork, 7, 3);
        node.seen(KernelEvent::Fork, 8, 3);
        assert_eq!(node.news(), (vec![], vec![]));
        node.lists(&[(7, MpsRole::None)]);
        let changes = node.changes();
        let [kept] = &*changes.processes else {
            panic!("one is listed: {changes:?}")
        };
        let path: Arc<str> = format!("/docker/{A}").into();
        assert_eq!(*kept.cgroups, [(0, path)]);
        assert_eq!((kept.exit, kept.by_event), (None, true));
        let number = changes.accounts[0].number;
        assert_eq!(kept.accounts, [number]);
        node.lists(&[(7, MpsRole::None)]);
        assert_eq!(node.news(), (vec![], vec![]), "nothing is new");
        let died = node.now;
        node.seen(KernelEvent::Exit, 7, 3);
        let changes = node.changes();
        let kept = &changes.processes[0];
        assert_eq!(kept.exit, Some(clock(died).boot));
        assert!(kept.exit_reported && kept.accounts.is_empty());
        node.now += 13;
        assert_eq!(node.news(), (vec![], vec![]));
        assert_eq!(node.news(), (vec![], vec![7]));
        assert_eq!(node.news(), (vec![], vec![]));
    }

    #[test]
    fn what_could_mislead_is_not_kept() {
        let mut node = Node::new();
        let all = [7, 8, 9].map(|pid| (pid, MpsRole::None));
        node.seen(KernelEvent::Fork, 7, 3);
        node.seen(KernelEvent::Fork, 8, 4);
        node.seen(KernelEvent::Fork, 9, 3);
        node.lists(&all);
        assert_eq!(node.news().0, [7, 9], "the cgroup of one has no path");
        node.announce(4, Some(2), B);
        assert_eq!(node.news(), (vec![8], vec![]));
        // It moves, and where it was counts until its windows are booked.
        node.seen(KernelEvent::Attach, 7, 4);
        let moved = clock(node.now).boot;
        let [kept] = &*node.changes().processes else {
            panic!("one has moved")
        };
        let [before, now] = [A, B].map(|id| Cgroups::from([(0, format!("/docker/{id}").into())]));
        assert_eq!(
            (&kept.cgroups, &kept.moved),
            (&now, &Some((before, Some(moved))))
        );
        // It turns out to be an MPS server.
        node.lists(&[
            (7, MpsRole::None),
            (8, MpsRole::Client),
            (9, MpsRole::Server),
        ]);
        assert_eq!(
            node.news(),
            (vec![7, 8], vec![9]),
            "on which they are counted is news"
        );
        // An id that belongs elsewhere.
        node.announce(5, Some(1), "mine");
        node.announce(6, Some(5), A);
        node.seen(KernelEvent::Fork, 10, 6);
        node.lists(&[(10, MpsRole::None)]);
        assert_eq!(node.news(), (vec![], vec![]));
    }
}
