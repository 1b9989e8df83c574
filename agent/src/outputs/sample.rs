//! A snapshot with everything in it, for the tests of the outputs: two GPUs, containers with names,
//! without and held back, host processes, every reason, a source in each state.

use std::sync::Arc;

use super::instruments::OptIn;
use super::status_report::StatusReport;
use crate::core::amounts::{Amounts, ByteSeconds, Engine, Engines, Millijoules};
use crate::core::input::{
    CallClock, ClockKind, EventCounters, GpuInfo, HealthFigure, IdentitySource, Reading,
    SampleClocks, SourceHealth, ThrottleReason,
};
use crate::core::model::{
    BootTime, Clock, ContainerId, GpuUuid, HostUnit, NONE, Nanos, Pid, SourceId, SourceState,
    StartTicks, UNRESOLVED, UnattributedReason, UnobservedReason, WallTime,
};
use crate::core::snapshot::{
    AccountingBook, AgentBook, AllocatedDeviceView, AllocationState, AllocationView, Attribution,
    ContainerAccount, ContainerLabels, ContainerSeries, Coverage, EnergyBook, GpuBook,
    GpuProcessView, HealthBook, HealthCount, HostAccount, HostSeries, IdOnlyReason,
    NamespaceSeries, Snapshot, SourceErrorBook, ThrottleBook, XidSeries,
};
use crate::published::{
    AgentStatus, LookupBook, NamesBook, NvmlCallBook, NvmlThreadBook, ProcessBook, Published,
    RecordsBook, StoreBook,
};

/// The boot time at which the sample is looked at: half a second after its commit.
pub(crate) const NOW: BootTime = BootTime(7_200_500_000_000);
const AT: BootTime = BootTime(7_200_000_000_000);
const WALL: WallTime = WallTime(1_790_000_000_250_000_000);
const STARTED: WallTime = WallTime(1_789_996_400_000_000_000);
const HEX: &str = "4c01db0b339cccdd1f7a3b0f2e3c4d5e6f708192a3b4c5d6e7f8091a2b3c4d5e";

/// The UUID of the sample's first GPU.
pub(crate) const FIRST_GPU: &str = "GPU-8a56a4bc-e184-a047-2620-be19fdf913d5";
const SECOND_GPU: &str = "GPU-01ec2b1f-9d2d-4f6a-8a3c-3a1f1fdc6f12";

