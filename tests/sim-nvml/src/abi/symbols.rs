//! Which driver exports which function: one table of signatures per step of the driver's history.
//!
//! A missing symbol is how NVML's clients learn the driver's age, so a profile is a library of its
//! own, not a switch. Each table hands its rows to the macro named in its call: [`export`](crate::export)
//! makes exported functions of them, the ABI's test checks them against nvml-wrapper-sys.
//!
//! Left out on purpose: `nvmlInternalGetExportTable` (undocumented, wanted by nvidia-smi), the
//! unversioned `nvmlDeviceGetPciInfo` (an older, shorter struct), vGPU, units.

/// Hands what R470 has, and every later driver still to a macro: `symbols_r470!(sim_nvml::export)`.
#[macro_export]
macro_rules! symbols_r470 {
    ($($then:tt)+) => {
        $($then)+! {
            fn nvmlShutdown() -> nvmlReturn_t;
            fn nvmlErrorString(result: nvmlReturn_t) -> *const c_char;
            fn nvmlSystemGetDriverVersion(version: *mut c_char, length: u32) -> nvmlReturn_t;
            fn nvmlSystemGetNVMLVersion(version: *mut c_char, length: u32) -> nvmlReturn_t;
            fn nvmlSystemGetCudaDriverVersion(cuda_driver_version: *mut i32) -> nvmlReturn_t;
            fn nvmlSystemGetCudaDriverVersion_v2(cuda_driver_version: *mut i32) -> nvmlReturn_t;
            fn nvmlSystemGetProcessName(pid: u32, name: *mut c_char, length: u32) -> nvmlReturn_t;
            fn nvmlDeviceGetCount_v2(device_count: *mut u32) -> nvmlReturn_t;
            fn nvmlDeviceGetCount(device_count: *mut u32) -> nvmlReturn_t;
            fn nvmlDeviceGetHandleByIndex_v2(index: u32, device: *mut nvmlDevice_t) -> nvmlReturn_t;
            fn nvmlDeviceGetHandleByIndex(index: u32, device: *mut nvmlDevice_t) -> nvmlReturn_t;
            fn nvmlDeviceGetHandleByUUID(uuid: *const c_char, device: *mut nvmlDevice_t) -> nvmlReturn_t;
            fn nvmlDeviceGetHandleByPciBusId_v2(pci_bus_id: *const c_char, device: *mut nvmlDevice_t) -> nvmlReturn_t;
            fn nvmlDeviceGetHandleByPciBusId(pci_bus_id: *const c_char, device: *mut nvmlDevice_t) -> nvmlReturn_t;
            fn nvmlDeviceGetIndex(device: nvmlDevice_t, index: *mut u32) -> nvmlReturn_t;
            fn nvmlDeviceGetMinorNumber(device: nvmlDevice_t, minor_number: *mut u32) -> nvmlReturn_t;
            fn nvmlDeviceGetPciInfo_v3(device: nvmlDevice_t, pci: *mut nvmlPciInfo_t) -> nvmlReturn_t;
            fn nvmlDeviceGetUUID(device: nvmlDevice_t, uuid: *mut c_char, length: u32) -> nvmlReturn_t;
            fn nvmlDeviceGetName(device: nvmlDevice_t, name: *mut c_char, length: u32) -> nvmlReturn_t;
            fn nvmlDeviceGetMemoryInfo(device: nvmlDevice_t, memory: *mut nvmlMemory_t) -> nvmlReturn_t;
            fn nvmlDeviceGetUtilizationRates(device: nvmlDevice_t, utilization: *mut nvmlUtilization_t) -> nvmlReturn_t;
            fn nvmlDeviceGetSamples(device: nvmlDevice_t, kind: u32, last_seen_time_stamp: u64, sample_val_type: *mut u32, sample_count: *mut u32, samples: *mut nvmlSample_t) -> nvmlReturn_t;
            fn nvmlDeviceGetFieldValues(device: nvmlDevice_t, values_count: i32, values: *mut nvmlFieldValue_t) -> nvmlReturn_t;
            fn nvmlDeviceGetEncoderUtilization(device: nvmlDevice_t, utilization: *mut u32, sampling_period_us: *mut u32) -> nvmlReturn_t;
            fn nvmlDeviceGetDecoderUtilization(device: nvmlDevice_t, utilization: *mut u32, sampling_period_us: *mut u32) -> nvmlReturn_t;
            fn nvmlDeviceGetPowerUsage(device: nvmlDevice_t, power: *mut u32) -> nvmlReturn_t;
            fn nvmlDeviceGetTotalEnergyConsumption(device: nvmlDevice_t, energy: *mut u64) -> nvmlReturn_t;
            fn nvmlDeviceGetTemperature(device: nvmlDevice_t, sensor_type: u32, temp: *mut u32) -> nvmlReturn_t;
            fn nvmlDeviceGetTemperatureThreshold(device: nvmlDevice_t, threshold_type: u32, temp: *mut u32) -> nvmlReturn_t;
            fn nvmlDeviceGetClockInfo(device: nvmlDevice_t, kind: u32, clock: *mut u32) -> nvmlReturn_t;
            fn nvmlDeviceGetMaxClockInfo(device: nvmlDevice_t, kind: u32, clock: *mut u32) -> nvmlReturn_t;
            fn nvmlDeviceGetFanSpeed(device: nvmlDevice_t, speed: *mut u32) -> nvmlReturn_t;
            fn nvmlDeviceGetDriverModel(device: nvmlDevice_t, current: *mut u32, pending: *mut u32) -> nvmlReturn_t;
            fn nvmlDeviceGetEccMode(device: nvmlDevice_t, current: *mut u32, pending: *mut u32) -> nvmlReturn_t;
            fn nvmlDeviceGetEnforcedPowerLimit(device: nvmlDevice_t, limit: *mut u32) -> nvmlReturn_t;
            fn nvmlDeviceGetPowerManagementLimit(device: nvmlDevice_t, limit: *mut u32) -> nvmlReturn_t;
            fn nvmlDeviceGetPcieThroughput(device: nvmlDevice_t, counter: u32, value: *mut u32) -> nvmlReturn_t;
            fn nvmlDeviceGetCurrPcieLinkGeneration(device: nvmlDevice_t, curr_link_gen: *mut u32) -> nvmlReturn_t;
            fn nvmlDeviceGetMaxPcieLinkGeneration(device: nvmlDevice_t, max_link_gen: *mut u32) -> nvmlReturn_t;
            fn nvmlDeviceGetCurrPcieLinkWidth(device: nvmlDevice_t, curr_link_width: *mut u32) -> nvmlReturn_t;
            fn nvmlDeviceGetMaxPcieLinkWidth(device: nvmlDevice_t, max_link_width: *mut u32) -> nvmlReturn_t;
            fn nvmlDeviceGetPcieReplayCounter(device: nvmlDevice_t, value: *mut u32) -> nvmlReturn_t;
            fn nvmlDeviceGetTotalEccErrors(device: nvmlDevice_t, error_type: u32, counter_type: u32, ecc_counts: *mut u64) -> nvmlReturn_t;
            fn nvmlDeviceGetRemappedRows(device: nvmlDevice_t, corr_rows: *mut u32, unc_rows: *mut u32, is_pending: *mut u32, failure_occurred: *mut u32) -> nvmlReturn_t;
            fn nvmlDeviceGetMemoryErrorCounter(device: nvmlDevice_t, error_type: u32, counter_type: u32, location_type: u32, count: *mut u64) -> nvmlReturn_t;
            fn nvmlDeviceGetCurrentClocksThrottleReasons(device: nvmlDevice_t, clocks_throttle_reasons: *mut u64) -> nvmlReturn_t;
            fn nvmlDeviceGetPerformanceState(device: nvmlDevice_t, p_state: *mut u32) -> nvmlReturn_t;
            fn nvmlDeviceGetPersistenceMode(device: nvmlDevice_t, mode: *mut u32) -> nvmlReturn_t;
            fn nvmlDeviceGetComputeMode(device: nvmlDevice_t, mode: *mut u32) -> nvmlReturn_t;
            fn nvmlDeviceGetDisplayActive(device: nvmlDevice_t, is_active: *mut u32) -> nvmlReturn_t;
            fn nvmlDeviceGetComputeRunningProcesses(device: nvmlDevice_t, info_count: *mut u32, infos: *mut nvmlProcessInfo_v1_t) -> nvmlReturn_t;
            fn nvmlDeviceGetComputeRunningProcesses_v2(device: nvmlDevice_t, info_count: *mut u32, infos: *mut nvmlProcessInfo_v2_t) -> nvmlReturn_t;
            fn nvmlDeviceGetGraphicsRunningProcesses(device: nvmlDevice_t, info_count: *mut u32, infos: *mut nvmlProcessInfo_v1_t) -> nvmlReturn_t;
            fn nvmlDeviceGetGraphicsRunningProcesses_v2(device: nvmlDevice_t, info_count: *mut u32, infos: *mut nvmlProcessInfo_v2_t) -> nvmlReturn_t;
            fn nvmlDeviceGetMPSComputeRunningProcesses(device: nvmlDevice_t, info_count: *mut u32, infos: *mut nvmlProcessInfo_v1_t) -> nvmlReturn_t;
            fn nvmlDeviceGetMPSComputeRunningProcesses_v2(device: nvmlDevice_t, info_count: *mut u32, infos: *mut nvmlProcessInfo_v2_t) -> nvmlReturn_t;
            fn nvmlDeviceGetProcessUtilization(device: nvmlDevice_t, utilization: *mut nvmlProcessUtilizationSample_t, process_samples_count: *mut u32, last_seen_time_stamp: u64) -> nvmlReturn_t;
            fn nvmlDeviceGetAccountingMode(device: nvmlDevice_t, mode: *mut u32) -> nvmlReturn_t;
            fn nvmlDeviceSetAccountingMode(device: nvmlDevice_t, mode: u32) -> nvmlReturn_t;
            fn nvmlDeviceClearAccountingPids(device: nvmlDevice_t) -> nvmlReturn_t;
            fn nvmlDeviceGetAccountingBufferSize(device: nvmlDevice_t, buffer_size: *mut u32) -> nvmlReturn_t;
            fn nvmlDeviceGetAccountingPids(device: nvmlDevice_t, count: *mut u32, pids: *mut u32) -> nvmlReturn_t;
            fn nvmlDeviceGetAccountingStats(device: nvmlDevice_t, pid: u32, stats: *mut nvmlAccountingStats_t) -> nvmlReturn_t;
            fn nvmlDeviceGetMigMode(device: nvmlDevice_t, current_mode: *mut u32, pending_mode: *mut u32) -> nvmlReturn_t;
            fn nvmlDeviceGetMaxMigDeviceCount(device: nvmlDevice_t, count: *mut u32) -> nvmlReturn_t;
            fn nvmlDeviceGetMigDeviceHandleByIndex(device: nvmlDevice_t, index: u32, mig_device: *mut nvmlDevice_t) -> nvmlReturn_t;
            fn nvmlDeviceIsMigDeviceHandle(device: nvmlDevice_t, is_mig_device: *mut u32) -> nvmlReturn_t;
            fn nvmlDeviceGetGpuInstanceId(device: nvmlDevice_t, id: *mut u32) -> nvmlReturn_t;
            fn nvmlDeviceGetComputeInstanceId(device: nvmlDevice_t, id: *mut u32) -> nvmlReturn_t;
            fn nvmlDeviceGetDeviceHandleFromMigDeviceHandle(mig_device: nvmlDevice_t, device: *mut nvmlDevice_t) -> nvmlReturn_t;
            fn nvmlDeviceGetAttributes_v2(device: nvmlDevice_t, attributes: *mut nvmlDeviceAttributes_t) -> nvmlReturn_t;
            fn nvmlEventSetCreate(set: *mut nvmlEventSet_t) -> nvmlReturn_t;
            fn nvmlEventSetFree(set: nvmlEventSet_t) -> nvmlReturn_t;
            fn nvmlEventSetWait_v2(set: nvmlEventSet_t, data: *mut nvmlEventData_t, timeoutms: u32) -> nvmlReturn_t;
            fn nvmlDeviceRegisterEvents(device: nvmlDevice_t, event_types: u64, set: nvmlEventSet_t) -> nvmlReturn_t;
            fn nvmlDeviceGetSupportedEventTypes(device: nvmlDevice_t, event_types: *mut u64) -> nvmlReturn_t;
        }
    };
}

