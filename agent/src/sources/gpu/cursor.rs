//! Where the windows of the agent before this one stopped, and the time that is lost since then.

use super::unobserved::unobserved;
use crate::core::input::GpuWindow;
use crate::core::model::{BootTime, Clock, GpuUuid, UnobservedReason};

/// End of the previous agent's windows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// The GPU.
    pub gpu: GpuUuid,
    /// The end of its last window that is booked.
    pub end: BootTime,
    /// Both clocks about then.
    pub then: Clock,
    /// When this agent began.
    pub began: BootTime,
}

impl Cursor {
    /// An unobserved window from here up to `end`: `agent_down` before this agent began, `reason`
    /// after that.
    pub(super) fn lost(&self, end: BootTime, reason: UnobservedReason) -> GpuWindow {
        let with_agent = end.since(self.began.max(self.end));
        let before = end.since(self.end).minus(with_agent);
        let reasons = [(UnobservedReason::AgentDown, before), (reason, with_agent)];
        unobserved(&self.gpu, self.end, end, reasons)
    }
}
