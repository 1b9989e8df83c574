//! The agent finds NVML by a specification of the Container Device Interface.

use std::fs;

use anyhow::{Context as _, Result};
use gpuacct::core::model::{SourceId, SourceState};
use gpuacct_tests::agent;
use gpuacct_tests::node::{Node, state};
use gpuacct_tests::requirement::require;
use serde_json::json;
use sim_nvml::Scenario;

#[test]
fn a_library_that_only_a_specification_names_is_found() -> Result<()> {
    let Some(_) = require("agent", agent::binary()) else {
        return Ok(());
    };
    let node = Node::new(1)?;
    let folder = node.dir().join("cdi");
    fs::create_dir(&folder)?;
    // As a driver lies that is in no usual place: under its version, and with something broken before.
    let place = node.dir().join("driver/libnvidia-ml.so.570.86.15");
    fs::create_dir(place.parent().context("it is in a folder")?)?;
    fs::copy(node.library(), &place)?;
    fs::write(folder.join("a.yaml"), "not: a specification")?;
    let mounts = [
        json!({"hostPath": "/nowhere/libnvidia-ml.so.1", "containerPath": "/x"}),
        json!({"hostPath": place, "containerPath": "/x"}),
    ];
    let specification = json!({
        "cdiVersion": "0.6.0",
        "kind": "nvidia.com/gpu",
        "containerEdits": {"mounts": mounts},
    });
    fs::write(folder.join("nvidia.json"), specification.to_string())?;

    let mut config = node.config();
    config.gpu.library = None;
    config.gpu.cdi = vec![folder];
    // Waits until the GPUs are accounted for.
    let agent = node.agent("agent", config)?;
    let status = agent.status()?;
    assert_eq!(*state(&status, SourceId::Nvml), SourceState::Up);
    let nvml = status.agent.sources.iter();
    let nvml = nvml.filter(|source| source.source == SourceId::Nvml);
    let places: Vec<_> = nvml.map(|source| source.place.to_string()).collect();
    // On a machine with a driver in a usual place that one is taken.
    assert_eq!(places, [place.display().to_string()]);
    let machine = Scenario::open(node.scenario_dir())?;
    assert_eq!(status.snapshot.gpus.len(), machine.machine().gpus.len());
    Ok(())
}
