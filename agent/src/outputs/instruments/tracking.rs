//! Families of what the core tracks: processes, cgroups, containers, and what it waited for.

use super::instrument::{Instrument, Kind, Unit, Value, own};

/// The rows, in the order in which they are published.
pub(super) static FAMILIES: &[Instrument] = &[
    Instrument {
        name: "gpuacct_processes",
        otlp: "gpuacct.processes",
        kind: Kind::Gauge,
        unit: Unit::Count("{process}"),
        help: "Processes in the process table. Exited ones are kept until the windows of every GPU have passed their exit.",
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
        help: "Containers with an account, by state of their names.",
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
        help: "Containers whose names were found after they had been published by id.",
        keys: &[],
        read: |view, points| own(view, points, view.snapshot.agent.named_late),
    },
    Instrument {
        name: "gpuacct_identities_refused_total",
        otlp: "gpuacct.identities.refused",
        kind: Kind::Counter,
        unit: Unit::Count("{answer}"),
        help: "Answers about a container that were refused: their pod uid contradicts that of the cgroup, or their labels name a pod and the cgroup is in no pod.",
        keys: &[],
        read: |view, points| own(view, points, view.snapshot.agent.identities_refused),
    },
    Instrument {
        name: "gpuacct_cgroups_refused_total",
        otlp: "gpuacct.cgroups.refused",
        kind: Kind::Counter,
        unit: Unit::Count("{cgroup}"),
        help: "Cgroups with the id of a container or the uid of a pod that belongs to another cgroup. Their processes are booked to the host.",
        keys: &[],
        read: |view, points| own(view, points, view.snapshot.agent.cgroups_refused),
    },
    Instrument {
        name: "gpuacct_gpu_opens_total",
        otlp: "gpuacct.gpu.opens",
        kind: Kind::Counter,
        unit: Unit::Count("{open}"),
        help: "Opens of GPU devices that the kernel reported. Not every process that opens a GPU uses it.",
        keys: &[],
        read: |view, points| own(view, points, view.snapshot.agent.gpu_opens),
    },
    Instrument {
        name: "gpuacct_gpu_opens_unsampled_total",
        otlp: "gpuacct.gpu.opens.unsampled",
        kind: Kind::Counter,
        unit: Unit::Count("{process}"),
        help: "Processes that opened a GPU and ended before any sample named them. Their use, at most their lifetime, is in the GPU's time with reason no_row.",
        keys: &[],
        read: |view, points| own(view, points, view.snapshot.agent.gpu_opens_unsampled),
    },
    Instrument {
        name: "gpuacct_table_overflows_total",
        otlp: "gpuacct.table.overflows",
        kind: Kind::Counter,
        unit: Unit::Count("{entry}"),
        help: "Entries that were not added because a table was full: processes, cgroups, opens, containers, accounts, allocations, namespaces, Xid errors and processes to be stored.",
        keys: &[],
        read: |view, points| own(view, points, view.snapshot.agent.table_overflows),
    },
    Instrument {
        name: "gpuacct_names_dropped_total",
        otlp: "gpuacct.names.dropped",
        kind: Kind::Counter,
        unit: Unit::Count("{container}"),
        help: "Containers whose names were dropped to stay within the memory bound. names: all names of a container without an account; they are looked up again once it uses a GPU. labels: labels of a container with an account; reports by these labels lack it. The largest are dropped first.",
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
        help: "Scans of /proc whose result was taken over.",
        keys: &[],
        read: |view, points| own(view, points, view.snapshot.agent.scans),
    },
    Instrument {
        name: "gpuacct_procfs_rescans_after_loss_total",
        otlp: "gpuacct.procfs.rescans_after_loss",
        kind: Kind::Counter,
        unit: Unit::Count("{scan}"),
        help: "Scans of /proc that were requested because events were lost.",
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
        help: "Process lists, and accounting records of ended processes, that were used before the event stream had caught up with them.",
        keys: &[],
        read: |view, points| own(view, points, view.snapshot.agent.lists_not_awaited),
    },
    Instrument {
        name: "gpuacct_windows_mended_total",
        otlp: "gpuacct.windows.mended",
        kind: Kind::Counter,
        unit: Unit::Count("{window}"),
        help: "Windows that did not begin where the previous one ended. after_gap: it began later; the time between is unobserved (window_lost). cut: it began earlier; only the part that was not booked yet was booked. refused: all of it was booked already. Anything but zero is a bug, or a replayed recording that is not valid.",
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
