//! The pace of demonstrations, and how they are interrupted.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// Turns true on SIGINT or SIGTERM, so that everything is taken down in order.
///
/// # Errors
/// If the signals cannot be caught.
pub fn interrupted() -> Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&flag)).context("cannot catch signals")?;
    }
    Ok(flag)
}

/// Waits until then: the length of a demonstration is what is asked for, nothing is awaited.
///
/// # Errors
/// If it is interrupted.
pub fn rest_until(deadline: Instant, interrupted: &AtomicBool) -> Result<()> {
    while let Some(left) = deadline.checked_duration_since(Instant::now()) {
        ensure!(!interrupted.load(Ordering::Relaxed), "interrupted");
        thread::sleep(left.min(Duration::from_millis(100)));
    }
    Ok(())
}
