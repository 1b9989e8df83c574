//! The bodies of NVML's functions, by their C names and with their C signatures.
//!
//! A driver profile exports them under those names through [`symbols`](mod@super::symbols). What is
//! common to all: null pointers are INVALID_ARGUMENT, unknown handles too, any call before init is
//! UNINITIALIZED, and what a GPU does not have is NOT_SUPPORTED.
#![expect(
    non_snake_case,
    reason = "the functions bear the names that nvml.h gives them"
)]
#![expect(missing_docs, reason = "nvml.h documents them")]
#![expect(
    clippy::missing_safety_doc,
    reason = "the contract is nvml.h's: pointers are null or valid, as long as said"
)]

use std::ffi::{CStr, c_char};

use nvml_wrapper_sys::bindings::*;

use super::{
    Answer, Moment, code, events, finish, gpm, handle_of, handle_of_instance, on_device, on_gpu,
    on_library, shutdown,
};
use crate::event::{Fault, Kind};
use crate::history::{ACCOUNTING_DEAD, ACCOUNTING_LIVE, Account, Engine, Gpu, Part, Running};
use crate::log::LogWriter;
use crate::machine::{Mig, StampClock, Stamps};
use crate::ring::ProcessRow;

/// "No value", in a field of 32 bits.
const NONE_32: u32 = u32::MAX;
/// `NVML_VALUE_NOT_AVAILABLE`, in a field of 64 bits.
const NONE_64: u64 = u64::MAX;
/// RM lists at most this many pids per GPU.
const LIST_LIMIT: usize = 950;
/// Over which time the device's rates, power and temperature are means.
const RATES_US: u64 = 1_000_000;

/// `nvmlAccountingStats_v2_t` of CUDA 13.3.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct AccountingStatsV2 {
    pub pid: u32,
    pub isRunning: u32,
    pub gpuUtilization: u32,
    pub memoryUtilization: u32,
    pub maxMemoryUsage: u64,
    pub sampleCount: u32,
    pub sumGpuUtil: u64,
    pub sumFbUtil: u64,
    pub time: u64,
    pub startTime: u64,
}

/// Writes through a pointer that the caller gave.
///
/// # Safety
/// `to` is null or valid for a write.
unsafe fn put<T>(to: *mut T, value: T) -> Answer {
    if to.is_null() {
        return Err(code::INVALID_ARGUMENT);
    }
    // SAFETY: not null, hence valid by this function's contract.
    unsafe { to.write(value) };
    Ok(())
}

/// Reads through a pointer that the caller gave.
///
/// # Safety
/// `from` is null or valid for a read.
unsafe fn get<T: Copy>(from: *const T) -> Result<T, u32> {
    if from.is_null() {
        return Err(code::INVALID_ARGUMENT);
    }
    // SAFETY: not null, hence valid by this function's contract.
    Ok(unsafe { from.read() })
}

/// Writes a text with its NUL.
///
/// # Safety
/// `to` is null or valid for `length` bytes.
unsafe fn put_text(to: *mut c_char, length: u32, text: &str) -> Answer {
    if to.is_null() {
        return Err(code::INVALID_ARGUMENT);
    }
    if usize::try_from(length).is_ok_and(|length| length <= text.len()) {
        return Err(code::INSUFFICIENT_SIZE);
    }
    // SAFETY: `length` exceeds the text's, so text and NUL fit; the caller's buffer overlaps nothing of ours.
    unsafe {
        std::ptr::copy_nonoverlapping(text.as_ptr().cast(), to, text.len());
        to.add(text.len()).write(0);
    }
    Ok(())
}

/// Fills an array of the caller's, or says how long it must be: with no array, `size` (success if
/// that is 0); with one too short, the number of rows. `*count` is its capacity, then its length.
///
/// # Safety
/// `count` is null or valid; `to` is null or valid for `*count` rows.
unsafe fn put_rows<Row: Copy>(to: *mut Row, count: *mut u32, rows: &[Row], size: usize) -> Answer {
    // SAFETY: passed on from this function's contract.
    let capacity = unsafe { get(count) }?;
    let set = |length: usize| {
        // SAFETY: `count` was just read.
        unsafe { put(count, u32::try_from(length).unwrap_or(u32::MAX)) }
    };
    if to.is_null() || capacity == 0 {
        set(size)?;
        return if size == 0 {
            Ok(())
        } else {
            Err(code::INSUFFICIENT_SIZE)
        };
    }
    if usize::try_from(capacity).is_ok_and(|capacity| capacity < rows.len()) {
        set(rows.len())?;
        return Err(code::INSUFFICIENT_SIZE);
    }
    // SAFETY: `to` holds `capacity` rows, and there are no more.
    unsafe { std::ptr::copy_nonoverlapping(rows.as_ptr(), to, rows.len()) };
    set(rows.len())
}

/// The version word of a struct: size and number.
fn version_of<T>(number: u32) -> u32 {
    u32::try_from(size_of::<T>()).unwrap_or(0) | number << 24
}

fn check_version<T>(found: u32, number: u32) -> Answer {
    if found == version_of::<T>(number) {
        Ok(())
    } else {
        Err(code::ARGUMENT_VERSION_MISMATCH)
    }
}

