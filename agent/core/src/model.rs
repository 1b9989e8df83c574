//! The nouns that every part shares: times, processes, containers, GPUs, and the reasons for which
//! an amount has no owner or could not be observed.
//!
//! Each quantity that is booked or exported has a type of its own, in base units.

pub mod text;

use std::fmt;
use std::sync::{Arc, LazyLock};

use serde::{Deserialize, Serialize};

/// A label value where the label does not apply, e.g. the pod of a container outside Kubernetes.
///
/// Parentheses cannot occur in a Kubernetes name, so it collides with none.
pub const NONE: &str = "(none)";
/// A label value that should be known and could not be learnt.
pub const UNRESOLVED: &str = "(unresolved)";
static SHARED_NONE: LazyLock<Arc<str>> = LazyLock::new(|| NONE.into());
static SHARED_UNRESOLVED: LazyLock<Arc<str>> = LazyLock::new(|| UNRESOLVED.into());

/// [`NONE`] as one shared text, since thousands of labels have this value.
#[must_use]
pub fn none() -> Arc<str> {
    Arc::clone(&SHARED_NONE)
}

/// [`UNRESOLVED`], likewise.
#[must_use]
pub fn unresolved() -> Arc<str> {
    Arc::clone(&SHARED_UNRESOLVED)
}

/// The container label of what runs in a pod and in none of its containers.
pub const POD_ITSELF: &str = "(pod)";

/// Ticks of `/proc/<pid>/stat` a second: `USER_HZ`, which is part of the kernel's ABI and 100 on
/// every architecture that Linux runs on today.
pub const USER_HZ: u64 = 100;

/// A point on the boot clock (`CLOCK_BOOTTIME`): nanoseconds since boot, suspended time included.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct BootTime(pub u64);

impl BootTime {
    /// The end of time: an interval that is still open ends here.
    pub const MAX: Self = Self(u64::MAX);

    /// The time since `earlier`; zero where `earlier` is later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Nanos {
        Nanos(self.0.saturating_sub(earlier.0))
    }

    /// This point moved forward; it stops at [`BootTime::MAX`].
    #[must_use]
    pub const fn plus(self, span: Nanos) -> Self {
        Self(self.0.saturating_add(span.0))
    }

    /// This point moved back; it stops at boot.
    #[must_use]
    pub const fn minus(self, span: Nanos) -> Self {
        Self(self.0.saturating_sub(span.0))
    }
}

/// A point on the wall clock: nanoseconds since the Unix epoch, as OTLP wants its timestamps.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct WallTime(pub u64);

/// Both clocks, read together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Clock {
    /// The boot clock, on which everything is measured.
    pub boot: BootTime,
    /// The wall clock at that instant, for what leaves the node.
    pub wall: WallTime,
}

impl Clock {
    /// A boot time, and the wall time that [`Clock::wall_of`] gives it.
    #[must_use]
    pub const fn at(self, boot: BootTime) -> Self {
        Self {
            boot,
            wall: self.wall_of(boot),
        }
    }

    /// The wall time of a boot time, by the two clocks' present distance. Earlier points come out
    /// earlier, also those before this reading: processes start before the agent does.
    #[must_use]
    pub const fn wall_of(self, at: BootTime) -> WallTime {
        if at.0 >= self.boot.0 {
            WallTime(self.wall.0.saturating_add(at.0 - self.boot.0))
        } else {
            WallTime(self.wall.0.saturating_sub(self.boot.0 - at.0))
        }
    }
}

/// An amount of time, in nanoseconds: elapsed time, or time during which a GPU was busy.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Nanos(pub u64);

impl Nanos {
    /// No time at all.
    pub const ZERO: Self = Self(0);
    /// One second.
    pub const SECOND: Self = Self(1_000_000_000);

