//! Which container was given which GPU, and for how long, from the kubelet's lists and the kernel's
//! events.
//!
//! The kubelet lists allocations by names and without a time. The kernel shows which containers
//! live, by ids. Neither is enough: some kubelets list pods that are over, others forget pods that
//! run, and a kubelet that is down lists nothing. So the kubelet's list *begins* an allocation, and
//! the container's lifetime bounds it:
//!
//! - It counts from when it was first listed, or from the container's first process if that is
//!   later. What lies before the agent's first answer is not made up.
//! - It counts once. The open account records up to when the time is counted, even if the
//!   container was not seen for a while.
//! - It counts for as long as the container has processes. That the kubelet does not list it any
//!   more, or does not answer, changes nothing.
//! - It continues over a restart of the agent, without an answer of the kubelet, for as long as
//!   the container lives. The time in which no agent ran is not counted.
//! - A listed pod without a living container counts nothing.
//!
//! A name is used again: by a container's restart within its pod, and by a pod that replaces
//! another one. So an answer counts for a container only if it was requested after the container
//! started.
//!
//! A container that was given *all* GPUs has whatever exists at the time: the instances of a
//! divided GPU, or the GPU itself if its instances were destroyed. Each counts from when it
//! replaced what was there before, so that no time of a GPU is allocated both as a whole and in
//! parts.
//!
//! Times are on the boot clock, amounts in whole nanoseconds. A GPU that is given several times (the
//! replicas of a shared GPU) is allocated once.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::input::{AllocatedDevice, Allocations, DeviceRef, GpuInfo, KubernetesNames, PodName};
use crate::model::{BootTime, ContainerId, GpuUuid, Nanos, POD_ITSELF};
use crate::tables::{HashMap, HashSet};

/// How long an ended container is remembered, because an answer in progress may be about it.
const KEEP_ENDED: Nanos = Nanos::from_secs(60);
/// How often a container is looked up only because the kubelet lists an allocation without a known
/// container. Not every source has names of sandboxes.
const MAX_LOOKUPS: u32 = 15;

/// A container by the kubelet's names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GivenName {
    /// Kubernetes namespace of the pod.
    pub namespace: Arc<str>,
    /// Name of the pod.
    pub pod: Arc<str>,
    /// Name of the container in the pod's specification.
    pub container: Arc<str>,
}

/// A device and when the kubelet was first known to have given it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// The device.
    pub device: AllocatedDevice,
    /// When it was first listed.
    pub since: BootTime,
}

/// What the kubelet has given to a container, as it is handed over to be kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptAllocation {
    /// The container.
    pub container: ContainerId,
    /// What the kubelet calls it.
    pub name: GivenName,
    /// What it was given.
    pub grants: Vec<Grant>,
}

/// The previous agent's record of a container of which no process has been seen yet.
#[derive(Debug)]
struct RestoredAllocation {
    name: GivenName,
    grants: Vec<Grant>,
    /// Whether the kubelet has not answered about it since.
    is_unconfirmed: bool,
}

/// A GPU or MIG instance that has a book.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// What it is, or was.
    pub info: &'a GpuInfo,
    /// Whether NVML lists it now.
    pub is_listed: bool,
}

/// What the kubelet said last of a name.
#[derive(Debug)]
struct ListedAllocation {
    grants: Vec<Grant>,
    /// When that was asked for.
    at: BootTime,
    /// Whether the newest answer that could contain it does.
    is_listed: bool,
}

/// From a container's first process to its last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The start of its first process.
    pub start: BootTime,
    /// The death of its last; absent while one lives.
    pub end: Option<BootTime>,
}

#[derive(Debug)]
struct ContainerAllocation {
    span: Span,
    /// Once the container has a name.
    name: Option<GivenName>,
    /// Its devices by the latest answer.
    grants: Vec<Grant>,
    /// The answer that said so.
    as_of: BootTime,
    /// Whether it is known from the previous agent alone: no answer of the kubelet has been about it
    /// since.
    is_unconfirmed: bool,
    /// Up to when its time is counted, by the number of the GPU.
    through: BTreeMap<usize, BootTime>,
    /// Time before this is not counted: it may have been counted before the container was
    /// forgotten.
    not_before: BootTime,
    /// Whether the kubelet was asked for it.
    asked: bool,
    /// How often its name was asked for.
    lookups: u32,
}

