//! `gpuacct report -o html`: its figures are those of the JSON, and hostile names do nothing in Chromium.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::Ordering;

use gpuacct::core::amounts::{Amounts, ByteSeconds, Millijoules};
use gpuacct::core::model::{Nanos, UnattributedReason, UnobservedReason, WallTime};
use gpuacct_tests::agent;
use gpuacct_tests::chromium::Scheme;
use gpuacct_tests::ledger::{Past, Payer};
use gpuacct_tests::terminal::Terminal;
use rust_decimal::Decimal;
use serde_json::Value;
use tempfile::TempDir;

use crate::page::{Canned, browser, elements, hostile};

const A100: &str = "NVIDIA A100-SXM4-80GB";
/// The days of the past that is made up.
const DAYS: u64 = 14;
const SINCE: &str = "2026-01-05T00:00:00Z";
const UNTIL: &str = "2026-01-19T00:00:00Z";
const OUTPUT: &str = "html";
const HTML: &str = "content-type: text/html; charset=utf-8\r\n";
const OWNED: &str = "<title>owned</title>";
const PRICES: &str =
    "currency = \"EUR\"\n[default]\nbusy_hour = \"1.80\"\nallocated_hour = \"0.40\"\n";

fn minutes(n: u64) -> Nanos {
    Nanos::from_secs(60 * n)
}

fn used(busy: u64, allocated: u64) -> Amounts {
    Amounts {
        held: minutes(allocated),
        allocated: minutes(allocated),
        allocated_share: minutes(allocated),
        memory: ByteSeconds(u128::from(busy) * 60 * (20 << 30)),
        energy: Millijoules(busy * 60 * 300_000),
        // It shows whether a figure is whole.
        ..Amounts::busy(Nanos(busy * 60_000_000_000 + busy))
    }
}

fn wall(at: &str) -> WallTime {
    let at: jiff::Timestamp = at.parse().unwrap();
    WallTime(u64::try_from(at.as_nanosecond()).unwrap())
}

/// Two weeks on three GPUs of a node. The minutes of an hour are chosen so that each kind of time occurs.
fn weeks(node: &str, directory: &Path) {
    let mut past = Past::begin_on(node, directory, wall(SINCE), &[A100, A100, A100]).unwrap();
    past.commit(Nanos::ZERO).unwrap();
    let named = |name, team| Payer::Named {
        name,
        image: "registry/image:1",
        labels: team,
    };
    let train = past.open(
        0,
        &named("research/train-7b-0/trainer", &[("team", "vision")]),
    );
    let notebook = past.open(
        0,
        &named("research/notebook-ada/jupyter", &[("team", "vision")]),
    );
    let chat = past.open(
        1,
        &named("serving/chat-5d9f7/server", &[("team", "language")]),
    );
    let render = past.open(1, &named("batch/render-119/main", &[]));
    let stray = past.open(2, &Payer::IdOnly("feedc0de"));
    let host = past.open(2, &Payer::Host("user@1000.service"));
    // It has a GPU and never uses it.
    let forgotten = past.open(2, &named("research/forgotten-0/main", &[]));
    for hour in 0..DAYS * 24 {
        let (day, of_day) = (hour / 24, hour % 24);
        let is_weekend = day % 7 >= 5;
        // A day on which the machine was off.
        if day == 9 {
            past.pass(minutes(60));
            continue;
        }
        // A commit is in the hour in which it is made.
        past.pass(minutes(if hour == 0 { 59 } else { 60 }));
        let at_work = (8..19).contains(&of_day) && !is_weekend;
        past.charge(train, used(if day < 5 { 40 } else { 17 + day }, 60));
        if at_work {
            past.charge(notebook, used(6 + of_day % 5, 0));
            past.charge(render, used(14, 20));
        }
        past.charge(chat, used(if is_weekend { 8 } else { 20 + of_day }, 60));
        if of_day == 3 {
            past.charge(stray, used(33, 0));
            past.unattributed(2, UnattributedReason::UnknownPid, minutes(7));
        }
        if day == 3 && of_day > 17 {
            past.unobserved(2, UnobservedReason::DriverError, minutes(45));
        }
        past.charge(forgotten, used(0, 30));
        if of_day == 12 {
            past.charge(host, used(9, 0));
        }
        past.commit(minutes(60)).unwrap();
    }
    past.end();
}

