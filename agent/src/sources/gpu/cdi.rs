//! Where NVIDIA's library is, by specifications of the Container Device Interface.
//!
//! A specification says which files of the host a container runtime mounts for a device. NVIDIA's
//! container toolkit, device plugin and DRA driver write it with the path of each library, so it
//! names the library also where no convention does. It has one YAML or JSON document a file.
//! Format: <https://github.com/cncf-tags/container-device-interface/blob/main/SPEC.md>.
//!
//! Only paths on the host are read from it. In a container they are of use if the folder is mounted at
//! the path that it has on the host. Whoever may write these folders decides what container runtimes
//! mount and run as root, so what they name is trusted like the configuration.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::errors::chain;
use crate::text_file::{self, TextFileError};

/// How many specifications of a folder are read, in the order of their names.
const MAX_FILES: usize = 64;
/// What the library's file name begins with. The driver's version follows.
const LIBRARY: &str = "libnvidia-ml.so.";

/// Why a specification or a folder of them says nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum CdiError {
    /// The folder is there and cannot be listed.
    #[error("cannot list {}", path.display())]
    List {
        path: PathBuf,
        source: std::io::Error,
    },
    /// The folder has more specifications than are read.
    #[error("{} has {found} specifications, of which {MAX_FILES} are read", path.display())]
    TooMany { path: PathBuf, found: usize },
    /// A specification cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        source: TextFileError,
    },
    /// A file is no specification.
    #[error("{} is no specification of CDI: {problem}", path.display())]
    Syntax { path: PathBuf, problem: String },
}

/// What the folders say.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Paths of the library on the host, each once, in the order of folders and file names.
    pub(super) libraries: Vec<PathBuf>,
    /// What could not be read. The rest was.
    pub(super) problems: Vec<CdiError>,
}

impl Found {
    /// What could not be read, in one line: the first problem, and how many there are beside it.
    pub(super) fn problem(&self) -> Option<String> {
        let first = chain(self.problems.first()?);
        Some(match self.problems.len() - 1 {
            0 => first,
            others => format!("{first} (and {others} more)"),
        })
    }
}

/// A specification, as far as it matters here. Other keys are left to others, and so are versions: the
/// keys below have been the same since the first one.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Specification {
    /// Tells a specification from other files.
    #[serde(rename = "cdiVersion")]
    _version: String,
    #[serde(default)]
    container_edits: Edits,
    /// A list, or `null` as Go writes a list of nothing.
    devices: Option<Vec<Device>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Device {
    #[serde(default)]
    container_edits: Edits,
}

