//! The snapshot of a commit, and the list of the processes that use a GPU.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::account::Account;
use crate::accountant::Accountant;
use crate::accounts::AccountKey;
use crate::cgroup_path::CgroupMeaning;
use crate::device::DeviceLists;
use crate::model::{
    BootTime, Clock, ContainerId, GpuUuid, Nanos, Owner, Pid, ProcessId, UNRESOLVED,
    UnattributedReason, none,
};
use crate::owners;
use crate::snapshot::{
    AgentBook, ContainerAccount, ContainerSeries, GpuBook, GpuProcessView, HostAccount, HostSeries,
    NamespaceSeries, Snapshot,
};
use crate::tables::HashMap;

impl Accountant {
    pub(super) fn snapshot(&mut self, clock: Clock) -> Snapshot {
        let imbalances = self.ledger.imbalances();
        self.counts.imbalances += u64::from(imbalances.iter().any(|difference| *difference != 0));
        let excesses = self.ledger.excesses(clock.boot);
        self.counts.excesses += u64::from(excesses.iter().any(|excess| !excess.is_zero()));
        self.sort_accounts();
        let mut pending = vec![Nanos::ZERO; self.ledger.books().len()];
        let shares = self.account_shares();
        self.devices.forget_old_lists(clock.boot);
        let mut snapshot = Snapshot {
            sequence: self.sequence,
            at: clock.boot,
            wall: clock.wall,
            agent_started: self.started.wall,
            events: self.tracker.events().counters(),
            allocations_known: self.allocations.is_known(),
            allocations: self.allocation_views(clock),
            xids: self.xid_series(),
            ..Snapshot::default()
        };
        snapshot.accounts.reserve(shares.len());
        snapshot.container_series.reserve(shares.len());
        for (((at, owner), account), share) in self.ledger.accounts().iter().zip(shares) {
            let gpu = &self.ledger.books()[*at].gpu.uuid;
            pending[*at] += account.amounts.minus(account.published()).busy;
            let lists = self.lists_of(*at);
            let memory = lists.and_then(|lists| lists.memory.get(owner)).copied();
            if let Owner::Host(unit) = owner {
                snapshot
                    .host_series
                    .extend(account.named.as_ref().map(|series| HostSeries {
                        unit: unit.clone(),
                        gpu: gpu.clone(),
                        start: series.counter.start,
                        amounts: series.counter.visible,
                    }));
                snapshot.host_accounts.push(HostAccount {
                    unit: unit.clone(),
                    gpu: gpu.clone(),
                    amounts: account.amounts,
                    share,
                    memory,
                });
                continue;
            }
            let Some(known) = self.naming.of(account.naming) else {
                continue;
            };
            for (series, is_current) in [
                (&account.id_only, account.named.is_none()),
                (&account.named, true),
            ] {
                snapshot
                    .container_series
                    .extend(series.as_ref().map(|series| ContainerSeries {
                        labels: Arc::clone(&series.labels),
                        gpu: gpu.clone(),
                        start: series.counter.start,
                        amounts: series.counter.visible,
                        engines: series.counter.engines.set(),
                        memory: memory.filter(|_| is_current),
                        memory_peak: account.memory_peak.filter(|_| is_current),
                        attribution: known.attribution,
                        image: Arc::clone(&known.image),
                        runtime: Arc::clone(&known.runtime),
                    }));
            }
            let (id, runtime_labels, own_name) = match owner {
                Owner::Container(id) => {
                    let (labels, own_name) = self.naming.directory().labels_and_own_name(id);
                    (id.clone(), labels.cloned().unwrap_or_default(), own_name)
                }
                Owner::Pod(_) | Owner::Host(_) => (ContainerId(none()), Arc::default(), None),
            };
            snapshot.accounts.push(ContainerAccount {
                labels: Arc::clone(&known.labels),
                id,
                gpu: gpu.clone(),
                attribution: known.attribution,
                amounts: account.amounts,
                share,
                memory,
                memory_peak: account.memory_peak,
                processes_started: account.processes_started,
                image: Arc::clone(&known.image),
                runtime: Arc::clone(&known.runtime),
                cgroup: self.tracker.placements().bound_cgroup(owner).cloned(),
                own_name,
                first_used: account.first_used,
                last_used: account.last_used,
                ended: account.ended.is_some(),
                runtime_labels,
            });
        }
        // An account that was named late has two series, each with labels of its own.
        snapshot
            .container_series
            .sort_by(|a, b| (&a.labels, &a.gpu).cmp(&(&b.labels, &b.gpu)));
        let namespaces = self.namespaces.iter();
        snapshot.namespace_series = namespaces
            .map(|(at, namespace, counter)| NamespaceSeries {
                namespace: Arc::clone(namespace),
                gpu: self.ledger.books()[at].gpu.uuid.clone(),
                start: counter.counter.start,
                amounts: counter.counter.visible,
            })
            .collect();
        snapshot.gpus = self
            .ledger
            .books()
            .iter()
            .enumerate()
            .zip(imbalances)
            .zip(excesses)
            .zip(pending)
            .map(|((((at, book), imbalance), excess), pending)| {
                let coverage = book.coverage();
                GpuBook {
                    gpu: book.gpu.clone(),
                    start: book.start,
                    elapsed: book.elapsed,
                    busy: book.busy,
                    idle: book.idle,
                    unobserved: book.unobserved.iter().map(|(r, n)| (*r, *n)).collect(),
                    unattributed: book.unattributed.iter().map(|(r, n)| (*r, *n)).collect(),
                    pending,
                    imbalance,
                    excess,
                    utilization: (!coverage.elapsed.is_zero())
                        .then(|| ratio(coverage.busy, coverage.elapsed)),
                    coverage,
                    memory_used: self.lists_of(at).and_then(|lists| lists.memory_used),
                    windows: book.windows,
                    torn_windows: book.torn_windows,
                    invalid_rows: book.invalid_rows,
                    cut: book.cut,
                    energy: book.energy,
                    accounting: book.accounting,
                    clocks: book.clocks.clone(),
                    // A GPU that was given back has none.
                    health: book
                        .is_listed
                        .then(|| self.healths.book(&book.gpu.uuid, clock.boot))
                        .flatten(),
                }
            })
            .collect();
        let (containers_held, containers_named, containers_id_only) = self.naming.counts();
        snapshot.agent = AgentBook {
            processes: self.tracker.processes().alive(),
            exited_processes: self.tracker.processes().exited(),
            cgroups: self.tracker.placements().cgroups(),
            table_overflows: self.tracker.overflows()
                + self.naming.directory().overflows()
                + self.ledger.overflows()
                + self.allocations.overflows()
                + self.not_followed()
                + self.namespaces.overflows()
                + self.xids.overflows(),
            containers_held,
            containers_named,
            containers_id_only,
            scans: self.tracker.scans(),
            named_late: self.naming.named_late(),
            names_dropped: self.naming.directory().names_dropped(),
            labels_dropped: self.naming.directory().labels_dropped(),
            identities_refused: self.naming.directory().refused(),
            identities_refused_of: self.naming.directory().refused_of(),
            cgroups_refused: self.tracker.placements().refusals(),
            gpu_opens: self.tracker.opens().opens(),
            gpu_opens_unsampled: self.tracker.opens().unsampled(),
            records_given_up: self.records_given_up(),
            windows_after_gap: self.ledger.mended().gaps,
            windows_cut: self.ledger.mended().overlaps,
            windows_refused: self.ledger.mended().refused,
            ..self.counts
        };
        snapshot
    }

