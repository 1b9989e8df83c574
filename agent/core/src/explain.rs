//! The whole chain for one subject, put together from the tables: which process, in which cgroup,
//! whose that is, who was asked for its names and why the winner won.
//!
//! It only reads. What the tables have forgotten is not made up: the dead are kept until every
//! window has passed them, accounts for ten minutes after their container's end, names for as long
//! as there is room.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::accountant::{Accountant, no_names, ratio};
use super::cgroup_path::CgroupMeaning;
use super::directory::{Answer, Belief, Outcome};
use super::input::IdentitySource;
use super::model::{BootTime, Clock, GpuUuid, NONE, Pid, UNRESOLVED};
use super::placement::{Owner, PlacementId, Refusal};
use super::process_table::Facts;
use super::snapshot::{
    AccountStory, AnswerOutcome, AnswerStory, Attribution, CgroupStory, ContainerLabels,
    Explanation, GpuUse, IdOnlyReason, OwnerStory, ProcessStory, RefusalStory, SeenBy,
    UnsampledStory, Who,
};

/// Processes that are told of.
const MAX_PROCESSES: usize = 64;
/// Cgroups with somebody else's id that are told of.
const MAX_REFUSALS: usize = 16;
/// Owners that are told of.
const MAX_OWNERS: usize = 16;
/// Processes without a sample that are told of, for each owner.
const MAX_UNSAMPLED: usize = 16;
/// Digits below which a text is no prefix of a container id: too much would begin with it.
const MIN_PREFIX: usize = 4;

type Uses = BTreeMap<Pid, BTreeMap<GpuUuid, GpuUse>>;

impl Accountant {
    /// Tells of a pid, a container (id, prefix of it, or name), a pod (`namespace/pod` or uid), one
    /// of its containers (`namespace/pod/container`), or a host unit. Nothing if the tables know no
    /// such subject.
    #[must_use]
    pub fn explain(&mut self, subject: &str, clock: Clock) -> Option<Explanation> {
        let incarnations = match subject.parse() {
            Ok(pid) => self.processes.incarnations(Pid(pid)),
            Err(_) => Vec::new(),
        };
        let (owners, mut processes) = if incarnations.is_empty() {
            let owners = self.owners_called(subject);
            let processes = self.processes_of(&owners);
            (owners, processes)
        } else {
            let owners = incarnations.iter().filter_map(|facts| {
                let (owner, _) = self.placements.owner(facts.placement)?;
                Some(owner.clone())
            });
            (owners.collect(), incarnations)
        };
        if owners.is_empty() && processes.is_empty() {
            return None;
        }
        let uses = self.uses();
        processes.sort_by_key(|facts| {
            let idle = !uses.contains_key(&facts.process.pid);
            (idle, facts.exit.is_some(), std::cmp::Reverse(facts.start))
        });
        let left_out = |all: usize, most: usize| all.saturating_sub(most) as u64;
        Some(Explanation {
            subject: subject.into(),
            at: clock.boot,
            wall: clock.wall,
            processes_left_out: left_out(processes.len(), MAX_PROCESSES),
            owners_left_out: left_out(owners.len(), MAX_OWNERS),
            owners: owners
                .iter()
                .take(MAX_OWNERS)
                .map(|owner| self.owner_story(owner, &processes, clock))
                .collect(),
            processes: processes
                .iter()
                .take(MAX_PROCESSES)
                .map(|facts| self.process_story(facts, &uses, clock))
                .collect(),
        })
    }

    /// Everyone whom the subject names: several containers may have one name.
    fn owners_called(&self, subject: &str) -> BTreeSet<Owner> {
        let accounts = self.ledger.accounts().map(|((_, owner), _)| owner);
        let containers = self.directory.ids().cloned().map(Owner::Container);
        let opened = self.opens.owners().cloned();
        let known: BTreeSet<Owner> = accounts.cloned().chain(containers).chain(opened).collect();
        known
            .into_iter()
            .filter(|owner| self.is_called(owner, subject))
            .collect()
    }

