//! The built library, driven through nvml-wrapper as gpuacct drives it, and through bare pointers
//! where the wrapper hides what matters. Every test has a GPU of its own.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::ffi::c_char;
use std::mem::{offset_of, size_of};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError, mpsc};
use std::{ptr, thread};

use nvml_wrapper::Nvml;
use nvml_wrapper::enum_wrappers::device::Sampling;
use nvml_wrapper::enums::device::{SampleValue, UsedGpuMemory};
use nvml_wrapper::enums::gpm::GpmMetricId;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::gpm::gpm_metrics_get;
use nvml_wrapper_sys::bindings::*;
use sim_nvml::library::{self, Driver};
use sim_nvml::{
    Event, Fault, GpuSpec, Instance, Job, JobId, Kind, Mig, RING_CAPACITY, Scenario, Script,
};

const SECOND: u64 = 1_000_000;
/// Which GPU is whose.
const UTILIZATION: u32 = 0;
const LISTS: u32 = 1;
const IDLE: u32 = 2;
const ACCOUNTING: u32 = 3;
const LOST: u32 = 4;
const BLOCKED: u32 = 5;
const JUNK: u32 = 6;
const INSTANCES: u32 = 7;
const EVENTS: u32 = 8;
const GROWING: u32 = 9;
const DIVIDED: u32 = 10;
const GPUS: u32 = 11;

struct Rig {
    scenario: Scenario,
    r550: PathBuf,
    r470: PathBuf,
    r610: PathBuf,
    created_us: u64,
}

/// Where the machine of this process is. It is there until the process ends: the next one removes
/// what those before it left.
fn state_dir() -> PathBuf {
    const NAME: &str = "sim-nvml-abi-";
    let parent = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    for entry in std::fs::read_dir(&parent).unwrap().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(NAME));
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            // Another process may be at it, too.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
    let own = parent.join(format!("{NAME}{}", std::process::id()));
    // Of one that had this pid.
    let _ = std::fs::remove_dir_all(&own);
    own
}

/// A machine that has been running for a minute.
fn rig() -> &'static Rig {
    static RIG: OnceLock<Rig> = OnceLock::new();
    RIG.get_or_init(|| {
        let dir = state_dir();
        let [r470, r550, r610] = [Driver::R470, Driver::R550, Driver::R610]
            .map(|driver| library::build(driver).unwrap());
        let mut gpus: Vec<GpuSpec> = (0..GPUS).map(GpuSpec::a100).collect();
        gpus[INSTANCES as usize].mig = Mig::On;
        let parts = vec![Instance::whole(1, 3, 40), Instance::whole(2, 2, 20)];
        gpus[DIVIDED as usize] = GpuSpec::h100_divided(DIVIDED, parts);
        gpus[IDLE as usize].mig = Mig::Incapable;
        gpus[ACCOUNTING as usize].accounting = true;
        let created_us = sim_nvml::wall_us() - 60 * SECOND;
        let start = |script: Script, at_us, id, pid, work| {
            script.at(
                at_us,
                Event::Start {
                    job: JobId(u64::MAX - id),
                    pid,
                    inner_pid: None,
                    work,
                },
            )
        };
        let job = |gpu, share| Job {
            gpu,
            share,
            memory_bytes: 1 << 30,
            ..Job::default()
        };
        let begin = created_us + SECOND;
        let mut script = Script::new(created_us, gpus, 42);
        script = start(script, begin, 0, 4_001, job(UTILIZATION, 0.75));
        script = start(script, begin, 1, 4_002, job(UTILIZATION, 0.25));
        script = start(
            script,
            begin,
            2,
            4_101,
            Job {
                memory_bytes: 2 << 30,
                ..job(LISTS, 0.1)
            },
        );
        script = start(
            script,
            begin,
            3,
            4_102,
            Job {
                kind: Kind::Graphics,
                ..job(LISTS, 0.1)
            },
        );
        script = start(
            script,
            begin,
            4,
            4_103,
            Job {
                kind: Kind::Mps,
                ..job(LISTS, 0.1)
            },
        );
        script = start(
            script,
            begin,
            5,
            4_301,
            Job {
                memory_bytes: 5 << 30,
                ..job(ACCOUNTING, 1.0)
            },
        );
        script = start(script, begin, 6, 4_302, job(ACCOUNTING, 1.0));
        script = script.at(
            begin + 10 * SECOND,
            Event::Stop {
                job: JobId(u64::MAX - 5),
            },
        );
        script = start(script, begin, 7, 4_601, job(JUNK, 1.0));
        script = start(script, begin, 8, 4_701, job(INSTANCES, 1.0));
        script = start(
            script,
            begin,
            12,
            5_001,
            Job {
                instance: Some((1, 0)),
                ..job(DIVIDED, 0.25)
            },
        );
        for (id, pid) in [(9, 4_901), (10, 4_902), (11, 4_903)] {
            script = start(
                script,
                begin,
                id,
                pid,
                Job {
                    kind: Kind::Mps,
                    ..job(GROWING, 0.3)
                },
            );
        }
        let scenario = script.create(dir).unwrap();
        // SAFETY: every test comes through here before it loads a library, so no other thread of
        // this process reads the environment at this moment except through std, which locks it.
        unsafe { std::env::set_var(sim_nvml::STATE_DIR, scenario.dir()) };
        Rig {
            scenario,
            r550,
            r470,
            r610,
            created_us,
        }
    })
}

