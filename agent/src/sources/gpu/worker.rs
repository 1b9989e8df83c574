//! The thread that asks one GPU, with the instances that it is divided into.
//!
//! It opens the GPU, reports what it found to the supervisor, and receives where the time of the GPU and
//! of its instances continues. Then it closes windows until it is asked to end. It reports to the
//! supervisor. While a call blocks for too long, the supervisor takes the GPU from this thread and
//! ignores its later reports. The thread ends once that call has returned, and another one
//! continues from the driver's ring.
//!
//! An error is not closed as unobserved at once. The driver's ring keeps ten seconds, so asking
//! again within [`PATIENCE`](super::window::PATIENCE) loses nothing. A GPU whose calls fail slowly
//! is asked less often, but still within the ring's ten seconds if its calls take less than that. A
//! GPU whose calls take longer is left to the supervisor.
//!
//! Refused: changing any setting of a GPU, and reading process lists more than once a second, since
//! they take the driver's global lock.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nvml_wrapper::Device;
use nvml_wrapper::error::NvmlError;
use tokio::sync::{mpsc, oneshot};

use super::calls::Watchdog;
use super::device::{self, Gpu};
use super::fault::{NvmlErrorKind, NvmlFailure};
use super::library::Library;
use super::lists;
use super::mig::{self, Activity};
use super::orders::{Order, Orders};
use super::register::{RING, Resume, WorkerId};
use super::schedule::Schedule;
use super::vitals::Vitals;
use super::window::PATIENCE;
use crate::config;
use crate::core::input::{GpuInfo, GpuProcesses, GpuWindow, Input};
use crate::core::model::{GpuUuid, Nanos, UnobservedReason};
use crate::sources::clock;
use crate::sources::retry::Backoff;

/// How often a GPU is asked whether it was divided anew.
const DIVIDED_ANEW: Duration = Duration::from_secs(5);
/// Process lists are never read more often.
pub(super) const LISTS_APART: Duration = Duration::from_secs(1);
/// Reading process lists may take one part in this many of the time.
const LISTS_SHARE: u32 = 100;
/// A failure that takes longer is a slow one.
const SLOW: Nanos = Nanos::from_secs(1);
/// Pauses after slow failures, while the ring still has what was missed.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));

/// Parameters of a worker.
pub(super) struct Task {
    /// Its number.
    pub(super) id: WorkerId,
    /// NVML's index of the GPU.
    pub(super) index: u32,
    /// The GPU that was seen there last.
    pub(super) seen: Option<GpuUuid>,
    /// The library. The worker releases it before it reports its end.
    pub(super) library: Arc<Library>,
    /// Its way into NVML.
    pub(super) watchdog: Watchdog,
    pub(super) orders: Arc<Orders>,
    pub(super) reports: mpsc::Sender<Report>,
    pub(super) schedule: Schedule,
    /// What is read of the GPU's health.
    pub(super) health: config::GpuHealth,
    /// Whether the lists can be read.
    pub(super) lists_readable: bool,
    /// Whether the driver's pids are those of the initial pid namespace. If not, they are a mix of
    /// this namespace's and the host's, and must not be used for billing.
    pub(super) pids_are_known: bool,
}

/// A report of a worker to the supervisor.
pub(super) struct Report {
    pub(super) worker: WorkerId,
    pub(super) news: WorkerEvent,
}

/// Content of a report.
pub(super) enum WorkerEvent {
    /// It has opened its GPU, the first of these, with its instances, and waits for their cursors.
    Opened {
        gpus: Vec<GpuInfo>,
        grant: oneshot::Sender<BTreeMap<GpuUuid, Resume>>,
    },
    /// An observation.
    Observed(Input),
    /// What is wrong with the GPU, if anything is.
    NvmlFailure(Option<GpuFailure>),
    /// It has ended, and has let go of the library.
    Ended(Ending),
}

/// Failure of a GPU that the worker keeps asking.
pub(super) struct GpuFailure {
    pub(super) trouble: NvmlFailure,
    /// Whether the calls took long to fail.
    pub(super) slowly: bool,
    /// Delay until the next attempt.
    pub(super) retry: Duration,
}

