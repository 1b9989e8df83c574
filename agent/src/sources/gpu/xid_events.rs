//! The thread that waits for NVML to report Xid errors.
//!
//! One thread waits for the events of all GPUs. A wait ends by itself after [`WAIT`], so the thread
//! notices soon that it is to end, and it lets go of the library before that is closed. If a wait
//! does not return at all, the thread is left to itself, and no other is started before it has ended.
//!
//! NVML's event has the GPU and the number of the error. It has no time and no process; the kernel's log
//! has both. What NVML cannot report is not reported here: see `docs/LIMITATIONS.md`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, EventSet, Nvml};
use tokio::sync::mpsc;

use super::calls::Watchdog;
use super::library::Library;
use super::orders::{Order, Orders};
use crate::core::input::{XidGpu, XidReport, XidReporter};
use crate::core::model::GpuUuid;
use crate::sources::clock;

/// How long one wait for an event may take.
const WAIT: Duration = Duration::from_millis(500);
/// How long the thread pauses after a wait that failed, and when no GPU reports events.
const PAUSE: Duration = Duration::from_secs(10);
/// Reports that wait for the supervisor. Beyond that the thread waits; NVML queues events meanwhile.
const REPORTS: usize = 64;
/// What counts as an Xid that NVML does not know, by nvml.h.
const UNKNOWN: u32 = 999;

/// News of the thread.
#[derive(Debug)]
pub(super) enum XidNews {
    /// An error was reported.
    Report(XidReport),
    /// The thread has let go of the library.
    Ended,
}

/// The thread, seen from the supervisor.
pub(super) struct XidEvents {
    is_on: bool,
    /// When this session of the library is to have its thread; absent once it has it.
    due: Option<Instant>,
    watchdog: Watchdog,
    running: Option<Running>,
    news: (mpsc::Sender<XidNews>, mpsc::Receiver<XidNews>),
}

struct Running {
    thread: JoinHandle<()>,
    orders: Arc<Orders>,
    lane: Watchdog,
}

impl XidEvents {
    pub(super) fn new(is_on: bool, watchdog: Watchdog) -> Self {
        Self {
            is_on,
            due: None,
            watchdog,
            running: None,
            news: mpsc::channel(REPORTS),
        }
    }

    /// What comes next.
    pub(super) async fn next(&mut self) -> XidNews {
        loop {
            // Never none: this has an end of its own.
            if let Some(news) = self.news.1.recv().await {
                if let XidNews::Ended = news {
                    self.running = None;
                }
                return news;
            }
        }
    }

    /// A library was opened.
    pub(super) fn begin_session(&mut self) {
        self.due = self.is_on.then(Instant::now);
    }