    /// Puts the accounts in the order in which they are shown: host units first, by unit and GPU,
    /// then containers by their labels and GPU.
    fn sort_accounts(&mut self) {
        let naming = &self.naming;
        self.ledger
            .sort_accounts(|books, (one, account), (other, other_account)| {
                let labels =
                    |account: &Account| naming.of(account.naming).map(|known| &known.labels);
                let gpu = |key: &AccountKey| &books[key.0].gpu.uuid;
                labels(account)
                    .cmp(&labels(other_account))
                    .then_with(|| match (&one.1, &other.1) {
                        (Owner::Host(one), Owner::Host(other)) => one.cmp(other),
                        (Owner::Host(_), _) => Ordering::Less,
                        (_, Owner::Host(_)) => Ordering::Greater,
                        _ => Ordering::Equal,
                    })
                    .then_with(|| gpu(one).cmp(gpu(other)))
            });
    }

    /// Each account's share of its GPU over the last ten seconds, in the order of the accounts.
    fn account_shares(&self) -> Vec<f64> {
        let accounts = self.ledger.accounts();
        let mut shares = vec![0.0; accounts.len()];
        for (at, book) in self.ledger.books().iter().enumerate() {
            let (span, charges) = book.recent();
            for charge in charges {
                let owner = charge.owner.as_ref().ok();
                if let Some(position) = owner.and_then(|owner| accounts.position(at, owner)) {
                    shares[position] += ratio(charge.busy, span);
                }
            }
        }
        shares
    }

