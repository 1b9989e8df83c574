//! `cargo xtask fuzz`: the fuzz targets of `tests/fuzz`, each under libFuzzer for a while.
//!
//! libFuzzer is LLVM's; its source is in the crate `libfuzzer-sys` and is built with the C++ compiler.
//! The coverage that guides it comes from options of a stable rustc. The targets have a target folder
//! of their own, since everything in it is built with these options.
//!
//! What a target learns stays in the target folder and is where the next run begins. An input that
//! breaks one is written there, too, and named at the end: it becomes a seed once the defect is mended.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::command::Cmd;
use crate::setup::{self, Group};
use crate::workspace;

/// The coverage that libFuzzer is guided by: every edge, and what is compared with what.
const COVERAGE: [&str; 5] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];
/// The longest input, in bytes. A target refuses what is too long for it.
const MAX_INPUT: u32 = 64 << 10;
/// How long one input may take, in seconds, and how much memory the process may have, in megabytes.
const SLOW: u32 = 5;
const LARGE: u32 = 1_024;

/// Run fuzz targets
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Which one; all of them, one after the other, if not given
    target: Option<String>,
    /// For how long each: 90s, 1m, 1h
    #[arg(long = "for", value_name = "TIME", default_value = "1m", value_parser = span)]
    time: Duration,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let known = targets()?;
    let chosen = match &options.target {
        Some(target) if known.contains(target) => vec![target.clone()],
        Some(target) => bail!(
            "there is no target {target:?}, expected one of: {}",
            known.join(" ")
        ),
        None => known,
    };
    fuzz(&chosen, options.time)
}

/// Runs every target for so long.
pub(crate) fn all(time: Duration) -> Result<()> {
    fuzz(&targets()?, time)
}

/// A length of time as it is typed.
pub(crate) fn span(text: &str) -> Result<Duration, String> {
    let expected =
        || format!("found {text:?}, expected a number of seconds, minutes or hours: 90s, 1m, 1h");
    let unit = text.chars().last().ok_or_else(expected)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3_600,
        _ => return Err(expected()),
    };
    let count = text.strip_suffix(unit).map(str::parse::<u32>);
    match count {
        Some(Ok(count)) if count > 0 => Ok(Duration::from_secs(u64::from(count) * seconds)),
        _ => Err(expected()),
    }
}

/// The names of the targets: each has a folder of seeds, which a test sees to.
fn targets() -> Result<Vec<String>> {
    let seeds = seeds();
    let folder =
        fs::read_dir(&seeds).with_context(|| format!("cannot read {}", seeds.display()))?;
    let mut names = folder
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

fn seeds() -> PathBuf {
    workspace::root().join("tests/fuzz/seeds")
}

fn fuzz(targets: &[String], time: Duration) -> Result<()> {
    let program = build()?;
    let mut outcomes = Vec::new();
    for target in targets {
        let outcome = one(&program, target, time)?;
        outcomes.push((target, outcome));
    }
    println!();
    for (target, outcome) in &outcomes {
        let verdict = match outcome.failed {
            true => "FAILED",
            false => "ok",
        };
        println!("fuzz {target}: {} runs, {verdict}", outcome.runs);
        for artifact in &outcome.artifacts {
            println!("  {artifact}");
        }
    }
    let failed = outcomes.iter().filter(|(_, outcome)| outcome.failed);
    let failed: Vec<_> = failed.map(|(target, _)| target.as_str()).collect();
    if !failed.is_empty() {
        bail!("targets that failed: {}", failed.join(" "));
    }
    Ok(())
}

/// Builds libFuzzer's program with all targets in it.
fn build() -> Result<PathBuf> {
    setup::ensure(&[Group::Fuzz])?;
    let host = host()?;
    let folder = workspace::target().join("fuzz");
    Cmd::new(workspace::cargo())
        .env("RUSTFLAGS", COVERAGE.join(" "))
        .without_env("CARGO_ENCODED_RUSTFLAGS")
        .args(["build", "--package", "gpuacct-fuzz", "--bin", "fuzz"])
        .args(["--features", "engine", "--profile", "fuzz"])
        // With a target named, what runs at build time is built without the options above.
        .args(["--target", &host, "--target-dir"])
        .arg(&folder)
        .run()?;
    Ok(folder.join(host).join("fuzz/fuzz"))
}

/// The compiler's own platform.
fn host() -> Result<String> {
    let version = Cmd::new("rustc").arg("-vV").read()?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned)
        .with_context(|| format!("rustc does not say what it runs on:\n{version}"))
}

/// What came of a target.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    runs: u64,
    failed: bool,
    /// Inputs that it was broken by.
    artifacts: Vec<String>,
}

impl Outcome {
    /// Takes a line of libFuzzer's.
    fn take(&mut self, line: &str) {
        if let Some(count) = line.strip_prefix("stat::number_of_executed_units:") {
            self.runs = count.trim().parse().unwrap_or(0);
        }
        if let Some((_, path)) = line.split_once("Test unit written to ") {
            self.artifacts.push(path.trim().to_owned());
        }
    }
}

fn one(program: &Path, target: &str, time: Duration) -> Result<Outcome> {
    let folder = |kind: &str| -> Result<PathBuf> {
        let path = workspace::target().join("fuzz").join(kind).join(target);
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(path)
    };
    let (corpus, artifacts) = (folder("corpus")?, folder("artifacts")?);
    let (mut running, output) = Cmd::new(program)
        .env("GPUACCT_FUZZ_TARGET", target)
        .arg(format!("-max_total_time={}", time.as_secs()))
        .arg(format!("-max_len={MAX_INPUT}"))
        .arg(format!("-timeout={SLOW}"))
        .arg(format!("-rss_limit_mb={LARGE}"))
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .arg("-print_final_stats=1")
        .arg(corpus)
        .arg(seeds().join(target))
        .spawn_reading_errors()?;
    let mut outcome = Outcome::default();
    for line in BufReader::new(output).split(b'\n') {
        let line = line.context("cannot read what libFuzzer prints")?;
        let line = String::from_utf8_lossy(&line);
        outcome.take(&line);
        println!("{line}");
    }
    let status = running.wait().context("cannot wait for libFuzzer")?;
    outcome.failed = !status.success();
    Ok(outcome)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_of_time_has_a_unit() {
        for (text, seconds) in [("90s", 90), ("1m", 60), ("2h", 7_200)] {
            assert_eq!(span(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "m", "1", "0m", "-1m", "1d", "1.5m", "1mm", "é"] {
            assert!(span(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_libfuzzer_says_is_understood() {
        let mut outcome = Outcome::default();
        for line in [
            "#2\tINITED cov: 37 ft: 38 corp: 1/1b exec/s: 0 rss: 45Mb",
            "artifact_prefix='/t/'; Test unit written to /t/crash-da39a3ee",
            "stat::number_of_executed_units: 123456",
            "stat::average_exec_per_sec:     2057",
        ] {
            outcome.take(line);
        }
        let expect = Outcome {
            runs: 123_456,
            failed: false,
            artifacts: vec!["/t/crash-da39a3ee".to_owned()],
        };
        assert_eq!(outcome, expect);
    }

    #[test]
    fn there_are_targets() {
        let targets = targets().expect("the folder of seeds is there");
        assert!(
            targets.iter().any(|name| name == "accountant"),
            "{targets:?}"
        );
    }
}
