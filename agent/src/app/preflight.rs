//! Checks what the agent needs on this node, for `gpuacct check`.
//!
//! Each part is tried by doing what the agent does (attach, open, ask, bind, write), never by
//! comparing versions. It leaves nothing behind: programs are detached, sockets and files closed
//! and removed. It needs no agent and disturbs none; what a running one holds (its port, its socket)
//! counts as in order.
//!
//! Nothing waits without a limit. What exceeds its limit is reported as a failure.

mod finding;
mod otlp;
mod place;
mod socket;

use std::fs;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::timeout;

pub use self::finding::{Finding, Verdict};
use self::finding::{fail, ok, warn};
use self::place::{PathKind, look_at_socket, store};
use super::error::AppError;
use crate::config::{self, Config, OtlpKind};
use crate::errors::chain;
use crate::sources::gpu::namespace::INITIAL_PID_NAMESPACE;
use crate::sources::gpu::survey::{self, Offer, SurveyError, Surveyed};
use crate::sources::identity::greeting::{self, GreetingError};
use crate::sources::identity::pod_resources;
use crate::sources::kernel::opens::{OpenHook, OpenHookState, Refusal};
use crate::sources::kernel::{self, KernelConfig, KernelError, trial};
use crate::sources::procfs::cgroup_namespace::CgroupNamespace;

/// How long a part that blocks may take.
const LIMIT: Duration = Duration::from_secs(20);

/// Looks at everything, in the order in which the agent needs it.
pub async fn look(config: &Config) -> Vec<Finding> {
    let mut findings = kernel(config).await;
    findings.push(pid_namespace());
    findings.push(cgroup_namespace(&config.procfs.host_root));
    findings.push(cgroups());
    findings.extend(nvml(config.gpu.clone()).await);
    let names = names(config).await;
    findings.extend(names);
    if config.pod_resources.enabled {
        let kubelet = &config.pod_resources;
        findings.push(allocations(&kubelet.socket, kubelet.timeout.0).await);
    }
    if config.store.enabled {
        findings.push(store(&config.store.path));
    }
    let (socket, agent) = socket::look(&config.socket).await;
    findings.push(socket);
    if config.prometheus.enabled {
        findings.push(port("metrics", config.prometheus.listen, agent).await);
        if let Some(address) = config.prometheus.probe_listen {
            findings.push(port("probes", address, agent).await);
        }
        findings.extend(protection(&config.prometheus));
    }
    let metrics = config.otlp.receiver(OtlpKind::Metrics);
    let logs = config.otlp.receiver(OtlpKind::Logs);
    // Both are mostly the same.
    let logs = logs.filter(|logs| {
        metrics
            .as_ref()
            .is_none_or(|of| of.endpoint != logs.endpoint)
    });
    for receiver in metrics.into_iter().chain(logs) {
        findings.push(otlp::look("otlp", &receiver).await);
    }
    if config.records.enabled {
        findings.push(match config.records_receiver() {
            Some(receiver) => otlp::look("records", &receiver).await,
            None => warn(
                "records",
                "no receiver is configured; the records wait in the store",
                "set records.endpoint or otlp.endpoint",
            ),
        });
    }
    findings
}

