//! The agent's cgroup namespace, and what paths in it are on the host.
//!
//! In a cgroup namespace of its own, as a runtime gives it to an unprivileged container on cgroup v2, the
//! kernel shows every cgroup relative to the namespace's root: `/../../kubepods-….slice/….scope`. The
//! eBPF object shows whole paths. Taken as they are, the two would name two cgroups, of which one
//! would be refused as an impostor of the other.
//!
//! The kernel tells nobody the path of the namespace's root. So the agent looks for its own process in
//! the host's cgroup file systems, which must be mounted for that. It does so once: the root of a
//! namespace never changes.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// How the kernel's `proc_ns.h` numbers the first cgroup namespace (`PROC_CGROUP_INIT_INO`).
pub const INITIAL_CGROUP_NAMESPACE: &str = "cgroup:[4026531835]";
/// How many cgroups are looked into for the agent's own.
const MAX_CGROUPS: usize = 65_536;
/// Where systems mount cgroup file systems, below the host's root.
const MOUNT: &str = "sys/fs/cgroup";

/// Why paths cannot be turned into the host's.
#[derive(Debug, thiserror::Error)]
pub enum CgroupNamespaceError {
    /// A file of the agent's own process cannot be read.
    #[error("cannot read {path}: {source}")]
    Own {
        /// The file.
        path: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The agent is in a namespace of its own and cannot find out where.
    #[error(
        "the agent is in {namespace}, expected {INITIAL_CGROUP_NAMESPACE}, and its own process is in no \
         cgroup below {place}: the host's cgroup file system is not mounted there"
    )]
    NotFound {
        /// The namespace, as the kernel names it.
        namespace: String,
        /// Where the agent has looked.
        place: PathBuf,
    },
}

/// The namespace, with the path of its root in each hierarchy by the hierarchy's number. Without any, it
/// is the initial one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CgroupNamespace {
    roots: BTreeMap<u32, String>,
}

impl CgroupNamespace {
    /// The namespace of this process. `host_root` is where the host's root is mounted.
    ///
    /// # Errors
    /// If it is not the initial one, and the host's cgroup file systems are not mounted.
    pub fn find(host_root: &Path) -> Result<Self, CgroupNamespaceError> {
        // A kernel without such namespaces has the initial one only.
        const LINK: &str = "/proc/self/ns/cgroup";
        let namespace = match fs::read_link(LINK) {
            Ok(link) => link.to_string_lossy().into_owned(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => return Err(CgroupNamespaceError::Own { path: LINK, source }),
        };
        if namespace == INITIAL_CGROUP_NAMESPACE {
            return Ok(Self::default());
        }
        const OWN: &str = "/proc/self/cgroup";
        let own = fs::read_to_string(OWN)
            .map_err(|source| CgroupNamespaceError::Own { path: OWN, source })?;
        let mount = host_root.join(MOUNT);
        let pid = std::process::id().to_string();
        let mut roots = BTreeMap::new();
        for line in own.lines() {
            match root_of(line, &mount, &pid) {
                Root::At(hierarchy, path) => drop(roots.insert(hierarchy, path)),
                // A process below the root of this hierarchy cannot be told, and stays unread.
                Root::NotMounted => {}
                Root::Unknown => {
                    roots.clear();
                    break;
                }
            }
        }
        // One hierarchy less could make somebody's process the host's.
        if roots.is_empty() {
            return Err(CgroupNamespaceError::NotFound {
                namespace,
                place: mount,
            });
        }
        Ok(Self { roots })
    }

    /// One whose root is at this path of one hierarchy.
    #[cfg(test)]
    pub(super) fn at(hierarchy: u32, root: &str) -> Self {
        Self {
            roots: [(hierarchy, root.to_owned())].into(),
        }
    }

    /// Whether it is the initial one.
    #[must_use]
    pub fn is_initial(&self) -> bool {
        self.roots.is_empty()
    }

    /// Whether paths in a hierarchy can be completed. If not, the hierarchy is not mounted.
    pub(super) fn knows(&self, hierarchy: u32) -> bool {
        self.is_initial() || self.roots.contains_key(&hierarchy)
    }

    /// Where its root is, in the hierarchy with the lowest number.
    #[must_use]
    pub fn root(&self) -> Option<&str> {
        self.roots.values().next().map(String::as_str)
    }

    /// The path on the host. `None` if it is not known: the hierarchy has no mount, or the path climbs
    /// above the hierarchy's root.
    pub(super) fn on_host<'a>(&self, hierarchy: u32, path: &'a [u8]) -> Option<Cow<'a, [u8]>> {
        if self.is_initial() {
            return Some(Cow::Borrowed(path));
        }
        let mut host = self.roots.get(&hierarchy)?.as_bytes();
        let mut below = path;
        while let Some(rest) = below.strip_prefix(b"/..") {
            if !(rest.is_empty() || rest.starts_with(b"/")) {
                break;
            }
            let end = host.iter().rposition(|byte| *byte == b'/')?;
            host = &host[..end];
            below = rest;
        }
        // Of the namespace's own root the kernel shows a slash alone.
        let below = if below == b"/" { b"" } else { below };
        let whole = [host, below].concat();
        Some(if whole.is_empty() {
            Cow::Borrowed(b"/")
        } else {
            Cow::Owned(whole)
        })
    }
}

