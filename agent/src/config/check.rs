//! Names values that cannot work, with the key, what was found and what is expected.
//!
//! Nothing that passes keeps the agent from starting because of its configuration: what the agent
//! does with a value at its start is done here with the same functions.

use std::path::Path;
use std::time::Duration;

use super::check_otlp;
use super::key::cut;
use super::sections::{Bundle, Config, Prometheus, Socket};
use super::span::Span;
use crate::log_filter;

/// Pod labels that are published at most: each is a series for each pod.
const MAX_POD_LABELS: usize = 16;
/// The longest path of a socket that the agent connects to: `sun_path` without its closing zero.
const MAX_SOCKET_BYTES: usize = 107;

/// A value that cannot work.
pub(super) struct Wrong {
    /// The key, with its table.
    pub(super) key: &'static str,
    /// The name below the key, if that is a table.
    pub(super) name: Option<String>,
    /// The index of the element, if the key is a list and one element is wrong.
    pub(super) index: Option<usize>,
    /// What was found and what is expected. It shows no secret.
    pub(super) problem: String,
}

/// Where values go that cannot work.
struct Checks<'a> {
    take: &'a mut dyn FnMut(Wrong),
}

impl Checks<'_> {
    fn ensure(
        &mut self,
        holds: bool,
        key: &'static str,
        found: impl std::fmt::Display,
        expected: &str,
    ) {
        self.ensure_element(holds, key, None, found, expected);
    }

    fn ensure_element(
        &mut self,
        holds: bool,
        key: &'static str,
        index: Option<usize>,
        found: impl std::fmt::Display,
        expected: &str,
    ) {
        if !holds {
            let found = found.to_string();
            (self.take)(Wrong {
                key,
                name: None,
                index,
                problem: format!("found {}, expected {expected}", cut(&found)),
            });
        }
    }

    /// An absolute path that a file can have. Paths of flags may be no text, and the configuration
    /// could not be shown.
    fn ensure_path(&mut self, key: &'static str, index: Option<usize>, path: &Path) {
        let holds = path.is_absolute() && is_name(path);
        let expected = "an absolute path, in UTF-8 and without a zero byte";
        let expected = match is_name(path) {
            true => "an absolute path",
            false => expected,
        };
        self.ensure_element(holds, key, index, format!("{path:?}"), expected);
    }

    fn ensure_socket(&mut self, key: &'static str, index: Option<usize>, path: &Path, most: usize) {
        let holds = path.is_absolute() && is_name(path) && path.as_os_str().len() <= most;
        let expected = format!("an absolute path of at most {most} bytes");
        self.ensure_element(holds, key, index, format!("{path:?}"), &expected);
    }
}

/// Whether a path is text that the kernel takes.
fn is_name(path: &Path) -> bool {
    path.to_str().is_some_and(|path| !path.contains('\0'))
}

