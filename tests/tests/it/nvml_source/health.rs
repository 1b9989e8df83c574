//! The health of GPUs and their Xid errors, as the NVML threads report them.

use gpuacct::core::input::{
    GpuHealth, HealthFigure, Reading, ThrottleReason, XidGpu, XidReport, XidReporter,
};
use nvml_wrapper::sys_exports::field_id;
use sim_nvml::Health;

use super::*;

const NOT_SUPPORTED: u32 = 3;
const UNKNOWN: u32 = 999;

/// Health that is read each second.
fn each_second() -> config::GpuHealth {
    config::GpuHealth {
        interval: Span(Duration::from_secs(1)),
        ..config::GpuHealth::default()
    }
}

impl Agent {
    async fn gpu_health(&mut self, uuid: &str) -> GpuHealth {
        loop {
            match self.next().await {
                Input::GpuHealth(health) if health.gpu.as_str() == uuid => return health,
                _ => {}
            }
        }
    }

    async fn xid(&mut self) -> XidReport {
        loop {
            if let Input::Xid(report) = self.next().await {
                return report;
            }
        }
    }
}

fn fail(rig: &Rig, call: &str, code: u32) {
    let call = call.to_owned();
    rig.scenario
        .inject(Some(0), Fault::Fail { call, code })
        .unwrap();
}

/// A GPU of which every figure is another number.
fn ill() -> Health {
    Health {
        memory_temperature: 91,
        throttle_reasons: 0x44,
        ecc_volatile: (11, 12),
        ecc_aggregate: (21, 22),
        rows_remapped: (31, 32),
        remap_pending: true,
        remap_failed: true,
        pages_retired: (41, 42),
        retirement_pending: true,
        pcie_replays: 51,
        pcie_throughput: (61, 62),
        nvlink: [71, 72, 73, 74],
        recovery_action: 2,
        field_codes: Vec::new(),
    }
}

#[test]
fn every_figure_of_the_health_is_read() {
    on_a_machine(
        "health::every_figure_of_the_health_is_read",
        Driver::R610,
        vec![GpuSpec::a100(0)],
        |rig| {
            Box::pin(async move {
                use HealthFigure::*;
                rig.scenario.health(0, ill()).unwrap();
                let mut agent = rig.start_with(config::GpuHealth {
                    pcie_throughput: true,
                    ..each_second()
                });
                let health = agent.gpu_health(&rig.uuid(0)).await;
                let expected = [
                    (Power, 55_000),
                    (PowerLimit, 400_000),
                    (GpuTemperature, 35),
                    (MemoryTemperature, 91),
                    (SmClock, 210),
                    (MemoryClock, 1_593),
                    (SmClockMax, 1_410),
                    (MemoryClockMax, 1_593),
                    (
                        ThrottleReasons,
                        0x1 | ThrottleReason::PowerCap.bit()
                            | ThrottleReason::HardwareThermal.bit(),
                    ),
                    (EccCorrectedVolatile, 11),
                    (EccUncorrectedVolatile, 12),
                    (EccCorrectedAggregate, 21),
                    (EccUncorrectedAggregate, 22),
                    (RowsRemappedCorrectable, 31),
                    (RowsRemappedUncorrectable, 32),
                    (RemapPending, 1),
                    (RemapFailed, 1),
                    (PagesRetiredSingleBit, 41),
                    (PagesRetiredDoubleBit, 42),
                    (RetirementPending, 1),
                    (PcieReplays, 51),
                    (NvlinkCrcFlits, 71),
                    (NvlinkCrcData, 72),
                    (NvlinkReplays, 73),
                    (NvlinkRecoveries, 74),
                    (RecoveryAction, 2),
                    (PcieSent, 61),
                    (PcieReceived, 62),
                ];
                let expected = expected.map(|(figure, value)| (figure, Reading::Ok(value)));
                assert_eq!(health.figures, expected.into());
                agent.stop().await;
            })
        },
    );
}

