//! The queries of `docs/OPENCOST.md`, each run by promtool on series whose answer is known.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use gpuacct_tests::daemon::program;
use gpuacct_tests::manifests::root;
use gpuacct_tests::promql::{OWNER, alerts_folder, documented};
use gpuacct_tests::python::run;
use gpuacct_tests::requirement::require;
use gpuacct_tests::web::newest;

/// Two containers share a GPU at 2.00 an hour on node a, one has a GPU at 3.00 on node b. Both have them
/// for the whole of the last day.
const SERIES: [(&str, &str); 14] = [
    (
        "DCGM_FI_PROF_GR_ENGINE_ACTIVE{namespace='r', pod='p', container='c', UUID='1'}",
        "0.25x300",
    ),
    (
        "DCGM_FI_PROF_GR_ENGINE_ACTIVE{namespace='s', pod='q', container='c', UUID='1'}",
        "0.5x300",
    ),
    (
        "gpuacct_namespace_gpu_busy_seconds_total{node='a', instance='a', gpu_uuid='1', namespace='r'}",
        "0+75x300",
    ),
    (
        "gpuacct_namespace_gpu_busy_seconds_total{node='a', instance='a', gpu_uuid='1', namespace='s'}",
        "0+150x300",
    ),
    (
        "gpuacct_namespace_gpu_busy_seconds_total{node='b', instance='b', gpu_uuid='2', namespace='r'}",
        "0+30x300",
    ),
    (
        "gpuacct_namespace_gpu_allocated_seconds_total{node='a', instance='a', gpu_uuid='1', namespace='r'}",
        "0+300x300",
    ),
    (
        "gpuacct_namespace_gpu_allocated_seconds_total{node='b', instance='b', gpu_uuid='2', namespace='r'}",
        "0+300x300",
    ),
    (
        "gpuacct_gpu_idle_seconds_total{node='a', instance='a', gpu_uuid='1'}",
        "0+75x300",
    ),
    (
        "gpuacct_gpu_idle_seconds_total{node='b', instance='b', gpu_uuid='2'}",
        "0+270x300",
    ),
    (
        "node_gpu_hourly_cost{node='a', instance_type='x', provider_id='1'}",
        "2x300",
    ),
    (
        "node_gpu_hourly_cost{node='b', instance_type='y', provider_id='2'}",
        "3x300",
    ),
    (
        "container_gpu_allocation{node='a', namespace='r', pod='p', container='c'}",
        "0.5x300",
    ),
    (
        "container_gpu_allocation{node='a', namespace='s', pod='q', container='c'}",
        "0.5x300",
    ),
    (
        "container_gpu_allocation{node='b', namespace='r', pod='t', container='c'}",
        "1x300",
    ),
];

/// The answers, in the order of the page.
const ANSWERS: [&[(&str, &str)]; 5] = [
    &[
        ("{namespace='r', pod='p', container='c'}", "0.25"),
        ("{namespace='s', pod='q', container='c'}", "0.5"),
    ],
    // 24 hours: a quarter of them at 2 and a tenth at 3; half of them at 2.
    &[("{namespace='r'}", "19.2"), ("{namespace='s'}", "24")],
    // Nothing was allocated to s.
    &[("{namespace='r'}", "100.8")],
    &[("{node='a'}", "12"), ("{node='b'}", "64.8")],
    &[("{namespace='r'}", "4"), ("{namespace='s'}", "1")],
];

fn queries() -> Vec<String> {
    let page = fs::read_to_string(root().join("docs/OPENCOST.md")).unwrap();
    let blocks = page.split("```promql\n").skip(1);
    let queries = blocks.map(|block| block.split("\n```").next().unwrap().to_owned());
    queries.collect()
}

fn judge(promtool: &Path) {
    let queries = queries();
    assert_eq!(queries.len(), ANSWERS.len(), "each query has an answer");
    let folder = alerts_folder();
    let mut test = format!(
        "rule_files: [{folder}/gpuacct.prices.yaml, {folder}/gpuacct.recording.yaml]\n\
         evaluation_interval: 5m\ngroup_eval_order: [gpuacct.prices, gpuacct.bill, gpuacct.now]\n\
         tests:\n- interval: 5m\n  input_series:\n",
        folder = folder.display()
    );
    for (series, values) in SERIES {
        writeln!(test, "  - series: \"{series}\"\n    values: {values}").unwrap();
    }
    test += "  promql_expr_test:\n";
    for (query, answers) in queries.iter().zip(ANSWERS) {
        let query = query.replace('\n', "\n      ");
        let expr = format!("round(\n      {query},\n      0.000001)");
        writeln!(
            test,
            "  - expr: |\n      {expr}\n    eval_time: 24h\n    exp_samples:"
        )
        .unwrap();
        for (labels, value) in answers {
            writeln!(test, "    - labels: \"{labels}\"\n      value: {value}").unwrap();
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("test.yaml");
    fs::write(&file, &test).unwrap();
    run(Command::new(promtool).args(["test", "rules"]).arg(&file))
        .unwrap_or_else(|error| panic!("{error:#}\n{test}"));
}

#[test]
fn the_distributions_promtool_answers_the_pages_queries() {
    if let Some(promtool) = require("promtool", program("promtool")) {
        judge(&promtool);
    }
}

#[test]
fn the_newest_promtool_answers_the_pages_queries() {
    if let Some(promtool) = require("prometheus-new", newest("promtool")) {
        judge(&promtool);
    }
}

#[test]
fn what_opencost_reads_of_us_is_published_under_these_labels() {
    let families = documented().unwrap();
    let labels = &families["DCGM_FI_PROF_GR_ENGINE_ACTIVE"];
    for label in OWNER {
        assert!(labels.contains(label), "{label}");
    }
    assert!(!labels.contains("uid"), "the page says that there is none");
    for family in [
        "gpuacct_gpu_idle_seconds_total",
        "gpuacct_namespace_gpu_busy_seconds_total",
    ] {
        assert!(families.contains_key(family), "{family}");
    }
}
