//! A real Prometheus that scrapes the agent's endpoint as it always does: compressed.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use gpuacct::core::amounts::{Amounts, Engine, Engines};
use gpuacct::core::input::IdentitySource;
use gpuacct::core::model::{Clock, Nanos, WallTime};
use gpuacct::core::snapshot::{Attribution, ContainerLabels, ContainerSeries, Snapshot};
use gpuacct::outputs::prometheus::serve;
use gpuacct::published::Published;
use gpuacct_tests::endpoint;
use gpuacct_tests::http;
use gpuacct_tests::prometheus::{self, Prometheus};
use gpuacct_tests::requirement::require;
use tokio::runtime::Runtime;
use tokio::sync::watch;

/// Only ever waited for when something is broken.
const PATIENCE: Duration = Duration::from_secs(60);
const SCRAPE_INTERVAL: Duration = Duration::from_millis(500);
const BUSY: &str = "gpuacct_container_gpu_busy_seconds_total";
const DECODER: &str = "gpuacct_container_gpu_engine_busy_seconds_total";

/// Busy time in whole quarters of seconds, so that a double has every digit.
fn books(containers: u64) -> Snapshot {
    let text = |what: &str, number| format!("{what}-{number}").into();
    let series = (1..=containers).map(|number| ContainerSeries {
        labels: Arc::new(ContainerLabels {
            namespace: text("team", number % 4),
            pod: text("train", number),
            container: "main".into(),
            pod_uid: text("uid", number),
            container_id: format!("{number:064x}").into(),
        }),
        gpu: "GPU-0".into(),
        start: WallTime(1_700_000_000_000_000_000),
        amounts: Amounts {
            engines: Engines {
                decoder: Nanos::from_millis(number * 500),
                ..Engines::default()
            },
            ..Amounts::busy(Nanos::from_millis(number * 1_250))
        },
        engines: [Engine::Decoder].into_iter().collect(),
        memory: None,
        memory_peak: None,
        attribution: Attribution::Named {
            source: IdentitySource::Docker,
        },
        image: "image".into(),
        runtime: "docker".into(),
    });
    Snapshot {
        sequence: 1,
        agent_started: WallTime(1_700_000_000_000_000_000),
        container_series: series.collect(),
        ..Snapshot::default()
    }
}

/// Serves these books for as long as the runtime lives.
fn serving(runtime: &Runtime, snapshot: Snapshot) -> SocketAddr {
    let published = Published {
        books: snapshot,
        ..Published::default()
    };
    let published = watch::channel(Arc::new(published)).1;
    let exposition = endpoint::exposition(published, &Arc::default(), Clock::default());
    let (listener, address) = endpoint::bound(runtime);
    runtime.spawn(serve(listener, exposition, std::future::pending()));
    address
}

/// What went through a relay towards the server, and back.
#[derive(Default)]
struct Heard {
    asked: Mutex<Vec<u8>>,
    answered: Mutex<Vec<u8>>,
}

/// An address at which the server can be reached, too, and what goes through it. It lasts for as long
/// as this process.
fn relay(server: SocketAddr) -> (SocketAddr, Arc<Heard>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has free ports");
    let address = listener.local_addr().expect("it is bound");
    let heard = Arc::new(Heard::default());
    let all = Arc::clone(&heard);
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let Ok(upstream) = TcpStream::connect(server) else {
                return;
            };
            let ends = [client.try_clone(), upstream.try_clone()];
            let [Ok(client_again), Ok(upstream_again)] = ends else {
                return;
            };
            let heard = Arc::clone(&all);
            thread::spawn(move || pass_on(client_again, upstream, &heard.asked));
            let heard = Arc::clone(&all);
            thread::spawn(move || pass_on(upstream_again, client, &heard.answered));
        }
    });
    (address, heard)
}