    /// Starts the thread with an open library that lists so many GPUs, if this session has none, and as
    /// soon as no earlier one is there.
    pub(super) fn start(&mut self, library: &Arc<Library>, count: usize) {
        // Its last news has not been taken yet: it would be taken for that of the next thread.
        let now = Instant::now();
        if self.due.is_none_or(|due| due > now) || self.running.is_some() {
            return;
        }
        self.due = None;
        let library = Arc::clone(library);
        let orders = Arc::<Orders>::default();
        let lane = self.watchdog.new_lane();
        let thread = Thread {
            count: u32::try_from(count).unwrap_or(u32::MAX),
            watchdog: lane.clone(),
            orders: Arc::clone(&orders),
            news: self.news.0.clone(),
        };
        let started = std::thread::Builder::new()
            .name("nvml-events".into())
            .spawn(move || {
                loop {
                    // What it held is gone with a panic.
                    let lived = catch_unwind(AssertUnwindSafe(|| thread.live(library.nvml())));
                    if lived.is_ok() {
                        break;
                    }
                    thread.watchdog.count(|threads| threads.restarts += 1);
                    tracing::error!("the wait for Xid errors panicked (a bug); it begins anew");
                    if thread.is_over(Instant::now() + PAUSE) {
                        break;
                    }
                }
                drop(library);
                // A supervisor that is gone needs no telling.
                let _ = thread.news.blocking_send(XidNews::Ended);
            });
        match started {
            Ok(thread) => {
                self.running = Some(Running {
                    thread,
                    orders,
                    lane,
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot start the thread that waits for Xid errors");
                self.due = Some(now + PAUSE);
            }
        }
    }

    /// Has the thread end.
    pub(super) fn end(&self) {
        if let Some(running) = &self.running {
            running.orders.end();
        }
    }

    /// Has it make no further call.
    pub(super) fn give_up(&self) {
        if let Some(running) = self.running.as_ref().filter(|_| self.is_running()) {
            running.lane.retire();
        }
    }

    /// Whether there is a thread that has not let go of the library.
    pub(super) fn is_running(&self) -> bool {
        let running = self.running.as_ref();
        running.is_some_and(|running| !running.thread.is_finished())
    }
}

struct Thread {
    count: u32,
    watchdog: Watchdog,
    orders: Arc<Orders>,
    news: mpsc::Sender<XidNews>,
}

impl Thread {
    fn live(&self, nvml: &Nvml) {
        // The wrapper frees a set without looking whether it can.
        if nvml.lib().nvmlEventSetFree.is_err() {
            return;
        }
        let mut without = Vec::new();
        while !self.is_over(Instant::now()) {
            let mut names = Vec::new();
            let set = match self.set(nvml, &mut without, &mut names) {
                Ok(Some(set)) => set,
                // No GPU reports events, or none now.
                Ok(None) => {
                    self.is_over(Instant::now() + PAUSE);
                    without.clear();
                    continue;
                }
                Err(Refused) => continue,
            };
            let waited = self.wait(&set, &names);
            // The wrapper frees it. A call that does not return is seen in this lane.
            let _ = self.watchdog.call("nvmlEventSetFree", None, || {
                drop(set);
                Ok(())
            });
            match waited {
                Ok(()) => return,
                Err(error) => {
                    tracing::debug!(%error, "cannot wait for Xid errors");
                    self.is_over(Instant::now() + PAUSE);
                    without.clear();
                }
            }
        }
    }

    /// Waits until then. Whether the thread must end.
    fn is_over(&self, until: Instant) -> bool {
        loop {
            match self.orders.wait(until) {
                Order::End => return true,
                Order::Due => return self.watchdog.is_retired(),
                Order::Lists => {}
            }
        }
    }

    /// A set with the Xid errors of every GPU that reports them, whose names are added to `names`; none
    /// if there is no such GPU.
    fn set<'nvml>(
        &self,
        nvml: &'nvml Nvml,
        without: &mut Vec<u32>,
        names: &mut Vec<(Handle, GpuUuid)>,
    ) -> Result<Option<EventSet<'nvml>>, Refused> {
        let xid = EventTypes::CRITICAL_XID_ERROR;
        let created = self
            .watchdog
            .call("nvmlEventSetCreate", None, || nvml.create_event_set());
        let Ok(mut set) = created else {
            return Ok(None);
        };
        let mut any = false;
        for index in (0..self.count).filter(|index| !without.contains(index)) {
            let device = self.watchdog.call("nvmlDeviceGetHandleByIndex", None, || {
                nvml.device_by_index(index)
            });
            let Ok(device) = device else { continue };
            let uuid = self.uuid(&device);
            let types = self
                .watchdog
                .call("nvmlDeviceGetSupportedEventTypes", None, || {
                    device.supported_event_types()
                });
            if !types.is_ok_and(|types| types.contains(xid)) {
                continue;
            }
            // The wrapper frees the set if the GPU is refused.
            let registered = self.watchdog.call("nvmlDeviceRegisterEvents", None, || {
                device
                    .register_events(xid, set)
                    .map_err(|refused| refused.error)
            });
            let Ok(registered) = registered else {
                without.push(index);
                return Err(Refused);
            };
            set = registered;
            any = true;
            names.extend(uuid.map(|uuid| (Handle::of(&device), uuid)));
        }
        Ok(any.then_some(set))
    }

    fn uuid(&self, device: &Device<'_>) -> Option<GpuUuid> {
        let uuid = self
            .watchdog
            .call("nvmlDeviceGetUUID", None, || device.uuid());
        uuid.ok().map(|uuid| GpuUuid::from(uuid.as_str()))
    }

    /// Reports errors until the thread must end. A GPU has the name that it had when it was added to
    /// the set: one that has fallen off the bus (Xid 79) answers no question.
    fn wait(&self, set: &EventSet<'_>, names: &[(Handle, GpuUuid)]) -> Result<(), NvmlError> {
        const CALL: &str = "nvmlEventSetWait_v2";
        let millis = u32::try_from(WAIT.as_millis()).unwrap_or(u32::MAX);
        while !self.is_over(Instant::now()) {
            let event = self.watchdog.wait(CALL, || match set.wait(millis) {
                Err(NvmlError::Timeout) => Ok(None),
                answer => answer.map(Some),
            })?;
            let at = clock::now().boot;
            let Some(event) = event else { continue };
            let Some(error) = event.event_data else {
                continue;
            };
            let handle = Handle::of(&event.device);
            let known = names.iter().find(|(of, _)| *of == handle);
            let Some(gpu) = known
                .map(|(_, uuid)| uuid.clone())
                .or_else(|| self.uuid(&event.device))
            else {
                tracing::warn!(
                    ?error,
                    "an Xid error of a GPU that does not say which it is"
                );
                continue;
            };
            let xid = match error {
                XidError::Value(number) => u32::try_from(number).unwrap_or(UNKNOWN),
                XidError::Unknown => UNKNOWN,
            };
            let report = XidReport {
                at,
                reporter: XidReporter::Nvml,
                gpu: XidGpu::Uuid(gpu),
                xid,
                pid: None,
            };
            if self.news.blocking_send(XidNews::Report(report)).is_err() {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// NVML's handle of a device, to compare with another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Handle(usize);

impl Handle {
    #[expect(
        unsafe_code,
        reason = "the wrapper has no other way to tell devices apart"
    )]
    fn of(device: &Device<'_>) -> Self {
        // SAFETY: the handle is compared and never used.
        Self(unsafe { device.handle() }.addr())
    }
}

/// A GPU could not be added to a set, which is gone with it.
struct Refused;
