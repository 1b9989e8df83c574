//! What most exporters do: `naive-poller SECONDS LIBRARY` polls NVML each so many seconds and looks
//! in `/proc` for whose the processes are, until its input ends; then it prints what it found.

use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail};
use gpuacct_tests::accuracy::poll;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [seconds, library] = arguments.as_slice() else {
        bail!("expected seconds and a library, found {arguments:?}");
    };
    let every = Duration::from_secs(seconds.parse()?);
    let end = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&end);
    thread::spawn(move || {
        // An input that cannot be read has ended.
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        told.store(true, Ordering::Relaxed);
    });
    let polled = poll(Path::new(library), every, &end)?;
    println!("{}", serde_json::to_string(&polled)?);
    Ok(())
}