#[derive(Debug, Default, Deserialize)]
struct Edits {
    /// A list, or `null` as Go writes a list of nothing.
    mounts: Option<Vec<Mount>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mount {
    host_path: PathBuf,
}

/// Reads the specifications in these folders. A folder that is not there has none.
pub(super) fn find(folders: &[PathBuf]) -> Found {
    let mut found = Found::default();
    for folder in folders {
        for file in files(folder, &mut found.problems) {
            match read(&file) {
                Ok(libraries) => {
                    for library in libraries {
                        if !found.libraries.contains(&library) {
                            found.libraries.push(library);
                        }
                    }
                }
                Err(problem) => found.problems.push(problem),
            }
        }
    }
    found
}

/// The specifications of a folder, by name.
fn files(folder: &Path, problems: &mut Vec<CdiError>) -> Vec<PathBuf> {
    let listed = fs::read_dir(folder).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let listed = match listed {
        Ok(listed) => listed,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
        Err(source) => {
            problems.push(CdiError::List {
                path: folder.to_owned(),
                source,
            });
            return Vec::new();
        }
    };
    let mut files: Vec<PathBuf> = listed
        .into_iter()
        .map(|entry| entry.path())
        .filter(|path| {
            let kind = path.extension().and_then(|kind| kind.to_str());
            matches!(kind, Some("json" | "yaml"))
        })
        .collect();
    files.sort();
    if files.len() > MAX_FILES {
        problems.push(CdiError::TooMany {
            path: folder.to_owned(),
            found: files.len(),
        });
        files.truncate(MAX_FILES);
    }
    files
}

fn read(path: &Path) -> Result<Vec<PathBuf>, CdiError> {
    let text = text_file::read(path).map_err(|source| CdiError::Read {
        path: path.to_owned(),
        source,
    })?;
    libraries(&text).map_err(|problem| CdiError::Syntax {
        path: path.to_owned(),
        problem,
    })
}

/// Paths of the library that a specification names. JSON is YAML, too.
fn libraries(text: &str) -> Result<Vec<PathBuf>, String> {
    let options = serde_saphyr::options! { with_snippet: false };
    let written: Specification =
        serde_saphyr::from_str_with_options(text, options).map_err(|error| error.to_string())?;
    let of_devices = written
        .devices
        .unwrap_or_default()
        .into_iter()
        .map(|device| device.container_edits);
    let mounts = std::iter::once(written.container_edits)
        .chain(of_devices)
        .flat_map(|edits| edits.mounts.unwrap_or_default());
    let paths = mounts.map(|mount| mount.host_path);
    Ok(paths.filter(|path| is_library(path)).collect())
}

fn is_library(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    path.is_absolute() && name.is_some_and(|name| name.starts_with(LIBRARY))
}

/// For the fuzz target: reads any bytes as a specification.
#[cfg(feature = "fuzzing")]
pub(super) fn fuzz(file: &[u8]) {
    let text = String::from_utf8_lossy(file);
    for path in libraries(&text).unwrap_or_default() {
        assert!(is_library(&path), "{}", path.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `nvidia-ctk cdi generate` writes it, shortened.
    const YAML: &str = r#"
cdiVersion: 0.5.0
kind: nvidia.com/gpu
devices:
- name: "0"
  containerEdits:
    deviceNodes:
    - path: /dev/nvidia0
    mounts:
    - containerPath: /somewhere/libnvidia-ml.so.1
      hostPath: /opt/of-one/libnvidia-ml.so.1
containerEdits:
  env:
  - NVIDIA_VISIBLE_DEVICES=void
  hooks:
  - hookName: createContainer
    path: /usr/bin/nvidia-cdi-hook
    args: [nvidia-cdi-hook, update-ldcache, --folder, /usr/lib64]
  mounts:
  - containerPath: /usr/lib64/libcuda.so.570.86.15
    hostPath: /run/nvidia/driver/usr/lib64/libcuda.so.570.86.15
    options: [ro, nosuid, nodev, rbind, rprivate]
  - containerPath: /usr/lib64/libnvidia-ml.so.570.86.15
    hostPath: /run/nvidia/driver/usr/lib64/libnvidia-ml.so.570.86.15
"#;
    /// As the device plugin writes it.
    const JSON: &str = r#"{"cdiVersion":"0.5.0","kind":"k8s.device-plugin.nvidia.com/gpu","devices":[],
        "containerEdits":{"mounts":[
            {"hostPath":"/run/nvidia/driver/usr/lib64/libnvidia-ml.so.570.86.15","containerPath":"/x"},
            {"hostPath":"/usr/local/glibc/usr/lib/libnvidia-ml.so.1","containerPath":"/x"}]}}"#;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    fn shown(found: &Found) -> Vec<&str> {
        let paths = found.libraries.iter();
        paths.map(|path| path.to_str().unwrap()).collect()
    }

    #[test]
    fn each_path_of_the_library_is_found_once_in_the_order_of_files() {
        let folder = folder(&[
            ("nvidia.yaml", YAML),
            ("k8s.json", JSON),
            ("notes.txt", "hostPath: /libnvidia-ml.so.1"),
        ]);
        let absent = folder.path().join("absent");
        let found = find(&[absent, folder.path().to_owned(), folder.path().to_owned()]);
        assert_eq!(
            shown(&found),
            [
                "/run/nvidia/driver/usr/lib64/libnvidia-ml.so.570.86.15",
                "/usr/local/glibc/usr/lib/libnvidia-ml.so.1",
                "/opt/of-one/libnvidia-ml.so.1",
            ]
        );
        assert!(found.problems.is_empty(), "{:?}", found.problems);
        assert_eq!(found.problem(), None);
    }

    #[test]
    fn what_is_no_specification_is_said_and_stops_no_other() {
        let large = format!("cdiVersion: 0.5.0\n# {}", "x".repeat(1 << 20));
        for (text, expected) in [
            ("- a list", "is no specification of CDI: "),
            ("kind: nvidia.com/gpu", "cdiVersion"),
            (
                "cdiVersion: 0.5.0\ncontainerEdits: 7",
                "is no specification of CDI: ",
            ),
            (
                "cdiVersion: 0.5.0\ncontainerEdits: {mounts: [{}]}",
                "hostPath",
            ),
            ("{", "is no specification of CDI: "),
            (&large, "it is larger than 1 MiB"),
        ] {
            let folder = folder(&[("a.yaml", text), ("nvidia.yaml", YAML)]);
            let found = find(&[folder.path().to_owned()]);
            assert_eq!(found.libraries.len(), 2, "{text}");
            let problem = found.problem().unwrap();
            assert!(problem.contains("a.yaml"), "{problem}");
            assert!(problem.contains(expected), "{problem}");
            assert!(!problem.contains("more)"), "{problem}");
        }
    }

    #[test]
    fn a_list_of_nothing_may_be_null_as_go_writes_it() {
        let text = r#"{"cdiVersion":"0.5.0","devices":null,"containerEdits":{"mounts":null}}"#;
        assert_eq!(libraries(text), Ok(Vec::new()));
        let text = r#"{"cdiVersion":"0.5.0","devices":null,"containerEdits":{"mounts":[
            {"hostPath":"/usr/lib/libnvidia-ml.so.1","containerPath":"/x"}]}}"#;
        assert_eq!(libraries(text).unwrap().len(), 1);
    }

    #[test]
    fn a_path_that_is_not_the_library_or_not_absolute_is_left_out() {
        for path in [
            "libnvidia-ml.so.1",
            "../libnvidia-ml.so.1",
            "/usr/lib64/libnvidia-ml.so",
            "/usr/lib64/libcuda.so.1",
            "/usr/lib64/libnvidia-ml.so.1/",
            "/",
        ] {
            let text =
                format!("cdiVersion: 0.5.0\ncontainerEdits: {{mounts: [{{hostPath: {path}}}]}}");
            let found = libraries(&text).unwrap();
            let expected = path.ends_with(".1/");
            assert_eq!(!found.is_empty(), expected, "{path}");
        }
    }

    #[test]
    fn no_more_than_so_many_files_are_read() {
        let names: Vec<String> = (0..=MAX_FILES).map(|n| format!("{n:03}.yaml")).collect();
        let files: Vec<_> = names
            .iter()
            .map(|name| (name.as_str(), "cdiVersion: 0.5.0"))
            .collect();
        let folder = folder(&files);
        fs::write(folder.path().join("zzz.yaml"), YAML).unwrap();
        let found = find(&[folder.path().to_owned()]);
        assert!(found.libraries.is_empty());
        let problem = found.problem().unwrap();
        assert!(
            problem.ends_with("has 66 specifications, of which 64 are read"),
            "{problem}"
        );
    }
}
