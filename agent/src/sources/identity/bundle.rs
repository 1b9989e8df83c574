//! Names from what a runtime leaves on disk beside a container: the OCI bundle's `config.json`, and
//! the Docker Engine's own `config.v2.json`.
//!
//! It needs no socket and no answer: where a daemon hangs, is restarted, or refuses this client,
//! the files still say what the container was made from. They are written before its first process
//! runs, so they are there when the kernel reports it.
//!
//! | written by | file | who it names |
//! |---|---|---|
//! | containerd | `<state>/io.containerd.runtime.v2.task/<namespace>/<id>/config.json` | `io.kubernetes.cri.*`, `nerdctl/*` |
//! | CRI-O | `<storage>/overlay-containers/<id>/userdata/config.json` | `io.kubernetes.cri-o.*` |
//! | Podman | the same, and `overlay-containers/containers.json` | the container's own name |
//! | Docker | `<data root>/containers/<id>/config.v2.json` | its labels |
//!
//! The Docker Engine's containerd has a bundle as well, which knows neither labels nor names.
//!
//! It refuses to read more than names: these files also hold the container's environment, which is
//! skipped while parsing and never kept, shown or logged. An id that is not 64 hexadecimal digits
//! never becomes a part of a path.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::files::{
    Answer, FileError, IdentityFiles, Presence, names_in, open_below, open_folder, read_below,
};
use super::{
    Counters, IdentityIo, PodNames, clean_labels, clean_name, files, kubernetes_names,
    kubernetes_names_of,
};
use crate::config;
use crate::core::input::{ContainerIdentity, IdentitySource, KubernetesNames};
use crate::core::model::ContainerId;

pub use super::files::Timing;

/// containerd's folders of bundles: today's, and that of shims before 1.4.
const TASKS: [&str; 2] = [
    "io.containerd.runtime.v2.task",
    "io.containerd.runtime.v1.linux",
];
/// Namespaces of one containerd that are looked into; it has three in the field.
const MAX_NAMESPACES: usize = 64;
/// The storage drivers after which containers/storage names its folder of containers.
const STORAGE_DRIVERS: [&str; 3] = ["overlay", "vfs", "btrfs"];
/// What a pod's own container, which only holds its namespaces, is called: as processes in the
/// pod's own cgroup are.
const POD_ITSELF: &str = "(pod)";

/// Answers lookups until the agent stops or nobody reads the answers any more.
pub async fn run(config: config::Bundle, pace: Timing, io: IdentityIo<ContainerId>) {
    let first = roots(&config).next().map(|(_, path)| path.to_owned());
    let first = first.unwrap_or_default();
    files::run(config, pace, first, io).await;
}

/// Who wrote what lies below a root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    Containerd,
    Storage,
    Docker,
}

/// The roots, the most telling first: the Docker Engine's own file says more than the bundle
/// that it has its containerd make.
fn roots(config: &config::Bundle) -> impl Iterator<Item = (Layout, &Path)> {
    let docker = config.docker.iter().map(|path| (Layout::Docker, path));
    let containerd = config
        .containerd
        .iter()
        .map(|path| (Layout::Containerd, path));
    let storage = config.storage.iter().map(|path| (Layout::Storage, path));
    docker
        .chain(containerd)
        .chain(storage)
        .map(|(layout, path)| (layout, path.as_path()))
}

impl IdentityFiles for config::Bundle {
    const SOURCE: IdentitySource = IdentitySource::Bundle;

    fn find(&mut self, ids: &[ContainerId], counters: &Counters) -> (Presence, Vec<Answer>) {
        let mut presence = Presence::default();
        let mut opened = Vec::new();
        for (layout, path) in roots(self) {
            let folder = presence.note(path, open_folder(&self.host_root, path));
            opened.extend(folder.map(|folder| (layout, folder)));
        }
        let answers = ids.iter().map(|id| look(&opened, id, counters)).collect();
        (presence, answers)
    }
}

/// The first root that names the container; if none does, what came closest.
fn look(roots: &[(Layout, OwnedFd)], id: &ContainerId, counters: &Counters) -> Answer {
    let mut closest = FileError::Missing(id.as_str().into());
    for (layout, folder) in roots {
        let found = match layout {
            Layout::Containerd => containerd(folder, id, counters),
            Layout::Storage => storage(folder, id, counters),
            Layout::Docker => docker(folder, id, counters),
        };
        match found {
            Ok(identity) => return Ok(Box::new(identity)),
            Err(FileError::Missing(_)) => {}
            // An unusable file is reported; a file without names is reported only if there is
            // nothing else to report.
            Err(fault) => {
                let is_better = match closest {
                    FileError::Missing(_) => true,
                    FileError::Nameless(_) => !matches!(fault, FileError::Nameless(_)),
                    _ => false,
                };
                if is_better {
                    closest = fault;
                }
            }
        }
    }
    Err(closest)
}

