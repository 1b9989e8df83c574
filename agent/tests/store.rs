//! The ledger over restarts, crashes and worse: the real core and the real store, without a kernel
//! and a GPU. What a killed process leaves is what its files hold at that moment, so a kill is a copy
//! of the files.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use gpuacct::core::accountant::{Accountant, Settings};
use gpuacct::core::amounts::{ByteSeconds, Engine, Engines};
use gpuacct::core::input::{
    AllocatedDevice, ContainerIdentity, Credit, DeviceRef, EngineUse, EventCounters, GpuInfo,
    GpuProcess, GpuProcesses, GpuWindow, IdentitySource, IdentityUpdate, Input, KernelBatch,
    KubernetesNames, MigInfo, MpsRole, Policy, ProcessScan, ScannedProcess, SourceHealth,
    WindowQuality,
};
use gpuacct::core::model::{
    BootTime, Clock, GpuUuid, Nanos, Pid, SourceId, SourceState, StartTicks, UnobservedReason,
    WallTime,
};
use gpuacct::core::records::{Changes, GivenName, Grant, KeptAllocation, KeptProcess};
use gpuacct::core::snapshot::{ContainerLabels, Snapshot};
use gpuacct::outputs::store::durability::{DurabilityGate, Outcome};
use gpuacct::outputs::store::error::StoreError;
use gpuacct::outputs::store::mark::MarkerFile;
use gpuacct::outputs::store::query::Ledger;
use gpuacct::outputs::store::{self, FILE, Handle, Options, schema};
use gpuacct::published::RecordsBook;
use gpuacct::usage_record::Outbox as _;
use proptest::prelude::*;
use rusqlite::Connection;
use tempfile::TempDir;
use tokio::runtime::Runtime;

const SECOND: u64 = 1_000_000_000;
const HOUR: u64 = 3_600 * SECOND;
/// Ten seconds before a full hour.
const EPOCH: u64 = 472_222 * HOUR - 110 * SECOND;
/// Name of the node.
const NODE: &str = "gpu-7";
/// The pod of all containers but the first.
const POD_UID: &str = "11111111-2222-3333-4444-555555555555";
const IDS: [&str; 3] = [
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb",
    "cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc",
];

fn clock(boot: u64) -> Clock {
    Clock {
        boot: BootTime(boot),
        wall: WallTime(EPOCH + boot),
    }
}

/// The store asks for the time only to say when it will try again.
fn no_clock() -> Clock {
    clock(0)
}

fn gpu() -> GpuUuid {
    GpuUuid::from("GPU-0")
}

fn gpu_info(mig: Option<MigInfo>) -> GpuInfo {
    GpuInfo {
        uuid: gpu(),
        index: 0,
        model: "test".into(),
        driver: "1".into(),
        simulated: true,
        memory_total: None,
        minor: None,
        pci: None,
        mig,
        engines: vec![],
    }
}

fn settings() -> Settings {
    Settings {
        policy: Policy {
            grace: Nanos::from_secs(2),
            zero_for: Nanos::from_secs(1),
            keep_for: Nanos::from_secs(20),
        },
        ..Settings::default()
    }
}

/// What a series is known by to whoever scrapes it.
type Key = (Arc<ContainerLabels>, WallTime);

/// A machine that is booted once, and the directories of the agents that run on it one after another.
struct Node {
    runtime: Runtime,
    dir: TempDir,
    /// The store's directory of the agent that runs now; each one gets a copy.
    store: PathBuf,
    agents: u32,
    boot: Arc<str>,
    now: u64,
    /// The end of the last window.
    windowed: u64,
    /// Living processes and their containers.
    processes: BTreeMap<u32, (u64, usize)>,
    named: [bool; IDS.len()],
    /// All that the driver's ring would still tell.
    windows: Vec<GpuWindow>,
    accountant: Accountant,
    keeping: Option<DurabilityGate>,
}

