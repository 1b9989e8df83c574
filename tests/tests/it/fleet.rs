//! `gpuacct report --from`, over stores of metrics whose truth is known: Prometheus and VictoriaMetrics
//! with a written past. `fleet_streams` has stores that scrape real agents.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use gpuacct_tests::agent;
use gpuacct_tests::certificates::Authority;
use gpuacct_tests::prometheus::{self, Prometheus};
use gpuacct_tests::requirement::require;
use gpuacct_tests::victoria_metrics::{self, VictoriaMetrics};
use gpuacct_tests::web::{later, newest};
use jiff::Timestamp;
use rust_decimal::Decimal;
use serde_json::{Value, json};

/// Only ever waited for when something is broken.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
pub(crate) const SCRAPE_INTERVAL: Duration = Duration::from_millis(200);
pub(crate) const HOUR: i64 = 3_600;
const DAY: i64 = 24 * HOUR;
/// What is written reaches over so many hours, of which the first is not in the reports.
const HOURS: i64 = 5;
const EVERY: i64 = 30;
/// When the node is rebooted, and when the store is away, in seconds.
const REBOOT: i64 = 10_000;
const OUTAGE: std::ops::Range<i64> = 12_000..13_200;
/// From when on another pod of the agent is scraped.
const REPLACED: i64 = 9_000;

/// A use of a GPU, in seconds, and when its series begins.
struct Job {
    namespace: &'static str,
    gpu: usize,
    runs: std::ops::Range<i64>,
    shown_from: i64,
}

const JOBS: [Job; 4] = [
    // Twelve seconds over the end of an hour.
    Job {
        namespace: "batch",
        gpu: 0,
        runs: 7_194..7_206,
        shown_from: 7_000,
    },
    Job {
        namespace: "research",
        gpu: 1,
        runs: 0..17_000,
        shown_from: 0,
    },
    // Its series begins in the range.
    Job {
        namespace: "late",
        gpu: 0,
        runs: 15_000..15_900,
        shown_from: 14_990,
    },
    // It runs while the store is away.
    Job {
        namespace: "away",
        gpu: 0,
        runs: 12_300..12_900,
        shown_from: 11_000,
    },
];

/// Part of a range that is over, since the last reboot.
fn passed(range: &std::ops::Range<i64>, at: i64) -> i64 {
    let since = if at >= REBOOT { REBOOT } else { 0 };
    (range.end.min(at) - range.start.max(since)).max(0)
}

/// The beginning of what is written: whole hours ago, so that all of it is past.
pub(crate) fn base() -> i64 {
    (Timestamp::now().as_second() / HOUR - HOURS - 1) * HOUR
}

