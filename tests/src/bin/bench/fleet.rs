//! `gpuacct report --from` over a fleet of a known past: how long it takes, how much memory both ends need,
//! and how far the bill is from the truth, beside what the usual queries make of the same samples.
//!
//! The past is written by promtool, two hours at a time, as scrapes each minute. Each GPU has three
//! namespaces: one that works most of the time, one with a job now and then, and one whose jobs of 12 s run
//! over the end of each hour. Each node is drained for a few minutes a day. Once a week its agent loses its
//! ledger then, so that all of its counters begin anew.

mod answers;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gpuacct_tests::agent;
use gpuacct_tests::prometheus::Prometheus;
use gpuacct_tests::web::newest;
use serde_json::Value;

use crate::process::kib;
use crate::report::{Row, float, megabytes};
use crate::{Bench, pause};

/// Nodes and days of each fleet. The last one is the largest.
const SIZES: [(i64, i64); 4] = [(8, 4), (16, 4), (16, 8), (32, 8)];
/// What is wanted to be answered, in nodes and days.
const WANTED: (i64, i64) = (500, 30);
const GPUS: i64 = 8;
const SCRAPE: i64 = 60;
const HOUR: i64 = 3_600;
const DAY: i64 = 24 * HOUR;
/// promtool makes blocks of so long.
const BLOCK: i64 = 2 * HOUR;
/// How long a node does nothing before its work goes on, in seconds.
const DRAINED: i64 = 300;
/// After how many days a node's counters begin anew.
const WEEK: i64 = 7;
/// The first second of the range, a midnight (UTC). Hours before it are written as well.
const BEGIN: i64 = 1_767_225_600;
const NAMESPACES: [&str; 3] = ["research", "batch", "short"];
const POLL: Duration = Duration::from_millis(5);
const MICROS: f64 = 1e6;

/// When a node's work goes on, in seconds of each day: far from the full hour, when each GPU has a short job.
const fn resumed(node: i64) -> i64 {
    6 * HOUR + (10 + node % 40) * 60 + 17
}

/// Busy microseconds of a namespace on a GPU of a node from `BEGIN - DAY` up to `at`.
fn used(namespace: usize, node: i64, gpu: i64, at: i64) -> i64 {
    let passed = at - (BEGIN - DAY);
    let days = passed.div_euclid(DAY);
    let each = |day: i64, second: i64| match namespace {
        // 30 % until the node is drained, and again afterwards.
        0 => {
            let drained = resumed(node) - DRAINED;
            (second.min(drained) + (second - resumed(node)).max(0)) * 300_000
        }
        // A job of 40 minutes at another time of each day, later than that.
        1 => {
            let from = resumed(node) + HOUR + (gpu * 7 + day * 11) % 60 * 60;
            (second - from).clamp(0, 40 * 60) * 500_000
        }
        // Six seconds to either side of each full hour.
        _ => {
            let (hours, rest) = (second / HOUR, second % HOUR);
            (hours * 12 + rest.min(6) + (rest - (HOUR - 6)).max(0)) * 1_000_000
        }
    };
    (0..days).map(|day| each(day, DAY)).sum::<i64>() + each(days, passed.rem_euclid(DAY))
}

/// When a node's counters began at 0 last before `at`; the beginning of what is written if they did not.
fn anew(node: i64, at: i64) -> i64 {
    let days = (at - BEGIN - resumed(node)).div_euclid(DAY);
    let since = (days - node).rem_euclid(WEEK);
    let last = BEGIN + (days - since) * DAY + resumed(node);
    last.max(BEGIN - DAY)
}