fn narrow(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

/// What MIG takes away: everything that is measured per engine.
fn without_mig(gpu: &Gpu) -> Answer {
    if gpu.spec.mig == Mig::On {
        Err(code::NOT_SUPPORTED)
    } else {
        Ok(())
    }
}

/// Defines functions that take a device first.
macro_rules! device_calls {
    ($(fn $name:ident($moment:pat_param, $gpu:pat_param => $($argument:ident: $kind:ty),*) $body:block)*) => {$(
        #[allow(unused_unsafe, reason = "some bodies only refuse")]
        pub unsafe extern "C" fn $name(device: nvmlDevice_t, $($argument: $kind),*) -> nvmlReturn_t {
            // SAFETY: the pointers are as nvml.h demands: null or valid.
            on_device(stringify!($name), device, |$moment, $gpu| unsafe { $body })
        }
    )*};
}

/// Defines functions that give a device the same number always.
macro_rules! constants {
    ($(fn $name:ident($($skipped:ident: $kind:ty,)* => $to:ident: $type:ty) = $value:expr;)*) => {$(
        pub unsafe extern "C" fn $name(device: nvmlDevice_t, $($skipped: $kind,)* $to: *mut $type) -> nvmlReturn_t {
            // SAFETY: the pointer is as nvml.h demands: null or valid.
            on_device(stringify!($name), device, |_, gpu| unsafe { put($to, $value(gpu)) })
        }
    )*};
}

// --- the library ---------------------------------------------------------------------------------

pub unsafe extern "C" fn nvmlShutdown() -> nvmlReturn_t {
    finish(shutdown)
}

pub unsafe extern "C" fn nvmlErrorString(result: nvmlReturn_t) -> *const c_char {
    let text = match result {
        0 => c"Success",
        1 => c"Uninitialized",
        2 => c"Invalid Argument",
        3 => c"Not Supported",
        4 => c"Insufficient Permissions",
        6 => c"Not Found",
        7 => c"Insufficient Size",
        9 => c"Driver Not Loaded",
        10 => c"Timeout",
        15 => c"GPU is lost",
        25 => c"Argument version mismatch",
        _ => c"Unknown Error",
    };
    text.as_ptr()
}

pub unsafe extern "C" fn nvmlSystemGetDriverVersion(
    version: *mut c_char,
    length: u32,
) -> nvmlReturn_t {
    on_library("nvmlSystemGetDriverVersion", |moment| {
        // SAFETY: the buffer is as nvml.h demands.
        unsafe { put_text(version, length, moment.client.profile.driver) }
    })
}

pub unsafe extern "C" fn nvmlSystemGetNVMLVersion(
    version: *mut c_char,
    length: u32,
) -> nvmlReturn_t {
    on_library("nvmlSystemGetNVMLVersion", |moment| {
        // SAFETY: the buffer is as nvml.h demands.
        unsafe { put_text(version, length, moment.client.profile.nvml) }
    })
}

pub unsafe extern "C" fn nvmlSystemGetCudaDriverVersion(version: *mut i32) -> nvmlReturn_t {
    on_library("nvmlSystemGetCudaDriverVersion", |moment| {
        // SAFETY: the pointer is as nvml.h demands.
        unsafe { put(version, moment.client.profile.cuda) }
    })
}

pub unsafe extern "C" fn nvmlSystemGetCudaDriverVersion_v2(version: *mut i32) -> nvmlReturn_t {
    // SAFETY: the same contract.
    unsafe { nvmlSystemGetCudaDriverVersion(version) }
}

pub unsafe extern "C" fn nvmlSystemGetProcessName(
    pid: u32,
    name: *mut c_char,
    length: u32,
) -> nvmlReturn_t {
    on_library("nvmlSystemGetProcessName", |_| {
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).map_err(|_| code::NOT_FOUND)?;
        let first = command.split(|&byte| byte == 0).next().unwrap_or_default();
        // SAFETY: the buffer is as nvml.h demands.
        unsafe { put_text(name, length, &String::from_utf8_lossy(first)) }
    })
}

// --- finding devices -----------------------------------------------------------------------------

pub unsafe extern "C" fn nvmlDeviceGetCount_v2(count: *mut u32) -> nvmlReturn_t {
    on_library("nvmlDeviceGetCount_v2", |moment| {
        // SAFETY: the pointer is as nvml.h demands.
        unsafe { put(count, narrow(moment.history.gpus.len() as u64)) }
    })
}

pub unsafe extern "C" fn nvmlDeviceGetCount(count: *mut u32) -> nvmlReturn_t {
    // SAFETY: the same contract.
    unsafe { nvmlDeviceGetCount_v2(count) }
}

pub unsafe extern "C" fn nvmlDeviceGetHandleByIndex_v2(
    index: u32,
    device: *mut nvmlDevice_t,
) -> nvmlReturn_t {
    finish(|| {
        on_gpu("nvmlDeviceGetHandleByIndex_v2", index, |_, _| {
            // SAFETY: the pointer is as nvml.h demands.
            unsafe { put(device, handle_of(index)) }
        })
    })
}

pub unsafe extern "C" fn nvmlDeviceGetHandleByIndex(
    index: u32,
    device: *mut nvmlDevice_t,
) -> nvmlReturn_t {
    // SAFETY: the same contract.
    unsafe { nvmlDeviceGetHandleByIndex_v2(index, device) }
}

/// Finds the GPU for which `is_it` is true, as far as its injected faults allow the call.
fn find(
    name: &'static str,
    device: *mut nvmlDevice_t,
    is_it: impl Fn(&Gpu) -> bool,
) -> nvmlReturn_t {
    finish(|| {
        let mut found = None;
        let all = on_library("nvmlFind", |moment| {
            found = moment.history.gpus.iter().position(&is_it);
            Ok(())
        });
        if all != code::SUCCESS {
            return Err(all);
        }
        let index = narrow(found.ok_or(code::NOT_FOUND)? as u64);
        on_gpu(name, index, |_, _| {
            // SAFETY: the pointer is as nvml.h demands.
            unsafe { put(device, handle_of(index)) }
        })
    })
}

/// # Safety
/// `text` is null or a NUL-terminated string.
unsafe fn text_of(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: not null, hence a string by this function's contract.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_string_lossy().into_owned()
}

pub unsafe extern "C" fn nvmlDeviceGetHandleByUUID(
    uuid: *const c_char,
    device: *mut nvmlDevice_t,
) -> nvmlReturn_t {
    // SAFETY: the string is as nvml.h demands.
    let uuid = unsafe { text_of(uuid) };
    if uuid.starts_with("MIG-") {
        return on_library("nvmlDeviceGetHandleByUUID", |moment| {
            let mut all = moment
                .history
                .gpus
                .iter()
                .flat_map(|gpu| gpu.instances.iter().map(move |instance| (gpu, instance)));
            let found = all.find(|(gpu, instance)| instance_uuid(gpu, instance) == uuid);
            let (gpu, instance) = found.ok_or(code::NOT_FOUND)?;
            // SAFETY: the pointer is as nvml.h demands.
            unsafe { put(device, handle_of_instance(gpu.index, instance)) }
        });
    }
    find("nvmlDeviceGetHandleByUUID", device, |gpu| {
        gpu.spec.uuid == uuid
    })
}

