//! The tests on real parts: the running kernel, real runtimes, real receivers, the simulated NVML.
//!
//! They are one program, since linking one takes longer than running most tests. A test here shares
//! nothing with the others: it has folders, sockets, ports and daemons of its own, and a pod of its
//! own where it makes one. So any number of them may run at once, in one process or in many.
//!
//! A test that measures its own process, or that others would disturb, is a program of its own
//! beside this folder, and `.config/nextest.toml` says why.

mod attack;
mod budgets;
mod capabilities;
mod cdi;
mod chart;
mod cluster;
mod commands;
mod completions;
mod cri;
mod dashboards;
mod deploy;
mod docker;
mod end_to_end;
mod fleet;
mod fleet_access;
mod fleet_clusters;
mod fleet_streams;
mod focus;
mod gpu_health;
mod hostile_answers;
mod id_only;
mod image;
mod install;
mod kernel;
mod kubelet;
mod ladder;
mod linters;
mod live_view;
mod man_pages;
mod matrix;
mod migration;
mod nvml_clients;
mod nvml_source;
mod opencost;
mod otlp_tls;
mod packages;
mod page;
mod placement;
mod pod_itself;
mod pod_resources;
mod receivers;
mod records;
mod report;
mod report_page;
mod rules;
mod runtimes;
mod scraping;
mod store;
mod story;
mod web_config;
