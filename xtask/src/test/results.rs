//! What nextest and libtest report, added up.

use std::collections::BTreeSet;
use std::io::BufRead;

use anyhow::{Context, Result};

use super::Runner;

/// How many tests passed and failed, and which failed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Results {
    pub(super) passed: u64,
    pub(super) failed: u64,
    names: BTreeSet<String>,
    /// Those that failed and passed at the second try.
    flaky: BTreeSet<String>,
    /// Whether nextest's summary has been seen. What it lists after it is final.
    is_final: bool,
}

impl Results {
    /// The tests that failed, in alphabetical order.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }

    /// The tests that failed and passed at the second try, in alphabetical order.
    pub(super) fn flaky(&self) -> impl Iterator<Item = &str> {
        self.flaky.iter().map(String::as_str)
    }

    /// Takes in a line of the runner's report. Other lines, such as what a test prints, change nothing.
    /// nextest shows what libtest said of a test that failed, which is no result of nextest's.
    fn add(&mut self, runner: Runner, line: &str) {
        match runner {
            Runner::Libtest => {
                if let Some(result) = line.strip_prefix("test result: ") {
                    self.add_binary(result);
                } else if let Some(test) = line.strip_prefix("test ") {
                    let failed = test.strip_suffix(" ... FAILED");
                    self.names.extend(failed.map(str::to_owned));
                }
            }
            Runner::Nextest => {
                if let Some(summary) = line.trim_start().strip_prefix("Summary [") {
                    self.add_summary(summary);
                    self.is_final = true;
                } else if let Some((status, test)) = result_of_nextest(line) {
                    if status.starts_with("FLAKY ") {
                        self.flaky.insert(test);
                    } else if is_failure(status) || (self.is_final && is_failed_try(status)) {
                        self.names.insert(test);
                    }
                }
            }
        }
    }

    /// libtest, at the end of each binary: `test result: ok. 3 passed; 0 failed; 0 ignored; …`.
    fn add_binary(&mut self, result: &str) {
        let words: Vec<&str> = result.split([' ', ';', '.']).collect();
        for pair in words.windows(2) {
            let Ok(count) = pair[0].parse::<u64>() else {
                continue;
            };
            match pair[1] {
                "passed" => self.passed += count,
                "failed" => self.failed += count,
                _ => {}
            }
        }
    }

    /// nextest, at the end: `Summary [  1.2s] 8 tests run: 6 passed (1 slow), 1 failed, 1 timed out, 0
    /// skipped`. What has not passed has failed. An interrupted run says `7/8 tests run`.
    fn add_summary(&mut self, summary: &str) {
        let Some((_, counts)) = summary.split_once("] ") else {
            return;
        };
        let Some((run, counts)) = counts.split_once(" run: ") else {
            return;
        };
        let run = run.split([' ', '/']).next().and_then(|n| n.parse().ok());
        let passed = counts.split(", ").find(|count| count.contains(" passed"));
        let passed = passed.and_then(|count| count.split(' ').next()?.parse().ok());
        let (run, passed): (u64, u64) = (run.unwrap_or(0), passed.unwrap_or(0));
        self.passed += passed;
        self.failed += run.saturating_sub(passed);
    }
}

/// Status and test of a line of nextest's: `FAIL [   0.4s] (3/8) package::binary a::test`.
fn result_of_nextest(line: &str) -> Option<(&str, String)> {
    let (status, rest) = line.trim_start().split_once(" [")?;
    let (seconds, test) = rest.split_once("] ")?;
    if !seconds.trim_start().ends_with('s') {
        return None;
    }
    // The binary's name says no more than the test's, and libtest has none.
    Some((status, test.rsplit(' ').next()?.to_owned()))
}

/// Whether a test that is run once has failed.
fn is_failure(status: &str) -> bool {
    ["FAIL", "LEAK-FAIL", "ABORT", "TIMEOUT"].contains(&status)
        || status.strip_prefix("SIG").is_some_and(is_upper)
}

/// Whether a try of a test that is run twice has failed: `TRY 2 FAIL`, `TRY 2 ABRT`. Only what is listed
/// at the end was the last try.
fn is_failed_try(status: &str) -> bool {
    let result = status
        .strip_prefix("TRY ")
        .and_then(|rest| rest.split_once(' '));
    result.is_some_and(|(_, result)| result != "PASS")
}

fn is_upper(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_uppercase())
}