pub unsafe extern "C" fn nvmlDeviceGetHandleByPciBusId_v2(
    id: *const c_char,
    device: *mut nvmlDevice_t,
) -> nvmlReturn_t {
    // SAFETY: the string is as nvml.h demands.
    let id = unsafe { text_of(id) };
    find("nvmlDeviceGetHandleByPciBusId_v2", device, |gpu| {
        [bus_id(gpu, 8), bus_id(gpu, 4)]
            .iter()
            .any(|own| own.eq_ignore_ascii_case(&id))
    })
}

pub unsafe extern "C" fn nvmlDeviceGetHandleByPciBusId(
    id: *const c_char,
    device: *mut nvmlDevice_t,
) -> nvmlReturn_t {
    // SAFETY: the same contract.
    unsafe { nvmlDeviceGetHandleByPciBusId_v2(id, device) }
}

/// The bus number: a GPU each 16 of them, from 0x17 on.
fn bus(gpu: &Gpu) -> u32 {
    0x17 + gpu.index * 0x10
}

fn bus_id(gpu: &Gpu, domain_digits: usize) -> String {
    format!(
        "{:0domain_digits$X}:{:02X}:00.0",
        bus(gpu) >> 8,
        bus(gpu) & 0xff
    )
}

fn characters<const N: usize>(text: &str) -> [c_char; N] {
    let mut buffer = [0; N];
    for (to, byte) in buffer.iter_mut().take(N - 1).zip(text.bytes()) {
        *to = c_char::from_ne_bytes([byte]);
    }
    buffer
}

fn pci(gpu: &Gpu) -> nvmlPciInfo_t {
    nvmlPciInfo_t {
        busIdLegacy: characters(&bus_id(gpu, 4)),
        domain: bus(gpu) >> 8,
        bus: bus(gpu) & 0xff,
        device: 0,
        pciDeviceId: 0x20b2_10de,
        pciSubSystemId: 0x1463_10de,
        busId: characters(&bus_id(gpu, 8)),
    }
}

/// Made from the GPU and the ids, so that it comes back when an instance is made anew.
fn instance_uuid(gpu: &Gpu, instance: &Part) -> String {
    let (gpu_instance, compute_instance) = instance.ids();
    format!(
        "MIG-5a100000-51b0-5000-8000-{:04x}{gpu_instance:04x}{compute_instance:04x}",
        gpu.index
    )
}

constants! {
    fn nvmlDeviceGetIndex(=> index: u32) = |gpu: &Gpu| gpu.index;
    fn nvmlDeviceGetMinorNumber(=> minor: u32) = |gpu: &Gpu| gpu.index;
    fn nvmlDeviceGetPciInfo_v3(=> info: nvmlPciInfo_t) = pci;
}

device_calls! {
    fn nvmlDeviceGetUUID(moment, gpu => uuid: *mut c_char, length: u32) {
        let of_instance = moment.instance.map(|instance| instance_uuid(gpu, instance));
        put_text(uuid, length, &of_instance.unwrap_or_else(|| gpu.spec.uuid.clone()))
    }
    fn nvmlDeviceGetName(_, gpu => name: *mut c_char, length: u32) { put_text(name, length, &gpu.spec.name) }
}

// --- the device's state --------------------------------------------------------------------------

/// Whether a job is on what is asked for: the instance, or any part of the GPU.
fn is_there(moment: &Moment<'_>, running: &Running) -> bool {
    let ids = moment.instance.map(Part::ids);
    ids.is_none() || running.instance == ids
}

/// Frame buffer: all, the driver's own part, and what processes hold.
fn frame_buffer(moment: &Moment<'_>, gpu: &Gpu) -> (u64, u64, u64) {
    let (total, reserved) = match moment.instance {
        Some(instance) => (instance.spec.memory_bytes, 0),
        None => (gpu.spec.memory_bytes, gpu.spec.reserved_bytes),
    };
    let held: u64 = gpu
        .current()
        .running
        .iter()
        .filter(|running| is_there(moment, running))
        .map(|running| running.memory_bytes)
        .sum();
    (total, reserved, held.min(total.saturating_sub(reserved)))
}

/// Mean power of the last second, in milliwatts.
fn power_mw(moment: &Moment<'_>, gpu: &Gpu) -> u64 {
    let busy = gpu.busy(
        Engine::Sm,
        moment.now_us.saturating_sub(RATES_US),
        moment.now_us,
    );
    let active = u128::from(gpu.spec.full_mw.saturating_sub(gpu.spec.idle_mw)) * busy
        / u128::from(RATES_US)
        / 1_000_000;
    gpu.spec.idle_mw + u64::try_from(active).unwrap_or(0)
}

/// Degrees: 35 when idle, 75 when busy.
fn temperature(moment: &Moment<'_>, gpu: &Gpu) -> u32 {
    35 + narrow(gpu.mean_percent(Engine::Sm, moment.now_us, RATES_US) * 40 / 100)
}

fn throttle_reasons(gpu: &Gpu) -> u64 {
    u64::from(idle(gpu)) | gpu.health.throttle_reasons
}

fn idle(gpu: &Gpu) -> bool {
    gpu.current().running.is_empty()
}

/// Megahertz by NVML's clock type: graphics, SM, memory, video.
fn clock_mhz(kind: u32, idle: bool) -> Result<u32, u32> {
    match (kind, idle) {
        (0 | 1, false) => Ok(1410),
        (0 | 1, true) => Ok(210),
        (2, _) => Ok(1593),
        (3, false) => Ok(1275),
        (3, true) => Ok(585),
        _ => Err(code::INVALID_ARGUMENT),
    }
}

/// Mean of an engine over the last second, and that second.
///
/// # Safety
/// The pointers are null or valid.
unsafe fn engine_rate(
    moment: &Moment<'_>,
    gpu: &Gpu,
    engine: Engine,
    percent: *mut u32,
    period_us: *mut u32,
) -> Answer {
    without_mig(gpu)?;
    // SAFETY: passed on from this function's contract.
    unsafe {
        put(
            percent,
            narrow(gpu.mean_percent(engine, moment.now_us, RATES_US)),
        )?;
        put(period_us, narrow(RATES_US))
    }
}