    /// Whole milliseconds as nanoseconds.
    #[must_use]
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis.saturating_mul(1_000_000))
    }

    /// Whole seconds as nanoseconds.
    #[must_use]
    pub const fn from_secs(seconds: u64) -> Self {
        Self(seconds.saturating_mul(1_000_000_000))
    }

    /// Seconds, for the edges: exports and people.
    #[must_use]
    #[expect(
        clippy::cast_precision_loss,
        reason = "2^53 ns are 104 days; beyond that an f64 second is still exact to a microsecond"
    )]
    pub fn as_secs_f64(self) -> f64 {
        // Split, so that the whole seconds are exact whatever the size.
        (self.0 / 1_000_000_000) as f64 + (self.0 % 1_000_000_000) as f64 / 1e9
    }

    /// The sum; it stops at the largest value (584 years).
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// The difference; it stops at zero.
    #[must_use]
    pub const fn minus(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }
}

impl std::ops::AddAssign for Nanos {
    fn add_assign(&mut self, other: Self) {
        *self = self.plus(other);
    }
}

impl From<std::time::Duration> for Nanos {
    /// Saturates: the longest that fits is 584 years.
    fn from(span: std::time::Duration) -> Self {
        Self(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX))
    }
}

impl std::iter::Sum for Nanos {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::ZERO, Self::plus)
    }
}

/// A process number in the initial pid namespace: the thread group's, never a thread's.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default,
)]
#[serde(transparent)]
pub struct Pid(pub u32);

impl fmt::Display for Pid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// When a process started, in ticks of [`USER_HZ`] since boot.
///
/// The kernel's events give nanoseconds, `/proc` gives ticks; ticks are what both can be compared
/// in.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default,
)]
#[serde(transparent)]
pub struct StartTicks(pub u64);

impl From<BootTime> for StartTicks {
    /// As the kernel does it for `/proc/<pid>/stat`: `nsec_to_clock_t`, a division that floors.
    fn from(at: BootTime) -> Self {
        Self(at.0 / (1_000_000_000 / USER_HZ))
    }
}

impl StartTicks {
    /// The earliest instant that this tick stands for.
    #[must_use]
    pub const fn earliest(self) -> BootTime {
        BootTime(self.0.saturating_mul(1_000_000_000 / USER_HZ))
    }
}

/// Identity of a process within one boot: its pid and start time. Pids are reused, the pair is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ProcessId {
    /// The process number in the initial pid namespace.
    pub pid: Pid,
    /// When it started.
    pub start: StartTicks,
}

/// A device node, whatever it is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DeviceNumber {
    /// Major number: the driver.
    pub major: u32,
    /// Which of its devices.
    pub minor: u32,
}

impl DeviceNumber {
    /// The major number that the kernel's list of devices reserves for NVIDIA's GPUs.
    pub const NVIDIA: u32 = 195;
    /// The first minor number that is no GPU of its own: `nvidia-modeset`, and then `nvidiactl`.
    const NOT_A_GPU: u32 = 254;

    /// Which GPU it is, by the driver's count, if it is one.
    #[must_use]
    pub const fn gpu(self) -> Option<u32> {
        if self.major == Self::NVIDIA && self.minor < Self::NOT_A_GPU {
            Some(self.minor)
        } else {
            None
        }
    }
}

impl fmt::Display for DeviceNumber {
    /// As NVIDIA calls it, or else by its numbers.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.gpu(), self.major, self.minor) {
            (Some(gpu), ..) => write!(f, "nvidia{gpu}"),
            (None, Self::NVIDIA, 255) => f.write_str("nvidiactl"),
            (None, major, minor) => write!(f, "device {major}:{minor}"),
        }
    }
}

/// A cgroup as the kernel numbers it: the hierarchy (0 is cgroup v2) and the kernfs node's id,
/// which is also the inode number of its directory.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct CgroupKey {
    /// `cgroup_root.hierarchy_id`: the first field of `/proc/<pid>/cgroup`.
    pub hierarchy: u32,
    /// `kernfs_node.id`.
    pub id: u64,
}

