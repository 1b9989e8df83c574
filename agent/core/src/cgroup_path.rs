//! What the path of a cgroup says: whose it is.
//!
//! The path is the kernel's, so this needs no runtime to answer and no label to be believed. The
//! *outermost* container pays: what a tenant makes below its own cgroup (kind, docker-in-docker)
//! is kept as detail and never changes the owner. Components are therefore read from the root down,
//! and the first one that names a container decides.
//!
//! It refuses to guess: an id is 64 lower-case hexadecimal digits in a place where a runtime puts
//! one, or there is no container. `ctr run` lets its user choose any id; such a cgroup cannot be
//! told from any other directory and counts as the host's. What it takes from the path is a part of
//! the path, never made up.
//!
//! The same holds outside containers. A batch job or a machine (see `workloads`) is
//! booked as a whole. Whoever runs in it may make cgroups below it, and these do not change the
//! owner. A workload that is named by its last directory alone is recognised only in places where
//! root puts it. Any other workload is named by its full path, including the user's service
//! manager if it is below one. If systemd units nest, the outermost counts. A unit of a user's
//! service manager has the manager's name before its own, so a user's `sshd.service` cannot be
//! mistaken for the host's.

mod segment;
mod workloads;

use std::sync::Arc;

use crate::cgroup_path::segment::{container_id, is_numbered, prefixed};
use crate::model::{ContainerId, HostUnit, PodUid, text};

pub use self::segment::Runtime;

/// Longest pod uid that is taken, in bytes. UUIDs have 36, static pods' hashes 32; a static pod's
/// manifest may choose its own.
const MAX_POD_UID: usize = 128;
/// Longest host unit, in bytes: it becomes a label. A longer one is cut, with a mark that keeps those
/// apart that differ only behind the cut.
const MAX_UNIT: usize = 253;
/// Containers in containers that are kept as detail. The owner is outside and always kept.
const MAX_INNER: usize = 8;

/// What a cgroup path says.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum CgroupMeaning {
    /// It is a container's, or below one.
    Container(ContainerCgroup),
    /// It is a pod's own cgroup, outside its containers: CRI-O's monitors live there.
    Pod(PodCgroup),
    /// It belongs to the host.
    Host(HostUnit),
    /// The root of its hierarchy. On v1-only and hybrid hosts the v2 path of every process can be
    /// this one, so it says less than any other.
    Root,
}

/// A container, as the path of its cgroup names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ContainerCgroup {
    /// Its id.
    pub id: ContainerId,
    /// Its own cgroup: the path down to the component that names it.
    pub place: Arc<str>,
    /// Container runtime, by the form of the path.
    pub runtime: Runtime,
    /// The pod whose cgroup it is in.
    pub pod: Option<PodCgroup>,
    /// The container inside it that this cgroup belongs to, if it runs containers itself.
    pub inner: Option<Box<ContainerCgroup>>,
}

/// A pod, as the path of its cgroup names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PodCgroup {
    /// Its uid, with dashes where the API server gave it.
    pub uid: PodUid,
    /// Its quality-of-service class.
    pub qos: QosClass,
    /// Its own cgroup: the path down to the component that names it. Absent below `kata_overhead`,
    /// where the path names a pod whose cgroup is elsewhere.
    pub place: Option<Arc<str>>,
}

/// Kubernetes' quality-of-service class of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum QosClass {
    /// Limits equal requests, for every container.
    Guaranteed,
    /// Some requests or limits.
    Burstable,
    /// No requests and no limits.
    BestEffort,
}

impl QosClass {
    /// The name that Kubernetes gives it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }
}

/// Reads one path: the third field of a line of `/proc/<pid>/cgroup`, or one that was put together
/// from the kernel's announcements.
#[must_use]
pub fn parse(path: &str) -> CgroupMeaning {
    read(path).1
}

/// How much a meaning says, the most first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    ContainerInPod,
    Container,
    Pod,
    /// A batch job or a machine.
    Workload,
    Unit,
    Directory,
    Root,
}

