//! What the rows of a report are about.

/// What a row is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Containers, and pods' own processes.
    Container,
    /// Processes of the host.
    Host,
    /// Busy time without an owner.
    Unattributed,
    /// Idle time.
    Idle,
    /// Time that was not observed.
    Unobserved,
    /// Time that no book covers: no agent ran.
    Unaccounted,
    /// Sum of all rows.
    Total,
}

impl Kind {
    /// Returns the name that is printed.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::Host => "host",
            Self::Unattributed => "unattributed",
            Self::Idle => "idle",
            Self::Unobserved => "unobserved",
            Self::Unaccounted => "unaccounted",
            Self::Total => "total",
        }
    }

    /// Whether the row has an owner, and so more columns than its time.
    #[must_use]
    pub const fn is_owned(self) -> bool {
        matches!(self, Self::Container | Self::Host | Self::Total)
    }

    /// Whether a GPU was busy.
    #[must_use]
    pub const fn is_busy(self) -> bool {
        self.is_owned() || matches!(self, Self::Unattributed)
    }
}
