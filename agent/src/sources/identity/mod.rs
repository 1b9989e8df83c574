//! Names of containers, from several sources, and allocations from the kubelet.
//!
//! The kernel's cgroup decides which container is charged; these sources name it. Each answers on
//! its own, and none is needed for the books, since use is booked under the id.
//!
//! Texts in a runtime's answer were written by whoever started the container. So they are sanitised
//! here, before anything else sees them: bounded in length and number, free of control characters,
//! and believed to be Kubernetes' only where it is complete and has the shape of Kubernetes' names.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::mpsc;

use self::fault::SessionError;
use super::Io;
use crate::core::input::KubernetesNames;
use crate::core::model::{PodUid, SourceId, text};
use crate::published::{LookupBook, NamesBook};

pub mod bundle;
pub mod cri;
mod device_id;
pub mod docker;
mod elements;
mod engine;
mod fault;
mod files;
pub mod greeting;
mod grpc;
pub mod kubelet_logs;
pub mod pod_resources;
mod socket_file;
mod sockets;
mod wanted;

pub use self::engine::EngineError;

/// Longest text that is passed on, in bytes: Kubernetes' own longest name.
pub const MAX_TEXT: usize = 253;
/// Most labels of a container that are passed on.
pub const MAX_LABELS: usize = 64;

/// What connects an identity source to the rest of the agent. `Q` is what it can be asked.
#[derive(Debug)]
pub struct IdentityIo<Q> {
    /// What the source counts.
    pub counters: Arc<Counters>,
    /// Questions of the core. If it is closed, the source passes on only what it learns by itself.
    pub questions: mpsc::Receiver<Q>,
    /// Where the answers go, by which clocks, and until when.
    pub io: Io,
}

/// Counters of an identity source since the agent began, shared with the outputs.
#[derive(Debug, Default)]
pub struct Counters {
    /// Lookups of one container that found it.
    pub lookups_found: AtomicU64,
    /// Those that did not.
    pub lookups_not_found: AtomicU64,
    /// Those that were not answered in time.
    pub lookups_timeout: AtomicU64,
    /// Those whose answer cannot be understood.
    pub lookups_invalid: AtomicU64,
    /// Those that came to nothing in another way.
    pub lookups_error: AtomicU64,
    /// Requests sent.
    pub calls: AtomicU64,
    /// Requests that were not answered in time.
    pub timeouts: AtomicU64,
    /// Replies that are not what the API promises.
    pub invalid_replies: AtomicU64,
    /// Connections that were lost or could not be made.
    pub disconnects: AtomicU64,
    /// Events received.
    pub events: AtomicU64,
    /// Lookups turned away: too many were waiting, or the id is none.
    pub lookups_refused: AtomicU64,
    /// Texts that were cut, or in which something was escaped.
    pub texts_changed: AtomicU64,
    /// Labels left out, since the container has too many.
    pub labels_dropped: AtomicU64,
    /// Sets of Kubernetes labels that are incomplete or cannot be Kubernetes'.
    pub kubernetes_refused: AtomicU64,
    /// Entries of answers left out, since there are too many, they are too large or they contradict
    /// each other.
    pub entries_dropped: AtomicU64,
    /// Answers and events refused, since they are larger than what is read.
    pub answers_too_large: AtomicU64,
}

impl Counters {
    /// The counters as the books show them.
    #[must_use]
    pub fn book(&self, source: SourceId) -> NamesBook {
        // Relaxed: each stands alone.
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        NamesBook {
            source,
            lookups: LookupBook {
                found: read(&self.lookups_found),
                not_found: read(&self.lookups_not_found),
                timeout: read(&self.lookups_timeout),
                invalid: read(&self.lookups_invalid),
                error: read(&self.lookups_error),
            },
            calls: read(&self.calls),
            timeouts: read(&self.timeouts),
            invalid_replies: read(&self.invalid_replies),
            disconnects: read(&self.disconnects),
            events: read(&self.events),
            lookups_refused: read(&self.lookups_refused),
            texts_changed: read(&self.texts_changed),
            labels_dropped: read(&self.labels_dropped),
            kubernetes_refused: read(&self.kubernetes_refused),
            entries_dropped: read(&self.entries_dropped),
            answers_too_large: read(&self.answers_too_large),
        }
    }