#[test]
fn what_fails_and_what_is_not_offered_is_no_zero() {
    on_a_machine(
        "health::what_fails_and_what_is_not_offered_is_no_zero",
        Driver::R610,
        vec![GpuSpec::a100(0), GpuSpec::a100(1)],
        |rig| {
            Box::pin(async move {
                use HealthFigure::*;
                let mut health = ill();
                // No sensor, and a driver that says so with a zero.
                health.memory_temperature = 0;
                for (field, code) in [
                    (field_id::NVML_FI_DEV_ECC_SBE_VOL_TOTAL, UNKNOWN),
                    (field_id::NVML_FI_DEV_ECC_SBE_AGG_TOTAL, NOT_SUPPORTED),
                    (field_id::NVML_FI_DEV_PCIE_REPLAY_COUNTER, UNKNOWN),
                ] {
                    health.field_codes.push((field, code));
                }
                rig.scenario.health(0, health).unwrap();
                fail(&rig, "nvmlDeviceGetPowerUsage", UNKNOWN);
                fail(&rig, "nvmlDeviceGetEnforcedPowerLimit", NOT_SUPPORTED);
                // Neither of the two calls for it.
                fail(&rig, "nvmlDeviceGetTemperature", NOT_SUPPORTED);
                let mut agent = rig.start_with(each_second());
                let health = agent.gpu_health(&rig.uuid(0)).await;
                for (figure, expected) in [
                    (Power, Reading::Failed),
                    (PowerLimit, Reading::Unsupported),
                    (GpuTemperature, Reading::Unsupported),
                    (MemoryTemperature, Reading::Unsupported),
                    (EccCorrectedVolatile, Reading::Failed),
                    (EccUncorrectedVolatile, Reading::Ok(12)),
                    (EccCorrectedAggregate, Reading::Unsupported),
                    (PcieReplays, Reading::Failed),
                    (NvlinkReplays, Reading::Ok(73)),
                ] {
                    assert_eq!(health.figures[&figure], expected, "{figure:?}");
                }
                assert!(!health.figures.contains_key(&PcieSent), "not asked for");
                // What fails on one GPU is there on the other. Nothing of this is a fault of the source.
                let well = agent.gpu_health(&rig.uuid(1)).await;
                assert_eq!(well.figures[&Power], Reading::Ok(55_000));
                assert_eq!(well.figures[&PcieReplays], Reading::Ok(0));
                agent.up().await;
                agent.stop().await;
            })
        },
    );
}

#[test]
fn an_old_driver_has_fewer_figures() {
    on_a_machine(
        "health::an_old_driver_has_fewer_figures",
        Driver::R470,
        vec![GpuSpec::a100(0)],
        |rig| {
            Box::pin(async move {
                use HealthFigure::*;
                rig.scenario.health(0, ill()).unwrap();
                let mut agent = rig.start_with(each_second());
                let health = agent.gpu_health(&rig.uuid(0)).await;
                assert_eq!(health.figures[&RecoveryAction], Reading::Unsupported);
                assert_eq!(health.figures[&RemapFailed], Reading::Ok(1));
                assert_eq!(health.figures[&GpuTemperature], Reading::Ok(35));
                let reasons = health.figures[&ThrottleReasons];
                assert_eq!(reasons, Reading::Ok(0x45), "by the older call");
                agent.stop().await;
            })
        },
    );
}

#[test]
fn the_newer_call_for_temperatures_is_used_once_the_older_is_gone() {
    on_a_machine(
        "health::the_newer_call_for_temperatures_is_used_once_the_older_is_gone",
        Driver::R610,
        vec![GpuSpec::a100(0)],
        |rig| {
            Box::pin(async move {
                // Deprecated, as from CUDA 14 on.
                let call = "nvmlDeviceGetTemperature".to_owned();
                let fault = Fault::FailExactly { call, code: 26 };
                rig.scenario.inject(Some(0), fault).unwrap();
                let mut agent = rig.start_with(each_second());
                let health = agent.gpu_health(&rig.uuid(0)).await;
                let temperature = health.figures[&HealthFigure::GpuTemperature];
                assert_eq!(temperature, Reading::Ok(35));
                agent.stop().await;
            })
        },
    );
}

#[test]
fn slow_queries_of_the_health_cost_no_window() {
    on_a_machine(
        "health::slow_queries_of_the_health_cost_no_window",
        Driver::R610,
        vec![GpuSpec::a100(0)],
        |rig| {
            Box::pin(async move {
                let fault = Fault::Delay {
                    call: "nvmlDeviceGetFieldValues".to_owned(),
                    ms: 400,
                };
                rig.scenario.inject(Some(0), fault).unwrap();
                let mut agent = rig.start_with(each_second());
                // Six groups of field values take 2.4 s, and a window is due each half second.
                let mut windows = 0;
                let health = loop {
                    match agent.next().await {
                        Input::Window(window) => {
                            windows += 1;
                            assert_eq!(window.unobserved, [], "{window:?}");
                        }
                        Input::GpuHealth(health) => break health,
                        _ => {}
                    }
                };
                assert!(windows >= 3, "{windows} windows during one reading");
                let failed = health.figures.values().any(|of| *of == Reading::Failed);
                assert!(!failed, "{health:?}");
                agent.up().await;
                agent.stop().await;
            })
        },
    );
}

