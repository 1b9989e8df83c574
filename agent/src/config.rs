//! The agent's configuration: read whole, checked once, before anything is attached or bound.
//!
//! One TOML file, every key of it optional. Durations are text (`"10s"`, `"1m 30s"`), sizes are
//! bytes. A key that does not exist, a value of the wrong type and a value that cannot work are
//! errors that name the key, what was found and what is allowed. `gpuacct config` prints what is in
//! force.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::Url;
use reqwest::header::{HeaderName, HeaderValue};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

use crate::secrets::{self, STRUCK, Secrets};

/// The port of `/metrics` unless configured. The range 9100 to 9999 of Prometheus' list of default
/// port allocations is taken; this one is beyond it, below the ephemeral and the NodePort ranges.
pub const DEFAULT_PORT: u16 = 10_944;
/// Pod labels that are published at most: each is a series for each pod.
const MAX_POD_LABELS: usize = 16;

/// Keys whose values may be secrets.
const SECRET: [&str; 2] = ["otlp.endpoint", "otlp.headers"];

/// What can be wrong with a configuration.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is not TOML, has an unknown key, or a value of the wrong type.
    #[error("{origin}: {message}")]
    Syntax {
        /// The file, or `configuration`.
        origin: String,
        /// Where in it, which key, what was found and what was expected.
        message: String,
    },
    /// A value that cannot work.
    #[error("{key} is {found}, allowed is {allowed}")]
    Value {
        /// The key, with its table.
        key: &'static str,
        /// What was found.
        found: String,
        /// What is allowed.
        allowed: &'static str,
    },
}

/// A length of time, written as text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

impl Span {
    const fn secs(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }
}

impl std::str::FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse::<jiff::SignedDuration>()
            .ok()
            .and_then(|span| Duration::try_from(span).ok())
            .map(Self)
            .ok_or_else(|| format!("found {text:?}, expected a duration such as \"10s\" or \"5m\""))
    }
}

impl std::fmt::Display for Span {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match jiff::SignedDuration::try_from(self.0) {
            Ok(span) => write!(f, "{span:#}"),
            Err(_) => write!(f, "{}s", self.0.as_secs()),
        }
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

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
    /// The Docker Engine API.
    pub docker: Docker,
    /// The container runtime interface.
    pub cri: Cri,
    /// What runtimes leave on disk beside a container.
    pub bundle: Bundle,
    /// The kubelet's links to logs.
    pub kubelet_logs: KubeletLogs,
    /// Who pays.
    pub attribution: Attribution,
    /// The kubelet's word on who was given which GPU.
    pub pod_resources: PodResources,
    /// When amounts go out.
    pub publish: Publish,
    /// `/metrics` and the probes.
    pub prometheus: Prometheus,
    /// The families that cAdvisor had.
    pub cadvisor: Cadvisor,
    /// The local socket.
    pub socket: Socket,
    /// The durable ledger.
    pub store: Store,
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
}

impl Default for Procfs {
    fn default() -> Self {
        Self {
            interval: Span::secs(60),
        }
    }
}

/// NVML.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Gpu {
    /// The library; absent to look where drivers put it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub library: Option<PathBuf>,
    /// How often a window is closed. The driver's ring spans about ten seconds.
    pub interval: Span,
    /// How often the process lists are read without a reason.
    pub lists_interval: Span,
}

impl Default for Gpu {
    fn default() -> Self {
        Self {
            library: None,
            interval: Span::secs(1),
            lists_interval: Span::secs(5),
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

/// Who pays where one container is in another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Payer {
    /// The outermost.
    #[default]
    Outermost,
    /// The innermost that a source of names vouches for, else the outermost: for test clusters whose
    /// nodes are containers.
    Innermost,
}

/// Who pays.
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
    /// Where.
    pub listen: SocketAddr,
}

impl Default for Prometheus {
    fn default() -> Self {
        Self {
            enabled: true,
            listen: SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 0], DEFAULT_PORT)),
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
    /// Where; made with mode 0600.
    pub path: PathBuf,
}

impl Default for Socket {
    fn default() -> Self {
        Self {
            path: DEFAULT_SOCKET.into(),
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

/// How OTLP is spoken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum OtlpProtocol {
    /// gRPC, by convention on port 4317.
    #[default]
    #[serde(rename = "grpc")]
    Grpc,
    /// Protobuf in HTTP/1 POST requests, by convention on port 4318.
    #[serde(rename = "http/protobuf")]
    HttpProtobuf,
}

/// What a counter's points say over OTLP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OtlpTemporality {
    /// The total since the counter's start.
    #[default]
    Cumulative,
    /// What came since the last point: for receivers that add up.
    Delta,
}

/// OTLP.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Otlp {
    /// The receiver's base address, e.g. `http://otel-collector:4317`; absent for none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// How it is spoken to.
    pub protocol: OtlpProtocol,
    /// What a counter's points say.
    pub temporality: OtlpTemporality,
    /// How often the books are sent.
    pub interval: Span,
    /// How long one request may take.
    pub timeout: Span,
    /// Headers (gRPC metadata) sent with each request.
    pub headers: BTreeMap<String, String>,
    /// `k8s.node.name`, if the node has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
}