/// Shows what the tests print and adds up their results. What they print may be anything.
pub(super) fn follow(runner: Runner, output: impl BufRead) -> Result<Results> {
    let mut results = Results::default();
    for line in output.split(b'\n') {
        let line = line.context("cannot read what the tests print")?;
        let line = String::from_utf8_lossy(&line);
        results.add(runner, &line);
        println!("{line}");
    }
    Ok(results)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results_of(runner: Runner, lines: &[&str]) -> (u64, u64, Vec<String>) {
        let output = lines.join("\n");
        let results = follow(runner, output.as_bytes()).expect("memory can be read");
        let names = results.names().map(str::to_owned).collect();
        (results.passed, results.failed, names)
    }

    #[test]
    fn the_results_of_all_binaries_of_libtest_are_added_up() {
        let lines = [
            "test result: ok. 12 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.52s",
            "test core::ledger::tests::the_check_can_fail ... ok",
            "test kernel::a_pid_is_seen ... FAILED",
            "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1s",
        ];
        let names = vec!["kernel::a_pid_is_seen".to_owned()];
        assert_eq!(results_of(Runner::Libtest, &lines), (15, 2, names));
        let output = b"\xff is not utf-8\ntest result: ok. 1 passed; 0 failed; 0 ignored\n";
        let results = follow(Runner::Libtest, output.as_slice()).expect("memory can be read");
        assert_eq!((results.passed, results.failed), (1, 0));
    }

    #[test]
    fn the_summary_of_nextest_is_read() {
        let lines = [
            "        PASS [   0.005s] (1/6) gpuacct core::model::tests::zero",
            "        FAIL [   0.412s] (2/6) gpuacct-tests::it store::a_full_disk",
            "     SIGABRT [   1.002s] (3/6) gpuacct core::model::tests::overflow",
            "     TIMEOUT [ 600.002s] (4/6) gpuacct-tests::it cri::hangs",
            "        SLOW [> 60.000s] (4/6) gpuacct-tests::it cri::hangs",
            "test store::of_another_harness ... FAILED",
            "test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out",
            "     Summary [  61.102s] 6 tests run: 3 passed (1 slow), 1 failed, 1 timed out, 0 skipped",
            "        FAIL [   0.412s] (2/6) gpuacct-tests::it store::a_full_disk",
        ];
        let names = [
            "core::model::tests::overflow",
            "cri::hangs",
            "store::a_full_disk",
        ];
        let names = names.map(str::to_owned).to_vec();
        assert_eq!(results_of(Runner::Nextest, &lines), (3, 3, names));
    }

    #[test]
    fn a_run_that_was_interrupted_is_counted_as_far_as_it_came() {
        let summary = "     Summary [   2.001s] 7/810 tests run: 6 passed, 1 failed, 2 skipped";
        assert_eq!(results_of(Runner::Nextest, &[summary]), (6, 1, vec![]));
    }

    #[test]
    fn what_a_test_prints_is_no_result() {
        let lines = [
            "FAIL [not a time] x",
            "Summary [] of it",
            "test of a thing",
            "SIG [1s] x",
        ];
        assert_eq!(results_of(Runner::Nextest, &lines), (0, 0, vec![]));
    }

    #[test]
    fn a_test_that_passes_at_the_second_try_is_named_and_has_passed() {
        let lines = [
            "  TRY 1 ABRT [   0.005s] (───) fl tests::aborts",
            "  TRY 2 ABRT [   0.007s] (1/4) fl tests::aborts",
            "  TRY 1 FAIL [   0.284s] (───) fl tests::flaky",
            "  TRY 2 PASS [   0.021s] (2/4) fl tests::flaky",
            "  TRY 1 FAIL [   0.326s] (───) fl tests::bad",
            "        PASS [   0.010s] (3/4) fl tests::good",
            "  TRY 2 FAIL [   0.151s] (4/4) fl tests::bad",
            "     Summary [   0.478s] 4 tests run: 2 passed (1 flaky), 2 failed, 0 skipped",
            "   FLAKY 2/2 [   0.021s] (2/4) fl tests::flaky",
            "  TRY 2 ABRT [   0.007s] (1/4) fl tests::aborts",
            "  TRY 2 FAIL [   0.151s] (4/4) fl tests::bad",
        ];
        let results = follow(Runner::Nextest, lines.join("\n").as_bytes()).expect("memory");
        assert_eq!((results.passed, results.failed), (2, 2));
        let names: Vec<&str> = results.names().collect();
        assert_eq!(names, ["tests::aborts", "tests::bad"]);
        assert_eq!(results.flaky().collect::<Vec<_>>(), ["tests::flaky"]);
    }
}
