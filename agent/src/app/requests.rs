//! Passes the core's effects on to the sources that carry them out.

use std::sync::Arc;

use tokio::sync::mpsc;

use crate::core::effect::Effect;
use crate::core::input::{IdentitySource, PodName};
use crate::core::model::{ContainerId, PodUid, SourceId};
use crate::published::NamesBook;
use crate::sources::identity::Counters;
use crate::sources::kernel::follow;

/// Lookups that may wait for one identity source. One that finds no room is dropped, and the core
/// asks again.
pub(super) const LOOKUPS: usize = 256;

/// An identity source, as the core sees it.
struct Named {
    source: IdentitySource,
    counters: Arc<Counters>,
    lookups: mpsc::Sender<ContainerId>,
}

/// The channels to the sources.
pub(super) struct Requests {
    /// The identity sources that are switched on.
    names: Vec<Named>,
    /// To the identity source that knows pods by uid, if it is switched on.
    pod_lookups: Option<mpsc::Sender<PodUid>>,
    /// What the source of allocations counts, if that is switched on.
    allocations: Option<Arc<Counters>>,
    rescans: mpsc::Sender<()>,
    announce: mpsc::Sender<()>,
    event_reports: mpsc::Sender<()>,
    lists: mpsc::Sender<()>,
    pods: mpsc::Sender<PodName>,
}

/// The receiving ends of the channels that exist whatever is configured.
pub(super) struct Asked {
    /// To scan `/proc`.
    pub(super) rescans: mpsc::Receiver<()>,
    /// To the eBPF object.
    pub(super) kernel: follow::Requested,
    /// To read the process lists of the GPUs.
    pub(super) lists: mpsc::Receiver<()>,
    /// To ask the kubelet for pods.
    pub(super) pods: mpsc::Receiver<PodName>,
}

impl Requests {
    /// Channels to the sources that always run; no identity source yet.
    pub(super) fn new() -> (Self, Asked) {
        let (rescans, rescans_taken) = mpsc::channel(1);
        let (announce, announce_taken) = mpsc::channel(1);
        let (event_reports, event_reports_taken) = mpsc::channel(1);
        let (lists, lists_taken) = mpsc::channel(1);
        let (pods, pods_taken) = mpsc::channel(LOOKUPS);
        let requests = Self {
            names: Vec::new(),
            pod_lookups: None,
            allocations: None,
            rescans,
            announce,
            event_reports,
            lists,
            pods,
        };
        let asked = Asked {
            rescans: rescans_taken,
            kernel: follow::Requested {
                announce: announce_taken,
                reports: event_reports_taken,
            },
            lists: lists_taken,
            pods: pods_taken,
        };
        (requests, asked)
    }

    /// A sender that asks for a scan of `/proc`, for a source that knows a reason before the core
    /// does.
    pub(super) fn rescans(&self) -> mpsc::Sender<()> {
        self.rescans.clone()
    }

    /// Adds an identity source to those that are asked. Returns its counters and the receiver of
    /// its lookups.
    pub(super) fn identity(
        &mut self,
        source: IdentitySource,
    ) -> (Arc<Counters>, mpsc::Receiver<ContainerId>) {
        let counters = Arc::new(Counters::default());
        let (lookups, taken) = mpsc::channel(LOOKUPS);
        self.names.push(Named {
            source,
            counters: Arc::clone(&counters),
            lookups,
        });
        (counters, taken)
    }

    /// Adds the source that is asked for pods.
    pub(super) fn pods(&mut self) -> mpsc::Receiver<PodUid> {
        let (lookups, taken) = mpsc::channel(LOOKUPS);
        self.pod_lookups = Some(lookups);
        taken
    }

    /// Adds the source of allocations.
    pub(super) fn allocations(&mut self) -> Arc<Counters> {
        let counters = Arc::new(Counters::default());
        self.allocations = Some(Arc::clone(&counters));
        counters
    }

    /// What the identity sources and the source of allocations have counted.
    pub(super) fn names_books(&self) -> Vec<NamesBook> {
        let names = self
            .names
            .iter()
            .map(|of| of.counters.book(of.source.source()));
        let kubelet = self.allocations.iter();
        let kubelet = kubelet.map(|counters| counters.book(SourceId::PodResources));
        names.chain(kubelet).collect()
    }

    /// Asks the kernel source up to when all events are known. The answer is a batch of events,
    /// perhaps an empty one.
    pub(super) fn ask_for_events(&self) {
        // Full means that it is being asked, or is not attached.
        let _ = self.event_reports.try_send(());
    }

    /// Passes on an effect. Returns whether every source that it concerns has accepted it.
    pub(super) fn send(&self, effect: Effect) -> bool {
        match effect {
            // All sources are asked. The best answer is used, not the first.
            Effect::LookUp(id) => {
                let mut all = true;
                for of in &self.names {
                    if of.lookups.try_send(id.clone()).is_err() {
                        of.counters.refuse_lookup();
                        all = false;
                    }
                }
                all
            }
            // The others tell by themselves of every pod that they know.
            Effect::LookUpPod(uid) => match &self.pod_lookups {
                Some(lookups) => lookups.try_send(uid).is_ok(),
                None => true,
            },
            Effect::Rescan => self.rescans.try_send(()).is_ok(),
            Effect::AnnounceAnew => self.announce.try_send(()).is_ok(),
            Effect::ReadLists => self.lists.try_send(()).is_ok(),
            // If it is dropped, the next full list has this pod, too.
            Effect::ReadAllocations(pod) => self.pods.try_send(pod).is_ok(),
        }
    }
}
