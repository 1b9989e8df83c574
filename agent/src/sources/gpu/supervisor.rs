//! Owns NVML's library, and starts and replaces the threads that call it.
//!
//! ```text
//!            ┌──────────────── backoff ◀───────────────┐
//!            ▼                                         │
//!   opening the library ──▶ a worker a GPU ──library fault──▶ all let go, closing
//! ```
//!
//! - The library may be absent at start, come late, and go with a driver reload: it is looked for
//!   for ever, with backoff. Absent is normal; anything else is down, with a reason.
//! - Each GPU has a worker of its own. A fault of one GPU affects that GPU alone: its worker is
//!   restarted, after pauses that grow. A worker that is stuck in a call is abandoned, and its GPU's
//!   time is closed from here; see [`slot`](super::slot) and [`register`](super::register).
//! - The library is closed when all threads have released it. A thread that is stuck in it keeps it
//!   open: a library is never unloaded during a call.
//! - The library is reopened for a GPU that fails quickly, after pauses that grow. The other workers
//!   release it for a moment and continue from the driver's ring. Only measured MIG instances lose
//!   the time between two measurements. The library is not reopened for a GPU whose calls are slow:
//!   opening it could be as slow.
//! - A GPU that an initialised library does not list at all was given back. It leaves the published
//!   list, and its time is `released`. While the driver is unloaded, so is the time of all GPUs.
//! - Opening and closing the library can block, too. One thread of its own does both.
//! - Windows are never dropped. The channel is bounded, and a full one makes the workers wait. They
//!   can wait, since the driver's ring buffers samples for them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::calls::Watchdog;
use super::cursor::Cursor;
use super::fault::{NvmlErrorKind, NvmlFailure, RELEASED};
use super::health::{self, Failed, Health, after};
use super::helper::{Helper, HelperResult};
use super::library::Library;
use super::lists;
use super::orders::Orders;
use super::register::{RING, Register, WorkerId};
use super::release::Release;
use super::reopening::{REOPEN, Reopening};
use super::requests::{Asked, Request, Requests};
use super::schedule::{Intervals, Schedule};
use super::slot::{Running, Slot, WorkerState};
use super::slots::{Named, Slots};
use super::worker::{self, Ending, Report, Task, WorkerEvent};
use super::xid_events::{XidEvents, XidNews};
use crate::config;
use crate::core::input::{GpuInfo, Input};
use crate::core::model::{BootTime, Nanos, SourceState, UnobservedReason};
use crate::gpu_release::{ReleaseOrder, ReleaseReport, Wanted};
use crate::sources::clock;
use crate::sources::retry::Backoff;

/// Waits between attempts to open the library double from the one to the other.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// Waits before this begins anew after a defect.
pub(super) const RESTART: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// How long the GPUs that answer wait for the others before they are listed.
const GATHER: Duration = Duration::from_secs(5);
/// How long workers may take to let go of the library before they count as stuck.
const LET_GO: Duration = Duration::from_secs(2);
/// How long the last windows may take.
const LAST_WINDOWS: Duration = Duration::from_millis(1_500);
/// A call that takes longer is given up: the driver has overwritten what there was before it.
const BLOCKED: Nanos = RING;
/// How often it is looked after the workers, at least.
const TICK: Duration = Duration::from_secs(1);
/// How long the observations of one worker wait for those of the others, which are due at the same
/// time. The core books a window seconds after its end, so it does not wait for them.
const COLLECT: Duration = Duration::from_millis(20);
/// What workers have said and is not taken yet.
const REPORTS: usize = 64;

/// The receiver is gone or the agent stops: there is nothing left to do.
struct Stop;

/// The library, from here.
enum Session {
    /// It is opened then.
    Waiting { until: Instant },
    /// The helper opens it.
    Opening,
    /// It is open.
    Open {
        library: Arc<Library>,
        /// How many GPUs it lists.
        count: usize,
        /// Until when nothing is listed, if not every GPU has answered.
        gathers_until: Option<Instant>,
    },
    /// All workers were asked to release the library.
    Closing {
        library: Arc<Library>,
        why: NvmlFailure,
        /// Whether it is opened anew at once.
        at_once: bool,
        until: Instant,
    },
    /// It is closed because somebody wants it so: see [`Supervisor::release`].
    Released,
}

enum Event {
    Tick,
    Collected,
    HelperResult(HelperResult),
    Report(Report),
    Xid(XidNews),
    Requested(Request),
}

