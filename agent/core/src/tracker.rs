//! Processes and the cgroups that they are in: the one place where the owner of a pid is known.
//!
//! The tracker takes the kernel's events and the scans of `/proc`, and keeps both tables: which
//! process had which pid when, and what each cgroup means. A process record holds its placements,
//! and nobody else may hold or release one, so the tables never disagree.
//!
//! Times are of the boot clock.

use std::collections::BTreeSet;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use crate::allocation::Span;
use crate::cgroup_path::{CgroupMeaning, ContainerCgroup};
use crate::effect::{Effect, Effects};
use crate::event_stream::EventStream;
use crate::input::{CgroupAnnouncement, DeviceOpen, KernelBatch, ProcessEvent, ProcessScan};
use crate::live_owners::LiveOwners;
use crate::model::{
    BootTime, CgroupKey, ContainerId, Nanos, Owner, Pid, ProcessId, SourceState, UnattributedReason,
};
use crate::opens::{Opens, ProcessFate};
use crate::owners::Lookup;
use crate::placement::{InnerContainer, NestingRule, PlacementId, PlacementTable};
use crate::process_table::{CREDIT_SLACK, Facts, ProcessTable, Sighting};
use crate::records::{Cgroups, KeptProcess};
use crate::tables::{HashMap, HashSet};

/// Processes that have opened a GPU and are followed for it.
const OPENS_LIMIT: usize = 16_384;
/// How soon `/proc` is scanned again for a process that the last scan did not show.
const LOOK_AGAIN: Nanos = Nanos::from_secs(10);
/// How long a dead process is kept at least: the driver's ring spans 12 s, and a reader may be late.
const KEEP_DEAD: Nanos = Nanos::from_secs(15);
/// How long a dead process is kept at most, however far a GPU's windows lag.
const KEEP_DEAD_AT_MOST: Nanos = Nanos::from_secs(60);

/// Every process that may be charged, its cgroup, and how complete that knowledge is.
#[derive(Debug)]
pub(crate) struct ProcessTracker {
    processes: ProcessTable,
    placements: PlacementTable,
    opens: Opens,
    /// Up to when the kernel's events are known, and where some are missing.
    events: EventStream,
    scans: u64,
    /// Until when windows wait for the first scan of `/proc`. After a restart the first windows are
    /// about processes that nothing else has shown yet.
    await_scan_until: BootTime,
    /// When a scan of `/proc` was last asked for because of a pid.
    looked_for: HashMap<Pid, BootTime>,
    /// Whether a scan has ever found a batch job where events name only its daemon.
    scans_tell_more: bool,
    live_owners: LiveOwners,
}

impl ProcessTracker {
    /// A tracker of at most `processes` processes, the kept dead included, and `cgroups` cgroups. No
    /// event is known to be missing since `started`.
    pub(crate) fn new(
        processes: usize,
        cgroups: usize,
        nesting: NestingRule,
        started: BootTime,
    ) -> Self {
        Self {
            processes: ProcessTable::new(processes),
            placements: PlacementTable::new(cgroups).with_rule(nesting),
            opens: Opens::new(OPENS_LIMIT),
            events: EventStream::since(started),
            scans: 0,
            await_scan_until: BootTime::default(),
            looked_for: HashMap::default(),
            scans_tell_more: false,
            live_owners: LiveOwners::default(),
        }
    }

    /// The processes.
    pub(crate) const fn processes(&self) -> &ProcessTable {
        &self.processes
    }

    /// The cgroups.
    pub(crate) const fn placements(&self) -> &PlacementTable {
        &self.placements
    }

    /// Which processes opened a GPU.
    pub(crate) const fn opens(&self) -> &Opens {
        &self.opens
    }

    /// How complete the kernel's events are.
    pub(crate) const fn events(&self) -> &EventStream {
        &self.events
    }

    /// Scans of `/proc` taken in.
    pub(crate) const fn scans(&self) -> u64 {
        self.scans
    }

