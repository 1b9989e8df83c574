//! What the tests against real parts share: daemons that they start and stop, the built agent, and
//! the rule for what a machine lacks.

pub mod accuracy;
pub mod agent;
pub mod alertmanager;
pub mod certificates;
pub mod cgroups;
pub mod chromium;
pub mod collector;
pub mod containerd;
pub mod crashes;
pub mod daemon;
pub mod docker;
pub mod exposition;
pub mod http;
pub mod kernel;
pub mod kubelet;
pub mod ledger;
pub mod manifests;
pub mod nginx;
pub mod node;
pub mod otlp;
pub mod pod_resources;
pub mod podman;
pub mod prometheus;
pub mod promql;
pub mod proto;
pub mod python;
pub mod registry;
pub mod requirement;
pub mod rerun;
pub mod rotel;
pub mod source_rig;
pub mod terminal;
pub mod turn;
pub mod victoria_metrics;
pub mod web;
