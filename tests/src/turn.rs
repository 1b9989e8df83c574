//! A turn at loading the eBPF object, which keeps a core busy for about a second.
//!
//! Tests run side by side. If many of them load the object at once, each load takes as long as all of
//! them together, and an agent that is not up within two seconds books what ran before it to nobody.
//! So no more tests load the object at once than there are cores; the others wait their turn. This
//! holds for the whole machine, since tests run in many processes.

use std::fs::{File, TryLockError};

use anyhow::{Context, Result};

/// Held while the object is being loaded.
#[derive(Debug)]
pub struct Turn {
    /// Its lock is let go when it is closed.
    _slot: File,
}

impl Turn {
    /// Waits until fewer tests load the object than there are cores. A thread that has a turn must not
    /// ask for another one.
    ///
    /// # Errors
    /// If the lock files cannot be made or locked.
    pub fn wait() -> Result<Self> {
        let cores = std::thread::available_parallelism().map_or(1, Into::into);
        let slots: Vec<File> = (0..cores).map(slot).collect::<Result<_>>()?;
        // Whoever finds all taken stands in line at one of them, by chance.
        let line = std::process::id() as usize % cores;
        let mut last = None;
        for (at, file) in slots.into_iter().enumerate() {
            match file.try_lock() {
                Ok(()) => return Ok(Self { _slot: file }),
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(error).context("cannot lock a turn"),
            }
            if at == line {
                last = Some(file);
            }
        }
        let file = last.context("there is at least one core")?;
        file.lock().context("cannot lock a turn")?;
        Ok(Self { _slot: file })
    }
}

fn slot(number: usize) -> Result<File> {
    let path = std::env::temp_dir().join(format!("gpuacct-tests-load-{number}.lock"));
    File::create(&path).with_context(|| format!("cannot make {}", path.display()))
}