fn nvml() -> Nvml {
    Nvml::builder()
        .lib_path(rig().r550.as_os_str())
        .init()
        .unwrap()
}

macro_rules! same_signatures {
    ($check:ident; $(fn $name:ident($($argument:ident: $type:ty),*) -> $answer:ty;)*) => {
        /// Compiles only if the table's signatures are nvml-wrapper-sys'; counts what a library has.
        fn $check(lib: &NvmlLib) -> (usize, usize) {
            let found = [$({
                let symbol: Option<&unsafe extern "C" fn($($type),*) -> $answer> = lib.$name.as_ref().ok();
                symbol.is_some()
            }),*];
            (found.iter().filter(|found| **found).count(), found.len())
        }
    };
}

macro_rules! r470 { ($($row:tt)*) => { same_signatures! { symbols_of_r470; $($row)* } } }
macro_rules! r510 { ($($row:tt)*) => { same_signatures! { symbols_of_r510; $($row)* } } }
macro_rules! r550 { ($($row:tt)*) => { same_signatures! { symbols_of_r550; $($row)* } } }
sim_nvml::symbols_r470!(r470);
sim_nvml::symbols_r510!(r510);
sim_nvml::symbols_r550!(r550);

#[test]
fn each_driver_exports_its_symbols_with_the_bindings_signatures() {
    let load = |path: &PathBuf| {
        // SAFETY: the simulated library has no initialisers.
        unsafe { NvmlLib::new(path) }.unwrap()
    };
    let count = |lib: &NvmlLib| {
        [
            symbols_of_r470(lib),
            symbols_of_r510(lib),
            symbols_of_r550(lib),
        ]
    };
    let (old, usual, new) = (load(&rig().r470), load(&rig().r550), load(&rig().r610));
    for ((found, all), lacks) in count(&old).into_iter().zip([false, true, true]) {
        assert_eq!(found, if lacks { 0 } else { all }, "R470");
    }
    for lib in [&usual, &new] {
        assert!(count(lib).iter().all(|(found, all)| found == all));
        assert!(lib.nvmlInit_v2.is_ok() && lib.nvmlInit.is_ok() && lib.nvmlInitWithFlags.is_ok());
    }
    type StatsV2 =
        unsafe extern "C" fn(nvmlDevice_t, *mut sim_nvml::abi::calls::AccountingStatsV2) -> u32;
    let stats_v2 = |lib: &NvmlLib| {
        // SAFETY: the symbol, if there is one, has this signature.
        unsafe {
            lib.__library
                .get::<StatsV2>(b"nvmlDeviceGetAccountingStats_v2\0")
        }
        .is_ok()
    };
    assert!(stats_v2(&new) && !stats_v2(&usual));
    assert!(new.nvmlDeviceGetTemperatureV.is_ok() && usual.nvmlDeviceGetTemperatureV.is_err());
}

