//! How long `/metrics` takes at full load, and how large it is.
//!
//! The agent commits each two seconds, so that a thousand scrapes that each find a new commit would
//! take half an hour. They are made against the agent's own server and its own books in
//! this process, where commits can come as fast as they are read; some against the running agent
//! show that this is the same thing.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gpuacct::outputs::condition::STUCK_AFTER;
use gpuacct::outputs::counters::OutputCounters;
use gpuacct::outputs::prometheus::{self, Exposition};
use gpuacct::published::Published;
use gpuacct::sources::clock;
use tokio::sync::watch;

use crate::load::Load;
use crate::process::Cpu;
use crate::report::{Row, float, percentile};
use crate::{Bench, pause};

const SCRAPES: usize = 1_000;
/// The name of the server's threads.
const SERVER: &str = "server";
/// Scrapes of the running agent that each find a new commit.
const LIVE: usize = 40;
/// A little more than lies between two commits.
const COMMIT: Duration = Duration::from_millis(2_050);
/// Enough for nearly every process to have been seen at work.
const WARM_UP: Duration = Duration::from_secs(25);

/// One scraper, with a connection that it keeps, as Prometheus does.
pub(crate) struct Scraper {
    http: ureq::Agent,
    url: String,
    accept: &'static str,
    coding: &'static str,
}

/// What Prometheus 2.53 asks for by default.
pub(crate) const PROMETHEUS: &str = "application/openmetrics-text;version=1.0.0;q=0.5,\
     application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
/// The two formats, each by itself.
const TEXT: &str = "text/plain;version=0.0.4";
const OPENMETRICS: &str = "application/openmetrics-text;version=1.0.0";
const PLAIN: &str = "identity";
pub(crate) const GZIP: &str = "gzip";

impl Scraper {
    pub(crate) fn new(address: SocketAddr, accept: &'static str, coding: &'static str) -> Self {
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(Duration::from_secs(10)))
            .build();
        Self {
            http: config.into(),
            url: format!("http://{address}/metrics"),
            accept,
            coding,
        }
    }

    /// How long it took until all was read, and what that was. Nothing is unpacked.
    pub(crate) fn scrape(&self) -> Result<(Duration, Vec<u8>)> {
        let began = Instant::now();
        let request = self.http.get(&self.url).header("accept", self.accept);
        let request = request.header("accept-encoding", self.coding);
        let mut response = request.call().context("cannot scrape")?;
        let body = response.body_mut().with_config().limit(1 << 28);
        let body = body.read_to_vec()?;
        Ok((began.elapsed(), body))
    }

    /// Sorted times of so many scrapes, each after `before_each`.
    fn times(
        &self,
        count: usize,
        mut before_each: impl FnMut() -> Result<()>,
    ) -> Result<Vec<Duration>> {
        // The connection is made, and the buffer grown.
        self.scrape()?;
        let mut times = Vec::with_capacity(count);
        for _ in 0..count {
            before_each()?;
            times.push(self.scrape()?.0);
        }
        times.sort();
        Ok(times)
    }
}

/// The agent's server over books that are committed as often as wanted.
struct Server {
    address: SocketAddr,
    published: watch::Sender<Arc<Published>>,
    thread: std::thread::JoinHandle<std::io::Result<()>>,
    stop: tokio::sync::oneshot::Sender<()>,
}

impl Server {
    fn start(published: Published) -> Result<Self> {
        let (published, receiver) = watch::channel(Arc::new(published));
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        // As the agent has it.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .thread_name(SERVER)
            .build()?;
        let listener = runtime.block_on(prometheus::bind((Ipv4Addr::LOCALHOST, 0).into()))?;
        let address = listener.local_addr()?;
        let exposition = Exposition {
            published: receiver,
            counters: Arc::new(OutputCounters::default()),
            clock: Arc::new(clock::now),
            stuck_after: STUCK_AFTER,
            has_page: true,
            // Off, as by default.
            opt_in: watch::channel(Arc::default()).1,
        };
        let thread = std::thread::Builder::new()
            .name(SERVER.to_owned())
            .spawn(move || {
                runtime.block_on(prometheus::serve(listener, exposition, async {
                    // A sender that is gone means the same.
                    let _ = stopped.await;
                }))
            })?;
        Ok(Self {
            address,
            published,
            thread,
            stop,
        })
    }

    fn commit(&self) {
        let mut next = Published::clone(&self.published.borrow());
        next.books.sequence += 1;
        self.published.send_replace(Arc::new(next));
    }

