//! The thread that asks NVML.
//!
//! NVML's calls can block in the driver, so they are made on one thread of their own, which may be
//! stuck without anything else noticing more than windows that come late. [`Watchdog`] tells the
//! others which call it is stuck in.
//!
//! ```text
//!            ┌───── backoff, time closed as driver_error ◀────┐
//!            ▼                                                │
//!   looking for the library ──init──▶ asking, each GPU by itself ──library or GPU lost──▶ closing
//! ```
//!
//! - The library may be absent at start, come late, and go with a driver reload: it is looked for
//!   for ever, with backoff. Absent is normal; anything else is down, with a reason.
//! - Each GPU has its own cursor and its own faults. A GPU that falls off the bus does not hold up
//!   the others; the library is opened anew for its sake, ever more rarely. Nor is it
//!   ever forgotten: one that cannot be opened, or is listed no more, goes on being not observed, and
//!   the source degraded, until it is back or the agent restarts. Silence would pass for idleness.
//!   One that an initialised library does not list at all was given back: it leaves the published
//!   list, and its time is `released`, as is everybody's while the driver is unloaded.
//! - The instances of a GPU in MIG mode are GPUs of their own; see [`mig`]. Every few
//!   seconds the GPUs are asked whether they were divided anew. An instance that is gone while its
//!   GPU is there was destroyed: its time is over.
//! - An error is not closed as unobserved at once: the driver's ring keeps ten seconds, so that
//!   asking again within [`window::PATIENCE`](super::window::PATIENCE) loses nothing.
//! - Windows are never dropped. The channel is bounded, and a full one makes this thread wait: it
//!   can, since the driver's ring buffers for it, and what it then misses is booked as unobserved.
//!
//! Refused: changing any setting of a GPU, and reading process lists more than once a second, since
//! they take the driver's global lock.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nvml_wrapper::Device;
use nvml_wrapper::error::NvmlError;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior};

pub use super::calls::{CallFigures, Watchdog};
use super::device::{self, Gpu, Trouble};
use super::library::{Fault, Library, OpenError};
use super::lists;
use super::mig::{self, Activity};
pub use super::window::Cursor;
use crate::core::input::{GpuInfo, GpuProcesses, GpuWindow, Input, SourceHealth};
use crate::core::model::{BootTime, GpuUuid, Nanos, SourceId, SourceState};
use crate::sources::clock;

/// Beyond this between two windows, a few late polls would lose samples of the ring.
const LONGEST_INTERVAL: Duration = Duration::from_secs(5);
/// Below this the calls cost more than the samples are worth: there are six a second.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(100);
/// How often a GPU is asked whether it was divided anew.
const DIVIDED_ANEW: Duration = Duration::from_secs(5);
/// Process lists are never read more often.
const LISTS_APART: Duration = Duration::from_secs(1);
/// Process lists may take one part in this of the time.
const LISTS_SHARE: u32 = 100;
/// Waits between attempts to open the library double from the one to the other.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// The same for opening it anew because of a GPU in trouble: that interrupts the others.
const REOPEN: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));
/// The initial pid namespace: its inode number is fixed in the kernel (`PROC_PID_INIT_INO`).
pub const INITIAL_PID_NAMESPACE: &str = "pid:[4026531836]";

/// How NVML is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The library; looked for in the usual places if absent.
    pub library: Option<PathBuf>,
    /// Time between two windows of a GPU: 100 ms to 5 s.
    pub interval: Duration,
    /// Time between two readings of the process lists, unless something asks for them: 1 s at least.
    pub lists_interval: Duration,
    /// Where an agent before this one stopped, by GPU.
    pub cursors: Vec<Cursor>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            library: None,
            interval: Duration::from_secs(1),
            lists_interval: Duration::from_secs(5),
            cursors: Vec::new(),
        }
    }
}

/// Why the NVML thread was not started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The windows would be too long or too short.
    #[error(
        "window interval is {found:?}, expected {SHORTEST_INTERVAL:?} to {LONGEST_INTERVAL:?}: \
         the driver keeps ten seconds of samples"
    )]
    Interval {
        /// What was configured.
        found: Duration,
    },
    /// The process lists would be read too often.
    #[error("process list interval is {found:?}, expected at least {LISTS_APART:?}")]
    ListsInterval {
        /// What was configured.
        found: Duration,
    },
    /// The thread or its timer could not be made.
    #[error("cannot start the nvml thread")]
    Thread(#[from] std::io::Error),
}

