//! A real kubelet on a real containerd, without an API server, and a device plugin that gives it
//! GPUs.
//!
//! A kubelet takes the machine for its own: it keeps state in fixed places, deletes the logs of pods
//! that it does not know, ends processes in their cgroups and sets the kernel's tunables. So this
//! one finds folders of the test's in those places, files of the test's for the tunables, and runs
//! its pods below a cgroup of its own. Its network is empty but for a loopback interface, which
//! keeps its ports apart from everybody else's.
//!
//! It refuses to evict anything for a full disk. Pods come from files, and their names end in
//! [`NODE`]'s.

mod authority;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::io::DuplexStream;
use tokio::net::UnixListener;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Endpoint, Server};
use tonic::{Request, Response, Status};

use crate::containerd::{self, Containerd, Mask};
use crate::daemon::Daemon;
use crate::docker::program_path;
use crate::proto::device_plugin as api;
use crate::proto::device_plugin::device_plugin_server::{DevicePlugin, DevicePluginServer};
use crate::proto::device_plugin::registration_client::RegistrationClient;

/// The environment variable that names the program.
pub const PROGRAM: &str = "GPUACCT_KUBELET";
/// What the kubelet calls its node.
pub const NODE: &str = "node";
/// The resource that pods ask for.
pub const RESOURCE: &str = "nvidia.com/gpu";
/// How long a pod that is to end may take: longer than any test, which ends it when it likes.
const GRACE_S: u32 = 3600;
/// How long any call may take. Only ever waited for when something is broken.
const PATIENCE: Duration = Duration::from_secs(60);
/// What a kubelet wants the kernel's tunables to be, and would make them.
const TUNABLES: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// The program, if this machine can run one; if not, why.
///
/// # Errors
/// If it has not been built, or a part of it or the rights are missing.
pub fn available() -> Result<PathBuf> {
    let program = std::env::var_os(PROGRAM).with_context(|| {
        format!("{PROGRAM} does not name a kubelet; `cargo xtask test --slow` builds one and does")
    })?;
    let program = PathBuf::from(program);
    ensure!(program.is_file(), "{} is not a file", program.display());
    for needed in ["unshare", "nsenter", "busybox"] {
        program_path(needed)?;
    }
    containerd::available()?;
    Ok(program)
}

/// A kubelet with its containerd. Both go with it, and all pods.
#[derive(Debug)]
pub struct Kubelet {
    // Ends before what it runs pods on: it would start them again.
    daemon: Daemon,
    containerd: Containerd,
    /// What it takes for `/var/lib`.
    lib: PathBuf,
    manifests: PathBuf,
}

