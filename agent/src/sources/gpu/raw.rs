//! The calls that nvml-wrapper does not make, and the only unsafe code of the agent.
//!
//! Each is one function that gives plain values back. The types come from nvml-wrapper-sys, whose
//! layouts were compared with NVIDIA's header; symbols are looked up before they are called, since a
//! missing one is a fact about the driver's version and no defect.

#![expect(
    unsafe_code,
    reason = "foreign functions behind NVML's published ABI; each call says why it is sound"
)]

use std::cell::RefCell;
use std::ffi::{c_int, c_uint};
use std::ptr;

use nvml_wrapper::error::{NvmlError, nvml_try, nvml_try_count};
use nvml_wrapper::{Device, Nvml};
use nvml_wrapper_sys::bindings::{
    nvmlDevice_t, nvmlMemory_v2_t, nvmlProcessUtilizationInfo_v1_t,
    nvmlProcessesUtilizationInfo_v1_t, nvmlReturn_t, nvmlTemperature_t,
    nvmlTemperatureSensors_enum_NVML_TEMPERATURE_GPU,
};

use super::fault::{NvmlErrorKind, fault};
use crate::core::model::Nanos;

/// Exported by the simulated library alone, so that a simulated GPU can never pass for a real one.
const SIMULATED: &[u8] = b"gpuacct_simulated_nvml\0";

/// Whether the library is the simulated one.
pub(super) fn simulated(nvml: &Nvml) -> bool {
    let library = &nvml.lib().__library;
    // SAFETY: the symbol is this project's own; where it exists it is a function without arguments
    // that returns an int and keeps no state. The library stays loaded for as long as `nvml` is
    // borrowed.
    unsafe {
        library
            .get::<unsafe extern "C" fn() -> c_int>(SIMULATED)
            .is_ok_and(|ask| ask() == 1)
    }
}

/// Whether the library exports a function of this name.
pub(super) fn has_symbol(nvml: &Nvml, name: &str) -> bool {
    // SAFETY: the symbol is only looked up, never called or read; a pointer-sized type is all that
    // the lookup asks for.
    unsafe {
        nvml.lib()
            .__library
            .get::<*const ()>(name.as_bytes())
            .is_ok()
    }
}

/// Whether the library has all that measuring a GPU instance's activity takes. The wrapper frees a
/// sample without looking whether it can.
pub(super) fn has_gpm(nvml: &Nvml) -> bool {
    let lib = nvml.lib();
    lib.nvmlGpmSampleAlloc.is_ok()
        && lib.nvmlGpmSampleFree.is_ok()
        && lib.nvmlGpmMigSampleGet.is_ok()
        && lib.nvmlGpmMetricsGet.is_ok()
}

/// `nvmlAccountingStats_v2_t` of CUDA 13.3, which nvml-wrapper-sys does not have: it has no version
/// field, and the pid is an argument.
#[repr(C)]
struct AccountingStatsV2 {
    pid: c_uint,
    is_running: c_uint,
    gpu_utilization: c_uint,
    memory_utilization: c_uint,
    max_memory_usage: u64,
    sample_count: c_uint,
    padding: c_uint,
    sum_gpu_util: u64,
    sum_fb_util: u64,
    time_ms: u64,
    start_us: u64,
}

const _: () = assert!(size_of::<AccountingStatsV2>() == 64);

/// What the driver's accounting says of a process, with the sum of its samples where the driver has
/// that (R610 and newer).
pub(super) fn accounting(
    nvml: &Nvml,
    device: &Device<'_>,
    pid: u32,
) -> Result<ProcessAccounting, NvmlError> {
    type Ask = unsafe extern "C" fn(nvmlDevice_t, *mut AccountingStatsV2) -> nvmlReturn_t;
    let available = |bytes: u64| (bytes != u64::MAX).then_some(bytes);
    // SAFETY: the name stands for one function with this signature (nvml.h of CUDA 13.3). The
    // library stays loaded for as long as `nvml` is borrowed.
    let ask = unsafe { nvml.lib().__library.get::<Ask>(ACCOUNTING_STATS_V2) };
    if let Ok(ask) = ask {
        let mut stats = AccountingStatsV2 {
            pid,
            is_running: 0,
            gpu_utilization: 0,
            memory_utilization: 0,
            max_memory_usage: 0,
            sample_count: 0,
            padding: 0,
            sum_gpu_util: 0,
            sum_fb_util: 0,
            time_ms: 0,
            start_us: 0,
        };
        // SAFETY: `stats` has the layout that was compared with the header, and outlives the call;
        // the handle is of this library and lives as long as `device`.
        match nvml_try(unsafe { ask(device.handle(), &raw mut stats) }) {
            Ok(()) => {
                return Ok(ProcessAccounting {
                    pid,
                    is_running: stats.is_running != 0,
                    start_us: stats.start_us,
                    lifetime: Nanos::from_millis(stats.time_ms),
                    memory_peak: available(stats.max_memory_usage),
                    credited: available(stats.sum_gpu_util),
                });
            }
            Err(error) if fault(&error) == NvmlErrorKind::Unsupported => {}
            Err(error) => return Err(error),
        }
    }
    let stats = device.accounting_stats_for(pid)?;
    Ok(ProcessAccounting {
        pid,
        is_running: stats.is_running,
        start_us: stats.start_time,
        lifetime: Nanos::from_millis(stats.time),
        memory_peak: stats.max_memory_usage,
        credited: None,
    })
}