fn run(stores: &[&Path], arguments: &[&str]) -> Output {
    let mut command = Command::new(agent::binary().unwrap());
    command.args(["report", "--since", SINCE, "--until", UNTIL]);
    for store in stores {
        command.arg("--store").arg(store);
    }
    let command = command.args(arguments).env_remove("GPUACCT_CONFIG");
    command.output().unwrap()
}

fn printed(stores: &[&Path], arguments: &[&str], output: &str) -> String {
    let output = run(stores, &[arguments, &["-o", output]].concat());
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn json(stores: &[&Path], arguments: &[&str]) -> Value {
    serde_json::from_str(&printed(stores, arguments, "json")).unwrap()
}

/// A figure as the JSON has it, digit by digit; none where it has none.
fn number(value: &Value) -> Option<Decimal> {
    (!value.is_null()).then(|| value.to_string().parse().unwrap())
}

/// A row of a table: its kind, its first name, and its figures.
#[derive(Debug)]
struct Line {
    kind: String,
    names: Vec<String>,
    figures: Vec<Option<Decimal>>,
}

/// A table of the page.
#[derive(Debug)]
struct Table {
    /// The fields of the columns of figures; empty where a column is none of the JSON's.
    fields: Vec<String>,
    rows: Vec<Line>,
    sum: Line,
}

/// What stands between two texts, from the first occurrence of the first one on.
fn between<'a>(text: &'a str, from: &str, to: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(from)?;
    rest.split_once(to).map(|(found, _)| found)
}

fn line(text: &str) -> Line {
    let cells = text.split("<td class=\"figure\">").skip(1);
    let figures = cells.map(|cell| {
        let exact = cell.strip_prefix("<data value=\"");
        exact.map(|exact| exact.split('"').next().unwrap().parse().unwrap())
    });
    let names = text.split("<bdi").skip(1);
    let names = names.map(|name| between(name, ">", "<").unwrap().to_owned());
    Line {
        kind: between(text, "data-kind=\"", "\"")
            .unwrap_or_default()
            .to_owned(),
        names: names.collect(),
        figures: figures.collect(),
    }
}

fn table(page: &str, class: &str) -> Table {
    let table = between(page, &format!("<table class=\"{class}\">"), "</table>");
    let table = table.unwrap_or_else(|| panic!("no table {class} in {page}"));
    let (head, body) = table.split_once("</thead>").unwrap();
    let (body, foot) = body.split_once("</tbody>").unwrap();
    let heads = head.split("class=\"figure\"").skip(1);
    let fields = heads.map(|head| {
        let own = head.split('>').next().unwrap();
        between(own, "data-field=\"", "\"")
            .unwrap_or_default()
            .to_owned()
    });
    Table {
        fields: fields.collect(),
        rows: body.split("<tr").skip(1).map(line).collect(),
        sum: line(foot),
    }
}

/// The sum of a field over rows of these kinds.
fn sum<'a>(rows: impl Iterator<Item = &'a Value>, field: &str) -> Decimal {
    rows.filter_map(|row| number(&row[field])).sum()
}

/// Checks that a line has the figures of a row of the JSON.
fn check(fields: &[String], line: &Line, row: &Value, case: &str) {
    assert_eq!(fields.len(), line.figures.len(), "{case}");
    for (field, figure) in fields.iter().zip(&line.figures) {
        assert_eq!(*figure, number(&row[field]), "{field} of {row}: {case}");
    }
}

