//! Finds the owner of a window's busy time by looking up NVML's pids in the process table.
//!
//! Pure: a window, the tables, and out come charges that add up to the window's busy time. A pid
//! that two owners had inside the window is ambiguous, since a row says nothing of when in the
//! window it was busy; two holders of one container are not.

use crate::amounts::Engines;
use crate::input::{Credit, GpuWindow};
use crate::model::{Nanos, Pid, UnattributedReason};
use crate::owners::{Charge, Lookup, confirmed, owner_of};
use crate::sharing::Sharing;
use crate::tables::HashMap;

/// Splits a window's busy time into charges. They sum to `window.busy` if the window keeps its own
/// invariant.
#[must_use]
pub(super) fn charges(
    window: &GpuWindow,
    sharing: &Sharing,
    lookup: &mut Lookup<'_>,
) -> Vec<Charge> {
    let rest = [
        (UnattributedReason::BelowResolution, window.below_resolution),
        (UnattributedReason::NoRow, window.no_row),
    ];
    let mut engines: HashMap<Pid, Engines> = window
        .engines
        .iter()
        .map(|used| (used.pid, used.engines))
        .collect();
    let mut charges = Vec::with_capacity(window.credits.len() + 2);
    let mut charge = |pid, busy, engines| {
        let (process, owner) = owner_of(pid, window.start, window.end, lookup);
        let of_server = sharing.owner_of_server(pid, window.start, window.end, lookup);
        let owner = of_server.unwrap_or(owner);
        let (process, owner) = confirmed(pid, window.end, (process, owner), lookup);
        charges.push(Charge {
            pid: Some(pid),
            process,
            owner,
            busy,
            engines,
        });
    };
    for &Credit { pid, busy } in &window.credits {
        charge(pid, busy, engines.remove(&pid).unwrap_or_default());
    }
    // A sample may name one process for the SMs and another for the memory.
    for used in &window.engines {
        if let Some(engines) = engines.remove(&used.pid) {
            charge(used.pid, Nanos::ZERO, engines);
        }
    }
    charges.extend(rest.map(|(reason, busy)| Charge {
        pid: None,
        process: None,
        owner: Err(reason),
        busy,
        engines: Engines::default(),
    }));
    charges.retain(|charge| !charge.busy.is_zero() || !charge.engines.is_zero());
    charges
}

#[cfg(test)]
pub(super) mod tests;