impl Node {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime");
        let dir = tempfile::tempdir().expect("a directory");
        let mut node = Self {
            runtime,
            store: dir.path().join("store"),
            dir,
            agents: 0,
            boot: "boot".into(),
            now: 100 * SECOND,
            windowed: 100 * SECOND,
            processes: BTreeMap::new(),
            named: [false; IDS.len()],
            windows: Vec::new(),
            accountant: Accountant::new(settings(), clock(100 * SECOND)),
            keeping: None,
        };
        node.start();
        node
    }

    fn mark(&self) -> MarkerFile {
        MarkerFile::beside(&self.dir.path().join("agent.sock"))
    }

    fn handle(&self) -> Handle {
        store::spawn(options(&self.store, &self.boot)).expect("a thread")
    }

    /// Commits as if so many accounts that were closed had been given up, and stops.
    fn give_up(&mut self, accounts: usize) {
        let mut given_up = 0;
        let (_, outcome) = self.commit_with(|changes| {
            given_up = changes.closed.len();
            changes.closed.clear();
        });
        assert!(outcome.kept.is_some());
        assert_eq!(given_up, accounts);
        self.stop();
    }

    /// Starts an agent with these limits, which goes on, commits once and stops.
    fn tidy(&mut self, options: Options) {
        let handle = store::spawn(options).expect("a thread");
        let mark = self.mark();
        let state = self.runtime.block_on(handle.resume(&mark));
        let state = state.expect("it can be read").expect("it was kept");
        self.accountant = Accountant::restored(settings(), &state, clock(self.now))
            .expect("what was kept can be gone on from");
        let begun = DurabilityGate::begin(handle, mark, no_clock, None);
        self.keeping = Some(self.runtime.block_on(begun).0);
        self.keep();
        self.stop();
    }

    /// An agent that sends usage records: it commits, offers what is due, settles it if it is to, and
    /// commits again. Returns the revisions that were offered, and what is counted in the end.
    fn send_records(&mut self, options: Options, is_taken: bool) -> (Vec<i64>, RecordsBook) {
        let handle = store::spawn(options).expect("a thread");
        let (mark, desk) = (self.mark(), handle.records());
        let state = self.runtime.block_on(handle.resume(&mark));
        let state = state.expect("it can be read").expect("it was kept");
        self.accountant = Accountant::restored(settings(), &state, clock(self.now))
            .expect("what was kept can be gone on from");
        let begun = DurabilityGate::begin(handle, mark, no_clock, None);
        self.keeping = Some(self.runtime.block_on(begun).0);
        self.keep();
        let records = self.runtime.block_on(desk.offer(100)).expect("it is open");
        if is_taken {
            let keys = records.iter().map(|record| record.key).collect();
            self.runtime
                .block_on(desk.settle(keys))
                .expect("it is open");
        }
        self.keep();
        let keeping = self.keeping.as_ref().expect("it was begun");
        let book = keeping.book().records.expect("they are sent");
        self.stop();
        self.runtime
            .block_on(desk.offer(100))
            .expect_err("it is closed");
        let revisions = records.iter().map(|record| record.key.revision);
        (revisions.collect(), book)
    }

    /// Starts an agent, which goes on if it can, and has it scan `/proc` and read the ring. Returns
    /// whether it goes on.
    fn start(&mut self) -> bool {
        let (resumed, through) = self.begin();
        self.scan();
        // The driver's ring still has what was not booked.
        let mut again = self.windows.clone();
        again.retain(|window| window.start.0 >= through);
        for window in again {
            self.take(Input::Window(window));
        }
        self.drained();
        resumed
    }

    /// Starts an agent. Returns whether it goes on, and from where in the GPU's time.
    fn begin(&mut self) -> (bool, u64) {
        self.agents += 1;
        let handle = self.handle();
        let mark = self.mark();
        let found = self.runtime.block_on(handle.resume(&mark));
        let clock = clock(self.now);
        let state = found.expect("the store can be had");
        let resumed = state.is_some();
        self.accountant = match state {
            Some(state) => Accountant::restored(settings(), &state, clock)
                .expect("what was kept can be gone on from"),
            None => {
                let mut accountant = Accountant::new(settings(), clock);
                accountant.keep();
                accountant
            }
        };
        let begun = DurabilityGate::begin(handle, mark, no_clock, None);
        self.keeping = Some(self.runtime.block_on(begun).0);
        let through = self.accountant.windows_ended();
        let through = through.first().map_or(self.now, |(_, end)| end.0);
        self.take(Input::Gpus(vec![gpu_info(None)]));
        self.take(Input::Health(SourceHealth {
            source: SourceId::Kernel,
            state: SourceState::Up,
            since: clock.boot,
            place: "".into(),
        }));
        for at in 0..IDS.len() {
            if self.named[at] {
                self.name(at);
            }
        }
        (resumed, through)
    }

    fn take(&mut self, input: Input) {
        self.accountant.take(input, clock(self.now));
    }

    fn drained(&mut self) {
        self.take(Input::Kernel(KernelBatch {
            events: vec![],
            drained_through: BootTime(self.now),
            counters: EventCounters::default(),
        }));
    }

    fn scan(&mut self) {
        let processes = self.processes.iter().map(|(pid, (start, at))| {
            let above = match at {
                0 => "/docker".to_owned(),
                _ => format!("/kubepods/pod{POD_UID}"),
            };
            ScannedProcess {
                pid: Pid(*pid),
                parent: Pid(1),
                start: StartTicks::from(BootTime(*start)),
                cgroups: Arc::new([(0, format!("{above}/{}", IDS[*at]).into())]),
            }
        });
        let scan = ProcessScan {
            started: BootTime(self.now),
            finished: BootTime(self.now),
            processes: processes.collect(),
            skipped: 0,
            unread: Vec::new(),
        };
        self.take(Input::Processes(scan));
    }

    fn fork(&mut self, pid: u32, container: usize) {
        self.now += SECOND / 50;
        self.processes.insert(pid, (self.now, container));
        self.now += SECOND / 50;
        self.scan();
    }

    fn exit(&mut self, pid: u32) {
        self.processes.remove(&pid);
        self.now += SECOND / 50;
        self.scan();
    }

    fn name(&mut self, at: usize) {
        self.named[at] = true;
        self.take(Input::Identity(IdentityUpdate::Found(ContainerIdentity {
            runtime: None,
            id: IDS[at].into(),
            source: IdentitySource::Docker,
            name: Some("web".into()),
            image: Some("img".into()),
            kubernetes: (at > 0).then(|| KubernetesNames {
                namespace: "ml".into(),
                pod: format!("train-{at}").into(),
                pod_uid: POD_UID.into(),
                container: "main".into(),
            }),
            labels: [("team".into(), "vision".into())].into(),
        })));
    }

    /// Time passes and a window about it is read: percents of it by pid.
    fn pass(&mut self, millis: u64, credits: &[(u32, u64)]) {
        self.pass_with(millis, credits, vec![]);
    }

    /// The same, with what the processes used of the other engines.
    fn pass_with(&mut self, millis: u64, credits: &[(u32, u64)], engines: Vec<EngineUse>) {
        let start = self.windowed;
        self.now += millis * SECOND / 1_000;
        let elapsed = self.now - start;
        let credits = credits.iter().map(|&(pid, percent)| Credit {
            pid: Pid(pid),
            busy: Nanos(elapsed / 100 * percent),
        });
        let credits: Vec<Credit> = credits.collect();
        let busy: Nanos = credits.iter().map(|credit| credit.busy).sum();
        let window = GpuWindow {
            gpu: gpu(),
            start: BootTime(start),
            end: BootTime(self.now),
            busy,
            idle: Nanos(elapsed).minus(busy),
            unobserved: vec![],
            credits,
            below_resolution: Nanos::ZERO,
            no_row: Nanos::ZERO,
            engines,
            energy: None,
            quality: WindowQuality::default(),
            clocks: None,
        };
        self.windowed = self.now;
        self.windows.push(window.clone());
        self.take(Input::Window(window));
        self.drained();
    }

    /// The process list of the GPU names these.
    fn lists(&mut self, pids: &[u32]) {
        let processes = pids.iter().map(|pid| GpuProcess {
            pid: Pid(*pid),
            memory: Some(1 << 30),
            mps: MpsRole::None,
        });
        self.take(Input::GpuProcesses(GpuProcesses {
            gpu: gpu(),
            at: BootTime(self.now),
            processes: processes.collect(),
            memory_used: None,
        }));
    }

    /// Time passes that nobody sees.
    fn pass_unseen(&mut self, time: u64) {
        let start = self.windowed;
        self.now += time;
        self.windowed = self.now;
        self.take(Input::Window(GpuWindow {
            gpu: gpu(),
            start: BootTime(start),
            end: BootTime(self.now),
            busy: Nanos::ZERO,
            idle: Nanos::ZERO,
            unobserved: vec![(UnobservedReason::AgentDown, Nanos(self.now - start))],
            credits: vec![],
            below_resolution: Nanos::ZERO,
            no_row: Nanos::ZERO,
            engines: vec![],
            energy: None,
            quality: WindowQuality::default(),
            clocks: None,
        }));
        self.drained();
    }

    /// Each hour of the GPU in the file: elapsed and busy seconds. It adds up, each by itself.
    fn hours(&self) -> Vec<(i64, i64, i64)> {
        let connection = Connection::open(self.store.join(FILE)).expect("the file is there");
        let mut statement = connection
            .prepare(
                "SELECT hour, sum(elapsed), sum(busy), sum(idle),
                    (SELECT coalesce(sum(busy), 0) FROM used u WHERE u.hour = g.hour),
                    (SELECT coalesce(sum(time), 0) FROM reasons_used r
                        WHERE r.hour = g.hour AND kind = 'unattributed'),
                    (SELECT coalesce(sum(time), 0) FROM reasons_used r
                        WHERE r.hour = g.hour AND kind = 'unobserved')
                FROM gpu_used g GROUP BY hour HAVING sum(elapsed) <> 0 ORDER BY hour",
            )
            .expect("the question is sound");
        let rows = statement.query_map([], |row| {
            let [hour, elapsed, busy, idle, used, nobodys, unobserved] =
                [0, 1, 2, 3, 4, 5, 6].map(|at| row.get::<_, i64>(at).expect("a number"));
            assert_eq!(used + nobodys, busy, "hour {hour}");
            assert_eq!(busy + idle + unobserved, elapsed, "hour {hour}");
            let second = SECOND.cast_signed();
            Ok((hour, elapsed / second, busy / second))
        });
        rows.and_then(Iterator::collect).expect("rows")
    }

    fn commit(&mut self) -> (Snapshot, Outcome) {
        self.commit_with(|_| {})
    }

    /// A commit of which what is handed over is not quite what the core gave.
    fn commit_with(&mut self, change: impl FnOnce(&mut Changes)) -> (Snapshot, Outcome) {
        let at = clock(self.now);
        let snapshot = self.accountant.commit(at);
        assert_eq!(snapshot.gpus[0].imbalance, 0);
        let keeping = self.keeping.take().expect("an agent runs");
        let mut changes = self.accountant.changes(keeping.wants_whole(), at);
        change(&mut changes);
        let (keeping, outcome) = self.runtime.block_on(keeping.keep(changes));
        if let Some(kept) = outcome.kept {
            self.accountant.kept(kept);
        }
        self.keeping = Some(keeping);
        (snapshot, outcome)
    }

    /// A commit that is kept.
    fn keep(&mut self) -> Snapshot {
        let (snapshot, outcome) = self.commit();
        assert!(outcome.kept.is_some(), "{outcome:?}");
        snapshot
    }

    /// What the log of the store holds now, in bytes.
    fn log(&self) -> u64 {
        let log = self.store.join(format!("{FILE}-wal"));
        fs::metadata(log).map_or(0, |log| log.len())
    }

    /// The agent is killed: what its files hold is all that is left. `log` is how much of the log was
    /// written.
    fn kill(&mut self, log: Option<u64>) {
        let next = self.dir.path().join(format!("store-{}", self.agents));
        fs::create_dir(&next).expect("a directory");
        for suffix in ["", "-wal"] {
            let name = format!("{FILE}{suffix}");
            if self.store.join(&name).exists() {
                fs::copy(self.store.join(&name), next.join(&name)).expect("a copy");
            }
        }
        if let Some(length) = log {
            let log = fs::File::options()
                .write(true)
                .open(next.join(format!("{FILE}-wal")));
            log.and_then(|log| log.set_len(length))
                .expect("it is there");
        }
        self.keeping = None;
        self.store = next;
    }

    /// The agent is told to end.
    fn stop(&mut self) {
        if let Some(keeping) = self.keeping.take() {
            self.runtime.block_on(keeping.close());
        }
    }

    fn sql<T: rusqlite::types::FromSql>(&self, sql: &str) -> Vec<T> {
        let connection = Connection::open(self.store.join(FILE)).expect("the file is there");
        let mut statement = connection.prepare(sql).expect("the question is sound");
        let rows = statement.query_map([], |row| row.get(0));
        rows.and_then(Iterator::collect).expect("rows")
    }
}

