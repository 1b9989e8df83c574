//! Real containerds with their CRI plugin, started and stopped by the tests.
//!
//! Each has its own data and sockets below one folder and takes everything with it when it is
//! dropped: pods, shims, mounts, the cgroups that it made. Pods are on the host's network, so no
//! CNI plugin is needed, unless a containerd is started with [`Surroundings`] of its own that have
//! some. Pods are run through the runtime interface, by a client of the tests' own.

mod image;

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};

use crate::daemon::Daemon;
use crate::docker::{Cgroups, program_path, search_path, unmount_below};
use crate::proto::cri::runtime_service_client::RuntimeServiceClient;
use crate::proto::cri::{
    ContainerConfig, ContainerMetadata, CreateContainerRequest, ImageSpec, LinuxContainerConfig,
    LinuxContainerSecurityContext, LinuxPodSandboxConfig, LinuxSandboxSecurityContext,
    ListPodSandboxRequest, Mount, NamespaceMode, NamespaceOption, PodSandboxConfig,
    PodSandboxMetadata, RemoveContainerRequest, RemovePodSandboxRequest, RunPodSandboxRequest,
    StartContainerRequest, StopPodSandboxRequest, VersionRequest,
};
use crate::python::run;

/// The image that every container is made from.
pub const IMAGE: &str = "docker.io/gpuacct/busybox:1";
const PAUSE: &str = "registry.k8s.io/pause:3.6";
/// The addresses of pods with a network of their own. RFC 5737 keeps them for examples.
const POD_ADDRESSES: &str = "198.51.100.0/24";
/// How long any call may take. Only ever waited for when something is broken.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longest path of a root: a Unix socket's may have 107 bytes.
const MAX_ROOT: usize = 60;

/// Whether this machine can run a containerd of its own; if not, why.
///
/// # Errors
/// If a program is missing, or the rights are.
pub fn available() -> Result<()> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "needs root to start containerd"
    );
    for program in ["containerd", "ctr", "runc", "busybox", "tar", "sha256sum"] {
        program_path(program)?;
    }
    Ok(())
}

/// A pod.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Its sandbox's id.
    pub sandbox: String,
    config: PodSandboxConfig,
}

/// Something of the test's that a daemon finds in place of the machine's: a folder for a folder, a
/// file for a file.
#[derive(Clone, Debug)]
pub struct Mask {
    /// What it finds.
    pub own: PathBuf,
    /// Where it looks.
    pub over: PathBuf,
}

/// What a containerd has for its own in place of the machine's: what it finds in some places, and a
/// network that has nothing but a loopback interface. Its containers are in them, too.
#[derive(Clone, Debug)]
pub(crate) struct Surroundings {
    /// What it finds.
    pub(crate) masks: Vec<Mask>,
    /// The address that the loopback interface has besides its usual one.
    pub(crate) address: Ipv4Addr,
    /// The folder that it takes for `/run`, where its socket and its state are as on a node.
    pub(crate) run: PathBuf,
    /// The folder of the plugins that give pods a network of their own, if any may have one.
    pub(crate) plugins: Option<PathBuf>,
}

/// A containerd.
#[derive(Debug)]
pub struct Containerd {
    root: PathBuf,
    /// The tree that its programs are in; the machine's own if none.
    programs: Option<PathBuf>,
    surroundings: Option<Surroundings>,
    daemon: Option<Daemon>,
    runtime: Runtime,
    cgroups: Cgroups,
    paused: bool,
}

impl Containerd {
    /// Starts one and waits until its CRI answers. The images are there then.
    ///
    /// # Errors
    /// If it does not come up; the message has the end of its log.
    pub fn start(root: impl Into<PathBuf>) -> Result<Self> {
        Self::start_from(None, root)
    }

    /// The same in surroundings of its own: namespaces for mounts and for the network.
    ///
    /// # Errors
    /// If it does not come up; the message has the end of its log.
    pub(crate) fn start_in(surroundings: Surroundings, root: impl Into<PathBuf>) -> Result<Self> {
        Self::start_with(None, Some(surroundings), root.into())
    }

