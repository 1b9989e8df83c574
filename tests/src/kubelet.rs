//! A real kubelet on a real containerd, with an API server or without one, and a device plugin that
//! gives it GPUs.
//!
//! It runs on a [`Host`] of its own, so it changes nothing of the machine's, and its ports are apart
//! from everybody else's. It refuses to evict anything for a full disk.
//!
//! Without an API server, pods come from files, and their names end in [`NODE`]'s.

mod authority;

use std::fs;
use std::path::{Path, PathBuf};
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

use crate::containerd::{self, Containerd};
use crate::daemon::Daemon;
use crate::host::{self, Host};
use crate::proto::device_plugin as api;
use crate::proto::device_plugin::device_plugin_server::{DevicePlugin, DevicePluginServer};
use crate::proto::device_plugin::registration_client::RegistrationClient;
use crate::requirement::fetched;

/// The environment variable that names the folder of the programs of Kubernetes, which
/// `cargo xtask test --slow` builds.
pub const PROGRAMS: &str = "GPUACCT_KUBERNETES";
/// What the kubelet calls its node.
pub const NODE: &str = "node";
/// The resource that pods ask for.
pub const RESOURCE: &str = "nvidia.com/gpu";
/// The socket at which plugins register with it, in their folder.
const SOCKET: &str = "kubelet.sock";
/// How long any call may take. Only ever waited for when something is broken.
const PATIENCE: Duration = Duration::from_secs(60);

/// The program, if this machine can run one; if not, why.
///
/// # Errors
/// If it has not been built, or a part of it or the rights are missing.
pub fn available() -> Result<PathBuf> {
    let program = program("kubelet")?;
    host::available()?;
    Ok(program)
}

/// A program of Kubernetes, if it has been built; if not, why.
///
/// # Errors
/// If it has not.
pub(crate) fn program(name: &str) -> Result<PathBuf> {
    let program = fetched(PROGRAMS)?.join(name);
    ensure!(program.is_file(), "{} is not a file", program.display());
    Ok(program)
}

/// A kubelet with its host. Both go with it, and all pods.
#[derive(Debug)]
pub struct Kubelet {
    // Ends before what it runs pods on: it would start them again.
    daemon: Daemon,
    host: Host,
    manifests: PathBuf,
}

impl Kubelet {
    /// Starts one in a folder, without an API server, and waits until it serves its sockets.
    ///
    /// # Errors
    /// If it does not come up; the message has the end of its log.
    pub fn start(program: &Path, root: &Path) -> Result<Self> {
        Self::start_on(Host::start(root, None)?, program, root, None)
    }

    /// Starts one on a host, with the file that tells it how to reach an API server if it has one.
    ///
    /// # Errors
    /// If it does not come up; the message has the end of its log.
    pub(crate) fn start_on(
        host: Host,
        program: &Path,
        root: &Path,
        api_server: Option<&Path>,
    ) -> Result<Self> {
        let manifests = root.join("manifests");
        fs::create_dir_all(&manifests)
            .with_context(|| format!("cannot make {}", manifests.display()))?;
        let settings = root.join("kubelet.json");
        let configuration = configuration(&manifests, host.cgroup());
        fs::write(&settings, serde_json::to_vec(&configuration)?)
            .with_context(|| format!("cannot write {}", settings.display()))?;
        let mut command = host.enter(program)?;
        command
            .arg("--config")
            .arg(&settings)
            .args(["--container-runtime", "remote"])
            .arg("--container-runtime-endpoint")
            .arg(format!("unix://{}", host.containerd().socket().display()))
            .args(["--hostname-override", NODE])
            // It asks whether it is on Amazon's machines, and waits for an answer.
            .env("AWS_EC2_METADATA_DISABLED", "true");
        if let Some(kubeconfig) = api_server {
            command
                .arg("--kubeconfig")
                .arg(kubeconfig)
                .args(["--node-ip", &host::ADDRESS.to_string()]);
        }
        let daemon = Daemon::start("kubelet", &mut command, &root.join("kubelet.log"))?;
        let mut kubelet = Self {
            daemon,
            host,
            manifests,
        };
        let sockets = [kubelet.pod_resources(), kubelet.plugins().join(SOCKET)];
        let is_up = || sockets.iter().all(|socket| socket.exists());
        kubelet.daemon.wait_until_up(is_up)?;
        Ok(kubelet)
    }

