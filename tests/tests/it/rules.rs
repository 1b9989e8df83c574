//! The rules and alerts in `deploy/alerts`, held against those who read them: promtool of two releases,
//! Prometheus' own parser, amtool; and against the documents that say what to do.

#![expect(
    clippy::unwrap_used,
    reason = "the helpers are part of the tests: what is not as it should be fails them"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use gpuacct_tests::alertmanager::amtool;
use gpuacct_tests::daemon::program;
use gpuacct_tests::promql::{
    Names, RULE_FILES, Rule, alerts_folder, looking_back, rules, shipped_rules,
};
use gpuacct_tests::python::run;
use gpuacct_tests::requirement::require;
use gpuacct_tests::victoria_metrics::vmalert_tool;
use gpuacct_tests::web::newest;
use serde::Deserialize;

/// What the operator sets. It has no level and no operation: it is an input.
const PRICE: &str = "gpuacct:gpu_hour_price";
const SEVERITIES: [&str; 2] = ["critical", "warning"];
const ALERTS: &str = "gpuacct.alerts.yaml";
const ROUTES: &str = "alertmanager.example.yaml";

fn operations() -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/OPERATIONS.md");
    fs::read_to_string(file).unwrap()
}

/// The files of promtool's tests.
fn test_files() -> Vec<PathBuf> {
    let entries = fs::read_dir(alerts_folder()).unwrap();
    let files = entries.map(|entry| entry.unwrap().path());
    let is_test = |path: &PathBuf| path.to_string_lossy().ends_with("_test.yaml");
    let mut files: Vec<PathBuf> = files.filter(is_test).collect();
    files.sort();
    files
}

fn alerts() -> BTreeMap<String, Rule> {
    let alerts = rules(&alerts_folder().join(ALERTS)).unwrap();
    let named = alerts.into_iter().map(|rule| {
        let name = rule.alert.clone();
        (name.expect("the file has nothing but alerts"), rule)
    });
    named.collect()
}

/// Has a promtool check the rules and run their tests.
fn judge(promtool: &Path) {
    let files = RULE_FILES.map(|file| alerts_folder().join(file));
    run(Command::new(promtool).args(["check", "rules"]).args(files)).unwrap();
    run(Command::new(promtool)
        .args(["test", "rules"])
        .args(test_files()))
    .unwrap();
}

#[test]
fn the_distributions_promtool_accepts_the_rules_and_their_tests() {
    if let Some(promtool) = require("promtool", program("promtool")) {
        judge(&promtool);
    }
}

#[test]
fn the_newest_promtool_accepts_the_rules_and_their_tests() {
    if let Some(promtool) = require("prometheus-new", newest("promtool")) {
        judge(&promtool);
    }
}

/// The same cases on VictoriaMetrics. Its tool reads promtool's tests, with MetricsQL in place of PromQL.
#[test]
fn vmalert_records_the_same_growth() {
    let Some(tool) = require("victoria-metrics", vmalert_tool()) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    for file in RULE_FILES {
        fs::copy(alerts_folder().join(file), dir.path().join(file)).unwrap();
    }
    for file in [
        "gpuacct.recording_test.yaml",
        "gpuacct.recording_outage_test.yaml",
    ] {
        let text = fs::read_to_string(alerts_folder().join(file)).unwrap();
        let copy = dir.path().join(file);
        fs::write(
            &copy,
            text.replace("promql_expr_test", "metricsql_expr_test"),
        )
        .unwrap();
        run(Command::new(&tool)
            .args(["unittest", "--disableAlertgroupLabel"])
            .arg(format!("--files={}", copy.display()))
            // Where it keeps the samples.
            .env("TMPDIR", dir.path()))
        .unwrap();
    }
}

#[test]
fn rules_name_metrics_and_labels_that_exist() {
    let Some(program) = require("prometheus-new", newest("prometheus")) else {
        return;
    };
    let names = Names::start(&program).unwrap();
    for rule in shipped_rules().unwrap() {
        let name = rule.record.as_ref().or(rule.alert.as_ref()).unwrap();
        let labels = names
            .labels(&rule.expr)
            .unwrap_or_else(|error| panic!("{name}: {error:#}"));
        if let Some(said) = looking_back(name) {
            assert_eq!(labels, said, "{name}");
        }
        for (annotation, text) in &rule.annotations {
            for used in text.split("$labels.").skip(1) {
                let used: String = used
                    .chars()
                    .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
                    .collect();
                assert!(labels.contains(&used), "{name}: {annotation} uses {used}");
            }
        }
    }
    // So that what is checked can be wrong.
    for (promql, wrong) in [
        ("gpuacct_gpu_busy_seconds", "no metric gpuacct_gpu_busy"),
        (
            "gpuacct_gpu_busy_seconds_total{namespace=\"a\"}",
            "no label namespace",
        ),
        (
            "sum by (pod) (gpuacct_gpu_busy_seconds_total)",
            "no label pod",
        ),
        (
            "sum by (gpu_uuid) (sum by (instance) (gpuacct_gpu_busy_seconds_total))",
            "no label gpu_uuid",
        ),
        (
            "sum by (pod) (namespace_gpu:gpuacct_busy_seconds:growth5m)",
            "no label pod",
        ),
        (
            "gpuacct_commits_total * on (gpu_uuid) gpuacct_gpu_info",
            "gpu_uuid is matched on",
        ),
    ] {
        let error = format!("{:#}", names.labels(promql).unwrap_err());
        assert!(error.contains(wrong), "{promql}: {error}");
    }
}

