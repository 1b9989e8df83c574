//! Finding the built libraries and laying them out as a driver package would.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

/// The environment variable that names the folder in which everything here is built already, as
/// `cargo xtask test` does. Without it cargo is asked each time, which takes longer than many a test.
pub const BUILT: &str = "SIM_NVML_BUILT";

/// Which driver's symbols and version strings a library has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// R470: no `_v3` process lists, no `nvmlDeviceGetMemoryInfo_v2`.
    R470,
    /// R550: what most nodes run.
    R550,
    /// R610: has `nvmlDeviceGetAccountingStats_v2`.
    R610,
}

impl Driver {
    /// The package that builds it.
    #[must_use]
    pub fn package(self) -> &'static str {
        match self {
            Self::R470 => "sim-nvml-r470",
            Self::R550 => "sim-nvml-r550",
            Self::R610 => "sim-nvml-r610",
        }
    }
}

/// What can go wrong when a library is wanted.
#[derive(Debug, thiserror::Error)]
pub enum LibraryError {
    /// cargo did not run.
    #[error("cannot run cargo to build {package}")]
    Cargo {
        /// What was to be built.
        package: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// cargo ran and failed; its messages went to standard error.
    #[error("building {package} failed: {status}")]
    Build {
        /// What was to be built.
        package: &'static str,
        /// How cargo ended.
        status: std::process::ExitStatus,
    },
    /// cargo succeeded but named no such file.
    #[error("cargo names no {wanted} of {package}")]
    Missing {
        /// What was to be built.
        package: &'static str,
        /// The kind of file.
        wanted: &'static str,
    },
    /// The folder that [`BUILT`] names has no such file.
    #[error("{BUILT} promises {path}, which is not there")]
    NotBuilt {
        /// Where it should be.
        path: PathBuf,
    },
    /// The directory could not be laid out.
    #[error("cannot lay out {path}")]
    Layout {
        /// What was to be written.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Builds a driver's library (nothing to do when it is fresh) and returns its path.
pub fn build(driver: Driver) -> Result<PathBuf, LibraryError> {
    let file_name = format!("lib{}.so", driver.package().replace('-', "_"));
    if let Some(library) = built(&file_name)? {
        return Ok(library);
    }
    let files = artifacts(driver.package(), &["--lib"])?;
    let library = files
        .into_iter()
        .find(|file| file.file_name().is_some_and(|name| *name == *file_name));
    library.ok_or(LibraryError::Missing {
        package: driver.package(),
        wanted: "shared library",
    })
}

/// Builds `sim-gpu-job`, the process that registers itself with a [`Server`](crate::Server).
pub fn build_job() -> Result<PathBuf, LibraryError> {
    let package = "sim-nvml";
    if let Some(job) = built("sim-gpu-job")? {
        return Ok(job);
    }
    let files = artifacts(package, &["--bin", "sim-gpu-job"])?;
    let binary = files
        .into_iter()
        .find(|file| file.file_name().is_some_and(|name| name == "sim-gpu-job"));
    binary.ok_or(LibraryError::Missing {
        package,
        wanted: "sim-gpu-job",
    })
}

/// Makes `dir` what `LD_LIBRARY_PATH` should name: `libnvidia-ml.so.1`, and `libnvidia-ml.so`, which
/// some clients try first. Returns the path of the former.
pub fn lay_out(library: &Path, dir: &Path) -> Result<PathBuf, LibraryError> {
    let layout = |path: &Path| {
        let path = path.to_owned();
        move |source| LibraryError::Layout { path, source }
    };
    std::fs::create_dir_all(dir).map_err(layout(dir))?;
    let soname = dir.join("libnvidia-ml.so.1");
    // A copy, not a link: the directory may be mounted into a container, and a later build must not
    // change a library that is mapped.
    std::fs::copy(library, &soname).map_err(layout(&soname))?;
    let plain = dir.join("libnvidia-ml.so");
    match std::os::unix::fs::symlink("libnvidia-ml.so.1", &plain) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(layout(&plain)(error)),
        _ => Ok(soname),
    }
}

/// Builds and lays out in one step.
pub fn install(driver: Driver, dir: &Path) -> Result<PathBuf, LibraryError> {
    lay_out(&build(driver)?, dir)
}

/// A file of the folder that [`BUILT`] names, if it names one.
fn built(name: &str) -> Result<Option<PathBuf>, LibraryError> {
    let Some(folder) = std::env::var_os(BUILT) else {
        return Ok(None);
    };
    let path = Path::new(&folder).join(name);
    if !path.is_file() {
        return Err(LibraryError::NotBuilt { path });
    }
    Ok(Some(path))
}

/// The files that cargo says it made, in this program's own build profile.
fn artifacts(package: &'static str, target: &[&str]) -> Result<Vec<PathBuf>, LibraryError> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(env!("CARGO_MANIFEST_DIR")).args([
        "build",
        "--quiet",
        "--package",
        package,
    ]);
    command
        .arg("--message-format=json-render-diagnostics")
        .args(target);
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .map_err(|source| LibraryError::Cargo { package, source })?;
    if !output.status.success() {
        return Err(LibraryError::Build {
            package,
            status: output.status,
        });
    }
    let lines = output.stdout.split(|&byte| byte == b'\n');
    let made = lines
        .filter_map(|line| serde_json::from_slice(line).ok())
        .filter(|message: &Value| message["reason"] == "compiler-artifact");
    let names =
        made.flat_map(|message| message["filenames"].as_array().cloned().unwrap_or_default());
    Ok(names
        .filter_map(|name| name.as_str().map(PathBuf::from))
        .collect())
}
