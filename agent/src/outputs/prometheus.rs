//! `/metrics` for Prometheus, in the text format 0.0.4 and in OpenMetrics 1.0, and the two probes.
//!
//! An exposition is rendered once per commit and format and kept, so that any number of scrapers
//! costs one rendering; all of its figures, the outputs' own counters included, are therefore up to
//! one commit old.
//!
//! It refuses to compress, to authenticate and to push. Nothing here waits for the core: a stuck
//! core is what `/healthz` reports.

mod text;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::extract::State;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use tokio::net::TcpListener;
use tokio::sync::watch;

pub use self::text::render;

use super::ReadClock;
use super::connection_slots::{Bounds, ConnectionSlots};
use super::connections::Server;
use super::counters::OutputCounters;
use super::instruments::{OptIn, View};
use super::probe::Probe;
use crate::core::model::Nanos;
use crate::core::snapshot::{BlockedCall, Snapshot};

/// Bytes of earlier expositions that slow clients may keep in memory, all together.
const MAX_UNDER_WAY: usize = 16 << 20;

/// A way to write the books down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus' text format 0.0.4, the default.
    Text,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Format {
    /// The `Content-Type` of an answer in this format.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// The format that the `Accept` headers prefer. OpenMetrics only where it is named and wanted
    /// no less than text; text where nothing acceptable is named, since a scraper can use that more
    /// than an error.
    #[must_use]
    pub fn negotiate(headers: &HeaderMap) -> Self {
        // How much each is wanted, in thousandths, and whether by name or by a wildcard: a name
        // overrides a wildcard, whatever the order.
        let (mut text, mut open) = (Want::default(), Want::default());
        for range in headers
            .get_all(ACCEPT)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
        {
            let mut parts = range.split(';').map(str::trim);
            let name = parts.next().unwrap_or_default().to_ascii_lowercase();
            let (mut quality, mut version) = (1_000, None);
            for (key, value) in parts.filter_map(|parameter| parameter.split_once('=')) {
                match key.trim().to_ascii_lowercase().as_str() {
                    "q" => quality = thousandths(value.trim()),
                    "version" => version = Some(value.trim().trim_matches('"')),
                    _ => {}
                }
            }
            match (name.as_str(), version) {
                ("application/openmetrics-text", None | Some("1.0.0")) => open.hear(3, quality),
                ("text/plain", None | Some("0.0.4")) => text.hear(3, quality),
                ("text/*", _) => text.hear(2, quality),
                ("*/*", _) => text.hear(1, quality),
                _ => {}
            }
        }
        let by_wildcard = text.precision < open.precision && text.quality == open.quality;
        if open.quality > text.quality || (open.quality > 0 && by_wildcard) {
            Self::OpenMetrics
        } else {
            Self::Text
        }
    }
}

#[derive(Clone, Copy, Default)]
struct Want {
    precision: u8,
    quality: u16,
}

impl Want {
    fn hear(&mut self, precision: u8, quality: u16) {
        let heard = Self { precision, quality };
        if (precision, quality) > (self.precision, self.quality) {
            *self = heard;
        }
    }
}

/// A q-value in thousandths; one that is malformed or above one counts as not wanted.
fn thousandths(text: &str) -> u16 {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if fraction.len() > 3 || !fraction.bytes().all(|digit| digit.is_ascii_digit()) {
        return 0;
    }
    let fraction = format!("{fraction:0<3}").parse().unwrap_or(0);
    match (whole, fraction) {
        ("0", fraction) => fraction,
        ("1", 0) => 1_000,
        _ => 0,
    }
}

/// An address that could not be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} for /metrics")]
pub struct BindError {
    /// The address.
    pub address: SocketAddr,
    /// I/O error of binding the address.
    pub source: std::io::Error,
}

/// Takes the address, so that a start with a wrong one fails before anything is attached.
///
/// # Errors
/// If the address is in use, or not this host's, or not allowed.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, BindError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| BindError { address, source })
}

/// What the endpoints read from.
pub struct Exposition {
    /// The last commit.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// The call into NVML that has not returned, if any.
    pub blocked: watch::Receiver<Option<BlockedCall>>,
    /// What the outputs count.
    pub counters: Arc<OutputCounters>,
    /// What is shown only where it is asked for.
    pub opt_in: OptIn,
    /// The time now.
    pub clock: ReadClock,
    /// How old the last commit may be before the core counts as stuck.
    pub stuck_after: Nanos,
}

impl std::fmt::Debug for Exposition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exposition")
            .field("stuck_after", &self.stuck_after)
            .finish_non_exhaustive()
    }
}

struct Shared {
    exposition: Exposition,
    probe: Probe,
    places: Arc<ConnectionSlots>,
    rendered: Mutex<Rendered>,
}

