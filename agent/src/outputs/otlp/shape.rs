//! What the books are called over OTLP, and where in a message the names of a container are.

/// The names of metrics and attributes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Naming {
    /// OpenTelemetry's semantic conventions, and `gpuacct.` where they have no name.
    #[default]
    Conventions,
    /// The label keys of `/metrics`, with gauges for levels and states.
    Labels,
}

/// Where the names of a container are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Layout {
    /// With each point; the agent is the only resource.
    #[default]
    Point,
    /// Each container is a resource of its own.
    Resource,
}

/// How the books are written over OTLP: the names, and where in a message those of a container are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    /// The names.
    pub naming: Naming,
    /// Where they are.
    pub layout: Layout,
}

impl Shape {
    /// Every one that there is.
    #[cfg(test)]
    pub(super) const EVERY: [Self; 4] = [
        Self::of(Naming::Conventions, Layout::Point),
        Self::of(Naming::Conventions, Layout::Resource),
        Self::of(Naming::Labels, Layout::Point),
        Self::of(Naming::Labels, Layout::Resource),
    ];

    /// A shape with this naming and this layout.
    #[must_use]
    pub const fn of(naming: Naming, layout: Layout) -> Self {
        Self { naming, layout }
    }
}
