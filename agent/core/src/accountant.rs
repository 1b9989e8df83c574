//! The core as a whole: observations in, snapshots out, and requests to the sources.
//!
//! The accountant is a composition. Each part owns its state, and the accountant passes every input
//! through them in one order:
//!
//! ```text
//!  Input ─▶ ProcessTracker ─▶ WindowBacklog ─▶ Ledger ─▶ Naming ─▶ publication ─▶ Snapshot
//!             (owner of a        (ready           (books,    (labels)                │
//!              pid in time)       windows)         accounts)                         ▼
//!           Devices (process lists by GPU)       NamespaceCounters              ChangeTracker
//! ```
//!
//! Whoever drives it hands over inputs as they come, commits at least every two seconds, and carries
//! out the [`Effect`]s. There is no other way in or out.
//!
//! A window is booked only when the event stream has been drained past its end, so that a process
//! that started and ended inside it is known. That wait is bounded, because a kernel source that is
//! down must not stop the books.

mod allocations;
mod explain;
mod handover;
mod reports;
mod restore;
mod view;
mod xids;

use std::sync::Arc;

use crate::account::Account;
use crate::allocation::AllocationTable;
use crate::awaited::{Awaited, PendingReports};
use crate::backlog::{WaitingWindow, WindowBacklog};
use crate::change_tracker::ChangeTracker;
use crate::device::Devices;
use crate::effect::{Effect, Effects};
use crate::health::DeviceHealths;
use crate::input::{GpuWindow, Input, KernelBatch, KernelEvent, Policy, SourceHealth};
use crate::ledger::Ledger;
use crate::model::{
    BootTime, Clock, ContainerId, Nanos, Owner, Pid, ProcessId, SourceId, unresolved,
};
use crate::namespaces::NamespaceCounters;
use crate::naming::{self, Askable, Naming, no_names};
use crate::owners::Charge;
use crate::placement::NestingRule;
use crate::process_table::Sighting;
use crate::shares::Shares;
use crate::sharing::{self, Sharing};
use crate::snapshot::{AgentBook, Attribution, Snapshot};
use crate::source_states::SourceStates;
use crate::tables::HashSet;
use crate::tracker::ProcessTracker;
use crate::xids::Xids;
use crate::{attribute, publication};

/// Bounds and times of the core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How long names are awaited, a new series shows 0, and an ended series stays.
    pub policy: Policy,
    /// Largest number of processes, including dead ones that are kept.
    pub process_limit: usize,
    /// Largest number of cgroups.
    pub cgroup_limit: usize,
    /// Largest number of containers whose names are remembered.
    pub container_limit: usize,
    /// Largest number of open accounts.
    pub account_limit: usize,
    /// Largest number of namespace counters: one per namespace and GPU.
    pub namespace_limit: usize,
    /// How long a window waits for the event stream to pass its end.
    pub await_events: Nanos,
    /// Which container is charged if one is inside another.
    pub nesting: NestingRule,
    /// How often the GPUs' process lists are read at least.
    pub lists_interval: Nanos,
    /// How often the GPUs' health is read.
    pub health_interval: Nanos,
    /// Largest number of counters of Xid errors: one per GPU, number and owner.
    pub xid_limit: usize,
    /// The agent's own pid. It is never charged.
    pub own_pid: Option<Pid>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            policy: Policy {
                grace: Nanos::from_secs(10),
                zero_for: Nanos::from_secs(60),
                keep_for: Nanos::from_secs(600),
            },
            process_limit: 262_144,
            cgroup_limit: 16_384,
            container_limit: 8_192,
            account_limit: 10_000,
            namespace_limit: 4_096,
            await_events: Nanos::from_secs(2),
            nesting: NestingRule::default(),
            lists_interval: Nanos::from_secs(5),
            health_interval: Nanos::from_secs(10),
            xid_limit: 1_024,
            own_pid: None,
        }
    }
}

