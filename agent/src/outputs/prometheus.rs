//! `/metrics` for Prometheus, in the text format 0.0.4 and in OpenMetrics 1.0, the page for people, and
//! the two probes.
//!
//! An exposition is rendered once per commit and format, compressed once for those who can read that,
//! and kept, so that any number of scrapers costs one rendering; all of its figures, the outputs' own
//! counters included, are therefore up to one commit old.
//!
//! Who may read is decided in [`web`]. It refuses to push. Nothing here waits for the core: a stuck core is what
//! `/healthz` reports.

mod expositions;
mod negotiation;
mod page;
mod text;
mod web;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderName, VARY};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, watch};
use tokio::task::spawn_blocking;

use self::expositions::{Document, Edition, Expositions};
use self::negotiation::Coding;
pub use self::negotiation::Format;
use self::page::PeoplePage;
pub use self::text::render;
use self::web::answers::admit;
use self::web::door::Door;
pub use self::web::{Guard, ProtectionFiles, Report, WebConfigError};

use super::ReadClock;
use super::connection_slots::{Bounds, ConnectionSlots};
use super::connections::{Server, Straight};
use super::counters::OutputCounters;
use super::instruments::{OptIn, View};
use super::probe::Probe;
use crate::core::model::{Clock, Nanos};
use crate::published::Published;
use crate::shutdown::until;

/// Bytes of earlier expositions that slow clients may keep in memory, all together.
const MAX_UNDER_WAY: usize = 16 << 20;

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
    pub opt_in: watch::Receiver<Arc<OptIn>>,
    /// The time now.
    pub clock: ReadClock,
    /// How old the last commit may be before the core counts as stuck.
    pub stuck_after: Nanos,
    /// Whether there is a page for people.
    pub has_page: bool,
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
    places: Arc<ConnectionSlots>,
    expositions: Arc<Mutex<Expositions>>,
    /// Without anybody who asks for it, it is empty.
    page: Arc<PeoplePage>,
}

#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub use self::web::fuzz as fuzz_web_config;

/// The endpoints `/metrics`, `/healthz`, `/readyz` and `/`, without a listener.
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub fn router(exposition: Exposition) -> Router {
    let probe = ProbeAnswers {
        probe: Probe::new(
            exposition.published.clone(),
            Arc::clone(&exposition.clock),
            exposition.stuck_after,
        ),
        is_brief: false,
    };
    let places = ConnectionSlots::new(Bounds::default());
    routes(exposition, probe, places, Arc::default())
}

/// The endpoints `/metrics`, `/healthz` and `/readyz`, and `/` if there is a page.
fn routes(
    exposition: Exposition,
    probe: ProbeAnswers,
    places: Arc<ConnectionSlots>,
    page: Arc<PeoplePage>,
) -> Router {
    let mut router = Router::new().route("/metrics", get(metrics));
    if exposition.has_page {
        router = router.route("/", get(people_page));
    }
    router
        .with_state(Arc::new(Shared {
            exposition,
            places,
            expositions: Arc::default(),
            page,
        }))
        .merge(probes(probe))
}

/// The endpoints `/healthz` and `/readyz` alone.
fn probes(probe: ProbeAnswers) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(probe)
}

/// What is listened on.
#[derive(Debug)]
pub struct Listeners {
    /// For `/metrics`, and the probes beside it.
    pub metrics: TcpListener,
    /// For the probes alone, in the clear and without a password.
    pub probes: Option<TcpListener>,
}

/// Serves everybody until `shutdown` is done, then lets the answers under way finish.
///
/// # Errors
/// Never by way of a client; only if the listener itself cannot go on.
pub async fn serve(
    listener: TcpListener,
    exposition: Exposition,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let guard = Arc::new(Guard::open(Arc::clone(&exposition.counters)));
    let listeners = Listeners {
        metrics: listener,
        probes: None,
    };
    serve_guarded(listeners, exposition, guard, shutdown).await
}

/// Serves those whom `guard` lets in until `shutdown` is done, then lets the answers under way finish.
///
/// # Errors
/// As [`serve`].
pub async fn serve_guarded(
    listeners: Listeners,
    exposition: Exposition,
    guard: Arc<Guard>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let (stop, stopped) = watch::channel(false);
    let places = ConnectionSlots::new(Bounds::default());
    let probe = ProbeAnswers {
        probe: Probe::new(
            exposition.published.clone(),
            Arc::clone(&exposition.clock),
            exposition.stuck_after,
        ),
        is_brief: guard.is_on(),
    };
    let probes_alone = listeners.probes.map(|listener| {
        let server = Server {
            listener,
            entry: Straight,
            address: |address: &SocketAddr| Some(address.ip()),
            user: |_| None,
            places: ConnectionSlots::new(Bounds::default()),
            counters: Arc::clone(&exposition.counters),
            of: |counters| &counters.probe_connections,
        };
        server.serve(probes(probe.clone()), until(stopped.clone()))
    });
    let server = Server {
        listener: listeners.metrics,
        entry: Door(Arc::clone(&guard)),
        address: |address: &SocketAddr| Some(address.ip()),
        user: |_| None,
        places: Arc::clone(&places),
        counters: Arc::clone(&exposition.counters),
        of: |counters| &counters.metrics_connections,
    };
    let page = Arc::<PeoplePage>::default();
    let looking = exposition.has_page.then(|| {
        let published = exposition.published.clone();
        Arc::clone(&page).keep_history(published)
    });
    let routes = routes(exposition, probe, places, page).layer(from_fn_with_state(guard, admit));
    let looked_until = stopped.clone();
    let looking = async move {
        if let Some(looking) = looking {
            tokio::select! {
                () = looking => {}
                () = until(looked_until) => {}
            }
        }
    };
    let told = async move {
        shutdown.await;
        stop.send_replace(true);
    };
    let probes_alone = async {
        if let Some(serving) = probes_alone {
            serving.await;
        }
    };
    tokio::join!(
        told,
        server.serve(routes, until(stopped)),
        probes_alone,
        looking
    );
    Ok(())
}