/// The supervisor. It outlives its own defects: see [`Supervisor::recover`].
pub(super) struct Supervisor {
    config: config::Gpu,
    out: mpsc::Sender<Input>,
    requests: Requests,
    /// A release that somebody has asked for. While it lasts, no library is opened.
    release: Option<Release>,
    shutdown: watch::Receiver<bool>,
    watchdog: Watchdog,
    /// The pid namespace that this process is in, if it is not the initial one.
    namespace: Option<Arc<str>>,
    register: Register,
    slots: Slots,
    session: Session,
    helper: Helper,
    xid_events: XidEvents,
    reports: (mpsc::Sender<Report>, mpsc::Receiver<Report>),
    last_worker: u64,
    /// The list that was sent last.
    published: Option<Vec<GpuInfo>>,
    health: Health,
    retry: Backoff,
    reopening: Reopening,
    next_tick: Instant,
    /// When the observations that wait for others are taken; absent while none waits.
    collects_until: Option<Instant>,
    /// An instant at which all workers are due.
    origin: Instant,
    /// What is to be sent: what one event has brought, and the observations that wait for others.
    unsent: VecDeque<Input>,
}

impl Supervisor {
    pub(super) fn new(
        config: config::Gpu,
        cursors: Vec<Cursor>,
        out: mpsc::Sender<Input>,
        asked: Asked,
        shutdown: watch::Receiver<bool>,
        watchdog: Watchdog,
        namespace: Option<Arc<str>>,
    ) -> Self {
        let now = Instant::now();
        Self {
            register: Register::new(cursors),
            out,
            requests: asked.into(),
            release: None,
            shutdown,
            xid_events: XidEvents::new(config.health.xid_events, watchdog.clone()),
            helper: Helper::new(watchdog.clone()),
            slots: Slots::new(watchdog.clone()),
            config,
            watchdog,
            namespace,
            session: Session::Waiting { until: now },
            reports: mpsc::channel(REPORTS),
            last_worker: 0,
            published: None,
            health: Health::default(),
            retry: Backoff::new(RETRY),
            reopening: Reopening::default(),
            next_tick: now,
            collects_until: None,
            origin: now,
            unsent: VecDeque::new(),
        }
    }

    /// Runs until the agent stops or the core's channel closes.
    pub(super) async fn live(&mut self) {
        loop {
            let collects_until = self.collects_until;
            if collects_until.is_none() && self.flush().await.is_err() {
                break;
            }
            let event = tokio::select! {
                biased;
                () = stopped(&mut self.shutdown) => break,
                helped = self.helper.helped() => Event::HelperResult(helped),
                () = sleep_until(self.next_tick) => Event::Tick,
                () = sleep_until(collects_until.unwrap_or(self.next_tick)) => Event::Collected,
                Some(report) = self.reports.1.recv(), if collects_until.is_none() => {
                    Event::Report(report)
                }
                news = self.xid_events.next() => Event::Xid(news),
                request = self.requests.next() => Event::Requested(request),
            };
            match event {
                Event::HelperResult(helped) => self.helped(helped),
                Event::Report(report) => {
                    if let WorkerEvent::Observed(_) = report.news {
                        self.collects_until = Some(Instant::now() + COLLECT);
                    }
                    self.take(report);
                }
                Event::Xid(XidNews::Report(report)) => {
                    self.unsent.push_back(Input::Xid(report));
                }
                // Whoever waits for it looks below.
                Event::Xid(XidNews::Ended) => {}
                Event::Collected => self.take_collected(),
                Event::Requested(Request::Release(order)) => self.take_order(order),
                Event::Tick => self.tick(),
                Event::Requested(Request::Lists) => {
                    for running in self.slots.running() {
                        running.orders.want_lists();
                    }
                }
            }
            self.advance();
        }
        self.end().await;
    }

    /// Restarts after a panic of the supervisor: all workers are abandoned, and the GPUs' time is
    /// unobserved until the library is open again.
    pub(super) fn recover(&mut self, wait: Duration) {
        self.watchdog.count(|threads| threads.restarts += 1);
        let reason = UnobservedReason::AgentError;
        self.slots.give_up_all(&mut self.register, reason);
        self.xid_events.end();
        self.xid_events.give_up();
        self.slots.blame(&mut self.register, reason);
        let until = Instant::now() + wait;
        let session = std::mem::replace(&mut self.session, Session::Waiting { until });
        if let Session::Open { library, .. } | Session::Closing { library, .. } = session
            && !self.helper.is_at_work()
        {
            self.have_closed(library);
        }
        self.health.forget();
        let trouble = NvmlFailure {
            text: "the NVML supervisor thread panicked (a bug); restarting it".to_owned(),
            ..NvmlFailure::panicked()
        };
        let state = Failed::Session(trouble).state(after(wait));
        self.tell(state, &"".into());
    }

