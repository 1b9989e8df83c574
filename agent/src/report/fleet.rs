//! Reports past use of a fleet from a store of metrics: the same report as from ledgers, of whatever the
//! store has scraped or was sent.
//!
//! **Exact to the last sample.** Growth is added up hour by hour from values, not from rates
//! ([`crate::report::growth`]). What happened after a counter's last sample before it began anew, or
//! before its first sample, is not in the store and not in the report.
//!
//! **Each counter counts once**, however many series show it ([`families`]).
//!
//! **The books balance or the report says where they do not** ([`balance`]). Of each GPU that the store
//! knows, all of the time that was asked for is in the report; time of which the store has nothing is in
//! no book.
//!
//! What is not published as a metric is left out, not zero ([`crate::report::tally::Absent`]).

mod balance;
mod error;
mod families;
mod late_names;
mod pod_labels;
mod reading;
mod remarks;
mod span;
#[cfg(test)]
mod tests;
mod windows;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;

use self::balance::Hour;
pub use self::error::FleetError;
use self::families::{
    Amount, CONTAINER_INFO, FAMILIES, Family, GPU_INFO, OfGpu, Owner, Subject, What, found, value,
};
use self::pod_labels::{Pod, PodLabels};
use self::reading::{Grown, Reading};
use self::remarks::{Reach, Remarks};
use self::span::Span;
use self::windows::Windows;
use super::hour::{begin_of, hour_of};
use super::prices::MoneyError;
use super::promql::Store;
use super::promql::answer::Labels;
use super::tally::{Absent, Dimension, Elapsed, Figure, Kind, Question, Report, Tally};
use crate::core::amounts::Amounts;
use crate::core::model::{GpuUuid, NONE, Nanos, UNRESOLVED, WallTime};
use crate::outputs::store::query::{AccountLife, AccountRecord, GpuRecord, LedgerExtent, Used};

/// Reads a store and adds up. `cluster` is the label of the series that names their cluster, if it is none of
/// those that are known.
///
/// # Errors
/// If the store cannot be read, has nothing of the range, or contradicts itself; if the question asks for
/// what no store has.
pub async fn make(
    store: &mut Store,
    question: &Question,
    cluster: Option<&str>,
    now: Timestamp,
) -> Result<Report, FleetError> {
    check(question)?;
    let asked = question.asked.hours();
    let present = hour_of(now);
    if asked.start > present {
        return Err(FleetError::Future(
            question.zone.show(begin_of(asked.start)),
        ));
    }
    let span = Span {
        hours: asked.start..asked.end.min(present + 1),
        end: begin_of(asked.end).min(now).as_second(),
    };
    question.zone.check(&span.hours)?;
    let mut fleet = Fleet::read(store, &span, question).await?;
    fleet.cluster = cluster.map(str::to_owned);
    let mut report = fleet.report(&span, question, now)?;
    let from = format!("read from {}", store.url());
    report.notes.insert(0, from);
    for warning in store.take_warnings() {
        report.warn(format!("{} says: {warning}", store.url()));
    }
    Ok(report)
}

/// Checks that nothing is asked for that no store has.
fn check(question: &Question) -> Result<(), FleetError> {
    let prices = question.prices.as_ref();
    match prices.is_some_and(super::prices::Prices::charges_allocated) {
        true => Err(FleetError::AllocatedPrice),
        false => Ok(()),
    }
}

/// The pod uid and the id of a container.
type ContainerName = (Arc<str>, Arc<str>);
/// The image and the runtime of a container.
type Image = (Arc<str>, Arc<str>);

/// What was read of a store.
#[derive(Debug, Default)]
struct Fleet {
    names: BTreeSet<String>,
    /// Windows of each GPU, from counters of its own, by their last hours.
    hours: BTreeMap<Arc<str>, BTreeMap<i64, Hour>>,
    /// Elapsed time of each GPU in each hour, where windows are longer.
    elapsed: HashMap<Arc<str>, Elapsed>,
    used: late_names::Used,
    /// Labels of the GPUs' own series.
    labels: BTreeMap<String, Labels>,
    /// Their `gpuacct_gpu_info`.
    info: BTreeMap<String, Labels>,
    /// Images and runtimes by pod uid and container id.
    images: HashMap<ContainerName, Image>,
    /// Labels of pods that the question asks for.
    pod_labels: PodLabels,
    /// The label that names a cluster, if it was given.
    cluster: Option<String>,
    /// The first and the last hour with samples of a GPU.
    active: Option<(i64, i64)>,
    /// Whether the store has anything from before that.
    has_before: bool,
    /// Hours that were read sample by sample.
    fallen: BTreeSet<i64>,
}

