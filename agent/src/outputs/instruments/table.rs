//! The families in the order in which they are published.

use super::container_points::PublishedContainer;
use super::instrument::{Instrument, Points, Sink, View};
use super::{
    agent, cadvisor, containers, dcgm, gpus, health, identity, namespaces, nvml, process, records,
    sources, store, tracking,
};

/// Every family of the agent's own, in the order in which it is published. cAdvisor's and DCGM's
/// follow where they are switched on.
const PARTS: [&[Instrument]; 11] = [
    containers::FAMILIES,
    namespaces::FAMILIES,
    gpus::FAMILIES,
    health::FAMILIES,
    sources::FAMILIES,
    tracking::FAMILIES,
    identity::FAMILIES,
    nvml::FAMILIES,
    store::FAMILIES,
    records::FAMILIES,
    agent::FAMILIES,
];

/// Every family of the agent's own, in order.
pub fn families() -> impl Iterator<Item = &'static Instrument> {
    PARTS.into_iter().flatten()
}

/// Every family that there is, those of cAdvisor, of DCGM and of the process included.
pub(super) fn all_families() -> impl Iterator<Item = &'static Instrument> {
    families()
        .chain(cadvisor::FAMILIES)
        .chain(dcgm::FAMILIES)
        .chain(process::FAMILIES)
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
    write_some(
        families().chain(others).chain(of_dcgm),
        view,
        &containers,
        sink,
    );
}

/// Writes the families of the agent's process into `sink`, for Prometheus.
pub fn write_process(view: &View<'_>, sink: &mut dyn Sink) {
    write_some(process::FAMILIES.iter(), view, &[], sink);
}

fn write_some(
    families: impl Iterator<Item = &'static Instrument>,
    view: &View<'_>,
    containers: &[PublishedContainer<'_>],
    sink: &mut dyn Sink,
) {
    for instrument in families {
        sink.family(instrument);
        let mut points = Points::new(instrument, sink, view.counters, containers);
        (instrument.read)(view, &mut points);
    }
}
