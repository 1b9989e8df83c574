//! The configuration and its sections, with their defaults.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::device_health::{Dcgm, GpuHealth, KernelLog};
use super::otlp::Otlp;
use super::records::Records;
use super::span::Span;
use crate::socket_access::{SocketAccess, SocketGroup, SocketMode};

/// The port of `/metrics` unless configured. The range 9100 to 9999 of Prometheus' list of default
/// port allocations is taken; this one is beyond it, below the ephemeral and the NodePort ranges.
pub const DEFAULT_PORT: u16 = 10_944;

/// Everything that can be configured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The eBPF object.
    pub kernel: Kernel,
    /// Scans of `/proc`.
    pub procfs: Procfs,
    /// NVML.
    pub gpu: Gpu,
    /// The kernel's log.
    pub kernel_log: KernelLog,
    /// The Docker Engine API.
    pub docker: Docker,
    /// The container runtime interface.
    pub cri: Cri,
    /// What runtimes leave on disk beside a container.
    pub bundle: Bundle,
    /// The kubelet's links to logs.
    pub kubelet_logs: KubeletLogs,
    /// Which container is charged.
    pub attribution: Attribution,
    /// The kubelet's word on who was given which GPU.
    pub pod_resources: PodResources,
    /// When amounts go out.
    pub publish: Publish,
    /// `/metrics` and the probes.
    pub prometheus: Prometheus,
    /// The families that cAdvisor had.
    pub cadvisor: Cadvisor,
    /// The families that dcgm-exporter has.
    pub dcgm: Dcgm,
    /// The local socket.
    pub socket: Socket,
    /// The durable ledger.
    pub store: Store,
    /// Usage records.
    pub records: Records,
    /// OTLP.
    pub otlp: Otlp,
    /// The agent's log.
    pub log: Log,
}

/// The eBPF object.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Kernel {
    /// Size of the ring buffer in bytes: a power of two, 4 KiB to 64 MiB.
    pub ring_bytes: u32,
    /// Character devices whose opens are reported, by their names in `/proc/devices`: who opens a
    /// GPU is looked for in the GPUs' process lists at once. Empty switches it off.
    pub devices: Vec<String>,
}

impl Default for Kernel {
    fn default() -> Self {
        Self {
            ring_bytes: 1 << 20,
            devices: ["nvidia", "nvidia-frontend", "nvidia-uvm"]
                .map(str::to_owned)
                .into(),
        }
    }
}

/// Scans of `/proc`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Procfs {
    /// How often `/proc` is scanned though nothing was lost.
    pub interval: Span,
    /// Where the host's root is mounted. In a cgroup namespace of its own the agent needs
    /// `sys/fs/cgroup` below it.
    pub host_root: PathBuf,
}

impl Default for Procfs {
    fn default() -> Self {
        Self {
            interval: Span::secs(60),
            host_root: "/".into(),
        }
    }
}

/// NVML.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Gpu {
    /// The library; absent to look where drivers put it.
    pub library: Option<PathBuf>,
    /// Folders with specifications of the Container Device Interface. Where `library` is absent, what
    /// they name is tried last.
    pub cdi: Vec<PathBuf>,
    /// How often a window is closed. The driver's ring spans about ten seconds.
    pub interval: Span,
    /// How often the process lists are read without a reason.
    pub lists_interval: Span,
    /// The health of the GPUs.
    pub health: GpuHealth,
}

impl Default for Gpu {
    fn default() -> Self {
        Self {
            library: None,
            cdi: ["/etc/cdi", "/var/run/cdi"].map(PathBuf::from).into(),
            interval: Span::secs(1),
            lists_interval: Span::secs(5),
            health: GpuHealth::default(),
        }
    }
}

/// The Docker Engine API.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Docker {
    /// Whether it is asked at all.
    pub enabled: bool,
    /// Its sockets, all of which are asked; those that are not there are looked for again.
    pub sockets: Vec<PathBuf>,
    /// How long a call may take.
    pub timeout: Span,
}

impl Docker {
    /// Whether there is anybody to ask.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.enabled && !self.sockets.is_empty()
    }
}

impl Default for Docker {
    fn default() -> Self {
        Self {
            enabled: true,
            // Where the Docker Engine and Podman listen.
            sockets: ["/var/run/docker.sock", "/run/podman/podman.sock"]
                .map(PathBuf::from)
                .to_vec(),
            timeout: Span::secs(5),
        }
    }
}

