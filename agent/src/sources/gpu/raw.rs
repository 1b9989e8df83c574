//! The calls that nvml-wrapper does not make, and the only unsafe code of the agent.
//!
//! Each is one function that gives plain values back. The types come from nvml-wrapper-sys, whose
//! layouts were compared with NVIDIA's header; symbols are looked up before they are called, since a
//! missing one is a fact about the driver's version and no defect.

#![expect(
    unsafe_code,
    reason = "foreign functions behind NVML's published ABI; each call says why it is sound"
)]

use std::ffi::c_int;
use std::ptr;

use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};
use nvml_wrapper_sys::bindings::{nvmlMemory_v2_t, nvmlReturn_t};

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
