//! The work of the core that `cargo xtask bench --guard` counts instructions of.

#[path = "cases/mod.rs"]
mod cases;
#[path = "full_node/mod.rs"]
mod full_node;

use cases::Case;
use full_node::FullNode;

/// Processes of the node in the case of a large node.
const MANY: u32 = 100_000;

const CASES: &[Case] = &[
    ("ten-seconds", ten_seconds),
    ("commit-many-processes", commit_many_processes),
];

fn main() {
    cases::run(CASES);
}

/// Ten seconds of a full node: windows, process lists, commits, and what is handed over to the
/// store. The snapshots are dropped as the next one replaces them.
fn ten_seconds() -> Box<dyn FnMut()> {
    let mut node = FullNode::settled(0);
    Box::new(move || {
        for _ in 0..10 {
            node.second();
        }
    })
}

/// One commit of a node with many processes, none of which uses a GPU.
fn commit_many_processes() -> Box<dyn FnMut()> {
    let mut node = FullNode::settled(MANY);
    Box::new(move || node.commit())
}
