//! What NVML's errors mean to the agent.

use nvml_wrapper::error::NvmlError;

/// What an NVML error means for the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NvmlErrorKind {
    /// The device or the driver does not offer it.
    Unsupported,
    /// This GPU is lost for this session of the library. Reopening the library may find it.
    Lost,
    /// The whole library has to be reopened.
    Library,
    /// Perhaps next time.
    Other,
}

/// What `error` means. Codes that nvml-wrapper has no name for are known by number.
pub(super) fn fault(error: &NvmlError) -> NvmlErrorKind {
    match error {
        NvmlError::NotSupported
        | NvmlError::FunctionNotFound
        | NvmlError::FailedToLoadSymbol(_)
        | NvmlError::UnexpectedVariant(code::ARGUMENT_VERSION_MISMATCH | code::DEPRECATED) => {
            NvmlErrorKind::Unsupported
        }
        NvmlError::GpuLost
        | NvmlError::ResetRequired
        | NvmlError::InvalidArg
        | NvmlError::UnexpectedVariant(code::GPU_NOT_FOUND) => NvmlErrorKind::Lost,
        NvmlError::Uninitialized
        | NvmlError::DriverNotLoaded
        | NvmlError::LibRmVersionMismatch
        | NvmlError::LibraryNotFound => NvmlErrorKind::Library,
        _ => NvmlErrorKind::Other,
    }
}

/// The label for a source's state.
pub(super) fn class(error: &NvmlError) -> &'static str {
    match error {
        NvmlError::DriverNotLoaded => "driver_not_loaded",
        NvmlError::LibRmVersionMismatch => "version_mismatch",
        NvmlError::NoPermission | NvmlError::OperatingSystem => "permission",
        NvmlError::GpuLost | NvmlError::ResetRequired => "gpu_lost",
        NvmlError::Uninitialized => "uninitialized",
        NvmlError::Timeout => "timeout",
        NvmlError::UnexpectedVariant(code::GPU_NOT_FOUND) => "no_gpu",
        NvmlError::UnexpectedVariant(code::NOT_READY) => "not_ready",
        NvmlError::FailedToLoadSymbol(_) | NvmlError::FunctionNotFound => "symbol",
        NvmlError::LibloadingError(_) | NvmlError::LibraryNotFound => "library",
        _ => "driver_error",
    }
}

/// Codes of newer drivers, which nvml-wrapper gives as bare numbers.
mod code {
    pub(super) const ARGUMENT_VERSION_MISMATCH: u32 = 25;
    pub(super) const DEPRECATED: u32 = 26;
    pub(super) const NOT_READY: u32 = 27;
    pub(super) const GPU_NOT_FOUND: u32 = 28;
}

/// The class of the source's state while the GPUs are released. It is no failure.
pub(super) const RELEASED: &str = "released";

/// A call that failed.
#[derive(Clone, Debug)]
pub(super) struct NvmlFailure {
    pub(super) fault: NvmlErrorKind,
    /// The label for the source's state.
    pub(super) class: &'static str,
    pub(super) text: String,
}

impl NvmlFailure {
    pub(super) fn new(call: &str, error: &NvmlError) -> Self {
        Self {
            fault: fault(error),
            class: class(error),
            text: format!("{call}: {error}"),
        }
    }

    /// A figure that cannot be one.
    pub(super) fn figure(call: &str, found: f64) -> Self {
        Self {
            fault: NvmlErrorKind::Other,
            class: "driver_error",
            text: format!("{call}: found {found} percent, expected 0 to 100"),
        }
    }

    /// NVML does not list the GPU any more, or cannot open it. `cause` is its reason, if it gave
    /// one.
    pub(super) fn gone(cause: Option<Self>) -> Self {
        const GONE: &str = "not among the GPUs that NVML can open";
        match cause {
            None => Self {
                fault: NvmlErrorKind::Lost,
                class: "gpu_lost",
                text: GONE.to_owned(),
            },
            Some(cause) => Self {
                text: format!("{GONE}: {}", cause.text),
                ..cause
            },
        }
    }

    /// A call that does not return.
    pub(super) fn blocked(call: &str) -> Self {
        Self {
            fault: NvmlErrorKind::Other,
            class: "timeout",
            text: format!("the call {call} does not return"),
        }
    }

    /// A call that has returned, and failed, after so long.
    pub(super) fn slow(call: &str) -> Self {
        Self {
            text: format!("the call {call} took longer than the driver keeps samples, and failed"),
            ..Self::blocked(call)
        }
    }

    /// A thread that cannot be started.
    pub(super) fn thread(error: &std::io::Error) -> Self {
        Self {
            fault: NvmlErrorKind::Other,
            class: "thread",
            text: format!("cannot start a thread: {error}"),
        }
    }

    /// Somebody wants the library closed.
    pub(super) fn released() -> Self {
        Self {
            fault: NvmlErrorKind::Other,
            class: RELEASED,
            text: "the GPUs are being released".to_owned(),
        }
    }

    /// A defect ended the thread.
    pub(super) fn panicked() -> Self {
        Self {
            fault: NvmlErrorKind::Other,
            class: "panic",
            text: "a defect ended the thread that asks it".to_owned(),
        }
    }

    /// NVML answers and has nothing to answer for.
    pub(super) fn no_gpu() -> Self {
        Self {
            fault: NvmlErrorKind::Other,
            class: "no_gpu",
            text: "NVML lists no GPU".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_known_by_name_and_by_number() {
        for (error, expected, label) in [
            (
                NvmlError::NotSupported,
                NvmlErrorKind::Unsupported,
                "driver_error",
            ),
            (
                NvmlError::FailedToLoadSymbol("x".into()),
                NvmlErrorKind::Unsupported,
                "symbol",
            ),
            (
                NvmlError::UnexpectedVariant(25),
                NvmlErrorKind::Unsupported,
                "driver_error",
            ),
            (
                NvmlError::UnexpectedVariant(26),
                NvmlErrorKind::Unsupported,
                "driver_error",
            ),
            (
                NvmlError::UnexpectedVariant(27),
                NvmlErrorKind::Other,
                "not_ready",
            ),
            (
                NvmlError::UnexpectedVariant(28),
                NvmlErrorKind::Lost,
                "no_gpu",
            ),
            (NvmlError::GpuLost, NvmlErrorKind::Lost, "gpu_lost"),
            (
                NvmlError::DriverNotLoaded,
                NvmlErrorKind::Library,
                "driver_not_loaded",
            ),
            (
                NvmlError::Uninitialized,
                NvmlErrorKind::Library,
                "uninitialized",
            ),
            (
                NvmlError::LibRmVersionMismatch,
                NvmlErrorKind::Library,
                "version_mismatch",
            ),
            (NvmlError::NoPermission, NvmlErrorKind::Other, "permission"),
            (NvmlError::Unknown, NvmlErrorKind::Other, "driver_error"),
        ] {
            assert_eq!(
                (fault(&error), class(&error)),
                (expected, label),
                "{error:?}"
            );
        }
    }
}