#[test]
fn structs_have_the_header_s_layout() {
    macro_rules! layout {
        ($type:ty, $size:literal, $($field:ident at $offset:literal),*) => {
            assert_eq!(size_of::<$type>(), $size, stringify!($type));
            $(assert_eq!(offset_of!($type, $field), $offset, concat!(stringify!($type), ".", stringify!($field)));)*
        };
    }
    // Sizes and offsets as a C compiler has them for nvml.h of CUDA 13.
    layout!(nvmlMemory_v2_t, 40, version at 0, total at 8, reserved at 16, free at 24, used at 32);
    layout!(nvmlMemory_t, 24, total at 0, free at 8, used at 16);
    layout!(nvmlProcessInfo_v1_t, 16, pid at 0, usedGpuMemory at 8);
    layout!(nvmlProcessInfo_t, 24, pid at 0, usedGpuMemory at 8, gpuInstanceId at 16, computeInstanceId at 20);
    layout!(nvmlProcessDetail_v1_t, 32, usedGpuCcProtectedMemory at 24);
    layout!(nvmlProcessDetailList_t, 24, version at 0, mode at 4, numProcArrayEntries at 8, procArray at 16);
    layout!(nvmlProcessUtilizationSample_t, 32, pid at 0, timeStamp at 8, smUtil at 16, memUtil at 20, encUtil at 24, decUtil at 28);
    layout!(nvmlProcessUtilizationInfo_v1_t, 40, timeStamp at 0, pid at 8, smUtil at 12, jpgUtil at 28, ofaUtil at 32);
    layout!(nvmlProcessesUtilizationInfo_t, 24, version at 0, processSamplesCount at 4, lastSeenTimeStamp at 8, procUtilArray at 16);
    layout!(nvmlAccountingStats_t, 56, gpuUtilization at 0, memoryUtilization at 4, maxMemoryUsage at 8, time at 16, startTime at 24, isRunning at 32, reserved at 36);
    layout!(sim_nvml::abi::calls::AccountingStatsV2, 64, pid at 0, isRunning at 4, gpuUtilization at 8, memoryUtilization at 12, maxMemoryUsage at 16, sampleCount at 24, sumGpuUtil at 32, sumFbUtil at 40, time at 48, startTime at 56);
    layout!(nvmlPciInfo_t, 68, busIdLegacy at 0, domain at 16, bus at 20, device at 24, pciDeviceId at 28, pciSubSystemId at 32, busId at 36);
    layout!(nvmlSample_t, 16, timeStamp at 0, sampleValue at 8);
    layout!(nvmlFieldValue_t, 40, fieldId at 0, timestamp at 8, latencyUsec at 16, valueType at 24, nvmlReturn at 28, value at 32);
    layout!(nvmlEventData_t, 32, device at 0, eventType at 8, eventData at 16, gpuInstanceId at 24);
}

/// Held by whoever loses a GPU and by whoever looks at all of them.
static ALL_OF_THEM: Mutex<()> = Mutex::new(());

#[test]
fn devices_are_found_by_index_uuid_and_bus() {
    let _held = ALL_OF_THEM.lock().unwrap_or_else(PoisonError::into_inner);
    let nvml = nvml();
    assert_eq!(nvml.device_count().unwrap(), GPUS);
    assert_eq!(nvml.sys_driver_version().unwrap(), "550.163.01");
    for index in 0..GPUS {
        let spec = &rig().scenario.machine().gpus[index as usize];
        let device = nvml.device_by_index(index).unwrap();
        assert_eq!(
            (device.uuid().unwrap(), device.name().unwrap()),
            (spec.uuid.clone(), spec.name.clone())
        );
        assert_eq!(
            nvml.device_by_uuid(spec.uuid.as_str())
                .unwrap()
                .index()
                .unwrap(),
            index
        );
        let bus = device.pci_info().unwrap().bus_id;
        assert_eq!(
            nvml.device_by_pci_bus_id(bus.as_str())
                .unwrap()
                .index()
                .unwrap(),
            index
        );
    }
    assert!(matches!(
        nvml.device_by_index(GPUS),
        Err(NvmlError::InvalidArg)
    ));
    assert!(matches!(
        nvml.device_by_uuid("GPU-none"),
        Err(NvmlError::NotFound)
    ));
}

#[test]
fn junk_pointers_and_short_buffers_are_refused() {
    let nvml = nvml();
    // SAFETY: the handle is passed back to the library that made it, while it is loaded.
    let handle = unsafe { nvml.device_by_index(IDLE).unwrap().handle() };
    let uuid = nvml.lib().nvmlDeviceGetUUID.as_ref().unwrap();
    let mut buffer = [1 as c_char; 96];
    // SAFETY: pointers are null or valid for the length given; handles are never dereferenced.
    unsafe {
        assert_eq!(uuid(handle, ptr::null_mut(), 96), 2);
        assert_eq!(
            uuid(handle, buffer.as_mut_ptr(), 40),
            7,
            "a uuid has 40 characters and a NUL"
        );
        assert_eq!(buffer[0], 1);
        assert_eq!(uuid(handle, buffer.as_mut_ptr(), 41), 0);
        assert_eq!((buffer[40], buffer[41]), (0, 1));
        for bad in [
            ptr::null_mut(),
            ptr::without_provenance_mut(1),
            handle.byte_add(1),
            handle.byte_add(8 * 99),
        ] {
            assert_eq!(uuid(bad, buffer.as_mut_ptr(), 96), 2);
        }
    }
}

