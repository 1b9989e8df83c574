//! What the thread that drains the ring and its owner both see: what the owner asks for, and the
//! counters that the thread has read.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::event::{EventfdFlags, eventfd};

use crate::core::input::EventCounters;

/// What the thread and its owner both see.
#[derive(Debug)]
pub(super) struct Shared {
    stop: AtomicBool,
    clear_announced: AtomicBool,
    /// Set to ask for a drain that is reported even if it is empty.
    report: AtomicBool,
    counters: Mutex<EventCounters>,
    /// Makes the thread look at the flags above.
    call: OwnedFd,
}

impl Shared {
    pub(super) fn new() -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            stop: AtomicBool::new(false),
            clear_announced: AtomicBool::new(false),
            report: AtomicBool::new(false),
            counters: Mutex::default(),
            call: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        }))
    }

    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.call();
    }

    pub(super) fn clear_announced(&self) {
        self.clear_announced.store(true, Ordering::Release);
        self.call();
    }

    pub(super) fn report(&self) {
        self.report.store(true, Ordering::Release);
        self.call();
    }

    pub(super) fn counters(&self) -> EventCounters {
        *self.counters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Readable once the owner has called.
    pub(super) fn call_file(&self) -> &OwnedFd {
        &self.call
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Whether the announcements are to be cleared. The owner's request ends with this call.
    pub(super) fn take_clear_announced(&self) -> bool {
        self.clear_announced.swap(false, Ordering::AcqRel)
    }

    /// Whether a report is asked for. The owner's request ends with this call.
    pub(super) fn take_report(&self) -> bool {
        self.report.swap(false, Ordering::AcqRel)
    }

    pub(super) fn set_counters(&self, counters: EventCounters) {
        *self.counters.lock().unwrap_or_else(PoisonError::into_inner) = counters;
    }

    fn call(&self) {
        // The one failure is a count at its limit, and then the thread is being called already.
        let _ = rustix::io::write(&self.call, &1u64.to_ne_bytes());
    }
}