    /// Counts a lookup that did not come to an answer, by the class of what went wrong.
    fn count_failed_lookup(&self, class: &str) {
        Self::count(match class {
            "not_found" => &self.lookups_not_found,
            "timeout" => &self.lookups_timeout,
            "protocol" | "invalid_reply" => &self.lookups_invalid,
            _ => &self.lookups_error,
        });
    }

    /// Counts an answer that is refused, by why.
    fn refuse_answer(&self, fault: &impl SessionError) {
        Self::count(match fault.class() {
            "too_large" => &self.answers_too_large,
            _ => &self.invalid_replies,
        });
    }

    /// Counts a question that found no room on its way to the source.
    pub fn refuse_lookup(&self) {
        Self::count(&self.lookups_refused);
    }

    fn count(counter: &AtomicU64) {
        Self::add(counter, 1);
    }

    fn add(counter: &AtomicU64, amount: usize) {
        // Nothing is ordered by these: they are only read to be shown.
        counter.fetch_add(u64::try_from(amount).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

/// `text` without control characters and of at most [`MAX_TEXT`] bytes. Texts that differ stay
/// different: they name devices, images and labels.
fn clean(text: &str, counters: &Counters) -> Arc<str> {
    // Cut first, since escapes are longer than what they stand for, and then again.
    let cut = text::bounded(text, MAX_TEXT);
    let escaped = text::escaped(cut.as_bytes());
    let cleaned = text::bounded(&escaped, MAX_TEXT);
    if *cleaned != *text {
        Counters::count(&counters.texts_changed);
    }
    cleaned.into()
}

/// [`clean`], where there is something to show.
fn clean_name(text: Option<&str>, counters: &Counters) -> Option<Arc<str>> {
    text.filter(|text| !text.is_empty())
        .map(|text| clean(text, counters))
}

/// All labels, bounded. Kubernetes' go first, then the rest in order of their keys, so that a
/// container with too many always loses the same ones.
fn clean_labels(
    labels: &HashMap<String, String>,
    counters: &Counters,
) -> BTreeMap<Arc<str>, Arc<str>> {
    let mut keys: Vec<_> = labels.keys().collect();
    keys.sort_by(|one, other| label_order(one).cmp(&label_order(other)));
    Counters::add(
        &counters.labels_dropped,
        keys.len().saturating_sub(MAX_LABELS),
    );
    keys.into_iter()
        .take(MAX_LABELS)
        .map(|key| (clean(key, counters), clean(&labels[key], counters)))
        .collect()
}

/// A container's labels and its pod's, both as [`clean_labels`] gives them. The container's own value
/// counts where both have a key. The bound and the order are those of [`clean_labels`].
fn merge_labels(
    mut own: BTreeMap<Arc<str>, Arc<str>>,
    pods: &BTreeMap<Arc<str>, Arc<str>>,
    counters: &Counters,
) -> BTreeMap<Arc<str>, Arc<str>> {
    for (key, value) in pods {
        let entry = own.entry(Arc::clone(key));
        entry.or_insert_with(|| Arc::clone(value));
    }
    if own.len() <= MAX_LABELS {
        return own;
    }
    Counters::add(&counters.labels_dropped, own.len() - MAX_LABELS);
    let mut all: Vec<_> = own.into_iter().collect();
    all.sort_by(|(one, _), (other, _)| label_order(one).cmp(&label_order(other)));
    all.into_iter().take(MAX_LABELS).collect()
}

/// Which labels are kept first where there are too many: Kubernetes' own.
fn label_order(key: &str) -> (bool, &str) {
    (!key.starts_with("io.kubernetes."), key)
}

/// The container's names in Kubernetes, if its labels have all of them and each could be one.
///
/// Anyone who can start a container can set these labels; whether they are believed is decided by
/// the pod uid in the container's cgroup, which is not this source's to see.
fn kubernetes_names(
    labels: &HashMap<String, String>,
    counters: &Counters,
) -> Option<KubernetesNames> {
    const NAMESPACE: &str = "io.kubernetes.pod.namespace";
    const POD: &str = "io.kubernetes.pod.name";
    const POD_UID: &str = "io.kubernetes.pod.uid";
    const CONTAINER: &str = "io.kubernetes.container.name";
    if ![NAMESPACE, POD, POD_UID, CONTAINER]
        .iter()
        .any(|key| labels.contains_key(*key))
    {
        return None;
    }
    let get = |key: &str| labels.get(key).map(String::as_str);
    kubernetes_names_of(
        PodNames {
            namespace: get(NAMESPACE),
            pod: get(POD),
            pod_uid: get(POD_UID),
            container: get(CONTAINER),
        },
        counters,
    )
}

/// A container's names in Kubernetes, as somebody wrote them.
#[derive(Clone, Copy, Debug)]
struct PodNames<'a> {
    namespace: Option<&'a str>,
    pod: Option<&'a str>,
    pod_uid: Option<&'a str>,
    container: Option<&'a str>,
}

/// The names, if they are complete and each could be one; counted if not.
fn kubernetes_names_of(names: PodNames<'_>, counters: &Counters) -> Option<KubernetesNames> {
    let name = |text: Option<&'_ str>| text.filter(|text| is_kubernetes_name(text)).map(Arc::from);
    let names = (|| {
        Some(KubernetesNames {
            namespace: name(names.namespace)?,
            pod: name(names.pod)?,
            pod_uid: PodUid(name(names.pod_uid)?),
            container: name(names.container)?,
        })
    })();
    if names.is_none() {
        Counters::count(&counters.kubernetes_refused);
    }
    names
}

/// Whether Kubernetes could have given this name: letters, digits, dashes and dots. It keeps a label
/// from posing as `(none)` or `(unresolved)`. Capitals occur in one name, the sandbox's `POD`.
fn is_kubernetes_name(text: &str) -> bool {
    (1..=MAX_TEXT).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.'))
}

/// For the fuzz target: what an id of the kubelet's means.
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub fn fuzz_device_id(id: &str) {
    use device_id::{Origin, device_ref};
    for origin in [Origin::Gpus, Origin::MaybeGpus, Origin::Dra] {
        let _ = device_ref(id, origin);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn labels(of: &[(&str, &str)]) -> HashMap<String, String> {
        of.iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    }

    fn read(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::Relaxed)
    }

    #[test]
    fn texts_are_bounded_and_each_change_is_counted() {
        let rows = [
            ("plain", "plain".to_owned(), 0),
            ("", String::new(), 0),
            ("quo\"ted", "quo\"ted".to_owned(), 0),
            ("a\nb\0c\u{7f}", r"a\x0ab\x00c\x7f".to_owned(), 1),
            (&"x".repeat(253), "x".repeat(253), 0),
            (&"x".repeat(1 << 20), "x".repeat(236), 1),
            (&"ü".repeat(200), "ü".repeat(118), 1),
            // An escape is longer than what it stands for.
            (&"\n".repeat(253), r"\x0a".repeat(59), 1),
        ];
        for (text, expected, changed) in rows {
            let counters = Counters::default();
            let cleaned = clean(text, &counters);
            assert!(cleaned.len() <= MAX_TEXT, "{cleaned}");
            let begin = cleaned
                .split_once('~')
                .map_or(&*cleaned, |(begin, _)| begin);
            assert_eq!(begin, expected);
            assert_eq!(read(&counters.texts_changed), changed, "{expected}");
        }
    }

    #[test]
    fn texts_that_differ_in_what_is_taken_away_stay_different() {
        let long = "x".repeat(300);
        let (longer, other) = (format!("{long}y"), format!("{long}z"));
        let cut = clean(&long, &Counters::default());
        let texts = [
            "a\n",
            "a\0",
            "a\u{7f}",
            "a\u{fffd}",
            r"a\x0a",
            r"a\x5cx0a",
            "a",
            &long,
            &longer,
            &other,
            &cut,
        ];
        let cleaned: BTreeSet<_> = texts
            .iter()
            .map(|text| clean(text, &Counters::default()))
            .collect();
        assert_eq!(cleaned.len(), texts.len(), "{cleaned:?}");
    }

    #[test]
    fn of_too_many_labels_kubernetes_own_stay_and_the_rest_is_counted() {
        let mut many: HashMap<_, _> = (0..100)
            .map(|i| (format!("app{i:03}"), "v".repeat(300)))
            .collect();
        many.insert("io.kubernetes.pod.name".to_owned(), "train-0".to_owned());
        let counters = Counters::default();
        let kept = clean_labels(&many, &counters);
        assert_eq!(kept.len(), MAX_LABELS);
        assert_eq!(kept["io.kubernetes.pod.name"], "train-0".into());
        assert_eq!(kept["app062"].len(), MAX_TEXT);
        assert!(!kept.contains_key("app063"));
        assert_eq!(read(&counters.labels_dropped), 37);
        assert_eq!(read(&counters.texts_changed), 63);
    }

    #[test]
    fn labels_that_are_merged_are_those_that_are_cleaned_together() {
        let mut pods: HashMap<_, _> = (0..60)
            .map(|i| (format!("app{i:03}"), "v\u{fc}".repeat(300)))
            .collect();
        pods.insert("io.kubernetes.pod.name".to_owned(), "train-0".to_owned());
        pods.insert("a".repeat(1_000), "b".repeat(1_000));
        let own: HashMap<_, _> = (50..80)
            .map(|i| (format!("app{i:03}"), "own".to_owned()))
            .collect();
        let counters = Counters::default();
        let merged = merge_labels(
            clean_labels(&own, &counters),
            &clean_labels(&pods, &counters),
            &counters,
        );
        assert_eq!(merged.len(), MAX_LABELS);
        assert_eq!(read(&counters.labels_dropped), 18);
        let mut together = pods;
        together.extend(own);
        assert_eq!(merged, clean_labels(&together, &Counters::default()));
    }

    #[test]
    fn kubernetes_names_are_complete_and_well_formed_or_absent() {
        let complete = [
            ("io.kubernetes.pod.namespace", "ml"),
            ("io.kubernetes.pod.name", "train-0.worker"),
            (
                "io.kubernetes.pod.uid",
                "9f6c1b1e-2d3f-4a5b-8c7d-0123456789ab",
            ),
            ("io.kubernetes.container.name", "POD"),
            ("app", "train"),
        ];
        let counters = Counters::default();
        let names = kubernetes_names(&labels(&complete), &counters).unwrap();
        assert_eq!(&*names.namespace, "ml");
        assert_eq!(&*names.pod, "train-0.worker");
        assert_eq!(names.pod_uid.as_str(), complete[2].1);
        assert_eq!(&*names.container, "POD");
        assert!(kubernetes_names(&labels(&complete[4..]), &counters).is_none());
        assert_eq!(read(&counters.kubernetes_refused), 0);

        let long = "x".repeat(254);
        for bad in ["", "(none)", "(unresolved)", "a b", "ünï", "a\n", &long] {
            for at in 0..4 {
                let mut row = complete;
                row[at].1 = bad;
                assert!(
                    kubernetes_names(&labels(&row), &counters).is_none(),
                    "{row:?}"
                );
            }
        }
        for at in 0..4 {
            let mut row = complete.to_vec();
            row.remove(at);
            assert!(
                kubernetes_names(&labels(&row), &counters).is_none(),
                "{row:?}"
            );
        }
        assert_eq!(read(&counters.kubernetes_refused), 32);
    }
}