/// The container runtime interface of containerd and CRI-O.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cri {
    /// Whether it is asked at all.
    pub enabled: bool,
    /// Its sockets, all of which are asked; those that are not there are looked for again.
    pub sockets: Vec<PathBuf>,
    /// Whether it is asked for events, too. Runtimes that hand each event to one subscriber only
    /// (containerd before 2.0, CRI-O before 1.28) would withhold them from the kubelet then.
    pub events: bool,
    /// How long a call may take.
    pub timeout: Span,
}

impl Cri {
    /// Whether there is anybody to ask.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.enabled && !self.sockets.is_empty()
    }
}

impl Default for Cri {
    fn default() -> Self {
        Self {
            enabled: true,
            // Where containerd, CRI-O (also OpenShift's), k3s and RKE2, MicroK8s, k0s and
            // cri-dockerd listen.
            sockets: [
                "/run/containerd/containerd.sock",
                "/run/crio/crio.sock",
                "/run/k3s/containerd/containerd.sock",
                "/var/snap/microk8s/common/run/containerd.sock",
                "/run/k0s/containerd.sock",
                "/run/cri-dockerd.sock",
            ]
            .map(PathBuf::from)
            .to_vec(),
            events: false,
            timeout: Span::secs(5),
        }
    }
}

/// What runtimes leave on disk beside a container.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Bundle {
    /// Whether it is read at all.
    pub enabled: bool,
    /// Where the host's root is mounted; the folders below are named as the host names them.
    pub host_root: PathBuf,
    /// State folders of containerd.
    pub containerd: Vec<PathBuf>,
    /// Roots of containers/storage, which CRI-O and Podman use.
    pub storage: Vec<PathBuf>,
    /// Data roots of the Docker Engine.
    pub docker: Vec<PathBuf>,
}

impl Bundle {
    /// Whether there is a folder to look into.
    #[must_use]
    pub fn is_on(&self) -> bool {
        let folders = [&self.containerd, &self.storage, &self.docker];
        self.enabled && folders.iter().any(|folders| !folders.is_empty())
    }
}

impl Default for Bundle {
    fn default() -> Self {
        let paths = |paths: &[&str]| paths.iter().map(PathBuf::from).collect();
        Self {
            enabled: true,
            host_root: "/".into(),
            // By itself, in k3s and RKE2, in MicroK8s, in k0s (`containerd --state`, k0s:
            // `pkg/component/worker/containerd`), below the Docker Engine.
            containerd: paths(&[
                "/run/containerd",
                "/run/k3s/containerd",
                "/var/snap/microk8s/common/run/containerd",
                "/run/k0s/containerd",
                "/run/docker/containerd/daemon",
            ]),
            storage: paths(&["/run/containers/storage", "/var/lib/containers/storage"]),
            docker: paths(&["/var/lib/docker"]),
        }
    }
}

/// The kubelet's links to logs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KubeletLogs {
    /// Whether they are read at all.
    pub enabled: bool,
    /// Where the host's root is mounted; the folders below are named as the host names them.
    pub host_root: PathBuf,
    /// The folder of links, one a container.
    pub containers: PathBuf,
    /// The folder of logs, by pod.
    pub pods: PathBuf,
}

impl Default for KubeletLogs {
    fn default() -> Self {
        Self {
            enabled: true,
            host_root: "/".into(),
            containers: "/var/log/containers".into(),
            pods: "/var/log/pods".into(),
        }
    }
}

/// Which container is charged if one is inside another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Payer {
    /// The outermost.
    #[default]
    Outermost,
    /// The innermost that an identity source has confirmed, otherwise the outermost: for test
    /// clusters whose nodes are containers.
    Innermost,
}

/// Which container is charged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Attribution {
    /// Which of the containers that are in one another.
    pub payer: Payer,
}

/// The kubelet's PodResources API.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PodResources {
    /// Whether it is asked at all.
    pub enabled: bool,
    /// The kubelet's socket; looked for again while it is not there.
    pub socket: PathBuf,
    /// The resources that are GPUs: names, or domains with a slash at their end.
    pub resources: Vec<String>,
    /// How long a call may take.
    pub timeout: Span,
    /// How often everything is listed.
    pub interval: Span,
}

impl Default for PodResources {
    fn default() -> Self {
        Self {
            enabled: true,
            socket: "/var/lib/kubelet/pod-resources/kubelet.sock".into(),
            resources: vec!["nvidia.com/".into()],
            timeout: Span::secs(5),
            interval: Span::secs(10),
        }
    }
}

