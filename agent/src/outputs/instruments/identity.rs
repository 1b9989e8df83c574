//! Families of the identity sources, and of what the kubelet allocated.

use super::instrument::{Instrument, Kind, Unit, Value};
use crate::core::input::IdentitySource;
use crate::core::snapshot::AllocationState;

/// The label values of `gpuacct_names_lookups_total`.
pub(super) const LOOKUP_OUTCOMES: [&str; 6] = [
    "found",
    "not_found",
    "timeout",
    "invalid",
    "error",
    "refused",
];

/// The rows, in the order in which they are published.
pub(super) static FAMILIES: &[Instrument] = &[
    Instrument {
        name: "gpuacct_names_lookups_total",
        otlp: "gpuacct.names.lookups",
        kind: Kind::Counter,
        unit: Unit::Count("{lookup}"),
        help: "Lookups of single containers, by source and outcome. error: the lookup failed. refused is counted in addition to the others: an answer, requested or not, that names a pod which the cgroup does not confirm.",
        keys: &["source", "outcome"],
        read: |view, points| {
            for book in &view.agent.names {
                // The kubelet's list of allocations names nobody.
                let mut of_names = IdentitySource::ALL.into_iter();
                let Some(source) = of_names.find(|of| of.source() == book.source) else {
                    continue;
                };
                let lookups = &book.lookups;
                let refused = &view.snapshot.agent.identities_refused_of;
                let refused = refused.get(source as usize).copied();
                for (outcome, count) in LOOKUP_OUTCOMES.into_iter().zip([
                    lookups.found,
                    lookups.not_found,
                    lookups.timeout,
                    lookups.invalid,
                    lookups.error,
                    refused.unwrap_or_default(),
                ]) {
                    let labels = [book.source.as_str(), outcome];
                    points.put(&labels, view.snapshot.agent_started, Value::Count(count));
                }
            }
        },
    },
    Instrument {
        name: "gpuacct_names_events_total",
        otlp: "gpuacct.names.events",
        kind: Kind::Counter,
        unit: Unit::Count("{event}"),
        help: "Requests sent (calls), events received (events), and problems of identity and allocation sources, by kind.",
        keys: &["source", "kind"],
        read: |view, points| {
            for book in &view.agent.names {
                for (kind, count) in [
                    ("calls", book.calls),
                    ("timeouts", book.timeouts),
                    ("invalid_replies", book.invalid_replies),
                    ("disconnects", book.disconnects),
                    ("events", book.events),
                    ("lookups_refused", book.lookups_refused),
                    ("texts_changed", book.texts_changed),
                    ("labels_dropped", book.labels_dropped),
                    ("kubernetes_refused", book.kubernetes_refused),
                    ("entries_dropped", book.entries_dropped),
                    ("answers_too_large", book.answers_too_large),
                ] {
                    let labels = [book.source.as_str(), kind];
                    points.put(&labels, view.snapshot.agent_started, Value::Count(count));
                }
            }
        },
    },
    Instrument {
        name: "gpuacct_allocated_devices",
        otlp: "gpuacct.allocated_devices",
        kind: Kind::Gauge,
        unit: Unit::Count("{device}"),
        help: "Devices that the kubelet lists as allocated. matched: a GPU or MIG instance that NVML lists. unlisted: one that NVML does not list. unknown: the id does not say which device it is.",
        keys: &["state"],
        read: |view, points| {
            if !view.snapshot.allocations_known {
                return;
            }
            let listed = view.snapshot.allocations.iter().filter(|of| {
                let state = of.state;
                matches!(
                    state,
                    AllocationState::Counting | AllocationState::NoContainer
                )
            });
            let devices: Vec<_> = listed.flat_map(|of| &of.devices).collect();
            for (state, has_gpu, is_known) in [
                ("matched", true, true),
                ("unlisted", false, true),
                ("unknown", false, false),
            ] {
                let of_state = devices.iter().filter(|device| {
                    device.is_known == is_known && device.gpus.is_empty() != has_gpu
                });
                let count = of_state.count() as u64;
                points.put(&[state], view.snapshot.agent_started, Value::Count(count));
            }
        },
    },
];