#[test]
fn a_query_of_the_health_that_does_not_return_stops_no_other_gpu() {
    on_a_machine(
        "health::a_query_of_the_health_that_does_not_return_stops_no_other_gpu",
        Driver::R610,
        vec![GpuSpec::a100(0), GpuSpec::a100(1)],
        |rig| {
            Box::pin(async move {
                let mut agent = rig.start_with(each_second());
                agent.gpu_health(&rig.uuid(0)).await;
                let fault = Fault::Delay {
                    call: "nvmlDeviceGetFieldValues".to_owned(),
                    ms: 3_600_000,
                };
                let fault = rig.scenario.inject(Some(0), fault).unwrap();
                let reason = agent.down("timeout").await;
                assert!(reason.contains("nvmlDeviceGetFieldValues("), "{reason}");
                agent.window(&rig.uuid(1)).await;
                agent.gpu_health(&rig.uuid(1)).await;
                rig.scenario.clear(fault).unwrap();
                agent.gpu_health(&rig.uuid(0)).await;
                agent.up().await;
                agent.stop().await;
            })
        },
    );
}

/// Names of this process's threads.
fn threads() -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let names = tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")));
    // A thread that ends meanwhile has no name any more.
    names
        .filter_map(Result::ok)
        .map(|name| name.trim().to_owned())
        .collect()
}

#[test]
fn nvml_s_xid_errors_are_reported_and_the_thread_ends_with_the_source() {
    on_a_machine(
        "health::nvml_s_xid_errors_are_reported_and_the_thread_ends_with_the_source",
        Driver::R550,
        vec![GpuSpec::a100(0), GpuSpec::a100(1)],
        |rig| {
            Box::pin(async move {
                let mut agent = rig.start();
                agent.window(&rig.uuid(1)).await;
                while agent.registered().await < 2 {
                    agent.window(&rig.uuid(1)).await;
                }
                let before = clock::now().boot;
                rig.scenario.xid(1, 79).unwrap();
                let report = agent.xid().await;
                assert!((before..=clock::now().boot).contains(&report.at));
                let expected = XidReport {
                    at: report.at,
                    reporter: XidReporter::Nvml,
                    gpu: XidGpu::Uuid(rig.uuid(1).as_str().into()),
                    xid: 79,
                    pid: None,
                };
                assert_eq!(report, expected);
                // A GPU that has fallen off the bus does not say its name any more.
                let lost = Fault::Fail {
                    call: "nvmlDeviceGetUUID".to_owned(),
                    code: 15,
                };
                let fault = rig.scenario.inject(Some(1), lost).unwrap();
                rig.scenario.xid(1, 79).unwrap();
                let report = agent.xid().await;
                assert_eq!(report.gpu, XidGpu::Uuid(rig.uuid(1).as_str().into()));
                rig.scenario.clear(fault).unwrap();
                let name = "nvml-events".to_owned();
                assert!(threads().contains(&name), "{:?}", threads());

                // The driver is loaded anew: another session, with another set.
                let uninitialized = Fault::Fail {
                    call: "nvmlDeviceGetSamples".to_owned(),
                    code: 1,
                };
                let fault = rig.scenario.inject(None, uninitialized).unwrap();
                agent.down("uninitialized").await;
                rig.scenario.clear(fault).unwrap();
                agent.up().await;
                while agent.registered().await < 4 {
                    agent.window(&rig.uuid(0)).await;
                }
                rig.scenario.xid(0, 48).unwrap();
                assert_eq!(agent.xid().await.xid, 48);

                let figures = agent.handle.watchdog();
                agent.stop().await;
                // The kernel lists a thread for a moment after it was joined, and tells nobody when it is
                // gone.
                while threads().contains(&name) {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                let figures = figures.figures();
                let calls = |call| figures[call].calls;
                assert_eq!(calls("nvmlEventSetCreate"), 2);
                assert_eq!(calls("nvmlEventSetFree"), 2);
                assert_eq!(figures["nvmlEventSetWait_v2"].total, Nanos::ZERO);
                let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
                assert!(!maps.contains("libnvidia-ml"), "the library is closed");
            })
        },
    );
}

impl Agent {
    /// How many GPUs have been registered for events.
    async fn registered(&mut self) -> u64 {
        let figures = self.handle.watchdog().figures();
        let registered = figures.get("nvmlDeviceRegisterEvents");
        registered.map_or(0, |figures| figures.calls)
    }
}

#[test]
fn without_xid_events_there_is_no_thread_for_them() {
    on_a_machine(
        "health::without_xid_events_there_is_no_thread_for_them",
        Driver::R550,
        vec![GpuSpec::a100(0)],
        |rig| {
            Box::pin(async move {
                let mut agent = rig.start_with(config::GpuHealth {
                    enabled: false,
                    xid_events: false,
                    ..config::GpuHealth::default()
                });
                for _ in 0..3 {
                    agent.window(&rig.uuid(0)).await;
                }
                let figures = agent.handle.watchdog().figures();
                assert!(!figures.contains_key("nvmlEventSetCreate"), "{figures:?}");
                assert!(
                    !figures.contains_key("nvmlDeviceGetPowerUsage"),
                    "{figures:?}"
                );
                agent.stop().await;
            })
        },
    );
}