/// Why a worker ended.
pub(super) enum Ending {
    /// It was asked to stop, or it was abandoned.
    Stopped,
    /// It cannot go on; whether that took long.
    Failed { trouble: NvmlFailure, slowly: bool },
    /// It panicked: a bug in this code or in the NVML wrapper.
    Panicked,
}

/// Starts a worker.
pub(super) fn start(task: Task) -> std::io::Result<()> {
    let (worker, reports) = (task.id, task.reports.clone());
    std::thread::Builder::new()
        .name(format!("nvml-{}", task.index))
        .spawn(move || {
            // The panic drops all of the worker's state, so no broken state remains.
            let ending = catch_unwind(AssertUnwindSafe(|| task.live()));
            let news = WorkerEvent::Ended(ending.unwrap_or(Ending::Panicked));
            // A supervisor that is gone needs no telling.
            let _ = reports.blocking_send(Report { worker, news });
        })
        .map(drop)
}

/// A device that is open.
struct Open<'library> {
    device: Device<'library>,
    uuid: GpuUuid,
    role: Role<'library>,
}

/// What a device is to MIG.
enum Role<'library> {
    /// A GPU that is not divided.
    Whole,
    /// A GPU whose instances do the work.
    Divided,
    /// One of them, with its measure where it has one.
    Instance(Option<Activity<'library>>),
}

/// A GPU with what its calls cost.
struct PolledGpu {
    gpu: Gpu,
    /// Time that this thread had spent in calls when the GPU was last asked.
    spent: Nanos,
}

struct Worker<'task> {
    task: &'task Task,
    /// The GPU and its instances, the GPU first.
    devices: Vec<Open<'task>>,
    gpus: BTreeMap<GpuUuid, PolledGpu>,
    vitals: Vitals,
    /// When the health is due.
    health_at: Instant,
}

impl Task {
    fn live(self) -> Ending {
        let mut worker = Worker {
            task: &self,
            devices: Vec::new(),
            gpus: BTreeMap::new(),
            vitals: Vitals::new(&self.health),
            health_at: Instant::now(),
        };
        match worker.run() {
            Err(ending) => ending,
        }
    }
}

impl<'task> Worker<'task> {
    fn run(&mut self) -> Result<Infallible, Ending> {
        self.open()?;
        let task = self.task;
        let mut pauses = Backoff::new(PAUSES);
        // Whether the last report was a failure.
        let mut reported = None;
        let mut next = Instant::now();
        let mut lists_at = next;
        let mut lists_earliest = next;
        let mut division_at = next + DIVIDED_ANEW;
        loop {
            let due = if task.lists_readable {
                next.min(lists_at)
            } else {
                next
            };
            match task.orders.wait(due) {
                Order::End => {
                    self.last_windows()?;
                    return Err(Ending::Stopped);
                }
                Order::Lists => {
                    lists_at = lists_at.min(lists_earliest);
                    continue;
                }
                Order::Due => {}
            }
            let began = Instant::now();
            if task.lists_readable && lists_at <= began && lists_at < next {
                self.read_lists()?;
                let took = began.elapsed();
                lists_earliest = began + LISTS_APART.max(took * LISTS_SHARE);
                lists_at = lists_earliest.max(task.schedule.next_lists(began));
                continue;
            }
            next = task.schedule.next_window(began);
            if began >= division_at {
                division_at = began + DIVIDED_ANEW;
                if self.is_divided_anew() {
                    self.open()?;
                    lists_at = lists_earliest;
                }
            }
            let took = self.ask_all()?;
            let trouble = self.trouble();
            let is_lost = |trouble: &NvmlFailure| trouble.fault == NvmlErrorKind::Library;
            if took < SLOW && !trouble.as_ref().is_some_and(is_lost) {
                self.read_health(next)?;
            }
            let Some(trouble) = trouble else {
                pauses.reset();
                if reported != Some(false) {
                    reported = Some(false);
                    self.say(WorkerEvent::NvmlFailure(None))?;
                }
                continue;
            };
            reported = Some(true);
            if trouble.fault == NvmlErrorKind::Library || took >= RING {
                let slowly = took >= RING;
                return Err(Ending::Failed { trouble, slowly });
            }
            let slowly = took >= SLOW;
            if slowly {
                next = Instant::now() + pauses.wait();
            } else {
                pauses.reset();
            }
            self.say(WorkerEvent::NvmlFailure(Some(GpuFailure {
                trouble,
                slowly,
                retry: next.saturating_duration_since(Instant::now()),
            })))?;
        }
    }