/// What of an OCI bundle's configuration is read.
#[derive(Deserialize)]
struct Spec {
    #[serde(default)]
    annotations: Option<HashMap<String, String>>,
}

fn containerd(
    root: &OwnedFd,
    id: &ContainerId,
    counters: &Counters,
) -> Result<ContainerIdentity, FileError> {
    let mut closest = FileError::Missing(id.as_str().into());
    for tasks in TASKS.map(Path::new) {
        let folder = match open_below(root, tasks) {
            Ok(folder) => folder,
            Err(FileError::Missing(_)) => continue,
            Err(fault) => return Err(fault),
        };
        let (namespaces, more) = names_in(&folder, tasks, MAX_NAMESPACES)?;
        if more {
            Counters::count(&counters.invalid_replies);
        }
        for namespace in namespaces {
            let path = Path::new(&namespace).join(id.as_str()).join("config.json");
            match read_below(&folder, &path) {
                Ok(text) => return from_spec(id, &path, &text, counters),
                Err(FileError::Missing(_)) => {}
                Err(fault) => closest = fault,
            }
        }
    }
    Err(closest)
}

fn storage(
    root: &OwnedFd,
    id: &ContainerId,
    counters: &Counters,
) -> Result<ContainerIdentity, FileError> {
    for driver in STORAGE_DRIVERS {
        let containers = PathBuf::from(format!("{driver}-containers"));
        let path = containers.join(id.as_str()).join("userdata/config.json");
        match read_below(root, &path) {
            Ok(text) => {
                return match from_spec(id, &path, &text, counters) {
                    // Podman keeps names elsewhere.
                    Err(FileError::Nameless(_)) => {
                        stored(root, &containers.join("containers.json"), id, counters)
                    }
                    other => other,
                };
            }
            Err(FileError::Missing(_)) => {}
            Err(fault) => return Err(fault),
        }
    }
    Err(FileError::Missing(id.as_str().into()))
}

/// One container of containers/storage's own list.
#[derive(Deserialize)]
struct Stored {
    id: String,
    #[serde(default)]
    names: Option<Vec<String>>,
    /// JSON in a string, by whoever uses the storage.
    #[serde(default)]
    metadata: String,
}

#[derive(Default, Deserialize)]
struct StoredMetadata {
    #[serde(default, rename = "image-name")]
    image: Option<String>,
}

fn stored(
    root: &OwnedFd,
    path: &Path,
    id: &ContainerId,
    counters: &Counters,
) -> Result<ContainerIdentity, FileError> {
    let containers: Vec<Stored> = match read_below(root, path) {
        Ok(text) => parse(path, &text)?,
        // The list is where the images are, the bundle may be elsewhere.
        Err(FileError::Missing(_)) => return Err(FileError::Nameless(path.to_owned())),
        Err(fault) => return Err(fault),
    };
    let stored = containers.into_iter().find(|c| c.id == id.as_str());
    let nameless = || FileError::Nameless(path.to_owned());
    let stored = stored.ok_or_else(nameless)?;
    let name = stored.names.unwrap_or_default().into_iter().next();
    let name = clean_name(name.as_deref(), counters).ok_or_else(nameless)?;
    // A user of the storage that writes something else there has said no image.
    let metadata: StoredMetadata = serde_json::from_str(&stored.metadata).unwrap_or_default();
    Ok(ContainerIdentity {
        id: id.clone(),
        source: IdentitySource::Bundle,
        name: Some(name),
        image: clean_name(metadata.image.as_deref(), counters),
        runtime: None,
        kubernetes: None,
        labels: Default::default(),
    })
}

/// What of the Docker Engine's own file is read.
#[derive(Deserialize)]
struct DockerFile {
    #[serde(rename = "ID")]
    id: String,
    #[serde(rename = "Name", default)]
    name: String,
    #[serde(rename = "Config", default)]
    config: DockerConfig,
}

#[derive(Default, Deserialize)]
struct DockerConfig {
    #[serde(rename = "Image", default)]
    image: Option<String>,
    #[serde(rename = "Labels", default)]
    labels: Option<HashMap<String, String>>,
}

fn docker(
    root: &OwnedFd,
    id: &ContainerId,
    counters: &Counters,
) -> Result<ContainerIdentity, FileError> {
    let path = Path::new("containers")
        .join(id.as_str())
        .join("config.v2.json");
    let file: DockerFile = parse(&path, &read_below(root, &path)?)?;
    if file.id != id.as_str() {
        let message = "another container's".to_owned();
        return Err(FileError::Invalid { path, message });
    }
    let labels = file.config.labels.unwrap_or_default();
    let name = clean_name(Some(file.name.trim_start_matches('/')), counters);
    let kubernetes = kubernetes_names(&labels, counters);
    if name.is_none() && kubernetes.is_none() {
        return Err(FileError::Nameless(path));
    }
    Ok(ContainerIdentity {
        id: id.clone(),
        source: IdentitySource::Bundle,
        name,
        image: clean_name(file.config.image.as_deref(), counters),
        runtime: Some("docker".into()),
        kubernetes,
        labels: clean_labels(&labels, counters),
    })
}

