//! `gpuacct budgets render` as it is typed, and its rules held against promtool of two releases.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use gpuacct_tests::agent;
use gpuacct_tests::daemon::program;
use gpuacct_tests::promql::{alerts_folder, rules};
use gpuacct_tests::python::run;
use gpuacct_tests::requirement::require;
use gpuacct_tests::web::newest;
use tempfile::TempDir;

const RULES: &str = "gpuacct.budgets.yaml";
const TESTS: &str = "gpuacct.budgets_test.yaml";

fn folder() -> PathBuf {
    alerts_folder().join("budgets")
}

fn render(file: &Path) -> Output {
    Command::new(agent::binary().unwrap())
        .args(["budgets", "render"])
        .arg(file)
        .output()
        .unwrap()
}

#[test]
fn the_shipped_rules_are_those_of_the_shipped_budgets() {
    let output = render(&folder().join("budgets.toml"));
    assert!(output.status.success(), "{output:?}");
    let rendered = String::from_utf8(output.stdout).unwrap();
    let file = folder().join(RULES);
    if std::env::var_os("GPUACCT_UPDATE_DOCS").is_some() {
        fs::write(&file, &rendered).unwrap();
    }
    assert_eq!(fs::read_to_string(file).unwrap(), rendered);
}

fn judge(promtool: &Path) {
    let rules = folder().join(RULES);
    run(Command::new(promtool).args(["check", "rules"]).arg(rules)).unwrap();
    let tests = folder().join(TESTS);
    run(Command::new(promtool).args(["test", "rules"]).arg(tests)).unwrap();
}

#[test]
fn the_distributions_promtool_finds_budgets_used_and_a_month_at_its_end() {
    if let Some(promtool) = require("promtool", program("promtool")) {
        judge(&promtool);
    }
}

#[test]
fn the_newest_promtool_finds_budgets_used_and_a_month_at_its_end() {
    if let Some(promtool) = require("prometheus-new", newest("promtool")) {
        judge(&promtool);
    }
}

#[test]
fn every_alert_about_budgets_is_fired_by_a_test_and_kept_from_firing_by_another() {
    let tests = fs::read_to_string(folder().join(TESTS)).unwrap();
    let (mut fires, mut does_not) = (BTreeSet::new(), BTreeSet::new());
    for case in tests.split("- alertname: ").skip(1) {
        let name = case.lines().next().unwrap();
        let is_quiet = case.contains("exp_alerts: []");
        if is_quiet { &mut does_not } else { &mut fires }.insert(name);
    }
    let rules = rules(&folder().join(RULES)).unwrap();
    let alerts: BTreeSet<&str> = rules
        .iter()
        .filter_map(|rule| rule.alert.as_deref())
        .collect();
    assert_eq!(alerts.len(), 3);
    assert_eq!(fires, alerts);
    assert_eq!(does_not, alerts);
}

#[test]
fn all_that_is_wrong_with_budgets_is_listed_with_line_and_column() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("b.toml");
    let shown = file.display();
    let wrong = "[[budget]]\nname = \"a\"\nnamespaces = [\"a.*\"]\ngpu_hours = 1\n[[budget]]\nname = \"b\"\n";
    fs::write(&file, wrong).unwrap();
    let output = render(&file);
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stdout.is_empty());
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(
        said,
        format!(
            "error: cannot use the budgets, 3 mistakes:\n  \
             {shown}:3:15: budget[0].namespaces[0]: found \"a.*\", expected a namespace: a-z, 0-9 and - are \
             possible\n  \
             {shown}:5:1: budget[1]: says not how much it is: expected gpu_hours or money\n  \
             {shown}:5:1: budget[1]: says not whose it is: expected namespaces, namespace_label or cluster\n  \
             -> correct the file of budgets\n"
        )
    );
    // A file that is not there, and prices that are not.
    let output = render(&dir.path().join("none.toml"));
    assert_eq!(output.status.code(), Some(2));
    let money = "prices = \"none.toml\"\n[[budget]]\nname = \"a\"\ncluster = \"c\"\nmoney = 1\n";
    fs::write(&file, money).unwrap();
    let output = render(&file);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("cannot read the prices in"), "{said}");
}
