//! The work of the core that `cargo xtask bench --guard` counts instructions of.
//!
//! A regression guard must not depend on a clock or on how busy a machine is. So each case here is
//! run under callgrind, which counts the instructions between the entry and the return of
//! [`measured`]. What comes before is preparation and is not counted.
//!
//! `guard CASE` runs one case. `guard` without a name lists them, one a line.

#[path = "full_node/mod.rs"]
mod full_node;

use full_node::FullNode;

/// Processes of the node in the case of a large node.
const MANY: u32 = 100_000;

/// A case: its name, and what prepares it and returns the work to be counted.
type Case = (&'static str, fn() -> Box<dyn FnMut()>);

const CASES: &[Case] = &[
    ("ten-seconds", ten_seconds),
    ("commit-many-processes", commit_many_processes),
];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // `cargo bench` adds `--bench`.
    let Some(wanted) = arguments.iter().find(|argument| !argument.starts_with('-')) else {
        for (name, _) in CASES {
            println!("{name}");
        }
        return;
    };
    let Some((_, prepare)) = CASES.iter().find(|(name, _)| name == wanted) else {
        eprintln!("there is no case {wanted}");
        std::process::exit(2);
    };
    let mut work = prepare();
    measured(&mut *work);
}

/// What callgrind counts: nothing before its entry, nothing after its return.
#[inline(never)]
fn measured(work: &mut dyn FnMut()) {
    work();
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
