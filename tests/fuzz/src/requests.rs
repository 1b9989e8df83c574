//! HTTP requests to `/metrics` and to the local socket, past hyper's parser: what the handlers make of
//! a method, a target, headers and a body.

use std::cell::LazyCell;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{Method, Request, Uri};
use gpuacct::core::model::{BootTime, Clock, Nanos, WallTime};
use gpuacct::outputs::counters::OutputCounters;
use gpuacct::outputs::{prometheus, socket};
use gpuacct::published::Published;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tonic::codegen::Service as _;

fn clock() -> Clock {
    Clock {
        boot: BootTime(1_000_000_000),
        wall: WallTime(1_790_000_000_000_000_000),
    }
}

thread_local! {
    static RUNTIME: LazyCell<Runtime> = LazyCell::new(|| {
        let runtime = tokio::runtime::Builder::new_current_thread();
        let mut runtime = runtime;
        runtime.enable_time().build().expect("a runtime")
    });
    static METRICS: LazyCell<Router> = LazyCell::new(|| {
        prometheus::router(prometheus::Exposition {
            published: watch::channel(Arc::new(Published::default())).1,
            counters: Arc::new(OutputCounters::default()),
            opt_in: watch::channel(Arc::default()).1,
            clock: Arc::new(clock),
            stuck_after: Nanos::from_secs(10),
            has_page: true,
        })
    });
    static SOCKET: LazyCell<Router> = LazyCell::new(|| {
        socket::router(socket::SocketState {
            published: watch::channel(Arc::new(Published::default())).1,
            queries: mpsc::channel(1).0,
            releases: mpsc::channel(1).0,
            counters: Arc::new(OutputCounters::default()),
            log: Arc::default(),
            config: watch::channel(Arc::default()).1,
            clock: Arc::new(clock),
        })
    });
}

/// A request from lines: `METHOD TARGET`, headers, an empty line, and the body.
fn request(data: &[u8]) -> Option<Request<Body>> {
    let mut parts = data.splitn(2, |byte| *byte == b'\n');
    let line = std::str::from_utf8(parts.next()?).ok()?;
    let (method, target) = line.split_once(' ')?;
    let mut rest = parts.next().unwrap_or_default();
    let mut request = Request::new(Body::empty());
    *request.method_mut() = Method::from_bytes(method.as_bytes()).ok()?;
    *request.uri_mut() = target.parse::<Uri>().ok()?;
    loop {
        let mut parts = rest.splitn(2, |byte| *byte == b'\n');
        let line = parts.next().unwrap_or_default();
        rest = parts.next().unwrap_or_default();
        if line.is_empty() {
            break;
        }
        let colon = line.iter().position(|byte| *byte == b':')?;
        let (name, value) = (&line[..colon], &line[colon + 1..]);
        let name = axum::http::HeaderName::from_bytes(name).ok()?;
        let value = axum::http::HeaderValue::from_bytes(value.trim_ascii()).ok()?;
        request.headers_mut().append(name, value);
    }
    *request.body_mut() = Body::from(rest.to_owned());
    Some(request)
}

fn answer(router: &Router, data: &[u8]) {
    let Some(request) = request(data) else {
        return;
    };
    let mut router = router.clone();
    RUNTIME.with(|runtime| {
        runtime.block_on(async move {
            let Ok(response) = router.call(request).await;
            assert_ne!(response.status().as_u16(), 500);
            let body = axum::body::to_bytes(response.into_body(), usize::MAX).await;
            assert!(body.is_ok());
        });
    });
}

pub(crate) fn metrics(data: &[u8]) {
    METRICS.with(|router| answer(router, data));
}

pub(crate) fn socket(data: &[u8]) {
    SOCKET.with(|router| answer(router, data));
}
