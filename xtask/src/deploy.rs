//! `cargo xtask deploy VERB`: what is shipped in `deploy/`.
//!
//! `check` selects modules of the integration tests, and is no second framework beside them. What it adds
//! is that nothing is skipped for want of a part: a part that is missing is a failure.

use anyhow::Result;
use clap::Subcommand;

use crate::test;

/// Modules of `tests/tests/it` about what is shipped.
const MODULES: [&str; 6] = [
    "capabilities::",
    "chart::",
    "deploy::",
    "install::",
    "linters::",
    "cdi::",
];
/// The parts that these need. An OpenTelemetry Collector is not among them: nothing here fetches one, and
/// the test that wants it says that it is skipped.
const PARTS: &str = "agent,namespaces,promtool,pypi,registry,systemd";

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
    /// 1.27 to 1.37, models of operators, the chart against kustomize, capabilities, hadolint, actionlint,
    /// zizmor, shellcheck, systemd-analyze, promtool.
    Check,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    match options.verb {
        Verb::Check => test::run(&test::Options::modules(&MODULES, PARTS)),
    }
}
