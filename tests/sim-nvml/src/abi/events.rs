//! NVML's event sets: Xid errors of the scenario, delivered once to each set that asked for them.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use nvml_wrapper_sys::bindings::{nvmlEventData_t, nvmlEventSet_t};

use super::{Answer, client, code, handle_of, locked, on_gpu};

/// `nvmlEventTypeXidCriticalError`.
pub(super) const XID: u64 = 0x8;
/// Event set handles begin here; like device handles they are never dereferenced.
const HANDLES: usize = 0x5161_0000;

/// GPU index to the number of its Xid events already delivered.
type Cursors = BTreeMap<u32, usize>;

static SETS: Mutex<BTreeMap<usize, Cursors>> = Mutex::new(BTreeMap::new());

pub(super) fn create() -> nvmlEventSet_t {
    let mut sets = locked(&SETS);
    let address = sets.last_key_value().map_or(HANDLES, |(last, _)| last + 8);
    sets.insert(address, Cursors::new());
    std::ptr::without_provenance_mut(address)
}

pub(super) fn free(set: nvmlEventSet_t) -> Answer {
    locked(&SETS)
        .remove(&set.addr())
        .map(drop)
        .ok_or(code::INVALID_ARGUMENT)
}

/// From now on the set gets this GPU's events.
pub(super) fn register(set: nvmlEventSet_t, gpu: u32, seen: usize, types: u64) -> Answer {
    if types & !XID != 0 {
        return Err(code::NOT_SUPPORTED);
    }
    let mut sets = locked(&SETS);
    let cursors = sets.get_mut(&set.addr()).ok_or(code::INVALID_ARGUMENT)?;
    if types & XID != 0 {
        cursors.entry(gpu).or_insert(seen);
    }
    Ok(())
}

/// How often the scenario is looked at for an event. NVIDIA's driver wakes the caller; this library has
/// to look, and what that costs is counted as the agent's.
const LOOK_EACH: Duration = Duration::from_millis(100);

/// Blocks until an event comes or the time is over.
pub(super) fn wait(
    name: &str,
    set: nvmlEventSet_t,
    timeout_ms: u32,
) -> Result<nvmlEventData_t, u32> {
    let called = Instant::now();
    let is_over = || called.elapsed() >= Duration::from_millis(u64::from(timeout_ms));
    let mut seen_length = None;
    loop {
        let length = client()?.log_length();
        if seen_length.replace(length) == Some(length) && !is_over() {
            // Nothing has happened, so there is nothing to replay.
            thread::sleep(LOOK_EACH);
            continue;
        }
        let mut cursors = locked(&SETS)
            .get(&set.addr())
            .cloned()
            .ok_or(code::INVALID_ARGUMENT)?;
        for (&gpu, seen) in &mut cursors {
            let mut found = None;
            on_gpu(name, gpu, |_, gpu| {
                found = gpu.xids.get(*seen).map(|&(_, xid)| xid);
                Ok(())
            })?;
            if let Some(xid) = found {
                if let Some(cursor) = locked(&SETS)
                    .get_mut(&set.addr())
                    .and_then(|cursors| cursors.get_mut(&gpu))
                {
                    *cursor += 1;
                }
                return Ok(nvmlEventData_t {
                    device: handle_of(gpu),
                    eventType: XID,
                    eventData: xid,
                    gpuInstanceId: u32::MAX,
                    computeInstanceId: u32::MAX,
                });
            }
        }
        if is_over() {
            return Err(code::TIMEOUT);
        }
    }
}