/// The sample.
pub(crate) fn snapshot() -> Snapshot {
    let trainer = labels(
        "research",
        "train-0",
        "trainer",
        "9d3f3c1e-6f7d-4b4e-9a53-0c6a4f0b8e21",
        HEX,
    );
    let plain = labels(NONE, NONE, "jupyter", NONE, "aa55".repeat(16).as_str());
    let nameless = labels(
        UNRESOLVED,
        UNRESOLVED,
        UNRESOLVED,
        "11111111-2222-3333-4444-555555555555",
        "bb66".repeat(16).as_str(),
    );
    let held = labels(
        UNRESOLVED,
        UNRESOLVED,
        UNRESOLVED,
        NONE,
        "cc77".repeat(16).as_str(),
    );
    let named = Attribution::Named {
        source: IdentitySource::Docker,
    };
    let id_only = Attribution::IdOnly {
        reason: IdOnlyReason::NotFound,
    };
    Snapshot {
        sequence: 3_600,
        at: AT,
        wall: WALL,
        agent_started: STARTED,
        gpus: vec![
            gpu(0, FIRST_GPU, Nanos(1_800_123_456_789)),
            gpu(1, SECOND_GPU, Nanos(900_000_000_000)),
        ],
        container_series: vec![
            series(&trainer, FIRST_GPU, 1_200_000_000_001, Some(8 << 30), named),
            series(&trainer, SECOND_GPU, 0, None, named),
            series(&plain, FIRST_GPU, 300_500_000_000, Some(0), named),
            series(
                &nameless,
                FIRST_GPU,
                299_000_000_000,
                Some(512 << 20),
                id_only,
            ),
        ],
        namespace_series: vec![
            NamespaceSeries {
                namespace: "research".into(),
                gpu: FIRST_GPU.into(),
                start: STARTED,
                amounts: Amounts {
                    allocated: Nanos(3_000_000_000_000),
                    ..Amounts::busy(Nanos(1_200_000_000_001))
                },
            },
            NamespaceSeries {
                namespace: NONE.into(),
                gpu: FIRST_GPU.into(),
                start: STARTED,
                amounts: Amounts::busy(Nanos(300_500_000_000)),
            },
        ],
        host_series: vec![HostSeries {
            unit: HostUnit::from("display-manager.service"),
            gpu: FIRST_GPU.into(),
            start: STARTED,
            amounts: Amounts::busy(Nanos(10)),
        }],
        // Most of it is not published yet.
        host_accounts: vec![HostAccount {
            unit: HostUnit::from("display-manager.service"),
            gpu: FIRST_GPU.into(),
            amounts: Amounts::busy(Nanos(20_000_000_010)),
            share: 0.25,
            memory: Some(256 << 20),
        }],
        accounts: vec![
            account(&held, FIRST_GPU, 600_000_000, 0.01, Attribution::Held),
            account(&trainer, FIRST_GPU, 1_200_000_000_001, 0.625, named),
            account(&plain, FIRST_GPU, 300_500_000_000, 0.125, named),
            account(&nameless, FIRST_GPU, 299_000_000_000, 0.0, id_only),
        ],
        events: EventCounters {
            seen: 123_456,
            submitted: 123_450,
            lost: 6,
            undecodable: 0,
            skipped: 0,
        },
        agent: AgentBook {
            processes: 412,
            exited_processes: 3,
            cgroups: 87,
            table_overflows: 0,
            scans: 2,
            rescans_after_loss: 1,
            windows_not_awaited: 4,
            lists_not_awaited: 3,
            windows_after_gap: 1,
            windows_cut: 2,
            windows_refused: 3,
            containers_held: 1,
            containers_named: 2,
            containers_id_only: 1,
            named_late: 1,
            names_dropped: 4,
            labels_dropped: 1,
            identities_refused: 3,
            identities_refused_of: refused_of(IdentitySource::Docker, 3),
            cgroups_refused: 1,
            gpu_opens: 40,
            gpu_opens_unsampled: 2,
            records_given_up: 1,
            xids_elsewhere: 1,
            commits: 3_600,
            imbalances: 0,
            excesses: 0,
        },
        allocations_known: true,
        allocations: vec![
            allocation(
                "trainer",
                AllocationState::Counting,
                "GPU-8a56a4bc::1",
                true,
            ),
            allocation("sidecar", AllocationState::NoContainer, "card-7", false),
        ],
        xids: vec![XidSeries {
            gpu: FIRST_GPU.into(),
            xid: 31,
            labels: Arc::new(trainer),
            unit: HostUnit::from(NONE),
            count: 2,
            published: 2,
            start: STARTED,
            last: WallTime(WALL.0 - 90_000_000_000),
        }],
    }
}

/// What is published with the sample.
pub(crate) fn published() -> Published {
    Published {
        books: snapshot(),
        agent: agent_status(),
        blocked: None,
    }
}

/// What an agent says of it half a second later.
pub(crate) fn report(published: &Published) -> StatusReport {
    let wall = WallTime(published.books.wall.0 + 500_000_000);
    StatusReport::new(published, Clock { boot: NOW, wall })
}

