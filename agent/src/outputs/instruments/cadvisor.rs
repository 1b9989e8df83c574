//! The three families that cAdvisor published for accelerators until 2022, for dashboards and
//! alerts that were built on them. Off unless configured.
//!
//! Names, units and labels are cAdvisor's, old names (`pod_name`) and new ones (`pod`) alike; what
//! differs is that none of them is ever blank. `id` is the cgroup's path, `name` what the runtime calls
//! the container: Docker and CRI-O by a name (`k8s_…` for the kubelet's), containerd by the id. A
//! series is shown while its container lives and only
//! once its container is published, under the names that were published.
//!
//! What they mean is cAdvisor's as well: memory is the device's, and so is the duty cycle, so that
//! two containers on one GPU show the same figure twice and a sum over containers is no sum of
//! anything. `duty_cycle = "container"` gives each container its own share instead. Bills are made
//! from `gpuacct_namespace_gpu_busy_seconds_total`.
//!
//! Units: percent, whole as NVML's are, and bytes. Nowhere else does the agent publish percent.

use std::borrow::Cow;
use std::collections::HashMap;

use super::instrument::{DutyCycle, Instrument, Kind, Points, Unit, Value, View};
use super::labels::MAX_LABEL_BYTES;
use crate::core::model::{GpuUuid, NONE, UNRESOLVED};
use crate::core::snapshot::{
    Attribution, ContainerAccount, ContainerLabels, ContainerSeries, GpuBook, Snapshot,
};

const LABELS: &[&str] = &[
    "make",
    "model",
    "acc_id",
    "id",
    "name",
    "image",
    "container_name",
    "pod_name",
    "namespace",
    "container",
    "pod",
];

/// The families, in the order in which cAdvisor had them.
pub static FAMILIES: &[Instrument] = &[
    Instrument {
        name: "container_accelerator_memory_total_bytes",
        otlp: "container.accelerator.memory_total",
        kind: Kind::Gauge,
        unit: Unit::Bytes,
        help: "Memory that the accelerator has. As cAdvisor had it; only with [cadvisor] enabled.",
        keys: LABELS,
        read: |view, points| {
            write(view, points, |shown| {
                shown.book.gpu.memory_total.map(Value::Count)
            });
        },
    },
    Instrument {
        name: "container_accelerator_memory_used_bytes",
        otlp: "container.accelerator.memory_used",
        kind: Kind::Gauge,
        unit: Unit::Bytes,
        help: "Memory of the accelerator in use by everyone; a container's own is gpuacct_container_gpu_memory_bytes. As cAdvisor had it; only with [cadvisor] enabled.",
        keys: LABELS,
        read: |view, points| {
            write(view, points, |shown| {
                shown.book.memory_used.map(Value::Count)
            });
        },
    },
    Instrument {
        name: "container_accelerator_duty_cycle",
        otlp: "container.accelerator.duty_cycle",
        kind: Kind::Gauge,
        unit: Unit::Count("{percent}"),
        help: "Percent of time during which the accelerator was busy: by everyone over the last minute as cAdvisor had it, or by the container over the last ten seconds where [cadvisor] duty_cycle is \"container\". Only with [cadvisor] enabled.",
        keys: LABELS,
        read: |view, points| {
            write(view, points, |shown| {
                let share = match shown.duty_cycle {
                    DutyCycle::Device => shown.book.utilization,
                    DutyCycle::Container => Some(shown.account.share),
                };
                share.map(percent)
            });
        },
    },
];

/// A container on a GPU, as it is shown now.
struct Shown<'a> {
    duty_cycle: DutyCycle,
    account: &'a ContainerAccount,
    book: &'a GpuBook,
}

/// A live and published container on a GPU.
pub(super) struct Present<'a> {
    pub(super) account: &'a ContainerAccount,
    /// What is published of it.
    pub(super) series: &'a ContainerSeries,
    pub(super) book: &'a GpuBook,
}

