//! The whole chain for one subject, from the tables: the process, its cgroup, its owner, the
//! answers of all identity sources, and why one of them was used.
//!
//! It only reads the tables. Dead processes are kept until every window has passed them, accounts
//! for ten minutes after their container's end, names for as long as there is room.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::accountant::view::ratio;
use crate::accountant::{Accountant, no_names};
use crate::cgroup_path::CgroupMeaning;
use crate::directory::{Answer, Belief, Outcome};
use crate::explanation::{
    AccountStory, AnswerOutcome, AnswerStory, CgroupOwner, CgroupStory, Explanation, GpuUse,
    OwnerStory, ProcessStory, RefusalStory, SeenBy, UnsampledStory,
};
use crate::input::IdentitySource;
use crate::model::{BootTime, Clock, GpuUuid, NONE, Owner, Pid, UNRESOLVED};
use crate::placement::{PlacementId, Refusal};
use crate::process_table::Facts;
use crate::snapshot::{Attribution, ContainerLabels, IdOnlyReason};

/// Most processes in one explanation.
const MAX_PROCESSES: usize = 64;
/// Most refused cgroups in one explanation.
const MAX_REFUSALS: usize = 16;
/// Most owners in one explanation.
const MAX_OWNERS: usize = 16;
/// Most processes without a sample in one explanation, for each owner.
const MAX_UNSAMPLED: usize = 16;
/// Shortest prefix of a container id, in digits. A shorter one would match too many.
const MIN_PREFIX: usize = 4;

type Uses = BTreeMap<Pid, BTreeMap<GpuUuid, GpuUse>>;

