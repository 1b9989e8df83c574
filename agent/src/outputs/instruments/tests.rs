//! What every format may rely on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::instrument::MAX_KEYS;
use super::sources::STATES;
use super::table::all_families;
use super::*;
use crate::core::amounts::{Engine, EngineSet};
use crate::core::input::{GpuInfo, SampleClocks};
use crate::core::model::{
    HostUnit, SourceState, UNRESOLVED, UnattributedReason, UnobservedReason, WallTime,
};
use crate::core::snapshot::{ContainerLabels, HostSeries, Snapshot};
use crate::outputs::counters::OutputCounters;
use crate::outputs::sample;

/// Remembers every point.
#[derive(Default)]
struct Everything(BTreeMap<&'static str, Vec<Vec<String>>>);

impl Sink for Everything {
    fn family(&mut self, instrument: &'static Instrument) {
        let before = self.0.insert(instrument.name, Vec::new());
        assert_eq!(before, None, "{} is in the table twice", instrument.name);
    }

    fn point(
        &mut self,
        instrument: &'static Instrument,
        labels: LabelValues<'_>,
        start: WallTime,
        _: Value,
    ) {
        assert!(
            instrument.kind != Kind::Counter || start.0 > 0,
            "{} has a counter without a start",
            instrument.name
        );
        self.0
            .get_mut(instrument.name)
            .expect("its family came first")
            .push(labels.iter().map(str::to_owned).collect());
    }
}

fn everything(snapshot: &Snapshot) -> (Everything, OutputCounters) {
    let counters = OutputCounters::default();
    let mut seen = Everything::default();
    let view = View {
        snapshot,
        agent: &sample::agent_status(),
        counters: &counters,
        opt_in: &OptIn {
            cadvisor: Some(DutyCycle::Device),
            dcgm: Some("node-7".to_owned()),
            pod_labels: vec!["team".to_owned(), "absent".to_owned()],
            owner_prefix: String::new(),
        },
    };
    write(&view, &mut seen);
    write_process(&view, &mut seen);
    (seen, counters)
}

fn check_every_series(seen: &Everything) {
    for instrument in all_families() {
        let series = &seen.0[instrument.name];
        let mut distinct = BTreeSet::new();
        for labels in series {
            assert_eq!(labels.len(), instrument.keys.len(), "{}", instrument.name);
            for (key, value) in instrument.keys.iter().zip(labels) {
                assert!(!value.is_empty(), "{}{{{key}}} is blank", instrument.name);
                assert!(value.len() <= MAX_LABEL_BYTES, "{}", instrument.name);
            }
            assert!(
                distinct.insert(labels),
                "{}{labels:?} twice",
                instrument.name
            );
        }
    }
}

#[test]
fn every_series_has_every_label_and_none_is_blank() {
    let (seen, counters) = everything(&sample::snapshot());
    check_every_series(&seen);
    for (name, series) in &seen.0 {
        assert!(!series.is_empty(), "the sample shows nothing of {name}");
    }
    assert_eq!(counters.labels_blank.get(), 0);
    assert_eq!(counters.labels_cut.get(), 0);
}

#[test]
fn blanks_from_upstream_are_mended_and_counted() {
    let mut snapshot = sample::snapshot();
    let blank = || "".into();
    snapshot.container_series[0].labels = Arc::new(ContainerLabels {
        namespace: blank(),
        pod: blank(),
        container: blank(),
        pod_uid: blank(),
        container_id: blank(),
    });
    snapshot.container_series[0].image = blank();
    snapshot.namespace_series[0].namespace = blank();
    snapshot.host_series[0].unit = HostUnit(blank());
    snapshot.gpus[0].gpu = GpuInfo {
        model: blank(),
        driver: blank(),
        ..snapshot.gpus[0].gpu.clone()
    };
    let (seen, counters) = everything(&snapshot);
    check_every_series(&seen);
    // Seven families of a container and one more with two engines: five each; info: six; two
    // of namespaces and one of hosts: one each; gpu info: two. cAdvisor's three and DCGM's three
    // show the model of the GPU with the other container on it.
    let expected = (7 + 2) * 5 + 6 + 2 + 1 + 2 + 3 + 3;
    assert_eq!(counters.labels_blank.get(), expected);
    assert_eq!(
        seen.0["gpuacct_host_gpu_busy_seconds_total"][0][0],
        UNRESOLVED
    );
}

#[test]
fn values_that_differ_only_behind_the_cut_stay_two_series() {
    let mut snapshot = sample::snapshot();
    let long = "\u{e9}".repeat(1 << 19);
    let series = snapshot.host_series[0].clone();
    snapshot.host_series = ["a", "b"]
        .map(|end| HostSeries {
            unit: HostUnit::from(format!("x{long}{end}").as_str()),
            ..series.clone()
        })
        .to_vec();
    let (seen, counters) = everything(&snapshot);
    check_every_series(&seen);
    assert_eq!(counters.labels_cut.get(), 2);
    let (again, _) = everything(&snapshot);
    assert_eq!(seen.0, again.0, "a cut value is the same every time");
}

#[test]
fn control_characters_do_not_go_out() {
    let mut snapshot = sample::snapshot();
    let series = snapshot.host_series[0].clone();
    snapshot.host_series = ["a\0b\u{1b}[31mc\u{85}d\ne", "a\u{1}b\u{1b}[31mc\u{85}d\ne"]
        .map(|unit| HostSeries {
            unit: HostUnit::from(unit),
            ..series.clone()
        })
        .to_vec();
    let (seen, counters) = everything(&snapshot);
    check_every_series(&seen);
    let unit = &seen.0["gpuacct_host_gpu_busy_seconds_total"][0][0];
    assert_eq!(unit.split_once('~').unwrap().0, "a b [31mc d\ne");
    assert_eq!(counters.labels_cut.get(), 2);
}

#[test]
fn every_reason_is_there_also_when_the_book_leaves_it_out() {
    let mut snapshot = sample::snapshot();
    snapshot.gpus.truncate(1);
    snapshot.gpus[0].unattributed.clear();
    snapshot.gpus[0].unobserved.clear();
    let (seen, _) = everything(&snapshot);
    assert_eq!(
        seen.0["gpuacct_gpu_unattributed_seconds_total"].len(),
        UnattributedReason::ALL.len()
    );
    assert_eq!(
        seen.0["gpuacct_gpu_unobserved_seconds_total"].len(),
        UnobservedReason::ALL.len()
    );
}

#[test]
fn a_container_on_two_gpus_has_one_info() {
    let (seen, _) = everything(&sample::snapshot());
    assert_eq!(seen.0["gpuacct_container_gpu_busy_seconds_total"].len(), 4);
    assert_eq!(seen.0["gpuacct_container_info"].len(), 3);
}

/// Neither a driver that does not tell of engines any more, nor one that is not asked yet after a
/// restart, ends a counter that was published.
#[test]
fn an_engine_is_shown_if_the_container_used_it_whatever_the_driver_tells_now() {
    let mut snapshot = sample::snapshot();
    snapshot.container_series.truncate(1);
    snapshot.container_series[0].engines = [Engine::Jpeg, Engine::Memory].into_iter().collect();
    snapshot.gpus[0].gpu.engines.clear();
    snapshot.gpus[0].clocks = snapshot.gpus[1].clocks.clone();
    let silent = |clocks: &SampleClocks| clocks.empty_call.is_some();
    assert!(snapshot.gpus[0].clocks.as_ref().is_some_and(silent));
    let (seen, _) = everything(&snapshot);
    let engines = seen.0["gpuacct_container_gpu_engine_busy_seconds_total"].iter();
    let engines: Vec<&str> = engines.map(|labels| &*labels[6]).collect();
    assert_eq!(engines, ["memory", "jpeg"]);
    snapshot.container_series[0].engines = EngineSet::default();
    let (seen, _) = everything(&snapshot);
    assert_eq!(
        seen.0["gpuacct_container_gpu_engine_busy_seconds_total"].len(),
        0
    );
}

#[test]
fn the_states_are_those_of_the_model() {
    let down = SourceState::Down {
        class: "".into(),
        reason: "".into(),
        next_retry: None,
    };
    let states = [
        SourceState::Up,
        SourceState::Absent,
        SourceState::Disabled,
        down,
    ];
    assert_eq!(states.each_ref().map(SourceState::as_str), STATES);
}

/// Prometheus' translation of OTLP names (`otlptranslator`, suffixes on, UTF-8 off), written
/// down once more: tokens of the name, the unit unless it is among them, `total` or `ratio`
/// last.
fn translate(instrument: &Instrument) -> String {
    let mut tokens: Vec<&str> = instrument
        .otlp
        .split(|c: char| !c.is_ascii_alphanumeric() && c != ':')
        .filter(|token| !token.is_empty())
        .collect();
    let ucum = instrument.unit.ucum();
    let unit = match ucum {
        "s" => "seconds",
        "By" => "bytes",
        "J" => "joules",
        "W" => "watts",
        "Cel" => "celsius",
        "Hz" => "hertz",
        "By/s" => "bytes_per_second",
        _ if ucum.contains('{') => "",
        "1" | "" => "",
        other => panic!("{other} is not in the rules written down here"),
    };
    if !unit.is_empty() && !tokens.contains(&unit) {
        tokens.push(unit);
    }
    if instrument.kind == Kind::Counter {
        tokens.retain(|token| *token != "total");
        tokens.push("total");
    }
    if ucum == "1" && instrument.kind == Kind::Gauge {
        tokens.retain(|token| *token != "ratio");
        tokens.push("ratio");
    }
    tokens.join("_")
}

#[test]
fn an_otlp_name_translates_to_the_scraped_one() {
    // Those of the process have another name in each of the two worlds.
    for instrument in families().chain(cadvisor::FAMILIES) {
        assert_eq!(translate(instrument), instrument.name);
    }
}

#[test]
fn names_units_and_kinds_agree() {
    for instrument in families() {
        let name = instrument.name;
        assert!(name.starts_with("gpuacct_"), "{name}");
        assert_eq!(name.ends_with("_total"), instrument.kind == Kind::Counter);
        assert_eq!(name.ends_with("_info"), instrument.kind == Kind::Info);
        let base = name.trim_end_matches("_total");
        if let Some(suffix) = instrument.unit.suffix() {
            assert!(base.ends_with(&format!("_{suffix}")), "{name}");
        }
        let distinct: BTreeSet<_> = instrument.keys.iter().collect();
        assert_eq!(distinct.len(), instrument.keys.len(), "{name}");
        assert!(instrument.help.ends_with('.'), "{name}");
    }
}

#[test]
fn the_page_of_metrics_is_the_table() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/METRICS.md");
    let page = metrics_markdown();
    if std::env::var_os("GPUACCT_UPDATE_DOCS").is_some() {
        std::fs::create_dir_all(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs")).unwrap();
        std::fs::write(path, &page).unwrap();
    }
    assert_eq!(
        std::fs::read_to_string(path).unwrap_or_default(),
        page,
        "docs/METRICS.md is stale: GPUACCT_UPDATE_DOCS=1 cargo test -p gpuacct"
    );
}

#[test]
fn no_family_has_more_keys_than_there_is_room_for() {
    for instrument in all_families() {
        assert!(instrument.keys.len() <= MAX_KEYS, "{}", instrument.name);
    }
}
