//! A trial for `gpuacct check`: would the object run here, and if not, which part is refused?
//!
//! [`super::KernelSource::load`] stops at the first refusal, as it must; an operator wants all of
//! them. Each attach point is tried on its own and let go at once. The object of an agent that is
//! running is not touched: a tracepoint takes any number of programs.

use super::opens::{Opens, Refusal, State};
use super::{
    CapabilitySet, Kernel, KernelConfig, KernelError, OPTIONAL_TRACEPOINTS, StdError, TRACEPOINTS,
    attach_to, check_kernel, effective_capabilities, give_memory_back, kernel_types,
    raise_locked_memory,
};

/// What became of one attach point.
#[derive(Debug)]
pub struct Hook {
    /// The tracepoint.
    pub name: &'static str,
    /// Why it does not take the program; absent if it does.
    pub refusal: Option<KernelError>,
}

/// What became of everything that the object is attached to.
#[derive(Debug)]
pub struct Hooks {
    /// What the agent cannot do without.
    pub needed: Vec<Hook>,
    /// What it does without if it must.
    pub optional: Vec<Hook>,
    /// The hook for opens of devices, attached whether or not there is such a device now.
    pub opens: State,
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

/// Looks up everything that the object must be told of this kernel, and returns how many offsets
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
    let mut object = kernel.load_object(config)?;
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
        State::Waiting => opens.attach_first(&mut object),
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

/// An error with its causes, in one line. The verifier's log, which is one of them, is cut.
#[must_use]
pub fn reason(error: &KernelError) -> String {
    const LONGEST: usize = 600;
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    let mut text = text.replace('\n', " ");
    if text.len() > LONGEST {
        text.truncate(text.floor_char_boundary(LONGEST));
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io;

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

    #[test]
    fn an_endless_reason_is_cut() {
        let error = KernelError::NoBtf(io::Error::other("ä\n".repeat(1_000)));
        let text = reason(&error);
        assert!(text.len() < 610 && text.ends_with('…'), "{text}");
        assert!(!text.contains('\n'));
    }
}
