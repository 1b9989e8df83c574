//! Targets whose input is what is read: a text, or a block of bytes.

use gpuacct::config::Config;
use gpuacct::core::cgroup_path;
use gpuacct::core::replay::replay;
use gpuacct::report::hour::hour_of;
use gpuacct::report::prices::{Prices, Whose};
use gpuacct::report::range::{Asked, Moment};
use gpuacct::report::zone::Zone;
use gpuacct::sources::identity;
use gpuacct::sources::kernel::btf::KernelTypes;
use gpuacct::sources::kernel::decode::decode;
use jiff::Timestamp;

/// The input as text; bytes that are none are replaced, as most readers do.
fn text(data: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(data)
}

pub(crate) fn ring_record(data: &[u8]) {
    let _ = decode(data);
}

pub(crate) fn cgroup_path(data: &[u8]) {
    let text = text(data);
    let _ = cgroup_path::parse(&text);
    let _ = cgroup_path::as_host(&text);
    let _ = cgroup_path::is_users_own(&text);
    let lines = text
        .lines()
        .zip(0..)
        .map(|(path, hierarchy)| (hierarchy, path));
    let _ = format!("{:?}", cgroup_path::resolve(lines));
}

pub(crate) fn config(data: &[u8]) {
    if let Ok(config) = Config::parse(&text(data), "fuzz.toml") {
        let secrets = config.secrets();
        let _ = format!("{secrets:?}");
        let shown = config
            .redacted()
            .to_toml()
            .expect("what was read can be written");
        Config::parse(&shown, "shown.toml").expect("what is written can be read");
    }
}

pub(crate) fn prices(data: &[u8]) {
    if let Ok(prices) = Prices::parse(&text(data), "fuzz.toml") {
        let labels = [("team".into(), "vision".into())];
        let whose = Whose {
            node: "gpu-7",
            cluster: "east",
            labels: &labels,
        };
        let _ = prices.of(
            &whose,
            "NVIDIA H100",
            "GPU-7c8e1f02-9a4b-4d5e-8f60-112233445566",
        );
        let _ = prices.of_instance(&whose, "NVIDIA H100", "1g.10gb", "MIG-7c8e1f02");
    }
}

pub(crate) fn budgets(data: &[u8]) {
    if let Ok(budgets) = gpuacct::budgets::parse(&text(data), "fuzz.toml") {
        gpuacct::budgets::rules::render(&budgets, None).expect("what was read can be written");
    }
}

pub(crate) fn range(data: &[u8]) {
    let now = Timestamp::from_second(1_790_000_000).expect("a time");
    let text = text(data);
    let (since, until) = text.split_once('\n').unwrap_or((&text, ""));
    let until = (!until.is_empty()).then(|| until.parse::<Moment>());
    if let (Ok(since), Ok(until)) = (since.parse::<Moment>(), until.transpose()) {
        for zone in [
            Zone::UTC,
            "Europe/Berlin".parse().expect("it is compiled in"),
        ] {
            let Ok(asked) = Asked::new(since, until, &zone, now) else {
                continue;
            };
            let hours = asked.hours();
            assert!(hours.start < hours.end, "{hours:?}");
            let _ = zone.names(hours.start);
            let _ = asked.outside(hour_of(now), now, now);
        }
    }
}

pub(crate) fn device_id(data: &[u8]) {
    identity::fuzz_device_id(&text(data));
}

pub(crate) fn kubelet_log(data: &[u8]) {
    identity::kubelet_logs::fuzz(&text(data));
}

pub(crate) fn btf(data: &[u8]) {
    if let Ok(types) = KernelTypes::parse(data) {
        for structure in ["task_struct", "outer", "knot", "a", ""] {
            for member in ["pid", "x", "deep", ""] {
                let _ = types.member_offset(structure, &[member]);
                let _ = types.member_offset(structure, &[member, "x"]);
            }
        }
        let _ = types.enumerator("number", "second");
        let _ = types.has_typedef("btf_trace_tick");
    }
}

pub(crate) fn recording(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    // Who can write a recording can write anything into it: the books need not balance, but nothing
    // may panic.
    let _ = replay(text, drop);
}
