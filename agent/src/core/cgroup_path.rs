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

use super::model::{ContainerId, HostUnit, PodUid, UNRESOLVED};

/// Digits of a container id.
const ID_LEN: usize = 64;
/// Longest pod uid that is taken, in bytes. UUIDs have 36, static pods' hashes 32; a static pod's
/// manifest may choose its own.
const MAX_POD_UID: usize = 128;
/// Longest host unit, in bytes: it becomes a label. A longer one is cut, and cgroups that differ
/// only behind the cut share an account.
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
    // The kernel marks the cgroup of a process that outlived it.
    let path = path.strip_suffix(" (deleted)").unwrap_or(path);
    // A reader in a cgroup namespace sees what lies outside of it below "..".
    let mut components = path.split('/').filter(|c| !matches!(*c, "" | "." | ".."));

    let mut place = Place::default();
    let mut unit = None;
    let mut any = false;
    while let Some(component) = components.next() {
        any = true;
        if let Some((id, runtime)) = place.enter(component) {
            return CgroupMeaning::Container(ContainerCgroup {
                id,
                runtime,
                pod: place.pod,
                inner: inner_of(components),
            });
        }
        if component.ends_with(".service") || component.ends_with(".scope") {
            unit = Some(component);
        }
    }
    match (place.pod, any) {
        (Some(pod), _) => CgroupMeaning::Pod(pod),
        (None, true) => CgroupMeaning::Host(host_unit(unit.unwrap_or(path))),
        (None, false) => CgroupMeaning::Root,
    }
}

/// Reads all lines of one process, each with its hierarchy's number. Whichever hierarchy names a
/// container wins; then a pod's own cgroup, a systemd unit, any other path, and the root last.
/// Between equals the lowest number wins, so that cgroup v2, which is 0, goes first.
#[must_use]
pub fn resolve<'a>(lines: impl IntoIterator<Item = (u32, &'a str)>) -> CgroupMeaning {
    lines
        .into_iter()
        .map(|(hierarchy, path)| {
            let meaning = parse(path);
            let rank = match &meaning {
                CgroupMeaning::Container(container) if container.pod.is_some() => 0,
                CgroupMeaning::Container(_) => 1,
                CgroupMeaning::Pod(_) => 2,
                CgroupMeaning::Host(unit) if !unit.as_str().starts_with('/') => 3,
                CgroupMeaning::Host(_) => 4,
                CgroupMeaning::Root => 5,
            };
            ((rank, hierarchy), meaning)
        })
        .min_by_key(|(key, _)| *key)
        .map_or(CgroupMeaning::Root, |(_, meaning)| meaning)
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
}

impl<'a> Place<'a> {
    /// Goes one component down. A container, if this component names one.
    fn enter(&mut self, component: &'a str) -> Option<(ContainerId, Runtime)> {
        let parent = self.parent.replace(component);
        self.depth += 1;

        // A runtime that was not told of the kubelet's systemd driver takes `slice:prefix:id` for a
        // name: the whole of it ends up as one component.
        if let Some((slice, rest)) = component.split_once(".slice:") {
            self.note_slice(slice);
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
            self.note_slice(slice);
            return None;
        }
        if let Some(found) = prefixed(component) {
            return Some(found);
        }
        if let Some(id) = container_id(component) {
            return match parent {
                // Podman's cgroupfs manager puts a pod's containers below the pod's own id.
                Some("libpod_parent") => None,
                Some("docker") => Some((id, Runtime::Docker)),
                // containerd's namespaces: CRI's, and that of nerdctl and ctr.
                Some("k8s.io" | "default") if self.depth == 2 => Some((id, Runtime::Containerd)),
                _ => Some((id, Runtime::Unresolved)),
            };
        }
        self.note_directory(component);
        None
    }

