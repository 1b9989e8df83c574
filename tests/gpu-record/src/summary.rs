//! The facts of a visit in words, a section for each point that the documentation leaves open.

use std::fmt::{self, Write as _};

use crate::analysis::{Findings, in_host_namespace};
use crate::session::Visit;

/// The summary, in Markdown.
#[must_use]
pub fn text(visit: &Visit) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write(&mut out, visit);
    out
}

fn write(out: &mut String, visit: &Visit) -> fmt::Result {
    let findings = &visit.findings;
    machine(out, findings)?;
    open_points(out, findings)?;
    latencies(out, findings)?;
    booked(out, visit)?;
    agent(out, visit)
}

fn machine(out: &mut String, findings: &Findings) -> fmt::Result {
    let machine = &findings.machine;
    let said = |key: &str| machine[key].as_str().unwrap_or("(unknown)");
    writeln!(out, "# What NVML answered\n")?;
    writeln!(out, "- library: `{}`", said("library"))?;
    writeln!(out, "- driver: {}", said("driver"))?;
    if machine["simulated"] == true {
        writeln!(out, "- **simulated**: none of this is about a real GPU")?;
    }
    for (index, name) in &findings.gpus {
        writeln!(out, "- gpu {index}: {name}")?;
    }
    Ok(())
}

fn open_points(out: &mut String, findings: &Findings) -> fmt::Result {
    writeln!(out, "\n## 1. Do rows name the dead?\n")?;
    if findings.programs.is_empty() {
        writeln!(out, "Not settled: no load was run.")?;
    }
    for program in &findings.programs {
        let watched = seconds(program.watched_us);
        write!(out, "- pid {} ({}): ", program.pid, program.status)?;
        match (program.rows_while_running, program.rows_after_end_us) {
            (_, Some(after)) => writeln!(
                out,
                "yes, for {} s after its end, watched for {watched} s",
                seconds(after)
            )?,
            (true, None) => writeln!(out, "no, in none of {watched} s after its end")?,
            (false, None) => writeln!(out, "not settled: no row named it even while it ran")?,
        }
        let listed = program.listed_after_end_us.map(seconds);
        if let Some(listed) = listed {
            writeln!(out, "  - in the compute list for {listed} s after its end")?;
        }
    }

    writeln!(out, "\n## 2. What does the size query answer?\n")?;
    for query in &findings.size_queries {
        let about = if query.whole_ring {
            "whole ring"
        } else {
            "nothing newer"
        };
        writeln!(out, "- {about}: code {}, room {}", query.code, query.room)?;
    }
    if findings.size_queries.is_empty() {
        writeln!(out, "Not settled: it was not answered.")?;
    }

    let rounding = &findings.rounding;
    writeln!(out, "\n## 3. Floor or nearest?\n")?;
    writeln!(out, "{}\n", rounding.verdict())?;
    writeln!(
        out,
        "Brackets with one busy process that only floor explains: {}, only nearest: {}, both: {}, neither: {}; torn brackets: {}.",
        rounding.floor, rounding.nearest, rounding.both, rounding.neither, rounding.torn
    )?;

    writeln!(out, "\n## 4. Whom do rows name under MPS?\n")?;
    if findings.mps.is_empty() {
        writeln!(
            out,
            "Skipped: no MPS client ran, and none is started by a recording."
        )?;
    } else {
        let (named, all) = (findings.mps_with_rows.len(), findings.mps.len());
        writeln!(out, "Rows name {named} of {all} clients in the MPS list.")?;
    }

    writeln!(out, "\n## 5. Which version does the memory query take?\n")?;
    for (version, said) in &findings.memory_versions {
        writeln!(out, "- version {version:#010x}: {said}")?;
    }

    writeln!(out, "\n## 6. Is a pid in the compute and the MPS list?\n")?;
    if findings.mps.is_empty() {
        writeln!(out, "Skipped, as 4.")?;
    } else {
        let (both, all) = (findings.mps_and_compute.len(), findings.mps.len());
        writeln!(out, "{both} of {all} MPS clients are in both.")?;
    }

    writeln!(out, "\n## 7. How far does the ring reach back?\n")?;
    for (gpu, ring) in &findings.rings {
        writeln!(
            out,
            "- gpu {gpu}: {} samples over {} s; between two of them {} ms at the median, {} to {} ms",
            ring.capacity,
            seconds(ring.span_us),
            millis(ring.period_us),
            millis(ring.shortest_us),
            millis(ring.longest_us)
        )?;
    }

    writeln!(out, "\n## 9. Are pids translated?\n")?;
    let named = |rows: bool| {
        findings
            .programs
            .iter()
            .filter(|program| {
                if rows {
                    program.rows_while_running
                } else {
                    program.listed_while_running
                }
            })
            .count()
    };
    let all = findings.programs.len();
    let place = match in_host_namespace(&findings.machine) {
        Some(true) => "This ran in the host's pid namespace: nothing is to be translated.",
        Some(false) => "This ran in a pid namespace of its own.",
        None => "It is not known in which pid namespace this ran.",
    };
    writeln!(
        out,
        "{place} Of {all} programs, rows name {} and the compute list {} by the pid that they have here.",
        named(true),
        named(false)
    )
}

