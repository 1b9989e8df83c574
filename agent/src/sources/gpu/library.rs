//! Finding NVIDIA's library, and opening it.
//!
//! The library is part of the driver and is found where the driver's installer put it: in the
//! loader's path, where a containerised driver or a system of its own kind has it on the host, or
//! where a specification of CDI says. It is judged by whether it initialises, never by its version.
//! Where several are found the first that initialises wins.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;

use super::calls::Watchdog;
use super::cdi;
use super::fault::class;
use super::raw;
use crate::errors::chain;

/// Where the library is looked for, in this order, unless the configuration names one.
const PLACES: [&str; 11] = [
    // By the loader: its cache, LD_LIBRARY_PATH, and what a container runtime mounts.
    SONAME,
    // The GPU operator's driver container, seen from the host.
    "/run/nvidia/driver/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1",
    "/run/nvidia/driver/usr/lib/aarch64-linux-gnu/libnvidia-ml.so.1",
    "/run/nvidia/driver/usr/lib64/libnvidia-ml.so.1",
    // GKE's driver installer.
    "/home/kubernetes/bin/nvidia/lib64/libnvidia-ml.so.1",
    // Talos Linux, whose own C library is musl: its extensions bring glibc and what needs it. Since
    // 1.9, and before.
    "/usr/local/glibc/usr/lib/libnvidia-ml.so.1",
    "/usr/local/glibc/lib/libnvidia-ml.so.1",
    "/usr/local/glibc/lib64/libnvidia-ml.so.1",
    // Hosts whose directories are mounted into the agent's container but not in its loader's path.
    "/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1",
    "/usr/lib/aarch64-linux-gnu/libnvidia-ml.so.1",
    "/usr/lib64/libnvidia-ml.so.1",
];
const SONAME: &str = "libnvidia-ml.so.1";

/// Why no library is open.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    /// Normal on a node without NVIDIA's driver.
    #[error(
        "{SONAME} was not found in the loader's path, in {} other places or by specifications of CDI{}",
        PLACES.len() - 1,
        unread.as_ref().map_or_else(String::new, |unread| format!("; {unread}"))
    )]
    Absent {
        /// What of the specifications could not be read.
        unread: Option<String>,
    },
    /// Named in the configuration, hence expected.
    #[error("{} does not exist", path.display())]
    Missing { path: PathBuf },
    #[error("cannot load {}", path.display())]
    Load { path: PathBuf, source: NvmlError },
    #[error("{} does not initialise", path.display())]
    Init { path: PathBuf, source: NvmlError },
}

impl OpenError {
    /// The label for a source's state.
    pub(super) fn class(&self) -> &'static str {
        match self {
            Self::Absent { .. } | Self::Missing { .. } => "not_found",
            Self::Load { .. } => "library",
            Self::Init { source, .. } => class(source),
        }
    }

    /// Whether there is no driver, or no library of one, rather than one that fails.
    pub(super) fn is_unloaded(&self) -> bool {
        match self {
            Self::Absent { .. } | Self::Missing { .. } => true,
            Self::Load { .. } => false,
            Self::Init { source, .. } => matches!(source, NvmlError::DriverNotLoaded),
        }
    }

    /// The error with its cause, in one line.
    pub(super) fn reason(&self) -> String {
        chain(self)
    }
}

/// NVML, initialised.
#[derive(Debug)]
pub(super) struct Library {
    nvml: Option<Nvml>,
    pub(super) place: Arc<str>,
    /// The driver's version; `unknown` where it does not say.
    pub(super) driver: Arc<str>,
    pub(super) simulated: bool,
    watchdog: Watchdog,
}

impl Library {
    /// Opens the configured library, or the first that initialises of those at the known places and
    /// those that specifications in the folders `cdi` name.
    pub(super) fn open(
        configured: Option<&Path>,
        cdi: &[PathBuf],
        watchdog: &Watchdog,
    ) -> Result<Self, OpenError> {
        if let Some(path) = configured {
            return if path.exists() {
                Self::at(path, watchdog)
            } else {
                Err(OpenError::Missing {
                    path: path.to_owned(),
                })
            };
        }
        let mut telling = OpenError::Absent { unread: None };
        let places = PLACES.into_iter().map(Path::new);
        if let Some(library) = Self::first(places, &mut telling, watchdog) {
            return Ok(library);
        }
        // Read last: a folder that hangs must not keep the usual library from being opened.
        let specified = cdi::find(cdi);
        if let OpenError::Absent { unread } = &mut telling {
            *unread = specified.problem();
        }
        let places = specified.libraries.iter().map(PathBuf::as_path);
        Self::first(places, &mut telling, watchdog).ok_or(telling)
    }