impl Fleet {
    async fn read(store: &mut Store, span: &Span, question: &Question) -> Result<Self, FleetError> {
        let (first, end) = (span.first(), span.end);
        let vector = store.vector("", "__name__=~\"gpuacct_.+\"");
        let names = store.names(&vector, first, end).await?;
        let show = |at: i64| {
            question
                .zone
                .show(Timestamp::from_second(at).unwrap_or_default())
        };
        if names.is_empty() {
            return Err(FleetError::Nothing {
                url: store.url().to_owned(),
                since: show(span.since()),
                until: show(end),
                vector,
            });
        }
        let lacks: Vec<&str> = FAMILIES
            .iter()
            .filter(|family| family.is_needed() && !names.contains(family.name))
            .map(|family| family.name)
            .collect();
        if !lacks.is_empty() {
            return Err(FleetError::Lacks {
                url: store.url().to_owned(),
                lacks,
            });
        }
        let mut fleet = Self {
            names,
            ..Self::default()
        };
        let since = span.since();
        let (windows, hours) = (Windows::of(span, question), Windows::hours(span));
        let is_by_day = windows != hours;
        let mut most_hours = windows::MOST_HOURS;
        let mut own: Vec<Labels> = Vec::new();
        for family in &FAMILIES {
            if !fleet.names.contains(family.name) {
                continue;
            }
            // Elapsed time says which hours have samples, and what is in no book.
            let is_elapsed = family.what == What::Gpu(OfGpu::Elapsed);
            let read_by = if is_elapsed { &hours } else { &windows };
            let mut add = |grown: Grown| {
                if span.hours.contains(&grown.hour) {
                    let hour = windows.last_hour(grown.hour);
                    if is_elapsed && is_by_day {
                        fleet.add_elapsed(&grown);
                    }
                    fleet.add(*family, Grown { hour, ..grown });
                }
            };
            let mut reading =
                Reading::of(*family, store, span, read_by, &mut most_hours, &mut add).await?;
            match family.what {
                What::Gpu(OfGpu::Elapsed) => {
                    fleet.active = reading.active;
                    fleet.has_before = reading.has_seeds
                        || reading
                            .active
                            .is_some_and(|(first, _)| first < span.hours.start);
                    fleet.labels = reading.labels_of_gpus();
                    own = reading.all_labels().cloned().collect();
                }
                What::Container(Amount::Busy) => {
                    if let Some(namespace) = overwritten(&own, reading.all_labels()) {
                        return Err(FleetError::OwnNamespace {
                            url: store.url().to_owned(),
                            namespace,
                        });
                    }
                }
                _ => {}
            }
            fleet.fallen.append(&mut reading.fallen);
        }
        if fleet.names.contains(GPU_INFO) {
            let vector = store.vector(GPU_INFO, "");
            for labels in store.series(&vector, since, end).await? {
                if let Some((_, gpu)) = found(&labels, "gpu_uuid") {
                    fleet.info.insert(gpu.to_owned(), labels);
                }
            }
        }
        let keys = question.label_keys();
        fleet.pod_labels = PodLabels::read(store, span, keys, &fleet.names).await?;
        let by = |dimension| question.by.contains(&dimension);
        if (by(Dimension::Image) || by(Dimension::Runtime)) && fleet.names.contains(CONTAINER_INFO)
        {
            let vector = store.vector(CONTAINER_INFO, "");
            for labels in store.series(&vector, since, end).await? {
                let of = |label: &str| value(&labels, label);
                let whose = (of("pod_uid"), of("container_id"));
                fleet.images.insert(whose, (of("image"), of("runtime")));
            }
        }
        Ok(fleet)
    }

    fn add_elapsed(&mut self, grown: &Grown) {
        let elapsed = self.elapsed.entry(Arc::clone(&grown.subject.gpu));
        let time = Nanos(u64::try_from(grown.amount).unwrap_or(u64::MAX));
        elapsed.or_default().add(grown.hour, time);
    }