/// Hands what R510 added to a macro: `symbols_r510!(sim_nvml::export)`.
#[macro_export]
macro_rules! symbols_r510 {
    ($($then:tt)+) => {
        $($then)+! {
            fn nvmlDeviceGetMemoryInfo_v2(device: nvmlDevice_t, memory: *mut nvmlMemory_v2_t) -> nvmlReturn_t;
            fn nvmlDeviceGetComputeRunningProcesses_v3(device: nvmlDevice_t, info_count: *mut u32, infos: *mut nvmlProcessInfo_t) -> nvmlReturn_t;
            fn nvmlDeviceGetGraphicsRunningProcesses_v3(device: nvmlDevice_t, info_count: *mut u32, infos: *mut nvmlProcessInfo_t) -> nvmlReturn_t;
            fn nvmlDeviceGetMPSComputeRunningProcesses_v3(device: nvmlDevice_t, info_count: *mut u32, infos: *mut nvmlProcessInfo_t) -> nvmlReturn_t;
        }
    };
}

/// Hands what came between R510 and R550 to a macro: `symbols_r550!(sim_nvml::export)`.
#[macro_export]
macro_rules! symbols_r550 {
    ($($then:tt)+) => {
        $($then)+! {
            fn nvmlDeviceGetJpgUtilization(device: nvmlDevice_t, utilization: *mut u32, sampling_period_us: *mut u32) -> nvmlReturn_t;
            fn nvmlDeviceGetOfaUtilization(device: nvmlDevice_t, utilization: *mut u32, sampling_period_us: *mut u32) -> nvmlReturn_t;
            fn nvmlDeviceGetCurrentClocksEventReasons(device: nvmlDevice_t, clocks_event_reasons: *mut u64) -> nvmlReturn_t;
            fn nvmlDeviceGetRunningProcessDetailList(device: nvmlDevice_t, plist: *mut nvmlProcessDetailList_t) -> nvmlReturn_t;
            fn nvmlDeviceGetProcessesUtilizationInfo(device: nvmlDevice_t, info: *mut nvmlProcessesUtilizationInfo_t) -> nvmlReturn_t;
            fn nvmlGpmSampleAlloc(gpm_sample: *mut nvmlGpmSample_t) -> nvmlReturn_t;
            fn nvmlGpmSampleFree(gpm_sample: nvmlGpmSample_t) -> nvmlReturn_t;
            fn nvmlGpmSampleGet(device: nvmlDevice_t, gpm_sample: nvmlGpmSample_t) -> nvmlReturn_t;
            fn nvmlGpmMigSampleGet(device: nvmlDevice_t, gpu_instance_id: u32, gpm_sample: nvmlGpmSample_t) -> nvmlReturn_t;
            fn nvmlGpmMetricsGet(metrics_get: *mut nvmlGpmMetricsGet_t) -> nvmlReturn_t;
            fn nvmlGpmQueryDeviceSupport(device: nvmlDevice_t, gpm_support: *mut nvmlGpmSupport_t) -> nvmlReturn_t;
        }
    };
}