fn read(path: &str) -> (Rank, CgroupMeaning) {
    let mut components = Components::of(path);
    let mut place = WalkState::default();
    let mut host = Host::default();
    while let Some((component, end)) = components.next() {
        // The agent of a batch system may run in a pod; in a pod its jobs are the pod's.
        if place.kubepods.is_none()
            && let Some(unit) = host.workload(component, &components.path[..end])
        {
            return (host.workload_rank(), CgroupMeaning::Host(host_unit(unit)));
        }
        host.enter(component);
        let Some((id, runtime)) = place.enter(component, &components.path[..end]) else {
            continue;
        };
        if place.is_overhead && place.pod.is_some() {
            break;
        }
        let rank = match place.pod {
            Some(_) => Rank::ContainerInPod,
            None => Rank::Container,
        };
        let container = ContainerCgroup {
            id,
            place: components.path[..end].into(),
            runtime,
            pod: place.pod,
            inner: inner_of(components),
        };
        return (rank, CgroupMeaning::Container(container));
    }
    if let Some(pod) = place.pod {
        return (Rank::Pod, CgroupMeaning::Pod(pod));
    }
    host.meaning(components.path)
}

/// What a path says if no id in it is believed.
#[must_use]
pub fn as_host(path: &str) -> HostUnit {
    let mut components = Components::of(path);
    let mut host = Host::default();
    while let Some((component, end)) = components.next() {
        if let Some(unit) = host.workload(component, &components.path[..end]) {
            return host_unit(unit);
        }
        host.enter(component);
    }
    match host.meaning(components.path).1 {
        CgroupMeaning::Host(unit) => unit,
        _ => HostUnit::from("/"),
    }
}

/// Whether a user's own service manager is above: below it, that user makes what cgroups he likes.
#[must_use]
pub fn is_users_own(path: &str) -> bool {
    let mut components = Components::of(path);
    components.any(|(component, _)| is_user_manager(component))
}

/// Reads all lines of one process, each with its hierarchy's number. Whichever hierarchy names a
/// container wins; then a pod's own cgroup, a batch job or machine, a systemd unit, any other path,
/// and the root last. Between equals the lowest number wins, so that cgroup v2, which is 0, goes
/// first.
#[must_use]
pub fn resolve<'a>(lines: impl IntoIterator<Item = (u32, &'a str)>) -> CgroupMeaning {
    lines
        .into_iter()
        .map(|(hierarchy, path)| {
            let (rank, meaning) = read(path);
            ((rank, hierarchy), meaning)
        })
        .min_by_key(|(key, _)| *key)
        .map_or(CgroupMeaning::Root, |(_, meaning)| meaning)
}

/// Whether one of these paths names a container, a pod, a batch job or a machine.
#[must_use]
pub fn names_work<'a>(paths: impl IntoIterator<Item = &'a str>) -> bool {
    paths.into_iter().any(|path| read(path).0 <= Rank::Workload)
}

/// The components of a path, the outermost first, each with the offset of its end.
struct Components<'a> {
    path: &'a str,
    at: usize,
}

impl<'a> Components<'a> {
    fn of(path: &'a str) -> Self {
        Self {
            // The kernel marks the cgroup of a process that outlived it.
            path: path.strip_suffix(" (deleted)").unwrap_or(path),
            at: 0,
        }
    }
}

impl<'a> Iterator for Components<'a> {
    type Item = (&'a str, usize);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let rest = self.path.get(self.at..).filter(|rest| !rest.is_empty())?;
            let component = rest.split('/').next().unwrap_or_default();
            let end = self.at + component.len();
            self.at = end + 1;
            // A reader in a cgroup namespace sees what lies outside of it below "..".
            if !matches!(component, "" | "." | "..") {
                return Some((component, end));
            }
        }
    }
}

/// What is known of the host's part of a path.
#[derive(Default)]
struct Host<'a> {
    depth: usize,
    /// The last components so far, the nearest last.
    above: [&'a str; workloads::MAX_ABOVE],
    /// The outermost unit.
    unit: Option<&'a str>,
    /// The outermost unit of a user's manager, if `unit` is that manager.
    users_unit: Option<&'a str>,
}

