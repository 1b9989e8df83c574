//! Names values of OTLP's section that cannot work.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::header::{HeaderName, HeaderValue};
use url::Url;

use super::key::cut;
use super::otlp::{Otlp, OtlpKind};
use super::otlp_signal::OtlpTls;
use super::records::Records;
use crate::receiver::Receiver;
use crate::secrets;

/// Takes a key, a name below it if that is a table, and what was found and what is expected.
type Take<'a> = dyn FnMut(&'static str, Option<String>, String) + 'a;

/// Resource attributes at most: they are in every message.
const MAX_ATTRIBUTES: usize = 64;

/// The keys of what can be set for all signals and for one.
struct Keys {
    endpoint: &'static str,
    timeout: &'static str,
    headers: &'static str,
    header_files: &'static str,
    ca_file: &'static str,
    cert_file: &'static str,
    key_file: &'static str,
    server_name: &'static str,
}

const ALL: Keys = Keys {
    endpoint: "otlp.endpoint",
    timeout: "otlp.timeout",
    headers: "otlp.headers",
    header_files: "otlp.header_files",
    ca_file: "otlp.tls.ca_file",
    cert_file: "otlp.tls.cert_file",
    key_file: "otlp.tls.key_file",
    server_name: "otlp.tls.server_name",
};
const METRICS: Keys = Keys {
    endpoint: "otlp.metrics.endpoint",
    timeout: "otlp.metrics.timeout",
    headers: "otlp.metrics.headers",
    header_files: "otlp.metrics.header_files",
    ca_file: "otlp.metrics.tls.ca_file",
    cert_file: "otlp.metrics.tls.cert_file",
    key_file: "otlp.metrics.tls.key_file",
    server_name: "otlp.metrics.tls.server_name",
};
const LOGS: Keys = Keys {
    endpoint: "otlp.logs.endpoint",
    timeout: "otlp.logs.timeout",
    headers: "otlp.logs.headers",
    header_files: "otlp.logs.header_files",
    ca_file: "otlp.logs.tls.ca_file",
    cert_file: "otlp.logs.tls.cert_file",
    key_file: "otlp.logs.tls.key_file",
    server_name: "otlp.logs.tls.server_name",
};

/// Names every value of OTLP's section that cannot work.
pub(super) fn check(otlp: &Otlp, take: &mut Take<'_>) {
    // A header without an endpoint is checked, too: the endpoint may come later.
    let mut sound = headers(&ALL, &otlp.headers, &otlp.header_files, take);
    tls(&ALL, &otlp.tls, take);
    let attributes = &otlp.resource_attributes;
    let holds = attributes.len() <= MAX_ATTRIBUTES && attributes.keys().all(|key| !key.is_empty());
    let expected = "at most 64 attributes, each with a name";
    let found = format!("{} attributes", attributes.len());
    ensure(take, holds, "otlp.resource_attributes", &found, expected);
    if let Some(name) = &otlp.service_name {
        let holds = !name.trim().is_empty();
        ensure(
            take,
            holds,
            "otlp.service_name",
            &format!("{name:?}"),
            "a name",
        );
    }
    let empty = (BTreeMap::new(), BTreeMap::new());
    for (keys, kind) in [(&METRICS, OtlpKind::Metrics), (&LOGS, OtlpKind::Logs)] {
        let own = otlp.signal(kind);
        let (values, files) = (own.headers.as_ref(), own.header_files.as_ref());
        let (values, files) = (values.unwrap_or(&empty.0), files.unwrap_or(&empty.1));
        sound &= headers(keys, values, files, take);
        if let Some(files) = &own.tls {
            tls(keys, files, take);
        }
        if let Some(span) = own.timeout {
            let range = Duration::from_millis(100)..=Duration::from_secs(60);
            let found = format!("{:?}", span.to_string());
            ensure(
                take,
                range.contains(&span.0),
                keys.timeout,
                &found,
                "100ms to 1m",
            );
        }
        if let Some(address) = &own.endpoint {
            endpoint(
                keys.endpoint,
                address,
                otlp.receiver(kind).filter(|_| sound),
                take,
            );
        }
    }
    if let Some(address) = &otlp.endpoint {
        for kind in [OtlpKind::Metrics, OtlpKind::Logs] {
            // With an endpoint of its own it has been checked.
            if otlp.signal(kind).endpoint.is_none() {
                endpoint(
                    ALL.endpoint,
                    address,
                    otlp.receiver(kind).filter(|_| sound),
                    take,
                );
                break;
            }
        }
    }
}