async fn people_page(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    let coding = Coding::negotiate(&headers);
    shared.answer(Document::Page, coding, page::headers()).await
}

async fn metrics(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    let format = Format::negotiate(&headers);
    let coding = Coding::negotiate(&headers);
    let counters = &shared.exposition.counters;
    match format {
        Format::Text => counters.scrapes_text.add(1),
        Format::OpenMetrics => counters.scrapes_openmetrics.add(1),
    }
    let headers = [
        (CONTENT_TYPE, format.content_type()),
        (VARY, "accept, accept-encoding"),
    ];
    let document = Document::Metrics(format);
    shared.answer(document, coding, headers).await
}

impl Shared {
    /// A document with these headers.
    async fn answer<const N: usize>(
        self: &Arc<Self>,
        document: Document,
        coding: Coding,
        headers: [(HeaderName, &'static str); N],
    ) -> Response {
        let Some(body) = self.document(document, coding).await else {
            return StatusCode::INTERNAL_SERVER_ERROR.into_response();
        };
        // Each slow client keeps the document that it is taking, and they may all be different.
        while self.keeps_too_much().await && self.places.end_slowest_reader() {
            tokio::task::yield_now().await;
        }
        let mut answer = (headers, body).into_response();
        if coding == Coding::Gzip {
            let gzip = HeaderValue::from_static("gzip");
            answer.headers_mut().insert(CONTENT_ENCODING, gzip);
        }
        answer
    }

    /// The document of the last commit; none if making it panicked.
    ///
    /// The core and the other answers share a thread, which must not wait for milliseconds of
    /// rendering and compressing. So this is done on another one, by one reader at a time. The lock
    /// goes with the work, so that it is done only once if its client hangs up meanwhile.
    async fn document(self: &Arc<Self>, document: Document, coding: Coding) -> Option<Bytes> {
        let mut expositions = Arc::clone(&self.expositions).lock_owned().await;
        let published = Arc::clone(&self.exposition.published.borrow());
        let now = (self.exposition.clock)();
        let edition = Edition {
            sequence: published.books.sequence,
            time: match document {
                Document::Metrics(_) => 0,
                Document::Page => PeoplePage::part_of_time(now),
            },
        };
        if let Some(body) = expositions.get(edition, document, coding) {
            return Some(body);
        }
        let shared = Arc::clone(self);
        let made = spawn_blocking(move || {
            expositions.make(edition, document, coding, |out| {
                shared.write(document, &published, now, out);
            })
        });
        made.await.ok()
    }

    fn write(&self, document: Document, published: &Published, now: Clock, out: &mut String) {
        match document {
            Document::Metrics(format) => {
                let opt_in = Arc::clone(&self.exposition.opt_in.borrow());
                let view = View::new(published, &self.exposition.counters, &opt_in);
                render(&view, format, out);
            }
            Document::Page => self.page.render(published, now, out),
        }
    }

    async fn keeps_too_much(&self) -> bool {
        self.expositions.lock().await.bytes_under_way() > MAX_UNDER_WAY
    }
}

/// The probes, as they are answered here.
#[derive(Clone)]
struct ProbeAnswers {
    probe: Probe,
    /// Whether one line is all that is said. What is wrong in detail is for those who may read
    /// `/metrics`, and a probe does not say who it is.
    is_brief: bool,
}

async fn healthz(State(probe): State<ProbeAnswers>) -> Response {
    answer_probe(probe.probe.live(), probe.is_brief)
}

async fn readyz(State(probe): State<ProbeAnswers>) -> Response {
    answer_probe(probe.probe.ready(), probe.is_brief)
}

fn answer_probe(answer: Result<String, String>, is_brief: bool) -> Response {
    let (code, text) = match answer {
        Ok(text) => (StatusCode::OK, text),
        Err(text) => (StatusCode::SERVICE_UNAVAILABLE, text),
    };
    let text = match text.split_once([':', '\n']) {
        Some((first, _)) if is_brief => format!("{first}\n"),
        _ => text,
    };
    (code, text).into_response()
}

#[cfg(test)]
mod tests;
