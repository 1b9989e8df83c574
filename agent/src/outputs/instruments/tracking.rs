//! Families of what the core tracks: processes, cgroups, containers, and what it waited for.

use super::instrument::{Instrument, Kind, Unit, Value, own};

/// The rows, in the order in which they are published.
pub(super) static FAMILIES: &[Instrument] = &[
    Instrument {
        name: "gpuacct_processes",
        otlp: "gpuacct.processes",
        kind: Kind::Gauge,
        unit: Unit::Count("{process}"),
        help: "Processes that the table holds; exited ones are kept until every GPU's window has passed them.",
        keys: &["state"],
        read: |view, points| {
            let agent = &view.snapshot.agent;
            for (state, count) in [
                ("running", agent.processes),
                ("exited", agent.exited_processes),
            ] {
                points.put(&[state], view.snapshot.agent_started, Value::Count(count));
            }
        },
    },
    Instrument {
        name: "gpuacct_cgroups",
        otlp: "gpuacct.cgroups",
        kind: Kind::Gauge,
        unit: Unit::Count("{cgroup}"),
        help: "cgroups whose path is known.",
        keys: &[],
        read: |view, points| own(view, points, view.snapshot.agent.cgroups),
    },
    Instrument {
        name: "gpuacct_containers",
        otlp: "gpuacct.containers",
        kind: Kind::Gauge,
        unit: Unit::Count("{container}"),
        help: "Containers with an account, by how far their names are known.",
        keys: &["attribution"],
        read: |view, points| {
            let agent = &view.snapshot.agent;
            for (attribution, count) in [
                ("held", agent.containers_held),
                ("named", agent.containers_named),
                ("id_only", agent.containers_id_only),
            ] {
                points.put(
                    &[attribution],
                    view.snapshot.agent_started,
                    Value::Count(count),
                );
            }
        },
    },
    Instrument {
        name: "gpuacct_containers_named_late_total",
        otlp: "gpuacct.containers.named_late",
        kind: Kind::Counter,
        unit: Unit::Count("{container}"),
        help: "Containers whose names came after they had been published by id.",
        keys: &[],
        read: |view, points| own(view, points, view.snapshot.agent.named_late),
    },
    Instrument {
        name: "gpuacct_identities_refused_total",
        otlp: "gpuacct.identities.refused",
        kind: Kind::Counter,
        unit: Unit::Count("{answer}"),
        help: "Answers about a container that were refused, since their pod uid contradicts the cgroup's, or whose pod was, since labels tell of it and the cgroup is in none.",
        keys: &[],
        read: |view, points| own(view, points, view.snapshot.agent.identities_refused),
    },
    Instrument {
        name: "gpuacct_cgroups_refused_total",
        otlp: "gpuacct.cgroups.refused",
        kind: Kind::Counter,
        unit: Unit::Count("{cgroup}"),
        help: "cgroups that bear the id of a container or the uid of a pod which belongs to another cgroup. Their processes are booked to the host.",
        keys: &[],
        read: |view, points| own(view, points, view.snapshot.agent.cgroups_refused),
    },
    Instrument {
        name: "gpuacct_gpu_opens_total",
        otlp: "gpuacct.gpu.opens",
        kind: Kind::Counter,
        unit: Unit::Count("{open}"),
        help: "Opens of GPU devices that the kernel reported. Not everyone who opens a GPU uses it.",
        keys: &[],
        read: |view, points| own(view, points, view.snapshot.agent.gpu_opens),
    },
    Instrument {
        name: "gpuacct_gpu_opens_unsampled_total",
        otlp: "gpuacct.gpu.opens.unsampled",
        kind: Kind::Counter,
        unit: Unit::Count("{process}"),
        help: "Processes that opened a GPU and died without a sample that names them. What they used, at most their lifetimes, is in the GPU's time without a row.",
        keys: &[],
        read: |view, points| own(view, points, view.snapshot.agent.gpu_opens_unsampled),
    },
    Instrument {
        name: "gpuacct_table_overflows_total",
        otlp: "gpuacct.table.overflows",
        kind: Kind::Counter,
        unit: Unit::Count("{entry}"),
        help: "Processes, cgroups or accounts that a full table turned away.",
        keys: &[],
        read: |view, points| own(view, points, view.snapshot.agent.table_overflows),
    },
    Instrument {
        name: "gpuacct_names_dropped_total",
        otlp: "gpuacct.names.dropped",
        kind: Kind::Counter,
        unit: Unit::Count("{container}"),
        help: "Containers whose names were let go for want of room, and that are asked for again once they use a GPU (names), or which use one and whose labels were let go, so that no report can be made by them (labels). The largest go first.",
        keys: &["part"],
        read: |view, points| {
            let agent = &view.snapshot.agent;
            for (part, count) in [
                ("names", agent.names_dropped),
                ("labels", agent.labels_dropped),
            ] {
                points.put(&[part], view.snapshot.agent_started, Value::Count(count));
            }
        },
    },
    Instrument {
        name: "gpuacct_procfs_scans_total",
        otlp: "gpuacct.procfs.scans",
        kind: Kind::Counter,
        unit: Unit::Count("{scan}"),
        help: "Scans of /proc that were merged.",
        keys: &[],
        read: |view, points| own(view, points, view.snapshot.agent.scans),
    },
    Instrument {
        name: "gpuacct_procfs_rescans_after_loss_total",
        otlp: "gpuacct.procfs.rescans_after_loss",
        kind: Kind::Counter,
        unit: Unit::Count("{scan}"),
        help: "Scans of /proc that were asked for because events were lost.",
        keys: &[],
        read: |view, points| own(view, points, view.snapshot.agent.rescans_after_loss),
    },
    Instrument {
        name: "gpuacct_windows_not_awaited_total",
        otlp: "gpuacct.windows.not_awaited",
        kind: Kind::Counter,
        unit: Unit::Count("{window}"),
        help: "Windows that were booked before all that they wait for had come: the event stream, \
               and on MIG instances and MPS servers a reading of the process lists.",
        keys: &[],
        read: |view, points| own(view, points, view.snapshot.agent.windows_not_awaited),
    },
    Instrument {
        name: "gpuacct_process_lists_not_awaited_total",
        otlp: "gpuacct.process_lists.not_awaited",
        kind: Kind::Counter,
        unit: Unit::Count("{list}"),
        help: "Process lists, and the driver's accounts of processes that died, that were taken before the event stream had caught up with them.",
        keys: &[],
        read: |view, points| own(view, points, view.snapshot.agent.lists_not_awaited),
    },
    Instrument {
        name: "gpuacct_windows_mended_total",
        otlp: "gpuacct.windows.mended",
        kind: Kind::Counter,
        unit: Unit::Count("{window}"),
        help: "Windows that did not begin where the one before them ended. after_gap: the time between them was booked as not observed (window_lost). cut: it began earlier, and only what was not booked yet was booked. refused: all of it was booked already. Anything but zero is a defect, or a recording that is none.",
        keys: &["mend"],
        read: |view, points| {
            let agent = &view.snapshot.agent;
            for (mend, count) in [
                ("after_gap", agent.windows_after_gap),
                ("cut", agent.windows_cut),
                ("refused", agent.windows_refused),
            ] {
                points.put(&[mend], view.snapshot.agent_started, Value::Count(count));
            }
        },
    },
];