#[test]
fn utilization_rows_are_means_of_the_samples_since_last_seen() {
    let nvml = nvml();
    let device = nvml.device_by_index(UTILIZATION).unwrap();
    // A window that ends between two calls is torn: take the newest sample before and after.
    let (samples, rows, last_seen) = loop {
        let samples = device.samples(Sampling::GpuUtilization, None).unwrap();
        let last_seen = samples[samples.len() - 31].timestamp;
        let rows = device.process_utilization_stats(last_seen).unwrap();
        if device
            .samples(Sampling::GpuUtilization, None)
            .unwrap()
            .last()
            .unwrap()
            .timestamp
            == samples.last().unwrap().timestamp
        {
            break (samples, rows, last_seen);
        }
    };
    assert!((RING_CAPACITY - 1..=RING_CAPACITY).contains(&samples.len()));
    assert!(
        samples
            .iter()
            .all(|sample| sample.value == SampleValue::U32(100)),
        "both together use all of it"
    );
    let mut shares: Vec<(u32, u32)> = rows.iter().map(|row| (row.pid, row.sm_util)).collect();
    shares.sort_unstable();
    assert_eq!(
        shares.iter().map(|(pid, _)| *pid).collect::<Vec<_>>(),
        [4_001, 4_002]
    );
    let sum = shares[0].1 + shares[1].1;
    assert!(
        (99..=100).contains(&sum),
        "two floored shares of a busy GPU: {shares:?}"
    );
    assert!(rows.iter().all(|row| row.timestamp > last_seen));
    assert_eq!(
        rows.iter().map(|row| row.timestamp).max(),
        Some(samples.last().unwrap().timestamp)
    );

    let future = samples.last().unwrap().timestamp + 3_600 * SECOND;
    assert!(matches!(
        device.process_utilization_stats(future),
        Err(NvmlError::NotFound)
    ));
    let idle = nvml.device_by_index(IDLE).unwrap();
    assert!(matches!(
        idle.process_utilization_stats(None),
        Err(NvmlError::NotFound)
    ));
    assert!(
        idle.samples(Sampling::GpuUtilization, None)
            .unwrap()
            .iter()
            .all(|sample| sample.value == SampleValue::U32(0))
    );
}

#[test]
fn a_size_query_of_utilization_answers_a_capacity() {
    let nvml = nvml();
    let query = nvml.lib().nvmlDeviceGetProcessUtilization.as_ref().unwrap();
    // SAFETY: the handle is passed back to the library that made it, while it is loaded.
    let (busy, idle) = unsafe {
        (
            nvml.device_by_index(UTILIZATION).unwrap().handle(),
            nvml.device_by_index(IDLE).unwrap().handle(),
        )
    };
    // SAFETY: all zeroes is a value of this struct.
    let mut rows: [nvmlProcessUtilizationSample_t; 2] = unsafe { std::mem::zeroed() };
    let mut count = 0;
    // SAFETY: the pointers are null or valid, and `count` never exceeds the array's length with one.
    unsafe {
        assert_eq!(
            (query(busy, ptr::null_mut(), &raw mut count, 0), count),
            (7, 4_096)
        );
        count = 0;
        assert_eq!(
            (query(idle, ptr::null_mut(), &raw mut count, 0), count),
            (6, 0)
        );
        count = 1;
        assert_eq!(
            (query(busy, rows.as_mut_ptr(), &raw mut count, 0), count),
            (7, 2)
        );
        assert_eq!(rows[0].pid, 0, "nothing is written into a short array");
        count = 2;
        assert_eq!(
            (query(busy, rows.as_mut_ptr(), &raw mut count, 0), count),
            (0, 2)
        );
        assert_eq!(query(busy, rows.as_mut_ptr(), ptr::null_mut(), 0), 2);
    }
    let info = nvml
        .lib()
        .nvmlDeviceGetProcessesUtilizationInfo
        .as_ref()
        .unwrap();
    // SAFETY: all zeroes is a value of these structs.
    let (mut rows, mut ask): (
        [nvmlProcessUtilizationInfo_v1_t; 2],
        nvmlProcessesUtilizationInfo_t,
    ) = unsafe { std::mem::zeroed() };
    ask.processSamplesCount = 2;
    ask.procUtilArray = rows.as_mut_ptr();
    // SAFETY: the array has the two rows that the struct says.
    unsafe {
        assert_eq!(info(busy, &raw mut ask), 25, "no version");
        ask.version = 0x0100_0018;
        assert_eq!((info(busy, &raw mut ask), ask.processSamplesCount), (0, 2));
    }
    assert_eq!(
        rows[0].smUtil + rows[1].smUtil + 1,
        100 + u32::from(rows[0].smUtil + rows[1].smUtil == 100)
    );
}

