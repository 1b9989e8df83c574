//! Which GPUs, containers and processes `gpuacct status` shows, in which order, and how many.
//!
//! The same choice holds for the tables, for JSON and for YAML. In JSON and YAML the chosen elements
//! are those of the agent's own answer, so nothing is lost that a newer agent added.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use super::words::name;
use crate::commands::json::Json;
use crate::core::model::{GpuUuid, Nanos};
use crate::core::snapshot::{ContainerAccount, GpuProcessView, HostAccount, Snapshot};
use crate::outputs::socket::StatusReport;

/// What of the node is shown.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Selection {
    /// Only what belongs to these namespaces, with commas. Host units belong to none
    #[arg(short, long, value_name = "NAMESPACE", value_delimiter = ',')]
    pub namespace: Vec<String>,
    /// Only these GPUs, with commas: an index, or a UUID or the beginning of one
    #[arg(long, value_name = "GPU", value_delimiter = ',')]
    pub gpu: Vec<String>,
    /// The order of containers and host units [default: use; JSON and YAML keep the agent's order]
    #[arg(long, value_enum, value_name = "KEY")]
    pub sort_by: Option<Sort>,
    /// At most N containers, N host units and N processes
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
}

/// What is chosen cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum SelectionError {
    /// No GPU is called so.
    #[error("no GPU matches {pattern:?}; there are {known}")]
    Gpu {
        /// What was asked for.
        pattern: String,
        /// The GPUs that there are, by index and UUID.
        known: String,
    },
}

/// What containers and host units are sorted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Sort {
    /// Share of the GPU over the last ten seconds
    #[default]
    Use,
    /// Busy time
    Total,
    /// Device memory in use
    Memory,
    /// Name of the container or unit
    Name,
    /// Index of the GPU
    Gpu,
}

impl Sort {
    const ALL: [Self; 5] = [Self::Use, Self::Total, Self::Memory, Self::Name, Self::Gpu];

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Use => "use",
            Self::Total => "total",
            Self::Memory => "memory",
            Self::Name => "name",
            Self::Gpu => "gpu",
        }
    }

    pub(super) fn next(self) -> Self {
        let at = Self::ALL.iter().position(|sort| *sort == self);
        Self::ALL[at.map_or(0, |at| (at + 1) % Self::ALL.len())]
    }

    /// Compares two owners. Whoever uses more now goes first where they are equal.
    pub(super) fn compare(self, a: &SortKey<'_>, b: &SortKey<'_>) -> Ordering {
        let first = match self {
            Self::Use => Ordering::Equal,
            Self::Total => b.busy.cmp(&a.busy),
            Self::Memory => b.memory.cmp(&a.memory),
            Self::Name => a.name.cmp(&b.name),
            Self::Gpu => (a.index, a.gpu).cmp(&(b.index, b.gpu)),
        };
        first
            .then_with(|| b.share.total_cmp(&a.share))
            .then_with(|| b.busy.cmp(&a.busy))
            .then_with(|| a.id.cmp(b.id))
            .then_with(|| a.gpu.cmp(b.gpu))
    }
}

/// What an owner is sorted by.
#[derive(Debug)]
pub(super) struct SortKey<'a> {
    share: f64,
    busy: Nanos,
    memory: Option<u64>,
    name: String,
    index: Option<u32>,
    gpu: &'a GpuUuid,
    id: &'a str,
}

impl<'a> SortKey<'a> {
    /// The key of a container's account.
    pub(super) fn of_container(account: &'a ContainerAccount, snapshot: &Snapshot) -> Self {
        Self {
            share: account.share,
            busy: account.amounts.busy,
            memory: account.memory,
            name: name(account),
            index: index_of(&account.gpu, snapshot),
            gpu: &account.gpu,
            id: account.id.as_str(),
        }
    }

    /// The key of a host unit's account.
    pub(super) fn of_unit(account: &'a HostAccount, snapshot: &Snapshot) -> Self {
        Self {
            share: account.share,
            busy: account.amounts.busy,
            memory: account.memory,
            name: account.unit.to_string(),
            index: index_of(&account.gpu, snapshot),
            gpu: &account.gpu,
            id: account.unit.as_str(),
        }
    }
}

fn index_of(gpu: &GpuUuid, snapshot: &Snapshot) -> Option<u32> {
    let mut books = snapshot.gpus.iter();
    books
        .find(|book| book.gpu.uuid == *gpu)
        .map(|book| book.gpu.index)
}