impl Kubelet {
    /// Starts one in a folder and waits until it serves its sockets.
    ///
    /// # Errors
    /// If it does not come up; the message has the end of its log.
    pub fn start(program: &Path, root: &Path) -> Result<Self> {
        let [lib, log, tunables, manifests] =
            ["lib", "log", "tunables", "manifests"].map(|name| root.join(name));
        for folder in [&lib, &log, &tunables, &manifests] {
            fs::create_dir_all(folder)
                .with_context(|| format!("cannot make {}", folder.display()))?;
        }
        let mut masks = vec![
            Mask {
                own: lib.clone(),
                over: "/var/lib".into(),
            },
            Mask {
                own: log,
                over: "/var/log".into(),
            },
        ];
        for (name, value) in TUNABLES {
            let own = tunables.join(name.replace('/', "."));
            fs::write(&own, value).with_context(|| format!("cannot write {}", own.display()))?;
            let over = Path::new("/proc/sys").join(name);
            masks.push(Mask { own, over });
        }
        let mut containerd = Containerd::start_masked(masks, root.join("c"))?;
        let cgroup = format!("gpuacct-kubelet-{}", std::process::id());
        containerd.make_cgroup(&cgroup)?;
        let settings = root.join("kubelet.json");
        fs::write(
            &settings,
            serde_json::to_vec(&configuration(&manifests, &cgroup))?,
        )
        .with_context(|| format!("cannot write {}", settings.display()))?;
        let mut command = Command::new(program_path("nsenter")?);
        command
            .arg(format!("--mount=/proc/{}/ns/mnt", containerd.pid()?))
            .arg("--")
            .arg(program_path("unshare")?)
            .args(["--net", "sh", "-e", "-c"])
            .arg(r#"busybox ip link set lo up; exec "$0" "$@""#)
            .arg(program)
            .arg("--config")
            .arg(&settings)
            .args(["--container-runtime", "remote"])
            .arg("--container-runtime-endpoint")
            .arg(format!("unix://{}", containerd.socket().display()))
            .args(["--hostname-override", NODE])
            // It asks whether it is on Amazon's machines, and waits for an answer.
            .env("AWS_EC2_METADATA_DISABLED", "true");
        let mut daemon = Daemon::start("kubelet", &mut command, &root.join("kubelet.log"))?;
        let sockets = [
            lib.join("kubelet/pod-resources/kubelet.sock"),
            lib.join("kubelet/device-plugins/kubelet.sock"),
        ];
        daemon.wait_until_up(|| sockets.iter().all(|socket| socket.exists()))?;
        Ok(Self {
            daemon,
            containerd,
            lib,
            manifests,
        })
    }

    /// What it runs its pods on.
    #[must_use]
    pub const fn containerd(&self) -> &Containerd {
        &self.containerd
    }

    /// The socket of its PodResources.
    #[must_use]
    pub fn pod_resources(&self) -> PathBuf {
        self.lib.join("kubelet/pod-resources/kubelet.sock")
    }

    /// Has it run a pod on the host's network: of one container, which asks for so many GPUs and
    /// runs a command with files of the host's: outside, inside. The pod's name is what is given
    /// and [`NODE`], with a dash between them.
    ///
    /// # Errors
    /// If the file for it cannot be written.
    pub fn run_pod(
        &self,
        namespace: &str,
        name: &str,
        container: &str,
        gpus: u32,
        command: &[String],
        mounts: &[(PathBuf, PathBuf)],
    ) -> Result<()> {
        let name_of = |at: usize| format!("m{at}");
        let volumes = mounts.iter().enumerate().map(
            |(at, (outside, _))| json!({ "name": name_of(at), "hostPath": { "path": outside } }),
        );
        let inside = mounts
            .iter()
            .enumerate()
            .map(|(at, (_, inside))| json!({ "name": name_of(at), "mountPath": inside }));
        let pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": { "namespace": namespace, "name": name },
            "spec": {
                "hostNetwork": true,
                "terminationGracePeriodSeconds": GRACE_S,
                "volumes": volumes.collect::<Vec<_>>(),
                "containers": [{
                    "name": container,
                    "image": containerd::IMAGE,
                    "imagePullPolicy": "Never",
                    "command": command,
                    "volumeMounts": inside.collect::<Vec<_>>(),
                    "resources": { "limits": { RESOURCE: gpus } },
                }],
            },
        });
        // The kubelet reads whatever does not begin with a dot, as soon as it is there.
        let draft = self.manifests.join(".draft");
        fs::write(&draft, serde_json::to_vec(&pod)?).context("cannot write a pod's file")?;
        fs::rename(&draft, self.manifest(name)).context("cannot hand a pod's file over")
    }

    /// Has it end a pod, by the name that [`Kubelet::run_pod`] was given. The kubelet forgets it at
    /// once. Its container is asked to end, and lives on if it does not heed that.
    ///
    /// # Errors
    /// If it was not told to run one.
    pub fn remove_pod(&self, name: &str) -> Result<()> {
        fs::remove_file(self.manifest(name)).with_context(|| format!("no pod {name}"))
    }

    fn manifest(&self, name: &str) -> PathBuf {
        self.manifests.join(format!("{name}.json"))
    }

    /// Where plugins and the kubelet meet.
    fn plugins(&self) -> PathBuf {
        self.lib.join("kubelet/device-plugins")
    }
}

fn configuration(manifests: &Path, cgroup: &str) -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": "127.0.0.1",
        "healthzBindAddress": "127.0.0.1",
        "authentication": { "anonymous": { "enabled": true }, "webhook": { "enabled": false } },
        "authorization": { "mode": "AlwaysAllow" },
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{cgroup}"),
        "enableControllerAttachDetach": false,
        // All that it evicts for; the rest of what it would evict for is what a busy machine lacks.
        "evictionHard": { "memory.available": "1Mi" },
        "failSwapOn": false,
        "fileCheckFrequency": "1s",
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "makeIPTablesUtilChains": false,
        // A negative one takes a capability that the root of a container may lack.
        "oomScoreAdj": 0,
        // It does not come up if a tunable is not what it wants, and changes none.
        "protectKernelDefaults": true,
        "staticPodPath": manifests,
        "syncFrequency": "1s",
        // Its usual one is below /usr.
        "volumePluginDir": "/var/lib/kubelet/volume-plugins",
    })
}

/// What the plugin was asked for, container by container.
type Given = Arc<Mutex<Vec<Vec<String>>>>;

/// A device plugin as NVIDIA's: whole GPUs by their UUIDs, which a container finds in
/// `NVIDIA_VISIBLE_DEVICES`. It serves until it is dropped.
#[derive(Debug)]
pub struct Plugin {
    given: Given,
    _runtime: Runtime,
}