/// What is found out about the namespace's root in a hierarchy.
#[derive(Debug, PartialEq, Eq)]
enum Root {
    /// The hierarchy's number and the path on the host. The root of a hierarchy is the empty path.
    At(u32, String),
    /// The hierarchy has no file system below the mount.
    NotMounted,
    /// It has one, in which the agent's process is not.
    Unknown,
}

/// The namespace's root in the hierarchy of a line of the agent's own `cgroup` file.
fn root_of(line: &str, mount: &Path, pid: &str) -> Root {
    let mut fields = line.splitn(3, ':');
    let [Some(hierarchy), Some(controllers), Some(own)] = [(); 3].map(|()| fields.next()) else {
        return Root::Unknown;
    };
    let Ok(hierarchy) = hierarchy.parse() else {
        return Root::Unknown;
    };
    let is_v2 = |place: &Path| place.join("cgroup.controllers").is_file();
    let place = match controllers {
        // cgroup v2, alone or beside the hierarchies of v1.
        "" if is_v2(mount) => mount.to_owned(),
        "" => mount.join("unified"),
        _ => mount.join(controllers.strip_prefix("name=").unwrap_or(controllers)),
    };
    if !place.join("cgroup.procs").is_file() {
        return Root::NotMounted;
    }
    // A runtime may have mounted the container's own cgroup here. The host's is a hierarchy's root, which
    // alone has no events (v2), and alone names the program that is run when a cgroup is empty (v1).
    let is_root = match controllers {
        "" => !place.join("cgroup.events").exists(),
        _ => place.join("release_agent").exists(),
    };
    if !is_root {
        return Root::Unknown;
    }
    let found = cgroup_of(pid, &place);
    let root = found
        .as_deref()
        .and_then(|found| found.strip_suffix(own.trim_end_matches('/')));
    root.map_or(Root::Unknown, |root| Root::At(hierarchy, root.to_owned()))
}