/// Checks the address of the usage records. What is wrong with the headers is said of the section that
/// has them.
pub(super) fn records(records: &Records, otlp: &Otlp, take: &mut Take<'_>) {
    if let Some(address) = &records.endpoint {
        let mut otlp = otlp.clone();
        otlp.headers.clear();
        otlp.logs.headers = None;
        endpoint("records.endpoint", address, records.receiver(&otlp), take);
    }
}

/// Checks an address. With a header that cannot be sent the receiver cannot be checked further.
fn endpoint(key: &'static str, address: &str, receiver: Option<Receiver>, take: &mut Take<'_>) {
    let rest = ["http://", "https://"]
        .iter()
        .find_map(|scheme| address.strip_prefix(scheme));
    let has_host = rest.is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/'))
        // What is behind an `@` that does not end a user would be taken for the path.
        && Url::parse(address).is_ok_and(|url| !url.path().contains('@'));
    let is_usable = receiver.is_none_or(|receiver| receiver.check().is_ok());
    let shown = format!("{:?}", secrets::shown(address));
    ensure(
        take,
        has_host && is_usable,
        key,
        &shown,
        "http://HOST[:PORT] or https://HOST[:PORT]",
    );
}

/// Checks headers. Says whether all can be sent.
fn headers(
    keys: &Keys,
    values: &BTreeMap<String, String>,
    files: &BTreeMap<String, PathBuf>,
    take: &mut Take<'_>,
) -> bool {
    let is_name = |name: &str| HeaderName::from_bytes(name.as_bytes()).is_ok();
    let mut are_sound = true;
    // The value is not shown, since it may be a secret. Nor is what is no name: it may be name and
    // value.
    let mut wrong = |key, name: &str, expected: &str| {
        are_sound = false;
        take(
            key,
            is_name(name).then(|| name.to_owned()),
            expected.to_owned(),
        );
    };
    for (name, value) in values {
        if !is_name(name) || HeaderValue::from_str(value).is_err() {
            let expected = "expected a header's name and a value without control characters";
            wrong(keys.headers, name, expected);
        }
    }
    for (name, path) in files {
        if !is_name(name) || !path.is_absolute() || path.to_str().is_none() {
            let expected =
                "expected a header's name and the absolute path of a file with its value";
            wrong(keys.header_files, name, expected);
        } else if values.keys().any(|other| other.eq_ignore_ascii_case(name)) {
            wrong(
                keys.header_files,
                name,
                "the same header is among the headers with a value",
            );
        }
    }
    are_sound
}

fn tls(keys: &Keys, files: &OtlpTls, take: &mut Take<'_>) {
    for (key, path) in [
        (keys.ca_file, &files.ca_file),
        (keys.cert_file, &files.cert_file),
        (keys.key_file, &files.key_file),
    ] {
        if let Some(path) = path {
            let holds =
                path.is_absolute() && path.to_str().is_some_and(|path| !path.contains('\0'));
            ensure(take, holds, key, &shown(path), "an absolute path");
        }
    }
    match (&files.cert_file, &files.key_file) {
        (Some(path), None) => {
            let expected = "the file of its key in key_file, too";
            ensure(take, false, keys.cert_file, &shown(path), expected);
        }
        (None, Some(path)) => {
            let expected = "the file of its certificate in cert_file, too";
            ensure(take, false, keys.key_file, &shown(path), expected);
        }
        _ => {}
    }
    if let Some(name) = &files.server_name {
        let expected = "a host's name or an IP address";
        let holds = Receiver::is_server_name(name);
        ensure(
            take,
            holds,
            keys.server_name,
            &format!("{name:?}"),
            expected,
        );
    }
}

fn shown(path: &Path) -> String {
    format!("{path:?}")
}

fn ensure(take: &mut Take<'_>, holds: bool, key: &'static str, found: &str, expected: &str) {
    if !holds {
        take(
            key,
            None,
            format!("found {}, expected {expected}", cut(found)),
        );
    }
}
