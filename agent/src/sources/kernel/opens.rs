//! Opens of GPU devices: which devices those are, and which hook reports them.
//!
//! Three of the object's hooks can do it, and the first that the kernel allows is taken:
//!
//! - `chrdev_open` is a function of the kernel that every open of every character device goes
//!   through, and nothing else does: it costs ordinary files nothing. Some kernels let nobody attach
//!   to their functions.
//! - The exit tracepoints of the system calls that open files. While they are attached, every system
//!   call of every program takes the kernel's slower exit path, and for every open the inode is
//!   read. They need tracefs, which is not mounted in most containers.
//! - `sys_exit`, which needs no tracefs. It runs after every system call and costs the most.
//!
//! What they cost is in `docs/PERFORMANCE.md`. Which of them a kernel allows is found out by trying,
//! and each refusal is kept with its reason.
//!
//! None is needed for the books: where all are refused, process lists are read less promptly
//! and processes too short for any sample leave no trace. So nothing here fails the load.
//!
//! A node whose driver is not loaded has no such device. The hook is attached only when there is
//! one, so a node without a GPU has no cost.

use std::fs;

use aya::programs::trace_point::TracePointError;
use aya::programs::{BtfTracePoint, FExit, ProgramError, TracePoint};
use aya::{Btf, Ebpf};
use gpuacct_common::global::{NO_CALL, NO_MAJOR};
use tracing::{debug, info, warn};

use super::btf::BtfError;
use super::error::{KernelError, reason, refused};
use crate::core::model::DeviceNumber;

/// Where the kernel lists the major numbers of its devices.
const PROC_DEVICES: &str = "/proc/devices";
/// What NVIDIA's driver calls its devices: the GPUs and the control device, in two generations of
/// the driver, and unified memory.
pub const NVIDIA: [&str; 3] = ["nvidia", "nvidia-frontend", "nvidia-uvm"];
/// The GPUs' major number is reserved, and so known also while the driver is not loaded.
///
/// <https://docs.kernel.org/admin-guide/devices.html>
pub const NVIDIA_MAJOR: u32 = DeviceNumber::NVIDIA;
/// How many majors the object compares with.
pub(super) const MAJORS: usize = gpuacct_common::global::DEVICE_MAJORS.len();

/// The tracepoints of the calls that open files, the one that every architecture has first. The
/// programs are called after them.
const OPEN_CALLS: [&str; 3] = ["sys_exit_openat", "sys_exit_openat2", "sys_exit_open"];

/// A place in the kernel where opens can be observed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenHook {
    /// At the end of the kernel's function.
    Function,
    /// After each call that opens a file.
    Opens,
    /// After every system call.
    Calls,
}

impl OpenHook {
    /// All, the best first.
    pub const ALL: [Self; 3] = [Self::Function, Self::Opens, Self::Calls];

    /// What it is attached to, which is also the program's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Function => "chrdev_open",
            Self::Opens => OPEN_CALLS[0],
            Self::Calls => "sys_exit",
        }
    }

    fn load(self, object: &mut Ebpf, types: &Btf) -> Result<(), KernelError> {
        const ACT: &str = "load a program for";
        let name = self.name();
        match self {
            Self::Function => program::<FExit>(object, name)?
                .load(name, types)
                .map_err(|error| failed(ACT, name, error)),
            Self::Opens => OPEN_CALLS.into_iter().try_for_each(|name| {
                program::<TracePoint>(object, name)?
                    .load()
                    .map_err(|error| failed(ACT, name, error))
            }),
            Self::Calls => program::<BtfTracePoint>(object, name)?
                .load(name, types)
                .map_err(|error| failed(ACT, name, error)),
        }
    }

    fn attach(self, object: &mut Ebpf) -> Result<(), KernelError> {
        const ACT: &str = "attach to";
        let name = self.name();
        match self {
            Self::Function => program::<FExit>(object, name)?
                .attach()
                .map(drop)
                .map_err(|error| failed(ACT, name, error)),
            Self::Opens => {
                let attached = attach_to_open_calls(object);
                if attached.is_err() {
                    // If some of these stayed attached beside the fallback hook, opens would be reported twice.
                    for name in OPEN_CALLS {
                        let _ = program::<TracePoint>(object, name)?.unload();
                    }
                }
                attached.map_err(|(name, error)| failed(ACT, name, error))
            }
            Self::Calls => program::<BtfTracePoint>(object, name)?
                .attach()
                .map(drop)
                .map_err(|error| failed(ACT, name, error)),
        }
    }
}