/// Names from the annotations of an OCI bundle, whoever wrote them.
fn from_spec(
    id: &ContainerId,
    path: &Path,
    text: &[u8],
    counters: &Counters,
) -> Result<ContainerIdentity, FileError> {
    let annotations = parse::<Spec>(path, text)?.annotations.unwrap_or_default();
    let get = |key: &str| annotations.get(key).map(String::as_str);
    let mut labels = HashMap::new();
    let (name, image, kubernetes) = if get("io.kubernetes.cri.container-type").is_some() {
        let image = get("io.kubernetes.cri.image-name");
        (None, image, cri_names(get, counters))
    } else if get("io.kubernetes.cri-o.ContainerType").is_some() {
        if let Some(text) = get("io.kubernetes.cri-o.Labels") {
            labels = parse(path, text.as_bytes())?;
        }
        let image = get("io.kubernetes.cri-o.ImageName").or(get("io.kubernetes.cri-o.Image"));
        let name = get("io.kubernetes.cri-o.ContainerName");
        (name, image, crio_names(get, &labels, counters))
    } else {
        (
            get("nerdctl/name"),
            None,
            kubernetes_names(&annotations, counters),
        )
    };
    let name = clean_name(name, counters);
    if name.is_none() && kubernetes.is_none() {
        return Err(FileError::Nameless(path.to_owned()));
    }
    Ok(ContainerIdentity {
        id: id.clone(),
        source: IdentitySource::Bundle,
        name,
        image: clean_name(image, counters),
        // Anyone who can start a container can write annotations.
        runtime: None,
        kubernetes,
        labels: clean_labels(&labels, counters),
    })
}

/// Names in containerd's annotations. It writes these itself; a pod's own come under other keys.
fn cri_names<'a>(
    get: impl Fn(&str) -> Option<&'a str>,
    counters: &Counters,
) -> Option<KubernetesNames> {
    let names = PodNames {
        namespace: get("io.kubernetes.cri.sandbox-namespace"),
        pod: get("io.kubernetes.cri.sandbox-name"),
        pod_uid: get("io.kubernetes.cri.sandbox-uid"),
        container: get("io.kubernetes.cri.container-name"),
    };
    in_sandbox(get("io.kubernetes.cri.container-type"), names, counters)
}

/// Names in CRI-O's annotations. The kubelet's labels, which CRI-O keeps in one annotation of its
/// own, come before `io.kubernetes.pod.*`: a pod's annotations are copied beside those, and whoever
/// writes a pod writes its annotations.
fn crio_names<'a>(
    get: impl Fn(&str) -> Option<&'a str>,
    labels: &'a HashMap<String, String>,
    counters: &Counters,
) -> Option<KubernetesNames> {
    let of = |key: &str| {
        if labels.is_empty() {
            get(key)
        } else {
            labels.get(key).map(String::as_str)
        }
    };
    let names = PodNames {
        namespace: of("io.kubernetes.pod.namespace"),
        pod: of("io.kubernetes.pod.name"),
        pod_uid: of("io.kubernetes.pod.uid"),
        container: of("io.kubernetes.container.name"),
    };
    in_sandbox(get("io.kubernetes.cri-o.ContainerType"), names, counters)
}

/// The names, with the container's own replaced where it is the pod's.
fn in_sandbox(
    kind: Option<&str>,
    names: PodNames<'_>,
    counters: &Counters,
) -> Option<KubernetesNames> {
    let is_sandbox = kind == Some("sandbox");
    let container = if is_sandbox {
        // Any name does to have the others judged.
        Some("POD")
    } else {
        names.container
    };
    let mut names = kubernetes_names_of(PodNames { container, ..names }, counters)?;
    if is_sandbox {
        names.container = POD_ITSELF.into();
    }
    Some(names)
}

fn parse<T: DeserializeOwned>(path: &Path, text: &[u8]) -> Result<T, FileError> {
    serde_json::from_slice(text).map_err(|error| FileError::Invalid {
        path: path.to_owned(),
        // The parser's message quotes the text, which may contain a secret.
        message: format!(
            "not the JSON that it should be, at line {} column {}",
            error.line(),
            error.column()
        ),
    })
}

/// For the fuzz target: reads a file, as each of those that are read.
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub fn fuzz(file: &[u8]) {
    let counters = Counters::default();
    let id = ContainerId::from(&*"a".repeat(64));
    let path = Path::new("config.json");
    if let Ok(identity) = from_spec(&id, path, file, &counters) {
        assert!(identity.labels.len() <= super::MAX_LABELS);
    }
    let _ = parse::<DockerFile>(path, file);
    let _ = parse::<Vec<Stored>>(path, file);
}

#[cfg(test)]
mod tests;