fn sampled(kind: u32) -> Result<Engine, u32> {
    match kind {
        1 => Ok(Engine::Sm),
        2 => Ok(Engine::Memory),
        3 => Ok(Engine::Encoder),
        4 => Ok(Engine::Decoder),
        8 => Ok(Engine::Jpeg),
        9 => Ok(Engine::OpticalFlow),
        0 | 5..=7 => Err(code::NOT_SUPPORTED),
        _ => Err(code::INVALID_ARGUMENT),
    }
}

device_calls! {
    fn nvmlDeviceGetMemoryInfo(moment, gpu => memory: *mut nvmlMemory_t) {
        let (total, reserved, held) = frame_buffer(moment, gpu);
        let used = held + reserved;
        put(memory, nvmlMemory_t { total, free: total.saturating_sub(used), used })
    }

    fn nvmlDeviceGetMemoryInfo_v2(moment, gpu => memory: *mut nvmlMemory_v2_t) {
        let version = get(memory)?.version;
        check_version::<nvmlMemory_v2_t>(version, 2)?;
        let (total, reserved, used) = frame_buffer(moment, gpu);
        put(memory, nvmlMemory_v2_t { version, total, reserved, free: total.saturating_sub(reserved + used), used })
    }

    fn nvmlDeviceGetUtilizationRates(moment, gpu => utilization: *mut nvmlUtilization_t) {
        without_mig(gpu)?;
        let rate = |engine| narrow(gpu.mean_percent(engine, moment.now_us, RATES_US));
        put(utilization, nvmlUtilization_t { gpu: rate(Engine::Sm), memory: rate(Engine::Memory) })
    }

    fn nvmlDeviceGetSamples(moment, gpu => kind: u32, last_seen: u64, value_type: *mut u32, count: *mut u32, samples: *mut nvmlSample_t) {
        without_mig(gpu)?;
        let capacity = get(count)?;
        let found = gpu.stamped_samples(sampled(kind)?, moment.now_us, last_seen);
        put(value_type, nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_INT)?;
        if samples.is_null() {
            return put(count, narrow(crate::machine::RING_CAPACITY as u64));
        }
        if found.is_empty() {
            return Err(code::NOT_FOUND);
        }
        let mut written = 0;
        for ((at_us, percent), slot) in found.into_iter().zip(0..usize::try_from(capacity).unwrap_or(0)) {
            // All eight bytes of the value are defined, as from a driver that zeroes its buffers.
            let mut value = nvmlValue_t { ullVal: 0 };
            value.uiVal = narrow(percent);
            samples.add(slot).write(nvmlSample_t { timeStamp: at_us, sampleValue: value });
            written += 1;
        }
        put(count, written)
    }

    fn nvmlDeviceGetFieldValues(moment, gpu => count: i32, values: *mut nvmlFieldValue_t) {
        let count = usize::try_from(count).map_err(|_| code::INVALID_ARGUMENT)?;
        if values.is_null() || count == 0 {
            return Err(code::INVALID_ARGUMENT);
        }
        for slot in 0..count {
            let value = &mut *values.add(slot);
            value.timestamp = i64::try_from(moment.now_us).unwrap_or(i64::MAX);
            value.latencyUsec = 1;
            value.valueType = nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_LONG_LONG;
            let known = match value.fieldId {
                field_id::NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION => Some(gpu.energy_mj(moment.now_us)),
                field_id::NVML_FI_DEV_POWER_AVERAGE | field_id::NVML_FI_DEV_POWER_INSTANT => Some(power_mw(moment, gpu)),
                _ => None,
            };
            let answer = if value.fieldId > moment.client.profile.newest_field {
                Err(code::INVALID_ARGUMENT)
            } else {
                let known = known.map(Ok).or_else(|| gpu.health.field(value.fieldId));
                known.unwrap_or(Err(code::NOT_SUPPORTED))
            };
            value.nvmlReturn = answer.err().unwrap_or(code::SUCCESS);
            value.value.ullVal = answer.unwrap_or(0);
        }
        Ok(())
    }

    fn nvmlDeviceGetEncoderUtilization(moment, gpu => percent: *mut u32, period_us: *mut u32) {
        engine_rate(moment, gpu, Engine::Encoder, percent, period_us)
    }

    fn nvmlDeviceGetDecoderUtilization(moment, gpu => percent: *mut u32, period_us: *mut u32) {
        engine_rate(moment, gpu, Engine::Decoder, percent, period_us)
    }

    fn nvmlDeviceGetJpgUtilization(moment, gpu => percent: *mut u32, period_us: *mut u32) {
        engine_rate(moment, gpu, Engine::Jpeg, percent, period_us)
    }

    fn nvmlDeviceGetOfaUtilization(moment, gpu => percent: *mut u32, period_us: *mut u32) {
        engine_rate(moment, gpu, Engine::OpticalFlow, percent, period_us)
    }

    fn nvmlDeviceGetPowerUsage(moment, gpu => power: *mut u32) { put(power, narrow(power_mw(moment, gpu))) }
    fn nvmlDeviceGetTotalEnergyConsumption(moment, gpu => energy: *mut u64) { put(energy, gpu.energy_mj(moment.now_us)) }
    fn nvmlDeviceGetTemperature(moment, gpu => sensor: u32, degrees: *mut u32) {
        if sensor != 0 {
            return Err(code::INVALID_ARGUMENT);
        }
        put(degrees, temperature(moment, gpu))
    }

    fn nvmlDeviceGetTemperatureV(moment, gpu => reading: *mut nvmlTemperature_t) {
        let mut answer = get(reading)?;
        check_version::<nvmlTemperature_t>(answer.version, 1)?;
        answer.temperature = i32::try_from(temperature(moment, gpu)).unwrap_or(0);
        put(reading, answer)
    }

    fn nvmlDeviceGetTemperatureThreshold(_, _ => kind: u32, degrees: *mut u32) {
        match kind {
            0 => put(degrees, 92),
            1 => put(degrees, 89),
            _ => Err(code::NOT_SUPPORTED),
        }
    }

    fn nvmlDeviceGetClockInfo(_, gpu => kind: u32, mhz: *mut u32) { put(mhz, clock_mhz(kind, idle(gpu))?) }
    fn nvmlDeviceGetMaxClockInfo(_, _ => kind: u32, mhz: *mut u32) { put(mhz, clock_mhz(kind, false)?) }
    fn nvmlDeviceGetFanSpeed(_, _ => _speed: *mut u32) { Err(code::NOT_SUPPORTED) }
    fn nvmlDeviceGetEccMode(_, _ => current: *mut u32, pending: *mut u32) {
        put(current, 1)?;
        put(pending, 1)
    }

    fn nvmlDeviceGetTotalEccErrors(_, gpu => kind: u32, counter: u32, errors: *mut u64) { put(errors, gpu.health.ecc(kind, counter)?) }
    // By location, of which the device memory has them all.
    fn nvmlDeviceGetMemoryErrorCounter(_, gpu => kind: u32, counter: u32, location: u32, errors: *mut u64) {
        const DEVICE_MEMORY: u32 = 2;
        let all = gpu.health.ecc(kind, counter)?;
        put(errors, if location == DEVICE_MEMORY { all } else { 0 })
    }

    fn nvmlDeviceGetRemappedRows(_, gpu => correctable: *mut u32, uncorrectable: *mut u32, is_pending: *mut u32, has_failed: *mut u32) {
        let health = &gpu.health;
        put(correctable, narrow(health.rows_remapped.0))?;
        put(uncorrectable, narrow(health.rows_remapped.1))?;
        put(is_pending, health.remap_pending.into())?;
        put(has_failed, health.remap_failed.into())
    }

    fn nvmlDeviceGetPcieThroughput(_, gpu => counter: u32, kilobytes: *mut u32) {
        let (sent, received) = gpu.health.pcie_throughput;
        match counter {
            0 => put(kilobytes, narrow(sent)),
            1 => put(kilobytes, narrow(received)),
            _ => Err(code::INVALID_ARGUMENT),
        }
    }

    // A matter of Windows; nvitop asks all the same.
    fn nvmlDeviceGetDriverModel(_, _ => _current: *mut u32, _pending: *mut u32) { Err(code::NOT_SUPPORTED) }
}