impl Config {
    /// Whether these intervals can be kept.
    pub fn validate(&self) -> Result<(), SpawnError> {
        if !(SHORTEST_INTERVAL..=LONGEST_INTERVAL).contains(&self.interval) {
            return Err(SpawnError::Interval {
                found: self.interval,
            });
        }
        if self.lists_interval < LISTS_APART {
            return Err(SpawnError::ListsInterval {
                found: self.lists_interval,
            });
        }
        Ok(())
    }
}

/// The running thread, seen from outside.
#[derive(Debug)]
pub struct NvmlHandle {
    watchdog: Watchdog,
    stopped: oneshot::Receiver<()>,
}

impl NvmlHandle {
    /// What the thread is doing; readable while it is blocked.
    #[must_use]
    pub fn watchdog(&self) -> Watchdog {
        self.watchdog.clone()
    }

    /// Waits until the thread is over. After a shutdown that takes as long as the call in progress,
    /// perhaps for ever: whoever waits sets a limit.
    pub async fn stopped(self) {
        // An error means that the thread is over too.
        let _ = self.stopped.await;
    }
}

/// Starts the thread.
///
/// `lists_wanted` asks for the process lists soon; a channel of one is enough, since one reading
/// serves all who asked before it. The thread ends when `shutdown` turns true or `out` closes.
pub fn spawn(
    config: Config,
    out: mpsc::Sender<Input>,
    lists_wanted: mpsc::Receiver<()>,
    shutdown: watch::Receiver<bool>,
) -> Result<NvmlHandle, SpawnError> {
    config.validate()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()?;
    let watchdog = Watchdog::default();
    let (on_stop, stopped) = oneshot::channel();
    let farewell = out.clone();
    let source = Source {
        config,
        out,
        lists_wanted: Some(lists_wanted),
        shutdown,
        watchdog: watchdog.clone(),
        gpus: BTreeMap::new(),
        published: None,
        unopened: None,
        health: None,
        namespace: pid_namespace(),
    };
    std::thread::Builder::new()
        .name("nvml".into())
        .spawn(move || {
            let live = AssertUnwindSafe(|| runtime.block_on(source.live()));
            // The source itself is gone with the panic: there is no state to be found broken.
            if catch_unwind(live).is_err() {
                // A receiver that is gone needs no telling.
                let _ = farewell.blocking_send(Input::Health(panicked()));
            }
            // Nobody waiting is fine.
            let _ = on_stop.send(());
        })?;
    Ok(NvmlHandle { watchdog, stopped })
}

/// Everything that outlives one session of the library.
struct Source {
    config: Config,
    out: mpsc::Sender<Input>,
    /// Absent once nobody can ask any more.
    lists_wanted: Option<mpsc::Receiver<()>>,
    shutdown: watch::Receiver<bool>,
    watchdog: Watchdog,
    /// Every GPU seen since the start. None is ever forgotten: see the module's documentation.
    gpus: BTreeMap<GpuUuid, Gpu>,
    /// The list that was sent last.
    published: Option<Vec<GpuInfo>>,
    /// A GPU that NVML counts and this session could not open: its index, and why.
    unopened: Option<(u32, Trouble)>,
    health: Option<SourceHealth>,
    /// The pid namespace that this process is in, if it is not the initial one.
    namespace: Option<Arc<str>>,
}

/// A device that this session of the library has open.
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

/// Why a session of the library is over.
enum Over {
    /// The agent stops.
    Stop,
    /// The library has to be opened anew, for this reason.
    Reopen(Trouble),
}

/// The receiver is gone or the agent stops: there is nothing left to do.
struct Stop;

/// Waits that double.
struct Backoff {
    next: Duration,
    range: (Duration, Duration),
}

impl Backoff {
    const fn new(range: (Duration, Duration)) -> Self {
        Self {
            next: range.0,
            range,
        }
    }

    fn wait(&mut self) -> Duration {
        let wait = self.next;
        self.next = (wait * 2).min(self.range.1);
        wait
    }

    fn reset(&mut self) {
        self.next = self.range.0;
    }
}