impl<'a> Host<'a> {
    /// Whether the next component is a batch job's or a machine's, and if so what that is called.
    /// `path` ends with it.
    fn workload<'p>(&self, component: &'p str, path: &'p str) -> Option<&'p str> {
        workloads::workload(self.above, self.depth + 1, component, path)
    }

    /// What a workload that is found now says, beside other hierarchies.
    fn workload_rank(&self) -> Rank {
        match self.unit {
            // He can make such a directory himself, so it does not outrank a job elsewhere.
            Some(unit) if is_user_manager(unit) => Rank::Unit,
            _ => Rank::Workload,
        }
    }

    fn enter(&mut self, component: &'a str) {
        self.depth += 1;
        self.above.rotate_left(1);
        self.above[workloads::MAX_ABOVE - 1] = component;
        if !component.ends_with(".service") && !component.ends_with(".scope") {
            return;
        }
        match self.unit {
            None => self.unit = Some(component),
            Some(unit) if is_user_manager(unit) => {
                self.users_unit.get_or_insert(component);
            }
            Some(_) => {}
        }
    }

    fn meaning(self, path: &str) -> (Rank, CgroupMeaning) {
        let (rank, unit) = match (self.unit, self.users_unit) {
            (Some(unit), Some(users)) => (Rank::Unit, host_unit(&format!("{unit}/{users}"))),
            (Some(unit), None) => (Rank::Unit, host_unit(unit)),
            (None, _) if self.depth > 0 => (Rank::Directory, host_unit(path)),
            (None, _) => return (Rank::Root, CgroupMeaning::Root),
        };
        (rank, CgroupMeaning::Host(unit))
    }
}

/// `user@<uid>.service`: below it everything is that user's, named by him.
fn is_user_manager(unit: &str) -> bool {
    unit.strip_suffix(".service")
        .is_some_and(|unit| is_numbered(unit, "user@"))
}

/// What is known about the place that the walk from the root has reached.
#[derive(Default)]
struct WalkState<'a> {
    /// The last component.
    parent: Option<&'a str>,
    /// Components so far.
    depth: usize,
    /// Below the kubelet's cgroup of all pods, with the class if its cgroup has been passed.
    kubepods: Option<Option<QosClass>>,
    /// Below a pod's cgroup.
    pod: Option<PodCgroup>,
    /// Below `/kata_overhead`, where Kata puts what it does not want within the pod's bounds: the
    /// path is the sandbox's id, or repeats the path of the sandbox.
    is_overhead: bool,
}

impl<'a> WalkState<'a> {
    /// Goes one component down, the last of `path`. A container, if this component names one.
    fn enter(&mut self, component: &'a str, path: &str) -> Option<(ContainerId, Runtime)> {
        let parent = self.parent.replace(component);
        self.depth += 1;

        // A runtime that was not told of the kubelet's systemd driver takes `slice:prefix:id` for a
        // name: the whole of it ends up as one component.
        if let Some((slice, rest)) = component.split_once(".slice:") {
            // The pod's part of the path ends before the first colon.
            self.note_slice(slice, &path[..path.len() - rest.len() - 1]);
            let (prefix, id) = rest.split_once(':')?;
            let runtime = match prefix {
                "docker" => Runtime::Docker,
                "cri-containerd" | "nerdctl" => Runtime::Containerd,
                "crio" => Runtime::CriO,
                "libpod" => Runtime::Podman,
                _ => return None,
            };
            return Some((container_id(id)?, runtime));
        }
        if let Some(slice) = component.strip_suffix(".slice") {
            self.note_slice(slice, path);
            return None;
        }
        if let Some(found) = prefixed(component) {
            return Some(found);
        }
        // A pod's sandbox, with all of the pod in it: the pod's own, like its cgroup.
        if let Some(id) = component.strip_prefix("kata_").and_then(container_id) {
            return self.pod.is_none().then_some((id, Runtime::Kata));
        }
        if let Some(id) = container_id(component) {
            return match parent {
                // Podman's cgroupfs manager puts a pod's containers below the pod's own id.
                Some("libpod_parent") => None,
                Some("docker") => Some((id, Runtime::Docker)),
                Some("kata_overhead") if self.depth == 2 => Some((id, Runtime::Kata)),
                // containerd's namespaces: CRI's, and that of nerdctl and ctr.
                Some("k8s.io" | "default") if self.depth == 2 => Some((id, Runtime::Containerd)),
                _ => Some((id, Runtime::Unresolved)),
            };
        }
        self.note_directory(component, path);
        None
    }