impl Accountant {
    /// Explains a pid, a container (id, prefix of it, or name), a pod (`namespace/pod` or uid), one
    /// of its containers (`namespace/pod/container`), or a host unit. `None` if the tables know no
    /// such subject.
    #[must_use]
    pub fn explain(&mut self, subject: &str, clock: Clock) -> Option<Explanation> {
        let incarnations = match subject.parse() {
            Ok(pid) => self.tracker.processes().incarnations(Pid(pid)),
            Err(_) => Vec::new(),
        };
        let (owners, mut processes) = if incarnations.is_empty() {
            let owners = self.owners_called(subject);
            let processes = self.tracker.processes_of(&owners);
            (owners, processes)
        } else {
            let owners = incarnations.iter().filter_map(|facts| {
                let (owner, _) = self.tracker.owner(facts.placement)?;
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
            events_through: Some(self.tracker.events().drained_through())
                .filter(|through| *through > BootTime::default())
                .map(|through| clock.wall_of(through)),
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

    /// All owners that match the subject: several containers may have one name.
    fn owners_called(&self, subject: &str) -> BTreeSet<Owner> {
        let accounts = self.ledger.accounts().iter().map(|((_, owner), _)| owner);
        let containers = self.naming.directory().ids().cloned().map(Owner::Container);
        let opened = self.tracker.opens().owners().cloned();
        let known: BTreeSet<Owner> = accounts.cloned().chain(containers).chain(opened).collect();
        known
            .into_iter()
            .filter(|owner| self.is_called(owner, subject))
            .collect()
    }

    fn is_called(&self, owner: &Owner, subject: &str) -> bool {
        // Placeholders such as `(none)` match no subject.
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
                let runtimes_name = self.naming.directory().answers(id).any(|answer| {
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
        match (self.naming.of_owner(owner), owner) {
            (Some(known), _) => (*known.labels).clone(),
            (None, Owner::Container(id)) => self.naming.directory().names(id).labels,
            (None, Owner::Pod(_) | Owner::Host(_)) => no_names(owner),
        }
    }

    /// Use of every GPU by every process, from the charges and the process lists.
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
        for (book, device) in self.ledger.books().iter().zip(self.devices.iter()) {
            for process in device.lists.iter().flat_map(|lists| &lists.processes) {
                of(process.pid, &book.gpu.uuid, 0.0, process.memory);
            }
        }
        uses
    }

    fn process_story(&mut self, facts: &Facts, uses: &Uses, clock: Clock) -> ProcessStory {
        let owner = match self.tracker.owner(facts.placement) {
            Some((Owner::Container(id), _)) => Arc::clone(&id.0),
            Some((Owner::Pod(uid), _)) => format!("pod {uid}").into(),
            Some((Owner::Host(unit), _)) => Arc::clone(&unit.0),
            None => UNRESOLVED.into(),
        };
        // Use of a pid belongs to its newest holder: the driver knows no other.
        let is_newest = self
            .tracker
            .processes()
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
            refused: self
                .tracker
                .placements()
                .refusal(facts.placement)
                .map(refusal_story),
            gpus: uses
                .get(&facts.process.pid)
                .filter(|_| is_newest)
                .map(|uses| uses.values().cloned().collect())
                .unwrap_or_default(),
        }
    }

    fn cgroup_stories(&self, place: PlacementId) -> Vec<CgroupStory> {
        let cgroups = self.tracker.placements().cgroups_of(place).into_iter();
        cgroups
            .map(|(hierarchy, path)| CgroupStory {
                hierarchy,
                path: path.map(Arc::from),
            })
            .collect()
    }

    fn owner_story(&mut self, owner: &Owner, processes: &[Facts], clock: Clock) -> OwnerStory {
        let who = self.who(owner, processes);
        let known = self.naming.of_owner(owner);
        let attribution = known.map(|known| known.attribution);
        let image = match (known, owner) {
            (Some(known), _) => Arc::clone(&known.image),
            (None, Owner::Container(id)) => self.naming.directory().names(id).image,
            (None, Owner::Pod(_) | Owner::Host(_)) => NONE.into(),
        };
        OwnerStory {
            labels: self.labels_of(owner),
            image,
            identified: match owner {
                Owner::Container(id) => self.naming.directory().identified(id),
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
            accounts: self.account_stories(owner, clock),
            unsampled: self
                .tracker
                .opens()
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

    fn who(&mut self, owner: &Owner, processes: &[Facts]) -> CgroupOwner {
        let id = match owner {
            Owner::Pod(uid) => {
                return CgroupOwner::Pod {
                    uid: Arc::clone(&uid.0),
                };
            }
            Owner::Host(unit) => return CgroupOwner::Host { unit: unit.clone() },
            Owner::Container(id) => id,
        };
        let mut qos = None;
        let (mut inner, mut outer) = (Vec::new(), Vec::new());
        for facts in processes {
            let Some((Owner::Container(of), CgroupMeaning::Container(cgroup))) =
                self.tracker.owner(facts.placement)
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
        CgroupOwner::Container {
            id: id.clone(),
            runtime: self.naming.directory().names(id).runtime,
            pod_uid: self
                .naming
                .directory()
                .pod_uid(id)
                .map(|uid| Arc::clone(&uid.0)),
            qos,
            inner,
            outer,
        }
    }

    /// The best source that names it now, if it takes one.
    fn namer(&self, owner: &Owner) -> Option<IdentitySource> {
        match owner {
            Owner::Container(id) => self.naming.directory().names(id).source,
            Owner::Pod(uid) => {
                let is_users_own = self.tracker.placements().is_weak(owner);
                let (_, source) = self.naming.directory().pod_names(uid, is_users_own)?;
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
            // Published names stay, even if another source has better ones now.
            Some(Attribution::Named { source }) => Some(source),
            _ => self.namer(owner),
        };
        let is_users_own = self.tracker.placements().is_weak(owner);
        // When, what, and whether it is gone since.
        let answers: [Option<(BootTime, AnswerOutcome, bool)>; _] = match owner {
            Owner::Container(id) => IdentitySource::ALL.map(|source| {
                let mut answers = self.naming.directory().answers(id);
                let answer = answers.find(|answer| answer.source == source)?;
                Some((answer.at, outcome(answer), answer.removed))
            }),
            Owner::Pod(uid) => {
                self.naming
                    .directory()
                    .pod_answers(uid, is_users_own)
                    .map(|answer| {
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
                    })
            }
            Owner::Host(_) => return Vec::new(),
        };
        let stories = IdentitySource::ALL.into_iter().zip(answers);
        let stories = stories.map(|(source, answer)| AnswerStory {
            source,
            health: (self.sources.get(source.source())).map(|health| health.state.clone()),
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
            Owner::Container(id) => self.naming.directory().pod_uid(id).is_some(),
        };
        let named_by = |source: IdentitySource| {
            let rule = if in_pod {
                "it is the best source that knows the pod of the cgroup"
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
                "held back: its names are being looked up, and publish.grace is not over".to_owned()
            }
            Some(Attribution::IdOnly { reason }) => {
                format!("published by its ids: {}", in_words(reason))
            }
            None => {
                let names = self.namer(owner).map_or_else(
                    || in_words(self.naming.reason(owner, self.askable())).to_owned(),
                    named_by,
                );
                format!("no account: it has not used a GPU; {names}")
            }
        }
    }

    /// Other cgroups with the same id, in a stable order.
    fn refusal_stories(&self, owner: &Owner) -> Vec<RefusalStory> {
        let refusals = self.tracker.placements().refusals_of(owner);
        let places: BTreeMap<_, _> = refusals
            .map(|refusal| (&refusal.place, refusal_story(refusal)))
            .collect();
        places.into_values().take(MAX_REFUSALS).collect()
    }

    fn account_stories(&self, owner: &Owner, clock: Clock) -> Vec<AccountStory> {
        let zero_for = self.settings.policy.zero_for;
        let of_owner = self
            .ledger
            .accounts()
            .iter()
            .filter(|((_, of), _)| of == owner)
            .map(|((at, _), account)| {
                let book = &self.ledger.books()[*at];
                let (span, charges) = book.recent();
                let recent = charges
                    .filter(|charge| charge.owner.as_ref() == Ok(owner))
                    .map(|charge| charge.busy)
                    .sum();
                let lists = self.lists_of(*at);
                AccountStory {
                    gpu: book.gpu.uuid.clone(),
                    busy: account.amounts.busy,
                    published: account.published().busy,
                    published_from: account
                        .shows_amounts_from(zero_for)
                        .filter(|from| *from > clock.boot)
                        .map(|from| clock.wall_of(from)),
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
        IdOnlyReason::NoSource => "no identity source is available",
        IdOnlyReason::SourceDown => "an identity source that was available does not answer",
        IdOnlyReason::NotFound => "the identity sources answered and do not know it",
        IdOnlyReason::PodUidMismatch => "an answer names another pod than the cgroup, or none",
        IdOnlyReason::Timeout => "no answer within publish.grace",
    }
}

#[cfg(test)]
mod tests;