const ACCOUNTING_STATS_V2: &[u8] = b"nvmlDeviceGetAccountingStats_v2\0";

/// The ids of a MIG instance: the GPU instance's and the compute instance's.
pub(super) fn instance_ids(nvml: &Nvml, device: &Device<'_>) -> Result<(u32, u32), NvmlError> {
    let lib = nvml.lib();
    let (Ok(ask_gpu), Ok(ask_compute)) = (
        lib.nvmlDeviceGetGpuInstanceId.as_ref(),
        lib.nvmlDeviceGetComputeInstanceId.as_ref(),
    ) else {
        return Err(NvmlError::FunctionNotFound);
    };
    let (mut gpu, mut compute) = (0, 0);
    // SAFETY: each writes one unsigned int through its pointer, which outlives the call; the handle
    // is of this library and lives as long as `device`.
    unsafe {
        nvml_try(ask_gpu(device.handle(), &raw mut gpu))?;
        nvml_try(ask_compute(device.handle(), &raw mut compute))?;
    }
    Ok((gpu, compute))
}

/// Whether the library has the newer call for the processes' rows.
pub(super) fn has_processes_utilization(nvml: &Nvml) -> bool {
    nvml.lib().nvmlDeviceGetProcessesUtilizationInfo.is_ok()
}

/// The newer call for the processes' rows: with the JPEG and optical flow engines, from R550 on.
///
/// As with the older call, the size query answers a capacity and not a number of rows, and "not
/// found" stands for none. A driver that knows another version of the structure says so (code 25).
///
/// The capacity is some thousand rows, of which the driver writes a few. So each thread keeps the
/// room for them: in new memory, every page of it would have to be mapped and cleared for each call.
pub(super) fn processes_utilization(
    nvml: &Nvml,
    device: &Device<'_>,
    last_seen_us: u64,
) -> Result<Vec<nvmlProcessUtilizationInfo_v1_t>, NvmlError> {
    let Ok(ask) = nvml.lib().nvmlDeviceGetProcessesUtilizationInfo.as_ref() else {
        return Err(NvmlError::FunctionNotFound);
    };
    let mut request = nvmlProcessesUtilizationInfo_v1_t {
        version: version_of::<nvmlProcessesUtilizationInfo_v1_t>(1),
        processSamplesCount: 0,
        lastSeenTimeStamp: last_seen_us,
        procUtilArray: ptr::null_mut(),
    };
    // SAFETY: `request` has the layout of the version that it names and outlives the call; a null
    // array asks for the size only. The handle is of this library and lives as long as `device`.
    nvml_try_count(unsafe { ask(device.handle(), &raw mut request) })?;
    let room = request.processSamplesCount.min(MOST_ROWS);
    if room == 0 {
        return Ok(Vec::new());
    }
    ROWS.with_borrow_mut(|rows| {
        let needed = usize::try_from(room).unwrap_or(0);
        if rows.len() < needed {
            *rows = no_rows(needed);
        }
        request.processSamplesCount = room;
        request.procUtilArray = rows.as_mut_ptr();
        // SAFETY: as above; the array has room for at least as many rows as `processSamplesCount`
        // says, and the library writes no more.
        nvml_try(unsafe { ask(device.handle(), &raw mut request) })?;
        let written = usize::try_from(request.processSamplesCount).unwrap_or(0);
        let written = &mut rows[..written.min(needed)];
        let answer = written.to_vec();
        // If a driver ever counts a row that it does not write, that row is no earlier answer.
        written.fill(NO_ROW);
        Ok(answer)
    })
}

thread_local! {
    /// Room for the rows of [`processes_utilization`].
    static ROWS: RefCell<Box<[nvmlProcessUtilizationInfo_v1_t]>> = RefCell::default();
}

/// So many rows of zeros. Only pages that are written to become resident.
fn no_rows(count: usize) -> Box<[nvmlProcessUtilizationInfo_v1_t]> {
    let rows = Box::new_zeroed_slice(count);
    // SAFETY: a row has numbers only, for which zero bytes are the value 0.
    unsafe { rows.assume_init() }
}

/// More rows than any driver's ring can name; what a library asks for beyond is a defect.
const MOST_ROWS: u32 = 65_536;

