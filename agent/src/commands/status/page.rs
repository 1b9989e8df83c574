//! The page of `gpuacct status`, section by section.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::figures::{bytes, duration, memory_of, share, short, sum, unknown};
use crate::commands::table::{Align, Table, WIDTH, wrap};
use crate::core::input::SampleClocks;
use crate::core::model::{BootTime, GpuUuid, NONE, Nanos, SourceState, UNRESOLVED};
use crate::core::snapshot::{
    AllocationState, Attribution, ContainerAccount, GpuProcessView, Snapshot,
};
use crate::outputs::socket::StatusReport;
use crate::published::AgentStatus;

/// The report as a page that fits [`WIDTH`] columns.
pub(super) fn table(report: &StatusReport, processes: Option<&[GpuProcessView]>) -> String {
    let snapshot = &report.snapshot;
    let indexes = indexes(snapshot);
    let index = |gpu: &GpuUuid| index_in(&indexes, gpu);

    let mut page = String::new();
    header(&mut page, report, &index);
    gpus(&mut page, snapshot);
    containers(&mut page, snapshot, &index);
    allocations(&mut page, snapshot, &index);
    host(&mut page, snapshot, &index);
    if let Some(processes) = processes {
        process_list(&mut page, processes, snapshot, &index);
    }
    coverage(&mut page, snapshot);
    sources(&mut page, &report.agent, report.now);
    let events = &snapshot.events;
    wrap(
        &mut page,
        &format!(
            "\nkernel events: {} seen, {} submitted, {} lost, {} undecodable, {} skipped",
            events.seen, events.submitted, events.lost, events.undecodable, events.skipped
        ),
        "  ",
    );
    page
}

/// NVML's numbers of the GPUs.
pub(super) fn indexes(snapshot: &Snapshot) -> BTreeMap<&GpuUuid, u32> {
    let books = snapshot.gpus.iter();
    books.map(|book| (&book.gpu.uuid, book.gpu.index)).collect()
}

/// A GPU's number, or its UUID where it is not listed any more.
pub(super) fn index_in(indexes: &BTreeMap<&GpuUuid, u32>, gpu: &GpuUuid) -> String {
    indexes
        .get(gpu)
        .map_or_else(|| gpu.to_string(), ToString::to_string)
}

pub(super) type Index<'a> = &'a dyn Fn(&GpuUuid) -> String;

/// How the agent is, in the first lines.
pub(super) fn header(page: &mut String, report: &StatusReport, index: Index<'_>) {
    let up = Nanos(
        report
            .now_wall
            .0
            .saturating_sub(report.snapshot.agent_started.0),
    );
    let state = if report.degraded.is_empty() {
        "healthy"
    } else {
        "degraded"
    };
    let up = match report.snapshot.sequence {
        0 => "starting".to_owned(),
        _ => format!("up {}", duration(up)),
    };
    wrap(
        page,
        &format!("gpuacct {}, {up}, {state}", report.version),
        "  ",
    );
    for reason in &report.degraded {
        wrap(page, &format!("  - {reason}"), "    ");
    }
    if report.snapshot.gpus.iter().any(|book| book.gpu.simulated) {
        page.push_str("the GPUs are simulated\n");
    }
    if let Some(blocked) = &report.nvml_blocked {
        let of = blocked
            .gpu
            .as_ref()
            .map_or_else(String::new, |gpu| format!(" on gpu {}", index(gpu)));
        wrap(
            page,
            &format!(
                "NVML call {}{of} has not returned for {}",
                blocked.call,
                duration(blocked.waited)
            ),
            "  ",
        );
    }
}

fn gpus(page: &mut String, snapshot: &Snapshot) {
    if snapshot.gpus.is_empty() {
        page.push_str("\nno GPU is known\n");
        return;
    }
    section(page, &gpu_table(snapshot));
    for book in &snapshot.gpus {
        if let Some(clocks) = &book.clocks {
            stamps(page, book.gpu.index, clocks);
        }
    }
}

/// Deviations of the driver's stamps and rows from NVML's documentation.
fn stamps(page: &mut String, gpu: u32, clocks: &SampleClocks) {
    if clocks.samples.is_unusual() || clocks.rows.is_unusual() || clocks.changes > 0 {
        let changes = match clocks.changes {
            0 => String::new(),
            1 => "; a clock changed once".to_owned(),
            changes => format!("; a clock changed {changes} times"),
        };
        let text = format!(
            "gpu {gpu}: samples are stamped by the clock {}, rows by {}{changes}",
            clocks.samples, clocks.rows
        );
        wrap(page, &text, "  ");
    }
    if let Some(empty) = &clocks.empty_call {
        let text = format!(
            "gpu {gpu}: {empty} succeeds without rows, {} is used",
            clocks.rows_call
        );
        wrap(page, &text, "  ");
    }
}