/// Allocated time of one container on one GPU that has not been counted before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// The container.
    pub container: ContainerId,
    /// The GPU's place in the list that was given.
    pub gpu: usize,
    /// Where it begins.
    pub from: BootTime,
    /// How long it is; zero when an allocation has just begun.
    pub amount: Nanos,
}

/// A container with allocated devices, or a listed name for which no container has been seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllocationHolder<'a> {
    /// What the kubelet calls it.
    pub name: &'a GivenName,
    /// The container; absent where no process of one has been seen.
    pub container: Option<&'a ContainerId>,
    /// Its devices.
    pub grants: &'a [Grant],
    /// Whether the kubelet lists it.
    pub is_listed: bool,
    /// Whether the allocation comes from the previous agent and the kubelet has not confirmed it
    /// yet.
    pub is_unconfirmed: bool,
    /// When its last process died; absent while one lives.
    pub ended: Option<BootTime>,
}

/// The table of what was given, and of the containers that may hold it.
#[derive(Debug)]
pub struct AllocationTable {
    given: HashMap<GivenName, ListedAllocation>,
    lives: HashMap<ContainerId, ContainerAllocation>,
    /// What an agent before this one knew of containers that have not been met yet.
    from_before: HashMap<ContainerId, RestoredAllocation>,
    /// When the previous agent ended and this one began; [`BootTime::MAX`] if there was none.
    went_on: (BootTime, BootTime),
    /// Time up to this may have been counted in accounts that are closed and forgotten. It is not
    /// counted again.
    forgotten_through: BootTime,
    /// What all GPUs are, by their places in the list, and since when each of them may count.
    all: BTreeMap<usize, BootTime>,
    /// Whether any answer has come.
    is_known: bool,
    limit: usize,
    overflows: u64,
}

