//! What the core asks the sources to do.

use crate::input::PodName;
use crate::model::{ContainerId, PodUid};

/// A request of the core to the sources. Effects are best effort: one that is dropped is requested
/// again if it is still needed. A rescan may be merged with one that has not started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Ask the identity sources for this container.
    LookUp(ContainerId),
    /// Ask the identity sources that know pods by uid for this pod.
    LookUpPod(PodUid),
    /// Scan `/proc`: events were lost, or a process is not known.
    Rescan,
    /// Have the eBPF object announce every cgroup again.
    AnnounceAnew,
    /// Read the GPUs' process lists: a process may have come or gone.
    ReadLists,
    /// Ask the kubelet which devices this pod was given: it is new here.
    ReadAllocations(PodName),
}

/// The effects that were requested and not yet carried out.
#[derive(Debug, Default)]
pub(crate) struct Effects(Vec<Effect>);

impl Effects {
    /// Requests an effect, once.
    pub(crate) fn ask(&mut self, effect: Effect) {
        if !self.0.contains(&effect) {
            self.0.push(effect);
        }
    }

    /// Requests an effect that is known not to be requested yet.
    pub(crate) fn push(&mut self, effect: Effect) {
        self.0.push(effect);
    }

    /// Takes all that were requested.
    pub(crate) fn take(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.0)
    }
}