/// A family and what its samples are made of.
type Family = (&'static str, &'static str, fn(&Scrape<'_>, &mut String));

/// One scrape of one node.
struct Scrape<'a> {
    node: i64,
    at: i64,
    family: &'a str,
}

impl Scrape<'_> {
    fn grown(&self, namespace: usize, gpu: i64) -> i64 {
        let since = anew(self.node, self.at);
        used(namespace, self.node, gpu, self.at) - used(namespace, self.node, gpu, since)
    }

    fn busy(&self, gpu: i64) -> i64 {
        (0..NAMESPACES.len()).map(|at| self.grown(at, gpu)).sum()
    }

    fn of_gpus(&self, text: &mut String, value: impl Fn(i64) -> i64) {
        let Self { node, at, family } = self;
        for gpu in 0..GPUS {
            let value = seconds(value(gpu));
            let _ = writeln!(
                text,
                "{family}{{node=\"n{node}\",gpu_uuid=\"GPU-{node}-{gpu}\"}} {value} {at}"
            );
        }
    }

    fn of_containers(&self, text: &mut String, value: impl Fn(usize, i64) -> f64) {
        let Self { node, at, family } = self;
        for gpu in 0..GPUS {
            for (index, namespace) in NAMESPACES.iter().enumerate() {
                let value = value(index, gpu);
                let _ = writeln!(
                    text,
                    "{family}{{node=\"n{node}\",gpu_uuid=\"GPU-{node}-{gpu}\",namespace=\"{namespace}\",\
                     pod=\"{namespace}-{node}-{gpu}\",container=\"main\",pod_uid=\"{namespace}-{node}-{gpu}\",\
                     container_id=\"{namespace}-{node}-{gpu}\"}} {value} {at}"
                );
            }
        }
    }
}

const FAMILIES: [Family; 5] = [
    ("gpuacct_gpu_elapsed_seconds", "counter", |scrape, text| {
        let passed = (scrape.at - anew(scrape.node, scrape.at)) * 1_000_000;
        scrape.of_gpus(text, |_| passed);
    }),
    ("gpuacct_gpu_busy_seconds", "counter", |scrape, text| {
        scrape.of_gpus(text, |gpu| scrape.busy(gpu));
    }),
    ("gpuacct_gpu_idle_seconds", "counter", |scrape, text| {
        let passed = (scrape.at - anew(scrape.node, scrape.at)) * 1_000_000;
        scrape.of_gpus(text, |gpu| passed - scrape.busy(gpu));
    }),
    (
        "gpuacct_container_gpu_busy_seconds",
        "counter",
        |scrape, text| {
            scrape.of_containers(text, |namespace, gpu| seconds(scrape.grown(namespace, gpu)));
        },
    ),
    // What OpenCost asks for: how busy it is at the scrape.
    ("DCGM_FI_PROF_GR_ENGINE_ACTIVE", "gauge", |scrape, text| {
        let Scrape { node, at, .. } = *scrape;
        scrape.of_containers(text, |namespace, gpu| {
            seconds(used(namespace, node, gpu, at) - used(namespace, node, gpu, at - 1))
        });
    }),
];

pub(crate) fn fleet(bench: &Bench) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let mut each = Vec::new();
    for (nodes, days) in SIZES {
        let measured = measure(bench, nodes, days)?;
        let hours = float(u64::try_from(nodes * days * 24)?);
        each.push(measured.took.as_secs_f64() / hours);
        let is_last = (nodes, days) == SIZES[SIZES.len() - 1];
        rows.extend(measured.rows(nodes, days, is_last));
    }
    let (least, most) = each
        .iter()
        .fold((f64::MAX, 0.0_f64), |(least, most), each| {
            (least.min(*each), most.max(*each))
        });
    rows.push(Row::new(
        "time for a node's hour, of the four fleets",
        format!("{:.2} to {:.2} ms", least * 1e3, most * 1e3),
    ));
    let (nodes, days) = WANTED;
    let hours = float(u64::try_from(nodes * days * 24)?);
    let last = each[each.len() - 1] * hours;
    rows.push(
        Row::new(
            format!("{nodes} nodes, {days} days: computed from the largest fleet, not measured"),
            format!("{last:.0} s"),
        )
        .goal("≤ 30 s", last <= 30.0),
    );
    rows.extend(alone(bench)?);
    Ok(rows)
}

/// What a report cost, and how far it and the queries are from the truth.
struct Measured {
    samples: i64,
    took: Duration,
    client_kib: u64,
    server_kib: u64,
    /// By namespace: the truth in seconds, and each road's bill.
    bills: BTreeMap<&'static str, [f64; 4]>,
}

