//! Names from the links that the kubelet makes for log collectors:
//! `/var/log/containers/<pod>_<namespace>_<container>-<id>.log`, which leads to
//! `/var/log/pods/<namespace>_<pod>_<uid>/<container>/<n>.log`.
//!
//! The kubelet makes them by itself, whatever the runtime: they are there where no runtime's socket
//! or bundle can be had, rkt's included. The id is in the link's name, the pod's uid in its target,
//! and both must name the same container. Where the first folder is missing, a Docker node's second
//! one says the same, since there each log is a link to `…/<id>/<id>-json.log`.
//!
//! A pod that has a cgroup and no container in it (gVisor, Kata) is asked for by its uid, and its
//! folder has its names.
//!
//! It says names and nothing else: neither image nor labels. It refuses to follow a link: a target
//! is text. It never opens a log.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{fstat, readlinkat};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tracing::warn;

use super::files::{
    Answer, FileError, IdentityFiles, Presence, is_container_id, is_id_digit, names_in, open_below,
    open_folder,
};
use super::{Counters, IdentityIo, PodNames, files, kubernetes_names_of};
use crate::config;
use crate::core::input::{
    ContainerIdentity, IdentitySource, IdentityUpdate, Input, KubernetesNames,
};
use crate::core::model::{ContainerId, POD_ITSELF, PodUid};

pub use super::files::Timing;

/// Names read of any one folder. A node has 110 pods, and some dead ones of each.
const MAX_NAMES: usize = 16_384;
/// Pods looked for in one go.
const MAX_PODS: usize = 64;
/// Logs looked at in one walk over the pods' folders.
const MAX_WALK: usize = 16_384;
/// The longest file name, at which the kubelet cuts: the id is last.
const MAX_FILE_NAME: usize = 255;
/// Digits of an id that have to be left for a cut name to be believed. Of 64 bits none of a node's
/// ids share all.
const MIN_ID_DIGITS: usize = 16;
/// A folder that changed less than this before it was read may have changed after, within the same
/// tick of the file system's clock.
const SETTLED: Duration = Duration::from_millis(100);

/// Answers lookups until the agent stops or nobody reads the answers any more. `pods` are lookups of
/// pods.
pub async fn run(
    config: config::KubeletLogs,
    pace: Timing,
    pods: mpsc::Receiver<PodUid>,
    io: IdentityIo<ContainerId>,
) {
    let first = config.containers.clone();
    let (counters, out) = (Arc::clone(&io.counters), io.io.out.clone());
    let of_pods = answer_for_pods(config.clone(), pace, counters, pods, out);
    let links = Links {
        config,
        listing: None,
    };
    tokio::select! {
        () = files::run(links, pace, first, io) => {}
        // It ends only when the receiver of the answers is dropped.
        () = of_pods => {}
    }
}

/// Answers lookups of pods. What this source is doing is not reported from here: the folder is the one
/// that the lookups of containers look into.
async fn answer_for_pods(
    config: config::KubeletLogs,
    pace: Timing,
    counters: Arc<Counters>,
    mut pods: mpsc::Receiver<PodUid>,
    out: mpsc::Sender<Input>,
) {
    let mut batch = Vec::new();
    loop {
        if pods.recv_many(&mut batch, MAX_PODS).await == 0 {
            // Nobody asks any more.
            return std::future::pending().await;
        }
        let uids = std::mem::take(&mut batch);
        let asked = uids.len();
        Counters::add(&counters.calls, asked);
        let (of, count) = (config.clone(), Arc::clone(&counters));
        let mut work = spawn_blocking(move || find_pods(&of, uids, &count));
        let mut is_late = false;
        let done = match timeout(pace.timeout, &mut work).await {
            Ok(done) => done,
            Err(_) => {
                is_late = true;
                Counters::count(&counters.timeouts);
                Counters::add(&counters.lookups_timeout, asked);
                // One thread that hangs is enough.
                work.await
            }
        };
        let updates = done.unwrap_or_else(|error| {
            warn!(%error, "cannot read the pod log folders");
            if !is_late {
                Counters::add(&counters.lookups_error, asked);
            }
            Vec::new()
        });
        for update in updates {
            match &update {
                _ if is_late => {}
                IdentityUpdate::PodNotFound { reason, .. } => counters.count_failed_lookup(reason),
                _ => Counters::count(&counters.lookups_found),
            }
            if out.send(Input::Identity(update)).await.is_err() {
                return;
            }
        }
    }
}