/// Attaches to the first of [`OPEN_CALLS`] and to those of the others that this kernel has.
fn attach_to_open_calls(object: &mut Ebpf) -> Result<(), (&'static str, ProgramError)> {
    for (at, name) in OPEN_CALLS.into_iter().enumerate() {
        // Whoever loaded them knows that they are there.
        let Ok(program) = program::<TracePoint>(object, name) else {
            continue;
        };
        match program.attach("syscalls", name) {
            Ok(_) => {}
            Err(error) if at > 0 && is_missing(&error) => {
                debug!(hook = name, "the kernel does not have this system call");
            }
            Err(error) => return Err((name, error)),
        }
    }
    Ok(())
}

/// Whether tracefs is there and has no such tracepoint.
fn is_missing(error: &ProgramError) -> bool {
    matches!(
        error,
        ProgramError::TracePointError(TracePointError::FileError { io_error, .. })
            if io_error.kind() == std::io::ErrorKind::NotFound
    )
}

fn program<'a, T: 'a>(object: &'a mut Ebpf, name: &'static str) -> Result<&'a mut T, KernelError>
where
    &'a mut T: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    object
        .program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or(KernelError::Foreign {
            what: "program",
            name,
        })
}

fn failed(act: &str, name: &'static str, error: ProgramError) -> KernelError {
    refused(&format!("{act} `{name}`"), error, |error| {
        KernelError::Attach {
            tracepoint: name,
            source: Box::new(error),
        }
    })
}

/// Which devices are watched, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watch {
    /// Names of character devices as in `/proc/devices`. None watches nothing.
    pub names: Vec<String>,
    /// Hooks that may be used, the best first.
    pub hooks: Vec<OpenHook>,
}

impl Default for Watch {
    fn default() -> Self {
        Self {
            names: NVIDIA.map(str::to_owned).into(),
            hooks: OpenHook::ALL.into(),
        }
    }
}

impl Watch {
    /// The numbers that the object is to compare with, so far as they can be known by now.
    pub(super) fn majors(&self) -> [u32; MAJORS] {
        let reserved = self.names.iter().any(|name| name == NVIDIA[0]);
        let mut found: Vec<u32> = reserved.then_some(NVIDIA_MAJOR).into_iter().collect();
        for major in self.listed() {
            if !found.contains(&major) {
                found.push(major);
            }
        }
        if found.len() > MAJORS {
            warn!(
                ?found,
                "too many device majors; only opens of the first {MAJORS} are reported"
            );
        }
        let mut majors = [NO_MAJOR; MAJORS];
        for (slot, major) in majors.iter_mut().zip(found) {
            *slot = major;
        }
        majors
    }

    /// The majors under which the kernel has such devices now.
    fn listed(&self) -> Vec<u32> {
        match fs::read_to_string(PROC_DEVICES) {
            Ok(table) => character_majors(&table, &self.names),
            Err(error) => {
                debug!(%error, "cannot read {PROC_DEVICES}; no device is known");
                Vec::new()
            }
        }
    }
}

/// The system calls that open a file by name, in the order of `OPEN_CALLS`.
pub(super) fn open_calls() -> [u32; 3] {
    #[cfg(target_arch = "x86_64")]
    let open = libc::SYS_open;
    #[cfg(not(target_arch = "x86_64"))]
    let open = -1;
    [open, libc::SYS_openat, libc::SYS_openat2].map(|call| u32::try_from(call).unwrap_or(NO_CALL))
}

/// The majors of character devices with one of these names.
fn character_majors(proc_devices: &str, names: &[String]) -> Vec<u32> {
    proc_devices
        .lines()
        .skip_while(|line| *line != "Character devices:")
        .take_while(|line| *line != "Block devices:")
        .filter_map(|line| {
            let (major, name) = line.trim_start().split_once(' ')?;
            let major = major.parse().ok()?;
            names.iter().any(|wanted| wanted == name).then_some(major)
        })
        .collect()
}

/// State of the hook for device opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenHookState {
    /// By configuration they are not.
    Off,
    /// No such device is on this node yet.
    Waiting,
    /// They are, by this hook.
    Attached(OpenHook),
    /// The kernel refuses every hook.
    Refused,
}

