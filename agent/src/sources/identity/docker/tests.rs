//! Against canned replies: what a real daemon says rarely, or never, and must be survived.

use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::super::engine;
use super::*;
use crate::sources::{Io, clock};

/// Nothing here takes as long; it turns a hang into a failure.
const PATIENCE: Duration = Duration::from_secs(60);

fn id(digit: char) -> String {
    String::from(digit).repeat(64)
}

/// What the daemon does with a request.
enum Reply {
    Json(String),
    Status(u16),
    /// Lines of a stream that ends after them.
    Ended(Vec<String>),
    /// Lines of a stream that goes on without saying more.
    Open(Vec<String>),
    /// Nothing, for ever.
    Hang,
}

/// A daemon that answers by a function from the request's target.
struct Server {
    folder: TempDir,
    targets: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Server {
    fn new(reply: impl Fn(&str) -> Reply + Send + Sync + 'static) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("docker.sock")).unwrap();
        let targets = Arc::new(Mutex::new(Vec::new()));
        let (seen, reply) = (Arc::clone(&targets), Arc::new(reply));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (seen, reply) = (Arc::clone(&seen), Arc::clone(&reply));
                tokio::spawn(async move {
                    // The client may hang up whenever it likes.
                    let _ = serve(stream, &seen, &*reply).await;
                });
            }
        });
        Self {
            folder,
            targets,
            task,
        }
    }

    fn targets(&self) -> Vec<String> {
        self.targets.lock().unwrap().clone()
    }

    fn follow(&self) -> Following {
        self.follow_within(PATIENCE)
    }

    fn follow_within(&self, timeout: Duration) -> Following {
        self.follow_pinging(timeout, Duration::from_secs(30))
    }

    fn follow_pinging(&self, timeout: Duration, ping_interval: Duration) -> Following {
        let config = config::Docker {
            sockets: vec![self.folder.path().join("docker.sock")],
            timeout: config::Span(timeout),
            ..config::Docker::default()
        };
        let tuning = Tuning {
            ping_interval,
            pace: Timing {
                retry_max: Duration::from_millis(200),
                look_interval: Duration::from_millis(50),
            },
        };
        Following::of(config, tuning)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    mut stream: UnixStream,
    seen: &Mutex<Vec<String>>,
    reply: &(dyn Fn(&str) -> Reply + Send + Sync),
) -> io::Result<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        if stream.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    }
    let request = String::from_utf8_lossy(&request).into_owned();
    let line = request.lines().next().unwrap_or_default();
    let target = line.split(' ').nth(1).unwrap_or_default().to_owned();
    seen.lock().unwrap().push(line.to_owned());

    let (lines, open) = match reply(&target) {
        Reply::Json(body) => {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
            stream.write_all(head.as_bytes()).await?;
            return stream.write_all(body.as_bytes()).await;
        }
        Reply::Status(status) => {
            let head = format!("HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n");
            return stream.write_all(head.as_bytes()).await;
        }
        Reply::Hang => (None, true),
        Reply::Ended(lines) => (Some(lines), false),
        Reply::Open(lines) => (Some(lines), true),
    };
    if let Some(lines) = lines {
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        stream.write_all(head.as_bytes()).await?;
        for line in lines {
            let chunk = format!("{:x}\r\n{line}\n\r\n", line.len() + 1);
            stream.write_all(chunk.as_bytes()).await?;
        }
        if !open {
            stream.write_all(b"0\r\n\r\n").await?;
        }
    }
    if open {
        // Until the client hangs up.
        while stream.read_buf(&mut Vec::new()).await? > 0 {}
    }
    Ok(())
}

struct Following {
    inputs: mpsc::Receiver<Input>,
    lookups: mpsc::Sender<ContainerId>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
    counters: Arc<Counters>,
}