impl Source {
    async fn live(mut self) {
        let mut retry = Backoff::new(RETRY);
        let mut reopen = Backoff::new(REOPEN);
        loop {
            let configured = self.config.library.clone();
            let failed = match Library::open(configured.as_deref(), &self.watchdog) {
                Ok(library) => match self.serve(&library, &mut retry, &mut reopen).await {
                    Over::Stop => return,
                    Over::Reopen(trouble) => Failed::Session(trouble),
                },
                Err(error) => Failed::Open(error),
            };
            if self.wait(&failed, retry.wait()).await.is_err() {
                return;
            }
        }
    }

    /// Waits before the library is opened again. Meanwhile the known GPUs' time is not observed.
    async fn wait(&mut self, failed: &Failed, wait: Duration) -> Result<(), Stop> {
        let until = Instant::now() + wait;
        let next_retry = after(wait);
        let place = failed.place(&self.config);
        let state = failed.state(next_retry);
        let normal = state == SourceState::Absent;
        if self.set_health(state, &place).await? {
            let reason = failed.reason();
            if normal {
                tracing::info!(reason, "NVML is not here");
            } else {
                tracing::warn!(reason, "NVML is not available");
            }
        }
        for gpu in self.gpus.values_mut() {
            gpu.open = false;
            gpu.released = failed.is_unloaded();
        }
        loop {
            self.close_overdue().await?;
            let tick = (Instant::now() + self.config.interval).min(until);
            tokio::select! {
                biased;
                _ = stopped(&mut self.shutdown) => return Err(Stop),
                () = tokio::time::sleep_until(tick) => {}
            }
            if Instant::now() >= until {
                return Ok(());
            }
        }
    }

    /// Closes what has been open for too long on every GPU that does not answer.
    async fn close_overdue(&mut self) -> Result<(), Stop> {
        let silent = |gpu: &&mut Gpu| !gpu.open || gpu.fault.is_some();
        let windows: Vec<_> = self
            .gpus
            .values_mut()
            .filter(silent)
            .filter_map(Gpu::close_overdue)
            .collect();
        for window in windows {
            self.send(Input::Window(window)).await?;
        }
        Ok(())
    }

    /// Asks one session of the library until it ends.
    async fn serve(
        &mut self,
        library: &Library,
        retry: &mut Backoff,
        reopen: &mut Backoff,
    ) -> Over {
        match self.ask(library, retry, reopen).await {
            Ok(trouble) => Over::Reopen(trouble),
            Err(Stop) => {
                self.last_windows(library);
                Over::Stop
            }
        }
    }

    async fn ask(
        &mut self,
        library: &Library,
        retry: &mut Backoff,
        reopen: &mut Backoff,
    ) -> Result<Trouble, Stop> {
        let mut devices = match self.enumerate(library, Vec::new()).await? {
            Ok(devices) => devices,
            Err(trouble) => return Ok(trouble),
        };
        let mut ticks = tokio::time::interval(self.config.interval);
        // A tick missed in a blocked call is not made up for: one window covers the whole time.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let lists_readable = lists::readable(&library.driver);
        if !lists_readable {
            tracing::warn!(
                driver = &*library.driver,
                "process lists of this driver are unreadable and left out"
            );
        }
        let lists_readable = lists_readable && self.namespace.is_none();
        let mut lists_at = Instant::now();
        let mut lists_earliest = lists_at;
        let mut reopen_at = None;
        let mut division_at = Instant::now() + DIVIDED_ANEW;
        loop {
            tokio::select! {
                biased;
                _ = stopped(&mut self.shutdown) => return Err(Stop),
                _ = ticks.tick() => {
                    if Instant::now() >= division_at {
                        division_at = Instant::now() + DIVIDED_ANEW;
                        if self.is_divided_anew(&devices) {
                            devices = match self.enumerate(library, devices).await? {
                                Ok(devices) => devices,
                                Err(trouble) => return Ok(trouble),
                            };
                            lists_at = lists_earliest;
                        }
                    }
                    for open in &mut devices {
                        self.tick(open).await?;
                    }
                    self.close_overdue().await?;
                    let trouble = self.troubles();
                    if let Some(trouble) = &trouble {
                        let wait = || Instant::now() + reopen.wait();
                        let at = *reopen_at.get_or_insert_with(wait);
                        if trouble.fault == Fault::Library || Instant::now() >= at {
                            return Ok(trouble.clone());
                        }
                    } else {
                        reopen_at = None;
                        reopen.reset();
                    }
                    retry.reset();
                    self.report(trouble, library).await?;
                }
                // Once they are wanted, further wishes wait: they are served by the same reading.
                () = wanted(&mut self.lists_wanted), if lists_readable && lists_at > lists_earliest => {
                    lists_at = lists_earliest;
                }
                () = tokio::time::sleep_until(lists_at), if lists_readable => {
                    let began = Instant::now();
                    for open in &devices {
                        self.lists(open).await?;
                        self.accounting(open).await?;
                    }
                    let took = began.elapsed();
                    lists_earliest = began + LISTS_APART.max(took * LISTS_SHARE);
                    lists_at = lists_earliest.max(began + self.config.lists_interval);
                }
            }
        }
    }

