//! `gpuacct status`: what the agent on this node knows now, for people and for programs.
//!
//! It asks the agent's local socket and prints. Exit code 0: healthy; 1: degraded, with the reasons
//! in the first lines; 2: no agent answers. The table fits 80 columns whatever the names; the JSON
//! is the agent's own answer, whole, in the units of the books (nanoseconds, bytes).

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use super::ask::{AskError, get, parse};
use super::table::{Align, Table, WIDTH, wrap};
use super::{complain, watch};
use crate::config::Span;
use crate::core::input::SampleClocks;
use crate::core::model::{BootTime, GpuUuid, NONE, Nanos, SourceState, UNRESOLVED};
use crate::core::snapshot::{
    AllocationState, Attribution, ContainerAccount, GpuProcessView, Snapshot,
};
use crate::outputs::socket::{DEFAULT_PATH, StatusReport};

/// Shows what the agent on this node knows now.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// For people (table) or for programs (json).
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
    /// Also list the processes that use a GPU.
    #[arg(long)]
    pub processes: bool,
    /// Show it again and again, every INTERVAL (2s unless given): a live view on a terminal, plain
    /// output elsewhere.
    #[arg(long, value_name = "INTERVAL", num_args = 0..=1, default_missing_value = "2s")]
    pub watch: Option<Span>,
    /// The agent's socket.
    #[arg(long, env = "GPUACCT_SOCKET", default_value = DEFAULT_PATH, value_name = "PATH")]
    pub socket: PathBuf,
}

/// How the answer is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// A table that fits 80 columns.
    Table,
    /// The agent's own answer.
    Json,
}

/// Asks the agent and prints its answer: 0 healthy, 1 degraded, 2 no agent.
pub async fn run(options: Options) -> ExitCode {
    if let Some(interval) = options.watch {
        return watch::run(&options, interval.0).await;
    }
    match answer(&options).await {
        Ok((text, healthy)) => {
            // Whoever reads may stop reading; the exit code still says what was found.
            drop(std::io::stdout().write_all(text.as_bytes()));
            if healthy {
                ExitCode::SUCCESS
            } else {
                ExitCode::from(1)
            }
        }
        Err(error) => complain(&error, 2),
    }
}

/// What there is to print, and whether the agent is healthy.
///
/// # Errors
/// If no agent answers, or not in a way that can be understood.
pub async fn answer(options: &Options) -> Result<(String, bool), AskError> {
    let status = "/v1/status";
    let json = get(&options.socket, status).await?;
    let report: StatusReport = parse(status, &json)?;
    let processes = match options.processes {
        false => None,
        true => Some(get(&options.socket, "/v1/processes").await?),
    };
    let text = match options.output {
        Output::Table => {
            let processes: Option<Vec<GpuProcessView>> = processes
                .map(|json| parse("/v1/processes", &json))
                .transpose()?;
            table(&report, processes.as_deref())
        }
        Output::Json => {
            // Not by way of this version's types: they might drop what a newer agent added.
            let mut value: serde_json::Value = parse(status, &json)?;
            if let (Some(json), Some(object)) = (processes, value.as_object_mut()) {
                object.insert("processes".to_owned(), parse("/v1/processes", &json)?);
            }
            format!("{value:#}\n")
        }
    };
    Ok((text, report.degraded.is_empty()))
}