impl Following {
    fn of(config: config::Docker, tuning: Tuning) -> Self {
        let (lookups, receiver) = mpsc::channel(8);
        let (out, inputs) = mpsc::channel(8);
        let (stop, shutdown) = watch::channel(false);
        let counters = Arc::new(Counters::default());
        let io = IdentityIo {
            counters: Arc::clone(&counters),
            questions: receiver,
            io: Io {
                out,
                clock: clock::now,
                shutdown,
            },
        };
        let task = tokio::spawn(run(config, tuning, io));
        Self {
            inputs,
            lookups,
            stop,
            task,
            counters,
        }
    }

    /// The next input, in a few words: `up`, `down protocol`, `found a name image`, `removed a`,
    /// `not_found a`. Ids are told by their first digit.
    async fn next(&mut self) -> String {
        let input = tokio::time::timeout(PATIENCE, self.inputs.recv())
            .await
            .expect("something happens")
            .expect("the source goes on");
        let digit = |id: &ContainerId| id.as_str()[..1].to_owned();
        match input {
            Input::Health(health) => match health.state {
                SourceState::Down { class, .. } => format!("down {class}"),
                other => other.as_str().to_owned(),
            },
            Input::Identity(IdentityUpdate::Found(found)) => {
                let text = |text: Option<Arc<str>>| text.map_or("-".to_owned(), |t| t.to_string());
                format!(
                    "found {} {} {}",
                    digit(&found.id),
                    text(found.name),
                    text(found.image)
                )
            }
            Input::Identity(IdentityUpdate::NotFound { id, reason, .. }) => {
                format!("{reason} {}", digit(&id))
            }
            Input::Identity(IdentityUpdate::Removed { id, .. }) => {
                format!("removed {}", digit(&id))
            }
            other => panic!("unexpected {other:?}"),
        }
    }

    async fn expect(&mut self, expected: &[&str]) {
        for expected in expected {
            assert_eq!(self.next().await, *expected);
        }
    }

    /// Passes over what is repeated meanwhile: a container that is not known is asked for again.
    async fn until(&mut self, expected: &str) {
        let mut next = self.next().await;
        while next != expected {
            assert!(next.starts_with("invalid_reply"), "{next}, not {expected}");
            next = self.next().await;
        }
    }

    async fn look_up(&self, digit: char) {
        self.lookups
            .send(ContainerId::from(&*id(digit)))
            .await
            .unwrap();
    }

    fn count(&self, of: impl Fn(&Counters) -> &AtomicU64) -> u64 {
        of(&self.counters).load(Relaxed)
    }

    async fn stop(self) {
        self.stop.send(true).unwrap();
        tokio::time::timeout(PATIENCE, self.task)
            .await
            .expect("the source stops")
            .expect("and has not panicked");
    }
}

fn summary(digit: char, name: &str) -> String {
    let id = id(digit);
    format!(
        r#"{{"Id":"{id}","Names":["/web/{name}","/{name}"],"Image":"app:1","State":"running","Labels":{{}}}}"#
    )
}