impl OpenHookState {
    /// In a few words, for the line of the kernel source; empty where there is nothing to tell.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Off | Self::Waiting => "",
            Self::Attached(OpenHook::Function) => "GPU opens by chrdev_open",
            Self::Attached(OpenHook::Opens) => "GPU opens by sys_exit_openat",
            Self::Attached(OpenHook::Calls) => "GPU opens by sys_exit",
            Self::Refused => "GPU opens not seen",
        }
    }
}

/// Why a hook cannot be had.
#[derive(Debug)]
pub struct Refusal {
    /// The hook that is refused.
    pub hook: OpenHook,
    /// What the kernel answered.
    pub error: KernelError,
}

/// The hook, from being loaded to being attached.
#[derive(Debug)]
pub(super) struct Opens {
    watch: Watch,
    /// Those that the kernel took, the best first.
    loaded: Vec<OpenHook>,
    refusals: Vec<Refusal>,
    state: OpenHookState,
}

impl Opens {
    /// Has the kernel take the programs. `lacking` is what it does not tell of its types.
    pub(super) fn load(
        object: &mut Ebpf,
        types: &Btf,
        watch: &Watch,
        lacking: Option<&BtfError>,
    ) -> Self {
        let mut opens = Self {
            watch: watch.clone(),
            loaded: Vec::new(),
            refusals: Vec::new(),
            state: OpenHookState::Waiting,
        };
        if watch.names.is_empty() || watch.hooks.is_empty() {
            opens.state = OpenHookState::Off;
            return opens;
        }
        for &hook in &watch.hooks {
            let taken = match lacking {
                Some(error) => Err(KernelError::Btf(error.clone())),
                None => hook.load(object, types),
            };
            match taken {
                Ok(()) => opens.loaded.push(hook),
                Err(error) => opens.refuse(hook, error),
            }
        }
        opens
    }

    fn refuse(&mut self, hook: OpenHook, error: KernelError) {
        let reason = reason(&error);
        info!(
            hook = hook.name(),
            reason, "cannot attach this hook for device opens"
        );
        self.refusals.push(Refusal { hook, error });
    }

    /// Attaches the best hook, if there is a device to be opened by now. Nothing more happens once
    /// that has been done.
    pub(super) fn attach(&mut self, object: &mut Ebpf) -> OpenHookState {
        if self.state == OpenHookState::Waiting && !self.watch.listed().is_empty() {
            self.attach_first(object);
        }
        self.state
    }

    /// Attaches the best hook that can be had.
    pub(super) fn attach_first(&mut self, object: &mut Ebpf) -> OpenHookState {
        for hook in std::mem::take(&mut self.loaded) {
            match hook.attach(object) {
                Ok(()) => {
                    info!(hook = hook.name(), "reporting device opens");
                    self.state = OpenHookState::Attached(hook);
                    return self.state;
                }
                Err(error) => self.refuse(hook, error),
            }
        }
        warn!(
            "no hook for device opens can be attached; process lists are read at their interval only"
        );
        self.state = OpenHookState::Refused;
        self.state
    }

    pub(super) const fn state(&self) -> OpenHookState {
        self.state
    }

    pub(super) fn into_refusals(self) -> Vec<Refusal> {
        self.refusals
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "Character devices:\n  1 mem\n 10 misc\n195 nvidia\n195 nvidiactl\n\
                         508 nvidia-uvm\n\nBlock devices:\n  7 loop\n259 nvidia\n";

    #[test]
    fn majors_are_those_of_character_devices_by_name() {
        let rows: [(&[&str], &[u32]); 5] = [
            (&["nvidia", "nvidia-uvm"], &[195, 508]),
            (&["misc"], &[10]),
            (&["nvidia-fabric"], &[]),
            (&["loop"], &[]),
            (&[], &[]),
        ];
        for (names, expected) in rows {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            assert_eq!(character_majors(TABLE, &names), expected, "{names:?}");
        }
        let nvidia = [NVIDIA[0].to_owned()];
        for damaged in [
            "",
            "Character devices:",
            "Character devices:\nx nvidia\n195\n",
        ] {
            assert_eq!(character_majors(damaged, &nvidia), [0u32; 0], "{damaged:?}");
        }
    }

    #[test]
    fn the_gpus_major_is_known_before_the_driver_is_loaded() {
        assert!(Watch::default().majors().contains(&NVIDIA_MAJOR));
        let nothing = Watch {
            names: Vec::new(),
            ..Watch::default()
        };
        assert_eq!(nothing.majors(), [NO_MAJOR; MAJORS]);
    }
}
