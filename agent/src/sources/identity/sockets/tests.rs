use std::fmt;
use std::future::pending;
use std::os::unix::net::UnixListener;
use std::sync::Mutex;
use std::sync::atomic::Ordering::Relaxed;

use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::*;
use crate::core::input::SourceHealth;
use crate::sources::clock;

/// Nothing here takes as long; it turns a hang into a failure.
const PATIENCE: Duration = Duration::from_secs(600);

#[derive(Debug)]
struct Failed(&'static str);

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "it is {}", self.0)
    }
}

impl SessionError for Failed {
    fn class(&self) -> &'static str {
        self.0
    }
}

/// Does what its socket's name says.
struct Actor {
    seat: SocketContext<u32>,
    /// When each session began, and on which socket.
    sessions: Arc<Mutex<Vec<(String, Instant)>>>,
}

impl Follower for Actor {
    type Question = u32;
    type Error = Failed;

    fn context(&mut self) -> &mut SocketContext<u32> {
        &mut self.seat
    }

    async fn session(&mut self, was_up: &mut bool) -> Result<Failed, Closed> {
        let name = self.seat.path.file_name().unwrap().to_owned();
        let name = name.into_string().unwrap();
        let begun = (name.clone(), Instant::now());
        self.sessions.lock().unwrap().push(begun);
        match name.as_str() {
            "defective" => panic!("as it should"),
            "hanging" => return Ok(Failed("timeout")),
            "strange" => return Ok(Failed("protocol")),
            "unoffered" => return Ok(Failed("unimplemented")),
            _ => {}
        }
        *was_up = true;
        self.seat.report(SourceState::Up).await?;
        while receive(&mut self.seat.questions).await.is_some() {}
        pending().await
    }
}