#[test]
fn process_lists_have_their_kinds_and_memory() {
    let nvml = nvml();
    let device = nvml.device_by_index(LISTS).unwrap();
    let list = |list: Vec<nvml_wrapper::struct_wrappers::device::ProcessInfo>| {
        assert!(
            list.iter()
                .all(|row| row.gpu_instance_id.is_none() && row.compute_instance_id.is_none())
        );
        list.into_iter()
            .map(|row| (row.pid, row.used_gpu_memory))
            .collect::<Vec<_>>()
    };
    let gib = |count: u64| UsedGpuMemory::Used(count << 30);
    let compute = [(4_101, gib(2)), (4_103, gib(1))];
    assert_eq!(
        list(device.running_compute_processes().unwrap()),
        compute,
        "an MPS client is in two lists"
    );
    assert_eq!(
        list(device.running_compute_processes_v2().unwrap()),
        compute
    );
    assert_eq!(
        list(device.running_graphics_processes().unwrap()),
        [(4_102, gib(1))]
    );
    assert_eq!(
        list(device.mps_running_compute_processes().unwrap()),
        [(4_103, gib(1))]
    );
    assert_eq!(
        list(
            nvml.device_by_index(IDLE)
                .unwrap()
                .running_compute_processes()
                .unwrap()
        ),
        []
    );

    let memory = device.memory_info().unwrap();
    assert_eq!(
        (memory.used, memory.reserved, memory.total),
        (4 << 30, 512 << 20, 80 << 30)
    );
    assert_eq!(memory.free + memory.used + memory.reserved, memory.total);
}

#[test]
fn size_queries_of_lists_and_old_rows_are_the_driver_s() {
    let nvml = nvml();
    let (v1, v2) = (
        nvml.lib()
            .nvmlDeviceGetComputeRunningProcesses
            .as_ref()
            .unwrap(),
        nvml.lib().nvmlDeviceGetMemoryInfo_v2.as_ref().unwrap(),
    );
    // SAFETY: the handle is passed back to the library that made it, while it is loaded.
    let (busy, idle) = unsafe {
        (
            nvml.device_by_index(LISTS).unwrap().handle(),
            nvml.device_by_index(IDLE).unwrap().handle(),
        )
    };
    // SAFETY: all zeroes is a value of this struct.
    let (mut rows, mut memory): ([nvmlProcessInfo_v1_t; 3], nvmlMemory_v2_t) =
        unsafe { std::mem::zeroed() };
    let mut count = 0;
    // SAFETY: the pointers are null or valid, and `count` never exceeds the array's length with one.
    unsafe {
        assert_eq!(
            (v1(busy, &raw mut count, ptr::null_mut()), count),
            (7, 2),
            "the number of rows"
        );
        assert_eq!(
            (v1(idle, &raw mut count, ptr::null_mut()), count),
            (0, 0),
            "none: nothing to size"
        );
        count = 1;
        assert_eq!((v1(busy, &raw mut count, rows.as_mut_ptr()), count), (7, 2));
        count = 3;
        assert_eq!((v1(busy, &raw mut count, rows.as_mut_ptr()), count), (0, 2));
        assert_eq!(
            rows.map(|row| (row.pid, row.usedGpuMemory)),
            [(4_101, 2 << 30), (4_103, 1 << 30), (0, 0)]
        );
        memory.version = 2;
        assert_eq!(v2(busy, &raw mut memory), 25);
        memory.version = 0x0200_0028;
        assert_eq!(v2(busy, &raw mut memory), 0);
    }
}