    fn add(&mut self, family: Family, grown: Grown) {
        let Subject { gpu, owner, detail } = &*grown.subject;
        let small = u64::try_from(grown.amount).unwrap_or(u64::MAX);
        let hours = self.hours.entry(Arc::clone(gpu)).or_default();
        let hour = hours.entry(grown.hour).or_default();
        if matches!(family.what, What::Host | What::Container(Amount::Busy)) {
            hour.owned += Nanos(small);
        }
        match family.what {
            What::Gpu(OfGpu::Elapsed) => hour.elapsed += Nanos(small),
            What::Gpu(OfGpu::Busy) => hour.busy += Nanos(small),
            What::Gpu(OfGpu::Idle) => hour.idle += Nanos(small),
            What::Gpu(OfGpu::Energy) => hour.energy.0 = hour.energy.0.saturating_add(small),
            What::Gpu(OfGpu::IdleEnergy) => {
                hour.energy_idle.0 = hour.energy_idle.0.saturating_add(small);
            }
            What::Gpu(of @ (OfGpu::Unobserved | OfGpu::Unattributed)) => {
                let key = (of == OfGpu::Unobserved, Arc::clone(detail));
                *hour.reasons.entry(key).or_default() += Nanos(small);
            }
            What::Host | What::Container(_) => {
                let used = self.used.entry((Arc::clone(gpu), owner.clone()));
                let amounts = used.or_default().of_mut(grown.hour);
                let amount = match family.what {
                    What::Container(amount) => amount,
                    _ => Amount::Busy,
                };
                amount.add(amounts, detail, grown.amount);
            }
        }
    }

    /// What `gpuacct_gpu_info` says of a GPU; `(unresolved)` where the store has none of it.
    fn info_of(&self, gpu: &str, label: &str) -> Arc<str> {
        let info = self.info.get(gpu).map(|labels| value(labels, label));
        info.unwrap_or_else(|| UNRESOLVED.into())
    }

    /// The same, if it says something.
    fn known_info_of(&self, gpu: &str, label: &str) -> Option<Arc<str>> {
        let text = self.info_of(gpu, label);
        (!matches!(&*text, NONE | UNRESOLVED)).then_some(text)
    }

    fn gpu(&self, gpu: &Arc<str>, span: &Span) -> GpuRecord {
        let labels = self.labels.get(&**gpu);
        let node = labels.and_then(|labels| found(labels, "node"));
        let cluster = labels.and_then(|labels| match &self.cluster {
            Some(own) => labels.get(own).map(String::as_str),
            None => found(labels, "cluster").map(|(_, cluster)| cluster),
        });
        let cluster = cluster.filter(|cluster| !cluster.is_empty());
        GpuRecord {
            node: node.map_or(UNRESOLVED, |(_, node)| node).into(),
            cluster: cluster.unwrap_or(UNRESOLVED).into(),
            uuid: GpuUuid(Arc::clone(gpu)),
            index: self.info_of(gpu, "index"),
            model: self.info_of(gpu, "model"),
            profile: self.known_info_of(gpu, "mig_profile"),
            parent: self.known_info_of(gpu, "mig_parent").map(GpuUuid),
            first_hour: span.hours.start,
            last_hour: span.hours.end - 1,
        }
    }

    fn account(&self, number: i64, gpu: &str, owner: &Owner) -> AccountRecord {
        let none: Arc<str> = NONE.into();
        let host = AccountRecord {
            gpu: number,
            // A UUID that had another instance before has what stands under it now.
            profile: self.known_info_of(gpu, "mig_profile"),
            kind: "host".into(),
            owner: none.clone(),
            namespace: none.clone(),
            pod: none.clone(),
            container: none.clone(),
            pod_uid: none.clone(),
            container_id: none.clone(),
            image: none.clone(),
            runtime: none.clone(),
            attribution: "host".into(),
            labels: "{}".into(),
            life: AccountLife::default(),
        };
        match owner {
            Owner::Host { unit } => AccountRecord {
                owner: Arc::clone(unit),
                ..host
            },
            Owner::Nobody => host,
            Owner::Container {
                namespace,
                pod,
                container,
                pod_uid,
                container_id,
            } => {
                let whose = (Arc::clone(pod_uid), Arc::clone(container_id));
                let unknown = || (UNRESOLVED.into(), UNRESOLVED.into());
                let (image, runtime) = self.images.get(&whose).cloned().unwrap_or_else(unknown);
                let labels = owner.pod().and_then(|pod| self.pod_labels.of(&pod));
                AccountRecord {
                    kind: "container".into(),
                    owner: Arc::clone(container_id),
                    namespace: Arc::clone(namespace),
                    pod: Arc::clone(pod),
                    container: Arc::clone(container),
                    pod_uid: whose.0,
                    container_id: whose.1,
                    image,
                    runtime,
                    // Without a name nothing is known of its labels.
                    attribution: if labels.is_some() { "named" } else { "id_only" }.into(),
                    labels: labels.unwrap_or_else(|| "{}".into()),
                    ..host
                }
            }
        }
    }