    /// The kubelet's cgroupfs driver: `kubepods`, `burstable` or `besteffort`, `pod<uid>`.
    fn note_directory(&mut self, component: &str, path: &str) {
        match (self.kubepods, component) {
            (None, "kata_overhead") if self.depth == 1 => self.is_overhead = true,
            (None, "kubepods") => self.kubepods = Some(None),
            (Some(None), "burstable") => self.kubepods = Some(Some(QosClass::Burstable)),
            (Some(None), "besteffort") => self.kubepods = Some(Some(QosClass::BestEffort)),
            (Some(qos), _) if self.pod.is_none() => {
                self.pod = component
                    .strip_prefix("pod")
                    .and_then(|uid| self.pod_cgroup(uid.to_owned(), qos, path));
            }
            _ => {}
        }
    }

    /// The kubelet's systemd driver: each slice repeats the names of those above it, and a uid's
    /// dashes are underscores, since a dash stands for a level. `slice` comes without its suffix.
    fn note_slice(&mut self, slice: &str, path: &str) {
        let Some(at) = slice.rfind("kubepods") else {
            return;
        };
        if at > 0 && !slice[..at].ends_with('-') {
            return;
        }
        let rest = &slice[at + "kubepods".len()..];
        let (qos, rest) = if let Some(rest) = rest.strip_prefix("-burstable") {
            (Some(QosClass::Burstable), rest)
        } else if let Some(rest) = rest.strip_prefix("-besteffort") {
            (Some(QosClass::BestEffort), rest)
        } else {
            (None, rest)
        };
        if rest.is_empty() {
            self.kubepods = Some(qos);
        } else if let Some(uid) = rest.strip_prefix("-pod") {
            self.kubepods = Some(qos);
            self.pod = self.pod_cgroup(uid.replace('_', "-"), qos, path);
        }
    }

    fn pod_cgroup(&self, uid: String, qos: Option<QosClass>, path: &str) -> Option<PodCgroup> {
        let place = (!self.is_overhead).then(|| path.into());
        pod(uid, qos, place)
    }
}

fn pod(uid: String, qos: Option<QosClass>, place: Option<Arc<str>>) -> Option<PodCgroup> {
    let well_formed = (1..=MAX_POD_UID).contains(&uid.len())
        && uid
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'));
    well_formed.then(|| PodCgroup {
        uid: PodUid(uid.into()),
        qos: qos.unwrap_or(QosClass::Guaranteed),
        place,
    })
}

/// The containers below the one that pays. Each level starts afresh: an inner kubelet has its own
/// `kubepods`.
fn inner_of(mut components: Components<'_>) -> Option<Box<ContainerCgroup>> {
    let mut found = Vec::new();
    let mut place = WalkState::default();
    while let Some((component, end)) = components.next() {
        let path = &components.path[..end];
        if let Some((id, runtime)) = place.enter(component, path) {
            let pod = std::mem::take(&mut place).pod;
            found.push(ContainerCgroup {
                id,
                place: path.into(),
                runtime,
                pod,
                inner: None,
            });
            if found.len() == MAX_INNER {
                break;
            }
        }
    }
    found.into_iter().rev().fold(None, |inner, container| {
        Some(Box::new(ContainerCgroup { inner, ..container }))
    })
}

impl ContainerCgroup {
    /// This container and those within it, the outermost first.
    pub fn chain(&self) -> impl Iterator<Item = &Self> {
        std::iter::successors(Some(self), |container| container.inner.as_deref())
    }
}

/// A unit's name or a path, fit to be a label: bounded, without control characters.
fn host_unit(path: &str) -> HostUnit {
    // The sources leave none, a recording may.
    let path = match path.contains(char::is_control) {
        true => text::escaped(path.as_bytes()),
        false => path.into(),
    };
    HostUnit(text::bounded(&path, MAX_UNIT).into())
}

#[cfg(test)]
mod tests;
