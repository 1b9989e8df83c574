//! Tests of `prometheus`.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use axum::http::header::{ACCEPT_ENCODING, CONTENT_LENGTH};
use flate2::read::GzDecoder;

use super::*;
use crate::core::model::{BootTime, Clock, HostUnit, WallTime};
use crate::core::snapshot::Snapshot;
use crate::outputs::sample::{self, NOW, golden};

fn rendered(snapshot: &Snapshot, format: Format) -> String {
    let mut out = String::from("left over");
    let counters = OutputCounters::default();
    let view = View {
        snapshot,
        agent: &sample::agent_status(),
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

/// A snapshot whose every free text is as bad as text can be.
fn hostile() -> Snapshot {
    let mut snapshot = sample::snapshot();
    for series in &mut snapshot.container_series {
        Arc::make_mut(&mut series.labels).pod = "a\"b\\c\nd\te\0f} 1 # HELP x\r\n".into();
        Arc::make_mut(&mut series.labels).container = "\u{feff}\u{202e}\u{10ffff}\\".into();
        Arc::make_mut(&mut series.labels).namespace = "x".repeat(1 << 20).into();
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
    published: watch::Sender<Arc<Published>>,
    now: Arc<AtomicU64>,
    counters: Arc<OutputCounters>,
}

async fn served(published: Published) -> Served {
    served_with(published, true).await
}

async fn served_with(published: Published, has_page: bool) -> Served {
    let (published, receiver) = watch::channel(Arc::new(published));
    let now = Arc::new(AtomicU64::new(NOW.0));
    let counters = Arc::new(OutputCounters::default());
    let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let reads = Arc::clone(&now);
    let exposition = Exposition {
        published: receiver,
        counters: Arc::clone(&counters),
        opt_in: watch::channel(Arc::new(sample::opt_in())).1,
        clock: Arc::new(move || Clock {
            boot: BootTime(reads.load(Ordering::Relaxed)),
            wall: WallTime::default(),
        }),
        stuck_after: Nanos::from_secs(30),
        has_page,
    };
    tokio::spawn(serve(listener, exposition, std::future::pending()));
    Served {
        base,
        published,
        now,
        counters,
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
    let served = served(sample::published()).await;
    let (status, first) = fetch(&served, "/metrics").await;
    assert_eq!(status, 200);
    assert!(first.contains("gpuacct_scrapes_total{format=\"text\"} 1\n"));
    assert_eq!(fetch(&served, "/metrics").await.1, first);
    served.published.send_modify(|published| {
        Arc::make_mut(published).books.sequence += 1;
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
async fn a_scraper_that_reads_gzip_gets_the_same_compressed() {
    let served = served(sample::published()).await;
    let (_, plain) = fetch(&served, "/metrics").await;
    let url = format!("{}/metrics", served.base);
    let client = reqwest::Client::new();
    let ask = |method, coding| {
        let request = client.request(method, &url);
        request.header(ACCEPT_ENCODING, coding).send()
    };
    let header = |answer: &reqwest::Response, name| {
        let value = answer.headers().get(name);
        value.map(|value| value.to_str().unwrap().to_owned())
    };
    let answer = ask(reqwest::Method::GET, "gzip").await.unwrap();
    assert_eq!(header(&answer, CONTENT_ENCODING).as_deref(), Some("gzip"));
    assert_eq!(
        header(&answer, VARY).as_deref(),
        Some("accept, accept-encoding")
    );
    assert_eq!(
        header(&answer, CONTENT_TYPE).as_deref(),
        Some(Format::Text.content_type())
    );
    let body = answer.bytes().await.unwrap();
    let mut unpacked = String::new();
    GzDecoder::new(&*body)
        .read_to_string(&mut unpacked)
        .unwrap();
    assert_eq!(unpacked, plain);

    let head = ask(reqwest::Method::HEAD, "gzip").await.unwrap();
    assert_eq!(header(&head, CONTENT_ENCODING).as_deref(), Some("gzip"));
    assert_eq!(header(&head, CONTENT_LENGTH), Some(body.len().to_string()));
    assert!(head.bytes().await.unwrap().is_empty());

    let answer = ask(reqwest::Method::GET, "gzip;q=0").await.unwrap();
    assert_eq!(header(&answer, CONTENT_ENCODING), None);
    assert_eq!(
        header(&answer, VARY).as_deref(),
        Some("accept, accept-encoding")
    );
    assert_eq!(answer.text().await.unwrap(), plain);
}

#[tokio::test]
async fn the_probes_tell_stuck_from_not_ready_from_degraded() {
    let served = served(Published::default()).await;
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

    let mut published = sample::published();
    published.books.at = NOW.plus(Nanos::from_secs(1));
    served.published.send_replace(Arc::new(published));
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

#[tokio::test]
async fn the_page_has_its_headers() {
    let served = served(sample::published()).await;
    let client = reqwest::Client::new();
    let url = format!("{}/", served.base);
    for method in [reqwest::Method::GET, reqwest::Method::HEAD] {
        let answer = client.request(method, &url).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        let header = |name: &str| answer.headers()[name].to_str().unwrap().to_owned();
        assert_eq!(header("content-type"), "text/html; charset=utf-8");
        assert_eq!(header("x-content-type-options"), "nosniff");
        assert_eq!(header("referrer-policy"), "no-referrer");
        assert_eq!(header("cache-control"), "no-store");
        assert_eq!(header("vary"), "accept-encoding");
        let policy = header("content-security-policy");
        assert!(policy.starts_with("default-src 'none'; style-src 'sha256-"));
        assert!(policy.ends_with("; frame-ancestors 'none'"));
    }
    let answer = client.post(&url).send().await.unwrap();
    assert_eq!(answer.status(), 405);
}

#[tokio::test]
async fn a_page_is_written_once_per_commit() {
    let served = served(sample::published()).await;
    let (status, first) = fetch(&served, "/").await;
    assert_eq!(status, 200);
    // What changes of it without a commit is not seen until it is written again.
    served
        .now
        .fetch_add(Nanos::from_secs(1).0, Ordering::Relaxed);
    assert_eq!(fetch(&served, "/").await.1, first);
    served.published.send_modify(|published| {
        Arc::make_mut(published).books.sequence += 1;
    });
    let (_, next) = fetch(&served, "/").await;
    assert_ne!(next, first);
    // A core that is stuck commits nothing, and the page says so.
    served
        .now
        .fetch_add(Nanos::from_secs(40).0, Ordering::Relaxed);
    let (_, stuck) = fetch(&served, "/").await;
    assert!(stuck.contains("the last commit is 41 s old"), "{stuck}");
}

#[tokio::test]
async fn a_page_that_is_switched_off_is_not_there() {
    let served = served_with(sample::published(), false).await;
    for (path, expected) in [("/", 404), ("/metrics", 200), ("/healthz", 200)] {
        assert_eq!(fetch(&served, path).await.0, expected, "{path}");
    }
}