struct Source {
    folder: TempDir,
    listeners: Vec<UnixListener>,
    sessions: Arc<Mutex<Vec<(String, Instant)>>>,
    questions: mpsc::Sender<u32>,
    inputs: mpsc::Receiver<Input>,
    counters: Arc<Counters>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Source {
    /// Sockets that somebody listens on, `absent` ones apart.
    fn following(names: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let there = names.iter().filter(|name| **name != "absent");
        let listeners = there.map(|name| UnixListener::bind(folder.path().join(name)).unwrap());
        let listeners = listeners.collect();
        let paths: Vec<_> = names.iter().map(|name| folder.path().join(name)).collect();
        Self::at(folder, listeners, paths)
    }

    fn at(folder: TempDir, listeners: Vec<UnixListener>, paths: Vec<PathBuf>) -> Self {
        let (out, inputs) = mpsc::channel(8);
        let (questions, asked) = mpsc::channel(8);
        let (stop, shutdown) = watch::channel(false);
        let (counters, sessions) = (Arc::<Counters>::default(), Arc::<Mutex<_>>::default());
        let io = IdentityIo {
            counters: Arc::clone(&counters),
            questions: asked,
            io: Io {
                out,
                clock: clock::now,
                shutdown,
            },
        };
        let pace = Timing::default();
        let seen = Arc::clone(&sessions);
        let task = tokio::spawn(async move {
            let begin = |seat| Actor {
                seat,
                sessions: Arc::clone(&seen),
            };
            run(SourceId::Cri, &paths, pace, io, begin).await;
        });
        Self {
            folder,
            listeners,
            sessions,
            questions,
            inputs,
            counters,
            stop,
            task,
        }
    }

    /// The next state for which `pick` holds, where it is, and why.
    async fn until(&mut self, pick: impl Fn(&str, &str, &str) -> bool) -> SourceHealth {
        let search = async {
            loop {
                let Some(Input::Health(health)) = self.inputs.recv().await else {
                    panic!("the source goes on and says nothing else");
                };
                let (class, reason) = match &health.state {
                    SourceState::Down { class, reason, .. } => (&**class, &**reason),
                    other => (other.as_str(), ""),
                };
                let name = |text: &str| text.replace(&self.folder.path().display().to_string(), "");
                if pick(class, &name(&health.place), &name(reason)) {
                    return health;
                }
            }
        };
        tokio::time::timeout(PATIENCE, search)
            .await
            .expect("it comes")
    }

    async fn stop(self) {
        self.stop.send(true).unwrap();
        tokio::time::timeout(PATIENCE, self.task)
            .await
            .expect("the source stops")
            .expect("and has not panicked");
        drop(self.listeners);
    }
}

#[tokio::test(start_paused = true)]
async fn a_socket_that_hangs_or_is_no_runtimes_is_not_hidden_by_another_that_answers() {
    let mut source = Source::following(&["up", "hanging", "strange", "absent"]);
    source
        .until(|class, place, reason| {
            class == "timeout"
                && place == "/hanging"
                && reason == "it is timeout; /strange: it is protocol; up: /up"
        })
        .await;
    source.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_follower_that_a_defect_ends_is_told_of_and_takes_no_other_with_it() {
    let mut source = Source::following(&["defective", "up"]);
    let health = source
        .until(|class, place, reason| {
            class == "panic" && place == "/defective" && reason.ends_with("; up: /up")
        })
        .await;
    assert!(
        matches!(
            health.state,
            SourceState::Down {
                next_retry: None,
                ..
            }
        ),
        "{health:?}"
    );
    // What is asked goes to the other one, and is not taken for too much.
    for question in 0..1_000 {
        source.questions.send(question).await.unwrap();
        tokio::task::yield_now().await;
    }
    assert_eq!(source.counters.lookups_refused.load(Relaxed), 0);
    source.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_interface_that_is_offered_late_is_found_within_the_grace_for_names() {
    let mut source = Source::following(&["unoffered"]);
    source.until(|class, _, _| class == "absent").await;
    while source.sessions.lock().unwrap().len() < 20 {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let sessions = source.sessions.lock().unwrap().clone();
    for pair in sessions.windows(2) {
        let wait = pair[1].1 - pair[0].1;
        assert!(wait <= UNOFFERED_MAX, "{wait:?}");
    }
    source.stop().await;
}

#[tokio::test]
async fn what_is_asked_without_a_socket_is_not_kept() {
    let source = Source::following(&["absent"]);
    for question in 0..10_000 {
        source.questions.send(question).await.unwrap();
        tokio::task::yield_now().await;
    }
    assert_eq!(source.counters.lookups_refused.load(Relaxed), 0);
    source.stop().await;
}

#[tokio::test]
async fn a_source_without_sockets_is_absent_and_not_without_a_state() {
    let mut source = Source::following(&[]);
    let health = source.until(|_, place, _| place.is_empty()).await;
    assert_eq!(health.state, SourceState::Absent);
    source.stop().await;
}

#[tokio::test]
async fn a_socket_under_two_paths_is_followed_once() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    std::fs::create_dir(&run).unwrap();
    std::os::unix::fs::symlink(&run, folder.path().join("var")).unwrap();
    let listeners =
        ["docker.sock", "podman.sock"].map(|n| UnixListener::bind(run.join(n)).unwrap());
    let paths = [
        "run/docker.sock",
        "var/docker.sock",
        "nowhere/x",
        "run/podman.sock",
    ];
    let paths = paths.map(|path| folder.path().join(path)).to_vec();
    let mut source = Source::at(folder, listeners.into(), paths);
    source
        .until(|class, place, _| class == "up" && place == "/run/docker.sock /run/podman.sock")
        .await;
    let mut sessions: Vec<_> = source.sessions.lock().unwrap().clone();
    sessions.sort();
    let names: Vec<_> = sessions.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["docker.sock", "podman.sock"]);
    source.stop().await;
}

#[test]
fn the_state_of_several_sockets_is_that_of_the_worst_and_names_them_all() {
    let down = |class: &str| SourceState::Down {
        class: class.into(),
        reason: format!("{class}!").into(),
        next_retry: None,
    };
    let (up, absent) = (SourceState::Up, SourceState::Absent);
    type Row<'a> = (&'a [(&'a SourceState, bool)], &'a str, &'a str, &'a str);
    let (refused, hangs) = (down("refused"), down("timeout"));
    let rows: [Row<'_>; 7] = [
        (&[], "absent", "", ""),
        (&[(&absent, false), (&absent, false)], "absent", "0", ""),
        (&[(&absent, false), (&up, true)], "up", "1", ""),
        (
            &[(&up, true), (&absent, false), (&up, true)],
            "up",
            "0 2",
            "",
        ),
        (&[(&refused, false)], "refused", "0", "refused!"),
        (
            &[(&up, true), (&hangs, false)],
            "timeout",
            "1",
            "timeout!; up: 0",
        ),
        // Of two, the one whose loss is news.
        (
            &[
                (&refused, false),
                (&hangs, true),
                (&up, true),
                (&absent, false),
            ],
            "timeout",
            "1",
            "timeout!; 0: refused!; up: 2",
        ),
    ];
    for (members, class, place, words) in rows {
        let members: Vec<_> = members
            .iter()
            .enumerate()
            .map(|(number, (state, was_up))| SocketStatus {
                path: number.to_string().into(),
                state: (*state).clone(),
                was_up: *was_up,
            })
            .collect();
        let (state, at) = together(&members);
        let found = match &state {
            SourceState::Down { class, reason, .. } => (&**class, &**reason),
            other => (other.as_str(), ""),
        };
        assert_eq!((found, &*at), ((class, words), place));
    }
}