fn options(directory: &Path, boot: &str) -> Options {
    Options {
        directory: directory.to_owned(),
        retention: Duration::from_secs(35 * 86_400),
        max_bytes: 256 << 20,
        boot: boot.into(),
        node: NODE.into(),
        records: false,
    }
}

fn published(snapshot: &Snapshot) -> HashMap<Key, Nanos> {
    let series = snapshot.container_series.iter();
    let series = series.map(|s| ((s.labels.clone(), s.start), s.amounts.busy));
    series.collect()
}

fn namespaces(snapshot: &Snapshot) -> BTreeMap<(Arc<str>, WallTime), Nanos> {
    let series = snapshot.namespace_series.iter();
    let series = series.map(|s| ((Arc::clone(&s.namespace), s.start), s.amounts.busy));
    series.collect()
}

/// A step of a life that ends badly now and then.
#[derive(Clone, Debug)]
enum Step {
    Fork(u32, usize),
    Exit(u32),
    Name(usize),
    Pass(u64, Vec<(u32, u64)>),
    Commit,
    /// Killed after a commit is kept: published or not, or with part of the next one in the log.
    Kill {
        published: bool,
        torn: Option<u8>,
    },
    Stop,
}

fn step() -> impl Strategy<Value = Step> {
    let pid = 1..5u32;
    let pass = (
        300..4_000u64,
        prop::collection::vec((pid.clone(), 0..40u64), 0..3),
    );
    prop_oneof![
        3 => (pid.clone(), 0..IDS.len()).prop_map(|(pid, at)| Step::Fork(pid, at)),
        2 => pid.prop_map(Step::Exit),
        2 => (0..IDS.len()).prop_map(Step::Name),
        6 => pass.prop_map(|(millis, mut credits)| {
            // A pid has one row.
            credits.sort_unstable();
            credits.dedup_by_key(|credit| credit.0);
            Step::Pass(millis, credits)
        }),
        5 => Just(Step::Commit),
        2 => (any::<bool>(), prop::option::of(any::<u8>()))
            .prop_map(|(published, torn)| Step::Kill { published, torn }),
        1 => Just(Step::Stop),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Whenever the agent is killed, also in the midst of a transaction, the next one shows every
    /// series where it was or further, under the same labels, with the same start; and nothing that
    /// the device was busy is lost or booked twice.
    #[test]
    fn nothing_falls_over_a_kill(steps in prop::collection::vec(step(), 1..60)) {
        let mut node = Node::new();
        let mut shown = HashMap::new();
        let mut shown_namespaces = BTreeMap::new();
        let mut kept = false;
        for step in steps {
            let mut restarted = None;
            match step {
                Step::Fork(pid, at) => {
                    if !node.processes.contains_key(&pid) {
                        node.fork(pid, at);
                    }
                    continue;
                }
                Step::Exit(pid) => { node.exit(pid); continue }
                Step::Name(at) => { node.name(at); continue }
                Step::Pass(millis, credits) => { node.pass(millis, &credits); continue }
                Step::Commit => {}
                Step::Kill { published, torn } => {
                    let snapshot = node.keep();
                    kept = true;
                    if published {
                        shown = self::published(&snapshot);
                        shown_namespaces = namespaces(&snapshot);
                    }
                    let log = torn.map(|part| {
                        // Of the next one, unpublished, a part is written.
                        let before = node.log();
                        node.now += SECOND;
                        node.keep();
                        let after = node.log().max(before);
                        before + (after - before) * u64::from(part) / 256
                    });
                    node.kill(log);
                    restarted = Some(node.start());
                }
                Step::Stop => {
                    // The last commit is kept and shown.
                    let snapshot = node.keep();
                    kept = true;
                    shown = self::published(&snapshot);
                    shown_namespaces = namespaces(&snapshot);
                    node.stop();
                    restarted = Some(node.start());
                }
            }
            if let Some(resumed) = restarted {
                prop_assert_eq!(resumed, kept, "an agent goes on if anything was kept");
            }
            let snapshot = node.keep();
            kept = true;
            let now = published(&snapshot);
            for (key, before) in &shown {
                let gone = !now.contains_key(key) && node.now > 120 * SECOND;
                prop_assert!(gone || now.get(key) >= Some(before), "{key:?} fell below {before:?}");
            }
            let now_namespaces = namespaces(&snapshot);
            for (key, before) in &shown_namespaces {
                let after = now_namespaces.get(key);
                prop_assert!(after >= Some(before), "{key:?} fell below {before:?}");
            }
            (shown, shown_namespaces) = (now, now_namespaces);
            let book = &snapshot.gpus[0];
            let busy: Nanos = node.windows.iter().map(|window| window.busy).sum();
            prop_assert_eq!(book.busy, busy, "the device's time is booked once");
            let out: Nanos = snapshot.accounts.iter().map(|account| account.amounts.busy).sum();
            let out = out.plus(book.unattributed.iter().map(|(_, time)| *time).sum());
            prop_assert!(out <= busy);
        }
        // What a report adds up is what was booked.
        node.stop();
        let used: Vec<i64> = node.sql("SELECT coalesce(sum(busy), 0) FROM used");
        let nobody = "SELECT coalesce(sum(time), 0) FROM reasons_used WHERE kind = 'unattributed'";
        let nobody: Vec<i64> = node.sql(nobody);
        let device: Vec<i64> = node.sql("SELECT coalesce(sum(busy), 0) FROM gpu_used");
        prop_assert_eq!(used[0] + nobody[0], device[0]);
    }
}

/// A container that has used the GPU for three seconds, all of which is published.
fn used() -> (Node, HashMap<Key, Nanos>) {
    let mut node = Node::new();
    node.name(1);
    node.fork(7, 1);
    for _ in 0..6 {
        node.pass(1_000, &[(7, 50)]);
        node.keep();
    }
    let shown = published(&node.keep());
    assert_eq!(shown.len(), 1);
    assert!(shown.values().all(|busy| !busy.is_zero()));
    (node, shown)
}

#[test]
fn a_restart_goes_on_with_names_labels_and_hours() {
    let (mut node, shown) = used();
    node.kill(None);
    // No source names it to the new agent, so its names come from the store.
    node.named = [false; IDS.len()];
    assert!(node.start());
    let snapshot = node.keep();
    assert_eq!(published(&snapshot), shown);
    let account = &snapshot.accounts[0];
    assert_eq!(&*account.labels.pod, "train-1");
    assert_eq!(&*account.runtime_labels["team"], "vision");
    assert!(!account.ended);
    // Over the hour, ten seconds after the start.
    node.now = 110 * SECOND + SECOND / 2;
    node.pass(1_000, &[(7, 100)]);
    node.keep();
    node.stop();
    let hours: Vec<i64> = node.sql("SELECT DISTINCT hour FROM used ORDER BY hour");
    assert_eq!(hours, [472_221, 472_222]);
    let busy: i64 = node.windows.iter().map(|w| w.busy.0.cast_signed()).sum();
    let used: Vec<i64> = node.sql("SELECT sum(busy) FROM used");
    assert_eq!(used, [busy]);
    let one: Vec<i64> = node.sql("SELECT count(*) FROM accounts");
    assert_eq!(one, [1], "the same account");
}

/// `increase()` would miss the first amount of an engine that shows it at once.
#[test]
fn an_engine_that_showed_0_when_the_agent_was_killed_shows_0_anew_and_then_all() {
    /// What the next commit publishes of the decoder, where it is shown. All busy time is published.
    fn decoder(node: &mut Node) -> Option<Nanos> {
        let snapshot = node.keep();
        let [series] = snapshot.container_series.as_slice() else {
            panic!("one series");
        };
        let busy: Nanos = node.windows.iter().map(|window| window.busy).sum();
        assert_eq!(series.amounts.busy, busy);
        let shown: Vec<Engine> = series.engines.iter().collect();
        assert!(shown.is_empty() || shown == [Engine::Decoder], "{shown:?}");
        (!shown.is_empty()).then_some(series.amounts.engines.decoder)
    }
    let decodes = |node: &mut Node, millis, decoding| {
        let engines = Engines {
            decoder: Nanos::from_millis(decoding),
            ..Engines::default()
        };
        let pid = Pid(7);
        node.pass_with(millis, &[(7, 50)], vec![EngineUse { pid, engines }]);
        decoder(node)
    };
    let millis = |millis| Some(Nanos::from_millis(millis));
    let (mut node, _) = used();
    assert_eq!(decoder(&mut node), None);
    assert_eq!(decodes(&mut node, 500, 300), millis(0));
    node.kill(None);
    assert!(node.start());
    // Of the second in which it shows 0, half was over.
    assert_eq!(decoder(&mut node), millis(0));
    assert_eq!(decodes(&mut node, 900, 40), millis(0));
    assert_eq!(decodes(&mut node, 200, 5), millis(345));
    assert_eq!(decodes(&mut node, 100, 10), millis(355));
    // What was published is published by the next agent from its first commit on.
    node.kill(None);
    assert!(node.start());
    assert_eq!(decoder(&mut node), millis(355));
    assert_eq!(decodes(&mut node, 100, 5), millis(360));
}

#[test]
fn another_boot_starts_at_zero_and_keeps_the_record() {
    let (mut node, shown) = used();
    node.kill(None);
    node.boot = "another".into();
    node.windows.clear();
    node.windowed = node.now;
    assert!(!node.start());
    node.pass(1_000, &[(7, 50)]);
    let snapshot = node.keep();
    let now = published(&snapshot);
    let before = shown.keys().next().expect("one series");
    let after = now.keys().next().expect("one series");
    assert_eq!(now[after], Nanos::ZERO);
    assert_eq!(before.0, after.0, "the same labels");
    assert!(before.1 < after.1, "a new start");
    node.stop();
    let lives: Vec<String> = node.sql("SELECT reason FROM lives ORDER BY life");
    assert_eq!(lives, ["first", "reboot"]);
    let segments: Vec<i64> =
        node.sql("SELECT count(*) FROM accounts GROUP BY owner HAVING sum(closed IS NULL) = 1");
    assert_eq!(segments, [2], "one closed, one open");
}

#[test]
fn what_was_published_and_not_kept_is_not_gone_on_from() {
    let (mut node, shown) = used();
    // From here on commits cannot be written, because another process writes to the file.
    let blocker = Connection::open(node.store.join(FILE)).expect("the file is there");
    blocker
        .execute_batch("BEGIN IMMEDIATE")
        .expect("nobody else writes");
    node.pass(1_000, &[(7, 100)]);
    let (snapshot, outcome) = node.commit();
    assert_eq!(outcome.kept, None);
    let SourceState::Down { class, reason, .. } = outcome.state else {
        panic!("{outcome:?}");
    };
    assert_eq!(
        (&*class, &*reason),
        ("busy", "cannot write a commit: database is locked")
    );
    let key = shown.keys().next().expect("one series");
    assert!(
        published(&snapshot)[key] > shown[key],
        "it goes out nevertheless"
    );
    blocker.execute_batch("ROLLBACK").expect("it was begun");
    drop(blocker);
    node.kill(None);
    assert!(
        !node.start(),
        "what is stored is less than what was published"
    );
    node.pass(1_000, &[(7, 100)]);
    node.keep();
    node.stop();
    let lives: Vec<String> = node.sql("SELECT reason FROM lives ORDER BY life");
    assert_eq!(lives, ["first", "unstored"]);
}

#[test]
fn a_store_that_works_again_is_gone_on_from() {
    let (mut node, _) = used();
    let blocker = Connection::open(node.store.join(FILE)).expect("the file is there");
    blocker
        .execute_batch("BEGIN IMMEDIATE")
        .expect("nobody else writes");
    node.pass(1_000, &[(7, 100)]);
    assert_eq!(node.commit().1.kept, None);
    drop(blocker);
    // A job that came and went meanwhile.
    node.name(2);
    node.fork(8, 2);
    node.pass(1_000, &[(8, 100)]);
    let shown = published(&node.keep());
    node.kill(None);
    assert!(node.start());
    assert_eq!(published(&node.keep()), shown);
}

#[test]
fn a_damaged_file_is_set_aside_whatever_the_damage() {
    type Damage = fn(&Path);
    let rows: [(&str, Damage); 3] = [
        ("garbage", |file| {
            fs::write(file, vec![0xa5; 8_192]).expect("it can be written");
        }),
        ("cut", |file| {
            let length = fs::metadata(file).map_or(0, |data| data.len());
            let file = fs::File::options().write(true).open(file);
            file.and_then(|file| file.set_len(length / 2))
                .expect("it can be cut");
        }),
        ("a page of noise", |file| {
            let mut bytes = fs::read(file).expect("it is there");
            for byte in bytes.iter_mut().skip(4_096) {
                *byte ^= 0x5a;
            }
            fs::write(file, bytes).expect("it can be written");
        }),
    ];
    for (what, damage) in rows {
        let (mut node, _) = used();
        node.stop();
        damage(&node.store.join(FILE));
        let handle = node.handle();
        let found = node.runtime.block_on(handle.resume(&node.mark()));
        assert!(matches!(found, Ok(None)), "{what}: {found:?}");
        let begun = DurabilityGate::begin(handle, node.mark(), no_clock, None);
        node.keeping = Some(node.runtime.block_on(begun).0);
        node.accountant = Accountant::new(settings(), clock(node.now));
        node.accountant.keep();
        node.take(Input::Gpus(vec![]));
        let at = clock(node.now);
        node.accountant.commit(at);
        let keeping = node.keeping.take().expect("it was begun");
        let changes = node.accountant.changes(true, at);
        let (keeping, outcome) = node.runtime.block_on(keeping.keep(changes));
        assert_eq!(outcome.state, SourceState::Up, "{what}");
        node.runtime.block_on(keeping.close());
        let names = fs::read_dir(&node.store).expect("it is there").flatten();
        let aside = names
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            // And not the two that SQLite may have beside it.
            .filter(|name| name.contains(".damaged-") && name.ends_with(char::is_numeric))
            .count();
        assert_eq!(aside, 1, "{what}");
        let lives: Vec<String> = node.sql("SELECT reason FROM lives");
        assert_eq!(lives, ["first"], "{what}");
    }
}

#[test]
fn what_is_not_this_agents_is_left_as_it_is() {
    let rows = [
        (
            "newer_schema",
            format!("PRAGMA user_version = {}", schema::VERSION + 1),
        ),
        ("foreign", "PRAGMA application_id = 7".to_owned()),
    ];
    for (class, change) in rows {
        let (mut node, _) = used();
        node.stop();
        let file = node.store.join(FILE);
        let connection = Connection::open(&file).expect("it is there");
        connection.execute_batch(&change).expect("a pragma");
        connection.close().expect("nobody else has it");
        let before = fs::read(&file).expect("it is there");
        let mark = node.mark();
        let handle = node.handle();
        let found = node.runtime.block_on(handle.resume(&mark));
        let error = found.expect_err("it is none of ours");
        assert_eq!(error.class(), class);
        handle.begin_anew("unstored");
        let begun = DurabilityGate::begin(handle, mark.clone(), no_clock, Some(&error));
        let (keeping, state) = node.runtime.block_on(begun);
        assert!(matches!(state, SourceState::Down { .. }));
        assert!(
            !mark.path().exists(),
            "what goes out from here on is not kept"
        );
        node.keeping = Some(keeping);
        node.pass(1_000, &[(7, 100)]);
        assert_eq!(node.commit().1.kept, None);
        node.stop();
        assert_eq!(fs::read(&file).ok(), Some(before), "{class}");
    }
}

#[test]
fn a_directory_that_cannot_be_had_is_tried_until_it_can() {
    let mut node = Node::new();
    node.stop();
    let mark = node.mark();
    let place = node.dir.path().join("place");
    fs::write(&place, "in the way").expect("it can be written");
    node.store = place.join("store");
    let handle = node.handle();
    let error = node.runtime.block_on(handle.resume(&mark));
    let error = error.expect_err("a file is no directory");
    assert!(matches!(error, StoreError::File { .. }), "{error:?}");
    let begun = DurabilityGate::begin(handle, mark.clone(), no_clock, Some(&error));
    node.keeping = Some(node.runtime.block_on(begun).0);
    node.accountant = Accountant::new(settings(), clock(node.now));
    node.accountant.keep();
    node.name(1);
    node.fork(7, 1);
    node.take(Input::Gpus(vec![]));
    let at = clock(node.now);
    node.accountant.commit(at);
    let keeping = node.keeping.take().expect("it was begun");
    let changes = node.accountant.changes(true, at);
    let (mut keeping, outcome) = node.runtime.block_on(keeping.keep(changes));
    assert_eq!(outcome.kept, None);
    assert!(!mark.path().exists());
    fs::remove_file(&place).expect("it is there");
    let mut attempts = 0;
    loop {
        assert!(keeping.wants_whole());
        let changes = node.accountant.changes(true, at);
        let (tried, outcome) = node.runtime.block_on(keeping.keep(changes));
        keeping = tried;
        if outcome.state == SourceState::Up {
            break;
        }
        // A busy disk takes longer to make the file than one attempt may.
        assert!(
            matches!(&outcome.state, SourceState::Down { class, .. }
                if ["slow", "mark"].contains(&&**class)),
            "{outcome:?}"
        );
        attempts += 1;
        assert!(attempts < 30, "{outcome:?}");
    }
    assert!(mark.path().exists());
    assert!(!keeping.wants_whole());
    let book = keeping.book();
    assert_eq!(book.failures, 2 + attempts);
    assert_eq!(book.commits, 1);
}

#[test]
fn a_second_agent_has_to_wait_for_the_first() {
    let (mut node, shown) = used();
    let second = node.handle();
    let mark = node.mark();
    let found = node.runtime.block_on(second.resume(&mark));
    assert!(matches!(found, Err(StoreError::Locked { .. })), "{found:?}");
    node.stop();
    let found = node.runtime.block_on(second.resume(&mark));
    let state = found.expect("nobody else has it").expect("it was kept");
    assert_eq!(state.accounts.len(), shown.len());
}

#[test]
fn books_that_do_not_balance_are_not_gone_on_from() {
    let (mut node, _) = used();
    node.stop();
    let connection = Connection::open(node.store.join(FILE)).expect("it is there");
    connection
        .execute_batch("UPDATE totals SET busy = busy + 1")
        .expect("a table");
    connection.close().expect("nobody else has it");
    let handle = node.handle();
    let state = node.runtime.block_on(handle.resume(&node.mark()));
    let state = state.expect("it can be read").expect("it was kept");
    let error = Accountant::restored(settings(), &state, clock(node.now));
    let error = error.expect_err("a nanosecond too many");
    assert_eq!(
        error.to_string(),
        "the book of GPU-0 is out of balance by -1 ns"
    );
}

#[test]
fn what_this_agent_does_not_know_begins_a_new_life() {
    let (mut node, _) = used();
    node.stop();
    let connection = Connection::open(node.store.join(FILE)).expect("it is there");
    connection
        .execute_batch("UPDATE accounts SET attribution = 'guessed'")
        .expect("a table");
    connection.close().expect("nobody else has it");
    assert!(!node.start());
    node.pass(1_000, &[(7, 100)]);
    node.keep();
    node.stop();
    let lives: Vec<String> = node.sql("SELECT reason FROM lives ORDER BY life");
    assert_eq!(lives, ["first", "unusable"]);
}

#[test]
fn the_old_goes_by_age_and_by_size() {
    for (what, retention, max_bytes) in [
        ("age", Duration::from_secs(3_600), 256 << 20),
        ("size", Duration::from_secs(35 * 86_400), 0),
    ] {
        let (mut node, _) = used();
        node.exit(7);
        node.now += 60 * SECOND;
        node.pass(1_000, &[]);
        node.keep();
        node.now += 60 * SECOND;
        node.pass(1_000, &[]);
        node.keep();
        let open: Vec<i64> = node.sql("SELECT count(*) FROM accounts WHERE closed IS NULL");
        assert_eq!(open, [0], "{what}");
        node.stop();
        // Three hours later, by an agent with other limits.
        node.now += 3 * HOUR;
        let options = Options {
            retention,
            max_bytes,
            ..options(&node.store, &node.boot)
        };
        node.tidy(options);
        let records: Vec<i64> = node.sql("SELECT count(*) FROM accounts");
        assert_eq!(records, [0], "{what}");
        let hours: Vec<i64> = node.sql("SELECT count(*) FROM hours");
        assert_eq!(hours, [0], "{what}");
        // The device's own counter is whole.
        let busy: i64 = node.windows.iter().map(|w| w.busy.0.cast_signed()).sum();
        let book: Vec<i64> = node.sql("SELECT busy FROM books");
        assert_eq!(book, [busy], "{what}");
    }
}

#[test]
fn a_record_stays_for_as_long_as_an_hour_tells_of_it() {
    let (mut node, _) = used();
    node.exit(7);
    node.now += 60 * SECOND;
    node.pass(1_000, &[]);
    node.keep();
    node.now += 60 * SECOND;
    node.pass(1_000, &[]);
    node.keep();
    node.stop();
    // Closed in the hour before the one that has its last amounts.
    let closed: Vec<i64> = node.sql(
        "UPDATE accounts SET closed = (SELECT max(hour) FROM hours) * 3600000000000 - 1
            RETURNING account",
    );
    let hours = "SELECT count(*) FROM hours";
    let told: Vec<i64> = node.sql(hours);
    assert!(!closed.is_empty() && told != [0]);
    // And one that no hour tells of any more.
    let older: Vec<i64> = node.sql(
        "INSERT INTO accounts SELECT account + 1000, life, gpu, kind, owner, namespace, pod,
            container, pod_uid, container_id, image, runtime, attribution, source, labels, opened,
            held_since_boot, ended_boot, fed, closed - 1 FROM accounts RETURNING account",
    );
    assert_eq!(older.len(), closed.len());
    node.now += 3 * HOUR;
    let last = node.sql::<i64>("SELECT max(hour) FROM hours")[0].cast_unsigned();
    let since = clock(node.now).wall.0 / HOUR - last;
    for (kept_for, still) in [(since, true), (since - 1, false)] {
        let retention = Duration::from_secs(kept_for * 3_600);
        let options = Options {
            retention,
            ..options(&node.store, &node.boot)
        };
        node.tidy(options);
        let records: Vec<i64> = node.sql("SELECT count(*) FROM accounts");
        let expected = if still { closed.len() } else { 0 };
        assert_eq!(usize::try_from(records[0]), Ok(expected), "{retention:?}");
        assert_eq!(node.sql::<i64>(hours) != [0], still, "{retention:?}");
    }
}

#[test]
fn usage_records_that_are_dropped_with_their_hour_are_counted_unless_they_were_taken() {
    for is_taken in [false, true] {
        let (mut node, _) = used();
        node.stop();
        node.now += 3 * HOUR;
        let sends = |node: &Node, retention| Options {
            retention,
            records: true,
            ..options(&node.store, &node.boot)
        };
        let long = sends(&node, Duration::from_secs(35 * 86_400));
        // The account's hour and the GPU's, once with an agent that is stopped before it is answered.
        let (revisions, book) = node.send_records(long.clone(), false);
        assert_eq!((revisions, book.unsettled), (vec![1, 1], 2));
        let ended = clock(0).wall.0 / HOUR * HOUR + HOUR;
        assert_eq!(book.oldest_ended, Some(WallTime(ended)));
        let (revisions, book) = node.send_records(long, is_taken);
        assert_eq!(revisions, [1, 1], "the same ones");
        assert_eq!(book.unsettled, if is_taken { 0 } else { 2 });
        node.now += 3 * HOUR;
        let short = sends(&node, Duration::from_secs(4 * 3_600));
        let (_, book) = node.send_records(short, false);
        assert_eq!(book.dropped, if is_taken { 0 } else { 2 });
        assert_eq!(book.oldest_ended, None, "{book:?}");
        let left = "SELECT (SELECT count(*) FROM account_records) +
            (SELECT count(*) FROM gpu_records)";
        assert_eq!(node.sql::<i64>(left), [0]);
    }
}

/// A commit that is kept by the second attempt at the latest.
fn keep_again(node: &mut Node) -> Snapshot {
    let (snapshot, outcome) = node.commit();
    if outcome.kept.is_some() {
        return snapshot;
    }
    node.keep()
}

#[test]
fn a_store_lost_under_a_running_agent_bills_nothing_twice() {
    type Loss = fn(&Path);
    let rows: [(&str, Loss); 4] = [
        ("removed", |file| {
            fs::remove_file(file).expect("it is there");
        }),
        ("another boot's put in its place", |file| {
            let other = file.with_extension("older");
            fs::rename(other, file).expect("a copy was made");
        }),
        ("an older copy of it put in its place", |file| {
            let other = file.with_extension("old");
            fs::rename(other, file).expect("a copy was made");
        }),
        ("damaged", |file| {
            let connection = Connection::open(file).expect("it is there");
            connection
                .execute_batch(
                    "PRAGMA writable_schema = ON;
                    UPDATE sqlite_schema SET sql = 'no SQL' WHERE name = 'totals';
                    PRAGMA schema_version = 1000;",
                )
                .expect("it can be written");
        }),
    ];
    for (what, lose) in rows {
        let (mut node, _) = used();
        let file = node.store.join(FILE);
        let copy = |name: &str| {
            let connection = Connection::open(&file).expect("it is there");
            let copy = file.with_extension(name);
            connection
                .execute("VACUUM INTO ?1", [copy.to_str()])
                .expect("a copy");
            copy
        };
        copy("old");
        let older = Connection::open(copy("older")).expect("a copy");
        older
            .execute_batch("UPDATE meta SET store = 'another'; UPDATE lives SET boot = 'another'")
            .expect("tables");
        drop(older);
        // One that is closed before the file is lost: no other will ever have it.
        node.name(2);
        node.fork(8, 2);
        for _ in 0..4 {
            node.pass(1_000, &[(7, 50), (8, 25)]);
            node.keep();
        }
        node.exit(8);
        for _ in 0..3 {
            node.pass(20_000, &[(7, 50)]);
            node.keep();
        }
        let open: Vec<i64> = node.sql("SELECT count(*) FROM accounts WHERE closed IS NULL");
        assert_eq!(open, [1], "{what}");
        let before = node.keep();
        let elsewhere: Vec<i64> = match what {
            "removed" | "damaged" => vec![0],
            _ => {
                let copy = what.starts_with("an older").then_some("old");
                let copy = file.with_extension(copy.unwrap_or("older"));
                let connection = Connection::open(copy).expect("a copy was made");
                let busy =
                    connection.query_row("SELECT sum(busy) FROM gpu_used", [], |row| row.get(0));
                vec![busy.expect("a row")]
            }
        };
        lose(&file);
        node.pass(2_000, &[(7, 50)]);
        let after = keep_again(&mut node);
        let grown = after.gpus[0].busy.minus(before.gpus[0].busy);
        assert_eq!(grown, Nanos::from_secs(1));
        let busy: Vec<i64> = node.sql("SELECT sum(busy) FROM gpu_used");
        assert_eq!(busy, [elsewhere[0] + grown.0.cast_signed()], "{what}");
        let used: Vec<i64> = node.sql("SELECT sum(busy) FROM used");
        assert_eq!(used, busy, "{what}");
        node.hours();
        // What is in it can be gone on from, over the hour too.
        let shown = published(&after);
        node.kill(None);
        assert!(node.start(), "{what}");
        assert_eq!(published(&node.keep()), shown, "{what}");
        node.pass(120_000, &[(7, 50)]);
        node.keep();
        node.stop();
        let busy: Vec<i64> = node.sql("SELECT sum(busy) FROM used");
        assert_eq!(busy, [elsewhere[0] + 61 * SECOND.cast_signed()], "{what}");
        node.hours();
    }
}

#[test]
fn hours_without_an_agent_are_not_all_in_the_hour_after_them() {
    let (mut node, _) = used();
    node.stop();
    node.windows.clear();
    assert!(node.start());
    // The agent commits before it has read the GPUs.
    node.now += 5 * HOUR;
    node.keep();
    node.now -= 5 * HOUR;
    node.pass_unseen(5 * HOUR);
    node.keep();
    node.pass(60_000, &[(7, 50)]);
    node.keep();
    node.stop();
    let hours = node.hours();
    let found: Vec<(i64, i64)> = hours.iter().map(|(_, all, busy)| (*all, *busy)).collect();
    let nobodys = (3_600, 0);
    assert_eq!(
        found,
        [
            (10, 3),
            nobodys,
            nobodys,
            nobodys,
            nobodys,
            (3_596, 0),
            (60, 30)
        ],
        "{hours:?}"
    );
}

#[test]
fn what_was_used_while_the_store_was_locked_is_in_the_hours_in_which_it_was() {
    let (mut node, _) = used();
    let blocker = Connection::open(node.store.join(FILE)).expect("the file is there");
    blocker
        .execute_batch("BEGIN IMMEDIATE")
        .expect("nobody else writes");
    // To 15 minutes after the hour, then three times an hour more.
    node.now = 110 * SECOND;
    node.pass(900_000, &[(7, 10)]);
    assert_eq!(node.commit().1.kept, None);
    for percent in [20, 30, 40] {
        node.name(2);
        let pid = 10 + u32::try_from(percent).expect("it is small");
        node.fork(pid, 2);
        node.pass(3_600_000, &[(7, percent), (pid, 5)]);
        node.exit(pid);
        if percent < 40 {
            assert_eq!(node.commit().1.kept, None);
        }
    }
    drop(blocker);
    node.keep();
    node.stop();
    let hours = node.hours();
    let busy: Vec<i64> = hours.iter().map(|(.., busy)| *busy).collect();
    // Within the seconds in which the processes came and went.
    assert_eq!(busy, [3, 90, 900, 1_260, 1_620], "{hours:?}");
}

#[test]
fn a_record_older_than_its_hour_does_not_keep_the_store_busy_for_ever() {
    let (mut node, _) = used();
    node.exit(7);
    for _ in 0..2 {
        node.now += 60 * SECOND;
        node.pass(1_000, &[]);
        node.keep();
    }
    node.stop();
    // Closed while nothing could be written, and written two days later.
    let closed: Vec<i64> = node.sql(
        "UPDATE accounts SET closed = closed - 48 * 3600000000000 WHERE closed IS NOT NULL
            RETURNING account",
    );
    assert!(!closed.is_empty());
    node.now += 3 * HOUR;
    let options = Options {
        max_bytes: 0,
        ..options(&node.store, &node.boot)
    };
    node.tidy(options);
    for table in ["accounts", "hours", "totals"] {
        let left: Vec<i64> = node.sql(&format!("SELECT count(*) FROM {table}"));
        assert_eq!(left, [0], "{table}");
    }
}

#[test]
fn a_clock_that_leaps_and_returns_erases_nothing() {
    let (mut node, _) = used();
    node.exit(7);
    for _ in 0..2 {
        node.now += 60 * SECOND;
        node.pass(1_000, &[]);
        node.keep();
    }
    let records = "SELECT count(*) FROM accounts WHERE closed IS NOT NULL";
    assert_eq!(node.sql::<i64>(records), [1]);
    let hours = node.hours();
    let leap = |days: u64| move |changes: &mut Changes| changes.clock.wall.0 += days * 24 * HOUR;
    for (days, minutes) in [(40, 1), (40, 30), (0, 10), (80, 1), (0, 90), (40, 1)] {
        node.pass(minutes * 60_000, &[]);
        let (_, outcome) = node.commit_with(leap(days));
        assert!(outcome.kept.is_some());
        assert_eq!(node.sql::<i64>(records), [1], "{days} days, {minutes} min");
        assert_eq!(node.hours()[0], hours[0]);
    }
    // And time that does pass is believed.
    node.pass(1_000, &[]);
    node.keep();
    node.pass(36 * 24 * 3_600_000, &[]);
    node.keep();
    node.stop();
    assert_eq!(node.sql::<i64>(records), [0]);
}

#[test]
fn records_that_were_given_up_have_a_name_and_the_books_balance() {
    let (mut node, _) = used();
    let kept = node.sql::<i64>("SELECT busy FROM totals")[0];
    let blocker = Connection::open(node.store.join(FILE)).expect("the file is there");
    blocker
        .execute_batch("BEGIN IMMEDIATE")
        .expect("nobody else writes");
    // One that the store knows and one that it will never know end while it takes nothing.
    node.name(2);
    node.fork(8, 2);
    node.pass(10_000, &[(7, 20), (8, 30)]);
    node.exit(7);
    node.exit(8);
    assert_eq!(node.commit().1.kept, None);
    node.pass(3_600_000, &[]);
    node.fork(9, 0);
    node.pass(10_000, &[(9, 40)]);
    node.accountant.commit(clock(node.now));
    node.pass(30_000, &[(9, 40)]);
    drop(blocker);
    node.give_up(2);
    let lost: Vec<i64> = node.sql(
        "SELECT busy FROM used JOIN accounts USING (account)
        WHERE owner = '(overflow)' AND namespace = '(overflow)'",
    );
    // Five, and a part of the moments in which processes came.
    assert_eq!(lost.iter().sum::<i64>() / SECOND.cast_signed(), 5);
    let known: Vec<i64> = node.sql(
        "SELECT sum(busy) FROM used JOIN accounts USING (account)
        WHERE pod = 'train-1'",
    );
    assert_eq!(known, [kept]);
    let instances: Vec<i64> = node.sql("SELECT count(*) FROM instances");
    assert_eq!(instances, [0], "on the whole GPU");
    node.hours();
    assert!(node.start());
    node.keep();
}

/// Otherwise a report would want the price of the whole GPU for it.
#[test]
fn what_was_given_up_on_a_mig_instance_is_on_that_instance() {
    let (mut node, _) = used();
    let blocker = Connection::open(node.store.join(FILE)).expect("the file is there");
    blocker
        .execute_batch("BEGIN IMMEDIATE")
        .expect("nobody else writes");
    node.name(2);
    node.fork(8, 2);
    node.pass(10_000, &[(8, 30)]);
    node.exit(8);
    assert_eq!(node.commit().1.kept, None);
    node.pass(3_600_000, &[]);
    node.accountant.commit(clock(node.now));
    node.pass(30_000, &[]);
    // Only now, since whose an instance's time is would take its process lists.
    node.take(Input::Gpus(vec![gpu_info(Some(MigInfo {
        parent: GpuUuid("GPU-0".into()),
        gpu_instance: 7,
        compute_instance: 0,
        profile: "1g.10gb".into(),
    }))]));
    drop(blocker);
    node.give_up(1);
    let lost: Vec<String> = node.sql(
        "SELECT concat_ws(' ', profile, parent, gpu_instance, compute_instance)
        FROM accounts JOIN instances USING (account) WHERE attribution = 'overflow'",
    );
    assert_eq!(lost, ["1g.10gb GPU-0 7 0"]);
    let ledger = Ledger::open(&node.store).expect("the file is there");
    let account = node.sql("SELECT account FROM accounts WHERE attribution = 'overflow'")[0];
    let record = ledger.account(account).expect("it is there");
    assert_eq!(record.profile.as_deref(), Some("1g.10gb"));
}

/// Busy milliseconds of each container, and those without an owner by their reason.
fn whose(snapshot: &Snapshot) -> (BTreeMap<char, u64>, BTreeMap<&'static str, u64>) {
    let millis = |time: Nanos| time.0 * 1_000 / SECOND;
    let accounts = snapshot.accounts.iter();
    let accounts = accounts.map(|of| {
        let letter = of.id.as_str().chars().next().expect("an id");
        (letter, millis(of.amounts.busy))
    });
    let nobodys = snapshot.gpus[0].unattributed.iter();
    let nobodys = nobodys.filter(|(_, time)| !time.is_zero());
    let nobodys = nobodys.map(|(reason, time)| (reason.as_str(), millis(*time)));
    (accounts.collect(), nobodys.collect())
}

/// A container with a process that has been charged for half a second and is listed.
fn listed(pid: u32) -> Node {
    let mut node = Node::new();
    node.name(1);
    node.processes.insert(pid, (node.now, 1));
    node.scan();
    node.pass(1_000, &[(pid, 50)]);
    node.lists(&[pid]);
    node.keep();
    node
}

#[test]
fn a_process_that_died_between_two_agents_was_its_containers() {
    let mut node = listed(7);
    node.pass(1_000, &[(7, 50)]);
    node.kill(None);
    node.pass(1_000, &[(7, 50)]);
    node.processes.clear();
    node.pass(1_000, &[]);
    node.named = [false; IDS.len()];
    assert!(node.start());
    let snapshot = node.keep();
    assert_eq!(whose(&snapshot), ([('b', 1_500)].into(), [].into()));
    assert_eq!(&*snapshot.accounts[0].labels.pod, "train-1");
    assert_eq!(snapshot.agent.exited_processes, 1);
    // It is let go once every window has passed it.
    for _ in 0..17 {
        node.pass(1_000, &[]);
        node.keep();
    }
    assert_eq!(node.sql::<i64>("SELECT count(*) FROM processes"), [0]);
}

#[test]
fn a_process_that_died_before_its_last_window_was_booked_was_its_containers() {
    let mut node = listed(7);
    node.exit(7);
    node.keep();
    node.kill(None);
    node.pass(100, &[(7, 20)]);
    assert!(node.start());
    // 24 ms of the 120, by an agent that has seen nothing of it.
    let (owners, nobodys) = whose(&node.keep());
    assert_eq!((owners, nobodys), ([('b', 524)].into(), [].into()));
}

#[test]
fn a_process_that_lives_on_is_not_counted_as_started_again() {
    let mut node = listed(7);
    for restart in 0..4 {
        node.pass(1_000, &[(7, 50)]);
        if restart % 2 == 0 {
            node.kill(None);
        } else {
            node.keep();
            node.stop();
        }
        // Also after more than a minute, when only a scan says that it is still the same one.
        if restart > 1 {
            node.pass(90_000, &[(7, 1)]);
        }
        node.begin();
        node.keep();
        node.scan();
        node.lists(&[7]);
        let snapshot = node.keep();
        assert_eq!(snapshot.accounts[0].processes_started, 1, "{restart}");
        assert!(!snapshot.accounts[0].ended);
    }
    node.processes.insert(8, (node.now, 1));
    node.scan();
    node.pass(1_000, &[]);
    node.lists(&[7, 8]);
    assert_eq!(node.keep().accounts[0].processes_started, 2);
}

#[test]
fn a_pid_that_was_reused_between_two_agents_is_booked_to_each_for_its_time() {
    let mut node = listed(7);
    node.kill(None);
    node.pass(1_000, &[(7, 50)]);
    // From here on it is another container's; when it was free again nobody knows.
    node.now += SECOND / 50;
    node.processes.insert(7, (node.now, 2));
    node.pass(980, &[(7, 20)]);
    node.pass(1_000, &[(7, 30)]);
    node.named[2] = true;
    let (resumed, through) = node.begin();
    assert!(resumed);
    // The lists come before the scan does: whose the memory is cannot be told yet.
    node.lists(&[7]);
    let snapshot = node.keep();
    assert_eq!(whose(&snapshot).0, [('b', 500)].into());
    assert_eq!(snapshot.accounts[0].processes_started, 1);
    node.scan();
    for window in node.windows.clone() {
        if window.start.0 >= through {
            node.take(Input::Window(window));
        }
    }
    node.drained();
    node.now += SECOND / 10;
    node.lists(&[7]);
    let snapshot = node.keep();
    let (owners, nobodys) = whose(&snapshot);
    assert_eq!(owners, [('b', 1_000), ('c', 300)].into(), "{nobodys:?}");
    assert_eq!(nobodys, [("ambiguous_pid", 200)].into());
    let started = snapshot.accounts.iter().map(|of| of.processes_started);
    assert_eq!(started.collect::<Vec<_>>(), [1, 1]);
}

#[test]
fn a_process_that_nobody_has_seen_for_a_minute_is_not_believed() {
    let mut node = listed(7);
    node.kill(None);
    node.pass(61_000, &[]);
    node.pass(1_000, &[(7, 50)]);
    node.processes.clear();
    assert!(node.start());
    let (owners, nobodys) = whose(&node.keep());
    assert_eq!(owners, [('b', 500)].into());
    assert_eq!(nobodys, [("unknown_pid", 500)].into());
}

#[test]
fn nothing_is_written_of_processes_while_nothing_changes() {
    let mut node = listed(7);
    node.keep();
    for _ in 0..3 {
        node.pass(1_000, &[(7, 50)]);
        node.lists(&[7]);
        node.commit_with(|changes| {
            assert!(!changes.totals.is_empty());
            assert_eq!((&*changes.processes, &*changes.gone), (&[][..], &[][..]));
        });
    }
    // A store that failed is given all of them again.
    let mut again = Vec::new();
    node.accountant.commit(clock(node.now));
    let changes = node.accountant.changes(true, clock(node.now));
    again.extend(changes.processes.iter().map(|kept| kept.pid));
    assert_eq!(again, [Pid(7)]);
}

#[test]
fn a_ledger_without_processes_is_gone_on_from() {
    let (mut node, shown) = used();
    node.stop();
    let file = Connection::open(node.store.join(FILE)).expect("it is there");
    as_version_3(&file);
    file.execute_batch("DROP TABLE processes; PRAGMA user_version = 2")
        .expect("as the version before made it");
    file.close().expect("nobody else has it");
    assert!(node.start());
    assert_eq!(published(&node.keep()), shown);
    assert_eq!(node.sql::<i64>("SELECT count(*) FROM processes"), [0]);
    node.pass(1_000, &[(7, 50)]);
    node.keep();
    assert_eq!(node.sql::<i64>("SELECT pid FROM processes"), [7]);
}

/// Takes back what the versions from 4 on have added to a file.
fn as_version_3(file: &Connection) {
    let tables = ["totals", "settled", "series", "namespaces", "hours"].map(|table| (table, ""));
    let others = [("namespaces", "shown_"), ("books", "closed_")];
    let mut sql = "DROP TRIGGER hour_added; DROP TRIGGER hour_changed; DROP TRIGGER gpu_hour_added;
        DROP TRIGGER gpu_hour_changed; DROP TRIGGER reason_hour_added;
        DROP TRIGGER reason_hour_changed; DROP TRIGGER account_named; DROP TABLE account_records;
        DROP TABLE gpu_records; DROP TABLE records_through;
        DROP VIEW used; DROP VIEW unsettled; DROP TABLE allocations;
        ALTER TABLE meta DROP COLUMN node;
        ALTER TABLE totals DROP COLUMN since_boot;
        ALTER TABLE totals DROP COLUMN allocated_through_boot;"
        .to_owned();
    for (table, prefix) in tables.into_iter().chain(others) {
        for column in ["allocated_share", "memory_high"] {
            sql.push_str(&format!(
                "ALTER TABLE {table} DROP COLUMN {prefix}{column};"
            ));
        }
    }
    // The migration makes them anew.
    sql.push_str("CREATE VIEW unsettled AS SELECT 1; CREATE VIEW used AS SELECT 1;");
    sql.push_str("PRAGMA user_version = 3");
    file.execute_batch(&sql)
        .expect("as the version before made it");
}

#[test]
fn a_ledger_of_version_3_is_gone_on_from() {
    let (mut node, shown) = used();
    node.stop();
    let file = Connection::open(node.store.join(FILE)).expect("it is there");
    as_version_3(&file);
    file.close().expect("nobody else has it");
    assert!(node.start());
    let snapshot = node.keep();
    assert_eq!(published(&snapshot), shown);
    assert_eq!(snapshot.gpus[0].excess, Nanos::ZERO);
    node.pass(1_000, &[(7, 50)]);
    node.keep();
    assert!(
        node.sql::<Option<i64>>("SELECT since_boot FROM totals")[0].is_some(),
        "an account's beginning is noted from here on"
    );
    assert_eq!(node.sql::<String>("SELECT node FROM meta"), [NODE]);
}

#[test]
fn memory_over_time_beyond_63_bits_is_kept() {
    let (mut node, _) = used();
    let wide = |times: u128| ByteSeconds(times * ((3 << 64) + (1 << 61) + 7));
    // Of the hour that ends, and twice that in all by the next one.
    for times in [1, 2] {
        node.pass(60_000, &[(7, 50)]);
        let (_, outcome) = node.commit_with(|changes| {
            for totals in &mut changes.totals {
                totals.amounts.memory = wide(times);
            }
        });
        assert!(outcome.kept.is_some(), "{outcome:?}");
    }
    let ledger = Ledger::open(&node.store).expect("the file is there");
    let mut hours = BTreeMap::<i64, ByteSeconds>::new();
    let all = 0..i64::MAX;
    let read = ledger.used(&all, |used| {
        hours.entry(used.hour).or_default().0 += used.amounts.memory.0;
    });
    read.expect("it can be read");
    let hours: Vec<ByteSeconds> = hours.into_values().collect();
    let sum: u128 = hours.iter().map(|of| of.0).sum();
    assert_eq!(ByteSeconds(sum), wide(2), "{hours:?}");
    drop(ledger);
    node.kill(None);
    let handle = node.handle();
    let state = node.runtime.block_on(handle.resume(&node.mark()));
    let state = state.expect("it can be read").expect("it was kept");
    assert_eq!(state.accounts[0].1.amounts.memory, wide(2));
}

#[test]
fn allocations_are_read_back_as_they_were_written() {
    let mut node = listed(7);
    let kept = |container: &str, gpu: u32| KeptAllocation {
        container: container.into(),
        name: GivenName {
            namespace: "ml".into(),
            pod: "\"quoted\" é".into(),
            container: "main".into(),
        },
        grants: vec![Grant {
            device: AllocatedDevice {
                resource: "nvidia.com/gpu".into(),
                id: "GPU-0::1".into(),
                device: (gpu > 0).then_some(DeviceRef::Index(gpu)),
            },
            since: BootTime(50 * SECOND + 1),
        }],
    };
    let all = vec![kept("a", 0), kept("b", 1)];
    let gone = kept("c", 2);
    node.commit_with(|changes| {
        changes.allocations = [&all[..], std::slice::from_ref(&gone)].concat();
    });
    node.commit_with(|changes| changes.allocations_gone = vec![gone.container]);
    node.kill(None);
    let handle = node.handle();
    let state = node.runtime.block_on(handle.resume(&node.mark()));
    let state = state.expect("it can be read").expect("it was kept");
    assert_eq!(state.allocations, all);
}

#[test]
fn processes_are_read_back_as_they_were_written() {
    let mut node = listed(7);
    let cgroups = |path: &str| Arc::from([(0, path.into()), (4, "/\"quoted\" é".into())]);
    let kept = |pid: u32, moved| KeptProcess {
        pid: Pid(pid),
        start: BootTime(50 * SECOND + u64::from(pid)),
        by_event: pid == 8,
        exit: (pid > 8).then_some(BootTime(60 * SECOND)),
        exit_reported: pid == 9,
        cgroups: cgroups("/here"),
        moved,
        accounts: (pid..10).collect(),
    };
    let all = vec![
        kept(8, None),
        kept(9, Some((cgroups("/there"), Some(BootTime(55 * SECOND))))),
        kept(10, Some((cgroups("/there"), None))),
    ];
    let other = kept(11, None);
    node.commit_with(|changes| {
        changes.processes = [&all[..], std::slice::from_ref(&other)].concat()
    });
    node.commit_with(|changes| changes.gone = vec![other.process()]);
    node.kill(None);
    let handle = node.handle();
    let state = node.runtime.block_on(handle.resume(&node.mark()));
    let mut found = state
        .expect("it can be read")
        .expect("it was kept")
        .processes;
    found.retain(|kept| kept.pid != Pid(7));
    assert_eq!(found, all);
}
