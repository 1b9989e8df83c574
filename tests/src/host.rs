//! The host of a node of Kubernetes: a containerd in namespaces of its own, with folders of the test's
//! where a kubelet and its pods would change the machine's.
//!
//! A kubelet takes the machine for its own: it keeps state in fixed places, deletes the logs of pods
//! that it does not know, ends processes in their cgroups and sets the kernel's tunables. A pod that
//! mounts folders of its host has them made where they are missing. So `/var` and `/run` are folders of
//! the test's here, the tunables are files of the test's, and pods run below a cgroup of its own. The
//! network has a loopback interface only, which keeps fixed ports apart from everybody else's; it has
//! [`ADDRESS`] besides its usual one, since a node's must not be a loopback's.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};

use crate::containerd::{self, Containerd, Mask, Surroundings};
use crate::docker::program_path;

/// The address of every such host, in a network that nothing else is in. RFC 5737 keeps it for examples.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// What a kubelet wants the kernel's tunables to be, and would make them.
const TUNABLES: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// Whether this machine can have one; if not, why.
///
/// # Errors
/// If a program or the rights are missing.
pub fn available() -> Result<()> {
    for needed in ["unshare", "nsenter", "busybox"] {
        program_path(needed)?;
    }
    containerd::available()
}

/// Such a host. Its containerd goes with it, and all pods.
#[derive(Debug)]
pub struct Host {
    containerd: Containerd,
    root: PathBuf,
    cgroup: String,
}

impl Host {
    /// Starts one in a folder. Pods may have a network of their own if the folder of plugins for that
    /// is given.
    ///
    /// # Errors
    /// If its containerd does not come up.
    pub fn start(root: &Path, plugins: Option<&Path>) -> Result<Self> {
        static HOSTS: AtomicU32 = AtomicU32::new(0);
        ensure!(
            !root.starts_with("/var") && !root.starts_with("/run"),
            "{} would be masked",
            root.display()
        );
        let host = |name: &str| root.join(name);
        for name in ["var/lib", "var/log", "var/snap", "run", "tunables"] {
            let folder = host(name);
            fs::create_dir_all(&folder)
                .with_context(|| format!("cannot make {}", folder.display()))?;
        }
        std::os::unix::fs::symlink("/run", host("var/run")).context("cannot make a link")?;
        let mut masks = Vec::from(["var", "run"].map(|name| Mask {
            own: host(name),
            over: Path::new("/").join(name),
        }));
        for (name, value) in TUNABLES {
            let own = host("tunables").join(name.replace('/', "."));
            fs::write(&own, value).with_context(|| format!("cannot write {}", own.display()))?;
            let over = Path::new("/proc/sys").join(name);
            masks.push(Mask { own, over });
        }
        let surroundings = Surroundings {
            masks,
            address: ADDRESS,
            run: host("run"),
            plugins: plugins.map(Path::to_owned),
        };
        let mut containerd = Containerd::start_in(surroundings, host("c"))?;
        let number = HOSTS.fetch_add(1, Ordering::Relaxed);
        let cgroup = format!("gpuacct-host-{}-{number}", std::process::id());
        containerd.make_cgroup(&cgroup)?;
        Ok(Self {
            containerd,
            root: root.to_owned(),
            cgroup,
        })
    }

    /// What its pods run on.
    #[must_use]
    pub const fn containerd(&self) -> &Containerd {
        &self.containerd
    }

    /// Where a path of this host is on the machine, if it is below `/var` or `/run`.
    #[must_use]
    pub fn outside(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// The cgroup below which its pods are to run.
    #[must_use]
    pub fn cgroup(&self) -> &str {
        &self.cgroup
    }

    /// How to start a program on this host.
    ///
    /// # Errors
    /// If its containerd does not run.
    pub fn enter(&self, program: &Path) -> Result<Command> {
        self.containerd.enter(program)
    }

    /// How to start a program of the machine's that is to reach what listens on this host.
    ///
    /// # Errors
    /// If its containerd does not run.
    pub fn join_network(&self, program: &Path) -> Result<Command> {
        let mut command = Command::new(program_path("nsenter")?);
        command
            .arg(format!("--net=/proc/{}/ns/net", self.containerd.pid()?))
            .arg("--")
            .arg(program);
        Ok(command)
    }
}