impl AllocationTable {
    /// A table of at most `limit` names, and as many containers.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            given: HashMap::default(),
            lives: HashMap::default(),
            from_before: HashMap::default(),
            went_on: (BootTime::MAX, BootTime::MAX),
            forgotten_through: BootTime::default(),
            all: BTreeMap::new(),
            is_known: false,
            limit,
            overflows: 0,
        }
    }

    /// Names and containers that the full table turned away.
    #[must_use]
    pub const fn overflows(&self) -> u64 {
        self.overflows
    }

    /// Takes back what an agent before this one knew when it made its last commit, at `then`; `is_known`
    /// where the kubelet had said anything. The time in which no agent ran, until `now`, is not counted.
    pub fn restore(
        &mut self,
        kept: &[KeptAllocation],
        is_known: bool,
        then: BootTime,
        now: BootTime,
    ) {
        self.is_known = is_known;
        self.went_on = (then, now);
        self.forgotten_through = self.forgotten_through.max(now);
        for kept in kept.iter().take(self.limit) {
            let from_before = RestoredAllocation {
                name: kept.name.clone(),
                grants: kept.grants.clone(),
                is_unconfirmed: true,
            };
            self.from_before.insert(kept.container.clone(), from_before);
        }
    }

    /// What containers that live have been given, for an agent after this one.
    pub fn kept(&self) -> impl Iterator<Item = (&ContainerId, &GivenName, &[Grant])> {
        let lives = self.lives.iter();
        let lives = lives.filter(|(_, life)| life.span.end.is_none() && !life.grants.is_empty());
        let lives = lives.filter_map(|(id, life)| Some((id, life.name.as_ref()?, &*life.grants)));
        let unmet = self.from_before.iter();
        lives.chain(unmet.map(|(id, kept)| (id, &kept.name, &*kept.grants)))
    }

    /// Whether the kubelet has ever said anything.
    #[must_use]
    pub const fn is_known(&self) -> bool {
        self.is_known
    }

    /// Takes what the kubelet says.
    pub fn take(&mut self, answer: Allocations) {
        self.is_known = true;
        let is_about = |name: &GivenName| {
            answer
                .pod
                .as_ref()
                .is_none_or(|pod: &PodName| pod.namespace == name.namespace && pod.pod == name.pod)
        };
        for (name, given) in &mut self.given {
            // Late news: what was asked for later is newer, whichever came first.
            if is_about(name) && given.at <= answer.at {
                given.is_listed = false;
            }
        }
        let lives = self.lives.values_mut().filter(|life| life.is_unconfirmed);
        for life in lives {
            life.is_unconfirmed = !life.name.as_ref().is_some_and(is_about);
        }
        for kept in self.from_before.values_mut() {
            kept.is_unconfirmed &= !is_about(&kept.name);
        }
        let incoming: Vec<(GivenName, Vec<AllocatedDevice>)> = answer
            .containers
            .into_iter()
            .map(|of| {
                let name = GivenName {
                    namespace: of.namespace,
                    pod: of.pod,
                    container: of.container,
                };
                (name, of.devices)
            })
            .collect();
        // An allocation that is neither listed nor held is over.
        let lives = self.lives.values();
        let kept: HashSet<&GivenName> = lives
            .filter_map(|life| life.name.as_ref())
            .chain(incoming.iter().map(|(name, _)| name))
            .collect();
        self.given
            .retain(|name, given| given.is_listed || kept.contains(name));
        for (name, devices) in incoming {
            if !self.given.contains_key(&name) && self.given.len() >= self.limit {
                self.overflows += 1;
                continue;
            }
            let given = self.given.entry(name).or_insert_with(|| ListedAllocation {
                grants: Vec::new(),
                at: answer.at,
                is_listed: true,
            });
            if given.at > answer.at {
                continue;
            }
            given.at = answer.at;
            given.is_listed = true;
            let before = std::mem::take(&mut given.grants);
            let since = |device: &AllocatedDevice| {
                let known = before.iter().find(|grant| grant.device == *device);
                known.map_or(answer.at, |grant| grant.since)
            };
            given.grants = devices
                .into_iter()
                .map(|device| Grant {
                    since: since(&device),
                    device,
                })
                .collect();
        }
    }

    /// Whether a container's life is known.
    #[must_use]
    pub fn knows(&self, container: &ContainerId) -> bool {
        self.lives.contains_key(container)
    }

    /// Containers that are believed to live, and those that are believed not to.
    pub fn spans(&self) -> impl Iterator<Item = (&ContainerId, Span)> {
        self.lives.iter().map(|(id, life)| (id, life.span))
    }

    /// Notes from when to when a container has lived, as far as known now.
    pub fn meet(&mut self, container: &ContainerId, span: Span) {
        if let Some(life) = self.lives.get_mut(container) {
            // A process that turns out to be older moves the start; one that is newer does not.
            life.span = Span {
                start: life.span.start.min(span.start),
                end: span.end,
            };
            return;
        }
        if self.lives.len() >= self.limit {
            self.overflows += 1;
            return;
        }
        let (then, _) = self.went_on;
        let from_before = self.from_before.remove(container);
        // The previous agent's record cannot be about a container that started after that agent
        // ended.
        let from_before = from_before.filter(|_| span.start <= then);
        let (name, grants, is_unconfirmed) = match from_before {
            Some(kept) => (Some(kept.name), kept.grants, kept.is_unconfirmed),
            None => (None, Vec::new(), false),
        };
        self.lives.insert(
            container.clone(),
            ContainerAllocation {
                span,
                as_of: if name.is_some() {
                    then
                } else {
                    BootTime::default()
                },
                name,
                grants,
                is_unconfirmed,
                through: BTreeMap::new(),
                not_before: self.forgotten_through,
                asked: false,
                lookups: 0,
            },
        );
    }

    /// The containers whose names should be asked for now: those that have none, while the kubelet
    /// has given something to somebody who has not been met. `is_due` says so for each.
    pub fn wanted(&mut self, mut is_due: impl FnMut(&ContainerId) -> bool) -> Vec<ContainerId> {
        if self.given.is_empty() {
            return Vec::new();
        }
        let lives = self.lives.values();
        let met: HashSet<_> = lives.filter_map(|life| life.name.as_ref()).collect();
        if self.given.keys().all(|name| met.contains(name)) {
            return Vec::new();
        }
        let mut wanted = Vec::new();
        for (id, life) in &mut self.lives {
            let is_nameless = life.name.is_none() && life.span.end.is_none();
            if is_nameless && life.lookups < MAX_LOOKUPS && is_due(id) {
                life.lookups += 1;
                wanted.push(id.clone());
            }
        }
        wanted
    }

    /// Containers without a name.
    pub fn unnamed(&self) -> Vec<ContainerId> {
        let unnamed = self.lives.iter().filter(|(_, life)| life.name.is_none());
        unnamed.map(|(id, _)| id.clone()).collect()
    }

    /// Gives a container its name; the first one stays. Returns the pod if the kubelet had better be
    /// asked for it now.
    pub fn name(&mut self, container: &ContainerId, names: &KubernetesNames) -> Option<PodName> {
        let life = self.lives.get_mut(container)?;
        let name = life.name.get_or_insert_with(|| GivenName {
            namespace: Arc::clone(&names.namespace),
            pod: Arc::clone(&names.pod),
            container: Arc::clone(&names.container),
        });
        let is_answered = self
            .given
            .get(name)
            .is_some_and(|given| given.at >= life.span.start);
        // A sandbox is given nothing.
        let may_hold = &*name.container != POD_ITSELF && life.span.end.is_none();
        let should_ask = may_hold && !life.asked && !is_answered;
        life.asked = true;
        should_ask.then(|| PodName {
            namespace: Arc::clone(&name.namespace),
            pod: Arc::clone(&name.pod),
        })
    }

    /// Accounts were closed whose time is counted up to `through`, and they are not remembered. A
    /// container that is met later and began before may have had one of them. It counts from
    /// `through` on.
    pub fn forget_counted(&mut self, through: Option<BootTime>) {
        self.forgotten_through = self.forgotten_through.max(through.unwrap_or_default());
    }

    /// Counts allocated time up to `now`, for the GPUs of the list. Each interval is returned once.
    /// `counted` returns up to when the account of a container on a GPU has allocated time, also if
    /// the container was forgotten and seen again.
    pub fn count_until<'a>(
        &mut self,
        now: BootTime,
        gpus: impl IntoIterator<Item = Known<'a>>,
        counted: impl Fn(&ContainerId, usize) -> Option<BootTime>,
    ) -> Vec<Stretch> {
        let known: Vec<Known<'_>> = gpus.into_iter().collect();
        self.survey(&known, now);
        let gpus: Vec<&GpuInfo> = known.iter().map(|gpu| gpu.info).collect();
        let mut stretches = Vec::new();
        for (container, life) in &mut self.lives {
            let Some(name) = &life.name else { continue };
            if let Some(given) = self.given.get(name)
                && given.at >= life.span.start
                && given.at > life.as_of
                && !given.grants.is_empty()
            {
                let before = std::mem::replace(&mut life.grants, given.grants.clone());
                for grant in &mut life.grants {
                    // Devices that it had before keep their earlier beginning.
                    let known = before.iter().find(|known| known.device == grant.device);
                    grant.since = known.map_or(grant.since, |known| known.since.min(grant.since));
                }
                life.as_of = given.at;
            }
            let until = life.span.end.unwrap_or(now).min(now);
            let mut since = BTreeMap::<usize, BootTime>::new();
            for grant in &life.grants {
                let Some(device) = &grant.device.device else {
                    continue;
                };
                for (gpu, existing_since) in resolve(device, &gpus, &self.all) {
                    let given = grant.since.max(existing_since);
                    let first = since.entry(gpu).or_insert(given);
                    *first = given.min(*first);
                }
            }
            for (gpu, since) in since {
                let known = life.through.get(&gpu).copied();
                let known = known.max(counted(container, gpu));
                let from = since.max(life.span.start).max(life.not_before);
                let from = from.max(known.unwrap_or_default());
                // An allocation that began after the container's end belongs to another container.
                if from > until || (from == until && known.is_some()) {
                    continue;
                }
                life.through.insert(gpu, until);
                stretches.push(Stretch {
                    container: container.clone(),
                    gpu,
                    from,
                    amount: until.since(from),
                });
            }
        }
        self.lives
            .retain(|_, life| life.span.end.is_none_or(|end| now.since(end) < KEEP_ENDED));
        let (_, went_on) = self.went_on;
        if now.since(went_on) >= KEEP_ENDED {
            // `/proc` was scanned, so every container that was alive then is known.
            self.from_before.clear();
        }
        stretches.sort_by(|a, b| (&a.container, a.gpu).cmp(&(&b.container, b.gpu)));
        stretches
    }

    /// Notes what all GPUs are now.
    ///
    /// A GPU that NVML does not list for a while is still the node's. An instance that is not listed
    /// while its GPU is has been destroyed.
    fn survey(&mut self, gpus: &[Known<'_>], now: BootTime) {
        let mut listed = gpus.iter().filter(|gpu| gpu.is_listed).peekable();
        if listed.peek().is_none() {
            return; // The driver is away, or has not answered yet: nothing is known to have changed.
        }
        let listed: HashSet<&GpuUuid> = listed.map(|gpu| &gpu.info.uuid).collect();
        let exists = |gpu: &Known<'_>| match &gpu.info.mig {
            Some(mig) => gpu.is_listed || !listed.contains(&mig.parent),
            None => true,
        };
        let instances = gpus.iter().filter(|gpu| exists(gpu));
        let divided: HashSet<&GpuUuid> = instances
            .filter_map(|gpu| Some(&gpu.info.mig.as_ref()?.parent))
            .collect();
        let mut all = BTreeMap::new();
        for (at, gpu) in gpus.iter().enumerate() {
            if !exists(gpu) || divided.contains(&gpu.info.uuid) {
                continue;
            }
            // What takes the place of something that counted until now counts from now on.
            let was_something_else = || {
                let mut before = self.all.keys().filter_map(|at| gpus.get(*at));
                before.any(|before| board(before.info) == board(gpu.info))
            };
            let since = match self.all.get(&at) {
                Some(since) => *since,
                None if was_something_else() => now,
                None => BootTime::default(),
            };
            all.insert(at, since);
        }
        self.all = all;
    }

    /// The GPUs that a reference means, as places in the list.
    #[must_use]
    pub fn gpus_of(&self, device: &DeviceRef, gpus: &[&GpuInfo]) -> Vec<usize> {
        let found = resolve(device, gpus, &self.all);
        found.into_iter().map(|(at, _)| at).collect()
    }

    /// Everything that is listed or held, in order of its names.
    #[must_use]
    pub fn grantees(&self) -> Vec<AllocationHolder<'_>> {
        let mut met = HashSet::default();
        let mut grantees = Vec::new();
        for (container, life) in &self.lives {
            let Some(name) = &life.name else { continue };
            if life.grants.is_empty() {
                continue;
            }
            let newest = self.given.get(name);
            met.insert(name);
            grantees.push(AllocationHolder {
                name,
                container: Some(container),
                grants: &life.grants,
                is_listed: newest.is_some_and(|given| given.is_listed),
                is_unconfirmed: life.is_unconfirmed,
                ended: life.span.end,
            });
        }
        let unmet = self.given.iter().filter(|(name, _)| !met.contains(name));
        for (name, given) in unmet.filter(|(_, given)| given.is_listed) {
            grantees.push(AllocationHolder {
                name,
                container: None,
                grants: &given.grants,
                is_listed: true,
                is_unconfirmed: false,
                ended: None,
            });
        }
        grantees.sort_by_key(|grantee| (grantee.name, grantee.container));
        grantees
    }
}