/// The sources of the sample, and what they counted.
pub(crate) fn agent_status() -> AgentStatus {
    AgentStatus {
        sources: vec![
            health(SourceId::Kernel, SourceState::Up, ""),
            health(SourceId::Procfs, SourceState::Up, "/proc"),
            health(SourceId::Nvml, SourceState::Up, "libnvidia-ml.so.1"),
            health(
                SourceId::Docker,
                SourceState::Down {
                    class: "refused".into(),
                    reason: "connection refused".into(),
                    next_retry: Some(BootTime(7_203_000_000_000)),
                },
                "/var/run/docker.sock",
            ),
            health(SourceId::Otlp, SourceState::Disabled, ""),
        ],
        source_errors: vec![SourceErrorBook {
            source: SourceId::Docker,
            class: "refused".into(),
            count: 17,
            last: BootTime(7_199_000_000_000),
        }],
        names: vec![NamesBook {
            source: SourceId::Docker,
            lookups: LookupBook {
                found: 12,
                not_found: 2,
                timeout: 1,
                invalid: 0,
                error: 1,
            },
            calls: 31,
            timeouts: 1,
            invalid_replies: 0,
            disconnects: 2,
            events: 96,
            lookups_refused: 0,
            texts_changed: 0,
            labels_dropped: 3,
            kubernetes_refused: 0,
            entries_dropped: 0,
            answers_too_large: 0,
        }],
        process: Some(ProcessBook {
            cpu: Nanos::from_millis(12_340),
            resident_bytes: 30 << 20,
            virtual_bytes: 900 << 20,
            started: WallTime(1_699_992_799_000_000_000),
            open_fds: 41,
            max_fds: Some(524_288),
        }),
        store: Some(StoreBook {
            commits: 3_590,
            failures: 10,
            spent: Nanos(2_154_000_000),
            bytes: 1 << 20,
            hours_merged: 1,
            over_size: 2,
            records: Some(RecordsBook {
                unsettled: 12,
                // An hour before the sample's time.
                oldest_ended: Some(WallTime(1_789_996_400_250_000_000)),
                dropped: 3,
            }),
        }),
        nvml_calls: vec![NvmlCallBook {
            call: "nvmlDeviceGetSamples".into(),
            calls: 7_200,
            errors: 1,
            total: Nanos(720_000_000),
            longest: Nanos(4_500_000),
        }],
        nvml_threads: NvmlThreadBook {
            restarts: 1,
            abandoned: 3,
            blocked: 2,
            undelivered: 4,
        },
    }
}

fn allocation(container: &str, state: AllocationState, id: &str, known: bool) -> AllocationView {
    AllocationView {
        namespace: "research".into(),
        pod: "train-0".into(),
        container: container.into(),
        id: (state == AllocationState::Counting).then(|| HEX.into()),
        state,
        devices: vec![AllocatedDeviceView {
            resource: "nvidia.com/gpu.shared".into(),
            id: id.into(),
            is_known: known,
            gpus: known.then(|| FIRST_GPU.into()).into_iter().collect(),
            since: WallTime(1_789_999_000_000_000_000),
        }],
    }
}

/// Two processes of the sample.
pub(crate) fn processes() -> Vec<GpuProcessView> {
    vec![
        GpuProcessView {
            pid: Pid(4_711),
            start: Some(StartTicks(360_000)),
            gpu: FIRST_GPU.into(),
            owner: HEX.into(),
            inner: vec!["ee55".repeat(16).as_str().into()],
            alive: true,
            share: 0.625,
            memory: Some(8 << 30),
        },
        GpuProcessView {
            pid: Pid(99),
            start: None,
            gpu: FIRST_GPU.into(),
            owner: "(unknown_pid)".into(),
            inner: vec![],
            alive: false,
            share: 0.0,
            memory: None,
        },
    ]
}

fn labels(namespace: &str, pod: &str, container: &str, pod_uid: &str, id: &str) -> ContainerLabels {
    ContainerLabels {
        namespace: namespace.into(),
        pod: pod.into(),
        container: container.into(),
        pod_uid: pod_uid.into(),
        container_id: id.into(),
    }
}

/// What is asked for beyond the rest: two labels of which the sample's pods have one.
pub(crate) fn opt_in() -> OptIn {
    OptIn {
        pod_labels: vec!["team".to_owned(), "absent".to_owned()],
        owner_prefix: String::new(),
        ..OptIn::default()
    }
}

/// Amounts that go with so much busy time.
fn amounts(busy: u64) -> Amounts {
    Amounts {
        busy: Nanos(busy),
        engines: Engines {
            memory: Nanos(busy / 4),
            decoder: Nanos(busy / 8),
            ..Engines::default()
        },
        held: Nanos(busy * 2),
        allocated: Nanos(busy * 3),
        memory: ByteSeconds(busy.into()),
        energy: Millijoules(busy / 2_000_000),
        allocated_share: Nanos(busy * 3 / 2),
    }
}

