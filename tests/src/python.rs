//! Other people's Python programs, pinned and kept.
//!
//! A virtual environment is made once per list of packages and kept in the target folder; a new
//! release is tried on purpose, never by chance. It refuses to touch the machine's own Python.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

/// A virtual environment with its packages.
#[derive(Clone, Debug)]
pub struct Venv {
    root: PathBuf,
}

/// The environment `name` with `packages`, each pinned as `package==version`. Made if it is not
/// there or has others.
///
/// # Errors
/// If there is no Python 3 with its venv module, or the packages cannot be had.
pub fn venv(name: &str, packages: &[&str]) -> Result<Venv> {
    for package in packages {
        ensure!(package.contains("=="), "{package} is not pinned");
    }
    let target = target()?;
    let venv = Venv {
        root: target.join(format!("venv-{name}")),
    };
    // Tests run side by side, also as processes.
    let lock = target.join(format!("venv-{name}.lock"));
    let lock = File::create(&lock).with_context(|| format!("cannot make {}", lock.display()))?;
    lock.lock().context("cannot lock the environment")?;

    let complete = venv.root.join("gpuacct-packages.txt");
    let wanted = packages.join("\n");
    if fs::read_to_string(&complete).is_ok_and(|installed| installed == wanted) {
        return Ok(venv);
    }
    run(Command::new("python3")
        .args(["-m", "venv", "--clear"])
        .arg(&venv.root))?;
    run(venv
        .program("python")
        .args(["-m", "pip", "install", "--quiet"])
        .args(["--disable-pip-version-check", "--no-input"])
        .args(packages))?;
    fs::write(&complete, wanted).with_context(|| format!("cannot write {}", complete.display()))?;
    Ok(venv)
}

impl Venv {
    /// One of its programs.
    #[must_use]
    pub fn program(&self, name: impl AsRef<OsStr>) -> Command {
        Command::new(self.root.join("bin").join(Path::new(name.as_ref())))
    }
}

/// What the command wrote to its standard output.
///
/// # Errors
/// If it cannot be run or fails; the message has all that it wrote.
pub fn run(command: &mut Command) -> Result<String> {
    let shown = format!("{command:?}");
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {shown}"))?;
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    ensure!(
        output.status.success(),
        "{shown}: {}\n{out}{err}",
        output.status
    );
    Ok(out.into_owned())
}

/// The target folder: where the running test was built.
fn target() -> Result<PathBuf> {
    let test = std::env::current_exe().context("cannot tell which test is running")?;
    // target/PROFILE/deps/TEST
    let target = test.ancestors().nth(3);
    target
        .map(Path::to_owned)
        .with_context(|| format!("{} is not in a target folder", test.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_told_with_what_was_written() {
        let error = run(Command::new("sh").args(["-c", "echo out; echo err >&2; exit 3"]))
            .unwrap_err()
            .to_string();
        for part in ["exit 3", "exit status: 3", "out\n", "err\n"] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn what_is_not_pinned_is_refused() {
        let error = venv("none", &["requests"]).unwrap_err();
        assert_eq!(error.to_string(), "requests is not pinned");
    }
}