    /// Opens every GPU that NVML lists, and every instance of those that are divided, and publishes
    /// the list. Measures of instances that were `known` go on.
    async fn enumerate<'library>(
        &mut self,
        library: &'library Library,
        mut known: Vec<Open<'library>>,
    ) -> Result<Result<Vec<Open<'library>>, Trouble>, Stop> {
        let nvml = library.nvml();
        let count = match self
            .watchdog
            .call("nvmlDeviceGetCount", None, || nvml.device_count())
        {
            Ok(count) => count,
            Err(error) => return Ok(Err(Trouble::new("nvmlDeviceGetCount", &error))),
        };
        if count == 0 && self.gpus.is_empty() {
            return Ok(Err(Trouble::no_gpu()));
        }
        let mut devices: Vec<(Open<'library>, GpuInfo)> = Vec::new();
        self.unopened = None;
        for index in 0..count {
            if let Err(error) = self.open(library, index, &mut devices) {
                tracing::warn!(index, %error, "a GPU cannot be opened");
                let trouble = Trouble::new("opening it", &error);
                self.unopened = Some((index, trouble));
            }
        }

        let is_open = |uuid: &GpuUuid| devices.iter().any(|(_, info)| info.uuid == *uuid);
        self.gpus.retain(|uuid, gpu| {
            let whole = gpu.info.mig.as_ref().map(|mig| &mig.parent);
            is_open(uuid) || !whole.is_some_and(is_open) || self.unopened.is_some()
        });
        for gpu in self.gpus.values_mut() {
            gpu.open = is_open(&gpu.info.uuid);
            // One that cannot be opened may be any of those that are missing.
            gpu.released = !gpu.open && self.unopened.is_none();
            gpu.fault = (!gpu.open).then(Trouble::gone);
        }
        let mut lost_before = Vec::new();
        for (open, info) in &mut devices {
            if let Some(gpu) = self.gpus.get_mut(&info.uuid) {
                if let Role::Instance(activity) = &mut open.role
                    && gpu.info.mig == info.mig
                {
                    let before = known.iter_mut().find(|known| known.uuid == info.uuid);
                    if let Some(Open {
                        role: Role::Instance(before @ Some(_)),
                        ..
                    }) = before
                    {
                        *activity = before.take();
                    }
                }
                // A question that failed this time takes back nothing.
                let engines = std::mem::take(&mut gpu.info.engines);
                gpu.info = info.clone();
                if gpu.info.engines.is_empty() && matches!(open.role, Role::Whole) {
                    gpu.info.engines = engines;
                }
                gpu.has_energy = true;
            } else {
                // It is where the agent before this one stopped, and gone on from once: what is made
                // anew under the same UUID begins now.
                let mut cursors = self.config.cursors.iter();
                let cursor = cursors.position(|cursor| cursor.gpu == info.uuid);
                let cursor = cursor.map(|at| self.config.cursors.swap_remove(at));
                let (gpu, lost) =
                    Gpu::first_sight(&open.device, info, &self.watchdog, cursor.as_ref());
                self.gpus.insert(info.uuid.clone(), gpu);
                lost_before.extend(lost);
            }
        }

        let mut listed: Vec<GpuInfo> = self
            .gpus
            .values()
            .filter(|gpu| !gpu.released)
            .map(|gpu| gpu.info.clone())
            .collect();
        listed.sort_by_cached_key(|info| {
            let instance = info.mig.as_ref();
            let ids = instance.map(|mig| (mig.gpu_instance, mig.compute_instance));
            (info.index, ids, info.uuid.clone())
        });
        if self.published.as_ref() != Some(&listed) {
            tracing::info!(
                gpus = listed.len(),
                library = &*library.place,
                "NVML lists its GPUs"
            );
            self.published = Some(listed.clone());
            self.send(Input::Gpus(listed)).await?;
        }
        for window in lost_before {
            self.send(Input::Window(window)).await?;
        }
        Ok(Ok(devices.into_iter().map(|(open, _)| open).collect()))
    }

    /// Opens one GPU, with its instances.
    fn open<'library>(
        &self,
        library: &'library Library,
        index: u32,
        devices: &mut Vec<(Open<'library>, GpuInfo)>,
    ) -> Result<(), NvmlError> {
        let (device, info) = self.identify(library, index)?;
        let uuid = info.uuid.clone();
        if !mig::is_divided(&device, &uuid, &self.watchdog)? {
            let role = Role::Whole;
            devices.push((Open { device, uuid, role }, info));
            return Ok(());
        }
        let (nvml, total) = (library.nvml(), info.memory_total);
        let instances = mig::instances(nvml, &device, &uuid, total, &self.watchdog);
        let whole = info.clone();
        let role = Role::Divided;
        devices.push((Open { device, uuid, role }, info));
        for instance in instances? {
            let open = Open {
                device: instance.device,
                uuid: instance.uuid.clone(),
                role: Role::Instance(instance.activity),
            };
            let info = GpuInfo {
                uuid: instance.uuid,
                memory_total: instance.memory_total,
                mig: Some(instance.mig),
                engines: Vec::new(),
                ..whole.clone()
            };
            devices.push((open, info));
        }
        Ok(())
    }

    /// Whether a GPU was divided, put together, or divided in another way. What cannot be asked is
    /// left for the windows to find out.
    fn is_divided_anew(&self, devices: &[Open<'_>]) -> bool {
        devices.iter().any(|open| {
            let divided = match open.role {
                Role::Whole => false,
                Role::Divided => true,
                Role::Instance(_) => return false,
            };
            match mig::is_divided(&open.device, &open.uuid, &self.watchdog) {
                Ok(now) if now != divided => return true,
                Ok(true) => {}
                Ok(false) | Err(_) => return false,
            }
            let of_it = |gpu: &&Gpu| {
                let mig = gpu.info.mig.as_ref();
                mig.is_some_and(|mig| mig.parent == open.uuid)
            };
            let known: BTreeMap<&GpuUuid, &GpuInfo> = self
                .gpus
                .values()
                .filter(of_it)
                .map(|gpu| (&gpu.info.uuid, &gpu.info))
                .collect();
            let Some(whole) = self.gpus.get(&open.uuid) else {
                return false;
            };
            let parts = mig::identities(&open.device, &whole.info, &self.watchdog);
            parts.is_ok_and(|parts| {
                parts.len() != known.len()
                    || parts.iter().any(|(uuid, mig)| {
                        known.get(uuid).and_then(|info| info.mig.as_ref()) != Some(mig)
                    })
            })
        })
    }

    fn identify<'library>(
        &self,
        library: &'library Library,
        index: u32,
    ) -> Result<(Device<'library>, GpuInfo), NvmlError> {
        let nvml = library.nvml();
        let call = &self.watchdog;
        let device = call.call("nvmlDeviceGetHandleByIndex", None, || {
            nvml.device_by_index(index)
        })?;
        let uuid = call.call("nvmlDeviceGetUUID", None, || device.uuid())?;
        let uuid = GpuUuid::from(uuid.as_str());
        let model = call.call("nvmlDeviceGetName", Some(&uuid), || device.name());
        let memory = call.call("nvmlDeviceGetMemoryInfo", Some(&uuid), || {
            device.memory_info()
        });
        let minor = call.call("nvmlDeviceGetMinorNumber", Some(&uuid), || {
            device.minor_number()
        });
        let info = GpuInfo {
            index,
            minor: minor.ok(),
            model: model.map_or_else(|_| "unknown".into(), Arc::from),
            driver: library.driver.clone(),
            simulated: library.simulated,
            memory_total: memory.ok().map(|memory| memory.total),
            mig: None,
            engines: device::engines(&device, &uuid, call).to_vec(),
            uuid,
        };
        Ok((device, info))
    }

    /// Takes one GPU's window, if it can be closed.
    async fn tick(&mut self, open: &mut Open<'_>) -> Result<(), Stop> {
        let Some(gpu) = self.gpus.get_mut(&open.uuid) else {
            return Ok(());
        };
        let window = match &mut open.role {
            Role::Whole | Role::Divided => gpu.poll(&open.device, &self.watchdog),
            Role::Instance(activity) => gpu.poll_instance(activity, &self.watchdog),
        };
        if let Some(window) = window {
            gpu.accounting.credit(&window.credits);
            self.send(Input::Window(self.billable(window))).await?;
        }
        Ok(())
    }

    /// A window as it can be billed. In another pid namespace than the initial one the driver's pids are
    /// a mix of this one's and the host's: nobody can be billed by them.
    fn billable(&self, mut window: GpuWindow) -> GpuWindow {
        if self.namespace.is_some() {
            window.no_row = window.busy;
            window.below_resolution = Nanos::ZERO;
            window.credits.clear();
            window.engines.clear();
        }
        window
    }

    /// Asks the driver's own accounting about the dead, where it is on. It is a check, and what fails
    /// here is no fault of anything.
    async fn accounting(&mut self, open: &Open<'_>) -> Result<(), Stop> {
        let (device, uuid) = (&open.device, &open.uuid);
        let Some(gpu) = self.gpus.get_mut(uuid) else {
            return Ok(());
        };
        if !matches!(open.role, Role::Whole) {
            return Ok(()); // There is none under MIG.
        }
        let (period, through) = gpu.accounted();
        let accounting = &mut gpu.accounting;
        match accounting.read(device, uuid, period, through, &self.watchdog) {
            Ok(dead) => {
                for process in dead {
                    self.send(Input::Accounted(process)).await?;
                }
            }
            Err(error) => {
                tracing::debug!(gpu = uuid.as_str(), %error, "accounting cannot be read");
            }
        }
        Ok(())
    }

    /// On the way out: what can be billed without waiting for anybody. An instance's measure ended
    /// with the session.
    fn last_windows(&mut self, library: &Library) {
        let whole = |gpu: &&mut Gpu| gpu.open && gpu.info.mig.is_none();
        let mut windows = Vec::new();
        for gpu in self.gpus.values_mut().filter(whole) {
            let uuid = gpu.info.uuid.clone();
            let device = self
                .watchdog
                .call("nvmlDeviceGetHandleByUUID", Some(&uuid), || {
                    library.nvml().device_by_uuid(uuid.as_str())
                });
            let device = device.ok();
            windows.extend(device.and_then(|device| gpu.poll(&device, &self.watchdog)));
        }
        for window in windows {
            // A core that stopped first, or is behind, must not hold up the end.
            let _ = self.out.try_send(Input::Window(self.billable(window)));
        }
    }

    /// Reads one GPU's process lists. They are detail: what fails here is no fault of the windows.
    ///
    /// A divided GPU's processes are listed by its instances, each once.
    async fn lists(&mut self, open: &Open<'_>) -> Result<(), Stop> {
        let (device, uuid) = (&open.device, &open.uuid);
        let read = match open.role {
            Role::Divided => Ok(Vec::new()),
            Role::Whole | Role::Instance(_) => lists::read(device, uuid, &self.watchdog),
        };
        let processes = match read {
            Ok(processes) => processes,
            Err(error) => {
                tracing::debug!(gpu = uuid.as_str(), %error, "process lists cannot be read");
                return Ok(());
            }
        };
        let memory = self
            .watchdog
            .call("nvmlDeviceGetMemoryInfo", Some(uuid), || {
                device.memory_info()
            });
        self.send(Input::GpuProcesses(GpuProcesses {
            gpu: uuid.clone(),
            at: clock::now().boot,
            processes,
            memory_used: memory.ok().map(|memory| memory.used),
        }))
        .await
    }

    /// The gravest of the GPUs' troubles, in words that say how many have some.
    fn troubles(&self) -> Option<Trouble> {
        let unopened = self.unopened.as_ref().map(|(index, trouble)| {
            let name = format!("GPU {index}");
            (name, trouble)
        });
        let mut all: Vec<(String, &Trouble)> = self
            .gpus
            .values()
            .filter_map(|gpu| Some((gpu.info.uuid.to_string(), gpu.fault.as_ref()?)))
            .chain(unopened)
            .collect();
        all.sort_by_key(|(_, trouble)| match trouble.fault {
            Fault::Library => 0,
            Fault::Lost => 1,
            Fault::Other => 2,
            Fault::Unsupported => 3,
        });
        let (name, gravest) = all.first()?;
        let others = match all.len() - 1 {
            0 => String::new(),
            others => format!(" (and {others} more GPUs in trouble)"),
        };
        Some(Trouble {
            text: format!("{name}: {}{others}", gravest.text),
            ..(*gravest).clone()
        })
    }

    /// Says how the source is while the library answers.
    async fn report(&mut self, trouble: Option<Trouble>, library: &Library) -> Result<(), Stop> {
        let state = match (trouble, &self.namespace) {
            (Some(trouble), _) => SourceState::Down {
                class: trouble.class.into(),
                reason: trouble.text.into(),
                next_retry: None,
            },
            (None, Some(namespace)) => SourceState::Down {
                class: "pid_namespace".into(),
                reason: format!(
                    "in pid namespace {namespace}, expected {INITIAL_PID_NAMESPACE}: NVML's pids \
                     cannot be told apart (run with hostPID)"
                )
                .into(),
                next_retry: None,
            },
            (None, None) => SourceState::Up,
        };
        let place = library.place.clone();
        if self.set_health(state, &place).await?
            && let Some(SourceHealth {
                state: SourceState::Down { reason, .. },
                ..
            }) = &self.health
        {
            tracing::warn!(reason = &**reason, "NVML is degraded");
        }
        Ok(())
    }

    /// Sends the state if it is news, which it gives back. Another time of retry is no news for the
    /// log, and is sent.
    async fn set_health(&mut self, state: SourceState, place: &Arc<str>) -> Result<bool, Stop> {
        if let Some(known) = &self.health
            && known.state == state
            && known.place == *place
        {
            return Ok(false);
        }
        let same = self
            .health
            .as_ref()
            .filter(|known| same_trouble(&known.state, &state))
            .map(|known| known.since);
        let health = SourceHealth {
            source: SourceId::Nvml,
            state,
            since: same.unwrap_or_else(|| clock::now().boot),
            place: place.clone(),
        };
        self.health = Some(health.clone());
        self.send(Input::Health(health)).await?;
        Ok(same.is_none())
    }

    async fn send(&mut self, input: Input) -> Result<(), Stop> {
        tokio::select! {
            biased;
            sent = self.out.send(input) => sent.map_err(|_| Stop),
            _ = stopped(&mut self.shutdown) => Err(Stop),
        }
    }
}