/// Each live and published container on each GPU.
pub(super) fn present(snapshot: &Snapshot) -> impl Iterator<Item = Present<'_>> {
    let mut published: HashMap<_, &ContainerSeries> = HashMap::new();
    for series in &snapshot.container_series {
        let known = published.entry(key(&series.labels, &series.gpu));
        let known = known.or_insert(series);
        // The series under the ids ends once there are names.
        if &*known.labels.namespace == UNRESOLVED {
            *known = series;
        }
    }
    let accounts = snapshot.accounts.iter();
    accounts.filter_map(move |account| {
        if account.ended || account.attribution == Attribution::Held {
            return None;
        }
        let series = published.get(&key(&account.labels, &account.gpu))?;
        let book = snapshot.gpus.iter().find(|b| b.gpu.uuid == account.gpu)?;
        Some(Present {
            account,
            series,
            book,
        })
    })
}

/// Writes a point for each of them where there is a value.
fn write(view: &View<'_>, points: &mut Points<'_>, value: fn(&Shown<'_>) -> Option<Value>) {
    let Some(duty_cycle) = view.opt_in.cadvisor else {
        return;
    };
    for Present {
        account,
        series,
        book,
    } in present(view.snapshot)
    {
        let shown = Shown {
            duty_cycle,
            account,
            book,
        };
        if let Some(value) = value(&shown) {
            let ContainerLabels {
                namespace,
                pod,
                container,
                ..
            } = &*series.labels;
            let labels = [
                "nvidia",
                &book.gpu.model,
                series.gpu.as_str(),
                &id(account, &series.labels),
                name(account, &series.labels),
                &series.image,
                container,
                pod,
                namespace,
                container,
                pod,
            ];
            points.put(&labels, series.start, value);
        }
    }
}

/// What stays the same when a container gets its names. A pod's own processes have no container id.
fn key<'a>(labels: &'a ContainerLabels, gpu: &'a GpuUuid) -> (&'a str, &'a str, &'a GpuUuid) {
    let pod_uid = if &*labels.container_id == NONE {
        &*labels.pod_uid
    } else {
        ""
    };
    (&labels.container_id, pod_uid, gpu)
}

/// cAdvisor's `id` is the cgroup's path. Until a process of it is seen after a restart, and where it is
/// too long for a label, it is what every driver and layout has in common.
fn id<'a>(account: &'a ContainerAccount, labels: &ContainerLabels) -> Cow<'a, str> {
    if let Some(path) = account.cgroup.as_deref()
        && path.len() <= MAX_LABEL_BYTES
    {
        return path.into();
    }
    let parts = [("pod", &labels.pod_uid), ("", &labels.container_id)];
    let path: String = parts
        .into_iter()
        .filter(|(_, part)| !matches!(&***part, "" | NONE | UNRESOLVED))
        .map(|(prefix, part)| format!("/{prefix}{part}"))
        .collect();
    if path.is_empty() {
        UNRESOLVED.into()
    } else {
        path.into()
    }
}

/// cAdvisor's `name` is the first name that the runtime's handler knew: Docker's, CRI-O's or Podman's
/// own one, which for a pod's container begins with `k8s_` and names pod, namespace, uid and attempt;
/// containerd's is the id. A bare id below a pod's cgroup is Docker's or containerd's, and only Docker
/// has such names.
fn name<'a>(account: &'a ContainerAccount, labels: &'a ContainerLabels) -> &'a str {
    if &*labels.pod == NONE {
        return &labels.container;
    }
    let own = account.own_name.as_deref().filter(|own| {
        own.starts_with("k8s_") || matches!(&*account.runtime, "docker" | "cri-o" | "podman")
    });
    own.unwrap_or(&labels.container_id)
}