    fn is_called(&self, owner: &Owner, subject: &str) -> bool {
        // Placeholders are nobody's name.
        if subject.starts_with('(') {
            return false;
        }
        let labels = self.labels_of(owner);
        match owner {
            Owner::Host(unit) => return unit.as_str() == subject,
            Owner::Pod(uid) if uid.as_str() == subject => return true,
            Owner::Pod(_) => {}
            Owner::Container(id) => {
                let is_prefix = subject.len() >= MIN_PREFIX && id.as_str().starts_with(subject);
                let runtimes_name = self.directory.answers(id).any(|answer| {
                    matches!(&answer.outcome, Outcome::Found { identity, .. }
                        if identity.name.as_deref() == Some(subject))
                });
                if is_prefix || runtimes_name || &*labels.pod_uid == subject {
                    return true;
                }
            }
        }
        let ContainerLabels {
            namespace,
            pod,
            container,
            ..
        } = &labels;
        let mut parts = subject.splitn(3, '/');
        let is = |part: Option<&str>, label: &str| part == Some(label) && !label.starts_with('(');
        match subject.matches('/').count() {
            0 => is(parts.next(), container),
            1 => is(parts.next(), namespace) && is(parts.next(), pod),
            _ => {
                is(parts.next(), namespace) && is(parts.next(), pod) && is(parts.next(), container)
            }
        }
    }

    /// As published, or else as known now.
    fn labels_of(&self, owner: &Owner) -> ContainerLabels {
        match (self.payers.get(owner), owner) {
            (Some(payer), _) => payer.labels.clone(),
            (None, Owner::Container(id)) => self.directory.names(id).labels,
            (None, Owner::Pod(_) | Owner::Host(_)) => no_names(owner),
        }
    }

    fn processes_of(&mut self, owners: &BTreeSet<Owner>) -> Vec<Facts> {
        if owners.is_empty() {
            return Vec::new();
        }
        let mut known = BTreeMap::<u32, bool>::new();
        let mut found = Vec::new();
        for facts in self.processes.everyone() {
            // Thousands of processes share a few places.
            let placements = &mut self.placements;
            let is_theirs = *known.entry(facts.placement.number()).or_insert_with(|| {
                placements
                    .owner(facts.placement)
                    .is_some_and(|(owner, _)| owners.contains(owner))
            });
            if is_theirs {
                found.push(facts);
            }
        }
        found
    }

    /// What every process makes of every GPU, by the charges and by the lists.
    fn uses(&self) -> Uses {
        let mut uses = Uses::new();
        let mut of = |pid: Pid, gpu: &GpuUuid, share: f64, memory: Option<u64>| {
            let entry = uses.entry(pid).or_default();
            let entry = entry.entry(gpu.clone()).or_insert_with(|| GpuUse {
                gpu: gpu.clone(),
                share: 0.0,
                memory: None,
            });
            entry.share += share;
            entry.memory = memory.or(entry.memory);
        };
        for book in self.ledger.books() {
            let (span, charges) = book.recent();
            for charge in charges {
                if let Some(pid) = charge.pid {
                    of(pid, &book.gpu.uuid, ratio(charge.busy, span), None);
                }
            }
        }
        for (gpu, lists) in &self.lists {
            for process in &lists.processes {
                of(process.pid, gpu, 0.0, process.memory);
            }
        }
        uses
    }

    fn process_story(&mut self, facts: &Facts, uses: &Uses, clock: Clock) -> ProcessStory {
        let owner = match self.placements.owner(facts.placement) {
            Some((Owner::Container(id), _)) => Arc::clone(&id.0),
            Some((Owner::Pod(uid), _)) => format!("pod {uid}").into(),
            Some((Owner::Host(unit), _)) => Arc::clone(&unit.0),
            None => UNRESOLVED.into(),
        };
        // A pid's use is that of its newest holder: the driver knows no other.
        let is_newest = self
            .processes
            .incarnations(facts.process.pid)
            .first()
            .is_some_and(|newest| newest.process == facts.process);
        ProcessStory {
            pid: facts.process.pid,
            started: clock.wall_of(facts.start),
            died: facts.exit.map(|at| clock.wall_of(at)),
            parent: facts.parent,
            seen_by: if facts.by_event {
                SeenBy::Event
            } else {
                SeenBy::Scan
            },
            cgroups: self.cgroup_stories(facts.placement),
            moved_from: facts
                .previous
                .map(|place| self.cgroup_stories(place))
                .unwrap_or_default(),
            owner,
            refused: self.placements.refusal(facts.placement).map(refusal_story),
            gpus: uses
                .get(&facts.process.pid)
                .filter(|_| is_newest)
                .map(|uses| uses.values().cloned().collect())
                .unwrap_or_default(),
        }
    }

    fn cgroup_stories(&self, place: PlacementId) -> Vec<CgroupStory> {
        let cgroups = self.placements.cgroups_of(place).into_iter();
        cgroups
            .map(|(hierarchy, path)| CgroupStory {
                hierarchy,
                path: path.map(Arc::from),
            })
            .collect()
    }

