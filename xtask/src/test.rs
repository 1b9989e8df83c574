//! `cargo xtask test`: every test, on everything real that this machine has.
//!
//! Tests that lack a part skip themselves and say so; the skips are listed at the end, where
//! nobody can miss them. `GPUACCT_REQUIRE` makes a skip a failure, as CI does.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::archive;
use crate::build::{self, Profile};
use crate::command::Cmd;
use crate::fuzz;
use crate::kubelet;
use crate::setup::{self, Group};
use crate::workspace;

/// Where the tests write down what they skip; see `gpuacct_tests::requirement`.
const SKIPS: &str = "GPUACCT_SKIPS";
/// Names the folder with newer runtimes; see `gpuacct_tests::docker`.
const NEWER_RUNTIMES: &str = "GPUACCT_NEWER_RUNTIMES";
/// Names the kubelet; see `gpuacct_tests::kubelet`.
const KUBELET: &str = "GPUACCT_KUBELET";
/// The parts that must be there; see `gpuacct_tests::requirement`.
const REQUIRE: &str = "GPUACCT_REQUIRE";

/// How long each fuzz target runs.
const FUZZ_EACH: Duration = Duration::from_secs(60);

/// Set everything up and run all tests
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Those, too, that take minutes: a pod under a kubelet, which is built, and a minute of each fuzz
    /// target
    #[arg(long)]
    slow: bool,
    /// What `cargo test` is given after `--`, e.g. a test's name
    #[arg(last = true, value_name = "ARGUMENTS")]
    arguments: Vec<OsString>,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Totals {
    passed: u64,
    failed: u64,
    binaries: u64,
}

impl Totals {
    /// Adds what libtest says at the end of each binary:
    /// `test result: ok. 3 passed; 0 failed; 0 ignored; …`.
    fn add(&mut self, line: &str) {
        let Some(result) = line.strip_prefix("test result: ") else {
            return;
        };
        self.binaries += 1;
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
}

/// Shows what the tests print and adds up their results. What they print may be anything.
fn follow(output: impl BufRead, totals: &mut Totals) -> Result<()> {
    for line in output.split(b'\n') {
        let line = line.context("cannot read what the tests print")?;
        let line = String::from_utf8_lossy(&line);
        totals.add(&line);
        println!("{line}");
    }
    Ok(())
}

fn slow_parts() -> Result<PathBuf> {
    setup::ensure(&[Group::Kubelet])?;
    kubelet::built()
}

pub(crate) fn run(options: &Options) -> Result<()> {
    setup::ensure(&[
        Group::Ebpf,
        Group::Runtimes,
        Group::Receivers,
        Group::Python,
    ])?;
    // What is tested with these is tested with others, too: without them, as without a network, the
    // rest is worth running.
    let further = setup::ensure(&[Group::OtherRuntimes]).and_then(|()| archive::newer_runtimes());
    let kubelet = options.slow.then(slow_parts).transpose()?;
    let agent = build::agent(Profile::Dev)?;
    let skips = workspace::target().join("skipped-tests.txt");
    fs::write(&skips, "").with_context(|| format!("cannot write {}", skips.display()))?;
    let mut tests = Cmd::new(workspace::cargo())
        .env(build::OBJECT_VARIABLE, build::built_object())
        .env("GPUACCT_BIN", agent)
        .env(SKIPS, &skips)
        // The eBPF object is not a program of this machine; it is tested by loading it. The fuzz targets
        // see more of the agent than it has: with them it would be built twice.
        .args(["test", "--workspace", "--exclude", "gpuacct-ebpf"])
        .args(["--exclude", "gpuacct-fuzz"])
        .args(["--no-fail-fast", "--"])
        .args(&options.arguments);
    match further {
        Ok(tree) => tests = tests.env(NEWER_RUNTIMES, tree),
        Err(error) => println!("without further runtimes: {error:#}"),
    }
    if let Some(kubelet) = kubelet {
        // Whoever asks for it wants no skip.
        let required = std::env::var(REQUIRE).unwrap_or_default();
        let required = format!("{required},kubelet");
        tests = tests.env(KUBELET, kubelet).env(REQUIRE, required);
    }
    let mut totals = Totals::default();
    let (mut running, output) = tests.spawn_reading()?;
    follow(BufReader::new(output), &mut totals)?;
    let status = running.wait().context("cannot wait for the tests")?;
    let skipped = fs::read_to_string(&skips).unwrap_or_default();
    for line in skipped.lines() {
        println!("skipped: {line}");
    }
    println!(
        "{} passed, {} failed, {} skipped",
        totals.passed,
        totals.failed,
        skipped.lines().count()
    );
    if !status.success() || totals.failed > 0 {
        bail!("the tests failed: {status}");
    }
    if totals.passed == 0 {
        bail!("no test ran");
    }
    if options.slow {
        fuzz::all(FUZZ_EACH)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_results_of_all_binaries_are_added_up() {
        let mut totals = Totals::default();
        for line in [
            "test result: ok. 12 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.52s",
            "test core::ledger::tests::the_check_can_fail ... ok",
            "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1s",
        ] {
            totals.add(line);
        }
        let output = b"\xff is not utf-8\ntest result: ok. 1 passed; 0 failed; 0 ignored\n";
        follow(output.as_slice(), &mut totals).expect("memory can be read");
        let expect = Totals {
            passed: 16,
            failed: 2,
            binaries: 3,
        };
        assert_eq!(totals, expect);
    }
}
