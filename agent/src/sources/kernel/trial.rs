//! A trial for `gpuacct check`: would the object run here, and if not, which part is refused?
//!
//! [`KernelSource::load`](super::KernelSource::load) stops at the first refusal, as it must; an operator wants all of
//! them. Each attach point is tried on its own and let go at once. The object of an agent that is
//! running is not touched: a tracepoint takes any number of programs.

use rustix::thread::CapabilitySet;

use super::attach::{KernelConfig, attach_to, give_memory_back, load_object};
use super::error::{KernelError, check_kernel, effective_capabilities, raise_locked_memory};
use super::layout::{Kernel, OPTIONAL_TRACEPOINTS, TRACEPOINTS, kernel_types};
use super::opens::{OpenHookState, Opens, Refusal};

/// What became of one attach point.
#[derive(Debug)]
pub struct Hook {
    /// The tracepoint.
    pub name: &'static str,
    /// Why it does not take the program; absent if it does.
    pub refusal: Option<KernelError>,
}

/// Results of all attach points of the object.
#[derive(Debug)]
pub struct Hooks {
    /// What the agent cannot do without.
    pub needed: Vec<Hook>,
    /// What it does without if it must.
    pub optional: Vec<Hook>,
    /// The hook for opens of devices, attached whether or not there is such a device now.
    pub opens: OpenHookState,
    /// Why it is not a better one.
    pub refusals: Vec<Refusal>,
}

/// The kernel's release.
///
/// # Errors
/// If it is older than the object needs.
pub fn release() -> Result<String, KernelError> {
    let release = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    check_kernel(&release).map(|()| release)
}

/// Looks up everything that the object must know of this kernel, and returns how many offsets
/// that were.
///
/// # Errors
/// If the kernel does not describe its types, or lacks one of them.
pub fn types() -> Result<usize, KernelError> {
    let inspected = Kernel::inspect().map(|kernel| kernel.offsets.len());
    give_memory_back();
    inspected
}

/// Loads the object and attaches each of its programs, then lets all of them go.
///
/// Takes some hundred milliseconds and does file I/O: not for an async thread.
///
/// # Errors
/// If there is nothing to attach: no object, no types, or maps that the kernel refuses.
pub fn hooks(config: &KernelConfig) -> Result<Hooks, KernelError> {
    let tried = attach_each(config);
    give_memory_back();
    tried
}

fn attach_each(config: &KernelConfig) -> Result<Hooks, KernelError> {
    if config.object.is_empty() {
        return Err(KernelError::NoObject);
    }
    raise_locked_memory();
    let kernel = Kernel::inspect()?;
    let mut object = load_object(&kernel, config)?;
    let types = kernel_types()?;
    let mut hook = |name| Hook {
        name,
        refusal: attach_to(&mut object, name, &types).err(),
    };
    let needed = TRACEPOINTS.map(&mut hook);
    let optional = OPTIONAL_TRACEPOINTS.map(&mut hook);
    let lacking = kernel.open_offsets.as_ref().err();
    let mut opens = Opens::load(&mut object, &types, &config.watch, lacking);
    let state = match opens.state() {
        OpenHookState::Waiting => opens.attach_first(&mut object),
        state => state,
    };
    Ok(Hooks {
        needed: needed.into(),
        optional: optional.into(),
        opens: state,
        refusals: opens.into_refusals(),
    })
}

/// The capabilities that loading takes, and whether this process has each in effect; nothing if the
/// kernel does not say. `CAP_SYS_ADMIN` stands for both of the others.
#[must_use]
pub fn capabilities() -> Vec<(&'static str, bool)> {
    let Some(held) = effective_capabilities() else {
        return Vec::new();
    };
    [
        ("CAP_BPF", CapabilitySet::BPF),
        ("CAP_PERFMON", CapabilitySet::PERFMON),
        ("CAP_SYS_ADMIN", CapabilitySet::SYS_ADMIN),
    ]
    .map(|(name, capability)| (name, held.contains(capability)))
    .into()
}

#[cfg(test)]
mod tests {
    use super::super::error::reason;
    use super::*;

    #[test]
    fn without_an_object_there_is_nothing_to_try() {
        let config = KernelConfig {
            object: &[],
            ..KernelConfig::default()
        };
        let error = hooks(&config).expect_err("no object");
        assert!(matches!(error, KernelError::NoObject), "{error}");
        assert!(reason(&error).contains("cargo xtask build"));
    }
}