macro_rules! text {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Arc<str>);

        impl $name {
            /// Returns the text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.into())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

text! {
    /// A container's id as its runtime wrote it into the cgroup's name: 64 hexadecimal digits for
    /// Docker, containerd, CRI-O and Podman.
    ContainerId
}
text! {
    /// A pod's uid, with dashes where the API server gave it (static pods have none).
    PodUid
}
text! {
    /// Owner of a host process: its systemd unit, or its cgroup's path if it has none.
    HostUnit
}
text! {
    /// NVML's UUID of a GPU (`GPU-…`) or MIG instance (`MIG-…`): the key of everything booked on it,
    /// since indexes change over reboots.
    GpuUuid
}

/// Why busy time of a GPU has no owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnattributedReason {
    /// The driver named a pid that no event and no scan of `/proc` has shown.
    UnknownPid,
    /// The pid had two owners inside the window.
    AmbiguousPid,
    /// A known process had the pid before, and nothing confirms that it still had it: events of the
    /// window may be missing, and no scan of `/proc` from after the window has shown the process.
    UnconfirmedPid,
    /// The process is known and its cgroup's path could not be learnt.
    UnknownCgroup,
    /// Busy time that is hidden by the rounding to whole percents. It belongs to processes with a
    /// row, but it is not known to which.
    BelowResolution,
    /// Busy time for which the driver gave no row that could own it.
    NoRow,
    /// The driver named the MPS server, whose clients are not one container's.
    MpsServer,
    /// Several owners were on a MIG instance, of which the driver gives the sum alone.
    SharedInstance,
    /// The account table is full; the owner is known and was not given an account of its own.
    Overflow,
}

impl UnattributedReason {
    /// Every reason, in the order in which they are shown.
    pub const ALL: [Self; 9] = [
        Self::UnknownPid,
        Self::AmbiguousPid,
        Self::UnconfirmedPid,
        Self::UnknownCgroup,
        Self::BelowResolution,
        Self::NoRow,
        Self::MpsServer,
        Self::SharedInstance,
        Self::Overflow,
    ];

    /// Returns the value as used in labels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::UnknownPid => "unknown_pid",
            Self::AmbiguousPid => "ambiguous_pid",
            Self::UnconfirmedPid => "unconfirmed_pid",
            Self::UnknownCgroup => "unknown_cgroup",
            Self::BelowResolution => "below_resolution",
            Self::NoRow => "no_row",
            Self::MpsServer => "mps_server",
            Self::SharedInstance => "shared_instance",
            Self::Overflow => "overflow",
        }
    }
}

/// Why it is not known whether a GPU was busy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnobservedReason {
    /// The driver took no samples, or took them further apart than its period.
    SampleGap,
    /// The driver's ring had already overwritten the samples when the agent came to read them.
    RingOverrun,
    /// NVML answered with an error, or the library could not be loaded.
    DriverError,
    /// The clock that stamps the driver's samples jumped: the wall clock was set, or the driver's own.
    ClockStep,
    /// The device does not offer what busy time is made from.
    Unsupported,
    /// The agent did not read for longer than the driver keeps samples: it was stopped, or the
    /// machine was suspended.
    AgentPaused,
    /// The driver was unloaded, or the GPU was given back: NVML lists it no more.
    Released,
    /// No agent ran, for longer than the driver keeps samples. Known only where a store says when
    /// the agent before this one stopped, in the same boot.
    AgentDown,
    /// The driver did not answer: a call into NVML did not return for so long that the driver no
    /// longer has the samples.
    DriverTimeout,
    /// The agent's thread for this GPU panicked (a bug). It is started again.
    AgentError,
    /// No window of this time reached the books, and the next one did.
    WindowLost,
    /// The driver took samples, but the clock of their stamps could not be learnt, so they cannot
    /// be dated.
    UnknownSampleClock,
}