/// Rows that `--limit` left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct LeftOut {
    pub(super) containers: usize,
    pub(super) units: usize,
    pub(super) processes: usize,
}

/// The places of what is chosen, in the order in which it is shown.
#[derive(Debug)]
pub(super) struct Chosen {
    /// Places in the arrays of the snapshot, by the names that these have in JSON.
    lists: Vec<(&'static str, Vec<usize>)>,
    /// Places in the list of processes.
    processes: Vec<usize>,
    /// What the limit left out.
    pub(super) left_out: LeftOut,
}

impl Selection {
    /// Finds what is chosen. Containers and host units are sorted if `is_sorted`, and wherever the user
    /// asks for an order or a limit.
    ///
    /// # Errors
    /// If a GPU is named that is not there.
    pub(super) fn choose(
        &self,
        report: &StatusReport,
        processes: &[GpuProcessView],
        is_sorted: bool,
    ) -> Result<Chosen, SelectionError> {
        let gpus = self.gpus(&report.snapshot)?;
        Ok(self.on(gpus, report, processes, is_sorted))
    }

    /// Finds what is chosen and there, sorted. A GPU that is named and not there has nothing on it.
    pub(super) fn choose_present(
        &self,
        report: &StatusReport,
        processes: &[GpuProcessView],
    ) -> Chosen {
        let gpus = self.gpu.iter().flat_map(|pattern| {
            let matching = matching(pattern, &report.snapshot).into_iter();
            matching.cloned()
        });
        let gpus = (!self.gpu.is_empty()).then(|| gpus.collect());
        self.on(gpus, report, processes, true)
    }

    /// Finds what is chosen on these GPUs, or on all.
    fn on(
        &self,
        gpus: Option<BTreeSet<GpuUuid>>,
        report: &StatusReport,
        processes: &[GpuProcessView],
        is_sorted: bool,
    ) -> Chosen {
        let snapshot = &report.snapshot;
        let on = |gpu: &GpuUuid| gpus.as_ref().is_none_or(|gpus| gpus.contains(gpu));
        let in_namespace = |namespace: &str| {
            self.namespace.is_empty() || self.namespace.iter().any(|wanted| wanted == namespace)
        };
        let is_unit_shown = self.namespace.is_empty();
        let mut accounts = kept(&snapshot.accounts, |account| {
            on(&account.gpu) && in_namespace(&account.labels.namespace)
        });
        let owners: BTreeSet<&str> = accounts
            .iter()
            .map(|at| snapshot.accounts[*at].id.as_str())
            .collect();
        let mut chosen_processes = kept(processes, |process| {
            let is_owned = is_unit_shown || owners.contains(&*process.owner);
            on(&process.gpu) && is_owned
        });
        let mut units = kept(&snapshot.host_accounts, |account| {
            on(&account.gpu) && is_unit_shown
        });
        if is_sorted || self.sort_by.is_some() || self.limit.is_some() {
            self.sort(&mut accounts, |at| {
                SortKey::of_container(&snapshot.accounts[at], snapshot)
            });
            self.sort(&mut units, |at| {
                SortKey::of_unit(&snapshot.host_accounts[at], snapshot)
            });
        }
        let left_out = LeftOut {
            containers: self.cut(&mut accounts),
            units: self.cut(&mut units),
            processes: self.cut(&mut chosen_processes),
        };
        let lists = vec![
            ("accounts", accounts),
            ("host_accounts", units),
            ("gpus", kept(&snapshot.gpus, |book| on(&book.gpu.uuid))),
            (
                "container_series",
                kept(&snapshot.container_series, |series| {
                    on(&series.gpu) && in_namespace(&series.labels.namespace)
                }),
            ),
            (
                "namespace_series",
                kept(&snapshot.namespace_series, |series| {
                    on(&series.gpu) && in_namespace(&series.namespace)
                }),
            ),
            (
                "host_series",
                kept(&snapshot.host_series, |series| {
                    on(&series.gpu) && is_unit_shown
                }),
            ),
            (
                "allocations",
                kept(&snapshot.allocations, |given| {
                    let mut on_gpus = given.devices.iter().flat_map(|device| &device.gpus);
                    in_namespace(&given.namespace) && (gpus.is_none() || on_gpus.any(on))
                }),
            ),
        ];
        Chosen {
            lists,
            processes: chosen_processes,
            left_out,
        }
    }