async fn kernel(config: &Config) -> Vec<Finding> {
    let config = KernelConfig::from(&config.kernel);
    let looked = spawn_blocking(move || {
        let mut findings = vec![
            match trial::release() {
                Ok(release) => ok("kernel", format!("linux {release}")),
                Err(error) => fail("kernel", kernel::reason(&error), "use a newer kernel"),
            },
            match trial::types() {
                Ok(offsets) => ok("btf", format!("all {offsets} fields found")),
                Err(error) => fail("btf", kernel::reason(&error), remedy_of(&error)),
            },
            capabilities(&trial::capabilities()),
        ];
        match trial::hooks(&config) {
            Ok(hooks) => {
                findings.extend(hooks.needed.into_iter().map(|hook| {
                    let item = format!("hook {}", hook.name);
                    match hook.refusal {
                        None => ok(item, "attaches"),
                        Some(error) => fail(item, kernel::reason(&error), remedy_of(&error)),
                    }
                }));
                findings.extend(hooks.optional.into_iter().map(|hook| {
                    let item = format!("hook {}", hook.name);
                    match hook.refusal {
                        None => ok(item, "attaches"),
                        Some(error) => warn(item, kernel::reason(&error), remedy_of(&error)),
                    }
                }));
                findings.extend(judge_opens(hooks.opens, &hooks.refusals));
            }
            Err(error) => findings.push(fail("hooks", kernel::reason(&error), remedy_of(&error))),
        }
        findings
    });
    match timeout(LIMIT, looked).await {
        Ok(Ok(findings)) => findings,
        Ok(Err(error)) => vec![fail("hooks", error.to_string(), "report this as a bug")],
        Err(_) => vec![fail(
            "hooks",
            format!("the kernel has not answered for {LIMIT:?}"),
            "look into the kernel's log",
        )],
    }
}

/// Judges the open hook. One place to hook is enough, and the books do not need any.
fn judge_opens(state: OpenHookState, refusals: &[Refusal]) -> Vec<Finding> {
    const OPENS: &str = "opens of GPU devices";
    let item = |hook: OpenHook| format!("hook {}", hook.name());
    let mut findings: Vec<Finding> = refusals
        .iter()
        .map(|Refusal { hook, error }| {
            let reason = kernel::reason(error);
            match state {
                OpenHookState::Attached(other) => ok(
                    item(*hook),
                    format!("refused, {} is used instead: {reason}", other.name()),
                ),
                _ => warn(item(*hook), reason, remedy_of(error)),
            }
        })
        .collect();
    findings.push(match state {
        OpenHookState::Attached(hook) => ok(item(hook), format!("attaches, for {OPENS}")),
        OpenHookState::Off => ok(OPENS, "not watched: kernel.devices is empty"),
        OpenHookState::Waiting | OpenHookState::Refused => warn(
            OPENS,
            "not seen: process lists are read at their interval only, and processes too short \
             for any sample leave no trace",
            "see above",
        ),
    });
    findings
}

fn remedy_of(error: &KernelError) -> &'static str {
    match error {
        KernelError::NoObject => "use a release of gpuacct, or build it with `cargo xtask build`",
        KernelError::OldKernel { .. } | KernelError::NoTracepoint { .. } => "use a newer kernel",
        KernelError::NoBtf(_) | KernelError::Btf(_) => {
            "use a kernel with CONFIG_DEBUG_INFO_BTF=y, and mount /sys/kernel/btf if in a container"
        }
        KernelError::Refused { .. } => {
            "run as root with CAP_BPF and CAP_PERFMON (or CAP_SYS_ADMIN), privileged if in a \
             container"
        }
        KernelError::RingBytes { .. } => "change kernel.ring_bytes",
        _ => "report this as a bug, with the kernel's release",
    }
}

fn capabilities(held: &[(&str, bool)]) -> Finding {
    let item = "capabilities";
    let has = |wanted: &str| held.iter().any(|(name, held)| *name == wanted && *held);
    let names = |wanted: bool| {
        let names = held.iter().filter(|(_, held)| *held == wanted);
        let names: Vec<&str> = names.map(|(name, _)| *name).collect();
        names.join(", ")
    };
    if held.is_empty() {
        warn(item, "the kernel does not say", "look at the hooks below")
    } else if has("CAP_SYS_ADMIN") || (has("CAP_BPF") && has("CAP_PERFMON")) {
        ok(item, format!("{} in effect", names(true)))
    } else {
        fail(
            item,
            format!("{} not in effect", names(false)),
            "run as root with CAP_BPF and CAP_PERFMON (or CAP_SYS_ADMIN), privileged if in a \
             container",
        )
    }
}

