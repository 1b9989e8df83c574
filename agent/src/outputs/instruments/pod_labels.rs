//! The pods' own labels, in the shape of kube-state-metrics' `kube_pod_labels`.
//!
//! A pod has one series. The label `app.kubernetes.io/name` becomes the key
//! `label_app_kubernetes_io_name`, by kube-state-metrics' rules (`internal/store/utils.go` there), so
//! that queries which join with the one can join with the other. One rule differs: a label that a pod
//! does not have is `(none)` here and left out there, since all series of a family here have the same
//! keys.

use std::collections::{BTreeMap, BTreeSet};

use super::instrument::{Points, Value, View};
use crate::core::input::IdentitySource;
use crate::core::model::{NONE, UNRESOLVED};
use crate::core::snapshot::{Attribution, ContainerAccount};

/// Writes a series for each pod.
pub(super) fn series(view: &View<'_>, points: &mut Points<'_>) {
    let labels = &view.opt_in.pod_labels;
    if labels.is_empty() {
        return;
    }
    let keys = keys(labels);
    let mut pods: BTreeMap<[&str; 3], Vec<&str>> = BTreeMap::new();
    for account in &view.snapshot.accounts {
        let Attribution::Named { source } = account.attribution else {
            continue;
        };
        let of = &*account.labels;
        if [NONE, UNRESOLVED].contains(&&*of.pod) {
            continue;
        }
        let pod = pods
            .entry([&of.namespace, &of.pod, &of.pod_uid])
            .or_insert_with(|| vec![UNRESOLVED; keys.len()]);
        // Containers of a pod can have been named by different sources, of which some know more.
        for (known, (label, _)) in pod.iter_mut().zip(&keys) {
            let value = value(account, source, label);
            *known = (*known).max_by_knowledge(value);
        }
    }
    for (pod, values) in pods {
        let configured: Vec<(&str, &str)> = keys
            .iter()
            .map(|(_, key)| key.as_str())
            .zip(values)
            .collect();
        let start = view.snapshot.agent_started;
        points.put_configured(&pod, &configured, start, Value::Count(1));
    }
}

fn value<'a>(account: &'a ContainerAccount, source: IdentitySource, label: &str) -> &'a str {
    match account.runtime_labels.get(label) {
        Some(value) if !value.is_empty() => value,
        // An empty value is one that Kubernetes allows.
        Some(_) => NONE,
        None if source == IdentitySource::Cri => NONE,
        None => UNRESOLVED,
    }
}

trait Knowledge {
    fn max_by_knowledge(self, other: Self) -> Self;
}

impl Knowledge for &str {
    /// The value that says more. Of two that say different things always the same one, so that the
    /// series does not change from commit to commit.
    fn max_by_knowledge(self, other: Self) -> Self {
        let rank = |text| match text {
            UNRESOLVED => 0,
            NONE => 1,
            _ => 2,
        };
        (rank(self), self).max((rank(other), other)).1
    }
}

/// The labels of pods in order, each once, with the key that it has in Prometheus. Labels whose keys
/// would be the same get numbers.
fn keys(labels: &[String]) -> Vec<(&str, String)> {
    let labels: BTreeSet<&str> = labels.iter().map(String::as_str).collect();
    let mut count: BTreeMap<String, usize> = BTreeMap::new();
    for label in &labels {
        *count.entry(pod_label_key(label)).or_default() += 1;
    }
    // Another label may already have the key that a number makes.
    let mut taken: BTreeSet<String> = count.keys().cloned().collect();
    let numbered = labels.into_iter().map(|label| {
        let key = pod_label_key(label);
        if count.get(&key).is_none_or(|count| *count == 1) {
            return (label, key);
        }
        let mut numbers = 1..;
        let free = numbers.find_map(|number: usize| {
            let numbered = format!("{key}_conflict{number}");
            taken.insert(numbered.clone()).then_some(numbered)
        });
        (label, free.unwrap_or(key))
    });
    numbered.collect()
}

/// The key that a pod's label has in `gpuacct_pod_labels`: `label_` and the label in snake case, with an
/// underscore for what no key has.
#[must_use]
pub fn pod_label_key(label: &str) -> String {
    let mut key = String::from("label_");
    let mut is_after_small = false;
    for c in label.chars() {
        if c.is_ascii_uppercase() && is_after_small {
            key.push('_');
        }
        is_after_small = c.is_ascii_lowercase() || c.is_ascii_digit();
        key.push(match c.is_ascii_alphanumeric() {
            true => c.to_ascii_lowercase(),
            false => '_',
        });
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_those_of_kube_state_metrics() {
        for (label, expected) in [
            ("team", "label_team"),
            ("app.kubernetes.io/name", "label_app_kubernetes_io_name"),
            ("costCenter", "label_cost_center"),
            ("HTTPServer2Go", "label_httpserver2_go"),
            ("a-b", "label_a_b"),
            ("9to5", "label_9to5"),
        ] {
            assert_eq!(pod_label_key(label), expected);
        }
        let of = |labels: &[&str]| {
            let labels: Vec<String> = labels.iter().map(|label| (*label).to_owned()).collect();
            let keys = keys(&labels).into_iter();
            keys.map(|(label, key)| (label.to_owned(), key))
                .collect::<Vec<_>>()
        };
        let pair = |label: &str, key: &str| (label.to_owned(), key.to_owned());
        assert_eq!(
            of(&["b_c", "a", "b-c", "b.c", "a"]),
            [
                pair("a", "label_a"),
                pair("b-c", "label_b_c_conflict1"),
                pair("b.c", "label_b_c_conflict2"),
                pair("b_c", "label_b_c_conflict3"),
            ]
        );
    }

    #[test]
    fn a_pods_value_is_the_one_that_says_most() {
        for (one, other, expected) in [
            (UNRESOLVED, NONE, NONE),
            (NONE, "a", "a"),
            (UNRESOLVED, "a", "a"),
            ("a", "b", "b"),
            (NONE, NONE, NONE),
        ] {
            assert_eq!(one.max_by_knowledge(other), expected);
            assert_eq!(other.max_by_knowledge(one), expected);
        }
    }
}