constants! {
    fn nvmlDeviceGetEnforcedPowerLimit(=> limit: u32) = |gpu: &Gpu| narrow(gpu.spec.full_mw);
    fn nvmlDeviceGetPowerManagementLimit(=> limit: u32) = |gpu: &Gpu| narrow(gpu.spec.full_mw);
    fn nvmlDeviceGetCurrPcieLinkGeneration(=> generation: u32) = |_: &Gpu| 4;
    fn nvmlDeviceGetMaxPcieLinkGeneration(=> generation: u32) = |_: &Gpu| 4;
    fn nvmlDeviceGetCurrPcieLinkWidth(=> width: u32) = |_: &Gpu| 16;
    fn nvmlDeviceGetMaxPcieLinkWidth(=> width: u32) = |_: &Gpu| 16;
    fn nvmlDeviceGetPcieReplayCounter(=> replays: u32) = |gpu: &Gpu| narrow(gpu.health.pcie_replays);
    fn nvmlDeviceGetCurrentClocksThrottleReasons(=> reasons: u64) = throttle_reasons;
    fn nvmlDeviceGetCurrentClocksEventReasons(=> reasons: u64) = throttle_reasons;
    fn nvmlDeviceGetPerformanceState(=> state: u32) = |gpu: &Gpu| if idle(gpu) { 8 } else { 0 };
    fn nvmlDeviceGetPersistenceMode(=> mode: u32) = |_: &Gpu| 1;
    fn nvmlDeviceGetComputeMode(=> mode: u32) = |gpu: &Gpu| if gpu.spec.exclusive { 3 } else { 0 };
    fn nvmlDeviceGetDisplayActive(=> active: u32) = |_: &Gpu| 0;
}

// --- processes -----------------------------------------------------------------------------------

/// A process of a list: its pid, its memory, and the ids of the instance that it is on.
type Listed = (u32, u64, (u32, u32));

/// The processes of a list, in the order of their start.
fn listed(moment: &Moment<'_>, gpu: &Gpu, belongs: impl Fn(Kind) -> bool) -> Vec<Listed> {
    let unknown = moment
        .fault(|fault| *fault == Fault::MissingMemory)
        .is_some();
    let mut list: Vec<Listed> = Vec::new();
    for running in gpu
        .current()
        .running
        .iter()
        .filter(|running| belongs(running.kind) && is_there(moment, running))
    {
        let Some(pid) = moment.listed_pid(running.pid) else {
            continue;
        };
        let ids = running.instance.unwrap_or((NONE_32, NONE_32));
        match list
            .iter_mut()
            .find(|(listed, _, on)| (*listed, *on) == (pid, ids))
        {
            Some((_, bytes, _)) => *bytes += running.memory_bytes,
            None => list.push((pid, running.memory_bytes, ids)),
        }
    }
    list.truncate(LIST_LIMIT);
    if unknown {
        list.iter_mut().for_each(|(_, bytes, _)| *bytes = NONE_64);
    }
    list
}

/// # Safety
/// `count` is null or valid; `rows` is null or valid for `*count` rows.
unsafe fn put_list<Row: Copy>(
    moment: &Moment<'_>,
    list: &[Listed],
    count: *mut u32,
    rows: *mut Row,
    row: impl Fn(Listed) -> Row,
) -> Answer {
    let size = list
        .len()
        .saturating_sub(moment.growing_rows().unwrap_or(0));
    let list: Vec<Row> = list.iter().copied().map(row).collect();
    // SAFETY: passed on from this function's contract.
    unsafe { put_rows(rows, count, &list, size) }
}

fn row_v1((pid, bytes, _): Listed) -> nvmlProcessInfo_v1_t {
    nvmlProcessInfo_v1_t {
        pid,
        usedGpuMemory: bytes,
    }
}

fn row_v2((pid, bytes, (gpu, compute)): Listed) -> nvmlProcessInfo_v2_t {
    nvmlProcessInfo_v2_t {
        pid,
        usedGpuMemory: bytes,
        gpuInstanceId: gpu,
        computeInstanceId: compute,
    }
}