    /// Opens the GPU, and every instance if it is divided, and receives where they continue. Measures of
    /// instances that were open before go on.
    fn open(&mut self) -> Result<(), Ending> {
        let began = self.task.watchdog.spent();
        let (mut devices, infos) = self.enumerate().map_err(|trouble| Ending::Failed {
            trouble,
            slowly: self.task.watchdog.spent().minus(began) >= RING,
        })?;
        let mut before = std::mem::take(&mut self.devices);
        for (open, info) in devices.iter_mut().zip(&infos) {
            let Some(asked) = self.gpus.get_mut(&info.uuid) else {
                continue;
            };
            if let Role::Instance(activity) = &mut open.role
                && asked.gpu.info.mig == info.mig
                && let Some(before) = before.iter_mut().find(|before| before.uuid == info.uuid)
                && let Role::Instance(measure @ Some(_)) = &mut before.role
            {
                *activity = measure.take();
            }
            asked.gpu.info = info.clone();
            asked.gpu.has_energy = true;
        }
        self.gpus
            .retain(|uuid, _| infos.iter().any(|info| info.uuid == *uuid));

        let (grant, granted) = oneshot::channel();
        let gpus = infos.clone();
        self.say(WorkerEvent::Opened { gpus, grant })?;
        let granted = granted.blocking_recv().map_err(|_| Ending::Stopped)?;
        let watchdog = &self.task.watchdog;
        for (open, info) in devices.iter().zip(&infos) {
            let Some(resume) = granted.get(&info.uuid) else {
                continue;
            };
            let cursor = resume.cursor.as_ref();
            let (mut gpu, lost) = Gpu::first_sight(&open.device, info, watchdog, cursor);
            gpu.reader.set_silence(resume.reason);
            let spent = watchdog.spent();
            self.gpus
                .insert(info.uuid.clone(), PolledGpu { gpu, spent });
            if let Some(mut lost) = lost {
                blame(&mut lost, &[UnobservedReason::DriverError], resume.reason);
                self.say(WorkerEvent::Observed(Input::Window(lost)))?;
            }
        }
        self.devices = devices;
        Ok(())
    }

    fn enumerate(&self) -> Result<(Vec<Open<'task>>, Vec<GpuInfo>), NvmlFailure> {
        let task = self.task;
        let (device, info) = identify(task)?;
        let uuid = info.uuid.clone();
        let is_divided = mig::is_divided(&device, &uuid, &task.watchdog)
            .map_err(|error| NvmlFailure::new("nvmlDeviceGetMigMode", &error))?;
        if !is_divided {
            let role = Role::Whole;
            return Ok((vec![Open { device, uuid, role }], vec![info]));
        }
        let (nvml, total) = (task.library.nvml(), info.memory_total);
        let instances = mig::instances(nvml, &device, &uuid, total, &task.watchdog)
            .map_err(|error| NvmlFailure::new("its instances", &error))?;
        let mut infos = vec![info.clone()];
        let role = Role::Divided;
        let mut devices = vec![Open { device, uuid, role }];
        for instance in instances {
            devices.push(Open {
                device: instance.device,
                uuid: instance.uuid.clone(),
                role: Role::Instance(instance.activity),
            });
            infos.push(GpuInfo {
                uuid: instance.uuid,
                memory_total: instance.memory_total,
                mig: Some(instance.mig),
                engines: Vec::new(),
                ..info.clone()
            });
        }
        Ok((devices, infos))
    }

    /// Whether the GPU was divided, put together, or divided in another way. What cannot be asked is
    /// left for the windows to find out.
    fn is_divided_anew(&self) -> bool {
        let Some(whole) = self.devices.first() else {
            return false;
        };
        let was_divided = matches!(whole.role, Role::Divided);
        match mig::is_divided(&whole.device, &whole.uuid, &self.task.watchdog) {
            Ok(is_divided) if is_divided != was_divided => return true,
            Ok(true) => {}
            Ok(false) | Err(_) => return false,
        }
        let Some(PolledGpu { gpu, .. }) = self.gpus.get(&whole.uuid) else {
            return false;
        };
        let parts = mig::identities(&whole.device, &gpu.info, &self.task.watchdog);
        parts.is_ok_and(|parts| {
            parts.len() != self.devices.len() - 1
                || parts.iter().any(|(uuid, mig)| {
                    let known = self.gpus.get(uuid);
                    known.and_then(|asked| asked.gpu.info.mig.as_ref()) != Some(mig)
                })
        })
    }

