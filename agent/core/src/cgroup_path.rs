//! What the path of a cgroup says: whose it is.
//!
//! The path is the kernel's, so this needs no runtime to answer and no label to be believed. The
//! *outermost* container pays: what a tenant makes below its own cgroup (kind, docker-in-docker)
//! is kept as detail and never changes the payer. Components are therefore read from the root down,
//! and the first one that names a container decides.
//!
//! It refuses to guess: an id is 64 lower-case hexadecimal digits in a place where a runtime puts
//! one, or there is no container. `ctr run` lets its user choose any id; such a cgroup cannot be
//! told from any other directory and counts as the host's. What it takes from the path is a part of
//! the path, never made up.
//!
//! The same holds outside containers. A batch job or a machine (see `workloads`) is
//! booked whole: whoever runs in it may make cgroups below it, and none of them is believed. What
//! is called by its own name alone is one only where root puts it; the others are called by the
//! whole of their paths, with the user's manager in it where one of his made them. Of
//! systemd's units the outermost is meant, and what a user's own manager calls its units stands
//! behind the manager's name, so that nobody's `sshd.service` passes for the host's.

mod workloads;

use std::sync::Arc;

use super::model::{ContainerId, HostUnit, PodUid, UNRESOLVED, text};

/// Digits of a container id.
const ID_LEN: usize = 64;
/// Longest pod uid that is taken, in bytes. UUIDs have 36, static pods' hashes 32; a static pod's
/// manifest may choose its own.
const MAX_POD_UID: usize = 128;
/// Longest host unit, in bytes: it becomes a label. A longer one is cut, with a mark that keeps those
/// apart that differ only behind the cut.
const MAX_UNIT: usize = 253;
/// Containers in containers that are kept as detail. The payer is outside and always kept.
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
    /// Who runs it.
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

/// Who runs a container, by the shape of its cgroup's path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Runtime {
    /// Docker Engine.
    Docker,
    /// containerd, through CRI or nerdctl.
    Containerd,
    /// CRI-O.
    CriO,
    /// Podman, or another user of libpod.
    Podman,
    /// Kata Containers: the path names the sandbox, in which all of a pod's containers are.
    Kata,
    /// The path is a bare id: Docker and containerd both write that under a parent that is not
    /// their own.
    Unresolved,
}

impl Runtime {
    /// The label value.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Containerd => "containerd",
            Self::CriO => "cri-o",
            Self::Podman => "podman",
            Self::Kata => "kata",
            Self::Unresolved => UNRESOLVED,
        }
    }
}

/// Kubernetes' quality-of-service class of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum QosClass {
    /// Limits equal requests, for every container.
    Guaranteed,
    /// Some requests or limits.
    Burstable,
    /// None.
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
    let mut place = Place::default();
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

fn is_numbered(text: &str, prefix: &str) -> bool {
    text.strip_prefix(prefix)
        .is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
}

/// What is known about the place that the walk from the root has reached.
#[derive(Default)]
struct Place<'a> {
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