/// Hands what came between R550 and R610 to a macro: `symbols_r610!(sim_nvml::export)`.
#[macro_export]
macro_rules! symbols_r610 {
    ($($then:tt)+) => {
        $($then)+! {
            fn nvmlDeviceGetTemperatureV(device: nvmlDevice_t, temperature: *mut nvmlTemperature_t) -> nvmlReturn_t;
            fn nvmlDeviceGetAccountingStats_v2(device: nvmlDevice_t, stats: *mut AccountingStatsV2) -> nvmlReturn_t;
        }
    };
}

/// Makes exported functions of a table's rows.
#[macro_export]
macro_rules! export {
    ($(fn $name:ident($($argument:ident: $type:ty),* $(,)?) -> $answer:ty;)*) => {$(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name($($argument: $type),*) -> $answer {
            // SAFETY: the same contract, nvml.h's.
            unsafe { $crate::abi::calls::$name($($argument),*) }
        }
    )*};
}

/// Exports the ways to initialise NVML, as a driver of this [`Profile`](crate::abi::Profile).
#[macro_export]
macro_rules! export_init {
    ($profile:expr) => {
        static PROFILE: $crate::abi::Profile = $profile;

        #[unsafe(no_mangle)]
        extern "C" fn nvmlInit() -> nvmlReturn_t {
            $crate::abi::init("nvmlInit", &PROFILE)
        }

        #[unsafe(no_mangle)]
        extern "C" fn nvmlInit_v2() -> nvmlReturn_t {
            $crate::abi::init("nvmlInit_v2", &PROFILE)
        }

        #[unsafe(no_mangle)]
        extern "C" fn nvmlInitWithFlags(_flags: u32) -> nvmlReturn_t {
            $crate::abi::init("nvmlInitWithFlags", &PROFILE)
        }

        // NVIDIA's library has no such function. A program that finds it knows that the GPUs are
        // simulated.
        #[unsafe(no_mangle)]
        extern "C" fn gpuacct_simulated_nvml() -> i32 {
            1
        }
    };
}

/// The types that the tables name.
pub mod types {
    pub use std::ffi::c_char;

    pub use nvml_wrapper_sys::bindings::*;

    pub use crate::abi::calls::AccountingStatsV2;
}