fn inspection(digit: char, name: &str) -> String {
    let id = id(digit);
    format!(r#"{{"Id":"{id}","Name":"/{name}","Config":{{"Image":"app:1","Labels":{{}}}}}}"#)
}

fn event(action: &str, digit: char, at: u64) -> String {
    let id = id(digit);
    format!(
        r#"{{"Type":"container","Action":"{action}","Actor":{{"ID":"{id}","Attributes":{{"name":"job","image":"app:1"}}}},"scope":"local","time":{},"timeNano":{at}}}"#,
        at / 1_000_000_000
    )
}

/// A daemon with these containers, these events and nothing out of the ordinary.
fn plain(target: &str, list: &[String], events: Reply) -> Reply {
    match target.split('?').next().unwrap_or_default() {
        "/_ping" => Reply::Json("OK".to_owned()),
        "/containers/json" => Reply::Json(format!("[{}]", list.join(","))),
        "/events" => events,
        _ => Reply::Status(404),
    }
}

#[tokio::test]
async fn requests_carry_no_version_and_change_nothing() {
    let daemon = Server::new(|target| plain(target, &[summary('a', "one")], Reply::Open(vec![])));
    let mut source = daemon.follow();
    source.expect(&["found a one app:1", "up"]).await;
    source.look_up('b').await;
    source.expect(&["not_found b"]).await;
    for line in daemon.targets() {
        let target = line.strip_prefix("GET ").expect(&line);
        assert!(
            ["/_ping", "/containers/", "/events?"]
                .iter()
                .any(|path| target.starts_with(path)),
            "{line}"
        );
    }
    source.stop().await;
}

#[tokio::test]
async fn a_state_that_nobody_has_heard_of_costs_no_container_its_name() {
    let strange = summary('a', "one").replace("running", "hibernating");
    let daemon = Server::new(move |target| {
        let list = [strange.clone(), summary('b', "two")];
        plain(target, &list, Reply::Open(vec![]))
    });
    let mut source = daemon.follow();
    source
        .expect(&["found a one app:1", "found b two app:1", "up"])
        .await;
    assert_eq!(source.count(|c| &c.invalid_replies), 0);
    source.stop().await;
}

#[tokio::test]
async fn an_entry_that_cannot_be_read_costs_one_container_its_name_and_no_other() {
    let strange = summary('a', "one").replace(r#""Labels":{}"#, r#""Labels":7"#);
    let daemon = Server::new(move |target| {
        let list = [strange.clone(), summary('b', "two")];
        plain(target, &list, Reply::Open(vec![]))
    });
    let mut source = daemon.follow();
    source.expect(&["found b two app:1", "up"]).await;
    assert_eq!(source.count(|c| &c.invalid_replies), 1);
    source.stop().await;
}

#[tokio::test]
async fn a_list_that_cannot_be_read_does_not_cost_every_container_its_name() {
    let strange = "{]".to_owned();
    let lists = Arc::new(AtomicU64::new(0));
    let seen = Arc::clone(&lists);
    let daemon = Server::new(move |target| match target {
        t if t.contains(&id('b')) => Reply::Json(inspection('b', "two")),
        // Neither the whole list nor that of the running, twice; then it is well again.
        t if t.starts_with("/containers/json") && lists.fetch_add(1, Relaxed) < 4 => {
            plain(t, std::slice::from_ref(&strange), Reply::Hang)
        }
        t => plain(t, &[summary('c', "three")], Reply::Open(vec![])),
    });
    let mut source = daemon.follow_pinging(PATIENCE, Duration::from_secs(1));
    source.expect(&["down protocol"]).await;
    source.look_up('b').await;
    source.expect(&["found b two app:1"]).await;
    source.expect(&["down protocol"]).await;
    source
        .expect(&["found c three app:1", "removed b", "up"])
        .await;
    assert_eq!(seen.load(Relaxed), 5);
    assert_eq!(source.count(|c| &c.invalid_replies), 4);
    assert_eq!(source.count(|c| &c.disconnects), 0);
    source.stop().await;
}

#[tokio::test]
async fn a_list_that_is_too_large_does_not_cost_every_container_its_name() {
    // Labels are written by whoever builds an image.
    let label = "x".repeat(engine::MAX_ONE / 2);
    let large = |digit| summary(digit, "one").replace("{}", &format!(r#"{{"a":"{label}"}}"#));
    let list: Vec<_> = "0123456789abcdef0123".chars().map(large).collect();
    let lists = Arc::new(AtomicU64::new(0));
    let seen = Arc::clone(&lists);
    let daemon = Server::new(move |target| match target {
        t if t.contains(&id('b')) => Reply::Json(inspection('b', "two")),
        t if t.starts_with("/containers/json") && lists.fetch_add(1, Relaxed) < 2 => {
            plain(t, &list, Reply::Hang)
        }
        t => plain(t, &[summary('c', "three")], Reply::Open(vec![])),
    });
    let mut source = daemon.follow_pinging(PATIENCE, Duration::from_secs(1));
    let Some(Input::Health(health)) = source.inputs.recv().await else {
        panic!("the source tells of its health");
    };
    let SourceState::Down { class, reason, .. } = health.state else {
        panic!("it is down: {health:?}");
    };
    assert_eq!(&*class, "too_large");
    assert!(
        reason.contains("too large: 10") && reason.contains("at most 8388608"),
        "{reason}"
    );
    source.look_up('b').await;
    source.expect(&["found b two app:1"]).await;
    source
        .expect(&["found c three app:1", "removed b", "up"])
        .await;
    assert_eq!(seen.load(Relaxed), 3);
    assert_eq!(source.count(|c| &c.answers_too_large), 2);
    assert_eq!(source.count(|c| &c.disconnects), 0);
    source.stop().await;
}

#[tokio::test]
async fn a_reply_that_never_ends_is_given_up() {
    let daemon = Server::new(|target| match target {
        t if t.contains(&id('a')) => {
            // A stream of lines, none of which says how much is to come.
            let line = "x".repeat(64 << 10);
            Reply::Open(vec![line; 2 * (engine::MAX_LIST >> 16)])
        }
        t => plain(t, &[], Reply::Open(vec![])),
    });
    let mut source = daemon.follow();
    source.expect(&["up"]).await;
    source.look_up('a').await;
    source.expect(&["too_large a"]).await;
    // The inspection, and the list that is asked in its place.
    assert_eq!(source.count(|c| &c.answers_too_large), 2);
    assert_eq!(source.count(|c| &c.disconnects), 0);
    source.stop().await;
}

#[tokio::test]
async fn an_event_that_is_too_large_costs_itself_and_no_other() {
    let at = 1_700_000_000_000_000_000;
    let large = event("create", 'b', at).replace("app:1", &"x".repeat(engine::MAX_ONE));
    let daemon = Server::new(move |target| {
        let events = vec![large.clone(), event("create", 'c', at + 1)];
        plain(target, &[], Reply::Open(events))
    });
    let mut source = daemon.follow();
    source.expect(&["up", "found c job app:1"]).await;
    assert_eq!(source.count(|c| &c.answers_too_large), 1);
    assert_eq!(source.count(|c| &c.events), 1);
    assert_eq!(source.count(|c| &c.disconnects), 0);
    source.stop().await;
}

#[tokio::test]
async fn an_inspection_that_hangs_or_cannot_be_read_is_replaced_by_the_list() {
    let daemon = Server::new(|target| match target {
        t if t.contains(&id('a')) && t.ends_with("/json") => Reply::Hang,
        t if t.contains(&id('b')) && t.ends_with("/json") => Reply::Json("{]".to_owned()),
        t if t.contains(&id('c')) && t.ends_with("/json") => Reply::Status(500),
        // Another container's reply is no reply.
        t if t.contains(&id('d')) && t.ends_with("/json") => Reply::Json(inspection('a', "one")),
        t if t.contains(&id('e')) && t.ends_with("/json") => Reply::Json(inspection('e', "five")),
        t if t.contains("filters") && t.contains(&id('a')) => {
            plain(t, &[summary('a', "one")], Reply::Hang)
        }
        t if t.contains("filters") && t.contains(&id('b')) => {
            plain(t, &[summary('b', "two")], Reply::Hang)
        }
        t if t.contains("filters") && t.contains(&id('c')) => {
            plain(t, &["{]".to_owned()], Reply::Hang)
        }
        t => plain(t, &[], Reply::Open(vec![])),
    });
    let mut source = daemon.follow_within(Duration::from_secs(5));
    source.expect(&["up"]).await;
    for (digit, expected) in [
        ('b', "found b two app:1"),
        ('c', "invalid_reply c"),
        ('d', "invalid_reply d"),
        ('e', "found e five app:1"),
    ] {
        source.look_up(digit).await;
        source.until(expected).await;
    }
    assert_eq!(source.count(|c| &c.timeouts), 0);
    source.look_up('a').await;
    source.until("found a one app:1").await;
    assert_eq!(source.count(|c| &c.timeouts), 1);
    assert_eq!(
        source.count(|c| &c.disconnects),
        0,
        "one bad container is no outage"
    );
    source.stop().await;
}

#[tokio::test]
async fn a_stream_that_ends_is_resumed_where_it_ended() {
    let at = 1_700_000_000_123_456_789;
    let rounds = AtomicU64::new(0);
    let daemon = Server::new(move |target| {
        let round = if target.starts_with("/events") {
            rounds.fetch_add(1, Relaxed)
        } else {
            rounds.load(Relaxed)
        };
        match round {
            0 => plain(
                target,
                &[summary('a', "one"), summary('b', "two")],
                Reply::Ended(vec![
                    event("create", 'c', at),
                    event("destroy", 'c', at + 1),
                ]),
            ),
            // Meanwhile one has gone.
            _ => plain(target, &[summary('a', "one")], Reply::Open(vec![])),
        }
    });
    let mut source = daemon.follow();
    source
        .expect(&["found a one app:1", "found b two app:1", "up"])
        .await;
    source
        .expect(&["found c job app:1", "removed c", "down closed"])
        .await;
    source
        .expect(&["found a one app:1", "removed b", "up"])
        .await;
    let since: Vec<_> = loop {
        let events = daemon
            .targets()
            .into_iter()
            .filter(|t| t.contains("/events"));
        let since: Vec<_> = events.collect();
        if since.len() == 2 {
            break since;
        }
        tokio::task::yield_now().await;
    };
    assert!(
        since[1].contains("since=1700000000.123456790&"),
        "{}",
        since[1]
    );
    assert_eq!(source.count(|c| &c.disconnects), 1);
    source.stop().await;
}

#[tokio::test]
async fn an_event_that_cannot_be_read_is_not_asked_for_again() {
    let at = 1_700_000_000_000_000_000;
    let rounds = AtomicU64::new(0);
    let daemon = Server::new(move |target| {
        if !target.starts_with("/events") || rounds.fetch_add(1, Relaxed) > 0 {
            return plain(target, &[], Reply::Open(vec![]));
        }
        let odd = [
            r#"{"Type":"container","Action":"start"}"#.to_owned(),
            r#"{"Type":"container","Action":"start","Actor":{"ID":"../../images"}}"#.to_owned(),
            r"{}".to_owned(),
            event("create", 'c', at),
            event("sneeze", 'c', at),
            "{\"Type\":".to_owned() + "7}",
        ];
        Reply::Open(odd.to_vec())
    });
    let mut source = daemon.follow();
    source
        .expect(&[
            "up",
            "found c job app:1",
            "down protocol",
            "removed c",
            "up",
        ])
        .await;
    // Three without an id, and the one that ended the session.
    assert_eq!(source.count(|c| &c.invalid_replies), 4);
    assert_eq!(source.count(|c| &c.events), 5);
    for target in daemon.targets() {
        assert!(!target.contains("since=1700000000"), "{target}");
    }
    source.stop().await;
}

#[tokio::test]
async fn what_users_write_is_bounded_before_it_goes_anywhere() {
    let huge = "x".repeat(1 << 18);
    let body = format!(
        r#"[{{"Id":"{}","Names":["/{huge}"],"Image":"a\u0000b\nc","Labels":{{"big":"{huge}","q":"\"\\"}}}}]"#,
        id('a')
    );
    let daemon = Server::new(move |target| match target {
        t if t.starts_with("/containers/json") => Reply::Json(body.clone()),
        t => plain(t, &[], Reply::Open(vec![])),
    });
    let mut source = daemon.follow();
    let Some(Input::Identity(IdentityUpdate::Found(found))) = source.inputs.recv().await else {
        panic!("expected an identity");
    };
    assert_eq!(found.name.map(|name| name.len()), Some(253));
    assert_eq!(found.image.as_deref(), Some(r"a\x00b\x0ac"));
    assert_eq!(found.labels["big"].len(), 253);
    assert_eq!(&*found.labels["q"], "\"\\");
    assert_eq!(source.count(|c| &c.texts_changed), 3);
    source.stop().await;
}

#[tokio::test]
async fn what_is_looked_up_while_there_is_no_socket_neither_fills_the_line_nor_bothers_the_daemon()
{
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("docker.sock");
    let daemon = Server::new(|target| match target {
        t if t.contains(&id('a')) => Reply::Json(inspection('a', "one")),
        t => plain(t, &[summary('b', "two")], Reply::Open(vec![])),
    });
    let config = config::Docker {
        sockets: vec![socket.clone()],
        ..config::Docker::default()
    };
    let mut tuning = Tuning::default();
    tuning.pace.look_interval = Duration::from_millis(20);
    let mut source = Following::of(config, tuning);
    source.expect(&["absent"]).await;
    // More than wait for an answer at most.
    for number in 0..5_000 {
        let id = ContainerId::from(&*format!("{number:064x}"));
        source.lookups.send(id).await.unwrap();
        tokio::task::yield_now().await;
    }
    assert_eq!(source.count(|c| &c.lookups_refused), 0);
    std::os::unix::fs::symlink(daemon.folder.path().join("docker.sock"), &socket).unwrap();
    source.expect(&["found b two app:1", "up"]).await;
    source.look_up('a').await;
    // Not an id: it must not end up in a path.
    source
        .lookups
        .send(ContainerId::from("../../secrets"))
        .await
        .unwrap();
    source.expect(&["found a one app:1"]).await;
    let targets = daemon.targets();
    let inspections = targets.iter().filter(|t| t.ends_with("/json HTTP/1.1"));
    let others = inspections.filter(|t| !t.contains("/containers/json") && !t.contains(&id('a')));
    assert_eq!(others.count(), 0, "{targets:?}");
    source.look_up('a').await;
    source.expect(&["found a one app:1"]).await;
    assert_eq!(source.count(|c| &c.lookups_refused), 1);
    source.stop().await;
}

#[tokio::test]
async fn containers_of_a_second_daemon_are_known_as_well() {
    let daemons = ['a', 'b'].map(|digit| {
        Server::new(move |target| match target {
            t if t.contains(&id(digit)) => Reply::Json(inspection(digit, "asked")),
            t => plain(t, &[summary(digit, "listed")], Reply::Open(vec![])),
        })
    });
    let sockets = daemons
        .each_ref()
        .map(|d| d.folder.path().join("docker.sock"));
    let both = sockets
        .each_ref()
        .map(|socket| socket.display().to_string());
    let config = config::Docker {
        sockets: sockets.to_vec(),
        ..config::Docker::default()
    };
    let mut source = Following::of(config, Tuning::default());
    let mut known = std::collections::BTreeSet::new();
    let mut place = String::new();
    while known.len() < 2 || place != both.join(" ") {
        match source.inputs.recv().await.unwrap() {
            Input::Identity(IdentityUpdate::Found(found)) => {
                known.insert(found.id);
            }
            Input::Health(health) => {
                assert_eq!(health.state, SourceState::Up);
                place = health.place.to_string();
            }
            other => panic!("unexpected {other:?}"),
        }
    }
    // One that does not know it does not keep the other from telling.
    source.look_up('b').await;
    let mut next = source.next().await;
    while next != "found b asked app:1" {
        assert_eq!(next, "not_found b");
        next = source.next().await;
    }
    source.stop().await;
}

#[tokio::test]
async fn a_source_that_nobody_reads_ends() {
    let daemon = Server::new(|target| plain(target, &[summary('a', "one")], Reply::Open(vec![])));
    let source = daemon.follow();
    drop(source.inputs);
    tokio::time::timeout(PATIENCE, source.task)
        .await
        .expect("the source ends")
        .expect("and has not panicked");
}