    /// Adds up what was read.
    fn report(
        mut self,
        span: &Span,
        question: &Question,
        now: Timestamp,
    ) -> Result<Report, FleetError> {
        let names: Vec<Arc<str>> = self.hours.keys().cloned().collect();
        let numbers: HashMap<Arc<str>, i64> = names.iter().cloned().zip(0..).collect();
        let gpus: HashMap<i64, GpuRecord> = numbers
            .iter()
            .map(|(gpu, number)| (*number, self.gpu(gpu, span)))
            .collect();
        let nodes: BTreeSet<Arc<str>> = gpus.values().map(|gpu| Arc::clone(&gpu.node)).collect();
        let extent = LedgerExtent {
            node: UNRESOLVED.into(),
            path: PathBuf::new(),
            store: "".into(),
            committed: WallTime(
                u64::try_from(span.end)
                    .unwrap_or(0)
                    .saturating_mul(1_000_000_000),
            ),
            hour: span.hours.end - 1,
            first_hour: span.hours.start,
        };
        let reach = Reach {
            active: self.active,
            has_before: self.has_before,
            fallen: self.fallen.range(span.hours.clone()).count(),
        };
        let mut remarks = Remarks::of(&reach, span, question);
        remarks.clusters(question, gpus.values());
        let mut tally = Tally::new(extent, gpus, question);
        let used = late_names::give_to_names(std::mem::take(&mut self.used));
        let pods = used.keys().filter_map(|(_, owner)| owner.pod());
        let unlabelled: BTreeSet<Pod> = pods.filter(|pod| self.pod_labels.lacks(pod)).collect();
        remarks.unlabelled(unlabelled.len());
        for (account, ((gpu, owner), hours)) in (0_i64..).zip(used) {
            let Some(number) = numbers.get(&gpu) else {
                continue;
            };
            for (hour, amounts) in hours {
                if amounts == Amounts::ZERO {
                    continue;
                }
                let used = Used {
                    hour,
                    account,
                    amounts,
                };
                tally.account(used, |_| {
                    Ok::<_, MoneyError>(self.account(*number, &gpu, &owner))
                })?;
            }
        }
        for gpu in &names {
            let Some((mut hours, number)) = self.hours.remove(gpu).zip(numbers.get(gpu)) else {
                continue;
            };
            let raw: Vec<Nanos> = hours.values().map(|hour| hour.elapsed).collect();
            let apart = balance::balance(&mut hours);
            remarks.gpu(gpu, apart, hours.values().map(|hour| hour.elapsed).sum());
            if let Some(mut elapsed) = self.elapsed.remove(gpu) {
                for (raw, (last_hour, hour)) in raw.into_iter().zip(&hours) {
                    elapsed.correct(*last_hour, raw, hour.elapsed);
                }
                tally.elapsed(*number, elapsed);
            }
            for (book, reasons) in balance::books(*number, hours) {
                tally.book(book);
                reasons.into_iter().for_each(|reason| tally.reason(reason));
            }
        }
        let mut report = tally.report(now)?;
        report.nodes = nodes.into_iter().collect();
        report.absent = self.absent();
        for row in report
            .rows
            .iter_mut()
            .chain([&mut report.owned, &mut report.total])
        {
            row.life = None;
        }
        remarks.put(&mut report);
        Ok(report)
    }

    /// What the store does not have.
    fn absent(&self) -> Absent {
        let mut absent = Absent::default();
        for kind in [Kind::Container, Kind::Host, Kind::Total] {
            absent.add(kind, Figure::AllocatedShare);
        }
        let missing = FAMILIES
            .iter()
            .filter(|family| !self.names.contains(family.name));
        for figure in missing.filter_map(Family::figure) {
            absent.add(Kind::Container, figure);
            absent.add(Kind::Total, figure);
        }
        // Only busy time is published of the host. The GPU's energy has that of the host in it, in the rows
        // without an owner.
        for figure in [
            Figure::Held,
            Figure::Engines,
            Figure::Memory,
            Figure::Energy,
        ] {
            absent.add(Kind::Host, figure);
        }
        absent
    }
}

/// The namespace that stands for every owner's and for the agent's target, if it is so.
fn overwritten<'a>(
    own: &[Labels],
    mut owners: impl ExactSizeIterator<Item = &'a Labels>,
) -> Option<String> {
    let target = |label: &str| -> Option<BTreeSet<&String>> {
        own.iter().map(|labels| labels.get(label)).collect()
    };
    let namespaces = target("namespace").filter(|of| of.len() == 1)?;
    let namespace = *namespaces.first()?;
    let pods = target("pod");
    let is_targets = |labels: &Labels| {
        found(labels, "namespace") == Some(("namespace", namespace.as_str()))
            && match (labels.get("pod"), &pods) {
                (Some(pod), Some(pods)) => pods.contains(pod),
                (None, _) => true,
                (Some(_), None) => false,
            }
    };
    let all = owners.len() > 0 && owners.all(is_targets);
    all.then(|| namespace.clone())
}
