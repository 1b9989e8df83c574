//! The work of the edges that `cargo xtask bench --guard` counts instructions of.

#[path = "../core/benches/cases/mod.rs"]
mod cases;
#[path = "../core/benches/full_node/mod.rs"]
mod full_node;

use std::hint::black_box;

use cases::Case;
use full_node::FullNode;
use gpuacct::outputs::counters::OutputCounters;
use gpuacct::outputs::instruments::{OptIn, View};
use gpuacct::outputs::prometheus::{Format, render};
use gpuacct::published::AgentStatus;
use gpuacct::sources::kernel::decode::decode;
use gpuacct_common::event::{KIND_FORK, ProcessRecord, UNIFIED_HIERARCHY};

/// Records that are decoded.
const RECORDS: u32 = 1_000;

const CASES: &[Case] = &[
    ("scrape", scrape),
    ("scrape-openmetrics", scrape_openmetrics),
    ("decode", decode_records),
];

fn main() {
    cases::run(CASES);
}

fn scrape() -> Box<dyn FnMut()> {
    rendering(Format::Text)
}

fn scrape_openmetrics() -> Box<dyn FnMut()> {
    rendering(Format::OpenMetrics)
}

/// One rendering of the books of a full node, into a buffer that has its size already.
fn rendering(format: Format) -> Box<dyn FnMut()> {
    let node = FullNode::settled(0);
    let counters = OutputCounters::default();
    let opt_in = OptIn::default();
    let agent = AgentStatus::default();
    let mut out = String::new();
    let write = move |node: &FullNode, out: &mut String| {
        let view = View {
            snapshot: &node.published,
            agent: &agent,
            counters: &counters,
            opt_in: &opt_in,
        };
        render(&view, format, out);
    };
    write(&node, &mut out);
    assert!(
        out.contains("pod=\"train-7-63\""),
        "containers are published"
    );
    Box::new(move || {
        write(&node, &mut out);
        black_box(&out);
    })
}

/// Decodes records of births.
fn decode_records() -> Box<dyn FnMut()> {
    let records: Vec<Vec<u8>> = (0..RECORDS).map(record).collect();
    Box::new(move || {
        for record in &records {
            let (cpu, event) = decode(black_box(record));
            assert!(cpu.is_some() && event.is_ok(), "the record is valid");
        }
    })
}

/// The bytes of a record as the object writes it.
fn record(pid: u32) -> Vec<u8> {
    let bytes = u16::try_from(size_of::<ProcessRecord>()).unwrap_or(u16::MAX);
    let mut out = Vec::with_capacity(size_of::<ProcessRecord>());
    let put = |out: &mut Vec<u8>, bytes: &[u8]| out.extend_from_slice(bytes);
    put(&mut out, &KIND_FORK.to_ne_bytes());
    put(&mut out, &bytes.to_ne_bytes());
    put(&mut out, &1_u32.to_ne_bytes());
    put(&mut out, &100_000_000_000_u64.to_ne_bytes());
    put(&mut out, &pid.to_ne_bytes());
    put(&mut out, &1_u32.to_ne_bytes());
    put(&mut out, &99_000_000_000_u64.to_ne_bytes());
    put(&mut out, &0_u32.to_ne_bytes());
    put(&mut out, &0_u32.to_ne_bytes());
    // One cgroup in the v2 hierarchy, and none in another.
    for id in [77_u64, 0] {
        put(&mut out, &UNIFIED_HIERARCHY.to_ne_bytes());
        put(&mut out, &0_u32.to_ne_bytes());
        put(&mut out, &id.to_ne_bytes());
    }
    out
}
