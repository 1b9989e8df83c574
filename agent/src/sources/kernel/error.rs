//! Why the eBPF object cannot run on this machine, and what is lacking for it.

use std::error::Error as StdError;
use std::io;

use aya::EbpfError;
use aya::maps::MapError;
use aya::programs::ProgramError;
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::thread::CapabilitySet;
use thiserror::Error;
use tracing::debug;

use super::btf::BtfError;
use crate::errors::chain;

/// Where the kernel describes its types.
pub(super) const KERNEL_BTF: &str = "/sys/kernel/btf/vmlinux";

/// The oldest kernel that has what the object is made of: the ring buffer and the boot clock.
const OLDEST_KERNEL: (u32, u32) = (5, 8);

/// Why the object cannot run.
#[derive(Debug, Error)]
pub enum KernelError {
    /// This binary carries none.
    #[error("this build has no eBPF object; build with `cargo xtask build`")]
    NoObject,
    /// The kernel is older than the object needs.
    #[error(
        "linux {release} is too old, expected {}.{} or newer",
        OLDEST_KERNEL.0,
        OLDEST_KERNEL.1
    )]
    OldKernel {
        /// What it calls itself.
        release: String,
    },
    /// The ring cannot have that size.
    #[error("ring of {found} bytes, expected a power of two of at least {least}")]
    RingBytes {
        /// What was asked for.
        found: u32,
        /// The size of a page.
        least: usize,
    },
    /// The kernel does not describe its types.
    #[error("cannot read {KERNEL_BTF}; the kernel must be built with CONFIG_DEBUG_INFO_BTF")]
    NoBtf(#[source] io::Error),
    /// The kernel's description of its types lacks something, or is damaged.
    #[error("cannot use {KERNEL_BTF}")]
    Btf(#[source] BtfError),
    /// The kernel has no such tracepoint.
    #[error("the kernel has no tracepoint `{name}`; it must be built with {option}")]
    NoTracepoint {
        /// The tracepoint.
        name: &'static str,
        /// What would bring it.
        option: &'static str,
    },
    /// The kernel does not allow it.
    #[error("the kernel refused to {act}: {missing}")]
    Refused {
        /// Verb phrase of the failed action, for the message.
        act: String,
        /// What is lacking for it.
        missing: String,
        /// The kernel's answer.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
    /// The object cannot be loaded.
    #[error("cannot load the eBPF object")]
    Load(#[source] Box<EbpfError>),
    /// One of its programs cannot be loaded or attached.
    #[error("cannot attach to `{tracepoint}`")]
    Attach {
        /// Tracepoint of the attachment.
        tracepoint: &'static str,
        /// What aya or the kernel answered.
        #[source]
        source: Box<ProgramError>,
    },
    /// The object is another than this agent was built for.
    #[error("the eBPF object has no {what} `{name}`")]
    Foreign {
        /// Map or program.
        what: &'static str,
        /// Its name.
        name: &'static str,
    },
    /// One of its maps cannot be used.
    #[error("cannot use the map `{name}`")]
    Map {
        /// The map.
        name: &'static str,
        /// What aya or the kernel answered.
        #[source]
        source: Box<MapError>,
    },
    /// The thread that drains the ring cannot be started.
    #[error("cannot start the thread that drains the ring")]
    Thread(#[source] io::Error),
}

impl KernelError {
    /// A short class, for a label.
    #[must_use]
    pub const fn class(&self) -> &'static str {
        match self {
            Self::NoObject => "no_object",
            Self::OldKernel { .. } | Self::NoTracepoint { .. } => "old_kernel",
            Self::RingBytes { .. } => "configuration",
            Self::NoBtf(_) | Self::Btf(_) => "btf",
            Self::Refused { .. } => "permission",
            Self::Load(_) | Self::Attach { .. } | Self::Foreign { .. } | Self::Map { .. } => "load",
            Self::Thread(_) => "system",
        }
    }
}

/// An error that says what was lacking, if it was the kernel's "not permitted"; `otherwise`'s if
/// it was not.
pub(super) fn refused<E: StdError + Send + Sync + 'static>(
    act: &str,
    error: E,
    otherwise: impl FnOnce(E) -> KernelError,
) -> KernelError {
    if !is_not_permitted(&error) {
        return otherwise(error);
    }
    let missing = match effective_capabilities() {
        Some(held) => missing_capabilities(held),
        None => "it may lack CAP_BPF and CAP_PERFMON".into(),
    };
    KernelError::Refused {
        act: act.into(),
        missing,
        source: Box::new(error),
    }
}

/// The capabilities of this process; none if the kernel does not say.
pub(super) fn effective_capabilities() -> Option<CapabilitySet> {
    rustix::thread::capabilities(None)
        .ok()
        .map(|sets| sets.effective)
}

/// Refuses a kernel that is known to be too old.
pub(super) fn check_kernel(release: &str) -> Result<(), KernelError> {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|number| number.parse::<u32>().ok());
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(major), Some(minor)) if (major, minor) < OLDEST_KERNEL => {
            Err(KernelError::OldKernel {
                release: release.into(),
            })
        }
        // An unreadable kernel release is not a reason to refuse: what matters is whether the
        // object loads.
        _ => Ok(()),
    }
}