impl Plugin {
    /// Registers it with a kubelet and waits until that has taken the GPUs for its own: a pod that
    /// asks for one before is refused for good.
    ///
    /// # Errors
    /// If the kubelet does not take it.
    pub fn register(kubelet: &mut Kubelet, gpus: &[String]) -> Result<Self> {
        const SOCKET: &str = "gpus.sock";
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .context("cannot make a runtime")?;
        let folder = kubelet.plugins();
        let given = Given::default();
        let gpus_of = GpusOf {
            gpus: gpus.to_vec(),
            given: Arc::clone(&given),
        };
        runtime.block_on(async {
            let listener = UnixListener::bind(folder.join(SOCKET)).context("no plugin's socket")?;
            let server = Server::builder().add_service(DevicePluginServer::new(gpus_of));
            tokio::spawn(server.serve_with_incoming(clients(listener)));
            let address = format!("unix://{}", folder.join("kubelet.sock").display());
            let register = async {
                let channel = Endpoint::from_shared(address)?.connect().await?;
                let request = api::RegisterRequest {
                    version: "v1beta1".to_owned(),
                    endpoint: SOCKET.to_owned(),
                    resource_name: RESOURCE.to_owned(),
                    options: Some(api::DevicePluginOptions::default()),
                };
                RegistrationClient::new(channel).register(request).await?;
                anyhow::Ok(())
            };
            let answer = tokio::time::timeout(PATIENCE, register).await;
            answer.context("the kubelet does not answer a plugin")?
        })?;
        // It writes down what it has taken.
        let notes = folder.join("kubelet_internal_checkpoint");
        kubelet.daemon.wait_until_up(|| {
            let notes = fs::read_to_string(&notes).unwrap_or_default();
            gpus.iter().all(|gpu| notes.contains(gpu))
        })?;
        Ok(Self {
            given,
            _runtime: runtime,
        })
    }

    /// The GPUs that were given away, container by container.
    #[must_use]
    pub fn given(&self) -> Vec<Vec<String>> {
        // A list that grows by whole entries is whole.
        let given = self.given.lock();
        given.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Whoever calls, mended.
fn clients(listener: UnixListener) -> ReceiverStream<std::io::Result<DuplexStream>> {
    /// More than a message has.
    const BUFFER: usize = 64 * 1024;
    let (found, clients) = mpsc::channel(1);
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let (ours, servers) = tokio::io::duplex(BUFFER);
            let (said, mut answered) = client.into_split();
            let (mut answers, questions) = tokio::io::split(ours);
            // Either ends with the connection, which is all that it could say.
            tokio::spawn(authority::mend(said, questions));
            tokio::spawn(async move { tokio::io::copy(&mut answers, &mut answered).await });
            if found.send(Ok(servers)).await.is_err() {
                return;
            }
        }
    });
    ReceiverStream::new(clients)
}

/// The serving side.
#[derive(Debug)]
struct GpusOf {
    gpus: Vec<String>,
    given: Given,
}

#[tonic::async_trait]
impl DevicePlugin for GpusOf {
    type ListAndWatchStream = ReceiverStream<Result<api::ListAndWatchResponse, Status>>;

    async fn get_device_plugin_options(
        &self,
        _: Request<api::Empty>,
    ) -> Result<Response<api::DevicePluginOptions>, Status> {
        Ok(Response::new(api::DevicePluginOptions::default()))
    }

    async fn list_and_watch(
        &self,
        _: Request<api::Empty>,
    ) -> Result<Response<Self::ListAndWatchStream>, Status> {
        let devices = self.gpus.iter().map(|gpu| api::Device {
            id: gpu.clone(),
            health: "Healthy".to_owned(),
        });
        let all = api::ListAndWatchResponse {
            devices: devices.collect(),
        };
        let (list, watch) = mpsc::channel(1);
        list.try_send(Ok(all))
            .map_err(|error| Status::internal(error.to_string()))?;
        // Nothing changes, and the kubelet takes the stream's end for the plugin's.
        tokio::spawn(async move { list.closed().await });
        Ok(Response::new(ReceiverStream::new(watch)))
    }

    async fn allocate(
        &self,
        request: Request<api::AllocateRequest>,
    ) -> Result<Response<api::AllocateResponse>, Status> {
        let mut container_responses = Vec::new();
        for container in request.into_inner().container_requests {
            let gpus = container.devices_i_ds;
            let visible = ("NVIDIA_VISIBLE_DEVICES".to_owned(), gpus.join(","));
            container_responses.push(api::ContainerAllocateResponse {
                envs: [visible].into(),
                ..api::ContainerAllocateResponse::default()
            });
            let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
            given.push(gpus);
        }
        Ok(Response::new(api::AllocateResponse {
            container_responses,
        }))
    }

    async fn pre_start_container(
        &self,
        _: Request<api::PreStartContainerRequest>,
    ) -> Result<Response<api::PreStartContainerResponse>, Status> {
        Ok(Response::new(api::PreStartContainerResponse::default()))
    }
}
