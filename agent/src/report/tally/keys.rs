//! What a row is grouped by: the values of an account, of a GPU and of an hour.
//!
//! No value is blank. `(none)` says that it does not apply or is not set, `(unresolved)` that it was
//! never found out, `(empty)` that it is set to the empty text.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::sync::Arc;

use super::dimension::Dimension;
use super::kind::Kind;
use super::ledgers::InLedger;
use crate::core::model::{NONE, UNRESOLVED};
use crate::outputs::store::query::{AccountRecord, GpuRecord};
use crate::report::zone::Zone;

/// A label's value that is the empty text, which would be a blank.
pub(crate) const EMPTY: &str = "(empty)";

/// An account, as far as the report needs it.
#[derive(Debug)]
pub(super) struct AccountKey {
    pub(super) kind: Kind,
    pub(super) gpu: InLedger,
    pub(super) profile: Option<Arc<str>>,
    pub(super) key: Vec<Arc<str>>,
    /// Whether it is in the report.
    pub(super) is_in: bool,
    /// Its labels that prices depend on, with their keys.
    pub(super) priced_by: Arc<[(Arc<str>, Arc<str>)]>,
}

/// Makes the keys of rows.
#[derive(Debug)]
pub(super) struct Keys<'a> {
    by: &'a [Dimension],
    zone: &'a Zone,
    gpus: HashMap<InLedger, GpuRecord>,
    /// Names of the hours that were met.
    names: HashMap<i64, [Arc<str>; 3]>,
    /// The first of these hours that has a name. Names are no order: an hour that occurs twice in a
    /// zone has the later offset first.
    first: HashMap<Arc<str>, i64>,
    none: Arc<str>,
}

impl<'a> Keys<'a> {
    pub(super) fn new(by: &'a [Dimension], zone: &'a Zone, none: Arc<str>) -> Self {
        Self {
            by,
            zone,
            gpus: HashMap::new(),
            names: HashMap::new(),
            first: HashMap::new(),
            none,
        }
    }

    /// Adds a GPU.
    pub(super) fn add(&mut self, number: InLedger, gpu: GpuRecord) {
        self.gpus.insert(number, gpu);
    }

    /// The GPUs, by their numbers.
    pub(super) const fn gpus(&self) -> &HashMap<InLedger, GpuRecord> {
        &self.gpus
    }

    /// The key of an account, without what depends on the hour.
    pub(super) fn account(
        &self,
        account: &AccountValues<'_>,
        gpu: InLedger,
        is_in: bool,
        priced_by: Arc<[(Arc<str>, Arc<str>)]>,
    ) -> AccountKey {
        let record = account.record;
        let key = self.by.iter().map(|dimension| match dimension {
            Dimension::Node
            | Dimension::Cluster
            | Dimension::Gpu
            | Dimension::GpuIndex
            | Dimension::Model => self.device(gpu, dimension),
            _ => account.get(dimension),
        });
        AccountKey {
            kind: if is_host(record) {
                Kind::Host
            } else {
                Kind::Container
            },
            gpu,
            profile: record.profile.clone(),
            key: key.collect(),
            is_in,
            priced_by,
        }
    }

    /// The key of a GPU's hour that is nobody's.
    pub(super) fn nobody(&mut self, gpu: InLedger, hour: i64) -> Vec<Arc<str>> {
        let key = self.by.iter().map(|dimension| match dimension {
            Dimension::Node
            | Dimension::Cluster
            | Dimension::Gpu
            | Dimension::GpuIndex
            | Dimension::Model
            | Dimension::Profile => self.device(gpu, dimension),
            _ => self.none.clone(),
        });
        let key: Vec<_> = key.collect();
        self.at_hour(&key, hour)
    }

    /// A value of a GPU; its UUID where it has none of that name.
    pub(super) fn device(&self, gpu: InLedger, dimension: &Dimension) -> Arc<str> {
        let Some(gpu) = self.gpus.get(&gpu) else {
            return UNRESOLVED.into();
        };
        match dimension {
            Dimension::Node => shown(&gpu.node),
            Dimension::Cluster => shown(&gpu.cluster),
            Dimension::GpuIndex => Arc::clone(&gpu.index),
            Dimension::Model => shown(&gpu.model),
            Dimension::Profile => gpu.profile.as_ref().map_or(self.none.clone(), shown),
            _ => shown(&gpu.uuid.0),
        }
    }