    /// The first library that initialises. `telling` becomes the error that says most.
    fn first<'a>(
        places: impl Iterator<Item = &'a Path>,
        telling: &mut OpenError,
        watchdog: &Watchdog,
    ) -> Option<Self> {
        for place in places {
            if place.is_absolute() && !place.exists() {
                continue;
            }
            match Self::at(place, watchdog) {
                Ok(library) => return Some(library),
                Err(OpenError::Load { source, .. }) if not_in_path(&source) => {}
                // The error of a library that loads and refuses says more than that of one that
                // does not load.
                Err(error @ OpenError::Init { .. })
                    if !matches!(telling, OpenError::Init { .. }) =>
                {
                    *telling = error;
                }
                Err(error) if matches!(telling, OpenError::Absent { .. }) => *telling = error,
                Err(_) => {}
            }
        }
        None
    }

    fn at(path: &Path, watchdog: &Watchdog) -> Result<Self, OpenError> {
        let opened = watchdog.call("nvmlInit_v2", None, || {
            Nvml::builder().lib_path(OsStr::new(path)).init()
        });
        let nvml = opened.map_err(|source| {
            let path = path.to_owned();
            if matches!(source, NvmlError::LibloadingError(_)) {
                OpenError::Load { path, source }
            } else {
                OpenError::Init { path, source }
            }
        })?;
        let driver = watchdog.call("nvmlSystemGetDriverVersion", None, || {
            nvml.sys_driver_version()
        });
        Ok(Self {
            simulated: raw::simulated(&nvml),
            nvml: Some(nvml),
            place: path.to_string_lossy().into(),
            driver: driver.map_or_else(|_| "unknown".into(), Arc::from),
            watchdog: watchdog.clone(),
        })
    }

    pub(super) fn nvml(&self) -> &Nvml {
        self.nvml
            .as_ref()
            .expect("only dropping takes it, and nothing borrows what is dropped")
    }
}

impl Drop for Library {
    /// Shuts NVML down and unloads it. The wrapper's own drop panics if the library lacks
    /// `nvmlShutdown`; such a library is left loaded instead, once per library that odd.
    fn drop(&mut self) {
        let Some(nvml) = self.nvml.take() else { return };
        if nvml.lib().nvmlShutdown.is_err() {
            let _kept = std::mem::ManuallyDrop::new(nvml);
            return;
        }
        let shut = self.watchdog.call("nvmlShutdown", None, || nvml.shutdown());
        if let Err(error) = shut {
            tracing::debug!(library = %self.place, %error, "NVML did not shut down cleanly");
        }
    }
}

/// Whether the loader simply has no such library, as opposed to one that it cannot load.
fn not_in_path(error: &NvmlError) -> bool {
    let text = error.to_string();
    text.contains(SONAME) && text.contains("No such file")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_library_must_be_there_and_be_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("libnvidia-ml.so.1");
        let open = || Library::open(Some(&path), &[], &Watchdog::default()).unwrap_err();

        let missing = open();
        assert!(matches!(missing, OpenError::Missing { .. }), "{missing}");

        std::fs::write(&path, "not a library").unwrap();
        let junk = open();
        assert!(matches!(junk, OpenError::Load { .. }), "{junk}");
        assert_eq!(junk.class(), "library");
        assert!(
            junk.reason().contains("file too short"),
            "{}",
            junk.reason()
        );
    }

    #[test]
    fn without_a_driver_the_library_is_absent() {
        // On a machine with a driver, one of the places loads, and the library is not absent.
        let loads = |place: &&str| {
            let opened = Nvml::builder().lib_path(OsStr::new(place)).init();
            !matches!(opened, Err(NvmlError::LibloadingError(_)))
        };
        let somewhere = PLACES.iter().any(loads);
        let opened = Library::open(None, &[], &Watchdog::default());
        let absent = matches!(opened, Err(OpenError::Absent { .. }));
        assert_eq!(absent, !somewhere, "{opened:?}");
    }

    #[test]
    fn a_library_that_is_not_there_is_told_from_one_that_does_not_load() {
        let load = |name: &str| {
            let opened = Nvml::builder().lib_path(OsStr::new(name)).init();
            not_in_path(&opened.expect_err("there is no such library"))
        };
        assert!(load("/nonexistent/libnvidia-ml.so.1"));
        assert!(!load("/dev/null"), "exists, and is no library");
    }
}
