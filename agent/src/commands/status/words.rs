//! How owners, GPUs and states are called, on the page and in the live view.

use std::collections::BTreeMap;

use crate::core::model::{GpuUuid, SourceState};
use crate::core::snapshot::{ContainerAccount, GpuProcessView, Snapshot};
use crate::figures::{duration, short};
use crate::outputs::socket::StatusReport;
use crate::published::AgentStatus;
use crate::words;

/// NVML's numbers of the GPUs.
#[derive(Clone, Debug, Default)]
pub(super) struct Indexes(BTreeMap<GpuUuid, u32>);

impl Indexes {
    pub(super) fn of(snapshot: &Snapshot) -> Self {
        let books = snapshot.gpus.iter();
        let numbers = books.map(|book| (book.gpu.uuid.clone(), book.gpu.index));
        Self(numbers.collect())
    }

    /// A GPU's number, or the beginning of its UUID where it is not listed any more.
    pub(super) fn name(&self, gpu: &GpuUuid) -> String {
        self.0
            .get(gpu)
            .map_or_else(|| short(gpu.as_str()).to_owned(), ToString::to_string)
    }
}

/// `namespace/pod/container`, or the runtime's name, or the id.
pub(super) fn name(account: &ContainerAccount) -> String {
    words::container(&account.labels, account.id.as_str())
}

/// The names of the containers by id.
pub(super) fn names(snapshot: &Snapshot) -> BTreeMap<&str, String> {
    let accounts = snapshot.accounts.iter();
    accounts
        .map(|account| (account.id.as_str(), name(account)))
        .collect()
}

/// A process's owner, and the containers inside it in which the process runs.
pub(super) fn owner(process: &GpuProcessView, names: &BTreeMap<&str, String>) -> String {
    let owner = names.get(&*process.owner).cloned();
    let owner = owner.unwrap_or_else(|| process.owner.to_string());
    process.inner.iter().fold(owner, |owner, inner| {
        format!("{owner} > {}", short(inner.as_str()))
    })
}

/// For how long the agent has been running.
pub(super) fn uptime(report: &StatusReport) -> String {
    words::uptime(&report.snapshot, report.now_wall)
}

/// What else is to be known of the agent at once, a line each.
pub(super) fn remarks(report: &StatusReport, indexes: &Indexes) -> Vec<String> {
    let mut remarks = Vec::new();
    if report.snapshot.gpus.iter().any(|book| book.gpu.simulated) {
        remarks.push("the GPUs are simulated".to_owned());
    }
    if let Some(blocked) = &report.nvml_blocked {
        let of = blocked.gpu.as_ref();
        let of = of.map_or_else(String::new, |gpu| format!(" on gpu {}", indexes.name(gpu)));
        remarks.push(format!(
            "NVML call {}{of} has not returned for {}",
            blocked.call,
            duration(blocked.waited)
        ));
    }
    remarks
}

/// How many sources are in which state, those that are down first: `13 sources, all up`.
pub(super) fn sources_in_short(agent: &AgentStatus) -> String {
    let all = agent.sources.len();
    let mut counts: BTreeMap<(bool, &str), usize> = BTreeMap::new();
    for health in &agent.sources {
        let is_down = matches!(health.state, SourceState::Down { .. });
        *counts.entry((!is_down, health.state.as_str())).or_default() += 1;
    }
    let noun = if all == 1 { "source" } else { "sources" };
    if counts.keys().all(|(_, state)| *state == "up") {
        return format!("{all} {noun}, all up");
    }
    // `up` after `down`, before what is absent or disabled.
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|((is_well, state), _)| (*is_well, *state != "up", *state));
    let counts: Vec<_> = counts
        .into_iter()
        .map(|((_, state), count)| format!("{count} {state}"))
        .collect();
    format!("{all} {noun}: {}", counts.join(", "))
}
