//! The page for people, in Chromium: hostile names, what stands against them, and whether the page
//! says what `/metrics` says.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use gpuacct::core::model::{BootTime, Clock, HostUnit, Nanos, SourceState, WallTime};
use gpuacct::outputs::counters::OutputCounters;
use gpuacct::outputs::prometheus::{Guard, Listeners, ProtectionFiles};
use gpuacct::outputs::socket::StatusReport;
use gpuacct::published::Published;
use gpuacct_tests::agent::{self, Agent, PATIENCE};
use gpuacct_tests::cgroups;
use gpuacct_tests::chromium::{self, Chromium, Scheme};
use gpuacct_tests::daemon::Killed;
use gpuacct_tests::endpoint;
use gpuacct_tests::http::get;
use gpuacct_tests::node::Node;
use gpuacct_tests::requirement::require;
use tokio::runtime::Runtime;
use tokio::sync::watch;

use crate::placement::Chain;

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../agent/src/outputs/golden");
/// How often to look.
const POLL: Duration = Duration::from_millis(50);
/// What the page is called, and what a script would call it.
const TITLE: &str = "<title>gpuacct</title>";
const OWNED: &str = "<title>owned</title>";

/// What is published in the outputs' own tests.
fn sample() -> Published {
    let json = fs::read(format!("{GOLDEN}/status.json")).expect("the sample is there");
    let report: StatusReport = serde_json::from_slice(&json).expect("it is a status");
    Published {
        books: report.snapshot,
        agent: report.agent,
        blocked: None,
    }
}

/// An endpoint of this process.
struct Served {
    address: SocketAddr,
    publish: watch::Sender<Arc<Published>>,
    _runtime: Runtime,
}

impl Served {
    fn new(published: Published, protection: ProtectionFiles) -> Self {
        let runtime = Runtime::new().expect("threads can be had");
        let counters: Arc<OutputCounters> = Arc::default();
        let guard = match protection.is_empty() {
            true => Guard::open(Arc::clone(&counters)),
            false => Guard::read(protection, Arc::clone(&counters)).expect("the files can be used"),
        };
        let (metrics, address) = endpoint::bound(&runtime);
        let now = Clock {
            boot: BootTime(published.books.at.0 + 500_000_000),
            wall: WallTime(published.books.wall.0 + 500_000_000),
        };
        let (publish, published) = watch::channel(Arc::new(published));
        let exposition = endpoint::exposition(published, &counters, now);
        let listeners = Listeners {
            metrics,
            probes: None,
        };
        endpoint::serve(&runtime, listeners, exposition, guard);
        Self {
            address,
            publish,
            _runtime: runtime,
        }
    }

    fn open(published: Published) -> Self {
        Self::new(published, ProtectionFiles::default())
    }

    fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    fn page(&self) -> String {
        let (code, page) = get(&self.url(), "text/html").expect("it answers");
        assert_eq!(code, 200);
        page
    }

    /// Has every account grow by a second until the page has a picture of that. The first look at the
    /// books is taken by itself, soon after the start.
    fn grow(&self) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.publish.send_modify(|published| {
                let books = &mut Arc::make_mut(published).books;
                books.sequence += 1;
                books.at = BootTime(books.at.0 + 1);
                let second = Nanos::from_secs(1);
                for account in &mut books.accounts {
                    account.amounts.busy = account.amounts.busy.plus(second);
                }
                for account in &mut books.host_accounts {
                    account.amounts.busy = account.amounts.busy.plus(second);
                }
                for book in &mut books.gpus {
                    book.busy = book.busy.plus(Nanos::from_secs(10));
                    book.elapsed = book.elapsed.plus(Nanos::from_secs(10));
                }
            });
            let page = self.page();
            if page.contains("<path") {
                return page;
            }
            assert!(Instant::now() < deadline, "no picture: {page}");
            thread::sleep(POLL);
        }
    }
}

