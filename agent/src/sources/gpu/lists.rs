//! NVML's process lists: who has a context on a GPU, and with how much memory.
//!
//! A process can be in several of NVML's lists at once, an MPS client is in two, so they are joined
//! by pid. Reading them takes the driver's global lock for milliseconds; whoever calls this bounds
//! how often.

use std::collections::BTreeMap;

use nvml_wrapper::Device;
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::struct_wrappers::device::ProcessInfo;

use super::calls::Watchdog;
use super::library::{Fault, fault};
use super::retried;
use crate::core::input::GpuProcess;
use crate::core::model::{GpuUuid, Pid};

/// Whether this driver's lists can be read.
///
/// Drivers 535.43 to 535.86 write rows of 32 bytes where every other driver writes 24 under the same
/// name, so that every second row is made of two halves; 535.98 has no such function. None but these.
pub(super) fn readable(driver: &str) -> bool {
    let mut parts = driver.split('.').map(str::parse::<u32>);
    !matches!(
        (parts.next(), parts.next()),
        (Some(Ok(535)), Some(Ok(43..=98)))
    )
}

/// The union of the compute, graphics and MPS lists. Lists that the device does not have are empty;
/// if it has none of them, that is the error.
pub(super) fn read(
    device: &Device<'_>,
    gpu: &GpuUuid,
    watchdog: &Watchdog,
) -> Result<Vec<GpuProcess>, NvmlError> {
    let mut joined = BTreeMap::new();
    let mut unsupported = None;
    let mut any = false;
    type List = fn(&Device<'_>) -> Result<Vec<ProcessInfo>, NvmlError>;
    let lists: [(&'static str, List); 3] = [
        ("nvmlDeviceGetComputeRunningProcesses", compute),
        ("nvmlDeviceGetGraphicsRunningProcesses", graphics),
        ("nvmlDeviceGetMPSComputeRunningProcesses", |device| {
            device.mps_running_compute_processes()
        }),
    ];
    for (name, list) in lists {
        match retried(|| watchdog.call(name, Some(gpu), || list(device))) {
            Ok(rows) => {
                any = true;
                join(&mut joined, &rows);
            }
            Err(error) if fault(&error) == Fault::Unsupported => unsupported = Some(error),
            Err(error) => return Err(error),
        }
    }
    match unsupported {
        Some(error) if !any => Err(error),
        _ => Ok(joined
            .into_iter()
            .map(|(pid, memory)| GpuProcess { pid, memory })
            .collect()),
    }
}

/// Drivers before 510 have only the second version of the list, with the same rows.
fn compute(device: &Device<'_>) -> Result<Vec<ProcessInfo>, NvmlError> {
    match device.running_compute_processes() {
        Err(NvmlError::FailedToLoadSymbol(_)) => device.running_compute_processes_v2(),
        answer => answer,
    }
}

fn graphics(device: &Device<'_>) -> Result<Vec<ProcessInfo>, NvmlError> {
    match device.running_graphics_processes() {
        Err(NvmlError::FailedToLoadSymbol(_)) => device.running_graphics_processes_v2(),
        answer => answer,
    }
}

/// Adds rows by pid. Each list gives a process's whole memory, so the largest figure stands.
fn join(joined: &mut BTreeMap<Pid, Option<u64>>, rows: &[ProcessInfo]) {
    for row in rows.iter().filter(|row| row.pid != 0) {
        let memory = match row.used_gpu_memory {
            UsedGpuMemory::Used(bytes) => Some(bytes),
            UsedGpuMemory::Unavailable => None,
        };
        let known = joined.entry(Pid(row.pid)).or_default();
        *known = (*known).max(memory);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_drivers_lists_are_refused() {
        for (driver, expected) in [
            ("470.256.02", true),
            ("535.42.01", true),
            ("535.43.02", false),
            ("535.86.05", false),
            ("535.98", false),
            ("535.104.05", true),
            ("550.163.01", true),
            ("580.65", true),
            ("unknown", true),
            ("", true),
        ] {
            assert_eq!(readable(driver), expected, "{driver}");
        }
    }

    #[test]
    fn a_process_in_two_lists_is_one() {
        let row = |pid, used_gpu_memory| ProcessInfo {
            pid,
            used_gpu_memory,
            gpu_instance_id: None,
            compute_instance_id: None,
        };
        let mut joined = BTreeMap::new();
        join(
            &mut joined,
            &[
                row(7, UsedGpuMemory::Used(10)),
                row(8, UsedGpuMemory::Unavailable),
                row(0, UsedGpuMemory::Used(5)),
            ],
        );
        join(
            &mut joined,
            &[
                row(7, UsedGpuMemory::Used(30)),
                row(8, UsedGpuMemory::Unavailable),
            ],
        );
        join(&mut joined, &[row(7, UsedGpuMemory::Unavailable)]);
        let joined: Vec<_> = joined.into_iter().collect();
        assert_eq!(joined, [(Pid(7), Some(30)), (Pid(8), None)]);
    }
}