    /// The kubelet's cgroupfs driver: `kubepods`, `burstable` or `besteffort`, `pod<uid>`.
    fn note_directory(&mut self, component: &str) {
        match (self.kubepods, component) {
            (None, "kubepods") => self.kubepods = Some(None),
            (Some(None), "burstable") => self.kubepods = Some(Some(QosClass::Burstable)),
            (Some(None), "besteffort") => self.kubepods = Some(Some(QosClass::BestEffort)),
            (Some(qos), _) if self.pod.is_none() => {
                self.pod = component
                    .strip_prefix("pod")
                    .and_then(|uid| pod(uid.to_owned(), qos));
            }
            _ => {}
        }
    }

    /// The kubelet's systemd driver: each slice repeats the names of those above it, and a uid's
    /// dashes are underscores, since a dash stands for a level. `slice` comes without its suffix.
    fn note_slice(&mut self, slice: &str) {
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
            self.pod = pod(uid.replace('_', "-"), qos);
        }
    }
}

fn pod(uid: String, qos: Option<QosClass>) -> Option<PodCgroup> {
    let well_formed = (1..=MAX_POD_UID).contains(&uid.len())
        && uid
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'));
    well_formed.then(|| PodCgroup {
        uid: PodUid(uid.into()),
        qos: qos.unwrap_or(QosClass::Guaranteed),
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
fn inner_of<'a>(components: impl Iterator<Item = &'a str>) -> Option<Box<ContainerCgroup>> {
    let mut found = Vec::new();
    let mut place = Place::default();
    for component in components {
        if let Some((id, runtime)) = place.enter(component) {
            let pod = std::mem::take(&mut place).pod;
            found.push((id, runtime, pod));
            if found.len() == MAX_INNER {
                break;
            }
        }
    }
    found
        .into_iter()
        .rev()
        .fold(None, |inner, (id, runtime, pod)| {
            Some(Box::new(ContainerCgroup {
                id,
                runtime,
                pod,
                inner,
            }))
        })
}

/// A unit's name or a path, fit to be a label: bounded, without control characters.
fn host_unit(text: &str) -> HostUnit {
    let mut unit = String::with_capacity(text.len().min(MAX_UNIT));
    for c in text.chars() {
        let c = if c.is_control() {
            char::REPLACEMENT_CHARACTER
        } else {
            c
        };
        if unit.len() + c.len_utf8() > MAX_UNIT {
            break;
        }
        unit.push(c);
    }
    HostUnit(unit.into())
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
            (
                "/user.slice/user-1000.slice/user@1000.service/app.slice/app-jupyter.service",
                "host app-jupyter.service",
            ),
            (
                "/system.slice/slurmstepd.scope/job_12/step_0",
                "host slurmstepd.scope",
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
            ("/a\nb\u{7}", "host /a\u{fffd}b\u{fffd}"),
        ];
        for (path, expected) in rows {
            assert_eq!(say(&parse(&fill(path))), fill(expected), "{path}");
        }
        let upper = format!("/docker/{}", A.to_uppercase());
        assert_eq!(say(&parse(&upper)), format!("host {upper}"));
    }

    #[test]
    fn whichever_hierarchy_names_a_container_wins() {
        let rows: [(&[(u32, &str)], &str); 8] = [
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
    fn a_host_path_is_cut_on_a_character_boundary() {
        let path = format!("/{}", "ü".repeat(400));
        let CgroupMeaning::Host(unit) = parse(&path) else {
            panic!("no host unit in {path}");
        };
        assert_eq!(unit.as_str().len(), MAX_UNIT);
        assert!(path.starts_with(unit.as_str()));
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
        if let Some(pod) = &container.pod {
            check_pod(pod, path)?;
        }
        container.inner.as_ref().map_or(Ok(()), |c| check(c, path))
    }

    fn check_pod(pod: &PodCgroup, path: &str) -> Result<(), TestCaseError> {
        prop_assert!((1..=MAX_POD_UID).contains(&pod.uid.as_str().len()));
        prop_assert!(
            path.replace('_', "-")
                .contains(&pod.uid.as_str().replace('_', "-"))
        );
        Ok(())
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
