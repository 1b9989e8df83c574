//! The page of `gpuacct status`, section by section.

use super::selection::LeftOut;
use super::words::{Indexes, name, names, owner, remarks, uptime};
use crate::commands::table::{Align, Table, WIDTH, wrap_at};
use crate::core::input::SampleClocks;
use crate::core::model::{Nanos, WallTime};
use crate::core::snapshot::{AllocationState, ContainerAccount, GpuProcessView, Snapshot};
use crate::figures::{bytes, duration, energy, memory_of, share, short, sum, unknown};
use crate::outputs::gpu_status::troubles;
use crate::outputs::socket::StatusReport;
use crate::words::{place_and_reason, state};

/// How wide the page is, and what it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// The width that no line exceeds.
    pub(super) width: usize,
    /// Whether there are columns of less importance.
    pub(super) is_wide: bool,
    /// Whether tables have the names of their columns.
    pub(super) has_headings: bool,
    /// Rows that are left out, which the page says.
    pub(super) left_out: LeftOut,
}

impl Shape {
    /// A page that fits [`WIDTH`] columns.
    pub(super) const NARROW: Self = Self {
        width: WIDTH,
        is_wide: false,
        has_headings: true,
        left_out: LeftOut {
            containers: 0,
            units: 0,
            processes: 0,
        },
    };
    /// A page as wide as it is.
    pub(super) const WIDE: Self = Self {
        width: usize::MAX,
        is_wide: true,
        ..Self::NARROW
    };
}

/// The report as a page. Accounts and processes keep their order.
pub(super) fn table(
    report: &StatusReport,
    processes: Option<&[GpuProcessView]>,
    shape: Shape,
) -> String {
    let mut page = Page {
        text: String::new(),
        shape,
        report,
        indexes: Indexes::of(&report.snapshot),
    };
    page.header();
    page.gpus();
    page.containers();
    page.allocations();
    page.host();
    if let Some(processes) = processes {
        page.processes(processes);
    }
    page.coverage();
    page.sources();
    let events = &report.snapshot.events;
    page.wrap(
        &format!(
            "\nkernel events: {} seen, {} submitted, {} lost, {} undecodable, {} skipped",
            events.seen, events.submitted, events.lost, events.undecodable, events.skipped
        ),
        "  ",
    );
    page.text
}

/// A page that is being written, section by section.
struct Page<'a> {
    text: String,
    shape: Shape,
    report: &'a StatusReport,
    indexes: Indexes,
}