    /// What is needed to find the owner of a pid.
    pub(crate) fn lookup(&mut self) -> Lookup<'_> {
        Lookup {
            processes: &self.processes,
            placements: &mut self.placements,
            opens: &self.opens,
            events: &self.events,
        }
    }

    /// The owner of a placement and what its cgroup's path means. Absent while no path is known.
    pub(crate) fn owner(&mut self, place: PlacementId) -> Option<&(Owner, CgroupMeaning)> {
        self.placements.owner(place)
    }

    /// Has windows wait for the first scan of `/proc` until then, at most.
    pub(crate) fn await_scan_until(&mut self, until: BootTime) {
        self.await_scan_until = until;
    }

    /// Whether the first scan of `/proc` is awaited: it says which processes of an earlier agent
    /// live, and who else does.
    pub(crate) fn awaits_scan(&self, now: BootTime) -> bool {
        self.scans == 0 && now < self.await_scan_until
    }

    /// Takes the kernel source's state, and since when it is in that state.
    pub(crate) fn take_source_state(&mut self, state: &SourceState, since: BootTime) {
        self.events.take_state(state, since);
    }

    /// Takes the counters of a batch of events. Returns whether events were lost since the batch
    /// before. Then every cgroup is to be announced anew, and `/proc` is to be scanned.
    pub(crate) fn take_counters(
        &mut self,
        batch: &KernelBatch,
        now: BootTime,
        effects: &mut Effects,
    ) -> bool {
        let has_lost = self.events.take_batch(batch, now);
        if has_lost {
            effects.ask(Effect::AnnounceAnew);
            effects.ask(Effect::Rescan);
        }
        has_lost
    }

    /// Takes a cgroup's name.
    pub(crate) fn announce(&mut self, cgroup: &CgroupAnnouncement, effects: &mut Effects) {
        if self.placements.announce(cgroup) {
            effects.ask(Effect::AnnounceAnew);
        }
    }

    /// A cgroup is gone.
    pub(crate) fn remove_cgroup(&mut self, cgroup: CgroupKey) {
        self.placements.remove(cgroup);
    }

    /// A process died.
    pub(crate) fn exit(&mut self, event: &ProcessEvent, effects: &mut Effects) {
        // The exit event makes a process known whose fork event was lost.
        if self.processes.placement(event.id()).is_none() {
            self.sight(event, Sighting::Scan, effects);
        }
        self.processes.exit(event.pid, event.start, event.at);
        self.events.take_event_of(event.id(), event.at);
    }

    /// A process opened a GPU. No time is booked for that. It also shows a process whose fork event
    /// was lost. The agent's own opens only show its cgroup.
    pub(crate) fn opened(&mut self, open: &DeviceOpen, is_own: bool, effects: &mut Effects) {
        let process = &open.process;
        self.sight(process, Sighting::Scan, effects);
        if !is_own {
            self.opens.note(process.id(), open.device, process.at);
            effects.ask(Effect::ReadLists);
        }
    }

    /// A process was charged in a window, so its open of the GPU is accounted for.
    pub(crate) fn sampled(&mut self, process: ProcessId) {
        self.opens.sampled(process);
    }

    /// An event shows a process in a cgroup.
    pub(crate) fn sight(
        &mut self,
        event: &ProcessEvent,
        sighting: Sighting,
        effects: &mut Effects,
    ) {
        let process = event.id();
        let known = self.processes.placement(process).or_else(|| {
            // A process is born where its parent is.
            let is_birth = sighting == Sighting::Fork;
            is_birth.then(|| self.processes.placement_of(event.parent, event.at))?
        });
        let mut place = self.placements.of_event(event.cgroups, known);
        if sighting == Sighting::Attach && known == Some(place) && self.scans_tell_more {
            // It was moved in a hierarchy that events do not name. It may be a job's there now.
            effects.ask(Effect::Rescan);
        }
        // A scan that was faster than this event already knows the placement by its path.
        if let Some(found) = self.processes.found_at(process)
            && found != place
        {
            let owner = self.placements.owner(place).map(|(owner, _)| owner.clone());
            let known = self.placements.owner(found).map(|(owner, _)| owner);
            let is_same = owner.is_some() && owner.as_ref() == known;
            // The event of the move, whose number means nothing yet: the cgroup's name was lost. It
            // says when the process moved. The scan's path says where to.
            let is_the_move = owner.is_none()
                && sighting == Sighting::Attach
                && self.processes.may_have_moved_at(process, event.at);
            if is_same || is_the_move {
                self.placements.discard_unheld(place);
                place = found;
            }
        }
        let before = self.processes.facts_of(process);
        self.put(event.pid, event.start, event.at, place, sighting);
        if sighting == Sighting::Scan {
            self.date_move(process, before, event.at);
        }
        self.events.take_event_of(process, event.at);
        self.processes
            .note(event.pid, event.start, event.parent, true);
    }

    fn put(
        &mut self,
        pid: Pid,
        start: BootTime,
        at: BootTime,
        place: PlacementId,
        sighting: Sighting,
    ) {
        let placements = &mut self.placements;
        // The new reference is taken before the old one is released, since both may be the same
        // placement.
        placements.hold(place);
        let held = self
            .processes
            .observe(pid, start, at, place, sighting, &mut |gone| {
                placements.release(gone);
            });
        if !held {
            placements.release(place);
        } else {
            // Resolving it now, while it is fresh, introduces its container to the directory.
            let _ = placements.owner(place);
        }
    }

    /// Notes the interval in which a process moved that a scan found in another place. The interval
    /// begins where the process was last known to be in the place `before`, and ends at `by`, when
    /// it was seen in the new place.
    fn date_move(&mut self, process: ProcessId, before: Option<Facts>, by: BootTime) {
        let Some(before) = before else { return };
        let is_elsewhere = self
            .processes
            .placement(process)
            .is_some_and(|now| now != before.placement);
        if is_elsewhere && self.processes.found_at(process).is_some() {
            let after = self.events.seen_through(process.pid);
            self.processes.found_moved(process, before.since, after, by);
        }
    }

    /// Takes a scan of `/proc`.
    pub(crate) fn take_scan(&mut self, scan: &ProcessScan, effects: &mut Effects) {
        let unread: HashSet<Pid> = scan.unread.iter().copied().collect();
        let mut seen = HashSet::default();
        seen.reserve(scan.processes.len());
        for process in &scan.processes {
            seen.insert((process.pid, process.start));
            let id = ProcessId {
                pid: process.pid,
                start: process.start,
            };
            let place = self.placements.of_paths(&process.cgroups);
            self.placements.hold(place);
            let place_now = self.place_by_scan(id, place, scan.started);
            let start = process.start.earliest();
            let before = self.processes.facts_of(id);
            self.put(process.pid, start, scan.started, place_now, Sighting::Scan);
            self.date_move(id, before, scan.finished);
            self.processes
                .note(process.pid, start, process.parent, false);
            self.placements.release(place_now);
        }
        // Processes whose files could not be read may be alive.
        let is_there = |pid, start| seen.contains(&(pid, start)) || unread.contains(&pid);
        self.processes
            .close_missing(scan.started, scan.finished, &is_there);
        if self.awaits_scan(scan.finished) {
            // The lists that came before were not used.
            effects.ask(Effect::ReadLists);
        }
        self.scans += 1;
        if self.events.take_scan(scan) {
            // The lists that came before may have named pids that nobody could vouch for.
            effects.ask(Effect::ReadLists);
        }
    }

    /// Decides the placement of a process that a scan found at `place`, to which the caller has a
    /// reference. Returns `place` or the placement that the process already has; the reference
    /// moves to the one returned.
    ///
    /// A path (from a scan) and a cgroup id (from an event) with the same owner are no move. If the
    /// id has no owner yet, or a less specific one, the path decides.
    fn place_by_scan(
        &mut self,
        process: ProcessId,
        place: PlacementId,
        scanned: BootTime,
    ) -> PlacementId {
        // Resolving it introduces its container, also if the table has no room for the process.
        let owner = self.placements.owner(place).map(|(owner, _)| owner.clone());
        let Some(known_place) = self.processes.placement(process) else {
            return place;
        };
        let known = self.placements.owner(known_place);
        let known = known.map(|(owner, _)| owner.clone());
        if owner.is_some()
            && self.processes.is_there_since(process, scanned)
            && (known.is_none() || self.placements.says_more(place, known_place))
        {
            if known.is_none() {
                self.placements.learn(known_place, place);
            } else if self.placements.is_work(place) {
                self.scans_tell_more = true;
            }
            self.placements.hold(place);
            if let Some(gone) = self.processes.correct_placement(process, place) {
                self.placements.release(gone);
            }
            return place;
        }
        if known.is_some() && known == owner {
            self.placements.hold(known_place);
            self.placements.release(place);
            return known_place;
        }
        place
    }

    /// Takes back a process that an agent before this one handed over at `then`. Returns whether it
    /// is known now.
    pub(crate) fn restore(&mut self, kept: &KeptProcess, then: BootTime) -> bool {
        let mut hold = |cgroups: &Cgroups| {
            let place = self.placements.of_paths(cgroups);
            self.placements.hold(place);
            place
        };
        let place = hold(&kept.cgroups);
        let moved = kept.moved.as_ref();
        let moved = moved.map(|(cgroups, seen)| (hold(cgroups), *seen));
        let is_known = self.processes.restore(&Facts {
            process: kept.process(),
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
                // An id belongs to the cgroup in which it was first seen: to this one.
                let _ = self.placements.owner(place);
            } else {
                self.placements.release(place);
            }
        }
        is_known
    }

    /// Marks every restored process as dead that was not seen since `then`, as if a scan had found
    /// none.
    pub(crate) fn close_restored(&mut self, then: BootTime) {
        self.processes.close_unseen(then, &|_, _| false);
    }

    /// Asks for a scan of `/proc` if a charge has no owner because its process is not known. The
    /// driver may name a pid for long that is not there, so this is not asked again and again.
    pub(crate) fn look_for(
        &mut self,
        pid: Pid,
        owner: &Result<Owner, UnattributedReason>,
        now: BootTime,
        effects: &mut Effects,
    ) {
        let Err(
            UnattributedReason::UnknownPid
            | UnattributedReason::UnknownCgroup
            | UnattributedReason::UnconfirmedPid,
        ) = owner
        else {
            self.looked_for.remove(&pid);
            return;
        };
        self.looked_for.retain(|_, at| now.since(*at) < LOOK_AGAIN);
        if let Entry::Vacant(entry) = self.looked_for.entry(pid) {
            entry.insert(now);
            effects.ask(Effect::Rescan);
        }
    }

    /// Every owner that has a living process.
    pub(crate) fn live_owners(&mut self) -> Arc<HashSet<Owner>> {
        self.live_owners.get(&self.processes, &mut self.placements)
    }

    /// From when to when the `wanted` containers lived, by their processes. A container without a
    /// process is absent.
    pub(crate) fn lives_of(&mut self, wanted: &HashSet<ContainerId>) -> HashMap<ContainerId, Span> {
        let mut spans = HashMap::<ContainerId, Span>::default();
        // Thousands of processes share a few places.
        let mut owners = HashMap::<PlacementId, Option<ContainerId>>::default();
        for facts in self.processes.everyone() {
            let placements = &mut self.placements;
            let owner = owners.entry(facts.placement).or_insert_with(|| {
                match placements.owner(facts.placement) {
                    Some((Owner::Container(id), _)) => Some(id.clone()),
                    _ => None,
                }
            });
            let Some(id) = owner.as_ref().filter(|id| wanted.contains(id)) else {
                continue;
            };
            spans
                .entry(id.clone())
                .and_modify(|span| {
                    span.start = span.start.min(facts.start);
                    // One living process keeps the span open.
                    span.end = span.end.and_then(|end| Some(end.max(facts.exit?)));
                })
                .or_insert(Span {
                    start: facts.start,
                    end: facts.exit,
                });
        }
        spans
    }

    /// The processes of these owners.
    pub(crate) fn processes_of(&mut self, owners: &BTreeSet<Owner>) -> Vec<Facts> {
        if owners.is_empty() {
            return Vec::new();
        }
        // Thousands of processes share a few places.
        let mut known = HashMap::<PlacementId, bool>::default();
        let mut found = Vec::new();
        for facts in self.processes.everyone() {
            let placements = &mut self.placements;
            let is_theirs = *known.entry(facts.placement).or_insert_with(|| {
                let owner = placements.owner(facts.placement);
                owner.is_some_and(|(owner, _)| owners.contains(owner))
            });
            if is_theirs {
                found.push(facts);
            }
        }
        found
    }

    /// Forgets dead processes that every window has passed. `passed` is the end of the earliest last
    /// window, and `has_windows` says whether every GPU has had one.
    pub(crate) fn forget_dead(&mut self, passed: BootTime, has_windows: bool, now: BootTime) {
        // If events were lost, a process is credited at most [`CREDIT_SLACK`] after its exit. The
        // dead are kept longer only for late events and for work during the tear-down of a context.
        // A nearly full table gives that up, so that new processes find room.
        let keep = if self.processes.is_crowded() && has_windows {
            CREDIT_SLACK
        } else {
            KEEP_DEAD
        };
        let before = passed.max(now.minus(KEEP_DEAD_AT_MOST)).minus(keep);
        let placements = &mut self.placements;
        let processes = &self.processes;
        self.opens
            .close_finished(&mut |process| match processes.facts_of(process) {
                None => ProcessFate::Unknown,
                Some(facts) => match facts.exit {
                    Some(died) if died < before => ProcessFate::Over {
                        died,
                        owner: placements
                            .owner(facts.placement)
                            .map(|(owner, _)| owner.clone()),
                    },
                    _ => ProcessFate::Open,
                },
            });
        self.processes
            .forget(before, &mut |place| placements.release(place));
    }

    /// Forgets cgroups that are gone and that nothing needs.
    pub(crate) fn forget_removed_cgroups(&mut self) {
        self.placements.forget_removed();
    }

    /// Releases the binding of ids to cgroups for ids with neither a process nor an account.
    pub(crate) fn end_bindings<'a>(&mut self, with_account: impl Iterator<Item = &'a Owner>) {
        self.placements.end_bindings(with_account);
    }

    /// The ids that turned out to be another cgroup's since this was last asked.
    pub(crate) fn take_taken_over(&mut self) -> Vec<Owner> {
        self.placements.take_taken_over()
    }

    /// The containers that were met since this was last asked.
    pub(crate) fn take_new_containers(&mut self) -> Vec<ContainerCgroup> {
        self.placements.take_new_containers()
    }

    /// The containers inside others that have processes, where the innermost may pay.
    pub(crate) fn inner_containers(&mut self) -> BTreeSet<InnerContainer> {
        self.placements.inner_containers()
    }

    /// Charges from now on the inner containers in `vouched`, which an identity source has
    /// confirmed, of those that are `present`.
    pub(crate) fn vouch(
        &mut self,
        vouched: BTreeSet<InnerContainer>,
        present: &BTreeSet<InnerContainer>,
    ) {
        self.placements.vouch(vouched, present);
    }

    /// Processes and cgroups that full tables turned away.
    pub(crate) fn overflows(&self) -> u64 {
        self.processes.overflows() + self.placements.overflows() + self.opens.overflows()
    }
}