#[test]
fn recorded_names_say_level_metric_and_operation() {
    for rule in shipped_rules().unwrap() {
        let Some(name) = rule.record else { continue };
        let parts: Vec<&str> = name.split(':').collect();
        let is_good = matches!(parts[..], [level, metric, operation]
            if !level.is_empty() && metric.starts_with("gpuacct_") && !operation.is_empty());
        assert!(is_good || name == PRICE, "{name}");
    }
}

#[test]
fn every_alert_has_a_test_that_fires_it_and_one_that_does_not() {
    #[derive(Deserialize)]
    struct File {
        tests: Vec<Test>,
    }
    #[derive(Deserialize)]
    struct Test {
        name: String,
        #[serde(default)]
        alert_rule_test: Vec<AlertTest>,
    }
    #[derive(Deserialize)]
    struct AlertTest {
        alertname: String,
        exp_alerts: Vec<Expected>,
    }
    #[derive(Deserialize)]
    struct Expected {
        exp_annotations: BTreeMap<String, String>,
    }
    let mut fires = BTreeSet::new();
    let mut does_not = BTreeSet::new();
    for file in test_files() {
        let text = fs::read_to_string(&file).unwrap();
        let file: File = serde_saphyr::from_str(&text).unwrap();
        let tests = file.tests.into_iter();
        for (test, of) in tests.flat_map(|test| {
            let of = test.alert_rule_test;
            of.into_iter().map(move |of| (test.name.clone(), of))
        }) {
            let alert = of.alertname;
            let verb = if of.exp_alerts.is_empty() {
                "does not fire"
            } else {
                "fires"
            };
            let says = format!("{alert} {verb}: ");
            assert!(test.starts_with(&says), "{test:?} says not {says:?}");
            let rendered = of
                .exp_alerts
                .iter()
                .flat_map(|e| e.exp_annotations.values());
            for text in rendered {
                assert!(!text.contains("error expanding"), "{test}: {text}");
            }
            if of.exp_alerts.is_empty() {
                does_not.insert(alert);
            } else {
                fires.insert(alert);
            }
        }
    }
    let alerts: BTreeSet<String> = alerts().into_keys().collect();
    assert_eq!(fires, alerts, "that are fired");
    assert_eq!(does_not, alerts, "that are kept from firing");
}

#[test]
fn every_alert_says_how_bad_it_is_what_it_means_and_where_to_read_on() {
    let operations = operations();
    let headings = operations
        .lines()
        .filter_map(|line| line.strip_prefix("### "));
    let sections: BTreeSet<&str> = headings.filter(|h| h.starts_with("Gpuacct")).collect();
    let alerts = alerts();
    let names: BTreeSet<&str> = alerts.keys().map(String::as_str).collect();
    assert_eq!(sections, names, "an alert and its section belong together");
    for (name, rule) in &alerts {
        let severity = rule.labels.get("severity").map(String::as_str);
        assert!(severity.is_some_and(|s| SEVERITIES.contains(&s)), "{name}");
        let annotations: Vec<&str> = rule.annotations.keys().map(String::as_str).collect();
        assert_eq!(
            annotations,
            ["description", "runbook_url", "summary"],
            "{name}"
        );
        // GitHub's anchor of a heading of one word.
        let anchor = format!("docs/OPERATIONS.md#{}", name.to_lowercase());
        assert_eq!(rule.annotations["runbook_url"], anchor);
        assert!(rule.annotations["description"].len() > 100, "{name}");
    }
    // Each waits for a reason, or for none.
    let text = fs::read_to_string(alerts_folder().join(ALERTS)).unwrap();
    for alert in text.split("      - alert: ").skip(1) {
        let name = alert.lines().next().unwrap();
        assert!(
            alert.contains("        # "),
            "{name} does not say why it waits"
        );
    }
}

#[test]
fn the_documents_name_the_rule_files() {
    let operations = operations();
    for file in RULE_FILES {
        assert!(operations.contains(&format!("  - {file}")), "{file}");
    }
}

#[test]
fn alertmanager_accepts_the_example_and_routes_by_it() {
    let Some(amtool) = require("amtool", amtool()) else {
        return;
    };
    let file = alerts_folder().join(ROUTES);
    run(Command::new(&amtool).arg("check-config").arg(&file)).unwrap();
    let route = |labels: &[String]| {
        let told = run(Command::new(&amtool)
            .args(["config", "routes", "test"])
            .arg(format!("--config.file={}", file.display()))
            .args(labels))
        .unwrap();
        told.trim().to_owned()
    };
    for (name, rule) in alerts() {
        let severity = &rule.labels["severity"];
        let expected = match (&*name, &**severity) {
            (_, "critical") => "on-call",
            ("GpuacctAllocatedIdle" | "GpuacctIdleCost", _) => "owners",
            ("GpuacctXid" | "GpuacctGpuUnwell" | "GpuacctThrottled" | "GpuacctHealthFails", _) => {
                "hardware"
            }
            _ => "platform",
        };
        let labels = [
            format!("alertname={name}"),
            format!("severity={severity}"),
            "namespace=research".to_owned(),
        ];
        assert_eq!(route(&labels), expected, "{name}");
    }
    assert_eq!(
        route(&["alertname=NodeDown".into(), "severity=critical".into()]),
        "platform"
    );
    // Whoever inhibits or is inhibited by name is an alert.
    let text = fs::read_to_string(&file).unwrap();
    let alerts = alerts();
    let words = text.split(|c: char| !c.is_ascii_alphanumeric());
    for word in words.filter(|word| word.len() > 7 && word.starts_with("Gpuacct")) {
        assert!(alerts.contains_key(word), "{ROUTES} names {word}");
    }
}
