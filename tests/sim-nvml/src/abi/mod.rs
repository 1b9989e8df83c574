//! NVML's ABI over the simulated machine.
//!
//! [`calls`] has the functions, [`symbols`](mod@symbols) says which driver exports which, and this
//! module has what they share: one loaded client per process, reference-counted as NVML's is, and
//! the faults that are applied before any answer.
//!
//! Nothing unwinds into the caller (999 instead), nothing is printed, and no thread or thread-local
//! is left behind, so that the library can be closed and opened again.

pub mod calls;
mod events;
mod gpm;
pub mod symbols;

use std::os::unix::fs::MetadataExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nvml_wrapper_sys::bindings::{nvmlDevice_t, nvmlReturn_t};

use crate::event::Fault;
use crate::history::{Gpu, History, Part};
use crate::log::{self, LogReader, StateError};

/// The `nvmlReturn_t` values that the library answers by itself.
pub(crate) mod code {
    pub(crate) const SUCCESS: u32 = 0;
    pub(crate) const UNINITIALIZED: u32 = 1;
    pub(crate) const INVALID_ARGUMENT: u32 = 2;
    pub(crate) const NOT_SUPPORTED: u32 = 3;
    pub(crate) const NO_PERMISSION: u32 = 4;
    pub(crate) const NOT_FOUND: u32 = 6;
    pub(crate) const INSUFFICIENT_SIZE: u32 = 7;
    pub(crate) const DRIVER_NOT_LOADED: u32 = 9;
    pub(crate) const TIMEOUT: u32 = 10;
    pub(crate) const ARGUMENT_VERSION_MISMATCH: u32 = 25;
    pub(crate) const UNKNOWN: u32 = 999;
}

/// Result of an NVML function: success, or the code to return.
pub(crate) type Answer = Result<(), nvmlReturn_t>;

/// What differs between drivers beside their symbols.
#[derive(Debug)]
pub struct Profile {
    /// Driver version.
    pub driver: &'static str,
    /// NVML version.
    pub nvml: &'static str,
    /// CUDA version, as NVML numbers it.
    pub cuda: i32,
    /// What a size query of process utilisation answers.
    pub utilization_capacity: u32,
    /// Process lists speak of pids in the caller's namespace, and drop those that it cannot see
    /// (535.113 and later).
    pub translates_lists: bool,
    /// The largest id of a field that it knows.
    pub newest_field: u32,
    /// So do utilisation rows, but there invisible pids stay as the host's (570.86 and later).
    pub translates_utilization: bool,
}

/// A process's view of the machine.
#[derive(Debug)]
struct Client {
    profile: &'static Profile,
    /// Inode of this process's pid namespace.
    pid_namespace: u64,
    /// Inode of the namespace that the log's pids belong to.
    home_namespace: u64,
    state: Mutex<(LogReader, History)>,
}

#[derive(Debug)]
struct Loaded {
    users: u32,
    client: Arc<Client>,
}

static LOADED: Mutex<Option<Loaded>> = Mutex::new(None);

/// Everything that an answer is computed from: the history up to a moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment<'a> {
    client: &'a Client,
    history: &'a History,
    gpu: Option<&'a Gpu>,
    /// The MIG instance that is asked for, of that GPU.
    instance: Option<&'a Part>,
    now_us: u64,
}

/// The functions that answer for a MIG instance.
const ON_INSTANCES: [&str; 10] = [
    "nvmlDeviceGetUUID",
    "nvmlDeviceGetName",
    "nvmlDeviceGetMemoryInfo",
    "nvmlDeviceGetComputeRunningProcesses",
    "nvmlDeviceGetGraphicsRunningProcesses",
    "nvmlDeviceGetMPSComputeRunningProcesses",
    "nvmlDeviceIsMigDeviceHandle",
    "nvmlDeviceGetGpuInstanceId",
    "nvmlDeviceGetComputeInstanceId",
    "nvmlDeviceGetDeviceHandleFromMigDeviceHandle",
];
/// With a number behind, which a prefix would not tell from other functions.
const ATTRIBUTES: &str = "nvmlDeviceGetAttributes_v2";

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic was already answered with 999; the state is replayed from the log and stays valid.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Turns an answer into a return code; a panic into 999.
fn finish(act: impl FnOnce() -> Answer) -> nvmlReturn_t {
    match catch_unwind(AssertUnwindSafe(act)) {
        Ok(Ok(())) => code::SUCCESS,
        Ok(Err(code)) => code,
        Err(_) => code::UNKNOWN,
    }
}