/// Each GPU with its book.
pub(super) fn gpu_table(snapshot: &Snapshot) -> Table {
    let mut table = Table::new(&[
        ("GPU", Align::Right),
        ("MODEL", Align::Flexible),
        ("UTIL", Align::Right),
        ("BUSY", Align::Right),
        ("IDLE", Align::Right),
        ("UNOBS.", Align::Right),
        ("NO OWNER", Align::Right),
        ("MEMORY", Align::Right),
    ]);
    for book in &snapshot.gpus {
        table.row([
            book.gpu.index.to_string(),
            book.gpu.model.to_string(),
            book.utilization.map_or_else(unknown, share),
            duration(book.busy),
            duration(book.idle),
            duration(sum(&book.unobserved)),
            duration(sum(&book.unattributed)),
            memory_of(book.memory_used, book.gpu.memory_total),
        ]);
    }
    table
}

fn containers(page: &mut String, snapshot: &Snapshot, index: Index<'_>) {
    if snapshot.accounts.is_empty() {
        page.push_str("\nno container has used a GPU\n");
        return;
    }
    let mut accounts: Vec<_> = snapshot.accounts.iter().collect();
    accounts.sort_by(|a, b| by_use(a, b));
    section(page, &container_table(&accounts, index));
}

/// Whoever uses most now goes first.
pub(super) fn by_use(a: &ContainerAccount, b: &ContainerAccount) -> Ordering {
    b.share
        .total_cmp(&a.share)
        .then(b.amounts.busy.cmp(&a.amounts.busy))
        .then(a.id.cmp(&b.id))
        .then(a.gpu.cmp(&b.gpu))
}

/// These accounts, in this order.
pub(super) fn container_table(accounts: &[&ContainerAccount], index: Index<'_>) -> Table {
    let mut table = Table::new(&[
        ("CONTAINER", Align::Flexible),
        ("GPU", Align::Right),
        ("NOW", Align::Right),
        ("TOTAL", Align::Right),
        ("MEMORY", Align::Right),
        ("STATE", Align::Left),
    ]);
    for account in accounts {
        let state = match (account.ended, account.attribution) {
            (_, Attribution::Held) => "held back".to_owned(),
            (_, Attribution::IdOnly { reason }) => format!("id only: {}", reason.as_str()),
            (true, Attribution::Named { .. }) => "ended".to_owned(),
            (false, Attribution::Named { .. }) => "named".to_owned(),
        };
        table.row([
            name(account),
            index(&account.gpu),
            share(account.share),
            duration(account.amounts.busy),
            account.memory.map_or_else(unknown, bytes),
            state,
        ]);
    }
    table
}

/// `namespace/pod/container`, or the runtime's name, or the id.
pub(super) fn name(account: &ContainerAccount) -> String {
    let labels = &account.labels;
    if &*labels.container == UNRESOLVED {
        // Runtimes show twelve digits of an id, and so it can be looked up there.
        let short = short(account.id.as_str());
        format!("{UNRESOLVED} {short}")
    } else if &*labels.namespace == NONE {
        labels.container.to_string()
    } else {
        format!("{}/{}/{}", labels.namespace, labels.pod, labels.container)
    }
}

/// Allocations of the kubelet, with their containers.
fn allocations(page: &mut String, snapshot: &Snapshot, index: Index<'_>) {
    if snapshot.allocations.is_empty() {
        return;
    }
    let mut table = Table::new(&[
        ("GIVEN BY THE KUBELET TO", Align::Flexible),
        ("GPU", Align::Right),
        ("RESOURCE", Align::Left),
        ("STATE", Align::Left),
    ]);
    for given in &snapshot.allocations {
        let mut gpus: Vec<String> = Vec::new();
        let mut resources: Vec<&str> = Vec::new();
        for device in &given.devices {
            let numbers = device.gpus.iter().map(index);
            gpus.extend(numbers.chain(device.gpus.is_empty().then(|| "?".to_owned())));
            resources.push(&device.resource);
        }
        gpus.sort();
        gpus.dedup();
        resources.sort_unstable();
        resources.dedup();
        let state = match given.state {
            AllocationState::Counting => "counting",
            AllocationState::Forgotten => "counting, not listed",
            AllocationState::Unconfirmed => "counting, not confirmed",
            AllocationState::NoContainer => "no container",
            AllocationState::Ended => "ended",
        };
        table.row([
            format!("{}/{}/{}", given.namespace, given.pod, given.container),
            gpus.join(","),
            resources.join(","),
            state.to_owned(),
        ]);
    }
    section(page, &table);
}

