//! The families in the order in which they are published.

use super::container_points::PublishedContainer;
use super::instrument::{Instrument, Points, Sink, View};
use super::{
    agent, cadvisor, containers, dcgm, gpus, health, identity, namespaces, nvml, sources, store,
    tracking,
};

/// Every family of the agent's own, in the order in which it is published. cAdvisor's and DCGM's
/// follow where they are switched on.
const PARTS: [&[Instrument]; 10] = [
    containers::FAMILIES,
    namespaces::FAMILIES,
    gpus::FAMILIES,
    health::FAMILIES,
    sources::FAMILIES,
    tracking::FAMILIES,
    identity::FAMILIES,
    nvml::FAMILIES,
    store::FAMILIES,
    agent::FAMILIES,
];

/// Every family of the agent's own, in order.
pub fn families() -> impl Iterator<Item = &'static Instrument> {
    PARTS.into_iter().flatten()
}

/// Every family that there is, cAdvisor's and DCGM's included.
pub(super) fn all_families() -> impl Iterator<Item = &'static Instrument> {
    families().chain(cadvisor::FAMILIES).chain(dcgm::FAMILIES)
}

/// Writes every family and every point of `view` into `sink`.
pub fn write(view: &View<'_>, sink: &mut dyn Sink) {
    let others: &[Instrument] = match view.opt_in.cadvisor {
        Some(_) => cadvisor::FAMILIES,
        None => &[],
    };
    let of_dcgm: &[Instrument] = match view.opt_in.dcgm {
        Some(_) => dcgm::FAMILIES,
        None => &[],
    };
    let containers = PublishedContainer::all(view.snapshot);
    for instrument in families().chain(others).chain(of_dcgm) {
        sink.family(instrument);
        let mut points = Points::new(instrument, sink, view.counters, &containers);
        (instrument.read)(view, &mut points);
    }
}