    /// Looks after the workers, and closes the time of the GPUs that nobody asks.
    fn tick(&mut self) {
        self.next_tick = Instant::now() + self.config.interval.0.min(TICK);
        // A window that a worker has closed stays valid, even if the worker is abandoned now.
        self.take_all();
        let before = clock::now().boot.minus(BLOCKED);
        self.slots.give_up_blocked(&mut self.register, before);
        self.look_after_helper(before);
        for window in self.register.close_overdue(clock::now()) {
            self.unsent.push_back(Input::Window(window));
        }
        if let Session::Open {
            gathers_until: None,
            ..
        } = self.session
        {
            self.report();
        }
    }

    /// Takes what the workers have said meanwhile. A tick that is nearly due needs no wake-up of its
    /// own.
    fn take_collected(&mut self) {
        if self.next_tick <= Instant::now() + COLLECT {
            self.tick();
        } else {
            self.take_all();
        }
    }

    fn take_all(&mut self) {
        self.collects_until = None;
        while let Ok(report) = self.reports.1.try_recv() {
            self.take(report);
        }
    }

    /// Says so if the library has been opened or closed since `before` and is still.
    fn look_after_helper(&mut self, before: BootTime) {
        let call = self.helper.in_progress();
        if let Some(call) = call.filter(|call| call.since <= before) {
            let reason = UnobservedReason::DriverTimeout;
            self.register.blame(None, reason);
            let failed = Failed::Session(NvmlFailure::blocked(&call.call));
            let state = failed.state(after(self.retry.peek()));
            let place = failed.endpoint(self.config.library.as_ref());
            self.tell(state, &place);
        }
    }

    /// Does what is due in the life of a session.
    fn advance(&mut self) {
        let now = Instant::now();
        if self.release.as_ref().is_some_and(Release::is_over) {
            tracing::info!("the release of the GPUs is over; opening NVML again");
            self.take_up();
        }
        match &self.session {
            Session::Waiting { .. } if self.release.is_some() => {
                self.session = Session::Released;
                self.released();
            }
            Session::Waiting { until } if now >= *until && !self.helper.is_at_work() => {
                self.have_opened(None);
            }
            Session::Waiting { .. } | Session::Opening | Session::Released => {}
            Session::Open { library, count, .. } => {
                let (library, count) = (Arc::clone(library), *count);
                self.start_workers(&library, count, now);
                self.xid_events.start(&library, count);
                self.gather(now);
            }
            Session::Closing { until, .. } => {
                let any_running = self.slots.any_running() || self.xid_events.is_running();
                if !any_running || now >= *until {
                    self.closed();
                }
            }
        }
    }

    /// Takes an order from outside.
    fn take_order(&mut self, order: ReleaseOrder) {
        match order.wanted {
            Wanted::Release(time) => {
                tracing::info!(?time, "releasing the GPUs as `gpuacct release` asks");
                let mut release = Release::of(time);
                release.answer_later(order.answer);
                // Whoever asked earlier finds that another request has replaced theirs.
                self.release = Some(release);
                match self.session {
                    Session::Open { .. } => self.close(NvmlFailure::released(), false),
                    Session::Released => self.released(),
                    // The library is released when it is open, or closed, or once the wait is over.
                    Session::Waiting { .. } | Session::Opening | Session::Closing { .. } => {}
                }
            }
            Wanted::TakeUp => {
                tracing::info!("taking up the GPUs as `gpuacct release --end` asks");
                self.take_up();
                // Whoever has waited for too long is gone.
                let _ = order.answer.send(ReleaseReport::TakenUp);
            }
        }
    }

    /// Ends a release.
    fn take_up(&mut self) {
        self.release = None;
        if let Session::Released = self.session {
            let until = Instant::now();
            self.session = Session::Waiting { until };
        }
    }

    /// Closes the library for a release. The GPUs' time is `released` from then on.
    fn let_go(&mut self, library: Arc<Library>) {
        self.session = Session::Released;
        self.have_closed(library);
        self.released();
    }

