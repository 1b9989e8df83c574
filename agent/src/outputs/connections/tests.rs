//! Clients that take places and give nothing back: others must be served.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Mutex;

use axum::routing::get;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tokio::sync::mpsc;

use super::*;
use crate::core::model::{Clock, Nanos, WallTime};
use crate::outputs::connection_slots::Bounds;
use crate::outputs::sample::{self, NOW};
use crate::outputs::socket::{self, SocketState};
use crate::outputs::{prometheus, prometheus::Exposition};
use crate::published::Published;
use crate::socket_access::SocketAccess;

/// The longest that a flood of connections is kept up. It turns a hang into a failure.
const ATTACK_LASTS: Duration = Duration::from_secs(120);

/// How long a client waits that is to be served. Long, since the machine may be busy: what the
/// attackers do, they do for as long as the test lasts.
const PATIENCE: Duration = Duration::from_secs(60);

/// Hands out the server's ends of streams in memory.
struct InMemory(mpsc::Receiver<DuplexStream>);

impl Listener for InMemory {
    type Io = DuplexStream;
    type Addr = ();

    async fn accept(&mut self) -> (DuplexStream, ()) {
        match self.0.recv().await {
            Some(io) => (io, ()),
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A server of streams in memory that answers with `page`, and what it counts.
fn in_memory(page: &'static str) -> (mpsc::Sender<DuplexStream>, Arc<OutputCounters>) {
    let (dial, taken) = mpsc::channel(8);
    let counters = Arc::new(OutputCounters::default());
    let server = Server {
        listener: InMemory(taken),
        entry: Straight,
        address: |()| None,
        user: |_| None,
        places: ConnectionSlots::new(Bounds::default()),
        counters: Arc::clone(&counters),
        of: |counters| &counters.metrics_connections,
    };
    let router = Router::new().route("/", get(move || async move { page }));
    tokio::spawn(async move { server.serve(router, std::future::pending()).await });
    (dial, counters)
}

/// A connection on which the kernel takes 64 bytes before the client reads.
async fn dial(to: &mpsc::Sender<DuplexStream>) -> DuplexStream {
    let (near, far) = duplex(64);
    to.send(far).await.unwrap();
    near
}

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";

async fn read_answer(client: &mut DuplexStream, page: &str) {
    let mut answer = Vec::new();
    while !answer.ends_with(page.as_bytes()) {
        answer.push(client.read_u8().await.unwrap());
    }
}

#[tokio::test(start_paused = true)]
async fn a_byte_now_and_then_does_not_keep_a_half_request_open() {
    let (server, counters) = in_memory("hello");
    let mut client = dial(&server).await;
    let began = tokio::time::Instant::now();
    let mut sent = 0;
    while client.write_all(b"G").await.is_ok() {
        sent += 1;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(
        (5..=6).contains(&sent),
        "{sent} bytes in {:?}",
        began.elapsed()
    );
    assert_eq!(counters.metrics_connections.slow_header.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_connection_may_rest_between_two_requests_and_not_within_one() {
    let (server, counters) = in_memory("hello");
    let mut client = dial(&server).await;
    for _ in 0..3 {
        client.write_all(GET).await.unwrap();
        read_answer(&mut client, "hello").await;
        tokio::time::sleep(Duration::from_secs(149)).await;
    }
    client.write_all(&GET[..9]).await.unwrap();
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0, "closed");
    assert_eq!(counters.metrics_connections.slow_header.get(), 1);

    let mut client = dial(&server).await;
    client.write_all(GET).await.unwrap();
    read_answer(&mut client, "hello").await;
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0, "closed");
    assert_eq!(counters.metrics_connections.silent.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_takes_a_byte_now_and_then_is_closed_with_its_pipeline() {
    let page = "x".repeat(1_000).leak();
    let (server, counters) = in_memory(page);
    let mut client = dial(&server).await;
    client.write_all(&GET.repeat(2)).await.unwrap();
    let mut taken = 0;
    while client.read(&mut [0]).await.is_ok_and(|read| read > 0) {
        taken += 1;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    // It was closed after 30 s; what was sent before could still be read.
    assert!((30..page.len()).contains(&taken), "{taken} bytes");
    assert_eq!(counters.metrics_connections.slow_reader.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn whoever_never_reads_does_not_hold_up_the_end() {
    let (dialled, taken) = mpsc::channel(8);
    let server = Server {
        listener: InMemory(taken),
        entry: Straight,
        address: |()| None,
        user: |_| None,
        places: ConnectionSlots::new(Bounds::default()),
        counters: Arc::default(),
        of: |counters| &counters.metrics_connections,
    };
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let page = "x".repeat(1_000).leak();
    let router = Router::new().route("/", get(|| async { &*page }));
    let served = tokio::spawn(async move {
        let stopped = async { drop(stopped.await) };
        server.serve(router, stopped).await;
    });
    let mut reader = dial(&dialled).await;
    reader.write_all(GET).await.unwrap();
    let mut stubborn = dial(&dialled).await;
    stubborn.write_all(GET).await.unwrap();
    // Its first byte shows that it is being answered.
    reader.read_u8().await.unwrap();
    stubborn.read_u8().await.unwrap();
    drop(stop);
    read_answer(&mut reader, page).await;
    served.await.unwrap();
}

/// A server of the sample, as the agent has it: `/metrics` and the local socket.
struct Served {
    address: SocketAddr,
    socket: PathBuf,
    counters: Arc<OutputCounters>,
    published: watch::Sender<Arc<Published>>,
    _directory: tempfile::TempDir,
}

async fn served() -> Served {
    let (published, shown) = watch::channel(Arc::new(sample::published()));
    let counters = Arc::new(OutputCounters::default());
    let clock: super::super::ReadClock = Arc::new(|| Clock {
        boot: NOW,
        wall: WallTime::default(),
    });
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("agent.sock");
    let desk = SocketState {
        published: shown.clone(),
        queries: mpsc::channel(1).0,
        releases: mpsc::channel(1).0,
        counters: Arc::clone(&counters),
        log: Arc::default(),
        config: watch::channel(Arc::default()).1,
        clock: Arc::clone(&clock),
    };
    let bound = socket::bind(&path, &SocketAccess::default()).unwrap();
    tokio::spawn(socket::serve(bound, desk, std::future::pending()));
    let listener = prometheus::bind(SocketAddr::from(([127, 0, 0, 1], 0)))
        .await
        .unwrap();
    let address = listener.local_addr().unwrap();
    let exposition = Exposition {
        published: shown,
        counters: Arc::clone(&counters),
        opt_in: watch::channel(Arc::new(sample::opt_in())).1,
        clock,
        stuck_after: Nanos::from_secs(30),
        has_page: true,
    };
    tokio::spawn(prometheus::serve(
        listener,
        exposition,
        std::future::pending(),
    ));
    Served {
        address,
        socket: path,
        counters,
        published,
        _directory: directory,
    }
}

/// A connection from an address of its own: all of 127.0.0.0/8 is this machine's.
async fn connect(from: Ipv4Addr, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from((from, 0))).unwrap();
    socket.connect(to).await.unwrap()
}

/// Asks for a page and reads all of the answer.
async fn fetch(mut stream: impl AsyncRead + AsyncWrite + Unpin, path: &str) -> String {
    let exchange = async {
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        io::Result::Ok(answer)
    };
    timeout(PATIENCE, exchange)
        .await
        .unwrap_or_else(|_| panic!("{path}: no answer"))
        .unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// A scrape by Prometheus, and the kubelet's probes.
async fn is_served(served: &Served) {
    for path in ["/metrics", "/healthz", "/readyz"] {
        let stream = connect(Ipv4Addr::LOCALHOST, served.address).await;
        let answer = fetch(stream, path).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{path}: {answer:?}");
    }
    for path in ["/v1/live", "/v1/ready"] {
        let stream = UnixStream::connect(&served.socket).await.unwrap();
        let answer = fetch(stream, path).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{path}: {answer:?}");
    }
}

/// Connects, sends, reads nothing, and does it again in the next round if it is closed.
async fn attack(
    from: Ipv4Addr,
    to: SocketAddr,
    request: Arc<[u8]>,
    mut rounds: watch::Receiver<u32>,
) {
    loop {
        let mut stream = connect(from, to).await;
        // Whoever was closed meanwhile cannot write.
        if stream.write_all(&request).await.is_ok() {
            // What there is to read does not end this, but the end of it does.
            let _ = stream.ready(tokio::io::Interest::PRIORITY).await;
        }
        if rounds.changed().await.is_err() {
            return;
        }
    }
}

#[tokio::test]
async fn half_requests_and_readers_that_never_read_lock_nobody_out() {
    let served = served().await;
    let rounds = watch::Sender::new(0);
    let mut attackers = JoinSet::new();
    let half: Arc<[u8]> = Arc::from(&b"GET /metrics HTTP/1.1\r\nHost: "[..]);
    // More than the kernel takes for a client that does not read.
    let pipeline: Arc<[u8]> = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
        .repeat(2_000)
        .into();
    for attacker in 0..400u16 {
        // As many from one address as pods have containers, and some addresses alone.
        let address = if attacker < 200 {
            attacker / 10
        } else {
            attacker
        };
        let [high, low] = address.to_be_bytes();
        let from = Ipv4Addr::new(127, 1, high, low);
        let attack = attack(from, served.address, Arc::clone(&half), rounds.subscribe());
        attackers.spawn(attack);
    }
    for reader in 0..50u8 {
        let from = Ipv4Addr::new(127, 2, 0, reader);
        let attack = attack(
            from,
            served.address,
            Arc::clone(&pipeline),
            rounds.subscribe(),
        );
        attackers.spawn(attack);
    }
    let counters = &served.counters.metrics_connections;
    for _ in 0..20 {
        rounds.send_modify(|round| *round += 1);
        is_served(&served).await;
    }
    // The attackers had all the time that they needed to take every place.
    let attacked = async {
        while counters.gave_way.get() < 500 || counters.one_address.get() < 100 {
            rounds.send_modify(|round| *round += 1);
            is_served(&served).await;
        }
    };
    let attacked = tokio::time::timeout(ATTACK_LASTS, attacked).await;
    assert!(
        attacked.is_ok(),
        "not enough connections gave way: {counters:?}"
    );
    assert!(attackers.try_join_next().is_none(), "they are still at it");
    assert_eq!(served.counters.socket_connections.too_many(), 0);
}

#[tokio::test]
async fn slow_readers_of_many_expositions_do_not_fill_the_memory() {
    let served = served().await;
    // Some megabytes each.
    let mut published = sample::published();
    let series = published.books.container_series[0].clone();
    let many = std::iter::repeat_n(series, 2_000);
    published.books.container_series = many.collect();
    let mut readers = Vec::new();
    let taken = Mutex::new(0);
    for commit in 0..30u8 {
        published.books.sequence += 1;
        served.published.send_replace(Arc::new(published.clone()));
        let from = Ipv4Addr::new(127, 3, 0, commit);
        let mut stream = connect(from, served.address).await;
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            .await
            .unwrap();
        stream.readable().await.unwrap();
        readers.push(stream);
        let stream = connect(Ipv4Addr::LOCALHOST, served.address).await;
        let answer = fetch(stream, "/metrics").await;
        *taken.lock().unwrap() = answer.len();
    }
    let length = *taken.lock().unwrap();
    let closed = served.counters.metrics_connections.slow_reader.get();
    assert!(length > 3 << 20, "{length} bytes");
    assert!(closed > 10, "{closed} of {} were closed", readers.len());
}