fn compute(kind: Kind) -> bool {
    matches!(kind, Kind::Compute | Kind::Mps)
}

fn graphics(kind: Kind) -> bool {
    kind == Kind::Graphics
}

fn mps(kind: Kind) -> bool {
    kind == Kind::Mps
}

macro_rules! process_lists {
    ($($name:ident: $belongs:ident, $row:ident, $type:ty;)*) => {
        device_calls! {$(
            fn $name(moment, gpu => count: *mut u32, rows: *mut $type) {
                put_list(moment, &listed(moment, gpu, $belongs), count, rows, $row)
            }
        )*}
    };
}

process_lists! {
    nvmlDeviceGetComputeRunningProcesses: compute, row_v1, nvmlProcessInfo_v1_t;
    nvmlDeviceGetComputeRunningProcesses_v2: compute, row_v2, nvmlProcessInfo_v2_t;
    nvmlDeviceGetComputeRunningProcesses_v3: compute, row_v2, nvmlProcessInfo_t;
    nvmlDeviceGetGraphicsRunningProcesses: graphics, row_v1, nvmlProcessInfo_v1_t;
    nvmlDeviceGetGraphicsRunningProcesses_v2: graphics, row_v2, nvmlProcessInfo_v2_t;
    nvmlDeviceGetGraphicsRunningProcesses_v3: graphics, row_v2, nvmlProcessInfo_t;
    nvmlDeviceGetMPSComputeRunningProcesses: mps, row_v1, nvmlProcessInfo_v1_t;
    nvmlDeviceGetMPSComputeRunningProcesses_v2: mps, row_v2, nvmlProcessInfo_v2_t;
    nvmlDeviceGetMPSComputeRunningProcesses_v3: mps, row_v2, nvmlProcessInfo_t;
}

/// The rows of a utilisation answer: the true ones, and what a fault adds or takes away.
fn utilization(
    name: &str,
    clock: fn(&Stamps) -> StampClock,
    moment: &Moment<'_>,
    gpu: &Gpu,
    last_seen: u64,
) -> Result<Vec<ProcessRow>, u32> {
    without_mig(gpu)?;
    let is_empty = |fault: &Fault| matches!(fault, Fault::EmptyRows { call } if name.starts_with(call.as_str()));
    if moment.fault(is_empty).is_some() {
        return Ok(Vec::new());
    }
    let mut rows = gpu.stamped_rows(clock, moment.now_us, last_seen);
    let now_us = gpu.stamp_us(clock, moment.now_us);
    for row in &mut rows {
        row.pid = moment.utilization_pid(row.pid);
    }
    if moment.fault(|fault| *fault == Fault::JunkRows).is_some() {
        let someone = rows.first().map_or(1, |row| row.pid);
        let junk = |pid, at_us, percent| ProcessRow {
            pid,
            at_us,
            percent: [percent; 6],
        };
        let real = std::mem::take(&mut rows);
        rows.push(junk(0, now_us, 30));
        rows.push(junk(someone, 0, 40));
        rows.extend(real);
        rows.push(junk(someone, last_seen, 50));
        rows.push(junk(someone, now_us, 4_000_000_000));
        rows.push(junk(NO_SUCH_PID, now_us, 60));
        rows.resize(rows.len().max(JUNK_ROWS), junk(0, 0, 0));
    }
    if rows.is_empty() {
        Err(code::NOT_FOUND)
    } else {
        Ok(rows)
    }
}

/// Beyond the kernel's highest pid.
const NO_SUCH_PID: u32 = 4_194_305;
/// The count that drivers were seen to report with zombies about.
const JUNK_ROWS: usize = 100;

fn utilization_size(moment: &Moment<'_>, rows: usize) -> usize {
    if rows == 0 {
        return 0;
    }
    match moment.growing_rows() {
        Some(fewer) => rows.saturating_sub(fewer).max(1),
        None => usize::try_from(moment.client.profile.utilization_capacity).unwrap_or(rows),
    }
}

device_calls! {
    fn nvmlDeviceGetRunningProcessDetailList(moment, gpu => list: *mut nvmlProcessDetailList_t) {
        let mut answer = get(list)?;
        check_version::<nvmlProcessDetailList_t>(answer.version, 1)?;
        let found = match answer.mode {
            0 => listed(moment, gpu, compute),
            1 => listed(moment, gpu, graphics),
            2 => listed(moment, gpu, mps),
            _ => return Err(code::INVALID_ARGUMENT),
        };
        let done = put_list(moment, &found, &raw mut answer.numProcArrayEntries, answer.procArray, |(pid, bytes, (gpu, compute))| {
            nvmlProcessDetail_v1_t {
                pid,
                usedGpuMemory: bytes,
                gpuInstanceId: gpu,
                computeInstanceId: compute,
                usedGpuCcProtectedMemory: NONE_64,
            }
        });
        put(list, answer)?;
        done
    }

    fn nvmlDeviceGetProcessUtilization(moment, gpu => rows: *mut nvmlProcessUtilizationSample_t, count: *mut u32, last_seen: u64) {
        let name = "nvmlDeviceGetProcessUtilization";
        let found = utilization(name, |stamps| stamps.rows, moment, gpu, last_seen)?;
        let rows_found: Vec<_> = found
            .iter()
            .map(|row| {
                let [sm, memory, encoder, decoder, ..] = row.percent.map(narrow);
                nvmlProcessUtilizationSample_t {
                    pid: row.pid,
                    timeStamp: row.at_us,
                    smUtil: sm,
                    memUtil: memory,
                    encUtil: encoder,
                    decUtil: decoder,
                }
            })
            .collect();
        put_rows(rows, count, &rows_found, utilization_size(moment, found.len()))
    }

    fn nvmlDeviceGetProcessesUtilizationInfo(moment, gpu => info: *mut nvmlProcessesUtilizationInfo_t) {
        let mut answer = get(info)?;
        check_version::<nvmlProcessesUtilizationInfo_t>(answer.version, 1)?;
        let name = "nvmlDeviceGetProcessesUtilizationInfo";
        let clock = |stamps: &Stamps| stamps.rows_of_all_engines;
        let found = utilization(name, clock, moment, gpu, answer.lastSeenTimeStamp)?;
        let rows_found: Vec<_> = found
            .iter()
            .map(|row| {
                let [sm, memory, encoder, decoder, jpeg, optical_flow] = row.percent.map(narrow);
                nvmlProcessUtilizationInfo_v1_t {
                    timeStamp: row.at_us,
                    pid: row.pid,
                    smUtil: sm,
                    memUtil: memory,
                    encUtil: encoder,
                    decUtil: decoder,
                    jpgUtil: jpeg,
                    ofaUtil: optical_flow,
                }
            })
            .collect();
        let size = utilization_size(moment, found.len());
        let done = put_rows(answer.procUtilArray, &raw mut answer.processSamplesCount, &rows_found, size);
        put(info, answer)?;
        done
    }
}