impl Default for Otlp {
    fn default() -> Self {
        Self {
            endpoint: None,
            protocol: OtlpProtocol::default(),
            temporality: OtlpTemporality::default(),
            interval: Span::secs(60),
            timeout: Span::secs(10),
            headers: BTreeMap::new(),
            node_name: None,
        }
    }
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
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

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// It cannot be read, is not TOML, has unknown keys, or values that cannot work.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&text, &path.display().to_string())
    }

    /// Reads text that came from `origin`.
    ///
    /// # Errors
    ///
    /// As [`Config::read`].
    pub fn parse(text: &str, origin: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|error| ConfigError::Syntax {
            origin: origin.to_owned(),
            message: complaint(text, error),
        })?;
        config.check()?;
        Ok(config)
    }

    /// The configuration as it may be shown: it can be read back, and has no secrets.
    #[must_use]
    pub fn redacted(mut self) -> Self {
        for value in self.otlp.headers.values_mut() {
            *value = STRUCK.to_owned();
        }
        if let Some(endpoint) = &mut self.otlp.endpoint {
            *endpoint = secrets::shown(endpoint);
        }
        self
    }

    /// What is in it and must not leave the node.
    #[must_use]
    pub fn secrets(&self) -> Secrets {
        let headers = self.otlp.headers.values().map(String::as_str);
        Secrets::of(headers, self.otlp.endpoint.as_deref())
    }

    /// Refuses values that cannot work.
    ///
    /// # Errors
    ///
    /// The first such value.
    pub fn check(&self) -> Result<(), ConfigError> {
        let ring = self.kernel.ring_bytes;
        let ring_allowed = ring.is_power_of_two() && (1 << 12..=1 << 26).contains(&ring);
        ensure(
            ring_allowed,
            "kernel.ring_bytes",
            ring,
            "a power of two from 4096 to 67108864",
        )?;
        let devices = &self.kernel.devices;
        ensure(
            devices.len() <= 8 && devices.iter().all(|name| !name.trim().is_empty()),
            "kernel.devices",
            format!("{devices:?}"),
            "at most 8 names, none empty",
        )?;
        let spans: [(&'static str, Span, u64, u64, &'static str); 13] = [
            (
                "procfs.interval",
                self.procfs.interval,
                1_000,
                3_600_000,
                "1s to 1h",
            ),
            // Beyond 5 s a few late polls would lose samples of the driver's ring. Below 100 ms the calls
            // cost more than the samples are worth: there are six a second.
            ("gpu.interval", self.gpu.interval, 100, 5_000, "100ms to 5s"),
            (
                "gpu.lists_interval",
                self.gpu.lists_interval,
                1_000,
                60_000,
                "1s to 1m",
            ),
            (
                "docker.timeout",
                self.docker.timeout,
                100,
                60_000,
                "100ms to 1m",
            ),
            ("cri.timeout", self.cri.timeout, 100, 60_000, "100ms to 1m"),
            (
                "pod_resources.timeout",
                self.pod_resources.timeout,
                100,
                60_000,
                "100ms to 1m",
            ),
            (
                "pod_resources.interval",
                self.pod_resources.interval,
                1_000,
                600_000,
                "1s to 10m",
            ),
            ("publish.grace", self.publish.grace, 0, 600_000, "0s to 10m"),
            (
                "publish.zero_for",
                self.publish.zero_for,
                0,
                600_000,
                "0s to 10m",
            ),
            (
                "publish.keep_for",
                self.publish.keep_for,
                0,
                86_400_000,
                "0s to 24h",
            ),
            (
                "store.retention",
                self.store.retention,
                3_600_000,
                10 * 365 * 86_400_000,
                "1h to 87600h",
            ),
            (
                "otlp.interval",
                self.otlp.interval,
                1_000,
                3_600_000,
                "1s to 1h",
            ),
            (
                "otlp.timeout",
                self.otlp.timeout,
                100,
                60_000,
                "100ms to 1m",
            ),
        ];
        for (key, span, least, most, allowed) in spans {
            let range = Duration::from_millis(least)..=Duration::from_millis(most);
            ensure(range.contains(&span.0), key, span, allowed)?;
        }
        let docker = self.docker.sockets.iter();
        let docker = docker.map(|path| ("docker.sockets", path));
        let cri = self.cri.sockets.iter().map(|path| ("cri.sockets", path));
        let sockets = docker.chain(cri);
        let others = [
            ("pod_resources.socket", &self.pod_resources.socket),
            ("socket.path", &self.socket.path),
        ];
        for (key, path) in sockets.chain(others) {
            // sun_path, with its terminating zero.
            let fits = path.is_absolute() && path.as_os_str().len() < 108;
            ensure(
                fits,
                key,
                path.display(),
                "an absolute path of at most 107 bytes",
            )?;
        }
        let labels = &self.publish.pod_labels;
        ensure(
            labels.len() <= MAX_POD_LABELS,
            "publish.pod_labels",
            format!("{} labels", labels.len()),
            "at most 16 labels",
        )?;
        for label in labels {
            // A prefix of 253, a slash, a name of 63: Kubernetes' own bound of a key.
            let allowed = (1..=317).contains(&label.len())
                && label.bytes().all(|byte| matches!(byte, b'!'..=b'~'));
            ensure(
                allowed,
                "publish.pod_labels",
                format!("{label:?}"),
                "keys of Kubernetes labels",
            )?;
        }
        let Bundle {
            host_root,
            containerd,
            storage,
            docker,
            ..
        } = &self.bundle;
        let logs = &self.kubelet_logs;
        for (key, paths) in [
            ("bundle.host_root", std::slice::from_ref(host_root)),
            ("bundle.containerd", containerd),
            ("bundle.storage", storage),
            ("bundle.docker", docker),
            (
                "kubelet_logs.host_root",
                std::slice::from_ref(&logs.host_root),
            ),
            (
                "kubelet_logs.containers",
                std::slice::from_ref(&logs.containers),
            ),
            ("kubelet_logs.pods", std::slice::from_ref(&logs.pods)),
        ] {
            for path in paths {
                ensure(path.is_absolute(), key, path.display(), "an absolute path")?;
            }
        }
        for resource in &self.pod_resources.resources {
            let (domain, name) = resource.split_once('/').unwrap_or((resource, ""));
            let allowed = !domain.is_empty()
                && !name.contains('/')
                && !resource.contains(|c: char| c.is_whitespace() || c.is_control());
            ensure(
                allowed,
                "pod_resources.resources",
                format!("{resource:?}"),
                "a resource's name, or a domain and a slash",
            )?;
        }
        let store = &self.store.path;
        let allowed = "an absolute path";
        ensure(store.is_absolute(), "store.path", store.display(), allowed)?;
        ensure(
            self.store.max_size >= 8 << 20,
            "store.max_size",
            self.store.max_size,
            "8388608 or more",
        )?;
        if let Some(library) = &self.gpu.library {
            ensure(
                library.is_absolute(),
                "gpu.library",
                library.display(),
                "an absolute path",
            )?;
        }
        if let Some(endpoint) = &self.otlp.endpoint {
            let allowed = endpoint
                .strip_prefix("http://")
                .is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/'))
                // What is behind an `@` that does not end a user would be taken for the path.
                && Url::parse(endpoint).is_ok_and(|url| !url.path().contains('@'));
            let shown = secrets::shown(endpoint);
            ensure(allowed, "otlp.endpoint", shown, "http://HOST[:PORT]")?;
        }
        for (name, value) in &self.otlp.headers {
            let allowed = HeaderName::from_bytes(name.as_bytes()).is_ok()
                && HeaderValue::from_str(value).is_ok();
            // The value is not shown: it may be a secret.
            ensure(
                allowed,
                "otlp.headers",
                format!("{name:?} with a value"),
                "a header's name and a value without control characters",
            )?;
        }
        if let Some(name) = &self.otlp.node_name {
            ensure(
                !name.trim().is_empty(),
                "otlp.node_name",
                format!("{name:?}"),
                "a node's name",
            )?;
        }
        Ok(())
    }

    /// The configuration as a file.
    ///
    /// # Errors
    ///
    /// A path in it is not UTF-8.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string(self)
    }
}

