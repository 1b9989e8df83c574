use tokio::time::Instant;

use super::*;
use crate::core::accountant::Settings;
use crate::core::model::SourceState;
use crate::outputs::store::{self, mark::MarkerFile};

fn core(keeping: Option<DurabilityGate>) -> (Core, watch::Receiver<Arc<Published>>) {
    let mut accountant = Accountant::new(Settings::default(), now());
    if keeping.is_some() {
        accountant.keep();
    }
    let begun = OpenedBooks {
        accountant,
        keeping,
        limiter: None,
        records: None,
        store: state_of(SourceId::Store, SourceState::Up, "/store"),
        cursors: Vec::new(),
    };
    let (published, shown) = watch::channel(Arc::default());
    let core = Core::new(
        begun,
        "/store".to_owned(),
        None,
        Requests::new().0,
        Watchdog::default(),
        SourceStates::default(),
        published,
    );
    (core, shown)
}

fn down(class: &str) -> SourceState {
    SourceState::Down {
        class: class.into(),
        reason: "".into(),
        next_retry: None,
    }
}

/// Each source or output with its state, and with the number of its errors.
fn states(published: &Published) -> Vec<(SourceId, &'static str, u64)> {
    let errors = |source| {
        let books = published.agent.source_errors.iter();
        let of_it = books.filter(|book| book.source == source);
        of_it.map(|book| book.count).sum()
    };
    let states = published.agent.sources.iter();
    states
        .map(|health| {
            let source = health.source;
            (source, health.state.as_str(), errors(source))
        })
        .collect()
}

#[tokio::test]
async fn a_commit_that_was_not_stored_is_published_with_the_state_of_the_store() {
    let directory = tempfile::tempdir().unwrap();
    let no_directory = directory.path().join("a file");
    std::fs::write(&no_directory, "").unwrap();
    let handle = store::spawn(store::Options {
        directory: no_directory,
        retention: Duration::from_secs(1),
        max_bytes: u64::MAX,
        boot: "boot".into(),
        node: "node".into(),
        records: false,
    });
    let mark = MarkerFile::beside(&directory.path().join("agent.sock"));
    let (keeping, _) = DurabilityGate::begin(handle.unwrap(), mark, now, None).await;
    let (mut core, shown) = core(Some(keeping));
    core.commit(now());
    assert_eq!(shown.borrow().books.sequence, 0, "it waits for the disk");
    let stored = commit_stored(&mut core.waiting).await;
    core.publish_stored(stored);
    let published = shown.borrow();
    assert_eq!(published.books.sequence, 1);
    assert_eq!(published.agent.store.map(|store| store.failures), Some(1));
    assert_eq!(states(&published), [(SourceId::Store, "down", 1)]);
}

#[tokio::test(start_paused = true)]
async fn sources_and_outputs_are_published_as_one_list() {
    let (core, mut shown) = core(None);
    let (inputs, inputs_taken) = mpsc::channel(2);
    let (health, health_taken) = mpsc::channel(2);
    let (_queries, queries_taken) = mpsc::channel(1);
    let (stop, stopped) = watch::channel(false);
    for class in ["refused", "timeout"] {
        let state = state_of(SourceId::Otlp, down(class), "receiver");
        health.send(state).await.unwrap();
    }
    let docker = state_of(SourceId::Docker, down("refused"), "docker.sock");
    inputs.send(Input::Health(docker)).await.unwrap();
    let core = tokio::spawn(core.run(inputs_taken, queries_taken, health_taken, stopped));
    // The first commit may be before they were taken.
    let published = shown.wait_for(|published| published.books.sequence >= 2);
    let published = Arc::clone(&published.await.unwrap());
    let expected = [
        (SourceId::Docker, "down", 1),
        (SourceId::Otlp, "down", 2),
        (SourceId::Store, "up", 0),
    ];
    assert_eq!(states(&published), expected);

    // What was told before the end is in the last commit.
    let state = state_of(SourceId::Otlp, SourceState::Up, "receiver");
    health.send(state).await.unwrap();
    stop.send(true).unwrap();
    core.await.unwrap();
    let up = (SourceId::Otlp, "up", 2);
    assert_eq!(states(&shown.borrow())[1], up);
}

#[tokio::test(start_paused = true)]
async fn the_core_asks_for_the_events_shortly_before_each_commit() {
    let begun = OpenedBooks {
        accountant: Accountant::new(Settings::default(), now()),
        keeping: None,
        limiter: None,
        records: None,
        store: state_of(SourceId::Store, SourceState::Up, ""),
        cursors: Vec::new(),
    };
    let (requests, mut asked) = Requests::new();
    let (published, mut shown) = watch::channel(Arc::default());
    let core = Core::new(
        begun,
        String::new(),
        None,
        requests,
        Watchdog::default(),
        SourceStates::default(),
        published,
    );
    let (_inputs, inputs_taken) = mpsc::channel(1);
    let (_queries, queries_taken) = mpsc::channel(1);
    let (_health, health_taken) = mpsc::channel(1);
    let (_stop, stopped) = watch::channel(false);
    tokio::spawn(core.run(inputs_taken, queries_taken, health_taken, stopped));
    shown.changed().await.unwrap();
    for _ in 0..3 {
        asked.kernel.reports.recv().await.unwrap();
        let at = Instant::now();
        assert!(!shown.has_changed().unwrap(), "once for each commit");
        shown.changed().await.unwrap();
        // The clock is the test's own, which stands still while there is something to do.
        assert_eq!(at.elapsed(), EVENTS_BEFORE_COMMIT);
    }
}