fn latencies(out: &mut String, findings: &Findings) -> fmt::Result {
    writeln!(out, "\n## 8. How long do calls take?\n")?;
    writeln!(out, "| call | calls | p50 µs | p99 µs | max µs |")?;
    writeln!(out, "|---|---:|---:|---:|---:|")?;
    for (call, latency) in &findings.latencies {
        writeln!(
            out,
            "| `{call}` | {} | {} | {} | {} |",
            latency.calls,
            millis(latency.p50_ns),
            millis(latency.p99_ns),
            millis(latency.max_ns)
        )?;
    }
    for (call, errors) in &findings.errors {
        for (error, count) in errors {
            writeln!(out, "\n`{call}` failed {count} times: {error}")?;
        }
    }
    Ok(())
}

fn booked(out: &mut String, visit: &Visit) -> fmt::Result {
    writeln!(out, "\n## Booked beside true\n")?;
    if visit.loads.is_empty() {
        return writeln!(out, "No load said what it did.");
    }
    writeln!(
        out,
        "What the floored rows of whole brackets add up to, beside what each load measured of itself.\n"
    )?;
    writeln!(out, "| recording | pid | true s | rows s |")?;
    writeln!(out, "|---|---:|---:|---:|")?;
    for (name, report) in &visit.loads {
        let rows = visit.findings.credited_ns.get(&u64::from(report.pid));
        let rows = rows.map_or_else(|| "(no row)".to_owned(), |rows| seconds(rows / 1_000));
        let busy = seconds(report.busy_ns / 1_000);
        writeln!(out, "| {name} | {} | {busy} | {rows} |", report.pid)?;
    }
    Ok(())
}

fn agent(out: &mut String, visit: &Visit) -> fmt::Result {
    writeln!(out, "\n## The agent\n")?;
    let Some(outcome) = &visit.agent else {
        return writeln!(out, "It was not run.");
    };
    match &outcome.ended_early {
        Some(how) => writeln!(out, "It ended by itself: {how}. The end of its log:")?,
        None => {
            for report in &visit.agent_loads {
                let busy = seconds(report.busy_ns / 1_000);
                writeln!(out, "- true: pid {} was busy for {busy} s", report.pid)?;
            }
            writeln!(out, "\nIt ran until it was ended.\n")?;
            writeln!(out, "```text\n{}\n```\n", outcome.status.trim_end())?;
            writeln!(out, "```text\n{}\n```", outcome.busy_lines.join("\n"))?;
            writeln!(out, "\nThe end of its log:")?;
        }
    }
    writeln!(out, "\n```text\n{}\n```", outcome.log_end.join("\n"))
}

/// Microseconds in seconds, to the millisecond.
fn seconds(us: u64) -> String {
    format!("{}.{:03}", us / 1_000_000, us / 1_000 % 1_000)
}

/// A thousandth of it, with the rest as decimals.
fn millis(us: u64) -> String {
    format!("{}.{:03}", us / 1_000, us % 1_000)
}