/// `nvmlInit*`.
pub fn init(name: &'static str, profile: &'static Profile) -> nvmlReturn_t {
    finish(|| {
        let mut loaded = locked(&LOADED);
        if let Some(loaded) = loaded.as_mut() {
            loaded.users += 1;
            return Ok(());
        }
        let client = Client::open(profile).map_err(|_| code::DRIVER_NOT_LOADED)?;
        client.query(name, None, |_| Ok(()))?;
        *loaded = Some(Loaded {
            users: 1,
            client: Arc::new(client),
        });
        Ok(())
    })
}

/// `nvmlShutdown`: the last user's shutdown forgets everything.
fn shutdown() -> Answer {
    let mut loaded = locked(&LOADED);
    let users = loaded.as_ref().ok_or(code::UNINITIALIZED)?.users;
    if users > 1 {
        loaded.as_mut().ok_or(code::UNINITIALIZED)?.users -= 1;
    } else {
        *loaded = None;
    }
    Ok(())
}

/// An answer that concerns no GPU.
fn on_library(name: &str, answer: impl FnOnce(&Moment<'_>) -> Answer) -> nvmlReturn_t {
    finish(|| client()?.query(name, None, answer))
}

/// An answer that concerns the GPU with this index.
fn on_gpu(name: &str, index: u32, answer: impl FnOnce(&Moment<'_>, &Gpu) -> Answer) -> Answer {
    client()?.query(name, Some(index), |moment| {
        answer(moment, moment.gpu.ok_or(code::INVALID_ARGUMENT)?)
    })
}

/// An answer that concerns the GPU behind a handle.
fn on_device(
    name: &str,
    device: nvmlDevice_t,
    answer: impl FnOnce(&Moment<'_>, &Gpu) -> Answer,
) -> nvmlReturn_t {
    finish(|| {
        let client = client()?;
        let (index, serial) = parts_of(device).ok_or(code::INVALID_ARGUMENT)?;
        client.query(name, Some(index), |moment| {
            let gpu = moment.gpu.ok_or(code::INVALID_ARGUMENT)?;
            let Some(serial) = serial else {
                return answer(moment, gpu);
            };
            // The handle of a destroyed instance is invalid.
            let mut instances = gpu.instances.iter();
            let instance = instances.find(|instance| instance.serial == serial);
            let instance = Some(instance.ok_or(code::INVALID_ARGUMENT)?);
            if name != ATTRIBUTES && !ON_INSTANCES.iter().any(|known| name.starts_with(known)) {
                return Err(code::NOT_SUPPORTED);
            }
            answer(
                &Moment {
                    instance,
                    ..*moment
                },
                gpu,
            )
        })
    })
}

fn client() -> Result<Arc<Client>, nvmlReturn_t> {
    locked(&LOADED)
        .as_ref()
        .map(|loaded| Arc::clone(&loaded.client))
        .ok_or(code::UNINITIALIZED)
}

/// Handles are numbers that no allocation can have; they are never dereferenced.
const HANDLES: usize = 0x5151_0000;

fn handle_of(index: u32) -> nvmlDevice_t {
    std::ptr::without_provenance_mut(HANDLES + usize::try_from(index).unwrap_or(0) * 8)
}

/// The handles of instances begin here; a GPU may have had this many of them.
const INSTANCE_HANDLES: usize = 0x5152_0000;
const INSTANCES: u32 = 4096;

fn handle_of_instance(index: u32, instance: &Part) -> nvmlDevice_t {
    let number = index * INSTANCES + instance.serial % INSTANCES;
    std::ptr::without_provenance_mut(INSTANCE_HANDLES + usize::try_from(number).unwrap_or(0) * 8)
}

/// The GPU's index, and the serial number of its instance if the handle is one's.
fn parts_of(device: nvmlDevice_t) -> Option<(u32, Option<u32>)> {
    let number = |base: usize| {
        let offset = device.addr().checked_sub(base)?;
        (offset % 8 == 0).then(|| u32::try_from(offset / 8).ok())?
    };
    match number(INSTANCE_HANDLES) {
        Some(number) => Some((number / INSTANCES, Some(number % INSTANCES))),
        None => Some((number(HANDLES)?, None)),
    }
}

impl Client {
    fn open(profile: &'static Profile) -> Result<Self, StateError> {
        let dir = PathBuf::from(std::env::var_os(crate::STATE_DIR).unwrap_or_default());
        let machine = log::read_machine(&dir)?;
        let reader = LogReader::open(&dir)?;
        Ok(Self {
            profile,
            pid_namespace: std::fs::metadata("/proc/self/ns/pid")
                .map_or(machine.pid_namespace, |meta| meta.ino()),
            home_namespace: machine.pid_namespace,
            state: Mutex::new((reader, History::new(&machine))),
        })
    }

    /// The log, by which a caller knows that something has happened.
    fn log_path(&self) -> PathBuf {
        locked(&self.state).0.path().to_owned()
    }

    /// Applies the faults that hit a call, then lets it answer. A blocked call holds no lock: other
    /// calls go on, and the end of the fault, or of its time, lets it through.
    fn query(
        &self,
        name: &str,
        index: Option<u32>,
        answer: impl FnOnce(&Moment<'_>) -> Answer,
    ) -> Answer {
        let called = Instant::now();
        loop {
            let mut state = locked(&self.state);
            let (reader, history) = &mut *state;
            let now_us = reader
                .catch_up(|entry| history.apply(entry))
                .map_err(|_| code::UNKNOWN)?;
            let hit = |call: &str| name.starts_with(call);
            let blocked = history.faults_of(index).any(|(_, fault)| match fault {
                Fault::Delay { call, ms } => {
                    hit(call) && called.elapsed() < Duration::from_millis(*ms)
                }
                _ => false,
            });
            if blocked {
                drop(state);
                thread::sleep(Duration::from_millis(1));
                continue;
            }
            let failure = history.faults_of(index).find_map(|(_, fault)| match fault {
                Fault::Fail { call, code } if hit(call) => Some(*code),
                Fault::FailExactly { call, code } if name == call => Some(*code),
                _ => None,
            });
            if let Some(code) = failure {
                return Err(code);
            }
            let gpu = index.and_then(|index| history.gpus.get(usize::try_from(index).ok()?));
            let now_us = now_us.max(history.last_us());
            return answer(&Moment {
                client: self,
                history,
                gpu,
                instance: None,
                now_us,
            });
        }
    }
}

impl Moment<'_> {
    fn fault(&self, wanted: impl Fn(&Fault) -> bool) -> Option<&Fault> {
        self.history
            .faults_of(self.gpu.map(|gpu| gpu.index))
            .map(|(_, fault)| fault)
            .find(|fault| wanted(fault))
    }

    /// How many rows fewer a size query reports.
    fn growing_rows(&self) -> Option<usize> {
        self.fault(|fault| matches!(fault, Fault::GrowingRows { .. }))
            .map(|fault| match fault {
                Fault::GrowingRows { rows } => usize::try_from(*rows).unwrap_or(usize::MAX),
                _ => 0,
            })
    }

    /// The caller lives in the namespace that the log's pids belong to.
    fn at_home(&self) -> bool {
        self.client.pid_namespace == self.client.home_namespace
    }

    /// A process's pid in the caller's namespace, if it is visible there.
    fn pid_inside(&self, pid: u32) -> Option<u32> {
        let records = self.history.jobs.values().rev();
        let (namespace, inner) = records
            .filter(|record| record.pid == pid)
            .find_map(|record| record.inner_pid)?;
        (namespace == self.client.pid_namespace).then_some(inner)
    }

    /// The pid for a process list; none drops the row.
    fn listed_pid(&self, pid: u32) -> Option<u32> {
        if self.at_home() || !self.client.profile.translates_lists {
            Some(pid)
        } else {
            self.pid_inside(pid)
        }
    }

    /// The pid for a utilisation row.
    fn utilization_pid(&self, pid: u32) -> u32 {
        if self.at_home() || !self.client.profile.translates_utilization {
            pid
        } else {
            self.pid_inside(pid).unwrap_or(pid)
        }
    }
}