impl Page<'_> {
    fn wrap(&mut self, text: &str, indent: &str) {
        wrap_at(&mut self.text, text, indent, self.shape.width);
    }

    fn section(&mut self, table: Table) {
        self.text.push('\n');
        let table = table.heading(self.shape.has_headings);
        table.write(&mut self.text, self.shape.width);
    }

    fn left_out(&mut self, count: usize, of: &str) {
        if count > 0 {
            self.wrap(&format!("and {count} more {of}"), "  ");
        }
    }

    /// How the agent is, in the first lines.
    fn header(&mut self) {
        let report = self.report;
        let state = if report.degraded.is_empty() {
            "healthy"
        } else {
            "degraded"
        };
        let up = uptime(report);
        self.wrap(&format!("gpuacct {}, {up}, {state}", report.version), "  ");
        for reason in &report.degraded {
            self.wrap(&format!("  - {reason}"), "    ");
        }
        for remark in remarks(report, &self.indexes) {
            self.wrap(&remark, "  ");
        }
    }

    fn gpus(&mut self) {
        let snapshot = &self.report.snapshot;
        if snapshot.gpus.is_empty() {
            self.text.push_str("\nno GPU is known\n");
            return;
        }
        self.section(gpu_table(snapshot, self.shape.is_wide));
        for book in &snapshot.gpus {
            for (_, trouble) in troubles(book, &snapshot.xids, self.report.now_wall) {
                self.wrap(&format!("gpu {}: {trouble}", book.gpu.index), "  ");
            }
            if let Some(clocks) = &book.clocks {
                self.stamps(book.gpu.index, clocks);
            }
        }
    }

    /// Deviations of the driver's stamps and rows from NVML's documentation.
    fn stamps(&mut self, gpu: u32, clocks: &SampleClocks) {
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
            self.wrap(&text, "  ");
        }
        if let Some(empty) = &clocks.empty_call {
            let text = format!(
                "gpu {gpu}: {empty} succeeds without rows, {} is used",
                clocks.rows_call
            );
            self.wrap(&text, "  ");
        }
    }

    fn containers(&mut self) {
        if self.report.snapshot.accounts.is_empty() {
            self.text.push_str("\nno container has used a GPU\n");
        } else {
            self.section(container_table(
                self.report,
                &self.indexes,
                self.shape.is_wide,
            ));
        }
        self.left_out(self.shape.left_out.containers, "containers");
    }

    /// Allocations of the kubelet, with their containers.
    fn allocations(&mut self) {
        let allocations = &self.report.snapshot.allocations;
        if allocations.is_empty() {
            return;
        }
        let mut table = Table::new(&[
            ("GIVEN BY THE KUBELET TO", Align::Flexible),
            ("GPU", Align::Right),
            ("RESOURCE", Align::Left),
            ("STATE", Align::Left),
        ]);
        for given in allocations {
            let mut gpus: Vec<String> = Vec::new();
            let mut resources: Vec<&str> = Vec::new();
            for device in &given.devices {
                let numbers = device.gpus.iter().map(|gpu| self.indexes.name(gpu));
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
        self.section(table);
    }

    /// Host units with all that is booked to them, as of containers: what is published follows later.
    fn host(&mut self) {
        let accounts = &self.report.snapshot.host_accounts;
        if !accounts.is_empty() {
            let mut table = Table::new(&[
                ("HOST UNIT", Align::Flexible),
                ("GPU", Align::Right),
                ("NOW", Align::Right),
                ("TOTAL", Align::Right),
                ("MEMORY", Align::Right),
            ]);
            for account in accounts {
                table.row([
                    account.unit.to_string(),
                    self.indexes.name(&account.gpu),
                    share(account.share),
                    duration(account.amounts.busy),
                    account.memory.map_or_else(unknown, bytes),
                ]);
            }
            self.section(table);
        }
        self.left_out(self.shape.left_out.units, "host units");
    }

    fn processes(&mut self, processes: &[GpuProcessView]) {
        if processes.is_empty() {
            self.text.push_str("\nno process uses a GPU\n");
        } else {
            let names = names(&self.report.snapshot);
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
                    self.indexes.name(&process.gpu),
                    share(process.share),
                    process.memory.map_or_else(unknown, bytes),
                    if process.alive { "alive" } else { "gone" }.to_owned(),
                    owner(process, &names),
                ]);
            }
            self.section(table);
        }
        self.left_out(self.shape.left_out.processes, "processes");
    }

    fn coverage(&mut self) {
        let books = &self.report.snapshot.gpus;
        if books.is_empty() {
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
        for book in books {
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
        self.section(table);
    }

    /// Each source with its state.
    fn sources(&mut self) {
        let sources = &self.report.agent.sources;
        if sources.is_empty() {
            return;
        }
        let mut table = Table::new(&[
            ("SOURCE", Align::Left),
            ("STATE", Align::Left),
            ("FOR", Align::Right),
            ("WHERE AND WHY", Align::Flexible),
        ]);
        let now = self.report.now;
        for health in sources {
            table.row([
                health.source.as_str().to_owned(),
                health.state.as_str().to_owned(),
                duration(now.since(health.since)),
                place_and_reason(&health.place, &health.state, now),
            ]);
        }
        self.section(table);
    }
}

/// Each GPU with its book.
fn gpu_table(snapshot: &Snapshot, is_wide: bool) -> Table {
    let mut columns = vec![
        ("GPU".to_owned(), Align::Right),
        ("MODEL".to_owned(), Align::Flexible),
        ("UTIL".to_owned(), Align::Right),
        ("BUSY".to_owned(), Align::Right),
        ("IDLE".to_owned(), Align::Right),
        ("UNOBS.".to_owned(), Align::Right),
        ("NO OWNER".to_owned(), Align::Right),
        ("MEMORY".to_owned(), Align::Right),
    ];
    if is_wide {
        columns.push(("ENERGY".to_owned(), Align::Right));
        columns.push(("DRIVER".to_owned(), Align::Left));
        columns.push(("UUID".to_owned(), Align::Left));
    }
    let mut table = Table::of(columns).optional(&[("IDLE", 10), ("NO OWNER", 10), ("UNOBS.", 10)]);
    for book in &snapshot.gpus {
        let mut row = vec![
            book.gpu.index.to_string(),
            book.gpu.model.to_string(),
            book.utilization.map_or_else(unknown, share),
            duration(book.busy),
            duration(book.idle),
            duration(sum(&book.unobserved)),
            duration(sum(&book.unattributed)),
            memory_of(book.memory_used, book.gpu.memory_total),
        ];
        if is_wide {
            row.push(book.energy.map_or_else(unknown, |book| energy(book.total)));
            row.push(book.gpu.driver.to_string());
            row.push(book.gpu.uuid.to_string());
        }
        table.row_of(row);
    }
    table
}

/// Columns of containers that are of less importance, for the wide table and the live view.
pub(super) const MORE_COLUMNS: [(&str, Align); 8] = [
    ("PEAK", Align::Right),
    ("HELD", Align::Right),
    ("GIVEN", Align::Right),
    ("PROCESSES", Align::Right),
    ("LAST USED", Align::Right),
    ("RUNTIME", Align::Left),
    ("ID", Align::Left),
    ("IMAGE", Align::Flexible),
];

/// The cells of these columns.
pub(super) fn more_cells(account: &ContainerAccount, now: WallTime) -> [String; 8] {
    let used = account.last_used.map_or_else(unknown, |at| {
        format!("{} ago", duration(Nanos(now.0.saturating_sub(at.0))))
    });
    [
        account.memory_peak.map_or_else(unknown, bytes),
        duration(account.amounts.held),
        duration(account.amounts.allocated),
        account.processes_started.to_string(),
        used,
        account.runtime.to_string(),
        short(account.id.as_str()).to_owned(),
        account.image.to_string(),
    ]
}

/// The containers in their order.
fn container_table(report: &StatusReport, indexes: &Indexes, is_wide: bool) -> Table {
    let mut columns = vec![
        ("CONTAINER", Align::Flexible),
        ("GPU", Align::Right),
        ("NOW", Align::Right),
        ("TOTAL", Align::Right),
        ("MEMORY", Align::Right),
        ("STATE", Align::Left),
    ];
    if is_wide {
        columns.extend(MORE_COLUMNS);
    }
    let mut table = Table::new(&columns).optional(&[("STATE", 10), ("MEMORY", 10)]);
    for account in &report.snapshot.accounts {
        let mut row = vec![
            name(account),
            indexes.name(&account.gpu),
            share(account.share),
            duration(account.amounts.busy),
            account.memory.map_or_else(unknown, bytes),
            state(account),
        ];
        if is_wide {
            row.extend(more_cells(account, report.now_wall));
        }
        table.row_of(row);
    }
    table
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
