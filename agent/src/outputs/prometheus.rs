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
use super::connections::Server;
use super::counters::OutputCounters;
use super::instruments::{self, Instrument, Kind, OptIn, Sink, Value, View};
use super::places::{Bounds, Places};
use super::probe::Probe;
use crate::core::model::{Nanos, WallTime};
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
    /// Why not.
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
    places: Arc<Places>,
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
    routes(exposition, Places::new(super::places::Bounds::default()))
}

/// The endpoints `/metrics`, `/healthz`, `/readyz` and `/`.
fn routes(exposition: Exposition, places: Arc<Places>) -> Router {
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
    let places = Places::new(Bounds::default());
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
mod tests {
    use std::collections::BTreeSet;
    use std::io::Write as _;
    use std::process::{Command, Stdio};
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::core::model::{BootTime, Clock, HostUnit};
    use crate::outputs::sample::{self, NOW, golden};

    fn rendered(snapshot: &Snapshot, format: Format) -> String {
        let mut out = String::from("left over");
        let counters = OutputCounters::default();
        let view = View {
            snapshot,
            counters: &counters,
            opt_in: &sample::opt_in(),
        };
        render(&view, format, &mut out);
        out
    }

    #[test]
    fn the_sample_in_both_formats() {
        let snapshot = sample::snapshot();
        golden("metrics.txt", &rendered(&snapshot, Format::Text));
        golden("openmetrics.txt", &rendered(&snapshot, Format::OpenMetrics));
    }

    #[test]
    fn seconds_are_exact_decimals() {
        let rows: [(i128, &str); 8] = [
            (0, "0"),
            (1, "0.000000001"),
            (-1, "-0.000000001"),
            (1_000_000_000, "1"),
            (1_500_000_000, "1.5"),
            (-10_000_000_000, "-10"),
            (9_007_199_254_740_993, "9007199.254740993"),
            (i128::from(u64::MAX), "18446744073.709551615"),
        ];
        for (nanos, expected) in rows {
            let mut out = String::from("100 ");
            decimal(&mut out, nanos);
            assert_eq!(out, format!("100 {expected}"));
        }
    }

    fn accept(values: &[&'static str]) -> Format {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(ACCEPT, axum::http::HeaderValue::from_static(value));
        }
        Format::negotiate(&headers)
    }

    #[test]
    fn the_format_is_what_the_scraper_prefers() {
        use Format::{OpenMetrics, Text};
        let rows: [(&[&'static str], Format); 20] = [
            (&[], Text),
            (&[""], Text),
            (&["*/*"], Text),
            (&["text/html"], Text),
            (&["text/plain"], Text),
            (&["application/openmetrics-text"], OpenMetrics),
            (
                &["Application/OpenMetrics-Text; Version=1.0.0"],
                OpenMetrics,
            ),
            // Prometheus 2.42.
            (
                &[
                    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
                ],
                OpenMetrics,
            ),
            // Prometheus 3.
            (
                &[
                    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
                ],
                OpenMetrics,
            ),
            // Prometheus 3 told to prefer text.
            (&["text/plain;version=0.0.4;q=0.5,*/*;q=0.4"], Text),
            (
                &["text/plain;q=0.5,application/openmetrics-text;q=0.4"],
                Text,
            ),
            (&["text/plain, application/openmetrics-text"], Text),
            (&["*/*, application/openmetrics-text"], OpenMetrics),
            (
                &["text/plain;q=0.1", "application/openmetrics-text;q=0.2"],
                OpenMetrics,
            ),
            (&["application/openmetrics-text;q=0"], Text),
            (&["application/openmetrics-text;q=0, */*;q=0"], Text),
            (&["application/openmetrics-text;q=1.5"], Text),
            (&["application/openmetrics-text;q=nan"], Text),
            (&["application/openmetrics-text;version=2.0.0"], Text),
            (
                &["text/plain;q=0.2, */*;q=0.9, application/openmetrics-text;q=0.3"],
                OpenMetrics,
            ),
        ];
        for (values, expected) in rows {
            assert_eq!(accept(values), expected, "{values:?}");
        }
    }

    /// A snapshot whose every free text is as bad as text can be.
    fn hostile() -> Snapshot {
        let mut snapshot = sample::snapshot();
        for series in &mut snapshot.container_series {
            series.labels.pod = "a\"b\\c\nd\te\0f} 1 # HELP x\r\n".into();
            series.labels.container = "\u{feff}\u{202e}\u{10ffff}\\".into();
            series.labels.namespace = "x".repeat(1 << 20).into();
            series.image = "\"".repeat(1 << 20).into();
        }
        snapshot.host_series[0].unit = HostUnit::from("\\n\n\"");
        snapshot
    }

    #[test]
    fn hostile_label_values_cannot_break_a_line() {
        for format in [Format::Text, Format::OpenMetrics] {
            let tame = rendered(&sample::snapshot(), format);
            let text = rendered(&hostile(), format);
            assert_eq!(text.lines().count(), tame.lines().count());
            assert!(text.len() < tame.len() * 3, "{} bytes", text.len());
            assert!(text.contains("pod=\"a\\\"b\\\\c\\nd\te f} 1 # HELP x \\n~"));
            assert!(text.contains("{unit=\"\\\\n\\n\\\"\",gpu_uuid="));
        }
    }

    #[test]
    fn openmetrics_keeps_its_own_grammar() {
        let text = rendered(&hostile(), Format::OpenMetrics);
        let body = text.strip_suffix("# EOF\n").expect("it ends in # EOF");
        let mut families = BTreeSet::new();
        let (mut family, mut kind) = (String::new(), String::new());
        for line in body.lines() {
            if let Some(rest) = line.strip_prefix("# ") {
                let words: Vec<_> = rest.splitn(3, ' ').collect();
                if words[1] != family {
                    family = words[1].to_owned();
                    assert!(families.insert(family.clone()), "{family} comes twice");
                }
                match words[0] {
                    "TYPE" => kind = words[2].to_owned(),
                    "UNIT" => assert!(family.ends_with(words[2]), "{line}"),
                    word => assert_eq!(word, "HELP"),
                }
                continue;
            }
            let name = line.split(['{', ' ']).next().unwrap_or_default();
            let suffix = name.strip_prefix(&family).expect("of its family");
            let allowed: &[&str] = match kind.as_str() {
                "counter" => &["_total", "_created"],
                "info" => &["_info"],
                _ => &[""],
            };
            assert!(allowed.contains(&suffix), "{line} under {kind} {family}");
        }
        assert!(families.len() > 30, "{families:?}");
    }

    #[test]
    fn promtool_has_nothing_to_say() {
        let program = "/usr/bin/promtool";
        if !std::path::Path::new(program).exists() {
            println!("skipped: {program} is not installed (Debian: prometheus)");
            return;
        }
        for snapshot in [sample::snapshot(), hostile(), Snapshot::default()] {
            let text = rendered(&snapshot, Format::Text);
            let mut child = Command::new(program)
                .args(["check", "metrics"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("promtool starts");
            child
                .stdin
                .take()
                .expect("piped")
                .write_all(text.as_bytes())
                .expect("promtool reads");
            let output = child.wait_with_output().expect("promtool ends");
            let said = [output.stdout, output.stderr].concat();
            assert!(
                output.status.success() && said.is_empty(),
                "{}: {}",
                output.status,
                String::from_utf8_lossy(&said)
            );
        }
    }

    struct Served {
        base: String,
        snapshots: watch::Sender<Arc<Snapshot>>,
        now: Arc<AtomicU64>,
        counters: Arc<OutputCounters>,
        _blocked: watch::Sender<Option<BlockedCall>>,
    }

    async fn served(snapshot: Snapshot) -> Served {
        let (snapshots, receiver) = watch::channel(Arc::new(snapshot));
        let (blocked_sender, blocked) = watch::channel(None);
        let now = Arc::new(AtomicU64::new(NOW.0));
        let counters = Arc::new(OutputCounters::default());
        let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let reads = Arc::clone(&now);
        let exposition = Exposition {
            snapshots: receiver,
            blocked,
            counters: Arc::clone(&counters),
            opt_in: sample::opt_in(),
            clock: Arc::new(move || Clock {
                boot: BootTime(reads.load(Ordering::Relaxed)),
                wall: WallTime::default(),
            }),
            stuck_after: Nanos::from_secs(30),
        };
        tokio::spawn(serve(listener, exposition, std::future::pending()));
        Served {
            base,
            snapshots,
            now,
            counters,
            _blocked: blocked_sender,
        }
    }

    async fn fetch(served: &Served, path: &str) -> (u16, String) {
        let answer = reqwest::get(format!("{}{path}", served.base))
            .await
            .unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    }

    #[tokio::test]
    async fn an_exposition_is_rendered_once_per_commit() {
        let served = served(sample::snapshot()).await;
        let (status, first) = fetch(&served, "/metrics").await;
        assert_eq!(status, 200);
        assert!(first.contains("gpuacct_scrapes_total{format=\"text\"} 1\n"));
        assert_eq!(fetch(&served, "/metrics").await.1, first);
        served.snapshots.send_modify(|snapshot| {
            Arc::make_mut(snapshot).sequence += 1;
        });
        let (_, next) = fetch(&served, "/metrics").await;
        assert!(next.contains("gpuacct_scrapes_total{format=\"text\"} 3\n"));
        assert_eq!(served.counters.scrapes_text.get(), 3);

        let answer = reqwest::Client::new()
            .get(format!("{}/metrics", served.base))
            .header("accept", "application/openmetrics-text; version=1.0.0")
            .send()
            .await
            .unwrap();
        assert_eq!(
            answer.headers()["content-type"],
            Format::OpenMetrics.content_type()
        );
        assert!(answer.text().await.unwrap().ends_with("\n# EOF\n"));
        assert_eq!(served.counters.scrapes_openmetrics.get(), 1);
    }

    #[tokio::test]
    async fn the_probes_tell_stuck_from_not_ready_from_degraded() {
        let served = served(Snapshot::default()).await;
        assert_eq!(fetch(&served, "/healthz").await.0, 200);
        let (status, body) = fetch(&served, "/readyz").await;
        assert_eq!(
            (status, body.as_str()),
            (503, "not ready: nothing has been committed yet\n")
        );
        // Nothing was ever committed: the core had its time and is stuck.
        served
            .now
            .fetch_add(Nanos::from_secs(31).0, Ordering::Relaxed);
        assert_eq!(fetch(&served, "/healthz").await.0, 503);

        let mut snapshot = sample::snapshot();
        snapshot.at = NOW.plus(Nanos::from_secs(1));
        served.snapshots.send_replace(Arc::new(snapshot));
        assert_eq!(fetch(&served, "/healthz").await.0, 200);
        let (status, body) = fetch(&served, "/readyz").await;
        assert_eq!(
            (status, body.as_str()),
            (200, "ready\ndegraded: docker is down: connection refused\n")
        );
        served
            .now
            .fetch_add(Nanos::from_secs(1).0, Ordering::Relaxed);
        let (status, body) = fetch(&served, "/healthz").await;
        assert_eq!(
            (status, body.as_str()),
            (
                503,
                "stuck: the last commit is 31.0 s old, allowed are 30.0 s\n"
            )
        );
        assert_eq!(fetch(&served, "/").await.0, 200);
        assert_eq!(fetch(&served, "/nothing").await.0, 404);
    }

    #[tokio::test]
    async fn an_address_in_use_is_named() {
        let held = bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let address = held.local_addr().unwrap();
        let error = bind(address).await.expect_err("it is in use");
        assert_eq!(
            error.to_string(),
            format!("cannot listen on {address} for /metrics")
        );
        assert_eq!(error.source.kind(), std::io::ErrorKind::AddrInUse);
    }
}
