//! What the queries of the health of GPUs cost in the simulated library, by call.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use gpuacct::config::{Config, Span};
use gpuacct_tests::agent::Agent;
use sim_nvml::library::{self, Driver};
use sim_nvml::{GpuSpec, Scenario};

use crate::report::{Row, float};
use crate::{Bench, pause};

const GPUS: u32 = 8;
/// How long is measured.
const MEASURE: Duration = Duration::from_secs(60);

pub(crate) fn health(bench: &Bench) -> Result<Vec<Row>> {
    let dir = bench.dir("health")?;
    let gpus = (0..GPUS).map(GpuSpec::a100).collect();
    let scenario = Scenario::create(dir.join("gpus"), gpus, 1)?;
    let mut config = Config::default();
    config.gpu.library = Some(library::install(Driver::R610, &dir.join("lib"))?);
    config.gpu.health.interval = Span(Duration::from_secs(1));
    config.gpu.health.pcie_throughput = true;
    config.docker.sockets = vec![dir.join("no-docker.sock")];
    let agent = Agent::start(&dir, config, &[(sim_nvml::STATE_DIR, scenario.dir())])?;
    let before = calls(&agent)?;
    pause(MEASURE)?;
    let after = calls(&agent)?;
    agent.stop()?;
    let rows = after.into_iter().filter_map(|(call, (count, time))| {
        let (count_before, time_before) = before.get(&call).copied().unwrap_or_default();
        let (count, time) = (count - count_before, time - time_before);
        let micros = float(time) / 1e3 / float(count);
        (count > 0).then(|| Row::new(format!("`{call}`"), format!("{count} of {micros:.1} µs")))
    });
    Ok(rows.collect())
}

/// How often each call was made, and the time in it, in nanoseconds.
fn calls(agent: &Agent) -> Result<BTreeMap<String, (u64, u64)>> {
    let books = agent.status()?.agent.nvml_calls.into_iter();
    Ok(books
        .map(|book| (book.call.to_string(), (book.calls, book.total.0)))
        .collect())
}