/// What the folders of logs say of these pods; nothing where there is no folder of them. Blocks.
fn find_pods(
    config: &config::KubeletLogs,
    uids: Vec<PodUid>,
    counters: &Counters,
) -> Vec<IdentityUpdate> {
    let Ok(folder) = open_folder(&config.host_root, &config.pods) else {
        return Vec::new();
    };
    let Ok((folders, more)) = names_in(&folder, &config.pods, MAX_NAMES) else {
        return Vec::new();
    };
    if more {
        Counters::count(&counters.invalid_replies);
    }
    let source = IdentitySource::KubeletLogs;
    let answer = |uid: PodUid| match pod_in(&folders, &uid, counters) {
        Ok(names) => IdentityUpdate::FoundPod { source, names },
        Err(reason) => IdentityUpdate::PodNotFound {
            source,
            uid,
            reason,
        },
    };
    uids.into_iter().map(answer).collect()
}

/// The names in the one folder that is called after this pod, `<namespace>_<pod>_<uid>`.
fn pod_in(
    folders: &[String],
    uid: &PodUid,
    counters: &Counters,
) -> Result<KubernetesNames, &'static str> {
    // A cgroup may show a static pod's uid with dashes, or without.
    let bare = |uid: &str| uid.replace('-', "");
    let wanted = bare(uid.as_str());
    let mut found = folders
        .iter()
        // Any name of a container will do for the check.
        .filter_map(|folder| names_of_folders(folder, "POD"))
        .filter(|names| names.pod_uid.is_some_and(|uid| bare(uid) == wanted));
    let names = found.next().ok_or("not_found")?;
    // Before Kubernetes 1.14 the folder was the uid alone.
    if names.namespace.is_none() {
        return Err("not_found");
    }
    let names = kubernetes_names_of(names, counters).ok_or("invalid_reply")?;
    match found.next() {
        None => Ok(KubernetesNames {
            container: POD_ITSELF.into(),
            ..names
        }),
        // Two that could be it are none.
        Some(_) => Err("invalid_reply"),
    }
}

#[derive(Clone, Debug)]
struct Links {
    config: config::KubeletLogs,
    listing: Option<Listing>,
}

/// What was in the folder of links when it last changed.
#[derive(Clone, Debug)]
struct Listing {
    changed: (i64, u64),
    /// The link's file name, by the id at its end.
    by_id: HashMap<ContainerId, Box<str>>,
    /// Names that were cut within the id.
    cut: Vec<Box<str>>,
    /// Whether a change since then would show in `changed`.
    is_settled: bool,
}

impl IdentityFiles for Links {
    const SOURCE: IdentitySource = IdentitySource::KubeletLogs;

    fn find(&mut self, ids: &[ContainerId], counters: &Counters) -> (Presence, Vec<Answer>) {
        let mut presence = Presence::default();
        let config::KubeletLogs {
            host_root,
            containers,
            pods,
            ..
        } = &self.config;
        let links = presence.note(containers, open_folder(host_root, containers));
        let logs = presence.note(pods, open_folder(host_root, pods));
        let (containers, pods) = (containers.clone(), pods.clone());

        let mut answers: Vec<Answer> = ids
            .iter()
            .map(|id| Err(FileError::Missing(id.as_str().into())))
            .collect();
        if ids.is_empty() {
            return (presence, answers);
        }
        if let Some(folder) = &links {
            match self.listing(folder, &containers, counters) {
                Ok(listing) => {
                    for (id, answer) in ids.iter().zip(&mut answers) {
                        *answer = linked(folder, listing, id, counters);
                    }
                }
                Err(fault) => presence.give_up(containers, fault),
            }
        }
        if answers.iter().all(Result::is_ok) {
            return (presence, answers);
        }
        // Only a Docker node's logs are links, and only links name an id.
        if let Some(folder) = &logs {
            match walk(folder, &pods, ids, counters) {
                Ok(found) => {
                    for (id, answer) in ids.iter().zip(&mut answers) {
                        if answer.is_err()
                            && let Some(names) = found.get(id)
                        {
                            *answer = Ok(identity(id, names.clone()));
                        }
                    }
                }
                Err(fault) if links.is_none() => presence.give_up(pods, fault),
                // The links are the better source, and they answer.
                Err(_) => {}
            }
        }
        (presence, answers)
    }
}