    /// The newest process lists of a GPU, by its book.
    pub(super) fn lists_of(&self, book: usize) -> Option<&DeviceLists> {
        self.devices.get(book)?.lists.as_ref()
    }

    /// The containers inside the owner in which a process runs.
    fn inside_owner(&mut self, view: &GpuProcessView) -> Vec<ContainerId> {
        let place = view.start.and_then(|start| {
            let pid = view.pid;
            self.tracker.processes().placement(ProcessId { pid, start })
        });
        match place.and_then(|place| self.tracker.owner(place)) {
            Some((Owner::Container(charged), CgroupMeaning::Container(cgroup))) => {
                let ids = cgroup.chain().map(|container| &container.id);
                let inner = ids.skip_while(|id| *id != charged).skip(1);
                inner.cloned().collect()
            }
            _ => Vec::new(),
        }
    }

    /// The processes that use a GPU now or did within the last ten seconds.
    #[must_use]
    pub fn gpu_processes(&mut self, now: BootTime) -> Vec<GpuProcessView> {
        let mut lookup = self.tracker.lookup();
        let mut views = BTreeMap::<(GpuUuid, Pid), GpuProcessView>::new();
        let mut owners = HashMap::<(GpuUuid, Pid), Result<Owner, UnattributedReason>>::default();
        for book in self.ledger.books() {
            let (span, charges) = book.recent();
            for charge in charges {
                let Some(pid) = charge.pid else { continue };
                let key = (book.gpu.uuid.clone(), pid);
                owners.insert(key.clone(), charge.owner.clone());
                let view = views.entry(key).or_insert_with(|| GpuProcessView {
                    pid,
                    start: charge.process.map(|process| process.start),
                    gpu: book.gpu.uuid.clone(),
                    owner: "".into(),
                    inner: Vec::new(),
                    alive: false,
                    share: 0.0,
                    memory: None,
                });
                view.share += ratio(charge.busy, span);
            }
        }
        for (book, device) in self.ledger.books().iter().zip(self.devices.iter()) {
            let gpu = &book.gpu.uuid;
            for process in device.lists.iter().flat_map(|lists| &lists.processes) {
                let key = (gpu.clone(), process.pid);
                let (found, owner) = owners::owner_of(process.pid, now, now, &mut lookup);
                owners.entry(key.clone()).or_insert(owner);
                let view = views.entry(key).or_insert_with(|| GpuProcessView {
                    pid: process.pid,
                    start: found.map(|process| process.start),
                    gpu: gpu.clone(),
                    owner: "".into(),
                    inner: Vec::new(),
                    alive: false,
                    share: 0.0,
                    memory: None,
                });
                view.memory = process.memory;
            }
        }
        for view in views.values_mut() {
            view.inner = self.inside_owner(view);
        }
        views
            .into_iter()
            .map(|(key, mut view)| {
                view.owner = match owners.get(&key) {
                    Some(Ok(Owner::Container(id))) => Arc::clone(&id.0),
                    Some(Ok(Owner::Pod(uid))) => format!("pod {uid}").into(),
                    Some(Ok(Owner::Host(unit))) => Arc::clone(&unit.0),
                    Some(Err(reason)) => format!("({})", reason.as_str()).into(),
                    None => UNRESOLVED.into(),
                };
                view.alive = view.start.is_some_and(|start| {
                    self.tracker.processes().is_alive(ProcessId {
                        pid: view.pid,
                        start,
                    })
                });
                view
            })
            .collect()
    }
}

/// A part of a whole, from 0 to 1; 0 where the whole is nothing.
pub(super) fn ratio(part: Nanos, whole: Nanos) -> f64 {
    if whole.is_zero() {
        0.0
    } else {
        part.as_secs_f64() / whole.as_secs_f64()
    }
}