fn pid_namespace() -> Finding {
    match fs::read_link("/proc/self/ns/pid") {
        Ok(link) => judge_pid_namespace(&link.to_string_lossy()),
        Err(error) => warn(
            "pid namespace",
            format!("cannot read /proc/self/ns/pid: {error}"),
            "mount /proc",
        ),
    }
}

fn cgroup_namespace(host_root: &Path) -> Finding {
    let item = "cgroup namespace";
    match CgroupNamespace::find(host_root) {
        Ok(namespace) => match namespace.root() {
            None => ok(item, "the host's"),
            Some(root) => ok(item, format!("its own, whose root is {root} on the host")),
        },
        Err(error) => fail(
            item,
            error.to_string(),
            "mount the host's /sys/fs/cgroup below procfs.host_root, as the component hardened does",
        ),
    }
}

fn judge_pid_namespace(link: &str) -> Finding {
    let item = "pid namespace";
    if link == INITIAL_PID_NAMESPACE {
        ok(item, "the host's")
    } else {
        fail(
            item,
            format!("{link}, expected {INITIAL_PID_NAMESPACE}: NVML's pids are those of the host"),
            "set hostPID: true in the pod, or --pid=host for the container",
        )
    }
}

fn cgroups() -> Finding {
    match fs::read_to_string("/proc/self/mountinfo") {
        Ok(mounts) => judge_cgroups(&mounts),
        Err(error) => warn(
            "cgroups",
            format!("cannot read /proc/self/mountinfo: {error}"),
            "mount /proc",
        ),
    }
}

/// By what is mounted: v1's controllers, v2's tree, or both.
fn judge_cgroups(mountinfo: &str) -> Finding {
    let item = "cgroups";
    let has = |wanted: &str| {
        mountinfo.lines().any(|line| {
            line.split_once(" - ")
                .and_then(|(_, rest)| rest.split(' ').next())
                == Some(wanted)
        })
    };
    match (has("cgroup2"), has("cgroup")) {
        (true, false) => ok(item, "v2"),
        (true, true) => ok(item, "hybrid: v1 controllers and v2"),
        (false, true) => ok(item, "v1"),
        (false, false) => warn(
            item,
            "none mounted here; the kernel reports cgroups anyway",
            "mount the host's /sys/fs/cgroup if in a container",
        ),
    }
}

async fn nvml(gpu: config::Gpu) -> Vec<Finding> {
    let looked = spawn_blocking(move || survey::survey(gpu.library.as_deref(), &gpu.cdi));
    match timeout(LIMIT, looked).await {
        Ok(Ok(Ok(survey))) => judge_nvml(&survey),
        Ok(Ok(Err(SurveyError::Absent(reason)))) => vec![warn(
            "nvml",
            reason,
            "install NVIDIA's driver, or set gpu.library; without a GPU there is nothing to account for",
        )],
        Ok(Ok(Err(SurveyError::Unusable(reason)))) => vec![fail(
            "nvml",
            reason,
            "see that the driver is loaded (nvidia-smi), matches its library, and that \
             /dev/nvidia* can be opened here",
        )],
        Ok(Err(error)) => vec![fail("nvml", error.to_string(), "report this as a bug")],
        Err(_) => vec![fail(
            "nvml",
            format!("the driver has not answered for {LIMIT:?}"),
            "look for Xid messages in the kernel's log; the GPU may need a reset",
        )],
    }
}

fn judge_nvml(survey: &survey::Survey) -> Vec<Finding> {
    let mut found = format!("{}, driver {}", survey.place, survey.driver);
    if survey.simulated {
        found.push_str(", simulated");
    }
    let library = if survey.gpus.is_empty() {
        let found = format!("{found}, lists no GPU");
        warn("nvml", found, "check that /dev/nvidia* exist")
    } else {
        ok("nvml", found)
    };
    let gpus = survey.gpus.iter().enumerate().map(|(index, gpu)| {
        let item = format!("gpu {index}");
        match gpu {
            Ok(gpu) => judge_gpu(item, gpu),
            Err(reason) => fail(
                item,
                reason,
                "check that /dev/nvidia* exist and are complete",
            ),
        }
    });
    std::iter::once(library).chain(gpus).collect()
}