    /// Takes the windows that can be closed. Returns how long the calls took.
    fn ask_all(&mut self) -> Result<Nanos, Ending> {
        let watchdog = &self.task.watchdog;
        let began = watchdog.spent();
        for place in 0..self.devices.len() {
            let before = watchdog.spent();
            let open = &mut self.devices[place];
            let Some(asked) = self.gpus.get_mut(&open.uuid) else {
                continue;
            };
            let window = match &mut open.role {
                Role::Whole | Role::Divided => asked.gpu.poll(&open.device, watchdog),
                Role::Instance(activity) => asked.gpu.poll_instance(activity, watchdog),
            };
            let spent = watchdog.spent();
            let in_all = spent.minus(asked.spent);
            asked.spent = spent;
            let Some(mut window) = window else { continue };
            if spent.minus(before) >= SLOW {
                let failed = [UnobservedReason::DriverError];
                blame(&mut window, &failed, UnobservedReason::DriverTimeout);
            }
            if in_all >= PATIENCE {
                // The driver kept this thread from asking in time.
                let late = [UnobservedReason::AgentPaused, UnobservedReason::RingOverrun];
                blame(&mut window, &late, UnobservedReason::DriverTimeout);
            }
            asked.gpu.accounting.credit(&window.credits);
            let window = self.billable(window);
            self.say(WorkerEvent::Observed(Input::Window(window)))?;
        }
        Ok(watchdog.spent().minus(began))
    }

    /// Reads the GPU's health, if it is due, until the next window is. What there is no time for is read
    /// after that window.
    fn read_health(&mut self, next: Instant) -> Result<(), Ending> {
        let now = Instant::now();
        let Some(whole) = self.devices.first() else {
            return Ok(());
        };
        if !self.vitals.wants(self.health_at, now) {
            return Ok(());
        }
        let watchdog = &self.task.watchdog;
        let health = self.vitals.read(&whole.device, &whole.uuid, watchdog, next);
        if let Some(health) = health {
            self.health_at = self.task.schedule.next_health(now);
            self.say(WorkerEvent::Observed(Input::GpuHealth(health)))?;
        }
        Ok(())
    }

    /// On the way out: what can still be closed.
    fn last_windows(&mut self) -> Result<(), Ending> {
        self.ask_all().map(drop)
    }

    /// The most severe failure of the GPU and its instances.
    fn trouble(&self) -> Option<NvmlFailure> {
        let mut all = self.devices.iter().filter_map(|open| {
            let asked = self.gpus.get(&open.uuid)?;
            asked.gpu.fault.clone()
        });
        let first = all.next()?;
        Some(
            all.fold(first, |gravest, other| match (gravest.fault, other.fault) {
                (NvmlErrorKind::Library, _) => gravest,
                (_, NvmlErrorKind::Library) => other,
                (NvmlErrorKind::Other | NvmlErrorKind::Unsupported, NvmlErrorKind::Lost) => other,
                _ => gravest,
            }),
        )
    }

    /// A window as it can be billed.
    fn billable(&self, mut window: GpuWindow) -> GpuWindow {
        if !self.task.pids_are_known {
            window.no_row = window.busy;
            window.below_resolution = Nanos::ZERO;
            window.credits.clear();
            window.engines.clear();
        }
        window
    }

    /// Reads the process lists, and asks the driver's own accounting. Both are details: a failure
    /// here does not affect the windows.
    fn read_lists(&mut self) -> Result<(), Ending> {
        for place in 0..self.devices.len() {
            self.list(place)?;
            self.account(place)?;
        }
        Ok(())
    }

