//! What the parts of the agent are set to, from the one configuration.

use std::time::Duration;

use tracing::warn;

use crate::config::{
    CadvisorDutyCycle, Config, OtlpAttributes, OtlpLayout, OtlpTemporality, Payer,
};
use crate::core::accountant::Settings;
use crate::core::input::Policy;
use crate::core::model::Pid;
use crate::core::placement::NestingRule;
use crate::outputs::instruments::{DutyCycle, OptIn};
use crate::outputs::otlp;
use crate::outputs::receiver::Origin;

/// How often the books are committed. A commit costs the same whatever lies between two of them, and
/// scrapers come each 15 seconds or so.
pub(super) const COMMIT_EVERY: Duration = Duration::from_secs(2);

/// Where the kernel names this boot.
pub(super) const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The core's settings.
pub(super) fn settings(config: &Config) -> Settings {
    Settings {
        policy: policy(config),
        nesting: match config.attribution.payer {
            Payer::Outermost => NestingRule::Outermost,
            Payer::Innermost => NestingRule::Innermost,
        },
        lists_interval: config.gpu.lists_interval.0.into(),
        health_interval: config.gpu.health.interval.0.into(),
        own_pid: Some(Pid(std::process::id())),
        // Two commits: the first one finds what a window waits for and asks for it.
        await_events: (2 * COMMIT_EVERY).into(),
        ..Settings::default()
    }
}

/// What is called how over OTLP, and where.
pub(super) fn shape(config: &Config) -> otlp::Shape {
    otlp::Shape {
        naming: match config.otlp.attributes {
            OtlpAttributes::Conventions => otlp::Naming::Conventions,
            OtlpAttributes::Labels => otlp::Naming::Labels,
        },
        layout: match config.otlp.layout {
            OtlpLayout::Point => otlp::Layout::Point,
            OtlpLayout::Resource => otlp::Layout::Resource,
        },
    }
}

/// When amounts are published.
pub(super) fn policy(config: &Config) -> Policy {
    Policy {
        grace: config.publish.grace.0.into(),
        zero_for: config.publish.zero_for.0.into(),
        keep_for: config.publish.keep_for.0.into(),
    }
}

/// Temporality of counters over OTLP, and where sent deltas are recorded.
pub(super) fn temporality(config: &Config) -> otlp::Temporality {
    match config.otlp.temporality {
        OtlpTemporality::Cumulative => {
            // From now on totals are sent. If deltas are switched on again, they begin with the
            // totals of that moment.
            if let Err(error) = otlp::SentTotalsLocation::disown(&config.socket.path) {
                warn!(%error, "cannot remove the marker file of an earlier agent's deltas");
            }
            otlp::Temporality::Cumulative
        }
        // Without a store every agent's series are its own, and so is what was sent of them.
        OtlpTemporality::Delta if !config.store.enabled => otlp::Temporality::Delta(None),
        // Without a boot id there is no store either; the store's state says so.
        OtlpTemporality::Delta => otlp::Temporality::Delta(boot().ok().map(|boot| {
            otlp::SentTotalsLocation::new(&config.store.path, &config.socket.path, &boot)
        })),
    }
}

/// The file that records which counters are sent over OTLP without their start. Absent without a
/// store or without a boot id, since no series then outlives the agent.
pub(super) fn starts(config: &Config) -> Option<otlp::StartsFile> {
    let boot = boot().ok().filter(|_| config.store.enabled)?;
    Some(otlp::StartsFile::new(&config.store.path, &boot))
}

/// What is published only where it is asked for.
pub(super) fn opt_in(config: &Config) -> OptIn {
    let duty_cycle = match config.cadvisor.duty_cycle {
        CadvisorDutyCycle::Device => DutyCycle::Device,
        CadvisorDutyCycle::Container => DutyCycle::Container,
    };
    OptIn {
        cadvisor: config.cadvisor.enabled.then_some(duty_cycle),
        dcgm: config.dcgm.enabled.then(|| node_name(config)),
        pod_labels: config.publish.pod_labels.clone(),
        owner_prefix: config.prometheus.owner_prefix.clone(),
    }
}

/// Name of this node: the configured one, since in a pod the kernel's host name is the pod's; else the
/// kernel's.
pub(crate) fn node_name(config: &Config) -> String {
    config.otlp.node_name.clone().unwrap_or_else(|| {
        let names = rustix::system::uname();
        names.nodename().to_string_lossy().into_owned()
    })
}

/// Resource attributes of OTLP that identify this agent.
pub(crate) fn origin(config: &Config) -> Origin {
    let host_id = std::fs::read_to_string("/etc/machine-id").ok();
    // OTEL_SERVICE_NAME counts for more than the same in OTEL_RESOURCE_ATTRIBUTES.
    let name = config.otlp.service_name.clone();
    let name = name.map(|name| ("service.name".to_owned(), name));
    let attributes = config.otlp.resource_attributes.clone();
    let attributes = attributes.into_iter().chain(name);
    Origin {
        host_name: node_name(config),
        host_id: host_id
            .map(|id| id.trim().to_owned())
            .filter(|id| !id.is_empty()),
        node_name: config.otlp.node_name.clone(),
        chosen: attributes.collect(),
    }
}

/// The name of this boot.
pub(super) fn boot() -> std::io::Result<String> {
    let boot = std::fs::read_to_string(BOOT_ID)?;
    Ok(boot.trim().to_owned())
}
