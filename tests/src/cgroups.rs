//! Containers' cgroups without a runtime behind them: for many, and for moments that no runtime can
//! be asked to hit.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use anyhow::{Context, Result};

/// Where the unified hierarchy of cgroups is mounted, or the one that runtimes use on v1.
///
/// # Errors
/// If there is none.
pub fn hierarchy() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let find = |kind: &str, option: &str| {
        mounts.lines().find_map(|line| {
            let (place, kinds) = line.split_once(" - ")?;
            let mut kinds = kinds.split(' ');
            let is_it = kinds.next() == Some(kind)
                && (option.is_empty() || kinds.nth(1)?.split(',').any(|found| found == option));
            is_it.then(|| place.split(' ').nth(4).map(PathBuf::from))?
        })
    };
    find("cgroup2", "")
        .or_else(|| find("cgroup", "memory"))
        .context("no hierarchy of cgroups is mounted")
}

/// 64 digits that look like what a runtime draws.
#[must_use]
pub fn container_id(number: u64) -> String {
    let mut id = String::new();
    for part in 1..=4_u64 {
        let digits = (number * 4 + part).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        write!(id, "{digits:016x}").expect("a String takes everything");
    }
    id
}

/// Containers of pods, as the kubelet lays them out, below a cgroup of this process's own. Removed
/// on drop: all processes in them must have ended by then.
#[derive(Debug)]
pub struct Containers {
    class: PathBuf,
    /// Made here, the outermost first.
    made: Vec<PathBuf>,
    count: u64,
}

/// One of them.
#[derive(Clone, Debug)]
pub struct Container {
    /// Its id.
    pub id: String,
    /// Its pod's.
    pub pod_uid: String,
    path: PathBuf,
}

impl Containers {
    /// The cgroups above them.
    ///
    /// # Errors
    /// If they cannot be made.
    pub fn below(name: &str) -> Result<Self> {
        let root = hierarchy()?.join(format!("gpuacct-{name}-{}", std::process::id()));
        let pods = root.join("kubepods");
        let mut containers = Self {
            class: pods.join("burstable"),
            made: Vec::new(),
            count: 0,
        };
        let class = containers.class.clone();
        for path in [&root, &pods, &class] {
            containers.make(path)?;
        }
        Ok(containers)
    }

    /// One more, in a pod of its own.
    ///
    /// # Errors
    /// If its cgroup cannot be made.
    pub fn add(&mut self) -> Result<Container> {
        let number = self.count;
        self.count += 1;
        let pod_uid = format!("6f1c8a52-3c1e-4c55-9a8e-{number:012x}");
        let pod = self.class.join(format!("pod{pod_uid}"));
        let id = container_id(number);
        let path = pod.join(&id);
        self.make(&pod)?;
        self.make(&path)?;
        Ok(Container { id, pod_uid, path })
    }

    fn make(&mut self, path: &Path) -> Result<()> {
        fs::create_dir(path).with_context(|| format!("cannot make {}", path.display()))?;
        self.made.push(path.to_owned());
        Ok(())
    }
}

impl Drop for Containers {
    fn drop(&mut self) {
        for path in self.made.iter().rev() {
            if let Err(error) = fs::remove_dir(path) {
                eprintln!("cannot remove {}: {error}", path.display());
            }
        }
    }
}

impl Container {
    /// Starts a program in it as a runtime does: a child that is moved into the cgroup and then
    /// executes.
    ///
    /// # Errors
    /// If the cgroup takes nobody, or the program cannot be started.
    pub fn spawn(&self, command: &mut Command) -> Result<Child> {
        Self::spawn_at(&self.path, command)
    }

    /// The same beside it, in its pod's own cgroup.
    ///
    /// # Errors
    /// The cgroup cannot be opened, or the process cannot be started in it.
    pub fn spawn_beside(&self, command: &mut Command) -> Result<Child> {
        let pod = self.path.parent().context("it is in no pod")?;
        Self::spawn_at(pod, command)
    }

    /// The same in any cgroup.
    ///
    /// # Errors
    /// The cgroup cannot be opened, or the process cannot be started in it.
    pub fn spawn_at(cgroup: &Path, command: &mut Command) -> Result<Child> {
        let procs = cgroup.join("cgroup.procs");
        let procs = File::options()
            .write(true)
            .open(&procs)
            .with_context(|| format!("cannot open {}", procs.display()))?;
        let enter = move || {
            // Zero is whoever writes it.
            // SAFETY: one byte is read, of a constant; the descriptor is the child's copy.
            let written = unsafe { libc::write(procs.as_raw_fd(), c"0".as_ptr().cast(), 1) };
            match written {
                1 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        };
        // SAFETY: it makes one system call, and allocates nothing.
        let spawned = unsafe { command.pre_exec(enter) }.spawn();
        spawned.context("cannot start a process in a container")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn container_ids_are_distinct_and_look_like_some() {
        let ids: BTreeSet<String> = (0..512).map(container_id).collect();
        assert_eq!(ids.len(), 512);
        for id in ids {
            let path = format!("/gpuacct-bench-1/kubepods/burstable/podx/{id}");
            let meaning = gpuacct::core::cgroup_path::parse(&path);
            let gpuacct::core::cgroup_path::CgroupMeaning::Container(container) = meaning else {
                panic!("{path} is {meaning:?}");
            };
            assert_eq!(container.id.as_str(), id);
        }
    }
}