    /// Notes that the library is released, and answers those who wait for it unless it is being closed
    /// still.
    fn released(&mut self) {
        self.slots
            .blame(&mut self.register, UnobservedReason::Released);
        self.register.set_released(true);
        let place = self.config.library.as_ref();
        let place = place.map_or("", |path| path.to_str().unwrap_or_default());
        let Some(release) = &mut self.release else {
            return;
        };
        if !self.helper.is_at_work() {
            release.closed(&self.slots.stuck(), self.xid_events.is_running());
        }
        let state = release.state();
        self.tell(state, &place.into());
    }

    /// Asks all workers to release the library.
    fn close(&mut self, why: NvmlFailure, at_once: bool) {
        let session = std::mem::replace(&mut self.session, Session::Opening);
        let Session::Open { library, .. } = session else {
            self.session = session;
            return;
        };
        self.slots.end_all();
        self.xid_events.end();
        self.session = Session::Closing {
            library,
            why,
            at_once,
            until: Instant::now() + LET_GO,
        };
    }

    /// Everybody has let go of the library, or is given up.
    fn closed(&mut self) {
        let reason = UnobservedReason::DriverTimeout;
        self.slots.give_up_all(&mut self.register, reason);
        self.xid_events.give_up();
        let session = std::mem::replace(&mut self.session, Session::Opening);
        let Session::Closing {
            library,
            why,
            at_once,
            ..
        } = session
        else {
            self.session = session;
            return;
        };
        if self.release.is_some() {
            self.let_go(library);
        } else if at_once {
            self.have_opened(Some(library));
        } else {
            self.wait(&Failed::Session(why));
            self.have_closed(library);
        }
    }

    /// Waits before the library is opened again. Meanwhile the known GPUs' time is not observed.
    fn wait(&mut self, failed: &Failed) {
        let wait = self.retry.wait();
        let state = failed.state(after(wait));
        let is_normal = state == SourceState::Absent;
        let place = failed.endpoint(self.config.library.as_ref());
        if self.tell(state, &place) && is_normal {
            tracing::info!(reason = failed.reason(), "NVML is not available");
        }
        self.register.set_released(failed.is_unloaded());
        let until = Instant::now() + wait;
        self.session = Session::Waiting { until };
    }

    /// Has the library opened, once the one before is closed.
    fn have_opened(&mut self, before: Option<Arc<Library>>) {
        self.session = Session::Opening;
        let config::Gpu { library, cdi, .. } = &self.config;
        if let Err(trouble) = self.helper.open(library.clone(), cdi.clone(), before) {
            self.wait(&Failed::Session(trouble));
        }
    }

    fn have_closed(&mut self, library: Arc<Library>) {
        if let Err(trouble) = self.helper.close(library) {
            self.wait(&Failed::Session(trouble));
        }
    }

    fn helped(&mut self, helped: HelperResult) {
        let HelperResult::Opened(opened) = helped else {
            if let Session::Released = self.session {
                self.released();
            }
            return;
        };
        if self.release.is_some() {
            match opened {
                Ok((library, _)) => self.let_go(library),
                Err(_) => {
                    self.session = Session::Released;
                    self.released();
                }
            }
            return;
        }
        if !matches!(self.session, Session::Opening) {
            // A defect came in between: this one is closed, and another opened.
            if let Ok((library, _)) = opened {
                self.have_closed(library);
            }
            return;
        }
        let reason = UnobservedReason::DriverError;
        self.slots.blame(&mut self.register, reason);
        let (library, count) = match opened {
            Ok((library, 0)) if self.register.is_empty() => {
                self.wait(&Failed::Session(NvmlFailure::no_gpu()));
                self.have_closed(library);
                return;
            }
            Ok(opened) => opened,
            Err(failed) => {
                self.wait(&failed);
                return;
            }
        };
        if !lists::readable(&library.driver) {
            tracing::warn!(
                driver = &*library.driver,
                "this driver's process lists have an unknown layout and are not read"
            );
        }
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        self.slots.begin_session(count);
        self.xid_events.begin_session();
        self.session = Session::Open {
            library,
            count,
            gathers_until: Some(Instant::now() + GATHER),
        };
    }