/// When amounts go out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Publish {
    /// How long a container may be held back for its names.
    pub grace: Span,
    /// How long a new series shows 0: at least one scrape interval.
    pub zero_for: Span,
    /// How long the series of a container that ended are kept.
    pub keep_for: Span,
    /// The pods' own labels that go out as `gpuacct_pod_labels`.
    pub pod_labels: Vec<String>,
}

impl Default for Publish {
    fn default() -> Self {
        Self {
            grace: Span::secs(10),
            zero_for: Span::secs(60),
            keep_for: Span::secs(600),
            pod_labels: Vec::new(),
        }
    }
}

/// `/metrics` and the probes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Prometheus {
    /// Whether it is served.
    pub enabled: bool,
    /// The address and port to listen on.
    #[serde(deserialize_with = "address")]
    pub listen: SocketAddr,
    /// A web configuration file of Prometheus' exporters: TLS, passwords, headers, a rate limit.
    pub web_config_file: Option<PathBuf>,
    /// A file with bearer tokens, one a line, any of which lets a request in.
    pub bearer_token_file: Option<PathBuf>,
    /// An address that serves the probes alone, in the clear and without a password.
    #[serde(deserialize_with = "optional_address")]
    pub probe_listen: Option<SocketAddr>,
    /// What the keys of labels that name an owner begin with.
    pub owner_prefix: String,
    /// Whether there is a page for people, `GET /`.
    pub page: bool,
}

/// Reads an address. The error of the standard library says neither what was found nor what is
/// expected.
fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    struct Address;

    impl Visitor<'_> for Address {
        type Value = SocketAddr;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(
                "an IP address and a port in quotes, such as \"[::]:10944\" or \"127.0.0.1:10944\"",
            )
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<SocketAddr, E> {
            let invalid = |_| E::invalid_value(de::Unexpected::Str(text), &self);
            text.parse().map_err(invalid)
        }
    }

    deserializer.deserialize_str(Address)
}

/// Reads an address that may be absent.
fn optional_address<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<SocketAddr>, D::Error> {
    address(deserializer).map(Some)
}

impl Default for Prometheus {
    fn default() -> Self {
        Self {
            enabled: true,
            listen: SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 0], DEFAULT_PORT)),
            web_config_file: None,
            bearer_token_file: None,
            probe_listen: None,
            owner_prefix: String::new(),
            page: true,
        }
    }
}

/// Whose duty cycle cAdvisor's family shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CadvisorDutyCycle {
    /// The device's, as cAdvisor's was.
    #[default]
    Device,
    /// The container's own share.
    Container,
}

/// The families that cAdvisor had, for dashboards built on them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cadvisor {
    /// Whether they are published.
    pub enabled: bool,
    /// Whose duty cycle they show.
    pub duty_cycle: CadvisorDutyCycle,
}

/// The local socket.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Socket {
    /// Where it is made.
    pub path: PathBuf,
    /// Mode of its file: who may connect.
    pub mode: SocketMode,
    /// Group of its file; absent for that of the agent's process.
    pub group: Option<SocketGroup>,
}

impl Socket {
    /// Who may open it.
    #[must_use]
    pub fn access(&self) -> SocketAccess {
        SocketAccess {
            mode: self.mode,
            group: self.group.clone(),
        }
    }
}

impl Default for Socket {
    fn default() -> Self {
        Self {
            path: DEFAULT_SOCKET.into(),
            mode: SocketMode::default(),
            group: None,
        }
    }
}

/// Where the agent's socket is unless configured.
pub const DEFAULT_SOCKET: &str = "/run/gpuacct/gpuacct.sock";

/// The durable ledger.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Store {
    /// Whether the books are kept. Without, every restart of the agent begins them at 0.
    pub enabled: bool,
    /// The directory, made with mode 0700.
    pub path: PathBuf,
    /// How long closed accounts and hours are kept.
    pub retention: Span,
    /// How large the ledger may grow, in bytes: the oldest goes first.
    pub max_size: u64,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            enabled: true,
            path: "/var/lib/gpuacct".into(),
            retention: Span::secs(35 * 24 * 3_600),
            max_size: 256 << 20,
        }
    }
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Plain text.
    #[default]
    Text,
    /// A JSON object a line.
    Json,
}

/// The agent's log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// A level, or directives as `tracing-subscriber` takes them: `info`, `gpuacct=debug`.
    pub level: String,
    /// How lines are written.
    pub format: LogFormat,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            level: "info".into(),
            format: LogFormat::default(),
        }
    }
}