/// The core: takes observations, keeps the books, and makes snapshots.
#[derive(Debug)]
pub struct Accountant {
    settings: Settings,
    started: Clock,
    /// Which process had which pid when, and who pays for it.
    tracker: ProcessTracker,
    /// What each GPU's process lists said.
    devices: Devices,
    /// Windows that wait until everything that happened in them is known.
    backlog: WindowBacklog,
    /// Process lists and reports about dead processes that wait for the same.
    reports: PendingReports,
    /// The books and the open accounts.
    ledger: Ledger,
    /// The health of each GPU.
    healths: DeviceHealths,
    /// Xid errors.
    xids: Xids,
    /// What the kubelet gave to which container.
    allocations: AllocationTable,
    /// The parts of allocated time where containers share a GPU.
    shares: Shares,
    /// Containers of pods that were met since allocations were last booked.
    new_in_pods: HashSet<ContainerId>,
    /// What the owners are called.
    naming: Naming,
    /// The counters of namespaces.
    namespaces: NamespaceCounters,
    /// The state of each source.
    sources: SourceStates,
    /// What the sources are asked to do.
    effects: Effects,
    counts: AgentBook,
    /// The number of the last commit.
    sequence: u64,
    /// What was handed over to the store; absent where nothing is kept.
    change_tracker: Option<ChangeTracker>,
}

impl Accountant {
    /// An accountant with empty books.
    #[must_use]
    pub fn new(settings: Settings, clock: Clock) -> Self {
        Self {
            settings,
            started: clock,
            tracker: ProcessTracker::new(
                settings.process_limit,
                settings.cgroup_limit,
                settings.nesting,
                clock.boot,
            ),
            devices: Devices::new(settings.lists_interval),
            backlog: WindowBacklog::default(),
            reports: PendingReports::default(),
            ledger: Ledger::new(settings.account_limit),
            healths: DeviceHealths::new(settings.health_interval),
            xids: Xids::new(settings.xid_limit),
            allocations: AllocationTable::new(settings.container_limit),
            shares: Shares::default(),
            new_in_pods: HashSet::default(),
            naming: Naming::new(settings.container_limit),
            namespaces: NamespaceCounters::new(settings.namespace_limit),
            sources: SourceStates::default(),
            effects: Effects::default(),
            counts: AgentBook::default(),
            sequence: 0,
            change_tracker: None,
        }
    }

    /// Takes one observation.
    pub fn take(&mut self, input: Input, clock: Clock) {
        let from_events = matches!(input, Input::Kernel(_));
        match input {
            Input::Kernel(batch) => self.take_events(batch, clock.boot),
            Input::Processes(scan) => self.tracker.take_scan(&scan, &mut self.effects),
            Input::Identity(update) => self.naming.directory_mut().learn(update, clock.boot),
            Input::Gpus(gpus) => self.ledger.list(gpus, clock),
            Input::Window(window) => self.backlog.push(clock.boot, window),
            Input::GpuProcesses(lists) => self.reports.push(Awaited::Lists(lists), clock),
            Input::Allocations(answer) => self.allocations.take(answer),
            Input::Accounted(process) => self.reports.push(Awaited::Died(process), clock),
            Input::Health(health) => self.take_health(health, clock.boot),
            Input::Policy(policy) => self.settings.policy = policy,
            Input::GpuHealth(health) => self.take_gpu_health(health, clock),
            Input::Xid(report) => self.take_xid(&report, clock),
        }
        self.take_reports(clock);
        self.introduce_containers(clock.boot, from_events);
    }

    /// The last state of each source that has reported one, and how often each failed.
    #[must_use]
    pub const fn sources(&self) -> &SourceStates {
        &self.sources
    }