/// Why there is no session.
enum Failed {
    Open(OpenError),
    Session(Trouble),
}

impl Failed {
    fn state(&self, next_retry: BootTime) -> SourceState {
        let class = match self {
            Self::Open(OpenError::Absent) => return SourceState::Absent,
            Self::Open(error) => error.class(),
            Self::Session(trouble) => trouble.class,
        };
        SourceState::Down {
            class: class.into(),
            reason: self.reason().into(),
            next_retry: Some(next_retry),
        }
    }

    /// Whether there is no driver, rather than one that fails.
    fn is_unloaded(&self) -> bool {
        match self {
            Self::Open(error) => error.is_unloaded(),
            Self::Session(trouble) => trouble.class == "driver_not_loaded",
        }
    }

    fn reason(&self) -> String {
        match self {
            Self::Open(error) => error.reason(),
            Self::Session(trouble) => trouble.text.clone(),
        }
    }

    fn place(&self, config: &Config) -> Arc<str> {
        let path = match self {
            Self::Open(OpenError::Load { path, .. } | OpenError::Init { path, .. }) => Some(path),
            _ => config.library.as_ref(),
        };
        path.map_or("", |path| path.to_str().unwrap_or_default())
            .into()
    }
}

/// Whether a state is the one before it, but for the time of the next attempt.
fn same_trouble(one: &SourceState, other: &SourceState) -> bool {
    match (one, other) {
        (
            SourceState::Down { class, reason, .. },
            SourceState::Down {
                class: other_class,
                reason: other_reason,
                ..
            },
        ) => class == other_class && reason == other_reason,
        _ => one == other,
    }
}