    /// A key with what depends on the hour.
    pub(super) fn at_hour(&mut self, key: &[Arc<str>], hour: i64) -> Vec<Arc<str>> {
        let mut key = key.to_vec();
        if !self.by.iter().any(Dimension::is_time) {
            return key;
        }
        let names = self.names.entry(hour).or_insert_with(|| {
            let names = self.zone.names(hour).map(Arc::from);
            for name in &names {
                let first = self.first.entry(Arc::clone(name)).or_insert(hour);
                *first = hour.min(*first);
            }
            names
        });
        for (dimension, value) in self.by.iter().zip(&mut key) {
            match dimension {
                Dimension::Hour => value.clone_from(&names[0]),
                Dimension::Day => value.clone_from(&names[1]),
                Dimension::Month => value.clone_from(&names[2]),
                _ => {}
            }
        }
        key
    }

    /// By what rows are put into the order of time.
    pub(super) fn times(&self, key: &[Arc<str>]) -> Vec<i64> {
        let both = self.by.iter().zip(key);
        let times = both.filter(|(dimension, _)| dimension.is_time());
        times
            .map(|(_, name)| self.first.get(name).copied().unwrap_or_default())
            .collect()
    }
}

/// An account with the values by which rows are grouped and accounts are chosen.
pub(super) struct AccountValues<'a> {
    pub(super) record: &'a AccountRecord,
    /// Its labels, parsed when the first of them is asked for; none if nothing is known of them.
    labels: OnceCell<Option<HashMap<String, Arc<str>>>>,
}

impl<'a> AccountValues<'a> {
    pub(super) fn new(record: &'a AccountRecord) -> Self {
        Self {
            record,
            labels: OnceCell::new(),
        }
    }

    /// A value of the account; `(none)` for what depends on the GPU or the hour.
    pub(super) fn get(&self, dimension: &Dimension) -> Arc<str> {
        let record = self.record;
        let is_host = is_host(record);
        match dimension {
            Dimension::Profile => record.profile.as_ref().map_or(NONE.into(), shown),
            Dimension::Unit if is_host => shown(&record.owner),
            _ if is_host => NONE.into(),
            Dimension::Namespace => shown(&record.namespace),
            Dimension::Pod => shown(&record.pod),
            Dimension::PodUid => shown(&record.pod_uid),
            Dimension::Container => shown(&record.container),
            Dimension::ContainerId => shown(&record.container_id),
            Dimension::Image => shown(&record.image),
            Dimension::Runtime => shown(&record.runtime),
            Dimension::Label(key) => self.label(key),
            Dimension::Unit
            | Dimension::Node
            | Dimension::Cluster
            | Dimension::Gpu
            | Dimension::GpuIndex
            | Dimension::Model
            | Dimension::Hour
            | Dimension::Day
            | Dimension::Month => NONE.into(),
        }
    }

    /// The value of a label.
    pub(super) fn label(&self, key: &str) -> Arc<str> {
        let labels = self.labels.get_or_init(|| {
            // Until it is named, nothing is known of its labels either.
            let is_named = &*self.record.attribution == "named";
            let labels = is_named.then(|| serde_json::from_str(&self.record.labels));
            labels.and_then(Result::ok)
        });
        match labels.as_ref().map(|labels| labels.get(key)) {
            None => UNRESOLVED.into(),
            Some(None) => NONE.into(),
            Some(Some(value)) if value.is_empty() => EMPTY.into(),
            Some(Some(value)) => Arc::clone(value),
        }
    }
}

fn is_host(record: &AccountRecord) -> bool {
    &*record.kind == "host"
}

/// A text that is not blank.
pub(super) fn shown(text: &Arc<str>) -> Arc<str> {
    if text.is_empty() {
        UNRESOLVED.into()
    } else {
        Arc::clone(text)
    }
}
