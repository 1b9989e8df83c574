use std::fs;
use std::path::Path;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

use super::*;
use crate::config::Environment;

/// Far more than a change takes. Only ever waited for when something is broken.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running agent, as far as its configuration is concerned.
struct Rig {
    path: std::path::PathBuf,
    live: LiveSettings,
    log: Arc<Log>,
    core: mpsc::Receiver<Input>,
    health: mpsc::Receiver<SourceHealth>,
    counters: Arc<OutputCounters>,
    _folder: tempfile::TempDir,
    /// The log's level can be changed for as long as this lives.
    _filter: Box<dyn std::any::Any>,
}

fn source(path: &Path) -> ConfigSource {
    let file = path.to_owned();
    let read = move || LoadedConfig::load(Some(&file), &Environment::default());
    ConfigSource {
        file: Some(path.to_owned()),
        origins: read().expect("it is valid").origins,
        read: Arc::new(read),
    }
}

impl Rig {
    async fn new(text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gpuacct.toml");
        fs::write(&path, text).unwrap();
        let config = Config::read(&path).unwrap();
        let (reload, live) = Reload::new(&config, source(&path));
        assert_eq!(reload.state().state, SourceState::Up);
        let (log, filter) = Log::new(&config.log.level).unwrap();
        let (core, core_taken) = mpsc::channel(8);
        let (health, health_taken) = mpsc::channel(8);
        let counters = Arc::<OutputCounters>::default();
        let receivers = Receivers {
            log: Arc::clone(&log),
            core,
            limiter: None,
            health,
            counters: Arc::clone(&counters),
        };
        // A signal that nobody sends to this process.
        let hang_ups = signal(SignalKind::user_defined2()).unwrap();
        tokio::spawn(reload.run(hang_ups, receivers));
        let mut rig = Self {
            path,
            live,
            log,
            core: core_taken,
            health: health_taken,
            counters,
            _folder: folder,
            _filter: Box::new(filter),
        };
        assert_eq!(rig.state().await, SourceState::Up, "nothing has changed");
        rig
    }

    /// The state that is told next.
    async fn state(&mut self) -> SourceState {
        let told = timeout(PATIENCE, self.health.recv()).await;
        let health = told.expect("a state is told").expect("it runs");
        assert_eq!(health.source, SourceId::Config);
        health.state
    }

    fn counts(&self) -> (u64, u64) {
        let counters = &self.counters;
        (counters.config_applied.get(), counters.config_failed.get())
    }
}

fn class(state: &SourceState) -> (&str, &str) {
    match state {
        SourceState::Down { class, reason, .. } => (class, reason),
        _ => ("", ""),
    }
}

#[tokio::test]
async fn what_can_change_is_in_force_as_soon_as_the_file_is_written() {
    let mut rig = Rig::new("[log]\nlevel = \"info\"\n").await;
    let text = "[log]\nlevel = \"debug\"\n[publish]\ngrace = \"3s\"\npod_labels = [\"team\"]\n";
    fs::write(&rig.path, text).unwrap();
    assert_eq!(rig.state().await, SourceState::Up);
    assert_eq!(rig.log.report().level, "debug");
    assert_eq!(rig.live.opt_in.borrow().pod_labels, ["team"]);
    let Some(Input::Policy(policy)) = rig.core.recv().await else {
        panic!("the core gets the policy");
    };
    assert_eq!(policy.grace.0, 3_000_000_000);
    let report = Arc::clone(&rig.live.report.borrow());
    assert!(report.toml.contains("grace = \"3s\""), "{}", report.toml);
    assert_eq!(rig.counts(), (1, 0));
}

#[tokio::test]
async fn a_file_that_cannot_be_used_changes_nothing_and_is_visible() {
    let mut rig = Rig::new("[log]\nlevel = \"info\"\n").await;
    let before = Arc::clone(&rig.live.report.borrow());
    fs::write(&rig.path, "[log]\nlevel = \"debug\"\nformt = 1\n").unwrap();
    let state = rig.state().await;
    let (class_of_it, reason) = class(&state);
    assert_eq!(class_of_it, "invalid");
    assert!(reason.contains("formt"), "{reason}");
    assert_eq!(rig.log.report().level, "info");
    assert_eq!(*rig.live.report.borrow(), before);
    fs::remove_file(&rig.path).unwrap();
    let state = rig.state().await;
    assert_eq!(class(&state).0, "unreadable", "{state:?}");
    assert_eq!(rig.counts(), (0, 2));

    fs::write(&rig.path, "[log]\nlevel = \"warn\"\n").unwrap();
    while rig.state().await != SourceState::Up {}
    assert_eq!(rig.log.report().level, "warn");
}

#[tokio::test]
async fn what_needs_a_restart_is_named_and_stays() {
    let mut rig = Rig::new("").await;
    fs::write(
        &rig.path,
        "[gpu]\ninterval = \"2s\"\n[cadvisor]\nenabled = true\n",
    )
    .unwrap();
    let state = rig.state().await;
    let (class_of_it, reason) = class(&state);
    assert_eq!(class_of_it, "needs_restart");
    assert!(reason.ends_with(": gpu.interval"), "{reason}");
    assert!(rig.live.opt_in.borrow().cadvisor.is_some());
    let report = Arc::clone(&rig.live.report.borrow());
    assert!(
        !report.toml.contains("interval = \"2s\""),
        "{}",
        report.toml
    );
    // Taken back, nothing waits for a restart any more.
    fs::write(&rig.path, "[cadvisor]\nenabled = true\n").unwrap();
    assert_eq!(rig.state().await, SourceState::Up);
    assert_eq!(rig.counts(), (1, 0));
}