    /// What it runs its pods on.
    #[must_use]
    pub const fn host(&self) -> &Host {
        &self.host
    }

    /// What it runs its pods with.
    #[must_use]
    pub const fn containerd(&self) -> &Containerd {
        self.host.containerd()
    }

    /// The socket of its PodResources.
    #[must_use]
    pub fn pod_resources(&self) -> PathBuf {
        self.host
            .outside("/var/lib/kubelet/pod-resources/kubelet.sock")
    }

    /// Has it run a pod from a file. The pod's name is that in [`Pod`] and [`NODE`], with a dash between
    /// them.
    ///
    /// # Errors
    /// If the file for it cannot be written.
    pub fn run_pod(&self, pod: &Pod<'_>) -> Result<()> {
        // The kubelet reads whatever does not begin with a dot, as soon as it is there.
        let draft = self.manifests.join(".draft");
        fs::write(&draft, pod.manifest().to_string()).context("cannot write a pod's file")?;
        fs::rename(&draft, self.manifest(pod.name)).context("cannot hand a pod's file over")
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
        self.host.outside("/var/lib/kubelet/device-plugins")
    }
}

/// A pod on the host's network, of one container.
#[derive(Clone, Copy, Debug)]
pub struct Pod<'a> {
    /// Its namespace.
    pub namespace: &'a str,
    /// Its name.
    pub name: &'a str,
    /// Its container's name.
    pub container: &'a str,
    /// How many GPUs it asks for.
    pub gpus: u32,
    /// What it runs.
    pub command: &'a [String],
    /// Files of the host's that it has: outside, inside.
    pub mounts: &'a [(PathBuf, PathBuf)],
    /// How many seconds its container may take to end.
    pub grace_s: u32,
}

impl Pod<'_> {
    /// What describes it to a kubelet or an API server.
    #[must_use]
    pub fn manifest(&self) -> Value {
        let name_of = |at: usize| format!("m{at}");
        let volumes = self.mounts.iter().enumerate().map(
            |(at, (outside, _))| json!({ "name": name_of(at), "hostPath": { "path": outside } }),
        );
        let mounts = self.mounts.iter().enumerate();
        let mounts =
            mounts.map(|(at, (_, inside))| json!({ "name": name_of(at), "mountPath": inside }));
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": { "namespace": self.namespace, "name": self.name },
            "spec": {
                "hostNetwork": true,
                "terminationGracePeriodSeconds": self.grace_s,
                "volumes": volumes.collect::<Vec<_>>(),
                "containers": [{
                    "name": self.container,
                    "image": containerd::IMAGE,
                    "imagePullPolicy": "Never",
                    "command": self.command,
                    "volumeMounts": mounts.collect::<Vec<_>>(),
                    "resources": { "limits": { RESOURCE: self.gpus } },
                }],
            },
        })
    }
}

fn configuration(manifests: &Path, cgroup: &str) -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        // Only the host's network has it.
        "address": "0.0.0.0",
        "healthzBindAddress": "127.0.0.1",
        "authentication": { "anonymous": { "enabled": true }, "webhook": { "enabled": false } },
        "authorization": { "mode": "AlwaysAllow" },
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{cgroup}"),
        "enableControllerAttachDetach": false,
        // All that it evicts for; the rest of what it would evict for is what a busy machine lacks.
        "evictionHard": { "memory.available": "1Mi" },
        "failSwapOn": false,
        // So often it tells the API server what there is on its node, such as GPUs.
        "nodeStatusUpdateFrequency": "1s",
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
        const OWN_SOCKET: &str = "gpus.sock";
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
            let listener =
                UnixListener::bind(folder.join(OWN_SOCKET)).context("no plugin's socket")?;
            let server = Server::builder().add_service(DevicePluginServer::new(gpus_of));
            tokio::spawn(server.serve_with_incoming(clients(listener)));
            let address = format!("unix://{}", folder.join(SOCKET).display());
            let register = async {
                let channel = Endpoint::from_shared(address)?.connect().await?;
                let request = api::RegisterRequest {
                    version: "v1beta1".to_owned(),
                    endpoint: OWN_SOCKET.to_owned(),
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