#[test]
fn accounting_tells_of_the_living_and_the_dead() {
    let nvml = nvml();
    let device = nvml.device_by_index(ACCOUNTING).unwrap();
    assert!(device.is_accounting_enabled().unwrap());
    assert_eq!(device.accounting_buffer_size().unwrap(), 4_000);
    let mut pids = device.accounting_pids().unwrap();
    pids.sort_unstable();
    assert_eq!(pids, [4_301, 4_302]);
    let dead = device.accounting_stats_for(4_301).unwrap();
    assert_eq!(
        (dead.is_running, dead.max_memory_usage, dead.time),
        (false, Some(5 << 30), 10_000)
    );
    assert_eq!(dead.start_time, rig().created_us + SECOND);
    assert!(
        (30..=70).contains(&dead.gpu_utilization.unwrap()),
        "half of an overbooked GPU"
    );
    let alive = device.accounting_stats_for(4_302).unwrap();
    assert_eq!((alive.is_running, alive.time), (true, 0));
    assert!(matches!(
        device.accounting_stats_for(9),
        Err(NvmlError::NotFound)
    ));
    let off = nvml.device_by_index(UTILIZATION).unwrap();
    assert!(!off.is_accounting_enabled().unwrap());
    assert!(matches!(
        off.accounting_stats_for(4_001),
        Err(NvmlError::NotSupported)
    ));
}

#[test]
fn a_lost_gpu_is_lost_until_it_is_found_again_and_the_others_are_not() {
    let _held = ALL_OF_THEM.lock().unwrap_or_else(PoisonError::into_inner);
    let nvml = nvml();
    let device = nvml.device_by_index(LOST).unwrap();
    let fault = rig()
        .scenario
        .inject(Some(LOST), Fault::gpu_is_lost())
        .unwrap();
    assert!(matches!(device.memory_info(), Err(NvmlError::GpuLost)));
    assert!(matches!(
        nvml.device_by_index(LOST),
        Err(NvmlError::GpuLost)
    ));
    assert!(nvml.device_by_index(IDLE).unwrap().memory_info().is_ok());
    rig().scenario.clear(fault).unwrap();
    assert!(device.memory_info().is_ok());
    let code = Fault::Fail {
        call: "nvmlDeviceGetMemoryInfo".to_owned(),
        code: 27,
    };
    let fault = rig().scenario.inject(Some(LOST), code).unwrap();
    assert!(matches!(
        device.memory_info(),
        Err(NvmlError::UnexpectedVariant(27))
    ));
    assert!(device.uuid().is_ok());
    rig().scenario.clear(fault).unwrap();
}

#[test]
fn a_blocked_call_returns_when_the_fault_is_cleared_and_holds_nobody_else() {
    let nvml = nvml();
    let delay = Fault::Delay {
        call: "nvmlDeviceGetUtilizationRates".to_owned(),
        ms: 3_600_000,
    };
    let fault = rig().scenario.inject(Some(BLOCKED), delay).unwrap();
    let (tell, told) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(|| {
            let device = nvml.device_by_index(BLOCKED).unwrap();
            tell.send(None).unwrap();
            tell.send(Some(device.utilization_rates().map(|rates| rates.gpu)))
                .unwrap();
        });
        assert!(told.recv().unwrap().is_none());
        for _ in 0..50 {
            assert!(nvml.device_by_index(BLOCKED).unwrap().memory_info().is_ok());
        }
        assert!(matches!(told.try_recv(), Err(mpsc::TryRecvError::Empty)));
        rig().scenario.clear(fault).unwrap();
        assert!(matches!(told.recv().unwrap(), Some(Ok(0))));
    });
}

