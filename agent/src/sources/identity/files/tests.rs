use std::fs;
use std::sync::atomic::Ordering;

use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::*;
use crate::core::input::SourceHealth;
use crate::core::model::{Nanos, WallTime};

fn hex(pair: &str) -> ContainerId {
    ContainerId::from(&*pair.repeat(32))
}

fn clock() -> Clock {
    Clock {
        boot: BootTime(1),
        wall: WallTime(1),
    }
}

/// A file a container, which has its name.
#[derive(Clone)]
struct Plain {
    root: PathBuf,
}

impl IdentityFiles for Plain {
    const SOURCE: IdentitySource = IdentitySource::Bundle;

    fn find(&mut self, ids: &[ContainerId], _: &Counters) -> (Presence, Vec<Answer>) {
        let mut presence = Presence::default();
        let folder = Path::new("/names");
        let folder = presence.note(folder, open_folder(&self.root, folder));
        let answer = |id: &ContainerId| {
            let folder = folder.as_ref();
            let folder = folder.ok_or_else(|| FileError::Missing(id.as_str().into()))?;
            let text = read_below(folder, Path::new(id.as_str()))?;
            assert_ne!(text, b"panic", "as it should");
            Ok(Box::new(ContainerIdentity {
                id: id.clone(),
                source: Self::SOURCE,
                name: Some(String::from_utf8_lossy(&text).into()),
                image: None,
                runtime: None,
                kubernetes: None,
                labels: Default::default(),
            }))
        };
        (presence, ids.iter().map(answer).collect())
    }
}

struct Rig {
    root: TempDir,
    lookups: mpsc::Sender<ContainerId>,
    inputs: mpsc::Receiver<Input>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
    counters: Arc<Counters>,
}

impl Rig {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let (lookups, taken) = mpsc::channel(256);
        let (out, inputs) = mpsc::channel(16);
        let (stop, shutdown) = watch::channel(false);
        let counters = Arc::new(Counters::default());
        let shelf = Plain {
            root: root.path().to_owned(),
        };
        let io = IdentityIo {
            counters: Arc::clone(&counters),
            questions: taken,
            io: Io {
                out,
                clock,
                shutdown,
            },
        };
        let task = tokio::spawn(run(shelf, Timing::default(), "/names".into(), io));
        Self {
            root,
            lookups,
            inputs,
            stop,
            task,
            counters,
        }
    }

    fn folder(&self) -> PathBuf {
        self.root.path().join("names")
    }

    async fn state(&mut self) -> (String, String) {
        match self.inputs.recv().await.unwrap() {
            Input::Health(SourceHealth { state, source, .. }) => {
                assert_eq!(source, IdentitySource::Bundle.source());
                let class = match &state {
                    SourceState::Down {
                        class, next_retry, ..
                    } => {
                        let retry = clock().boot.plus(Nanos::from_secs(10));
                        assert_eq!(*next_retry, Some(retry), "it is always looked for again");
                        class.to_string()
                    }
                    _ => String::new(),
                };
                (state.as_str().to_owned(), class)
            }
            other => panic!("expected a state, found {other:?}"),
        }
    }

    async fn ask(&mut self, id: &ContainerId) {
        self.lookups.send(id.clone()).await.unwrap();
    }

    async fn answer(&mut self) -> Result<String, &'static str> {
        match self.inputs.recv().await.unwrap() {
            Input::Identity(IdentityUpdate::Found(found)) => Ok(found.name.unwrap().to_string()),
            Input::Identity(IdentityUpdate::NotFound { reason, .. }) => Err(reason),
            other => panic!("expected an answer, found {other:?}"),
        }
    }

    fn read(&self, counter: fn(&Counters) -> &std::sync::atomic::AtomicU64) -> u64 {
        counter(&self.counters).load(Ordering::Relaxed)
    }
}