    /// Reads one device's process lists. A divided GPU's processes are listed by its instances, each
    /// once.
    fn list(&self, place: usize) -> Result<(), Ending> {
        let watchdog = &self.task.watchdog;
        let Open { device, uuid, role } = &self.devices[place];
        let read = match role {
            Role::Divided => Ok(Vec::new()),
            Role::Whole | Role::Instance(_) => lists::read(device, uuid, watchdog),
        };
        let processes = match read {
            Ok(processes) => processes,
            Err(error) => {
                tracing::debug!(gpu = uuid.as_str(), %error, "cannot read the process lists");
                return Ok(());
            }
        };
        let memory = watchdog.call("nvmlDeviceGetMemoryInfo", Some(uuid), || {
            device.memory_info()
        });
        self.say(WorkerEvent::Observed(Input::GpuProcesses(GpuProcesses {
            gpu: uuid.clone(),
            at: clock::now().boot,
            processes,
            memory_used: memory.ok().map(|memory| memory.used),
        })))
    }

    /// Asks the driver's own accounting about the dead, where it is on.
    fn account(&mut self, place: usize) -> Result<(), Ending> {
        let Open { device, uuid, role } = &self.devices[place];
        let (true, Some(PolledGpu { gpu, .. })) =
            (matches!(role, Role::Whole), self.gpus.get_mut(uuid))
        else {
            return Ok(()); // There is none under MIG.
        };
        let (period, through) = gpu.accounted();
        let watchdog = &self.task.watchdog;
        match gpu.accounting.read(device, uuid, period, through, watchdog) {
            Ok(dead) => {
                for process in dead {
                    self.say(WorkerEvent::Observed(Input::Accounted(process)))?;
                }
            }
            Err(error) => {
                tracing::debug!(gpu = uuid.as_str(), %error, "cannot read the driver's accounting");
            }
        }
        Ok(())
    }

    /// Tells the supervisor. It waits while that has no room: the driver's ring buffers for it.
    fn say(&self, news: WorkerEvent) -> Result<(), Ending> {
        if self.task.watchdog.is_retired() {
            return Err(Ending::Stopped);
        }
        let worker = self.task.id;
        let said = self.task.reports.blocking_send(Report { worker, news });
        said.map_err(|_| Ending::Stopped)
    }
}

/// Replaces the reason of unobserved time where it is one of these.
fn blame(window: &mut GpuWindow, of: &[UnobservedReason], reason: UnobservedReason) {
    for (known, _) in &mut window.unobserved {
        if of.contains(known) {
            *known = reason;
        }
    }
}

/// Opens a GPU and asks what it is.
fn identify(task: &Task) -> Result<(Device<'_>, GpuInfo), NvmlFailure> {
    const HANDLE: &str = "nvmlDeviceGetHandleByIndex";
    const UUID: &str = "nvmlDeviceGetUUID";
    let (nvml, watchdog) = (task.library.nvml(), &task.watchdog);
    let failed = |call| move |error: NvmlError| NvmlFailure::new(call, &error);
    let device = watchdog
        .call(HANDLE, task.seen.as_ref(), || {
            nvml.device_by_index(task.index)
        })
        .map_err(failed(HANDLE))?;
    let uuid = watchdog
        .call(UUID, task.seen.as_ref(), || device.uuid())
        .map_err(failed(UUID))?;
    let uuid = GpuUuid::from(uuid.as_str());
    let model = watchdog.call("nvmlDeviceGetName", Some(&uuid), || device.name());
    let memory = watchdog.call("nvmlDeviceGetMemoryInfo", Some(&uuid), || {
        device.memory_info()
    });
    let minor = watchdog.call("nvmlDeviceGetMinorNumber", Some(&uuid), || {
        device.minor_number()
    });
    let address = watchdog.call("nvmlDeviceGetPciInfo_v3", Some(&uuid), || {
        let pci = device.pci_info()?;
        Ok(format!("{:04x}:{:02x}:{:02x}", pci.domain, pci.bus, pci.device).into())
    });
    let info = GpuInfo {
        index: task.index,
        minor: minor.ok(),
        pci: address.ok(),
        model: model.map_or_else(|_| "unknown".into(), Arc::from),
        driver: task.library.driver.clone(),
        simulated: task.library.simulated,
        memory_total: memory.ok().map(|memory| memory.total),
        mig: None,
        engines: device::engines(&device, &uuid, watchdog).to_vec(),
        uuid,
    };
    Ok((device, info))
}
