//! `cargo xtask bench --guard`: has the agent's regular work become more expensive?
//!
//! It needs no clock and no quiet machine. callgrind counts the instructions of a few cases, which
//! are in the `guard` benches of `gpuacct-core` and `gpuacct`. The counts are compared with those in
//! `xtask/guard.json`. They vary by less than 0.1 % from run to run, because hash tables are seeded
//! at random. Another compiler makes another count, so the file names the one it was recorded with.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::command::Cmd;
use crate::setup::{self, Group};
use crate::workspace;

/// How much more than recorded a case may take, in percent.
const TOLERANCE: u64 = 3;
/// The packages with a bench named `guard`.
const PACKAGES: [&str; 2] = ["gpuacct-core", "gpuacct"];
/// What was recorded.
#[derive(Debug, Serialize, Deserialize)]
struct Recorded {
    /// The compiler, as `rustc --version` prints it.
    compiler: String,
    /// Instructions by case.
    instructions: BTreeMap<String, u64>,
}

/// Counts every case, and compares the counts with the recorded ones or records them.
pub(super) fn run(is_recording: bool) -> Result<()> {
    setup::ensure(&[Group::Guard])?;
    let compiler = Cmd::new("rustc").arg("--version").read()?;
    let found = Recorded {
        compiler: compiler.trim_end().to_owned(),
        instructions: count()?,
    };
    let path = recorded_path();
    if is_recording {
        let text = serde_json::to_string_pretty(&found)?;
        std::fs::write(&path, text + "\n")
            .with_context(|| format!("cannot write {}", path.display()))?;
        println!("recorded in {}", path.display());
        return Ok(());
    }
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read {}", path.display()))?;
    let recorded: Recorded =
        serde_json::from_str(&text).with_context(|| format!("cannot read {}", path.display()))?;
    ensure!(
        recorded.compiler == found.compiler,
        "{} was recorded with {}, found {}: run `cargo xtask bench --guard --record` on the commit \
         before yours and compare with that",
        path.display(),
        recorded.compiler,
        found.compiler
    );
    let complaints = compare(&recorded.instructions, &found.instructions);
    if !complaints.is_empty() {
        bail!(
            "{}\nmend it, or say in the commit why it is worth that and run `cargo xtask bench \
             --guard --record`",
            complaints.join("\n")
        );
    }
    Ok(())
}

fn recorded_path() -> PathBuf {
    workspace::root().join("xtask/guard.json")
}

/// The instructions of every case.
fn count() -> Result<BTreeMap<String, u64>> {
    let mut counted = BTreeMap::new();
    for package in PACKAGES {
        let bench = |options: &[&str]| {
            Cmd::new(workspace::cargo())
                .args(["bench", "--quiet", "--profile", "guard"])
                .args(["--package", package, "--bench", "guard"])
                .args(options)
                .arg("--")
        };
        for case in bench(&[]).read()?.lines() {
            let log = tempfile::NamedTempFile::new()?;
            let runner = format!(
                "valgrind --tool=callgrind --toggle-collect=*measured* \
                 --callgrind-out-file=/dev/null --log-file={}",
                log.path().display()
            );
            // By this option cargo learns how the programs that it has built are to be run.
            let option = format!("target.'cfg(all())'.runner=\"{runner}\"");
            bench(&["--config", &option]).arg(case).read()?;
            let log = std::fs::read_to_string(log.path())?;
            let instructions = collected(&log)
                .with_context(|| format!("callgrind counted nothing for {case}:\n{log}"))?;
            println!("{case}: {instructions} instructions");
            counted.insert(case.to_owned(), instructions);
        }
    }
    Ok(counted)
}

/// The count in callgrind's log: `==123== Collected : 456`.
fn collected(log: &str) -> Option<u64> {
    let line = log.lines().find(|line| line.contains("Collected :"))?;
    line.rsplit(':')
        .next()?
        .trim()
        .parse()
        .ok()
        .filter(|count| *count > 0)
}

/// What is wrong with the counts that were found.
fn compare(recorded: &BTreeMap<String, u64>, found: &BTreeMap<String, u64>) -> Vec<String> {
    let mut complaints = Vec::new();
    for (case, found) in found {
        let Some(recorded) = recorded.get(case) else {
            complaints.push(format!("{case} is not recorded"));
            continue;
        };
        let bound = recorded + recorded * TOLERANCE / 100;
        if *found > bound {
            complaints.push(format!(
                "{case} takes {found} instructions, expected at most {bound} ({recorded} recorded)"
            ));
        } else if found + found * TOLERANCE / 100 < *recorded {
            println!("{case} takes less than the recorded {recorded}: record it");
        }
    }
    let gone = recorded.keys().filter(|case| !found.contains_key(*case));
    complaints.extend(gone.map(|case| format!("{case} is recorded and was not counted")));
    complaints
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(counts: &[(&str, u64)]) -> BTreeMap<String, u64> {
        let counts = counts.iter();
        counts
            .map(|(case, count)| ((*case).to_owned(), *count))
            .collect()
    }

    #[test]
    fn a_case_that_takes_more_or_is_not_counted_is_named() {
        let recorded = counts(&[("a", 1_000), ("b", 1_000), ("c", 1_000), ("e", 5)]);
        let found = counts(&[("a", 1_030), ("b", 1_031), ("c", 10), ("d", 1)]);
        assert_eq!(
            compare(&recorded, &found),
            [
                "b takes 1031 instructions, expected at most 1030 (1000 recorded)",
                "d is not recorded",
                "e is recorded and was not counted",
            ]
        );
    }

    #[test]
    fn a_count_of_nothing_is_no_count() {
        assert_eq!(collected("==7== Collected : 456\n"), Some(456));
        assert_eq!(collected("==7== Collected : 0\n"), None);
        assert_eq!(collected("==7== Events    : Ir\n"), None);
    }
}