    fn stop(self) -> Result<()> {
        // It ends when its scrapers have closed their connections.
        let _ = self.stop.send(());
        match self.thread.join() {
            Ok(ended) => Ok(ended?),
            Err(_) => anyhow::bail!("the server panicked"),
        }
    }
}

/// Latency and size of `/metrics` at full load.
pub(crate) fn metrics(bench: &Bench) -> Result<Vec<Row>> {
    let load = Load::start(&bench.dir("load-metrics")?)?;
    let mut agent = bench.agent(&bench.dir("metrics")?, Some(&load))?;
    crate::forks::attached(&mut agent)?;
    pause(WARM_UP)?;
    // Until the containers are published, by id.
    agent.wait_for_status("the containers to be published", |status| {
        let snapshot = &status.snapshot;
        let published = snapshot.container_series.len();
        published > 0 && snapshot.agent.containers_held == 0
    })?;

    let live = Scraper::new(agent.address(), TEXT, PLAIN);
    let (_, body) = live.scrape()?;
    let (_, packed) = Scraper::new(agent.address(), TEXT, GZIP).scrape()?;
    ensure!(packed.starts_with(&[0x1f, 0x8b]), "this is not gzip");
    let (_, openmetrics) = Scraper::new(agent.address(), OPENMETRICS, PLAIN).scrape()?;
    ensure!(openmetrics.ends_with(b"# EOF\n"), "openmetrics is cut off");
    let lines = body.split(|byte| *byte == b'\n');
    let series = lines.filter(|line| !line.is_empty() && !line.starts_with(b"#"));
    let series = series.count();
    let published = agent.status()?.snapshot.container_series.len();
    // While other work is on, one scrape in a thousand comes after a commit: it does not matter.
    let cached = live.times(SCRAPES, || Ok(()))?;
    let live_fresh = live.times(LIVE, || pause(COMMIT))?;
    let status = agent.status()?;
    agent.stop()?;
    drop(load);

    let server = Server::start(Published {
        books: status.snapshot,
        agent: status.agent,
        blocked: None,
    })?;
    let fresh = |accept, coding| -> Result<Vec<Duration>> {
        let scraper = Scraper::new(server.address, accept, coding);
        scraper.times(SCRAPES, || {
            server.commit();
            pause(Duration::ZERO)
        })
    };
    let me = std::process::id();
    let before = Cpu::read(me)?;
    let text = fresh(TEXT, PLAIN)?;
    let spent = Cpu::read(me)?.by_name_since(&before);
    let spent = spent.get(SERVER).map_or(0, |group| group.nanos);
    let open = fresh(OPENMETRICS, PLAIN)?;
    let gzip = fresh(TEXT, GZIP)?;
    server.stop()?;

    let milliseconds = |it: Duration| it.as_secs_f64() * 1e3;
    let times = |sorted: &[Duration]| {
        let at = |percent| milliseconds(percentile(sorted, percent));
        format!(
            "p50 {:.2} ms, p99 {:.2} ms, longest {:.2} ms",
            at(50),
            at(99),
            at(100)
        )
    };
    let p99 = percentile(&text, 99).max(percentile(&open, 99));
    Ok(vec![
        Row::new(
            format!("`/metrics`, {SCRAPES} scrapes, each after a new commit, text"),
            times(&text),
        )
        .goal("p99 ≤ 5 ms", milliseconds(p99) <= 5.0),
        Row::new(
            "— processor time of the server for one of them",
            format!("{:.2} ms", float(spent) / 1e6 / float(SCRAPES as u64)),
        ),
        Row::new("— the same scrapes, OpenMetrics", times(&open)),
        Row::new("— the same scrapes, text with gzip", times(&gzip)),
        Row::new(
            format!("— the running agent, {LIVE} scrapes, each after a new commit, text"),
            times(&live_fresh),
        ),
        Row::new(
            format!("— the running agent, {SCRAPES} scrapes in a row (cached)"),
            times(&cached),
        ),
        Row::new(
            format!("size, text, {published} containers published"),
            format!("{:.0} kB, {series} series", kilobytes(&body)),
        ),
        Row::new(
            "size, text with gzip",
            format!("{:.0} kB", kilobytes(&packed)),
        ),
        Row::new(
            "size, OpenMetrics",
            format!("{:.0} kB", kilobytes(&openmetrics)),
        ),
    ])
}

#[expect(clippy::cast_precision_loss, reason = "for people, to a kilobyte")]
fn kilobytes(body: &[u8]) -> f64 {
    body.len() as f64 / 1e3
}