const NO_ROW: nvmlProcessUtilizationInfo_v1_t = nvmlProcessUtilizationInfo_v1_t {
    timeStamp: 0,
    pid: 0,
    smUtil: 0,
    memUtil: 0,
    encUtil: 0,
    decUtil: 0,
    jpgUtil: 0,
    ofaUtil: 0,
};

/// The version word of a structure: its size, and its number in the top byte.
fn version_of<T>(number: u32) -> u32 {
    u32::try_from(size_of::<T>()).unwrap_or(0) | number << 24
}

/// The name of the call for the reasons why clocks are reduced: the older one has been deprecated since
/// CUDA 12.2.
pub(super) fn clocks_event_reasons_call(nvml: &Nvml) -> &'static str {
    match nvml.lib().nvmlDeviceGetCurrentClocksEventReasons {
        Ok(_) => "nvmlDeviceGetCurrentClocksEventReasons",
        Err(_) => "nvmlDeviceGetCurrentClocksThrottleReasons",
    }
}

/// Why clocks are reduced, as NVML's bits.
pub(super) fn clocks_event_reasons(nvml: &Nvml, device: &Device<'_>) -> Result<u64, NvmlError> {
    let lib = nvml.lib();
    let newer = lib.nvmlDeviceGetCurrentClocksEventReasons.as_ref();
    let older = || lib.nvmlDeviceGetCurrentClocksThrottleReasons.as_ref();
    let Ok(ask) = newer.or_else(|_| older()) else {
        return Err(NvmlError::FunctionNotFound);
    };
    let mut reasons = 0;
    // SAFETY: both functions write one unsigned long long through the pointer, which outlives the call;
    // the handle is of this library and lives as long as `device`.
    nvml_try(unsafe { ask(device.handle(), &raw mut reasons) })?;
    Ok(reasons)
}

/// Whether the library has the newer call for temperatures.
pub(super) fn has_temperature_v(nvml: &Nvml) -> bool {
    nvml.lib().nvmlDeviceGetTemperatureV.is_ok()
}

/// The temperature of the die by the newer call, in degrees Celsius.
pub(super) fn temperature(nvml: &Nvml, device: &Device<'_>) -> Result<i32, NvmlError> {
    let Ok(ask) = nvml.lib().nvmlDeviceGetTemperatureV.as_ref() else {
        return Err(NvmlError::FunctionNotFound);
    };
    let mut request = nvmlTemperature_t {
        version: version_of::<nvmlTemperature_t>(1),
        sensorType: nvmlTemperatureSensors_enum_NVML_TEMPERATURE_GPU,
        temperature: 0,
    };
    // SAFETY: `request` has the layout of the version that it names and outlives the call; the handle
    // is of this library and lives as long as `device`.
    nvml_try(unsafe { ask(device.handle(), &raw mut request) })?;
    Ok(request.temperature)
}

/// NVML's answer to the size query of the process rows: its code, and the rows it asks room for.
pub(super) fn process_utilization_room(
    nvml: &Nvml,
    device: &Device<'_>,
    last_seen_us: u64,
) -> Result<(nvmlReturn_t, u32), NvmlError> {
    let Ok(ask) = nvml.lib().nvmlDeviceGetProcessUtilization.as_ref() else {
        return Err(NvmlError::FunctionNotFound);
    };
    let mut count = 0;
    // SAFETY: a null array asks for the size only (NVML's documentation of this function); `count`
    // outlives the call, and the handle is of this library and lives as long as `device`.
    let code = unsafe {
        ask(
            device.handle(),
            ptr::null_mut(),
            &raw mut count,
            last_seen_us,
        )
    };
    Ok((code, count))
}

/// NVML's answer to a version 2 memory query whose version field is `version`: its code, and bytes
/// used where it answers.
pub(super) fn memory_info_versioned(
    nvml: &Nvml,
    device: &Device<'_>,
    version: u32,
) -> Result<(nvmlReturn_t, u64), NvmlError> {
    let Ok(ask) = nvml.lib().nvmlDeviceGetMemoryInfo_v2.as_ref() else {
        return Err(NvmlError::FunctionNotFound);
    };
    let mut memory = nvmlMemory_v2_t {
        version,
        total: 0,
        reserved: 0,
        free: 0,
        used: 0,
    };
    // SAFETY: `memory` has the layout of version 2 and outlives the call. The library checks the
    // version field before it writes; no version that this function's name stands for is larger.
    let code = unsafe { ask(device.handle(), &raw mut memory) };
    Ok((code, memory.used))
}

/// The driver's accounting statistics of one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ProcessAccounting {
    pub(super) pid: u32,
    pub(super) is_running: bool,
    pub(super) start_us: u64,
    pub(super) lifetime: Nanos,
    pub(super) memory_peak: Option<u64>,
    /// The sum of its samples' busy part, in ten thousandths of a sample.
    pub(super) credited: Option<u64>,
}