    fn owner_story(&mut self, owner: &Owner, processes: &[Facts], clock: Clock) -> OwnerStory {
        let who = self.who(owner, processes);
        let payer = self.payers.get(owner);
        let attribution = payer.map(|payer| payer.attribution);
        let image = match (payer, owner) {
            (Some(payer), _) => Arc::clone(&payer.image),
            (None, Owner::Container(id)) => self.directory.names(id).image,
            (None, Owner::Pod(_) | Owner::Host(_)) => NONE.into(),
        };
        OwnerStory {
            labels: self.labels_of(owner),
            image,
            identified: match owner {
                Owner::Container(id) => self.directory.identified(id),
                Owner::Pod(_) | Owner::Host(_) => None,
            }
            .map(|at| clock.wall_of(at)),
            attribution,
            why: self.why(owner, attribution).into(),
            answers: self.answer_stories(owner, attribution, clock),
            allocation: match owner {
                Owner::Container(id) => self.allocation_of(id, clock),
                Owner::Pod(_) | Owner::Host(_) => None,
            },
            refused: self.refusal_stories(owner),
            accounts: self.account_stories(owner),
            unsampled: self
                .opens
                .bounds_of(owner)
                .take(MAX_UNSAMPLED)
                .map(|bound| UnsampledStory {
                    pid: bound.process.pid,
                    device: bound.device.to_string().into(),
                    opened: clock.wall_of(bound.opened),
                    at_most: bound.died.since(bound.opened),
                })
                .collect(),
            who,
        }
    }

    fn who(&mut self, owner: &Owner, processes: &[Facts]) -> Who {
        let id = match owner {
            Owner::Pod(uid) => {
                return Who::Pod {
                    uid: Arc::clone(&uid.0),
                };
            }
            Owner::Host(unit) => return Who::Host { unit: unit.clone() },
            Owner::Container(id) => id,
        };
        let mut qos = None;
        let (mut inner, mut outer) = (Vec::new(), Vec::new());
        for facts in processes {
            let Some((Owner::Container(of), CgroupMeaning::Container(cgroup))) =
                self.placements.owner(facts.placement)
            else {
                continue;
            };
            if of != id {
                continue;
            }
            let mut around = &mut outer;
            for container in cgroup.chain() {
                if container.id == *id {
                    qos = qos.or(container.pod.as_ref().map(|pod| pod.qos.as_str().into()));
                    around = &mut inner;
                } else if !around.contains(&container.id) {
                    around.push(container.id.clone());
                }
            }
        }
        Who::Container {
            id: id.clone(),
            runtime: self.directory.names(id).runtime,
            pod_uid: self.directory.pod_uid(id).map(|uid| Arc::clone(&uid.0)),
            qos,
            inner,
            outer,
        }
    }

    /// The best source that names it now, if it takes one.
    fn namer(&self, owner: &Owner) -> Option<IdentitySource> {
        match owner {
            Owner::Container(id) => self.directory.names(id).source,
            Owner::Pod(uid) => {
                let is_users_own = self.placements.is_weak(owner);
                let (_, source) = self.directory.pod_names(uid, is_users_own)?;
                Some(source)
            }
            Owner::Host(_) => None,
        }
    }

    fn answer_stories(
        &self,
        owner: &Owner,
        attribution: Option<Attribution>,
        clock: Clock,
    ) -> Vec<AnswerStory> {
        let winner = match attribution {
            // What was published stays, whoever may know better now.
            Some(Attribution::Named { source }) => Some(source),
            _ => self.namer(owner),
        };
        let is_users_own = self.placements.is_weak(owner);
        // When, what, and whether it is gone since.
        let answers: [Option<(BootTime, AnswerOutcome, bool)>; _] = match owner {
            Owner::Container(id) => IdentitySource::ALL.map(|source| {
                let mut answers = self.directory.answers(id);
                let answer = answers.find(|answer| answer.source == source)?;
                Some((answer.at, outcome(answer), answer.removed))
            }),
            Owner::Pod(uid) => self.directory.pod_answers(uid, is_users_own).map(|answer| {
                let answer = answer?;
                let outcome = match answer.names {
                    Ok(names) => AnswerOutcome::Found {
                        name: format!("{}/{}", names.namespace, names.pod).into(),
                    },
                    Err(reason) => AnswerOutcome::NotFound {
                        reason: reason.into(),
                    },
                };
                Some((answer.at, outcome, answer.removed))
            }),
            Owner::Host(_) => return Vec::new(),
        };
        let stories = IdentitySource::ALL.into_iter().zip(answers);
        let stories = stories.map(|(source, answer)| AnswerStory {
            source,
            health: (self.sources.get(&source.source())).map(|health| health.state.clone()),
            at: answer.as_ref().map(|(at, ..)| clock.wall_of(*at)),
            removed: answer.as_ref().is_some_and(|(.., removed)| *removed),
            outcome: answer.map(|(_, outcome, _)| outcome),
            wins: winner == Some(source),
        });
        stories.collect()
    }