    fn start_workers(&mut self, library: &Arc<Library>, count: usize, now: Instant) {
        let lists_readable = lists::readable(&library.driver) && self.namespace.is_none();
        for (index, slot) in (0..).zip(self.slots.iter_mut().take(count)) {
            if !slot.is_due(now) {
                continue;
            }
            self.last_worker += 1;
            let id = WorkerId(self.last_worker);
            let lane = self.watchdog.new_lane();
            let orders = Arc::<Orders>::default();
            let task = Task {
                id,
                index,
                seen: slot.uuid.clone(),
                library: Arc::clone(library),
                watchdog: lane.clone(),
                orders: Arc::clone(&orders),
                reports: self.reports.0.clone(),
                schedule: Schedule::new(
                    self.origin.into_std(),
                    index,
                    Intervals {
                        windows: self.config.interval.0,
                        lists: self.config.lists_interval.0,
                        health: self.config.health.interval.0,
                    },
                ),
                health: self.config.health,
                lists_readable,
                pids_are_known: self.namespace.is_none(),
            };
            slot.running = Some(Running::new(id, lane, orders));
            if let Err(error) = worker::start(task) {
                let trouble = NvmlFailure::thread(&error);
                let slowly = false;
                slot.ended(Ending::Failed { trouble, slowly }, now);
            }
        }
    }

    /// Takes what a worker says.
    fn take(&mut self, report: Report) {
        let now = Instant::now();
        let Report { worker, news } = report;
        let Some(slot) = self.slots.of(worker) else {
            if let WorkerEvent::Ended(_) = news {
                self.slots.came_back(worker, now);
            }
            // Any other report is too late: its GPUs were taken from it.
            return;
        };
        match news {
            WorkerEvent::Opened { gpus, grant } => {
                let is_open = matches!(self.session, Session::Open { .. });
                if let (Some(running), true) = (&mut slot.running, is_open) {
                    slot.uuid = gpus.first().map(|info| info.uuid.clone());
                    running.state = WorkerState::Asking { gpus, grant };
                    self.gather(now);
                }
            }
            WorkerEvent::Observed(Input::Window(window)) => {
                use UnobservedReason::{DriverError, DriverTimeout};
                let mut reasons = window.unobserved.iter().map(|(reason, _)| reason);
                if !reasons.any(|reason| [DriverError, DriverTimeout].contains(reason)) {
                    slot.is_well();
                }
                self.retry.reset();
                if self.register.pass(worker, &window, clock::now()) {
                    self.unsent.push_back(Input::Window(window));
                }
            }
            WorkerEvent::Observed(input) => self.unsent.push_back(input),
            WorkerEvent::NvmlFailure(wrong) => slot.set_wrong(wrong, now),
            WorkerEvent::Ended(ending) => {
                if matches!(ending, Ending::Panicked) {
                    self.watchdog.count(|threads| threads.restarts += 1);
                    let gpu = slot.uuid.as_ref().map_or("", |uuid| uuid.as_str());
                    tracing::error!(
                        gpu,
                        "the thread of this GPU panicked (a bug); restarting it"
                    );
                }
                let library_fault = match &ending {
                    Ending::Failed { trouble, .. } if trouble.fault == NvmlErrorKind::Library => {
                        Some(trouble.clone())
                    }
                    _ => None,
                };
                let reason = slot.ended(ending, now);
                self.register.release(worker, reason);
                if let Some(why) = library_fault {
                    self.close(why, false);
                }
            }
        }
    }

    /// Lists the GPUs and sends the workers their cursors, once all workers have answered or their
    /// time is over.
    fn gather(&mut self, now: Instant) {
        let Session::Open {
            library,
            count,
            gathers_until,
        } = &mut self.session
        else {
            return;
        };
        let count = *count;
        let is_early = gathers_until.is_some_and(|until| now < until);
        if is_early && self.slots.first(count).any(Slot::is_opening) {
            return;
        }
        let is_first = gathers_until.take().is_some();
        let place = Arc::clone(&library.place);
        let mut granted = Vec::new();
        for slot in self.slots.iter_mut() {
            let Some(running) = &mut slot.running else {
                continue;
            };
            match std::mem::replace(&mut running.state, WorkerState::Granted) {
                WorkerState::Asking { gpus, grant } => {
                    let resume = self.register.claim(running.id, gpus, clock::now());
                    granted.push((grant, resume));
                }
                other => running.state = other,
            }
        }
        if granted.is_empty() && !is_first {
            return;
        }
        // One that cannot be opened may be any of those that are missing.
        let are_all_open = self.slots.first(count).all(Slot::is_granted);
        self.register.set_released(are_all_open);
        let listed = self.register.listed();
        if self.published.as_ref() != Some(&listed) {
            tracing::info!(gpus = listed.len(), library = &*place, "NVML is open");
            self.published = Some(listed.clone());
            self.unsent.push_back(Input::Gpus(listed));
        }
        for (grant, resume) in granted {
            // A worker that is gone says so itself.
            let _ = grant.send(resume);
        }
    }

