//! Families under the names of NVIDIA's dcgm-exporter, for dashboards, autoscalers and OpenCost, which
//! query these. Off unless configured.
//!
//! Names, units and labels are dcgm-exporter's. What differs is the figure: dcgm-exporter shows the
//! device's figure for each pod that shares a GPU, and these show each container's own. So a sum over
//! containers is the GPU's. A series is shown while its container lives and only once its container is
//! published. A GPU that no container uses has none here.
//!
//! Units: percent and mebibytes as DCGM has them, and a ratio.

use super::cadvisor::{Present, present};
use super::instrument::{Instrument, Kind, Points, Unit, Value, View};

const LABELS: &[&str] = &[
    "gpu",
    "UUID",
    "device",
    "modelName",
    "Hostname",
    "namespace",
    "pod",
    "container",
];

/// The families.
pub static FAMILIES: &[Instrument] = &[
    Instrument {
        name: "DCGM_FI_DEV_GPU_UTIL",
        otlp: "DCGM_FI_DEV_GPU_UTIL",
        kind: Kind::Gauge,
        unit: Unit::Count("{percent}"),
        help: "Percent of the last ten seconds in which the GPU was busy for the container. Under dcgm-exporter's name and labels; only with [dcgm] enabled.",
        keys: LABELS,
        read: |view, points| {
            write(view, points, |shown| {
                Some(Value::Ratio((share(shown) * 100.0).round()))
            });
        },
    },
    Instrument {
        name: "DCGM_FI_PROF_GR_ENGINE_ACTIVE",
        otlp: "DCGM_FI_PROF_GR_ENGINE_ACTIVE",
        kind: Kind::Gauge,
        unit: Unit::Count("{share}"),
        help: "Share of the last ten seconds in which the GPU was busy for the container, from 0 to 1. Under dcgm-exporter's name and labels; only with [dcgm] enabled.",
        keys: LABELS,
        read: |view, points| write(view, points, |shown| Some(Value::Ratio(share(shown)))),
    },
    Instrument {
        name: "DCGM_FI_DEV_FB_USED",
        otlp: "DCGM_FI_DEV_FB_USED",
        kind: Kind::Gauge,
        unit: Unit::Count("{mebibyte}"),
        help: "Device memory that the container uses, in MiB. Under dcgm-exporter's name and labels; only with [dcgm] enabled.",
        keys: LABELS,
        read: |view, points| {
            write(view, points, |shown| {
                shown.account.memory.map(|bytes| Value::Count(bytes >> 20))
            });
        },
    },
];

fn share(shown: &Present<'_>) -> f64 {
    // A share that is not a number is none.
    if shown.account.share.is_finite() {
        shown.account.share.clamp(0.0, 1.0)
    } else {
        0.0
    }
}

fn write(view: &View<'_>, points: &mut Points<'_>, value: fn(&Present<'_>) -> Option<Value>) {
    let Some(host_name) = &view.opt_in.dcgm else {
        return;
    };
    for shown in present(view.snapshot) {
        let Some(value) = value(&shown) else { continue };
        let gpu = &shown.book.gpu;
        let labels = &shown.series.labels;
        let values = [
            &gpu.index.to_string(),
            gpu.uuid.as_str(),
            &format!("nvidia{}", gpu.minor.unwrap_or(gpu.index)),
            &gpu.model,
            host_name,
            &labels.namespace,
            &labels.pod,
            &labels.container,
        ];
        points.put(&values, shown.series.start, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::model::WallTime;
    use crate::outputs::counters::OutputCounters;
    use crate::outputs::instruments::{self, LabelValues, OptIn, Sink};
    use crate::outputs::sample;

    #[derive(Default)]
    struct Seen(Vec<(&'static str, Value, Vec<String>)>);

    impl Sink for Seen {
        fn family(&mut self, _: &'static Instrument) {}

        fn point(
            &mut self,
            instrument: &'static Instrument,
            labels: LabelValues<'_>,
            _: WallTime,
            value: Value,
        ) {
            if instrument.keys == LABELS {
                let labels = labels.iter().map(str::to_owned).collect();
                self.0.push((instrument.name, value, labels));
            }
        }
    }

    fn seen(host_name: Option<&str>) -> Seen {
        let mut seen = Seen::default();
        let snapshot = sample::snapshot();
        let view = View {
            snapshot: &snapshot,
            agent: &sample::agent_status(),
            counters: &OutputCounters::default(),
            opt_in: &OptIn {
                dcgm: host_name.map(Into::into),
                ..OptIn::default()
            },
        };
        instruments::write(&view, &mut seen);
        seen
    }

    #[test]
    fn each_container_on_a_gpu_has_its_own_share() {
        let seen = seen(Some("node-7"));
        let of = |family: &str| -> Vec<(Value, &str)> {
            let points = seen.0.iter().filter(|(name, ..)| *name == family);
            points
                .map(|(_, value, labels)| (*value, &*labels[7]))
                .collect()
        };
        let utilization = of("DCGM_FI_DEV_GPU_UTIL");
        assert_eq!(utilization[0], (Value::Ratio(63.0), "trainer"));
        assert_eq!(utilization[1], (Value::Ratio(13.0), "jupyter"));
        let active = of("DCGM_FI_PROF_GR_ENGINE_ACTIVE");
        assert_eq!(active[0], (Value::Ratio(0.625), "trainer"));
        assert_eq!(
            of("DCGM_FI_DEV_FB_USED")[0],
            (Value::Count(1_024), "trainer")
        );
        let (.., labels) = &seen.0[0];
        let expected = [
            "0",
            sample::FIRST_GPU,
            "nvidia0",
            "NVIDIA H200",
            "node-7",
            "research",
            "train-0",
            "trainer",
        ];
        assert_eq!(labels[..], expected);
    }

    #[test]
    fn without_being_asked_there_are_none() {
        assert_eq!(seen(None).0, []);
    }
}