/// What is wrong with a text that is no configuration: where, what, and at which key. Never the line
/// itself, nor the value of a key that may have a secret: it ends up in logs and in bug reports.
fn complaint(text: &str, mut error: toml::de::Error) -> String {
    let place = error.span().map(|span| {
        let before = text.get(..span.start).unwrap_or(text);
        let line = before.rsplit('\n').next().unwrap_or_default();
        let number = before.matches('\n').count() + 1;
        format!(" at line {number}, column {}", line.chars().count() + 1)
    });
    let place = place.unwrap_or_default();
    let message = error.message().to_owned();
    // Without the text it says the keys in the line's place.
    error.set_input(None);
    let shown = error.to_string();
    let key = shown.trim_end().rsplit_once("\nin `");
    let key = key.and_then(|(_, key)| key.strip_suffix('`'));
    let secret = key.is_some_and(|key| SECRET.iter().any(|secret| key.starts_with(secret)));
    let message = match message.rsplit_once(", expected ") {
        Some((_, expected)) if secret => format!("invalid value, expected {expected}"),
        None if secret => "invalid value".to_owned(),
        _ => message,
    };
    let key = key.map(|key| format!(" in `{key}`")).unwrap_or_default();
    format!("TOML parse error{place}: {message}{key}")
}

fn ensure(
    holds: bool,
    key: &'static str,
    found: impl std::fmt::Display,
    allowed: &'static str,
) -> Result<(), ConfigError> {
    if holds {
        return Ok(());
    }
    Err(ConfigError::Value {
        key,
        found: found.to_string(),
        allowed,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_containerd_that_is_asked_has_its_folder_among_the_bundles() {
        let config = Config::default();
        for (socket, folder) in [
            ("/run/containerd/containerd.sock", "/run/containerd"),
            ("/run/k3s/containerd/containerd.sock", "/run/k3s/containerd"),
            (
                "/var/snap/microk8s/common/run/containerd.sock",
                "/var/snap/microk8s/common/run/containerd",
            ),
            ("/run/k0s/containerd.sock", "/run/k0s/containerd"),
        ] {
            assert!(config.cri.sockets.contains(&socket.into()), "{socket}");
            assert!(
                config.bundle.containerd.contains(&folder.into()),
                "{folder}"
            );
        }
    }

    #[test]
    fn an_empty_file_is_the_defaults_and_what_is_printed_reads_back() {
        let config = Config::parse("", "test").unwrap();
        assert_eq!(config, Config::default());
        let printed = config.to_toml().unwrap();
        assert_eq!(
            Config::parse(&printed, "printed").unwrap(),
            config,
            "{printed}"
        );
    }

    #[test]
    fn every_kind_of_mistake_is_named_with_its_key_and_what_is_allowed() {
        for (text, expect) in [
            (
                "[gpu]\nintervall = \"1s\"",
                "unknown field `intervall`, expected one of `library`",
            ),
            ("[gpus]\n", "unknown field `gpus`"),
            (
                "[gpu]\ninterval = 1",
                "invalid type: integer `1`, expected a string",
            ),
            (
                "[gpu]\ninterval = \"soon\"",
                "found \"soon\", expected a duration such as",
            ),
            (
                "[gpu]\ninterval = \"-1s\"",
                "found \"-1s\", expected a duration such as",
            ),
            (
                "[gpu]\ninterval = \"7s\"",
                "gpu.interval is 7s, allowed is 100ms to 5s",
            ),
            (
                "[kernel]\nring_bytes = 5000",
                "kernel.ring_bytes is 5000, allowed is a power of two",
            ),
            ("[kernel]\nring_bytes = -1", "invalid value: integer `-1`"),
            (
                "[prometheus]\nlisten = \"everywhere\"",
                "invalid socket address",
            ),
            (
                "[cadvisor]\nduty_cycle = \"mine\"",
                "unknown variant `mine`, expected `device` or `container`",
            ),
            (
                "[otlp]\nprotocol = \"udp\"",
                "unknown variant `udp`, expected `grpc` or `http/protobuf`",
            ),
            (
                "[otlp]\ntemporality = \"both\"",
                "unknown variant `both`, expected `cumulative` or `delta`",
            ),
            (
                "[otlp]\nendpoint = \"collector:4317\"",
                "otlp.endpoint is collector:4317, allowed is http://",
            ),
            (
                "[docker]\nsockets = [\"docker.sock\"]",
                "docker.sockets is docker.sock, allowed is an absolute path",
            ),
            (
                "[socket]\npath = \"agent.sock\"",
                "socket.path is agent.sock, allowed is an absolute path",
            ),
            (
                "[gpu]\nlists_interval = \"999ms\"",
                "gpu.lists_interval is 999ms, allowed is 1s to 1m",
            ),
            (
                "[gpu]\ninterval = \"99ms\"",
                "gpu.interval is 99ms, allowed is 100ms to 5s",
            ),
            (
                "[gpu]\ninterval = \"5s 1us\"",
                "gpu.interval is 5s 1µs, allowed is 100ms to 5s",
            ),
            (
                "[otlp]\nendpoint = \"http://a host\"",
                "otlp.endpoint is http://a host, allowed is http://",
            ),
            (
                "[otlp.headers]\nx-token = \"two\\nlines\"",
                "otlp.headers is \"x-token\" with a value, allowed is",
            ),
            (
                "[otlp]\nnode_name = \"\"",
                "otlp.node_name is \"\", allowed is a node's name",
            ),
            (
                "[bundle]\ncontainerd = [\"/run/containerd\", \"state\"]",
                "bundle.containerd is state, allowed is an absolute path",
            ),
            (
                "[kubelet_logs]\nhost_root = \"host\"",
                "kubelet_logs.host_root is host, allowed is an absolute path",
            ),
            (
                "[publish]\npod_labels = [\"a label\"]",
                "publish.pod_labels is \"a label\", allowed is keys of Kubernetes labels",
            ),
            (
                "[attribution]\npayer = \"both\"",
                "unknown variant `both`, expected `outermost` or `innermost`",
            ),
            (
                "[pod_resources]\nresources = [\"nvidia.com/gpu\", \"/gpu\"]",
                "pod_resources.resources is \"/gpu\", allowed is a resource's name, or a domain",
            ),
            (
                "[pod_resources]\ninterval = \"10ms\"",
                "pod_resources.interval is 10ms, allowed is 1s to 10m",
            ),
            (
                "[otlp]\nendpoint = \"http://me:hun/ter22@collector\"",
                "otlp.endpoint is http://(redacted)@collector, allowed is http://",
            ),
            ("[gpu\n", "TOML parse error at line 1, column 5: "),
        ] {
            let error = Config::parse(text, "test").unwrap_err().to_string();
            assert!(error.contains(expect), "{text:?} gave {error:?}");
        }
    }

    #[test]
    fn a_mistake_beside_a_secret_does_not_show_the_secret() {
        for (text, expected) in [
            (
                "[otlp.headers]\nauthorization = \"Bearer hunter22",
                "TOML parse error at line 2, column 33: ",
            ),
            (
                "[otlp.headers]\nauthorization = Bearer hunter22\n",
                "TOML parse error at line 2, column 17: ",
            ),
            (
                "[otlp]\nheaders = \"Bearer hunter22\"\n",
                "TOML parse error at line 2, column 11: invalid value, expected a map in `otlp.headers`",
            ),
            (
                "[otlp.headers]\nx-pin = 2200022\n",
                "invalid value, expected a string in `otlp.headers.x-pin`",
            ),
            (
                "[otlp]\nendpoint = [\"http://me:hunter22@c\"]\n",
                "invalid value, expected a string in `otlp.endpoint`",
            ),
            (
                "[otlp]\nendpoint = \"https://me:hunter22@c\"\n",
                "otlp.endpoint is https://(redacted)@c, allowed is",
            ),
            (
                "[otlp]\nendpoint = \"http://me:22/hunter22@c\"\n",
                "otlp.endpoint is http://(redacted)@c, allowed is",
            ),
            (
                "[otlp.headers]\nx-token = \"hunter22\\n\"\n",
                "otlp.headers is \"x-token\" with a value",
            ),
        ] {
            let error = Config::parse(text, "test").unwrap_err();
            let shown = error.to_string();
            assert!(shown.contains(expected), "{text:?} gave {shown:?}");
            for shown in [shown, format!("{error:?}")] {
                assert!(
                    !shown.contains("hunter") && !shown.contains("2200022"),
                    "{shown}"
                );
            }
        }
    }

    #[test]
    fn what_is_shown_of_a_configuration_has_no_secrets_and_reads_back() {
        let text = "[otlp]\nendpoint = \"http://me:hunter22@collector:4317\"\n\
                    [otlp.headers]\nauthorization = \"Bearer abcdef\"\nx = \"yes\"\n";
        let config = Config::parse(text, "test").unwrap();
        let text = config.redacted().to_toml().unwrap();
        for secret in ["hunter22", "abcdef", "\"yes\""] {
            assert!(!text.contains(secret), "{text}");
        }
        assert!(text.contains("authorization = \"(redacted)\""), "{text}");
        let shown = Config::parse(&text, "shown").unwrap();
        let endpoint = shown.otlp.endpoint.as_deref();
        assert_eq!(endpoint, Some("http://(redacted)@collector:4317"));
        assert_eq!(shown.clone().redacted(), shown);
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = Config::read(Path::new("/nonexistent/gpuacct.toml")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot read the configuration file /nonexistent/gpuacct.toml"
        );
    }
}