fn series(
    labels: &ContainerLabels,
    gpu: &str,
    busy: u64,
    memory: Option<u64>,
    attribution: Attribution,
) -> ContainerSeries {
    ContainerSeries {
        labels: Arc::new(labels.clone()),
        gpu: gpu.into(),
        start: WallTime(STARTED.0 + 60_000_000_000),
        amounts: amounts(busy),
        // What was not busy shows one that was used just now, at 0.
        engines: match busy {
            0 => [Engine::Encoder].into_iter().collect(),
            _ => [Engine::Memory, Engine::Decoder].into_iter().collect(),
        },
        memory,
        memory_peak: memory.map(|bytes| bytes + 4096),
        attribution,
        image: "registry.example/team/image:1.2".into(),
        runtime: "docker".into(),
    }
}

/// A path as the kubelet has it with the cgroupfs driver, and Docker outside of Kubernetes.
fn cgroup(labels: &ContainerLabels) -> Arc<str> {
    let ContainerLabels {
        pod_uid,
        container_id,
        ..
    } = labels;
    if pod_uid.starts_with('(') {
        format!("/docker/{container_id}").into()
    } else {
        format!("/kubepods/burstable/pod{pod_uid}/{container_id}").into()
    }
}

fn account(
    labels: &ContainerLabels,
    gpu: &str,
    busy: u64,
    share: f64,
    attribution: Attribution,
) -> ContainerAccount {
    ContainerAccount {
        labels: Arc::new(labels.clone()),
        id: ContainerId(Arc::clone(&labels.container_id)),
        gpu: gpu.into(),
        attribution,
        amounts: amounts(busy),
        share,
        memory: Some(1 << 30),
        memory_peak: Some(2 << 30),
        processes_started: 3,
        image: "registry.example/team/image:1.2".into(),
        runtime: "docker".into(),
        cgroup: Some(cgroup(labels)),
        own_name: Some(format!("k8s_{}", labels.container).into()),
        first_used: Some(STARTED),
        last_used: Some(WALL),
        ended: share <= 0.0,
        runtime_labels: Arc::new([(Arc::from("team"), Arc::from("a"))].into()),
    }
}

fn gpu(index: u32, uuid: &str, busy: Nanos) -> GpuBook {
    let elapsed = Nanos::from_secs(3_600);
    let unobserved = Nanos::from_millis(1_500);
    GpuBook {
        gpu: GpuInfo {
            uuid: GpuUuid::from(uuid),
            index,
            minor: None,
            pci: Some(format!("0000:{:02x}:00", 0x17 + index * 0x10).into()),
            model: "NVIDIA H200".into(),
            driver: "550.54.15".into(),
            simulated: true,
            memory_total: Some(141 << 30),
            mig: None,
            engines: vec![Engine::Memory, Engine::Encoder, Engine::Decoder],
        },
        start: STARTED,
        elapsed,
        busy,
        idle: elapsed.minus(busy).minus(unobserved),
        unobserved: UnobservedReason::ALL
            .map(|reason| {
                let sampled = reason == UnobservedReason::SampleGap;
                (reason, if sampled { unobserved } else { Nanos::ZERO })
            })
            .to_vec(),
        unattributed: UnattributedReason::ALL
            .map(|reason| {
                (
                    reason,
                    Nanos(7 * u64::from(reason == UnattributedReason::NoRow)),
                )
            })
            .to_vec(),
        pending: Nanos::from_millis(600),
        imbalance: 0,
        excess: Nanos::ZERO,
        utilization: Some(0.75),
        coverage: Coverage {
            elapsed: Nanos::from_secs(60),
            busy: Nanos::from_secs(45),
            attributed: Nanos::from_millis(44_100),
            unattributed: vec![(UnattributedReason::NoRow, Nanos::from_millis(900))],
            unobserved: vec![(UnobservedReason::SampleGap, Nanos::from_millis(300))],
        },
        memory_used: Some(12 << 30),
        windows: 3_600,
        torn_windows: 1,
        invalid_rows: 2,
        cut: Nanos(5),
        // The second has no meter.
        energy: (index == 0).then_some(EnergyBook {
            total: Millijoules(1_000_000_001),
            idle: Millijoules(90_000_000),
            unattributed: Millijoules(500),
        }),
        accounting: (index == 0).then_some(AccountingBook {
            processes: 12,
            by_driver: Nanos::from_millis(3_400),
            by_windows: Nanos::from_millis(3_600),
        }),
        // The second's is not read.
        health: (index == 0).then(gpu_health),
        // The second's driver is one of its own.
        clocks: Some(if index == 0 {
            SampleClocks {
                samples: CallClock {
                    clock: ClockKind::Wall,
                    ahead_nanos: 0,
                },
                rows: CallClock {
                    clock: ClockKind::Wall,
                    ahead_nanos: 0,
                },
                rows_call: "nvmlDeviceGetProcessesUtilizationInfo".into(),
                empty_call: None,
                changes: 0,
            }
        } else {
            SampleClocks {
                samples: CallClock {
                    clock: ClockKind::Boot,
                    ahead_nanos: 0,
                },
                rows: CallClock {
                    clock: ClockKind::Wall,
                    ahead_nanos: -1_500_000_000,
                },
                rows_call: "nvmlDeviceGetProcessUtilization".into(),
                empty_call: Some("nvmlDeviceGetProcessesUtilizationInfo".into()),
                changes: 2,
            }
        }),
    }
}