/// Checks all tables of a page against the JSON of the same report, and against that by day.
fn check_page(stores: &[&Path], arguments: &[&str], by: &str) {
    let case = format!("{by} {arguments:?}");
    let grouped = [arguments, &["--by", by]].concat();
    let page = printed(stores, &grouped, OUTPUT);
    let json = json(stores, &grouped);
    let rows = json["rows"].as_array().unwrap();
    let is_owned = |row: &&Value| row["kind"] == "container" || row["kind"] == "host";
    let owned: Vec<&Value> = rows.iter().filter(is_owned).collect();
    let who = table(&page, "who");
    assert_eq!(who.rows.len(), owned.len(), "{case}");
    for (line, row) in who.rows.iter().zip(&owned) {
        assert_eq!(line.kind, row["kind"], "{case}");
        check(&who.fields, line, row, &case);
        let dimensions = by.split(',').filter(|by| *by != "gpu");
        for (dimension, value) in dimensions.map(|by| (by, row[by].as_str().unwrap())) {
            let is_named = line.names.iter().any(|name| name == value);
            assert!(
                is_named || value == "(none)",
                "{dimension} {value}: {line:?}"
            );
        }
    }
    for (field, found) in who.fields.iter().zip(&who.sum.figures) {
        // A share is rounded in each row.
        if field != "busy_share" && field != "memory_peak_bytes" && field != "processes_started" {
            let expected = sum(owned.iter().copied(), field);
            assert_eq!(found.unwrap(), expected, "{field}: {case}");
        }
    }

    let what = table(&page, "what");
    check(&what.fields, &what.sum, &json["total"], &case);
    for line in &what.rows[1..] {
        let of_kind = rows.iter().filter(|row| row["kind"] == *line.kind);
        let is_reason = |row: &&Value| match line.names[0].split_once(": ") {
            Some((_, reason)) => row["reason"] == reason,
            None => row["reason"] == "(none)",
        };
        for (field, figure) in what.fields.iter().zip(&line.figures) {
            let expected = sum(of_kind.clone().filter(is_reason), field);
            assert_eq!(
                figure.unwrap_or_default(),
                expected,
                "{field} {line:?}: {case}"
            );
        }
    }
    let all: Decimal = what.rows.iter().map(|line| line.figures[0].unwrap()).sum();
    assert_eq!(Some(all), what.sum.figures[0], "{case}");

    check_times(stores, arguments, by, &table(&page, "times"), &case);
    check_picture(&page, &table(&page, "times"), &case);
    let nobodys: Vec<&Value> = rows.iter().filter(|row| !is_owned(row)).collect();
    let has_places = by
        .split(',')
        .any(|by| ["node", "gpu", "day", "month"].contains(&by));
    assert_eq!(
        page.contains("<table class=\"rest-of-time\">"),
        has_places,
        "{case}"
    );
    if has_places {
        let rest = table(&page, "rest-of-time");
        assert_eq!(rest.rows.len(), nobodys.len(), "{case}");
        for (line, row) in rest.rows.iter().zip(nobodys) {
            assert_eq!(line.kind, row["kind"], "{case}");
            check(&rest.fields, line, row, &case);
        }
    }
}

/// Checks that the heights that are drawn are the times of the table: all bands by one scale.
fn check_picture(page: &str, times: &Table, case: &str) {
    let bands = page.split("<path ").skip(1).map(|path| {
        let data = between(path, " d=\"", "\"").unwrap();
        let blocks = data.split(" v").skip(1);
        let heights = blocks.map(|rest| rest.split(' ').next().unwrap().parse::<f64>().unwrap());
        heights.sum::<f64>()
    });
    let heights: Vec<f64> = bands.collect();
    let seconds = |figure: &Option<Decimal>| figure.unwrap().to_string().parse::<f64>().unwrap();
    let sums: Vec<f64> = times.sum.figures.iter().map(seconds).collect();
    // The last columns are all of it, and money.
    let all: f64 = heights.iter().sum();
    let together: f64 = sums[..heights.len()].iter().sum();
    for (height, seconds) in heights.iter().zip(&sums) {
        let expected = seconds * all / together;
        // Each block is rounded to a unit.
        let rounded = times.rows.len() as f64;
        assert!(
            (height - expected).abs() <= rounded,
            "{height} {expected}: {case}"
        );
    }
}