/// Names every value that cannot work.
pub(super) fn check(config: &Config, take: &mut dyn FnMut(Wrong)) {
    let mut checks = Checks { take };
    let ring = config.kernel.ring_bytes;
    let ring_allowed = ring.is_power_of_two() && (1 << 12..=1 << 26).contains(&ring);
    checks.ensure(
        ring_allowed,
        "kernel.ring_bytes",
        ring,
        "a power of two from 4096 to 67108864",
    );
    let devices = &config.kernel.devices;
    checks.ensure(
        devices.len() <= 8 && devices.iter().all(|name| !name.trim().is_empty()),
        "kernel.devices",
        format!("{devices:?}"),
        "at most 8 names, none empty",
    );
    let spans: [(&'static str, Span, u64, u64, &'static str); 15] = [
        (
            "procfs.interval",
            config.procfs.interval,
            1_000,
            3_600_000,
            "1s to 1h",
        ),
        // Beyond 5 s a few late polls would lose samples of the driver's ring. Below 100 ms the calls
        // cost more than the samples are worth: there are six a second.
        (
            "gpu.interval",
            config.gpu.interval,
            100,
            5_000,
            "100ms to 5s",
        ),
        (
            "gpu.lists_interval",
            config.gpu.lists_interval,
            1_000,
            60_000,
            "1s to 1m",
        ),
        (
            "gpu.health.interval",
            config.gpu.health.interval,
            1_000,
            600_000,
            "1s to 10m",
        ),
        (
            "docker.timeout",
            config.docker.timeout,
            100,
            60_000,
            "100ms to 1m",
        ),
        (
            "cri.timeout",
            config.cri.timeout,
            100,
            60_000,
            "100ms to 1m",
        ),
        (
            "pod_resources.timeout",
            config.pod_resources.timeout,
            100,
            60_000,
            "100ms to 1m",
        ),
        (
            "pod_resources.interval",
            config.pod_resources.interval,
            1_000,
            600_000,
            "1s to 10m",
        ),
        (
            "publish.grace",
            config.publish.grace,
            0,
            600_000,
            "0s to 10m",
        ),
        (
            "publish.zero_for",
            config.publish.zero_for,
            0,
            600_000,
            "0s to 10m",
        ),
        (
            "publish.keep_for",
            config.publish.keep_for,
            0,
            86_400_000,
            "0s to 24h",
        ),
        (
            "store.retention",
            config.store.retention,
            3_600_000,
            10 * 365 * 86_400_000,
            "1h to 87600h",
        ),
        (
            "otlp.interval",
            config.otlp.interval,
            1_000,
            3_600_000,
            "1s to 1h",
        ),
        (
            "records.interval",
            config.records.interval,
            1_000,
            3_600_000,
            "1s to 1h",
        ),
        (
            "otlp.timeout",
            config.otlp.timeout,
            100,
            60_000,
            "100ms to 1m",
        ),
    ];
    for (key, span, least, most, allowed) in spans {
        let range = Duration::from_millis(least)..=Duration::from_millis(most);
        checks.ensure(
            range.contains(&span.0),
            key,
            format!("{:?}", span.to_string()),
            allowed,
        );
    }
    for (key, paths) in [
        ("docker.sockets", &config.docker.sockets),
        ("cri.sockets", &config.cri.sockets),
    ] {
        for (index, path) in paths.iter().enumerate() {
            checks.ensure_socket(key, Some(index), path, MAX_SOCKET_BYTES);
        }
    }
    let kubelet = &config.pod_resources.socket;
    checks.ensure_socket("pod_resources.socket", None, kubelet, MAX_SOCKET_BYTES);
    // The agent makes its socket under a name that is one byte longer.
    let own = &config.socket.path;
    checks.ensure_socket("socket.path", None, own, MAX_SOCKET_BYTES - 1);
    let Socket { mode, group, .. } = &config.socket;
    checks.ensure(
        group.is_none() || mode.admits_group(),
        "socket.mode",
        format!("{:?}", mode.to_string()),
        "a mode that lets the group write, such as \"0660\", since socket.group is set",
    );
    let labels = &config.publish.pod_labels;
    checks.ensure(
        labels.len() <= MAX_POD_LABELS,
        "publish.pod_labels",
        format!("{} labels", labels.len()),
        "at most 16 labels",
    );
    for (index, label) in labels.iter().enumerate() {
        // A prefix of 253, a slash, a name of 63: Kubernetes' own bound of a key.
        let allowed = (1..=317).contains(&label.len())
            && label.bytes().all(|byte| matches!(byte, b'!'..=b'~'));
        checks.ensure_element(
            allowed,
            "publish.pod_labels",
            Some(index),
            format!("{label:?}"),
            "keys of Kubernetes labels",
        );
    }
    let Bundle {
        host_root,
        containerd,
        storage,
        docker,
        ..
    } = &config.bundle;
    let logs = &config.kubelet_logs;
    for (key, path) in [
        ("bundle.host_root", host_root),
        ("procfs.host_root", &config.procfs.host_root),
        ("kubelet_logs.host_root", &logs.host_root),
        ("kubelet_logs.containers", &logs.containers),
        ("kubelet_logs.pods", &logs.pods),
        ("store.path", &config.store.path),
        ("kernel_log.path", &config.kernel_log.path),
    ] {
        checks.ensure_path(key, None, path);
    }
    for (key, paths) in [
        ("bundle.containerd", containerd),
        ("bundle.storage", storage),
        ("bundle.docker", docker),
        ("gpu.cdi", &config.gpu.cdi),
    ] {
        for (index, path) in paths.iter().enumerate() {
            checks.ensure_path(key, Some(index), path);
        }
    }
    if let Some(library) = &config.gpu.library {
        checks.ensure_path("gpu.library", None, library);
    }
    prometheus(&config.prometheus, &mut checks);
    for (index, resource) in config.pod_resources.resources.iter().enumerate() {
        let (domain, name) = resource.split_once('/').unwrap_or((resource, ""));
        let allowed = !domain.is_empty()
            && !name.contains('/')
            && !resource.contains(|c: char| c.is_whitespace() || c.is_control());
        checks.ensure_element(
            allowed,
            "pod_resources.resources",
            Some(index),
            format!("{resource:?}"),
            "a resource's name, or a domain and a slash",
        );
    }
    checks.ensure(
        config.store.max_size >= 8 << 20,
        "store.max_size",
        config.store.max_size,
        "8388608 or more",
    );
    checks.ensure(
        !config.records.enabled || config.store.enabled,
        "records.enabled",
        config.records.enabled,
        "false, since store.enabled is false: records are kept in the store until a receiver has them",
    );
    let mut take = |key, name, problem| {
        (checks.take)(Wrong {
            key,
            name,
            index: None,
            problem,
        });
    };
    check_otlp::check(&config.otlp, &mut take);
    check_otlp::records(&config.records, &config.otlp, &mut take);
    if let Some(name) = &config.otlp.node_name {
        checks.ensure(
            !name.trim().is_empty(),
            "otlp.node_name",
            format!("{name:?}"),
            "a node's name",
        );
    }
    let level = &config.log.level;
    let holds = log_filter::filter(level).is_ok();
    checks.ensure(
        holds,
        "log.level",
        format!("{level:?}"),
        log_filter::ALLOWED,
    );
}

/// Checks the names and files of `/metrics`. What is in the files is checked where they are read.
fn prometheus(section: &Prometheus, checks: &mut Checks<'_>) {
    for (key, path) in [
        ("prometheus.web_config_file", &section.web_config_file),
        ("prometheus.bearer_token_file", &section.bearer_token_file),
    ] {
        if let Some(path) = path {
            checks.ensure_path(key, None, path);
        }
    }
    let prefix = &section.owner_prefix;
    let is_letter = |byte: &u8| byte.is_ascii_alphabetic() || *byte == b'_';
    let begins_well = prefix.as_bytes().first().is_none_or(is_letter);
    let holds = begins_well
        && !prefix.starts_with("__")
        // The keys of pods' labels begin with this, and one of them may be `label_namespace`.
        && !prefix.starts_with("label_")
        && prefix.len() <= 63
        && prefix
            .bytes()
            .all(|byte| is_letter(&byte) || byte.is_ascii_digit());
    checks.ensure(
        holds,
        "prometheus.owner_prefix",
        format!("{prefix:?}"),
        "the beginning of a label key, such as \"owner_\": letters, digits and underscores, 63 at most, and not \"label_\"",
    );
}