#[test]
fn junk_rows_come_beside_the_true_one_and_memory_can_be_unknown() {
    let nvml = nvml();
    let device = nvml.device_by_index(JUNK).unwrap();
    let last_seen = device.samples(Sampling::GpuUtilization, None).unwrap()[40].timestamp;
    assert_eq!(
        device.process_utilization_stats(last_seen).unwrap().len(),
        1
    );
    let junk = rig().scenario.inject(Some(JUNK), Fault::JunkRows).unwrap();
    let missing = rig()
        .scenario
        .inject(Some(JUNK), Fault::MissingMemory)
        .unwrap();
    let rows = device.process_utilization_stats(last_seen).unwrap();
    assert_eq!(rows.len(), 100);
    assert!(
        rows.iter()
            .any(|row| row.pid == 4_601 && row.sm_util == 100 && row.timestamp > last_seen)
    );
    assert!(rows.iter().any(|row| row.sm_util > 100));
    assert!(rows.iter().any(|row| row.pid == 0 && row.timestamp > 0));
    assert!(
        rows.iter()
            .any(|row| row.pid == 4_601 && row.timestamp == 0)
    );
    assert!(rows.iter().any(|row| row.timestamp == last_seen));
    let list = device.running_compute_processes().unwrap();
    assert_eq!(list[0].used_gpu_memory, UsedGpuMemory::Unavailable);
    rig().scenario.clear(junk).unwrap();
    rig().scenario.clear(missing).unwrap();
    assert_eq!(
        device.process_utilization_stats(last_seen).unwrap().len(),
        1
    );
}

#[test]
fn rows_can_grow_between_the_two_calls() {
    let nvml = nvml();
    let device = nvml.device_by_index(GROWING).unwrap();
    assert_eq!(device.mps_running_compute_processes().unwrap().len(), 3);
    let fault = rig()
        .scenario
        .inject(Some(GROWING), Fault::GrowingRows { rows: 1 })
        .unwrap();
    // The wrapper leaves no headroom here, so it cannot but fail; for the other lists it does.
    assert!(matches!(
        device.mps_running_compute_processes(),
        Err(NvmlError::InsufficientSize(_))
    ));
    assert_eq!(device.running_compute_processes().unwrap().len(), 3);
    assert!(matches!(
        device.process_utilization_stats(None),
        Err(NvmlError::InsufficientSize(_))
    ));
    rig().scenario.clear(fault).unwrap();
}

#[test]
fn instances_take_per_process_figures_away() {
    let nvml = nvml();
    let device = nvml.device_by_index(INSTANCES).unwrap();
    assert!(matches!(
        device.process_utilization_stats(None),
        Err(NvmlError::NotSupported)
    ));
    assert!(matches!(
        device.utilization_rates(),
        Err(NvmlError::NotSupported)
    ));
    assert!(matches!(
        device.samples(Sampling::GpuUtilization, None),
        Err(NvmlError::NotSupported)
    ));
    assert!(matches!(
        device.accounting_pids(),
        Err(NvmlError::NotSupported)
    ));
    assert_eq!(device.running_compute_processes().unwrap().len(), 1);
    assert_eq!(
        (
            device.mig_mode().unwrap().current,
            device.mig_device_count().unwrap()
        ),
        (1, 7)
    );
    assert!(matches!(
        device.mig_device_by_index(0),
        Err(NvmlError::NotFound)
    ));
    let capable = nvml.device_by_index(UTILIZATION).unwrap();
    assert_eq!(capable.mig_mode().unwrap().current, 0);
    assert!(matches!(
        nvml.device_by_index(IDLE).unwrap().mig_mode(),
        Err(NvmlError::NotSupported)
    ));
}