/// Checks the table of days against the JSON by day.
fn check_times(stores: &[&Path], arguments: &[&str], by: &str, times: &Table, case: &str) {
    let by_day = format!("{},day", by.replace(",day", ""));
    let by_day = json(stores, &[arguments, &["--by", &by_day]].concat());
    let rows = by_day["rows"].as_array().unwrap();
    let mut days: BTreeMap<&str, [Decimal; 2]> = BTreeMap::new();
    for row in rows {
        let sums = days.entry(row["day"].as_str().unwrap()).or_default();
        sums[0] += number(&row["gpu_seconds"]).unwrap();
        sums[1] += number(&row["cost"]).unwrap_or_default();
    }
    let has_money = by_day["currency"].is_string();
    let together = |line: &Line| {
        let figures = &line.figures[..line.figures.len() - usize::from(has_money)];
        let (last, parts) = figures.split_last().unwrap();
        let parts: Decimal = parts.iter().map(|part| part.unwrap()).sum();
        assert_eq!(Some(parts), *last, "{line:?}: {case}");
        parts
    };
    assert_eq!(times.rows.len(), days.len(), "{case}");
    for (line, (day, [time, cost])) in times.rows.iter().zip(&days) {
        assert_eq!(line.names, [*day], "{case}");
        assert_eq!(together(line), *time, "{day}: {case}");
        if has_money {
            // Rows are rounded one after the other, so a day may differ by the last digit.
            let found = line.figures.last().unwrap().unwrap();
            let off = (found - cost).abs();
            assert!(off <= Decimal::new(1, 2), "{day}: {found} {cost}: {case}");
        }
    }
    let total = &by_day["total"];
    assert_eq!(
        Some(together(&times.sum)),
        number(&total["gpu_seconds"]),
        "{case}"
    );
    if has_money {
        let costs = times
            .rows
            .iter()
            .map(|line| line.figures.last().unwrap().unwrap());
        assert_eq!(Some(costs.sum()), number(&total["cost"]), "{case}");
    }
}

/// A page and the pictures of it stay in the folder of this variable, if it is set, to be looked at.
fn kept(name: &str) -> Option<PathBuf> {
    let folder = PathBuf::from(std::env::var_os("GPUACCT_PAGES")?);
    Some(folder.join(name))
}

#[test]
fn the_figures_of_the_page_are_those_of_the_json() {
    let dir = TempDir::new().unwrap();
    let stores = ["gpu-7", "gpu-8"].map(|node| dir.path().join(node));
    weeks("gpu-7", &stores[0]);
    weeks("gpu-8", &stores[1]);
    let prices = dir.path().join("prices.toml");
    fs::write(&prices, PRICES).unwrap();
    let prices = ["--prices", prices.to_str().unwrap()];
    let both = [&*stores[0], &*stores[1]];
    for by in [
        "namespace",
        "namespace,pod",
        "label:team",
        "node,gpu",
        "namespace,unit,day",
        "month",
    ] {
        check_page(&both, &[], by);
        check_page(&both[..1], &[&prices[..], &["--wide"]].concat(), by);
    }
    let page = printed(&both, &["--by", "pod"], OUTPUT);
    let is_drawn_nowhere = "<i class=\"swatch none\"></i><bdi title=\"forgotten-0\">";
    assert!(page.contains(is_drawn_nowhere), "{page}");
    if let Some(file) = kept("report.html") {
        let arguments = [&prices[..], &["--by", "namespace,pod"]].concat();
        fs::write(file, printed(&both, &arguments, OUTPUT)).unwrap();
    }
}