    /// The GPUs that are named; `None` if all are meant.
    fn gpus(&self, snapshot: &Snapshot) -> Result<Option<BTreeSet<GpuUuid>>, SelectionError> {
        if self.gpu.is_empty() {
            return Ok(None);
        }
        let mut chosen = BTreeSet::new();
        for pattern in &self.gpu {
            let matching = matching(pattern, snapshot);
            if matching.is_empty() {
                let books = snapshot.gpus.iter().map(|book| &book.gpu);
                let known: Vec<_> = books
                    .map(|gpu| format!("{} ({})", gpu.index, gpu.uuid))
                    .collect();
                return Err(SelectionError::Gpu {
                    pattern: pattern.clone(),
                    known: match known.is_empty() {
                        true => "none".to_owned(),
                        false => known.join(", "),
                    },
                });
            }
            chosen.extend(matching.into_iter().cloned());
        }
        Ok(Some(chosen))
    }

    fn sort<'a>(&self, places: &mut [usize], key: impl Fn(usize) -> SortKey<'a>) {
        let sort = self.sort_by.unwrap_or_default();
        let mut keyed: Vec<_> = places.iter().map(|at| (key(*at), *at)).collect();
        keyed.sort_by(|(a, _), (b, _)| sort.compare(a, b));
        for (place, (_, at)) in places.iter_mut().zip(keyed) {
            *place = at;
        }
    }

    /// Cuts a list to the limit, and returns by how much.
    fn cut(&self, places: &mut Vec<usize>) -> usize {
        let all = places.len();
        places.truncate(self.limit.unwrap_or(usize::MAX));
        all - places.len()
    }
}

/// The GPUs with this index, or if there are none, those whose UUID begins so.
fn matching<'a>(pattern: &str, snapshot: &'a Snapshot) -> Vec<&'a GpuUuid> {
    let index = pattern.parse().ok();
    let all = || snapshot.gpus.iter().map(|book| &book.gpu);
    let by_index: Vec<_> = all()
        .filter(|gpu| index == Some(gpu.index))
        .map(|gpu| &gpu.uuid)
        .collect();
    if !by_index.is_empty() {
        return by_index;
    }
    let uuids = all().map(|gpu| &gpu.uuid);
    uuids
        .filter(|uuid| begins_with(uuid.as_str(), pattern))
        .collect()
}

/// Whether a UUID begins with a pattern, with or without its prefix `GPU-` or `MIG-`.
fn begins_with(uuid: &str, pattern: &str) -> bool {
    let pattern = pattern.to_ascii_lowercase();
    let uuid = uuid.to_ascii_lowercase();
    let bare = uuid.split_once('-').map_or("", |(_, bare)| bare);
    !pattern.is_empty() && (uuid.starts_with(&pattern) || bare.starts_with(&pattern))
}

fn kept<T>(items: &[T], is_kept: impl Fn(&T) -> bool) -> Vec<usize> {
    let places = items.iter().enumerate();
    places
        .filter_map(|(at, item)| is_kept(item).then_some(at))
        .collect()
}

impl Chosen {
    /// The report with what is chosen.
    pub(super) fn report(&self, report: &StatusReport) -> StatusReport {
        let mut report = report.clone();
        let Snapshot {
            gpus,
            container_series,
            namespace_series,
            host_series,
            accounts,
            host_accounts,
            allocations,
            ..
        } = &mut report.snapshot;
        for (list, places) in &self.lists {
            match *list {
                "accounts" => pick(accounts, places),
                "host_accounts" => pick(host_accounts, places),
                "gpus" => pick(gpus, places),
                "container_series" => pick(container_series, places),
                "namespace_series" => pick(namespace_series, places),
                "host_series" => pick(host_series, places),
                _ => pick(allocations, places),
            }
        }
        report
    }

    /// The processes that are chosen.
    pub(super) fn processes(&self, processes: &[GpuProcessView]) -> Vec<GpuProcessView> {
        let mut processes = processes.to_vec();
        pick(&mut processes, &self.processes);
        processes
    }

    /// The agent's answer, and what it said of processes, with what is chosen.
    pub(super) fn json(&self, answer: &mut Json, processes: Option<&mut Json>) {
        if let Some(snapshot) = answer.get_mut("snapshot") {
            for (list, places) in &self.lists {
                if let Some(Json::List(items)) = snapshot.get_mut(list) {
                    pick(items, places);
                }
            }
        }
        if let Some(Json::List(items)) = processes {
            pick(items, &self.processes);
        }
    }
}

/// Keeps the items at these places, in the order of the places.
fn pick<T: Clone>(items: &mut Vec<T>, places: &[usize]) {
    let all = std::mem::take(items);
    items.extend(places.iter().filter_map(|at| all.get(*at).cloned()));
}