/// The GPU that something is, or is an instance of.
fn board(gpu: &GpuInfo) -> &GpuUuid {
    gpu.mig.as_ref().map_or(&gpu.uuid, |mig| &mig.parent)
}

/// The GPUs that a reference means, as places in the list, and since when each of them is what it is,
/// as far as that matters. A number that two GPUs of the list have, as after one was replaced, means
/// neither. `all` is what all GPUs are.
fn resolve(
    device: &DeviceRef,
    gpus: &[&GpuInfo],
    all: &BTreeMap<usize, BootTime>,
) -> Vec<(usize, BootTime)> {
    let found = |is: &dyn Fn(&GpuInfo) -> bool| {
        let places = gpus.iter().enumerate().filter(|(_, gpu)| is(gpu));
        let places: Vec<usize> = places.map(|(at, _)| at).collect();
        match places[..] {
            [one] => vec![(one, BootTime::default())],
            _ => Vec::new(),
        }
    };
    match device {
        DeviceRef::Uuid(uuid) => found(&|gpu| gpu.uuid == *uuid),
        // The numbers of an instance are those of its GPU, if any.
        DeviceRef::Index(index) => found(&|gpu| gpu.mig.is_none() && gpu.index == *index),
        DeviceRef::Minor(minor) => found(&|gpu| gpu.mig.is_none() && gpu.minor == Some(*minor)),
        DeviceRef::MigOf {
            gpu: parent,
            gpu_instance,
            compute_instance,
        } => found(&|gpu| {
            gpu.mig.as_ref().is_some_and(|mig| {
                (&mig.parent, mig.gpu_instance, mig.compute_instance)
                    == (parent, *gpu_instance, *compute_instance)
            })
        }),
        // Which of a GPU's instances has that index, the list does not say.
        DeviceRef::MigIndex { .. } => Vec::new(),
        DeviceRef::All => all.iter().map(|(at, since)| (*at, *since)).collect(),
    }
}

#[cfg(test)]
mod tests;