/// The sample, in which every text that a tenant or a stranger may write is this one.
fn with_texts(text: &str) -> Published {
    let mut published = sample();
    let books = &mut published.books;
    for account in &mut books.accounts {
        let labels = Arc::make_mut(&mut account.labels);
        for label in [
            &mut labels.namespace,
            &mut labels.pod,
            &mut labels.container,
        ] {
            *label = text.into();
        }
    }
    for account in &mut books.host_accounts {
        account.unit = HostUnit::from(text);
    }
    for book in &mut books.gpus {
        book.gpu.model = text.into();
    }
    for health in &mut published.agent.sources {
        health.place = text.into();
        if let SourceState::Down { reason, .. } = &mut health.state {
            *reason = text.into();
        }
    }
    published
}

/// A server that gives the same answer to everybody, and what it was asked for.
pub(crate) struct Canned {
    pub(crate) address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    pub(crate) connections: Arc<AtomicUsize>,
}

impl Canned {
    /// It lasts for as long as this process.
    pub(crate) fn serve(headers: &str, body: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has free ports");
        let address = listener.local_addr().expect("it is bound");
        let (asked, connections): (Arc<Mutex<Vec<String>>>, Arc<AtomicUsize>) = Default::default();
        let answer = format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n{headers}\r\n{body}",
            body.len()
        );
        let (notes, count) = (Arc::clone(&asked), Arc::clone(&connections));
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                count.fetch_add(1, Ordering::Relaxed);
                let (answer, notes) = (answer.clone(), Arc::clone(&notes));
                // A browser opens connections ahead of need, and may leave them silent.
                thread::spawn(move || answer_one(client, &answer, &notes));
            }
        });
        Self {
            address,
            asked,
            connections,
        }
    }

    pub(crate) fn asked(&self) -> Vec<String> {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.clone()
    }
}

fn answer_one(mut client: TcpStream, answer: &str, asked: &Mutex<Vec<String>>) {
    let mut reader = BufReader::new(client.try_clone().expect("a descriptor is left"));
    let mut request = String::new();
    if reader.read_line(&mut request).is_err() || request.is_empty() {
        return;
    }
    let mut line = String::new();
    while reader.read_line(&mut line).is_ok_and(|length| length > 2) {
        line.clear();
    }
    let mut asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
    asked.push(request.trim_end().to_owned());
    drop(asked);
    // A browser that has gone wants no answer.
    let _ = client.write_all(answer.as_bytes());
}

/// Names that would be something else, if they could. What they load is at `trap`.
pub(crate) fn hostile(trap: SocketAddr) -> Vec<String> {
    [
        "<script>document.title='owned'</script>".to_owned(),
        format!("<script src=http://{trap}/s></script>"),
        format!("\"><img src=http://{trap}/i onerror=document.title='owned'>"),
        "' autofocus onfocus='document.title=\"owned\"".to_owned(),
        format!("</style><style>@import url(http://{trap}/c);*{{display:none}}</style>"),
        format!("</title></svg></table><iframe src=http://{trap}/f></iframe>"),
        format!("<base href=http://{trap}/><meta http-equiv=refresh content='0;url=http://{trap}/m'>"),
        format!("<link rel=stylesheet href=http://{trap}/l><form action=http://{trap}/a><input autofocus>"),
        "\u{202e}drow\u{2066}\0\u{7}\r\n]]>--><!--".to_owned(),
        "<b>".repeat(1_365),
    ]
    .into()
}

/// How often each element is in a document, by what stands behind `<`.
pub(crate) fn elements(html: &str) -> Vec<String> {
    let names = html.split('<').skip(1).map(|part| {
        let end = part.find([' ', '>', '\n', '/']).unwrap_or(part.len());
        part[..end].to_ascii_lowercase()
    });
    let mut names: Vec<String> = names.filter(|name| !name.is_empty()).collect();
    names.sort();
    names
}

pub(crate) fn browser() -> Option<Chromium> {
    require("chromium", chromium::available())
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder below the temporary one")
}