impl<'a> Place<'a> {
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

/// `<prefix>-<id>`, with `.scope` behind it under the systemd driver. Monitors (`crio-conmon-<id>`,
/// `libpod-conmon-<id>`) are no containers: what stands between prefix and id makes the id
/// malformed, except for the payload that Podman splits off from its monitor.
fn prefixed(component: &str) -> Option<(ContainerId, Runtime)> {
    let name = component.strip_suffix(".scope").unwrap_or(component);
    [
        ("docker-", Runtime::Docker),
        ("cri-containerd-", Runtime::Containerd),
        ("nerdctl-", Runtime::Containerd),
        ("crio-", Runtime::CriO),
        ("libpod-payload-", Runtime::Podman),
        ("libpod-", Runtime::Podman),
    ]
    .into_iter()
    .find_map(|(prefix, runtime)| Some((container_id(name.strip_prefix(prefix)?)?, runtime)))
}

fn container_id(text: &str) -> Option<ContainerId> {
    let well_formed =
        text.len() == ID_LEN && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    well_formed.then(|| ContainerId::from(text))
}

/// The containers below the one that pays. Each level starts afresh: an inner kubelet has its own
/// `kubepods`.
fn inner_of(mut components: Components<'_>) -> Option<Box<ContainerCgroup>> {
    let mut found = Vec::new();
    let mut place = Place::default();
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
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: &str = "6f1e0b5d9c3a47288f0e1d2c3b4a59687766554433221100ffeeddccbbaa9988";
    const B: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
    const UID: &str = "9f6c1b1e-2d3f-4a5b-8c7d-0123456789ab";
    const UID_: &str = "9f6c1b1e_2d3f_4a5b_8c7d_0123456789ab";
    /// A static pod's: a hash of its manifest.
    const STATIC: &str = "0b1c2d3e4f5061728394a5b6c7d8e9f0";

    /// `{A}`, `{B}`, `{UID}`, `{UID_}` and `{STATIC}` stand for the constants.
    fn fill(template: &str) -> String {
        template
            .replace("{A}", A)
            .replace("{B}", B)
            .replace("{UID}", UID)
            .replace("{UID_}", UID_)
            .replace("{STATIC}", STATIC)
    }

    /// A row's words: `docker A`, `cri-o A pod=UID Burstable`, `docker A > containerd B`,
    /// `pod UID Burstable`, `host ssh.service`, `root`.
    fn say(meaning: &CgroupMeaning) -> String {
        fn container(c: &ContainerCgroup) -> String {
            let id = match c.id.as_str() {
                A => "A",
                B => "B",
                other => other,
            };
            let pod = c
                .pod
                .as_ref()
                .map_or(String::new(), |p| format!(" {}", pod(p)));
            let inner = c
                .inner
                .as_ref()
                .map_or(String::new(), |c| format!(" > {}", container(c)));
            format!("{} {id}{pod}{inner}", c.runtime.as_str())
        }
        fn pod(p: &PodCgroup) -> String {
            let uid = match p.uid.as_str() {
                UID => "UID",
                STATIC => "STATIC",
                other => other,
            };
            format!("pod={uid} {}", p.qos.as_str())
        }
        match meaning {
            CgroupMeaning::Container(c) => container(c),
            CgroupMeaning::Pod(p) => pod(p),
            CgroupMeaning::Host(unit) => format!("host {unit}"),
            CgroupMeaning::Root => "root".to_owned(),
        }
    }

    #[test]
    fn every_shape_that_runtimes_write() {
        let rows = [
            // Docker: cgroupfs on v1, v2 and hybrid hosts; the systemd driver; a parent of one's own.
            ("/docker/{A}", "docker A"),
            ("/docker/{A}/", "docker A"),
            ("/system.slice/docker-{A}.scope", "docker A"),
            ("/system.slice/docker-{A}.scope/init.scope", "docker A"),
            ("/batch/{A}", "(unresolved) A"),
            ("/batch/jobs/{A}/worker", "(unresolved) A"),
            ("/batch.slice/docker-{A}.scope", "docker A"),
            ("/system.slice/docker.service/docker/{A}", "docker A"),
            (
                "/user.slice/user-1000.slice/user@1000.service/user.slice/docker-{A}.scope",
                "docker A",
            ),
            ("/docker/{A} (deleted)", "docker A"),
            // Docker under a kubelet.
            (
                "/kubepods/burstable/pod{UID}/{A}",
                "(unresolved) A pod=UID Burstable",
            ),
            (
                "/kubepods/besteffort/pod{UID}/{A}",
                "(unresolved) A pod=UID BestEffort",
            ),
            (
                "/kubepods/pod{UID}/{A}",
                "(unresolved) A pod=UID Guaranteed",
            ),
            (
                "/kubepods/burstable/pod{STATIC}/{A}",
                "(unresolved) A pod=STATIC Burstable",
            ),
            (
                "/kubepods/podetcd-node1/{A}",
                "(unresolved) A pod=etcd-node1 Guaranteed",
            ),
            (
                "/node/kubepods/burstable/pod{UID}/{A}",
                "(unresolved) A pod=UID Burstable",
            ),
            (
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UID_}.slice/docker-{A}.scope",
                "docker A pod=UID Burstable",
            ),
            // containerd through CRI.
            (
                "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{UID_}.slice/cri-containerd-{A}.scope",
                "containerd A pod=UID BestEffort",
            ),
            (
                "/kubepods.slice/kubepods-pod{UID_}.slice/cri-containerd-{A}.scope",
                "containerd A pod=UID Guaranteed",
            ),
            (
                "/kubepods.slice/kubepods-pod{STATIC}.slice/cri-containerd-{A}.scope",
                "containerd A pod=STATIC Guaranteed",
            ),
            (
                "/system.slice/containerd.service/kubepods-burstable-pod{UID_}.slice:cri-containerd:{A}",
                "containerd A pod=UID Burstable",
            ),
            ("/system.slice:docker:{A}", "docker A"),
            ("/k8s.io/{A}", "containerd A"),
            ("/system.slice/nerdctl-{A}.scope", "containerd A"),
            // Plain ctr: only an id that has the shape of one.
            ("/default/{A}", "containerd A"),
            ("/build/{A}", "(unresolved) A"),
            ("/default/train-1", "host /default/train-1"),
            // CRI-O, with and without crun's own cgroup below; its monitor is no container.
            (
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UID_}.slice/crio-{A}.scope",
                "cri-o A pod=UID Burstable",
            ),
            (
                "/kubepods.slice/kubepods-pod{UID_}.slice/crio-{A}.scope/container",
                "cri-o A pod=UID Guaranteed",
            ),
            (
                "/kubepods/besteffort/pod{UID}/crio-{A}",
                "cri-o A pod=UID BestEffort",
            ),
            (
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UID_}.slice/crio-conmon-{A}.scope",
                "pod=UID Burstable",
            ),
            (
                "/system.slice/crio-conmon-{A}.scope",
                "host crio-conmon-{A}.scope",
            ),
            // Podman, its pods, its monitor.
            ("/libpod_parent/libpod-{A}", "podman A"),
            ("/libpod_parent/libpod-{A}/container", "podman A"),
            ("/libpod_parent/{B}/libpod-{A}", "podman A"),
            (
                "/libpod_parent/libpod-conmon-{A}",
                "host /libpod_parent/libpod-conmon-{A}",
            ),
            ("/machine.slice/libpod-{A}.scope", "podman A"),
            ("/machine.slice/libpod-{A}.scope/container", "podman A"),
            (
                "/machine.slice/machine-libpod_pod_{B}.slice/libpod-{A}.scope",
                "podman A",
            ),
            (
                "/machine.slice/libpod-conmon-{A}.scope",
                "host libpod-conmon-{A}.scope",
            ),
            ("/system.slice/web.service/libpod-payload-{A}", "podman A"),
            (
                "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{A}.scope",
                "podman A",
            ),
            (
                "/machine.slice/machine-libpod_pod_{B}.slice/libpod-{A}.scope/container",
                "podman A",
            ),
            (
                "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{A}.scope/container",
                "podman A",
            ),
            (
                "/user.slice/user-1000.slice/user@1000.service/user.slice/user-libpod_pod_{B}.slice/libpod-{A}.scope/container",
                "podman A",
            ),
            (
                "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-conmon-{A}.scope",
                "host user@1000.service/libpod-conmon-{A}.scope",
            ),
            (
                "/user.slice/user-1000.slice/user@1000.service/user.slice/nerdctl-{A}.scope",
                "containerd A",
            ),
            // Kata: the sandbox within the pod's bounds, what is kept out of them, and with Docker.
            ("/kubepods/burstable/pod{UID}/kata_{A}", "pod=UID Burstable"),
            ("/kata_overhead/{A}", "kata A"),
            (
                "/kata_overhead/kubepods/burstable/pod{UID}/{A}",
                "pod=UID Burstable",
            ),
            (
                "/kata_overhead/kubepods-burstable-pod{UID_}.slice:cri-containerd:{A}",
                "pod=UID Burstable",
            ),
            ("/docker/kata_{A}", "kata A"),
            ("/kata_overhead", "host /kata_overhead"),
            // gVisor: the sandbox in the pod's own cgroup, or in that of the pause container.
            (
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UID_}.slice",
                "pod=UID Burstable",
            ),
            // Containers in containers: the outermost pays.
            ("/docker/{A}/docker/{B}", "docker A > docker B"),
            ("/docker/{A}/init", "docker A"),
            (
                "/docker/{A}/kubelet/kubepods/burstable/pod{UID}/{B}",
                "docker A > (unresolved) B pod=UID Burstable",
            ),
            (
                "/docker/{A}/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{UID_}.slice/cri-containerd-{B}.scope",
                "docker A > containerd B pod=UID Guaranteed",
            ),
            (
                "/kubepods/pod{UID}/{A}/docker/{B}/docker/{A}",
                "(unresolved) A pod=UID Guaranteed > docker B > docker A",
            ),
            // A tenant that makes cgroups below its own, to look like somebody else.
            (
                "/docker/{A}/kubepods/burstable/pod{STATIC}/crio-{B}.scope",
                "docker A > cri-o B pod=STATIC Burstable",
            ),
            // Seen from inside a cgroup namespace.
            (
                "/../../kubepods-burstable-pod{UID_}.slice/cri-containerd-{A}.scope",
                "containerd A pod=UID Burstable",
            ),
            ("/../{A}", "(unresolved) A"),
            ("/..", "root"),
            // Pods' own cgroups, and what is above them.
            ("/kubepods/burstable/pod{UID}", "pod=UID Burstable"),
            (
                "/kubepods.slice/kubepods-pod{UID_}.slice",
                "pod=UID Guaranteed",
            ),
            ("/kubepods", "host /kubepods"),
            ("/kubepods/burstable", "host /kubepods/burstable"),
            (
                "/kubepods.slice/kubepods-besteffort.slice",
                "host /kubepods.slice/kubepods-besteffort.slice",
            ),
            // The host.
            ("/", "root"),
            ("", "root"),
            ("/init.scope", "host init.scope"),
            ("/system.slice/ssh.service", "host ssh.service"),
            (
                "/system.slice/system-getty.slice/getty@tty1.service",
                "host getty@tty1.service",
            ),
            (
                "/user.slice/user-0.slice/session-4.scope",
                "host session-4.scope",
            ),
            // A user's manager: what it calls its units is the user's word.
            (
                "/user.slice/user-1000.slice/user@1000.service/app.slice/app-jupyter.service",
                "host user@1000.service/app-jupyter.service",
            ),
            (
                "/user.slice/user-1000.slice/user@1000.service/app.slice/sshd.service/a.scope",
                "host user@1000.service/sshd.service",
            ),
            (
                "/user.slice/user-1000.slice/user@1000.service/init.scope",
                "host user@1000.service/init.scope",
            ),
            (
                "/user.slice/user-1000.slice/user@1000.service/tmp",
                "host user@1000.service",
            ),
            // A service with cgroups of its own below.
            (
                "/system.slice/batch.service/sshd.service",
                "host batch.service",
            ),
            // Slurm, cgroup v2 and v1; several slurmd on a host; its own daemons.
            (
                "/system.slice/slurmstepd.scope/job_12/step_0/user/task_0",
                "host /system.slice/slurmstepd.scope/job_12",
            ),
            (
                "/system.slice/slurmstepd.scope/job_12/step_extern/slurm",
                "host /system.slice/slurmstepd.scope/job_12",
            ),
            (
                "/batch.slice/node7_slurmstepd.scope/job_12/step_batch/user/task_special",
                "host /batch.slice/node7_slurmstepd.scope/job_12",
            ),
            (
                "/system.slice/slurmstepd.scope/system",
                "host slurmstepd.scope",
            ),
            (
                "/system.slice/slurmstepd.scope/job_x",
                "host /system.slice/slurmstepd.scope/job_x",
            ),
            (
                "/slurm/uid_1000/job_12/step_0/task_1",
                "host /slurm/uid_1000/job_12",
            ),
            (
                "/slurm_node7/uid_1000/job_12",
                "host /slurm_node7/uid_1000/job_12",
            ),
            ("/slurm/uid_1000", "host /slurm/uid_1000"),
            ("/slurm/system", "host /slurm/system"),
            // Whatever is made in a job is the job's.
            (
                "/slurm/uid_1000/job_12/step_0/docker/{A}",
                "host /slurm/uid_1000/job_12",
            ),
            // A slurmd in a pod.
            (
                "/kubepods/pod{UID}/{A}/system.slice/slurmstepd.scope/job_12",
                "(unresolved) A pod=UID Guaranteed",
            ),
            // OpenPBS.
            (
                "/pbs_jobs.service/jobid/12.head/task",
                "host /pbs_jobs.service/jobid/12.head",
            ),
            (
                "/pbs_jobs.service/jobs/12.head",
                "host /pbs_jobs.service/jobs/12.head",
            ),
            ("/pbs_jobs.service", "host pbs_jobs.service"),
            // LXC, LXD and Incus, Proxmox: whole, whatever runs inside.
            (
                "/lxc.payload.web/system.slice/ssh.service",
                "host /lxc.payload.web",
            ),
            ("/lxc.payload.web/docker/{A}", "host /lxc.payload.web"),
            ("/lxc.payload/web/init.scope", "host /lxc.payload/web"),
            ("/lxc/101/ns/init.scope", "host /lxc/101"),
            ("/lxc.monitor.web", "host /lxc.monitor.web"),
            ("/lxc.payload.", "host /lxc.payload."),
            // systemd-nspawn and other machines.
            (
                "/machine.slice/systemd-nspawn@web.service/payload/system.slice/ssh.service",
                "host systemd-nspawn@web.service",
            ),
            (
                "/machine.slice/machine-web.scope/payload/docker/{A}",
                "host machine-web.scope",
            ),
            (
                "/machine.slice/machine-qemu\\x2d1\\x2dvm.scope/libvirt/emulator",
                "host machine-qemu\\x2d1\\x2dvm.scope",
            ),
            // What a user calls a machine or a job is his own, and named behind him.
            (
                "/user.slice/user-1000.slice/user@1000.service/machine.slice/machine-web.scope",
                "host user@1000.service/machine-web.scope",
            ),
            (
                "/user.slice/user-1000.slice/user@1000.service/machine.slice/systemd-nspawn@web.service",
                "host user@1000.service/systemd-nspawn@web.service",
            ),
            (
                "/system.slice/batch.service/machine.slice/machine-web.scope",
                "host batch.service",
            ),
            (
                "/user.slice/user-1000.slice/user@1000.service/slurmstepd.scope/job_12",
                "host /user.slice/user-1000.slice/user@1000.service/slurmstepd.scope/job_12",
            ),
            (
                "/user.slice/user-1000.slice/user@1000.service/slurm/uid_1000/job_12",
                "host user@1000.service",
            ),
            (
                "/user.slice/user-1000.slice/user@1000.service/pbs_jobs.service/jobs/12.head",
                "host /user.slice/user-1000.slice/user@1000.service/pbs_jobs.service/jobs/12.head",
            ),
            (
                "/user.slice/user-1000.slice/user@1000.service/lxc.payload.web/init.scope",
                "host /user.slice/user-1000.slice/user@1000.service/lxc.payload.web",
            ),
            (
                "/user.slice/user-1000.slice/user@1000.service/lxc/101",
                "host user@1000.service",
            ),
            ("/system.slice", "host /system.slice"),
            ("/docker", "host /docker"),
            ("/docker/buildkit", "host /docker/buildkit"),
            ("/mykubepods/pod{UID}", "host /mykubepods/pod{UID}"),
            (
                "/notkubepods-pod{UID_}.slice",
                "host /notkubepods-pod{UID_}.slice",
            ),
            ("/pod{UID}", "host /pod{UID}"),
            // Almost an id.
            ("/docker/{A}0", "host /docker/{A}0"),
            ("/docker/0123456789ab", "host /docker/0123456789ab"),
            ("/system.slice/docker-abc.scope", "host docker-abc.scope"),
            ("/docker-{A}.service", "host docker-{A}.service"),
            ("/docker-.scope", "host docker-.scope"),
            ("/crio-.slice:docker:", "host /crio-.slice:docker:"),
            ("/kubepods/pod", "host /kubepods/pod"),
            ("/kubepods/pod{UID} x", "host /kubepods/pod{UID} x"),
            ("/a\nb\u{7}", "host /a\\x0ab\\x07"),
        ];
        for (path, expected) in rows {
            assert_eq!(say(&parse(&fill(path))), fill(expected), "{path}");
        }
        let upper = format!("/docker/{}", A.to_uppercase());
        assert_eq!(say(&parse(&upper)), format!("host {upper}"));
    }

    #[test]
    fn whichever_hierarchy_names_a_container_wins() {
        let rows: [(&[(u32, &str)], &str); 10] = [
            (&[], "root"),
            // v1 only: the v2 line is the root.
            (
                &[(9, "/docker/{A}"), (4, "/docker/{A}"), (0, "/")],
                "docker A",
            ),
            // Hybrid, with the container in a named hierarchy alone.
            (
                &[(1, "/docker/{A}"), (0, "/system.slice/docker.service")],
                "docker A",
            ),
            // A path with the pod in it says more than one without.
            (
                &[(0, "/{A}"), (3, "/kubepods/pod{UID}/{A}")],
                "(unresolved) A pod=UID Guaranteed",
            ),
            (
                &[(3, "/kubepods/pod{UID}"), (1, "/system.slice/crio.service")],
                "pod=UID Guaranteed",
            ),
            (
                &[
                    (3, "/user"),
                    (1, "/user.slice/user-0.slice/session-1.scope"),
                    (0, "/"),
                ],
                "host session-1.scope",
            ),
            (&[(3, "/user"), (0, "/")], "host /user"),
            // Slurm on v1: systemd's own hierarchy knows of slurmd alone.
            (
                &[
                    (9, "/slurm/uid_1000/job_12/step_0"),
                    (1, "/system.slice/slurmd.service"),
                    (0, "/system.slice/slurmd.service"),
                ],
                "host /slurm/uid_1000/job_12",
            ),
            // Rootless Podman on a hybrid host: v2 alone has the container.
            (
                &[
                    (1, "/user.slice/user-1000.slice/session-1.scope"),
                    (
                        0,
                        "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{A}.scope",
                    ),
                ],
                "podman A",
            ),
            // Between equals, v2.
            (&[(5, "/docker/{B}"), (0, "/docker/{A}")], "docker A"),
        ];
        for (lines, expected) in rows {
            let lines: Vec<_> = lines.iter().map(|(h, p)| (*h, fill(p))).collect();
            let meaning = resolve(lines.iter().map(|(h, p)| (*h, p.as_str())));
            assert_eq!(say(&meaning), expected, "{lines:?}");
        }
    }

    #[test]
    fn host_paths_that_differ_behind_the_cut_are_two_units() {
        let path = format!("/{}", "ü".repeat(400));
        let unit_of = |path: &str| match parse(path) {
            CgroupMeaning::Host(unit) => unit,
            other => panic!("{other:?} in {path}"),
        };
        let unit = unit_of(&path);
        assert!((MAX_UNIT - 1..=MAX_UNIT).contains(&unit.as_str().len()));
        let (begin, _mark) = unit.as_str().split_once('~').unwrap();
        assert!(path.starts_with(begin));
        assert_ne!(unit, unit_of(&format!("{path}x")));
        assert_ne!(unit, unit_of(&format!("{path}y")));
        assert_eq!(unit, unit_of(&path), "the same every time");
        // Somebody's cgroup that is called so.
        assert_ne!(unit, unit_of(unit.as_str()));
    }

    /// Pieces that runtimes write and pieces that nobody writes, in any order.
    fn piece() -> impl Strategy<Value = String> {
        prop_oneof![
            Just(A.to_owned()),
            Just(B.to_owned()),
            Just(UID.to_owned()),
            Just(UID_.to_owned()),
            "[0-9a-f]{60,66}",
            "[a-z.:_-]{0,12}",
            "\\PC{0,8}",
            prop::sample::select(vec![
                "docker",
                "docker-",
                "crio-",
                "crio-conmon-",
                "libpod-",
                "libpod_parent",
                "cri-containerd-",
                "kata_",
                "kata_overhead",
                "lxc.payload.",
                "machine.slice/machine-",
                "slurmstepd.scope/job_1",
                "slurm/uid_1/job_1",
                "user@1000.service",
                "kubepods",
                "kubepods-",
                "burstable",
                "besteffort",
                "-pod",
                "pod",
                ".slice",
                ".slice:",
                ":",
                ".scope",
                ".service",
                "..",
                " (deleted)",
                "system",
                "/",
            ])
            .prop_map(str::to_owned),
        ]
    }

    fn check(container: &ContainerCgroup, path: &str) -> Result<(), TestCaseError> {
        prop_assert!(path.contains(container.id.as_str()));
        prop_assert_eq!(container.id.as_str().len(), ID_LEN);
        prop_assert!(path.starts_with(&*container.place));
        prop_assert!(container.place.contains(container.id.as_str()));
        if let Some(pod) = &container.pod {
            check_pod(pod, path)?;
        }
        container.inner.as_ref().map_or(Ok(()), |c| check(c, path))
    }

    fn check_pod(pod: &PodCgroup, path: &str) -> Result<(), TestCaseError> {
        prop_assert!((1..=MAX_POD_UID).contains(&pod.uid.as_str().len()));
        prop_assert!(
            pod.place
                .as_ref()
                .is_none_or(|place| path.starts_with(&**place))
        );
        prop_assert!(
            path.replace('_', "-")
                .contains(&pod.uid.as_str().replace('_', "-"))
        );
        Ok(())
    }

    #[test]
    fn a_place_is_the_path_down_to_what_names_it() {
        let rows = [
            ("/docker/{A}/init", "/docker/{A}", None),
            (
                "/kubepods/pod{UID}/{A}/docker/{B}",
                "/kubepods/pod{UID}/{A}",
                Some("/kubepods/pod{UID}"),
            ),
            (
                "/kubepods.slice/kubepods-pod{UID_}.slice/crio-{A}.scope/container (deleted)",
                "/kubepods.slice/kubepods-pod{UID_}.slice/crio-{A}.scope",
                Some("/kubepods.slice/kubepods-pod{UID_}.slice"),
            ),
            (
                "/x/kubepods-pod{UID_}.slice:cri-containerd:{A}",
                "/x/kubepods-pod{UID_}.slice:cri-containerd:{A}",
                Some("/x/kubepods-pod{UID_}.slice"),
            ),
        ];
        for (path, place, pod) in rows {
            let CgroupMeaning::Container(container) = parse(&fill(path)) else {
                panic!("no container in {path}");
            };
            assert_eq!(*container.place, *fill(place));
            let found = container.pod.and_then(|pod| pod.place);
            assert_eq!(found.as_deref(), pod.map(fill).as_deref(), "{path}");
        }
        let overhead = parse(&fill("/kata_overhead/kubepods/pod{UID}/{A}"));
        assert!(matches!(overhead, CgroupMeaning::Pod(pod) if pod.place.is_none()));
    }

    #[test]
    fn what_is_not_believed_is_the_hosts() {
        let rows = [
            (
                "/user.slice/user-1000.slice/user@1000.service/kubepods/pod{UID}/{A}",
                "user@1000.service",
                true,
            ),
            ("/evil/docker/{A}", "/evil/docker/{A}", false),
            ("/system.slice/docker-{A}.scope", "docker-{A}.scope", false),
            ("/lxc.payload.web/docker/{A}", "/lxc.payload.web", false),
            ("/user@x.service/{A}", "user@x.service", false),
            ("/", "/", false),
        ];
        for (path, unit, users) in rows {
            let path = fill(path);
            assert_eq!(as_host(&path).as_str(), fill(unit), "{path}");
            assert_eq!(is_users_own(&path), users, "{path}");
        }
    }

    proptest! {
        #[test]
        fn nothing_is_invented_and_everything_is_bounded(
            pieces in prop::collection::vec((piece(), any::<bool>()), 0..40),
        ) {
            let path: String = pieces
                .iter()
                .map(|(piece, slash)| format!("{}{piece}", if *slash { "/" } else { "" }))
                .collect();
            let host = as_host(&path);
            prop_assert!(!host.as_str().is_empty() && host.as_str().len() <= MAX_UNIT);
            match parse(&path) {
                CgroupMeaning::Container(container) => check(&container, &path)?,
                CgroupMeaning::Pod(pod) => check_pod(&pod, &path)?,
                CgroupMeaning::Host(unit) => {
                    prop_assert!(!unit.as_str().is_empty() && unit.as_str().len() <= MAX_UNIT);
                }
                CgroupMeaning::Root => {
                    prop_assert!(path.split('/').all(|c| matches!(
                        c.strip_suffix(" (deleted)").unwrap_or(c), "" | "." | ".."
                    )));
                }
            }
        }
    }
}