impl Measured {
    fn rows(&self, nodes: i64, days: i64, with_bills: bool) -> Vec<Row> {
        let fleet = format!("{nodes} nodes × {GPUS} GPUs × 3 namespaces, {days} d");
        let client = megabytes(self.client_kib);
        let mut rows = vec![
            Row::new(
                format!("{fleet}: `report --from --by namespace`"),
                format!("{:.1} s", self.took.as_secs_f64()),
            ),
            Row::new("— samples", self.samples.to_string()),
            Row::new("— peak memory of the report", format!("{client:.0} MB"))
                .goal("≤ 200 MB", client <= 200.0),
            Row::new(
                "— peak memory of Prometheus",
                format!("{:.0} MB", megabytes(self.server_kib)),
            ),
        ];
        let roads = [
            "`report --from`",
            "`increase(…[1h])`, added up",
            "`avg_over_time` of a gauge over each hour, added up",
        ];
        for (road, name) in roads.iter().enumerate().filter(|_| with_bills) {
            let errors = self.bills.values().map(|bill| {
                let [truth, ..] = bill;
                (bill[road + 1] - truth) / truth * 100.0
            });
            let errors: Vec<f64> = errors.collect();
            let worst = errors.iter().fold(0.0_f64, |worst, of| worst.max(of.abs()));
            let names = self.bills.keys().zip(&errors);
            let shown = names.map(|(name, error)| format!("{name} {error:+.4} %"));
            let row = Row::new(
                format!("— {name}: error by namespace"),
                shown.collect::<Vec<_>>().join(", "),
            );
            rows.push(if road == 0 {
                row.goal("≤ 0.01 %", worst <= 0.01)
            } else {
                row
            });
        }
        rows
    }
}

/// A report, and what it cost.
struct Reported {
    report: Value,
    took: Duration,
    client_kib: u64,
}

/// Makes a report of the range up to `end`.
fn report(dir: &Path, url: &str, end: i64, by: &str) -> Result<Reported> {
    let file = dir.join("report.json");
    let began = Instant::now();
    let mut child = Command::new(agent::binary()?)
        .args(["report", "--from", url, "--by", by, "-o", "json"])
        .args(["--since", &shown(BEGIN)?, "--until", &shown(end)?])
        .stdin(Stdio::null())
        .stdout(File::create(&file)?)
        .spawn()
        .context("cannot run the report")?;
    let mut client_kib = 0;
    let status = loop {
        // What the kernel says last before the end is the most that it ever had.
        client_kib = client_kib.max(peak(child.id()).unwrap_or(0));
        if let Some(status) = child.try_wait()? {
            break status;
        }
        pause(POLL)?;
    };
    let took = began.elapsed();
    ensure!(status.success(), "the report ended with {status}");
    Ok(Reported {
        report: serde_json::from_slice(&fs::read(file)?)?,
        took,
        client_kib,
    })
}

/// The report of the wanted fleet, from a store that only makes answers.
fn alone(bench: &Bench) -> Result<Vec<Row>> {
    let dir = bench.dir("fleet-alone")?;
    let (nodes, days) = WANTED;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let url = answers::serve(&runtime, nodes)?;
    let mut rows = vec![Row::new(
        format!(
            "{nodes} nodes × {GPUS} GPUs × 3 namespaces, {days} d, of answers that the benchmark makes"
        ),
        "",
    )];
    for by in ["namespace", "day,namespace", "hour,namespace"] {
        let reported = report(&dir, &url, BEGIN + days * DAY, by)?;
        let rows_of = reported.report["rows"].as_array().context("no rows")?;
        let busy = rows_of
            .iter()
            .filter_map(|row| row["busy_seconds"].as_f64());
        let busy: f64 = busy.sum();
        let truth = float(u64::try_from(nodes * GPUS * days * DAY)?) * 0.6;
        ensure!(
            (busy - truth).abs() < 1.0,
            "--by {by} has {busy} busy seconds, and {truth} were shown"
        );
        let client = megabytes(reported.client_kib);
        let took = reported.took.as_secs_f64();
        rows.push(Row::new(format!("— `--by {by}`"), format!("{took:.1} s")));
        let memory = Row::new("— peak memory of the report", format!("{client:.0} MB"));
        rows.push(match by {
            "namespace" => memory.goal("≤ 200 MB", client <= 200.0),
            _ => memory,
        });
    }
    Ok(rows)
}