// --- accounting ----------------------------------------------------------------------------------

/// Milliseconds from start to end; 0 while it runs.
fn lifetime_ms(account: &Account) -> u64 {
    account
        .to_us
        .map_or(0, |to_us| to_us.saturating_sub(account.from_us) / 1_000)
}

fn account_of(gpu: &Gpu, pid: u32) -> Result<&Account, u32> {
    without_mig(gpu)?;
    let accounting = gpu.accounting.as_ref().ok_or(code::NOT_SUPPORTED)?;
    let found = accounting
        .live
        .iter()
        .chain(&accounting.dead)
        .find(|account| account.pid == pid);
    found.ok_or(code::NOT_FOUND)
}

device_calls! {
    fn nvmlDeviceGetAccountingMode(_, gpu => mode: *mut u32) {
        put(mode, u32::from(gpu.accounting.is_some() && gpu.spec.mig != Mig::On))
    }

    fn nvmlDeviceSetAccountingMode(_, gpu => mode: u32) {
        without_mig(gpu)?;
        if mode > 1 {
            return Err(code::INVALID_ARGUMENT);
        }
        let event = crate::event::Event::Accounting { gpu: gpu.index, on: mode == 1 };
        append(event)
    }

    fn nvmlDeviceClearAccountingPids(_, gpu =>) {
        without_mig(gpu)?;
        append(crate::event::Event::ClearAccounting { gpu: gpu.index })
    }

    fn nvmlDeviceGetAccountingBufferSize(_, gpu => size: *mut u32) {
        without_mig(gpu)?;
        put(size, narrow((ACCOUNTING_LIVE + ACCOUNTING_DEAD) as u64))
    }

    fn nvmlDeviceGetAccountingPids(_, gpu => count: *mut u32, pids: *mut u32) {
        without_mig(gpu)?;
        let accounting = gpu.accounting.as_ref().ok_or(code::NOT_SUPPORTED)?;
        let found: Vec<u32> = accounting.live.iter().chain(&accounting.dead).map(|account| account.pid).collect();
        put_rows(pids, count, &found, found.len())
    }

    fn nvmlDeviceGetAccountingStats(moment, gpu => pid: u32, stats: *mut nvmlAccountingStats_t) {
        let account = account_of(gpu, pid)?;
        let credited = gpu.credited(account, moment.now_us);
        let percent = |sum: u64| narrow(sum.checked_div(credited.samples).unwrap_or(0) / 100);
        put(stats, nvmlAccountingStats_t {
            gpuUtilization: percent(credited.sm),
            memoryUtilization: percent(credited.memory),
            maxMemoryUsage: account.peak_bytes,
            time: lifetime_ms(account),
            startTime: account.from_us,
            isRunning: u32::from(account.to_us.is_none()),
            reserved: [0; 5],
        })
    }

    fn nvmlDeviceGetAccountingStats_v2(moment, gpu => stats: *mut AccountingStatsV2) {
        let pid = get(stats)?.pid;
        let account = account_of(gpu, pid)?;
        let credited = gpu.credited(account, moment.now_us);
        let percent = |sum: u64| narrow(sum.checked_div(credited.samples).unwrap_or(0) / 100);
        put(stats, AccountingStatsV2 {
            pid,
            isRunning: u32::from(account.to_us.is_none()),
            gpuUtilization: percent(credited.sm),
            memoryUtilization: percent(credited.memory),
            maxMemoryUsage: account.peak_bytes,
            sampleCount: narrow(credited.samples),
            sumGpuUtil: credited.sm,
            sumFbUtil: credited.memory,
            time: lifetime_ms(account),
            startTime: account.from_us,
        })
    }
}

/// Writes an event that a client caused; only root may, as with the driver.
fn append(event: crate::event::Event) -> Answer {
    if !rustix::process::geteuid().is_root() {
        return Err(code::NO_PERMISSION);
    }
    let dir = std::env::var_os(crate::STATE_DIR).unwrap_or_default();
    LogWriter::open(dir.as_ref())
        .append(|_| event)
        .map(drop)
        .map_err(|_| code::UNKNOWN)
}

// --- multi-instance mode, GPM --------------------------------------------------------------------

/// The instance that is asked for; only an instance answers.
fn only_on_instances<'a>(moment: &Moment<'a>, gpu: &Gpu) -> Result<&'a Part, u32> {
    moment.instance.ok_or(if gpu.spec.mig == Mig::On {
        code::INVALID_ARGUMENT
    } else {
        code::NOT_SUPPORTED
    })
}

/// Refuses what only products with performance monitoring have.
fn with_gpm(gpu: &Gpu) -> Answer {
    if gpu.spec.gpm {
        Ok(())
    } else {
        Err(code::NOT_SUPPORTED)
    }
}

/// The instances that a GPU can have.
const MOST_INSTANCES: u32 = 7;