/// A GPU that is too hot. Some figures are not offered, and the links cannot be asked.
fn gpu_health() -> HealthBook {
    use HealthFigure::*;
    let ok = [
        (Power, 612_345),
        (PowerLimit, 700_000),
        (GpuTemperature, 88),
        (SmClock, 1_410),
        (MemoryClock, 3_201),
        (SmClockMax, 1_980),
        (MemoryClockMax, 3_201),
        (ThrottleReasons, 0x44),
        (EccCorrectedVolatile, 3),
        (EccUncorrectedVolatile, 0),
        (EccCorrectedAggregate, 41),
        (EccUncorrectedAggregate, 1),
        (RowsRemappedCorrectable, 0),
        (RowsRemappedUncorrectable, 1),
        (RemapPending, 1),
        (RemapFailed, 0),
        (PagesRetiredSingleBit, 2),
        (PagesRetiredDoubleBit, 0),
        (RetirementPending, 0),
        (PcieReplays, 9),
        (RecoveryAction, 0),
        (PcieSent, 1_200),
        (PcieReceived, 3_400),
    ];
    let unsupported = [MemoryTemperature];
    let failed = [
        NvlinkCrcFlits,
        NvlinkCrcData,
        NvlinkReplays,
        NvlinkRecoveries,
    ];
    let ok = ok.map(|(figure, value)| (figure, Reading::Ok(value)));
    let unsupported = unsupported.map(|figure| (figure, Reading::Unsupported));
    let failed = failed.map(|figure| (figure, Reading::Failed));
    HealthBook {
        at: BootTime(AT.0 - 4_000_000_000),
        figures: ok.into_iter().chain(unsupported).chain(failed).collect(),
        counts: [
            (EccCorrectedVolatile, 2),
            (EccUncorrectedVolatile, 0),
            (EccCorrectedAggregate, 2),
            (EccUncorrectedAggregate, 0),
            (PcieReplays, 5),
            (NvlinkReplays, 1),
        ]
        .map(|(figure, total)| HealthCount {
            figure,
            total,
            start: STARTED,
        })
        .to_vec(),
        throttled: Some(ThrottleBook {
            start: STARTED,
            times: ThrottleReason::ALL
                .map(|reason| {
                    let is_hot = reason == ThrottleReason::HardwareThermal;
                    (reason, Nanos::from_secs(if is_hot { 45 } else { 0 }))
                })
                .to_vec(),
        }),
    }
}

fn health(source: SourceId, state: SourceState, place: &str) -> SourceHealth {
    SourceHealth {
        source,
        state,
        since: BootTime(3_600_000_000_000),
        place: place.into(),
    }
}

/// Holds `text` against `golden/<name>`; with `GPUACCT_UPDATE_GOLDEN` set, writes the file first.
pub(crate) fn golden(name: &str, text: &str) {
    let path = format!("{}/src/outputs/golden/{name}", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("GPUACCT_UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    for (line, (found, expected)) in text.lines().zip(expected.lines()).enumerate() {
        assert_eq!(found, expected, "{path}:{}", line + 1);
    }
    assert_eq!(text, expected, "{path} is shorter or longer");
}

fn refused_of(source: IdentitySource, count: u64) -> [u64; IdentitySource::ALL.len()] {
    IdentitySource::ALL.map(|of| if of == source { count } else { 0 })
}
