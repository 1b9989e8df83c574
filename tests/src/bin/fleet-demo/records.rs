//! The bill in SQL: the agents send the hour as usage records, and the shipped files of SQL add them up.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use gpuacct::config::Span;
use gpuacct_tests::otlp::Sink;
use gpuacct_tests::sql::{self, Engine};
use rusqlite::Connection;

use crate::{Fleet, FleetNode, SCRAPE_INTERVAL};

/// Nanoseconds of busy time, by namespace and pod.
pub(crate) type Bill = BTreeMap<String, u64>;

const USED: &str = "SELECT namespace || '/' || pod AS who, CAST(sum(busy_ns) AS VARCHAR)
    FROM gpuacct.used WHERE owner_kind <> 'host' GROUP BY 1 HAVING sum(busy_ns) > 0";

/// Has the agents, which are stopped, send their hours, and asks both engines for the bill.
pub(crate) fn bills(fleet: &mut Fleet, dir: &Path) -> Result<[(&'static str, Bill); 2]> {
    let sink = Sink::start()?;
    for node in &mut fleet.nodes {
        end_hour(&node.ledger().join("gpuacct.db"))?;
        let records = &mut node.config.records;
        records.enabled = true;
        records.endpoint = Some(format!("http://{}", sink.address()));
        records.interval = Span(SCRAPE_INTERVAL);
        send(node)?;
    }
    let received = sink.received();
    let engines = [
        ("CLICKHOUSE", sql::clickhouse()?),
        ("DUCKDB", sql::duckdb()?),
    ];
    let mut bills = Vec::new();
    for (name, engine) in engines {
        bills.push((name, bill(&engine, dir, &received.logs)?));
    }
    bills.try_into().ok().context("there are two engines")
}

/// Makes the ledger's present hour the one before, so that it is over. An hour ends when the clock says so,
/// which nobody wants to wait for.
fn end_hour(ledger: &Path) -> Result<()> {
    let connection =
        Connection::open(ledger).with_context(|| format!("cannot open {}", ledger.display()))?;
    // By way of negative numbers: no row may take the number of another one that has not moved yet.
    let moved = ["hours", "gpu_hours", "reason_hours", "meta"].map(|table| {
        format!("UPDATE {table} SET hour = 1 - hour; UPDATE {table} SET hour = -hour;")
    });
    connection
        .execute_batch(&format!("BEGIN IMMEDIATE; {} COMMIT;", moved.concat()))
        .with_context(|| format!("cannot end the hour of {}", ledger.display()))
}

/// Runs a node's agent until a receiver has acknowledged all of its records.
fn send(node: &mut FleetNode) -> Result<()> {
    node.start_again()?;
    node.agent()?
        .wait_for("its records to be acknowledged", |agent| {
            let delivered = agent.metric("gpuacct_records_total{outcome=\"delivered\"}")?;
            Ok(delivered != "0" && agent.metric("gpuacct_records_waiting")? == "0")
        })?;
    node.stop()
}

fn bill(
    engine: &Engine,
    dir: &Path,
    messages: &[opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest],
) -> Result<Bill> {
    let answers = engine.ask(dir, messages, &[USED])?;
    let rows = answers.into_iter().next().context("no answer")?;
    rows.into_iter()
        .map(|row| {
            let [who, busy] = <[String; 2]>::try_from(row).ok().context("two columns")?;
            Ok((who, busy.parse()?))
        })
        .collect()
}