/// Host units with all that is booked to them, as of containers: what is published follows later.
fn host(page: &mut String, snapshot: &Snapshot, index: Index<'_>) {
    if snapshot.host_accounts.is_empty() {
        return;
    }
    let mut table = Table::new(&[
        ("HOST UNIT", Align::Flexible),
        ("GPU", Align::Right),
        ("NOW", Align::Right),
        ("TOTAL", Align::Right),
        ("MEMORY", Align::Right),
    ]);
    for account in &snapshot.host_accounts {
        table.row([
            account.unit.to_string(),
            index(&account.gpu),
            share(account.share),
            duration(account.amounts.busy),
            account.memory.map_or_else(unknown, bytes),
        ]);
    }
    section(page, &table);
}

fn process_list(
    page: &mut String,
    processes: &[GpuProcessView],
    snapshot: &Snapshot,
    index: Index<'_>,
) {
    if processes.is_empty() {
        page.push_str("\nno process uses a GPU\n");
        return;
    }
    let names: BTreeMap<&str, String> = snapshot
        .accounts
        .iter()
        .map(|account| (account.id.as_str(), name(account)))
        .collect();
    let mut table = Table::new(&[
        ("PID", Align::Right),
        ("GPU", Align::Right),
        ("NOW", Align::Right),
        ("MEMORY", Align::Right),
        ("STATE", Align::Left),
        ("OWNER", Align::Flexible),
    ]);
    for process in processes {
        table.row([
            process.pid.to_string(),
            index(&process.gpu),
            share(process.share),
            process.memory.map_or_else(unknown, bytes),
            if process.alive { "alive" } else { "gone" }.to_owned(),
            process.inner.iter().fold(
                names
                    .get(&*process.owner)
                    .cloned()
                    .unwrap_or_else(|| process.owner.to_string()),
                |owner, inner| format!("{owner} > {}", short(inner.as_str())),
            ),
        ]);
    }
    section(page, &table);
}

fn coverage(page: &mut String, snapshot: &Snapshot) {
    if snapshot.gpus.is_empty() {
        return;
    }
    let mut table = Table::new(&[
        ("GPU", Align::Right),
        ("LAST", Align::Right),
        ("BUSY", Align::Right),
        ("WITH OWNER", Align::Right),
        ("NO OWNER", Align::Flexible),
        ("NOT OBSERVED", Align::Flexible),
    ]);
    for book in &snapshot.gpus {
        let coverage = &book.coverage;
        let owned = if coverage.busy.is_zero() {
            unknown()
        } else {
            share(coverage.attributed.as_secs_f64() / coverage.busy.as_secs_f64())
        };
        table.row([
            book.gpu.index.to_string(),
            duration(coverage.elapsed),
            duration(coverage.busy),
            owned,
            reasons(coverage.unattributed.iter().map(|(r, n)| (r.as_str(), *n))),
            reasons(coverage.unobserved.iter().map(|(r, n)| (r.as_str(), *n))),
        ]);
    }
    section(page, &table);
}

fn reasons<'a>(amounts: impl Iterator<Item = (&'a str, Nanos)>) -> String {
    let mut amounts: Vec<_> = amounts.filter(|(_, amount)| !amount.is_zero()).collect();
    amounts.sort_by_key(|(_, amount)| std::cmp::Reverse(*amount));
    let words: Vec<_> = amounts
        .iter()
        .map(|(reason, amount)| format!("{reason} {}", duration(*amount)))
        .collect();
    if words.is_empty() {
        unknown()
    } else {
        words.join(", ")
    }
}

fn sources(page: &mut String, agent: &AgentStatus, now: BootTime) {
    if !agent.sources.is_empty() {
        section(page, &source_table(agent, now));
    }
}

/// Each source with its state.
pub(super) fn source_table(agent: &AgentStatus, now: BootTime) -> Table {
    let mut table = Table::new(&[
        ("SOURCE", Align::Left),
        ("STATE", Align::Left),
        ("FOR", Align::Right),
        ("WHERE AND WHY", Align::Flexible),
    ]);
    for health in &agent.sources {
        let mut detail = health.place.to_string();
        if let SourceState::Down {
            reason, next_retry, ..
        } = &health.state
        {
            let retry = match next_retry {
                Some(at) => format!("next try in {}", duration(at.since(now))),
                None => "not tried again".to_owned(),
            };
            let colon = if detail.is_empty() { "" } else { ": " };
            write!(detail, "{colon}{reason}, {retry}").expect("a String takes everything");
        }
        table.row([
            health.source.as_str().to_owned(),
            health.state.as_str().to_owned(),
            duration(now.since(health.since)),
            detail,
        ]);
    }
    table
}

fn section(page: &mut String, table: &Table) {
    page.push('\n');
    table.write(page, WIDTH);
}
