//! The real object on this machine's own kernel.
//!
//! Each test loads the object, makes one thing happen and waits until the stream says that it has
//! told everything up to then. Events of other processes are around at all times and are ignored.

use std::fmt::Display;

use gpuacct_tests::kernel::{Observer, TestProcess, start_ticks};
use gpuacct_tests::requirement::require;

const RING_BYTES: u32 = 1 << 20;
const PROCESS: &str = env!("CARGO_BIN_EXE_test-process");

fn observer() -> Option<Observer> {
    observer_with(RING_BYTES)
}

fn observer_with(ring_bytes: u32) -> Option<Observer> {
    require("kernel", Observer::start(ring_bytes).map_err(with_causes))
}

fn with_causes(error: impl Into<anyhow::Error>) -> impl Display {
    format!("{:#}", error.into())
}

#[test]
fn a_process_is_seen_from_fork_to_exit() {
    let Some(mut observer) = observer() else {
        return;
    };
    let mut process = TestProcess::start(PROCESS, &["wait"]).unwrap();
    let pid = process.pid();
    process.line().unwrap();
    let ticks = start_ticks(pid).unwrap();
    process.end().unwrap();

    observer.settle();
    assert_eq!(observer.life_of(pid), "fex");
    for (letter, event) in observer.of(pid) {
        assert_eq!(event.parent.0, std::process::id(), "{letter}");
        assert_eq!(event.pid_namespace_level, 0, "{letter}");
        assert_eq!(
            gpuacct::core::model::StartTicks::from(event.start),
            ticks,
            "{letter}: /proc and the kernel agree about its start"
        );
        assert!(event.at >= event.start, "{letter}");
    }
}