/// Which servers scrape, and how late each of them is.
type Servers<'a> = &'a [(&'a str, i64)];

/// The scrapes of these servers, as OpenMetrics. Labels that a scraper adds are in `target`.
fn exposition(base: i64, servers: Servers<'_>, target: &str, owner: &str) -> String {
    let mut families: BTreeMap<&str, Vec<(String, i64, i64)>> = BTreeMap::new();
    for (server, phase) in servers {
        for scrape in 0..=HOURS * HOUR / EVERY {
            let at = scrape * EVERY + phase;
            if at > HOURS * HOUR || OUTAGE.contains(&at) {
                continue;
            }
            let pod = if at < REPLACED {
                "gpuacct-1"
            } else {
                "gpuacct-2"
            };
            let replica = match *server {
                "" => String::new(),
                server => format!("prometheus_replica=\"{server}\","),
            };
            let labels = format!("{replica}instance=\"{pod}:9401\",node=\"node-a\",{target}");
            let mut put = |family: &'static str, own: &str, value: i64| {
                let series = format!("{family}_total{{{labels}{own}}}");
                families
                    .entry(family)
                    .or_default()
                    .push((series, value, at));
            };
            for gpu in 0..2 {
                let of_it = format!("gpu_uuid=\"GPU-{gpu}\"");
                let jobs = JOBS.iter().filter(|job| job.gpu == gpu);
                let busy: i64 = jobs.map(|job| passed(&job.runs, at)).sum();
                let elapsed = passed(&(0..i64::MAX), at);
                put("gpuacct_gpu_elapsed_seconds", &of_it, elapsed);
                put("gpuacct_gpu_busy_seconds", &of_it, busy);
                put("gpuacct_gpu_idle_seconds", &of_it, elapsed - busy);
            }
            for job in JOBS.iter().filter(|job| job.shown_from <= at) {
                let Job { namespace, gpu, .. } = job;
                let own = format!(
                    "{owner}namespace=\"{namespace}\",{owner}pod=\"{namespace}-0\",{owner}container=\"main\",\
                     pod_uid=\"uid-{namespace}\",container_id=\"{namespace}\",gpu_uuid=\"GPU-{gpu}\""
                );
                put(
                    "gpuacct_container_gpu_busy_seconds",
                    &own,
                    passed(&job.runs, at),
                );
            }
        }
    }
    let mut text = String::new();
    for (family, mut samples) in families {
        writeln!(text, "# TYPE {family} counter").unwrap();
        samples.sort_by(|one, other| (&one.0, one.2).cmp(&(&other.0, other.2)));
        for (series, value, at) in samples {
            writeln!(text, "{series} {value} {}", base + at).unwrap();
        }
    }
    text + "# EOF\n"
}

/// Starts a Prometheus that has this past.
pub(crate) fn with_past(program: &Path, promtool: &Path, dir: &Path, text: &str) -> Prometheus {
    write_past(promtool, dir, text);
    Prometheus::idle(program, dir).unwrap()
}

/// Writes this past into the storage of the Prometheus of a folder.
pub(crate) fn write_past(promtool: &Path, dir: &Path, text: &str) {
    let file = dir.join("past.om");
    fs::write(&file, text).unwrap();
    let output = Command::new(promtool)
        .args(["tsdb", "create-blocks-from", "openmetrics", "--quiet"])
        .arg(&file)
        .arg(dir.join("prometheus"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

pub(crate) fn at(second: i64) -> String {
    Timestamp::from_second(second).unwrap().to_string()
}

pub(crate) fn run(url: &str, since: i64, until: i64, arguments: &[&str]) -> Output {
    Command::new(agent::binary().unwrap())
        .args([
            "report",
            "--from",
            url,
            "--since",
            &at(since),
            "--until",
            &at(until),
        ])
        .args(arguments)
        .output()
        .unwrap()
}

pub(crate) fn report(url: &str, since: i64, until: i64, arguments: &[&str]) -> Value {
    let output = run(url, since, until, &[arguments, &["-o", "json"]].concat());
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A figure as the report has it, digit by digit.
pub(crate) fn number(value: &Value) -> Decimal {
    value.to_string().parse().unwrap()
}

/// Busy seconds of containers, by namespace.
fn busy(report: &Value) -> BTreeMap<String, Decimal> {
    let rows = report["rows"].as_array().unwrap().iter();
    let rows = rows.filter(|row| row["kind"] == "container");
    rows.map(|row| {
        (
            row["namespace"].as_str().unwrap().to_owned(),
            number(&row["busy_seconds"]),
        )
    })
    .filter(|(_, busy)| !busy.is_zero())
    .collect()
}

/// What the servers' scrapes show in the range of the reports. Of the last seconds before the reboot
/// nobody knows: the last scrape before it is at `last`.
fn expected(last: i64) -> BTreeMap<String, Decimal> {
    let research = (last - HOUR) + (17_000 - REBOOT);
    [
        ("batch", 12),
        ("research", research),
        ("late", 900),
        ("away", 600),
    ]
    .map(|(namespace, seconds)| (namespace.to_owned(), seconds.into()))
    .into()
}

/// Both ends of the reports, in seconds.
fn ends(base: i64) -> (i64, i64) {
    (base + HOUR, base + HOURS * HOUR)
}

/// The bill, whole and cut at every hour; the books balance in each.
fn check_bill(url: &str, base: i64, last: i64) {
    let (since, until) = ends(base);
    let whole = report(url, since, until, &[]);
    assert_eq!(busy(&whole), expected(last), "{whole:#}");
    assert_eq!(
        number(&whole["imbalance_seconds"]),
        Decimal::ZERO,
        "{whole:#}"
    );
    assert_eq!(whole["complete"], true, "{whole:#}");
    assert_eq!(whole["nodes"], json!(["node-a"]));
    let rows = whole["rows"].as_array().unwrap();
    let total: Decimal = rows.iter().map(|row| number(&row["gpu_seconds"])).sum();
    assert_eq!(total, number(&whole["total"]["gpu_seconds"]));
    let container = rows.iter().find(|row| row["kind"] == "container").unwrap();
    for absent in [
        "allocated_share_seconds",
        "held_seconds",
        "processes_started",
        "energy_joules",
    ] {
        assert!(container[absent].is_null(), "{absent}: {container:#}");
    }
    // Two GPUs, but for the seconds before the reboot and before the last scrape.
    let asked = Decimal::from(2 * (HOURS - 1) * HOUR);
    assert!((asked - total).abs() <= Decimal::from(2 * EVERY), "{total}");

    let mut sums: BTreeMap<String, Decimal> = BTreeMap::new();
    for hour in 1..HOURS {
        let one = report(url, base + hour * HOUR, base + (hour + 1) * HOUR, &[]);
        assert_eq!(number(&one["imbalance_seconds"]), Decimal::ZERO, "{one:#}");
        for (namespace, seconds) in busy(&one) {
            *sums.entry(namespace).or_default() += seconds;
        }
    }
    assert_eq!(sums, expected(last));
    check_long_range(url, base + HOUR - 5 * DAY, until);
}

/// Of each kind, reason and namespace: GPU seconds and busy seconds.
fn sums(report: &Value) -> BTreeMap<[String; 3], [Decimal; 2]> {
    let mut sums = BTreeMap::<_, [Decimal; 2]>::new();
    for row in report["rows"].as_array().unwrap() {
        let key = ["kind", "reason", "namespace"].map(|key| row[key].to_string());
        let of_key = sums.entry(key).or_default();
        for (sum, figure) in of_key.iter_mut().zip(["gpu_seconds", "busy_seconds"]) {
            // Time in no book is not busy either.
            *sum += if row[figure].is_null() {
                Decimal::ZERO
            } else {
                number(&row[figure])
            };
        }
    }
    sums
}

/// A range of days, which is read by the day, bills what its hours do.
fn check_long_range(url: &str, since: i64, until: i64) {
    let by_hour = report(url, since, until, &["--by", "hour,namespace"]);
    for by in ["namespace", "day,namespace"] {
        let by_day = report(url, since, until, &["--by", by]);
        assert_eq!(sums(&by_day), sums(&by_hour), "{by}: {by_day:#}");
        for same in ["imbalance_seconds", "complete", "warnings"] {
            assert_eq!(by_day[same], by_hour[same], "{by}: {same}");
        }
        let total = |report: &Value| number(&report["total"]["gpu_seconds"]);
        assert_eq!(total(&by_day), total(&by_hour), "{by}");
    }
}

/// The distribution's Prometheus, a later one and the newest one, with their promtools.
pub(crate) fn programs() -> Vec<(PathBuf, PathBuf)> {
    let mut programs = Vec::new();
    if require("prometheus", prometheus::available()).is_some() {
        programs.push(("prometheus".into(), "promtool".into()));
    }
    if let Some(program) = require("prometheus-later", later("prometheus")) {
        programs.push((program, later("promtool").unwrap()));
    }
    if let Some(program) = require("prometheus-new", newest("prometheus")) {
        programs.push((program, newest("promtool").unwrap()));
    }
    programs
}

#[test]
fn the_bill_of_a_fleet_is_the_truth_as_far_as_it_was_scraped() {
    for (program, promtool) in programs() {
        let dir = tempfile::tempdir().unwrap();
        let base = base();
        let text = exposition(base, &[("", 0)], "", "exported_");
        let store = with_past(&program, &promtool, dir.path(), &text);
        let url = format!("http://{}", store.address());
        check_bill(&url, base, 9_990);

        // The table says what it is from, and has no column of what is not known.
        let (since, until) = ends(base);
        let output = run(&url, since, until, &["--by", "node,namespace"]);
        let page = String::from_utf8(output.stdout).unwrap();
        assert!(page.contains(&format!("read from {url}")), "{page}");
        assert!(
            page.contains("BUSY h") && !page.contains("ALLOC. h"),
            "{page}"
        );

        // The charges for FinOps tools have the same time, and cost what it costs.
        let prices = dir.path().join("prices.toml");
        fs::write(
            &prices,
            "currency = \"EUR\"\n[default]\nbusy_hour = \"3.6\"\n",
        )
        .unwrap();
        let focus = ["--prices", prices.to_str().unwrap(), "-o", "focus"];
        let output = run(&url, since, until, &focus);
        assert!(output.status.success(), "{output:?}");
        let mut costs: BTreeMap<String, Decimal> = BTreeMap::new();
        for row in csv::Reader::from_reader(&output.stdout[..]).deserialize() {
            let row: BTreeMap<String, String> = row.unwrap();
            if row["x_Kind"] == "container" {
                let cost: Decimal = row["BilledCost"].parse().unwrap();
                *costs.entry(row["SubAccountId"].clone()).or_default() += cost;
            }
        }
        let seconds = costs.into_iter().map(|(namespace, cost)| {
            (
                namespace,
                (cost * Decimal::ONE_THOUSAND).round_dp(6).normalize(),
            )
        });
        assert_eq!(seconds.collect::<BTreeMap<_, _>>(), expected(9_990));

        // A store that does not reach back as far as the range is no small bill.
        let early = base - 4 * HOUR;
        let output = run(&url, early, until, &["-o", "json"]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("retention shorter than --since"), "{said}");
        let early: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(early["complete"], false);
        let rows = early["rows"].as_array().unwrap().iter();
        let in_no_book: Decimal = rows
            .filter(|row| row["kind"] == "unaccounted")
            .map(|row| number(&row["gpu_seconds"]))
            .sum();
        let four_hours = Decimal::from(2 * 4 * HOUR);
        assert!(
            (in_no_book - four_hours).abs() <= Decimal::from(2 * EVERY),
            "{in_no_book}"
        );

        // Prices of busy time, and none of what is not known.
        let prices = dir.path().join("prices.toml");
        fs::write(
            &prices,
            "currency = \"EUR\"\n[default]\nbusy_hour = \"3.60\"\n",
        )
        .unwrap();
        let prices_flag = ["--prices", prices.to_str().unwrap()];
        let priced = report(&url, since, until, &prices_flag);
        let rows = priced["rows"].as_array().unwrap();
        let batch = rows.iter().find(|row| row["namespace"] == "batch").unwrap();
        assert!((number(&batch["cost"]) - Decimal::new(1, 2)).abs() <= Decimal::new(1, 2));
        fs::write(
            &prices,
            "currency = \"EUR\"\n[default]\nallocated_hour = \"1\"\n",
        )
        .unwrap();
        let output = run(&url, since, until, &prices_flag);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
    }
}

/// Six days of a GPU, scraped each ten minutes, and pushed by OTLP under another label. It is busy for a third of
/// the time. On the third day all counters begin anew while nothing is pushed, on the fifth another pod of the
/// agent is scraped, and two namespaces take turns.
fn six_days(begin: i64) -> String {
    const ANEW: i64 = 2 * DAY + 10 * HOUR;
    const REPLACED: i64 = 4 * DAY + 7 * HOUR + 300;
    let mut families: BTreeMap<&str, String> = BTreeMap::new();
    for (label, phase, away) in [
        ("gpu_uuid", 0, 0..0),
        ("hw_id", 70, ANEW - 2_700..ANEW + 2_400),
    ] {
        for at in (phase..6 * DAY)
            .step_by(600)
            .filter(|at| !away.contains(at))
        {
            let (pod, since) = (at / REPLACED, if at < ANEW { 0 } else { ANEW });
            let labels = format!("pod=\"gpuacct-{pod}\",node=\"n\",{label}=\"G\"");
            let mut put = |family: &'static str, owner: &str, value: i64| {
                let of_family = families.entry(family).or_default();
                writeln!(
                    of_family,
                    "{family}_total{{{labels}{owner}}} {value} {}",
                    begin + at
                )
                .unwrap();
            };
            let elapsed = at - since;
            let busy = elapsed / 3;
            put("gpuacct_gpu_elapsed_seconds", "", elapsed);
            put("gpuacct_gpu_busy_seconds", "", busy);
            put("gpuacct_gpu_idle_seconds", "", elapsed - busy);
            // Of each 1,000 s of busy time the first 400 are of one namespace.
            let first = busy / 1_000 * 400 + (busy % 1_000).min(400);
            for (namespace, used) in [("first", first), ("second", busy - first)] {
                let owner = format!(
                    ",exported_namespace=\"{namespace}\",exported_pod=\"p\",exported_container=\"c\",\
                     pod_uid=\"{namespace}\",container_id=\"{namespace}\""
                );
                put("gpuacct_container_gpu_busy_seconds", &owner, used);
            }
        }
    }
    let families = families
        .into_iter()
        .map(|(family, samples)| format!("# TYPE {family} counter\n{samples}"));
    families.collect::<String>() + "# EOF\n"
}

#[test]
fn a_range_of_days_bills_what_its_hours_do() {
    for (program, promtool) in programs() {
        let dir = tempfile::tempdir().unwrap();
        // Not at midnight, and it ends within a day.
        let begin = base() - 6 * DAY;
        let store = with_past(&program, &promtool, dir.path(), &six_days(begin));
        let url = format!("http://{}", store.address());
        let (since, until) = (begin + 5 * HOUR, begin + 6 * DAY - 2 * HOUR);
        check_long_range(&url, since, until);
        let all = report(&url, since, until, &[]);
        let total = number(&all["total"]["busy_seconds"]);
        // Nobody saw the last minutes before the counters began anew.
        let truth = Decimal::from((until - since) / 3);
        assert!(
            total <= truth && truth - total <= 400.into(),
            "{total} of {truth}"
        );
        assert_eq!(number(&all["imbalance_seconds"]), Decimal::ZERO);
    }
}

#[test]
fn a_pair_of_servers_bills_each_second_once() {
    for (program, promtool) in programs() {
        let dir = tempfile::tempdir().unwrap();
        let base = base();
        let text = exposition(base, &[("a", 0), ("b", 11)], "", "exported_");
        let store = with_past(&program, &promtool, dir.path(), &text);
        check_bill(&format!("http://{}", store.address()), base, 9_990);
    }
}

#[test]
fn owners_that_were_overwritten_are_an_error_and_a_selector_is_obeyed() {
    for (program, promtool) in programs() {
        let dir = tempfile::tempdir().unwrap();
        let base = base();
        let text = exposition(base, &[("", 0)], "namespace=\"monitoring\",", "exported_")
            // The scraper has dropped what it had renamed.
            .replace("exported_namespace=", "dropped=");
        let store = with_past(&program, &promtool, dir.path(), &text);
        let url = format!("http://{}", store.address());
        let (since, until) = ends(base);
        let output = run(&url, since, until, &[]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(
            said.contains("\"monitoring\"") && said.contains("owner_prefix"),
            "{said}"
        );

        let output = run(&url, since, until, &["--selector", "{cluster=\"other\"}"]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("has no metric of gpuacct"), "{said}");
        let output = run(&url, since, until, &["--selector", "{cluster=}"]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(
            said.contains("refuses") && said.contains("--selector"),
            "{said}"
        );
    }
}

#[test]
fn victoria_metrics_gives_the_same_bill() {
    let Some(program) = require("victoria-metrics", victoria_metrics::available()) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path(), "authority").unwrap();
    let store = VictoriaMetrics::start(&program, dir.path(), &authority).unwrap();
    let base = base();
    let text = exposition(base, &[("a", 0), ("b", 11)], "", "exported_");
    // Its times are in milliseconds.
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let text: String = lines.map(|line| format!("{line}000\n")).collect();
    store.import(&text).unwrap();
    check_bill(&store.url(), base, 9_990);
}