#[test]
fn instances_have_lists_memory_and_activity_of_their_own() {
    let nvml = nvml();
    let whole = nvml.device_by_index(DIVIDED).unwrap();
    assert!(matches!(
        whole.mig_device_by_index(0),
        Err(NvmlError::NotFound)
    ));
    let first = whole.mig_device_by_index(1).unwrap();
    let second = whole.mig_device_by_index(2).unwrap();
    assert!(first.mig_is_mig_device_handle().unwrap());
    assert!(!whole.mig_is_mig_device_handle().unwrap());
    let uuid = first.uuid().unwrap();
    assert!(uuid.starts_with("MIG-"), "{uuid}");
    assert_eq!(nvml.device_by_uuid(&*uuid).unwrap().uuid().unwrap(), uuid);
    let parent = first.mig_parent_device().unwrap();
    assert_eq!(parent.uuid().unwrap(), whole.uuid().unwrap());
    assert_eq!(first.attributes().unwrap().gpu_instance_slice_count, 3);
    assert_eq!(first.memory_info().unwrap().used, 1 << 30);
    assert_eq!(second.memory_info().unwrap().total, 20 << 30);
    let listed = |device: &nvml_wrapper::Device<'_>| {
        let rows = device.running_compute_processes().unwrap().into_iter();
        rows.map(|row| (row.pid, row.gpu_instance_id, row.compute_instance_id))
            .collect::<Vec<_>>()
    };
    assert_eq!(listed(&whole), [(5_001, Some(1), Some(0))]);
    assert_eq!(listed(&first), [(5_001, Some(1), Some(0))]);
    assert_eq!(listed(&second), []);
    for refused in [
        first.process_utilization_stats(None).map(drop),
        first.total_energy_consumption().map(drop),
        first.gpm_support().map(drop),
    ] {
        assert!(matches!(refused, Err(NvmlError::NotSupported)));
    }

    assert!(whole.gpm_support().unwrap());
    assert!(!nvml.device_by_index(IDLE).unwrap().gpm_support().unwrap());
    for (instance, expected) in [(1, 25.0), (2, 0.0)] {
        let earlier = whole.gpm_mig_sample(instance).unwrap();
        // The library's clock has microseconds.
        let later = loop {
            let later = whole.gpm_mig_sample(instance).unwrap();
            let ids = [GpmMetricId::GraphicsUtil, GpmMetricId::DramBwUtil];
            if let Ok(metrics) = gpm_metrics_get(&nvml, &earlier, &later, &ids) {
                break metrics;
            }
        };
        let activity = later[0].as_ref().unwrap().value;
        assert!((activity - expected).abs() < 0.01, "{instance}: {activity}");
        assert!(matches!(later[1], Err(NvmlError::NotSupported)));
    }
    assert!(matches!(
        whole.gpm_mig_sample(3),
        Err(NvmlError::InvalidArg)
    ));
    // The driver does not divide what is in use.
    rig().scenario.divide(DIVIDED, vec![]).unwrap();
    assert_eq!(first.uuid().unwrap(), uuid);
}

#[test]
fn an_xid_wakes_whoever_waits_for_it() {
    use nvml_wrapper::bitmasks::event::EventTypes;
    let nvml = nvml();
    let device = nvml.device_by_index(EVENTS).unwrap();
    rig().scenario.xid(EVENTS, 13).unwrap();
    let set = device
        .register_events(
            EventTypes::CRITICAL_XID_ERROR,
            nvml.create_event_set().unwrap(),
        )
        .unwrap();
    assert!(
        matches!(set.wait(1), Err(NvmlError::Timeout)),
        "what came before the registration is past"
    );
    rig().scenario.xid(EVENTS, 79).unwrap();
    let event = set.wait(60_000).unwrap();
    assert_eq!(event.device.index().unwrap(), EVENTS);
    assert!(
        format!("{:?}", event.event_data).contains("79"),
        "{:?}",
        event.event_data
    );
    assert!(
        matches!(set.wait(1), Err(NvmlError::Timeout)),
        "delivered once"
    );
}

#[test]
fn every_client_sees_one_ring() {
    // Two copies of the code in one process share as little as two processes do.
    let (first, second) = (
        nvml(),
        Nvml::builder()
            .lib_path(rig().r470.as_os_str())
            .init()
            .unwrap(),
    );
    assert_eq!(second.sys_driver_version().unwrap(), "470.256.02");
    let samples = |nvml: &Nvml| {
        let device = nvml.device_by_index(LISTS).unwrap();
        let samples = device.samples(Sampling::GpuUtilization, None).unwrap();
        samples
            .into_iter()
            .map(|sample| (sample.timestamp, sample.value))
            .collect::<Vec<_>>()
    };
    let (ours, theirs) = (samples(&first), samples(&second));
    let common: Vec<_> = theirs
        .iter()
        .filter(|sample| ours.iter().any(|own| own.0 == sample.0))
        .collect();
    assert!(
        common.len() > RING_CAPACITY / 2,
        "{} samples in common",
        common.len()
    );
    assert!(common.iter().all(|sample| ours.contains(sample)));
    assert!(matches!(
        second
            .device_by_index(LISTS)
            .unwrap()
            .running_compute_processes(),
        Err(NvmlError::FailedToLoadSymbol(_))
    ));
    assert_eq!(
        second
            .device_by_index(LISTS)
            .unwrap()
            .running_compute_processes_v2()
            .unwrap()
            .len(),
        2
    );
}

#[test]
fn many_threads_may_call_at_once() {
    let nvml = nvml();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let device = nvml.device_by_index(UTILIZATION).unwrap();
                for _ in 0..250 {
                    assert!(device.total_energy_consumption().unwrap() > 0);
                    assert_eq!(device.running_compute_processes().unwrap().len(), 2);
                }
            });
        }
    });
}
