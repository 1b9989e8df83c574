//! `gpuacct check`: what an operator runs first, with or without an agent.

use std::fmt::Write as _;
use std::process::ExitCode;

use serde::{Deserialize, Serialize};

use super::agent_choice::{AgentChoice, ChosenConfig};
use super::complaint::complain;
use super::output::{Output, print, print_page};
use super::progress::Progress;
use super::table::wrap;
use crate::app::preflight::{self, Finding, Verdict};
use crate::outputs::instruments::VERSION;

/// Check what the agent needs on this node
///
/// Attaches to the kernel, opens NVML, asks every runtime, tries the ports, the directories and the
/// receiver of OTLP, and lets all of it go again. Runs without the agent and beside it. Exits with 0 if the agent can
/// work, with 1 if something fails, with 2 if the configuration or a flag is wrong.
#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    agent: AgentChoice,
    /// For people (table) or for programs (json)
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

/// What was found, as `-o json` prints it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckReport {
    /// Version of this program.
    pub version: String,
    /// The worst of the findings.
    pub verdict: Verdict,
    /// Findings in the order of the checks.
    pub findings: Vec<Finding>,
}

impl CheckReport {
    /// A report of these findings.
    #[must_use]
    pub fn new(findings: Vec<Finding>) -> Self {
        let worst = findings.iter().map(|finding| finding.verdict).max();
        Self {
            version: VERSION.to_owned(),
            verdict: worst.unwrap_or(Verdict::Ok),
            findings,
        }
    }

    /// The report for people: a line each, with what to do below it.
    #[must_use]
    pub fn page(&self) -> String {
        let mut page = String::new();
        for finding in &self.findings {
            let Finding { item, found, .. } = finding;
            let line = format!("{:<4}  {item}: {found}", finding.verdict.as_str());
            wrap(&mut page, &line, "        ");
            if let Some(remedy) = &finding.remedy {
                wrap(&mut page, &format!("      -> {remedy}"), "         ");
            }
        }
        let count = |verdict| {
            let of = |finding: &&Finding| finding.verdict == verdict;
            self.findings.iter().filter(of).count()
        };
        writeln!(
            page,
            "\ngpuacct {}: {} ok, {} warn, {} fail",
            self.version,
            count(Verdict::Ok),
            count(Verdict::Warn),
            count(Verdict::Fail)
        )
        .expect("a String takes everything");
        page
    }
}

/// Looks and prints: 0 the agent can work, 1 it cannot, 2 the configuration is wrong.
pub async fn run(options: Options) -> ExitCode {
    let ChosenConfig {
        config,
        origin,
        unused,
        ..
    } = match options.agent.configuration().await {
        Ok(chosen) => chosen,
        Err(error) => return complain(&error, 2),
    };
    let mut findings = vec![Finding {
        item: "configuration".to_owned(),
        verdict: Verdict::Ok,
        found: origin,
        remedy: None,
    }];
    findings.extend(unused.into_iter().map(|variable| Finding {
        item: "environment".to_owned(),
        verdict: Verdict::Warn,
        found: format!("not used: {variable}"),
        remedy: Some("correct or remove the variable; otlp is set up without it".to_owned()),
    }));
    let progress = Progress::start("checking this node");
    findings.extend(preflight::look(&config).await);
    drop(progress);
    let report = CheckReport::new(findings);
    let code = u8::from(report.verdict == Verdict::Fail);
    match options.output {
        Output::Table => print_page(report.page(), code),
        Output::Json => match serde_json::to_string_pretty(&report) {
            Ok(json) => print(json + "\n", code),
            Err(error) => complain(&error, 1),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::table::WIDTH;
    use crate::outputs::sample::golden;
    use unicode_width::UnicodeWidthStr as _;

    fn finding(item: &str, verdict: Verdict, found: &str, remedy: Option<&str>) -> Finding {
        Finding {
            item: item.to_owned(),
            verdict,
            found: found.to_owned(),
            remedy: remedy.map(str::to_owned),
        }
    }

    #[test]
    fn the_page_says_what_to_do() {
        let mut report = CheckReport::new(vec![
            finding("kernel", Verdict::Ok, "linux 6.1.0-18-amd64", None),
            finding(
                "hook sched_process_exit",
                Verdict::Fail,
                "the kernel refused to attach to `sched_process_exit`: this process lacks \
                 CAP_PERFMON: bpf_raw_tracepoint_open failed: Operation not permitted (os error 1)",
                Some(
                    "run as root with CAP_BPF and CAP_PERFMON (or CAP_SYS_ADMIN), privileged if in a container",
                ),
            ),
            finding(
                "nvml",
                Verdict::Warn,
                "libnvidia-ml.so.1 was not found in the loader's path or in 7 other places",
                Some(
                    "install NVIDIA's driver, or set gpu.library; without a GPU there is nothing to account for",
                ),
            ),
        ]);
        report.version = "0.1.0".to_owned();
        assert_eq!(report.verdict, Verdict::Fail);
        let page = report.page();
        for line in page.lines() {
            assert!(line.width() <= WIDTH, "{line}");
        }
        golden("check.txt", &page);
    }

    #[test]
    fn the_worst_finding_is_the_verdict() {
        use Verdict::{Fail, Ok, Warn};
        for (verdicts, expected) in [
            (vec![], Ok),
            (vec![Ok, Ok], Ok),
            (vec![Ok, Warn, Ok], Warn),
            (vec![Fail, Warn], Fail),
        ] {
            let findings = verdicts.iter().map(|v| finding("x", *v, "y", None));
            assert_eq!(CheckReport::new(findings.collect()).verdict, expected);
        }
    }
}