/// The expositions of the last commit that was asked for, and the buffer they are written in.
#[derive(Default)]
struct Rendered {
    buffer: String,
    text: Option<(u64, Bytes)>,
    openmetrics: Option<(u64, Bytes)>,
    /// Those of earlier commits that clients have not taken wholly yet.
    under_way: Vec<Bytes>,
}

impl Rendered {
    /// Bytes of earlier expositions that are kept for slow clients.
    fn bytes_under_way(&mut self) -> usize {
        self.under_way.retain(|body| !body.is_unique());
        self.under_way.iter().map(Bytes::len).sum()
    }
}

/// The endpoints `/metrics`, `/healthz`, `/readyz` and `/`, without a listener.
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub fn router(exposition: Exposition) -> Router {
    routes(
        exposition,
        ConnectionSlots::new(super::connection_slots::Bounds::default()),
    )
}

/// The endpoints `/metrics`, `/healthz`, `/readyz` and `/`.
fn routes(exposition: Exposition, places: Arc<ConnectionSlots>) -> Router {
    let probe = Probe::new(
        exposition.snapshots.clone(),
        exposition.blocked.clone(),
        Arc::clone(&exposition.clock),
        exposition.stuck_after,
    );
    Router::new()
        .route("/", get(index))
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(Arc::new(Shared {
            exposition,
            probe,
            places,
            rendered: Mutex::default(),
        }))
}

/// Serves until `shutdown` is done, then lets the answers under way finish.
///
/// # Errors
/// Never by way of a client; only if the listener itself cannot go on.
pub async fn serve(
    listener: TcpListener,
    exposition: Exposition,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let places = ConnectionSlots::new(Bounds::default());
    let server = Server {
        listener,
        address: |address| Some(address.ip()),
        places: Arc::clone(&places),
        counters: Arc::clone(&exposition.counters),
        of: |counters| &counters.metrics_connections,
    };
    server.serve(routes(exposition, places), shutdown).await;
    Ok(())
}

async fn index() -> Response {
    const PAGE: &str = "<!doctype html><title>gpuacct</title><h1>gpuacct</h1>\
        <p>Which container used how much of which GPU.</p>\
        <ul><li><a href=\"/metrics\">/metrics</a><li><a href=\"/healthz\">/healthz</a>\
        <li><a href=\"/readyz\">/readyz</a></ul>\n";
    ([(CONTENT_TYPE, "text/html; charset=utf-8")], PAGE).into_response()
}

async fn metrics(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    let format = Format::negotiate(&headers);
    let counters = &shared.exposition.counters;
    match format {
        Format::Text => counters.scrapes_text.add(1),
        Format::OpenMetrics => counters.scrapes_openmetrics.add(1),
    }
    let body = shared.exposition(format);
    // Each slow client keeps the exposition that it is taking, and they may all be different.
    while shared.keeps_too_much() && shared.places.end_slowest_reader() {
        tokio::task::yield_now().await;
    }
    ([(CONTENT_TYPE, format.content_type())], body).into_response()
}

impl Shared {
    fn exposition(&self, format: Format) -> Bytes {
        let snapshot = Arc::clone(&self.exposition.snapshots.borrow());
        // A panic while rendering leaves nothing behind that the next rendering would not clear.
        let mut rendered = self.rendered.lock().unwrap_or_else(PoisonError::into_inner);
        let Rendered {
            buffer,
            text,
            openmetrics,
            under_way,
        } = &mut *rendered;
        let kept = match format {
            Format::Text => text,
            Format::OpenMetrics => openmetrics,
        };
        match kept {
            Some((sequence, body)) if *sequence == snapshot.sequence => body.clone(),
            _ => {
                let view = View {
                    snapshot: &snapshot,
                    counters: &self.exposition.counters,
                    opt_in: &self.exposition.opt_in,
                };
                render(&view, format, buffer);
                let body = Bytes::copy_from_slice(buffer.as_bytes());
                let before = kept.replace((snapshot.sequence, body.clone()));
                under_way.extend(before.map(|(_, body)| body));
                body
            }
        }
    }

    fn keeps_too_much(&self) -> bool {
        let mut rendered = self.rendered.lock().unwrap_or_else(PoisonError::into_inner);
        rendered.bytes_under_way() > MAX_UNDER_WAY
    }
}

async fn healthz(State(shared): State<Arc<Shared>>) -> Response {
    answer_probe(shared.probe.live())
}

async fn readyz(State(shared): State<Arc<Shared>>) -> Response {
    answer_probe(shared.probe.ready())
}

fn answer_probe(answer: Result<String, String>) -> Response {
    match answer {
        Ok(text) => text.into_response(),
        Err(text) => (StatusCode::SERVICE_UNAVAILABLE, text).into_response(),
    }
}

#[cfg(test)]
mod tests;