fn judge_gpu(item: String, gpu: &Surveyed) -> Finding {
    let questions = [
        ("samples", &gpu.samples),
        ("process utilisation", &gpu.processes),
        ("process lists", &gpu.lists),
    ];
    let mut words: Vec<String> = vec![gpu.model.to_string()];
    words.extend(questions.iter().map(|(what, offer)| match offer {
        Offer::Yes => (*what).to_owned(),
        Offer::No => format!("no {what}"),
        Offer::Failed(error) => format!("{what} failed: {error}"),
    }));
    if let Some(instances) = &gpu.mig {
        let told = instances.iter().map(|(profile, measured)| {
            let lacks = if *measured { "" } else { " without a measure" };
            format!("{profile}{lacks}")
        });
        let told: Vec<String> = told.collect();
        let told = if told.is_empty() {
            "nothing".to_owned()
        } else {
            told.join(", ")
        };
        words.push(format!("divided by MIG into {told}"));
    }
    let found = words.join(", ");
    let failed = questions
        .iter()
        .any(|(_, offer)| matches!(offer, Offer::Failed(_)));
    if let Some(instances) = &gpu.mig {
        if instances.iter().all(|(_, measured)| *measured) && !instances.is_empty() {
            ok(item, found)
        } else {
            warn(
                item,
                found,
                "the driver has no busy time of processes under MIG, and activity only of GPU \
                 instances from Hopper on; what it has not is booked as unobserved",
            )
        }
    } else if failed {
        fail(item, found, "see the driver's log and permissions")
    } else if gpu.samples == Offer::No || gpu.processes == Offer::No {
        warn(
            item,
            found,
            "what the device does not offer is booked as unobserved, never as idle",
        )
    } else {
        ok(item, found)
    }
}

/// Checks every identity source, and adds a warning if none is available.
async fn names(config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut any = false;
    let limit = config.docker.timeout.0;
    if config.docker.is_on() {
        for (number, path) in config.docker.sockets.iter().enumerate() {
            let item = format!("docker {}", path.display());
            match look_at_socket(path) {
                PathKind::Socket => {
                    let answer = greeting::docker(path, limit).await;
                    any |= answer.is_ok();
                    findings.push(answered(item, answer));
                }
                // That the other default sockets are absent, too, is normal and not reported.
                PathKind::Absent if number > 0 => {}
                other => findings.push(other.finding(item, "where Docker does not run")),
            }
        }
    }
    let cri = config.cri.is_on().then_some(&config.cri.sockets);
    for path in cri.into_iter().flatten() {
        let item = format!("cri {}", path.display());
        findings.push(match look_at_socket(path) {
            PathKind::Socket => {
                let answer = greeting::cri(path, config.cri.timeout.0).await;
                any |= answer.is_ok();
                answered(item, answer)
            }
            // Each distribution has a place of its own, so most of these are absent.
            other => other.finding(item, "where no runtime listens there"),
        });
    }
    let (folders, found) = folders(config).await;
    findings.extend(folders);
    any |= found;
    if !any {
        findings.push(warn(
            "names",
            "no identity source knows the names of containers",
            "mount the runtime's socket, /var/log/pods and /var/log/containers; without them \
             containers are published by id",
        ));
    }
    findings
}

/// Whether the kubelet lists allocations.
async fn allocations(socket: &Path, limit: Duration) -> Finding {
    let item = format!("kubelet {}", socket.display());
    match look_at_socket(socket) {
        PathKind::Socket => match pod_resources::greet(socket, limit).await {
            Ok(containers) => ok(
                item,
                format!("lists its pods, {containers} containers with devices"),
            ),
            Err(reason) => warn(
                item,
                reason,
                "see whether the kubelet runs; without its list nobody knows which container was \
                 given which GPU",
            ),
        },
        other => other.finding(item, "without a kubelet"),
    }
}

