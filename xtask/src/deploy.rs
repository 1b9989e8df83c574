//! `cargo xtask deploy VERB`: what is shipped in `deploy/`.
//!
//! `check` selects modules of the integration tests, and is no second framework beside them. What it adds
//! is that nothing is skipped for want of a part: a part that is missing is a failure.

use anyhow::Result;
use clap::Subcommand;

use crate::test;

/// Modules of `tests/tests/it` about what is shipped.
const MODULES: [&str; 11] = [
    "budgets::",
    "capabilities::",
    "cdi::",
    "chart::",
    "deploy::",
    "install::",
    "linters::",
    "migration::",
    "opencost::",
    "records::",
    "rules::",
];
/// The module about the dashboards: its tests scrape a real agent.
const DASHBOARDS: [&str; 1] = ["dashboards::"];
/// The parts that these need. An OpenTelemetry Collector is not among them: nothing here fetches one, and
/// the test that wants it says that it is skipped.
const PARTS: &str = "agent,amtool,chdb,duckdb,namespaces,prometheus-new,promtool,pypi,registry,systemd,victoria-metrics";
/// The parts that the dashboards need.
const PARTS_OF_DASHBOARDS: &str = "agent,docker,prometheus-new";

/// Check what is shipped
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Check manifests, chart, image, unit, workflows and the commands of docs/INSTALL.md
    ///
    /// helm lint and template over a matrix of values, refusals of the schema, Kubernetes' schemas from
    /// 1.25 to 1.37, models of operators, the chart against kustomize, capabilities, hadolint, actionlint,
    /// zizmor, shellcheck, systemd-analyze, promtool's tests of rules and alerts, amtool, the SQL over usage
    /// records in DuckDB and ClickHouse, and the names of metrics in rules and documents.
    Check,
    /// Run every panel's query on a Prometheus that scrapes an agent with simulated GPUs
    Dashboards,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    match options.verb {
        Verb::Check => test::run(&test::Options::modules(&MODULES, PARTS)),
        Verb::Dashboards => test::run(&test::Options::modules(&DASHBOARDS, PARTS_OF_DASHBOARDS)),
    }
}
