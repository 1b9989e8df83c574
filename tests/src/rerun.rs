//! One test, run again in a process of its own: for what is set once for a whole process, such as
//! its environment or its panic hook.

use std::process::Command;

use anyhow::{Context, Result};

/// Set in a process that runs one test and nothing else.
const ALONE: &str = "GPUACCT_TEST_ALONE";

/// The command that runs one test of this program again. `module` is the test's `module_path!()`.
///
/// # Errors
/// If this program has no path.
pub fn command(module: &str, test: &str) -> Result<Command> {
    let program = std::env::current_exe().context("this program has no path")?;
    let mut command = Command::new(program);
    command.args(["--exact", &full_name(module, test), "--nocapture"]);
    Ok(command)
}

/// Runs a test's `body` in a process in which nothing else runs. `module` is the test's
/// `module_path!()`.
///
/// # Panics
/// If the body fails there; the message has what that process printed.
pub fn alone(module: &str, test: &str, body: impl FnOnce()) {
    if std::env::var_os(ALONE).is_some() {
        return body();
    }
    let run = command(module, test).and_then(|mut command| {
        let output = command.env(ALONE, "1").output();
        output.context("cannot run this program again")
    });
    let output = run.unwrap_or_else(|error| panic!("{test}: {error:#}"));
    assert!(
        output.status.success(),
        "{test} in a process of its own: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// What the harness calls the test: its path without the crate's name.
fn full_name(module: &str, test: &str) -> String {
    match module.split_once("::") {
        Some((_, module)) => format!("{module}::{test}"),
        None => test.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_the_one_that_the_harness_runs() {
        assert_eq!(full_name("it", "works"), "works");
        assert_eq!(full_name("it::kernel", "works"), "kernel::works");
        assert_eq!(full_name("it::a::b", "works"), "a::b::works");
        let here = full_name(module_path!(), "a_name_is_the_one_that_the_harness_runs");
        let test = crate::requirement::test_name();
        assert_eq!(test, here);
    }
}