#[tokio::test(start_paused = true)]
async fn a_folder_is_absent_then_up_then_down_when_it_goes() {
    let mut rig = Rig::new();
    assert_eq!(rig.state().await, ("absent".into(), String::new()));
    // While nothing is there nobody is not found; when it comes, the next question is answered.
    rig.ask(&hex("a1")).await;
    fs::create_dir(rig.folder()).unwrap();
    fs::write(rig.folder().join(hex("a1").as_str()), "web").unwrap();
    let mut came = rig.state().await;
    assert_eq!(came.0, "up");
    rig.ask(&hex("a1")).await;
    assert_eq!(rig.answer().await, Ok("web".into()));
    fs::remove_dir_all(rig.folder()).unwrap();
    came = rig.state().await;
    assert_eq!(came, ("down".into(), "vanished".into()));
    rig.stop.send(true).unwrap();
    rig.task.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_was_not_found_is_not_looked_for_again_before_a_while() {
    let mut rig = Rig::new();
    fs::create_dir(rig.folder()).unwrap();
    let id = hex("a1");
    let mut now = Duration::ZERO;
    let began = Instant::now();
    rig.ask(&id).await;
    assert_eq!(rig.state().await.0, "up");
    assert_eq!(rig.answer().await, Err("not_found"));
    // The core asks every second; answers come at the rungs of the ladder.
    let mut looked = Vec::new();
    for _ in 0..150 {
        now += Duration::from_secs(1);
        tokio::time::sleep_until(began + now).await;
        rig.ask(&id).await;
        let before = rig.read(|c| &c.calls);
        // Another id goes through the same round or a later one, and so shows that this is done.
        let marker = ContainerId::from(&*format!("{:064x}", now.as_secs()));
        rig.ask(&marker).await;
        let mut answers = rig.read(|c| &c.calls);
        while answers == before {
            assert_eq!(rig.answer().await, Err("not_found"));
            answers = rig.read(|c| &c.calls);
        }
        if answers - before == 2 {
            assert_eq!(rig.answer().await, Err("not_found"));
            looked.push(now.as_secs());
        }
    }
    assert_eq!(looked, [1, 5, 21, 81, 141]);
}

#[tokio::test]
async fn what_is_no_id_never_becomes_a_path() {
    let mut rig = Rig::new();
    fs::create_dir(rig.folder()).unwrap();
    fs::write(rig.root.path().join("secret"), "x").unwrap();
    let upper = "A1".repeat(32);
    let dotted = format!("{}../secret", "0".repeat(55));
    let long = "a".repeat(65);
    let rows = [
        "",
        "..",
        "../secret",
        "/etc/passwd",
        "a1\0",
        &upper,
        &dotted,
        &long,
    ];
    for id in rows {
        rig.ask(&ContainerId::from(id)).await;
    }
    rig.ask(&hex("b2")).await;
    assert!(matches!(rig.state().await.0.as_str(), "absent" | "up"));
    let answer = loop {
        match rig.inputs.recv().await.unwrap() {
            Input::Identity(answer) => break answer,
            Input::Health(_) => {}
            other => panic!("found {other:?}"),
        }
    };
    assert!(
        matches!(&answer, IdentityUpdate::NotFound { id, .. } if *id == hex("b2")),
        "{answer:?}"
    );
    assert_eq!(rig.read(|c| &c.lookups_refused), rows.len() as u64);
    assert_eq!(rig.read(|c| &c.calls), 1);
}

#[tokio::test(start_paused = true)]
async fn garbage_is_counted_and_a_panic_costs_one_round() {
    let mut rig = Rig::new();
    fs::create_dir(rig.folder()).unwrap();
    let file = |id: &ContainerId| rig.root.path().join("names").join(id.as_str());
    let (long, panics, good) = (hex("a1"), hex("b2"), hex("c3"));
    fs::write(file(&long), vec![b'x'; 1 + MAX_FILE_BYTES as usize]).unwrap();
    fs::write(file(&panics), "panic").unwrap();
    fs::write(file(&good), "web").unwrap();
    assert_eq!(rig.state().await.0, "up");
    rig.ask(&long).await;
    assert_eq!(rig.answer().await, Err("too_large"));
    assert_eq!(rig.read(|c| &c.invalid_replies), 1);
    rig.ask(&panics).await;
    assert_eq!(rig.state().await, ("down".into(), "panic".into()));
    rig.ask(&good).await;
    assert_eq!(rig.state().await.0, "up");
    assert_eq!(rig.answer().await, Ok("web".into()));
    let outcomes = [
        rig.read(|c| &c.lookups_found),
        rig.read(|c| &c.lookups_not_found),
        rig.read(|c| &c.lookups_invalid),
        rig.read(|c| &c.lookups_error),
    ];
    assert_eq!(outcomes, [1, 0, 1, 1]);
}

#[tokio::test(start_paused = true)]
async fn what_is_absent_neither_fails_nor_does_not_find() {
    let mut rig = Rig::new();
    assert_eq!(rig.state().await.0, "absent");
    rig.ask(&hex("a1")).await;
    while rig.read(|c| &c.calls) == 0 {
        tokio::task::yield_now().await;
    }
    fs::create_dir(rig.folder()).unwrap();
    rig.ask(&hex("b2")).await;
    assert_eq!(rig.state().await.0, "up");
    // The first may have been asked while the folder came; whoever was told so is counted.
    let mut told = 0;
    loop {
        told += 1;
        match rig.inputs.recv().await.unwrap() {
            Input::Identity(IdentityUpdate::NotFound { id, .. }) if id == hex("b2") => break,
            Input::Identity(_) => {}
            other => panic!("found {other:?}"),
        }
    }
    assert_eq!(rig.read(|c| &c.lookups_not_found), told);
    assert_eq!(rig.read(|c| &c.lookups_error), 0);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_does_not_satisfy_the_core_is_not_read_again_and_again() {
    let mut rig = Rig::new();
    fs::create_dir(rig.folder()).unwrap();
    let (id, marker) = (hex("a1"), hex("b2"));
    for id in [&id, &marker] {
        fs::write(rig.folder().join(id.as_str()), "web").unwrap();
    }
    rig.ask(&id).await;
    assert_eq!(rig.state().await.0, "up");
    assert_eq!(rig.answer().await, Ok("web".into()));
    rig.ask(&id).await;
    rig.ask(&marker).await;
    assert_eq!(rig.answer().await, Ok("web".into()));
    assert_eq!(rig.read(|c| &c.calls), 2);
    tokio::time::sleep(HOLDS[0]).await;
    rig.ask(&id).await;
    assert_eq!(rig.answer().await, Ok("web".into()));
}

/// A disk that hangs until it is let go.
#[derive(Clone)]
struct Hanging(Arc<std::sync::Barrier>);

impl IdentityFiles for Hanging {
    const SOURCE: IdentitySource = IdentitySource::KubeletLogs;

    fn find(&mut self, _: &[ContainerId], _: &Counters) -> (Presence, Vec<Answer>) {
        self.0.wait();
        let place = Some("/logs".into());
        let presence = Presence {
            place,
            obstacle: None,
        };
        (presence, Vec::new())
    }
}

#[tokio::test]
async fn a_disk_that_hangs_is_down_and_comes_back() {
    let gate = Arc::new(std::sync::Barrier::new(2));
    let (_lookups, taken) = mpsc::channel(1);
    let (out, mut inputs) = mpsc::channel(16);
    let (stop, shutdown) = watch::channel(false);
    let counters = Arc::new(Counters::default());
    let pace = Timing {
        timeout: Duration::from_millis(1),
        look_interval: Duration::from_secs(3_600),
    };
    let io = IdentityIo {
        counters: Arc::clone(&counters),
        questions: taken,
        io: Io {
            out,
            clock,
            shutdown,
        },
    };
    let shelf = Hanging(Arc::clone(&gate));
    let task = tokio::spawn(run(shelf, pace, "/logs".into(), io));
    let mut state = async || match inputs.recv().await {
        Some(Input::Health(health)) => (health.state, health.place),
        other => panic!("expected a state, found {other:?}"),
    };
    let (hanging, place) = state().await;
    assert_eq!((hanging.as_str(), &*place), ("down", "/logs"));
    let SourceState::Down { class, .. } = hanging else {
        unreachable!("down is down");
    };
    assert_eq!(&*class, "timeout");
    assert_eq!(counters.timeouts.load(Ordering::Relaxed), 1);
    gate.wait();
    assert_eq!(state().await.0, SourceState::Up);
    stop.send(true).unwrap();
    task.await.unwrap();
}

#[test]
fn the_memory_of_answers_is_bounded_and_keeps_those_that_hold_longest() {
    let now = Instant::now();
    let mut answered = Answered::default();
    let id = |n: usize| ContainerId::from(&*format!("{n:064x}"));
    for _ in 0..3 {
        answered.note(&id(0), now);
    }
    for n in 1..3 * MAX_ANSWERED {
        let a_little = Duration::from_millis(u64::try_from(n).unwrap());
        answered.note(&id(n), now + a_little);
        assert!(answered.holds.len() <= MAX_ANSWERED);
    }
    assert!(answered.holds(&id(0), now + HOLDS[1]));
    assert!(answered.holds(&id(3 * MAX_ANSWERED - 1), now));
    assert!(!answered.holds(&id(1), now));
}