#[test]
fn hostile_names_do_nothing_in_a_browser() {
    let Some(chromium) = browser() else {
        return;
    };
    let trap = Canned::serve("content-type: text/html\r\n", "<p>".to_owned());
    let load = |text: &str| {
        let served = Served::open(with_texts(text));
        served.grow();
        let seen = chromium.load(folder().path(), &served.url());
        let seen = seen.expect("it loads");
        let own: Vec<&String> = seen
            .asked
            .iter()
            .filter(|address| **address != served.url())
            .collect();
        assert!(own.is_empty(), "{text}: asked for {own:?}");
        assert!(!seen.said.contains("CONSOLE"), "{text}: {}", seen.said);
        seen.dom
    };
    let tame = load("tame");
    assert!(tame.contains(TITLE), "{tame}");
    for text in hostile(trap.address) {
        let dom = load(&text);
        assert!(dom.contains(TITLE), "{text}: {dom}");
        assert_eq!(elements(&dom), elements(&tame), "{text}");
    }
    assert_eq!(
        trap.connections.load(Ordering::Relaxed),
        0,
        "{:?}",
        trap.asked()
    );
}

#[test]
fn a_page_that_did_not_escape_would_do_nothing_either() {
    let Some(chromium) = browser() else {
        return;
    };
    let trap = Canned::serve("content-type: text/html\r\n", "<p>".to_owned());
    let served = Served::open(with_texts("tame-name"));
    let page = served.grow();
    let policy = {
        let answer = headers(served.address, "GET", "/", None).1;
        let lines = answer.lines();
        let mut lines = lines.filter(|line| line.starts_with("content-security-policy: "));
        format!("{}\r\n", lines.next().expect("there is one"))
    };
    let html = "content-type: text/html; charset=utf-8\r\n";
    // A name as text only: in a tooltip it would have to leave the attribute first.
    let unescaped = |text: &str| page.replacen(">tame-name<", &format!(">{text}<"), 1);
    let script = "<script>document.title='owned'</script>";
    let load = |headers: &str, text: &str| {
        let canned = Canned::serve(headers, unescaped(text));
        let seen = chromium.load(folder().path(), &format!("http://{}/", canned.address));
        seen.expect("it loads").dom
    };
    // It would, without the policy.
    let dom = load(html, script);
    assert!(dom.contains(OWNED), "{dom}");
    let protected = format!("{html}{policy}");
    let dom = load(&protected, script);
    assert!(dom.contains(script) && dom.contains(TITLE), "{dom}");

    let image = format!("<img src=http://{}/i>", trap.address);
    load(html, &image);
    assert_eq!(trap.asked(), ["GET /i HTTP/1.1"], "without the policy");
    for text in hostile(trap.address) {
        // To where the reader is sent, no policy says. A script could not write such an element.
        if !text.contains("http-equiv") {
            let dom = load(&protected, &text);
            assert!(!dom.contains(OWNED), "{text}: {dom}");
        }
    }
    assert_eq!(trap.asked(), ["GET /i HTTP/1.1"], "with the policy");
}

#[test]
fn the_page_is_in_nobodys_frame() {
    let Some(chromium) = browser() else {
        return;
    };
    let served = Served::open(sample());
    let frame = format!("<!doctype html><iframe src={}></iframe>", served.url());
    let other = Canned::serve("content-type: text/html\r\n", frame);
    let seen = chromium.load(folder().path(), &format!("http://{}/", other.address));
    let seen = seen.expect("it loads");
    assert!(seen.asked.contains(&served.url()), "{:?}", seen.asked);
    let complaint = "frame-ancestors 'none'";
    assert!(seen.said.contains(complaint), "{}", seen.said);
}

#[test]
fn people_who_prefer_it_dark_get_it_dark() {
    let Some(chromium) = browser() else {
        return;
    };
    let served = Served::open(sample());
    served.grow();
    let folder = folder();
    let pictures = [Scheme::Light, Scheme::Dark].map(|scheme| {
        let file = folder.path().join(format!("{scheme:?}.png"));
        let size = (390, 844);
        let made = chromium.picture(folder.path(), &served.url(), scheme, size, &file);
        made.expect("it makes a picture");
        fs::read(file).expect("it is there")
    });
    assert_ne!(pictures[0], pictures[1]);
}

