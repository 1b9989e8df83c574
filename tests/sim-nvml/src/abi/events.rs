//! NVML's event sets: Xid errors of the scenario, delivered once to each set that asked for them.

use std::collections::BTreeMap;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use nvml_wrapper_sys::bindings::{nvmlEventData_t, nvmlEventSet_t};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;

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

/// The least time between two looks at the log: many jobs that write at once wake a caller once.
const BETWEEN_LOOKS: Duration = Duration::from_millis(20);

/// Wakes a caller when something is written into the scenario's log, as NVIDIA's driver wakes it when
/// an event happens. A caller that looked again and again would be counted as the agent's cost.
struct LogWatch(OwnedFd);

impl LogWatch {
    fn new(log: &Path) -> rustix::io::Result<Self> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        inotify::add_watch(&inotify, log, WatchFlags::MODIFY)?;
        Ok(Self(inotify))
    }

    /// Waits until something has been written since the last call, or the time is over.
    fn wait(&self, time: Duration) -> rustix::io::Result<()> {
        let time = Timespec::try_from(time).map_err(|_| Errno::INVAL)?;
        let mut ready = [PollFd::new(&self.0, PollFlags::IN)];
        poll(&mut ready, Some(&time))?;
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.0, &mut buffer);
        while reader.next().is_ok() {}
        Ok(())
    }
}

/// Blocks until an event comes or the time is over.
pub(super) fn wait(
    name: &str,
    set: nvmlEventSet_t,
    timeout_ms: u32,
) -> Result<nvmlEventData_t, u32> {
    let end = Instant::now() + Duration::from_millis(u64::from(timeout_ms));
    // Begun before the first look, so nothing is written unseen between the two.
    let watch = LogWatch::new(&client()?.log_path()).map_err(|_| code::UNKNOWN)?;
    loop {
        let looked = Instant::now();
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
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(code::TIMEOUT);
        }
        match watch.wait(left) {
            Ok(()) | Err(Errno::INTR) => {}
            Err(_) => return Err(code::UNKNOWN),
        }
        thread::sleep(BETWEEN_LOOKS.saturating_sub(looked.elapsed()));
    }
}