#[test]
fn a_page_says_what_it_lacks_and_is_limited_like_any_report() {
    let dir = TempDir::new().unwrap();
    weeks("gpu-7", dir.path());
    // A part of the range, and hours in place of days.
    let output = Command::new(agent::binary().unwrap())
        .args(["report", "-o", OUTPUT, "--since", "2026-01-18", "--until"])
        .args(["2026-01-20", "--timezone", "Europe/Berlin", "--store"])
        .arg(dir.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let page = String::from_utf8(output.stdout).unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    let warning = "the range ends at 2026-01-20T00:00:00+01:00";
    assert!(page.contains(warning) && said.contains(warning), "{said}");
    let hours = table(&page, "times");
    assert_eq!(hours.rows[0].names, ["2026-01-18 00:00:00+01:00"]);
    assert_eq!(hours.rows.len(), 25);

    let store = dir.path();
    let limited = printed(&[store], &["--namespace", "research"], OUTPUT);
    assert!(!limited.contains("<table class=\"what\">"), "{limited}");
    assert_eq!(table(&limited, "who").rows.len(), 1);
    let limited = printed(&[store], &["--namespace", "<nobody>"], OUTPUT);
    assert!(limited.contains("none of these used a GPU"), "{limited}");
    assert!(limited.contains("&#60;nobody&#62;"), "{limited}");
    assert!(!limited.contains("<nobody>") && !limited.contains("<path"));
}

#[test]
fn a_terminal_is_not_shown_a_page() {
    let dir = TempDir::new().unwrap();
    weeks("gpu-7", dir.path());
    let mut command = Command::new(agent::binary().unwrap());
    command
        .args(["report", "-o", OUTPUT, "--store"])
        .arg(dir.path());
    let left = Terminal::start(command).unwrap().left().unwrap();
    assert_eq!(left.status.code(), Some(1), "{left:?}");
    assert!(left.screen.contains("redirect it"), "{left:?}");
    assert!(!left.screen.contains("<html"), "{left:?}");
}

/// The page of a node on which everything that somebody else may name has one of these names.
fn page_of(names: &[String]) -> String {
    let dir = TempDir::new().unwrap();
    let (node, model) = (&names[0], &*names[1]);
    let mut past = Past::begin_on(node, dir.path(), wall(SINCE), &[model]).unwrap();
    past.commit(Nanos::ZERO).unwrap();
    for (number, name) in (0..).zip(names) {
        let container = past.open(
            0,
            &Payer::Named {
                name,
                image: name,
                labels: &[("team", name)],
            },
        );
        let unit = past.open(0, &Payer::Host(name));
        past.pass(minutes(59));
        past.charge(container, used(10 + number, 60));
        past.charge(unit, used(1, 0));
        past.pass(minutes(1));
        past.commit(minutes(60)).unwrap();
    }
    past.end();
    let by = "node,model,gpu,namespace,pod,container,image,label:team,unit";
    printed(&[dir.path()], &["--by", by], OUTPUT)
}

#[test]
fn hostile_names_do_nothing_in_a_browser() {
    let Some(chromium) = browser() else {
        return;
    };
    let trap = Canned::serve(HTML, "<p>".to_owned());
    let load = |page: String| {
        let dir = TempDir::new().unwrap();
        let canned = Canned::serve(HTML, page);
        let url = format!("http://{}/", canned.address);
        let seen = chromium.load(dir.path(), &url).unwrap();
        (seen.dom, seen.asked == [url], seen.said)
    };
    let hostile = hostile(trap.address);
    let tame: Vec<String> = (0..hostile.len()).map(|at| format!("tame-{at}")).collect();
    let page = page_of(&tame);
    let (dom, asked_alone, said) = load(page.clone());
    assert!(asked_alone && !said.contains("CONSOLE"), "{said}");
    let (owned_dom, asked_alone, said) = load(page_of(&hostile));
    assert!(asked_alone && !said.contains("CONSOLE"), "{said}");
    assert!(!owned_dom.contains(OWNED), "{owned_dom}");
    assert_eq!(elements(&owned_dom), elements(&dom));
    assert_eq!(
        trap.connections.load(Ordering::Relaxed),
        0,
        "{:?}",
        trap.asked()
    );

    // A page that did not escape would do nothing either.
    let script = "<script>document.title='owned'</script>";
    let unescaped = page.replacen(">tame-2<", &format!(">{script}<"), 1);
    let (dom, ..) = load(unescaped.clone());
    assert!(dom.contains(script) && !dom.contains(OWNED), "{dom}");
    let without = unescaped.replacen("Content-Security-Policy", "x-nothing", 1);
    assert!(
        load(without).0.contains(OWNED),
        "it would, without the policy"
    );
}

#[test]
fn people_who_prefer_it_dark_get_it_dark() {
    let Some(chromium) = browser() else {
        return;
    };
    let dir = TempDir::new().unwrap();
    weeks("gpu-7", &dir.path().join("store"));
    let prices = dir.path().join("prices.toml");
    fs::write(&prices, PRICES).unwrap();
    let arguments = [
        "--by",
        "namespace,pod",
        "--prices",
        prices.to_str().unwrap(),
    ];
    let page = printed(&[&dir.path().join("store")], &arguments, OUTPUT);
    let canned = Canned::serve(HTML, page);
    let url = format!("http://{}/", canned.address);
    let looks = [
        ("light", Scheme::Light, (1_280, 1_500)),
        ("dark", Scheme::Dark, (1_280, 1_500)),
        ("phone", Scheme::Light, (390, 1_800)),
    ];
    let pictures = looks.map(|(name, scheme, size)| {
        let file = kept(&format!("report-{name}.png"));
        let file = file.unwrap_or_else(|| dir.path().join(name).with_extension("png"));
        let made = chromium.picture(dir.path(), &url, scheme, size, &file);
        made.unwrap();
        fs::read(file).unwrap()
    });
    assert_ne!(pictures[0], pictures[1]);
}