fn measure(bench: &Bench, nodes: i64, days: i64) -> Result<Measured> {
    let dir = bench.dir(&format!("fleet-{nodes}-{days}"))?;
    let end = BEGIN + days * DAY;
    let samples = write(&dir, nodes, end)?;
    let store = Prometheus::idle(&newest("prometheus")?, &dir)?;
    let url = format!("http://{}", store.address());

    let Reported {
        report,
        took,
        client_kib,
    } = report(&dir, &url, end, "namespace")?;
    let server_kib = peak(store.pid())?;
    let mut bills = BTreeMap::new();
    for (index, namespace) in NAMESPACES.iter().enumerate() {
        let all = (0..nodes).flat_map(|node| (0..GPUS).map(move |gpu| (node, gpu)));
        let truth: i64 = all
            .map(|(node, gpu)| used(index, node, gpu, end) - used(index, node, gpu, BEGIN))
            .sum();
        let rows = report["rows"].as_array().context("no rows")?.iter();
        let mut of_it = rows.filter(|row| row["namespace"] == *namespace);
        let billed = of_it.next().and_then(|row| row["busy_seconds"].as_f64());
        let by_hour = |query: &str| -> Result<f64> {
            let mut sum = 0.0;
            for hour in (BEGIN + HOUR..=end).step_by(usize::try_from(HOUR)?) {
                let found = store.query_at(query, hour as f64)?;
                sum += found.first().map_or(0.0, |sample| sample.value);
            }
            Ok(sum)
        };
        let increase = format!(
            "sum(increase(gpuacct_container_gpu_busy_seconds_total{{namespace=\"{namespace}\"}}[1h]))"
        );
        let gauge = format!(
            "sum(avg_over_time(DCGM_FI_PROF_GR_ENGINE_ACTIVE{{namespace=\"{namespace}\"}}[1h])) * {HOUR}"
        );
        let bill = [
            seconds(truth),
            billed.context("a namespace is not in the report")?,
            by_hour(&increase)?,
            by_hour(&gauge)?,
        ];
        bills.insert(*namespace, bill);
    }
    drop(store);
    fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    Ok(Measured {
        samples,
        took,
        client_kib,
        server_kib,
        bills,
    })
}

/// Writes the past of a fleet, from two hours before the range on. Returns how many samples it has.
fn write(dir: &Path, nodes: i64, end: i64) -> Result<i64> {
    let promtool = newest("promtool")?;
    let file = dir.join("past.om");
    let mut samples = 0;
    let mut from = BEGIN - BLOCK;
    while from < end + BLOCK {
        pause(Duration::ZERO)?;
        let mut out = BufWriter::new(File::create(&file)?);
        for (name, kind, put) in FAMILIES {
            writeln!(out, "# TYPE {name} {kind}")?;
            let family = match kind {
                "counter" => format!("{name}_total"),
                _ => name.to_owned(),
            };
            for node in 0..nodes {
                let phase = node % SCRAPE;
                let mut at = from + phase;
                while at < from + BLOCK {
                    let mut text = String::new();
                    let family = &family;
                    put(&Scrape { node, at, family }, &mut text);
                    samples += i64::try_from(text.lines().count())?;
                    out.write_all(text.as_bytes())?;
                    at += SCRAPE;
                }
            }
        }
        writeln!(out, "# EOF")?;
        out.flush()?;
        let output = Command::new(&promtool)
            .args(["tsdb", "create-blocks-from", "openmetrics", "--quiet"])
            .arg(&file)
            .arg(dir.join("prometheus"))
            .output()
            .context("cannot run promtool")?;
        ensure!(output.status.success(), "promtool: {output:?}");
        from += BLOCK;
    }
    fs::remove_file(&file)?;
    Ok(samples)
}

/// The most memory that a process has had, in KiB.
fn peak(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    kib(&status, "VmHWM:")
}

fn shown(second: i64) -> Result<String> {
    Ok(jiff::Timestamp::from_second(second)?.to_string())
}

#[expect(clippy::cast_precision_loss, reason = "below 2^53")]
fn seconds(micros: i64) -> f64 {
    micros as f64 / MICROS
}
