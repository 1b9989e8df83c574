//! How long `gpuacct report` takes over a day in which 10,000 accounts were opened and closed, while
//! the writer has the ledger open.
//!
//! What is measured is the command as it is typed, from its start to its end: the process, the file,
//! the sums and the printing.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gpuacct::core::amounts::{Amounts, ByteSeconds, Millijoules};
use gpuacct::core::model::{Nanos, UnattributedReason, WallTime};
use gpuacct_tests::agent;
use gpuacct_tests::ledger::{Past, Payer};

use crate::report::{Row, megabytes, percentile};
use crate::{Bench, pause};

/// Accounts that are closed in each hour, and how many hours there are.
const CLOSED_EACH_HOUR: usize = 417;
const HOURS: usize = 24;
const GPUS: usize = 8;
/// Accounts that stay open: an agent with as many is a busy one.
const OPEN: usize = 500;
/// Times that each report is made.
const RUNS: usize = 25;
const GOAL: Duration = Duration::from_millis(200);

pub(crate) fn report(bench: &Bench) -> Result<Vec<Row>> {
    let store = bench.dir("report")?;
    let day: jiff::Timestamp = "2026-01-30T00:00:00Z".parse()?;
    let begin = WallTime(u64::try_from(day.as_nanosecond())?);
    let mut past = Past::begin(&store, begin, &["NVIDIA A100-SXM4-80GB"; GPUS])?;
    let closed = write(&mut past)?;
    let file = std::fs::metadata(store.join("gpuacct.db"))?.len();
    let log = std::fs::metadata(store.join("gpuacct.db-wal"))?.len();

    let mut rows = vec![Row::new(
        "closed accounts in a day; open ones; hours of accounts; GPUs",
        format!("{closed}; {OPEN}; {}; {GPUS}", 2 * closed + OPEN * HOURS),
    )];
    rows.push(Row::new(
        "— the ledger; its log",
        format!(
            "{:.1} MB; {:.1} MB",
            megabytes(file / 1_024),
            megabytes(log / 1_024)
        ),
    ));
    let range = ["--since", "2026-01-30", "--until", "2026-01-31"];
    for (by, output) in [
        ("namespace", "table"),
        ("namespace,pod,container", "json"),
        ("namespace,pod,container,gpu,hour", "csv"),
        ("label:team,day", "ndjson"),
    ] {
        let mut times = Vec::with_capacity(RUNS);
        let mut printed = 0;
        // The first is not counted: the file is not in memory before it.
        for run in 0..=RUNS {
            pause(Duration::ZERO)?;
            let mut command = Command::new(agent::binary()?);
            command.arg("report").args(range).arg("--store").arg(&store);
            command
                .args(["--by", by, "--output", output])
                .stdin(Stdio::null());
            let began = Instant::now();
            let output = command.output().context("cannot run the report")?;
            let took = began.elapsed();
            ensure!(output.status.success(), "the report failed: {output:?}");
            printed = output.stdout.len();
            if run > 0 {
                times.push(took);
            }
        }
        times.sort();
        let (median, most) = (percentile(&times, 50), percentile(&times, 100));
        rows.push(
            Row::new(
                format!("`report --by {by} -o {output}`, median (longest) of {RUNS}; bytes"),
                format!(
                    "{:.0} ms ({:.0} ms); {printed}",
                    median.as_secs_f64() * 1e3,
                    most.as_secs_f64() * 1e3
                ),
            )
            .goal("≤ 200 ms", median <= GOAL),
        );
    }
    past.end();
    Ok(rows)
}

/// A day of jobs that each live in two hours, beside others that live on. Says how many ended.
fn write(past: &mut Past) -> Result<usize> {
    past.commit(Nanos::ZERO)?;
    let mut open = Vec::new();
    for number in 0..OPEN {
        open.push(account(past, number, "service"));
    }
    let mut closed = 0;
    let mut jobs: Vec<u32> = Vec::new();
    for hour in 0..=HOURS {
        for account in jobs.iter().chain(&open) {
            past.charge(*account, used());
        }
        for job in jobs.drain(..) {
            past.close(job);
            closed += 1;
        }
        for number in 0..CLOSED_EACH_HOUR * usize::from(hour < HOURS) {
            let job = account(past, number + hour * CLOSED_EACH_HOUR, "job");
            past.charge(job, used());
            jobs.push(job);
        }
        for gpu in 0..GPUS {
            past.unattributed(gpu, UnattributedReason::NoRow, Nanos::from_secs(7));
        }
        past.commit(Nanos::from_secs(3_600))?;
        past.pass(Nanos::from_secs(3_600));
    }
    Ok(closed)
}

fn account(past: &mut Past, number: usize, what: &str) -> u32 {
    let (namespace, team) = (number % 40, number % 12);
    past.open(
        number % GPUS,
        &Payer::Named {
            name: &format!("namespace-{namespace}/{what}-{number}-5d9f7b6c4-x2x4z/main"),
            image: &format!("registry.internal/team-{team}/{what}:1.{}", number % 7),
            labels: &[
                ("team", &format!("team-{team}")),
                ("app.kubernetes.io/name", what),
                ("app.kubernetes.io/part-of", "something"),
                ("pod-template-hash", "5d9f7b6c4"),
            ],
        },
    )
}

/// So little that 150 of them fit into a GPU's hour.
fn used() -> Amounts {
    let busy = Nanos(19_000_000_123);
    Amounts {
        held: Nanos::from_secs(1_800),
        allocated: Nanos::from_secs(1_800),
        memory: ByteSeconds(u128::from(busy.0) / 1_000_000_000 * (4 << 30)),
        energy: Millijoules(19 * 300_000),
        ..Amounts::busy(busy)
    }
}