impl Links {
    /// Names of the links, read again only if the folder has changed.
    fn listing(
        &mut self,
        folder: &OwnedFd,
        path: &Path,
        counters: &Counters,
    ) -> Result<&Listing, FileError> {
        let meta = fstat(folder).map_err(|e| FileError::Io {
            path: path.to_owned(),
            source: e.into(),
        })?;
        let changed = (meta.st_mtime, meta.st_mtime_nsec);
        if !matches!(&self.listing, Some(known) if known.is_settled && known.changed == changed) {
            let (names, more) = names_in(folder, path, MAX_NAMES)?;
            if more {
                Counters::count(&counters.invalid_replies);
            }
            self.listing = Some(Listing::of(names, changed));
        }
        // It was just put there.
        self.listing
            .as_ref()
            .ok_or_else(|| FileError::Missing(path.to_owned()))
    }
}

impl Listing {
    fn of(names: Vec<String>, changed: (i64, u64)) -> Self {
        let mut by_id = HashMap::with_capacity(names.len());
        let mut cut = Vec::new();
        for name in names {
            match id_of(&name) {
                Some(id) if id.len() == 64 => {
                    by_id.insert(ContainerId::from(id), name.as_str().into());
                }
                Some(_) => cut.push(name.into_boxed_str()),
                None => {}
            }
        }
        let seconds = u64::try_from(changed.0).unwrap_or(0);
        let nanos = u32::try_from(changed.1).unwrap_or(0);
        let at = UNIX_EPOCH + Duration::new(seconds, nanos);
        // A change time in the future comes from another clock: read the folder every time.
        let is_settled = SystemTime::now()
            .duration_since(at)
            .is_ok_and(|age| age >= SETTLED);
        Self {
            changed,
            by_id,
            cut,
            is_settled,
        }
    }
}

/// The id in a link's name, or what is left of it where the kubelet had to cut the name.
fn id_of(name: &str) -> Option<&str> {
    let (_, id) = name.strip_suffix(".log")?.rsplit_once('-')?;
    let is_cut = name.len() == MAX_FILE_NAME
        && (MIN_ID_DIGITS..64).contains(&id.len())
        && id.bytes().all(is_id_digit);
    (is_container_id(id) || is_cut).then_some(id)
}

/// What the link of a container says.
fn linked(folder: &OwnedFd, listing: &Listing, id: &ContainerId, counters: &Counters) -> Answer {
    let missing = || FileError::Missing(id.as_str().into());
    let name = match listing.by_id.get(id) {
        Some(name) => name,
        None => {
            let mut cut = listing
                .cut
                .iter()
                .filter(|name| id_of(name).is_some_and(|left| id.as_str().starts_with(left)));
            match (cut.next(), cut.next()) {
                (Some(name), None) => name,
                // Two that could be it are none.
                _ => return Err(missing()),
            }
        }
    };
    let path = Path::new(&**name);
    let target = readlinkat(folder, path, Vec::new()).map_err(|errno| match errno {
        rustix::io::Errno::NOENT => missing(),
        // It is no link.
        rustix::io::Errno::INVAL => FileError::Invalid {
            path: path.to_owned(),
            message: "found a file, expected a link to the pod's log".to_owned(),
        },
        errno => FileError::Io {
            path: path.to_owned(),
            source: errno.into(),
        },
    })?;
    let invalid = |message: &str| FileError::Invalid {
        path: path.to_owned(),
        message: message.to_owned(),
    };
    let target = target
        .to_str()
        .map_err(|_| invalid("its target is not UTF-8"))?;
    let (own, log) = (names_of_link(name), names_of_log(Path::new(target)));
    let (Some(own), Some(log)) = (own, log) else {
        return Err(invalid("its target is not a pod's log"));
    };
    // Before Kubernetes 1.14 the folder was the uid alone.
    let agrees = |a: Option<&str>, b: Option<&str>| b.is_none() || a == b;
    if !agrees(own.namespace, log.namespace)
        || !agrees(own.pod, log.pod)
        || own.container != log.container
    {
        return Err(invalid("its name and its target are different containers"));
    }
    let names = PodNames {
        pod_uid: log.pod_uid,
        ..own
    };
    kubernetes_names_of(names, counters)
        .map(|names| identity(id, names))
        .ok_or_else(|| invalid("its names are not Kubernetes'"))
}