device_calls! {
    fn nvmlDeviceGetMigMode(_, gpu => current: *mut u32, pending: *mut u32) {
        if gpu.spec.mig == Mig::Incapable {
            return Err(code::NOT_SUPPORTED);
        }
        let mode = u32::from(gpu.spec.mig == Mig::On);
        put(current, mode)?;
        put(pending, mode)
    }

    fn nvmlDeviceGetMaxMigDeviceCount(_, gpu => count: *mut u32) {
        put(count, if gpu.spec.mig == Mig::On { MOST_INSTANCES } else { 0 })
    }

    // The first place stays empty where there is another: clients must not stop at a hole.
    fn nvmlDeviceGetMigDeviceHandleByIndex(_, gpu => index: u32, handle: *mut nvmlDevice_t) {
        match gpu.spec.mig {
            Mig::Incapable | Mig::Off => return Err(code::NOT_SUPPORTED),
            Mig::On if index >= MOST_INSTANCES => return Err(code::INVALID_ARGUMENT),
            Mig::On => {}
        }
        let hole = usize::from(gpu.instances.len() < MOST_INSTANCES as usize);
        let place = (index as usize).checked_sub(hole).ok_or(code::NOT_FOUND)?;
        let instance = gpu.instances.get(place).ok_or(code::NOT_FOUND)?;
        put(handle, handle_of_instance(gpu.index, instance))
    }

    fn nvmlDeviceIsMigDeviceHandle(moment, _ => answer: *mut u32) {
        put(answer, u32::from(moment.instance.is_some()))
    }

    fn nvmlDeviceGetGpuInstanceId(moment, gpu => id: *mut u32) {
        put(id, only_on_instances(moment, gpu)?.spec.gpu_instance)
    }

    fn nvmlDeviceGetComputeInstanceId(moment, gpu => id: *mut u32) {
        put(id, only_on_instances(moment, gpu)?.spec.compute_instance)
    }

    fn nvmlDeviceGetDeviceHandleFromMigDeviceHandle(moment, gpu => parent: *mut nvmlDevice_t) {
        only_on_instances(moment, gpu)?;
        put(parent, handle_of(gpu.index))
    }

    fn nvmlDeviceGetAttributes_v2(moment, gpu => attributes: *mut nvmlDeviceAttributes_t) {
        let instance = only_on_instances(moment, gpu)?.spec;
        put(attributes, nvmlDeviceAttributes_t {
            multiprocessorCount: instance.compute_slices * 16,
            sharedCopyEngineCount: instance.slices,
            sharedDecoderCount: instance.slices,
            sharedEncoderCount: 0,
            sharedJpegCount: 0,
            sharedOfaCount: 0,
            gpuInstanceSliceCount: instance.slices,
            computeInstanceSliceCount: instance.compute_slices,
            memorySizeMB: instance.memory_bytes >> 20,
        })
    }

    fn nvmlGpmQueryDeviceSupport(_, gpu => support: *mut nvmlGpmSupport_t) {
        let mut answer = get(support)?;
        if answer.version != NVML_GPM_SUPPORT_VERSION {
            return Err(code::ARGUMENT_VERSION_MISMATCH);
        }
        answer.isSupportedDevice = u32::from(gpu.spec.gpm);
        put(support, answer)
    }

    fn nvmlGpmSampleGet(moment, gpu => sample: nvmlGpmSample_t) {
        with_gpm(gpu)?;
        gpm::fill(sample, gpm::Sample { gpu: gpu.index, instance: None, at_us: moment.now_us })
    }

    fn nvmlGpmMigSampleGet(moment, gpu => gpu_instance: u32, sample: nvmlGpmSample_t) {
        with_gpm(gpu)?;
        if !gpu.instances.iter().any(|part| part.spec.gpu_instance == gpu_instance) {
            return Err(code::INVALID_ARGUMENT);
        }
        let instance = Some(gpu_instance);
        gpm::fill(sample, gpm::Sample { gpu: gpu.index, instance, at_us: moment.now_us })
    }
}

pub unsafe extern "C" fn nvmlGpmSampleAlloc(sample: *mut nvmlGpmSample_t) -> nvmlReturn_t {
    on_library("nvmlGpmSampleAlloc", |_| {
        // SAFETY: the pointer is as nvml.h demands.
        unsafe { put(sample, gpm::alloc()) }
    })
}

pub unsafe extern "C" fn nvmlGpmSampleFree(sample: nvmlGpmSample_t) -> nvmlReturn_t {
    on_library("nvmlGpmSampleFree", |_| gpm::free(sample))
}

pub unsafe extern "C" fn nvmlGpmMetricsGet(request: *mut nvmlGpmMetricsGet_t) -> nvmlReturn_t {
    finish(|| {
        // SAFETY: the pointer is as nvml.h demands: null, or valid and nobody else's.
        let request = unsafe { request.as_mut() }.ok_or(code::INVALID_ARGUMENT)?;
        if request.version != NVML_GPM_METRICS_GET_VERSION {
            return Err(code::ARGUMENT_VERSION_MISMATCH);
        }
        let (earlier, later) = gpm::pair(request.sample1, request.sample2)?;
        let count = usize::try_from(request.numMetrics).unwrap_or(usize::MAX);
        let metrics = request
            .metrics
            .get_mut(..count)
            .ok_or(code::INVALID_ARGUMENT)?;
        on_gpu("nvmlGpmMetricsGet", earlier.gpu, |_, gpu| {
            metrics
                .iter_mut()
                .for_each(|metric| gpm::answer(gpu, earlier, later, metric));
            Ok(())
        })
    })
}

// --- events --------------------------------------------------------------------------------------

pub unsafe extern "C" fn nvmlEventSetCreate(set: *mut nvmlEventSet_t) -> nvmlReturn_t {
    on_library("nvmlEventSetCreate", |_| {
        // SAFETY: the pointer is as nvml.h demands.
        unsafe { put(set, events::create()) }
    })
}

pub unsafe extern "C" fn nvmlEventSetFree(set: nvmlEventSet_t) -> nvmlReturn_t {
    on_library("nvmlEventSetFree", |_| events::free(set))
}

pub unsafe extern "C" fn nvmlEventSetWait_v2(
    set: nvmlEventSet_t,
    data: *mut nvmlEventData_t,
    timeout_ms: u32,
) -> nvmlReturn_t {
    finish(|| {
        let event = events::wait("nvmlEventSetWait_v2", set, timeout_ms)?;
        // SAFETY: the pointer is as nvml.h demands.
        unsafe { put(data, event) }
    })
}

device_calls! {
    fn nvmlDeviceRegisterEvents(_, gpu => types: u64, set: nvmlEventSet_t) {
        events::register(set, gpu.index, gpu.xids.len(), types)
    }

    fn nvmlDeviceGetSupportedEventTypes(_, _ => types: *mut u64) { put(types, events::XID) }
}
