//! The NVML thread against the simulated library: a real `libnvidia-ml.so.1`, opened by the real
//! wrapper, whose ring credits real pids and whose truth is known.
//!
//! The library finds its machine by an environment variable, so each test runs in a process of its
//! own. Nothing here asserts how long something took; deadlines only end a test that hangs.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod health;

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::time::Duration;

use gpuacct::config::{self, Span};
use gpuacct::core::amounts::Engine;
use gpuacct::core::input::{
    GpuProcess, GpuProcesses, GpuWindow, Input, MigInfo, MpsRole, SourceHealth,
};
use gpuacct::core::model::{BootTime, Nanos, SourceState, UnobservedReason};
use gpuacct::gpu_release::{ReleaseOrder, ReleaseReport, Wanted};
use gpuacct::sources::clock;
use gpuacct::sources::gpu::nvml::{self, NvmlHandle};
use gpuacct::sources::gpu::record::{self, Options};
use gpuacct_tests::rerun;
use serde_json::Value;
use sim_nvml::library::{self, Driver};
use sim_nvml::{
    Cadence, Engines, Fault, GpuSpec, Instance, Job, Kind, Measure, Mig, RING_PERIOD_NS, STATE_DIR,
    Scenario, StampClock, Stamps, Truth,
};
use tokio::sync::{mpsc, oneshot, watch};

/// Beyond this a test hangs.
const DEADLINE: Duration = Duration::from_secs(300);
const MIB: u64 = 1 << 20;