/// The path of the cgroup that a process is in, below the mount of a hierarchy.
fn cgroup_of(pid: &str, mount: &Path) -> Option<String> {
    let mut left = MAX_CGROUPS;
    let mut folders = vec![mount.to_owned()];
    while let Some(folder) = folders.pop() {
        left = left.checked_sub(1)?;
        // One that is gone by now, or has threads alone, is not the one.
        let processes = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
        if processes.lines().any(|process| process == pid) {
            let below = folder.strip_prefix(mount).ok()?.to_str()?;
            return Some(match below {
                "" => String::new(),
                below => format!("/{below}"),
            });
        }
        let Ok(entries) = fs::read_dir(&folder) else {
            continue;
        };
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(entry.path());
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn namespace(root: &str) -> CgroupNamespace {
        CgroupNamespace::at(0, root)
    }

    #[test]
    fn a_path_in_the_namespace_becomes_the_hosts() {
        let pods = "/kubepods.slice/kubepods-podA.slice/cri-containerd-1.scope";
        for (root, path, expected) in [
            (pods, "/", Some(pods)),
            (
                pods,
                "/child",
                Some("/kubepods.slice/kubepods-podA.slice/cri-containerd-1.scope/child"),
            ),
            (
                pods,
                "/../../kubepods-podB.slice/cri-containerd-2.scope",
                Some("/kubepods.slice/kubepods-podB.slice/cri-containerd-2.scope"),
            ),
            (pods, "/../../../init.scope", Some("/init.scope")),
            (pods, "/../../..", Some("/")),
            (pods, "/..", Some("/kubepods.slice/kubepods-podA.slice")),
            // A cgroup may be called so.
            (
                pods,
                "/..a/b",
                Some("/kubepods.slice/kubepods-podA.slice/cri-containerd-1.scope/..a/b"),
            ),
            // Somebody has moved the namespace's root meanwhile, or the kernel is wrong.
            (pods, "/../../../../x", None),
            ("", "/a", Some("/a")),
            ("", "/", Some("/")),
        ] {
            let found = namespace(root).on_host(0, path.as_bytes());
            assert_eq!(
                found.as_deref(),
                expected.map(str::as_bytes),
                "{root} {path}"
            );
        }
        assert_eq!(namespace(pods).on_host(4, b"/a"), None, "no such mount");
        let initial = CgroupNamespace::default();
        assert_eq!(initial.on_host(4, b"/../a").as_deref(), Some(&b"/../a"[..]));
    }

    #[test]
    fn the_root_is_where_the_process_is() {
        let folder = tempfile::tempdir().unwrap();
        let mount = folder.path().join("unified");
        let own = mount.join("a/b/c");
        for (folder, processes) in [
            (mount.clone(), "1\n2\n"),
            (mount.join("a"), ""),
            (mount.join("a/b"), "70\n"),
            (own, "6\n7\n8\n"),
            (mount.join("z"), "77\n"),
        ] {
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("cgroup.procs"), processes).unwrap();
        }
        let root = |line: &str, pid: &str| root_of(line, folder.path(), pid);
        let at = |path: &str| Root::At(0, path.to_owned());
        assert_eq!(root("0::/", "7"), at("/a/b/c"));
        // The process was moved below the namespace's root.
        assert_eq!(root("0::/c", "7"), at("/a/b"));
        assert_eq!(root("0::/", "2"), at(""));
        assert_eq!(root("0::/", "9"), Root::Unknown, "it is in no cgroup");
        assert_eq!(root("3:memory:/", "7"), Root::NotMounted);
        assert_eq!(root("nonsense", "7"), Root::Unknown);
    }

    #[test]
    fn cgroup_v2_is_not_taken_for_the_folder_with_the_hierarchies_of_v1() {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| folder.path().join(name);
        for (name, processes) in [
            ("unified", "1\n"),
            ("unified/a", "7\n"),
            ("memory/b", "7\n"),
        ] {
            fs::create_dir_all(place(name)).unwrap();
            fs::write(place(name).join("cgroup.procs"), processes).unwrap();
        }
        fs::write(place("memory/cgroup.procs"), "").unwrap();
        fs::write(place("memory/release_agent"), "").unwrap();
        let root = |line: &str| root_of(line, folder.path(), "7");
        assert_eq!(root("0::/"), Root::At(0, "/a".to_owned()));
        assert_eq!(root("3:memory:/"), Root::At(3, "/b".to_owned()));
        // On a host with v2 alone its file system is the folder itself.
        fs::remove_dir_all(place("memory")).unwrap();
        for file in ["cgroup.controllers", "cgroup.procs"] {
            fs::write(place(file), "").unwrap();
        }
        assert_eq!(root("0::/"), Root::At(0, "/unified/a".to_owned()));
    }

    #[test]
    fn a_mount_of_the_containers_own_cgroup_is_not_taken_for_the_hosts() {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| folder.path().join(name);
        // As a runtime mounts it in a cgroup namespace of v2: it begins at the container's cgroup.
        for file in ["cgroup.controllers", "cgroup.events"] {
            fs::write(place(file), "").unwrap();
        }
        fs::write(place("cgroup.procs"), "7\n").unwrap();
        assert_eq!(root_of("0::/", folder.path(), "7"), Root::Unknown);
        // The same of a hierarchy of v1, whose root alone has this file.
        fs::create_dir(place("memory")).unwrap();
        fs::write(place("memory/cgroup.procs"), "7\n").unwrap();
        let memory = || root_of("3:memory:/", folder.path(), "7");
        assert_eq!(memory(), Root::Unknown);
        fs::write(place("memory/release_agent"), "").unwrap();
        assert_eq!(memory(), Root::At(3, String::new()));
    }

    #[test]
    fn this_test_runs_in_a_namespace_that_is_understood() {
        let found = CgroupNamespace::find(Path::new("/"));
        let link = fs::read_link("/proc/self/ns/cgroup").unwrap();
        let is_initial = link.to_str() == Some(INITIAL_CGROUP_NAMESPACE);
        match found {
            Ok(found) => assert_eq!(found.is_initial(), is_initial),
            Err(error) => assert!(!is_initial, "{error}"),
        }
    }
}