    /// The same with the programs of a tree, as [`crate::docker::newer`] names one.
    ///
    /// # Errors
    /// If it does not come up; the message has the end of its log.
    pub fn start_from(programs: Option<&Path>, root: impl Into<PathBuf>) -> Result<Self> {
        Self::start_with(programs, None, root.into())
    }

    fn start_with(
        programs: Option<&Path>,
        surroundings: Option<Surroundings>,
        root: PathBuf,
    ) -> Result<Self> {
        let length = root.as_os_str().len();
        ensure!(length <= MAX_ROOT, "{}: {length} bytes", root.display());
        let networks = root.join("cni");
        fs::create_dir_all(&networks).with_context(|| format!("cannot make {}", root.display()))?;
        let plugins = surroundings.as_ref().and_then(|own| own.plugins.clone());
        if plugins.is_some() {
            fs::write(networks.join("pods.conflist"), pod_network().to_string())
                .context("cannot write the pods' network")?;
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot make a runtime")?;
        let mut containerd = Self {
            root,
            programs: programs.map(Path::to_owned),
            surroundings,
            daemon: None,
            runtime,
            cgroups: Cgroups::noticed()?,
            paused: false,
        };
        let (socket, state) = (containerd.socket(), containerd.state());
        let plugins = plugins.as_ref().unwrap_or(&networks);
        // A negative oom_score_adj, which CRI gives a sandbox, takes a capability that the root of
        // a container may lack.
        let config = format!(
            r#"version = 2
root = "{}/data"
state = "{}"
[grpc]
  address = "{}"
[plugins."io.containerd.grpc.v1.cri"]
  restrict_oom_score_adj = true
  disable_apparmor = true
  sandbox_image = "{PAUSE}"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{}"
    conf_dir = "{}"
"#,
            containerd.root.display(),
            state.display(),
            socket.display(),
            plugins.display(),
            networks.display(),
        );
        fs::write(containerd.root.join("containerd.toml"), config)
            .context("cannot write the settings")?;
        fs::create_dir_all(state).context("cannot make a folder for the state")?;
        containerd.start_again()?;
        for (image, command) in [(PAUSE, "1000000000"), (IMAGE, "3600")] {
            containerd.import(image, command)?;
        }
        Ok(containerd)
    }

    /// Where it listens.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        match &self.surroundings {
            // Where a containerd of a node has it.
            Some(own) => own.run.join("containerd/containerd.sock"),
            None => self.root.join("c.sock"),
        }
    }

    /// Starts it after it was stopped, and waits until its CRI answers.
    ///
    /// # Errors
    /// If it runs already or does not come up.
    pub fn start_again(&mut self) -> Result<()> {
        ensure!(self.daemon.is_none(), "containerd runs already");
        let program = match &self.programs {
            Some(tree) => tree.join("usr/bin/containerd"),
            None => program_path("containerd")?,
        };
        let mut command = match &self.surroundings {
            Some(own) => surrounded(own, &program)?,
            None => Command::new(program),
        };
        command
            .env("PATH", search_path(self.programs.as_deref()))
            .arg("--config")
            .arg(self.root.join("containerd.toml"));
        let log = self.root.join("containerd.log");
        let mut daemon = Daemon::start("containerd", &mut command, &log)?;
        daemon.wait_until_up(|| {
            let version = self.call(async |mut client| {
                client.version(VersionRequest::default()).await?;
                Ok(())
            });
            version.is_ok()
        })?;
        self.daemon = Some(daemon);
        Ok(())
    }

    /// Its process.
    ///
    /// # Errors
    /// If it does not run.
    pub fn pid(&self) -> Result<u32> {
        let daemon = self.daemon.as_ref().context("containerd does not run")?;
        Ok(daemon.pid())
    }

    /// Makes a cgroup of that name in every hierarchy, below which somebody is going to run pods.
    /// What is below it goes with this.
    pub(crate) fn make_cgroup(&mut self, name: &str) -> Result<()> {
        self.cgroups.make(name)
    }

    /// Ends it. Pods go on without it.
    ///
    /// # Errors
    /// If it does not run or does not end.
    pub fn stop(&mut self) -> Result<()> {
        if self.paused {
            self.resume()?;
        }
        let mut daemon = self.daemon.take().context("containerd does not run")?;
        daemon.stop()?;
        Ok(())
    }

    /// Freezes it: it accepts connections and answers none.
    ///
    /// # Errors
    /// If it does not run.
    pub fn pause(&mut self) -> Result<()> {
        self.signal(Signal::STOP)?;
        self.paused = true;
        Ok(())
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// If it does not run.
    pub fn resume(&mut self) -> Result<()> {
        self.signal(Signal::CONT)?;
        self.paused = false;
        Ok(())
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let daemon = self.daemon.as_ref().context("containerd does not run")?;
        let pid = daemon.pid().try_into().ok().and_then(Pid::from_raw);
        kill_process(pid.context("no pid")?, signal).context("cannot signal containerd")
    }

    /// Runs a pod's sandbox as the kubelet does, with the pod's own labels, in the cgroup
    /// `/kubepods/burstable/pod<uid>`.
    ///
    /// # Errors
    /// If containerd does not run it.
    pub fn run_pod(
        &mut self,
        namespace: &str,
        name: &str,
        uid: &str,
        labels: &[(&str, &str)],
    ) -> Result<Pod> {
        let own = [
            ("io.kubernetes.pod.name", name),
            ("io.kubernetes.pod.namespace", namespace),
            ("io.kubernetes.pod.uid", uid),
        ];
        let parent = format!("/kubepods/burstable/pod{uid}");
        let _making = self.cgroups.expect(Some(&parent))?;
        let config = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.to_owned(),
                uid: uid.to_owned(),
                namespace: namespace.to_owned(),
                attempt: 0,
            }),
            log_directory: self.logs(namespace, name, uid).display().to_string(),
            labels: own
                .iter()
                .chain(labels)
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: parent,
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(host_network()),
                }),
            }),
            ..PodSandboxConfig::default()
        };
        let request = RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: String::new(),
        };
        let sandbox =
            self.call(async |mut client| Ok(client.run_pod_sandbox(request).await?.into_inner()))?;
        Ok(Pod {
            sandbox: sandbox.pod_sandbox_id,
            config,
        })
    }

    /// Where the kubelet would have the logs of a pod.
    #[must_use]
    pub fn logs(&self, namespace: &str, name: &str, uid: &str) -> PathBuf {
        let pod = format!("{namespace}_{name}_{uid}");
        self.root.join("logs").join(pod)
    }

    /// Where it keeps the bundles of running containers.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        match &self.surroundings {
            Some(own) => own.run.join("containerd"),
            None => self.root.join("state"),
        }
    }

    /// Moves its socket away from the default path. It keeps running, and so do its pods. The tests
    /// still reach it.
    ///
    /// # Errors
    /// If it is not there.
    pub fn hide(&self) -> Result<()> {
        fs::rename(self.socket(), self.hidden()).context("cannot move containerd's socket")
    }

    /// Puts its socket back.
    ///
    /// # Errors
    /// If it was not taken away.
    pub fn show(&self) -> Result<()> {
        fs::rename(self.hidden(), self.socket()).context("cannot move containerd's socket")
    }

    fn hidden(&self) -> PathBuf {
        self.root.join("h.sock")
    }

    /// Starts a container in a pod, as the kubelet does; it sleeps. Its id.
    ///
    /// # Errors
    /// If containerd does not start it.
    pub fn run_container(&self, pod: &Pod, name: &str) -> Result<String> {
        self.run_work(pod, name, &[], &[])
    }

    /// The same with a command, and with files of the host's: outside, inside.
    ///
    /// # Errors
    /// If containerd does not start it.
    pub fn run_work(
        &self,
        pod: &Pod,
        name: &str,
        command: &[String],
        mounts: &[(PathBuf, PathBuf)],
    ) -> Result<String> {
        // The kubelet makes the folder of a container's logs.
        let logs = Path::new(&pod.config.log_directory).join(name);
        fs::create_dir_all(&logs).with_context(|| format!("cannot make {}", logs.display()))?;
        let mounts = mounts.iter().map(|(outside, inside)| Mount {
            container_path: inside.display().to_string(),
            host_path: outside.display().to_string(),
            readonly: false,
        });
        let mut labels = pod.config.labels.clone();
        // The pod's own labels are on its sandbox only.
        labels.retain(|key, _| key.starts_with("io.kubernetes."));
        labels.insert("io.kubernetes.container.name".to_owned(), name.to_owned());
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata {
                name: name.to_owned(),
                attempt: 0,
            }),
            image: Some(ImageSpec {
                image: IMAGE.to_owned(),
                ..ImageSpec::default()
            }),
            labels,
            command: command.to_vec(),
            mounts: mounts.collect(),
            log_path: format!("{name}/0.log"),
            linux: Some(LinuxContainerConfig {
                security_context: Some(LinuxContainerSecurityContext {
                    namespace_options: Some(host_network()),
                }),
            }),
            ..ContainerConfig::default()
        };
        let create = CreateContainerRequest {
            pod_sandbox_id: pod.sandbox.clone(),
            config: Some(config),
            sandbox_config: Some(pod.config.clone()),
        };
        let _held = Cgroups::hold()?;
        self.call(async |mut client| {
            let container_id = client
                .create_container(create)
                .await?
                .into_inner()
                .container_id;
            let start = StartContainerRequest {
                container_id: container_id.clone(),
            };
            client.start_container(start).await?;
            Ok(container_id)
        })
    }

    /// Ends a container and removes it.
    ///
    /// # Errors
    /// If containerd does not do it.
    pub fn remove_container(&self, id: &str) -> Result<()> {
        let container_id = id.to_owned();
        self.call(async |mut client| {
            client
                .remove_container(RemoveContainerRequest { container_id })
                .await?;
            Ok(())
        })
    }

    /// Ends a pod with its containers and removes it.
    ///
    /// # Errors
    /// If containerd does not do it.
    pub fn remove_pod(&self, sandbox: &str) -> Result<()> {
        let id = sandbox.to_owned();
        self.call(async |mut client| {
            client
                .stop_pod_sandbox(StopPodSandboxRequest {
                    pod_sandbox_id: id.clone(),
                })
                .await?;
            client
                .remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: id })
                .await?;
            Ok(())
        })
    }

    /// One conversation over a connection of its own, bounded in time. Not to be called from within
    /// a runtime: a test keeps the containerd on a thread that has none.
    fn call<T>(
        &self,
        ask: impl AsyncFnOnce(RuntimeServiceClient<Channel>) -> Result<T>,
    ) -> Result<T> {
        let hidden = self.hidden();
        let socket = if hidden.exists() {
            hidden
        } else {
            self.socket()
        };
        let address = format!("unix://{}", socket.display());
        let talk = async {
            let channel = Endpoint::from_shared(address)?.connect().await?;
            ask(RuntimeServiceClient::new(channel)).await
        };
        self.runtime
            .block_on(async { tokio::time::timeout(PATIENCE, talk).await })
            .context("containerd does not answer")?
    }

    /// Makes an image of busybox under all its names, which sleeps for so many seconds.
    fn import(&self, name: &str, seconds: &str) -> Result<()> {
        let archive = image::archive(&self.root, name, seconds)?;
        self.ctr(&["images", "import", &archive.display().to_string()])
    }

    /// Has it take in an image that is a folder in OCI's layout, under this name without a tag. Its
    /// tag is the one that the folder names.
    ///
    /// # Errors
    /// If containerd does not take it.
    pub fn import_layout(&self, folder: &Path, name: &str) -> Result<()> {
        let archive = self.root.join("layout.tar");
        fs::write(&archive, image::tar(folder)?).context("cannot write an archive")?;
        let archive = archive.display().to_string();
        self.ctr(&["images", "import", "--base-name", name, &archive])
    }

    /// Gives an image a further name.
    ///
    /// # Errors
    /// If containerd does not have it.
    pub fn tag(&self, image: &str, further: &str) -> Result<()> {
        self.ctr(&["images", "tag", image, further])
    }

    /// Has containerd's own client do something with the images of the kubelet.
    fn ctr(&self, arguments: &[&str]) -> Result<()> {
        run(Command::new(program_path("ctr")?)
            .arg("--address")
            .arg(self.socket())
            .arg("--namespace=k8s.io")
            .args(arguments))
        .map(drop)
    }

    /// How to start a program in this containerd's surroundings.
    ///
    /// # Errors
    /// If it does not run.
    pub(crate) fn enter(&self, program: &Path) -> Result<Command> {
        let namespaces = format!("/proc/{}/ns", self.pid()?);
        let mut command = Command::new(program_path("nsenter")?);
        command
            .arg(format!("--mount={namespaces}/mnt"))
            .arg(format!("--net={namespaces}/net"))
            .arg("--")
            .arg(program);
        Ok(command)
    }

    fn clean_up(&mut self) -> Result<()> {
        if self.paused {
            self.resume()?;
        }
        if self.daemon.is_none() {
            self.start_again()?;
        }
        let pods = self.call(async |mut client| {
            let request = ListPodSandboxRequest::default();
            Ok(client.list_pod_sandbox(request).await?.into_inner().items)
        })?;
        for pod in pods {
            self.remove_pod(&pod.id)?;
        }
        self.stop()?;
        Ok(())
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if let Err(error) = self.clean_up() {
            eprintln!("containerd: not everything could be cleaned up: {error:#}");
        }
        if let Err(error) = unmount_below(&self.root) {
            eprintln!("containerd: {error:#}");
        }
        self.cgroups.remove();
    }
}

