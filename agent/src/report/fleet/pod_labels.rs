//! Labels of pods from a store: `gpuacct_pod_labels`, in kube-state-metrics' shape.
//!
//! A pod that had several values of a label has the last one, as in a ledger. Of two in the same hour it has
//! always the same one. A container of which the store has no such series has `(unresolved)`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::error::FleetError;
use super::families::value;
use super::span::Span;
use super::windows::{Plan, Run};
use crate::core::model::{NONE, UNRESOLVED};
use crate::outputs::instruments::pod_label_key;
use crate::report::promql::Store;
use crate::report::promql::answer::{Labels, Series};

/// The metric that has them.
const POD_LABELS: &str = "gpuacct_pod_labels";
/// How the names of a pod begin in a store that is sent OTLP, whatever it does with dots.
const OF_OTLP: &str = "k8s";
/// How the agent's own attributes begin in OTLP.
const OF_VENDOR: [&str; 2] = ["gpuacct_", "gpuacct."];
/// Labels that a message names at most.
const MOST_NAMED: usize = 16;

/// Namespace, name and uid of a pod.
pub(super) type Pod = [Arc<str>; 3];

/// The labels of pods that were asked for.
#[derive(Debug, Default)]
pub(super) struct PodLabels {
    /// The keys as they are typed, with the labels of the metric that have their values.
    keys: Vec<(Arc<str>, String)>,
    /// When each pod was seen last, and the values that it had then, in the order of the keys.
    pods: HashMap<Pod, (i64, Vec<Arc<str>>)>,
}

impl PodLabels {
    /// Reads the labels with these keys. The store is not asked if there are none.
    pub(super) async fn read(
        store: &mut Store,
        span: &Span,
        asked: BTreeSet<Arc<str>>,
        names: &BTreeSet<String>,
    ) -> Result<Self, FleetError> {
        let keys = asked.into_iter().map(|key| {
            let label = pod_label_key(&key);
            (key, label)
        });
        let mut labels = Self {
            keys: keys.collect(),
            pods: HashMap::new(),
        };
        if labels.keys.is_empty() {
            return Ok(labels);
        }
        if !names.contains(POD_LABELS) {
            return Err(FleetError::NoPodLabels {
                url: store.url().to_owned(),
                asked: labels.words(|_| true),
            });
        }
        let mut known = BTreeSet::new();
        let vector = store.vector(POD_LABELS, "");
        // The hours, and the part of the present one that has passed.
        let mut plan = Plan::of_hours(span.hours.start..span.whole());
        let mut part = Run::of_part(span);
        while let Some(run) = plan.next().or_else(|| part.take()) {
            let query = format!("last_over_time({vector}[{}s])", run.window);
            let asked = store.range(&query, run.first_end, run.last_end(), run.step());
            match asked.await {
                Err(error) if error.is_too_much() && plan.put_back(run) => {}
                found => labels.add(found?, &mut known),
            }
        }
        // A pod of that hour may not be there; a label that no pod has was never published.
        let lacks = labels.words(|label| !known.contains(label));
        match lacks.is_empty() || labels.pods.is_empty() {
            true => Ok(labels),
            false => Err(FleetError::LacksPodLabels {
                url: store.url().to_owned(),
                lacks,
                has: known.into_iter().take(MOST_NAMED).collect(),
            }),
        }
    }

    /// Whether the store was to have labels of a pod and has none.
    pub(super) fn lacks(&self, pod: &Pod) -> bool {
        !self.keys.is_empty() && &*pod[1] != NONE && !self.pods.contains_key(pod)
    }

    /// The keys whose labels are chosen, in words.
    fn words(&self, is_chosen: impl Fn(&str) -> bool) -> Vec<String> {
        let chosen = self.keys.iter().filter(|(_, label)| is_chosen(label));
        chosen.map(|(key, _)| key.to_string()).collect()
    }

    fn add(&mut self, found: Vec<Series>, known: &mut BTreeSet<String>) {
        for Series { labels, points } in found {
            let own = labels.keys().map(|name| own_name(name));
            known.extend(
                own.filter(|name| name.starts_with("label_"))
                    .map(str::to_owned),
            );
            let Some((last, _)) = points.last() else {
                continue;
            };
            // OTLP leaves out what does not apply.
            let is_of_otlp = labels.keys().any(|name| name.starts_with(OF_OTLP));
            let absent = if is_of_otlp { NONE } else { UNRESOLVED };
            let values: Vec<Arc<str>> = self
                .keys
                .iter()
                .map(|(_, label)| {
                    let mut found = labels.iter().filter(|(name, _)| own_name(name) == label);
                    found.next().map_or(absent, |(_, value)| value).into()
                })
                .collect();
            let pod = pod_of(&labels);
            let seen = self.pods.entry(pod).or_insert((*last, values.clone()));
            let rank = |values: &[Arc<str>]| {
                let known = values.iter().filter(|value| &***value != UNRESOLVED);
                known.count()
            };
            let is_later = *last > seen.0
                || (*last == seen.0 && (rank(&values), &values) > (rank(&seen.1), &seen.1));
            if is_later {
                *seen = (*last, values);
            }
        }
    }

    /// The labels of a container in a pod, as a ledger has them: an object of JSON. None if nothing is known
    /// of them.
    pub(super) fn of(&self, pod: &Pod) -> Option<Arc<str>> {
        let (_, values) = self.pods.get(pod)?;
        let keys = self.keys.iter().map(|(key, _)| &**key);
        let labels: BTreeMap<&str, &str> = keys
            .zip(values.iter().map(|value| &**value))
            .filter(|(_, value)| *value != NONE)
            .collect();
        serde_json::to_string(&labels).ok().map(Arc::from)
    }
}

/// The name of a label without what OTLP puts before it.
fn own_name(name: &str) -> &str {
    let names = OF_VENDOR.iter();
    let mut own = names.filter_map(|prefix| name.strip_prefix(prefix));
    own.next().unwrap_or(name)
}

fn pod_of(labels: &Labels) -> Pod {
    ["namespace", "pod", "pod_uid"].map(|label| value(labels, label))
}