/// Runs `body` in a process of its own, whose NVML is a machine with these GPUs. The name is the
/// test's.
fn on_a_machine(name: &str, driver: Driver, gpus: Vec<GpuSpec>, body: fn(Rig) -> TestEnd) {
    if let Some(dir) = std::env::var_os(STATE_DIR) {
        let scenario = Scenario::open(dir).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        let rig = Rig { scenario };
        runtime
            .block_on(async { tokio::time::timeout(DEADLINE, body(rig)).await })
            .unwrap_or_else(|_| panic!("{name} is not over after {DEADLINE:?}"));
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    Scenario::create(&state, gpus, 20_260).unwrap();
    library::install(driver, dir.path()).unwrap();
    let output = rerun::command(module_path!(), name)
        .unwrap()
        .env(STATE_DIR, &state)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{name} in its own process: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

type TestEnd = std::pin::Pin<Box<dyn Future<Output = ()>>>;

struct Rig {
    scenario: Scenario,
}

impl Rig {
    fn start(&self) -> Agent {
        self.start_with(config::GpuHealth::default())
    }

    fn start_with(&self, health: config::GpuHealth) -> Agent {
        let config = config::Gpu {
            // Beside the state directory, where the parent laid it out.
            library: Some(self.scenario.dir().with_file_name("libnvidia-ml.so.1")),
            cdi: Vec::new(),
            interval: Span(Duration::from_millis(500)),
            lists_interval: Span(Duration::from_secs(3600)),
            health,
        };
        let (out, inputs) = mpsc::channel(16);
        let (lists, lists_asked) = mpsc::channel(1);
        let (releases, releases_asked) = mpsc::channel(1);
        let asked = nvml::Asked {
            lists: lists_asked,
            releases: releases_asked,
        };
        let (stop, shutdown) = watch::channel(false);
        let handle = nvml::spawn(config, Vec::new(), out, asked, shutdown).unwrap();
        Agent {
            handle,
            inputs,
            lists,
            releases,
            stop,
            ends: BTreeMap::new(),
            state: None,
        }
    }

    fn job(&self, gpu: u32, pid: u32, share: f64) {
        self.scenario
            .start(
                pid,
                Job {
                    gpu,
                    share,
                    memory_bytes: 64 * MIB,
                    ..Job::default()
                },
            )
            .unwrap();
    }

    fn uuid(&self, gpu: usize) -> String {
        self.scenario.machine().gpus[gpu].uuid.clone()
    }
}

/// What the agent's core would receive.
struct Agent {
    handle: NvmlHandle,
    inputs: mpsc::Receiver<Input>,
    lists: mpsc::Sender<()>,
    releases: mpsc::Sender<ReleaseOrder>,
    stop: watch::Sender<bool>,
    /// Where each GPU's last window ended.
    ends: BTreeMap<String, BootTime>,
    /// The source's state, as last told.
    state: Option<SourceState>,
}

impl Agent {
    /// The next observation; windows are checked for tiling and balance on the way.
    async fn next(&mut self) -> Input {
        let input = self.inputs.recv().await.expect("the thread is running");
        if let Input::Health(health) = &input {
            self.state = Some(health.state.clone());
        }
        if let Input::Window(window) = &input {
            let unobserved: Nanos = window.unobserved.iter().map(|&(_, time)| time).sum();
            let known = window.busy.plus(window.idle).plus(unobserved);
            assert_eq!(window.end.since(window.start), known, "{window:?}");
            let credits: Nanos = window.credits.iter().map(|credit| credit.busy).sum();
            let owned = credits.plus(window.below_resolution).plus(window.no_row);
            assert_eq!(window.busy, owned, "{window:?}");
            let uuid = window.gpu.as_str().to_owned();
            if let Some(end) = self.ends.insert(uuid, window.end) {
                assert_eq!(window.start, end, "windows tile: {window:?}");
            }
        }
        input
    }

    async fn window(&mut self, uuid: &str) -> GpuWindow {
        loop {
            match self.next().await {
                Input::Window(window) if window.gpu.as_str() == uuid => return window,
                _ => {}
            }
        }
    }

    async fn health(&mut self) -> SourceHealth {
        loop {
            if let Input::Health(health) = self.next().await {
                return health;
            }
        }
    }

    /// Waits until the source is down for this class of reasons, and gives the reason.
    async fn down(&mut self, expected: &str) -> String {
        loop {
            if let SourceState::Down { class, reason, .. } = self.health().await.state
                && *class == *expected
            {
                return reason.to_string();
            }
        }
    }

    /// Waits until the source is up. It may be told before a window or after it.
    async fn up(&mut self) {
        while self.state != Some(SourceState::Up) {
            self.next().await;
        }
    }

    async fn lists(&mut self, uuid: &str) -> GpuProcesses {
        loop {
            match self.next().await {
                Input::GpuProcesses(lists) if lists.gpu.as_str() == uuid => return lists,
                _ => {}
            }
        }
    }

    /// Orders the source to let go of the GPUs or to take them up.
    async fn order(&mut self, wanted: Wanted) -> ReleaseReport {
        let (answer, mut answered) = oneshot::channel();
        let order = ReleaseOrder { wanted, answer };
        self.releases.send(order).await.unwrap();
        loop {
            // The source waits for room in the channel of its observations.
            tokio::select! {
                report = &mut answered => return report.expect("it is carried out"),
                _ = self.next() => {}
            }
        }
    }

    /// Stops the thread, and gives what it still had to say.
    async fn stop(mut self) -> Vec<Input> {
        self.stop.send(true).unwrap();
        let mut last = Vec::new();
        while let Some(input) = self.inputs.recv().await {
            last.push(input);
        }
        self.handle.stopped().await;
        last
    }
}

fn unobserved(window: &GpuWindow) -> Vec<UnobservedReason> {
    window
        .unobserved
        .iter()
        .map(|&(reason, _)| reason)
        .collect()
}

/// Every way of sampling that products have, side by side.
fn zoo() -> Vec<GpuSpec> {
    let mut gpus: Vec<GpuSpec> = (0..7).map(GpuSpec::a100).collect();
    gpus[1].ring = Cadence::ONE_HERTZ;
    gpus[2].device_samples = Some(Cadence {
        period_ns: RING_PERIOD_NS,
        phase_ns: RING_PERIOD_NS / 2,
    });
    gpus[3].mig = Mig::On;
    gpus[4].pauses_when_idle = true;
    gpus[6].measure = Measure::Averaged;
    gpus
}

#[test]
fn what_is_booked_is_what_the_ring_credited() {
    on_a_machine(
        "what_is_booked_is_what_the_ring_credited",
        Driver::R550,
        zoo(),
        |rig| {
            Box::pin(async move {
                let (one, two) = (std::process::id(), std::os::unix::process::parent_id());
                for gpu in [0, 1, 2, 6] {
                    rig.job(gpu, one, 0.6);
                    rig.job(gpu, two, 0.3);
                }
                let mut agent = rig.start();
                let Input::Gpus(gpus) = agent.next().await else {
                    panic!("the list of GPUs comes first");
                };
                assert_eq!(gpus.len(), 7);
                assert!(gpus.iter().all(|gpu| gpu.simulated), "{gpus:?}");
                assert_eq!(&*gpus[0].driver, "550.163.01");

                let mut windows = BTreeMap::<String, Vec<GpuWindow>>::new();
                let sampled: Vec<String> = [0, 1, 2, 5, 6].map(|gpu| rig.uuid(gpu)).into();
                let long = |windows: &Vec<GpuWindow>| {
                    let (first, last) = (&windows[0], &windows[windows.len() - 1]);
                    last.end.since(first.end) > Nanos::from_secs(8)
                };
                while !sampled
                    .iter()
                    .all(|uuid| windows.get(uuid).is_some_and(long))
                {
                    if let Input::Window(window) = agent.next().await {
                        let uuid = window.gpu.as_str().to_owned();
                        windows.entry(uuid).or_default().push(window);
                    }
                }

                let truth = Truth::read(rig.scenario.dir()).unwrap();
                for (gpu, exact) in [(0, true), (1, true), (2, false), (5, true), (6, true)] {
                    // The first window begins between two samples; from its end on all are whole.
                    let windows = &windows[&rig.uuid(gpu)];
                    let (first, counted) = windows.split_first().unwrap();
                    let period = truth.machine().gpus[gpu].ring.period_ns;
                    let elapsed = counted[counted.len() - 1].end.since(first.end).0;
                    // Half a period on, so that no rounding decides which samples are in.
                    let wall_us = |boot: BootTime| {
                        let nanos = i128::from(boot.0 + period / 2) + truth.wall_minus_boot_ns();
                        u64::try_from(nanos / 1000).unwrap()
                    };
                    let span = wall_us(first.end)..wall_us(counted[counted.len() - 1].end);
                    let ring = truth.ring_ns(u32::try_from(gpu).unwrap(), span);
                    let mut booked = BTreeMap::<u32, u64>::new();
                    let mut ambiguous = 0;
                    for window in counted {
                        assert_eq!(window.unobserved, [], "gpu {gpu}: {window:?}");
                        ambiguous += window.below_resolution.0 + window.no_row.0;
                        for credit in &window.credits {
                            *booked.entry(credit.pid.0).or_default() += credit.busy.0;
                        }
                    }
                    let facts = format!(
                        "gpu {gpu}: booked {booked:?}, ambiguous {ambiguous}, ring {ring:?}, elapsed {elapsed}"
                    );
                    // Samples that are all alike: whole percents hide nothing, only a device that
                    // samples on another beat than its processes does.
                    let tolerance = if exact { elapsed / 1000 } else { elapsed / 10 };
                    for pid in [one, two] {
                        let (booked, ring) = (booked.get(&pid), ring.get(&pid));
                        let (booked, ring) = (booked.unwrap_or(&0), ring.unwrap_or(&0));
                        assert!(booked.abs_diff(*ring) <= tolerance, "pid {pid}, {facts}");
                    }
                    assert!(!exact || ambiguous <= tolerance, "{facts}");
                    assert!(booked.keys().all(|pid| [one, two].contains(pid)), "{facts}");
                }
                // Instances have no samples and no rows; that is said, not taken for idle.
                let mig = &windows[&rig.uuid(3)];
                assert!(
                    mig.iter()
                        .all(|window| unobserved(window) == [UnobservedReason::Unsupported])
                );
                // Nor is a device idle that stops sampling.
                let paused = &windows[&rig.uuid(4)];
                let gap = |window| unobserved(window) == [UnobservedReason::SampleGap];
                assert!(paused.iter().all(gap), "{paused:?}");

                let last = agent.stop().await;
                let own = |input: &Input| {
                    use Input::{GpuHealth, GpuProcesses, Window};
                    matches!(input, Window(_) | GpuProcesses(_) | GpuHealth(_))
                };
                assert!(last.iter().all(own), "{last:?}");
            })
        },
    );
}

/// GPUs whose calls stamp by clocks of their own.
fn stamped() -> Vec<GpuSpec> {
    use StampClock::{AheadMs, Boot, Wall};
    let clocks = [
        (Wall, Wall),
        (Boot, Wall),
        (Boot, Boot),
        (Wall, Boot),
        (AheadMs(150), AheadMs(150)),
        (AheadMs(-150), AheadMs(-150)),
        (Wall, AheadMs(150)),
        (AheadMs(-150), Wall),
        (AheadMs(2_000), AheadMs(2_000)),
        (AheadMs(-2_000), Boot),
        (Wall, AheadMs(2_000)),
        (AheadMs(-8_000), AheadMs(-8_000)),
        (AheadMs(8_000), AheadMs(-8_000)),
        (AheadMs(15_000), AheadMs(15_000)),
        (Boot, AheadMs(15_000)),
    ];
    let gpus = (0..).zip(clocks).map(|(index, (samples, rows))| GpuSpec {
        stamps: Stamps::new(samples, rows),
        ..GpuSpec::a100(index)
    });
    gpus.collect()
}

#[test]
fn whatever_clock_a_driver_stamps_by_its_time_is_observed_and_owned() {
    on_a_machine(
        "whatever_clock_a_driver_stamps_by_its_time_is_observed_and_owned",
        Driver::R550,
        stamped(),
        |rig| {
            Box::pin(async move {
                let (one, two) = (std::process::id(), std::os::unix::process::parent_id());
                let gpus = rig.scenario.machine().gpus.len();
                for gpu in 0..u32::try_from(gpus).unwrap() {
                    rig.job(gpu, one, 0.6);
                    rig.job(gpu, two, 0.3);
                }
                let mut agent = rig.start();
                let began = clock::now().boot;
                let mut windows = BTreeMap::<String, Vec<GpuWindow>>::new();
                let span = Nanos::from_secs(40);
                while windows.len() < gpus
                    || windows
                        .values()
                        .any(|of| of[of.len() - 1].end.since(began) < span)
                {
                    if let Input::Window(window) = agent.next().await {
                        let uuid = window.gpu.as_str().to_owned();
                        windows.entry(uuid).or_default().push(window);
                    }
                    let late = clock::now().boot.since(began);
                    assert!(late < span.plus(span), "windows come: {windows:?}");
                }
                let truth = Truth::read(rig.scenario.dir()).unwrap();
                for gpu in 0..gpus {
                    let (spec, windows) = (&truth.machine().gpus[gpu], &windows[&rig.uuid(gpu)]);
                    let (first, last) = (&windows[0], &windows[windows.len() - 1]);
                    let elapsed = last.end.since(first.start).0;
                    let wall_us = |boot: BootTime| {
                        let nanos = i128::from(boot.0) + truth.wall_minus_boot_ns();
                        u64::try_from(nanos / 1000).unwrap()
                    };
                    let span = wall_us(first.start)..wall_us(last.end);
                    let ring = truth.ring_ns(u32::try_from(gpu).unwrap(), span);
                    let mut booked = BTreeMap::<u32, u64>::new();
                    let (mut busy, mut lost) = (0, BTreeMap::<_, u64>::new());
                    for window in windows {
                        busy += window.busy.0;
                        for (reason, time) in &window.unobserved {
                            *lost.entry(*reason).or_default() += time.0;
                        }
                        for credit in &window.credits {
                            *booked.entry(credit.pid.0).or_default() += credit.busy.0;
                        }
                    }
                    let facts = format!(
                        "gpu {gpu}: {:?}, booked {booked:?}, busy {busy}, unobserved {lost:?}, \
                         ring {ring:?}, elapsed {elapsed}, {:?}",
                        spec.stamps, last.clocks
                    );
                    assert!(lost.values().sum::<u64>() <= 3_000_000_000, "{facts}");
                    // A sample or two at each end, a window until the rows' clock is known, and what a
                    // clock is not known to.
                    let off = elapsed / 25;
                    assert!(busy.abs_diff(ring.values().sum()) <= off, "{facts}");
                    for pid in [one, two] {
                        let (booked, ring) = (booked.get(&pid), ring.get(&pid));
                        let (booked, ring) = (booked.unwrap_or(&0), ring.unwrap_or(&0));
                        assert!(booked.abs_diff(*ring) <= off, "pid {pid}, {facts}");
                    }
                    let clocks = last.clocks.as_ref().expect(&facts);
                    assert_eq!(clocks.changes, 0, "{facts}");
                }
                agent.stop().await;
            })
        },
    );
}

#[test]
fn a_driver_s_clock_that_is_set_is_learnt_anew() {
    on_a_machine(
        "a_driver_s_clock_that_is_set_is_learnt_anew",
        Driver::R550,
        vec![GpuSpec::a100(0)],
        |rig| {
            Box::pin(async move {
                rig.job(0, std::process::id(), 1.0);
                let mut agent = rig.start();
                let window = agent.window(&rig.uuid(0)).await;
                let clocks = window.clocks.expect("it stamps");
                assert_eq!(clocks.samples.to_string(), "wall");
                let boot = Stamps::new(StampClock::Boot, StampClock::Boot);
                rig.scenario.stamp(0, boot).unwrap();
                loop {
                    let window = agent.window(&rig.uuid(0)).await;
                    let clocks = window.clocks.as_ref().expect("it stamps");
                    let gap = UnobservedReason::SampleGap;
                    assert!(!unobserved(&window).contains(&gap), "{window:?}");
                    let both = [clocks.samples, clocks.rows].map(|clock| clock.to_string());
                    if both == ["boot", "boot"] && window.credits.len() == 1 {
                        assert!(clocks.changes > 0, "{window:?}");
                        assert_eq!(window.unobserved, [], "{window:?}");
                        break;
                    }
                }
                let erratic = Stamps::new(StampClock::Erratic, StampClock::Erratic);
                rig.scenario.stamp(0, erratic).unwrap();
                while !unobserved(&agent.window(&rig.uuid(0)).await)
                    .contains(&UnobservedReason::UnknownSampleClock)
                {}
                agent.stop().await;
            })
        },
    );
}

#[test]
fn a_call_for_rows_that_succeeds_and_is_empty_gives_way_to_the_older_one() {
    on_a_machine(
        "a_call_for_rows_that_succeeds_and_is_empty_gives_way_to_the_older_one",
        Driver::R550,
        vec![GpuSpec::a100(0)],
        |rig| {
            Box::pin(async move {
                rig.job(0, std::process::id(), 1.0);
                let newer = "nvmlDeviceGetProcessesUtilizationInfo";
                let call = newer.to_owned();
                rig.scenario
                    .inject(Some(0), Fault::EmptyRows { call })
                    .unwrap();
                let mut agent = rig.start();
                agent.window(&rig.uuid(0)).await;
                for _ in 0..4 {
                    let window = agent.window(&rig.uuid(0)).await;
                    assert_eq!(window.no_row, Nanos::ZERO, "{window:?}");
                    assert_eq!(window.credits.len(), 1, "{window:?}");
                    let clocks = window.clocks.as_ref().expect("it stamps");
                    assert_eq!(&*clocks.rows_call, "nvmlDeviceGetProcessUtilization");
                    assert_eq!(clocks.empty_call.as_deref(), Some(newer), "{window:?}");
                }
                agent.stop().await;
            })
        },
    );
}

#[test]
fn a_lost_gpu_does_not_stop_the_others() {
    on_a_machine(
        "a_lost_gpu_does_not_stop_the_others",
        Driver::R550,
        (0..2).map(GpuSpec::a100).collect(),
        |rig| {
            Box::pin(async move {
                rig.job(0, std::process::id(), 1.0);
                let mut agent = rig.start();
                agent.up().await;
                let lost = rig.scenario.inject(Some(1), Fault::gpu_is_lost()).unwrap();
                let reason = agent.down("gpu_lost").await;
                assert!(reason.contains(&rig.uuid(1)), "{reason}");

                let mut healthy = Nanos::ZERO;
                let window = loop {
                    let Input::Window(window) = agent.next().await else {
                        continue;
                    };
                    if window.gpu.as_str() == rig.uuid(0) {
                        assert_eq!(window.unobserved, [], "the healthy one: {window:?}");
                        healthy += window.busy;
                    } else if !window.unobserved.is_empty() {
                        break window;
                    }
                };
                assert_eq!(unobserved(&window), [UnobservedReason::DriverError]);
                assert!(healthy > Nanos::ZERO);

                // The library was opened anew for its sake and cannot open it: that is still said.
                while !agent.down("gpu_lost").await.contains("can open") {}
                rig.scenario.clear(lost).unwrap();
                agent.up().await;
                loop {
                    let window = agent.window(&rig.uuid(1)).await;
                    if window.idle > Nanos::ZERO {
                        break;
                    }
                    assert_eq!(unobserved(&window), [UnobservedReason::DriverError]);
                }
                agent.stop().await;
            })
        },
    );
}

/// Every call on GPU 0 takes 20 s and fails then.
fn slow_failure(rig: &Rig) -> [sim_nvml::FaultId; 2] {
    let every = || "nvmlDevice".to_owned();
    [
        Fault::Delay {
            call: every(),
            ms: 20_000,
        },
        Fault::Fail {
            call: every(),
            code: 999,
        },
    ]
    .map(|fault| rig.scenario.inject(Some(0), fault).unwrap())
}

#[test]
fn a_gpu_whose_calls_block_costs_no_other_gpu_any_time() {
    on_a_machine(
        "a_gpu_whose_calls_block_costs_no_other_gpu_any_time",
        Driver::R550,
        (0..2).map(GpuSpec::a100).collect(),
        |rig| {
            Box::pin(async move {
                for gpu in [0, 1] {
                    rig.job(gpu, std::process::id(), 1.0);
                }
                let mut agent = rig.start();
                agent.up().await;
                for gpu in [0, 1] {
                    agent.window(&rig.uuid(gpu)).await;
                }
                let began = clock::now().boot;
                let faults = slow_failure(&rig);
                let mut healthy = Nanos::ZERO;
                let mut reasons = Vec::new();
                // Long enough for a call, a pause, and another call.
                let long = Nanos::from_secs(45);
                let mut ends = [began; 2];
                while ends.iter().any(|end| end.since(began) < long) {
                    match agent.next().await {
                        Input::Window(window) if window.gpu.as_str() == rig.uuid(1) => {
                            assert_eq!(window.unobserved, [], "the healthy one: {window:?}");
                            healthy += window.busy;
                            ends[1] = window.end;
                        }
                        Input::Window(window) => {
                            if window.start > began {
                                assert_eq!(
                                    unobserved(&window),
                                    [UnobservedReason::DriverTimeout],
                                    "the sick one: {window:?}"
                                );
                            }
                            ends[0] = window.end;
                        }
                        Input::Health(health) => match health.state {
                            SourceState::Down {
                                reason, next_retry, ..
                            } => {
                                assert!(next_retry.is_some(), "it is tried again: {reason}");
                                reasons.push(reason.to_string());
                            }
                            state => assert_eq!(state, SourceState::Up),
                        },
                        Input::Gpus(gpus) => assert_eq!(gpus.len(), 2, "both stay listed"),
                        _ => {}
                    }
                }
                assert!(healthy > Nanos::from_secs(40), "{healthy:?}");
                let names_it = |reason: &String| {
                    reason.contains("nvmlDevice") && reason.contains(&rig.uuid(0))
                };
                assert!(reasons.iter().any(names_it), "{reasons:?}");
                for reason in &reasons {
                    assert!(!reason.contains("more GPUs"), "counted twice: {reason}");
                    assert!(!reason.contains(&rig.uuid(1)), "the healthy one: {reason}");
                }

                for fault in faults {
                    rig.scenario.clear(fault).unwrap();
                }
                loop {
                    let window = agent.window(&rig.uuid(0)).await;
                    if window.unobserved.is_empty() {
                        break;
                    }
                    let blocked = [UnobservedReason::DriverTimeout];
                    assert_eq!(unobserved(&window), blocked, "{window:?}");
                }
                agent.up().await;
                agent.stop().await;
            })
        },
    );
}

#[test]
fn a_process_list_that_blocks_delays_no_other_gpu() {
    on_a_machine(
        "a_process_list_that_blocks_delays_no_other_gpu",
        Driver::R550,
        (0..2).map(GpuSpec::a100).collect(),
        |rig| {
            Box::pin(async move {
                for gpu in [0, 1] {
                    rig.job(gpu, std::process::id(), 1.0);
                }
                let mut agent = rig.start();
                agent.up().await;
                agent.window(&rig.uuid(0)).await;
                let stuck = Fault::Delay {
                    call: "nvmlDeviceGetComputeRunningProcesses".to_owned(),
                    ms: 3_600_000,
                };
                let stuck = rig.scenario.inject(Some(0), stuck).unwrap();
                let began = clock::now().boot;
                let (mut end, mut lists, mut blocked) = (began, 0, false);
                while !blocked || lists < 5 || end.since(began) < Nanos::from_secs(12) {
                    // Effects are best effort: one that finds another waiting is the same.
                    let _ = agent.lists.try_send(());
                    match agent.next().await {
                        Input::Window(window) if window.gpu.as_str() == rig.uuid(1) => {
                            assert_eq!(window.unobserved, [], "the healthy one: {window:?}");
                            end = window.end;
                        }
                        Input::Window(window) => {
                            let reasons = unobserved(&window);
                            blocked |= reasons == [UnobservedReason::DriverTimeout];
                            assert!(blocked || reasons.is_empty(), "{window:?}");
                        }
                        Input::GpuProcesses(of) if of.gpu.as_str() == rig.uuid(1) => lists += 1,
                        Input::Health(health) => {
                            let SourceState::Down { reason, .. } = health.state else {
                                continue;
                            };
                            assert_eq!(
                                *reason,
                                format!(
                                    "{}: the call nvmlDeviceGetComputeRunningProcesses \
                                     does not return",
                                    rig.uuid(0)
                                )
                            );
                        }
                        _ => {}
                    }
                }
                let threads = agent.handle.watchdog().threads();
                assert_eq!((threads.abandoned, threads.blocked), (1, 1));
                // What answers at last is asked again at once, from the driver's ring.
                rig.scenario.clear(stuck).unwrap();
                while agent.window(&rig.uuid(0)).await.busy.is_zero() {}
                agent.up().await;
                let threads = agent.handle.watchdog().threads();
                assert_eq!((threads.abandoned, threads.blocked), (1, 0));
                agent.stop().await;
            })
        },
    );
}

#[test]
fn the_driver_can_be_reloaded_while_a_call_hangs() {
    on_a_machine(
        "the_driver_can_be_reloaded_while_a_call_hangs",
        Driver::R550,
        (0..2).map(GpuSpec::a100).collect(),
        |rig| {
            Box::pin(async move {
                let mut agent = rig.start();
                agent.up().await;
                for gpu in [0, 1] {
                    agent.window(&rig.uuid(gpu)).await;
                }
                let stuck = Fault::Delay {
                    call: "nvmlDeviceGetSamples".to_owned(),
                    ms: 3_600_000,
                };
                let stuck = rig.scenario.inject(Some(0), stuck).unwrap();
                agent.down("timeout").await;
                for _ in 0..3 {
                    let reload = Fault::Fail {
                        call: String::new(),
                        code: 1,
                    };
                    let gone = rig.scenario.inject(None, reload).unwrap();
                    agent.down("uninitialized").await;
                    rig.scenario.clear(gone).unwrap();
                    while agent.window(&rig.uuid(1)).await.idle.is_zero() {}
                    // Nobody else is sent after the one that is stuck.
                    let threads = agent.handle.watchdog().threads();
                    assert_eq!(threads.blocked, 1, "{threads:?}");
                    let reason = agent.down("timeout").await;
                    assert!(reason.contains(&rig.uuid(0)), "{reason}");
                }
                rig.scenario.clear(stuck).unwrap();
                while agent.window(&rig.uuid(0)).await.idle.is_zero() {}
                agent.up().await;
                let threads = agent.handle.watchdog().threads();
                assert_eq!((threads.abandoned, threads.blocked), (1, 0));
                agent.stop().await;
            })
        },
    );
}

#[test]
fn a_gpu_that_cannot_be_opened_in_time_does_not_hold_up_the_others() {
    on_a_machine(
        "a_gpu_that_cannot_be_opened_in_time_does_not_hold_up_the_others",
        Driver::R550,
        (0..2).map(GpuSpec::a100).collect(),
        |rig| {
            Box::pin(async move {
                let stuck = Fault::Delay {
                    call: "nvmlDevice".to_owned(),
                    ms: 3_600_000,
                };
                let stuck = rig.scenario.inject(Some(0), stuck).unwrap();
                let mut agent = rig.start();
                let healthy = [(rig.uuid(1), None)];
                assert_eq!(listed(&mut agent).await, healthy);
                let reason = loop {
                    match agent.next().await {
                        Input::Window(window) => {
                            assert_eq!(window.gpu.as_str(), rig.uuid(1));
                            assert_eq!(window.unobserved, [], "{window:?}");
                        }
                        Input::Health(SourceHealth {
                            state: SourceState::Down { reason, .. },
                            ..
                        }) => break reason,
                        _ => {}
                    }
                };
                let expected = "GPU 0: the call nvmlDeviceGetHandleByIndex does not return";
                assert_eq!(&*reason, expected);
                rig.scenario.clear(stuck).unwrap();
                let both = [(rig.uuid(0), None), (rig.uuid(1), None)];
                assert_eq!(listed(&mut agent).await, both);
                agent.up().await;
                // It is accounted for since it is known.
                assert_eq!(agent.window(&rig.uuid(0)).await.unobserved, []);
                agent.stop().await;
            })
        },
    );
}

#[test]
fn instances_of_a_gpu_whose_calls_block_are_not_observed_and_those_of_others_are() {
    let divided = |index| GpuSpec::h100_divided(index, vec![Instance::whole(1, 3, 40)]);
    on_a_machine(
        "instances_of_a_gpu_whose_calls_block_are_not_observed_and_those_of_others_are",
        Driver::R550,
        vec![divided(0), divided(1)],
        |rig| {
            Box::pin(async move {
                let mut agent = rig.start();
                let gpus = listed(&mut agent).await;
                let [_, (sick, _), _, (well, _)] = &gpus[..] else {
                    panic!("two GPUs with an instance each: {gpus:?}");
                };
                agent.up().await;
                for uuid in [sick, well] {
                    while !agent.window(uuid).await.unobserved.is_empty() {}
                }
                let stuck = Fault::Delay {
                    call: "nvmlGpmMigSampleGet".to_owned(),
                    ms: 3_600_000,
                };
                let stuck = rig.scenario.inject(Some(0), stuck).unwrap();
                let mut blocked = Nanos::ZERO;
                while blocked < Nanos::from_secs(3) {
                    let Input::Window(window) = agent.next().await else {
                        continue;
                    };
                    if window.gpu.as_str() == well {
                        assert_eq!(window.unobserved, [], "{window:?}");
                    } else if window.gpu.as_str() == sick && !window.unobserved.is_empty() {
                        assert_eq!(unobserved(&window), [UnobservedReason::DriverTimeout]);
                        blocked += window.end.since(window.start);
                    }
                }
                rig.scenario.clear(stuck).unwrap();
                // There is no ring to go on from: what was open is not observed for the same reason.
                loop {
                    let window = agent.window(sick).await;
                    if window.unobserved.is_empty() {
                        break;
                    }
                    let known = [UnobservedReason::DriverTimeout, UnobservedReason::SampleGap];
                    let reasons = unobserved(&window);
                    assert!(reasons.iter().all(|of| known.contains(of)), "{window:?}");
                }
                agent.stop().await;
            })
        },
    );
}

/// Panics once, on the thread of this name, as soon as that logs anything.
fn panic_once_on(thread: &'static str) {
    use std::sync::atomic::{AtomicBool, Ordering};
    static HAS_PANICKED: AtomicBool = AtomicBool::new(false);
    tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::DEBUG)
        .with_writer(move || {
            let is_there = std::thread::current().name() == Some(thread);
            if is_there && !HAS_PANICKED.swap(true, Ordering::Relaxed) {
                panic!("a defect, made by this test");
            }
            std::io::sink()
        })
        .init();
}

fn a_panic_of(rig: Rig, thread: &'static str) -> TestEnd {
    Box::pin(async move {
        let mut agent = rig.start();
        agent.up().await;
        for gpu in [0, 1] {
            agent.window(&rig.uuid(gpu)).await;
        }
        panic_once_on(thread);
        // It says that it fails, and does not get over it.
        let unknown = Fault::Fail {
            call: "nvmlDeviceGetProcess".to_owned(),
            code: 999,
        };
        let fault = rig.scenario.inject(Some(0), unknown).unwrap();
        agent.down("panic").await;
        rig.scenario.clear(fault).unwrap();
        // The thread is started again, and the ring has what was missed.
        agent.up().await;
        for gpu in [0, 1] {
            let after = clock::now().boot;
            loop {
                let window = agent.window(&rig.uuid(gpu)).await;
                assert_eq!(window.unobserved, [], "{window:?}");
                if window.end > after {
                    break;
                }
            }
        }
        let threads = agent.handle.watchdog().threads();
        assert_eq!(threads.restarts, 1, "{threads:?}");
        agent.stop().await;
    })
}

#[test]
fn a_gpu_s_thread_that_panics_is_started_again() {
    on_a_machine(
        "a_gpu_s_thread_that_panics_is_started_again",
        Driver::R550,
        (0..2).map(GpuSpec::a100).collect(),
        |rig| a_panic_of(rig, "nvml-0"),
    );
}

#[test]
fn a_supervisor_that_panics_is_started_again() {
    on_a_machine(
        "a_supervisor_that_panics_is_started_again",
        Driver::R550,
        (0..2).map(GpuSpec::a100).collect(),
        |rig| a_panic_of(rig, "nvml"),
    );
}

#[test]
fn windows_that_find_no_room_at_the_end_are_delivered() {
    on_a_machine(
        "windows_that_find_no_room_at_the_end_are_delivered",
        Driver::R550,
        (0..2).map(GpuSpec::a100).collect(),
        |rig| {
            Box::pin(async move {
                let mut agent = rig.start();
                agent.up().await;
                for gpu in [0, 1] {
                    agent.window(&rig.uuid(gpu)).await;
                }
                // Nobody takes anything for as long as it takes to fill the channel, and longer.
                while agent.inputs.len() < agent.inputs.max_capacity() {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                let full = clock::now().boot;
                while clock::now().boot.since(full) < Nanos::from_secs(3) {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                let stopped = clock::now().boot;
                let asked = || {
                    let figures = agent.handle.watchdog().figures();
                    figures["nvmlDeviceGetSamples"].calls
                };
                let before = asked();
                agent.stop.send(true).unwrap();
                // Both GPUs are asked for the last time, while there is no room for the answer.
                while asked() < before + 4 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                let mut ends = BTreeMap::new();
                while let Some(input) = agent.inputs.recv().await {
                    if let Input::Window(window) = input {
                        let end = ends.insert(window.gpu.to_string(), window.end);
                        let end = end.or(agent.ends.get(window.gpu.as_str()).copied());
                        assert_eq!(end, Some(window.start), "windows tile: {window:?}");
                    }
                }
                for gpu in [0, 1] {
                    // Up to the newest sample: two periods ago at most.
                    let end = ends[&rig.uuid(gpu)].plus(Nanos(2 * RING_PERIOD_NS));
                    assert!(end >= stopped, "gpu {gpu}: {end:?}, stopped at {stopped:?}");
                }
                agent.handle.stopped().await;
            })
        },
    );
}

#[test]
fn a_hiccup_loses_nothing_and_a_blocked_call_is_told() {
    on_a_machine(
        "a_hiccup_loses_nothing_and_a_blocked_call_is_told",
        Driver::R550,
        vec![GpuSpec::a100(0)],
        |rig| {
            Box::pin(async move {
                rig.job(0, std::process::id(), 1.0);
                let mut agent = rig.start();
                agent.up().await;
                agent.window(&rig.uuid(0)).await;

                // An error of the driver, for as long as it takes to be noticed.
                let unknown = Fault::Fail {
                    call: "nvmlDeviceGetProcess".to_owned(),
                    code: 999,
                };
                let fault = rig.scenario.inject(Some(0), unknown).unwrap();
                let reason = agent.down("driver_error").await;
                assert!(
                    reason.contains("nvmlDeviceGetProcessUtilization"),
                    "{reason}"
                );
                rig.scenario.clear(fault).unwrap();
                agent.up().await;

                // A call that does not come back.
                let stuck = Fault::Delay {
                    call: "nvmlDeviceGetSamples".to_owned(),
                    ms: 3_600_000,
                };
                let fault = rig.scenario.inject(Some(0), stuck).unwrap();
                let watchdog = agent.handle.watchdog();
                let blocked = loop {
                    let half = Nanos::from_millis(500);
                    match watchdog.blocked(clock::now().boot, half) {
                        // A wait for events lasts as long as that when nothing happens.
                        Some(blocked) if &*blocked.call != "nvmlEventSetWait_v2" => break blocked,
                        // The cell is there to be looked at, not to wait on.
                        _ => tokio::time::sleep(Duration::from_millis(20)).await,
                    }
                };
                assert_eq!(&*blocked.call, "nvmlDeviceGetSamples");
                assert_eq!(blocked.gpu.map(|gpu| gpu.to_string()), Some(rig.uuid(0)));
                rig.scenario.clear(fault).unwrap();

                // Both were shorter than the ring: all of it is busy, and owned.
                let after = clock::now().boot;
                loop {
                    let window = agent.window(&rig.uuid(0)).await;
                    assert_eq!(window.unobserved, [], "{window:?}");
                    assert_eq!(window.idle, Nanos::ZERO, "{window:?}");
                    assert_eq!(window.credits.len(), 1, "{window:?}");
                    if window.end > after {
                        break;
                    }
                }
                let calls = watchdog.figures()["nvmlDeviceGetSamples"];
                assert!(calls.longest > Nanos::from_millis(500), "{calls:?}");
                agent.stop().await;
            })
        },
    );
}

#[test]
fn a_driver_may_come_late_and_go_again() {
    on_a_machine(
        "a_driver_may_come_late_and_go_again",
        Driver::R550,
        vec![GpuSpec::a100(0)],
        |rig| {
            Box::pin(async move {
                let absent = rig.scenario.inject(None, Fault::no_driver()).unwrap();
                let mut agent = rig.start();
                let reason = agent.down("driver_not_loaded").await;
                assert!(reason.contains("driver is not loaded"), "{reason}");
                rig.scenario.clear(absent).unwrap();
                agent.up().await;
                agent.window(&rig.uuid(0)).await;

                // Reloaded under the agent's feet: every call fails until NVML is initialised anew.
                let reload = Fault::Fail {
                    call: String::new(),
                    code: 1,
                };
                let gone = rig.scenario.inject(None, reload).unwrap();
                agent.down("uninitialized").await;
                let away = loop {
                    let window = agent.window(&rig.uuid(0)).await;
                    if !window.unobserved.is_empty() {
                        break window;
                    }
                };
                assert_eq!(unobserved(&away), [UnobservedReason::DriverError]);
                rig.scenario.clear(gone).unwrap();
                agent.up().await;
                let window = agent.window(&rig.uuid(0)).await;
                assert!(window.idle > Nanos::ZERO, "{window:?}");
                agent.stop().await;
            })
        },
    );
}

fn engines_and_energy(rig: Rig, expected: &'static [Engine]) -> TestEnd {
    Box::pin(async move {
        let (one, two) = (std::process::id(), std::os::unix::process::parent_id());
        // A sample of one engine says nothing of another's: one computes, the other one encodes.
        let job = |share, engines| Job {
            share,
            engines,
            ..Job::default()
        };
        let decoding = Engines {
            decoder: 1.0,
            jpeg: 1.0,
            ..Engines::default()
        };
        rig.scenario.start(one, job(1.0, decoding)).unwrap();
        let encoding = Engines {
            memory: 1.0,
            encoder: 1.0,
            optical_flow: 1.0,
            ..Engines::default()
        };
        rig.scenario.start(two, job(0.0, encoding)).unwrap();
        let mut agent = rig.start();
        let Input::Gpus(gpus) = agent.next().await else {
            panic!("the list of GPUs comes first");
        };
        assert_eq!(gpus[0].engines, expected);
        // From the first window's end on, the jobs have been there for the whole of each.
        agent.window(&rig.uuid(0)).await;
        let window = agent.window(&rig.uuid(0)).await;
        let elapsed = window.end.since(window.start);
        assert_eq!(window.busy, elapsed, "{window:?}");
        let told = |engine: Engine| {
            if expected.contains(&engine) {
                elapsed
            } else {
                Nanos::ZERO
            }
        };
        let of = |pid: u32, engine: Engine| {
            let used = window.engines.iter().find(|used| used.pid.0 == pid);
            used.map_or(Nanos::ZERO, |used| used.engines.of(engine))
        };
        for (pid, engine, time) in [
            (one, Engine::Decoder, told(Engine::Decoder)),
            (one, Engine::Jpeg, told(Engine::Jpeg)),
            (one, Engine::Memory, Nanos::ZERO),
            (two, Engine::Memory, told(Engine::Memory)),
            (two, Engine::Encoder, told(Engine::Encoder)),
            (two, Engine::Ofa, told(Engine::Ofa)),
            (two, Engine::Decoder, Nanos::ZERO),
        ] {
            assert_eq!(of(pid, engine), time, "{pid} {engine:?} {window:?}");
        }

        // A busy A100 draws 400 W; its counter moves each 100 ms.
        let mut energy = 0;
        let mut windows = 0;
        let begin = window.end;
        let lag = |end: BootTime| clock::now().boot.since(end).0 / 1_000_000;
        let begin_lag = lag(begin);
        let end = loop {
            let window = agent.window(&rig.uuid(0)).await;
            energy += window.energy.expect("it has a counter").0;
            windows += 1;
            if window.end.since(begin) > Nanos::from_secs(4) {
                break window.end;
            }
        };
        let expected = end.since(begin).0 / 1_000_000 * 400;
        // A reading is late by a sample's period and a tick, at both ends; on a busy machine by as much
        // as its window is.
        let lag = begin_lag.max(lag(end)).clamp(1_000, 2_000);
        let tolerance = 400 * (lag + 100);
        assert!(
            energy.abs_diff(expected) < tolerance,
            "{energy} mJ, expected {expected} mJ in {windows} windows"
        );
        agent.stop().await;
    })
}

#[test]
fn engines_are_told_apart_and_energy_is_read() {
    on_a_machine(
        "engines_are_told_apart_and_energy_is_read",
        Driver::R550,
        vec![GpuSpec::a100(0)],
        |rig| engines_and_energy(rig, &Engine::ALL),
    );
}

#[test]
fn old_drivers_tell_three_engines_apart() {
    on_a_machine(
        "old_drivers_tell_three_engines_apart",
        Driver::R470,
        vec![GpuSpec::a100(0)],
        |rig| engines_and_energy(rig, &[Engine::Memory, Engine::Encoder, Engine::Decoder]),
    );
}

#[test]
fn without_a_counter_of_energy_there_is_none_and_rows_are_had_in_the_older_way() {
    on_a_machine(
        "without_a_counter_of_energy_there_is_none_and_rows_are_had_in_the_older_way",
        Driver::R550,
        vec![GpuSpec::a100(0)],
        |rig| {
            Box::pin(async move {
                rig.job(0, std::process::id(), 1.0);
                for (call, code) in [
                    ("nvmlDeviceGetTotalEnergyConsumption", 3),
                    // A driver that knows another version of the structure.
                    ("nvmlDeviceGetProcessesUtilizationInfo", 25),
                ] {
                    let call = call.to_owned();
                    let fault = Fault::Fail { call, code };
                    rig.scenario.inject(Some(0), fault).unwrap();
                }
                let mut agent = rig.start();
                agent.window(&rig.uuid(0)).await;
                let window = agent.window(&rig.uuid(0)).await;
                assert_eq!(window.energy, None);
                assert_eq!(window.credits.len(), 1, "{window:?}");
                assert_eq!(window.credits[0].busy, window.busy, "{window:?}");
                agent.stop().await;
            })
        },
    );
}

fn lists_of_three_kinds(rig: Rig) -> TestEnd {
    Box::pin(async move {
        let (one, two) = (std::process::id(), std::os::unix::process::parent_id());
        for (pid, kind, memory_mib) in [(one, Kind::Mps, 64), (two, Kind::Graphics, 32)] {
            let job = Job {
                kind,
                memory_bytes: memory_mib * MIB,
                ..Job::default()
            };
            rig.scenario.start(pid, job).unwrap();
        }
        // Rows that were not there when the size was asked for.
        let racing = rig
            .scenario
            .inject(Some(0), Fault::GrowingRows { rows: 1 })
            .unwrap();
        let mut agent = rig.start();
        let uuid = rig.uuid(0);
        agent.window(&uuid).await;
        rig.scenario.clear(racing).unwrap();
        // The interval is an hour: these come since they are asked for.
        agent.lists.send(()).await.unwrap();
        agent.lists.send(()).await.unwrap();
        let lists = loop {
            let lists = agent.lists(&uuid).await;
            if lists.processes.len() == 2 {
                break lists;
            }
        };
        let memory = |pid: u32| {
            let process = lists.processes.iter().find(|process| process.pid.0 == pid);
            process.and_then(|process| process.memory)
        };
        assert_eq!(memory(one), Some(64 * MIB), "in two lists, counted once");
        assert_eq!(memory(two), Some(32 * MIB));
        agent.stop().await;
    })
}

#[test]
fn process_lists_are_joined_by_pid() {
    on_a_machine(
        "process_lists_are_joined_by_pid",
        Driver::R550,
        vec![GpuSpec::a100(0)],
        lists_of_three_kinds,
    );
}

#[test]
fn the_mps_server_is_known_by_the_device_s_mode_or_by_its_name() {
    let mut gpus: Vec<GpuSpec> = (0..2).map(GpuSpec::a100).collect();
    gpus[0].exclusive = true;
    on_a_machine(
        "the_mps_server_is_known_by_the_device_s_mode_or_by_its_name",
        Driver::R550,
        gpus,
        |rig| {
            Box::pin(async move {
                // A program by the server's name: a link to one that waits.
                let dir = tempfile::tempdir().unwrap();
                let name = dir.path().join("nvidia-cuda-mps-server");
                std::fs::copy("/bin/sleep", &name).unwrap();
                let mut named = Command::new(name)
                    .arg("60")
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .spawn()
                    .unwrap();
                let comm = format!("/proc/{}/comm", named.id());
                while std::fs::read_to_string(&comm).unwrap().trim() != "nvidia-cuda-mps" {
                    tokio::task::yield_now().await;
                }
                let (server, client) = (std::process::id(), std::os::unix::process::parent_id());
                let job = |gpu, kind| Job {
                    gpu,
                    kind,
                    ..Job::default()
                };
                let start = |pid, work| rig.scenario.start(pid, work).unwrap();
                for (gpu, pid) in [(0, server), (1, server), (1, named.id())] {
                    start(pid, job(gpu, Kind::Compute));
                }
                let mut agent = rig.start();
                let mut roles = BTreeMap::new();
                for gpu in [0, 1] {
                    // Nobody is a server without clients.
                    agent.lists.send(()).await.unwrap();
                    let lists = agent.lists(&rig.uuid(gpu)).await;
                    let none = |process: &GpuProcess| process.mps == MpsRole::None;
                    assert!(lists.processes.iter().all(none), "{lists:?}");
                    start(client, job(u32::try_from(gpu).unwrap(), Kind::Mps));
                }
                while roles.len() < 2 {
                    // Effects are best effort: one that finds another waiting is the same.
                    let _ = agent.lists.try_send(());
                    if let Input::GpuProcesses(lists) = agent.next().await
                        && lists.processes.iter().any(|p| p.mps == MpsRole::Client)
                    {
                        roles.insert(lists.gpu.as_str().to_owned(), lists.processes);
                    }
                }
                let role = |gpu: usize, pid: u32| {
                    let mut listed = roles[&rig.uuid(gpu)].iter();
                    listed.find(|process| process.pid.0 == pid).unwrap().mps
                };
                assert_eq!(role(0, client), MpsRole::Client);
                assert_eq!(role(0, server), MpsRole::Server);
                // Where others may compute too, a name is no proof and nothing else is a hint.
                assert_eq!(role(1, server), MpsRole::None);
                assert_eq!(role(1, named.id()), MpsRole::NamedServer);
                agent.stop().await;
                named.kill().unwrap();
                named.wait().unwrap();
            })
        },
    );
}

/// The newest list of GPUs, as (UUID, profile).
async fn listed(agent: &mut Agent) -> Vec<(String, Option<String>)> {
    loop {
        if let Input::Gpus(gpus) = agent.next().await {
            let profile = |mig: MigInfo| mig.profile.to_string();
            return gpus
                .into_iter()
                .map(|gpu| (gpu.uuid.as_str().to_owned(), gpu.mig.map(profile)))
                .collect();
        }
    }
}

#[test]
fn instances_are_gpus_of_their_own_and_measured_where_that_can_be() {
    let split = |compute_instance| Instance {
        gpu_instance: 3,
        compute_instance,
        slices: 2,
        compute_slices: 1,
        memory_bytes: 20 << 30,
    };
    let h100 = vec![
        Instance::whole(1, 3, 40),
        Instance::whole(2, 2, 20),
        split(0),
        split(1),
    ];
    let mut a100 = GpuSpec::h100_divided(1, vec![Instance::whole(1, 1, 10)]);
    a100.gpm = false;
    on_a_machine(
        "instances_are_gpus_of_their_own_and_measured_where_that_can_be",
        Driver::R550,
        vec![GpuSpec::h100_divided(0, h100), a100],
        |rig| {
            Box::pin(async move {
                let (one, two) = (std::process::id(), std::os::unix::process::parent_id());
                let job = |gpu, ids, share| Job {
                    gpu,
                    share,
                    instance: Some(ids),
                    memory_bytes: 64 * MIB,
                    ..Job::default()
                };
                let start = |pid, work| rig.scenario.start(pid, work).unwrap();
                let jobs = [
                    start(one, job(0, (1, 0), 0.25)),
                    start(two, job(0, (1, 0), 0.25)),
                    start(two, job(0, (3, 0), 1.0)),
                ];
                start(two, job(1, (1, 0), 1.0));
                let mut agent = rig.start();
                let gpus = listed(&mut agent).await;
                let profiles: Vec<_> = gpus.iter().map(|(_, mig)| mig.as_deref()).collect();
                let (half, most) = (Some("1c.2g.20gb"), Some("3g.40gb"));
                let expected = [
                    None,
                    most,
                    Some("2g.20gb"),
                    half,
                    half,
                    None,
                    Some("1g.10gb"),
                ];
                assert_eq!(profiles, expected);
                let uuid = |at: usize| gpus[at].0.clone();

                // Half of the time, and all that was measured is accounted for.
                let mut measured = Nanos::ZERO;
                while measured < Nanos::from_secs(2) {
                    let window = agent.window(&uuid(1)).await;
                    if window.start == window.end || !window.unobserved.is_empty() {
                        continue; // Up to the first sample.
                    }
                    let elapsed = window.end.since(window.start);
                    measured += elapsed;
                    assert!(
                        window.busy.0.abs_diff(elapsed.0 / 2) <= elapsed.0 / 20,
                        "{window:?}"
                    );
                    assert_eq!((window.no_row, window.credits.len()), (window.busy, 0));
                    assert_eq!(window.energy, None, "it is the whole GPU's");
                }
                let window = agent.window(&uuid(2)).await;
                assert_eq!((window.busy, window.unobserved.len()), (Nanos::ZERO, 0));
                // A GPU instance of several compute instances, one without GPM, and the whole GPUs.
                for at in [0, 3, 4, 5, 6] {
                    let window = agent.window(&uuid(at)).await;
                    assert_eq!(unobserved(&window), [UnobservedReason::Unsupported], "{at}");
                }
                let window = agent.window(&uuid(0)).await;
                assert!(window.energy.is_some(), "{window:?}");

                agent.lists.send(()).await.unwrap();
                let whole = agent.lists(&uuid(0)).await;
                assert_eq!(
                    (whole.processes.len(), whole.memory_used),
                    (0, Some(192 * MIB))
                );
                let lists = agent.lists(&uuid(1)).await;
                let mut pids: Vec<u32> = lists.processes.iter().map(|p| p.pid.0).collect();
                pids.sort_unstable();
                let mut both = [one, two];
                both.sort_unstable();
                assert_eq!((&pids[..], lists.memory_used), (&both[..], Some(128 * MIB)));
                assert!(agent.lists(&uuid(2)).await.processes.is_empty());

                // Whoever cannot ask whether it is divided anew goes on with what there was.
                let untold = Fault::Fail {
                    call: "nvmlDeviceGetMigMode".to_owned(),
                    code: 999,
                };
                let untold = rig.scenario.inject(None, untold).unwrap();
                let mut watched = Nanos::ZERO;
                while watched < Nanos::from_secs(6) {
                    match agent.next().await {
                        Input::Window(window) if window.gpu.as_str() == uuid(2) => {
                            assert_eq!(window.unobserved, [], "{window:?}");
                            watched += window.end.since(window.start);
                        }
                        Input::Gpus(gpus) => panic!("listed anew: {gpus:?}"),
                        _ => {}
                    }
                }
                rig.scenario.clear(untold).unwrap();

                // Divided anew: one stays, one has another's UUID, the others are gone.
                for job in jobs {
                    rig.scenario.stop(job).unwrap();
                }
                let anew = vec![Instance::whole(1, 4, 40), Instance::whole(2, 2, 20)];
                rig.scenario.divide(0, anew).unwrap();
                let found = listed(&mut agent).await;
                let expected = [
                    (uuid(0), None),
                    (uuid(1), Some("4g.40gb".to_owned())),
                    (uuid(2), Some("2g.20gb".to_owned())),
                    (uuid(5), None),
                    (uuid(6), Some("1g.10gb".to_owned())),
                ];
                assert_eq!(found, expected);
                for _ in 0..2 {
                    // What stays is measured through.
                    let window = agent.window(&uuid(2)).await;
                    assert_eq!(window.unobserved, [], "{window:?}");
                }
                while agent.window(&uuid(1)).await.idle.is_zero() {}
                agent.stop().await;
            })
        },
    );
}

/// Whether the library is mapped into this process, or a file of its device is open.
fn has_nvml_open() -> bool {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let descriptors = std::fs::read_dir("/proc/self/fd").unwrap();
    let targets = descriptors.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    let mut targets = targets;
    maps.contains("libnvidia-ml") || targets.any(|path| path.starts_with("/dev/nvidia"))
}

#[test]
fn a_driver_is_replaced_while_the_gpus_are_released() {
    on_a_machine(
        "a_driver_is_replaced_while_the_gpus_are_released",
        Driver::R550,
        vec![GpuSpec::a100(0), GpuSpec::a100(1)],
        |rig| {
            Box::pin(async move {
                let minute = Wanted::Release(Duration::from_secs(60));
                let mut agent = rig.start();
                agent.window(&rig.uuid(0)).await;
                agent.window(&rig.uuid(1)).await;
                assert!(has_nvml_open(), "this is how it looks while it is open");
                let report = agent.order(minute).await;
                assert!(
                    matches!(report, ReleaseReport::Released { .. }),
                    "{report:?}"
                );
                assert!(!has_nvml_open(), "a driver could not be unloaded");
                let is_released = |state: &SourceState| matches!(state, SourceState::Down { class, .. } if **class == *"released");
                while !agent.state.as_ref().is_some_and(is_released) {
                    agent.next().await;
                }

                let dir = rig.scenario.dir().parent().unwrap().to_owned();
                library::install(Driver::R610, &dir).unwrap();
                assert_eq!(agent.order(Wanted::TakeUp).await, ReleaseReport::TakenUp);
                agent.up().await;
                for gpu in 0..2 {
                    // What was booked before the driver's samples go on.
                    let mut reasons = Vec::new();
                    loop {
                        let window = agent.window(&rig.uuid(gpu)).await;
                        reasons.extend(unobserved(&window));
                        if reasons.is_empty() || window.idle > Nanos::ZERO {
                            break;
                        }
                    }
                    let other = reasons.iter().find(|it| **it != UnobservedReason::Released);
                    assert_eq!(other, None, "{reasons:?}");
                }
                agent.stop().await;
            })
        },
    );
}

#[test]
fn a_call_that_does_not_return_is_named_and_the_library_is_closed_after_it() {
    on_a_machine(
        "a_call_that_does_not_return_is_named_and_the_library_is_closed_after_it",
        Driver::R550,
        vec![GpuSpec::a100(0), GpuSpec::a100(1)],
        |rig| {
            Box::pin(async move {
                let mut agent = rig.start();
                agent.window(&rig.uuid(1)).await;
                let block = Fault::Delay {
                    call: "nvmlDeviceGetSamples".to_owned(),
                    ms: 3_600_000,
                };
                let blocked = rig.scenario.inject(Some(1), block).unwrap();
                // The next call blocks at the next window at the latest.
                agent.window(&rig.uuid(0)).await;
                agent.window(&rig.uuid(0)).await;
                let report = agent
                    .order(Wanted::Release(Duration::from_secs(3_600)))
                    .await;
                let ReleaseReport::Stuck { gpus, .. } = report else {
                    panic!("{report:?}");
                };
                assert_eq!(gpus, [1]);
                assert!(has_nvml_open(), "the thread is in it");
                rig.scenario.clear(blocked).unwrap();
                while has_nvml_open() {
                    agent.next().await;
                }
                agent.order(Wanted::TakeUp).await;
                agent.up().await;
                agent.stop().await;
            })
        },
    );
}

#[test]
fn a_release_that_is_forgotten_ends_by_itself() {
    on_a_machine(
        "a_release_that_is_forgotten_ends_by_itself",
        Driver::R550,
        vec![GpuSpec::a100(0)],
        |rig| {
            Box::pin(async move {
                // Also before the library is open, and twice: the last one counts.
                let mut agent = rig.start();
                let long = Wanted::Release(Duration::from_secs(3_600));
                let report = agent.order(long).await;
                assert!(
                    matches!(report, ReleaseReport::Released { .. }),
                    "{report:?}"
                );
                let short = Wanted::Release(Duration::from_secs(1));
                let report = agent.order(short).await;
                assert!(
                    matches!(report, ReleaseReport::Released { .. }),
                    "{report:?}"
                );
                agent.up().await;
                while agent.window(&rig.uuid(0)).await.idle.is_zero() {}
                agent.stop().await;
            })
        },
    );
}

#[test]
fn a_gpu_without_a_driver_is_released() {
    on_a_machine(
        "a_gpu_without_a_driver_is_released",
        Driver::R550,
        vec![GpuSpec::a100(0)],
        |rig| {
            Box::pin(async move {
                let mut agent = rig.start();
                agent.window(&rig.uuid(0)).await;
                let unloaded = Fault::Fail {
                    call: String::new(),
                    code: 9,
                };
                let gone = rig.scenario.inject(None, unloaded).unwrap();
                let window = loop {
                    let window = agent.window(&rig.uuid(0)).await;
                    if !window.unobserved.is_empty() {
                        break window;
                    }
                };
                assert_eq!(unobserved(&window), [UnobservedReason::Released]);
                rig.scenario.clear(gone).unwrap();
                while agent.window(&rig.uuid(0)).await.idle.is_zero() {}
                agent.stop().await;
            })
        },
    );
}

fn the_dead_are_compared(rig: Rig, has_sums: bool) -> TestEnd {
    Box::pin(async move {
        let pid = std::process::id();
        let mut agent = rig.start();
        agent.lists.send(()).await.unwrap();
        agent.lists(&rig.uuid(0)).await;
        // Accounting is asked after the lists and before the next window: from here on it is followed.
        agent.window(&rig.uuid(0)).await;
        let job = Job {
            share: 1.0,
            memory_bytes: 64 * MIB,
            ..Job::default()
        };
        let job = rig.scenario.start(pid, job).unwrap();
        // Three seconds of it: the driver sums up once a second.
        let mut seen = Nanos::ZERO;
        while seen < Nanos::from_secs(3) {
            seen += agent.window(&rig.uuid(0)).await.busy;
        }
        rig.scenario.stop(job).unwrap();
        let told = loop {
            // Effects are best effort: one that finds another waiting is the same.
            let _ = agent.lists.try_send(());
            if let Input::Accounted(told) = agent.next().await {
                break told;
            }
        };
        assert_eq!((told.pid.0, told.memory_peak), (pid, Some(64 * MIB)));
        // Its first sample stands for the whole period before it, of which it may have missed all but
        // an instant; and the driver tells of whole milliseconds.
        let period = Nanos(RING_PERIOD_NS);
        let ahead = period.plus(Nanos::from_millis(1));
        assert!(told.lifetime.plus(ahead) >= seen, "{told:?} {seen:?}");
        assert_eq!(told.busy.is_some(), has_sums, "{told:?}");
        if let Some((driver, windows)) = told.busy {
            // All but the last part of a second, and here a sample more at either end.
            assert!(driver <= windows.plus(period).plus(period), "{told:?}");
            assert!(
                driver.plus(Nanos::SECOND).plus(period).plus(period) >= windows,
                "{told:?}"
            );
            assert!(windows >= seen, "{told:?} {seen:?}");
        }
        agent.stop().await;
    })
}

fn with_accounting() -> GpuSpec {
    GpuSpec {
        accounting: true,
        ..GpuSpec::a100(0)
    }
}

#[test]
fn the_driver_s_sums_stand_beside_ours() {
    on_a_machine(
        "the_driver_s_sums_stand_beside_ours",
        Driver::R610,
        vec![with_accounting()],
        |rig| the_dead_are_compared(rig, true),
    );
}

#[test]
fn a_driver_without_sums_tells_of_peaks() {
    on_a_machine(
        "a_driver_without_sums_tells_of_peaks",
        Driver::R550,
        vec![with_accounting()],
        |rig| the_dead_are_compared(rig, false),
    );
}

#[test]
fn old_drivers_have_lists_too() {
    on_a_machine(
        "old_drivers_have_lists_too",
        Driver::R470,
        vec![GpuSpec::a100(0)],
        lists_of_three_kinds,
    );
}

#[test]
fn junk_rows_are_counted_and_bill_nobody_beyond_the_device() {
    on_a_machine(
        "junk_rows_are_counted_and_bill_nobody_beyond_the_device",
        Driver::R610,
        vec![GpuSpec::a100(0)],
        |rig| {
            Box::pin(async move {
                rig.job(0, std::process::id(), 1.0);
                rig.scenario.inject(Some(0), Fault::JunkRows).unwrap();
                let mut agent = rig.start();
                let window = loop {
                    let window = agent.window(&rig.uuid(0)).await;
                    if window.quality.samples > 1 {
                        break window;
                    }
                };
                assert!(window.quality.invalid_rows > 0, "{window:?}");
                let ours = window
                    .credits
                    .iter()
                    .find(|c| c.pid.0 == std::process::id());
                assert!(
                    ours.is_some_and(|credit| credit.busy > Nanos::ZERO),
                    "{window:?}"
                );
                agent.stop().await;
            })
        },
    );
}

#[test]
fn a_recording_has_every_answer_on_a_line() {
    on_a_machine(
        "a_recording_has_every_answer_on_a_line",
        Driver::R550,
        vec![GpuSpec::a100(0)],
        |rig| {
            Box::pin(async move {
                rig.job(0, std::process::id(), 1.0);
                let options = Options {
                    library: Some(rig.scenario.dir().with_file_name("libnvidia-ml.so.1")),
                    duration: Duration::from_secs(6),
                    program: ["sleep", "3600"].map(Into::into).into(),
                };
                let mut recording = Vec::new();
                record::record(&mut recording, &options).unwrap();
                let recording = String::from_utf8(recording).unwrap();
                let lines: Vec<Value> = recording
                    .lines()
                    .map(|line| serde_json::from_str(line).unwrap())
                    .collect();
                let note = |name: &str| {
                    let line = lines.iter().find(|line| line["note"] == name);
                    line.unwrap_or_else(|| panic!("no {name} in {recording}"))["facts"].clone()
                };
                assert_eq!(note("machine")["simulated"], true);
                assert_eq!(
                    note("ring")["period_us"].as_u64().map(|us| us / 1000),
                    Some(166)
                );
                assert_eq!(note("program_started")["pid"], note("program_ended")["pid"]);
                let called = |name: &str| {
                    lines
                        .iter()
                        .filter(|line| line["call"] == name)
                        .collect::<Vec<_>>()
                };
                // A version of plain 2 is what the header's comment asks for, and no version.
                let versions = called("nvmlDeviceGetMemoryInfo_v2");
                assert_eq!(versions[0]["answer"]["code"], 25, "{:?}", versions[0]);
                assert_eq!(versions[1]["answer"]["code"], 0, "{:?}", versions[1]);
                // Nothing is newer than the future; else there is room for all that is kept.
                let rooms: Vec<_> = called("nvmlDeviceGetProcessUtilization(NULL)")
                    .iter()
                    .map(|line| {
                        (
                            line["answer"]["code"].as_u64(),
                            line["answer"]["room"].as_u64(),
                        )
                    })
                    .collect();
                assert_eq!(rooms, [(Some(6), Some(0)), (Some(7), Some(4096))]);
                let rows = called("nvmlDeviceGetProcessUtilization");
                assert!(rows[0]["error"].is_string(), "not found: {:?}", rows[0]);
                let ours = Value::from(std::process::id());
                assert!(
                    rows.iter().any(|line| line["answer"][0]["pid"] == ours),
                    "{rows:?}"
                );
                assert!(
                    lines
                        .iter()
                        .all(|line| line["note"].is_string() || line["took_ns"].is_u64())
                );
            })
        },
    );
}