#[expect(
    clippy::cast_sign_loss,
    reason = "clamped to 0..=100; a share that is not a number becomes 0"
)]
fn percent(share: f64) -> Value {
    Value::Count((share.clamp(0.0, 1.0) * 100.0).round() as u64)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::core::model::WallTime;
    use crate::outputs::counters::OutputCounters;
    use crate::outputs::instruments::OptIn;
    use crate::outputs::instruments::{self, LabelValues, Sink};
    use crate::outputs::sample;

    /// Remembers what was written of these families: (family, value, labels).
    #[derive(Default)]
    struct Seen(Vec<(String, u64, Vec<String>)>);

    impl Sink for Seen {
        fn family(&mut self, instrument: &'static Instrument) {
            if FAMILIES.iter().any(|family| family.name == instrument.name) {
                self.0.push((instrument.name.to_owned(), 0, Vec::new()));
            }
        }

        fn point(
            &mut self,
            instrument: &'static Instrument,
            labels: LabelValues<'_>,
            _: WallTime,
            value: Value,
        ) {
            if let (true, Value::Count(value)) = (instrument.keys == LABELS, value) {
                let labels = labels.iter().map(str::to_owned).collect();
                self.0.push((instrument.name.to_owned(), value, labels));
            }
        }
    }

    fn seen(snapshot: &Snapshot, cadvisor: Option<DutyCycle>) -> Seen {
        let counters = OutputCounters::default();
        let mut seen = Seen::default();
        let view = View {
            snapshot,
            agent: &sample::agent_status(),
            counters: &counters,
            opt_in: &OptIn {
                cadvisor,
                ..OptIn::default()
            },
        };
        instruments::write(&view, &mut seen);
        assert_eq!(counters.labels_blank.get(), 0);
        seen
    }

    fn points(snapshot: &Snapshot, duty_cycle: DutyCycle, of: &str) -> Vec<(u64, Vec<String>)> {
        let name = format!("container_accelerator_{of}");
        let seen = seen(snapshot, Some(duty_cycle)).0.into_iter();
        seen.filter(|(family, _, labels)| *family == name && !labels.is_empty())
            .map(|(_, value, labels)| (value, labels))
            .collect()
    }

    #[test]
    fn off_there_is_not_even_a_heading() {
        assert!(seen(&sample::snapshot(), None).0.is_empty());
        let headings = seen(&Snapshot::default(), Some(DutyCycle::Device)).0;
        assert_eq!(headings.len(), FAMILIES.len());
    }

    #[test]
    fn every_live_published_container_has_every_label_of_cadvisors() {
        let snapshot = sample::snapshot();
        let points = points(&snapshot, DutyCycle::Device, "duty_cycle");
        // The held one is not published, the nameless one has ended.
        assert_eq!(points.len(), 2);
        let (value, trainer) = points
            .iter()
            .find(|(_, labels)| labels[9] == "trainer")
            .unwrap();
        let id = "4c01db0b339cccdd1f7a3b0f2e3c4d5e6f708192a3b4c5d6e7f8091a2b3c4d5e";
        let pod = "/kubepods/burstable/pod9d3f3c1e-6f7d-4b4e-9a53-0c6a4f0b8e21";
        let path = format!("{pod}/{id}");
        let expected = [
            ("make", "nvidia"),
            ("model", "NVIDIA H200"),
            ("acc_id", sample::FIRST_GPU),
            ("id", &path),
            ("name", "k8s_trainer"),
            ("image", "registry.example/team/image:1.2"),
            ("container_name", "trainer"),
            ("pod_name", "train-0"),
            ("namespace", "research"),
            ("container", "trainer"),
            ("pod", "train-0"),
        ];
        let found: Vec<(&str, &str)> = LABELS
            .iter()
            .copied()
            .zip(trainer.iter().map(String::as_str))
            .collect();
        assert_eq!(found, expected);
        assert_eq!(*value, 75);
        let plain = points.iter().find(|(_, labels)| labels[9] == "jupyter");
        let plain = &plain.unwrap().1;
        assert_eq!(plain[3], format!("/docker/{}", "aa55".repeat(16)));
        assert_eq!((&*plain[4], &*plain[7]), ("jupyter", NONE));
    }

    #[test]
    fn the_duty_cycle_is_the_devices_or_the_containers_and_memory_the_devices() {
        let snapshot = sample::snapshot();
        let values = |duty_cycle, of| -> Vec<u64> {
            let points = points(&snapshot, duty_cycle, of);
            points.into_iter().map(|(value, _)| value).collect()
        };
        assert_eq!(values(DutyCycle::Device, "duty_cycle"), [75, 75]);
        // 0.625 and 0.125.
        assert_eq!(values(DutyCycle::Container, "duty_cycle"), [63, 13]);
        for duty_cycle in [DutyCycle::Device, DutyCycle::Container] {
            assert_eq!(values(duty_cycle, "memory_used_bytes"), [12 << 30; 2]);
            assert_eq!(values(duty_cycle, "memory_total_bytes"), [141 << 30; 2]);
        }
    }

    #[test]
    fn what_is_not_measured_is_left_out() {
        let mut snapshot = sample::snapshot();
        for book in &mut snapshot.gpus {
            book.utilization = None;
            book.memory_used = None;
            book.gpu.memory_total = None;
        }
        for of in ["duty_cycle", "memory_used_bytes", "memory_total_bytes"] {
            assert!(points(&snapshot, DutyCycle::Device, of).is_empty(), "{of}");
        }
    }

    #[test]
    fn a_container_that_got_its_names_late_is_shown_once() {
        let mut snapshot = sample::snapshot();
        let named = snapshot.container_series[0].clone();
        let mut nameless = named.clone();
        let labels = Arc::make_mut(&mut nameless.labels);
        for label in [
            &mut labels.namespace,
            &mut labels.pod,
            &mut labels.container,
        ] {
            *label = UNRESOLVED.into();
        }
        for order in [[&named, &nameless], [&nameless, &named]] {
            snapshot.container_series = order.map(Clone::clone).to_vec();
            let points = points(&snapshot, DutyCycle::Device, "duty_cycle");
            assert_eq!(points.len(), 1);
            assert_eq!(points[0].1[8], "research");
        }
    }

    /// An account of the sample, with what of it `id` and `name` look at.
    fn looked_at(
        pod: &str,
        ids: (&str, &str),
        runtime: &str,
        cgroup: Option<&str>,
        own_name: Option<&str>,
    ) -> ContainerAccount {
        ContainerAccount {
            labels: Arc::new(ContainerLabels {
                namespace: pod.into(),
                pod: pod.into(),
                container: "main".into(),
                pod_uid: ids.0.into(),
                container_id: ids.1.into(),
            }),
            runtime: runtime.into(),
            cgroup: cgroup.map(Into::into),
            own_name: own_name.map(Into::into),
            ..sample::snapshot().accounts[0].clone()
        }
    }

    #[test]
    fn an_id_is_the_cgroups_path_or_what_is_known_of_it_and_never_blank() {
        let longest = format!("/{}", "x".repeat(MAX_LABEL_BYTES - 1));
        let too_long = format!("{longest}x");
        let slice = "/kubepods.slice/kubepods-podu.slice/cri-containerd-c.scope";
        for (cgroup, ids, expected) in [
            (
                Some("/kubepods/burstable/podu/c"),
                ("u", "c"),
                "/kubepods/burstable/podu/c",
            ),
            (Some(slice), ("u", "c"), slice),
            (Some(&*longest), ("u", "c"), &*longest),
            // It would be cut, and say neither the path nor the container.
            (Some(&*too_long), ("u", "c"), "/podu/c"),
            (None, ("u", "c"), "/podu/c"),
            (None, ("u", NONE), "/podu"),
            (None, (NONE, "c"), "/c"),
            (None, (UNRESOLVED, "c"), "/c"),
            (None, (UNRESOLVED, NONE), UNRESOLVED),
            (None, ("", ""), UNRESOLVED),
        ] {
            let account = looked_at("p", ids, "docker", cgroup, None);
            assert_eq!(id(&account, &account.labels), expected);
        }
    }

    #[test]
    fn a_name_is_what_the_runtimes_handler_called_the_container() {
        let kubelets = Some("k8s_main_p_ns_u_0");
        for (pod, runtime, own, expected) in [
            ("p", "docker", kubelets, "k8s_main_p_ns_u_0"),
            ("p", "cri-o", kubelets, "k8s_main_p_ns_u_0"),
            ("p", "podman", Some("p-main"), "p-main"),
            ("p", "containerd", Some("main"), "c"),
            ("p", "docker", None, "c"),
            // The path has the bare id: Docker's or containerd's.
            ("p", UNRESOLVED, kubelets, "k8s_main_p_ns_u_0"),
            ("p", UNRESOLVED, Some("main"), "c"),
            (NONE, "docker", Some("main"), "main"),
            (UNRESOLVED, "docker", None, "c"),
        ] {
            let account = looked_at(pod, ("u", "c"), runtime, None, own);
            assert_eq!(
                name(&account, &account.labels),
                expected,
                "{pod} {runtime} {own:?}"
            );
        }
    }
}