/// The report as a page that fits [`WIDTH`] columns.
fn table(report: &StatusReport, processes: Option<&[GpuProcessView]>) -> String {
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
    sources(&mut page, snapshot, report.now);
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

/// What is unlike NVML's documentation about a driver's stamps and rows.
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

/// What the kubelet has given, and to whom.
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

/// As much of an id as people read.
fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
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

fn sources(page: &mut String, snapshot: &Snapshot, now: BootTime) {
    if !snapshot.sources.is_empty() {
        section(page, &source_table(snapshot, now));
    }
}

/// Each source with its state.
pub(super) fn source_table(snapshot: &Snapshot, now: BootTime) -> Table {
    let mut table = Table::new(&[
        ("SOURCE", Align::Left),
        ("STATE", Align::Left),
        ("FOR", Align::Right),
        ("WHERE AND WHY", Align::Flexible),
    ]);
    for health in &snapshot.sources {
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

fn sum<R>(amounts: &[(R, Nanos)]) -> Nanos {
    amounts.iter().map(|(_, amount)| *amount).sum()
}

pub(super) fn unknown() -> String {
    "-".to_owned()
}

/// A share as a percentage with one decimal.
pub(super) fn share(share: f64) -> String {
    format!("{:.1}%", share * 100.0)
}

/// An amount of time with the two units that matter.
pub(super) fn duration(amount: Nanos) -> String {
    let nanos = amount.0;
    let seconds = nanos / 1_000_000_000;
    match nanos {
        0 => "0s".to_owned(),
        1..1_000 => format!("{nanos}ns"),
        1_000..1_000_000 => format!("{}us", nanos / 1_000),
        1_000_000..1_000_000_000 => format!("{}ms", nanos / 1_000_000),
        1_000_000_000..60_000_000_000 => {
            format!("{seconds}.{}s", nanos / 100_000_000 % 10)
        }
        60_000_000_000..3_600_000_000_000 => format!("{}m {}s", seconds / 60, seconds % 60),
        3_600_000_000_000..86_400_000_000_000 => {
            format!("{}h {}m", seconds / 3_600, seconds / 60 % 60)
        }
        _ => format!("{}d {}h", seconds / 86_400, seconds / 3_600 % 24),
    }
}

const BYTE_UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

/// An amount of memory in the unit that fits.
pub(super) fn bytes(amount: u64) -> String {
    let unit = byte_unit(amount);
    format!("{} {}", in_unit(amount, unit), BYTE_UNITS[unit])
}

/// What is used of what there is, in one unit.
pub(super) fn memory_of(used: Option<u64>, size: Option<u64>) -> String {
    match (used, size) {
        (Some(used), Some(size)) => {
            let unit = byte_unit(size);
            let (used, size) = (in_unit(used, unit), in_unit(size, unit));
            format!("{used}/{size} {}", BYTE_UNITS[unit])
        }
        (Some(used), None) => bytes(used),
        (None, Some(size)) => format!("-/{}", bytes(size)),
        (None, None) => unknown(),
    }
}

/// The largest unit of which there is at least one.
fn byte_unit(amount: u64) -> usize {
    (1..BYTE_UNITS.len())
        .take_while(|unit| amount >> (10 * unit) > 0)
        .last()
        .unwrap_or(0)
}

fn in_unit(amount: u64, unit: usize) -> String {
    let tenths = (u128::from(amount) * 10) >> (10 * unit);
    match (unit, tenths) {
        (0, _) | (_, 1_000..) => (tenths / 10).to_string(),
        _ if tenths.is_multiple_of(10) => (tenths / 10).to_string(),
        _ => format!("{}.{}", tenths / 10, tenths % 10),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::{mpsc, watch};
    use unicode_width::UnicodeWidthStr as _;

    use super::*;
    use crate::core::model::{Clock, HostUnit, WallTime};
    use crate::core::snapshot::BlockedCall;
    use crate::outputs::condition::degraded;
    use crate::outputs::sample::{self, FIRST_GPU, NOW, golden};
    use crate::outputs::socket::{self, BlockedFor, Desk, Query};

    fn report(snapshot: Snapshot) -> StatusReport {
        StatusReport {
            version: "0.1.0".to_owned(),
            now: NOW,
            now_wall: WallTime(snapshot.wall.0 + 500_000_000),
            degraded: degraded(&snapshot, None, NOW),
            nvml_blocked: None,
            snapshot,
        }
    }

    #[test]
    fn the_page_of_the_sample() {
        let mut report = report(sample::snapshot());
        report.nvml_blocked = Some(BlockedFor {
            call: "nvmlDeviceGetProcessUtilization".into(),
            gpu: Some(FIRST_GPU.into()),
            waited: Nanos::from_millis(1_250),
        });
        golden("status.txt", &table(&report, Some(&sample::processes())));
    }

    #[test]
    fn the_page_of_an_agent_that_has_just_begun() {
        let page = table(&report(Snapshot::default()), Some(&[]));
        golden("status_starting.txt", &page);
    }

    #[test]
    fn an_allocation_that_the_kubelet_has_not_confirmed_is_told_as_such() {
        let mut snapshot = sample::snapshot();
        snapshot.allocations[0].state = AllocationState::Unconfirmed;
        let page = table(&report(snapshot), Some(&[]));
        assert!(page.contains("counting, not confirmed"), "{page}");
    }

    #[test]
    fn no_line_is_wider_than_a_terminal() {
        let mut snapshot = sample::snapshot();
        for account in &mut snapshot.accounts {
            account.labels.namespace = "namespace-".repeat(25).into();
            account.labels.pod = "pod-\u{1b}[31m日本語".repeat(25).into();
            account.labels.container = "container-".repeat(25).into();
            account.amounts.busy = Nanos(u64::MAX);
            account.memory = Some(u64::MAX);
        }
        for book in &mut snapshot.gpus {
            book.gpu.index = u32::MAX;
            book.gpu.model = "NVIDIA ".repeat(36).into();
            book.memory_used = Some(u64::MAX);
            book.gpu.memory_total = Some(u64::MAX);
            book.busy = Nanos(u64::MAX);
            book.imbalance = i64::MIN;
            for (_, amount) in &mut book.unattributed {
                *amount = Nanos(u64::MAX);
            }
            book.coverage.unattributed = book.unattributed.clone();
        }
        snapshot.host_accounts[0].unit = HostUnit::from("/a/b".repeat(99).as_str());
        snapshot.host_accounts[0].gpu = "GPU-that-is-not-listed-any-more".into();
        snapshot.host_accounts[0].amounts.busy = Nanos(u64::MAX);
        snapshot.host_accounts[0].memory = Some(u64::MAX);
        for health in &mut snapshot.sources {
            health.place = "/run/".repeat(50).into();
            health.state = SourceState::Down {
                class: "x".into(),
                reason: "because ".repeat(30).into(),
                next_retry: Some(BootTime::MAX),
            };
        }
        snapshot.events.seen = u64::MAX;
        snapshot.events.lost = u64::MAX;
        let page = table(&report(snapshot), Some(&sample::processes()));
        for line in page.lines() {
            assert!(line.width() <= WIDTH, "{} columns: {line}", line.width());
            assert!(!line.contains('\u{1b}'), "{line:?}");
        }
    }

    #[test]
    fn amounts_in_the_units_of_people() {
        let rows = [
            (0, "0s"),
            (999, "999ns"),
            (1_000, "1us"),
            (300_000_000, "300ms"),
            (59_999_999_999, "59.9s"),
            (60_000_000_000, "1m 0s"),
            (3_599_000_000_000, "59m 59s"),
            (5_400_000_000_000, "1h 30m"),
            (86_400_000_000_000, "1d 0h"),
            (u64::MAX, "213503d 23h"),
        ];
        for (nanos, expected) in rows {
            assert_eq!(duration(Nanos(nanos)), expected);
        }
        let rows = [
            (0, "0 B"),
            (1_023, "1023 B"),
            (1_024, "1 KiB"),
            (1_536, "1.5 KiB"),
            (100 << 20, "100 MiB"),
            ((100 << 20) + (1 << 19), "100 MiB"),
            (u64::MAX, "15.9 EiB"),
        ];
        for (amount, expected) in rows {
            assert_eq!(bytes(amount), expected);
        }
        assert_eq!(memory_of(Some(512 << 20), Some(141 << 30)), "0.5/141 GiB");
        assert_eq!(memory_of(None, Some(141 << 30)), "-/141 GiB");
        assert_eq!(memory_of(None, None), "-");
    }

    /// An agent in miniature: a socket, a snapshot, and a core that knows the sample's processes.
    async fn agent(
        snapshot: Snapshot,
    ) -> (tempfile::TempDir, Options, tokio::task::JoinHandle<()>) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("gpuacct.sock");
        let bound = socket::bind(&path).unwrap();
        let (queries, mut asked) = mpsc::channel(1);
        let (_, snapshots) = watch::channel(Arc::new(snapshot));
        let (_, blocked) = watch::channel(None::<BlockedCall>);
        let desk = Desk {
            snapshots,
            blocked,
            queries,
            counters: Arc::default(),
            log: Arc::default(),
            config: Arc::default(),
            clock: Arc::new(|| Clock {
                boot: NOW,
                wall: WallTime(1_790_000_000_750_000_000),
            }),
        };
        let task = tokio::spawn(async move {
            let core = async {
                while let Some(Query::Processes(answer)) = asked.recv().await {
                    answer.send(sample::processes()).unwrap();
                }
            };
            tokio::select! {
                () = core => {}
                served = socket::serve(bound, desk, std::future::pending()) => served.unwrap(),
            }
        });
        let options = Options {
            output: Output::Table,
            processes: true,
            watch: None,
            socket: path,
        };
        (directory, options, task)
    }

    #[tokio::test]
    async fn the_socket_tells_what_the_agent_knows() {
        let (_directory, options, task) = agent(sample::snapshot()).await;
        let (page, healthy) = answer(&options).await.unwrap();
        assert!(!healthy, "docker is down");
        assert!(page.contains("research/train-0/trainer"), "{page}");
        assert!(page.contains("4711"), "{page}");

        let options = Options {
            output: Output::Json,
            ..options
        };
        let (json, _) = answer(&options).await.unwrap();
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(value["snapshot"]["events"]["seen"], 123_456);
        assert_eq!(value["snapshot"]["gpus"][0]["busy"], 1_800_123_456_789_u64);
        assert_eq!(value["processes"][0]["pid"], 4_711);
        assert_eq!(value["nvml_blocked"], serde_json::Value::Null);
        assert_eq!(run(options.clone()).await, ExitCode::from(1));
        task.abort();
    }

    #[tokio::test]
    async fn a_healthy_agent_and_none_at_all() {
        let mut snapshot = sample::snapshot();
        snapshot.sources[3].state = SourceState::Absent;
        let (directory, options, task) = agent(snapshot).await;
        assert_eq!(run(options.clone()).await, ExitCode::SUCCESS);
        task.abort();
        assert!(task.await.expect_err("aborted").is_cancelled());

        let error = answer(&options).await.expect_err("no agent");
        assert!(matches!(error, AskError::NoAgent { .. }), "{error}");
        assert_eq!(run(options).await, ExitCode::from(2));
        drop(directory);
    }

    #[tokio::test]
    async fn an_agent_that_talks_nonsense_is_not_believed() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        type Expected = fn(&AskError) -> bool;
        let rows: [(&str, Expected); 4] = [
            ("not http at all\r\n\r\n", |error| {
                matches!(error, AskError::Connection { .. })
            }),
            ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", |error| {
                matches!(error, AskError::Format { .. })
            }),
            (
                "HTTP/1.1 503 Busy\r\ncontent-length: 13\r\n\r\n{\"error\":\"x\"}",
                |error| matches!(error, AskError::Refused { status: 503, reason, .. } if reason == "x"),
            ),
            ("HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{", |error| {
                matches!(error, AskError::Body { .. } | AskError::Connection { .. })
            }),
        ];
        let directory = tempfile::tempdir().unwrap();
        for (place, (reply, expected)) in rows.into_iter().enumerate() {
            let socket = directory.path().join(place.to_string());
            let listener = tokio::net::UnixListener::bind(&socket).unwrap();
            let options = Options {
                output: Output::Table,
                processes: false,
                watch: None,
                socket,
            };
            let (answer, ()) = tokio::join!(answer(&options), async {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    request.push(stream.read_u8().await.unwrap());
                }
                stream.write_all(reply.as_bytes()).await.unwrap();
                stream.shutdown().await.unwrap();
            });
            let error = answer.expect_err(reply);
            assert!(expected(&error), "{reply:?}: {error:?}");
        }
    }
}