fn answered(item: String, answer: Result<String, GreetingError>) -> Finding {
    match answer {
        Ok(name) => ok(item, format!("{name} answers")),
        // The containerd of Docker's packages has CRI switched off.
        Err(GreetingError::NoCri) => ok(
            item,
            "answers, with CRI switched off, which is normal if only Docker uses it",
        ),
        Err(error) => warn(
            item,
            chain(&error),
            "check that the runtime runs; gpuacct retries forever",
        ),
    }
}

/// The host's folders in which there may be names, and whether there is any.
async fn folders(config: &Config) -> (Vec<Finding>, bool) {
    type Row = (String, PathBuf, PathBuf, &'static str, &'static str);
    let mut rows: Vec<Row> = Vec::new();
    if config.bundle.enabled {
        let bundle = &config.bundle;
        for (paths, normal) in [
            (&bundle.containerd, "where this containerd does not run"),
            (
                &bundle.storage,
                "where neither CRI-O nor Podman keeps containers there",
            ),
            (&bundle.docker, "where Docker does not run"),
        ] {
            rows.extend(paths.iter().map(|path| {
                let what = "files of the runtime about its containers";
                (
                    "bundle".to_owned(),
                    bundle.host_root.clone(),
                    path.clone(),
                    what,
                    normal,
                )
            }));
        }
    }
    if config.kubelet_logs.enabled {
        let logs = &config.kubelet_logs;
        for (path, what) in [
            (&logs.pods, "names of pods"),
            (&logs.containers, "names of containers"),
        ] {
            let (root, path) = (logs.host_root.clone(), path.clone());
            rows.push(("kubelet".to_owned(), root, path, what, "without a kubelet"));
        }
    }
    let looked = spawn_blocking(move || {
        let mut any = false;
        let looked = rows.into_iter().map(|(source, root, path, what, normal)| {
            let item = format!("{source} {}", below(&root, &path).display());
            match greeting::folder(&root, &path) {
                Ok(true) => {
                    any = true;
                    ok(item, what)
                }
                Ok(false) => PathKind::Absent.finding(item, normal),
                Err(error) => warn(item, chain(&error), "give gpuacct read access"),
            }
        });
        (looked.collect(), any)
    });
    match timeout(LIMIT, looked).await {
        Ok(Ok(looked)) => looked,
        Ok(Err(error)) => {
            let defect = fail("folders", error.to_string(), "report this as a bug");
            (vec![defect], false)
        }
        Err(_) => {
            let found = format!("the disk has not answered for {LIMIT:?}");
            (
                vec![warn("folders", found, "look into the kernel's log")],
                false,
            )
        }
    }
}

/// Where this process sees a path of the host's.
fn below(host_root: &Path, path: &Path) -> PathBuf {
    host_root.join(path.strip_prefix("/").unwrap_or(path))
}

async fn port(what: &str, address: SocketAddr, agent: bool) -> Finding {
    let item = format!("{what} {address}");
    match super::outputs::bind(address).await {
        // `bind` takes another address on a kernel without IPv6.
        Ok(listener) => match listener.local_addr() {
            Ok(bound) if bound.is_ipv4() && address.is_ipv6() => {
                ok(item, format!("free as {bound}: this kernel has no IPv6"))
            }
            _ => ok(item, "free"),
        },
        Err(error) if error.source.kind() == ErrorKind::AddrInUse && agent => {
            ok(item, "taken, and an agent runs here")
        }
        Err(error) => fail(
            item,
            error.source.to_string(),
            "choose another address in prometheus.listen or prometheus.probe_listen, or stop the program that uses it",
        ),
    }
}

/// What protects `/metrics`, if something is to.
fn protection(section: &config::Prometheus) -> Option<Finding> {
    const ITEM: &str = "protection of /metrics";
    let files = super::outputs::protection(section);
    if files.is_empty() {
        return None;
    }
    Some(match files.check() {
        Ok(words) => ok(ITEM, words),
        Err(error) => fail(ITEM, chain(&error), AppError::Protection(error).remedy()),
    })
}

#[cfg(test)]
mod tests;