fn pass_on(mut from: TcpStream, mut to: TcpStream, heard: &Mutex<Vec<u8>>) {
    let mut buffer = [0; 16 << 10];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        let bytes = &buffer[..length];
        let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.extend_from_slice(bytes);
        drop(heard);
        if to.write_all(bytes).is_err() {
            return;
        }
    }
    // Whoever is at the other end sees that this one is done.
    let _ = to.shutdown(Shutdown::Write);
}

fn says(heard: &Mutex<Vec<u8>>, line: &str) -> bool {
    let heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
    let text = String::from_utf8_lossy(&heard);
    text.lines().any(|found| found.eq_ignore_ascii_case(line))
}

/// A GET with these headers, by a client that knows nothing of codings: header and body.
fn ask(server: SocketAddr, headers: &str) -> (String, Vec<u8>) {
    let mut stream = TcpStream::connect(server).expect("it listens");
    let request = format!("GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n");
    let asked = stream.write_all(request.as_bytes());
    asked.expect("it takes a request");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("it answers");
    let end = answer.windows(4).position(|at| at == b"\r\n\r\n");
    let end = end.expect("a header ends");
    let header = String::from_utf8(answer[..end].to_vec()).expect("text");
    (header, answer[end + 4..].to_vec())
}

/// Unpacks with the distribution's program: not with the library that packed it.
fn gunzip(packed: Vec<u8>) -> String {
    let mut child = Command::new("gzip")
        .arg("-dc")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("every system has gzip");
    let mut stdin = child.stdin.take().expect("piped");
    let writer = thread::spawn(move || stdin.write_all(&packed));
    let output = child.wait_with_output().expect("gzip ends");
    writer.join().expect("no panic").expect("gzip reads");
    assert!(output.status.success(), "{}", output.status);
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn what_is_compressed_is_what_is_plain_to_the_byte() {
    let runtime = Runtime::new().unwrap();
    let server = serving(&runtime, books(300));
    for accept in ["text/plain", "application/openmetrics-text"] {
        let accept = format!("Accept: {accept}\r\n");
        let (header, plain) = ask(server, &accept);
        assert!(!header.contains("content-encoding"), "{header}");
        let (header, packed) = ask(server, &format!("{accept}Accept-Encoding: gzip\r\n"));
        assert!(header.contains("content-encoding: gzip"), "{header}");
        assert!(packed.len() < plain.len() / 4, "{} bytes", packed.len());
        assert!(plain.len() > 300_000, "{} bytes", plain.len());
        assert_eq!(gunzip(packed).as_bytes(), plain);
    }
}

#[test]
fn prometheus_reads_compressed_what_others_read_plain() {
    if require("prometheus", prometheus::available()).is_none() {
        return;
    }
    let containers = 40;
    let runtime = Runtime::new().unwrap();
    let server = serving(&runtime, books(containers));
    let (address, heard) = relay(server);
    let dir = tempfile::tempdir().unwrap();
    let prometheus = Prometheus::start(dir.path(), &[address], SCRAPE_INTERVAL).unwrap();
    let (_, plain) = http::get(&format!("http://{server}/metrics"), "text/plain").unwrap();
    for family in [BUSY, DECODER] {
        let found = prometheus
            .wait_for(family, PATIENCE, |found| found.len() as u64 == containers)
            .unwrap();
        let found: BTreeMap<String, f64> = found
            .into_iter()
            .map(|sample| (sample.labels["container_id"].clone(), sample.value))
            .collect();
        let lines = plain.lines().filter(|line| line.starts_with(family));
        let shown: BTreeMap<String, f64> = lines
            .map(|line| {
                let id = line.split("container_id=\"").nth(1).unwrap();
                let value = line.rsplit(' ').next().unwrap();
                (id[..64].to_owned(), value.parse().unwrap())
            })
            .collect();
        assert_eq!(shown.len() as u64, containers);
        assert_eq!(found, shown, "{family}");
    }
    assert!(says(&heard.asked, "Accept-Encoding: gzip"));
    assert!(says(&heard.answered, "content-encoding: gzip"));
    assert!(!says(&heard.answered, "# EOF"), "nothing was plain");
}