    fn why(&self, owner: &Owner, attribution: Option<Attribution>) -> String {
        let in_pod = match owner {
            Owner::Host(_) => return "a host process is published by its unit".to_owned(),
            Owner::Pod(_) => true,
            Owner::Container(id) => self.directory.pod_uid(id).is_some(),
        };
        let named_by = |source: IdentitySource| {
            let rule = if in_pod {
                "it is the best source that knows the pod which the cgroup names"
            } else {
                "it is the best source that knows the container"
            };
            format!("named by {}: {rule}", source.as_str())
        };
        match attribution {
            Some(Attribution::Named { source }) => {
                match self.namer(owner).filter(|best| *best != source) {
                    Some(best) => format!(
                        "named by {}, which was the best source when it was published; {} answers \
                         by now, and what is published stays",
                        source.as_str(),
                        best.as_str()
                    ),
                    None => named_by(source),
                }
            }
            Some(Attribution::Held) => {
                "held back: its names are asked for, and the grace is not over".to_owned()
            }
            Some(Attribution::IdOnly { reason }) => {
                format!("published by its ids: {}", in_words(reason))
            }
            None => {
                let names = self
                    .namer(owner)
                    .map_or_else(|| in_words(self.reason(owner)).to_owned(), named_by);
                format!("no account: it has not used a GPU; {names}")
            }
        }
    }

    /// Why nobody names it.
    fn reason(&self, owner: &Owner) -> IdOnlyReason {
        let sources = self.sources_of_names();
        match owner {
            Owner::Container(id) => self.directory.reason(id, sources),
            Owner::Pod(uid) => {
                let is_asked = self.is_asked_for_pods();
                self.directory.pod_reason(uid, sources, is_asked)
            }
            Owner::Host(_) => IdOnlyReason::NoSource,
        }
    }

    /// What else bears its id, in an order that stays.
    fn refusal_stories(&self, owner: &Owner) -> Vec<RefusalStory> {
        let refusals = self.placements.refusals_of(owner);
        let places: BTreeMap<_, _> = refusals
            .map(|refusal| (&refusal.place, refusal_story(refusal)))
            .collect();
        places.into_values().take(MAX_REFUSALS).collect()
    }

    fn account_stories(&self, owner: &Owner) -> Vec<AccountStory> {
        let of_owner = self
            .ledger
            .accounts()
            .filter(|((_, of), _)| of == owner)
            .map(|((at, _), account)| {
                let book = &self.ledger.books()[*at];
                let (span, charges) = book.recent();
                let recent = charges
                    .filter(|charge| charge.owner.as_ref() == Ok(owner))
                    .map(|charge| charge.busy)
                    .sum();
                let lists = self.lists.get(&book.gpu.uuid);
                AccountStory {
                    gpu: book.gpu.uuid.clone(),
                    busy: account.amounts.busy,
                    published: account.published().busy,
                    allocated: account.amounts.allocated,
                    share: ratio(recent, span),
                    memory: lists.and_then(|lists| lists.memory.get(owner)).copied(),
                    first_used: account.first_used,
                    last_used: account.last_used,
                    ended: account.ended.is_some(),
                    clocks: book.clocks.clone(),
                }
            });
        let mut stories: Vec<_> = of_owner.collect();
        stories.sort_by(|a, b| a.gpu.cmp(&b.gpu));
        stories
    }
}

fn refusal_story(refusal: &Refusal) -> RefusalStory {
    let claimed = match &refusal.claimed {
        Owner::Container(id) => format!("container {id}"),
        Owner::Pod(uid) => format!("pod {uid}"),
        Owner::Host(unit) => unit.to_string(),
    };
    RefusalStory {
        claimed: claimed.into(),
        place: Arc::clone(&refusal.place),
        bound_to: Arc::clone(&refusal.bound_to),
    }
}