/// The status line, and all of the answer, to one request with these headers.
fn headers(
    server: SocketAddr,
    method: &str,
    path: &str,
    authorization: Option<&str>,
) -> (String, String) {
    let authorization = authorization.map(|value| format!("authorization: {value}\r\n"));
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: gpuacct\r\nconnection: close\r\n{}\r\n",
        authorization.unwrap_or_default()
    );
    let mut stream = TcpStream::connect(server).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    stream.write_all(request.as_bytes()).expect("it reads");
    let answer = std::io::read_to_string(stream).expect("it answers");
    let status = answer.lines().next().unwrap_or_default().to_owned();
    (status, answer)
}

#[test]
fn the_page_is_for_those_who_may_read_metrics() {
    let folder = folder();
    let tokens = folder.path().join("tokens");
    let token = "a-token-of-thirty-two-characters";
    fs::write(&tokens, format!("{token}\n")).expect("there is room");
    let served = Served::new(
        with_texts("secret-name"),
        ProtectionFiles {
            web_config: None,
            bearer_tokens: Some(tokens),
        },
    );
    let right = format!("Bearer {token}");
    for method in ["GET", "HEAD"] {
        for (authorization, expected) in [
            (None, "401 Unauthorized"),
            (Some("Bearer wrong"), "401 Unauthorized"),
            (Some("Basic YTpi"), "401 Unauthorized"),
            (Some(&*right), "200 OK"),
        ] {
            for path in ["/", "/metrics", "/?a=b"] {
                let (status, answer) = headers(served.address, method, path, authorization);
                let asked = format!("{method} {path} {authorization:?}");
                assert_eq!(status, format!("HTTP/1.1 {expected}"), "{asked}");
                let shows = method == "GET" && expected == "200 OK";
                assert_eq!(answer.contains("secret-name"), shows, "{asked}");
            }
            let probe = headers(served.address, method, "/healthz", authorization);
            assert_eq!(probe.0, "HTTP/1.1 200 OK");
            let unknown = headers(served.address, method, "/index.html", authorization);
            let expected = expected.replace("200 OK", "404 Not Found");
            assert_eq!(unknown.0, format!("HTTP/1.1 {expected}"));
        }
    }
}

/// The page of one commit, and what `/metrics` says at the same.
fn of_one_commit(agent: &Agent) -> (String, String) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let get = |path| agent.get(path).expect("it answers").1;
        let (page, metrics, again) = (get("/"), get("/metrics"), get("/"));
        if page == again {
            return (page, metrics);
        }
        assert!(
            Instant::now() < deadline,
            "no commit lasts for three answers"
        );
    }
}

/// The sum of a family over all lines with this in their labels.
fn metric(metrics: &str, family: &str, label: &str) -> f64 {
    let lines = metrics.lines().filter(|line| {
        let rest = line.strip_prefix(family);
        rest.is_some_and(|rest| rest.starts_with('{') && rest.contains(label))
    });
    lines
        .map(|line| line.rsplit(' ').next().unwrap_or_default())
        .map(|value| value.parse::<f64>().expect("a number"))
        .sum()
}

/// The seconds in the column "Last hour" of the first row with this text.
fn hour(page: &str, row: &str) -> f64 {
    let (_, rest) = page
        .split_once(row)
        .unwrap_or_else(|| panic!("no {row}: {page}"));
    let (_, cell) = rest
        .split_once("<td class=\"figure wide\">")
        .expect("a column");
    let words = cell.split('<').next().unwrap_or_default();
    let seconds = words.split_whitespace().map(|word| {
        let (digits, unit) = word.split_at(word.trim_end_matches(char::is_alphabetic).len());
        let seconds = match unit {
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            unit => panic!("{unit} in {words}"),
        };
        digits.parse::<f64>().expect("a number") * seconds
    });
    seconds.sum()
}