/// What is said of a thread that met a defect, in this code or in the wrapper's.
fn panicked() -> SourceHealth {
    SourceHealth {
        source: SourceId::Nvml,
        state: SourceState::Down {
            class: "panic".into(),
            reason: "the nvml thread panicked: GPU time is not observed until the agent restarts"
                .into(),
            next_retry: None,
        },
        since: clock::now().boot,
        place: "".into(),
    }
}

/// The boot time after a wait.
fn after(wait: Duration) -> BootTime {
    let nanos = u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX);
    clock::now().boot.plus(Nanos(nanos))
}

/// Returns once the agent stops; a sender that is gone means the same.
async fn stopped(shutdown: &mut watch::Receiver<bool>) {
    // The value's guard must not live on, the error is the sender's end.
    let _ = shutdown.wait_for(|stop| *stop).await.map(drop);
}

/// Returns when the lists are asked for; never once nobody can.
async fn wanted(asked: &mut Option<mpsc::Receiver<()>>) {
    if let Some(receiver) = asked {
        match receiver.recv().await {
            Some(()) => return,
            // A closed channel answers at once, for ever: it would keep this thread spinning.
            None => *asked = None,
        }
    }
    std::future::pending().await
}

/// The pid namespace of this process, if it is another than the initial one. What cannot be read is
/// taken for the initial one: a warning that may be wrong helps nobody.
fn pid_namespace() -> Option<Arc<str>> {
    other_namespace(&std::fs::read_link(Path::new("/proc/self/ns/pid")).ok()?)
}