/// `<pod>_<namespace>_<container>-<id>.log`. None of the names has an underscore.
fn names_of_link(name: &str) -> Option<PodNames<'_>> {
    let (names, _) = name.strip_suffix(".log")?.rsplit_once('-')?;
    let mut parts = names.split('_');
    let (pod, namespace, container) = (parts.next()?, parts.next()?, parts.next()?);
    parts.next().is_none().then_some(PodNames {
        namespace: Some(namespace),
        pod: Some(pod),
        pod_uid: None,
        container: Some(container),
    })
}

/// `…/<namespace>_<pod>_<uid>/<container>/<n>.log`, or with the uid alone.
fn names_of_log(path: &Path) -> Option<PodNames<'_>> {
    let container = path.parent()?;
    let pod = container.parent()?.file_name()?.to_str()?;
    names_of_folders(pod, container.file_name()?.to_str()?)
}

fn names_of_folders<'a>(pod: &'a str, container: &'a str) -> Option<PodNames<'a>> {
    let parts: Vec<&str> = pod.split('_').collect();
    let (namespace, name, uid) = match parts[..] {
        [namespace, pod, uid] => (Some(namespace), Some(pod), uid),
        [uid] => (None, None, uid),
        _ => return None,
    };
    Some(PodNames {
        namespace,
        pod: name,
        pod_uid: Some(uid),
        container: Some(container),
    })
}

/// Those of `ids` whose logs are links that say so, in the folder of pods.
fn walk(
    folder: &OwnedFd,
    path: &Path,
    ids: &[ContainerId],
    counters: &Counters,
) -> Result<HashMap<ContainerId, KubernetesNames>, FileError> {
    let mut found = HashMap::new();
    let mut left = MAX_WALK;
    // What vanishes or is no folder is passed over: pods come and go meanwhile.
    let list = |folder: &OwnedFd, path: &Path| {
        let (names, more) = names_in(folder, path, MAX_NAMES).unwrap_or_default();
        if more {
            Counters::count(&counters.invalid_replies);
        }
        names
    };
    let (pods, more) = names_in(folder, path, MAX_NAMES)?;
    if more {
        Counters::count(&counters.invalid_replies);
    }
    for pod in pods {
        let Ok(pod_folder) = open_below(folder, Path::new(&pod)) else {
            continue;
        };
        for container in list(&pod_folder, Path::new(&pod)) {
            let Ok(log_folder) = open_below(&pod_folder, Path::new(&container)) else {
                continue;
            };
            for log in list(&log_folder, Path::new(&container)) {
                if left == 0 {
                    Counters::count(&counters.invalid_replies);
                    return Ok(found);
                }
                left -= 1;
                let Some(id) = id_of_log(&log_folder, &log).filter(|id| ids.contains(id)) else {
                    continue;
                };
                let names = names_of_folders(&pod, &container);
                if let Some(names) = names.and_then(|names| kubernetes_names_of(names, counters)) {
                    found.insert(id, names);
                }
            }
        }
    }
    Ok(found)
}

/// The id of the container whose log the Docker Engine keeps, if this is a link to it.
fn id_of_log(folder: impl AsFd, log: &str) -> Option<ContainerId> {
    // A log that is a file, as every other runtime's is, fails here.
    let target = readlinkat(folder, log, Vec::new()).ok()?;
    let name = Path::new(target.to_str().ok()?).file_name()?.to_str()?;
    let id = name.strip_suffix("-json.log")?;
    is_container_id(id).then(|| ContainerId::from(id))
}

fn identity(id: &ContainerId, names: KubernetesNames) -> Box<ContainerIdentity> {
    Box::new(ContainerIdentity {
        id: id.clone(),
        source: IdentitySource::KubeletLogs,
        name: None,
        image: None,
        runtime: None,
        kubernetes: Some(names),
        labels: Default::default(),
    })
}

/// For the fuzz target: reads the name of a link, and where it leads.
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub fn fuzz(name: &str) {
    let counters = Counters::default();
    if let Some(id) = id_of(name) {
        assert!(name.contains(id));
    }
    let found = [names_of_link(name), names_of_log(Path::new(name))];
    for names in found.into_iter().flatten() {
        let _ = super::kubernetes_names_of(names, &counters);
    }
    if let Some((pod, container)) = name.split_once('/') {
        let _ = names_of_folders(pod, container);
    }
}

#[cfg(test)]
mod tests;
