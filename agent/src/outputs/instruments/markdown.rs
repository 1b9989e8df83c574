//! The page of metrics, made from the table.

use std::fmt::Write as _;

use super::conventions::{OtlpInstrument, attribute_name};
use super::identity::LOOKUP_OUTCOMES;
use super::instrument::{Kind, Unit};
use super::sources::STATES;
use super::table::all_families;
use crate::core::input::{ClockKind, HealthGroup, RecoveryAction, ThrottleReason};
use crate::core::model::{SourceId, UnattributedReason, UnobservedReason};
use crate::core::snapshot::{IdOnlyReason, QueryState};
use crate::outputs::counters::{ConnectionCounters, RefusedCounters};
use crate::outputs::gpu_status::GpuStatus;

/// `docs/METRICS.md`, made from the table.
#[must_use]
pub fn metrics_markdown() -> String {
    let mut page = String::from(
        "# Metrics\n\n\
         <!-- Generated from agent/src/outputs/instruments/*.rs: GPUACCT_UPDATE_DOCS=1 cargo test -p gpuacct -->\n\n\
         Everything that gpuacct publishes, at `/metrics` and over OTLP. Over OTLP, metrics and\n\
         attributes have the names of OpenTelemetry's semantic conventions (1.44) where these have\n\
         one, and names below `gpuacct.` otherwise. With `otlp.attributes = \"labels\"` they have the\n\
         second name in each row, which Prometheus' rules translate to the name in Prometheus, and the\n\
         labels as attributes. The instrument then is a counter or a gauge.\n\n\
         Over OTLP an attribute whose value would be `(none)` is left out. `container` is\n\
         `container.name` for a container outside of Kubernetes. `image` is also taken apart into\n\
         `container.image.tags`, `container.image.repo_digests` and `container.image.id`. Metrics\n\
         below `hw.` also have `hw.vendor`, `hw.model` and, for a MIG instance, `hw.parent`; all but\n\
         `hw.energy` have `hw.name` and `hw.driver_version`; `hw.energy` has `hw.type`.\n\n\
         Within a family every series has the same labels and no value is ever empty: `(none)` stands\n\
         where a label does not apply, `(unresolved)` where it could not be learnt. Counters keep their\n\
         labels and never fall; each has its own start time in OTLP and, in OpenMetrics, its `_created`.\n",
    );
    for instrument in all_families() {
        let kind = match instrument.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Info => "info",
        };
        let unit = match instrument.unit {
            Unit::Seconds => "seconds",
            Unit::Bytes => "bytes",
            Unit::Joules => "joules",
            Unit::Watts => "watts",
            Unit::Celsius => "degrees Celsius",
            Unit::Hertz => "hertz",
            Unit::BytesPerSecond => "bytes per second",
            Unit::Ratio => "ratio, 0 to 1",
            Unit::Count(annotation) => annotation,
            Unit::None => "none",
        };
        let labels = if instrument.keys.is_empty() {
            "none".to_owned()
        } else {
            format!("`{}`", instrument.keys.join("` `"))
        };
        let names = match instrument.conventional() {
            _ if instrument.otlp.is_empty() => "none".to_owned(),
            name if name == instrument.otlp => format!("`{name}`"),
            name => format!("`{name}`; `{}`", instrument.otlp),
        };
        let attributes: Vec<_> = instrument
            .keys
            .iter()
            .map(|key| format!("`{}`", attribute_name(key)))
            .collect();
        let attributes = match attributes.is_empty() {
            true => "none".to_owned(),
            false => attributes.join(" "),
        };
        let otlp_kind = match instrument.otlp_instrument() {
            OtlpInstrument::Counter => "Counter",
            OtlpInstrument::UpDownCounter => "UpDownCounter",
            OtlpInstrument::Gauge => "Gauge",
        };
        write!(
            page,
            "\n## `{}`\n\n{}\n\n| | kind | unit | labels |\n|---|---|---|---|\n| Prometheus | {kind} | {unit} | {labels} |\n| OTLP: {names} | {otlp_kind} | {} | {attributes} |\n",
            instrument.name,
            instrument.help,
            match instrument.unit.ucum() {
                "" => "none".to_owned(),
                ucum => format!("`{ucum}`"),
            },
        )
        .expect("a String takes everything");
    }
    page.push_str("\n# Label values\n\n| label | of | values |\n|---|---|---|\n");
    let mut row = |label: &str, family: &str, values: Vec<&str>| {
        writeln!(
            page,
            "| `{label}` | `{family}` | `{}` |",
            values.join("` `")
        )
        .expect("a String takes everything");
    };
    row(
        "reason",
        "gpuacct_gpu_unobserved_seconds_total",
        UnobservedReason::ALL.map(UnobservedReason::as_str).to_vec(),
    );
    row(
        "reason",
        "gpuacct_gpu_unattributed_seconds_total",
        UnattributedReason::ALL
            .map(UnattributedReason::as_str)
            .to_vec(),
    );
    row(
        "group",
        "gpuacct_gpu_health_query",
        HealthGroup::ALL.map(HealthGroup::as_str).to_vec(),
    );
    row(
        "state",
        "gpuacct_gpu_health_query",
        QueryState::ALL.map(QueryState::as_str).to_vec(),
    );
    row(
        "state",
        "gpuacct_gpu_status",
        GpuStatus::ALL.map(GpuStatus::as_str).to_vec(),
    );
    row(
        "reason",
        "gpuacct_gpu_throttle_seconds_total",
        ThrottleReason::ALL.map(ThrottleReason::as_str).to_vec(),
    );
    row(
        "action",
        "gpuacct_gpu_recovery_action",
        RecoveryAction::ALL.map(RecoveryAction::as_str).to_vec(),
    );
    row(
        "attribution",
        "gpuacct_container_info",
        vec!["held", "named", "id_only"],
    );
    row(
        "reason",
        "gpuacct_container_info",
        [
            IdOnlyReason::NoSource,
            IdOnlyReason::SourceDown,
            IdOnlyReason::NotFound,
            IdOnlyReason::PodUidMismatch,
            IdOnlyReason::Timeout,
        ]
        .map(IdOnlyReason::as_str)
        .to_vec(),
    );
    row(
        "source",
        "gpuacct_source_state",
        SourceId::ALL.map(SourceId::as_str).to_vec(),
    );
    row("state", "gpuacct_source_state", STATES.to_vec());
    row(
        "clock",
        "gpuacct_gpu_sample_clock_offset_seconds",
        vec![ClockKind::Wall.as_str(), ClockKind::Boot.as_str()],
    );
    row(
        "outcome",
        "gpuacct_names_lookups_total",
        LOOKUP_OUTCOMES.to_vec(),
    );
    let reasons = ConnectionCounters::default();
    row(
        "reason",
        "gpuacct_connections_closed_total",
        reasons.by_reason().map(|(reason, _)| reason).to_vec(),
    );
    let reasons = RefusedCounters::default();
    row(
        "reason",
        "gpuacct_requests_refused_total",
        reasons.by_reason().map(|(reason, _)| reason).to_vec(),
    );
    page
}
