//! The agent's HTTP endpoints, served by this process.

use std::future::pending;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use gpuacct::core::model::{Clock, Nanos};
use gpuacct::outputs::counters::OutputCounters;
use gpuacct::outputs::prometheus::{Exposition, Guard, Listeners, bind, serve_guarded};
use gpuacct::published::Published;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::watch;

/// A listener on a free port of the loopback interface, and its address.
///
/// # Panics
/// If there is none.
#[must_use]
pub fn bound(runtime: &Runtime) -> (TcpListener, SocketAddr) {
    let listener = runtime.block_on(bind((Ipv4Addr::LOCALHOST, 0).into()));
    let listener = listener.expect("loopback has free ports");
    let address = listener.local_addr().expect("it is bound");
    (listener, address)
}

/// What is served, by a clock that stands still.
#[must_use]
pub fn exposition(
    published: watch::Receiver<Arc<Published>>,
    counters: &Arc<OutputCounters>,
    now: Clock,
) -> Exposition {
    Exposition {
        published,
        counters: Arc::clone(counters),
        opt_in: watch::channel(Arc::default()).1,
        clock: Arc::new(move || now),
        stuck_after: Nanos::from_secs(30),
        has_page: true,
    }
}

/// Serves it for as long as the runtime lives.
pub fn serve(runtime: &Runtime, listeners: Listeners, exposition: Exposition, guard: Guard) {
    let guard = Arc::new(guard);
    runtime.spawn(serve_guarded(listeners, exposition, guard, pending()));
}