/// The seconds that are drawn in the picture with this in its words: widths times heights.
fn drawn(page: &str, words: &str) -> f64 {
    let paths = page.split("<path ").skip(1);
    let mut paths = paths.filter(|path| {
        let title = path.split("<title>").nth(1).unwrap_or_default();
        title
            .split("</title>")
            .next()
            .unwrap_or_default()
            .contains(words)
    });
    let path = paths.next().unwrap_or_else(|| panic!("no {words}: {page}"));
    let data = path.split(" d=\"").nth(1).unwrap_or_default();
    let data = data.split('"').next().unwrap_or_default();
    let number = |command: Option<&str>| {
        let text = command.and_then(|command| command.get(1..));
        text.and_then(|text| text.parse::<f64>().ok())
            .expect("a number")
    };
    let blocks = data.split('M').skip(1).map(|block| {
        let mut commands = block.split_whitespace().skip(1);
        let (width, height) = (number(commands.next()), number(commands.next()));
        width * height / 1_200.0
    });
    blocks.sum()
}

#[test]
fn the_page_in_a_browser_agrees_with_metrics() {
    let Some(chromium) = browser() else {
        return;
    };
    if require("agent", agent::binary()).is_none() {
        return;
    }
    let Some(hierarchy) = require("cgroups", cgroups::hierarchy()) else {
        return;
    };
    let node = Node::new(2).expect("a node");
    let mut agent = node.agent("a", node.config()).expect("it comes up");
    // From its first look on, the page knows everything.
    agent
        .wait_for("the page to know something", |agent| {
            Ok(hour(&agent.get("/")?.1, "known of the") > 0.0)
        })
        .expect("it does");
    let (page, metrics) = of_one_commit(&agent);
    let first = &agent.status().expect("it answers").snapshot.gpus[0].gpu;
    let (elapsed, first) = (
        "gpuacct_gpu_elapsed_seconds_total",
        format!("gpu_uuid=\"{}\"", first.uuid),
    );
    let unknown = metric(&metrics, elapsed, &first) - hour(&page, "known of the");

    let name = "<img src=x onerror=document.title='owned'>";
    // A tenant chooses the names of the cgroups that it makes.
    let own = format!("gpuacct-page-{}-{name}", std::process::id());
    let cgroup = Chain::make(&hierarchy, [own]);
    let mut work = node.host_work(0, "0.5");
    let work = cgroups::Container::spawn_at(cgroup.lowest(), &mut work).expect("it starts");
    let work = Killed(work);
    let family = "gpuacct_host_gpu_busy_seconds_total";
    let is_named = "onerror";
    agent
        .wait_for("ten seconds of work", |agent| {
            Ok(metric(&agent.get("/metrics")?.1, family, is_named) > 10.0)
        })
        .expect("it works");
    drop(work);
    node.settle(&mut agent).expect("it settles");

    let (page, metrics) = of_one_commit(&agent);
    let busy = metric(&metrics, family, is_named);
    let row = "&#60;img src=x onerror";
    let close = |found: f64, expected: f64, by: f64, what: &str| {
        let difference = (found - expected).abs();
        assert!(difference <= by, "{what}: {found}, /metrics has {expected}");
    };
    close(hour(&page, row), busy, 0.1, "the owner's row");
    // Each of the columns is rounded to seconds.
    close(drawn(&page, "img src=x onerror"), busy, 2.0, "its band");
    let known = metric(&metrics, elapsed, &first) - unknown;
    close(hour(&page, "known of the"), known, 1.0, "what is known");
    let idle = hour(&page, "</i>idle</th>");
    close(idle, known - busy, 1.1, "idle");

    let folder = folder();
    let url = format!("http://{}/", agent.address());
    let seen = chromium.load(folder.path(), &url).expect("it loads");
    assert!(seen.dom.contains(TITLE), "{}", seen.dom);
    assert!(!elements(&seen.dom).contains(&"img".to_owned()));
    assert!(seen.dom.contains("&lt;img src=x onerror"), "{}", seen.dom);
    assert!(
        seen.asked.iter().all(|address| *address == url),
        "{:?}",
        seen.asked
    );
    assert!(agent.stop().expect("it ends").success());
}