impl UnobservedReason {
    /// Every reason, in the order in which they are shown.
    pub const ALL: [Self; 12] = [
        Self::SampleGap,
        Self::RingOverrun,
        Self::DriverError,
        Self::ClockStep,
        Self::Unsupported,
        Self::AgentPaused,
        Self::Released,
        Self::AgentDown,
        Self::DriverTimeout,
        Self::AgentError,
        Self::WindowLost,
        Self::UnknownSampleClock,
    ];

    /// Returns the value as used in labels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SampleGap => "sample_gap",
            Self::RingOverrun => "ring_overrun",
            Self::DriverError => "driver_error",
            Self::ClockStep => "clock_step",
            Self::Unsupported => "unsupported",
            Self::AgentPaused => "agent_paused",
            Self::Released => "released",
            Self::AgentDown => "agent_down",
            Self::DriverTimeout => "driver_timeout",
            Self::AgentError => "agent_error",
            Self::WindowLost => "window_lost",
            Self::UnknownSampleClock => "unknown_sample_clock",
        }
    }
}

/// A source or an output that has a state of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SourceId {
    /// The eBPF object and its ring buffer.
    Kernel,
    /// Scans of `/proc`.
    Procfs,
    /// NVIDIA's management library.
    Nvml,
    /// The kernel's log, for Xid errors.
    KernelLog,
    /// The Docker Engine API, also Podman's.
    Docker,
    /// The container runtime interface of containerd and CRI-O.
    Cri,
    /// The OCI bundles on disk.
    Bundle,
    /// The kubelet's log links.
    KubeletLogs,
    /// The kubelet's PodResources API.
    PodResources,
    /// The endpoint `/metrics`.
    Prometheus,
    /// The receiver of the books over OTLP.
    Otlp,
    /// The receiver of the usage records.
    Records,
    /// The durable ledger.
    Store,
    /// The file of the configuration.
    Config,
}

impl SourceId {
    /// Every source, in the order in which they are shown.
    pub const ALL: [Self; 14] = [
        Self::Kernel,
        Self::Procfs,
        Self::Nvml,
        Self::KernelLog,
        Self::Docker,
        Self::Cri,
        Self::Bundle,
        Self::KubeletLogs,
        Self::PodResources,
        Self::Prometheus,
        Self::Otlp,
        Self::Records,
        Self::Store,
        Self::Config,
    ];

    /// Returns the value as used in labels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Procfs => "procfs",
            Self::Nvml => "nvml",
            Self::KernelLog => "kernel_log",
            Self::Docker => "docker",
            Self::Cri => "cri",
            Self::Bundle => "bundle",
            Self::KubeletLogs => "kubelet_logs",
            Self::PodResources => "pod_resources",
            Self::Prometheus => "prometheus",
            Self::Otlp => "otlp",
            Self::Records => "records",
            Self::Store => "store",
            Self::Config => "config",
        }
    }
}

/// What a source is doing now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum SourceState {
    /// It answers.
    Up,
    /// It was never there. This is normal and does not alert.
    Absent,
    /// Switched off by configuration.
    Disabled,
    /// It was there, or is required, and does not answer.
    Down {
        /// A short class for a label, e.g. `timeout`, `refused`, `protocol`, `permission`.
        class: Arc<str>,
        /// What failed, in words.
        reason: Arc<str>,
        /// When it is tried again; absent where nothing is left to try.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        next_retry: Option<BootTime>,
    },
}

impl SourceState {
    /// Returns the value as used in labels.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Absent => "absent",
            Self::Disabled => "disabled",
            Self::Down { .. } => "down",
        }
    }
}

/// Who is charged for a process, by its cgroup.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Owner {
    /// A container, by the [`NestingRule`].
    Container(ContainerId),
    /// A pod, for processes in the pod's own cgroup.
    Pod(PodUid),
    /// A host process.
    Host(HostUnit),
}