/// How to start a program in surroundings of its own: the process that is started becomes the program.
fn surrounded(own: &Surroundings, program: &Path) -> Result<Command> {
    /// An address, pairs of paths up to an empty word, and then the program.
    const SCRIPT: &str = r#"
        busybox ip link set lo up
        busybox ip address add "$1/32" dev lo
        shift
        while [ -n "$1" ]; do mount --bind "$1" "$2"; shift 2; done
        shift
        mount --make-rshared /
        exec "$@"
    "#;
    let mut command = Command::new(program_path("unshare")?);
    command
        // First private, or the masks would be the machine's. Then shared, as on a node: a pod may
        // ask to see what is mounted later, which takes that.
        .args(["--net", "--mount", "--propagation", "private"])
        .args(["sh", "-e", "-c", SCRIPT, "sh"])
        .arg(own.address.to_string());
    for mask in &own.masks {
        command.arg(&mask.own).arg(&mask.over);
    }
    command.arg("").arg(program);
    Ok(command)
}

/// The network of pods that are not on the host's: a pair of interfaces for each, and an address that
/// the host can reach.
fn pod_network() -> serde_json::Value {
    serde_json::json!({
        "cniVersion": "0.4.0",
        "name": "pods",
        "plugins": [{
            "type": "ptp",
            "ipam": { "type": "host-local", "ranges": [[{ "subnet": POD_ADDRESSES }]] },
        }],
    })
}

fn host_network() -> NamespaceOption {
    NamespaceOption {
        network: NamespaceMode::Node.into(),
        pid: NamespaceMode::Container.into(),
        ipc: NamespaceMode::Node.into(),
    }
}
