//! Requests to a worker thread, in addition to its regular work.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Why a thread stopped waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// The time that it waited for has come.
    Due,
    /// The process lists are wanted soon.
    Lists,
    /// The thread must end.
    End,
}

/// Pending orders for one worker thread, at most one of each kind: one reading of the lists serves
/// all requests before it.
#[derive(Debug, Default)]
pub(super) struct Orders {
    state: Mutex<PendingOrders>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct PendingOrders {
    wants_lists: bool,
    is_over: bool,
}

impl Orders {
    /// Asks for the process lists.
    pub(super) fn want_lists(&self) {
        self.state().wants_lists = true;
        self.changed.notify_one();
    }

    /// Has the thread end.
    pub(super) fn end(&self) {
        self.state().is_over = true;
        self.changed.notify_one();
    }

    /// Waits for an order, at most until `due`.
    pub(super) fn wait(&self, due: Instant) -> Order {
        let mut state = self.state();
        loop {
            if state.is_over {
                return Order::End;
            }
            if std::mem::take(&mut state.wants_lists) {
                return Order::Lists;
            }
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Order::Due;
            }
            let woken = self.changed.wait_timeout(state, left);
            (state, _) = woken.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The lock guards two flags: a panic elsewhere leaves them as good as they were.
    fn state(&self) -> MutexGuard<'_, PendingOrders> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_thread_that_waits_hears_its_orders_at_once() {
        let orders = Arc::new(Orders::default());
        assert_eq!(orders.wait(Instant::now()), Order::Due);
        orders.want_lists();
        orders.want_lists();
        let never = Instant::now() + Duration::from_secs(3_600);
        assert_eq!(orders.wait(never), Order::Lists);
        assert_eq!(orders.wait(Instant::now()), Order::Due, "both were served");
        let waiter = {
            let orders = Arc::clone(&orders);
            std::thread::spawn(move || orders.wait(never))
        };
        orders.end();
        assert_eq!(waiter.join().unwrap(), Order::End);
        orders.want_lists();
        assert_eq!(orders.wait(never), Order::End, "that comes first");
    }
}
