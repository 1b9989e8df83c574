//! NVML's process lists: who has a context on a GPU, and with how much memory.
//!
//! A process can be in several of NVML's lists at once, an MPS client is in two, so they are joined
//! by pid. Which process is the MPS server is not in them: see [`with_roles`]. Reading them takes
//! the driver's global lock for milliseconds, so the caller limits how often it is done.

use std::collections::BTreeMap;

use nvml_wrapper::Device;
use nvml_wrapper::enum_wrappers::device::ComputeMode;
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::struct_wrappers::device::ProcessInfo;

use super::calls::Watchdog;
use super::fault::{NvmlErrorKind, fault};
use super::retried;
use crate::core::input::{GpuProcess, MpsRole};
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
    let mut joined = BTreeMap::<Pid, Listed>::new();
    let mut unsupported = None;
    let mut any = false;
    type List = fn(&Device<'_>) -> Result<Vec<ProcessInfo>, NvmlError>;
    /// What a process is that is in this list.
    type Mark = fn(&mut Listed);
    let lists: [(&'static str, List, Mark); 3] = [
        ("nvmlDeviceGetComputeRunningProcesses", compute, |listed| {
            listed.computes = true
        }),
        ("nvmlDeviceGetGraphicsRunningProcesses", graphics, |_| ()),
        (
            "nvmlDeviceGetMPSComputeRunningProcesses",
            |device| device.mps_running_compute_processes(),
            |listed| listed.is_client = true,
        ),
    ];
    for (name, list, mark) in lists {
        match retried(|| watchdog.call(name, Some(gpu), || list(device))) {
            Ok(rows) => {
                any = true;
                join(&mut joined, &rows, mark);
            }
            Err(error) if fault(&error) == NvmlErrorKind::Unsupported => unsupported = Some(error),
            Err(error) => return Err(error),
        }
    }
    match unsupported {
        Some(error) if !any => Err(error),
        _ => Ok(with_roles(joined, &mut |pid| {
            let mode = watchdog.call("nvmlDeviceGetComputeMode", Some(gpu), || {
                device.compute_mode()
            });
            if matches!(mode, Ok(ComputeMode::ExclusiveProcess)) {
                MpsRole::Server
            } else if goes_by_the_server_s_name(pid) {
                MpsRole::NamedServer
            } else {
                MpsRole::None
            }
        })),
    }
}

/// One process, as the lists together show it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Listed {
    memory: Option<u64>,
    computes: bool,
    is_client: bool,
}

/// Gives each process its part in MPS. A process that computes beside clients and is none itself may
/// be their server. `role` decides, and is asked about no other: where the device lets one process
/// only have a compute context, as NVIDIA's device plugin sets it up, that one is the server; else
/// its name is all there is, which any process can take.
fn with_roles(
    joined: BTreeMap<Pid, Listed>,
    role: &mut dyn FnMut(Pid) -> MpsRole,
) -> Vec<GpuProcess> {
    let any_clients = joined.values().any(|listed| listed.is_client);
    joined
        .into_iter()
        .map(|(pid, listed)| GpuProcess {
            pid,
            memory: listed.memory,
            mps: if listed.is_client {
                MpsRole::Client
            } else if any_clients && listed.computes {
                role(pid)
            } else {
                MpsRole::None
            },
        })
        .collect()
}

/// Whether a process has the name of the MPS server, of which the kernel keeps 15 bytes.
fn goes_by_the_server_s_name(pid: Pid) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/comm"))
        .is_ok_and(|name| name.trim_end() == "nvidia-cuda-mps")
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
fn join(joined: &mut BTreeMap<Pid, Listed>, rows: &[ProcessInfo], mark: impl Fn(&mut Listed)) {
    for row in rows.iter().filter(|row| row.pid != 0) {
        let memory = match row.used_gpu_memory {
            UsedGpuMemory::Used(bytes) => Some(bytes),
            UsedGpuMemory::Unavailable => None,
        };
        let known = joined.entry(Pid(row.pid)).or_default();
        known.memory = known.memory.max(memory);
        mark(known);
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
            |listed| listed.computes = true,
        );
        join(
            &mut joined,
            &[
                row(7, UsedGpuMemory::Used(30)),
                row(8, UsedGpuMemory::Unavailable),
            ],
            |_| (),
        );
        join(
            &mut joined,
            &[row(7, UsedGpuMemory::Unavailable)],
            |listed| listed.is_client = true,
        );
        let process = |pid, memory, mps| GpuProcess {
            pid: Pid(pid),
            memory,
            mps,
        };
        let roles = with_roles(joined, &mut |_| MpsRole::Server);
        let expected = [
            process(7, Some(30), MpsRole::Client),
            process(8, None, MpsRole::Server),
        ];
        assert_eq!(roles, expected);
    }

    #[test]
    fn only_who_computes_beside_clients_may_be_their_server() {
        let listed = |computes, is_client| Listed {
            memory: None,
            computes,
            is_client,
        };
        let (plain, client, draws) = (
            listed(true, false),
            listed(true, true),
            listed(false, false),
        );
        for (lists, expected) in [
            (vec![plain], vec![MpsRole::None]),
            (vec![plain, client], vec![MpsRole::Server, MpsRole::Client]),
            (vec![client, draws], vec![MpsRole::Client, MpsRole::None]),
        ] {
            let joined = (1..).map(Pid).zip(lists.iter().copied()).collect();
            let roles: Vec<_> = with_roles(joined, &mut |_| MpsRole::Server)
                .into_iter()
                .map(|process| process.mps)
                .collect();
            assert_eq!(roles, expected, "{lists:?}");
        }
        assert!(!goes_by_the_server_s_name(Pid(std::process::id())));
    }
}