    /// What the sources are asked to do since this was last called.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        self.effects.take()
    }

    /// Makes the next commit the last one of this agent: from here on nothing is waited for.
    pub fn await_nothing(&mut self) {
        self.settings.await_events = Nanos::ZERO;
        self.tracker.await_scan_until(BootTime::default());
    }

    /// Books what is ready, settles names, publishes, and checks the balance.
    pub fn commit(&mut self, clock: Clock) -> Snapshot {
        if self.settings.nesting == NestingRule::Innermost {
            self.naming
                .vouch_for_inner(&mut self.tracker, clock.boot, &mut self.effects);
        }
        self.take_reports(clock);
        self.book_windows(clock);
        let live = self.tracker.live_owners();
        self.book_allocations(&live, clock);
        let is_last = self.settings.await_events.is_zero();
        let held = if is_last || self.closes_accounts_of_gpus(clock.boot) {
            HeldTime::All
        } else {
            HeldTime::Due
        };
        self.book_held(held, clock.boot);
        self.refresh_names(clock.boot);
        self.settle_xids(clock);
        self.publish(clock);
        self.close_ended(&live, clock);
        self.forget_dead(clock.boot);
        self.tracker.forget_removed_cgroups();
        let placements = self.tracker.placements();
        self.naming
            .forget_gone(clock.boot, |id| placements.has_place(id));
        self.sequence += 1;
        self.counts.commits += 1;
        self.snapshot(clock)
    }

    fn take_health(&mut self, health: SourceHealth, now: BootTime) {
        let (source, state) = (health.source, health.state.clone());
        let since = self.sources.take(health, now);
        if source == SourceId::Kernel {
            // `since` is at most now: a gap in the events that began in the future would never end.
            self.tracker.take_source_state(&state, since.min(now));
        }
    }

    fn take_events(&mut self, batch: KernelBatch, now: BootTime) {
        let (tracker, effects) = (&mut self.tracker, &mut self.effects);
        if tracker.take_counters(&batch, now, effects) {
            self.counts.rescans_after_loss += 1;
        }
        for event in batch.events {
            match event {
                KernelEvent::Fork(event) => tracker.sight(&event, Sighting::Fork, effects),
                KernelEvent::Attach(event) => tracker.sight(&event, Sighting::Attach, effects),
                KernelEvent::Exit(event) => tracker.exit(&event, effects),
                KernelEvent::Exec(event) => {
                    tracker.sight(&event, Sighting::Exec, effects);
                    if self.devices.executed(event.id(), event.at) {
                        effects.ask(Effect::ReadLists);
                    }
                }
                KernelEvent::Open(open) => {
                    let process = open.process.id();
                    let is_own = self.settings.own_pid == Some(process.pid);
                    tracker.opened(&open, is_own, effects);
                    if !is_own {
                        follow(&mut self.change_tracker, process);
                    }
                }
                KernelEvent::Cgroup(announcement) => tracker.announce(&announcement, effects),
                KernelEvent::CgroupRemoved(cgroup) => tracker.remove_cgroup(cgroup),
            }
        }
    }

    /// Introduces the containers that were met to the directory and to the allocations.
    fn introduce_containers(&mut self, now: BootTime, by_event: bool) {
        for container in self.tracker.take_new_containers() {
            if container.pod.is_some() && !self.allocations.knows(&container.id) {
                self.new_in_pods.insert(container.id.clone());
            }
            self.naming
                .introduce(&container, by_event, now, &mut self.effects);
        }
    }

    /// Books the windows that are ready.
    fn book_windows(&mut self, clock: Clock) {
        let mut round = self.backlog.begin();
        while let Some(waiting) = round.next() {
            let is_held_back = round.holds_back(&waiting.window.gpu);
            let readiness = self.readiness(&waiting, clock.boot);
            if is_held_back || readiness == Readiness::Waits {
                round.hold_back(waiting);
                continue;
            }
            self.counts.windows_not_awaited += u64::from(readiness != Readiness::Ready);
            let received = waiting.received;
            if let Some(unlisted) = self.book_window(waiting.window, clock)
                && clock.boot.since(received) < self.settings.await_events
            {
                // Its GPU is about to be listed. If it is not, there is no book to put it in.
                round.hold_back(WaitingWindow {
                    received,
                    window: unlisted,
                });
            }
        }
        self.backlog.end(round);
    }

    /// Whether a window can be booked. Asks for what it waits for.
    fn readiness(&mut self, waiting: &WaitingWindow, now: BootTime) -> Readiness {
        let window = &waiting.window;
        // The processes from before the agent are known by the first scan.
        let is_unscanned =
            self.tracker.scans() == 0 && self.sources.get(SourceId::Procfs).is_some();
        let events = self.tracker.events();
        let is_starting = events.is_starting() || is_unscanned;
        let has_caught_up = !is_unscanned && events.has_caught_up(window.end);
        let is_down = events.is_expected() && !events.is_up() && !is_starting;
        let is_expected = events.is_expected() || is_starting;
        // While the kernel source is down, a window waits for a scan only if the GPU was busy in
        // it.
        let is_nobodys = window.busy.is_zero() && window.engines.is_empty();
        let awaits_events = is_expected && !has_caught_up && !(is_down && is_nobodys);
        let is_awaited = (has_caught_up && self.awaits_lists(window)) || awaits_events;
        let events = self.tracker.events();
        if is_awaited && events.lacks_scan(window.end) && !events.is_starting() {
            self.effects.ask(Effect::Rescan);
        }
        let has_waited = now.since(waiting.received) >= self.settings.await_events;
        if self.tracker.awaits_scan(now) || (is_awaited && !has_waited) {
            Readiness::Waits
        } else if is_awaited {
            Readiness::Overdue
        } else {
            Readiness::Ready
        }
    }

    /// Books one window. Gives it back if its GPU has no book.
    fn book_window(&mut self, window: GpuWindow, clock: Clock) -> Option<GpuWindow> {
        let charges = self.charges_of(&window);
        self.close_taken_over(clock);
        self.introduce_containers(clock.boot, false);
        for charge in &charges {
            if let Some(pid) = charge.pid {
                self.tracker
                    .look_for(pid, &charge.owner, clock.boot, &mut self.effects);
            }
            if let Some(process) = charge.process {
                follow(&mut self.change_tracker, process);
                self.tracker.sampled(process);
            }
        }
        let accounts = self.ledger.accounts().len();
        let book = self.ledger.book_of(&window.gpu);
        let through = book.and_then(|book| self.ledger.books()[book].through);
        let gaps = self.ledger.mended().gaps;
        let (start, end) = (window.start, window.end);
        let unlisted = self.ledger.book(window, charges, clock);
        if let Some(book) = book {
            // A gap before the window is in the book, too.
            let is_mended = self.ledger.mended().gaps > gaps;
            let from = through.filter(|_| is_mended).unwrap_or(start);
            self.shares.account(book, from, end);
        }
        if self.ledger.accounts().len() > accounts {
            self.effects.ask(Effect::ReadLists);
        }
        unlisted
    }

    /// Splits a window's busy time into charges to owners.
    fn charges_of(&mut self, window: &GpuWindow) -> Vec<Charge> {
        let unread = Sharing::default();
        let book = self.ledger.book_of(&window.gpu);
        let device = book.and_then(|book| self.devices.get(book));
        let sharing = device.map_or(&unread, |device| &device.sharing);
        let is_instance = book.is_some_and(|book| self.is_instance(book));
        let mut lookup = self.tracker.lookup();
        if is_instance {
            sharing::charges_of_instance(window, sharing, &mut lookup)
        } else {
            attribute::charges(window, sharing, &mut lookup)
        }
    }

    /// Whether a GPU is a MIG instance.
    fn is_instance(&self, book: usize) -> bool {
        self.ledger.books()[book].gpu.mig.is_some()
    }

    /// Whether a window has to wait until the processes on its GPU are known. Its busy time comes
    /// without a process. A process may have come or gone since the process lists were last read, or
    /// events that a reading depends on have not been received yet.
    fn awaits_lists(&mut self, window: &GpuWindow) -> bool {
        let Some(book) = self.ledger.book_of(&window.gpu) else {
            return false;
        };
        let Some(device) = self.devices.get(book) else {
            return false;
        };
        let sharing = &device.sharing;
        if window.busy.is_zero() || !(self.is_instance(book) || sharing.has_servers()) {
            return false;
        }
        let lookup = self.tracker.lookup();
        let is_ahead = sharing.is_ahead(window.start, window.end, &lookup);
        let has_changed = sharing.has_changed(window.end, &lookup);
        if has_changed {
            self.effects.ask(Effect::ReadLists);
        }
        is_ahead || has_changed
    }

    /// The time at which an account is opened because of a process list or an accounting record of
    /// time `at`. Earlier windows may still wait and would charge the account, too. They begin
    /// where the book ends, so the account is opened there, or at `at` if that is earlier.
    fn opened_at(&self, book: usize, at: BootTime, clock: Clock) -> Clock {
        let book = &self.ledger.books()[book];
        match book.through {
            Some(through) => clock.at(through.min(at)),
            None => Clock {
                boot: at,
                wall: book.start,
            },
        }
    }

    fn refresh_names(&mut self, now: BootTime) {
        let round = naming::Round {
            now,
            grace: self.settings.policy.grace,
            askable: self.askable(),
        };
        let placements = self.tracker.placements();
        for ((_, owner), account) in self.ledger.accounts_mut() {
            if let Owner::Host(_) = owner {
                continue;
            }
            let id = match account.naming {
                Some(id) => id,
                None => self.naming.id_of(owner, now),
            };
            account.naming = Some(id);
            self.naming
                .settle(owner, id, placements, round, &mut self.effects);
        }
    }

    /// Which identity sources there are to ask.
    fn askable(&self) -> Askable {
        Askable {
            sources: self.sources.of_names(),
            for_pods: self.sources.can_ask_for_pods(),
        }
    }

    /// Shows what may be shown now of every account and of every namespace.
    fn publish(&mut self, clock: Clock) {
        let policy = &self.settings.policy;
        for ((book, owner), account) in self.ledger.accounts_mut() {
            if let Owner::Host(_) = owner {
                // A unit is its own name.
                let labels = match &account.named {
                    Some(series) => Arc::clone(&series.labels),
                    None => Arc::new(no_names(owner)),
                };
                publication::publish_named(account, &labels, policy, clock);
                continue;
            }
            let Some(known) = self.naming.of(account.naming) else {
                continue;
            };
            let is_new = account.named.is_none();
            publication::publish(account, known.attribution, &known.labels, policy, clock);
            // Also one that has used nothing yet opens its namespace's counter, so that it shows 0.
            let is_owed = is_new || account.fed != account.amounts;
            if is_owed && matches!(known.attribution, Attribution::Named { .. }) {
                let amounts = account.amounts.minus(account.fed);
                account.fed = account.amounts;
                let namespace = known.labels.namespace.clone();
                self.namespaces.add(*book, namespace, amounts, clock);
            }
        }
        self.namespaces.publish(policy, clock.boot);
    }

    /// Whether this commit closes accounts though their owners live: a GPU is gone, or was divided anew.
    fn closes_accounts_of_gpus(&self, now: BootTime) -> bool {
        let mut accounts = self.ledger.accounts().iter();
        self.ledger.books().iter().any(|book| book.is_gone(now))
            || accounts.any(|(_, account)| account.expired)
    }

    fn close_ended(&mut self, live: &HashSet<Owner>, clock: Clock) {
        for ((_, owner), account) in self.ledger.accounts_mut() {
            if live.contains(owner) {
                account.ended = None;
            } else {
                account.ended.get_or_insert(clock.boot);
            }
        }
        let policy = self.settings.policy;
        let books = self.ledger.books().iter();
        let books = books.map(|book| (book.is_gone(clock.boot), book.through));
        let books: Vec<(bool, Option<BootTime>)> = books.collect();
        self.close_accounts(clock, &|(book, _), account| {
            let (is_gone, through) = books[*book];
            // Kept open until the GPU's windows have passed the end: a late window would open it
            // again with the same start time, and its counters would fall. A GPU that never had a
            // window has no late one.
            let is_awaited = account
                .ended
                .is_some_and(|ended| through.is_some_and(|through| through < ended));
            let is_done = publication::is_done(account, &policy, clock) && !is_awaited;
            is_done || account.expired || is_gone
        });
        let owners = self.ledger.accounts().iter().map(|((_, owner), _)| owner);
        self.tracker.end_bindings(owners);
    }

    /// Closes accounts under an id that turned out to belong to another cgroup. What was billed to
    /// the former user of the id is recorded without a name.
    fn close_taken_over(&mut self, clock: Clock) {
        let taken = self.tracker.take_taken_over();
        if !taken.is_empty() {
            self.book_held(HeldTime::All, clock.boot);
            self.close_accounts(clock, &|(_, owner), _| taken.contains(owner));
        }
    }

    fn close_accounts(
        &mut self,
        clock: Clock,
        is_done: &dyn Fn(&(usize, Owner), &Account) -> bool,
    ) {
        // Adds the rest of an account that was never named to the namespace `(unresolved)`.
        let mut unsettled = Vec::new();
        let closed = self.ledger.close(clock.boot, &mut |key, account| {
            let done = is_done(key, account);
            let is_owed = !matches!(key.1, Owner::Host(_)) && account.fed != account.amounts;
            if done && is_owed {
                unsettled.push((key.0, account.amounts.minus(account.fed)));
            }
            done
        });
        let counted = closed.iter();
        let counted = counted.filter_map(|(_, account)| account.allocated_through);
        self.allocations.forget_counted(counted.max());
        self.keep_closed(&closed, clock.wall);
        for (book, amounts) in unsettled {
            self.namespaces.add(book, unresolved(), amounts, clock);
        }
        if !closed.is_empty() {
            let open: HashSet<&Owner> = self
                .ledger
                .accounts()
                .iter()
                .map(|((_, owner), _)| owner)
                .collect();
            self.naming.retain(&open);
            for device in self.devices.iter_mut() {
                device.holding.forget(&|owner| open.contains(owner));
            }
        }
    }

    fn forget_dead(&mut self, now: BootTime) {
        let books = || self.ledger.books().iter();
        let listed = books().filter(|book| book.missing.is_none());
        let passed = listed.filter_map(|book| book.through).min().unwrap_or(now);
        let has_windows = books().all(|book| book.through.is_some());
        self.tracker.forget_dead(passed, has_windows, now);
        if let Some(change_tracker) = &mut self.change_tracker {
            change_tracker.unfollow_forgotten(&self.tracker);
        }
    }
}

/// Has a process handed over to the store, if there is one.
fn follow(change_tracker: &mut Option<ChangeTracker>, process: ProcessId) {
    if let Some(change_tracker) = change_tracker {
        change_tracker.follow(process);
    }
}

/// Which held time is booked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HeldTime {
    /// That of GPUs on which something has happened.
    Due,
    /// All of it, because accounts are about to be closed or the agent ends.
    All,
}

/// Whether a window can be booked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Readiness {
    /// Everything that happened in it is known.
    Ready,
    /// Something may be missing, and it has waited for long enough.
    Overdue,
    /// It waits for the rest.
    Waits,
}

#[cfg(test)]
mod gap_tests;
#[cfg(test)]
mod jobs_tests;
#[cfg(test)]
mod tests;
