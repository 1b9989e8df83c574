//! What a test needs and a machine may lack: a runtime, a network, a kernel feature.
//!
//! A test never passes silently without its part: it says what it skipped and why.
//! `GPUACCT_REQUIRE` (a comma-separated list of parts, or `all`) turns that skip into a failure.

use std::fmt::Display;
use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, ensure};

/// The environment variable that names the file in which skips are noted.
pub const SKIPS: &str = "GPUACCT_SKIPS";

/// The environment variable that names the parts that must be there.
pub const VARIABLE: &str = "GPUACCT_REQUIRE";

/// The part, if it is available; otherwise says on standard output that the test is skipped.
///
/// # Panics
/// If the part is missing and `GPUACCT_REQUIRE` lists it.
pub fn require<T, E: Display>(part: &str, available: Result<T, E>) -> Option<T> {
    let required = std::env::var(VARIABLE).unwrap_or_default();
    let available = available.map_err(|reason| format!("{reason:#}"));
    if let Err(reason) = &available {
        note(part, reason);
    }
    decide(part, &required, available)
}

/// What an environment variable names, which `cargo xtask test` sets once it has fetched the part.
///
/// # Errors
/// If the variable is not set.
pub fn fetched(variable: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::var_os(variable).map(PathBuf::from);
    path.with_context(|| {
        format!("{variable} is not set; `cargo xtask` fetches or makes what it names and sets it")
    })
}

/// The program that such a variable names.
///
/// # Errors
/// If the variable is not set, or there is no such file.
pub fn fetched_program(variable: &str) -> anyhow::Result<PathBuf> {
    let program = fetched(variable)?;
    ensure!(program.is_file(), "{} is not a file", program.display());
    Ok(program)
}

fn decide<T>(part: &str, required: &str, available: Result<T, String>) -> Option<T> {
    match available {
        Ok(available) => Some(available),
        Err(reason) if lists(required, part) => {
            panic!("{part} is required by {VARIABLE} and missing: {reason}")
        }
        Err(reason) => {
            println!("skipped: {part}: {reason}");
            None
        }
    }
}

/// Writes the skip down where `cargo xtask test` reads it, since libtest swallows what a test that
/// passes prints.
fn note(part: &str, reason: &str) {
    let Some(path) = std::env::var_os(SKIPS) else {
        return;
    };
    let test = test_name();
    let line = format!("{test}: {part}: {}\n", reason.replace('\n', " "));
    let file = std::fs::File::options()
        .append(true)
        .create(true)
        .open(&path);
    if let Err(error) = file.and_then(|mut file| file.write_all(line.as_bytes())) {
        panic!("cannot note a skip in {}: {error}", path.display());
    }
}

/// The name of the test that asks. nextest says it; without nextest it is the name of the thread, as
/// libtest gives it.
pub(crate) fn test_name() -> String {
    let thread = std::thread::current();
    std::env::var("NEXTEST_TEST_NAME")
        .unwrap_or_else(|_| thread.name().unwrap_or("(unnamed)").to_owned())
}

fn lists(required: &str, part: &str) -> bool {
    required
        .split(',')
        .map(str::trim)
        .any(|listed| listed == "all" || listed == part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_part_is_a_skip_or_a_failure_as_required() {
        for (required, part, fails) in [
            ("", "pypi", false),
            ("docker", "pypi", false),
            ("pypi2,xpypi", "pypi", false),
            ("pypi", "pypi", true),
            ("docker, pypi", "pypi", true),
            ("all", "pypi", true),
        ] {
            assert_eq!(decide(part, required, Ok(7)), Some(7));
            let missing = || decide::<()>(part, required, Err("not here".to_owned()));
            let outcome = std::panic::catch_unwind(missing);
            assert_eq!(outcome.is_err(), fails, "{required:?} {part:?}");
            assert!(outcome.is_err() || outcome.is_ok_and(|outcome| outcome.is_none()));
        }
    }
}
