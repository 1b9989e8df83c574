//! Real containerds with their CRI plugin, started and stopped by the tests.
//!
//! Each has its own data and sockets below one folder and takes everything with it when it is
//! dropped: pods, shims, mounts, the cgroups that it made. Pods are on the host's network, so no
//! CNI plugin is needed. They are run through the runtime interface, by a client of the tests' own.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
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

/// The image that every container is made from.
pub const IMAGE: &str = "docker.io/gpuacct/busybox:1";
const PAUSE: &str = "registry.k8s.io/pause:3.6";
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

/// A containerd.
#[derive(Debug)]
pub struct Containerd {
    root: PathBuf,
    /// The tree that its programs are in; the machine's own if none.
    programs: Option<PathBuf>,
    masks: Vec<Mask>,
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

    /// The same with masks, in a mount namespace of its own. Its containers run below them, too.
    ///
    /// # Errors
    /// If it does not come up; the message has the end of its log.
    pub fn start_masked(masks: Vec<Mask>, root: impl Into<PathBuf>) -> Result<Self> {
        Self::start_with(None, masks, root.into())
    }

    /// The same with the programs of a tree, as [`crate::docker::newer`] names one.
    ///
    /// # Errors
    /// If it does not come up; the message has the end of its log.
    pub fn start_from(programs: Option<&Path>, root: impl Into<PathBuf>) -> Result<Self> {
        Self::start_with(programs, Vec::new(), root.into())
    }

    fn start_with(programs: Option<&Path>, masks: Vec<Mask>, root: PathBuf) -> Result<Self> {
        let length = root.as_os_str().len();
        ensure!(length <= MAX_ROOT, "{}: {length} bytes", root.display());
        fs::create_dir_all(root.join("cni"))
            .with_context(|| format!("cannot make {}", root.display()))?;
        let shown = root.display();
        // A negative oom_score_adj, which CRI gives a sandbox, takes a capability that the root of
        // a container may lack.
        let config = format!(
            r#"version = 2
root = "{shown}/data"
state = "{shown}/state"
[grpc]
  address = "{shown}/c.sock"
[plugins."io.containerd.grpc.v1.cri"]
  restrict_oom_score_adj = true
  disable_apparmor = true
  sandbox_image = "{PAUSE}"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{shown}/cni"
    conf_dir = "{shown}/cni"
"#
        );
        fs::write(root.join("containerd.toml"), config).context("cannot write the settings")?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot make a runtime")?;
        let mut containerd = Self {
            root,
            programs: programs.map(Path::to_owned),
            masks,
            daemon: None,
            runtime,
            cgroups: Cgroups::noticed()?,
            paused: false,
        };
        containerd.start_again()?;
        for (image, command) in [(PAUSE, "1000000000"), (IMAGE, "3600")] {
            containerd.import(image, command)?;
        }
        Ok(containerd)
    }

    /// Where it listens.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.root.join("c.sock")
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
        let mut command = masked(&self.masks, &program)?;
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
        self.root.join("state")
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
    fn import(&self, image: &str, seconds: &str) -> Result<()> {
        let archive = archive(&self.root, image, seconds)?;
        let output = Command::new(program_path("ctr")?)
            .arg("--address")
            .arg(self.socket())
            .args(["--namespace=k8s.io", "images", "import"])
            .arg(&archive)
            .stdin(Stdio::null())
            .output()
            .context("cannot run ctr")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "ctr images import: {said}");
        Ok(())
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

/// How to run a program below masks, if there are any: the process that is started becomes the
/// program.
fn masked(masks: &[Mask], program: &Path) -> Result<Command> {
    /// Pairs of paths up to an empty word, and then the program.
    const SCRIPT: &str = r#"
        while [ -n "$1" ]; do mount --bind "$1" "$2"; shift 2; done
        shift
        exec "$@"
    "#;
    if masks.is_empty() {
        return Ok(Command::new(program));
    }
    let mut command = Command::new(program_path("unshare")?);
    command
        .args(["--mount", "--propagation", "private"])
        .args(["sh", "-e", "-c", SCRIPT, "sh"]);
    for mask in masks {
        command.arg(&mask.own).arg(&mask.over);
    }
    command.arg("").arg(program);
    Ok(command)
}

fn host_network() -> NamespaceOption {
    NamespaceOption {
        network: NamespaceMode::Node.into(),
        pid: NamespaceMode::Container.into(),
        ipc: NamespaceMode::Node.into(),
    }
}

/// An OCI archive of an image that has busybox and sleeps.
fn archive(root: &Path, image: &str, seconds: &str) -> Result<PathBuf> {
    let folder = root.join("image").join(seconds);
    let (tree, blobs) = (folder.join("tree"), folder.join("oci/blobs/sha256"));
    for folder in ["bin", "proc", "sys", "dev", "tmp", "etc"] {
        fs::create_dir_all(tree.join(folder)).context("cannot make the image's folders")?;
    }
    fs::create_dir_all(&blobs).context("cannot make the archive's folders")?;
    fs::copy(program_path("busybox")?, tree.join("bin/busybox")).context("cannot copy busybox")?;
    let layer = tar(&tree)?;
    let put = |bytes: &[u8], kind: &str| -> Result<serde_json::Value> {
        let digest = sha256(bytes)?;
        fs::write(blobs.join(&digest), bytes).context("cannot write a blob")?;
        Ok(serde_json::json!({
            "mediaType": format!("application/vnd.oci.image.{kind}"),
            "digest": format!("sha256:{digest}"),
            "size": bytes.len(),
        }))
    };
    let layer_blob = put(&layer, "layer.v1.tar")?;
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let config = serde_json::json!({
        "architecture": architecture,
        "os": "linux",
        "config": { "Entrypoint": ["/bin/busybox", "sleep", seconds], "Env": ["PATH=/bin"] },
        "rootfs": { "type": "layers", "diff_ids": [layer_blob["digest"]] },
    });
    let config = put(&serde_json::to_vec(&config)?, "config.v1+json")?;
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config,
        "layers": [layer_blob],
    });
    let mut manifest = put(&serde_json::to_vec(&manifest)?, "manifest.v1+json")?;
    manifest["annotations"] = serde_json::json!({ "io.containerd.image.name": image });
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": [manifest] });
    let oci = folder.join("oci");
    fs::write(oci.join("index.json"), serde_json::to_vec(&index)?)?;
    fs::write(oci.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    let archive = folder.join("image.tar");
    fs::write(&archive, tar(&oci)?).context("cannot write the archive")?;
    Ok(archive)
}

fn tar(folder: &Path) -> Result<Vec<u8>> {
    let output = Command::new(program_path("tar")?)
        .args(["--create", "--owner=0", "--group=0", "--directory"])
        .arg(folder)
        .arg(".")
        .output()
        .context("cannot run tar")?;
    ensure!(output.status.success(), "tar: {}", output.status);
    Ok(output.stdout)
}

fn sha256(bytes: &[u8]) -> Result<String> {
    let mut child = Command::new(program_path("sha256sum")?)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run sha256sum")?;
    child
        .stdin
        .take()
        .context("sha256sum has a standard input")?
        .write_all(bytes)?;
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    let digest = said.split(' ').next().unwrap_or_default();
    ensure!(digest.len() == 64, "sha256sum said {said:?}");
    Ok(digest.to_owned())
}