fn other_namespace(link: &Path) -> Option<Arc<str>> {
    let name = link.to_string_lossy();
    (name != INITIAL_PID_NAMESPACE).then(|| name.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_bounded() {
        let millis = Duration::from_millis;
        for (interval, lists, fine) in [
            (1_000, 5_000, true),
            (100, 1_000, true),
            (5_000, 60_000, true),
            (5_001, 5_000, false),
            (99, 5_000, false),
            (1_000, 999, false),
        ] {
            let config = Config {
                library: None,
                interval: millis(interval),
                lists_interval: millis(lists),
                cursors: Vec::new(),
            };
            assert_eq!(config.validate().is_ok(), fine, "{config:?}");
        }
    }

    #[test]
    fn waits_double_to_a_bound() {
        let mut backoff = Backoff::new((Duration::from_secs(1), Duration::from_secs(5)));
        let waits: Vec<u64> = (0..5).map(|_| backoff.wait().as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 5, 5]);
        backoff.reset();
        assert_eq!(backoff.wait().as_secs(), 1);
    }

    #[test]
    fn only_the_initial_pid_namespace_is_right() {
        assert_eq!(other_namespace(Path::new("pid:[4026531836]")), None);
        let other = other_namespace(Path::new("pid:[4026532201]"));
        assert_eq!(other.as_deref(), Some("pid:[4026532201]"));
    }

    #[test]
    fn only_another_time_of_retry_is_no_news() {
        let down = |reason: &str, retry| SourceState::Down {
            class: "timeout".into(),
            reason: reason.into(),
            next_retry: Some(BootTime(retry)),
        };
        assert!(same_trouble(&down("a", 1), &down("a", 2)));
        assert!(!same_trouble(&down("a", 1), &down("b", 1)));
        assert!(same_trouble(&SourceState::Up, &SourceState::Up));
        assert!(!same_trouble(&SourceState::Up, &SourceState::Absent));
    }

    /// The thread as the agent starts it, with a library that is not there.
    #[test]
    fn a_missing_library_is_down_and_the_thread_stops_when_told() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        runtime.block_on(async {
            let directory = tempfile::tempdir().unwrap();
            let library = directory.path().join("libnvidia-ml.so.1");
            let config = Config {
                library: Some(library.clone()),
                ..Config::default()
            };
            let (out, mut inputs) = mpsc::channel(1);
            let (_asks, lists_wanted) = mpsc::channel(1);
            let (stop, shutdown) = watch::channel(false);
            let handle = spawn(config, out, lists_wanted, shutdown).unwrap();
            let Some(Input::Health(health)) = inputs.recv().await else {
                panic!("health comes first");
            };
            assert_eq!(health.source, SourceId::Nvml);
            let SourceState::Down {
                class,
                reason,
                next_retry,
            } = health.state
            else {
                panic!("{health:?}");
            };
            assert_eq!(&*class, "not_found");
            assert_eq!(*reason, format!("{} does not exist", library.display()));
            assert!(next_retry > Some(health.since));
            stop.send(true).unwrap();
            handle.stopped().await;
            // Whatever was still on its way, then the end.
            while inputs.recv().await.is_some() {}
        });
    }
}