    /// Reports the source's state while the library answers, and reopens the library if that may
    /// help.
    fn report(&mut self) {
        let Session::Open { library, count, .. } = &self.session else {
            return;
        };
        let (place, count) = (Arc::clone(&library.place), *count);
        let now = Instant::now();
        let (mut troubles, mut retry, troubled) = self.slots.troubles(now);
        let missing = self.register.missing(&troubled);
        let any_missing = !missing.is_empty();
        if any_missing {
            retry = retry.or(self.reopening.at());
        }
        troubles.extend(missing);
        if troubles.is_empty() && !self.slots.first(count).all(Slot::is_heard) {
            // A worker that has closed no window yet may find that something is wrong.
            return;
        }
        let wait = retry.map_or(REOPEN.0, |at| at.saturating_duration_since(now));
        let gravest = health::gravest(troubles.clone());
        let state = health::state(gravest, self.namespace.as_ref(), after(wait));
        self.tell(state, &place);
        self.consider_reopening(troubles, any_missing);
    }

    /// Reopens the library because of a failed GPU, if that may help.
    fn consider_reopening(&mut self, troubles: Vec<Named>, any_missing: bool) {
        let fails = any_missing || self.slots.may_reopen();
        if !fails {
            self.reopening.reset();
        } else if self.slots.any_stuck() {
            // A thread that is stuck would keep the library open.
            self.reopening.forget();
        } else if self.reopening.is_due(Instant::now())
            && let Some(why) = health::gravest(troubles)
        {
            self.reopening.forget();
            self.close(why, true);
        }
    }

    /// Reports the state of the source if it changed. Returns whether it is new.
    fn tell(&mut self, state: SourceState, place: &Arc<str>) -> bool {
        let Some((health, is_news)) = self.health.tell(state, place, clock::now().boot) else {
            return false;
        };
        if let SourceState::Down { class, reason, .. } = &health.state
            && is_news
            && **class != *RELEASED
        {
            tracing::warn!(reason = &**reason, "NVML, or a GPU, has failed");
        }
        self.unsent.push_back(Input::Health(health));
        is_news
    }

    /// Sends what there is to be sent.
    async fn flush(&mut self) -> Result<(), Stop> {
        while !self.unsent.is_empty() {
            let room = tokio::select! {
                biased;
                room = self.out.reserve() => room.map_err(|_| Stop)?,
                () = stopped(&mut self.shutdown) => return Err(Stop),
            };
            if let Some(input) = self.unsent.pop_front() {
                room.send(input);
            }
        }
        Ok(())
    }

    /// At the end: lets every worker close its last windows, and delivers them. Windows that the
    /// core does not accept in time are counted. The next agent continues from what is booked.
    async fn end(&mut self) {
        let until = Instant::now() + LAST_WINDOWS;
        self.slots.end_all();
        self.xid_events.end();
        while self.slots.any_running() {
            let Ok(Some(report)) = timeout_at(until, self.reports.1.recv()).await else {
                break;
            };
            self.take(report);
        }
        // The workers' channel is closed, so they end.
        self.reports.1.close();
        while self.xid_events.is_running() {
            let Ok(news) = timeout_at(until, self.xid_events.next()).await else {
                break;
            };
            if let XidNews::Report(report) = news {
                self.unsent.push_back(Input::Xid(report));
            }
        }
        while let Some(input) = self.unsent.pop_front() {
            match timeout_at(until, self.out.reserve()).await {
                Ok(Ok(room)) => room.send(input),
                Ok(Err(_)) | Err(_) => {
                    self.unsent.push_front(input);
                    break;
                }
            }
        }
        let windows = self
            .unsent
            .iter()
            .filter(|it| matches!(it, Input::Window(_)));
        let undelivered = windows.count();
        if undelivered > 0 {
            let count = u64::try_from(undelivered).unwrap_or(u64::MAX);
            self.watchdog.count(|threads| threads.undelivered += count);
            tracing::warn!(
                windows = undelivered,
                "the core did not accept the last windows; the next agent books their time"
            );
        }
    }
}

/// Returns once the agent stops; a sender that is gone means the same.
async fn stopped(shutdown: &mut watch::Receiver<bool>) {
    // The value's guard must not live on, the error is the sender's end.
    let _ = shutdown.wait_for(|stop| *stop).await.map(drop);
}
