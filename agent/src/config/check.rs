//! Refuses values that cannot work, with the key, what was found and what is allowed.

use std::time::Duration;

use reqwest::Url;
use reqwest::header::{HeaderName, HeaderValue};

use super::error::ConfigError;
use super::sections::{Bundle, Config};
use super::span::Span;
use crate::secrets;

/// Pod labels that are published at most: each is a series for each pod.
const MAX_POD_LABELS: usize = 16;

/// Refuses values that cannot work.
///
/// # Errors
///
/// The first such value.
pub(super) fn check(config: &Config) -> Result<(), ConfigError> {
    let ring = config.kernel.ring_bytes;
    let ring_allowed = ring.is_power_of_two() && (1 << 12..=1 << 26).contains(&ring);
    ensure(
        ring_allowed,
        "kernel.ring_bytes",
        ring,
        "a power of two from 4096 to 67108864",
    )?;
    let devices = &config.kernel.devices;
    ensure(
        devices.len() <= 8 && devices.iter().all(|name| !name.trim().is_empty()),
        "kernel.devices",
        format!("{devices:?}"),
        "at most 8 names, none empty",
    )?;
    let spans: [(&'static str, Span, u64, u64, &'static str); 13] = [
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
            "otlp.timeout",
            config.otlp.timeout,
            100,
            60_000,
            "100ms to 1m",
        ),
    ];
    for (key, span, least, most, allowed) in spans {
        let range = Duration::from_millis(least)..=Duration::from_millis(most);
        ensure(range.contains(&span.0), key, span, allowed)?;
    }
    let docker = config.docker.sockets.iter();
    let docker = docker.map(|path| ("docker.sockets", path));
    let cri = config.cri.sockets.iter().map(|path| ("cri.sockets", path));
    let sockets = docker.chain(cri);
    let others = [
        ("pod_resources.socket", &config.pod_resources.socket),
        ("socket.path", &config.socket.path),
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
    let labels = &config.publish.pod_labels;
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
    } = &config.bundle;
    let logs = &config.kubelet_logs;
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
    for resource in &config.pod_resources.resources {
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
    let store = &config.store.path;
    let allowed = "an absolute path";
    ensure(store.is_absolute(), "store.path", store.display(), allowed)?;
    ensure(
        config.store.max_size >= 8 << 20,
        "store.max_size",
        config.store.max_size,
        "8388608 or more",
    )?;
    if let Some(library) = &config.gpu.library {
        ensure(
            library.is_absolute(),
            "gpu.library",
            library.display(),
            "an absolute path",
        )?;
    }
    if let Some(endpoint) = &config.otlp.endpoint {
        let allowed = endpoint
            .strip_prefix("http://")
            .is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/'))
            // What is behind an `@` that does not end a user would be taken for the path.
            && Url::parse(endpoint).is_ok_and(|url| !url.path().contains('@'));
        let shown = secrets::shown(endpoint);
        ensure(allowed, "otlp.endpoint", shown, "http://HOST[:PORT]")?;
    }
    for (name, value) in &config.otlp.headers {
        let allowed =
            HeaderName::from_bytes(name.as_bytes()).is_ok() && HeaderValue::from_str(value).is_ok();
        // The value is not shown: it may be a secret.
        ensure(
            allowed,
            "otlp.headers",
            format!("{name:?} with a value"),
            "a header's name and a value without control characters",
        )?;
    }
    if let Some(name) = &config.otlp.node_name {
        ensure(
            !name.trim().is_empty(),
            "otlp.node_name",
            format!("{name:?}"),
            "a node's name",
        )?;
    }
    Ok(())
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
