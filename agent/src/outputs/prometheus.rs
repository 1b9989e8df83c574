//! `/metrics` for Prometheus, in the text format 0.0.4 and in OpenMetrics 1.0, and the two probes.
//!
//! Figures are written as exact decimals of the integer nanoseconds in the books, so that what is
//! scraped is what is booked, to the last digit. An exposition is rendered once per commit and
//! format and kept, so that any number of scrapers costs one rendering; all of its figures, the
//! outputs' own counters included, are therefore up to one commit old.
//!
//! It refuses to compress, to authenticate and to push. Nothing here waits for the core: a stuck
//! core is what `/healthz` reports.

use std::borrow::Cow;
use std::fmt::Write as _;
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

use super::ReadClock;
use super::connection_slots::{Bounds, ConnectionSlots};
use super::connections::Server;
use super::counters::OutputCounters;
use super::instruments::{self, Instrument, Kind, OptIn, Sink, Value, View};
use super::probe::Probe;
use crate::core::model::{Nanos, WallTime};
use crate::published::Published;

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

/// Writes the whole exposition of `view` over `out`.
pub fn render(view: &View<'_>, format: Format, out: &mut String) {
    out.clear();
    instruments::write(view, &mut Writer { format, out });
    if format == Format::OpenMetrics {
        out.push_str("# EOF\n");
    }
}

struct Writer<'a> {
    format: Format,
    out: &'a mut String,
}

impl Sink for Writer<'_> {
    fn family(&mut self, instrument: &'static Instrument) {
        let (family, kind) = match (self.format, instrument.kind) {
            (Format::Text, Kind::Counter) => (instrument.name, "counter"),
            (Format::Text, Kind::Info) => (instrument.name, "gauge"),
            (_, Kind::Gauge) => (instrument.name, "gauge"),
            (Format::OpenMetrics, Kind::Counter) => (family_name(instrument), "counter"),
            (Format::OpenMetrics, Kind::Info) => (family_name(instrument), "info"),
        };
        put(self.out, format_args!("# HELP {family} "));
        escape(
            self.out,
            instrument.help,
            self.format == Format::OpenMetrics,
        );
        put(self.out, format_args!("\n# TYPE {family} {kind}\n"));
        if let (Format::OpenMetrics, Some(unit)) = (self.format, instrument.unit.suffix()) {
            put(self.out, format_args!("# UNIT {family} {unit}\n"));
        }
    }

    fn point(
        &mut self,
        instrument: &'static Instrument,
        labels: &[Cow<'_, str>],
        start: WallTime,
        value: Value,
    ) {
        self.series(instrument.name, "", instrument.keys, labels);
        match value {
            Value::Nanos(amount) => decimal(self.out, amount),
            Value::Count(count) => put(self.out, format_args!("{count}")),
            Value::Wide(count) => put(self.out, format_args!("{count}")),
            Value::Ratio(ratio) => put(self.out, format_args!("{ratio}")),
        }
        self.out.push('\n');
        if self.format == Format::OpenMetrics && instrument.kind == Kind::Counter {
            self.series(family_name(instrument), "_created", instrument.keys, labels);
            decimal(self.out, i128::from(start.0));
            self.out.push('\n');
        }
    }
}

impl Writer<'_> {
    fn series(&mut self, name: &str, suffix: &str, keys: &[&str], labels: &[Cow<'_, str>]) {
        self.out.push_str(name);
        self.out.push_str(suffix);
        for (place, (key, value)) in keys.iter().zip(labels).enumerate() {
            self.out.push(if place == 0 { '{' } else { ',' });
            self.out.push_str(key);
            self.out.push_str("=\"");
            escape(self.out, value, true);
            self.out.push('"');
        }
        self.out
            .push_str(if labels.is_empty() { " " } else { "} " });
    }
}

/// The name of the family in OpenMetrics, where `_total` and `_info` belong to the sample.
fn family_name(instrument: &Instrument) -> &'static str {
    let name = instrument.name;
    name.strip_suffix("_total")
        .or_else(|| name.strip_suffix("_info"))
        .unwrap_or(name)
}

fn put(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("a String takes everything");
}

fn escape(out: &mut String, text: &str, quotes: bool) {
    let mut rest = text;
    // What needs no escape, nearly always everything, is copied whole. All three are ASCII, which
    // no other character's bytes are.
    while let Some(at) = rest
        .bytes()
        .position(|byte| matches!(byte, b'\\' | b'\n') || (quotes && byte == b'"'))
    {
        let (plain, special) = rest.split_at(at);
        out.push_str(plain);
        out.push_str(match special.as_bytes()[0] {
            b'\\' => "\\\\",
            b'\n' => "\\n",
            _ => "\\\"",
        });
        rest = &special[1..];
    }
    out.push_str(rest);
}

/// Nanoseconds as seconds, exactly: no exponent, no trailing zeros.
fn decimal(out: &mut String, nanos: i128) {
    const SECOND: u128 = 1_000_000_000;
    let magnitude = nanos.unsigned_abs();
    if nanos < 0 {
        out.push('-');
    }
    put(out, format_args!("{}", magnitude / SECOND));
    let fraction = magnitude % SECOND;
    if fraction != 0 {
        put(out, format_args!(".{fraction:09}"));
        out.truncate(out.trim_end_matches('0').len());
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
    /// What was published last.
    pub published: watch::Receiver<Arc<Published>>,
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
        exposition.published.clone(),
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
        let published = Arc::clone(&self.exposition.published.borrow());
        let latest = published.books.sequence;
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
            Some((sequence, body)) if *sequence == latest => body.clone(),
            _ => {
                let exposition = &self.exposition;
                let view = View::new(&published, &exposition.counters, &exposition.opt_in);
                render(&view, format, buffer);
                let body = Bytes::copy_from_slice(buffer.as_bytes());
                let before = kept.replace((latest, body.clone()));
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