/// Before Linux 5.11 maps count as locked memory.
pub(super) fn raise_locked_memory() {
    let unlimited = Rlimit {
        current: None,
        maximum: None,
    };
    if let Err(error) = setrlimit(Resource::Memlock, unlimited) {
        debug!(%error, "cannot raise the limit on locked memory, which matters only before linux 5.11");
    }
    debug!(capabilities = ?effective_capabilities(), "loading the eBPF object");
}

fn is_not_permitted(error: &(dyn StdError + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>()
            && error.kind() == io::ErrorKind::PermissionDenied
        {
            return true;
        }
        cause = error.source();
    }
    false
}

/// What a process with these capabilities lacks for loading the object.
fn missing_capabilities(held: CapabilitySet) -> String {
    if held.contains(CapabilitySet::SYS_ADMIN) {
        return "this process has CAP_SYS_ADMIN, so it is the kernel's policy (lockdown, an LSM, \
                or a container's seccomp filter)"
            .into();
    }
    let lacking: Vec<&str> = [
        (CapabilitySet::BPF, "CAP_BPF"),
        (CapabilitySet::PERFMON, "CAP_PERFMON"),
    ]
    .into_iter()
    .filter_map(|(capability, name)| (!held.contains(capability)).then_some(name))
    .collect();
    if lacking.is_empty() {
        "this process has CAP_BPF and CAP_PERFMON, so it is the kernel's policy, or a kernel that \
         wants CAP_SYS_ADMIN"
            .into()
    } else {
        format!("this process lacks {}", lacking.join(" and "))
    }
}

/// An error with its causes, in one line. The verifier's log, which is one of them, is cut.
#[must_use]
pub fn reason(error: &KernelError) -> String {
    const LONGEST: usize = 600;
    let mut text = chain(error).replace('\n', " ");
    if text.len() > LONGEST {
        text.truncate(text.floor_char_boundary(LONGEST));
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn kernels_before_5_8_are_refused() {
        for release in [
            "5.8.0",
            "5.10.0-28-amd64",
            "6.1.0",
            "10.0",
            "6",
            "custom",
            "",
        ] {
            check_kernel(release).unwrap();
        }
        for release in ["5.7.19", "5.4.0-150-generic", "4.19.0", "3.10.0-1160.el7"] {
            assert_eq!(
                check_kernel(release).unwrap_err().to_string(),
                format!("linux {release} is too old, expected 5.8 or newer")
            );
        }
    }

    #[test]
    fn a_refusal_names_what_is_lacking() {
        let denied = || io::Error::from_raw_os_error(Errno::PERM.raw_os_error());
        let rows = [
            (CapabilitySet::empty(), "lacks CAP_BPF and CAP_PERFMON"),
            (CapabilitySet::BPF, "lacks CAP_PERFMON"),
            (
                CapabilitySet::BPF | CapabilitySet::PERFMON,
                "the kernel's policy",
            ),
            (CapabilitySet::SYS_ADMIN, "the kernel's policy (lockdown"),
        ];
        for (held, expected) in rows {
            let text = missing_capabilities(held);
            assert!(text.contains(expected), "{text}");
        }
        let nested = KernelError::Thread(denied());
        assert!(matches!(
            refused("x", nested, |_| KernelError::NoObject),
            KernelError::Refused { .. }
        ));
        assert!(matches!(
            refused("x", io::Error::other("no"), |_| KernelError::NoObject),
            KernelError::NoObject
        ));
    }

    #[test]
    fn an_endless_reason_is_cut() {
        let error = KernelError::NoBtf(io::Error::other("ä\n".repeat(1_000)));
        let text = reason(&error);
        assert!(text.len() < 610 && text.ends_with('…'), "{text}");
        assert!(!text.contains('\n'));
    }
}