fn outcome(answer: &Answer) -> AnswerOutcome {
    match &answer.outcome {
        Outcome::Found {
            identity, belief, ..
        } => {
            let runtimes_own = || identity.name.clone().unwrap_or_else(|| UNRESOLVED.into());
            match (&identity.kubernetes, belief) {
                (Some(names), Belief::Whole) => AnswerOutcome::Found {
                    name: format!("{}/{}/{}", names.namespace, names.pod, names.container).into(),
                },
                (Some(names), Belief::Unconfirmed | Belief::WithoutPod) => {
                    AnswerOutcome::PodRefused {
                        name: runtimes_own(),
                        claimed: Arc::clone(&names.pod_uid.0),
                    }
                }
                (Some(names), Belief::Nothing) => AnswerOutcome::Refused {
                    claimed: Arc::clone(&names.pod_uid.0),
                },
                (None, _) => AnswerOutcome::Found {
                    name: runtimes_own(),
                },
            }
        }
        Outcome::NotFound { reason } => AnswerOutcome::NotFound {
            reason: (*reason).into(),
        },
    }
}

const fn in_words(reason: IdOnlyReason) -> &'static str {
    match reason {
        IdOnlyReason::NoSource => "no source of names is here",
        IdOnlyReason::SourceDown => "a source of names that was here does not answer",
        IdOnlyReason::NotFound => "the sources answer and do not know it",
        IdOnlyReason::PodUidMismatch => {
            "an answer tells of another pod than its cgroup does, or of none"
        }
        IdOnlyReason::Timeout => "no answer came within the grace",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accountant::Settings;
    use crate::input::{
        CgroupAnnouncement, CgroupSet, ContainerIdentity, Credit, EventCounters, GpuInfo,
        GpuProcess, GpuProcesses, GpuWindow, IdentityUpdate, Input, KernelBatch, KernelEvent,
        KubernetesNames, MpsRole, ProcessEvent, ProcessScan, ScannedProcess, SourceHealth,
        WindowQuality,
    };
    use crate::model::{
        CgroupKey, ContainerId, Nanos, SourceId, SourceState, StartTicks, WallTime,
    };

    const SECOND: u64 = 1_000_000_000;
    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "aaaabbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
    const UID: &str = "11111111-2222-3333-4444-555555555555";

    fn at(seconds: u64) -> Clock {
        Clock {
            boot: BootTime(seconds * SECOND),
            wall: WallTime((1_700_000_000 + seconds) * SECOND),
        }
    }

    fn event(pid: u32, seconds: u64, cgroup: u64) -> ProcessEvent {
        ProcessEvent {
            at: at(seconds).boot,
            pid: Pid(pid),
            parent: Pid(42),
            start: at(100).boot,
            pid_namespace_level: 1,
            cgroups: CgroupSet {
                unified: CgroupKey {
                    hierarchy: 0,
                    id: cgroup,
                },
                legacy: None,
            },
        }
    }

    fn identity(source: IdentitySource, id: &str, name: &str, pod_uid: Option<&str>) -> Input {
        Input::Identity(IdentityUpdate::Found(ContainerIdentity {
            runtime: None,
            id: id.into(),
            source,
            name: Some(name.into()),
            image: Some("image:1".into()),
            kubernetes: pod_uid.map(|uid| KubernetesNames {
                namespace: "research".into(),
                pod: "train-0".into(),
                pod_uid: uid.into(),
                container: "trainer".into(),
            }),
            labels: BTreeMap::new(),
        }))
    }

    /// A pod's container that an event reported (pid 7), a plain one that a scan found (pid 8), and
    /// a second of both's time on a GPU, two thirds of it used.
    fn node() -> Accountant {
        let mut accountant = Accountant::new(Settings::default(), at(100));
        let cgroups = [
            (1, None, ""),
            (2, Some(1), "kubepods"),
            (3, Some(2), "burstable"),
            (4, Some(3), &format!("pod{UID}")),
            (5, Some(4), A),
        ];
        let mut events: Vec<KernelEvent> = cgroups
            .iter()
            .map(|(id, parent, name)| {
                KernelEvent::Cgroup(CgroupAnnouncement {
                    key: CgroupKey {
                        hierarchy: 0,
                        id: *id,
                    },
                    parent: *parent,
                    name: (*name).into(),
                })
            })
            .collect();
        events.push(KernelEvent::Fork(event(7, 100, 5)));
        let scanned = ScannedProcess {
            pid: Pid(8),
            parent: Pid(1),
            start: StartTicks(9_000),
            cgroups: [(0, Arc::from(format!("/docker/{B}")))].into(),
        };
        let gpu = GpuUuid::from("GPU-0");
        let credit = |pid, millis| Credit {
            pid: Pid(pid),
            busy: Nanos::from_millis(millis),
        };
        let inputs = [
            Input::Gpus(vec![GpuInfo {
                uuid: gpu.clone(),
                index: 0,
                minor: None,
                model: "test".into(),
                driver: "1".into(),
                simulated: true,
                memory_total: None,
                mig: None,
                engines: vec![],
            }]),
            Input::Health(SourceHealth {
                source: SourceId::Docker,
                state: SourceState::Up,
                since: at(100).boot,
                place: "".into(),
            }),
            Input::Processes(ProcessScan {
                started: at(99).boot,
                finished: at(99).boot,
                processes: vec![scanned],
                skipped: 0,
                unread: Vec::new(),
            }),
            Input::Kernel(KernelBatch {
                events,
                drained_through: at(110).boot,
                counters: EventCounters::default(),
            }),
            Input::GpuProcesses(GpuProcesses {
                gpu: gpu.clone(),
                at: at(101).boot,
                processes: vec![GpuProcess {
                    pid: Pid(7),
                    memory: Some(1 << 20),
                    mps: MpsRole::None,
                }],
                memory_used: None,
            }),
            Input::Window(GpuWindow {
                gpu,
                start: at(100).boot,
                end: at(101).boot,
                busy: Nanos::from_millis(750),
                idle: Nanos::from_millis(250),
                unobserved: vec![],
                credits: vec![credit(7, 500), credit(8, 250)],
                below_resolution: Nanos::ZERO,
                no_row: Nanos::ZERO,
                engines: vec![],
                energy: None,
                quality: WindowQuality::default(),
                clocks: None,
            }),
        ];
        for input in inputs {
            accountant.take(input, at(101));
        }
        let _ = accountant.commit(at(101));
        accountant
    }

    #[test]
    fn a_pid_is_told_of_from_its_birth_to_what_is_published() {
        let mut accountant = node();
        let told = accountant.explain("7", at(102)).unwrap();
        let [process] = &told.processes[..] else {
            panic!("one process: {told:?}");
        };
        assert_eq!((process.pid, process.parent), (Pid(7), Some(Pid(42))));
        assert_eq!(process.started, at(100).wall);
        assert_eq!((process.died, process.seen_by), (None, SeenBy::Event));
        let path = format!("/kubepods/burstable/pod{UID}/{A}");
        assert_eq!(process.cgroups[0].path.as_deref(), Some(path.as_str()));
        assert_eq!(&*process.owner, A);
        assert_eq!(process.gpus.len(), 1);
        assert_eq!(process.gpus[0].memory, Some(1 << 20));
        assert!((process.gpus[0].share - 0.5).abs() < 1e-9, "{process:?}");

        let [owner] = &told.owners[..] else {
            panic!("one owner: {told:?}");
        };
        let Who::Container {
            id, pod_uid, qos, ..
        } = &owner.who
        else {
            panic!("a container: {owner:?}");
        };
        assert_eq!(id.as_str(), A);
        assert_eq!(pod_uid.as_deref(), Some(UID));
        assert_eq!(qos.as_deref(), Some("Burstable"));
        assert_eq!(owner.attribution, Some(Attribution::Held));
        assert_eq!(owner.answers.len(), IdentitySource::ALL.len());
        assert!(owner.answers.iter().all(|answer| !answer.wins));
        assert_eq!(owner.accounts[0].busy, Nanos::from_millis(500));
        assert_eq!(owner.accounts[0].published, Nanos::ZERO);
    }

    #[test]
    fn the_answers_say_who_won_and_who_was_refused() {
        let mut accountant = node();
        let uid = Some(UID);
        let other = "99999999-2222-3333-4444-555555555555";
        accountant.take(
            identity(IdentitySource::Docker, A, "k8s_x", Some(other)),
            at(103),
        );
        accountant.take(identity(IdentitySource::Bundle, A, "x", uid), at(104));
        let id = ContainerId::from(A);
        accountant.take(
            Input::Identity(IdentityUpdate::NotFound {
                source: IdentitySource::Cri,
                id,
                reason: "not_found",
            }),
            at(105),
        );
        let _ = accountant.commit(at(105));
        let told = accountant.explain(A, at(106)).unwrap();
        let owner = &told.owners[0];
        let story = |answer: &AnswerStory| (answer.outcome.clone(), answer.at, answer.wins);
        let stories: Vec<_> = owner.answers.iter().map(story).collect();
        let refused = AnswerOutcome::Refused {
            claimed: other.into(),
        };
        let unknown = AnswerOutcome::NotFound {
            reason: "not_found".into(),
        };
        let found = AnswerOutcome::Found {
            name: "research/train-0/trainer".into(),
        };
        assert_eq!(
            stories,
            [
                (Some(refused), Some(at(103).wall), false),
                (Some(unknown), Some(at(105).wall), false),
                (Some(found), Some(at(104).wall), true),
                (None, None, false),
            ]
        );
        assert!(owner.why.starts_with("named by bundle"), "{}", owner.why);
    }

    #[test]
    fn a_pod_that_only_labels_tell_of_is_told_as_refused() {
        let mut accountant = node();
        let uid = Some(UID);
        accountant.take(identity(IdentitySource::Docker, B, "thief", uid), at(103));
        let snapshot = accountant.commit(at(103));
        let account = snapshot.accounts.iter().find(|of| of.id.as_str() == B);
        let labels = &account.unwrap().labels;
        assert_eq!((&*labels.namespace, &*labels.container), (NONE, "thief"));
        assert_eq!(snapshot.agent.identities_refused, 1);
        let told = accountant.explain(B, at(104)).unwrap();
        let docker = &told.owners[0].answers[0];
        let refused = AnswerOutcome::PodRefused {
            name: "thief".into(),
            claimed: UID.into(),
        };
        assert_eq!(
            (docker.outcome.as_ref(), docker.wins),
            (Some(&refused), true)
        );
    }

    #[test]
    fn what_each_source_said_of_a_pod_is_told() {
        let mut accountant = node();
        // A process in the pod's own cgroup.
        let batch = KernelBatch {
            events: vec![KernelEvent::Fork(event(9, 101, 4))],
            drained_through: at(110).boot,
            counters: EventCounters::default(),
        };
        accountant.take(Input::Kernel(batch), at(101));
        let lists = GpuProcesses {
            gpu: GpuUuid::from("GPU-0"),
            at: at(102).boot,
            processes: vec![GpuProcess {
                pid: Pid(9),
                memory: None,
                mps: MpsRole::None,
            }],
            memory_used: None,
        };
        accountant.take(Input::GpuProcesses(lists), at(102));
        let _ = accountant.commit(at(103));
        let told = accountant.explain(UID, at(104)).unwrap();
        let of_pod = |told: &Explanation| {
            let mut owners = told.owners.iter();
            let pod = owners.find(|owner| matches!(owner.who, Who::Pod { .. }));
            pod.unwrap().clone()
        };
        let owner = of_pod(&told);
        assert_eq!(owner.answers.len(), IdentitySource::ALL.len());
        assert!(owner.answers.iter().all(|answer| answer.outcome.is_none()));
        accountant.take(
            Input::Identity(IdentityUpdate::PodNotFound {
                source: IdentitySource::KubeletLogs,
                uid: UID.into(),
                reason: "not_found",
            }),
            at(104),
        );
        // Its sandbox, which no cgroup shows.
        let sandbox = "c".repeat(64);
        accountant.take(
            identity(IdentitySource::Cri, &sandbox, "train-0", Some(UID)),
            at(105),
        );
        let _ = accountant.commit(at(105));
        let owner = of_pod(&accountant.explain("research/train-0", at(106)).unwrap());
        let outcomes: Vec<_> = owner
            .answers
            .iter()
            .map(|of| (&of.outcome, of.wins))
            .collect();
        let found = Some(AnswerOutcome::Found {
            name: "research/train-0".into(),
        });
        let unknown = Some(AnswerOutcome::NotFound {
            reason: "not_found".into(),
        });
        assert_eq!(
            outcomes,
            [
                (&None, false),
                (&found, true),
                (&None, false),
                (&unknown, false)
            ]
        );
        assert!(owner.why.starts_with("named by cri"), "{}", owner.why);
        assert_eq!(owner.labels.container.as_ref(), "(pod)");
    }

    #[test]
    fn subjects_of_every_kind_find_what_they_name() {
        let mut accountant = node();
        accountant.take(
            identity(IdentitySource::Docker, A, "k8s_trainer_0", Some(UID)),
            at(103),
        );
        accountant.take(
            identity(IdentitySource::Docker, B, "jupyter", None),
            at(103),
        );
        let _ = accountant.commit(at(103));
        let rows: [(&str, &[&str]); 17] = [
            ("8", &[B]),
            (A, &[A]),
            ("aaaab", &[B]),
            ("aaaa", &[A, B]),
            ("aaa", &[]),
            ("k8s_trainer_0", &[A]),
            ("trainer", &[A]),
            ("jupyter", &[B]),
            ("research/train-0", &[A]),
            ("research/train-0/trainer", &[A]),
            ("research/train-0/other", &[]),
            ("research/train-1", &[]),
            (UID, &[A]),
            ("(none)/(none)", &[]),
            ("(none)", &[]),
            ("research/(none)", &[]),
            ("9", &[]),
        ];
        for (subject, expected) in rows {
            let told = accountant.explain(subject, at(104));
            let owners = told.iter().flat_map(|told| &told.owners);
            let ids: Vec<_> = owners
                .map(|owner| match &owner.who {
                    Who::Container { id, .. } => id.as_str(),
                    other => panic!("{subject}: {other:?}"),
                })
                .collect();
            assert_eq!(ids, expected, "{subject}");
            assert_eq!(told.is_some(), !expected.is_empty(), "{subject}");
        }
        let scanned = accountant.explain("8", at(104)).unwrap();
        assert_eq!(scanned.processes[0].seen_by, SeenBy::Scan);
        assert_eq!(scanned.processes[0].parent, Some(Pid(1)));
    }

    #[test]
    fn containers_inside_and_ids_that_were_refused_are_told_of() {
        let mut accountant = node();
        let scanned = |pid, path: String| ScannedProcess {
            pid: Pid(pid),
            parent: Pid(1),
            start: StartTicks(9_100),
            cgroups: [(0, Arc::from(path))].into(),
        };
        let inner = "c".repeat(64);
        let pod = format!("/kubepods/burstable/pod{UID}");
        accountant.take(
            Input::Processes(ProcessScan {
                started: at(102).boot,
                finished: at(102).boot,
                processes: vec![
                    scanned(9, format!("{pod}/{A}/docker/{inner}/docker/{B}")),
                    scanned(10, format!("/evil{pod}/{A}")),
                    scanned(11, format!("/batch/{B}/x")),
                    scanned(12, format!("/docker/{B}")),
                ],
                skipped: 0,
                unread: Vec::new(),
            }),
            at(102),
        );
        let _ = accountant.commit(at(102));
        let told = accountant.explain(A, at(103)).unwrap();
        let Who::Container { inner: ids, .. } = &told.owners[0].who else {
            panic!("a container: {told:?}");
        };
        let ids: Vec<_> = ids.iter().map(ContainerId::as_str).collect();
        assert_eq!(ids, [&*inner, B]);
        let [refused] = &told.owners[0].refused[..] else {
            panic!("one other cgroup bears its id: {told:?}");
        };
        assert_eq!(*refused.claimed, *format!("container {A}"));
        assert_eq!(*refused.place, *format!("/evil{pod}/{A}"));
        assert_eq!(*refused.bound_to, *format!("{pod}/{A}"));

        let told = accountant.explain("11", at(103)).unwrap();
        let refused = told.processes[0].refused.as_ref().unwrap();
        assert_eq!(*refused.place, *format!("/batch/{B}"));
        assert_eq!(*refused.bound_to, *format!("/docker/{B}"));
        assert!(
            matches!(&told.owners[0].who, Who::Host { unit } if unit.as_str() == &*refused.place)
        );
    }

    #[test]
    fn the_recently_dead_are_told_of() {
        let mut accountant = node();
        let exit = KernelEvent::Exit(event(7, 104, 5));
        accountant.take(
            Input::Kernel(KernelBatch {
                events: vec![exit],
                drained_through: at(104).boot,
                counters: EventCounters::default(),
            }),
            at(104),
        );
        let _ = accountant.commit(at(104));
        let told = accountant.explain("7", at(105)).unwrap();
        assert_eq!(told.processes[0].died, Some(at(104).wall));
        // Long after the process is forgotten, its container is not.
        let _ = accountant.commit(at(300));
        assert!(accountant.explain("7", at(300)).is_none());
        let told = accountant.explain(A, at(300)).unwrap();
        assert!(told.processes.is_empty());
        assert!(told.owners[0].accounts[0].ended);
    }

    #[test]
    fn a_subject_with_too_many_processes_is_cut_and_says_so() {
        let mut accountant = node();
        let events = (1_000..1_100).map(|pid| KernelEvent::Fork(event(pid, 102, 5)));
        accountant.take(
            Input::Kernel(KernelBatch {
                events: events.collect(),
                drained_through: at(102).boot,
                counters: EventCounters::default(),
            }),
            at(102),
        );
        let told = accountant.explain(A, at(103)).unwrap();
        assert_eq!(told.processes.len(), MAX_PROCESSES);
        assert_eq!(told.processes_left_out, 101 - MAX_PROCESSES as u64);
        assert_eq!(told.processes[0].pid, Pid(7), "who uses a GPU goes first");
    }
}
