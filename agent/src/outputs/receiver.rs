//! Where the agent's figures go over OTLP, and the resource attributes that say where they come from.
//! Both are shared by the books and the agent's own telemetry.

use std::collections::BTreeMap;

use super::instruments::VERSION;
pub use crate::receiver::{Compression, Protocol, Receiver, ReceiverError};

/// Where the figures come from: the resource of everything sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// `host.name`.
    pub host_name: String,
    /// `host.id`, e.g. the machine id.
    pub host_id: Option<String>,
    /// `k8s.node.name`.
    pub node_name: Option<String>,
    /// Attributes that somebody has chosen, in place of the agent's own or beside them.
    pub chosen: BTreeMap<String, String>,
}

impl Origin {
    /// The attributes, in OpenTelemetry's words.
    pub(super) fn attributes(&self) -> impl Iterator<Item = (&str, &str)> {
        // Without an instance of its own, every node's agent would write to the same series.
        let instance = self.node_name.as_ref().unwrap_or(&self.host_name);
        let own = [
            ("service.name", Some("gpuacct")),
            ("service.version", Some(VERSION)),
            ("service.instance.id", Some(instance.as_str())),
            ("host.name", Some(self.host_name.as_str())),
            ("host.id", self.host_id.as_deref()),
            ("k8s.node.name", self.node_name.as_deref()),
        ];
        let own = own
            .into_iter()
            .filter_map(|(key, value)| Some((key, value?)));
        let own = own.filter(|(key, _)| !self.chosen.contains_key(*key));
        let chosen = self.chosen.iter();
        own.chain(chosen.map(|(key, value)| (key.as_str(), value.as_str())))
    }
}
